"""Bounds and losses: right toys pass, broken twins fail, and the report names the fault.

The toy is linear-Gaussian, z ~ N(0, I), x|z ~ N(Wz, s²I), with an encoder that is a little off the posterior, so
that everything is known in closed form and nothing is an identity.
"""

import math
from typing import NamedTuple

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from companion.conformance import (
    all_binary,
    bound_below_exact,
    bound_matches_code,
    bound_monotone,
    bound_within_unit_mass,
    bounds_agree,
    loss_in_unit,
    posterior_matches_bayes,
)
from companion.conformance.faults import name_fault
from companion.conformance.outcomes import rounding_of

W = torch.tensor([[1.0, 0.3], [0.2, -0.8], [-0.5, 0.4]], dtype=torch.float64)
S, DIM = 0.6, 3
PRECISION = torch.eye(2).double() + W.T @ W / S**2
X = 1.2 * torch.randn(7, DIM, generator=torch.Generator().manual_seed(3)).double()
EXACT = MultivariateNormal(torch.zeros(DIM).double(), W @ W.T + S**2 * torch.eye(DIM).double()).log_prob


def posterior(x):
    return MultivariateNormal(x @ W / S**2 @ PRECISION.inverse(), precision_matrix=PRECISION)


def encode(x):
    return Independent(Normal(0.8 * posterior(x).mean, 1.3 * PRECISION.diagonal().rsqrt().expand(len(x), 2)), 1)


def decode(z):
    return Independent(Normal(z @ W.T, S), 1)


def terms(x):
    """One draw of log p(x|z), and the KL in closed form."""
    q = encode(x)
    kl = 0.5 * (q.variance + q.mean.square() - 1 - q.variance.log()).sum(1)
    return decode(q.rsample()).log_prob(x), kl


def elbo(x, reconstruction=1.0, kl=1.0):
    r, k = terms(x)
    return reconstruction * r - kl * k


def log_weights(x, k):
    q = encode(x)
    z = q.sample((k,))
    prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
    return Independent(Normal(z @ W.T, S), 1).log_prob(x) + prior - q.log_prob(z)


def importance(x, k):
    return log_weights(x, k).logsumexp(0) - math.log(k)


def fails(outcome, words):
    assert outcome.passed is False and words in repr(outcome), outcome


def test_below_exact():
    assert bound_below_exact(elbo, EXACT, X)
    assert bound_below_exact(EXACT, EXACT, X)
    fails(bound_below_exact(lambda x: elbo(x, kl=-1), EXACT, X), "above the exact")
    fails(bound_below_exact(lambda x: EXACT(x) + math.log(2), EXACT, X), "too high by a constant: log 2 once")
    fails(bound_below_exact(lambda x: EXACT(x) * math.nan, EXACT, X), "not finite")
    fails(bound_below_exact(lambda x: elbo(x).mean(), EXACT, X), "not per example: bound must answer (7,)")
    first = repr(bound_below_exact(lambda x: EXACT(x) + (torch.arange(7) == 4), EXACT, X))
    assert "x[4] = [" in first and "x[0]" not in first


def test_bound_matches_code():
    assert bound_matches_code(elbo, encode, decode, X)
    assert bound_matches_code(lambda x: log_weights(x, 1)[0], encode, decode, X)
    factored = lambda x: encode(x).base_dist  # noqa: E731  the same, with the dimensions as a batch
    assert bound_matches_code(elbo, factored, lambda z: decode(z).base_dist, X)
    for words, weights in {
        "the KL has the wrong sign": {"kl": -1},
        "the KL is missing": {"kl": 0},
        "the KL is weighted by 4": {"kl": 4},
        "the reconstruction is a mean over 3 dimensions instead of a sum": {"reconstruction": 1 / 3},
        "a factor of 3: a mean over the dimensions": {"reconstruction": 1 / 3, "kl": 1 / 3},
    }.items():
        fails(bound_matches_code(lambda x, w=weights: elbo(x, **w), encode, decode, X), words)
    without_constant = lambda x: elbo(x) + 0.5 * DIM * math.log(2 * math.pi)  # noqa: E731
    fails(bound_matches_code(without_constant, encode, decode, X), "too high by a constant: (log 2π)/2 for each of 3")
    inside = lambda x: elbo(x) - 0.5 * DIM * (DIM - 1) * math.log(2 * math.pi)  # noqa: E731
    fails(bound_matches_code(inside, encode, decode, X), "the dimension 3 inside the constant")


def test_a_name_fits_the_batch_as_well_as_every_row():
    """Each row alone is too noisy to tell half a KL from log 2; all of them together are not."""
    generator = torch.Generator().manual_seed(0)
    kl = 0.5 + torch.rand(64, generator=generator).double()
    draws = torch.randn(20, 64, generator=generator).double()
    name = name_fault(draws - 0.5 * kl, 0 * draws, rounding_of(kl), 3, {"KL": -kl.expand(20, 64)})
    assert name and "log 2 once" not in name, name


def test_posterior():
    assert posterior_matches_bayes(posterior, decode, EXACT, X)
    fails(posterior_matches_bayes(encode, decode, EXACT, X), "not the posterior")
    squared = lambda z: Independent(Normal(z @ W.T, S**2), 1)  # noqa: E731
    fails(posterior_matches_bayes(posterior, squared, EXACT, X), "not the posterior")


