"""Checks for the chapter on generative adversarial networks."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg, optimize
from scipy.spatial.distance import cdist, jensenshannon
from scipy.special import expit, log_softmax, logsumexp, xlogy
from scipy.stats import entropy, multivariate_normal, norm, wasserstein_distance_nd
from torch.distributions import Normal
from torch.nn import functional as F

from companion.derivations.registry import Lines, Mutant, Tolerance, verifies
from companion.derivations.toys import plane

Array = np.ndarray

SMALL_SUMS = Tolerance(tolerance=1e-11, reason="sums of a few float64 numbers of order one")
NUMERIC = Tolerance(tolerance=1e-6, reason="an optimum found numerically, where the function is flat, to about 1e-8")
DIFFERENCES = Tolerance(tolerance=1e-8, reason="central differences with step 1e-5, whose error is about 1e-10")
PROGRAMME = Tolerance(tolerance=1e-8, reason="linear programmes solved to about 1e-10")
LOG_4 = np.log(4)


def _simplex(rng: np.random.Generator, states: int, copies: int = 1) -> Array:
    """One random table, or several as rows, with no state that is very rare."""
    tables = rng.dirichlet(np.full(states, 2.0), size=copies) * 0.9 + 0.1 / states
    return tables[0] if copies == 1 else tables


def _jsd(p: Array, q: Array) -> float:
    """SciPy has the root of the divergence."""
    return jensenshannon(p, q) ** 2


def _value(p: Array, q: Array, d: Array) -> float:
    """V of a discriminator's table d, where p is the law of the data and q that of the generator."""
    return p @ np.log(d) + q @ np.log(1 - d)


def _argmax_of_one_state(p: float, q: float) -> float:
    """The D that maximises p log D + q log(1 - D), by golden sections."""
    return optimize.minimize_scalar(
        lambda d: -p * np.log(d) - q * np.log(1 - d), bounds=(0, 1), method="bounded", options={"xatol": 1e-11}
    ).x


def _best_discriminator(p: Array, q: Array) -> Array:
    return np.array([_argmax_of_one_state(*pair) for pair in zip(p, q, strict=True)])


def _best_value(p: Array, q: Array) -> float:
    """max_D V."""
    return _value(p, q, _best_discriminator(p, q))


def _all_maps(states: int, latents: int) -> Array:
    return np.array(list(itertools.product(range(states), repeat=latents)))


def _gradient(function: Callable[[torch.Tensor], torch.Tensor], at: Array) -> Array:
    point = torch.tensor(at, requires_grad=True)
    return torch.autograd.grad(function(point), point)[0].numpy()


