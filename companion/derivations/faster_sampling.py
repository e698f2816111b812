"""Checks for the chapter on sampling in few steps.

Time runs from 0, the data, to 1. a = √ᾱ_t and σ = √(1-ᾱ_t), so that x_t = a x_0 + σε.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from scipy import integrate, linalg
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal

from companion.derivations.registry import Lines, Mutant, Tolerance, verifies
from companion.derivations.toys import gauss_hermite, plane

Array = np.ndarray
Field = Callable[[float, Array], Array]
Map = Callable[[torch.Tensor], torch.Tensor]
Real = TypeVar("Real", float, Array)
Level = TypeVar("Level", float, torch.Tensor)

SMALL_SUMS = Tolerance(tolerance=1e-11, reason="sums of a few float64 numbers of order one")
JACOBIANS = Tolerance(tolerance=1e-10, reason="float64 derivatives by autograd in a few dimensions")
SOLVED = Tolerance(tolerance=1e-8, reason="a Runge-Kutta method of order 8 with a tolerance of 1e-11 for each step")


# Numbers of steps whose limit is taken.
_DOUBLINGS = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class _Schedule:
    """β(t), a straight line. For numbers, arrays and tensors alike."""

    low: float
    high: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> "_Schedule":
        return cls(rng.uniform(0.2, 0.6), rng.uniform(3.0, 5.0))

    def beta(self, t):
        return self.low + (self.high - self.low) * t

    def alpha_bar(self, t):
        return np.e ** -(self.low * t + (self.high - self.low) * t**2 / 2)

    def a(self, t):
        return self.alpha_bar(t) ** 0.5

    def sigma(self, t):
        return (1 - self.alpha_bar(t)) ** 0.5

    def time(self, alpha_bar):
        """The t at which ᾱ_t has this value."""
        slope = self.high - self.low
        return ((self.low**2 - 2 * slope * np.log(alpha_bar)) ** 0.5 - self.low) / slope


@dataclass(frozen=True)
class _Mixture:
    """Data x_0 from a mixture of Gaussians: a x_0 + σε is from another one."""

    weights: Array
    means: Array
    covariances: Array

    @classmethod
    def random(cls, rng: np.random.Generator, parts: int = 2, dim: int = 2) -> "_Mixture":
        factors = 0.4 * rng.normal(size=(parts, dim, dim))
        covariances = 0.15 * np.eye(dim) + factors @ factors.swapaxes(1, 2)
        return cls(rng.dirichlet(np.full(parts, 5.0)), rng.normal(size=(parts, dim)), covariances)

    def noised(self, a: float, sigma: float) -> "_Mixture":
        noise = sigma**2 * np.eye(self.means.shape[1])
        return _Mixture(self.weights, a * self.means, a**2 * self.covariances + noise)

    def _parts(self, x: Array) -> tuple[Array, Array]:
        """log of weight times density, (..., parts), and its gradient, (..., parts, dim)."""
        precisions = np.linalg.inv(self.covariances)
        away = x[..., None, :] - self.means
        slope = -(precisions @ away[..., None])[..., 0]
        normaliser = np.linalg.slogdet(2 * np.pi * self.covariances)[1] / 2
        return np.log(self.weights) + (away * slope).sum(-1) / 2 - normaliser, slope

    def log_density(self, x: Array) -> Array:
        return logsumexp(self._parts(x)[0], axis=-1)

    def score(self, x: Array) -> Array:
        """∇ log p(x), written out."""
        log_parts, slope = self._parts(x)
        return (softmax(log_parts, axis=-1)[..., None] * slope).sum(-2)

    def hessian(self, x: Array) -> Array:
        """∇∇ᵀ log p(x), written out."""
        log_parts, slope = self._parts(x)
        share = softmax(log_parts, axis=-1)[..., None, None]
        squares = slope[..., :, None] * slope[..., None, :] - np.linalg.inv(self.covariances)
        score = (share[..., 0] * slope).sum(-2)
        return (share * squares).sum(-3) - score[..., :, None] * score[..., None, :]

    def posterior(self, x: Array, a: float, sigma: float) -> tuple[Array, Array]:
        """Mean and covariance of x_0 given a x_0 + σε = x, each part conditioned as Gaussians are."""
        noised = self.noised(a, sigma)
        share = softmax(noised._parts(x)[0], axis=-1)[..., None]
        gain = a * self.covariances @ np.linalg.inv(noised.covariances)
        means = self.means + (gain @ (x[..., None, :] - noised.means)[..., None])[..., 0]
        mean = (share * means).sum(-2)
        squares = self.covariances - a * gain @ self.covariances + means[..., :, None] * means[..., None, :]
        return mean, (share[..., None] * squares).sum(-3) - mean[..., :, None] * mean[..., None, :]

    def denoised(self, x: Array, a: float, sigma: float) -> Array:
        """x̂_0(x) = E[x_0 | a x_0 + σε = x]."""
        return self.posterior(x, a, sigma)[0]

    def log_prob(self, a: torch.Tensor | float = 1.0, sigma: torch.Tensor | float = 0.0) -> Map:
        """log p of a x_0 + σε, for autograd."""
        means, noise = torch.tensor(self.means), sigma**2 * torch.eye(self.means.shape[1], dtype=torch.float64)
        covariances = a**2 * torch.tensor(self.covariances) + noise
        constants = torch.tensor(np.log(self.weights)) - torch.logdet(2 * torch.pi * covariances) / 2

        def log_prob(x: torch.Tensor) -> torch.Tensor:
            away = x[..., None, :] - a * means
            squares = (away * torch.linalg.solve(covariances, away.unsqueeze(-1)).squeeze(-1)).sum(-1)
            return torch.logsumexp(constants - squares / 2, -1)

        return log_prob

    def autograd_score(self, x: Array, a: float = 1.0, sigma: float = 0.0) -> Array:
        """∇ log p of a x_0 + σε, by autograd."""
        point = torch.tensor(x, requires_grad=True)
        return torch.autograd.grad(self.log_prob(a, sigma)(point).sum(), point)[0].numpy()


def _gradient(function: Map, x: torch.Tensor) -> torch.Tensor:
    """∇ of a function of each of several points, to be differentiated again."""
    return torch.autograd.grad(function(x).sum(), x, create_graph=True)[0]


def _divergence(field: Map, x: Array) -> Array:
    """∇· of a vector field at several points, by autograd."""
    points = torch.tensor(x, requires_grad=True)
    values = field(points)
    each = [torch.autograd.grad(v.sum(), points, retain_graph=True)[0][:, i] for i, v in enumerate(values.T)]
    return torch.stack(each).sum(0).numpy()


def _limit(values: Sequence[Array], order: int = 1) -> Array:
    """lim_{n→∞} of a sequence given at n, 2n, 4n, …, whose error is a series in 1/n from the power `order` on, by
    Richardson's extrapolation."""
    values = [np.asarray(v) for v in values]
    for power in range(order, order + len(values) - 1):
        values = [after + (after - before) / (2**power - 1) for before, after in itertools.pairwise(values)]
    return values[0]


def _legendre(low: float, high: float, points: int = 40) -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return (high - low) / 2 * nodes + (high + low) / 2, (high - low) / 2 * weights


def _solve(field: Field, x: Array, start: float, end: float | Array) -> Array:
    """Where dx/dt = field(t, x) leads, for one end or several in the order of time."""
    ends = np.atleast_1d(end)
    flat = integrate.solve_ivp(
        lambda t, y: np.ravel(field(t, y.reshape(np.shape(x)))),
        (start, ends[-1]),
        np.ravel(x),
        method="DOP853",
        t_eval=ends,
        rtol=1e-11,
        atol=1e-11,
    ).y.T
    return flat.reshape(*np.shape(end), *np.shape(x))


# Continuous time


@verifies(
    "vp-sde",
    r"""\begin{aligned}
dx&=-\tfrac12\beta(t)\,x\,dt+\sqrt{\beta(t)}\,dW\\
\Longrightarrow\quad\frac{d\mu}{dt}&=-\tfrac12\beta(t)\,\mu,\qquad\frac{d\Sigma}{dt}=\beta(t)\,(I-\Sigma)\\
\Longrightarrow\quad\mu_t&=\sqrt{\bar\alpha_t}\,\mu_0,\qquad\Sigma_t=\bar\alpha_t\Sigma_0+(1-\bar\alpha_t)I,\qquad
\bar\alpha_t=e^{-\int_0^t\beta(s)\,ds}
\end{aligned}""",
    kind="identity",
    route="closed form",
    tolerance=1e-8,
    reason="a limit of 16 to 1024 steps by extrapolation, and a Runge-Kutta method to 1e-11 for each step",
)
def vp_sde(rng: np.random.Generator) -> Lines:
    schedule, data, end = _Schedule.random(rng), _Mixture.random(rng, parts=1), rng.uniform(0.4, 0.8)
    [mean], [covariance] = data.means, data.covariances

    def moments(of_mean: float, kept: float, added: float) -> Array:
        return np.concatenate([of_mean * mean, (kept * covariance + added * np.eye(2)).ravel()])

    def steps(n: int) -> Array:
        """DDPM's steps, β_i = β(t_i)/n of each unit of time."""
        of_mean = kept = 1.0
        added = 0.0
        for i in range(1, n + 1):
            beta = schedule.beta(end * i / n) * end / n
            of_mean, kept, added = np.sqrt(1 - beta) * of_mean, (1 - beta) * kept, (1 - beta) * added + beta
        return moments(of_mean, kept, added)

    def solved(drift: float = -0.5, noise: float = 1.0) -> Array:
        """The moments of dx = drift β x dt + √β^noise dW."""

        def field(t: float, y: Array) -> Array:
            beta = schedule.beta(t)
            return np.concatenate([drift * beta * y[:2], 2 * drift * beta * y[2:] + beta**noise * np.eye(2).ravel()])

        return _solve(field, moments(1.0, 1.0, 0.0), 0.0, end)

    def ito(power: float = 1.0) -> Array:
        """The solution of the equation, an integral over dW: its square is one over ds."""
        s, weight = _legendre(0.0, end)
        ratio = schedule.alpha_bar(end) / schedule.alpha_bar(s)
        return moments(np.sqrt(bar), bar, weight @ (ratio**power * schedule.beta(s)))

    bar, constant = schedule.alpha_bar(end), np.exp(-schedule.beta(end) * end)
    isometry = "= √ᾱ_t μ_0 and ᾱ_t Σ_0 + ∫(ᾱ_t/ᾱ_s) β(s) ds I, by Itô"
    line = "= the moments' differential equations, by SciPy"
    return Lines(
        {
            "E[x_t] and Cov[x_t] after n steps of DDPM, n → ∞": _limit([steps(n) for n in _DOUBLINGS]),
            isometry: ito(),
            line: solved(),
            "= √ᾱ_t μ_0 and ᾱ_t Σ_0 + (1-ᾱ_t) I": moments(np.sqrt(bar), bar, 1 - bar),
        },
        [
            Mutant("a drift of -β(t) x", {line: solved(drift=-1.0)}),
            Mutant("a drift of +½β(t) x", {line: solved(drift=0.5)}),
            Mutant("β(t) dW", {line: solved(noise=2.0)}),
            Mutant("√(ᾱ_t/ᾱ_s) dW, not squared", {isometry: ito(power=0.5)}),
            Mutant("ᾱ_t for √ᾱ_t in the mean", moments(bar, bar, 1 - bar), erratum="E004-13"),
            Mutant("1-√ᾱ_t for 1-ᾱ_t", moments(np.sqrt(bar), bar, 1 - np.sqrt(bar))),
            Mutant("ᾱ_t = e^{-β(t) t}", moments(np.sqrt(constant), constant, 1 - bar)),
        ],
    )


