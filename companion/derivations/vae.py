"""Checks for the chapter on variational autoencoders."""

from collections.abc import Callable

import numpy as np
import torch
from scipy import optimize
from scipy.special import expit, logsumexp
from scipy.stats import entropy, multivariate_normal, norm
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence

from companion.derivations.registry import Lines, Mutant, Tolerance, verifies
from companion.derivations.toys import Latent, gauss_hermite, latents, plane, random_pca, table
from companion.models.elbo import linear_gaussian_elbo, mean_field
from companion.models.generative_problem import ProbabilisticPCA

Array = np.ndarray

FORMULA = Tolerance(tolerance=1e-11, reason="a few float64 operations on numbers up to a hundred")
QUADRATURE = Tolerance(tolerance=1e-9, reason="Gauss-Hermite quadrature, exact for polynomials; values up to a hundred")
PLANE = Tolerance(tolerance=1e-10, reason="float64 sums over up to 130,000 nodes, values up to about ten")


def _spd(rng: np.random.Generator, dim: int) -> Array:
    root = rng.normal(size=(dim, dim))
    return root @ root.T + 0.5 * np.eye(dim)


def _mean(draws: Array) -> tuple[Array, Array]:
    """The mean over the first axis and its standard error."""
    return draws.mean(0), draws.std(0) / np.sqrt(len(draws))


def _code(rng: np.random.Generator, batch: int = 3, latent: int = 2) -> Normal:
    """What an encoder returns for a batch: a random mean and scale for each row."""
    mean, scale = rng.normal(size=(batch, latent)), rng.uniform(0.4, 0.8, size=(batch, latent))
    return Normal(torch.tensor(mean), torch.tensor(scale))


def _kl_to_prior(q: Normal) -> torch.Tensor:
    """KL(q‖N(0,I)) by torch, one number for each row."""
    return kl_divergence(q, Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))).sum(-1)


def _expected_square(model: ProbabilisticPCA, x: torch.Tensor, q: Normal, points: int = 4) -> Array:
    """E_q‖x - x̂(z)‖² by quadrature, one number for each row."""
    nodes, weights = gauss_hermite(2, points)
    total = torch.zeros(len(x)).double()
    for node, weight in zip(nodes, weights, strict=True):
        total = total + weight * (x - model.decode(q.mean + q.scale * torch.tensor(node)).mean).square().sum(1)
    return total.detach().numpy()


@verifies(
    "pca-autoencoder",
    r"\min_{V,W}\Vert X-XVW\Vert_F^2=\sum_{k>d_z}s_k^2",
    kind="identity",
    route="closed form",
    tolerance=1e-7,
    reason="the trained minimum is flat: an error of 1e-5 in a weight costs about 1e-9",
)
def pca_autoencoder(rng: np.random.Generator) -> Lines:
    dim, latent = 5, 2
    x = rng.normal(size=(20, dim)) @ np.diag([3.0, 2.4, 1.5, 1.0, 0.7]) @ np.linalg.qr(rng.normal(size=(dim, dim)))[0]

    def loss(parameters: Array) -> tuple[float, Array]:
        v, w = parameters[: dim * latent].reshape(dim, latent), parameters[dim * latent :].reshape(latent, dim)
        residual = x - x @ v @ w
        gradients = -2 * x.T @ residual @ w.T, -2 * (x @ v).T @ residual
        return float(np.square(residual).sum()), np.concatenate([g.ravel() for g in gradients])

    start = 0.3 * rng.normal(size=2 * dim * latent)
    options = {"maxiter": 5000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-8, "maxcor": 30}
    trained = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options).fun
    _, s, right = np.linalg.svd(x, full_matrices=False)

    def error_of(kept: Array) -> float:
        return float(np.square(x - x @ kept.T @ kept).sum())

    line = "= Σ_{k>d_z} s_k²"
    return Lines(
        {
            "the linear autoencoder, trained": trained,
            "= error of the first d_z principal directions": error_of(right[:latent]),
            line: np.square(s[latent:]).sum(),
        },
        [
            Mutant("d_z + 1 directions", {line: np.square(s[latent + 1 :]).sum()}),
            Mutant("singular values not squared", {line: s[latent:].sum()}),
            Mutant("the kept directions, not the discarded", {line: np.square(s[:latent]).sum()}),
            Mutant(
                "the last directions kept", {"= error of the first d_z principal directions": error_of(right[-latent:])}
            ),
        ],
    )


@verifies(
    "prior-standard-normal",
    r"p(z)=N(z;0,I)=\prod_{j=1}^{d_z}\frac1{\sqrt{2\pi}}\,e^{-z_j^2/2}",
    kind="definition",
    route="closed form",
    **FORMULA,
)
def prior_standard_normal(rng: np.random.Generator) -> Lines:
    model, x = random_pca(rng, dim=5, latent=3)
    z = rng.normal(size=(3, 3))

    def formula(half: float = 0.5, roots: int = 3) -> Array:
        return -half * np.square(z).sum(1) - roots / 2 * np.log(2 * np.pi)

    line = "= Σ_j (-z_j²/2 - ½ log 2π)"
    return Lines(
        {"log N(z;0,I), by SciPy": multivariate_normal(np.zeros(3), np.eye(3)).logpdf(z), line: formula()},
        [
            Mutant(
                "the posterior for the prior", model.encode(x).log_prob(torch.tensor(z)).detach(), erratum="E000-12"
            ),
            Mutant("no ½ in the exponent", formula(half=1.0)),
            Mutant("one √2π for all coordinates", formula(roots=1)),
        ],
    )


@verifies(
    "mvn-density",
    r"N(z;\mu,\Sigma)=\frac1{\sqrt{(2\pi)^{d_z}\det\Sigma}}\exp\Big(-\frac12(z-\mu)^\top\Sigma^{-1}(z-\mu)\Big)",
    kind="definition",
    route="quadrature",
    **PLANE,
)
def mvn_density(rng: np.random.Generator) -> Lines:
    mean, covariance, other = rng.normal(size=2), _spd(rng, 2), rng.normal(size=2)
    precision, (nodes, weight) = np.linalg.inv(covariance), plane(30.0, 360)
    points = rng.normal(size=(3, 2))

    def density(
        z: Array, matrix: Array = precision, root: float = 0.5, pi_power: float = 1.0, right: Array | None = None
    ) -> Array:
        offset = z - mean
        second = offset if right is None else np.broadcast_to(right - mean, z.shape)
        constant = (2 * np.pi) ** pi_power * np.linalg.det(covariance) ** root
        return np.exp(-0.5 * np.einsum("ni,ij,nj->n", offset, matrix, second)) / constant

    def with_mass(**variant) -> Array:
        return np.append(density(points, **variant), weight @ density(nodes, **variant))

    return Lines(
        {
            "density at three points, by SciPy, and 1": np.append(
                multivariate_normal(mean, covariance).pdf(points), 1.0
            ),
            "= the formula there and its integral": with_mass(),
        },
        [
            # Its integral diverges: only the three points are compared.
            Mutant("x for z on the right of Σ⁻¹", np.append(density(points, right=other), 1.0), erratum="E002-02"),
            Mutant("Σ for Σ⁻¹", with_mass(matrix=covariance)),
            Mutant("determinant without its root", with_mass(root=1.0)),
            Mutant("2π without its power", with_mass(pi_power=0.5)),
        ],
    )


