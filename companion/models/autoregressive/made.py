"""The masked autoencoder for distribution estimation: Germain et al. (2015)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.models.autoregressive.binary import BinaryAutoregressive
from companion.nets.masked import MaskedLinear
from companion.validate import require_positive_int


class MADE(BinaryAutoregressive):
    """A network with as many outputs as inputs, and the connections cut that would show a pixel itself or a later one.

    Input d has degree m⁰(d), its place in the order, 1 to D. Hidden unit k has a degree m(k) of 1 to D - 1, the last
    place that it may see. Unit k keeps its connection to unit j of the layer below where m(k) ≥ m(j) (eqs. 8 and 12),
    and output d to hidden unit k where m⁰(d) > m(k) (eqs. 9 and 13). One pass gives all conditionals.

    Args:
        event_shape: the shape of one image, of two pixels at least.
        hidden: the widths of the hidden layers.
        classes: how many classes there are to condition on, by biases of their own in the first hidden layer and at
            the output; None for none.
        masks: seeds, each of which draws the degrees of all hidden units (secs. 4, 4.3). With several, training draws
            one of them for each batch, and the model is the equal mixture of all of them.
        shuffle: each seed also draws an order of the pixels (sec. 4.2); otherwise it is row by row.
        direct: also connect input d' to output d where m⁰(d) > m⁰(d').

    Raises ValueError for an argument that means nothing.

    >>> import torch
    >>> from companion.models import MADE
    >>> model = MADE((1, 2, 2), hidden=(8,))
    >>> x = torch.zeros(3, 1, 2, 2)
    >>> model.logits(x).shape, model.log_prob(x).shape
    (torch.Size([3, 1, 2, 2]), torch.Size([3]))
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] = (1, 28, 28),
        hidden: Sequence[int] = (500,),
        classes: int | None = None,
        masks: Sequence[int] = (0,),
        shuffle: bool = False,
        direct: bool = False,
    ):
        super().__init__(event_shape, classes)
        if self.pixels < 2:
            raise ValueError(f"event_shape must have two pixels at least, got {self.event_shape}")
        for name, value in (("hidden", hidden), ("masks", masks)):
            if not isinstance(value, Sequence) or not value:
                raise ValueError(f"{name} must be a sequence of integers, at least one, got {value!r}")
        for width in hidden:
            require_positive_int(width, "hidden")
        drawn = [_degrees(seed, self.pixels, hidden, shuffle) for seed in masks]
        degrees = [torch.stack(layer) for layer in zip(*drawn, strict=True)]
        layers = (MaskedLinear(down, up, strict=False) for down, up in pairwise(degrees))
        self.layers = cast(Sequence[MaskedLinear], nn.ModuleList(layers))
        places, last = degrees[0], degrees[-1]
        self.output = MaskedLinear(last, places, strict=True, bias=False)
        self.direct = MaskedLinear(places, places, strict=True, bias=False) if direct else None
        self.label_hidden_bias = None if classes is None else nn.Parameter(torch.zeros(classes, hidden[0]))

    def degrees(self, which: int = 0) -> list[Int[Tensor, " units"]]:
        """The degrees of the pixels, then of each hidden layer, in one of the masks."""
        return [self.layers[0].inputs[which], *(layer.outputs[which] for layer in self.layers)]

    def logits(
        self, x: Float[Tensor, " batch *event"], label: Int[Tensor, " batch"] | None = None, which: int = 0
    ) -> Float[Tensor, " batch *event"]:
        """The logit of each pixel given those before it, by `which` of the masks. Raises as `log_prob`."""
        self._require(x, label)
        if which not in self._components():
            raise ValueError(f"which must be from 0 to {len(self._components()) - 1}, got {which!r}")
        return self._logits(x.flatten(1), label, which).view_as(x)

    def _components(self) -> range:
        return range(len(self.output.outputs))

    def _order(self, which: int) -> Int[Tensor, " pixels"]:
        return self.degrees(which)[0].argsort()

    def _logits(self, x: Tensor, label: Tensor | None, which: int) -> Tensor:
        h = x
        for i, layer in enumerate(self.layers):
            h = layer(h, which)
            if i == 0 and label is not None and self.label_hidden_bias is not None:
                h = h + self.label_hidden_bias[label]
            h = F.relu(h)
        logits = self.output(h, which) + self._pixel_bias(label)
        return logits if self.direct is None else logits + self.direct(x, which)

    def _draw(self, thresholds: Tensor, label: Tensor | None, which: int) -> tuple[Tensor, Tensor]:
        # With the units of each layer sorted by degree, what a unit may see is a prefix of the layer below, and the
        # units that a new pixel completes are one slice: each is computed once, and no mask is needed.
        degrees = self.degrees(which)
        sort = [layer.argsort(stable=True) for layer in degrees]
        # done[l][d]: the units of layer l of degree d at most
        done = [layer.bincount(minlength=self.pixels + 1).cumsum(0).tolist() for layer in degrees]
        order, n = sort[0], len(thresholds)
        weights = [
            layer.weight[up[:, None], down] for layer, (down, up) in zip(self.layers, pairwise(sort), strict=True)
        ]
        output = self.output.weight[order[:, None], sort[-1]]
        direct = None if self.direct is None else self.direct.weight[order[:, None], order]
        hidden = [layer.bias[up].expand(n, -1).T.contiguous() for layer, up in zip(self.layers, sort[1:], strict=True)]
        if label is not None and self.label_hidden_bias is not None:
            hidden[0] += self.label_hidden_bias[label][:, sort[1]].T
        logits = self._pixel_bias(label).expand(n, -1)[:, order].T.contiguous()
        thresholds = thresholds[:, order].T.contiguous()
        x = torch.empty_like(thresholds)
        for d in range(self.pixels):
            row, seen = slice(d, d + 1), done[-1][d]
            logits[row].addmm_(output[row, :seen], hidden[-1][:seen])
            if direct is not None:
                logits[row].addmm_(direct[row, :d], x[:d])
            torch.lt(thresholds[d], logits[d], out=x[d])
            below = x
            for i, weight in enumerate(weights):
                new, inputs = slice(done[i + 1][d], done[i + 1][d + 1]), done[i][d + 1]
                if new.start < new.stop:
                    hidden[i][new].addmm_(weight[new, :inputs], below[:inputs]).relu_()
                below = hidden[i]
        back = order.argsort()
        return x[back].T, logits[back].T


def _degrees(seed: int, pixels: int, hidden: Sequence[int], shuffle: bool) -> list[Int[Tensor, " units"]]:
    """Of the pixels and of each hidden layer. No hidden unit is below all of the layer under it, as it would be cut off
    from the input (sec. 4.1)."""
    generator = torch.Generator().manual_seed(seed)
    degrees = [torch.arange(pixels) if not shuffle else torch.randperm(pixels, generator=generator)]
    degrees[0] += 1
    for width in hidden:
        degrees.append(torch.randint(int(degrees[-1].min()), pixels, (width,), generator=generator))
    return degrees
