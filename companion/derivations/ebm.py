"""Checks for the chapter on energy-based models and score matching.

Throughout, s is a score, E an energy, and p_σ the density of the data with noise of standard deviation σ.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from scipy import linalg, optimize, spatial
from scipy.special import expit, logsumexp, softmax
from scipy.stats import entropy, multivariate_normal, norm
from torch.nn import functional as F

from companion.derivations.registry import Lines, Mutant, Tolerance, verifies
from companion.derivations.toys import gauss_hermite, plane
from companion.models.ebm import RBM
from companion.models.ebm import laplacian as laplacians
from companion.models.ebm.score_model import ScoreModel
from companion.samplers.annealed_langevin import annealed_langevin
from companion.samplers.chains import split_r_hat
from companion.samplers.mcmc import leapfrog

Array = np.ndarray
Map = Callable[[torch.Tensor], torch.Tensor]
Vector = TypeVar("Vector", Array, torch.Tensor)

SMALL_SUMS = Tolerance(tolerance=1e-11, reason="sums of a few float64 numbers of order one")
JACOBIANS = Tolerance(tolerance=1e-10, reason="float64 Jacobians in a few dimensions")
QUADRATURE = Tolerance(tolerance=1e-10, reason="quadrature that resolves a smooth density to rounding")
DIFFERENCES = Tolerance(tolerance=1e-8, reason="central differences with step 1e-5, whose error is about 1e-10")


@dataclass(frozen=True)
class _Bumps:
    """E(x) = -log Σ_k e^{a_k - (x-μ_k)ᵀΛ_k(x-μ_k)/2} in the plane: e^{-E} is a mixture of Gaussians, but for Z."""

    heights: Array
    means: Array
    precisions: Array

    @classmethod
    def random(cls, rng: np.random.Generator, bumps: int = 2) -> "_Bumps":
        factors = np.eye(2) + 0.4 * rng.normal(size=(bumps, 2, 2))
        return cls(rng.normal(size=bumps), rng.normal(size=(bumps, 2)), factors @ factors.swapaxes(1, 2) + np.eye(2))

    def energy(self, x: Array) -> Array:
        squares = [((x - m) @ p * (x - m)).sum(-1) for m, p in zip(self.means, self.precisions, strict=True)]
        return -logsumexp(self.heights - 0.5 * np.stack(squares, -1), axis=-1)

    def density(self, x: Array, kt: float = 1.0) -> Array:
        """The mixture by SciPy; at another temperature than 1, of one bump only."""
        weights = softmax(self.heights - 0.5 * np.linalg.slogdet(self.precisions)[1])
        parts = [
            multivariate_normal(m, kt * np.linalg.inv(p)).pdf(x)
            for m, p in zip(self.means, self.precisions, strict=True)
        ]
        return weights @ parts


# Energies and temperatures


@verifies(
    "ebm-density",
    r"p_\theta(x)=\frac{e^{-E_\theta(x)}}{Z_\theta},\qquad Z_\theta=\int e^{-E_\theta(x')}\,dx'",
    kind="definition",
    route="quadrature",
    **QUADRATURE,
)
def ebm_density(rng: np.random.Generator) -> Lines:
    bumps, x = _Bumps.random(rng), rng.normal(size=(3, 2))
    nodes, weight = plane(10.0, 81)
    energy = bumps.energy(x)
    z = weight @ np.exp(-bumps.energy(nodes))
    return Lines(
        {"p(x) at three points, a mixture by SciPy": bumps.density(x), "= e^{-E(x)}/Z": np.exp(-energy) / z},
        [
            Mutant("e^{+E(x)}", np.exp(energy) / z),
            Mutant("dx for dx': nothing is integrated but 1", np.full(3, 1 / weight.sum()), erratum="E004-04"),
            Mutant("the network for e^{-E}", -energy / (weight @ -bumps.energy(nodes)), erratum="E004-17"),
            Mutant("Z forgotten", np.exp(-energy)),
            Mutant("log Z for Z", np.exp(-energy) / np.log(z)),
        ],
    )


@verifies(
    "boltzmann-temperature",
    r"""\begin{aligned}
