"""Checks for the chapter on denoising diffusion.

Throughout, q is the forward process and t = 1, …, T; what has no index of its own belongs to one step t.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import optimize
from scipy.special import xlogy
from scipy.stats import multivariate_normal, norm
from torch.distributions import Independent, Normal, kl_divergence

from companion.derivations.registry import Lines, Mutant, Tolerance, verifies
from companion.derivations.toys import gauss_hermite, plane
from companion.models.hvae import HVAE
from companion.nets.time_embedding import sinusoidal

Array = np.ndarray

SMALL_SUMS = Tolerance(tolerance=1e-11, reason="sums of a few float64 numbers of order one")
GAUSSIANS = Tolerance(tolerance=1e-10, reason="Gaussians in a few dimensions, conditioned or weighed in float64")
QUADRATURE = Tolerance(tolerance=1e-10, reason="quadrature that resolves a smooth density to rounding")


def _line(reach: float, points: int) -> tuple[Array, Array]:
    """Nodes and weights of the trapezoid rule, see `toys.plane`."""
    nodes = np.linspace(-reach, reach, points)
    return nodes, np.full(points, nodes[1] - nodes[0])


def _log_normal(x: Array, mean: Array, variance: float) -> Array:
    """log N(x; mean, variance I), the coordinates on the last axis."""
    away = x - mean
    return -0.5 * ((away**2).sum(-1) / variance + away.shape[-1] * np.log(2 * np.pi * variance))


def _gradient(function: Callable[[torch.Tensor], torch.Tensor], x: Array) -> Array:
    """Of a function of every row, by autograd."""
    at = torch.tensor(x, requires_grad=True)
    return torch.autograd.grad(function(at).sum(), at)[0].numpy()


@dataclass(frozen=True)
class _Schedule:
    """β_t, α_t and ᾱ_t at their own index; in front of them β_0 = 0, α_0 = 1 and ᾱ_0 = 1."""

    beta: Array

    @classmethod
    def random(cls, rng: np.random.Generator, steps: int) -> "_Schedule":
        return cls(np.append(0.0, rng.uniform(0.15, 0.4, steps)))

    @property
    def steps(self) -> int:
        """T."""
        return len(self.beta) - 1

    @property
    def alpha(self) -> Array:
        return 1 - self.beta

    @property
    def alpha_bar(self) -> Array:
        return np.cumprod(self.alpha)


@dataclass(frozen=True)
class _Mixture:
    """A mixture of Gaussians in the plane."""

    weights: Array  # (k,)
    means: Array  # (k, 2)
    covariances: Array  # (k, 2, 2)

    @classmethod
    def random(cls, rng: np.random.Generator) -> "_Mixture":
        """Two parts on two sides of a point near zero."""
        centre, side = 0.2 * rng.normal(size=2), rng.uniform(0.7, 1.2, 2) * rng.choice([-1, 1], 2)
        factors = np.diag([0.45, 0.45]) + rng.uniform(-0.15, 0.15, size=(2, 2, 2))
        share = rng.uniform(0.3, 0.7)
        return cls(
            np.array([share, 1 - share]),
            np.array([centre + side, centre - side]),
            factors @ factors.swapaxes(1, 2) + 0.05 * np.eye(2),
        )

    def noised(self, kept: float) -> "_Mixture":
        """q(x_t), with `kept` = ᾱ_t."""
        return _Mixture(self.weights, np.sqrt(kept) * self.means, kept * self.covariances + (1 - kept) * np.eye(2))

    def parts(self, x: Array) -> Array:
        """The weighted density of each part, (k, …)."""
        parts = zip(self.weights, self.means, self.covariances, strict=True)
        return np.array([w * multivariate_normal(m, c).pdf(x) for w, m, c in parts])

    def density(self, x: Array) -> Array:
        return self.parts(x).sum(0)

    def denoise(self, x: Array, kept: float) -> Array:
        """E[x_0|x_t = x]: every part's, by conditioning a Gaussian, weighted by how probable the part is."""
        noised = self.noised(kept)
        share = noised.parts(x) / noised.density(x)
        gains = np.sqrt(kept) * self.covariances @ np.linalg.inv(noised.covariances)
        each = zip(self.means, noised.means, gains, strict=True)
        return np.einsum("k...,k...i->...i", share, np.array([m + (x - n) @ g.T for m, n, g in each]))

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """The same by torch, for its derivatives."""
        heights = np.log(self.weights) - 0.5 * np.linalg.slogdet(2 * np.pi * self.covariances)[1]
        parts = []
        for height, mean, covariance in zip(heights, self.means, self.covariances, strict=True):
            away = x - torch.tensor(mean)
            parts.append(height - 0.5 * (away @ torch.tensor(np.linalg.inv(covariance)) * away).sum(-1))
        return torch.logsumexp(torch.stack(parts), 0)

    def score(self, x: Array) -> Array:
        """∇ log of the density, by autograd."""
        return _gradient(self.log_density, x)


# The forward process


@verifies(
    "ddpm-alpha-bar",
    r"\alpha_t=1-\beta_t,\qquad\bar\alpha_t=\prod_{s=1}^t\alpha_s,\qquad\bar\alpha_0=1",
    kind="definition",
    route="closed form",
    **SMALL_SUMS,
)
def ddpm_alpha_bar(rng: np.random.Generator) -> Lines:
    s = _Schedule.random(rng, 5)
    x = [rng.normal(size=2)]
    for b in s.beta[1:]:
        x.append(np.sqrt(1 - b) * x[-1])
    squares = np.square(x).sum(1)
    products = [np.prod(s.alpha[1 : t + 1]) for t in range(6)]
    return Lines(
        {
            "‖x_t‖²/‖x_0‖² of t steps without noise, t = 0, …, 5": squares / squares[0],
            "= exp Σ_s log(1-β_s)": np.exp(np.cumsum(np.log1p(-s.beta))),
            "= Π_s α_s": products,
        },
        [
            Mutant("α_t for the product", s.alpha, erratum="E004-13"),
            Mutant("Π_s β_s", np.cumprod(np.append(1.0, s.beta[1:]))),
            Mutant("1 - Σ_s β_s", 1 - np.cumsum(s.beta)),
            Mutant("the product up to t-1", np.append(1.0, products[:-1])),
            Mutant("√ᾱ_t for ᾱ_t", np.sqrt(products)),
            Mutant("ᾱ_0 = α_1", np.append(s.alpha[1], products[1:])),
        ],
    )


@verifies(
    "ddpm-forward-step",
    r"q(x_t\mid x_{t-1})=N\big(x_t;\sqrt{\alpha_t}\,x_{t-1},\beta_tI\big),\qquad "
    r"x_t=\sqrt{1-\beta_t}\,x_{t-1}+\sqrt{\beta_t}\,\epsilon_t",
    kind="definition",
    route="quadrature",
    **QUADRATURE,
)
def ddpm_forward_step(rng: np.random.Generator) -> Lines:
    before, b = rng.normal(size=2), rng.uniform(0.2, 0.4)
    (nodes, weight), (noise, share) = plane(8.0, 121), gauss_hermite(2, 3)

    def of(x: Array, weight: Array) -> Array:
        """Mass, means, and second moments around zero."""
        return np.concatenate([[weight.sum()], weight @ x, ((x.T * weight) @ x).ravel()])

    def density(mean: Array, variance: float) -> Array:
        return of(nodes, weight * np.exp(_log_normal(nodes, mean, variance)))

    line = "moments of N(√α_t x_{t-1}, β_t I), by quadrature"
    return Lines(
        {
            line: density(np.sqrt(1 - b) * before, b),
            "= of √(1-β_t) x_{t-1} + √β_t ε_t, by those of ε_t": of(
                np.sqrt(1 - b) * before + np.sqrt(b) * noise, share
            ),
        },
        [
            Mutant("around x_{t-1}", {line: density(before, b)}, erratum="E002-06"),
            Mutant(
                "√β_t for the variance β_t", {line: density(np.sqrt(1 - b) * before, np.sqrt(b))}, erratum="E001-06"
            ),
            Mutant("β_t ε_t", of(np.sqrt(1 - b) * before + b * noise, share)),
            Mutant("(1-β_t) x_{t-1}", of((1 - b) * before + np.sqrt(b) * noise, share)),
            Mutant(
                "x_t = x_{t-1}/√α_t + …", of(before / np.sqrt(1 - b) + np.sqrt(b) * noise, share), erratum="E002-06"
            ),
            Mutant("the variance α_t", {line: density(np.sqrt(1 - b) * before, 1 - b)}),
        ],
    )


