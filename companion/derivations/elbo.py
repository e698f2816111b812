"""Checks for the chapter on the evidence lower bound."""

import numpy as np
import torch
from scipy import optimize
from scipy.special import logsumexp, xlogy
from scipy.stats import multivariate_normal, norm
from torch.distributions import Categorical, Normal

from companion.derivations.registry import Lines, Mutant, Tolerance, verifies
from companion.derivations.toys import Latent, gauss_hermite, latents, random_pca, two_peaks
from companion.models.elbo import BernoulliMixture, linear_gaussian_elbo, mean_field
from companion.models.generative_problem import ProbabilisticPCA

# Sums over a table, and trapezoid sums over a plane, of float64 values up to about ten.
ROUNDING = Tolerance(tolerance=1e-10, reason="float64 sums over up to 130,000 nodes, values up to about ten")


@verifies(
    "importance-identity",
    r"p_\theta(x)=\mathbb E_{q_\phi(z\mid x)}\left[\frac{p_\theta(x,z)}{q_\phi(z\mid x)}\right]",
    kind="identity",
    route="quadrature",
    instances=latents,
    **ROUNDING,
)
def importance_identity(toy: Latent) -> Lines:
    ratio = np.exp(toy.log_joint - toy.log_q)
    return Lines(
        {"p(x)": np.exp(toy.log_evidence), "= E_q[p(x,z)/q(z|x)]": toy.mean(toy.log_q, ratio)},
        [
            Mutant("expectation under the prior", toy.mean(toy.log_prior, ratio)),
            Mutant("divided by the prior", toy.mean(toy.log_q, np.exp(toy.log_likelihood))),
            Mutant("not divided", toy.mean(toy.log_q, np.exp(toy.log_joint))),
        ],
    )


@verifies(
    "jensen-concave",
    r"\log\mathbb E[W]\ge\mathbb E[\log W]",
    kind="inequality",
    route="quadrature",
    instances=latents,
    **ROUNDING,
)
def jensen_concave(toy: Latent) -> Lines:
    log_w = toy.log_joint - toy.log_q
    of_mean = np.log(toy.mean(toy.log_q, np.exp(log_w)))
    mean_of_log = toy.mean(toy.log_q, log_w)
    return Lines(
        {"log E[W]": of_mean, "≥ E[log W]": mean_of_log},
        [
            Mutant(
                "the inequality of a convex function",
                {"log E[W]": mean_of_log, "≥ E[log W]": of_mean},
                erratum="E000-05",
            ),
            Mutant("the root of the mean square for W", np.log(toy.mean(toy.log_q, np.exp(2 * log_w))) / 2),
        ],
    )


@verifies(
    "elbo-jensen",
    r"""\begin{aligned}
\log p_\theta(x)&=\log\int p_\theta(x,z)\,dz\\
&=\log\int q_\phi(z\mid x)\,\frac{p_\theta(x,z)}{q_\phi(z\mid x)}\,dz\\
&=\log\mathbb E_{q_\phi(z\mid x)}\left[\frac{p_\theta(x,z)}{q_\phi(z\mid x)}\right]\\
&\ge\mathbb E_{q_\phi(z\mid x)}\left[\log\frac{p_\theta(x,z)}{q_\phi(z\mid x)}\right]=:\mathcal L(\theta,\phi;x)
\end{aligned}""",
    kind="inequality",
    route="quadrature",
    instances=latents,
    **ROUNDING,
)
def elbo_jensen(toy: Latent) -> Lines:
    log_w = toy.log_joint - toy.log_q
    return Lines(
        {
            "log p(x)": toy.log_evidence,
            "= log ∫ p(x,z) dz": np.log(toy.integral(np.exp(toy.log_joint))),
            "= log ∫ q(z|x) p(x,z)/q(z|x) dz": np.log(toy.integral(np.exp(toy.log_q) * np.exp(log_w))),
            "= log E_q[p(x,z)/q(z|x)]": np.log(toy.mean(toy.log_q, np.exp(log_w))),
            "≥ E_q[log p(x,z)/q(z|x)]": toy.mean(toy.log_q, log_w),
        },
        [
            Mutant("the ratio upside down", toy.mean(toy.log_q, -log_w)),
            Mutant("expectation under the posterior", toy.mean(toy.log_posterior, log_w)),
            Mutant(
                "q forgotten when 1 = q/q was inserted",
                {
                    "= log ∫ q(z|x) p(x,z)/q(z|x) dz": np.log(toy.integral(np.exp(log_w))),
                },
            ),
        ],
    )


