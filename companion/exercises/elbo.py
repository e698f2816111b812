"""Answers of the chapter "The evidence lower bound"."""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from jaxtyping import Float
from scipy import optimize
from scipy.stats import norm

from companion.exercises.checking import NotYet, Unreadable, array, call, checks, expect, function, number

# p(x, z) of the chapter's table, rows are x, and its other distribution over z.
JOINT, Q = np.array([[0.10, 0.25, 0.05], [0.30, 0.10, 0.20]]), np.array([0.5, 0.3, 0.2])


def random_joints() -> list[np.ndarray]:
    """p(x, z) at one x, for three tables: (5,), with an arbitrary sum below one."""
    rng = np.random.default_rng(0)
    return [rng.dirichlet(np.ones(10))[:5] for _ in range(3)]


@checks("elbo-1")
def two_samples(answer: float) -> None:
    """A number, in nats: E[log ½(W₁ + W₂)] for x = 0, with the table's q = (0.5, 0.3, 0.2).

    All nine cases are summed. Absolute tolerance 5e-4: four digits are enough, and the single sample's bound is 0.09
    away.
    """
    W = JOINT[0] / Q
    nine = list(product(range(3), repeat=2))

    def mean(value):
        return sum(Q[i] * Q[j] * value(i, j) for i, j in nine)

    right = mean(lambda i, j: np.log((W[i] + W[j]) / 2))
    expect(
        {"": number(answer)},
        {"": right},
        {
            "this is the bound with a single sample": {"": mean(lambda i, j: np.log(W[i]))},
            "this is log p(x): the log has to stay inside of the average over pairs": {"": np.log(Q @ W)},
            "log 2 too much: the half is missing": {"": right + np.log(2)},
            "all nine pairs count, also those with z₁ = z₂": {
                "": sum(Q[i] * Q[j] * np.log((W[i] + W[j]) / 2) for i, j in nine if i != j)
            },
            "weigh the pairs by q(z₁) q(z₂): they are not equally probable": {
                "": np.mean([np.log((W[i] + W[j]) / 2) for i, j in nine])
            },
            "these are bits; the book counts in nats": {"": right / np.log(2)},
        },
        "sum q(z₁) q(z₂) log ½(W₁ + W₂) over nine pairs; it lies between the bound and log p(x)",
        absolute=5e-4,
    )


@checks("elbo-2")
def bound(answer: Callable[..., float]) -> None:
    """A function of (q, prior, likelihood), three arrays over z, that returns the bound in nats.

    Exact up to rounding on three random tables, against log p(x) - KL(q‖p(z|x)): the identity that uses neither term.
    """

    def right(q: np.ndarray, prior: np.ndarray, likelihood: np.ndarray) -> float:
        evidence = np.sum(prior * likelihood)
        return np.log(evidence) - q @ np.log(q * evidence / (prior * likelihood))

    def kl(a, b):
        return a @ np.log(a / b)

    rng = np.random.default_rng(0)
    instances = [(*rng.dirichlet(np.ones(4), size=2), rng.uniform(0.1, 0.9, size=4)) for _ in range(3)]
    function(
        answer,
        right,
        instances,
        {
            "this is the reported number: the divergence to the prior is a cost, and is subtracted": (
                lambda q, prior, likelihood: q @ np.log(likelihood) + kl(q, prior)
            ),
            "this is the divergence the other way round, KL(p(z)‖q)": (
                lambda q, prior, likelihood: q @ np.log(likelihood) - kl(prior, q)
            ),
            "this is minus the bound, a loss": lambda q, prior, likelihood: kl(q, prior) - q @ np.log(likelihood),
            "average log p(x|z), not p(x|z) before the log: this can lie above the evidence": (
                lambda q, prior, likelihood: np.log(q @ likelihood) - kl(q, prior)
            ),
            "this is the reconstruction alone": lambda q, prior, likelihood: q @ np.log(likelihood),
            "the reconstruction is averaged under q, not under the prior": (
                lambda q, prior, likelihood: prior @ np.log(likelihood) - kl(q, prior)
            ),
        },
        "reconstruction minus KL(q‖p(z)), both averaged under q",
    )


