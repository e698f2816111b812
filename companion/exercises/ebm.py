"""Answers of the chapter "Energy-based models and score matching"."""

from collections.abc import Callable, Mapping
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from scipy import integrate
from scipy.stats import chi2, norm
from torch import Tensor
from torch.distributions import Normal

from companion.exercises.checking import NotYet, call, checks, function, number, numbers


@checks("ebm-1")
def bowl(answer: Callable[..., tuple]) -> None:
    """A function of (x, m, lam), an array and two numbers, that returns (Z, score, d_m, d_lam), the last two being
    the derivatives of log p(x).

    Z is a quadrature, and all derivatives are differences of -E(x) - log Z by steps of 1e-4: relative tolerance 1e-5.
    """

    def Z(m: float, lam: float) -> float:
        return integrate.quad(lambda x: np.exp(-lam * (x - m) ** 2 / 2), m - 40, m + 40, points=[m], epsabs=1e-13)[0]

    def right(x: Float[np.ndarray, " points"], m: float, lam: float) -> tuple:
        def log_p(x, m, lam):
            return -lam * (x - m) ** 2 / 2 - np.log(Z(m, lam))

        h = 1e-4
        d_x = (log_p(x + h, m, lam) - log_p(x - h, m, lam)) / (2 * h)
        d_m = (log_p(x, m + h, lam) - log_p(x, m - h, lam)) / (2 * h)
        d_lam = (log_p(x, m, lam + h) - log_p(x, m, lam - h)) / (2 * h)
        return Z(m, lam), d_x, d_m, d_lam

    def slip(**wrong: Callable) -> Callable[..., tuple]:
        names = ("Z", "score", "d_m", "d_lam")
        return lambda x, m, lam: tuple(wrong[name](x - m, lam) if name in wrong else None for name in names)

    x = np.array([-1.0, 0.3, 1.5, 2.0])
    function(
        answer,
        right,
        [(x, 0.7, 2.5), (x, -0.4, 0.5), (x, 0.0, 1.3)],
        {
            "λ is a precision: the variance is 1/λ": slip(Z=lambda r, lam: (2 * np.pi * lam) ** 0.5),
            "this is one over Z": slip(Z=lambda r, lam: (lam / (2 * np.pi)) ** 0.5),
            "this is Z of λ = 1": slip(Z=lambda r, lam: (2 * np.pi) ** 0.5),
            "the sign is inverted: this is the gradient of the energy in x": slip(
                score=lambda r, lam: lam * r, d_m=lambda r, lam: -lam * r
            ),
            "the factor λ is missing": slip(score=lambda r, lam: -r, d_m=lambda r, lam: r),
            "this is -∂E/∂λ alone: Z depends on λ as well, and the mean over the model has to be zero": slip(
                d_lam=lambda r, lam: -(r**2) / 2
            ),
            "the sign of the energy's part is inverted": slip(d_lam=lambda r, lam: 1 / (2 * lam) + r**2 / 2),
            "the sign is inverted": slip(d_lam=lambda r, lam: r**2 / 2 - 1 / (2 * lam)),
            "log Z = ½ log 2π - ½ log λ: half is missing in its derivative": slip(
                d_lam=lambda r, lam: 1 / lam - r**2 / 2
            ),
        },
        "differentiate -E(x) - log Z, with Z = √(2π/λ)",
        outputs=("Z", "score", "d_m", "d_lam"),
        relative=1e-5,
        absolute=1e-6,
    )


