"""The restricted Boltzmann machine against sums over all of its states, by NumPy."""

import math

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from companion.conformance import check
from companion.data import load
from companion.models import IndependentPixels, answers
from companion.models.ebm import RBM
from companion.presets import start, training_data
from companion.training import Settings, fit, load_model, save_model

F64 = torch.float64
SIZES = [((1, 2, 2), 3), ((3,), 5), ((1,), 1)]

pytestmark = pytest.mark.usefixtures("one_thread")


def machine(shape=(1, 2, 2), hidden=3, seed=0, **arguments):
    """One in float64 whose units matter to each other."""
    torch.manual_seed(seed)
    model = RBM(shape, hidden, **arguments).double()
    with torch.no_grad():
        model.weight.normal_().mul_(1.5)
        model.bias.normal_()
        model.hidden_bias.normal_()
    return model


def states(n):
    return np.array(list(np.ndindex(*[2] * n)), dtype=float)


def images(model):
    return torch.from_numpy(states(model.pixels)).view(-1, *model.event_shape)


def joint(model):
    """p(v, h) of all pairs, and Z, straight from the definition, with loops over the units."""
    w, b, c = (t.detach().numpy() for t in (model.weight, model.bias, model.hidden_bias))
    table = np.zeros((2**model.pixels, 2**model.hidden))
    for i, v in enumerate(states(model.pixels)):
        for j, h in enumerate(states(model.hidden)):
            energy = -sum(b[d] * v[d] for d in range(model.pixels)) - sum(c[k] * h[k] for k in range(model.hidden))
            energy -= sum(h[k] * w[k, d] * v[d] for k in range(model.hidden) for d in range(model.pixels))
            table[i, j] = math.exp(-energy)
    return table / table.sum(), table.sum()


def kernel(model):
    """T[a, b], the probability that a Gibbs step leads from image a to image b: Σ_h p(h|a) p(b|h), from the joint."""
    p, _ = joint(model)
    return (p / p.sum(1, keepdims=True)) @ (p / p.sum(0)).T


def index(model, x):
    return (x.flatten(1) @ 2.0 ** torch.arange(model.pixels - 1, -1, -1, dtype=x.dtype)).long()


def within(draws, expected):
    error = draws.std(0) / math.sqrt(len(draws))
    off = ((draws.mean(0) - expected).abs() / error).max().item()
    assert off < 5, f"{draws.mean(0)} is {off:.1f} standard errors from {expected}"


# --- the distribution


@pytest.mark.parametrize(("shape", "hidden"), SIZES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_energy_and_normaliser_are_sums_over_all_states(shape, hidden, seed):
    model = machine(shape, hidden, seed)
    p, z = joint(model)
    x = images(model)
    np.testing.assert_allclose(model.energy(x).detach(), -np.log(z * p.sum(1)), rtol=1e-9, atol=1e-12)
    assert model.log_partition().item() == pytest.approx(math.log(z), rel=1e-12)
    assert torch.equal(model.unnormalised_log_prob(x), -model.energy(x))
    normalised = (model.unnormalised_log_prob(x) - model.log_partition()).exp().detach()
    np.testing.assert_allclose(normalised, p.sum(1), rtol=1e-9)


@pytest.mark.parametrize(("shape", "hidden"), SIZES)
def test_conditionals_are_those_of_the_joint(shape, hidden):
    model = machine(shape, hidden)
    p, _ = joint(model)
    x, h = images(model), torch.from_numpy(states(hidden))
    given_x = model.hidden_given_visible(x)
    assert given_x.batch_shape == (len(x),) and given_x.event_shape == (hidden,)
    got = torch.stack([given_x.log_prob(row.expand(len(x), -1)) for row in h], 1).exp()
    np.testing.assert_allclose(got.detach(), p / p.sum(1, keepdims=True), rtol=1e-9)
    given_h = model.visible_given_hidden(h)
    assert given_h.batch_shape == (len(h),) and given_h.event_shape == shape
    got = torch.stack([given_h.log_prob(row.expand(len(h), *shape)) for row in x]).exp()
    np.testing.assert_allclose(got.detach(), p / p.sum(0), rtol=1e-9)


def test_normaliser_is_the_same_from_both_sides():
    # 13 and 12 units, in more than one chunk of states; the mirrored model has the other side enumerated.
    model = machine((13,), 12)
    mirror = RBM((12,), 13).double()
    with torch.no_grad():
        mirror.weight.copy_(model.weight.T)
        mirror.bias.copy_(model.hidden_bias)
        mirror.hidden_bias.copy_(model.bias)
    by_hand = torch.logsumexp(-model.energy(torch.from_numpy(states(13))), 0)
    for z in (model.log_partition(), mirror.log_partition()):
        assert z.item() == pytest.approx(by_hand.item(), rel=1e-12) and z.dtype == F64 and not z.requires_grad
    assert model.float().log_partition().item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_normaliser_without_weights_has_a_closed_form():
    model = RBM((1, 28, 28), 12)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.linspace(-3, 3, 784))
        model.hidden_bias.copy_(torch.linspace(-1, 2, 12))
    expected = sum(np.logaddexp(0, t.detach().double().numpy()).sum() for t in (model.bias, model.hidden_bias))
    assert model.log_partition().item() == pytest.approx(expected, rel=1e-6)


