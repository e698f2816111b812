"""What all normalising flows share: a base density, invertible layers, and the change of variables."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.models.flows.layers import Chain
from companion.models.questions import Loss
from companion.validate import require_events, require_label, require_positive_int

Base = Literal["gaussian", "logistic"]


class Flow(nn.Module):
    """x = f(z) with z from a base density of independent coordinates, f = f_K ∘ … ∘ f_1 invertible layers.

        log p(x) = log p(z) + log|det ∂z/∂x|,  z = g(x),  g = f⁻¹

    A layer is a module with `forward(z, label) -> (x, log|det ∂x/∂z|)` and `inverse(x, label) -> (z, log|det ∂z/∂x|)`,
    each log-det of shape (batch,), in nats. `forward` generates and `inverse` normalises.

    The latent z is always flat, (batch, dims). Where parts of an image leave the flow early, z holds what went through
    all layers first, and what left first last (see `Split`).

    Args:
        event_shape: the shape of one example.
        layers: f_1 … f_K, in the order in which they generate: the first takes z.
        base: "gaussian", N(0, I), or "logistic", independent standard logistics.
        classes: with a number, every method takes a `label`, integers (batch,) from 0 to classes - 1, and answers for
            p(x|label); None is a model without labels.

    Raises ValueError for an argument that means nothing.
    """

    _like: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        layers: Iterable[nn.Module],
        base: Base = "gaussian",
        classes: int | None = None,
    ):
        super().__init__()
        require_shape(event_shape)
        require_classes(classes)
        if base not in ("gaussian", "logistic"):
            raise ValueError(f"base must be 'gaussian' or 'logistic', got {base!r}")
        self.event_shape, self.classes, self.base = tuple(event_shape), classes, base
        self.dims = math.prod(self.event_shape)
        self.layers = Chain(layers)
        # Where and in what precision to draw: not all layers have parameters.
        self.register_buffer("_like", torch.empty(0), persistent=False)

    def log_prob(
        self, x: Float[Tensor, " batch *event"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """log p(x), or log p(x|label), in nats. Without autocast, in which it would be wrong by nats.

        Raises TypeError or ValueError for a wrong shape or dtype, NaN, and a label that is missing, not asked for, or
        out of range.
        """
        self._require(x, label)
        with torch.autocast(x.device.type, enabled=False):
            return self._log_prob(x, label)

    def loss(self, x: Float[Tensor, " batch *event"], label: Int[Tensor, " batch"] | None = None) -> Loss:
        """-log p(x). Raises as `log_prob`."""
        self._require(x, label)
        negative = -self._log_prob(x, label)
        return Loss(negative, {"negative log-likelihood": negative}, "nats")

    def normalise(
        self, x: Float[Tensor, " batch *event"], label: Int[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch dims"], Float[Tensor, " batch"]]:
        """z = g(x) and log|det ∂z/∂x|. Raises as `log_prob`."""
        self._require(x, label)
        with torch.autocast(x.device.type, enabled=False):
            return self.layers.inverse(x, label)

    def generate(
        self, z: Float[Tensor, "batch dims"], label: Int[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, " batch *event"], Float[Tensor, " batch"]]:
        """x = f(z) and log|det ∂x/∂z|. Raises as `log_prob`."""
        require_events(z, (self.dims,), "z")
        require_label(label, self.classes, len(z))
        with torch.autocast(z.device.type, enabled=False):
            return self.layers(z, label)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        label: Int[Tensor, " n"] | None = None,
        temperature: float = 1.0,
    ) -> Float[Tensor, " n *event"]:
        """x = f(T z) with z from the base density and T the temperature: 1 samples from p(x), below it from something
        narrower (Kingma and Dhariwal 2018, sec. 6), 0 gives f(0) alone.

        Raises ValueError for n, a temperature or a label that mean nothing.
        """
        require_positive_int(n, "n")
        require_label(label, self.classes, n)
        if not (isinstance(temperature, int | float) and 0 <= temperature < math.inf):
            raise ValueError(f"temperature must be a finite number, not negative, got {temperature!r}")
        z = self._like.new_empty(n, self.dims)
        if self.base == "gaussian":
            z.normal_(generator=generator)
        else:
            # The log-ratio of two exponentials is logistic. The logit of a uniform would be infinite at times.
            z.exponential_(generator=generator).log_()
            z -= torch.empty_like(z).exponential_(generator=generator).log_()
        # As `generate`, but what has just been drawn needs no check.
        with torch.autocast(z.device.type, enabled=False):
            return self.layers(temperature * z, label)[0]

    def _log_prob(self, x: Tensor, label: Tensor | None) -> Float[Tensor, " batch"]:
        z, log_det = self.layers.inverse(x, label)
        return self.base_log_prob(z) + log_det

    def base_log_prob(self, z: Float[Tensor, "batch dims"]) -> Float[Tensor, " batch"]:
        """log p(z), nats."""
        if self.base == "gaussian":
            return -0.5 * z.square().sum(1) - self.dims * (0.5 * math.log(2 * math.pi))
        return -(F.softplus(z) + F.softplus(-z)).sum(1)

    def _require(self, x: Tensor, label: Tensor | None) -> None:
        require_events(x, self.event_shape)
        require_label(label, self.classes, len(x))


def require_shape(event_shape: tuple[int, ...]) -> None:
    if not event_shape:
        raise ValueError("event_shape must have one size at least, got ()")
    for size in event_shape:
        require_positive_int(size, "each size in event_shape")


def require_classes(classes: int | None) -> None:
    if classes is not None:
        require_positive_int(classes, "classes")