@checks("ebm-2")
def denoising_loss(answer: Callable[..., Tensor]) -> None:
    """A function of (score, x, eps, sigma), a function, two tensors of shape (batch, dim) and a number, that returns
    ½‖score(x̃) - target‖² of each example, without a weight, where x̃ = x + sigma eps.

    The target is the gradient of log N(x̃; x, σ²I) by autograd. Exact up to rounding, for three scores.
    """

    def right(score: Callable[[Tensor], Tensor], x: Tensor, eps: Tensor, sigma: float) -> Tensor:
        noisy = (x + sigma * eps).requires_grad_()
        [target] = torch.autograd.grad(Normal(x, sigma).log_prob(noisy).sum(), noisy)
        return 0.5 * (score(noisy.detach()) - target).square().sum(1)

    def loss(scale: float, power: int = 1, at: float = 1.0) -> Callable[..., Tensor]:
        def wrong(score: Callable, x: Tensor, eps: Tensor, sigma: float) -> Tensor:
            return 0.5 * (score(x + at * sigma * eps) - scale * eps / sigma**power).square().sum(1)

        return wrong

    generator = torch.Generator().manual_seed(0)
    scores = (lambda v: -v, lambda v: torch.sin(v) - v**2, lambda v: 0.3 - v.roll(1, 1))
    draws = [torch.randn(2, 6, d, generator=generator, dtype=torch.float64) for d in (2, 5, 3)]
    function(
        answer,
        right,
        [(score, *draw, sigma) for score, draw, sigma in zip(scores, draws, (0.5, 0.2, 1.7), strict=True)],
        {
            "this is the bug of the text: the target has the sign of ε/σ, and what is learned is minus the score": loss(
                1.0
            ),
            "ε is divided by σ once: x̃ - x = σε, and that over σ² is ε/σ": loss(-1.0, power=2),
            "the noise itself is the target of a network that predicts it; the score's is -ε/σ": loss(-1.0, power=0),
            "the score is taken at x̃, with the noise, not at x": loss(-1.0, at=0.0),
            "the factor one half is missing": lambda *a: 2 * right(*a),
            "average over nothing: one number for each example": lambda *a: right(*a).mean(),
            "sum over coordinates, do not average": lambda *a: right(*a) / a[1].shape[1],
            "this has the weight σ²": lambda *a: right(*a) * a[3] ** 2,
        },
        "the target is ∇ log N(x̃; x, σ²I) = -(x̃ - x)/σ²",
    )


@checks("ebm-3")
def largest_step(answer: Callable[[float], float]) -> None:
    """A function of the precision λ that returns the step size at which the stationary density is lost, in the
    chapter's x - (ε/2) ∇E + √ε ξ.

    Found by bisection: below it, the variance of the chain grows less from step to step, and above it more. Relative
    tolerance 1e-3.
    """

    def bisect(drift: float, lam: float) -> float:
        def grows(step: float) -> bool:
            v = [0.0]
            for _ in range(3):
                v.append((1 - step * drift * lam) ** 2 * v[-1] + step)
            return v[3] - v[2] > v[2] - v[1]

        low, high = 1.0 / lam, 20.0 / lam
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if grows(middle) else (middle, high)
        return low

    function(
        answer,
        lambda lam: bisect(0.5, lam),
        [(0.5,), (1.0,), (7.0,)],
        {
            "there 1 - ελ/2 = 0: the chain jumps to the middle at once, and stays stable; the drift has half a step": (
                lambda lam: bisect(1.0, lam)
            ),
            "the larger the precision, the smaller the step": lambda lam: 4 * lam,
            "a precision is one over a variance, not over its root": lambda lam: 4 / lam**0.5,
            "this is a quarter of it; may 1 - ελ/2 not become negative?": lambda lam: 1 / lam,
        },
        "the mean shrinks by 1 - ελ/2 in each step: between which values may this factor lie?",
        relative=1e-3,
    )


@checks("ebm-4")
def trace_variance(answer: Callable[..., tuple[float, float]]) -> None:
    """A function of H, a symmetric matrix, that returns (signs, gaussian): the variance of vᵀHv for random signs v,
    and for v ~ N(0, I).

    All sign vectors are listed; the Gaussian moments are Gauss–Hermite sums, exact for polynomials. Exact up to
    rounding, for a diagonal matrix, the same one rotated by 45 degrees, and two random ones.
    """

    def variance(values: np.ndarray, weights: np.ndarray) -> float:
        return weights @ values**2 - (weights @ values) ** 2

    def right(H: Float[np.ndarray, "dim dim"]) -> tuple[float, float]:
        d = len(H)
        nodes, weights = np.polynomial.hermite_e.hermegauss(4)

        def forms(vectors):
            return np.einsum("ni,ij,nj->n", vectors, H, vectors)

        signs, grid = (np.array(list(product(axis, repeat=d))) for axis in ((-1.0, 1.0), nodes))
        products = np.prod(list(product(weights / weights.sum(), repeat=d)), axis=1)
        return variance(forms(signs), np.full(2**d, 2.0**-d)), variance(forms(grid), products)

    turn = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    rng = np.random.default_rng(0)
    random = [(lambda m: m + m.T)(rng.normal(size=(3, 3))) for _ in range(2)]

    def off(H):
        return H - np.diag(np.diag(H))

    function(
        answer,
        right,
        [(H,) for H in (np.diag([1.0, 4.0]), turn @ np.diag([1.0, 4.0]) @ turn.T, *random)],
        {
            "the two are exchanged": lambda H: right(H)[::-1],
            "the squares of signs are always one: the diagonal has no part in the variance": (
                lambda H: (2 * (H**2).sum(), None)
            ),
            "a factor of two is missing: each pair (i, j) appears twice in vᵀHv": (
                lambda H: ((off(H) ** 2).sum(), (H**2).sum())
            ),
            "a factor of two too much": lambda H: (4 * (off(H) ** 2).sum(), 4 * (H**2).sum()),
            "these are standard deviations": lambda H: tuple(np.sqrt(right(H))),
            "the entries off the diagonal count as well": lambda H: (None, 2 * (np.diag(H) ** 2).sum()),
        },
        "write vᵀHv as Σ H_ii v_i² + 2 Σ_{i<j} H_ij v_i v_j: which terms vary?",
        outputs=("signs", "gaussian"),
        absolute=1e-8,
    )


