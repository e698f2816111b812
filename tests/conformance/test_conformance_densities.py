"""Normalisation and samplers: right toys pass, broken twins fail, and the report names the fault."""

import math

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Categorical,
    Gamma,
    Independent,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    Normal,
    StudentT,
    Uniform,
)

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
    fails(normalised_by_quadrature(lambda x: -0.5 * x.square().sum(1)), ": not 1 = exp(0.9189 · 1)")


def mixture(components, weights=(1.0, 1.0), **kwargs):
    return MixtureSameFamily(
        Categorical(torch.tensor(weights).double()), Independent(components, 1, **kwargs), **kwargs
    )


def along(*values, dim=1):
    """A component at each value, the same in all dimensions."""
    return torch.tensor(values, dtype=torch.float64)[:, None].expand(-1, dim)


def scaled(log_prob, factor):
    return lambda x: log_prob(x) + math.log(factor)


def positive(density):
    """As it is with validate_args=False, but for what has no logarithm."""
    return lambda x: torch.where((x > 0).all(1), density.log_prob(x.clamp(min=1e-300)), -math.inf)


def free(family, *parameters, dim):
    """All dimensions alike, with -inf outside of the support."""
    parameters = [torch.full((dim,), p, dtype=torch.float64) for p in parameters]
    return Independent(family(*parameters, validate_args=False), 1, validate_args=False)


RIGHT = {
    # 0.02 is a quarter of 0.08, where the trapezoid rule errs as much on a grid as on one twice as fine.
    **{f"Laplace({at:.3g}, {b})": (lambda dim, at=at, b=b: free(Laplace, at, b, dim=dim).log_prob)
       for at in (0.0, 0.02, 0.1, 1 / 3) for b in (0.05, 0.5, 3.0)},
    "narrow": lambda dim: free(Normal, 0.013, 0.001, dim=dim).log_prob,
    "wide": lambda dim: free(Normal, 0.0, 100.0, dim=dim).log_prob,
    "far": lambda dim: free(Normal, 1000.0, 1.0, dim=dim).log_prob,
    "Student": lambda dim: free(StudentT, 3.0, 0.3, 0.7, dim=dim).log_prob,
    "Cauchy": lambda dim: free(StudentT, 1.0, 0.3, 0.7, dim=dim).log_prob,
    "LogNormal": lambda dim: positive(free(LogNormal, 0.0, 1.0, dim=dim)),
    "exponential": lambda dim: positive(free(Gamma, 1.0, 1.0, dim=dim)),
    "narrow mixture": lambda dim: mixture(Normal(along(-2.3, 0.4, 1.9, dim=dim), 0.004), (1.0, 2.0, 1.0)).log_prob,
    "uniform": lambda dim: free(Uniform, 0.0, 1.0, dim=dim).log_prob,
}  # fmt: skip


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("name", RIGHT)
def test_kinks_jumps_tails_and_peaks_are_integrated(name, dim):
    log_prob = RIGHT[name](dim)
    assert normalised_by_quadrature(log_prob, dim=dim)
    for factor in (0.99, 1.01, 0.9997):
        off = scaled(log_prob, factor)
        outcome = normalised_by_quadrature(off, dim=dim)
        fails(outcome, ": not 1 = exp(")
        assert outcome.error == pytest.approx(abs(factor - 1), abs=2e-6)


@pytest.mark.parametrize(("low", "high"), [(-0.97, 1.03), (-1.234, 0.777), (0.0, 0.01)])
def test_edges_that_cross_the_cells(low, high):
    edges = free(Uniform, low, high, dim=1).log_prob
    assert normalised_by_quadrature(edges)
    # In the plane an edge is long: a millionth is too much to ask for, one per cent is not.
    edges = free(Uniform, low, high, dim=2).log_prob
    rough = normalised_by_quadrature(edges, dim=2)
    if not rough:
        undecided(rough, "which may be 1: too rough for a tolerance of 1e-06; raise points")
    for factor in (0.99, 1.01):
        off = scaled(edges, factor)
        fails(normalised_by_quadrature(off, dim=2), "not 1")


