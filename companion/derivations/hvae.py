"""Checks for the chapter on hierarchical variational autoencoders."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from scipy import integrate, optimize
from scipy.special import logsumexp, xlogy
from scipy.stats import multivariate_normal, norm
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from companion.derivations.registry import Lines, Mutant, Tolerance, verifies
from companion.derivations.toys import gauss_hermite, plane
from companion.models.generative_problem import ProbabilisticPCA

Array = np.ndarray
Real = TypeVar("Real", float, Array)

FORMULA = Tolerance(tolerance=1e-11, reason="a few float64 operations on numbers up to a hundred")
ROUNDING = Tolerance(tolerance=1e-10, reason="float64 sums over up to 100,000 nodes, values up to about ten")


@dataclass(frozen=True)
class Tower:
    """A hierarchy z_T → … → z_1 → x at one observed x, every layer on the same n nodes with the same weights.

    A link is a matrix over (z_{t-1}, z_t), in this order, one for each t = 2, …, T; a product of factors is an
    array with one axis for each layer, z_1 first. So a slip of an index is an array put on the wrong axis.
    `log_posterior` and `log_evidence` come from another route than sums over the nodes.
    """

    name: str
    weight: Array  # (n,)
    log_decoder: Array  # (n,), log p(x|z_1)
    log_prior: Array  # (n,), log p(z_T)
    log_down: tuple[Array, ...]  # (n, n) each, log p(z_{t-1}|z_t)
    log_encoder: Array  # (n,), log q(z_1|x)
    log_up: tuple[Array, ...]  # (n, n) each, log q(z_t|z_{t-1})
    log_top: Array  # (n,), log q(z_T|x) of another q, from the top down
    log_back: tuple[Array, ...]  # (n, n) each, log q(z_{t-1}|z_t,x) of that q
    log_posterior: Array  # (n,) * T
    log_evidence: float

    @property
    def top(self) -> int:
        """T."""
        return len(self.log_down) + 1

    @property
    def links(self) -> range:
        """t = 2, …, T."""
        return range(2, self.top + 1)

    def on(self, values: Array, *layers: int) -> Array:
        """Values over some layers, in increasing order, as an array over all."""
        n = len(self.weight)
        return values.reshape([n if t in layers else 1 for t in range(1, self.top + 1)])

    def chain(self, bottom: Array, links: tuple[Array, ...], top: Array) -> Array:
        """The log of a product of one factor for z_1, one for each pair of neighbours and one for z_T."""
        pairs = sum(self.on(link, t - 1, t) for t, link in zip(self.links, links, strict=True))
        return self.on(bottom, 1) + pairs + self.on(top, self.top)

    @cached_property
    def log_joint(self) -> Array:
        return self.chain(self.log_decoder, self.log_down, self.log_prior)

    @cached_property
    def log_q(self) -> Array:
        return self.chain(self.log_encoder, self.log_up, np.zeros_like(self.weight))

    @cached_property
    def log_q_topdown(self) -> Array:
        return self.chain(np.zeros_like(self.weight), self.log_back, self.log_top)

    def integral(self, values: Array) -> float:
        """∫ f(z_{1:T}) dz_{1:T}."""
        for _ in range(self.top):
            values = np.tensordot(self.weight, np.broadcast_to(values, (len(self.weight), *values.shape[1:])), 1)
        return float(values)

    def mean(self, log_density: Array, values: Array) -> float:
        """E[f(z_{1:T})] under the density whose log is given."""
        return self.integral(np.exp(log_density) * values)

    def kl(self, log_p: Array, log_q: Array) -> float:
        return self.mean(log_p, log_p - log_q)

    def log_marginal(self, log_density: Array, *layers: int) -> Array:
        """The log-density of the named layers, as an array over all."""
        for axis in set(range(self.top)) - {t - 1 for t in layers}:
            weight = np.log(self.on(self.weight, axis + 1))
            log_density = logsumexp(log_density + weight, axis=axis, keepdims=True)
        return log_density

    def at(self, values: Array) -> Array:
        """An array over all layers, at eight nodes where the posterior is not small."""
        probable = np.flatnonzero(self.log_posterior > self.log_posterior.max() - 4)
        few = probable[np.linspace(0, len(probable) - 1, 8).astype(int)]
        return np.broadcast_to(values, self.log_posterior.shape).ravel()[few]

    # One layer at a time, without the product over all of them.

    @cached_property
    def q(self) -> list[Array]:
        """q(z_t|x) for t = 1, …, T."""
        marginals = [np.exp(self.log_encoder)]
        for link in self.log_up:
            marginals.append((self.weight * marginals[-1]) @ np.exp(link))
        return marginals

    @cached_property
    def q_topdown(self) -> list[Array]:
        """q(z_t|x) of the q from the top down, for t = 1, …, T."""
        marginals = [np.exp(self.log_top)]
        for link in reversed(self.log_back):
            marginals.insert(0, np.exp(link) @ (self.weight * marginals[0]))
        return marginals

    @cached_property
    def p(self) -> list[Array]:
        """p(z_t) for t = 1, …, T."""
        marginals = [np.exp(self.log_prior)]
        for link in reversed(self.log_down):
            marginals.insert(0, np.exp(link) @ (self.weight * marginals[0]))
        return marginals

    @cached_property
    def likelihood(self) -> list[Array]:
        """p(x|z_t) for t = 1, …, T."""
        messages = [np.exp(self.log_decoder)]
        for link in self.log_down:
            messages.append((self.weight * messages[-1]) @ np.exp(link))
        return messages

    @cached_property
    def log_true_up(self) -> tuple[Array, ...]:
        """log p(z_t|z_{t-1}), over (z_{t-1}, z_t), from the prior alone."""
        p = [np.log(m) for m in self.p]
        return tuple(link + p[t - 1] - p[t - 2][:, None] for t, link in zip(self.links, self.log_down, strict=True))

    def pair_mean(self, t: int, values: Array) -> float:
        """E_q[f(z_{t-1}, z_t)]."""
        return float((self.weight * self.q[t - 2]) @ (np.exp(self.log_up[t - 2]) * values) @ self.weight)


def table_tower(rng: np.random.Generator, layers: int) -> Tower:
    """Three values of every z_t and of x; every factor is a random table."""

    def conditional() -> Array:
        """log of a distribution over columns for each row."""
        return np.log(rng.dirichlet(np.full(3, 1.5), size=3))

    def vector() -> Array:
        return np.log(rng.dirichlet(np.full(3, 1.5)))

    down, up, back = ([conditional() for _ in range(layers - 1)] for _ in range(3))
    decoder, prior = conditional()[:, 0], vector()
    # The joint as one sum over indices, the evidence as a product of matrices.
    factors = [np.exp(decoder), *(np.exp(link.T) for link in down), np.exp(prior)]
    joint = np.einsum({2: "a,ab,b->ab", 3: "a,ab,bc,c->abc"}[layers], *factors)
    evidence = np.linalg.multi_dot(factors)
    return Tower(
        name=f"tables, T = {layers}",
        weight=np.ones(3),
        log_decoder=decoder,
        log_prior=prior,
        log_down=tuple(link.T for link in down),
        log_encoder=vector(),
        log_up=tuple(up),
        log_top=vector(),
        log_back=tuple(link.T for link in back),
        log_posterior=np.log(joint / evidence),
        log_evidence=float(np.log(evidence)),
    )


def _line(reach: float, points: int) -> tuple[Array, Array]:
    """Nodes and weights of the trapezoid rule, see `toys.plane`."""
    nodes = np.linspace(-reach, reach, points)
    return nodes, np.full(points, nodes[1] - nodes[0])


def _random_q(rng: np.random.Generator, z: Array, layers: int) -> dict[str, Any]:
    """Gaussian links of both kinds of q, each mean a line in the layer that is given."""

    def link(given: Array, of: Array) -> Array:
        return norm.logpdf(of, rng.uniform(0.3, 0.7) * given + rng.uniform(-0.3, 0.3), rng.uniform(0.7, 0.9))

    below, above = z[:, None], z[None, :]
    return dict(
        log_encoder=link(np.zeros(()), z),
        log_up=tuple(link(below, above) for _ in range(layers - 1)),
        log_top=link(np.zeros(()), z),
        log_back=tuple(link(above, below) for _ in range(layers - 1)),
    )


def linear_tower(rng: np.random.Generator, layers: int = 3) -> Tower:
    """z_{t-1} ~ N(a z_t + b, s²), x ~ N(w z_1, r²I) in the plane: evidence and posterior in closed form."""
    z, weight = _line(9.0, 46)
    slope, shift = rng.uniform(0.5, 0.8, layers - 1), rng.uniform(-0.4, 0.4, layers - 1)
    scale, w, r, x = rng.uniform(0.65, 0.85, layers - 1), rng.normal(size=2), rng.uniform(0.9, 1.2), rng.normal(size=2)

    # (z_1, …, z_T, x) is a linear function of independent noises, hence Gaussian.
    loading, mean = np.eye(layers + 2), np.zeros(layers + 2)
    for t in reversed(range(layers - 1)):
        loading[t] = slope[t] * loading[t + 1] + scale[t] * np.eye(layers + 2)[t]
        mean[t] = slope[t] * mean[t + 1] + shift[t]
    loading[layers:] = np.outer(w, loading[0]) + r * np.eye(layers + 2)[layers:]
    mean[layers:] = w * mean[0]
    covariance = loading @ loading.T
    hidden, seen = slice(layers), slice(layers, None)
    gain = np.linalg.solve(covariance[seen, seen], covariance[seen, hidden]).T
    posterior = multivariate_normal(
        mean[hidden] + gain @ (x - mean[seen]), covariance[hidden, hidden] - gain @ covariance[seen, hidden]
    )
    return Tower(
        name=f"linear-Gaussian, T = {layers}",
        weight=weight,
        log_decoder=norm.logpdf(x, z[:, None] * w, r).sum(axis=1),
        log_prior=norm.logpdf(z),
        log_down=tuple(norm.logpdf(z[:, None], a * z + b, s) for a, b, s in zip(slope, shift, scale, strict=True)),
        log_posterior=posterior.logpdf(np.stack(np.meshgrid(*[z] * layers, indexing="ij"), axis=-1)),
        log_evidence=float(multivariate_normal(mean[seen], covariance[seen, seen]).logpdf(x)),
        **_random_q(rng, z, layers),
    )


def curved_tower(rng: np.random.Generator) -> Tower:
    """z_2 ~ N(0,1), z_1 ~ N(a tanh z_2, s²), x ~ N(z_1², r²): a posterior with two peaks."""
    z, weight = _line(8.5, 160)
    a, s, r, x = rng.uniform(0.8, 1.2), rng.uniform(0.6, 0.8), rng.uniform(0.5, 0.7), rng.uniform(1.0, 2.0)
    log_decoder, log_prior = norm.logpdf(x, z**2, r), norm.logpdf(z)
    log_down = norm.logpdf(z[:, None], a * np.tanh(z), s)

    # The evidence by adaptive quadrature over z_2, and for each z_2 over z_1 by Gauss-Legendre on each half line.
    nodes, weights = np.polynomial.legendre.leggauss(120)
    z_1 = np.concatenate([2.75 * (nodes - 1), 2.75 * (nodes + 1)])
    likelihood = 2.75 * np.tile(weights, 2) * norm.pdf(x, z_1**2, r)

    def density(z_2: float) -> float:
        return norm.pdf(z_2) * (likelihood @ np.exp(-0.5 * ((z_1 - a * np.tanh(z_2)) / s) ** 2))

    outer = integrate.quad(density, -9, 9, epsabs=0, epsrel=1e-12, limit=200)[0]
    log_evidence = float(np.log(outer / (s * np.sqrt(2 * np.pi))))
    return Tower(
        name="curved, T = 2",
        weight=weight,
        log_decoder=log_decoder,
        log_prior=log_prior,
        log_down=(log_down,),
        log_posterior=log_decoder[:, None] + log_down + log_prior - log_evidence,
        log_evidence=log_evidence,
        **_random_q(rng, z, 2),
    )


@cache
def towers() -> list[Tower]:
    """Two random instances of each toy."""
    makers = (lambda rng: table_tower(rng, 2), lambda rng: table_tower(rng, 3), linear_tower, curved_tower)
    return [make(np.random.default_rng([4, seed])) for seed in range(2) for make in makers]


def _exact(toy: Tower) -> Tower:
    """The same tower with its true posterior for q."""
    first = toy.log_decoder + np.log(toy.p[0]) - toy.log_evidence
    return replace(toy, log_encoder=first, log_up=toy.log_true_up)


def _diagonals(links: tuple[Array, ...]) -> tuple[Array, ...]:
    """Links that read the layer above where they should read the layer below."""
    return tuple(np.broadcast_to(np.diag(link), link.shape) for link in links)


@verifies(
    "hvae-joint",
    r"p_\theta(x,z_{1:T})=p(z_T)\,p_\theta(x\mid z_1)\prod_{t=2}^Tp_\theta(z_{t-1}\mid z_t)",
    kind="definition",
    route="quadrature",
    instances=towers,
    **ROUNDING,
)
def hvae_joint(toy: Tower) -> Lines:
    def with_evidence(log_joint: Array) -> Array:
        return np.append(toy.at(log_joint), np.log(toy.integral(np.exp(log_joint))))

    flat = np.zeros_like(toy.weight)
    decoder_at_top = toy.chain(flat, toy.log_down, toy.log_prior + toy.log_decoder)
    return Lines(
        {
            "log p(x,z) at eight z, and log p(x)": np.append(
                toy.at(toy.log_posterior + toy.log_evidence), toy.log_evidence
            ),
            "= log of the product there, and of its integral": with_evidence(toy.log_joint),
        },
        [
            Mutant("p(x|z_T)", with_evidence(decoder_at_top)),
            Mutant("p(z_t|z_{t-1})", with_evidence(toy.chain(toy.log_decoder, toy.log_true_up, toy.log_prior))),
            Mutant(
                "p(z_1) for p(z_T)",
                with_evidence(toy.log_joint - toy.on(toy.log_prior, toy.top) + toy.on(toy.log_prior, 1)),
            ),
            Mutant(
                "the product from t = 3",
                with_evidence(toy.chain(toy.log_decoder, (0 * toy.log_down[0], *toy.log_down[1:]), toy.log_prior)),
            ),
        ],
    )


@verifies(
    "hvae-posterior",
    r"q_\phi(z_{1:T}\mid x)=q_\phi(z_1\mid x)\prod_{t=2}^Tq_\phi(z_t\mid z_{t-1})",
    kind="definition",
    route="quadrature",
    instances=towers,
    **ROUNDING,
)
def hvae_posterior(toy: Tower) -> Lines:
    centre = np.argsort(toy.q[-1])[-3:]

    def mass_and_top(log_q: Array) -> Array:
        """∫ q dz_{1:T}, and q(z_T|x) at three z_T."""
        return np.append(toy.integral(np.exp(log_q)), np.exp(toy.log_marginal(log_q, toy.top)).ravel()[centre])

    def product(links: tuple[Array, ...]) -> Array:
        return mass_and_top(toy.chain(toy.log_encoder, links, np.zeros_like(toy.weight)))

    return Lines(
        {
            "1, and q(z_T|x) layer by layer": np.append(1.0, toy.q[-1][centre]),
            "= ∫ of the product over z_{1:T}, and over z_{1:T-1}": product(toy.log_up),
        },
        [
            Mutant("q(z_t|z_t)", product(_diagonals(toy.log_up)), erratum="E002-04"),
            Mutant("q(z_{t-1}|z_t)", product(tuple(link.T for link in toy.log_up))),
            Mutant("the product from t = 3", product((0 * toy.log_up[0], *toy.log_up[1:]))),
            Mutant("q(z_t|x), layers independent", product(tuple(np.tile(np.log(m), (len(m), 1)) for m in toy.q[:-1]))),
        ],
    )


@verifies(
    "hvae-true-posterior",
    r"""\begin{aligned}