def _differences(function: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """Central differences."""
    return np.array([(function(at + e) - function(at - e)) / (2 * step) for e in step * np.eye(len(at))])


def _maximise(function: Callable[[torch.Tensor], torch.Tensor], start: Array) -> Array:
    """Where the function is largest, by BFGS with autograd's gradient."""
    return optimize.minimize(
        lambda t: -function(torch.tensor(t)).item(),
        start,
        jac=lambda t: -_gradient(function, t),
        method="BFGS",
        options={"gtol": 1e-9},
    ).x


@verifies(
    "gan-minimax",
    r"""\begin{aligned}
&\min_\theta\max_\psi V(D_\psi,G_\theta)\\
V(D_\psi,G_\theta)&=\mathbb E_{p_{\rm data}(x)}\left[\log D_\psi(x)\right]
+\mathbb E_{p(z)}\left[\log(1-D_\psi(G_\theta(z)))\right]\\
&=\mathbb E_{p_{\rm data}(x)}\left[\log D_\psi(x)\right]
+\mathbb E_{p_g(x)}\left[\log(1-D_\psi(x))\right]
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def gan_minimax(rng: np.random.Generator) -> Lines:
    data, prior, d = _simplex(rng, 3), _simplex(rng, 4), rng.uniform(0.1, 0.9, size=3)
    g = np.append(rng.permutation(3), rng.integers(3))  # G as the list of its values: four z, three x

    def law(g: Array) -> Array:
        return np.bincount(g, prior, minlength=3)

    def over_z(sign: float = 1.0, inside: Callable = lambda d: 1 - d) -> float:
        return sum(p * np.log(d[x]) for x, p in enumerate(data)) + sign * sum(
            p * np.log(inside(d[x])) for x, p in zip(g, prior, strict=True)
        )

    # Every G there is, each against the discriminator that is best against it.
    values = [_best_value(data, law(g)) for g in _all_maps(3, 4)]
    line, last = "= E_data[log D(x)] + E_z[log(1-D(G(z)))]", "≥ min_G max_D V, over all 81 maps G"
    return Lines(
        {
            "V(D,G), a sum over pairs (x, z)": sum(
                data[x] * prior[z] * (np.log(d[x]) + np.log(1 - d[g[z]])) for x in range(3) for z in range(4)
            ),
            line: over_z(),
            "= E_data[log D(x)] + E_{p_g}[log(1-D(x))]": _value(data, law(g), d),
            "≤ max_D V(D,G)": _best_value(data, law(g)),
            last: min(values),
        },
        [
            Mutant("log D for log(1-D) on generated points", {line: over_z(inside=lambda d: d)}),
            Mutant("the second term subtracted", {line: over_z(sign=-1.0)}),
            Mutant("G maximises as well", {last: max(values)}),
            Mutant("p(z) for p_g", {"= E_data[log D(x)] + E_{p_g}[log(1-D(x))]": _value(data, prior[:3], d)}),
        ],
    )


@verifies(
    "gan-optimal-discriminator",
    r"""\begin{aligned}
D^*(x)&=\arg\max_{0<D<1}\left\{p_{\rm data}(x)\log D+p_g(x)\log(1-D)\right\}\\
&=\text{the }D\text{ with }\frac{p_{\rm data}(x)}D-\frac{p_g(x)}{1-D}=0\\
&=\frac{p_{\rm data}(x)}{p_{\rm data}(x)+p_g(x)}\qquad\text{for any }G
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **NUMERIC,
)
def gan_optimal_discriminator(rng: np.random.Generator) -> Lines:
    p, q = _simplex(rng, 5, 2)

    def v(logits: torch.Tensor) -> torch.Tensor:
        return torch.tensor(p) @ F.logsigmoid(logits) + torch.tensor(q) @ F.logsigmoid(-logits)

    def roots(function: Callable[[float, float, float], float]) -> list[float]:
        return [optimize.brentq(function, 1e-6, 1 - 1e-6, args=pair) for pair in zip(p, q, strict=True)]

    exchanged = roots(lambda d, a, b: a / (1 - d) - b / d)
    return Lines(
        {
            "D*, the table that maximises V(D,G)": expit(_maximise(v, rng.normal(size=5))),
            "= argmax for each x": _best_discriminator(p, q),
            "= root of the derivative": roots(lambda d, a, b: a / d - b / (1 - d)),
            "= p_data/(p_data + p_g)": p / (p + q),
        },
        [
            Mutant("p_g on top", q / (p + q)),
            Mutant("the ratio p_data/p_g", p / q),
            Mutant("½ for any G, as if at the equilibrium", np.full(5, 0.5), erratum="E003-07"),
            Mutant("D and 1-D exchanged in the derivative", {"= root of the derivative": exchanged}),
        ],
    )


@verifies(
    "gan-optimal-logit",
    r"\ell^*(x)=\log\frac{D^*(x)}{1-D^*(x)}=\log p_{\rm data}(x)-\log p_g(x)",
    kind="identity",
    route="quadrature",
    tolerance=1e-8,
    reason="Newton's method to rounding, magnified by the condition of a 6×6 system",
)
def gan_optimal_logit(rng: np.random.Generator) -> Lines:
    nodes, weight = plane(9.0, 100)
    roots = rng.normal(size=(2, 2, 2)) / 2
    laws = [multivariate_normal(rng.normal(size=2) / 2, root @ root.T + 0.6 * np.eye(2)) for root in roots]
    mass = [weight * law.pdf(nodes) for law in laws]
    points = rng.normal(size=(4, 2))

    def features(x: Array) -> Array:
        return np.column_stack([np.ones(len(x)), x, x**2, x[:, 0] * x[:, 1]])

    # The logit of two Gaussians is quadratic: maximise V over all quadratic logits, which know no density.
    phi, coefficients = features(nodes), np.zeros(6)
    for _ in range(30):
        d = expit(phi @ coefficients)
        slope = phi.T @ (mass[0] * (1 - d) - mass[1] * d)
        curvature = phi.T @ (((mass[0] + mass[1]) * d * (1 - d))[:, None] * phi)
        coefficients = coefficients + np.linalg.solve(curvature, slope)
    p, q = (law.pdf(points) for law in laws)
    best = p / (p + q)
    last = "= log p_data(x) - log p_g(x)"
    log_p, log_q = (law.logpdf(points) for law in laws)
    return Lines(
        {
            "ℓ that maximises V(σ(ℓ),G)": features(points) @ coefficients,
            "= log D*/(1-D*)": np.log(best / (1 - best)),
            last: log_p - log_q,
        },
        [
            Mutant("the sign", {last: log_q - log_p}),
            Mutant("log D* for the logit", {"= log D*/(1-D*)": np.log(best)}),
            Mutant("log p_data alone", {last: log_p}),
            Mutant("the ratio without its log", {last: p / q}),
        ],
    )


@verifies(
    "jsd-definition",
    r"""\begin{aligned}
\mathrm{JSD}(p\Vert q)&=\frac12\mathrm{KL}(p\Vert m)+\frac12\mathrm{KL}(q\Vert m),\qquad m=\frac{p+q}2\\
&=H(m)-\frac12H(p)-\frac12H(q)\\
0&\le\mathrm{JSD}(p\Vert q)\le\log2
\end{aligned}""",
    kind="inequality",
    route="enumeration",
    **SMALL_SUMS,
)
def jsd_definition(rng: np.random.Generator) -> Lines:
    p, q = _simplex(rng, 5, 2)

    m, line, nothing = (p + q) / 2, "= ½KL(p‖m) + ½KL(q‖m)", np.zeros(5)

    def formula(m: Array = m, half: float = 0.5) -> float:
        return half * (p * np.log(p / m)).sum() + half * (q * np.log(q / m)).sum()

    geometric = np.sqrt(p * q) / np.sqrt(p * q).sum()
    reverse = entropy(m, p) / 2 + entropy(m, q) / 2
    return Lines(
        {
            "JSD(p‖p)": _jsd(p, p),
            "= 0": 0.0,
            "≤ JSD(p‖q), by SciPy": _jsd(p, q),
            line: formula(),
            "= H(m) - ½H(p) - ½H(q)": entropy(m) - entropy(p) / 2 - entropy(q) / 2,
            "≤ JSD of disjoint tables": _jsd(np.append(p, nothing), np.append(nothing, q)),
            "= log 2": np.log(2),
        },
        [
            Mutant("a similarity, largest for equal tables", {line: np.log(2) - formula()}, erratum="E003-08"),
            Mutant("the geometric mean for m", {line: formula(geometric)}),
            Mutant("both KL the other way round", {line: reverse}),
            Mutant("without ½", {line: formula(half=1.0)}),
            Mutant("the entropies added", {"= H(m) - ½H(p) - ½H(q)": entropy(m) + (entropy(p) + entropy(q)) / 2}),
        ],
    )


@verifies(
    "gan-jsd-value",
    r"""\begin{aligned}
V(D^*,G)&=\mathbb E_{p_{\rm data}}\left[\log\frac{p_{\rm data}(x)}{p_{\rm data}(x)+p_g(x)}\right]
+\mathbb E_{p_g}\left[\log\frac{p_g(x)}{p_{\rm data}(x)+p_g(x)}\right]\\
&=-2\log2+\mathbb E_{p_{\rm data}}\left[\log\frac{p_{\rm data}(x)}{m(x)}\right]
+\mathbb E_{p_g}\left[\log\frac{p_g(x)}{m(x)}\right]\\
&\quad\text{with }m=\frac{p_{\rm data}+p_g}2\\
&=-\log4+\mathrm{KL}(p_{\rm data}\Vert m)+\mathrm{KL}(p_g\Vert m)\\
&=-\log4+2\,\mathrm{JSD}(p_{\rm data}\Vert p_g)
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def gan_jsd_value(rng: np.random.Generator) -> Lines:
    p, q = _simplex(rng, 5, 2)
    m = (p + q) / 2
    relative = p @ np.log(p / m) + q @ np.log(q / m)
    line = "= -2 log 2 + E_data[log p_data/m] + E_{p_g}[log p_g/m]"
    return Lines(
        {
            "V(D,G), maximised numerically": _best_value(p, q),
            "= E_data[log D*] + E_{p_g}[log(1-D*)]": p @ np.log(p / (p + q)) + q @ np.log(q / (p + q)),
            line: -2 * np.log(2) + relative,
            "= -log 4 + KL(p_data‖m) + KL(p_g‖m)": -LOG_4 + entropy(p, m) + entropy(q, m),
            "= -log 4 + 2 JSD": -LOG_4 + 2 * _jsd(p, q),
        },
        [
            Mutant("JSD once", -LOG_4 + _jsd(p, q)),
            Mutant("+log 4", LOG_4 + 2 * _jsd(p, q)),
            Mutant("log 2 once", {line: -np.log(2) + relative}),
            Mutant("2 KL for 2 JSD", -LOG_4 + 2 * entropy(p, q)),
        ],
    )


@verifies(
    "gan-equilibrium",
    r"""\begin{aligned}
p_g=p_{\rm data}&\iff D^*=\frac12\\
&\quad\iff V(D^*,G)=\min_G\max_DV(D,G)=-\log4
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **NUMERIC,
)
def gan_equilibrium(rng: np.random.Generator) -> Lines:
    p, start = _simplex(rng, 4), rng.normal(size=4)

    def minus_value(logits: torch.Tensor) -> torch.Tensor:
        data, q = torch.tensor(p), logits.softmax(0)
        d = data / (data + q)
        return -(data @ d.log() + q @ (1 - d).log())

    def outcome(logits: Array) -> Array:
        """p_g, D* and V(D*,G)."""
        q = np.exp(log_softmax(logits))
        d = _best_discriminator(p, q)
        return np.concatenate([q, d, [-minus_value(torch.tensor(logits)).item()]])

    def claim(d: float = 0.5, value: float = -LOG_4) -> Array:
        return np.concatenate([p, np.full(4, d), [value]])

    first = "p_g, D* and V, where max_D V is least"
    return Lines(
        {first: outcome(_maximise(minus_value, start)), "= p_data, ½ and -log 4": claim()},
        [
            Mutant("D* = ½ and V = -log 4 for any G", {first: outcome(start)}, erratum="E003-07"),
            Mutant("D* = 1", claim(d=1.0)),
            Mutant("V = 0", claim(value=0.0)),
            Mutant("V = -log 2", claim(value=-np.log(2))),
        ],
    )


@verifies(
    "gan-saturating-gradient",
    r"""\begin{aligned}
\frac{\partial}{\partial\ell}\log(1-\sigma(\ell))
&=\frac{\partial\log(1-D)}{\partial D}\cdot\frac{\partial\sigma(\ell)}{\partial\ell},\qquad D=\sigma(\ell)\\
&=-\frac1{1-D}\cdot D(1-D)\\
&=-D=-\sigma(\ell)
\end{aligned}""",
    kind="identity",
    route="autograd",
    tolerance=1e-9,
    reason="1 - σ(ℓ) loses up to five digits where ℓ = 12",
)
def gan_saturating_gradient(rng: np.random.Generator) -> Lines:
    logits = np.linspace(-12, 12, 241) + rng.uniform(-0.05, 0.05)
    d = expit(logits)
    outer = _gradient(lambda d: (1 - d).log().sum(), d)
    line = "= -1/(1-D) · D(1-D)"
    return Lines(
        {
            "∂ log(1-σ(ℓ))/∂ℓ at 241 logits, by autograd": _gradient(lambda a: (1 - a.sigmoid()).log().sum(), logits),
            "= ∂ log(1-D)/∂D · ∂σ/∂ℓ, each by autograd": outer * _gradient(lambda a: a.sigmoid().sum(), logits),
            line: -1 / (1 - d) * d * (1 - d),
            "= -σ(ℓ)": -d,
        },
        [
            Mutant("as small as the loss itself", np.log(1 - d), erratum="E003-09"),
            # The slope in D is -1 at D = 0; it is the sigmoid that is flat there.
            Mutant("a slope in D that is 0 at D = 0", {line: -d / (1 - d) * d * (1 - d)}, erratum="E003-09"),
            Mutant("the sign", d),
            Mutant("1-σ(ℓ)", d - 1),
        ],
    )


@verifies(
    "gan-nonsaturating",
    r"\min_\theta-\mathbb E_{p(z)}\left[\log D_\psi(G_\theta(z))\right],\qquad"
    r"\frac{\partial}{\partial\ell}\left(-\log\sigma(\ell)\right)=\sigma(\ell)-1",
    kind="identity",
    route="autograd",
    **DIFFERENCES,
)
def gan_nonsaturating(rng: np.random.Generator) -> Lines:
    # Five z with weights, G(z) = Az + b in the plane, a quadratic logit; θ = (A, b) is differentiated.
    z, prior, theta = rng.normal(size=(5, 2)), _simplex(rng, 5), rng.normal(size=6)
    bend, tilt = rng.normal(size=(2, 2)), rng.normal(size=2)

    def logit(theta: torch.Tensor) -> torch.Tensor:
        x = torch.tensor(z) @ theta[:4].reshape(2, 2).T + theta[4:]
        return (x @ torch.tensor(bend) * x).sum(1) / 4 + x @ torch.tensor(tilt)

    def mean(theta: Array, function: Callable[[torch.Tensor], torch.Tensor]) -> float:
        return prior @ function(logit(torch.tensor(theta))).numpy()

    d = expit(logit(torch.tensor(theta)).numpy())
    slopes = torch.autograd.functional.jacobian(logit, torch.tensor(theta)).numpy()
    # What a library computes: the cross-entropy of generated points with the label of real ones.
    flipped = _gradient(
        lambda t: F.binary_cross_entropy_with_logits(
            logit(t), torch.ones(5).double(), weight=torch.tensor(prior), reduction="sum"
        ),
        theta,
    )
    return Lines(
        {
            "∇_θ of -E_z[log D(G(z))], by differences": _differences(
                lambda t: mean(t, lambda a: -a.sigmoid().log()), theta
            ),
            "= ∇_θ of the cross-entropy with the label 1": flipped,
            "= E_z[(D-1) ∇_θ ℓ(G(z))]": (prior * (d - 1)) @ slopes,
        },
        [
            Mutant("-D, the slope of log(1-D)", (prior * -d) @ slopes),
            Mutant("the sign: the loss maximised", (prior * (1 - d)) @ slopes),
            Mutant("D(D-1): the sigmoid's slope once more", (prior * d * (d - 1)) @ slopes),
            Mutant("-1/D, the slope in D", (prior * -1 / d) @ slopes),
        ],
    )


@dataclass(frozen=True)
class Game:
    """The data and a generator's law p_g, on nodes x_i with ∫ f(x) dx ≈ Σ_i weight_i f(x_i)."""

    weight: torch.Tensor
    log_data: torch.Tensor
    log_model: Callable[[torch.Tensor], torch.Tensor]
    theta: Array

    def probabilities(self, theta: Array) -> tuple[Array, Array]:
        """p_data and p_g, each times the weights."""
        logs = self.log_data, self.log_model(torch.tensor(theta))
        p_data, p_g = ((self.weight * log.exp()).numpy() for log in logs)
        return p_data, p_g

    def gradient(self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], frozen: bool = True) -> Array:
        """∇_θ E_{p_g}[f(p_data(x), p_g(x))], by autograd, with f held fixed or differentiated as well."""

        def mean(theta: torch.Tensor) -> torch.Tensor:
            log_model = self.log_model(theta)
            p, q = self.log_data.exp(), (log_model.detach() if frozen else log_model).exp()
            return (self.weight * log_model.exp() * function(p, q)).sum()

        return _gradient(mean, self.theta)

    def differences(self, divergence: Callable[[Array, Array], float]) -> Array:
        return _differences(lambda t: divergence(*self.probabilities(t)), self.theta)