@verifies(
    "covariance-def",
    r"\Sigma_{ij}=\mathbb E\big[(z_i-\mu_i)(z_j-\mu_j)\big]",
    kind="definition",
    route="Monte Carlo",
    reason="five standard errors of a million draws",
)
def covariance_def(rng: np.random.Generator) -> Lines:
    # Not Gaussian, so that the definition is not mistaken for the Gaussian's parameter: z = m + A e with e
    # exponential, which has mean and variance one.
    root, shift = rng.normal(size=(2, 2)) + 0.5, rng.normal(size=2)
    z = rng.exponential(size=(1_000_000, 2)) @ root.T + shift
    mean = root.sum(1) + shift
    i, j = np.array([0, 0, 1]), np.array([0, 1, 1])
    line = "= mean of (z_i-μ_i)(z_j-μ_j) over draws"
    estimate, error = _mean((z[:, i] - mean[i]) * (z[:, j] - mean[j]))
    return Lines(
        {"AAᵀ": (root @ root.T)[i, j], line: estimate},
        [
            Mutant("not centred", (z[:, i] * z[:, j]).mean(0)),
            Mutant("the same coordinate twice", ((z[:, i] - mean[i]) ** 2).mean(0)),
            Mutant("divided by both standard deviations", estimate / (z.std(0)[i] * z.std(0)[j])),
        ],
        standard_errors={line: error},
    )


@verifies(
    "diag-gaussian-encoder",
    r"q_\phi(z\mid x)=N\big(z;\mu_\phi(x),\mathrm{diag}\,\sigma_\phi^2(x)\big)"
    r"=\prod_{j=1}^{d_z}N\big(z_j;\mu_{\phi,j}(x),\sigma_{\phi,j}^2(x)\big)",
    kind="definition",
    route="closed form",
    **FORMULA,
)
def diag_gaussian_encoder(rng: np.random.Generator) -> Lines:
    # An encoder of one hidden layer, from three dimensions to two.
    x, z = rng.normal(size=3), rng.normal(size=2)
    hidden = np.tanh(rng.normal(size=(4, 3)) @ x)
    mean, scale = rng.normal(size=(2, 4)) @ hidden, np.exp(0.3 * rng.normal(size=(2, 4)) @ hidden)
    line = "= Σ_j log N(z_j; μ_j, σ_j²)"

    def coordinates(scale: Array) -> float:
        return float(np.sum(-0.5 * ((z - mean) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)))

    return Lines(
        {
            "log N(z; μ, diag σ²), by SciPy": multivariate_normal(mean, np.diag(scale**2)).logpdf(z),
            line: coordinates(scale),
            "= Normal(μ, σ), by torch": Normal(torch.tensor(mean), torch.tensor(scale)).log_prob(torch.tensor(z)).sum(),
        },
        [
            Mutant(
                "σ²I, one variance for all coordinates",
                {line: coordinates(np.full(2, np.sqrt(np.mean(scale**2))))},
                erratum="E000-09",
            ),
            Mutant(
                "σ in the place of the variance",
                {
                    "log N(z; μ, diag σ²), by SciPy": multivariate_normal(mean, np.diag(scale)).logpdf(z),
                },
                erratum="E001-06",
            ),
            Mutant("1/σ for σ", {line: coordinates(1 / scale)}),
        ],
    )


def _kl_instance(rng: np.random.Generator) -> tuple[Array, Array, Callable]:
    """Mean and scale of a random q in the plane, and its expectation by quadrature."""
    mean, scale = rng.uniform(-1.5, 1.5, 2), rng.uniform(0.4, 1.4, 2)
    nodes, weight = plane(14.0, 360)
    density = np.exp(norm.logpdf(nodes, mean, scale).sum(1))

    def expectation(values: Callable[[Array], Array]) -> float:
        return float(weight @ (density * values(nodes)))

    return mean, scale, expectation


