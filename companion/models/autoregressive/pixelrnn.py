"""PixelRNN (van den Oord et al. 2016, "Pixel recurrent neural networks"): the Row LSTM and the Diagonal BiLSTM.

    p(x) = Π over pixels i in raster order, and over the colours c of each, of p(x_ic | x_<i, x_i,<c)

Between the masked convolutions of PixelCNN lie LSTM layers (eq. 3) whose state goes from line to line of the image:
rows, or diagonals. A line is one step of the layer, all its pixels at once. The density and training cost a pass, in
which a layer takes height or width + height - 1 steps; the sampler here computes at each pixel only what is new.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from companion.models.autoregressive.images import ImageAutoregressive
from companion.models.autoregressive.outputs import Output
from companion.nets.label import LabelBias
from companion.nets.masked_conv import MaskedConv2d, RowCache, apply_head, head_matrices, pixel_head, pixel_matrix
from companion.validate import require_positive_int

aten = torch.ops.aten


class PixelRNN(ImageAutoregressive):
    """p(x) of an image as a product over its pixels, each given those above and those to the left in its row.

    A 7 × 7 convolution with mask A, residual LSTM layers, and two 1 × 1 layers (van den Oord et al. 2016, table 1).
    What the paper leaves open is as follows: the state outside the image is zero; the gates have one bias, that of
    the input-to-state convolution; the two directions of a BiLSTM share no weights; weights start as PyTorch's do.

    Args:
        event_shape: (colours, height, width).
        kind: "row" (sec. 3.1), which sees a triangle: in row d above, from 3 + layers + d columns to the left up to
            2 + d to the right, however deep; or "diagonal" (sec. 3.2), which sees all before it but one value: the
            last of the row above (of its colours the last) comes too late for the features that go from right to
            left, and is seen by the pixels at most 3 columns away alone, through the first convolution.
        output, levels, mixtures: what each value's conditional is, as for `PixelCNN`.
        hidden: features h of the state; the residual stream has 2h. A multiple of the colours.
        layers: LSTM layers. The paper has 7, with h = 16, for MNIST, and 12 for CIFAR-10.
        classes: with a number, every density is of x given a label 0 … classes - 1, which adds a bias to the gates of
            every layer.

    Raises ValueError for an argument, or two of them together, that mean nothing.

    >>> import torch
    >>> from companion.models import PixelRNN
    >>> model = PixelRNN((1, 6, 6), hidden=4, layers=1)
    >>> model.log_prob(torch.zeros(2, 1, 6, 6)).shape
    torch.Size([2])
    """

    def __init__(
        self,
        event_shape: tuple[int, int, int] = (1, 28, 28),
        kind: Literal["row", "diagonal"] = "diagonal",
        output: Output = "bernoulli",
        levels: int | None = None,
        hidden: int = 16,
        layers: int = 7,
        mixtures: int | None = None,
        classes: int | None = None,
    ):
        super().__init__(event_shape, output, levels, mixtures, classes)
        require_positive_int(hidden, "hidden")
        require_positive_int(layers, "layers")
        if kind not in ("row", "diagonal"):
            raise ValueError(f"kind must be 'row' or 'diagonal', got {kind!r}")
        groups = self.output.groups
        if hidden % groups:
            raise ValueError(f"hidden must be a multiple of the {groups} colours, got {hidden}")
        self.kind = kind
        lstm = RowLSTM if kind == "row" else DiagonalBiLSTM
        self.first = MaskedConv2d(self.event_shape[0], 2 * hidden, 7, "A", groups)
        lstms = nn.ModuleList(lstm(hidden, groups, classes) for _ in range(layers))
        widen = nn.ModuleList(MaskedConv2d(hidden, 2 * hidden, 1, "B", groups) for _ in range(layers))
        self.lstms = cast(Sequence[RowLSTM | DiagonalBiLSTM], lstms)
        self.widen = cast(Sequence[MaskedConv2d], widen)
        self.head = pixel_head(2 * hidden, self.output.parameters, groups)

    def _network(self, x: Tensor, label: Tensor | None) -> Float[Tensor, "batch parameters height width"]:
        h = self.first(x)
        for lstm, widen in zip(self.lstms, self.widen, strict=True):
            h = h + widen(lstm(h, label))  # fig. 5, right
        return self.head(h)

    def _drawing(self, n: int, label: Tensor | None) -> "PixelRNNCache":
        return PixelRNNCache(self, n, label)


# One layer of either kind: 2h features at each pixel to h.


class RowLSTM(nn.Module):
    """From row to row: the state of pixel j comes from those of j - 1, j and j + 1 in the row above (sec. 3.1)."""

    def __init__(self, hidden: int, groups: int, classes: int | None):
        super().__init__()
        self.input = MaskedConv2d(2 * hidden, 4 * hidden, (1, 3), "B", groups, parts=4)
        self.label_bias = LabelBias(classes, 4 * hidden)
        self.state = nn.Conv1d(hidden, 4 * hidden, 3, padding=1, bias=False)

    def forward(
        self, x: Float[Tensor, "batch double height width"], label: Tensor | None
    ) -> Float[Tensor, "batch hidden height width"]:
        gates = self.label_bias(self.input(x), label)
        return scan(gates.permute(2, 1, 0, 3), self.state.weight).permute(2, 1, 0, 3)

    def cache(self, batch: int, width: int, label: Tensor | None) -> "RowLSTMCache":
        return RowLSTMCache(self, batch, width, label)


class DiagonalBiLSTM(nn.Module):
    """From diagonal to diagonal: the state of a pixel comes from those of its left neighbour and of the one above.

    So the left-to-right direction has seen all above to the left. The other is the same on the mirrored image, and
    shifted down by one row, without which a pixel would see the rest of its own row (sec. 3.2).
    """

    def __init__(self, hidden: int, groups: int, classes: int | None):
        super().__init__()
        # Left to right first, then right to left, in each of these.
        self.input = MaskedConv2d(2 * hidden, 8 * hidden, 1, "B", groups, parts=8)
        self.label_bias = LabelBias(classes, 8 * hidden)
        self.state = nn.Conv1d(2 * hidden, 8 * hidden, 2, groups=2, bias=False)

    def forward(
        self, x: Float[Tensor, "batch double height width"], label: Tensor | None
    ) -> Float[Tensor, "batch hidden height width"]:
        batch, features, height, width = x.shape
        # The map is skewed before the input-to-state convolution, as the gates are four times its size.
        both = skew(torch.stack([x, x.flip(3)])).permute(4, 0, 2, 1, 3)
        weight = (self.input.weight * self.input.mask).view(2, -1, features)
        bias = self.label_bias(self.input.bias.expand(batch, -1), label).T[:, :, None]
        gates = (weight @ both.flatten(3)).flatten(1, 2).unflatten(2, (batch, height)) + bias
        inside = skew(x.new_ones(x.shape[2:])).T
        h = unskew(scan(gates, self.state.weight, inside).permute(2, 1, 3, 0), width)
        left, right = h.chunk(2, 1)
        return left + F.pad(right.flip(3), (0, 0, 1, 0))[:, :, :-1]

    def cache(self, batch: int, width: int, label: Tensor | None) -> "DiagonalBiLSTMCache":
        return DiagonalBiLSTMCache(self, batch, width, label)


def skew(x: Float[Tensor, "*batch height width"]) -> Float[Tensor, "*batch height length"]:
    """Each row one column further right than the one above, zeros elsewhere: a diagonal becomes a column (fig. 3).

    out[i, i + j] = x[i, j], length = width + height - 1.
    """
    height, width = x.shape[-2:]
    # One row end to end with the next, with as many zeros in between, is a map one column narrower.
    return F.pad(x, (0, height)).flatten(-2)[..., :-height].unflatten(-1, (height, width + height - 1))


def unskew(x: Float[Tensor, "*batch height length"], width: int) -> Float[Tensor, "*batch height width"]:
    """The map of which x is the skewed one, whatever stands outside it: out[i, j] = x[i, i + j]."""
    height = x.shape[-2]
    return F.pad(x.flatten(-2), (0, height)).unflatten(-1, (height, width + height))[..., :width]


# Eq. 3, for one pixel and for all lines of an image.


def lstm_update(
    gates: Float[Tensor, "batch quadruple"], c: Float[Tensor, "batch hidden"]
) -> tuple[Float[Tensor, "batch hidden"], Float[Tensor, "batch hidden"]]:
    """The new h and c from the four gates o, f, i, g before their nonlinearities, and the old c (eq. 3)."""
    o, f, i, g = gates.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def scan(
    gates: Float[Tensor, "steps gates batch length"],
    weight: Float[Tensor, "gates hidden taps"],
    inside: Float[Tensor, "steps length"] | None = None,
) -> Float[Tensor, "steps features batch length"]:
    """The states h of an LSTM that goes from line to line, all pixels of a line in one step (eq. 3).

        [o, f, i, g] = gates of the line + weight ∗ h of the line before
        c = σ(f) ⊙ c of the line before + σ(i) ⊙ tanh(g)
        h = σ(o) ⊙ tanh(c)

    Pixel p sees p - 1, p, … p + taps - 2 of the line before; h and c are zero before the first and beyond the ends.

    Args:
        gates: what the input gives, bias included; o, f, i and g for each of one or more directions.
        weight: of a convolution with a group for each direction; taps is 2 or 3.
        inside: 0 where there is no pixel and the state stays zero, 1 elsewhere.

    In the precision of the weight, under autocast too: over the steps a rounded state would drift.
    """
    return _Scan.apply(gates.to(weight.dtype), weight, inside)


class _Scan(torch.autograd.Function):
    """The steps are many and small, and autograd's records of them cost more than they do: hence the derivative by
    hand, into memory that is there already, which autocast leaves in its type."""

    @staticmethod
    def forward(ctx, gates: Tensor, weight: Tensor, inside: Tensor | None) -> Tensor:
        steps, _, batch, length = gates.shape
        hidden, taps = weight.shape[1:]
        # (directions, 4h, taps · h), for the windows below
        kernel = weight.unflatten(0, (-1, 4 * hidden)).mT.flatten(2)
        directions = len(kernel)
        gates = gates.flatten(2).unflatten(1, (directions, 4 * hidden))
        activated = torch.empty_like(gates)
        o, f, i, g = activated.unflatten(2, (4, hidden)).unflatten(4, (batch, length)).unbind(2)
        h = gates.new_zeros(steps + 1, directions, hidden, batch, length + taps - 1)
        c = gates.new_zeros(steps + 1, directions, hidden, batch, length)
        tanh_c = torch.empty_like(c[1:])
        for t in range(steps):
            torch.baddbmm(gates[t], kernel, _windows(h[t], taps), out=activated[t])
            activated[t, :, : 3 * hidden].sigmoid_()
            g[t].tanh_()
            if inside is not None:
                i[t].mul_(inside[t])  # a pixel that takes nothing in has c = 0, and so h = 0
            torch.mul(f[t], c[t], out=c[t + 1]).addcmul_(i[t], g[t])
            torch.tanh(c[t + 1], out=tanh_c[t])
            torch.mul(o[t], tanh_c[t], out=h[t + 1][..., 1 : length + 1])
        ctx.save_for_backward(kernel, activated, h, c, tanh_c)
        return h[1:, ..., 1 : length + 1].flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor) -> tuple[Tensor, Tensor, None]:
        kernel, activated, h, c, tanh_c = ctx.saved_tensors
        steps, directions, hidden, batch, length = tanh_c.shape
        taps = h.shape[4] - length + 1
        o, f, i, g = activated.unflatten(2, (4, hidden)).unflatten(4, (batch, length)).unbind(2)
        grad_h, grad_gates = torch.zeros_like(h), torch.empty_like(activated)
        grad_h[1:, ..., 1 : length + 1] = grad_out.unflatten(1, (directions, hidden))
        grad_c, grad_kernel = torch.zeros_like(c[0]), torch.zeros_like(kernel)
        grad_window = h.new_empty(directions, taps * hidden, batch * length)
        parts = grad_gates.unflatten(2, (4, hidden)).unflatten(4, (batch, length))
        for t in reversed(range(steps)):
            grad = grad_h[t + 1][..., 1 : length + 1]
            grad_c += aten.tanh_backward(grad * o[t], tanh_c[t])
            for k, (of, by) in enumerate(((grad, tanh_c), (grad_c, c), (grad_c, g), (grad_c, i))):
                torch.mul(of, by[t], out=parts[t, :, k])
            sigmoids, gate = activated[t, :, : 3 * hidden], grad_gates[t]
            gate[:, : 3 * hidden] = aten.sigmoid_backward(gate[:, : 3 * hidden], sigmoids)
            parts[t, :, 3] = aten.tanh_backward(parts[t, :, 3], g[t])
            grad_c *= f[t]
            grad_kernel.baddbmm_(gate, _windows(h[t], taps).mT)
            torch.bmm(kernel.mT, gate, out=grad_window)
            for k, tap in enumerate(grad_window.view(directions, taps, *grad.shape[1:]).unbind(1)):
                grad_h[t][..., k : k + length] += tap
        grad_weight = grad_kernel.unflatten(2, (taps, hidden)).mT.flatten(0, 1)
        return grad_gates.flatten(1, 2).unflatten(2, (batch, length)), grad_weight, None


def _windows(
    line: Float[Tensor, "directions hidden batch padded"], taps: int
) -> Float[Tensor, "directions window pixels"]:
    """What each pixel sees of the line before, tap by tap."""
    windows = line.unfold(3, line.shape[3] - taps + 1, 1).movedim(3, 1)
    return windows.flatten(3).flatten(1, 2)


# The sampler


class PixelRNNCache:
    """`PixelRNN` for the pixels of one row after the other."""

    def __init__(self, model: PixelRNN, batch: int, label: Tensor | None):
        width = model.event_shape[2]
        self.first = RowCache(model.first, batch, width)
        self.at, self.row = self.first.at, self.first.row
        self.bias = model.first.bias.expand(batch, -1)[:, :, None]
        lstms = (lstm.cache(batch, width, label) for lstm in model.lstms)
        self.layers = [(lstm, *pixel_matrix(widen)) for lstm, widen in zip(lstms, model.widen, strict=True)]
        self.head = head_matrices(model.head)

    def begin_row(self) -> None:
        self.first.begin_row(self.bias)
        for lstm, _, _ in self.layers:
            lstm.begin_row()

    def pixel(self, j: int) -> Float[Tensor, "batch parameters"]:
        h = self.first(j)
        for lstm, widen, bias in self.layers:
            lstm.at[j].copy_(h)
            h = torch.addmm(h, lstm(j), widen).add_(bias)
        return apply_head(self.head, h)


class RowLSTMCache:
    """`RowLSTM` pixel by pixel: what the states of the row above give is computed for the whole row when it begins."""

    def __init__(self, lstm: RowLSTM, batch: int, width: int, label: Tensor | None):
        self.input, self.state = RowCache(lstm.input, batch, width), lstm.state
        self.at = self.input.at
        self.bias = lstm.label_bias(lstm.input.bias.expand(batch, -1), label)[:, :, None]
        self.h, self.c = self.bias.new_zeros(2, width, batch, lstm.state.in_channels)

    def begin_row(self) -> None:
        self.input.begin_row(self.bias + self.state(self.h.permute(1, 2, 0)))
        self.above = self.c.clone()

    def __call__(self, j: int) -> Float[Tensor, "batch hidden"]:
        self.h[j], self.c[j] = lstm_update(self.input(j), self.above[j])
        return self.h[j]


class DiagonalBiLSTMCache:
    """`DiagonalBiLSTM` pixel by pixel: left to right as they come, right to left over a row once it is complete."""

    def __init__(self, lstm: DiagonalBiLSTM, batch: int, width: int, label: Tensor | None):
        matrix, bias = pixel_matrix(lstm.input)
        features, hidden = len(matrix), len(matrix) // 2
        bias = lstm.label_bias(bias.expand(batch, -1), label)
        self.bias, self.bias_right = bias.chunk(2, 1)
        of_input, self.of_input_right = matrix.chunk(2, 1)
        of_above, of_neighbour = lstm.state.weight.movedim(2, 0).mT
        self.of_above, self.of_above_right = of_above.chunk(2, 1)
        of_left, self.of_right = of_neighbour.chunk(2, 1)
        self.weight = torch.cat([of_input, of_left])
        # At each pixel of the row, the input and the state to its left, which begins with zeros.
        self.seen = matrix.new_zeros(width + 1, batch, features + hidden)
        self.inputs, self.h = self.seen[:-1, :, :features], self.seen[1:, :, features:]
        self.at = self.inputs.unbind()
        self.c = matrix.new_zeros(width + 1, batch, hidden)
        self.right: Tensor | None = None

    def begin_row(self) -> None:
        self.right = torch.zeros_like(self.h) if self.right is None else self._right_to_left(self.right)
        self.above = self.h @ self.of_above + self.bias

    def _right_to_left(self, above: Float[Tensor, "width batch hidden"]) -> Float[Tensor, "width batch hidden"]:
        """The states in the row drawn last, from those in the row above it."""
        gates = self.inputs @ self.of_input_right + above @ self.of_above_right + self.bias_right
        h = c = torch.zeros_like(self.c[0])
        states = []
        for gate in reversed(gates):
            h, c = lstm_update(torch.addmm(gate, h, self.of_right), c)
            states.append(h)
        return torch.stack(states[::-1])

    def __call__(self, j: int) -> Float[Tensor, "batch hidden"]:
        gates = torch.addmm(self.above[j], self.seen[j], self.weight)
        self.h[j], self.c[j + 1] = lstm_update(gates, self.c[j])
        assert self.right is not None  # since the row began
        return self.h[j] + self.right[j]