def games() -> list[Game]:
    """Tables under a softmax, and a Gaussian in the plane against a mixture of two."""
    made = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        log_table = torch.tensor(_simplex(rng, 5)).log()
        made.append(Game(torch.ones(5).double(), log_table, lambda t: t.log_softmax(0), rng.normal(size=5)))
        nodes, weight = plane(9.0, 90)
        pdf = norm.pdf(nodes[:, None], rng.normal(size=(2, 2)), 0.7).prod(2) @ [0.3, 0.7]
        points = torch.tensor(nodes)

        def gaussian(t: torch.Tensor, points: torch.Tensor = points) -> torch.Tensor:
            return Normal(t[:2], t[2].exp()).log_prob(points).sum(1)

        theta = np.append(rng.normal(size=2) / 2, rng.uniform(-0.2, 0.1))
        made.append(Game(torch.tensor(weight), torch.tensor(pdf).log(), gaussian, theta))
    return made


@verifies(
    "gan-saturating-divergence",
    r"""\begin{aligned}
\nabla_\theta\,\mathbb E_{p_g}\left[\log(1-D^*)\right]\Big|_{D^*\text{ fixed}}
&=\nabla_\theta\max_DV(D,G_\theta)\\
&=2\,\nabla_\theta\,\mathrm{JSD}(p_{\rm data}\Vert p_g)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    instances=games,
    **DIFFERENCES,
)
def gan_saturating_divergence(game: Game) -> Lines:
    def log_fake(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return (q / (p + q)).log()

    def best_value(p: Array, q: Array) -> float:
        return xlogy(p, p / (p + q)).sum() + xlogy(q, q / (p + q)).sum()

    jsd = game.differences(_jsd)
    first = "∇ E_{p_g}[log(1-D*)], D* fixed"
    return Lines(
        {first: game.gradient(log_fake), "= ∇ V(D*,G)": game.differences(best_value), "= 2 ∇JSD": 2 * jsd},
        [
            Mutant("D* differentiated as well", {first: game.gradient(log_fake, frozen=False)}),
            Mutant("JSD once", jsd),
            Mutant("2 ∇KL(p_g‖p_data)", 2 * game.differences(lambda p, q: entropy(q, p))),
            Mutant("the sign", -2 * jsd),
        ],
    )


@verifies(
    "gan-nonsaturating-divergence",
    r"""\begin{aligned}
\nabla_\theta\,\mathbb E_{p_g}\left[-\log D^*\right]\Big|_{D^*\text{ fixed}}
&=\nabla_\theta\,\mathbb E_{p_g}\left[\log\frac{1-D^*}{D^*}-\log(1-D^*)\right]\Big|_{D^*\text{ fixed}}\\
&=\nabla_\theta\left[\mathrm{KL}(p_g\Vert p_{\rm data})-2\,\mathrm{JSD}(p_{\rm data}\Vert p_g)\right]
\end{aligned}""",
    kind="identity",
    route="quadrature",
    instances=games,
    **DIFFERENCES,
)
def gan_nonsaturating_divergence(game: Game) -> Lines:
    def loss(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return -(p / (p + q)).log()

    kl, jsd = game.differences(lambda p, q: entropy(q, p)), game.differences(_jsd)
    forward = game.differences(entropy)
    ratio = game.gradient(lambda p, q: (q / p).log())
    first = "∇ E_{p_g}[-log D*], D* fixed"
    return Lines(
        {
            first: game.gradient(loss),
            "= ∇ E_{p_g}[log (1-D*)/D*] - ∇ E_{p_g}[log(1-D*)], D* fixed": ratio
            - game.gradient(lambda p, q: (q / (p + q)).log()),
            "= ∇ KL(p_g‖p_data) - 2 ∇JSD": kl - 2 * jsd,
        },
        [
            Mutant("KL the other way round", forward - 2 * jsd),
            Mutant("JSD once", kl - jsd),
            Mutant("JSD added", kl + 2 * jsd),
            Mutant("D* differentiated as well", {first: game.gradient(loss, frozen=False)}),
        ],
    )


@verifies(
    "gan-disjoint",
    r"""\begin{aligned}
&p_{\rm data}(x)\,p_g(x)=0\text{ for all }x\\
&\quad\Longrightarrow\quad\mathrm{JSD}(p_{\rm data}\Vert p_g)=\log2,\quad
\nabla_\theta\,\mathrm{JSD}(p_{\rm data}\Vert p_g)=0
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **DIFFERENCES,
)
def gan_disjoint(rng: np.random.Generator) -> Lines:
    # The data live on states 0 to 2, the generator on states 3 to 6.
    data, logits = _simplex(rng, 3), rng.normal(size=4)
    p = np.append(data, np.zeros(4))

    def model(t: Array) -> Array:
        return np.append(np.zeros(3), np.exp(log_softmax(t)))

    def overlapping(t: Array) -> float:
        return _jsd(p, (p + model(t)) / 2)

    def both(value: Callable[[Array], float]) -> Array:
        return np.append(value(logits), _differences(value, logits))

    q = model(logits)
    # On each support one of the two densities is half of m's double.
    line, first = "= ½KL(p_data‖p_data/2) + ½KL(p_g‖p_g/2), and 0", "JSD and its gradient"
    by_hand = 0.5 * sum(a * np.log(a / (a / 2)) for a in np.append(data, q[3:]))
    return Lines(
        {
            first: both(lambda t: _jsd(p, model(t))),
            line: np.append(by_hand, np.zeros(4)),
            "= log 2, and 0": np.append(np.log(2), np.zeros(4)),
        },
        [
            Mutant("log 4", np.append(LOG_4, np.zeros(4))),
            Mutant("half the generator's mass on the data", {first: both(overlapping)}),
            Mutant("0, the value of V(D*,G)", np.zeros(5)),
        ],
    )


@verifies(
    "gan-best-response",
    r"""\begin{aligned}
&\min_G\mathbb E_{p(z)}\left[\log(1-D(G(z)))\right]=\min_x\log(1-D(x))\\
&\quad\text{at }G^*(z)=\arg\max_xD(x)\text{ for all }z
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def gan_best_response(rng: np.random.Generator) -> Lines:
    d, prior, data, maps = rng.uniform(0.1, 0.9, 4), _simplex(rng, 4), _simplex(rng, 4), _all_maps(4, 4)
    loss = np.log(1 - d)
    values = loss[maps] @ prior
    best = maps[values.argmin()]
    last = "= min_x log(1-D(x)), and its x for every z"
    return Lines(
        {
            "the best of all 256 maps G, and its four values": np.append(values.min(), best),
            last: np.append(np.log1p(-d.max()), np.full(4, d.argmax())),
        },
        [
            Mutant("p_g = p_data as the answer to a fixed D", np.append(data @ loss, best)),
            Mutant("a generator that spreads", np.append(loss[np.arange(4)] @ prior, np.arange(4))),
            Mutant("the x that D trusts least", np.append(loss.max(), np.full(4, d.argmin()))),
        ],
    )


@verifies(
    "gan-max-min",
    r"\min_GV(D,G)\le\max_D\min_GV(D,G)=-\log4\le\min_G\max_DV(D,G)",
    kind="inequality",
    route="enumeration",
    **NUMERIC,
)
def gan_max_min(rng: np.random.Generator) -> Lines:
    data, prior, maps = _simplex(rng, 3), _simplex(rng, 4), _all_maps(3, 4)
    laws = np.array([np.bincount(g, prior, minlength=3) for g in maps])

    def worst(logits: Array) -> float:
        """min_G V(D,G)."""
        return data @ np.log(expit(logits)) + (laws @ np.log(expit(-logits))).min()

    # Maximise E_data[log D] + t, where no G has E[log(1-D(G(z)))] below t.
    constraint = {"type": "ineq", "fun": lambda v: laws @ np.log(expit(-v[:3])) - v[3]}
    start = rng.normal(size=3)
    found = optimize.minimize(
        lambda v: -data @ np.log(expit(v[:3])) - v[3],
        np.append(start, -3.0),
        constraints=constraint,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    ).x
    other_order = min(_best_value(data, law) for law in laws)
    line, other = "≤ max_D min_G V(D,G)", "≤ min_G max_D V(D,G)"
    return Lines(
        {
            "min_G V(D,G) of a random D": worst(start),
            line: worst(found[:3]),
            "= -log 4": -LOG_4,
            other: other_order,
            "= min_G of -log 4 + 2 JSD": min(2 * _jsd(data, law) - LOG_4 for law in laws),
        },
        [
            Mutant("the two orders exchanged", {line: other_order, other: worst(found[:3])}),
            Mutant("max_D min_G V = 0", {line: 0.0}),
            Mutant("any D for the best", {line: worst(start)}),
        ],
    )


def _hinge_value(p: Array, q: Array, logit: Array, margin: float = 1.0) -> float:
    return p @ np.minimum(0, logit - margin) + q @ np.minimum(0, -margin - logit)


@verifies(
    "gan-hinge",
    r"""\begin{aligned}
V_D(\ell)&=\mathbb E_{p_{\rm data}}\left[\min(0,-1+\ell(x))\right]+\mathbb E_{p_g}\left[\min(0,-1-\ell(x))\right]\\
\max_\ell V_D(\ell)&=V_D(\ell^*),\qquad\ell^*(x)=\mathrm{sign}(p_{\rm data}(x)-p_g(x))\\
&=-2\int\min(p_{\rm data}(x),p_g(x))\,dx\\
&=2\,\mathrm{TV}(p_{\rm data},p_g)-2,\qquad\mathrm{TV}(p,q)=\frac12\int|p(x)-q(x)|\,dx
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **PROGRAMME,
)
def gan_hinge(rng: np.random.Generator) -> Lines:
    states = 6
    p, q = _simplex(rng, states, 2)
    # A linear programme in (ℓ, u, v): maximise p·u + q·v with u, v ≤ 0, u ≤ ℓ - 1 and v ≤ -1 - ℓ.
    eye, zero = np.eye(states), np.zeros((states, states))
    bounds = [(None, None)] * states + [(None, 0)] * 2 * states
    solved = optimize.linprog(
        -np.concatenate([np.zeros(states), p, q]),
        A_ub=np.block([[-eye, eye, zero], [eye, zero, eye]]),
        b_ub=np.full(2 * states, -1.0),
        bounds=bounds,
    )
    total_variation = np.abs(p - q).sum() / 2
    random = 3 * rng.normal(size=states)

    def hinge(x: Array) -> Array:
        return F.relu(torch.tensor(x)).numpy()

    line = "= V_D(ℓ*), ℓ* = sign(p_data - p_g)"
    return Lines(
        {
            "V_D of a random ℓ": _hinge_value(p, q, random),
            "= minus the two hinges as a library has them": -(p @ hinge(1 - random) + q @ hinge(1 + random)),
            "≤ max_ℓ V_D(ℓ), by linear programming": -solved.fun,
            "= V_D at the programme's ℓ": _hinge_value(p, q, solved.x[:states]),
            line: _hinge_value(p, q, np.sign(p - q)),
            "= -2 Σ min(p_data, p_g)": -2 * np.minimum(p, q).sum(),
            "= 2 TV - 2": 2 * total_variation - 2,
        },
        [
            Mutant("TV without ½", 4 * total_variation - 2),
            Mutant("the log-ratio, the optimum of the original loss", {line: _hinge_value(p, q, np.log(p / q))}),
            Mutant("sign(p_g - p_data)", {line: _hinge_value(p, q, np.sign(q - p))}),
            Mutant("no margin", {line: _hinge_value(p, q, np.sign(p - q), margin=0.0)}),
            Mutant("2 TV", 2 * total_variation),
        ],
    )


