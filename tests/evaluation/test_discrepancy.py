"""Discrepancies of kernels against loops, closed forms, enumeration and other packages."""

import itertools
import math
import time

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics.pairwise import rbf_kernel

from companion.evaluation import (
    Features,
    GaussianKernel,
    cubic_kernel,
    kernel_inception_distance,
    median_heuristic,
    mmd,
)

F64 = torch.float64


def draws(n, dim, seed=0, dtype=F64):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive(x, y, kernel):
    """The three means of the unbiased estimator, pair by pair."""

    def mean(pairs):
        return np.mean([kernel(a, b) for a, b in pairs])

    within = [mean(itertools.permutations(sample.tolist(), 2)) for sample in (x, y)]
    return sum(within) - 2 * mean(itertools.product(x.tolist(), y.tolist()))


def gaussian(bandwidth):
    return lambda a, b: math.exp(-(math.dist(a, b) ** 2) / (2 * bandwidth**2))


def population(difference, first, second, bandwidth):
    """MMD² of N(μ, first² I) and N(μ + difference, second² I): a Gaussian kernel's mean is a Gaussian integral."""

    def mean(variance, distance):
        wide = bandwidth**2 + variance
        return (bandwidth**2 / wide) ** (len(difference) / 2) * math.exp(-distance / (2 * wide))

    squared = sum(value**2 for value in difference)
    return mean(2 * first**2, 0) + mean(2 * second**2, 0) - 2 * mean(first**2 + second**2, squared)


@pytest.mark.parametrize(("n", "m", "dim"), [(2, 2, 1), (12, 7, 3), (7, 12, 3)])
def test_agrees_with_loops_over_all_pairs(n, m, dim):
    x, y = draws(n, dim), 0.5 + draws(m, dim, seed=1)
    for kernel, plain in (
        (GaussianKernel(0.7), gaussian(0.7)),
        (cubic_kernel, lambda a, b: (np.dot(a, b) / dim + 1) ** 3),
        (None, gaussian(np.median([math.dist(a, b) for a, b in itertools.combinations([*x, *y], 2)]))),
    ):
        if kernel is None and (n + m) * (n + m - 1) // 2 % 2 == 0:  # then the lower median is taken
            continue
        assert mmd(x, y, kernel, permutations=1).squared == pytest.approx(naive(x, y, plain), rel=1e-9, abs=1e-14)
    np.testing.assert_allclose(GaussianKernel(0.7)(x, y), rbf_kernel(x, y, gamma=1 / (2 * 0.7**2)), rtol=1e-12)


def test_median_heuristic():
    """(6 choose 2) = 15 distances, of both samples together; in single precision it is computed in double."""
    x, y = draws(2, 5), 3 + draws(4, 5, seed=1)
    distances = sorted(math.dist(a, b) for a, b in itertools.combinations([*x.tolist(), *y.tolist()], 2))
    assert median_heuristic(x, y) == pytest.approx(distances[7], rel=1e-12)
    assert median_heuristic(x + 1e6, y + 1e6) == pytest.approx(distances[7], rel=1e-8)
    assert f"h = {distances[7]:.4g}" in mmd(x, y).kernel
    with pytest.raises(ValueError, match="x and reference must differ"):
        median_heuristic(x[:1].repeat(9, 1), torch.cat([x[:1], y[:1] * 1e-3]))


@pytest.mark.parametrize(("first", "second", "difference"), [(1.0, 1.0, (0.5, 0.0)), (1.0, 2.0, (0.0, 1.0, 0.3))])
def test_mean_is_the_closed_form_for_gaussians(first, second, difference):
    """With few points, where an estimate with its diagonal would be far too large."""
    repeats, kernel = 1500, GaussianKernel(1.3)
    exact, dim = population(difference, first, second, 1.3), len(difference)
    shift = torch.tensor(difference, dtype=F64)
    found = np.array(
        [
            mmd(first * draws(6, dim, seed), shift + second * draws(4, dim, seed + repeats), kernel, 1).squared
            for seed in range(repeats)
        ]
    )
    assert abs(found.mean() - exact) < 5 * found.std() / repeats**0.5
    # Many times the error: a bias of one term's diagonal, over n, would be seen.
    assert found.std() / repeats**0.5 < 1 / 6 / 20