p_\theta(z_{1:T}\mid x)&=p_\theta(z_1\mid x)\prod_{t=2}^Tp_\theta(z_t\mid z_{1:t-1},x)\\
&=p_\theta(z_1\mid x)\prod_{t=2}^Tp_\theta(z_t\mid z_{t-1})
\end{aligned}""",
    kind="identity",
    route="quadrature",
    instances=towers,
    **ROUNDING,
)
def hvae_true_posterior(toy: Tower) -> Lines:
    up_to = [toy.log_marginal(toy.log_joint, *range(1, t + 1)) for t in range(toy.top + 1)]
    chain_rule = sum(after - before for before, after in pairwise(up_to))
    flat = np.zeros_like(toy.weight)
    # Each factor from one route of its own: p(z_1|x) by Bayes, p(z_t|z_{t-1}) from the prior alone.
    first = toy.log_decoder + np.log(toy.p[0]) - toy.log_evidence

    def bottom_up(first: Array, links: tuple[Array, ...]) -> Array:
        return toy.at(toy.chain(first, links, flat))

    marginals = tuple(np.tile(np.log(m), (len(m), 1)) for m in toy.p[1:])
    return Lines(
        {
            "log p(z_{1:T}|x) at eight z": toy.at(toy.log_posterior),
            "= log p(z_1|x) Π p(z_t|z_{1:t-1},x)": toy.at(chain_rule),
            "= log p(z_1|x) Π p(z_t|z_{t-1})": bottom_up(first, toy.log_true_up),
        },
        [
            Mutant("p(z_t|z_t)", bottom_up(first, _diagonals(toy.log_true_up)), erratum="E002-04"),
            Mutant("p(z_{t-1}|z_t)", bottom_up(first, toy.log_down)),
            Mutant("the prior p(z_t) for p(z_t|z_{t-1})", bottom_up(first, marginals)),
            Mutant("p(z_1) for p(z_1|x)", bottom_up(np.log(toy.p[0]), toy.log_true_up)),
            Mutant("p(x|z_1) for p(z_1|x)", bottom_up(toy.log_decoder, toy.log_true_up)),
        ],
    )


@verifies(
    "hvae-true-posterior-topdown",
    r"""\begin{aligned}
p_\theta(z_{1:T}\mid x)&=p_\theta(z_T\mid x)\prod_{t=2}^Tp_\theta(z_{t-1}\mid z_t,x)\\
p_\theta(z_{t-1}\mid z_t,x)&=\frac{p_\theta(z_{t-1}\mid z_t)\,p_\theta(x\mid z_{t-1})}{p_\theta(x\mid z_t)}
\end{aligned}""",
    kind="identity",
    route="quadrature",
    instances=towers,
    **ROUNDING,
)
def hvae_true_posterior_topdown(toy: Tower) -> Lines:
    flat, likelihood = np.zeros_like(toy.weight), [toy.log_decoder, *(np.log(m) for m in toy.likelihood[1:])]
    top = toy.log_prior + likelihood[-1] - toy.log_evidence
    # From the joint: p(z_T|x) and every p(z_{t-1}|z_t,x) as ratios of marginals.
    pairs = sum(toy.log_marginal(toy.log_joint, t - 1, t) for t in toy.links)
    inner = sum(toy.log_marginal(toy.log_joint, t) for t in range(2, toy.top))
    by_marginals = pairs - inner - toy.log_marginal(toy.log_joint)

    def top_down(top: Array, links: list[Array]) -> Array:
        return toy.at(toy.chain(flat, tuple(links), top))

    def bayes(below: int, above: int) -> list[Array]:
        """p(z_{t-1}|z_t) p(x|z_{t-below}) / p(x|z_{t-above}), evaluated at z_{t-1} and z_t."""
        return [
            link + likelihood[max(t - below, 1) - 1][:, None] - likelihood[max(t - above, 1) - 1]
            for t, link in zip(toy.links, toy.log_down, strict=True)
        ]

    return Lines(
        {
            "log p(z_{1:T}|x) at eight z": toy.at(toy.log_posterior),
            "= log p(z_T|x) Π p(z_{t-1}|z_t,x)": toy.at(by_marginals),
            "= the same by Bayes' rule in every layer": top_down(top, bayes(1, 0)),
        },
        [
            Mutant("p(z_{t-1}|z_t), without x", top_down(top, list(toy.log_down))),
            Mutant("p(z_T) for p(z_T|x)", top_down(toy.log_prior, bayes(1, 0))),
            Mutant("divided by p(x|z_{t-1}) at z_t", top_down(top, bayes(1, 1))),
            Mutant("times p(x|z_t) at z_{t-1}", top_down(top, bayes(0, 0))),
        ],
    )


@verifies(
    "hvae-elbo",
    r"""\begin{aligned}
