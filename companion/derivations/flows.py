"""Checks for the chapter on normalising flows.

Throughout, f generates x = f(z), and g = f⁻¹ normalises.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeVar

import numpy as np
import torch
from scipy import linalg, optimize
from scipy.special import expit, logsumexp
from scipy.stats import entropy, johnsonsu, logistic, multivariate_normal, norm, ortho_group, rv_histogram
from torch import nn
from torch.nn import functional as F

from companion.derivations.registry import Lines, Mutant, Tolerance, verifies
from companion.derivations.toys import plane
from companion.models.flows import Flow
from companion.models.flows.coupling import (
    AdditiveCoupling,
    AffineCoupling,
    Checkerboard,
    Halves,
    LogSigmoid,
    ScaledTanh,
)
from companion.models.flows.dequantisation import Dequantised, Logit
from companion.models.flows.invertible_conv import InvertibleConv
from companion.models.flows.layers import Chain, Interleave, Layer, Scaling, Squeeze, Unflatten
from companion.models.flows.maf import MaskedAffine
from companion.models.flows.normalisation import ActNorm, BatchNorm
from companion.models.flows.split import Split

Array = np.ndarray
Module = TypeVar("Module", bound=nn.Module)
Map = Callable[[torch.Tensor], torch.Tensor]

SMALL_SUMS = Tolerance(tolerance=1e-11, reason="sums of a few float64 numbers of order one")
JACOBIANS = Tolerance(tolerance=1e-10, reason="float64 Jacobians in a few dimensions")
QUADRATURE = Tolerance(tolerance=1e-10, reason="quadrature that resolves a smooth density to rounding")
DIFFERENCES = Tolerance(tolerance=1e-8, reason="central differences with step 1e-5, whose error is about 1e-10")


def _jacobian(function: Map, at: Array) -> Array:
    return torch.autograd.functional.jacobian(function, torch.tensor(at)).numpy()


def _log_det(function: Map, at: Array) -> float:
    """log|det J| of a map between arrays of one size, of any shape, by autograd."""
    size = np.size(at)
    return np.linalg.slogdet(_jacobian(function, at).reshape(size, size))[1]


def _call(function: Map, at: Array) -> Array:
    with torch.no_grad():
        return function(torch.tensor(at)).numpy()


def _inverse(layer: Layer) -> Map:
    """g of a layer of the models, for one example."""
    return lambda x: layer.inverse(x[None])[0][0]


def _forward(layer: Layer) -> Map:
    """f of the same."""
    return lambda z: layer(z[None])[0][0]


def _randomise(layer: Module, rng: np.random.Generator, scale: float = 0.4) -> Module:
    """The layer in float64 and in evaluation mode, with weights for which everything matters."""
    layer.double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.tensor(scale * rng.normal(size=parameter.shape)))
    return layer


def _log_prob(flow: Flow, x: Array) -> float:
    with torch.no_grad():
        return flow.log_prob(torch.tensor(x)[None]).item()


def _root(function: Map, value: Array) -> Array:
    """The x with function(x) = value, by Newton's method."""
    return optimize.root(
        lambda v: _call(function, v) - value,
        0 * value,
        jac=lambda v: _jacobian(function, v),
        options={"xtol": 1e-13},
    ).x


def _standard(z: Array) -> Array:
    """log N(z; 0, I)."""
    return norm.logpdf(z).sum(-1)


def _legendre(low: float, high: float, points: int = 60) -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return (high - low) / 2 * nodes + (high + low) / 2, (high - low) / 2 * weights


@dataclass(frozen=True)
class _Layer:
    """f(h) = φ(Ah + b) with φ(u) = sinh(τ arcsinh u + ε) of each number: as easy to invert, with a full Jacobian."""

    matrix: Array
    shift: Array
    power: float
    skew: float

    @classmethod
    def random(cls, rng: np.random.Generator, dim: int) -> "_Layer":
        left, right = ortho_group.rvs(dim, size=2, random_state=rng)
        # Determinants of both signs.
        matrix = left * rng.uniform(0.7, 1.4, dim) @ right
        return cls(matrix, 0.3 * rng.normal(size=dim), rng.uniform(0.7, 0.9), 0.3 * rng.normal())

    def f(self, h: torch.Tensor) -> torch.Tensor:
        u = h @ torch.tensor(self.matrix).T + torch.tensor(self.shift)
        return torch.sinh(self.power * torch.asinh(u) + self.skew)

    def g(self, y: torch.Tensor) -> torch.Tensor:
        u = torch.sinh((torch.asinh(y) - self.skew) / self.power)
        return (u - torch.tensor(self.shift)) @ torch.tensor(np.linalg.inv(self.matrix)).T

    def log_det(self, h: Array) -> Array:
        """log|det J_f(h)|, written out."""
        u = h @ self.matrix.T + self.shift
        slope = self.power * np.cosh(self.power * np.arcsinh(u) + self.skew) / np.sqrt(1 + u**2)
        return np.linalg.slogdet(self.matrix)[1] + np.log(slope).sum(-1)


class _Step(nn.Module):
    """The same as a layer of the models, for vectors and for images of one pixel."""

    def __init__(self, layer: _Layer):
        super().__init__()
        self.layer = layer

    def forward(self, z: torch.Tensor, label: None = None) -> tuple[torch.Tensor, torch.Tensor]:
        flat = z.flatten(1)
        return self.layer.f(flat).reshape(z.shape), torch.tensor(self.layer.log_det(flat.detach().numpy()))

    def inverse(self, x: torch.Tensor, label: None = None) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.layer.g(x.flatten(1))
        return z.reshape(x.shape), -torch.tensor(self.layer.log_det(z.detach().numpy()))


@dataclass(frozen=True)
class _Flow:
    layers: Sequence[_Layer]

    @classmethod
    def random(cls, rng: np.random.Generator, dim: int, depth: int) -> "_Flow":
        return cls([_Layer.random(rng, dim) for _ in range(depth)])

    def f(self, z: torch.Tensor) -> torch.Tensor:
        return reduce(lambda h, layer: layer.f(h), self.layers, z)

    def g(self, x: torch.Tensor) -> torch.Tensor:
        return reduce(lambda h, layer: layer.g(h), reversed(self.layers), x)

    def states(self, z: Array) -> list[Array]:
        """h_0 = z, h_1, …, h_K = x."""
        return list(itertools.accumulate(self.layers, lambda h, layer: _call(layer.f, h), initial=z))

    def log_dets(self, states: Sequence[Array]) -> list[Array]:
        """log|det J_{f_k}| at the states given."""
        return [layer.log_det(h) for layer, h in zip(self.layers, states, strict=True)]

    def log_density(self, x: Array) -> Array:
        z = _call(self.g, x)
        return _standard(z) - sum(self.log_dets(self.states(z)[:-1]))


# Change of variables


@verifies(
    "flow-bijection",
    r"x=f_\theta(z),\qquad z=g_\theta(x)=f_\theta^{-1}(x)",
    kind="definition",
    route="closed form",
    tolerance=1e-9,
    reason="three layers and back in float64, and Newton's method to rounding",
)
def flow_bijection(rng: np.random.Generator) -> Lines:
    flow, z = _Flow.random(rng, 3, 3), rng.normal(size=3)
    x = torch.tensor(_call(flow.f, z))
    last = "= g(x), x = f(z)"

    def through(*maps: Map) -> Array:
        return reduce(lambda h, m: m(h), maps, x).numpy()

    first, second, third = flow.layers
    return Lines(
        {"z": z, "= the z that solves f(z) = x, by Newton's method": _root(flow.f, x.numpy()), last: through(flow.g)},
        [
            Mutant("f for g", through(flow.f), erratum="E003-21"),
            Mutant("g = g_3∘g_2∘g_1", through(first.g, second.g, third.g)),
            Mutant("one layer not inverted", through(third.g, second.g)),
            Mutant("g at z for x", _call(flow.g, z)),
        ],
    )