def test_too_large_a_normaliser():
    with pytest.raises(ValueError, match="the smaller of 784 pixels and 26 hidden units must be at most 25"):
        RBM((1, 28, 28), 26).log_partition()


# --- drawing from it


@pytest.mark.parametrize("steps", [1, 3])
def test_gibbs_has_the_transition_probabilities_of_the_joint(steps):
    model = machine()
    expected = torch.from_numpy(np.linalg.matrix_power(kernel(model), steps))
    n, x = 20_000, images(model)
    after = model.gibbs(x.repeat_interleave(n, 0), steps, torch.Generator().manual_seed(0))
    assert after.shape == (16 * n, 1, 2, 2) and not after.requires_grad
    counts = torch.zeros(16, 16, dtype=F64)
    counts.index_put_(
        (torch.arange(16).repeat_interleave(n), index(model, after)), counts.new_ones(()), accumulate=True
    )
    error = (expected * (1 - expected) * n).sqrt()
    z = (counts - n * expected) / error
    assert z.abs().max() < 5 and z.square().mean() < 1 + 5 * math.sqrt(2 / 256)


def test_gibbs_leaves_the_distribution_as_it_is_and_is_in_detailed_balance():
    model = machine()
    p = joint(model)[0].sum(1)
    t = kernel(model)
    np.testing.assert_allclose(p @ t, p, rtol=1e-12)
    np.testing.assert_allclose(p[:, None] * t, (p[:, None] * t).T, atol=1e-15)


def test_samples_have_the_probabilities_of_the_model():
    model, n = machine(), 40_000
    p = torch.from_numpy(joint(model)[0].sum(1))
    # From fair coins, the distance to p is known for any number of steps; 60 leave nothing of it.
    t = np.linalg.matrix_power(kernel(model), 60)
    assert np.abs(np.full(16, 1 / 16) @ t - p.numpy()).max() < 1e-6
    x = model.sample(n, torch.Generator().manual_seed(0), steps=60)
    assert x.shape == (n, 1, 2, 2) and x.dtype == F64
    counts = torch.bincount(index(model, x), minlength=16)
    assert ((counts - n * p).abs() < 5 * (n * p * (1 - p)).sqrt()).all()
    # One step from fair coins is not enough, and has the probabilities that it should have.
    once = torch.from_numpy(np.full(16, 1 / 16) @ kernel(model))
    counts = torch.bincount(index(model, model.sample(n, torch.Generator().manual_seed(0), steps=1)), minlength=16)
    assert ((counts - n * once).abs() < 5 * (n * once * (1 - once)).sqrt()).all()
    assert ((counts - n * p).abs() > 10 * (n * p * (1 - p)).sqrt()).any()


