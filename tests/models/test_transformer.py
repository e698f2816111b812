"""The causal transformer against enumeration, loops over single tokens, and one whole pass for every value."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import erf, logsumexp
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from companion.conformance import autoregressive, normalised_by_enumeration, sampler_agrees, sampler_repeatable
from companion.data import load
from companion.models.autoregressive import CausalTransformer
from companion.models.questions import Density, Learner, Sampler

# A name for each output, with the colours and levels of small images.
OUTPUTS = {
    "bernoulli": (1, {"output": "bernoulli"}),
    "bernoulli rgb": (3, {"output": "bernoulli"}),
    "categorical": (1, {"output": "categorical", "levels": 5}),
    "categorical rgb": (3, {"output": "categorical", "levels": 4}),
}


def levels(arguments):
    return arguments.get("levels", 2)


def transformer(seed=0, **arguments):
    """A small model in float64 whose conditionals vary: weights and biases much larger than at the start."""
    torch.manual_seed(seed)
    model = CausalTransformer(**{"width": 12, "layers": 2, "heads": 3, **arguments}).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (2 if name.startswith(("value", "start")) else 0.5))
    return model


def on_levels(n, event_shape, arguments, seed=1):
    last = levels(arguments) - 1
    x = torch.randint(0, last + 1, (n, *event_shape), generator=torch.Generator().manual_seed(seed))
    return x.double() / last


def all_states(event_shape, count):
    grid = itertools.product(range(count), repeat=math.prod(event_shape))
    return torch.tensor(list(grid), dtype=torch.float64).reshape(-1, *event_shape) / (count - 1)


def raster(event_shape):
    """Row by row, pixel by pixel, and the colours of each."""
    colours, height, width = event_shape
    return [(c, i, j) for i in range(height) for j in range(width) for c in range(colours)]


# The network


def test_attention_is_a_softmax_over_the_tokens_so_far():
    """Of one block, its perceptron silenced, head by head and pair by pair."""
    model = transformer(event_shape=(1, 2, 4), layers=1)
    block = model.blocks[0]
    nn.init.zeros_(block.narrow.weight)
    nn.init.zeros_(block.narrow.bias)
    h = torch.randn(2, 7, 12, dtype=torch.float64)
    with torch.no_grad():
        got = block(h)
        q, k, v = block.queries_keys_values(block.attention_norm(h)).split(12, 2)
    for b in range(2):
        for t in range(7):
            heads = []
            for head in range(3):
                own = slice(4 * head, 4 * head + 4)
                scores = [float(q[b, t, own] @ k[b, s, own]) / 2 for s in range(t + 1)]
                weights = np.exp(scores - logsumexp(scores))
                heads.append(sum(w * v[b, s, own] for s, w in enumerate(weights)))
            expected = h[b, t] + block.mix.weight @ torch.cat(heads) + block.mix.bias
            torch.testing.assert_close(got[b, t], expected.detach(), rtol=1e-12, atol=1e-12)


def slow_forward(model, x, label):
    """The model's parameters in NumPy, one image and one token at a time."""
    p = {name: t.detach().numpy() for name, t in model.named_parameters()}
    width, heads = model.head.in_features, model.blocks[0].heads
    each = width // heads

    def norm(name, h):
        return (h - h.mean()) / np.sqrt(h.var() + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(name, h):
        return p[f"{name}.weight"] @ h + p[f"{name}.bias"]

    def gelu(h):  # the tanh form of GPT-2
        return 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))

    out = torch.zeros(len(x), x.shape[1], model.head.out_features, *x.shape[2:], dtype=torch.float64)
    for b in range(len(x)):
        token, keys, values = p["start.weight"][0 if label is None else label[b]], {}, {}
        for t, (c, i, j) in enumerate(raster(model.event_shape)):
            h = token + p["position.weight"][t]
            for n in range(len(model.blocks)):
                name = f"blocks.{n}"
                u = linear(f"{name}.queries_keys_values", norm(f"{name}.attention_norm", h))
                q = u[:width].reshape(heads, each)
                keys[n, t], values[n, t] = u[width:].reshape(2, heads, each)
                mixed = []
                for head in range(heads):
                    weights = [math.exp(q[head] @ keys[n, s][head] / math.sqrt(each)) for s in range(t + 1)]
                    mixed.append(sum(w * values[n, s][head] for s, w in enumerate(weights)) / sum(weights))
                h = h + linear(f"{name}.mix", np.concatenate(mixed))
                u = gelu(linear(f"{name}.widen", norm(f"{name}.perceptron_norm", h)))
                h = h + linear(f"{name}.narrow", u)
            out[b, c, :, i, j] = torch.from_numpy(p["head.weight"] @ norm("norm", h))
            token = p["value.weight"][round(x[b, c, i, j].item() * (model.levels - 1))]
    return out.flatten(1, 2)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("name", OUTPUTS)
