"""The energy distance and the classifier's test against closed forms, SciPy and enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm
from scipy.stats import energy_distance as scipy_energy_distance

from companion.evaluation import Features, classifier_two_sample, energy_distance, two_sample


def draws(n, dim, seed=0, dtype=torch.float64):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


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


def test_accuracy_of_the_best_classifier_of_two_gaussians_is_that_of_their_total_variation():
    """TV of N(0, I) and N(μ, I) is 2 Φ(‖μ‖/2) - 1, of N(0, 1) and N(0, s²) what lies between the crossings ±c."""
    for dim, distance in ((1, 1.0), (5, 2.0)):
        best = 0.5 + (2 * norm.cdf(distance / 2) - 1) / 2
        shift = torch.zeros(dim, dtype=torch.float64)
        shift[-1] = distance
        found = classifier_two_sample(draws(2000, dim) + shift, draws(2000, dim, 1))
        # 2,000 held-out points, and a classifier that may be a little worse than the best.
        error = math.sqrt(best * (1 - best) / found.tested)
        assert best - 5 * error - 0.02 < found.accuracy < best + 5 * error and found.p < 1e-12
    s = 3.0
    crossing = math.sqrt(2 * s**2 * math.log(s) / (s**2 - 1))
    best = 0.5 + (2 * norm.cdf(crossing) - 2 * norm.cdf(crossing / s)) / 2
    found = classifier_two_sample(draws(2000, 1), s * draws(2000, 1, 1))
    assert best - 5 * math.sqrt(best * (1 - best) / 2000) - 0.02 < found.accuracy < best + 5 * 0.5 / 2000**0.5


def test_halves_are_disjoint_and_inputs_standardised_by_the_half_for_training(monkeypatch):
    trained, asked = [], []

    def fit(train, seed):
        trained.append(train)
        return lambda x: asked.append(x) or x[:, :1]

    monkeypatch.setattr(two_sample, "_fit", fit)
    # Powers of two: which points a sum is made of can be read from it.
    x, y = 2.0 ** torch.arange(11)[:, None].double(), 2.0 ** torch.arange(11, 22)[:, None].double()
    found = classifier_two_sample(x, y, seed=3)
    train, test = trained[0], torch.cat(asked)
    assert train.shape == (10, 1) and test.shape == (12, 1) and found.tested == 12
    assert train.mean().abs() < 1e-12 and train.std().item() == pytest.approx(1)
    # One scale and shift lead from the standardised points back to all points of both sets.
    every = torch.cat([train, test])[:, 0]
    order = every.argsort()
    slope = (every[order][-1] - every[order][0]) / (y[-1] - x[0])
    torch.testing.assert_close(every[order] / slope - every[order][0] / slope + 1, torch.cat([x, y])[:, 0])
    of_x = order.argsort() < 11
    assert of_x.tolist() == [True] * 5 + [False] * 5 + [True] * 6 + [False] * 6


def test_p_is_exact_given_the_answers(monkeypatch):
    """All ways in which the held-out points can be of x or of reference, for every possible number of answers "x"."""
    h = 3
    for answered in range(2 * h + 1):
        yes = set(range(answered))  # points numbered 0 … 5, of which the classifier calls these x
        rights = [len(yes & set(of_x)) for of_x in itertools.combinations(range(2 * h), h)]
        for of_x in ((0, 1, 2), (0, 2, 4), (3, 4, 5)):
            values = torch.tensor([1.0 if i in yes else -1.0 for i in range(2 * h)])
            x, y = values[list(of_x)], values[[i for i in range(2 * h) if i not in of_x]]
            # The half for training has mean zero, so that signs stay as they are.
            train = torch.tensor([-5.0, 5.0, 0.0])
            with monkeypatch.context() as patch:
                patch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
                patch.setattr(two_sample, "_fit", lambda train, seed: lambda points: points)
                found = classifier_two_sample(torch.cat([train, x])[:, None], torch.cat([train, y])[:, None])
            right = len(yes & set(of_x))
            assert found.p == pytest.approx(np.mean(np.array(rights) >= right))
            assert found.accuracy == (right + h - (answered - right)) / (2 * h)


def test_binomial_would_reject_too_often():
    """20 held-out points, ten of each: 14 right answers by a classifier that says "x" to ten of them."""
    exact = sum(math.comb(10, k) ** 2 for k in range(7, 11)) / math.comb(20, 10)
    assert binom.sf(13, 20, 0.5) == pytest.approx(0.0577, abs=1e-4) and exact == pytest.approx(0.0894, abs=1e-4)


def test_level_and_mean_accuracy_if_both_have_one_distribution(monkeypatch):
    """With a quick classifier, which of the two means is nearer: it has learnt its own half."""

    def fit(train, seed):
        first, second = train.chunk(2)
        return lambda x: (x - train.mean(0)) @ (first.mean(0) - second.mean(0))

    monkeypatch.setattr(two_sample, "_fit", fit)
    found = [classifier_two_sample(draws(20, 10, i), draws(20, 10, i + 9000), i) for i in range(2000)]
    accuracy, p = (np.array([getattr(each, name) for each in found]) for name in ("accuracy", "p"))
    assert abs(accuracy.mean() - 0.5) < 5 * accuracy.std() / 2000**0.5
    for level in (0.05, 0.1, 0.5):
        share = (p <= level).mean()
        # Answers are discrete, and so the share is below the level, but not by much.
        assert level / 3 < share < level + 5 * math.sqrt(level * (1 - level) / 2000)


def test_classifier_is_computed_in_double_is_reproducible_and_leaves_the_random_numbers_alone():
    x, y = draws(60, 3, dtype=torch.float32), 1 + draws(60, 3, 1, torch.float32)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = classifier_two_sample(x, y)
    assert torch.equal(torch.rand(3), expected)
    assert found == classifier_two_sample(x.double(), y.double()) == classifier_two_sample(x.numpy(), y)
    assert len({classifier_two_sample(x, y, seed).accuracy for seed in range(3)}) > 1
    # Standardised: units and a coordinate that says nothing change nothing.
    rescaled = classifier_two_sample(x.double() * 2.0**20 + 2.0**10, y.double() * 2.0**20 + 2.0**10)
    assert rescaled.accuracy == pytest.approx(found.accuracy, abs=0.05) and rescaled.accuracy > 0.7
    constant = classifier_two_sample(*(torch.cat([part, torch.ones(60, 1)], 1) for part in (x, y)))
    assert constant.accuracy > 0.6


def test_classifier_prints_itself_with_its_conditions_and_refuses_bad_input():
    x, y = Features(draws(30, 2), "net", "samples"), Features(draws(30, 2, 1), "net", "data")
    found = classifier_two_sample(x, y, 3)
    assert str(found) == (
        f"accuracy {found.accuracy:.3f} on 30 held-out points, p = {found.p:.3g}\n"
        "(2 dimensions; 30 of samples against 30 of data; net, seed 3)"
    )
    for other, words in (
        (draws(29, 2), "must have the same size, got 30 and 29"),
        (draws(30, 3), "same dimension"),
        (draws(30, 2) * torch.nan, "reference: values must be finite"),
    ):
        with pytest.raises(ValueError, match=words):
            classifier_two_sample(draws(30, 2), other)
