"""What a Markov chain sampler returns, and how well its chains have mixed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from companion.validate import require_positive_int


@dataclass(frozen=True)
class Chains:
    """Markov chains that ran side by side, independently of each other.

    Attributes:
        samples: the states that were kept, (kept, chains, *event), none of them with `keep=False`.
        last: the states at the end, (chains, *event), from which a further call goes on.
        acceptance: the fraction of each chain's moves that were accepted after the burn-in, (chains,); 1 for a
            sampler that rejects nothing.
    """

    samples: Float[Tensor, " kept chains *event"]
    last: Float[Tensor, " chains *event"]
    acceptance: Float[Tensor, " chains"]

    def effective_sample_size(self) -> Float[Tensor, " *event"]:
        """See the function of this name."""
        return effective_sample_size(self.samples)

    def split_r_hat(self) -> Float[Tensor, " *event"]:
        """See the function of this name."""
        return split_r_hat(self.samples)


def effective_sample_size(samples: Float[Tensor, " kept chains *event"]) -> Float[Tensor, " *event"]:
    """How many independent draws would give the mean of each coordinate as precisely as all these chains together.

    Vehtari et al. (2021, sec. 3.2, without ranks): the autocorrelations of the split chains, against a variance
    that counts the distance between the chains, too; summed over Geyer's (1992) initial positive and monotone
    sequence of pairs. At most N log10 N for N samples, as antithetic chains may have more than N. NaN for a coordinate
    that never changes.

    Raises ValueError for fewer than four samples of each chain, or for samples that are not (kept, chains, *event).

    >>> import torch
    >>> from companion.samplers import effective_sample_size
    >>> draws = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    >>> bool(3500 < effective_sample_size(draws) < 4500)
    True
    """
    x = _split(samples)
    n, chains = x.shape[:2]
    within, total = _variances(x)
    centred = x - x.mean(0)
    # Padded with zeros to twice the length, so that the end is not correlated with the start.
    power = torch.fft.rfft(centred, n=2 * n, dim=0).abs().square()
    autocovariance = torch.fft.irfft(power, n=2 * n, dim=0)[:n].mean(1) / (n - 1)
    correlation = 1 - (within - autocovariance) / total
    pairs = correlation[: n // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    monotone = pairs.cummin(0).values * (pairs > 0).cumprod(0)
    time = (2 * monotone.sum(0) - 1).clamp(min=1 / math.log10(n * chains))
    return torch.where(total > 0, n * chains / time, math.nan)


def split_r_hat(samples: Float[Tensor, " kept chains *event"]) -> Float[Tensor, " *event"]:
    """√(var⁺ / W) of each coordinate (Gelman et al. 2013, sec. 11.4), without ranks: near 1 where the halves of all
    chains look alike, larger where they do not; Vehtari et al. (2021) ask for less than 1.01.

    W is the variance within half chains, var⁺ that of all of them together. Infinite if each half chain stays where
    it is, and they are in different places; NaN for a coordinate that never changes.

    Raises ValueError as `effective_sample_size`.

    >>> import torch
    >>> from companion.samplers import split_r_hat
    >>> draws = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))  # four chains that agree
    >>> round(split_r_hat(draws).item(), 2)
    1.0
    >>> bool(split_r_hat(draws + torch.arange(4)) > 1.1)  # and four that stay apart
    True
    """
    within, total = _variances(_split(samples))
    return (total / within).sqrt()


def _split(samples: Tensor) -> Float[Tensor, " half split *event"]:
    """Each chain as two, its halves; of an odd number of states the one in the middle belongs to neither."""
    if samples.ndim < 2 or len(samples) < 4 or samples.shape[1] == 0:
        raise ValueError(
            f"samples must be (kept, chains, *event) with at least four kept of each chain, got {tuple(samples.shape)}"
        )
    half = len(samples) // 2
    return torch.cat([samples[:half], samples[-half:]], 1)


def _variances(x: Float[Tensor, " n chains *event"]) -> tuple[Tensor, Tensor]:
    """W, the mean of the chains' variances, and var⁺ = (n - 1) / n W + B / n, B / n the variance of their means."""
    within = x.var(0).mean(0)
    return within, (1 - 1 / len(x)) * within + x.mean(0).var(0)


def collect(
    moves: Iterator[tuple[Tensor, Tensor | None]],
    x: Float[Tensor, " chains *event"],
    steps: int,
    burn_in: int,
    thin: int,
    keep: bool,
    progress: bool,
) -> Chains:
    """Take so many moves, each the new states and which of them were accepted (None: all), and keep what is asked for.

    Raises ValueError for numbers that leave nothing to keep.
    """
    require_positive_int(steps, "steps")
    require_positive_int(thin, "thin")
    if isinstance(burn_in, bool) or not isinstance(burn_in, int) or not 0 <= burn_in < steps:
        raise ValueError(f"burn_in must be an integer from 0 to steps - 1 = {steps - 1}, got {burn_in!r}")
    if thin > steps - burn_in:
        raise ValueError(f"thin must be at most steps - burn_in = {steps - burn_in}, got {thin}")
    from tqdm import tqdm

    samples = x.new_empty((steps - burn_in) // thin if keep else 0, *x.shape)
    accepted = x.new_zeros(len(x))
    for step in tqdm(range(1 - burn_in, steps - burn_in + 1), disable=not progress):
        x, moved = next(moves)
        if step > 0 and moved is not None:
            accepted += moved
        if step > 0 and step % thin == 0 and keep:
            samples[step // thin - 1] = x
    acceptance = torch.ones_like(accepted) if moved is None else accepted / (steps - burn_in)
    return Chains(samples, x, acceptance)


def require_states(x: Tensor) -> None:
    """Raises TypeError or ValueError unless `x` is (chains, *event), of a floating dtype and finite."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating-point tensor, got {found}")
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"x must hold the start of at least one chain, (chains, *event), got shape {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise ValueError(f"x must be finite, got {int((~torch.isfinite(x)).sum())} NaN or infinite values")


def require_finite(
    x: Float[Tensor, " chains *event"],
    step: int,
    energy: Float[Tensor, " chains"] | None = None,
    step_size: float | None = None,
) -> None:
    """Raises FloatingPointError, with the first chain that is lost, unless all states and energies are finite."""
    # A sum is finite only if all of its terms are, and a GPU is waited for once.
    total = x.sum() if energy is None else x.sum() + energy.sum()
    if math.isfinite(total.item()):
        return
    lost = ~torch.isfinite(x).reshape(len(x), -1).all(1)
    if energy is not None:
        lost |= ~torch.isfinite(energy)
    if lost.any():
        chain = int(lost.nonzero()[0])
        what, size = "its state is not finite", "" if step_size is None else f" with step size {step_size:g}"
        if energy is not None:
            e = energy[chain].item()
            what = "its position or gradient is not finite" if math.isfinite(e) else f"its energy is {e}"
        raise FloatingPointError(f"chain {chain} is lost at step {step}{size}: {what}")
