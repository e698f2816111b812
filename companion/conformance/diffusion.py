"""Of diffusions: does the schedule hang together, is the denoiser the score, is the last step without noise?"""

import itertools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from companion.conformance.outcomes import Fault, Outcome, Undecided, conformance, judge, rounding_of, seeded, show

Field = Callable[[Tensor], Tensor]
# For this many steps a product in float32 is good to so much.
PRODUCT = 1e-4


@conformance
def schedule_consistent(betas: Float[Tensor, " steps"], alpha_bars: Float[Tensor, " n"]) -> Outcome:
    """0 < β_t < 1 and ᾱ_t = ∏_{s≤t} (1 - β_s), for ᾱ from t = 0, where it is 1, or from t = 1.

    Fails, too, for T β with another number of ᾱ than T or T + 1.

    >>> import torch
    >>> from companion.conformance import schedule_consistent
    >>> betas = torch.linspace(1e-4, 0.02, 1000)
    >>> bool(schedule_consistent(betas, (1 - betas).cumprod(0)))
    True
    >>> schedule_consistent(betas, (1 - betas).cumprod(0).sqrt()).detail.split("; ")[-1]
    '√ᾱ in place of ᾱ'
    """
    betas, got = betas.detach().double().cpu(), alpha_bars.detach().double().cpu()
    if betas.ndim != 1 or not len(betas) or got.ndim != 1 or len(got) - len(betas) not in (0, 1):
        raise Fault(f"T β need T or T + 1 ᾱ, got shapes {tuple(betas.shape)} and {tuple(got.shape)}")
    wrong = ~((betas > 0) & (betas < 1))
    if wrong.any():
        t = int(wrong.nonzero()[0])
        raise Fault(f"β_{t + 1} is {betas[t]:.6g}, not above 0 and below 1")
    products = torch.cat([torch.ones(1).double(), torch.log1p(-betas).cumsum(0).exp()])
    first = len(products) - len(got)
    expected = products[first:]
    rounding = PRODUCT if alpha_bars.dtype != torch.float64 or len(betas) > 10_000 else 1e-9
    after, last = products[1:], got[-len(betas) :]
    others = {
        "the product of β in place of 1 - β": betas.cumprod(0),
        "√ᾱ in place of ᾱ": after.sqrt(),
        "1 - ᾱ in place of ᾱ": 1 - after,
        "α in place of the product of all of them": 1 - betas,
        "1 minus the sum of β in place of the product": 1 - betas.cumsum(0),
        "off by one: each is that of the time before": products[:-1],
    }

    def fault(i: int) -> str:
        text = f"ᾱ_{i + first} is {got[i]:.6g}, the product of 1 - β is {expected[i]:.6g}"
        close = (name for name, values in others.items() if torch.allclose(last, values, rtol=rounding, atol=rounding))
        return "; ".join([text, *itertools.islice(close, 1)])

    return judge((got / expected - 1).abs(), 0.0, rounding, fault, f"{len(betas)} steps", unit="")


@conformance
def denoiser_matches_score(eps: Field, log_prob: Field, x: Float[Tensor, " batch *event"], alpha_bar: float) -> Outcome:
    """ε̂(x_t) = -√(1 - ᾱ_t) ∇ log q(x_t), at one time, with `log_prob` log q(x_t) of the noised data.

    A failure says whether it is the score, x̂_0 or v that was given, and names a sign or a factor. Fails for an ε̂ of
    another shape than x; undecided where the score is zero at every x.

    Raises ValueError for an alpha_bar below 0 or above 1.
    """
    _require_alpha_bar(alpha_bar)
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        [score] = torch.autograd.grad(log_prob(leaf).sum(), leaf)
    with torch.no_grad():
        got = eps(x)
    if got.shape != x.shape:
        raise Fault(f"the denoiser has shape {tuple(got.shape)}, x has {tuple(x.shape)}")
    if not score.any():
        raise Undecided("the score is zero at every x: an ε̂ of any sign and scale would fit")
    signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    expected = -noise * score
    x0 = (x - noise * expected) / signal
    others = {
        "that is the score": score,
        "that is x̂_0": x0,
        "that is v": signal * expected - noise * x0,
        "the sign is inverted": -expected,
        "√(1 - ᾱ) is missing": -score,
        "1 - ᾱ in place of its root": -(noise**2) * score,
        "√ᾱ in place of √(1 - ᾱ)": -signal * score,
    }
    rounding = rounding_of(expected.flatten(1).abs().max(1).values)

    def fault(i: int) -> str:
        text = f"at {show(x, i)} ε̂ is {_row(got[i])}, -√(1 - ᾱ) ∇ log q is {_row(expected[i])}"
        named = next((name for name, value in others.items() if (_worst(got, value) <= rounding).all()), "")
        return f"{text}; {named}" if named else text

    return judge(_worst(got, expected), 0.0, rounding, fault, f"{len(x)} inputs", unit="")


@conformance
def sampler_without_final_noise(
    sample: Callable[[Callable[[Tensor, float], Tensor], Tensor], Tensor],
    alpha_bar: Callable[[float], float],
    x: Float[Tensor, " batch *event"],
    point: float = 0.3,
    seed: int = 0,
) -> Outcome:
    """Data that are one single point are sampled as this point: what the last step returns is x̂_0, and no noise on it.

    That holds for samplers that end at ᾱ = 1 and are exact where x̂_0 does not change: those of DDPM and DDIM, Heun's
    method in σ̄, DPM-Solver++. Euler's method in time is not.

    Args:
        sample: from a denoiser, eps(x, t), and where it starts to what it returns.
        alpha_bar: ᾱ at the times that `sample` gives its denoiser.
        x: where it starts.
        point: the value of every coordinate of the data.

    Fails, too, for samples of another shape than x. Raises ValueError where ᾱ is below 0 or above 1.
    """

    def eps(x: Tensor, t: float) -> Tensor:
        bar = float(alpha_bar(t))
        _require_alpha_bar(bar, f"alpha_bar({t:g})")
        if bar == 1:
            raise Fault(f"the denoiser is asked at t = {t:g}, where ᾱ is 1 and there is no noise to be found")
        return (x - math.sqrt(bar) * point) / math.sqrt(1 - bar)

    with seeded(seed), torch.no_grad():
        out = sample(eps, x)
    if out.shape != x.shape:
        raise Fault(f"the samples have shape {tuple(out.shape)}, x has {tuple(x.shape)}")
    off = (out - point).double().flatten(1)
    rounding = rounding_of(torch.ones(len(x)), x.dtype) * 100

    def fault(i: int) -> str:
        text = f"all data are {point:g}, sample {i} is {_row(out[i])}"
        shift, spread = float(off.mean()), float(off.std()) if off.numel() > 1 else 0.0
        if spread > abs(shift) and spread > float(rounding[0]):
            return f"{text}; noise of a standard deviation about {spread:.2g} is left, as of a last step that adds some"
        return f"{text}; all of them are off by {shift:.3g}"

    return judge(off.abs().max(1).values, 0.0, rounding, fault, f"{len(x)} samples", unit="")


def _require_alpha_bar(value: float, name: str = "alpha_bar") -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value:.6g}")


def _worst(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).flatten(1).abs().max(1).values.double()


def _row(values: Tensor) -> str:
    values = values.flatten()
    return f"[{', '.join(f'{v:.4g}' for v in values[:4].tolist())}{', …' if len(values) > 4 else ''}]"
