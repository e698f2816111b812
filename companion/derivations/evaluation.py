"""Checks for the chapter on evaluation."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import linalg, optimize
from scipy.integrate import quad
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist
from scipy.special import comb, entr, gammaln, logsumexp, rel_entr, softmax
from scipy.stats import chi, entropy, mannwhitneyu, norm, wishart
from torch.distributions import Normal, kl_divergence

from companion.derivations.registry import Lines, Mutant, Tolerance, verifies
from companion.derivations.toys import gauss_hermite

Array = np.ndarray

SMALL_SUMS = Tolerance(tolerance=1e-11, reason="sums of a few float64 numbers of order one")
NUMERIC = Tolerance(tolerance=1e-6, reason="an optimum found numerically, where the function is flat, to about 1e-8")


def _simplex(rng: np.random.Generator, states: int, copies: int = 1) -> Array:
    """One random table, or several as rows, with no state that is very rare."""
    tables = rng.dirichlet(np.full(states, 2.0), size=copies) * 0.9 + 0.1 / states
    return tables[0] if copies == 1 else tables


def _maximise(function: Callable[[torch.Tensor], torch.Tensor], start: Array) -> Array:
    """Where the function is largest, by BFGS with autograd's gradient."""

    def loss(at: Array) -> tuple[float, Array]:
        point = torch.tensor(at, requires_grad=True)
        value = -function(point)
        return value.item(), torch.autograd.grad(value, point)[0].numpy()

    return optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x


# Inception score: x is an image with probability p(x), y one of C classes


def _classified(rng: np.random.Generator) -> tuple[Array, Array]:
    """p(x) of four images, and p(y|x) of three classes, a row for each image."""
    return _simplex(rng, 4), _simplex(rng, 3, 4)


def _nearest_to_all(p_x: Array, p_y_x: Array, reverse: bool = False) -> Array:
    """The q of least E_x[KL(p(y|x)‖q)], or of the divergence the other way round, found numerically."""
    weights, rows = torch.tensor(p_x), torch.tensor(p_y_x)

    def minus_divergence(logits: torch.Tensor) -> torch.Tensor:
        log_q = logits.log_softmax(0)
        away = log_q.exp() * (log_q - rows.log()) if reverse else rows * (rows.log() - log_q)
        return -(weights @ away.sum(1))

    return softmax(_maximise(minus_divergence, np.zeros(p_y_x.shape[1])))


