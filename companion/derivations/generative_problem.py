"""Checks for the chapter on the generative problem."""

from collections.abc import Callable

import numpy as np
import torch
from scipy import optimize
from scipy.stats import entropy, multivariate_normal, norm

from companion.derivations.registry import Lines, Mutant, Tolerance, verifies
from companion.derivations.toys import Latent, latents, linear_gaussian, plane, table
from companion.models.generative_problem import GaussianMixture, IndependentPixels, ProbabilisticPCA

SMALL_SUMS = Tolerance(tolerance=1e-12, reason="sums of a few float64 numbers of order one")
PLANE = Tolerance(tolerance=1e-10, reason="float64 sums over up to 130,000 nodes, values up to about ten")


def _covariance(rng: np.random.Generator, dim: int = 2) -> np.ndarray:
    root = rng.normal(size=(dim, dim))
    return root @ root.T + 0.5 * np.eye(dim)


@verifies(
    "normalization",
    r"\int p(x)\,dx=1",
    kind="identity",
    route="quadrature",
    **PLANE,
)
def normalization(rng: np.random.Generator) -> Lines:
    mean, covariance = rng.normal(size=2), _covariance(rng)
    nodes, weight = plane(30.0, 360)
    offset = nodes - mean
    quadratic = np.einsum("ni,ij,nj->n", offset, np.linalg.inv(covariance), offset)
    det = np.linalg.det(covariance)

    def mass(log_constant: float, half: float = 0.5) -> float:
        return float(weight @ np.exp(-half * quadratic - log_constant))

    constant = np.log(2 * np.pi) + 0.5 * np.log(det)
    line = "∫ p(x) dx, Gaussian density"
    return Lines(
        {
            line: mass(constant),
            "= ∫ p(x) dx, by SciPy's density": weight @ multivariate_normal(mean, covariance).pdf(nodes),
            "= 1": 1.0,
        },
        [
            Mutant("no ½ in the exponent", {"∫ p(x) dx, Gaussian density": mass(constant, half=1.0)}),
            Mutant(
                "determinant without its root", {"∫ p(x) dx, Gaussian density": mass(np.log(2 * np.pi) + np.log(det))}
            ),
            Mutant(
                "√2π for 2π in two dimensions",
                {"∫ p(x) dx, Gaussian density": mass(constant - 0.5 * np.log(2 * np.pi))},
            ),
        ],
    )


class _Mixture:
    """Two axis-aligned Gaussians in the plane: density, CDF of a box and samples are all plain formulas."""

    def __init__(self, rng: np.random.Generator):
        self.weights = rng.dirichlet([3, 3])
        self.means, self.scales = rng.normal(size=(2, 2)), rng.uniform(0.5, 1.2, size=(2, 2))

    def density(self, x: np.ndarray) -> np.ndarray:
        return norm.pdf(x[..., None, :], self.means, self.scales).prod(-1) @ self.weights

    def box(self, low: np.ndarray, high: np.ndarray, combine: Callable = np.subtract) -> float:
        sides = combine(norm.cdf(high, self.means, self.scales), norm.cdf(low, self.means, self.scales))
        return float(sides.prod(-1) @ self.weights)

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        k = rng.choice(2, size=n, p=self.weights)
        return rng.normal(self.means[k], self.scales[k])