@verifies(
    "fokker-planck-ode",
    r"""\begin{aligned}
\frac{\partial p_t}{\partial t}&=-\nabla\cdot(f\,p_t)+\tfrac12g^2\,\Delta p_t\\
&=-\nabla\cdot\Big(\big[f-\tfrac12g^2\,\nabla\log p_t\big]\,p_t\Big),\qquad f=-\tfrac12\beta(t)\,x,\quad g^2=\beta(t)
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def fokker_planck_ode(rng: np.random.Generator) -> Lines:
    schedule, data, t = _Schedule.random(rng), _Mixture.random(rng), rng.uniform(0.2, 0.7)
    points, beta, log_p = rng.normal(size=(3, 2)), schedule.beta(t), data.log_prob(schedule.a(t), schedule.sigma(t))

    def p(x: torch.Tensor) -> torch.Tensor:
        return log_p(x).exp()

    def over_time() -> Array:
        # A time for each point, so that one gradient has all three derivatives.
        times = torch.full((3,), t, dtype=torch.float64, requires_grad=True)
        each = [
            data.log_prob(schedule.a(time), schedule.sigma(time))(torch.tensor(x)).exp()
            for time, x in zip(times, points, strict=True)
        ]
        return torch.autograd.grad(torch.stack(each).sum(), times)[0].numpy()

    def diffusion(drift: float = -0.5, noise: float = 0.5 * beta) -> Array:
        of_drift = _divergence(lambda x: drift * beta * x * p(x)[:, None], points)
        return -of_drift + noise * _divergence(lambda x: _gradient(p, x), points)

    def ode(drift: float = -0.5, weight: float = -0.5 * beta, log: Map = log_p) -> Array:
        return -_divergence(lambda x: (drift * beta * x + weight * _gradient(log, x)) * p(x)[:, None], points)

    line = "= -∇·(f p_t) + ½g² Δp_t"
    return Lines(
        {
            "∂p_t/∂t of a noised mixture at three points": over_time(),
            line: diffusion(),
            "= -∇·([f - ½g² ∇log p_t] p_t)": ode(),
        },
        [
            Mutant("g² for ½g² before Δp_t", {line: diffusion(noise=beta)}),
            Mutant("+∇·(f p_t)", {line: diffusion(drift=0.5)}),
            Mutant("f - g² ∇log p_t", ode(weight=-beta)),
            Mutant("f + ½g² ∇log p_t", ode(weight=0.5 * beta)),
            Mutant("∇p_t for ∇log p_t", ode(log=p)),
            Mutant("g for g²", ode(weight=-0.5 * np.sqrt(beta))),
        ],
    )


@verifies(
    "reverse-sde",
    r"""\begin{aligned}
dx&=\big[f-g^2\,\nabla\log p_t(x)\big]dt+g\,d\bar W,\qquad dt<0\\
f-g^2\,\nabla\log p_t(x)&=\lim_{h\to0}\frac{x-\mathbb E[x_{t-h}\mid x_t=x]}h\\
&\quad\text{and }g^2I=\lim_{h\to0}\frac{\mathrm{Cov}[x_{t-h}\mid x_t=x]}h
\end{aligned}""",
    kind="identity",
    route="closed form",
    tolerance=1e-8,
    reason="a limit of h to 2^-14 by extrapolation, with rounding errors of 1e-16/h",
)
def reverse_sde(rng: np.random.Generator) -> Lines:
    schedule, data, t, x = _Schedule.random(rng), _Mixture.random(rng), rng.uniform(0.2, 0.7), rng.normal(size=(3, 2))

    def back(n: int) -> Array:
        """By Bayes' rule: the law of x_{t-h} is the prior, a step of noise the likelihood."""
        h = 1 / n
        ratio = schedule.alpha_bar(t) / schedule.alpha_bar(t - h)
        prior = data.noised(schedule.a(t - h), schedule.sigma(t - h))
        mean, covariance = prior.posterior(x, np.sqrt(ratio), np.sqrt(1 - ratio))
        return np.concatenate([((x - mean) / h).ravel(), (covariance / h).ravel()])

    beta, score = schedule.beta(t), data.autograd_score(x, schedule.a(t), schedule.sigma(t))

    def formula(drift: float = -0.5, weight: float = -1.0, score: Array = score, noise: float = beta) -> Array:
        covariances = np.tile(noise * np.eye(2), (3, 1))
        return np.concatenate([(beta * (drift * x + weight * score)).ravel(), covariances.ravel()])

    def by_denoiser() -> Array:
        """∇log p_t = (a x̂_0 - x)/σ²."""
        a, sigma = schedule.a(t), schedule.sigma(t)
        return (a * data.denoised(x, a, sigma) - x) / sigma**2

    last = "= f - g² ∇log p_t and g² I, the score by autograd"
    return Lines(
        {
            "the limits, by Bayes' rule for a mixture, at three x": _limit([back(16 * n) for n in _DOUBLINGS]),
            "= f - g² (√ᾱ_t x̂_0 - x)/(1-ᾱ_t) and g² I": formula(score=by_denoiser()),
            last: formula(),
        },
        [
            Mutant("½g² ∇log p_t, as without noise", formula(weight=-0.5)),
            Mutant("f + g² ∇log p_t", formula(weight=1.0)),
            Mutant("-f: only its sign turned", formula(drift=0.5)),
            Mutant("f alone, the noise run backwards", formula(weight=0.0)),
            Mutant("g for g² in the covariance", formula(noise=np.sqrt(beta))),
            Mutant("the score of the data", formula(score=data.autograd_score(x))),
        ],
    )


@verifies(
    "reverse-sde-family",
    r"""\begin{aligned}
&dx=\big[f-\tfrac12(g^2+\lambda^2)\,\nabla\log p_t(x)\big]dt+\lambda\,d\bar W,\qquad x_1\sim p_1,\quad dt<0\\
&\quad\Longrightarrow\quad x_t\sim p_t\quad\text{whatever }\lambda(t)\ge0
\end{aligned}""",
    kind="identity",
    route="closed form",
    **SOLVED,
)
def reverse_sde_family(rng: np.random.Generator) -> Lines:
    # λ = 0 is the ODE, λ = g the reverse of the forward SDE. Of Gaussian data, mean and covariance say all.
    schedule, data, end = _Schedule.random(rng), _Mixture.random(rng, parts=1), rng.uniform(0.0, 0.3)
    ratios = np.array([0.0, 1.0, rng.uniform(1.2, 1.6)])[:, None, None]

    def at(t: float) -> Array:
        noised = data.noised(schedule.a(t), schedule.sigma(t))
        return np.concatenate([noised.means, noised.covariances[0]])

    def back(of_g: float = 0.5, of_lambda: float = 0.5, noise: float = 2.0, start: Array | None = None) -> Array:
        """Mean, above the covariance, at the end: for each λ = ratio·g."""

        def field(t: float, y: Array) -> Array:
            # The drift is β [-x/2 + weight P (x - μ_t)], P the precision of p_t.
            noised = data.noised(schedule.a(t), schedule.sigma(t))
            weight = of_g + of_lambda * ratios**2
            slope = -0.5 * np.eye(2) + weight * np.linalg.inv(noised.covariances)
            mean, covariance = y[:, :1], y[:, 1:]
            drift = mean @ slope.swapaxes(1, 2) - weight * noised.means @ np.linalg.inv(noised.covariances)
            spread = slope @ covariance + covariance @ slope.swapaxes(1, 2) - ratios**noise * np.eye(2)
            return schedule.beta(t) * np.concatenate([drift, spread], axis=1)

        return _solve(field, np.tile(at(1.0) if start is None else start, (3, 1, 1)), 1.0, end)

    return Lines(
        {
            "E[x_t] and Cov[x_t], forward from the data": np.tile(at(end), (3, 1, 1)),
            "= the same, back from x_1 with λ/g of 0, 1 and more": back(),
        },
        [
            Mutant("½g² ∇log p_t with any noise", back(of_lambda=0.0)),
            Mutant("(g² + λ²) ∇log p_t", back(of_g=1.0, of_lambda=1.0)),
            Mutant("g² ∇log p_t with any noise", back(of_g=1.0, of_lambda=0.0)),
            Mutant("½(g² - λ²) ∇log p_t", back(of_lambda=-0.5)),
            Mutant("√(gλ) for λ before dW", back(noise=1.0)),
            Mutant(
                "x_1 ∼ N(0, I), though ᾱ_1 > 0",
                back(start=np.concatenate([np.zeros((1, 2)), np.eye(2)])),
                erratum="E002-14",
            ),
        ],
    )


def _velocity(
    schedule: _Schedule, data: _Mixture, drift: float = -0.5, weight: float = -0.5, power: float = 1.0
) -> Field:
    """f - ½g² ∇log p_t, the velocity of the probability-flow ODE, or a slip in it."""

    def field(t: float, x: Array) -> Array:
        beta = schedule.beta(t)
        return drift * beta * x + weight * beta**power * data.noised(schedule.a(t), schedule.sigma(t)).score(x)

    return field


@verifies(
    "pf-ode",
    r"""\begin{aligned}
\frac{dx}{dt}&=f-\tfrac12g^2\,\nabla\log p_t(x)\\
&=-\tfrac12\beta(t)\Big[x-\frac{\hat\epsilon(x,t)}{\sqrt{1-\bar\alpha_t}}\Big],\qquad
\hat\epsilon(x,t)=\mathbb E[\epsilon\mid x_t=x]\\
&\quad\text{and if }x_0\sim N(\mu,C),\ C_t=\bar\alpha_tC+(1-\bar\alpha_t)I:\\
&\quad x_t=\sqrt{\bar\alpha_t}\,\mu+C_t^{1/2}\,C_s^{-1/2}(x_s-\sqrt{\bar\alpha_s}\,\mu)
\end{aligned}""",
    kind="identity",
    route="closed form",
    **SOLVED,
)
def pf_ode(rng: np.random.Generator) -> Lines:
    schedule, data = _Schedule.random(rng), _Mixture.random(rng, parts=1)
    start, end = rng.uniform(0.2, 0.4), rng.uniform(0.6, 0.9)
    x, [mean] = rng.normal(size=2), data.means

    def closed(root: Callable[[Array], Array] = linalg.sqrtm, a: Callable[[float], float] = schedule.a) -> Array:
        of_start, of_end = (root(data.noised(schedule.a(t), schedule.sigma(t)).covariances[0]) for t in (start, end))
        return a(end) * mean + of_end @ np.linalg.solve(of_start, x - a(start) * mean)

    def by_score(**slip: float) -> Array:
        return _solve(_velocity(schedule, data, **slip), x, start, end)

    def by_noise(power: float = 1.0, sign: float = -1.0) -> Array:
        def field(t: float, x: Array) -> Array:
            a, sigma = schedule.a(t), schedule.sigma(t)
            noise = (x - a * data.denoised(x, a, sigma)) / sigma
            return -0.5 * schedule.beta(t) * (x + sign * noise / sigma**power)

        return _solve(field, x, start, end)

    first, line = "x_t from x_s, written out", "= solution with velocity f - ½g² ∇log p_t"
    return Lines(
        {first: closed(), line: by_score(), "= solution with velocity -½β [x - ε̂/√(1-ᾱ_t)]": by_noise()},
        [
            Mutant("g² ∇log p_t, as with noise", {line: by_score(weight=-1.0)}),
            Mutant("+½g² ∇log p_t", {line: by_score(weight=0.5)}),
            Mutant("a drift of -β(t) x", {line: by_score(drift=-1.0)}),
            Mutant("g for g²", {line: by_score(power=0.5)}),
            Mutant("ε̂/(1-ᾱ_t)", by_noise(power=2.0)),
            Mutant("x + ε̂/√(1-ᾱ_t)", by_noise(sign=1.0)),
            Mutant("C_t C_s⁻¹ without the roots", {first: closed(root=lambda c: c)}),
            Mutant("ᾱ_t μ for √ᾱ_t μ", {first: closed(a=schedule.alpha_bar)}, erratum="E004-13"),
        ],
    )


@verifies(
    "pf-ode-in-alpha",
    r"""\begin{aligned}
\bar x&=\frac{x}{\sqrt{\bar\alpha_t}},\quad\bar\sigma=\sqrt{\frac{1-\bar\alpha_t}{\bar\alpha_t}}:\qquad
\frac{d\bar x}{d\bar\sigma}=\hat\epsilon(x,t)\\
&\quad=-\sqrt{1-\bar\alpha_t}\;\nabla\log p_t(x)=\frac{\bar x-\hat x_0(x,t)}{\bar\sigma}
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def pf_ode_in_alpha(rng: np.random.Generator) -> Lines:
    schedule, data, t, x = _Schedule.random(rng), _Mixture.random(rng), rng.uniform(0.2, 0.8), rng.normal(size=(3, 2))
    a, sigma = schedule.a(t), schedule.sigma(t)
    time = torch.tensor(t, dtype=torch.float64, requires_grad=True)

    def rate(function: Map) -> float:
        return torch.autograd.grad(function(time), time)[0].item()

    def chain_rule(bar: Callable = lambda t: schedule.sigma(t) / schedule.a(t)) -> Array:
        """The velocity of x/a over that of σ/a."""
        velocity = -0.5 * schedule.beta(t) * (x + data.autograd_score(x, a, sigma))
        return (velocity / a + x * rate(lambda t: 1 / schedule.a(t))) / rate(bar)

    denoised = data.denoised(x, a, sigma)
    first, line = "dx̄/dσ̄ by the chain rule, at three x", "= -√(1-ᾱ_t) ∇log p_t"
    return Lines(
        {
            first: chain_rule(),
            line: -sigma * data.noised(a, sigma).score(x),
            "= (x̄ - x̂_0)/σ̄": (x / a - denoised) / (sigma / a),
        },
        [
            Mutant("σ for σ̄ = σ/√ᾱ_t", {first: chain_rule(schedule.sigma)}),
            Mutant("σ̄² for σ̄", {first: chain_rule(lambda t: (schedule.sigma(t) / schedule.a(t)) ** 2)}),
            Mutant("+√(1-ᾱ_t) ∇log p_t", {line: sigma * data.noised(a, sigma).score(x)}),
            Mutant("(1-ᾱ_t) ∇log p_t", {line: -(sigma**2) * data.noised(a, sigma).score(x)}),
            Mutant("x for x̄", (x - denoised) / (sigma / a)),
            Mutant("√ᾱ_t x̂_0 for x̂_0", (x / a - a * denoised) / (sigma / a)),
        ],
    )


@verifies(
    "ode-likelihood",
    r"""\begin{aligned}
\log p_0(x_0)&=\log p_1(x_1)+\log\Big|\det\frac{\partial x_1}{\partial x_0}\Big|\\
&=\log p_1(x_1)+\int_0^1\nabla\cdot v(x_t,t)\,dt\\
&\quad\text{with }v=f-\tfrac12g^2\,\nabla\log p_t,\quad\frac{dx_t}{dt}=v(x_t,t)
\end{aligned}""",
    kind="identity",
    route="closed form",
    **SOLVED,
)
def ode_likelihood(rng: np.random.Generator) -> Lines:
    schedule, data, x = _Schedule.random(rng), _Mixture.random(rng), rng.normal(size=2)
    velocity, dim = _velocity(schedule, data), 2

    def jacobian(t: float, x: Array, drift: float = -0.5, weight: float = -0.5) -> Array:
        hessian = data.noised(schedule.a(t), schedule.sigma(t)).hessian(x)
        return schedule.beta(t) * (drift * np.eye(dim) + weight * hessian)

    def field(t: float, y: Array) -> Array:
        """x, ∂x_t/∂x_0 and three integrals: of the trace, and of two slips."""
        slope = jacobian(t, y[:2])
        traces = [np.trace(slope), np.trace(jacobian(t, y[:2], weight=0.0)), np.trace(jacobian(t, y[:2], weight=-1.0))]
        return np.concatenate([velocity(t, y[:2]), (slope @ y[2:6].reshape(2, 2)).ravel(), traces])

    end = _solve(field, np.concatenate([x, np.eye(2).ravel(), np.zeros(3)]), 0.0, 1.0)
    log_det = np.linalg.slogdet(end[2:6].reshape(2, 2))[1]
    trace, of_drift, twice = end[6:]
    base = data.noised(schedule.a(1.0), schedule.sigma(1.0)).log_density(end[:2])
    standard = -(end[:2] ** 2).sum() / 2 - np.log(2 * np.pi)
    line = "= log p_1(x_1) + log|det ∂x_1/∂x_0|"
    return Lines(
        {
            "log p_0(x_0) of a mixture": data.log_density(x),
            line: base + log_det,
            "= log p_1(x_1) + ∫ ∇·v dt": base + trace,
        },
        [
            Mutant("-∫ ∇·v dt", base - trace),
            Mutant("log|det ∂x_0/∂x_1|", {line: base - log_det}),
            Mutant("the divergence of f alone", base + of_drift),
            Mutant("the divergence of f - g² ∇log p_t", base + twice),
            Mutant("log p_1(x_1) alone", base),
            Mutant("N(0, I) for p_1, though ᾱ_1 > 0", standard + trace, erratum="E002-14"),
            Mutant("log p_1 at x_0", trace + data.noised(schedule.a(1.0), schedule.sigma(1.0)).log_density(x)),
        ],
    )


@verifies(
    "ode-likelihood-hutchinson",
    r"""\begin{aligned}
\nabla\cdot v(x,t)&=\mathbb E_w\Big[w^\top\frac{\partial v}{\partial x}\,w\Big],\qquad\mathbb E[ww^\top]=I\\
\log p_0(x_0)&=\mathbb E_w\Big[\log p_1(x_1)+\int_0^1w^\top\frac{\partial v}{\partial x}(x_t,t)\,w\;dt\Big]
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SOLVED,
)
def ode_likelihood_hutchinson(rng: np.random.Generator) -> Lines:
    schedule, data, x = _Schedule.random(rng), _Mixture.random(rng), rng.normal(size=2)
    velocity = _velocity(schedule, data)
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=2)))
    normal, weight = gauss_hermite(2, 3)

    def field(t: float, y: Array) -> Array:
        """x, and the integral of wᵀ J w for each pair of signs, each normal w, each unit vector and w = (1, 1)."""
        at = data.noised(schedule.a(t), schedule.sigma(t))
        jacobian = -0.5 * schedule.beta(t) * (np.eye(2) + at.hessian(y[:2]))
        squares = [np.einsum("ni,ij,nj->n", w, jacobian, w) for w in (signs, normal, np.eye(2))]
        return np.concatenate([velocity(t, y[:2]), *squares])

    end = _solve(field, np.concatenate([x, np.zeros(len(signs) + len(normal) + 2)]), 0.0, 1.0)
    base = data.noised(schedule.a(1.0), schedule.sigma(1.0)).log_density(end[:2])
    of_signs, of_normal, of_units = np.split(end[2:], [len(signs), len(signs) + len(normal)])
    line = "= its mean over the four w of signs"
    return Lines(
        {
            "log p_0(x_0) of a mixture": data.log_density(x),
            line: base + of_signs.mean(),
            "= its mean over w ∼ N(0, I)": base + weight @ of_normal,
        },
        [
            Mutant("one w of signs", {line: base + of_signs[0]}),
            Mutant("w of length 1: E[wwᵀ] = I/d_x", {line: base + of_signs.mean() / 2}),
            Mutant("a mean over unit vectors", {line: base + of_units.mean()}),
            Mutant("-∫ wᵀ(∂v/∂x)w dt", base - weight @ of_normal),
            Mutant("w = (1, 1): the sum of all of ∂v/∂x", {line: base + of_signs[-1]}),
        ],
    )


