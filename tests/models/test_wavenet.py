"""WaveNet against enumeration, loops over taps and time steps, and a sampler that makes a pass for every sample."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit, logsumexp
from torch.utils.flop_counter import FlopCounterMode

from companion.conformance import autoregressive, normalised_by_enumeration, sampler_agrees, sampler_repeatable
from companion.data import WAVES, mu_law_decode, mu_law_encode, quantise, waves
from companion.models.autoregressive import WaveNet
from companion.models.autoregressive.outputs import inverse_cdf
from companion.models.questions import Density, Learner, Sampler, answers
from companion.nets.causal_conv import DilatedCausalConv1d, Queue


def wavenet(seed=0, scale=2.5, **arguments):
    """A small model in float64 whose conditionals vary: weights much larger than at the start."""
    torch.manual_seed(seed)
    small = {"length": 5, "levels": 4, "channels": 6, "skip": 7, "layers": 2, "blocks": 2}
    model = WaveNet(**{**small, **arguments}).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(10 if "label" in name else scale)
        model.first.bias.normal_()  # zero at the start
    return model


def random_codes(n, time, levels, seed=1):
    return torch.randint(levels, (n, time), generator=torch.Generator().manual_seed(seed))


def sounds(n, time, levels, seed=1):
    return mu_law_decode(random_codes(n, time, levels, seed), levels, torch.float64)


def all_states(levels, length):
    codes = torch.tensor(list(itertools.product(range(levels), repeat=length)))
    return mu_law_decode(codes, levels, torch.float64)


# The convolution


@pytest.mark.parametrize("dilation", [1, 2, 5, 20])
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_the_dilated_convolution_is_its_sum(kernel, dilation):
    torch.manual_seed(0)
    conv = DilatedCausalConv1d(2, 3, kernel, dilation).double()
    x = torch.randn(2, 2, 13, dtype=torch.float64)
    w = [conv.weight.detach()[:, :, kernel - 1 - i] for i in range(kernel)]
    expected = torch.zeros(2, 3, 13, dtype=torch.float64)
    for t in range(13):
        expected[:, :, t] = conv.bias.detach()
        for i in range(kernel):
            if t - dilation * i >= 0:
                expected[:, :, t] += x[:, :, t - dilation * i] @ w[i].T
    torch.testing.assert_close(conv(x), expected)
    assert conv.reach == (kernel - 1) * dilation
    # One sample after the other, with no more room than needed and with more.
    for length in (13, 50):
        queue = Queue(conv, 2, length)
        for t in range(13):
            queue.at(t).copy_(x[:, :, t])
            out = queue(t, conv.bias.detach(), torch.empty(2, 3, dtype=torch.float64))
            torch.testing.assert_close(out, expected[:, :, t])


def test_bad_convolutions_are_refused():
    for arguments, match in (
        ((0, 1, 1), "inputs"),
        ((1, 0, 1), "outputs"),
        ((1, 1, 0), "kernel"),
        ((1, 1, 2, 0), "dil"),
    ):
        with pytest.raises(ValueError, match=match):
            DilatedCausalConv1d(*arguments)


# The distribution


@pytest.mark.parametrize(
    ("levels", "length", "arguments"),
    [(2, 6, {}), (3, 5, {"kernel": 3}), (4, 4, {"layers": 3, "blocks": 1}), (4, 1, {}), (5, 3, {"kernel": 1})],
)
def test_probabilities_sum_to_one_and_samples_follow_them(levels, length, arguments):
    states = all_states(levels, length)
    for seed in range(3):
        model = wavenet(seed, levels=levels, length=length, **arguments)
        normalised_by_enumeration(model.log_prob, states, tolerance=1e-11).raise_if_failed()
    with torch.no_grad():
        assert model.log_prob(states).std() > 0.3  # not all alike
    sampler_agrees(model.sample, model.log_prob, states=states, n=20_000).raise_if_failed()


def test_each_label_has_a_distribution_of_its_own():
    model = wavenet(levels=3, length=4, classes=3)
    states = all_states(3, 4)
    tables = []
    for k in range(3):
        label = torch.full((len(states),), k)
        tables.append(model.log_prob(states, label).exp().detach())
        assert abs(tables[-1].sum() - 1) < 1e-11
        draw = lambda n, k=k: model.sample(n, label=torch.full((n,), k))  # noqa: E731
        table = lambda x, k=k: model.log_prob(x, torch.full((len(x),), k))  # noqa: E731
        sampler_agrees(draw, table, states=states, n=20_000).raise_if_failed()
    assert min((a - b).abs().sum() for a, b in itertools.combinations(tables, 2)) > 0.2
    # A batch of several labels is each of them alone.
    mixed = model.log_prob(states[:3], torch.tensor([2, 0, 1]))
    torch.testing.assert_close(mixed.exp(), torch.stack([tables[2][0], tables[0][1], tables[1][2]]))


def test_a_label_reaches_every_layer():
    model = wavenet(classes=3)
    model.loss(sounds(3, 9, 4), torch.arange(3)).value.sum().backward()
    gradients = [p.grad for name, p in model.named_parameters() if "of_class" in name]
    assert len(gradients) == 4 and all(g.any(1).all() for g in gradients)


def test_the_answers_are_those_of_the_questions():
    model = wavenet()
    assert isinstance(model, Density) and isinstance(model, Sampler) and isinstance(model, Learner)
    assert answers(WaveNet) == ["loss", "sample", "exact density"]
    assert model.event_shape == (5,)
    sampler_repeatable(model.sample, (5,)).raise_if_failed()
    # Densities are of sounds of any length, and what comes later changes nothing.
    x = sounds(3, 40, 4)
    for time in (1, 2, 5, 40):
        loss = model.loss(x[:, :time])
        assert loss.unit == "nats" and torch.equal(loss.value, -model.log_prob(x[:, :time]))
        assert loss.value.shape == (3,) and torch.equal(loss.parts["negative log-likelihood"], loss.value)
        torch.testing.assert_close(model(x)[:, :, :time], model(x[:, :time]))


def test_the_density_takes_the_logits_of_the_levels():
    model = wavenet(levels=7)
    codes = random_codes(2, 11, 7)
    x = mu_law_decode(codes, 7, torch.float64)
    logits = model(x).detach().numpy()
    assert logits.shape == (2, 7, 11)
    for b in range(2):
        total = sum(logits[b, codes[b, t], t] - logsumexp(logits[b, :, t]) for t in range(11))
        assert model.log_prob(x)[b].item() == pytest.approx(total, rel=1e-10)


# What a conditional sees


@pytest.mark.parametrize("kernel", [2, 3])
def test_autoregressive_by_change(kernel):
    """Of two levels, as a change must be of one level to another; what bits see of a network, its gradient sees too:
    it is held to the same order in the next test."""
    model = wavenet(levels=2, kernel=kernel, channels=16)
    bits = random_codes(3, 9, 2).double()
    autoregressive(lambda b: model(mu_law_decode(b.long(), 2, torch.float64)).mT, bits).raise_if_failed()


def seen(model, t, time):
    """The samples that change the logits at t, each by its gradient through its row of the embedding."""
    embed = torch.randn(1, time, len(model.first.bias), dtype=torch.float64)
    rows = [embed.clone().requires_grad_() for _ in range(model.first.kernel)]
    original = F.embedding
    taps = iter(rows)
    F.embedding = lambda codes, weight: next(taps)[:, : codes.shape[1]]
    try:
        logits = model(sounds(1, time, model.levels))
    finally:
        F.embedding = original
    gradients = torch.autograd.grad(logits[0, :, t].square().sum(), rows)
    return {s for g in gradients for s in g[0].any(1).nonzero().flatten().tolist()}


FIELDS = [(2, 1, 1), (2, 3, 1), (2, 4, 2), (3, 3, 1), (3, 2, 3), (4, 2, 2), (1, 3, 2)]


@pytest.mark.parametrize(("kernel", "layers", "blocks"), FIELDS)
def test_the_receptive_field_is_the_formulas_and_has_no_holes(kernel, layers, blocks):
    model = wavenet(kernel=kernel, layers=layers, blocks=blocks, channels=16, scale=1.3)
    field = 1 + (kernel - 1) * blocks * (2**layers - 1)
    assert model.receptive_field == field and model.samples_seen == field + kernel - 1
    past, time = model.samples_seen, model.samples_seen + 4
    assert seen(model, time - 1, time) == set(range(time - 1 - past, time - 1))
    # By change: at the edge, and one beyond it.
    x = sounds(8, time, 4)
    codes = mu_law_encode(x, 4)
    before = model(x)[:, :, -1]

    def changed(distance):
        other = codes.clone()
        other[:, -1 - distance] = (other[:, -1 - distance] + 2) % 4
        return (model(mu_law_decode(other, 4, torch.float64))[:, :, -1] - before).abs().max()

    assert changed(past + 1) == 0 and changed(0) == 0
    assert changed(past) > 1e-9 and changed(1) > 1e-9
    # So a window of that many samples, and one for what comes next, tells all.
    torch.testing.assert_close(model(x[:, -1 - past :])[:, :, -1], before)


def test_ten_layers_see_1024_through_the_dilations_and_1025_samples():
    one, two = WaveNet(blocks=1), WaveNet(blocks=2)
    assert (one.receptive_field, one.samples_seen) == (1024, 1025)
    assert (two.receptive_field, two.samples_seen) == (2047, 2048)


# As published


def reference(model, codes, label):
    """The logits of every sample, layer by layer and time step by time step, in NumPy from the parameters alone."""
    p = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    time, kernel = len(codes), p["first.weight"].shape[0]
    h = []
    for t in range(time):
        row = p["first.bias"].copy()
        for i in range(kernel):
            if t - 1 - i >= 0:
                row += p["first.weight"][i, codes[t - 1 - i]]
        h.append(row)
    total = np.zeros((time, p["head.1.weight"].shape[1]))
    count = len(model.layers)
    per_block = count // model_blocks(model)
    for k in range(count):
        name, dilation = f"layers.{k}", 2 ** (k % per_block)
        weight, new = p[f"{name}.conv.weight"], []
        for t in range(time):
            a = p[f"{name}.conv.bias"].copy()
            if label is not None:
                a += p[f"{name}.label_bias.of_class.weight"][label]
            for i in range(kernel):
                if t - dilation * i >= 0:
                    a += weight[:, :, kernel - 1 - i] @ h[t - dilation * i]
            half = len(a) // 2
            z = np.tanh(a[:half]) * expit(a[half:])
            out = p[f"{name}.mix.weight"][:, :, 0] @ z + p[f"{name}.mix.bias"]
            skip = out[-total.shape[1] :]
            total[t] += skip
            if k + 1 < count:
                new.append(h[t] + out[: len(h[t])])
            else:
                assert len(out) == len(skip)
        h = new
    u = np.maximum(total, 0) @ p["head.1.weight"][:, :, 0].T + p["head.1.bias"]
    return np.maximum(u, 0) @ p["head.3.weight"][:, :, 0].T + p["head.3.bias"]


def model_blocks(model):
    return sum(layer.conv.dilation == (1,) for layer in model.layers)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize(("kernel", "layers", "blocks"), [(2, 3, 2), (3, 2, 1), (2, 1, 1)])
def test_the_network_is_the_papers_step_by_step(kernel, layers, blocks, classes):
    model = wavenet(kernel=kernel, layers=layers, blocks=blocks, classes=classes, levels=5)
    codes = random_codes(3, 12, 5)
    label = None if classes is None else torch.tensor([2, 0, 1])
    got = model(mu_law_decode(codes, 5, torch.float64), label).detach().mT.numpy()
    for b in range(3):
        expected = reference(model, codes[b].tolist(), None if label is None else int(label[b]))
        np.testing.assert_allclose(got[b], expected, rtol=1e-10, atol=1e-10)
    assert got.std(1).mean() > 0.1


def test_the_parameters_are_those_of_the_layers():
    c, s, n, k = 8, 12, 16, 3
    model = WaveNet(levels=n, channels=c, skip=s, layers=3, blocks=2, kernel=k, classes=5)
    first, conv, label = k * n * c + c, k * c * 2 * c + 2 * c, 5 * 2 * c
    layers = 5 * (conv + label + c * (c + s) + c + s) + conv + label + c * s + s
    head = s * s + s + s * n + n
    assert sum(p.numel() for p in model.parameters()) == first + layers + head
    assert list(WaveNet(layers=1, blocks=1, classes=2).state_dict()) == [
        "first.weight",
        "first.bias",
        "layers.0.conv.weight",
        "layers.0.conv.bias",
        "layers.0.label_bias.of_class.weight",
        "layers.0.mix.weight",
        "layers.0.mix.bias",
        "head.1.weight",
        "head.1.bias",
        "head.3.weight",
        "head.3.bias",
    ]


# Sampling


def naive_sample(model, uniforms, label=None):
    """A forward pass over the window that is seen, for every sample; its logits and the sounds, in plain NumPy."""
    length, n = uniforms.shape
    x, logits = torch.zeros(n, 0, dtype=torch.float64), []
    for t in range(length):
        # What comes next may be any level: its own logits do not see it.
        window = torch.cat([x, torch.ones(n, 1, dtype=torch.float64)], 1)[:, -1 - model.samples_seen :]
        logits.append(model(window, label)[:, :, -1].detach())
        cdf = np.exp(logits[-1].numpy() - logsumexp(logits[-1].numpy(), axis=1, keepdims=True)).cumsum(1)
        codes = [np.searchsorted(c[:-1], u, side="right") for c, u in zip(cdf, uniforms[t].numpy(), strict=True)]
        x = torch.cat([x, mu_law_decode(torch.tensor(codes)[:, None], model.levels, torch.float64)], 1)
    return x, torch.stack(logits)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize(("kernel", "layers", "blocks"), [(2, 3, 2), (3, 3, 1), (2, 5, 1), (1, 2, 1), (4, 2, 2)])
def test_the_queues_draw_what_full_passes_draw(kernel, layers, blocks, classes, monkeypatch):
    model = wavenet(kernel=kernel, layers=layers, blocks=blocks, classes=classes, levels=11)
    label = None if classes is None else torch.tensor([2, 0, 1, 1])
    uniforms = torch.rand(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected, logits = naive_sample(model, uniforms, label)
    recorded, module = [], "companion.models.autoregressive.wavenet"

    def recording(row, uniform):
        recorded.append(row.clone())
        return inverse_cdf(row, uniform)

    monkeypatch.setattr(f"{module}.inverse_cdf", recording)
    with torch.no_grad():
        assert torch.equal(model._sample(uniforms, label), expected)
    got = torch.stack(recorded)
    assert (got - logits).abs().max() < 1e-10 * max(1, float(logits.abs().max()))
    assert got.std(0).mean() > 0.1 and got.std(1).mean() > 0.1  # along the sound, and between sounds
    assert len(expected.unique()) > 5


def test_the_sampler_uses_its_generator_and_its_uniforms_in_this_order():
    model = wavenet()
    for length in (None, 3, 9):
        got = model.sample(3, torch.Generator().manual_seed(5), length=length)
        uniforms = torch.rand(length or 5, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        assert torch.equal(got, naive_sample(model, uniforms)[0])
        assert not got.requires_grad


def test_a_sound_is_completed_by_its_conditional_distribution():
    model = wavenet(levels=3, length=5, classes=2, layers=1)
    one, label = mu_law_decode(torch.tensor([[2, 0]]), 3, torch.float64), torch.tensor([1])
    rest = all_states(3, 3)
    states = torch.cat([one.expand(27, -1), rest], 1)

    def log_prob(x):
        return model.log_prob(x, label.expand(len(x))) - model.log_prob(x[:, :2], label.expand(len(x)))

    draw = lambda n: model.complete(one.expand(n, -1), label=label.expand(n))  # noqa: E731
    sampler_agrees(draw, log_prob, states=states, n=20_000).raise_if_failed()
    # The whole of a sound leaves nothing to draw; a part of a drawn one is drawn again.
    x = sounds(3, 6, 3)
    label = torch.tensor([0, 1, 1])
    assert torch.equal(model.complete(x, 6, label=label), x)
    drawn = model.sample(3, torch.Generator().manual_seed(0), label, length=20)
    for kept in (1, 7):
        again = model.complete(drawn[:, :kept], 20, torch.Generator().manual_seed(0), label)
        assert torch.equal(again, drawn)
    for arguments, match in (
        ((x, 5), "length must be that of x at least, 6, got 5"),
        ((x,), "at least, 6, got 5"),
        ((x, 0), "length must be a positive"),
        ((x + 0.1, 9), "quantise"),
    ):
        with pytest.raises(ValueError, match=match):
            model.complete(*arguments, label=label)
    with pytest.raises(ValueError, match="got None"):
        model.complete(x, 9)


@pytest.mark.parametrize("batch", [1, 8])
def test_the_queues_compute_each_thing_once(batch):
    """A sound costs no more than one pass over it and the sums of a step, where the naive sampler makes a pass over
    the receptive field for every sample. Operations are counted, not seconds, which depend on what else the machine
    does."""
    model = WaveNet(length=128, channels=16, layers=5).requires_grad_(False)

    def operations(function):
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    one_pass = operations(lambda: model(mu_law_decode(random_codes(batch, 128, 256))))
    window = operations(lambda: model(mu_law_decode(random_codes(batch, model.samples_seen + 1, 256))))
    drawn = operations(lambda: model.sample(batch))
    assert 0 < drawn < 1.1 * one_pass and drawn / 128 < window / 50


# Bad input


@pytest.mark.parametrize("method", ["forward", "log_prob", "loss"])
def test_bad_sounds_are_refused(method):
    function = getattr(wavenet(), method)
    good = sounds(2, 6, 4)
    function(good)
    for bad, error, match in (
        (good[0], ValueError, r"\(batch, time\)"),
        (good[:, :0], ValueError, r"\(batch, time\).*\(2, 0\)"),
        (good[:, None], ValueError, r"\(batch, time\).*\(2, 1, 6\)"),
        (good[0, 0], ValueError, "shape"),
        (random_codes(2, 6, 4), TypeError, "floating"),
        ([0.0], TypeError, "torch.Tensor"),
        (good * math.nan, ValueError, "finite"),
        (good + math.inf, ValueError, "finite"),
        (good + 0.01, ValueError, "4 levels of the μ-law, got .*quantise"),
        (torch.zeros(2, 6).double(), ValueError, "got 0; use companion.data.quantise.x, levels=4"),
        (torch.full((2, 6), 1.001).double(), ValueError, "got 1.001;.*quantise"),
        (torch.full((2, 6), -3.0).double(), ValueError, "got -3;.*quantise"),
        (sounds(2, 6, 256), ValueError, "quantise"),
    ):
        with pytest.raises(error, match=match):
            function(bad)


@pytest.mark.parametrize("levels", [2, 3, 100, 256])
def test_levels_survive_the_rounding_of_float32(levels):
    torch.manual_seed(0)
    model = WaveNet(levels=levels, channels=4, layers=2, blocks=1)
    codes = torch.arange(levels)[None]
    x = mu_law_decode(codes, levels)
    expected = -F.cross_entropy(model(x), codes, reduction="sum")
    torch.testing.assert_close(model.log_prob(x)[0], expected)
    # A neighbouring number in float32, within ±1, is the same level still.
    for near in (torch.nextafter(x, torch.zeros(())), torch.nextafter(x, x.sign()).clamp(-1, 1)):
        torch.testing.assert_close(model.log_prob(near)[0], expected)
        with pytest.raises(ValueError, match=f"{levels} levels"):
            model.log_prob(0.99 * near)
    model.double().log_prob(x.double())
    with pytest.raises(ValueError, match=f"{levels} levels"):
        model.log_prob(0.99 * x.double())


def test_bad_labels_are_refused():
    model, plain = wavenet(classes=3), wavenet()
    x = sounds(2, 6, 4)
    calls = (
        lambda m, k: m.log_prob(x, k),
        lambda m, k: m.loss(x, k),
        lambda m, k: m.sample(2, label=k),
        lambda m, k: m(x, k),
    )
    for call in calls:
        call(model, torch.tensor([0, 2]))
        call(plain, None)
        for label, error, match in (
            (None, ValueError, "got None"),
            (torch.tensor([0, 3]), ValueError, "got 3"),
            (torch.tensor([-1, 0]), ValueError, "got -1"),
            (torch.tensor([0]), ValueError, "shape"),
            (torch.tensor([0.0, 1.0]), TypeError, "integer"),
            ([0, 1], TypeError, "list"),
        ):
            with pytest.raises(error, match=match):
                call(model, label)
        with pytest.raises(ValueError, match="no classes"):
            call(plain, torch.tensor([0, 1]))


@pytest.mark.parametrize("name", ["length", "levels", "channels", "skip", "layers", "blocks", "kernel", "classes"])
def test_bad_arguments_are_refused(name):
    for bad in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=name):
            WaveNet(**{name: bad})


@pytest.mark.parametrize("levels", [1, 257])
def test_levels_out_of_range_are_refused(levels):
    with pytest.raises(ValueError, match=r"levels must lie in 2\.\.256"):
        WaveNet(levels=levels)


def test_sample_needs_positive_numbers():
    for arguments, match in (((0,), "n must"), ((2, None, None, 0), "length must"), ((2.0,), "n must")):
        with pytest.raises(ValueError, match=match):
            wavenet().sample(*arguments)


# Precision, devices, learning


def test_bfloat16_changes_the_loss_little_and_the_density_not_at_all():
    torch.manual_seed(0)
    model = WaveNet(levels=64, channels=12, layers=4, length=50)
    x = quantise(waves(8, 200, torch.Generator().manual_seed(0)).amplitudes, 64)
    exact, log_prob = model.loss(x).value, model.log_prob(x)
    drawn = model.sample(2, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.float32
        rough = model.loss(x).value
        assert torch.equal(model.log_prob(x), log_prob)
        assert torch.equal(model.sample(2, torch.Generator().manual_seed(0)), drawn)
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    assert ((rough - exact).abs() < 0.005 * exact.abs()).all()


def test_learns_sounds_better_than_any_table_and_not_better_than_the_oracle():
    """In seconds: below the entropy of single levels and of levels given the one before, counted on the test sounds
    themselves, and above what knows the clean signal."""
    generator = torch.Generator().manual_seed(0)
    train, test = waves(256, 512, generator), waves(32, 512, generator)
    x, y = quantise(train.amplitudes, 32), quantise(test.amplitudes, 32)
    codes = mu_law_encode(y, 32).numpy()
    pairs = np.zeros((32, 32))
    np.add.at(pairs, (codes[:, :-1].ravel(), codes[:, 1:].ravel()), 1)
    pairs /= pairs.sum()
    single = pairs.sum(1)
    unigram = -sum(p * math.log(p) for p in single if p)
    markov = -sum(p * math.log(p / single[i]) for (i, _), p in np.ndenumerate(pairs) if p)
    torch.manual_seed(0)
    model = WaveNet(levels=32, channels=16, skip=32, layers=6, blocks=1, classes=len(WAVES))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        rows = torch.randint(len(x), (8,), generator=generator)
        optimiser.zero_grad()
        model.loss(x[rows, :256], train.labels[rows]).value.mean().backward()
        optimiser.step()
    with torch.no_grad():
        reached = -model.log_prob(y, test.labels).mean() / 512
    floor = test.floor(32).mean()
    assert floor < reached < markov - 0.1 < unigram - 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none")
def test_cuda_agrees_with_the_cpu():
    model = wavenet(classes=3, levels=16)
    x, label = sounds(4, 30, 16), torch.tensor([0, 1, 2, 1])
    uniforms = torch.rand(30, 4, dtype=torch.float64)
    with torch.no_grad():
        expected, drawn = model.log_prob(x, label), model._sample(uniforms, label)
        model.cuda()
        torch.testing.assert_close(model.log_prob(x.cuda(), label.cuda()).cpu(), expected)
        assert torch.equal(model._sample(uniforms.cuda(), label.cuda()).cpu(), drawn)
    generator = torch.Generator("cuda").manual_seed(0)
    assert model.sample(2, generator, label=label[:2].cuda()).is_cuda
    with torch.autocast("cuda", torch.bfloat16):
        rough = model.float().loss(x.float().cuda(), label.cuda()).value
    assert rough.isfinite().all()