@verifies(
    "elbo-gap-kl",
    r"""\begin{aligned}
\log p_\theta(x)&=\mathbb E_{q_\phi(z\mid x)}\left[\log p_\theta(x)\right]\\
&=\mathbb E_{q_\phi(z\mid x)}\left[\log\frac{p_\theta(x,z)}{p_\theta(z\mid x)}\right]\\
&=\mathbb E_{q_\phi(z\mid x)}\left[\log\frac{p_\theta(x,z)}{q_\phi(z\mid x)}\right]
+\mathbb E_{q_\phi(z\mid x)}\left[\log\frac{q_\phi(z\mid x)}{p_\theta(z\mid x)}\right]\\
&=\mathcal L(\theta,\phi;x)+\mathrm{KL}(q_\phi(z\mid x)\Vert p_\theta(z\mid x))
\end{aligned}""",
    kind="identity",
    route="quadrature",
    instances=latents,
    **ROUNDING,
)
def elbo_gap_kl(toy: Latent) -> Lines:
    elbo = toy.mean(toy.log_q, toy.log_likelihood) - toy.kl(toy.log_q, toy.log_prior)
    kl = toy.kl(toy.log_q, toy.log_posterior)
    return Lines(
        {
            "log p(x)": toy.log_evidence,
            "= E_q[log p(x)]": toy.mean(toy.log_q, np.full_like(toy.log_q, toy.log_evidence)),
            "= E_q[log p(x,z)/p(z|x)]": toy.mean(toy.log_q, toy.log_joint - toy.log_posterior),
            "= E_q[log p(x,z)/q] + E_q[log q/p(z|x)]": toy.mean(toy.log_q, toy.log_joint - toy.log_q)
            + toy.mean(toy.log_q, toy.log_q - toy.log_posterior),
            "= L + KL(q‖p(z|x))": elbo + kl,
        },
        [
            Mutant("KL the other way round", elbo + toy.kl(toy.log_posterior, toy.log_q)),
            Mutant("KL to the prior", elbo + toy.kl(toy.log_q, toy.log_prior), erratum="E000-06"),
            Mutant("KL subtracted", elbo - kl),
            Mutant("p(x) without its log", {"log p(x)": np.exp(toy.log_evidence)}, erratum="E002-03"),
            Mutant(
                "p(x|z) for p(x,z) over the posterior",
                {"= E_q[log p(x,z)/p(z|x)]": toy.mean(toy.log_q, toy.log_likelihood - toy.log_posterior)},
                erratum="E001-04",
            ),
        ],
    )


@verifies(
    "kl-to-posterior-expanded",
    r"""\begin{aligned}
&\mathrm{KL}(q_\phi(z\mid x)\Vert p_\theta(z\mid x))\\
&\quad=\mathbb E_{q_\phi(z\mid x)}\left[\log q_\phi(z\mid x)\right]
-\mathbb E_{q_\phi(z\mid x)}\left[\log p_\theta(z\mid x)\right]\\
&\quad=-H(q_\phi(z\mid x))-\mathbb E_{q_\phi(z\mid x)}\left[\log\frac{p_\theta(x,z)}{p_\theta(x)}\right]\\
&\quad=-\mathbb E_{q_\phi(z\mid x)}\left[\log p_\theta(x,z)\right]+\log p_\theta(x)-H(q_\phi(z\mid x))
\end{aligned}""",
    kind="identity",
    route="quadrature",
    instances=latents,
    **ROUNDING,
)
def kl_to_posterior_expanded(toy: Latent) -> Lines:
    entropy, cross = toy.entropy(toy.log_q), toy.mean(toy.log_q, toy.log_joint)
    return Lines(
        {
            "KL(q‖p(z|x))": toy.kl(toy.log_q, toy.log_posterior),
            "= E_q[log q] - E_q[log p(z|x)]": toy.mean(toy.log_q, toy.log_q) - toy.mean(toy.log_q, toy.log_posterior),
            "= -H(q) - E_q[log p(x,z)/p(x)]": -entropy - toy.mean(toy.log_q, toy.log_joint - toy.log_evidence),
            "= -E_q[log p(x,z)] + log p(x) - H(q)": -cross + toy.log_evidence - entropy,
        },
        [
            Mutant("entropy added", -cross + toy.log_evidence + entropy),
            Mutant("evidence subtracted", -cross - toy.log_evidence - entropy),
            Mutant("p(x|z) for the joint", -toy.mean(toy.log_q, toy.log_likelihood) + toy.log_evidence - entropy),
        ],
    )


