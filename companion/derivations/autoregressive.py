"""Checks for the chapter on autoregressive models."""

import decimal
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Literal, TypeVar

import numpy as np
import torch
from scipy import integrate, optimize
from scipy.special import expit, log_expit, logsumexp, softmax
from scipy.stats import entropy, logistic
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from companion.derivations.registry import Lines, Mutant, Tolerance, verifies
from companion.models.autoregressive import FVSBN, MADE, NADE, PixelCNN
from companion.models.autoregressive.outputs import LogisticOutput, inverse_cdf
from companion.models.autoregressive.pixelcnn import gate
from companion.models.autoregressive.pixelrnn import scan, skew, unskew
from companion.models.questions import Density
from companion.nets.causal_conv import DilatedCausalConv1d
from companion.nets.masked_conv import MaskedConv2d

Array = np.ndarray
Model = TypeVar("Model", bound=nn.Module)
Kind = Literal["plain", "gated"]

SMALL_SUMS = Tolerance(tolerance=1e-11, reason="sums of a few float64 numbers of order one")
NETWORK = Tolerance(tolerance=1e-10, reason="small networks in float64, values up to about a hundred")
COUNTS = Tolerance(tolerance=1e-9, reason="counts: whole numbers, exact in float64")


def _states(pixels: int) -> Array:
    """All binary images, (2^pixels, pixels): the first pixel changes last."""
    return np.array(list(itertools.product((0.0, 1.0), repeat=pixels)))


def _table(rng: np.random.Generator, pixels: int) -> Array:
    """A random joint distribution, one axis for each pixel, with no state that is very rare."""
    return (rng.dirichlet(np.full(2**pixels, 1.0)) * 0.95 + 0.05 / 2**pixels).reshape([2] * pixels)


def _marginal(p: Array, pixels: Iterable[int]) -> Array:
    """The other pixels are summed out, and their axes have length one."""
    others = tuple(set(range(p.ndim)) - set(pixels))
    return p.sum(axis=others, keepdims=True)


def _conditional(p: Array, d: int, given: Iterable[int]) -> Array:
    """p(x_d|x_given) of a joint table, which need not be normalised."""
    joint = _marginal(p, {d, *given})
    return joint / joint.sum(axis=d, keepdims=True)


def _product(factors: Iterable[Array]) -> Array:
    return reduce(np.multiply, factors)


def _ones(p: Array) -> Array:
    """p(x_d = 1|x_<d) in every state, (states, pixels), by sums over the joint table."""
    each = (_conditional(p, d, range(d)).take([1], axis=d) for d in range(p.ndim))
    return np.stack([np.broadcast_to(c, p.shape).ravel() for c in each], axis=1)


def _randomise(model: Model, rng: np.random.Generator, scale: float = 1.5) -> Model:
    """The model in float64 with weights large enough that everything matters."""
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.tensor(scale * rng.normal(size=parameter.shape)))
    return model


def _parameters(model: nn.Module) -> dict[str, Array]:
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


def _probabilities(model: Density, pixels: int) -> Array:
    """p(x) of all states, by the model's own log_prob, one axis for each pixel."""
    return model.log_prob(torch.tensor(_states(pixels))).exp().detach().numpy().reshape([2] * pixels)


def _log_bernoulli(x: Array, logits: Array) -> Array:
    return log_expit((2 * x - 1) * logits)


# Products of conditionals


