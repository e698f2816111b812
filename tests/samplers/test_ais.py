"""Annealed importance sampling against known normalisers, enumeration, and a path by hand."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from companion.models import IndependentPixels
from companion.models.ebm import RBM
from companion.samplers import ais, geometric_path, hmc, mala, reverse_ais

F64 = torch.float64

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


BASES = {name: Independent(Normal(torch.zeros(2, dtype=F64), s), 1) for name, s in (("normal", 1.0), ("modes", 2.0))}
# With one mode, and with two far apart; each energy is that of a normalised density, plus a constant.
TARGETS = {
    "normal": MultivariateNormal(
        torch.tensor([1.0, -0.5], dtype=F64), torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=F64)
    ),
    "modes": MixtureSameFamily(
        Categorical(torch.tensor([0.3, 0.7], dtype=F64)),
        Independent(Normal(torch.tensor([[-3.0, 0.0], [3.0, 1.0]], dtype=F64), 0.5), 1),
    ),
}
LOG_Z = 3.7


def energy_of(target):
    return lambda x: -LOG_Z - target.log_prob(x)


def by_hmc(energy, x, generator):
    return hmc(energy, x, 0.4, 1, leapfrog_steps=3, generator=generator, keep=False).last


def by_mala(energy, x, generator):
    return mala(energy, x, 0.3, 1, generator=generator, keep=False).last


def draws(distribution, n, seed=0):
    torch.manual_seed(seed)
    return distribution.sample((n,))


def weights_average(result, expected_log):
    """The weights' mean is e^expected_log to five standard errors; they are independent."""
    ratio = (result.log_weights - expected_log).exp()
    error = ratio.std() / math.sqrt(len(ratio))
    assert error < 0.1 and abs(ratio.mean() - 1) < 5 * error, f"{ratio.mean()} ± {error}"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("transition", [by_hmc, by_mala])
def test_weights_are_unbiased_both_ways(target, transition):
    # Ten steps are few: weights vary, and the chains are far from equilibrium, which must not matter.
    base, betas = BASES[target], torch.linspace(0, 1, 11) ** 2
    path = geometric_path(base.log_prob, energy_of(TARGETS[target]), transition)
    forward = ais(path, draws(base, 20_000), betas, generator=seeded(1))
    backward = reverse_ais(path, draws(TARGETS[target], 20_000), betas, generator=seeded(1))
    weights_average(forward, LOG_Z)
    weights_average(backward, -LOG_Z)
    # By Jensen, a single chain is a bound: below on average, and above on the way back.
    for log_weights, sign in ((forward.log_weights, 1), (-backward.log_weights, -1)):
        gap = sign * (LOG_Z - log_weights.mean()) / (log_weights.std() / math.sqrt(20_000))
        assert gap > 10
    for result in (forward, backward):
        low, high = result.interval
        assert low < result.value < high and abs(result.value - LOG_Z) < 5 * result.standard_error


def test_more_betas_close_the_gap():
    path = geometric_path(BASES["modes"].log_prob, energy_of(TARGETS["modes"]), by_hmc)
    gaps = []
    for steps in (5, 20, 80):
        betas = torch.linspace(0, 1, steps + 1)
        low = ais(path, draws(BASES["modes"], 2000), betas, generator=seeded(1)).log_weights.mean()
        high = -reverse_ais(path, draws(TARGETS["modes"], 2000), betas, generator=seeded(1)).log_weights.mean()
        assert low < LOG_Z < high
        gaps.append((high - low).item())
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


def test_one_step_is_importance_sampling():
    target, base = TARGETS["normal"], BASES["normal"]
    x = draws(base, 1000)
    path = geometric_path(base.log_prob, energy_of(target), by_hmc)
    got = ais(path, x, torch.tensor([0.0, 1.0]), generator=seeded(1))
    w = (LOG_Z + target.log_prob(x) - base.log_prob(x)).exp().numpy()
    np.testing.assert_allclose(got.log_weights, np.log(w), rtol=1e-12)
    assert got.value == pytest.approx(math.log(w.mean()), rel=1e-12)
    assert got.standard_error == pytest.approx(w.std(ddof=1) / w.mean() / math.sqrt(1000), rel=1e-9)
    assert got.effective_sample_size == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-9)
    width = 1.96 * got.standard_error
    assert got.interval == pytest.approx((got.value - width, got.value + width), rel=1e-12)
    back = reverse_ais(path, x, torch.tensor([0.0, 1.0]), generator=seeded(1))
    np.testing.assert_allclose(back.log_weights, -np.log(w), rtol=1e-12)
    assert back.value == pytest.approx(-math.log((1 / w).mean()), rel=1e-12)


