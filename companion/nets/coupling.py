"""Networks inside the layers of flows: from the part that is given to the parameters of what is done to the rest.

Each is called with features (batch, inputs, ...) and a label, None where there are no classes; the label enters as a
bias on the features of the first layer.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from companion.nets.label import LabelBias
from companion.nets.mlp import mlp
from companion.validate import require_positive_int


class CouplingMLP(nn.Module):
    """Fully connected, with rectifiers between layers of the widths inputs, *hidden, outputs."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, classes: int | None = None):
        super().__init__()
        require_widths(hidden)
        self.first = nn.Linear(inputs, hidden[0])
        self.label_bias = LabelBias(classes, hidden[0])
        self.rest = mlp([*hidden, outputs], lambda: nn.ReLU(inplace=True))

    def forward(self, x: Float[Tensor, "batch inputs"], label: Tensor | None = None) -> Float[Tensor, "batch outputs"]:
        return self.rest(self.label_bias(self.first(x), label).relu_())


class FromZero(nn.Module):
    """A layer with weights and bias zero at the start, its outputs times e^{3l}, with l learned for each of them: the
    last layer of Glow's networks, which makes each step near the identity at the start (Kingma and Dhariwal 2018,
    sec. 3.3; the factor is of their code)."""

    def __init__(self, layer: nn.Linear | nn.Conv2d):
        super().__init__()
        if layer.bias is None:
            raise ValueError("layer must have a bias, got one without")
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        self.layer = layer
        self.log_scale = nn.Parameter(torch.zeros_like(layer.bias))

    def forward(self, x: Float[Tensor, "batch inputs *space"]) -> Float[Tensor, "batch outputs *space"]:
        return self.layer(x) * (3 * self.log_scale).exp().reshape(-1, *[1] * (x.ndim - 2))


class GlowNet(nn.Module):
    """A 3 × 3, a 1 × 1 and a 3 × 3 convolution, the last one from zero (Kingma and Dhariwal 2018, sec. 3.3)."""

    def __init__(self, inputs: int, hidden: int, outputs: int, classes: int | None = None):
        super().__init__()
        self.first = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.label_bias = LabelBias(classes, hidden)
        self.second = nn.Conv2d(hidden, hidden, 1)
        self.last = FromZero(nn.Conv2d(hidden, outputs, 3, padding=1))

    def forward(self, x: Float[Tensor, "batch inputs h w"], label: Tensor | None = None) -> Tensor:
        h = self.label_bias(self.first(x), label).relu_()
        return self.last(self.second(h).relu_())


class GlowMLP(nn.Module):
    """The same for vectors."""

    def __init__(self, inputs: int, hidden: int, outputs: int, classes: int | None = None):
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.label_bias = LabelBias(classes, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = FromZero(nn.Linear(hidden, outputs))

    def forward(self, x: Float[Tensor, "batch inputs"], label: Tensor | None = None) -> Float[Tensor, "batch outputs"]:
        h = self.label_bias(self.first(x), label).relu_()
        return self.last(self.second(h).relu_())


class SplitPrior(nn.Module):
    """One 3 × 3 convolution from zero, to a mean and a log standard deviation of each channel. It sees no label."""

    def __init__(self, channels: int):
        super().__init__()
        self.network = FromZero(nn.Conv2d(channels, 2 * channels, 3, padding=1))

    def forward(self, x: Float[Tensor, "batch channels h w"], label: Tensor | None = None) -> Tensor:
        return self.network(x)


class ResidualConvNet(nn.Module):
    """A residual network with weight normalisation, and batch normalisation if asked for (Dinh et al. 2017, secs. 3.7
    and 4.1): a 3 × 3 convolution, blocks of two of them added to their input, and a 1 × 1 convolution."""

    def __init__(
        self, inputs: int, hidden: int, blocks: int, outputs: int, batch_norm: bool, classes: int | None = None
    ):
        super().__init__()

        def normalised(inputs: int, outputs: int, kernel: int) -> nn.Module:
            return weight_norm(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))

        def activated(outputs: int, kernel: int) -> list[nn.Module]:
            norm = [nn.BatchNorm2d(hidden)] if batch_norm else []
            return [*norm, nn.ReLU(inplace=bool(norm)), normalised(hidden, outputs, kernel)]

        self.first = normalised(inputs, hidden, 3)
        self.label_bias = LabelBias(classes, hidden)
        self.blocks = nn.ModuleList(nn.Sequential(*activated(hidden, 3), *activated(hidden, 3)) for _ in range(blocks))
        self.last = nn.Sequential(*activated(outputs, 1))

    def forward(self, x: Float[Tensor, "batch inputs h w"], label: Tensor | None = None) -> Tensor:
        h = self.label_bias(self.first(x), label)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


def require_widths(hidden: Sequence[int]) -> None:
    """`hidden` holds the width of one hidden layer at least."""
    if not isinstance(hidden, Sequence) or not hidden:
        raise ValueError(f"hidden must be a sequence of integers, at least one, got {hidden!r}")
    for width in hidden:
        require_positive_int(width, "hidden")
