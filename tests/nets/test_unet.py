"""The U-Net and the MLP with a time: written out again from their parameters, and what must not matter to them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from companion.nets.time_embedding import TimeEmbedding, sinusoidal
from companion.nets.time_mlp import TimeMLP
from companion.nets.unet import Attention, UNet, group_norm

CLASSES = 3


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomise(network, seed=0):
    """Weights of a size that keeps the features' own, none of them zero, in float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.double().parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / math.sqrt(fan_in))
        for norm in (module for module in network.modules() if isinstance(module, nn.GroupNorm)):
            norm.weight.add_(1)
    return network


def unet(channels_in=2, **arguments):
    return randomise(UNet(channels_in, **{"channels": 8, **arguments}))


def labels(n, classes=CLASSES):
    return None if classes is None else torch.arange(n) % classes


NETWORKS = {
    "u-net": (lambda classes: unet(classes=classes), (2, 8, 4)),
    "u-net of patches": (lambda classes: unet(classes=classes, patch=2, multipliers=(1, 2)), (2, 8, 4)),
    "mlp": (lambda classes: randomise(TimeMLP(5, 8, 2, classes)), (5,)),
}
TIMES = torch.tensor([0.0, 3.7, 998.0, 999.0], dtype=torch.float64)


@pytest.fixture(params=NETWORKS)
def network_and_shape(request):
    return NETWORKS[request.param]


# Against what the papers say


@pytest.mark.parametrize("features", [4, 6, 32])
def test_sinusoids_are_their_formula(features):
    t = torch.tensor([0.0, 0.5, -2.0, 731.0], dtype=torch.float64)
    half = features // 2
    for row, time in zip(sinusoidal(t, features).numpy(), t.numpy(), strict=True):
        for i in range(half):
            omega = 10_000 ** (-i / (half - 1))
            assert row[i] == pytest.approx(math.sin(omega * time), abs=1e-12)
            assert row[half + i] == pytest.approx(math.cos(omega * time), abs=1e-12)


def group_norm_by_numpy(p, name, x, groups):
    g = x.reshape(len(x), groups, -1)
    g = (g - g.mean(2, keepdims=True)) / np.sqrt(g.var(2, keepdims=True) + 1e-5)
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    return g.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def silu(x):
    return x / (1 + np.exp(-x))


