"""Samplers of diffusion models: from noise to data, given what the network takes for the noise.

    grid = model.grid(50)
    x = ddim(model.predictor(), model.noise(64), grid)

All take `eps(x, t)`, the estimate of the noise ε in x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε, (batch, *event) to the same shape,
and a `Grid`, the times at which they stop. They know neither the network nor the data, every coefficient is computed
once, before the first step, and no noise is added in the last step.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion.validate import require_positive_int

Eps = Callable[[Tensor, float], Tensor]


class Grid(NamedTuple):
    """The times at which a sampler stops, from noise to data, and ᾱ at each of them: rising, above 0, at most 1."""

    times: list[float]
    alpha_bars: list[float]


@torch.no_grad()
def ancestral(
    eps: Callable[[Tensor, float], Tensor | tuple[Tensor, Tensor]],
    x: Float[Tensor, " batch *event"],
    grid: Grid,
    variance: Literal["posterior", "forward"] = "posterior",
    *,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Float[Tensor, " batch *event"]:
    """From t to the next time s: x_s = (x_t - β/√(1 - ᾱ_t) ε̂)/√α + σ ξ, with α = ᾱ_t/ᾱ_s, β = 1 - α, ξ ~ N(0, I), and
    σ = 0 in the last step (Ho et al. 2020, algorithm 2; on fewer than T times Nichol and Dhariwal 2021, sec. 4).

    Args:
        eps: ε̂, or the pair of ε̂ and ν, the fraction of a learned variance, σ² = β^ν β̃^(1-ν) for each coordinate.
        x: at the first time of the grid, N(0, I).
        variance: σ² = β̃ = β (1 - ᾱ_s)/(1 - ᾱ_t), "posterior", or β, "forward", where it is not learned.
        generator: on the device of x.
        progress: show a bar on stderr.

    Raises:
        FloatingPointError: what comes out is not finite.
        ValueError: an argument that means nothing.
    """
    if variance not in ("posterior", "forward"):
        raise ValueError(f"variance must be 'posterior' or 'forward', got {variance!r}")
    steps = []
    for (t, high), (_, low) in _steps(grid):
        alpha = high / low
        beta = 1 - alpha
        posterior = beta * (1 - low) / (1 - high)
        steps.append((t, 1 / math.sqrt(alpha), -beta / math.sqrt((1 - high) * alpha), posterior, beta))
    for i, (t, keep, remove, posterior, beta) in enumerate(_bar(steps, progress)):
        noise, fraction = predicted if isinstance(predicted := eps(x, t), tuple) else (predicted, None)
        x = torch.add(keep * x, noise, alpha=remove)
        if i + 1 < len(steps):
            fresh = torch.empty_like(x).normal_(generator=generator)
            if fraction is None:
                x.add_(fresh, alpha=math.sqrt(posterior if variance == "posterior" else beta))
            else:
                x.addcmul_(fresh, (0.5 * (fraction * math.log(beta / posterior) + math.log(posterior))).exp())
    return _finite(x)


@torch.no_grad()
def ddim(
    eps: Eps,
    x: Float[Tensor, " batch *event"],
    grid: Grid,
    eta: float = 0.0,
    *,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Float[Tensor, " batch *event"]:
    """x_s = √ᾱ_s x̂_0 + √(1 - ᾱ_s - σ²) ε̂ + σ ξ with σ = η √(β (1 - ᾱ_s)/(1 - ᾱ_t)) (Song, Meng and Ermon 2021, eqs. 12
    and 16). η = 0 adds no noise, and is Euler's method for the probability-flow ODE in √((1 - ᾱ)/ᾱ); η = 1 has the
    variance of `ancestral`.

    Args:
        x: at the first time of the grid, N(0, I).
        eta: from 0 to 1.
        generator: on the device of x.
        progress: show a bar on stderr.

    Raises:
        FloatingPointError: what comes out is not finite.
        ValueError: an argument that means nothing.

    >>> import torch
    >>> from companion.samplers import Grid, ddim
    >>> def eps(x, t):  # of data that are all at 0.5
    ...     return (x - 0.5 * bars[t] ** 0.5) / (1 - bars[t]) ** 0.5
    >>> bars = {2: 0.1, 1: 0.6}
    >>> grid = Grid([2, 1, 0], [0.1, 0.6, 1.0])
    >>> [round(v, 4) for v in ddim(eps, torch.randn(3, 1), grid).flatten().tolist()]
    [0.5, 0.5, 0.5]
    """
    if not (isinstance(eta, int | float) and 0 <= eta <= 1):
        raise ValueError(f"eta must be a number from 0 to 1, got {eta!r}")
    steps = []
    for (t, high), (_, low) in _steps(grid):
        sigma = eta * math.sqrt((1 - high / low) * (1 - low) / (1 - high))
        keep = math.sqrt(low / high)
        steps.append((t, keep, math.sqrt(max(1 - low - sigma**2, 0.0)) - keep * math.sqrt(1 - high), sigma))
    for t, keep, add, sigma in _bar(steps, progress):
        x = torch.add(keep * x, eps(x, t), alpha=add)
        if sigma:
            x.add_(torch.empty_like(x).normal_(generator=generator), alpha=sigma)
    return _finite(x)


@torch.no_grad()
def euler(
    eps: Eps, x: Float[Tensor, " batch *event"], grid: Grid, *, progress: bool = False
) -> Float[Tensor, " batch *event"]:
    """Euler's method for the probability-flow ODE dx = -½ β(t) (x - ε̂/√(1 - ᾱ_t)) dt, with ∫ β dt = log(ᾱ_s/ᾱ_t) over a
    step (Song et al. 2021, eq. 13). Of first order as `ddim` with η = 0, which is exact where ε̂ does not change on the
    way; this one is not. Raises as `ddim`."""
    steps = []
    for (t, high), (_, low) in _steps(grid):
        h = math.log(low / high) / 2
        steps.append((t, 1 + h, -h / math.sqrt(1 - high)))
    for t, keep, add in _bar(steps, progress):
        x = torch.add(keep * x, eps(x, t), alpha=add)
    return _finite(x)


@torch.no_grad()
def heun(
    eps: Eps, x: Float[Tensor, " batch *event"], grid: Grid, *, progress: bool = False
) -> Float[Tensor, " batch *event"]:
    """Heun's method for dx̄/dσ̄ = ε̂, with x̄ = x/√ᾱ and σ̄ = √((1 - ᾱ)/ᾱ): a step of `ddim`, then once more with the mean
    of ε̂ at both its ends (Karras et al. 2022, algorithm 1). A step to ᾱ = 1, where ε̂ means nothing, is one of `ddim`.

    Of second order, with the network twice in a step: 2n - 1 times on a grid of n steps to ᾱ = 1. Raises as `ddim`.
    """
    steps = []
    for (t, high), (s, low) in _steps(grid):
        a, h = math.sqrt(low), math.sqrt((1 - low) / low) - math.sqrt((1 - high) / high)
        steps.append((t, s if low < 1 else None, a / math.sqrt(high), a * h))
    for t, s, keep, add in _bar(steps, progress):
        first = eps(x, t)
        x = keep * x
        if s is None:
            x.add_(first, alpha=add)
        else:
            second = eps(torch.add(x, first, alpha=add), s)
            x.add_(first, alpha=add / 2).add_(second, alpha=add / 2)
    return _finite(x)


@torch.no_grad()
def dpm_solver(
    eps: Eps, x: Float[Tensor, " batch *event"], grid: Grid, *, progress: bool = False
) -> Float[Tensor, " batch *event"]:
    """DPM-Solver++ (2M): of second order with the network once in a step, as it remembers the x̂_0 of the step before
    (Lu et al. 2022b, algorithm 2).

        x_s = (σ_s/σ_t) x_t - √ᾱ_s (e^{-h} - 1) [x̂_0 + (x̂_0 - x̂_0')/(2r)],  h = λ_s - λ_t,  r = h'/h,  λ = log √ᾱ/σ

    The first step, and one to ᾱ = 1, are steps of `ddim`. Raises as `ddim`.
    """
    steps: list[tuple[float, ...]] = []
    before: float | None = None
    for (t, high), (_, low) in _steps(grid):
        a, sigma = math.sqrt(high), math.sqrt(1 - high)
        if low < 1:
            h = (math.log(low / (1 - low)) - math.log(high / (1 - high))) / 2
            keep, add = math.sqrt((1 - low) / (1 - high)), -math.sqrt(low) * math.expm1(-h)
            extrapolate = 0.0 if before is None else h / (2 * before)
        else:
            h, keep, add, extrapolate = None, 0.0, 1.0, 0.0
        steps.append((t, 1 / a, -sigma / a, keep, add * (1 + extrapolate), -add * extrapolate))
        before = h
    last = torch.zeros_like(x)  # nothing of it is subtracted in the first step
    for t, scale, remove, keep, add, subtract in _bar(steps, progress):
        data = torch.add(scale * x, eps(x, t), alpha=remove)
        x = torch.add(keep * x, data, alpha=add)
        if subtract:
            x.add_(last, alpha=subtract)
        last = data
    return _finite(x)


@torch.no_grad()
def predictor_corrector(
    eps: Eps,
    x: Float[Tensor, " batch *event"],
    grid: Grid,
    snr: float = 0.16,
    corrections: int = 1,
    *,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Float[Tensor, " batch *event"]:
    """Steps of `ancestral`, each followed by some of Langevin dynamics with the score at the time it came to, which
    pull x towards that time's density: x ← x + δ s + √(2δ) ξ, s = -ε̂/√(1 - ᾱ), δ = 2α (r ‖ξ‖/‖s‖)², α = ᾱ_t/ᾱ_{t-1}
    (Song et al. 2021, algorithms 3 and 5). Norms are means over the batch.

    Args:
        snr: r, how long a step of Langevin dynamics is.
        corrections: after each step but the last. The network is called 1 + `corrections` times in a step.

    Raises as `ancestral`.
    """
    require_positive_int(corrections, "corrections")
    if not (isinstance(snr, int | float) and 0 < snr < math.inf):
        raise ValueError(f"snr must be a positive, finite number, got {snr!r}")
    for (t, high), (s, low) in _bar(list(_steps(grid)), progress):
        x = ancestral(eps, x, Grid([t, s], [high, low]))
        if s == grid.times[-1]:
            continue
        alpha, beta = high / low, 1 - high / low
        x.add_(torch.empty_like(x).normal_(generator=generator), alpha=math.sqrt(beta * (1 - low) / (1 - high)))
        for _ in range(corrections):
            score = eps(x, s) / -math.sqrt(1 - low)
            fresh = torch.empty_like(x).normal_(generator=generator)
            norms = [v.flatten(1).norm(dim=1).mean() for v in (fresh, score)]
            delta = 2 * alpha * (snr * norms[0] / norms[1]).square()
            x = x + delta * score + (2 * delta).sqrt() * fresh
    return _finite(x)


def follow(
    sampler: Callable[..., Tensor],
    eps: Eps,
    x: Float[Tensor, " batch *event"],
    grid: Grid,
    generator: torch.Generator | None,
    progress: bool,
) -> Float[Tensor, " batch *event"]:
    """Call a sampler, with the generator if it draws anything: those of the probability-flow ODE do not."""
    draws = "generator" in inspect.signature(sampler).parameters
    return sampler(eps, x, grid, progress=progress, **({"generator": generator} if draws else {}))


def require_grid(grid: Grid) -> None:
    """Raises ValueError unless there are two times at least, with ᾱ above 0, at most 1 and rising."""
    times, bars = grid
    rising = all(a < b for a, b in pairwise(bars))
    if len(times) != len(bars) or len(bars) < 2 or not rising or not (bars[0] > 0 and bars[-1] <= 1):
        raise ValueError(
            "grid must hold at least two times, with ᾱ above 0, at most 1 and strictly rising, "
            f"got {len(times)} times and ᾱ = {_shown(bars)}"
        )


def _steps(grid: Grid) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """(t, ᾱ_t) and (s, ᾱ_s) for each step."""
    require_grid(grid)
    return pairwise(zip(*grid, strict=True))


def _bar(steps: list, progress: bool):
    from tqdm import tqdm

    return tqdm(steps, disable=not progress)


def _finite(x: Tensor) -> Tensor:
    if not torch.isfinite(x.sum()) and not torch.isfinite(x).all():
        wrong = int((~torch.isfinite(x.reshape(len(x), -1)).all(1)).sum())
        raise FloatingPointError(f"{wrong} of {len(x)} samples are not finite: the network's answers are too large")
    return x


def _shown(values: list[float]) -> str:
    text = ", ".join(f"{value:g}" for value in values[:4])
    return f"[{text}{', …' if len(values) > 4 else ''}]"
