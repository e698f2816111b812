"""How much noise there is at each time: schedules of a diffusion."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from companion.validate import require_positive_int


def linear_schedule(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Float[Tensor, " steps"]:
    """β_1 … β_T in equal steps from `first` to `last` (Ho et al. 2020, sec. 4), float64. For T = 1,000 as there; with
    fewer steps give larger β, or much of the data is still there at the end: β · 1000/T is usual.

    Raises ValueError unless 0 < first ≤ last < 1.

    >>> from companion.models.ddpm import linear_schedule
    >>> betas = linear_schedule(1000)
    >>> [round(float(b), 4) for b in (betas[0], betas[-1])]
    [0.0001, 0.02]
    """
    require_positive_int(steps, "steps")
    if not 0 < first <= last < 1:
        raise ValueError(f"first and last must be above 0 and below 1 with first ≤ last, got {first!r} and {last!r}")
    return torch.linspace(first, last, steps, dtype=torch.float64)


def cosine_schedule(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> Float[Tensor, " steps"]:
    """β_t = min(1 - ᾱ_t/ᾱ_{t-1}, largest) with ᾱ_t = f(t)/f(0), f(t) = cos²(π/2 (t/T + s)/(1 + s)) and s = `offset`
    (Nichol and Dhariwal 2021, eq. 17), float64.

    Raises ValueError for an argument that means nothing.

    >>> from companion.models.ddpm import alpha_bars, cosine_schedule
    >>> bars = alpha_bars(cosine_schedule(1000))
    >>> round(float(bars[500]), 3)  # half of the signal's power is left halfway
    0.494
    """
    require_positive_int(steps, "steps")
    if not (0 <= offset < math.inf and 0 < largest < 1):
        raise ValueError(f"offset must be at least 0 and largest within (0, 1), got {offset!r} and {largest!r}")
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((t + offset) / (1 + offset) * math.pi / 2).square()
    return (1 - f[1:] / f[:-1]).clamp(max=largest)


def alpha_bars(betas: Float[Tensor, " steps"]) -> Float[Tensor, " steps+1"]:
    """ᾱ_0 = 1, ᾱ_1, …, ᾱ_T in float64: products of α = 1 - β, summed as logarithms.

    Raises:
        TypeError: not a floating tensor.
        ValueError: not one-dimensional, or a β that is not above 0 and below 1.
    """
    if not isinstance(betas, Tensor) or not betas.is_floating_point():
        raise TypeError(f"betas must be a floating tensor, got {getattr(betas, 'dtype', type(betas).__name__)}")
    if betas.ndim != 1 or not len(betas):
        raise ValueError(f"betas must have shape (steps,), got {tuple(betas.shape)}")
    wrong = ~((betas > 0) & (betas < 1))
    if wrong.any():
        raise ValueError(f"betas must be above 0 and below 1, got {betas[wrong][0].item():g}")
    logs = torch.log1p(-betas.double().cpu()).cumsum(0)
    return torch.cat([logs.new_ones(1), logs.exp()])
