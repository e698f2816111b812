"""PixelCNN (van den Oord et al. 2016, "Pixel recurrent neural networks"), plain and gated (van den Oord et al. 2016b,
"Conditional image generation with PixelCNN decoders").

    p(x) = Π over pixels i in raster order, and over the colours c of each, of p(x_ic | x_<i, x_i,<c)

All conditionals come from one pass of masked convolutions, so that the density and training cost one pass, and a
sample one for each value that is drawn, of which the sampler here computes only what is new.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.models.questions import Loss
from companion.nets.masked_conv import MaskedConv2d, RowCache, VerticalConv2d
from companion.validate import require_binary, require_events, require_label, require_positive_int

Output = Literal["bernoulli", "categorical", "logistic"]

# The least log of a logistic's scale, that of the authors' code: one level of 256 is then 8 scales wide.
LEAST_LOG_SCALE = -7.0

# How far from its level a value may lie, in levels: k / 255 in float32 is off by a thirtieth of this at most.
OFF_LEVEL = 1e-3


class PixelCNN(nn.Module):
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
        super().__init__()
        if len(event_shape) != 3:
            raise ValueError(f"event_shape must be (colours, height, width), got {tuple(event_shape)}")
        for size in event_shape:
            require_positive_int(size, "each size in event_shape")
        require_positive_int(hidden, "hidden")
        require_positive_int(blocks, "blocks")
        if classes is not None:
            require_positive_int(classes, "classes")
        if kind not in ("plain", "gated"):
            raise ValueError(f"kind must be 'plain' or 'gated', got {kind!r}")
        self.event_shape, self.kind, self.classes = tuple(event_shape), kind, classes
        self.output = _output(output, self.event_shape[0], levels, mixtures)
        if hidden % self.output.groups:
            raise ValueError(f"hidden must be a multiple of the {self.output.groups} colours, got {hidden}")
        stack = PlainStack if kind == "plain" else GatedStack
        self.stack = stack(self.event_shape[0], hidden, blocks, self.output.groups, self.output.parameters, classes)

    def forward(
        self, x: Float[Tensor, "batch colours height width"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch parameters height width"]:
        """The parameters of every pixel's conditional: those of pixel i from the pixels before it.

        The parameters of a colour lie together; "categorical" has `levels` logits for each. Raises as `log_prob`.
        """
        require_events(x, self.event_shape)
        self.output.require(x)
        require_label(label, self.classes, len(x))
        # Under autocast the network answers in bfloat16; the probabilities are computed in the type of x.
        return self.stack(x, label).to(x.dtype)

    def log_prob(
        self, x: Float[Tensor, "batch colours height width"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """log p(x), or log p(x | label), in nats. Without autocast, in which it would be wrong by nats.

        Raises:
            TypeError: x has no floating dtype, or label is no integer tensor.
            ValueError: a wrong shape, NaN, values that are no level; a label missing, out of range or not asked for.
        """
        with torch.autocast(x.device.type if isinstance(x, Tensor) else "cpu", enabled=False):
            return self._log_prob(x, label)

    def loss(self, x: Float[Tensor, "batch colours height width"], label: Int[Tensor, " batch"] | None = None) -> Loss:
        """-log p(x). Raises as `log_prob`."""
        negative = -self._log_prob(x, label)
        return Loss(negative, {"negative log-likelihood": negative}, "nats")

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, label: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n colours height width"]:
        """Pixel by pixel, from the parameters that `forward` would give, at a fraction of its cost.

        Raises ValueError or TypeError for a label as `log_prob` does.
        """
        require_positive_int(n, "n")
        require_label(label, self.classes, n)
        like = next(self.parameters())
        _, height, width = self.event_shape
        uniforms = torch.rand(
            height, width, n, self.output.draws, generator=generator, device=like.device, dtype=like.dtype
        )
        with torch.autocast(like.device.type, enabled=False):
            return self._sample(uniforms, label)

    def _sample(self, uniforms: Float[Tensor, "height width n draws"], label: Tensor | None) -> Tensor:
        height, width, n, _ = uniforms.shape
        cache = self.stack.cache(n, width, label)
        rows = []
        for i in range(height):
            cache.begin_row()
            for j in range(width):
                pixel = cache.first.at[j]  # (n, colours), which the first layer reads
                for colour in range(self.event_shape[0]):
                    if colour < self.output.groups:
                        parameters = cache.pixel(j)
                    pixel[:, colour] = self.output.draw(parameters, pixel, colour, uniforms[i, j])
            rows.append(cache.first.row().clone())
        return torch.stack(rows, 2)

    def _log_prob(self, x: Tensor, label: Tensor | None) -> Float[Tensor, " batch"]:
        return self.output.log_prob(self(x, label), x).flatten(1).sum(1)


# The networks. Each can answer for whole images, or, with its cache, pixel by pixel.


class LabelBias(nn.Module):
    """A bias for each feature, to which a label adds one of its own."""

    def __init__(self, classes: int | None, features: int):
        super().__init__()
        self.of_class = None if classes is None else nn.Embedding(classes, features)
        if classes is not None:
            nn.init.normal_(self.of_class.weight, std=0.1)

    def forward(self, features: Tensor, label: Tensor | None) -> Tensor:
        """Adds it to (batch, features, ...)."""
        if self.of_class is None:
            return features
        bias = self.of_class(label)
        return features + bias.reshape(*bias.shape, *[1] * (features.ndim - 2))


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
        self.blocks = nn.ModuleList(ResidualBlock(hidden, groups, classes) for _ in range(blocks))
        self.head = _head(2 * hidden, outputs, groups)

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
        self.first = RowCache(stack.first, batch, width)
        spreads = [RowCache(block.spread, batch, width) for block in stack.blocks]
        convs = [stack.first] + [block.spread for block in stack.blocks]
        biases = [stack.label_bias] + [block.label_bias for block in stack.blocks]
        self.rows = [
            (cache, add(conv.bias.expand(batch, -1), label)[:, :, None])
            for cache, conv, add in zip([self.first, *spreads], convs, biases, strict=True)
        ]
        self.blocks = [
            (*_matrix(block.narrow), spread, *_matrix(block.widen))
            for block, spread in zip(stack.blocks, spreads, strict=True)
        ]
        self.head = [_matrix(stack.head[1]), _matrix(stack.head[3])]

    def begin_row(self) -> None:
        for cache, bias in self.rows:
            cache.begin_row(bias)

    def pixel(self, j: int) -> Float[Tensor, "batch parameters"]:
        h = self.first(j)
        for narrow, b, spread, widen, c in self.blocks:
            torch.addmm(b, h.relu(), narrow, out=spread.at[j]).relu_()
            h = torch.addmm(h, spread(j).relu_(), widen).add_(c)
        return _apply_head(self.head, h)


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
        self.layers = nn.ModuleList(
            GatedLayer(hidden if k else colours, hidden, 3 if k else 7, k == 0, groups, classes) for k in range(blocks)
        )
        self.head = _head(hidden, outputs, groups)

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
        # The rows of its input that each vertical convolution sees, zeros above the image.
        self.seen = [
            conv.weight.new_zeros(batch, conv.in_channels, conv.kernel_size[0], width)
            for conv in (layer.vertical for layer in stack.layers)
        ]
        self.mixes = [_matrix(layer.mix) for layer in stack.layers]
        self.head = [_matrix(stack.head[1]), _matrix(stack.head[3])]

    def begin_row(self) -> None:
        v = self.first.row()
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
        return _apply_head(self.head, h)


def gate(features: Float[Tensor, "batch double *space"]) -> Float[Tensor, "batch half *space"]:
    """tanh of the first half, times σ of the second (van den Oord et al. 2016b, eq. 2)."""
    a, b = features.chunk(2, 1)
    return a.tanh() * b.sigmoid()


def _head(features: int, outputs: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        MaskedConv2d(features, features, 1, "B", groups),
        nn.ReLU(),
        MaskedConv2d(features, outputs, 1, "B", groups),
    )


def _apply_head(head: list[tuple[Tensor, Tensor]], h: Float[Tensor, "batch features"]) -> Tensor:
    for matrix, bias in head:
        h = torch.addmm(bias, h.relu(), matrix)
    return h


def _matrix(conv: MaskedConv2d) -> tuple[Tensor, Tensor]:
    """A 1 × 1 convolution as the matrix and the bias that act on the features of one pixel."""
    return (conv.weight * conv.mask)[:, :, 0, 0].T.contiguous(), conv.bias


# The outputs: `parameters` for each pixel, `groups` of them one for each colour if that many passes are needed for a
# pixel's colours (1: one pass for all), and `draws` uniform numbers for a pixel.


class BernoulliOutput:
    """A logit for each colour."""

    def __init__(self, colours: int):
        self.parameters = self.groups = self.draws = colours

    def require(self, x: Tensor) -> None:
        require_binary(x)

    def log_prob(
        self, parameters: Float[Tensor, "batch parameters *space"], x: Float[Tensor, "batch colours *space"]
    ) -> Float[Tensor, " batch *space"]:
        """In nats, summed over the colours."""
        return (x * parameters - F.softplus(parameters)).sum(1)

    def draw(
        self,
        parameters: Float[Tensor, "batch parameters"],
        pixel: Float[Tensor, "batch colours"],
        colour: int,
        uniforms: Float[Tensor, "batch draws"],
    ) -> Float[Tensor, " batch"]:
        """This colour of a pixel whose colours before it are known, by the inverse of its distribution function."""
        return (uniforms[:, colour] < parameters[:, colour].sigmoid()).to(pixel)


class CategoricalOutput:
    """A logit for each level of each colour."""

    def __init__(self, colours: int, levels: int):
        self.levels, self.groups, self.draws = levels, colours, colours
        self.parameters = colours * levels

    def require(self, x: Tensor) -> None:
        _require_levels(x, self.levels)

    def log_prob(
        self, parameters: Float[Tensor, "batch parameters *space"], x: Float[Tensor, "batch colours *space"]
    ) -> Float[Tensor, " batch *space"]:
        logits = parameters.unflatten(1, (self.groups, self.levels)).log_softmax(2)
        level = (x * (self.levels - 1)).round().long()
        return logits.gather(2, level.unsqueeze(2)).squeeze(2).sum(1)

    def draw(self, parameters: Tensor, pixel: Tensor, colour: int, uniforms: Tensor) -> Float[Tensor, " batch"]:
        logits = parameters[:, colour * self.levels : (colour + 1) * self.levels]
        return _inverse_cdf(logits, uniforms[:, colour]) / (self.levels - 1)


class LogisticOutput:
    """A mixture of logistics on [-1, 1], each level the interval of width 2 / (L - 1) around it, the least and the
    greatest with all of the tail beyond (Salimans et al. 2017, sec. 2.1).

    Each component has a weight, a mean and a log-scale for each colour, and a coefficient, within ±1, for each pair of
    colours, by which an earlier colour moves the mean of a later one (sec. 2.2).
    """

    groups = 1

    def __init__(self, colours: int, levels: int, mixtures: int):
        self.colours, self.levels, self.mixtures, self.draws = colours, levels, mixtures, colours + 1
        self.sizes = [1, colours, colours, colours * (colours - 1) // 2]
        self.parameters = mixtures * sum(self.sizes)

    def require(self, x: Tensor) -> None:
        _require_levels(x, self.levels)

    def log_prob(
        self, parameters: Float[Tensor, "batch parameters *space"], x: Float[Tensor, "batch colours *space"]
    ) -> Float[Tensor, " batch *space"]:
        weights, *components = self._split(parameters)
        total = weights.log_softmax(1)
        for colour in range(self.colours):
            mean, log_scale = self._mean_and_scale(components, x, colour)
            total = total + self._log_interval(x[:, colour, None], mean, log_scale)
        return total.logsumexp(1)

    def draw(self, parameters: Tensor, pixel: Tensor, colour: int, uniforms: Tensor) -> Float[Tensor, " batch"]:
        weights, *components = self._split(parameters)
        # The last of the uniform numbers is that of the component, the same for all colours of a pixel.
        component = _inverse_cdf(weights, uniforms[:, -1]).long()[:, None]
        mean, log_scale = (t.gather(1, component)[:, 0] for t in self._mean_and_scale(components, pixel, colour))
        y = mean + log_scale.exp() * uniforms[:, colour].logit()
        return ((y + 1) / 2 * (self.levels - 1)).round().clamp(0, self.levels - 1) / (self.levels - 1)

    def _split(self, parameters: Tensor) -> tuple[Tensor, ...]:
        """Logits of the weights, (batch, mixtures, *space); means, log-scales and coefficients, one axis more."""
        weights, *components = parameters.unflatten(1, (self.mixtures, -1)).split(self.sizes, 2)
        return weights.squeeze(2), *components

    def _mean_and_scale(self, components: list[Tensor], x: Tensor, colour: int) -> tuple[Tensor, Tensor]:
        """(batch, mixtures, *space) each: the mean given the colours before, on [-1, 1], and log s."""
        means, log_scales, coefficients = components
        mean, before = means[:, :, colour], colour * (colour - 1) // 2
        for earlier in range(colour):
            mean = mean + coefficients[:, :, before + earlier].tanh() * (2 * x[:, earlier, None] - 1)
        return mean, log_scales[:, :, colour].clamp(min=LEAST_LOG_SCALE)

    def _log_interval(self, x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
        """log(σ(b) - σ(a)) of the ends a < b of the interval of x, as log σ(b) + log σ(-a) + log(1 - exp(a - b)).

        No difference of two rounded numbers, so that it holds however far x is from the mean. An end at infinity
        leaves out its own term and the last.
        """
        half, rate = 1 / (self.levels - 1), (-log_scale).exp()
        below, above = (2 * x - 1 - half - mean) * rate, (2 * x - 1 + half - mean) * rate
        level = (x * (self.levels - 1)).round()
        lowest, highest = level == 0, level == self.levels - 1
        zero = torch.zeros_like(below)
        return (
            torch.where(highest, zero, F.logsigmoid(above))
            + torch.where(lowest, zero, F.logsigmoid(-below))
            + torch.where(lowest | highest, zero, (-torch.expm1(-2 * half * rate)).log())
        )


def _output(
    output: str, colours: int, levels: int | None, mixtures: int | None
) -> BernoulliOutput | CategoricalOutput | LogisticOutput:
    if output not in get_args(Output):
        raise ValueError(f"output must be one of {', '.join(map(repr, get_args(Output)))}, got {output!r}")
    if mixtures is not None and output != "logistic":
        raise ValueError(f"mixtures is for the output 'logistic', got {mixtures!r} with {output!r}")
    if output == "bernoulli":
        if levels is not None:
            raise ValueError(f"levels is for the outputs 'categorical' and 'logistic', got {levels!r} with {output!r}")
        return BernoulliOutput(colours)
    levels = 256 if levels is None else levels
    require_positive_int(levels, "levels")
    if not 2 <= levels <= 256:
        raise ValueError(f"levels must lie in 2..256, got {levels}")
    if output == "categorical":
        return CategoricalOutput(colours, levels)
    mixtures = 5 if mixtures is None else mixtures
    require_positive_int(mixtures, "mixtures")
    return LogisticOutput(colours, levels, mixtures)


def _require_levels(x: Tensor, levels: int) -> None:
    scaled = x * (levels - 1)
    level = scaled.round()
    wrong = ((scaled - level).abs() > OFF_LEVEL) | (level < 0) | (level > levels - 1)
    if wrong.any():
        raise ValueError(
            f"x must hold only the {levels} levels k / {levels - 1} from 0 to 1, got {x[wrong][0].item():.6g}"
        )


def _inverse_cdf(
    logits: Float[Tensor, "batch categories"], uniform: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """The first category whose cumulated probability exceeds the uniform number; the last, whatever rounding says."""
    return (logits.softmax(1).cumsum(1)[:, :-1] <= uniform[:, None]).sum(1).to(logits)