def _box(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    low = rng.uniform(-1.5, -0.2, 2)
    return low, low + rng.uniform(0.8, 2.0, 2)


def _over_box(function: Callable, low: np.ndarray, high: np.ndarray) -> float:
    """∫ over a box, by a Gauss-Legendre product rule."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    axes = [(b - a) / 2 * nodes + (a + b) / 2 for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return float(weights @ function(grid) @ weights * np.prod((high - low) / 2))


@verifies(
    "prob-of-set",
    r"P(x\in A)=\int_A p(x)\,dx",
    kind="identity",
    route="Monte Carlo",
    tolerance=1e-12,
    reason="five standard errors of 100,000 draws; distribution function and quadrature agree to 1e-12",
)
def prob_of_set(rng: np.random.Generator) -> Lines:
    mixture, (low, high) = _Mixture(rng), _box(rng)
    samples = mixture.sample(rng, 100_000)
    inside = ((samples > low) & (samples < high)).all(1)
    return Lines(
        {
            "P(x∈A), by distribution functions": mixture.box(low, high),
            "= ∫_A p(x) dx": _over_box(mixture.density, low, high),
            "= share of samples in A": inside.mean(),
        },
        [
            Mutant("F(b) + F(a)", {"P(x∈A), by distribution functions": mixture.box(low, high, np.add)}),
            Mutant("the complement of A", {"= ∫_A p(x) dx": 1 - _over_box(mixture.density, low, high)}),
            Mutant(
                "density at the centre for its integral",
                {"= ∫_A p(x) dx": float(mixture.density((low + high) / 2) * np.prod(high - low))},
            ),
        ],
        standard_errors={"= share of samples in A": inside.std() / np.sqrt(len(samples))},
    )


@verifies(
    "prob-of-set-unnormalised",
    r"P(x\in A)=\frac{\int_A\tilde p(x)\,dx}{\int\tilde p(x)\,dx},\qquad\tilde p(x)\ge0",
    kind="identity",
    route="quadrature",
    **PLANE,
)
def prob_of_set_unnormalised(rng: np.random.Generator) -> Lines:
    mixture, (low, high) = _Mixture(rng), _box(rng)
    scale = rng.uniform(3, 9)
    nodes, weight = plane(12.0, 360)

    def ratio(power: float = 1.0, scale: float = scale) -> tuple[float, float]:
        def unnormalised(x: np.ndarray) -> np.ndarray:
            return scale * mixture.density(x) ** power

        return _over_box(unnormalised, low, high), float(weight @ unnormalised(nodes))

    part, whole = ratio()
    part_2, whole_2 = ratio(scale=100.0)
    squared, whole_squared = ratio(power=2.0)
    line = "= ∫_A p̃ / ∫ p̃"
    return Lines(
        {
            "P(x∈A), by distribution functions": mixture.box(low, high),
            line: part / whole,
            "= the same with another scale of p̃": part_2 / whole_2,
        },
        [
            Mutant("not divided", {line: part}),
            Mutant("divided by the mass outside A", {line: part / (whole - part)}),
            Mutant("p̃²", {line: squared / whole_squared}),
        ],
    )


@verifies(
    "density-ratio",
    r"\frac{p(x^\prime)}{p(x)}=\frac{\tilde p(x^\prime)}{\tilde p(x)}",
    kind="identity",
    route="quadrature",
    **PLANE,
)
def density_ratio(rng: np.random.Generator) -> Lines:
    energy, nodes, weight = _quartic(rng), *plane(6.0, 360)
    log_z = np.log(weight @ np.exp(-energy(torch.tensor(nodes)).numpy()))
    x, other = (torch.tensor(rng.normal(size=(3, 2)) / 2) for _ in range(2))
    p = {name: np.exp(-energy(v).numpy() - log_z) for name, v in (("x", x), ("x'", other))}
    tilde = {name: np.exp(-energy(v).numpy()) for name, v in (("x", x), ("x'", other))}
    return Lines(
        {"p(x')/p(x)": p["x'"] / p["x"], "= p̃(x')/p̃(x)": tilde["x'"] / tilde["x"]},
        [
            Mutant("upside down", tilde["x"] / tilde["x'"]),
            Mutant("only one side normalised", tilde["x'"] / p["x"]),
        ],
    )


def _quartic(rng: np.random.Generator) -> Callable[[torch.Tensor], torch.Tensor]:
    """A random energy in the plane whose normalising constant has no formula."""
    a, b = rng.uniform(0.5, 1.5, 2), rng.normal(size=(2, 2))

    def energy(x: torch.Tensor) -> torch.Tensor:
        return (torch.tensor(a) * x**4).sum(-1) + ((x @ torch.tensor(b)).sin()).sum(-1)

    return energy


@verifies(
    "score-ignores-constant",
    r"\nabla_x\log p(x)=\nabla_x\log\tilde p(x)",
    kind="identity",
    route="autograd",
    tolerance=1e-7,
    reason="central differences with step 1e-5, whose rounding error is about 1e-10 and truncation error 1e-9",
)
def score_ignores_constant(rng: np.random.Generator) -> Lines:
    energy, nodes, weight = _quartic(rng), *plane(6.0, 360)
    log_z = np.log(weight @ np.exp(-energy(torch.tensor(nodes)).numpy()))
    x = torch.tensor(rng.normal(size=2) / 2, requires_grad=True)
    [gradient] = torch.autograd.grad(-energy(x), x)
    at = x.detach().numpy()

    def log_p(v: np.ndarray) -> float:
        return float(-energy(torch.tensor(v)) - log_z)

    step = 1e-5 * np.eye(2)
    differences = np.array([(log_p(at + h) - log_p(at - h)) / 2e-5 for h in step])
    value = torch.exp(-energy(x)).item()
    return Lines(
        {"∇ log p(x), by differences": differences, "= ∇ log p̃(x), by autograd": gradient.numpy()},
        [Mutant("∇ p̃, without the log", value * gradient.numpy()), Mutant("the sign", -gradient.numpy())],
    )


@verifies(
    "importance-weight-variance",
    r"\frac{\mathrm{Var}_q[w]}{\mathbb E_q[w]^2}=\Big(\frac{\tau^2}{\sqrt{2\tau^2-1}}\Big)^{d_x}-1",
    kind="identity",
    route="quadrature",
    **PLANE,
)
def importance_weight_variance(rng: np.random.Generator) -> Lines:
    tau, dim = rng.uniform(1.1, 1.6), int(rng.integers(3, 9))
    nodes, weight = plane(14.0, 360)
    log_p, log_q = -0.5 * (nodes**2).sum(1), norm.logpdf(nodes, 0, tau).sum(1)
    first, second = weight @ np.exp(log_p), weight @ np.exp(2 * log_p - log_q)

    def formula(base: float = tau**2 / np.sqrt(2 * tau**2 - 1), power: float = 1.0, minus: float = 1.0) -> np.ndarray:
        return np.array([base ** (2 * power), base ** (dim * power)]) - minus

    # The plane itself, and any dimension as so many independent coordinates.
    return Lines(
        {
            "Var[w]/E[w]², in 2 and in more dimensions": [second / first**2 - 1, (second / first**2) ** (dim / 2) - 1],
            "= (τ²/√(2τ²-1))^d - 1": formula(),
        },
        [
            Mutant("half the dimension", formula(power=0.5)),
            Mutant("without -1", formula(minus=0.0)),
            Mutant("τ for τ²", formula(base=tau / np.sqrt(2 * tau - 1))),
        ],
    )


@verifies(
    "inverse-cdf-sampling",
    r"x=F^{-1}(u),\quad u\sim U[0,1]\qquad\Longrightarrow\qquad P(x\le t)=F(t)",
    kind="identity",
    route="enumeration",
    tolerance=1e-5,
    reason="the distribution function of 100,000 evenly spread u is right to half a step, 5e-6",
)
def inverse_cdf_sampling(rng: np.random.Generator) -> Lines:
    n, rate = 100_000, rng.uniform(1.5, 3)
    location, scale = rng.normal(), rng.uniform(0.5, 0.8)
    u = (np.arange(n) + 0.5) / n
    # Two distributions with a closed inverse: exponential and logistic.
    cdfs = [lambda t: -np.expm1(-rate * np.maximum(t, 0)), lambda t: 1 / (1 + np.exp(-(t - location) / scale))]
    inverses = [lambda u: -np.log1p(-u) / rate, lambda u: location + scale * np.log(u / (1 - u))]
    points = [np.array([0.1, 0.4, 1.0]), location + np.array([-0.7, 0.2, 1.1])]

    def shares(samples: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([(x[:, None] <= t).mean(0) for x, t in zip(samples, points, strict=True)])

    return Lines(
        {
            "F(t)": np.concatenate([cdf(t) for cdf, t in zip(cdfs, points, strict=True)]),
            "= share of F⁻¹(u) ≤ t": shares([inverse(u) for inverse in inverses]),
        },
        [
            Mutant("F for its inverse", shares([cdf(u) for cdf in cdfs])),
            Mutant("u², which is not uniform", shares([inverse(u**2) for inverse in inverses])),
            Mutant(
                "rate and scale upside down",
                shares([inverses[0](u) * rate**2, location + (inverses[1](u) - location) / scale**2]),
            ),
        ],
    )


@verifies(
    "rosenblatt",
    r"x_d=F_d^{-1}(u_d\mid x_{<d}),\quad u\sim U[0,1]^{d_x}"
    r"\qquad\Longrightarrow\qquad p(x)=\Big|\det\frac{\partial u}{\partial x}\Big|",
    kind="identity",
    route="autograd",
    tolerance=1e-10,
    reason="float64 Jacobians in three dimensions",
)
def rosenblatt(rng: np.random.Generator) -> Lines:
    mean, covariance = rng.normal(size=3), _covariance(rng, 3)
    x = torch.tensor(mean + 0.5 * rng.normal(size=3))

    def uniforms(x: torch.Tensor, conditional: bool = True, sign: float = 1.0) -> torch.Tensor:
        """u_d = F_d(x_d | x_<d) of a Gaussian, by the regression of x_d on what comes before it."""
        u = []
        for d in range(3):
            before = covariance[:d, :d]
            slope = np.linalg.solve(before, covariance[:d, d]) if d and conditional else np.zeros(d)
            centre = mean[d] + sign * (torch.tensor(slope) * (x[:d] - torch.tensor(mean[:d]))).sum()
            spread = np.sqrt(covariance[d, d] - slope @ covariance[:d, d])
            u.append(torch.special.ndtr((x[d] - centre) / spread))
        return torch.stack(u)

    def density(**variant) -> float:
        return torch.autograd.functional.jacobian(lambda v: uniforms(v, **variant), x).det().abs().item()

    return Lines(
        {"p(x)": multivariate_normal(mean, covariance).pdf(x.numpy()), "= |det ∂u/∂x|": density()},
        [
            Mutant("marginal for conditional distribution functions", density(conditional=False), erratum="E000-02"),
            Mutant("the regression's sign", density(sign=-1.0)),
        ],
    )


@verifies(
    "mle-forward-kl",
    r"\mathbb E_{p_{\rm data}}[\log p_\theta(x)]=-H(p_{\rm data})-\mathrm{KL}(p_{\rm data}\Vert p_\theta)",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def mle_forward_kl(rng: np.random.Generator) -> Lines:
    data, model = rng.dirichlet([2] * 3), rng.dirichlet([2] * 3)
    forward, reverse = entropy(data, model), entropy(model, data)
    return Lines(
        {"E_data[log p_θ]": data @ np.log(model), "= -H(p_data) - KL(p_data‖p_θ)": -entropy(data) - forward},
        [
            Mutant("KL the other way round", -entropy(data) - reverse),
            Mutant("the model's entropy", -entropy(model) - forward),
            Mutant("KL added", -entropy(data) + forward),
        ],
    )


@verifies(
    "maximum-likelihood",
    r"\hat\theta=\arg\max_\theta\frac1N\sum_{n=1}^N\log p_\theta(x^{(n)})"
    r"=\arg\min_\theta\mathrm{KL}(\hat p_N\Vert p_\theta)",
    kind="identity",
    route="enumeration",
    tolerance=1e-7,
    reason="a minimum found numerically is known to the root of the rounding error",
)
def maximum_likelihood(rng: np.random.Generator) -> Lines:
    # Two coins of one bias on three outcomes cannot match the data: the divergence then matters.
    data = rng.choice(3, size=20, p=[0.5, 0.1, 0.4])
    data[:3] = [0, 1, 2]
    share = np.bincount(data, minlength=3) / len(data)

    def model(theta: float) -> np.ndarray:
        return np.array([(1 - theta) ** 2, 2 * theta * (1 - theta), theta**2])

    def argmin(objective: Callable[[float], float]) -> float:
        return optimize.minimize_scalar(
            objective, bounds=(1e-3, 1 - 1e-3), method="bounded", options={"xatol": 1e-12}
        ).x

    return Lines(
        {
            "the formula: half the mean": data.mean() / 2,
            "= argmax of the mean log-likelihood": argmin(lambda t: -np.log(model(t)[data]).mean()),
            "= argmin of KL(p̂‖p_θ)": argmin(lambda t: entropy(share, model(t))),
        },
        [
            Mutant("KL the other way round", argmin(lambda t: entropy(model(t), share))),
            Mutant("squared distance of probabilities", argmin(lambda t: np.square(share - model(t)).sum())),
        ],
    )


@verifies(
    "kl-nonneg",
    r"\mathrm{KL}(q\Vert p)=\mathbb E_q\Big[\log\frac{q(x)}{p(x)}\Big]\ge0",
    kind="inequality",
    route="enumeration",
    **SMALL_SUMS,
)
def kl_nonneg(rng: np.random.Generator) -> Lines:
    q, p = rng.dirichlet([1] * 5, size=20), rng.dirichlet([1] * 5, size=20)
    line = "= E_q[log q/p]"
    return Lines(
        {"KL(q‖p), by SciPy": entropy(q, p, axis=1), line: (q * np.log(q / p)).sum(1), "≥ 0": np.zeros(20)},
        [
            Mutant("the ratio upside down", {line: (q * np.log(p / q)).sum(1)}),
            Mutant("expectation under p", {line: (p * np.log(q / p)).sum(1)}),
        ],
    )


@verifies(
    "gibbs-cross-entropy",
    r"-\sum_xq(x)\log q(x)\le-\sum_xq(x)\log p(x)",
    kind="inequality",
    route="enumeration",
    **SMALL_SUMS,
)
def gibbs_cross_entropy(rng: np.random.Generator) -> Lines:
    q, p = rng.dirichlet([1] * 5, size=20), rng.dirichlet([1] * 5, size=20)
    own, cross = -(q * np.log(q)).sum(1), -(q * np.log(p)).sum(1)
    return Lines(
        {"H(q)": own, "≤ -Σ q log p": cross},
        [
            Mutant("the inequality turned", {"H(q)": cross, "≤ -Σ q log p": own}, erratum="E002-01"),
            Mutant("-Σ p log p", -(p * np.log(p)).sum(1)),
        ],
    )


@verifies(
    "generator-pushforward",
    r"z\sim p(z),\quad x=f_\theta(z)\qquad\Longrightarrow\qquad\mathbb E_x[h(x)]=\mathbb E_z[h(f_\theta(z))]",
    kind="estimate",
    route="Monte Carlo",
    reason="five standard errors of 200,000 draws",
)
def generator_pushforward(rng: np.random.Generator) -> Lines:
    # x = exp(Az) is log-normal, and h(x) = x₁x₂ has the mean exp(½‖a₁+a₂‖²).
    a = rng.normal(size=(2, 2)) * 0.4
    z = rng.normal(size=(200_000, 2))
    x = np.exp(z @ a.T)
    h = x.prod(1)
    # The density's Jacobian has no place in an expectation over samples.
    jacobian = np.abs(np.linalg.det(a)) * x.prod(1)
    total = np.square(a.sum(0)).sum()
    return Lines(
        {"E_x[h(x)], closed form": np.exp(total / 2), "= mean of h(f(z))": h.mean()},
        [
            Mutant("h(f(E[z]))", 1.0),
            Mutant("multiplied by |det J_f|", (h * jacobian).mean()),
            Mutant("the mean of a log-normal without ½", {"E_x[h(x)], closed form": np.exp(total)}),
        ],
        standard_errors={"= mean of h(f(z))": h.std() / np.sqrt(len(h))},
    )


@verifies(
    "lipschitz-gap-mass",
    r"P(|x|<a)\ge2\Phi(a/K)-1",
    kind="inequality",
    route="Monte Carlo",
    tolerance=1e-10,
    reason="five standard errors of 400,000 draws through the map that attains the bound",
)
def lipschitz_gap_mass(rng: np.random.Generator) -> Lines:
    slope, a = rng.uniform(2, 5), rng.uniform(0.6, 1.2)
    z = rng.normal(size=400_000)
    # The steepest map allowed crosses the gap at full slope. tanh has that slope at zero only.
    inside = np.abs(slope * z) < a
    reach = rng.uniform(1.5, 2.5)
    crossing = optimize.brentq(lambda v: reach * np.tanh(slope * v / reach) - a, 0, 10, xtol=1e-14)
    smooth = np.abs(reach * np.tanh(slope * z / reach)) < a
    bound = 2 * norm.cdf(a / slope) - 1
    line = "= 2Φ(a/K) - 1"
    return Lines(
        {
            "P(|x|<a), share of samples of a smooth map": smooth.mean(),
            "= P(|x|<a), where that map leaves the gap": norm.cdf(crossing) - norm.cdf(-crossing),
            "≥ P(|x|<a), steepest map": inside.mean(),
            line: bound,
        },
        [
            Mutant("aK for a/K", {line: 2 * norm.cdf(a * slope) - 1}),
            Mutant("one tail", {line: norm.cdf(a / slope)}),
            Mutant("half the gap", {line: 2 * norm.cdf(a / slope / 2) - 1}),
        ],
        standard_errors={
            "P(|x|<a), share of samples of a smooth map": smooth.std() / np.sqrt(len(smooth)),
            "≥ P(|x|<a), steepest map": inside.std() / np.sqrt(len(inside)),
        },
    )


@verifies(
    "generator-rank",
    r"\det\big(J_f(z)\,J_f(z)^\top\big)=0\qquad\text{where }d_z<d_x",
    kind="identity",
    route="autograd",
    tolerance=1e-10,
    reason="the determinant of a singular float64 matrix of order ten",
)
def generator_rank(rng: np.random.Generator) -> Lines:
    def jacobian(latent: int, data: int = 3) -> np.ndarray:
        first, second = torch.tensor(rng.normal(size=(16, latent))), torch.tensor(rng.normal(size=(data, 16)) / 4)
        z = torch.tensor(rng.normal(size=latent))
        return torch.autograd.functional.jacobian(lambda v: second @ torch.tanh(first @ v), z).numpy()

    j, square = jacobian(2), jacobian(3)
    return Lines(
        {"det(J Jᵀ), d_z = 2 and d_x = 3": np.linalg.det(j @ j.T), "= 0": 0.0},
        [
            Mutant("det(JᵀJ)", {"det(J Jᵀ), d_z = 2 and d_x = 3": np.linalg.det(j.T @ j)}),
            Mutant("d_z = d_x", {"det(J Jᵀ), d_z = 2 and d_x = 3": np.linalg.det(square @ square.T)}),
        ],
    )


@verifies(
    "product-rule",
    r"p(x,z)=p(z)\,p(x\mid z)",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def product_rule(rng: np.random.Generator) -> Lines:
    # A population counted three ways: all of it, by z, and by x within z.
    counts = rng.integers(1, 20, size=(2, 3)).astype(float)
    by_z, by_x, total = counts.sum(0), counts.sum(1, keepdims=True), counts.sum()
    return Lines(
        {"p(x,z)": counts / total, "= p(z) p(x|z)": (by_z / total) * (counts / by_z)},
        [
            Mutant("p(x) for p(z)", (by_x / total) * (counts / by_z)),
            Mutant("p(z|x) for p(x|z)", (by_z / total) * (counts / by_x)),
            Mutant("independence", (by_z / total) * (by_x / total)),
        ],
    )


@verifies(
    "marginal-likelihood",
    r"p_\theta(x)=\int p_\theta(x\mid z)\,p(z)\,dz",
    kind="identity",
    route="quadrature",
    instances=latents,
    **PLANE,
)
def marginal_likelihood(toy: Latent) -> Lines:
    likelihood = np.exp(toy.log_likelihood)
    return Lines(
        {"p(x)": np.exp(toy.log_evidence), "= ∫ p(x|z) p(z) dz": toy.mean(toy.log_prior, likelihood)},
        [
            Mutant("the prior forgotten", toy.integral(likelihood)),
            Mutant("the posterior for the prior", toy.mean(toy.log_posterior, likelihood)),
            Mutant("the log inside the integral", np.exp(toy.mean(toy.log_prior, toy.log_likelihood))),
        ],
    )


def _closed_posteriors() -> list[Latent]:
    """The toys whose posterior is known without their evidence."""
    return [make(np.random.default_rng([11, seed])) for seed in range(2) for make in (table, linear_gaussian)]


def _some(toy: Latent) -> slice:
    """A few nodes where the densities are far from zero."""
    best = int(np.argmax(toy.log_posterior))
    return slice(max(best - 2, 0), best + 3)


@verifies(
    "chain-rule-evidence",
    r"p_\theta(x)=\frac{p_\theta(x,z)}{p_\theta(z\mid x)}\qquad\text{for every }z",
    kind="identity",
    route="closed form",
    instances=_closed_posteriors,
    **PLANE,
)
def chain_rule_evidence(toy: Latent) -> Lines:
    at = _some(toy)
    joint = toy.log_joint[at]
    evidence = np.full_like(joint, np.exp(toy.log_evidence))
    return Lines(
        {"p(x)": evidence, "= p(x,z)/p(z|x), at several z": np.exp(joint - toy.log_posterior[at])},
        [
            Mutant("divided by the prior", np.exp(joint - toy.log_prior[at])),
            Mutant("divided by an approximate posterior", np.exp(joint - toy.log_q[at])),
            Mutant("p(x|z) for the joint", np.exp(toy.log_likelihood[at] - toy.log_posterior[at])),
        ],
    )


@verifies(
    "bayes-posterior",
    r"p_\theta(z\mid x)=\frac{p_\theta(x\mid z)\,p(z)}{p_\theta(x)}",
    kind="identity",
    route="closed form",
    instances=_closed_posteriors,
    **PLANE,
)
def bayes_posterior(toy: Latent) -> Lines:
    at = _some(toy)

    def right(values: np.ndarray) -> np.ndarray:
        """The right-hand side at a few z, and its integral."""
        return np.append(np.exp(values[at]), toy.integral(np.exp(values)))

    bayes = toy.log_likelihood + toy.log_prior - toy.log_evidence
    return Lines(
        {
            "p(z|x), and 1": np.append(np.exp(toy.log_posterior[at]), 1.0),
            "= p(x|z)p(z)/p(x), and its integral": right(bayes),
        },
        [
            Mutant("not divided", right(toy.log_joint)),
            Mutant("another density of x below", right(toy.log_joint - toy.log_evidence + 0.3), erratum="E001-03"),
            Mutant("the prior forgotten", right(toy.log_likelihood - toy.log_evidence)),
        ],
    )


@verifies(
    "gaussian-mixture",
    r"p_\theta(x)=\sum_{k=1}^K\pi_k\,N(x;\mu_k,\mathrm{diag}\,\sigma_k^2)",
    kind="definition",
    route="quadrature",
    **PLANE,
)
def gaussian_mixture(rng: np.random.Generator) -> Lines:
    torch.manual_seed(int(rng.integers(1 << 30)))
    model = GaussianMixture(3, 2).double()
    with torch.no_grad():
        model.logits.copy_(torch.tensor(rng.normal(size=3)))
        model.log_scales.copy_(torch.tensor(rng.uniform(-0.5, 0.2, size=(3, 2))))
    weights, means, scales = (
        t.detach().numpy() for t in (model.logits.softmax(0), model.means, model.log_scales.exp())
    )
    nodes, weight = plane(12.0, 240)
    x = rng.normal(size=(3, 2))

    def by_hand(x: np.ndarray, weights=weights, scales=scales) -> np.ndarray:
        return norm.pdf(x[:, None], means, scales).prod(-1) @ weights

    def values(density: Callable) -> np.ndarray:
        return np.append(density(x), weight @ density(nodes))

    def by_model(x: np.ndarray) -> np.ndarray:
        return model.log_prob(torch.tensor(x)).exp().detach().numpy()

    unnormalised = model.logits.exp().detach().numpy()
    line = "= Σ π_k N(x; μ_k, diag σ_k²), and its integral"
    return Lines(
        {
            "exp(log_prob(x)), and its integral": values(
                lambda v: model.log_prob(torch.tensor(v)).exp().detach().numpy()
            ),
            line: values(by_hand),
            "= the same, and 1": np.append(by_hand(x), 1),
        },
        [
            Mutant("σ² where σ belongs", {line: values(lambda v: by_hand(v, scales=scales**2))}),
            Mutant("weights that do not sum to one", {line: values(lambda v: by_hand(v, weights=unnormalised))}),
        ],
    )


@verifies(
    "independent-pixels",
    r"\log p_\theta(x)=\sum_d\big[x_d\log\mu_d+(1-x_d)\log(1-\mu_d)\big],"
    r"\qquad\hat\mu_d=\frac1N\sum_{n=1}^Nx_d^{(n)}",
    kind="identity",
    route="enumeration",
    tolerance=1e-11,
    reason="sums over the 16 images of four pixels, and a gradient at its zero, in float64",
)
def independent_pixels(rng: np.random.Generator) -> Lines:
    model = IndependentPixels((2, 2)).double()
    images = np.array(list(np.ndindex(2, 2, 2, 2)), dtype=float)
    data = images[rng.choice(16, size=30)]
    data[0], data[1] = 0, 1
    mean = data.mean(0)

    def total_and_slope(mu: np.ndarray) -> np.ndarray:
        """Σ p(x) over all images, and the gradient of the data's log-likelihood."""
        with torch.no_grad():
            model.logits.copy_(torch.logit(torch.tensor(mu)).reshape(2, 2))
        total = model.log_prob(torch.tensor(images).reshape(-1, 2, 2)).exp().sum().item()
        [slope] = torch.autograd.grad(model.log_prob(torch.tensor(data).reshape(-1, 2, 2)).sum(), model.logits)
        return np.append(slope.numpy().ravel(), total)

    first = total_and_slope(mean)
    probability = np.prod(mean**images * (1 - mean) ** (1 - images), axis=1)
    line = "= gradient at the mean, and Σ p(x) over all images"
    return Lines(
        {"0, and 1": [0, 0, 0, 0, 1], line: first, "= 0, and Σ of products of μ": [0, 0, 0, 0, probability.sum()]},
        [
            Mutant("divided by N - 1", {line: total_and_slope(np.minimum(mean * 30 / 29, 0.999))}),
            Mutant("thresholded mean", {line: total_and_slope(np.where(mean > 0.5, 0.99, 0.01))}),
        ],
    )


def _pca_data(rng: np.random.Generator) -> tuple[ProbabilisticPCA, np.ndarray]:
    """Probabilistic PCA fitted to random data, in float64."""
    data = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 5)) + 0.5 * rng.normal(size=(40, 5)) + rng.normal(size=5)
    return ProbabilisticPCA(5, 2).double().fit(torch.tensor(data)), data


