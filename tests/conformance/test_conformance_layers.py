"""Log-dets, masks and scores: right toys pass, broken twins fail, and the report names the fault."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal

from companion.conformance import (
    autoregressive,
    energy_matches_log_prob,
    log_det_matches_autograd,
    score_matches_gradient,
)
from companion.models.autoregressive import PixelCNN

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


def shifted_convolution(kernel, dilation=1):
    """Output i sees x_{i - dilation}, x_{i - 2 dilation}, …, as many as the kernel has taps."""
    weight = torch.randn(1, 1, kernel, generator=torch.Generator().manual_seed(0)).double()

    def parameters(x):
        padded = F.pad(x.flatten(1)[:, None], (kernel * dilation, 0))[:, :, : x[0].numel() + (kernel - 1) * dilation]
        return F.conv1d(padded, weight, dilation=dilation)[:, 0].tanh().view_as(x)

    return parameters


def field(dims, steps):
    return torch.tensor([[i - j in steps for j in range(dims)] for i in range(dims)])


SIGNAL = torch.randn(5, 8, generator=torch.Generator().manual_seed(2)).double()


@pytest.mark.parametrize("x", [SIGNAL, (SIGNAL > 0).double(), SIGNAL.reshape(5, 2, 4)], ids=["real", "binary", "image"])
def test_autoregressive_with_an_exact_receptive_field(x):
    outcome = autoregressive(shifted_convolution(3), x, sees=field(8, {1, 2, 3}))
    assert outcome and "field" in outcome.detail
    assert autoregressive(shifted_convolution(3, 2), x, sees=field(8, {2, 4, 6}))
    # Too short, too long, with a hole: without a field each of them passes.
    for kernel, words in (
        (2, "output 3 misses x_0, inside of the field that it should see; 5 pairs are wrong"),
        (4, "output 4 depends on x_0, outside of the field that it should see; 4 pairs are wrong"),
    ):
        assert autoregressive(shifted_convolution(kernel), x)
        fails(autoregressive(shifted_convolution(kernel), x, sees=field(8, {1, 2, 3})), words)
    fails(autoregressive(shifted_convolution(3, 2), x, sees=field(8, {1, 2, 3})), "output 1 misses x_0")
    # Steps of two leave out the last but one, which the field knows and the sweeping rule does not.
    fails(autoregressive(shifted_convolution(3, 2), x), "no later output depends on x_6")
    # What comes later is a fault of the order, field or no field.
    fails(
        autoregressive(lambda x: x.cumsum(-1), SIGNAL, sees=field(8, set(range(1, 8)))), "output 0 depends on x_0, by"
    )


def test_a_receptive_field_in_another_order():
    order = (2, 0, 3, 1)
    rank = torch.tensor(order).argsort()
    earlier = rank[None, :] < rank[:, None]
    assert autoregressive(masked(order=order), X, order, earlier)
    less = earlier.clone()
    less[1, 2] = False
    fails(autoregressive(masked(order=order), X, order, less), "output 1 depends on x_2, outside of")
    blind = lambda x: masked(order=order)(x * torch.tensor([0, 1, 1, 1]))  # noqa: E731
    fails(autoregressive(blind, X, order, earlier), "output 1 misses x_0, inside of")


def test_a_field_is_seen_by_either_route():
    """A decision without a gradient counts as seen, and so does a gradient where a change of one moves nothing."""
    hard = lambda x: F.pad((x > 0.5).double(), (1, 0))[:, :-1]  # noqa: E731
    assert autoregressive(hard, (SIGNAL > 0).double(), sees=field(8, {1}))
    round_trip = lambda x: F.pad((2 * torch.pi * x).sin(), (1, 0))[:, :-1]  # noqa: E731  a change of 1 is none
    assert autoregressive(round_trip, SIGNAL, sees=field(8, {1}))


def test_a_field_that_means_nothing_is_refused():
    model = shifted_convolution(3)
    with pytest.raises(TypeError, match=r"sees must be a bool tensor, got torch\.float64"):
        autoregressive(model, SIGNAL, sees=field(8, {1}).double())
    with pytest.raises(TypeError, match="sees must be a bool tensor, got list"):
        autoregressive(model, SIGNAL, sees=field(8, {1}).tolist())
    with pytest.raises(ValueError, match=r"sees must have shape \(8, 8\), got \(7, 7\)"):
        autoregressive(model, SIGNAL, sees=field(7, {1}))
    with pytest.raises(ValueError, match="does not come before an output, got x_0 for output 0"):
        autoregressive(model, SIGNAL, sees=field(8, {0, 1}))
    with pytest.raises(ValueError, match="got x_0 for output 1"):
        autoregressive(model, SIGNAL, order=range(7, -1, -1), sees=field(8, {1}))


def plain_pixelcnn_field(side, blocks):
    """From the taps alone: a 7 × 7 mask without its centre, then 3 × 3 masks with theirs."""

    def taps(half, centre):
        around = [(r, c) for r in range(-half, 1) for c in range(-half, half + 1)]
        return [(r, c) for r, c in around if r < 0 or c < 0 or ((r, c) == (0, 0) and centre)]

    sees = torch.zeros(side**2, side**2, dtype=torch.bool)
    for i in range(side**2):
        cells = {divmod(i, side)}
        for layer in [taps(1, True)] * blocks + [taps(3, False)]:
            cells = {(r + a, c + b) for r, c in cells for a, b in layer if 0 <= r + a < side and 0 <= c + b < side}
        for r, c in cells:
            sees[i, r * side + c] = True
    return sees


def test_a_plain_pixelcnn_has_its_blind_spot_and_no_other():
    torch.manual_seed(0)
    side, blocks = 7, 1
    model = PixelCNN((1, side, side), "plain", hidden=16, blocks=blocks).double()
    x = torch.randint(2, (3, 1, side, side)).double()
    sees, all_earlier = plain_pixelcnn_field(side, blocks), torch.ones(side**2, side**2).tril(-1).bool()
    assert autoregressive(model, x) and autoregressive(model, x, sees=sees)
    first = (all_earlier & ~sees).nonzero()[0].tolist()
    fails(autoregressive(model, x, sees=all_earlier), "output {} misses x_{}, inside of".format(*first))
    # One layer more sees more.
    fails(autoregressive(model, x, sees=plain_pixelcnn_field(side, 2)), "inside of the field that it should see")
    fails(autoregressive(model, x, sees=plain_pixelcnn_field(side, 0)), "outside of the field that it should see")


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