def test_draws_come_from_the_generator_alone():
    model = machine()
    state = torch.get_rng_state()
    first = model.sample(50, torch.Generator().manual_seed(3), steps=5)
    assert torch.equal(first, model.sample(50, torch.Generator().manual_seed(3), steps=5))
    assert torch.equal(model.gibbs(first, 2, torch.Generator()), model.gibbs(first, 2, torch.Generator()))
    assert not torch.equal(first, model.sample(50, torch.Generator().manual_seed(4), steps=5))
    assert torch.equal(state, torch.get_rng_state())


# --- learning


def energy_gradients(model):
    """∇_θ E of every image, (images, parameters), by autograd, one image at a time."""
    rows = []
    for x in images(model):
        gradients = torch.autograd.grad(model.energy(x[None]).sum(), list(model.parameters()))
        rows.append(parameters_to_vector(gradients))
    return torch.stack(rows)


def exact_gradient(model, data):
    """∇_θ of the mean of -log p, by finite differences of energies and of log Z."""
    vector, gradient = parameters_to_vector(model.parameters()).detach(), []
    for i in range(len(vector)):
        sides = []
        for sign in (1, -1):
            moved = vector.clone()
            moved[i] += sign * 1e-5
            torch.nn.utils.vector_to_parameters(moved, model.parameters())
            sides.append((model.energy(data).mean() + model.log_partition()).item())
        gradient.append((sides[0] - sides[1]) / 2e-5)
    torch.nn.utils.vector_to_parameters(vector, model.parameters())
    return torch.tensor(gradient, dtype=F64)


DATA = [0, 3, 3, 9, 14, 15, 6, 3]


def loss_gradients(model, data, repeats):
    rows = []
    for _ in range(repeats):
        loss = model.loss(data).value.mean()
        rows.append(parameters_to_vector(torch.autograd.grad(loss, list(model.parameters()))))
    return torch.stack(rows)


@pytest.mark.parametrize("k", [1, 2])
def test_gradient_of_contrastive_divergence_is_its_expectation(k):
    # Σ_x q(x) ∇E(x) - Σ_x' (q Tᵏ)(x') ∇E(x'), with the transition matrix of all images
    model = machine(k=k)
    with torch.no_grad():
        model.weight *= 2  # modes, so that a few steps are not as good as many
    q = np.bincount(DATA, minlength=16) / len(DATA)

    def expected(steps):
        after = torch.from_numpy(q - q @ np.linalg.matrix_power(kernel(model), steps))
        return after @ energy_gradients(model)

    draws = loss_gradients(model, images(model)[DATA].repeat(50, 1, 1, 1), 300)
    within(draws, expected(k))
    # Neither one step more, nor one fewer, nor the likelihood has this gradient.
    for other in (expected(k + 1), expected(k - 1), exact_gradient(model, images(model)[DATA])):
        assert ((other - expected(k)).abs() > 10 * draws.std(0) / math.sqrt(300)).any()


def test_with_many_steps_it_is_the_gradient_of_the_likelihood():
    model = machine()
    q = np.bincount(DATA, minlength=16) / len(DATA)
    after = torch.from_numpy(q - q @ np.linalg.matrix_power(kernel(model), 100))
    exact = exact_gradient(model, images(model)[DATA])
    torch.testing.assert_close(after @ energy_gradients(model), exact, rtol=1e-6, atol=1e-6)
    model.k = 40
    within(loss_gradients(model, images(model)[DATA].repeat(20, 1, 1, 1), 100), exact)