@verifies(
    "ppca-evidence",
    r"p_\theta(x)=\int N(x;Wz+\mu,\sigma_x^2I)\,N(z;0,I)\,dz=N(x;\mu,WW^\top+\sigma_x^2I)",
    kind="identity",
    route="quadrature",
    **PLANE,
)
def ppca_evidence(rng: np.random.Generator) -> Lines:
    model, data = _pca_data(rng)
    w, mu, s = model.weight.detach().numpy(), model.mean.detach().numpy(), model.log_scale.exp().item()
    x = data[:2]
    nodes, weight = plane(9.0, 360)
    log_prior = norm.logpdf(nodes).sum(1)
    integral = [weight @ np.exp(norm.logpdf(v, nodes @ w.T + mu, s).sum(1) + log_prior) for v in x]

    def gaussian(covariance: np.ndarray) -> np.ndarray:
        return multivariate_normal(mu, covariance).logpdf(x)

    line = "= log N(x; μ, WWᵀ + σ²I)"
    return Lines(
        {
            "log ∫ p(x|z) p(z) dz": np.log(integral),
            line: gaussian(w @ w.T + s**2 * np.eye(5)),
            "= log_prob(x)": model.log_prob(torch.tensor(x)).detach().numpy(),
        },
        [
            Mutant("σ for σ²", {line: gaussian(w @ w.T + s * np.eye(5))}),
            Mutant("the noise forgotten where W is", {line: gaussian(np.diag(np.diag(w @ w.T)) + s**2 * np.eye(5))}),
            Mutant("2WWᵀ", {line: gaussian(2 * w @ w.T + s**2 * np.eye(5))}),
        ],
    )