# DDIM


def _two_levels(rng: np.random.Generator) -> tuple[float, float]:
    """ᾱ_{t-1} and ᾱ_t."""
    now = rng.uniform(0.1, 0.6)
    return now + rng.uniform(0.1, 0.3), now


def _ddim(x: Array, denoised: Array, before: float, now: float) -> Array:
    """DDIM's step without noise from ᾱ_t = now to ᾱ = before: what x̂_0 says is noise, on x̂_0 with less of it."""
    noise = (x - np.sqrt(now) * denoised) / np.sqrt(1 - now)
    return np.sqrt(before) * denoised + np.sqrt(1 - before) * noise


@verifies(
    "ddim-family",
    r"""\begin{aligned}
q_\sigma(x_{t-1}\mid x_t,x_0)&=N\Big(\sqrt{\bar\alpha_{t-1}}\,x_0
+\sqrt{1-\bar\alpha_{t-1}-\sigma^2}\;\frac{x_t-\sqrt{\bar\alpha_t}\,x_0}{\sqrt{1-\bar\alpha_t}},\;\sigma^2I\Big)\\
q(x_{t-1}\mid x_0)&=\int q_\sigma(x_{t-1}\mid x_t,x_0)\,q(x_t\mid x_0)\,dx_t\\
&\quad=N\big(\sqrt{\bar\alpha_{t-1}}\,x_0,\,(1-\bar\alpha_{t-1})I\big)\quad\text{for every }\sigma
\end{aligned}""",
    kind="identity",
    route="quadrature",
    tolerance=1e-10,
    reason="quadrature that resolves a smooth density to rounding",
)
def ddim_family(rng: np.random.Generator) -> Lines:
    (before, now), x0, points = _two_levels(rng), rng.normal(size=2), rng.normal(size=(3, 1, 2))
    sigmas = np.sqrt(1 - before) * rng.uniform(0.5, 0.9, size=3)
    nodes, weight = plane(8.0, 81)
    xt = np.sqrt(now) * x0 + np.sqrt(1 - now) * nodes

    def density(x: Array, mean: Array | float, variance: float) -> Array:
        return np.exp(-((x - mean) ** 2).sum(-1) / (2 * variance)) / (2 * np.pi * variance)

    def integral(
        of_x0: float = np.sqrt(before), less: float = 2.0, centre: float = np.sqrt(now), over: float = np.sqrt(1 - now)
    ) -> list[Array]:
        at_xt = weight * density(nodes, 0.0, 1.0)
        directions = (xt - centre * x0) / over
        return [density(points, of_x0 * x0 + np.sqrt(1 - before - s**less) * directions, s**2) @ at_xt for s in sigmas]

    def root_less(sigma: float) -> float:
        """The mean's coefficient of x_t."""
        return np.sqrt((1 - before - sigma**2) / (1 - now))

    spread = np.array([root_less(s) ** 2 * (1 - now) + s**2 for s in sigmas])
    return Lines(
        {
            "q(x_{t-1}|x_0) at three points, for three σ": density(points[:, 0], np.sqrt(before) * x0, 1 - before)
            * np.ones((3, 1)),
            "= N with the variances of both noises added up": [
                density(points[:, 0], np.sqrt(before) * x0, v) for v in spread
            ],
            "= ∫ q_σ(x_{t-1}|x_t, x_0) q(x_t|x_0) dx_t": integral(),
        },
        [
            Mutant("√(1-ᾱ_{t-1}), without -σ²", integral(less=200.0)),
            Mutant("√(1-ᾱ_{t-1}-σ⁴)", integral(less=4.0)),
            Mutant("√ᾱ_t x_0 for √ᾱ_{t-1} x_0", integral(of_x0=np.sqrt(now))),
            Mutant("ᾱ_{t-1} x_0, without its root", integral(of_x0=before), erratum="E004-13"),
            Mutant("x_t - √ᾱ_{t-1} x_0", integral(centre=np.sqrt(before))),
            Mutant("over 1-ᾱ_t, without its root", integral(over=1 - now)),
        ],
    )


@verifies(
    "ddim-step",
    r"""\begin{aligned}
x_{t-1}&=\sqrt{\bar\alpha_{t-1}}\;\hat x_0+\sqrt{1-\bar\alpha_{t-1}-\sigma_t^2}\;\hat\epsilon(x_t,t)+\sigma_t\xi\\
&\quad\text{with }\hat x_0=\frac{x_t-\sqrt{1-\bar\alpha_t}\;\hat\epsilon(x_t,t)}{\sqrt{\bar\alpha_t}}
\text{ and }\xi\sim N(0,I)
\end{aligned}""",
    kind="definition",
    route="autograd",
    **JACOBIANS,
)
def ddim_step(rng: np.random.Generator) -> Lines:
    (before, now), data, x, xi = _two_levels(rng), _Mixture.random(rng), rng.normal(size=(3, 2)), rng.normal(size=2)
    sigma = np.sqrt(1 - before) * rng.uniform(0.4, 0.8)
    noise = -np.sqrt(1 - now) * data.autograd_score(x, np.sqrt(now), np.sqrt(1 - now))

    def family() -> Array:
        """A draw from q_σ(x_{t-1}|x_t, x_0) with E[x_0|x_t] for x_0."""
        guess = data.denoised(x, np.sqrt(now), np.sqrt(1 - now))
        direction = (x - np.sqrt(now) * guess) / np.sqrt(1 - now)
        return np.sqrt(before) * guess + np.sqrt(1 - before - sigma**2) * direction + sigma * xi

    def step(
        of_noise: float = np.sqrt(1 - now), over: float = np.sqrt(now), left: float = 1 - before - sigma**2,
        of_x0: float = np.sqrt(before), sign: float = 1.0,
    ) -> Array:  # fmt: skip
        return of_x0 * (x - of_noise * noise) / over + sign * np.sqrt(left) * noise + sigma * xi

    return Lines(
        {
            "a draw from q_σ(x_{t-1}|x_t, x_0 = E[x_0|x_t]), by Bayes' rule": family(),
            "= √ᾱ_{t-1} x̂_0 + √(1-ᾱ_{t-1}-σ²) ε̂ + σξ, ε̂ by autograd": step(),
        },
        [
            Mutant("√(1-ᾱ_{t-1}), without -σ²", step(left=1 - before)),
            Mutant("1-ᾱ_t before ε̂ in x̂_0", step(of_noise=1 - now)),
            Mutant("x̂_0 not over √ᾱ_t", step(over=1.0)),
            Mutant("α_t for ᾱ_t", step(of_noise=np.sqrt(1 - now / before), over=np.sqrt(now / before)), "E004-13"),
            Mutant("the noise taken off again: -√(1-ᾱ_{t-1}-σ²) ε̂", step(sign=-1.0)),
            Mutant("√ᾱ_t x̂_0", step(of_x0=np.sqrt(now))),
            Mutant("√(1-ᾱ_t-σ²) ε̂", step(left=1 - now - sigma**2)),
        ],
    )


@verifies(
    "ddim-eta",
    r"""\begin{aligned}
\sigma_t(\eta)&=\eta\,\sqrt{\frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}}\sqrt{1-\frac{\bar\alpha_t}{\bar\alpha_{t-1}}}:\\
q_{\sigma_t(1)}(x_{t-1}\mid x_t,x_0)&=q(x_{t-1}\mid x_t,x_0),\qquad\sigma_t(1)^2=\tilde\beta_t
\end{aligned}""",
    kind="identity",
    route="closed form",
    **SMALL_SUMS,
)
def ddim_eta(rng: np.random.Generator) -> Lines:
    # So little noise in a step that wrong σ, too, leave something below the root.
    bars = rng.uniform(0.5, 0.6) * np.cumprod(1 - rng.uniform(0.03, 0.1, size=6))
    before, now = bars[:-1], bars[1:]
    x0, xt = rng.normal(size=(2, 3, 1))

    def bayes(alpha: Array = now / before) -> Array:
        """Precisions add up: of x_{t-1} given x_0, and of x_t given x_{t-1}. Means of three pairs, and the variance."""
        precision = 1 / (1 - before) + alpha / (1 - alpha)
        mean = np.sqrt(before) * x0 / (1 - before) + np.sqrt(alpha) * xt / (1 - alpha)
        return np.vstack([mean / precision, 1 / precision])

    def ddim(variance: Array) -> Array:
        direction = (xt - np.sqrt(now) * x0) / np.sqrt(1 - now)
        return np.vstack([np.sqrt(before) * x0 + np.sqrt(1 - before - variance) * direction, variance])

    def squared(eta: float = 1.0, ratio: Array = (1 - before) / (1 - now), beta: Array = 1 - now / before) -> Array:
        return eta**2 * ratio * beta

    def ddpm() -> Array:
        """DDPM's posterior, as chapter 9 has it."""
        beta = 1 - now / before
        mean = (np.sqrt(before) * beta * x0 + np.sqrt(now / before) * (1 - before) * xt) / (1 - now)
        return np.vstack([mean, (1 - before) / (1 - now) * beta])

    return Lines(
        {
            "mean and variance of q(x_{t-1}|x_t, x_0), precisions added up": bayes(),
            "= μ̃_t and β̃_t of DDPM": ddpm(),
            "= those of q_σ with σ = σ_t(1)": ddim(squared()),
        },
        [
            Mutant("η = 0, DDIM proper", ddim(squared(eta=0.0))),
            Mutant("η = ½", ddim(squared(eta=0.5))),
            Mutant(
                "(1-ᾱ_t)/(1-ᾱ_{t-1}): upside down",
                ddim(squared(ratio=(1 - now) / (1 - before))),
            ),
            Mutant("σ² = β_t, DDPM's other choice", ddim(squared(ratio=np.ones(5)))),
            Mutant("1-ᾱ_t/ᾱ_{t-1} without its root", ddim(squared(beta=(1 - now / before) ** 2))),
            Mutant("√β̃_t for β̃_t", ddim(np.sqrt(squared()))),
        ],
    )


