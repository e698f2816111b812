"""Answers of the chapter "Evaluation"."""

import math
from collections.abc import Callable, Iterable, Mapping, Set
from functools import cache
from itertools import combinations
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from scipy import integrate, ndimage, optimize, stats
from torch import Tensor

from companion import zoo
from companion.data import load
from companion.exercises.checking import NotYet, Unreadable, checks, expect, function, kind, number, numbers
from companion.nets.digit_classifier import DigitClassifier


@checks("eval-1")
def inception_scores(answer: Mapping[str, float]) -> None:
    """A dictionary of two numbers: {"two": the score of the two sure classes, "ten": that of the ten doubtful ones}.

    The divergences to the mean of the predictions, one for each kind of image, all listed. Absolute tolerance 0.01,
    for two decimals.
    """

    def log_score(p: Float[np.ndarray, "kinds classes"]) -> float:
        return np.mean([stats.entropy(row, p.mean(0)) for row in p])

    two, ten = (log_score(p) for p in (np.eye(10)[:2], np.full((10, 10), 0.01) + 0.9 * np.eye(10)))
    expect(
        numbers(answer, ("two", "ten")),
        {"two": np.exp(two), "ten": np.exp(ten)},
        {
            "this is the mean divergence; the score is its exponential": {"two": two, "ten": ten},
            "this is the mean divergence in bits; the score is its exponential": {"two": 1.0, "ten": ten / np.log(2)},
            "sure of each image and all classes alike gives ten; here only two classes are drawn": {"two": 10.0},
            "this is the exponential of the entropy of all classes: what is doubtful about each image is missing": {
                "ten": 10.0
            },
            "this is ten times 0.91; the other 0.09 counts, too": {"ten": 9.1},
        },
        "exp of the mean of KL(p(y|x)‖p(y)), where p(y) is the mean of the predictions",
        absolute=0.01,
    )


def shared(S: Tensor, T: Tensor) -> Tensor:
    """The trace of (ST)^½. An eigenvalue of ST is not negative but for rounding."""
    return torch.linalg.eigvals(S @ T).real.clamp(min=0).sqrt().sum()


def squared_distance(m: Tensor, S: Tensor, n: Tensor, T: Tensor) -> Tensor:
    return (m - n) @ (m - n) + torch.trace(S + T) - 2 * shared(S, T)