@verifies(
    "ar-chain-rule",
    r"p(x)=\prod_{d=1}^{d_x}p(x_d\mid x_{<d})",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def ar_chain_rule(rng: np.random.Generator) -> Lines:
    p, order = _table(rng, 6), rng.permutation(6)

    def chain(given: Callable[[int], Iterable[int]]) -> Array:
        return _product(_conditional(p, d, given(d)) for d in range(6))

    line = "= Π_d p(x_d|x_{<d})"
    return Lines(
        {
            "p(x) of 64 states, a random table": p,
            line: chain(range),
            "= the product in a random order": _product(_conditional(p, d, order[:i]) for i, d in enumerate(order)),
        },
        [
            Mutant("p(x_d) for p(x_d|x_{<d})", {line: chain(lambda d: ())}),
            Mutant("p(x_d|x_{d-1}), a Markov chain", {line: chain(lambda d: range(max(d - 1, 0), d))}),
            Mutant("given all the others", {line: chain(lambda d: range(6))}),
            Mutant("two orders mixed", {line: chain(lambda d: range(d) if d % 2 else range(d, 6))}),
        ],
    )


@verifies(
    "ar-normalised",
    r"""\begin{aligned}
\sum_x\prod_{d=1}^{d_x}p_\theta(x_d\mid x_{<d})
&=\sum_{x_{<d_x}}\prod_{d<d_x}p_\theta(x_d\mid x_{<d})\sum_{x_{d_x}}p_\theta(x_{d_x}\mid x_{<d_x})\\
&=\sum_{x_{<d_x}}\prod_{d<d_x}p_\theta(x_d\mid x_{<d})\\
&=\dots=\sum_{x_1}p_\theta(x_1)=1
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def ar_normalised(rng: np.random.Generator) -> Lines:
    # Five pixels of three levels: the table of pixel d has an axis for each pixel up to d, the last one its own.
    logits = [2 * rng.normal(size=[3] * (d + 1)) for d in range(5)]

    def lines(factors: Sequence[Array]) -> dict[str, Array]:
        joint = [f.reshape(f.shape + (1,) * (5 - f.ndim)) for f in factors]
        before_last = _product(joint[:-1])[..., 0]
        return {
            "Σ_x Π_d p(x_d|x_{<d}), over 243 states": _product(joint).sum(),
            "= the inner sum first": (before_last * factors[-1].sum(-1)).sum(),
            "= Σ over the first four pixels": before_last.sum(),
            "= Σ_{x_1} p(x_1)": factors[0].sum(),
            "= 1": 1.0,
        }

    # In a circle, the first pixel is given the last.
    circle = softmax(2 * rng.normal(size=(3, 1, 1, 1, 3)), axis=0)
    conditionals = [softmax(f, axis=-1) for f in logits]
    around = _product([circle, *(f.reshape(f.shape + (1,) * (5 - f.ndim)) for f in conditionals[1:])]).sum()
    return Lines(
        lines(conditionals),
        [
            Mutant("normalised over what is given", lines([softmax(f, axis=0) for f in logits])),
            Mutant("a sigmoid for each level", lines([expit(f) for f in logits])),
            Mutant("not normalised", lines([np.exp(f) for f in logits])),
            Mutant("the first pixel given the last, in a circle", {"Σ_x Π_d p(x_d|x_{<d}), over 243 states": around}),
        ],
    )


@verifies(
    "ar-table-size",
    r"\sum_{d=1}^{d_x}2^{d-1}=2^{d_x}-1",
    kind="identity",
    route="enumeration",
    instances=lambda: [2, 4, 6],
    **COUNTS,
)
def ar_table_size(pixels: int) -> Lines:
    x = torch.tensor(_states(pixels)).long()

    def joint(free: torch.Tensor) -> torch.Tensor:
        """The product of conditionals, from one logit for every possible past of every pixel."""
        logits = [free[2**d - 1 + (x[:, :d] @ (2 ** torch.arange(d)))] for d in range(pixels)]
        q = torch.stack(logits, 1).sigmoid()
        return torch.where(x == 1, q, 1 - q).prod(1)

    # A few numbers more than there should be, which must not matter.
    start = torch.tensor(np.random.default_rng(pixels).normal(size=2**pixels + 3))
    jacobian = torch.autograd.functional.jacobian(joint, start)
    pasts = sum(len(np.unique(x[:, :d], axis=0)) if d else 1 for d in range(pixels))
    line = "= Σ_d 2^{d-1}"
    return Lines(
        {
            "dimension of the set of joint tables: a rank, by autograd": torch.linalg.matrix_rank(jacobian),
            "= pasts x_{<d} of all pixels, counted": pasts,
            line: sum(2 ** (d - 1) for d in range(1, pixels + 1)),
            "= 2^{d_x} - 1": 2**pixels - 1,
        },
        [
            Mutant("2^d for 2^{d-1}", {line: sum(2**d for d in range(1, pixels + 1))}),
            Mutant("2^{d_x}", 2**pixels),
            Mutant("d_x(d_x+1)/2", pixels * (pixels + 1) / 2),
            Mutant("the last pixel forgotten", {line: sum(2 ** (d - 1) for d in range(1, pixels))}),
        ],
    )


@verifies(
    "ar-nats",
    r"""\begin{aligned}
\mathrm{KL}(p_{\rm data}\Vert p_\theta)
&=\mathbb E_{p_{\rm data}(x)}
\left[\sum_{d=1}^{d_x}\log\frac{p_{\rm data}(x_d\mid x_{<d})}{p_\theta(x_d\mid x_{<d})}\right]\\
&=\sum_{d=1}^{d_x}\mathbb E_{p_{\rm data}(x_{<d})}
\left[\mathrm{KL}(p_{\rm data}(x_d\mid x_{<d})\Vert p_\theta(x_d\mid x_{<d}))\right]
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def ar_nats(rng: np.random.Generator) -> Lines:
    data, model = _table(rng, 5), _table(rng, 5)

    def over_pixels(past: Array = data, p: Array = data, q: Array = model, given: Callable = range) -> float:
        """Σ_d E_past[KL(p(x_d|·)‖q(x_d|·))], a row for each past."""
        total = 0.0
        for d in range(5):
            rows = (np.moveaxis(_conditional(table, d, given(d)), d, -1).reshape(-1, 2) for table in (p, q))
            total += _marginal(past, given(d)).ravel() @ entropy(*rows, axis=1)
        return total

    ratio = sum(np.log(_conditional(data, d, range(d)) / _conditional(model, d, range(d))) for d in range(5))
    line = "= E_data[Σ_d log p_data(x_d|x_{<d})/p_θ(x_d|x_{<d})]"
    return Lines(
        {
            "KL(p_data‖p_θ)": entropy(data.ravel(), model.ravel()),
            line: (data * ratio).sum(),
            "= Σ_d E[KL(p_data(x_d|x_{<d})‖p_θ(x_d|x_{<d}))]": over_pixels(),
        },
        [
            Mutant("the past from the model", over_pixels(past=model)),
            Mutant("the past forgotten: marginals", over_pixels(given=lambda d: ())),
            Mutant("KL the other way round", over_pixels(p=model, q=data)),
            Mutant("E under the model", {line: (model * ratio).sum()}),
            Mutant("a mean over pixels", over_pixels() / 5),
        ],
    )


@verifies(
    "ar-ancestral-sampling",
    r"x_d\sim p(x_d\mid x_{<d}),\ d=1,\dots,d_x\qquad\Longrightarrow\qquad x\sim p(x)",
    kind="identity",
    route="Monte Carlo",
    reason="five standard errors of the share of each state in 50,000 draws",
)
def ar_ancestral_sampling(rng: np.random.Generator) -> Lines:
    n, model = 50_000, _randomise(FVSBN((4,)), rng, scale=1.0)
    p, parameters = _probabilities(model, 4), _parameters(model)
    weight, bias = np.tril(parameters["regressions.weight"], -1), parameters["bias"]

    def shares(x: Array) -> Array:
        return np.bincount((x @ [8, 4, 2, 1]).astype(int), minlength=16) / n

    def draw(choose: Callable[[Array], Array], past: Array | None = None) -> Array:
        """One pixel after the other; with a past, all at once, each given that."""
        x = np.zeros((n, 4))
        for d in range(4):
            x[:, d] = choose(expit(bias[d] + (x if past is None else past) @ weight[d]))
        return x

    def coin(q: Array) -> Array:
        return rng.random(n) < q

    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    error = np.sqrt(p.ravel() * (1 - p.ravel()) / n)
    line, package = "= shares of 16 states, drawn pixel by pixel", "= shares in FVSBN.sample(n)"
    drawn = draw(coin)
    return Lines(
        {
            "p(x), enumerated": p.ravel(),
            line: shares(drawn),
            package: shares(model.sample(n, generator=generator).numpy()),
        },
        [
            Mutant("the likelier value: no noise", {line: shares(draw(lambda q: q > 0.5))}, erratum="E003-24"),
            Mutant("all at once, each given data", {line: shares(draw(coin, past=drawn))}, erratum="E003-15"),
            Mutant("all at once, each given zeros", {line: shares(draw(coin, past=np.zeros((n, 4))))}),
            Mutant("p for 1-p", {line: shares(draw(lambda q: rng.random(n) > q))}),
        ],
        standard_errors={line: error, package: error},
    )


@verifies(
    "ar-inverse-cdf",
    r"""\begin{aligned}
&x_d=\min\{k:F(k\mid x_{<d})>u_d\},\qquad u\sim U[0,1]^{d_x}\\
&\Longrightarrow\quad P(x)=\prod_{d=1}^{d_x}p(x_d\mid x_{<d})
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def ar_inverse_cdf(rng: np.random.Generator) -> Lines:
    # Three pixels of three levels, all conditionals multiples of 1/20: the midpoints of a grid of 20³ count volumes
    # of the cube exactly.
    steps, size = 20, 3
    tables = [(rng.multinomial(steps - size, [1 / size] * size, size=[size] * d) + 1) / steps for d in range(3)]
    joint = tables[0][:, None, None] * tables[1][:, :, None] * tables[2]
    alone = [np.broadcast_to(_marginal(joint, [d]).ravel(), [size] * (d + 1)) for d in range(3)]
    u = (np.stack(np.meshgrid(*[np.arange(steps)] * 3, indexing="ij"), -1).reshape(-1, 3) + 0.5) / steps

    def cell(p: Array, u: Array) -> Array:
        return (p.cumsum(-1) <= u[:, None]).sum(-1)

    def volumes(tables: Sequence[Array] = tables, u: Array = u, cell: Callable = cell) -> Array:
        x = np.zeros((len(u), 0), dtype=int)
        for d, table in enumerate(tables):
            x = np.column_stack([x, cell(table[tuple(x.T)] if d else np.tile(table, (len(u), 1)), u[:, d])])
        return np.bincount(np.ravel_multi_index(x.T, [size] * 3), minlength=size**3) / len(u)

    def package(p: Array, u: Array) -> Array:
        return inverse_cdf(torch.tensor(p).log(), torch.tensor(u)).long().numpy()

    line = "= share of the u that give x"
    return Lines(
        {
            "P(x) = Π_d p(x_d|x_{<d}), 27 states": joint.ravel(),
            line: volumes(),
            "= the same with the sampler's inverse_cdf": volumes(cell=package),
        },
        [
            Mutant("marginal distribution functions", {line: volumes(alone)}, erratum="E000-02"),
            Mutant("one u for all pixels", {line: volumes(u=np.repeat(u[:, :1], 3, axis=1))}, erratum="E000-02"),
            Mutant("F(k-1) for F(k)", {line: volumes(cell=lambda p, u: np.minimum(cell(p, u) + 1, size - 1))}),
            Mutant("u², which is not uniform", {line: volumes(u=u**2)}),
        ],
    )


@verifies(
    "teacher-forcing",
    r"""\begin{aligned}
&x\sim p,\quad\tilde x_d\sim p(\tilde x_d\mid x_{<d})\ \text{for all }d\text{ at once}\\
&\Longrightarrow\quad P(\tilde x_d)=p(\tilde x_d),\qquad P(\tilde x_1,\tilde x_d)=p(\tilde x_1)\,p(\tilde x_d)
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def teacher_forcing(rng: np.random.Generator) -> Lines:
    model = _randomise(NADE((4,), hidden=5), rng)
    states, p = _states(4), _probabilities(model, 4)
    # One pass over every image x, then the law of x̃ given x, and the mean over x.
    q = expit(model.logits(torch.tensor(states)).detach().numpy())
    given_x = np.where(states[None] == 1, q[:, None], 1 - q[:, None]).prod(-1)
    parallel = (p.ravel() @ given_x).reshape(p.shape)

    def singles_and_pairs(p: Array) -> Array:
        ones = [_marginal(p, [d]).ravel()[1] for d in range(4)]
        return np.array(ones + [_marginal(p, [0, d]).reshape(2, 2)[1, 1] for d in range(1, 4)])

    alone = singles_and_pairs(p)[:4]
    first, last = "P(x̃_d = 1), P(x̃_1 = x̃_d = 1), summed over x and x̃", "= p(x_d = 1), p(x_1 = 1) p(x_d = 1)"
    by_conditionals = p.ravel() @ q
    return Lines(
        {
            first: singles_and_pairs(parallel),
            "= E[p(x̃_d = 1|x_{<d})], and its product with p(x_1 = 1)": np.append(
                by_conditionals, q[0, 0] * by_conditionals[1:]
            ),
            last: np.append(alone, alone[0] * alone[1:]),
        },
        [
            Mutant("x̃ ~ p: sampling in one pass", singles_and_pairs(p), erratum="E003-15"),
            Mutant("x uniform for x ~ p", {first: singles_and_pairs(given_x.mean(0).reshape(p.shape))}),
            Mutant("p(x_d), not p(x_1) p(x_d)", np.append(alone, alone[1:])),
        ],
    )


@verifies(
    "total-correlation",
    r"\mathrm{KL}\Big(p(x)\,\Big\Vert\,\prod_{d=1}^{d_x}p(x_d)\Big)=\sum_{d=1}^{d_x}H(x_d)-H(x)",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def total_correlation(rng: np.random.Generator) -> Lines:
    p = _table(rng, 5)
    alone = [_marginal(p, [d]).ravel() for d in range(5)]
    independent = _product(_marginal(p, [d]) for d in range(5))
    entropies, joint = sum(entropy(a) for a in alone), entropy(p.ravel())
    conditional = -sum((p * np.log(_conditional(p, d, range(d)))).sum() for d in range(5))
    return Lines(
        {
            "KL(p(x)‖Π_d p(x_d))": entropy(p.ravel(), independent.ravel()),
            "= Σ_d H(x_d) - H(x)": entropies - joint,
        },
        [
            Mutant("KL the other way round", {"KL(p(x)‖Π_d p(x_d))": entropy(independent.ravel(), p.ravel())}),
            Mutant("the sign", joint - entropies),
            Mutant("Σ_d H(x_d|x_{<d})", conditional - joint),
            Mutant("a mean over pixels", entropies / 5 - joint),
        ],
    )


# Three models of binary pixels


@verifies(
    "fvsbn",
    r"p(x_d=1\mid x_{<d})=\sigma\Big(a_{d0}+\sum_{j<d}a_{dj}x_j\Big)",
    kind="definition",
    route="enumeration",
    **NETWORK,
)
def fvsbn(rng: np.random.Generator) -> Lines:
    model, x = _randomise(FVSBN((5,)), rng), _states(5)
    a, bias = _parameters(model)["regressions.weight"], _parameters(model)["bias"]

    def formula(seen: Callable[[int], slice] = slice, bias: Array = bias) -> Array:
        logits = [bias[d] + x[:, seen(d)] @ a[d, seen(d)] for d in range(5)]
        return expit(np.stack(logits, axis=1))

    return Lines(
        {
            "p(x_d = 1|x_{<d}), by sums of FVSBN's p(x)": _ones(_probabilities(model, 5)),
            "= σ(a_d0 + Σ_{j<d} a_dj x_j)": formula(),
        },
        [
            Mutant("j ≤ d", formula(lambda d: slice(d + 1))),
            Mutant("j > d", formula(lambda d: slice(d + 1, 5))),
            Mutant("without a_d0", formula(bias=np.zeros(5))),
            Mutant("σ twice", expit(formula())),
        ],
    )


@verifies(
    "fvsbn-parameters",
    r"\sum_{d=1}^{d_x}\big(1+(d-1)\big)=\frac{d_x(d_x+1)}2",
    kind="identity",
    route="autograd",
    instances=lambda: [2, 5, 9],
    **COUNTS,
)
def fvsbn_parameters(pixels: int) -> Lines:
    model = _randomise(FVSBN((pixels,)), np.random.default_rng(pixels), scale=0.5)
    log_p = model.log_prob(torch.ones(1, pixels).double()).sum()
    slopes = torch.autograd.grad(log_p, list(model.parameters()))
    line = "= Σ_d (1 + (d-1))"
    return Lines(
        {
            "parameters that move log p(x), by autograd": sum(int((slope != 0).sum()) for slope in slopes),
            line: sum(1 + (d - 1) for d in range(1, pixels + 1)),
            "= d_x(d_x+1)/2": pixels * (pixels + 1) / 2,
        },
        [
            Mutant("without the biases", pixels * (pixels - 1) / 2),
            Mutant("all that is stored", sum(v.numel() for v in model.parameters())),
            Mutant("a table", {line: 2**pixels - 1}),
            Mutant("d - 1 from zero", {line: sum(1 + (d - 1) for d in range(pixels))}),
        ],
    )


def _nade_logit(model: NADE, x: Array, d: int, given: Sequence[int]) -> Array:
    """The logit of pixel d given some others, from its own hidden units."""
    p, given = _parameters(model), list(given)
    a = p["hidden_bias"] + x[:, given] @ p["weight"][given]
    if "given" in p:
        a = a + p["given"][given].sum(0)
    return p["bias"][d] + expit(a) @ p["out"][d]


def _nade_in_order(model: NADE, x: Array, order: Sequence[int]) -> Array:
    """log p(x) with the pixels in this order."""
    return np.sum([_log_bernoulli(x[:, d], _nade_logit(model, x, d, order[:i])) for i, d in enumerate(order)], axis=0)


@verifies(
    "nade",
    r"h_d=\sigma(c+W_{:,<d}\,x_{<d}),\qquad p(x_d=1\mid x_{<d})=\sigma(b_d+V_dh_d)",
    kind="definition",
    route="enumeration",
    **NETWORK,
)
def nade(rng: np.random.Generator) -> Lines:
    model, x = _randomise(NADE((5,), hidden=4), rng), _states(5)
    p = _parameters(model)
    w, v, b, c = p["weight"].T, p["out"], p["bias"], p["hidden_bias"]

    def formula(seen: Callable = slice, c: Array = c, squash: Callable = expit) -> Array:
        h = [squash(c + x[:, seen(d)] @ w[:, seen(d)].T) for d in range(5)]
        return expit(np.stack([b[d] + h[d] @ v[d] for d in range(5)], axis=1))

    return Lines(
        {
            "p(x_d = 1|x_{<d}), by sums of NADE's p(x)": _ones(_probabilities(model, 5)),
            "= σ(b_d + V_d σ(c + W_{:,<d} x_{<d}))": formula(),
        },
        [
            Mutant("x_{≤d}", formula(lambda d: slice(d + 1))),
            Mutant("x_{d-1} alone", formula(lambda d: slice(max(d - 1, 0), d))),
            Mutant("without c", formula(c=np.zeros(4))),
            Mutant("tanh for σ", formula(squash=np.tanh)),
            Mutant("σ twice", expit(formula())),
        ],
    )


@verifies(
    "nade-recurrence",
    r"a_1=c,\qquad a_{d+1}=a_d+W_{:,d}\,x_d\qquad\Longrightarrow\qquad a_d=c+W_{:,<d}\,x_{<d}",
    kind="identity",
    route="enumeration",
    **NETWORK,
)
def nade_recurrence(rng: np.random.Generator) -> Lines:
    model, x = _randomise(NADE((6,), hidden=4), rng), _states(6)
    p = _parameters(model)
    w, c = p["weight"].T, p["hidden_bias"]

    def logits(step: Callable[[Array, int], Array], start: Array = c, shift: int = 0) -> Array:
        a = [np.tile(start, (len(x), 1))]
        for d in range(6):
            a.append(step(a[-1], d))
        return np.stack([p["bias"][d] + expit(a[d + shift]) @ p["out"][d] for d in range(6)], axis=1)

    def step(a: Array, d: int) -> Array:
        return a + np.outer(x[:, d], w[:, d])

    last = "= with a_{d+1} = a_d + W_{:,d} x_d"
    return Lines(
        {
            "all logits b_d + V_d σ(a_d), by NADE.logits": model.logits(torch.tensor(x)).detach().numpy(),
            "= with a_d = c + W_{:,<d} x_{<d}": np.stack([_nade_logit(model, x, d, range(d)) for d in range(6)], 1),
            last: logits(step),
        },
        [
            Mutant("a_1 = 0", logits(step, start=np.zeros(4))),
            Mutant("x_d before its own logit", logits(step, shift=1)),
            Mutant("only the last pixel: a_{d+1} = c + W_{:,d} x_d", logits(lambda a, d: step(c, d))),
            Mutant("W_{:,d} whatever x_d", logits(lambda a, d: a + w[:, d])),
        ],
    )


@verifies(
    "nade-cost",
    r"\sum_{d=1}^{d_x}(d-1)H=\frac{d_x}2\cdot(d_x-1)H",
    kind="identity",
    route="enumeration",
    instances=lambda: [(4, 3), (7, 5), (12, 8)],
    **COUNTS,
)
def nade_cost(instance: tuple[int, int]) -> Lines:
    pixels, hidden = instance
    # Which products W_kj x_j go into a_1, …, a_{d_x}: each a_d anew, or each from the one before it.
    anew = [(d, k, j) for d in range(pixels) for k in range(hidden) for j in range(d)]
    once = {(k, j) for _, k, j in anew}
    return Lines(
        {
            "products W_kj x_j, each a_d computed anew: counted": len(anew),
            "= Σ_d (d-1)H": sum((d - 1) * hidden for d in range(1, pixels + 1)),
            "= d_x/2 times the products of the recurrence: counted": pixels / 2 * len(once),
            "= d_x/2 · (d_x-1)H": pixels / 2 * (pixels - 1) * hidden,
        },
        [
            Mutant("d_x passes of the recurrence", pixels**2 / 2 * (pixels - 1) * hidden, erratum="E003-14"),
            Mutant("d for d-1", {"= Σ_d (d-1)H": sum(d * hidden for d in range(1, pixels + 1))}),
            Mutant("d_x times", pixels * (pixels - 1) * hidden),
            Mutant("d_x H", pixels / 2 * pixels * hidden),
        ],
    )


@verifies(
    "nade-gradient",
    r"""\begin{aligned}
s_d&=s_{d+1}+(x_d-p_d)\,V_d^\top\odot h_d\odot(1-h_d),\qquad s_{d_x+1}=0\\
\nabla_{W_{:,d}}\log p(x)&=x_d\,s_{d+1},\qquad\nabla_c\log p(x)=s_1
\end{aligned}""",
    kind="identity",
    route="autograd",
    **NETWORK,
)
def nade_gradient(rng: np.random.Generator) -> Lines:
    pixels, hidden = 6, 4
    model = _randomise(NADE((pixels,), hidden), rng)
    x = np.append(1.0, rng.integers(2, size=pixels - 1))
    x[rng.integers(1, pixels - 1)] = 1.0
    p = _parameters(model)
    w, v, b, c = p["weight"].T, p["out"], p["bias"], p["hidden_bias"]

    by_package = torch.autograd.grad(model.log_prob(torch.tensor(x)[None]).sum(), (model.weight, model.hidden_bias))

    w_, c_ = torch.tensor(w, requires_grad=True), torch.tensor(c, requires_grad=True)
    a = [c_ + w_[:, :d] @ torch.tensor(x[:d]) for d in range(pixels)]
    logits = torch.stack([b[d] + torch.tensor(v[d]) @ a[d].sigmoid() for d in range(pixels)])
    by_loops = torch.autograd.grad(
        -F.binary_cross_entropy_with_logits(logits, torch.tensor(x), reduction="sum"), (w_, c_)
    )

    def recursion(
        slope: Callable = lambda h: h * (1 - h), carry: float = 1.0, sign: float = 1.0, own: bool = False
    ) -> Array:
        s, columns = np.zeros(hidden), []
        for d in reversed(range(pixels)):
            h = expit(c + w[:, :d] @ x[:d])
            new = carry * s + sign * (x[d] - expit(b[d] + v[d] @ h)) * v[d] * slope(h)
            columns.append(x[d] * (new if own else s))
            s = new
        return np.concatenate([*columns[::-1], s])

    return Lines(
        {
            "∇_W and ∇_c log p(x), by NADE's backward pass": np.concatenate([g.numpy().ravel() for g in by_package]),
            "= by autograd, each a_d computed anew": np.concatenate([by_loops[0].T.numpy().ravel(), by_loops[1]]),
            "= x_d s_{d+1} and s_1": recursion(),
        },
        [
            Mutant("x_d s_d", recursion(own=True)),
            Mutant("p_d - x_d", recursion(sign=-1.0)),
            Mutant("without s_{d+1}", recursion(carry=0.0)),
            Mutant("h_d for h_d(1-h_d)", recursion(slope=lambda h: h)),
            Mutant("1-h_d², the slope of tanh", recursion(slope=lambda h: 1 - h**2)),
        ],
    )


@verifies(
    "nade-parameters",
    r"\#\,\text{parameters}=\underbrace{2\,d_xH}_{W,\,V}+\underbrace{d_x}_b+\underbrace H_c",
    kind="identity",
    route="enumeration",
    instances=lambda: [(3, 2), (5, 8), (12, 7)],
    **COUNTS,
)
def nade_parameters(instance: tuple[int, int]) -> Lines:
    pixels, hidden = instance
    return Lines(
        {
            "numbers in a NADE": sum(v.numel() for v in NADE((pixels,), hidden).parameters()),
            "= 2 d_x H + d_x + H": 2 * pixels * hidden + pixels + hidden,
        },
        [
            Mutant("one matrix", pixels * hidden + pixels + hidden),
            Mutant("without the biases", 2 * pixels * hidden),
            Mutant("W not shared", pixels * (pixels - 1) / 2 * hidden + pixels * hidden + pixels + pixels * hidden),
            Mutant("c for each pixel", 2 * pixels * hidden + pixels + pixels * hidden),
        ],
    )


@verifies(
    "eonade",
    r"p(x)=\frac1K\sum_{k=1}^Kp(x;o_k),\qquad p(x;o)=\prod_{d=1}^{d_x}p(x_{o_d}\mid x_{o_{<d}})",
    kind="definition",
    route="enumeration",
    **NETWORK,
)
def eonade(rng: np.random.Generator) -> Lines:
    orders = np.stack([rng.permutation(5) for _ in range(3)])
    model, x = _randomise(NADE((5,), hidden=4, orders=torch.tensor(orders)), rng), _states(5)
    logs = np.stack([_nade_in_order(model, x, order) for order in orders])
    backwards = np.stack([_nade_in_order(model, x, np.argsort(order).tolist()) for order in orders])
    first = "p(x) of 32 states, by EoNADE"
    return Lines(
        {
            first: _probabilities(model, 5).ravel(),
            "= 1/K Σ_k p(x;o_k)": np.exp(logs).mean(0),
            "= the same over Σ_x p(x)": np.exp(logs).mean(0) / np.exp(logs).mean(0).sum(),
        },
        [
            Mutant("the mean of log p(x;o_k)", {"= 1/K Σ_k p(x;o_k)": np.exp(logs.mean(0))}),
            Mutant("without 1/K", {"= 1/K Σ_k p(x;o_k)": np.exp(logs).sum(0)}),
            Mutant("the first order alone", {"= 1/K Σ_k p(x;o_k)": np.exp(logs[0])}),
            Mutant("the orders upside down", {"= 1/K Σ_k p(x;o_k)": np.exp(backwards).mean(0)}),
        ],
    )


@verifies(
    "orderless-loss",
    r"""\begin{aligned}
\mathbb E_o\left[-\log p(x;o)\right]
&=\mathbb E_o\left[\sum_{d=1}^{d_x}-\log p(x_{o_d}\mid x_{o_{<d}})\right]\\
&=\mathbb E_o\,\mathbb E_d\left[\frac{d_x}{d_x-d+1}\sum_{i=d}^{d_x}-\log p(x_{o_i}\mid x_{o_{<d}})\right]
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **NETWORK,
)
def orderless_loss(rng: np.random.Generator) -> Lines:
    pixels = 4
    model = _randomise(NADE((pixels,), hidden=3, orderless=True), rng)
    x = rng.integers(2, size=(2, pixels)).astype(float)
    orders = list(itertools.permutations(range(pixels)))
    sets = [s for count in range(pixels) for s in itertools.combinations(range(pixels), count)]

    def nll(d: int, given: Sequence[int]) -> Array:
        return -_log_bernoulli(x[:, d], _nade_logit(model, x, d, given))

    def over_sets(
        factor: Callable[[int], float] = lambda d: pixels / (pixels - d + 1),
        weight: Callable[[int], float] = lambda d: 1 / (pixels * math.comb(pixels, d - 1)),
        hidden: bool = True,
    ) -> Array:
        """E_o E_d as a sum over the sets of d - 1 pixels that may be given: d is uniform, and so is the set."""
        total = np.zeros(len(x))
        for s in sets:
            d = len(s) + 1
            rest = [i for i in range(pixels) if not hidden or i not in s]
            total = total + weight(d) * factor(d) * sum(nll(i, s) for i in rest)
        return total

    values, tensor = np.zeros(len(x)), torch.tensor(x)
    for s in sets:
        given = torch.zeros(2, pixels, dtype=torch.bool)
        given[:, list(s)] = True
        values = values + model._orderless(tensor, given, None).detach().numpy() / (pixels * math.comb(pixels, len(s)))
    by_model = [model.log_prob(tensor, orders=torch.tensor([order])).detach().numpy() for order in orders]
    in_steps = [np.sum([nll(d, order[:i]) for i, d in enumerate(order)], axis=0) for order in orders]
    last = "= E_d E_o[d_x/(d_x-d+1) Σ_{i≥d} …]"
    return Lines(
        {
            "the mean of -log p(x;o) over 24 orders, by NADE": -np.mean(by_model, axis=0),
            "= E_o[Σ_d -log p(x_{o_d}|x_{o_<d})]": np.mean(in_steps, axis=0),
            "= the mean of the training loss over all d and sets": values,
            last: over_sets(),
        },
        [
            Mutant("without the factor", over_sets(factor=lambda d: 1.0)),
            Mutant("d_x/d", over_sets(factor=lambda d: pixels / d)),
            Mutant("1/(d_x-d+1)", over_sets(factor=lambda d: 1 / (pixels - d + 1))),
            Mutant("every set as likely as every other", over_sets(weight=lambda d: 1 / len(sets))),
            Mutant("the given pixels predicted, too", over_sets(hidden=False)),
        ],
    )


# Masks

GE, GT = np.greater_equal, np.greater


def _degrees(model: MADE, which: int = 0) -> list[Array]:
    return [d.numpy() for d in model.degrees(which)]


def _masks(degrees: Sequence[Array], hidden: Callable = GE, out: Callable = GT) -> list[Array]:
    """M of each hidden layer, then of the output, from the degrees of the pixels and of each hidden layer."""
    masks = [hidden(up[:, None], down) for down, up in itertools.pairwise(degrees)]
    return [m.astype(float) for m in (*masks, out(degrees[0][:, None], degrees[-1]))]


@verifies(
    "made-mask",
    r"W^\prime=W\odot M,\qquad M^{(l)}_{kj}=\mathbb 1[m_k\ge m_j],\qquad M^{\rm out}_{dk}=\mathbb 1[d>m_k]",
    kind="definition",
    route="enumeration",
    **NETWORK,
)
def made_mask(rng: np.random.Generator) -> Lines:
    seed, x = int(rng.integers(1000)), _states(5)
    model = _randomise(MADE((5,), hidden=(12, 12), masks=(seed,)), rng, scale=1.0)
    weights = [layer.weight.detach().numpy() for layer in (*model.layers, model.output)]
    biases = [layer.bias.detach().numpy() for layer in model.layers] + [model.bias.detach().numpy()]

    def lines(**rule: Callable) -> dict[str, Array]:
        h = x
        for i, (weight, mask, bias) in enumerate(zip(weights, _masks(_degrees(model), **rule), biases, strict=True)):
            h = (np.maximum(h, 0) if i else h) @ (weight * mask).T + bias
        # A network that saw itself or the future would not say what the sums of its own product say.
        product = np.exp(_log_bernoulli(x, h).sum(1)).reshape([2] * 5)
        return {
            "= σ of the network with W ⊙ M": expit(h),
            "= by sums of the product of all conditionals": _ones(product),
        }

    first = "p(x_d = 1|x_{<d}), by sums of MADE's p(x)"
    return Lines(
        {first: _ones(_probabilities(model, 5)), **lines()},
        [
            Mutant("d ≥ m_k at the output", lines(out=GE)),
            Mutant("m_k > m_j in the hidden layers", lines(hidden=GT)),
            Mutant("m_k ≤ m_j in the hidden layers", lines(hidden=np.less_equal)),
            Mutant("no mask at the output", lines(out=lambda a, b: np.ones(np.broadcast(a, b).shape))),
        ],
    )


@verifies(
    "made-paths",
    r"P=M^{\rm out}M^{(L)}\cdots M^{(1)},\qquad P_{dj}=0\ \text{for }j\ge d",
    kind="identity",
    route="autograd",
    **COUNTS,
)
def made_paths(rng: np.random.Generator) -> Lines:
    # The pixels in a random order: j and d are places in it.
    model = MADE((6,), hidden=(9, 7), masks=(int(rng.integers(1000)),), shuffle=True).double()
    degrees, first = _degrees(model), "paths from each pixel to each logit, by autograd"
    by_place = np.argsort(degrees[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    # With all weights one and no unit at rest, a derivative is a number of paths.
    ones = torch.ones(1, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: model.logits(x)[0], ones)[:, 0].numpy()

    def product(**rule: Callable) -> Array:
        return reduce(lambda p, m: m @ p, _masks(degrees, **rule), np.eye(6))[by_place][:, by_place]

    def lines(counted: Array, paths: Array) -> dict[str, Array]:
        # The last place first, to which most paths lead.
        return {
            first: counted[::-1],
            "= M^out M^(L)⋯M^(1)": paths[::-1],
            "= the same with zeros where j ≥ d": np.tril(paths, -1)[::-1],
        }

    def wrong(paths: Array) -> dict[str, Array]:
        return lines(paths, paths)

    return Lines(
        lines(jacobian[by_place][:, by_place], product()),
        [
            Mutant("d ≥ m_k at the output", wrong(product(out=GE))),
            Mutant("d < m_k at the output", wrong(product(out=np.less))),
            Mutant("m_k ≤ m_j in the hidden layers", wrong(product(hidden=np.less_equal))),
            Mutant("row by row, though the masks are of another order", wrong(jacobian)),
        ],
    )


@verifies(
    "made-ensemble",
    r"p(x)=\frac1K\sum_{k=1}^K\prod_{d=1}^{d_x}p_\theta(x_{o_{k,d}}\mid x_{o_{k,<d}};M_k)",
    kind="definition",
    route="enumeration",
    **NETWORK,
)
def made_ensemble(rng: np.random.Generator) -> Lines:
    seeds = tuple(int(s) for s in rng.integers(1000, size=3))
    model, x = _randomise(MADE((5,), hidden=(10,), masks=seeds, shuffle=True), rng), _states(5)
    layer, out = model.layers[0], model.output.weight.detach().numpy()
    weight, bias, last_bias = (v.detach().numpy() for v in (layer.weight, layer.bias, model.bias))
    logits = []
    for k in range(3):
        into, to_pixels = _masks(_degrees(model, k))
        logits.append(np.maximum(x @ (weight * into).T + bias, 0) @ (out * to_pixels).T + last_bias)
    logs = np.stack([_log_bernoulli(x, one).sum(1) for one in logits])
    line = "= 1/K Σ_k Π_d p(x_d|…) with the masks M_k"
    return Lines(
        {"p(x) of 32 states, by MADE with three masks": _probabilities(model, 5).ravel(), line: np.exp(logs).mean(0)},
        [
            Mutant("the mean of the logits", np.exp(_log_bernoulli(x, np.mean(logits, axis=0)).sum(1))),
            Mutant("the mean of log p", np.exp(logs.mean(0))),
            Mutant("without 1/K", np.exp(logs).sum(0)),
            Mutant("one mask alone", np.exp(logs[0])),
        ],
    )


class _Products(TorchFunctionMode):
    """Counts the multiplications in the products of matrices of which MADE is made."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.addmm_, F.linear):
            left, right = args[1:3] if function is torch.Tensor.addmm_ else (args[0], args[1].T)
            self.count += left.shape[0] * left.shape[1] * right.shape[1]
        return function(*args, **(kwargs or {}))


@verifies(
    "cached-cost",
    r"\underbrace{\sum_{k=1}^Hm_k}_{\text{hidden units}}"
    r"+\underbrace{\sum_{d=1}^{d_x}|\{k:m_k<d\}|}_{\text{outputs}}"
    r"=d_xH=\frac1{2d_x}\cdot\underbrace{d_x\cdot2d_xH}_{d_x\text{ passes}}",
    kind="identity",
    route="enumeration",
    instances=lambda: [(4, 6), (7, 20), (12, 9)],
    **COUNTS,
)
def cached_cost(instance: tuple[int, int]) -> Lines:
    pixels, hidden = instance
    model = MADE((pixels,), hidden=(hidden,))
    m = _degrees(model)[1]
    with _Products() as cached:
        model.sample(1, generator=torch.Generator().manual_seed(0))
    with _Products() as naive, torch.no_grad():
        for _ in range(pixels):
            model.logits(torch.zeros(1, pixels))
    outputs = sum((m < d).sum() for d in range(1, pixels + 1))
    line, dense = "= Σ_k m_k + Σ_d |{k: m_k < d}|", "= 1/(2 d_x) of d_x passes, counted"
    return Lines(
        {
            "products in MADE.sample(1), counted": cached.count,
            line: m.sum() + outputs,
            "= d_x H": pixels * hidden,
            dense: naive.count / (2 * pixels),
        },
        [
            Mutant("d_x passes", {"= d_x H": pixels * 2 * pixels * hidden}),
            Mutant("the masks make no difference: 2 d_x H", {"= d_x H": 2 * pixels * hidden}),
            Mutant("m_k ≤ d", {line: m.sum() + sum((m <= d).sum() for d in range(1, pixels + 1))}),
            Mutant("the outputs forgotten", {line: m.sum()}),
            Mutant("1/d_x of d_x passes", {dense: naive.count / pixels}),
        ],
    )


# Images


def _small_pixelcnn(
    kind: Kind, shape: tuple[int, int, int], seed: int, blocks: int = 2, scale: float = 0.7
) -> PixelCNN:
    model = PixelCNN(shape, kind=kind, hidden=2 * shape[0], blocks=blocks)
    return _randomise(model, np.random.default_rng(seed), scale)


@verifies(
    "pixelcnn-mask",
    r"\frac{\partial\,\mathrm{out}_i}{\partial x_j}=0\quad\text{for }j\ge i\ \text{in raster order}",
    kind="identity",
    route="autograd",
    **NETWORK,
)
def pixelcnn_mask(rng: np.random.Generator) -> Lines:
    seed, x = int(rng.integers(1000)), torch.tensor(rng.integers(2, size=(1, 1, 4, 4)).astype(float))

    def jacobian(kind: Kind, mask: str = "", change: Callable[[torch.Tensor], object] | None = None) -> Array:
        model = _small_pixelcnn(kind, (1, 4, 4), seed)
        if change is not None:
            change(model.stack.get_buffer(mask))
        # The image once for each pixel: one backward pass gives all rows.
        copies = x.repeat(16, 1, 1, 1).requires_grad_()
        own = model.stack(copies, None).flatten(1).diagonal().sum()
        return torch.autograd.grad(own, copies)[0].flatten(1).numpy()

    def lines(*jacobians: Array) -> dict[str, Array]:
        j = np.stack(jacobians)
        # The last pixel first, which sees the most.
        return {
            "∂out_i/∂x_j, plain and gated, by autograd": j[:, ::-1],
            "= the same with zeros where j ≥ i": np.tril(j, -1)[:, ::-1],
        }

    plain, gated = jacobian("plain"), jacobian("gated")

    def changed(mask: str, change: Callable[[torch.Tensor], object]) -> dict[str, Array]:
        return lines(jacobian("plain", mask, change), gated)

    def sees_itself(mask: torch.Tensor) -> None:
        rows, columns = mask.shape[2:]
        mask[:, :, rows // 2, columns // 2] = 1

    return Lines(
        lines(plain, gated),
        [
            Mutant("mask B in the first layer", changed("first.mask", sees_itself)),
            Mutant("the row whole in the first layer", changed("first.mask", lambda mask: mask[:, :, 3].fill_(1))),
            Mutant("the mask upside down", changed("first.mask", lambda mask: mask.copy_(mask.flip(2, 3)))),
            Mutant("no mask in one block", changed("blocks.0.spread.mask", lambda mask: mask.fill_(1))),
            Mutant(
                "mask B in the first gated layer",
                lines(plain, jacobian("gated", "layers.0.horizontal.mask", sees_itself)),
            ),
        ],
    )


@verifies(
    "pixelcnn-colours",
    r"p(x_i\mid x_{<i})=p(x_{iR}\mid x_{<i})\,p(x_{iG}\mid x_{iR},x_{<i})\,p(x_{iB}\mid x_{iR},x_{iG},x_{<i})",
    kind="identity",
    route="enumeration",
    **NETWORK,
)
def pixelcnn_colours(rng: np.random.Generator) -> Lines:
    seed = int(rng.integers(1000))
    # Two pixels of three bits: axes (pixel, colour) in the order in which they are drawn.
    states = _states(6).reshape(-1, 2, 3)
    x = torch.tensor(states.transpose(0, 2, 1)[:, :, None])

    def model(change: Callable[[PixelCNN], None] = lambda model: None) -> PixelCNN:
        network = _small_pixelcnn("plain", (3, 1, 2), seed)
        change(network)
        return network

    def joint(network: PixelCNN) -> Array:
        """p(x_i|x_<i) of both pixels, the second first, in every state, by sums over the joint."""
        p = network.log_prob(x).exp().detach().numpy().reshape([2] * 6)
        first = _marginal(p, range(3))
        return np.stack([np.broadcast_to(c, p.shape).ravel() for c in (p / first, first / p.sum())])

    def factors(network: PixelCNN, given: torch.Tensor = x) -> Array:
        """The same as the product of what the network says for each colour, when it is given this image."""
        logits = network.stack(given, None).detach().numpy()[:, :, 0].transpose(2, 0, 1)
        return np.exp(_log_bernoulli(states.transpose(1, 0, 2), logits).sum(-1))[::-1]

    def independent(m: PixelCNN) -> None:
        """At the pixel itself, no colour sees another."""
        for conv in m.stack.modules():
            if isinstance(conv, MaskedConv2d):
                centre = conv.mask[:, :, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2]
                outputs, inputs = (size // 3 for size in centre.shape)
                own = torch.eye(3).repeat_interleave(outputs, 0).repeat_interleave(inputs, 1)
                centre.copy_(0 * own if conv is m.stack.first else own)

    def own(m: PixelCNN) -> None:
        m.stack.get_buffer("first.mask")[:, :, 3, 3] = 1

    package = model()
    first, last = "p(x_i|x_{<i}) of both pixels, by sums of p(x)", "= the product over R, G and B"
    return Lines(
        {first: joint(package), last: factors(package)},
        [
            Mutant("B first, then G, then R", factors(package, x.flip(1))),
            Mutant("the colours independent of each other", factors(model(independent))),
            Mutant("every colour sees its own pixel", {first: joint(model(own)), last: factors(model(own))}),
            Mutant("the pixel before forgotten", factors(package, x * torch.tensor([0.0, 1.0]))),
        ],
    )


@verifies(
    "blind-spot",
    r"\#\,\text{unseen}=\sum_{a=1}^n\max(0,\,m-\tfrac{k-1}2a)"
    r"\quad\overset{k=3,\,n\ge m-1}{=}\quad\frac{m(m-1)}2",
    kind="identity",
    route="autograd",
    instances=lambda: [(3, 5, 4), (5, 4, 5), (3, 6, 7)],
    **COUNTS,
)
def blind_spot(instance: tuple[int, int, int]) -> Lines:
    kernel, n, m = instance
    h = (kernel - 1) // 2
    # n rows above the pixel and one below, m columns to its right and two to its left.
    image = torch.zeros(1, 1, n + 2, m + 3, dtype=torch.float64, requires_grad=True)
    convs = nn.Sequential(*(MaskedConv2d(1, 1, kernel, "B" if i else "A") for i in range(n + m + 3))).double()
    gated = _small_pixelcnn("gated", (1, n + 2, m + 3), seed=0, blocks=n + m, scale=0.1)
    with torch.no_grad():
        # Nothing cancels, and no unit is at rest.
        for parameter in (*convs.parameters(), *gated.parameters()):
            parameter.abs_()

    def unseen(network: Callable[[torch.Tensor], torch.Tensor]) -> int:
        [gradient] = torch.autograd.grad(network(image)[0, 0, n, 2], image)
        return int((gradient.flatten()[: n * (m + 3) + 2] == 0).sum())

    def formula(slope: float = h, rows: int = n, right: int = m) -> Array:
        return np.array([sum(max(0, right - slope * a) for a in range(1, rows + 1)), 0])

    # The pixel a rows above and b columns to the right is seen if b ≤ h a.
    rule = sum(b > h * a for a in range(1, n + 1) for b in range(-2, m + 1))
    closed = m * (m - 1) // 2 if h == 1 else formula()[0]
    line = "= Σ_a max(0, m - (k-1)/2 a), and none"
    return Lines(
        {
            "earlier pixels never seen, by masks and by two stacks: by autograd": [
                unseen(convs),
                unseen(lambda x: gated.stack(x, None)),
            ],
            "= those with b > (k-1)/2 a, and none": [rule, 0],
            line: formula(),
            "= m(m-1)/2 where k = 3, and none": [closed, 0],
        },
        [
            Mutant("none unseen by masks", {line: np.zeros(2)}),
            Mutant("b ≥ (k-1)/2 a", {line: formula(right=m + 1)}),
            Mutant("k-1 for its half", {line: formula(slope=kernel - 1)}),
            Mutant("m(m+1)/2", [m * (m + 1) // 2, 0]),
            Mutant("all to the right above", {line: formula(slope=0)}),
            Mutant("two stacks have it, too", {line: formula()[[0, 0]]}),
        ],
    )


def _causal(x: Array, w: Array, dilation: int = 1, shift: int = 0) -> Array:
    """y[t] = Σ_i w[i] x[t - δi - shift], by loops, x zero before it starts."""
    y = np.zeros_like(x)
    for t in range(len(x)):
        for i in range(len(w)):
            if 0 <= (s := t - dilation * i - shift) < len(x):
                y[t] += w[i] * x[s]
    return y


@verifies(
    "gated-unit",
    r"y=\tanh(W_f*x)\odot\sigma(W_g*x)",
    kind="definition",
    route="enumeration",
    **NETWORK,
)
def gated_unit(rng: np.random.Generator) -> Lines:
    x, (f, g) = 2 * rng.normal(size=9), rng.normal(size=(2, 3))
    # Both convolutions as one with twice the features, the filter's first.
    both = F.conv1d(F.pad(torch.tensor(x)[None, None], (2, 0)), torch.tensor(np.stack([f, g])[:, None, ::-1].copy()))
    a, b = _causal(x, f), _causal(x, g)
    return Lines(
        {
            "the model's gate of one convolution": gate(both)[0, 0].numpy(),
            "= tanh(W_f∗x) ⊙ σ(W_g∗x)": np.tanh(a) * expit(b),
        },
        [
            Mutant("f and g exchanged", np.tanh(b) * expit(a)),
            Mutant("+ for ⊙", np.tanh(a) + expit(b)),
            Mutant("tanh for σ", np.tanh(a) * np.tanh(b)),
            Mutant("σ for tanh", expit(a) * expit(b)),
            Mutant("one convolution for both", np.tanh(a) * expit(a)),
        ],
    )


@verifies(
    "convolutional-lstm",
    r"""\begin{aligned}
{}[\,o_i,f_i,\iota_i,g_i\,]&=[\,\sigma,\sigma,\sigma,\tanh\,]\,(K^{\rm ss}*h_{i-1}+K^{\rm is}*x_i)\\
c_i&=f_i\odot c_{i-1}+\iota_i\odot g_i,\qquad h_i=o_i\odot\tanh(c_i)
\end{aligned}""",
    kind="definition",
    route="enumeration",
    **NETWORK,
)
def convolutional_lstm(rng: np.random.Generator) -> Lines:
    # Three rows of five pixels with two channels, three features, kernels of width three along the row.
    rows, width, channels, size = 3, 5, 2, 3
    x = rng.normal(size=(rows, channels, width))
    k_is, k_ss = rng.normal(size=(4 * size, channels, 3)), rng.normal(size=(4 * size, size, 3))

    def windows(row: Array) -> Array:
        """What a kernel of width three sees at each pixel: (width, channels * 3)."""
        padded = np.pad(row, ((0, 0), (1, 1)))
        return np.stack([padded[:, j : j + 3].ravel() for j in range(width)])

    # Torch's cell at each pixel, whose input is all that both kernels see; its gates come as ι, f, g, o.
    cell = nn.LSTMCell(3 * (channels + size), size, bias=False).double()
    weight = np.concatenate([k_is.reshape(4 * size, -1), k_ss.reshape(4 * size, -1)], axis=1)
    with torch.no_grad():
        o, f, i, g = np.split(weight, 4)
        cell.weight_ih.copy_(torch.tensor(np.concatenate([i, f, g, o])))
        cell.weight_hh.zero_()
        h = c = torch.zeros(width, size, dtype=torch.float64)
        by_cell = []
        for row in x:
            h, c = cell(torch.tensor(np.concatenate([windows(row), windows(h.numpy().T)], axis=1)), (h, c))
            by_cell.append(h.numpy().T)
        gates = F.conv1d(torch.tensor(x), torch.tensor(k_is), padding=1)
        by_model = scan(gates[:, :, None], torch.tensor(k_ss))[:, :, 0].numpy()

    def by_loops() -> Array:
        c = h = np.zeros((size, width))
        out = []
        for row in x:
            pre = np.zeros((4 * size, width))
            for kernel, source in ((k_is, row), (k_ss, h)):
                for at, shift in itertools.product(range(width), (-1, 0, 1)):
                    if 0 <= at + shift < width:
                        pre[:, at] += kernel[:, :, shift + 1] @ source[:, at + shift]
            o, f, i, g = np.split(pre, 4)
            c = expit(f) * c + expit(i) * np.tanh(g)
            h = expit(o) * np.tanh(c)
            out.append(h)
        return np.stack(out)

    def formula(
        order: Sequence[int] = (0, 1, 2, 3),
        candidate: Callable = torch.tanh,
        outer: Callable = torch.tanh,
        past: float = 1.0,
    ) -> Array:
        c = h = torch.zeros(1, size, width, dtype=torch.float64)
        out = []
        for row in torch.tensor(x)[:, None]:
            pre = F.conv1d(past * h, torch.tensor(k_ss), padding=1) + F.conv1d(row, torch.tensor(k_is), padding=1)
            gates = pre.chunk(4, 1)
            o, f, i, g = (gates[k] for k in order)
            c = f.sigmoid() * c + i.sigmoid() * candidate(g)
            h = o.sigmoid() * outer(c)
            out.append(h)
        return torch.cat(out).numpy()

    return Lines(
        {
            "h of three rows, by torch's LSTMCell": np.stack(by_cell),
            "= by the model's scan": by_model,
            "= by loops over the pixels": by_loops(),
            "= a row at once, by convolutions": formula(),
        },
        [
            Mutant("f and ι exchanged", formula(order=(0, 2, 1, 3))),
            Mutant("σ for all four", formula(candidate=torch.sigmoid)),
            Mutant("h = o ⊙ c", formula(outer=lambda c: c)),
            Mutant("without K^ss", formula(past=0.0)),
            Mutant("torch's order of the gates", formula(order=(3, 1, 0, 2))),
        ],
    )


@verifies(
    "diagonal-skew",
    r"\tilde y_{i,i+j}=y_{ij}\quad\Longrightarrow\quad "
    r"y_{i-1,j}=\tilde y_{i-1,s-1},\quad y_{i,j-1}=\tilde y_{i,s-1},\quad s=i+j",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def diagonal_skew(rng: np.random.Generator) -> Lines:
    rows, columns = 4, 5
    x, (from_above, from_left) = rng.normal(size=(rows, columns)), rng.uniform(0.5, 1.5, size=2)

    # Any recursion over both neighbours, pixel by pixel in raster order.
    y = np.zeros((rows + 1, columns + 1))
    for i, j in itertools.product(range(rows), range(columns)):
        y[i + 1, j + 1] = np.tanh(from_above * y[i, j + 1] + from_left * y[i + 1, j] + x[i, j])

    def columns_of(skewed: Array, inside: Array, up: int = 1, back: int = 1, own_row: int = 0) -> Array:
        """All pixels of a column of the skewed image at once."""
        out = np.zeros_like(skewed)
        for s in range(skewed.shape[1]):
            before = out[:, s - back] if s >= back else np.zeros(rows)
            above = np.concatenate([np.zeros(up), before])[:rows]
            left = np.concatenate([np.zeros(own_row), before])[:rows]
            out[:, s] = inside[:, s] * np.tanh(from_above * above + from_left * left + skewed[:, s])
        return out

    def by_columns(slope: int = 1, **slip: int) -> Array:
        wide = rows + columns - 1
        at = np.arange(rows)[:, None], (slope * np.arange(rows)[:, None] + np.arange(columns)) % wide
        skewed, inside = np.zeros((rows, wide)), np.zeros((rows, wide))
        skewed[at], inside[at] = x, 1.0
        return columns_of(skewed, inside, **slip)[at]

    skewed, inside = (skew(torch.tensor(image)).numpy() for image in (x, np.ones_like(x)))
    by_model = columns_of(skewed, inside)
    return Lines(
        {
            "y_ij, pixel by pixel": y[1:, 1:],
            "= column by column, skewed by the model": unskew(torch.tensor(by_model), columns).numpy(),
            "= column by column of ỹ_{i,i+j} = y_ij": by_columns(),
        },
        [
            Mutant("not skewed", by_columns(slope=0)),
            Mutant("skewed the other way: s = j - i", by_columns(slope=-1)),
            Mutant("column s - 2", by_columns(back=2)),
            Mutant("above from the row itself", by_columns(up=0)),
            Mutant("left from the row above", by_columns(own_row=1)),
        ],
    )


# Signals


@verifies(
    "dilated-causal-conv",
    r"y[t]=\sum_{i=0}^{k-1}w[i]\,x[t-\delta i],\qquad x[t]=0\ \text{for }t<0",
    kind="definition",
    route="enumeration",
    instances=lambda: [(np.random.default_rng([80, k]), k, dilation) for k, dilation in ((2, 4), (3, 2), (4, 3))],
    **SMALL_SUMS,
)
def dilated_causal_conv(instance: tuple[np.random.Generator, int, int]) -> Lines:
    rng, k, dilation = instance
    x, w = rng.normal(size=24), rng.normal(size=k)
    reach = dilation * (k - 1)
    spread = np.zeros(reach + 1)
    spread[::dilation] = w

    conv = DilatedCausalConv1d(1, 1, k, dilation).double()
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(w[::-1].copy()))
        package = conv(torch.tensor(x)[None, None])[0, 0] - conv.bias

    def torch_conv(w: Array, pad: tuple[int, int] = (reach, 0), dilation: int = dilation) -> Array:
        padded = F.pad(torch.tensor(x)[None, None], pad)
        return F.conv1d(padded, torch.tensor(w.copy())[None, None], dilation=dilation)[0, 0].numpy()

    last = "= torch's conv1d, w flipped, zeros on the left"
    return Lines(
        {
            "Σ_i w[i] x[t-δi], by loops": _causal(x, w, dilation),
            "= the product of two polynomials": np.convolve(x, spread)[: len(x)],
            "= by the layer of the model": package,
            last: torch_conv(w[::-1]),
        },
        [
            Mutant("w not flipped", torch_conv(w)),
            Mutant("zeros on the right", torch_conv(w[::-1], (0, reach))),
            Mutant("zeros on both sides", torch_conv(w[::-1], (reach // 2, reach - reach // 2))),
            Mutant("not dilated", torch_conv(w[::-1], (k - 1, 0), 1)),
            Mutant("x[t-δ(i+1)]", {"Σ_i w[i] x[t-δi], by loops": _causal(x, w, dilation, shift=dilation)}),
        ],
    )


@verifies(
    "receptive-field",
    r"R=1+(k-1)\sum_{l=0}^{K_{\rm conv}-1}2^l=1+(k-1)(2^{K_{\rm conv}}-1)",
    kind="identity",
    route="autograd",
    instances=lambda: [(3, 2), (4, 3), (10, 2)],
    **COUNTS,
)
def receptive_field(instance: tuple[int, int]) -> Lines:
    layers, k = instance
    x = torch.zeros(1, 1, k * 2**layers, dtype=torch.float64, requires_grad=True)
    convs = nn.Sequential(*(DilatedCausalConv1d(1, 1, k, 2**layer) for layer in range(layers))).double()
    for parameter in convs.parameters():
        nn.init.constant_(parameter, 0.5)
    [gradient] = torch.autograd.grad(convs(x)[0, 0, -1], x)

    def total(first: int = 0, factor: int = k - 1, one: int = 1) -> int:
        return one + factor * sum(2**layer for layer in range(first, first + layers))

    line = "= 1 + (k-1) Σ_l 2^l"
    return Lines(
        {
            "inputs that move the last output, by autograd": (gradient != 0).sum(),
            line: total(),
            "= 1 + (k-1)(2^K - 1)": 1 + (k - 1) * (2**layers - 1),
        },
        [
            Mutant("without the 1", {line: total(one=0)}),
            Mutant("k for k-1", {line: total(factor=k)}),
            Mutant("dilations 2, 4, 8, …", {line: total(first=1)}),
            Mutant("2^{K-1}", 1 + (k - 1) * (2 ** (layers - 1) - 1)),
            Mutant("not dilated: 1 + (k-1)K", 1 + (k - 1) * layers),
        ],
    )


@verifies(
    "mu-law",
    r"f(x)=\mathrm{sign}(x)\,\frac{\ln(1+\mu|x|)}{\ln(1+\mu)},\qquad "
    r"f^{-1}(y)=\mathrm{sign}(y)\,\frac{(1+\mu)^{|y|}-1}\mu",
    kind="definition",
    route="quadrature",
    tolerance=1e-10,
    reason="adaptive quadrature and roots to about 1e-13",
)
def mu_law(rng: np.random.Generator) -> Lines:
    mu, x = rng.choice([15.0, 63.0, 255.0]), np.append(rng.uniform(0.05, 0.95, 3), -rng.uniform(0.05, 0.95, 3))
    # The curve through the origin whose slope falls as 1/(1 + μ|x|), and that ends at f(1) = 1.
    whole = integrate.quad(lambda t: 1 / (1 + mu * t), 0, 1, epsabs=0, epsrel=1e-13)[0]
    part = [integrate.quad(lambda t: 1 / (1 + mu * abs(t)), 0, v, epsabs=0, epsrel=1e-13)[0] for v in x]

    def f(one: float = 1.0, scale: float = np.log(1 + mu)) -> Array:
        return np.sign(x) * np.log(one + mu * np.abs(x)) / scale

    def root(inverse: Callable[[float], float]) -> list[float]:
        return [optimize.brentq(lambda y, v=v: np.sign(y) * inverse(abs(y)) - v, -3, 3, xtol=1e-14) for v in x]

    line, last = "= sign(x) ln(1+μ|x|)/ln(1+μ)", "= the root y of f⁻¹(y) = x"
    return Lines(
        {
            "∫_0^x dt/(1+μ|t|) over the same to 1": np.array(part) / whole,
            line: f(),
            last: root(lambda y: ((1 + mu) ** y - 1) / mu),
        },
        [
            Mutant("ln(μ|x|)", {line: f(one=0.0)}),
            Mutant("not divided", {line: f(scale=1.0)}),
            Mutant("ln μ below", {line: f(scale=np.log(mu))}),
            Mutant("the sign forgotten", {line: np.abs(f())}),
            Mutant("μ^{|y|} in the inverse", root(lambda y: (mu**y - 1) / mu)),
            Mutant("1+μ below in the inverse", root(lambda y: ((1 + mu) ** y - 1) / (1 + mu))),
        ],
    )


# Levels


def _logistic_output(levels: int, mean: float, scale: float) -> Array:
    """log P of every level by the model's output, a mixture of one."""
    x = torch.linspace(0, 1, levels, dtype=torch.float64)
    parameters = torch.tensor([0.0, mean, np.log(scale)])[None, :, None].expand(1, 3, levels)
    return LogisticOutput(colours=1, levels=levels, mixtures=1).log_prob(parameters, x[None, None])[0].numpy()


@verifies(
    "discretised-logistic",
    r"""\begin{aligned}
P(x_k)&=\sigma\Big(\frac{b_k-\mu}s\Big)-\sigma\Big(\frac{a_k-\mu}s\Big),\qquad\sum_kP(x_k)=1\\
a_k&=x_k-\frac w2,\quad b_k=x_k+\frac w2,\qquad a_{\rm first}=-\infty,\quad b_{\rm last}=\infty
\end{aligned}""",
    kind="definition",
    route="closed form",
    tolerance=1e-10,
    reason="differences of distribution functions, in float64",
)
def discretised_logistic(rng: np.random.Generator) -> Lines:
    levels, mean, scale = int(rng.integers(5, 12)), rng.uniform(-0.8, 0.8), rng.uniform(0.1, 0.4)
    x, w = np.linspace(-1, 1, levels), 2 / (levels - 1)

    def formula(w: float = w, tails: float = np.inf, scale: float = scale) -> Array:
        """The probabilities and their sum."""
        a, b = x - w / 2, x + w / 2
        a[0], b[-1] = -tails, tails
        p = expit((b - mean) / scale) - expit((a - mean) / scale)
        return np.append(p, p.sum())

    ends = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
    package = np.exp(_logistic_output(levels, mean, scale))
    density = w * logistic.pdf(x, mean, scale)
    return Lines(
        {
            "P of all levels and 1, by SciPy's logistic": np.append(np.diff(logistic.cdf(ends, mean, scale)), 1.0),
            "= by the model's output": np.append(package, package.sum()),
            "= σ((b_k-μ)/s) - σ((a_k-μ)/s) and its sum": formula(),
        },
        [
            Mutant("the tails closed", formula(tails=1 + w / 2)),
            Mutant("w for w/2", formula(w=2 * w)),
            Mutant("times s", formula(scale=1 / scale)),
            Mutant("the density times w", np.append(density, density.sum())),
            Mutant("w on [0, 1], x on [-1, 1]", formula(w=w / 2)),
        ],
    )


@verifies(
    "logistic-interval",
    r"\log\big(\sigma(b)-\sigma(a)\big)=\log\sigma(b)+\log\sigma(-a)+\log\big(1-e^{a-b}\big),\quad a<b",
    kind="identity",
    route="closed form",
    **NETWORK,
)
def logistic_interval(rng: np.random.Generator) -> Lines:
    levels, mean, scale = 9, rng.uniform(-0.5, 0.5), rng.choice([0.008, 0.02, 0.3])
    x, half = np.linspace(-1, 1, levels)[1:-1], 1 / (levels - 1)
    a, b = (x - half - mean) / scale, (x + half - mean) / scale

    def exact(a: float, b: float) -> float:
        """The left side in 200 decimal digits."""
        with decimal.localcontext() as context:
            context.prec = 200
            low, high = (1 / (1 + (-decimal.Decimal(v)).exp()) for v in (a, b))
            return float((high - low).ln())

    def formula(sign: float = -1.0, last: Callable[[Array], Array] = lambda g: np.log(-np.expm1(g))) -> Array:
        return log_expit(b) + log_expit(sign * a) + last(a - b)

    middle = (a + b) / 2
    return Lines(
        {
            "log(σ(b) - σ(a)), in 200 digits": [exact(*ends) for ends in zip(a, b, strict=True)],
            "= by the model's output": _logistic_output(levels, mean, scale)[1:-1],
            "= log σ(b) + log σ(-a) + log(1-e^{a-b})": formula(),
        },
        [
            Mutant("σ(a) for σ(-a)", formula(sign=1.0)),
            Mutant("log(1+e^{a-b})", formula(last=lambda g: np.log1p(np.exp(g)))),
            Mutant("e^{a-b} forgotten", formula(last=lambda g: 0 * g)),
            Mutant("log σ(b) - log σ(a)", log_expit(b) - log_expit(a)),
            Mutant("the density times the width", np.log(b - a) + log_expit(middle) + log_expit(-middle)),
        ],
    )


# Attention


def _attention(q: Array, k: Array, v: Array) -> Array:
    """torch's own, causal."""
    return F.scaled_dot_product_attention(torch.tensor(q), torch.tensor(k), torch.tensor(v), is_causal=True).numpy()


@verifies(
    "causal-attention",
    r"\mathrm{softmax}\Big(\frac{QK^\top}{\sqrt{d_k}}+M\Big)V,\qquad "
    r"M_{ts}=\begin{cases}0&s\le t\\-\infty&s>t\end{cases}",
    kind="definition",
    route="enumeration",
    **SMALL_SUMS,
)
def causal_attention(rng: np.random.Generator) -> Lines:
    steps, size = 6, 4
    q, k, v = 1.5 * rng.normal(size=(3, steps, size))
    t, s = np.indices((steps, steps))

    def formula(seen: Array = s <= t, root: float = np.sqrt(size), axis: int = 1) -> Array:
        return softmax(q @ k.T / root + np.where(seen, 0, -np.inf), axis=axis) @ v

    by_loops = []
    for i in range(steps):
        weights = np.array([np.exp(sum(q[i] * k[j]) / np.sqrt(size)) for j in range(i + 1)])
        by_loops.append(sum(weights[j] / weights.sum() * v[j] for j in range(i + 1)))
    after = softmax(q @ k.T / np.sqrt(size), axis=1) * (s <= t) @ v
    return Lines(
        {
            "causal attention, by torch": _attention(q, k, v),
            "= by loops over t and s ≤ t": np.array(by_loops),
            "= softmax(QKᵀ/√d_k + M) V": formula(),
        },
        [
            Mutant("no mask", formula(seen=s >= 0)),
            Mutant("the mask transposed", formula(seen=s >= t)),
            Mutant("s ≤ t + 1", formula(seen=s <= t + 1)),
            Mutant("d_k for its root", formula(root=size)),
            Mutant("masked after the softmax", after),
            Mutant("normalised over t", formula(axis=0)),
        ],
    )


@verifies(
    "kv-cache",
    r"y_t=\mathrm{softmax}\Big(\frac{K_{\le t}\,q_t}{\sqrt{d_k}}\Big)^\top V_{\le t},\qquad "
    r"K_{\le t}=\begin{bmatrix}K_{<t}\\k_t^\top\end{bmatrix},\quad "
    r"V_{\le t}=\begin{bmatrix}V_{<t}\\v_t^\top\end{bmatrix}",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def kv_cache(rng: np.random.Generator) -> Lines:
    # Two layers, so that what is kept of the second depends on the first.
    steps, size = 6, 3
    x, projections = rng.normal(size=(steps, size)), rng.normal(size=(2, 3, size, size))
    whole = x
    for layer in projections:
        whole = _attention(*(whole @ w for w in layer))

    def row_by_row(drop_last: int = 0, stale_values: bool = False, root: float = np.sqrt(size)) -> Array:
        caches: list[tuple[list[Array], list[Array]]] = [([], []) for _ in projections]
        rows = []
        for row in x:
            for (keys, values), (to_q, to_k, to_v) in zip(caches, projections, strict=True):
                keys.append(row @ to_k)
                values.append(row @ (to_k if stale_values else to_v))
                seen = max(len(keys) - drop_last, 1)
                scores = np.array(keys[:seen]) @ (row @ to_q) / root
                row = np.exp(scores - logsumexp(scores)) @ np.array(values[:seen])
            rows.append(row)
        return np.array(rows)

    return Lines(
        {"two causal layers, all rows at once": whole, "= row by row, with K and V kept": row_by_row()},
        [
            Mutant("K_{<t} for K_{≤t}", row_by_row(drop_last=1)),
            Mutant("keys kept for values", row_by_row(stale_values=True)),
            Mutant("d_k for its root", row_by_row(root=size)),
            Mutant("the first layer's rows for the second's", _attention(*(x @ w for w in projections[0]))),
        ],
    )
