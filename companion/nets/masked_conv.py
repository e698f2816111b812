"""Convolutions that see only the pixels before their own in raster order, and the cache that draws with them."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion.validate import require_positive_int


class MaskedConv2d(nn.Conv2d):
    """A convolution that keeps the size of the image and sees the rows above and its own row up to its pixel.

    At the pixel itself it sees by colour: features, in equal groups one after another, belong to the colours in
    their order (R, G, B), and those of colour g see the colours before g (mask "A", of a first layer, whose inputs
    are the colours themselves), or g too (mask "B", of all others) (van den Oord et al. 2016, sec. 3.4).

    The mask multiplies the weight in every forward pass; the weight itself is never changed.

    Args:
        inputs, outputs: channels.
        kernel: odd, or a pair of odd numbers (rows, columns).
        mask: "A" or "B".
        colours: groups in both inputs and outputs. With 1, mask "A" sees nothing at the pixel, and "B" everything.
        parts: the outputs are so many parts one after another, each with groups of its own: 2 for the two halves
            of a gate.

    Raises ValueError for an even kernel, another mask, or channels that do not divide into the groups.
    """

    mask: Tensor
    bias: nn.Parameter

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        mask: Literal["A", "B"],
        colours: int = 1,
        parts: int = 1,
    ):
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        for name, value in (("inputs", inputs), ("outputs", outputs), ("colours", colours), ("parts", parts)):
            require_positive_int(value, name)
        if not (rows > 0 and columns > 0 and rows % 2 and columns % 2):
            raise ValueError(f"kernel must be odd, so that it has a centre, got {kernel!r}")
        if mask not in ("A", "B"):
            raise ValueError(f"mask must be 'A' or 'B', got {mask!r}")
        if inputs % colours or outputs % (parts * colours):
            raise ValueError(
                f"inputs and outputs must divide into {colours} colours (outputs in each of {parts} parts), "
                f"got {inputs} and {outputs}"
            )
        super().__init__(inputs, outputs, (rows, columns), padding=(rows // 2, columns // 2))
        source = torch.arange(inputs) * colours // inputs
        target = (torch.arange(outputs // parts) * colours // (outputs // parts)).repeat(parts)[:, None]
        seen = torch.zeros_like(self.weight)
        seen[:, :, : rows // 2] = 1
        seen[:, :, rows // 2, : columns // 2] = 1
        seen[:, :, rows // 2, columns // 2] = (source < target if mask == "A" else source <= target).to(seen)
        self.register_buffer("mask", seen, persistent=False)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs height width"]:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class VerticalConv2d(nn.Conv2d):
    """A convolution that sees the rows above and all of its own row, or with `strict` the rows above alone.

    It is k // 2 + 1 rows high, or k // 2, and as wide as a k × k kernel: instead of a mask, the image is shifted
    down under it (van den Oord et al. 2016b, sec. 2.2).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, strict: bool):
        super().__init__(inputs, outputs, (kernel // 2 + (not strict), kernel), padding=(0, kernel // 2))

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs height width"]:
        above = self.kernel_size[1] // 2
        return super().forward(F.pad(x, (0, 0, above, 0)))[:, :, : x.shape[2]]

    def row(self, rows: Float[Tensor, "batch inputs high width"]) -> Float[Tensor, "batch outputs width"]:
        """The one row of the output that sees exactly these rows of the input."""
        return super().forward(rows).squeeze(2)


class RowCache:
    """A masked convolution while its input comes into being pixel by pixel: what rows above give is computed once.

        out[i, j] = Σ over the rows above + bias     all j at once, when row i begins
                  + Σ over columns ≤ j of row i      one product of a vector and a matrix, at pixel j

    Write the input at pixel j of the row into `at[j]`, (batch, inputs); then `cache(j)` is the output there,
    (batch, outputs), for as many times as the pixel changes.
    """

    def __init__(self, conv: MaskedConv2d, batch: int, width: int):
        above, left = (size // 2 for size in conv.kernel_size)
        weight = (conv.weight * conv.mask).detach()
        self.padding = (0, left)
        self.above_weight = weight[:, :, :above]
        self.own_weight = weight[:, :, above, : left + 1].permute(2, 1, 0).flatten(0, 1)
        self.rows = weight.new_zeros(batch, conv.in_channels, above, width)
        # The row being drawn, `left` columns of padding before it. What is still to the right of pixel j in it is
        # old, and not read.
        self.line = weight.new_zeros(batch, left + width, conv.in_channels)
        self.at = [self.line[:, left + j] for j in range(width)]
        self.windows = [self.line[:, j : j + left + 1].flatten(1) for j in range(width)]

    def begin_row(self, bias: Float[Tensor, "batch outputs #width"]) -> None:
        """The row drawn last, zeros before the first, joins those above."""
        self.rows = torch.cat([self.rows, self.row()[:, :, None]], 2)[:, :, 1:]
        if self.rows.shape[2]:
            bias = bias + F.conv2d(self.rows, self.above_weight, padding=self.padding).squeeze(2)
        self.above = bias.expand(-1, -1, len(self.at)).permute(2, 0, 1).contiguous().unbind()

    def row(self) -> Float[Tensor, "batch inputs width"]:
        """The row as drawn so far."""
        return self.line[:, -len(self.at) :].mT

    def __call__(self, j: int) -> Float[Tensor, "batch outputs"]:
        return torch.addmm(self.above[j], self.windows[j], self.own_weight)


def pixel_head(features: int, outputs: int, groups: int) -> nn.Sequential:
    """ReLU and a 1 × 1 convolution with mask B, twice: what is on top of every network of the paper (its table 1)."""
    return nn.Sequential(
        nn.ReLU(),
        MaskedConv2d(features, features, 1, "B", groups),
        nn.ReLU(),
        MaskedConv2d(features, outputs, 1, "B", groups),
    )


def pixel_matrix(conv: MaskedConv2d) -> tuple[Float[Tensor, "inputs outputs"], Float[Tensor, " outputs"]]:
    """A 1 × 1 convolution as the matrix and the bias that act on the features of one pixel."""
    return (conv.weight * conv.mask)[:, :, 0, 0].T.contiguous(), conv.bias


def head_matrices(head: nn.Sequential) -> list[tuple[Tensor, Tensor]]:
    """A `pixel_head` for `apply_head`."""
    return [pixel_matrix(layer) for layer in head if isinstance(layer, MaskedConv2d)]


def apply_head(
    matrices: list[tuple[Tensor, Tensor]], h: Float[Tensor, "batch features"]
) -> Float[Tensor, "batch outputs"]:
    """A `pixel_head` on the features of one pixel."""
    for matrix, bias in matrices:
        h = torch.addmm(bias, h.relu(), matrix)
    return h