\log p_\theta(x)&=\log\int p_\theta(x,z_{1:T})\,dz_{1:T}\\
&=\log\int q_\phi(z_{1:T}\mid x)\,\frac{p_\theta(x,z_{1:T})}{q_\phi(z_{1:T}\mid x)}\,dz_{1:T}\\
&=\log\mathbb E_{q_\phi(z_{1:T}\mid x)}\left[\frac{p_\theta(x,z_{1:T})}{q_\phi(z_{1:T}\mid x)}\right]\\
&\ge\mathbb E_{q_\phi(z_{1:T}\mid x)}\left[\log\frac{p_\theta(x,z_{1:T})}{q_\phi(z_{1:T}\mid x)}\right]
=:\mathcal L(\theta,\phi;x)
\end{aligned}""",
    kind="inequality",
    route="quadrature",
    instances=towers,
    **ROUNDING,
)
def hvae_elbo(toy: Tower) -> Lines:
    log_w = toy.log_joint - toy.log_q
    second, last = "= log ∫ q p(x,z_{1:T})/q", "≥ E_q[log p(x,z_{1:T})/q]"
    # The first integral one layer at a time.
    by_layers = toy.weight @ (toy.likelihood[-1] * np.exp(toy.log_prior))
    only_first = toy.log_joint - toy.on(toy.log_encoder, 1)
    return Lines(
        {
            "log p(x)": toy.log_evidence,
            "= log ∫ p(x,z_{1:T})": np.log(by_layers),
            second: np.log(toy.integral(np.exp(toy.log_q) * np.exp(log_w))),
            "= log E_q[p(x,z_{1:T})/q]": np.log(toy.mean(toy.log_q, np.exp(log_w))),
            last: toy.mean(toy.log_q, log_w),
        },
        [
            Mutant(
                "the inequality of a convex function",
                {"log p(x)": toy.mean(toy.log_q, log_w), last: np.log(by_layers)},
                erratum="E000-05",
            ),
            Mutant("the ratio upside down", toy.mean(toy.log_q, -log_w)),
            Mutant("expectation under the posterior", toy.mean(toy.log_posterior, log_w)),
            Mutant("divided by q(z_1|x) alone", {second: np.log(toy.mean(toy.log_q, np.exp(only_first)))}),
        ],
    )


@verifies(
    "hvae-gap",
    r"""\begin{aligned}
\log p_\theta(x)-\mathcal L(\theta,\phi;x)
&=\mathbb E_{q_\phi}\left[\log\frac{q_\phi(z_{1:T}\mid x)}{p_\theta(z_{1:T}\mid x)}\right]\\
&=\mathbb E_{q_\phi}\left[\log\frac{q_\phi(z_1\mid x)}{p_\theta(z_1\mid x)}
+\sum_{t=2}^T\log\frac{q_\phi(z_t\mid z_{t-1})}{p_\theta(z_t\mid z_{t-1})}\right]\\
&=\mathrm{KL}(q_\phi(z_1\mid x)\Vert p_\theta(z_1\mid x))\\
&\quad+\sum_{t=2}^T\mathbb E_{q_\phi(z_{t-1}\mid x)}\left[
\mathrm{KL}(q_\phi(z_t\mid z_{t-1})\Vert p_\theta(z_t\mid z_{t-1}))\right]
\end{aligned}""",
    kind="identity",
    route="quadrature",
    instances=towers,
    **ROUNDING,
)
def hvae_gap(toy: Tower) -> Lines:
    w, q = toy.weight, toy.q
    first_p = toy.log_decoder + np.log(toy.p[0]) - toy.log_evidence
    first = float(w @ (q[0] * (toy.log_encoder - first_p)))
    ratios = tuple(up - true for up, true in zip(toy.log_up, toy.log_true_up, strict=True))

    def layers(outer: Callable[[int], Array], inner: Callable[[int], Array] | None = None) -> float:
        """Σ_t of the KLs over z_t, averaged over z_{t-1} with the density `outer(t)`."""
        kls = {t: (np.exp(toy.log_up[t - 2]) * ratios[t - 2]) @ w if inner is None else inner(t) for t in toy.links}
        return sum(float((w * outer(t)) @ kl) for t, kl in kls.items())

    def reverse(t: int) -> Array:
        return (np.exp(toy.log_true_up[t - 2]) * -ratios[t - 2]) @ w

    def to_prior(t: int) -> Array:
        return (np.exp(toy.log_up[t - 2]) * (toy.log_up[t - 2] - np.log(toy.p[t - 1]))) @ w

    right = layers(lambda t: q[t - 2])
    last = "= KL for z_1 + Σ_t E[KL for z_t]"
    return Lines(
        {
            "log p(x) - L": toy.log_evidence - toy.mean(toy.log_q, toy.log_joint - toy.log_q),
            "= E_q[log q(z_{1:T}|x)/p(z_{1:T}|x)]": toy.kl(toy.log_q, toy.log_posterior),
            "= E_q[log q/p for z_1 + Σ_t log q/p for z_t]": toy.mean(
                toy.log_q, toy.chain(toy.log_encoder - first_p, ratios, np.zeros_like(w))
            ),
            last: first + right,
        },
        [
            Mutant("the first layer's KL alone", first),
            Mutant("averaged over z_t, not z_{t-1}", first + layers(lambda t: q[t - 1])),
            Mutant(
                "averaged over the true posterior",
                first + layers(lambda t: toy.likelihood[t - 2] * toy.p[t - 2] / np.exp(toy.log_evidence)),
            ),
            Mutant("KLs the other way round", first + layers(lambda t: q[t - 2], reverse)),
            Mutant("KL to the prior p(z_t)", first + layers(lambda t: q[t - 2], to_prior), erratum="E000-06"),
        ],
    )


@verifies(
    "hvae-elbo-layers",
    r"""\begin{aligned}
\mathcal L(\theta,\phi;x)&=\mathbb E_{q_\phi}\bigg[\log p_\theta(x\mid z_1)+\log p(z_T)\\
&\quad+\sum_{t=2}^T\log p_\theta(z_{t-1}\mid z_t)-\sum_{t=1}^T\log q_\phi(z_t\mid z_{t-1})\bigg],
\qquad z_0\equiv x\\
&=\mathbb E_{q_\phi}\left[\log p_\theta(x\mid z_1)\right]
+\sum_{t=2}^T\mathbb E_{q_\phi}\left[\log\frac{p_\theta(z_{t-1}\mid z_t)}{q_\phi(z_{t-1}\mid z_{t-2})}\right]\\
&\quad-\mathbb E_{q_\phi}\left[\log\frac{q_\phi(z_T\mid z_{T-1})}{p(z_T)}\right]\\
&=\mathbb E_{q_\phi}\left[\log p_\theta(x\mid z_1)\right]
+\sum_{t=2}^T\mathbb E_{q_\phi}\left[\log\frac{p_\theta(z_{t-1}\mid z_t)}{q_\phi(z_{t-1}\mid z_{t-2})}\right]\\
&\quad-\mathbb E_{q_\phi(z_{T-1}\mid x)}\left[\mathrm{KL}(q_\phi(z_T\mid z_{T-1})\Vert p(z_T))\right]
\end{aligned}""",
    kind="identity",
    route="quadrature",
    instances=towers,
    **ROUNDING,
)
def hvae_elbo_layers(toy: Tower) -> Lines:
    w, q, flat = toy.weight, toy.q, np.zeros_like(toy.weight)
    reconstruction = float(w @ (q[0] * toy.log_decoder))
    first_entropy = float(w @ (q[0] * toy.log_encoder))
    # E_q[log q(z_t|z_{t-1})] for t = 1, …, T and E_q[log p(z_{t-1}|z_t)] for t = 2, …, T, two layers at a time.
    log_q = [first_entropy, *(toy.pair_mean(t, toy.log_up[t - 2]) for t in toy.links)]
    log_p = [toy.pair_mean(t, toy.log_down[t - 2]) for t in toy.links]
    log_top = float(w @ (q[-1] * toy.log_prior))
    inner = sum(p - q for p, q in zip(log_p, log_q[:-1], strict=True))
    kl = np.exp(toy.log_up[-1]) * (toy.log_up[-1] - toy.log_prior) @ w
    top_kl = float((w * q[-2]) @ kl)
    # The same terms on the product over all layers, and with q one layer off.
    on_all = toy.chain(toy.log_decoder, toy.log_down, toy.log_prior) - toy.chain(toy.log_encoder, toy.log_up, flat)
    shifted = toy.mean(
        toy.log_q,
        sum(toy.on(toy.log_down[t - 2], t - 1, t) - toy.on(toy.log_up[t - 2], t - 1, t) for t in toy.links),
    )
    first, second = "= E_q[Σ of all logs]", "= reconstruction + middle layers - E_q[log q(z_T|z_{T-1})/p(z_T)]"
    third = "= reconstruction + middle layers - E[KL at the top]"
    return Lines(
        {
            "L": toy.log_evidence - toy.kl(toy.log_q, toy.log_posterior),
            first: toy.mean(toy.log_q, on_all),
            second: reconstruction + inner - (log_q[-1] - log_top),
            third: reconstruction + inner - top_kl,
        },
        [
            Mutant("q(z_t|z_{t-1}) for q(z_{t-1}|z_{t-2})", reconstruction + shifted - top_kl),
            Mutant(
                "q(z_t|z_t)",
                {first: toy.mean(toy.log_q, toy.log_joint - toy.chain(toy.log_encoder, _diagonals(toy.log_up), flat))},
                erratum="E002-04",
            ),
            Mutant("the top's KL averaged over q(z_T|x)", reconstruction + inner - float((w * q[-1]) @ kl)),
            Mutant("the top's KL added", reconstruction + inner + top_kl, erratum="E001-01"),
            Mutant("the middle layers forgotten", reconstruction - top_kl),
        ],
    )


@verifies(
    "hvae-middle-term",
    r"""\begin{aligned}
