"""The GAN against NumPy formulas, known optima, singular values, loops and finite differences."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit
from torch import nn
from torch.nn.utils import parameters_to_vector

from companion.data import density, load
from companion.models import GAN
from companion.models.gan import REFERENCE
from companion.nets.normalisation import MinibatchDiscrimination, VirtualBatchNorm
from companion.training import Settings, fit

GAMES = ("minimax", "non-saturating", "hinge", "wasserstein")
IMAGE = (1, 8, 8)


def gan(seed=0, event_shape=(2,), **arguments):
    """A small GAN in float64 whose networks do something: weights of "mlp" twice as large as at the start."""
    torch.manual_seed(seed)
    model = GAN(event_shape, **({"latent_dim": 3, "hidden": 8} | arguments)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and model.network == "mlp":
                parameter.mul_(2)
    return model


def points(n=6, seed=1):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(n=6, seed=1):
    return torch.rand(n, *IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def noise(model, n, seed):
    """The draws of z that a loss makes after this seed."""
    torch.manual_seed(seed)
    return torch.randn(n, model.latent_dim, dtype=torch.float64)


def logits_of(model, x, seed):
    """ℓ(x) and ℓ(G(z)) as NumPy arrays, from the networks themselves."""
    fake = model.generator(noise(model, len(x), seed))
    return (model.discriminator(t).detach().numpy() for t in (x, fake))


# --- the games

DISCRIMINATOR = {
    "minimax": lambda real, fake: (-log_expit(real), -log_expit(-fake)),
    "non-saturating": lambda real, fake: (-log_expit(real), -log_expit(-fake)),
    "hinge": lambda real, fake: (np.maximum(0, 1 - real), np.maximum(0, 1 + fake)),
    "wasserstein": lambda real, fake: (-real, fake),
}
GENERATOR = {
    "minimax": lambda fake: log_expit(-fake),
    "non-saturating": lambda fake: -log_expit(fake),
    "hinge": lambda fake: -fake,
    "wasserstein": lambda fake: -fake,
}
# d/dℓ of the generator's losses
SLOPE = {
    "minimax": lambda fake: -expit(fake),
    "non-saturating": lambda fake: expit(fake) - 1,
    "hinge": lambda fake: -np.ones_like(fake),
    "wasserstein": lambda fake: -np.ones_like(fake),
}


@pytest.mark.parametrize("game", GAMES)
def test_losses_are_the_published_ones(game):
    model, x = gan(loss=game), points()
    with torch.no_grad():
        model.discriminator.head.weight.mul_(30)  # logits on both sides of the hinges
    real, fake = logits_of(model, x, seed=5)
    assert (real < -1).any() and (real > 1).any()
    torch.manual_seed(5)
    loss = model.discriminator_loss(x)
    terms = dict(zip(("real", "fake"), DISCRIMINATOR[game](real, fake), strict=True))
    for name, term in terms.items():
        np.testing.assert_allclose(loss.parts[name].detach(), term, rtol=1e-12)
    assert set(loss.parts) == {"real", "fake"} | ({"gradient penalty"} if game == "wasserstein" else set())
    torch.testing.assert_close(loss.value, sum(loss.parts.values()))
    torch.manual_seed(5)
    other = model.generator_loss(x)
    np.testing.assert_allclose(other.value.detach(), GENERATOR[game](fake), rtol=1e-12)
    assert loss.unit == other.unit == "game value" and loss.value.shape == other.value.shape == (6,)


@pytest.mark.parametrize("game", GAMES)
def test_generator_gradient_is_the_chain_rule_by_hand(game):
    model, x = gan(loss=game), points()
    with torch.no_grad():
        model.discriminator.head.weight.mul_(10)
    fake = model.generator(noise(model, 6, seed=5)).detach().requires_grad_()
    logits = model.discriminator(fake)
    (slope,) = torch.autograd.grad(logits.sum(), fake)
    output = model.generator(noise(model, 6, seed=5))
    upstream = torch.from_numpy(SLOPE[game](logits.detach().numpy()))[:, None] * slope / 6
    parameters = list(model.generator.parameters())
    expected = torch.autograd.grad(output, parameters, upstream)
    torch.manual_seed(5)
    actual = torch.autograd.grad(model.generator_loss(x).value.mean(), parameters)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_losses_survive_logits_that_overflow_a_sigmoid():
    x = points()
    for game, expected in (("minimax", -2000.0), ("non-saturating", 0.0)):
        model = gan(loss=game)
        with torch.no_grad():
            model.discriminator.head.weight.zero_()
            model.discriminator.head.bias.fill_(2000.0)
        assert model.generator_loss(x).value.tolist() == [expected] * 6
        assert model.discriminator_loss(x).value.tolist() == [2000.0] * 6


def test_discriminator_loss_leaves_the_generator_alone():
    model = gan()
    loss = model.discriminator_loss(points()).value.mean()
    grads = torch.autograd.grad(loss, list(model.generator.parameters()), allow_unused=True)
    assert all(grad is None for grad in grads)
    players = model.players()
    assert list(players) == ["discriminator", "generator"]
    assert {id(p) for p in players["generator"].parameters} == {id(p) for p in model.generator.parameters()}
    assert {id(p) for p in players["discriminator"].parameters} == {id(p) for p in model.discriminator.parameters()}
    assert players["generator"].updates == players["discriminator"].updates == 1
    assert GAN((2,), loss="wasserstein").players()["discriminator"].updates == 5
    assert GAN((2,), critic_updates=3).players()["discriminator"].updates == 3


def frozen(values, **arguments):
    """A GAN whose generator answers with these three numbers in turn, and whose discriminator is a table."""
    model = gan(event_shape=(1,), **arguments)

    class Cycle(nn.Module):
        def forward(self, z):
            return values[torch.arange(len(z)) % len(values)][:, None]

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.logit = nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def forward(self, x):
            return self.logit[x[:, 0].long()]

    model.generator, model.discriminator = Cycle(), Table()
    return model


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("game", ["minimax", "non-saturating"])
def test_best_discriminator_is_the_smoothed_share_of_real(game, smoothing):
    """Three states: p_data = (6, 3, 1)/10, p_g = (1, 4, 5)/10, and D* = (1 - s) p_data / (p_data + p_g)."""
    fake = torch.tensor([0.0, 1, 1, 1, 1, 2, 2, 2, 2, 2]).double()
    real = torch.tensor([0.0] * 6 + [1] * 3 + [2])[:, None].double()
    model = frozen(fake, loss=game, label_smoothing=smoothing)
    optimiser = torch.optim.LBFGS(
        model.discriminator.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15
    )

    def closure():
        optimiser.zero_grad()
        loss = model.discriminator_loss(real).value.mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimiser.step(closure)
    share = (1 - smoothing) * np.array([6, 3, 1]) / (np.array([6, 3, 1]) + np.array([1, 4, 5]))
    logit = model.discriminator.logit.detach().numpy()
    np.testing.assert_allclose(expit(logit), share, atol=1e-7)
    if not smoothing:
        np.testing.assert_allclose(logit, np.log([6, 3, 1]) - np.log([1, 4, 5]), atol=1e-6)


def test_trained_logit_is_the_log_ratio_of_the_densities():
    """p_data = N(1, 1) and p_g = N(-1, 1): log p_data - log p_g = 2 x, sign included."""
    model = gan(event_shape=(1,), latent_dim=1, hidden=32).float()
    model.generator = nn.Linear(1, 1)
    nn.init.ones_(model.generator.weight)
    nn.init.constant_(model.generator.bias, -1.0)
    optimiser = torch.optim.Adam(model.discriminator.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for step in range(800):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / 800)
        loss = model.discriminator_loss(1 + torch.randn(512, 1)).value.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = torch.linspace(-2, 2, 41)[:, None]
    assert (model.logits(x).detach() - 2 * x[:, 0]).abs().max() < 0.35  # the logits span -4 to 4


# --- the gradient penalty


class Linear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x.flatten(1) @ self.weight


def test_penalty_of_a_linear_critic():
    model, weight = gan(loss="wasserstein", gradient_penalty=7.0), torch.tensor([1.5, -2.0]).double()
    model.discriminator = Linear(weight)
    loss = model.discriminator_loss(points())
    assert loss.parts["gradient penalty"].tolist() == pytest.approx([7 * (2.5 - 1) ** 2] * 6)
    (grad,) = torch.autograd.grad(loss.parts["gradient penalty"].mean(), model.discriminator.weight)
    torch.testing.assert_close(grad, 7 * 2 * 1.5 * weight / 2.5)


def test_penalty_is_taken_between_each_pair():
    """With ℓ(x) = ‖x‖²/2 the slope at x̂ is ‖x̂‖, so that the penalty tells where x̂ lies."""
    model, x = gan(loss="wasserstein", gradient_penalty=1.0), points(400)

    class Square(nn.Module):
        def forward(self, x):
            return x.square().flatten(1).sum(1) / 2

    model.discriminator = Square()
    torch.manual_seed(3)
    penalty = model.discriminator_loss(x).parts["gradient penalty"].detach().numpy()
    fake = model.generator(noise(model, 400, 3)).detach()
    share = torch.rand(400, 1, dtype=torch.float64)  # drawn after z
    between = share.numpy() * x.numpy() + (1 - share.numpy()) * fake.numpy()
    np.testing.assert_allclose(penalty, (np.linalg.norm(between, axis=1) - 1) ** 2, rtol=1e-10)
    assert share.max() > 0.95 and share.min() < 0.05 and len(share.unique()) == 400


def test_penalty_gradient_against_finite_differences():
    model, x = gan(loss="wasserstein"), points()
    parameters = list(model.discriminator.parameters())[:-1]

    def value():
        torch.manual_seed(4)
        return model.discriminator_loss(x).parts["gradient penalty"].mean()

    grads = torch.autograd.grad(value(), parameters, allow_unused=True)
    for parameter, grad in zip(parameters, grads, strict=True):
        if grad is None:  # the biases: the slope is constant between the kinks
            assert parameter.ndim == 1
            continue
        for index in range(0, parameter.numel(), 7):
            flat = parameter.detach().view(-1)
            old, values = flat[index].item(), []
            for step in (1e-6, -1e-6):
                flat[index] = old + step
                values.append(value().item())
            flat[index] = old
            assert grad.view(-1)[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-6)


def test_penalty_is_measured_without_gradients_and_left_out_at_zero():
    model, x = gan(loss="wasserstein"), points()
    torch.manual_seed(0)
    expected = model.discriminator_loss(x).value.detach()
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(model.discriminator_loss(x).value, expected)
    assert "gradient penalty" not in gan(loss="wasserstein", gradient_penalty=0).discriminator_loss(x).parts


# --- spectral normalisation


def test_spectral_norm_makes_the_discriminator_1_lipschitz():
    model = gan(loss="hinge", spectral_norm=True, hidden=16)
    for _ in range(200):
        model.discriminator_loss(points())
    model.eval()
    weights = [m.weight for m in model.discriminator.modules() if isinstance(m, nn.Linear)]
    assert len(weights) == 4
    for weight in weights:
        assert np.linalg.svd(weight.detach().numpy(), compute_uv=False)[0] == pytest.approx(1, abs=1e-6)
    a, b = 5 * points(2000, 2), 5 * points(2000, 3)
    b[:1000] = a[:1000] + 1e-3 * b[:1000]
    ratio = (model.logits(a) - model.logits(b)).abs() / (a - b).norm(dim=1)
    assert ratio.max() <= 1 + 1e-6 and ratio.max() > 0.05
    plain = gan(loss="hinge", hidden=16)
    assert all(
        np.linalg.svd(m.weight.detach().numpy())[1][0] > 1.3
        for m in plain.discriminator.layers.modules()
        if isinstance(m, nn.Linear)
    )


def test_spectral_norm_of_convolutions():
    model = gan(event_shape=IMAGE, network="conv", spectral_norm=True)
    for _ in range(200):
        model.discriminator_loss(images())
    weights = [m.weight for m in model.discriminator.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(weights) == 3
    for weight in weights:
        assert torch.linalg.matrix_norm(weight.detach().flatten(1), 2).item() == pytest.approx(1, abs=1e-4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.discriminator.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.generator.modules())


def test_spectral_estimate_is_refined_in_training_alone():
    model = gan(spectral_norm=True).eval()
    assert torch.equal(model.logits(points()), model.logits(points()))
    before = copy.deepcopy(model.state_dict())
    model.discriminator_loss(points())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    model.train().discriminator_loss(points())
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed and all(name.endswith(("_u", "_v")) for name in changed)


# --- the five techniques


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_feature_matching_is_a_maximum_mean_discrepancy(layer):
    """The squared distance of the means is the double sum of the kernel h(x)ᵀh(y)."""
    model, x = gan(feature_matching=layer), points()
    torch.manual_seed(6)
    loss = model.generator_loss(x)
    fake = model.generator(noise(model, 6, 6))
    h, g = x, fake
    for part in model.discriminator.layers[: layer + 1]:
        h, g = part(h), part(g)
    h, g = h.detach().numpy(), g.detach().numpy()

    def kernel(a, b):
        return sum(float(p @ q) for p in a for q in b) / (len(a) * len(b))

    expected = kernel(h, h) - 2 * kernel(h, g) + kernel(g, g)
    assert loss.value.tolist() == pytest.approx([expected] * 6, rel=1e-9)
    assert set(loss.parts) == {"feature matching"}
    np.testing.assert_allclose(model.features(x, layer).detach(), h)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss.value.mean(), list(model.generator.parameters())))


def test_features_of_images_are_flat():
    model = gan(event_shape=IMAGE, network="conv").eval()
    assert model.features(images(), 0).shape == (6, 8 * 4 * 4)
    assert model.features(images(), 1).shape == (6, 16 * 2 * 2)


def test_minibatch_discrimination_is_a_double_loop():
    torch.manual_seed(0)
    layer = MinibatchDiscrimination(5, kernels=3, dim=4).double()
    h = torch.randn(7, 5, dtype=torch.float64)
    m = (h @ layer.project.weight.T).detach().numpy().reshape(7, 3, 4)
    expected = [[sum(math.exp(-np.abs(m[i, b] - m[j, b]).sum()) for j in range(7)) for b in range(3)] for i in range(7)]
    np.testing.assert_allclose(layer(h).detach(), expected, rtol=1e-12)
    torch.testing.assert_close(layer(h[:1].expand(7, -1)), torch.full((7, 3), 7.0).double())  # collapsed
    far = 1e6 * torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(far), torch.ones(7, 3).double())
    order = torch.randperm(7)
    torch.testing.assert_close(layer(h[order]), layer(h)[order])
    assert torch.autograd.gradcheck(layer, h.requires_grad_())


def test_minibatch_features_stand_beside_the_last_hidden_ones():
    model, x = gan(minibatch_discrimination=4), points()
    h = model.features(x, 2)
    both = torch.cat([h, model.discriminator.minibatch(h)], 1)
    head = model.discriminator.head
    torch.testing.assert_close(model.logits(x), both @ head.weight[0] + head.bias)
    assert both.shape == (6, 12)
    # Real and fake examples each on their own: the loss is that of two batches.
    real, fake = logits_of(model, x, seed=2)
    torch.manual_seed(2)
    np.testing.assert_allclose(model.discriminator_loss(x).value.detach(), -log_expit(real) - log_expit(-fake))
    assert not torch.allclose(model.logits(x)[:3], model.logits(x[:3]))


def test_historical_averaging_is_its_recursion():
    model = gan(historical_averaging=0.3).float()
    plain = gan().float()
    plain.load_state_dict(model.state_dict(), strict=False)
    x = points(50).float()
    settings = Settings(steps=6, batch_size=8, learning_rate=0.02, log_every=1)

    past = {name: [] for name in ("discriminator", "generator")}
    penalties = {name: [] for name in past}
    for name in past:
        player = model.players()[name]

        def record(value, parameters=tuple(player.parameters), name=name):
            theta = parameters_to_vector(parameters).detach().double().numpy()
            mean = np.mean(past[name], axis=0) if past[name] else theta
            penalties[name].append(0.3 * float(((theta - mean) ** 2).sum()))
            past[name].append(theta)
            return value

        method = getattr(model, f"{name}_loss")
        setattr(model, f"{name}_loss", lambda x, record=record, method=method: record(method(x)))
    fitted = fit(model, x, settings, progress=False)
    for name in past:
        recorded = [row[f"{name} historical averaging"] for row in fitted.history]
        assert recorded[0] == 0 and recorded[-1] > 1e-5
        assert recorded == pytest.approx(penalties[name], rel=1e-4)
        assert model.histories[name].count == 6
        np.testing.assert_allclose(model.histories[name].mean, np.mean(past[name], 0), rtol=1e-4, atol=1e-6)


def test_historical_averaging_pulls_towards_the_mean():
    model, x = gan(historical_averaging=0.3), points()
    model.generator_loss(x)
    before = parameters_to_vector(model.generator.parameters()).detach()
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.add_(0.1)
    part = model.eval().generator_loss(x).parts["historical averaging"]
    grads = torch.autograd.grad(part, list(model.generator.parameters()))
    torch.testing.assert_close(parameters_to_vector(grads), torch.full_like(before, 2 * 0.3 * 0.1))
    assert part.item() == pytest.approx(0.3 * 0.01 * len(before))
    assert model.histories["generator"].count == 1  # evaluation adds nothing


@pytest.mark.parametrize(
    "arguments",
    [{"historical_averaging": 0.1}, {"loss": "hinge", "spectral_norm": True}, {"virtual_batch_norm": True}],
)
def test_resumes_exactly(arguments, tmp_path):
    x = points(50).float()

    def interrupted(n, generator):
        interrupted.calls -= 1
        if not interrupted.calls:
            raise KeyboardInterrupt
        return x[torch.randint(50, (n,), generator=generator)]

    settings = Settings(steps=8, batch_size=8, learning_rate=0.01, log_every=1, checkpoint_every=3)
    interrupted.calls = 100
    whole = fit(gan(**arguments).float(), interrupted, settings, progress=False)
    interrupted.calls = 6
    with pytest.raises(KeyboardInterrupt):
        fit(gan(**arguments).float(), interrupted, settings, folder=tmp_path, progress=False)
    interrupted.calls = 100
    resumed = fit(gan(1, **arguments).float(), interrupted, settings, folder=tmp_path, progress=False)
    assert resumed.history == whole.history
    for a, b in zip(resumed.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_virtual_batch_norm_is_that_of_the_reference_with_the_example(shape):
    torch.manual_seed(0)
    layer = VirtualBatchNorm(4, reference=5, eps=0.01).double()
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    x = 3 + torch.randn(5 + 6, 4, *shape, dtype=torch.float64)
    actual = layer(x).detach().numpy()
    rows, broadcast = x.numpy(), (-1, *[1] * len(shape))
    for i in range(11):
        batch = rows[:5] if i < 5 else np.concatenate([rows[:5], rows[i : i + 1]])
        axes = (0, *range(2, x.ndim))
        mean, variance = batch.mean(axes), batch.var(axes)
        expected = (rows[i] - mean.reshape(broadcast)) / np.sqrt(variance.reshape(broadcast) + 0.01)
        expected = expected * layer.weight.detach().numpy().reshape(broadcast)
        expected = expected + layer.bias.detach().numpy().reshape(broadcast)
        np.testing.assert_allclose(actual[i], expected, rtol=1e-10, atol=1e-12)


def test_statistics_of_bfloat16_inputs_are_in_float32():
    torch.manual_seed(0)
    norm, minibatch = VirtualBatchNorm(4, reference=5), MinibatchDiscrimination(4, kernels=3)
    x = (3 + torch.randn(11, 4)).bfloat16()
    torch.testing.assert_close(norm(x), norm(x.float()), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        m = (x @ minibatch.project.weight.T).float().detach().numpy().reshape(11, 3, 5)
        features = minibatch(x)
    expected = np.exp(-np.abs(m[:, None] - m[None]).sum(-1)).sum(1)
    np.testing.assert_allclose(features.detach(), expected, rtol=1e-5)


@pytest.mark.parametrize(("network", "event_shape"), [("mlp", (2,)), ("conv", IMAGE)])
def test_virtual_batch_norm_frees_a_sample_from_its_minibatch(network, event_shape):
    z = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = torch.cat([z[:1], 3 * z[1:]])
    model = gan(network=network, event_shape=event_shape, virtual_batch_norm=True)
    first, second = model.generate(z), model.generate(other)
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(model.generate(z[:1])[0], first[0], rtol=0, atol=1e-12)
    assert (first[1:] - second[1:]).abs().max() > 1e-3
    assert "reference" in model.state_dict() and model.reference.shape == (REFERENCE, 3)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.generator.modules())
    if network == "conv":
        batch = gan(network=network, event_shape=event_shape)
        assert (batch.generate(z)[0] - batch.generate(other)[0]).abs().max() > 1e-3
        batch.eval()
        torch.testing.assert_close(batch.generate(z)[0], batch.generate(other)[0], rtol=0, atol=1e-12)


def test_all_techniques_at_once():
    model = gan(
        event_shape=IMAGE,
        network="conv",
        label_smoothing=0.1,
        feature_matching=1,
        minibatch_discrimination=3,
        historical_averaging=0.1,
        virtual_batch_norm=True,
    ).float()
    fitted = fit(model, images(40).float(), Settings(steps=3, batch_size=16, log_every=1), progress=False)
    assert {"generator feature matching", "generator historical averaging", "discriminator real"} <= set(
        fitted.history[-1]
    )


# --- the networks


def test_dcgan_has_its_shapes_and_its_start():
    torch.manual_seed(0)
    model = GAN(latent_dim=100, network="conv", hidden=64)
    x = model.sample(4)
    assert x.shape == (4, 1, 28, 28) and model.logits(x).shape == (4,)
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    assert [tuple(m.weight.shape) for m in model.generator if isinstance(m, kinds)] == [
        (128 * 49, 100),
        (128, 64, 4, 4),
        (64, 1, 4, 4),
    ]
    modules = list(model.discriminator.modules())
    assert [tuple(m.weight.shape) for m in modules if isinstance(m, kinds)] == [
        (64, 1, 4, 4),
        (128, 64, 4, 4),
        (1, 128 * 49),
    ]
    # Normalised everywhere but at the generator's output and the discriminator's input.
    order = [type(m).__name__ for m in modules if isinstance(m, (*kinds, nn.BatchNorm2d))]
    assert order == ["Conv2d", "Conv2d", "BatchNorm2d", "Linear"]
    order = [type(m).__name__ for m in model.generator if isinstance(m, (*kinds, nn.BatchNorm2d))]
    assert order == ["Linear", "BatchNorm2d", "ConvTranspose2d", "BatchNorm2d", "ConvTranspose2d"]
    assert [m.negative_slope for m in modules if isinstance(m, nn.LeakyReLU)] == [0.2, 0.2]
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, (*kinds, nn.BatchNorm2d)):
            mean = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
            error = 5 * 0.02 / weight.numel() ** 0.5
            assert abs(weight.mean().item() - mean) < error and abs(weight.std().item() - 0.02) < error
            assert module.bias is None or (module.bias == 0).all()


@pytest.mark.parametrize("virtual", [False, True])
def test_images_have_intensities(virtual):
    model = gan(event_shape=(3, 8, 12), network="conv", virtual_batch_norm=virtual)
    with torch.no_grad():
        for module in model.generator:
            if isinstance(module, nn.ConvTranspose2d):
                module.weight.mul_(50)
    x = model.sample(50)
    assert x.shape == (50, 3, 8, 12) and x.min() >= 0 and x.max() <= 1
    assert x.min() < 0.01 and x.max() > 0.99 and abs(x.mean() - 0.5) < 0.1


def test_discriminator_of_images_sees_them_around_zero():
    model = gan(event_shape=IMAGE, network="conv")
    first = model.discriminator.layers[0]
    x = images()
    expected = nn.functional.leaky_relu(
        nn.functional.conv2d(2 * x - 1, first[1].weight, first[1].bias, stride=2, padding=1), 0.2
    )
    torch.testing.assert_close(model.features(x, 0), expected.flatten(1))


def test_sample_is_the_generator_of_its_draws():
    model = gan()
    x = model.sample(5, torch.Generator().manual_seed(3))
    z = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.equal(x, model.generate(z).detach()) and not x.requires_grad


def test_evaluation_is_deterministic_and_changes_nothing():
    model = gan(event_shape=IMAGE, network="conv", historical_averaging=0.1).eval()
    before = copy.deepcopy(model.state_dict())
    model.discriminator_loss(images())
    model.generator_loss(images())
    model.sample(3)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    torch.testing.assert_close(model.logits(images())[:2], model.logits(images()[:2]))
    model.train()
    assert not torch.allclose(model.logits(images())[:2], model.logits(images()[:2]))


# --- training


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("game", GAMES)
def test_three_steps(game, network, precision):
    model = gan(event_shape=IMAGE, network=network, loss=game).float()
    before = copy.deepcopy(model.state_dict())
    settings = Settings(steps=3, batch_size=16, mixed_precision=precision, log_every=1)
    fitted = fit(model, images(40).float(), settings, progress=False)
    assert [row["step"] for row in fitted.history] == [1, 2, 3] and not fitted.model.training
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert not torch.equal(parameter, before[name]) or name == "discriminator.head.bias", name


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("spectral", [False, True])
def test_bfloat16_is_near_float32(game, spectral):
    x = load("mnist6k", "test").intensities()[:64]
    torch.manual_seed(0)
    model = GAN(network="conv", hidden=16, loss=game, spectral_norm=spectral).eval()
    for loss in (model.discriminator_loss, model.generator_loss):
        torch.manual_seed(1)
        exact = loss(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.manual_seed(1)
            rough = loss(x)
        assert rough.value.dtype == torch.float32
        assert not torch.equal(rough.value, exact.value)
        # Not the penalty: the slope jumps at the kinks of the critic, and the fake images are rounded.
        for name in {"real", "fake"} & set(exact.parts):
            torch.testing.assert_close(rough.parts[name], exact.parts[name], rtol=0.01, atol=0.01)  # eight bits


def test_penalty_is_not_computed_in_bfloat16():
    """Between equal examples x̂ is the example itself, so that only the precision of the penalty could differ."""
    model, x = gan(loss="wasserstein").float(), points().float()
    model.generate = lambda z: x
    exact = model.discriminator_loss(x).parts["gradient penalty"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.discriminator_loss(x).parts["gradient penalty"]
    torch.testing.assert_close(rough, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("steps", "arguments"),
    [(150, {"loss": "wasserstein", "critic_updates": 3, "gradient_penalty": 1.0}), (300, {"virtual_batch_norm": True})],
)
def test_training_goes_to_the_ring(steps, arguments):
    """The energy distance is 0 for equal distributions; that of 1,000 points from 1,000 others is below 0.02."""

    def energy_distance(x, y):
        return (2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()).item()

    torch.manual_seed(0)
    model, x = GAN((2,), latent_dim=2, hidden=48, **arguments), density("eight_gaussians").sample((5000,))
    assert energy_distance(x[:1000], model.sample(1000)) > 1.5
    settings = Settings(steps=steps, batch_size=128, learning_rate=2e-3, betas=(0.5, 0.99))
    fit(model, x, settings, progress=False)
    assert energy_distance(x[:1000], model.sample(1000)) < 0.2
    assert energy_distance(x[:1000], x[1000:2000]) < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none")
@pytest.mark.parametrize(
    "arguments",
    [
        {"loss": "wasserstein"},
        {"loss": "hinge", "spectral_norm": True},
        {"feature_matching": 1, "minibatch_discrimination": 4, "historical_averaging": 0.1, "virtual_batch_norm": True},
    ],
)
def test_cuda_agrees_with_the_cpu(arguments, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    settings = Settings(steps=3, batch_size=16, log_every=1)
    for precision in ("no", "bf16"):
        model = gan(event_shape=IMAGE, network="conv", **arguments).float()
        x = images(40).float()
        fitted = fit(model, x, replace(settings, mixed_precision=precision), device="cuda", progress=False)
        assert model.sample(2).is_cuda and len(fitted.history) == 3
    model = gan(event_shape=IMAGE, network="conv", **arguments).eval()
    z = torch.randn(40, 3, dtype=torch.float64)
    expected = model.generate(z), model.logits(images(40))
    model.cuda()
    torch.testing.assert_close(model.generate(z.cuda()).cpu(), expected[0])
    torch.testing.assert_close(model.logits(images(40).cuda()).cpu(), expected[1])


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "resnet"}, "network must be 'mlp' or 'conv', got 'resnet'"),
        (
            {"loss": "lsgan"},
            "loss must be one of 'minimax', 'non-saturating', 'hinge', 'wasserstein', got 'lsgan'",
        ),
        ({"gradient_penalty": 10}, "gradient_penalty is for the loss 'wasserstein', got 10 with 'non-saturating'"),
        ({"loss": "wasserstein", "gradient_penalty": -1.0}, "gradient_penalty must be at least 0 and finite, got -1"),
        ({"critic_updates": 0}, "critic_updates must be a positive integer, got 0"),
        ({"label_smoothing": 1}, "label_smoothing must be at least 0 and below 1, got 1"),
        ({"label_smoothing": math.nan}, "label_smoothing must be at least 0 and below 1, got nan"),
        (
            {"loss": "hinge", "label_smoothing": 0.1},
            "label_smoothing is for the cross-entropies .* got 0.1 with 'hinge'",
        ),
        ({"feature_matching": 3}, "feature_matching must be one of the discriminator's 3 hidden layers, 0 to 2, got 3"),
        (
            {"feature_matching": -1},
            "feature_matching must be one of the discriminator's 3 hidden layers, 0 to 2, got -1",
        ),
        (
            {"feature_matching": 2, "network": "conv", "event_shape": IMAGE},
            "one of the discriminator's 2 hidden layers, 0 to 1, got 2",
        ),
        ({"minibatch_discrimination": -3}, "minibatch_discrimination must be a positive integer, got -3"),
        (
            {"minibatch_discrimination": 3, "loss": "wasserstein"},
            "a function of a whole batch, but the gradient penalty bounds",
        ),
        (
            {"minibatch_discrimination": 3, "spectral_norm": True},
            "a function of a whole batch, but spectral_norm bounds",
        ),
        ({"historical_averaging": -0.1}, "historical_averaging must be at least 0 and finite, got -0.1"),
        ({"historical_averaging": math.inf}, "historical_averaging must be at least 0 and finite, got inf"),
        ({"latent_dim": 0}, "latent_dim must be a positive integer, got 0"),
        ({"hidden": 2.5}, "hidden must be a positive integer, got 2.5"),
        ({"network": "conv", "event_shape": (1, 30, 30)}, "sides divisible by 4, got \\(1, 30, 30\\)"),
        ({"network": "conv"}, "sides divisible by 4, got \\(2,\\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GAN(**({"event_shape": (2,)} | arguments))


@pytest.mark.parametrize("method", ["logits", "discriminator_loss", "generator_loss"])
def test_bad_input_is_refused(method):
    image, plane = getattr(gan(event_shape=IMAGE, network="conv"), method), getattr(gan(), method)
    for value, shown in ((1.5, "1.5"), (-0.25, "-0.25")):
        x = images()
        x[3, 0, 2, 2] = value
        with pytest.raises(ValueError, match=rf"pixel values out of range.*within \[0, 1\], got {shown}"):
            image(x)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 2\), got \(6, 3\)"):
        plane(torch.zeros(6, 3).double())
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN"):
        plane(torch.tensor([[0.0, math.nan]]).double())
    with pytest.raises(TypeError, match=r"x must have a floating dtype, got torch\.int64"):
        plane(torch.zeros(6, 2).long())


def test_bad_requests_are_refused():
    model = gan()
    with pytest.raises(ValueError, match="n must be a positive integer, got 0"):
        model.sample(0)
    with pytest.raises(ValueError, match=r"z must have shape \(batch, 3\), got \(1, 2\)"):
        model.generate(torch.zeros(1, 2).double())
    with pytest.raises(ValueError, match="layer must be one of the discriminator's 3 hidden layers, 0 to 2, got 3"):
        model.features(points(), 3)