@verifies(
    "gan-hinge-divergence",
    r"\nabla_\theta\left(-\mathbb E_{p_g}\left[\ell^*(x)\right]\right)\Big|_{\ell^*\text{ fixed}}"
    r"=2\,\nabla_\theta\,\mathrm{TV}(p_{\rm data},p_g)",
    kind="identity",
    route="quadrature",
    instances=games,
    tolerance=1e-7,
    reason="central differences of a sum of absolute values, some of which may change sign within the step",
)
def gan_hinge_divergence(game: Game) -> Lines:
    total_variation = game.differences(lambda p, q: np.abs(p - q).sum() / 2)
    return Lines(
        {
            "∇ of -E_{p_g}[ℓ*], ℓ* fixed": game.gradient(lambda p, q: -(p - q).sign()),
            "= 2 ∇TV": 2 * total_variation,
        },
        [
            Mutant("TV once", total_variation),
            Mutant("the sign", -2 * total_variation),
            Mutant("2 ∇JSD", 2 * game.differences(_jsd)),
        ],
    )


def _transport(cost: Array, p: Array, q: Array) -> tuple[float, Array]:
    """The cheapest coupling of p and q, and what it costs."""
    rows, columns = np.kron(np.eye(len(p)), np.ones(len(q))), np.kron(np.ones(len(p)), np.eye(len(q)))
    solved = optimize.linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([p, q]))
    return solved.fun, solved.x.reshape(cost.shape)


def _critic(points: Array, charge: Array, slope: float = 1.0) -> tuple[float, Array]:
    """The f with |f(x) - f(y)| ≤ slope·‖x-y‖ that maximises Σ_i charge_i f(x_i), and that maximum."""
    i, j = np.array(list(itertools.permutations(range(len(points)), 2))).T
    step = np.zeros((len(i), len(points)))
    step[np.arange(len(i)), i], step[np.arange(len(i)), j] = 1, -1
    bounds = [(0, 0)] + [(None, None)] * (len(points) - 1)
    reach = slope * np.linalg.norm(points[i] - points[j], axis=1)
    solved = optimize.linprog(-charge, A_ub=step, b_ub=reach, bounds=bounds)
    return -solved.fun, solved.x


def _transport_problem(rng: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Five points x with weights p and six points y with weights q, in the plane."""
    return rng.normal(size=(5, 2)), rng.normal(size=(6, 2)) + 0.5, _simplex(rng, 5), _simplex(rng, 6)


@verifies(
    "wasserstein-dual",
    r"""\begin{aligned}
W_1(p,q)&=\min_{\gamma\in\Pi(p,q)}\mathbb E_{(x,y)\sim\gamma}\left[\Vert x-y\Vert_2\right]\\
&=\max_{\Vert f\Vert_{\rm Lip}\le1}\left\{\mathbb E_{p(x)}\left[f(x)\right]-\mathbb E_{q(y)}\left[f(y)\right]\right\}
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **PROGRAMME,
)
def wasserstein_dual(rng: np.random.Generator) -> Lines:
    x, y, p, q = _transport_problem(rng)
    # The same in the plane and on the line, where W_1 is the area between the distribution functions.
    spaces = [(x, y), (x[:, :1], y[:, :1])]
    charge = np.concatenate([p, -q])
    everything = np.concatenate([x[:, 0], y[:, 0]])
    order = everything.argsort()
    area = np.abs(np.cumsum(charge[order])[:-1]) @ np.diff(everything[order])

    def primal(power: int = 1) -> list[float]:
        return [_transport(cdist(a, b) ** power, p, q)[0] for a, b in spaces]

    def dual(slope: float = 1.0, charge: Array = charge) -> list[float]:
        return [_critic(np.concatenate(pair), charge, slope)[0] for pair in spaces]

    least, independent = "= min over couplings", [p @ cdist(a, b) @ q for a, b in spaces]
    return Lines(
        {
            "W_1 in the plane by SciPy, and on the line as ∫|F_p - F_q|": [wasserstein_distance_nd(x, y, p, q), area],
            least: primal(),
            "= max over 1-Lipschitz f": dual(),
        },
        [
            Mutant("x and y independent", {least: independent}),
            Mutant("the squared distance", {least: primal(power=2)}),
            Mutant("slope up to 2", dual(slope=2.0)),
            Mutant("|f| ≤ 1 for the slope", [np.abs(charge).sum()] * 2),
            Mutant("every point the same weight", dual(charge=np.repeat([1 / 5, -1 / 6], [5, 6]))),
        ],
    )


@verifies(
    "wasserstein-translation",
    r"p_g(x)=p_{\rm data}(x-\delta)\quad\Longrightarrow\quad W_1(p_{\rm data},p_g)=\Vert\delta\Vert_2",
    kind="identity",
    route="enumeration",
    **PROGRAMME,
)
def wasserstein_translation(rng: np.random.Generator) -> Lines:
    x, _, p, _ = _transport_problem(rng)
    shifts = np.outer([0.1, 1.0, 10.0], rng.normal(size=2))
    # One coupling bounds W_1 from above, one 1-Lipschitz f from below; they meet.
    shifted = [p @ np.linalg.norm(x - (x + delta), axis=1) for delta in shifts]
    linear = [
        p @ (x + delta) @ delta / np.linalg.norm(delta) - p @ x @ delta / np.linalg.norm(delta) for delta in shifts
    ]
    length = np.linalg.norm(shifts, axis=1)
    return Lines(
        {
            "W_1 for three δ, by linear programming": [_transport(cdist(x, x + delta), p, p)[0] for delta in shifts],
            "= E‖x-y‖, where y = x + δ": shifted,
            "= E[f(y)] - E[f(x)], f(x) = δᵀx/‖δ‖": linear,
            "= ‖δ‖": length,
        },
        [
            Mutant("log 2, as for JSD", np.full(3, np.log(2))),
            Mutant("‖δ‖²", length**2),
            Mutant("the sum of |δ_i|", np.abs(shifts).sum(1)),
        ],
    )


@verifies(
    "wasserstein-slope",
    r"\nabla f^*(\hat x)=\frac{x-y}{\Vert x-y\Vert_2},\qquad"
    r"\hat x=\epsilon x+(1-\epsilon)\,y,\quad(x,y)\sim\gamma^*,\quad0<\epsilon<1",
    kind="identity",
    route="autograd",
    **PROGRAMME,
)
def wasserstein_slope(rng: np.random.Generator) -> Lines:
    x, y, p, q = _transport_problem(rng)
    plan, points = _transport(cdist(x, y), p, q)[1], np.concatenate([x, y])
    f = _critic(points, np.concatenate([p, -q]))[1]
    i, j = np.nonzero(plan > 1e-6)
    epsilon = rng.uniform(0.1, 0.9, size=(len(i), 1))

    def extended(at: torch.Tensor) -> torch.Tensor:
        """f between the points: the largest 1-Lipschitz function with f's values at them."""
        distances = torch.linalg.vector_norm(at[:, None] - torch.tensor(points), dim=2)
        return (torch.tensor(f) + distances).min(1).values.sum()

    def slope(first: Array, second: Array) -> Array:
        return _gradient(extended, epsilon * first + (1 - epsilon) * second)

    def unit(v: Array) -> Array:
        return v / np.linalg.norm(v, axis=1, keepdims=True)

    gradient, direction = slope(x[i], y[j]), x[i] - y[j]
    norms, last = np.linalg.norm(gradient, axis=1, keepdims=True), "= (x-y)/‖x-y‖, and 1"
    # Pairs that the plan does not couple.
    k = (j + 1) % len(y)
    return Lines(
        {
            "∇f* at x̂ for all coupled pairs, and its norm": np.hstack([gradient, norms]),
            last: np.hstack([unit(direction), np.ones_like(norms)]),
        },
        [
            Mutant("the sign", np.hstack([-unit(direction), np.ones_like(norms)])),
            Mutant("x-y without its norm below", np.hstack([direction, np.ones_like(norms)])),
            Mutant("any pair for the coupled ones", np.hstack([unit(x[i] - y[k]), np.ones_like(norms)])),
            Mutant("zero gradient between the points", np.zeros((len(i), 3))),
        ],
    )