def test_the_network_is_a_loop_over_its_tokens(name, classes):
    colours, arguments = OUTPUTS[name]
    model = transformer(event_shape=(colours, 2, 3), classes=classes, layers=3, **arguments)
    x, label = on_levels(6, (colours, 2, 3), arguments), None if classes is None else torch.arange(6) % 3
    got = model(x, label)
    assert got.shape == (6, model.output.parameters, 2, 3)
    torch.testing.assert_close(got.detach(), slow_forward(model, x, label), rtol=1e-10, atol=1e-10)
    assert got.std(0).mean() > 0.1


def test_its_gelu_is_close_to_the_exact_one():
    x = torch.linspace(-5, 5, 201, dtype=torch.float64)
    exact = x.numpy() / 2 * (1 + erf(x.numpy() / math.sqrt(2)))
    assert np.abs(F.gelu(x, approximate="tanh").numpy() - exact).max() < 1e-3


def test_it_starts_and_counts_as_gpt2_does():
    torch.manual_seed(0)
    layers, width = 3, 96
    model = CausalTransformer((3, 4, 5), "categorical", 7, width=width, layers=layers, heads=2, classes=4)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert torch.equal(p, torch.full_like(p, float("norm" in name and "weight" in name))), name
            continue
        residual = ".mix." in name or ".narrow." in name
        std = 0.02 / math.sqrt(2 * layers) if residual else 0.02
        # five standard errors of a standard deviation, and of a mean
        assert abs(p.std() / std - 1) < 5 / math.sqrt(2 * p.numel()), name
        assert abs(p.mean()) < 5 * std / math.sqrt(p.numel()), name
    tokens = 3 * 4 * 5
    block = 12 * width**2 + 13 * width
    assert sum(p.numel() for p in model.parameters()) == (
        (4 + 7 + tokens) * width + layers * block + 2 * width + width * 7
    )


# The distribution


@pytest.mark.parametrize(
    ("event_shape", "arguments"),
    [
        ((1, 3, 3), {"output": "bernoulli"}),
        ((1, 2, 6), {"output": "bernoulli"}),
        ((3, 2, 2), {"output": "bernoulli"}),
        ((1, 2, 3), {"output": "categorical", "levels": 4}),
        ((3, 1, 2), {"output": "categorical", "levels": 3}),
        ((2, 2, 1), {"output": "categorical", "levels": 4}),
        ((1, 1, 1), {"output": "categorical", "levels": 3}),
    ],
)
def test_probabilities_sum_to_one_and_samples_follow_them(event_shape, arguments):
    states = all_states(event_shape, levels(arguments))
    for seed in range(3):
        model = transformer(seed, event_shape=event_shape, **arguments)
        normalised_by_enumeration(model.log_prob, states, tolerance=1e-11).raise_if_failed()
    with torch.no_grad():
        assert model.log_prob(states).std() > 0.5  # not all alike
    sampler_agrees(model.sample, model.log_prob, states=states, n=20_000).raise_if_failed()
    assert sampler_repeatable(model.sample, event_shape).passed


def test_each_label_has_a_distribution_of_its_own():
    model, states = transformer(event_shape=(1, 3, 3), classes=3), all_states((1, 3, 3), 2)
    tables = []
    for k in range(3):
        tables.append(model.log_prob(states, torch.full((len(states),), k)).exp().detach())
        assert abs(tables[-1].sum() - 1) < 1e-11
        draw = lambda n, k=k: model.sample(n, label=torch.full((n,), k))  # noqa: E731
        table = lambda x, k=k: model.log_prob(x, torch.full((len(x),), k))  # noqa: E731
        sampler_agrees(draw, table, states=states, n=20_000).raise_if_failed()
    assert min((a - b).abs().sum() for a, b in itertools.combinations(tables, 2)) > 0.2
    # A batch of several labels is each of them alone.
    mixed = model.log_prob(states[:3], torch.tensor([2, 0, 1]))
    torch.testing.assert_close(mixed.exp(), torch.stack([tables[2][0], tables[0][1], tables[1][2]]))


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_completions_follow_the_conditional_of_the_rows_above(rows):
    model, states = transformer(event_shape=(1, 3, 3)), all_states((1, 3, 3), 2)
    given = torch.tensor([1, 0, 1, 0, 0, 1, 1, 1, 0], dtype=torch.float64).view(1, 3, 3)
    same = (states[:, :, :rows] == given[:, :rows]).flatten(1).all(1)
    with torch.no_grad():
        total = model.log_prob(states[same]).logsumexp(0)
    generator = torch.Generator().manual_seed(3)
    complete = lambda n: model.complete(given.expand(n, -1, -1, -1), rows, generator)  # noqa: E731
    if rows == 3:
        assert torch.equal(complete(4), given.expand(4, -1, -1, -1))
        return
    sampler_agrees(complete, lambda x: model.log_prob(x) - total, states=states[same], n=20_000).raise_if_failed()


