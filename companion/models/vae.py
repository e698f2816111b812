"""The autoencoder, and the variational autoencoder of Kingma and Welling (2014)."""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from companion.models.questions import Loss
from companion.nets import conv_decoder, conv_encoder, mlp
from companion.validate import require_binary, require_events, require_positive_int

# Training stays far inside. Outside, exp overflows float32 (above 88.7 for the variance), and a single outlier
# would turn a mean into infinity.
LOG_VARIANCE_RANGE = (-30.0, 20.0)

# Rows that are decoded at once when many latents are drawn: more does not fit in the processor's cache.
ROWS = 512


def _networks(
    network: str, event_shape: tuple[int, ...], hidden: int, outputs: int, latent_dim: int
) -> tuple[nn.Module, nn.Module]:
    pixels = math.prod(event_shape)
    if network == "mlp":
        return (
            nn.Sequential(nn.Flatten(), mlp([pixels, hidden, outputs])),
            nn.Sequential(mlp([latent_dim, hidden, pixels]), nn.Unflatten(1, event_shape)),
        )
    if network == "conv":
        return conv_encoder(event_shape, hidden, outputs), conv_decoder(latent_dim, hidden, event_shape)
    raise ValueError(f"network must be 'mlp' or 'conv', got {network!r}")


class Autoencoder(nn.Module):
    """Compresses and reconstructs: a code, and no distribution over anything.

    Args:
        event_shape: the shape of one example.
        latent_dim: d_z.
        network: "mlp", one hidden layer, or "conv".
        hidden: width of the hidden layer.

    Raises ValueError for an argument that means nothing.

    >>> import torch
    >>> from companion.models import Autoencoder
    >>> model = Autoencoder(event_shape=(1, 28, 28), latent_dim=2)
    >>> model.loss(torch.rand(3, 1, 28, 28)).unit
    'squared error'
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] = (1, 28, 28),
        latent_dim: int = 20,
        network: Literal["mlp", "conv"] = "mlp",
        hidden: int = 512,
    ):
        super().__init__()
        require_positive_int(latent_dim, "latent_dim")
        require_positive_int(hidden, "hidden")
        self.event_shape, self.latent_dim = tuple(event_shape), latent_dim
        self.encoder, self.decoder = _networks(network, self.event_shape, hidden, latent_dim, latent_dim)

    def code(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch latent"]:
        """The encoder's answer. Raises TypeError or ValueError for a wrong shape or dtype, and for NaN."""
        require_events(x, self.event_shape)
        return self.encoder(x)

    def reconstruct(self, z: Float[Tensor, " batch latent"]) -> Float[Tensor, " batch *event"]:
        """The decoder's answer. Raises as `code`, of z."""
        require_events(z, (self.latent_dim,), "z")
        return self.decoder(z)

    def loss(self, x: Float[Tensor, " batch *event"]) -> Loss:
        """The squared error of each example, summed over its pixels."""
        error = (self.reconstruct(self.code(x)) - x).square().flatten(1).sum(1)
        return Loss(error, {"squared error": error}, "squared error")


