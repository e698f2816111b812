"""PixelCNN against enumeration, a pixel-by-pixel sampler, masks by loops, a graph of its taps, and SciPy's logistic."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp
from scipy.stats import logistic
from torch.utils.flop_counter import FlopCounterMode

from companion.conformance import autoregressive, normalised_by_enumeration, sampler_agrees, sampler_repeatable
from companion.data import load
from companion.models.autoregressive import PixelCNN
from companion.models.autoregressive.outputs import LogisticOutput
from companion.models.questions import Density, Learner, Sampler
from companion.nets.masked_conv import MaskedConv2d, VerticalConv2d

KINDS = ("plain", "gated")
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


def pixelcnn(seed=0, scale=2.5, **arguments):
    """A small model in float64 whose conditionals vary: weights larger than at the start."""
    torch.manual_seed(seed)
    model = PixelCNN(**{"hidden": 6, "blocks": 3, **arguments}).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "label" in name:
                parameter.mul_(15)
            elif model.kind == "gated":
                parameter.mul_(scale)
            elif name.endswith("bias"):  # zero at the start
                parameter.normal_(0, 0.3)
            else:
                parameter.mul_(10 if "head.3" in name else scale / 2.5)
    return model


def on_levels(n, event_shape, arguments, seed=1):
    last = levels(arguments) - 1
    x = torch.randint(0, last + 1, (n, *event_shape), generator=torch.Generator().manual_seed(seed))
    return x.double() / last


def all_states(event_shape, count):
    grid = itertools.product(range(count), repeat=math.prod(event_shape))
    return torch.tensor(list(grid), dtype=torch.float64).reshape(-1, *event_shape) / (count - 1)


# Masks


def loop_mask(inputs, outputs, rows, columns, mask, colours, parts):
    allowed = np.zeros((outputs, inputs, rows, columns))
    for o in range(outputs):
        each = outputs // parts
        target = (o % each) // (each // colours)
        for i in range(inputs):
            source = i // (inputs // colours)
            for r in range(rows):
                for c in range(columns):
                    before = r < rows // 2 or (r == rows // 2 and c < columns // 2)
                    centre = r == rows // 2 and c == columns // 2
                    same = source < target or (mask == "B" and source == target)
                    allowed[o, i, r, c] = before or (centre and same)
    return torch.from_numpy(allowed)


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("kernel", [1, 3, 7, (1, 7), (5, 3)])
@pytest.mark.parametrize(("colours", "parts"), [(1, 1), (3, 1), (3, 2)])
def test_masks_are_those_of_the_definition(mask, kernel, colours, parts):
    conv = MaskedConv2d(6, 12, kernel, mask, colours, parts).double()
    expected = loop_mask(6, 12, *conv.kernel_size, mask, colours, parts)
    assert torch.equal(conv.mask, expected)
    # The weight itself stays as it is, masked places included, and gets no gradient there.
    before = conv.weight.detach().clone()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    out = conv(x)
    torch.testing.assert_close(out, F.conv2d(x, before * expected, conv.bias, padding=conv.padding))
    out.sum().backward()
    assert torch.equal(conv.weight, before) and not conv.weight.grad[expected == 0].any()


def test_bad_masks_are_refused():
    for arguments, match in (
        ((3, 3, 4, "A"), "odd"),
        ((3, 3, (3, 2), "A"), "odd"),
        ((3, 3, 3, "C"), "'A' or 'B'"),
        ((4, 3, 3, "A", 3), "divide"),
        ((3, 9, 3, "A", 3, 2), "divide"),
        ((0, 3, 3, "A"), "inputs"),
    ):
        with pytest.raises(ValueError, match=match):
            MaskedConv2d(*arguments)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kernel", [3, 7])
def test_vertical_convolution_is_a_masked_square_one(kernel, strict):
    conv, above = VerticalConv2d(2, 3, kernel, strict).double(), kernel // 2
    square = torch.zeros(3, 2, kernel, kernel, dtype=torch.float64)
    square[:, :, : above + (not strict)] = conv.weight.detach()
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(conv(x), F.conv2d(x, square, conv.bias, padding=above))


# The distribution


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("event_shape", "arguments"),
    [
        ((1, 3, 3), {"output": "bernoulli"}),
        ((1, 2, 4), {"output": "bernoulli"}),
        ((3, 2, 2), {"output": "bernoulli"}),
        ((1, 2, 3), {"output": "categorical", "levels": 4}),
        ((3, 1, 2), {"output": "categorical", "levels": 3}),
        ((2, 2, 1), {"output": "categorical", "levels": 4}),
        ((1, 3, 2), {"output": "logistic", "levels": 4, "mixtures": 3}),
        ((3, 1, 2), {"output": "logistic", "levels": 3, "mixtures": 2}),
        ((2, 2, 1), {"output": "logistic", "levels": 4, "mixtures": 2}),
    ],
)
def test_probabilities_sum_to_one_and_samples_follow_them(kind, event_shape, arguments):
    states = all_states(event_shape, levels(arguments))
    for seed in range(2):
        model = pixelcnn(seed, kind=kind, event_shape=event_shape, **arguments)
        normalised_by_enumeration(model.log_prob, states, tolerance=1e-11).raise_if_failed()
    with torch.no_grad():
        assert model.log_prob(states).std() > 0.5  # not all alike
    sampler_agrees(model.sample, model.log_prob, states=states, n=20_000).raise_if_failed()
    assert sampler_repeatable(model.sample, event_shape).passed


@pytest.mark.parametrize("kind", KINDS)
def test_each_label_has_a_distribution_of_its_own(kind):
    model = pixelcnn(kind=kind, event_shape=(1, 3, 3), classes=3)
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_reaches_every_layer(kind):
    model = pixelcnn(kind=kind, event_shape=(1, 5, 5), classes=3)
    model.loss(on_levels(3, (1, 5, 5), {}), torch.arange(3)).value.sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if "of_class" in name}
    # In the gated model both stacks; the vertical gate of the last layer leads nowhere.
    unused = {"stack.layers.2.vertical_label.of_class.weight"} if kind == "gated" else set()
    assert len(gradients) == (4 if kind == "plain" else 6)
    assert all((name in unused) != (g is not None and bool(g.any(1).all())) for name, g in gradients.items())


def test_the_answers_are_those_of_the_questions():
    model = pixelcnn(event_shape=(1, 4, 4))
    assert isinstance(model, Density) and isinstance(model, Sampler) and isinstance(model, Learner)
    x = on_levels(3, (1, 4, 4), {})
    loss = model.loss(x)
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
    model = pixelcnn(kind=kind, event_shape=shape, hidden=24, scale=1.5, **arguments)
    # A change must keep to the levels; the gradient is of the network alone, which knows none.
    model.output.require = lambda x: None
    # Raster order over the pixels, and the colours within each.
    order = torch.arange(math.prod(shape)).reshape(shape).permute(1, 2, 0).flatten().tolist()
    autoregressive(conditional_parameters(model), on_levels(3, shape, arguments), order).raise_if_failed()


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_of_logistics_sees_no_colour_of_its_own_pixel(kind):
    colours, arguments = OUTPUTS["logistic rgb"]
    model = pixelcnn(kind=kind, event_shape=(colours, 3, 3), **arguments)
    x = on_levels(2, (colours, 3, 3), arguments)
    jacobian = torch.autograd.functional.jacobian(lambda t: model.stack(t, None).abs().sum((0, 1)), x)
    seen = jacobian.abs().sum((2, 3)).reshape(9, 9) > 0
    assert torch.equal(seen, torch.ones(9, 9).tril(-1).bool())
    # The distribution function then brings the colours in, one after the other.
    rgb = all_states((colours, 1, 1), 4)
    single = pixelcnn(kind=kind, event_shape=(colours, 1, 1), **arguments)
    table = single.log_prob(rgb).exp().reshape(4, 4, 4)
    independent = torch.einsum("i,j,k->ijk", table.sum((1, 2)), table.sum((0, 2)), table.sum((0, 1)))
    assert (table - independent).abs().sum() > 0.01


def reached(layers, size, target):
    """The pixels that reach the target through layers of taps, by walking backwards over them one at a time."""
    cells = {target}
    for taps in reversed(layers):
        cells = {(r + dr, c + dc) for r, c in cells for dr, dc in taps if 0 <= r + dr < size and 0 <= c + dc < size}
    return cells


def plain_layers(blocks):
    def masked(half, centre):
        return [
            (r, c)
            for r in range(-half, 1)
            for c in range(-half, half + 1)
            if r < 0 or c < 0 or (r == 0 and c == 0 and centre)
        ]

    return [masked(3, False)] + [masked(1, True)] * blocks


def seen_by(model, size, target):
    x = torch.rand(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(model.stack(x, None)[0, :, target[0], target[1]].sum(), x)
    return {tuple(cell) for cell in (slope[0, 0] != 0).nonzero().tolist()}


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_plain_one_has_the_blind_spot_of_its_taps(blocks):
    size, target = 17, (13, 8)
    model = pixelcnn(kind="plain", event_shape=(1, size, size), blocks=blocks, hidden=8, scale=1.5)
    predicted = reached(plain_layers(blocks), size, target)
    assert seen_by(model, size, target) == predicted
    # Of the rows above within reach, a wedge to the right is out of sight: a row further up shows one column more.
    reach = 3 + blocks
    blind = {
        (r, c)
        for r in range(target[0] - reach, target[0])
        for c in range(size)
        if abs(c - target[1]) <= reach and (r, c) not in predicted
    }
    wedge = {(13 - up, c) for up in range(1, reach + 1) for c in range(8 + 1, 8 + reach + 1) if c - 8 > blind_edge(up)}
    assert blind == {cell for cell in wedge if cell[1] < size} and len(blind) > 0


def blind_edge(up):
    """The furthest column to the right that is seen `up` rows above: 3 with the 7 × 7 taps of one step up, and one for
    each row that a 3 × 3 layer climbs."""
    return 3 + up - 1


@pytest.mark.parametrize("blocks", [1, 4])
def test_the_gated_one_sees_all_before_it_within_reach(blocks):
    size, target = 17, (12, 8)
    model = pixelcnn(kind="gated", event_shape=(1, size, size), blocks=blocks, hidden=8, scale=1.5)
    reach = 3 + blocks - 1
    above = {(r, c) for r in range(12 - reach, 12) for c in range(8 - reach, 8 + reach + 1)}
    left = {(12, c) for c in range(8 - reach, 8)}
    assert seen_by(model, size, target) == above | left


# The discretised logistic


def test_a_discretised_logistic_is_a_difference_of_distribution_functions():
    generator = torch.Generator().manual_seed(0)
    for count in (2, 5, 256):
        head = LogisticOutput(1, count, 3)
        params = torch.randn(1, head.parameters, generator=generator, dtype=torch.float64)
        weights, means, log_scales = params.reshape(3, 3).T.numpy()
        log_scales[:] = [-5.0, -1.0, 0.5]
        means[0] = 0.9
        params = torch.from_numpy(np.stack([weights, means, log_scales], 1)).reshape(1, -1)
        x = torch.arange(count, dtype=torch.float64)[:, None] / (count - 1)
        got = head.log_prob(params.expand(count, -1), x)
        y, half = 2 * x.numpy() - 1, 1 / (count - 1)
        upper = np.where(y > 1 - half, np.inf, y + half)
        lower = np.where(y < -1 + half, -np.inf, y - half)
        scale = np.exp(log_scales)
        mass = logistic.cdf(upper, means, scale) - logistic.cdf(lower, means, scale)
        expected = np.log(mass @ (np.exp(weights - logsumexp(weights))))
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-9)
        assert abs(got.exp().sum() - 1) < 1e-12


@pytest.mark.parametrize("colours", [3, 4])
def test_colours_move_the_means_of_later_ones(colours):
    torch.manual_seed(0)
    pairs = [(later, earlier) for later in range(colours) for earlier in range(later)]
    head = LogisticOutput(colours, 8, 2)
    params = torch.randn(5, 2, 1 + 2 * colours + len(pairs), dtype=torch.float64)
    x = torch.randint(0, 8, (5, colours)).double() / 7
    y = 2 * x.numpy() - 1
    weight, mean, log_scale, coefficient = np.split(params.numpy().copy(), [1, 1 + colours, 1 + 2 * colours], 2)
    for k, (later, earlier) in enumerate(pairs):
        mean[..., later] += np.tanh(coefficient[..., k]) * y[:, None, earlier]
    logs = weight[..., 0] - logsumexp(weight[..., 0], axis=1, keepdims=True)
    for c in range(colours):
        value, scale = y[:, None, c], np.exp(log_scale[..., c])
        upper = np.where(value > 1 - 1 / 7, np.inf, value + 1 / 7)
        lower = np.where(value < -1 + 1 / 7, -np.inf, value - 1 / 7)
        logs = logs + np.log(logistic.cdf(upper, mean[..., c], scale) - logistic.cdf(lower, mean[..., c], scale))
    got = head.log_prob(params.flatten(1), x)
    np.testing.assert_allclose(got.numpy(), logsumexp(logs, axis=1), rtol=1e-9)


def test_a_narrow_logistic_far_away_keeps_its_value_and_gradient():
    head = LogisticOutput(1, 256, 1)
    x = torch.tensor([[0.0], [100 / 255], [1.0]])
    params = torch.tensor([[0.0, 0.9, -20.0]]).repeat(3, 1).requires_grad_()
    got = head.log_prob(params, x)
    got.sum().backward()
    # Far from the mean the logistic's tail falls by 1 / s for a unit; the scale is no less than exp(-7).
    s, y = math.exp(-7), 2 * x[1, 0].item() - 1
    end = y + 1 / 255
    assert got[1].item() == pytest.approx((end - 0.9) / s, rel=1e-4)
    assert got[0].item() == pytest.approx((-1 + 1 / 255 - 0.9) / s, rel=1e-4)
    assert params.grad.isfinite().all() and params.grad[1, 1].item() == pytest.approx(-1 / s, rel=1e-4)


# Sampling


def naive_sample(model, uniforms, label=None):
    """A forward pass of the whole network for every value; its parameters and the values, by the inverse of each
    distribution function in plain NumPy."""
    height, width, n, _ = uniforms.shape
    x = torch.zeros(n, *model.event_shape, dtype=torch.float64)
    kind, count = type(model.output).__name__, getattr(model.output, "levels", 2)
    colours, seen = x.shape[1], []
    for i, j, c in itertools.product(range(height), range(width), range(colours)):
        p = model(x, label)[:, :, i, j].detach()
        seen.append(p.reshape(n, model.output.groups, -1)[:, min(c, model.output.groups - 1)])
        u, here = uniforms[i, j].numpy(), seen[-1].numpy()
        for b in range(n):
            if kind == "BernoulliOutput":
                value = float(u[b, c] < 1 / (1 + math.exp(-here[b, 0])))
            elif kind == "CategoricalOutput":
                cdf = np.cumsum(np.exp(here[b] - logsumexp(here[b])))
                value = np.searchsorted(cdf[:-1], u[b, c], side="right") / (count - 1)
            else:
                each = here[b].reshape(model.output.mixtures, -1)
                cdf = np.cumsum(np.exp(each[:, 0] - logsumexp(each[:, 0])))
                chosen = each[np.searchsorted(cdf[:-1], u[b, -1], side="right")]
                slopes = np.tanh(chosen[1 + 2 * colours + c * (c - 1) // 2 :][:c])
                mean = chosen[1 + c] + slopes @ (2 * x[b, :c, i, j].numpy() - 1)
                y = logistic.ppf(u[b, c], mean, math.exp(max(chosen[1 + colours + c], -7)))
                value = min(max(round((y + 1) / 2 * (count - 1)), 0), count - 1) / (count - 1)
            x[b, c, i, j] = value
    return x, torch.stack(seen)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_draws_what_full_passes_draw(kind, name, classes):
    colours, arguments = OUTPUTS[name]
    model = pixelcnn(kind=kind, event_shape=(colours, 6, 7), classes=classes, **arguments)
    label = None if classes is None else torch.tensor([2, 0, 1, 1])
    uniforms = torch.rand(6, 7, 4, model.output.draws, dtype=torch.float64)
    recorded, draw = [], model.output.draw

    def recording(parameters, pixel, colour, u):
        parts = parameters.reshape(len(parameters), model.output.groups, -1)
        recorded.append(parts[:, min(colour, model.output.groups - 1)].clone())
        return draw(parameters, pixel, colour, u)

    expected, logits = naive_sample(model, uniforms, label)
    model.output.draw = recording
    with torch.no_grad():
        got = model._sample(uniforms, label)
    assert torch.equal(got, expected) or (got - expected).abs().max() < 1e-15
    got_logits = torch.stack(recorded)
    assert (got_logits - logits).abs().max() < 1e-10 * max(1, float(logits.abs().max()))
    assert got_logits.std(0).mean() > 0.1 and got_logits.std(1).mean() > 0.1  # along the image, and between images
    assert len(got.unique()) > 1


def test_the_sampler_uses_its_generator_and_its_uniforms_in_this_order():
    model = pixelcnn(event_shape=(1, 4, 5))
    got = model.sample(3, torch.Generator().manual_seed(5))
    uniforms = torch.rand(4, 5, 3, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.equal(got, naive_sample(model, uniforms)[0])
    assert not got.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_computes_each_thing_once(kind):
    """All of an image costs about as many operations as one pass over it, where the naive sampler makes a pass for
    every pixel. Operations are counted, not seconds, which depend on what else the machine does."""
    torch.manual_seed(0)
    model = PixelCNN((1, 12, 12), kind, hidden=8, blocks=3).requires_grad_(False)

    def operations(function):
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    one_pass = operations(lambda: model(torch.zeros(4, 1, 12, 12)))
    assert 0 < operations(lambda: model.sample(4)) < 2 * one_pass


# Completing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("event_shape", "arguments"),
    [
        ((1, 3, 3), {"output": "bernoulli"}),
        ((3, 2, 2), {"output": "bernoulli"}),
        ((3, 2, 1), {"output": "categorical", "levels": 3}),
        ((3, 2, 1), {"output": "logistic", "levels": 3, "mixtures": 2}),
    ],
)
def test_completions_follow_the_conditional_of_the_rows_above(kind, event_shape, arguments):
    states = all_states(event_shape, levels(arguments))
    for seed, rows in enumerate(range(1, event_shape[1])):
        model = pixelcnn(seed, kind=kind, event_shape=event_shape, **arguments)
        given = on_levels(1, event_shape, arguments, seed)
        same = (states[:, :, :rows] == given[:, :, :rows]).flatten(1).all(1)
        with torch.no_grad():
            total = model.log_prob(states[same]).logsumexp(0)
        generator = torch.Generator().manual_seed(seed)
        sampler_agrees(
            lambda n: model.complete(given.expand(n, -1, -1, -1), rows, generator),  # noqa: B023
            lambda x: model.log_prob(x) - total,  # noqa: B023
            states=states[same],
            n=20_000,
        ).raise_if_failed()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OUTPUTS)
def test_completing_keeps_what_is_given_and_ignores_the_rest(kind, name):
    colours, arguments = OUTPUTS[name]
    model = pixelcnn(kind=kind, event_shape=(colours, 4, 3), classes=2, **arguments)
    x, label = on_levels(20, (colours, 4, 3), arguments), torch.arange(20) % 2
    seed = lambda: torch.Generator().manual_seed(4)  # noqa: E731
    got = model.complete(x, 2, seed(), label)
    assert torch.equal(got[:, :, :2], x[:, :, :2]) and not torch.equal(got[:, :, 2:], x[:, :, 2:])
    other = torch.cat([x[:, :, :2], 1 - x[:, :, 2:]], 2)
    assert torch.equal(model.complete(other, 2, seed(), label), got) and not got.requires_grad
    assert torch.equal(model.complete(x, 4, label=label), x)
    drawn = model.sample(20, seed(), label)
    assert torch.equal(model.complete(x, 0, seed(), label), drawn)
    # What was drawn completes itself, whatever is given of it.
    assert torch.equal(model.complete(drawn, 3, seed(), label), drawn)


def test_bad_completions_are_refused():
    model, x = pixelcnn(event_shape=(1, 3, 3), classes=2), torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    label = torch.tensor([0, 1])
    for rows in (-1, 4, 1.0, True):
        with pytest.raises(ValueError, match=f"rows must be an integer from 0 to 3, got {rows}"):
            model.complete(x, rows, label=label)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 1, 3, 3\)"):
        model.complete(x[:, :, :2], 2, label=label)
    with pytest.raises(ValueError, match="x must hold only 0 and 1"):
        model.complete(x + 0.5, 2, label=label)
    with pytest.raises(ValueError, match="got None"):
        model.complete(x, 2)


# Bad input


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["log_prob", "loss"])
def test_bad_images_are_refused(kind, method):
    binary = getattr(pixelcnn(kind=kind, event_shape=(1, 3, 3)), method)
    four = {"output": "categorical", "levels": 4}
    grey = getattr(pixelcnn(kind=kind, event_shape=(1, 3, 3), **four), method)
    mixture = getattr(pixelcnn(kind=kind, event_shape=(1, 3, 3), output="logistic", levels=4), method)
    good = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    for function in (binary, grey, mixture):
        function(good)
        for bad, error, match in (
            (good[0], ValueError, "shape"),
            (good[..., :2], ValueError, "shape"),
            (good.expand(2, 3, 3, 3), ValueError, "shape"),
            (good.long(), TypeError, "floating"),
            ([0.0], TypeError, "torch.Tensor"),
            (good * math.nan, ValueError, "finite"),
            (good + math.inf, ValueError, "finite"),
            (good + 0.5, ValueError, "must hold only"),
            (good - 1, ValueError, "must hold only"),
            (good + 4 / 3, ValueError, "must hold only"),
            (good + 1 / 255, ValueError, "must hold only"),
        ):
            with pytest.raises(error, match=match):
                function(bad)
    with pytest.raises(ValueError, match="binarise"):
        binary(good + 1 / 3)
    grey(good + 1 / 3)


def test_levels_survive_the_rounding_of_float32():
    torch.manual_seed(0)
    model = PixelCNN((1, 16, 16), output="categorical", hidden=4, blocks=1)
    level = torch.arange(256).reshape(1, 1, 16, 16)
    x = level / 255
    expected = -F.cross_entropy(model(x), level[:, 0], reduction="sum")
    torch.testing.assert_close(model.log_prob(x)[0], expected)
    # Some levels come back a little below their number.
    x = torch.nextafter(x, torch.zeros(()))
    torch.testing.assert_close(model.log_prob(x)[0], expected, atol=1e-2, rtol=0)
    model.double().log_prob(x.double())
    with pytest.raises(ValueError, match="256 levels"):
        model.log_prob(x.double() + 0.01 / 255)


def test_a_categorical_takes_the_logit_of_the_level():
    model = pixelcnn(event_shape=(2, 2, 3), output="categorical", levels=7)
    x = on_levels(2, (2, 2, 3), {"levels": 7})
    logits = model(x).detach()
    for b in range(2):
        total = 0.0
        for c, i, j in itertools.product(range(2), range(2), range(3)):
            row = logits[b, 7 * c : 7 * c + 7, i, j].numpy()
            total += row[round(6 * x[b, c, i, j].item())] - logsumexp(row)
        assert model.log_prob(x)[b].item() == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_labels_are_refused(kind):
    model, plain = pixelcnn(kind=kind, event_shape=(1, 3, 3), classes=3), pixelcnn(kind=kind, event_shape=(1, 3, 3))
    x = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
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


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"event_shape": (28, 28)}, "event_shape"),
        ({"event_shape": (1, 0, 4)}, "event_shape"),
        ({"kind": "rows"}, "kind"),
        ({"output": "gaussian"}, "output"),
        ({"levels": 4}, "levels"),
        ({"output": "categorical", "levels": 1}, "levels"),
        ({"output": "categorical", "levels": 257}, "levels"),
        ({"output": "logistic", "levels": 2.5}, "levels"),
        ({"output": "categorical", "mixtures": 4}, "mixtures"),
        ({"output": "logistic", "mixtures": 0}, "mixtures"),
        ({"hidden": 0}, "hidden"),
        ({"blocks": 0}, "blocks"),
        ({"classes": 0}, "classes"),
        ({"event_shape": (3, 4, 4), "output": "categorical", "hidden": 4}, "multiple of the 3"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        PixelCNN(**arguments)


def test_sample_needs_a_positive_number():
    with pytest.raises(ValueError, match="n must be"):
        pixelcnn(event_shape=(1, 2, 2)).sample(0)


# As published


def test_the_number_of_parameters_is_that_of_the_layers():
    h, blocks = 8, 3
    count = sum(p.numel() for p in PixelCNN(hidden=h, blocks=blocks).parameters())
    block = (2 * h * h + h) + (9 * h * h + h) + (h * 2 * h + 2 * h)
    assert count == (49 * 2 * h + 2 * h) + blocks * block + (2 * h * 2 * h + 2 * h) + (2 * h + 1)
    count = sum(p.numel() for p in PixelCNN(kind="gated", hidden=h, blocks=blocks).parameters())
    mix, link = h * h + h, 2 * h * 2 * h + 2 * h
    first = (3 * 7 * 2 * h + 2 * h) + link + (7 * 2 * h + 2 * h) + mix
    other = (2 * 3 * h * 2 * h + 2 * h) + link + (3 * h * 2 * h + 2 * h) + mix
    assert count == first + (blocks - 1) * other + mix + (h + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_the_papers_layer_by_layer(kind):
    """One colour, written out once more from the parameters alone."""
    model = pixelcnn(kind=kind, event_shape=(1, 6, 5), classes=2, blocks=3)
    p = dict(model.stack.named_parameters())
    x, label = on_levels(2, (1, 6, 5), {}), torch.tensor([1, 0])

    def conv(name, t, mask="B"):
        weight = p[f"{name}.weight"]
        if weight.shape[2:] != (1, 1):
            weight = weight * loop_mask(*weight.shape[1::-1], *weight.shape[2:], mask, 1, 1)
        return F.conv2d(t, weight, p[f"{name}.bias"], padding=tuple(s // 2 for s in weight.shape[2:]))

    def bias(name):
        return p[f"{name}.of_class.weight"][label][:, :, None, None]

    def gated(t):
        half = t.shape[1] // 2
        return torch.tanh(t[:, :half]) * torch.sigmoid(t[:, half:])

    def shifted(name, t, first):
        weight = p[f"{name}.weight"]
        wide = weight.shape[3] // 2
        t = F.pad(t, (wide, wide, wide, 0))
        if first:
            t = t[:, :, :-1]
        return F.conv2d(t, weight, p[f"{name}.bias"])

    if kind == "plain":
        h = conv("first", x, "A") + bias("label_bias")
        for k in range(3):
            u = conv(f"blocks.{k}.spread", F.relu(conv(f"blocks.{k}.narrow", F.relu(h)))) + bias(
                f"blocks.{k}.label_bias"
            )
            h = h + conv(f"blocks.{k}.widen", F.relu(u))
    else:
        v = h = x
        for k in range(3):
            name = f"layers.{k}"
            up = shifted(f"{name}.vertical", v, k == 0)
            own = conv(f"{name}.horizontal", h, "A" if k == 0 else "B") + conv(f"{name}.link", up)
            v = gated(up + bias(f"{name}.vertical_label"))
            new = conv(f"{name}.mix", gated(own + bias(f"{name}.horizontal_label")))
            h = new if k == 0 else h + new
    expected = conv("head.3", F.relu(conv("head.1", F.relu(h))))
    torch.testing.assert_close(model(x, label), expected)


# Precision, devices, learning


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bernoulli", "categorical rgb", "logistic"])
def test_bfloat16_changes_the_loss_little_and_the_density_not_at_all(kind, name):
    colours, arguments = OUTPUTS[name]
    torch.manual_seed(0)
    model = PixelCNN((colours, 8, 8), kind, hidden=12, blocks=2, **arguments)
    x = on_levels(8, (colours, 8, 8), arguments).float()
    exact, log_prob = model.loss(x).value, model.log_prob(x)
    drawn = model.sample(2, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.loss(x).value
        assert torch.equal(model.log_prob(x), log_prob)
        assert torch.equal(model.sample(2, torch.Generator().manual_seed(0)), drawn)
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    assert ((rough - exact).abs() < 0.005 * exact.abs()).all()


def half_size_digits(split):
    pixels = load("mnist6k", split).intensities()
    return torch.bernoulli(F.avg_pool2d(pixels, 2), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_learns_digits_a_little(kind):
    """At half the size, in seconds, well below independent pixels."""
    train, test = half_size_digits("train"), half_size_digits("validation")
    p = train.mean(0).clamp(0.01, 0.99)
    floor = -(test * p.log() + (1 - test) * (1 - p).log()).flatten(1).sum(1).mean()
    torch.manual_seed(0)
    model = PixelCNN((1, 14, 14), kind, hidden=12, blocks=3)
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
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
    model = pixelcnn(kind=kind, event_shape=(colours, 5, 5), classes=3, **arguments)
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
    assert rough.isfinite().all()


def test_features_of_the_plain_one_neither_fade_nor_grow():
    torch.manual_seed(0)
    x = (torch.rand(16, 1, 28, 28) < 0.5).float()
    for blocks in (2, 30):
        stack = PixelCNN(hidden=32, blocks=blocks).stack
        with torch.no_grad():
            h = start = stack.first(x)
            for block in stack.blocks:
                h = block(h, None)
            inside = (..., slice(3, None), slice(3, -3))
            # He et al.: twice the mean square of the inputs. The blocks together add about as much once more.
            assert (start[inside].square().mean() / (2 * x.square().mean())).item() == pytest.approx(1, abs=0.25)
            assert 1.2 < (h[inside].square().mean() / start[inside].square().mean()).item() < 4
            assert stack.head(h).abs().mean() < 0.3