def test_the_answers_are_those_of_the_questions():
    model, x = transformer(event_shape=(1, 4, 4)), on_levels(3, (1, 4, 4), {})
    assert isinstance(model, Density) and isinstance(model, Sampler) and isinstance(model, Learner)
    loss = model.loss(x)
    assert loss.unit == "nats" and torch.equal(loss.value, -model.log_prob(x)) and loss.value.shape == (3,)


# What a conditional may see, and what it does


def conditional_parameters(model):
    """(batch, colours, height, width, parameters), the conditional of each value.

    A level chooses a row of a table, which has no slope: it gets one here, that of its value.
    """

    def function(x):
        values = x.permute(0, 2, 3, 1).flatten(1)[:, :-1, None]
        hook = model.value.register_forward_hook(lambda _, __, rows: rows + (values - values.detach()) * rows.cos())
        p = model(x)
        hook.remove()
        return p.unflatten(1, (x.shape[1], -1)).movedim(2, -1)

    return function


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", OUTPUTS)
def test_each_value_sees_all_before_it_and_nothing_else(name, layers):
    colours, arguments = OUTPUTS[name]
    shape = (colours, 2, 4)
    model, size = transformer(event_shape=shape, layers=layers, **arguments), math.prod(shape)
    # A change must keep to the levels; the network alone knows only their number.
    model.output.require = lambda x: None
    model._embed, embed = lambda values: embed(values % (levels(arguments) / (levels(arguments) - 1))), model._embed
    x, flat = on_levels(3, shape, arguments), torch.arange(size).reshape(shape)
    order = [int(flat[place]) for place in raster(shape)]
    autoregressive(conditional_parameters(model), x, order).raise_if_failed()
    slopes = torch.autograd.functional.jacobian(lambda x: conditional_parameters(model)(x).abs().sum((0, 4)), x)
    reached = (slopes.flatten(3).reshape(size, len(x), size) != 0).any(1)[order][:, order]
    assert torch.equal(reached, torch.ones(size, size).tril(-1).bool())
    moved = torch.zeros(size, size, dtype=torch.bool)
    with torch.no_grad():
        before = model(x).unflatten(1, (colours, -1))
        for j, place in enumerate(raster(shape)):
            changed = x.clone()
            changed[:, *place] = 1 - changed[:, *place]
            difference = (model(changed).unflatten(1, (colours, -1)) - before).abs().amax((0, 2))
            moved[:, j] = torch.stack([difference[place] > 1e-9 for place in raster(shape)])
    assert torch.equal(moved, torch.ones(size, size).tril(-1).bool())


def test_gradients_reach_every_parameter():
    model = transformer(event_shape=(3, 2, 3), output="categorical", levels=4, classes=3)
    model.loss(on_levels(6, (3, 2, 3), {"levels": 4}), torch.arange(6) % 3).value.sum().backward()
    for name, p in model.named_parameters():
        flowing = p.grad.flatten(1).any(1) if p.ndim == 2 else p.grad
        if name.endswith("queries_keys_values.bias"):
            queries, keys, values = p.grad.chunk(3)
            # The same for all tokens, a bias of the keys adds the same to all scores of a softmax.
            assert keys.abs().max() < 1e-9 * queries.abs().max()
            flowing = torch.cat([queries, values])
        assert flowing.all(), name


# Sampling


