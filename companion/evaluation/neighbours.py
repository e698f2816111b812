"""Do samples look like the data, and does the data look like the samples? Two answers, from nearest neighbours.

    precision_recall(fake, real), density_coverage(fake, real)

A point's ball reaches to its k-th nearest neighbour in its own set, and includes it. A union of balls stands for the
support of a distribution: that of the data, to ask for realistic samples, and that of the samples, to ask for
diversity.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from companion.evaluation.distances import squared_distances
from companion.evaluation.features import Conditions, Samples, as_pair, with_conditions
from companion.validate import require_positive_int


@dataclass(frozen=True)
class PrecisionRecall:
    """What `precision_recall` found. It prints itself with its conditions.

    Attributes:
        precision: the share of the samples within a ball of the data.
        recall: the share of the data within a ball of the samples.
        k: which neighbour a ball reaches to.
        dim: of the features.
    """

    precision: float
    recall: float
    k: int
    dim: int
    conditions: Conditions

    def __str__(self) -> str:
        found = f"precision {self.precision:.3f}, recall {self.recall:.3f}"
        return with_conditions(found, f"k = {self.k}, {self.dim} dimensions", self.conditions)


@dataclass(frozen=True)
class DensityCoverage:
    """What `density_coverage` found. It prints itself with its conditions.

    Attributes:
        density: in how many balls of the data a sample lies, over k, on average; 1 is expected if both have one
            distribution, and it may be more.
        coverage: the share of the data with a sample in its ball.
        expected_coverage: if both have one distribution, see `expected_coverage`.
        k, dim: see `PrecisionRecall`.
    """

    density: float
    coverage: float
    expected_coverage: float
    k: int
    dim: int
    conditions: Conditions

    def __str__(self) -> str:
        return with_conditions(
            f"density {self.density:.3f}, coverage {self.coverage:.3f}",
            f"1 and {self.expected_coverage:.3f} expected of fresh data",
            f"k = {self.k}, {self.dim} dimensions",
            self.conditions,
        )


def precision_recall(x: Samples, reference: Samples, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eqs. 1 and 2), with balls that include their surface.

    Each is the other with the arguments exchanged. Neither is 1 for two samples of one distribution, and one outlier
    among the data makes a ball that lets nonsense pass as precise.

    Args:
        x: samples of the model.
        reference: the data.

    Raises TypeError or ValueError for features that are not like that (see `Features`), of two nets or of two
    dimensions, or not more than k of them.
    """
    x, reference = as_pair(x, reference)
    conditions, (x, reference) = Conditions.taken(x, reference), (x.values.detach(), reference.values.detach())
    _require_neighbours(k, x, reference)
    precision = _within(x, reference, k)[0].double().mean().item()
    recall = _within(reference, x, k)[0].double().mean().item()
    return PrecisionRecall(precision, recall, k, x.shape[1], conditions)


def density_coverage(x: Samples, reference: Samples, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020), with balls that include their surface.

    All balls are those of the data: an outlier among it has a ball that is one of many for density, and one point of
    many for coverage.

    Raises as `precision_recall`, but only of the data there have to be more than k.
    """
    x, reference = as_pair(x, reference)
    conditions, (x, reference) = Conditions.taken(x, reference), (x.values.detach(), reference.values.detach())
    _require_neighbours(k, reference)
    balls, covered = _within(x, reference, k)[1:]
    return DensityCoverage(
        balls.double().mean().item() / k,
        covered.double().mean().item(),
        expected_coverage(len(reference), len(x), k),
        k,
        x.shape[1],
        conditions,
    )


def expected_coverage(n: int, m: int, k: int = 5) -> float:
    """The mean coverage of n data points by m samples of the same continuous distribution (Naeem et al. 2020):
    1 - (n-1)…(n-k) / (m+n-1)…(m+n-k), whatever the distribution and its dimension.

    A point of the data is missed if its k nearest among the n - 1 others and the m samples are all from the data.

    Raises ValueError unless all three are positive integers, and k below n.
    """
    for name, value in (("n", n), ("m", m), ("k", k)):
        require_positive_int(value, name)
    if k >= n:
        raise ValueError(f"k must be below n, got k = {k}, n = {n}")
    return 1 - math.prod((n - i) / (m + n - i) for i in range(1, k + 1))


def _within(
    x: Float[Tensor, "m dim"], centres: Float[Tensor, "n dim"], k: int
) -> tuple[Bool[Tensor, " m"], Int64[Tensor, " m"], Bool[Tensor, " n"]]:
    """Which x lie in a ball around a centre, in how many, and which balls have an x."""
    # A point is its own nearest one, so that the k-th of the others comes after k.
    radii = [part.topk(k + 1, largest=False).values[:, k] for part in squared_distances(centres, centres)]
    squared_radius = torch.cat(radii)
    # Two routes to one distance differ by rounding; a point on the surface is inside, as is a copy of a centre at
    # radius zero. Points near the surface have a squared norm of 2 (norm + squared_radius) at most.
    norm = (centres.double() - centres.double().mean(0)).square().sum(1)
    squared_radius += 16 * centres.shape[1] * torch.finfo(torch.float64).eps * (norm + squared_radius)
    counts, covered = [], torch.zeros(len(centres), dtype=torch.bool, device=centres.device)
    for squared in squared_distances(x, centres):
        inside = squared <= squared_radius
        counts.append(inside.sum(1))
        covered |= inside.any(0)
    balls = torch.cat(counts)
    return balls > 0, balls, covered


def _require_neighbours(k: int, *samples: Tensor) -> None:
    require_positive_int(k, "k")
    if k >= (fewest := min(map(len, samples))):
        raise ValueError(f"k must be below the number of points, {fewest}, got {k}")
