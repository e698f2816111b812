"""Annealed Langevin dynamics: a sampler that follows the score of the data under less and less noise.

chains = annealed_langevin(model.score, model.noise(64), model.sigmas, step_size=2e-5, steps=100)
chains.last
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from companion.samplers.chains import Chains, collect, require_states
from companion.validate import require_positive_int

Score = Callable[[Tensor, float], Tensor]


@torch.no_grad()
def annealed_langevin(
    score: Score,
    x: Float[Tensor, " chains *event"],
    sigmas: Sequence[float] | Float[Tensor, " levels"],
    step_size: float,
    steps: int,
    *,
    generator: torch.Generator | None = None,
    thin: int = 1,
    keep: bool = False,
    progress: bool = False,
) -> Chains:
    """At each level σ_1 > … > σ_L some steps x ← x + (α_i/2) s(x, σ_i) + √α_i ξ, with α_i = ε σ_i²/σ_L² and ξ ~ N(0, I)
    (Song and Ermon 2019, algorithm 1). Each level starts where the one before it ends.

    Song and Ermon (2020) write the step as x + α s + √(2α) ξ: their ε is half of the one here. Nothing is rejected, and
    near a mode of width σ_i or more a step must be shorter than ε = 4σ_L² for the chain not to be thrown out.

    Args:
        score: s(x, σ) of all chains at one level σ, a number: (chains, *event) to the same shape.
        x: where the chains start, about as far apart as σ_1 scatters them.
        sigmas: the levels, falling.
        step_size: ε, the length α_L of a step at the last level.
        steps: at each level.
        generator: on the device of x.
        thin: of the states every so-many-th is kept.
        keep: whether any are, for a picture of the way; if not, only `last` is of use.
        progress: show a bar on stderr.

    Raises:
        FloatingPointError: a chain is lost, its position no longer finite; with chain, level and step.
        TypeError, ValueError: an argument that means nothing, or a score of another shape than x.
    """
    require_states(x)
    levels = require_levels(sigmas)
    require_pace(step_size, steps)
    moves = _moves(score, x, levels, step_size, steps, generator)
    return collect(moves, x, len(levels) * steps, 0, thin, keep, progress)


def require_levels(sigmas: Sequence[float] | Tensor) -> list[float]:
    """The noise levels as numbers. Raises ValueError unless there is one at least, and they are positive and fall."""
    levels = [float(sigma) for sigma in sigmas]
    falling = all(a > b for a, b in pairwise(levels))
    if not levels or not falling or not (levels[-1] > 0 and levels[0] < math.inf):
        raise ValueError(f"sigmas must be positive, finite and strictly falling, got {_shown(levels)}")
    return levels


def require_pace(step_size: float, steps: int) -> None:
    require_positive_int(steps, "steps")
    number = isinstance(step_size, int | float) and not isinstance(step_size, bool)
    if not (number and 0 < step_size < math.inf):
        raise ValueError(f"step_size must be a positive, finite number, got {step_size!r}")


def _moves(
    score: Score, x: Tensor, levels: list[float], step_size: float, steps: int, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, None]]:
    for level, sigma in enumerate(levels):
        alpha = step_size * (sigma / levels[-1]) ** 2
        for step in range(1, steps + 1):
            slope = score(x, sigma)
            if slope.shape != x.shape:
                raise ValueError(
                    f"score(x, sigma) must have the shape of x, {tuple(x.shape)}, got {tuple(slope.shape)}"
                )
            noise = torch.empty_like(x).normal_(generator=generator)
            x = torch.add(x, slope, alpha=alpha / 2).add_(noise, alpha=math.sqrt(alpha))
            # A sum is finite only if all of its terms are, and a GPU is waited for once.
            if not torch.isfinite(x.sum()) and not (finite := torch.isfinite(x.reshape(len(x), -1)).all(1)).all():
                raise FloatingPointError(
                    f"chain {int((~finite).nonzero()[0])} is lost at level {level + 1} of {len(levels)} "
                    f"(σ = {sigma:g}), step {step} of {steps}: its position is not finite; a step_size below "
                    f"{step_size:g} may help"
                )
            yield x, None


def _shown(levels: list[float]) -> str:
    text = ", ".join(f"{sigma:g}" for sigma in levels[:4])
    return f"[{text}{', …' if len(levels) > 4 else ''}]"
