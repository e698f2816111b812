"""Memorisation against loops, SciPy, and what exchangeable points must give."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from companion.evaluation import Features, distances, memorisation


def draws(n, dim, seed=0, dtype=torch.float64):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive_nearest(x, others):
    found = [min((math.dist(point, other), i) for i, other in enumerate(others.tolist())) for point in x.tolist()]
    return [i for _, i in found], np.array([distance for distance, _ in found])


def scipy_z(first, second):
    """SciPy gives the p-value of the same standard normal number; the smaller tail has its digits."""
    found = {
        side: scipy.stats.mannwhitneyu(
            first, second, method="asymptotic", use_continuity=False, alternative=side
        ).pvalue
        for side in ("less", "greater")
    }
    return scipy.stats.norm.ppf(found["less"]) if found["less"] < 0.5 else scipy.stats.norm.isf(found["greater"])


@pytest.mark.parametrize("grid", [False, True])
def test_agrees_with_loops_and_scipy(grid, monkeypatch):
    """On a grid there are many ties, between distances and between neighbours."""
    for seed in range(4):
        samples, train, test = (draws(n, 2, 10 * seed + n) for n in (30, 50, 20))
        if grid:
            samples, train, test = ((2 * x).round() for x in (samples, train, test))
        found = memorisation(samples, train, test)
        nearest, distance = naive_nearest(samples, train)
        to_test, of_test = naive_nearest(samples, test)[1], naive_nearest(test, train)[1]
        if not grid:
            assert found.nearest.tolist() == nearest
        np.testing.assert_allclose(found.distance, distance, rtol=1e-14)
        assert found.distance.dtype == torch.float64
        assert found.nearer == np.mean((distance < to_test) + (distance == to_test) / 2)
        assert found.copies == np.mean(distance == 0) and (found.copies > 0) == grid
        assert found.z == pytest.approx(scipy_z(distance, of_test), rel=1e-9, abs=1e-9)
        assert found.expected_nearer == 50 / 70
        monkeypatch.setattr(distances, "_CHUNK", 50 * 7)
        assert memorisation(samples, train, test).z == found.z


def test_a_model_that_never_saw_the_data_is_as_expected_whatever_it_draws():
    """Over repeats, within five standard errors: given a sample, training and held-out examples are exchangeable."""
    for scale, sizes in ((1.0, (20, 30)), (3.0, (30, 30)), (0.3, (40, 10))):
        found = [
            memorisation(scale * draws(5, 3, seed), draws(sizes[0], 3, 5000 + seed), draws(sizes[1], 3, 9000 + seed))
            for seed in range(500)
        ]
        nearer = np.array([each.nearer for each in found])
        assert found[0].expected_nearer == sizes[0] / sum(sizes)
        assert abs(nearer.mean() - found[0].expected_nearer) < 5 * nearer.std() / 500**0.5


def test_z_is_small_for_held_out_examples_far_below_zero_for_near_copies_and_far_above_for_bad_samples():
    """Standard normal in the first case, when each training set is new: mean and spread over repeats."""
    train, test = draws(400, 4), draws(300, 4, seed=1)
    repeats = 200
    z = [
        memorisation(draws(40, 4, 3 * i), draws(2000, 4, 3 * i + 1), draws(40, 4, 3 * i + 2)).z for i in range(repeats)
    ]
    assert abs(np.mean(z)) < 5 / repeats**0.5 and abs(np.std(z) - 1) < 5 / (2 * repeats) ** 0.5
    near = memorisation(train[:200] + 0.01 * draws(200, 4, 2), train, test)
    assert near.z < -15 and near.copies == 0 and near.nearer > 0.95
    # A model far off copies nothing; its share says nothing of its quality.
    far = memorisation(5 * draws(200, 4, seed=2), train, test)
    assert far.z > 10 and far.nearer < 0.7


def test_copies_are_exact_wherever_they_lie_and_their_indices_lead_to_the_pictures():
    for shift, scale in ((0.0, 1.0), (1e6, 1.0), (0.5, 1e-3)):
        train, test = shift + scale * draws(300, 784, dtype=torch.float32), shift + scale * draws(100, 784, 1)
        which = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:100]
        found = memorisation(torch.cat([train[which], test[:100].float()]), train, test.float())
        assert torch.equal(found.nearest[:100], which)
        assert (found.distance[:100] == 0).all() and (found.distance[100:] > 0).all()
        assert found.copies == 0.5
        # The other half are copies of held-out examples: nearer to those.
        assert found.nearer == 0.5
    one_off = train[:50].clone()
    one_off[:, 3] = torch.nextafter(one_off[:, 3], torch.tensor(torch.inf))
    assert memorisation(one_off, train, test.float()).copies == 0


def test_it_prints_itself_with_its_conditions():
    samples, train, test = (
        Features(draws(n, 2, n), "pixels", of) for n, of in ((30, "samples"), (60, "training"), (20, "the test split"))
    )
    found = memorisation(samples, train, test)
    assert str(found) == (
        f"{100 * found.nearer:.1f} % nearer to training than to held-out examples (75.0 % expected without training),\n"
        f"0.0 % copies, data-copying z = {found.z:.2f}\n"
        "(30 of samples against 60 of training; pixels; held out: 20 of the test split)"
    )


@pytest.mark.parametrize(
    ("samples", "train", "test", "words"),
    [
        (draws(5, 2), draws(5, 3), draws(5, 2), "samples and train must have the same dimension, got 2 and 3"),
        (draws(5, 2), draws(5, 2), draws(5, 3), "test and train must have the same dimension, got 3 and 2"),
        (draws(5, 2), draws(5, 2) * torch.nan, draws(5, 2), "train: values must be finite"),
        (draws(5, 2), draws(5, 2), draws(1, 2), "test: values must hold two rows"),
        (draws(5, 2), draws(5, 2), Features(draws(5, 2), "net"), "test and train must be features of one net"),
        (torch.zeros(5, 2), torch.zeros(5, 2), torch.zeros(4, 2), "must have different distances to train"),
    ],
)
def test_bad_input(samples, train, test, words):
    with pytest.raises(ValueError, match=words):
        memorisation(samples, train, test)
