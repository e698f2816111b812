"""WaveNet (van den Oord et al. 2016c, "WaveNet: a generative model for raw audio"), with a sampler that keeps what its
layers have seen (Le Paine et al. 2016, "Fast Wavenet generation algorithm").

    p(x) = Π over samples t of p(x_t | x_<t), each a softmax over the levels of the μ-law

Dilations that double from layer to layer make each conditional see far back through few layers. One pass gives all
conditionals; a sample is drawn one amplitude after the other.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from companion.data.waves import mu_law_decode, mu_law_position
from companion.models.autoregressive.outputs import inverse_cdf
from companion.models.autoregressive.pixelcnn import gate
from companion.models.questions import Loss
from companion.nets.causal_conv import DilatedCausalConv1d, Queue
from companion.nets.label import LabelBias
from companion.validate import OFF_LEVEL, require_events, require_label, require_positive_int


class WaveNet(nn.Module):
    """p(x) of a sound as a product over its samples, each given those before it.

    Amplitudes are levels of the μ-law, as `companion.data.quantise` gives them.

    Args:
        length: samples in what `sample` draws; densities are of sounds of any length.
        levels: of the μ-law, 2 to 256.
        channels: features of the residual stream, and of each gate.
        skip: features that every layer passes up, where they are summed.
        layers: of a block, with the dilations 1, 2, 4, … 2^(layers - 1).
        blocks: how often they are repeated.
        kernel: taps of every convolution over time.
        classes: with a number, every density is of x given a label 0 … classes - 1, which adds a bias to both
            halves of every gate (sec. 2.5).

    Raises ValueError for an argument that means nothing.

    >>> import torch
    >>> from companion.models import WaveNet
    >>> model = WaveNet(length=64, levels=16, channels=4, skip=4, layers=4, blocks=1)
    >>> model.receptive_field, model.sample(2).shape
    (16, torch.Size([2, 64]))
    """

    def __init__(
        self,
        length: int = 1024,
        levels: int = 256,
        channels: int = 32,
        skip: int = 64,
        layers: int = 10,
        blocks: int = 2,
        kernel: int = 2,
        classes: int | None = None,
    ):
        super().__init__()
        for name, value in (
            ("length", length),
            ("levels", levels),
            ("channels", channels),
            ("skip", skip),
            ("layers", layers),
            ("blocks", blocks),
            ("kernel", kernel),
        ):
            require_positive_int(value, name)
        if not 2 <= levels <= 256:
            raise ValueError(f"levels must lie in 2..256, got {levels}")
        if classes is not None:
            require_positive_int(classes, "classes")
        self.event_shape, self.levels, self.classes = (length,), levels, classes
        self.first = CausalEmbedding(levels, channels, kernel)
        dilations = [2**i for i in range(layers)] * blocks
        gated = (
            GatedLayer(channels, skip, kernel, dilation, classes, residual=k + 1 < len(dilations))
            for k, dilation in enumerate(dilations)
        )
        self.layers = cast(Sequence[GatedLayer], nn.ModuleList(gated))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, skip, 1), nn.ReLU(), nn.Conv1d(skip, levels, 1))

    @property
    def receptive_field(self) -> int:
        """R = 1 + (k - 1) Σ δ: how many features of the first layer a conditional sees through the dilated ones."""
        return 1 + sum(layer.conv.reach for layer in self.layers)

    @property
    def samples_seen(self) -> int:
        """How many samples before its own a conditional sees: R + k - 1, for the first layer has k taps as well."""
        return self.receptive_field + self.first.kernel - 1

    def forward(
        self, x: Float[Tensor, "batch time"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch levels time"]:
        """A logit for each level of every sample given those before it, of which the first has none: its logits
        come from the zeros of the padding, as learned. Raises as `log_prob`."""
        return self._logits(self._codes(x, label), label, x.dtype)

    def log_prob(
        self, x: Float[Tensor, "batch time"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """log p(x), or log p(x | label), in nats. Without autocast, in which it would be wrong by nats.

        Raises:
            TypeError: x has no floating dtype, or label is no integer tensor.
            ValueError: a wrong shape, NaN, values that are no level; a label missing, out of range or not asked for.
        """
        with torch.autocast(x.device.type if isinstance(x, Tensor) else "cpu", enabled=False):
            return -self._negative(x, label)

    def loss(self, x: Float[Tensor, "batch time"], label: Int[Tensor, " batch"] | None = None) -> Loss:
        """-log p(x). Raises as `log_prob`."""
        negative = self._negative(x, label)
        return Loss(negative, {"negative log-likelihood": negative}, "nats")

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        label: Int[Tensor, " n"] | None = None,
        length: int | None = None,
    ) -> Float[Tensor, "n length"]:
        """One sample after the other, from the logits that `forward` would give, at a fraction of its cost.

        Args:
            length: how many samples; None is the model's own.

        Raises ValueError or TypeError for a label as `log_prob` does.
        """
        length = self.event_shape[0] if length is None else length
        require_positive_int(n, "n")
        require_positive_int(length, "length")
        require_label(label, self.classes, n)
        return self._sample(self._uniforms(length, n, generator), label)

    @torch.no_grad()
    def complete(
        self,
        x: Float[Tensor, "n time"],
        length: int | None = None,
        generator: torch.Generator | None = None,
        label: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n length"]:
        """Draw the rest of sounds that begin with x: a sample of p(rest|x), x itself before it.

        Args:
            length: of the whole; None is the model's own.

        Raises as `log_prob`, and ValueError for a length below that of x.
        """
        codes = self._codes(x, label)
        length = self.event_shape[0] if length is None else length
        require_positive_int(length, "length")
        if length < x.shape[1]:
            raise ValueError(f"length must be that of x at least, {x.shape[1]}, got {length}")
        return self._sample(self._uniforms(length, len(x), generator), label, codes)

    def _uniforms(self, length: int, n: int, generator: torch.Generator | None) -> Float[Tensor, "length n"]:
        like = next(self.parameters())
        return torch.rand(length, n, generator=generator, device=like.device, dtype=like.dtype)

    def _sample(
        self,
        uniforms: Float[Tensor, "length n"],
        label: Tensor | None,
        given: Int64[Tensor, "n given"] | None = None,
    ) -> Float[Tensor, "n length"]:
        """Each level by the inverse of its distribution function; those `given` are kept as they are."""
        with torch.autocast(uniforms.device.type, enabled=False):
            step = Step(self, len(uniforms), uniforms.shape[1], label)
            codes = [] if given is None else list(given.unbind(1))
            for t, uniform in enumerate(uniforms):
                logits = step(t, codes)
                if t == len(codes):
                    codes.append(inverse_cdf(logits, uniform).long())
        return mu_law_decode(torch.stack(codes, 1), self.levels, uniforms.dtype)

    def _codes(self, x: Tensor, label: Tensor | None) -> Int64[Tensor, "batch time"]:
        require_events(x, tuple(getattr(x, "shape", ()))[1:])
        if x.ndim != 2 or not x.shape[1]:
            raise ValueError(f"x must have shape (batch, time), with one sample or more, got {tuple(x.shape)}")
        require_label(label, self.classes, len(x))
        inside = x.abs() <= 1
        position = mu_law_position(torch.where(inside, x, 0), self.levels)
        codes = position.round()
        wrong = ~inside | ((position - codes).abs() > OFF_LEVEL)
        if wrong.any():
            raise ValueError(
                f"x must hold only the {self.levels} levels of the μ-law, got {x[wrong][0].item():.6g}; "
                f"use companion.data.quantise(x, levels={self.levels})"
            )
        return codes.long()

    def _logits(self, codes: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        h, total = self.first(codes), 0
        for layer in self.layers:
            h, skip = layer(h, label)
            total = total + skip
        # Under autocast the network answers in bfloat16; the probabilities are computed in the type of x.
        return self.head(total).to(dtype)

    def _negative(self, x: Tensor, label: Tensor | None) -> Float[Tensor, " batch"]:
        codes = self._codes(x, label)
        return F.cross_entropy(self._logits(codes, label, x.dtype), codes, reduction="none").sum(1)


class CausalEmbedding(nn.Module):
    """A causal convolution of one-hot codes, one step late: out[t] = Σ_i w[i][code[t - 1 - i]] + bias, i = 0 … k - 1.

    The product of a matrix and a one-hot vector is one of its columns, which is looked up. Nothing stands for what is
    before the first code.
    """

    def __init__(self, levels: int, channels: int, kernel: int):
        super().__init__()
        self.kernel = kernel
        # As large as those of a convolution of k one-hot vectors, k of whose inputs are 1.
        self.weight = nn.Parameter(torch.empty(kernel, levels, channels).uniform_(-(kernel**-0.5), kernel**-0.5))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, codes: Int64[Tensor, "batch time"]) -> Float[Tensor, "batch channels time"]:
        taps = [
            F.pad(F.embedding(codes[:, : -1 - i], weight), (0, 0, min(1 + i, codes.shape[1]), 0))
            for i, weight in enumerate(self.weight)
        ]
        return (sum(taps) + self.bias).mT


class GatedLayer(nn.Module):
    """A dilated convolution, a gate, and a 1 × 1 convolution to what is added to the input and what is passed up
    (van den Oord et al. 2016c, fig. 4, eq. 2, sec. 2.5)."""

    def __init__(self, channels: int, skip: int, kernel: int, dilation: int, classes: int | None, residual: bool):
        super().__init__()
        self.conv = DilatedCausalConv1d(channels, 2 * channels, kernel, dilation)
        self.label_bias = LabelBias(classes, 2 * channels)
        self.sizes = [channels if residual else 0, skip]
        self.mix = nn.Conv1d(channels, sum(self.sizes), 1)

    def forward(self, h: Float[Tensor, "batch channels time"], label: Tensor | None) -> tuple[Tensor, Tensor]:
        residual, skip = self.mix(gate(self.label_bias(self.conv(h), label))).split(self.sizes, 1)
        return (h + residual if self.sizes[0] else h), skip


class Step:
    """`WaveNet` for one sample after the other: its logits at t from the codes so far, the last of which are new to it.

    All gates write into one row of features, (channels and a 1) for each layer. Through the ones come the biases of
    the 1 × 1 convolutions, and one product with the row is the sum of all that is passed up.
    """

    def __init__(self, model: WaveNet, length: int, batch: int, label: Tensor | None):
        like = model.first.bias
        self.first = model.first
        self.bias = like.expand(batch, -1)
        features = like.new_ones(batch, len(model.layers), len(like) + 1)
        self.features = features.flatten(1)
        self.gates = like.new_empty(batch, 2 * len(like))
        self.halves = self.gates.chunk(2, 1)
        queues, skips = [Queue(layer.conv, batch, length) for layer in model.layers], []
        self.layers: list[tuple[Queue, Tensor, Tensor, Tensor, Tensor, Queue | None]] = []
        self.entrance = queues[0]
        for layer, queue, above, row in zip(model.layers, queues, [*queues[1:], None], features.unbind(1), strict=True):
            bias = layer.label_bias(layer.conv.bias.expand(batch, -1), label)
            mix = torch.cat([layer.mix.weight[:, :, 0].T, _bias(layer.mix)[None]])
            residual, skip = mix.split(layer.sizes, 1)
            skips.append(skip)
            self.layers.append((queue, bias, row[:, :-1], row, residual.contiguous(), above))
        self.skips = torch.cat(skips)
        head = [conv for conv in model.head if isinstance(conv, nn.Conv1d)]
        self.head = [(conv.weight[:, :, 0].T.contiguous(), _bias(conv)) for conv in head]

    def __call__(self, t: int, codes: list[Int64[Tensor, " batch"]]) -> Float[Tensor, "batch levels"]:
        h = self.entrance.at(t).copy_(self.bias)
        for i in range(min(t, self.first.kernel)):
            h.add_(self.first.weight[i][codes[t - 1 - i]])
        filters, gates = self.halves
        for queue, bias, gated, row, residual, above in self.layers:
            queue(t, bias, self.gates)
            torch.mul(filters.tanh_(), gates.sigmoid_(), out=gated)
            if above is not None:
                h = torch.addmm(h, row, residual, out=above.at(t))
        h = self.features @ self.skips
        for matrix, bias in self.head:
            h = torch.addmm(bias, h.relu_(), matrix)
        return h


def _bias(conv: nn.Conv1d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
