"""The kernel density estimate against scikit-learn, quadrature and brute force."""

import time

import numpy as np
import pytest
import scipy.stats
import sklearn.neighbors
import torch

from companion.evaluation import KernelDensity, choose_bandwidth, distances, leave_one_out

F64 = torch.float64


def draws(n, dim, seed=0, dtype=F64):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("n", "dim", "bandwidth"), [(2, 1, 0.3), (50, 2, 0.1), (300, 5, 2.0), (40, 784, 0.2)])
def test_agrees_with_scikit_learn(n, dim, bandwidth):
    samples, x = draws(n, dim), 2 * draws(70, dim, seed=1)
    theirs = sklearn.neighbors.KernelDensity(bandwidth=bandwidth, rtol=1e-13).fit(samples).score_samples(x)
    ours = KernelDensity(samples, bandwidth).log_prob(x)
    assert ours.dtype == F64
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_integrates_to_one_in_the_plane():
    node, weight = np.polynomial.legendre.leggauss(160)
    axis, weights = 8 * torch.from_numpy(node), 8 * torch.from_numpy(weight)
    estimate = KernelDensity(draws(30, 2), 0.4)
    density = estimate.log_prob(torch.cartesian_prod(axis, axis)).exp().reshape(160, 160)
    assert (weights @ density @ weights).item() == pytest.approx(1, abs=1e-10)


def test_far_away_it_is_finite():
    """Where every kernel underflows: the nearest sample decides."""
    estimate = KernelDensity(torch.tensor([[0.0], [-1000.0]]), 0.1)
    expected = scipy.stats.norm(0, 0.1).logpdf(50) - np.log(2)
    assert estimate.log_prob(torch.tensor([[50.0]], dtype=F64)).item() == pytest.approx(expected, rel=1e-12)


def test_far_from_the_origin_it_is_as_exact():
    """Squared norms of 10¹² would leave no digits of the distances' squares, which are about 10⁻²."""
    samples, x = 0.1 * draws(20, 3), 0.1 * draws(5, 3, seed=1)
    # A power of two: the shift itself does not round, to the last digit of the numbers below.
    samples, x = ((y * 2**24).round() / 2**24 for y in (samples, x))
    moved = KernelDensity(samples + 2**20, 0.1).log_prob(x + 2**20)
    torch.testing.assert_close(moved, KernelDensity(samples, 0.1).log_prob(x), rtol=1e-9, atol=1e-9)


def test_single_precision_is_computed_in_double():
    samples, x = draws(50, 784, dtype=torch.float32), draws(9, 784, 1, torch.float32)
    single = KernelDensity(samples, 0.1).log_prob(x)
    double = KernelDensity(samples.double(), 0.1).log_prob(x.double())
    assert single.dtype == torch.float32
    # Nothing but the result is rounded, to 24 bits.
    torch.testing.assert_close(single, double.float(), rtol=0, atol=0)


def test_chunks_change_nothing(monkeypatch):
    samples, x = draws(31, 3), draws(17, 3, seed=1)
    whole, left_out = KernelDensity(samples, 0.5).log_prob(x), leave_one_out(samples, 0.5)
    for chunk in (1, 31 * 4, 31 * 5):
        monkeypatch.setattr(distances, "_CHUNK", chunk)
        torch.testing.assert_close(KernelDensity(samples, 0.5).log_prob(x), whole, rtol=1e-12, atol=0)
        assert leave_one_out(samples, 0.5) == pytest.approx(left_out, rel=1e-12)
    assert KernelDensity(samples, 0.5).log_prob(x[:0]).shape == (0,)


def test_score_is_that_of_the_mixture():
    """Gradients flow to x: Σᵢ wᵢ (xᵢ - x) / h², with the kernels' shares as weights."""
    samples, x = draws(6, 2), draws(4, 2, seed=1).requires_grad_()
    (score,) = torch.autograd.grad(KernelDensity(samples, 0.7).log_prob(x).sum(), x)
    difference = samples - x.detach()[:, None]
    share = (-difference.square().sum(-1) / (2 * 0.7**2)).softmax(1)
    torch.testing.assert_close(score, (share[..., None] * difference).sum(1) / 0.7**2)


