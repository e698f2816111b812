"""A density from samples alone, for models that can draw and no more.

    candidates = [0.05, 0.1, 0.2, 0.4]
    estimate = KernelDensity(samples, choose_bandwidth(samples, candidates))
    estimate.log_prob(test).mean()

It says little in many dimensions, where a few centroids of the training images can score above real images (Theis
et al. 2016, "A note on the evaluation of generative models").
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from companion.evaluation.distances import squared_distances
from companion.validate import require_events


class KernelDensity:
    """The mean of isotropic Gaussians around samples: p(x) = 1/n Σᵢ N(x; xᵢ, h² I) (Parzen 1962).

    It computes in double precision, whatever the samples have.

    Args:
        samples: at least two, finite.
        bandwidth: the standard deviation h of each Gaussian in each coordinate.

    Raises TypeError or ValueError for samples or a bandwidth that are not like that.

    >>> import torch
    >>> from companion.evaluation import KernelDensity
    >>> estimate = KernelDensity(torch.tensor([[-1.0], [1.0]]), bandwidth=1.0)
    >>> round(estimate.log_prob(torch.zeros(1, 1)).item(), 4)  # -1/2 - log √2π
    -1.4189
    """

    def __init__(self, samples: Float[Tensor, "n dim"], bandwidth: float):
        self.samples, self.bandwidth = _require_samples(samples), _require_bandwidth(bandwidth)

    def log_prob(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """Log-density in nats. Raises TypeError or ValueError for events of another shape, or that are not finite."""
        require_events(x, tuple(self.samples.shape[1:]))
        parts = [_log_mean(squared, self.samples, self.bandwidth) for squared in squared_distances(x, self.samples)]
        return torch.cat([x.new_empty(0), *parts]).to(x.dtype)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """Samples chosen at random, each with noise of its own."""
        device, dtype = self.samples.device, self.samples.dtype
        chosen = self.samples[torch.randint(len(self.samples), (n,), generator=generator, device=device)]
        return chosen + self.bandwidth * torch.randn(chosen.shape, dtype=dtype, generator=generator, device=device)


def leave_one_out(samples: Float[Tensor, "n dim"], bandwidth: float) -> float:
    """The mean log-density, in nats, of each sample under the kernel density of the others.

    With every sample in its own estimate, the best bandwidth would be 0. The same happens here as soon as samples
    come twice. Raises as KernelDensity does.
    """
    return _leave_one_out(_require_samples(samples), [_require_bandwidth(bandwidth)])[0]


def choose_bandwidth(samples: Float[Tensor, "n dim"], candidates: Sequence[float]) -> float:
    """The candidate with the highest leave-one-out log-likelihood (Duin 1976).

    Raises:
        ValueError: fewer than three different candidates, or the best one is the smallest or the largest, so
            that a better one may lie beyond.
        TypeError, ValueError: as KernelDensity does.

    >>> import torch
    >>> from companion.evaluation import choose_bandwidth
    >>> samples = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    >>> choose_bandwidth(samples, [0.01, 0.3, 3.0])
    0.3
    """
    bandwidths = sorted({_require_bandwidth(candidate) for candidate in candidates})
    if len(bandwidths) < 3:
        raise ValueError(f"candidates must hold at least three different bandwidths, got {list(candidates)}")
    values = _leave_one_out(_require_samples(samples), bandwidths)
    best = max(range(len(values)), key=values.__getitem__)
    if best in (0, len(values) - 1):
        found = ", ".join(f"{h:g}: {value:.6g}" for h, value in zip(bandwidths, values, strict=True))
        edge, beyond = ("smallest", "smaller") if best == 0 else ("largest", "larger")
        raise ValueError(
            f"the best of the candidates, {bandwidths[best]:g}, is the {edge} one; add {beyond} ones. "
            f"Leave-one-out log-likelihoods in nats: {found}"
        )
    return bandwidths[best]


def _leave_one_out(samples: Float[Tensor, "n dim"], bandwidths: Sequence[float]) -> list[float]:
    """For each bandwidth, from one computation of the distances."""
    totals, start = samples.new_zeros(len(bandwidths), dtype=torch.float64), 0
    for squared in squared_distances(samples, samples):
        rows = torch.arange(len(squared), device=squared.device)
        # Infinitely far from itself; the mean over the others divides by one less.
        squared[rows, start + rows] = torch.inf
        totals += torch.stack([_log_mean(squared, samples[1:], h).sum() for h in bandwidths])
        start += len(squared)
    return (totals / len(samples)).tolist()


def _log_mean(
    squared: Float[Tensor, "rows n"], samples: Float[Tensor, "m dim"], bandwidth: float
) -> Float[Tensor, " rows"]:
    """The log of 1/m Σᵢ N(x; xᵢ, h² I), from the squared distances."""
    m, dim = samples.shape
    log_sum = torch.logsumexp(squared / (-2 * bandwidth**2), dim=1)
    return log_sum - math.log(m) - dim / 2 * math.log(2 * math.pi * bandwidth**2)


def _require_samples(samples: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
    if isinstance(samples, Tensor) and (samples.ndim != 2 or samples.shape[1] == 0):
        raise ValueError(f"samples must have shape (n, dim), got {tuple(samples.shape)}; flatten images first")
    require_events(samples, tuple(samples.shape[1:]) if isinstance(samples, Tensor) else (), "samples")
    if len(samples) < 2:
        raise ValueError(f"samples must be at least two, got {len(samples)}")
    return samples.detach()


def _require_bandwidth(bandwidth: float) -> float:
    number = isinstance(bandwidth, int | float) and not isinstance(bandwidth, bool)
    if not (number and 0 < bandwidth < math.inf):
        raise ValueError(f"bandwidth must be above 0 and finite, got {bandwidth!r}")
    return float(bandwidth)
