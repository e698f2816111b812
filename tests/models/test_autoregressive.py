"""FVSBN, NADE and MADE against enumeration, loops over their published formulas, and one forward pass per pixel."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit
from torch import nn

from companion.conformance import (
    all_binary,
    autoregressive,
    check,
    normalised_by_enumeration,
    sampler_agrees,
)
from companion.data import load
from companion.models import IndependentPixels
from companion.models.autoregressive import FVSBN, MADE, NADE
from companion.models.autoregressive.nade import Recurrence
from companion.models.questions import Density, Learner, Sampler
from companion.nets.masked import MaskedLinear
from companion.training import Settings, fit

SIZE = 6


def orders(count, pixels=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(pixels, generator=generator) for _ in range(count)])


# name: a model of images of the given shape, with or without classes
MODELS = {
    "fvsbn": lambda shape, classes: FVSBN(shape, classes),
    "nade": lambda shape, classes: NADE(shape, 7, classes),
    "nade, one other order": lambda shape, classes: NADE(shape, 7, classes, orders(1, math.prod(shape), 5)),
    "eonade": lambda shape, classes: NADE(shape, 7, classes, orders(3, math.prod(shape)), orderless=True),
    "made": lambda shape, classes: MADE(shape, (40,), classes),
    "made, three layers": lambda shape, classes: MADE(shape, (24, 40, 32), classes, masks=(1,)),
    "made, direct": lambda shape, classes: MADE(shape, (24, 24), classes, masks=(2,), direct=True),
    "made, shuffled": lambda shape, classes: MADE(shape, (40, 32), classes, masks=(3,), shuffle=True),
    "made, four masks": lambda shape, classes: MADE(shape, (40, 40), classes, masks=(7, 1, 8, 2)),
    "made, four orders": lambda shape, classes: MADE(
        shape, (9, 8), classes, masks=(7, 1, 8, 2), shuffle=True, direct=True
    ),
}
ENSEMBLES = ("eonade", "made, four masks", "made, four orders")
SINGLE = tuple(name for name in MODELS if name not in ENSEMBLES)


def build(name, shape=(2, 3), classes=None, seed=0):
    """In float64, with weights that make its logits vary, and no more than a probability can bear."""
    torch.manual_seed(seed)
    model = MODELS[name](shape, classes).double()
    with torch.no_grad():
        for key, p in model.named_parameters():
            scale = 2.5 / math.sqrt(p.shape[1]) if key == "out" or key.endswith(".weight") else 1.0
            p.copy_(scale * torch.randn_like(p))
    return model


def binary(n, shape=(2, 3), seed=0, dtype=torch.float64):
    return torch.randint(2, (n, *shape), generator=torch.Generator().manual_seed(seed)).to(dtype)


def parameter(model, name):
    return model.get_parameter(name).detach().numpy()


def naive(model, uniforms, label, which):
    """The sampler that every autoregressive model has: a whole forward pass for each pixel. And its logits."""
    components = model._components()
    x, logits = torch.zeros_like(uniforms), torch.zeros_like(uniforms)
    with torch.no_grad():
        for i, k in enumerate(which.tolist()):
            row, y = x[i : i + 1], None if label is None else label[i : i + 1]
            for d in place_to_pixel(model, k):
                logits[i, d] = model._logits(row, y, components[k])[0, d]
                row[0, d] = float(uniforms[i, d] < logits[i, d].sigmoid())
    return x, logits


def place_to_pixel(model, component=0):
    if isinstance(model, NADE):
        return model.orders[component].tolist()
    if isinstance(model, MADE):
        return model.degrees(component)[0].argsort().tolist()
    return list(range(model.pixels))


# --- one distribution


@pytest.mark.parametrize("name", MODELS)
def test_normalised_and_sampled(name):
    model = build(name)
    assert isinstance(model, Density) and isinstance(model, Sampler) and isinstance(model, Learner)
    check(model, support="binary", n=20_000).raise_if_failed()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("label", [0, 2])
def test_normalised_and_sampled_for_each_class(name, label):
    model = build(name, classes=3)
    log_prob = lambda x: model.log_prob(x, torch.full((len(x),), label))  # noqa: E731
    normalised_by_enumeration(log_prob, all_binary((2, 3), torch.float64)).raise_if_failed()
    sample = lambda n: model.sample(n, label=torch.full((n,), label))  # noqa: E731
    sampler_agrees(sample, log_prob, states=all_binary((2, 3), torch.float64)).raise_if_failed()


@pytest.mark.parametrize("name", ["fvsbn", "nade", "nade, one other order", "made", "made, direct"])
def test_normalised_with_twelve_pixels(name):
    normalised_by_enumeration(build(name, (3, 4)).log_prob, all_binary((3, 4), torch.float64)).raise_if_failed()


@pytest.mark.parametrize("seed", range(5))
def test_normalised_for_every_seed_and_order(seed):
    states = all_binary((8,), torch.float64)
    for shuffle, direct in itertools.product((False, True), repeat=2):
        torch.manual_seed(seed)
        model = MADE((8,), (5, 6), masks=(seed,), shuffle=shuffle, direct=direct).double()
        for p in model.parameters():
            nn.init.normal_(p)
        normalised_by_enumeration(model.log_prob, states).raise_if_failed()
    model = NADE((8,), 5, orderless=True).double()
    log_prob = lambda x: model.log_prob(x, orders=orders(4, 8, seed))  # noqa: E731
    normalised_by_enumeration(log_prob, states).raise_if_failed()


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("classes", [None, 3])
def test_logits_are_those_of_the_joint_tables_conditionals(name, classes):
    model, states = build(name, classes=classes), all_binary((SIZE,), torch.float64)
    label = None if classes is None else torch.full((len(states),), 1)
    p = model.log_prob(states.view(-1, 2, 3), label).exp().detach()
    logits = model.logits(states.view(-1, 2, 3), label).flatten(1).detach()
    order = place_to_pixel(model)
    for i, state in enumerate(states):
        for place, d in enumerate(order):
            before = order[:place]
            same = (states[:, before] == state[before]).all(1)
            one = p[same & (states[:, d] == 1)].sum() / p[same].sum()
            assert logits[i, d].sigmoid().item() == pytest.approx(one.item(), abs=1e-12)


# --- who sees whom


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("classes", [None, 3])
def test_each_pixel_sees_the_earlier_ones_only(name, classes):
    model, x = build(name, classes=classes), binary(24)
    label = None if classes is None else torch.arange(24) % 3
    for k, component in enumerate(model._components()):
        logits = lambda x, component=component: model._logits(x.flatten(1), label, component)  # noqa: E731
        autoregressive(logits, x, place_to_pixel(model, k)).raise_if_failed()


@pytest.mark.parametrize("name", SINGLE)
def test_each_pixel_sees_all_the_earlier_ones(name):
    model, x = build(name), binary(40)
    rank = torch.tensor(place_to_pixel(model)).argsort()
    earlier = rank[None, :] < rank[:, None]
    gradients = torch.autograd.functional.jacobian(lambda x: model.logits(x).flatten(1).sum(0), x).flatten(2)
    assert torch.equal((gradients != 0).any(1), earlier)
    before, moved = model.logits(x).flatten(1), torch.zeros(SIZE, SIZE, dtype=torch.bool)
    for j in range(SIZE):
        flipped = x.flatten(1).clone()
        flipped[:, j] = 1 - flipped[:, j]
        moved[:, j] = ((model.logits(flipped.view_as(x)).flatten(1) - before).abs() > 1e-9).any(0)
    assert torch.equal(moved, earlier)


@pytest.mark.parametrize("name", MODELS)
def test_each_pixel_sees_the_label(name):
    model, x = build(name, classes=3), binary(1).expand(3, -1, -1)
    for component in model._components():
        logits = model._logits(x.flatten(1), torch.arange(3), component)
        assert ((logits[0] - logits[1:]).abs() > 1e-3).all()
    # the hidden units see it, too: the difference between classes depends on the pixels
    if not isinstance(model, FVSBN):
        other = model._logits(1 - x.flatten(1), torch.arange(3), component)
        assert ((other - other[0]) - (logits - logits[0])).abs().max() > 1e-3


# --- the published formulas


def test_fvsbn_is_a_row_of_logistic_regressions():
    model, x = build("fvsbn", classes=2), binary(5)
    weight, bias = parameter(model, "regressions.weight"), parameter(model, "bias")
    by_label = parameter(model, "label_bias")
    got, label = model.log_prob(x, torch.tensor([0, 1, 1, 0, 1])), [0, 1, 1, 0, 1]
    for i, row in enumerate(x.flatten(1).numpy()):
        total = 0.0
        for d in range(SIZE):
            logit = bias[d] + by_label[label[i], d] + sum(weight[d, j] * row[j] for j in range(d))
            total += log_expit(logit if row[d] else -logit)
        assert got[i].item() == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("name", ["nade", "nade, one other order", "eonade"])
@pytest.mark.parametrize("classes", [None, 2])
def test_nade_is_its_naive_evaluation_with_one_pass_per_pixel(name, classes):
    model, x = build(name, classes=classes), binary(5)
    label = None if classes is None else torch.tensor([0, 1, 1, 0, 1])
    weight, out, bias, c = (parameter(model, n) for n in ("weight", "out", "bias", "hidden_bias"))
    got = model.log_prob(x, label)
    for i, row in enumerate(x.flatten(1).numpy()):
        b_i, c_i = bias, c
        if classes:
            b_i = bias + parameter(model, "label_bias")[label[i]]
            c_i = c + parameter(model, "label_hidden_bias")[label[i]]
        by_order = []
        for order in model.orders.tolist():
            total = 0.0
            for place, d in enumerate(order):
                h = c_i.copy()
                for j in order[:place]:
                    h += weight[j] * row[j]
                    if model.given is not None:
                        h += parameter(model, "given")[j]
                logit = b_i[d] + out[d] @ expit(h)
                total += log_expit(logit if row[d] else -logit)
            by_order.append(total)
        assert got[i].item() == pytest.approx(np.logaddexp.reduce(by_order) - math.log(len(by_order)), abs=1e-12)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("made")])
def test_made_masks_are_exactly_by_degree(name):
    model = build(name)
    for k in range(len(model._components())):
        degrees = [layer.tolist() for layer in model.degrees(k)]
        assert sorted(degrees[0]) == list(range(1, SIZE + 1))
        if "shuffled" not in name and "orders" not in name:
            assert degrees[0] == list(range(1, SIZE + 1))
        for below, layer, masked in zip(degrees, degrees[1:], model.layers, strict=False):
            assert min(below) <= min(layer) and max(layer) <= SIZE - 1
            for u, v in itertools.product(range(len(layer)), range(len(below))):
                assert masked.mask(k)[u, v].item() == (layer[u] >= below[v])
        for d, u in itertools.product(range(SIZE), range(len(degrees[-1]))):
            assert model.output.mask(k)[d, u].item() == (degrees[0][d] > degrees[-1][u])
        if model.direct is not None:
            for d, e in itertools.product(range(SIZE), repeat=2):
                assert model.direct.mask(k)[d, e].item() == (degrees[0][d] > degrees[0][e])


def test_made_degrees_are_uniform_and_differ_between_seeds():
    model = MADE((5,), (4000, 4000), masks=(0, 1), shuffle=True)
    (order, first, second), (other_order, other, _) = model.degrees(0), model.degrees(1)
    counts = torch.stack([layer.bincount(minlength=6)[1:5] for layer in (first, second)])
    assert first.max() == second.max() == 4 and first.min() == second.min() == 1
    # five standard errors of a binomial with probability 1/4
    assert (counts - 1000).abs().max() < 5 * math.sqrt(4000 * 3 / 16)
    assert not torch.equal(order, other_order) and not torch.equal(first, other)
    again = MADE((5,), (4000, 4000), masks=(1,), shuffle=True).degrees()
    assert torch.equal(again[0], other_order) and torch.equal(again[1], other)


def test_made_has_no_hidden_unit_without_an_input():
    for seed in range(30):
        _, first, second, third = MADE((9,), (2, 2, 2), masks=(seed,)).degrees()
        assert first.min() <= second.min() <= third.min()


@pytest.mark.parametrize("classes", [None, 2])
@pytest.mark.parametrize("direct", [False, True])
def test_made_is_its_masked_matrices(direct, classes):
    name = "made, direct" if direct else "made, shuffled"
    model, x = build(name, classes=classes), binary(5)
    label = None if classes is None else torch.tensor([0, 1, 1, 0, 1])
    degrees = [layer.numpy() for layer in model.degrees()]
    got = model.log_prob(x, label)
    for i, row in enumerate(x.flatten(1).numpy()):
        h = row
        for l in range(2):
            mask = degrees[l + 1][:, None] >= degrees[l][None]
            h = (parameter(model, f"layers.{l}.weight") * mask) @ h + parameter(model, f"layers.{l}.bias")
            if classes and l == 0:
                h = h + parameter(model, "label_hidden_bias")[label[i]]
            h = np.maximum(h, 0)
        logits = (parameter(model, "output.weight") * (degrees[0][:, None] > degrees[2][None])) @ h
        logits = logits + parameter(model, "bias")
        if classes:
            logits = logits + parameter(model, "label_bias")[label[i]]
        if direct:
            logits = logits + (parameter(model, "direct.weight") * (degrees[0][:, None] > degrees[0][None])) @ row
        assert got[i].item() == pytest.approx(log_expit((2 * row - 1) * logits).sum(), abs=1e-12)


@pytest.mark.parametrize("name", SINGLE)
def test_the_density_is_the_product_of_conditionals_that_never_see_later_pixels(name):
    model, x = build(name), binary(16).flatten(1)
    order, total = place_to_pixel(model), torch.zeros(16, dtype=torch.float64)
    for place, d in enumerate(order):
        changed = x.clone()
        changed[:, order[place:]] = binary(16, (SIZE - place,), seed=place)
        logit = model.logits(changed.view(-1, 2, 3)).flatten(1)[:, d]
        total += torch.where(x[:, d] == 1, logit.sigmoid(), (-logit).sigmoid()).log()
    torch.testing.assert_close(model.log_prob(x.view(-1, 2, 3)), total)


def test_an_ensemble_is_the_mean_of_its_members_probabilities():
    x = binary(10)
    model = build("made, four orders")
    members = []
    for k, seed in enumerate((7, 1, 8, 2)):
        member = MADE((2, 3), (9, 8), masks=(seed,), shuffle=True, direct=True).double()
        member.load_state_dict(
            {n: t[k : k + 1] if "inputs" in n or "outputs" in n else t for n, t in model.state_dict().items()}
        )
        fresh = MADE((2, 3), (9, 8), masks=(seed,), shuffle=True, direct=True)
        assert all(torch.equal(a, b) for a, b in zip(member.buffers(), fresh.buffers(), strict=True))
        members.append(member.log_prob(x).exp())
        torch.testing.assert_close(model.logits(x, which=k), member.logits(x))
    torch.testing.assert_close(model.log_prob(x), torch.stack(members).mean(0).log())
    assert torch.stack(members).std(0).min() > 1e-6

    model = build("eonade")
    members = [model.log_prob(x, orders=order[None]).exp() for order in model.orders]
    torch.testing.assert_close(model.log_prob(x), torch.stack(members).mean(0).log())
    torch.testing.assert_close(model.log_prob(x, orders=model.orders[[0, 2]]), (members[0] + members[2]).div(2).log())
    torch.testing.assert_close(
        model.logits(x, order=model.orders[1]), model._logits(x.flatten(1), None, model.orders[1]).view_as(x)
    )
    assert torch.stack(members).std(0).min() > 1e-6


# --- NADE's own gradient


def recurrence_by_definition(x, start, weight, out, shift):
    """Every hidden state from scratch; autograd does the rest."""
    logits = []
    for d in range(x.shape[1]):
        a = start + x[:, :d] @ weight[:d]
        if shift is not None:
            a = a + shift[:d].sum(0)
        logits.append(a.sigmoid() @ out[d])
    return torch.stack(logits, 1)


def recurrence_inputs(shift, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = ((4, 5), (4, 3), (5, 3), (5, 3), (5, 3))
    inputs = [torch.randn(*s, dtype=torch.float64, generator=generator).requires_grad_() for s in sizes]
    return inputs if shift else [*inputs[:-1], None]


@pytest.mark.parametrize("shift", [False, True])
def test_the_recurrences_gradient_is_right(shift):
    inputs = recurrence_inputs(shift)
    assert torch.autograd.gradcheck(Recurrence.apply, inputs)
    weights = torch.randn(4, 5, dtype=torch.float64)
    leaves = [t for t in inputs if t is not None]
    got, expected = Recurrence.apply(*inputs), recurrence_by_definition(*inputs)
    torch.testing.assert_close(got, expected)
    ours = torch.autograd.grad((got * weights).sum(), leaves, retain_graph=True)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    torch.testing.assert_close(ours, theirs)
    # a second pass back, and one without the gradient of x, find the same
    torch.testing.assert_close(torch.autograd.grad((got * weights).sum(), leaves), theirs)
    inputs[0] = inputs[0].detach()
    without = torch.autograd.grad((Recurrence.apply(*inputs) * weights).sum(), leaves[1:])
    torch.testing.assert_close(without, theirs[1:])


def test_the_recurrence_leaves_its_inputs_alone():
    inputs = [t.detach() for t in recurrence_inputs(True)]
    copies = [t.clone() for t in inputs]
    start = inputs[1].clone().requires_grad_()
    Recurrence.apply(inputs[0], start, *inputs[2:]).sum().backward()
    assert torch.equal(start, copies[1])
    assert all(torch.equal(t, c) for t, c in zip(inputs, copies, strict=True))


def test_the_gradient_has_no_gradient_of_its_own():
    x, start, *rest = recurrence_inputs(False)
    [gradient] = torch.autograd.grad(Recurrence.apply(x, start, *rest).square().sum(), start, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_the_loss_are_those_of_finite_differences(name):
    model, x, label = build(name, classes=2), binary(4), torch.tensor([0, 1, 1, 0])

    def loss():
        torch.manual_seed(3)
        return model.loss(x, label).value.sum()

    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss(), list(parameters.values()))
    with torch.no_grad():
        for (key, p), gradient in zip(parameters.items(), gradients, strict=True):
            direction = torch.randn_like(p)
            expected = (gradient * direction).sum().item()
            p += 1e-5 * direction
            high = loss()
            p -= 2e-5 * direction
            low = loss()
            p += 1e-5 * direction
            assert ((high - low) / 2e-5).item() == pytest.approx(expected, rel=1e-6, abs=1e-7), key


def test_masked_weights_get_no_gradient_and_keep_their_values():
    for model in (build("fvsbn"), build("made, direct")):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        model.loss(binary(50)).value.mean().backward()
        for name, layer in model.named_modules():
            if isinstance(layer, MaskedLinear):
                cut = ~layer.mask()
                assert cut.any() and not layer.weight.grad[cut].any() and layer.weight.grad.any()
                assert torch.equal(layer.weight, before[f"{name}.weight"]) and layer.weight[cut].all()


# --- losses


@pytest.mark.parametrize("name", SINGLE)
def test_the_loss_is_minus_the_log_density_in_nats(name):
    model, x, label = build(name, classes=3), binary(6), torch.arange(6) % 3
    loss = model.loss(x, label)
    torch.testing.assert_close(loss.value, -model.log_prob(x, label))
    assert loss.unit == "nats"


@pytest.mark.parametrize("name", ["made, four masks", "made, four orders"])
def test_an_ensembles_loss_is_that_of_a_random_member(name):
    model, x = build(name), binary(6)
    members = [-model._log_likelihood(x.flatten(1), None, k) for k in range(4)]
    torch.manual_seed(0)
    found = []
    for _ in range(60):
        loss = model.loss(x)
        assert loss.unit == "nats, of one component"
        found.append(next(k for k, member in enumerate(members) if torch.allclose(loss.value, member)))
    assert set(found) == {0, 1, 2, 3}
    # Jensen: in the mean above minus the log density
    assert (torch.stack(members).mean(0) > -model.log_prob(x)).all()


@pytest.mark.parametrize("classes", [None, 2])
def test_the_orderless_loss_is_unbiased(classes):
    """Over all 24 orders and all d, its mean is that of -log p over the orders."""
    torch.manual_seed(0)
    model = NADE((4,), 5, classes, orderless=True).double()
    for p in model.parameters():
        nn.init.normal_(p)
    x = all_binary((4,), torch.float64)
    label = None if classes is None else torch.arange(16) % 2
    every = torch.tensor(list(itertools.permutations(range(4))))
    expected = torch.stack([-model.log_prob(x, label, orders=order[None]) for order in every]).mean(0)
    losses = []
    for order in every:
        for count in range(4):
            given = torch.zeros_like(x, dtype=torch.bool)
            given[:, order[:count]] = True
            losses.append(model._orderless(x, given, label))
    torch.testing.assert_close(torch.stack(losses).mean(0), expected)

    # and what `loss` draws is uniform over the orders and d
    many = x[5].expand(40_000, -1)
    torch.manual_seed(1)
    with torch.no_grad():
        loss = model.loss(many, None if classes is None else torch.ones(len(many), dtype=torch.long))
    error = loss.value.std() / math.sqrt(len(many))
    assert loss.unit == "nats, mean over orders"
    assert abs(loss.value.mean() - expected[5]) < 5 * error < 0.2


def test_the_orderless_loss_does_not_look_at_what_it_predicts():
    model = build("eonade")
    given = binary(8, (SIZE,), seed=4) == 1
    given[0], given[1] = False, torch.tensor([True] * 5 + [False])
    x = binary(8, (SIZE,)).requires_grad_()
    start = model._start(None, 8) + (x * given) @ model.weight + given.double() @ model.given
    logits = start.sigmoid() @ model.out.T + model.bias
    expected = -(SIZE / (~given).sum(1)) * ((2 * x - 1) * logits).sigmoid().log().mul(~given).sum(1)
    torch.testing.assert_close(model._orderless(x, given, None), expected)


# --- samplers


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("classes", [None, 3])
def test_the_cached_sampler_is_the_naive_one(name, classes):
    model, n = build(name, (3, 5), classes), 40
    generator = torch.Generator().manual_seed(2)
    uniforms = torch.rand(n, 15, dtype=torch.float64, generator=generator)
    label = None if classes is None else torch.randint(3, (n,), generator=generator)
    components = model._components()
    which = torch.randint(len(components), (n,), generator=generator)
    x, logits = naive(model, uniforms, label, which)
    assert torch.equal(model._sample(uniforms, label, which).flatten(1), x)
    for k, component in enumerate(components):
        rows = which == k
        with torch.no_grad():
            y = None if label is None else label[rows]
            drawn, cached = model._draw(uniforms[rows].logit(), y, component)
        assert torch.equal(drawn, x[rows])
        torch.testing.assert_close(cached, logits[rows], rtol=0, atol=1e-10)
    assert logits.std(0).max() > 0.3 and len(x.unique(dim=0)) > 20


@pytest.mark.parametrize("name", MODELS)
def test_sampling_uses_its_generator_its_labels_and_its_shape(name):
    model = build(name, classes=3)
    label = torch.arange(12) % 3
    draw = lambda seed: model.sample(12, torch.Generator().manual_seed(seed), label=label)  # noqa: E731
    assert draw(0).shape == (12, 2, 3) and draw(0).dtype == torch.float64
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert not draw(0).requires_grad


def test_an_ensemble_samples_all_of_its_members():
    """With orders and biases alone there is nothing to tell members apart; with weights there is."""
    for name in ENSEMBLES:
        model = build(name)
        sampler_agrees(
            model.sample, model.log_prob, states=all_binary((2, 3), torch.float64), n=50_000
        ).raise_if_failed()


# --- completing


# name: a model of images of 2 × 3, each of whose components takes the first row first
COMPLETING = {
    **{name: MODELS[name] for name in ("fvsbn", "nade", "made", "made, three layers", "made, direct")},
    "made, four masks": MODELS["made, four masks"],
    "nade, an order within each row": lambda shape, classes: NADE(
        shape, 7, classes, torch.tensor([[2, 0, 1, 5, 3, 4]])
    ),
    "eonade, orders within each row": lambda shape, classes: NADE(
        shape, 7, classes, torch.tensor([[2, 0, 1, 5, 3, 4], [0, 1, 2, 3, 4, 5], [1, 2, 0, 4, 5, 3]]), orderless=True
    ),
}


def build_completing(name, classes=None, shape=(2, 3), seed=0):
    """As `build`, and with larger weights in mixtures, so that the given row tells the components apart."""
    torch.manual_seed(seed)
    model = COMPLETING[name](shape, classes).double()
    with torch.no_grad():
        for key, p in model.named_parameters():
            scale = 2.5 / math.sqrt(p.shape[1]) if key == "out" or key.endswith(".weight") else 1.0
            p.copy_(scale * torch.randn_like(p))
            if len(model._components()) > 1 and ("bias" not in key or "label" in key):
                p.mul_(3)
    return model


def rest_given(model, given, label=None):
    """The states whose first row is that of `given`, and log p(rest|given) of each, from the table of all states."""
    states = all_binary((2, 3), torch.float64)
    table = model.log_prob(states, None if label is None else torch.full((len(states),), label)).detach()
    same = (states[:, 0] == given[0]).all(1)
    return states[same], table[same] - table[same].logsumexp(0)


def follows(sample, states, logs):
    index = lambda x: (x.flatten(1) @ 2.0 ** torch.arange(6).double()).long()  # noqa: E731
    place = {int(i): k for k, i in enumerate(index(states))}
    log_prob = lambda x: logs[torch.tensor([place[int(i)] for i in index(x)])]  # noqa: E731
    return sampler_agrees(sample, log_prob, states=states, n=20_000)


@pytest.mark.parametrize("name", COMPLETING)
@pytest.mark.parametrize("row", [(1, 0, 1), (0, 0, 1), (1, 1, 0)])
def test_completions_follow_the_conditional_of_the_rows_above(name, row):
    model = build_completing(name)
    given = torch.tensor([row, (1, 0, 0)], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    complete = lambda n: model.complete(given.expand(n, -1, -1), 1, generator)  # noqa: E731
    assert (complete(50)[:, 0] == given[0]).all()
    follows(complete, *rest_given(model, given)).raise_if_failed()


@pytest.mark.parametrize("name", ["made, four masks", "eonade, orders within each row"])
def test_a_component_chosen_without_a_look_at_the_rows_above_would_be_found(name):
    model, given = build_completing(name), torch.tensor([(1, 0, 1), (1, 0, 0)], dtype=torch.float64)
    states, logs = rest_given(model, given)
    components = model._components()

    def uniform(n):
        which = torch.randint(len(components), (n,))
        uniforms = torch.rand(n, SIZE, dtype=torch.float64)
        uniforms[:, :3] = 1 - given[0]
        return model._sample(uniforms, None, which)

    torch.manual_seed(0)
    assert follows(uniform, states, logs).passed is False


@pytest.mark.parametrize("name", ["nade", "made", "made, four masks", "eonade, orders within each row"])
def test_completions_of_a_class_follow_its_own_conditional(name):
    model, given = build_completing(name, classes=3), torch.tensor([(0, 1, 1), (1, 0, 0)], dtype=torch.float64)
    for k in (0, 2):
        generator = torch.Generator().manual_seed(k)
        complete = lambda n, k=k, generator=generator: model.complete(  # noqa: E731
            given.expand(n, -1, -1), 1, generator, torch.full((n,), k)
        )
        follows(complete, *rest_given(model, given, k)).raise_if_failed()


@pytest.mark.parametrize("name", COMPLETING)
def test_completing_keeps_what_is_given_and_ignores_the_rest(name):
    model, x = build_completing(name), binary(200)
    seed = lambda: torch.Generator().manual_seed(4)  # noqa: E731
    got = model.complete(x, 1, seed())
    assert torch.equal(got[:, 0], x[:, 0]) and not torch.equal(got[:, 1], x[:, 1]) and not got.requires_grad
    other = torch.stack([x[:, 0], 1 - x[:, 1]], 1)
    assert torch.equal(model.complete(other, 1, seed()), got)
    assert torch.equal(model.complete(x, 2), x)
    assert torch.equal(model.complete(x, 0, seed()), model.sample(200, seed()))
    # Thousands, of which rounded posteriors would send some to another component.
    model, x = model.float(), x.float().repeat(25, 1, 1)
    got = model.complete(x, 1, seed())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.complete(x, 1, seed()), got)


def test_a_component_with_the_rows_above_impossible_is_not_drawn():
    """Two components, one certain of ones and the other of zeros; which is which depends on the label."""
    model, label = MADE((1, 2, 2), (4,), classes=2, masks=(0, 1)).double(), torch.arange(100) % 2
    sign, strength = torch.tensor([1.0, -1.0]).double(), torch.tensor([9.0, 9.0, 30.0, 30.0]).double()
    model._logits = lambda x, label, which: sign[which] * sign[label][:, None] * strength
    model._draw = lambda u, label, which: ((u < model._logits(None, label, which)).double(), None)
    x = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]).double().expand(100, -1, -1, -1)
    assert (model.complete(x, 1, label=label) == 1).all()


def test_rows_are_in_the_last_but_one_dimension():
    x = binary(3, (1, 2, 3))
    assert torch.equal(build_completing("made", shape=(1, 2, 3)).complete(x, 1)[:, :, 0], x[:, :, 0])
    for shape in ((6,), (2, 1, 3), (3, 2, 1, 1)):
        model = FVSBN(shape).double()
        with pytest.raises(
            ValueError, match=rf"\(1, height, width\) or \(height, width\), got {re.escape(str(shape))}"
        ):
            model.complete(binary(2, shape), 1)


@pytest.mark.parametrize("name", ["nade, one other order", "eonade", "made, shuffled", "made, four orders"])
def test_an_order_that_takes_a_lower_row_first_cannot_complete(name):
    model, x = build(name), binary(3)
    with pytest.raises(ValueError, match=r"rows above must be taken first, got 1 rows .* takes pixel \d, in row 1"):
        model.complete(x, 1)
    nearly = NADE((2, 3), 7, orders=torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 3, 2, 4, 5]])).double()
    with pytest.raises(ValueError, match="takes pixel 3, in row 1"):
        nearly.complete(x, 1)
    # With nothing or everything given, any order will do.
    assert torch.equal(model.complete(x, 2), x) and model.complete(x, 0).shape == x.shape


@pytest.mark.parametrize("name", ["fvsbn", "nade", "made, four masks"])
def test_bad_completions_are_named(name):
    model, labelled, x = build_completing(name), build_completing(name, classes=3), binary(4)
    for rows in (-1, 3, 1.0, True):
        with pytest.raises(ValueError, match=f"rows must be an integer from 0 to 2, got {rows}"):
            model.complete(x, rows)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 2, 3\)"):
        model.complete(x.flatten(1), 1)
    with pytest.raises(ValueError, match="x must hold only 0 and 1"):
        model.complete(x / 2, 1)
    with pytest.raises(ValueError, match="label must be None"):
        model.complete(x, 1, label=torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"shape \(4,\) from 0 to 2, got None"):
        labelled.complete(x, 1)


# --- precision, devices, checkpoints


@pytest.mark.parametrize("name", MODELS)
def test_bf16_is_for_the_loss_and_never_for_the_density(name):
    torch.manual_seed(0)
    model = MODELS[name]((1, 8, 8), None)
    x = binary(16, (1, 8, 8), dtype=torch.float32)
    members = torch.stack([model._log_likelihood(x.flatten(1), None, k) for k in model._components()])
    expected = members.logsumexp(0) - math.log(len(members))

    def loss():
        torch.manual_seed(1)
        return model.loss(x).value

    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, rounded, half = (
            model.log_prob(x),
            model._log_likelihood(x.flatten(1), None, model._components()[0]),
            loss(),
        )
        half.mean().backward()
    assert torch.equal(got, expected)
    # what would have happened otherwise, where there is a matrix product to round
    assert torch.equal(rounded, members[0]) == (name == "fvsbn" or "nade" in name)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(), rtol=0, atol=0.5)
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in model.parameters()
    )


def test_the_recurrences_gradient_is_precise_under_autocast_and_after_many_steps():
    torch.manual_seed(0)
    model, x = NADE(hidden=20), load("mnist6k").binarized(0)[:16]
    with torch.no_grad():
        model.weight.mul_(20)
        model.out.mul_(20)
    parameters = (model.weight, model.out, model.hidden_bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = torch.autograd.grad(model.loss(x).value.sum(), parameters)
    model.double()
    inputs = (x.double().flatten(1), model._start(None, 16), model.weight, model.out, None)
    logits = recurrence_by_definition(*inputs) + model.bias
    loss = nn.functional.binary_cross_entropy_with_logits(logits, inputs[0], reduction="sum")
    for ours, exact in zip(got, torch.autograd.grad(loss, (model.weight, model.out, model.hidden_bias)), strict=True):
        assert (ours - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_is_the_same_model(name):
    """Orders and masks are part of what is saved."""
    model, x = build(name, seed=0), binary(8)
    other = build(name, seed=1)
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.log_prob(x), model.log_prob(x))
    seed = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    assert torch.equal(other.sample(8, seed()), model.sample(8, seed()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none")
@pytest.mark.parametrize("name", MODELS)
def test_cuda_agrees_with_the_cpu(name):
    model, x, label = build(name, classes=3), binary(12), torch.arange(12) % 3
    uniforms, which = torch.rand(12, SIZE, dtype=torch.float64), torch.arange(12) % len(model._components())
    expected = model.log_prob(x, label)
    gradients = torch.autograd.grad(expected.sum(), list(model.parameters()), allow_unused=True)
    drawn = model._sample(uniforms, label, which)
    model.cuda()
    got = model.log_prob(x.cuda(), label.cuda())
    torch.testing.assert_close(got.cpu(), expected)
    for ours, theirs in zip(torch.autograd.grad(got.sum(), list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs)
    assert torch.equal(model._sample(uniforms.cuda(), label.cuda(), which.cuda()).cpu(), drawn)
    sample = model.sample(12, torch.Generator("cuda").manual_seed(0), label=label.cuda())
    if name in COMPLETING:
        completed = model.complete(sample, 1, torch.Generator("cuda").manual_seed(0), label.cuda())
        assert torch.equal(completed[:, 0], sample[:, 0])
    assert sample.is_cuda and model.initialise(sample) is model
    with torch.autocast("cuda", dtype=torch.bfloat16):
        model.loss(x.cuda(), label.cuda()).value.mean().backward()


# --- learning


@pytest.mark.parametrize("name", MODELS)
def test_initialise_starts_at_independent_pixels(name):
    x = (torch.rand(200, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.2).double()
    model = build(name)
    assert model.initialise(x) is model
    for p_name, p in model.named_parameters():
        if p_name != "bias":
            nn.init.zeros_(p)
    torch.testing.assert_close(model.log_prob(x), IndependentPixels((2, 3)).double().fit(x).log_prob(x))


@pytest.mark.parametrize(
    "make, steps, rate, nats",
    [
        (lambda: FVSBN(), 150, 1e-3, 30),
        (lambda: NADE(hidden=32), 40, 1e-2, 20),
        (lambda: NADE(hidden=64, orderless=True), 250, 3e-3, 10),
        (lambda: MADE(hidden=(128,)), 150, 3e-3, 35),
        (lambda: MADE(hidden=(64, 64), masks=(0, 1), shuffle=True, direct=True), 150, 3e-3, 45),
    ],
    ids=["fvsbn", "nade", "orderless nade", "made", "made ensemble"],
)
def test_learns_real_digits(make, steps, rate, nats):
    """Better than independent pixels by so many nats, on digits it has not seen, five standard errors besides."""
    x, test = load("mnist6k").binarized(0), load("mnist6k", "test").binarized(1)[:250]
    torch.manual_seed(0)
    model, floor = make().initialise(x), IndependentPixels((1, 28, 28)).fit(x)

    def gain():
        with torch.no_grad():
            return model.log_prob(test) - floor.log_prob(test)

    assert gain().mean().abs() < 2
    fit(model, x, Settings(steps=steps, batch_size=64, learning_rate=rate), progress=False)
    gained = gain()
    assert gained.mean() - 5 * gained.std() / math.sqrt(len(gained)) > nats


# --- what is refused


@pytest.mark.parametrize("name", MODELS)
def test_bad_inputs_are_named(name):
    model, labelled, x = build(name), build(name, classes=3), binary(4)
    for method in ("log_prob", "loss", "logits"):
        ask, ask_labelled = getattr(model, method), getattr(labelled, method)
        with pytest.raises(ValueError, match=r"x must have shape \(batch, 2, 3\), got \(4, 6\)"):
            ask(x.flatten(1))
        with pytest.raises(TypeError, match="x must have a floating dtype"):
            ask(x.long())
        with pytest.raises(ValueError, match=r"x must hold only 0 and 1, got 0\.5"):
            ask(x / 2)
        with pytest.raises(ValueError, match="x must be finite"):
            ask(x * math.nan)
        with pytest.raises(ValueError, match="label must be None"):
            ask(x, torch.zeros(4, dtype=torch.long))
        with pytest.raises(ValueError, match=r"shape \(4,\) from 0 to 2, got None"):
            ask_labelled(x)
        with pytest.raises(TypeError, match=r"label must be an integer tensor .* got torch\.float32"):
            ask_labelled(x, torch.zeros(4))
        with pytest.raises(TypeError, match=r"label must be an integer tensor .* got int"):
            ask_labelled(x, 1)
        with pytest.raises(ValueError, match=r"label must be .* got shape \(3,\)"):
            ask_labelled(x, torch.zeros(3, dtype=torch.long))
        for wrong in (3, -1):
            with pytest.raises(ValueError, match=f"from 0 to 2, got {wrong}"):
                ask_labelled(x, torch.tensor([0, wrong, 1, 0]))
    with pytest.raises(ValueError, match="n must be a positive integer, got 0"):
        model.sample(0)
    with pytest.raises(ValueError, match="label must be None"):
        model.sample(2, label=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"shape \(2,\) from 0 to 2, got None"):
        labelled.sample(2)
    with pytest.raises(ValueError, match=r"got shape \(4,\)"):
        labelled.sample(2, label=torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="x must hold only 0 and 1"):
        model.initialise(x / 2)


def test_bad_arguments_are_named():
    for model in (FVSBN, NADE, MADE):
        with pytest.raises(ValueError, match="classes must be a positive integer, got 0"):
            model((4,), classes=0)
    with pytest.raises(ValueError, match="hidden must be a positive integer, got 0"):
        NADE((4,), 0)
    with pytest.raises(ValueError, match="hidden must be a positive integer, got 0"):
        MADE((4,), (3, 0))
    for arguments in ({"hidden": ()}, {"masks": ()}, {"hidden": 5}, {"masks": 5}):
        [(name, value)] = arguments.items()
        with pytest.raises(ValueError, match=rf"{name} must be a sequence of integers, .* got {re.escape(str(value))}"):
            MADE((4,), **arguments)
    for which in (2, -1):
        with pytest.raises(ValueError, match=f"which must be from 0 to 1, got {which}"):
            MADE((4,), masks=(0, 1)).logits(binary(2, (4,), dtype=torch.float32), which=which)
    with pytest.raises(ValueError, match=r"event_shape must have two pixels at least, got \(1, 1\)"):
        MADE((1, 1))
    for inputs, outputs in ((torch.ones(2, 3), torch.ones(3, 3)), (torch.ones(()), torch.ones(3))):
        with pytest.raises(ValueError, match="inputs and outputs must have shapes"):
            MaskedLinear(inputs, outputs, strict=True)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (torch.tensor([[0, 1, 2, 2]]), ValueError, r"permutations of 0 to 3, .* got \[0, 1, 2, 2\]"),
        (torch.tensor([[1, 2, 3, 4]]), ValueError, r"got \[1, 2, 3, 4\]"),
        (torch.arange(4), ValueError, r"got shape \(4,\)"),
        (torch.zeros(0, 4, dtype=torch.long), ValueError, r"got shape \(0, 4\)"),
        (torch.arange(4.0)[None], TypeError, "got torch.float32"),
        ([[0, 1, 2, 3]], TypeError, "got list"),
    ],
)
def test_bad_orders_are_named(wrong, error, message):
    with pytest.raises(error, match=message):
        NADE((4,), 3, orders=wrong)
    with pytest.raises(error, match=message):
        NADE((4,), 3).log_prob(binary(2, (4,), dtype=torch.float32), orders=wrong)


def test_one_pixel_is_a_coin():
    for model in (FVSBN((1,)), NADE((1,), 3)):
        normalised_by_enumeration(model.double().log_prob, all_binary((1,), torch.float64)).raise_if_failed()
        assert model.sample(5).shape == (5, 1)


@pytest.mark.parametrize("strict", [True, False])
def test_masked_linear_applies_its_masks_and_nothing_else(strict):
    torch.manual_seed(0)
    inputs, outputs = torch.randint(1, 5, (2, 3)), torch.randint(1, 5, (2, 4))
    layer, x = MaskedLinear(inputs, outputs, strict), torch.randn(6, 3)
    for k in range(2):
        kept = torch.zeros(4, 3)
        for o, i in itertools.product(range(4), range(3)):
            kept[o, i] = outputs[k, o] > inputs[k, i] or (not strict and outputs[k, o] == inputs[k, i])
        assert torch.equal(layer.mask(k), kept.bool())
        torch.testing.assert_close(layer(x, k), x @ (layer.weight * kept).T + layer.bias)
    assert torch.equal(layer(x), layer(x, 0)) and not torch.equal(layer(x, 0), layer(x, 1))
    alone = MaskedLinear(inputs[0], outputs[0], strict, bias=False)
    assert alone.bias is None and torch.equal(alone.mask(), layer.mask(0))
