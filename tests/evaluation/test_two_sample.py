"""The energy distance against closed forms and SciPy."""

import math

import pytest
import torch
from scipy.stats import energy_distance as scipy_energy_distance

from companion.evaluation import energy_distance


def test_in_one_dimension_it_is_scipys_square_but_for_the_bias():
    """SciPy's is the root of the V-statistic, in which points are compared with themselves."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 1, generator=generator).double(), 0.3 + 2 * torch.randn(50, 1, generator=generator).double()
    # To 1e-8, the distance that a point has to itself by rounding.
    biased = scipy_energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    for sample in (x, y):
        n = len(sample)
        biased -= torch.cdist(sample, sample).sum().item() * (1 / (n * (n - 1)) - 1 / n**2)
    assert energy_distance(x, y) == pytest.approx(biased, abs=1e-8)


def test_two_gaussians_within_five_standard_errors_of_the_closed_form():
    """In one dimension E|N(m, s²)| = s √(2/π) exp(-m²/2s²) + m erf(m/(s√2))."""

    def mean_absolute(m, s):
        return s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2)) + m * math.erf(m / (s * math.sqrt(2)))

    exact = 2 * mean_absolute(1.0, math.sqrt(1 + 4)) - mean_absolute(0, math.sqrt(2)) - mean_absolute(0, math.sqrt(8))
    generator = torch.Generator().manual_seed(0)
    found = torch.tensor(
        [
            energy_distance(torch.randn(200, 1, generator=generator), 1 + 2 * torch.randn(200, 1, generator=generator))
            for _ in range(50)
        ]
    )
    assert abs(found.mean() - exact) < 5 * found.std() / 50**0.5


def test_it_is_unbiased_at_zero_and_has_the_unit_of_x():
    generator = torch.Generator().manual_seed(0)
    same = torch.tensor(
        [
            energy_distance(torch.randn(30, 3, generator=generator), torch.randn(20, 3, generator=generator))
            for _ in range(200)
        ]
    )
    assert abs(same.mean()) < 5 * same.std() / 200**0.5
    x, y = torch.rand(1200, 1, 4, 4, generator=generator), torch.rand(30, 1, 4, 4, generator=generator) ** 2
    assert energy_distance(3 * x, 3 * y) == pytest.approx(3 * energy_distance(x, y), rel=1e-5)
    assert energy_distance(x, y) == pytest.approx(energy_distance(y, x), abs=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.zeros(1, 2), torch.zeros(3, 2), "x must hold at least two"),
        (torch.zeros(3, 2), torch.zeros(1, 2), "y must hold at least two"),
        (torch.zeros(3, 2), torch.zeros(3, 3), "y must have shape"),
        (torch.full((3, 2), torch.nan), torch.zeros(3, 2), "x must be finite"),
    ],
)
def test_bad_input(x, y, words):
    with pytest.raises(ValueError, match=words):
        energy_distance(x, y)