def by_numpy(p, x, t, label, multipliers, blocks, attention, channels, classes, patch):
    """The whole network from its parameters `p`, by NumPy but for the convolutions."""

    def linear(name, h):
        return h @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def conv(name, h, stride=1):
        weight = torch.from_numpy(p[f"{name}.weight"])
        bias = torch.from_numpy(p[f"{name}.bias"])
        pad = weight.shape[2] // 2
        return F.conv2d(torch.from_numpy(h), weight, bias, stride=stride, padding=pad).numpy()

    def norm(name, h):
        features = h.shape[1]
        return group_norm_by_numpy(p, name, h, math.gcd(32, features // 4))

    def block(name, h):
        u = conv(f"{name}.conv", silu(norm(f"{name}.norm", h)))
        u = u + linear(f"{name}.shift", embedding)[:, :, None, None]
        u = conv(f"{name}.last", silu(norm(f"{name}.last_norm", u)))
        h = u + (conv(f"{name}.shortcut", h) if f"{name}.shortcut.weight" in p else h)
        if f"{name}.attention.out.weight" not in p:
            return h
        features = h.shape[1]
        rows = norm(f"{name}.attention.norm", h).reshape(len(h), features, -1).transpose(0, 2, 1)
        q, k, v = np.split(linear(f"{name}.attention.query_key_value", rows), 3, -1)
        weights = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(features))
        seen = weights / weights.sum(-1, keepdims=True) @ v
        return h + linear(f"{name}.attention.out", seen).transpose(0, 2, 1).reshape(h.shape)

    half = channels // 2
    angles = t[:, None] * 10_000 ** (-np.arange(half) / (half - 1))
    embedding = linear("embed.layers.0", np.concatenate([np.sin(angles), np.cos(angles)], 1))
    embedding = linear("embed.layers.2", silu(embedding))
    if classes is not None:
        embedding = embedding + p["embed.label_bias.of_class.weight"][label]
    embedding = silu(embedding)

    n, colours, height, width = x.shape
    h = x.reshape(n, colours, height // patch, patch, width // patch, patch)
    h = h.transpose(0, 1, 3, 5, 2, 4).reshape(n, -1, height // patch, width // patch)
    h = conv("first", h)
    kept, k = [h], 0
    for level in range(len(multipliers)):
        if level:
            h = conv(f"down.{k}.conv", h, stride=2)
            kept, k = [*kept, h], k + 1
        for _ in range(blocks):
            h = block(f"down.{k}", h)
            assert (f"down.{k}.attention.out.weight" in p) == (level >= len(multipliers) - attention)
            assert h.shape[1] == channels * multipliers[level]
            kept, k = [*kept, h], k + 1
    assert ("middle.0.attention.out.weight" in p) == (attention > 0)
    h = block("middle.1", block("middle.0", h))
    k = 0
    for level in reversed(range(len(multipliers))):
        for _ in range(blocks + 1):
            h = block(f"up.{k}", np.concatenate([h, kept.pop()], 1))
            k += 1
        if level:
            h = conv(f"up.{k}.conv", h.repeat(2, 2).repeat(2, 3))
            k += 1
    assert not kept
    h = conv("last", silu(norm("norm", h)))
    h = h.reshape(n, colours, patch, patch, height // patch, width // patch)
    return h.transpose(0, 1, 4, 2, 5, 3).reshape(x.shape)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"multipliers": (1, 2), "blocks": 2, "attention": 2, "classes": CLASSES},
        {"multipliers": (2, 1, 3), "attention": 0, "embedding": 10},
        {"multipliers": (2,), "patch": 2, "classes": CLASSES},
        {"multipliers": (1, 4), "channels": 12, "patch": 2, "blocks": 2},
    ],
)
def test_the_network_is_the_papers_layer_by_layer(arguments):
    settings = {"multipliers": (1, 2, 2), "blocks": 1, "attention": 1, "channels": 8, "classes": None, "patch": 1}
    settings |= {name: value for name, value in arguments.items() if name != "embedding"}
    network = unet(**arguments)
    assert network.embed.layers[2].out_features == arguments.get("embedding", 4 * settings["channels"])
    x, label = noise(4, 2, 8, 12), labels(4, settings["classes"])
    p = {name: parameter.detach().contiguous().numpy() for name, parameter in network.named_parameters()}
    expected = by_numpy(p, x.numpy(), TIMES.numpy(), None if label is None else label.numpy(), **settings)
    np.testing.assert_allclose(network(x, TIMES, label).detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    assert np.abs(expected).mean() > 0.05


def test_the_mlp_is_its_formula():
    network = randomise(TimeMLP(5, 8, 3, CLASSES))
    p = {name: parameter.detach().numpy() for name, parameter in network.named_parameters()}

    def linear(name, h):
        return h @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)

    x, label = noise(4, 5), labels(4)
    e = linear("embed.layers.2", silu(linear("embed.layers.0", sinusoidal(TIMES, 32).numpy())))
    e = silu(e + p["embed.label_bias.of_class.weight"][label.numpy()])
    h = linear("first", x.numpy())
    for k in range(3):
        inner = linear(f"blocks.{k}.0", silu(h)) + linear(f"blocks.{k}.1", e)
        h = h + linear(f"blocks.{k}.2", silu(inner))
    np.testing.assert_allclose(network(x, TIMES, label).detach().numpy(), linear("last", silu(h)), rtol=1e-10)


@pytest.mark.parametrize(("features", "groups"), [(4, 1), (8, 2), (12, 1), (24, 2), (32, 8), (64, 16), (128, 32)])
def test_groups_to_normalise(features, groups):
    norm = group_norm(features)
    assert (norm.num_groups, norm.num_channels) == (groups, features)
    assert group_norm(256).num_groups == 32


def test_the_number_of_parameters_is_that_of_diffusers():
    """UNet2DModel with block_out_channels (32, 64, 64), one block a level and attention at the last, and the same with
    (48, 96, 144)."""
    assert sum(p.numel() for p in UNet(1, 32, (1, 2, 2)).parameters()) == 1_112_801
    assert sum(p.numel() for p in UNet(1, 48, (1, 2, 3)).parameters()) == 4_053_985


# The start


def test_all_networks_are_zero_at_the_start(network_and_shape):
    _, shape = network_and_shape
    new = TimeMLP(5, classes=CLASSES) if len(shape) == 1 else UNet(2, classes=CLASSES)
    x = noise(4, *shape).float()
    assert not new(x, TIMES.float(), labels(4)).any()


def test_blocks_are_the_identity_at_the_start():
    network = UNet(1, 8, (1, 1))
    x, e = noise(2, 8, 4, 4).float(), noise(2, 32).float()
    for part in (network.down[0], network.middle[0], network.down[2].attention):
        assert torch.equal(part(x, e) if not isinstance(part, Attention) else part(x), x)
    randomise(network)
    assert not torch.equal(network.middle[0](x.double(), e.double()), x.double())


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_gradients_reach_every_parameter(network_and_shape, classes):
    make, shape = network_and_shape
    network = make(classes)
    label = None if classes is None else torch.arange(8) % (classes + 1)  # the null class, too
    (network(noise(8, *shape), torch.linspace(0, 500, 8), label).square().sum()).backward()
    for name, parameter in network.named_parameters():
        gradient = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad.abs()
        if name.endswith("query_key_value.bias"):
            # A bias common to all keys cancels in the softmax.
            keys = slice(len(gradient) // 3, 2 * len(gradient) // 3)
            assert (gradient[keys] < 1e-10).all()
            gradient[keys] = 1
        assert (gradient > 0).all(), name


# What matters and what does not


def test_examples_do_not_see_each_other(network_and_shape):
    make, shape = network_and_shape
    network, x, label = make(CLASSES), noise(4, *shape), labels(4)
    together = network(x, TIMES, label)
    for i in range(4):
        alone = network(x[i : i + 1], TIMES[i : i + 1], label[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-9, atol=1e-9)
    assert together.dtype == torch.float64 and together.shape == x.shape


def test_times_and_labels_matter_each_to_its_own_example(network_and_shape):
    make, shape = network_and_shape
    network, x, label = make(CLASSES), noise(4, *shape), labels(4)
    before = network(x, TIMES, label)

    def changed(t, label):
        return (network(x, t, label) - before).flatten(1).abs().max(1).values > 1e-4

    t = TIMES.clone()
    t[2] += 1
    assert changed(t, label).tolist() == [False, False, True, False]
    other = label.clone()
    other[1] = 0
    assert changed(TIMES, other).tolist() == [False, True, False, False]


def test_a_time_may_be_an_integer(network_and_shape):
    make, shape = network_and_shape
    network, x = make(None), noise(4, *shape)
    t = torch.tensor([0, 1, 500, 999])
    assert torch.equal(network(x, t), network(x, t.double()))


def test_no_label_is_the_null_class(network_and_shape):
    make, shape = network_and_shape
    network, x = make(CLASSES), noise(4, *shape)
    without = network(x, TIMES)
    assert torch.equal(without, network(x, TIMES, torch.full((4,), CLASSES)))
    for k in range(CLASSES):
        assert ((network(x, TIMES, torch.full((4,), k)) - without).flatten(1).abs().max(1).values > 1e-3).all()
    # In one batch, as classifier-free guidance trains and samples.
    mixed = network(x, TIMES, torch.tensor([0, CLASSES, CLASSES, 1]))
    torch.testing.assert_close(mixed[1:3], without[1:3])
    # Without a null class at all, it is the network whose null class adds nothing.
    plain = make(None)
    own = {name: value for name, value in network.state_dict().items() if "of_class" not in name}
    plain.load_state_dict(own)
    with torch.no_grad():
        network.embed.label_bias.of_class.weight[CLASSES] = 0
    torch.testing.assert_close(network(x, TIMES), plain(x, TIMES))


@pytest.mark.parametrize("arguments", [{}, {"attention": 3, "blocks": 2}, {"multipliers": (1, 2), "patch": 2}])
def test_turned_kernels_make_turned_images(arguments):
    """Rows and columns are treated alike: with every kernel transposed, a transposed image gives the transposed one."""
    network, x = unet(**arguments), noise(4, 2, 8, 12)
    upright = network(x, TIMES)
    patch = network.patch**2
    with torch.no_grad():
        for conv in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
            conv.weight.copy_(conv.weight.transpose(2, 3).clone())
        if patch > 1:  # the pixels of a patch change places, too
            order = torch.arange(2 * patch).reshape(2, network.patch, network.patch).transpose(1, 2).flatten()
            network.first.weight.copy_(network.first.weight[:, order].clone())
            network.last.weight.copy_(network.last.weight[order].clone())
            network.last.bias.copy_(network.last.bias[order].clone())
    turned = network(x.transpose(2, 3), TIMES).transpose(2, 3)
    torch.testing.assert_close(turned, upright, rtol=1e-9, atol=1e-9)
    assert (network(x, TIMES) - upright).abs().max() > 1e-2


def test_attention_knows_no_order():
    attention = randomise(Attention(8))
    x, order = noise(2, 8, 3, 4), torch.randperm(12, generator=torch.Generator().manual_seed(0))

    def shuffled(h):
        return h.flatten(2)[:, :, order].unflatten(2, (3, 4))

    torch.testing.assert_close(attention(shuffled(x)), shuffled(attention(x)))
    # But all positions matter to each.
    jacobian = torch.autograd.functional.jacobian(lambda h: attention(h)[0, 0, 0, 0], x)
    assert (jacobian[0].abs().sum(0) > 1e-6).all() and not jacobian[1].any()


def test_the_last_pixel_sees_the_first():
    network = unet(1, multipliers=(1, 2, 2))
    x = noise(1, 1, 28, 28).requires_grad_()
    [gradient] = torch.autograd.grad(network(x, TIMES[:1])[0, 0, -1, -1], x)
    assert gradient[0, 0, 0, 0].abs() > 0


# Sizes, precision, bad input


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, (1, 28, 28)),
        ({"multipliers": (1, 2, 2, 2)}, (1, 32, 32)),
        ({"multipliers": (1, 2), "patch": 2}, (1, 28, 28)),
        ({"multipliers": (1,)}, (3, 5, 7)),
        ({}, (3, 4, 12)),
    ],
)
def test_any_sides_that_can_be_halved(arguments, shape):
    network = UNet(shape[0], channels=8, **arguments)
    x = torch.randn(2, *shape)
    out = network(x, torch.tensor([1.0, 5.0]))
    assert out.shape == x.shape and out.is_contiguous()


