"""The masked autoregressive flow (Papamakarios et al. 2017): one pass normalises, one pass per coordinate generates."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion.models.flows.coupling import ScaledTanh
from companion.models.flows.flow import Flow, require_classes, require_shape
from companion.models.flows.layers import Reverse, Transformed, Unflatten
from companion.nets.coupling import require_widths
from companion.nets.label import LabelBias
from companion.nets.masked import MaskedLinear
from companion.validate import require_positive_int


class MaskedAffine(nn.Module):
    """z_d = x_d e^{a(x_<d)} + b(x_<d), a and b of all coordinates from one masked network (eqs. 3 to 5).

    `inverse` is one pass. `forward` takes the coordinates one by one, each hidden unit computed once, when the last
    coordinate that it sees is there.

    Args:
        dims: coordinates.
        hidden: the widths of the hidden layers.
        classes: of labels, a bias for each in the first layer; None for none.
    """

    def __init__(self, dims: int, hidden: Sequence[int], classes: int | None = None):
        super().__init__()
        places = torch.arange(dims) + 1
        # Degrees from 1 to dims - 1, in rising order: what a unit may see is a prefix of the layer below.
        degrees = [places, *(1 + torch.arange(width) * max(dims - 1, 1) // width for width in hidden)]
        hidden_layers = (MaskedLinear(below, above, strict=False) for below, above in pairwise(degrees))
        self.hidden = cast(Sequence[MaskedLinear], nn.ModuleList(hidden_layers))
        self.output = MaskedLinear(degrees[-1], places.repeat(2), strict=True)
        self.label_bias = LabelBias(classes, hidden[0])
        self.log_scale = ScaledTanh(dims)
        # done[l][d]: the units of layer l of degree d at most
        self.done = [layer.bincount(minlength=dims + 1).cumsum(0).tolist() for layer in degrees]

    def inverse(self, x: Float[Tensor, "batch dims"], label: Tensor | None = None) -> Transformed:
        h = self.label_bias(self.hidden[0](x), label).relu()
        for layer in self.hidden[1:]:
            h = layer(h).relu()
        raw, b = self.output(h).to(x.dtype).chunk(2, 1)
        a = self.log_scale(raw)
        return torch.addcmul(b, x, a.exp()), a.sum(1)

    def forward(self, z: Float[Tensor, "batch dims"], label: Tensor | None = None) -> Transformed:
        n, dims = z.shape
        biases = [layer.bias.expand(n, -1) for layer in self.hidden]
        biases[0] = self.label_bias(biases[0], label)
        weight, bias = (t.unflatten(0, (2, dims)) for t in (self.output.weight, self.output.bias))
        known = [z[:, :0]] * (1 + len(self.hidden))  # of x and of each hidden layer
        log_scales = []
        for d in range(dims):
            last = known[-1]
            raw, b = F.linear(last, weight[:, d, : last.shape[1]], bias[:, d]).split(1, 1)
            a = self.log_scale.bound[d] * raw.tanh()
            log_scales.append(a)
            known[0] = torch.cat([known[0], (z[:, d : d + 1] - b) * (-a).exp()], 1)
            for i, layer in enumerate(self.hidden):
                new, inputs = slice(self.done[i + 1][d], self.done[i + 1][d + 1]), self.done[i][d + 1]
                if new.start < new.stop:
                    h = torch.addmm(biases[i][:, new], known[i][:, :inputs], layer.weight[new, :inputs].T).relu()
                    known[i + 1] = torch.cat([known[i + 1], h], 1)
        return known[0], -torch.cat(log_scales, 1).sum(1)


class MAF(Flow):
    """Masked autoregressive layers, the order of the coordinates reversed from one to the next (sec. 3.1).

    The log-scales are bounded as those of `RealNVP`; in the paper they are not.

    Args:
        event_shape: any; taken row by row.
        layers: how many.
        hidden: the widths of each network's hidden layers.
        classes: of labels, a bias for each in the networks' first layer; None for none.

    Raises ValueError for an argument that means nothing.

    >>> import torch
    >>> from companion.models import MAF
    >>> model = MAF((3,), hidden=(8,))
    >>> model.log_prob(torch.zeros(2, 3)).shape
    torch.Size([2])
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] = (2,),
        layers: int = 5,
        hidden: Sequence[int] = (64, 64),
        classes: int | None = None,
    ):
        require_shape(event_shape)
        require_classes(classes)
        require_positive_int(layers, "layers")
        require_widths(hidden)
        dims = math.prod(event_shape)
        stack = [layer for _ in range(layers) for layer in (MaskedAffine(dims, hidden, classes), Reverse())]
        super().__init__(event_shape, [*stack[:-1], Unflatten(event_shape)], "gaussian", classes)
