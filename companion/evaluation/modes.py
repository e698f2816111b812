"""How many modes of a known mixture do samples reach?"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from companion.validate import require_events

# Within so many standard deviations of its centre a sample belongs to a mode.
_REACH = 3


@dataclass(frozen=True, eq=False)
class ModeCoverage:
    """What `mode_coverage` found. It prints itself with its conditions.

    Attributes:
        modes: how many centres have a high-quality sample.
        high_quality: the share of the samples that are of high quality.
        counts: high-quality samples of each centre.
        n: samples measured; with more of them, more modes are found.
        scale: the standard deviation that was taken as a mode's.
    """

    modes: int
    high_quality: float
    counts: Int64[Tensor, " k"]
    n: int
    scale: float

    def __str__(self) -> str:
        return (
            f"{self.modes} of {len(self.counts)} modes, {100 * self.high_quality:.1f} % high quality "
            f"({self.n} samples, within {_REACH} standard deviations of {self.scale:g})"
        )


def mode_coverage(samples: Float[Tensor, "n 2"], centres: Float[Tensor, "k 2"], scale: float) -> ModeCoverage:
    """Count the modes that samples reach, as Srivastava et al. (2017, VEEGAN) and Lin et al. (2018, PacGAN) do.

    A sample belongs to its nearest centre, and is of high quality if it lies within three standard deviations of
    it. A mode is found if at least one such sample belongs to it. Samples of the mixture itself are of high quality
    with probability 1 - exp(-9/2) = 98.9 %, where the modes lie far apart.

    Args:
        centres: of the modes, in the plane.
        scale: standard deviation of each mode in each coordinate.

    Raises TypeError or ValueError for samples or centres that are no points in the plane, NaN, none at all, or a
    scale that is not positive.

    >>> import torch
    >>> from companion.evaluation import mode_coverage
    >>> centres = torch.tensor([[0.0, 0.0], [5.0, 0.0]])
    >>> print(mode_coverage(torch.tensor([[0.1, 0.0], [-0.1, 0.0], [2.5, 0.0], [0.0, 0.2]]), centres, scale=0.1))
    1 of 2 modes, 75.0 % high quality (4 samples, within 3 standard deviations of 0.1)
    """
    for name, points in (("samples", samples), ("centres", centres)):
        require_events(points, (2,), name)
        if len(points) == 0:
            raise ValueError(f"{name} must hold at least one point, got none")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise ValueError(f"scale must be above 0 and finite, got {scale!r}")
    # Not by a matrix product, which rounds as coarsely as the points are far from the origin.
    distances = torch.cdist(
        samples.detach().double(), centres.to(samples.device).double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    distance, nearest = distances.min(1)
    counts = nearest[distance <= _REACH * scale].bincount(minlength=len(centres)).cpu()
    n = len(samples)
    return ModeCoverage(int((counts > 0).sum()), counts.sum().item() / n, counts, n, float(scale))
