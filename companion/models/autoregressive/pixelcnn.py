"""PixelCNN (van den Oord et al. 2016, "Pixel recurrent neural networks"), plain and gated (van den Oord et al. 2016b,
"Conditional image generation with PixelCNN decoders").

    p(x) = Π over pixels i in raster order, and over the colours c of each, of p(x_ic | x_<i, x_i,<c)

All conditionals come from one pass of masked convolutions, so that the density and training cost one pass, and a
sample one for each value that is drawn, of which the sampler here computes only what is new.
"""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.models.autoregressive.images import ImageAutoregressive
from companion.models.autoregressive.outputs import Output
from companion.nets.label import LabelBias
from companion.nets.masked_conv import (
    MaskedConv2d,
    RowCache,
    VerticalConv2d,
    apply_head,
    head_matrices,
    pixel_head,
    pixel_matrix,
)
from companion.validate import require_positive_int


class PixelCNN(ImageAutoregressive):
    """p(x) of an image as a product over its pixels, each given those above and those to the left in its row.

    Args:
        event_shape: (colours, height, width).
        kind: "plain" (van den Oord et al. 2016, fig. 5 and table 1), whose stacked masks leave a blind spot to the
            right above, or "gated" (van den Oord et al. 2016b, fig. 2), whose two stacks leave none.
        output: what each value's conditional is.
            "bernoulli": for pixels 0 and 1;
            "categorical": a probability for each level;
            "logistic": a mixture of logistics over the levels, joint in the colours of a pixel: each component's mean
            is linear in the colours before (Salimans et al. 2017, eqs. 2 and 3). Its masks know no colours.
        levels: L of "categorical" and "logistic", 2 to 256; None is 256. Values are the intensities k / (L - 1),
            k = 0 … L - 1, on [0, 1].
        hidden: features h; the residual stream of "plain" has 2h. A multiple of the colours.
        blocks: residual blocks after the first layer of "plain", layers in all of "gated".
        mixtures: components of "logistic"; None is 5.
        classes: with a number, every density is of x given a label 0 … classes - 1, which adds a bias to every
            masked convolution ("plain") or gate ("gated", eq. 4).

    Raises ValueError for an argument, or two of them together, that mean nothing.

    >>> import torch
    >>> from companion.models import PixelCNN
    >>> _ = torch.manual_seed(0)
    >>> model = PixelCNN((1, 6, 6), hidden=4, blocks=1)
    >>> model.log_prob(torch.zeros(2, 1, 6, 6)).shape, model.sample(1).shape
    (torch.Size([2]), torch.Size([1, 1, 6, 6]))
    """

    def __init__(
        self,
        event_shape: tuple[int, int, int] = (1, 28, 28),
        kind: Literal["plain", "gated"] = "plain",
        output: Output = "bernoulli",
        levels: int | None = None,
        hidden: int = 32,
        blocks: int = 7,
        mixtures: int | None = None,
        classes: int | None = None,
    ):
        super().__init__(event_shape, output, levels, mixtures, classes)
        require_positive_int(hidden, "hidden")
        require_positive_int(blocks, "blocks")
        if kind not in ("plain", "gated"):
            raise ValueError(f"kind must be 'plain' or 'gated', got {kind!r}")
        if hidden % self.output.groups:
            raise ValueError(f"hidden must be a multiple of the {self.output.groups} colours, got {hidden}")
        self.kind = kind
        stack = PlainStack if kind == "plain" else GatedStack
        self.stack = stack(self.event_shape[0], hidden, blocks, self.output.groups, self.output.parameters, classes)

    def _network(self, x: Tensor, label: Tensor | None) -> Float[Tensor, "batch parameters height width"]:
        return self.stack(x, label)

    def _drawing(self, n: int, label: Tensor | None) -> "PlainCache | GatedCache":
        return self.stack.cache(n, self.event_shape[2], label)


# The networks. Each can answer for whole images, or, with its cache, pixel by pixel.