@verifies(
    "inception-marginal",
    r"""\begin{aligned}
p(y)&=\mathbb E_x\left[p(y\mid x)\right],\qquad\sum_yp(y)=1\\
&=\arg\min_q\mathbb E_x\left[\mathrm{KL}(p(y\mid x)\Vert q)\right]
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **NUMERIC,
)
def inception_marginal(rng: np.random.Generator) -> Lines:
    joint = _simplex(rng, 12).reshape(4, 3)
    p_x = joint.sum(1)
    p_y_x = joint / p_x[:, None]

    def and_sum(q: Array) -> Array:
        return np.append(q, q.sum())

    line, last = "= E_x[p(y|x)], and its sum", "= argmin_q E_x[KL(p(y|x)‖q)]"
    geometric = np.exp(p_x @ np.log(p_y_x))
    return Lines(
        {
            "p(y) from the joint table, and 1": np.append(joint.sum(0), 1.0),
            line: and_sum(p_x @ p_y_x),
            last: and_sum(_nearest_to_all(p_x, p_y_x)),
        },
        [
            Mutant("every image the same weight", {line: and_sum(p_y_x.mean(0))}),
            Mutant("the sum, not the mean", {line: and_sum(p_y_x.sum(0))}),
            Mutant("the geometric mean", {line: and_sum(geometric)}),
            Mutant("KL the other way round", {last: and_sum(_nearest_to_all(p_x, p_y_x, reverse=True))}),
            Mutant("all classes equally frequent", {line: and_sum(np.full(3, 1 / 3))}),
        ],
    )


@verifies(
    "inception-score",
    r"\mathrm{IS}=\exp\mathbb E_x\left[\mathrm{KL}(p(y\mid x)\Vert p(y))\right]",
    kind="definition",
    route="enumeration",
    **NUMERIC,
)
def inception_score(rng: np.random.Generator) -> Lines:
    p_x, p_y_x = _classified(rng)
    p_y = p_x @ p_y_x
    kl = np.array([entropy(row, p_y) for row in p_y_x])
    ratios = (p_y_x / p_y) ** (p_x[:, None] * p_y_x)
    found = _nearest_to_all(p_x, p_y_x)
    return Lines(
        {
            "exp of min_q E_x[KL(p(y|x)‖q)], found numerically": np.exp(p_x @ entropy(p_y_x.T, found[:, None])),
            "= Π_{x,y} (p(y|x)/p(y))^p(x,y)": ratios.prod(),
            "= exp E_x[KL(p(y|x)‖p(y))]": np.exp(p_x @ kl),
        },
        [
            Mutant("the mean of the exponentials", p_x @ np.exp(kl)),
            Mutant("without exp", p_x @ kl),
            Mutant("KL the other way round", np.exp(p_x @ [entropy(p_y, row) for row in p_y_x])),
            Mutant("1/C for p(y)", np.exp(p_x @ [entropy(row, np.full(3, 1 / 3)) for row in p_y_x])),
            Mutant("exp of bits", np.exp(p_x @ kl / np.log(2))),
        ],
    )


@verifies(
    "inception-score-entropy",
    r"""\begin{aligned}
\log\mathrm{IS}&=\mathbb E_x\left[\mathrm{KL}(p(y\mid x)\Vert p(y))\right]\\
&=H(p(y))-\mathbb E_x\left[H(p(y\mid x))\right]\\
&=I(x;y)=\mathrm{KL}\big(p(x)\,p(y\mid x)\,\big\Vert\,p(x)\,p(y)\big)
\end{aligned}""",
    kind="identity",
    route="enumeration",
    **SMALL_SUMS,
)
def inception_score_entropy(rng: np.random.Generator) -> Lines:
    p_x, p_y_x = _classified(rng)
    p_y, joint = p_x @ p_y_x, p_x[:, None] * p_y_x
    spread, unsure = entropy(p_y), p_x @ entr(p_y_x).sum(1)
    # The rule of Bayes turns the table: what the class says about the image.
    p_x_y = (joint / p_y).T
    line, last = "= H(p(y)) - E_x[H(p(y|x))]", "= KL(p(x)p(y|x) ‖ p(x)p(y))"
    independent = np.outer(p_x, p_y)
    return Lines(
        {
            "log IS = E_x[KL(p(y|x)‖p(y))]": p_x @ rel_entr(p_y_x, p_y).sum(1),
            line: spread - unsure,
            "= H(p(x)) - E_y[H(p(x|y))]": entropy(p_x) - p_y @ entr(p_x_y).sum(1),
            last: entropy(joint.ravel(), independent.ravel()),
        },
        [
            Mutant("the entropies added", {line: spread + unsure}),
            Mutant("their order", {line: unsure - spread}),
            Mutant("sure answers only: -E_x[H(p(y|x))]", {line: -unsure}),
            Mutant("different classes only: H(p(y))", {line: spread}),
            Mutant("KL the other way round", entropy(independent.ravel(), joint.ravel())),
        ],
    )


def _inception(p_x: Array, p_y_x: Array) -> float:
    return np.exp(p_x @ rel_entr(p_y_x, p_x @ p_y_x).sum(1))


@verifies(
    "inception-score-bounds",
    r"""\begin{aligned}
1&\le\mathrm{IS}\le\exp H(p(y))\le C\\
\mathrm{IS}&=1\quad\text{if }p(y\mid x)=p(y)\text{ for all }x\\
\mathrm{IS}&=C\quad\text{if every }p(y\mid x)\text{ is sure of one class,}\\
&\qquad\quad\text{and all classes are equally frequent}
\end{aligned}""",
    kind="inequality",
    route="enumeration",
    **SMALL_SUMS,
)
def inception_score_bounds(rng: np.random.Generator) -> Lines:
    p_x, p_y_x = _classified(rng)
    classes = len(p_y_x.T)
    same, even, one_each = np.tile(p_y_x[0], (4, 1)), np.full(classes, 1 / classes), np.eye(classes)
    one, line, last = "= 1", "≤ C", "= IS of one image for each class"
    return Lines(
        {
            "IS where p(y|x) is the same for all x": _inception(p_x, same),
            one: 1.0,
            "≤ IS": _inception(p_x, p_y_x),
            "≤ exp H(p(y))": np.exp(entr(p_x @ p_y_x).sum()),
            line: float(classes),
            last: _inception(even, one_each),
        },
        [
            Mutant("0 for 1", {one: 0.0}),
            Mutant("log C", {line: np.log(classes)}),
            Mutant("the number of images", {line: float(len(p_x))}),
            Mutant("sure, but not equally frequent", {last: _inception(p_x[:3] / p_x[:3].sum(), one_each)}),
            Mutant("equally frequent, but not sure", {last: _inception(even, (one_each + 1) / (classes + 1))}),
        ],
    )


# Fréchet distance: N(μ_r, Σ_r) is fitted to the features of the data, N(μ_g, Σ_g) to those of the samples


def _root(matrix: Array) -> Array:
    """The symmetric root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T


def _gaussian(rng: np.random.Generator, dim: int) -> tuple[Array, Array]:
    """A mean and a covariance."""
    factor = rng.normal(size=(dim, dim))
    return rng.normal(size=dim), factor @ factor.T / dim + 0.2 * np.eye(dim)


def _fid(mean_r: Array, cov_r: Array, mean_g: Array, cov_g: Array) -> float:
    root = _root(cov_r)
    return np.square(mean_r - mean_g).sum() + np.trace(cov_r + cov_g - 2 * _root(root @ cov_g @ root))


@verifies(
    "frechet-transport",
    r"""\begin{aligned}
W_2^2&=\min_{x\sim N(\mu_r,\Sigma_r),\;y\sim N(\mu_g,\Sigma_g)}\mathbb E\left[\Vert x-y\Vert_2^2\right]\\
&=\mathbb E\left[\Vert x-T(x)\Vert_2^2\right],\quad T(x)=\mu_g+A(x-\mu_r),\\
&\quad\text{with }A=\Sigma_r^{-1/2}\big(\Sigma_r^{1/2}\Sigma_g\Sigma_r^{1/2}\big)^{1/2}\Sigma_r^{-1/2}\\
&=\Vert\mu_r-\mu_g\Vert_2^2+\mathrm{Tr}\Big(\Sigma_r+\Sigma_g-2\big(\Sigma_r^{1/2}\Sigma_g\Sigma_r^{1/2}\big)^{1/2}\Big)
\end{aligned}""",
    kind="identity",
    route="closed form",
    tolerance=1e-7,
    reason="optima found numerically, where the function is flat; adaptive quadrature where a quantile is infinite",
)
def frechet_transport(rng: np.random.Generator) -> Lines:
    # In three dimensions, and on the line.
    pairs = [(*_gaussian(rng, dim), *_gaussian(rng, dim)) for dim in (3, 1)]
    (mean_r, cov_r, mean_g, cov_g), on_line = pairs
    lower_r, lower_g = np.linalg.cholesky(cov_r), np.linalg.cholesky(cov_g)
    mixed = torch.tensor(lower_g.T @ lower_r)

    # Of a coupling only Cov(x, y) = L_r WᵀL_gᵀ counts, ‖W‖ ≤ 1. Its trace is linear in W, so that a rotation is best.
    def gain(angles: torch.Tensor) -> torch.Tensor:
        above = torch.zeros(3, 3).double()
        above[np.triu_indices(3, 1)] = angles
        return torch.trace(mixed @ torch.matrix_exp(above - above.T).T)

    shift = np.square(mean_r - mean_g).sum()
    best = gain(torch.tensor(_maximise(gain, np.zeros(3)))).item()
    quantiles = [norm(mean[0], np.sqrt(cov[0, 0])).ppf for mean, cov in (on_line[:2], on_line[2:])]
    between, _ = quad(lambda u: (quantiles[0](u) - quantiles[1](u)) ** 2, 0, 1, epsabs=1e-10, limit=200)

    # Kantorovich: ½xᵀBx + ½yᵀB⁻¹y ≥ xᵀy for any positive definite B bounds E[xᵀy] from above.
    def bound(cov_r: Array, cov_g: Array) -> float:
        def mean(entries: torch.Tensor) -> torch.Tensor:
            half = entries.reshape(cov_r.shape)
            b = torch.matrix_exp(half + half.T)
            return -(torch.trace(b @ torch.tensor(cov_r)) + torch.trace(torch.linalg.inv(b) @ torch.tensor(cov_g))) / 2

        return -mean(torch.tensor(_maximise(mean, np.zeros(cov_r.size)))).item()

    def dual(mean_r: Array, cov_r: Array, mean_g: Array, cov_g: Array) -> float:
        return np.square(mean_r - mean_g).sum() + np.trace(cov_r + cov_g) - 2 * bound(cov_r, cov_g)

    def mapped(mean_r: Array, cov_r: Array, mean_g: Array, cov_g: Array, by: Callable[[Array, Array], Array]) -> float:
        away = np.eye(len(cov_r)) - by(cov_r, cov_g)
        return np.square(mean_r - mean_g).sum() + np.trace(away @ cov_r @ away.T)

    def monge(cov_r: Array, cov_g: Array) -> Array:
        root = _root(cov_r)
        inverse = np.linalg.inv(root)
        return inverse @ _root(root @ cov_g @ root) @ inverse

    def triangular(cov_r: Array, cov_g: Array) -> Array:
        return np.linalg.cholesky(cov_g) @ np.linalg.inv(np.linalg.cholesky(cov_r))

    def formula(shift: Callable = lambda d: d @ d, two: float = 2.0) -> list[float]:
        roots = [_root(_root(cov_r) @ cov_g @ _root(cov_r)) for _, cov_r, _, cov_g in pairs]
        return [
            shift(pair[0] - pair[2]) + np.trace(pair[1] + pair[3] - two * root)
            for pair, root in zip(pairs, roots, strict=True)
        ]

    first, line = "the cheapest rotation, and ∫(F_r⁻¹(u) - F_g⁻¹(u))² du on the line", "= E‖x - T(x)‖²"
    apart = [np.square(r - g).sum() + np.square(_root(a) - _root(b)).sum() for r, a, g, b in pairs]
    return Lines(
        {
            first: [shift + np.trace(cov_r + cov_g) - 2 * best, between],
            "= the dual's best bound": [dual(*pair) for pair in pairs],
            line: [mapped(*pair, monge) for pair in pairs],
            "= ‖μ_r-μ_g‖² + Tr(Σ_r + Σ_g - 2(Σ_r^½Σ_gΣ_r^½)^½)": formula(),
        },
        [
            Mutant("x and y independent", formula(two=0.0)),
            Mutant("the root once", formula(two=1.0)),
            Mutant("the distance of the means not squared", formula(shift=np.linalg.norm)),
            Mutant("‖Σ_r^½ - Σ_g^½‖² for matrices that do not commute", apart),
            Mutant("the triangular map L_gL_r⁻¹", {line: [mapped(*pair, triangular) for pair in pairs]}),
        ],
    )


@verifies(
    "fid",
    r"\mathrm{FID}=\Vert\mu_r-\mu_g\Vert_2^2+\mathrm{Tr}\big(\Sigma_r+\Sigma_g-2(\Sigma_r\Sigma_g)^{1/2}\big)",
    kind="identity",
    route="closed form",
    tolerance=1e-10,
    reason="three decompositions of 4×4 matrices in float64",
)
def fid(rng: np.random.Generator) -> Lines:
    (mean_r, cov_r), (mean_g, cov_g) = _gaussian(rng, 4), _gaussian(rng, 4)
    shift, both = np.square(mean_r - mean_g).sum(), np.trace(cov_r + cov_g)
    values = np.linalg.eigvals(cov_r @ cov_g)
    singular = linalg.svdvals(np.linalg.cholesky(cov_r).T @ np.linalg.cholesky(cov_g))
    root = np.sqrt(values.real).sum()
    return Lines(
        {
            "W_2² of the two Gaussians, by symmetric roots": _fid(mean_r, cov_r, mean_g, cov_g),
            "= with singular values of L_rᵀL_g": shift + both - 2 * singular.sum(),
            "= with a root of Σ_rΣ_g itself": shift + both - 2 * np.trace(linalg.sqrtm(cov_r @ cov_g)).real,
            "= with roots of the eigenvalues of Σ_rΣ_g": shift + both - 2 * root,
        },
        [
            Mutant("the root once", shift + both - root),
            Mutant("the root added", shift + both + 2 * root),
            Mutant("no root", shift + both - 2 * values.real.sum()),
            Mutant("the root of each entry", shift + both - 2 * np.trace(np.sqrt(np.abs(cov_r @ cov_g)))),
            Mutant("Σ_r^½Σ_g^½", shift + both - 2 * np.trace(_root(cov_r) @ _root(cov_g))),
            Mutant("the distance of the means not squared", np.sqrt(shift) + both - 2 * root),
        ],
    )


@verifies(
    "fid-root-trace",
    r"""\begin{aligned}
\mathrm{Tr}\,(\Sigma_r\Sigma_g)^{1/2}&=\sum_i\sqrt{\lambda_i(\Sigma_r\Sigma_g)}\\
&=\sum_i\sqrt{\lambda_i(L^\top\Sigma_gL)},\qquad\Sigma_r=LL^\top\\
&=\Vert A_rA_g^\top\Vert_*,\qquad\Sigma_r=A_r^\top A_r,\quad\Sigma_g=A_g^\top A_g
\end{aligned}""",
    kind="identity",
    route="closed form",
    tolerance=1e-6,
    reason="eigenvalues that should be zero are found to about 1e-15, and so their roots to 3e-8",
)
def fid_root_trace(rng: np.random.Generator) -> Lines:
    # Centred features over √n in six dimensions: of more points than that, and of four and three.
    def centred(n: int) -> Array:
        x = rng.normal(size=(n, 6))
        return (x - x.mean(0)) / np.sqrt(n)

    factors = [(centred(12), centred(9)), (centred(4), centred(3))]

    def for_both(trace: Callable[[Array, Array], float]) -> list[float]:
        return [trace(a, b) for a, b in factors]

    def symmetric(a: Array, b: Array) -> float:
        root = _root(a.T @ a)
        return np.trace(_root(root @ b.T @ b @ root))

    def eigenvalues(a: Array, b: Array) -> Array:
        return np.maximum(np.linalg.eigvals(a.T @ a @ b.T @ b).real, 0)

    def by_triangle(a: Array, b: Array) -> float:
        lower = np.linalg.qr(a).R.T  # six by six, or six by four
        return np.sqrt(np.maximum(np.linalg.eigvalsh(lower.T @ b.T @ b @ lower), 0)).sum()

    return Lines(
        {
            "Tr of (Σ_r^½Σ_gΣ_r^½)^½, of full rank and not": for_both(symmetric),
            "= Σ √λ_i(Σ_rΣ_g)": for_both(lambda a, b: np.sqrt(eigenvalues(a, b)).sum()),
            "= Σ √λ_i(LᵀΣ_gL)": for_both(by_triangle),
            "= ‖A_rA_gᵀ‖_*": for_both(lambda a, b: linalg.svdvals(a @ b.T).sum()),
        },
        [
            Mutant("the Frobenius norm", for_both(lambda a, b: linalg.norm(a @ b.T))),
            Mutant("the largest singular value", for_both(lambda a, b: linalg.svdvals(a @ b.T)[0])),
            Mutant("the eigenvalues without their roots", for_both(lambda a, b: eigenvalues(a, b).sum())),
            Mutant("√ of the trace of the product", for_both(lambda a, b: np.sqrt(eigenvalues(a, b).sum()))),
            Mutant("Tr Σ_r^½Σ_g^½", for_both(lambda a, b: np.trace(_root(a.T @ a) @ _root(b.T @ b)))),
        ],
    )


def _c4(n: int | Array) -> Array:
    """E[s]/σ for n draws from a Gaussian, s² with n-1 below."""
    return np.sqrt(2 / (n - 1)) * np.exp(gammaln(n / 2) - gammaln((n - 1) / 2))


@verifies(
    "fid-bias",
    r"""\begin{aligned}
\mathbb E\left[\mathrm{FID}_n\right]&=\mathbb E\left[(\bar x-\mu)^2\right]+\mathbb E\left[(s-\sigma)^2\right],
\qquad x^{(1)},\dots,x^{(n)}\sim N(\mu,\sigma^2)\\
&=\frac{\sigma^2}n+2\sigma^2\big(1-c_4(n)\big),\qquad
c_4(n)=\sqrt{\frac2{n-1}}\,\frac{\Gamma(n/2)}{\Gamma((n-1)/2)}
\end{aligned}""",
    kind="identity",
    route="Monte Carlo",
    tolerance=1e-9,
    reason="adaptive quadrature over χ; five standard errors of 40,000 sets of samples",
)
def fid_bias(rng: np.random.Generator) -> Lines:
    mu, sigma, repeats, sizes = rng.normal(), rng.uniform(0.7, 1.5), 40_000, np.array([4, 10, 40])

    samples = [mu + sigma * rng.normal(size=(repeats, n)) for n in sizes]

    def played(power: int = 1) -> Array:
        return np.array([(x.mean(1) - mu) ** 2 + (x.std(1, ddof=1) ** power - sigma**power) ** 2 for x in samples])

    def spread(n: int) -> float:
        """E[(s-σ)²], where s√(n-1)/σ has χ's density with n-1 degrees of freedom."""
        law = chi(n - 1)
        return quad(lambda c: (sigma * c / np.sqrt(n - 1) - sigma) ** 2 * law.pdf(c), 0, 30, epsabs=1e-12, limit=200)[0]

    def formula(n: Array = sizes, two: float = 2.0, c4: Callable = _c4) -> Array:
        return sigma**2 / n + two * sigma**2 * (1 - c4(n))

    draws, first = played(), "mean of FID_n for n = 4, 10, 40"
    return Lines(
        {
            first: draws.mean(1),
            "= σ²/n + E[(s-σ)²] by quadrature": [sigma**2 / n + spread(n) for n in sizes],
            "= σ²/n + 2σ²(1-c_4(n))": formula(),
        },
        [
            Mutant("no bias", np.zeros(3)),
            Mutant("the distance of the variances", {first: played(power=2).mean(1)}),
            Mutant("the size of a batch, here 2, for n", formula(np.full(3, 2)), erratum="E003-26"),
            Mutant("the mean's part alone", sigma**2 / sizes),
            Mutant("σ² once", formula(two=1.0)),
            Mutant("c_4(n-1)", formula(c4=lambda n: _c4(n - 1))),
            Mutant("σ²/√n for σ²/n", formula() - sigma**2 / sizes + sigma**2 / np.sqrt(sizes)),
        ],
        standard_errors={first: draws.std(1) / np.sqrt(repeats)},
    )


@verifies(
    "fid-bias-dimension",
    r"""\begin{aligned}
\mathbb E\left[\mathrm{FID}_n\right]&=\mathbb E\left[\Vert\bar x-\mu\Vert_2^2\right]
+\frac1{4\sigma^2}\mathbb E\left[\Vert\hat\Sigma-\sigma^2I\Vert_F^2\right]+O(n^{-2}),\\
&\quad x^{(1)},\dots,x^{(n)}\sim N(\mu,\sigma^2I)\\
&=\frac{\sigma^2d_x(d_x+5)}{4n}+O(n^{-2})
\end{aligned}""",
    kind="identity",
    route="Monte Carlo",
    tolerance=1e-10,
    reason="quadrature exact for polynomials; five standard errors of 4,000 estimated means and covariances, n = 10⁶",
)
def fid_bias_dimension(rng: np.random.Generator) -> Lines:
    sigma, n, repeats, dims = rng.uniform(0.7, 1.5), 10**6, 4000, np.array([1, 2, 5])

    def played(dim: int) -> Array:
        """n·FID_n, of means and covariances that are drawn themselves."""
        means = sigma * rng.normal(size=(repeats, dim)) / np.sqrt(n)
        draws = wishart(n - 1, sigma**2 * np.eye(dim)).rvs(repeats, random_state=rng)
        roots = np.sqrt(np.linalg.eigvalsh(draws.reshape(repeats, dim, dim) / (n - 1)))
        return n * (np.square(means).sum(1) + np.square(roots - sigma).sum(1))

    def second_order(dim: int, quarter: float = 0.25) -> float:
        """The variances of x_i and x_ix_j are n times those of the entries of the mean and the covariance."""
        nodes, weight = gauss_hermite(dim, 3)
        products = sigma**2 * nodes[:, :, None] * nodes[:, None]
        variances = np.einsum("k,kij->ij", weight, (products - sigma**2 * np.eye(dim)) ** 2)
        return sigma**2 * weight @ np.square(nodes).sum(1) + quarter * variances.sum() / sigma**2

    draws = np.array([played(d) for d in dims])
    first, line = "mean of n·FID_n for d = 1, 2, 5", "= n E‖x̄-μ‖² + n E‖Σ̂-σ²I‖²/4σ²"
    return Lines(
        {
            first: draws.mean(1),
            line: [second_order(d) for d in dims],
            "= σ²d(d+5)/4": sigma**2 * dims * (dims + 5) / 4,
        },
        [
            Mutant("FID_n, not n times it", {first: draws.mean(1) / n}),
            Mutant("every dimension as much as the first", 1.5 * sigma**2 * dims),
            Mutant("without the mean", sigma**2 * dims * (dims + 1) / 4),
            Mutant("8 for 4", sigma**2 * dims * (dims + 5) / 8),
            Mutant("½ for ¼ of the covariance's errors", {line: [second_order(d, quarter=0.5) for d in dims]}),
        ],
        standard_errors={first: draws.std(1) / np.sqrt(repeats)},
    )


# Kernel distances: x and x' are two draws from p, y and y' two from q


def _cubic(x: Array, y: Array) -> Array:
    """The kernel (xᵀy/d + 1)³ of all pairs."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _features(x: Array) -> Array:
    """φ with φ(x)ᵀφ(y) = (xᵀy/d + 1)³: all products of three entries of (x/√d, 1)."""
    extended = np.hstack([x / np.sqrt(x.shape[1]), np.ones((len(x), 1))])
    return np.einsum("na,nb,nc->nabc", extended, extended, extended).reshape(len(x), -1)


def _mmd(x: Array, y: Array, p: Array, q: Array, kernel: Callable = _cubic, cross: float = 2.0) -> float:
    """MMD² of the weights p at the points x and q at y, from all pairs."""
    return p @ kernel(x, x) @ p - cross * p @ kernel(x, y) @ q + q @ kernel(y, y) @ q


def _two_laws(rng: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Four points x with weights p and five points y with weights q, in the plane."""
    return rng.normal(size=(4, 2)), rng.normal(size=(5, 2)) + 0.3, _simplex(rng, 4), _simplex(rng, 5)


@verifies(
    "mmd",
    r"""\begin{aligned}
\mathrm{MMD}^2(p,q)&=\Big(\max_{\Vert f\Vert_{\mathcal H}\le1}
\left\{\mathbb E_p\left[f(x)\right]-\mathbb E_q\left[f(y)\right]\right\}\Big)^2,\\
&\quad\text{attained at }f\propto m_p-m_q\\
&=\Vert m_p-m_q\Vert_{\mathcal H}^2,\qquad m_p=\mathbb E_p\left[k(x,\cdot)\right]\\
&=\mathbb E\left[k(x,x^\prime)\right]-2\,\mathbb E\left[k(x,y)\right]+\mathbb E\left[k(y,y^\prime)\right]
\end{aligned}""",
    kind="identity",
    route="enumeration",
    tolerance=1e-8,
    reason="a maximum found numerically to a gradient of 1e-9, of a value of order ten",
)
def mmd(rng: np.random.Generator) -> Lines:
    x, y, p, q = _two_laws(rng)
    phi_x, phi_y = _features(x), _features(y)
    charge = torch.tensor(p @ phi_x - q @ phi_y)

    # f(x) = aᵀφ(x): the square settles the length of a, which is divided out, and not its direction.
    best = _maximise(lambda a: charge @ a - a.square().sum() / 2, rng.normal(size=len(charge)))
    witness = best / np.linalg.norm(best)

    # m_p - m_q at all points, and the square of its length, which is its own difference of means.
    points, weights = np.concatenate([x, y]), np.concatenate([p, -q])
    mean_gap = _cubic(points, points) @ weights
    line, last = "= ‖m_p - m_q‖²", "= E k(x,x') - 2E k(x,y) + E k(y,y')"
    at_best = "= (E_p[f] - E_q[f])² at f = (m_p - m_q)/‖m_p - m_q‖"
    own = p @ np.diag(_cubic(x, x)) + q @ np.diag(_cubic(y, y))
    return Lines(
        {
            "(max E_p[f] - E_q[f])², ‖f‖ ≤ 1": (p @ phi_x @ witness - q @ phi_y @ witness) ** 2,
            at_best: (weights @ mean_gap / linalg.norm(charge)) ** 2,
            line: np.square(p @ phi_x - q @ phi_y).sum(),
            last: _mmd(x, y, p, q),
        },
        [
            Mutant("f = m_p - m_q of any length", {at_best: (weights @ mean_gap) ** 2}),
            Mutant("the norm without its square", {line: np.linalg.norm(p @ phi_x - q @ phi_y)}),
            Mutant("the cross term once", _mmd(x, y, p, q, cross=1.0)),
            Mutant("the cross term added", _mmd(x, y, p, q, cross=-2.0)),
            Mutant("k(x,x): the same draw twice", own - 2 * p @ _cubic(x, y) @ q),
            Mutant("another kernel: without +1", _mmd(x, y, p, q, kernel=lambda a, b: (a @ b.T / 2) ** 3)),
        ],
    )


@verifies(
    "mmd-unbiased",
    r"""\begin{aligned}
\mathrm{MMD}^2(p,q)&=\mathbb E\bigg[\sum_{i\ne j}\frac{k(x_i,x_j)}{n(n-1)}-2\sum_{i,j}\frac{k(x_i,y_j)}{nm}
+\sum_{i\ne j}\frac{k(y_i,y_j)}{m(m-1)}\bigg]\\
&=\mathbb E\bigg[\sum_{i,j}\frac{k(x_i,x_j)}{n^2}-2\sum_{i,j}\frac{k(x_i,y_j)}{nm}
+\sum_{i,j}\frac{k(y_i,y_j)}{m^2}\bigg]\\
&\quad-\frac{\mathbb E\left[k(x,x)-k(x,x^\prime)\right]}n-\frac{\mathbb E\left[k(y,y)-k(y,y^\prime)\right]}m
\end{aligned}""",
    kind="identity",
    route="enumeration",
    tolerance=1e-10,
    reason="sums over 243 samples of values of order ten",
)
def mmd_unbiased(rng: np.random.Generator) -> Lines:
    # Three states, three draws from p and two from q: all 3⁵ samples.
    states, (p, q), n, m = rng.normal(size=(3, 2)), _simplex(rng, 3, 2), 3, 2
    k = _cubic(states, states)
    samples = [(s[:n], s[n:]) for s in itertools.product(range(3), repeat=n + m)]
    chances = np.array([p[list(x)].prod() * q[list(y)].prod() for x, y in samples])

    def within(draws: tuple[int, ...], own: bool) -> float:
        """The mean of k over pairs of draws, with or without those of a draw and itself."""
        pairs = itertools.product(draws, repeat=2) if own else itertools.permutations(draws, 2)
        return np.mean([k[pair] for pair in pairs])

    def estimate(own: bool) -> Array:
        return np.array([within(x, own) - 2 * k[np.ix_(x, y)].mean() + within(y, own) for x, y in samples])

    unlike = np.array([weights @ np.diag(k) - weights @ k @ weights for weights in (p, q)])
    unbiased, biased = chances @ estimate(own=False), chances @ estimate(own=True)
    line, last = "= E of the estimate without i = j", "= E of the estimate with i = j, less its bias"
    return Lines(
        {"MMD²": _mmd(states, states, p, q), line: unbiased, last: biased - unlike @ [1 / n, 1 / m]},
        [
            Mutant("i = j kept", {line: biased}),
            Mutant("a bias below zero", biased + unlike @ [1 / n, 1 / m]),
            Mutant("n² and m² below", biased - unlike @ [1 / n**2, 1 / m**2]),
            Mutant("n-1 and m-1 below", biased - unlike @ [1 / (n - 1), 1 / (m - 1)]),
            Mutant("one bias for both", biased - unlike.sum() / (n + m)),
        ],
    )


def _moment(x: Array, weights: Array, order: int) -> Array:
    """E[x ⊗ … ⊗ x], so many times."""
    tensor = np.ones((len(x), 1))
    for _ in range(order):
        tensor = np.einsum("na,nb->nab", tensor, x).reshape(len(x), -1)
    return weights @ tensor


def _in_the_plane(j: int) -> float:
    """C(3,j)/d^j for d = 2."""
    return comb(3, j) / 2**j


def _by_moments(x: Array, y: Array, p: Array, q: Array, weight: Callable[[int], float] = _in_the_plane) -> float:
    """Σ_j weight_j ‖E_p[x⊗…⊗x] - E_q[y⊗…⊗y]‖²."""
    return sum(weight(j) * np.square(_moment(x, p, j) - _moment(y, q, j)).sum() for j in (1, 2, 3))


@verifies(
    "kid-kernel",
    r"""\begin{aligned}
k(x,y)&=\Big(\frac{x^\top y}{d_x}+1\Big)^3=\sum_{j=0}^3\binom3j\frac{(x^\top y)^j}{d_x^j}\\
\mathrm{MMD}^2(p,q)&=\sum_{j=1}^3\binom3j\frac1{d_x^j}
\left\Vert\mathbb E_p\left[x^{\otimes j}\right]-\mathbb E_q\left[y^{\otimes j}\right]\right\Vert^2
\end{aligned}""",
    kind="identity",
    route="enumeration",
    tolerance=1e-10,
    reason="sums of a few float64 numbers of order ten",
)
def kid_kernel(rng: np.random.Generator) -> Lines:
    laws = _two_laws(rng)

    def binomial(x: Array, y: Array) -> Array:
        return sum(comb(3, j) * (x @ y.T / x.shape[1]) ** j for j in range(4))

    last = "= Σ_j C(3,j)/d^j ‖E_p[x⊗…⊗x] - E_q[y⊗…⊗y]‖²"
    first_two = _by_moments(*laws, weight=lambda j: (j < 3) * comb(3, j) / 2**j)
    return Lines(
        {
            "MMD² from all pairs": _mmd(*laws),
            "= with the kernel as a sum over j": _mmd(*laws, kernel=binomial),
            last: _by_moments(*laws),
        },
        [
            Mutant("mean and covariance only", first_two),
            Mutant("every moment once", _by_moments(*laws, weight=lambda j: 2.0**-j)),
            Mutant("1/d for all j", _by_moments(*laws, weight=lambda j: comb(3, j) / 2)),
            Mutant("C(2,j) for C(3,j)", _by_moments(*laws, weight=lambda j: comb(2, j) / 2**j)),
        ],
    )


@verifies(
    "lost-modes",
    r"""\begin{aligned}
&p:\text{ the }2m\text{ corners of a regular polygon around }0,\text{ of radius }r\\
&q:\text{ every other of them}\\
&\quad m=2:\qquad\mathrm{FID}=(2-\sqrt2)\,r^2,\qquad\mathrm{KID}=\tfrac38r^4\\
&\quad m=3:\qquad\mathrm{FID}=0,\qquad\mathrm{KID}=\tfrac1{32}r^6\\
&\quad m=4:\qquad\mathrm{FID}=0,\qquad\mathrm{KID}=0
\end{aligned}""",
    kind="identity",
    route="enumeration",
    tolerance=1e-6,
    reason="a covariance's zero eigenvalue is found to about 1e-15, and so its root to 3e-8",
)
def lost_modes(rng: np.random.Generator) -> Lines:
    radius, turn = rng.uniform(1, 2), rng.uniform(0, np.pi)

    def corners(m: int) -> Array:
        angles = turn + np.pi * np.arange(2 * m) / m
        return radius * np.column_stack([np.cos(angles), np.sin(angles)])

    def of_gaussians(x: Array, y: Array) -> float:
        """FID from the points themselves, of mean 0, whose covariances may be singular."""
        a, b = (points / np.sqrt(len(points)) for points in (x, y))
        return np.square(a).sum() + np.square(b).sum() - 2 * linalg.svdvals(a @ b.T).sum()

    def covariances(x: Array, y: Array) -> float:
        return _fid(x.mean(0), np.cov(x.T, bias=True), y.mean(0), np.cov(y.T, bias=True))

    def table(fid: Callable[[Array, Array], float], kid: Callable[..., float]) -> Array:
        pairs = [(x, x[::2]) for x in map(corners, (2, 3, 4))]
        uniform = [(np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))) for x, y in pairs]
        return np.array([[fid(*xy), kid(*xy, *pq)] for xy, pq in zip(pairs, uniform, strict=True)])

    def transport(x: Array, y: Array) -> float:
        """W_2² of the laws themselves: every other corner moves to its neighbour."""
        return np.square(x[1] - x[0]).sum() / 2

    first, line = "FID and KID for m = 2, 3, 4", "= from the covariances, and from the first three moments"
    claim = [[(2 - np.sqrt(2)) * radius**2, 3 / 8 * radius**4], [0, radius**6 / 32], [0, 0]]
    return Lines(
        {first: table(of_gaussians, _mmd), line: table(covariances, _by_moments), "= the six claims": claim},
        [
            Mutant("a FID that sees every lost mode", {first: table(transport, _mmd)}, erratum="E003-27"),
            Mutant("KID = 0 where FID = 0", [claim[0], [0, 0], [0, 0]]),
            Mutant("KID > 0 for any lost modes", [*claim[:2], [0, radius**8 / 128]]),
            Mutant("r³ for r⁶", [claim[0], [0, radius**3 / 32], [0, 0]]),
        ],
    )


