"""Small latent-variable models in which every quantity of a derivation can be computed.

A derivation that is written once for a `Latent` is checked on all three: sums over a table, and integrals
over models with a Gaussian and with a two-peaked posterior.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import integrate
from scipy.special import xlogy
from scipy.stats import multivariate_normal, norm

from companion.models.generative_problem import ProbabilisticPCA

Array = np.ndarray


@dataclass(frozen=True)
class Latent:
    """A latent-variable model at one observed x, on nodes z_i with ∫ f(z) dz ≈ Σ_i weight_i f(z_i).

    `log_evidence` and `log_posterior` come from another route than sums over the nodes. All arrays: (nodes,).
    """

    name: str
    nodes: Array
    weight: Array
    log_prior: Array
    log_likelihood: Array
    log_q: Array
    log_posterior: Array
    log_evidence: float

    @property
    def log_joint(self) -> Array:
        return self.log_prior + self.log_likelihood

    def integral(self, values: Array) -> float:
        """∫ f(z) dz, from the values of f at the nodes."""
        return float(self.weight @ values)

    def mean(self, log_density: Array, values: Array) -> float:
        """E[f(z)] under the density whose log at the nodes is given."""
        return float(self.weight @ (np.exp(log_density) * values))

    def kl(self, log_p: Array, log_q: Array) -> float:
        """KL(p‖q) as the integral that defines it."""
        return self.mean(log_p, log_p - log_q)

    def entropy(self, log_p: Array) -> float:
        return float(-self.weight @ xlogy(np.exp(log_p), np.exp(log_p)))


def table(rng: np.random.Generator, x: int = 0) -> Latent:
    """Two values of x, three of z; the joint is a random table."""
    joint = rng.dirichlet(np.full(6, 2.0)).reshape(2, 3)
    prior = joint.sum(axis=0)
    return Latent(
        name="2×3 table",
        nodes=np.arange(3.0)[:, None],
        weight=np.ones(3),
        log_prior=np.log(prior),
        log_likelihood=np.log(joint[x] / prior),
        log_q=np.log(rng.dirichlet(np.full(3, 2.0))),
        log_posterior=np.log(joint[x] / joint[x].sum()),
        log_evidence=float(np.log(joint[x].sum())),
    )


def plane(reach: float, points: int) -> tuple[Array, Array]:
    """Nodes (points², 2) and weights of the trapezoid rule on a square, which on densities that decay like a
    Gaussian is exact to rounding as soon as it resolves them."""
    axis = np.linspace(-reach, reach, points)
    nodes = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    return nodes, np.full(len(nodes), (axis[1] - axis[0]) ** 2)


def gauss_hermite(dim: int, points: int) -> tuple[Array, Array]:
    """Nodes (points^dim, dim) and weights with E[f(ε)] = Σ_i weight_i f(ε_i), ε ~ N(0, I), for polynomials f."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    grid = np.stack(np.meshgrid(*[nodes] * dim, indexing="ij"), -1).reshape(-1, dim)
    product = np.stack(np.meshgrid(*[weights / weights.sum()] * dim, indexing="ij"), -1).reshape(-1, dim).prod(1)
    return grid, product


def _random_q(rng: np.random.Generator, nodes: Array) -> Array:
    return norm.logpdf(nodes, rng.uniform(-1, 1, 2), rng.uniform(0.6, 1.2, 2)).sum(axis=1)


def linear_gaussian(rng: np.random.Generator) -> Latent:
    """z ~ N(0, I) in two dimensions, x | z ~ N(Wz, s²I) in three: evidence and posterior in closed form."""
    w, s, x = rng.normal(size=(3, 2)), rng.uniform(0.7, 1.2), rng.normal(size=3)
    nodes, weight = plane(9.0, 180)
    precision = np.eye(2) + w.T @ w / s**2
    posterior = multivariate_normal(np.linalg.solve(precision, w.T @ x) / s**2, np.linalg.inv(precision))
    return Latent(
        name="linear-Gaussian",
        nodes=nodes,
        weight=weight,
        log_prior=norm.logpdf(nodes).sum(axis=1),
        log_likelihood=norm.logpdf(x, nodes @ w.T, s).sum(axis=1),
        log_q=_random_q(rng, nodes),
        log_posterior=posterior.logpdf(nodes),
        log_evidence=float(multivariate_normal(np.zeros(3), w @ w.T + s**2 * np.eye(3)).logpdf(x)),
    )


def two_peaks(rng: np.random.Generator) -> Latent:
    """z ~ N(0, I) in two dimensions, x | z ~ N((z₁², z₂), s²I): the sign of z₁ leaves no trace in x, so that
    the posterior has a peak on each side."""
    s, x = rng.uniform(0.4, 0.6), np.array([rng.uniform(1.5, 2.5), rng.normal()])
    nodes, weight = plane(9.0, 360)

    # One dimension at a time: adaptive quadrature for z₁, the closed form for z₂.
    def density(z: float) -> float:
        return norm.pdf(z) * norm.pdf(x[0], z**2, s)

    peak = np.sqrt(x[0])
    first = integrate.quad(density, 0, 8, points=[peak], epsabs=0, epsrel=1e-13, limit=200)[0]
    log_evidence = float(np.log(2 * first) + norm.logpdf(x[1], 0, np.sqrt(1 + s**2)))
    log_prior = norm.logpdf(nodes).sum(axis=1)
    log_likelihood = norm.logpdf(x[0], nodes[:, 0] ** 2, s) + norm.logpdf(x[1], nodes[:, 1], s)
    return Latent(
        name="two peaks",
        nodes=nodes,
        weight=weight,
        log_prior=log_prior,
        log_likelihood=log_likelihood,
        log_q=_random_q(rng, nodes),
        log_posterior=log_prior + log_likelihood - log_evidence,
        log_evidence=log_evidence,
    )


def latents() -> list[Latent]:
    """Two random instances of each toy."""
    return [make(np.random.default_rng(seed)) for seed in range(2) for make in (table, linear_gaussian, two_peaks)]


def random_pca(rng: np.random.Generator, dim: int = 4, latent: int = 2) -> tuple[ProbabilisticPCA, torch.Tensor]:
    """A random probabilistic PCA in float64 and three points."""
    model = ProbabilisticPCA(dim, latent).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(rng.normal(size=(dim, latent))))
        model.mean.copy_(torch.tensor(rng.normal(size=dim)))
        model.log_scale.copy_(torch.tensor(rng.uniform(-0.5, 0.2)))
    return model, torch.tensor(rng.normal(size=(3, dim)))