def test_the_path_by_hand():
    """Transitions that only move on and write down the energy they are given, at fixed betas."""
    seen, betas = [], [0.0, 0.25, 0.5, 1.0]

    def transition(energy, x, generator):
        seen.append(energy(torch.tensor([[1.0], [2.0]], dtype=F64)).tolist())
        return x + 1

    # f_β = e^{-(1-β)x - 3βx²}, so that log f_β'(x) - log f_β(x) = (β' - β)(x - 3x²)
    path = geometric_path(lambda x: -x[:, 0], lambda x: 3 * x[:, 0] ** 2, transition)
    x = torch.tensor([[1.0], [2.0]], dtype=F64)
    forward = ais(path, x, torch.tensor(betas))
    step = lambda x: x - 3 * x**2  # noqa: E731
    by_hand = [0.25 * step(x) + 0.25 * step(x + 1) + 0.5 * step(x + 2) for x in (1, 2)]
    assert forward.log_weights.tolist() == pytest.approx(by_hand)
    assert seen == pytest.approx(np.array([[(1 - b) * x + 3 * b * x**2 for x in (1, 2)] for b in betas[1:]]))
    seen.clear()
    backward = reverse_ais(path, x, torch.tensor(betas))
    by_hand = [-0.5 * step(x) - 0.25 * step(x + 1) - 0.25 * step(x + 2) for x in (1, 2)]
    assert backward.log_weights.tolist() == pytest.approx(by_hand)
    assert seen == pytest.approx(np.array([[(1 - b) * x + 3 * b * x**2 for x in (1, 2)] for b in (0.5, 0.25, 0)]))


def test_the_interval_covers():
    base, betas, n, repeats = BASES["normal"], torch.linspace(0, 1, 21) ** 2, 200, 200
    path = geometric_path(base.log_prob, energy_of(TARGETS["normal"]), by_hmc)
    for function, start, sign in ((ais, base, 1), (reverse_ais, TARGETS["normal"], -1)):
        log_weights = function(path, draws(start, n * repeats), betas, generator=seeded(1)).log_weights
        means = (log_weights.view(repeats, n).logsumexp(1) - math.log(n)) * sign
        groups = [estimate(group) for group in log_weights.view(repeats, n)]
        assert min(group.effective_sample_size for group in groups) > 20
        inside = [abs(mean - LOG_Z) < 1.96 * g.standard_error for mean, g in zip(means, groups, strict=True)]
        covered = np.mean(inside)
        assert abs(covered - 0.95) < 5 * math.sqrt(0.95 * 0.05 / repeats)


def estimate(log_weights):
    """What `ais` makes of these weights."""
    return ais(lambda x, before, after, generator: (x, x), log_weights, torch.tensor([0.0, 1.0]))


# --- of a restricted Boltzmann machine


def machine(seed=0, shape=(1, 2, 3), hidden=4, scale=1.5):
    torch.manual_seed(seed)
    model = RBM(shape, hidden).double()
    with torch.no_grad():
        model.weight.normal_().mul_(scale)
        model.bias.normal_()
        model.hidden_bias.normal_()
    return model


def base(seed=5, shape=(1, 2, 3)):
    pixels = IndependentPixels(shape).double()
    with torch.no_grad():
        pixels.logits.copy_(torch.randn(shape, generator=seeded(seed)))
    return pixels


def states(n):
    return torch.from_numpy(np.array(list(np.ndindex(*[2] * n)), dtype=float))


def exact_log_z(model):
    """Over both kinds of units, by NumPy."""
    w, b, c = (t.detach().numpy() for t in (model.weight, model.bias, model.hidden_bias))
    v, h = states(model.pixels).numpy(), states(model.hidden).numpy()
    return np.log(np.exp((v @ b)[:, None] + (h @ c)[None] + v @ w.T @ h.T).sum())


def exact_draws(model, n, seed=0):
    v = states(model.pixels).view(-1, *model.event_shape)
    return v[torch.multinomial(model.unnormalised_log_prob(v).softmax(0), n, replacement=True, generator=seeded(seed))]