# Neighbours: N real points x_i, M samples y_j, and the ball B_i around x_i, up to its k-th neighbour among the others


def _balls(rng: np.random.Generator) -> tuple[Array, Array, int]:
    """Twelve real points, ten samples somewhat aside, and k."""
    return rng.normal(size=(12, 2)), rng.normal(size=(10, 2)) + 0.8, 3


def _inside(points: Array, centres: Array, k: int, own: int = 0) -> Array:
    """Whether each point is in each centre's ball, by a matrix; with `own` = 1 a centre is its own neighbour."""
    between = np.sort(cdist(centres, centres), axis=1)
    return cdist(points, centres) <= between[:, k - own]


def _tree(points: Array, centres: Array, k: int) -> list[list[int]]:
    """The points in each centre's ball, by trees."""
    reach = KDTree(centres).query(centres, k + 1)[0][:, k]
    return KDTree(points).query_ball_point(centres, reach).tolist()


@verifies(
    "precision-recall",
    r"""\begin{aligned}
&\text{precision}=\frac1M\sum_{j=1}^M\mathbf1\bigg[y_j\in\bigcup_{i=1}^NB(x_i)\bigg]\\
&\quad\;\;\text{recall}=\frac1N\sum_{i=1}^N\mathbf1\bigg[x_i\in\bigcup_{j=1}^MB(y_j)\bigg]\\
&\quad B(x_i)=\big\{x:\Vert x-x_i\Vert_2\le\text{the distance from }x_i\\
&\quad\quad\text{to its }k\text{-th neighbour among the other }x_j\big\}
\end{aligned}""",
    kind="definition",
    route="enumeration",
    **SMALL_SUMS,
)
def precision_recall(rng: np.random.Generator) -> Lines:
    x, y, k = _balls(rng)

    def share(balls: Sequence[Sequence[int]], n: int) -> float:
        return len(set().union(*balls)) / n

    def both(k: int = k, **slips: int) -> list[float]:
        return [_inside(y, x, k, **slips).any(1).mean(), _inside(x, y, k, **slips).any(1).mean()]

    return Lines(
        {
            "precision and recall, as unions of balls by trees": [
                share(_tree(y, x, k), len(y)),
                share(_tree(x, y, k), len(x)),
            ],
            "= by the matrix of distances": both(),
        },
        [
            Mutant("the two exchanged", both()[::-1]),
            Mutant("x_i its own neighbour", both(own=1)),
            Mutant("k + 1", both(k=k + 1)),
            Mutant("in all balls", [_inside(y, x, k).all(1).mean(), _inside(x, y, k).all(1).mean()]),
            Mutant("balls with a sample for samples in a ball", [_inside(y, x, k).any(0).mean(), both()[1]]),
        ],
    )


