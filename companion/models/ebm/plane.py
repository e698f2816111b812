"""What nobody knows of an energy-based model, known in the plane: its normaliser, and how far it is from the truth."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from companion.validate import require_positive_int

# Points at a time.
_CHUNK = 2**15

# Of the model's mass, this share at most may lie in the outermost tenth of the reach, and of the data's
# outside the square.
_MISSED = 1e-3


class Divergence(NamedTuple):
    """How far a model is from the density that it should have.

    Attributes:
        kl: KL(p_data‖p), nats.
        total_variation: ½ ∫ |p_data - p| dx, from 0 to 1.
        log_normaliser: log Z, nats.
    """

    kl: float
    total_variation: float
    log_normaliser: float


@torch.no_grad()
def log_normaliser(
    energy: Callable[[Tensor], Tensor],
    reach: float = 6.0,
    points: int = 300,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> float:
    """log Z = log ∫ e^{-E(x)} dx over [-reach, reach]², by the midpoint rule on points × points cells, in nats.

    Args:
        energy: (n, 2) to (n,).
        dtype, device: of the points that it is given; torch's defaults where None.

    Raises ValueError when more than a thousandth of the mass lies near an edge, so that more of it may lie beyond.
    """
    nodes, cell = _cells(reach, points, dtype, device)
    return float(_log_masses(energy, nodes, cell, reach).logsumexp(0))


@torch.no_grad()
def divergence(
    energy: Callable[[Tensor], Tensor],
    target: Distribution,
    reach: float = 6.0,
    points: int = 300,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Divergence:
    """From the data's density to e^{-E}/Z, on the cells of `log_normaliser`. Where it has edges, cells should end.

    Args:
        target: a density in the plane, such as those of `companion.data`, on the same device.

    Raises ValueError as `log_normaliser`, and when the target's mass in the square is not 1 to a thousandth.
    """
    nodes, cell = _cells(reach, points, dtype, device)
    log_model = _log_masses(energy, nodes, cell, reach)
    log_z = log_model.logsumexp(0)
    log_model -= log_z
    log_data = torch.cat([target.log_prob(part).double() for part in nodes.split(_CHUNK)]) + math.log(cell)
    model, data = log_model.exp(), log_data.exp()
    if not abs(data.sum() - 1) <= _MISSED:
        raise ValueError(f"target must have a mass of 1 in the square of reach {reach:g}, got {float(data.sum()):.6g}")
    kl = torch.where(data > 0, data * (log_data - log_model), 0.0).sum()
    return Divergence(float(kl), float((data - model).abs().sum() / 2), float(log_z))


def _cells(reach: float, points: int, dtype, device) -> tuple[Float[Tensor, "cells 2"], float]:
    """The centres of the cells, none of which is the origin for an even number of points, and a cell's area."""
    if isinstance(reach, bool) or not isinstance(reach, int | float) or not 0 < reach < math.inf:
        raise ValueError(f"reach must be above 0 and finite, got {reach!r}")
    require_positive_int(points, "points")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    side = 2 * reach / points
    axis = (torch.arange(points, dtype=torch.float64, device=device) + 0.5) * side - reach
    return torch.cartesian_prod(axis, axis).to(dtype), side**2


def _log_masses(
    energy: Callable[[Tensor], Tensor], nodes: Float[Tensor, "cells 2"], cell: float, reach: float
) -> Float[Tensor, " cells"]:
    """log of e^{-E} times the cell's area."""
    logs = math.log(cell) - torch.cat([energy(part).double() for part in nodes.split(_CHUNK)])
    if not torch.isfinite(logs).all():
        raise ValueError(f"energy must be finite, got {int((~torch.isfinite(logs)).sum())} NaN or infinite values")
    edge = float(logs.softmax(0)[nodes.abs().amax(1) > 0.9 * reach].sum())
    if edge > _MISSED:
        raise ValueError(f"reach must be larger: {edge:.2g} of the mass lies within a tenth of {reach:g} from the edge")
    return logs