@verifies(
    "gradient-penalty",
    r"""\begin{aligned}
R(\psi)&=\lambda\,\mathbb E\left[\left(\Vert\nabla_{\hat x}\,\ell_\psi(\hat x)\Vert_2-1\right)^2\right]\\
&\quad\text{with }\hat x=\epsilon x+(1-\epsilon)\,G_\theta(z),\quad\epsilon\sim U[0,1]
\end{aligned}""",
    kind="identity",
    route="quadrature",
    tolerance=1e-9,
    reason="Gauss-Legendre quadrature with 200 nodes of a smooth function",
)
def gradient_penalty(rng: np.random.Generator) -> Lines:
    # Four pairs of points in three dimensions, and the critic ½xᵀAx + bᵀx, whose gradient is Ax + b.
    n, dim, strength = 4, 3, 10.0
    real, fake, b = rng.normal(size=(n, dim)), rng.normal(size=(n, dim)) + 1, rng.normal(size=dim)
    square = rng.normal(size=(dim, dim))
    matrix = (square + square.T) / 2

    def critic(x: torch.Tensor) -> torch.Tensor:
        return (x @ torch.tensor(matrix) * x).sum(1) / 2 + x @ torch.tensor(b)

    nodes, weights = np.polynomial.legendre.leggauss(200)
    epsilon, weights = (nodes + 1) / 2, weights / 2
    mixed = epsilon[:, None, None] * real + (1 - epsilon[:, None, None]) * fake
    slopes = _gradient(lambda x: critic(x).sum(), mixed.reshape(-1, dim)).reshape(-1, n, dim)
    norms = np.linalg.norm(slopes, axis=2)

    def penalty(norms: Array) -> float:
        return strength * weights @ ((norms - 1) ** 2).mean(1)

    def closed_form(u: Array, v: Array) -> float:
        """∫ (‖v + ε(u-v)‖ - 1)² dε = ∫ (aε² + 2bε + c) - 2 √(aε² + 2bε + c) + 1 dε."""
        w = u - v
        a, b, c = w @ w, w @ v, v @ v
        offset, square = b / a, c / a - (b / a) ** 2

        def antiderivative(t: float) -> float:
            return (t * np.sqrt(t**2 + square) + square * np.arcsinh(t / np.sqrt(square))) / 2

        root = np.sqrt(a) * (antiderivative(1 + offset) - antiderivative(offset))
        return a / 3 + b + c - 2 * root + 1

    exact = [closed_form(matrix @ x + b, matrix @ y + b) for x, y in zip(real, fake, strict=True)]
    at_data = np.linalg.norm(real @ matrix + b, axis=1)
    line = "= λ E[(‖∇ℓ(x̂)‖-1)²], by autograd at quadrature nodes"
    return Lines(
        {"R, closed form for a quadratic critic": strength * np.mean(exact), line: penalty(norms)},
        [
            Mutant("the norm squared inside", {line: penalty(norms**2)}),
            Mutant("one norm for the whole batch", {line: penalty(np.linalg.norm(norms, axis=1, keepdims=True))}),
            Mutant("the gradient of the batch's mean", {line: penalty(norms / n)}),
            Mutant("at the data only", {line: strength * np.mean((at_data - 1) ** 2)}),
            Mutant("without -1", {line: strength * weights @ (norms**2).mean(1)}),
        ],
    )


@verifies(
    "spectral-norm",
    r"\bar W=\frac W{\sigma(W)},\qquad\sigma(W)=\max_{h\ne0}\frac{\Vert Wh\Vert_2}{\Vert h\Vert_2},"
    r"\qquad\sigma(\bar W)=1",
    kind="identity",
    route="autograd",
    tolerance=1e-8,
    reason="a maximum found numerically to a gradient of 1e-9, and a power iteration to rounding",
)
def spectral_norm(rng: np.random.Generator) -> Lines:
    w = rng.normal(size=(4, 4))

    def largest_stretch(w: Array) -> float:
        # The square settles the length of h, which the ratio leaves open, and not its direction.
        h = _maximise(lambda h: (torch.tensor(w) @ h).norm() - h.square().sum() / 2, rng.normal(size=4))
        return float(np.linalg.norm(w @ h) / np.linalg.norm(h))

    def power_iteration(w: Array, steps: int = 2000) -> float:
        v = np.ones(4)
        for _ in range(steps):
            u = w @ v / np.linalg.norm(w @ v)
            v = w.T @ u / np.linalg.norm(w.T @ u)
        return u @ w @ v

    sigma = linalg.svdvals(w)
    iterated, last = power_iteration(w), "= the largest singular value, and 1"
    return Lines(
        {
            "max ‖Wh‖/‖h‖ for W and W̄": [largest_stretch(w), largest_stretch(w / sigma[0])],
            "= by power iteration": [iterated, power_iteration(w / iterated)],
            last: [sigma[0], 1.0],
        },
        [
            Mutant("the Frobenius norm", [linalg.norm(w), 1.0]),
            Mutant("the largest eigenvalue", [np.abs(np.linalg.eigvals(w)).max(), 1.0]),
            Mutant("the sum of the singular values", [sigma.sum(), 1.0]),
            Mutant("the second singular value", [sigma[1], 1.0]),
            Mutant("one step of the iteration", {"= by power iteration": [power_iteration(w, 1), 1.0]}),
        ],
    )


@verifies(
    "spectral-lipschitz",
    r"|\ell(x)-\ell(y)|\le\prod_{k=1}^K\sigma(W_k)\,\Vert x-y\Vert_2",
    kind="inequality",
    route="closed form",
    **SMALL_SUMS,
)
def spectral_lipschitz(rng: np.random.Generator) -> Lines:
    # Layers whose strongest directions follow each other: there the bound is attained, without activations.
    size, widths = 4, (4, 4, 1)
    frames = [np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(3)]
    stretches = [np.sort(rng.uniform(0.5, 2.5, size))[::-1] for _ in widths]
    layers = [frames[k + 1] @ np.diag(stretches[k]) @ frames[k].T for k in range(2)]
    layers.append(stretches[2][0] * frames[2][:, :1].T)

    def logit(x: Array, slope: float) -> float:
        for k, w in enumerate(layers):
            x = w @ x
            if k < len(layers) - 1:
                x = np.where(x > 0, x, slope * x)
        return x[0]

    x = rng.normal(size=size)
    y = x - rng.uniform(0.5, 1.5) * frames[0][:, 0]
    distance = np.linalg.norm(x - y)
    norms = np.array([linalg.svdvals(w)[0] for w in layers])
    line = "≤ σ(W_1)σ(W_2)σ(W_3) ‖x-y‖"
    return Lines(
        {
            "|ℓ(x)-ℓ(y)| with leaky rectifiers": np.abs(logit(x, 0.2) - logit(y, 0.2)),
            line: norms.prod() * distance,
            "= |ℓ(x)-ℓ(y)| without them, along the strongest directions": np.abs(logit(x, 1.0) - logit(y, 1.0)),
        },
        [
            Mutant("the sum of the norms", {line: norms.sum() * distance}),
            Mutant("the largest of the norms", {line: norms.max() * distance}),
            Mutant("Frobenius norms", {line: np.prod([linalg.norm(w) for w in layers]) * distance}),
            Mutant("the distance squared", {line: norms.prod() * distance**2}),
        ],
    )