@verifies(
    "density-coverage",
    r"""\begin{aligned}
&\quad\;\;\;\text{density}=\frac1{kM}\sum_{j=1}^M\sum_{i=1}^N\mathbf1\left[y_j\in B(x_i)\right]\\
&\quad\text{coverage}=\frac1N\sum_{i=1}^N\mathbf1\left[\text{some }y_j\in B(x_i)\right]
\end{aligned}""",
    kind="definition",
    route="enumeration",
    **SMALL_SUMS,
)
def density_coverage(rng: np.random.Generator) -> Lines:
    x, y, k = _balls(rng)
    balls, inside = _tree(y, x, k), _inside(y, x, k)

    def both(inside: Array = inside, k: int = k) -> list[float]:
        return [inside.sum() / (k * len(inside)), inside.any(0).mean()]

    return Lines(
        {
            "density and coverage, by trees": [
                sum(map(len, balls)) / (k * len(y)),
                sum(bool(ball) for ball in balls) / len(x),
            ],
            "= by the matrix of distances": both(),
        },
        [
            Mutant("without 1/k", both(k=1)),
            Mutant("1/N for 1/M", [inside.sum() / (k * len(x)), both()[1]]),
            Mutant("precision for density", [inside.any(1).mean(), both()[1]]),
            Mutant("balls around the samples", both(_inside(x, y, k))),
            Mutant("the share of the samples that are covered", [both()[0], inside.any(1).mean()]),
            Mutant("x_i its own neighbour", both(_inside(y, x, k, own=1))),
        ],
    )


