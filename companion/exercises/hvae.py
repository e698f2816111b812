"""Answers of the chapter "Hierarchical variational autoencoders"."""

from collections.abc import Callable, Mapping
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from companion.exercises.checking import NotYet, Unreadable, array, call, checks, function, kind
from companion.exercises.digits import plausible

Matrix = Float[np.ndarray, "rows columns"]


@checks("hvae-1")
def one_level(answer: Callable[..., tuple[Matrix, Matrix]]) -> None:
    """A function of (W1, s1, W2, s2), of the tower z2 ~ N(0, I), z1 = W2 z2 + s2 e2, x = W1 z1 + s1 e1, that returns
    (W, S), the loading and the noise covariance of a model x = W z2 + e, e ~ N(0, S), with the same p(x).

    W Wᵀ + S is held to the covariance of x, whose map from (z2, e2, e1) to x is written down column by column by
    feeding in unit vectors. Exact up to 1e-9 on three random towers.
    """
    rng = np.random.default_rng(0)
    for s1, s2 in ((0.5, 0.8), (1.2, 0.3), (0.7, 1.6)):
        W1, W2 = rng.normal(size=(4, 3)), rng.normal(size=(3, 2))
        found = call(answer, W1, s1, W2, s2)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Unreadable(f"your function returns {kind(found)}, not a pair of matrices")
        W, S = array(found[0], "W"), array(found[1], "S")
        if W.shape != (4, 2) or S.shape != (4, 4):
            raise Unreadable(f"W and S have shapes {W.shape} and {S.shape}, not (4, 2) and (4, 4)")
        columns = [W1 @ (W2 @ e[:2] + s2 * e[2:5]) + s1 * e[5:] for e in np.eye(9)]
        covariance = sum(np.outer(c, c) for c in columns)

        def close(a, b):
            return np.abs(a - b).max() < 1e-9

        if close(W @ W.T + S, covariance) and close(S, S.T) and np.linalg.eigvalsh(S).min() > 0:
            continue
        hints = {
            "S: the noise of the upper level is missing: it goes through W1 too": s1**2 * np.eye(4),
            "S: the noise of the upper level reaches x through W1, and is no multiple of I": (s1**2 + s2**2)
            * np.eye(4),
            "S: the noise enters with its variance, s², not with s": s1 * np.eye(4) + s2 * W1 @ W1.T,
            "S: this is the covariance of x itself; W Wᵀ is a part of it": covariance,
        }
        if close(W @ W.T, W1 @ W2 @ (W1 @ W2).T):
            raise NotYet(
                next((h for h, wrong in hints.items() if close(S, wrong)), "W is right, S is not: which e reach x?")
            )
        raise NotYet("W: put z1 into the equation of x; what stands before z2?")


@checks("hvae-2")
def combine(answer: Callable[..., float]) -> None:
    """A function of (mu_hat, var_hat, mu_p, var_p), four numbers, that returns the mean of the product of the two
    Gaussians.

    The product is integrated on a grid. Absolute tolerance 1e-6, for four pairs.
    """

    def right(mu_hat: float, var_hat: float, mu_p: float, var_p: float) -> float:
        z = np.linspace(-60, 60, 60_001)
        log_product = norm.logpdf(z, mu_hat, var_hat**0.5) + norm.logpdf(z, mu_p, var_p**0.5)
        weight = np.exp(log_product - log_product.max())
        return weight @ z / weight.sum()

    def weighted(power: float) -> Callable[..., float]:
        return lambda m, v, n, w: (m * v**power + n * w**power) / (v**power + w**power)

    function(
        answer,
        right,
        [(5.0, 100.0, 0.0, 1.0), (1.0, 0.5, -2.0, 2.0), (-0.3, 0.2, 0.7, 0.1), (0.0, 1.0, 3.0, 9.0)],
        {
            "this is the bug: it weighs by the variance, and trusts the vaguer of the two": weighted(1),
            "each mean is weighed by one over its variance, not over its standard deviation": weighted(-0.5),
            "this is the plain mean: the more precise one has to weigh more": weighted(0),
            "the precisions are not divided by their sum": lambda m, v, n, w: m / v + n / w,
            "this ignores the prior": lambda m, v, n, w: m,
        },
        "with a huge var_hat the answer has to be close to mu_p",
        absolute=1e-6,
    )


