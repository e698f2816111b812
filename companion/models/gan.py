"""Generative adversarial networks: Goodfellow et al. (2014), and what made their training work."""

import math
from collections.abc import Iterable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, parametrizations

from companion.models.questions import Loss, Player
from companion.nets.dcgan import dcgan_features, dcgan_generator, dcgan_init
from companion.nets.normalisation import MinibatchDiscrimination, VirtualBatchNorm
from companion.validate import require_events, require_positive_int

Objective = Literal["minimax", "non-saturating", "hinge", "wasserstein"]

# Latents of the reference batch of virtual batch normalisation.
REFERENCE = 64


class Discriminator(nn.Module):
    """Hidden layers, and a linear one on top of the last: a number per example, (batch, *event) to (batch,).

    With `kernels`, that many features of minibatch discrimination are appended to the last hidden ones.
    """

    def __init__(self, layers: Iterable[nn.Module], features: int, kernels: int):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.minibatch = MinibatchDiscrimination(features, kernels) if kernels else None
        self.head = nn.Linear(features + kernels, 1)

    def features(self, x: Float[Tensor, " batch *event"], layer: int) -> Float[Tensor, " batch features"]:
        """What the hidden layer `layer`, counted from 0, answers, flat."""
        for part in self.layers[: layer + 1]:
            x = part(x)
        return x.flatten(1)

    def forward(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
        """The logit ℓ(x); under "wasserstein" the critic's value, in no unit."""
        h = self.features(x, len(self.layers) - 1)
        if self.minibatch is not None:
            h = torch.cat([h, self.minibatch(h)], 1)
        return self.head(h).squeeze(1)


class History(nn.Module):
    """λ ‖θ - θ̄‖² with θ̄ the mean of a player's past parameters (Salimans et al. 2016, sec. 3.3).

    The mean and how many it is of are buffers, so that a checkpoint has them.
    """

    mean: Tensor
    count: Tensor

    def __init__(self, parameters: list[nn.Parameter], weight: float):
        super().__init__()
        self.weight = weight
        self.register_buffer("mean", torch.zeros_like(parameters_to_vector(parameters).detach()))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, parameters: list[nn.Parameter]) -> Float[Tensor, ""]:
        """0 without a past. In training, the parameters then are part of it."""
        theta = parameters_to_vector(parameters)
        penalty = self.weight * (self.count > 0) * (theta - self.mean).square().sum()
        if self.training:
            self.count += 1
            self.mean += (theta.detach() - self.mean) / self.count
        return penalty