@verifies(
    "gaussian-kl-derivation",
    r"""\begin{aligned}
\mathrm{KL}(q_\phi(z\mid x)\Vert p(z))&=\mathbb E_{q_\phi(z\mid x)}\left[\log q_\phi(z\mid x)-\log p(z)\right]\\
&=\sum_{j=1}^{d_z}\mathbb E_{q_\phi(z\mid x)}\left[\log N(z_j;\mu_j,\sigma_j^2)-\log N(z_j;0,1)\right]\\
&=\frac12\sum_{j=1}^{d_z}\mathbb E_{q_\phi(z\mid x)}\left[z_j^2-\frac{(z_j-\mu_j)^2}{\sigma_j^2}-\log\sigma_j^2\right]\\
&=\frac12\sum_{j=1}^{d_z}\left(\mathbb E_{q_\phi(z\mid x)}\big[z_j^2\big]-1-\log\sigma_j^2\right)\\
&=\frac12\sum_{j=1}^{d_z}\left(\sigma_j^2+\mu_j^2-1-\log\sigma_j^2\right)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **PLANE,
)
def gaussian_kl_derivation(rng: np.random.Generator) -> Lines:
    mean, scale, expectation = _kl_instance(rng)
    full_q, full_p = multivariate_normal(mean, np.diag(scale**2)), multivariate_normal(np.zeros(2), np.eye(2))
    nodes, weights = gauss_hermite(dim=1, points=5)
    nodes = nodes[:, 0]

    def one_dimensional(function: Callable[[Array, float, float], Array]) -> float:
        """Σ_j of an expectation over z_j alone."""
        return float(sum(weights @ function(m + s * nodes, m, s) for m, s in zip(mean, scale, strict=True)))

    second = "= Σ_j E_q[log N(z_j;μ_j,σ_j²) - log N(z_j;0,1)]"
    third = "= ½ Σ_j E_q[z_j² - (z_j-μ_j)²/σ_j² - log σ_j²]"
    fourth = "= ½ Σ_j (E_q[z_j²] - 1 - log σ_j²)"

    def squares(divisor: Array) -> float:
        return 0.5 * expectation(lambda z: (z**2 - (z - mean) ** 2 / divisor - np.log(scale**2)).sum(1))

    return Lines(
        {
            "KL(q‖p), by torch": _kl_to_prior(Normal(torch.tensor(mean), torch.tensor(scale))),
            "= E_q[log q - log p]": expectation(lambda z: full_q.logpdf(z) - full_p.logpdf(z)),
            second: one_dimensional(lambda z, m, s: norm.logpdf(z, m, s) - norm.logpdf(z)),
            third: squares(scale**2),
            fourth: 0.5 * (expectation(lambda z: (z**2).sum(1)) - np.sum(1 + np.log(scale**2))),
            "= ½ Σ_j (σ_j² + μ_j² - 1 - log σ_j²)": 0.5 * np.sum(scale**2 + mean**2 - 1 - np.log(scale**2)),
        },
        [
            Mutant("log p added", {"= E_q[log q - log p]": expectation(lambda z: full_q.logpdf(z) + full_p.logpdf(z))}),
            Mutant("σ for σ² under the square", {third: squares(scale)}),
            Mutant("E[z_j²] = σ_j², the mean forgotten", 0.5 * np.sum(scale**2 - 1 - np.log(scale**2))),
            Mutant("E[z_j²] = μ_j², the variance forgotten", 0.5 * np.sum(mean**2 - 1 - np.log(scale**2))),
        ],
    )


@verifies(
    "gaussian-kl-closed-form",
    r"\mathrm{KL}(q_\phi(z\mid x)\Vert p(z))"
    r"=\frac12\sum_{j=1}^{d_z}\left(\sigma_j^2+\mu_j^2-1-\log\sigma_j^2\right)",
    kind="identity",
    route="quadrature",
    **PLANE,
)
def gaussian_kl_closed_form(rng: np.random.Generator) -> Lines:
    mean, scale, expectation = _kl_instance(rng)
    v = scale**2
    return Lines(
        {
            "KL(q‖p), by torch": _kl_to_prior(Normal(torch.tensor(mean), torch.tensor(scale))),
            "= ∫ q log(q/p)": expectation(lambda z: (norm.logpdf(z, mean, scale) - norm.logpdf(z)).sum(1)),
            "= ½ Σ_j (σ_j² + μ_j² - 1 - log σ_j²)": 0.5 * np.sum(v + mean**2 - 1 - np.log(v)),
        },
        [
            Mutant("KL the other way round", 0.5 * np.sum(1 / v + mean**2 / v - 1 + np.log(v))),
            Mutant("log σ for log σ²", 0.5 * np.sum(v + mean**2 - 1 - np.log(scale))),
            Mutant("the log's sign", 0.5 * np.sum(v + mean**2 - 1 + np.log(v))),
            Mutant("μ not squared", 0.5 * np.sum(v + mean - 1 - np.log(v))),
            Mutant("without the ½", np.sum(v + mean**2 - 1 - np.log(v))),
            Mutant("averaged over coordinates", 0.5 * np.mean(v + mean**2 - 1 - np.log(v))),
        ],
    )


@verifies(
    "recon-monte-carlo",
    r"\mathbb E_{q_\phi(z\mid x)}\left[\log p_\theta(x\mid z)\right]"
    r"\approx\frac1L\sum_{l=1}^L\log p_\theta(x\mid z^{(l)}),\qquad z^{(l)}\sim q_\phi(z\mid x)",
    kind="estimate",
    route="Monte Carlo",
    reason="five standard errors over 20,000 repetitions of the average over L = 5 draws",
)
def recon_monte_carlo(rng: np.random.Generator) -> Lines:
    model, x = random_pca(rng)
    x, q, repetitions, draws = x[:1], _code(rng, batch=1), 20_000, 5
    closed = (linear_gaussian_elbo(model, x, q) + _kl_to_prior(q)).item()
    noise = torch.tensor(rng.normal(size=(repetitions * draws, 2)))

    def log_likelihood(z: torch.Tensor) -> Array:
        return model.decode(z).log_prob(x).detach().numpy().reshape(repetitions, draws)

    inside = log_likelihood(q.mean + q.scale * noise)
    line = "= mean of (1/L) Σ_l log p(x|z_l), L = 5"
    estimate, error = _mean(inside.mean(1))
    return Lines(
        {"E_q[log p(x|z)], closed form": closed, line: estimate},
        [
            Mutant("the sum without 1/L", inside.sum(1).mean(), erratum="E000-10"),
            Mutant("draws from the prior", log_likelihood(noise).mean(), erratum="E003-33"),
            Mutant(
                "probabilities averaged before the log",
                (logsumexp(inside, axis=1) - np.log(draws)).mean(),
                erratum="E003-05",
            ),
        ],
        standard_errors={line: error},
    )


@verifies(
    "gaussian-decoder-loglik",
    r"\log p_\theta(x\mid z)=-\frac{\Vert x-\hat x_\theta(z)\Vert^2}{2\sigma_x^2}-\frac{d_x}2\log(2\pi\sigma_x^2)",
    kind="identity",
    route="closed form",
    **FORMULA,
)
def gaussian_decoder_loglik(rng: np.random.Generator) -> Lines:
    dim, scale = 6, rng.uniform(0.5, 0.8)
    x, mean = rng.normal(size=dim), np.tanh(rng.normal(size=(dim, 2)) @ rng.normal(size=2))
    square = np.square(x - mean).sum()

    def formula(factor: float = 0.5 / scale**2, dim: int = dim, variance: float = scale**2) -> float:
        return -factor * square - dim / 2 * np.log(2 * np.pi * variance)

    line = "= -‖x-x̂‖²/2σ² - (d/2) log 2πσ²"
    return Lines(
        {
            "log N(x; x̂, σ²I), by SciPy": multivariate_normal(mean, scale**2 * np.eye(dim)).logpdf(x),
            line: formula(),
            "= Normal(x̂, σ), by torch": Independent(Normal(torch.tensor(mean), scale), 1).log_prob(torch.tensor(x)),
        },
        [
            Mutant("squared error without 1/2σ²", {line: formula(factor=1.0)}, erratum="E000-11"),
            Mutant("σ for σ² in the square's factor", {line: formula(factor=0.5 / scale)}),
            Mutant("d_x forgotten", {line: formula(dim=1)}),
            Mutant("σ for σ² in the log", {line: formula(variance=scale)}),
        ],
    )


@verifies(
    "bernoulli-decoder-loglik",
    r"""\begin{aligned}
\log p_\theta(x\mid z)&=\sum_{d=1}^{d_x}\left[x_d\log\hat x_d+(1-x_d)\log(1-\hat x_d)\right]\\
&=\sum_{d=1}^{d_x}\left[x_d\,\ell_d-\log(1+e^{\ell_d})\right]
\quad\text{with }\hat x_d=\frac1{1+e^{-\ell_d}}
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **FORMULA,
)
def bernoulli_decoder_loglik(rng: np.random.Generator) -> Lines:
    # Every image of six pixels: its log-probability, and the sum of all the probabilities.
    logits = 1.5 * rng.normal(size=6)
    images = np.array(list(np.ndindex(*(2,) * 6)), dtype=float)

    def with_mass(log_p: Array) -> Array:
        return np.append(log_p, np.exp(log_p).sum())

    def entropy_form(mean: Array, x: Array = images) -> Array:
        return with_mass((x * np.log(mean) + (1 - x) * np.log(1 - mean)).sum(1))

    def logit_form(sign: float = 1.0, minus: float = -1.0) -> Array:
        return with_mass((images * logits + minus * np.log1p(np.exp(sign * logits))).sum(1))

    by_torch = Independent(Bernoulli(logits=torch.tensor(logits)), 1).log_prob(torch.tensor(images)).numpy()
    first = "= Σ_d x_d log x̂_d + (1-x_d) log(1-x̂_d)"
    return Lines(
        {
            "log Bernoulli(x; ℓ) of all x, by torch, and 1": np.append(by_torch, 1.0),
            first: entropy_form(expit(logits)),
            "= Σ_d x_d ℓ_d - log(1+e^ℓ_d)": logit_form(),
        },
        [
            Mutant("the sigmoid applied twice", {first: entropy_form(expit(expit(logits)))}),
            Mutant("x and 1-x exchanged", {first: entropy_form(expit(logits), 1 - images)}),
            Mutant("softplus of -ℓ", logit_form(sign=-1.0)),
            Mutant("softplus added", logit_form(minus=1.0)),
        ],
    )


