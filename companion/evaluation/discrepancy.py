"""Are two sets of samples from the same distribution? By the means of a kernel's features.

mmd(x, reference), kernel_inception_distance(fake, real, subset_size=500)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from companion.evaluation.distances import squared_distances
from companion.evaluation.features import Conditions, Samples, as_pair, with_conditions
from companion.validate import require_positive_int

Kernel = Callable[[Float[Tensor, "n dim"], Float[Tensor, "m dim"]], Float[Tensor, "n m"]]


@dataclass(frozen=True)
class GaussianKernel:
    """exp(-‖x - y‖² / 2h²). It is characteristic: the discrepancy is zero for equal distributions only."""

    bandwidth: float

    def __call__(self, x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
        return torch.cat([(part / (-2 * self.bandwidth**2)).exp() for part in squared_distances(x, y)])

    def __str__(self) -> str:
        return f"Gaussian kernel, h = {self.bandwidth:.4g}"


def cubic_kernel(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """(x·y / dim + 1)³ (Bińkowski et al. 2018). It sees the first three moments and nothing else."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def median_heuristic(x: Samples, reference: Samples) -> float:
    """The median distance between two of all points, x and reference together (Gretton et al. 2012, section 8): a
    bandwidth for `GaussianKernel`. For data in clusters it is wide: the kernel hardly sees what the clusters look like.

    Raises ValueError where it is zero, as more than half of the pairs are copies, and as `Features` and `mmd` do.
    """
    x, reference = as_pair(x, reference)
    pooled = torch.cat([x.values, reference.values]).detach()
    i, j = torch.triu_indices(len(pooled), len(pooled), 1, device=pooled.device)
    median = torch.cat(list(squared_distances(pooled, pooled)))[i, j].median().item()
    # Copies are at a distance of zero only up to rounding.
    if not median > 1e-12 * pooled.double().var(0).sum().item():
        raise ValueError("x and reference must differ in more than half of the pairs for a median distance above 0")
    return math.sqrt(median)


@dataclass(frozen=True)
class MaximumMeanDiscrepancy:
    """What `mmd` found. It prints itself with its conditions.

    Attributes:
        squared: the estimate of MMD². Unbiased, and so below zero at times.
        p: how likely at least such a value is if both have one distribution.
        permutations: from which p was counted.
        kernel: in words.
        dim: of the features.
    """

    squared: float
    p: float
    permutations: int
    kernel: str
    dim: int
    conditions: Conditions

    def __str__(self) -> str:
        return with_conditions(
            f"MMD² {self.squared:.4g}, p = {self.p:.3g}",
            f"{self.permutations} permutations, {self.kernel}, {self.dim} dimensions",
            self.conditions,
        )


def mmd(
    x: Samples, reference: Samples, kernel: Kernel | None = None, permutations: int = 999, seed: int = 0
) -> MaximumMeanDiscrepancy:
    """The maximum mean discrepancy, squared: E k(x, x') + E k(y, y') - 2 E k(x, y), by its unbiased estimator (Gretton
    et al. 2012, eq. 3), with a permutation test of equal distributions.

    The test rejects at p ≤ α with probability at most α under equal distributions, for any sample sizes: the sample
    itself counts as one of the permutations, and so p is at least 1 / (permutations + 1).

    It holds the kernel between all pairs, 8 (n + m)² bytes.

    Args:
        kernel: of (n, dim) and (m, dim) to (n, m). By default Gaussian with the bandwidth of `median_heuristic`,
            which stays the same under permutations, and so leaves the test exact.
        seed: of the permutations.

    Raises:
        TypeError, ValueError: features that are not like that (see `Features`), of two nets or of two dimensions; a
            kernel of another shape or with values that are not finite.
    """
    require_positive_int(permutations, "permutations")
    x, reference = as_pair(x, reference)
    pooled, n = torch.cat([x.values.double(), reference.values.double()]).detach(), len(x)
    if kernel is None:
        kernel = GaussianKernel(median_heuristic(x, reference))
    matrix = kernel(pooled, pooled)
    if matrix.shape != (len(pooled), len(pooled)) or not torch.isfinite(matrix).all():
        raise ValueError(
            f"kernel must give a finite matrix of shape ({len(pooled)}, {len(pooled)}), got {tuple(matrix.shape)}"
            f" with {int((~torch.isfinite(matrix)).sum())} NaN or infinite values"
        )
    # The sample itself, and then in each column a random choice of n points.
    shuffled = torch.rand(len(pooled), permutations, generator=torch.Generator().manual_seed(seed)).argsort(0)
    chosen = torch.cat([torch.arange(len(pooled))[:, None], shuffled], dim=1) < n
    squared = _unbiased(matrix.double(), chosen.to(pooled.device, torch.float64))
    # Permutations that give the same value, as those of copies do, count as at least as large, whatever the rounding.
    as_large = int((squared[1:] >= squared[0] - 1e-12 * matrix.abs().max()).sum())
    return MaximumMeanDiscrepancy(
        squared[0].item(),
        (1 + as_large) / (1 + permutations),
        permutations,
        getattr(kernel, "__name__", str(kernel)).replace("_", " "),
        pooled.shape[1],
        Conditions.taken(x, reference, seed),
    )