class GAN(nn.Module):
    """x = G(z) with z ~ N(0, I), learned against a discriminator D = σ(ℓ) that tells x from data by its logit ℓ.

    The two are the players of a game: `players()` gives each its parameters and its loss. There is no density.

    Both networks know training from evaluation: batch normalisation uses the statistics of the batch in the one
    and running ones in the other, and spectral normalisation refines its estimate only in the one.

    Args:
        event_shape: the shape of one example.
        latent_dim: d_z.
        network: "mlp", three hidden layers, for real x; or "conv", that of DCGAN (Radford et al. 2016), for images
            with intensities within [0, 1]. Its batch normalisation is left out of a discriminator with spectral
            norm or a gradient penalty, which is about each example alone (Gulrajani et al. 2017, sec. 4).
        hidden: the width of "mlp", or the channels at half the image's size of "conv"; twice as many at a quarter.
        loss: what the players minimise, over data x and noise z.
            "minimax" (Goodfellow et al. 2014, eq. 1): -log D(x) - log(1 - D(G(z))), and log(1 - D(G(z)));
            "non-saturating" (there, sec. 3): the same for D, and -log D(G(z)) for G;
            "hinge" (Lim and Ye 2017): max(0, 1 - ℓ(x)) + max(0, 1 + ℓ(G(z))), and -ℓ(G(z));
            "wasserstein" (Gulrajani et al. 2017): ℓ(G(z)) - ℓ(x) and the gradient penalty, and -ℓ(G(z)).
        gradient_penalty: λ of (‖∇ℓ(x̂)‖ - 1)², at x̂ between a fake and a real example. Of "wasserstein" alone, where
            None is 10.
        critic_updates: updates of the discriminator for each one of the generator. None is 5 for "wasserstein",
            1 for the others.
        spectral_norm: divide every weight of the discriminator by its largest singular value (Miyato et al. 2018),
            estimated by one power iteration in every forward pass: one pass over real and one over fake
            examples make two in each step, with nearly the same weights, which does no harm. A convolution's weight is
            taken as the matrix (out, in · k · k), as in the paper; the map of images may stretch by up to k / stride.
        label_smoothing: s of the discriminator's targets: 1 - s for real and 0 for fake examples (Salimans et al.
            2016, sec. 3.4). Of the cross-entropies "minimax" and "non-saturating".
        feature_matching: a hidden layer h of the discriminator, counted from 0: the generator's loss becomes
            ‖mean h(x) - mean h(G(z))‖² (there, sec. 3.1). None is off.
        minibatch_discrimination: kernels of the layer that shows the discriminator how close an example is to the
            others of its batch (there, sec. 3.2). 0 is off. Not with "wasserstein" or `spectral_norm`, which bound the
            discriminator's slope in each example alone.
        historical_averaging: λ of λ ‖θ - θ̄‖² in the loss of each player, with θ̄ the mean of its past parameters
            (there, sec. 3.3). 0 is off.
        virtual_batch_norm: normalise in the generator with a reference batch, drawn once and for all, and the example
            itself (there, sec. 3.5): in "conv" in place of batch normalisation, in "mlp" in each hidden layer.

    Raises ValueError for an argument, or two of them together, that mean nothing.

    >>> import torch
    >>> from companion.models import GAN
    >>> model = GAN(event_shape=(2,), latent_dim=2)
    >>> list(model.players()), model.sample(4).shape
    (['discriminator', 'generator'], torch.Size([4, 2]))
    """

    reference: Tensor | None

    def __init__(
        self,
        event_shape: tuple[int, ...] = (1, 28, 28),
        latent_dim: int = 64,
        network: Literal["mlp", "conv"] = "mlp",
        hidden: int = 128,
        loss: Objective = "non-saturating",
        gradient_penalty: float | None = None,
        critic_updates: int | None = None,
        spectral_norm: bool = False,
        label_smoothing: float = 0.0,
        feature_matching: int | None = None,
        minibatch_discrimination: int = 0,
        historical_averaging: float = 0.0,
        virtual_batch_norm: bool = False,
    ):
        super().__init__()
        require_positive_int(latent_dim, "latent_dim")
        require_positive_int(hidden, "hidden")
        if loss not in get_args(Objective):
            raise ValueError(f"loss must be one of {', '.join(map(repr, get_args(Objective)))}, got {loss!r}")
        wasserstein = loss == "wasserstein"
        if gradient_penalty is not None and not wasserstein:
            raise ValueError(f"gradient_penalty is for the loss 'wasserstein', got {gradient_penalty!r} with {loss!r}")
        if label_smoothing and loss not in ("minimax", "non-saturating"):
            raise ValueError(
                f"label_smoothing is for the cross-entropies 'minimax' and 'non-saturating', got {label_smoothing!r} "
                f"with {loss!r}"
            )
        gradient_penalty = (10.0 if wasserstein else 0.0) if gradient_penalty is None else gradient_penalty
        critic_updates = (5 if wasserstein else 1) if critic_updates is None else critic_updates
        require_positive_int(critic_updates, "critic_updates")
        _require_number(gradient_penalty, "gradient_penalty", math.inf)
        _require_number(label_smoothing, "label_smoothing", 1)
        _require_number(historical_averaging, "historical_averaging", math.inf)
        if minibatch_discrimination != 0:
            require_positive_int(minibatch_discrimination, "minibatch_discrimination")
        if minibatch_discrimination and (wasserstein or spectral_norm):
            raise ValueError(
                "minibatch_discrimination makes the discriminator a function of a whole batch, but "
                f"{'the gradient penalty' if wasserstein else 'spectral_norm'} bounds its slope in each example alone"
            )
        self.event_shape, self.latent_dim, self.network = tuple(event_shape), latent_dim, network
        self.objective, self.critic_updates = loss, critic_updates
        self.gradient_penalty, self.label_smoothing = gradient_penalty, label_smoothing
        batch_norm = not (wasserstein or spectral_norm)
        self.generator, layers, features = _networks(
            network, self.event_shape, latent_dim, hidden, batch_norm, virtual_batch_norm
        )
        self.discriminator = Discriminator(layers, features, minibatch_discrimination)
        if network == "conv":
            self.apply(dcgan_init)
        if spectral_norm:
            for module in list(self.discriminator.modules()):
                if isinstance(module, nn.Linear | nn.Conv2d):
                    parametrizations.spectral_norm(module)
        if feature_matching is not None:
            self._require_layer(feature_matching, "feature_matching")
        self.feature_matching = feature_matching
        self.register_buffer("reference", torch.randn(REFERENCE, latent_dim) if virtual_batch_norm else None)
        self.histories = nn.ModuleDict()
        if historical_averaging:
            for name, player in self.players().items():
                self.histories[name] = History(list(player.parameters), historical_averaging)

    def players(self) -> dict[str, Player]:
        """The discriminator, `critic_updates` times in a step, then the generator."""
        return {
            "discriminator": Player(
                list(self.discriminator.parameters()), self.discriminator_loss, self.critic_updates
            ),
            "generator": Player(list(self.generator.parameters()), self.generator_loss),
        }

    def generate(self, z: Float[Tensor, " batch latent"]) -> Float[Tensor, " batch *event"]:
        """G(z). Raises TypeError or ValueError for a z of a wrong shape or dtype, and for NaN."""
        require_events(z, (self.latent_dim,), "z")
        if self.reference is None:
            return self.generator(z).to(z.dtype)
        return self.generator(torch.cat([self.reference, z]))[REFERENCE:].to(z.dtype)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n *event"]:
        """z from the prior, and G(z). Raises ValueError unless n is a positive integer."""
        require_positive_int(n, "n")
        like = next(self.generator.parameters())
        return self.generate(torch.randn(n, self.latent_dim, generator=generator, device=like.device, dtype=like.dtype))

    def logits(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
        """ℓ(x), the logit of D(x).

        Raises ValueError or TypeError for a wrong shape or dtype, NaN, or an image with values outside [0, 1].
        """
        self._require(x)
        return self._logits(x)

    def features(self, x: Float[Tensor, " batch *event"], layer: int) -> Float[Tensor, " batch features"]:
        """h(x), what a hidden layer of the discriminator, counted from 0, makes of x. Raises as `logits` does."""
        self._require(x)
        self._require_layer(layer, "layer")
        return self._features(x, layer)

    def discriminator_loss(self, x: Float[Tensor, " batch *event"]) -> Loss:
        """Its terms on real examples and on as many fake ones, the generator held fixed."""
        real = self.logits(x)
        with torch.no_grad():
            generated = self.generate(self._noise(x))
        fake = self._logits(generated)
        if self.objective == "hinge":
            parts = {"real": F.relu(1 - real), "fake": F.relu(1 + fake)}
        elif self.objective == "wasserstein":
            parts = {"real": -real, "fake": fake}
            if self.gradient_penalty:
                parts["gradient penalty"] = self.gradient_penalty * self._excess_slope(x, generated)
        else:
            # From the logit, -log D = softplus(-ℓ) and -log(1 - D) = softplus(ℓ): no logarithm of a rounded zero.
            s = self.label_smoothing
            parts = {"real": (1 - s) * F.softplus(-real) + s * F.softplus(real), "fake": F.softplus(fake)}
        return self._loss("discriminator", parts)

    def generator_loss(self, x: Float[Tensor, " batch *event"]) -> Loss:
        """On as many draws of z as there are examples; x itself counts in feature matching alone."""
        self._require(x)
        generated = self.generate(self._noise(x))
        if self.feature_matching is not None:
            with torch.no_grad():
                target = self._features(x, self.feature_matching).mean(0)
            distance = (target - self._features(generated, self.feature_matching).mean(0)).square().sum()
            return self._loss("generator", {"feature matching": distance.expand(len(x))})
        fake = self._logits(generated)
        if self.objective == "minimax":
            term = -F.softplus(fake)
        elif self.objective == "non-saturating":
            term = F.softplus(-fake)
        else:
            term = -fake
        return self._loss("generator", {"fake": term})

    def _loss(self, player: str, parts: dict[str, Tensor]) -> Loss:
        if player in self.histories:
            parts["historical averaging"] = self.histories[player](self.players()[player].parameters)
        return Loss.of(parts, "game value")

    def _excess_slope(self, real: Tensor, fake: Tensor) -> Float[Tensor, " batch"]:
        """(‖∇ℓ(x̂)‖ - 1)² at x̂ = ε x + (1 - ε) G(z), with ε uniform on [0, 1] for each example.

        Autocast is off: the gradient of a gradient in bfloat16 is mostly rounding.
        """
        epsilon = torch.rand(len(real), *[1] * (real.ndim - 1), device=real.device, dtype=real.dtype)
        with torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
            between = torch.lerp(fake, real, epsilon).requires_grad_()
            (slope,) = torch.autograd.grad(self.discriminator(between).sum(), between, create_graph=True)
        return (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square()

    # Under autocast the networks answer in bfloat16; the losses are computed in the type of x.

    def _logits(self, x: Tensor) -> Float[Tensor, " batch"]:
        return self.discriminator(x).to(x.dtype)

    def _features(self, x: Tensor, layer: int) -> Float[Tensor, " batch features"]:
        return self.discriminator.features(x, layer).to(x.dtype)

    def _noise(self, x: Tensor) -> Float[Tensor, " batch latent"]:
        return torch.randn(len(x), self.latent_dim, device=x.device, dtype=x.dtype)

    def _require(self, x: Tensor) -> None:
        require_events(x, self.event_shape)
        if self.network == "conv" and not ((x >= 0) & (x <= 1)).all():
            other = x[(x < 0) | (x > 1)][0].item()
            raise ValueError(f"x has pixel values out of range: they must lie within [0, 1], got {other:.6g}")

    def _require_layer(self, layer: int, name: str) -> None:
        layers = len(self.discriminator.layers)
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < layers:
            raise ValueError(
                f"{name} must be one of the discriminator's {layers} hidden layers, 0 to {layers - 1}, got {layer!r}"
            )


def _networks(
    network: str, event_shape: tuple[int, ...], latent_dim: int, hidden: int, batch_norm: bool, virtual: bool
) -> tuple[nn.Module, list[nn.Sequential], int]:
    """The generator, the discriminator's hidden layers, and how many features they end in."""
    if network == "conv":
        normalise = (lambda maps: VirtualBatchNorm(maps, REFERENCE)) if virtual else nn.BatchNorm2d
        return dcgan_generator(latent_dim, hidden, event_shape, normalise), *dcgan_features(
            event_shape, hidden, batch_norm
        )
    if network != "mlp":
        raise ValueError(f"network must be 'mlp' or 'conv', got {network!r}")
    numbers = math.prod(event_shape)
    generator: list[nn.Module] = []
    for inputs in (latent_dim, hidden, hidden):
        norm = [VirtualBatchNorm(hidden, REFERENCE)] if virtual else []
        generator += [nn.Linear(inputs, hidden, bias=not virtual), *norm, nn.ReLU()]
    generator += [nn.Linear(hidden, numbers), nn.Unflatten(1, event_shape)]
    layers = [
        nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.LeakyReLU(0.2))
        for inputs in (numbers, hidden, hidden)
    ]
    return nn.Sequential(*generator), layers, hidden


def _require_number(value: float, name: str, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 <= value < high):
        upper = "finite" if high == math.inf else f"below {high:g}"
        raise ValueError(f"{name} must be at least 0 and {upper}, got {value!r}")