@verifies(
    "feature-matching",
    r"""\begin{aligned}
&\left\Vert\mathbb E_{p_{\rm data}}\left[h(x)\right]-\mathbb E_{p(z)}\left[h(G(z))\right]\right\Vert_2^2\\
&\quad=\mathbb E\left[k(x,x^\prime)\right]-2\,\mathbb E\left[k(x,y)\right]+\mathbb E\left[k(y,y^\prime)\right]
=\mathrm{MMD}^2(p_{\rm data},p_g)\\
&\quad\text{with }k(x,y)=h(x)^\top h(y),\quad x,x^\prime\sim p_{\rm data},\quad y,y^\prime\sim p_g
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def feature_matching(rng: np.random.Generator) -> Lines:
    data, prior, g = _simplex(rng, 5), _simplex(rng, 4), rng.integers(5, size=4)
    h = rng.normal(size=(5, 3))
    kernel = h @ h.T

    def mmd(cross: float = 2.0, kernel: Array = kernel) -> float:
        same = sum(data[i] * data[j] * kernel[i, j] for i in range(5) for j in range(5))
        mixed = sum(data[i] * prior[z] * kernel[i, g[z]] for i in range(5) for z in range(4))
        generated = sum(prior[z] * prior[y] * kernel[g[z], g[y]] for z in range(4) for y in range(4))
        return same - cross * mixed + generated

    own = (data * np.diag(kernel)).sum() + (prior * np.diag(kernel)[g]).sum()
    crossed = data @ kernel[:, g] @ prior
    return Lines(
        {
            "‖E_data[h(x)] - E_z[h(G(z))]‖²": np.square(data @ h - prior @ h[g]).sum(),
            "= E[k(x,x')] - 2E[k(x,y)] + E[k(y,y')], over all pairs": mmd(),
        },
        [
            Mutant("the mean of the squared distances", own - 2 * crossed),
            Mutant("the cross term once", mmd(cross=1.0)),
            Mutant("the cross term added", mmd(cross=-2.0)),
            Mutant("the norm without its square", np.sqrt(mmd())),
            Mutant("another kernel", mmd(kernel=np.exp(-cdist(h, h, "sqeuclidean") / 2))),
        ],
    )


@verifies(
    "feature-matching-collapse",
    r"""\begin{aligned}
&G(z)=x_0\text{ for all }z,\quad h(x_0)=\mathbb E_{p_{\rm data}}\left[h(x)\right]\\
&\quad\Longrightarrow\quad
\left\Vert\mathbb E_{p_{\rm data}}\left[h(x)\right]-\mathbb E_{p(z)}\left[h(G(z))\right]\right\Vert_2^2=0
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def feature_matching_collapse(rng: np.random.Generator) -> Lines:
    # Six data points in four dimensions, two features tanh(Wx + b). Any mean of them is the feature of some x_0.
    x, data, prior = rng.normal(size=(6, 4)), _simplex(rng, 6), _simplex(rng, 5)
    w, b = rng.normal(size=(2, 4)), rng.normal(size=2)

    def h(x: Array) -> Array:
        return np.tanh(x @ w.T + b)

    def loss(generated: Array) -> float:
        return np.square(data @ h(x) - prior @ h(generated)).sum()

    target = data @ h(x)
    x0 = np.linalg.pinv(w) @ (np.arctanh(target) - b)
    first = "the loss of a generator with a single value x_0"
    spread = data @ np.square(h(x) - h(x0)).sum(1)
    return Lines(
        {first: loss(np.tile(x0, (5, 1))), "= 0": 0.0},
        [
            Mutant("a collapsed generator pays E‖h(x) - h(x_0)‖²", spread, erratum="E003-10"),
            Mutant("x_0 = the mean of the data", {first: loss(np.tile(data @ x, (5, 1)))}),
            Mutant("x_0 = a data point", {first: loss(np.tile(x[0], (5, 1)))}),
        ],
    )


@verifies(
    "minibatch-discrimination",
    r"""\begin{aligned}
o(x_i)_b&=\sum_{j=1}^n\exp\Big(-\sum_c\left|M_{ibc}-M_{jbc}\right|\Big),\qquad M_{ibc}=\sum_ah_a(x_i)\,T_{abc}\\
1&\le o(x_i)_b\le n
\end{aligned}""",
    kind="inequality",
    route="enumeration",
    **SMALL_SUMS,
)
def minibatch_discrimination(rng: np.random.Generator) -> Lines:
    n, features, kernels, dim = 5, 4, 3, 2
    h, t = rng.normal(size=(n, features)) / 2, rng.normal(size=(features, kernels, dim)) / 2

    def vectorised(h: Array, exclude_self: bool = False, norm: int = 1) -> Array:
        m = np.einsum("ia,abc->ibc", h, t)
        distance = np.linalg.norm(m[:, None] - m[None], ord=norm, axis=3)
        return np.exp(-distance).sum(1) - exclude_self

    def by_loops() -> Array:
        o = np.zeros((n, kernels))
        for i, j, b in itertools.product(range(n), range(n), range(kernels)):
            o[i, b] += np.exp(-sum(abs((h[i] - h[j]) @ t[:, b, c]) for c in range(dim)))
        return o

    m = np.einsum("ia,abc->ibc", h, t)
    all_kernels = np.exp(-np.abs(m[:, None] - m[None]).sum((2, 3))).sum(1)
    collapsed, line, last = np.repeat(h[:1], n, axis=0), "= the same over arrays", "= o of n equal points"
    return Lines(
        {
            "1": np.ones((n, kernels)),
            "≤ o(x_i)_b, term by term": by_loops(),
            line: vectorised(h),
            "≤ n": np.full((n, kernels), n),
            last: vectorised(collapsed),
        },
        [
            Mutant("the Euclidean norm", {line: vectorised(h, norm=2)}),
            Mutant("the norm over all kernels at once", {line: np.repeat(all_kernels[:, None], kernels, axis=1)}),
            Mutant("the mean over j", {line: vectorised(h) / n}),
            Mutant("j ≠ i only", {last: vectorised(collapsed, exclude_self=True)}),
        ],
    )


@verifies(
    "label-smoothing",
    r"D^*(x)=\frac{a_{\rm real}\,p_{\rm data}(x)+a_{\rm fake}\,p_g(x)}{p_{\rm data}(x)+p_g(x)}",
    kind="identity",
    route="enumeration",
    **NUMERIC,
)
def label_smoothing(rng: np.random.Generator) -> Lines:
    p, q = _simplex(rng, 5, 2)
    real, fake = rng.uniform(0.8, 0.95), rng.uniform(0.05, 0.15)

    def minus_cross_entropy(logits: torch.Tensor, real: float, fake: float) -> torch.Tensor:
        def against(label: float) -> torch.Tensor:
            labels = torch.full((5,), label).double()
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")

        return -(torch.tensor(p) @ against(real) + torch.tensor(q) @ against(fake))

    def trained(real: float, fake: float) -> Array:
        return expit(_maximise(lambda logits: minus_cross_entropy(logits, real, fake), np.zeros(5)))

    def formula(real: float, fake: float) -> Array:
        return (real * p + fake * q) / (p + q)

    def both(d: Callable[[float, float], Array]) -> Array:
        return np.array([d(real, fake), d(real, 0.0)])

    return Lines(
        {
            "D of least cross-entropy, for 0 < a_fake and a_fake = 0": both(trained),
            "= (a_real p_data + a_fake p_g)/(p_data + p_g)": both(formula),
        },
        [
            Mutant("the labels exchanged", both(lambda real, fake: formula(fake, real))),
            Mutant("the targets not smoothed", both(lambda real, fake: formula(1.0, 0.0))),
            Mutant("the label of generated points left out", both(lambda real, fake: formula(real, 0.0))),
            Mutant("the labels below as well", both(lambda a, b: (a * p + b * q) / (a * p + q))),
        ],
    )


@verifies(
    "label-smoothing-gradient",
    r"""\begin{aligned}
\nabla_x\log D^*(x)&=\frac{(a_{\rm real}-a_{\rm fake})\,D_0(x)}{a_{\rm fake}+(a_{\rm real}-a_{\rm fake})\,D_0(x)}\;
\nabla_x\log D_0(x)\\
&\quad\text{with }D_0=\frac{p_{\rm data}}{p_{\rm data}+p_g}\\
&=\nabla_x\log D_0(x)\qquad\text{if }a_{\rm fake}=0\\
&\longrightarrow0\qquad\text{if }a_{\rm fake}>0\text{ and }D_0(x)\to0
\end{aligned}""",
    kind="identity",
    route="autograd",
    tolerance=1e-9,
    reason="float64 operations on numbers up to a hundred; the limit is taken at D_0 < 1e-13",
)
def label_smoothing_gradient(rng: np.random.Generator) -> Lines:
    # Data and generator are Gaussians in the plane; three points near the data and two where D_0 < 1e-13.
    centre, scales = rng.normal(size=2), (rng.uniform(0.8, 1.0), rng.uniform(1.2, 1.5))
    x = np.concatenate([rng.normal(size=(3, 2)), [[16.0, 0.0], [0.0, -16.0]]])
    labels, zero = [(0.9, 0.1), (0.9, 0.0)], np.zeros((2, 2))

    def densities(x: torch.Tensor) -> list[torch.Tensor]:
        means = torch.zeros(2).double(), torch.tensor(centre)
        return [Normal(m, s).log_prob(x).sum(-1).exp() for m, s in zip(means, scales, strict=True)]

    def by_autograd(real: float, fake: float) -> Array:
        def log_d(x: torch.Tensor) -> torch.Tensor:
            p, q = densities(x)
            return ((real * p + fake * q) / (p + q)).log().sum()

        return _gradient(log_d, x)

    # ∇ log D_0 = (1 - D_0) ∇(log p_data - log p_g), from the closed forms of the two Gaussians.
    log_ratio = norm.logpdf(x, 0, scales[0]).sum(1) - norm.logpdf(x, centre, scales[1]).sum(1)
    d0 = expit(log_ratio)[:, None]
    plain = (1 - d0) * ((x - centre) / scales[1] ** 2 - x / scales[0] ** 2)

    def formula(real: float, fake: float) -> Array:
        return (real - fake) * d0 / (fake + (real - fake) * d0) * plain

    both = [formula(*pair) for pair in labels]
    last, line = "= 0 where D_0 → 0, or ∇ log D_0 where a_fake = 0", "= the factor times ∇ log D_0"
    limit = [np.concatenate([both[0][:3], zero]), plain]
    return Lines(
        {
            "∇ log D* by autograd, a_fake = 0.1 and 0": [by_autograd(*pair) for pair in labels],
            line: both,
            "= the same, ∇ log D_0 where a_fake = 0": [both[0], plain],
            last: limit,
        },
        [
            Mutant("0.9 and 0.1: the gradient kept", {line: [plain, plain]}, erratum="E003-11"),
            Mutant("a_real left in the factor", {line: [both[0], 0.9 * plain]}),
            Mutant("a_real for a_real - a_fake", {line: [0.9 * d0 / (0.1 + 0.9 * d0) * plain, plain]}),
            Mutant("no gradient with one-sided labels either", {last: [limit[0], limit[0]]}),
        ],
    )


@verifies(
    "historical-averaging",
    r"R(\theta)=\lambda\Big\Vert\theta-\frac1t\sum_{i=1}^t\theta_i\Big\Vert_2^2,\qquad"
    r"\nabla_\theta R(\theta)=2\lambda\Big(\theta-\frac1t\sum_{i=1}^t\theta_i\Big),\quad\theta_i\text{ fixed}",
    kind="identity",
    route="autograd",
    **SMALL_SUMS,
)
def historical_averaging(rng: np.random.Generator) -> Lines:
    t, strength, theta = 7, rng.uniform(0.5, 2), rng.normal(size=3)
    past, slopes = rng.normal(size=(t, 3)), rng.normal(size=(t, 3))

    def penalty(theta: torch.Tensor) -> torch.Tensor:
        return strength * (theta - torch.tensor(past).mean(0)).square().sum()

    # As one keeps it in practice: no list of the past, only its mean.
    running = np.zeros(3)
    for i, parameters in enumerate(past, start=1):
        running = running + (parameters - running) / i

    def formula(factor: float = 2.0, average: Array = running) -> Array:
        return factor * strength * (theta - average)

    return Lines(
        {"∇R(θ), by autograd": _gradient(penalty, theta), "= 2λ(θ - running mean)": formula()},
        [
            Mutant("the average of past gradients", formula(average=slopes.mean(0)), erratum="E003-12"),
            Mutant("without the 2", formula(factor=1.0)),
            Mutant("the sum of the past, not its mean", formula(average=past.sum(0))),
            Mutant("differentiated through θ_t = θ", formula(factor=2 * (1 - 1 / t))),
        ],
    )


def _bilinear(rng: np.random.Generator) -> tuple[float, Array, Array]:
    """A step size, and θ and ψ in two dimensions."""
    return rng.uniform(0.1, 0.4), rng.normal(size=2), rng.normal(size=2)


def _play(eta: float, theta: Array, psi: Array, steps: int, alternate: bool) -> Array:
    """All iterates of gradient descent on θᵀψ for θ and ascent for ψ, by autograd: (steps + 1, 2, dim)."""
    path = [(theta, psi)]
    for _ in range(steps):
        descended = theta - eta * _gradient(torch.tensor(psi).dot, theta)
        seen = descended if alternate else theta
        psi = psi + eta * _gradient(torch.tensor(seen).dot, psi)
        theta = descended
        path.append((theta, psi))
    return np.array(path)


@verifies(
    "bilinear-game",
    r"""\begin{aligned}
V(\theta,\psi)=\theta^\top\psi:\qquad\theta_{t+1}&=\theta_t-\eta\,\psi_t,\qquad\psi_{t+1}=\psi_t+\eta\,\theta_t\\
\Longrightarrow\quad\Vert\theta_t\Vert^2+\Vert\psi_t\Vert^2&=(1+\eta^2)^t\left(\Vert\theta_0\Vert^2+\Vert\psi_0\Vert^2\right)
\end{aligned}""",
    kind="identity",
    route="autograd",
    tolerance=1e-8,
    reason="forty float64 steps that grow to about a thousand",
)
def bilinear_game(rng: np.random.Generator) -> Lines:
    (eta, theta, psi), steps = _bilinear(rng), 40

    def squares(path: Array) -> Array:
        return np.square(path).sum((1, 2))

    t, start = np.arange(steps + 1), np.square(theta).sum() + np.square(psi).sum()
    # The eigenvalues of one step, on θ and ψ of one coordinate, are 1 ± iη.
    modulus = np.abs(np.linalg.eigvals(np.array([[1, -eta], [eta, 1]])))[0]
    return Lines(
        {
            "‖θ_t‖² + ‖ψ_t‖², played": squares(_play(eta, theta, psi, steps, alternate=False)),
            "= |eigenvalue of a step|^2t times the start": modulus ** (2 * t) * start,
            "= (1+η²)^t times the start": (1 + eta**2) ** t * start,
        },
        [
            Mutant("a circle, as in continuous time", np.full(steps + 1, start)),
            Mutant("a spiral inwards, 1-η²", (1 - eta**2) ** t * start),
            Mutant("1+η² for the norm, not its square", (1 + eta**2) ** (2 * t) * start),
            Mutant("1+η", (1 + eta) ** t * start),
        ],
    )


@verifies(
    "bilinear-alternating",
    r"""\begin{aligned}
\theta_{t+1}&=\theta_t-\eta\,\psi_t,\qquad\psi_{t+1}=\psi_t+\eta\,\theta_{t+1}\\
\Longrightarrow\quad\Vert\theta_t\Vert^2+\Vert\psi_t\Vert^2-\eta\,\theta_t^\top\psi_t
&=\Vert\theta_0\Vert^2+\Vert\psi_0\Vert^2-\eta\,\theta_0^\top\psi_0
\end{aligned}""",
    kind="identity",
    route="autograd",
    **SMALL_SUMS,
)
def bilinear_alternating(rng: np.random.Generator) -> Lines:
    (eta, theta, psi), steps = _bilinear(rng), 40

    def invariant(path: Array, cross: float = -1.0) -> Array:
        return np.square(path).sum((1, 2)) + cross * eta * (path[:, 0] * path[:, 1]).sum(1)

    path = _play(eta, theta, psi, steps, alternate=True)
    # The same by powers of one step's matrix, whose determinant is 1.
    step = np.array([[1, -eta], [eta, 1 - eta**2]])
    powers = np.array([np.linalg.matrix_power(step, t) @ [theta, psi] for t in range(steps + 1)])
    first = "‖θ_t‖² + ‖ψ_t‖² - η θ_tᵀψ_t, played"
    return Lines(
        {
            first: invariant(path),
            "= the same by powers of a matrix": invariant(powers),
            "= its value at the start": np.full(steps + 1, theta @ theta + psi @ psi - eta * theta @ psi),
        },
        [
            Mutant("simultaneous steps", {first: invariant(_play(eta, theta, psi, steps, alternate=False))}),
            Mutant("a circle: no cross term", {first: invariant(path, cross=0.0)}),
            Mutant("the cross term added", {first: invariant(path, cross=1.0)}),
        ],
    )


@verifies(
    "bilinear-averaging",
    r"""\begin{aligned}
\theta_{t+1}&=\theta_t-\eta\left[\psi_t+2\lambda(\theta_t-\bar\theta_t)\right],\qquad
\bar\theta_t=\frac1t\sum_{i=1}^t\theta_i\\
\psi_{t+1}&=\psi_t+\eta\left[\theta_t-2\lambda(\psi_t-\bar\psi_t)\right],\qquad
\bar\psi_t=\frac1t\sum_{i=1}^t\psi_i\\
\Longrightarrow\quad\Vert\theta_t\Vert^2+\Vert\psi_t\Vert^2&\sim c\,t^{-2/(1+4\lambda^2)}
\qquad\text{for }\eta<\frac{4\lambda}{1+4\lambda^2}
\end{aligned}""",
    kind="identity",
    route="enumeration",
    tolerance=1e-4,
    reason="an exponent extrapolated from 8,000 steps, off by about 1/t²",
)
def bilinear_averaging(rng: np.random.Generator) -> Lines:
    (eta, theta, psi), strength, steps = _bilinear(rng), rng.uniform(0.4, 0.8), 8_000

    def exponent(squares: Sequence[float]) -> float:
        """The p of t^p: from t = 2,000, 4,000 and 8,000, the error in 1/t cancelled."""
        early, late = (np.log2(squares[t - 1] / squares[t // 2 - 1]) for t in (steps // 2, steps))
        return 2 * late - early

    def played(average_gradients: bool = False) -> list[float]:
        at, mean, squares, slopes = np.array([theta, psi]), np.array([theta, psi]), [], np.zeros((2, 2))
        for t in range(1, steps + 1):
            squares.append((at * at).sum())
            slope = np.array([at[1], -at[0]])  # of V for θ, of -V for ψ
            if average_gradients:
                slopes = slopes + (slope - slopes) / t
                at = at - eta * slopes
            else:
                at = at - eta * (slope + 2 * strength * (at - mean))
            mean = mean + (at - mean) / (t + 1)
        return squares

    # θ + iψ as one complex number turns the game into a recursion of two numbers. After t steps it is multiplied by
    # this matrix, and its slow eigenvalue is 1 + p/2t.
    turn, pull = 1 + 1j * eta - 2 * eta * strength, 2 * eta * strength

    def slow_eigenvalue(t: float) -> float:
        step = np.array([[turn, pull], [turn / (t + 1), (t + pull) / (t + 1)]])
        eigenvalues = np.linalg.eigvals(step)
        return np.abs(eigenvalues[np.abs(eigenvalues - 1).argmin()])

    def radius(eta: float) -> float:
        """Of one step on (θ, ψ), where the averages do not move."""
        step = np.array([[1 - 2 * eta * strength, -eta], [eta, 1 - 2 * eta * strength]])
        return np.abs(np.linalg.eigvals(step)).max()

    squares, at, mean = [], theta + 1j * psi, theta + 1j * psi
    for t in range(1, steps + 1):
        squares.append(float(np.vdot(at, at).real))
        at = turn * at + pull * mean
        mean = mean + (at - mean) / (t + 1)
    largest_step = optimize.brentq(lambda eta: radius(eta) - 1, 1e-3, 4)
    first = "the exponent as played, and the η beyond which a step expands"

    def formula(top: float = 2.0, square: float = 4.0, below: float = 4.0) -> list[float]:
        return [-top / (1 + square * strength**2), 4 * strength / (1 + below * strength**2)]

    return Lines(
        {
            first: [exponent(played()), largest_step],
            "= the same in complex numbers": [exponent(squares), largest_step],
            "= from the slow eigenvalue of a step": [2e6 * np.log(slow_eigenvalue(1e6)), largest_step],
            "= -2/(1+4λ²), and 4λ/(1+4λ²)": formula(),
        },
        [
            Mutant("past gradients averaged", {first: [exponent(played(True)), largest_step]}, erratum="E003-12"),
            Mutant("the exponent of the norm, not of its square", formula(top=1.0)),
            Mutant("λ² for 4λ²", formula(square=1.0)),
            Mutant("any η below 4λ", formula(below=0.0)),
        ],
    )


@verifies(
    "virtual-batch-norm",
    r"""\begin{aligned}
\hat x&=\frac{x-\mu_v}{\sqrt{\sigma_v^2+\varepsilon}}\\
\mu_v&=\frac{n\,\mu_{\rm ref}+x}{n+1}\\
\sigma_v^2&=\frac{n\,(\sigma_{\rm ref}^2+\mu_{\rm ref}^2)+x^2}{n+1}-\mu_v^2
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def virtual_batch_norm(rng: np.random.Generator) -> Lines:
    n, eps = 8, 1e-3
    reference, batch = 2 * rng.normal(size=(n, 3)) + 1, rng.normal(size=(4, 3))
    x = batch[0]

    def normalised(mean: Array, variance: Array) -> Array:
        """μ, σ² and x̂."""
        return np.array([mean, variance, (x - mean) / np.sqrt(variance + eps)])

    def by_formula(batch: Array, joined: float = n + 1.0) -> Array:
        """All of a minibatch at once; the row of its first element."""
        mean = (n * reference.mean(0) + batch) / joined
        variance = (n * (reference.var(0) + reference.mean(0) ** 2) + batch**2) / joined - mean**2
        return np.array([mean[0], variance[0], ((batch - mean) / np.sqrt(variance + eps))[0]])

    joined = np.vstack([reference, x])
    by_torch = F.batch_norm(torch.tensor(joined), None, None, training=True, eps=eps)[-1].numpy()
    other = np.vstack([x, 5 * rng.normal(size=(6, 3))])
    line = "= from μ_ref and σ_ref"
    return Lines(
        {
            "μ_v, σ_v² and x̂, from the reference batch and x": normalised(joined.mean(0), joined.var(0)),
            line: by_formula(batch),
            "= the same x in another minibatch": by_formula(other),
            "= batch normalisation by torch of the reference batch and x": [*by_formula(batch)[:2], by_torch],
        },
        [
            Mutant("the reference alone", {line: normalised(reference.mean(0), reference.var(0))}, erratum="E003-13"),
            Mutant("the minibatch's own statistics", {line: normalised(batch.mean(0), batch.var(0))}),
            Mutant("divided by n for n+1", {line: by_formula(batch, joined=n)}),
            Mutant("the unbiased variance", {line: normalised(joined.mean(0), joined.var(0, ddof=1))}),
        ],
    )


def _kernel_density(x: Array, centres: Array, h: float, power: float = 2.0, count: float | None = None) -> Array:
    """p̂(x) in the plane with a Gaussian kernel, whose peak is 1/2π."""
    kernels = np.exp(-cdist(x / h, centres / h, "sqeuclidean") / 2) / (2 * np.pi)
    return kernels.sum(1) / ((len(centres) if count is None else count) * h**power)


@verifies(
    "gan-kde-density",
    r"\hat p(x)=\frac1{n\,h^{d_x}}\sum_{i=1}^nK\left(\frac{x-x_i}h\right),\qquad\int\hat p(x)\,dx=1",
    kind="identity",
    route="quadrature",
    tolerance=1e-10,
    reason="a trapezoid sum over a plane that resolves the kernel",
)
def gan_kde_density(rng: np.random.Generator) -> Lines:
    centres, h, points, (nodes, weight) = (
        rng.normal(size=(8, 2)),
        rng.uniform(0.3, 0.6),
        rng.normal(size=(3, 2)),
        plane(8, 160),
    )

    def both(**slips: float) -> Array:
        """The integral, and p̂ at three points."""
        integral = weight @ _kernel_density(nodes, centres, h, **slips)
        return np.append(integral, _kernel_density(points, centres, h, **slips))

    mixture = np.mean([multivariate_normal(c, h**2 * np.eye(2)).pdf(points) for c in centres], axis=0)
    return Lines(
        {"1, and a mixture of n Gaussians by SciPy": np.append(1.0, mixture), "= ∫p̂(x) dx, and p̂(x)": both()},
        [
            Mutant("h for h^d", both(power=1.0)),
            Mutant("without 1/n", both(count=1.0)),
            Mutant("no power of h", both(power=0.0)),
            Mutant("n-1 for n", both(count=7.0)),
        ],
    )


@verifies(
    "kde-leave-one-out",
    r"""\begin{aligned}
h^*&=\arg\max_h\frac1n\sum_{i=1}^n\log\hat p_{-i}(x_i)\\
&\quad\text{with }\hat p_{-i}(x)=\frac1{(n-1)\,h^{d_x}}\sum_{j\ne i}K\left(\frac{x-x_j}h\right)
\end{aligned}""",
    kind="definition",
    route="enumeration",
    **SMALL_SUMS,
)
def kde_leave_one_out(rng: np.random.Generator) -> Lines:
    n, x, widths = 15, rng.normal(size=(15, 2)), np.array([0.2, 0.5, 1.0])
    square = cdist(x, x, "sqeuclidean")

    def by_matrix(h: float, count: float = n - 1.0, diagonal: bool = False) -> float:
        logs = -square / (2 * h**2) - np.log(2 * np.pi * h**2)
        if not diagonal:
            np.fill_diagonal(logs, -np.inf)
        return (logsumexp(logs, axis=1) - np.log(count)).mean()

    def refitted(h: float) -> Array:
        return np.array([_kernel_density(x[i : i + 1], np.delete(x, i, axis=0), h)[0] for i in range(n)])

    def for_all(score: Callable[[float], float]) -> list[float]:
        return [score(h) for h in widths]

    return Lines(
        {
            "mean of log p̂ refitted without x_i, for three h": for_all(lambda h: np.log(refitted(h)).mean()),
            "= from all pairs, the diagonal left out": for_all(by_matrix),
        },
        [
            Mutant("x_i among the centres", for_all(lambda h: by_matrix(h, count=n, diagonal=True))),
            Mutant("n for n-1", for_all(lambda h: by_matrix(h, count=n))),
            Mutant("the log of the mean", for_all(lambda h: np.log(refitted(h).mean()))),
        ],
    )


@verifies(
    "kde-self-inclusion",
    r"\frac1n\sum_{i=1}^n\log\hat p(x_i)\ge\log\frac{K(0)}{n\,h^{d_x}}\longrightarrow\infty\quad(h\to0)",
    kind="inequality",
    route="enumeration",
    tolerance=1e-10,
    reason="logs of sums of fifteen float64 numbers",
)
def kde_self_inclusion(rng: np.random.Generator) -> Lines:
    n, x, widths = 15, rng.normal(size=(15, 2)), np.array([0.5, 0.1, 1e-4])
    own = [multivariate_normal(x[0], h**2 * np.eye(2)).logpdf(x[0]) - np.log(n) for h in widths]

    def bound(power: float = 2.0, count: float = n) -> Array:
        return np.log(1 / (2 * np.pi) / (count * widths**power))

    def left_out(h: float) -> float:
        logs = -cdist(x, x, "sqeuclidean") / (2 * h**2) - np.log(2 * np.pi * h**2 * (n - 1))
        return logsumexp(np.where(np.eye(n), -np.inf, logs), axis=1).mean()

    first, line = "mean of log p̂(x_i), for three h", "≥ log K(0)/(n h^d)"
    return Lines(
        {
            first: [np.log(_kernel_density(x, x, h)).mean() for h in widths],
            line: bound(),
            "= log of x_i's own kernel over n": own,
            "= the bound at h = 1, and -d log h": bound()[0] + 2 * np.log(widths[0]) - 2 * np.log(widths),
        },
        [
            Mutant("without 1/n", {line: bound(count=1.0)}),
            Mutant("h for h^d", {line: bound(power=1.0)}),
            Mutant("x_i left out", {first: [left_out(h) for h in widths]}),
        ],
    )


@verifies(
    "kde-bias",
    r"""\begin{aligned}
\mathbb E\left[\hat p(x)\right]&=\int p(y)\,\frac1{h^{d_x}}K\left(\frac{x-y}h\right)dy\\
&=N(x;0,(s^2+h^2)I)\qquad\text{for }p=N(0,s^2I)\text{ and }K=N(0,I)
\end{aligned}""",
    kind="identity",
    route="Monte Carlo",
    tolerance=1e-10,
    reason="a trapezoid sum over a plane; five standard errors of 2,000 kernel densities with ten points each",
)
def kde_bias(rng: np.random.Generator) -> Lines:
    s, h, x, repeats = rng.uniform(0.8, 1.2), rng.uniform(0.4, 0.7), rng.normal(size=(3, 2)), 2000
    draws = [_kernel_density(x, s * rng.normal(size=(10, 2)), h) for _ in range(repeats)]
    nodes, weight = plane(9.0, 160)
    blurred = [weight @ (norm.pdf(nodes, 0, s).prod(1) * norm.pdf(nodes, at, h).prod(1)) for at in x]

    def gaussian(variance: float) -> Array:
        return multivariate_normal(np.zeros(2), variance * np.eye(2)).pdf(x)

    first = "E[p̂(x)], mean over data sets"
    return Lines(
        {
            first: np.mean(draws, axis=0),
            "= ∫ p(y) K((x-y)/h)/h^d dy": blurred,
            "= N(x; 0, (s²+h²)I)": gaussian(s**2 + h**2),
        },
        [
            Mutant("unbiased: the density itself", gaussian(s**2)),
            Mutant("the scales added, not the variances", gaussian((s + h) ** 2)),
            Mutant("the kernel alone", gaussian(h**2)),
            Mutant("h for h^d", {first: h * np.mean(draws, axis=0)}),
        ],
        standard_errors={first: np.std(draws, axis=0) / np.sqrt(repeats)},
    )


@verifies(
    "kde-dimension",
    r"p=N(0,I):\qquad\frac{\mathrm{Var}\left[\hat p(0)\right]}{\mathbb E\left[\hat p(0)\right]^2}"
    r"=\frac1n\bigg[\Big(1+\frac1{h^2(2+h^2)}\Big)^{d_x/2}-1\bigg]",
    kind="identity",
    route="Monte Carlo",
    tolerance=1e-9,
    reason="trapezoid sums over a plane, raised to a power; five standard errors of 20,000 kernel densities",
)
def kde_dimension(rng: np.random.Generator) -> Lines:
    h, n, repeats, dims = rng.uniform(0.7, 1.0), 10, 20_000, np.array([2, 5])

    def played(dim: int) -> tuple[float, float]:
        """Var/E² over data sets, and its standard error by linearisation."""
        draws = np.exp(-np.square(rng.normal(size=(repeats, n, dim))).sum(2) / (2 * h**2)).mean(1)
        first, second = draws.mean(), np.square(draws).mean()
        influence = np.square(draws) / first**2 - 2 * second * draws / first**3
        return second / first**2 - 1, influence.std() / np.sqrt(repeats)

    nodes, weight = plane(9.0, 160)
    log_p, log_kernel = norm.logpdf(nodes).sum(1), norm.logpdf(nodes, 0, h).sum(1)
    first, second = (weight @ np.exp(log_p + power * log_kernel) for power in (1, 2))

    def formula(half: float = 2.0, minus: float = 1.0, count: float = n, two: float = 2.0) -> Array:
        return ((1 + 1 / (h**2 * (two + h**2))) ** (dims / half) - minus) / count

    estimates, errors = np.transpose([played(dim) for dim in dims])
    line = "Var[p̂(0)]/E[p̂(0)]² over data sets, d = 2 and 5"
    return Lines(
        {
            line: estimates,
            # Any dimension as so many independent coordinates of the plane.
            "= from E[K²] and E[K] by quadrature": ((second / first**2) ** (dims / 2) - 1) / n,
            "= ((1 + 1/h²(2+h²))^{d/2} - 1)/n": formula(),
        },
        [
            Mutant("d for d/2", formula(half=1.0)),
            Mutant("without -1", formula(minus=0.0)),
            Mutant("1/n² for 1/n", formula(count=n**2)),
            Mutant("1+h² for 2+h²", formula(two=1.0)),
            Mutant("a single kernel", {line: n * estimates}),
        ],
        standard_errors={line: errors},
    )
