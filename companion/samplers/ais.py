"""Annealed importance sampling: the normaliser of an energy, from above and from below.

path = geometric_path(base.log_prob, energy, transition)
betas = torch.linspace(0, 1, 1001)
ais(path, base.sample((500,)), betas).value               # on average at most log Z
reverse_ais(path, draws_of_the_target, betas).value       # on average at least log Z
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from companion.samplers.chains import require_states

# x, β, β' and a generator to log f_β'(x) - log f_β(x), (chains,), and to the next x.
Path = Callable[[Tensor, float, float, torch.Generator | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LogPartition:
    """An estimate of log Z from weights that are on average Z, or 1/Z where it comes from `reverse_ais`.

    Attributes:
        value: log Z, nats: the log of the mean weight, or minus that.
        standard_error: of `value`, by the delta method: the weights' standard deviation, over their mean and √chains.
        effective_sample_size: (Σw)² / Σw², of so many chains (Kong 1992). Where it is a handful, a few chains carry
            the estimate, and its standard error is not to be trusted.
        log_weights: log w of each chain, (chains,).
    """

    value: float
    standard_error: float
    effective_sample_size: float
    log_weights: Float[Tensor, " chains"]

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95 %: value ± 1.96 standard errors, symmetric on the scale of the logarithm. It holds for many chains with
        weights that are alike; of few or heavy-tailed ones it is too narrow, and off to the side of the bound."""
        return self.value - 1.96 * self.standard_error, self.value + 1.96 * self.standard_error


def geometric_path(
    base: Callable[[Tensor], Tensor],
    energy: Callable[[Tensor], Tensor],
    transition: Callable[[Callable[[Tensor], Tensor], Tensor, torch.Generator | None], Tensor],
) -> Path:
    """From p_0 to e^{-E} through f_β = p_0^{1-β} e^{-βE} (Neal 2001).

    Args:
        base: log p_0, (chains, *event) to (chains,), normalised.
        energy: E, (chains, *event) to (chains,).
        transition: (energy, x, generator) to the next x, by a kernel in detailed balance with e^{-energy}, such as
            `lambda energy, x, generator: hmc(energy, x, 0.1, 1, generator=generator, keep=False).last`.
    """

    def path(x: Tensor, before: float, after: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        log_ratio = (after - before) * (-energy(x) - base(x))
        return log_ratio, transition(lambda y: after * energy(y) - (1 - after) * base(y), x, generator)

    return path


def ais(
    path: Path,
    x: Float[Tensor, " chains *event"],
    betas: Float[Tensor, " betas"],
    *,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> LogPartition:
    """log Z of the path's end (Neal 2001; Salakhutdinov and Murray 2008): a stochastic lower bound.

    Each chain's weight is Π_k f_{β_k}(x_{k-1}) / f_{β_{k-1}}(x_{k-1}), with x_k drawn from x_{k-1} by a kernel that
    leaves f_{β_k} as it is. Its expectation is Z for any betas; how far the single weights are from Z depends on them.

    Args:
        path: x, β, β' and a generator to log f_β'(x) - log f_β(x), (chains,), and to the next x, drawn from this one by
            a kernel in detailed balance with f_β'; f_0 is normalised. See `geometric_path` and `RBM.path`.
        x: independent exact draws from f_0, one for each chain.
        betas: from 0 to 1, rising.
        generator: on the device of x.
        progress: show a bar on stderr.

    Raises:
        FloatingPointError: a weight is not finite; with chain and β.
        TypeError, ValueError: x is not (chains, *event), finite, of two chains or more; betas do not rise from 0 to 1.
    """
    return _estimate(_log_weights(path, x, _checked(betas), generator, progress), sign=1)


def reverse_ais(
    path: Path,
    x: Float[Tensor, " chains *event"],
    betas: Float[Tensor, " betas"],
    *,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> LogPartition:
    """log Z of the path's end from exact draws of it, the way back: a stochastic upper bound (Grosse et al. 2015).

    The weights are those of `ais` for the path from 1 to 0, with 1/Z for their expectation. Together the two enclose
    log Z, however badly the chains mix; but the draws must be exact, those of a longer Markov chain are not.
    The other arguments and the errors are those of `ais`.

    Args:
        x: independent exact draws from f_1 / Z, one for each chain.
    """
    return _estimate(_log_weights(path, x, _checked(betas)[::-1], generator, progress), sign=-1)


@torch.no_grad()
def _log_weights(path: Path, x: Tensor, betas: list[float], generator, progress: bool) -> Float[Tensor, " chains"]:
    require_states(x)
    if len(x) < 2:
        raise ValueError(f"x must hold at least two chains, of one there is no standard error, got {len(x)}")
    from tqdm import tqdm

    # Thousands of small terms: in single precision their rounding would add up.
    log_weights = x.new_zeros(len(x), dtype=torch.float64)
    for before, after in tqdm(list(pairwise(betas)), disable=not progress):
        log_ratio, x = path(x, before, after, generator)
        if log_ratio.shape != log_weights.shape:
            raise ValueError(f"path must give ratios of shape ({len(x)},), got {tuple(log_ratio.shape)}")
        log_weights += log_ratio
        if not math.isfinite(log_weights.sum().item()):
            chain = int((~torch.isfinite(log_weights)).nonzero()[0])
            raise FloatingPointError(
                f"chain {chain} is lost from β = {before:g} to {after:g}: its log weight is {log_weights[chain].item()}"
            )
    return log_weights


def _estimate(log_weights: Tensor, sign: int) -> LogPartition:
    n = len(log_weights)
    log_mean = log_weights.logsumexp(0) - math.log(n)
    relative = (log_weights - log_mean).exp()  # of mean 1
    return LogPartition(
        value=sign * log_mean.item(),
        standard_error=(relative.std() / math.sqrt(n)).item(),
        effective_sample_size=(n**2 / relative.square().sum()).item(),
        log_weights=log_weights,
    )


def _checked(betas: Tensor) -> list[float]:
    if not isinstance(betas, Tensor) or betas.ndim != 1:
        found = f"shape {tuple(betas.shape)}" if isinstance(betas, Tensor) else type(betas).__name__
        raise TypeError(f"betas must be a tensor of one dimension, got {found}")
    numbers = betas.tolist()
    if len(numbers) < 2 or numbers[0] != 0 or numbers[-1] != 1 or not all(a < b for a, b in pairwise(numbers)):
        raise ValueError(f"betas must rise from 0 to 1, got {numbers[:3]} … {numbers[-3:]}")
    return numbers