@checks("hvae-3")
def middle_term(answer: Callable[[float], float]) -> None:
    """A function of s that returns the middle term in nats.

    The expectation under q(z1) q(z2|z1) is a Gauss–Hermite sum, exact for these polynomials. Exact up to rounding, at
    four s.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()

    def right(s: float) -> float:
        total = 0.0
        for (z_1, a), (e, b) in product(zip(nodes, weights, strict=True), repeat=2):
            total += a * b * (norm.logpdf(z_1) - norm.logpdf(z_1, z_1 + s * e, s))
        return total

    def kl(s: float) -> float:
        """KL(q(z1|x)‖p(z1|z2)) averaged over z2 ~ N(0, 1 + s²)."""
        return -0.5 + np.log(s) + (1 + 1 + s**2) / (2 * s**2)

    function(
        answer,
        right,
        [(0.3,), (0.7,), (1.5,), (4.0,)],
        {
            "the sign is inverted": lambda s: -np.log(s),
            "this is log of the variance: one half is missing": lambda s: 2 * np.log(s),
            "this is the divergence KL(q(z1|x)‖p(z1|z2)), averaged over z2: in the middle term both z come from q "
            "together": kl,
            "this is E[log q(z1|x)] alone": lambda s: -0.5 * np.log(2 * np.pi * np.e),
            "this is -E[log p(z1|z2)] alone": lambda s: 0.5 * np.log(2 * np.pi * np.e * s**2),
            "the constants ½ log 2πe of the two terms cancel": lambda s: np.log(s) + 0.5 * np.log(2 * np.pi * np.e),
        },
        "given z1, z2 - z1 is N(0, s²): what is E[log p(z1|z2)]?",
    )


@checks("hvae-4")
def free_bits(answer: Callable[..., float]) -> None:
    """A function of (kl, allowance), a (batch, levels) array of divergences and a number, that returns what the loss
    contains besides the reconstruction.

    Found level by level with a loop over the examples. Exact up to rounding, for three batches, among them some with
    single examples on the other side of the allowance than their mean.
    """

    def right(kl: Float[np.ndarray, "batch levels"], allowance: float) -> float:
        total = 0.0
        for level in range(kl.shape[1]):
            mean = sum(float(row[level]) for row in kl) / len(kl)
            total += mean if mean > allowance else allowance
        return total

    rng = np.random.default_rng(0)
    instances = [(rng.gamma(2.0, [5, 20, 15.5], size=(6, 3)), allowance) for allowance in (5.0, 30.0, 34.0, 120.0)]
    function(
        answer,
        right,
        instances,
        {
            "take the maximum of the allowance and the mean of the batch, not of each example": (
                lambda kl, allowance: np.maximum(kl, allowance).mean(0).sum()
            ),
            "the allowance is for each level, not for their sum": lambda kl, allowance: max(
                kl.mean(0).sum(), allowance
            ),
            "this charges at most the allowance; it is the least that is charged": (
                lambda kl, allowance: np.minimum(kl.mean(0), allowance).sum()
            ),
            "this subtracts the allowance: the gradient is the same, but the loss is then no bound": (
                lambda kl, allowance: np.maximum(kl.mean(0) - allowance, 0).sum()
            ),
            "this is the loss without free bits": lambda kl, allowance: kl.mean(0).sum(),
            "this averages over levels; their divergences add up": (
                lambda kl, allowance: np.maximum(kl.mean(0), allowance).mean()
            ),
        },
        "each level costs its mean divergence, and at least its allowance",
    )


@checks("hvae-5")
def levels_needed(answer: Callable[..., int]) -> None:
    """A function of (beta, square, d), with square = ‖x‖² of the data in d dimensions, that returns the least number
    of levels with KL(q(z_T|x)‖N(0, I)) below 0.01 nats.

    The divergence is torch's, for an x of that norm, and the number is found by bisection. Exact.
    """

    def kl(levels: float, beta: float, square: float, d: int) -> float:
        bar = (1 - beta) ** levels
        x = torch.full((d,), (square / d) ** 0.5, dtype=torch.float64)
        q = Normal(bar**0.5 * x, torch.tensor(1 - bar, dtype=torch.float64).sqrt())
        return kl_divergence(q, Normal(torch.zeros(d).double(), 1.0)).sum().item()

    def first(divergence: Callable[[int], float]) -> int:
        high = 1
        while divergence(high) >= 0.01:
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if divergence(middle) >= 0.01 else (low, middle)
        return high

    def right(beta: float, square: float, d: int) -> int:
        return first(lambda n: kl(n, beta, square, d))

    def variance_only(beta: float, square: float, d: int) -> int:
        return first(lambda n: kl(n, beta, 0.0, d))

    def root(beta: float, square: float, d: int) -> int:
        return first(lambda n: kl(n / 2, beta, square, d))

    function(
        answer,
        right,
        [(0.01, 700.0, 784), (0.1, 600.0, 784), (0.003, 30.0, 100), (0.5, 700.0, 784)],
        {
            "one too few: this is the last number with 0.01 nats or more": lambda *a: right(*a) - 1,
            "one too many: the first number below 0.01 nats is asked for": lambda *a: right(*a) + 1,
            "this counts the variance of q alone; its mean still shows x, and goes last": variance_only,
            "ᾱ_T is the product of 1 - β, not its root": root,
            "one nat, or a hundredth? This is for 1": lambda *a: first(lambda n: kl(n, *a) / 100),
        },
        "with ᾱ = (1-β)^T the divergence is ½ (ᾱ‖x‖² - dᾱ - d log(1-ᾱ))",
        absolute=0.1,
    )


@checks("hvae-6")
def where_to_spend(answer: Mapping[str, float]) -> None:
    """A dictionary of three numbers: {"1": ..., "2": ..., "3": ...}, minus the bound of test digits in nats an image,
    of ladders with one, two and three levels.

    A result of training has no right value, only a range: better than independent pixels, which are fitted for this,
    and worse than any model of binarised digits yet.
    """
    plausible(answer, ("1", "2", "3"))