&\mathbb E_{q_\phi}\left[\log\frac{q_\phi(z_t\mid z_{t-1})}{p_\theta(z_t\mid z_{t+1})}\right]\\
&\quad=\mathbb E_{q_\phi}\left[\log\frac{q_\phi(z_t\mid z_{t-1},z_{t+1})}{p_\theta(z_t\mid z_{t+1})}
-\log\frac{q_\phi(z_t\mid z_{t-1},z_{t+1})}{q_\phi(z_t\mid z_{t-1})}\right]\\
&\quad=\mathbb E_{q_\phi}\left[\mathrm{KL}(q_\phi(z_t\mid z_{t-1},z_{t+1})\Vert p_\theta(z_t\mid z_{t+1}))\right]\\
&\quad\quad-I_{q_\phi}(z_t;z_{t+1}\mid z_{t-1})\\
&\quad\ge-I_{q_\phi}(z_t;z_{t+1}\mid z_{t-1})
\end{aligned}""",
    kind="inequality",
    route="quadrature",
    instances=lambda: [*towers(), *map(_exact, towers())],
    **ROUNDING,
)
def hvae_middle_term(toy: Tower) -> Lines:
    w, inside = toy.weight, range(1, toy.top)
    up = [toy.on(toy.log_encoder, 1), *(toy.on(link, t - 1, t) for t, link in zip(toy.links, toy.log_up, strict=True))]
    down = [toy.on(link, t - 1, t) for t, link in zip(toy.links, toy.log_down, strict=True)]

    def neighbours(t: int) -> list[int]:
        return [s for s in (t - 1, t + 1) if s >= 1]

    def outer(t: int) -> Array:
        """log q(z_{t-1}, z_{t+1}|x)."""
        return toy.log_marginal(toy.log_q, *neighbours(t))

    def conditional(t: int) -> Array:
        """log q(z_t|z_{t-1}, z_{t+1})."""
        return toy.log_marginal(toy.log_q, *neighbours(t), t) - outer(t)

    def mean_kl(t: int, log_q: Array) -> float:
        """KL over z_t at every z_{t-1} and z_{t+1}, then the mean over these."""
        inner = (toy.on(w, t) * np.exp(log_q) * (log_q - down[t - 1])).sum(t - 1, keepdims=True)
        return toy.mean(toy.log_q, inner)

    def entropy(weights: Array, transition: Array) -> float:
        """H of the next layer given this one."""
        return -float(weights @ xlogy(transition, transition) @ w)

    def information(t: int) -> tuple[float, float]:
        """I(z_t; z_{t+1}|z_{t-1}) and I(z_t; z_{t+1}), from entropies, two layers at a time."""
        step = np.exp(toy.log_up[t - 1])
        of_noise = entropy(w * toy.q[t - 1], step)
        marginal = -float(w @ xlogy(toy.q[t], toy.q[t]))
        two_steps = marginal if t == 1 else entropy(w * toy.q[t - 2], (np.exp(toy.log_up[t - 2]) * w) @ step)
        return two_steps - of_noise, marginal - of_noise

    conditionals = {t: conditional(t) for t in inside}
    kl = np.array([mean_kl(t, conditionals[t]) for t in inside])
    i_conditional, i_plain = np.array([information(t) for t in inside]).T
    first, second = "= E_q[log q(z_t|both)/p(z_t|z_{t+1}) - log q(z_t|both)/q(z_t|z_{t-1})]", "= E_q[KL] - I"
    last = "≥ -I"
    return Lines(
        {
            "E_q[log q(z_t|z_{t-1})/p(z_t|z_{t+1})], t = 1, …, T-1": np.array(
                [toy.mean(toy.log_q, up[t - 1] - down[t - 1]) for t in inside]
            ),
            first: np.array(
                [
                    toy.mean(toy.log_q, conditionals[t] - down[t - 1])
                    - toy.mean(toy.log_q, conditionals[t] - up[t - 1])
                    for t in inside
                ]
            ),
            second: kl - i_conditional,
            last: -i_conditional,
        },
        [
            Mutant("E[KL(q(z_t|z_{t-1})‖p(z_t|z_{t+1}))]", {second: np.array([mean_kl(t, up[t - 1]) for t in inside])}),
            Mutant("without the information", {second: kl}),
            Mutant("the information added", {second: kl + i_conditional}),
            Mutant("I(z_t;z_{t+1}), not given z_{t-1}", {second: kl - i_plain}),
            Mutant("never negative", {last: np.zeros(len(inside))}),
        ],
    )


@verifies(
    "hvae-elbo-topdown",
    r"""\begin{aligned}
\mathcal L(\theta,\phi;x)&=\mathbb E_{q_\phi}\bigg[\log p_\theta(x\mid z_1)+\log\frac{p(z_T)}{q_\phi(z_T\mid x)}\\
&\quad\quad+\sum_{t=2}^T\log\frac{p_\theta(z_{t-1}\mid z_t)}{q_\phi(z_{t-1}\mid z_t,x)}\bigg]\\
&=\mathbb E_{q_\phi}\left[\log p_\theta(x\mid z_1)\right]-\mathrm{KL}(q_\phi(z_T\mid x)\Vert p(z_T))\\
&\quad-\sum_{t=2}^T\mathbb E_{q_\phi(z_t\mid x)}\left[
\mathrm{KL}(q_\phi(z_{t-1}\mid z_t,x)\Vert p_\theta(z_{t-1}\mid z_t))\right]
\end{aligned}""",
    kind="identity",
    route="quadrature",
    instances=towers,
    **ROUNDING,
)
def hvae_elbo_topdown(toy: Tower) -> Lines:
    reconstruction, kls = _topdown_terms(toy)
    w, q = toy.weight, toy.q_topdown
    ratios = [back - down for back, down in zip(toy.log_back, toy.log_down, strict=True)]
    inside = toy.chain(toy.log_decoder, tuple(-r for r in ratios), toy.log_prior - toy.log_top)

    def inner(t: int) -> Array:
        """The KL over z_{t-1} at every z_t."""
        return w @ (np.exp(toy.log_back[t - 2]) * ratios[t - 2])

    at_below = sum(float((w * q[t - 2]) @ inner(t)) for t in toy.links)
    under_prior = sum(float((w * toy.p[t - 1]) @ inner(t)) for t in toy.links)
    reverse = sum(float((w * q[t - 1]) @ (w @ (np.exp(toy.log_down[t - 2]) * -ratios[t - 2]))) for t in toy.links)
    return Lines(
        {
            "L": toy.log_evidence - toy.kl(toy.log_q_topdown, toy.log_posterior),
            "= E_q[log p(x|z_1) + Σ of the layers' log p/q]": toy.mean(toy.log_q_topdown, inside),
            "= E_q[log p(x|z_1)] - KL at the top - Σ_t E[KL]": reconstruction - kls.sum(),
        },
        [
            Mutant("averaged over z_{t-1}, not z_t", reconstruction - kls[-1] - at_below),
            Mutant("averaged over the prior p(z_t)", reconstruction - kls[-1] - under_prior),
            Mutant("KLs the other way round", reconstruction - kls[-1] - reverse),
            Mutant("KL at the top added", reconstruction + kls[-1] - kls[:-1].sum(), erratum="E001-01"),
            Mutant("only the top's KL", reconstruction - kls[-1]),
        ],
    )


def _topdown_terms(toy: Tower) -> tuple[float, Array]:
    """E_q[log p(x|z_1)] and the KL of every layer, z_1 first, one layer at a time."""
    w, q = toy.weight, toy.q_topdown
    kls = [
        float(w @ (np.exp(back) * (back - down)) @ (w * q[t - 1]))
        for t, back, down in zip(toy.links, toy.log_back, toy.log_down, strict=True)
    ]
    top = float(w @ (q[-1] * (toy.log_top - toy.log_prior)))
    return float(w @ (q[0] * toy.log_decoder)), np.array([*kls, top])


@verifies(
    "kl-warm-up",
    r"""\begin{aligned}
\mathcal L_w(\theta,\phi;x)&=\mathbb E_{q_\phi}\left[\log p_\theta(x\mid z_1)\right]-w\sum_{t=1}^T\mathrm{KL}_t,
\qquad w=\min\Big(1,\frac{\mathrm{step}}{K}\Big)\\
&=\mathcal L(\theta,\phi;x)+(1-w)\sum_{t=1}^T\mathrm{KL}_t\\
&\ge\mathcal L(\theta,\phi;x)
\end{aligned}""",
    kind="inequality",
    route="quadrature",
    instances=towers,
    **ROUNDING,
)
def kl_warm_up(toy: Tower) -> Lines:
    reconstruction, kls = _topdown_terms(toy)
    steps, warm = np.array([0, 50, 100, 200, 400]), 200
    # The bound and the sum of the KLs on the product over all layers.
    decoder = toy.on(toy.log_decoder, 1)
    rest = toy.log_joint - decoder - toy.log_q_topdown
    bound = toy.mean(toy.log_q_topdown, toy.log_joint - toy.log_q_topdown)
    total = -toy.mean(toy.log_q_topdown, rest)
    w = np.array([0, 0.25, 0.5, 1, 1])
    first = "= E_q[log p(x|z_1)] - w Σ_t KL_t"
    second = "= L + (1-w) Σ_t KL_t"

    def warmed(w: Array) -> Array:
        return reconstruction - w * kls.sum()

    return Lines(
        {
            "E_q[log p(x|z_1) + w log p(z_{1:T})/q], steps 0, K/4, K/2, K, 2K": [
                toy.mean(toy.log_q_topdown, decoder + v * rest) for v in w
            ],
            first: warmed(np.minimum(1, steps / warm)),
            second: bound + (1 - w) * total,
            "≥ L": np.full(5, bound),
        },
        [
            Mutant("w grows beyond 1", {first: warmed(steps / warm)}),
            Mutant("from 1 to 0", {first: warmed(1 - np.minimum(1, steps / warm))}),
            Mutant("w ΣKL for (1-w) ΣKL", {second: bound + w * total}),
            Mutant("w on the top layer alone", {first: reconstruction - kls[:-1].sum() - w * kls[-1]}),
        ],
    )


@verifies(
    "ladder-merge",
    r"""\begin{aligned}
\frac{N(z;\hat\mu,\hat\sigma^2)\,N(z;\mu_p,\sigma_p^2)}
{\int N(z^\prime;\hat\mu,\hat\sigma^2)\,N(z^\prime;\mu_p,\sigma_p^2)\,dz^\prime}&=N(z;\mu_q,\sigma_q^2)\\
\sigma_q^2&=\frac1{\hat\sigma^{-2}+\sigma_p^{-2}}\\
&\quad\text{and }\mu_q=\sigma_q^2\left(\hat\mu\,\hat\sigma^{-2}+\mu_p\,\sigma_p^{-2}\right)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **ROUNDING,
)
def ladder_merge(rng: np.random.Generator) -> Lines:
    # Two coordinates, each with its own bottom-up guess and top-down prior.
    mean, prior_mean = rng.normal(size=2), rng.normal(size=2)
    scale, prior_scale = rng.uniform(0.6, 0.9, 2), rng.uniform(1.0, 1.4, 2)
    points, (nodes, weight) = rng.normal(size=(3, 2)), plane(12.0, 240)

    def product(z: Array) -> Array:
        return np.exp((norm.logpdf(z, mean, scale) + norm.logpdf(z, prior_mean, prior_scale)).sum(1))

    mass = product(nodes) * weight / (product(nodes) @ weight)
    first = mass @ nodes
    by_quadrature = np.concatenate([product(points) / (product(nodes) @ weight), first, mass @ nodes**2 - first**2])

    def gaussian(mean: Array, variance: Array) -> Array:
        """The density at the three points, the mean and the variance."""
        return np.concatenate([norm.pdf(points, mean, np.sqrt(variance)).prod(1), mean, variance])

    def merged(a: Array, b: Array, variance: Array | None = None) -> Array:
        """Precisions a and b."""
        return gaussian((mean * a + prior_mean * b) / (a + b), 1 / (a + b) if variance is None else variance)

    v, v_p = scale**2, prior_scale**2
    # As a regression: the prior's mean, moved towards the guess by the share of variance that is the prior's.
    share = v_p / (v_p + v)
    formula = "= N(z; μ_q, σ_q²), μ_q, σ_q²"
    return Lines(
        {
            "normalised product at three points, its mean and variance": by_quadrature,
            formula: merged(1 / v, 1 / v_p),
            "= the posterior of z given a measurement μ̂": gaussian(
                prior_mean + share * (mean - prior_mean), v_p * (1 - share)
            ),
        },
        [
            Mutant("means weighted by variances", {formula: merged(v, v_p, 1 / (1 / v + 1 / v_p))}),
            Mutant("variances added", {formula: merged(1 / v, 1 / v_p, v + v_p)}),
            Mutant("the plain average of the means", {formula: gaussian((mean + prior_mean) / 2, v * v_p / (v + v_p))}),
            Mutant("scales for variances", {formula: merged(1 / scale, 1 / prior_scale)}, erratum="E001-06"),
            Mutant("the precision for the variance", {formula: merged(1 / v, 1 / v_p, 1 / v + 1 / v_p)}),
        ],
    )


