"""Samplers that follow the gradient of an energy: the unadjusted Langevin algorithm, MALA, and Hamiltonian Monte Carlo.

    chains = hmc(model.energy, torch.randn(100, 2), step_size=0.1, steps=1000, burn_in=200)
    chains.samples, chains.acceptance, chains.effective_sample_size()

All chains of a call move together. An energy takes (chains, *event) and answers (chains,), each from its own chain
alone. Its parameters may require gradients; none are taken for them.
"""

import math
from collections.abc import Callable, Iterator
from itertools import count

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.samplers.chains import Chains, collect, require_finite, require_states
from companion.validate import require_positive_int

Energy = Callable[[Tensor], Tensor]


def langevin(
    energy: Energy,
    x: Float[Tensor, " chains *event"],
    step_size: float,
    steps: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    burn_in: int = 0,
    thin: int = 1,
    keep: bool = True,
    progress: bool = False,
) -> Chains:
    """The unadjusted Langevin algorithm: x ← x - (ε/2) ∇E(x) + √(εT) ξ, ξ ~ N(0, I).

    Nothing is rejected, so the chains' law is e^{-E/T} only as ε → 0: of E = λx²/2 it is N(0, T / (λ (1 - ελ/4))), and
    for ελ > 4 there is none.

    Args:
        energy: (chains, *event) to (chains,).
        x: where the chains start.
        step_size: ε.
        temperature: T. Energy-based models of images are often trained with noise of a scale σ of its own, far below
            √ε (Du and Mordatch 2019; Grathwohl et al. 2020): that is T = σ²/ε, and a chain near the minima of E.
        generator: on the device of x.
        burn_in: the first so many of the steps are not kept.
        thin: of the others every so-many-th is kept.
        keep: whether any are; if not, only `last` is of use.
        progress: show a bar on stderr.

    Raises:
        FloatingPointError: an energy, gradient or position is not finite; with the chain, the step and the step size.
        TypeError, ValueError: an argument that means nothing, or an energy that is not (chains,) or has no gradient.

    >>> import torch
    >>> from companion.samplers import langevin
    >>> generator = torch.Generator().manual_seed(0)
    >>> chains = langevin(lambda x: x.square().sum(1) / 2, torch.zeros(1000, 2), 0.1, 50, generator=generator)
    >>> bool((chains.last.std() - 1).abs() < 0.1)
    True
    """
    _require(x, step_size)
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not (number and 0 <= temperature < math.inf):
        raise ValueError(f"temperature must be a finite number, not negative, got {temperature!r}")
    moves = _langevin(energy, x.detach(), step_size, math.sqrt(step_size * temperature), generator)
    return collect(moves, x.detach(), steps, burn_in, thin, keep, progress)


def mala(
    energy: Energy,
    x: Float[Tensor, " chains *event"],
    step_size: float,
    steps: int,
    *,
    generator: torch.Generator | None = None,
    burn_in: int = 0,
    thin: int = 1,
    keep: bool = True,
    progress: bool = False,
) -> Chains:
    """The Metropolis-adjusted Langevin algorithm (Roberts and Tweedie 1996): a step of `langevin` is a proposal y,
    accepted with probability min(1, e^{E(x) - E(y)} q(x|y) / q(y|x)), where q(y|x) = N(y; x - (ε/2) ∇E(x), εI).

    The chains' law tends to e^{-E}/Z at any ε; the best ε accepts about 0.57 (Roberts and Rosenthal 1998).
    Arguments and errors are those of `langevin`, which a lost proposal raises, too.

    >>> import torch
    >>> from companion.samplers import mala
    >>> generator = torch.Generator().manual_seed(0)
    >>> chains = mala(lambda x: x.square().sum(1) / 2, torch.zeros(100, 2), 0.5, 20, generator=generator)
    >>> chains.last.shape, bool(0 < chains.acceptance.mean() <= 1)
    (torch.Size([100, 2]), True)
    """
    _require(x, step_size)
    moves = _mala(energy, x.detach(), step_size, generator)
    return collect(moves, x.detach(), steps, burn_in, thin, keep, progress)


def hmc(
    energy: Energy,
    x: Float[Tensor, " chains *event"],
    step_size: float,
    steps: int,
    *,
    leapfrog_steps: int = 10,
    generator: torch.Generator | None = None,
    burn_in: int = 0,
    thin: int = 1,
    keep: bool = True,
    progress: bool = False,
) -> Chains:
    """Hamiltonian Monte Carlo (Neal 2011): a fresh momentum p ~ N(0, I), some steps of the leapfrog integrator, and
    the end is accepted with probability min(1, e^{H(start) - H(end)}), where H = E(x) + ‖p‖²/2.

    The chains' law tends to e^{-E}/Z at any step size; the best one accepts about 0.65 (Beskos et al. 2013). With one
    leapfrog step of size √ε it is `mala`.

    Args:
        step_size: of the integrator.
        leapfrog_steps: in each of the `steps`.

    The other arguments and the errors are those of `langevin`, which a lost trajectory raises, too.

    >>> import torch
    >>> from companion.samplers import hmc
    >>> generator = torch.Generator().manual_seed(0)
    >>> energy = lambda x: x.square().sum(1) / 2
    >>> chains = hmc(energy, torch.zeros(100, 2), 0.3, 20, leapfrog_steps=5, generator=generator)
    >>> chains.last.shape
    torch.Size([100, 2])
    """
    _require(x, step_size)
    require_positive_int(leapfrog_steps, "leapfrog_steps")
    moves = _hmc(energy, x.detach(), step_size, leapfrog_steps, generator)
    return collect(moves, x.detach(), steps, burn_in, thin, keep, progress)


