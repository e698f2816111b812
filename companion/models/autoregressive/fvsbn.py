"""The fully visible sigmoid belief network: Frey (1998)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.models.autoregressive.binary import BinaryAutoregressive
from companion.nets.masked import MaskedLinear


class FVSBN(BinaryAutoregressive):
    """Each pixel is a logistic regression on the pixels before it: p(x_d = 1|x_<d) = σ(a_d0 + Σ_{j<d} a_dj x_j).

    The pixels are taken row by row. It starts as independent fair coins.

    Args:
        event_shape: the shape of one image.
        classes: how many classes there are to condition on, by a bias of their own; None for none.

    >>> import torch
    >>> from companion.conformance import all_binary
    >>> from companion.models import FVSBN
    >>> model = FVSBN((1, 2, 2))
    >>> round(model.log_prob(all_binary((1, 2, 2), torch.float32)).exp().sum().item(), 5)  # over all 16 images
    1.0
    """

    def __init__(self, event_shape: tuple[int, ...] = (1, 28, 28), classes: int | None = None):
        super().__init__(event_shape, classes)
        places = torch.arange(self.pixels)
        self.regressions = MaskedLinear(places, places, strict=True, bias=False)
        torch.nn.init.zeros_(self.regressions.weight)

    def logits(self, x: Float[Tensor, " batch *event"], label: Int[Tensor, " batch"] | None = None) -> Tensor:
        """The logit of each pixel given those before it, (batch, *event). Raises as `log_prob`."""
        self._require(x, label)
        return self._logits(x.flatten(1), label, 0).view_as(x)

    def _logits(self, x: Tensor, label: Tensor | None, component: int) -> Tensor:
        return self.regressions(x) + self._pixel_bias(label)

    def _draw(self, thresholds: Tensor, label: Tensor | None, component: int) -> tuple[Tensor, Tensor]:
        # Of the D² weights, the logit of a pixel needs only those of the pixels drawn so far, which are one slice.
        thresholds, weight = thresholds.T.contiguous(), self.regressions.weight
        logits = self._pixel_bias(label).expand_as(thresholds.T).T.contiguous()
        x = torch.empty_like(thresholds)
        for d in range(self.pixels):
            logits[d : d + 1].addmm_(weight[d : d + 1, :d], x[:d])
            torch.lt(thresholds[d], logits[d], out=x[d])
        return x.T, logits.T