class _Quartic:
    """f(z) = Σ_j a_j z_j⁴ + c z₁z₂, whose mean under a diagonal Gaussian has a gradient in closed form."""

    def __init__(self, rng: np.random.Generator):
        self.a, self.c = rng.uniform(0.2, 0.5, 2), rng.uniform(2, 3)
        self.mean, self.scale = rng.uniform(-1, 1, 2), rng.uniform(0.7, 1.1, 2)

    def __call__(self, z):
        a = torch.tensor(self.a) if isinstance(z, torch.Tensor) else self.a
        return (a * z**4).sum(-1) + self.c * z[..., 0] * z[..., 1]

    def expectation(self) -> float:
        m, v = self.mean, self.scale**2
        return float(np.sum(self.a * (m**4 + 6 * m**2 * v + 3 * v**2)) + self.c * m[0] * m[1])

    def gradient(self) -> Array:
        """Of the expectation, with respect to φ = (μ, log σ)."""
        m, v = self.mean, self.scale**2
        by_mean = self.a * (4 * m**3 + 12 * m * v) + self.c * m[::-1]
        return np.concatenate([by_mean, 12 * self.a * (m**2 * v + v**2)])

    def parameters(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(μ, log σ) once for each of n draws, so that autograd returns every draw's own gradient."""
        mean, log_scale = (torch.tensor(v).repeat(n, 1).requires_grad_() for v in (self.mean, np.log(self.scale)))
        return mean, log_scale


def _per_draw(values: torch.Tensor, *parameters: torch.Tensor) -> Array:
    return torch.cat(torch.autograd.grad(values.sum(), parameters), 1).numpy()


@verifies(
    "reparameterization",
    r"""\begin{aligned}
z&=\mu_\phi(x)+\sigma_\phi(x)\odot\epsilon,\qquad\epsilon\sim N(0,I)\\
\nabla_\phi\,\mathbb E_{q_\phi(z\mid x)}\left[f(z)\right]
&=\mathbb E_{N(\epsilon;0,I)}\left[\nabla_\phi f\big(\mu_\phi(x)+\sigma_\phi(x)\odot\epsilon\big)\right]
\end{aligned}""",
    kind="identity",
    route="Monte Carlo",
    tolerance=1e-9,
    reason="float64 derivatives of order ten; the estimate within five standard errors of 200,000 draws",
)
def reparameterization(rng: np.random.Generator) -> Lines:
    f = _Quartic(rng)

    def value_and_gradient(noise: Array, power: float = 1.0) -> Array:
        """f and its gradient for every row of noise."""
        mean, log_scale = f.parameters(len(noise))
        values = f(mean + (power * log_scale).exp() * torch.tensor(noise))
        return np.column_stack([values.detach().numpy(), _per_draw(values, mean, log_scale)])

    nodes, weights = gauss_hermite(2, 5)
    noise = rng.normal(size=(200_000, 2))
    draws = value_and_gradient(noise)
    estimate, error = _mean(draws)
    by_quadrature, by_draws = "= E_ε[f] and E_ε[∇f], by quadrature", "= the mean over draws"
    one_noise = np.repeat(noise[:, :1], 2, axis=1)
    cut = estimate * [1, 1, 1, 0, 0]
    return Lines(
        {
            "E_q[f] and its gradient, closed form": np.append(f.expectation(), f.gradient()),
            by_quadrature: weights @ value_and_gradient(nodes),
            by_draws: estimate,
        },
        [
            Mutant("σ² for σ", {by_quadrature: weights @ value_and_gradient(nodes, power=2.0)}, erratum="E001-06"),
            Mutant("one ε for all coordinates", {by_draws: value_and_gradient(one_noise).mean(0)}),
            Mutant("no gradient through σ", {by_draws: cut}),
        ],
        standard_errors={by_draws: error},
    )


@verifies(
    "score-function-gradient",
    r"""\begin{aligned}
\nabla_\phi\,\mathbb E_{q_\phi(z\mid x)}\left[f(z)\right]&=\int f(z)\,\nabla_\phi q_\phi(z\mid x)\,dz\\
&=\int f(z)\,q_\phi(z\mid x)\,\nabla_\phi\log q_\phi(z\mid x)\,dz\\
&=\mathbb E_{q_\phi(z\mid x)}\left[f(z)\,\nabla_\phi\log q_\phi(z\mid x)\right]
\end{aligned}""",
    kind="identity",
    route="Monte Carlo",
    tolerance=1e-9,
    reason="integrals over a plane in float64; the estimate within five standard errors of 300,000 draws",
)
def score_function_gradient(rng: np.random.Generator) -> Lines:
    f = _Quartic(rng)
    nodes, weight = plane(13.0, 260)
    values = f(nodes)
    mean, log_scale = (p[0].detach().requires_grad_() for p in f.parameters(1))
    density = Normal(mean, log_scale.exp()).log_prob(torch.tensor(nodes)).sum(1).exp()
    of_density = torch.autograd.grad((torch.tensor(weight * values) * density).sum(), (mean, log_scale))

    # The score by hand; on the draws it comes from autograd.
    standard = (nodes - f.mean) / f.scale
    score = np.concatenate([standard / f.scale, standard**2 - 1], axis=1)
    mass = weight * density.detach().numpy()

    n = 300_000
    mean, log_scale = f.parameters(n)
    z = torch.tensor(f.mean + f.scale * rng.normal(size=(n, 2)))
    log_q = Normal(mean, log_scale.exp()).log_prob(z).sum(1)
    scores = _per_draw(log_q, mean, log_scale)
    values_at, q_at = f(z).numpy()[:, None], log_q.exp().detach().numpy()[:, None]
    estimate, error = _mean(values_at * scores)
    second, last = "= ∫ f q ∇ log q", "= E_q[f ∇ log q], the mean over draws"
    return Lines(
        {
            "∇ E_q[f], closed form": f.gradient(),
            "= ∫ f ∇q": torch.cat(of_density),
            second: (mass * values) @ score,
            last: estimate,
        },
        [
            Mutant("∇q for ∇ log q", {last: (values_at * q_at * scores).mean(0)}),
            Mutant("the sign", {last: -estimate}),
            Mutant("the density forgotten under the integral", {second: (weight * values * (mass > 1e-9)) @ score}),
            Mutant("log f for f", {last: (np.log(np.abs(values_at)) * scores).mean(0)}),
        ],
        standard_errors={last: error},
    )


@verifies(
    "reparameterization-variance",
    r"""\begin{aligned}
\mathrm{Var}_{N(\epsilon;0,I)}\left[\frac{\partial}{\partial\mu_1}\Vert\mu+\sigma\epsilon\Vert^2\right]&=4\sigma^2\\
\mathrm{Var}_{q(z)}\left[\Vert z\Vert^2\,\frac{\partial\log q(z)}{\partial\mu_1}\right]
&=\frac{\Vert\mu\Vert^4}{\sigma^2}+2(d_z+4)\Vert\mu\Vert^2\\
&\quad+4\mu_1^2+(d_z+2)(d_z+4)\,\sigma^2
\end{aligned}""",
    kind="identity",
    route="Monte Carlo",
    tolerance=1e-9,
    reason="Gauss-Hermite quadrature, exact for polynomials; the estimate within five standard errors",
    instances=lambda: [(np.random.default_rng([30, dim]), dim) for dim in (2, 3, 4)],
)
def reparameterization_variance(instance: tuple[np.random.Generator, int]) -> Lines:
    rng, dim = instance
    mean, scale = rng.uniform(0.5, 1.0, dim) * rng.choice([-1, 1], dim), rng.uniform(0.7, 1.1)

    def gradients(noise: Array) -> Array:
        """Both single-draw estimates of ∂E[‖z‖²]/∂μ₁ for every row of noise, by autograd."""
        path = torch.tensor(np.tile(mean, (len(noise), 1)), requires_grad=True)
        moved = (path + scale * torch.tensor(noise)).square().sum(1)
        rows = torch.tensor(np.tile(mean, (len(noise), 1)), requires_grad=True)
        z = torch.tensor(mean + scale * noise)
        log_q = Normal(rows, scale).log_prob(z).sum(1)
        score = z.square().sum(1).numpy() * _per_draw(log_q, rows)[:, 0]
        return np.stack([_per_draw(moved, path)[:, 0], score], axis=1)

    nodes, weights = gauss_hermite(dim, 5)
    at_nodes = gradients(nodes)
    first, second = weights @ at_nodes, weights @ at_nodes**2
    draws = gradients(rng.normal(size=(400_000, dim)))
    estimate, error = _mean((draws - draws.mean(0)) ** 2)
    norm2, last = mean @ mean, (dim + 2) * (dim + 4)

    def formula(reparameterized=4 * scale**2, middle=2 * (dim + 4) * norm2, last=last) -> Array:
        return np.array([reparameterized, norm2**2 / scale**2 + middle + 4 * mean[0] ** 2 + last * scale**2])

    closed, by_draws = "= the two formulas", "= the variances over draws"
    return Lines(
        {"both variances, by quadrature": second - first**2, closed: formula(), by_draws: estimate},
        [
            Mutant("2σ² for 4σ²", {closed: formula(reparameterized=2 * scale**2)}),
            Mutant("4μ² for 4σ²", {closed: formula(reparameterized=4 * mean[0] ** 2)}),
            Mutant("second moments for variances", {"both variances, by quadrature": second}),
            Mutant("(d_z+2)² for (d_z+2)(d_z+4)", {closed: formula(last=(dim + 2) ** 2)}),
            Mutant("2(d_z+2)‖μ‖²", {closed: formula(middle=2 * (dim + 2) * norm2)}),
        ],
        standard_errors={by_draws: error},
    )


@verifies(
    "logvar-parameterization",
    r"\sigma_\phi(x)=\exp\Big(\frac12\log\sigma_\phi^2(x)\Big)",
    kind="identity",
    route="closed form",
    tolerance=1e-12,
    reason="a logarithm and an exponential in float64",
)
def logvar_parameterization(rng: np.random.Generator) -> Lines:
    log_variance = rng.uniform(-2, 1, 3)
    # Another way to a Gaussian's scale: from its entropy, H = log σ + ½ log 2πe.
    spread = MultivariateNormal(torch.zeros(3, 1).double(), torch.tensor(np.exp(log_variance))[:, None, None])
    line = "= exp(½ log σ²)"
    return Lines(
        {
            "√σ²": np.sqrt(np.exp(log_variance)),
            line: np.exp(0.5 * log_variance),
            "= exp(H - ½ log 2πe)": np.exp(spread.entropy().numpy() - 0.5 * np.log(2 * np.pi * np.e)),
        },
        [
            Mutant("without the ½: a variance for a scale", {line: np.exp(log_variance)}),
            Mutant("the sign", {line: np.exp(-0.5 * log_variance)}),
            Mutant("the half outside", {line: 0.5 * np.exp(log_variance)}),
        ],
    )


@verifies(
    "vae-loss-code",
    r"\Vert x-\hat x_\theta(z)\Vert^2+\mathrm{KL}(q_\phi(z\mid x)\Vert p(z))"
    r"=-\hat{\mathcal L}(\theta,\phi;x)\Big|_{\sigma_x^2=1/2}-\frac{d_x}2\log\pi",
    kind="identity",
    route="closed form",
    **FORMULA,
)
def vae_loss_code(rng: np.random.Generator) -> Lines:
    model, x = random_pca(rng)
    q, dim = _code(rng), x.shape[1]
    z = q.mean + q.scale * torch.tensor(rng.normal(size=(3, 2)))
    mean = model.decode(z).mean.detach()
    # The loss as code writes it, with the logarithm of the variance.
    log_variance = 2 * q.scale.log()
    kl = -0.5 * (1 + log_variance - q.mean.square() - log_variance.exp()).sum(1)
    square = (x - mean).square().sum(1)

    def right(variance: float = 0.5, constant: float = dim / 2 * np.log(np.pi)) -> torch.Tensor:
        log_likelihood = Independent(Normal(mean, variance**0.5), 1).log_prob(x)
        return -(log_likelihood - _kl_to_prior(q)) - constant

    line = "SSE + KL"
    return Lines(
        {line: square + kl, "= -L̂ at σ_x² = ½, minus (d_x/2) log π": right()},
        [
            Mutant("σ_x² = 1", right(1.0), erratum="E003-02"),
            Mutant("σ_x² = 1 with its own constant, (d_x/2) log 2π", right(1.0, dim / 2 * np.log(2 * np.pi))),
            Mutant("squares averaged over the pixels", {line: square / dim + kl}),
            Mutant("KL averaged over the latents", {line: square + kl / 2}),
            Mutant("the constant forgotten", right(constant=0.0)),
        ],
    )


@verifies(
    "decoder-variance-beta",
    r"""\begin{aligned}
-\mathcal L(\theta,\phi;x)
&=\frac1{2\sigma_x^2}\,\mathbb E_{q_\phi}\Vert x-\hat x_\theta(z)\Vert^2+\mathrm{KL}(q_\phi\Vert p)
+\frac{d_x}2\log(2\pi\sigma_x^2)\\
&=\frac1{2\sigma_x^2}\Big(\mathbb E_{q_\phi}\Vert x-\hat x_\theta(z)\Vert^2+2\sigma_x^2\,\mathrm{KL}(q_\phi\Vert p)\Big)
+\frac{d_x}2\log(2\pi\sigma_x^2)\\
&=\frac1\beta\Big(\mathbb E_{q_\phi}\Vert x-\hat x_\theta(z)\Vert^2+\beta\,\mathrm{KL}(q_\phi\Vert p)\Big)
+\frac{d_x}2\log(\pi\beta)\\
&\quad\text{with }\beta=2\sigma_x^2
\end{aligned}""",
    kind="identity",
    route="quadrature",
    **QUADRATURE,
)
def decoder_variance_beta(rng: np.random.Generator) -> Lines:
    model, x = random_pca(rng)
    q, dim, s2 = _code(rng), x.shape[1], model.log_scale.exp().item() ** 2
    square, kl = _expected_square(model, x, q), _kl_to_prior(q).numpy()
    w = model.weight.detach()
    at_mean = (x - model.decode(q.mean).mean.detach()).square().sum(1)
    by_hand = (at_mean + q.variance @ w.square().sum(0)).numpy()
    nodes, weights = gauss_hermite(2, 5)
    log_p = sum(
        weight * model.decode(q.mean + q.scale * torch.tensor(node)).log_prob(x).detach().numpy()
        for node, weight in zip(nodes, weights, strict=True)
    )

    def last(beta: float, weight: float | None = None, constant: float | None = None) -> Array:
        constant = np.pi * beta if constant is None else constant
        return (by_hand + (beta if weight is None else weight) * kl) / beta + dim / 2 * np.log(constant)

    return Lines(
        {
            "-L, closed form": -linear_gaussian_elbo(model, x, q).detach().numpy(),
            "= -E_q[log p(x|z)] + KL": -log_p + kl,
            "= E_q‖x-x̂‖²/2σ² + KL + (d/2) log 2πσ²": square / (2 * s2) + kl + dim / 2 * np.log(2 * np.pi * s2),
            "= (E_q‖x-x̂‖² + 2σ² KL)/2σ² + (d/2) log 2πσ²": (by_hand + 2 * s2 * kl) / (2 * s2)
            + dim / 2 * np.log(2 * np.pi * s2),
            "= (E_q‖x-x̂‖² + β KL)/β + (d/2) log πβ": last(2 * s2),
        },
        [
            Mutant("weight 1 at every σ_x²", last(2 * s2, weight=1.0), erratum="E003-02"),
            Mutant("β = σ_x²", last(s2)),
            Mutant("β = 1/(2σ_x²)", last(0.5 / s2)),
            Mutant("log 2πβ for log πβ", last(2 * s2, constant=4 * np.pi * s2)),
            Mutant(
                "the spread of q forgotten",
                {
                    "= E_q‖x-x̂‖²/2σ² + KL + (d/2) log 2πσ²": at_mean.numpy() / (2 * s2)
                    + kl
                    + dim / 2 * np.log(2 * np.pi * s2)
                },
            ),
        ],
    )


@verifies(
    "optimal-decoder-variance",
    r"\arg\max_{\sigma_x^2}\,\mathbb E_{\hat p_N(x)}\left[\mathcal L(\theta,\phi;x)\right]"
    r"=\frac1{d_x}\,\mathbb E_{\hat p_N(x)}\,\mathbb E_{q_\phi(z\mid x)}\Vert x-\hat x_\theta(z)\Vert^2",
    kind="identity",
    route="autograd",
    tolerance=1e-9,
    reason="the root of a float64 derivative, found to 1e-13 in log σ",
)
def optimal_decoder_variance(rng: np.random.Generator) -> Lines:
    model, x = random_pca(rng)
    q, dim = _code(rng), x.shape[1]

    def slope(log_scale: float) -> float:
        """Of the mean bound, in log σ_x."""
        with torch.no_grad():
            model.log_scale.fill_(log_scale)
        elbo = linear_gaussian_elbo(model, x, q).mean()
        return torch.autograd.grad(elbo, model.log_scale)[0].item()

    found = np.exp(2 * optimize.brentq(slope, -4, 4, xtol=1e-13))
    square = _expected_square(model, x, q)
    at_mean = (x - model.decode(q.mean).mean).square().sum(1).detach().numpy()
    return Lines(
        {"argmax of the bound": found, "= E E_q‖x-x̂(z)‖² / d_x": square.mean() / dim},
        [
            Mutant("d_x forgotten", square.mean()),
            Mutant("at the mean of q only", at_mean.mean() / dim),
            Mutant("the scale for the variance", np.sqrt(square.mean() / dim)),
            Mutant("half of it", square.mean() / (2 * dim)),
        ],
    )


@verifies(
    "beta-vae",
    r"\mathcal L_\beta(\theta,\phi;x)=\mathbb E_{q_\phi(z\mid x)}\left[\log p_\theta(x\mid z)\right]"
    r"-\beta\,\mathrm{KL}(q_\phi(z\mid x)\Vert p(z))",
    kind="definition",
    route="quadrature",
    **QUADRATURE,
)
def beta_vae(rng: np.random.Generator) -> Lines:
    model, x = random_pca(rng)
    q, beta = _code(rng), rng.uniform(2, 5)
    kl = _kl_to_prior(q).numpy()
    nodes, weights = gauss_hermite(2, 5)
    reconstruction, ratio = 0.0, 0.0
    for node, weight in zip(nodes, weights, strict=True):
        z = q.mean + q.scale * torch.tensor(node)
        reconstruction = reconstruction + weight * model.decode(z).log_prob(x).detach().numpy()
        ratio = ratio + weight * (q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1).numpy()
    bound = linear_gaussian_elbo(model, x, q).detach().numpy()
    return Lines(
        {
            "L - (β-1) KL, closed form": bound - (beta - 1) * kl,
            "= E_q[log p(x|z)] - β KL": reconstruction - beta * ratio,
        },
        [
            Mutant("β on the reconstruction", beta * reconstruction - ratio),
            Mutant("1/β for β", reconstruction - ratio / beta),
            Mutant("KL added", reconstruction + beta * ratio, erratum="E001-01"),
            Mutant("β² for β", reconstruction - beta**2 * ratio),
        ],
    )


def _tempered(toy: Latent, power: float) -> tuple[Array, float]:
    """log q_β at the nodes and log Z_β, for p(z) p(x|z)^power."""
    log_q = toy.log_prior + power * toy.log_likelihood
    log_z = float(np.log(toy.integral(np.exp(log_q))))
    return log_q - log_z, log_z


@verifies(
    "beta-vae-optimum",
    r"""\begin{aligned}
\mathcal L_\beta(\theta,\phi;x)&=\beta\,\mathbb E_{q_\phi(z\mid x)}\left[
\log\frac{p(z)\,p_\theta(x\mid z)^{1/\beta}}{q_\phi(z\mid x)}\right]\\
&=\beta\log Z_\beta-\beta\,\mathrm{KL}(q_\phi(z\mid x)\Vert q_\beta(z\mid x))\\
&\le\beta\log Z_\beta,
\qquad q_\beta(z\mid x)=\frac{p(z)\,p_\theta(x\mid z)^{1/\beta}}{Z_\beta}
\end{aligned}""",
    kind="inequality",
    route="quadrature",
    instances=latents,
    tolerance=1e-9,
    reason="float64 sums over up to 130,000 nodes, values up to a hundred",
)
def beta_vae_optimum(toy: Latent) -> Lines:
    beta = 3.0
    best, log_z = _tempered(toy, 1 / beta)

    def objective(log_q: Array) -> float:
        return toy.mean(log_q, toy.log_likelihood) - beta * toy.kl(log_q, toy.log_prior)

    value = objective(toy.log_q)
    second, attained = "= β log Z_β - β KL(q‖q_β)", "= L_β at q = q_β"
    wrong, wrong_z = _tempered(toy, beta)
    return Lines(
        {
            "E_q[log p(x|z)] - β KL(q‖p(z))": value,
            "= β E_q[log p(z) p(x|z)^(1/β) / q]": beta
            * toy.mean(toy.log_q, toy.log_prior + toy.log_likelihood / beta - toy.log_q),
            second: beta * log_z - beta * toy.kl(toy.log_q, best),
            "≤ β log Z_β": beta * log_z,
            attained: objective(best),
        },
        [
            Mutant("p(x|z)^β", {second: beta * wrong_z - beta * toy.kl(toy.log_q, wrong)}),
            Mutant("KL the other way round", {second: beta * log_z - beta * toy.kl(best, toy.log_q)}),
            Mutant("KL without β", {second: beta * log_z - toy.kl(toy.log_q, best)}),
            Mutant("attained at the posterior", {attained: objective(toy.log_posterior)}),
        ],
    )


@verifies(
    "beta-vae-linear-gaussian",
    r"q_\beta(z\mid x)=N\Big(z;\ \frac1{\beta\sigma_x^2}\Lambda_\beta^{-1}W^\top(x-\mu),\ \Lambda_\beta^{-1}\Big),"
    r"\qquad\Lambda_\beta=I+\frac1{\beta\sigma_x^2}W^\top W",
    kind="identity",
    route="autograd",
    tolerance=1e-6,
    reason="an optimum found numerically to a gradient of 1e-8",
)
def beta_vae_linear_gaussian(rng: np.random.Generator) -> Lines:
    model, x = random_pca(rng)
    beta, s2 = rng.uniform(2, 5), model.log_scale.exp().item() ** 2
    w, centred = model.weight.detach(), (x[0] - model.mean).detach()
    prior = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())

    def unpack(p: torch.Tensor) -> MultivariateNormal:
        zero = torch.zeros((), dtype=p.dtype)
        factor = torch.stack([torch.stack([p[2].exp(), zero]), torch.stack([p[3], p[4].exp()])])
        return MultivariateNormal(p[:2], scale_tril=factor)

    def negative(parameters: Array) -> tuple[float, Array]:
        """-L_β for any Gaussian q, up to a constant."""
        p = torch.tensor(parameters, requires_grad=True)
        q = unpack(p)
        square = (centred - w @ q.mean).square().sum() + (w @ q.scale_tril).square().sum()
        value = square / (2 * s2) + beta * kl_divergence(q, prior)
        return value.item(), torch.autograd.grad(value, p)[0].numpy()

    found = optimize.minimize(negative, np.zeros(5), jac=True, method="BFGS", options={"gtol": 1e-9})
    best = unpack(torch.tensor(found.x))

    def gaussian(precision_factor: float, pull_factor: float) -> Array:
        precision = np.eye(2) + precision_factor * (w.T @ w).numpy()
        mean = pull_factor * np.linalg.solve(precision, (w.T @ centred).numpy())
        return np.concatenate([mean, np.linalg.inv(precision)[[0, 0, 1], [0, 1, 1]]])

    right = 1 / (beta * s2)
    return Lines(
        {
            "mean and covariance of the best q": np.concatenate(
                [best.mean, best.covariance_matrix[[0, 0, 1], [0, 1, 1]]]
            ),
            "= Λ_β⁻¹Wᵀ(x-μ)/βσ² and Λ_β⁻¹": gaussian(right, right),
        },
        [
            Mutant("the posterior, β = 1", gaussian(1 / s2, 1 / s2)),
            Mutant("β/σ² for 1/βσ²", gaussian(beta / s2, beta / s2)),
            Mutant("β in the covariance only", gaussian(right, 1 / s2)),
        ],
    )


