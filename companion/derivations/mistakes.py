"""The numbers behind the appendix "Common mistakes" that no check's wrong variant gives.

Each is a short computation of something that a common mistake gets wrong, with what it would be by the mistake.
`book/appendix/mistakes.yml` holds the mistakes themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import integrate
from scipy.stats import norm

from companion.derivations.toys import gauss_hermite
from companion.models.flows import RealNVP


@dataclass(frozen=True)
class Number:
    """`function` computes `what`, in Markdown. By the mistake it would be `claimed`; it is off by `margin` or more."""

    what: str
    function: Callable[[], float]
    claimed: float
    margin: float


NUMBERS: dict[str, Number] = {}


def number(what: str, *, claimed: float, margin: float) -> Callable[[Callable[[], float]], Callable[[], float]]:
    """Register a function, under its own name, as the computation of `what`."""

    def register(function: Callable[[], float]) -> Callable[[], float]:
        NUMBERS[function.__name__] = Number(what, function, claimed, margin)
        return function

    return register


@number(
    "Two linear autoencoders with equal reconstruction errors decode $N(0,1)$; ratio of the variances",
    claimed=1,
    margin=50,
)
def autoencoder_spread() -> float:
    """Two linear autoencoders reconstruct equally well: the ratio of the variances that they decode N(0,1) into."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3))
    first = np.linalg.svd(x - x.mean(0))[2][0]

    def error_and_spread(scale: float) -> tuple[float, float]:
        encoder, decoder = first * scale, first / scale
        return float(np.square(x - np.outer(x @ encoder, decoder)).mean()), float(decoder @ decoder)

    (error, spread), (other_error, other_spread) = error_and_spread(1.0), error_and_spread(10.0)
    np.testing.assert_allclose(error, other_error)
    return spread / other_spread


@number(
    "Dimensions that decoded points do not fill, for $d_x=3$, $d_z=2$ and a stochastic encoder", claimed=0, margin=1
)
def unfilled_dimensions() -> float:
    """d_x minus the rank of the covariance of what a linear decoder makes of a stochastic encoder's latents."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 2)) + 0.7 * rng.normal(size=(500, 2))
    decoded = z @ rng.normal(size=(2, 3))
    return float(decoded.shape[1] - np.linalg.matrix_rank(np.cov(decoded, rowvar=False)))


@number(
    "Nats from two peaks, three standard deviations from the middle, to the nearest Gaussian", claimed=0, margin=0.1
)
def two_peaks_from_a_gaussian_prior(m: float = 3.0) -> float:
    """KL in nats from ½N(-m,1) + ½N(m,1) to its best Gaussian, which a linear decoder of a Gaussian prior can reach."""

    def plogp(x: float) -> float:
        p = 0.5 * (norm.pdf(x, -m) + norm.pdf(x, m))
        return p * np.log(p)

    entropy = -2 * integrate.quad(plogp, 0, m + 9)[0]
    return 0.5 * np.log(2 * np.pi * np.e * (1 + m**2)) - entropy


@number(
    "Nats from the best diagonal Gaussian to a linear decoder's posterior, columns at cosine 0.8", claimed=0, margin=0.1
)
def posterior_gap(cosine: float = 0.8) -> float:
    """KL in nats from the best diagonal Gaussian to the posterior of a linear decoder, W's columns at an angle."""
    w = np.array([[1.0, cosine], [0.0, np.sqrt(1 - cosine**2)]])
    precision = np.eye(2) + w.T @ w / 0.1
    return float(0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1]))


@number("The largest $\\log\\sigma^2$ whose exponential is finite in single precision", claimed=np.inf, margin=1)
def largest_log_variance() -> float:
    """The largest log σ² whose exponential is finite in float32, by bisection."""
    low, high = 0.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        finite = torch.tensor(middle, dtype=torch.float32).exp().isfinite()
        low, high = (middle, high) if finite else (low, middle)
    return low


@number("Variance of an unbiased gradient without reparameterisation, over that with it", claimed=1, margin=5)
def gradient_variance_ratio() -> float:
    """Var of ∂E‖z‖²/∂μ₁ by the score function over that by reparameterisation, z ~ N(μ,I), by quadrature."""
    mean = np.array([0.7, -0.7])
    noise, weights = gauss_hermite(2, 5)
    z = mean + noise
    gradients = np.stack([np.square(z).sum(1) * noise[:, 0], 2 * z[:, 0]])
    np.testing.assert_allclose(gradients @ weights, 2 * mean[0])
    by_score, by_path = (gradients**2) @ weights - (gradients @ weights) ** 2
    return float(by_score / by_path)


@number("Hits of the line $y=1$ on $y=x^2$, which every vertical line meets once", claimed=1, margin=1)
def horizontal_hits() -> float:
    """How many real x have x² = 1."""
    return float(np.isreal(np.roots([1.0, 0.0, -1.0])).sum())


@number("Latent coordinates that a RealNVP in four dimensions finds again in $x$", claimed=0, margin=4)
def recovered_latents() -> float:
    """How many coordinates of z a RealNVP finds again in x, to four digits: d_z = d_x = 4."""
    generator = torch.Generator().manual_seed(3)
    flow = RealNVP((4,), couplings=4, hidden=(16,))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        z = torch.randn(100, 4, generator=generator)
        again, _ = flow.normalise(flow.generate(z)[0])
    return float((again - z).abs().amax(0).lt(1e-4).sum())


@number(
    "Relative error of $Z$ by 201 evaluations of a network of a million weights and one input", claimed=1, margin=0.999
)
def normaliser_error(nodes: int = 201) -> float:
    """Relative error of Z = ∫ e^{-E(x)} dx by `nodes` evaluations, E a network of one input and a million weights."""
    rng = np.random.default_rng(4)
    first, bias, second = rng.normal(size=1000), rng.normal(size=1000), rng.normal(size=(1000, 1000)) / 30
    last = rng.normal(size=1000) / 30

    def z(count: int) -> float:
        x = np.linspace(-10, 10, count)
        energy = x**2 / 2 + np.tanh(np.tanh(np.outer(x, first) + bias) @ second) @ last
        return float(np.exp(-energy).sum() * (x[1] - x[0]))

    return abs(z(nodes) / z(4 * nodes - 3) - 1)


@number(
    "One schedule, data around 2 and around −2: distance of the best reverse steps from $x_1=0$", claimed=0, margin=0.1
)
def reverse_means_apart() -> float:
    """How far the best reverse step from x_1 = 0 leads two data sets, N(2,1) and N(-2,1), apart: β_1 = 0.3 for both."""
    alpha = 0.7
    means = np.array([2.0, -2.0])
    # x_0 and x_1 = √α x_0 + √(1-α) ε have variance 1 and covariance √α.
    back = means + np.sqrt(alpha) * (0 - np.sqrt(alpha) * means)
    return float(back[0] - back[1])