def test_monotone():
    assert bound_monotone(importance, X, log_prob=EXACT)
    assert bound_monotone(lambda x, k: EXACT(x), X, log_prob=EXACT)  # the posterior's weights have no variance
    broken = {
        "the mean of the logarithms in place": lambda x, k: log_weights(x, k).mean(0),
        "grows by log K without limit": lambda x, k: log_weights(x, k).logsumexp(0),
        "the log of the mean weight": lambda x, k: importance(x, k) - math.log(k) / 2,
    }
    for words, bound in broken.items():
        fails(bound_monotone(bound, X), words)
    # Without single weights to compare with, only order and limit are left.
    fails(bound_monotone(broken["the log of the mean weight"], X, samples=(2, 50)), "from K = 2 to 50 the bound")
    fails(bound_monotone(broken["grows by log K without limit"], X, samples=(5, 50), log_prob=EXACT), "above the exact")
    with pytest.raises(ValueError, match="rising"):
        bound_monotone(importance, X, samples=(5, 1))


def test_bounds_agree():
    assert bounds_agree(elbo, lambda x: importance(x, 1), X)
    fails(bounds_agree(lambda x: elbo(x, kl=-1), lambda x: importance(x, 1), X), "on average")
    fails(bounds_agree(elbo, lambda x: importance(x, 50), X, repeats=400), "on average")


def test_unit_mass():
    states = all_binary((3,))
    uniform = lambda x: torch.full((len(x),), -3 * math.log(2))  # noqa: E731
    assert bound_within_unit_mass(lambda x: uniform(x) - torch.rand(len(x)), states)
    fails(bound_within_unit_mass(lambda x: uniform(x) + torch.rand(len(x)), states), "above log p somewhere")


class Loss(NamedTuple):
    value: torch.Tensor
    parts: dict
    unit: str


def vae_loss(x, reconstruction=1.0, kl=1.0, unit="nats"):
    r, k = terms(x)
    parts = {"reconstruction": -reconstruction * r, "prior matching": kl * k}
    return Loss(sum(parts.values()), parts, unit)


def exact_loss(value, unit="nats"):
    return lambda x: Loss(value(x), {}, unit)


def test_loss_of_a_bound():
    assert loss_in_unit(vae_loss, X, log_prob=EXACT, bound=elbo)
    for words, weights in {
        "the reconstruction is a mean over 3 dimensions instead of a sum": {"reconstruction": 1 / 3},
        "the prior matching has the wrong sign": {"kl": -1},
        "the prior matching is weighted by 4": {"kl": 4},
        "a factor of 3: a mean over the dimensions": {"reconstruction": 1 / 3, "kl": 1 / 3},
    }.items():
        fails(loss_in_unit(lambda x, w=weights: vae_loss(x, **w), X, bound=elbo), words)
    assert loss_in_unit(lambda x: vae_loss(x, kl=4, unit="weighted nats"), X, bound=elbo)  # which claims nothing
    too_good = lambda x: elbo(x, kl=-1)  # noqa: E731
    fails(loss_in_unit(lambda x: vae_loss(x, kl=-1), X, log_prob=EXACT, bound=too_good), "below the exact")


def test_loss_of_a_density():
    d, b = DIM, len(X)
    assert loss_in_unit(exact_loss(lambda x: -EXACT(x)), X, log_prob=EXACT)
    assert loss_in_unit(exact_loss(lambda x: -EXACT(x) / (d * math.log(2)), "bits/dim"), X, log_prob=EXACT)
    broken = {
        "the sign is inverted": EXACT,
        "a factor of 3: a mean over the dimensions instead of a sum": lambda x: -EXACT(x) / d,
        "a factor of 7: divided by the batch size": lambda x: -EXACT(x) / b,
        "in bits, not in nats": lambda x: -EXACT(x) / math.log(2),
        "in bits per dimension, not in nats": lambda x: -EXACT(x) / (d * math.log(2)),
        "too high by a constant: log 256 for each of 3 dimensions": lambda x: -EXACT(x) - d * math.log(256),
        "255 where there are 256 bins": lambda x: -EXACT(x) + d * math.log(256 / 255),
        "the dimension 3 inside the constant": lambda x: -EXACT(x) + d * (d - 1) / 2 * math.log(2 * math.pi),
        "for 2 of 3 dimensions: it is counted once": lambda x: -EXACT(x) - math.log(2 * math.pi),
        "off by the same 0.3 for every example": lambda x: -EXACT(x) - 0.3,
        "off by the same factor 0.9": lambda x: -0.9 * EXACT(x),
        "not finite": lambda x: -EXACT(x) * math.nan,
    }
    for words, value in broken.items():
        fails(loss_in_unit(exact_loss(value), X, log_prob=EXACT), words)


def test_form_of_a_loss():
    fails(loss_in_unit(exact_loss(lambda x: -EXACT(x).mean()), X, log_prob=EXACT), "not per example")
    expanded = exact_loss(lambda x: -EXACT(x).mean().expand(len(x)))
    fails(loss_in_unit(expanded, X, log_prob=EXACT), "a mean over the batch")
    fails(loss_in_unit(lambda x: (-EXACT(x), {}), X), "has no value and no parts and no unit")
    for bare in (lambda x: -EXACT(x), lambda x: -EXACT(x).mean()):  # another convention, and no fault
        undecided = loss_in_unit(bare, X)
        assert undecided.passed is None and "such as companion.models.Loss" in repr(undecided)
    fails(loss_in_unit(exact_loss(lambda x: -EXACT(x), ""), X), "a word such as 'nats'")
    fails(loss_in_unit(lambda x: Loss(-EXACT(x), [], "nats"), X), "must map names")
    fails(loss_in_unit(lambda x: vae_loss(x)._replace(value=-EXACT(x)), X), "the parts of x[0] = ")
    fails(
        loss_in_unit(lambda x: vae_loss(x)._replace(parts={"KL": terms(x)[1].mean()}), X), "the part 'KL' must answer"
    )