def test_unbiased_by_enumerating_all_samples():
    """Of three values with unequal probabilities each, all samples of two and three points."""
    values, kernel = torch.tensor([[0.0], [0.7], [2.0]], dtype=F64), GaussianKernel(0.8)
    p, q = torch.tensor([0.5, 0.3, 0.2], dtype=F64), torch.tensor([0.1, 0.2, 0.7], dtype=F64)
    exact = (p - q) @ kernel(values, values) @ (p - q)
    mean = sum(
        p[list(i)].prod() * q[list(j)].prod() * mmd(values[list(i)], values[list(j)], kernel, 1).squared
        for i in itertools.product(range(3), repeat=2)
        for j in itertools.product(range(3), repeat=3)
    )
    assert mean.item() == pytest.approx(exact.item(), rel=1e-12)


def test_p_value_by_enumerating_all_permutations():
    """Ties count: the samples exchanged, if they are of one size, have the same value, as have copies."""
    for x, y in [(draws(3, 2), 1 + draws(4, 2, 1)), (draws(4, 1), draws(4, 1, 1)), (torch.eye(4)[:3], torch.eye(4))]:
        pooled, kernel, n = torch.cat([x, y]), GaussianKernel(1.0), len(x)
        values = [
            naive(pooled[list(chosen)], pooled[[i for i in range(len(pooled)) if i not in chosen]], gaussian(1.0))
            for chosen in itertools.combinations(range(len(pooled)), n)
        ]
        exact = np.mean(np.array(values) >= values[0] - 1e-9)
        found = mmd(x, y, kernel, permutations=20_000)
        assert abs(found.p - exact) < 5 * math.sqrt(max(exact * (1 - exact), 1e-4) / 20_000) + 1 / 20_000
    assert found.permutations == 20_000


@pytest.mark.parametrize("kernel", [None, cubic_kernel])
def test_p_is_uniform_if_both_have_one_distribution(kernel):
    """On the values 1/20 … 20/20; with unequal sizes, few points and a bandwidth from the same points."""
    p = [mmd(draws(12, 3, seed), draws(8, 3, seed + 1000), kernel, 19, seed).p for seed in range(600)]
    counts = np.bincount(np.rint(20 * np.array(p)).astype(int), minlength=21)
    assert counts[0] == 0
    assert scipy.stats.chisquare(counts[1:]).pvalue > 1e-3
    # The discrete uniform law made continuous.
    jittered = np.array(p) - np.random.default_rng(0).random(600) / 20
    assert scipy.stats.kstest(jittered, "uniform").pvalue > 1e-3


def test_power_against_what_moments_do_not_show():
    """Signs and normals have the same first three moments: the cubic kernel has no power, a narrow Gaussian one has."""
    p = {
        kernel: np.mean([mmd(draws(60, 2, i).sign(), draws(60, 2, i + 100), kernel, 99, i).p for i in range(20)])
        for kernel in (GaussianKernel(0.3), cubic_kernel)
    }
    assert p[GaussianKernel(0.3)] < 0.02 and p[cubic_kernel] > 0.3
    shifted = mmd(0.7 + draws(60, 2), draws(60, 2, 1))
    assert shifted.p == 1 / 1000 and shifted.squared > 0.05


def test_single_precision_and_arrays_are_computed_in_double_and_seeds_matter():
    x, y = draws(40, 6, dtype=torch.float32), draws(30, 6, 1, torch.float32)
    found = mmd(x, y)
    assert mmd(x.double(), y.double()) == found == mmd(x.numpy(), Features(y))
    assert mmd(x, y, seed=1).squared == found.squared and len({mmd(x, y, seed=seed).p for seed in range(5)}) > 1
    with_grad = mmd(x.requires_grad_(), y)
    assert with_grad == found
    # Not of where the points lie, but for what their own rounding takes.
    assert mmd(x.double() + 1e4, y.double() + 1e4).squared == pytest.approx(found.squared, rel=1e-6)


def test_a_thousand_permutations_of_two_thousand_points_take_seconds():
    x, y = draws(1000, 784, dtype=torch.float32), draws(1000, 784, 1, torch.float32)
    start = time.process_time()  # not of the clock: others use the processor too
    mmd(x, y)
    assert time.process_time() - start < 20


