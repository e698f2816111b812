"""The probability-flow ODE with an adaptive solver, and the exact likelihood that it gives (Song et al. 2021, app. D).

In u = log σ̄ = ½ log (1 - ᾱ)/ᾱ, the ODE dx̄/dσ̄ = ε̂ of x = √ᾱ x̄ is free of ᾱ's path in time:

    dx/du = σ (ε̂(x, t) - σ x),  σ = √(1 - ᾱ),  and the divergence of the right side is σ (∇·ε̂ - σ D)

    x = probability_flow(model.predictor(), model.noise(64), model.log_snr_range, model.time)
    log_prob = flow_log_prob(model.predictor(), x, model.log_snr_range, model.time)
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import solve_ivp
from torch import Tensor

from companion.samplers.diffusion import Eps
from companion.validate import require_positive_int

Time = Callable[[float], float]


@torch.no_grad()
def probability_flow(
    eps: Eps,
    x: Float[Tensor, " batch *event"],
    log_snr_range: tuple[float, float],
    time: Time,
    *,
    reverse: bool = True,
    tolerance: float = 1e-4,
) -> tuple[Float[Tensor, " batch *event"], int]:
    """Follows the ODE from noise to data, or with `reverse` False from data to noise, by Runge and Kutta's method of
    order 5 (4) with steps of its own choice (SciPy's RK45), the same for the whole batch.

    Args:
        eps: ε̂(x, t).
        x: at the first end.
        log_snr_range: log ᾱ/(1 - ᾱ) at both ends, the noisy one first.
        time: the t of such a logarithm, for `eps`.
        tolerance: of the error in a step, relative and absolute.

    Returns: x at the other end, and how many times ε̂ was called.

    Raises:
        FloatingPointError: the solver found no way on.
        ValueError: an argument that means nothing.
    """

    def slope(u: float, y: Tensor) -> Tensor:
        sigma = _sigma(u)
        return sigma * (eps(y, time(-2 * u)) - sigma * y)

    return _solve(slope, x, _ends(log_snr_range, reverse), tolerance)


def flow_log_prob(
    eps: Eps,
    x: Float[Tensor, " batch *event"],
    log_snr_range: tuple[float, float],
    time: Time,
    *,
    probes: int | None = None,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-4,
) -> tuple[Float[Tensor, " batch"], int]:
    """log p(x), nats: log N(x_1; 0, I) where the ODE takes x, plus the integral of the divergence along the way.

    x is data with the noise of the range's clean end: it is the density of that which the ODE generates.

    Args:
        probes: for Hutchinson's estimate of the divergence, the mean of wᵀ(∂ε̂/∂x)w over so many w of independent signs,
            the same along the whole way: unbiased up to the solver's error. None is the exact trace, at the price of as
            many backward passes as x has dimensions.
        generator: of the w, on the device of x.
        Others as in `probability_flow`.

    Returns: log p, and how many times ε̂ was called. Raises as `probability_flow`.
    """
    dims = x[0].numel()
    if probes is None:
        signs = torch.eye(dims, dtype=x.dtype, device=x.device).reshape(dims, 1, *x.shape[1:]).expand(-1, *x.shape)
    else:
        require_positive_int(probes, "probes")
        signs = torch.empty(probes, *x.shape, dtype=x.dtype, device=x.device).uniform_(-1, 1, generator=generator)
        signs = signs.sign()

    def slope(u: float, state: Tensor) -> Tensor:
        sigma = _sigma(u)
        with torch.enable_grad():
            y = state[:, :-1].reshape(x.shape).detach().requires_grad_()
            noise = eps(y, time(-2 * u))
            rows = [torch.autograd.grad(noise, y, w, retain_graph=i + 1 < len(signs))[0] for i, w in enumerate(signs)]
        traces = torch.stack([(row * w).flatten(1).sum(1) for row, w in zip(rows, signs, strict=True)])
        trace = traces.sum(0) if probes is None else traces.mean(0)
        velocity = sigma * (noise - sigma * y).detach()
        return torch.cat([velocity.flatten(1), (sigma * (trace - sigma * dims))[:, None]], 1)

    start = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)
    end, calls = _solve(slope, start, _ends(log_snr_range, reverse=False), tolerance)
    z, integral = end[:, :-1], end[:, -1]
    return integral - (z.square().sum(1) + dims * math.log(2 * math.pi)) / 2, calls


def _ends(log_snr_range: tuple[float, float], reverse: bool) -> tuple[float, float]:
    noisy, clean = log_snr_range
    if not -math.inf < noisy < clean < math.inf:
        raise ValueError(f"log_snr_range must be two finite numbers, the lower first, got {log_snr_range!r}")
    return (-noisy / 2, -clean / 2) if reverse else (-clean / 2, -noisy / 2)


def _sigma(u: float) -> float:
    return 1 / math.sqrt(1 + math.exp(-2 * u))


def _solve(
    slope: Callable[[float, Tensor], Tensor], x: Tensor, ends: tuple[float, float], tolerance: float
) -> tuple[Tensor, int]:
    if not (isinstance(tolerance, int | float) and 0 < tolerance < 1):
        raise ValueError(f"tolerance must be a number between 0 and 1, got {tolerance!r}")

    def flat(u: float, y: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(y).to(x).reshape(x.shape)
        return slope(u, state).double().cpu().reshape(-1).numpy()

    start = x.detach().double().cpu().reshape(-1).numpy()
    found = solve_ivp(flat, ends, start, rtol=tolerance, atol=tolerance, t_eval=[ends[1]])
    if not found.success:
        raise FloatingPointError(f"the solver of the ODE stopped early: {found.message}")
    return torch.from_numpy(found.y[:, -1]).to(x).reshape(x.shape), found.nfev