def test_samples_have_the_moments_of_the_estimate():
    centres = torch.tensor([[0.0, 1.0], [4.0, -1.0], [2.0, 2.0]], dtype=F64)
    n, bandwidth = 100_000, 0.5
    x = KernelDensity(centres, bandwidth).sample(n, torch.Generator().manual_seed(0))
    assert x.shape == (n, 2) and x.dtype == F64
    for value, expected in [
        (x, centres.mean(0)),
        (x.square(), centres.square().mean(0) + bandwidth**2),
        (x[:, :1] * x[:, 1:], centres.prod(1).mean()),
    ]:
        assert ((value.mean(0) - expected).abs() < 5 * value.std(0) / n**0.5).all()
    again = KernelDensity(centres, bandwidth).sample(n, torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


@pytest.mark.parametrize("bandwidth", [0.05, 0.4, 3.0])
def test_leave_one_out_leaves_one_out(bandwidth):
    samples = draws(25, 3)
    values = [
        sklearn.neighbors.KernelDensity(bandwidth=bandwidth, rtol=1e-13)
        .fit(torch.cat([samples[:i], samples[i + 1 :]]))
        .score_samples(samples[i : i + 1])[0]
        for i in range(25)
    ]
    assert leave_one_out(samples, bandwidth) == pytest.approx(np.mean(values), rel=1e-10)


def test_choice_is_the_best_by_brute_force():
    candidates = [1.6, 0.1, 0.4, 0.2, 0.8]
    for seed in range(5):
        samples = draws(40, 2, seed)
        best = max(candidates, key=lambda h: leave_one_out(samples, h))
        assert choose_bandwidth(samples, candidates) == best


def test_best_bandwidth_at_the_edge_is_refused():
    samples = draws(40, 2)
    assert choose_bandwidth(samples, [0.3, 0.6, 1.2]) == 0.6
    with pytest.raises(
        ValueError, match=r"the best of the candidates, 0\.8, is the smallest one; add smaller ones\. .* 0"
    ):
        choose_bandwidth(samples, [3.2, 1.6, 0.8])
    with pytest.raises(
        ValueError, match=r"candidates, 0\.2, is the largest one; add larger ones\. .*0\.05: -.*, 0\.1: -"
    ):
        choose_bandwidth(samples, [0.05, 0.1, 0.2])
    with pytest.raises(ValueError, match=r"at least three different bandwidths, got \[0\.1, 0\.2, 0\.2\]"):
        choose_bandwidth(samples, [0.1, 0.2, 0.2])


def test_gradients_of_a_generator_are_not_kept():
    samples = draws(10, 2).requires_grad_()
    assert not KernelDensity(samples, 0.1).log_prob(draws(3, 2)).requires_grad
    assert isinstance(leave_one_out(samples, 0.4), float)


def test_images_take_seconds():
    """784 dimensions, 10,000 samples: 16 billion operations for 1,000 test images."""
    samples, x = draws(10_000, 784, dtype=torch.float32), draws(1000, 784, 1, torch.float32)
    start = time.perf_counter()
    assert torch.isfinite(KernelDensity(samples, 0.2).log_prob(x)).all()
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("bandwidth", [0, -0.1, float("nan"), float("inf"), True, "0.1", None])
def test_bandwidth_is_positive(bandwidth):
    message = f"bandwidth must be above 0 and finite, got {bandwidth!r}"
    for call in (KernelDensity, leave_one_out, lambda s, h: choose_bandwidth(s, [0.1, h, 0.4])):
        with pytest.raises(ValueError, match=message):
            call(draws(5, 2), bandwidth)


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (draws(1, 2), ValueError, "samples must be at least two, got 1"),
        (draws(5, 2)[:0], ValueError, "samples must be at least two, got 0"),
        (torch.zeros(5), ValueError, r"samples must have shape \(n, dim\), got \(5,\)"),
        (torch.zeros(5, 1, 28, 28), ValueError, r"samples must have shape \(n, dim\), got \(5, 1, 28, 28\); flatten"),
        (torch.zeros(5, 0), ValueError, r"samples must have shape \(n, dim\), got \(5, 0\)"),
        (torch.tensor([[1.0], [torch.nan]]), ValueError, "samples must be finite, got 1 NaN"),
        (torch.ones(5, 2, dtype=torch.int64), TypeError, "samples must have a floating dtype"),
        ([[1.0], [2.0]], TypeError, r"samples must be a torch\.Tensor, got list"),
    ],
)
def test_samples_are_points(samples, error, message):
    for call in (KernelDensity, leave_one_out, lambda s, h: choose_bandwidth(s, [h, 0.2, 0.4])):
        with pytest.raises(error, match=message):
            call(samples, 0.1)


def test_points_of_another_dimension_are_refused():
    estimate = KernelDensity(draws(5, 3), 0.1)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 3\), got \(4, 2\)"):
        estimate.log_prob(draws(4, 2))
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN"):
        estimate.log_prob(torch.tensor([[0.0, 1.0, torch.nan]]))