@verifies(
    "beta-vae-collapse",
    r"""\begin{aligned}
\beta<\beta^\prime\quad\Longrightarrow\quad\mathrm{KL}(q_\beta(z\mid x)\Vert p(z))
&\ge\mathrm{KL}(q_{\beta^\prime}(z\mid x)\Vert p(z))\\
&\longrightarrow0\quad(\beta^\prime\to\infty)
\end{aligned}""",
    kind="inequality",
    route="quadrature",
    instances=latents,
    tolerance=1e-10,
    reason="float64 sums over up to 130,000 nodes; the limit is taken at β = 10⁸",
)
def beta_vae_collapse(toy: Latent) -> Lines:
    def kl(beta: float) -> float:
        return toy.kl(_tempered(toy, 1 / beta)[0], toy.log_prior)

    second, limit = "≥ KL(q_4‖p(z))", "= KL(q_β‖p(z)) at β = 10⁸"
    return Lines(
        {
            "KL(p(z|x)‖p(z)), β = 1": toy.kl(toy.log_posterior, toy.log_prior),
            "≥ KL(q_2‖p(z))": kl(2.0),
            second: kl(4.0),
            "≥ 0": 0.0,
            limit: kl(1e8),
        },
        [
            Mutant("the KL grows with its weight", {"≥ KL(q_2‖p(z))": kl(1 / 2), second: kl(1 / 4)}, erratum="E003-04"),
            Mutant("the limit is the posterior", {limit: toy.kl(toy.log_posterior, toy.log_prior)}),
        ],
    )