@verifies(
    "ddpm-variance-preserving",
    r"""\begin{aligned}
\mathrm{Cov}(x_t)&=\alpha_t\,\mathrm{Cov}(x_{t-1})+(1-\alpha_t)I\\
&=I+\bar\alpha_t\big(\mathrm{Cov}(x_0)-I\big)\qquad\big(=I\text{ if }\mathrm{Cov}(x_0)=I\big)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def ddpm_variance_preserving(rng: np.random.Generator) -> Lines:
    s, data = _Schedule.random(rng, 3), _Mixture.random(rng)
    nodes, weight = plane(11.0, 141)
    one, t = np.eye(2), s.steps

    def covariance(data: _Mixture) -> Array:
        share = weight * data.density(nodes)
        mean = share @ nodes
        return (nodes.T * share) @ nodes - np.outer(mean, mean)

    # The same data, and the same with every direction scaled to variance one.
    away = data.means - data.weights @ data.means
    of_data = np.einsum("k,kij->ij", data.weights, data.covariances + away[:, :, None] * away[:, None])
    whiten = np.linalg.inv(np.linalg.cholesky(of_data))
    white = _Mixture(data.weights, data.means @ whiten.T, whiten @ data.covariances @ whiten.T)
    start = np.stack([of_data, one])
    first, before = (np.stack([covariance(d.noised(s.alpha_bar[u])) for d in (data, white)]) for u in (t, t - 1))
    a, kept, line = s.alpha[t], s.alpha_bar[t], "= α_t Cov(x_{t-1}) + (1-α_t) I"
    return Lines(
        {
            "Cov(x_3) of a mixture, and of one with Cov(x_0) = I": first,
            line: a * before + (1 - a) * one,
            "= I + ᾱ_3 (Cov(x_0) - I), and I": np.stack([one + kept * (of_data - one), one]),
        },
        [
            Mutant("around x_{t-1}, not √α_t x_{t-1}", {line: before + (1 - a) * one}, erratum="E002-06"),
            Mutant("α_t above and below", {line: (a * before + (1 - a) * one) / a}, erratum="E002-06"),
            Mutant("√α_t Cov(x_{t-1})", {line: np.sqrt(a) * before + (1 - a) * one}),
            Mutant("α_t² Cov(x_{t-1})", {line: a**2 * before + (1 - a) * one}),
            Mutant("ᾱ_{t-1}", one + s.alpha_bar[t - 1] * (start - one)),
            Mutant("α_t for ᾱ_t", one + a * (start - one), erratum="E004-13"),
            Mutant("any Cov(x_0) becomes I", np.stack([one, one]), erratum="E002-14"),
        ],
    )


def _noise_loading(s: _Schedule) -> Array:
    """(T, T) matrix whose row t has what x_t holds of ε_1, …, ε_T, one coordinate as the others."""
    loading = np.zeros((s.steps + 1, s.steps))
    for t in range(1, s.steps + 1):
        loading[t] = np.sqrt(s.alpha[t]) * loading[t - 1] + np.sqrt(s.beta[t]) * np.eye(s.steps)[t - 1]
    return loading[1:]


@verifies(
    "ddpm-forward-joint",
    r"q(x_{1:T}\mid x_0)=\prod_{t=1}^Tq(x_t\mid x_{t-1})",
    kind="definition",
    route="closed form",
    **GAUSSIANS,
)
def ddpm_forward_joint(rng: np.random.Generator) -> Lines:
    s, x_0, x = _Schedule.random(rng, 3), rng.normal(size=2), rng.normal(size=(4, 3, 2))
    loading = _noise_loading(s)
    fade = np.array([np.prod(np.sqrt(s.alpha[1 : t + 1])) for t in (1, 2, 3)])
    whole = multivariate_normal(np.kron(fade, x_0), np.kron(loading @ loading.T, np.eye(2)))
    path = np.concatenate([np.tile(x_0, (4, 1, 1)), x], axis=1)

    def product(given: Callable[[int], Array] = lambda t: path[:, t - 1], first: int = 1) -> Array:
        factors = [
            _log_normal(path[:, t], np.sqrt(s.alpha[t]) * given(t), s.beta[t]) for t in range(first, s.steps + 1)
        ]
        return np.sum(factors, axis=0)

    from_data = [_log_normal(path[:, t], np.sqrt(s.alpha_bar[t]) * x_0, 1 - s.alpha_bar[t]) for t in (1, 2, 3)]
    backwards = [_log_normal(path[:, t - 1], np.sqrt(s.alpha[t]) * path[:, t], s.beta[t]) for t in (1, 2, 3)]
    return Lines(
        {
            "log q(x_{1:3}|x_0) of four paths, a Gaussian of six numbers": whole.logpdf(x.reshape(4, 6)),
            "= Σ_t log q(x_t|x_{t-1})": product(),
        },
        [
            Mutant("q(x_t|x_0): independent steps", np.sum(from_data, axis=0)),
            Mutant("q(x_t|x_t)", product(lambda t: path[:, t]), erratum="E002-04"),
            Mutant("q(x_{t-1}|x_t)", np.sum(backwards, axis=0)),
            Mutant("the product from t = 2", product(first=2)),
            Mutant("every step from x_0", product(lambda t: path[:, 0])),
        ],
    )


def _condition(covariance: Array, of: slice, given: slice) -> tuple[Array, Array]:
    """Of a Gaussian: the regression of some numbers on others, and the covariance that is left."""
    gain = np.linalg.solve(covariance[given, given], covariance[given, of]).T
    return gain, covariance[of, of] - gain @ covariance[given, of]


@verifies(
    "ddpm-markov",
    r"q(x_t\mid x_{t-1},x_0)=q(x_t\mid x_{t-1})",
    kind="identity",
    route="closed form",
    **GAUSSIANS,
)
def ddpm_markov(rng: np.random.Generator) -> Lines:
    # Gaussian data, so that all is Gaussian: the law of x_3 as a linear function of what is given.
    s, half = _Schedule.random(rng, 3), rng.normal(size=(2, 2))
    of_data = half @ half.T + 0.3 * np.eye(2)
    loading = np.vstack([np.zeros(3), _noise_loading(s)])
    fade = np.sqrt(s.alpha_bar)
    covariance = np.kron(np.outer(fade, fade), of_data) + np.kron(loading @ loading.T, np.eye(2))

    def of(*times: int) -> Array:
        """The covariance of x at some times, in this order."""
        index = np.concatenate([[2 * t, 2 * t + 1] for t in times])
        return covariance[np.ix_(index, index)]

    def value(of_last: Array, of_first: Array, left: Array) -> Array:
        """Slope on x_{t-1}, slope on x_0, covariance."""
        return np.concatenate([of_last.ravel(), of_first.ravel(), left.ravel()])

    def regression(*times: int) -> Array:
        gain, left = _condition(of(*times), slice(2), slice(2, None))
        return value(gain[:, :2], gain[:, 2:] if len(times) == 3 else np.zeros((2, 2)), left)

    zero, one = np.zeros((2, 2)), np.eye(2)
    gain, left = _condition(of(3, 0), slice(2), slice(2, None))
    return Lines(
        {
            "slopes of x_3 on x_2 and x_0, and covariance, given both": regression(3, 2, 0),
            "= slope on x_2, 0, and covariance, given x_2 alone": regression(3, 2),
            "= √α_t, 0, β_t": value(np.sqrt(s.alpha[3]) * one, zero, s.beta[3] * one),
        },
        [
            Mutant("q(x_t|x_0)", value(zero, gain, left)),
            Mutant("backwards: q(x_{t-1}|x_t,x_0) = q(x_{t-1}|x_t)", regression(2, 3, 0), erratum="E003-31"),
            Mutant(
                "√ᾱ_t on x_0 as well", value(np.sqrt(s.alpha[3]) * one, np.sqrt(s.alpha_bar[3]) * one, s.beta[3] * one)
            ),
            Mutant("slope 1", value(one, zero, s.beta[3] * one), erratum="E002-06"),
            Mutant("the variance 1-ᾱ_t", value(np.sqrt(s.alpha[3]) * one, zero, (1 - s.alpha_bar[3]) * one)),
        ],
    )


@verifies(
    "ddpm-marginal",
    r"""\begin{aligned}
x_t&=\sqrt{\alpha_t}\,x_{t-1}+\sqrt{\beta_t}\,\epsilon_t\\
&=\sqrt{\alpha_t\alpha_{t-1}}\,x_{t-2}+\sqrt{\alpha_t\beta_{t-1}}\,\epsilon_{t-1}+\sqrt{\beta_t}\,\epsilon_t\\
&\overset d=\sqrt{\alpha_t\alpha_{t-1}}\,x_{t-2}+\sqrt{1-\alpha_t\alpha_{t-1}}\,\epsilon\\
&\overset d=\sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\,\epsilon\\
q(x_t\mid x_0)&=N\big(x_t;\sqrt{\bar\alpha_t}\,x_0,(1-\bar\alpha_t)I\big)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def ddpm_marginal(rng: np.random.Generator) -> Lines:
    s, x_0, points = _Schedule.random(rng, 4), rng.normal(size=2), 0.7 * rng.normal(size=(3, 2))
    a, b, kept = s.alpha, s.beta, s.alpha_bar
    z, weight = _line(9.0, 161)

    def after(t: int) -> Array:
        """Density of each coordinate of x_t on the nodes, step by step, (2, nodes)."""
        density = norm.pdf(z, np.sqrt(a[1]) * x_0[:, None], np.sqrt(b[1]))
        for u in range(2, t + 1):
            density = (density * weight) @ norm.pdf(z, np.sqrt(a[u]) * z[:, None], np.sqrt(b[u]))
        return density

    before, two_before = after(3), after(2)

    def from_two_before(variance: float, slope: float = np.sqrt(a[4] * a[3])) -> Array:
        kernel = norm.pdf(points[..., None], slope * z, np.sqrt(variance))
        return (kernel * two_before @ weight).prod(1)

    def two_noises(size: float = np.sqrt(a[4] * b[3])) -> Array:
        """The integral over x_{t-2} and ε_{t-1}, on nodes of their own for each."""
        mean = np.sqrt(a[4] * a[3]) * z[:, None] + size * z
        kernel = norm.pdf(points[..., None, None], mean, np.sqrt(b[4])) @ (weight * norm.pdf(z))
        return (kernel * two_before @ weight).prod(1)

    fade, variance = 1.0, 0.0
    for u in range(1, 5):
        fade, variance = np.sqrt(a[u]) * fade, a[u] * variance + b[u]

    def by_noise(fade: float = np.sqrt(kept[4]), size: float = np.sqrt(1 - kept[4])) -> Array:
        """The density of x_t by that of ε."""
        return np.exp(_log_normal((points - fade * x_0) / size, np.zeros(2), 1.0)) / size**2

    def normal(fade: float = np.sqrt(kept[4]), variance: float = 1 - kept[4]) -> Array:
        return multivariate_normal(fade * x_0, variance * np.eye(2)).pdf(points)

    second, third, fourth = "= the same, of x_2, ε_3 and ε_4", "= of x_2 and one noise", "= of x_0 and one noise"
    roots = (np.sqrt(a[4] * b[3]) + np.sqrt(b[4])) ** 2
    return Lines(
        {
            "q(x_4|x_0) at three points, by the moments step by step": normal(fade, variance),
            "= by integrals over x_1, x_2, x_3": (
                (norm.pdf(points[..., None], np.sqrt(a[4]) * z, np.sqrt(b[4])) * before) @ weight
            ).prod(1),
            second: two_noises(),
            third: from_two_before(1 - a[4] * a[3]),
            fourth: by_noise(),
            "= N(√ᾱ_4 x_0, (1-ᾱ_4)I)": normal(),
        },
        [
            Mutant("√β_{t-1} ε_{t-1}, not scaled by √α_t", {second: two_noises(np.sqrt(b[3]))}),
            Mutant("the noises' scales added, not their variances", {third: from_two_before(roots)}),
            Mutant("α_t α_{t-1} for 1 - α_t α_{t-1}", {third: from_two_before(a[4] * a[3])}),
            Mutant("α_t α_{t-1} x_{t-2}", {third: from_two_before(1 - a[4] * a[3], a[4] * a[3])}),
            Mutant("α_t for ᾱ_t", {fourth: by_noise(np.sqrt(a[4]), np.sqrt(1 - a[4]))}, erratum="E004-13"),
            Mutant("ᾱ_t x_0", normal(kept[4])),
            Mutant("√(1-ᾱ_t) for the variance", normal(variance=np.sqrt(1 - kept[4])), erratum="E001-06"),
            Mutant("β_t for the variance: the last noise alone", normal(variance=b[4]), erratum="E004-11"),
            Mutant("ᾱ_{t-1}", normal(np.sqrt(kept[3]), 1 - kept[3])),
            Mutant("N(0, I)", normal(0.0, 1.0), erratum="E002-14"),
        ],
    )


@verifies(
    "ddpm-snr",
    r"""\begin{aligned}
\mathrm{SNR}(t)&=\frac{\mathbb E\Vert\mathbb E[x_t\mid x_0]\Vert^2}
{\mathbb E\Vert x_t-\mathbb E[x_t\mid x_0]\Vert^2}
=\frac{\bar\alpha_t}{1-\bar\alpha_t},\qquad\mathbb E\Vert x_0\Vert^2=d_x\\
&\le\mathrm{SNR}(t-1)
\end{aligned}""",
    kind="inequality",
    route="closed form",
    **SMALL_SUMS,
)
def ddpm_snr(rng: np.random.Generator) -> Lines:
    # Data: four points with mean square one per coordinate, t = 2, …, 5.
    s, data = _Schedule.random(rng, 5), rng.normal(size=(4, 2))
    data *= np.sqrt(2 / (data**2).sum(1).mean())
    signal, noise, ratios = data, np.zeros((5, 5)), []
    for t in range(1, 6):
        signal, noise = np.sqrt(s.alpha[t]) * signal, np.sqrt(s.alpha[t]) * noise
        noise[t - 1] += np.sqrt(s.beta[t]) * np.eye(5)[t - 1]
        # Both coordinates have independent noises of the same size.
        ratios.append((signal**2).sum(1).mean() / (2 * np.square(noise).sum()))
    kept = s.alpha_bar[1:]
    snr = kept / (1 - kept)
    line, last = "= ᾱ_t/(1-ᾱ_t)", "≤ SNR(t-1)"
    return Lines(
        {"power of √ᾱ_t x_0 over that of the noise, t = 2, …, 5": ratios[1:], line: snr[1:], last: snr[:-1]},
        [
            Mutant("√ᾱ_t/√(1-ᾱ_t), amplitudes", {line: np.sqrt(snr[1:])}),
            Mutant("α_t/(1-α_t)", {line: (s.alpha / (1 - s.alpha + (s.beta == 0)))[2:]}, erratum="E004-13"),
            Mutant("(1-ᾱ_t)/ᾱ_t", {line: 1 / snr[1:]}),
            Mutant("ᾱ_t alone", {line: kept[1:]}),
            Mutant("ᾱ_t/(1-ᾱ_{t-1})", {line: kept[1:] / (1 - kept[:-1])}),
            Mutant("rising: at most SNR(t+1)", np.append(snr[2:], snr[-1] * s.alpha[-1])),
        ],
    )


# Schedules


@verifies(
    "linear-schedule",
    r"""\begin{aligned}
\beta_t&=\beta_1+\frac{t-1}{T-1}(\beta_T-\beta_1)\\
\log\bar\alpha_T&=\sum_{t=1}^T\log(1-\beta_t)\\
&\le-\sum_{t=1}^T\beta_t=-\frac{T(\beta_1+\beta_T)}2
\end{aligned}""",
    kind="inequality",
    route="closed form",
    instances=lambda: [(1000, 1e-4, 0.02), (100, 1e-3, 0.2), (50, 0.01, 0.3)],
    tolerance=1e-9,
    reason="sums of up to 1000 float64 numbers, in total about ten",
)
def linear_schedule(paper: tuple[int, float, float]) -> Lines:
    steps, low, high = paper
    t = np.arange(1, steps + 1)

    def beta(fraction: Array = (t - 1) / (steps - 1)) -> Array:
        return low + fraction * (high - low)

    kept = 1.0
    for b in np.linspace(low, high, steps):
        kept *= 1 - b
    first = "= Σ_t log(1-β_t)"
    return Lines(
        {
            "log ᾱ_T, by products": np.log(kept),
            first: np.log1p(-beta()).sum(),
            "≤ -Σ_t β_t": -beta().sum(),
            "= -T(β_1+β_T)/2": -steps * (low + high) / 2,
        },
        [
            Mutant("(t-1)/T", {first: np.log1p(-beta((t - 1) / steps)).sum()}),
            Mutant("t/T", {first: np.log1p(-beta(t / steps)).sum()}),
            Mutant("equal steps of √β_t", {first: np.log1p(-(np.linspace(low**0.5, high**0.5, steps) ** 2)).sum()}),
            Mutant("equal ratios", {first: np.log1p(-np.geomspace(low, high, steps)).sum()}),
            Mutant("a sum for the product", {first: np.log(beta().sum())}),
            Mutant("10,000 steps for 1000", -10 * steps * (low + high) / 2, erratum="E001-13"),
            Mutant("a hundred steps for 1000", -steps / 10 * (low + high) / 2, erratum="E003-25"),
            Mutant("T(β_T-β_1)/2", -steps * (high - low) / 2),
        ],
    )


@verifies(
    "cosine-schedule",
    r"""\begin{aligned}
\bar\alpha_t&=\frac{f(t)}{f(0)},\qquad f(t)=\cos^2\Big(\frac{t/T+s}{1+s}\cdot\frac\pi2\Big)\\
\beta_t&=\min\Big(1-\frac{\bar\alpha_t}{\bar\alpha_{t-1}},\,0.999\Big)
\end{aligned}""",
    kind="definition",
    route="closed form",
    instances=lambda: [(1000, 0.008), (100, 0.008), (20, 0.02)],
    tolerance=1e-10,
    reason="differences of cosines close to each other, of order 1e-5 at the first of 1000 steps",
)
def cosine_schedule(paper: tuple[int, float]) -> Lines:
    steps, s = paper
    t = np.arange(steps + 1)
    angle = (t / steps + s) / (1 + s) * np.pi / 2

    def value(beta: Array) -> Array:
        """β_1, …, β_T, and with them ᾱ at four t."""
        return np.append(beta, np.cumprod(1 - beta)[[0, steps // 4, steps // 2, steps - 2]])

    def formula(angle: Array = angle, power: int = 2, start: float | None = None, cap: float = 0.999) -> Array:
        f = np.cos(angle) ** power
        kept = f / (f[0] if start is None else start)
        before = np.append(1.0, kept[1:-1])
        return np.append(np.minimum(1 - kept[1:] / before, cap), kept[[1, steps // 4 + 1, steps // 2 + 1, steps - 1]])

    # cos² a - cos² b = sin(b-a) sin(b+a), and -d/dt log cos² = 2 tan.
    by_sines = np.sin(np.diff(angle)) * np.sin(angle[1:] + angle[:-1]) / np.cos(angle[:-1]) ** 2
    node, weight = np.polynomial.legendre.leggauss(12)
    half = np.diff(angle)[0] / 2
    slope = 2 * np.tan((angle[:-2, None] + angle[1:-1, None]) / 2 + half * node) @ (half * weight)
    by_slope = np.append(-np.expm1(-slope), 0.999)
    last = "= min(1 - ᾱ_t/ᾱ_{t-1}, 0.999), and f(t)/f(0)"
    return Lines(
        {
            "β_t by integrals of -d/dt log f(t), and the products of 1-β_t": value(by_slope),
            "= by differences of squared cosines, and these products": value(np.minimum(by_sines, 0.999)),
            last: formula(),
        },
        [
            Mutant("cos for cos²", formula(power=1)),
            Mutant("f(t) for f(t)/f(0)", formula(start=1.0)),
            Mutant("s = 0", formula(t / steps * np.pi / 2)),
            Mutant("t/T + s, not over 1+s", formula((t / steps + s) * np.pi / 2)),
            Mutant("not cut at 0.999", formula(cap=1.0)),
            Mutant("π/4 for π/2", formula(angle / 2)),
        ],
    )


# One step back


@dataclass(frozen=True)
class _Step:
    """From t-1 to t in the middle of a chain, with the formulas of the posterior."""

    before: float  # ᾱ_{t-1}
    alpha: float  # α_t

    @classmethod
    def random(cls, rng: np.random.Generator) -> "_Step":
        return cls(rng.uniform(0.4, 0.7), rng.uniform(0.6, 0.8))

    @property
    def beta(self) -> float:
        return 1 - self.alpha

    @property
    def kept(self) -> float:
        """ᾱ_t."""
        return self.before * self.alpha

    @property
    def variance(self) -> float:
        """β̃_t."""
        return (1 - self.before) / (1 - self.kept) * self.beta

    @property
    def slopes(self) -> tuple[float, float]:
        """Of μ̃_t, on x_0 and on x_t."""
        of_data = np.sqrt(self.before) * self.beta / (1 - self.kept)
        return of_data, np.sqrt(self.alpha) * (1 - self.before) / (1 - self.kept)

    @property
    def snr(self) -> tuple[float, float]:
        """Of t-1 and of t."""
        return self.before / (1 - self.before), self.kept / (1 - self.kept)

    def mean(self, x_t: Array, x_0: Array) -> Array:
        """μ̃_t."""
        on_data, on_noisy = self.slopes
        return on_data * x_0 + on_noisy * x_t

    def noisy(self, x_0: Array, noise: Array) -> Array:
        """x_t, with ε for noise."""
        return np.sqrt(self.kept) * x_0 + np.sqrt(1 - self.kept) * noise

    def conditional(self, x_t: Array, x_0: Array) -> tuple[Array, Array]:
        """Mean and covariance of q(x_{t-1}|x_t,x_0), from those of both given x_0."""
        loading = np.array(
            [[np.sqrt(1 - self.before), 0], [np.sqrt(self.alpha * (1 - self.before)), np.sqrt(self.beta)]]
        )
        gain, left = _condition(np.kron(loading @ loading.T, np.eye(2)), slice(2), slice(2, None))
        mean = np.sqrt(self.before) * x_0
        return mean + gain @ (x_t - np.sqrt(self.alpha) * mean), left

    def bayes(self, x: Array, x_t: Array, x_0: Array) -> Array:
        """q(x_t|x_{t-1}) q(x_{t-1}|x_0) at x = x_{t-1}."""
        likelihood = _log_normal(x_t, np.sqrt(self.alpha) * x, self.beta)
        return np.exp(likelihood + _log_normal(x, np.sqrt(self.before) * x_0, 1 - self.before))


@verifies(
    "complete-the-square",
    r"""\begin{aligned}
\Big(\frac{x-\mu}\sigma\Big)^2&=\frac{x^2}{\sigma^2}-\frac{2\mu x}{\sigma^2}+\frac{\mu^2}{\sigma^2}\\
ax^2-2bx+c&=a\Big(x-\frac ba\Big)^2+c-\frac{b^2}a
\end{aligned}""",
    kind="identity",
    route="closed form",
    **SMALL_SUMS,
)
def complete_the_square(rng: np.random.Generator) -> Lines:
    x, mean, scale = rng.normal(size=3), rng.normal(), rng.uniform(0.8, 1.5)
    a, b, c = rng.uniform(0.5, 2), rng.choice([-1, 1]) * rng.uniform(0.5, 2), rng.normal()

    def first(middle: float = -2.0, last: float = 1.0) -> Array:
        return (x**2 + middle * mean * x + last * mean**2) / scale**2

    def second(at: float = b / a, lift: float = c - b**2 / a) -> Array:
        return a * (x - at) ** 2 + lift

    # A parabola is its value where its slope is zero, and half its second derivative times the square from there.
    parabola = np.polynomial.Polynomial([c, -2 * b, a])
    lowest = parabola.deriv().roots()[0]
    from_lowest = parabola(lowest) + parabola.deriv(2)(0) / 2 * (x - lowest) ** 2
    double_root = np.polynomial.Polynomial.fromroots([mean, mean])(x) / scale**2
    return Lines(
        {
            "((x-μ)/σ)² and ax² - 2bx + c at three x": np.append(((x - mean) / scale) ** 2, a * x**2 - 2 * b * x + c),
            "= polynomials by their double root and their lowest point": np.append(double_root, from_lowest),
            "= x²/σ² - 2μx/σ² + μ²/σ² and a(x-b/a)² + c - b²/a": np.append(first(), second()),
        },
        [
            Mutant("+2μx/σ²", np.append(first(middle=2.0), second()), erratum="E003-23"),
            Mutant("μx/σ²", np.append(first(middle=-1.0), second())),
            Mutant("-μ²/σ²", np.append(first(last=-1.0), second())),
            Mutant("μ²/σ² not shown", np.append(first(last=0.0), second()), erratum="E003-23"),
            Mutant("x + b/a", np.append(first(), second(at=-b / a))),
            Mutant("x - b/2a", np.append(first(), second(at=b / (2 * a)))),
            Mutant("c + b²/a", np.append(first(), second(lift=c + b**2 / a))),
            Mutant("c - b²/4a", np.append(first(), second(lift=c - b**2 / (4 * a)))),
        ],
    )


@verifies(
    "ddpm-posterior",
    r"""\begin{aligned}
&q(x_{t-1}\mid x_t,x_0)\\
&\quad=\frac{q(x_t\mid x_{t-1})\,q(x_{t-1}\mid x_0)}{q(x_t\mid x_0)}\\
&\quad\propto\exp\Big\{-\frac12\Big[\frac{\Vert x_t-\sqrt{\alpha_t}\,x_{t-1}\Vert^2}{\beta_t}
+\frac{\Vert x_{t-1}-\sqrt{\bar\alpha_{t-1}}\,x_0\Vert^2}{1-\bar\alpha_{t-1}}\Big]\Big\}\\
&\quad\propto\exp\Big\{-\frac a2\Vert x_{t-1}\Vert^2+b^\top x_{t-1}\Big\}\\
&\quad\quad a=\frac{\alpha_t}{\beta_t}+\frac1{1-\bar\alpha_{t-1}},\qquad
b=\frac{\sqrt{\alpha_t}}{\beta_t}\,x_t+\frac{\sqrt{\bar\alpha_{t-1}}}{1-\bar\alpha_{t-1}}\,x_0\\
&\quad\propto\exp\Big\{-\frac a2\Big\Vert x_{t-1}-\frac ba\Big\Vert^2\Big\}\\
&\quad=N\big(x_{t-1};\tilde\mu_t(x_t,x_0),\tilde\beta_tI\big),\quad\tilde\mu_t=\frac ba,\quad\tilde\beta_t=\frac1a
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def ddpm_posterior(rng: np.random.Generator) -> Lines:
    s, x_0, x_t = _Step.random(rng), rng.normal(size=2), rng.normal(size=2)
    mean = s.mean(x_t, x_0)
    points = mean + 0.4 * rng.normal(size=(4, 2))
    around, weight = plane(4.5, 61)
    nodes = mean + around

    def normalised(exponent: Callable[[Array], Array]) -> Array:
        """The density at the points, divided by its integral."""
        return np.exp(exponent(points)) / (weight @ np.exp(exponent(nodes)))

    def square(x: Array) -> Array:
        return (x**2).sum(-1)

    def two_squares(power: float = 0.5, kept: float = s.before, noise: float = s.beta) -> Array:
        return normalised(
            lambda x: (
                -square(x_t - s.alpha**power * x) / (2 * noise) - square(x - np.sqrt(kept) * x_0) / (2 * (1 - s.before))
            )
        )

    a = s.alpha / s.beta + 1 / (1 - s.before)
    from_x_t, from_x_0 = np.sqrt(s.alpha) / s.beta * x_t, np.sqrt(s.before) / (1 - s.before) * x_0
    b = from_x_t + from_x_0

    def expanded(a: float = a, b: Array = b) -> Array:
        return normalised(lambda x: -a / 2 * square(x) + x @ b)

    def completed(mean: Array = b / a, a: float = a) -> Array:
        return normalised(lambda x: -a / 2 * square(x - mean))

    def normal(mean: Array, variance: float = s.variance) -> Array:
        return multivariate_normal(mean, variance * np.eye(2)).pdf(points)

    evidence = np.exp(_log_normal(x_t, np.sqrt(s.kept) * x_0, 1 - s.kept))
    joint = s.bayes(points, x_t, x_0)
    bayes, squares = "= by Bayes' rule", "= exp of two squares over its integral"
    powers, whole = "= exp of powers of x_{t-1} over its integral", "= exp of one square over its integral"
    return Lines(
        {
            "q(x_{t-1}|x_t,x_0) at four points, by conditioning": multivariate_normal(*s.conditional(x_t, x_0)).pdf(
                points
            ),
            bayes: joint / evidence,
            squares: two_squares(),
            powers: expanded(),
            whole: completed(),
            "= N(μ̃_t, β̃_t I)": normal(mean),
        },
        [
            Mutant("divided by q(x_t)=N(0,I)", {bayes: joint / np.exp(_log_normal(x_t, 0 * x_t, 1.0))}),
            Mutant(
                "q(x_t|x_{t-1}) alone", {squares: normalised(lambda x: _log_normal(x_t, np.sqrt(s.alpha) * x, s.beta))}
            ),
            Mutant("x_t - α_t x_{t-1}", {squares: two_squares(power=1.0)}),
            Mutant("ᾱ_t x_0 for ᾱ_{t-1} x_0", {squares: two_squares(kept=s.kept)}),
            Mutant("β_t² below", {squares: two_squares(noise=s.beta**2)}),
            Mutant("-bᵀx_{t-1}, from squares with a plus", {powers: expanded(b=-b)}, erratum="E003-23"),
            Mutant("1/β_t for α_t/β_t", {powers: expanded(a=1 / s.beta + 1 / (1 - s.before))}),
            Mutant("b without x_0", {powers: expanded(b=from_x_t)}),
            Mutant("centred at b", {whole: completed(mean=b)}),
            Mutant("a² for a", {whole: completed(a=a**2)}),
            Mutant("the variance β_t", normal(mean, s.beta)),
            Mutant("the variance a", normal(mean, a)),
            Mutant("x_0 and x_t exchanged", normal(s.mean(x_0, x_t))),
        ],
    )


@verifies(
    "ddpm-posterior-mean",
    r"""\begin{aligned}
\tilde\mu_t(x_t,x_0)&=\tilde\beta_t\Big(\frac{\sqrt{\alpha_t}}{\beta_t}\,x_t
+\frac{\sqrt{\bar\alpha_{t-1}}}{1-\bar\alpha_{t-1}}\,x_0\Big)\\
&=\frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}\,x_0
+\frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\,x_t
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def ddpm_posterior_mean(rng: np.random.Generator) -> Lines:
    s, x_0, x_t = _Step.random(rng), rng.normal(size=2), rng.normal(size=2)
    nodes, weight = plane(6.0, 101)
    share = weight * s.bayes(nodes, x_t, x_0)
    before, alpha, beta, kept = s.before, s.alpha, s.beta, s.kept

    def weighed(of_x_t: float = np.sqrt(alpha) / beta, of_x_0: float = np.sqrt(before) / (1 - before)) -> Array:
        return s.variance * (of_x_t * x_t + of_x_0 * x_0)

    def formula(
        root_before: float = np.sqrt(before),
        root_alpha: float = np.sqrt(alpha),
        left: float = 1 - before,
        below: float = 1 - kept,
    ) -> Array:
        return (root_before * beta * x_0 + root_alpha * left * x_t) / below

    on_x_0, on_x_t = s.slopes
    line = "= β̃_t(√α_t/β_t x_t + √ᾱ_{t-1}/(1-ᾱ_{t-1}) x_0)"
    return Lines(
        {
            "mean of q(x_{t-1}|x_t,x_0), by quadrature of Bayes' rule": share @ nodes / share.sum(),
            "= by conditioning": s.conditional(x_t, x_0)[0],
            line: weighed(),
            "= the same over 1-ᾱ_t": formula(),
        },
        [
            Mutant("x_0 and x_t exchanged", on_x_0 * x_t + on_x_t * x_0),
            Mutant("√ᾱ_t for √ᾱ_{t-1}", formula(root_before=np.sqrt(kept))),
            Mutant("α_t for √α_t", formula(root_alpha=alpha)),
            Mutant("√ᾱ_t for √α_t", formula(root_alpha=np.sqrt(kept)), erratum="E004-13"),
            Mutant("1-ᾱ_t for 1-ᾱ_{t-1}", formula(left=1 - kept)),
            Mutant("1-ᾱ_{t-1} below", formula(below=1 - before)),
            Mutant("x_t/β_t", {line: weighed(of_x_t=1 / beta)}),
            Mutant("x_t - x_0", {line: weighed(of_x_0=-np.sqrt(before) / (1 - before))}),
        ],
    )


@verifies(
    "ddpm-posterior-variance",
    r"""\begin{aligned}
\tilde\beta_t&=\Big(\frac{\alpha_t}{\beta_t}+\frac1{1-\bar\alpha_{t-1}}\Big)^{-1}\\
&=\frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def ddpm_posterior_variance(rng: np.random.Generator) -> Lines:
    s, x_0, x_t = _Step.random(rng), rng.normal(size=2), rng.normal(size=2)
    nodes, weight = plane(6.0, 101)
    share = weight * s.bayes(nodes, x_t, x_0)
    share /= share.sum()
    away = nodes - share @ nodes
    before, beta, kept, one = s.before, s.beta, s.kept, np.eye(2)
    line = "= 1/(α_t/β_t + 1/(1-ᾱ_{t-1}))"
    return Lines(
        {
            "covariance of q(x_{t-1}|x_t,x_0), by quadrature of Bayes' rule": (away.T * share) @ away,
            "= by conditioning": s.conditional(x_t, x_0)[1],
            line: one / (s.alpha / beta + 1 / (1 - before)),
            "= β_t(1-ᾱ_{t-1})/(1-ᾱ_t)": one * beta * (1 - before) / (1 - kept),
        },
        [
            Mutant("β_t", one * beta),
            Mutant("(1-ᾱ_t)/(1-ᾱ_{t-1})", one * beta * (1 - kept) / (1 - before)),
            Mutant("its root", one * np.sqrt(beta * (1 - before) / (1 - kept)), erratum="E001-06"),
            Mutant("ᾱ_{t-1}/ᾱ_t", one * beta * before / kept),
            Mutant("1-α_{t-1} for 1-ᾱ_{t-1}", one * beta * beta / (1 - kept), erratum="E004-13"),
            Mutant("1/β_t for α_t/β_t", {line: one / (1 / beta + 1 / (1 - before))}),
            Mutant("variances added, not precisions", {line: one * (beta / s.alpha + 1 - before)}),
        ],
    )


@verifies(
    "ddpm-reverse-unknown",
    r"""\begin{aligned}
q(x_{t-1}\mid x_t)&=\frac{q(x_t\mid x_{t-1})\,q(x_{t-1})}{q(x_t)}\\
&=\int q(x_0\mid x_t)\,q(x_{t-1}\mid x_t,x_0)\,dx_0
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def ddpm_reverse_unknown(rng: np.random.Generator) -> Lines:
    # x_t between the two parts of the data: where x_{t-1} came from is open.
    data, s = _Mixture.random(rng), _Step(rng.uniform(0.8, 0.9), rng.uniform(0.3, 0.4))
    x_t = np.sqrt(s.kept) * data.means.mean(0)
    points = np.sqrt(s.before) * (data.means.mean(0) + rng.uniform(-1, 1, (4, 1)) * (data.means[0] - data.means[1]))
    nodes, weight = plane(8.0, 121)

    def of_x_0(x_t: Array, kept: float) -> Array:
        """q(x_0|x_t) times the weights of the nodes."""
        share = weight * data.density(nodes) * np.exp(_log_normal(x_t, np.sqrt(kept) * nodes, 1 - kept))
        return share / share.sum()

    def mixed(share: Array, variance: float = s.variance) -> Array:
        return np.exp(_log_normal(points[:, None], s.mean(x_t, nodes), variance)) @ share

    def one_x_0(x_0: Array) -> Array:
        return np.exp(_log_normal(points, s.mean(x_t, x_0), s.variance))

    before = data.noised(s.before)
    likelihood, evidence = np.exp(_log_normal(x_t, np.sqrt(s.alpha) * points, s.beta)), data.noised(s.kept).density(x_t)
    joint = likelihood * before.density(points)
    share = of_x_0(x_t, s.kept)
    here = weight * np.exp(_log_normal(x_t, np.sqrt(s.alpha) * nodes, s.beta)) * before.density(nodes)
    mean = here @ nodes / here.sum()
    away = nodes - mean
    gaussian = multivariate_normal(mean, (away.T * here) @ away / here.sum())
    bayes = "= q(x_t|x_{t-1}) q(x_{t-1})/q(x_t)"
    return Lines(
        {
            "q(x_{t-1}|x_t) at four points, over its integral": joint / here.sum(),
            bayes: joint / evidence,
            "= ∫ q(x_0|x_t) q(x_{t-1}|x_t,x_0) dx_0": mixed(share),
        },
        [
            Mutant("q(x_{t-1}|x_t,x_0) at an x_0 of the data", one_x_0(data.means[0]), erratum="E003-31"),
            Mutant("q(x_{t-1}|x_t,x_0) at E[x_0|x_t]", one_x_0(share @ nodes), erratum="E003-31"),
            Mutant("the Gaussian with its mean and covariance", gaussian.pdf(points), erratum="E004-10"),
            Mutant("q(x_0) for q(x_0|x_t)", mixed(weight * data.density(nodes))),
            Mutant("β_t for β̃_t", mixed(share, s.beta)),
            Mutant("q(x_t|x_{t-1}) read backwards", {bayes: likelihood}),
            Mutant("q(x_{t-1}) = N(0, I)", {bayes: likelihood * np.exp(_log_normal(points, 0 * x_t, 1.0)) / evidence}),
        ],
    )


# The reverse process and its bound


def _kl(mean: Array, variance: float, other_mean: Array, other_variance: float) -> Array:
    """KL(N(mean, variance I)‖N(other_mean, other_variance I)) by torch, the coordinates on the last axis."""

    def normal(mean: Array, variance: float) -> Independent:
        return Independent(Normal(torch.as_tensor(mean), torch.tensor(np.sqrt(variance)), validate_args=False), 1)

    return kl_divergence(normal(mean, variance), normal(other_mean, other_variance)).numpy()


def _kl_full(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> float:
    """KL(N(mean, covariance)‖N(other_mean, other_covariance))."""
    ratio, away = np.linalg.solve(other_covariance, covariance), mean - other_mean
    square = away @ np.linalg.solve(other_covariance, away)
    return 0.5 * float(np.trace(ratio) - np.linalg.slogdet(ratio)[1] + square - len(mean))


@dataclass(frozen=True)
class _Chain(_Schedule):
    """With a reverse process in the plane: p_θ(x_{t-1}|x_t) = N(A_t x_t + b_t + C_t x_t², σ_t²I), each at its index t.

    All logarithms are polynomials of degree four at most, so that three nodes for each noise integrate them exactly.
    """

    linear: Array  # (T+1, 2, 2)
    shift: Array  # (T+1, 2)
    curve: Array  # (T+1, 2, 2)
    variance: Array  # (T+1,)

    @classmethod
    def random(cls, rng: np.random.Generator, steps: int, curved: bool = True) -> "_Chain":
        return cls(
            _Schedule.random(rng, steps).beta,
            0.7 * np.eye(2) + 0.2 * rng.normal(size=(steps + 1, 2, 2)),
            0.3 * rng.normal(size=(steps + 1, 2)),
            0.2 * curved * rng.normal(size=(steps + 1, 2, 2)),
            rng.uniform(0.3, 0.5, steps + 1),
        )

    @property
    def times(self) -> range:
        """t = 1, …, T."""
        return range(1, self.steps + 1)

    def paths(self, x_0: Array) -> tuple[list[Array], Array]:
        """x_0, …, x_T at nodes, each (nodes, 2), and the weights of q(x_{1:T}|x_0)."""
        noise, weight = gauss_hermite(2 * self.steps, 3)
        return self.walk(np.tile(x_0, (len(weight), 1)), noise), weight

    def walk(self, x_0: Array, noise: Array) -> list[Array]:
        """x_0, …, x_T from (n, 2) and the noises of all steps, (n, 2T)."""
        path = [x_0]
        for t, e in zip(self.times, np.split(noise, self.steps, axis=1), strict=True):
            path.append(np.sqrt(self.alpha[t]) * path[-1] + np.sqrt(self.beta[t]) * e)
        return path

    def mean(self, t: int, x: Array) -> Array:
        """μ_θ(x, t)."""
        return x @ self.linear[t].T + self.shift[t] + x**2 @ self.curve[t].T

    def back(self, t: int, below: Array, above: Array) -> Array:
        """log p_θ(x_{t-1}|x_t)."""
        return _log_normal(below, self.mean(t, above), self.variance[t])

    def forward(self, t: int, above: Array, below: Array) -> Array:
        """log q(x_t|x_{t-1})."""
        return _log_normal(above, np.sqrt(self.alpha[t]) * below, self.beta[t])

    def marginal(self, t: int, x_t: Array, x_0: Array) -> Array:
        """log q(x_t|x_0)."""
        return _log_normal(x_t, np.sqrt(self.alpha_bar[t]) * x_0, 1 - self.alpha_bar[t])

    def step(self, t: int) -> _Step:
        return _Step(self.alpha_bar[t - 1], self.alpha[t])

    def posterior(self, t: int, below: Array, above: Array, x_0: Array) -> Array:
        """log q(x_{t-1}|x_t,x_0)."""
        return _log_normal(below, self.step(t).mean(above, x_0), self.step(t).variance)

    def as_gaussian(self) -> tuple[Array, Array]:
        """Mean and covariance of (x_0, …, x_T) under p_θ, whose means are lines: the noises added up, from x_T down."""
        size = 2 * (self.steps + 1)
        mean, loading, own = np.zeros(size), np.eye(size), np.eye(size)
        for t in reversed(self.times):
            below, above = slice(2 * t - 2, 2 * t), slice(2 * t, 2 * t + 2)
            mean[below] = self.linear[t] @ mean[above] + self.shift[t]
            loading[below] = self.linear[t] @ loading[above] + np.sqrt(self.variance[t]) * own[below]
        return mean, loading @ loading.T

    def path_gaussian(self, x_0: Array) -> tuple[Array, Array]:
        """Mean and covariance of q(x_{1:T}|x_0)."""
        loading = _noise_loading(self)
        return np.kron(np.sqrt(self.alpha_bar[1:]), x_0), np.kron(loading @ loading.T, np.eye(2))


def _standard(x: Array) -> Array:
    """log N(x; 0, I)."""
    return _log_normal(x, 0 * x, 1.0)


@verifies(
    "ddpm-reverse-joint",
    r"""\begin{aligned}
&p_\theta(x_{0:T})=p(x_T)\prod_{t=1}^Tp_\theta(x_{t-1}\mid x_t),\qquad p(x_T)=N(x_T;0,I)\\
&\quad\text{and }p_\theta(x_0)=\int p_\theta(x_{0:T})\,dx_{1:T}
\end{aligned}""",
    kind="definition",
    route="quadrature",
    **QUADRATURE,
)
def ddpm_reverse_joint(rng: np.random.Generator) -> Lines:
    s = _Chain.random(rng, 2, curved=False)
    # Wide enough for few nodes: there are as many pairs as the square of their number.
    s = replace(s, variance=s.variance + 0.3)
    x_0, path = 0.5 * rng.normal(size=2), rng.normal(size=(2, 3, 2))
    nodes, weight = plane(8.0, 37)
    mean, covariance = s.as_gaussian()
    kernel, one = np.exp(s.back(2, nodes[:, None], nodes)), np.ones(len(nodes))
    first, from_0 = np.exp(s.back(1, x_0, nodes)), np.exp(s.back(1, nodes, x_0))
    from_itself = np.exp(s.back(2, nodes, nodes))

    def value(at_paths: Array, first: Array = first, link: Array = kernel, top: Array | None = None) -> Array:
        """The log of the product on three paths, and that of its integral over x_1 and x_2."""
        top = np.exp(_standard(nodes)) if top is None else top
        return np.append(at_paths, np.log((weight * first) @ link @ (weight * top)))

    x_1, x_2 = path
    lower, upper, prior = s.back(1, x_0, x_1), s.back(2, x_1, x_2), _standard(x_2)
    product, forwards = lower + upper + prior, s.back(1, x_1, x_0) + s.back(2, x_2, x_1) + prior
    own = s.back(1, x_0, x_0) + s.back(2, x_1, x_1) + prior
    whole, flat = multivariate_normal(mean, covariance), np.column_stack([np.tile(x_0, (3, 1)), x_1, x_2])
    return Lines(
        {
            "log p(x_0,x_1,x_2), a Gaussian of six numbers, and log p(x_0), of two": np.append(
                whole.logpdf(flat), multivariate_normal(mean[:2], covariance[:2, :2]).logpdf(x_0)
            ),
            "= log p(x_2) + Σ_t log p(x_{t-1}|x_t), and log of its integral": value(product),
        },
        [
            Mutant("the product for p(x_0)", np.append(product, product[0]), erratum="E001-07"),
            Mutant("p(x_T) forgotten", value(lower + upper, top=one)),
            Mutant("p(x_1|x_2) without p(x_0|x_1)", value(upper + prior, first=one)),
            Mutant(
                "N(x_0; 0, I) for N(x_T; 0, I)",
                value(lower + upper + _standard(x_0), np.exp(_standard(x_0)) * first, top=one),
            ),
            Mutant("p(x_t|x_{t-1})", value(forwards, from_0, kernel.T)),
            Mutant(
                "the mean of x_{t-1} for that of x_t",
                value(own, np.exp(s.back(1, x_0, x_0)) * one, from_itself[:, None] * one),
                erratum="E001-08",
            ),
        ],
    )


@verifies(
    "ddpm-reverse-kernel",
    r"p_\theta(x_{t-1}\mid x_t)=N\big(x_{t-1};\mu_\theta(x_t,t),\sigma_t^2I\big)",
    kind="definition",
    route="quadrature",
    **QUADRATURE,
)
def ddpm_reverse_kernel(rng: np.random.Generator) -> Lines:
    weights, x_t, variance = rng.normal(size=(2, 2)), rng.normal(size=2), rng.uniform(0.2, 0.5)
    nodes, weight = plane(8.0, 121)

    def mean(x: Array) -> Array:
        return 1.5 * np.tanh(x @ weights.T)

    def of(density: Array) -> Array:
        """Mass, means, and second moments around zero."""
        share = weight * density
        return np.concatenate([[share.sum()], share @ nodes, ((nodes.T * share) @ nodes).ravel()])

    def density(mean: Array, variance: float = variance, power: float = 1.0) -> Array:
        return of(np.exp(-((nodes - mean) ** 2).sum(-1) / (2 * variance)) / (2 * np.pi * variance) ** power)

    second = np.outer(mean(x_t), mean(x_t)) + variance * np.eye(2)
    noise, share = gauss_hermite(2, 3)
    draws = mean(x_t) + np.sqrt(variance) * noise
    return Lines(
        {
            "1, μ_θ(x_t), and μ_θμ_θᵀ + σ_t²I": np.concatenate([[1.0], mean(x_t), second.ravel()]),
            "= the moments of μ_θ + σ_t ξ": np.concatenate([[1.0], share @ draws, ((draws.T * share) @ draws).ravel()]),
            "= the moments of N(x_{t-1}; μ_θ(x_t), σ_t²I), by quadrature": density(mean(x_t)),
        },
        [
            Mutant("μ_θ(x_{t-1})", density(mean(nodes)), erratum="E001-08"),
            Mutant("σ_t for σ_t²", density(mean(x_t), np.sqrt(variance)), erratum="E001-06"),
            Mutant("1/√(2πσ²) in two dimensions", density(mean(x_t), power=0.5)),
            Mutant("around x_t", density(x_t)),
            Mutant("variance 1", density(mean(x_t), 1.0)),
        ],
    )


@verifies(
    "ddpm-path-elbo",
    r"""\begin{aligned}
\log p_\theta(x_0)&=\mathcal L+\mathrm{KL}\big(q(x_{1:T}\mid x_0)\Vert p_\theta(x_{1:T}\mid x_0)\big)\\
&\ge\mathcal L=\mathbb E_{q(x_{1:T}\mid x_0)}\Big[\log\frac{p_\theta(x_{0:T})}{q(x_{1:T}\mid x_0)}\Big]\\
&=\mathbb E_{q(x_{1:T}\mid x_0)}\Big[\log p(x_T)
+\sum_{t=1}^T\log\frac{p_\theta(x_{t-1}\mid x_t)}{q(x_t\mid x_{t-1})}\Big]
\end{aligned}""",
    kind="inequality",
    route="quadrature",
    tolerance=1e-10,
    reason="polynomials of degree two at exact nodes, and Gaussians of up to eight numbers conditioned in float64",
)
def ddpm_path_elbo(rng: np.random.Generator) -> Lines:
    s, x_0 = _Chain.random(rng, 3, curved=False), rng.normal(size=2)
    path, weight = s.paths(x_0)
    mean, covariance = s.as_gaussian()
    of_q = s.path_gaussian(x_0)
    flat = np.concatenate(path, axis=1)

    def expect(values: Array) -> float:
        return float(weight @ values)

    # p_θ(x_{1:T}|x_0), and the divergence of two Gaussians of six numbers.
    gain, left = _condition(covariance, slice(2, None), slice(2))
    gap = _kl_full(*of_q, mean[2:] + gain @ (x_0 - mean[:2]), left)

    log_ratio = multivariate_normal(mean, covariance).logpdf(flat) - multivariate_normal(*of_q).logpdf(flat[:, 2:])
    back = [s.back(t, path[t - 1], path[t]) for t in s.times]
    forward = [s.forward(t, path[t], path[t - 1]) for t in s.times]
    top = _standard(path[-1])

    def by_steps(back: list[Array] = back, forward: list[Array] = forward, top: Array = top) -> float:
        return expect(top + sum(back) - sum(forward))

    evidence = float(multivariate_normal(mean[:2], covariance[:2, :2]).logpdf(x_0))
    from_data = [s.marginal(t, path[t], path[0]) for t in s.times]
    shifted = [s.back(t, path[t - 1], path[t]) - s.forward(t - 1, path[t - 1], path[t - 2]) for t in (2, 3)]
    # Every x_t drawn from q(x_t|x_0), as if it did not depend on x_{t-1}.
    loose = [path[0]] + [
        np.sqrt(k) * x_0 + np.sqrt(1 - k) * e
        for k, e in zip(s.alpha_bar[1:], np.split(gauss_hermite(6, 3)[0], 3, axis=1), strict=True)
    ]
    independent = expect(
        _standard(loose[-1])
        + sum(s.back(t, loose[t - 1], loose[t]) - s.forward(t, loose[t], loose[t - 1]) for t in s.times)
    )
    first, exact = "log p(x_0), a Gaussian", "= ℒ + KL(q(x_{1:T}|x_0)‖p(x_{1:T}|x_0)), Gaussians of six numbers"
    whole, last = "≥ ℒ, of the two joint Gaussians", "= E_q[log p(x_T) + Σ_t log p(x_{t-1}|x_t)/q(x_t|x_{t-1})]"
    return Lines(
        {first: evidence, exact: expect(log_ratio) + gap, whole: expect(log_ratio), last: by_steps()},
        [
            Mutant("no gap: q is the posterior", {exact: expect(log_ratio)}, erratum="E001-10"),
            Mutant("ℒ - KL", {exact: expect(log_ratio) - gap}),
            Mutant("q(x_{t-1}|x_{t-2}) under p(x_{t-1}|x_t)", expect(top + back[0] + sum(shifted)), erratum="E001-11"),
            Mutant("p(x_T) without its log", by_steps(top=np.exp(top)), erratum="E001-11"),
            Mutant("x_t drawn independently", independent, erratum="E001-11"),
            Mutant("a bound on log p(x_0|x_1)", {first: expect(back[0])}, erratum="E001-09"),
            Mutant("q(x_t|x_0) for q(x_t|x_{t-1})", by_steps(forward=from_data)),
            Mutant("the sum from t = 2", by_steps(back[1:], forward[1:])),
            Mutant("the ratio upside down", by_steps(forward, back)),
            Mutant("p(x_T) forgotten", by_steps(top=0 * top)),
        ],
    )


@verifies(
    "vdm-elbo-three-terms",
    r"""\begin{aligned}
\mathcal L&=\mathbb E_q\Big[\log p(x_T)+\sum_{t=1}^T\log\frac{p_\theta(x_{t-1}\mid x_t)}{q(x_t\mid x_{t-1})}\Big]\\
&=\mathbb E_q\Big[\log p(x_T)+\log\frac{p_\theta(x_0\mid x_1)}{q(x_1\mid x_0)}
+\sum_{t=2}^T\log\frac{p_\theta(x_{t-1}\mid x_t)}{q(x_t\mid x_{t-1},x_0)}\Big]\\
&=\mathbb E_q\Big[\log p(x_T)+\log\frac{p_\theta(x_0\mid x_1)}{q(x_1\mid x_0)}
+\sum_{t=2}^T\log\frac{p_\theta(x_{t-1}\mid x_t)\,q(x_{t-1}\mid x_0)}
{q(x_{t-1}\mid x_t,x_0)\,q(x_t\mid x_0)}\Big]\\
&=\mathbb E_q\Big[\log p_\theta(x_0\mid x_1)+\log\frac{p(x_T)}{q(x_T\mid x_0)}
+\sum_{t=2}^T\log\frac{p_\theta(x_{t-1}\mid x_t)}{q(x_{t-1}\mid x_t,x_0)}\Big]\\
&=\mathbb E_{q(x_1\mid x_0)}\log p_\theta(x_0\mid x_1)-\mathrm{KL}\big(q(x_T\mid x_0)\Vert p(x_T)\big)\\
&\quad-\sum_{t=2}^T\mathbb E_{q(x_t\mid x_0)}
\mathrm{KL}\big(q(x_{t-1}\mid x_t,x_0)\Vert p_\theta(x_{t-1}\mid x_t)\big)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    tolerance=1e-10,
    reason="polynomials of degree four at exact nodes, values up to about ten",
)
def vdm_elbo_three_terms(rng: np.random.Generator) -> Lines:
    s, x_0 = _Chain.random(rng, 3), rng.normal(size=2)
    path, weight = s.paths(x_0)
    noise, share = gauss_hermite(2, 3)
    flat, upper = np.concatenate(path[1:], axis=1), range(2, s.steps + 1)

    back = {t: s.back(t, path[t - 1], path[t]) for t in s.times}
    marginal = {t: s.marginal(t, path[t], path[0]) for t in s.times}
    posterior = {t: s.posterior(t, path[t - 1], path[t], path[0]) for t in s.times[1:]}
    top = _standard(path[-1])

    # q(x_t|x_{t-1},x_0) by conditioning a Gaussian, so that the Markov property is not assumed.
    _, covariance = s.path_gaussian(x_0)
    given = {}
    for t in upper:
        gain, left = _condition(covariance, slice(2 * t - 2, 2 * t), slice(2 * t - 4, 2 * t - 2))
        away = (path[t - 1] - np.sqrt(s.alpha_bar[t - 1]) * x_0) @ gain.T
        given[t] = _log_normal(path[t], np.sqrt(s.alpha_bar[t]) * x_0 + away, left[0, 0])

    def expect(values: Array) -> float:
        return float(weight @ values)

    def ratios(sign: float = 1.0, over: dict[int, Array] = posterior) -> float:
        middle = sum(back[t] - over[t] + sign * (marginal[t - 1] - marginal[t]) for t in upper)
        return expect(top + back[1] - marginal[1] + middle)

    def divergence(t: int, turned: bool = False) -> float:
        x_t = np.sqrt(s.alpha_bar[t]) * x_0 + np.sqrt(1 - s.alpha_bar[t]) * noise
        two = [(s.step(t).mean(x_t, x_0), s.step(t).variance), (s.mean(t, x_t), s.variance[t])]
        p, q = two[::-1] if turned else two
        return float(share @ _kl(*p, *q))

    def at_x_1(log_density: Callable[[Array], Array]) -> float:
        return float(share @ log_density(np.sqrt(s.alpha[1]) * x_0 + np.sqrt(s.beta[1]) * noise))

    reconstruction = at_x_1(lambda x_1: s.back(1, x_0, x_1))
    kept = s.alpha_bar[-1]
    prior = float(_kl(np.sqrt(kept) * x_0, 1 - kept, 0 * x_0, 1.0))
    steps = sum(divergence(t) for t in upper)
    log_path = multivariate_normal(*s.path_gaussian(x_0)).logpdf(flat)
    markov, bayes, telescoped = "= with q(x_t|x_{t-1},x_0)", "= by Bayes' rule", "= all but two q(x_t|x_0) cancelled"
    short = top + back[1] - marginal[3]
    return Lines(
        {
            "ℒ = E_q log p(x_{0:T})/q(x_{1:T}|x_0), q a Gaussian of six numbers": expect(
                top + sum(back.values()) - log_path
            ),
            "= E_q[log p(x_T) + Σ_t log p(x_{t-1}|x_t)/q(x_t|x_{t-1})]": expect(
                top + sum(back[t] - s.forward(t, path[t], path[t - 1]) for t in s.times)
            ),
            markov: expect(top + back[1] - marginal[1] + sum(back[t] - given[t] for t in upper)),
            bayes: ratios(),
            telescoped: expect(short + sum(back[t] - posterior[t] for t in upper)),
            "= reconstruction - KL of the prior - Σ_t KLs": reconstruction - prior - steps,
        },
        [
            Mutant("q(x_t|x_0) for q(x_t|x_{t-1},x_0)", {markov: ratios(0.0, marginal)}),
            Mutant("q(x_{t-1}|x_t,x_0) without Bayes' rule", {bayes: ratios(sign=0.0)}),
            Mutant("Bayes' rule upside down", {bayes: ratios(sign=-1.0)}),
            Mutant(
                "q(x_1|x_0) left over",
                {telescoped: expect(short - marginal[1] + sum(back[t] - posterior[t] for t in upper))},
            ),
            Mutant(
                "log p(x_1|x_0) for log p(x_0|x_1)",
                at_x_1(lambda x_1: s.back(1, x_1, x_0)) - prior - steps,
                erratum="E002-05",
            ),
            Mutant(
                "the KLs the other way round", reconstruction - prior - sum(divergence(t, turned=True) for t in upper)
            ),
            Mutant("the prior's KL taken as zero", reconstruction - steps, erratum="E002-14"),
            Mutant("+KL of the prior", reconstruction + prior - steps),
            Mutant("the sum from t = 3", reconstruction - prior - divergence(3)),
            Mutant("a mean of the KLs for their sum", reconstruction - prior - steps / 2),
        ],
    )


@verifies(
    "ddpm-prior-kl",
    r"\mathrm{KL}\big(q(x_T\mid x_0)\Vert N(0,I)\big)"
    r"=\frac12\sum_{i=1}^{d_x}\big(\bar\alpha_Tx_{0,i}^2-\bar\alpha_T-\log(1-\bar\alpha_T)\big)",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def ddpm_prior_kl(rng: np.random.Generator) -> Lines:
    kept, x_0 = rng.uniform(0.1, 0.4), rng.normal(size=2)
    nodes, weight = plane(9.0, 121)
    mean = np.sqrt(kept) * x_0
    log_q = _log_normal(nodes, mean, 1 - kept)

    def formula(square: float = kept, trace: float = -kept, log: float = -1.0, factor: float = 0.5) -> float:
        return factor * np.sum(square * x_0**2 + trace + log * np.log(1 - kept))

    return Lines(
        {
            "∫ q(x_T|x_0) log q(x_T|x_0)/N(x_T; 0, I) dx_T": weight @ (np.exp(log_q) * (log_q - _standard(nodes))),
            "= KL by torch": _kl(mean, 1 - kept, 0 * mean, 1.0),
            "= ½ Σ_i (ᾱ_T x_{0,i}² - ᾱ_T - log(1-ᾱ_T))": formula(),
        },
        [
            Mutant("zero", 0.0, erratum="E002-14"),
            Mutant("½ forgotten", formula(factor=1.0)),
            Mutant("-ᾱ_T forgotten", formula(trace=0.0)),
            Mutant("+log(1-ᾱ_T)", formula(log=1.0)),
            Mutant("√ᾱ_T x_0²", formula(square=np.sqrt(kept))),
            Mutant("log of a standard deviation", formula(log=-0.5)),
            Mutant("KL the other way round", _kl(0 * mean, 1.0, mean, 1 - kept)),
        ],
    )


# What the network predicts


@verifies(
    "ddpm-mu-eps",
    r"""\begin{aligned}
\mu_\theta(x_t,t)&=\tilde\mu_t\Big(x_t,\frac{x_t-\sqrt{1-\bar\alpha_t}\,\epsilon_\theta(x_t,t)}
{\sqrt{\bar\alpha_t}}\Big)\\
&=\frac1{\sqrt{\alpha_t}}\Big(x_t-\frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\,\epsilon_\theta(x_t,t)\Big)
\end{aligned}""",
    kind="identity",
    route="closed form",
    **GAUSSIANS,
)
def ddpm_mu_eps(rng: np.random.Generator) -> Lines:
    # A prediction ε_θ belongs to the x_0 that it would be the noise of.
    s, x_0, predicted = _Step.random(rng), rng.normal(size=2), rng.normal(size=2)
    x_t = s.noisy(x_0, predicted)

    def by_data(root: float = np.sqrt(s.kept), noise: float = np.sqrt(1 - s.kept)) -> Array:
        return s.mean(x_t, (x_t - noise * predicted) / root)

    def formula(over: float = np.sqrt(s.alpha), share: float = s.beta / np.sqrt(1 - s.kept)) -> Array:
        return (x_t - share * predicted) / over

    line = "= μ̃_t(x_t, (x_t - √(1-ᾱ_t) ε_θ)/√ᾱ_t)"
    return Lines(
        {
            "mean of q(x_{t-1}|x_t,x_0) for the x_0 that ε_θ leads to, by conditioning": s.conditional(x_t, x_0)[0],
            line: by_data(),
            "= (x_t - β_t/√(1-ᾱ_t) ε_θ)/√α_t": formula(),
        },
        [
            Mutant("√β_t ε_θ: the noise of the last step", formula(share=np.sqrt(s.beta)), erratum="E004-11"),
            Mutant("β_t/(1-ᾱ_t)", formula(share=s.beta / (1 - s.kept))),
            Mutant("√β_t/√(1-ᾱ_t)", formula(share=np.sqrt(s.beta / (1 - s.kept)))),
            Mutant("+β_t/√(1-ᾱ_t) ε_θ", formula(share=-s.beta / np.sqrt(1 - s.kept))),
            Mutant("1/√ᾱ_t", formula(over=np.sqrt(s.kept)), erratum="E004-13"),
            Mutant("1/α_t", formula(over=s.alpha)),
            Mutant("x_t - (1-ᾱ_t) ε_θ", {line: by_data(noise=1 - s.kept)}),
            Mutant("not divided by √ᾱ_t", {line: by_data(root=1.0)}),
            Mutant("x_0 itself", x_0),
        ],
    )


@verifies(
    "ddpm-posterior-kl",
    r"""\begin{aligned}
&\mathrm{KL}\big(q(x_{t-1}\mid x_t,x_0)\Vert p_\theta(x_{t-1}\mid x_t)\big)\\
&\quad=\frac{\Vert\tilde\mu_t-\mu_\theta\Vert^2}{2\sigma_t^2}
+\frac{d_x}2\Big(\frac{\tilde\beta_t}{\sigma_t^2}-1-\log\frac{\tilde\beta_t}{\sigma_t^2}\Big)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def ddpm_posterior_kl(rng: np.random.Generator) -> Lines:
    s, x_0, x_t = _Step.random(rng), rng.normal(size=2), rng.normal(size=2)
    mean, other, variance = s.mean(x_t, x_0), rng.normal(size=2), rng.uniform(0.3, 0.5)
    nodes, weight = plane(8.0, 121)
    log_q = np.log(s.bayes(nodes, x_t, x_0)) - _log_normal(x_t, np.sqrt(s.kept) * x_0, 1 - s.kept)
    log_p = _log_normal(nodes, other, variance)

    def formula(
        variance: float = variance, ratio: float = s.variance / variance, sign: float = -1.0, dims: float = 2.0
    ) -> float:
        square = np.sum((mean - other) ** 2)
        return square / (2 * variance) + dims / 2 * (ratio - 1 + sign * np.log(ratio))

    return Lines(
        {
            "∫ q(x_{t-1}|x_t,x_0) log q(x_{t-1}|x_t,x_0)/p(x_{t-1}|x_t)": weight @ (np.exp(log_q) * (log_q - log_p)),
            "= KL by torch": _kl(mean, s.variance, other, variance),
            "= ‖μ̃_t-μ_θ‖²/2σ_t² + d/2 (β̃_t/σ_t² - 1 - log β̃_t/σ_t²)": formula(),
        },
        [
            Mutant("‖μ̃_t-μ_θ‖²/2β̃_t", formula(variance=s.variance)),
            Mutant("½ forgotten in front of the square", formula(variance=variance / 2)),
            Mutant("σ_t²/β̃_t", formula(ratio=variance / s.variance)),
            Mutant("+log", formula(sign=1.0)),
            Mutant("d forgotten", formula(dims=1.0)),
            Mutant("the square alone", formula(dims=0.0)),
            Mutant("σ_t for σ_t²", formula(np.sqrt(variance), s.variance / np.sqrt(variance)), erratum="E001-06"),
            Mutant("KL the other way round", _kl(other, variance, mean, s.variance)),
        ],
    )


@verifies(
    "ddpm-posterior-kl-mse",
    r"""\begin{aligned}
\mathrm{KL}\big(q(x_{t-1}\mid x_t,x_0)\Vert p_\theta(x_{t-1}\mid x_t)\big)
&=\frac{\Vert\tilde\mu_t-\mu_\theta\Vert^2}{2\tilde\beta_t},\qquad\sigma_t^2=\tilde\beta_t,\ t\ge2\\
&=\frac{\beta_t^2}{2\tilde\beta_t\,\alpha_t(1-\bar\alpha_t)}\Vert\epsilon-\epsilon_\theta(x_t,t)\Vert^2
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def ddpm_posterior_kl_mse(rng: np.random.Generator) -> Lines:
    s, x_0, noise, predicted = _Step.random(rng), *rng.normal(size=(3, 2))
    x_t = s.noisy(x_0, noise)
    nodes, weight = plane(9.0, 131)
    mean, other = s.mean(x_t, x_0), s.mean(x_t, (x_t - np.sqrt(1 - s.kept) * predicted) / np.sqrt(s.kept))
    log_q = np.log(s.bayes(nodes, x_t, x_0)) - _log_normal(x_t, np.sqrt(s.kept) * x_0, 1 - s.kept)
    log_p = _log_normal(nodes, other, s.variance)

    def of_means(below: float = 2 * s.variance) -> float:
        return np.sum((mean - other) ** 2) / below

    def formula(
        above: float = s.beta**2, below: float = 2 * s.variance * s.alpha * (1 - s.kept), power: float = 1.0
    ) -> float:
        return above / below * np.sum((noise - predicted) ** 2) ** power

    line = "= ‖μ̃_t-μ_θ‖²/2β̃_t"
    return Lines(
        {
            "∫ q(x_{t-1}|x_t,x_0) log q(x_{t-1}|x_t,x_0)/p(x_{t-1}|x_t)": weight @ (np.exp(log_q) * (log_q - log_p)),
            "= KL by torch": _kl(mean, s.variance, other, s.variance),
            line: of_means(),
            "= β_t²/(2β̃_t α_t(1-ᾱ_t)) ‖ε-ε_θ‖²": formula(),
        },
        [
            Mutant("‖μ̃_t-μ_θ‖²/β̃_t", {line: of_means(s.variance)}),
            Mutant("‖μ̃_t-μ_θ‖²/2", {line: of_means(2.0)}),
            Mutant("2β_t below", {line: of_means(2 * s.beta)}),
            Mutant("β_t for β_t²", formula(above=s.beta)),
            Mutant("weight 1", formula(1.0, 1.0)),
            Mutant("α_t forgotten", formula(below=2 * s.variance * (1 - s.kept))),
            Mutant("1-α_t for 1-ᾱ_t", formula(below=2 * s.variance * s.alpha * s.beta), erratum="E004-13"),
            Mutant("1-ᾱ_{t-1}", formula(below=2 * s.variance * s.alpha * (1 - s.before))),
            Mutant("the norm not squared", formula(power=0.5)),
        ],
    )


@verifies(
    "ddpm-x0-weight",
    r"""\begin{aligned}
&\mathrm{KL}\big(q(x_{t-1}\mid x_t,x_0)\Vert p_\theta(x_{t-1}\mid x_t)\big)\\
&\quad=\frac{\bar\alpha_{t-1}\,\beta_t^2}{2\tilde\beta_t(1-\bar\alpha_t)^2}\Vert x_0-\hat x_\theta(x_t,t)\Vert^2\\
&\quad=\frac12\big(\mathrm{SNR}(t-1)-\mathrm{SNR}(t)\big)\Vert x_0-\hat x_\theta(x_t,t)\Vert^2\\
&\quad=\frac12\Big(\frac{\mathrm{SNR}(t-1)}{\mathrm{SNR}(t)}-1\Big)\Vert\epsilon-\epsilon_\theta(x_t,t)\Vert^2
\end{aligned}""",
    kind="identity",
    route="closed form",
    **GAUSSIANS,
)
def ddpm_x0_weight(rng: np.random.Generator) -> Lines:
    s, x_0, noise, predicted = _Step.random(rng), *rng.normal(size=(3, 2))
    x_t, (earlier, later) = s.noisy(x_0, noise), s.snr
    next_kept = s.kept * s.alpha
    error = np.sum((x_0 - predicted) ** 2)
    of_noise = np.sum((noise - (x_t - np.sqrt(s.kept) * predicted) / np.sqrt(1 - s.kept)) ** 2)
    first, second = "= ᾱ_{t-1} β_t²/(2β̃_t(1-ᾱ_t)²) ‖x_0-x̂_θ‖²", "= ½(SNR(t-1) - SNR(t)) ‖x_0-x̂_θ‖²"

    def by_slope(kept: float = s.before, below: float = (1 - s.kept) ** 2) -> float:
        return kept * s.beta**2 / (2 * s.variance * below) * error

    return Lines(
        {
            "KL by torch, the means by conditioning": _kl(
                s.conditional(x_t, x_0)[0], s.variance, s.conditional(x_t, predicted)[0], s.variance
            ),
            first: by_slope(),
            second: 0.5 * (earlier - later) * error,
            "= ½(SNR(t-1)/SNR(t) - 1) ‖ε-ε_θ‖²": 0.5 * (earlier / later - 1) * of_noise,
        },
        [
            Mutant("ᾱ_t for ᾱ_{t-1}", {first: by_slope(kept=s.kept)}),
            Mutant("1-ᾱ_t not squared", {first: by_slope(below=1 - s.kept)}),
            Mutant("½ forgotten", {second: (earlier - later) * error}),
            Mutant("SNR(t) - SNR(t-1)", {second: 0.5 * (later - earlier) * error}),
            Mutant("SNR(t) - SNR(t+1)", {second: 0.5 * (later - next_kept / (1 - next_kept)) * error}),
            Mutant("ᾱ_{t-1} - ᾱ_t", {second: 0.5 * (s.before - s.kept) * error}),
            Mutant("the weight of ε for x_0", {second: 0.5 * (earlier / later - 1) * error}),
            Mutant("SNR(t-1)/SNR(t)", 0.5 * earlier / later * of_noise),
            Mutant("1 - SNR(t)/SNR(t-1)", 0.5 * (1 - later / earlier) * of_noise),
            Mutant("weight 1", of_noise),
        ],
    )


@verifies(
    "ddpm-v",
    r"""\begin{aligned}
v=\sqrt{\bar\alpha_t}\,\epsilon-\sqrt{1-\bar\alpha_t}\,x_0:\qquad
x_0&=\sqrt{\bar\alpha_t}\,x_t-\sqrt{1-\bar\alpha_t}\,v\\
\epsilon&=\sqrt{1-\bar\alpha_t}\,x_t+\sqrt{\bar\alpha_t}\,v\\
\mathrm{KL}\big(q(x_{t-1}\mid x_t,x_0)\Vert p_\theta(x_{t-1}\mid x_t)\big)
&=\frac{1-\bar\alpha_t}2\big(\mathrm{SNR}(t-1)-\mathrm{SNR}(t)\big)\\
&\quad\cdot\Vert v-v_\theta(x_t,t)\Vert^2
\end{aligned}""",
    kind="identity",
    route="closed form",
    **GAUSSIANS,
)
def ddpm_v(rng: np.random.Generator) -> Lines:
    s, x_0, noise, off = _Step.random(rng), *rng.normal(size=(3, 2))
    x_t, (earlier, later) = s.noisy(x_0, noise), s.snr
    fade, size = np.sqrt(s.kept), np.sqrt(1 - s.kept)
    v = fade * noise - size * x_0

    # (x_t, v) is (x_0, ε) turned by an angle.
    turn = np.array([[fade, size], [-size, fade]])
    back, predicted = np.linalg.solve(turn, [x_t, v]), np.linalg.solve(turn, [x_t, v + off])
    kl = _kl(s.conditional(x_t, back[0])[0], s.variance, s.conditional(x_t, predicted[0])[0], s.variance)

    def formula(
        fade: float = fade, size: float = size, v: Array = v, weight: float = (1 - s.kept) * (earlier - later)
    ) -> Array:
        """x_0, ε and the divergence."""
        return np.concatenate([fade * x_t - size * v, size * x_t + fade * v, [weight / 2 * (off**2).sum()]])

    by_data = 0.5 * (earlier - later) * np.sum((x_0 - predicted[0]) ** 2)
    return Lines(
        {
            "x_0 and ε, and KL by ½(SNR(t-1)-SNR(t)) ‖x_0-x̂_θ‖²": np.concatenate([x_0, noise, [by_data]]),
            "= x_0 and ε from x_t and v by elimination, and KL by torch": np.concatenate([*back, [kl]]),
            "= x_0, ε and KL by the turn back": formula(),
            "= the same, with cos φ = √ᾱ_t and sin φ = √(1-ᾱ_t)": formula(
                np.cos(np.arctan(later**-0.5)), np.sin(np.arctan(later**-0.5))
            ),
        },
        [
            Mutant("v = √ᾱ_t x_0 - √(1-ᾱ_t) ε", formula(v=fade * x_0 - size * noise)),
            Mutant("-v", formula(v=-v)),
            Mutant("√ᾱ_t and √(1-ᾱ_t) exchanged", formula(size, fade)),
            Mutant("ᾱ_t for √ᾱ_t", formula(s.kept, 1 - s.kept)),
            Mutant("x_0's weight for v", formula(weight=earlier - later)),
            Mutant("ᾱ_t for 1-ᾱ_t in the weight", formula(weight=s.kept * (earlier - later))),
            Mutant("1-ᾱ_{t-1} in the weight", formula(weight=(1 - s.before) * (earlier - later))),
        ],
    )


def _data_posterior(data: _Mixture, x_t: Array, kept: float) -> tuple[Array, Array]:
    """Nodes x_0 and weights that sum with q(x_0|x_t), one row of weights for each x_t."""
    nodes, weight = plane(6.0, 101)
    share = weight * data.density(nodes) * np.exp(_log_normal(x_t[:, None], np.sqrt(kept) * nodes, 1 - kept))
    return nodes, share / share.sum(1, keepdims=True)


def _noise_posterior(data: _Mixture, x_t: Array, kept: float) -> tuple[Array, Array]:
    """Nodes ε and weights that sum with the law of ε given x_t."""
    nodes, weight = plane(7.0, 117)
    x_0 = (x_t[:, None] - np.sqrt(1 - kept) * nodes) / np.sqrt(kept)
    share = weight * np.exp(_standard(nodes)) * data.density(x_0)
    return nodes, share / share.sum(1, keepdims=True)


@verifies(
    "parameterisations",
    r"""\begin{aligned}
\mathbb E[x_0\mid x_t]&=\frac{x_t-\sqrt{1-\bar\alpha_t}\,\mathbb E[\epsilon\mid x_t]}{\sqrt{\bar\alpha_t}}\\
&=\sqrt{\bar\alpha_t}\,x_t-\sqrt{1-\bar\alpha_t}\,\mathbb E[v\mid x_t],\qquad
v=\sqrt{\bar\alpha_t}\,\epsilon-\sqrt{1-\bar\alpha_t}\,x_0\\
&=\frac{x_t+(1-\bar\alpha_t)\nabla\log q(x_t)}{\sqrt{\bar\alpha_t}}
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def parameterisations(rng: np.random.Generator) -> Lines:
    data, kept, x_t = _Mixture.random(rng), rng.uniform(0.4, 0.7), 0.7 * rng.normal(size=(3, 2))
    fade, size = np.sqrt(kept), np.sqrt(1 - kept)
    epsilon, of_noise = _noise_posterior(data, x_t, kept)
    x_0, of_data = _data_posterior(data, x_t, kept)
    noise = of_noise @ epsilon
    # v at every x_0, whose ε is what x_t leaves for it.
    v = np.einsum("tn,tni->ti", of_data, fade * (x_t[:, None] - fade * x_0) / size - size * x_0)
    score = data.noised(kept).score(x_t)
    by_noise, by_v = "= (x_t - √(1-ᾱ_t) E[ε|x_t])/√ᾱ_t", "= √ᾱ_t x_t - √(1-ᾱ_t) E[v|x_t]"
    return Lines(
        {
            "E[x_0|x_t] of a mixture at three x_t, by conditioning": data.denoise(x_t, kept),
            by_noise: (x_t - size * noise) / fade,
            by_v: fade * x_t - size * v,
            "= (x_t + (1-ᾱ_t) ∇log q(x_t))/√ᾱ_t": (x_t + size**2 * score) / fade,
        },
        [
            Mutant("+√(1-ᾱ_t) ε", {by_noise: (x_t + size * noise) / fade}),
            Mutant("(1-ᾱ_t) ε", {by_noise: (x_t - size**2 * noise) / fade}),
            Mutant("not divided by √ᾱ_t", {by_noise: x_t - size * noise}),
            Mutant("√ᾱ_t and √(1-ᾱ_t) exchanged", {by_v: size * x_t - fade * v}),
            Mutant("+√(1-ᾱ_t) v", {by_v: fade * x_t + size * v}),
            Mutant("ε for v", {by_v: fade * x_t - size * noise}),
            Mutant("-(1-ᾱ_t) score", (x_t - size**2 * score) / fade),
            Mutant("√(1-ᾱ_t) score", (x_t + size * score) / fade),
            Mutant("the score of the data", (x_t + size**2 * data.score(x_t)) / fade, erratum="E004-23"),
        ],
    )


@verifies(
    "eps-score-relation",
    r"""\begin{aligned}
\nabla_{x_t}\log q(x_t\mid x_0)&=-\frac{x_t-\sqrt{\bar\alpha_t}\,x_0}{1-\bar\alpha_t}
=-\frac\epsilon{\sqrt{1-\bar\alpha_t}}\\
\nabla\log q(x_t)&=\mathbb E_{q(x_0\mid x_t)}\big[\nabla_{x_t}\log q(x_t\mid x_0)\big]
=-\frac{\mathbb E[\epsilon\mid x_t]}{\sqrt{1-\bar\alpha_t}}
\end{aligned}""",
    kind="identity",
    route="autograd",
    **QUADRATURE,
)
def eps_score_relation(rng: np.random.Generator) -> Lines:
    data, kept = _Mixture.random(rng), rng.uniform(0.4, 0.7)
    x_0, epsilon = rng.normal(size=(2, 3, 2))
    fade, size = np.sqrt(kept), np.sqrt(1 - kept)
    x_t = fade * x_0 + size * epsilon
    nodes, of_data = _data_posterior(data, x_t, kept)
    noises, of_noise = _noise_posterior(data, x_t, kept)
    noise = of_noise @ noises

    given = Normal(torch.tensor(fade * x_0), float(size))
    by_autograd = _gradient(lambda x: given.log_prob(x).sum(-1), x_t)
    averaged = np.einsum("tn,tni->ti", of_data, -(x_t[:, None] - fade * nodes) / size**2)

    def formula(scale: float = -1 / size, epsilon: Array = epsilon, noise: Array = noise) -> Array:
        return scale * np.stack([epsilon, noise])

    first, line = (
        "∇ log q(x_t|x_0) and ∇ log q(x_t) at three x_t, by autograd",
        "= -(x_t-√ᾱ_t x_0)/(1-ᾱ_t), and its mean",
    )
    score = data.noised(kept).score(x_t)
    at_data = np.stack([by_autograd, data.score(x_t)])
    last_beta = (1 - kept) / 3
    return Lines(
        {
            first: np.stack([by_autograd, score]),
            line: np.stack([-(x_t - fade * x_0) / size**2, averaged]),
            "= -ε/√(1-ᾱ_t) and -E[ε|x_t]/√(1-ᾱ_t)": formula(),
        },
        [
            Mutant("+ε", formula(scale=1 / size)),
            Mutant("1-ᾱ_t for its root", formula(scale=-1 / size**2)),
            Mutant("not divided", formula(scale=-1.0)),
            Mutant("√β_t: the last noise alone", formula(scale=-1 / np.sqrt(last_beta)), erratum="E004-11"),
            Mutant("√ᾱ_t below", formula(scale=-1 / fade)),
            Mutant("one ε for its mean given x_t", formula(noise=epsilon)),
            Mutant("the mean given x_t for ε", formula(epsilon=noise)),
            Mutant("the score of the data at x_t", {first: at_data}, erratum="E004-23"),
            Mutant("x_t - x_0", {line: np.stack([-(x_t - x_0) / size**2, averaged])}),
        ],
    )


@verifies(
    "tweedie",
    r"\mathbb E[x_0\mid x_t]=\frac{x_t+(1-\bar\alpha_t)\nabla\log q(x_t)}{\sqrt{\bar\alpha_t}}",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def tweedie(rng: np.random.Generator) -> Lines:
    data, kept, x_t = _Mixture.random(rng), rng.uniform(0.4, 0.7), 0.7 * rng.normal(size=(3, 2))
    nodes, share = _data_posterior(data, x_t, kept)
    score = data.noised(kept).score(x_t)

    def formula(weight: float = 1 - kept, score: Array = score, below: float = np.sqrt(kept)) -> Array:
        return (x_t + weight * score) / below

    return Lines(
        {
            "E[x_0|x_t] of a mixture at three x_t, by quadrature": share @ nodes,
            "= by conditioning each part": data.denoise(x_t, kept),
            "= (x_t + (1-ᾱ_t) ∇log q(x_t))/√ᾱ_t": formula(),
        },
        [
            Mutant("minus the score", formula(weight=kept - 1)),
            Mutant("√(1-ᾱ_t)", formula(weight=np.sqrt(1 - kept)), erratum="E001-06"),
            Mutant("not divided by √ᾱ_t", formula(below=1.0)),
            Mutant("ᾱ_t below", formula(below=kept)),
            Mutant("the score of the data at x_t", formula(score=data.score(x_t)), erratum="E004-23"),
            Mutant("½(1-ᾱ_t)", formula(weight=(1 - kept) / 2)),
            Mutant("x_t/√ᾱ_t: no score", formula(weight=0.0)),
        ],
    )


@verifies(
    "tweedie-covariance",
    r"\mathrm{Cov}(x_0\mid x_t)=\frac{1-\bar\alpha_t}{\bar\alpha_t}\big(I+(1-\bar\alpha_t)\nabla^2\log q(x_t)\big)",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def tweedie_covariance(rng: np.random.Generator) -> Lines:
    data, kept, x_t = _Mixture.random(rng), rng.uniform(0.4, 0.7), 0.7 * rng.normal(size=2)
    nodes, share = _data_posterior(data, x_t[None], kept)
    away = nodes - share @ nodes
    one, left = np.eye(2), 1 - kept
    curvature = torch.autograd.functional.hessian(data.noised(kept).log_density, torch.tensor(x_t)).numpy()
    step = 1e-3
    # Differences of four denoised points, of fourth order: their slope is the covariance, but for a factor.
    moves = step * np.eye(2)
    near, far = (data.denoise(x_t + k * moves, kept) - data.denoise(x_t - k * moves, kept) for k in (1, 2))
    slope = (8 * near - far) / (12 * step)
    return Lines(
        {
            "Cov(x_0|x_t) of a mixture, by quadrature": (away.T * share) @ away,
            "= (1-ᾱ_t)/√ᾱ_t ∂E[x_0|x_t]/∂x_t, by differences": left / np.sqrt(kept) * slope,
            "= (1-ᾱ_t)/ᾱ_t (I + (1-ᾱ_t) ∇²log q(x_t))": left / kept * (one + left * curvature),
        },
        [
            Mutant("I - (1-ᾱ_t)∇²log q", left / kept * (one - left * curvature)),
            Mutant("I forgotten", left**2 / kept * curvature),
            Mutant("√ᾱ_t below", left / np.sqrt(kept) * (one + left * curvature)),
            Mutant("(1-ᾱ_t)/ᾱ_t I: as if the data were flat", left / kept * one),
            Mutant("√(1-ᾱ_t) ∇²log q", left / kept * (one + np.sqrt(left) * curvature)),
            Mutant(
                "the squares of the score", left / kept * (one + left * np.outer(*[data.noised(kept).score(x_t)] * 2))
            ),
        ],
    )


# Objectives


@verifies(
    "l-simple",
    r"""\begin{aligned}
L_{\rm simple}&=\mathbb E_{t,x_0,\epsilon}\Vert\epsilon-\epsilon_\theta(x_t,t)\Vert^2\\
&=\mathbb E_{t,x_t}\big\Vert\mathbb E[\epsilon\mid x_t]-\epsilon_\theta(x_t,t)\big\Vert^2
+\mathbb E\big\Vert\epsilon-\mathbb E[\epsilon\mid x_t]\big\Vert^2\\
&=\mathbb E_{t,x_t}\big[(1-\bar\alpha_t)\Vert s_\theta(x_t,t)-\nabla\log q(x_t)\Vert^2\big]
+\mathrm{const}\\
&\quad\text{with }s_\theta=-\frac{\epsilon_\theta}{\sqrt{1-\bar\alpha_t}}
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def l_simple(rng: np.random.Generator) -> Lines:
    # Two times t, and at each a prediction ε_θ(x) = Ax + b + Cx².
    data, kept = _Mixture.random(rng), rng.uniform(0.3, 0.7, 2)
    linear, curve, shift = 0.4 * rng.normal(size=(2, 2, 2)), 0.2 * rng.normal(size=(2, 2, 2)), rng.normal(size=(2, 2))
    (draws, share), (nodes, weight) = gauss_hermite(4, 3), plane(9.0, 91)
    left = 1 - kept

    def predict(t: int, x: Array) -> Array:
        return x @ linear[t].T + shift[t] + x**2 @ curve[t].T

    def by_draws(t: int) -> float:
        """Over x_0, part by part, and ε: polynomials of degree four, three nodes for each number."""
        total = 0.0
        for w, mean, covariance in zip(data.weights, data.means, data.covariances, strict=True):
            x_0, epsilon = mean + draws[:, :2] @ np.linalg.cholesky(covariance).T, draws[:, 2:]
            x_t = np.sqrt(kept[t]) * x_0 + np.sqrt(left[t]) * epsilon
            total += w * float(share @ ((epsilon - predict(t, x_t)) ** 2).sum(1))
        return total

    def over_x_t(of: Callable[[int], Array]) -> Array:
        """E[f(x_t)] at both times."""
        return np.array([weight @ (data.noised(k).density(nodes) * of(t)) for t, k in enumerate(kept)])

    def square(x: Array) -> Array:
        return (x**2).sum(1)

    noise = [(nodes - np.sqrt(k) * data.denoise(nodes, k)) / np.sqrt(1 - k) for k in kept]
    score, of_data = [data.noised(k).score(nodes) for k in kept], data.score(nodes)
    model = [-predict(t, nodes) / np.sqrt(left[t]) for t in (0, 1)]
    fit, rest = over_x_t(lambda t: square(noise[t] - predict(t, nodes))), 2 - over_x_t(lambda t: square(noise[t]))
    mixed = over_x_t(lambda t: ((noise[t] - predict(t, nodes)) * noise[t]).sum(1))
    of_scores, const = over_x_t(lambda t: square(model[t] - score[t])), 2 - left * over_x_t(lambda t: square(score[t]))
    # E[ε·ε_θ] = √(1-ᾱ_t) E[∇·ε_θ], by parts over ε.
    inner = np.sqrt(left) * over_x_t(lambda t: np.trace(linear[t]) + 2 * nodes @ np.diag(curve[t]))

    line = "= E‖E[ε|x_t] - ε_θ‖² + E‖ε - E[ε|x_t]‖²"
    return Lines(
        {
            "2 - 2√(1-ᾱ_t) E[∇·ε_θ] + E‖ε_θ‖², by parts over ε, mean of two t": np.mean(
                2 - 2 * inner + over_x_t(lambda t: square(predict(t, nodes)))
            ),
            "= E‖ε - ε_θ(x_t,t)‖² over x_0 and ε": np.mean([by_draws(t) for t in (0, 1)]),
            line: np.mean(fit + rest),
            "= E[(1-ᾱ_t)‖s_θ - ∇log q(x_t)‖²] + const": np.mean(left * of_scores + const),
        },
        [
            Mutant("nothing is left: x_t shows ε", {line: np.mean(fit)}),
            Mutant("a mixed term left over", {line: np.mean(fit + rest + 2 * mixed)}),
            Mutant("no constant", np.mean(left * of_scores), erratum="E004-12"),
            Mutant(
                "the score of the data",
                np.mean(left * over_x_t(lambda t: square(model[t] - of_data)) + const),
                erratum="E004-23",
            ),
            Mutant("not weighted by 1-ᾱ_t", np.mean(of_scores + const)),
            Mutant("√(1-ᾱ_t)", np.mean(np.sqrt(left) * of_scores + const)),
            Mutant("s_θ = +ε_θ/√(1-ᾱ_t)", np.mean(left * over_x_t(lambda t: square(model[t] + score[t])) + const)),
        ],
    )


@verifies(
    "l-simple-weight",
    r"""\begin{aligned}
-\mathbb E\mathcal L&=\sum_{t=1}^Tw_t\,\mathbb E\Vert\epsilon-\epsilon_\theta(x_t,t)\Vert^2+C,\qquad
w_t=\frac{\beta_t^2}{2\sigma_t^2\,\alpha_t(1-\bar\alpha_t)}\\
C&=\mathbb E\,\mathrm{KL}\big(q(x_T\mid x_0)\Vert p(x_T)\big)+\frac{d_x}2\log(2\pi\sigma_1^2)\\
&\quad+\frac{d_x}2\sum_{t=2}^T\Big(\frac{\tilde\beta_t}{\sigma_t^2}-1-\log\frac{\tilde\beta_t}{\sigma_t^2}\Big)\\
L_{\rm simple}&=\frac1T\sum_{t=1}^T\mathbb E\Vert\epsilon-\epsilon_\theta(x_t,t)\Vert^2
\end{aligned}""",
    kind="identity",
    route="quadrature",
    tolerance=1e-10,
    reason="polynomials of degree two at exact nodes, values up to a hundred",
)
def l_simple_weight(rng: np.random.Generator) -> Lines:
    # ε_θ = A_t x + b_t, and the means of the reverse process that it stands for.
    s, steps = _Chain.random(rng, 3, curved=False), range(1, 4)
    a, b = rng.normal(size=(4, 2, 2)), rng.normal(size=(4, 2))
    share = s.beta / np.sqrt(1 - s.alpha_bar + (s.beta == 0))
    root = np.sqrt(s.alpha)
    linear = (np.eye(2) - share[:, None, None] * a) / root[:, None, None]
    s = replace(s, linear=linear, shift=-(share / root)[:, None] * b)

    centre, factor = rng.normal(size=2), 0.5 * rng.normal(size=(2, 2))
    noise, weight = gauss_hermite(8, 2)
    path = s.walk(centre + noise[:, :2] @ factor.T, noise[:, 2:])
    bound = _standard(path[-1]) + sum(
        s.back(t, path[t - 1], path[t]) - s.forward(t, path[t], path[t - 1]) for t in steps
    )

    def in_path(t: int) -> float:
        epsilon = (path[t] - np.sqrt(s.alpha_bar[t]) * path[0]) / np.sqrt(1 - s.alpha_bar[t])
        return float(weight @ ((epsilon - path[t] @ a[t].T - b[t]) ** 2).sum(1))

    def in_one_go(t: int) -> float:
        """x_t straight from x_0 and ε."""
        x_t = np.sqrt(s.alpha_bar[t]) * path[0] + np.sqrt(1 - s.alpha_bar[t]) * noise[:, 2:4]
        return float(weight @ ((noise[:, 2:4] - x_t @ a[t].T - b[t]) ** 2).sum(1))

    def by_moments(t: int) -> float:
        """A constant, what x_0 varies by, and what ε does."""
        kept = s.alpha_bar[t]
        parts = (
            np.sqrt(kept) * a[t] @ centre + b[t],
            np.sqrt(kept) * a[t] @ factor,
            np.eye(2) - np.sqrt(1 - kept) * a[t],
        )
        return sum(float(np.sum(part**2)) for part in parts)

    def w(t: int, power: int = 2, spread: float = 1.0, alpha: float = 1.0, before: int = 0) -> float:
        return s.beta[t] ** power / (2 * s.variance[t] ** spread * s.alpha[t] ** alpha * (1 - s.alpha_bar[t - before]))

    kept = s.alpha_bar[-1]
    prior = float(weight @ _kl(np.sqrt(kept) * path[0], 1 - kept, 0 * path[0], 1.0))
    ratio = np.array([s.step(t).variance / s.variance[t] for t in steps[1:]])
    widths, first = np.sum(ratio - 1 - np.log(ratio)), np.log(2 * np.pi * s.variance[1])

    def formula(
        error: Callable[[int], float] = by_moments,
        weight: Callable[[int], float] = w,
        const: float = prior + first + widths,
        start: int = 1,
        over: float = 3.0,
    ) -> Array:
        """-Eℒ and L_simple."""
        errors = {t: error(t) for t in steps}
        return np.array([const + sum(weight(t) * errors[t] for t in steps[start - 1 :]), sum(errors.values()) / over])

    return Lines(
        {
            "-Eℒ of a path, and L_simple along it": [-(weight @ bound), np.mean([in_path(t) for t in steps])],
            "= Σ_t w_t E‖ε-ε_θ‖² + C, along the path, and L_simple": formula(in_path),
            "= the same, x_t straight from x_0": formula(in_one_go),
            "= the same, by moments": formula(),
        },
        [
            Mutant("weight 1: L_simple for the bound", formula(weight=lambda t: 1.0)),
            Mutant("weight 1/T", formula(weight=lambda t: 1 / 3)),
            Mutant("β_t for β_t²", formula(weight=lambda t: w(t, power=1))),
            Mutant("σ_t for σ_t²", formula(weight=lambda t: w(t, spread=0.5)), erratum="E001-06"),
            Mutant("α_t forgotten", formula(weight=lambda t: w(t, alpha=0.0))),
            Mutant("½ forgotten", formula(weight=lambda t: 2 * w(t))),
            Mutant("the sum from t = 2", formula(start=2)),
            Mutant("the prior's KL taken as zero", formula(const=first + widths), erratum="E002-14"),
            Mutant("no log 2πσ_1²", formula(const=prior + widths)),
            Mutant("no widths", formula(const=prior + first)),
            Mutant("a sum over t for its mean", formula(over=1.0)),
        ],
    )


@verifies(
    "discretised-decoder",
    r"""\begin{aligned}
p_\theta(x_0\mid x_1)&=\prod_{i=1}^{d_x}\int_{\delta_-(x_{0,i})}^{\delta_+(x_{0,i})}
N\big(x;\mu_{\theta,i}(x_1,1),\sigma_1^2\big)\,dx\\
\delta_+(x)&=\begin{cases}\infty&x=1\\x+\frac1{255}&x<1\end{cases}\qquad
\delta_-(x)=\begin{cases}-\infty&x=-1\\x-\frac1{255}&x>-1\end{cases}
\end{aligned}""",
    kind="definition",
    route="quadrature",
    tolerance=1e-10,
    reason="integrals of a Gaussian over intervals as wide as its standard deviation, in float64",
)
def discretised_decoder(rng: np.random.Generator) -> Lines:
    # Three pixels: one in the middle, and one near each end. σ_1² = β_1 of the paper.
    levels, scale = 2 * np.arange(256) / 255 - 1, 0.01
    mean = np.array([rng.uniform(-0.5, 0.5), -1 + rng.uniform(-0.01, 0.01), 1 + rng.uniform(-0.01, 0.01)])
    pixels = np.array([np.abs(levels - mean[0]).argmin() + 1, 0, 255])

    def by_cdf(half: float = 1 / 255, open_ended: bool = True, scale: float = scale, over: Callable = np.prod) -> Array:
        """The probability of the three pixels' levels, and for each pixel that of all 256."""
        low, high = levels - half, levels + half
        if open_ended:
            low, high = np.append(-np.inf, low[1:]), np.append(high[:-1], np.inf)
        table = norm.cdf(high, mean[:, None], scale) - norm.cdf(low, mean[:, None], scale)
        return np.append(over(table[range(3), pixels]), table.sum(1))

    node, weight = np.polynomial.legendre.leggauss(20)
    # Ten standard deviations for infinity.
    low = np.append(levels[0] - 0.2, levels[1:] - 1 / 255)
    high = np.append(levels[:-1] + 1 / 255, levels[-1] + 0.2)

    def by_nodes(level: int, pixel: int) -> float:
        # In ten pieces: the open intervals are wide.
        edges = np.linspace(low[level], high[level], 31)
        half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
        return float(((half * weight) * norm.pdf(middle + half * node, mean[pixel], scale)).sum())

    chosen = np.prod([by_nodes(level, pixel) for pixel, level in enumerate(pixels)])
    density = norm.pdf(levels, mean[:, None], scale)
    table = density * 2 / 255
    return Lines(
        {
            "P of three levels, by quadrature, and 1 for each pixel": np.append(chosen, np.ones(3)),
            "= P by differences of the cumulative distribution, and their sums over 256 levels": by_cdf(),
            "= the same, by the tails": np.append(
                np.prod(
                    [
                        norm.sf(low[pixels[0]], mean[0], scale) - norm.sf(high[pixels[0]], mean[0], scale),
                        norm.cdf(high[0], mean[1], scale),
                        norm.sf(low[255], mean[2], scale),
                    ]
                ),
                np.ones(3),
            ),
        },
        [
            Mutant("no open ends", by_cdf(open_ended=False)),
            Mutant("x ± 1/256", by_cdf(half=1 / 256)),
            Mutant("x ± ½/255", by_cdf(half=0.5 / 255)),
            Mutant("σ_1² for σ_1", by_cdf(scale=scale**2), erratum="E001-06"),
            Mutant("a sum over pixels", by_cdf(over=np.sum)),
            Mutant("the density for a probability", np.append(np.prod(density[range(3), pixels]), density.sum(1))),
            Mutant("the density times 2/255", np.append(np.prod(table[range(3), pixels]), table.sum(1))),
        ],
    )


# The variance of a reverse step


@verifies(
    "learned-variance",
    r"""\begin{aligned}
\tilde\beta_t\le\sigma_{t,i}^2&=\exp\big(\nu_i\log\beta_t+(1-\nu_i)\log\tilde\beta_t\big)\\
&=\beta_t^{\nu_i}\,\tilde\beta_t^{1-\nu_i}\le\beta_t,\qquad0\le\nu_i\le1
\end{aligned}""",
    kind="definition",
    route="closed form",
    **SMALL_SUMS,
)
def learned_variance(rng: np.random.Generator) -> Lines:
    s, share = _Step.random(rng), np.concatenate([[0.0, 1.0], rng.uniform(0.2, 0.8, 2)])
    low, high = s.variance, s.beta

    def formula(share: Array = share) -> Array:
        return np.exp(share * np.log(high) + (1 - share) * np.log(low))

    first, line, last = "β̃_t", "≤ exp(ν log β_t + (1-ν) log β̃_t), two of four ν at the ends", "≤ β_t"
    return Lines(
        {
            first: np.full(4, low),
            line: formula(),
            "= β_t^ν β̃_t^{1-ν}": high**share * low ** (1 - share),
            last: np.full(4, high),
        },
        [
            Mutant("ν and 1-ν exchanged", {line: formula(1 - share)}),
            Mutant("no logarithms", {line: share * high + (1 - share) * low}),
            Mutant("log σ_t for log σ_t²", {line: np.sqrt(formula())}, erratum="E001-06"),
            Mutant("(1-ν) forgotten", {line: np.exp(share * np.log(high) + np.log(low))}),
            Mutant("at least β_t", {first: np.full(4, high)}),
            Mutant("at most β̃_t", np.full(4, low)),
        ],
    )


@verifies(
    "reverse-variance-bounds",
    r"""\begin{aligned}
\mathrm{Cov}(x_{t-1}\mid x_t)&=\tilde\beta_tI
+\frac{\bar\alpha_{t-1}\,\beta_t^2}{(1-\bar\alpha_t)^2}\,\mathrm{Cov}(x_0\mid x_t)\\
\tilde\beta_tI&\preceq\mathrm{Cov}(x_{t-1}\mid x_t)\preceq\beta_tI\\
&\quad\text{for Gaussian data, }0\preceq\mathrm{Cov}(x_0)\preceq I
\end{aligned}""",
    kind="inequality",
    route="closed form",
    **GAUSSIANS,
)
def reverse_variance_bounds(rng: np.random.Generator) -> Lines:
    # Three data sets: variances between 0 and 1 in two directions, a point, and variance 1.
    s, half = _Step.random(rng), rng.normal(size=(2, 2))
    turn, _ = np.linalg.qr(half)
    data = [turn * rng.uniform(0.1, 0.9, 2) @ turn.T, np.zeros((2, 2)), np.eye(2)]
    noise = np.array([[0, 0], [np.sqrt(1 - s.before), 0], [np.sqrt(s.alpha * (1 - s.before)), np.sqrt(s.beta)]])
    fade = np.sqrt([1, s.before, s.kept])
    now, earlier, later = slice(2), slice(2, 4), slice(4, 6)

    def joint(data: Array) -> Array:
        return np.kron(np.outer(fade, fade), data) + np.kron(noise @ noise.T, np.eye(2))

    def spectra(of: Callable[[Array], Array]) -> Array:
        """The eigenvalues of a matrix for each of the data."""
        return np.concatenate([np.linalg.eigvalsh(of(c)) for c in data])

    def formula(
        slope: float = s.slopes[0] ** 2, base: float = s.variance, of: Callable[[Array], Array] | None = None
    ) -> Array:
        of = of or (lambda c: _condition(joint(c), now, later)[1])
        return spectra(lambda c: base * np.eye(2) + slope * of(c))

    low, high = np.full(2, s.variance), np.full(2, s.beta)
    first, line, last = (
        "β̃_t; for a point β̃_t, for variance 1 β_t",
        "= β̃_t + ᾱ_{t-1}β_t²/(1-ᾱ_t)² Cov(x_0|x_t)",
        "≤ β_t; the same",
    )
    return Lines(
        {
            first: np.concatenate([low, low, high]),
            "≤ eigenvalues of Cov(x_{t-1}|x_t), by conditioning": spectra(
                lambda c: _condition(joint(c), earlier, later)[1]
            ),
            line: formula(),
            last: np.concatenate([high, low, high]),
        },
        [
            Mutant("Cov(x_0)", {line: formula(of=lambda c: c)}),
            Mutant("the slope not squared", {line: formula(slope=s.slopes[0])}),
            Mutant("the slope on x_t", {line: formula(slope=s.slopes[1] ** 2)}),
            Mutant("β_t for β̃_t", {line: formula(base=s.beta)}),
            Mutant("Cov(x_0|x_t) alone", {line: formula(base=0.0)}),
            Mutant("variance 1 has β̃_t too", np.concatenate([high, low, low])),
            Mutant("at least β_t", {first: np.concatenate([high, low, high])}),
            Mutant("a point has β_t too", {first: np.concatenate([low, high, high])}),
        ],
    )


@verifies(
    "optimal-reverse-variance",
    r"\arg\min_{\sigma_t^2}\mathbb E\,\mathrm{KL}\big(q(x_{t-1}\mid x_t,x_0)\Vert N(\mu_\theta,\sigma_t^2I)\big)"
    r"=\tilde\beta_t+\frac1{d_x}\mathbb E\Vert\tilde\mu_t-\mu_\theta\Vert^2",
    kind="identity",
    route="autograd",
    tolerance=1e-9,
    reason="the root of a derivative, by bisection to rounding",
)
def optimal_reverse_variance(rng: np.random.Generator) -> Lines:
    # Gaussian data, and any linear μ_θ.
    s, centre, factor = _Step.random(rng), rng.normal(size=2), 0.5 * rng.normal(size=(2, 2))
    a, b, (noise, weight) = rng.normal(size=(2, 2)), rng.normal(size=2), gauss_hermite(4, 2)
    x_0 = centre + noise[:, :2] @ factor.T
    x_t = s.noisy(x_0, noise[:, 2:])
    mean, predicted = s.mean(x_t, x_0), x_t @ a.T + b
    square = weight @ ((mean - predicted) ** 2).sum(1)
    posterior = Normal(torch.tensor(mean), float(np.sqrt(s.variance)))

    def slope(log_variance: float) -> float:
        """d/d log σ_t² of the mean divergence."""
        at = torch.tensor(log_variance, dtype=torch.float64, requires_grad=True)
        model = Normal(torch.tensor(predicted), (at / 2).exp())
        value = torch.tensor(weight) @ kl_divergence(posterior, model).sum(1)
        return torch.autograd.grad(value, at)[0].item()

    def formula(base: float = s.variance, share: float = 0.5) -> float:
        return base + share * square

    return Lines(
        {
            "σ_t² with the least E KL, where its derivative is zero": np.exp(optimize.brentq(slope, -5, 5, xtol=1e-14)),
            "= β̃_t + E‖μ̃_t-μ_θ‖²/d": formula(),
        },
        [
            Mutant("β̃_t, whatever μ_θ", formula(share=0.0)),
            Mutant("β_t", s.beta),
            Mutant("β_t + E‖μ̃_t-μ_θ‖²/d", formula(base=s.beta)),
            Mutant("not divided by d", formula(share=1.0)),
            Mutant("E‖μ̃_t-μ_θ‖²/d alone", formula(base=0.0)),
            Mutant("β̃_t - E‖μ̃_t-μ_θ‖²/d", formula(share=-0.5)),
        ],
    )


@verifies(
    "ddpm-small-steps",
    r"""\begin{aligned}
&\mathrm{KL}\Big(q(x_{t-1}\mid x_t)\,\Big\Vert\,
N\Big(\frac{x_t+\beta_t\nabla\log q(x_t)}{\sqrt{\alpha_t}},\beta_tI\Big)\Big)\\
&\quad=\frac{\beta_t^2}4\big\Vert I+\nabla^2\log q(x_t)\big\Vert_F^2+O(\beta_t^3)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    tolerance=1e-6,
    reason="the limit of KL/β² from six β between 0.02 and 0.0006, by extrapolation",
)
def ddpm_small_steps(rng: np.random.Generator) -> Lines:
    data, before = _Mixture.random(rng), rng.uniform(0.4, 0.6)
    x_t, betas = 0.5 * rng.normal(size=2), 0.02 / 2.0 ** np.arange(6)
    around, weight = plane(9.0, 61)

    def kl(beta: float, drift: float = 1.0, spread: float = 1.0) -> float:
        s = _Step(before, 1 - beta)
        score = data.noised(s.kept).score(x_t[None])[0]
        mean = (x_t + drift * beta * score) / np.sqrt(s.alpha)
        # Nodes on the scale of the step, and q(x_{t-1}|x_t) by Bayes' rule there.
        nodes = (x_t + beta * score) / np.sqrt(s.alpha) + np.sqrt(beta) * around
        log_q = _log_normal(x_t, np.sqrt(s.alpha) * nodes, beta) + np.log(data.noised(before).density(nodes))
        log_q -= np.log(data.noised(s.kept).density(x_t))
        return float(beta * weight @ (np.exp(log_q) * (log_q - _log_normal(nodes, mean, spread * beta))))

    def limit(power: int = 2, **slip: float) -> float:
        """Of KL/β^power: differences of halved β take away one power after the other."""
        values = np.array([kl(beta, **slip) / beta**power for beta in betas])
        for order in range(1, len(values)):
            values = (2**order * values[1:] - values[:-1]) / (2**order - 1)
        return float(values[0])

    curvature = torch.autograd.functional.hessian(data.noised(before).log_density, torch.tensor(x_t)).numpy()
    one, first = np.eye(2), "lim KL/β_t², for a mixture, by quadrature"
    return Lines(
        {first: limit(), "= ¼‖I + ∇²log q(x_t)‖²": np.sum((one + curvature) ** 2) / 4},
        [
            Mutant("KL/β_t", {first: limit(power=1)}),
            Mutant("without the score: x_t/√α_t", {first: limit(drift=0.0)}),
            Mutant("half the score, as in a flow", {first: limit(drift=0.5)}),
            Mutant("½‖I + ∇²log q‖²", np.sum((one + curvature) ** 2) / 2),
            Mutant("I forgotten", np.sum(curvature**2) / 4),
            Mutant("‖I - ∇²log q‖²", np.sum((one - curvature) ** 2) / 4),
            Mutant("the trace for the norm", np.trace(one + curvature) ** 2 / 4),
        ],
    )


# The best that the bound can reach, and samples


@verifies(
    "ddpm-elbo-optimal",
    r"""\begin{aligned}
\mathbb E\mathcal L(\theta)&\le\mathbb E_{q(x_{0:T})}\Big[\log p(x_T)
+\sum_{t=1}^T\log\frac{q(x_{t-1}\mid x_t)}{q(x_t\mid x_{t-1})}\Big]\\
&=\mathbb E_{q(x_{0:T})}\Big[\log\frac{p(x_T)\,p_{\rm data}(x_0)}{q(x_T)}\Big]\\
&=-H(p_{\rm data})-\mathrm{KL}\big(q(x_T)\Vert p(x_T)\big)
\end{aligned}""",
    kind="inequality",
    route="quadrature",
    **GAUSSIANS,
)
def ddpm_elbo_optimal(rng: np.random.Generator) -> Lines:
    s, steps = _Schedule.random(rng, 3), range(1, 4)
    centre, factor = rng.normal(size=2), np.diag([0.6, 0.6]) + 0.3 * rng.normal(size=(2, 2))
    of_data, (noise, weight) = factor @ factor.T, gauss_hermite(8, 2)
    fade = np.sqrt(s.alpha_bar)
    mean = [f * centre for f in fade]
    loading = np.vstack([np.zeros(3), _noise_loading(s)])
    covariance = np.kron(np.outer(fade, fade), of_data) + np.kron(loading @ loading.T, np.eye(2))
    path = [centre + noise[:, :2] @ factor.T]
    for t in steps:
        path.append(np.sqrt(s.alpha[t]) * path[-1] + np.sqrt(s.beta[t]) * noise[:, 2 * t : 2 * t + 2])

    def at(t: int) -> slice:
        return slice(2 * t, 2 * t + 2)

    def marginal(t: int) -> Array:
        return multivariate_normal(mean[t], covariance[at(t), at(t)]).logpdf(path[t])

    def back(t: int, isotropic: bool = False) -> Array:
        """log q(x_{t-1}|x_t), or with its mean and the variance β̃_t (β_1 at t = 1)."""
        gain, left = _condition(covariance, at(t - 1), at(t))
        away = path[t - 1] - mean[t - 1] - (path[t] - mean[t]) @ gain.T
        if isotropic:
            variance = s.beta[1] if t == 1 else _Step(s.alpha_bar[t - 1], s.alpha[t]).variance
            return _log_normal(away, np.zeros(2), variance)
        return multivariate_normal(np.zeros(2), left).logpdf(away)

    def given_data(t: int) -> Array:
        if t == 1:
            return back(1)
        step = _Step(s.alpha_bar[t - 1], s.alpha[t])
        return _log_normal(path[t - 1], step.mean(path[t], path[0]), step.variance)

    def bound(of: Callable[[int], Array]) -> float:
        ratios = [of(t) - _log_normal(path[t], np.sqrt(s.alpha[t]) * path[t - 1], s.beta[t]) for t in steps]
        return float(weight @ (_standard(path[-1]) + sum(ratios)))

    last_law = mean[3], covariance[at(3), at(3)]
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * of_data)[1]
    kl = _kl_full(*last_law, np.zeros(2), np.eye(2))
    turned = _kl_full(np.zeros(2), np.eye(2), *last_law)
    given = float(weight @ _kl(fade[3] * path[0], 1 - s.alpha_bar[3], 0 * path[0], 1.0))
    best, line = "≤ Eℒ with q(x_{t-1}|x_t) for p_θ", "= E log p(x_T) p_data(x_0)/q(x_T)"
    ends = float(weight @ (_standard(path[-1]) + marginal(0) - marginal(3)))
    return Lines(
        {
            "Eℒ(θ), of steps with the right mean and σ_t² = β̃_t": bound(lambda t: back(t, isotropic=True)),
            best: bound(back),
            line: ends,
            "= -H(p_data) - KL(q(x_T)‖p(x_T)), closed forms": -entropy - kl,
        },
        [
            Mutant("q(x_{t-1}|x_t,x_0) for q(x_{t-1}|x_t)", {best: bound(given_data)}, erratum="E003-31"),
            Mutant("q(x_T)/p(x_T)", {line: ends - 2 * float(weight @ (_standard(path[-1]) - marginal(3)))}),
            Mutant("-H alone: no KL is left", -entropy, erratum="E002-14"),
            Mutant("-H + KL", -entropy + kl),
            Mutant("+H", entropy - kl),
            Mutant("KL the other way round", -entropy - turned),
            Mutant("E KL(q(x_T|x_0)‖p(x_T))", -entropy - given),
        ],
    )


@verifies(
    "ddpm-sampling",
    r"""\begin{aligned}
x_{t-1}&=\frac1{\sqrt{\alpha_t}}\Big(x_t-\frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\,\epsilon_\theta(x_t,t)\Big)
+\sigma_t\xi_t\\
&\quad\text{with }x_T\sim N(0,I),\quad\xi_t\sim N(0,I),\quad\xi_1=0
\end{aligned}""",
    kind="definition",
    route="Monte Carlo",
    reason="five standard errors of means and covariances of 20,000 samples",
)
def ddpm_sampling(rng: np.random.Generator) -> Lines:
    # Gaussian data, for which the best ε_θ is linear, and σ_t² = β_t.
    n, s, factor = 20_000, _Schedule.random(rng, 3), np.diag([0.8, 0.8]) + 0.2 * rng.normal(size=(2, 2))
    centre, of_data = rng.choice([-1, 1], 2) * rng.uniform(0.8, 1.2, 2), factor @ factor.T

    def spread(t: int) -> Array:
        """Cov(x_t)."""
        return s.alpha_bar[t] * of_data + (1 - s.alpha_bar[t]) * np.eye(2)

    def predict(x: Array, t: int) -> Array:
        """E[ε|x_t]: the noise is a part of x_t, by regression."""
        gain = np.sqrt(1 - s.alpha_bar[t]) * np.linalg.inv(spread(t))
        return (x - np.sqrt(s.alpha_bar[t]) * centre) @ gain.T

    def drift(x: Array, t: int, share: Callable | None = None, late: int = 0) -> Array:
        size = s.beta[t] / np.sqrt(1 - s.alpha_bar[t]) if share is None else share(t)
        return (x - size * predict(x, max(t - late, 1))) / np.sqrt(s.alpha[t])

    # The law of the samples, without ε: E[x_{t-1}|x_t] by regression, and the noise's variance added.
    mean, covariance = np.zeros(2), np.eye(2)
    for t in range(3, 0, -1):
        gain = np.sqrt(s.alpha[t]) * spread(t - 1) @ np.linalg.inv(spread(t))
        mean = np.sqrt(s.alpha_bar[t - 1]) * centre + gain @ (mean - np.sqrt(s.alpha_bar[t]) * centre)
        covariance = gain @ covariance @ gain.T + (t > 1) * s.beta[t] * np.eye(2)

    def samples(power: float = 0.5, first: int = 2, order: int = -1, **slip: Any) -> Array:
        x = rng.normal(size=(n, 2))
        for t in range(1, 4)[::order]:
            x = drift(x, t, **slip) + (t >= first) * s.beta[t] ** power * rng.normal(size=(n, 2))
        return moments(x.mean(0), np.cov(x.T))

    def moments(mean: Array, covariance: Array) -> Array:
        return np.append(mean, covariance[[0, 0, 1], [0, 1, 1]])

    a, b, c = covariance[[0, 0, 1], [0, 1, 1]]
    error = np.sqrt(np.array([a, c, 2 * a**2, a * c + b**2, 2 * c**2]) / n)
    line = "= of 20,000 samples"
    return Lines(
        {"mean and covariance of x_0, by E[x_{t-1}|x_t] step by step": moments(mean, covariance), line: samples()},
        [
            Mutant("no noise", {line: samples(first=9)}),
            Mutant("noise at t = 1 too", {line: samples(first=1)}),
            Mutant("σ_t² for σ_t", {line: samples(power=1.0)}, erratum="E001-06"),
            Mutant("+ε_θ", {line: samples(share=lambda t: -s.beta[t] / np.sqrt(1 - s.alpha_bar[t]))}),
            Mutant(
                "√β_t ε_θ: the noise of the last step",
                {line: samples(share=lambda t: np.sqrt(s.beta[t]))},
                erratum="E004-11",
            ),
            Mutant("β_t/(1-ᾱ_t)", {line: samples(share=lambda t: s.beta[t] / (1 - s.alpha_bar[t]))}),
            Mutant("ε_θ(x_t, t-1)", {line: samples(late=1)}),
            Mutant("t = 1, …, T", {line: samples(order=1)}),
        ],
        standard_errors={line: error},
    )


@verifies(
    "ddpm-time-embedding",
    r"""\begin{aligned}
e(t)&=\big(\sin\omega_it,\ \cos\omega_it\big)_{0\le i<m/2},\qquad\omega_i=10^{-4i/(m/2-1)}\\
e(s)^\top e(t)&=\sum_{i<m/2}\cos\omega_i(s-t)
\end{aligned}""",
    kind="identity",
    route="closed form",
    **SMALL_SUMS,
)
def ddpm_time_embedding(rng: np.random.Generator) -> Lines:
    m, later = 16, 250.0
    s, t = rng.integers(0, 700, size=(2, 4)).astype(float)

    def formula(
        steps: float = m / 2 - 1, low: float = -4.0, of: Callable = np.cos, sign: float = -1.0, each: float = 1.0
    ) -> Array:
        omega = 10 ** (low * np.arange(m // 2) / steps)
        return each * of(omega * (s + sign * t)[:, None]).sum(1)

    def package(shift: float) -> Array:
        first, second = (sinusoidal(torch.tensor(v + shift), m).numpy() for v in (s, t))
        return (first * second).sum(1)

    omega = np.geomspace(1, 1e-4, m // 2)
    sines = np.sin(omega * s[:, None]) * np.sin(omega * t[:, None])
    cosines = np.cos(omega * s[:, None]) * np.cos(omega * t[:, None])
    line, last = "= Σ_i (sin ω_i s sin ω_i t + cos ω_i s cos ω_i t)", "= Σ_i cos ω_i(s-t)"
    return Lines(
        {
            "e(s)·e(t) of four pairs, by the models' embedding": package(0.0),
            "= e(s+250)·e(t+250), by the same": package(later),
            line: (sines + cosines).sum(1),
            last: formula(),
        },
        [
            Mutant("cosines alone", {line: cosines.sum(1)}),
            Mutant("minus the sines", {line: (cosines - sines).sum(1)}),
            Mutant("s + t", formula(sign=1.0)),
            Mutant("sin ω_i(s-t)", formula(of=np.sin)),
            Mutant("i/(m/2): 10⁻⁴ is not reached", formula(steps=m / 2)),
            Mutant("down to 10⁻³", formula(low=-3.0)),
            Mutant("a mean over i", formula(each=2 / m)),
        ],
    )


# Time without steps


@dataclass(frozen=True)
class _Coordinates:
    """Data in the plane whose two coordinates are independent mixtures of Gaussians, seen at a signal-to-noise ratio ρ.

    y = √ρ x_0 + ε has the same law as x_t/√(1-ᾱ_t).
    """

    weights: Array  # (2, k)
    means: Array  # (2, k)
    scales: Array  # (2, k)

    @classmethod
    def random(cls, rng: np.random.Generator) -> "_Coordinates":
        return cls(rng.dirichlet([4, 4, 4], size=2), rng.uniform(-1.5, 1.5, (2, 3)), rng.uniform(0.3, 0.6, (2, 3)))

    def _noisy(self, rho: Array) -> tuple[Array, Array, Array]:
        """Nodes y of both coordinates for every ρ, their weights, and the density of every part: (n, 2, nodes[, k])."""
        rho = np.asarray(rho)[:, None, None]
        unit, weight = _line(1.0, 241)
        reach = 8.0 + 4 * np.sqrt(rho)
        y = reach * unit
        mean, scale = np.sqrt(rho) * self.means, np.sqrt(1 + rho * self.scales**2)
        away = (y[..., None] - mean[:, :, None]) / scale[:, :, None]
        density = (self.weights / scale)[:, :, None] * np.exp(-(away**2) / 2) / np.sqrt(2 * np.pi)
        return y, weight * reach, density

    def error(self, rho: Array, bias: float = 0.0) -> Array:
        """E‖x_0 - x̂‖² at every ρ, with x̂ = E[x_0|y], or off by as much as √ρ times a bias in both coordinates."""
        rho = np.asarray(rho)
        y, weight, parts = self._noisy(rho)
        ratio = rho[:, None, None]
        gain = np.sqrt(ratio) * self.scales**2 / (1 + ratio * self.scales**2)
        # Every part's E[x_0|y], and their mean.
        each = self.means[:, None] + gain[:, :, None] * (y[..., None] - np.sqrt(ratio)[..., None] * self.means[:, None])
        best = (parts * each).sum(-1) / parts.sum(-1)
        power = (self.weights * (self.means**2 + self.scales**2)).sum()
        return power - (weight * parts.sum(-1) * best**2).sum((1, 2)) + 2 * bias**2 * rho


# From t = 0 to 1: ways for log SNR(t) to fall from its highest to its lowest value.
WAYS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "straight": lambda t: t,
    "slow at both ends": lambda t: (1 - torch.cos(torch.pi * t)) / 2,
    "slow at first": lambda t: torch.expm1(2 * t) / torch.expm1(torch.tensor(2.0, dtype=torch.float64)),
}


@dataclass(frozen=True)
class _Time:
    """SNR(t) for 0 ≤ t ≤ 1, by one of the WAYS."""

    low: float
    high: float
    way: str = "straight"

    @classmethod
    def random(cls, rng: np.random.Generator) -> "_Time":
        return cls(rng.uniform(0.05, 0.1), rng.uniform(8.0, 12.0), "slow at both ends")

    def snr(self, t: Array) -> tuple[Array, Array]:
        """SNR(t), and SNR'(t) by autograd."""

        def of(t: torch.Tensor) -> torch.Tensor:
            return self.high * torch.exp(np.log(self.low / self.high) * WAYS[self.way](t))

        return of(torch.tensor(t)).numpy(), _gradient(of, t)

    def steps(self, count: int) -> Array:
        """SNR at t = 0, 1/T, …, 1."""
        return self.snr(np.linspace(0, 1, count + 1))[0]


def _riemann(rho: Array, error: Callable[[Array], Array]) -> float:
    """½ Σ_i (SNR(s) - SNR(t)) E‖x_0 - x̂‖², with the error at t."""
    return 0.5 * float(-np.diff(rho) @ error(rho[1:]))


def _by_kl(time: _Time, count: int, error: Callable[[Array], Array]) -> float:
    """Σ_i E KL(q(x_s|x_t,x_0)‖p_θ(x_s|x_t)), each from its ᾱ: the slope of μ̃ on x_0, over the variance."""
    i = np.arange(1, count + 1)
    (earlier, _), (later, _) = time.snr((i - 1) / count), time.snr(i / count)
    steps = [_Step(s, t / s) for s, t in zip(earlier / (1 + earlier), later / (1 + later), strict=True)]
    slopes = np.array([s.slopes[0] ** 2 / (2 * s.variance) for s in steps])
    return float(slopes @ error(later))


def _limit(values: Array) -> float:
    """Of a sequence with T doubled each time: differences take away 1/T, 1/T², …"""
    for order in range(1, len(values)):
        values = (2**order * values[1:] - values[:-1]) / (2**order - 1)
    return float(values[0])


def _integral(function: Callable[[Array], Array], low: float, high: float) -> float:
    """Over an interval, by Gauss-Legendre."""
    node, weight = np.polynomial.legendre.leggauss(60)
    return float((high - low) / 2 * weight @ function((high - low) / 2 * node + (high + low) / 2))


LIMITS = Tolerance(
    tolerance=1e-8, reason="the limit of sums of 8 to 512 terms, by extrapolation, and smooth integrals by quadrature"
)


@verifies(
    "vdm-discrete-limit",
    r"""\begin{aligned}
L_T&=\sum_{i=1}^T\mathbb E\,\mathrm{KL}\big(q(x_s\mid x_t,x_0)\Vert p_\theta(x_s\mid x_t)\big),
\qquad s=\frac{i-1}T,\quad t=\frac iT\\
&=\frac12\sum_{i=1}^T\big(\mathrm{SNR}(s)-\mathrm{SNR}(t)\big)\,\mathbb E\Vert x_0-\hat x_\theta(x_t,t)\Vert^2\\
&\ge L_{2T}\ge\lim_{T\to\infty}L_T=L_\infty\qquad\text{for }\hat x_\theta(x_t,t)=\mathbb E[x_0\mid x_t]
\end{aligned}""",
    kind="inequality",
    route="quadrature",
    **LIMITS,
)
def vdm_discrete_limit(rng: np.random.Generator) -> Lines:
    data, time = _Coordinates.random(rng), _Time.random(rng)
    counts = [8 * 2**k for k in range(7)]

    def biased(rho: Array) -> Array:
        return data.error(rho, bias=0.5)

    few, many = time.steps(8), time.steps(16)
    earlier = 0.5 * float(-np.diff(few) @ data.error(few[:-1]))
    first, second, third, fourth = "L_8, by KLs", "= ½ Σ_i (SNR(s)-SNR(t)) E‖x_0-E[x_0|x_t]‖²", "≥ L_16", "≥ lim L_T"
    l_8, l_16 = _riemann(few, data.error), _riemann(many, data.error)
    whole = _integral(data.error, time.low, time.high) / 2
    return Lines(
        {
            first: _by_kl(time, 8, data.error),
            second: l_8,
            third: l_16,
            fourth: _limit(np.array([_riemann(time.steps(c), data.error) for c in counts])),
            "= L_∞, an integral": whole,
        },
        [
            Mutant("½ forgotten", {second: 2 * l_8}),
            Mutant("the error at s for that at t", {second: earlier}),
            Mutant("SNR(t) - SNR(s)", {second: -l_8}),
            Mutant("the terms of L_{2T} twice as large", {third: 2 * l_16}),
            Mutant("more steps cost more: L_16, then L_8", {first: l_16, second: l_16, third: l_8}),
            Mutant(
                "for any x̂_θ",
                {first: _by_kl(time, 8, biased), second: _riemann(few, biased), third: _riemann(many, biased)},
            ),
            Mutant("L_8 for the limit", {fourth: l_8}),
            Mutant("no limit but 0", {fourth: 0.0}),
        ],
    )


@verifies(
    "vdm-continuous",
    r"""\begin{aligned}
L_\infty=\lim_{T\to\infty}L_T&=-\frac12\,\mathbb E\int_0^1\mathrm{SNR}'(t)\,
\Vert x_0-\hat x_\theta(x_t,t)\Vert^2\,dt\\
&=\frac12\,\mathbb E\int_{\mathrm{SNR}(1)}^{\mathrm{SNR}(0)}\Vert x_0-\hat x_\theta(x_\rho,\rho)\Vert^2\,d\rho,
\qquad\rho=\mathrm{SNR}(t)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **LIMITS,
)
def vdm_continuous(rng: np.random.Generator) -> Lines:
    # A denoiser that is not the best.
    data, time = _Coordinates.random(rng), _Time.random(rng)

    def error(rho: Array) -> Array:
        return data.error(rho, bias=0.2)

    def over_time(of: Callable[[Array, Array], Array] = lambda rho, slope: -slope / 2) -> float:
        def at(t: Array) -> Array:
            rho, slope = time.snr(t)
            return of(rho, slope) * error(rho)

        return _integral(at, 0.0, 1.0)

    def over_rho(factor: float = 0.5, low: float = time.low, of: Callable[[Array], Array] = error) -> float:
        return factor * _integral(of, low, time.high)

    line = "= -½ ∫ SNR'(t) E‖x_0-x̂_θ‖² dt"
    return Lines(
        {
            "lim L_T, by KLs": _limit(np.array([_by_kl(time, 8 * 2**k, error) for k in range(7)])),
            line: over_time(),
            "= ½ ∫ E‖x_0-x̂_θ‖² dρ": over_rho(),
        },
        [
            Mutant("½ forgotten", over_rho(factor=1.0)),
            Mutant("+SNR'(t)", {line: over_time(lambda rho, slope: slope / 2)}),
            Mutant("SNR(t) for SNR'(t)", {line: over_time(lambda rho, slope: rho / 2)}),
            Mutant("d log SNR/dt: the weight of ε", {line: over_time(lambda rho, slope: -slope / rho / 2)}),
            Mutant("weight 1", {line: over_time(lambda rho, slope: np.ones_like(rho))}),
            Mutant("down to SNR = 0", over_rho(low=0.0)),
            Mutant("dρ/ρ", over_rho(of=lambda rho: error(rho) / rho)),
        ],
    )


@verifies(
    "vdm-schedule-invariance",
    r"""\begin{aligned}
L_\infty&=-\frac12\,\mathbb E\int_0^1\mathrm{SNR}_a'(t)\,
\Vert x_0-\hat x_\theta(x_\rho,\rho)\Vert^2_{\rho=\mathrm{SNR}_a(t)}\,dt\\
&=-\frac12\,\mathbb E\int_0^1\mathrm{SNR}_b'(t)\,
\Vert x_0-\hat x_\theta(x_\rho,\rho)\Vert^2_{\rho=\mathrm{SNR}_b(t)}\,dt\\
&\quad\text{if }\mathrm{SNR}_a(0)=\mathrm{SNR}_b(0)\text{ and }\mathrm{SNR}_a(1)=\mathrm{SNR}_b(1)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **LIMITS,
)
def vdm_schedule_invariance(rng: np.random.Generator) -> Lines:
    data, ends = _Coordinates.random(rng), _Time.random(rng)
    by = {way: replace(ends, way=way) for way in WAYS}

    def loss(time: _Time, power: int = 1, seen: _Time | None = None) -> float:
        def at(t: Array) -> Array:
            (rho, slope), (level, _) = time.snr(t), (seen or time).snr(t)
            # The denoiser is told a level; at a wrong one it is off.
            error = data.error(rho, bias=0.2) + 0.1 * (np.log(rho / level)) ** 2
            return (-slope / 2 * error) ** power

        return _integral(at, 0.0, 1.0)

    a, b, c = by.values()
    return Lines(
        {
            "L_∞ = ½ ∫ E‖x_0-x̂_θ‖² dρ": _integral(lambda rho: data.error(rho, bias=0.2), ends.low, ends.high) / 2,
            "= by a log SNR that is a straight line": loss(a),
            "= by one that is slow at both ends": loss(b),
            "= by one that is slow at first": loss(c),
        },
        [
            Mutant("a finite number of steps: L_10", _riemann(c.steps(10), lambda rho: data.error(rho, bias=0.2))),
            Mutant("another SNR(0)", loss(replace(c, high=1.2 * c.high))),
            Mutant("another SNR(1)", loss(replace(c, low=2 * c.low))),
            Mutant("a denoiser that is told t, with the SNR of the first", loss(c, seen=a)),
            Mutant("the square of the integrand, hence its variance", loss(c, power=2)),
        ],
    )


@verifies(
    "vdm-mutual-information",
    r"""\begin{aligned}
\frac12\int_0^{\mathrm{SNR}(t)}\mathbb E\big\Vert x_0-\mathbb E[x_0\mid x_\rho]\big\Vert^2\,d\rho
&=\mathbb E\log\frac{q(x_t\mid x_0)}{q(x_t)}\\
&=H\big(q(x_t)\big)-\frac{d_x}2\log\big(2\pi e(1-\bar\alpha_t)\big)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **LIMITS,
)
def vdm_mutual_information(rng: np.random.Generator) -> Lines:
    data, rho = _Coordinates.random(rng), rng.uniform(4.0, 8.0)
    kept = rho / (1 + rho)
    nodes, weight = _line(8.0, 801)
    noise, share = gauss_hermite(1, 60)
    x_0, of_noise = nodes[:, None], share
    densities = []
    for w, m, s in zip(data.weights, data.means, data.scales, strict=True):
        densities.append((w * norm.pdf(nodes[:, None], m, s)).sum(1))

    def marginal(x: Array, i: int) -> Array:
        """q(x_t) of coordinate i."""
        spread = np.sqrt(kept * data.scales[i] ** 2 + 1 - kept)
        return (data.weights[i] * norm.pdf(x[..., None], np.sqrt(kept) * data.means[i], spread)).sum(-1)

    # Over x_0 and ε, of the two densities themselves.
    x_t = np.sqrt(kept) * x_0 + np.sqrt(1 - kept) * noise[:, 0]
    given = norm.logpdf(x_t, np.sqrt(kept) * x_0, np.sqrt(1 - kept))
    ratio = sum(weight * p @ ((given - np.log(marginal(x_t, i))) @ of_noise) for i, p in enumerate(densities))
    entropy = -sum(weight @ (m * np.log(m)) for m in (marginal(nodes, i) for i in (0, 1)))
    of_data = -sum(weight @ xlogy(p, p) for p in densities)

    def formula(left: float = 1 - kept, dims: float = 2.0, e: float = np.e) -> float:
        return entropy - dims / 2 * np.log(2 * np.pi * e * left)

    def area(factor: float = 0.5, low: float = 0.0, of: Callable[[Array], Array] = data.error) -> float:
        return factor * _integral(of, low, rho)

    first = "½ ∫ E‖x_0 - E[x_0|x_ρ]‖² dρ"
    return Lines(
        {first: area(), "= E log q(x_t|x_0)/q(x_t)": ratio, "= H(q(x_t)) - d/2 log 2πe(1-ᾱ_t)": formula()},
        [
            Mutant("½ forgotten", {first: area(factor=1.0)}),
            Mutant("from SNR = 1", {first: area(low=1.0)}),
            Mutant("a denoiser that is not the best", {first: area(of=lambda rho: data.error(rho, bias=0.1))}),
            Mutant("-H(x_0|x_t): what is still unknown", ratio - of_data),
            Mutant("ᾱ_t for 1-ᾱ_t", formula(left=kept)),
            Mutant("d forgotten", formula(dims=1.0)),
            Mutant("e forgotten", formula(e=1.0)),
        ],
    )


# The same as a hierarchy of latents


def _frozen_hvae(s: _Chain) -> HVAE:
    """The models' hierarchy, all of its networks linear, with q(x_t|x_{t-1}) for its encoder and p_θ for the rest."""
    levels = (2,) * s.steps
    model = HVAE((2,), levels, hidden=levels, depth=0, inference="bottom-up", likelihood="gaussian", batch_norm=False)
    model.double().eval()

    def gaussian(layer: torch.nn.Module, matrix: Array, shift: Array, variance: float) -> None:
        # Below the mean stands the number whose softplus is the variance.
        layer.get_parameter("weight").copy_(torch.tensor(np.vstack([matrix, np.zeros((2, 2))])))
        layer.get_parameter("bias").copy_(torch.tensor(np.append(shift, np.full(2, np.log(np.expm1(variance))))))

    with torch.no_grad():
        for t, head in zip(s.times, model.heads, strict=True):
            gaussian(head, np.sqrt(s.alpha[t]) * np.eye(2), np.zeros(2), s.beta[t])
        for t, down in zip(s.times[1:], model.down, strict=True):
            gaussian(down.get_submodule("0"), s.linear[t], s.shift[t], s.variance[t])
        model.decoder.get_parameter("0.weight").copy_(torch.tensor(s.linear[1]))
        model.decoder.get_parameter("0.bias").copy_(torch.tensor(s.shift[1]))
        model.log_scale.copy_(torch.tensor(0.5 * np.log(s.variance[1])))
    return model


@verifies(
    "hvae-link",
    r"""\begin{aligned}
z_t=x_t:\qquad p_\theta(x_0,x_{1:T})&=p(x_T)\,p_\theta(x_0\mid x_1)\prod_{t=2}^Tp_\theta(x_{t-1}\mid x_t)\\
q(x_{1:T}\mid x_0)&=q(x_1\mid x_0)\prod_{t=2}^Tq(x_t\mid x_{t-1})
\end{aligned}""",
    kind="identity",
    route="closed form",
    **GAUSSIANS,
)
def hvae_link(rng: np.random.Generator) -> Lines:
    s, x_0 = _Chain.random(rng, 3, curved=False), rng.normal(size=2)
    model = _frozen_hvae(s)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(int(rng.integers(2**31)))
        drawn = model.infer(torch.tensor(x_0)[None], samples=4)
        decoded = model.decode(drawn[0].z[:, 0]).log_prob(torch.tensor(x_0))
        joint = decoded + sum(level.p.log_prob(level.z).sum((1, 2)) for level in drawn)
        encoded = sum(level.q.log_prob(level.z).sum((1, 2)) for level in drawn)
    path = [np.tile(x_0, (4, 1)), *(level.z[:, 0].numpy() for level in drawn)]
    flat = np.concatenate(path, axis=1)

    def product(
        decoder: int = 1,
        top: int = 3,
        down: int = 1,
        up: Callable[[int], Array] = lambda t: path[t - 1],
        first: int = 2,
    ) -> Array:
        """log p_θ(x_0,x_{1:3}) and log q(x_{1:3}|x_0) of four paths."""
        p = _standard(path[top]) + s.back(1, path[0], path[decoder])
        p = p + sum(s.back(t, *(path[t - 1], path[t])[::down]) for t in (2, 3))
        q = s.forward(1, path[1], path[0]) + sum(s.forward(t, path[t], up(t)) for t in range(first, 4))
        return np.stack([p, q])

    whole = multivariate_normal(*s.as_gaussian()), multivariate_normal(*s.path_gaussian(x_0))
    return Lines(
        {
            "log p(x_0,x_{1:3}) and log q(x_{1:3}|x_0) of four paths, by the models' HVAE": np.stack([joint, encoded]),
            "= Gaussians of eight and of six numbers": np.stack([whole[0].logpdf(flat), whole[1].logpdf(flat[:, 2:])]),
            "= the products": product(),
        },
        [
            Mutant("q(x_t|x_t)", product(up=lambda t: path[t]), erratum="E002-04"),
            Mutant("q(x_t|x_0)", product(up=lambda t: path[0])),
            Mutant("p(x_0|x_T)", product(decoder=3)),
            Mutant("p(x_1) for p(x_T)", product(top=1)),
            Mutant("p(x_t|x_{t-1})", product(down=-1)),
            Mutant("q(x_2|x_1) forgotten", product(first=3)),
        ],
    )
