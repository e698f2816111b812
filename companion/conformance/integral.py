"""The integral of a density over the line or the plane, and how far it may be off.

Cells are halved where halving them moves the integral, or where a peak may lie between their nodes, so that kinks,
jumps and narrow peaks are resolved; a map to infinity takes in the tails.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from companion.conformance.outcomes import Fault, Undecided, per_example, show

# What a model is asked for at once.
ROWS = 1 << 16


def _product(axis: Tensor, dim: int) -> Tensor:
    return torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)


def _interpolatory(nodes: tuple[float, ...]) -> Tensor:
    """The weights that integrate each power below their number over [0, 1]."""
    powers = torch.arange(len(nodes), dtype=torch.float64)
    return torch.linalg.solve(torch.tensor(nodes, dtype=torch.float64) ** powers[:, None], 1 / (powers + 1))


# Of a cell's edge, in 0 to 1: Lobatto's, with the outer ones an ulp of float32 inside. A jump cannot hide between the
# nodes of two cells, and no node lies where a density that starts at 0 may be infinite.
NODES = (1e-7, (1 - 0.2**0.5) / 2, (1 + 0.2**0.5) / 2, 1 - 1e-7)
RULE = {dim: _product(_interpolatory(NODES), dim).prod(1) for dim in (1, 2)}
MOST_HALVINGS = 30
# Of a mesh, or four times as many as it starts with.
MOST_NODES = 1 << 18


def log_density(log_prob: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """log p(x), one number for each example; -inf is no fault, NaN and inf are."""
    with torch.no_grad():
        logs = torch.cat([per_example(log_prob, rows, "log_prob") for rows in x.split(ROWS)])
    wrong = logs.isnan() | (logs == math.inf)
    if wrong.any():
        i = int(wrong.nonzero()[0])
        why = "the logarithm of a logit where a probability is meant, or of a negative number?"
        raise Fault(f"log_prob is {logs[i]} at {show(x, i)}: {why} It must be -inf where the density is zero")
    return logs


class Space(NamedTuple):
    """The line or plane, where x is 2 · reach · t up to |t| = 1/2, and infinite at |t| = 1.

    `spots` (spots, dim) are places t with a log density of `heights` (spots,) that the nodes must not miss.
    """

    reach: float
    dim: int
    dtype: torch.dtype
    spots: Tensor
    heights: Tensor


def whole_space(log_prob: Callable, reach: float, dim: int, dtype: torch.dtype, seen: Tensor | None) -> Space:
    if seen is None:
        return Space(reach, dim, dtype, torch.zeros(0, dim).double(), torch.zeros(0).double())
    x = seen.double()
    t = torch.where(x.abs() <= reach, x / (2 * reach), x.sign() * (1 - reach / (2 * x.abs())))
    return Space(reach, dim, dtype, t, log_density(log_prob, seen.to(dtype)).double())


class Mesh(NamedTuple):
    """Nodes (nodes, dim), log p there and weights (nodes,), in float64, and how far their sum may be off."""

    nodes: Tensor
    log_p: Tensor
    weights: Tensor
    error: float

    @property
    def mass(self) -> Tensor:
        return self.log_p.exp() * self.weights


def cells_for(points: int) -> int:
    """How many cells have that many nodes, once halved twice."""
    return math.ceil(points / (4 * len(NODES)))


def integral(
    log_prob: Callable, cells: int, space: Space, tolerance: float, most: int = MOST_NODES
) -> tuple[float, float, Mesh]:
    """The integral over all space, its error, and the mesh within reach."""
    near = _adaptive(log_prob, _corners(-0.5, 0.5, cells, space.dim), 1 / cells, space, tolerance, most)
    total = float(near.mass.sum())
    around = 4 * math.ceil(cells / 8)
    outer = _corners(-1, 1, around, space.dim)
    outer = outer[((outer < -0.5) | (outer >= 0.5)).any(1)]
    try:
        far = _adaptive(log_prob, outer, 2 / around, space, tolerance, most)
    except Exception:
        # A network may well overflow where no data are ever: that matters where mass is missing.
        if abs(total - 1) <= tolerance:
            return total, near.error, near
        raise
    return total + float(far.mass.sum()), near.error + far.error, near


def _corners(low: float, high: float, cells: int, dim: int) -> Tensor:
    """The lowest corners of equal cells, (cells^dim, dim)."""
    return _product(torch.linspace(low, high, cells + 1, dtype=torch.float64)[:-1], dim)


def _adaptive(log_prob: Callable, corners: Tensor, width: float, space: Space, tolerance: float, most: int) -> Mesh:
    """Nodes for the integral over cells of t, halved until it is as good as the tolerance or the nodes are spent."""
    dim, size = space.dim, len(NODES) ** space.dim
    halves = _product(torch.tensor([0.0, 0.5], dtype=torch.float64), dim)
    spots, heights = space.spots, space.heights
    homes = ((spots[:, None] >= corners) & (spots[:, None] < corners + width)).all(2)
    inside, homes = homes.any(1), homes.int().argmax(1)
    spots, heights, homes = spots[inside], heights[inside], homes[inside]

    settled: list[tuple[Tensor, ...]] = []
    error, spent, most = 0.0, 0, max(most, 4 * len(corners) * (4 * len(NODES)) ** dim)
    coarse = _evaluate(log_prob, corners, width, space)
    inherited = torch.full((len(corners),), math.inf, dtype=torch.float64)
    for level in range(MOST_HALVINGS):
        halved, width = (corners[:, None] + width * halves).flatten(0, 1), width / 2
        fine = _evaluate(log_prob, halved, width, space)
        spent += fine.log_p.numel()
        x, log_p, weights = (v.reshape(len(corners), -1, *v.shape[2:]) for v in fine)
        moved = ((log_p.exp() * weights).sum(1) - (coarse.log_p.exp() * coarse.weights).sum(1)).abs()
        off = torch.maximum(moved, inherited)
        # A peak between the nodes shows by the slope beside it, as if log p rose as much again, or by a sample.
        top, rise = _slope(coarse.log_p + (coarse.weights / RULE[dim]).log())
        doubt = torch.where(rise > 3, torch.maximum(off, (top + rise).exp()), off)
        seen = torch.maximum(log_p.amax(1), coarse.log_p.amax(1))
        peak = torch.full_like(seen, -math.inf).scatter_reduce(0, homes, heights, "amax")
        doubt[peak > seen + 3] = math.inf

        order = doubt.argsort()
        keep = torch.empty_like(order, dtype=torch.bool)
        keep[order] = doubt[order].cumsum(0) <= tolerance / MOST_HALVINGS
        affordable = max(most - spent, 0) // (4**dim * size) if level < MOST_HALVINGS - 1 else 0
        keep[order[: max(len(order) - affordable, 0)]] = True
        settled.append((x[keep].flatten(0, 1), log_p[keep].flatten(), weights[keep].flatten()))
        error += float(off[keep].sum())
        if keep.all():
            break
        stay = ~keep[homes]
        spots, heights, homes = spots[stay], heights[stay], homes[stay]
        which = (spots >= corners[homes] + width).long() @ 2 ** torch.arange(dim).flip(0)
        homes = ((~keep).cumsum(0) - 1)[homes] * 2**dim + which
        again = (~keep).repeat_interleave(2**dim)
        corners, coarse = halved[again], _Values(*(v[again] for v in fine))
        # Of a smooth density a halving leaves a 64th. What seems to vanish faster does so by chance.
        inherited = (moved[~keep] / (64 * 2**dim)).repeat_interleave(2**dim)
    nodes, log_p, weights = (torch.cat(parts) for parts in zip(*settled, strict=True))
    return Mesh(nodes, log_p, weights, error)


class _Values(NamedTuple):
    """Per cell: the nodes x, log p there, and the weights of the integral over x."""

    x: Tensor
    log_p: Tensor
    weights: Tensor


def _evaluate(log_prob: Callable, corners: Tensor, width: float, space: Space) -> _Values:
    t = corners[:, None] + width * _product(torch.tensor(NODES, dtype=torch.float64), space.dim)
    rest = (1 - t.abs()).clamp(1e-9, 0.5)
    x = space.reach * torch.where(t.abs() <= 0.5, 2 * t, t.sign() / (2 * rest))
    weights = RULE[space.dim] * (width * space.reach / (2 * rest.square())).prod(2)
    try:
        log_p = log_density(log_prob, x.flatten(0, 1).to(space.dtype))
    except ValueError as error:
        if "support" not in str(error):
            raise
        raise Undecided(
            "log_prob raises outside of its support, where the integral needs -inf: torch.distributions do with"
            " validate_args=False, but for the logarithm of a negative number, which takes torch.where"
        ) from error
    return _Values(x, log_p.double().reshape(weights.shape), weights)


def _slope(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of each cell's nodes, (cells, nodes), the highest, and how far the steepest of its neighbours is from it."""
    values = values.reshape(len(values), *[len(NODES)] * round(math.log(values.shape[1], len(NODES))))
    beside = []
    for axis in range(1, values.ndim):
        step = values.diff(dim=axis).abs()
        end = torch.zeros_like(values.narrow(axis, 0, 1))
        beside += [torch.cat([end, step], axis), torch.cat([step, end], axis)]
    # A step to zero density is a jump, and no slope.
    steepest = torch.stack(beside).nan_to_num(nan=0.0, posinf=0.0).amax(0).flatten(1)
    top = values.flatten(1).max(1)
    return top.values, steepest.gather(1, top.indices[:, None])[:, 0]