def test_persistent_chains_go_on_where_they_were():
    model, data = machine(k=2, chains=5000), images(machine())[DATA]
    q = torch.bincount(index(model, model.chains), minlength=16).double().numpy() / 5000
    gradients, t = energy_gradients(model), np.linalg.matrix_power(kernel(model), 2)
    for _ in range(3):
        before = model.chains.clone()
        q = torch.bincount(index(model, before), minlength=16).double().numpy() / 5000
        loss = model.loss(data)
        assert not torch.equal(model.chains, before)
        # The samples of the loss are where the chains are now.
        expected = model.energy(data) - model.energy(model.chains.view(-1, 1, 2, 2)).mean()
        torch.testing.assert_close(loss.value, expected)
        got = parameters_to_vector(torch.autograd.grad(loss.value.mean(), list(model.parameters())))
        at_chains = gradients[index(model, model.chains)]
        torch.testing.assert_close(got, gradients[DATA].mean(0) - at_chains.mean(0))
        # They moved two steps: their energies' gradients are as often there as the transition matrix says.
        spread = at_chains.std(0) / math.sqrt(5000)
        assert ((at_chains.mean(0) - torch.from_numpy(q @ t) @ gradients).abs() < 5 * spread + 1e-12).all()
    model.eval()
    before = model.chains.clone()
    model.loss(data)
    assert torch.equal(model.chains, before)


def test_loss_is_per_example_with_parts_and_no_claim():
    for model in (machine(), machine(chains=7)):
        x = images(model)
        torch.manual_seed(1)
        loss = model.loss(x)
        assert loss.value.shape == (16,) and loss.unit == "energy difference"
        torch.testing.assert_close(sum(loss.parts.values()), loss.value)
        torch.testing.assert_close(loss.parts["energy of the data"], model.energy(x))
    torch.manual_seed(1)
    model = machine(k=3)
    torch.manual_seed(1)
    loss = model.loss(x)
    torch.manual_seed(1)
    torch.testing.assert_close(loss.parts["minus energy of samples"], -model.energy(model.gibbs(x, 3)))


def test_it_starts_at_independent_pixels():
    x = torch.bernoulli(torch.rand(1, 1, 4, 5), generator=torch.Generator()).expand(30, -1, -1, -1).clone()
    x[:10, :, :2] = 1 - x[:10, :, :2]
    torch.manual_seed(0)
    model = RBM((1, 4, 5), 6, chains=20_000)
    assert abs(model.chains.mean() - 0.5) < 5 * 0.5 / math.sqrt(model.chains.numel())
    assert abs(model.weight.std() - 0.01) < 0.002 and not model.bias.any() and not model.hidden_bias.any()
    assert model.initialise(x) is model
    pixels = IndependentPixels((1, 4, 5)).fit(x)
    torch.testing.assert_close(model.bias, pixels.logits.flatten())
    p = pixels.logits.flatten().sigmoid()
    assert ((model.chains.mean(0) - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt()).all()
    with torch.no_grad():
        model.weight.zero_()
        normalised = model.unnormalised_log_prob(x) - model.log_partition()
    torch.testing.assert_close(normalised, pixels.log_prob(x).detach())


def test_likelihood_rises_to_the_best_there_is():
    # Four images of six pixels, in equal parts: at best -log p is log 4. Persistent chains do not jump between four
    # images as fast as these are learned.
    x = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1.0]])
    for chains, learning_rate, reached in ((None, 0.05, 1.6), (100, 0.03, 2.2)):
        torch.manual_seed(0)
        model = RBM((6,), 8, k=5, chains=chains).initialise(x)
        at_start = (model.energy(x).mean() + model.log_partition()).item()
        settings = Settings(steps=400, batch_size=64, learning_rate=learning_rate, ema_decay=0.98)
        fit(model, x, settings, progress=False)
        nats = (model.energy(x).mean() + model.log_partition()).item()
        assert at_start > 3.9 and math.log(4) < nats < reached


def test_digits():
    train, test = load("mnist6k"), load("mnist6k", "test")
    torch.manual_seed(0)
    model = start(RBM((1, 28, 28), 10, chains=64), train, "dynamic")
    x = test.binarized(seed=0)

    def nats():
        with torch.no_grad():
            return (model.energy(x).mean() + model.log_partition()).item()

    floor = nats()
    assert 200 < floor < 211
    settings = Settings(steps=300, batch_size=64, learning_rate=0.01, ema_decay=0.98)
    fit(model, training_data(train, "dynamic"), settings, progress=False)
    assert nats() < 190


