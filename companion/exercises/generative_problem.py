"""Answers of the chapter "The generative problem"."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float
from scipy import integrate, optimize, special
from scipy.stats import chi, norm

from companion.exercises.checking import NotYet, Unreadable, checks, dictionary, expect, function, kind, number, numbers


@checks("gp-1")
def circle(answer: Mapping[str, float]) -> None:
    """A dictionary of two numbers: {"Z": the constant, "P": the probability of |x| < 1}.

    Relative tolerance 1e-3, what a plain sum over a few hundred points reaches. Z is summed from the series of the
    Bessel function, P is a quadrature.
    """

    def mass(a, b, k=2.0):
        return integrate.quad(lambda x: np.exp(k * np.cos(x)), a, b)[0]

    bessel = sum(1 / special.factorial(m) ** 2 for m in range(20))  # I_0(2) = Σ (2/2)^{2m} / m!²
    Z = 2 * np.pi * bessel
    expect(
        numbers(answer, ("Z", "P")),
        {"Z": Z, "P": mass(-1, 1) / Z},
        {
            "this is I₀(2) alone: the integral runs over a length of 2π": {"Z": bessel},
            "this is the integral over half of the circle, from 0 to π": {"Z": Z / 2},
            "this is the constant of exp(cos x): the factor 2 is missing": {"Z": mass(-np.pi, np.pi, 1)},
            "divide by Z: this is the integral of the unnormalised density": {"P": mass(-1, 1)},
            "this is P(0 < x < 1), half of it": {"P": mass(0, 1) / Z},
            "this is the probability for a uniform density on the circle": {"P": 1 / np.pi},
        },
        "does the quadrature cover the whole interval, with steps that are small where the density is high?",
        relative=1e-3,
    )


@checks("gp-2")
def other_tail(answer: Mapping[str, bool]) -> None:
    """A dictionary of two truth values: {"1-u": ..., "u**2": ...}, True where x has the distribution F.

    The distribution function of each x is counted on an even grid of u and held to that of the exponential
    distribution: the largest difference is either that of the grid or a quarter.
    """
    names = {"1-u": lambda u: 1 - u, "u**2": lambda u: u**2}
    given = dictionary(answer, names)
    u = (np.arange(10_000) + 0.5) / 10_000
    for name, change in names.items():
        if not isinstance(given[name], bool | np.bool_):
            raise Unreadable(f"{name!r} is {kind(given[name])} where True or False was expected")
        x = np.sort(-np.log1p(-change(u)))
        same = bool(np.abs(u - (1 - np.exp(-x))).max() < 1e-3)
        if bool(given[name]) != same:
            raise NotYet(
                "1-u: what is P(1 - u ≤ t) for t between 0 and 1? Every uniform variable may stand in for u"
                if same
                else "u**2: u² lies between 0 and 1, but P(u² ≤ 1/4) is not 1/4"
            )


@checks("gp-3")
def mixture_density(answer: Callable[..., float]) -> None:
    """A function of (x, means, weights), a number and two arrays, that returns p(x) of the mixture with unit
    variances.

    Exact up to rounding, on three random mixtures, against the derivative of the mixture's distribution function by
    differences, which is good to 1e-7.
    """

    def right(x: float, means: Float[np.ndarray, " k"], weights: Float[np.ndarray, " k"]) -> float:
        def F(t):
            return sum(w * norm.cdf(t - m) for w, m in zip(weights, means, strict=True))

        return (F(x + 1e-4) - F(x - 1e-4)) / 2e-4

    def components(x, means):
        return norm.pdf(x, means, 1)

    rng = np.random.default_rng(0)
    instances = [(rng.normal(), 2 * rng.normal(size=3), rng.dirichlet([1.0, 1.0, 1.0])) for _ in range(3)]
    function(
        answer,
        right,
        instances,
        {
            "this is the colleague's version: the mean gives every z the same weight, in the place of p(z)": (
                lambda x, means, weights: components(x, means).mean()
            ),
            "the sum over z lacks the weights p(z); it does not even integrate to one": (
                lambda x, means, weights: components(x, means).sum()
            ),
            "this is the density of one Gaussian at the mean of the means": (
                lambda x, means, weights: norm.pdf(x, weights @ means, 1)
            ),
            "this is the most probable component alone; the evidence is a sum over all of them": (
                lambda x, means, weights: (weights * components(x, means)).max()
            ),
        },
        "the marginal likelihood sums p(z) p(x|z) over z",
        relative=1e-5,
    )


@checks("gp-4")
def covering_fit(answer: Callable[..., tuple[float, float]]) -> None:
    """A function of (t, p), an even grid and a density on it, that returns (mean, variance) of the Gaussian N(μ, σ²)
    with the smallest KL(p‖N).

    The divergence is minimised numerically on three densities of two clumps. Absolute tolerance 1e-3: the optimiser
    is good to 1e-5, a sum over the grid to 1e-6.
    """

    def minimise(t: np.ndarray, p: np.ndarray, reverse: bool = False) -> tuple[float, float]:
        p = p / p.sum()

        def divergence(v: np.ndarray) -> float:
            log_q = norm.logpdf(t, v[0], np.exp(v[1])) + np.log(t[1] - t[0])
            a, b = (log_q, np.log(p + 1e-300)) if reverse else (np.log(p + 1e-300), log_q)
            return float(np.sum(np.exp(a) * (a - b)))

        start = [t[p.argmax()], 0.0] if reverse else [0.0, 0.0]
        options = {"xatol": 1e-7, "fatol": 1e-12}
        mean, log_scale = optimize.minimize(divergence, start, method="Nelder-Mead", options=options).x
        return mean, np.exp(2 * log_scale)

    t = np.linspace(-9, 9, 1501)
    clumps = ((0.6, -2.0, 0.7, 2.2, 0.6), (0.3, -1.0, 0.5, 2.5, 0.8), (0.8, -2.5, 0.9, 1.5, 0.5))
    instances = [(t, w * norm.pdf(t, a, r) + (1 - w) * norm.pdf(t, b, s)) for w, a, r, b, s in clumps]
    function(
        answer,
        minimise,
        instances,
        {
            "this is the Gaussian that minimises KL(N‖p), the other way round: it picks one clump": (
                lambda t, p: minimise(t, p, reverse=True)
            ),
            "this is the standard deviation; the variance is asked for": (
                lambda t, p: (None, minimise(t, p)[1] ** 0.5)
            ),
            "this is the mean square: take it about the mean": lambda t, p: (None, np.average(t**2, weights=p)),
            "this is the mode, not the mean": lambda t, p: (t[p.argmax()], None),
            "this is the mean of the grid: weigh its points by p": lambda t, p: (t.mean(), t.var()),
        },
        "set the derivatives of E[log σ + (x - μ)²/2σ²] under p to zero",
        outputs=("mean", "variance"),
        absolute=1e-3,
    )


@checks("gp-5")
def crossing(answer: float) -> None:
    """A number: the probability of |K v·z| < 1 with K = 5 and a unit vector v in ten dimensions.

    Absolute tolerance 0.005, five standard errors of 130,000 draws. By rotation the first coordinate may stand for
    v·z; its law is found from that of z/‖z‖, a beta distribution, and ‖z‖², a chi-square one.
    """
    K, d = 5.0, 10

    # P(r |c| < 1/K) over the length r; c² is Beta(1/2, (d - 1)/2) for a direction drawn at random.
    def inside(r):
        return special.betainc(0.5, (d - 1) / 2, min(1.0, (1 / (K * r)) ** 2))

    right = integrate.quad(lambda r: chi.pdf(r, d) * inside(r), 0, 12)[0]
    expect(
        {"": number(answer)},
        {"": right},
        {
            "the vector v has length √10 here: divide by its norm": {"": 2 * norm.cdf(1 / (K * d**0.5)) - 1},
            "this counts 0 < K v·z < 1 only": {"": right / 2},
            "this is the share outside of the gap": {"": 1 - right},
            "this is the share with |v·z| < 1: the slope K is missing": {"": 2 * norm.cdf(1) - 1},
        },
        "which distribution has v·z, if z is N(0, I) and v a unit vector?",
        absolute=0.005,
    )