def test_kid_agrees_with_torchmetrics_and_torch_fidelity(torchvision):
    theirs = pytest.importorskip("torch_fidelity.metric_kid").kid_features_to_metric
    poly_mmd = pytest.importorskip("torchmetrics.image.kid").poly_mmd
    x, y = 2 * draws(50, 64).relu(), 2.2 * draws(50, 64, 1).relu()
    ours = kernel_inception_distance(x, y, subset_size=50, subsets=1)
    assert ours.mean == pytest.approx(poly_mmd(y, x).item(), rel=1e-10) and ours.std == 0
    found = theirs(x, y, kid_subsets=1, kid_subset_size=50, kid_kernel="poly", kid_kernel_poly_degree=3,
                   kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, rng_seed=0, verbose=False)  # fmt: skip
    assert ours.mean == pytest.approx(found["kernel_inception_distance_mean"], rel=1e-10)
    assert ours.mean == pytest.approx(mmd(x, y, cubic_kernel, 1).squared, rel=1e-10)


def test_kid_has_the_mean_and_the_spread_of_all_subsets():
    """Each pair of points is as often in a subset as any other: the mean of all is the value of the whole."""
    x, y = draws(5, 3), 0.5 + draws(4, 3, seed=1)
    every = [
        mmd(x[list(i)], y[list(j)], cubic_kernel, 1).squared
        for i in itertools.combinations(range(5), 2)
        for j in itertools.combinations(range(4), 2)
    ]
    assert np.mean(every) == pytest.approx(mmd(x, y, cubic_kernel, 1).squared, rel=1e-12)
    found = kernel_inception_distance(x, y, subset_size=2, subsets=4000)
    assert abs(found.mean - np.mean(every)) < 5 * np.std(every) / 4000**0.5
    fourth = np.mean((every - np.mean(every)) ** 4)
    assert abs(found.std**2 - np.var(every)) < 5 * math.sqrt((fourth - np.var(every) ** 2) / 4000)
    # Divided by the number of subsets, not one less.
    pair = kernel_inception_distance(x, y, 2, subsets=2)
    first = kernel_inception_distance(x, y, 2, subsets=1).mean
    assert pair.std == pytest.approx(abs(first - pair.mean), rel=1e-9) and pair.std > 0
    assert kernel_inception_distance(x, y, 2, 3, seed=1) != kernel_inception_distance(x, y, 2, 3, seed=2)
    assert kernel_inception_distance(x, y, 2, 3) == kernel_inception_distance(x, y, 2, 3, seed=0)


def test_they_print_themselves_with_their_conditions():
    x, y = Features(draws(30, 2), "net", "samples"), Features(draws(40, 2, 1), "net", "data")
    found = mmd(x, y, GaussianKernel(2.0), 99, 3)
    assert str(found) == (
        f"MMD² {found.squared:.4g}, p = {found.p:.3g}\n"
        "(99 permutations, Gaussian kernel, h = 2, 2 dimensions; 30 of samples against 40 of\n data; net, seed 3)"
    )
    assert "\n(99 permutations, cubic kernel, 2 dim" in str(mmd(x, y, cubic_kernel, 99, 3))
    found = kernel_inception_distance(x, y, 20, 5, 3)
    assert str(found) == (
        f"KID {found.mean:.4g} ± {found.std:.2g}\n"
        "(5 subsets of 20, 2 dimensions; 30 of samples against 40 of data; net, seed 3)"
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: mmd(x, y, permutations=0), "permutations must be a positive integer"),
        (lambda x, y: mmd(x, y[:, :1]), "same dimension"),
        (lambda x, y: mmd(x, y * torch.inf), "reference: values must be finite"),
        (lambda x, y: mmd(x[:1], y), "x: values must hold two rows or more"),
        (lambda x, y: mmd(Features(x, "one"), Features(y, "other")), "features of one net"),
        (
            lambda x, y: mmd(x, y, lambda a, b: a),
            r"kernel must give a finite matrix of shape \(15, 15\), got \(15, 2\)",
        ),
        (lambda x, y: mmd(x, y, lambda a, b: (a @ b.T).log()), r"got \(15, 15\) with [1-9]\d* NaN"),
        (
            lambda x, y: kernel_inception_distance(x, y, 7),
            "subset_size must be from 2 to .* images, 6, got 7",
        ),
        (lambda x, y: kernel_inception_distance(x, y, 1), "subset_size must be from 2"),
        (lambda x, y: kernel_inception_distance(x, y, 4, 0), "subsets must be a positive integer"),
        (lambda x, y: kernel_inception_distance(y, y, 6, 2), "subset_size must be below 6"),
        (lambda x, y: median_heuristic(x, y[:, :1]), "same dimension"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call(draws(9, 2), draws(6, 2, seed=1))
    assert kernel_inception_distance(draws(9, 2), draws(6, 2), 6, 2).std > 0
