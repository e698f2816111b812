"""Hierarchical variational autoencoders: a Markov chain of latents, inferred from the bottom up or as a ladder."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from companion.models.questions import Loss
from companion.models.vae import decoder_log_scale, few_rows, pixel_distribution, pixel_log_likelihood, sample_pixels
from companion.nets import conv_decoder, conv_encoder
from companion.validate import require_binary, require_events, require_positive_int

# A variance is softplus(a). Below, softplus(a) is exp(a) to single precision, and further down it would be zero.
LEAST_RAW_VARIANCE = -30.0


class Level(NamedTuple):
    """Draws of one level's latent, each (samples, batch, latent), and the two distributions they are weighed by."""

    z: Tensor
    q: Normal
    p: Normal


class HVAE(nn.Module):
    """p(z_T) = N(0, I), p(z_{t-1}|z_t) Gaussian with diagonal covariance, p(x|z_1); and one of two ways to infer.

    "bottom-up": q(z_1|x) Π_t q(z_t|z_{t-1}), a Markov chain as the generative one, against its direction.

    "ladder" (Sønderby et al. 2016, sec. 2): q(z_T|x) Π_t q(z_{t-1}|z_t,x), in the direction of the generative
    chain, whose p(z_{t-1}|z_t) it combines with what x says, weighted by their precisions (their eqs. 17-19).

    Args:
        event_shape: the shape of one example.
        latent_dims: of z_1, ..., z_T, from the bottom to the top.
        network: "mlp", or "conv" between x and the lowest level.
        hidden: width of the hidden layers of each level, from the bottom to the top; the lowest is the one next to x.
        depth: hidden layers in each mapping. With 0 they are linear, and the model is a linear-Gaussian tower
            (if no variance depends on a latent).
        inference: "ladder" or "bottom-up".
        likelihood: "bernoulli" for binary x, "gaussian" for real x.
        decoder_scale: σ_x of a Gaussian decoder, a number or "learned".
        batch_norm: batch normalisation of the fully connected hidden layers, as in the paper; without it the upper
            levels of a ladder hardly learn.
        warm_up: the weight of the divergences grows from 0 to 1 over so many training steps.
        free_bits: nats that each level's divergence, averaged over the batch, may have without cost (Kingma et
            al. 2016, eq. 15).

    Raises ValueError for an argument that means nothing.

    >>> import torch
    >>> from companion.models import HVAE
    >>> model = HVAE((2,), latent_dims=(2, 1), hidden=(8, 8), likelihood="gaussian").eval()
    >>> model.elbo(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    steps: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...] = (1, 28, 28),
        latent_dims: Sequence[int] = (32, 16),
        network: Literal["mlp", "conv"] = "mlp",
        hidden: Sequence[int] = (512, 256),
        depth: int = 1,
        inference: Literal["ladder", "bottom-up"] = "ladder",
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        decoder_scale: float | Literal["learned"] = 1.0,
        batch_norm: bool = True,
        warm_up: int = 0,
        free_bits: float = 0.0,
    ):
        super().__init__()
        for name, values in (("latent_dims", latent_dims), ("hidden", hidden)):
            for value in values:
                require_positive_int(value, name)
        if len(latent_dims) < 1 or len(hidden) != len(latent_dims):
            raise ValueError(
                f"latent_dims and hidden need a number for each level, got {len(latent_dims)} and {len(hidden)}"
            )
        if network not in ("mlp", "conv"):
            raise ValueError(f"network must be 'mlp' or 'conv', got {network!r}")
        if inference not in ("ladder", "bottom-up"):
            raise ValueError(f"inference must be 'ladder' or 'bottom-up', got {inference!r}")
        for name, value in (("depth", depth), ("warm_up", warm_up)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be an integer of at least 0, got {value!r}")
        if network == "conv" and depth == 0:
            raise ValueError("depth is 0, which means linear maps: it goes with network 'mlp', got 'conv'")
        if not (math.isfinite(free_bits) and free_bits >= 0):
            raise ValueError(f"free_bits must be a finite number, not negative, got {free_bits!r}")
        self.event_shape, self.latent_dims = tuple(event_shape), tuple(latent_dims)
        self.inference, self.likelihood = inference, likelihood
        self.levels = 2 if likelihood == "bernoulli" else None
        self.warm_up, self.free_bits = warm_up, free_bits
        self.register_buffer("steps", torch.tensor(0))

        pixels = math.prod(self.event_shape)
        # Upwards, each level reads x or, further up, what the level below hands on: its draw (bottom-up) or its
        # hidden layer (ladder). A head turns its hidden layer into a mean and a variance.
        self.up, self.heads = nn.ModuleList(), nn.ModuleList()
        inputs = pixels
        for level, (latent, width) in enumerate(zip(latent_dims, hidden, strict=True)):
            if level == 0 and network == "conv":
                mapping = nn.Sequential(conv_encoder(self.event_shape, width, width), nn.LeakyReLU(0.1))
            else:
                mapping = nn.Sequential(
                    *([nn.Flatten()] if level == 0 else []), *_hidden(inputs, width, depth, batch_norm)
                )
            outputs = width if depth else inputs
            self.up.append(mapping)
            self.heads.append(nn.Linear(outputs, 2 * latent))
            inputs = outputs if inference == "ladder" else latent
        # Downwards, from z_t to the mean and variance of p(z_{t-1}|z_t), and from z_1 to the pixels.
        self.down = nn.ModuleList(
            nn.Sequential(*_hidden(latent, width, depth, batch_norm), nn.Linear(width if depth else latent, 2 * below))
            for below, latent, width in zip(latent_dims[:-1], latent_dims[1:], hidden[1:], strict=True)
        )
        bottom, width = latent_dims[0], hidden[0]
        self.decoder = (
            conv_decoder(bottom, width, self.event_shape)
            if network == "conv"
            else nn.Sequential(
                *_hidden(bottom, width, depth, batch_norm),
                nn.Linear(width if depth else bottom, pixels),
                nn.Unflatten(1, self.event_shape),
            )
        )
        self.log_scale = decoder_log_scale(likelihood, decoder_scale)

    def infer(self, x: Float[Tensor, " batch *event"], samples: int = 1) -> list[Level]:
        """So many draws of z_{1:T} from q(z_{1:T}|x), level by level, from z_1 to z_T.

        Raises ValueError or TypeError for a wrong shape or dtype, NaN, or grey pixels and a Bernoulli decoder.
        """
        require_positive_int(samples, "samples")
        return self._draw(self._evidence(x), samples)

    def decode(self, z: Float[Tensor, " batch latent"]) -> Independent:
        """p(x|z_1), batch shape (batch,), event shape that of an example.

        Raises TypeError or ValueError for a z of a wrong shape or dtype, and for NaN.
        """
        require_events(z, self.latent_dims[:1], "z")
        return pixel_distribution(self.decoder(z).to(z.dtype), self.likelihood, self.log_scale)

    def loss(self, x: Float[Tensor, " batch *event"]) -> Loss:
        """Minus the bound. In training mode, with the weight of the warm-up and with free bits; each call counts
        as one step of the warm-up."""
        log_likelihood, divergences = self._terms(x)
        unit = "nats"
        if self.training and self.free_bits:
            # A mean below the free bits costs as much as they do, and has no gradient.
            divergences = [torch.where(kl.mean() > self.free_bits, kl, self.free_bits) for kl in divergences]
            unit = f"nats, {self.free_bits:g} of each level free"
        if self.training and self.warm_up:
            self.steps += 1
            weight = (self.steps / self.warm_up).clamp(max=1)
            divergences = [weight * kl for kl in divergences]
            unit += ", divergences weighted by the warm-up"
        parts = {"reconstruction": -log_likelihood}
        parts |= {f"level {level}": kl for level, kl in enumerate(divergences, start=1)}
        return Loss.of(parts, unit)

    def elbo(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
        """The evidence lower bound in nats, with one draw of the latents, whatever the warm-up and the free bits."""
        log_likelihood, divergences = self._terms(x)
        return log_likelihood - sum(divergences)

    def divergences(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch levels"]:
        """What each level costs, in nats, from z_1 to z_T, with one draw: E_q[log q(z_t|·) - log p(z_t|·)].

        Where the expectation over z_t is a closed form, that is at every level of a ladder and at the top of a
        bottom-up chain, it is a divergence; elsewhere it is the difference at the draw, and may be negative.
        """
        return torch.stack(self._terms(x)[1], -1)

    @torch.no_grad()
    def log_weights(self, x: Float[Tensor, " batch *event"], samples: int) -> Float[Tensor, " samples batch"]:
        """log p(x,z_{1:T}) - log q(z_{1:T}|x) for so many draws from q, in nats, with autocast off.

        Raises TypeError or ValueError for a wrong shape or dtype, NaN, and a number of samples that means nothing.
        """
        require_positive_int(samples, "samples")
        with torch.autocast(x.device.type, enabled=False):
            evidence = self._evidence(x)

            def weights(draws: int) -> Tensor:
                levels = self._draw(evidence, draws)
                ratios = [level.p.log_prob(level.z).sum(-1) - level.q.log_prob(level.z).sum(-1) for level in levels]
                return self._log_likelihood(x, levels[0].z) + sum(ratios)

            return few_rows(weights, len(x), samples)

    def importance_bound(self, x: Float[Tensor, " batch *event"], samples: int) -> Float[Tensor, " batch"]:
        """log of the mean of `samples` importance weights, in nats: in expectation a lower bound on log p(x)
        that rises with `samples` (Burda et al. 2016, eq. 8). Without gradients."""
        return self.log_weights(x, samples).logsumexp(0) - math.log(samples)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n *event"]:
        """z_T from the prior, then down the chain, and x from the decoder, its noise included.

        Raises ValueError unless n is a positive integer.
        """
        require_positive_int(n, "n")
        device, dtype = self.log_scale.device, self.log_scale.dtype
        top = torch.randn(n, self.latent_dims[-1], generator=generator, device=device, dtype=dtype)
        return sample_pixels(self.decode(self.descend(top, generator=generator)), generator)

    @torch.no_grad()
    def descend(
        self,
        z: Float[Tensor, " batch latent"],
        level: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch bottom"]:
        """From z_t at a level t, the top one if None, down to z_1, with a fresh draw at each level below.

        Raises TypeError or ValueError for a level that is not there, and for a z of a wrong shape or dtype, or NaN.
        """
        level = len(self.latent_dims) if level is None else level
        if level not in range(1, len(self.latent_dims) + 1):
            raise ValueError(f"level must be from 1 to {len(self.latent_dims)}, got {level!r}")
        require_events(z, self.latent_dims[level - 1 : level], "z")
        for down in reversed(self.down[: level - 1]):
            p = _gaussian(down(z).to(z.dtype))
            noise = torch.randn(p.mean.shape, generator=generator, device=z.device, dtype=z.dtype)
            z = p.mean + p.stddev * noise
        return z

    def _evidence(self, x: Tensor) -> list[Normal]:
        """The Gaussians that x alone determines: q(z_1|x), or one for every level of a ladder."""
        require_events(x, self.event_shape)
        if self.likelihood == "bernoulli":
            require_binary(x)
        hidden, found = x, []
        for up, head in zip(self.up, self.heads, strict=True):
            hidden = up(hidden)
            found.append(_gaussian(head(hidden).to(x.dtype)))
            if self.inference == "bottom-up":
                break
        return found

    def _draw(self, evidence: list[Normal], samples: int) -> list[Level]:
        if self.inference == "bottom-up":
            return self._climb(evidence[0], samples)
        z, levels = None, []
        for level, found in reversed(list(enumerate(evidence))):
            p = _standard(found) if z is None else _gaussian(_on_rows(self.down[level], z))
            q = found if z is None else _product(found, p)
            z = q.rsample((samples,)) if z is None else q.rsample()
            levels.append(Level(z, q, p))
        return levels[::-1]

    def _climb(self, q: Normal, samples: int) -> list[Level]:
        draws, chain = [q.rsample((samples,))], [q]
        for up, head in zip(self.up[1:], self.heads[1:], strict=True):
            chain.append(_gaussian(_on_rows(nn.Sequential(up, head), draws[-1])))
            draws.append(chain[-1].rsample())
        priors = [_gaussian(_on_rows(down, z)) for down, z in zip(self.down, draws[1:], strict=True)]
        return [Level(*level) for level in zip(draws, chain, [*priors, _standard(chain[-1])], strict=True)]

    def _terms(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """log p(x|z_1) at one draw, and what each level costs, each (batch,)."""
        levels = self._draw(self._evidence(x), samples=1)
        costs = []
        for number, (z, q, p) in enumerate(levels, start=1):
            # Going up, p(z_t|z_{t+1}) depends on a draw that depends on z_t: no closed form but at the top.
            closed = self.inference == "ladder" or number == len(levels)
            cost = kl_divergence(q, p) if closed else q.log_prob(z) - p.log_prob(z)
            costs.append(cost.expand_as(z)[0].sum(-1))
        return self._log_likelihood(x, levels[0].z)[0], costs

    def _log_likelihood(self, x: Tensor, z: Float[Tensor, " samples batch latent"]) -> Float[Tensor, " samples batch"]:
        output = self.decoder(z.flatten(0, 1)).to(x.dtype).reshape(*z.shape[:2], -1)
        return pixel_log_likelihood(x, output, self.likelihood, self.log_scale)


def _hidden(inputs: int, width: int, depth: int, batch_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), *([nn.BatchNorm1d(width)] if batch_norm else []), nn.LeakyReLU(0.1)]
        inputs = width
    return layers


def _on_rows(network: nn.Module, z: Float[Tensor, " samples batch latent"]) -> Float[Tensor, " samples batch outputs"]:
    return network(z.flatten(0, 1)).to(z.dtype).unflatten(0, z.shape[:2])


def _gaussian(outputs: Float[Tensor, "*batch outputs"]) -> Normal:
    """The variance is a softplus (Sønderby et al. 2016, eq. 8)."""
    mean, raw = outputs.chunk(2, -1)
    return Normal(mean, F.softplus(raw.clamp(min=LEAST_RAW_VARIANCE)).sqrt(), validate_args=False)


def _standard(like: Normal) -> Normal:
    return Normal(torch.zeros_like(like.mean), torch.ones_like(like.mean), validate_args=False)


def _product(found: Normal, prior: Normal) -> Normal:
    """The two densities multiplied and normalised: precisions add, and weigh the means."""
    precision = found.variance.reciprocal() + prior.variance.reciprocal()
    mean = (found.mean / found.variance + prior.mean / prior.variance) / precision
    return Normal(mean, precision.rsqrt(), validate_args=False)