@checks("elbo-3")
def without_entropy(answer: Callable[..., np.ndarray]) -> None:
    """A function of the joint p(x, z) at one x, an array over z, that returns the array q(z) that maximises E_q[log
    p(x, z)].

    A linear programme over all q finds the best on three random tables. Exact up to rounding.
    """

    def right(joint: Float[np.ndarray, " z"]) -> np.ndarray:
        return optimize.linprog(-np.log(joint), A_eq=np.ones((1, len(joint))), b_eq=[1.0]).x

    function(
        answer,
        right,
        [(joint,) for joint in random_joints()],
        {
            "this is the posterior, the best q with the entropy": lambda joint: joint / joint.sum(),
            "this is the index of the best z; q is an array of probabilities": lambda joint: joint.argmax(),
            "this is the posterior in proportion to log p(x, z): the sum is linear in q, so its best q is a corner": (
                lambda joint: np.log(joint) / np.log(joint).sum()
            ),
            "this is the uniform q, which maximises the entropy alone": lambda joint: np.full(
                len(joint), 1 / len(joint)
            ),
        },
        "the sum Σ q(z) log p(x, z) is linear in q: where on the simplex does it have its maximum?",
    )


@checks("elbo-4")
def rotate(answer: Callable[..., np.ndarray]) -> None:
    """A function of W, a (d_x, d_z) array, that returns a (d_z, d_z) matrix R for which W R has orthogonal columns
    and the model with W R has the same p(x).

    Three properties on three random W, each up to 1e-8: W R (W R)ᵀ = W Wᵀ, a diagonal (W R)ᵀ W R, and R Rᵀ = I.
    """
    rng = np.random.default_rng(0)
    for _ in range(3):
        W = rng.normal(size=(4, 3))
        R = array(call(answer, W), "what your function returns")
        if R.shape != (3, 3):
            raise Unreadable(f"the matrix has shape {R.shape} for W of shape (4, 3)")
        turned = W @ R

        def off(m):
            return np.abs(m - np.diag(np.diag(m))).max()

        if np.abs(R @ R.T - np.eye(3)).max() > 1e-8:
            raise NotYet(
                "this R whitens: W R has columns of length one, and p(x) is another"
                if np.abs(turned.T @ turned - np.eye(3)).max() < 1e-8
                else "R is no rotation: R Rᵀ is not I, and N(0, I) does not stay what it is"
            )
        if off(turned.T @ turned) > 1e-8:
            raise NotYet(
                "this is the transpose of such a matrix: Rᵀ would do"
                if off(R @ W.T @ W @ R.T) < 1e-8
                else "the columns of W R are not orthogonal: R has to diagonalise WᵀW"
            )


@checks("elbo-5")
def two_peaks(answer: Sequence[float]) -> None:
    """A pair (m, s): the means ±m and the standard deviation s of the two Gaussians of q.

    The gap of this q is found by quadrature, and has to be within 0.002 nats of the smallest of the family, the
    accuracy of the three digits that the chapter prints.
    """
    m, s = _pair(answer)
    if s <= 0:
        raise NotYet("s is a standard deviation and has to be positive; did you give its logarithm?")
    z = np.linspace(-6, 6, 12_001)
    log_joint = norm.logpdf(z) + norm.logpdf(2.0, z**2, 0.5)
    dz = z[1] - z[0]
    log_p = np.log(np.exp(log_joint).sum() * dz)

    def gap(m: float, s: float) -> float:
        log_q = np.logaddexp(norm.logpdf(z, m, s), norm.logpdf(z, -m, s)) - np.log(2)
        return log_p - float((np.exp(log_q) * (log_joint - log_q)).sum() * dz)

    best = optimize.minimize(lambda v: gap(v[0], np.exp(v[1])), [1.4, -1.5], method="Nelder-Mead")
    if gap(m, s) < best.fun + 0.002:
        return
    found = f"with m = {m:.3g}, s = {s:.3g} the gap is {gap(m, s):.3f} nats, and smaller ones exist"
    if gap(m, s**0.5) < best.fun + 0.002:
        raise NotYet("this s is the variance; its root is asked for")
    if s < 0.01:
        raise NotYet(f"{found}: Gaussians so narrow fall between the points of a grid, which then overrates the bound")
    if abs(m) < 0.1:
        raise NotYet(f"{found}: both Gaussians lie on top of each other, between the peaks; start elsewhere")
    raise NotYet(found)


def _pair(answer: Sequence[float]) -> tuple[float, float]:
    pair = array(answer, "the answer")
    if pair.shape != (2,):
        raise Unreadable(f"got an array of shape {pair.shape}")
    return float(pair[0]), float(pair[1])
