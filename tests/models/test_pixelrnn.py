"""PixelRNN against loops over its pixels, torch's LSTM, enumeration, a sampler of full passes, and its taps' reach."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from companion.conformance import autoregressive, normalised_by_enumeration, sampler_agrees, sampler_repeatable
from companion.data import load
from companion.models.autoregressive import PixelRNN
from companion.models.autoregressive.pixelrnn import DiagonalBiLSTM, RowLSTM, lstm_update, scan, skew, unskew
from companion.models.questions import Density, Learner, Sampler

KINDS = ("row", "diagonal")
# A name for each output, with the colours and levels of small images.
OUTPUTS = {
    "bernoulli": (1, {"output": "bernoulli"}),
    "bernoulli rgb": (3, {"output": "bernoulli"}),
    "categorical": (1, {"output": "categorical", "levels": 5}),
    "categorical rgb": (3, {"output": "categorical", "levels": 4}),
    "logistic": (1, {"output": "logistic", "levels": 6, "mixtures": 3}),
    "logistic rgb": (3, {"output": "logistic", "levels": 4, "mixtures": 2}),
}


def levels(arguments):
    return arguments.get("levels", 2)


def pixelrnn(seed=0, scale=2.5, **arguments):
    """A small model in float64 whose conditionals vary: weights much larger than at the start."""
    torch.manual_seed(seed)
    model = PixelRNN(**{"hidden": 6, "layers": 2, **arguments}).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(15 if "label" in name else scale)
    return model


def on_levels(n, event_shape, arguments, seed=1):
    last = levels(arguments) - 1
    x = torch.randint(0, last + 1, (n, *event_shape), generator=torch.Generator().manual_seed(seed))
    return x.double() / last


def all_states(event_shape, count):
    grid = itertools.product(range(count), repeat=math.prod(event_shape))
    return torch.tensor(list(grid), dtype=torch.float64).reshape(-1, *event_shape) / (count - 1)


# The map of diagonals


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (5, 1), (3, 4), (4, 3), (6, 6)])
def test_skewing_puts_each_pixel_on_its_diagonal(height, width):
    x = 1 + torch.rand(2, 3, height, width)
    expected = torch.zeros(2, 3, height, width + height - 1)
    for i, j in itertools.product(range(height), range(width)):
        expected[..., i, i + j] = x[..., i, j]
    assert torch.equal(skew(x), expected)
    assert torch.equal(unskew(expected, width), x)
    # What stands outside the image does not come back.
    assert torch.equal(unskew(torch.where(expected == 0, torch.nan, expected), width), x)


# The recurrence


def test_one_update_is_that_of_torchs_cell():
    torch.manual_seed(0)
    cell = nn.LSTMCell(5, 4).double()
    x, h, c = (torch.randn(3, size, dtype=torch.float64) for size in (5, 4, 4))
    i, f, g, o = (x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh).chunk(4, 1)
    torch.testing.assert_close(lstm_update(torch.cat([o, f, i, g], 1), c), cell(x, (h, c)))


def torch_lstm(inputs, features, weight_ih, weight_hh, bias):
    """torch's LSTM, which has its gates in the order i, f, g, o, with weights whose order is o, f, i, g."""
    lstm = nn.LSTM(inputs, features).double()
    with torch.no_grad():
        for own, given in ((lstm.weight_ih_l0, weight_ih), (lstm.weight_hh_l0, weight_hh), (lstm.bias_ih_l0, bias)):
            o, f, i, g = given.chunk(4)
            own.copy_(torch.cat([i, f, g, o]))
        lstm.bias_hh_l0.zero_()
    return lstm


def test_in_one_column_the_rows_are_the_steps_of_torchs_lstm():
    torch.manual_seed(0)
    layer, x = RowLSTM(4, 1, None).double(), torch.randn(3, 8, 6, 1, dtype=torch.float64)
    # Without neighbours, of the three taps only the middle ones see anything.
    centre = layer.input.weight[:, :, 0, 1], layer.state.weight[:, :, 1]
    expected = torch_lstm(8, 4, *centre, layer.input.bias)(x[..., 0].permute(2, 0, 1))[0]
    torch.testing.assert_close(layer(x, None)[..., 0].permute(2, 0, 1), expected)