def leapfrog(
    gradient: Callable[[Tensor], Tensor],
    x: Float[Tensor, " chains *event"],
    momentum: Float[Tensor, " chains *event"],
    step_size: float,
    steps: int,
    slope: Float[Tensor, " chains *event"] | None = None,
) -> tuple[Tensor, Tensor]:
    """Follow Hamilton's equations dx/dt = p, dp/dt = -∇E(x) for a time of steps · step_size; returns x and p there.

    Half a step of p, a step of x, half a step of p (Neal 2011, sec. 5.2.3). Volume is preserved, the same steps
    lead back to the start from the end with -p, and H changes by O(step_size²).

    Args:
        gradient: x to ∇E(x), both (chains, *event).
        slope: ∇E at the start, if it is known.

    >>> import torch
    >>> from companion.samplers import leapfrog
    >>> x, momentum = leapfrog(lambda x: x, torch.ones(1), torch.zeros(1), 0.01, 314)  # half a turn of an oscillator
    >>> round(x.item(), 3)
    -1.0
    """
    slope = gradient(x) if slope is None else slope
    for _ in range(steps):
        momentum = momentum - step_size / 2 * slope
        x = x + step_size * momentum
        slope = gradient(x)
        momentum = momentum - step_size / 2 * slope
    return x, momentum


def _langevin(energy: Energy, x: Tensor, step_size: float, scale: float, generator) -> Iterator[tuple[Tensor, None]]:
    for step in count(1):
        e, slope = _value_and_gradient(energy, x)
        noise = torch.empty_like(x).normal_(generator=generator)
        x = torch.add(x, slope, alpha=-step_size / 2).add_(noise, alpha=scale)
        require_finite(x, step, e, step_size)
        yield x, None


def _mala(energy: Energy, x: Tensor, step_size: float, generator) -> Iterator[tuple[Tensor, Tensor]]:
    e, slope = _value_and_gradient(energy, x)
    require_finite(x, 0, e, step_size)
    for step in count(1):
        noise = torch.empty_like(x).normal_(generator=generator)
        y = x - step_size / 2 * slope + math.sqrt(step_size) * noise
        e_y, slope_y = _value_and_gradient(energy, y)
        require_finite(y + slope_y, step, e_y, step_size)
        # log q(x|y) and log q(y|x), but for the constant that they share
        backward = -_squared_norm(x - y + step_size / 2 * slope_y) / (2 * step_size)
        forward = -_squared_norm(noise) / 2
        accepted = _accept(e - e_y + backward - forward, generator)
        x, e, slope = _choose(accepted, (y, e_y, slope_y), (x, e, slope))
        yield x, accepted


def _hmc(
    energy: Energy, x: Tensor, step_size: float, leapfrog_steps: int, generator
) -> Iterator[tuple[Tensor, Tensor]]:
    reached = _value_and_gradient(energy, x)

    def gradient(y: Tensor) -> Tensor:
        nonlocal reached  # the energy where the trajectory ends is known by then
        reached = _value_and_gradient(energy, y)
        return reached[1]

    e, slope = reached
    require_finite(x, 0, e, step_size)
    for step in count(1):
        momentum = torch.empty_like(x).normal_(generator=generator)
        y, momentum_y = leapfrog(gradient, x, momentum, step_size, leapfrog_steps, slope)
        require_finite(y + momentum_y, step, reached[0], step_size)
        kinetic, kinetic_y = _squared_norm(momentum) / 2, _squared_norm(momentum_y) / 2
        accepted = _accept(e + kinetic - reached[0] - kinetic_y, generator)
        x, e, slope = _choose(accepted, (y, *reached), (x, e, slope))
        yield x, accepted


def _value_and_gradient(energy: Energy, x: Tensor) -> tuple[Float[Tensor, " chains"], Tensor]:
    """E(x) and ∇E(x), without a graph, and whether gradients are switched on or not."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        e = energy(leaf)
        if e.shape != x.shape[:1]:
            raise ValueError(f"energy(x) must have shape ({len(x)},), one for each chain, got {tuple(e.shape)}")
        if not e.requires_grad:
            raise ValueError("energy(x) must depend on x by operations that autograd follows, it has no gradient")
        [slope] = torch.autograd.grad(e.sum(), leaf)
    return e.detach(), slope


def _squared_norm(x: Float[Tensor, " chains *event"]) -> Float[Tensor, " chains"]:
    return x.square().flatten(1).sum(1) if x.ndim > 1 else x.square()


def _accept(log_ratio: Float[Tensor, " chains"], generator: torch.Generator | None) -> Bool[Tensor, " chains"]:
    return torch.empty_like(log_ratio).uniform_(generator=generator).log() < log_ratio


def _choose(accepted: Bool[Tensor, " chains"], new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.where(accepted.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(new, old, strict=True))


def _require(x: Tensor, step_size: float) -> None:
    require_states(x)
    number = isinstance(step_size, int | float) and not isinstance(step_size, bool)
    if not (number and 0 < step_size < math.inf):
        raise ValueError(f"step_size must be a positive, finite number, got {step_size!r}")
