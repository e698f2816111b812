"""Log-dets, masks and scores: right toys pass, broken twins fail, and the report names the fault."""

import pytest
import torch
from torch.distributions import Independent, Normal

from companion.conformance import (
    autoregressive,
    energy_matches_log_prob,
    log_det_matches_autograd,
    score_matches_gradient,
)

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
BINARY = (X > 0).double()


def fails(outcome, words):
    assert outcome.passed is False and words in repr(outcome), outcome


def coupling(x, weight=1.0, sign=1, reduce=torch.sum):
    first, second = x.flatten(1).chunk(2, 1)
    scale = weight * torch.tanh(first + first.flip(1))
    y = torch.cat([first, second * scale.exp() + weight * first.square()], 1)
    return y.view_as(x), sign * reduce(scale, 1)


def test_log_det():
    assert log_det_matches_autograd(coupling, X)
    assert log_det_matches_autograd(coupling, X.reshape(6, 1, 2, 2))
    fails(log_det_matches_autograd(lambda x: coupling(x, sign=-1), X), "the sign is inverted")
    fails(log_det_matches_autograd(lambda x: coupling(x, reduce=torch.mean), X), "a factor of 1/2")
    fails(log_det_matches_autograd(lambda x: (coupling(x)[0], coupling(x)[1].sum()), X), "not per example")
    fails(log_det_matches_autograd(lambda x: (3 * x, torch.full((6,), 3.0).double().log()), X), "a mean over the dim")
    fails(log_det_matches_autograd(lambda x: (x[:, :2], x[:, 0]), X), "no square Jacobian")


def test_identity_layer_is_not_a_pass():
    outcome = log_det_matches_autograd(lambda x: coupling(x, weight=0.0, sign=-1), X)
    assert outcome.passed is None and not outcome and "tests nothing" in outcome.detail
    with pytest.raises(TypeError, match="float64"):
        log_det_matches_autograd(coupling, X.float())


def masked(first="A", second="B", order=(0, 1, 2, 3), shift=0):
    """Two masked linear layers; mask A excludes the diagonal, B includes it."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(4, 4, generator=generator).double() for _ in "12"]
    rank = torch.tensor(order).argsort()
    strict = rank[None, :] < rank[:, None]
    masks = {"A": strict, "B": strict | torch.eye(4, dtype=torch.bool)}

    def parameters(x):
        hidden = torch.tanh(x.flatten(1) @ (weights[0] * masks[first]).T)
        out = hidden @ (weights[1] * masks[second]).T
        return torch.cat([torch.zeros_like(out[:, :shift]), out[:, : 4 - shift]], 1).view_as(x)

    return parameters


@pytest.mark.parametrize("x", [X, BINARY, BINARY.reshape(6, 1, 2, 2)], ids=["real", "binary", "image"])
def test_autoregressive(x):
    assert autoregressive(masked(), x)
    assert autoregressive(masked(order=(2, 0, 3, 1)), x, order=(2, 0, 3, 1))
    assert autoregressive(masked("B", "B", shift=1), x)
    assert autoregressive(lambda x: torch.stack([masked()(x), masked()(x)], -1), x)  # two parameters for each
    fails(
        autoregressive(masked("B", "B"), x), "output 0 depends on x_0, by gradient and by perturbation; only on its own"
    )
    fails(autoregressive(masked("A", "A"), x), "no later output depends on x_2: mask A after the first layer")
    fails(autoregressive(masked("A", "B", shift=1), x), "shifted once too often")
    fails(
        autoregressive(masked(order=(3, 2, 1, 0)), x),
        "output 0 depends on x_1, by gradient and by perturbation; the order",
    )
    fails(autoregressive(masked(order=(2, 0, 3, 1)), x), "output 0 depends on x_2")
    fails(autoregressive(lambda x: torch.zeros_like(x), x), "all outputs are constant")


def test_autoregressive_finds_what_only_one_route_sees():
    hard = lambda x: (x > 0.5).double() + masked()(x)  # noqa: E731  no gradient on the diagonal
    fails(autoregressive(hard, BINARY), "by perturbation;")
    with pytest.raises(ValueError, match="permutation"):
        autoregressive(masked(), X, order=(0, 1, 1, 3))


TARGET = Independent(Normal(torch.tensor([0.0, 1, 2, 3]).double(), 0.7), 1)


def score(x):
    return (TARGET.mean - x) / 0.7**2


def test_score_and_energy():
    assert score_matches_gradient(score, TARGET.log_prob, X)
    fails(score_matches_gradient(lambda x: -score(x), TARGET.log_prob, X), "the sign is inverted")
    fails(score_matches_gradient(lambda x: score(x) * 0.7, TARGET.log_prob, X), "it is scaled by 0.7")
    fails(score_matches_gradient(lambda x: -2 * score(x), TARGET.log_prob, X), "inverted and it is scaled by 2")
    fails(score_matches_gradient(lambda x: score(x) + 1, TARGET.log_prob, X), "at x[0]")
    assert score_matches_gradient(score, lambda x: 0 * x, X).passed is None
    assert energy_matches_log_prob(lambda x: 3 - TARGET.log_prob(x), TARGET.log_prob, X)
    fails(energy_matches_log_prob(lambda x: 3 + TARGET.log_prob(x), TARGET.log_prob, X), "sign of the energy")
    fails(energy_matches_log_prob(lambda x: x.sum(1), TARGET.log_prob, X), "log p + energy is")