class ResidualBlock(nn.Module):
    """2h features to h, a masked 3 × 3 convolution, and back to 2h, added to the input."""

    def __init__(self, hidden: int, groups: int, classes: int | None):
        super().__init__()
        self.narrow = MaskedConv2d(2 * hidden, hidden, 1, "B", groups)
        self.spread = MaskedConv2d(hidden, hidden, 3, "B", groups)
        self.label_bias = LabelBias(classes, hidden)
        self.widen = MaskedConv2d(hidden, 2 * hidden, 1, "B", groups)

    def forward(self, h: Float[Tensor, "batch wide height width"], label: Tensor | None) -> Tensor:
        u = self.narrow(h.relu()).relu()
        u = self.label_bias(self.spread(u), label).relu()
        return h + self.widen(u)


class PlainStack(nn.Module):
    """A 7 × 7 convolution with mask A, residual blocks with mask B, and two 1 × 1 layers."""

    def __init__(self, colours: int, hidden: int, blocks: int, groups: int, outputs: int, classes: int | None):
        super().__init__()
        self.first = MaskedConv2d(colours, 2 * hidden, 7, "A", groups)
        self.label_bias = LabelBias(classes, 2 * hidden)
        residual = (ResidualBlock(hidden, groups, classes) for _ in range(blocks))
        self.blocks = cast(Sequence[ResidualBlock], nn.ModuleList(residual))
        self.head = pixel_head(2 * hidden, outputs, groups)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """The weights of He et al. (2015), for as many inputs as the masks leave: with those for whole kernels the
        features fade from layer to layer. All blocks together add about the variance of one."""
        for conv in (module for module in self.modules() if isinstance(module, MaskedConv2d)):
            seen = conv.mask.flatten(1).sum(1).mean().clamp(min=1)
            conv.weight.normal_(0, math.sqrt(2 / seen))
            conv.bias.zero_()
        for block in self.blocks:
            block.widen.weight.div_(math.sqrt(len(self.blocks)))
        # Near 0, so that all values start about equally likely.
        cast(MaskedConv2d, self.head[-1]).weight.mul_(0.1)

    def forward(self, x: Float[Tensor, "batch colours height width"], label: Tensor | None) -> Tensor:
        h = self.label_bias(self.first(x), label)
        for block in self.blocks:
            h = block(h, label)
        return self.head(h)

    def cache(self, batch: int, width: int, label: Tensor | None) -> "PlainCache":
        return PlainCache(self, batch, width, label)


class PlainCache:
    """`PlainStack` for the pixels of one row after the other: only its k × k convolutions see other pixels."""

    def __init__(self, stack: PlainStack, batch: int, width: int, label: Tensor | None):
        first = RowCache(stack.first, batch, width)
        self.first, self.at, self.row = first, first.at, first.row
        spreads = [RowCache(block.spread, batch, width) for block in stack.blocks]
        convs = [stack.first] + [block.spread for block in stack.blocks]
        biases = [stack.label_bias] + [block.label_bias for block in stack.blocks]
        self.rows = [
            (cache, add(conv.bias.expand(batch, -1), label)[:, :, None])
            for cache, conv, add in zip([first, *spreads], convs, biases, strict=True)
        ]
        self.blocks = [
            (*pixel_matrix(block.narrow), spread, *pixel_matrix(block.widen))
            for block, spread in zip(stack.blocks, spreads, strict=True)
        ]
        self.head = head_matrices(stack.head)

    def begin_row(self) -> None:
        for cache, bias in self.rows:
            cache.begin_row(bias)

    def pixel(self, j: int) -> Float[Tensor, "batch parameters"]:
        h = self.first(j)
        for narrow, b, spread, widen, c in self.blocks:
            torch.addmm(b, h.relu(), narrow, out=spread.at[j]).relu_()
            h = torch.addmm(h, spread(j).relu_(), widen).add_(c)
        return apply_head(self.head, h)


