"""Every layer of a flow against autograd's Jacobian, in both directions, at random weights; formulas against NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from companion.conformance import autoregressive, log_det_matches_autograd, normalised_by_quadrature
from companion.models.flows import Flow
from companion.models.flows.coupling import (
    AdditiveCoupling,
    AffineCoupling,
    Checkerboard,
    Halves,
    LogSigmoid,
    ScaledTanh,
)
from companion.models.flows.invertible_conv import InvertibleConv
from companion.models.flows.layers import Chain, Interleave, Reverse, Scaling, Squeeze, Unflatten
from companion.models.flows.maf import MaskedAffine
from companion.models.flows.normalisation import ActNorm, BatchNorm
from companion.models.flows.split import GaussianPrior, Split
from companion.nets.coupling import CouplingMLP, GlowMLP, GlowNet, ResidualConvNet, SplitPrior
from companion.validate import require_events

CLASSES = 3


def randomise(module, seed=0, scale=0.4):
    """Float64, evaluation mode, and no weight or statistic where it started: layers from zero are the identity."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            # A sum of many terms stays as large as one of few, and what is near a rotation stays near one.
            terms = 4 * math.prod(parameter.shape[1:]) if parameter.ndim == 4 else 1
            terms = len(parameter) ** 2 if name.endswith(("lower", "upper", "log_diagonal")) else terms
            terms = 9 if name.endswith(("last.log_scale", "network.log_scale")) else terms  # e^{3l}
            parameter += (
                scale / math.sqrt(terms) * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            )
        for part in module.modules():
            if isinstance(part, BatchNorm | nn.BatchNorm2d):
                names = ("mean", "variance") if isinstance(part, BatchNorm) else ("running_mean", "running_var")
                mean, variance = (getattr(part, name) for name in names)
                mean.copy_(torch.randn(mean.shape, generator=generator))
                variance.copy_(0.3 + torch.rand(mean.shape, generator=generator))
    return module


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tanh(c):
    return ScaledTanh(c)


def sigmoid(c):
    return LogSigmoid()