def test_ratios_of_the_rbm_path_are_those_of_the_joint():
    # f_β(v) = Σ_h (p_0(v) / 2^H)^{1-β} e^{-βE(v, h)}, with loops over h by NumPy.
    model, pixels = machine(), base()
    w, b, c = (t.detach().numpy() for t in (model.weight, model.bias, model.hidden_bias))
    v, h = states(6).numpy(), states(4).numpy()
    x = states(6).view(-1, 1, 2, 3)
    log_base = pixels.log_prob(x).detach().numpy() - 4 * math.log(2)

    def log_f(beta):
        minus_energy = (v @ b)[:, None] + (h @ c)[None] + v @ w.T @ h.T
        return np.log(np.exp((1 - beta) * log_base[:, None] + beta * minus_energy).sum(1))

    path = model.path(pixels.logits)
    np.testing.assert_allclose(np.exp(log_f(0)).sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(log_f(1), model.unnormalised_log_prob(x).detach(), rtol=1e-12)
    for before, after in ((0, 0.3), (0.3, 0.7), (0.7, 1), (1, 0.4), (0.4, 0)):
        got, _ = path(x, before, after, None)
        np.testing.assert_allclose(got, log_f(after) - log_f(before), rtol=1e-9, atol=1e-12)
        # What makes the weights unbiased: the mean ratio is that of the normalisers.
        p = np.exp(log_f(before)) / np.exp(log_f(before)).sum()
        assert (p * np.exp(got.numpy())).sum() == pytest.approx(
            np.exp(log_f(after)).sum() / np.exp(log_f(before)).sum()
        )


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_transitions_of_the_rbm_path_are_in_detailed_balance(beta):
    model, pixels = machine(), base()
    x, path = states(6).view(-1, 1, 2, 3), model.path(pixels.logits)
    log_f, _ = path(x, 0, beta, None)
    p = (log_f + pixels.log_prob(x)).softmax(0).detach()
    n = 300_000
    before = torch.multinomial(p, n, replacement=True, generator=seeded(0))
    _, after = path(x[before], 0.2, beta, seeded(1))
    after = (after.flatten(1) @ 2.0 ** torch.arange(5, -1, -1, dtype=F64)).long()
    flow = torch.zeros(64, 64, dtype=F64).index_put_((before, after), torch.ones(n, dtype=F64), accumulate=True)
    # The flow from a to b is that from b to a, and what arrives has the probabilities of what started.
    pairs = torch.triu(flow + flow.T, 1)
    z = ((flow - flow.T) / (flow + flow.T).sqrt())[pairs >= 20]
    assert len(z) > 100 and z.abs().max() < 5 and z.square().mean() < 1 + 5 * math.sqrt(2 / len(z))
    arrived = flow.sum(0)
    assert ((arrived - n * p).abs() < 5 * (n * p).sqrt() + 5).all()


def test_bounds_of_a_small_rbm_enclose_its_normaliser():
    model, pixels = machine(), base()
    exact, path = exact_log_z(model), model.path(pixels.logits)
    assert model.log_partition().item() == pytest.approx(exact, rel=1e-12)
    for steps in (1, 3, 30):
        betas = torch.linspace(0, 1, steps + 1)
        forward = ais(path, pixels.sample(20_000, seeded(0)), betas, generator=seeded(1))
        backward = reverse_ais(path, exact_draws(model, 20_000), betas, generator=seeded(1))
        assert forward.log_weights.mean() < exact < -backward.log_weights.mean()
        weights_average(forward, exact)
        if steps > 1:
            weights_average(backward, -exact)
    assert forward.interval[0] < exact < forward.interval[1] and forward.standard_error < 0.01
    assert backward.interval[0] < exact < backward.interval[1] and backward.standard_error < 0.02


def test_path_wants_logits_of_an_image():
    with pytest.raises(ValueError, match=r"logits must have shape \(1, 2, 3\), got \(6,\)"):
        machine().path(torch.zeros(6))


# --- errors


def flat(x, before, after, generator):
    return x.sum(1) * (after - before), x


@pytest.mark.parametrize("function", [ais, reverse_ais])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"betas": [0.0, 1.0]}, TypeError, "betas must be a tensor of one dimension, got list"),
        ({"betas": torch.zeros(2, 2)}, TypeError, r"betas must be a tensor of one dimension, got shape \(2, 2\)"),
        ({"betas": torch.tensor([0.0])}, ValueError, "betas must rise from 0 to 1, got"),
        ({"betas": torch.tensor([0.1, 1.0])}, ValueError, "betas must rise from 0 to 1, got"),
        ({"betas": torch.tensor([0.0, 0.9])}, ValueError, "betas must rise from 0 to 1, got"),
        ({"betas": torch.tensor([0.0, 0.5, 0.5, 1.0])}, ValueError, "betas must rise from 0 to 1, got"),
        ({"betas": torch.tensor([0.0, math.nan, 1.0])}, ValueError, "betas must rise from 0 to 1, got"),
        ({"x": torch.zeros(1, 2)}, ValueError, "x must hold at least two chains, .* got 1"),
        ({"x": torch.full((3, 2), math.nan)}, ValueError, "x must be finite, got 6"),
        ({"x": None}, TypeError, "x must be a floating-point tensor, got NoneType"),
        ({"path": lambda x, *_: (x, x)}, ValueError, r"path must give ratios of shape \(3,\), got \(3, 2\)"),
    ],
)
def test_wrong_arguments(function, change, error, message):
    arguments = {"path": flat, "x": torch.zeros(3, 2), "betas": torch.tensor([0.0, 0.5, 1.0])} | change
    with pytest.raises(error, match=message):
        function(**arguments)


def test_a_lost_chain_is_named():
    def path(x, before, after, generator):
        return torch.tensor([0.0, 1.0, math.inf if after > 0.6 else 0.0]), x

    with pytest.raises(FloatingPointError, match=r"chain 2 is lost from β = 0\.5 to 0\.75: its log weight is inf"):
        ais(path, torch.zeros(3, 2), torch.linspace(0, 1, 5))


def test_progress_bar_and_generator(capfd):
    path = geometric_path(BASES["normal"].log_prob, energy_of(TARGETS["normal"]), by_mala)
    x, betas, state = draws(BASES["normal"], 10), torch.linspace(0, 1, 5), torch.get_rng_state()
    first = ais(path, x, betas, generator=seeded(1)).log_weights
    assert capfd.readouterr().err == "" and torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, ais(path, x, betas, generator=seeded(1), progress=True).log_weights)
    assert "4/4" in capfd.readouterr().err