@verifies(
    "change-of-variables-1d",
    r"""\begin{aligned}
p_X(x)&=\lim_{dx\to0}\frac{P(x\le X<x+dx)}{dx}=\frac d{dx}P(f(Z)\le x)\\
&=\frac d{dx}\begin{cases}F_Z(g(x))&f\text{ increasing}\\1-F_Z(g(x))&f\text{ decreasing}\end{cases}\\
&=\begin{cases}p_Z(g(x))\,g'(x)&f\text{ increasing}\\-p_Z(g(x))\,g'(x)&f\text{ decreasing}\end{cases}\\
&=p_Z(g(x))\,|g'(x)|
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **DIFFERENCES,
)
def change_of_variables_1d(rng: np.random.Generator) -> Lines:
    # f(z) = sinh((±z - c)/r), whose density SciPy has.
    c, r = rng.normal(), rng.uniform(0.8, 1.6)
    sign, x = np.repeat([1.0, -1.0], 3), np.tile(np.sinh((rng.normal(size=3) - c) / r), 2)

    def below(x: Array) -> Array:
        """P(f(Z) ≤ x): the integral of p_Z over the z on the one side of the root of f(z) = x."""
        total = []
        for s, v in zip(sign, x, strict=True):
            root = optimize.brentq(lambda z, s=s, v=v: np.sinh((s * z - c) / r) - v, -15, 15, xtol=1e-15)
            low, high = (-9, root) if s > 0 else (root, 9)
            z, weight = _legendre(low, high, points=100)
            total.append(weight @ norm.pdf(z))
        return np.array(total)

    def g(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor(sign) * (c + r * torch.asinh(x))

    def by_cdf(decreasing: Callable[[torch.Tensor], torch.Tensor]) -> Array:
        point = torch.tensor(x, requires_grad=True)
        cdf = torch.special.ndtr(g(point))
        return torch.autograd.grad(torch.where(torch.tensor(sign > 0), cdf, decreasing(cdf)).sum(), point)[0].numpy()

    z = sign * (c + r * np.arcsinh(x))
    slope = _jacobian(g, x).diagonal()
    steepness, step = r / np.sqrt(1 + x**2), 1e-5
    line, signed, last = "= d/dx of F_Z(g(x)) or 1-F_Z(g(x))", "= ±p_Z(g(x)) g'(x)", "= p_Z(g(x)) |g'(x)|"
    return Lines(
        {
            "p_X(x), three points, f rising and falling, by SciPy": johnsonsu.pdf(x, c, r),
            "= d/dx P(f(Z) ≤ x), differences of an integral": (below(x + step) - below(x - step)) / (2 * step),
            line: by_cdf(lambda cdf: 1 - cdf),
            signed: sign * norm.pdf(z) * slope,
            last: norm.pdf(z) * steepness,
        },
        [
            Mutant("F_Z(g(x)) for a falling f too", {line: by_cdf(lambda cdf: cdf)}),
            Mutant("g' without its sign", {signed: norm.pdf(z) * slope}),
            Mutant("|f'(z)| for |g'(x)|", norm.pdf(z) / steepness),
            Mutant("1/|f'(x)|, the slope at x", norm.pdf(z) * r / np.cosh((sign * x - c) / r), erratum="E003-17"),
            Mutant("p_Z(g(x)) alone", norm.pdf(z)),
            Mutant("p_Z at x", norm.pdf(x) * steepness),
        ],
    )


@verifies(
    "change-of-variables",
    r"""\begin{aligned}
p_X(x)&=p_Z(g(x))\,|\det J_g(x)|\\
&=p_Z(z)\,|\det J_f(z)|^{-1},\qquad z=g(x)
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def change_of_variables(rng: np.random.Generator) -> Lines:
    # y_1 = sinh((z_1 - c)/r), y_2 = m(y_1) + s(y_1) z_2: its density by the chain rule. Then a rotation or reflection.
    c, r, k = 0.5 * rng.normal(), rng.uniform(1.0, 1.6), rng.normal(size=2)
    turn, z = ortho_group.rvs(2, random_state=rng), rng.normal(size=2)
    by = torch.tensor(turn)

    def link(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return k[0] * torch.sin(y), (0.5 * torch.tanh(k[1] * y)).exp()

    def f(z: torch.Tensor) -> torch.Tensor:
        first = torch.sinh((z[0] - c) / r)
        mean, scale = link(first)
        return by @ torch.stack([first, mean + scale * z[1]])

    def g(x: torch.Tensor) -> torch.Tensor:
        y = by.T @ x
        mean, scale = link(y[0])
        return torch.stack([c + r * torch.asinh(y[0]), (y[1] - mean) / scale])

    x = _call(f, z)
    y = turn.T @ x
    mean, scale = (v.item() for v in link(torch.tensor(y[0])))
    base, of_g, of_f = np.exp(_standard(z)), _jacobian(g, x), _jacobian(f, z)
    det_g, det_f = abs(np.linalg.det(of_g)), abs(np.linalg.det(of_f))
    line, last = "= p_Z(g(x)) |det J_g(x)|", "= p_Z(z) / |det J_f(z)|"
    return Lines(
        {
            "p_X(x), by the chain rule of densities that SciPy has": johnsonsu.pdf(y[0], c, r)
            * norm.pdf(y[1], mean, scale),
            line: np.exp(_standard(_call(g, x))) * det_g,
            last: base / det_f,
        },
        [
            Mutant("J_f at x", base / abs(np.linalg.det(_jacobian(f, x))), erratum="E003-17"),
            Mutant("|det J_f| on top", base * det_f),
            Mutant("|det J_g| below", {line: base / det_g}, erratum="E003-22"),
            Mutant("no Jacobian", base, erratum="E003-19"),
            Mutant("the trace for the determinant", {line: base * abs(np.trace(of_g))}),
            Mutant("p_Z at x", {line: np.exp(_standard(x)) * det_g}),
        ],
    )


@verifies(
    "jacobian-square",
    r"J_g(x)=\frac{\partial z}{\partial x}\in\mathbb R^{d_x\times d_x},\qquad"
    r"\big(J_g(x)\big)_{ij}=\frac{\partial z_i}{\partial x_j}",
    kind="definition",
    route="autograd",
    **DIFFERENCES,
)
def jacobian_square(rng: np.random.Generator) -> Lines:
    layer, step = _Layer.random(rng, 3), 1e-5
    z = rng.normal(size=3)
    x = _call(layer.f, z)
    columns = [(_call(layer.g, x + e) - _call(layer.g, x - e)) / (2 * step) for e in step * np.eye(3)]
    u = np.sinh((np.arcsinh(x) - layer.skew) / layer.power)
    slope = np.sqrt(1 + u**2) / np.sqrt(1 + x**2) / layer.power
    return Lines(
        {
            "∂z_i/∂x_j, by differences": np.stack(columns, axis=1),
            "= J_g(x), by autograd": _jacobian(layer.g, x),
            "= A⁻¹ diag(∂φ⁻¹/∂x), written out": np.linalg.inv(layer.matrix) * slope,
        },
        [
            Mutant("transposed", (np.linalg.inv(layer.matrix) * slope).T),
            Mutant("∂x/∂z", {"= J_g(x), by autograd": _jacobian(layer.f, z)}, erratum="E003-21"),
            Mutant("J_g at z", {"= J_g(x), by autograd": _jacobian(layer.g, z)}),
            Mutant("rows scaled for columns", np.linalg.inv(layer.matrix) * slope[:, None]),
        ],
    )


def _every_layer(rng: np.random.Generator) -> Flow:
    """A flow on images of 2 × 4 pixels between 0 and 1, with one of each of the models' layers, random."""
    rest = Chain([_randomise(MaskedAffine(4, hidden=(8,)), rng), Unflatten((2, 1, 2))])
    normalisation = BatchNorm(4)
    normalisation.variance.copy_(torch.tensor(rng.uniform(0.5, 2, size=4)))
    from_x_to_z = [
        Logit(0.1),
        Squeeze(),
        _randomise(ActNorm(4), rng),
        _randomise(InvertibleConv(4), rng),
        AffineCoupling(Halves(4, flip=True), _Network.random(rng, 4, 4), nn.Identity()),
        normalisation.double(),
        AdditiveCoupling(Halves(4, flip=False), _Network.random(rng, 4, 2)),
        Split((4, 1, 2), rest, _Network.random(rng, 4, 4)),
        Interleave(),
        _randomise(Scaling(8), rng),
    ]
    return Flow((1, 2, 4), reversed(from_x_to_z)).eval()


@verifies(
    "inverse-jacobian",
    r"""\begin{aligned}
g(f(z))=z\quad&\Longrightarrow\quad J_g(x)\,J_f(z)=I\\
&\Longrightarrow\quad\log|\det J_g(x)|=-\log|\det J_f(z)|,\qquad x=f(z)
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def inverse_jacobian(rng: np.random.Generator) -> Lines:
    flow, x = _every_layer(rng), rng.uniform(0.2, 0.8, size=8)

    def g(x: torch.Tensor) -> torch.Tensor:
        return flow.normalise(x.reshape(1, 1, 2, 4))[0][0]

    def f(z: torch.Tensor) -> torch.Tensor:
        return flow.generate(z[None])[0].flatten()

    z = _call(g, x)
    of_f, of_g = _jacobian(f, z), _jacobian(g, x)
    with torch.no_grad():
        _, normalised = flow.normalise(torch.tensor(x).reshape(1, 1, 2, 4))
        _, generated = flow.generate(torch.tensor(z)[None])

    def value(matrix: Array, log_det: float | torch.Tensor) -> Array:
        """A matrix and a logarithm of its determinant."""
        return np.append(matrix, log_det)

    line, last = "= J_f(z)⁻¹ and its log|det|", "= J_f(z)⁻¹ and -log|det J_f(z)|"
    inverse, log_det = np.linalg.inv(of_f), np.linalg.slogdet(of_f)[1]
    elsewhere = np.linalg.inv(_jacobian(f, x))
    return Lines(
        {
            "J_g(x) and log|det J_g(x)|, by autograd": value(of_g, np.linalg.slogdet(of_g)[1]),
            "= the same, log|det| by the models' layers": value(of_g, normalised[0]),
            line: value(inverse, np.linalg.slogdet(inverse)[1]),
            "= the same, log|det| by the models' layers, as they generate": value(inverse, -generated[0]),
            last: value(inverse, -log_det),
        },
        [
            Mutant("the sign of the logarithm", value(inverse, log_det)),
            Mutant("J_f at x", {line: value(elsewhere, np.linalg.slogdet(elsewhere)[1])}, erratum="E003-17"),
            Mutant("J_fᵀ for its inverse", {line: value(of_f.T, -log_det)}),
            Mutant("1/log|det J_f|", value(inverse, 1 / log_det)),
        ],
    )


@verifies(
    "probability-conservation",
    r"\int p_X(x)\,dx=\int p_Z(z)\,dz=1",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def probability_conservation(rng: np.random.Generator) -> Lines:
    layer = _Layer.random(rng, 2)
    nodes, weight = plane(16.0, 241)
    z = _call(layer.g, nodes)
    log_base, log_det = _standard(z), layer.log_det(z)

    def total(log_density: Array) -> float:
        return weight @ np.exp(log_density)

    line = "∫ p_X(x) dx"
    return Lines(
        {line: total(log_base - log_det), "= ∫ p_Z(z) dz": total(_standard(nodes)), "= 1": 1.0},
        [
            Mutant("p_Z(g(x)) alone, as if every map kept volumes", {line: total(log_base)}, erratum="E003-28"),
            Mutant("multiplied by |det J_f|", {line: total(log_base + log_det)}, erratum="E003-22"),
            Mutant("J_f at x", {line: total(log_base - layer.log_det(nodes))}, erratum="E003-17"),
            Mutant("p_Z(f(x)) for p_Z(g(x))", {line: total(_standard(_call(layer.f, nodes)) - log_det)}),
        ],
    )


@verifies(
    "not-a-diffeomorphism",
    r"""\begin{aligned}
x=z^3,\quad f'(0)=0\quad&\Longrightarrow\quad p_X(x)=\frac{p_Z(x^{1/3})}{3\,|x|^{2/3}}\\
&\Longrightarrow\quad\lim_{x\to0}p_X(x)=\infty,\qquad\int p_X(x)\,dx=1
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **DIFFERENCES,
)
def not_a_diffeomorphism(rng: np.random.Generator) -> Lines:
    x = np.array([rng.uniform(0.3, 1.5), -rng.uniform(0.3, 1.5), 1e-3, -1e-6, 1e-12])

    def near(x: float, width: float = 1e-5) -> float:
        """P(X between (1 ± width)x), an integral of p_Z, over the length of that interval."""
        z, weight = _legendre(np.cbrt((1 - width) * abs(x)), np.cbrt((1 + width) * abs(x)))
        return weight @ norm.pdf(z) / (2 * width * abs(x))

    def value(density: Callable[[Array], Array]) -> Array:
        """log p at points closer and closer to zero, and ∫ p(x) dx."""
        # The substitution x = t³ takes the pole out of the integral, whatever the density.
        t, weight = _legendre(0, 9, 200)
        return np.append(np.log(density(x)), weight @ (3 * t**2 * (density(t**3) + density(-(t**3)))))

    def p(x: Array, power: float = 2 / 3, factor: float = 3.0) -> Array:
        return norm.pdf(np.cbrt(x)) / (factor * np.abs(x) ** power)

    cdf = torch.tensor(x, requires_grad=True)
    [slope] = torch.autograd.grad(torch.special.ndtr(cdf.sign() * cdf.abs() ** (1 / 3)).sum(), cdf)
    return Lines(
        {
            "log p_X near 0, by P(X near x), and ∫ p_X(x) dx": np.append(np.log([near(v) for v in x]), 1.0),
            "= log of d/dx Φ(x^{1/3}), and 1": np.append(slope.log().numpy(), 1.0),
            "= log p_Z(x^{1/3})/(3|x|^{2/3}), and its integral": value(p),
        },
        [
            Mutant("3x², the slope at x", value(lambda x: p(x, power=2.0)), erratum="E003-17"),
            Mutant("|x|^{1/3} below", value(lambda x: p(x, power=1 / 3))),
            Mutant("without the 3", value(lambda x: p(x, factor=1.0))),
            Mutant("bounded: no Jacobian", value(lambda x: norm.pdf(np.cbrt(x)))),
        ],
    )


@verifies(
    "injective-density",
    r"p_X(x)=p_Z(z)\,\det\big(J_f(z)^\top J_f(z)\big)^{-1/2},\qquad x=f(z),\ d_z<d_x",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def injective_density(rng: np.random.Generator) -> Lines:
    # A flow in the plane, and the plane laid into three dimensions, where it keeps its areas.
    layer, frame, z = _Layer.random(rng, 2), ortho_group.rvs(3, random_state=rng)[:, :2], rng.normal(size=2)

    def f(z: torch.Tensor) -> torch.Tensor:
        return torch.tensor(frame) @ layer.f(z)

    j, in_plane = _jacobian(f, z), frame.T @ _call(f, z)

    def formula(gram: Array = j.T @ j, power: float = -0.5) -> float:
        return np.exp(_standard(z)) * np.abs(np.linalg.det(gram)) ** power

    return Lines(
        {
            "p_X(x) for each unit of area, by g in the plane": np.exp(
                _standard(_call(layer.g, in_plane)) + _log_det(layer.g, in_plane)
            ),
            "= p_Z(z) det(J_fᵀJ_f)^{-1/2}": formula(),
        },
        [
            Mutant("the root forgotten", formula(power=-1.0)),
            Mutant("det(J_fᵀJ_f)^{1/2}", formula(power=0.5)),
            Mutant("p_Z(z): volume kept", formula(power=0.0), erratum="E003-28"),
            Mutant("the upper square block of J_f", formula(gram=j[:2], power=-1.0)),
        ],
    )


# Composition and maximum likelihood


@verifies(
    "flow-logdet-sum",
    r"""\begin{aligned}
\log|\det J_f(z)|&=\sum_{k=1}^K\log|\det J_{f_k}(h_{k-1})|\\
f&=f_K\circ\cdots\circ f_1,\qquad h_k=f_k(h_{k-1}),\quad h_0=z
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def flow_logdet_sum(rng: np.random.Generator) -> Lines:
    flow, z = _Flow.random(rng, 3, 3), rng.normal(size=3)
    states = flow.states(z)

    def total(states: Sequence[Array]) -> float:
        return float(np.sum(flow.log_dets(states)))

    each = [_log_det(layer.f, h) for layer, h in zip(flow.layers, states[:-1], strict=True)]
    _, package = Flow((3,), map(_Step, flow.layers)).generate(torch.tensor(z)[None])
    return Lines(
        {
            "log|det J_f(z)|, autograd of all layers at once": _log_det(flow.f, z),
            "= Σ_k log|det J_{f_k}(h_{k-1})|, autograd of each": sum(each),
            "= by the models' flow, as it generates": package[0],
            "= Σ_k log|det J_{f_k}(h_{k-1})|, written out": total(states[:-1]),
        },
        [
            Mutant("every layer's Jacobian at x", total([states[-1]] * 3), erratum="E003-18"),
            Mutant("every layer's Jacobian at z", total([z] * 3), erratum="E003-18"),
            Mutant("J_{f_k} at h_k", total(states[1:])),
            Mutant("the layers in the other order", total(_Flow(flow.layers[::-1]).states(z)[:-1][::-1])),
            Mutant("the product of the logarithms", np.prod(flow.log_dets(states[:-1]))),
        ],
    )


@verifies(
    "flow-training-objective",
    r"""\begin{aligned}
\log p_X(x)&=\log p_Z(h_0)+\sum_{k=1}^K\log|\det J_{g_k}(h_k)|\\
&=\log p_Z(h_0)-\sum_{k=1}^K\log|\det J_{f_k}(h_{k-1})|\\
h_K&=x,\qquad h_{k-1}=g_k(h_k)
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def flow_training_objective(rng: np.random.Generator) -> Lines:
    flow = _Flow.random(rng, 3, 3)
    x = _call(flow.f, rng.normal(size=3))
    states = [x]
    for layer in reversed(flow.layers):
        states.insert(0, _call(layer.g, states[0]))
    base, log_dets = _standard(states[0]), flow.log_dets(states[:-1])
    each = [_log_det(layer.g, h) for layer, h in zip(flow.layers, states[1:], strict=True)]
    line = "= log p_Z(h_0) + Σ_k log|det J_{g_k}(h_k)|"
    solved = _root(flow.f, x)
    at_x = [_log_det(layer.g, x) for layer in flow.layers]
    return Lines(
        {
            "log p_X(x), by autograd of g": base + _log_det(flow.g, x),
            "= by autograd of f where f(z) = x": _standard(solved) - _log_det(flow.f, solved),
            "= by the models' flow": _log_prob(Flow((3,), map(_Step, flow.layers)), x),
            line: base + sum(each),
            "= log p_Z(h_0) - Σ_k log|det J_{f_k}(h_{k-1})|": base - sum(log_dets),
        },
        [
            Mutant("+Σ_k log|det J_{f_k}|", base + sum(log_dets), erratum="E003-22"),
            Mutant("-Σ_k log|det J_{g_k}|", {line: base - sum(each)}, erratum="E003-22"),
            Mutant("every J_{g_k} at x", {line: base + sum(at_x)}, erratum="E003-18"),
            Mutant("J_{f_k} at h_k", base - sum(flow.log_dets(states[1:]))),
            Mutant("the last layer forgotten", base - sum(log_dets[:-1])),
            Mutant("log p_Z at x", _standard(x) - sum(log_dets)),
            Mutant("a mean over layers", base - np.mean(log_dets)),
        ],
    )


@verifies(
    "flow-kl",
    r"\mathrm{KL}(p_{\rm data}\Vert p_X)=\mathrm{KL}(q_Z\Vert p_Z),\qquad q_Z(z)=p_{\rm data}(f(z))\,|\det J_f(z)|",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def flow_kl(rng: np.random.Generator) -> Lines:
    layer = _Layer.random(rng, 2)
    centres, scale = 0.7 * rng.normal(size=(2, 2)), rng.uniform(0.5, 0.6, size=(2, 2))

    def log_data(x: Array) -> Array:
        return logsumexp([norm.logpdf(x, *c).sum(-1) for c in zip(centres, scale, strict=True)], axis=0) - np.log(2)

    # q_Z has the heavier tails: f grows more slowly than a straight line.
    (in_x, weight_x), (nodes, weight) = plane(8.0, 121), plane(16.0, 241)

    def kl(log_q: Array, log_p: Array, weight: Array = weight) -> float:
        return weight @ (np.exp(log_q) * (log_q - log_p))

    z = _call(layer.g, in_x)
    log_model = _standard(z) - layer.log_det(z)
    x = _call(layer.f, nodes)
    log_det, log_base = layer.log_det(nodes), _standard(nodes)
    return Lines(
        {
            "KL(p_data‖p_X), an integral over x": kl(log_data(in_x), log_model, weight_x),
            "= KL(q_Z‖p_Z), an integral over z": kl(log_data(x) + log_det, log_base),
        },
        [
            Mutant("p_data(f(z)) without Jacobian", kl(log_data(x), log_base)),
            Mutant("|det J_f| below", kl(log_data(x) - log_det, log_base)),
            Mutant("KL the other way round", kl(log_base, log_data(x) + log_det)),
            Mutant("p_data(z) for p_data(f(z))", kl(log_data(nodes), log_base)),
        ],
    )


@verifies(
    "flow-mle-affine",
    r"""\begin{aligned}
x&=e^s\odot z+b,\quad z\sim N(0,I)\\
\hat b&=\frac1N\sum_{n=1}^Nx^{(n)},\qquad e^{2\hat s}=\frac1N\sum_{n=1}^N\big(x^{(n)}-\hat b\big)^2
\end{aligned}""",
    kind="identity",
    route="autograd",
    tolerance=1e-6,
    reason="an optimum found numerically, where the function is flat, to about 1e-8",
)
def flow_mle_affine(rng: np.random.Generator) -> Lines:
    # Nothing Gaussian about the data.
    data = rng.gamma(2.0, size=(12, 2)) * [1.0, 0.5]
    x = torch.tensor(data)

    def best(weight: float = 1.0, scale: Map = torch.exp) -> Array:
        """b and e^{2s} that maximise the mean log-density, the log-det with a weight."""

        def loss(v: Array) -> tuple[float, Array]:
            p = torch.tensor(v, requires_grad=True)
            z = (x - p[:2]) / scale(p[2:])
            value = 0.5 * (z**2).sum(1).mean() + weight * scale(p[2:]).log().sum()
            return value.item(), torch.autograd.grad(value, p)[0].numpy()

        v = optimize.minimize(loss, [1.0, 1.0, 0.1, 0.1], jac=True, method="BFGS", options={"gtol": 1e-10}).x
        return np.append(v[:2], scale(torch.tensor(v[2:])).numpy() ** 2)

    first = "b and e^{2s} with the largest Σ_n log p_X(x^{(n)})"
    mean, variance = data.mean(0), data.var(0)
    return Lines(
        {
            first: best(),
            "= the same, with softplus for exp": best(scale=F.softplus),
            "= mean and mean square around it": np.append(mean, variance),
        },
        [
            Mutant("1/(N-1)", np.append(mean, data.var(0, ddof=1))),
            Mutant("the standard deviation for its square", np.append(mean, data.std(0))),
            Mutant("mean square around 0", np.append(mean, (data**2).mean(0))),
            Mutant("median for mean", np.append(np.median(data, 0), variance)),
            Mutant("the log-det counted twice", {first: best(weight=2.0)}),
        ],
    )


@verifies(
    "flow-sampling",
    r"z\sim p_Z,\quad x=f_\theta(z)\qquad\Longrightarrow\qquad P(x\in A)=\int_Ap_X(x)\,dx",
    kind="identity",
    route="Monte Carlo",
    reason="five standard errors of the shares of four boxes in 30,000 draws",
)
def flow_sampling(rng: np.random.Generator) -> Lines:
    n, flow = 30_000, _Flow.random(rng, 2, 2)
    centre = _call(flow.f, np.zeros(2))
    # The four quarters of a square around the image of 0.
    corners = itertools.product((-1.5, 1.5), repeat=2)
    boxes = [(centre + np.minimum(c, 0), centre + np.maximum(c, 0)) for c in corners]

    def mass(log_density: Callable[[Array], Array]) -> Array:
        masses = []
        for low, high in boxes:
            axes = [_legendre(a, b, 40) for a, b in zip(low, high, strict=True)]
            grid = np.stack(np.meshgrid(axes[0][0], axes[1][0], indexing="ij"), -1)
            masses.append(axes[0][1] @ np.exp(log_density(grid)) @ axes[1][1])
        return np.array(masses)

    def shares(x: Array) -> Array:
        return np.array([((x > low) & (x < high)).all(1).mean() for low, high in boxes])

    z = rng.normal(size=(n, 2))
    line, package, exact = "= share of the x = f(z) in A", "= the same by the models' flow", mass(flow.log_density)
    by_models = Flow((2,), map(_Step, flow.layers)).generate(torch.tensor(rng.normal(size=(n, 2))))[0].numpy()
    error = np.sqrt(exact * (1 - exact) / n)
    gaussian = rng.multivariate_normal(by_models.mean(0), np.cov(by_models.T), size=n)
    return Lines(
        {"∫_A p_X(x) dx": exact, line: shares(_call(flow.f, z)), package: shares(by_models)},
        [
            Mutant("x = g(z)", {line: shares(_call(flow.g, z))}, erratum="E003-21"),
            Mutant("f_1∘f_2", {line: shares(_call(_Flow(flow.layers[::-1]).f, z))}),
            Mutant("one layer forgotten", {line: shares(_call(flow.layers[0].f, z))}),
            Mutant("a Gaussian with the moments of x", {line: shares(gaussian)}, erratum="E001-12"),
            Mutant("z uniform", {line: shares(_call(flow.f, rng.uniform(-1, 1, size=(n, 2))))}),
            Mutant("no Jacobian in p_X", {"∫_A p_X(x) dx": mass(lambda x: _standard(_call(flow.g, x)))}),
        ],
        standard_errors={line: error, package: error},
    )


# Couplings


class _Network(nn.Module):
    """Two functions of the numbers given, a and b of a coupling or μ and log σ of a prior: a network for the layers."""

    def __init__(self, weights: Array, heads: Array):
        super().__init__()
        self.weights, self.heads = weights, heads

    @classmethod
    def random(cls, rng: np.random.Generator, size: int = 2, out: int = 2) -> "_Network":
        return cls(rng.normal(size=(5, size)), rng.normal(size=(2, out, 5)) / 2)

    def of(self, given: Array) -> Array:
        """Both, for one example."""
        return self.heads @ np.tanh(self.weights @ given)

    def forward(self, given: torch.Tensor, label: None = None) -> torch.Tensor:
        """Both, one behind the other, for a batch of vectors or images."""
        hidden = torch.tanh(given.flatten(1) @ torch.tensor(self.weights).T)
        out = hidden @ torch.tensor(self.heads).flatten(0, 1).T
        return out.reshape(len(given), -1, *given.shape[2:])

    def coupling(self) -> AffineCoupling:
        """Of the first two numbers and the other two. The bound on a is another equation's."""
        return AffineCoupling(Halves(4, flip=False), self, nn.Identity())


@verifies(
    "det-triangular",
    r"\det J=\sum_\pi\mathrm{sgn}(\pi)\prod_{i=1}^{d_x}J_{i\,\pi(i)}=\prod_{i=1}^{d_x}J_{ii}"
    r"\qquad\text{if }J_{ij}=0\text{ for }j>i",
    kind="identity",
    route="enumeration",
    **JACOBIANS,
)
def det_triangular(rng: np.random.Generator) -> Lines:
    # The signs of permutations matter in a full matrix only.
    full = rng.normal(size=(4, 4)) + np.diag([1.0, -1.0, 1.0, 1.0])
    both = np.tril(full), full

    def leibniz(j: Array, signed: bool = True) -> float:
        total = 0.0
        for order in itertools.permutations(range(4)):
            swaps = sum(a > b for a, b in itertools.combinations(order, 2))
            total += (-1) ** (signed * swaps) * np.prod(j[range(4), order])
        return total

    def formula(triangular: Callable = lambda j: np.prod(np.diag(j))) -> Array:
        return np.array([triangular(both[0]), np.linalg.eigvals(full).prod().real])

    line = "= Σ_π sgn(π) Π_i J_{iπ(i)}, 24 permutations"
    return Lines(
        {
            "det of a triangular J and of a full one, by elimination": [np.linalg.det(j) for j in both],
            line: [leibniz(j) for j in both],
            "= Π_i J_ii, and the product of all eigenvalues": formula(),
        },
        [
            Mutant("Σ_i J_ii", formula(np.trace)),
            Mutant("Π_i J_ii of the full one too", np.tile(formula()[0], 2)),
            Mutant("|J_ii|", formula(lambda j: np.abs(np.prod(np.diag(j))))),
            Mutant("sgn(π) forgotten", {line: [leibniz(j, signed=False) for j in both]}),
        ],
    )


@verifies(
    "coupling-jacobian",
    r"J_g(x)=\begin{bmatrix}I&0\\\partial z_2/\partial x_1&\mathrm{diag}\big(e^{a(x_1)}\big)\end{bmatrix},"
    r"\qquad\det J_g(x)=\prod_ie^{a_i(x_1)}",
    kind="identity",
    route="autograd",
    **DIFFERENCES,
)
def coupling_jacobian(rng: np.random.Generator) -> Lines:
    net, x, step = _Network.random(rng), rng.normal(size=4), 1e-5
    a, _ = net.of(x[:2])
    whole = _jacobian(_inverse(net.coupling()), x)

    def slope(function: Callable[[Array], Array]) -> Array:
        """∂/∂x_1, by differences."""
        columns = [(function(x[:2] + e) - function(x[:2] - e)) / (2 * step) for e in step * np.eye(2)]
        return np.stack(columns, axis=1)

    def z_2(x_1: Array) -> Array:
        a, b = net.of(x_1)
        return x[2:] * np.exp(a) + b

    scale, below, zero = np.exp(a), slope(z_2), np.zeros((2, 2))

    def formula(scale: Array = scale, below: Array = below, above: Array = zero, det: Callable = np.prod) -> Array:
        return np.append(np.block([[np.eye(2), above], [below, np.diag(scale)]]), det(scale))

    return Lines(
        {
            "J_g(x) by autograd, det J_g(x) by elimination": np.append(whole, np.linalg.det(whole)),
            "= the blocks I, 0, ∂z_2/∂x_1, diag(e^a), and Π_i e^{a_i}": formula(),
        },
        [
            Mutant("the blocks transposed", formula(below=zero, above=below.T)),
            Mutant("∂b/∂x_1 for ∂z_2/∂x_1", formula(below=slope(lambda x_1: net.of(x_1)[1]))),
            Mutant("e^{-a}", formula(scale=np.exp(-a))),
            Mutant("a for e^a", formula(scale=a)),
            Mutant("Σ_i e^{a_i}", formula(det=np.sum)),
        ],
    )


@verifies(
    "nice-additive-coupling",
    r"""\begin{aligned}
h_1&=x_1,\qquad h_2=x_2+m(x_1),\qquad z=Sh\\
\log p_X(x)&=\log p_Z(z)+\sum_{i=1}^{d_x}\log|S_{ii}|
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def nice_additive_coupling(rng: np.random.Generator) -> Lines:
    net, x, logs = _Network.random(rng, out=1), rng.normal(size=4), rng.uniform(0.2, 1.0, size=4)
    m, s = net.of(x[:2]).ravel(), np.exp(logs)
    scaling = Scaling(4).double()
    with torch.no_grad():
        scaling.log_scale.copy_(torch.tensor(logs))
    flow = Flow((4,), [scaling, AdditiveCoupling(Halves(4, flip=False), net)], base="logistic")

    def base(s: Array = s, m: Array = m) -> float:
        return logistic.logpdf(s * np.append(x[:2], x[2:] + m)).sum()

    # Given x_1, each number of x_2 is logistic around -m(x_1).
    given = logistic.logpdf(x, np.append([0, 0], -m), 1 / s).sum()
    return Lines(
        {
            "log p(x_1) + log p(x_2|x_1), logistic, by SciPy": given,
            "= by the models' layers": _log_prob(flow, x),
            "= log p_Z(z) + log|det J_g(x)|, by autograd": base() + _log_det(_inverse(flow.layers), x),
            "= log p_Z(z) + Σ_i log|S_ii|": base() + logs.sum(),
        },
        [
            Mutant("log p_Z(z) alone: the scaling layer forgotten", base(), erratum="E003-19"),
            Mutant("-Σ_i log|S_ii|", base() - logs.sum()),
            Mutant("Σ_i |S_ii|", base() + s.sum()),
            Mutant("only the half that m moves", base() + logs[2:].sum()),
            Mutant("z = h, not scaled", base(s=np.ones(4)) + logs.sum()),
            Mutant("x_2 - m", base(m=-m) + logs.sum()),
        ],
    )


@verifies(
    "realnvp-forward",
    r"z_1=x_1,\qquad z_2=x_2\odot e^{a(x_1)}+b(x_1)",
    kind="definition",
    route="closed form",
    **SMALL_SUMS,
)
def realnvp_forward(rng: np.random.Generator) -> Lines:
    net, x = _Network.random(rng), rng.normal(size=4)
    a, b = net.of(x[:2])

    def formula(a: Array = a, b: Array = b, kept: Array = x[:2], scale: Callable = np.exp) -> Array:
        return np.append(kept, x[2:] * scale(a) + b)

    of_second = net.of(x[2:])
    return Lines(
        {
            "z, by the models' layer": _call(_inverse(net.coupling()), x),
            "= x_1 and x_2 ⊙ e^{a(x_1)} + b(x_1)": formula(),
        },
        [
            Mutant("a and b of x_2", formula(*of_second)),
            Mutant("e^{-a}", formula(-a)),
            Mutant("a for e^a", formula(scale=lambda a: a)),
            Mutant("(x_2 + b) ⊙ e^a", formula(b=b * np.exp(a))),
            Mutant("x_1 changed as well", formula(kept=x[:2] * np.exp(a) + b)),
            Mutant("a and b exchanged", formula(b, a)),
        ],
    )


@verifies(
    "realnvp-inverse",
    r"x_1=z_1,\qquad x_2=\big(z_2-b(x_1)\big)\odot e^{-a(x_1)}",
    kind="identity",
    route="closed form",
    **JACOBIANS,
)
def realnvp_inverse(rng: np.random.Generator) -> Lines:
    net, z = _Network.random(rng), rng.normal(size=4)
    a, b = net.of(z[:2])
    g = _inverse(net.coupling())

    def formula(a: Array = a, b: Array = b) -> Array:
        return np.append(z[:2], (z[2:] - b) * np.exp(-a))

    return Lines(
        {
            "the x with g(x) = z, by Newton's method": _root(g, z),
            "= by the models' layer": _call(_forward(net.coupling()), z),
            "= z_1 and (z_2 - b(z_1)) ⊙ e^{-a(z_1)}": formula(),
        },
        [
            Mutant("e^{+a}", formula(a=-a)),
            Mutant("+b", formula(b=-b)),
            Mutant("z_2 ⊙ e^{-a} - b", formula(b=b * np.exp(a))),
            Mutant("a and b of z_2", formula(*net.of(z[2:]))),
            Mutant("the other direction", _call(g, z), erratum="E003-21"),
        ],
    )


@verifies(
    "realnvp-loglik",
    r"""\begin{aligned}
\log p_X(x)&=\log p_Z(z)+\log|\det J_g(x)|\\
&=\log p_Z(z)+\sum_ia_i(x_1)
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def realnvp_loglik(rng: np.random.Generator) -> Lines:
    net, x = _Network.random(rng), rng.normal(size=4)
    a, b = net.of(x[:2])
    base = _standard(np.append(x[:2], x[2:] * np.exp(a) + b))
    # Given x_1, each number of x_2 is Gaussian around -b e^{-a}, with standard deviation e^{-a}.
    given = _standard(x[:2]) + norm.logpdf(x[2:], -b * np.exp(-a), np.exp(-a)).sum()
    return Lines(
        {
            "log p(x_1) + log p(x_2|x_1), Gaussians by SciPy": given,
            "= by the models' layer": _log_prob(Flow((4,), [net.coupling()]), x),
            "= log p_Z(z) + log|det J_g(x)|, by autograd": base + _log_det(_inverse(net.coupling()), x),
            "= log p_Z(z) + Σ_i a_i(x_1)": base + a.sum(),
        },
        [
            Mutant("-Σ_i a_i", base - a.sum(), erratum="E003-20"),
            Mutant("log p_Z(z) alone", base, erratum="E003-19"),
            Mutant("Σ_i e^{a_i}", base + np.exp(a).sum()),
            Mutant("a mean over i", base + a.mean()),
            Mutant("a of x_2", base + net.of(x[2:])[0].sum()),
            Mutant("log p_Z at x", _standard(x) + a.sum()),
        ],
    )


@verifies(
    "masked-coupling",
    r"""\begin{aligned}
z&=m\odot x+(1-m)\odot\big(x\odot e^{a(m\odot x)}+b(m\odot x)\big)\\
\log|\det J_g(x)|&=\sum_i(1-m_i)\,a_i(m\odot x)
\end{aligned}""",
    kind="definition",
    route="autograd",
    **JACOBIANS,
)
def masked_coupling(rng: np.random.Generator) -> Lines:
    # An image of 2 × 4 pixels with the mask of a checkerboard, one where row + column is even.
    net, x = _Network.random(rng, 8, 8), rng.normal(size=8)
    layer = AffineCoupling(Checkerboard((1, 2, 4), flip=False), net, nn.Identity())
    m = np.array([1.0, 0, 1, 0, 0, 1, 0, 1])

    def image(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, 1, 2, 4)

    def formula(m: Array = m, seen: Array = m * x, counted: Array = 1 - m, power: float = 1.0) -> Array:
        """z and log|det|."""
        a, b = net.of(seen)
        return np.append(m * x + (1 - m) * (x * np.exp(power * a) + b), (counted * a).sum())

    z, log_det = layer.inverse(image(torch.tensor(x)))
    by_autograd = _log_det(lambda v: layer.inverse(image(v))[0].flatten(), x)
    return Lines(
        {
            "z and log|det J_g(x)|, by the models' layer": np.append(z, log_det),
            "= z and log|det|, by autograd": np.append(z, by_autograd),
            "= m ⊙ x + (1-m) ⊙ (x ⊙ e^a + b) and Σ_i (1-m_i) a_i": formula(),
        },
        [
            Mutant("a and b of all pixels", formula(seen=x)),
            Mutant("m and 1-m exchanged", formula(m=1 - m, seen=(1 - m) * x, counted=m)),
            Mutant("Σ_i a_i over all pixels", formula(counted=np.ones(8))),
            Mutant("Σ_i m_i a_i", formula(counted=m)),
            Mutant("stripes for a checkerboard", formula(m=np.tile([1.0, 0], 4))),
            Mutant("e^{-a}", formula(power=-1.0)),
        ],
    )


@verifies(
    "bounded-log-scale",
    r"a=c\odot\tanh r,\qquad e^{-|c_i|}\le e^{a_i}\le e^{|c_i|}",
    kind="definition",
    route="closed form",
    **SMALL_SUMS,
)
def bounded_log_scale(rng: np.random.Generator) -> Lines:
    c, r = rng.uniform(0.5, 2, 4) * np.array([1, -1, 1, -1]), rng.uniform(0.5, 4, 4) * np.array([1, 1, -1, -1])
    layer = ScaledTanh(4).double()
    with torch.no_grad():
        layer.bound.copy_(torch.tensor(c))
        package = layer(torch.tensor(r)[None])[0].numpy()
    low, line, high = "e^{-|c_i|}", "= e^{c_i tanh r_i}", "≤ e^{|c_i|}"
    return Lines(
        {
            low: np.exp(-np.abs(c)),
            "≤ e^{a_i}, by the models' layer": np.exp(package),
            line: np.exp(c * (np.exp(2 * r) - 1) / (np.exp(2 * r) + 1)),
            high: np.exp(np.abs(c)),
        },
        [
            Mutant("r, not bounded", {line: np.exp(c * r)}),
            Mutant("tanh(c r)", {line: np.exp(np.tanh(c * r))}),
            Mutant("c σ(r)", {line: np.exp(c * expit(r))}),
            Mutant("at most e^{c_i}", {high: np.exp(c)}),
            Mutant("at least e^{-c_i}", {low: np.exp(-c)}),
            Mutant("at least 1", {low: np.ones(4)}),
        ],
    )


@verifies(
    "glow-log-scale",
    r"a=\log\sigma(r+2),\qquad0<e^{a_i}<1",
    kind="definition",
    route="closed form",
    **SMALL_SUMS,
)
def glow_log_scale(rng: np.random.Generator) -> Lines:
    r = 2 * rng.normal(size=4)
    with torch.no_grad():
        package = LogSigmoid()(torch.tensor(r)[None])[0].numpy()

    def formula(shift: float = 2.0, scale: float = 1.0) -> Array:
        return 1 / (1 + np.exp(-scale * (r + shift)))

    line, last = "= 1/(1 + e^{-(r+2)})", "≤ 1"
    return Lines(
        {"e^{a_i}, by the models' layer": np.exp(package), line: formula(), last: np.ones(4)},
        [
            Mutant("r for r + 2", {line: formula(shift=0.0)}),
            Mutant("r - 2", {line: formula(shift=-2.0)}),
            Mutant("σ(-(r+2))", {line: formula(scale=-1.0)}),
            Mutant("r + 2 for its σ", {line: np.exp(r + 2)}),
        ],
    )


@verifies(
    "permutation-volume",
    r"z=Px,\qquad x=P^\top z,\qquad|\det P|=1",
    kind="identity",
    route="enumeration",
    instances=lambda: [4, 6, 8],
    **SMALL_SUMS,
)
def permutation_volume(size: int) -> Lines:
    # The even and the odd numbers to a half each.
    x = np.random.default_rng(size).normal(size=size)
    order = [*range(0, size, 2), *range(1, size, 2)]
    p, z = np.eye(size)[order], x[order]
    package = _inverse(Interleave())

    def value(p: Array, back: Array, volume: Callable = np.abs) -> Array:
        """z, x and |det P|."""
        return np.concatenate([p @ x, back @ z, [volume(np.linalg.det(p))]])

    by_models = [_call(package, x), _call(_forward(Interleave()), z), np.exp([_log_det(package, x)])]
    repeated = np.eye(size)[[0, *order[1:-1], 0]]
    return Lines(
        {
            "z, x and 1": np.concatenate([z, x, [1.0]]),
            "= by the models' layer, |det| by autograd": np.concatenate(by_models),
            "= Px, Pᵀz and |det P|": value(p, p.T),
        },
        [
            Mutant("P for Pᵀ", value(p, p)),
            Mutant("det without the bars", value(p, p.T, volume=np.asarray)),
            Mutant("one number taken twice", value(repeated, p.T)),
            Mutant("Pᵀx for Px", value(p.T, p.T)),
        ],
    )


# Glow


@verifies(
    "squeeze",
    r"z_{4c+2i+j,\;u,v}=x_{c,\;2u+i,\;2v+j},\qquad i,j\in\{0,1\},\qquad\log|\det J_g|=0",
    kind="definition",
    route="enumeration",
    **SMALL_SUMS,
)
def squeeze(rng: np.random.Generator) -> Lines:
    colours, height, width = 2, 3, 2
    x = rng.normal(size=(colours, 2 * height, 2 * width))

    def loops(
        channel: Callable = lambda c, i, j: 4 * c + 2 * i + j, pixel: Callable = lambda u, i, n: 2 * u + i
    ) -> Array:
        z = np.zeros((4 * colours, height, width))
        for c, i, j, u, v in itertools.product(range(colours), (0, 1), (0, 1), range(height), range(width)):
            z[channel(c, i, j), u, v] = x[c, pixel(u, i, height), pixel(v, j, width)]
        return np.append(z, 0.0)

    z, log_det = Squeeze().inverse(torch.tensor(x)[None])
    by_autograd = _log_det(_inverse(Squeeze()), x)
    return Lines(
        {
            "z and log|det|, by the models' layer": np.append(z, log_det),
            "= z and log|det|, by autograd": np.append(z, by_autograd),
            "= by loops over c, i, j, u, v, and 0": loops(),
        },
        [
            Mutant("4c + 2j + i", loops(channel=lambda c, i, j: 4 * c + 2 * j + i)),
            Mutant("all colours of a place together", loops(channel=lambda c, i, j: colours * (2 * i + j) + c)),
            Mutant("quarters of the image for squares", loops(pixel=lambda u, i, n: u + n * i)),
            Mutant("reshaped", np.append(x.reshape(4 * colours, height, width), 0.0)),
        ],
    )


@verifies(
    "glow-1x1conv",
    r"""\begin{aligned}
\log|\det J_g(x)|&=h\,w\,\log|\det W|\\
&=h\,w\sum_i\log|u_{ii}|,\qquad W=PLU,\quad l_{ii}=1
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def glow_1x1conv(rng: np.random.Generator) -> Lines:
    colours, height, width = 3, 2, 4
    weight, x = rng.normal(size=(colours, colours)), rng.normal(size=(colours, height, width))
    _, lower, upper = linalg.lu(weight)
    log_det, size = np.linalg.slogdet(weight)[1], height * width

    layer = InvertibleConv(colours, torch.tensor(weight))
    with torch.no_grad():
        _, package = layer.inverse(torch.tensor(x)[None])
    line, last = "= h w log|det W|", "= h w Σ_i log|u_ii|"
    logs = np.log(np.abs(np.diag(upper)))
    return Lines(
        {
            "log|det| of a 24×24 matrix, by autograd": _log_det(_inverse(layer), x),
            "= by the models' layer": package[0],
            line: size * log_det,
            last: size * logs.sum(),
        },
        [
            Mutant("h w forgotten", {line: log_det}),
            Mutant("h + w", {line: (height + width) * log_det}),
            Mutant("c h w", {line: colours * size * log_det}),
            Mutant("the diagonal of W", size * np.log(np.abs(np.diag(weight))).sum()),
            Mutant("the diagonal of L", size * np.log(np.diag(lower)).sum()),
            Mutant("Σ_i |u_ii|", size * np.abs(np.diag(upper)).sum()),
        ],
    )


@verifies(
    "glow-actnorm",
    r"z_{i,u,v}=s_i\,x_{i,u,v}+b_i,\qquad\log|\det J_g(x)|=h\,w\sum_i\log|s_i|",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def glow_actnorm(rng: np.random.Generator) -> Lines:
    colours, height, width = 3, 2, 4
    logs, b = rng.uniform(0.2, 1.0, colours), rng.normal(size=colours)
    x = rng.normal(size=(colours, height, width))
    size, s = height * width, np.exp(logs)
    layer = ActNorm(colours).double().eval()
    with torch.no_grad():
        layer.log_scale.copy_(torch.tensor(logs))
        layer.shift.copy_(torch.tensor(b))

    def formula(total: float = size * logs.sum(), s: Array = s, b: Array = b) -> Array:
        """z and log|det|."""
        return np.append(s[:, None, None] * x + b[:, None, None], total)

    with torch.no_grad():
        z, log_det = layer.inverse(torch.tensor(x)[None])
    return Lines(
        {
            "z and log|det|, by the models' layer": np.append(z, log_det),
            "= z and log|det| of a 24×24 matrix, by autograd": np.append(z, _log_det(_inverse(layer), x)),
            "= s ⊙ x + b and h w Σ_i log|s_i|": formula(),
        },
        [
            Mutant("h w forgotten", formula(logs.sum())),
            Mutant("h for h w", formula(height * logs.sum())),
            Mutant("Σ_i |s_i|", formula(size * s.sum())),
            Mutant("-h w Σ_i log|s_i|", formula(-size * logs.sum())),
            Mutant("a mean over channels", formula(size * logs.mean())),
            Mutant("s (x + b)", formula(b=s * b)),
        ],
    )


@verifies(
    "actnorm-init",
    r"""\begin{aligned}
&s_i=\frac1{\hat\sigma_i},\quad b_i=-\frac{\hat\mu_i}{\hat\sigma_i}\\
&\Longrightarrow\quad\frac1{Nhw}\sum_{n,u,v}z^{(n)}_{i,u,v}=0,\qquad\frac1{Nhw}\sum_{n,u,v}\big(z^{(n)}_{i,u,v}\big)^2=1
\end{aligned}""",
    kind="identity",
    route="closed form",
    **SMALL_SUMS,
)
def actnorm_init(rng: np.random.Generator) -> Lines:
    x = rng.gamma(2.0, size=(5, 3, 2, 4)) * rng.uniform(0.5, 2, (3, 1, 1)) + rng.normal(size=(3, 1, 1))
    mean, sd = x.mean((0, 2, 3), keepdims=True), x.std((0, 2, 3), keepdims=True)

    def moments(z: Array) -> Array:
        return np.concatenate([z.mean((0, 2, 3)), (z**2).mean((0, 2, 3))])

    def formula(s: Array = 1 / sd, b: Array = -mean / sd) -> Array:
        return moments(s * x + b)

    with torch.no_grad():
        package = ActNorm(3).double().train().inverse(torch.tensor(x))[0].numpy()
    last = "= the moments of s ⊙ x + b"
    return Lines(
        {
            "0 and 1 of every channel": np.repeat([0.0, 1.0], 3),
            "= the moments of what the models' layer makes of its first batch": moments(package),
            last: formula(),
        },
        [
            Mutant("b = -μ̂", formula(b=-mean)),
            Mutant("b = +μ̂/σ̂", formula(b=mean / sd)),
            Mutant("s = σ̂", formula(s=sd)),
            Mutant("s = 1/σ̂²", formula(s=1 / sd**2)),
            Mutant("one mean for all channels", formula(b=-x.mean() / sd)),
        ],
    )


@verifies(
    "batchnorm-logdet",
    r"z=\frac{x-\hat\mu}{\sqrt{\hat\sigma^2+\varepsilon}},\qquad"
    r"\log|\det J_g(x)|=-\frac{h\,w}2\sum_i\log(\hat\sigma_i^2+\varepsilon)",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def batchnorm_logdet(rng: np.random.Generator) -> Lines:
    colours, height, width, eps = 3, 2, 4, 0.1
    mean, variance = rng.normal(size=colours), rng.uniform(1.5, 4, colours)
    x = rng.normal(size=(colours, height, width))
    by_torch = nn.BatchNorm2d(colours, eps=eps, affine=False).double().eval()
    layer = BatchNorm(colours, epsilon=eps).double().eval()
    for buffer, value in (
        (by_torch.get_buffer("running_mean"), mean),
        (by_torch.get_buffer("running_var"), variance),
        (layer.mean, mean),
        (layer.variance, variance),
    ):
        buffer.copy_(torch.tensor(value))

    def formula(factor: float = -height * width / 2, inside: Array = variance + eps, root: float = 0.5) -> Array:
        """z and log|det|."""
        z = (x - mean[:, None, None]) / inside[:, None, None] ** root
        return np.append(z, factor * np.log(inside).sum())

    z, log_det = layer.inverse(torch.tensor(x)[None])
    return Lines(
        {
            "z by torch's layer, in evaluation mode, and log|det| by autograd": np.append(
                by_torch(torch.tensor(x)[None]), _log_det(lambda x: by_torch(x[None])[0], x)
            ),
            "= z and log|det|, by the models' layer": np.append(z, log_det),
            "= (x-μ̂)/√(σ̂²+ε) and -h w/2 Σ_i log(σ̂_i²+ε)": formula(),
        },
        [
            Mutant("½ forgotten", formula(factor=-height * width)),
            Mutant("h w forgotten", formula(factor=-0.5)),
            Mutant("ε forgotten", formula(inside=variance)),
            Mutant("the sign", formula(factor=height * width / 2)),
            Mutant("the root forgotten", formula(root=1.0)),
        ],
    )


@verifies(
    "split-prior",
    r"""\begin{aligned}
\log p(z\mid h)&=\log N\big(z;\mu(h),\mathrm{diag}\,\sigma^2(h)\big)\\
&=\log N(\epsilon;0,I)-\sum_i\log\sigma_i(h),\qquad\epsilon=\frac{z-\mu(h)}{\sigma(h)}
\end{aligned}""",
    kind="identity",
    route="closed form",
    **JACOBIANS,
)
def split_prior(rng: np.random.Generator) -> Lines:
    net, h, z = _Network.random(rng), rng.normal(size=2), rng.normal(size=2)
    mean, log_scale = net.of(h)
    scale = np.exp(log_scale)
    # Nothing happens to h on its way to the base.
    flow = Flow((4, 1, 1), [Split((4, 1, 1), Unflatten((2, 1, 1)), net)])
    both = _log_prob(flow, np.append(h, z).reshape(4, 1, 1))
    base = _standard((z - mean) / scale)
    line = "= log N(z; μ(h), diag σ²(h)), by SciPy"
    return Lines(
        {
            "log p(z|h), by the models' layer": both - _standard(h),
            line: multivariate_normal(mean, np.diag(scale**2)).logpdf(z),
            "= log N(ε; 0, I) - Σ_i log σ_i(h)": base - log_scale.sum(),
        },
        [
            Mutant("+Σ_i log σ_i", base + log_scale.sum()),
            Mutant("Σ_i log σ_i forgotten", base),
            Mutant("a mean over i", base - log_scale.mean()),
            Mutant("σ for σ²", {line: multivariate_normal(mean, np.diag(scale)).logpdf(z)}),
            Mutant("N(z; 0, I), whatever h", _standard(z)),
        ],
    )


@verifies(
    "flow-split",
    r"""\begin{aligned}
\log p_X(x)&=\log p(z_K)+\sum_{k=1}^{K-1}\log p(z_k\mid h_k)+\sum_{k=1}^K\log|\det J_{g_k}|\\
(h_k,z_k)&=g_k(h_{k-1}),\quad h_0=x,\qquad z_K=g_K(h_{K-1})
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def flow_split(rng: np.random.Generator) -> Lines:
    # Eight numbers, levels counted from the data's side: four leave, then two, then the last two.
    layers, nets = [_Layer.random(rng, size) for size in (8, 4, 2)], [_Network.random(rng, n, n) for n in (4, 2)]
    x = rng.normal(size=8)
    steps = [_Step(layer) for layer in layers]
    inner = Chain([Unflatten((2, 1, 1)), steps[2]])
    middle = Chain([Split((4, 1, 1), inner, nets[1]), steps[1]])
    flow = Flow((8, 1, 1), [Split((8, 1, 1), middle, nets[0]), steps[0]])

    states, left, log_dets = [x], [], []
    for layer in layers:
        out = _call(layer.g, states[-1])
        log_dets.append(_log_det(layer.g, states[-1]))
        left.append(out[len(out) // 2 :])
        states.append(out[: len(out) // 2])
    last = _standard(np.append(states[-1], left[-1]))

    def given(states: Sequence[Array] = states[1:3], sign: float = 1.0) -> float:
        """Σ_k log p(z_k|h_k)."""
        moments = [net.of(h) for net, h in zip(nets, states, strict=True)]
        return sum(norm.logpdf(z, m, np.exp(sign * s)).sum() for z, (m, s) in zip(left[:2], moments, strict=True))

    def at_once(v: torch.Tensor) -> torch.Tensor:
        return flow.layers.inverse(v.reshape(1, 8, 1, 1))[0][0]

    above = [states[0][4:], states[1][2:]]
    return Lines(
        {
            "log p_X(x), all layers and priors as one map, by autograd": _standard(_call(at_once, x))
            + _log_det(at_once, x),
            "= by the models' layers": _log_prob(flow, x.reshape(8, 1, 1)),
            "= log p(z_K) + Σ_k log p(z_k|h_k) + Σ_k log|det J_{g_k}|": last + given() + sum(log_dets),
        },
        [
            Mutant("N(0, I) for p(z_k|h_k)", last + sum(map(_standard, left[:2])) + sum(log_dets)),
            Mutant("the log-dets of later levels forgotten", last + given() + log_dets[0]),
            Mutant("log p(z_K) forgotten", given() + sum(log_dets)),
            Mutant("the prior given what the layer took in", last + given(above) + sum(log_dets)),
            Mutant("-Σ_k log|det J_{g_k}|", last + given() - sum(log_dets)),
            Mutant("1/σ for σ", last + given(sign=-1.0) + sum(log_dets)),
        ],
    )


# Base densities, autoregressive flows


@verifies(
    "logistic-base",
    r"\log p_Z(z)=-\sum_{i=1}^{d_x}\Big[\log\big(1+e^{z_i}\big)+\log\big(1+e^{-z_i}\big)\Big]",
    kind="definition",
    route="closed form",
    **SMALL_SUMS,
)
def logistic_base(rng: np.random.Generator) -> Lines:
    z = 2 * rng.normal(size=4)
    last = "= -Σ_i [log(1+e^{z_i}) + log(1+e^{-z_i})]"

    def softplus(z: Array) -> Array:
        return np.log(1 + np.exp(z))

    return Lines(
        {
            "log p_Z(z), by SciPy's logistic": logistic.logpdf(z).sum(),
            "= Σ_i log σ'(z_i), by autograd": _log_det(torch.sigmoid, z),
            "= by a flow that does nothing": _log_prob(Flow((4,), [Unflatten((4,))], base="logistic"), z),
            last: -(softplus(z) + softplus(-z)).sum(),
        },
        [
            Mutant("the second term forgotten", -softplus(z).sum()),
            Mutant("e^{z_i} twice", -2 * softplus(z).sum()),
            Mutant("the sign", (softplus(z) + softplus(-z)).sum()),
            Mutant("|z_i|", -np.abs(z).sum()),
            Mutant("a Gaussian", _standard(z)),
        ],
    )


@dataclass(frozen=True)
class _Masked:
    """The models' masked layer with random weights."""

    layer: MaskedAffine

    @classmethod
    def random(cls, rng: np.random.Generator, dim: int) -> "_Masked":
        return cls(_randomise(MaskedAffine(dim, hidden=(16, 16)), rng, scale=1.0))

    def of(self, x: Array, d: int) -> tuple[float, float]:
        """μ_d and α_d, read off a straight line: z_d where x_d is 0 and 1, with the later numbers left at 0."""
        probe = np.tile(np.append(x[:d], np.zeros(len(x) - d)), (2, 1))
        probe[1, d] = 1.0
        with torch.no_grad():
            z, _ = self.layer.inverse(torch.tensor(probe))
        at_0, at_1 = z[:, d].tolist()
        # e^{-α_d} is positive in any such layer.
        return -at_0 / (at_1 - at_0), -np.log(at_1 - at_0)

    def all(self, x: Array) -> Array:
        """All μ_d, then all α_d."""
        return np.array([self.of(x, d) for d in range(len(x))]).T


@verifies(
    "maf",
    r"""\begin{aligned}
z_d&=\big(x_d-\mu_d(x_{<d})\big)\,e^{-\alpha_d(x_{<d})}\\
\log p_X(x)&=\log p_Z(z)-\sum_{d=1}^{d_x}\alpha_d(x_{<d})
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def maf(rng: np.random.Generator) -> Lines:
    net, x = _Masked.random(rng, 4), rng.normal(size=4)
    g = _inverse(net.layer)
    z, (mean, alpha) = _call(g, x), net.all(x)

    def formula(mean: Array = mean, power: float = -1.0, weight: float = -1.0) -> float:
        return _standard((x - mean) * np.exp(power * alpha)) + weight * alpha.sum()

    return Lines(
        {
            "Σ_d log N(x_d; μ_d, e^{2α_d}), the chain rule": norm.logpdf(x, mean, np.exp(alpha)).sum(),
            "= by the models' layer": _log_prob(Flow((4,), [net.layer]), x),
            "= log p_Z(z) + log|det J_g(x)|, by autograd": _standard(z) + _log_det(g, x),
            "= log p_Z(z) - Σ_d α_d(x_{<d})": formula(),
        },
        [
            Mutant("+Σ_d α_d", formula(weight=1.0)),
            Mutant("Σ_d α_d forgotten", formula(weight=0.0)),
            Mutant("e^{+α_d} in z_d", formula(power=1.0)),
            Mutant("μ_d(z_{<d})", formula(mean=net.all(z)[0])),
            Mutant("μ_{d-1} for μ_d", formula(mean=np.roll(mean, 1))),
        ],
    )


@verifies(
    "maf-inverse",
    r"x_d=z_d\,e^{\alpha_d(x_{<d})}+\mu_d(x_{<d}),\qquad d=1,2,\dots,d_x\text{, one after the other}",
    kind="identity",
    route="closed form",
    **JACOBIANS,
)
def maf_inverse(rng: np.random.Generator) -> Lines:
    net, z = _Masked.random(rng, 4), rng.normal(size=4)

    def one_by_one(order: Sequence[int] = range(4), sign: float = 1.0) -> Array:
        x = np.zeros(4)
        for d in order:
            mean, alpha = net.of(x, d)
            x[d] = z[d] * np.exp(sign * alpha) + mean
        return x

    def passes(number: int, start: Array) -> Array:
        """All numbers at once, so many times: each pass makes one more of them right."""
        x = start
        for _ in range(number):
            mean, alpha = net.all(x)
            x = z * np.exp(alpha) + mean
        return x

    line = "= d_x passes over all numbers, from 0"
    return Lines(
        {
            "the x with g(x) = z, number by number, by the models' layer": _call(_forward(net.layer), z),
            line: passes(4, np.zeros(4)),
            "= z_d e^{α_d} + μ_d, one number after the other": one_by_one(),
        },
        [
            Mutant("one pass over all numbers, given z", passes(1, z), erratum="E003-29"),
            Mutant("d_x - 1 passes", {line: passes(3, np.zeros(4))}),
            Mutant("the last number first", one_by_one(order=range(3, -1, -1))),
            Mutant("e^{-α_d}", one_by_one(sign=-1.0)),
        ],
    )


# Pixels


@verifies(
    "density-on-integers",
    r"""\begin{aligned}
p_\sigma(x)&=\sum_kP(k)\,N(x;k,\sigma^2)\\
\mathbb E_{P(k)}[\log p_\sigma(k)]&=-\log\sigma-\tfrac12\log2\pi-H(P)+o(1)\;\to\;\infty\quad(\sigma\to0)
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **JACOBIANS,
)
def density_on_integers(rng: np.random.Generator) -> Lines:
    # So narrow that the neighbours' tails, the o(1), are below rounding.
    p, sigma, k = rng.dirichlet(np.full(5, 2.0)), rng.uniform(0.01, 0.05), np.arange(5)
    density = norm.pdf(k[:, None], k, sigma) @ p
    log_peak = -np.log(sigma) - 0.5 * np.log(2 * np.pi)

    def formula(power: float = 1.0, sign: float = -1.0) -> float:
        return -power * np.log(sigma) - 0.5 * np.log(2 * np.pi) + sign * entropy(p)

    return Lines(
        {
            "E_P[log p_σ(k)], a mixture of narrow Gaussians": p @ np.log(density),
            "= E_P[log P(k) + log N(k; k, σ²)]": p @ (np.log(p) + log_peak),
            "= -log σ - ½ log 2π - H(P)": formula(),
        },
        [
            Mutant("-H(P), as of probabilities", -entropy(p)),
            Mutant("+log σ", formula(power=-1.0)),
            Mutant("-log σ²", formula(power=2.0)),
            Mutant("+H(P)", formula(sign=1.0)),
        ],
    )


@dataclass(frozen=True)
class _Cells:
    """A mixture of two axis-aligned Gaussians in the plane, and the unit squares [k, k+1) as pixels of two colours."""

    weights: Array
    mean: Array
    scale: Array

    @classmethod
    def random(cls, rng: np.random.Generator) -> "_Cells":
        return cls(rng.dirichlet([3, 3]), rng.normal(size=(2, 2)), rng.uniform(0.6, 1.2, size=(2, 2)))

    def log_density(self, x: Array) -> Array:
        each = norm.logpdf(x[..., None, :], self.mean, self.scale).sum(-1)
        return logsumexp(each + np.log(self.weights), axis=-1)

    def mass(self, k: Array) -> Array:
        """P(k), by distribution functions."""
        low, high = (norm.cdf(v[..., None, :], self.mean, self.scale) for v in (k, k + 1))
        return (high - low).prod(-1) @ self.weights


# Sixteen pixels, and nodes in the unit square.
_K = np.array(list(itertools.product(range(-2, 2), repeat=2)), dtype=float)


def _unit_square(size: float = 1.0, low: float = 0.0) -> tuple[Array, Array]:
    axis, weight = _legendre(low, low + size, 24)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2), np.outer(weight, weight).ravel()


@verifies(
    "dequantization",
    r"""\begin{aligned}
\log P(k)&=\log\int_{[0,1)^{d_x}}p(k+u)\,du\\
&\ge\int_{[0,1)^{d_x}}\log p(k+u)\,du=\mathbb E_u[\log p(k+u)]
\end{aligned}""",
    kind="inequality",
    route="quadrature",
    **QUADRATURE,
)
def dequantization(rng: np.random.Generator) -> Lines:
    cells = _Cells.random(rng)
    u, weight = _unit_square()

    def bound(size: float = 1.0, low: float = 0.0) -> Array:
        """E[log p(k+u)] with u uniform on a square."""
        u, weight = _unit_square(size, low)
        return cells.log_density(_K[:, None] + u) @ weight / weight.sum()

    half, half_weight = _unit_square(0.5)
    over_half = np.log(np.exp(cells.log_density(_K[:, None] + half)) @ half_weight)
    line, last = "= log ∫ p(k+u) du", "≥ E_u[log p(k+u)]"
    log_p = cells.log_density(_K[:, None] + u)
    return Lines(
        {
            "log P(k) of 16 k, by distribution functions": np.log(cells.mass(_K)),
            line: np.log(np.exp(log_p) @ weight),
            last: bound(),
        },
        [
            Mutant("no noise: log p(k)", cells.log_density(_K)),
            Mutant("noise of half the width", bound(size=0.5)),
            Mutant("noise on [-½, ½)", bound(low=-0.5)),
            Mutant("an integral over half the cell", {line: over_half}),
            Mutant("the largest log p(k+u)", log_p.max(1)),
        ],
    )


@verifies(
    "variational-dequantization",
    r"""\begin{aligned}
\log P(k)&=\mathbb E_{q(u\mid k)}[\log p(k+u)-\log q(u\mid k)]+\mathrm{KL}(q(u\mid k)\Vert p(u\mid k))\\
&\ge\mathbb E_{q(u\mid k)}[\log p(k+u)-\log q(u\mid k)],\qquad p(u\mid k)=\frac{p(k+u)}{P(k)}
\end{aligned}""",
    kind="inequality",
    route="quadrature",
    **QUADRATURE,
)
def variational_dequantization(rng: np.random.Generator) -> Lines:
    cells = _Cells.random(rng)
    u, weight = _unit_square()
    # A q for each pixel, tilted: Π_i [1 + t_i (2u_i - 1)].
    tilt = rng.uniform(-0.9, 0.9, size=(len(_K), 1, 2))
    log_q = np.log1p(tilt * (2 * u - 1)).sum(-1)
    log_p = cells.log_density(_K[:, None] + u)
    log_mass = np.log(cells.mass(_K))
    log_posterior = log_p - log_mass[:, None]

    def mean(log_density: Array, values: Array) -> Array:
        return (np.exp(log_density) * values) @ weight

    bound, kl = mean(log_q, log_p - log_q), mean(log_q, log_q - log_posterior)
    reverse = mean(log_posterior, log_posterior - log_q)
    line, last = "= E_q[log p(k+u) - log q(u|k)] + KL(q(u|k)‖p(u|k))", "≥ E_q[log p(k+u) - log q(u|k)]"
    return Lines(
        {"log P(k) of 16 k, by distribution functions": log_mass, line: bound + kl, last: bound},
        [
            Mutant("KL the other way round", {line: bound + reverse}),
            Mutant("KL(q‖p(k+u)), not normalised", {line: bound + mean(log_q, log_q - log_p)}),
            Mutant("+log q", {line: mean(log_q, log_p + log_q) + kl}),
            Mutant("log q forgotten", {line: mean(log_q, log_p) + kl}),
            Mutant("E over uniform u", {line: mean(0 * log_q, log_p - log_q) + kl}),
            Mutant("the gap added to the bound twice", bound + 2 * kl),
        ],
    )


@verifies(
    "bits-per-dim",
    r"""\begin{aligned}
\text{bits/dim}&=-\frac{\log P(k)}{d_x\ln2}\\
&=-\frac{\log p(x)-d_x\log256}{d_x\ln2},\qquad x=\frac{k+u}{256}\in[0,1)^{d_x}
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def bits_per_dim(rng: np.random.Generator) -> Lines:
    # A density that is flat within each cell, a histogram for each pixel; of any other, the second line is a bound.
    dim, levels = 3, 256
    p = rng.dirichlet(np.full(levels, 0.8), size=dim)
    k = np.array([rng.choice(levels, p=row) for row in p])
    x = (k + rng.uniform(0.1, 0.9, dim)) / levels
    edges = np.linspace(0, 1, levels + 1)
    log_p = sum(rv_histogram((row, edges), density=False).logpdf(v) for row, v in zip(p, x, strict=True))
    nats = -np.log(p[range(dim), k]).sum()

    class Histogram(nn.Module):
        event_shape = (dim,)

        def log_prob(self, x: torch.Tensor) -> torch.Tensor:
            cell = (x * levels).floor().long()
            return torch.tensor(levels * p).log()[torch.arange(dim), cell].sum(1)

    # Intensities k/255, whatever the noise.
    bound = Dequantised(Histogram(), levels, alpha=None).elbo(torch.tensor(k / (levels - 1))[None])

    def formula(constant: float = -np.log(levels), dims: float = dim, unit: float = np.log(2)) -> float:
        return -(log_p + dim * constant) / (dims * unit)

    return Lines(
        {
            "bits that a code for k needs, by each pixel": -np.log2(p[range(dim), k]).mean(),
            "= -log P(k)/(d_x ln 2)": nats / (dim * np.log(2)),
            "= by the models' bound, equal here": -bound[0] / (dim * np.log(2)),
            "= -(log p(x) - d_x log 256)/(d_x ln 2)": formula(),
        },
        [
            Mutant("log 256 forgotten", formula(constant=0.0)),
            Mutant("+d_x log 256", formula(constant=np.log(levels))),
            Mutant("255 for 256", formula(constant=-np.log(levels - 1))),
            Mutant("log 256 once, not for each pixel", formula(constant=-np.log(levels) / dim)),
            Mutant("nats, not bits", formula(unit=1.0)),
            Mutant("of the whole image", formula(dims=1.0)),
        ],
    )


@verifies(
    "logit-jacobian",
    r"""\begin{aligned}
y_i&=\log\frac{s_i}{1-s_i},\qquad s_i=\alpha+(1-2\alpha)x_i\\
\log\Big|\det\frac{\partial y}{\partial x}\Big|&=\sum_{i=1}^{d_x}\big[\log(1-2\alpha)-\log s_i-\log(1-s_i)\big]
\end{aligned}""",
    kind="identity",
    route="autograd",
    **JACOBIANS,
)
def logit_jacobian(rng: np.random.Generator) -> Lines:
    alpha, x = rng.uniform(0.05, 0.2), rng.uniform(0.02, 0.98, size=4)

    def y(x: torch.Tensor) -> torch.Tensor:
        return torch.logit(alpha + (1 - 2 * alpha) * x)

    def formula(log_slope: float = np.log(1 - 2 * alpha), s: Array = alpha + (1 - 2 * alpha) * x, last: float = -1.0):
        return (log_slope - np.log(s) + last * np.log(1 - s)).sum()

    with torch.no_grad():
        _, package = Logit(alpha).inverse(torch.tensor(x)[None])
    return Lines(
        {
            "log|det ∂y/∂x|, by autograd": _log_det(y, x),
            "= by the layer of the models": package[0],
            "= Σ_i [log(1-2α) - log s_i - log(1-s_i)]": formula(),
        },
        [
            Mutant("log(1-2α) forgotten", formula(log_slope=0.0)),
            Mutant("x for s: α forgotten", formula(log_slope=0.0, s=x)),
            Mutant("log(1-α)", formula(log_slope=np.log(1 - alpha))),
            Mutant("s = α + (1-α)x", formula(log_slope=np.log(1 - alpha), s=alpha + (1 - alpha) * x)),
            Mutant("+log(1-s_i)", formula(last=1.0)),
            Mutant("-log s_i alone", formula(last=0.0)),
        ],
    )


# Temperature, and what flows cannot do


@verifies(
    "temperature",
    r"""\begin{aligned}
z\sim N(0,\tau^2I),\ x=f(z):\qquad p_\tau(x)&=N(g(x);0,\tau^2I)\,|\det J_g(x)|\\
&\propto p_X(x)^{1/\tau^2}\,|\det J_g(x)|^{1-1/\tau^2}
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def temperature(rng: np.random.Generator) -> Lines:
    tau = rng.uniform(0.6, 0.8)
    slope, height, shift = rng.uniform(0.8, 1.5), rng.uniform(0.4, 0.7), rng.normal(size=2)
    nodes, weight = plane(9.0, 241)
    points = rng.normal(size=(4, 2))

    # A coupling of one number each: given x_1, x_2 is Gaussian.
    def a(x: Array) -> Array:
        return height * np.tanh(slope * x[:, 0])

    def b(x: Array) -> Array:
        return shift[0] * np.cos(x[:, 0] + shift[1])

    def log_base(x: Array, scale: float) -> Array:
        """log N(g(x); 0, scale²)."""
        return norm.logpdf(np.column_stack([x[:, 0], x[:, 1] * np.exp(a(x)) + b(x)]), scale=scale).sum(1)

    def normalised(log_density: Callable[[Array], Array]) -> Array:
        return np.exp(log_density(points)) / (weight @ np.exp(log_density(nodes)))

    def power(of_p: float = 1 / tau**2, of_det: float = 1 - 1 / tau**2) -> Array:
        return normalised(lambda x: of_p * (log_base(x, 1.0) + a(x)) + of_det * a(x))

    conditional = norm.pdf(points[:, 1], -b(points) * np.exp(-a(points)), tau * np.exp(-a(points)))
    line = "= N(g(x); 0, τ²I) |det J_g(x)|"
    return Lines(
        {
            "p_τ(x) = p_τ(x_1) p_τ(x_2|x_1), Gaussians by SciPy": norm.pdf(points[:, 0], scale=tau) * conditional,
            line: np.exp(log_base(points, tau) + a(points)),
            "= p_X(x)^{1/τ²} |det J_g(x)|^{1-1/τ²}, over its integral": power(),
        },
        [
            Mutant("p_X(x)^{1/τ²}, as if every map kept volumes", power(of_det=0.0)),
            Mutant("τ for τ²", {line: np.exp(log_base(points, np.sqrt(tau)) + a(points))}),
            Mutant("p_X(x)^{τ²}", power(of_p=tau**2, of_det=1 - tau**2)),
            Mutant("1/τ", power(of_p=1 / tau, of_det=1 - 1 / tau)),
            Mutant("|det J_g|^{1/τ²} for its complement", power(of_det=1 / tau**2)),
        ],
    )


@verifies(
    "modes-bridged",
    r"""\begin{aligned}
&p_X=\tfrac12N(-m,s^2)+\tfrac12N(m,s^2),\qquad p_Z=N(0,1)\\
&\Longrightarrow\quad|f'(g(0))|=\frac{p_Z(g(0))}{p_X(0)}=s\,e^{m^2/2s^2}
\end{aligned}""",
    kind="identity",
    route="autograd",
    **DIFFERENCES,
)
def modes_bridged(rng: np.random.Generator) -> Lines:
    s = rng.uniform(0.4, 1.2)
    m = s * rng.uniform(2.0, 3.2)

    def slope(p_z: float = norm.pdf(0.0), parts: float = 2.0) -> float:
        return p_z / (parts / 2 * norm.pdf(m, scale=s))

    # F_X to Φ: in one dimension there is, but for a reflection, no other map.
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    cdf = (torch.special.ndtr((zero - m) / s) + torch.special.ndtr((zero + m) / s)) / 2
    [of_g] = torch.autograd.grad(torch.special.ndtri(cdf), zero)
    line, last = "= p_Z(g(0))/p_X(0)", "= s e^{m²/2s²}"
    return Lines(
        {"f'(g(0)), by autograd of g = Φ⁻¹∘F_X": 1 / of_g.item(), line: slope(), last: s * np.exp(m**2 / (2 * s**2))},
        [
            Mutant("½ twice: one peak counted at 0", {line: slope(parts=1.0)}),
            Mutant("e^{m²/s²}", s * np.exp(m**2 / s**2)),
            Mutant("e^{m/s}", s * np.exp(m / s)),
            Mutant("e^{m²/2s²}/s", np.exp(m**2 / (2 * s**2)) / s),
            Mutant("p_X over p_Z", {line: 1 / slope()}),
            Mutant("m/s, the slope on average", m / s),
        ],
    )