@pytest.mark.parametrize(
    ("arguments", "shape", "match"),
    [
        ({}, (2, 30, 28), "sides divisible by 4, got 30 × 28"),
        ({}, (2, 28, 30), "sides divisible by 4, got 28 × 30"),
        ({"patch": 2}, (2, 28, 28), "sides divisible by 8, got 28 × 28"),
        ({"multipliers": (1, 1, 1, 1)}, (2, 28, 28), "sides divisible by 8"),
        ({}, (1, 28, 28), r"x must have shape \(batch, 2, height, width\), got \(3, 1, 28, 28\)"),
        ({}, (2, 28), r"x must have shape \(batch, 2, height, width\), got \(3, 2, 28\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(arguments, shape, match):
    with pytest.raises(ValueError, match=match):
        UNet(2, 8, **arguments)(torch.zeros(3, *shape), torch.zeros(3))


def test_times_and_labels_that_do_not_fit_are_refused(network_and_shape):
    make, shape = network_and_shape
    network, plain, x, t = make(CLASSES), make(None), noise(2, *shape), TIMES[:2]
    for bad, error, match in (
        (TIMES[:1], ValueError, r"t must have shape \(2,\), one number for each example, got \(1,\)"),
        (TIMES[:2, None], ValueError, "t must have shape"),
        (torch.tensor(3.0), ValueError, "t must have shape"),
        (3.0, TypeError, "t must be a torch.Tensor, got float"),
    ):
        with pytest.raises(error, match=match):
            network(x, bad)
    for bad, error, match in (
        (torch.tensor([0, CLASSES + 1]), ValueError, f"from 0 to {CLASSES}, got {CLASSES + 1}"),
        (torch.tensor([-1, 0]), ValueError, "got -1"),
        (torch.tensor([0]), ValueError, "shape"),
        (torch.tensor([0.0, 1.0]), TypeError, "integer"),
        ([0, 1], TypeError, "list"),
    ):
        with pytest.raises(error, match=match):
            network(x, t, bad)
    network(x, t, torch.tensor([0, CLASSES]))
    with pytest.raises(ValueError, match="no classes"):
        plain(x, t, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"channels_in": 0}, "channels_in must be a positive integer, got 0"),
        ({"channels": 6}, "channels must be a multiple of 4"),
        ({"channels": 0}, "channels must be"),
        ({"multipliers": ()}, "multipliers must be a sequence"),
        ({"multipliers": (1, 0)}, "multipliers must be a positive integer"),
        ({"multipliers": 2}, "multipliers must be a sequence"),
        ({"blocks": 0}, "blocks"),
        ({"attention": 4}, "attention must be an integer from 0 to the 3 levels, got 4"),
        ({"attention": -1}, "attention"),
        ({"attention": True}, "attention"),
        ({"embedding": 0}, "width"),
        ({"classes": 0}, "classes"),
        ({"patch": 0}, "patch"),
    ],
)
def test_bad_arguments_of_the_unet_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        UNet(**{"channels_in": 1, **arguments})