@dataclass(frozen=True)
class KernelInceptionDistance:
    """What `kernel_inception_distance` found. It prints itself with its conditions.

    Attributes:
        mean: of MMD² over subsets. Unbiased, and so below zero at times.
        std: of MMD² over subsets, divided by their number and not by one less, as others do. It is the error of one
            subset: the mean's is smaller, and not by the root of `subsets`, since subsets share images.
        subset_size, subsets: images in a subset, and how many subsets.
        dim: of the features.
    """

    mean: float
    std: float
    subset_size: int
    subsets: int
    dim: int
    conditions: Conditions

    def __str__(self) -> str:
        return with_conditions(
            f"KID {self.mean:.4g} ± {self.std:.2g}",
            f"{self.subsets} subsets of {self.subset_size:,}, {self.dim} dimensions",
            self.conditions,
        )


def kernel_inception_distance(
    x: Samples, reference: Samples, subset_size: int = 1000, subsets: int = 100, seed: int = 0
) -> KernelInceptionDistance:
    """Bińkowski et al.'s (2018) kernel distance: MMD² with `cubic_kernel`, without bias at any n, over random subsets.

    Args:
        subset_size: images of each set in a subset, drawn without replacement.
        seed: of the subsets.

    Raises:
        TypeError, ValueError: features that are not like that (see `Features`), of two nets or of two dimensions; a
            subset_size that is one, above the number of images, or such that all subsets are the same.
    """
    require_positive_int(subset_size, "subset_size")
    require_positive_int(subsets, "subsets")
    x, reference = as_pair(x, reference)
    if not 2 <= subset_size <= min(len(x), len(reference)):
        raise ValueError(
            f"subset_size must be from 2 to the number of images, {min(len(x), len(reference))}, got {subset_size}"
        )
    if subsets > 1 and subset_size == len(x) == len(reference):
        raise ValueError(f"subset_size must be below {subset_size}: subsets of all images have no spread; or subsets=1")
    generator = torch.Generator().manual_seed(seed)
    chosen, found = torch.arange(2 * subset_size, device=x.values.device)[:, None] < subset_size, []
    for _ in range(subsets):
        parts = [
            sample.values.detach()[torch.randperm(len(sample), generator=generator)[:subset_size]]
            for sample in (x, reference)
        ]
        pooled = torch.cat([part.double() for part in parts])
        found.append(_unbiased(cubic_kernel(pooled, pooled), chosen.double()))
    estimates = torch.cat(found)
    return KernelInceptionDistance(
        estimates.mean().item(),
        estimates.std(correction=0).item(),
        subset_size,
        subsets,
        x.values.shape[1],
        Conditions.taken(x, reference, seed),
    )


def _unbiased(kernel: Float[Tensor, "n n"], chosen: Float[Tensor, "n p"]) -> Float[Tensor, " p"]:
    """For each column, MMD² between the points where it is 1 and the others, of which there are as many in each."""
    n, m = chosen[:, 0].sum(), (1 - chosen[:, 0]).sum()
    # Sums over pairs of different points: among the chosen, of a chosen one with any, and among the others.
    itself = kernel.diagonal()
    first = (chosen * (kernel @ chosen)).sum(0) - itself @ chosen
    any_other = (kernel.sum(1) - itself) @ chosen
    second = kernel.sum() - itself.sum() - 2 * any_other + first
    return first / (n * (n - 1)) + second / (m * (m - 1)) - 2 * (any_other - first) / (n * m)