p_T(x)&=\frac{e^{-E(x)/kT}}{\int e^{-E(x')/kT}\,dx'}\\
&=\frac{p(x)^{1/kT}}{\int p(x')^{1/kT}\,dx'},\qquad p=p_T\text{ at }kT=1
\end{aligned}""",
    kind="definition",
    route="quadrature",
    **QUADRATURE,
)
def boltzmann_temperature(rng: np.random.Generator) -> Lines:
    bumps, x, kt = _Bumps.random(rng, bumps=1), rng.normal(size=(3, 2)), rng.uniform(1.2, 1.5)
    nodes, weight = plane(12.0, 81)
    energy, at_nodes = bumps.energy(x), bumps.energy(nodes)

    def z(kt: float) -> float:
        return float(weight @ np.exp(-at_nodes / kt))

    p, p_nodes = bumps.density(x), bumps.density(nodes)

    def power(exponent: float) -> Array:
        return p**exponent / (weight @ p_nodes**exponent)

    line = "= e^{-E(x)/kT}/∫e^{-E(x')/kT}dx'"
    return Lines(
        {
            "p_T(x) at three points, N(μ, kT Σ) by SciPy": bumps.density(x, kt),
            line: np.exp(-energy / kt) / z(kt),
            "= p(x)^{1/kT}/∫p(x')^{1/kT}dx'": power(1 / kt),
        },
        [
            Mutant("e^{-E kT}", {line: np.exp(-energy * kt) / z(1 / kt)}),
            Mutant("Z at kT = 1", {line: np.exp(-energy / kt) / z(1.0)}),
            Mutant("Z^{1/kT}", {line: np.exp(-energy / kt) / z(1.0) ** (1 / kt)}),
            Mutant("p(x)^{kT}", power(kt)),
            Mutant("p(x)/kT, over its integral", power(1.0)),
        ],
    )


@verifies(
    "temperature-limits",
    r"\lim_{T\to0}p_T(x)=\frac{1[x\in\arg\min E]}{|\arg\min E|},\qquad"
    r"\lim_{T\to\infty}p_T(x)=\frac1{|\mathcal X|}",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def temperature_limits(rng: np.random.Generator) -> Lines:
    # Two of six states share the least energy. What is left of the others at kT = 0.01 is below e^{-50}.
    energy = rng.permutation([0, 0, *rng.uniform(0.5, 3, size=4)]) + rng.normal()
    least, most = energy == energy.min(), energy == energy.max()

    everywhere = np.full(6, 1 / 6)
    first = np.eye(6)[energy.argmin()]
    return Lines(
        {
            "p_T(x) of six x, at kT = 0.01 and at kT = 10¹³": [softmax(-energy / 0.01), softmax(-energy / 1e13)],
            "= 1[x ∈ argmin E]/|argmin E|, and 1/6": [least / 2, everywhere],
        },
        [
            Mutant("the two limits the other way round", [everywhere, least / 2]),
            Mutant("argmax for argmin", [most, everywhere]),
            Mutant("one minimum for both", [first, everywhere]),
            Mutant("1 at each minimum", [least, everywhere]),
            Mutant("p at kT = 1 for the hot one", [least / 2, softmax(-energy)]),
        ],
    )


@verifies(
    "energy-ordering",
    r"\log p(x_1)-\log p(x_2)=E(x_2)-E(x_1)",
    kind="identity",
    route="closed form",
    **SMALL_SUMS,
)
def energy_ordering(rng: np.random.Generator) -> Lines:
    bumps = _Bumps.random(rng)
    first, second = rng.normal(size=(2, 3, 2))
    difference = bumps.energy(second) - bumps.energy(first)
    log_z = logsumexp(bumps.heights - 0.5 * np.linalg.slogdet(bumps.precisions)[1]) + np.log(2 * np.pi)
    return Lines(
        {
            "log p(x_1) - log p(x_2), three pairs, a mixture by SciPy": np.log(bumps.density(first))
            - np.log(bumps.density(second)),
            "= E(x_2) - E(x_1)": difference,
        },
        [
            Mutant("E(x_1) - E(x_2)", -difference),
            Mutant("log Z remains", difference - log_z),
            Mutant("p(x_1)/p(x_2) without log", np.exp(difference)),
            Mutant("kT = 2", difference / 2),
        ],
    )


@verifies(
    "energy-shift",
    r"""\begin{aligned}
p_{E+c}(x)&=\frac{e^{-E(x)-c}}{\int e^{-E(x')-c}\,dx'}\\
&=\frac{e^{-c}\,e^{-E(x)}}{e^{-c}\int e^{-E(x')}\,dx'}=p_E(x)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def energy_shift(rng: np.random.Generator) -> Lines:
    bumps, x, c = _Bumps.random(rng), rng.normal(size=(3, 2)), rng.uniform(1, 2)
    nodes, weight = plane(10.0, 81)
    energy, at_nodes = bumps.energy(x), bumps.energy(nodes)

    def density(above: float, below: float) -> Array:
        return above * np.exp(-energy) / (below * (weight @ np.exp(-at_nodes)))

    first, second = "p_{E+c}(x) at three points", "= e^{-c}e^{-E(x)}/(e^{-c}Z)"
    return Lines(
        {
            first: np.exp(-energy - c) / (weight @ np.exp(-at_nodes - c)),
            second: density(np.exp(-c), np.exp(-c)),
            "= p_E(x), a mixture by SciPy": bumps.density(x),
        },
        [
            Mutant("c in E(x) only", {second: density(np.exp(-c), 1.0)}),
            Mutant("c in Z only", {second: density(1.0, np.exp(-c))}),
            Mutant("e^{+c} in Z", {second: density(np.exp(-c), np.exp(c))}),
            Mutant("cE for E + c", {first: np.exp(-c * energy) / (weight @ np.exp(-c * at_nodes))}),
        ],
    )


# Markov chains that need no normaliser


def _acceptance(energy: Array, q: Array, sign: float = 1.0, power: float = 1.0) -> Array:
    """a(x, y) of all pairs of states, from energies (n,) and proposals q(y|x) (n, n)."""
    return np.minimum(1, np.exp(sign * (energy[:, None] - energy)) * (q.T / q) ** power)


@verifies(
    "metropolis-no-normaliser",
    r"""\begin{aligned}
a(x,y)&=\min\Big(1,\frac{p(y)\,q(x|y)}{p(x)\,q(y|x)}\Big)\\
&=\min\Big(1,e^{E(x)-E(y)}\,\frac{q(x|y)}{q(y|x)}\Big)\\
p(x)\,q(y|x)\,a(x,y)&=p(y)\,q(x|y)\,a(y,x)
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def metropolis_no_normaliser(rng: np.random.Generator) -> Lines:
    energy, q = 1.5 * rng.normal(size=5) - 2, rng.dirichlet(np.full(5, 2.0), size=5)
    p = softmax(-energy)
    forward = p[:, None] * q

    def flow(acceptance: Array) -> Array:
        return forward * acceptance

    by_energies, last = "= p(x) q(y|x) a(x,y), a by energies", "= p(y) q(x|y) a(y,x)"
    both = flow(_acceptance(energy, q))
    one_sided = np.minimum(1, np.exp(-energy) * q.T / forward)
    return Lines(
        {
            "min(p(x) q(y|x), p(y) q(x|y)), all pairs of five states": np.minimum(forward, forward.T),
            "= p(x) q(y|x) a(x,y), a by p": flow(np.minimum(1, forward.T / forward)),
            by_energies: both,
            last: both.T,
        },
        [
            Mutant("only p(x) of the two normalised", {by_energies: flow(one_sided)}, erratum="E004-01"),
            Mutant("e^{E(y)-E(x)}", {by_energies: flow(_acceptance(energy, q, sign=-1.0))}),
            Mutant("q's ratio forgotten", {by_energies: flow(_acceptance(energy, q, power=0.0))}),
            Mutant("q's ratio upside down", {by_energies: flow(_acceptance(energy, q, power=-1.0))}),
            Mutant("a(x,y) on both sides", forward.T * _acceptance(energy, q)),
        ],
    )


@verifies(
    "metropolis-stationary",
    r"""\begin{aligned}
K(y|x)&=q(y|x)\,a(x,y)+1[y=x]\,\Big(1-\sum_{x'}q(x'|x)\,a(x,x')\Big)\\
\sum_xp(x)\,K(y|x)&=p(y)=\lim_{n\to\infty}K^n(y|x_0)\quad\text{for every }x_0
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def metropolis_stationary(rng: np.random.Generator) -> Lines:
    energy, q = rng.normal(size=5), rng.dirichlet(np.full(5, 2.0), size=5)
    p = softmax(-energy)

    def kernel(**slip: float) -> Array:
        moves = q * _acceptance(energy, q, **slip)
        return moves + np.diag(1 - moves.sum(1))

    def after(kernel: Array) -> Array:
        return np.linalg.matrix_power(kernel, 4096)[0]

    moves = q * _acceptance(energy, q)
    line = "= Σ_x p(x) K(y|x), K by energies"
    return Lines(
        {"p(y) of five states": p, line: p @ kernel(), "= K^n(y|x_0), n = 4096": after(kernel())},
        [
            Mutant("refusals not counted: K over its sum", after(moves / moves.sum(1, keepdims=True))),
            Mutant("refused states lost", {line: p @ moves}),
            Mutant("everything accepted", after(q)),
            Mutant("e^{E(y)-E(x)}", after(kernel(sign=-1.0))),
            Mutant("q's ratio forgotten", after(kernel(power=0.0))),
        ],
    )


# Restricted Boltzmann machines, small enough to list every state


def _states(units: int) -> Array:
    """(2^units, units), all of them."""
    return np.array(list(itertools.product([0.0, 1.0], repeat=units)))


@dataclass(frozen=True)
class _Rbm:
    """E(v, h) = -bᵀv - cᵀh - hᵀWv with v and h of zeros and ones, and tables over all of their states."""

    weight: Array
    bias: Array
    hidden_bias: Array

    @classmethod
    def random(cls, rng: np.random.Generator, visible: int = 4, hidden: int = 3) -> "_Rbm":
        return cls(1.5 * rng.normal(size=(hidden, visible)), rng.normal(size=visible), rng.normal(size=hidden))

    @property
    def v(self) -> Array:
        return _states(len(self.bias))

    @property
    def h(self) -> Array:
        return _states(len(self.hidden_bias))

    @property
    def energy(self) -> Array:
        """(states of v, states of h)."""
        return -(self.v @ self.bias)[:, None] - self.h @ self.hidden_bias - self.v @ self.weight.T @ self.h.T

    def model(self) -> RBM:
        """The same as one of the models."""
        hidden, visible = self.weight.shape
        model = RBM((visible,), hidden).double()
        with torch.no_grad():
            model.weight.copy_(torch.tensor(self.weight))
            model.bias.copy_(torch.tensor(self.bias))
            model.hidden_bias.copy_(torch.tensor(self.hidden_bias))
        return model.requires_grad_(False)


@verifies(
    "rbm-energy",
    r"""\begin{aligned}
E(v,h)&=-\sum_ib_iv_i-\sum_jc_jh_j-\sum_{i,j}h_jW_{ji}v_i\\
&=-b^\top v-c^\top h-h^\top Wv
\end{aligned}""",
    kind="definition",
    route="enumeration",
    **SMALL_SUMS,
)
def rbm_energy(rng: np.random.Generator) -> Lines:
    rbm = _Rbm.random(rng, 3, 3)
    w, b, c = rbm.weight, rbm.bias, rbm.hidden_bias

    def in_general(pairs: Array, factor: float = 0.5) -> Array:
        """A Boltzmann machine of all six units s, -dᵀs - ½ sᵀMs, in which every pair is counted twice."""
        s = np.array([[[*v, *h] for h in rbm.h] for v in rbm.v])
        return -s @ np.append(b, c) - factor * np.einsum("vhi,ij,vhj->vh", s, pairs, s)

    def by_hand(v: Array, h: Array) -> float:
        connections = sum(h[j] * w[j, i] * v[i] for i in range(3) for j in range(3))
        return -sum(b[i] * v[i] for i in range(3)) - sum(c[j] * h[j] for j in range(3)) - connections

    def formula(w: Array = w, sign: float = -1.0, b: Array = b, c: Array = c) -> Array:
        return -(rbm.v @ b)[:, None] - rbm.h @ c + sign * rbm.v @ w.T @ rbm.h.T

    pairs = np.block([[np.zeros((3, 3)), w.T], [w, np.zeros((3, 3))]])
    line = "= of a Boltzmann machine without pairs of one kind"
    return Lines(
        {
            "-Σ_i b_i v_i - Σ_j c_j h_j - Σ_ij h_j W_ji v_i, all 64 states": [
                [by_hand(v, h) for h in rbm.h] for v in rbm.v
            ],
            line: in_general(pairs),
            "= -bᵀv - cᵀh - hᵀWv": formula(),
        },
        [
            Mutant("+hᵀWv", formula(sign=1.0)),
            Mutant("hᵀWᵀv", formula(w=w.T)),
            Mutant("b and c exchanged", formula(b=c, c=b)),
            Mutant("½ hᵀWv", formula(sign=-0.5)),
            Mutant("every pair twice", {line: in_general(pairs, factor=1.0)}),
            Mutant("pairs of hidden units, too", {line: in_general(pairs + np.pad(w + w.T, ((3, 0), (3, 0))))}),
        ],
    )


@verifies(
    "rbm-free-energy",
    r"""\begin{aligned}
p(v)&=\frac{e^{-F(v)}}Z\\
F(v)&=-\log\sum_he^{-E(v,h)}\\
&=-b^\top v-\sum_j\log\big(1+e^{c_j+(Wv)_j}\big)
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def rbm_free_energy(rng: np.random.Generator) -> Lines:
    rbm = _Rbm.random(rng)
    linear, logits = rbm.v @ rbm.bias, rbm.hidden_bias + rbm.v @ rbm.weight.T
    joint = softmax(-rbm.energy)
    log_z = np.log(np.exp(-rbm.energy).sum())

    hidden = np.log1p(np.exp(logits)).sum(1)
    line = "= -log Σ_h e^{-E(v,h)}"
    return Lines(
        {
            "-log p(v) - log Z, all 16 v, p(v) summed from the joint table": -np.log(joint.sum(1)) - log_z,
            line: -logsumexp(-rbm.energy, axis=1),
            "= by the models' machine": rbm.model().energy(torch.tensor(rbm.v)).numpy(),
            "= -bᵀv - Σ_j log(1 + e^{c_j+(Wv)_j})": -linear - hidden,
        },
        [
            Mutant("+Σ_j", -linear + hidden),
            Mutant("the 1 forgotten: h = 1", -linear - logits.sum(1)),
            Mutant("one log for all j", -linear - np.log1p(np.exp(logits.sum(1)))),
            Mutant("h = ±1", -linear - np.log(2 * np.cosh(logits)).sum(1)),
            Mutant("e^{-c_j-(Wv)_j}", -linear - np.log1p(np.exp(-logits)).sum(1)),
            Mutant("the mean of E(v,h) over p(h|v)", {line: (softmax(-rbm.energy, axis=1) * rbm.energy).sum(1)}),
        ],
    )


@verifies(
    "rbm-conditionals",
    r"""\begin{aligned}
p(h|v)&=\prod_jp(h_j|v),\qquad p(h_j{=}1|v)=\sigma\big(c_j+(Wv)_j\big)\\
p(v|h)&=\prod_ip(v_i|h),\qquad p(v_i{=}1|h)=\sigma\big(b_i+(W^\top h)_i\big)
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def rbm_conditionals(rng: np.random.Generator) -> Lines:
    # As many units of one kind as of the other, so that W and Wᵀ could be mistaken.
    rbm = _Rbm.random(rng, 3, 3)
    w, b, c = rbm.weight, rbm.bias, rbm.hidden_bias
    joint = softmax(-rbm.energy)
    given_v, given_h = joint / joint.sum(1, keepdims=True), joint / joint.sum(0)

    def units(on: Array, states: Array) -> Array:
        """Π_j p(s_j), of probabilities (conditions, units) to be 1: (conditions, states)."""
        return np.where(states, on[:, None], 1 - on[:, None]).prod(-1)

    def both(on_h: Array, on_v: Array) -> Array:
        return np.stack([units(on_h, rbm.h), units(on_v, rbm.v).T])

    def formula(
        scale: float = 1.0, w_h: Array = w, w_v: Array = w, b: Array = b, c: Array = c, states_h: Array = rbm.h
    ) -> Array:
        return both(expit(scale * (c + rbm.v @ w_h.T)), expit(scale * (b + states_h @ w_v)))

    model, v, h = rbm.model(), torch.tensor(rbm.v), torch.tensor(rbm.h)
    of_model = both(model.hidden_given_visible(v).mean.numpy(), model.visible_given_hidden(h).mean.numpy())
    return Lines(
        {
            "p(h|v) and p(v|h), all 64 pairs, from the joint table": np.stack([given_v, given_h]),
            "= products of p(h_j|v) and of p(v_i|h), of the table": both(given_v @ rbm.h, given_h.T @ rbm.v),
            "= by the models' machine": of_model,
            "= by σ": formula(),
        },
        [
            Mutant("σ(-c_j-(Wv)_j), σ(-b_i-(Wᵀh)_i)", formula(scale=-1.0)),
            Mutant("Wh for Wᵀh", formula(w_v=w.T)),
            Mutant("Wᵀv for Wv", formula(w_h=w.T)),
            Mutant("c_j forgotten", formula(c=0 * c)),
            Mutant("b and c exchanged", formula(b=c, c=b)),
            Mutant("units of ±1: twice the log-odds", formula(scale=2.0)),
        ],
    )


@verifies(
    "rbm-partition",
    r"""\begin{aligned}
Z&=\sum_{v,h}e^{-E(v,h)}&&2^{d_v+d_h}\text{ terms}\\
&=\sum_ve^{b^\top v}\prod_j\big(1+e^{c_j+(Wv)_j}\big)&&2^{d_v}\text{ terms}\\
&=\sum_he^{c^\top h}\prod_i\big(1+e^{b_i+(W^\top h)_i}\big)&&2^{d_h}\text{ terms}
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def rbm_partition(rng: np.random.Generator) -> Lines:
    rbm = _Rbm.random(rng, 6, 4)
    w, b, c = rbm.weight, rbm.bias, rbm.hidden_bias

    def over(states: Array, linear: Array, constant: Array, w: Array, one: float = 1.0, sign: float = 1.0) -> float:
        return np.log((np.exp(sign * states @ linear) * (one + np.exp(constant + states @ w)).prod(1)).sum())

    of_v, of_h = (rbm.v, b, c, w.T), (rbm.h, c, b, w)
    over_v = "= over v, h summed in closed form"
    return Lines(
        {
            "log Z, over 2^10 states": np.log(np.exp(-rbm.energy).sum()),
            "= by the models' machine": rbm.model().log_partition(),
            over_v: over(*of_v),
            "= over h, v summed in closed form": over(*of_h),
        },
        [
            Mutant("the 1 forgotten: v = 1", over(*of_h, one=0.0)),
            Mutant("e^{-cᵀh}", over(*of_h, sign=-1.0)),
            Mutant("e^{bᵀv} forgotten", {over_v: over(*of_v, sign=0.0)}),
            Mutant("a mean over v", {over_v: over(*of_v) - 6 * np.log(2)}),
            Mutant("one h for all v: the largest term of each", {over_v: logsumexp(-rbm.energy.min(1))}),
        ],
    )


# Maximum likelihood


@dataclass(frozen=True)
class _Network:
    """E_θ(x) = ‖x‖²/2 + Σ_k a_k sin(w_kᵀx + b_k) in the plane, θ = (a, w, b) of two units: eight numbers."""

    theta: Array

    @classmethod
    def random(cls, rng: np.random.Generator) -> "_Network":
        return cls(rng.normal(size=8))

    @staticmethod
    def energy(theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        a, w, b = theta[:2], theta[2:6].view(2, 2), theta[6:]
        return x.square().sum(-1) / 2 + torch.sin(x @ w.T + b) @ a

    def at(self, x: Array, theta: Array | None = None) -> Array:
        return self.energy(torch.tensor(self.theta if theta is None else theta), torch.tensor(x)).numpy()

    def theta_gradient(self, x: Array) -> Array:
        """∇_θ E_θ(x), written out: (points, 8)."""
        a, w, b = self.theta[:2], self.theta[2:6].reshape(2, 2), self.theta[6:]
        u = x @ w.T + b
        slope = a * np.cos(u)
        return np.concatenate([np.sin(u), slope[:, :1] * x, slope[:, 1:] * x, slope], axis=1)

    def slope(self, x: Array) -> Array:
        """∇_x E_θ(x), written out: (points, 2)."""
        a, w, b = self.theta[:2], self.theta[2:6].reshape(2, 2), self.theta[6:]
        return x + (a * np.cos(x @ w.T + b)) @ w

    def differences(self, function: Callable[[Array], Array], step: float = 1e-5) -> Array:
        """The gradient in θ of a function of θ: (..., 8)."""
        columns = [(function(self.theta + e) - function(self.theta - e)) / (2 * step) for e in step * np.eye(8)]
        return np.stack(columns, -1)

    def by_autograd(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Array:
        return torch.autograd.functional.jacobian(function, torch.tensor(self.theta)).numpy()


@verifies(
    "log-partition-gradient",
    r"""\begin{aligned}
\nabla_\theta\log Z_\theta&=\frac1{Z_\theta}\nabla_\theta\int e^{-E_\theta(x)}\,dx\\
&=-\frac1{Z_\theta}\int e^{-E_\theta(x)}\,\nabla_\theta E_\theta(x)\,dx\\
&=-\mathbb E_{p_\theta}[\nabla_\theta E_\theta(x)]
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **DIFFERENCES,
)
def log_partition_gradient(rng: np.random.Generator) -> Lines:
    network, (nodes, weight) = _Network.random(rng), plane(9.0, 81)
    factor = np.exp(-network.at(nodes))
    z, gradient = weight @ factor, network.theta_gradient(nodes)
    at_nodes, by = torch.tensor(nodes), torch.tensor(weight)
    of_z = network.by_autograd(lambda theta: by @ torch.exp(-network.energy(theta, at_nodes)))
    p = torch.softmax(torch.tensor(-network.at(nodes)), 0)
    mean = network.by_autograd(lambda theta: p @ network.energy(theta, at_nodes))
    line, last = "= -∫ e^{-E} ∇E dx/Z, ∇E written out", "= -E_p[∇E], ∇E by autograd"
    return Lines(
        {
            "∇ log Z, by differences": network.differences(lambda t: np.log(weight @ np.exp(-network.at(nodes, t)))),
            "= ∇Z/Z, by autograd": of_z / z,
            line: -(weight * factor) @ gradient / z,
            last: -mean,
        },
        [
            Mutant("+E_p[∇E]", mean),
            Mutant("1/Z forgotten", {line: -(weight * factor) @ gradient}),
            Mutant("the mean of ∇E over N(0, I), not p", -softmax(-(nodes**2).sum(1) / 2) @ gradient),
            Mutant("∇E at the mean of p", -network.theta_gradient(softmax(-network.at(nodes)) @ nodes[None])[0]),
            Mutant("e^{+E} in the integral", {line: -(weight / factor) @ gradient / z}),
        ],
    )


@verifies(
    "ebm-mle-gradient",
    r"""\begin{aligned}
\nabla_\theta\log p_\theta(x)&=-\nabla_\theta E_\theta(x)-\nabla_\theta\log Z_\theta\\
&=\mathbb E_{p_\theta}[\nabla_\theta E_\theta(x')]-\nabla_\theta E_\theta(x)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **DIFFERENCES,
)
def ebm_mle_gradient(rng: np.random.Generator) -> Lines:
    network, x, (nodes, weight) = _Network.random(rng), rng.normal(size=(3, 2)), plane(9.0, 81)
    at_x, at_nodes = torch.tensor(x), torch.tensor(nodes)

    def log_p(theta: Array) -> Array:
        return -network.at(x, theta) - np.log(weight @ np.exp(-network.at(nodes, theta)))

    of_x = network.by_autograd(lambda theta: network.energy(theta, at_x))
    of_log_z = network.by_autograd(lambda theta: torch.logsumexp(-network.energy(theta, at_nodes), 0))
    negative = softmax(-network.at(nodes)) @ network.theta_gradient(nodes)
    positive = network.theta_gradient(x)
    line = "= -∇E(x) - ∇ log Z, by autograd"
    return Lines(
        {
            "∇ log p(x) at three x, by differences": network.differences(log_p),
            line: -of_x - of_log_z,
            "= E_p[∇E(x')] - ∇E(x), written out": negative - positive,
        },
        [
            Mutant("the phases exchanged", positive - negative),
            Mutant("no negative phase", -positive),
            Mutant("-E_p[∇E(x')] - ∇E(x)", -negative - positive),
            Mutant("+∇ log Z", {line: -of_x + of_log_z}),
            Mutant("the data's mean of ∇E for the model's", positive.mean(0) - positive),
        ],
    )


@dataclass(frozen=True)
class _Learning:
    """A restricted Boltzmann machine with θ = (b, c, W), what it should learn, and its chain as a function of θ."""

    theta: torch.Tensor
    features: torch.Tensor
    data: torch.Tensor

    @classmethod
    def random(cls, rng: np.random.Generator) -> "_Learning":
        rbm = _Rbm.random(rng, 3, 2)
        products = np.einsum("vi,hj->vhji", rbm.v, rbm.h).reshape(8, 4, 6)
        v, h = np.broadcast_to(rbm.v[:, None], (8, 4, 3)), np.broadcast_to(rbm.h, (8, 4, 2))
        return cls(
            torch.tensor(np.concatenate([rbm.bias, rbm.hidden_bias, rbm.weight.ravel()])),
            # -∇_θ E(v, h): the energy is linear in θ.
            torch.tensor(np.concatenate([v, h, products], axis=2)),
            torch.tensor(rng.dirichlet(np.ones(8))),
        )

    def log_p(self, theta: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(torch.logsumexp(self.features @ theta, 1), 0)

    def kernel(self, theta: torch.Tensor) -> torch.Tensor:
        """T(v'|v) = Σ_h p(v'|h) p(h|v), (v, v')."""
        logits = self.features @ theta
        return torch.softmax(logits, 1) @ torch.softmax(logits, 0).T

    def after(self, theta: torch.Tensor, steps: int) -> torch.Tensor:
        """p_k: the law of chains that start at the data, after so many steps."""
        return self.data @ torch.linalg.matrix_power(self.kernel(theta), steps)

    @property
    def slope(self) -> torch.Tensor:
        """∇_θ F(v) = E_{p(h|v)}[∇_θ E(v, h)], (v, θ)."""
        return -(torch.softmax(self.features @ self.theta, 1)[..., None] * self.features).sum(1)

    def kl_to_model(self, p: torch.Tensor, theta: torch.Tensor | None = None) -> torch.Tensor:
        return (p * (p.log() - self.log_p(self.theta if theta is None else theta))).sum()

    def by_autograd(self, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.autograd.functional.jacobian(function, self.theta)


@verifies(
    "contrastive-divergence",
    r"""\begin{aligned}
g_k&=\mathbb E_{p_k}[\nabla_\theta F_\theta]-\mathbb E_{p_0}[\nabla_\theta F_\theta]\\
&\quad\text{with }p_k(v')=\sum_vp_{k-1}(v)\,T(v'|v),\quad p_0=p_{\rm data}\\
\lim_{k\to\infty}g_k&=\mathbb E_{p_\theta}[\nabla_\theta F_\theta]-\mathbb E_{p_0}[\nabla_\theta F_\theta]\\
&\quad=\nabla_\theta\,\mathbb E_{p_0}[\log p_\theta]
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def contrastive_divergence(rng: np.random.Generator) -> Lines:
    learning = _Learning.random(rng)
    slope, data, features = learning.slope, learning.data, learning.features
    logits, kernel = features @ learning.theta, learning.kernel(learning.theta)
    given_v, given_h = torch.softmax(logits, 1), torch.softmax(logits, 0)
    # The law of v, h, v', h' together, and what is counted in it: v h at the start less v' h' after one step.
    path = torch.einsum("v,vh,wh,wk->vhwk", data, given_v, given_h, given_v)
    counted = (path[..., None] * (features[:, :, None, None] - features)).sum((0, 1, 2, 3))
    model = -(torch.softmax(logits.flatten(), 0)[:, None] * features.flatten(0, 1)).sum(0)

    def g(steps: int, start: torch.Tensor = data, kernel: torch.Tensor = kernel) -> torch.Tensor:
        return start @ torch.linalg.matrix_power(kernel, steps) @ slope - data @ slope

    def both(one: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
        return torch.stack([one, limit])

    exact = learning.by_autograd(lambda theta: data @ learning.log_p(theta))
    line, last = (
        "= g_1 by T, and E_p[∇F] - E_{p_0}[∇F], p by its table",
        "= g_1, and ∇ E_{p_0}[log p], by autograd",
    )
    noise = torch.full((8,), 1 / 8, dtype=data.dtype)
    return Lines(
        {
            "g_1, over all v, h, v', h', and g_k, k = 2^11": both(counted, g(2**11)),
            line: both(g(1), model - data @ slope),
            last: both(g(1), exact),
        },
        [
            Mutant("k = 1 as if it were the limit", both(g(1), g(1))),
            Mutant("the phases exchanged", {line: both(-g(1), data @ slope - model)}),
            Mutant("chains from noise", {line: both(g(1, noise), model - data @ slope)}),
            Mutant("T transposed", {line: both(g(1, kernel=kernel.T), model - data @ slope)}),
            Mutant("two steps for one", {line: both(g(2), model - data @ slope)}),
            Mutant("the mean over all v for that over p", {line: both(g(1), slope.mean(0) - data @ slope)}),
        ],
    )


@verifies(
    "cd-bias",
    r"""\begin{aligned}
\big|\mathbb E_{p_k}[f]-\mathbb E_{p_\theta}[f]\big|
&\le\lambda^k\,\sqrt{\chi^2(p_0\Vert p_\theta)\,\mathrm{Var}_{p_\theta}(f)}\\
\chi^2(p\Vert q)&=\sum_v\frac{(p(v)-q(v))^2}{q(v)}\\
&\quad\text{with }\lambda<1\text{ the second largest eigenvalue of }T
\end{aligned}""",
    kind="inequality",
    route="enumeration",
    **SMALL_SUMS,
)
def cd_bias(rng: np.random.Generator) -> Lines:
    learning = _Learning.random(rng)
    p, data = learning.log_p(learning.theta).exp().numpy(), learning.data.numpy()
    kernel, f = learning.kernel(learning.theta).numpy(), learning.slope.numpy()
    k, root = np.array([1, 2, 4, 8])[:, None], np.sqrt(p)
    bias = [abs((data @ np.linalg.matrix_power(kernel, n) - p) @ f) for [n] in k]
    # T is reversible: √p(v) T(v'|v) / √p(v') is symmetric, with the same eigenvalues.
    values, vectors = np.linalg.eigh(root[:, None] * kernel / root)
    start, functions = vectors.T @ (data / root), vectors.T @ (root[:, None] * f)
    spectral = abs((values[:-1] ** k)[..., None] * start[:-1, None] * functions[:-1]).sum(1)
    by_parts = np.sqrt((start[:-1] ** 2).sum() * (functions[:-1] ** 2).sum(0))
    variance, chi = p @ (f - p @ f) ** 2, ((data - p) ** 2 / p).sum()

    def bound(rate: Array = values[-2] ** k, chi: float = chi, variance: Array = variance) -> Array:
        return rate * np.sqrt(chi * variance)

    return Lines(
        {
            "|E_{p_k}[∇F] - E_p[∇F]|, k = 1, 2, 4, 8": bias,
            "≤ Σ_m |λ_m^k α_m β_m| over the eigenvectors but the first": spectral,
            "≤ λ^k √(Σ_m α_m² Σ_m β_m²)": values[-2] ** k * by_parts,
            "= λ^k √(χ²(p_0‖p) Var_p(∇F))": bound(),
        },
        [
            Mutant("λ^{2k}", bound(rate=values[-2] ** (2 * k))),
            Mutant("the third eigenvalue", bound(rate=values[-3] ** k)),
            Mutant("χ² over p_0", bound(chi=((data - p) ** 2 / data).sum())),
            Mutant("Var for its root", bound(variance=variance**2)),
        ],
    )


@verifies(
    "cd-kl-difference",
    r"""\begin{aligned}
\mathrm{CD}_k&=\mathrm{KL}(p_0\Vert p_\theta)-\mathrm{KL}(p_k\Vert p_\theta)\\
\mathrm{KL}(p_0\Vert p_\theta)&\ge\mathrm{CD}_k\ge\mathrm{CD}_{k-1}\ge0
\end{aligned}""",
    kind="inequality",
    route="enumeration",
    **SMALL_SUMS,
)
def cd_kl_difference(rng: np.random.Generator) -> Lines:
    learning, other = _Learning.random(rng), _Learning.random(rng)
    full = learning.kl_to_model(learning.data)
    left = [learning.kl_to_model(learning.after(learning.theta, k)) for k in (3, 2, 1)]
    names = ["≥ CD_3", "≥ CD_2", "≥ CD_1"]

    def values(cd: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: cd(kl) for name, kl in zip(names, left, strict=True)}

    elsewhere = full - learning.kl_to_model(learning.after(other.theta, 1))
    return Lines(
        {"KL(p_0‖p)": full, **values(lambda kl: full - kl), "≥ 0": 0.0},
        [
            Mutant("KL(p_k‖p) - KL(p_0‖p)", values(lambda kl: kl - full)),
            Mutant("KL(p_k‖p) alone", values(lambda kl: kl)),
            Mutant("KL(p_0‖p) + KL(p_k‖p)", values(lambda kl: full + kl)),
            Mutant("one step of a chain of another model", {"≥ CD_1": elsewhere}),
        ],
    )


@verifies(
    "cd-ignored-term",
    r"-\nabla_\theta\mathrm{CD}_k=\mathbb E_{p_k}[\nabla_\theta F_\theta]-\mathbb E_{p_0}[\nabla_\theta F_\theta]"
    r"+\sum_v\log\frac{p_k(v)}{p_\theta(v)}\,\nabla_\theta p_k(v)",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def cd_ignored_term(rng: np.random.Generator) -> Lines:
    learning = _Learning.random(rng)
    theta, slope, data = learning.theta, learning.slope, learning.data
    log_p = learning.log_p(theta)

    def cd(theta: torch.Tensor, k: int) -> torch.Tensor:
        return learning.kl_to_model(data, theta) - learning.kl_to_model(learning.after(theta, k), theta)

    def formula(factor: float = 1.0, against: torch.Tensor = log_p) -> torch.Tensor:
        lines = []
        for k in (1, 2, 3):
            p, of_p = learning.after(theta, k), learning.by_autograd(partial(learning.after, steps=k))
            lines.append((p - data) @ slope + factor * (p.log() - against) @ of_p)
        return torch.stack(lines)

    return Lines(
        {
            "-∇ CD_k, k = 1, 2, 3, by autograd": [-learning.by_autograd(partial(cd, k=k)) for k in (1, 2, 3)],
            "= E_{p_k}[∇F] - E_{p_0}[∇F] + Σ_v log(p_k/p) ∇p_k": formula(),
        },
        [
            Mutant("the last term ignored, as the algorithm does", formula(factor=0.0)),
            Mutant("its sign", formula(factor=-1.0)),
            Mutant("log p_k/p_0", formula(against=data.log())),
            Mutant("log p_k alone", formula(against=0 * data)),
        ],
    )


# Langevin dynamics


def _grad(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.functional.jacobian(function, x, create_graph=True)


@dataclass(frozen=True)
class _Quadratic:
    """E(x) = (x-μ)ᵀΛ(x-μ)/2."""

    mean: Array
    precision: Array

    @classmethod
    def random(cls, rng: np.random.Generator, dim: int = 3) -> "_Quadratic":
        factor = rng.normal(size=(dim, dim))
        return cls(rng.normal(size=dim), factor @ factor.T / dim + 0.5 * np.eye(dim))

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        d = x - torch.tensor(self.mean)
        return (d @ torch.tensor(self.precision) * d).sum(-1) / 2

    def contraction(self, drift: float) -> Array:
        """I - drift Λ."""
        return np.eye(len(self.mean)) - drift * self.precision


def _spd(rng: np.random.Generator, dim: int) -> Array:
    """A random covariance."""
    factor = rng.normal(size=(dim, dim))
    return factor @ factor.T / dim + 0.2 * np.eye(dim)


@verifies(
    "langevin-sampling",
    r"""\begin{aligned}
x_{k+1}&=x_k-\tfrac\epsilon2\nabla E(x_k)+\sqrt\epsilon\,\xi_k,\qquad\xi_k\sim N(0,I)\\
&\quad\text{and for }E=\tfrac12(x-\mu)^\top\Lambda(x-\mu):\\
\mathbb E[x_{k+1}]-\mu&=(I-\tfrac\epsilon2\Lambda)\,(\mathbb E[x_k]-\mu)\\
\mathrm{Cov}[x_{k+1}]&=(I-\tfrac\epsilon2\Lambda)\,\mathrm{Cov}[x_k]\,(I-\tfrac\epsilon2\Lambda)+\epsilon I
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def langevin_sampling(rng: np.random.Generator) -> Lines:
    target, eps, n = _Quadratic.random(rng), rng.uniform(0.3, 0.6), 3
    mean, cov = rng.normal(size=3), _spd(rng, 3)
    root = np.linalg.cholesky(cov)

    def run(u: torch.Tensor) -> torch.Tensor:
        """x_n from the numbers that are drawn: those of the start, and ξ_0, …, ξ_{n-1}."""
        x = torch.tensor(mean) + torch.tensor(root) @ u[0]
        for xi in u[1:]:
            x = x - eps / 2 * _grad(target.energy, x) + np.sqrt(eps) * xi
        return x

    def value(mean: Array, cov: Array) -> Array:
        return np.concatenate([mean, cov[np.triu_indices(3)]])

    def quadrature() -> Array:
        z, weight = gauss_hermite(6, 2)
        m, v = mean, cov
        for _ in range(n):
            x = torch.tensor(m + z[:, :3] @ np.linalg.cholesky(v).T, requires_grad=True)
            [slope] = torch.autograd.grad(target.energy(x).sum(), x)
            y = x.detach().numpy() - eps / 2 * slope.numpy() + np.sqrt(eps) * z[:, 3:]
            m = weight @ y
            v = (y - m).T * weight @ (y - m)
        return value(m, v)

    def recursion(drift: float = eps / 2, noise: float = eps, second: float | None = None) -> Array:
        a, b = target.contraction(drift), target.contraction(drift if second is None else second)
        m, v = mean, cov
        for _ in range(n):
            m, v = target.mean + a @ (m - target.mean), a @ v @ b + noise * np.eye(3)
        return value(m, v)

    drawn = torch.zeros(n + 1, 3, dtype=torch.float64)
    still = run(drawn).detach()
    noise = torch.autograd.functional.jacobian(run, drawn).numpy().reshape(3, -1)
    powers = [np.linalg.matrix_power(target.contraction(eps / 2), k) for k in range(n + 1)]
    return Lines(
        {
            "mean and covariance of x_3, by autograd through the steps": value(still.numpy(), noise @ noise.T),
            "= step by step, expectations by quadrature": quadrature(),
            "= μ + Aⁿ(m-μ) and AⁿVAⁿ + ε Σ_k A^{2k}, A = I - εΛ/2": value(
                target.mean + powers[n] @ (mean - target.mean),
                powers[n] @ cov @ powers[n] + eps * sum(a @ a for a in powers[:n]),
            ),
            "= by the recursion of the mean, and by that of the covariance": recursion(),
        },
        [
            Mutant("a drift of ε∇E", recursion(drift=eps)),
            Mutant("noise of size ε for √ε", recursion(noise=eps**2)),
            Mutant("noise of size √(2ε)", recursion(noise=2 * eps)),
            Mutant("uphill", recursion(drift=-eps / 2)),
            Mutant("no noise", recursion(noise=0.0)),
            Mutant("(I - εΛ/2) on one side only", recursion(second=0.0)),
        ],
    )


@verifies(
    "langevin-bias",
    r"""\begin{aligned}
\Sigma_\epsilon&=(I-\tfrac\epsilon2\Lambda)\,\Sigma_\epsilon\,(I-\tfrac\epsilon2\Lambda)+\epsilon I\\
&=\Lambda^{-1}\big(I-\tfrac\epsilon4\Lambda\big)^{-1}\\
&=\Lambda^{-1}+\tfrac\epsilon4\big(I-\tfrac\epsilon4\Lambda\big)^{-1}
\;\to\;\Lambda^{-1}\quad(\epsilon\to0),\qquad\epsilon\Lambda<4I
\end{aligned}""",
    kind="identity",
    route="closed form",
    **SMALL_SUMS,
)
def langevin_bias(rng: np.random.Generator) -> Lines:
    target = _Quadratic.random(rng)
    eps = rng.uniform(1.0, 3.0) / np.linalg.eigvalsh(target.precision)[-1]
    a, exact = target.contraction(eps / 2), np.linalg.inv(target.precision)

    # So many steps from a point, 2^12 of them, two halves at a time.
    power, steps = a, eps * np.eye(3)
    for _ in range(12):
        power, steps = power @ power, steps + power @ steps @ power

    def formula(part: float = eps / 4, rest: float = eps / 4) -> Array:
        return exact + part * np.linalg.inv(target.contraction(rest))

    line = "= Λ⁻¹(I - εΛ/4)⁻¹"
    return Lines(
        {
            "the covariance after 2^12 steps": steps,
            "= Σ with Σ = (I - εΛ/2)Σ(I - εΛ/2) + εI, by SciPy": linalg.solve_discrete_lyapunov(a, eps * np.eye(3)),
            line: exact @ np.linalg.inv(target.contraction(eps / 4)),
            "= Λ⁻¹ + ε/4 (I - εΛ/4)⁻¹": formula(),
        },
        [
            Mutant("no bias: Λ⁻¹", formula(part=0.0)),
            Mutant("I - εΛ/2", {line: exact @ np.linalg.inv(a)}),
            Mutant("I + εΛ/4", {line: exact @ np.linalg.inv(target.contraction(-eps / 4))}),
            Mutant("too narrow: -ε/4", formula(part=-eps / 4)),
            Mutant("ε²/16 for ε/4", formula(part=eps**2 / 16)),
            Mutant("Λ⁻¹ + ε/4", formula(rest=0.0)),
        ],
    )


def _divergence(field: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    return torch.autograd.functional.jacobian(field, x).trace().item()


@dataclass(frozen=True)
class _Diffusion:
    """dx = -½∇E dt + dW of a quadratic E, from N(m, V): p_t is Gaussian, with moments in closed form."""

    target: _Quadratic
    mean: torch.Tensor
    cov: torch.Tensor

    @classmethod
    def random(cls, rng: np.random.Generator) -> "_Diffusion":
        return cls(_Quadratic.random(rng, 2), torch.tensor(rng.normal(size=2)), torch.tensor(_spd(rng, 2)))

    def moments(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """μ + e^{-Λt/2}(m-μ) and Λ⁻¹ + e^{-Λt/2}(V-Λ⁻¹)e^{-Λt/2}."""
        mu, precision = torch.tensor(self.target.mean), torch.tensor(self.target.precision)
        decay, limit = torch.linalg.matrix_exp(-t / 2 * precision), torch.linalg.inv(precision)
        return mu + decay @ (self.mean - mu), limit + decay @ (self.cov - limit) @ decay

    def density(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        mean, cov = self.moments(t)
        exponent = ((x - mean) @ torch.linalg.inv(cov) * (x - mean)).sum(-1)
        return torch.exp(-exponent / 2) / (2 * torch.pi * cov).det().sqrt()


@verifies(
    "fokker-planck",
    r"""\begin{aligned}
\partial_tp_t&=-\nabla\cdot J_t\quad\text{with }J_t=-\tfrac12p_t\nabla E-\tfrac12\nabla p_t\\
&=\tfrac12\nabla\cdot(p_t\nabla E)+\tfrac12\Delta p_t\\
&\quad\text{for }dx=-\tfrac12\nabla E\,dt+dW
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def fokker_planck(rng: np.random.Generator) -> Lines:
    diffusion = _Diffusion.random(rng)
    t, points = torch.tensor(rng.uniform(0.3, 1.0), dtype=torch.float64), torch.tensor(rng.normal(size=(3, 2)))
    energy = diffusion.target.energy

    def p(x: torch.Tensor) -> torch.Tensor:
        return diffusion.density(t, x)

    def flow(drift: float = 0.5, noise: float = 0.5) -> Array:
        def flux(x: torch.Tensor) -> torch.Tensor:
            return -drift * p(x) * _grad(energy, x) - noise * _grad(p, x)

        return np.array([-_divergence(flux, x) for x in points])

    def written_out(drift: float = 0.5, noise: float = 0.5) -> Array:
        values = []
        for x in points:
            slope, of_p = _grad(energy, x), _grad(p, x)
            laplacian = torch.autograd.functional.hessian(p, x).trace()
            curvature = np.trace(diffusion.target.precision)
            values.append((drift * (of_p @ slope + p(x) * curvature) + noise * laplacian).item())
        return np.array(values)

    in_time = torch.autograd.functional.jacobian(lambda t: diffusion.density(t, points), t)
    return Lines(
        {"∂p_t(x)/∂t at three x, by autograd in t": in_time, "= -∇·J_t": flow(), "= ½∇·(p∇E) + ½Δp": written_out()},
        [
            Mutant("a drift of -∇E", written_out(drift=1.0)),
            Mutant("Δp without ½", written_out(noise=1.0)),
            Mutant("+½∇E in the drift", written_out(drift=-0.5)),
            Mutant("-½Δp", written_out(noise=-0.5)),
            Mutant("J without ∇p", {"= -∇·J_t": flow(noise=0.0)}),
        ],
    )


@verifies(
    "fokker-planck-stationary",
    r"""\begin{aligned}
p=\tfrac{e^{-E}}Z\quad&\Longrightarrow\quad\tfrac12\nabla p=-\tfrac12\,p\,\nabla E
&&\Longrightarrow\quad J=0\\
&\Longrightarrow\quad\tfrac12\Delta p=-\tfrac12\nabla\cdot(p\,\nabla E)&&\Longrightarrow\quad\partial_tp=0
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def fokker_planck_stationary(rng: np.random.Generator) -> Lines:
    network, points, (nodes, weight) = _Network.random(rng), rng.normal(size=(3, 2)), plane(9.0, 81)
    theta, z = torch.tensor(network.theta), weight @ np.exp(-network.at(nodes))

    def energy(x: torch.Tensor) -> torch.Tensor:
        return network.energy(theta, x)

    def p(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(-energy(x)) / z

    def value(field: Callable[[torch.Tensor], torch.Tensor]) -> Array:
        """A vector field and its divergence at the points."""
        return np.array([[*field(x).tolist(), _divergence(field, x)] for x in torch.tensor(points)])

    def drift(factor: float = -0.5, power: float = 1.0) -> Array:
        return value(lambda x: factor * p(x) ** power * _grad(energy, x))

    a, w, b = network.theta[:2], network.theta[2:6].reshape(2, 2), network.theta[6:]
    slope, laplacian = network.slope(points), 2 - (a * np.sin(points @ w.T + b)) @ (w**2).sum(1)
    density = p(torch.tensor(points)).numpy()[:, None]
    by_hand = density / 2 * np.column_stack([-slope, (slope**2).sum(1) - laplacian])
    line = "= -½p∇E and its divergence, by autograd"
    return Lines(
        {
            "½∇p and ½Δp at three x, by autograd": value(lambda x: _grad(p, x) / 2),
            line: drift(),
            "= -½p∇E and ½p(‖∇E‖² - ΔE), written out": by_hand,
        },
        [
            Mutant("a drift of -∇E", {line: drift(factor=-1.0)}),
            Mutant("noise √2 dW, with the drift -½∇E", {"½∇p and ½Δp at three x, by autograd": 2 * by_hand}),
            Mutant("the sign of the drift", {line: drift(factor=0.5)}),
            Mutant("p = e^{-2E}", {line: drift(power=2.0)}),
            Mutant("+ΔE", density / 2 * np.column_stack([-slope, (slope**2).sum(1) + laplacian])),
        ],
    )


@verifies(
    "langevin-kl-decay",
    r"""\begin{aligned}
\frac d{dt}\mathrm{KL}(p_t\Vert p)&=-\tfrac12\,\mathbb E_{p_t}\big\Vert\nabla\log p_t-\nabla\log p\big\Vert^2\\
&\quad\text{for }dx=-\tfrac12\nabla E\,dt+dW
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def langevin_kl_decay(rng: np.random.Generator) -> Lines:
    diffusion, t = _Diffusion.random(rng), torch.tensor(rng.uniform(0.3, 1.0), dtype=torch.float64)
    target = diffusion.target

    def kl(t: torch.Tensor) -> torch.Tensor:
        mean, cov = diffusion.moments(t)
        ratio = torch.tensor(target.precision) @ cov
        return target.energy(mean) + (ratio.trace() - 2 - ratio.logdet()) / 2

    m, v = (moment.numpy() for moment in diffusion.moments(t))
    standard, weight = gauss_hermite(2, 4)
    shift = np.linalg.inv(v) - target.precision

    def fisher(points: Array) -> float:
        """Scores are linear: this is a polynomial of degree two, of which the quadrature is exact."""
        scores = -(points - m) @ np.linalg.inv(v) + (points - target.mean) @ target.precision
        return weight @ (scores**2).sum(1)

    of_p_t = fisher(m + standard @ np.linalg.cholesky(v).T)
    of_p = fisher(target.mean + standard @ np.linalg.cholesky(np.linalg.inv(target.precision)).T)
    closed = np.trace(shift @ v @ shift) + ((target.precision @ (m - target.mean)) ** 2).sum()
    return Lines(
        {
            "d/dt KL(p_t‖p), by autograd": torch.autograd.functional.jacobian(kl, t),
            "= -½ E_{p_t}‖∇log p_t - ∇log p‖², by quadrature": -of_p_t / 2,
            "= of Gaussians, written out": -closed / 2,
        },
        [
            Mutant("without ½", -closed),
            Mutant("the sign", closed / 2),
            Mutant("E_p for E_{p_t}", {"= -½ E_{p_t}‖∇log p_t - ∇log p‖², by quadrature": -of_p / 2}),
            Mutant("the norm for its square", -np.sqrt(closed) / 2),
        ],
    )


@verifies(
    "mala-acceptance",
    r"""\begin{aligned}
a(x,y)&=\min\Big(1,e^{E(x)-E(y)}\,\frac{q(x|y)}{q(y|x)}\Big)\\
&\quad\text{with }q(y|x)=N\big(y;x-\tfrac\epsilon2\nabla E(x),\epsilon I\big)\\
p(x)\,q(y|x)\,a(x,y)&=p(y)\,q(x|y)\,a(y,x)
\end{aligned}""",
    kind="identity",
    route="closed form",
    **SMALL_SUMS,
)
def mala_acceptance(rng: np.random.Generator) -> Lines:
    network, eps, (nodes, weight) = _Network.random(rng), rng.uniform(0.5, 1.0), plane(9.0, 81)
    z, x, noise = weight @ np.exp(-network.at(nodes)), rng.normal(size=(4, 2)), rng.normal(size=(4, 2))

    def downhill(x: Array) -> Array:
        leaf = torch.tensor(x, requires_grad=True)
        return -eps / 2 * torch.autograd.grad(network.energy(torch.tensor(network.theta), leaf).sum(), leaf)[0].numpy()

    # The noise that takes x to y, and the noise that would take y back.
    y = x + downhill(x) + np.sqrt(eps) * noise
    back = (x - y - downhill(y)) / np.sqrt(eps)

    def p(x: Array) -> Array:
        return np.exp(-network.at(x)) / z

    def q(to: Array, start: Array, at: Array | None = None, drift: float = eps / 2) -> Array:
        mean = start - drift * network.slope(start if at is None else at)
        return norm.pdf(to, mean, np.sqrt(eps)).prod(1)

    def acceptance(x: Array, y: Array, sign: float = 1.0, power: float = 1.0, drift: float = eps / 2) -> Array:
        ratio = q(x, y, drift=drift) / q(y, x, drift=drift)
        return np.minimum(1, np.exp(sign * (network.at(x) - network.at(y))) * ratio**power)

    def flow(x: Array, y: Array, **slip: float) -> Array:
        return p(x) * q(y, x) * acceptance(x, y, **slip)

    line, last = "= p(x) q(y|x) a(x,y)", "= p(y) q(x|y) a(y,x)"

    def slipped(**slip: float) -> dict[str, Array]:
        return {line: flow(x, y, **slip), last: flow(y, x, **slip)}

    one_slope = np.minimum(1, p(y) * q(x, y, at=x) / (p(x) * q(y, x)))
    return Lines(
        {
            "the smaller flow, by the noise ξ there and back, four pairs": np.minimum(
                p(x) * norm.pdf(noise).prod(1), p(y) * norm.pdf(back).prod(1)
            )
            / eps,
            line: flow(x, y),
            last: flow(y, x),
        },
        [
            Mutant("everything accepted: the unadjusted chain", {line: p(x) * q(y, x), last: p(y) * q(x, y)}),
            Mutant("q's ratio forgotten", slipped(power=0.0)),
            Mutant("q's ratio upside down", slipped(power=-1.0)),
            Mutant("e^{E(y)-E(x)}", slipped(sign=-1.0)),
            Mutant("a's q with a drift of ε∇E", slipped(drift=eps)),
            Mutant("∇E(x) for ∇E(y) in q(x|y)", {line: p(x) * q(y, x) * one_slope}),
        ],
    )


# Hamiltonian dynamics: r is the momentum, as p is a density


def _leapfrog(
    slope: Callable, x: Vector, r: Vector, eta: float, steps: int = 1, slip: str = ""
) -> tuple[Vector, Vector]:
    """x and r after so many steps."""
    for _ in range(steps):
        half = r - eta / 2 * slope(x)
        after = x + eta * (r if slip == "Euler" else half)
        r = half - eta / 2 * slope(x if slip in ("Euler", "old slope") else after)
        x = after
    return x, r


@verifies(
    "leapfrog",
    r"""\begin{aligned}
r_{1/2}&=r-\tfrac\eta2\nabla E(x)\\
x'&=x+\eta\,r_{1/2}\\
r'&=r_{1/2}-\tfrac\eta2\nabla E(x'),\qquad(x',-r')\mapsto(x,-r)
\end{aligned}""",
    kind="definition",
    route="closed form",
    **JACOBIANS,
)
def leapfrog_step(rng: np.random.Generator) -> Lines:
    network, eta, steps, start = _Network.random(rng), rng.uniform(0.3, 0.6), 3, rng.normal(size=(2, 2))
    flip = np.array([[1.0], [-1.0]])

    def run(start: Array, eta: float = eta, sign: float = 1.0, slip: str = "") -> Array:
        return np.stack(_leapfrog(lambda x: sign * network.slope(x), start[0], start[1], eta, steps, slip))

    def verlet(first: float = 0.5, second: float = 0.5) -> Array:
        x, r = start
        for _ in range(steps):
            after = x + eta * r - first * eta**2 * network.slope(x)
            x, r = after, r - second * eta * (network.slope(x) + network.slope(after))
        return np.stack([x, r])

    # The end from which a run with -r leads to the start with -r.
    back = optimize.root(lambda v: (run(v.reshape(2, 2) * flip) - start * flip).ravel(), start.ravel(), tol=1e-14).x
    x, r = torch.tensor(start)
    package = leapfrog(lambda x: torch.tensor(network.slope(x.numpy())), x, r, eta, steps)
    line, last = "= x + ηr - η²∇E(x)/2 and r - η(∇E(x) + ∇E(x'))/2, each step", "= by three half steps"
    return Lines(
        {
            "x and r after three steps, as the start of the way back": back.reshape(2, 2),
            "= by the models' integrator": torch.stack(package),
            line: verlet(),
            last: run(start),
        },
        [
            Mutant("Euler: x and r at once", run(start, slip="Euler")),
            Mutant("∇E(x) for ∇E(x')", run(start, slip="old slope")),
            Mutant("uphill", run(start, sign=-1.0)),
            Mutant("-η", run(start, eta=-eta)),
            Mutant("η²∇E(x) without ½", {line: verlet(first=1.0)}),
            Mutant("whole steps of r", {line: verlet(second=1.0)}),
        ],
    )


@verifies(
    "leapfrog-volume",
    r"""\begin{aligned}
&\det\frac{\partial(x',r')}{\partial(x,r)}\\
&\quad=\det\begin{pmatrix}I&0\\-\frac\eta2\nabla^2E(x')&I\end{pmatrix}
\det\begin{pmatrix}I&\eta I\\0&I\end{pmatrix}
\det\begin{pmatrix}I&0\\-\frac\eta2\nabla^2E(x)&I\end{pmatrix}\\
&\quad=1
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def leapfrog_volume(rng: np.random.Generator) -> Lines:
    network, eta, start = _Network.random(rng), rng.uniform(0.3, 0.6), torch.tensor(rng.normal(size=(2, 2)))
    theta, one = torch.tensor(network.theta), np.eye(2)

    def slope(x: torch.Tensor) -> torch.Tensor:
        return _grad(lambda y: network.energy(theta, y), x)

    def det(steps: int = 1, slip: str = "", friction: float = 1.0) -> float:
        def run(start: torch.Tensor) -> torch.Tensor:
            x, r = _leapfrog(slope, start[0], start[1], eta, steps, slip)
            return torch.stack([x, friction * r])

        return torch.autograd.functional.jacobian(run, start).reshape(4, 4).det().item()

    def curvature(x: torch.Tensor) -> Array:
        return torch.autograd.functional.jacobian(slope, x).numpy()

    def block(above: Array, below: Array) -> float:
        return np.linalg.det(np.block([[one, above], [below, one]]))

    first, second = curvature(start[0]), curvature(_leapfrog(slope, start[0], start[1], eta)[0].detach())
    line, steps = "= the product of three determinants, ∇²E by autograd", "= of three steps"
    return Lines(
        {
            "det ∂(x',r')/∂(x,r) of one step, by autograd": det(),
            steps: det(steps=3),
            line: block(0 * one, -eta / 2 * second) * block(eta * one, 0 * one) * block(0 * one, -eta / 2 * first),
            "= 1": 1.0,
        },
        [
            Mutant("Euler: x and r at once", {steps: det(slip="Euler")}),
            Mutant("∇E(x) for ∇E(x')", {steps: det(slip="old slope")}),
            Mutant("one block for the three", {line: block(eta * one, -eta / 2 * (first + second))}),
            Mutant("with friction", {steps: det(friction=0.9)}),
        ],
    )


@verifies(
    "leapfrog-energy",
    r"""\begin{aligned}
H(x_L,r_L)-H(x_0,r_0)&=\tfrac{\eta^2}8\big(\Vert\nabla E(x_L)\Vert^2-\Vert\nabla E(x_0)\Vert^2\big)\\
&\quad\text{for quadratic }E
\end{aligned}""",
    kind="identity",
    route="closed form",
    **JACOBIANS,
)
def leapfrog_energy(rng: np.random.Generator) -> Lines:
    target, x, r = _Quadratic.random(rng), rng.normal(size=3), rng.normal(size=3)
    values, vectors = np.linalg.eigh(target.precision)
    eta, numbers = rng.uniform(0.8, 1.6) / np.sqrt(values[-1]), (1, 2, 5, 50)

    def slope(x: Array) -> Array:
        return target.precision @ (x - target.mean)

    def hamiltonian(x: Array, r: Array) -> float:
        return (slope(x) @ (x - target.mean) + r @ r) / 2

    def errors(slip: str = "") -> Array:
        return np.array([hamiltonian(*_leapfrog(slope, x, r, eta, n, slip)) for n in numbers]) - hamiltonian(x, r)

    # Along each principal axis a step is a rotation, but for a stretching: 1 - η²λ/2 = cos ω.
    omega = np.arccos(1 - eta**2 * values / 2)
    start, momentum = vectors.T @ (x - target.mean), vectors.T @ r
    ends = [np.cos(n * omega) * start + eta * np.sin(n * omega) / np.sin(omega) * momentum for n in numbers]

    def formula(factor: float = eta**2 / 8, power: float = 2.0) -> Array:
        return factor * np.array([(values**power * (end**2 - start**2)).sum() for end in ends])

    line = "H(x_L,r_L) - H(x_0,r_0), L = 1, 2, 5, 50, step by step"
    return Lines(
        {line: errors(), "= η²(‖∇E(x_L)‖² - ‖∇E(x_0)‖²)/8, x_L by rotations": formula()},
        [
            Mutant("energy conserved: 0", formula(factor=0.0)),
            Mutant("η²/4", formula(factor=eta**2 / 4)),
            Mutant("η/8", formula(factor=eta / 8)),
            Mutant("the sign", formula(factor=-(eta**2) / 8)),
            Mutant("2E for ‖∇E‖²", formula(power=1.0)),
            Mutant("Euler: x and r at once", {line: errors("Euler")}),
        ],
    )


@verifies(
    "mala-is-hmc",
    r"""\begin{aligned}
\log\frac{p(y)\,q(x|y)}{p(x)\,q(y|x)}
&=E(x)-E(y)+\tfrac12(y-x)^\top\big(\nabla E(x)+\nabla E(y)\big)\\
&\quad+\tfrac\epsilon8\big(\Vert\nabla E(x)\Vert^2-\Vert\nabla E(y)\Vert^2\big)\\
&=H(x,r)-H(y,r')\\
&\quad\text{with }(x,r)\mapsto(y,r')\text{ one leapfrog step, }\eta=\sqrt\epsilon
\end{aligned}""",
    kind="identity",
    route="closed form",
    **SMALL_SUMS,
)
def mala_is_hmc(rng: np.random.Generator) -> Lines:
    network, eps = _Network.random(rng), rng.uniform(0.5, 1.0)
    x, r = rng.normal(size=(2, 4, 2))
    # What is the momentum of the one is the noise of the other.
    of_x, eta = network.slope(x), np.sqrt(eps)
    y = x - eps / 2 * of_x + eta * r
    of_y, difference = network.slope(y), network.at(x) - network.at(y)

    def log_q(to: Array, start: Array, slope: Array) -> Array:
        return norm.logpdf(to, start - eps / 2 * slope, eta).sum(1)

    def formula(factor: float = eps / 8, middle: float = 0.5, sign: float = 1.0) -> Array:
        work = ((y - x) * (of_x + of_y)).sum(1)
        return sign * difference + middle * work + factor * ((of_x**2).sum(1) - (of_y**2).sum(1))

    def energies(eta: float, kinetic: float = 0.5) -> Array:
        end, momentum = _leapfrog(network.slope, x, r, eta)
        return network.at(x) - network.at(end) + kinetic * ((r**2).sum(1) - (momentum**2).sum(1))

    line = "= E(x) - E(y) + ½(y-x)ᵀ(∇E(x)+∇E(y)) + ε(‖∇E(x)‖²-‖∇E(y)‖²)/8"
    return Lines(
        {
            "log of p(y) q(x|y) over p(x) q(y|x), four pairs": difference + log_q(x, y, of_y) - log_q(y, x, of_x),
            line: formula(),
            "= H(x,r) - H(y,r')": energies(eta),
        },
        [
            Mutant("η = ε", energies(eps)),
            Mutant("‖r‖² for ‖r‖²/2", energies(eta, kinetic=1.0)),
            Mutant("E alone", energies(eta, kinetic=0.0)),
            Mutant("ε/4", {line: formula(factor=eps / 4)}),
            Mutant("-ε/8", {line: formula(factor=-eps / 8)}),
            Mutant("the work without ½", {line: formula(middle=1.0)}),
            Mutant("E(y) - E(x)", {line: formula(sign=-1.0)}),
        ],
    )


@verifies(
    "hmc-acceptance",
    r"""\begin{aligned}
a(x,r)&=\min\big(1,e^{H(x,r)-H(x',r')}\big)\\
&\quad\text{with }H(x,r)=E(x)+\tfrac12\Vert r\Vert^2\\
p(x)\,N(r;0,I)\,a(x,r)&=p(x')\,N(r';0,I)\,a(x',-r')
\end{aligned}""",
    kind="identity",
    route="closed form",
    **JACOBIANS,
)
def hmc_acceptance(rng: np.random.Generator) -> Lines:
    network, eta, (nodes, weight) = _Network.random(rng), rng.uniform(0.6, 0.9), plane(9.0, 81)
    z, (x, r) = weight @ np.exp(-network.at(nodes)), rng.normal(size=(2, 4, 2))

    def density(x: Array, r: Array) -> Array:
        return np.exp(-network.at(x)) / z * norm.pdf(r).prod(1)

    def h(x: Array, r: Array, kinetic: float) -> Array:
        return network.at(x) + kinetic * (r**2).sum(1)

    def end(x: Array, r: Array, slip: str = "") -> tuple[Array, Array]:
        return _leapfrog(network.slope, x, r, eta, 3, slip)

    def flow(x: Array, r: Array, sign: float = 1.0, kinetic: float = 0.5, slip: str = "") -> Array:
        difference = h(x, r, kinetic) - h(*end(x, r, slip), kinetic)
        return density(x, r) * np.minimum(1, np.exp(sign * difference))

    first = "the smaller of p(x) N(r) and p(x') N(r'), four starts"
    line, last = "= p(x) N(r) a(x,r)", "= p(x') N(r') a(x',-r')"

    def all_three(slip: str = "", **other: float) -> dict[str, Array]:
        x_end, r_end = end(x, r, slip)
        smaller = np.minimum(density(x, r), density(x_end, r_end))
        return {first: smaller, line: flow(x, r, slip=slip, **other), last: flow(x_end, -r_end, slip=slip, **other)}

    return Lines(
        all_three(),
        [
            Mutant("r' not turned round", flow(*end(x, r))),
            Mutant("E for H", all_three(kinetic=0.0)),
            Mutant("‖r‖² for ‖r‖²/2", all_three(kinetic=1.0)),
            Mutant("e^{H(x',r')-H(x,r)}", all_three(sign=-1.0)),
            Mutant("everything accepted", all_three(sign=0.0)),
            Mutant("Euler for leapfrog", all_three(slip="Euler")),
        ],
    )


@verifies(
    "hmc-energy-error",
    r"\mathbb E\big[H(x',r')-H(x,r)\big]\ge-\log\mathbb E\big[e^{H(x,r)-H(x',r')}\big]=0,"
    r"\qquad(x,r)\sim\tfrac{e^{-H}}Z",
    kind="inequality",
    route="quadrature",
    **QUADRATURE,
)
def hmc_energy_error(rng: np.random.Generator) -> Lines:
    # One position and its momentum: the plane.
    (a, b), eta, (nodes, _) = rng.uniform(0.5, 1.5, size=2), rng.uniform(0.5, 0.9), plane(12.0, 121)
    x, r = nodes.T

    def h(x: Array, r: Array) -> Array:
        return x**2 / 2 + a * np.sin(x + b) + r**2 / 2

    def error(slip: str = "") -> Array:
        return h(*_leapfrog(lambda x: x + a * np.cos(x + b), x, r, eta, 3, slip)) - h(x, r)

    weights = softmax(-h(x, r))

    def free(error: Array, weights: Array = weights) -> float:
        """-log E[e^{-error}]."""
        return -logsumexp(-error, b=weights)

    first, line = "E[H(x',r') - H(x,r)]", "≥ -log E[e^{H(x,r)-H(x',r')}]"
    return Lines(
        {first: weights @ error(), line: free(error()), "= 0": 0.0},
        [
            Mutant("E[H(x,r) - H(x',r')]", {first: -weights @ error()}),
            Mutant("Euler for leapfrog", {line: free(error("Euler"))}),
            Mutant("∇E(x) for ∇E(x')", {line: free(error("old slope"))}),
            Mutant("E over momenta of variance ½", {line: free(error(), softmax(-h(x, np.sqrt(2) * r)))}),
        ],
    )


# Gibbs sampling


@verifies(
    "gibbs-stationary",
    r"""\begin{aligned}
\sum_{v,h}p(v,h)\,p(h'|v)\,p(v'|h')&=\sum_vp(v)\,p(h'|v)\,p(v'|h')\\
&=p(h')\,p(v'|h')\\
&=p(v',h')
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def gibbs_stationary(rng: np.random.Generator) -> Lines:
    rbm = _Rbm.random(rng)
    joint = softmax(-rbm.energy)
    p_v, p_h = joint.sum(1), joint.sum(0)
    given_v, given_h = joint / p_v[:, None], joint / p_h  # p(h|v) and p(v|h), both (v, h)
    # p(v'|h') at the mean of h' given v, a number between 0 and 1.
    on = expit(rbm.bias + given_v @ rbm.h @ rbm.weight)
    at_mean = np.where(rbm.v, on[:, None], 1 - on[:, None]).prod(-1)
    line, last = "Σ_{v,h} p(v,h) p(h'|v) p(v'|h'), all 128 pairs", "= p(v',h')"
    return Lines(
        {
            line: np.einsum("vh,vk,wk->wk", joint, given_v, given_h),
            "= Σ_v p(v) p(h'|v) p(v'|h')": given_h * (p_v @ given_v),
            "= p(h') p(v'|h')": p_h * given_h,
            last: joint,
        },
        [
            Mutant("both at once: p(h'|v) p(v'|h)", {line: np.einsum("vh,vk,wh->wk", joint, given_v, given_h)}),
            Mutant("the mean of h' in p(v'|h')", {line: np.einsum("v,vk,vw->wk", p_v, given_v, at_mean)}),
            Mutant("v not drawn again: p(v) p(h'|v) p(v')", {line: np.outer(p_v, p_v @ given_v)}),
            Mutant("p(v') p(h'), as if independent", np.outer(p_v, p_h)),
        ],
    )


# The normaliser: annealed importance sampling, and as a maximum


@dataclass(frozen=True)
class _Annealing:
    """f_0, …, f_K on a few states, f_k = f_0^{1-β_k} f_K^{β_k}, and Metropolis kernels for those in between."""

    log_f: Array
    kernels: list[Array]

    @classmethod
    def random(cls, rng: np.random.Generator, states: int = 4, steps: int = 3) -> "_Annealing":
        betas = np.concatenate([[0], np.sort(rng.uniform(0.2, 0.8, steps - 1)), [1]])
        ends = 1.5 * rng.normal(size=(2, states)) + rng.normal(size=(2, 1))
        log_f, q = np.outer(1 - betas, ends[0]) + np.outer(betas, ends[1]), rng.dirichlet(np.full(states, 2.0), states)
        moves = [q * _acceptance(-f, q) for f in log_f]
        return cls(log_f, [move + np.diag(1 - move.sum(1)) for move in moves])

    @property
    def log_ratio(self) -> float:
        """log Z_K/Z_0."""
        return logsumexp(self.log_f[-1]) - logsumexp(self.log_f[0])

    @property
    def log_steps(self) -> Array:
        """log f_k(x)/f_{k-1}(x), (K, states)."""
        return np.diff(self.log_f, axis=0)

    def paths(self, late: bool = False) -> tuple[Array, Array]:
        """Of every x_0, …, x_{K-1}, log w and the probability; with `late`, weights at x_1, …, x_K."""
        k = len(self.log_steps)
        x = np.array(list(itertools.product(range(self.log_f.shape[1]), repeat=k + late)))
        p = softmax(self.log_f[0])[x[:, 0]]
        for i in range(1, k + late):
            p = p * self.kernels[i][x[:, i - 1], x[:, i]]
        return sum(self.log_steps[i][x[:, i + late]] for i in range(k)), p

    def paths_back(self, start: Array | None = None, forward: bool = False) -> tuple[Array, Array]:
        """Of the same, log w̄ and the probability of the way back, from x_{K-1} to x_0."""
        k = len(self.log_steps)
        x = np.array(list(itertools.product(range(self.log_f.shape[1]), repeat=k)))
        p = (softmax(self.log_f[-1]) if start is None else start)[x[:, -1]]
        log_w = np.zeros(len(x))
        for i in range(k, 0, -1):
            log_w = log_w + self.log_f[i - 1][x[:, i - 1]] - self.log_f[i][x[:, i - 1]]
            if i > 1:
                kernel = self.kernels[k - i + 1 if forward else i - 1]
                p = p * kernel[x[:, i - 1], x[:, i - 2]]
        return log_w, p


@verifies(
    "annealed-importance-sampling",
    r"""\begin{aligned}
w&=\prod_{k=1}^K\frac{f_k(x_{k-1})}{f_{k-1}(x_{k-1})},\qquad
x_0\sim\tfrac{f_0}{Z_0},\quad x_k\sim T_k(\cdot\,|x_{k-1})\\
\mathbb E[w]&=\frac{Z_K}{Z_0},\qquad\sum_xf_k(x)\,T_k(y|x)=f_k(y)
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def annealed_importance_sampling(rng: np.random.Generator) -> Lines:
    annealing = _Annealing.random(rng)

    def log_mean(late: bool = False, kernels: list[Array] = annealing.kernels) -> float:
        log_w, p = _Annealing(annealing.log_f, kernels).paths(late)
        return logsumexp(log_w, b=p)

    # One step after the other, a row vector of as many numbers as there are states.
    row = softmax(annealing.log_f[0])
    for k, step in enumerate(annealing.log_steps):
        row = (row @ annealing.kernels[k] if k else row) * np.exp(step)

    log_w, p = annealing.paths()
    end = annealing.log_f[-1] - annealing.log_f[0]
    at_end = np.linalg.multi_dot([softmax(annealing.log_f[0]), *annealing.kernels[1:-1]])
    line = "log E[w], over all 4³ paths"
    return Lines(
        {line: log_mean(), "= step by step, a matrix each": np.log(row.sum()), "= log Z_K/Z_0": annealing.log_ratio},
        [
            Mutant("T_{k-1} for T_k", {line: log_mean(kernels=[np.eye(4), *annealing.kernels])}),
            Mutant("T_{k+1} for T_k", {line: log_mean(kernels=annealing.kernels[1:])}),
            Mutant("weights at x_k, not at x_{k-1}", {line: log_mean(late=True)}),
            Mutant("E[log w]", {line: p @ log_w}),
            Mutant("f_K/f_0 at the end of the path", {line: logsumexp(end, b=at_end)}),
            Mutant("Z_0/Z_K", -annealing.log_ratio),
        ],
    )


@verifies(
    "ais-bounds",
    r"""\begin{aligned}
\mathbb E_q[\log w]&=\log\tfrac{Z_K}{Z_0}-\mathrm{KL}(q\Vert\bar q)\\
&\le\log\tfrac{Z_K}{Z_0}\\
&\le\log\tfrac{Z_K}{Z_0}+\mathrm{KL}(\bar q\Vert q)=-\mathbb E_{\bar q}[\log\bar w],\qquad\bar w=\tfrac1w\\
&\quad q\text{: paths from }x_0\sim\tfrac{f_0}{Z_0},\qquad\bar q\text{: paths back from }x_{K-1}\sim\tfrac{f_K}{Z_K}
\end{aligned}""",
    kind="inequality",
    route="enumeration",
    **SMALL_SUMS,
)
def ais_bounds(rng: np.random.Generator) -> Lines:
    annealing = _Annealing.random(rng)
    (log_w, q), (log_back, back) = annealing.paths(), annealing.paths_back()
    log_ratio = annealing.log_ratio

    def kl(p: Array, q: Array) -> float:
        return p @ (np.log(p) - np.log(q))

    def upper(**slip: Any) -> float:
        log_w, p = annealing.paths_back(**slip)
        return -p @ log_w

    line, last = "= log Z_K/Z_0 - KL(q‖q̄)", "= -E_q̄[log w̄]"
    from_base, one_before = softmax(annealing.log_f[0]), softmax(annealing.log_f[-2])
    return Lines(
        {
            "E_q[log w], over all 4³ paths": q @ log_w,
            line: log_ratio - kl(q, back),
            "≤ log Z_K/Z_0": log_ratio,
            "≤ log Z_K/Z_0 + KL(q̄‖q)": log_ratio + kl(back, q),
            last: upper(),
        },
        [
            Mutant("the way back from draws of f_0", upper(start=from_base)),
            Mutant("the way back from draws of f_{K-1}", upper(start=one_before)),
            Mutant("the way back with T_1 first", upper(forward=True)),
            Mutant("log E_q̄[1/w̄]", logsumexp(-log_back, b=back)),
            Mutant("+E_q̄[log w̄]", -upper()),
            Mutant("KL(q̄‖q) for KL(q‖q̄)", {line: log_ratio - kl(back, q)}),
        ],
    )


def _ascend(value: Callable[[torch.Tensor], torch.Tensor], start: Array) -> float:
    """The largest value of a function of logits."""

    def negative(logits: Array) -> tuple[float, Array]:
        leaf = torch.tensor(logits, requires_grad=True)
        v = -value(leaf)
        return v.item(), torch.autograd.grad(v, leaf)[0].numpy()

    return -optimize.minimize(negative, start, jac=True, method="BFGS", options={"gtol": 1e-9}).fun


def _free(energy: Array) -> Callable[[torch.Tensor], torch.Tensor]:
    """E_q[-E] + H(q), q of logits."""

    def value(logits: torch.Tensor) -> torch.Tensor:
        log_q = torch.log_softmax(logits, 0)
        return log_q.exp() @ (-torch.tensor(energy) - log_q)

    return value


@verifies(
    "log-partition-variational",
    r"""\begin{aligned}
\log Z&=\max_q\big\{\mathbb E_q[-E(x)]+H(q)\big\}\qquad\text{(at }q=p=e^{-E}/Z\text{)}\\
&=\mathbb E_q[-E(x)]+H(q)+\mathrm{KL}(q\Vert p)\\
&\ge\mathbb E_q[-E(x)]+H(q)
\end{aligned}""",
    kind="inequality",
    route="enumeration",
    **SMALL_SUMS,
)
def log_partition_variational(rng: np.random.Generator) -> Lines:
    energy, q = 1.5 * rng.normal(size=6), rng.dirichlet(np.full(6, 2.0))
    p = softmax(-energy)
    bound, at_p = -q @ energy + entropy(q), "= E_p[-E] + H(p)"
    highest, full, last = "= the highest that an ascent in q finds", "= E_q[-E] + H(q) + KL(q‖p)", "≥ E_q[-E] + H(q)"
    return Lines(
        {
            "log Z, over six states": np.log(np.exp(-energy).sum()),
            at_p: -p @ energy + entropy(p),
            highest: _ascend(_free(energy), np.log(q)),
            full: bound + entropy(q, p),
            last: bound,
        },
        [
            Mutant("H(q) forgotten: the least energy", {highest: -energy.min()}),
            Mutant("-H", {at_p: -p @ energy - entropy(p)}),
            Mutant("KL(p‖q)", {full: bound + entropy(p, q)}),
            Mutant("E_q[+E]", {full: q @ energy + entropy(q) + entropy(q, p)}),
            Mutant("2 KL(q‖p) added: no bound", bound + 2 * entropy(q, p)),
        ],
    )


@verifies(
    "likelihood-minimax",
    r"""\begin{aligned}
\mathbb E_{p_{\rm data}}[\log p_\theta(x)]&=-\mathbb E_{p_{\rm data}}[E_\theta(x)]-\log Z_\theta\\
&=\min_q\big\{\mathbb E_q[E_\theta(x)]-H(q)\big\}-\mathbb E_{p_{\rm data}}[E_\theta(x)]\\
&\le\mathbb E_q[E_\theta(x)]-H(q)-\mathbb E_{p_{\rm data}}[E_\theta(x)]
\end{aligned}""",
    kind="inequality",
    route="enumeration",
    **SMALL_SUMS,
)
def likelihood_minimax(rng: np.random.Generator) -> Lines:
    energy = 1.5 * rng.normal(size=6)
    data, q = rng.dirichlet(np.full(6, 2.0), size=2)
    of_data, log_z = data @ energy, logsumexp(-energy)
    bound = q @ energy - entropy(q) - of_data
    line, least = "= -E_data[E] - log Z", "= min_q{E_q[E] - H(q)} - E_data[E], by descent"
    return Lines(
        {
            "E_data[log p], over six states": data @ np.log(softmax(-energy)),
            line: -of_data - log_z,
            least: -_ascend(_free(energy), np.log(q)) - of_data,
            "= E_q[E] - H(q) - E_data[E] - KL(q‖p)": bound - entropy(q, softmax(-energy)),
            "≤ E_q[E] - H(q) - E_data[E]": bound,
        },
        [
            Mutant("a game of energies alone: H(q) forgotten", {least: energy.min() - of_data}, erratum="E003-30"),
            Mutant("q = p_data without KL", {least: -entropy(data)}),
            Mutant("+log Z", {line: -of_data + log_z}),
            Mutant("+E_data[E]", {least: -log_z + of_data}),
            Mutant("E_q[E] - 2H(q)", q @ energy - 2 * entropy(q) - of_data),
        ],
    )


# Noise-contrastive estimation


@dataclass(frozen=True)
class _Contrast:
    """Six states, E_θ(x) = θᵀt(x) of three features, data from one such model, and noise from a random table."""

    features: Array
    theta: Array
    noise: Array

    @classmethod
    def random(cls, rng: np.random.Generator) -> "_Contrast":
        return cls(rng.normal(size=(6, 3)), rng.normal(size=3), rng.dirichlet(np.full(6, 3.0)))

    @property
    def energy(self) -> Array:
        return self.features @ self.theta

    @property
    def data(self) -> Array:
        return softmax(-self.energy)

    @property
    def log_z(self) -> float:
        return logsumexp(-self.energy)


def _nce(data: Array, noise: Array, log_ratio: torch.Tensor, nu: float = 1.0) -> torch.Tensor:
    """E_data[softplus(-ℓ)] + ν E_n[softplus(ℓ)] of a table ℓ."""
    return torch.tensor(data) @ F.softplus(-log_ratio) + nu * torch.tensor(noise) @ F.softplus(log_ratio)


def _minimise(value: Callable[[torch.Tensor], torch.Tensor], size: int) -> Array:
    """Where a convex function has its least value, by Newton's method on its gradient, from 0."""
    return optimize.root(
        lambda v: torch.autograd.functional.jacobian(value, torch.tensor(v)).numpy(),
        np.zeros(size),
        jac=lambda v: torch.autograd.functional.hessian(value, torch.tensor(v)).numpy(),
        tol=1e-14,
    ).x


@verifies(
    "noise-contrastive-estimation",
    r"""\begin{aligned}
&\min_{\theta,c}\ \mathbb E_{p_{\rm data}}[\mathrm{softplus}(-\ell)]+\mathbb E_{p_n}[\mathrm{softplus}(\ell)]\\
&\quad\text{with }\ell=-E_\theta-c-\log p_n\\
&\Longrightarrow\quad\ell=\log\frac{p_{\rm data}}{p_n},\qquad c=\log Z_\theta\\
&\quad\text{if }p_{\rm data}=e^{-E_\theta}/Z_\theta\text{ for some }\theta
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **JACOBIANS,
)
def noise_contrastive_estimation(rng: np.random.Generator) -> Lines:
    contrast = _Contrast.random(rng)
    data, noise, log_noise = contrast.data, contrast.noise, np.log(contrast.noise)
    features, by = torch.tensor(contrast.features), torch.tensor(log_noise)

    def fit(nu: float = 1.0, sign: float = 1.0, base: torch.Tensor = by, free: float = 1.0) -> Array:
        """ℓ and c at the minimum over θ and c."""

        def log_ratio(v: torch.Tensor) -> torch.Tensor:
            return -features @ v[:3] - free * v[3] - base

        v = _minimise(lambda v: _nce(data, noise, sign * log_ratio(v), nu) + (1 - free) * v[3] ** 2, 4)
        return np.append(log_ratio(torch.tensor(v)).numpy(), v[3])

    # Each ℓ(x) by itself, as if E could be any function: the root of the slope.
    pairs = zip(data, noise, strict=True)
    alone = [optimize.brentq(lambda v, d=d, n=n: n * expit(v) - d * expit(-v), -30, 30, xtol=1e-14) for d, n in pairs]
    constant = -contrast.energy[0] - log_noise[0] - alone[0]
    return Lines(
        {
            "log p_data/p_n at six states, and log Z": np.append(np.log(data) - log_noise, contrast.log_z),
            "= the best ℓ at each state alone, and -E - log p_n - ℓ": np.append(alone, constant),
            "= ℓ and c at the minimum over θ and c": fit(),
        },
        [
            Mutant("log p_n forgotten", fit(base=0 * by)),
            Mutant("data and noise exchanged", fit(sign=-1.0)),
            Mutant("no c", fit(free=0.0)),
            Mutant("twice the noise, without log 2", fit(nu=2.0)),
            Mutant("+log p_n", fit(base=-by)),
        ],
    )


@verifies(
    "nce-classifier",
    r"""\begin{aligned}
J_\nu&=-(1+\nu)\,\mathbb E_{C,x}[\log P(C|x)]\\
&\quad\text{with }P(C{=}\text{data}|x)=\frac{p_\theta(x)}{p_\theta(x)+\nu\,p_n(x)}=\sigma(\ell)\\
&=\mathbb E_{p_{\rm data}}[\mathrm{softplus}(-\ell)]+\nu\,\mathbb E_{p_n}[\mathrm{softplus}(\ell)]\\
&\quad\text{with }\ell=\log\frac{p_\theta(x)}{\nu\,p_n(x)}
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def nce_classifier(rng: np.random.Generator) -> Lines:
    data, model, noise = rng.dirichlet(np.full(6, 2.0), size=3)
    nu = int(rng.integers(2, 6))
    # One in 1 + ν examples is from the data.
    joint = np.stack([data, nu * noise]) / (1 + nu)
    posterior = np.stack([model, nu * noise]) / (model + nu * noise)

    def formula(log_ratio: Array, weight: float = nu, sign: float = 1.0) -> torch.Tensor:
        return _nce(data, noise, torch.tensor(sign * log_ratio), weight)

    ratio = np.log(model / noise)
    classes, logits = torch.tensor([[1.0], [0.0]]).double().expand(2, 6), torch.tensor(ratio - np.log(nu)).expand(2, 6)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, classes, weight=torch.tensor(joint), reduction="sum")
    return Lines(
        {
            "-(1+ν) E[log P(C|x)], by Bayes' rule in the table": -(1 + nu) * (joint * np.log(posterior)).sum(),
            "= 1+ν times the cross-entropy of PyTorch": (1 + nu) * cross_entropy,
            "= E_data[softplus(-ℓ)] + ν E_n[softplus(ℓ)]": formula(ratio - np.log(nu)),
        },
        [
            Mutant("log ν forgotten", formula(ratio)),
            Mutant("+log ν", formula(ratio + np.log(nu))),
            Mutant("E_n without ν", formula(ratio - np.log(nu), weight=1.0)),
            Mutant("-ℓ for ℓ", formula(ratio - np.log(nu), sign=-1.0)),
            Mutant("log p_n forgotten", formula(np.log(model) - np.log(nu))),
        ],
    )


@verifies(
    "nce-optimum",
    r"""\begin{aligned}
\mathbb E_{p_{\rm data}}[\mathrm{softplus}(-\ell)]+\mathbb E_{p_n}[\mathrm{softplus}(\ell)]
&\ge\big(\text{the same at }\ell=\log\tfrac{p_{\rm data}}{p_n}\big)\\
&=\log4-2\,\mathrm{JSD}(p_{\rm data}\Vert p_n)
\end{aligned}""",
    kind="inequality",
    route="enumeration",
    **SMALL_SUMS,
)
def nce_optimum(rng: np.random.Generator) -> Lines:
    data, noise = rng.dirichlet(np.full(6, 2.0), size=2)
    best = np.log(data / noise)
    others = best + rng.normal(size=(4, 6))
    jsd = spatial.distance.jensenshannon(data, noise) ** 2

    def values(log_ratios: Array) -> Array:
        return np.array([_nce(data, noise, torch.tensor(v)).item() for v in log_ratios])

    line = "≥ the same at ℓ = log p_data/p_n"
    return Lines(
        {
            "E_data[softplus(-ℓ)] + E_n[softplus(ℓ)], four ℓ": values(others),
            line: values(best[None]),
            "= log 4 - 2 JSD(p_data‖p_n), by SciPy": np.log(4) - 2 * jsd,
        },
        [
            Mutant("log 4 + 2 JSD", np.log(4) + 2 * jsd),
            Mutant("log 2", np.log(2) - 2 * jsd),
            Mutant("JSD once", np.log(4) - jsd),
            Mutant("its root, the distance", np.log(4) - 2 * np.sqrt(jsd)),
            Mutant("at ℓ = log p_n/p_data", {line: values(-best[None])}),
        ],
    )


@verifies(
    "nce-gradient",
    r"""\begin{aligned}
-\nabla_\theta J_\nu&=\nu\,\mathbb E_{p_n}[\sigma(\ell)\,\nabla_\theta E_\theta]
-\mathbb E_{p_{\rm data}}[\sigma(-\ell)\,\nabla_\theta E_\theta]\\
&=\sum_x\frac{\nu\,p_n(x)}{p_\theta(x)+\nu\,p_n(x)}\,\big(p_\theta(x)-p_{\rm data}(x)\big)\,\nabla_\theta E_\theta(x)
\end{aligned}""",
    kind="identity",
    route="autograd",
    **SMALL_SUMS,
)
def nce_gradient(rng: np.random.Generator) -> Lines:
    # p_θ = e^{-E-c} need not be normalised.
    contrast, data, c, nu = _Contrast.random(rng), rng.dirichlet(np.full(6, 2.0)), rng.normal(), int(rng.integers(2, 6))
    features, noise = contrast.features, contrast.noise
    model = np.exp(-contrast.energy - c)
    ratio = np.log(model / (nu * noise))

    def objective(theta: torch.Tensor) -> torch.Tensor:
        log_noise = torch.tensor(np.log(nu * noise))
        return _nce(data, noise, -torch.tensor(features) @ theta - c - log_noise, nu)

    def formula(weight: Array = nu * noise / (model + nu * noise), difference: Array = model - data) -> Array:
        return (weight * difference) @ features

    line = "= ν E_n[σ(ℓ) ∇E] - E_data[σ(-ℓ) ∇E]"
    of_noise, of_data = nu * (noise * expit(ratio)) @ features, (data * expit(-ratio)) @ features
    return Lines(
        {
            "-∇J, by autograd": -torch.autograd.functional.jacobian(objective, torch.tensor(contrast.theta)),
            line: of_noise - of_data,
            "= Σ_x νp_n/(p_θ+νp_n) (p_θ - p_data) ∇E": formula(),
        },
        [
            Mutant("its sign", formula(difference=data - model)),
            Mutant("weights p_θ/(p_θ+νp_n)", formula(weight=model / (model + nu * noise))),
            Mutant("ν forgotten", formula(weight=noise / (model + noise))),
            Mutant("no weights", formula(weight=np.ones(6))),
            Mutant("p_n for p_θ", formula(difference=noise - data)),
            Mutant("σ(ℓ) in both", {line: of_noise - (data * expit(ratio)) @ features}),
        ],
    )


@verifies(
    "nce-limit",
    r"""\begin{aligned}
\lim_{\nu\to\infty}-\nabla_\theta J_\nu
&=\mathbb E_{p_\theta}[\nabla_\theta E_\theta]-\mathbb E_{p_{\rm data}}[\nabla_\theta E_\theta]\\
&=\nabla_\theta\,\mathbb E_{p_{\rm data}}[\log p_\theta]\\
&\quad\text{for }c=\log Z_\theta
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def nce_limit(rng: np.random.Generator) -> Lines:
    contrast, data = _Contrast.random(rng), rng.dirichlet(np.full(6, 2.0))
    features, theta = torch.tensor(contrast.features), torch.tensor(contrast.theta)

    def gradient(nu: float, c: float = contrast.log_z) -> torch.Tensor:
        log_noise = torch.tensor(np.log(contrast.noise) + np.log(nu))
        return -torch.autograd.functional.jacobian(
            lambda theta: _nce(data, contrast.noise, -features @ theta - c - log_noise, nu), theta
        )

    likelihood = torch.autograd.functional.jacobian(
        lambda theta: torch.tensor(data) @ torch.log_softmax(-features @ theta, 0), theta
    )
    first, line = "-∇J at ν = 10¹⁴, by autograd", "= E_p[∇E] - E_data[∇E]"
    return Lines(
        {
            first: gradient(1e14),
            line: contrast.data @ contrast.features - data @ contrast.features,
            "= ∇ E_data[log p], by autograd": likelihood,
        },
        [
            Mutant("ν = 1 as if it were the limit", {first: gradient(1.0)}),
            Mutant("c = 0", {first: gradient(1e14, c=0.0)}),
            Mutant("the noise's mean of ∇E for the model's", {line: (contrast.noise - data) @ contrast.features}),
            Mutant("the phases exchanged", {line: (data - contrast.data) @ contrast.features}),
        ],
    )


# What a chain is worth


@verifies(
    "autocorrelated-sample-size",
    r"""\begin{aligned}
n_{\rm eff}=\frac{\mathrm{Var}[x]}{\mathrm{Var}[\bar x]}
&=\frac n{1+2\sum_{t=1}^{n-1}\big(1-\frac tn\big)\rho_t}\\
&=n\Big/\Big(\frac{1+\rho}{1-\rho}-\frac{2\rho\,(1-\rho^n)}{n\,(1-\rho)^2}\Big),\qquad\rho_t=\rho^t
\end{aligned}""",
    kind="identity",
    route="closed form",
    **SMALL_SUMS,
)
def autocorrelated_sample_size(rng: np.random.Generator) -> Lines:
    # The last of the chains swings from side to side, and is worth more than independent draws.
    n, rho = 20, np.append(rng.uniform(0.2, 0.9, size=2), -rng.uniform(0.2, 0.6))
    # x_t = ρ x_{t-1} + √(1-ρ²) ξ_t from its stationary law: what each ξ adds to the mean.
    apart = np.subtract.outer(np.arange(n), np.arange(n))
    scale = np.where(np.arange(n)[:, None] > 0, np.sqrt(1 - rho**2), 1)
    adds = np.stack([np.where(apart >= 0, r ** abs(apart), 0).mean(0) for r in rho], axis=1) * scale
    t = np.arange(1, n)[:, None]

    def total(factor: float = 2.0, taper: Array = 1 - t / n) -> Array:
        return n / (1 + factor * (taper * rho**t).sum(0))

    def closed(correction: float = 2.0, power: float = 2.0) -> Array:
        return n / ((1 + rho) / (1 - rho) - correction * rho * (1 - rho**n) / (n * (1 - rho) ** power))

    line = "= n/(1 + 2 Σ_t (1 - t/n) ρ_t)"
    return Lines(
        {
            "Var[x]/Var[x̄] of three chains of 20": 1 / (adds**2).sum(0),
            line: total(),
            "= n over the sum, closed": closed(),
        },
        [
            Mutant("Σ_t once", {line: total(factor=1.0)}),
            Mutant("without 1 - t/n", {line: total(taper=np.ones((n - 1, 1)))}),
            Mutant("+2 Σ_t … forgotten: n", {line: total(factor=0.0)}),
            Mutant("the limit's n(1-ρ)/(1+ρ)", closed(correction=0.0)),
            Mutant("(1-ρ) for its square", closed(power=1.0)),
            Mutant("ρ for 2ρ", closed(correction=1.0)),
        ],
    )


@verifies(
    "ar1-sample-size",
    r"\lim_{n\to\infty}\frac{n_{\rm eff}}n=\frac1{1+2\sum_{t=1}^\infty\rho^t}=\frac{1-\rho}{1+\rho}",
    kind="identity",
    route="closed form",
    **SMALL_SUMS,
)
def ar1_sample_size(rng: np.random.Generator) -> Lines:
    rho = np.append(rng.uniform(0.2, 0.9, size=2), -rng.uniform(0.2, 0.6))
    t = np.arange(1, 1001)[:, None]
    # The spectral density of x_t = ρ x_{t-1} + ξ_t at frequency 0 is 1/(1-ρ)², its variance 1/(1-ρ²).
    spectrum = 1 / (1 - rho) ** 2

    def total(factor: float = 2.0, first: int = 1) -> Array:
        return 1 / (1 + factor * (rho ** (t - 1 + first)).sum(0))

    line = "= 1/(1 + 2 Σ_t ρ^t), a thousand terms"
    return Lines(
        {
            "variance over the spectral density at 0": 1 / (1 - rho**2) / spectrum,
            line: total(),
            "= (1-ρ)/(1+ρ)": (1 - rho) / (1 + rho),
        },
        [
            Mutant("upside down", (1 + rho) / (1 - rho)),
            Mutant("1 - ρ", 1 - rho),
            Mutant("(1-ρ²)/(1+ρ²)", (1 - rho**2) / (1 + rho**2)),
            Mutant("Σ_t once", {line: total(factor=1.0)}),
            Mutant("the sum from t = 0", {line: total(first=0)}),
        ],
    )


@verifies(
    "split-r-hat",
    r"""\begin{aligned}
\hat R&=\sqrt{\frac{\frac{n-1}nW+\frac1nB}W},\qquad m\text{ half chains }j\text{ of }n\text{ states}\\
W&=\frac1m\sum_{j=1}^m\frac1{n-1}\sum_{i=1}^n(x_{ij}-\bar x_j)^2,\qquad
B=\frac n{m-1}\sum_{j=1}^m(\bar x_j-\bar x)^2
\end{aligned}""",
    kind="definition",
    route="closed form",
    **SMALL_SUMS,
)
def split_r_hat_definition(rng: np.random.Generator) -> Lines:
    # Three chains of twenty states, of two coordinates; they have their own means, and drift.
    chains = rng.normal(size=(20, 3, 2)) + rng.normal(size=(3, 2)) + np.linspace(0, 2, 20)[:, None, None]
    halves = np.concatenate([chains[:10], chains[10:]], axis=1)

    def formula(x: Array = halves, ddof: int = 1, between: float = 1.0, power: float = 0.5) -> Array:
        n = len(x)
        w, b = x.var(0, ddof=ddof).mean(0), n * x.mean(0).var(0, ddof=1)
        return (((n - 1) / n * w + between * b / n) / w) ** power

    # The same from sums of squares: in all, and within the half chains.
    n, m = halves.shape[:2]
    in_all, within = halves.reshape(n * m, 2).var(0) * n * m, ((halves - halves.mean(0)) ** 2).sum((0, 1))
    by_sums = np.sqrt((n - 1) / n + (in_all - within) / (m - 1) * m * (n - 1) / (n * within))
    return Lines(
        {
            "R̂ of two coordinates, from the analysis of variance": by_sums,
            "= by the samplers' diagnostic": split_r_hat(torch.tensor(chains)),
            "= √(((n-1)W/n + B/n)/W)": formula(),
        },
        [
            Mutant("chains not split", formula(x=chains)),
            Mutant("B for B/n", formula(between=n)),
            Mutant("variances over n", formula(ddof=0)),
            Mutant("no root", formula(power=1.0)),
            Mutant("W over the other", formula(power=-0.5)),
            Mutant("B forgotten", formula(between=0.0)),
        ],
    )


def _slope_of(function: Map) -> Map:
    """∇f of an f of rows, (n, d_x) to (n,), by autograd; to be differentiated again."""

    def slope(x: torch.Tensor) -> torch.Tensor:
        leaf = x if x.requires_grad else x.clone().requires_grad_()
        return torch.autograd.grad(function(leaf).sum(), leaf, create_graph=True)[0]

    return slope


def _gradient_rows(function: Map, x: Array) -> Array:
    """∇f at every row of x."""
    return _slope_of(function)(torch.tensor(x)).detach().numpy()


def _jacobian_rows(function: Map, x: Array) -> Array:
    """∂f_i/∂x_j at every row of x, of an f from rows to rows, by autograd: (n, d_x, d_x)."""
    leaf = torch.tensor(x, requires_grad=True)
    columns = function(leaf).unbind(1)
    return torch.stack([torch.autograd.grad(c.sum(), leaf, retain_graph=True)[0] for c in columns], 1).numpy()


def _hessian_rows(function: Map, x: Array) -> Array:
    return _jacobian_rows(_slope_of(function), x)


def _trace_rows(matrices: Array) -> Array:
    return np.trace(matrices, axis1=-2, axis2=-1)


def _squared_norm(x: Array) -> Array:
    """‖x‖² of every row."""
    return np.square(x).sum(-1)


@dataclass(frozen=True)
class _ScoreMixture:
    """A mixture of Gaussians: of the data, and with noise, of p_σ."""

    weights: Array
    means: Array
    covariances: Array

    @classmethod
    def random(cls, rng: np.random.Generator, parts: int = 2) -> "_ScoreMixture":
        root = rng.uniform(-0.3, 0.3, size=(parts, 2, 2))
        covariances = root @ root.transpose(0, 2, 1) + rng.uniform(0.4, 0.7, size=(parts, 1, 1)) * np.eye(2)
        return cls(rng.dirichlet(np.full(parts, 4.0)), rng.uniform(-0.9, 0.9, size=(parts, 2)), covariances)

    def noised(self, sigma: float) -> "_ScoreMixture":
        return replace(self, covariances=self.covariances + sigma**2 * np.eye(2))

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        gap = x[:, None] - torch.tensor(self.means)
        precision = torch.tensor(np.linalg.inv(self.covariances))
        constant = np.log(self.weights) - np.linalg.slogdet(2 * np.pi * self.covariances)[1] / 2
        distance = torch.einsum("nki,kij,nkj->nk", gap, precision, gap)
        return torch.logsumexp(torch.tensor(constant) - distance / 2, dim=1)

    def density(self, x: Array) -> Array:
        return self.log_density(torch.tensor(x)).exp().numpy()

    def score(self, x: Array) -> Array:
        return _gradient_rows(self.log_density, x)


@dataclass(frozen=True)
class _ScoreEnergy:
    """E(x) = ½ xᵀAx - bᵀx + Σ_k c_k cos(w_k·x + a_k), nothing Gaussian about it."""

    a: Array
    b: Array
    c: Array
    w: Array
    phase: Array

    @classmethod
    def random(cls, rng: np.random.Generator, dim: int = 2, frequency: float = 0.8) -> "_ScoreEnergy":
        root = 0.4 * rng.normal(size=(dim, dim))
        a = root @ root.T + rng.uniform(0.5, 1.0) * np.eye(dim)
        w = frequency * rng.uniform(0.5, 1.0, size=(3, dim)) * rng.choice([-1, 1], size=(3, dim))
        return cls(a, rng.normal(size=dim), rng.uniform(0.5, 1.0, 3), w, rng.uniform(-3, 3, 3))

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c, w, phase = (torch.tensor(v) for v in (self.a, self.b, self.c, self.w, self.phase))
        return ((x @ a) * x).sum(-1) / 2 - x @ b + torch.cos(x @ w.T + phase) @ c

    def score(self, x: Array) -> Array:
        """-∇E, written out."""
        return self.b - x @ self.a + (self.c * np.sin(x @ self.w.T + self.phase)) @ self.w

    def divergence(self, x: Array) -> Array:
        """∇·s = -ΔE, written out."""
        return (self.c * np.cos(x @ self.w.T + self.phase)) @ _squared_norm(self.w) - np.trace(self.a)


@dataclass(frozen=True)
class _ScoreInstance:
    """Data from a mixture in the plane, the score of another density, and nodes of a quadrature."""

    data: _ScoreMixture
    model: _ScoreEnergy
    nodes: Array
    mass: Array  # of the data, at the nodes
    truth: Array  # ∇ log p_data there
    score: Array
    divergence: Array

    @classmethod
    def random(cls, rng: np.random.Generator) -> "_ScoreInstance":
        data, model = _ScoreMixture.random(rng), _ScoreEnergy.random(rng)
        nodes, weight = plane(8.0, 65)
        return cls(
            data,
            model,
            nodes,
            weight * data.density(nodes),
            data.score(nodes),
            model.score(nodes),
            model.divergence(nodes),
        )

    def mean(self, values: Array) -> float:
        return self.mass @ values


# The score and the Fisher divergence


@verifies(
    "score-is-minus-grad-energy",
    r"\nabla_x\log p_\theta(x)=-\nabla_xE_\theta(x)-\nabla_x\log Z_\theta=-\nabla_xE_\theta(x)=s_\theta(x)",
    kind="identity",
    route="autograd",
    **DIFFERENCES,
)
def score_is_minus_grad_energy(rng: np.random.Generator) -> Lines:
    model, x, step = _ScoreEnergy.random(rng), rng.normal(size=2), 1e-5
    nodes, weight = plane(12.0, 81)
    unnormalised = weight * np.exp(-model.energy(torch.tensor(nodes)).numpy())
    z = unnormalised.sum()

    def p(x: Array) -> Array:
        return np.exp(-model.energy(torch.tensor(x)).numpy()) / z

    def difference(function: Callable[[Array], Array]) -> Array:
        return (function(x + step * np.eye(2)) - function(x - step * np.eye(2))) / (2 * step)

    line = "= -∇E, by autograd"
    slope = _gradient_rows(model.energy, x[None])[0]
    return Lines(
        {
            "∇ log p(x), differences of a density normalised by quadrature": difference(lambda x: np.log(p(x))),
            line: -slope,
            "= -∇E = s, written out": model.score(x),
        },
        [
            Mutant("+∇E", -model.score(x)),
            Mutant("∇p(x), without the logarithm", difference(p)),
            Mutant("-∇E/Z", {line: -slope / z}),
            Mutant("-∇E - log Z, as if Z depended on x", {line: -slope - np.log(z)}),
            Mutant("the slope in a parameter, here b", x - unnormalised @ nodes / z),
        ],
    )


@verifies(
    "fisher-divergence",
    r"F=\mathbb E_{p_{\rm data}}\big\Vert s_\theta(x)-\nabla\log p_{\rm data}(x)\big\Vert^2",
    kind="definition",
    route="quadrature",
    **QUADRATURE,
)
def fisher_divergence(rng: np.random.Generator) -> Lines:
    # Two Gaussians, for which it has a closed form.
    both = _ScoreMixture.random(rng)
    p, q = (_ScoreMixture(np.ones(1), both.means[[i]], both.covariances[[i]]) for i in range(2))
    (mean, centre), (covariance, other) = both.means, both.covariances
    nodes, weight = plane(8.0, 65)
    difference = q.score(nodes) - p.score(nodes)
    a, precision = np.linalg.inv(other), np.linalg.inv(covariance)

    def under(density: _ScoreMixture, values: Array) -> float:
        return weight @ (density.density(nodes) * values)

    def formula(gap: float = 1.0) -> float:
        return np.trace((a - precision) @ covariance @ (a - precision)) + gap * _squared_norm(a @ (mean - centre))

    line = "F, an integral"
    logs = [v.log_density(torch.tensor(nodes)).numpy() for v in (p, q)]
    return Lines(
        {line: under(p, _squared_norm(difference)), "= tr (A-Σ⁻¹)Σ(A-Σ⁻¹) + ‖A(μ-m)‖² of s = -A(x-m)": formula()},
        [
            Mutant("the mean over the model", {line: under(q, _squared_norm(difference))}),
            Mutant("‖·‖ not squared", {line: under(p, np.sqrt(_squared_norm(difference)))}),
            Mutant("with the ½ that the reduced form needs", {line: under(p, _squared_norm(difference)) / 2}),
            Mutant("log-densities for their slopes", {line: under(p, (logs[0] - logs[1]) ** 2)}),
            Mutant("the square of the mean", {line: _squared_norm(p.density(nodes) * weight @ difference)}),
            Mutant("the means' distance forgotten", formula(gap=0.0)),
        ],
    )


# Integration by parts


@verifies(
    "score-matching-parts",
    r"""\begin{aligned}
\int_{B_r}p\,s\cdot\nabla\log p\,dx&=\sum_{i=1}^{d_x}\int_{B_r}s_i\,\frac{\partial p}{\partial x_i}\,dx
\quad\text{with }B_r=[-r,r]^{d_x}\\
&=\sum_{i=1}^{d_x}\int\Big(\big[s_i\,p\big]_{x_i=-r}^{x_i=r}
-\int_{-r}^rp\,\frac{\partial s_i}{\partial x_i}\,dx_i\Big)\,dx_{-i}\\
\mathbb E_p[s\cdot\nabla\log p]&=-\mathbb E_p[\nabla\cdot s]\quad\text{for }r\to\infty
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def score_matching_parts(rng: np.random.Generator) -> Lines:
    # Squares of two sizes: at the edge of the small one p is not small.
    data, model, squares = _ScoreMixture.random(rng), _ScoreEnergy.random(rng), ((1.5, 20), (8.0, 70))

    def density(x: torch.Tensor) -> torch.Tensor:
        return data.log_density(x).exp()

    def flux(x: torch.Tensor) -> torch.Tensor:
        """p s."""
        return -density(x)[:, None] * _slope_of(model.energy)(x)

    def over(reach: float, points: int, function: Callable[[Array], Array]) -> float:
        """An integral over a square."""
        axis, weight = np.polynomial.legendre.leggauss(points)
        nodes = reach * np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        return reach**2 * np.outer(weight, weight).ravel() @ function(nodes)

    def edges(reach: float, points: int, axes: Sequence[int]) -> float:
        """Σ_i ∫ [s_i p] dx_{-i}."""
        axis, weight = np.polynomial.legendre.leggauss(points)
        total = 0.0
        for i, side in itertools.product(axes, (-reach, reach)):
            x = np.insert(reach * axis[:, None], i, side, axis=1)
            total += np.sign(side) * reach * weight @ (data.density(x) * model.score(x)[:, i])
        return total

    def inside(x: Array) -> Array:
        return data.density(x) * (model.score(x) * data.score(x)).sum(1)

    def by_slope_of_p(x: Array) -> Array:
        return (model.score(x) * _gradient_rows(density, x)).sum(1)

    def trace(x: Array) -> Array:
        return -data.density(x) * _trace_rows(_hessian_rows(model.energy, x))

    traces = np.array([over(*square, trace) for square in squares])

    def boundary(axes: Sequence[int] = (0, 1)) -> Array:
        return np.array([edges(*square, axes) for square in squares])

    line, third = "= Σ_i ∫ s_i ∂_i p dx", "= Σ_i ∫ ([s_i p] - ∫ p ∂_i s_i dx_i) dx_{-i}"
    small, large = squares
    expected = over(*large, lambda x: data.density(x) * model.divergence(x))
    leaving = over(*small, lambda x: _trace_rows(_jacobian_rows(flux, x)) - data.density(x) * model.divergence(x))
    return Lines(
        {
            "∫ p s·∇log p dx over squares, r = 1.5 and r = 8": np.array([over(*square, inside) for square in squares]),
            line: np.array([over(*square, by_slope_of_p) for square in squares]),
            third: boundary() - traces,
            "= ∫ (∇·(p s) - p ∇·s) dx over the small one, and -E[∇·s]": np.array([leaving, -expected]),
        },
        [
            Mutant("+E[∇·s]", np.array([leaving, expected])),
            Mutant("+∫ p ∂_i s_i", {third: boundary() + traces}),
            Mutant("-[s_i p]", {third: -boundary() - traces}),
            Mutant("no boundary, however small the square", {third: -traces}),
            Mutant("the boundary across one axis alone", {third: boundary(axes=(0,)) - traces}),
            Mutant(
                "p twice: p ∂p for ∂p",
                {line: np.array([over(*square, lambda x: data.density(x) * by_slope_of_p(x)) for square in squares])},
            ),
        ],
    )


@verifies(
    "score-matching-implicit",
    r"""\begin{aligned}
\tfrac12F&=\mathbb E_{p_{\rm data}}\big[\tfrac12\Vert s_\theta\Vert^2-s_\theta\cdot\nabla\log p_{\rm data}\big]
+\tfrac12\mathbb E_{p_{\rm data}}\Vert\nabla\log p_{\rm data}\Vert^2\\
&=\mathbb E_{p_{\rm data}}\big[\tfrac12\Vert s_\theta\Vert^2+\nabla\cdot s_\theta\big]
+\tfrac12\mathbb E_{p_{\rm data}}\Vert\nabla\log p_{\rm data}\Vert^2\\
&=\mathbb E_{p_{\rm data}}\big[\tfrac12\Vert\nabla E_\theta\Vert^2-\Delta E_\theta\big]
+\tfrac12\mathbb E_{p_{\rm data}}\Vert\nabla\log p_{\rm data}\Vert^2
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def score_matching_implicit(rng: np.random.Generator) -> Lines:
    toy = _ScoreInstance.random(rng)
    half_fisher = toy.mean(_squared_norm(toy.score - toy.truth)) / 2
    squared, constant = toy.mean(_squared_norm(toy.score)), toy.mean(_squared_norm(toy.truth)) / 2
    trace = toy.mean(toy.divergence)
    cross = toy.mean((toy.score * toy.truth).sum(1))
    gradient = _gradient_rows(toy.model.energy, toy.nodes)
    laplacian = _trace_rows(_hessian_rows(toy.model.energy, toy.nodes))

    def by_energy(sign: float = -1.0, half: float = 0.5) -> float:
        return toy.mean(half * _squared_norm(gradient) + sign * laplacian)

    first, line = "½F, an integral", "= E[½‖s‖² + ∇·s] + ½E‖∇log p_data‖²"
    return Lines(
        {
            first: half_fisher,
            "= E[½‖s‖² - s·∇log p_data] + ½E‖∇log p_data‖²": squared / 2 - cross + constant,
            line: squared / 2 + trace + constant,
            "= E[½‖∇E‖² - ΔE] + ½E‖∇log p_data‖², by autograd": by_energy() + constant,
        },
        [
            Mutant("the reduced form negated: E[ΔE - ½‖∇E‖²]", constant - by_energy(), erratum="E004-05"),
            Mutant("F, not ½F", {first: 2 * half_fisher}, erratum="E004-06"),
            Mutant("½ on the trace too", {line: squared / 2 + trace / 2 + constant}),
            Mutant("½‖s‖² - ∇·s", {line: squared / 2 - trace + constant}),
            Mutant("+ΔE", by_energy(sign=1.0) + constant),
            Mutant("the constant forgotten", by_energy()),
        ],
    )


@verifies(
    "score-matching-boundary",
    r"""\begin{aligned}
\tfrac12F&=\mathbb E_p\big[\tfrac12\Vert s\Vert^2-s\cdot\nabla\log p\big]+\tfrac12\Vert\lambda\Vert^2\\
&=\mathbb E_p\big[\tfrac12\Vert s\Vert^2+\nabla\cdot s\big]+\tfrac12\Vert\lambda\Vert^2-\int\nabla\cdot(p\,s)\,dx\\
&=\mathbb E_p\big[\tfrac12\Vert s\Vert^2+\nabla\cdot s\big]+\tfrac12\Vert\lambda\Vert^2
+\sum_{i=1}^{d_x}\int_{x_i=0}p\,s_i\,dx_{-i}\\
&\quad\text{for }p(x)=\prod_{i=1}^{d_x}\lambda_ie^{-\lambda_ix_i},\quad x_i\ge0
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def score_matching_boundary(rng: np.random.Generator) -> Lines:
    model, rate = _ScoreEnergy.random(rng), rng.uniform(0.8, 1.5, size=2)
    axis, weight = np.polynomial.laguerre.laggauss(50)
    nodes = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2) / rate
    s = model.score(nodes)

    def mean(values: Array) -> float:
        return np.outer(weight, weight).ravel() @ values

    def flux(x: torch.Tensor) -> torch.Tensor:
        """p s."""
        return -(rate.prod() * torch.exp(-x @ torch.tensor(rate)))[:, None] * _slope_of(model.energy)(x)

    def edge(at: float = 0.0, density: Array = rate) -> float:
        """Σ_i ∫ p s_i dx_{-i} where x_i is `at`."""
        low = np.full(len(axis), at)
        first = model.score(np.column_stack([low, axis / rate[1]]))[:, 0]
        second = model.score(np.column_stack([axis / rate[0], low]))[:, 1]
        return density[0] * weight @ first + density[1] * weight @ second

    half_square, constant = mean(_squared_norm(s)) / 2, _squared_norm(rate) / 2
    reduced = half_square + mean(model.divergence(nodes)) + constant
    leaving = mean(_trace_rows(_jacobian_rows(flux, nodes)) / (rate.prod() * np.exp(-nodes @ rate)))
    expanded, line = "= E[½‖s‖² - s·∇log p] + ½‖λ‖²", "= E[½‖s‖² + ∇·s] + ½‖λ‖² - ∫ ∇·(p s) dx"
    return Lines(
        {
            "½F, an integral": mean(_squared_norm(s + rate)) / 2,
            expanded: half_square + mean(s @ rate) + constant,
            line: reduced - leaving,
            "= E[½‖s‖² + ∇·s] + ½‖λ‖² + Σ_i ∫_{x_i=0} p s_i dx_{-i}": reduced + edge(),
        },
        [
            Mutant("the boundary forgotten", reduced, erratum="E004-07"),
            Mutant("-Σ_i ∫ p s_i dx_{-i}", reduced - edge()),
            Mutant("s_i at the boundary without p", reduced + edge(density=np.ones(2))),
            Mutant("the boundary at x_i = 1", reduced + edge(at=1.0)),
            Mutant("+∫ ∇·(p s) dx", {line: reduced + leaving}),
            Mutant("∇log p = +λ", {expanded: half_square - mean(s @ rate) + constant}),
        ],
    )


# Signs and scales


@verifies(
    "score-matching-sign",
    r"""\begin{aligned}
\mathbb E_{p_{\rm data}}\big[\tfrac12\Vert s\Vert^2-\nabla\cdot s\big]
&=\mathbb E_{p_{\rm data}}\big[\tfrac12\Vert s\Vert^2+s\cdot\nabla\log p_{\rm data}\big]\\
&=\tfrac12\mathbb E_{p_{\rm data}}\Vert s-(-\nabla\log p_{\rm data})\Vert^2\\
&\quad-\tfrac12\mathbb E_{p_{\rm data}}\Vert\nabla\log p_{\rm data}\Vert^2
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def score_matching_sign(rng: np.random.Generator) -> Lines:
    toy = _ScoreInstance.random(rng)
    half_square, constant = toy.mean(_squared_norm(toy.score)) / 2, toy.mean(_squared_norm(toy.truth)) / 2
    cross = toy.mean((toy.score * toy.truth).sum(1))
    first, line, last = "E[½‖s‖² - ∇·s]", "= E[½‖s‖² + s·∇log p]", "= ½E‖s - (-∇log p)‖² - ½E‖∇log p‖²"

    def half_distance(target: Array) -> float:
        return toy.mean(_squared_norm(toy.score - target)) / 2

    return Lines(
        {
            first: half_square - toy.mean(toy.divergence),
            line: half_square + cross,
            last: half_distance(-toy.truth) - constant,
        },
        [
            Mutant("+∇·s: another objective, the right one", {first: half_square + toy.mean(toy.divergence)}),
            Mutant("the minimum at ∇log p all the same", half_distance(toy.truth) - constant),
            Mutant("-s·∇log p", {line: half_square - cross}),
            Mutant("+½E‖∇log p‖²", half_distance(-toy.truth) + constant),
        ],
    )


@verifies(
    "score-matching-unbounded",
    r"""\begin{aligned}
J(\lambda s)&=\mathbb E_{p_{\rm data}}\big[\tfrac12\Vert\lambda s\Vert^2+\nabla\cdot(\lambda s)\big]\\
&=\tfrac{\lambda^2}2\mathbb E_{p_{\rm data}}\Vert s\Vert^2+\lambda\,\mathbb E_{p_{\rm data}}[\nabla\cdot s]\\
&\ge\min_\lambda J(\lambda s)=-\frac{\big(\mathbb E_{p_{\rm data}}[\nabla\cdot s]\big)^2}
{2\,\mathbb E_{p_{\rm data}}\Vert s\Vert^2}\\
&\quad\text{and }-J(\lambda s)\to-\infty\text{ for }\lambda\to\infty
\end{aligned}""",
    kind="inequality",
    route="quadrature",
    **QUADRATURE,
)
def score_matching_unbounded(rng: np.random.Generator) -> Lines:
    toy = _ScoreInstance.random(rng)
    scales = np.array([-1.0, 0.5, 2.0, 10.0])
    gradient = _gradient_rows(toy.model.energy, toy.nodes)
    laplacian = _trace_rows(_hessian_rows(toy.model.energy, toy.nodes))

    def objective(scale: float) -> float:
        """J of the energy λE."""
        return toy.mean(_squared_norm(scale * gradient) / 2 - scale * laplacian)

    square, trace = toy.mean(_squared_norm(toy.score)), toy.mean(toy.divergence)
    least = optimize.minimize_scalar(objective).fun
    first, line, last = "J(λs), four scales λ", "= ½λ² E‖s‖² + λ E[∇·s]", "= -E[∇·s]²/(2 E‖s‖²)"
    values = np.array([objective(scale) for scale in scales])
    return Lines(
        {
            first: values,
            line: scales**2 / 2 * square + scales * trace,
            "≥ the least, by a search": least,
            last: -(trace**2) / square / 2,
        },
        [
            Mutant("-J(λs), to be minimised", {first: -values, line: -values}, erratum="E004-05"),
            Mutant("-λ E[∇·s]", {line: scales**2 / 2 * square - scales * trace}),
            Mutant("λ for λ²", {line: scales / 2 * square + scales * trace}),
            Mutant("-E[∇·s]²/E‖s‖²", -(trace**2) / square),
            Mutant("+E[∇·s]²/(2 E‖s‖²)", trace**2 / square / 2),
        ],
    )


@verifies(
    "score-matching-empirical",
    r"""\begin{aligned}
&\frac1N\sum_{n=1}^N\Big[\tfrac12\big\Vert s_h(x^{(n)})\big\Vert^2+\nabla\cdot s_h(x^{(n)})\Big]\\
&\quad=-\frac{d_x}{h^2}+o(1)\;\to\;-\infty\qquad(h\to0)\\
&\quad\text{with }s_h(x)=\nabla\log\frac1N\sum_{n=1}^NN(x;x^{(n)},h^2I)
\end{aligned}""",
    kind="identity",
    route="autograd",
    tolerance=1e-8,
    reason="numbers of several thousand, each to float64 rounding",
)
def score_matching_empirical(rng: np.random.Generator) -> Lines:
    # The points are so far apart that the o(1) is below rounding.
    lattice = np.stack(np.meshgrid([0, 1.5], [0, 1.5, 3.0], indexing="ij"), -1).reshape(-1, 2)
    points, widths = lattice + rng.uniform(-0.2, 0.2, size=(6, 2)), np.array([0.1, 0.05, 0.02])

    def objective(width: float) -> float:
        density = _ScoreMixture(np.full(6, 1 / 6), points, np.tile(width**2 * np.eye(2), (6, 1, 1)))
        trace = _trace_rows(_hessian_rows(density.log_density, points))
        return (_squared_norm(density.score(points)) / 2 + trace).mean()

    return Lines(
        {
            "J of the score of narrow kernels at the data, by autograd": np.array([objective(h) for h in widths]),
            "= -d_x/h²": -2 / widths**2,
        },
        [
            Mutant("+d_x/h²: bounded below", 2 / widths**2),
            Mutant("-1/h², one dimension counted", -1 / widths**2),
            Mutant("-d_x/h", -2 / widths),
            Mutant("-N d_x/h², no mean over the points", -12 / widths**2),
        ],
    )


# Gaussians, and the trace


def _best_linear_score(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], dim: int = 2) -> Array:
    """A and m of the s(x) = v - Ax = -A(x - m) with the least loss(A, v), a quadratic: one Newton step ends there."""

    def of(parameters: torch.Tensor) -> torch.Tensor:
        return loss(parameters[: dim**2].reshape(dim, dim), parameters[dim**2 :])

    start = torch.zeros(dim**2 + dim, dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(of, start)
    best = -np.linalg.solve(torch.autograd.functional.hessian(of, start).numpy(), gradient.numpy())
    a = best[: dim**2].reshape(dim, dim)
    return np.append(a, np.linalg.solve(a, best[dim**2 :]))


@verifies(
    "score-matching-gaussian",
    r"""\begin{aligned}
&\arg\min_{A,m}\ \mathbb E\big[\tfrac12\Vert s(x)\Vert^2+\nabla\cdot s(x)\big]=\big(\Sigma^{-1},\mu\big)\\
&\quad\text{for }s(x)=-A(x-m),\quad\mu=\mathbb E[x],\quad\Sigma=\mathrm{Cov}[x]
\end{aligned}""",
    kind="identity",
    route="autograd",
    **SMALL_SUMS,
)
def score_matching_gaussian(rng: np.random.Generator) -> Lines:
    # Twelve points, nothing Gaussian about them, and a Gaussian itself.
    points = rng.gamma(2.0, size=(12, 2)) @ np.tril(rng.uniform(0.5, 1.2, size=(2, 2)))
    mean, root = rng.normal(size=2), np.tril(rng.uniform(0.5, 1.2, size=(2, 2)))
    nodes, weight = gauss_hermite(2, 3)

    def best(x: Array, share: Array, half: float = 0.5, sign: float = 1.0) -> Array:
        def loss(a: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            square = (v - torch.tensor(x) @ a.T).square().sum(1)
            return half * torch.tensor(share) @ square - sign * a.trace()

        return _best_linear_score(loss)

    def both(**slip: float) -> Array:
        return np.append(best(points, np.full(12, 1 / 12), **slip), best(mean + nodes @ root.T, weight, **slip))

    def value(of: Callable[[Array], Array] = np.linalg.inv, ddof: int = 0) -> Array:
        fitted, gaussian = of(np.cov(points.T, ddof=ddof)), of(root @ root.T)
        return np.concatenate([fitted.ravel(), points.mean(0), gaussian.ravel(), mean])

    first, last = "A and m with the least E[½‖s‖² + ∇·s], of points and of a Gaussian", "= Σ⁻¹ and μ"
    likeliest = multivariate_normal.fit(points)
    return Lines(
        {
            first: both(),
            "= those with the largest likelihood, of the points by SciPy": np.concatenate(
                [np.linalg.inv(likeliest[1]).ravel(), likeliest[0], value()[6:]]
            ),
            last: value(),
        },
        [
            Mutant("Σ for its inverse", value(of=lambda c: c)),
            Mutant("½‖s‖² without its ½: the variance doubles", {first: both(half=1.0)}, erratum="E004-06"),
            Mutant("½‖s‖² - ∇·s: minus the energy", {first: both(sign=-1.0)}),
            Mutant("1/(N-1) in Σ", value(ddof=1)),
            Mutant("the root of Σ⁻¹", value(of=lambda c: np.linalg.inv(np.linalg.cholesky(c)))),
        ],
    )


@verifies(
    "laplacian-trace",
    r"\nabla\cdot s_\theta=\sum_{i=1}^{d_x}\frac{\partial s_{\theta,i}}{\partial x_i}"
    r"=-\mathrm{tr}\,\nabla^2E_\theta=-\sum_{i=1}^{d_x}\frac{\partial^2E_\theta}{\partial x_i^2}=-\Delta E_\theta",
    kind="identity",
    route="autograd",
    **DIFFERENCES,
)
def laplacian_trace(rng: np.random.Generator) -> Lines:
    model, x, step = _ScoreEnergy.random(rng, 4), rng.normal(size=(3, 4)), 1e-5
    differences = [(model.score(x + e) - model.score(x - e)) @ e / (2 * step**2) for e in step * np.eye(4)]
    hessian = _hessian_rows(model.energy, x)
    # Along a line the second derivative is that of one number.
    rows, zero = torch.tensor(x), np.zeros((3, 1))

    def energy(t: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return model.energy(rows + t * e)

    along = np.sum([_hessian_rows(partial(energy, e=e), zero) for e in torch.eye(4)], axis=0).ravel()
    line, last = "= -tr ∇²E, by autograd", "= -Σ_i ∂²E/∂x_i², along one axis after the other"
    return Lines(
        {
            "∇·s at three points, by differences": sum(differences),
            "= by the models": -laplacians.with_laplacian(_AsModule(model), rows)[2].detach(),
            line: -_trace_rows(hessian),
            last: -along,
        },
        [
            Mutant("+ΔE", along),
            Mutant("all second derivatives, mixed ones too", {line: -hessian.sum((1, 2))}),
            Mutant("the determinant", {line: -np.linalg.det(hessian)}),
            Mutant("∂E/∂x_i squared", -_squared_norm(model.score(x))),
            Mutant("the mean over i", -np.mean(along, axis=0).ravel()),
        ],
    )


class _AsModule(torch.nn.Module):
    """An energy as a network of the models."""

    def __init__(self, model: _ScoreEnergy):
        super().__init__()
        self.forward = model.energy


def _random_tanh_network(rng: np.random.Generator, widths: Sequence[int]) -> list[tuple[Array, Array]]:
    """W and b of each layer."""
    pairs = itertools.pairwise(widths)
    return [(rng.normal(size=(n, m)) / np.sqrt(m), 0.5 * rng.normal(size=n)) for m, n in pairs]


def _tanh_network(layers: Sequence[tuple[Array, Array]], x: torch.Tensor) -> torch.Tensor:
    """Rows to one number each, no tanh after the last layer."""
    for k, (w, b) in enumerate(layers):
        x = (x if k == 0 else x.tanh()) @ torch.tensor(w).T + torch.tensor(b)
    return x[:, 0]


@verifies(
    "forward-laplacian",
    r"""\begin{aligned}
h'&=\varphi(a),\quad a=Wh+b,\qquad J'=\mathrm{diag}\big(\varphi'(a)\big)\,W\,J,\quad J=\frac{\partial h}{\partial x}\\
\Delta h'&=\varphi'(a)\odot W\,\Delta h+\varphi''(a)\odot\sum_{d=1}^{d_x}(WJ)_{\cdot d}^2
\end{aligned}""",
    kind="identity",
    route="autograd",
    **SMALL_SUMS,
)
def forward_laplacian(rng: np.random.Generator) -> Lines:
    layers, x = _random_tanh_network(rng, (3, 5, 4, 1)), rng.normal(size=3)

    def forward(
        curvature: Callable[[Array], Array] = lambda t: -2 * t * (1 - t**2),
        square: Callable[[Array], Array] = lambda wj: (wj**2).sum(1),
        slope: Callable[[Array], Array] = lambda t: 1 - t**2,
        carry: float = 1.0,
    ) -> Array:
        """E, ∇E and ΔE in one pass from x to E."""
        h, jacobian, laplacian = x, np.eye(3), np.zeros(3)
        for k, (w, b) in enumerate(layers):
            h, jacobian, laplacian = w @ h + b, w @ jacobian, w @ laplacian
            if k < len(layers) - 1:
                h = np.tanh(h)
                laplacian = carry * slope(h) * laplacian + curvature(h) * square(jacobian)
                jacobian = (1 - h**2)[:, None] * jacobian
        return np.concatenate([h, jacobian.ravel(), laplacian])

    def energy(rows: torch.Tensor) -> torch.Tensor:
        return _tanh_network(layers, rows)

    network = torch.nn.Sequential(*[m for w, b in layers for m in (_linear(w, b), torch.nn.Tanh())][:-1])
    with torch.no_grad():
        package = laplacians.forward_laplacian(network, torch.tensor(x)[None])
    return Lines(
        {
            "E, ∇E and ΔE, backwards, by autograd": np.concatenate(
                [
                    energy(torch.tensor(x)[None]),
                    _gradient_rows(energy, x[None])[0],
                    _trace_rows(_hessian_rows(energy, x[None])),
                ]
            ),
            "= forwards, by the models": np.concatenate([v.reshape(-1) for v in package]),
            "= forwards, layer by layer": forward(),
        },
        [
            Mutant("φ' for φ''", forward(curvature=lambda t: 1 - t**2)),
            Mutant("-φ''", forward(curvature=lambda t: 2 * t * (1 - t**2))),
            Mutant("(Σ_d (WJ)_d)², the sum squared", forward(square=lambda wj: wj.sum(1) ** 2)),
            Mutant("W Δh without φ'", forward(slope=np.ones_like)),
            Mutant("Δh not carried on", forward(carry=0.0)),
            Mutant("φ' squared beside Δh", forward(slope=lambda t: (1 - t**2) ** 2)),
        ],
    )


def _linear(w: Array, b: Array) -> torch.nn.Linear:
    outputs, inputs = w.shape
    layer = torch.nn.Linear(inputs, outputs, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(w))
        layer.bias.copy_(torch.tensor(b))
    return layer


class _CountedProduct(torch.autograd.Function):
    """The product of rows with a matrix, whose multiplications are counted, also where autograd makes more of them."""

    multiplications = 0

    @staticmethod
    def forward(ctx, rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        ctx.matrix = matrix
        _CountedProduct.multiplications += len(rows) * matrix.numel()
        return rows @ matrix

    @staticmethod
    def backward(ctx, slope: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _CountedProduct.apply(slope, ctx.matrix.T), None


@verifies(
    "score-matching-cost",
    r"""\begin{array}{rl}
\text{score: }&2P\\
\text{sliced: }&2P+2(P-n_{K-1})\\
\text{trace, backward: }&2P+2d_x(P-n_{K-1})\\
\text{trace, forward: }&(d_x+2)P\\
\text{with }&P=\sum_{k=1}^Kn_{k-1}n_k,\quad n_0=d_x,\quad n_K=1
\end{array}""",
    kind="identity",
    route="enumeration",
    tolerance=1e-9,
    reason="counts: whole numbers, exact in float64",
    instances=lambda: [(3, 5, 4), (2, 8, 8), (6, 10, 12, 9)],
)
def score_matching_cost(widths: tuple[int, ...]) -> Lines:
    weights = [torch.tensor(w).T for w, _ in _random_tanh_network(np.random.default_rng(0), (*widths, 1))]
    dims, x = widths[0], torch.ones(1, widths[0], dtype=torch.float64)
    axes = torch.eye(dims, dtype=torch.float64)

    def count(function: Callable[[], object]) -> int:
        before = _CountedProduct.multiplications
        function()
        return _CountedProduct.multiplications - before

    def energy(h: torch.Tensor) -> torch.Tensor:
        for k, w in enumerate(weights):
            h = _CountedProduct.apply(h if k == 0 else h.tanh(), w)
        return h[:, 0]

    def traces(directions: torch.Tensor) -> None:
        leaf = x.clone().requires_grad_()
        s = -_slope_of(energy)(leaf)
        for v in directions:
            torch.autograd.grad((s * v).sum(), leaf, retain_graph=True)

    def forward() -> None:
        # Without tanh: the products with φ' and φ'' are not of matrices.
        h, jacobian, laplacian = x, axes, 0 * x
        for w in weights:
            h, jacobian, laplacian = (_CountedProduct.apply(v, w) for v in (h, jacobian, laplacian))

    counted = [count(lambda: traces(axes[:0])), count(lambda: traces(axes[:1])), count(lambda: traces(axes))]
    p, last = sum(w.numel() for w in weights), widths[-1]

    def formula(last: int = last, backward: int = 2, extra: int = 2, carried: int = 2) -> Array:
        sliced, trace = 2 * p + backward * (p - last), 2 * p + backward * dims * (p - last)
        return np.array([extra * p, sliced, trace, (dims + carried) * p])

    return Lines(
        {
            "products for one example: score, sliced, backward, forward; counted": np.array([*counted, count(forward)]),
            "= 2P, 2P + 2(P-n_{K-1}), 2P + 2d_x(P-n_{K-1}), (d_x+2)P": formula(),
        },
        [
            Mutant("the last layer in the second derivatives too", formula(last=0)),
            Mutant("one product, not two, for each weight and second derivative", formula(backward=1)),
            Mutant("forward without the Laplacians' row", formula(carried=1)),
            Mutant("a score for the price of an energy", formula(extra=1)),
        ],
    )


# Slices


@dataclass(frozen=True)
class _ScoreField:
    """s(x) = C tanh(Wx + b) of four numbers, which is no gradient: its Jacobian is not symmetric."""

    w: Array
    b: Array
    c: Array

    @classmethod
    def random(cls, rng: np.random.Generator, dim: int = 4) -> "_ScoreField":
        return cls(rng.normal(size=(dim, dim)), 0.5 * rng.normal(size=dim), rng.normal(size=(dim, dim)))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ torch.tensor(self.w).T + torch.tensor(self.b)) @ torch.tensor(self.c).T

    def at(self, x: Array) -> tuple[Array, Array]:
        """s and ∂s_i/∂x_j at one x."""
        return self(torch.tensor(x)).numpy(), _jacobian_rows(self, x[None])[0]

    def along(self, x: Array, v: Array) -> Array:
        """vᵀ(∇s)v at one x for every row v, by one backward pass of vᵀs."""
        slope = _gradient_rows(lambda rows: (self(rows) * torch.tensor(v)).sum(1), np.tile(x, (len(v), 1)))
        return (slope * v).sum(1)


def _all_signs(dim: int) -> Array:
    return np.array(list(itertools.product((-1.0, 1.0), repeat=dim)))


@verifies(
    "sliced-score-matching",
    r"\mathbb E_v\big[v^\top(\nabla s)\,v\big]=\mathrm{tr}\big(\nabla s\;\mathbb E_v[vv^\top]\big)"
    r"=\mathrm{tr}\,\nabla s=\nabla\cdot s,\qquad\mathbb E_v[vv^\top]=I",
    kind="identity",
    route="Monte Carlo",
    tolerance=1e-11,
    reason="all signs exactly, sums of float64 numbers of order one; five standard errors of 20,000 random directions",
)
def sliced_score_matching(rng: np.random.Generator) -> Lines:
    field, x, n = _ScoreField.random(rng), rng.normal(size=4), 20_000
    jacobian = field.at(x)[1]
    normal, signs = rng.normal(size=(n, 4)), rng.choice([-1.0, 1.0], size=(n, 4))

    def estimate(v: Array) -> tuple[float, float]:
        """The mean and its standard error."""
        values = field.along(x, v)
        return values.mean(), values.std() / np.sqrt(len(v))

    by_signs, by_normal, exact = "= the mean over 20,000 random signs", "= over 20,000 normal v", "= over all 2⁴ signs"
    (mean_of_signs, signs_error), (mean_of_normal, normal_error) = estimate(signs), estimate(normal)
    trace = "= tr ∇s, by autograd"
    return Lines(
        {
            "tr (∇s E[vvᵀ]), over all 2⁴ signs": np.trace(jacobian @ (_all_signs(4).T @ _all_signs(4)) / 16),
            exact: estimate(_all_signs(4))[0],
            trace: np.trace(jacobian),
            by_signs: mean_of_signs,
            by_normal: mean_of_normal,
        },
        [
            Mutant("v of length one", estimate(normal / np.sqrt(_squared_norm(normal))[:, None])[0]),
            Mutant("v uniform in [-1, 1]⁴", estimate(rng.uniform(-1, 1, size=(n, 4)))[0]),
            Mutant("the same sign in all coordinates", {exact: estimate(np.array([[1.0] * 4, [-1.0] * 4]))[0]}),
            Mutant("two independent directions, uᵀ(∇s)v", ((normal @ jacobian) * signs).sum(1).mean()),
            Mutant("signs 0 and 1", {exact: estimate((_all_signs(4) + 1) / 2)[0]}),
            Mutant("the trace of (∇s)ᵀ∇s", {trace: np.trace(jacobian.T @ jacobian)}),
        ],
        standard_errors={by_signs: signs_error, by_normal: normal_error},
    )


@verifies(
    "sliced-variance",
    r"""\begin{aligned}
v\sim N(0,I):\quad\mathrm{Var}\big[v^\top(\nabla s)\,v\big]&=2\,\Vert S\Vert_F^2,\qquad
S=\tfrac12\big(\nabla s+(\nabla s)^\top\big)\\
v\in\{-1,1\}^{d_x}:\quad\mathrm{Var}\big[v^\top(\nabla s)\,v\big]&=2\sum_{i\ne j}S_{ij}^2
\end{aligned}""",
    kind="identity",
    route="enumeration",
    tolerance=1e-10,
    reason="sums of 81 or 256 float64 products, up to about a hundred",
)
def sliced_variance(rng: np.random.Generator) -> Lines:
    field, x = _ScoreField.random(rng), rng.normal(size=4)
    jacobian = field.at(x)[1]
    nodes, weight = gauss_hermite(4, 3)

    def variance(v: Array, weight: Array) -> float:
        values = field.along(x, v)
        return weight @ values**2 - (weight @ values) ** 2

    def by_moments(excess: float) -> float:
        """Σ_ijkl ∇s_ij ∇s_kl (E[v_i v_j v_k v_l] - E[v_i v_j] E[v_k v_l]), where E[v_i⁴] = 3 + excess."""
        i = np.eye(4)
        fourth = np.einsum("ik,jl->ijkl", i, i) + np.einsum("il,jk->ijkl", i, i)
        fourth += excess * np.einsum("ij,jk,kl->ijkl", i, i, i)
        return np.einsum("ij,kl,ijkl->", jacobian, jacobian, fourth)

    s = (jacobian + jacobian.T) / 2

    def formula(matrix: Array = s, factor: float = 2.0) -> Array:
        square = matrix**2
        return factor * np.array([square.sum(), square.sum() - np.trace(square)])

    return Lines(
        {
            "variances, v normal and of signs: by quadrature and over all 2⁴": np.array(
                [variance(nodes, weight), variance(_all_signs(4), np.full(16, 1 / 16))]
            ),
            "= by the fourth moments of v": np.array([by_moments(0.0), by_moments(-2.0)]),
            "= 2‖S‖², and 2 Σ_{i≠j} S_ij²": formula(),
        },
        [
            Mutant("∇s for its symmetric part S", formula(matrix=jacobian)),
            Mutant("‖S‖², without the 2", formula(factor=1.0)),
            Mutant("the diagonal for signs too", formula()[[0, 0]]),
            Mutant("the diagonal for neither", formula()[[1, 1]]),
            Mutant("each pair i<j once", np.array([2 * (s**2).sum(), 2 * np.triu(s**2, 1).sum()])),
            Mutant("the trace's square", np.full(2, 2 * np.trace(s) ** 2)),
        ],
    )


@verifies(
    "sliced-variance-reduced",
    r"\mathbb E_v\big[\tfrac12(v^\top s)^2\big]=\tfrac12\,s^\top\mathbb E_v[vv^\top]\,s=\tfrac12\Vert s\Vert^2",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def sliced_variance_reduced(rng: np.random.Generator) -> Lines:
    s, signs = _ScoreField.random(rng).at(rng.normal(size=4))[0], _all_signs(4)
    nodes, weight = gauss_hermite(4, 2)

    def mean(v: Array) -> float:
        return ((v @ s) ** 2).mean() / 2

    first = "E[½(vᵀs)²] over all 2⁴ signs"
    return Lines(
        {
            first: mean(signs),
            "= of normal v, by quadrature": weight @ (nodes @ s) ** 2 / 2,
            "= ½ sᵀ E[vvᵀ] s": s @ np.einsum("n,ni,nj->ij", weight, nodes, nodes) @ s / 2,
            "= ½‖s‖²": _squared_norm(s) / 2,
        },
        [
            Mutant("v of length one", {first: mean(signs / 2)}),
            Mutant("½‖s‖² d_x", 2 * _squared_norm(s)),
            Mutant("½(E[vᵀs])²", {first: (signs @ s).mean() ** 2 / 2}),
            Mutant("½(Σ_i s_i)²", s.sum() ** 2 / 2),
            Mutant("½ Σ_i |s_i|", np.abs(s).sum() / 2),
        ],
    )


# Denoising


@dataclass(frozen=True)
class _NoisedInstance:
    """x from a mixture, x̃ = x + σε, and the score s of another density: all pairs x, ε of a quadrature in four
    dimensions, and x̃ itself on a plane."""

    data: _ScoreMixture
    model: _ScoreEnergy
    sigma: float
    x: Array
    epsilon: Array
    weight: Array
    plane: Array
    cell: Array

    @classmethod
    def random(cls, rng: np.random.Generator, points: int = 12) -> "_NoisedInstance":
        # So slow that few nodes resolve it.
        data, model = _ScoreMixture.random(rng), _ScoreEnergy.random(rng, frequency=0.3)
        nodes, weight = gauss_hermite(4, points)
        roots = np.linalg.cholesky(data.covariances)
        x = [mean + nodes[:, :2] @ root.T for mean, root in zip(data.means, roots, strict=True)]
        return cls(
            data,
            model,
            rng.uniform(0.5, 0.8),
            np.concatenate(x),
            np.tile(nodes[:, 2:], (2, 1)),
            np.outer(data.weights, weight).ravel(),
            *plane(11.0, 65),
        )

    @property
    def noised(self) -> _ScoreMixture:
        return self.data.noised(self.sigma)

    def over_plane(self, values: Array, density: _ScoreMixture | None = None) -> float:
        """E under p_σ, or another density, of values on the plane."""
        return (self.cell * (density or self.noised).density(self.plane)) @ values


@verifies(
    "denoising-score-matching",
    r"""\begin{aligned}
&\tfrac12\mathbb E\Big\Vert s(\tilde x)+\frac\epsilon\sigma\Big\Vert^2\\
&\quad=\tfrac12\mathbb E\big\Vert s(\tilde x)-\nabla_{\tilde x}\log q(\tilde x\mid x)\big\Vert^2\\
&\quad=\tfrac12\mathbb E\Vert s(\tilde x)\Vert^2
-\mathbb E\big[s(\tilde x)\cdot\nabla_{\tilde x}\log q(\tilde x\mid x)\big]+\frac{d_x}{2\sigma^2}\\
&\quad=\tfrac12\mathbb E\Vert s(\tilde x)\Vert^2-\int s\cdot\nabla p_\sigma\,d\tilde x+\frac{d_x}{2\sigma^2}\\
&\quad=\tfrac12\underbrace{\mathbb E_{p_\sigma}\Vert s-\nabla\log p_\sigma\Vert^2}_{F_\sigma}
+\frac{d_x}{2\sigma^2}-\tfrac12\mathbb E_{p_\sigma}\Vert\nabla\log p_\sigma\Vert^2\\
&\quad\text{with }\tilde x=x+\sigma\epsilon,\quad q(\tilde x\mid x)=N(\tilde x;x,\sigma^2I)\\
&\quad\text{and }p_\sigma(\tilde x)=\int p_{\rm data}(x)\,q(\tilde x\mid x)\,dx
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def denoising_score_matching(rng: np.random.Generator) -> Lines:
    toy = _NoisedInstance.random(rng)
    sigma, noisy = toy.sigma, toy.x + toy.sigma * toy.epsilon
    s, target = toy.model.score(noisy), (toy.x - noisy) / sigma**2
    on_plane, truth = toy.model.score(toy.plane), toy.noised.score(toy.plane)
    square, constant = toy.over_plane(_squared_norm(on_plane)) / 2, 1 / sigma**2

    def loss(noise: Array) -> float:
        return toy.weight @ _squared_norm(s + noise) / 2

    def formula(density: _ScoreMixture = toy.noised, constant: float = constant) -> float:
        """½F of p_σ, or of another density, and the constant."""
        truth = density.score(toy.plane)
        distance, size = (toy.over_plane(_squared_norm(v), density) for v in (on_plane - truth, truth))
        return distance / 2 + constant - size / 2

    slope_of_p = _gradient_rows(lambda x: toy.noised.log_density(x).exp(), toy.plane)
    half_fisher = toy.over_plane(_squared_norm(on_plane - truth)) / 2
    first, line = "½E‖s(x̃) + ε/σ‖², over x and ε", "= ½E‖s‖² - E[s·∇log q(x̃|x)] + d_x/2σ²"
    return Lines(
        {
            first: loss(toy.epsilon / sigma),
            "= ½E‖s(x̃) - ∇log q(x̃|x)‖²": loss(-target),
            line: square - toy.weight @ (s * target).sum(1) + constant,
            "= ½E‖s‖² - ∫ s·∇p_σ dx̃ + d_x/2σ²": square - toy.cell @ (on_plane * slope_of_p).sum(1) + constant,
            "= ½F_σ + d_x/2σ² - ½E‖∇log p_σ‖²": formula(),
        },
        [
            Mutant("the data's own score: ½F + constant, as without noise", formula(toy.data), erratum="E004-12"),
            Mutant("the target's sign: s - ε/σ", {first: loss(-toy.epsilon / sigma)}),
            Mutant("ε/σ²", {first: loss(toy.epsilon / sigma**2)}),
            Mutant("ε, not divided by σ", {first: loss(toy.epsilon)}),
            Mutant("the constant forgotten", half_fisher),
            Mutant("½E‖∇log p_σ‖² forgotten", half_fisher + constant),
            Mutant("d_x/2σ", formula(constant=1 / sigma)),
            Mutant("+E[s·∇log q]", {line: square + toy.weight @ (s * target).sum(1) + constant}),
        ],
    )


@verifies(
    "denoising-minimiser",
    r"""\begin{aligned}
s^*(\tilde x)&=\arg\min_c\ \mathbb E\big[\tfrac12\Vert c+\epsilon/\sigma\Vert^2\,\big|\,\tilde x\big]
=-\tfrac1\sigma\,\mathbb E[\epsilon\mid\tilde x]\\
&=\frac{\mathbb E[x\mid\tilde x]-\tilde x}{\sigma^2}=\nabla\log p_\sigma(\tilde x)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def denoising_minimiser(rng: np.random.Generator) -> Lines:
    data, sigma, noisy = _ScoreMixture.random(rng), rng.uniform(0.5, 0.8), rng.normal(size=(3, 2))
    x, weight = plane(8.0, 81)
    # p(x|x̃) at the nodes, a row for each x̃.
    posterior = weight * data.density(x) * np.exp(-_squared_norm(noisy[:, None] - x) / (2 * sigma**2))
    posterior /= posterior.sum(1, keepdims=True)
    epsilon = (noisy[:, None] - x) / sigma

    def vertex(noise: Array) -> Array:
        """The c with the least mean of ½‖c + noise‖², a parabola in every coordinate: from its values at -1, 0, 1."""
        low, middle, high = ((posterior[..., None] * (c + noise) ** 2 / 2).sum(1) for c in (-1, 0, 1))
        return (low - high) / 2 / (low - 2 * middle + high)

    first, line, last = "the c with the least E[½‖c + ε/σ‖² | x̃]", "= (E[x|x̃] - x̃)/σ²", "= ∇log p_σ(x̃), by autograd"
    mean = posterior @ x
    truth = data.noised(sigma).score(noisy)
    return Lines(
        {
            first: vertex(epsilon / sigma),
            "= -E[ε|x̃]/σ": -(posterior[..., None] * epsilon).sum(1) / sigma,
            line: (mean - noisy) / sigma**2,
            last: truth,
        },
        [
            Mutant("∇log p_data", data.score(noisy), erratum="E004-12"),
            Mutant("the target's sign: the least of ‖c - ε/σ‖²", {first: vertex(-epsilon / sigma)}),
            Mutant("the target ε/σ²", {first: vertex(epsilon / sigma**2)}),
            Mutant("divided by σ", {line: (mean - noisy) / sigma}),
            Mutant("x̃ - E[x|x̃]", {line: (noisy - mean) / sigma**2}),
            Mutant("p_σ with variance σ", data.noised(np.sqrt(sigma)).score(noisy)),
        ],
    )


@verifies(
    "denoising-gaussian",
    r"""\begin{aligned}
&\arg\min_{A,m}\ \mathbb E\Big\Vert s(x+\sigma\epsilon)+\frac\epsilon\sigma\Big\Vert^2
=\big((\Sigma+\sigma^2I)^{-1},\mu\big)\\
&\quad\text{for }x\sim N(\mu,\Sigma),\quad s(\tilde x)=-A(\tilde x-m)
\end{aligned}""",
    kind="identity",
    route="autograd",
    **SMALL_SUMS,
)
def denoising_gaussian(rng: np.random.Generator) -> Lines:
    mean, root, sigma = rng.normal(size=2), np.tril(rng.uniform(0.5, 1.2, size=(2, 2))), rng.uniform(0.5, 0.8)
    nodes, weight = gauss_hermite(4, 2)
    x, epsilon = mean + nodes[:, :2] @ root.T, nodes[:, 2:]

    def best(target: Array) -> Array:
        def loss(a: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            s = v - torch.tensor(x + sigma * epsilon) @ a.T
            return torch.tensor(weight) @ (s - torch.tensor(target)).square().sum(1)

        return _best_linear_score(loss)

    first, covariance = "A and m with the least E‖s(x̃) + ε/σ‖²", root @ root.T
    last = "= (Σ+σ²I)⁻¹ and μ"

    def value(matrix: Array) -> Array:
        return np.append(matrix, mean)

    inverse = np.linalg.inv(covariance + sigma**2 * np.eye(2))
    return Lines(
        {
            first: best(-epsilon / sigma),
            "= those with the least E‖s(x̃) - ∇log p_σ(x̃)‖²": best(-(x + sigma * epsilon - mean) @ inverse),
            last: value(inverse),
        },
        [
            Mutant("Σ⁻¹, as if nothing were added", value(np.linalg.inv(covariance)), erratum="E004-12"),
            Mutant("(Σ+σI)⁻¹", value(np.linalg.inv(covariance + sigma * np.eye(2)))),
            Mutant("Σ⁻¹ + I/σ², of x given x̃", value(np.linalg.inv(covariance) + np.eye(2) / sigma**2)),
            Mutant("Σ+σ²I", value(covariance + sigma**2 * np.eye(2))),
            Mutant("the target's sign", {first: best(epsilon / sigma)}),
            Mutant("the target ε/σ²", {first: best(-epsilon / sigma**2)}),
        ],
    )


@verifies(
    "dsm-noise-prediction",
    r"s(\tilde x,\sigma)=-\frac{\hat\epsilon(\tilde x,\sigma)}\sigma\quad\Longrightarrow\quad"
    r"\sigma^2\cdot\tfrac12\Big\Vert s(\tilde x,\sigma)+\frac\epsilon\sigma\Big\Vert^2"
    r"=\tfrac12\big\Vert\hat\epsilon(\tilde x,\sigma)-\epsilon\big\Vert^2",
    kind="identity",
    route="closed form",
    **SMALL_SUMS,
)
def dsm_noise_prediction(rng: np.random.Generator) -> Lines:
    field, sigma = _ScoreField.random(rng), np.array([2.0, 0.8, 0.3])
    x, epsilon = rng.normal(size=(2, 3, 4))
    predicted = field(torch.tensor(x + sigma[:, None] * epsilon)).numpy() / np.sqrt(1 + sigma[:, None] ** 2)

    def weighted(score: Array, weight: Array = sigma**2) -> Array:
        return weight * _squared_norm(score + epsilon / sigma[:, None]) / 2

    first, last = "σ²·½‖s + ε/σ‖² with s = -ε̂/σ, three levels σ", "= ½‖ε̂ - ε‖²"
    return Lines(
        {first: weighted(-predicted / sigma[:, None]), last: _squared_norm(predicted - epsilon) / 2},
        [
            Mutant("s = +ε̂/σ", {first: weighted(predicted / sigma[:, None])}),
            Mutant("s = -ε̂", {first: weighted(-predicted)}),
            Mutant("s = -ε̂/σ²", {first: weighted(-predicted / sigma[:, None] ** 2)}),
            Mutant("no weight", {first: weighted(-predicted / sigma[:, None], weight=np.ones(3))}),
            Mutant("the weight σ", {first: weighted(-predicted / sigma[:, None], weight=sigma)}),
            Mutant("½‖ε̂ + ε‖²", _squared_norm(predicted + epsilon) / 2),
        ],
    )


@verifies(
    "noise-prediction-optimum",
    r"\arg\min_{\hat\epsilon}\ \mathbb E\big\Vert\hat\epsilon(\tilde x,\sigma)-\epsilon\big\Vert^2"
    r"=\mathbb E[\epsilon\mid\tilde x]=-\sigma\,\nabla\log p_\sigma(\tilde x)",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def noise_prediction_optimum(rng: np.random.Generator) -> Lines:
    data, sigma, noisy = _ScoreMixture.random(rng), rng.uniform(0.5, 0.8), rng.normal(size=(3, 2))
    # x = x̃ - σε, so that the density of ε given x̃ is p_data(x̃ - σε) N(ε; 0, I) over its integral.
    epsilon, weight = plane(9.0, 81)
    joint = weight * np.exp(-_squared_norm(epsilon) / 2) * np.stack([data.density(x - sigma * epsilon) for x in noisy])
    posterior = joint / joint.sum(1, keepdims=True)

    def loss(answer: Array) -> Array:
        return (posterior * _squared_norm(answer[:, None] - epsilon)).sum(1)

    steps = np.eye(2)
    slopes = np.stack([loss(0 * noisy - e) - loss(0 * noisy + e) for e in steps], axis=1)
    bends = np.stack([loss(0 * noisy - e) + loss(0 * noisy + e) - 2 * loss(0 * noisy) for e in steps], axis=1)
    truth, last = data.noised(sigma).score(noisy), "= -σ ∇log p_σ(x̃)"
    return Lines(
        {
            "the ε̂ with the least E[‖ε̂ - ε‖² | x̃], three x̃": slopes / 2 / bends,
            "= E[ε|x̃]": posterior @ epsilon,
            last: -sigma * truth,
        },
        [
            Mutant("+σ ∇log p_σ", sigma * truth),
            Mutant("-∇log p_σ", -truth),
            Mutant("-σ² ∇log p_σ", -(sigma**2) * truth),
            Mutant("-σ ∇log p_data", -sigma * data.score(noisy), erratum="E004-12"),
            Mutant("-∇log p_σ/σ", -truth / sigma),
        ],
    )


# Modes far apart


@dataclass(frozen=True)
class _TwoModes:
    """N(m, s²I) and N(-m, s²I) in the plane with weights w and 1-w, and a second mixture with v and 1-v."""

    m: Array
    s: float
    w: float
    v: float

    @property
    def pair(self) -> tuple[_ScoreMixture, _ScoreMixture]:
        means, covariances = np.stack([self.m, -self.m]), np.tile(self.s**2 * np.eye(2), (2, 1, 1))
        p, q = (_ScoreMixture(np.array([w, 1 - w]), means, covariances) for w in (self.w, self.v))
        return p, q

    @property
    def distance(self) -> float:
        return np.sqrt(_squared_norm(self.m))

    def nodes(self) -> tuple[Array, Array]:
        """Fine along m, where the modes meet in a narrow strip, and less so across."""
        reach = self.distance + 8 * self.s
        along, across = np.linspace(-reach, reach, 381), np.linspace(-7.5 * self.s, 7.5 * self.s, 27)
        one = self.m / self.distance
        x = along[:, None, None] * one + across[:, None] * np.array([-one[1], one[0]])
        return x.reshape(-1, 2), (along[1] - along[0]) * (across[1] - across[0])

    def divergences(self) -> tuple[float, float]:
        """F and KL, integrals in the plane."""
        (p, q), (x, cell) = self.pair, self.nodes()
        log_p, log_q = (v.log_density(torch.tensor(x)).numpy() for v in (p, q))
        mass = cell * np.exp(log_p)
        return mass @ _squared_norm(q.score(x) - p.score(x)), mass @ (log_p - log_q)

    def strip(self, wide: float = 1.0) -> float:
        """I(s), an integral over the strip where the modes meet, y = 2m·x/s²; I(0) with `wide` = 0."""
        y = np.linspace(-100, 100, 1001)
        of_p, of_q = (w * np.exp(y / 2) + (1 - w) * np.exp(-y / 2) for w in (self.w, self.v))
        narrow = np.exp(-wide * self.s**2 * y**2 / (8 * self.distance**2))
        return (y[1] - y[0]) * (self.w - self.v) ** 2 * (narrow / of_p / of_q**2).sum()


@verifies(
    "mode-weights-invisible",
    r"""\begin{aligned}
F&=\frac{4\Vert m\Vert^2}{s^4}\,\mathbb E_p\big[(\rho_w(x)-\rho_v(x))^2\big]\\
&\le\sqrt{\frac\pi2}\;\frac{\Vert m\Vert}{s^3}\;e^{-\Vert m\Vert^2/2s^2}\;
\frac{\big(\sqrt{w(1-v)}-\sqrt{v(1-w)}\big)^2}{\sqrt{v(1-v)}}\\
&\quad\text{for }p=w\,N(m,s^2I)+(1-w)\,N(-m,s^2I)\\
&\quad\text{and }q=v\,N(m,s^2I)+(1-v)\,N(-m,s^2I),\text{ with}\\
&\quad\rho_w(x)=\frac{w\,N(x;m,s^2I)}{p(x)},\quad\rho_v(x)=\frac{v\,N(x;m,s^2I)}{q(x)}
\end{aligned}""",
    kind="inequality",
    route="quadrature",
    **QUADRATURE,
)
def mode_weights_invisible(rng: np.random.Generator) -> Lines:
    w, v = rng.uniform(0.55, 0.8), rng.uniform(0.15, 0.45)
    direction = rng.normal(size=2)
    direction /= np.sqrt(_squared_norm(direction))
    toys = [_TwoModes(far * s * direction, s, w, v) for far, s in ((1.5, 0.8), (2.5, 1.0), (3.5, 1.2))]

    def rate(toy: _TwoModes, width: float = 2.0, power: int = 3) -> float:
        peak = np.exp(-(toy.distance**2) / (width * toy.s**2))
        return 2 * toy.distance / toy.s**power / np.sqrt(2 * np.pi) * peak

    def in_one_dimension(toy: _TwoModes, factor: float = 4.0, of_q: float = 1.0) -> float:
        """ρ depends on x only by its coordinate along m."""
        t = np.linspace(-toy.distance - 9 * toy.s, toy.distance + 9 * toy.s, 801)
        near, far = norm.pdf(t, toy.distance, toy.s), norm.pdf(t, -toy.distance, toy.s)
        p, q = w * near + (1 - w) * far, v * near + (1 - v) * far
        mean = (t[1] - t[0]) * p @ (w * near / p - of_q * v * near / q) ** 2
        return factor * toy.distance**2 / toy.s**4 * mean

    def bound(denominator: float = v, sign: float = -1.0, half: float = 0.5, **slip: Any) -> Array:
        weights = (np.sqrt(w * (1 - v)) + sign * np.sqrt(v * (1 - w))) ** 2 / np.sqrt(denominator * (1 - denominator))
        return np.array([rate(toy, **slip) * half * np.pi * weights for toy in toys])

    def by_strip(wide: float) -> Array:
        return np.array([rate(toy) * toy.strip(wide) for toy in toys])

    line, last = "= 4‖m‖²/s⁴ E_p[(ρ_w-ρ_v)²]", "= √(π/2) ‖m‖/s³ e^{-‖m‖²/2s²} (√(w(1-v)) - √(v(1-w)))²/√(v(1-v))"
    return Lines(
        {
            "F, three distances 2‖m‖ of the modes": np.array([toy.divergences()[0] for toy in toys]),
            line: np.array([in_one_dimension(toy) for toy in toys]),
            "= 2‖m‖/(√2π s³) e^{-‖m‖²/2s²} I(s), over the strip where the modes meet": by_strip(1.0),
            "≤ the same with I(0), as if the strip had no width": by_strip(0.0),
            last: bound(),
        },
        [
            Mutant("e^{-‖m‖²/s²}", bound(width=1.0)),
            Mutant("‖m‖² for 4‖m‖²", {line: np.array([in_one_dimension(toy, factor=1.0) for toy in toys])}),
            Mutant("the weights of p below", bound(denominator=w)),
            Mutant("the roots added", bound(sign=1.0)),
            Mutant("s for s³", bound(power=1)),
            Mutant("ρ_v forgotten", {line: np.array([in_one_dimension(toy, of_q=0.0) for toy in toys])}),
        ],
    )


@verifies(
    "mode-weights-kl",
    r"""\begin{aligned}
\frac{\Vert m\Vert}s\to\infty:\qquad\mathrm{KL}(p\Vert q)&\to w\log\frac wv+(1-w)\log\frac{1-w}{1-v}\\
F(p\Vert q)&\to0
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def mode_weights_kl(rng: np.random.Generator) -> Lines:
    # So far apart that what is left of F is below rounding.
    w, v, s = rng.uniform(0.55, 0.8), rng.uniform(0.15, 0.45), rng.uniform(0.6, 1.0)
    direction = rng.normal(size=2)
    unit = s * direction / np.sqrt(_squared_norm(direction))
    apart, touching = _TwoModes(9 * unit, s, w, v), _TwoModes(unit, s, w, v)
    fisher, kl = apart.divergences()

    def value(p: float = w, q: float = v, fisher: float = 0.0) -> Array:
        return np.array([p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), fisher])

    sides = [weight * norm.cdf(9) + (1 - weight) * norm.cdf(-9) for weight in (w, v)]
    first = "KL and F, integrals in the plane, modes 18 s apart"
    return Lines(
        {
            first: np.array([kl, fisher]),
            "= KL of the sides of the plane, x·m > 0, and F of one Gaussian and itself": np.array(
                [entropy(*([side, 1 - side] for side in sides)), 0.0]
            ),
            "= w log w/v + (1-w) log (1-w)/(1-v), and 0": value(),
        },
        [
            Mutant("KL the other way round", value(v, w)),
            Mutant("KL vanishes too", np.zeros(2)),
            Mutant("F sees the weights: (w-v)²", value(fisher=(w - v) ** 2)),
            Mutant("the first mode alone", np.array([w * np.log(w / v), 0.0])),
            Mutant("modes 2 s apart", {first: np.array(touching.divergences()[::-1])}),
        ],
    )


@verifies(
    "noise-levels-weights",
    r"""\begin{aligned}
\frac{F(p_\sigma\Vert q_\sigma)}{F(p\Vert q)}&=\Big(\frac s{s_\sigma}\Big)^3\,\frac{I(s_\sigma)}{I(s)}\,
\exp\Big(\frac{\Vert m\Vert^2}{2s^2}-\frac{\Vert m\Vert^2}{2s_\sigma^2}\Big),\qquad s_\sigma^2=s^2+\sigma^2\\
I(s)&=\int\frac{(w-v)^2\,e^{-s^2y^2/8\Vert m\Vert^2}\,dy}
{\big(we^{y/2}+(1-w)e^{-y/2}\big)\,\big(ve^{y/2}+(1-v)e^{-y/2}\big)^2}
\end{aligned}""",
    kind="identity",
    route="quadrature",
    tolerance=1e-8,
    reason="logarithms of integrals of about 1e-7, each to 1e-16",
)
def noise_levels_weights(rng: np.random.Generator) -> Lines:
    w, v, s, sigma = rng.uniform(0.55, 0.8), rng.uniform(0.15, 0.45), rng.uniform(0.3, 0.4), rng.uniform(0.8, 1.2)
    direction = rng.normal(size=2)
    wide = np.sqrt(s**2 + sigma**2)
    clean, noised = (_TwoModes(4.5 * s * direction / np.sqrt(_squared_norm(direction)), r, w, v) for r in (s, wide))
    m = clean.distance

    def by_convolution() -> float:
        """F of p_σ and q_σ, which are convolved with the noise on a line: across m there is nothing to see."""
        t, step = np.linspace(-m - 9 * wide, m + 9 * wide, 201, retstep=True)
        noise, width = np.linspace(-9, 9, 301, retstep=True)
        before = t[:, None] - sigma * noise

        def score(weight: float) -> tuple[Array, Array]:
            parts = weight * norm.pdf(before, m, s), (1 - weight) * norm.pdf(before, -m, s)
            slope = (parts[0] * (m - before) + parts[1] * (-m - before)) / s**2
            mass = width * norm.pdf(noise)
            return sum(parts) @ mass, slope @ mass

        (p, slope_p), (q, slope_q) = score(w), score(v)
        return step * p @ (slope_p / p - slope_q / q) ** 2

    def formula(power: float = 3, exponent: float = 0.5, wide: float = wide, of_i: float = 1.0) -> float:
        at = _TwoModes(clean.m, wide, w, v)
        gain = exponent * m**2 * (1 / s**2 - 1 / wide**2)
        return power * np.log(s / wide) + gain + of_i * np.log(at.strip() / clean.strip())

    truth = clean.divergences()[0]
    line = "= of a mixture with s² + σ², in the plane"
    return Lines(
        {
            "log of F(p_σ‖q_σ)/F(p‖q), p and q convolved with the noise": np.log(by_convolution() / truth),
            line: np.log(noised.divergences()[0] / truth),
            "= log of (s/s_σ)³ I(s_σ)/I(s) exp(‖m‖²/2s² - ‖m‖²/2s_σ²)": formula(),
        },
        [
            Mutant("no exponential: the same to all noise", formula(exponent=0.0)),
            Mutant("exp(‖m‖²/s² - ‖m‖²/s_σ²)", formula(exponent=1.0)),
            Mutant("s_σ = s + σ", formula(wide=s + sigma)),
            Mutant("s_σ = σ", formula(wide=sigma)),
            Mutant("s/s_σ to the first power", formula(power=1)),
            Mutant("I(s_σ)/I(s) forgotten", formula(of_i=0.0)),
        ],
    )


# Many levels of noise


class _AtAllLevels(torch.nn.Module):
    """s(x, σ) = g(x/√(1+σ²))/√(1+σ²) for the score g of an energy, as the models' networks answer it."""

    def __init__(self, model: _ScoreEnergy, high: float, low: float):
        super().__init__()
        self.model, self.high, self.low = model, high, low

    def score(self, x: Array, sigma: float) -> Array:
        size = np.sqrt(1 + sigma**2)
        return self.model.score(x / size) / size

    def forward(self, scaled: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """σ s, from x/√(1+σ²) and the time that the models have for σ."""
        sigma = self.low * (self.high / self.low) ** (time[:, None] / 1000)
        return sigma / (1 + sigma**2).sqrt() * torch.tensor(self.model.score(scaled.numpy()))


@verifies(
    "ncsn-loss",
    r"""\begin{aligned}
\mathcal L(\theta)&=\frac1L\sum_{i=1}^L\lambda(\sigma_i)\,
\tfrac12\,\mathbb E\Big\Vert s_\theta(x+\sigma_i\epsilon,\sigma_i)+\frac\epsilon{\sigma_i}\Big\Vert^2\\
&=\frac1L\sum_{i=1}^L\lambda(\sigma_i)\Big(
\tfrac12\,\mathbb E_{p_{\sigma_i}}\Vert s_\theta-\nabla\log p_{\sigma_i}\Vert^2\\
&\quad\quad+\frac{d_x}{2\sigma_i^2}-\tfrac12\,\mathbb E_{p_{\sigma_i}}\Vert\nabla\log p_{\sigma_i}\Vert^2\Big)\\
&\quad\text{with }\lambda(\sigma)=\sigma^2
\end{aligned}""",
    kind="definition",
    route="quadrature",
    tolerance=1e-10,
    reason="quadrature that resolves a smooth density to rounding; the models' loss within five standard errors",
)
def ncsn_loss(rng: np.random.Generator) -> Lines:
    toy, sigmas, n = _NoisedInstance.random(rng, points=10), np.array([1.5, 0.75, 0.375]), 20_000
    network = _AtAllLevels(toy.model, sigmas[0], sigmas[-1])

    scores = [network.score(toy.x + v * toy.epsilon, v) for v in sigmas]

    def loss(weight: Array = sigmas**2, sign: float = 1.0, power: float = 1.0) -> float:
        targets = [sign * toy.epsilon / v**power for v in sigmas]
        each = [toy.weight @ _squared_norm(s + target) / 2 for s, target in zip(scores, targets, strict=True)]
        return np.mean(weight * each)

    def by_fisher(constant: float = 1.0, same: float | None = None) -> float:
        each = []
        for v in sigmas:
            density, (x, cell) = toy.data.noised(same or v), plane(8 + 5 * v, 65)
            truth, mass = density.score(x), cell * density.density(x)
            fisher = mass @ _squared_norm(network.score(x, v) - truth)
            each.append(fisher / 2 + constant * (1 / v**2 - mass @ _squared_norm(truth) / 2))
        return np.mean(sigmas**2 * each)

    part = rng.choice(2, p=toy.data.weights, size=n)
    roots = np.linalg.cholesky(toy.data.covariances)[part]
    draws = toy.data.means[part] + np.einsum("nij,nj->ni", roots, rng.normal(size=(n, 2)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        package = ScoreModel(network, (2,), torch.tensor(sigmas)).double().loss(torch.tensor(draws)).value.numpy()
    first, line = "the models' loss, over draws of x, ε and the level", "= (1/L) Σ_i λ(σ_i) ½E‖s(x+σ_iε, σ_i) + ε/σ_i‖²"
    return Lines(
        {
            first: package.mean(),
            line: loss(),
            "= (1/L) Σ_i λ(σ_i) (½F + d_x/2σ_i² - ½E‖∇log p_{σ_i}‖²)": by_fisher(),
        },
        [
            Mutant("λ = 1", {line: loss(weight=np.ones(3))}),
            Mutant("λ = σ", {line: loss(weight=sigmas)}),
            Mutant("λ = 1/σ²", {line: loss(weight=1 / sigmas**2)}),
            Mutant("the target's sign", {line: loss(sign=-1.0)}),
            Mutant("ε for ε/σ_i", {line: loss(power=0.0)}),
            Mutant("the constants forgotten", by_fisher(constant=0.0)),
            Mutant("one p_σ for all levels", by_fisher(same=sigmas[0])),
        ],
        standard_errors={first: package.std() / np.sqrt(n)},
    )


@verifies(
    "ncsn-weighting",
    r"\lambda(\sigma)\,\mathbb E\Big\Vert\frac\epsilon\sigma\Big\Vert^2=\frac{\lambda(\sigma)}{\sigma^2}\,d_x=d_x"
    r"\quad\text{at every level for}\quad\lambda(\sigma)=\sigma^2",
    kind="identity",
    route="quadrature",
    **SMALL_SUMS,
)
def ncsn_weighting(rng: np.random.Generator) -> Lines:
    x, sigmas = rng.normal(size=3), np.sort(rng.uniform(0.1, 3.0, size=4))[::-1]
    epsilon, weight = gauss_hermite(3, 2)

    def size(sigma: float) -> float:
        """E‖∇log N(x̃; x, σ²I)‖², by autograd."""
        target = _gradient_rows(lambda v: -(v - torch.tensor(x)).square().sum(1) / (2 * sigma**2), x + sigma * epsilon)
        return weight @ _squared_norm(target)

    sizes = np.array([size(sigma) for sigma in sigmas])
    line = "λ(σ) E‖ε/σ‖² at four levels, λ = σ²"
    return Lines(
        {line: sigmas**2 * sizes, "= λ(σ)/σ² d_x": sigmas**2 / sigmas**2 * 3, "= d_x": np.full(4, 3.0)},
        [
            Mutant("λ = 1", {line: sizes}),
            Mutant("λ = σ", {line: sigmas * sizes}),
            Mutant("λ = 1/σ²", {line: sizes / sigmas**2}),
            Mutant("E‖ε‖² = 1, one dimension counted", np.ones(4)),
            Mutant("√d_x", np.full(4, np.sqrt(3))),
        ],
    )


@verifies(
    "geometric-levels",
    r"\sigma_i=\sigma_1\Big(\frac{\sigma_L}{\sigma_1}\Big)^{\frac{i-1}{L-1}},\qquad"
    r"\frac{\sigma_1}{\sigma_2}=\dots=\frac{\sigma_{L-1}}{\sigma_L}=\Big(\frac{\sigma_1}{\sigma_L}\Big)^{\frac1{L-1}}",
    kind="definition",
    route="closed form",
    tolerance=1e-11,
    reason="powers of float64 numbers up to fifty",
    instances=lambda: [(50.0, 0.01, 10), (1.0, 0.01, 5), (7.0, 0.5, 4)],
)
def geometric_levels_are_equal_ratios(levels: tuple[float, float, int]) -> Lines:
    high, low, n = levels
    i = np.arange(1, n + 1)

    def formula(exponent: Array = (i - 1) / (n - 1), base: float = low / high) -> Array:
        return high * base**exponent

    one_by_one = high * np.cumprod(np.append(1.0, np.full(n - 1, (low / high) ** (1 / (n - 1)))))
    return Lines(
        {
            "L levels with equal steps of log σ": np.exp(np.linspace(np.log(high), np.log(low), n)),
            "= each the one before, divided by (σ_1/σ_L)^{1/(L-1)}": one_by_one,
            "= σ_1 (σ_L/σ_1)^{(i-1)/(L-1)}": formula(),
        },
        [
            Mutant("(i-1)/L", formula((i - 1) / n)),
            Mutant("i/L", formula(i / n)),
            Mutant("equal differences", np.linspace(high, low, n)),
            Mutant("σ_1/σ_L: rising", formula(base=high / low)),
            Mutant("equal steps of 1/σ", 1 / np.linspace(1 / high, 1 / low, n)),
        ],
    )


@verifies(
    "annealed-step-size",
    r"""\begin{aligned}
\frac{\mathbb E\big\Vert\frac{\alpha_i}2s(\tilde x,\sigma_i)\big\Vert^2}{\mathbb E\Vert\sqrt{\alpha_i}\,\xi\Vert^2}
&=\frac{\alpha_i}{4\sigma_i^2}=\frac\epsilon{4\sigma_L^2}\\
&\quad\text{for }\alpha_i=\epsilon\,\frac{\sigma_i^2}{\sigma_L^2},\quad s(\tilde x,\sigma)=\frac{x-\tilde x}{\sigma^2}
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **SMALL_SUMS,
)
def annealed_step_size(rng: np.random.Generator) -> Lines:
    # One point x and its noise, at four levels; ξ is noise too, with the same nodes.
    x, sigmas = rng.normal(size=3), rng.uniform(2.0, 4.0) * np.array([1.0, 0.5, 0.2, 0.1])
    step = rng.uniform(0.1, 0.5) * sigmas[-1] ** 2
    xi, weight = gauss_hermite(3, 2)
    point = _ScoreMixture(np.ones(1), x[None], np.zeros((1, 3, 3)))

    def ratio(alpha: Array, half: float = 0.5, root: float = 0.5) -> Array:
        values = []
        for a, sigma in zip(alpha, sigmas, strict=True):
            density = replace(point, covariances=sigma**2 * np.eye(3)[None])
            drift = half * a * density.score(x + sigma * xi)
            values.append(weight @ _squared_norm(drift) / (weight @ _squared_norm(a**root * xi)))
        return np.array(values)

    alpha = step * sigmas**2 / sigmas[-1] ** 2
    first, line, last = "E‖α_i/2 s‖²/E‖√α_i ξ‖² at four levels", "= α_i/4σ_i²", "= ε/4σ_L²"
    return Lines(
        {first: ratio(alpha), line: alpha / (4 * sigmas**2), last: np.full(4, step / (4 * sigmas[-1] ** 2))},
        [
            Mutant("one step size for all levels", {first: ratio(np.full(4, step))}),
            Mutant("α_i = ε σ_i/σ_L", {first: ratio(step * sigmas / sigmas[-1])}),
            Mutant("α_i = ε σ_L²/σ_i²", {first: ratio(step * sigmas[-1] ** 2 / sigmas**2)}),
            Mutant("α_i s, without the ½", {first: ratio(alpha, half=1.0)}),
            Mutant("noise α_i ξ", {first: ratio(alpha, root=1.0)}),
            Mutant("ε/2σ_L²", np.full(4, step / (2 * sigmas[-1] ** 2))),
        ],
    )


@verifies(
    "annealed-langevin",
    r"""\begin{aligned}
x&\leftarrow x+\frac{\alpha_i}2\,s(x,\sigma_i)+\sqrt{\alpha_i}\,\xi\\
&\quad\text{with }\xi\sim N(0,I),\quad\alpha_i=\epsilon\,\frac{\sigma_i^2}{\sigma_L^2}\\
&\quad T\text{ times for each }i=1,2,\dots,L
\end{aligned}""",
    kind="definition",
    route="Monte Carlo",
    tolerance=1e-11,
    reason="moments by autograd and by recursion, of order one; the models' sampler within five standard errors",
)
def annealed_langevin_of_a_gaussian(rng: np.random.Generator) -> Lines:
    # Data from N(μ, Σ), whose scores are s(x, σ) = -(Σ+σ²I)⁻¹(x-μ), so that the chains stay Gaussian.
    mean, root = rng.normal(size=2), np.tril(rng.uniform(0.5, 1.2, size=(2, 2)))
    sigmas, step, steps, n = np.array([2.0, 1.0, 0.5]), rng.uniform(0.1, 0.2), 3, 20_000
    alphas = step * sigmas**2 / sigmas[-1] ** 2
    precisions = [np.linalg.inv(root @ root.T + sigma**2 * np.eye(2)) for sigma in sigmas]

    def score(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return -(x - torch.tensor(mean)) @ torch.tensor(precisions[int(np.argmin(abs(sigmas - sigma)))])

    def loop(noise: torch.Tensor) -> torch.Tensor:
        """From ξ_0, which is x/σ_1 at first, and the ξ of all steps to the last x."""
        x = sigmas[0] * noise[0]
        for k, xi in enumerate(noise[1:]):
            alpha = alphas[k // steps]
            x = x + alpha / 2 * score(x, sigmas[k // steps]) + np.sqrt(alpha) * xi
        return x

    def moments(x: Array, about: Array) -> Array:
        """Rows of x and of the products of its coordinates about a point."""
        gap = x - about
        return np.column_stack([x, gap[:, 0] ** 2, gap[:, 0] * gap[:, 1], gap[:, 1] ** 2])

    def recursion(
        alphas: Array = alphas, half: float = 0.5, noise: float = 1.0, order: Sequence[int] = (0, 1, 2)
    ) -> Array:
        m, c = np.zeros(2), sigmas[0] ** 2 * np.eye(2)
        for i in np.repeat(order, steps):
            keep = np.eye(2) - half * alphas[i] * precisions[i]
            m, c = mean + keep @ (m - mean), keep @ c @ keep.T + noise * alphas[i] * np.eye(2)
        return np.append(m, c[np.triu_indices(2)])

    still = torch.zeros(1 + 3 * steps, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(loop, still).reshape(2, -1).numpy()
    covariance = jacobian @ jacobian.T
    by_loop = np.append(loop(still), covariance[np.triu_indices(2)])
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    start = torch.tensor(sigmas[0] * rng.normal(size=(n, 2)))
    chains = annealed_langevin(score, start, torch.tensor(sigmas), step, steps, generator=generator).last.numpy()
    draws = moments(chains, by_loop[:2])
    first = "mean and covariance of 20,000 chains, by the models' sampler"
    return Lines(
        {
            first: draws.mean(0),
            "= by autograd through the loop: x is linear in all ξ": by_loop,
            "= m ← μ + M(m-μ), C ← MCMᵀ + α_i I, M = I - α_i/2 (Σ+σ_i²I)⁻¹": recursion(),
        },
        [
            Mutant("α_i s, without the ½", recursion(half=1.0)),
            Mutant("√(2α_i) ξ", recursion(noise=2.0)),
            Mutant("no noise", recursion(noise=0.0)),
            Mutant("one step size for all levels", recursion(alphas=np.full(3, step))),
            Mutant("from the lowest level up", recursion(order=(2, 1, 0))),
            Mutant("uphill on the energy: -s", recursion(half=-0.5)),
        ],
        standard_errors={first: draws.std(0) / np.sqrt(n)},
    )