class VAE(nn.Module):
    """p(z) = N(0, I), a decoder p(x|z) and an encoder q(z|x) = N(μ(x), diag σ²(x)), both networks.

    Args:
        event_shape: the shape of one example.
        latent_dim: d_z.
        network: "mlp", one hidden layer as in the paper, or "conv".
        hidden: width of the hidden layer.
        likelihood: "bernoulli" for binary x, "gaussian" for real x.
        decoder_scale: σ_x of a Gaussian decoder, a number or "learned" (one number, trained with the rest).
        beta: the weight of the KL; 1 is the evidence lower bound, anything else a β-VAE (Higgins et al. 2017).
        samples: latents drawn for each example. With more than one, the loss is the importance-weighted bound
            (Burda et al. 2016, eq. 8).

    Raises ValueError for an argument that means nothing.

    >>> import torch
    >>> from companion.models import VAE
    >>> _ = torch.manual_seed(0)
    >>> model = VAE(event_shape=(1, 28, 28), latent_dim=2)
    >>> x = torch.rand(3, 1, 28, 28).bernoulli()
    >>> loss = model.loss(x)
    >>> loss.unit, tuple(loss.parts), loss.value.shape
    ('nats', ('reconstruction', 'prior matching'), torch.Size([3]))
    >>> model.encode(x).mean.shape, model.sample(4).shape
    (torch.Size([3, 2]), torch.Size([4, 1, 28, 28]))
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] = (1, 28, 28),
        latent_dim: int = 20,
        network: Literal["mlp", "conv"] = "mlp",
        hidden: int = 512,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        decoder_scale: float | Literal["learned"] = 1.0,
        beta: float = 1.0,
        samples: int = 1,
    ):
        super().__init__()
        for name, value in (("latent_dim", latent_dim), ("hidden", hidden), ("samples", samples)):
            require_positive_int(value, name)
        if not (math.isfinite(beta) and beta >= 0):
            raise ValueError(f"beta must be a finite number, not negative, got {beta!r}")
        if samples > 1 and beta != 1:
            raise ValueError(f"the importance-weighted bound has no beta: got samples = {samples} and beta = {beta}")
        self.event_shape, self.latent_dim = tuple(event_shape), latent_dim
        self.likelihood, self.beta, self.samples = likelihood, beta, samples
        self.levels = 2 if likelihood == "bernoulli" else None
        self.encoder, self.decoder = _networks(network, self.event_shape, hidden, 2 * latent_dim, latent_dim)
        self.log_scale = decoder_log_scale(likelihood, decoder_scale)

    def encode(self, x: Float[Tensor, " batch *event"]) -> Independent:
        """q(z|x), batch shape (batch,), event shape (latent,).

        The log-variance is kept within LOG_VARIANCE_RANGE.

        Raises ValueError or TypeError for a wrong shape or dtype, NaN, or grey pixels and a Bernoulli decoder.
        """
        require_events(x, self.event_shape)
        if self.likelihood == "bernoulli":
            require_binary(x)
        # Under autocast the networks answer in bfloat16; the probabilities are computed in the type of x.
        mean, log_variance = self.encoder(x).to(x.dtype).chunk(2, -1)
        scale = (log_variance.clamp(*LOG_VARIANCE_RANGE) / 2).exp()
        return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)

    def decode(self, z: Float[Tensor, " batch latent"]) -> Independent:
        """p(x|z), batch shape (batch,), event shape that of an example.

        Raises TypeError or ValueError for a z of a wrong shape or dtype, and for NaN.
        """
        require_events(z, (self.latent_dim,), "z")
        return pixel_distribution(self.decoder(z).to(z.dtype), self.likelihood, self.log_scale)

    def loss(self, x: Float[Tensor, " batch *event"]) -> Loss:
        """Minus the bound (Kingma and Welling 2014, eq. 10), or minus the importance-weighted one."""
        if self.samples > 1:
            negative = math.log(self.samples) - self._log_weights(x, self.encode(x), self.samples).logsumexp(0)
            return Loss(negative, {"negative importance-weighted bound": negative}, "nats")
        reconstruction, kl = self._terms(x)
        parts = {"reconstruction": -reconstruction, "prior matching": self.beta * kl}
        unit = "nats" if self.beta == 1 else f"nats, the KL weighted by {self.beta:g}"
        return Loss(parts["reconstruction"] + parts["prior matching"], parts, unit)

    def elbo(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
        """The evidence lower bound in nats, with one draw of z and the KL in closed form, whatever `beta` is."""
        reconstruction, kl = self._terms(x)
        return reconstruction - kl

    @torch.no_grad()
    def log_weights(self, x: Float[Tensor, " batch *event"], samples: int) -> Float[Tensor, " samples batch"]:
        """log p(x,z) - log q(z|x) for so many draws of z from q, in nats.

        Encodes once and decodes a few hundred rows at a time. Autocast is off: in bfloat16 a log-likelihood of
        784 pixels is wrong by nats. Raises as `encode`, and ValueError unless samples is a positive integer.
        """
        require_positive_int(samples, "samples")
        with torch.autocast(x.device.type, enabled=False):
            q = self.encode(x)
            return few_rows(lambda draws: self._log_weights(x, q, draws), len(x), samples)

    def importance_bound(self, x: Float[Tensor, " batch *event"], samples: int) -> Float[Tensor, " batch"]:
        """log of the mean of `samples` importance weights, in nats: in expectation a lower bound on log p(x)
        that rises with `samples` (Burda et al. 2016, eq. 8). Without gradients; see `samples` for training."""
        return self.log_weights(x, samples).logsumexp(0) - math.log(samples)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n *event"]:
        """z from the prior, then x from the decoder, its noise included.

        Raises ValueError unless n is a positive integer.
        """
        require_positive_int(n, "n")
        device, dtype = self.log_scale.device, self.log_scale.dtype
        z = torch.randn(n, self.latent_dim, generator=generator, device=device, dtype=dtype)
        return sample_pixels(self.decode(z), generator)

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x|z) at one draw of z from q, and KL(q(z|x)‖p(z)), each (batch,)."""
        q = self.encode(x)
        mean, variance = q.mean, q.variance
        kl = 0.5 * (variance + mean.square() - 1 - variance.log()).sum(-1)
        return self._log_likelihood(x, q.rsample((1,)))[0], kl

    def _log_weights(self, x: Tensor, q: Independent, samples: int) -> Float[Tensor, " samples batch"]:
        z = q.rsample((samples,))
        log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
        return self._log_likelihood(x, z) + log_prior - q.log_prob(z)

    def _log_likelihood(self, x: Tensor, z: Float[Tensor, " samples batch latent"]) -> Float[Tensor, " samples batch"]:
        output = self.decoder(z.flatten(0, 1)).to(x.dtype).reshape(*z.shape[:2], -1)
        return pixel_log_likelihood(x, output, self.likelihood, self.log_scale)