def test_a_run_goes_on_with_its_chains(tmp_path):
    x = torch.bernoulli(torch.full((40, 6), 0.4), generator=torch.Generator())
    runs = []
    for name, stops in (("whole", [8]), ("parts", [4, 8])):
        for steps in stops:
            torch.manual_seed(0)
            model = RBM((6,), 4, chains=10)
            settings = Settings(steps=8, batch_size=16, checkpoint_every=4)
            data = x if steps == 8 else Stop(x, 5)
            try:
                fit(model, data, settings, folder=tmp_path / name, progress=False)
            except KeyboardInterrupt:
                continue
        runs.append(model.state_dict())
    assert "chains" in runs[0]
    for name, tensor in runs[0].items():
        assert torch.equal(tensor, runs[1][name]), name
    save_model(model, tmp_path / "rbm.safetensors", {})
    other = RBM((6,), 4, chains=10)
    load_model(other, tmp_path / "rbm.safetensors")
    assert torch.equal(other.chains, model.chains) and "chains" not in RBM((6,), 4).state_dict()


class Stop:
    """Batches, until somebody ends the run."""

    def __init__(self, x, after):
        self.x, self.left = x, after

    def __call__(self, n, generator):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.x[torch.randint(len(self.x), (n,), generator=generator)]


def test_autocast_leaves_energies_and_draws_in_full_precision():
    torch.manual_seed(0)
    model = RBM((1, 8, 8), 20, chains=30)
    with torch.no_grad():
        model.weight.normal_()
    x = model.sample(5, steps=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        energy, loss, draws = model.energy(x), model.loss(x), model.gibbs(x, 2)
    assert torch.equal(energy, model.energy(x)) and loss.value.dtype == draws.dtype == torch.float32
    assert ((draws == 0) | (draws == 1)).all()


# --- what it answers, and errors


def test_what_it_answers():
    assert answers(RBM) == ["loss", "sample", "energy"]
    for model in (machine(), machine(chains=10)):
        report = check(model, support="binary")
        assert report.passed, report
        assert "sample is repeatable" in str(report) and "loss is in its unit" in str(report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": 0}, "hidden must be a positive integer, got 0"),
        ({"k": 0}, "k must be a positive integer, got 0"),
        ({"k": 1.0}, "k must be a positive integer, got 1.0"),
        ({"chains": 0}, "chains must be a positive integer, got 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RBM((1, 2, 2), **arguments)


@pytest.mark.parametrize("method", ["energy", "unnormalised_log_prob", "hidden_given_visible", "loss", "initialise"])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.full((2, 1, 2, 2), 0.5), ValueError, "x must hold only 0 and 1, got 0.5"),
        (torch.zeros(2, 4), ValueError, r"x must have shape \(batch, 1, 2, 2\), got \(2, 4\)"),
        (torch.zeros(2, 1, 2, 2).long(), TypeError, "x must have a floating dtype"),
        (torch.full((2, 1, 2, 2), math.nan), ValueError, "x must be finite"),
    ],
)
def test_wrong_images(method, x, error, message):
    with pytest.raises(error, match=message):
        getattr(RBM((1, 2, 2), 3), method)(x)


def test_other_wrong_input():
    model = RBM((1, 2, 2), 3)
    with pytest.raises(ValueError, match="x must hold only 0 and 1"):
        model.gibbs(torch.full((2, 1, 2, 2), 0.5), 1)
    with pytest.raises(ValueError, match=r"h must have shape \(batch, 3\), got \(2, 4\)"):
        model.visible_given_hidden(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="h must hold only 0 and 1"):
        model.visible_given_hidden(torch.full((2, 3), 0.5))
    for call in (
        lambda: model.sample(0),
        lambda: model.sample(2, steps=0),
        lambda: model.gibbs(torch.zeros(1, 1, 2, 2), 0),
    ):
        with pytest.raises(ValueError, match="must be a positive integer, got 0"):
            call()