@verifies(
    "coverage-expected",
    r"""\begin{aligned}
p=q:\qquad\mathbb E\left[\text{coverage}\right]&=1-\frac{\binom{N-1}k}{\binom{N-1+M}k}
=1-\prod_{j=1}^k\frac{N-j}{M+N-j}\\
\mathbb E\left[\text{density}\right]&=1
\end{aligned}""",
    kind="identity",
    route="Monte Carlo",
    tolerance=1e-12,
    reason="exact enumeration; five standard errors of 10,000 sets of points",
)
def coverage_expected(rng: np.random.Generator) -> Lines:
    n, m, k, repeats = 6, 4, int(rng.integers(2, 5)), 10_000
    x, y = rng.normal(size=(repeats, n, 2)), rng.normal(size=(repeats, m, 2))

    def distances(a: Array, b: Array) -> Array:
        return np.linalg.norm(a[:, :, None] - b[:, None], axis=3)

    def played(k: int) -> Array:
        """Coverage and density, with a ball up to the k-th neighbour."""
        inside = distances(x, y) <= np.sort(distances(x, x), axis=2)[:, :, k, None]
        return np.stack([inside.any(2).mean(1), inside.sum((1, 2)) / (k * m)], axis=1)

    # Around x_i, the N-1 other points and the M samples come in any order: the ball ends at the k-th point.
    orders = list(itertools.combinations(range(n - 1 + m), m))
    within = [sum(place < np.delete(np.arange(n - 1 + m), order)[k - 1] for place in order) for order in orders]

    def formula(n: int = n, m: int = m, k: int = k, density: float = 1.0) -> Array:
        js = np.arange(1, k + 1)
        return np.array([1 - np.prod((n - js) / (m + n - js)), density])

    draws = played(k)
    first, by_ranks = f"coverage and density in the plane, k = {k}", "= over all orders of points and samples"
    line = "= 1 - C(N-1,k)/C(N-1+M,k), and 1"
    return Lines(
        {
            first: draws.mean(0),
            by_ranks: [np.mean(np.array(within) > 0), n * np.mean(within) / (k * m)],
            line: [1 - comb(n - 1, k) / comb(n - 1 + m, k), 1.0],
            "= 1 - Π_j (N-j)/(M+N-j), and 1": formula(),
        },
        [
            Mutant("1: every ball is covered", [1.0, 1.0]),
            Mutant("x_i its own neighbour", {first: played(k - 1).mean(0)}),
            Mutant("x_i among the points", formula(n=n + 1)),
            Mutant("k - 1 factors", formula(k=k - 1)),
            Mutant("N and M exchanged", formula(n=m, m=n)),
            Mutant("without 1 -", [1 - formula()[0], 1.0]),
            Mutant("a density of M/N", formula(density=m / n)),
        ],
        standard_errors={first: draws.std(0) / np.sqrt(repeats)},
    )