# Each takes the shape of x, and whether the other part is changed.
VECTOR = {
    "reverse": lambda s, f, k: Reverse(),
    "interleave": lambda s, f, k: Interleave(),
    "scaling": lambda s, f, k: Scaling(s[0]),
    "additive": lambda s, f, k: AdditiveCoupling(Halves(s[0], f), CouplingMLP(s[0] // 2, (5,), s[0] // 2, k)),
    "affine, tanh": lambda s, f, k: AffineCoupling(
        Halves(s[0], f), CouplingMLP(s[0] // 2, (5, 4), s[0], k), tanh(s[0] // 2)
    ),
    "affine, sigmoid": lambda s, f, k: AffineCoupling(Halves(s[0], f), GlowMLP(s[0] // 2, 5, s[0], k), sigmoid(s[0])),
    "actnorm": lambda s, f, k: ActNorm(s[0]),
    "batch norm": lambda s, f, k: BatchNorm(s[0]),
    "invertible": lambda s, f, k: InvertibleConv(s[0]),
    "prior": lambda s, f, k: GaussianPrior(s[0], k),
    "masked affine": lambda s, f, k: MaskedAffine(s[0], (7, 5) if f else (6,), k),
}
IMAGE = {
    "additive, halves": lambda s, f, k: AdditiveCoupling(Halves(s[0], f), GlowNet(s[0] // 2, 8, s[0] // 2, k)),
    "additive, checkerboard": lambda s, f, k: AdditiveCoupling(Checkerboard(s, f), GlowNet(s[0], 8, s[0], k)),
    "affine, halves": lambda s, f, k: AffineCoupling(Halves(s[0], f), GlowNet(s[0] // 2, 8, s[0], k), sigmoid(s[0])),
    "affine, checkerboard": lambda s, f, k: AffineCoupling(
        Checkerboard(s, f), ResidualConvNet(s[0], 8, 2, 2 * s[0], f, k), tanh(s[0])
    ),
    "actnorm": lambda s, f, k: ActNorm(s[0]),
    "batch norm": lambda s, f, k: BatchNorm(s[0]),
    "invertible": lambda s, f, k: InvertibleConv(s[0]),
    "prior": lambda s, f, k: GaussianPrior(s[0], k),
    "unflatten": lambda s, f, k: Chain([Scaling(math.prod(s)), Unflatten(s), ActNorm(s[0])]),
    "split": lambda s, f, k: Split(
        s, Chain([Unflatten((s[0] // 2, *s[1:])), InvertibleConv(s[0] // 2)]), SplitPrior(s[0] // 2) if f else None
    ),
}
SQUEEZED = {
    "squeeze": lambda s, f, k: Squeeze(),
    "squeeze and split": lambda s, f, k: Chain(
        [
            Split(
                (4 * s[0], s[1] // 2, s[2] // 2),
                Unflatten((2 * s[0], s[1] // 2, s[2] // 2)),
                SplitPrior(2 * s[0]),
            ),
            ActNorm(4 * s[0]),
            Squeeze(),
            *([AffineCoupling(Checkerboard(s, f), GlowNet(s[0], 8, 2 * s[0], k), sigmoid(s[0]))]),
        ]
    ),
}
EVEN = st.integers(1, 3).map(lambda half: 2 * half)
CASES = st.one_of(
    st.tuples(st.sampled_from(sorted(VECTOR)).map(lambda n: (n, VECTOR[n])), st.tuples(EVEN)),
    st.tuples(
        st.sampled_from(sorted(IMAGE)).map(lambda n: (n, IMAGE[n])),
        st.tuples(st.sampled_from((2, 4)), st.integers(1, 3), st.integers(2, 3)),
    ),
    st.tuples(
        st.sampled_from(sorted(SQUEEZED)).map(lambda n: (n, SQUEEZED[n])),
        st.tuples(st.integers(1, 2), st.sampled_from((2, 4)), st.just(4)),
    ),
)


def hold_to_autograd(make, shape, flip, classes, seed):
    torch.manual_seed(seed)
    layer = randomise(make(shape, flip, classes), seed)
    label = None if classes is None else torch.full((2,), seed % classes)
    one = None if label is None else label[:1]

    def at(direction):
        return lambda v: direction(v, label if len(v) == 2 else one)

    x = noise(2, *shape, seed=seed)
    z, log_det = layer.inverse(x, label)
    assert log_det.shape == (2,)
    back, back_log_det = layer.forward(z, label)
    assert back_log_det.shape == (2,)
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(back_log_det, -log_det, rtol=1e-8, atol=1e-8)
    # From fresh z, which no x gave
    z = noise(*z.shape, seed=seed + 1)
    torch.testing.assert_close(layer.inverse(layer.forward(z, label)[0], label)[0], z, rtol=1e-8, atol=1e-8)
    log_det_matches_autograd(at(layer.inverse), x).raise_if_failed()
    log_det_matches_autograd(at(layer.forward), z).raise_if_failed()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("name", [*VECTOR, *(f"image {n}" for n in IMAGE), *(f"image {n}" for n in SQUEEZED)])
def test_each_layer_undoes_itself_with_the_log_det_of_autograd(name, flip):
    kinds, shape = (VECTOR, (4,)) if name in VECTOR else (IMAGE | SQUEEZED, (2, 2, 4))
    hold_to_autograd(kinds[name.removeprefix("image ")], shape, flip, CLASSES if flip else None, 3)


@settings(max_examples=60, derandomize=True)
@given(CASES, st.booleans(), st.sampled_from((None, CLASSES)), st.integers(0, 1000))
@example((("", IMAGE["affine, checkerboard"]), (2, 3, 3)), True, None, 5)
@example((("", SQUEEZED["squeeze and split"]), (1, 4, 4)), False, CLASSES, 5)
def test_layers_of_any_shape_undo_themselves_with_the_log_det_of_autograd(case, flip, classes, seed):
    (name, make), shape = case
    if (name == "interleave" or name == "reverse") and shape == (2,):
        shape = (4,)  # of two coordinates, the first is the identity
    hold_to_autograd(make, shape, flip, classes, seed)


@pytest.mark.parametrize("name", [*VECTOR, *(f"image {n}" for n in IMAGE)])
def test_gradients_reach_every_parameter_in_both_directions(name):
    kinds, shape = (VECTOR, (4,)) if name in VECTOR else (IMAGE, (4, 3, 2))
    layer = randomise(kinds[name.removeprefix("image ")](shape, True, CLASSES))
    label = torch.arange(9) % CLASSES
    x = noise(9, *shape)
    for direction, value in ((layer.inverse, x), (layer.forward, layer.inverse(x, label)[0].detach())):
        layer.zero_grad()
        out, log_det = direction(value, label)
        if not list(layer.parameters()):
            continue
        ((out * noise(*out.shape, seed=5)).sum() + log_det.sum()).backward()
        for key, parameter in layer.named_parameters():
            used = parameter.grad
            if key in ("lower", "upper"):  # triangles
                used = used[
                    torch.ones_like(used).tril(-1).bool() if key == "lower" else torch.ones_like(used).triu(1) > 0
                ]
            assert used is not None and used.abs().sum() > 0, key


ONE_DIMENSION = {
    "scaling": lambda: [Scaling(1)],
    "actnorm": lambda: [ActNorm(1)],
    "batch norm": lambda: [BatchNorm(1)],
    "invertible": lambda: [InvertibleConv(1)],
    "prior": lambda: [GaussianPrior(1)],
    "masked affine": lambda: [MaskedAffine(1, (3,))],
    "chain": lambda: [Scaling(1), ActNorm(1), BatchNorm(1), InvertibleConv(1), GaussianPrior(1), MaskedAffine(1, (3,))],
}


@pytest.mark.parametrize("base", ["gaussian", "logistic"])
@pytest.mark.parametrize("name", ONE_DIMENSION)
def test_a_flow_of_one_dimension_integrates_to_one(name, base):
    flow = randomise(Flow((1,), ONE_DIMENSION[name](), base), seed=2)
    normalised_by_quadrature(flow.log_prob, reach=100, points=20001).raise_if_failed()


# What each layer computes


def test_halves_say_which_part_is_given():
    x = torch.arange(4.0)[None]
    assert [part.tolist() for part in Halves(4, False).split(x)] == [[[0, 1]], [[2, 3]]]
    assert [part.tolist() for part in Halves(4, True).split(x)] == [[[2, 3]], [[0, 1]]]


@pytest.mark.parametrize("flip", [False, True])
def test_a_coupling_leaves_what_is_given_and_changes_the_rest(flip):
    x = noise(3, 2, 3, 3)
    halves = randomise(IMAGE["affine, halves"]((2, 3, 3), flip, None))
    changed = (halves.inverse(x)[0] != x).all(0)
    assert changed.tolist() == torch.tensor([flip, not flip])[:, None, None].expand(2, 3, 3).tolist()
    board = randomise(IMAGE["affine, checkerboard"]((2, 3, 3), flip, None))
    changed = (board.inverse(x)[0] != x).all(0)
    rows = [[(i + j) % 2 == int(not flip) for j in range(3)] for i in range(3)]
    assert changed.tolist() == [rows, rows]


def test_an_affine_coupling_is_its_equation():
    layer = randomise(VECTOR["affine, tanh"]((4,), False, None))
    x = noise(5, 4)
    raw, b = layer.network(x[:, :2]).detach().numpy()[:, :2], layer.network(x[:, :2]).detach().numpy()[:, 2:]
    a = layer.log_scale.bound.detach().numpy() * np.tanh(raw)
    z, log_det = layer.inverse(x)
    np.testing.assert_allclose(z.detach()[:, :2], x[:, :2])
    np.testing.assert_allclose(z.detach()[:, 2:], x.numpy()[:, 2:] * np.exp(a) + b, rtol=1e-12)
    np.testing.assert_allclose(log_det.detach(), a.sum(1), rtol=1e-12)


def test_the_scales_of_glow_lie_between_zero_and_one():
    raw = torch.tensor([[-50.0, 0.0, 50.0]], dtype=torch.float64)
    expected = 1 / (1 + np.exp(-(raw.numpy() + 2)))
    np.testing.assert_allclose(LogSigmoid()(raw).exp(), expected, rtol=1e-12)


def test_an_additive_coupling_keeps_volumes():
    layer = randomise(VECTOR["additive"]((4,), True, None))
    x = noise(5, 4)
    z, log_det = layer.inverse(x)
    assert (log_det == 0).all()
    torch.testing.assert_close(z[:, :2], x[:, :2] + layer.network(x[:, 2:]))
    torch.testing.assert_close(z[:, 2:], x[:, 2:], rtol=0, atol=0)


def test_interleave_puts_the_halves_on_every_other_place():
    assert Interleave()(torch.tensor([[0, 2, 4, 1, 3, 5]]).float())[0].tolist() == [[0, 1, 2, 3, 4, 5]]
    assert Reverse()(torch.tensor([[0, 1, 2]]).float())[0].tolist() == [[2, 1, 0]]


def test_squeeze_takes_blocks_of_two_by_two():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    z = Squeeze().inverse(x)[0]
    assert z.shape == (1, 4, 2, 2)
    assert z[0, :, 0, 1].tolist() == [2, 3, 6, 7]
    assert Squeeze.shape((3, 4, 6)) == (12, 2, 3)


def test_split_keeps_the_first_half_first_and_normalises_the_second():
    prior = randomise(SplitPrior(1))
    layer = Split((2, 1, 3), Unflatten((1, 1, 3)), prior)
    x = noise(4, 2, 1, 3)
    z, log_det = layer.inverse(x)
    mean, log_std = prior(x[:, :1]).chunk(2, 1)
    torch.testing.assert_close(z[:, :3], x[:, 0, 0])
    density = torch.distributions.Normal(mean, log_std.exp()).log_prob(x[:, 1:]).sum((1, 2, 3))
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, 3:]).sum(1)
    torch.testing.assert_close(standard + log_det, density)


def test_the_learned_prior_is_a_normal_of_each_class():
    prior = randomise(GaussianPrior(2, CLASSES))
    x, label = noise(CLASSES, 2, 2, 2), torch.arange(CLASSES)
    z, log_det = prior.inverse(x, label)
    both = prior.channels + prior.of_class
    normal = torch.distributions.Normal(both[:, :2, None, None], both[:, 2:, None, None].exp())
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    torch.testing.assert_close(standard.sum((1, 2, 3)) + log_det, normal.log_prob(x).sum((1, 2, 3)))


# ActNorm


@pytest.mark.parametrize("shape", [(50, 3), (20, 3, 4, 5)])
def test_the_first_training_batch_sets_actnorm_to_mean_zero_and_variance_one(shape):
    layer = ActNorm(3).double()
    scale = torch.tensor([0.1, 3.0, 20.0]).double().reshape(3, *[1] * (len(shape) - 2))
    x = 5 * scale + scale * noise(*shape)
    z, log_det = layer.inverse(x)
    flat = z.detach().movedim(1, -1).reshape(-1, 3).numpy()
    np.testing.assert_allclose(flat.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(flat.std(0), 1, atol=1e-12)
    spread = x.movedim(1, -1).reshape(-1, 3).numpy().std(0)
    np.testing.assert_allclose(log_det.detach(), -math.prod(shape[2:]) * np.log(spread).sum(), rtol=1e-12)
    # The second one changes nothing
    again = layer.inverse(2 * x)[0]
    torch.testing.assert_close(again, 2 * z - layer.shift.reshape(3, *[1] * (len(shape) - 2)))


def test_actnorm_is_the_identity_until_its_first_training_batch():
    layer = ActNorm(2).double()
    x = 3 + noise(6, 2, 2, 2)
    for _ in range(2):
        z, log_det = layer.eval().inverse(x)
        assert torch.equal(z, x) and (log_det == 0).all() and not layer.initialised
    assert torch.equal(layer.train()(x)[0], x) and not layer.initialised
    layer.inverse(x)
    assert layer.initialised


def test_the_state_of_actnorm_says_whether_it_has_been_set():
    trained, loaded = ActNorm(2), ActNorm(2)
    trained.inverse(torch.randn(8, 2))
    loaded.load_state_dict(trained.state_dict())
    loaded.inverse(7 * torch.randn(8, 2))
    assert torch.equal(loaded.log_scale, trained.log_scale) and torch.equal(loaded.shift, trained.shift)
    fresh = ActNorm(2)
    fresh.load_state_dict(ActNorm(2).state_dict())
    fresh.inverse(7 + torch.randn(8, 2))
    assert fresh.initialised and (fresh.shift != 0).all()


def test_actnorm_refuses_a_first_batch_that_does_not_vary():
    with pytest.raises(
        ValueError, match=r"must vary in each channel, got \(1, 3\) with no variance in 3 of 3 channels"
    ):
        ActNorm(3).inverse(torch.randn(1, 3))
    x = torch.randn(4, 3, 2, 2)
    x[:, 1] = 0.5
    layer = ActNorm(3)
    with pytest.raises(ValueError, match="1 of 3 channels, the first of them 1"):
        layer.inverse(x)
    assert not layer.initialised


# Batch normalisation


def test_batch_norm_takes_the_batch_in_training_and_running_averages_else():
    layer = BatchNorm(2, momentum=0.25).double()
    batches = [3 * noise(7, 2, 2, 3, seed=s) + s for s in range(3)]
    mean, variance = np.zeros(2), np.ones(2)
    for x in batches:
        z, log_det = layer.train().inverse(x)
        flat = x.movedim(1, -1).reshape(-1, 2).numpy()
        expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
        np.testing.assert_allclose(z.movedim(1, -1).reshape(-1, 2), expected, rtol=1e-10)
        np.testing.assert_allclose(log_det, -0.5 * 6 * np.log(flat.var(0) + 1e-5).sum(), rtol=1e-12)
        mean, variance = 0.75 * mean + 0.25 * flat.mean(0), 0.75 * variance + 0.25 * flat.var(0)
    np.testing.assert_allclose(layer.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(layer.variance, variance, rtol=1e-12)
    z, log_det = layer.eval().inverse(batches[0])
    expected = (batches[0].numpy() - mean[:, None, None]) / np.sqrt(variance[:, None, None] + 1e-5)
    np.testing.assert_allclose(z, expected, rtol=1e-10)
    np.testing.assert_allclose(log_det, np.full(7, -0.5 * 6 * np.log(variance + 1e-5).sum()), rtol=1e-12)
    np.testing.assert_allclose(layer.mean, mean, rtol=1e-12)  # evaluation leaves them as they are
    # It generates with the running averages in training too, and does not change them
    torch.testing.assert_close(layer.train()(z)[0], batches[0])
    np.testing.assert_allclose(layer.mean, mean, rtol=1e-12)


def test_gradients_go_through_the_statistics_of_the_batch():
    x = noise(5, 2).requires_grad_()
    z, log_det = BatchNorm(2).double().inverse(x)
    [through_z] = torch.autograd.grad(z[0, 0], x, retain_graph=True)
    [through_log_det] = torch.autograd.grad(log_det[0], x)
    assert through_z[:, 0].abs().min() > 0 and through_log_det.abs().min() > 0


def test_batch_norm_refuses_a_training_batch_of_one_value():
    with pytest.raises(ValueError, match=r"needs two values in each channel, got \(1, 3\)"):
        BatchNorm(3).inverse(torch.randn(1, 3))
    BatchNorm(3).eval().inverse(torch.randn(1, 3))


# The invertible 1 × 1 convolution


def test_the_log_det_of_a_convolution_is_that_of_the_matrix_over_all_pixels():
    conv = randomise(InvertibleConv(4))
    x = noise(3, 4, 2, 3)
    # The same W at each of the six pixels: kron(W, I), 24 × 24
    full = np.kron(conv.matrix().detach().numpy(), np.eye(6))
    sign, expected = np.linalg.slogdet(full)
    z, log_det = conv.inverse(x)
    np.testing.assert_allclose(log_det.detach(), [expected] * 3, rtol=1e-12)
    np.testing.assert_allclose(z.detach().reshape(3, 24), x.reshape(3, 24).numpy() @ full.T, rtol=1e-10)
    assert sign == conv.sign.prod() ** 6 * np.sign(np.linalg.det(np.kron(conv.permutation.numpy(), np.eye(6))))


def test_a_convolution_starts_as_a_random_rotation_or_as_what_is_given():
    torch.manual_seed(0)
    start = InvertibleConv(6).double()
    rotation = start.matrix().detach()
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(6).double(), atol=1e-5, rtol=0)
    assert (rotation.abs() < 0.999).all()
    assert abs(float(start.log_diagonal.detach().sum())) < 1e-5
    given = noise(5, 5)
    torch.testing.assert_close(InvertibleConv(5, given).matrix(), given)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.ones(3, 3), "got a singular one, of rank 1 for 3 channels"),
        (torch.zeros(3, 3), "of rank 0"),
        (torch.eye(2), r"matrix must have shape \(3, 3\), got \(2, 2\)"),
        (torch.full((3, 3), math.nan), "matrix must be finite"),
    ],
)
def test_a_convolution_refuses_a_matrix_without_an_inverse(matrix, message):
    with pytest.raises(ValueError, match=message):
        InvertibleConv(3, matrix)


# The masked affine layer


def test_a_masked_layer_sees_only_what_comes_before():
    layer = randomise(MaskedAffine(4, (9, 8)), scale=1.0)

    def shift(x):
        # b + x e^a, with x itself taken out: what is left may only depend on x_<d
        z, a = layer.inverse(x)[0], _log_scales(layer, x)
        return torch.stack([z - x * a.exp(), a], -1)

    autoregressive(shift, noise(4, 4)).raise_if_failed()


def _log_scales(layer, x):
    h = layer.label_bias(layer.hidden[0](x), None).relu()
    for hidden in layer.hidden[1:]:
        h = hidden(h).relu()
    return layer.log_scale(layer.output(h).chunk(2, 1)[0])


@pytest.mark.parametrize("hidden", [(3,), (20,), (2, 9), (7, 3, 5)])
@pytest.mark.parametrize("dims", [1, 2, 5, 9])
def test_a_masked_layer_generates_what_repeated_passes_do(dims, hidden):
    layer = randomise(MaskedAffine(dims, hidden, CLASSES), scale=0.8)
    z, label = noise(4, dims), torch.tensor([0, 1, 2, 1])
    x = torch.zeros_like(z)
    for d in range(dims):  # z_d = x_d e^a + b, solved for one coordinate after the other
        at_zero = x.clone()
        at_zero[:, d] = 0
        at_one = x.clone()
        at_one[:, d] = 1
        b, e_a_b = layer.inverse(at_zero, label)[0][:, d], layer.inverse(at_one, label)[0][:, d]
        x[:, d] = (z[:, d] - b) / (e_a_b - b)
    got, log_det = layer(z, label)
    torch.testing.assert_close(got, x.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_det, -layer.inverse(x, label)[1])


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Halves(3, False), "even number of coordinates or channels, got 3"),
        (lambda: Split((3, 2, 2), Unflatten((1, 2, 2))), r"even number of channels to split, got \(3, 2, 2\)"),
        (lambda: Squeeze().inverse(torch.zeros(1, 2, 3, 4)), r"even sides can be squeezed, got \(2, 3, 4\)"),
        (lambda: Squeeze.shape((4,)), "only an image"),
        (lambda: Chain([]), "layers must hold one layer at least"),
        (lambda: CouplingMLP(2, (), 2), r"hidden must be a sequence of integers, at least one, got \(\)"),
        (lambda: CouplingMLP(2, (4, 0), 2), "hidden must be a positive integer, got 0"),
    ],
)
def test_layers_refuse_what_means_nothing(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_layer_from_zero_changes_nothing_at_the_start():
    x = torch.randn(2, 2, 4, 4)
    assert (GlowNet(2, 8, 4)(x) == 0).all() and (SplitPrior(2)(x) == 0).all()
    require_events(GlowMLP(2, 8, 4)(x[:, :, 0, 0]), (4,))


def test_the_blocks_of_a_residual_network_are_added_to_their_input():
    network = randomise(ResidualConvNet(2, 6, 2, 3, batch_norm=True))
    x = noise(2, 2, 4, 4)
    h = network.first(x)
    for block in network.blocks:
        h = h + block(h)
    torch.testing.assert_close(network(x), network.last(h))
    assert (network.blocks[0](network.first(x)) != 0).any()