@verifies(
    "rate-distortion",
    r"""\begin{aligned}
&\mathbb E_{p_{\rm data}(x)}\left[\mathrm{KL}(q_\phi(z\mid x)\Vert p(z))\right]\\
&\quad=\mathbb E_{p_{\rm data}(x)}\mathbb E_{q_\phi(z\mid x)}\left[
\log\frac{q_\phi(z\mid x)}{q_\phi(z)}+\log\frac{q_\phi(z)}{p(z)}\right]\\
&\quad=I_q(x;z)+\mathrm{KL}(q_\phi(z)\Vert p(z))\\
&\quad\ge I_q(x;z)
\end{aligned}""",
    kind="inequality",
    route="enumeration",
    tolerance=1e-12,
    reason="sums of a few float64 numbers of order one",
)
def rate_distortion(rng: np.random.Generator) -> Lines:
    data, prior = rng.dirichlet(np.full(4, 2.0)), rng.dirichlet(np.full(3, 2.0))
    code = rng.dirichlet(np.full(3, 1.0), size=4)
    aggregate = data @ code
    # The information from three entropies, H(x) + H(z) - H(x,z); the rate as a sum of SciPy's divergences.
    information = entropy(data) + entropy(aggregate) - entropy((data[:, None] * code).ravel())
    rate = sum(p * entropy(q, prior) for p, q in zip(data, code, strict=True))
    inside = np.log(code / aggregate) + np.log(aggregate / prior)
    line = "= I_q(x;z) + KL(q(z)‖p(z))"
    conditional = data @ entropy(code, axis=1)
    return Lines(
        {
            "E_data[KL(q(z|x)‖p(z))]": rate,
            "= E[log q(z|x)/q(z) + log q(z)/p(z)]": (data[:, None] * code * inside).sum(),
            line: information + entropy(aggregate, prior),
            "≥ I_q(x;z)": information,
        },
        [
            Mutant("KL of the marginals the other way round", {line: information + entropy(prior, aggregate)}),
            Mutant("KL of the marginals subtracted", {line: information - entropy(aggregate, prior)}),
            Mutant("q(z) averaged without the data's weights", {line: information + entropy(code.mean(0), prior)}),
            Mutant("the conditional entropy for the information", {line: conditional + entropy(aggregate, prior)}),
        ],
    )


