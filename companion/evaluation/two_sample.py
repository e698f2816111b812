"""Are two sets of samples from the same density? From the samples alone.

energy_distance(samples, test), energy_distance(train, test)
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.validate import require_events

# Rows of distances at a time.
_CHUNK = 1000


def energy_distance(x: Float[Tensor, " n *event"], y: Float[Tensor, " m *event"]) -> float:
    """2 E‖X - Y‖ - E‖X - X'‖ - E‖Y - Y'‖, from all pairs (Székely and Rizzo 2013, eq. 1.1): zero if both have the same
    distribution, and only then, in the unit of x.

    Unbiased, as no point is compared with itself, and so below zero at times: what counts is how far it is above that
    of two sets of data.

    Raises TypeError or ValueError for less than two examples, other shapes, or values that are not finite.
    """
    require_events(x, tuple(x.shape[1:]))
    require_events(y, tuple(x.shape[1:]), "y")
    for name, sample in (("x", x), ("y", y)):
        if len(sample) < 2:
            raise ValueError(f"{name} must hold at least two examples, got {len(sample)}")
    x, y = (sample.detach().double().flatten(1) for sample in (x, y))
    within = (_total(sample, sample) / (len(sample) * (len(sample) - 1)) for sample in (x, y))
    return 2 * _total(x, y) / (len(x) * len(y)) - sum(within)


def _total(x: Tensor, y: Tensor) -> float:
    # By products, in double precision: a point is about 1e-8 from itself.
    return sum(torch.cdist(part, y).sum().item() for part in x.split(_CHUNK))