@verifies(
    "elbo-entropy-form",
    r"\mathcal L(\theta,\phi;x)=\mathbb E_{q_\phi(z\mid x)}\left[\log p_\theta(x,z)\right]+H(q_\phi(z\mid x))",
    kind="identity",
    route="quadrature",
    instances=latents,
    **ROUNDING,
)
def elbo_entropy_form(toy: Latent) -> Lines:
    elbo = toy.log_evidence - toy.kl(toy.log_q, toy.log_posterior)
    energy, entropy = toy.mean(toy.log_q, toy.log_joint), toy.entropy(toy.log_q)
    return Lines(
        {"L": elbo, "= E_q[log p(x,z)] + H(q)": energy + entropy},
        [
            Mutant("entropy subtracted", energy - entropy),
            Mutant("entropy of the prior", energy + toy.entropy(toy.log_prior)),
            Mutant("no entropy", energy),
        ],
    )


@verifies(
    "elbo-recon-kl",
    r"""\begin{aligned}
\mathcal L(\theta,\phi;x)&=\mathbb E_{q_\phi(z\mid x)}\left[\log\frac{p_\theta(x\mid z)\,p(z)}{q_\phi(z\mid x)}\right]\\
&=\mathbb E_{q_\phi(z\mid x)}\left[\log p_\theta(x\mid z)\right]
-\mathbb E_{q_\phi(z\mid x)}\left[\log\frac{q_\phi(z\mid x)}{p(z)}\right]\\
&=\mathbb E_{q_\phi(z\mid x)}\left[\log p_\theta(x\mid z)\right]-\mathrm{KL}(q_\phi(z\mid x)\Vert p(z))
\end{aligned}""",
    kind="identity",
    route="quadrature",
    instances=latents,
    **ROUNDING,
)
def elbo_recon_kl(toy: Latent) -> Lines:
    reconstruction, kl = toy.mean(toy.log_q, toy.log_likelihood), toy.kl(toy.log_q, toy.log_prior)
    return Lines(
        {
            "L": toy.log_evidence - toy.kl(toy.log_q, toy.log_posterior),
            "= E_q[log p(x|z)p(z)/q]": toy.mean(toy.log_q, toy.log_likelihood + toy.log_prior - toy.log_q),
            "= E_q[log p(x|z)] - E_q[log q/p(z)]": reconstruction - toy.mean(toy.log_q, toy.log_q - toy.log_prior),
            "= E_q[log p(x|z)] - KL(q‖p(z))": reconstruction - kl,
        },
        [
            Mutant("KL added", reconstruction + kl, erratum="E001-01"),
            Mutant("KL the other way round", reconstruction - toy.kl(toy.log_prior, toy.log_q)),
            Mutant("KL to the posterior", reconstruction - toy.kl(toy.log_q, toy.log_posterior)),
            Mutant(
                "probabilities averaged before the log",
                np.log(toy.mean(toy.log_q, np.exp(toy.log_likelihood))) - kl,
                erratum="E003-05",
            ),
        ],
    )