class GatedLayer(nn.Module):
    """One layer of the vertical stack, which sees rows above alone, and of the horizontal one, which sees both.

    Each is gated, tanh(a) ⊙ σ(b), with the two halves a and b of twice as many features (van den Oord et al. 2016b,
    eqs. 2 and 4, fig. 2).
    """

    def __init__(self, inputs: int, hidden: int, kernel: int, first: bool, groups: int, classes: int | None):
        super().__init__()
        self.vertical = VerticalConv2d(inputs, 2 * hidden, kernel, strict=first)
        self.vertical_label = LabelBias(classes, 2 * hidden)
        # What comes from the rows above may reach every colour.
        self.link = nn.Conv2d(2 * hidden, 2 * hidden, 1)
        self.horizontal = MaskedConv2d(inputs, 2 * hidden, (1, kernel), "A" if first else "B", groups, parts=2)
        self.horizontal_label = LabelBias(classes, 2 * hidden)
        self.mix = MaskedConv2d(hidden, hidden, 1, "B", groups)
        self.residual = not first

    def forward(self, v: Tensor, h: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        above = self.vertical(v)
        own = self.horizontal_label(self.horizontal(h) + self.link(above), label)
        out = self.mix(gate(own))
        return gate(self.vertical_label(above, label)), out + h if self.residual else out


class GatedStack(nn.Module):
    """Gated layers, 7 wide the first and 3 wide the others, and two 1 × 1 layers on top of the horizontal stack."""

    def __init__(self, colours: int, hidden: int, blocks: int, groups: int, outputs: int, classes: int | None):
        super().__init__()
        layers = (
            GatedLayer(hidden if k else colours, hidden, 3 if k else 7, k == 0, groups, classes) for k in range(blocks)
        )
        self.layers = cast(Sequence[GatedLayer], nn.ModuleList(layers))
        self.head = pixel_head(hidden, outputs, groups)

    def forward(self, x: Float[Tensor, "batch colours height width"], label: Tensor | None) -> Tensor:
        v = h = x
        for layer in self.layers:
            v, h = layer(v, h, label)
        return self.head(h)

    def cache(self, batch: int, width: int, label: Tensor | None) -> "GatedCache":
        return GatedCache(self, batch, width, label)


class GatedCache:
    """`GatedStack` for the pixels of one row after the other.

    The vertical stack sees nothing of the row being drawn: all of it is computed when the row begins.
    """

    def __init__(self, stack: GatedStack, batch: int, width: int, label: Tensor | None):
        self.layers, self.label = stack.layers, label
        self.horizontal = [RowCache(layer.horizontal, batch, width) for layer in stack.layers]
        self.first = self.horizontal[0]
        self.at, self.row = self.first.at, self.first.row
        # The rows of its input that each vertical convolution sees, zeros above the image.
        self.seen = [
            conv.weight.new_zeros(batch, conv.in_channels, conv.kernel_size[0], width)
            for conv in (layer.vertical for layer in stack.layers)
        ]
        self.mixes = [pixel_matrix(layer.mix) for layer in stack.layers]
        self.head = head_matrices(stack.head)

    def begin_row(self) -> None:
        v = self.row()
        for k, (layer, cache) in enumerate(zip(self.layers, self.horizontal, strict=True)):
            self.seen[k] = torch.cat([self.seen[k], v[:, :, None]], 2)[:, :, 1:]
            above = layer.vertical.row(self.seen[k])
            link = layer.link(above[:, :, None]).squeeze(2) + layer.horizontal.bias[:, None]
            cache.begin_row(layer.horizontal_label(link, self.label))
            v = gate(layer.vertical_label(above, self.label))

    def pixel(self, j: int) -> Float[Tensor, "batch parameters"]:
        mix, bias = self.mixes[0]
        h = torch.addmm(bias, gate(self.first(j)), mix)
        for cache, (mix, bias) in zip(self.horizontal[1:], self.mixes[1:], strict=True):
            cache.at[j].copy_(h)
            h = torch.addmm(h, gate(cache(j)), mix).add_(bias)
        return apply_head(self.head, h)


def gate(features: Float[Tensor, "batch double *space"]) -> Float[Tensor, "batch half *space"]:
    """tanh of the first half, times σ of the second (van den Oord et al. 2016b, eq. 2)."""
    a, b = features.chunk(2, 1)
    return a.tanh() * b.sigmoid()