# Likelihood and samples


def _of_bits(shares: Array) -> Array:
    """The table of independent bits: the probability of each of the 2^n states."""
    table = np.ones(1)
    for share in shares:
        table = np.outer(table, [share, 1 - share]).ravel()
    return table


@verifies(
    "mixture-with-noise",
    r"""\begin{aligned}
&\log\big(\epsilon\,p(x)+(1-\epsilon)\,q(x)\big)\ge\log p(x)+\log\epsilon\\
&\quad\Longrightarrow\quad\mathbb E_p\left[\log p(x)\right]
-\mathbb E_p\left[\log\big(\epsilon\,p(x)+(1-\epsilon)\,q(x)\big)\right]\\
&\qquad\le-\log\epsilon
\qquad\text{whatever }d_x
\end{aligned}""",
    kind="inequality",
    route="enumeration",
    **SMALL_SUMS,
)
def mixture_with_noise(rng: np.random.Generator) -> Lines:
    # One sample in a hundred is from the model p, the others are coins: q.
    epsilon, dims = 0.01, np.array([1, 4, 16])
    tables = [(_of_bits(rng.uniform(0.8, 0.95, d)), np.full(2**d, 0.5**d)) for d in dims]

    def for_all(loss: Callable[[Array, Array], float]) -> Array:
        return np.array([loss(p, q) for p, q in tables])

    def mixed(p: Array, q: Array) -> Array:
        return epsilon * p + (1 - epsilon) * q

    def elsewhere(p: Array, q: Array) -> float:
        """With one more bit, which tells p's states from q's."""
        p, q = np.kron([1, 0], p), np.kron([0, 1], q)
        return rel_entr(p, mixed(p, q)).sum()

    first, loss = "KL(p‖εp + (1-ε)q), d = 1, 4, 16 bits", "= E_p[log p] - E_p[log(εp + (1-ε)q)]"
    pointwise, line = "≤ max_x log p(x) - log(εp(x) + (1-ε)q(x))", "≤ -log ε"
    of_logs = for_all(lambda p, q: (1 - epsilon) * entropy(p, q))
    return Lines(
        {
            first: for_all(lambda p, q: entropy(p, mixed(p, q))),
            loss: for_all(lambda p, q: p @ np.log(p) - p @ np.log(mixed(p, q))),
            pointwise: for_all(lambda p, q: (np.log(p) - np.log(mixed(p, q))).max()),
            line: np.full(3, -np.log(epsilon)),
            "= KL(p‖εp + (1-ε)q) where p and q do not overlap": for_all(elsewhere),
        },
        [
            Mutant("-log ε for every bit", {line: -np.log(epsilon) * dims}),
            Mutant("the mean of log p and log q", {loss: of_logs}),
            Mutant("-log(1-ε)", {line: np.full(3, -np.log(1 - epsilon))}),
            Mutant("nothing", {line: np.zeros(3)}),
            Mutant("(1-ε)/ε, not its log", {line: np.full(3, (1 - epsilon) / epsilon)}),
        ],
    )


