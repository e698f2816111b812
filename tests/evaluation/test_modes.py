"""Counting modes: on points put where the answer is known, and on samples of the mixture itself."""

import math

import pytest
import torch

from companion.data import density
from companion.evaluation import mode_coverage

CENTRES = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])


def test_points_put_by_hand():
    samples = torch.tensor(
        [
            [0.1, 0.2],
            [-1.4, 0.0],
            [1.2, 1.2],  # 1.697 away
            [10.0, 1.49],
            [10.0, 1.51],
            [5.0, 5.0],
        ]
    )
    found = mode_coverage(samples, CENTRES, 0.5)
    assert found.counts.tolist() == [2, 1, 0]
    assert (found.modes, found.high_quality, found.n, found.scale) == (2, 0.5, 6, 0.5)
    assert str(found) == "2 of 3 modes, 50.0 % high quality (6 samples, within 3 standard deviations of 0.5)"


def test_edge_belongs_to_the_mode():
    assert mode_coverage(torch.tensor([[3.0, 4.0]]), CENTRES, 5 / 3).counts.tolist() == [1, 0, 0]
    assert mode_coverage(torch.tensor([[3.0, 4.0]]), CENTRES, 1.66).counts.tolist() == [0, 0, 0]


def test_sample_between_two_modes_counts_for_the_nearest_alone():
    found = mode_coverage(torch.tensor([[4.0, 0.0], [6.0, 0.0], [7.0, 0.0]]), CENTRES, 3.0)
    assert found.counts.tolist() == [1, 2, 0] and found.high_quality == 1


def test_samples_of_the_mixture_itself():
    p = density("grid25", dtype=torch.float64)
    torch.manual_seed(0)
    n, expected = 100_000, 1 - math.exp(-9 / 2)
    found = mode_coverage(p.sample((n,)), p.component_distribution.base_dist.loc, 0.05)
    assert found.modes == 25 and found.counts.sum().item() == round(found.high_quality * n)
    assert abs(found.high_quality - expected) < 5 * (expected * (1 - expected) / n) ** 0.5
    share = expected / 25
    assert ((found.counts / n - share).abs() < 5 * (share * (1 - share) / n) ** 0.5).all()


def test_collapse_is_seen():
    p = density("grid25")
    centres = p.component_distribution.base_dist.loc
    torch.manual_seed(0)
    collapsed = centres[7] + 0.05 * torch.randn(1000, 2)
    found = mode_coverage(collapsed, centres, 0.05)
    assert found.modes == 1 and found.counts[7] == found.counts.sum() > 950


def test_far_from_the_origin_it_is_as_exact():
    """With 26 centres or more torch.cdist would take a matrix product, and lose all digits of these distances."""
    shift = 2.0**30
    centres = shift + torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0)).double()
    samples = centres + torch.tensor([0.25, 0.0])
    assert mode_coverage(samples, centres, 0.25 / 3).counts.tolist() == [1] * 36
    assert mode_coverage(samples, centres, 0.24 / 3).modes == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"samples": torch.zeros(3, 4)}, ValueError, r"samples must have shape \(batch, 2\), got \(3, 4\)"),
        ({"samples": torch.zeros(0, 2)}, ValueError, "samples must hold at least one point, got none"),
        ({"samples": torch.full((1, 2), torch.nan)}, ValueError, "samples must be finite, got 2 NaN"),
        ({"samples": torch.ones(1, 2, dtype=torch.int64)}, TypeError, "samples must have a floating dtype"),
        ({"centres": torch.zeros(2)}, ValueError, r"centres must have shape \(batch, 2\), got \(2,\)"),
        ({"centres": torch.zeros(0, 2)}, ValueError, "centres must hold at least one point, got none"),
        ({"scale": 0}, ValueError, "scale must be above 0 and finite, got 0"),
        ({"scale": float("nan")}, ValueError, "scale must be above 0 and finite, got nan"),
        ({"scale": True}, ValueError, "scale must be above 0 and finite, got True"),
        ({"scale": None}, ValueError, "scale must be above 0 and finite, got None"),
    ],
)
def test_says_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        mode_coverage(**({"samples": torch.zeros(1, 2), "centres": CENTRES, "scale": 1.0} | arguments))