@checks("ebm-5")
def noise_of_contrast(answer: Mapping[str, float]) -> None:
    """A dictionary of two numbers: {"near": ..., "far": ...}, the standard deviation of log Z over ten repetitions,
    with noise N(0, 1.5²) and N(4, 1).

    Held to the standard error of the estimate for many points, by quadrature. A standard deviation of ten numbers
    scatters itself: it is allowed what has probability 1e-4 on either side, a factor of about 4 below and 2 above.
    """
    x, step = np.linspace(-12, 14, 20_001, retstep=True)
    p = norm.pdf(x)

    def deviation(mean: float, scale: float, points: int = 2000) -> float:
        """Data minus noise of their mistakes is zero at log Z; its variance, over the square of its slope."""
        q = norm.pdf(x, mean, scale)
        d = p / (p + q)
        variance = sum(w @ f**2 * step - (w @ f * step) ** 2 for w, f in ((p, 1 - d), (q, d)))
        return (variance / points) ** 0.5 / ((p + q) @ (d * (1 - d)) * step)

    found = numbers(answer, ("near", "far"))
    low, high = np.sqrt(chi2.ppf([1e-4, 1 - 1e-4], 9) / 9)
    right = {"near": deviation(0, 1.5), "far": deviation(4, 1)}

    def fits(value: float, name: str) -> bool:
        return bool(low <= value / right[name] <= high)

    if fits(found["near"], "far") and fits(found["far"], "near"):
        raise NotYet("the two are exchanged: noise far from the data tells little about them")
    for name, value in found.items():
        if fits(value, name):
            continue
        if fits(max(value, 0.0) ** 0.5, name):
            raise NotYet(f"{name}: this is the variance; its root is asked for")
        raise NotYet(
            f"{name}: larger than 2,000 points explain: is the training over, and the learning rate small enough?"
            if value > right[name]
            else f"{name}: smaller than 2,000 points allow: were the data drawn anew for each repetition?"
        )


@checks("ebm-6")
def swap(answer: Callable[..., float]) -> None:
    """A function of (E_k, E_l, T_k, T_l), the energies of the states at two temperatures, that returns the
    probability with which they swap.

    A property, not a formula: the pair keeps its density exp(-E_k/T_k - E_l/T_l) when the swap and its reverse are
    equally frequent, for every pair of states out of five, at three pairs of temperatures. Relative tolerance 1e-6.
    """
    energies = [0.3, 2.0, 1.1, 5.0, 0.9]

    def probability(*a: float) -> float:
        return number(call(answer, *a), "what your function returns")

    for T_k, T_l in ((1.0, 2.5), (2.5, 6.0), (3.0, 0.8)):
        swaps = {(a, b): probability(a, b, T_k, T_l) for a, b in product(energies, repeat=2)}
        if min(swaps.values()) < 0:
            raise NotYet("a probability is not negative; is this the logarithm of the ratio?")
        if max(swaps.values()) > 1 + 1e-9:
            raise NotYet("a probability is at most one: take the minimum of one and the ratio")
        if max(swaps.values()) == 0:
            raise NotYet("states that never swap keep every density, and do not help")

        def flow(a, b):
            return np.exp(-a / T_k - b / T_l)  # noqa: B023

        for a, b in product(energies, repeat=2):
            there, back = flow(a, b) * swaps[a, b], flow(b, a) * swaps[b, a]
            if abs(there - back) <= 1e-6 * max(there, back):
                continue
            # With the two states exchanged the wrong sign turns right.
            mirrored = abs(flow(a, b) * swaps[b, a] - flow(b, a) * swaps[a, b]) <= 1e-6 * max(there, back)
            if mirrored:
                raise NotYet(
                    "the sign of the exponent is inverted: the lower energy has to go to the lower temperature"
                )
            if min(swaps.values()) == max(swaps.values()):
                raise NotYet("a constant probability heats the cold chain: it has to depend on the energies")
            raise NotYet(
                f"energies {a} at T = {T_k} and {b} at T = {T_l}: the swap and its reverse are not equally frequent. "
                "The ratio of the densities after and before is exp((1/T_k - 1/T_l)(E_k - E_l))"
            )