@verifies(
    "ddim-is-euler",
    r"""\begin{aligned}
\sigma_t=0:\quad x_{t-1}&=\sqrt{\bar\alpha_{t-1}}\;\hat x_0+\sqrt{1-\bar\alpha_{t-1}}\;\hat\epsilon\\
\iff\quad\bar x_{t-1}&=\bar x_t+(\bar\sigma_{t-1}-\bar\sigma_t)\,\hat\epsilon\\
&\quad\text{with }\bar x=x/\sqrt{\bar\alpha}\text{ and }\bar\sigma=\sqrt{(1-\bar\alpha)/\bar\alpha}
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def ddim_is_euler(rng: np.random.Generator) -> Lines:
    (before, now), data, x = _two_levels(rng), _Mixture.random(rng), rng.normal(size=(3, 2))
    bar = [np.sqrt((1 - level) / level) for level in (before, now)]
    denoised = data.denoised(x, np.sqrt(now), np.sqrt(1 - now))
    # x̄ = x_0 + σ̄ε: its ODE has no drift but the score's.
    slope = -bar[1] * data.autograd_score(x / np.sqrt(now), 1.0, bar[1])

    def euler(change: float = bar[0] - bar[1], scale: float = np.sqrt(now), slope: Array = slope) -> Array:
        return x / scale + change * slope

    # Euler's step of the ODE in ∫β dt = -log ᾱ, the velocity -½(x + ∇log p_t).
    in_time = x + (np.log(before) - np.log(now)) / 2 * (x + data.autograd_score(x, np.sqrt(now), np.sqrt(1 - now)))
    step = _ddim(x, denoised, before, now)
    first, line = "x̄_{t-1} of DDIM with σ_t = 0, x̂_0 by Bayes' rule", "= (1-σ̄_{t-1}/σ̄_t) x̂_0 + (σ̄_{t-1}/σ̄_t) x̄_t"
    shrink = bar[0] / bar[1]

    def towards(share: float) -> Array:
        return (1 - share) * denoised + share * x / np.sqrt(now)

    return Lines(
        {
            first: step / np.sqrt(before),
            line: towards(shrink),
            "= x̄_t + (σ̄_{t-1} - σ̄_t) ε̂, ε̂ by autograd": euler(),
        },
        [
            Mutant("σ̄_t - σ̄_{t-1}", euler(change=bar[1] - bar[0])),
            Mutant("σ̄² for σ̄", euler(change=bar[0] ** 2 - bar[1] ** 2)),
            Mutant("√(1-ᾱ) for σ̄", euler(change=np.sqrt(1 - before) - np.sqrt(1 - now))),
            Mutant("x_t for x̄_t", euler(scale=1.0)),
            Mutant("the score for ε̂", euler(slope=-slope / bar[1])),
            Mutant("x_{t-1} for x̄_{t-1}", {first: step}),
            Mutant("Euler's step in β dt, not in σ̄", {first: in_time / np.sqrt(before)}),
            Mutant("the shares exchanged", {line: towards(1 - shrink)}),
        ],
    )


@verifies(
    "ode-truncation-error",
    r"""\begin{aligned}
\frac{x_0^{(n)}}{x_0}&=1-\frac{Ss^2}{2n}\int_0^S\frac{d\bar\sigma}{(s^2+\bar\sigma^2)^2}+O(n^{-2})\\
&=1-\frac S{4n}\Big[\frac S{s^2+S^2}+\frac1s\arctan\frac Ss\Big]+O(n^{-2})\\
&\quad\text{for }x_0\sim N(0,s^2)\text{ and DDIM with }n\text{ equal steps in }\bar\sigma,\text{ from }S\text{ to }0
\end{aligned}""",
    kind="identity",
    route="closed form",
    tolerance=1e-7,
    reason="a limit of 16 to 1024 steps by extrapolation",
)
def ode_truncation_error(rng: np.random.Generator) -> Lines:
    # Three numbers of different spread. Where the ODE leads is known: x̄ grows like √(s² + σ̄²).
    s, end, start = rng.uniform(0.5, 1.5, size=3), rng.uniform(2.0, 4.0), rng.normal(size=3)
    exact = s / np.sqrt(s**2 + end**2) * start

    def sample(n: int) -> Array:
        """From x̄ = start at σ̄ = S."""
        levels = 1 / (1 + np.linspace(end, 0.0, n + 1) ** 2)
        x = np.sqrt(levels[0]) * start
        for now, before in itertools.pairwise(levels):
            denoised = np.sqrt(now) * s**2 * x / (now * s**2 + 1 - now)
            x = _ddim(x, denoised, before, now)
        return x

    def formula(half: float = 0.5, root: Array = s, power: float = 2.0, sign: float = -1.0) -> Array:
        return sign * end / 2 * half * (end / (s**2 + end**power) + np.arctan(end / s) / root)

    def integral(power: float = 2.0, of_s: float = 2.0) -> Array:
        nodes, weight = _legendre(0.0, end, 60)
        return -end * s**of_s / 2 * (weight @ (s**2 + nodes[:, None] ** 2) ** -power)

    line = "= -(S s²/2) ∫ dσ̄/(s²+σ̄²)²"
    return Lines(
        {
            "n (x_0^{(n)}/x_0 - 1), n → ∞, of three s": _limit([n * (sample(n) / exact - 1) for n in _DOUBLINGS]),
            line: integral(),
            "= -(S/4) [S/(s²+S²) + arctan(S/s)/s]": formula(),
        },
        [
            Mutant("no error of order 1/n", np.zeros(3)),
            Mutant("S/2 for S/4", formula(half=1.0)),
            Mutant("arctan(S/s) not over s", formula(root=np.ones(3))),
            Mutant("samples spread too far, not too little", formula(sign=1.0)),
            Mutant("s²+S for s²+S²", formula(power=1.0)),
            Mutant("∫ dσ̄/(s²+σ̄²)", {line: integral(power=1.0)}),
            Mutant("S s/2", {line: integral(of_s=1.0)}),
        ],
    )


@verifies(
    "heun-order",
    r"""\begin{aligned}
\bar x'&=\bar x_i+h_i\,d(\bar x_i,\bar\sigma_i),\qquad
d(\bar x,\bar\sigma)=\frac{\bar x-\hat x_0(\bar x,\bar\sigma)}{\bar\sigma}\\
\bar x_{i+1}&=\bar x_i+h_i\,\tfrac12\big[d(\bar x_i,\bar\sigma_i)+d(\bar x',\bar\sigma_{i+1})\big]\\
&\quad\text{but }\bar x_n=\bar x'\text{ where }\bar\sigma_n=0\\
&\quad\text{and for }x_0\sim N(0,s^2),\ h_i=\bar\sigma_{i+1}-\bar\sigma_i=-\frac Sn:\\
&\quad\quad\frac{x_0^{(n)}}{x_0}=1-\frac{S^2}{8s^2n^2}\Big[3+\frac{s^4}{(s^2+S^2)^2}\Big]+O(n^{-3})
\end{aligned}""",
    kind="identity",
    route="closed form",
    tolerance=1e-5,
    reason="a limit of 16 to 512 steps by extrapolation",
)
def heun_order(rng: np.random.Generator) -> Lines:
    s, end, start = rng.uniform(0.5, 1.5, size=3), rng.uniform(2.0, 4.0), rng.normal(size=3)
    exact = s / np.sqrt(s**2 + end**2) * start

    def slope(x: Array, bar: float) -> Array:
        return (x - s**2 / (s**2 + bar**2) * x) / bar

    def heun(of_first: float = 0.5, of_second: float = 0.5, level: int = 1, reach: float = 1.0, last: bool = False):
        def sample(n: int) -> Array:
            x, bars = start, np.linspace(end, 0.0, n + 1)
            for pair in itertools.pairwise(bars[:-1]):
                change = pair[1] - pair[0]
                first = slope(x, pair[0])
                x = x + change * (of_first * first + of_second * slope(x + reach * change * first, pair[level]))
            # In the limit σ̄ → 0 the slope is 0.
            return x - bars[-2] * slope(x, bars[-2]) * (0.5 if last else 1.0)

        return _limit([n**2 * (sample(n) / exact - 1) for n in _DOUBLINGS[:-1]])

    def integrals(of_cube: float = 1 / 6, of_last: float = 0.5) -> Array:
        """With slope g(σ̄)x̄, the errors g''/12 - g³/6 of the steps, and that of the last step, of order 1."""
        bar, weight = _legendre(0.0, end, 60)
        bar = bar[:, None]
        second = 2 * bar * (bar**2 - 3 * s**2) / (s**2 + bar**2) ** 3
        return -(end**2) * (weight @ (second / 12 - of_cube * (bar / (s**2 + bar**2)) ** 3) + of_last / s**2)

    def formula(three: float = 3.0, power: float = 2.0, eighth: float = 8.0) -> Array:
        return -(end**2) / (eighth * s**2) * (three + s**4 / (s**2 + end**2) ** power)

    first, line = "n² (x_0^{(n)}/x_0 - 1), n → ∞, of three s", "= -S² [∫(g''/12 - g³/6) dσ̄ + 1/2s²], g = σ̄/(s²+σ̄²)"
    return Lines(
        {first: heun(), line: integrals(), "= -(S²/8s²) [3 + s⁴/(s²+S²)²]": formula()},
        [
            Mutant("the first slope alone: Euler, of order 1", {first: heun(1.0, 0.0)}),
            Mutant("the second slope alone", {first: heun(0.0, 1.0)}),
            Mutant("d(x̄', σ̄_i)", {first: heun(level=0)}),
            Mutant("d(x̄_i, σ̄_{i+1})", {first: heun(reach=0.0)}),
            Mutant("½(d_i - d')", {first: heun(0.5, -0.5)}),
            Mutant("the last step not Euler's: d = 0 at σ̄ = 0", {first: heun(last=True)}),
            Mutant("the last step as exact as the others", {line: integrals(of_last=0.0)}),
            Mutant("-1 for 3", formula(three=-1.0)),
            Mutant("s⁴/(s²+S²)", formula(power=1.0)),
            Mutant("S²/4s²", formula(eighth=4.0)),
        ],
    )


# Solvers that know the linear part


def _log_snr(level: Real) -> Real:
    """λ = log(√ᾱ/√(1-ᾱ)), half of the logarithm of the signal-to-noise ratio."""
    return np.log(level / (1 - level)) / 2


@verifies(
    "exponential-integrator",
    r"""\begin{aligned}
x_t&=\frac{\sigma_t}{\sigma_s}\,x_s
+\sigma_t\int_{\lambda_s}^{\lambda_t}e^\lambda\,\hat x_0(x_\lambda,\lambda)\,d\lambda\\
&=\frac{a_t}{a_s}\,x_s-a_t\int_{\lambda_s}^{\lambda_t}e^{-\lambda}\,\hat\epsilon(x_\lambda,\lambda)\,d\lambda\\
&\quad\text{with }a_t=\sqrt{\bar\alpha_t},\quad\sigma_t=\sqrt{1-\bar\alpha_t},\quad\lambda_t=\log\frac{a_t}{\sigma_t}
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **SOLVED,
)
def exponential_integrator(rng: np.random.Generator) -> Lines:
    # From s to t < s, as one samples.
    schedule, data, x = _Schedule.random(rng), _Mixture.random(rng), rng.normal(size=2)
    start, end = rng.uniform(0.8, 1.0), rng.uniform(0.2, 0.4)
    low, high = (_log_snr(schedule.alpha_bar(t)) for t in (start, end))
    nodes, weight = _legendre(low, high, 24)
    levels = 1 / (1 + np.exp(-2 * nodes))
    # The path at the nodes, and the end of it.
    *path, solved = _solve(_velocity(schedule, data), x, start, np.append(schedule.time(levels), end))
    a, sigma = np.sqrt(levels), np.sqrt(1 - levels)
    denoised = np.stack([data.denoised(y, *level) for y, *level in zip(path, a, sigma, strict=True)])
    scores = np.stack([data.noised(*level).score(y) for y, *level in zip(path, a, sigma, strict=True)])
    noise = -sigma[:, None] * scores

    def ratio(of: Callable[[float], float]) -> float:
        return of(end) / of(start)

    def by_data(over: Callable = schedule.sigma, power: float = 1.0, values: Array = denoised) -> Array:
        return ratio(over) * x + schedule.sigma(end) * (weight * np.exp(power * nodes)) @ values

    def by_noise(power: float = -1.0, sign: float = -1.0, values: Array = noise) -> Array:
        return ratio(schedule.a) * x + sign * schedule.a(end) * (weight * np.exp(power * nodes)) @ values

    line = "= (σ_t/σ_s) x_s + σ_t ∫ e^λ x̂_0 dλ"
    fixed = np.tile(data.denoised(x, schedule.a(start), schedule.sigma(start)), (len(nodes), 1))
    return Lines(
        {"x_t, the solution in t": solved, line: by_data(), "= (a_t/a_s) x_s - a_t ∫ e^{-λ} ε̂ dλ": by_noise()},
        [
            Mutant("a_t/a_s before x_s, with x̂_0", {line: by_data(over=schedule.a)}),
            Mutant("e^{-λ} x̂_0", {line: by_data(power=-1.0)}),
            Mutant("e^{2λ}: λ = log(ᾱ/(1-ᾱ))", {line: by_data(power=2.0)}),
            Mutant("x̂_0 at x_s all the way: DDIM", {line: by_data(values=fixed)}),
            Mutant("+a_t ∫ e^{-λ} ε̂ dλ", by_noise(sign=1.0)),
            Mutant("e^λ ε̂", by_noise(power=1.0)),
            Mutant("the score for ε̂", by_noise(values=scores)),
        ],
    )


@verifies(
    "ddim-exponential",
    r"""\begin{aligned}
\sqrt{\bar\alpha_t}\;\hat x_0+\sqrt{1-\bar\alpha_t}\;\hat\epsilon
&=\frac{\sigma_t}{\sigma_s}\,x_s+a_t\,(1-e^{-h})\,\hat x_0,\qquad h=\lambda_t-\lambda_s\\
&=\frac{a_t}{a_s}\,x_s-\sigma_t\,(e^h-1)\,\hat\epsilon
\end{aligned}""",
    kind="identity",
    route="closed form",
    **SMALL_SUMS,
)
def ddim_exponential(rng: np.random.Generator) -> Lines:
    (before, now), x, denoised = _two_levels(rng), rng.normal(size=(3, 2)), rng.normal(size=(3, 2))
    a, sigma = np.sqrt(before / now), np.sqrt((1 - before) / (1 - now))
    h = _log_snr(before) - _log_snr(now)
    noise = (x - np.sqrt(now) * denoised) / np.sqrt(1 - now)

    def by_data(rate: float = -1.0, scale: float = np.sqrt(before)) -> Array:
        return sigma * x + scale * (1 - np.exp(rate * h)) * denoised

    def by_noise(rate: float = 1.0, sign: float = -1.0, scale: float = np.sqrt(1 - before)) -> Array:
        return a * x + sign * scale * (np.exp(rate * h) - 1) * noise

    line = "= (σ_t/σ_s) x_s + a_t (1-e^{-h}) x̂_0"
    return Lines(
        {
            "DDIM's step from s to t": _ddim(x, denoised, before, now),
            line: by_data(),
            "= (a_t/a_s) x_s - σ_t (e^h-1) ε̂": by_noise(),
        },
        [
            Mutant("a_t (1-e^h) x̂_0", {line: by_data(rate=1.0)}),
            Mutant("h twice as large", {line: by_data(rate=-2.0)}),
            Mutant("σ_t (1-e^{-h}) x̂_0", {line: by_data(scale=np.sqrt(1 - before))}),
            Mutant("+σ_t (e^h-1) ε̂", by_noise(sign=1.0)),
            Mutant("a_t (e^h-1) ε̂", by_noise(scale=np.sqrt(before))),
            Mutant("e^{-h}-1", by_noise(rate=-1.0)),
        ],
    )


def _two_m(
    x: Array, denoised: Array, levels: Array, half: float = 0.5, flip: bool = False, back: float = -1.0
) -> Array:
    """DPM-Solver++(2M)'s step, from x at the second of three levels ᾱ to the third; x̂_0 at the first two."""
    first, second = np.diff(_log_snr(levels))
    r = second / first if flip else first / second
    extrapolated = (1 + half / r) * denoised[1] + back * half / r * denoised[0]
    ratio = np.sqrt((1 - levels[2]) / (1 - levels[1]))
    return ratio * x - np.sqrt(levels[2]) * np.expm1(-second) * extrapolated


@verifies(
    "dpm-solver-2m",
    r"""\begin{aligned}
\hat D_i&=\Big(1+\frac1{2r_i}\Big)\hat x_0^{(i-1)}-\frac1{2r_i}\,\hat x_0^{(i-2)},\qquad
r_i=\frac{h_{i-1}}{h_i},\quad h_i=\lambda_i-\lambda_{i-1}\\
x_i&=\frac{\sigma_i}{\sigma_{i-1}}\,x_{i-1}-a_i\,(e^{-h_i}-1)\,\hat D_i
\end{aligned}""",
    kind="definition",
    route="quadrature",
    tolerance=1e-10,
    reason="quadrature of an exponential to rounding",
)
def dpm_solver_2m(rng: np.random.Generator) -> Lines:
    levels = np.sort(rng.uniform([0.1, 0.35, 0.6], [0.3, 0.5, 0.8]))
    x, denoised = rng.normal(size=2), rng.normal(size=(2, 2))
    log_snr = _log_snr(levels)

    def drawn(at: float = 0.5) -> Array:
        """A straight line through the last two x̂_0, at a place in the step: what stands for x̂_0 in the integral."""
        slope, intercept = np.polyfit(log_snr[:2], denoised, 1)
        return intercept + slope * (log_snr[1] + at * (log_snr[2] - log_snr[1]))

    def integrated(guess: Array) -> Array:
        nodes, weight = _legendre(log_snr[1], log_snr[2], 20)
        sigma = np.sqrt(1 - levels)
        return sigma[2] / sigma[1] * x + sigma[2] * (weight @ np.exp(nodes)) * guess

    def stepped(guess: Array) -> Array:
        """With ε̂ for x̂_0 = guess, as DDIM."""
        return _ddim(x, guess, levels[2], levels[1])

    first = "the line through two x̂_0, at the middle of the step, in the integral"
    return Lines(
        {
            first: integrated(drawn()),
            "= DDIM's step with it": stepped(drawn()),
            "= (σ_i/σ_{i-1}) x_{i-1} - a_i (e^{-h_i}-1) D̂_i": _two_m(x, denoised, levels),
        },
        [
            Mutant("the line at the start of the step: DDIM", {first: integrated(drawn(0.0))}),
            Mutant("the line at the end of the step", {first: integrated(drawn(1.0))}),
            Mutant("r_i = h_i/h_{i-1}", _two_m(x, denoised, levels, flip=True)),
            Mutant("1/r_i for 1/2r_i", _two_m(x, denoised, levels, half=1.0)),
            Mutant("+1/2r_i: x̂_0^{(i-2)} added", _two_m(x, denoised, levels, back=1.0)),
            Mutant("x̂_0^{(i-1)} and x̂_0^{(i-2)} exchanged", _two_m(x, denoised[::-1], levels)),
            Mutant("(1-1/2r_i) x̂_0^{(i-1)} + x̂_0^{(i-2)}/2r_i", _two_m(x, denoised, levels, half=-0.5)),
        ],
    )


@verifies(
    "dpm-solver-order",
    r"""\begin{aligned}
\frac{x^{(n)}_{\rm DDIM}}x&=1-\frac\Lambda{4n}\,(q_n-q_0)+O(n^{-2})\\
\frac{x^{(n)}_{\rm 2M}}x&=1-\frac{\Lambda^2}{n^2}\Big[\tfrac14(q_n-q_0)-\tfrac5{16}(q_n^2-q_0^2)\\
&\quad\quad+\tfrac12q_0(1-q_0)\Big]+O(n^{-3})\\
&\quad\text{for }x_0\sim N(0,s^2)\text{ and }n\text{ equal steps in }\lambda\text{, of which}\\
&\quad\text{the first of 2M is DDIM's, with }\Lambda=\lambda_n-\lambda_0,\qquad q_i=\frac{s^2}{s^2+\bar\sigma_i^2}
\end{aligned}""",
    kind="identity",
    route="closed form",
    tolerance=1e-5,
    reason="a limit of 16 to 512 steps by extrapolation",
)
def dpm_solver_order(rng: np.random.Generator) -> Lines:
    s, start = rng.uniform(0.5, 1.5, size=3), rng.normal(size=3)
    low, high = rng.uniform(-1.5, -1.0), rng.uniform(0.5, 1.0)
    length = high - low

    def spread(log_snr: float) -> Array:
        """√(s² + σ̄²), to which x̄ is proportional."""
        return np.sqrt(s**2 + np.exp(-2 * log_snr))

    def sample(n: int, second: bool, **slip: Any) -> Array:
        levels = 1 / (1 + np.exp(-2 * np.linspace(low, high, n + 1)))
        x = previous = np.sqrt(levels[0]) * start
        for i in range(n):
            guess = np.sqrt(levels[i]) * s**2 * x / (levels[i] * s**2 + 1 - levels[i])
            if second and i > 0:
                x = _two_m(x, np.stack([previous, guess]), levels[i - 1 : i + 2], **slip)
            else:
                x = _ddim(x, guess, levels[i + 1], levels[i])
            previous = guess
        return x / np.sqrt(levels[-1]) / (spread(high) / spread(low) * start)

    def ddim() -> Array:
        return _limit([n * (sample(n, second=False) - 1) for n in _DOUBLINGS[:-1]])

    def two_m(**slip: float) -> Array:
        return _limit([n**2 * (sample(n, second=True, **slip) - 1) for n in _DOUBLINGS[:-1]])

    def q(log_snr: float | Array) -> Array:
        return s**2 / (s**2 + np.exp(-2 * log_snr))

    def integrals() -> Array:
        """With X = x̂_0 along the path: X'/2 for DDIM; (X' + 5X'')/12 for 2M, and X'/2 for its first step."""
        nodes, weight = _legendre(low, high)
        at = q(nodes[:, None])
        # By q' = 2q(1-q): X'/x̄ and X''/x̄.
        slope, bend = at * (1 - at), at * (1 - at) * (1 - 3 * at)
        of_two = weight @ (slope + 5 * bend) / 12 + q(low) * (1 - q(low)) / 2
        return np.concatenate([-length * (weight @ slope) / 2, -(length**2) * of_two])

    def formula(quarter: float = 1 / 4, of_square: float = 5 / 16, first: float = 0.5, power: int = 2) -> Array:
        start, end = q(low), q(high)
        of_two = quarter * (end - start) - of_square * (end**2 - start**2) + first * start * (1 - start)
        return np.concatenate([-length * quarter * (end - start), -(length**power) * of_two])

    first = "n (x_DDIM/x - 1) and n² (x_2M/x - 1), n → ∞"
    of_ddim, of_two = ddim(), two_m()
    return Lines(
        {
            first: np.concatenate([of_ddim, of_two]),
            "= integrals over x̂_0's slope and bend along the path": integrals(),
            "= -Λ (q_n-q_0)/4 and -Λ² [(q_n-q_0)/4 - 5(q_n²-q_0²)/16 + q_0(1-q_0)/2]": formula(),
        },
        [
            Mutant("1/r_i for 1/2r_i: of order 1", {first: np.concatenate([of_ddim, two_m(half=1.0)])}),
            Mutant("+1/2r_i: x̂_0^{(i-2)} added", {first: np.concatenate([of_ddim, two_m(back=1.0)])}),
            Mutant("both of one order", {first: np.concatenate([of_ddim, of_ddim])}),
            Mutant("the first step as exact as the others", formula(first=0.0)),
            Mutant("Λ for Λ²", formula(power=1)),
            Mutant("(q_n-q_0)/2", formula(quarter=0.5)),
            Mutant("+5(q_n²-q_0²)/16", formula(of_square=-5 / 16)),
        ],
    )


# Guidance


def _classes(rng: np.random.Generator) -> tuple[list[_Mixture], Array, _Mixture]:
    """The law of x_0 in each of three classes, their shares, and the law of x_0 in all of them."""
    laws, shares = [_Mixture.random(rng) for _ in range(3)], rng.dirichlet(np.full(3, 5.0))
    weights = np.concatenate([share * law.weights for share, law in zip(shares, laws, strict=True)])
    means, covariances = (np.concatenate([getattr(law, name) for law in laws]) for name in ("means", "covariances"))
    return laws, shares, _Mixture(weights, means, covariances)


def _grad(function: Map, x: Array) -> Array:
    return _gradient(function, torch.tensor(x, requires_grad=True)).detach().numpy()


@verifies(
    "classifier-guidance",
    r"""\begin{aligned}
\nabla\log p_t(x\mid y)&=\nabla\log p_t(x)+\nabla\log p_t(y\mid x)\\
p_t(y\mid x)&=\mathbb E[p_0(y\mid x_0)\mid x_t=x]
\end{aligned}""",
    kind="identity",
    route="quadrature",
    tolerance=1e-10,
    reason="quadrature that resolves a smooth density to rounding",
)
def classifier_guidance(rng: np.random.Generator) -> Lines:
    (laws, shares, everything), x = _classes(rng), rng.normal(size=(3, 2))
    a, sigma = rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.8)
    nodes, weight = plane(9.0, 121)

    def log_classes(x: torch.Tensor, a: float = a, sigma: float = sigma) -> torch.Tensor:
        """log p_t(y|x) of all y, by Bayes' rule at noise level t."""
        logits = [np.log(share) + law.log_prob(a, sigma)(x) for share, law in zip(shares, laws, strict=True)]
        return torch.log_softmax(torch.stack(logits, -1), -1)

    of_clean = log_classes(torch.tensor(nodes), 1.0, 0.0)[:, 0].exp()
    prior = torch.tensor(weight) * everything.log_prob()(torch.tensor(nodes)).exp()

    def averaged(x: torch.Tensor) -> torch.Tensor:
        """log E[p_0(y|x_0) | x_t = x]."""
        squares = ((x[:, None] - a * torch.tensor(nodes)) ** 2).sum(-1)
        posterior = prior * torch.exp(-squares / (2 * sigma**2))
        return (posterior @ of_clean / posterior.sum(-1)).log()

    score = everything.noised(a, sigma).score(x)
    of_noisy = _grad(lambda x: log_classes(x)[:, 0], x)
    last = "= ∇log p_t(x) + ∇log E[p_0(y|x_0)|x_t = x], an integral"
    return Lines(
        {
            "∇log p_t(x|y) at three x": laws[0].noised(a, sigma).score(x),
            "= ∇log p_t(x) + ∇log p_t(y|x), by Bayes' rule": score + of_noisy,
            last: score + _grad(averaged, x),
        },
        [
            Mutant("a classifier of images without noise", score + _grad(lambda x: log_classes(x, 1.0, 0.0)[:, 0], x)),
            Mutant("the same at x/√ᾱ_t", score + _grad(lambda x: log_classes(x, 1.0, 0.0)[:, 0], x / a)),
            Mutant("-∇log p_t(y|x)", score - of_noisy),
            Mutant("∇p_t(y|x) for ∇log p_t(y|x)", score + _grad(lambda x: averaged(x).exp(), x)),
            Mutant("another class", score + _grad(lambda x: log_classes(x)[:, 1], x)),
            Mutant("∇log p_t(y|x) alone", of_noisy),
        ],
    )


@verifies(
    "classifier-free-guidance",
    r"""\begin{aligned}
\nabla\log\frac{p_t(x\mid y)^{1+w}}{p_t(x)^w}&=\nabla\log p_t(x)+(1+w)\,\nabla\log p_t(y\mid x)\\
&=-\frac{\tilde\epsilon}{\sqrt{1-\bar\alpha_t}},\qquad
\tilde\epsilon=(1+w)\,\hat\epsilon(x,t,y)-w\,\hat\epsilon(x,t)
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def classifier_free_guidance(rng: np.random.Generator) -> Lines:
    (laws, shares, everything), x, w = _classes(rng), rng.normal(size=(3, 2)), rng.uniform(1.5, 3.0)
    bar = rng.uniform(0.3, 0.7)
    a, sigma = np.sqrt(bar), np.sqrt(1 - bar)
    conditional, free = laws[0].log_prob(a, sigma), everything.log_prob(a, sigma)

    def noise(law: _Mixture) -> Array:
        """ε̂ = E[ε|x_t = x] by the conditional mean of x_0."""
        return (x - a * law.denoised(x, a, sigma)) / sigma

    def of_class(x: torch.Tensor) -> torch.Tensor:
        return np.log(shares[0]) + conditional(x) - free(x)

    given, unknown = noise(laws[0]), noise(everything)

    def guided(of_given: float = 1 + w, of_unknown: float = -w, scale: float = -1 / sigma) -> Array:
        return scale * (of_given * given + of_unknown * unknown)

    def by_class(strength: float) -> Array:
        return everything.noised(a, sigma).score(x) + strength * _grad(of_class, x)

    line = "= ∇log p_t(x) + (1+w) ∇log p_t(y|x)"
    return Lines(
        {
            "∇log [p_t(x|y)^{1+w}/p_t(x)^w] at three x": _grad(lambda x: (1 + w) * conditional(x) - w * free(x), x),
            line: by_class(1 + w),
            "= -[(1+w) ε̂(x,t,y) - w ε̂(x,t)]/√(1-ᾱ_t)": guided(),
        },
        [
            Mutant("w ε̂(y) + (1-w) ε̂: the scale that leaves things as they are is 1", guided(w, 1 - w)),
            Mutant("y and no y exchanged", guided(-w, 1 + w)),
            Mutant("(1+w) ε̂(y) + w ε̂", guided(1 + w, w)),
            Mutant("a mean of both", guided(0.5, 0.5)),
            Mutant("w ∇log p_t(y|x)", {line: by_class(w)}),
            Mutant("+ε̃", guided(scale=1 / sigma)),
            Mutant("over 1-ᾱ_t", guided(scale=-1 / sigma**2)),
        ],
    )


def _two_spreads(rng: np.random.Generator) -> tuple[Array, Array, float]:
    """Standard deviations c of three numbers in a class, s of each among all, and w."""
    s = rng.uniform(1.0, 1.5, size=3)
    return s * rng.uniform(0.4, 0.7, size=3), s, rng.uniform(1.0, 3.0)


@verifies(
    "guidance-not-diffusion",
    r"""\begin{aligned}
v(\tau)&=\text{variance of }\frac{p_\tau(x\mid y)^{1+w}}{Z_\tau\,p_\tau(x)^w}=\frac1{(1+w)A-wB}\\
&\quad\text{with }A=\frac1{c^2+\tau},\quad B=\frac1{s^2+\tau}\\
\frac{dv}{d\tau}&=1-w(1+w)\Big(\frac{A-B}{(1+w)A-wB}\Big)^2\quad\text{while a diffusion has }\frac{dv}{d\tau}=1\\
&\quad\text{for }p_0(x\mid y)=N(\mu,c^2),\quad p_0(x)=N(0,s^2),\quad\tau=\bar\sigma^2
\end{aligned}""",
    kind="identity",
    route="quadrature",
    tolerance=1e-10,
    reason="quadrature that resolves a smooth density to rounding, and its derivative by autograd",
)
def guidance_not_diffusion(rng: np.random.Generator) -> Lines:
    # Each number has a class of its own, so that its density is a guided one by itself.
    (c, s, w), mu, level = _two_spreads(rng), rng.normal(size=3), rng.uniform(0.2, 1.0)

    def integrated() -> tuple[Array, Array]:
        """Variance of the density, over its integral, and its derivative."""
        tau = torch.full((3,), level, dtype=torch.float64, requires_grad=True)
        x = torch.linspace(-24, 24, 2001, dtype=torch.float64)[:, None]
        given = -((x - torch.tensor(mu)) ** 2) / (2 * (torch.tensor(c) ** 2 + tau))
        free = -(x**2) / (2 * (torch.tensor(s) ** 2 + tau))
        density = torch.softmax((1 + w) * given - w * free, 0)
        mean = (density * x).sum(0)
        variance = (density * (x - mean) ** 2).sum(0)
        return variance.detach().numpy(), torch.autograd.grad(variance.sum(), tau)[0].numpy()

    of_c, of_s = 1 / (c**2 + level), 1 / (s**2 + level)

    def formula(factor: float = w * (1 + w), sign: float = -1.0, power: int = 2, below: float = w) -> list[Array]:
        precision = (1 + w) * of_c - below * of_s
        return [1 / precision, 1 + sign * factor * ((of_c - of_s) / precision) ** power]

    def differentiated() -> tuple[Array, Array]:
        """1/[(1+w)A - wB], and its derivative by autograd."""
        tau = torch.full((3,), level, dtype=torch.float64, requires_grad=True)
        variance = 1 / ((1 + w) / (torch.tensor(c) ** 2 + tau) - w / (torch.tensor(s) ** 2 + tau))
        return variance.detach().numpy(), torch.autograd.grad(variance.sum(), tau)[0].numpy()

    variance = integrated()[0]
    tilted = 1 / ((1 + w) / c**2 - w / s**2)
    return Lines(
        {
            "v and dv/dτ of three guided densities, by quadrature and autograd": integrated(),
            "= 1/[(1+w)A - wB] and its derivative": differentiated(),
            "= 1/[(1+w)A - wB] and 1 - w(1+w) [(A-B)/((1+w)A - wB)]²": formula(),
        },
        [
            Mutant("dv/dτ = 1, as of any density that is noised", [variance, np.ones(3)]),
            Mutant("v(0) + τ, the density of the data guided, then noised", [tilted + level, np.ones(3)]),
            Mutant("1 + w(1+w)(…)²", formula(sign=1.0)),
            Mutant("w² for w(1+w)", formula(factor=w**2)),
            Mutant("no square", formula(power=1)),
            Mutant("(1+w)A + wB", formula(below=-w)),
        ],
    )


@verifies(
    "guidance-variance",
    r"""\begin{aligned}
&\mathrm{Var}[x_0],\ \text{by the guided ODE from }\bar\sigma=\infty\\
&\quad=c^2\Big(\frac{c^2}{s^2}\Big)^w\\
&\quad\le\frac{c^2}{1+w(1-c^2/s^2)}=\text{variance of }\frac{p_0(x\mid y)^{1+w}}{Z\,p_0(x)^w}\\
&\quad\text{for }p_0(x\mid y)=N(\mu,c^2),\quad p_0(x)=N(0,s^2),\quad c\le s
\end{aligned}""",
    kind="inequality",
    route="closed form",
    **SOLVED,
)
def guidance_variance(rng: np.random.Generator) -> Lines:
    (c, s, w), mu, far = _two_spreads(rng), rng.normal(size=3), 1e5

    def sampled(of_given: float = 1 + w, of_free: float = -w) -> Array:
        """From N(0, σ̄²) at a large σ̄, the ODE dx̄/dσ̄ = ε̃, in log σ̄. It is affine: two of its solutions tell all."""

        def field(log_bar: float, x: Array) -> Array:
            squared = np.exp(2 * log_bar)
            return squared * (of_given * (x - mu) / (c**2 + squared) + of_free * x / (s**2 + squared))

        ends = _solve(field, np.stack([np.zeros(3), np.full(3, far)]), np.log(far), np.log(1e-6))
        return (ends[1] - ends[0]) ** 2

    # The precisions of Gaussians with exponents add up. By quadrature, as well.
    x = np.linspace(-12, 12, 1201)[:, None]
    density = softmax(-(1 + w) * (x - mu) ** 2 / (2 * c**2) + w * x**2 / (2 * s**2), axis=0)
    variance = (density * x**2).sum(0) - (density * x).sum(0) ** 2
    ratio = c**2 / s**2

    def closed(power: float = w, base: Array = c**2) -> Array:
        return base * ratio**power

    line, tilted = "= c² (c²/s²)^w", "≤ c²/[1+w(1-c²/s²)]"
    last = "= variance of p_0(x|y)^{1+w}/p_0(x)^w, by quadrature"
    return Lines(
        {
            "variance of three numbers, guided from σ̄ = 10⁵": sampled(),
            line: closed(),
            tilted: c**2 / (1 + w * (1 - ratio)),
            last: variance,
        },
        [
            Mutant("that of p_0(x|y)^{1+w}/p_0(x)^w", {line: variance}),
            Mutant("c², as without guidance", {line: c**2}),
            Mutant("(c²/s²)^{1+w}", {line: closed(power=1 + w)}),
            Mutant("(c/s)^w", {line: closed(power=w / 2)}),
            Mutant("s² (c²/s²)^w", {line: closed(base=s**2)}),
            Mutant("c²/(1+w), that of p_0(x|y)^{1+w}", {tilted: c**2 / (1 + w)}),
            Mutant("c²/[1+w(s²/c²-1)]", {tilted: c**2 / (1 + w * (1 / ratio - 1))}),
        ],
    )


# Diffusion in the space of an autoencoder


@dataclass(frozen=True)
class _Autoencoder:
    """Data N(μ, C) of four numbers, and the best linear autoencoder with two: z = Wᵀ(x-μ)/k, x̂ = μ + kWz."""

    mean: Array
    covariance: Array
    axes: Array
    scale: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> "_Autoencoder":
        factor = rng.normal(size=(4, 4))
        covariance = factor @ factor.T / 2 + 0.1 * np.eye(4)
        axes = np.linalg.eigh(covariance)[1][:, 2:]
        return cls(rng.normal(size=4), covariance, axes, rng.uniform(1.5, 2.5))

    @property
    def latents(self) -> _Mixture:
        """The law of z."""
        inside = self.axes.T @ self.covariance @ self.axes / self.scale**2
        return _Mixture(np.ones(1), np.zeros((1, 2)), inside[None])


@verifies(
    "latent-diffusion",
    r"""\begin{aligned}
&z_1\sim p_1,\quad\frac{dz}{dt}=f-\tfrac12g^2\,\nabla\log p_t(z),\quad\hat x=\mathcal D(z_0)\\
&\quad\Longrightarrow\quad\hat x\overset d=\mathcal D(\mathcal E(x)),\quad x\sim p_{\rm data}
\end{aligned}""",
    kind="identity",
    route="closed form",
    **SOLVED,
)
def latent_diffusion(rng: np.random.Generator) -> Lines:
    schedule, auto = _Schedule.random(rng), _Autoencoder.random(rng)
    law, projection = auto.latents, auto.axes @ auto.axes.T

    def encoded(project: Array = projection) -> Array:
        """Mean, above the covariance, of D(E(x))."""
        return np.vstack([auto.mean, project @ auto.covariance @ project.T])

    # The ODE is linear: the unit vectors tell where every z_1 leads.
    led = _solve(_velocity(schedule, law), np.eye(2), 1.0, 0.0).T
    denoised = law.denoised(np.eye(2), schedule.a(1.0), schedule.sigma(1.0)).T

    def sampled(
        scale: float = auto.scale, centre: Array = auto.mean, start: Array | None = None, linear: Array = led
    ) -> Array:
        """The same of D(z_0)."""
        spread = law.noised(schedule.a(1.0), schedule.sigma(1.0)).covariances[0] if start is None else start
        decoder = scale * auto.axes @ linear
        return np.vstack([centre, decoder @ spread @ decoder.T])

    return Lines(
        {
            "mean and covariance of D(E(x)), by projection": encoded(),
            "= those of D(z_0), z_0 by the ODE from z_1": sampled(),
        },
        [
            Mutant("those of x: nothing lost in the autoencoder", encoded(np.eye(4))),
            Mutant("latents scaled to be diffused, and not scaled back", sampled(scale=1.0)),
            Mutant("latents scaled twice", sampled(scale=auto.scale**2)),
            Mutant("the decoder without its mean", sampled(centre=np.zeros(4))),
            Mutant("z_1 ∼ N(0, I), though ᾱ_1 > 0", sampled(start=np.eye(2)), erratum="E002-14"),
            Mutant("E[z_0|z_1] for z_0", sampled(linear=denoised)),
        ],
    )


@verifies(
    "latent-ceiling",
    r"""\begin{aligned}
W_2^2(p_{\rm data},\,\text{law of }\mathcal D(z))&\ge W_2^2(p_{\rm data},\,\text{law of }\mathcal D(\mathcal E(x)))\\
&\quad\,\text{whatever the law of }z\\
&=\mathbb E_{p_{\rm data}}\Vert x-\mathcal D(\mathcal E(x))\Vert^2=\sum_{k>d_z}\lambda_k(C)
\end{aligned}""",
    kind="inequality",
    route="closed form",
    **SMALL_SUMS,
)
def latent_ceiling(rng: np.random.Generator) -> Lines:
    auto = _Autoencoder.random(rng)
    root, rest = linalg.sqrtm(auto.covariance), np.eye(4) - auto.axes @ auto.axes.T
    own = auto.axes @ linalg.sqrtm(auto.axes.T @ auto.covariance @ auto.axes)

    def distance(factor: Array, shift: Array) -> float:
        """W_2² of N(μ, C) and N(μ + shift, FFᵀ): the trace of (C^½FFᵀC^½)^½ is the sum of C^½F's singular values."""
        return shift @ shift + (
            np.trace(auto.covariance + factor @ factor.T) - 2 * np.linalg.svd(root @ factor, compute_uv=False).sum()
        )

    values = np.linalg.eigvalsh(auto.covariance)
    other = auto.scale * auto.axes @ rng.normal(size=(2, 2)), auto.axes @ rng.normal(size=2)
    line, last = "≥ W_2² for z = E(x)", "= Σ_{k>d_z} λ_k"
    return Lines(
        {
            "W_2²(p_data, law of D(z)) for another z": distance(*other),
            line: distance(own, np.zeros(4)),
            "= E‖x - D(E(x))‖²": np.trace(rest @ auto.covariance @ rest),
            last: values[:2].sum(),
        },
        [
            Mutant("0: what the autoencoder loses, diffusion brings back", {line: 0.0}),
            Mutant("Σ_{k≤d_z} λ_k", values[2:].sum()),
            Mutant("λ_{d_z+1} alone", values[1]),
            Mutant("Σ_{k>d_z} √λ_k", np.sqrt(values[:2]).sum()),
            Mutant("a mean over what is lost", values[:2].mean()),
            Mutant("as if another z did as well", {line: distance(*other)}),
        ],
    )


def _log_normal(x: Array, mean: Array, variance: Array) -> Array:
    """log N(x; mean, diag variance)."""
    return -((x - mean) ** 2 / variance + np.log(2 * np.pi * variance)).sum(-1) / 2


def _gaussian_kl(mean: Array, covariance: Array, of_mean: Array, of_covariance: Array) -> float:
    precision, away = np.linalg.inv(of_covariance), of_mean - mean
    log_dets = np.linalg.slogdet(of_covariance)[1] - np.linalg.slogdet(covariance)[1]
    return (np.trace(precision @ covariance) + away @ precision @ away - len(mean) + log_dets) / 2


@verifies(
    "latent-elbo",
    r"""\begin{aligned}
-\log p_\theta(x)&\le\mathbb E_{q(z_0\mid x)}\big[-\log p_\theta(x\mid z_0)+\log q(z_0\mid x)-\log p_\theta(z_0)\big]\\
&\le\mathbb E_{q(z_0\mid x)}\big[-\log p_\theta(x\mid z_0)+\log q(z_0\mid x)-\mathcal L(z_0)\big]\\
&=-\log p_\theta(x)+\mathrm{KL}\big(q(z_{0:T}\mid x)\,\Vert\,p_\theta(z_{0:T}\mid x)\big)
\end{aligned}""",
    kind="inequality",
    route="quadrature",
    tolerance=1e-10,
    reason="Gauss-Hermite quadrature of squares, exact to rounding",
)
def latent_elbo(rng: np.random.Generator) -> Lines:
    # Three numbers x, two z, T = 2. All of it linear and Gaussian, the decoder and the reverse kernels at random.
    decoder, x, spread = rng.normal(size=(3, 2)), rng.normal(size=3), rng.uniform(0.3, 0.8)
    code, code_variance = rng.normal(size=2), rng.uniform(0.1, 0.3, size=2)
    alphas = rng.uniform(0.5, 0.8, size=2)
    kernels = [(rng.uniform(0.4, 0.8) * np.eye(2) + 0.1 * rng.normal(size=(2, 2)), rng.uniform(0.3, 0.7)) for _ in "12"]

    # Nodes for z_0, z_1 and z_2 given x.
    noise, weight = gauss_hermite(6, 3)
    z0 = code + np.sqrt(code_variance) * noise[:, :2]
    z1 = np.sqrt(alphas[0]) * z0 + np.sqrt(1 - alphas[0]) * noise[:, 2:4]
    z2 = np.sqrt(alphas[1]) * z1 + np.sqrt(1 - alphas[1]) * noise[:, 4:]

    # The model: z_2, then z_1, then z_0 as one map of noise.
    second = np.hstack([np.zeros((2, 4)), np.eye(2)])
    first = kernels[1][0] @ second + np.sqrt(kernels[1][1]) * np.eye(2, 6, 2)
    zeroth = kernels[0][0] @ first + np.sqrt(kernels[0][1]) * np.eye(2, 6)
    joint = np.vstack([zeroth, first, second]) @ np.vstack([zeroth, first, second]).T
    to_x = np.hstack([decoder, np.zeros((3, 4))])
    evidence = to_x @ joint @ to_x.T + spread * np.eye(3)
    gain = joint @ to_x.T @ np.linalg.inv(evidence)
    log_p = multivariate_normal(np.zeros(3), evidence).logpdf(x)

    # q as one map of noise, for the KL between whole paths.
    of_z0 = np.sqrt(code_variance)[:, None] * np.eye(2, 6)
    of_z1 = np.sqrt(alphas[0]) * of_z0 + np.sqrt(1 - alphas[0]) * np.eye(2, 6, 2)
    of_z2 = np.sqrt(alphas[1]) * of_z1 + np.sqrt(1 - alphas[1]) * np.eye(2, 6, 4)
    path, bars = np.vstack([of_z0, of_z1, of_z2]), np.cumprod([1.0, *alphas])
    gap = _gaussian_kl(
        np.concatenate(np.sqrt(bars)[:, None] * code), path @ path.T, gain @ x, joint - gain @ to_x @ joint
    )

    def kl(mean: Array, variance: float, of_mean: Array, of_variance: float) -> float:
        each = (variance + (mean - of_mean) ** 2) / of_variance - 1 + np.log(of_variance / variance)
        return weight @ each.sum(-1) / 2

    mean = (np.sqrt(bars[1]) * (1 - alphas[1]) * z0 + np.sqrt(alphas[1]) * (1 - bars[1]) * z2) / (1 - bars[2])
    prior = kl(np.sqrt(bars[2]) * z0, 1 - bars[2], np.zeros(2), 1.0)
    denoising = kl(mean, (1 - alphas[1]) * (1 - bars[1]) / (1 - bars[2]), z2 @ kernels[1][0].T, kernels[1][1])
    last_step = weight @ _log_normal(z0, z1 @ kernels[0][0].T, np.array(kernels[0][1]))

    reconstruction = weight @ _log_normal(x, z0 @ decoder.T, np.array(spread))
    at_mean = _log_normal(x, decoder @ code, np.array(spread))
    log_q = weight @ _log_normal(z0, code, code_variance)
    of_latents = weight @ multivariate_normal(np.zeros(2), joint[:2, :2]).logpdf(z0)
    standard = weight @ _log_normal(z0, np.zeros(2), np.ones(2))
    bound = last_step - prior - denoising
    line = "≤ E_q[-log p(x|z_0) + log q(z_0|x) - L(z_0)]"
    return Lines(
        {
            "-log p(x)": -log_p,
            "≤ E_q[-log p(x|z_0) + log q(z_0|x) - log p(z_0)]": -reconstruction + log_q - of_latents,
            line: -reconstruction + log_q - bound,
            "= -log p(x) + KL(q(z_{0:T}|x)‖p(z_{0:T}|x))": -log_p + gap,
        },
        [
            Mutant("log q(z_0|x) forgotten", {line: -reconstruction - bound}),
            Mutant("-log q(z_0|x)", {line: -reconstruction - log_q - bound}),
            Mutant("the encoder's mean decoded", {line: -at_mean + log_q - bound}),
            Mutant("KL(q(z_T|z_0)‖p(z_T)) taken as zero", {line: -reconstruction + log_q - bound - prior}, "E002-14"),
            Mutant("N(0, I) as the prior of z_0, as in a VAE", {line: -reconstruction + log_q - standard}),
            Mutant("that prior and the diffusion, too", {line: -reconstruction + 2 * log_q - standard - bound}),
            Mutant("+L(z_0)", {line: -reconstruction + log_q + bound}),
        ],
    )


# Distillation


@verifies(
    "one-step-ddim",
    r"""\begin{aligned}
x_0^{(1)}&=\hat x_0(x_t,t)=\mathbb E[x_0\mid x_t]\\
\Longrightarrow\quad\mathrm{Cov}\big[x_0^{(1)}\big]&=\mathrm{Cov}[x_0]-\mathbb E\big[\mathrm{Cov}[x_0\mid x_t]\big]
\end{aligned}""",
    kind="identity",
    route="quadrature",
    tolerance=1e-10,
    reason="quadrature that resolves a smooth density to rounding",
)
def one_step_ddim(rng: np.random.Generator) -> Lines:
    data, bar = _Mixture.random(rng), rng.uniform(0.1, 0.4)
    a, sigma = np.sqrt(bar), np.sqrt(1 - bar)
    nodes, weight = plane(9.0, 91)
    at_nodes = weight * np.exp(data.noised(a, sigma).log_density(nodes))
    inside = data.posterior(nodes, a, sigma)[1]

    def covariance(x: Array) -> Array:
        centred = x - at_nodes @ x
        return (at_nodes * centred.T) @ centred

    centre = data.weights @ data.means
    away = data.means - centre
    everything = np.einsum("k,kij->ij", data.weights, data.covariances) + (data.weights * away.T) @ away
    lost = np.einsum("n,nij->ij", at_nodes, inside)
    # To ᾱ = 1, where DDIM adds no noise.
    step = _ddim(nodes, data.denoised(nodes, a, sigma), 1.0, bar)
    by_score = (nodes + sigma**2 * data.noised(a, sigma).score(nodes)) / a
    return Lines(
        {
            "Cov[x_0^{(1)}], one step of DDIM from each x_t": covariance(step),
            "= Cov[x̂_0], x̂_0 by the score": covariance(by_score),
            "= Cov[x_0] - E[Cov[x_0|x_t]]": everything - lost,
        },
        [
            Mutant("Cov[x_0]: one step as good as all", everything),
            Mutant("Cov[x_0] + E[Cov[x_0|x_t]]", everything + lost),
            Mutant("E[Cov[x_0|x_t]]", lost),
            Mutant("Cov[x_0|x_t] at the mean of x_t", everything - data.posterior(a * centre, a, sigma)[1]),
            Mutant("√ᾱ_t x_0^{(1)}", bar * (everything - lost)),
        ],
    )


@verifies(
    "progressive-distillation",
    r"""\begin{aligned}
\tilde x&=\frac{z_{t''}-(\sigma_{t''}/\sigma_t)\,z_t}{a_{t''}-(\sigma_{t''}/\sigma_t)\,a_t}\\
&=\gamma\,\hat x_0(z_t)+(1-\gamma)\,\hat x_0(z_{t'}),\qquad
\gamma=\frac{e^{\lambda_{t'}}-e^{\lambda_t}}{e^{\lambda_{t''}}-e^{\lambda_t}}\\
&\quad\text{leads in one step of DDIM}\\
&\quad\text{where the teacher takes two: }z_t\to z_{t'}\to z_{t''}
\end{aligned}""",
    kind="identity",
    route="closed form",
    **SMALL_SUMS,
)
def progressive_distillation(rng: np.random.Generator) -> Lines:
    data, z = _Mixture.random(rng), rng.normal(size=(3, 2))
    now, between, after = np.sort(rng.uniform([0.1, 0.35, 0.65], [0.3, 0.55, 0.85]))
    guess = data.denoised(z, np.sqrt(now), np.sqrt(1 - now))
    middle = _ddim(z, guess, between, now)
    second = data.denoised(middle, np.sqrt(between), np.sqrt(1 - between))
    landed = _ddim(middle, second, after, between)

    def student(target: Array) -> Array:
        return _ddim(z, target, after, now)

    def formula(end: Array = landed, a: float = np.sqrt(now), sigma: float = np.sqrt((1 - after) / (1 - now))) -> Array:
        return (end - sigma * z) / (np.sqrt(after) - sigma * a)

    def mean(share: float) -> Array:
        return share * guess + (1 - share) * second

    snr = np.exp([_log_snr(level) for level in (now, between, after)])
    share = (snr[1] - snr[0]) / (snr[2] - snr[0])
    # One step is a straight line in x̂_0.
    solved = (landed - student(0 * z)) / (student(1 + 0 * z) - student(0 * z))
    closed, last = "= [z'' - (σ''/σ) z]/[a'' - (σ''/σ) a]", "= γ x̂_0(z) + (1-γ) x̂_0(z')"
    step = "the x̃ whose one step leads where the teacher's two do"
    return Lines(
        {step: solved, closed: formula(), last: mean(share)},
        [
            Mutant("the teacher's first guess", mean(1.0)),
            Mutant("the teacher's second guess", mean(0.0)),
            Mutant("γ = ½", mean(0.5)),
            Mutant("γ and 1-γ exchanged", mean(1 - share)),
            Mutant("γ by λ, not e^λ", mean(np.log(snr[1] / snr[0]) / np.log(snr[2] / snr[0]))),
            Mutant("z' for z''", {closed: formula(end=middle)}),
            Mutant("σ/σ''", {closed: formula(sigma=np.sqrt((1 - now) / (1 - after)))}),
            Mutant("a' for a", {closed: formula(a=np.sqrt(between))}),
            Mutant("(1-ᾱ'')/(1-ᾱ), without its root", {closed: formula(sigma=(1 - after) / (1 - now))}),
        ],
    )


# Consistency models


@verifies(
    "consistency-function",
    r"""\begin{aligned}
f(x_t,t)&=x_0\quad\text{for every }t\text{, if }\frac{dx_t}{dt}=v(x_t,t),\qquad f(x,0)=x\\
&\quad\text{and if }x_0\sim N(\mu,C):\quad f(x,t)=\mu+C^{1/2}\,C_t^{-1/2}(x-\sqrt{\bar\alpha_t}\,\mu)
\end{aligned}""",
    kind="definition",
    route="closed form",
    **SOLVED,
)
def consistency_function(rng: np.random.Generator) -> Lines:
    schedule, data, x = _Schedule.random(rng), _Mixture.random(rng, parts=1), rng.normal(size=2)
    ends, [mean], [covariance] = np.array([0.3, 0.6, 1.0]), data.means, data.covariances
    path = _solve(_velocity(schedule, data), x, 0.0, ends)
    levels = [(schedule.a(t), schedule.sigma(t)) for t in ends]

    def closed(root: Callable[[Array], Array] = linalg.sqrtm, shrunk: bool = True) -> list[Array]:
        return [
            mean
            + root(covariance)
            @ np.linalg.solve(root(data.noised(a, sigma).covariances[0]), y - (a if shrunk else 1.0) * mean)
            for (a, sigma), y in zip(levels, path, strict=True)
        ]

    def each(function: Callable[[Array, float, float], Array]) -> list[Array]:
        return [function(y, a, sigma) for (a, sigma), y in zip(levels, path, strict=True)]

    def euler(y: Array, a: float, sigma: float) -> Array:
        """A step of the ODE in ∫β dt, all the way."""
        return y - np.log(a) * (y + data.noised(a, sigma).score(y))

    back = [_solve(_velocity(schedule, data), y, t, 0.0) for t, y in zip(ends, path, strict=True)]
    return Lines(
        {
            "x_0, whose path passes x_t at three t": np.tile(x, (3, 1)),
            "= where the ODE leads back from each x_t": back,
            "= μ + C^{1/2} C_t^{-1/2} (x_t - √ᾱ_t μ) at each x_t": closed(),
        },
        [
            Mutant("one long step of a solver: x̂_0(x_t, t)", each(data.denoised), erratum="E001-14"),
            Mutant("one long step in ∫β dt", each(euler), erratum="E001-14"),
            Mutant("x_t/√ᾱ_t", each(lambda y, a, sigma: y / a)),
            Mutant("C C_t⁻¹, without roots", closed(root=lambda c: c)),
            Mutant("x_t - μ", closed(shrunk=False)),
            Mutant("x_t: the boundary condition everywhere", path),
        ],
    )


@dataclass(frozen=True)
class _Student:
    """f_θ(x̄, σ̄) = c_skip x̄ + c_out F_θ(x̄, σ̄) in the plane, with a small network of eight weights θ as F."""

    theta: torch.Tensor
    floor: float
    data_scale: float

    @classmethod
    def random(cls, rng: np.random.Generator, floor: float | None = None) -> "_Student":
        floor = rng.uniform(0.1, 0.3) if floor is None else floor
        return cls(torch.tensor(rng.normal(size=8)), floor, rng.uniform(0.6, 1.2))

    def network(self, x: torch.Tensor, bar: torch.Tensor | float, theta: torch.Tensor | None = None) -> torch.Tensor:
        first, last = (self.theta if theta is None else theta).reshape(2, 2, 2)
        return torch.sin(x @ first + bar) @ last

    def skip(self, bar: Level, floor: float | None = None) -> Level:
        away = bar - (self.floor if floor is None else floor)
        return self.data_scale**2 / (away**2 + self.data_scale**2)

    def out(self, bar: Level, floor: float | None = None) -> Level:
        away = bar - (self.floor if floor is None else floor)
        return self.data_scale * away / (self.data_scale**2 + bar**2) ** 0.5

    def __call__(self, x: torch.Tensor, bar: Level, theta: torch.Tensor | None = None) -> torch.Tensor:
        return self.skip(bar) * x + self.out(bar) * self.network(x, bar, theta)

    def at(self, x: Array, bar: float) -> Array:
        return self(torch.tensor(x), bar).numpy()


@verifies(
    "consistency-parameterisation",
    r"""\begin{aligned}
f_\theta(\bar x,\bar\sigma)&=c_{\rm skip}(\bar\sigma)\,\bar x+c_{\rm out}(\bar\sigma)\,F_\theta(\bar x,\bar\sigma)\\
&\quad\Longrightarrow\quad f_\theta(\bar x,\bar\sigma_{\min})=\bar x\\
&\quad\text{with }c_{\rm skip}=\frac{\sigma_{\rm d}^2}{(\bar\sigma-\bar\sigma_{\min})^2+\sigma_{\rm d}^2},\quad
c_{\rm out}=\frac{\sigma_{\rm d}\,(\bar\sigma-\bar\sigma_{\min})}{\sqrt{\sigma_{\rm d}^2+\bar\sigma^2}}\\
&\quad\text{for }\bar\sigma_{\min}=0\text{ and }\mathrm{Var}[x_0]=\sigma_{\rm d}^2:\\
&\quad\quad c_{\rm skip}=\arg\min_c\mathbb E(x_0-c\bar x)^2,\quad
c_{\rm out}^2=\min_c\mathbb E(x_0-c\bar x)^2
\end{aligned}""",
    kind="identity",
    route="closed form",
    **SMALL_SUMS,
)
def consistency_parameterisation(rng: np.random.Generator) -> Lines:
    student, x, bar = _Student.random(rng), rng.normal(size=2), rng.uniform(0.5, 2.0)
    scale, network = student.data_scale, student.network(torch.tensor(x), student.floor).numpy()
    # Regression of x_0 on x̄ = x_0 + σ̄ε from the covariances of (x_0, ε), and what it leaves.
    mixing = np.array([[1.0, 0.0], [1.0, bar]])
    covariance = mixing @ np.diag([scale**2, 1.0]) @ mixing.T
    slope = np.linalg.lstsq(covariance[1:, 1:], covariance[0, 1:], rcond=None)[0].item()
    left = np.array([1, -slope]) @ covariance @ [1, -slope]

    def formula(skip: Callable = student.skip, out: Callable = student.out) -> Array:
        """f_θ where it starts; c_skip and c_out² of σ̄_min = 0."""
        start = skip(student.floor, student.floor) * x + out(student.floor, student.floor) * network
        return np.array([*start, skip(bar, 0.0), out(bar, 0.0) ** 2])

    return Lines(
        {
            "x̄; slope and rest of the regression of x_0 on x̄": np.array([*x, slope, left]),
            "= f_θ(x̄, σ̄_min); c_skip and c_out² with σ̄_min = 0": formula(),
        },
        [
            Mutant("c_skip with σ̄ for σ̄-σ̄_min", formula(skip=lambda bar, floor: student.skip(bar, 0.0))),
            Mutant("c_out with σ̄ for σ̄-σ̄_min", formula(out=lambda bar, floor: student.out(bar, 0.0))),
            Mutant("c_out without σ_d", formula(out=lambda bar, floor: student.out(bar, floor) / scale)),
            Mutant("c_skip = σ_d/(σ̄+σ_d), no squares", formula(skip=lambda b, floor: scale / (b - floor + scale))),
            Mutant("c_skip = 1 - c_out", formula(skip=lambda *at: 1 - student.out(*at))),
            Mutant("c_skip = 0 at σ̄_min, c_out = 1", formula(*(lambda *at: 1 - student.skip(*at), student.skip))),
        ],
    )


@verifies(
    "consistency-distillation",
    r"""\begin{aligned}
\Vert f_\theta(\bar x_N,\bar\sigma_N)-\bar x_0\Vert&=\Big\Vert\sum_{i=1}^N
f_\theta(\bar x_i,\bar\sigma_i)-f_\theta(\bar x_{i-1},\bar\sigma_{i-1})\Big\Vert\\
&\le\sum_{i=1}^N\Vert f_\theta(\bar x_i,\bar\sigma_i)-f_\theta(\bar x_{i-1},\bar\sigma_{i-1})\Vert\\
&\quad\text{if }f_\theta(\bar x_0,\bar\sigma_0)=\bar x_0,\\
&\quad\text{for }\bar x_0,\dots,\bar x_N\text{ on a path of the ODE}
\end{aligned}""",
    kind="inequality",
    route="closed form",
    **SOLVED,
)
def consistency_distillation(rng: np.random.Generator) -> Lines:
    # Gaussian data, of which the consistency function is known.
    data, student = _Mixture.random(rng, parts=1), _Student.random(rng)
    bars = student.floor + np.linspace(0.0, 2.0, 7)
    end = bars[-1] * rng.normal(size=2)
    first_root, last_root = (linalg.sqrtm(data.noised(1.0, bar).covariances[0]) for bar in (bars[0], bars[-1]))
    start = data.means[0] + first_root @ np.linalg.solve(last_root, end - data.means[0])
    back = _solve(lambda bar, x: -bar * data.noised(1.0, bar).score(x), end, bars[-1], bars[-2::-1])
    path = np.concatenate([back[::-1], end[None]])

    def changes(path: Array = path, bars: Array = bars) -> Array:
        values = np.stack([student.at(x, bar) for x, bar in zip(path, bars, strict=True)])
        return np.diff(values, axis=0)

    # Without c_skip and c_out, F by itself.
    bare = np.stack([student.network(torch.tensor(x), bar).numpy() for x, bar in zip(path, bars, strict=True)])
    apart = data.means[0] + bars[:, None] * rng.normal(size=(7, 2))
    line, last = "= ‖Σ_i f(x̄_i, σ̄_i) - f(x̄_{i-1}, σ̄_{i-1})‖", "≤ Σ_i ‖f(x̄_i, σ̄_i) - f(x̄_{i-1}, σ̄_{i-1})‖"
    norms = np.linalg.norm(changes(), axis=1)
    return Lines(
        {
            "‖f(x̄_N, σ̄_N) - x̄_0‖, x̄_0 by the consistency function": np.linalg.norm(student.at(end, bars[-1]) - start),
            line: np.linalg.norm(changes().sum(0)),
            last: norms.sum(),
        },
        [
            Mutant("F for f: no boundary condition", {line: np.linalg.norm(np.diff(bare, axis=0).sum(0))}),
            Mutant("noise of its own for each x̄_i", {line: np.linalg.norm(changes(apart).sum(0))}),
            Mutant("the first interval forgotten", {line: np.linalg.norm(changes()[1:].sum(0))}),
            Mutant("f at σ̄_i of both points", {line: np.linalg.norm(changes(bars=np.full(7, bars[-1])).sum(0))}),
            Mutant("the mean over i, as in a loss", norms.mean()),
            Mutant("the largest of them", norms.max()),
        ],
    )


@verifies(
    "consistency-score",
    r"""\begin{aligned}
\nabla\log p_{\bar\sigma}(\bar x)&=-\mathbb E\Big[\frac{\bar x-x_0}{\bar\sigma^2}\,\Big|\,\bar x\Big]\\
\mathbb E[x_0+\bar\sigma'\epsilon\mid\bar x]&=\bar x+(\bar\sigma'-\bar\sigma)\,\frac{d\bar x}{d\bar\sigma},
\qquad\bar x=x_0+\bar\sigma\epsilon
\end{aligned}""",
    kind="identity",
    route="quadrature",
    tolerance=1e-10,
    reason="quadrature that resolves a smooth density to rounding",
)
def consistency_score(rng: np.random.Generator) -> Lines:
    data, x, bar = _Mixture.random(rng), rng.normal(size=(3, 2)), rng.uniform(0.6, 1.2)
    lower = bar * rng.uniform(0.5, 0.9)
    nodes, weight = plane(9.0, 121)
    away = x[:, None] - nodes
    posterior = weight * np.exp(data.log_density(nodes) - (away**2).sum(-1) / (2 * bar**2))
    posterior /= posterior.sum(1, keepdims=True)

    def mean(values: Array) -> Array:
        """E[…|x̄] at three x̄."""
        return np.einsum("pn,pni->pi", posterior, values)

    def formula(power: float = 2.0, sign: float = -1.0, kept: float = 1.0, level: float = lower) -> Array:
        return np.stack([sign * mean(away) / bar**power, mean(kept * nodes + level * away / bar)])

    score = data.autograd_score(x, 1.0, bar)
    line = "= the mean over x_0 given x̄ of (x_0-x̄)/σ̄², and of x_0+σ̄'ε"

    def euler(score: Array, scale: float = bar) -> Array:
        return np.stack([score, x + (lower - bar) * -scale * score])

    first = "∇log p at three x̄, and one step of Euler from there"
    return Lines(
        {
            first: euler(score),
            "= the same by x̂_0": euler((data.denoised(x, 1.0, bar) - x) / bar**2),
            line: formula(),
        },
        [
            Mutant("over σ̄", formula(power=1.0)),
            Mutant("+(x̄-x_0)/σ̄²", formula(sign=1.0)),
            Mutant("x_0 + σ̄ε: the same point again", formula(level=bar)),
            Mutant("σ̄'ε without x_0", formula(kept=0.0)),
            Mutant("a step of (σ̄'-σ̄) times minus the score", {first: euler(score, 1.0)}),
            Mutant("the score of the data", {first: euler(data.autograd_score(x))}),
        ],
    )


@verifies(
    "consistency-training",
    r"""\begin{aligned}
&\lim_{\delta\to0}\frac1\delta\,\nabla_\theta\,
\mathbb E\big\Vert f_\theta(x_0+(\bar\sigma+\delta)\epsilon,\,\bar\sigma+\delta)
-f_{\theta^-}(x_0+\bar\sigma\epsilon,\,\bar\sigma)\big\Vert^2\\
&\quad\text{with }\theta^-=\theta\text{ held fixed}\\
&\quad=2\,\mathbb E\Big[\Big(\frac{\partial f_\theta}{\partial\theta}\Big)^\top
\Big(\frac{\partial f_\theta}{\partial\bar\sigma}+\frac{\partial f_\theta}{\partial\bar x}\,\epsilon\Big)\Big]
\qquad\text{no teacher}\\
&\quad=2\,\mathbb E\Big[\Big(\frac{\partial f_\theta}{\partial\theta}\Big)^\top
\Big(\frac{\partial f_\theta}{\partial\bar\sigma}+\frac{\partial f_\theta}{\partial\bar x}\,\hat\epsilon\Big)\Big]
\qquad\text{the change of }f_\theta\text{ along the ODE}
\end{aligned}""",
    kind="identity",
    route="autograd",
    tolerance=1e-8,
    reason="a limit of δ to 2^-9 by extrapolation; sums over nodes that resolve smooth densities",
)
def consistency_training(rng: np.random.Generator) -> Lines:
    # A training set of three points.
    points, student, bar = 0.7 * rng.normal(size=(3, 2)), _Student.random(rng, floor=0.05), rng.uniform(1.0, 1.4)
    data = _Mixture(rng.dirichlet(np.full(3, 5.0)), points, np.zeros((3, 2, 2)))
    nodes, weight = plane(7.0, 57)
    noise = torch.tensor(np.tile(nodes, (3, 1)))
    x0 = torch.tensor(np.repeat(points, len(nodes), axis=0))
    share = torch.tensor(np.kron(data.weights, weight)) * torch.exp(-(noise**2).sum(1) / 2) / (2 * np.pi)
    estimated = torch.tensor(-bar * data.noised(1.0, bar).score((x0 + bar * noise).numpy()))

    def gradient(loss: Callable[[torch.Tensor], torch.Tensor]) -> Array:
        theta = student.theta.clone().requires_grad_()
        return torch.autograd.grad(loss(theta), theta)[0].numpy()

    def training(delta: float, stopped: bool = True, own: bool = False, same: bool = False) -> Array:
        def loss(theta: torch.Tensor) -> torch.Tensor:
            # Noise of its own for the second point: that of the node on the other side of 0.
            second = x0 + bar * (-noise if own else noise)
            target = student(second, bar + delta if same else bar, student.theta if stopped else theta)
            return share @ ((student(x0 + (bar + delta) * noise, bar + delta, theta) - target) ** 2).sum(1)

        return gradient(loss) / delta

    def along(direction: torch.Tensor, level: float = 1.0, factor: float = 2.0) -> Array:
        """The formulas: the change of f_θ when (x̄, σ̄) moves along (direction, level)."""
        x = x0 + bar * noise
        # A length for each node, so that one gradient has the change at all of them.
        length = torch.zeros(len(x0), 1, dtype=torch.float64, requires_grad=True)
        moved = student(x + length * direction, bar + level * length)
        change = [torch.autograd.grad(v.sum(), length, retain_graph=True)[0] for v in moved.T]
        return gradient(lambda theta: factor * share @ (student(x, bar, theta) * torch.hstack(change)).sum(1))

    def limit(**slip: bool) -> Array:
        return _limit([training(2.0**-k, **slip) for k in range(4, 10)])

    first, line = "limit of the gradient over δ, by pairs with the same noise", "= 2E[(∂f/∂θ)ᵀ(∂f/∂σ̄ + ∂f/∂x̄ ε)]"
    return Lines(
        {first: limit(), line: along(noise), "= 2E[(∂f/∂θ)ᵀ(∂f/∂σ̄ + ∂f/∂x̄ ε̂)]": along(estimated)},
        [
            Mutant("noise of its own for each of a pair", {first: limit(own=True)}),
            Mutant("θ⁻ not held fixed: of order δ²", {first: limit(stopped=False)}),
            Mutant("one σ̄ for both", {first: limit(same=True)}),
            Mutant("-ε̂", along(-estimated)),
            Mutant("the score for ε̂", along(-estimated / bar)),
            Mutant("without ∂f/∂σ̄", along(estimated, level=0.0)),
            Mutant("1 for 2", along(estimated, factor=1.0)),
        ],
    )