@verifies(
    "elbo-tightness",
    r"\log p_\theta(x)-\mathcal L(\theta,\phi;x)=0\iff q_\phi(z\mid x)=p_\theta(z\mid x)",
    kind="identity",
    route="quadrature",
    instances=latents,
    **ROUNDING,
)
def elbo_tightness(toy: Latent) -> Lines:
    def gap(log_q: np.ndarray) -> float:
        return toy.log_evidence - toy.mean(log_q, toy.log_joint - log_q)

    # "Only if": at any other q the gap is at least Pinsker's bound, half the squared L1 distance.
    distance = toy.integral(np.abs(np.exp(toy.log_q) - np.exp(toy.log_posterior)))
    likelihood = toy.log_likelihood - np.log(toy.integral(np.exp(toy.log_likelihood)))
    at_posterior = "log p(x) - L at q = p(z|x)"
    return Lines(
        {
            at_posterior: gap(toy.log_posterior),
            "= 0": 0.0,
            "≤ ½‖q - p(z|x)‖₁² at another q": distance**2 / 2,
            "≤ log p(x) - L at that q": gap(toy.log_q),
        },
        [
            Mutant("tight at the prior", {at_posterior: gap(toy.log_prior)}),
            Mutant("tight at the normalised likelihood", {at_posterior: gap(likelihood)}),
        ],
    )


@verifies(
    "restricted-posterior-gap",
    r"\mathrm{KL}\big(p_\theta(z\mid x,z\in A)\,\Vert\,p_\theta(z\mid x)\big)=-\log P_\theta(z\in A\mid x)",
    kind="identity",
    route="quadrature",
    tolerance=1e-10,
    reason="float64 sums over 130,000 nodes; by symmetry half of the posterior's mass is on each side",
    instances=lambda: [two_peaks(np.random.default_rng([7, seed])) for seed in range(3)],
)
def restricted_posterior_gap(toy: Latent) -> Lines:
    inside = toy.nodes[:, 0] > 0
    mass = toy.integral(np.exp(toy.log_posterior) * inside)
    q = np.where(inside, np.exp(toy.log_posterior) / mass, 0.0)
    kl = toy.integral(xlogy(q, q) - q * toy.log_posterior)
    return Lines(
        {"KL(p(z|x,A)‖p(z|x))": kl, "= -log P(A|x)": -np.log(mass), "= log 2": np.log(2)},
        [
            Mutant("P for -log P", {"= -log P(A|x)": mass}),
            Mutant("-P log P", {"= -log P(A|x)": -mass * np.log(mass)}),
            Mutant("not normalised over A", {"KL(p(z|x,A)‖p(z|x))": kl * mass}),
        ],
    )


