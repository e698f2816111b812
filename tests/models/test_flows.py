"""NICE, RealNVP, Glow and MAF: exact densities by autograd, quadrature and NumPy, on vectors and on images."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.signal import correlate2d
from scipy.special import logsumexp
from test_flows_layers import noise, randomise
from torch import nn

from companion.conformance import check, log_det_matches_autograd, normalised_by_quadrature
from companion.data import density, load
from companion.models.flows import MAF, NICE, Flow, Glow, ImageRealNVP, RealNVP
from companion.models.flows.coupling import AdditiveCoupling, AffineCoupling
from companion.models.flows.layers import Scaling
from companion.models.flows.normalisation import ActNorm
from companion.models.questions import Code, Density, Learner, Sampler
from companion.training import Settings, fit

CLASSES = 3


def small_nice(shape, classes=None, base="logistic"):
    return NICE(shape, couplings=3, hidden=(5, 4), base=base, classes=classes)


def small_realnvp(shape, classes=None, batch_norm=True):
    return RealNVP(shape, couplings=3, hidden=(5, 4), batch_norm=batch_norm, classes=classes)


def small_image_realnvp(shape, classes=None, squeezes=1, batch_norm=True):
    return ImageRealNVP(shape, squeezes, hidden=6, blocks=1, batch_norm=batch_norm, classes=classes)


def small_glow(shape, classes=None, squeezes=0):
    return Glow(shape, squeezes, steps=2, hidden=4, classes=classes)


def small_maf(shape, classes=None):
    return MAF(shape, layers=2, hidden=(6, 5), classes=classes)


VECTORS = {
    "nice": lambda shape, classes: small_nice(shape, classes),
    "nice, gaussian": lambda shape, classes: small_nice(shape, classes, "gaussian"),
    "realnvp": lambda shape, classes: small_realnvp(shape, classes, False),
    "realnvp, batch norm": lambda shape, classes: small_realnvp(shape, classes),
    "glow": lambda shape, classes: small_glow(shape, classes),
    "maf": lambda shape, classes: small_maf(shape, classes),
}
IMAGES = {
    "nice": lambda classes: small_nice((1, 2, 3), classes),
    "realnvp": lambda classes: small_realnvp((1, 2, 2), classes),
    "realnvp, one squeeze": lambda classes: small_image_realnvp((1, 4, 2), classes),
    "realnvp, two squeezes": lambda classes: small_image_realnvp((1, 8, 4), classes, 2),
    "realnvp, no batch norm": lambda classes: small_image_realnvp((2, 4, 2), classes, 1, False),
    "realnvp, odd sides": lambda classes: small_image_realnvp((2, 3, 3), classes, 0),
    "glow, no squeeze": lambda classes: small_glow((2, 2, 3), classes),
    "glow, one squeeze": lambda classes: small_glow((1, 4, 2), classes, 1),
    "glow, two squeezes": lambda classes: small_glow((1, 4, 4), classes, 2),
    "glow, colours": lambda classes: small_glow((3, 4, 4), classes, 2),
    "maf": lambda classes: small_maf((1, 2, 3), classes),
}
MODELS = {f"vector {name}": lambda classes, make=make: make((4,), classes) for name, make in VECTORS.items()} | {
    f"image {name}": make for name, make in IMAGES.items()
}


def random(name, classes=None, seed=0, scale=0.4):
    torch.manual_seed(seed)
    return randomise(MODELS[name](classes), seed, scale)


def labels(n, classes):
    return None if classes is None else torch.arange(n) % classes


# Likelihoods


def hold_to_autograd(flow, classes, seed=1):
    label = labels(2, classes)
    x, z = noise(2, *flow.event_shape, seed=seed), noise(2, flow.dims, seed=seed + 1)
    latent, log_det = flow.normalise(x, label)
    assert latent.shape == (2, flow.dims) and log_det.shape == (2,)
    back, back_log_det = flow.generate(latent, label)
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(back_log_det, -log_det, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(flow.normalise(flow.generate(z, label)[0], label)[0], z, rtol=1e-8, atol=1e-8)
    one = labels(1, classes)

    def at(direction):
        return lambda v: direction(v, None if label is None else torch.zeros(len(v)).long())

    log_det_matches_autograd(at(flow.normalise), x).raise_if_failed()
    log_det_matches_autograd(at(flow.generate), z).raise_if_failed()
    # All of the change of variables, with the base by SciPy
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.normalise(v, one)[0], x[:1]).reshape(flow.dims, -1)
    base = {"gaussian": stats.norm, "logistic": stats.logistic}[flow.base]
    expected = base.logpdf(latent.detach()[0]).sum() + np.linalg.slogdet(jacobian.numpy())[1]
    np.testing.assert_allclose(flow.log_prob(x, label).detach()[0], expected, rtol=1e-9)


@pytest.mark.parametrize("classes", [None, CLASSES])
@pytest.mark.parametrize("name", MODELS)
def test_every_flow_undoes_itself_with_the_density_of_autograd(name, classes):
    hold_to_autograd(random(name, classes), classes)


@settings(max_examples=25, derandomize=True)
@given(
    st.one_of(
        st.tuples(st.sampled_from(sorted(VECTORS)), st.sampled_from([(2,), (4,), (6,), (1, 2, 2), (3, 2)])),
        st.tuples(st.just("glow image"), st.sampled_from([(1, 2, 2), (2, 2, 4), (3, 2, 2), (1, 6, 2)])),
        st.tuples(st.just("realnvp image"), st.sampled_from([(1, 2, 2), (2, 2, 4), (3, 2, 2), (1, 6, 2)])),
    ),
    st.sampled_from((None, 2)),
    st.integers(0, 1000),
)
def test_flows_of_any_shape_undo_themselves_with_the_density_of_autograd(case, classes, seed):
    name, shape = case
    torch.manual_seed(seed)
    if name == "glow image":
        flow = small_glow(shape, classes, 1)
    elif name == "realnvp image":
        flow = small_image_realnvp(shape, classes, 1)
    else:
        flow = VECTORS[name]((math.prod(shape),) if name == "glow" else shape, classes)
    hold_to_autograd(randomise(flow, seed), classes, seed)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_parameter(name):
    flow = random(name, CLASSES)
    x = noise(32, *flow.event_shape)
    flow.loss(x, labels(32, CLASSES)).value.mean().backward()
    for key, parameter in flow.named_parameters():
        if key.endswith((".lower", ".upper")) and parameter.shape == (1, 1):
            continue
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", VECTORS)
def test_a_flow_in_two_dimensions_passes_every_check(name):
    torch.manual_seed(3)
    flow = randomise(VECTORS[name]((2,), None), seed=3, scale=0.2)
    report = check(flow, event_shape=(2,), support="real", reach=40 if flow.base == "logistic" else 20, points=801)
    assert report.passed, report
    assert len(report.outcomes) >= 4 and not report.skipped


@pytest.mark.parametrize("name", ["image realnvp, one squeeze", "image glow, two squeezes", "image glow, colours"])
def test_a_flow_of_images_passes_every_check(name):
    flow = random(name, scale=0.15)
    report = check(flow, event_shape=flow.event_shape, support="real")
    assert report.passed, report


@pytest.mark.parametrize("classes", [None, 2])
@pytest.mark.parametrize(
    ("make", "points"),
    [
        (lambda k: ImageRealNVP((1, 1, 2), squeezes=0, hidden=2, blocks=1, classes=k), 101),
        (lambda k: small_glow((2, 1, 1), k), 201),
        (lambda k: small_realnvp((2,), k), 401),
        (lambda k: small_nice((1, 2), k, "gaussian"), 401),
        (lambda k: small_maf((2,), k), 401),
    ],
)
def test_the_density_integrates_to_one_for_every_label(make, points, classes):
    torch.manual_seed(4)
    flow = randomise(make(classes), seed=4, scale=0.1)
    for k in range(classes or 1):

        def log_prob(x, k=k):
            label = None if classes is None else torch.full((len(x),), k)
            return flow.log_prob(x.reshape(-1, *flow.event_shape), label)

        normalised_by_quadrature(log_prob, reach=15, points=points, dim=2).raise_if_failed()


@pytest.mark.parametrize("name", MODELS)
def test_labels_matter_to_densities_and_samples(name):
    flow = random(name, CLASSES)
    x = noise(1, *flow.event_shape).expand(CLASSES, *flow.event_shape).contiguous()
    log_prob = flow.log_prob(x, torch.arange(CLASSES))
    assert (log_prob.diff().abs() > 1e-4).all()
    z = noise(1, flow.dims).expand(CLASSES, -1)
    made, _ = flow.generate(z, torch.arange(CLASSES))
    assert (made.diff(dim=0).flatten(1).abs().max(1).values > 1e-4).all()
    # The label of one example says nothing of another
    alone = flow.log_prob(x[:1], torch.tensor([1]))
    torch.testing.assert_close(alone, log_prob[1:2], rtol=1e-9, atol=1e-9)


def test_glow_tells_labels_to_its_prior_and_to_its_networks():
    flow = random("image glow, two squeezes", CLASSES)
    x, label = noise(4, *flow.event_shape), torch.tensor([0, 1, 2, 1])
    before = flow.log_prob(x, label)
    for part in ("of_class", "label_bias"):
        changed = copy.deepcopy(flow)
        with torch.no_grad():
            [p.zero_() for name, p in changed.named_parameters() if part in name]
        assert (changed.log_prob(x, label) - before).abs().min() > 1e-6


# Against NumPy


def numpy_of(layer):
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


def mlp_by_numpy(network, x):
    layers = [network.first, *(part for part in network.rest if isinstance(part, nn.Linear))]
    for k, layer in enumerate(layers):
        weight, bias = numpy_of(layer)
        x = x @ weight.T + bias
        x = np.maximum(x, 0) if k < len(layers) - 1 else x
    return x


def test_nice_is_its_equations():
    flow = random("image nice")
    x = noise(5, 1, 2, 3)
    h = x.numpy().reshape(5, 6)
    even, odd = h[:, ::2], h[:, 1::2]
    couplings = [layer for layer in flow.layers if isinstance(layer, AdditiveCoupling)]
    for k, layer in reversed(list(enumerate(couplings))):
        if k % 2:
            even = even + mlp_by_numpy(layer.network, odd)
        else:
            odd = odd + mlp_by_numpy(layer.network, even)
    log_scale = flow.layers[0].log_scale.detach().numpy()
    z = np.concatenate([even, odd], 1) * np.exp(log_scale)
    expected = stats.logistic.logpdf(z).sum(1) + log_scale.sum()
    np.testing.assert_allclose(flow.log_prob(x).detach(), expected, rtol=1e-10)


def test_realnvp_is_its_equations():
    flow = random("vector realnvp")
    x = noise(5, 4)
    first, second = x.numpy()[:, :2], x.numpy()[:, 2:]
    total = 0
    couplings = [layer for layer in flow.layers if isinstance(layer, AffineCoupling)]
    for k, layer in reversed(list(enumerate(couplings))):
        raw, b = np.split(mlp_by_numpy(layer.network, second if k % 2 else first), 2, 1)
        a = np.tanh(raw) * layer.log_scale.bound.detach().numpy()
        if k % 2:
            first = first * np.exp(a) + b
        else:
            second = second * np.exp(a) + b
        total = total + a.sum(1)
    expected = stats.norm.logpdf(np.concatenate([first, second], 1)).sum(1) + total
    np.testing.assert_allclose(flow.log_prob(x).detach(), expected, rtol=1e-10)


def conv_by_numpy(layer, x):
    weight, bias = numpy_of(layer)
    return np.stack(
        [
            [
                bias[o] + sum(correlate2d(each[i], weight[o, i], mode="same") for i in range(len(each)))
                for o in range(len(bias))
            ]
            for each in x
        ]
    )


def from_zero_by_numpy(part, x):
    return conv_by_numpy(part.layer, x) * np.exp(3 * part.log_scale.detach().numpy())[:, None, None]


def test_glow_is_its_equations():
    """Two levels of one image: the blocks, the steps, the prior of what leaves and the prior of the rest."""
    flow = random("image glow, two squeezes")
    x = noise(2, 1, 4, 4)

    def squeeze(h):
        n, c, height, width = h.shape
        return (
            h.reshape(n, c, height // 2, 2, width // 2, 2)
            .transpose(0, 1, 3, 5, 2, 4)
            .reshape(n, 4 * c, height // 2, width // 2)
        )

    def normal(mean, log_std, h):
        return stats.norm.logpdf(h, mean, np.exp(log_std)).reshape(len(h), -1).sum(1)

    def level(layers, h):
        layers = list(layers)[::-1]  # from x to z
        h, total = squeeze(h), 0.0
        for norm, conv, coupling in (layers[1 + 3 * k : 4 + 3 * k] for k in range(2)):
            a, shift = norm.log_scale.detach().numpy(), norm.shift.detach().numpy()
            h = h * np.exp(a)[:, None, None] + shift[:, None, None]
            total += h[0, 0].size * a.sum()
            matrix = conv.matrix().detach().numpy()
            h = np.einsum("oi,nihw->nohw", matrix, h)
            total += h[0, 0].size * np.log(abs(np.linalg.det(matrix)))
            given, changed = np.split(h, 2, 1)
            network = coupling.network
            hidden = np.maximum(conv_by_numpy(network.first, given), 0)
            raw, b = np.split(
                from_zero_by_numpy(network.last, np.maximum(conv_by_numpy(network.second, hidden), 0)), 2, 1
            )
            s = 1 / (1 + np.exp(-raw - 2))
            h = np.concatenate([given, changed * s + b], 1)
            total = total + np.log(s).reshape(len(s), -1).sum(1)
        last = layers[7]
        if len(layers) == 8:  # a split
            kept, left = np.split(h, 2, 1)
            mean, log_std = np.split(from_zero_by_numpy(last.prior.network, kept), 2, 1)
            return total + normal(mean, log_std, left) + level(last.rest, kept)
        mean, log_std = np.split(last.channels.detach().numpy()[:, None, None], 2)
        return total + normal(mean, log_std, h)

    np.testing.assert_allclose(flow.log_prob(x).detach(), level(flow.layers, x.numpy()), rtol=1e-10)


def test_what_leaves_first_is_last_in_the_latent():
    flow = random("image glow, two squeezes")
    z = noise(1, 16)
    coarse = z.clone()
    coarse[:, :8] += 1
    fine = z.clone()
    fine[:, 8:] += 1
    split = flow.layers[0]

    def kept(z):
        return split(z)[0][:, :2]

    assert (kept(coarse) != kept(z)).any() and torch.equal(kept(fine), kept(z))


# Sampling


@pytest.mark.parametrize(
    "name", ["vector nice", "vector realnvp", "image realnvp, two squeezes", "image glow, colours"]
)
def test_the_temperature_scales_every_latent(name):
    flow = random(name, CLASSES)
    label = labels(6, CLASSES)

    def latents(temperature):
        generator = torch.Generator().manual_seed(2)
        return flow.normalise(flow.sample(6, generator, label, temperature), label)[0]

    at_one = latents(1.0)
    assert at_one.abs().min() > 0
    torch.testing.assert_close(latents(0.3), 0.3 * at_one)
    torch.testing.assert_close(latents(0), 0 * at_one)


@pytest.mark.parametrize(("base", "reference"), [("gaussian", stats.norm), ("logistic", stats.logistic)])
def test_the_base_is_drawn_from_the_density_it_has(base, reference):
    flow = Flow((2,), [Scaling(2)], base).double()
    x = flow.sample(20_000, torch.Generator().manual_seed(0)).numpy()
    assert stats.kstest(x.flatten(), reference.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(x.T)[0, 1]) < 5 / math.sqrt(20_000)
    far = np.array([[0.0, 1.5], [-90.0, 60.0]])
    np.testing.assert_allclose(flow.base_log_prob(torch.tensor(far)), reference.logpdf(far).sum(1), rtol=1e-12)


def test_samples_and_labels_go_together():
    """One class far to the left and one far to the right."""
    flow = random("vector maf", 2, scale=0.1)
    samples = torch.cat([flow.sample(2000, torch.Generator().manual_seed(k), torch.full((2000,), k)) for k in (0, 1)])
    scores = torch.stack([flow.log_prob(samples, torch.full((4000,), k)) for k in (0, 1)]).detach()
    posterior = np.exp(scores.numpy() - logsumexp(scores.numpy(), 0))
    # p(k|x) is calibrated under samples of the model: its mean over those of class k is that of its square
    of_one = posterior[1]
    half = of_one[2000:].mean() - (of_one**2).mean() / of_one.mean()
    assert abs(half) < 5 * of_one.std() / math.sqrt(2000)


# Networks are run once


@pytest.mark.parametrize(
    "name", ["vector nice", "vector realnvp", "image realnvp, two squeezes", "image glow, colours"]
)
def test_each_network_is_run_once_in_each_direction(name):
    flow = random(name)
    networks = [part.network for part in flow.modules() if isinstance(part, AdditiveCoupling | AffineCoupling)]
    calls = []
    for network in networks:
        network.register_forward_hook(lambda *_: calls.append(1))
    flow.log_prob(noise(2, *flow.event_shape))
    assert len(calls) == len(networks) > 1
    flow.sample(2)
    assert len(calls) == 2 * len(networks)


# Precision, checkpoints


@pytest.mark.parametrize("name", MODELS)
def test_single_precision_is_accurate_and_bf16_trains(name):
    flow = random(name, CLASSES, scale=0.2)
    x, label = noise(16, *flow.event_shape), labels(16, CLASSES)
    exact = flow.log_prob(x, label).detach()
    single = flow.float()
    log_prob = single.log_prob(x.float(), label)
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(single.log_prob(x.float(), label), log_prob)
        loss = single.loss(x.float(), label).value
        samples = single.sample(16, torch.Generator().manual_seed(0), label)
    assert loss.dtype == samples.dtype == torch.float32
    assert torch.equal(samples, single.sample(16, torch.Generator().manual_seed(0), label))
    assert not torch.equal(-loss, log_prob)
    torch.testing.assert_close(-loss.double(), exact, rtol=0.1, atol=0.3)
    loss.mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in single.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_state_dict_has_all_there_is(name):
    torch.manual_seed(9)
    trained = MODELS[name](CLASSES)
    optimiser = torch.optim.Adam(trained.parameters(), lr=0.05)
    x, label = torch.randn(16, *trained.event_shape), labels(16, CLASSES)
    for _ in range(3):
        optimiser.zero_grad()
        trained.loss(x, label).value.mean().backward()
        optimiser.step()
    loaded = MODELS[name](CLASSES)
    loaded.load_state_dict(trained.state_dict())
    assert torch.equal(loaded.eval().log_prob(x, label), trained.eval().log_prob(x, label))
    # And the first training batch after loading does not set ActNorm anew
    if not any("running" in key or "variance" in key for key in loaded.state_dict()):
        assert torch.equal(loaded.train().log_prob(3 * x, label), trained.eval().log_prob(3 * x, label))


def test_every_actnorm_of_glow_starts_from_what_reaches_it():
    torch.manual_seed(0)
    flow = Glow((1, 8, 8), squeezes=2, steps=2, hidden=8).double()
    x = 3 + 2 * noise(40, 1, 8, 8)
    flow.loss(x)

    def walk(layers, h):
        for layer in reversed(list(layers)):
            if isinstance(layer, ActNorm):
                z = layer.inverse(h)[0].movedim(1, 0).flatten(1)
                torch.testing.assert_close(z.mean(1), torch.zeros(len(z)).double(), rtol=0, atol=1e-9)
                torch.testing.assert_close(z.std(1, correction=0), torch.ones(len(z)).double())
                seen.append(1)
            if hasattr(layer, "rest"):
                return walk(layer.rest, h.chunk(2, 1)[0])
            h = layer.inverse(h)[0]

    seen = []
    walk(flow.eval().layers, x)
    assert len(seen) == 4


# Architecture


def test_the_architectures_are_those_of_the_papers():
    def names(layers):
        return [type(layer).__name__ for layer in reversed(list(layers))]

    paper = NICE()
    assert names(paper.layers) == ["Unflatten", "Interleave", *["AdditiveCoupling"] * 4, "Scaling"]
    step = ["ActNorm", "InvertibleConv", "AffineCoupling"]
    glow = Glow(steps=2)
    assert names(glow.layers) == ["Squeeze", *step, *step, "Split"]
    assert names(glow.layers[0].rest) == ["Squeeze", *step, *step, "GaussianPrior", "Unflatten"]
    real = ImageRealNVP(batch_norm=False)
    assert names(real.layers) == [*["AffineCoupling"] * 3, "Squeeze", *["AffineCoupling"] * 3, "Split"]
    assert names(real.layers[0].rest.layers if hasattr(real.layers[0].rest, "layers") else real.layers[0].rest) == [
        *["AffineCoupling"] * 3,
        "Squeeze",
        *["AffineCoupling"] * 3,
        "Split",
    ]
    assert names(real.layers[0].rest[0].rest) == [*["AffineCoupling"] * 4, "Unflatten"]
    parts = [layer.part for layer in reversed(list(real.layers)) if hasattr(layer, "part")]
    assert [type(part).__name__ for part in parts] == ["Checkerboard"] * 3 + ["Halves"] * 3
    assert [int(part.mask[0, 0]) for part in parts[:3]] == [1, 0, 1] and [p.flip for p in parts[3:]] == [
        False,
        True,
        False,
    ]
    for flow in (NICE, RealNVP, ImageRealNVP, Glow, MAF):
        assert all(issubclass(flow, question) for question in (Density, Learner, Sampler))
        assert not issubclass(flow, Code)


def test_glow_starts_near_the_identity_and_realnvp_bounded():
    torch.manual_seed(0)
    flow = Glow((1, 8, 8), squeezes=1, steps=1, hidden=8).eval()
    x = torch.randn(2, 1, 8, 8)
    _, log_det = flow.normalise(x)
    # Only the σ(2) of half of the channels, and a rotation
    torch.testing.assert_close(log_det, torch.full((2,), 32 * math.log(1 / (1 + math.exp(-2)))), rtol=1e-4, atol=1e-4)


# Training


@pytest.mark.parametrize(
    "make",
    [
        lambda: RealNVP(couplings=4, hidden=(32, 32)),
        lambda: Glow((2,), squeezes=0, steps=6, hidden=32),
        lambda: MAF(layers=4, hidden=(32, 32)),
    ],
)
def test_training_comes_near_the_entropy(make):
    torch.manual_seed(0)
    target = density("moons")
    x, test = target.sample((8000,)), target.sample((4000,))
    flow = make()
    fit(flow, x, Settings(steps=500, batch_size=256, learning_rate=1e-2, clip_norm=10.0), progress=False)
    with torch.no_grad():
        gap = target.log_prob(test) - flow.log_prob(test)
        gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov()).log_prob(test)
        of_gaussian = float((target.log_prob(test) - gaussian).mean())
    # The mean of a gap is a KL, at least 0 but for the noise of its estimate
    assert -5 * float(gap.std()) / math.sqrt(len(gap)) < float(gap.mean()) < of_gaussian / 3


@pytest.mark.parametrize(
    "make",
    [
        lambda k: Glow(steps=1, hidden=16, classes=k),
        lambda k: ImageRealNVP(hidden=4, blocks=1, classes=k),
        lambda k: NICE(hidden=(64,), classes=k),
    ],
)
def test_a_few_steps_on_digits_lower_the_loss(make):
    torch.manual_seed(0)
    digits = load("mnist6k", "train")
    x = digits.pixels[:256] / 255 + torch.rand(256, 1, 28, 28) / 16
    flow = make(10)
    label = digits.labels[:256]
    settings = Settings(steps=12, batch_size=64, learning_rate=2e-3, log_every=1)
    history = fit(flow, (x, label), settings, progress=False).history
    losses = [row["loss"] for row in history]
    assert sum(losses[-3:]) / 3 < losses[0] - 20
    assert flow.sample(2, label=torch.tensor([3, 4])).shape == (2, 1, 28, 28)


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RealNVP((3,)), "even number of coordinates or channels, got 3"),
        (lambda: NICE((1, 3, 3)), "even number of coordinates or channels, got 9"),
        (lambda: Glow((3,), squeezes=0), "even number of coordinates or channels, got 3"),
        (lambda: Glow((1, 4, 4), squeezes=0), "even number of coordinates or channels, got 1"),
        (lambda: Glow((1, 6, 6)), r"sides divisible by 4 to be squeezed 2 times, got \(1, 6, 6\)"),
        (lambda: Glow((4,)), r"sides divisible by 4 to be squeezed 2 times, got \(4,\)"),
        (
            lambda: Glow((4, 4), squeezes=0),
            r"event_shape must be \(channels, height, width\) or \(dims,\), got \(4, 4\)",
        ),
        (lambda: ImageRealNVP((1, 28, 28), squeezes=3), "sides divisible by 8 to be squeezed 3 times"),
        (lambda: ImageRealNVP((28, 28)), r"event_shape must be \(channels, height, width\), got \(28, 28\)"),
        (lambda: ImageRealNVP(squeezes=-1), "squeezes must be an integer, not negative, got -1"),
        (lambda: ImageRealNVP(hidden=0), "hidden must be a positive integer, got 0"),
        (lambda: Glow(steps=0), "steps must be a positive integer"),
        (lambda: NICE(couplings=1), "couplings must be 2 at least"),
        (lambda: NICE(base="cauchy"), "base must be 'gaussian' or 'logistic', got 'cauchy'"),
        (lambda: RealNVP(classes=0), "classes must be a positive integer"),
        (lambda: MAF(()), "event_shape must have one size at least"),
        (lambda: MAF(hidden=()), "hidden must be a sequence of integers"),
        (lambda: MAF((2, 0)), "each size in event_shape must be a positive integer"),
    ],
)
def test_models_refuse_what_means_nothing(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("method", ["log_prob", "loss", "normalise"])
def test_models_refuse_bad_input(method):
    ask = getattr(RealNVP((4,), hidden=(3,)), method)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 4\), got \(2, 3\)"):
        ask(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN"):
        ask(torch.tensor([[0.0, 1.0, math.nan, 2.0]]))
    with pytest.raises(TypeError, match="x must have a floating dtype"):
        ask(torch.zeros(2, 4).long())
    with pytest.raises(ValueError, match="label must be None: this model has no classes"):
        ask(torch.zeros(2, 4), torch.zeros(2).long())
    ask = getattr(RealNVP((4,), hidden=(3,), classes=2), method)
    with pytest.raises(ValueError, match="from 0 to 1, got None"):
        ask(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        ask(torch.zeros(2, 4), torch.tensor([0, 2]))


def test_generating_and_sampling_refuse_bad_input():
    flow = RealNVP((4,), hidden=(3,), classes=2)
    with pytest.raises(ValueError, match=r"z must have shape \(batch, 4\), got \(2, 2\)"):
        flow.generate(torch.zeros(2, 2), torch.zeros(2).long())
    for temperature in (-0.1, math.inf, math.nan, "1"):
        with pytest.raises(ValueError, match="temperature must be a finite number, not negative"):
            flow.sample(1, label=torch.tensor([0]), temperature=temperature)
    with pytest.raises(ValueError, match="n must be a positive integer"):
        flow.sample(0, label=torch.tensor([0]))
    with pytest.raises(ValueError, match="got shape"):
        flow.sample(2, label=torch.tensor([0]))