def naive_sample(model, uniforms, label=None):
    """A pass of the whole network for every value; its parameters and the values, by the inverse of each distribution
    function in plain NumPy."""
    n, count = uniforms.shape[2], model.levels
    x, seen = torch.zeros(n, *model.event_shape, dtype=torch.float64), []
    for c, i, j in raster(model.event_shape):
        p = model(x, label).detach().unflatten(1, (x.shape[1], -1))[:, c, :, i, j]
        seen.append(p)
        for b, here in enumerate(p.numpy()):
            u = uniforms[i, j, b, c].item()
            if len(here) == 1:
                x[b, c, i, j] = float(u < 1 / (1 + math.exp(-here[0])))
            else:
                cdf = np.cumsum(np.exp(here - logsumexp(here)))
                x[b, c, i, j] = np.searchsorted(cdf[:-1], u, side="right") / (count - 1)
    return x, torch.stack(seen)


def record(model):
    """The parameters that each value was drawn from, as they come."""
    recorded, draw = [], model.output.draw

    def recording(parameters, pixel, colour, u):
        recorded.append(parameters.reshape(len(parameters), model.output.groups, -1)[:, colour].clone())
        return draw(parameters, pixel, colour, u)

    model.output.draw = recording
    return recorded


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("name", OUTPUTS)
def test_the_cache_draws_what_whole_passes_draw(name, classes):
    colours, arguments = OUTPUTS[name]
    model = transformer(event_shape=(colours, 4, 5), classes=classes, **arguments)
    label = None if classes is None else torch.tensor([2, 0, 1, 1])
    uniforms = torch.rand(4, 5, 4, colours, dtype=torch.float64)
    expected, logits = naive_sample(model, uniforms, label)
    recorded = record(model)
    got = model._sample(uniforms, label)
    assert torch.equal(got, expected)
    recorded = torch.stack(recorded)
    assert (recorded - logits).abs().max() < 1e-10
    assert recorded.std(0).mean() > 0.1 and recorded.std(1).mean() > 0.1  # along the image, and between images
    assert len(got.unique()) > 1 and not got.requires_grad
    # Given rows are passed through the same cache.
    rest = model._sample(uniforms, label, expected[:, :, :2])
    assert torch.equal(rest, expected)


def test_the_parameters_of_a_pixel_are_those_of_one_pass_once_all_its_colours_are_known():
    model = transformer(event_shape=(3, 2, 2), output="categorical", levels=4)
    x = on_levels(2, (3, 2, 2), {"levels": 4})
    drawing = model._drawing(2, None)
    with torch.no_grad():
        for i in range(2):
            drawing.begin_row()
            for j in range(2):
                for c in range(3):
                    parameters = drawing.pixel(j)
                    drawing.at[j][:, c] = x[:, c, i, j]
                torch.testing.assert_close(parameters, model(x)[:, :, i, j])
            assert torch.equal(drawing.row(), x[:, :, i])


def test_the_sampler_uses_its_generator_and_its_uniforms_in_this_order():
    model = transformer(event_shape=(3, 3, 2))
    got = model.sample(3, torch.Generator().manual_seed(5))
    uniforms = torch.rand(3, 2, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.equal(got, naive_sample(model, uniforms)[0])


def attention_operations(query, key, value, *args, out_shape=None, **kwargs):
    """Of all pairs: that half of them are masked in a whole pass is not counted."""
    return sdpa_flop_count(query, key, value)


def operations(function):
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_operations}
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("side", [8, 12])
def test_the_cache_computes_each_thing_once(side):
    """All of an image costs no more operations than one pass over it, where the naive sampler makes a pass for every
    value. Operations are counted, not seconds, which depend on what else the machine does."""
    tokens, width, layers, n = side**2, 8, 2, 3
    model = CausalTransformer((1, side, side), width=width, layers=layers, heads=2).requires_grad_(False)
    linear = 2 * n * tokens * (layers * 12 * width**2 + width)
    one_pass = operations(lambda: model(torch.zeros(n, 1, side, side)))
    assert one_pass == linear + layers * n * 4 * tokens**2 * width
    # Token t attends to t tokens, itself among them.
    assert operations(lambda: model.sample(n)) == linear + layers * n * 4 * width * tokens * (tokens + 1) // 2


