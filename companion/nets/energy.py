"""Networks that give every x one number, its energy: smooth, because an energy's slope and curvature are used too.

Both end in a quadratic bowl. A network of these activations grows at most linearly, so that the bowl wins far out and
∫ e^{-E(x)} dx is finite whatever the weights.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.nets.conv import _halved_twice
from companion.nets.coupling import require_widths
from companion.nets.mlp import mlp
from companion.validate import require_positive_int


class EnergyMLP(nn.Module):
    """E(x) = f(x) + ‖x‖² / (2 width²), f fully connected: (batch, dims) to (batch,).

    Args:
        dims: d_x.
        hidden: the widths of f's hidden layers.
        activation: of f; SiLU, softplus, tanh and the logistic sigmoid have a fast Laplacian
            (`companion.models.ebm.laplacian`).
        width: the standard deviation of e^{-E} where f is constant: some more than that of the data.

    Raises ValueError for an argument that means nothing.
    """

    def __init__(
        self,
        dims: int,
        hidden: Sequence[int] = (128, 128),
        activation: Callable[[], nn.Module] = nn.SiLU,
        width: float = 4.0,
    ):
        super().__init__()
        require_positive_int(dims, "dims")
        require_widths(hidden)
        _require_positive(width, "width")
        self.layers = mlp([dims, *hidden, 1], activation)
        self.width = width

    def forward(self, x: Float[Tensor, "batch dims"]) -> Float[Tensor, " batch"]:
        return self.layers(x).squeeze(1) + x.square().sum(1) / (2 * self.width**2)


class EnergyConvNet(nn.Module):
    """E(x) = scale · f(x) + ‖2x - 1‖² / (2 width²) of images, f of strided convolutions: (batch, c, h, w) to (batch,).

    Three convolutions that halve the sides, each with twice the channels of the one before, and a hidden linear
    layer. There is no batch normalisation, with which an image's energy would depend on the others. Under autocast the
    last layer and the bowl are computed in float32: in bfloat16 an energy of a few hundred would be rounded to even
    numbers.

    Args:
        event_shape: (channels, height, width), sides divisible by 4.
        channels: of the first convolution.
        width: of the bowl, in which an image lies within [-1, 1].
        scale: of the network. Between an image and noise there are hundreds of nats, which a new network's outputs of
            about 1 are far from.

    Raises ValueError for an argument that means nothing.
    """

    def __init__(
        self,
        event_shape: tuple[int, int, int] = (1, 28, 28),
        channels: int = 32,
        width: float = 4.0,
        scale: float = 1.0,
    ):
        super().__init__()
        colours, height, wide = _halved_twice(event_shape)
        require_positive_int(channels, "channels")
        _require_positive(width, "width")
        _require_positive(scale, "scale")
        self.features = nn.Sequential(
            nn.Conv2d(colours, channels, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * channels, 4 * channels, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(4 * channels * -(-height // 2) * -(-wide // 2), 4 * channels),
            nn.SiLU(),
        )
        self.head = nn.Linear(4 * channels, 1)
        self.width, self.scale = width, scale

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, " batch"]:
        x = 2 * x - 1
        h = self.features(x)
        with torch.autocast(x.device.type, enabled=False):
            f = self.head(h.to(x.dtype)).squeeze(1)
            return self.scale * f + x.flatten(1).square().sum(1) / (2 * self.width**2)


def _require_positive(value: float, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, got {value!r}")
