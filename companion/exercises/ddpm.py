"""Answers of the chapter "Diffusion: DDPM and its bound"."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from companion.exercises.checking import NotYet, checks, expect, function, number, numbers


def linear_bars(steps: int, first: float, last: float) -> tuple[np.ndarray, np.ndarray]:
    """β_1 … β_T in equal steps, and ᾱ_1 … ᾱ_T."""
    betas = np.linspace(first, last, steps)
    return betas, np.cumprod(1 - betas)


@checks("ddpm-1")
def step_back(answer: Callable[..., float]) -> None:
    """A function of (c, bar, previous), three numbers, that returns the variance of q(x_{t-1} | x_t) for data N(0,
    c), where bar is ᾱ_t and previous is ᾱ_{t-1}; c = 0 is a single point.

    By conditioning in the joint covariance of (x_{t-1}, x_t). Exact up to rounding, for five triples.
    """

    def right(c: float, bar: float, previous: float) -> float:
        alpha = bar / previous
        before = previous * c + 1 - previous
        covariance = np.array(
            [[before, np.sqrt(alpha) * before], [np.sqrt(alpha) * before, alpha * before + 1 - alpha]]
        )
        return covariance[0, 0] - covariance[0, 1] ** 2 / covariance[1, 1]

    def tilde(bar, previous):
        return (1 - previous) / (1 - bar) * (1 - bar / previous)

    function(
        answer,
        right,
        [(0.0, 0.5, 0.55), (1.0, 0.5, 0.55), (0.3, 0.2, 0.6), (4.0, 0.7, 0.8), (0.3, 0.9, 0.95)],
        {
            "this is β̃, the variance when x_0 is known: right for a point only": lambda c, bar, previous: tilde(
                bar, previous
            ),
            "this is β, right for data N(0, I) only": lambda c, bar, previous: 1 - bar / previous,
            "this is the variance of x_{t-1} before x_t is seen": lambda c, bar, previous: previous * c + 1 - previous,
            "this interpolates between β̃ and β; what is left of x_0 given x_t is not linear in c": (
                lambda c, bar, previous: (1 - c) * tilde(bar, previous) + c * (1 - bar / previous)
            ),
            "this is the standard deviation": lambda *a: right(*a) ** 0.5,
        },
        "(x_{t-1}, x_t) is a Gaussian: condition it, or add to β̃ what is not known of x_0",
    )


@checks("ddpm-2")
def ancestral_step(answer: Callable[..., Tensor]) -> None:
    """A function of (x, eps, noise, t, beta, bar, sigma): x_t, ε̂ and N(0, I) noise of one shape, the time, β_t, ᾱ_t
    and σ_t; it returns x_{t-1}.

    For data that are a point ε̂ is known, the mean is that of q(x_{t-1} | x_t, x_0), and the step to t = 0 returns
    the point whatever the noise. Exact up to rounding, at t = 1, 2 and 50.
    """
    point = 0.7

    def right(x: Tensor, eps: Tensor, noise: Tensor, t: int, beta: float, bar: float, sigma: float) -> Tensor:
        if t == 1:
            return torch.full_like(x, point)
        # Bayes' rule between N(x_{t-1}; √ᾱ_{t-1} x_0, 1 - ᾱ_{t-1}) and N(x_t; √α x_{t-1}, β).
        alpha, previous = 1 - beta, bar / (1 - beta)
        precision = 1 / (1 - previous) + alpha / beta
        mean = (previous**0.5 * point / (1 - previous) + alpha**0.5 * x / beta) / precision
        return mean + sigma * noise

    def mean(x, eps, noise, t, beta, bar, sigma) -> Tensor:
        return (x - beta * eps / (1 - bar) ** 0.5) / (1 - beta) ** 0.5

    betas, bars = linear_bars(100, 1e-3, 0.2)
    generator = torch.Generator().manual_seed(0)
    instances = []
    for t in (1, 2, 50):
        bar = float(bars[t - 1])
        x, noise = torch.randn(2, 4, generator=generator, dtype=torch.float64)
        eps = (x - bar**0.5 * point) / (1 - bar) ** 0.5
        instances.append((x, eps, noise, t, float(betas[t - 1]), bar, float(betas[t - 1]) ** 0.5))

    def noisy(x, eps, noise, t, beta, bar, sigma):
        return sigma * noise

    def time(*a):
        return a[3]

    function(
        answer,
        right,
        instances,
        {
            "this is the bug of the text: the last step, to t = 0, adds noise that nothing removes": (
                lambda *a: mean(*a) + noisy(*a)
            ),
            "the noise is left out at all times; only the last step has none": mean,
            "the noise has the variance σ²: multiply it by σ": lambda *a: mean(*a) + a[6] * noisy(*a) * (time(*a) > 1),
            "the last step is that from t = 1 to 0; this leaves the noise out one step before, too": (
                lambda *a: mean(*a) + noisy(*a) * (time(*a) > 2)
            ),
            "the mean is divided by √α at the end": lambda x, eps, noise, t, beta, bar, sigma: (
                x - beta * eps / (1 - bar) ** 0.5 + sigma * noise * (t > 1)
            ),
            "β ε̂ is divided by √(1 - ᾱ), not by 1 - ᾱ": lambda x, eps, noise, t, beta, bar, sigma: (
                (x - beta * eps / (1 - bar)) / (1 - beta) ** 0.5 + sigma * noise * (t > 1)
            ),
        },
        "the mean is (x - β ε̂/√(1-ᾱ))/√α, and σ times the noise comes on top, at all times but one",
        absolute=1e-9,
    )


@checks("ddpm-3")
def short_schedule(answer: Mapping[str, float]) -> None:
    """A dictionary of two numbers: {"left": ᾱ_T, "nats": the prior's term}.

    ᾱ_T is the product of the hundred factors, the term is torch's divergence summed over 784 coordinates with x_0² =
    1. Relative tolerance 0.01, for two digits of ᾱ_T.
    """

    def term(bar: float, d: int = 784) -> float:
        q = Normal(torch.full((d,), bar**0.5).double(), torch.full((d,), (1 - bar) ** 0.5).double())
        return kl_divergence(q, Normal(torch.zeros(d).double(), 1.0)).sum().item()

    betas, bars = linear_bars(100, 1e-4, 0.02)
    left, long = bars[-1], linear_bars(1000, 1e-4, 0.02)[1][-1]
    right = {"left": left, "nats": term(left)}
    expect(
        numbers(answer, ("left", "nats")),
        right,
        {
            "this is √ᾱ_T, the factor of x_0; ᾱ_T is asked for": {"left": left**0.5},
            "this is the share of the noise, 1 - ᾱ_T": {"left": 1 - left},
            "this is α_T of the last step; multiply all of them": {"left": 1 - betas[-1]},
            "this is the value for T = 1,000": {"left": long, "nats": term(long)},
            "multiply 1 - β, do not add up β": {"left": 1 - betas.sum()},
            "this is the term of one dimension": {"nats": term(left, 1)},
            "these are bits": {"nats": term(left) / np.log(2)},
            "the factor one half is missing": {"nats": 2 * term(left)},
            "this has √ᾱ in the place of ᾱ": {"nats": term(left**0.5)},
            "this counts the means alone, ½ ᾱ‖x_0‖²; the variance 1 - ᾱ is not one either": {"nats": 784 / 2 * left},
        },
        "ᾱ_T = ∏ (1 - β_t), and the term is ½ Σ (ᾱx_0² + (1 - ᾱ) - 1 - log(1 - ᾱ))",
        relative=0.02,
    )


@checks("ddpm-4")
def early_times(answer: float) -> None:
    """A number: P(t ≤ 100) when t = 2 … 1,000 is drawn in proportion to the bound's weight with the posterior's
    variance.

    The weights are β²/(2σ²α(1 - ᾱ)), where the chapter has ratios of ᾱ/(1 - ᾱ). Absolute tolerance 0.006, for two
    decimals.
    """
    betas, bars = linear_bars(1000, 1e-4, 0.02)
    beta, bar, previous = betas[1:], bars[1:], bars[:-1]

    def share(w):
        return w[:99].sum() / w.sum()

    posterior = beta * (1 - previous) / (1 - bar)

    def weight(variance):
        return beta**2 / (2 * variance * (1 - beta) * (1 - bar))

    expect(
        {"": number(answer)},
        {"": share(weight(posterior))},
        {
            "this is for times drawn evenly": {"": 0.1},
            "this is the weight with the forward variance, σ² = β": {"": share(weight(beta))},
            "this is the share of the later times": {"": 1 - share(weight(posterior))},
            "draw in proportion to the weight, not to its root": {"": share(weight(posterior) ** 0.5)},
            "draw in proportion to the weight, not to one over it": {"": share(1 / weight(posterior))},
        },
        "add up the weights of the times up to 100, and divide by the sum of all",
        absolute=0.006,
    )


@checks("ddpm-5")
def from_v(answer: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
    """A function of (x_t, v, bar), two tensors of one shape and ᾱ_t, that returns (eps, x_0, score).

    x_t and v are made from known ε and x_0, by which all three are checked; the score is the gradient of log N(x_t;
    √ᾱ x_0, 1 - ᾱ) by autograd. Absolute tolerance 1e-9.
    """
    generator = torch.Generator().manual_seed(0)
    known, instances = [], []
    for bar in (0.3, 0.9, 0.05):
        x_0, eps = torch.randn(2, 5, generator=generator, dtype=torch.float64)
        x_t = (bar**0.5 * x_0 + (1 - bar) ** 0.5 * eps).requires_grad_()
        log_q = Normal(bar**0.5 * x_0, (1 - bar) ** 0.5).log_prob(x_t).sum()
        known.append((eps, x_0, torch.autograd.grad(log_q, x_t)[0]))
        instances.append((x_t.detach(), bar**0.5 * eps - (1 - bar) ** 0.5 * x_0, bar))
    answers = {bar: parts for (_, _, bar), parts in zip(instances, known, strict=True)}

    def right(x_t: Float[Tensor, " dim"], v: Float[Tensor, " dim"], bar: float) -> tuple[Tensor, Tensor, Tensor]:
        return answers[bar]

    def slip(change: Callable[..., tuple]) -> Callable[..., tuple]:
        return lambda x_t, v, bar: change(x_t, v, bar**0.5, (1 - bar) ** 0.5)

    function(
        answer,
        right,
        instances,
        {
            "v has the other sign: v = √ᾱ ε - √(1-ᾱ) x_0": slip(
                lambda x, v, a, s: (s * x - a * v, a * x + s * v, -(s * x - a * v) / s)
            ),
            "√ᾱ and √(1-ᾱ) are exchanged": slip(
                lambda x, v, a, s: (a * x + s * v, s * x - a * v, -(a * x + s * v) / a)
            ),
            "this takes v for ε̂": slip(lambda x, v, a, s: (v, (x - s * v) / a, -v / s)),
            "the score is -ε̂ divided by √(1-ᾱ)": slip(
                lambda x, v, a, s: (s * x + a * v, a * x - s * v, -(s * x + a * v))
            ),
            "the sign is inverted": slip(lambda x, v, a, s: (-s * x - a * v, s * v - a * x, (s * x + a * v) / s)),
            "divide by √(1-ᾱ), not by 1-ᾱ": slip(lambda x, v, a, s: (None, None, -(s * x + a * v) / s**2)),
            "divide by √(1-ᾱ), not by √ᾱ": slip(lambda x, v, a, s: (None, None, -(s * x + a * v) / a)),
        },
        "(x_t, v) is (x_0, ε) rotated: rotate back",
        outputs=("eps", "x_0", "score"),
        absolute=1e-9,
    )


@checks("ddpm-6")
def gaps(answer: Mapping[str, float]) -> None:
    """A dictionary of three numbers: {"posterior": ..., "forward": ..., "measured": ...}, the nats of the negative
    bound above the entropy, for each choice of σ_t².

    Trained numbers have no right value, but two properties: a bound is not below the entropy, and no variance does
    better than the measured one. Both are allowed 0.1 nats, five standard errors of some thousand test points.
    """
    found = numbers(answer, ("posterior", "forward", "measured"))
    for name, gap in found.items():
        if gap < -0.1:
            raise NotYet(
                f"{name}: a bound above -entropy: was the term at t = 1 or the prior's left out, or the sign changed?"
            )
    if found["measured"] > min(found["posterior"], found["forward"]) + 0.1:
        raise NotYet(
            "measured: the measured variance minimises each term, and is here above another: is it β̃_t plus the mean "
            "square per coordinate, scaled by β²/((1-ᾱ)α)?"
        )