@checks("eval-2")
def frechet(answer: Callable[..., Tensor]) -> None:
    """A function of (m, S, n, T), the means and covariances of two Gaussians as tensors, that returns their squared
    Fréchet distance.

    The last trace is the sum of the roots of the eigenvalues of ST. Relative tolerance 1e-6, for three pairs that do
    not commute and one that is diagonal.
    """

    def root(c: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(c)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T

    def distance(m: Tensor, S: Tensor, n: Tensor, T: Tensor, both: Tensor, factor: float = 2.0) -> Tensor:
        return (m - n) @ (m - n) + torch.trace(S + T) - factor * both

    def right(
        m: Float[Tensor, " d"], S: Float[Tensor, "d d"], n: Float[Tensor, " d"], T: Float[Tensor, "d d"]
    ) -> Tensor:
        return squared_distance(m, S, n, T)

    generator = torch.Generator().manual_seed(0)
    instances = []
    for d in (2, 3, 5):
        m, n = torch.randn(2, d, generator=generator, dtype=torch.float64)
        S, T = (a @ a.T + 0.1 * torch.eye(d) for a in torch.randn(2, d, d, generator=generator, dtype=torch.float64))
        instances.append((m, S, n, T))
    instances.append((m, S.diag().diag(), n, T.diag().diag()))
    function(
        answer,
        right,
        instances,
        {
            "this is the bug of the text: the trace of the product of the roots is too small, the distance too large": (
                lambda m, S, n, T: distance(m, S, n, T, torch.trace(root(S) @ root(T)))
            ),
            "this takes the covariances for diagonal": lambda m, S, n, T: distance(
                m, S, n, T, (S.diagonal() * T.diagonal()).sqrt().sum()
            ),
            "the means are missing": lambda m, S, n, T: distance(m, S, m, T, shared(S, T)),
            "the factor 2 of the last trace is missing": lambda m, S, n, T: distance(m, S, n, T, shared(S, T), 1.0),
            "this is the distance; its square is what is reported": lambda *a: right(*a).sqrt(),
        },
        "the last trace is that of (ST)^½, the sum of the roots of the eigenvalues of ST",
    )


@checks("eval-3")
def without_bias(answer: Mapping[str, float]) -> None:
    """A dictionary of two numbers: {"first": what remains of 5.1 without its bias, "second": what remains of 4.8}.

    The bias is that of the mean, plus that of the covariance, whose eigenvalues have the Marchenko–Pastur density.
    Absolute tolerance 0.05: the formula for many samples is 0.02 off for 10,000 of them.
    """
    d, variance = 2048, 0.01

    def bias(n: int) -> float:
        # E(√λ - 1)² for λ = 1 + γ + 2√γ cos θ, whose density in θ is (2/π) sin²θ/λ.
        ratio = d / n

        def excess(angle: float) -> float:
            value = 1 + ratio + 2 * math.sqrt(ratio) * math.cos(angle)
            return 2 / math.pi * math.sin(angle) ** 2 / value * (math.sqrt(value) - 1) ** 2

        return variance * (d / n + d * integrate.quad(excess, 0, math.pi)[0])

    first, second = bias(10_000), bias(50_000)
    expect(
        numbers(answer, ("first", "second")),
        {"first": 5.1 - first, "second": 4.8 - second},
        {
            "this is the bias itself; take it off": {"first": first, "second": second},
            "the bias makes a distance too large: take it off": {"first": 5.1 + first, "second": 4.8 + second},
            "this is what was reported": {"first": 5.1, "second": 4.8},
            "this has the bias of the mean alone; the covariance has a larger one": {
                "first": 5.1 - variance * d / 10_000,
                "second": 4.8 - variance * d / 50_000,
            },
            "the two numbers of samples are exchanged": {"first": 5.1 - second, "second": 4.8 - first},
        },
        "the bias falls with one over the number of samples, and grows with the square of the number of features",
        absolute=0.05,
    )


@checks("eval-4")
def coverage(answer: Callable[..., float]) -> None:
    """A function of (n, m, k) that returns the expected coverage of n points of the data by m samples of the same
    distribution, with the k-th neighbour.

    The distance to the k-th neighbour is put through its own distribution function, which makes it the k-th smallest
    of n - 1 uniform numbers; that is integrated. Relative tolerance 1e-6.
    """

    def right(n: int, m: int, k: int) -> float:
        missed = integrate.quad(lambda u: stats.beta.pdf(u, k, n - k) * (1 - u) ** m, 0, 1, epsabs=1e-12)[0]
        return 1 - missed

    function(
        answer,
        right,
        [(12, 12, 5), (30, 5, 3), (8, 20, 1), (50, 30, 5)],
        {
            "this is the share that is missed": lambda *a: 1 - right(*a),
            "a point is not a neighbour of its own: there are n - 1 others": lambda n, m, k: right(n + 1, m, k),
            "this is for one neighbour less": lambda n, m, k: right(n, m, k - 1) if k > 1 else 0.0,
            "this is for many points, where each neighbour is a sample with probability m/(m + n)": (
                lambda n, m, k: 1 - (n / (m + n)) ** k
            ),
            "the two numbers are exchanged": lambda n, m, k: right(m, n, k) if m > k else 0.0,
        },
        "a point is missed if its k nearest among n - 1 others and m samples are all from the data",
    )


@checks("eval-5")
def share_of_noise(answer: float) -> None:
    """A number: the largest share of noise, between 0 and 1.

    Found by bisection of what a mixture loses, log 1/ε with ε the share of the good model. Relative tolerance 0.01,
    for two decimals.
    """
    right = optimize.brentq(lambda share: -math.log1p(-share) - 0.5, 0, 0.99)
    expect(
        {"": number(answer)},
        {"": right},
        {
            "this is the share of the good model": {"": 1 - right},
            "this counts in bits; the book counts in nats": {"": 1 - 2**-0.5},
            "give the share, not its percentage": {"": 100 * right},
            "this is a linear approximation; the logarithm is not linear any more": {"": 0.5},
        },
        "log(ε p + …) is at least log ε + log p, with ε the share of the good model",
        relative=0.01,
    )


@checks("eval-6")
def telling_apart(answer: Mapping[str, float]) -> None:
    """A dictionary of two numbers: {"accuracy": of the best classifier, "points": how many held-out points}.

    The accuracy is half of the integral of the larger density. Relative tolerance 1e-3 for it, and 2 % for the
    points, whose standard error may be taken at one half or at the accuracy.
    """
    x, step = np.linspace(-10, 10, 20_001, retstep=True)
    p, q = stats.norm.pdf(x), stats.norm.pdf(x, 0.2)
    accuracy = np.maximum(p, q).sum() * step / 2
    points = (2 * 0.5 / (accuracy - 0.5)) ** 2
    found = numbers(answer, ("accuracy", "points"))
    expect(
        {"accuracy": found["accuracy"]},
        {"accuracy": accuracy},
        {
            "the border lies half-way, at δ/2, not at δ": {"accuracy": stats.norm.cdf(0.2)},
            "this is the total variation; the accuracy is one half plus half of it": {"accuracy": 2 * accuracy - 1},
            "this is the probability that a sample is larger than a point of the data": {
                "accuracy": stats.norm.cdf(0.2 / 2**0.5)
            },
            "this is the share of mistakes": {"accuracy": 1 - accuracy},
        },
        "the best classifier says where a point came from by which density is larger: half-way between the means",
        relative=1e-3,
    )
    expect(
        {"points": found["points"]},
        {"points": points},
        {
            "this is for one standard error; two are asked for": {"points": points / 4},
            "this is the root: the standard error falls with √n": {"points": points**0.5},
            "the standard deviation of a right answer is one half, not one": {"points": 4 * points},
        },
        "two standard errors are 2 · ½/√n; when is that the distance of the accuracy to one half?",
        relative=0.02,
    )


WAYS = ("blur", "noise", "lost classes", "uneven classes", "copies")


@checks("eval-7")
def order_of_a_random_network(answer: Iterable[str]) -> None:
    """A list of the five names "blur", "noise", "lost classes", "uneven classes" and "copies", by their Fréchet
    distances from a random network for half of the amount, the smallest first.

    Twenty random networks see digits that are spoiled anew. Two ways have an order where the mean of the logarithm of
    their distances' ratio is two and a half standard deviations from zero, so that one network in a hundred disagrees;
    the other pairs differ from network to network, and may stand in either order.
    """
    if isinstance(answer, str | Mapping | Set) or not isinstance(answer, Iterable):
        raise Unreadable(f"got {kind(answer)} where a list was expected")
    given = [str(way) for way in answer]
    if sorted(given) != sorted(WAYS):
        raise Unreadable(f"the entries are {', '.join(map(repr, given)) or 'missing'}")
    trained, random = distances()
    if given == sorted(WAYS, key=trained.__getitem__):
        raise NotYet("this is the order of the trained classifier; a random network has another")
    for first, second in combinations(given, 2):
        log_ratio = np.log(random[first] / random[second])
        if log_ratio.mean() > 2.5 * log_ratio.std():
            raise NotYet(
                f"{first!r} comes before {second!r}, and its distance from a random network is "
                f"{np.exp(log_ratio.mean()):.1f} times as large on average; is the smallest first, and the amount 0.5?"
            )


@cache
def distances() -> tuple[dict[str, float], dict[str, Float[np.ndarray, " networks"]]]:
    """The Fréchet distance of each way from the trained classifier, and from twenty random networks."""
    test, spoiled = load("mnist6k", "test").intensities(), spoiled_digits()

    @torch.no_grad()
    def seen_by(network: DigitClassifier) -> dict[str, float]:
        def moments(x: Tensor) -> tuple[Tensor, Tensor]:
            features = network.eval().features(x).double()
            return features.mean(0), features.T.cov()

        real = moments(test)
        return {way: squared_distance(*moments(x), *real).item() for way, x in spoiled.items()}

    # Every network starts with random weights, and the reader's generator is left alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random = [seen_by(DigitClassifier()) for _ in range(20)]
        trained = seen_by(cast(DigitClassifier, zoo.pretrained("digit_classifier")))
    return trained, {way: np.array([one[way] for one in random]) for way in WAYS}


def spoiled_digits() -> dict[str, Float[Tensor, "300 1 28 28"]]:
    """300 fresh digits, spoiled by half of the chapter's amounts."""
    train, validation = (load("mnist6k", split) for split in ("train", "validation"))
    pixels = torch.cat([validation.intensities(), train.intensities()[2000:]])
    labels = torch.cat([validation.labels, train.labels[2000:]])

    def of_classes(shares: Float[np.ndarray, " 10"]) -> Tensor:
        counts = np.diff((300 * np.cumsum([0.0, *shares]) / shares.sum()).round().astype(int))
        return torch.cat([pixels[labels == k][:n] for k, n in enumerate(counts)])

    fresh, noise = of_classes(np.ones(10)), np.random.default_rng(0).normal(size=(300, 1, 28, 28))
    return {
        "blur": torch.from_numpy(ndimage.gaussian_filter(fresh.numpy(), (0, 0, 1, 1), mode="constant")),
        "noise": (fresh + 0.25 * torch.from_numpy(noise).float()).clamp(0, 1),
        "lost classes": of_classes(np.arange(10) >= 4.5),
        "uneven classes": of_classes(np.exp(-0.5 * np.arange(10))),
        "copies": torch.cat([train.intensities()[:150], fresh[::2]]),
    }