@verifies(
    "memorised-likelihood",
    r"""\begin{aligned}
\mathbb E\left[\log\hat p_h(x)\right]&\le-\frac{d_x}2\log(2\pi h^2)-\frac{\mathbb E\left[\delta^2(x)\right]}{2h^2}\\
&\le-\frac{d_x}2\log\Big(2\pi e\,\frac{\mathbb E\left[\delta^2(x)\right]}{d_x}\Big)\quad\text{for every }h\\
&\quad\text{with }\delta(x)=\min_i\big\Vert x-x^{(i)}\big\Vert_2
\end{aligned}""",
    kind="inequality",
    route="enumeration",
    tolerance=1e-7,
    reason="at h = 0.01 the log-densities are of order 10⁴; an optimum found numerically",
)
def memorised_likelihood(rng: np.random.Generator) -> Lines:
    # p̂_h: equal Gaussians of width h at twelve training points in four dimensions; E over ten other points.
    n, dim, widths = 12, 4, np.array([0.01, 0.3, 1.0, 3.0])
    train, test = rng.normal(size=(n, dim)), rng.normal(size=(10, dim))
    nearest = np.square(KDTree(train).query(test)[0]).mean()

    def log_density(h: float) -> float:
        parts = norm.logpdf(test[:, None], train, h).sum(2)
        return (logsumexp(parts, axis=1) - np.log(n)).mean()

    def bound(h: Array, d: float = dim, square: float = nearest, two: float = 2.0) -> Array:
        return -d / 2 * np.log(2 * np.pi * h**2) - square / (two * h**2)

    best = -optimize.minimize_scalar(lambda log_h: -bound(np.exp(log_h)), bounds=(-5, 5), method="bounded").fun
    everywhere = -dim / 2 * np.log(2 * np.pi * np.e * nearest / dim)
    first, line = "≤ E[log p̂_h(x)], for four h", "≤ -d/2 log(2πh²) - E[δ²]/2h²"
    highest, last = "≤ -d/2 log(2πe E[δ²]/d)", "= the bound at its best h"
    return Lines(
        {
            "the same bound, less log n": bound(widths) - np.log(n),
            first: [log_density(h) for h in widths],
            line: bound(widths),
            highest: np.full(4, everywhere),
            last: np.full(4, best),
        },
        [
            Mutant("h for h^d", {line: bound(widths, d=1)}),
            Mutant("h² for 2h²", {line: bound(widths, two=1.0)}),
            Mutant("the sign of the distances", {line: bound(widths, square=-nearest)}),
            Mutant("all training points as near", {line: bound(widths, square=cdist(test, train).mean() ** 2)}),
            Mutant("2π for 2πe", {highest: np.full(4, everywhere + dim / 2)}),
            Mutant("E[δ²], not divided by d", {highest: np.full(4, everywhere - dim / 2 * np.log(dim))}),
        ],
    )