@pytest.mark.parametrize("arguments", [{"dims": 0}, {"hidden": 0}, {"blocks": 0}, {"classes": 0}])
def test_bad_arguments_of_the_mlp_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        TimeMLP(**{"dims": 2, **arguments})


@pytest.mark.parametrize("features", [2, 5, 0, 4.0, True])
def test_sinusoids_come_in_pairs(features):
    with pytest.raises(ValueError, match="features must be an even number of at least 4"):
        TimeEmbedding(features, 8)


def test_bfloat16_is_near_float32(network_and_shape):
    make, shape = network_and_shape
    network, x, label = make(CLASSES).float(), noise(4, *shape).float(), labels(4)
    exact = network(x, TIMES.float(), label)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x, TIMES.float(), label)
        near = network(x, TIMES.float() + 0.9, label)
    assert exact.dtype == torch.float32
    error = (rough - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 1e-4 < error < 0.03
    # Times that bfloat16 itself could not tell apart.
    assert torch.equal((TIMES + 0.9)[3:].bfloat16(), TIMES[3:].bfloat16())
    assert (near - rough)[3].abs().max() > 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none")
def test_cuda_agrees_with_the_cpu(network_and_shape):
    make, shape = network_and_shape
    network, x, label = make(CLASSES), noise(4, *shape), labels(4)
    expected = network(x, TIMES, label).detach()
    network.cuda()
    for given, on_cuda in ((label, label.cuda()), (None, None)):
        expected = expected if given is not None else make(CLASSES)(x, TIMES).detach()
        torch.testing.assert_close(network(x.cuda(), TIMES.cuda(), on_cuda).cpu(), expected, rtol=1e-8, atol=1e-8)
    with torch.autocast("cuda", torch.bfloat16):
        assert network.float()(x.float().cuda(), TIMES.float().cuda(), label.cuda()).isfinite().all()
