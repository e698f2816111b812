"""NICE (Dinh et al. 2015, "NICE: non-linear independent components estimation")."""

import math
from collections.abc import Sequence

from companion.models.flows.coupling import AdditiveCoupling, Halves
from companion.models.flows.flow import Base, Flow, require_classes, require_shape
from companion.models.flows.layers import Interleave, Scaling, Unflatten
from companion.nets.coupling import CouplingMLP
from companion.validate import require_positive_int


class NICE(Flow):
    """Additive couplings, which keep volumes, and one diagonal scaling next to z, which does not.

    The even and the odd coordinates take turns (sec. 5.1), the image taken row by row.

    Args:
        event_shape: an even number of coordinates in all.
        couplings: at least two, so that every coordinate is changed.
        hidden: the widths of each network's hidden layers.
        base: "logistic", the paper's choice for images, or "gaussian".
        classes: of labels, a bias for each in the networks' first layer; None for none.

    Raises ValueError for an odd number of coordinates, and for other arguments that mean nothing.

    >>> import torch
    >>> from companion.models import NICE
    >>> model = NICE((2,), hidden=(8,))
    >>> model.log_prob(torch.zeros(5, 2)).shape, model.sample(3).shape
    (torch.Size([5]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] = (1, 28, 28),
        couplings: int = 4,
        hidden: Sequence[int] = (1000,) * 5,
        base: Base = "logistic",
        classes: int | None = None,
    ):
        require_shape(event_shape)
        require_classes(classes)
        require_couplings(couplings)
        dims = math.prod(event_shape)
        layers = [
            AdditiveCoupling(Halves(dims, flip=bool(k % 2)), CouplingMLP(dims // 2, hidden, dims // 2, classes))
            for k in range(couplings)
        ]
        super().__init__(event_shape, [Scaling(dims), *layers, Interleave(), Unflatten(event_shape)], base, classes)


def require_couplings(couplings: int) -> None:
    require_positive_int(couplings, "couplings")
    if couplings < 2:
        raise ValueError(f"couplings must be 2 at least, or some coordinates would never change, got {couplings}")