# Bad input


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"event_shape": (28, 28)}, "event_shape must be"),
        ({"event_shape": (1, 0, 4)}, "each size in event_shape"),
        ({"output": "logistic"}, "output must be 'bernoulli' or 'categorical', .* got 'logistic'"),
        ({"output": "gaussian"}, "output must be 'bernoulli' or 'categorical', .* got 'gaussian'"),
        ({"levels": 4}, "levels is for"),
        ({"output": "categorical", "levels": 1}, "levels must lie in 2..256, got 1"),
        ({"width": 0}, "width must be a positive integer, got 0"),
        ({"layers": 0}, "layers must be a positive integer, got 0"),
        ({"heads": 0}, "heads must be a positive integer, got 0"),
        ({"heads": 2.0}, "heads must be a positive integer, got 2.0"),
        ({"width": 10, "heads": 4}, "width must be a multiple of the 4 heads, got 10"),
        ({"classes": 0}, "classes must be a positive integer, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        CausalTransformer(**arguments)


@pytest.mark.parametrize("method", ["log_prob", "loss", "forward"])
def test_bad_images_and_labels_are_refused(method):
    four = {"output": "categorical", "levels": 4}
    binary = getattr(transformer(event_shape=(1, 3, 3)), method)
    grey = getattr(transformer(event_shape=(1, 3, 3), **four), method)
    labelled = getattr(transformer(event_shape=(1, 3, 3), classes=3), method)
    good = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    for function in (binary, grey):
        function(good)
        for bad, error, match in (
            (good[..., :2], ValueError, "shape"),
            (good.long(), TypeError, "floating"),
            (good * math.nan, ValueError, "finite"),
            (good + 0.5, ValueError, "must hold only"),
            (good - 1, ValueError, "must hold only"),
        ):
            with pytest.raises(error, match=match):
                function(bad)
        with pytest.raises(ValueError, match="no classes"):
            function(good, torch.tensor([0, 1]))
    grey(good + 1 / 3)
    labelled(good, torch.tensor([0, 2]))
    for label, error, match in ((None, ValueError, "got None"), (torch.tensor([0, 3]), ValueError, "got 3")):
        with pytest.raises(error, match=match):
            labelled(good, label)


def test_bad_numbers_of_samples_and_rows_are_refused():
    model, x = transformer(event_shape=(1, 2, 2), classes=2), torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="n must be"):
        model.sample(0, label=torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"shape \(2,\) from 0 to 1, got None"):
        model.sample(2)
    with pytest.raises(ValueError, match="rows must be an integer from 0 to 2, got 3"):
        model.complete(x, 3, label=torch.tensor([0, 1]))


# Precision, devices, learning


@pytest.mark.parametrize("name", ["bernoulli", "categorical rgb"])
def test_bfloat16_changes_the_loss_little_and_the_density_not_at_all(name):
    colours, arguments = OUTPUTS[name]
    model = transformer(event_shape=(colours, 6, 6), width=16, heads=2, **arguments).float()
    x = on_levels(8, (colours, 6, 6), arguments).float()
    exact, log_prob = model.loss(x).value, model.log_prob(x)
    drawn = model.sample(2, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.loss(x).value
        rough.mean().backward()
        assert torch.equal(model.log_prob(x), log_prob)
        assert torch.equal(model.sample(2, torch.Generator().manual_seed(0)), drawn)
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    assert ((rough - exact).abs() < 0.01 * exact.abs()).all()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def half_size_digits(split):
    pixels = load("mnist6k", split).intensities()
    return torch.bernoulli(F.avg_pool2d(pixels, 2), generator=torch.Generator().manual_seed(0))


def test_learns_digits_a_little():
    """At half the size, in seconds, below what places alone could give: independent pixels."""
    train, test = half_size_digits("train"), half_size_digits("validation")[:500]
    p = train.mean(0).clamp(0.01, 0.99)
    floor = -(test * p.log() + (1 - test) * (1 - p).log()).flatten(1).sum(1).mean()
    torch.manual_seed(0)
    model = CausalTransformer((1, 14, 14), width=32, layers=1, heads=1)
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        batch = train[torch.randint(len(train), (16,), generator=generator)]
        optimiser.zero_grad()
        model.loss(batch).value.mean().backward()
        optimiser.step()
    with torch.no_grad():
        reached = -model.log_prob(test).mean()
    assert reached < floor - 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none")
@pytest.mark.parametrize("name", OUTPUTS)
def test_cuda_agrees_with_the_cpu(name):
    colours, arguments = OUTPUTS[name]
    model = transformer(event_shape=(colours, 5, 5), classes=3, **arguments)
    x, label = on_levels(4, (colours, 5, 5), arguments), torch.tensor([0, 1, 2, 1])
    uniforms = torch.rand(5, 5, 4, colours, dtype=torch.float64)
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