@verifies(
    "ppca-mle",
    r"\hat W=U\,\mathrm{diag}(\lambda_j-\hat\sigma_x^2)^{1/2},\qquad"
    r"\hat\sigma_x^2=\frac1{d_x-d_z}\sum_{j>d_z}\lambda_j",
    kind="identity",
    route="autograd",
    tolerance=1e-9,
    reason="the gradient of a mean log-likelihood of order ten, in float64, at its maximum",
)
def ppca_mle(rng: np.random.Generator) -> Lines:
    model, data = _pca_data(rng)
    values, vectors = np.linalg.eigh(np.cov(data.T, bias=True))
    values, vectors = values[::-1].copy(), vectors[:, ::-1].copy()
    mean = data.mean(0)

    def gradient(variance: float, top: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            model.weight.copy_(torch.tensor(vectors[:, :2] * np.sqrt(top)))
            model.log_scale.copy_(torch.tensor(np.log(variance) / 2))
            model.mean.copy_(torch.tensor(mean))
        slopes = torch.autograd.grad(model.log_prob(torch.tensor(data)).mean(), tuple(model.parameters()))
        return np.concatenate([s.numpy().ravel() for s in slopes])

    fitted = torch.autograd.grad(model.log_prob(torch.tensor(data)).mean(), tuple(model.parameters()))
    variance = values[2:].mean()
    line = "= gradient at the formula"
    return Lines(
        {
            "0": np.zeros(16),
            "= gradient at fit(x)": np.concatenate([s.numpy().ravel() for s in fitted]),
            line: gradient(variance, values[:2] - variance),
        },
        [
            Mutant("the noise not taken off", {line: gradient(variance, values[:2])}),
            Mutant(
                "the sum of the small eigenvalues for their mean", {line: gradient(3 * variance, values[:2] - variance)}
            ),
            Mutant("no square root", {line: gradient(variance, (values[:2] - variance) ** 2)}),
        ],
    )


@verifies(
    "intrinsic-dimension",
    r"\hat m(x)^{-1}=\frac1{k-1}\sum_{j=1}^{k-1}\log\frac{T_k(x)}{T_j(x)},\qquad"
    r"\mathbb E[\hat m(x)^{-1}]=\frac1m",
    kind="estimate",
    route="Monte Carlo",
    reason="five standard errors of 20,000 neighbourhoods of a uniform cloud",
)
def intrinsic_dimension(rng: np.random.Generator) -> Lines:
    m, k, repeats, n = int(rng.integers(2, 7)), 6, 20_000, 30
    # Distances from the centre of a ball to the nearest k of n uniform points in it.
    distances = np.sort(rng.uniform(size=(repeats, n)) ** (1 / m), axis=1)[:, :k]
    logs = np.log(distances[:, -1:] / distances[:, :-1])
    estimate = logs.mean(1)
    line = "= mean of 1/m̂"
    return Lines(
        {"1/m": 1 / m, line: estimate.mean()},
        [
            Mutant("divided by k", {line: logs.sum(1).mean() / k}),
            Mutant("T_1 in every term", {line: np.log(distances[:, -1] / distances[:, 0]).mean()}),
            Mutant("squared distances", {line: 2 * estimate.mean()}),
        ],
        standard_errors={line: estimate.std() / np.sqrt(repeats)},
    )