@verifies(
    "classifier-two-sample",
    r"""\begin{aligned}
&\max_c\left\{\tfrac12P_p(c(x)=1)+\tfrac12P_q(c(x)=0)\right\}\\
&\quad=\tfrac12P_p\big(p(x)>q(x)\big)+\tfrac12P_q\big(p(x)\le q(x)\big)\\
&\quad=\tfrac12+\tfrac12\mathrm{TV}(p,q),\qquad\mathrm{TV}(p,q)=\tfrac12\int|p(x)-q(x)|\,dx
\end{aligned}""",
    kind="identity",
    route="enumeration",
    tolerance=1e-8,
    reason="an optimum found numerically, where the function is flat; adaptive quadrature",
)
def classifier_two_sample(rng: np.random.Generator) -> Lines:
    # Two tables, and a narrow and a wide Gaussian on the line, where the best c is an interval.
    p, q = _simplex(rng, 6, 2)
    narrow, wide = norm(rng.normal() / 2, rng.uniform(0.5, 0.8)), norm(0, rng.uniform(1.5, 2))
    all_classifiers = np.array(list(itertools.product((0, 1), repeat=6)))

    def interval(ends: Array) -> float:
        """The accuracy of c(x) = 1 between the ends."""
        inside = [law.cdf(ends[1]) - law.cdf(ends[0]) for law in (narrow, wide)]
        return (inside[0] + 1 - inside[1]) / 2

    found = optimize.minimize(lambda ends: -interval(ends), [-1.0, 1.0], method="BFGS", options={"gtol": 1e-8})
    middle = narrow.mean()
    crossings = [
        optimize.brentq(lambda x: narrow.logpdf(x) - wide.logpdf(x), *sorted((middle, middle + side)))
        for side in (-9, 9)
    ]
    gap, _ = quad(lambda x: abs(narrow.pdf(x) - wide.pdf(x)), -15, 15, points=crossings, epsabs=1e-11, limit=200)
    total_variation = np.array([np.abs(p - q).sum() / 2, gap / 2])
    best, last = "= ½P_p(p > q) + ½P_q(p ≤ q)", "= ½ + ½ TV"
    frequent = p[p > 1 / 6].sum() / 2 + q[p <= 1 / 6].sum() / 2
    jsd = entropy((p + q) / 2) - entropy(p) / 2 - entropy(q) / 2
    return Lines(
        {
            "the best of 64 classifiers of a table, and of all intervals": [
                (all_classifiers @ p + (1 - all_classifiers) @ q).max() / 2,
                -found.fun,
            ],
            best: [p[p > q].sum() / 2 + q[p <= q].sum() / 2, interval(np.array(crossings))],
            last: 0.5 + total_variation / 2,
        },
        [
            Mutant("½ + TV", 0.5 + total_variation),
            Mutant("½ - ½TV, its error", 0.5 - total_variation / 2),
            Mutant("½: nothing to be told", {last: [0.5, 0.5]}),
            Mutant("½ + JSD/log 4, for the table", [0.5 + jsd / np.log(4), 0.5 + total_variation[1] / 2]),
            Mutant("where p is large, whatever q", {best: [frequent, interval(np.array(crossings))]}),
        ],
    )


@verifies(
    "parzen-gap",
    r"""\begin{aligned}
\mathrm{KL}\big(p\,\big\Vert\,\mathbb E\left[\hat p_h\right]\big)
&=\mathrm{KL}\big(N(0,s^2I)\,\big\Vert\,N(0,(s^2+h^2)I)\big)\\
&=\frac{d_x}2\Big(\log(1+r)-\frac r{1+r}\Big)\\
&\quad\text{for }p=N(0,s^2I),\quad r=\frac{h^2}{s^2}
\end{aligned}""",
    kind="identity",
    route="quadrature",
    tolerance=1e-8,
    reason="trapezoid sums to about 1e-13, times 784",
)
def parzen_gap(rng: np.random.Generator) -> Lines:
    s, h, dims = rng.uniform(0.7, 1.3), rng.uniform(0.3, 1.0), np.array([1, 2, 784])
    x, step = np.linspace(-11, 11, 441, retstep=True)
    p = norm.pdf(x, 0, s)
    blurred = step * norm.pdf(x[:, None], x, h) @ p
    # In the plane, both laws are products.
    plane_p, plane_blurred = np.outer(p, p), np.outer(blurred, blurred)
    one, two = step * rel_entr(p, blurred).sum(), step**2 * rel_entr(plane_p, plane_blurred).sum()

    def closed(d: int, width: float) -> float:
        laws = (Normal(torch.zeros(d).double(), scale) for scale in (s, width))
        return kl_divergence(*laws).sum().item()

    r = (h / s) ** 2

    def formula(r: float = r, d: Array = dims, minus: float = 1.0) -> Array:
        return d / 2 * (np.log1p(r) - minus * r / (1 + r))

    line, last = "= KL(N(0,s²I)‖N(0,(s²+h²)I))", "= d/2 (log(1+r) - r/(1+r))"
    return Lines(
        {
            "KL of p and p * K by quadrature, d = 1, 2 and 784 of the first": [one, two, 784 * one],
            line: [closed(d, np.hypot(s, h)) for d in dims],
            last: formula(),
        },
        [
            Mutant("one for all d", formula(d=np.ones(3))),
            Mutant("h/s for its square", formula(r=h / s)),
            Mutant("log(1+r) alone", formula(minus=0.0)),
            Mutant("KL the other way round", dims / 2 * (r - np.log1p(r))),
            Mutant("the widths added, not the variances", {line: [closed(d, s + h) for d in dims]}),
        ],
    )


@verifies(
    "data-copying",
    r"""\begin{aligned}
&U=\sum_{i=1}^n\sum_{j=1}^m\mathbf1\left[\delta(y_i)<\delta(x_j)\right],\qquad
\delta(x)=\min_{x^\prime\in\text{training set}}\Vert x-x^\prime\Vert_2\\
&\quad y_i\text{ and test points }x_j\text{ of one law:}\\
&\quad\mathbb E\Big[\frac U{nm}\Big]=\frac12,\quad
\mathrm{Var}\Big[\frac U{nm}\Big]=\frac{n+m+1}{12nm}
\end{aligned}""",
    kind="identity",
    route="Monte Carlo",
    tolerance=1e-11,
    reason="exact enumeration; five standard errors of 10,000 sets of distances",
)
def data_copying(rng: np.random.Generator) -> Lines:
    n, m, repeats = 4, 3, 10_000
    tree = KDTree(rng.normal(size=(20, 2)))
    away = tree.query(rng.normal(size=(repeats, n + m, 2)))[0]

    def nearer(samples: Array) -> Array:
        """U/nm, while SciPy counts the pairs with the sample farther away."""
        return 1 - mannwhitneyu(samples, away[:, n:], axis=1).statistic / (n * m)

    def moments(shares: Array) -> list[float]:
        return [shares.mean(), shares.var()]

    # All orders of n distances of samples and m of test points.
    orders = [(order, set(range(n + m)) - set(order)) for order in itertools.combinations(range(n + m), n)]
    counted = np.array([np.mean([own < other for own in ours for other in others]) for ours, others in orders])
    first, by_ranks = "E and Var of U/nm, with distances in the plane", "= over all 35 orders"
    played, copies = nearer(away[:, :n]), nearer(np.zeros((repeats, n)))
    errors = np.array([played.std(), np.square(played - played.mean()).std()]) / np.sqrt(repeats)

    def formula(mean: float = 0.5, variance: float = (n + m + 1) / (12 * n * m)) -> list[float]:
        return [mean, variance]

    return Lines(
        {first: moments(played), by_ranks: moments(counted), "= ½ and (n+m+1)/12nm": formula()},
        [
            Mutant("n+m for n+m+1", formula(variance=(n + m) / (12 * n * m))),
            Mutant("the variance of U", formula(variance=n * m * (n + m + 1) / 12)),
            Mutant("nm independent pairs", formula(variance=1 / (4 * n * m))),
            Mutant("samples that are copies", {first: moments(copies)}),
            Mutant("0: every sample is farther", formula(mean=0.0)),
            Mutant("n/(n+m)", formula(mean=n / (n + m))),
        ],
        standard_errors={first: errors},
    )