@verifies(
    "vae-objective",
    r"\max_{\theta,\phi}\frac1N\sum_{n=1}^N\mathcal L(\theta,\phi;x^{(n)})"
    r"\le\max_\theta\frac1N\sum_{n=1}^N\log p_\theta(x^{(n)})",
    kind="inequality",
    route="autograd",
    tolerance=1e-6,
    reason="a maximum found numerically to a gradient of 1e-6",
)
def vae_objective(rng: np.random.Generator) -> Lines:
    # Where decoder and encoder are linear, the two maxima are the same: at a maximum-likelihood W whose columns
    # are orthogonal, the posterior is a diagonal Gaussian with a linear mean.
    dim, latent = 4, 2
    x = torch.tensor(rng.normal(size=(40, 3)) @ rng.normal(size=(3, dim)) + 0.5 * rng.normal(size=(40, dim)))
    model, encoder = ProbabilisticPCA(dim, latent).double(), torch.nn.Linear(dim, latent).double()
    log_scale = torch.zeros(latent, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        for p in (*model.parameters(), *encoder.parameters()):
            p.copy_(0.5 * torch.tensor(rng.normal(size=tuple(p.shape))))

    def q() -> Normal:
        return Normal(encoder(x), log_scale.exp().expand(len(x), latent))

    with torch.no_grad():
        start = linear_gaussian_elbo(model, x, q()).mean().item()
        # The best q of a fixed decoder is known: its mean is linear in x, its variances are the same for all x.
        only_encoder = linear_gaussian_elbo(model, x, mean_field(model, x)).mean().item()
    parameters = [*model.parameters(), *encoder.parameters(), log_scale]
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=600, history_size=40, tolerance_grad=1e-8, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = -linear_gaussian_elbo(model, x, q()).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    both = -closure().item()
    kl = _kl_to_prior(q()).mean().item()
    fitted = ProbabilisticPCA(dim, latent).double().fit(x)
    at_fit = linear_gaussian_elbo(fitted, x, mean_field(fitted, x)).mean().item()
    covariance = fitted.weight @ fitted.weight.T + (2 * fitted.log_scale).exp() * torch.eye(dim)
    evidence = multivariate_normal(fitted.mean.detach().numpy(), covariance.detach().numpy()).logpdf(x)
    line = "≤ max over θ and φ, numerically"
    return Lines(
        {
            "mean L at a random θ and φ": start,
            line: both,
            "= mean L at the best θ, diagonal posterior": at_fit,
            "≤ max over θ of mean log p(x), closed form": evidence.mean(),
        },
        [
            Mutant("maximised over φ alone", {line: only_encoder}, erratum="E001-02"),
            Mutant("without the KL", {line: both + kl}),
            Mutant("the sum for the mean of the evidence", evidence.sum()),
        ],
    )


@verifies(
    "vae-ancestral-sampling",
    r"z\sim p(z),\quad x\sim p_\theta(x\mid z)\qquad\Longrightarrow\qquad "
    r"x\sim p_\theta(x)=\int p_\theta(x\mid z)\,p(z)\,dz",
    kind="identity",
    route="Monte Carlo",
    reason="five standard errors of 300,000 draws",
)
def vae_ancestral_sampling(rng: np.random.Generator) -> Lines:
    model, x = random_pca(rng, dim=3)
    w, mu, s = model.weight.detach().numpy(), model.mean.detach().numpy(), model.log_scale.exp().item()
    n = 300_000
    noise, z = rng.normal(size=(n, 3)), rng.normal(size=(n, 2))
    posterior = model.encode(x[:1])
    of_posterior = posterior.mean.detach().numpy() + z @ posterior.scale_tril[0].detach().numpy().T
    i, j = np.triu_indices(3)

    def moments(z: Array, scale: float = s) -> Array:
        """Every draw's x_i and x_i x_j."""
        draws = z @ w.T + mu + scale * noise
        return np.concatenate([draws, draws[:, i] * draws[:, j]], axis=1)

    estimate, error = _mean(moments(z))
    second = w @ w.T + s**2 * np.eye(3) + np.outer(mu, mu)
    line = "= means over draws"
    return Lines(
        {"E[x_i] and E[x_i x_j] under p(x)": np.concatenate([mu, second[i, j]]), line: estimate},
        [
            Mutant("z from q(z|x): reconstructions", moments(of_posterior).mean(0), erratum="E002-12"),
            Mutant("the decoder's mean without its noise", moments(z, scale=0.0).mean(0), erratum="E000-08"),
            Mutant("σ² for σ as the noise's scale", moments(z, scale=s**2).mean(0)),
        ],
        standard_errors={line: error},
    )


def _off_posterior(rng: np.random.Generator) -> tuple[ProbabilisticPCA, torch.Tensor, Normal]:
    """A linear-Gaussian model, one x, and a q somewhat off the posterior."""
    model, x = random_pca(rng)
    near = mean_field(model, x[:1])
    return model, x[:1], Normal((near.mean + 0.8 * near.scale).detach(), (1.1 * near.scale).detach())


def _log_weights(
    rng: np.random.Generator, model: ProbabilisticPCA, x: torch.Tensor, q: Normal, shape: tuple[int, ...]
) -> Array:
    """log p(x|z) + log p(z) - log q(z|x) at draws from q."""
    z = q.mean + q.scale * torch.tensor(rng.normal(size=(np.prod(shape), 2)))
    log_w = model.decode(z).log_prob(x) + (Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(1)
    return log_w.detach().numpy().reshape(shape)


def _log_mean(log_values: Array) -> Array:
    return logsumexp(log_values, axis=-1) - np.log(log_values.shape[-1])


@verifies(
    "importance-weighted-bound",
    r"""\begin{aligned}
\mathcal L_L(\theta,\phi;x)
&=\mathbb E_{z^{(1)},\dots,z^{(L)}\sim q_\phi(z\mid x)}\left[\log\frac1L\sum_{l=1}^Lw_l\right]\\
w_l&=\frac{p_\theta(x\mid z^{(l)})\,p(z^{(l)})}{q_\phi(z^{(l)}\mid x)}\\
\mathcal L(\theta,\phi;x)&=\mathcal L_1\le\mathcal L_L\le\mathcal L_{L+1}\le\log p_\theta(x)
\end{aligned}""",
    kind="inequality",
    route="Monte Carlo",
    reason="five standard errors over 10,000 repetitions",
)
def importance_weighted_bound(rng: np.random.Generator) -> Lines:
    (model, x, q), shape = _off_posterior(rng), (10_000, 50)
    log_w = _log_weights(rng, model, x, q, shape)
    one, one_error = _mean(log_w[:, 0])
    five, five_error = _mean(_log_mean(log_w[:, :5]))
    fifty, fifty_error = _mean(_log_mean(log_w))
    # Where q is the posterior, averaging p(x|z) before the log gives more than log p(x).
    posterior = model.encode(x)
    z = posterior.mean + torch.tensor(rng.normal(size=(np.prod(shape), 2))) @ posterior.scale_tril[0].T
    reconstruction = model.decode(z).log_prob(x).detach().numpy().reshape(shape)
    prior = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    kl = kl_divergence(posterior, prior).item()
    last = "≤ L_50"
    return Lines(
        {
            "L, closed form": linear_gaussian_elbo(model, x, q).item(),
            "= L_1, the mean over draws": one,
            "≤ L_5": five,
            last: fifty,
            "≤ log p(x)": model.log_prob(x).item(),
        },
        [
            Mutant("the mean of the logs", {last: log_w.mean()}),
            Mutant("the sum without 1/L", {last: fifty + np.log(50)}),
            Mutant(
                "p(x|z) averaged, the KL subtracted after the log",
                {last: _log_mean(reconstruction).mean() - kl},
                erratum="E003-05",
            ),
            Mutant("w_l = p(x|z_l)", {last: _log_mean(reconstruction).mean()}),
        ],
        standard_errors={"= L_1, the mean over draws": one_error, "≤ L_5": five_error, last: fifty_error},
    )


@verifies(
    "iwae-tightening",
    r"""\begin{aligned}
\log\frac1{L+1}\sum_{l=1}^{L+1}w_l&=\log\frac1{L+1}\sum_{k=1}^{L+1}\left(\frac1L\sum_{l\ne k}w_l\right)\\
&\ge\frac1{L+1}\sum_{k=1}^{L+1}\log\left(\frac1L\sum_{l\ne k}w_l\right)
\end{aligned}""",
    kind="inequality",
    route="enumeration",
    tolerance=1e-12,
    reason="sums of a few float64 numbers",
)
def iwae_tightening(rng: np.random.Generator) -> Lines:
    log_w = _log_weights(rng, *_off_posterior(rng), (6,))
    left_out = np.array([_log_mean(np.delete(log_w, k)) for k in range(6)])
    # The same in plain numbers.
    w = np.exp(log_w - log_w.max())
    mean_of_means = np.log(np.mean((w.sum() - w) / 5)) + log_w.max()
    middle = "= log of the mean over k of the means without w_k"
    return Lines(
        {
            "log of the mean of L+1 weights": _log_mean(log_w),
            middle: mean_of_means,
            "≥ mean over k of the logs of the means without w_k": left_out.mean(),
        },
        [
            Mutant("no weight left out", {middle: np.log(w.sum() / 5) + log_w.max()}),
            Mutant("L+1 for L in the inner mean", {middle: np.log(np.mean((w.sum() - w) / 6)) + log_w.max()}),
            Mutant("the largest of the logs for their mean", left_out.max()),
        ],
    )


@verifies(
    "importance-sampled-evidence",
    r"\hat p_L(x)=\frac1L\sum_{l=1}^Lw_l,\qquad"
    r"\mathbb E_{z^{(1)},\dots,z^{(L)}\sim q_\phi(z\mid x)}\left[\hat p_L(x)\right]=p_\theta(x)",
    kind="identity",
    route="enumeration",
    tolerance=1e-13,
    reason="sums over the 27 outcomes of three draws",
)
def importance_sampled_evidence(rng: np.random.Generator) -> Lines:
    toy, draws = table(rng), 3
    outcomes = np.array(list(np.ndindex(*(3,) * draws)))

    def expectation(log_w: Array, combine: Callable = np.mean, log_q: Array = toy.log_q) -> float:
        probability = np.exp(log_q[outcomes]).prod(1)
        return float(probability @ combine(np.exp(log_w[outcomes]), axis=1))

    log_w = toy.log_joint - toy.log_q
    geometric = expectation(log_w, lambda w, axis: np.exp(np.log(w).mean(axis)))
    return Lines(
        {"p(x)": np.exp(toy.log_evidence), "= E[p̂_L(x)], L = 3": expectation(log_w)},
        [
            Mutant("the sum without 1/L", expectation(log_w, np.sum), erratum="E000-10"),
            Mutant("the mean of p(x|z) over q", expectation(toy.log_likelihood), erratum="E003-05"),
            Mutant("the exponential of the mean of the logs", geometric),
            Mutant("draws from the prior, weighted by 1/q", expectation(log_w, log_q=toy.log_prior)),
        ],
    )


@verifies(
    "effective-sample-size",
    r"\mathrm{ESS}=\frac{\big(\sum_{l=1}^Lw_l\big)^2}{\sum_{l=1}^Lw_l^2},\qquad1\le\mathrm{ESS}\le L",
    kind="inequality",
    route="closed form",
    tolerance=1e-11,
    reason="sums of twenty float64 numbers",
)
def effective_sample_size(rng: np.random.Generator) -> Lines:
    draws = 20
    w = np.exp(_log_weights(rng, *_off_posterior(rng), (draws,)))

    def ess(w: Array) -> float:
        return float(w.sum() ** 2 / (w**2).sum())

    line = "≤ ESS"
    return Lines(
        {
            "ESS of a single positive weight": ess(np.eye(draws)[0] * w),
            "= 1": 1.0,
            line: ess(w),
            "= L / (1 + Var[w]/mean(w)²)": draws / (1 + w.var() / w.mean() ** 2),
            "≤ L": float(draws),
            "= ESS of equal weights": ess(np.full(draws, w[0])),
        },
        [
            Mutant("the sum not squared", {line: w.sum() / (w**2).sum()}),
            Mutant("the weights below not squared", {line: w.sum() ** 2 / w.sum()}),
            Mutant("divided by L as well", {line: ess(w) / draws}),
            Mutant("the root", {line: np.sqrt(ess(w))}),
        ],
    )
