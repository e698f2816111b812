"""Precision, recall, density and coverage against loops, scikit-learn, other packages and exact expectations."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from companion.evaluation import (
    Features,
    density_coverage,
    distances,
    expected_coverage,
    precision_recall,
)


def draws(n, dim, seed=0, dtype=torch.float64):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive(x, centres, k):
    """(m, n): is x[j] in the ball of centres[i]? By sorting plain differences."""
    inside = np.zeros((len(x), len(centres)), bool)
    for i, centre in enumerate(centres):
        others = sorted(math.dist(centre, other) for l, other in enumerate(centres) if l != i)
        for j, point in enumerate(x):
            inside[j, i] = math.dist(point, centre) <= others[k - 1]
    return inside


def all_four(x, reference, k):
    first, second = precision_recall(x, reference, k), density_coverage(x, reference, k)
    return [first.precision, first.recall, second.density, second.coverage]


@pytest.mark.parametrize(("n", "m", "dim", "k"), [(30, 20, 2, 1), (20, 30, 1, 3), (25, 25, 5, 5), (7, 9, 3, 6)])
def test_agrees_with_loops_over_all_points(n, m, dim, k):
    for seed in range(3):
        reference, x = draws(n, dim, seed), 0.3 + 1.2 * draws(m, dim, seed + 100)
        data, samples = naive(x.tolist(), reference.tolist(), k), naive(reference.tolist(), x.tolist(), k)
        expected = [data.any(1).mean(), samples.any(1).mean(), data.sum() / (k * m), data.any(0).mean()]
        assert all_four(x, reference, k) == pytest.approx(expected, abs=1e-15)


def test_agrees_with_neighbours_of_scikit_learn_in_64_dimensions():
    """Single precision in, double precision inside."""
    reference, x, k = draws(400, 64, dtype=torch.float32), 0.3 + draws(300, 64, 1, torch.float32), 4

    def inside(points, centres):
        points, centres = points.double().numpy(), centres.double().numpy()
        radius = NearestNeighbors(n_neighbors=k).fit(centres).kneighbors()[0][:, -1]
        return np.linalg.norm(points[:, None] - centres, axis=2) <= radius

    data, samples = inside(x, reference), inside(reference, x)
    expected = [data.any(1).mean(), samples.any(1).mean(), data.sum() / (k * 300), data.any(0).mean()]
    assert 0.1 < expected[0] < 0.99 and 0.1 < expected[3] < 0.99
    assert all_four(x, reference, k) == pytest.approx(expected, abs=1e-15)
    assert all_four(x.numpy(), Features(reference), k) == all_four(x, reference, k)


def test_agrees_with_torch_fidelity(torchvision):
    theirs = pytest.importorskip("torch_fidelity.metric_prc").calculate_precision_recall_part
    reference, x = draws(200, 3), 0.7 * draws(150, 3, 1)
    ours = precision_recall(x, reference)
    assert (ours.precision, ours.recall) == pytest.approx(theirs(x, reference), abs=1e-6)  # theirs: a float32 mean


def test_precision_is_recall_the_other_way_round_and_coverage_is_not():
    reference, x = draws(60, 2), 0.3 * draws(80, 2, seed=1)
    there, back = precision_recall(x, reference), precision_recall(reference, x)
    assert (there.precision, there.recall) == (back.recall, back.precision)
    # Narrow samples: realistic, not diverse.
    assert there.precision > 0.9 > 0.6 > there.recall
    assert density_coverage(x, reference).coverage != density_coverage(reference, x).coverage


def test_chunks_change_nothing(monkeypatch):
    reference, x = draws(31, 3), draws(23, 3, seed=1)
    whole = all_four(x, reference, 3)
    for chunk in (1, 31 * 4, 23 * 5):
        monkeypatch.setattr(distances, "_CHUNK", chunk)
        assert all_four(x, reference, 3) == whole


def test_the_data_itself_disjoint_supports_and_copies_of_one_point():
    reference = draws(50, 4)
    # Each of its balls holds its centre and k neighbours.
    assert all_four(reference, reference, 3) == pytest.approx([1, 1, 4 / 3, 1])
    assert all_four(reference + 100, reference, 3) == [0, 0, 0, 0]
    # All samples one image of the data: the samples' balls are points.
    collapsed = reference[7].expand(40, 4)
    found = precision_recall(collapsed, reference)
    assert (found.precision, found.recall) == (1, 1 / 50)
    # Density counts the balls around that image, over k, and may be above 1 or below.
    balls = naive(collapsed[:1].tolist(), reference.tolist(), 5).sum()
    found = density_coverage(collapsed, reference)
    assert (found.density, found.coverage) == (pytest.approx(balls / 5), balls / 50)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.1, 1 / 3), (0.0, 1e-9), (2.0**20, 0.5)])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_points_on_the_surface_are_inside(shift, scale, k):
    """Points of a grid have many equal distances, which two ways of computing them round differently."""
    grid = torch.cartesian_prod(*3 * [torch.arange(4.0, dtype=torch.float64)])

    def squared(x):
        return (x[:, None] - grid).square().sum(-1)  # of integers, exact

    inside = squared(grid + 1) <= squared(grid).kthvalue(k + 1).values
    first = precision_recall(shift + scale * (grid + 1), shift + scale * grid, k)
    second = density_coverage(shift + scale * (grid + 1), shift + scale * grid, k)
    assert 0 < inside.any(1).sum() < 64
    assert first.precision == inside.any(1).double().mean()
    assert second.density == pytest.approx(inside.double().sum(1).mean() / k)
    assert second.coverage == inside.any(0).double().mean()


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_copies_are_inside_balls_of_radius_zero_and_near_points_are_not(shift):
    points = shift + draws(64, 30)
    copies = points.repeat(10, 1)
    assert all_four(points, copies, 3) == pytest.approx([1, 1, 10 / 3, 1])
    assert precision_recall(points + 1e-5, copies).precision == 0


def test_density_of_one_distribution_is_one_and_coverage_has_its_exact_mean():
    """Over repeats, whatever the dimension, within five standard errors."""
    for n, m, dim, k in ((12, 9, 1, 2), (20, 35, 3, 5), (10, 10, 8, 1)):
        generator = torch.Generator().manual_seed(0)
        found = [
            density_coverage(*(torch.rand(size, dim, generator=generator) for size in (m, n)), k) for _ in range(400)
        ]
        for values, expected in (
            ([each.density for each in found], 1),
            ([each.coverage for each in found], expected_coverage(n, m, k)),
        ):
            assert abs(np.mean(values) - expected) < 5 * np.std(values) / 400**0.5
        assert found[0].expected_coverage == expected_coverage(n, m, k)


def test_expected_coverage_by_counting_all_orders():
    """Around a point of the data, the others and the samples come in any order by distance, all equally likely."""
    for n, m, k in ((4, 3, 1), (5, 4, 2), (6, 2, 5), (2, 5, 1)):
        orders = list(itertools.combinations(range(n - 1 + m), m))  # where the samples are
        covered = Fraction(sum(order[0] < rank_of_ball(order, k) for order in orders), len(orders))
        assert expected_coverage(n, m, k) == pytest.approx(float(covered), rel=1e-14)
    assert expected_coverage(10_000, 10_000, 5) == pytest.approx(1 - 2**-5, abs=1e-4)


def rank_of_ball(samples, k):
    """The place of the k-th point that is no sample."""
    data = [place for place in range(max(samples) + k + 1) if place not in samples]
    return data[k - 1]


def test_an_outlier_of_the_data_lets_nonsense_pass_as_precise_and_counts_little_for_density():
    reference, nonsense = draws(500, 2), 10 + draws(100, 2, seed=1)
    assert precision_recall(nonsense, reference).precision == 0
    with_outlier = torch.cat([reference, torch.tensor([[40.0, 40.0]], dtype=torch.float64)])
    assert precision_recall(nonsense, with_outlier).precision == 1
    found = density_coverage(nonsense, with_outlier, 5)
    assert (found.density, found.coverage) == (pytest.approx(1 / 5), 1 / 501)


def test_they_print_themselves_with_their_conditions():
    x, reference = Features(draws(30, 2), "net", "samples"), Features(draws(40, 2, 1), "net", "data")
    first, second = precision_recall(x, reference), density_coverage(x, reference)
    assert str(first) == (
        f"precision {first.precision:.3f}, recall {first.recall:.3f}\n"
        "(k = 3, 2 dimensions; 30 of samples against 40 of data; net)"
    )
    assert str(second) == (
        f"density {second.density:.3f}, coverage {second.coverage:.3f}\n"
        f"(1 and {expected_coverage(40, 30):.3f} expected of fresh data; "
        "k = 5, 2 dimensions; 30 of samples against 40\n of data; net)"
    )
    assert (first.k, first.dim, second.k, second.dim) == (3, 2, 5, 2)
    assert first.precision != first.recall and second.density != second.coverage


@pytest.mark.parametrize("call", [precision_recall, density_coverage])
@pytest.mark.parametrize(
    ("x", "reference", "k", "words"),
    [
        (draws(9, 2), draws(5, 2), 5, "k must be below the number of points, 5, got 5"),
        (draws(9, 2), draws(9, 2), 0, "k must be a positive integer"),
        (draws(9, 2), draws(9, 2), 2.0, "k must be a positive integer"),
        (draws(9, 2), draws(9, 3), 3, "same dimension"),
        (draws(9, 2), draws(9, 2) * torch.nan, 3, "reference: values must be finite"),
        (draws(9, 2)[0], draws(9, 2), 3, "x: values must have shape"),
        (Features(draws(9, 2), "one"), Features(draws(9, 2), "other"), 3, "features of one net"),
    ],
)
def test_bad_input(call, x, reference, k, words):
    with pytest.raises(ValueError, match=words):
        call(x, reference, k)


def test_only_sets_with_balls_need_more_than_k_points():
    with pytest.raises(ValueError, match="number of points, 4, got 4"):
        precision_recall(draws(4, 2), draws(9, 2), 4)
    assert density_coverage(draws(4, 2), draws(9, 2), 4).k == 4
    with pytest.raises(ValueError, match="k must be below n, got k = 5, n = 5"):
        expected_coverage(5, 5, 5)