def _q(rng: np.random.Generator, latent: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log-scale of three random diagonal Gaussians, ready for autograd."""
    mean = torch.tensor(rng.normal(size=(3, latent)), requires_grad=True)
    return mean, torch.tensor(rng.uniform(-0.7, 0.3, size=(3, latent)), requires_grad=True)


def _gradient(value: torch.Tensor, *parameters: torch.Tensor) -> np.ndarray:
    gradients = torch.autograd.grad(value.sum(), parameters, retain_graph=True, allow_unused=True)
    return np.concatenate([g.numpy().ravel() for g in gradients if g is not None])


def _kl(mean: torch.Tensor, scale: torch.Tensor, model: ProbabilisticPCA, x: torch.Tensor) -> torch.Tensor:
    """KL(q‖p(z|x)) between a diagonal and a full Gaussian, written out."""
    posterior, precision = model.encode(x), model.posterior_precision()
    off = mean - posterior.mean
    return 0.5 * (
        scale.square() @ precision.diagonal()
        + torch.einsum("ni,ij,nj->n", off, precision, off)
        - mean.shape[1]
        - torch.logdet(precision)
        - 2 * scale.log().sum(1)
    )


@verifies(
    "linear-gaussian-posterior",
    r"p_\theta(z\mid x)=N\big(z;\ \sigma_x^{-2}\Lambda^{-1}W^\top(x-\mu),\ \Lambda^{-1}\big),"
    r"\qquad\Lambda=I+\sigma_x^{-2}W^\top W",
    kind="identity",
    route="closed form",
    tolerance=1e-10,
    reason="float64 linear algebra in four dimensions",
)
def linear_gaussian_posterior(rng: np.random.Generator) -> Lines:
    model, x = random_pca(rng)
    z = torch.tensor(rng.normal(size=(3, 2)))
    w, mu, s = model.weight.detach().numpy(), model.mean.detach().numpy(), model.log_scale.exp().item()
    joint = norm.logpdf(z).sum(1) + norm.logpdf(x, z.numpy() @ w.T + mu, s).sum(1)
    evidence = multivariate_normal(mu, w @ w.T + s**2 * np.eye(4)).logpdf(x)

    def gaussian(precision: np.ndarray, pull: float) -> np.ndarray:
        covariance = np.linalg.inv(precision)
        means = (x.numpy() - mu) @ w @ covariance.T * pull
        return np.array([multivariate_normal(m, covariance).logpdf(v) for m, v in zip(means, z, strict=True)])

    right = np.eye(2) + w.T @ w / s**2
    return Lines(
        {
            "log p(x,z) - log p(x)": joint - evidence,
            "= log N(z; Λ⁻¹Wᵀ(x-μ)/σ², Λ⁻¹)": gaussian(right, 1 / s**2),
            "= encode(x).log_prob(z)": model.encode(x).log_prob(z).detach(),
        },
        [
            Mutant("σ for σ²", {"= log N(z; Λ⁻¹Wᵀ(x-μ)/σ², Λ⁻¹)": gaussian(np.eye(2) + w.T @ w / s, 1 / s)}),
            Mutant("Λ for Λ⁻¹ as covariance", {"= log N(z; Λ⁻¹Wᵀ(x-μ)/σ², Λ⁻¹)": gaussian(np.linalg.inv(right), 1)}),
            Mutant("mean without 1/σ²", {"= log N(z; Λ⁻¹Wᵀ(x-μ)/σ², Λ⁻¹)": gaussian(right, 1.0)}),
        ],
    )


@verifies(
    "linear-gaussian-elbo",
    r"""\begin{aligned}
\mathcal L(\theta,\phi;x)=&-\frac{1}{2\sigma_x^2}\Big(\Vert x-\mu-Wm\Vert^2+\sum_jv_j\Vert w_j\Vert^2\Big)\\
&-\frac{d_x}2\log(2\pi\sigma_x^2)-\frac12\sum_j\big(v_j+m_j^2-1-\log v_j\big)\\
&\text{for }q_\phi(z\mid x)=N(z;m,\mathrm{diag}\,v)
\end{aligned}""",
    kind="identity",
    route="quadrature",
    tolerance=1e-9,
    reason="Gauss-Hermite quadrature, exact for the quadratic integrand; values up to a hundred",
)
def linear_gaussian_elbo_closed(rng: np.random.Generator) -> Lines:
    model, x = random_pca(rng)
    mean, log_scale = (t.detach() for t in _q(rng))
    q = Normal(mean, log_scale.exp())
    total = torch.zeros(len(x)).double()
    for noise, weight in zip(*gauss_hermite(dim=2, points=5), strict=True):
        z = mean + q.scale * torch.tensor(noise)
        log_w = Normal(0.0, 1.0).log_prob(z).sum(1) + model.decode(z).log_prob(x) - q.log_prob(z).sum(1)
        total = total + weight * log_w
    w, s2 = model.weight.detach(), model.log_scale.exp().item() ** 2
    square = (x - model.mean - mean @ w.T).square().sum(1)
    spread = q.variance @ w.square().sum(0)
    prior = (q.variance + mean**2 - 1 - q.variance.log()).sum(1) / 2

    def closed(square=square, spread=spread, factor=0.5 / s2, prior=prior) -> np.ndarray:
        return (-factor * (square + spread) - 2 * np.log(2 * np.pi * s2) - prior).detach().numpy()

    line = "= the closed form"
    return Lines(
        {
            "E_q[log p(x,z)/q]": total.detach(),
            line: closed(),
            "= linear_gaussian_elbo": linear_gaussian_elbo(model, x, q).detach(),
        },
        [
            Mutant("the spread of q forgotten", {line: closed(spread=0.0)}),
            Mutant("v² for v", {line: closed(spread=q.variance**2 @ w.square().sum(0))}),
            Mutant("1/σ² for 1/2σ²", {line: closed(factor=1 / s2)}),
            Mutant("sign of log v", {line: closed(prior=(q.variance + mean**2 - 1 + q.variance.log()).sum(1) / 2)}),
        ],
    )


@verifies(
    "mean-field-gap",
    r"\min_{m,v}\mathrm{KL}\big(N(z;m,\mathrm{diag}\,v)\,\Vert\,p_\theta(z\mid x)\big)"
    r"=\frac12\Big(\sum_j\log\Lambda_{jj}-\log\det\Lambda\Big)",
    kind="identity",
    route="closed form",
    tolerance=1e-9,
    reason="the numerical minimum is flat: an error of 1e-6 in v costs 1e-12",
)
def mean_field_gap(rng: np.random.Generator) -> Lines:
    model, x = random_pca(rng)
    precision = model.posterior_precision().detach().numpy()
    x = x[:1]

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        p = torch.tensor(parameters, requires_grad=True)
        mean, log_scale = p[:2], p[2:]
        kl = _kl(mean[None], log_scale.exp()[None], model, x).sum()
        return kl.item(), torch.autograd.grad(kl, p)[0].numpy()

    found = optimize.minimize(objective, np.zeros(4), jac=True, method="BFGS", options={"gtol": 1e-9})
    best = mean_field(model, x)
    diagonal, (_, log_det) = np.diag(precision), np.linalg.slogdet(precision)
    covariance = np.diag(np.linalg.inv(precision))
    line = "= ½(Σ log Λ_jj - log det Λ)"

    def gap_at(variance: np.ndarray) -> float:
        return _kl(best.mean, torch.tensor(variance)[None].sqrt(), model, x).item()

    return Lines(
        {
            "the least KL, found numerically": found.fun,
            "= KL at v_j = 1/Λ_jj": gap_at(1 / diagonal),
            line: 0.5 * (np.log(diagonal).sum() - log_det),
            "= log p(x) - L of mean_field(x)": (model.log_prob(x) - linear_gaussian_elbo(model, x, best)).item(),
        },
        [
            Mutant("the marginal variances for v", {"= KL at v_j = 1/Λ_jj": gap_at(covariance)}),
            Mutant("without the ½", {line: np.log(diagonal).sum() - log_det}),
            Mutant("log det with the other sign", {line: 0.5 * (np.log(diagonal).sum() + log_det)}),
        ],
    )


@verifies(
    "elbo-phi-gradient",
    r"\nabla_\phi\mathcal L(\theta,\phi;x)=-\nabla_\phi\,\mathrm{KL}(q_\phi(z\mid x)\Vert p_\theta(z\mid x))",
    kind="identity",
    route="autograd",
    tolerance=1e-10,
    reason="float64 derivatives of order ten",
)
def elbo_phi_gradient(rng: np.random.Generator) -> Lines:
    model, x = random_pca(rng)
    mean, log_scale = _q(rng)
    elbo = linear_gaussian_elbo(model, x, Normal(mean, log_scale.exp()))
    kl = _kl(mean, log_scale.exp(), model, x)
    posterior = model.encode(x)
    reverse = 0.5 * (
        posterior.covariance_matrix.diagonal(dim1=1, dim2=2) / (2 * log_scale).exp()
        + (mean - posterior.mean).square() / (2 * log_scale).exp()
        + 2 * log_scale
    ).sum(1)
    return Lines(
        {"∇_φ L": _gradient(elbo, mean, log_scale), "= -∇_φ KL(q‖p(z|x))": -_gradient(kl, mean, log_scale)},
        [
            Mutant("the sign", _gradient(kl, mean, log_scale)),
            Mutant("KL the other way round", -_gradient(reverse, mean, log_scale)),
        ],
    )


@verifies(
    "elbo-theta-gradient",
    r"""\begin{aligned}
\nabla_\theta\mathcal L(\theta,\phi;x)&=\mathbb E_{q_\phi(z\mid x)}\left[\nabla_\theta\log p_\theta(x,z)\right]\\
&=\nabla_\theta\log p_\theta(x)-\nabla_\theta\,\mathrm{KL}(q_\phi(z\mid x)\Vert p_\theta(z\mid x))
\end{aligned}""",
    kind="identity",
    route="autograd",
    tolerance=1e-9,
    reason="float64 derivatives of order a hundred; the expectation by Gauss-Hermite, exact for quadratics",
)
def elbo_theta_gradient(rng: np.random.Generator) -> Lines:
    model, x = random_pca(rng)
    mean, log_scale = (t.detach() for t in _q(rng))
    theta = tuple(model.parameters())
    elbo = _gradient(linear_gaussian_elbo(model, x, Normal(mean, log_scale.exp())), *theta)
    inside = sum(
        weight * _gradient(model.decode(mean + log_scale.exp() * torch.tensor(noise)).log_prob(x), *theta)
        for noise, weight in zip(*gauss_hermite(dim=2, points=5), strict=True)
    )
    evidence = _gradient(model.log_prob(x), *theta)
    kl = _gradient(_kl(mean, log_scale.exp(), model, x), *theta)
    return Lines(
        {"∇_θ L": elbo, "= E_q[∇_θ log p(x,z)]": inside, "= ∇_θ log p(x) - ∇_θ KL(q‖p(z|x))": evidence - kl},
        [
            Mutant("only the KL moves", -kl, erratum="E000-07"),
            Mutant("only the evidence moves", evidence),
            Mutant("KL added", evidence + kl),
        ],
    )


def _mixture(rng: np.random.Generator, n: int = 12) -> tuple[BernoulliMixture, torch.Tensor]:
    """A random mixture of two components over four pixels in float64, and a few images."""
    model = BernoulliMixture(2, (4,)).double()
    with torch.no_grad():
        model.pixel_logits.copy_(torch.tensor(rng.normal(size=(2, 4))))
        model.log_weights.copy_(torch.tensor(np.log(rng.dirichlet([4, 4]))))
    x = rng.integers(0, 2, size=(n, 4))
    x[0], x[1] = 0, 1  # no pixel is constant, so that no logit of the M step is infinite
    return model, torch.tensor(x, dtype=torch.float64)


def _mixture_log_joint(weights: np.ndarray, pixels: np.ndarray, x: np.ndarray) -> np.ndarray:
    """log π_k + Σ_d log Bernoulli(x_d; μ_kd), by loops of plain powers."""
    joint = np.array(
        [[w * np.prod(m**v * (1 - m) ** (1 - v)) for w, m in zip(weights, pixels, strict=True)] for v in x]
    )
    return np.log(joint)


@verifies(
    "mixture-responsibilities",
    r"p_\theta(k\mid x)=\frac{\pi_k\prod_d\mu_{kd}^{x_d}(1-\mu_{kd})^{1-x_d}}"
    r"{\sum_j\pi_j\prod_d\mu_{jd}^{x_d}(1-\mu_{jd})^{1-x_d}}",
    kind="identity",
    route="enumeration",
    tolerance=1e-12,
    reason="products and sums of a few float64 numbers below one",
)
def mixture_responsibilities(rng: np.random.Generator) -> Lines:
    model, x = _mixture(rng)
    weights, pixels = model.log_weights.exp().detach().numpy(), model.pixel_logits.sigmoid().detach().numpy()
    joint = np.exp(_mixture_log_joint(weights, pixels, x.numpy()))
    line = "= π_k p(x|k) / Σ_j π_j p(x|j)"
    likelihood = joint / weights
    return Lines(
        {"encode(x).probs": model.encode(x).probs.detach(), line: joint / joint.sum(1, keepdims=True)},
        [
            Mutant("the weights forgotten", likelihood / likelihood.sum(1, keepdims=True)),
            Mutant("summed over images, not components", joint / joint.sum(0, keepdims=True)),
            Mutant("not divided", joint),
        ],
    )


@verifies(
    "em-m-step",
    r"\pi_k=\frac1N\sum_nq_{nk},\qquad\mu_{kd}=\frac{\sum_nq_{nk}\,x^{(n)}_d}{\sum_nq_{nk}}",
    kind="identity",
    route="autograd",
    tolerance=1e-9,
    reason="the gradient of a bound of order a hundred, in float64, at its maximum",
)
def em_m_step(rng: np.random.Generator) -> Lines:
    model, x = _mixture(rng)
    q = model.encode(x).probs.detach()
    after = BernoulliMixture(2, (4,)).double()
    after.load_state_dict(model.state_dict())
    after.em_step(x)

    def gradient(weights: torch.Tensor, pixels: torch.Tensor) -> np.ndarray:
        """Of Σ_n Σ_k q_nk log p(x_n, k), along the simplex of the weights and in the pixels' logits."""
        a = weights.log().detach().requires_grad_()
        b = torch.logit(pixels).detach().requires_grad_()
        log_joint = a.log_softmax(0) + x @ b.T - torch.nn.functional.softplus(b).sum(1)
        return _gradient((q * log_joint).sum(), a, b)

    size = q.sum(0)
    weights, pixels = size / len(x), q.T @ x / size[:, None]
    zero = np.zeros(10)
    line = "= gradient of the bound at the formula"
    return Lines(
        {
            "0": zero,
            line: gradient(weights, pixels),
            "= formula - em_step": np.concatenate(
                [
                    (weights - after.log_weights.exp()).detach().numpy(),
                    (pixels - after.pixel_logits.sigmoid()).detach().numpy().ravel(),
                ]
            ),
        },
        [
            Mutant("μ divided by N", {line: gradient(weights, q.T @ x / len(x))}),
            Mutant("uniform π", {line: gradient(torch.full_like(weights, 0.5), pixels)}),
            Mutant("q squared", {line: gradient(weights, (q**2).T @ x / (q**2).sum(0)[:, None])}),
        ],
    )


@verifies(
    "em-monotone",
    r"\log p_{\theta^\prime}(x)\ge\mathcal L(\theta^\prime,q;x)\ge\mathcal L(\theta,q;x)=\log p_\theta(x)",
    kind="inequality",
    route="enumeration",
    tolerance=1e-10,
    reason="float64 sums over twelve images and two components",
)
def em_monotone(rng: np.random.Generator) -> Lines:
    model, x = _mixture(rng)
    after = BernoulliMixture(2, (4,)).double()
    after.load_state_dict(model.state_dict())
    after.em_step(x)
    q = model.encode(x)

    def log_joint(m: BernoulliMixture) -> np.ndarray:
        weights, pixels = m.log_weights.softmax(0).detach().numpy(), m.pixel_logits.sigmoid().detach().numpy()
        return _mixture_log_joint(weights, pixels, x.numpy())

    responsibilities = q.probs.detach().numpy()
    bound_after = (responsibilities * (log_joint(after) - np.log(responsibilities))).sum()
    swapped = BernoulliMixture(2, (4,)).double()
    swapped.load_state_dict(after.state_dict())
    with torch.no_grad():
        swapped.pixel_logits.copy_(after.pixel_logits.flip(0))
        swapped.log_weights.copy_(after.log_weights.flip(0))
    bound_swapped = (responsibilities * (log_joint(swapped) - np.log(responsibilities))).sum()
    return Lines(
        {
            "log p(x) after the step": logsumexp(log_joint(after), axis=1).sum(),
            "≥ L(θ',q)": bound_after,
            "≥ L(θ,q)": model.elbo(x, Categorical(q.probs)).sum().item(),
            "= log p(x) before the step": logsumexp(log_joint(model), axis=1).sum(),
        },
        [
            Mutant("M step for the wrong components", {"≥ L(θ',q)": bound_swapped}),
            Mutant("entropy counted twice", {"≥ L(θ',q)": bound_after + q.entropy().sum().item()}),
            Mutant("the bound without the entropy", {"≥ L(θ,q)": (responsibilities * log_joint(model)).sum()}),
        ],
    )


@verifies(
    "fisher-identity",
    r"\nabla_\theta\log p_\theta(x)=\mathbb E_{p_\theta(z\mid x)}\left[\nabla_\theta\log p_\theta(x,z)\right]",
    kind="identity",
    route="autograd",
    tolerance=1e-11,
    reason="float64 derivatives of order ten",
)
def fisher_identity(rng: np.random.Generator) -> Lines:
    model, x = _mixture(rng, n=3)
    theta = (model.log_weights, model.pixel_logits)
    posterior = model.encode(x).probs.detach()

    def average(probabilities: torch.Tensor, log_weight: float = 1.0) -> np.ndarray:
        log_prior = model.log_weights.log_softmax(0)
        log_likelihood = torch.stack([model.decode(torch.tensor(k)).log_prob(x) for k in range(2)], 1)
        return _gradient((probabilities * (log_weight * log_prior + log_likelihood)).sum(), *theta)

    return Lines(
        {"∇_θ log p(x)": _gradient(model.log_prob(x), *theta), "= E_p(z|x)[∇_θ log p(x,z)]": average(posterior)},
        [
            Mutant("expectation under the prior", average(model.log_weights.softmax(0).detach().expand(3, 2))),
            Mutant("the prior's own gradient forgotten", average(posterior, 0.0)),
        ],
    )