def _cumulants(moments: Array) -> Array:
    """Mean, variance, third and fourth cumulant from the first four raw moments."""
    m1, m2, m3, m4 = moments
    variance = m2 - m1**2
    third = m3 - 3 * m1 * m2 + 2 * m1**3
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    return np.array([m1, variance, third, fourth - 3 * variance**2])


@verifies(
    "hvae-top-marginal",
    r"""\begin{aligned}
q_\phi(z_t\mid x)&=\int q_\phi(z_t\mid z_{t-1})\,q_\phi(z_{t-1}\mid x)\,dz_{t-1}\\
\mathbb E_{q_\phi}[z_t]&=\mathbb E_{q_\phi}[f(z_{t-1})],\qquad
\mathrm{Var}_{q_\phi}[z_t]=s^2+\mathrm{Var}_{q_\phi}[f(z_{t-1})]\\
\kappa_n[z_t]&=\kappa_n[f(z_{t-1})]\quad(n\ge3),\qquad q_\phi(z_t\mid z_{t-1})=N(z_t;f(z_{t-1}),s^2)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    tolerance=1e-9,
    reason="float64 sums over 70,000 nodes of fourth powers up to a thousand",
)
def hvae_top_marginal(rng: np.random.Generator) -> Lines:
    # f is a parabola, so that f(z_1) is a scaled noncentral χ², whose cumulants are known.
    mean, scale, s = rng.uniform(0.4, 0.8), rng.uniform(0.5, 0.7), rng.uniform(0.4, 0.6)
    a, c = rng.uniform(0.5, 0.9), rng.uniform(0.4, 0.6)
    z_1, weight_1 = _line(6.5, 140)
    z_2, weight_2 = _line(36.0, 540)

    def f(z: Real) -> Real:
        return a * z + c * z**2

    def powers(z: Array) -> Array:
        return z[:, None] ** np.arange(1, 5)

    marginal = norm.pdf(z_2[:, None], f(z_1), s) @ (weight_1 * norm.pdf(z_1, mean, scale))
    nodes, weights = gauss_hermite(1, 12)
    of_f = _cumulants(weights @ powers(f(mean + scale * nodes[:, 0])))
    noise = np.array([0, s**2, 0, 0])
    # The same on the plane of (z_1, noise).
    both, both_weights = gauss_hermite(2, 8)
    draws = f(mean + scale * both[:, 0]) + s * both[:, 1]
    n, centre = np.arange(1, 5), (mean + a / (2 * c)) / scale
    chi = (c * scale**2) ** n * 2.0 ** (n - 1) * np.array([1, 1, 2, 6]) * (1 + n * centre**2)
    chi[0] -= a**2 / (4 * c)
    last = "= closed form"
    return Lines(
        {
            "mean, variance, κ_3, κ_4 of ∫ q(z_2|z_1) q(z_1|x) dz_1": _cumulants((weight_2 * marginal) @ powers(z_2)),
            "= those of f(z_1) + sε": _cumulants(both_weights @ powers(draws)),
            "= those of f(z_1), and s² more variance": of_f + noise,
            last: chi + noise,
        },
        [
            Mutant("a Gaussian of the same mean and variance", {last: (chi + noise) * [1, 1, 0, 0]}),
            Mutant("N(f(E[z_1]), s²)", {last: np.array([f(mean), s**2, 0, 0])}),
            Mutant("the noise forgotten", {last: chi}),
            Mutant("s for s²", {last: chi + noise / s}, erratum="E001-06"),
            Mutant("only the noise's variance", {last: chi * [1, 0, 1, 1] + noise}),
            Mutant("f at E[z_1] in the mean", {last: chi + noise + [f(mean) - chi[0], 0, 0, 0]}),
        ],
    )


class _Ladder:
    """A batch of four under two layers with diagonal Gaussians, so that every gradient can be written down.

    p(z_2) = N(0, I), p(z_1|z_2) = N(a z_2, s²I), x ~ N(W z_1, r²I); φ = (μ_1, log σ_1, μ_2, log σ_2), each (4, 2).
    """

    def __init__(self, rng: np.random.Generator):
        self.a, self.s, self.r = rng.uniform(0.6, 1.2), rng.uniform(0.6, 0.9), rng.uniform(0.6, 0.9)
        self.w, self.x = rng.normal(size=(3, 2)), rng.normal(size=(4, 3))
        means, log_scales = rng.normal(size=(2, 4, 2)), rng.uniform(-0.7, 0.2, size=(2, 4, 2))
        self.phi = np.stack([means[0], log_scales[0], means[1], log_scales[1]])

    def terms(self, phi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """E_q[log p(x|z_1)], KL_1, KL_2, each (4,), by quadrature over both layers' noise."""
        m_1, log_1, m_2, log_2 = phi
        nodes, weights = (torch.tensor(v) for v in gauss_hermite(4, 3))
        q_1, q_2 = Normal(m_1, log_1.exp()), Normal(m_2, log_2.exp())
        z_1 = m_1 + log_1.exp() * nodes[:, None, :2]
        z_2 = m_2 + log_2.exp() * nodes[:, None, 2:]
        log_x = Normal(z_1 @ torch.tensor(self.w).T, self.r).log_prob(torch.tensor(self.x))
        log_1, log_2 = Normal(self.a * z_2, self.s).log_prob(z_1), Normal(0.0, 1.0).log_prob(z_2)
        inside = log_x, q_1.log_prob(z_1) - log_1, q_2.log_prob(z_2) - log_2
        of_x, kl_1, kl_2 = (weights @ values.sum(-1) for values in inside)
        return of_x, kl_1, kl_2

    def closed(self, phi: Array) -> tuple[Array, Array, Array]:
        """The same by hand."""
        m_1, log_1, m_2, log_2 = phi
        v_1, v_2, s2, r2 = np.exp(2 * log_1), np.exp(2 * log_2), self.s**2, self.r**2
        square = np.square(self.x - m_1 @ self.w.T).sum(1) + v_1 @ np.square(self.w).sum(0)
        log_x = -square / (2 * r2) - 1.5 * np.log(2 * np.pi * r2)
        spread = v_1 + (m_1 - self.a * m_2) ** 2 + self.a**2 * v_2
        kl_1 = 0.5 * (spread / s2 - 1 - np.log(v_1 / s2)).sum(1)
        return log_x, kl_1, 0.5 * (v_2 + m_2**2 - 1 - np.log(v_2)).sum(1)

    def gradients(self) -> tuple[Array, Array, Array]:
        """Of the three terms' batch means with respect to φ, by hand."""
        m_1, log_1, m_2, log_2 = self.phi
        v_1, v_2, s2, r2 = np.exp(2 * log_1), np.exp(2 * log_2), self.s**2, self.r**2
        off, zero = m_1 - self.a * m_2, np.zeros((4, 2))
        by_x = [(self.x - m_1 @ self.w.T) @ self.w / r2, -v_1 * np.square(self.w).sum(0) / r2, zero, zero]
        by_1 = [off / s2, v_1 / s2 - 1, -self.a * off / s2, self.a**2 * v_2 / s2]
        by_2 = [zero, zero, m_2, v_2 - 1]
        return np.stack(by_x) / 4, np.stack(by_1) / 4, np.stack(by_2) / 4


@verifies(
    "free-bits",
    r"""\begin{aligned}
\mathcal L_\lambda&=\mathbb E_{\hat p_N(x)}\mathbb E_{q_\phi}\left[\log p_\theta(x\mid z_1)\right]
-\sum_{t=1}^T\max\Big(\lambda,\ \mathbb E_{\hat p_N(x)}\left[\mathrm{KL}_t\right]\Big)\\
\nabla_\phi\mathcal L_\lambda&=\nabla_\phi\,\mathbb E_{\hat p_N(x)}\mathbb E_{q_\phi}\left[
\log p_\theta(x\mid z_1)\right]
-\sum_{t:\,\mathbb E[\mathrm{KL}_t]>\lambda}\nabla_\phi\,\mathbb E_{\hat p_N(x)}\left[\mathrm{KL}_t\right]
\end{aligned}""",
    kind="identity",
    route="autograd",
    tolerance=1e-7,
    reason="central differences of numbers of order ten, in float64, with a step of 1e-5",
)
def free_bits(rng: np.random.Generator) -> Lines:
    toy = _Ladder(rng)
    log_x, *kls = (t.mean() for t in toy.closed(toy.phi))
    by_x, *by_kl = toy.gradients()
    # One λ between the two layers' KLs, and one below both.
    frees = [sum(kls) / 2, min(kls) / 2]

    def by_autograd(charge: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Array:
        """Value and gradient at both λ, where `charge` turns λ and the KLs, (layer, x), into what is subtracted."""
        results = []
        for free in frees:
            phi = torch.tensor(toy.phi, requires_grad=True)
            log_x, *kls = toy.terms(phi)
            value = log_x.mean() - charge(torch.tensor(free), torch.stack(kls))
            results += [value.item(), *torch.autograd.grad(value, phi)[0].ravel()]
        return np.array(results)

    def by_hand(pays: Callable[[float, float], bool]) -> Array:
        """The formulas, where `pays` says whether a layer's gradient counts."""
        results = []
        for free in frees:
            gradient = by_x - sum(pays(kl, free) * g for kl, g in zip(kls, by_kl, strict=True))
            results += [log_x - sum(max(free, kl) for kl in kls), *gradient.ravel()]
        return np.array(results)

    def by_differences(step: float = 1e-5) -> Array:
        def objective(phi: Array, free: float) -> float:
            log_x, *kls = (t.mean() for t in toy.closed(phi))
            return log_x - sum(max(free, kl) for kl in kls)

        units, results = step * np.eye(toy.phi.size).reshape(-1, *toy.phi.shape), []
        for free in frees:
            results.append(objective(toy.phi, free))
            results += [(objective(toy.phi + u, free) - objective(toy.phi - u, free)) / (2 * step) for u in units]
        return np.array(results)

    first, second = "L_λ and its gradient, by autograd", "= by the formula"
    max_of_each = by_autograd(lambda free, kls: torch.maximum(free, kls).mean(1).sum())
    min_of_means = by_autograd(lambda free, kls: torch.minimum(free, kls.mean(1)).sum())
    one_for_all = by_autograd(lambda free, kls: torch.maximum(free, kls.mean(1).sum()))
    return Lines(
        {
            first: by_autograd(lambda free, kls: torch.maximum(free, kls.mean(1)).sum()),
            second: by_hand(lambda kl, free: kl > free),
            "= by central differences": by_differences(),
        },
        [
            Mutant("the larger of the two for every x alone", {first: max_of_each}),
            Mutant("min for max", {first: min_of_means}),
            Mutant("one λ for the sum of the layers", {first: one_for_all}),
            Mutant("the gradient of every layer", {second: by_hand(lambda kl, free: True)}),
            Mutant("the gradient of the layers below λ", {second: by_hand(lambda kl, free: kl < free)}),
        ],
    )


class _Upper:
    """Two layers whose upper one can be switched off, as functions of (A, C, d, v), eleven numbers.

    x ~ N(W z_1, r²I) in three dimensions, p(z_1|z_2) = N(A z_2 + b, s²I), p(z_2) = N(0, I);
    q(z_1|x) = N(mean, diag scale²), q(z_2|z_1) = N(C z_1 + d, vI).
    """

    def __init__(self, rng: np.random.Generator):
        self.w, self.x, self.r = rng.normal(size=(3, 2)), rng.normal(size=3), rng.uniform(0.6, 0.9)
        self.b, self.s = rng.normal(size=2), rng.uniform(0.6, 0.9)
        self.mean, self.scale = rng.normal(size=2), rng.uniform(0.5, 1.1, 2)
        self.off = np.append(np.zeros(10), 1.0)  # A = C = 0, d = 0, v = 1

    def bound(self, parameters: torch.Tensor) -> torch.Tensor:
        """L by quadrature over both layers' noise, exact because every log is quadratic."""
        a, c, d, v = parameters[:4].view(2, 2), parameters[4:8].view(2, 2), parameters[8:10], parameters[10]
        w, x, b, mean, scale = (torch.tensor(t) for t in (self.w, self.x, self.b, self.mean, self.scale))
        nodes, weights = (torch.tensor(t) for t in gauss_hermite(4, 3))
        z_1 = mean + scale * nodes[:, :2]
        z_2 = z_1 @ c.T + d + v.sqrt() * nodes[:, 2:]
        log_p = Normal(z_1 @ w.T, self.r).log_prob(x).sum(1) + Normal(z_2 @ a.T + b, self.s).log_prob(z_1).sum(1)
        log_p = log_p + Normal(0.0, 1.0).log_prob(z_2).sum(1)
        log_q = Normal(mean, scale).log_prob(z_1).sum(1) + Normal(z_1 @ c.T + d, v.sqrt()).log_prob(z_2).sum(1)
        return weights @ (log_p - log_q)

    def without(self, a: torch.Tensor | None = None) -> torch.Tensor:
        """E_q[log p(x|z_1)] - KL(q(z_1|x)‖N(b, AAᵀ + s²I)) in closed form: no z_2, or the best z_2."""
        reconstruction = norm.logpdf(self.x, self.w @ self.mean, self.r).sum()
        reconstruction -= np.trace(self.w @ np.diag(self.scale**2) @ self.w.T) / (2 * self.r**2)
        identity = torch.eye(2, dtype=torch.float64)
        a = torch.zeros_like(identity) if a is None else a
        covariance = a @ a.T + self.s**2 * identity
        q = MultivariateNormal(torch.tensor(self.mean), torch.diag(torch.tensor(self.scale**2)))
        return reconstruction - kl_divergence(q, MultivariateNormal(torch.tensor(self.b), covariance))


@verifies(
    "hvae-collapse",
    r"""\begin{aligned}
\nabla_{A,C,d,v}\,\mathcal L&=0\qquad\text{at}\quad A=C=0,\ d=0,\ v=1\\
\mathcal L&=\mathbb E_{q_\phi(z_1\mid x)}\left[\log p_\theta(x\mid z_1)\right]\\
&\quad-\mathrm{KL}(q_\phi(z_1\mid x)\Vert N(z_1;b,s^2I))\quad\text{there,}\\
&\quad\text{where }p_\theta(z_1\mid z_2)=N(z_1;Az_2+b,s^2I)\\
&\quad\text{and }q_\phi(z_2\mid z_1)=N(z_2;Cz_1+d,vI)
\end{aligned}""",
    kind="identity",
    route="autograd",
    tolerance=1e-7,
    reason="central differences of numbers of order ten, in float64, with a step of 1e-5",
)
def hvae_collapse(rng: np.random.Generator) -> Lines:
    toy, some = _Upper(rng), rng.normal(size=4)

    def by_autograd(slots: slice = slice(0), values: float | Array = 0.0) -> Array:
        """The bound and its gradient, with some of A, C, d, v moved."""
        moved = toy.off.copy()
        moved[slots] = values
        p = torch.tensor(moved, requires_grad=True)
        value = toy.bound(p)
        return np.append(value.item(), torch.autograd.grad(value, p)[0])

    def by_differences(step: float = 1e-5) -> Array:
        at = [[toy.bound(torch.tensor(toy.off + sign * u)).item() for sign in (1, -1)] for u in step * np.eye(11)]
        return np.append(toy.bound(torch.tensor(toy.off)).item(), [(up - down) / (2 * step) for up, down in at])

    line = "= the bound with z_2 and its gradient, by autograd"
    return Lines(
        {
            "the bound without z_2, and 0": np.append(toy.without().item(), np.zeros(11)),
            line: by_autograd(),
            "= by central differences": by_differences(),
        },
        [
            Mutant("A = 0 alone", {line: by_autograd(slice(4, 8), some)}),
            Mutant("C = 0 alone", {line: by_autograd(slice(4), some)}),
            Mutant("q(z_2|z_1) with another mean", {line: by_autograd(slice(8, 10), some[:2])}),
            Mutant("q(z_2|z_1) with another variance", {line: by_autograd(slice(10, 11), 2.0)}),
        ],
    )


@verifies(
    "hvae-collapse-escape",
    r"""\begin{aligned}
\max_{q_\phi(z_2\mid z_1)}\mathcal L&=\mathbb E_{q_\phi(z_1\mid x)}\left[\log p_\theta(x\mid z_1)\right]\\
&\quad-\mathrm{KL}(q_\phi(z_1\mid x)\Vert N(z_1;b,AA^\top+s^2I))\\
&=\mathcal L\big|_{A=0}+\frac1{2s^2}\,\mathrm{tr}\,A^\top\Big(\frac1{s^2}M-I\Big)A+O(\Vert A\Vert^4)\\
&\quad\text{where}\quad M=\mathbb E_{q_\phi(z_1\mid x)}\left[(z_1-b)(z_1-b)^\top\right]
\end{aligned}""",
    kind="identity",
    route="autograd",
    tolerance=1e-9,
    reason="float64 second derivatives of order ten; a maximum found numerically to a gradient of 1e-8",
)
def hvae_collapse_escape(rng: np.random.Generator) -> Lines:
    toy, a = _Upper(rng), rng.normal(size=(2, 2))
    # At a finite A whose columns are orthogonal and as long as each other, the best q(z_2|z_1) has a covariance vI.
    finite = rng.uniform(0.5, 1.0) * np.linalg.qr(rng.normal(size=(2, 2)))[0]

    def negative(parameters: Array) -> tuple[float, Array]:
        """-L in C, d and log v."""
        p = torch.tensor(parameters, requires_grad=True)
        value = -toy.bound(torch.cat([torch.tensor(finite.ravel()), p[:6], p[6:].exp()]))
        return value.item(), torch.autograd.grad(value, p)[0].numpy()

    found = -optimize.minimize(negative, np.zeros(7), jac=True, method="BFGS", options={"gtol": 1e-8}).fun
    v = 1 / (1 + (finite.T @ finite)[0, 0] / toy.s**2)
    link = v * finite.T / toy.s**2
    plugged = toy.bound(torch.tensor([*finite.ravel(), *link.ravel(), *(-link @ toy.b), v])).item()

    # Second derivatives along A = εa: with C, d, v free to follow (the Schur complement of the Hessian), and with
    # z_2 integrated out.
    hessian = torch.autograd.functional.hessian(toy.bound, torch.tensor(toy.off)).numpy()
    of_a, mixed, rest = hessian[:4, :4], hessian[:4, 4:], hessian[4:, 4:]
    following = a.ravel() @ (of_a - mixed @ np.linalg.solve(rest, mixed.T)) @ a.ravel()
    integrated = torch.autograd.functional.hessian(
        lambda step: toy.without(step * torch.tensor(a)), torch.zeros((), dtype=torch.float64)
    ).item()

    def formula(spread: Array, s2: float = toy.s**2, identity: float = 1.0) -> float:
        return float(np.trace(a.T @ (spread / s2 - identity * np.eye(2)) @ a) / s2)

    around_mean = np.diag(toy.scale**2)
    around_b = around_mean + np.outer(toy.mean - toy.b, toy.mean - toy.b)
    first, last = (
        "max L over C, d, v at some A; d²/dε² along A = εa",
        "= L at the posterior p(z_2|z_1); tr aᵀ(M/s²-I)a / s²",
    )
    return Lines(
        {
            first: np.array([found, following]),
            "= with z_2 integrated out": np.array([toy.without(torch.tensor(finite)).item(), integrated]),
            last: np.array([plugged, formula(around_b)]),
        },
        [
            Mutant("M about the mean of z_1, not about b", [plugged, formula(around_mean)]),
            Mutant("s for s²", [plugged, formula(around_b, toy.s)], erratum="E001-06"),
            Mutant("the identity forgotten: A always helps", [plugged, formula(around_b, identity=0.0)]),
            Mutant("the sign: A never helps", [plugged, -formula(around_b)]),
            Mutant("C, d, v fixed", {first: np.array([found, a.ravel() @ of_a @ a.ravel()])}),
        ],
    )


@verifies(
    "gaussian-fit-two-peaks",
    r"""\begin{aligned}
p(z)&=\tfrac12N(z;-m,s^2I)+\tfrac12N(z;m,s^2I),\qquad r=\Vert m\Vert/s\\
\min_{\mu,\Sigma}\mathrm{KL}(N(\mu,\Sigma)\Vert p)&\le\mathrm{KL}(N(m,s^2I)\Vert p)\\
&=\log2-\mathbb E_{N(\epsilon;0,1)}\left[\log\big(1+e^{-2r(r+\epsilon)}\big)\right]\\
&\le\log2=\lim_{r\to\infty}\min_{\mu,\Sigma}\mathrm{KL}(N(\mu,\Sigma)\Vert p)
\end{aligned}""",
    kind="inequality",
    route="quadrature",
    tolerance=1e-8,
    reason="trapezoid sums over 14,400 nodes; a minimum found numerically to a gradient of 1e-7",
)
def gaussian_fit_two_peaks(rng: np.random.Generator) -> Lines:
    ratios, s, angle = np.array([0.7, 3.0, 20.0]), rng.uniform(0.4, 0.8), rng.uniform(0, 2 * np.pi)
    peaks = ratios[:, None] * s * np.array([np.cos(angle), np.sin(angle)])
    grid, weight = plane(8.5, 120)
    mass = weight * norm.pdf(grid).prod(1)

    def log_p(z: torch.Tensor, m: Array) -> torch.Tensor:
        left, right = (-(z - torch.tensor(peak)).square().sum(-1) / (2 * s**2) for peak in (-m, m))
        return torch.logaddexp(left, right) - np.log(2) - np.log(2 * np.pi * s**2)

    def kl(mean: torch.Tensor, factor: torch.Tensor, m: Array, nodes: Array, weights: Array) -> torch.Tensor:
        """KL(N(mean, factor factorᵀ)‖p) on standard normal nodes."""
        entropy = factor.diagonal().log().sum() + np.log(2 * np.pi * np.e)
        return -entropy - torch.tensor(weights) @ log_p(mean + torch.tensor(nodes) @ factor.T, m)

    def exact(mean: Array, covariance: Array, m: Array) -> float:
        return kl(torch.tensor(mean), torch.tensor(np.linalg.cholesky(covariance)), m, grid, mass).item()

    def least(m: Array) -> float:
        """By descent on a coarser rule from two starts, on one peak and over both, then exactly."""
        rule = gauss_hermite(2, 20)

        def unpack(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return p[:2], torch.diag(p[2:4].exp()) + torch.tensor([[0.0, 0.0], [1.0, 0.0]]) * p[4]

        def objective(parameters: Array) -> tuple[float, Array]:
            p = torch.tensor(parameters, requires_grad=True)
            value = kl(*unpack(p), m, *rule)
            return value.item(), torch.autograd.grad(value, p)[0].numpy()

        found = []
        for start in (np.array([*m, *np.log([s, s]), 0]), np.array([0.1, 0, *np.log([2 * s, 2 * s]), 0])):
            best = optimize.minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-7}).x
            mean, factor = (t.numpy() for t in unpack(torch.tensor(best)))
            found.append(exact(mean, factor @ factor.T, m))
        return min(found)

    noise, width = _line(9.0, 2000)
    noise_mass = width * norm.pdf(noise)

    def closed(r: float, factor: float = 2.0) -> float:
        return np.log(2) - noise_mass @ np.logaddexp(0, -factor * r * (r + noise))

    one_peak, whole = s**2 * np.eye(2), [s**2 * np.eye(2) + np.outer(m, m) for m in peaks]
    matched = np.array([exact(np.zeros(2), c, m) for c, m in zip(whole, peaks, strict=True)])
    # KL(p‖q) at the q that matches p's mean and covariance, by quadrature around one peak: the other is its mirror.
    around = [torch.tensor(m + s * grid) for m in peaks]
    forward = np.array(
        [
            mass @ (log_p(z, m).numpy() - multivariate_normal(np.zeros(2), c).logpdf(z))
            for z, m, c in zip(around, peaks, whole, strict=True)
        ]
    )
    found = np.array([least(m) for m in peaks])
    first, at_peak, limit = (
        "min KL(q‖p), found numerically, r = 0.7, 3, 20",
        "≤ KL(N(m,s²I)‖p)",
        "= min KL(q‖p) at r = 20",
    )
    formula, bound = "= log 2 - E[log(1 + exp(-2r(r+ε)))]", "≤ log 2"
    return Lines(
        {
            first: found,
            at_peak: np.array([exact(m, one_peak, m) for m in peaks]),
            formula: np.array([closed(r) for r in ratios]),
            bound: np.log(2),
            limit: found[-1],
        },
        [
            Mutant("one Gaussian over both peaks", {limit: matched[-1]}),
            Mutant("KL(p‖q), moments matched", {limit: forward[-1]}),
            Mutant("r(r+ε) for 2r(r+ε)", {formula: np.array([closed(r, 1.0) for r in ratios])}),
            Mutant("½ log 2, the share of the lost peak", {bound: np.log(2) / 2}),
            Mutant("the best q matches moments", {first: matched}),
        ],
    )


@verifies(
    "hvae-fixed-encoder",
    r"""\begin{aligned}
q(z_t\mid x)&=\int N\big(z_t;\sqrt{1-\beta_t}\,z_{t-1},\beta_tI\big)\,q(z_{t-1}\mid x)\,dz_{t-1}\\
&=N\big(z_t;\sqrt{\bar\alpha_t}\,x,(1-\bar\alpha_t)I\big),\qquad\bar\alpha_t=\prod_{s\le t}(1-\beta_s)\\
\mathrm{KL}(q(z_T\mid x)\Vert N(0,I))
&=\tfrac12\big(\bar\alpha_T\Vert x\Vert^2-\bar\alpha_Td_x-d_x\log(1-\bar\alpha_T)\big)
\underset{\bar\alpha_T\to0}{\longrightarrow}0
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **ROUNDING,
)
def hvae_fixed_encoder(rng: np.random.Generator) -> Lines:
    x, beta = rng.uniform(-1.5, 1.5, 3), rng.uniform(0.1, 0.3, 4)
    points, (z, weight) = rng.normal(size=(3, 3)), _line(9.0, 240)
    # A long chain on the way to its limit.
    long = np.full(3000, 0.01)

    def kl(mean: Array, variance: float) -> float:
        return 0.5 * float(np.sum(variance + mean**2 - 1 - np.log(variance)))

    def by_nodes() -> Array:
        """Every coordinate's density layer by layer on the nodes, the last layer's at the points themselves."""
        at_points, divergence = np.ones(3), 0.0
        for j in range(3):
            density = norm.pdf(z, np.sqrt(1 - beta[0]) * x[j], np.sqrt(beta[0]))
            for b in beta[1:-1]:
                density = norm.pdf(z[:, None], np.sqrt(1 - b) * z, np.sqrt(b)) @ (weight * density)
            mean, scale = np.sqrt(1 - beta[-1]) * z, np.sqrt(beta[-1])
            at_points = at_points * (norm.pdf(points[:, j, None], mean, scale) @ (weight * density))
            top = norm.pdf(z[:, None], mean, scale) @ (weight * density)
            divergence += weight @ (xlogy(top, top) - top * norm.logpdf(z))
        return np.concatenate([at_points, [divergence, 0.0]])

    def by_moments(keep: Callable[[float], float] = lambda b: np.sqrt(1 - b)) -> Array:
        """Mean and variance step by step: each shrinks, and the variance gains β_t."""

        def run(beta: Array) -> tuple[Array, float]:
            mean, variance = x, 0.0
            for b in beta:
                mean, variance = keep(b) * mean, keep(b) ** 2 * variance + b
            return mean, variance

        mean, variance = run(beta)
        density = multivariate_normal(mean, variance * np.eye(3)).pdf(points)
        return np.concatenate([density, [kl(mean, variance), kl(*run(long))]])

    def by_noises() -> Array:
        """z_T is what is left of x plus what is left of every layer's noise."""

        def add(beta: Array) -> tuple[Array, float]:
            left = np.append(np.cumprod(1 - beta[:0:-1])[::-1], 1.0)  # Π_{u>t} (1-β_u)
            return np.prod(np.sqrt(1 - beta)) * x, float(beta @ left)

        mean, variance = add(beta)
        density = norm.pdf(points, mean, np.sqrt(variance)).prod(1)
        return np.concatenate([density, [kl(mean, variance), kl(*add(long))]])

    def formula(factor: Callable[[float], float] = np.sqrt, kept: Callable = lambda b: np.prod(1 - b)) -> Array:
        q = Normal(torch.tensor(factor(kept(beta)) * x), float(np.sqrt(1 - kept(beta))))
        density = q.log_prob(torch.tensor(points)).sum(1).exp().numpy()

        def divergence(abar: float) -> float:
            return 0.5 * (factor(abar) ** 2 * x @ x - 3 * abar - 3 * np.log1p(-abar))

        return np.concatenate([density, [divergence(kept(beta)), divergence(kept(long))]])

    first, last = "= N(z_T; √ᾱ_T x, (1-ᾱ_T)I) and its KL, by the formulas", "= moments layer by layer"
    exactly_prior = np.concatenate([norm.pdf(points).prod(1), [0.0, 0.0]])
    return Lines(
        {
            "q(z_T|x) at three points and KL, layer by layer; 0": by_nodes(),
            first: formula(),
            last: by_moments(),
            "= the noises of all layers added up": by_noises(),
        },
        [
            Mutant("1-β_t for its root", {last: by_moments(lambda b: 1 - b)}),
            Mutant("the mean z_{t-1}, not shrunk", {last: by_moments(lambda b: 1.0)}, erratum="E002-06"),
            Mutant("ᾱ for √ᾱ", {first: formula(factor=lambda a: a)}),
            Mutant("ᾱ_T = 1 - Σ β_t", {first: formula(kept=lambda b: max(1 - b.sum(), 0.0))}),
            Mutant("q(z_T|x) is the prior", {first: exactly_prior}, erratum="E002-14"),
        ],
    )


@verifies(
    "hvae-tower-evidence",
    r"""\begin{aligned}
p_\theta(x)&=\int N\big(x;W_1W_2z_2,\ \sigma_2^2W_1W_1^\top+\sigma_1^2I\big)\,N(z_2;0,I)\,dz_2\\
&=N\big(x;0,\ W_1(W_2W_2^\top+\sigma_2^2I)W_1^\top+\sigma_1^2I\big)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **ROUNDING,
)
def hvae_tower_evidence(rng: np.random.Generator) -> Lines:
    tower = _VectorTower(rng)
    w_1, w_2, s_1, s_2, x = tower.w_1, tower.w_2, tower.s_1, tower.s_2, tower.x
    z_2, weight = plane(9.0, 240)

    def integrated(inner: float = s_2**2) -> float:
        noise = multivariate_normal(np.zeros(3), inner * w_1 @ w_1.T + s_1**2 * np.eye(3))
        return float(np.log(weight @ np.exp(noise.logpdf(x - z_2 @ (w_1 @ w_2).T) + norm.logpdf(z_2).sum(1))))

    def closed(of_z_1: Array, noise: float = s_1**2) -> float:
        return multivariate_normal(np.zeros(3), w_1 @ of_z_1 @ w_1.T + noise * np.eye(3)).logpdf(x)

    first, last, eye = "= log ∫ p(x|z_2) p(z_2) dz_2", "= log N(x; 0, W_1(W_2W_2ᵀ+σ_2²I)W_1ᵀ+σ_1²I)", np.eye(2)
    return Lines(
        {
            "log p(x,z) - log p(z|x) at some z": tower.candidate(rng),
            first: integrated(),
            last: closed(w_2 @ w_2.T + s_2**2 * eye),
        },
        [
            Mutant("σ_2² forgotten", closed(w_2 @ w_2.T)),
            Mutant("σ_2 for σ_2²", closed(w_2 @ w_2.T + s_2 * eye), erratum="E001-06"),
            Mutant("W_2ᵀW_2", closed(w_2.T @ w_2 + s_2**2 * eye)),
            Mutant("the first layer's noise twice", closed(w_2 @ w_2.T + s_1**2 * eye)),
            Mutant("σ_2² not carried down by W_1", closed(w_2 @ w_2.T, s_1**2 + s_2**2)),
            Mutant("p(x|z_2) without the noise of z_1", {first: integrated(0.0)}),
        ],
    )


class _VectorTower:
    """x = W_1 z_1 + σ_1 ε in three dimensions, z_1 = W_2 z_2 + σ_2 ε in two, z_2 ~ N(0, I) in two."""

    def __init__(self, rng: np.random.Generator):
        self.w_1, self.w_2 = rng.normal(size=(3, 2)), rng.normal(size=(2, 2))
        self.s_1, self.s_2, self.x = rng.uniform(0.8, 1.1), rng.uniform(0.6, 0.8), rng.normal(size=3)
        # The log-joint is quadratic in (z_1, z_2): its curvature is the posterior's precision.
        upper = np.hstack([np.eye(2), -self.w_2]) / self.s_2
        precision = upper.T @ upper + np.diag([0, 0, 1, 1])
        precision[:2, :2] += self.w_1.T @ self.w_1 / self.s_1**2
        pull = np.append(self.w_1.T @ self.x / self.s_1**2, [0, 0])
        self.mean, self.covariance = np.linalg.solve(precision, pull), np.linalg.inv(precision)

    def log_terms(self, z_1: Array, z_2: Array) -> tuple[Array, Array, Array]:
        """log p(x|z_1), log p(z_1|z_2), log p(z_2)."""
        return (
            norm.logpdf(self.x, z_1 @ self.w_1.T, self.s_1).sum(-1),
            norm.logpdf(z_1, z_2 @ self.w_2.T, self.s_2).sum(-1),
            norm.logpdf(z_2).sum(-1),
        )

    def candidate(self, rng: np.random.Generator) -> float:
        """log p(x) = log p(x,z) - log p(z|x), true at any z."""
        z = rng.normal(size=4)
        return float(sum(self.log_terms(z[:2], z[2:])) - multivariate_normal(self.mean, self.covariance).logpdf(z))


@verifies(
    "hvae-importance-bound",
    r"""\begin{aligned}
\mathcal L_L(\theta,\phi;x)&=\mathbb E\left[\log\frac1L\sum_{l=1}^Lw_l\right],\qquad
z_{1:T}^{(1)},\dots,z_{1:T}^{(L)}\sim q_\phi(z_{1:T}\mid x)\\
w_l&=\frac{p_\theta(x\mid z_1^{(l)})\,p_\theta(z_1^{(l)}\mid z_2^{(l)})\cdots p(z_T^{(l)})}
{q_\phi(z_1^{(l)}\mid x)\,q_\phi(z_2^{(l)}\mid z_1^{(l)})\cdots q_\phi(z_T^{(l)}\mid z_{T-1}^{(l)})}\\
\mathcal L(\theta,\phi;x)&=\mathcal L_1\le\mathcal L_L\le\mathcal L_{L+1}\le\log p_\theta(x)
\end{aligned}""",
    kind="inequality",
    route="Monte Carlo",
    reason="five standard errors over 2,000 repetitions",
)
def hvae_importance_bound(rng: np.random.Generator) -> Lines:
    tower, shape = _VectorTower(rng), (2000, 50)
    # Bottom-up: p(z_1|x) and p(z_2|z_1) are Gaussian; q's means are moved and its scales are widened.
    first = multivariate_normal(tower.mean[:2], tower.covariance[:2, :2])
    factor_1 = 1.15 * np.linalg.cholesky(first.cov)
    mean_1 = first.mean + 0.4 * factor_1.sum(1)
    precision_2 = np.eye(2) + tower.w_2.T @ tower.w_2 / tower.s_2**2
    link, factor_2 = (
        np.linalg.solve(precision_2, tower.w_2.T) / tower.s_2**2,
        np.linalg.cholesky(np.linalg.inv(precision_2)),
    )
    shift, wide_2 = 0.4 * factor_2.sum(1), 1.15 * factor_2

    noise_1, noise_2 = rng.normal(size=(2, np.prod(shape), 2))
    z_1 = mean_1 + noise_1 @ factor_1.T
    z_2 = z_1 @ link.T + shift + noise_2 @ wide_2.T
    log_q = [norm.logpdf(e).sum(1) - np.log(np.diag(f)).sum() for e, f in ((noise_1, factor_1), (noise_2, wide_2))]
    log_x, log_1, log_2 = tower.log_terms(z_1, z_2)

    def bound(log_w: Array, draws: int) -> tuple[float, float]:
        """The mean over repetitions of log (1/L) Σ w_l, and its standard error."""
        logs = logsumexp(log_w.reshape(shape)[:, :draws], axis=1) - np.log(draws)
        return logs.mean(), logs.std() / np.sqrt(len(logs))

    log_w = log_x + log_1 + log_2 - sum(log_q)
    one, one_error = log_w.mean(), log_w.std() / np.sqrt(log_w.size)
    (five, five_error), (fifty, fifty_error) = bound(log_w, 5), bound(log_w, 50)
    # The gap in closed form: the KL of the first layer and, the same for every z_1, that of the second.
    gap = sum(
        kl_divergence(
            MultivariateNormal(torch.tensor(m), scale_tril=torch.tensor(f)),
            MultivariateNormal(torch.tensor(m_p), scale_tril=torch.tensor(f_p)),
        ).item()
        for m, f, m_p, f_p in (
            (mean_1, factor_1, first.mean, np.linalg.cholesky(first.cov)),
            (shift, wide_2, np.zeros(2), factor_2),
        )
    )
    covariance = tower.w_1 @ (tower.w_2 @ tower.w_2.T + tower.s_2**2 * np.eye(2)) @ tower.w_1.T
    evidence = multivariate_normal(np.zeros(3), covariance + tower.s_1**2 * np.eye(3)).logpdf(tower.x)
    first_line, last = "= L_1, the mean over draws", "≤ L_50"
    return Lines(
        {"L, closed form": evidence - gap, first_line: one, "≤ L_5": five, last: fifty, "≤ log p(x)": evidence},
        [
            Mutant("the mean of the logs", {last: log_w.mean()}),
            Mutant("the sum without 1/L", {last: fifty + np.log(50)}, erratum="E000-10"),
            Mutant("w without p(z_1|z_2)", {first_line: (log_w - log_1).mean()}),
            Mutant("w without p(z_2)", {first_line: (log_w - log_2).mean()}),
            Mutant("divided by q(z_1|x) alone", {first_line: (log_w + log_q[1]).mean()}),
        ],
        standard_errors={first_line: one_error, "≤ L_5": five_error, last: fifty_error},
    )


@verifies(
    "latent-dimension",
    r"""\begin{aligned}
&\max_\theta\,\mathbb E_{\hat p_N(x)}\left[\log p_\theta(x)\right]\\
&\quad=-\tfrac12\Big[\sum_{j\le d_z}\log\lambda_j+(d_x-d_z)\log\hat\sigma^2+d_x\log2\pi+d_x\Big]\\
&\quad\le\text{the same with }d_z+1,\qquad\hat\sigma^2=\frac1{d_x-d_z}\sum_{j>d_z}\lambda_j\\
&\quad=\text{at }d_z\text{ itself where }\lambda_{d_z+1}=\dots=\lambda_{d_x}
\end{aligned}""",
    kind="inequality",
    route="closed form",
    tolerance=1e-8,
    reason="the numerical maximum is flat: an error of 1e-5 in a weight costs about 1e-10",
)
def latent_dimension(rng: np.random.Generator) -> Lines:
    # Data whose covariance has exactly these eigenvalues: three directions, and noise that is the same in all.
    dim, intrinsic, n = 5, 3, 40
    spectrum = np.sort(np.append(rng.uniform(1.5, 6.0, intrinsic), np.full(dim - intrinsic, rng.uniform(0.3, 0.6))))[
        ::-1
    ]
    white = np.linalg.qr(rng.normal(size=(n, dim)) - rng.normal(size=(n, 1)))[0]
    white = np.linalg.qr(white - white.mean(0))[0] * np.sqrt(n)
    x = white * np.sqrt(spectrum) @ np.linalg.qr(rng.normal(size=(dim, dim)))[0] + rng.normal(size=dim)
    covariance, latents = torch.tensor(np.cov(x.T, bias=True)), range(1, intrinsic + 1)

    def fitted(latent: int) -> float:
        data = torch.tensor(x)
        return ProbabilisticPCA(dim, latent).double().fit(data).log_prob(data).mean().item()

    def trained(latent: int) -> float:
        """By descent in W and log σ; the best mean is the data's."""

        def negative(parameters: Array) -> tuple[float, Array]:
            p = torch.tensor(parameters, requires_grad=True)
            w = p[:-1].view(dim, latent)
            model = w @ w.T + (2 * p[-1]).exp() * torch.eye(dim)
            value = 0.5 * (
                torch.logdet(model) + torch.linalg.solve(model, covariance).trace() + dim * np.log(2 * np.pi)
            )
            return value.item(), torch.autograd.grad(value, p)[0].numpy()

        start = np.append(rng.normal(size=dim * latent), 0.0)
        return -optimize.minimize(negative, start, jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 2000}).fun

    def formula(latent: int, noise: Callable[[Array], float] = np.mean, left: int | None = None) -> float:
        kept, noise_variance = np.log(spectrum[:latent]).sum(), noise(spectrum[latent:])
        left = dim - latent if left is None else left
        return -0.5 * (kept + left * np.log(noise_variance) + dim * np.log(2 * np.pi) + dim)

    def over(function: Callable[[int], float]) -> Array:
        return np.array([function(d) for d in latents])

    line, more, flat = "= the formula", "≤ the formula at d_z + 1", "= the formula at min(d_z + 1, 3)"
    return Lines(
        {
            "best mean log p(x), by descent, d_z = 1, 2, 3": over(trained),
            "= ProbabilisticPCA.fit": over(fitted),
            line: over(formula),
            more: over(lambda d: formula(d + 1)),
            flat: over(lambda d: formula(min(d + 1, intrinsic))),
        },
        [
            Mutant("σ̂² the sum of what is left", {line: over(lambda d: formula(d, np.sum))}),
            Mutant("σ̂² the smallest eigenvalue", {line: over(lambda d: formula(d, np.min))}),
            Mutant("log σ̂² once for all that is left", {line: over(lambda d: formula(d, left=1))}),
            Mutant("log σ̂² once for every dimension of x", {line: over(lambda d: formula(d, left=dim))}),
            Mutant(
                "fewer latents are better", {more: over(lambda d: formula(d - 1)), flat: over(lambda d: formula(d - 1))}
            ),
        ],
    )