def test_in_one_row_the_diagonals_are_the_steps_of_torchs_lstm():
    torch.manual_seed(0)
    layer, x = DiagonalBiLSTM(4, 1, None).double(), torch.randn(3, 8, 1, 6, dtype=torch.float64)
    left = layer.input.weight[:16, :, 0, 0], layer.state.weight[:16, :, 1], layer.input.bias[:16]
    expected = torch_lstm(8, 4, *left)(x[:, :, 0].permute(2, 0, 1))[0]
    # Nothing of the right-to-left direction: it is shifted out of the image.
    torch.testing.assert_close(layer(x, None)[:, :, 0].permute(2, 0, 1), expected)


@pytest.mark.parametrize(("directions", "taps"), [(1, 3), (2, 2)])
def test_the_derivative_by_hand_is_that_of_autograd(directions, taps):
    torch.manual_seed(0)
    gates = torch.randn(5, directions * 8, 2, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(directions * 8, 2, taps, dtype=torch.float64, requires_grad=True)
    inside = (torch.rand(5, 4) > 0.3).double()
    for mask in (None, inside):
        h = c = torch.zeros(2, directions, 2, 4, dtype=torch.float64)
        states = []
        for t in range(5):
            before = F.pad(h.flatten(1, 2), (1, taps - 2))
            total = gates[t].movedim(1, 0) + F.conv1d(before, weight, groups=directions)
            o, f, i, g = total.unflatten(1, (directions, 4, 2)).unbind(2)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh() * (1 if mask is None else mask[t])
            h = o.sigmoid() * c.tanh()
            states.append(h.flatten(1, 2).movedim(1, 0))
        expected, got = torch.stack(states), scan(gates, weight, mask)
        torch.testing.assert_close(got, expected)
        cotangent = torch.randn_like(expected)
        derivatives = (torch.autograd.grad(out, (gates, weight), cotangent) for out in (got, expected))
        torch.testing.assert_close(*derivatives)


def test_autocast_does_not_round_the_state():
    torch.manual_seed(0)
    gates, weight = torch.randn(6, 16, 2, 5, requires_grad=True), torch.randn(16, 2, 2, requires_grad=True)
    exact = scan(gates, weight)
    expected = torch.autograd.grad(exact.square().sum(), (gates, weight))
    with torch.autocast("cpu", torch.bfloat16):
        got = scan(gates, weight)
        assert torch.equal(got, exact)
        derivatives = torch.autograd.grad(got.square().sum(), (gates, weight))
        assert all(torch.equal(a, b) for a, b in zip(derivatives, expected, strict=True))
        # What comes in bfloat16 from the layer before is as good as the same numbers in float32.
        assert torch.equal(scan(gates.bfloat16(), weight), scan(gates.bfloat16().float(), weight))


def test_a_second_derivative_is_refused_and_not_wrong():
    model = pixelrnn(event_shape=(1, 3, 3))
    x = on_levels(2, (1, 3, 3), {}).requires_grad_()
    (slope,) = torch.autograd.grad(model._network(x, None).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


# The layers, pixel by pixel, from the paper's description and the parameters alone


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def allowed(outputs, inputs, colours, parts):
    """1 where an output may see an input of its own pixel: groups of colours one after another, in each part."""
    each = outputs // parts
    target = [(o % each) * colours // each for o in range(outputs)]
    source = [i * colours // inputs for i in range(inputs)]
    return np.array([[s <= t for s in source] for t in target], dtype=float)


def loop_step(gates, c):
    o, f, i, g = np.split(gates, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def loop_row_lstm(p, x, bias, colours):
    """One image (2h, height, width)."""
    _, height, width = x.shape
    w_is, w_ss = p["input.weight"][:, :, 0], p["state.weight"]
    own = allowed(*w_is.shape[:2], colours, 4)
    h = np.zeros((w_ss.shape[1], height, width))
    c = np.zeros_like(h)
    for i, j in itertools.product(range(height), range(width)):
        gates = bias + (w_is[:, :, 1] * own) @ x[:, i, j]
        if j > 0:
            gates = gates + w_is[:, :, 0] @ x[:, i, j - 1]
        for step in (-1, 0, 1):
            if i > 0 and 0 <= j + step < width:
                gates = gates + w_ss[:, :, 1 + step] @ h[:, i - 1, j + step]
        h[:, i, j], c[:, i, j] = loop_step(gates, c[:, i - 1, j] if i > 0 else 0.0)
    return h


def loop_diagonal_lstm(p, x, bias, colours):
    _, height, width = x.shape
    half = len(bias) // 2
    out = np.zeros((half // 4, height, width))
    for direction in range(2):
        part = slice(direction * half, (direction + 1) * half)
        w_is, w_ss = p["input.weight"][part, :, 0, 0], p["state.weight"][part]
        w_is = w_is * allowed(*w_is.shape, colours, 4)
        toward = 1 if direction == 0 else -1
        h, c = np.zeros_like(out), np.zeros_like(out)
        for i in range(height):
            for j in range(width)[::toward]:
                first = j == (0 if direction == 0 else width - 1)
                gates = bias[part] + w_is @ x[:, i, j]
                if i > 0:
                    gates = gates + w_ss[:, :, 0] @ h[:, i - 1, j]
                if not first:
                    gates = gates + w_ss[:, :, 1] @ h[:, i, j - toward]
                h[:, i, j], c[:, i, j] = loop_step(gates, 0.0 if first else c[:, i, j - toward])
        if direction == 0:
            out += h
        else:
            out[:, 1:] += h[:, :-1]
    return out


LOOPS = {"row": (RowLSTM, loop_row_lstm), "diagonal": (DiagonalBiLSTM, loop_diagonal_lstm)}


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (5, 1), (3, 6), (6, 3), (4, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_that_of_a_loop_over_pixels(kind, height, width, colours):
    make, loop = LOOPS[kind]
    for seed in range(2):
        torch.manual_seed(seed)
        layer = make(6, colours, 3).double()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(3)
        p = {name: value.detach().numpy() for name, value in layer.named_parameters()}
        x, label = torch.randn(2, 12, height, width, dtype=torch.float64), torch.tensor([2, 0])
        expected = [
            loop(p, each.numpy(), p["input.bias"] + p["label_bias.of_class.weight"][k], colours)
            for each, k in zip(x, label, strict=True)
        ]
        np.testing.assert_allclose(layer(x, label).detach().numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_the_papers_layer_by_layer(kind):
    """One colour, written out once more from the parameters alone."""
    model = pixelrnn(kind=kind, event_shape=(1, 6, 5), layers=3)
    p = dict(model.named_parameters())
    x = on_levels(2, (1, 6, 5), {})
    mask = torch.ones(7, 7, dtype=torch.float64)
    mask[3, 3:] = mask[4:] = 0
    h = F.conv2d(x, p["first.weight"] * mask, p["first.bias"], padding=3)
    for k in range(3):
        own = {n.split(".", 2)[2]: v.detach().numpy() for n, v in p.items() if n.startswith(f"lstms.{k}.")}
        loop = LOOPS[kind][1]
        state = np.stack([loop(own, each, own["input.bias"], 1) for each in h.detach().numpy()])
        h = h + F.conv2d(torch.from_numpy(state), p[f"widen.{k}.weight"], p[f"widen.{k}.bias"])
    h = F.conv2d(F.relu(h), p["head.1.weight"], p["head.1.bias"])
    expected = F.conv2d(F.relu(h), p["head.3.weight"], p["head.3.bias"])
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_parameters_are_those_of_the_layers(kind):
    h, layers, k = 8, 3, 10
    model = PixelRNN(kind=kind, hidden=h, layers=layers, classes=k)
    directions, taps, reach = (1, 3, 3) if kind == "row" else (2, 2, 1)
    lstm = directions * 4 * h * (2 * h * reach + 1 + h * taps + k)
    widen, first = h * 2 * h + 2 * h, 49 * 2 * h + 2 * h
    count = first + layers * (lstm + widen) + (2 * h * 2 * h + 2 * h) + (2 * h + 1)
    assert sum(p.numel() for p in model.parameters()) == count
    each = ("input.weight", "input.bias", "label_bias.of_class.weight", "state.weight")
    names = {f"lstms.{n}.{name}" for n in range(layers) for name in each}
    for layer in ("first", "head.1", "head.3", *(f"widen.{n}" for n in range(layers))):
        names |= {f"{layer}.weight", f"{layer}.bias"}
    assert set(model.state_dict()) == names
    other = PixelRNN(kind=kind, hidden=h, layers=layers, classes=k)
    other.load_state_dict(model.state_dict())
    x, label = on_levels(2, (1, 28, 28), {}).float(), torch.tensor([3, 9])
    assert torch.equal(other.log_prob(x, label), model.log_prob(x, label))


def test_the_defaults_are_those_of_the_paper_for_digits():
    model = PixelRNN()
    assert model.kind == "diagonal" and len(model.lstms) == 7 and model.first.out_channels == 32


# The distribution


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("event_shape", "arguments"),
    [
        ((1, 3, 3), {"output": "bernoulli"}),
        ((1, 2, 5), {"output": "bernoulli"}),
        ((1, 5, 2), {"output": "bernoulli"}),
        ((1, 1, 6), {"output": "bernoulli"}),
        ((3, 2, 2), {"output": "bernoulli"}),
        ((1, 2, 3), {"output": "categorical", "levels": 4}),
        ((3, 1, 2), {"output": "categorical", "levels": 3}),
        ((2, 2, 1), {"output": "categorical", "levels": 4}),
        ((1, 3, 2), {"output": "logistic", "levels": 4, "mixtures": 3}),
        ((3, 2, 1), {"output": "logistic", "levels": 3, "mixtures": 2}),
    ],
)
def test_probabilities_sum_to_one_and_samples_follow_them(kind, event_shape, arguments):
    states = all_states(event_shape, levels(arguments))
    for seed in range(3):
        model = pixelrnn(seed, kind=kind, event_shape=event_shape, **arguments)
        normalised_by_enumeration(model.log_prob, states, tolerance=1e-11).raise_if_failed()
    with torch.no_grad():
        assert model.log_prob(states).std() > 0.5  # not all alike
    sampler_agrees(model.sample, model.log_prob, states=states, n=20_000).raise_if_failed()
    assert sampler_repeatable(model.sample, event_shape).passed


@pytest.mark.parametrize("kind", KINDS)
def test_each_label_has_a_distribution_of_its_own(kind):
    model = pixelrnn(kind=kind, event_shape=(1, 3, 3), classes=3)
    states = all_states((1, 3, 3), 2)
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


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_reaches_every_parameter(kind, classes):
    model = pixelrnn(kind=kind, event_shape=(1, 5, 5), classes=classes)
    label = None if classes is None else torch.arange(3)
    model.loss(on_levels(3, (1, 5, 5), {}), label).value.sum().backward()
    for name, parameter in model.named_parameters():
        # A label is as a bias on the gates of every layer.
        assert parameter.grad.any(1).all() if "of_class" in name else parameter.grad.any(), name
    assert sum("of_class" in name for name, _ in model.named_parameters()) == (0 if classes is None else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_are_those_of_the_questions(kind):
    model = pixelrnn(kind=kind, event_shape=(1, 4, 4))
    assert isinstance(model, Density) and isinstance(model, Sampler) and isinstance(model, Learner)
    x = on_levels(3, (1, 4, 4), {})
    loss = model.loss(x)
    assert model.log_prob(x[:0]).shape == (0,)
    assert loss.unit == "nats" and torch.equal(loss.value, -model.log_prob(x)) and loss.value.shape == (3,)


# What a conditional may see, and what it does


def conditional_parameters(model):
    """(batch, colours, height, width, parameters), the conditional of each value."""

    def function(x):
        p = model(x)
        p = p.unflatten(1, (model.output.groups, -1)).movedim(2, -1)
        return p.expand(-1, x.shape[1], -1, -1, -1)

    return function


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bernoulli", "bernoulli rgb", "categorical", "categorical rgb", "logistic"])
def test_autoregressive_by_gradient_and_by_change(kind, name):
    colours, arguments = OUTPUTS[name]
    shape = (colours, 3, 4)
    # Of a few features in a colour, none may be alive at a pixel.
    model = pixelrnn(kind=kind, event_shape=shape, hidden=24, scale=1.5, **arguments)
    # A change must keep to the levels; the gradient is of the network alone, which knows none.
    model.output.require = lambda x: None
    # Raster order over the pixels, and the colours within each.
    order = torch.arange(math.prod(shape)).reshape(shape).permute(1, 2, 0).flatten().tolist()
    autoregressive(conditional_parameters(model), on_levels(3, shape, arguments), order).raise_if_failed()


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_of_logistics_sees_no_colour_of_its_own_pixel(kind):
    colours, arguments = OUTPUTS["logistic rgb"]
    model = pixelrnn(kind=kind, event_shape=(colours, 3, 3), hidden=12, **arguments)
    x = on_levels(2, (colours, 3, 3), arguments)
    jacobian = torch.autograd.functional.jacobian(lambda t: model._network(t, None).abs().sum((0, 1)), x)
    seen = jacobian.abs().sum((2, 3)).reshape(9, 9) > 0
    assert torch.equal(seen, torch.ones(9, 9).tril(-1).bool())


def seen_by(model, target):
    """Which values (colour, row, column) the parameters of the target (row, column) change with."""
    x = torch.rand(1, *model.event_shape, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(model._network(x, None)[0, :, target[0], target[1]].square().sum(), x)
    return {tuple(cell) for cell in (slope[0] != 0).nonzero().tolist()}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("target", [(0, 4), (1, 0), (9, 0), (9, 3), (9, 8), (5, 11), (10, 7)])
def test_the_diagonals_see_all_before_but_the_end_of_the_row_above(layers, target):
    """One layer is as good as several. What comes to a pixel from the right is from the row above, where no feature has
    seen the row's last pixel, whose own features come before it; only the 7 × 7 convolution reaches it, from 3 columns
    away."""
    height, width, (i, j) = 11, 12, target
    model = pixelrnn(kind="diagonal", event_shape=(1, height, width), layers=layers, hidden=8, scale=1.5)
    before = {(0, r, c) for r in range(height) for c in range(width) if (r, c) < target}
    blind = {(0, i - 1, width - 1)} if i > 0 and j + 3 < width - 1 else set()
    assert seen_by(model, target) == before - blind


def test_of_the_last_pixel_above_the_diagonals_see_all_but_the_last_colour():
    arguments = {"output": "categorical", "levels": 4, "event_shape": (3, 6, 9), "layers": 2, "hidden": 12}
    model = pixelrnn(kind="diagonal", scale=1.5, **arguments)
    before = {(k, r, c) for k in range(3) for r in range(6) for c in range(9) if (r, c) < (4, 2)}
    own = {(0, 4, 2), (1, 4, 2)}
    assert seen_by(model, (4, 2)) == (before | own) - {(2, 3, 8)}


def triangle(layers, height, width, target):
    """Row d above the target is seen from 3 + layers + d columns left of it to 2 + d right of it (the 7 × 7
    convolution's 3, then one more a row), and of its own row the 3 + layers to the left: depth widens only the left."""
    i, j = target
    return {
        (0, r, c)
        for r in range(i + 1)
        for c in range(width)
        if j - (3 + layers + i - r) <= c <= (j + 2 + i - r if r < i else j - 1)
    }


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("target", [(0, 9), (3, 2), (8, 12), (8, 0), (10, 19)])
def test_the_rows_see_a_triangle_and_nothing_else(layers, target):
    height, width = 11, 24
    model = pixelrnn(kind="row", event_shape=(1, height, width), layers=layers, hidden=8, scale=1.5)
    seen = seen_by(model, target)
    assert seen == triangle(layers, height, width, target)
    assert len(seen) < target[0] * width + target[1]  # not all before it


# Sampling


def naive_sample(model, uniforms, label=None):
    """A forward pass of the whole network for every value."""
    height, width, n, _ = uniforms.shape
    x, seen = torch.zeros(n, *model.event_shape, dtype=torch.float64), []
    for i, j, c in itertools.product(range(height), range(width), range(x.shape[1])):
        p = model(x, label)[:, :, i, j].detach()
        seen.append(p.reshape(n, model.output.groups, -1)[:, min(c, model.output.groups - 1)])
        x[:, c, i, j] = model.output.draw(p, x[:, :, i, j], c, uniforms[i, j])
    return x, torch.stack(seen)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_draws_what_full_passes_draw(kind, name, classes):
    colours, arguments = OUTPUTS[name]
    for height, width in ((5, 6), (1, 4), (4, 1)):
        shape = (colours, height, width)
        model = pixelrnn(kind=kind, event_shape=shape, classes=classes, scale=4, **arguments)
        label = None if classes is None else torch.tensor([2, 0, 1, 1])
        uniforms = torch.rand(height, width, 4, model.output.draws, dtype=torch.float64)
        recorded, draw = [], model.output.draw

        def recording(parameters, pixel, colour, u, model=model, recorded=recorded, draw=draw):
            parts = parameters.reshape(len(parameters), model.output.groups, -1)
            recorded.append(parts[:, min(colour, model.output.groups - 1)].clone())
            return draw(parameters, pixel, colour, u)

        expected, logits = naive_sample(model, uniforms, label)
        model.output.draw = recording
        got = model._sample(uniforms, label)
        assert torch.equal(got, expected)
        got_logits = torch.stack(recorded)
        assert (got_logits - logits).abs().max() < 1e-10 * max(1, float(logits.abs().max()))
        if height * width == 30:  # they vary along the image
            assert logits.std(0).mean() > 0.1 and len(got.unique()) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_completed_image_keeps_its_rows_and_draws_the_rest(kind):
    model = pixelrnn(kind=kind, event_shape=(1, 5, 4))
    x = on_levels(3, (1, 5, 4), {})
    got = model.complete(x, 2, torch.Generator().manual_seed(0))
    uniforms = torch.rand(5, 4, 3, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # A uniform number of 0 draws a 1, and one of 1 a 0: the naive sampler made to repeat the rows of x.
    uniforms[:2] = 1 - x[:, :, :2].permute(2, 3, 0, 1)
    assert torch.equal(got[:, :, :2], x[:, :, :2]) and torch.equal(got, naive_sample(model, uniforms)[0])


def test_the_sampler_uses_its_generator_and_its_uniforms_in_this_order():
    model = pixelrnn(event_shape=(1, 4, 5))
    got = model.sample(3, torch.Generator().manual_seed(5))
    uniforms = torch.rand(4, 5, 3, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.equal(got, naive_sample(model, uniforms)[0])
    assert not got.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_computes_each_thing_once(kind):
    """All of an image costs no more operations than one pass over it, where the naive sampler makes a pass for every
    pixel. Operations are counted, not seconds, which depend on what else the machine does."""
    torch.manual_seed(0)
    model = PixelRNN((1, 12, 12), kind, hidden=8, layers=3).requires_grad_(False)

    def operations(function):
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    one_pass = operations(lambda: model(torch.zeros(4, 1, 12, 12)))
    assert 0.2 * one_pass < operations(lambda: model.sample(4)) < 1.5 * one_pass


# Bad input


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["log_prob", "loss", "__call__"])
def test_bad_images_are_refused(kind, method):
    function = getattr(pixelrnn(kind=kind, event_shape=(1, 3, 3)), method)
    good = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    function(good)
    for bad, error, match in (
        (good[0], ValueError, "shape"),
        (good[..., :2], ValueError, "shape"),
        (good.long(), TypeError, "floating"),
        (good * math.nan, ValueError, "finite"),
        (good + 0.5, ValueError, "binarise"),
    ):
        with pytest.raises(error, match=match):
            function(bad)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_labels_are_refused(kind):
    model, plain = pixelrnn(kind=kind, event_shape=(1, 3, 3), classes=3), pixelrnn(kind=kind, event_shape=(1, 3, 3))
    x = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    for call in (lambda m, k: m.loss(x, k), lambda m, k: m.sample(2, label=k)):
        call(model, torch.tensor([0, 2]))
        for label, error, match in (
            (None, ValueError, "got None"),
            (torch.tensor([0, 3]), ValueError, "got 3"),
            (torch.tensor([0]), ValueError, "shape"),
            (torch.tensor([0.0, 1.0]), TypeError, "integer"),
        ):
            with pytest.raises(error, match=match):
                call(model, label)
        with pytest.raises(ValueError, match="no classes"):
            call(plain, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"event_shape": (28, 28)}, "event_shape"),
        ({"kind": "plain"}, "'row' or 'diagonal', got 'plain'"),
        ({"output": "gaussian"}, "output"),
        ({"levels": 4}, "levels"),
        ({"hidden": 0}, "hidden"),
        ({"layers": 0}, "layers"),
        ({"classes": 0}, "classes"),
        ({"event_shape": (3, 4, 4), "output": "categorical", "hidden": 16}, "multiple of the 3 colours, got 16"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        PixelRNN(**arguments)


# Precision, devices, learning


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bernoulli", "categorical rgb", "logistic"])
def test_bfloat16_changes_the_loss_little_and_the_density_not_at_all(kind, name):
    colours, arguments = OUTPUTS[name]
    torch.manual_seed(0)
    model = PixelRNN((colours, 8, 8), kind, hidden=12, layers=2, **arguments)
    x = on_levels(8, (colours, 8, 8), arguments).float()
    exact, log_prob = model.loss(x).value, model.log_prob(x)
    drawn = model.sample(2, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.loss(x).value
        assert torch.equal(model.log_prob(x), log_prob)
        assert torch.equal(model.sample(2, torch.Generator().manual_seed(0)), drawn)
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    assert ((rough - exact).abs() < 0.005 * exact.abs()).all()
    exact.sum().backward()
    wanted = [p.grad for p in model.parameters()]
    model.zero_grad()
    rough.sum().backward()
    for p, want in zip(model.parameters(), wanted, strict=True):
        assert p.grad.dtype == torch.float32 and (p.grad - want).norm() < 0.1 * want.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_learns_digits_a_little(kind):
    """At half the size, in seconds, well below independent pixels."""
    generator = torch.Generator().manual_seed(0)
    train, test = (
        torch.bernoulli(F.avg_pool2d(load("mnist6k", split).intensities(), 2), generator=generator)
        for split in ("train", "validation")
    )
    p = train.mean(0).clamp(0.01, 0.99)
    floor = -(test * p.log() + (1 - test) * (1 - p).log()).flatten(1).sum(1).mean()
    torch.manual_seed(0)
    model = PixelRNN((1, 14, 14), kind, hidden=8, layers=1)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        batch = train[torch.randint(len(train), (16,), generator=generator)]
        optimiser.zero_grad()
        model.loss(batch).value.mean().backward()
        optimiser.step()
    with torch.no_grad():
        reached = -model.log_prob(test).mean()
    assert reached < floor - 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none")
@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_agrees_with_the_cpu(kind, name):
    colours, arguments = OUTPUTS[name]
    model = pixelrnn(kind=kind, event_shape=(colours, 5, 5), classes=3, **arguments)
    x, label = on_levels(4, (colours, 5, 5), arguments), torch.tensor([0, 1, 2, 1])
    uniforms = torch.rand(5, 5, 4, model.output.draws, dtype=torch.float64)
    with torch.no_grad():
        expected, drawn = model.log_prob(x, label), model._sample(uniforms, label)
        model.cuda()
        torch.testing.assert_close(model.log_prob(x.cuda(), label.cuda()).cpu(), expected)
        assert (model._sample(uniforms.cuda(), label.cuda()).cpu() - drawn).abs().max() < 1e-12
    generator = torch.Generator("cuda").manual_seed(0)
    assert model.sample(2, generator, label=label[:2].cuda()).is_cuda
    with torch.autocast("cuda", torch.bfloat16):
        rough = model.float().loss(x.float().cuda(), label.cuda()).value
    rough.sum().backward()
    assert rough.isfinite().all()
