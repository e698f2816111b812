"""Layers of a flow that know nothing of networks: chains, reshapings and constant scales.

Each has `forward(z, label=None) -> (x, log_det)`, which generates, and `inverse(x, label=None) -> (z, log_det)`, which
normalises; log_det is log|det| of the Jacobian of what was computed, (batch,), in nats. Nothing is kept in between.
"""

import math
from collections.abc import Iterable
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# What a layer answers: a value, and its log-det of shape (batch,).
Transformed = tuple[Tensor, Float[Tensor, " batch"]]


class Layer(Protocol):
    """What the module at the top of this page says of a layer."""

    def __call__(self, z: Tensor, label: Tensor | None = None) -> Transformed: ...

    def inverse(self, x: Tensor, label: Tensor | None = None) -> Transformed: ...


class Chain(nn.ModuleList):
    """f_K ∘ … ∘ f_1, given as f_1, …, f_K: `forward` runs through them in this order, `inverse` backwards.

    The log-det of a composition is the sum of the log-dets, each at the layer's own input.
    """

    def __init__(self, layers: Iterable[nn.Module]):
        super().__init__(layers)
        if not len(self):
            raise ValueError("layers must hold one layer at least, got none")

    def forward(self, z: Tensor, label: Tensor | None = None) -> Transformed:
        first, *others = self._layers()
        z, total = first(z, label)
        for layer in others:
            z, log_det = layer(z, label)
            total = total + log_det
        return z, total

    def inverse(self, x: Tensor, label: Tensor | None = None) -> Transformed:
        last, *others = reversed(self._layers())
        x, total = last.inverse(x, label)
        for layer in others:
            x, log_det = layer.inverse(x, label)
            total = total + log_det
        return x, total

    def _layers(self) -> list[Layer]:
        return cast(list[Layer], list(self))


class Unflatten(nn.Module):
    """A vector to an event of the given shape."""

    def __init__(self, event_shape: tuple[int, ...]):
        super().__init__()
        self.event_shape = tuple(event_shape)

    def forward(self, z: Float[Tensor, "batch dims"], label: Tensor | None = None) -> Transformed:
        return z.reshape(-1, *self.event_shape), no_change(z)

    def inverse(self, x: Float[Tensor, " batch *event"], label: Tensor | None = None) -> Transformed:
        return x.flatten(1), no_change(x)


class Reverse(nn.Module):
    """The coordinates in reverse order."""

    def forward(self, z: Float[Tensor, "batch dims"], label: Tensor | None = None) -> Transformed:
        return z.flip(1), no_change(z)

    def inverse(self, x: Float[Tensor, "batch dims"], label: Tensor | None = None) -> Transformed:
        return x.flip(1), no_change(x)


class Interleave(nn.Module):
    """The two halves of z to the even and the odd coordinates of x: z_1, z_{n+1}, z_2, z_{n+2}, …

    Behind it, a coupling of the halves of z is one of every other pixel of an image.
    """

    def forward(self, z: Float[Tensor, "batch dims"], label: Tensor | None = None) -> Transformed:
        return z.unflatten(1, (2, -1)).transpose(1, 2).flatten(1), no_change(z)

    def inverse(self, x: Float[Tensor, "batch dims"], label: Tensor | None = None) -> Transformed:
        return x.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1), no_change(x)


class Squeeze(nn.Module):
    """Each block of 2 × 2 pixels of x to one pixel of z with four times the channels (Dinh et al. 2017, sec. 3.6).

    `inverse` is (batch, c, h, w) to (batch, 4c, h/2, w/2): the four values of a channel come one after another.

    Raises ValueError for an image with an odd side.
    """

    def forward(self, z: Float[Tensor, "batch four_c half_h half_w"], label: Tensor | None = None) -> Transformed:
        return F.pixel_shuffle(z, 2), no_change(z)

    def inverse(self, x: Float[Tensor, "batch c h w"], label: Tensor | None = None) -> Transformed:
        self.shape(x.shape[1:])
        return F.pixel_unshuffle(x, 2), no_change(x)

    @staticmethod
    def shape(event_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """What an image of this shape is squeezed to."""
        if len(event_shape) != 3 or event_shape[1] % 2 or event_shape[2] % 2:
            raise ValueError(
                f"only an image (channels, height, width) with even sides can be squeezed, got {tuple(event_shape)}"
            )
        channels, height, width = event_shape
        return 4 * channels, height // 2, width // 2


class Scaling(nn.Module):
    """z = x ⊙ e^a with a constant a of any sign for each coordinate: the last layer of NICE, whose couplings alone keep
    volumes as they are (Dinh et al. 2015, sec. 3.3)."""

    def __init__(self, dims: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dims))

    def forward(self, z: Float[Tensor, "batch dims"], label: Tensor | None = None) -> Transformed:
        return z * (-self.log_scale).exp(), -self.log_scale.sum().expand(len(z))

    def inverse(self, x: Float[Tensor, "batch dims"], label: Tensor | None = None) -> Transformed:
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))


def no_change(x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
    """The log-det of what moves values and does not change them."""
    return x.new_zeros(len(x))


def positions(x: Float[Tensor, "batch channels *space"]) -> int:
    """At how many places, h · w of an image and 1 of a vector, a layer does the same to all channels."""
    return math.prod(x.shape[2:])


def per_channel(parameter: Float[Tensor, " channels"], x: Float[Tensor, "batch channels *space"]) -> Tensor:
    """A number for each channel, in a shape that goes with x."""
    return parameter.reshape(-1, *[1] * (x.ndim - 2))