# The decoder's distribution, which hierarchies of latents share.


def decoder_log_scale(likelihood: str, decoder_scale: float | str) -> nn.Parameter:
    """log σ_x. Raises ValueError for an unknown likelihood, or for a scale that does not go with it."""
    if likelihood not in ("bernoulli", "gaussian"):
        raise ValueError(f"likelihood must be 'bernoulli' or 'gaussian', got {likelihood!r}")
    if likelihood == "bernoulli" and decoder_scale != 1.0:
        raise ValueError(f"decoder_scale is for a Gaussian decoder, got {decoder_scale!r} with a Bernoulli one")
    if decoder_scale != "learned" and not (isinstance(decoder_scale, (int, float)) and decoder_scale > 0):
        raise ValueError(f"decoder_scale must be a positive number or 'learned', got {decoder_scale!r}")
    if isinstance(decoder_scale, str):
        return nn.Parameter(torch.tensor(0.0))
    return nn.Parameter(torch.tensor(math.log(decoder_scale)), requires_grad=False)


def pixel_distribution(output: Float[Tensor, " batch *event"], likelihood: str, log_scale: Tensor) -> Independent:
    """p(x|z) from what the decoder's network answers: logits, or means."""
    if likelihood == "bernoulli":
        pixels: Distribution = Bernoulli(logits=output, validate_args=False)
    else:
        pixels = Normal(output, log_scale.exp(), validate_args=False)
    return Independent(pixels, output.ndim - 1, validate_args=False)


def pixel_log_likelihood(
    x: Float[Tensor, " batch *event"],
    output: Float[Tensor, " samples batch pixels"],
    likelihood: str,
    log_scale: Tensor,
) -> Float[Tensor, " samples batch"]:
    """log p(x|z) of each draw of z, in nats: two passes over the pixels, where a distribution needs several."""
    x = x.flatten(1)
    if likelihood == "bernoulli":
        # Σ_d x_d l_d - log(1 + exp l_d), from the logits l
        return torch.linalg.vecdot(output, x) - F.softplus(output).sum(-1)
    squares = ((x - output) * (-log_scale).exp()).square().sum(-1)
    return -0.5 * squares - x.shape[1] * (log_scale + 0.5 * math.log(2 * math.pi))


def sample_pixels(decoded: Independent, generator: torch.Generator | None) -> Float[Tensor, " n *event"]:
    """Draws from p(x|z), with a generator, which the distributions of torch do not take."""
    if isinstance(decoded.base_dist, Bernoulli):
        return torch.bernoulli(decoded.mean, generator=generator)
    mean = decoded.mean
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + decoded.base_dist.scale * noise


def few_rows(log_weights: Callable[[int], Tensor], batch: int, samples: int) -> Float[Tensor, " samples batch"]:
    """`log_weights(draws)` of so many draws in all, a few hundred rows at a time."""
    draws = max(1, ROWS // batch)
    sizes = [draws] * (samples // draws) + ([samples % draws] if samples % draws else [])
    return torch.cat([log_weights(size) for size in sizes])
