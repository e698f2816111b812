"""Normalisation and samplers: right toys pass, broken twins fail, and the report names the fault."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal

from companion.conformance import (
    ConformanceError,
    all_binary,
    normalised_by_enumeration,
    normalised_by_quadrature,
    normalised_in_expectation,
    sampler_agrees,
    sampler_agrees_by_gradient,
    sampler_repeatable,
)

STATES = all_binary((2, 2))
LOGITS = torch.tensor([[1.5, -0.7], [0.4, -2.0]], dtype=torch.float64)
MEANS = torch.tensor([[-1.0, 0.5], [1.5, -0.5]], dtype=torch.float64)
MIXTURE = MixtureSameFamily(Categorical(torch.ones(2).double()), Independent(Normal(MEANS, 0.5), 1))


def pixels(logits):
    return Independent(Bernoulli(logits=logits), 2)


def fails(outcome, words):
    assert outcome.passed is False and words in repr(outcome), outcome
    with pytest.raises(ConformanceError):
        outcome.raise_if_failed()


def undecided(outcome, words):
    assert outcome.passed is None and words in repr(outcome), outcome
    with pytest.raises(ConformanceError):
        outcome.raise_if_failed()


def test_all_binary_states_are_different_and_too_many_are_refused():
    assert STATES.shape == (16, 2, 2) and len(STATES.unique(dim=0)) == 16
    with pytest.raises(ValueError, match=r"17 binary values have 2\^17 states"):
        all_binary((17,))


def test_enumeration():
    assert normalised_by_enumeration(pixels(LOGITS).log_prob, STATES)
    assert normalised_by_enumeration(pixels(LOGITS.float()).log_prob, STATES.float())
    twice = lambda x: pixels(LOGITS).log_prob(x) + 4 * math.log(2)  # noqa: E731
    fails(normalised_by_enumeration(twice, STATES), "sum to 16 = exp(0.6931 · 4)")
    fails(normalised_by_enumeration(lambda x: pixels(LOGITS).log_prob(x).mean(), STATES), "not per example")

    def bce_of_logits(x):
        return (x * LOGITS.log() + (1 - x) * (1 - LOGITS).log()).flatten(1).sum(1)

    fails(normalised_by_enumeration(bce_of_logits, STATES), "logit where a probability is meant")


def gaussian_with_dimension_inside(x):
    return (-0.5 * x.square() - 0.5 * x.shape[1] * math.log(2 * math.pi)).sum(1)


def test_quadrature():
    standard = Independent(Normal(torch.zeros(2).double(), 1.0), 1)
    assert normalised_by_quadrature(standard.log_prob, dim=2)
    assert normalised_by_quadrature(MIXTURE.log_prob, dim=2)
    fails(normalised_by_quadrature(gaussian_with_dimension_inside, dim=2), "exp(-0.9189 · 2)")
    one = Independent(Normal(torch.zeros(1).double(), 1.0), 1)
    assert normalised_by_quadrature(one.log_prob, dim=1)
    fails(normalised_by_quadrature(lambda x: -0.5 * x.square().sum(1)), "not 1, however fine the grid")


def test_an_unresolved_or_too_small_grid_is_not_blamed_on_the_model():
    narrow = Independent(Normal(torch.full((1,), 0.013).double(), 0.001), 1)
    undecided(normalised_by_quadrature(narrow.log_prob), "does not resolve")
    wide = Independent(Normal(torch.zeros(1).double(), 8.0), 1)
    undecided(normalised_by_quadrature(wide.log_prob), "mass lies outside")
    with pytest.raises(ValueError, match="dim must be 1 or 2"):
        normalised_by_quadrature(wide.log_prob, dim=3)


def draw_pixels(logits):
    return lambda n: pixels(logits).sample((n,))


def test_discrete_sampler():
    log_prob = pixels(LOGITS).log_prob
    assert sampler_agrees(draw_pixels(LOGITS), log_prob, states=STATES)
    sigmoid_twice = pixels(LOGITS.sigmoid()).log_prob
    assert normalised_by_enumeration(sigmoid_twice, STATES)  # which is why normalisation alone is not enough
    broken = {
        "the sigmoid is applied twice in log_prob": (draw_pixels(LOGITS), sigmoid_twice),
        "the sigmoid is applied twice in sample": (draw_pixels(LOGITS.sigmoid()), log_prob),
        "at the temperature T ≈ 0.5": (draw_pixels(2 * LOGITS), log_prob),
        "a mean instead of a draw": (lambda n: LOGITS.sigmoid().expand(n, 2, 2), log_prob),
        "the mode instead of a draw": (lambda n: (LOGITS > 0).double().expand(n, 2, 2), log_prob),
        "ones and zeros are swapped": (draw_pixels(-LOGITS), log_prob),
        "has frequency": (draw_pixels(LOGITS.flip(0)), log_prob),
    }
    for words, (sample, density) in broken.items():
        fails(sampler_agrees(sample, density, states=STATES), words)


def test_continuous_sampler():
    log_prob = MIXTURE.log_prob
    assert sampler_agrees(lambda n: MIXTURE.sample((n,)), log_prob, reach=5)

    def means(n):
        return MEANS[torch.randint(2, (n,))]

    broken = {
        "all samples are the same": lambda n: MEANS[:1].expand(n, 2),
        "a mean instead of a draw": means,
        "a temperature": lambda n: means(n) + 0.5**2 * torch.randn(n, 2).double(),
        "over 20000 samples": lambda n: MEANS[(torch.rand(n) < 0.6).long()] + 0.5 * torch.randn(n, 2).double(),
    }
    for words, sample in broken.items():
        fails(sampler_agrees(sample, log_prob, reach=5), words)
    one = Independent(Normal(torch.zeros(1).double(), 1.0), 1)
    assert sampler_agrees(lambda n: one.sample((n,)), one.log_prob, reach=8)
    fails(sampler_agrees(lambda n: 1.1 * one.sample((n,)), one.log_prob, reach=8), "variance for a standard deviation")
    undecided(sampler_agrees(lambda n: one.sample((n,)), lambda x: one.log_prob(x) - 1, reach=8), "normalise it first")
    with pytest.raises(ValueError, match="either states"):
        sampler_agrees(lambda n: one.sample((n,)), one.log_prob)


def test_large_sampler_by_gradient():
    logits = torch.randn(784, generator=torch.Generator().manual_seed(0)).requires_grad_()
    log_prob = lambda x: Independent(Bernoulli(logits=logits), 1).log_prob(x)  # noqa: E731

    def draw(logits):
        return lambda n: torch.bernoulli(logits.detach().sigmoid().expand(n, -1))

    assert sampler_agrees_by_gradient(draw(logits), log_prob, [logits])
    fails(sampler_agrees_by_gradient(draw(logits.sigmoid()), log_prob, [logits]), "another distribution")
    unnormalised = lambda x: x @ logits  # noqa: E731
    fails(sampler_agrees_by_gradient(draw(logits), unnormalised, [logits]), "normaliser is wrong")
    undecided(sampler_agrees_by_gradient(draw(logits), log_prob, []), "no parameter")


def test_repeatable_sampler():
    def good(n, generator=None):
        return torch.bernoulli(torch.full((n, 3), 0.5), generator=generator)

    assert sampler_repeatable(good, (3,), "binary")
    assert sampler_repeatable(lambda n: torch.randn(n, 3), (3,), "real")
    fails(sampler_repeatable(good, (1, 3), "binary"), "expected (16, 1, 3)")
    fails(sampler_repeatable(lambda n: torch.rand(n, 3), (3,), "binary"), "means instead of draws")
    fails(sampler_repeatable(lambda n: torch.zeros(n, 3), (3,), "binary"), "nothing is drawn")
    fails(sampler_repeatable(lambda n, generator=None: torch.randn(n, 3)), "same generator gives other samples")
    fails(sampler_repeatable(lambda n: torch.full((n, 3), math.inf)), "not finite")


def test_importance_weights_normalise():
    def estimate(x, k, shift=0.0):
        noise = torch.randn(k, len(x)).double()  # E[exp(noise - 1/2)] = 1
        return pixels(LOGITS).log_prob(x) + shift + (noise - 0.5).logsumexp(0) - math.log(k)

    assert normalised_in_expectation(estimate, STATES)
    fails(normalised_in_expectation(lambda x, k: estimate(x, k, math.log(2)), STATES), "sum to 1.9")
