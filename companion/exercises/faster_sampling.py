"""Answers of the chapter "Faster sampling"."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from scipy import integrate
from scipy.stats import norm
from torch import Tensor

from companion.data import density
from companion.exercises.checking import NotYet, Unreadable, array, call, checks, function, numbers
from companion.samplers import Grid, dpm_solver

Array = Float[np.ndarray, " dim"]


@checks("fast-1")
def path_of_a_point(answer: Callable[..., np.ndarray]) -> None:
    """A function of (x, bar, end, m): an array x at the level ᾱ = bar, the level where the path ends and the point m;
    it returns where the probability-flow ODE leads.

    The ODE dx/d(log ᾱ) = ½ (x + score) is solved by an adaptive Runge–Kutta method. Absolute tolerance 1e-6, its own
    being 1e-10.
    """

    def right(x: Array, bar: float, end: float, m: float) -> np.ndarray:
        def score(log_bar, x):
            return -(x - np.exp(log_bar / 2) * m) / (1 - np.exp(log_bar))

        def slope(log_bar, x):
            return (x + score(log_bar, x)) / 2

        return integrate.solve_ivp(slope, np.log([bar, end]), x, rtol=1e-10, atol=1e-12).y[:, -1]

    def eps(x: Array, bar: float, m: float) -> np.ndarray:
        return (x - bar**0.5 * m) / (1 - bar) ** 0.5

    x = np.array([-0.3, 1.2, 2.0])
    function(
        answer,
        right,
        [(x, 0.01, 0.95, 0.7), (x, 0.3, 0.6, -1.5), (x, 0.9, 0.2, 0.4)],
        {
            "the noise is left at the old level: it shrinks to √(1-ᾱ) of the end": (
                lambda x, bar, end, m: end**0.5 * m + (1 - bar) ** 0.5 * eps(x, bar, m)
            ),
            "this is x̄ at the end; x itself is √ᾱ times this": (
                lambda x, bar, end, m: m + ((1 - end) / end) ** 0.5 * eps(x, bar, m)
            ),
            "this is the point itself, which is reached at ᾱ = 1 only": lambda x, bar, end, m: 0 * x + m,
            "this is the mean at the end: the path keeps its noise, only less of it": (
                lambda x, bar, end, m: 0 * x + end**0.5 * m
            ),
            "x is divided by √ᾱ where the path starts: its own noise is x - √ᾱ m": (
                lambda x, bar, end, m: end**0.5 * m + (1 - end) ** 0.5 * (x - m) / (1 - bar) ** 0.5
            ),
        },
        "along a path ε̂ = (x - √ᾱ m)/√(1-ᾱ) does not change",
        absolute=1e-6,
    )


@checks("fast-2")
def ddim_step(answer: Callable[..., np.ndarray]) -> None:
    """A function of (x, eps, bar, previous), two arrays, ᾱ_t and ᾱ_{t-1}, that returns x_{t-1}.

    Euler's step in x̄ = x/√ᾱ and σ̄ = √((1-ᾱ)/ᾱ), where the ODE is dx̄ = ε̂ dσ̄. Exact up to rounding, for four pairs
    of levels, the last of which ends in the data.
    """

    def right(x: Array, eps: Array, bar: float, previous: float) -> np.ndarray:
        def sigma(bar):
            return ((1 - bar) / bar) ** 0.5

        return previous**0.5 * (x / bar**0.5 + (sigma(previous) - sigma(bar)) * eps)

    def x_0(x, eps, bar):
        return (x - (1 - bar) ** 0.5 * eps) / bar**0.5

    rng = np.random.default_rng(0)
    function(
        answer,
        right,
        [
            (*rng.normal(size=(2, 3)), bar, previous)
            for bar, previous in ((0.2, 0.3), (0.5, 0.9), (0.01, 0.6), (0.95, 1.0))
        ],
        {
            "this is the bug of the text: the noise is put back at the old level": lambda x, eps, bar, previous: (
                previous**0.5 * x_0(x, eps, bar) + (1 - bar) ** 0.5 * eps
            ),
            "the data are still at the old level, √ᾱ_t": lambda x, eps, bar, previous: (
                bar**0.5 * x_0(x, eps, bar) + (1 - previous) ** 0.5 * eps
            ),
            "x̂_0 is divided by √ᾱ_t": lambda x, eps, bar, previous: (
                previous**0.5 * (x - (1 - bar) ** 0.5 * eps) + (1 - previous) ** 0.5 * eps
            ),
            "the noise has the standard deviation √(1-ᾱ), not 1-ᾱ": lambda x, eps, bar, previous: (
                previous**0.5 * x_0(x, eps, bar) + (1 - previous) * eps
            ),
            "this is x̂_0: put the noise of the new level back": lambda x, eps, bar, previous: x_0(x, eps, bar),
            "this is the mean of the chain with noise": lambda x, eps, bar, previous: (
                (x - (1 - bar / previous) * eps / (1 - bar) ** 0.5) / (bar / previous) ** 0.5
            ),
        },
        "both parts belong to the new level: √ᾱ_{t-1} x̂_0 and √(1-ᾱ_{t-1}) ε̂",
        absolute=1e-9,
    )


@checks("fast-3")
def likelihood_and_tolerance(answer: Mapping[str, float]) -> None:
    """A dictionary of four numbers: {"1e-2": ..., "1e-3": ..., "1e-5": ..., "good enough": ...}, the mean -log p of
    200 test points in nats with each tolerance, and the largest of the three tolerances whose mean is within 0.01
    nats of that with the smallest.

    Trained numbers have no right value, only a range, summed on a grid: no density is better than the moons' own, but
    for five standard errors of 200 points, and one that has learned anything is better than the best single Gaussian.
    Which tolerance is good enough follows from the three numbers.
    """
    found = numbers(answer, ("1e-2", "1e-3", "1e-5", "good enough"))
    given = found.pop("good enough")
    best, scatter, gaussian = moons()
    for name, value in found.items():
        if -gaussian < value < -best + 5 * scatter:
            raise NotYet(f"{name}: this is log p; give minus that, which is positive")
        if value < best - 5 * scatter:
            raise NotYet(
                f"{name}: the entropy of the moons is {best:.2f} nats, and no density has less, but for chance: were "
                "the points of the training taken, or the nats divided by the two dimensions?"
            )
        if value > gaussian:
            raise NotYet(
                f"{name}: a single Gaussian has {gaussian:.2f} nats; are these bits, or is the teacher not trained?"
            )
    off = {name: abs(value - found["1e-5"]) for name, value in found.items()}
    chosen = next((name for name in found if np.isclose(float(name), given, atol=0)), None)
    if chosen is None:
        raise NotYet("good enough: give one of the three tolerances, 1e-2, 1e-3 or 1e-5")
    if off[chosen] > 0.01:
        raise NotYet(f"good enough: with {chosen} your mean is {off[chosen]:.3f} nats off that with 1e-5")
    largest = next(name for name in found if off[name] <= 0.01)
    if chosen != largest:
        raise NotYet(
            f"good enough: with {largest} your mean is {off[largest]:.3f} nats off that with 1e-5, and that will do"
        )


@cache
def moons() -> tuple[float, float, float]:
    """In nats: the entropy, the standard error of a mean of 200 log p, and the entropy of the Gaussian with the same
    mean and covariance, which is the least -log p of a Gaussian."""
    axis = torch.linspace(-5, 5, 201, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    log_p = density("moons", dtype=torch.float64).log_prob(points).numpy()
    p, x = np.exp(log_p) * 0.05**2, points.numpy()
    entropy = -p @ log_p
    covariance = np.cov(x.T, aweights=p, ddof=0)
    scatter = np.sqrt(p @ (log_p + entropy) ** 2 / 200)
    return entropy, scatter, 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]


@checks("fast-4")
def along_the_circle(answer: Callable[..., np.ndarray]) -> None:
    """A function of (a, b, angle), two codes of one length and an angle from 0 to π/2, that returns the code on the
    way from a to b.

    Three properties, for orthogonal codes of one norm, each up to 1e-9: it starts at a, ends at b, and has their norm
    everywhere between. At half of the angle it is as far from a as from b.
    """
    rng = np.random.default_rng(0)
    for d in (2, 5, 20):
        a, b = 3 * np.linalg.qr(rng.normal(size=(d, 2)))[0].T

        def at(angle: float, a: np.ndarray = a, b: np.ndarray = b) -> np.ndarray:
            code = np.squeeze(array(call(answer, a, b, angle), "what your function returns"))
            if code.shape != a.shape:
                raise Unreadable(f"the code has shape {code.shape} for codes of shape {a.shape}")
            return code

        def close(u, v):
            return np.abs(u - v).max() < 1e-9

        start, middle, end = at(0.0), at(np.pi / 4), at(np.pi / 2)
        if close(start, b) and close(end, a):
            raise NotYet("it runs from b to a: sine and cosine are exchanged")
        if not close(start, a):
            raise NotYet("at angle 0 it has to be a")
        if not close(end, b):
            raise NotYet(
                "at π/2 this is a mixture in proportion to the angle itself; the way has to end at b"
                if close(end, a + np.pi / 2 * (b - a))
                else "at the angle π/2 it has to be b"
            )
        for angle in (np.pi / 4, 0.3, 1.2):
            norm_ = np.linalg.norm(at(angle))
            if abs(norm_ - 3) > 1e-9:
                raise NotYet(
                    f"half-way the norm is {np.linalg.norm(middle):.3f}, of 3: "
                    + (
                        "this is the straight line, which cuts through where codes are improbable"
                        if close(middle, (a + b) / 2)
                        else "the weights' squares have to add up to one"
                    )
                )
        if not np.isclose(np.linalg.norm(middle - a), np.linalg.norm(middle - b)):
            raise NotYet("half of the angle is not half of the way")


@checks("fast-5")
def guided_variances(answer: Callable[..., tuple[float, float]]) -> None:
    """A function of (c, s, w), two standard deviations with c < s and the guidance, that returns (ode, sharpened):
    the variance of what the guided ODE generates, and that of the density p(x|y)^(1+w)/p(x)^w.

    The ODE is solved for the distance of two paths, by an adaptive method in log ᾱ/(1-ᾱ) from -30 to 30; the density
    is summed on a grid. Relative tolerance 1e-4, for solvers with finite steps.
    """

    def right(c: float, s: float, w: float) -> tuple[float, float]:
        def slope(log_snr: float, x: np.ndarray) -> np.ndarray:
            bar = 1 / (1 + np.exp(-log_snr))

            def score(v):
                return -x / (bar * v + 1 - bar)

            return (1 - bar) * (x + (1 + w) * score(c**2) - w * score(s**2)) / 2

        distance = integrate.solve_ivp(slope, (-30, 30), [1.0], rtol=1e-9, atol=1e-12).y[0, -1]
        x = np.linspace(-12 * c, 12 * c, 4001)
        log_p = (1 + w) * norm.logpdf(x, 0, c) - w * norm.logpdf(x, 0, s)
        p = np.exp(log_p - log_p.max())
        return distance**2, p @ x**2 / p.sum()

    def ode(c, s, w):
        return c**2 * (c / s) ** (2 * w)

    def sharpened(c, s, w):
        return 1 / ((1 + w) / c**2 - w / s**2)

    function(
        answer,
        right,
        [(0.5, 1.0, 2.0), (0.8, 1.5, 0.5), (0.3, 0.4, 4.0), (0.6, 1.0, 0.0)],
        {
            "the two are exchanged": lambda *a: (sharpened(*a), ode(*a)),
            "these are standard deviations": lambda *a: (ode(*a) ** 0.5, sharpened(*a) ** 0.5),
            "the exponent is w of the ratio of variances, not of standard deviations": lambda c, s, w: (
                c**2 * (c / s) ** w,
                None,
            ),
            "w = 0 has to give c²: the exponent is w, not 1 + w": lambda c, s, w: (
                c**2 * (c / s) ** (2 * (1 + w)),
                None,
            ),
            "divide by p(x)^w: its precision is subtracted": lambda c, s, w: (None, 1 / ((1 + w) / c**2 + w / s**2)),
            "this is p(x|y)^(1+w) alone, without p(x)": lambda c, s, w: (None, c**2 / (1 + w)),
            "at w = 0 this is not c²: the weights are 1 + w and -w": lambda c, s, w: (
                None,
                1 / (w / c**2 - (w - 1) / s**2),
            ),
        },
        "solve for the distance of two paths; and add precisions, 1 + w times one and -w times the other",
        outputs=("ode", "sharpened"),
        relative=1e-4,
    )


# ᾱ_0 … ᾱ_100 of the chapter's teacher.
BARS = np.cumprod([1.0, *(1 - np.linspace(1e-3, 0.2, 100))])
STARTS = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@checks("fast-6")
def better_times(answer: Sequence[int]) -> None:
    """A list of eleven whole times, falling from 100 to 0, for ten steps with the teacher's schedule, which has 100
    steps from 1e-3 to 0.2.

    They are tried on another density, eight Gaussians, whose noise is known: the samples have to end closer to where
    an adaptive Runge–Kutta method leads from the same 500 starts than with either spacing. No tolerance: a search on
    the moons halves the error here.
    """
    times = array(answer, "the answer")
    if times.shape != (11,):
        raise Unreadable(f"got {times.size} times, in an array of shape {times.shape}")
    if np.any(times != times.round()) or times.min() < 0 or times.max() > 100:
        raise Unreadable("the times are not whole numbers from 0 to 100; of a `Grid` its `times` are meant")
    if np.all(np.diff(times) > 0):
        raise Unreadable("the times rise: a sampler starts from the noise, at 100")
    if np.any(np.diff(times) >= 0) or times[0] != 100 or times[-1] != 0:
        raise Unreadable("the times do not fall from 100 to 0, each once")
    log_snr = np.log(BARS[1:] / (1 - BARS[1:]))
    even = np.interp(np.linspace(log_snr[-1], log_snr[0], 10), log_snr[::-1], np.arange(100, 0, -1))
    spacings = {"even in t": np.arange(100, -1, -10), "even in log SNR": np.append(even.round(), 0)}
    off = {name: error_on_eight_gaussians(at) for name, at in spacings.items()}
    if (found := error_on_eight_gaussians(times)) >= min(off.values()):
        known = next((name for name, at in spacings.items() if np.array_equal(at, times)), None)
        raise NotYet(
            f"these are the times {known}; look for better ones"
            if known
            else f"on eight Gaussians the samples end {found:.3f} off, "
            + " and ".join(f"{value:.3f} with times {name}" for name, value in off.items())
            + ". Did the search go on long enough, and by a number without noise of its own, such as the distance to "
            "where a hundred steps lead?"
        )


def noise_of_eight_gaussians(x: Float[Tensor, "batch 2"], bar: float) -> Float[Tensor, "batch 2"]:
    """E[ε|x_t] at the level ᾱ, by Bayes' rule over the eight."""
    angles = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    centres = 3 * torch.stack([angles.cos(), angles.sin()], 1)
    away, variance = x[:, None] - bar**0.5 * centres, bar * 0.3**2 + 1 - bar
    weights = torch.softmax(-away.square().sum(2) / (2 * variance), 1)
    return (1 - bar) ** 0.5 * (weights[..., None] * away).sum(1) / variance


@cache
def ends_on_eight_gaussians() -> Float[Tensor, "batch 2"]:
    """Where dx̄/dσ̄ = ε̂ leads from the starts at ᾱ_100."""

    def slope(sigma: float, x: np.ndarray) -> np.ndarray:
        bar = 1 / (1 + sigma**2)
        return noise_of_eight_gaussians(bar**0.5 * torch.from_numpy(x).reshape(-1, 2), bar).flatten().numpy()

    start, top = (STARTS / BARS[-1] ** 0.5).flatten().numpy(), (1 / BARS[-1] - 1) ** 0.5
    end = integrate.solve_ivp(slope, (top, 0), start, rtol=1e-7, atol=1e-7).y[:, -1]
    return torch.from_numpy(end).reshape(-1, 2)


def error_on_eight_gaussians(times: Float[np.ndarray, " times"]) -> float:
    """How far from there DPM-Solver++ ends, on average."""
    bars = BARS[times.astype(int)].tolist()
    x = dpm_solver(noise_of_eight_gaussians, STARTS, Grid(bars, bars))
    return (x - ends_on_eight_gaussians()).norm(dim=1).mean().item()