def test_a_density_without_a_limit_is_not_blamed():
    """At 0 the density of Gamma(1/2) is infinite."""
    root = positive(free(Gamma, 0.5, 1.0, dim=1))
    undecided(normalised_by_quadrature(root), "which may be 1")
    fails(normalised_by_quadrature(lambda x: root(x) + math.log(1.01)), "not 1")


def test_samples_show_the_peaks_that_no_node_sees():
    spike = mixture(Normal(along(0.0, 0.5137), along(1.0, 1e-4)))
    far = mixture(Normal(along(0.0, 1000.0), 1.0))
    for density in (spike, far):
        fails(normalised_by_quadrature(density.log_prob), "unless a peak lies between the nodes")
        torch.manual_seed(0)
        x = density.sample((500,))
        assert normalised_by_quadrature(density.log_prob, seen=x)
        for factor in (0.99, 1.01):
            off = scaled(density.log_prob, factor)
            fails(normalised_by_quadrature(off, seen=x), ": not 1 = exp(")
        assert sampler_agrees(lambda n, d=density: d.sample((n,)), density.log_prob, reach=8)
    near = lambda n: torch.where(torch.rand(n, 1) < 0.48, 0.0, 1000.0) + torch.randn(n, 1)  # noqa: E731
    fails(sampler_agrees(near, far.log_prob, reach=8), "over 20000 samples")


def test_what_integrates_to_nothing_lies_elsewhere():
    undecided(normalised_by_quadrature(lambda x: torch.full((len(x),), -math.inf)), "the density lies elsewhere")
    with pytest.raises(ValueError, match="dim must be 1 or 2"):
        normalised_by_quadrature(RIGHT["wide"](1), dim=3)


def test_outside_of_the_support_the_logarithm_is_minus_infinity():
    undecided(
        normalised_by_quadrature(LogNormal(torch.zeros(1), 1.0, validate_args=True).log_prob), "validate_args=False"
    )
    gaussian = Independent(Normal(torch.zeros(1).double(), 1.0), 1).log_prob
    fails(normalised_by_quadrature(lambda x: gaussian(x) + (x[:, 0] + 1).sqrt() * 0), "-inf where the density is zero")
    # Far away a network may overflow, and no mass is missed there.
    assert normalised_by_quadrature(lambda x: torch.where(x[:, 0].abs() < 9, gaussian(x), math.nan))


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


def test_samplers_of_densities_with_tails_and_edges():
    for density in (
        free(StudentT, 3.0, 0.3, 0.7, dim=1),
        free(Laplace, 0.02, 0.5, dim=2),
        free(Uniform, -1.2, 0.7, dim=2),
    ):
        draw = lambda n, d=density: d.sample((n,))  # noqa: E731
        assert sampler_agrees(draw, density.log_prob, reach=8)
        assert not sampler_agrees(lambda n, draw=draw: 1.1 * draw(n), density.log_prob, reach=8)
    outside = lambda n: 1.2 * free(Uniform, 0.0, 1.0, dim=1).sample((n,))  # noqa: E731
    fails(
        sampler_agrees(outside, free(Uniform, 0.0, 1.0, dim=1).log_prob, reach=8), "the density is zero at the sample"
    )


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


def test_too_few_samples_and_densities_without_a_gradient():
    scale = torch.ones(1, requires_grad=True)
    sample = lambda n: torch.randn(n, 1)  # noqa: E731
    normal = lambda x: torch.distributions.Normal(0.0, scale).log_prob(x).sum(1)  # noqa: E731
    with pytest.raises(ValueError, match="n must be an integer of at least 50, got 49"):
        sampler_agrees_by_gradient(sample, normal, [scale], n=49)
    assert "(99 samples)" not in repr(sampler_agrees_by_gradient(sample, normal, [scale], n=99))
    outcome = sampler_agrees_by_gradient(sample, lambda x: normal(x).detach(), [scale], n=100)
    assert outcome.passed is None and "log_prob keeps no gradient" in repr(outcome)
