"""The samplers against closed forms, NumPy, their own definition, and each other."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.signal import lfilter
from torch.autograd.functional import jacobian
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from companion.samplers import effective_sample_size, gibbs, hmc, langevin, leapfrog, mala, split_r_hat

F64 = torch.float64
SAMPLERS = {
    "langevin": lambda *a, **k: langevin(*a, **k),
    "mala": lambda *a, **k: mala(*a, **k),
    "hmc": lambda *a, **k: hmc(*a, leapfrog_steps=3, **k),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=seeded(seed))


def double_well(x):
    """x⁴/4 - x²/2 + x/3, with a curvature of both signs; summed over the event."""
    return (x**4 / 4 - x**2 / 2 + x / 3).flatten(1).sum(1)


def double_well_gradient(x):
    return x**3 - x + 1 / 3


def within(draws, expected):
    """The mean over the first dimension, to five standard errors; the draws are independent."""
    error = draws.std(0) / math.sqrt(len(draws))
    off = ((draws.mean(0) - expected) / error).abs().max().item()
    assert off < 5, f"{draws.mean(0)} is {off:.1f} standard errors from {expected}"


# --- Langevin, unadjusted


def test_langevin_is_the_recursion_under_the_same_noise():
    x, step_size, temperature = normal(5, 2, 3), 0.3, 0.7
    got = langevin(double_well, x, step_size, 4, temperature=temperature, generator=seeded(1))
    generator, state = seeded(1), x.numpy()
    for step in range(4):
        noise = torch.randn(5, 2, 3, dtype=F64, generator=generator).numpy()
        slope = state**3 - state + 1 / 3
        state = state - step_size / 2 * slope + math.sqrt(step_size * temperature) * noise
        np.testing.assert_allclose(got.samples[step], state, rtol=1e-12)
    assert torch.equal(got.last, got.samples[-1]) and (got.acceptance == 1).all()


def test_langevin_mean_and_variance_follow_their_recursion():
    # Of E = λx²/2 the step is linear: the mean shrinks by 1 - ελ/2, the variance by its square, and gains ε.
    rate, step_size, mean, variance = torch.tensor([0.5, 2.0, 7.0], dtype=F64), 0.4, 3.0, 0.0
    x = torch.full((200_000, 3), mean, dtype=F64)
    got = langevin(lambda x: (rate * x**2 / 2).sum(1), x, step_size, 6, generator=seeded())
    for step in range(6):
        shrink = 1 - step_size * rate / 2
        mean, variance = mean * shrink, variance * shrink**2 + step_size
        within(got.samples[step], mean)
        within((got.samples[step] - mean) ** 2, variance)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_langevin_stationary_variance(temperature):
    # v = (1 - ελ/2)² v + εT, hence v = T / (λ (1 - ελ/4))
    rate, step_size = torch.tensor([0.5, 1.0, 3.0], dtype=F64), 0.5
    got = langevin(
        lambda x: (rate * x**2 / 2).sum(1),
        normal(40_000, 3),
        step_size,
        50,
        temperature=temperature,
        generator=seeded(1),
        keep=False,
    )
    exact = temperature / (rate * (1 - step_size * rate / 4))
    assert ((exact - temperature / rate) > 0.05 * exact).all()  # far from e^{-E/T} at this step size
    within(got.last**2, exact)
    within(got.last, torch.zeros(3))


def test_langevin_without_noise_is_gradient_descent():
    x = normal(3, 2)
    got = langevin(double_well, x, 0.2, 50, temperature=0, generator=seeded(1))
    for sample in got.samples:
        x = x - 0.1 * double_well_gradient(x)
        torch.testing.assert_close(sample, x)
    assert (double_well(got.last) <= double_well(normal(3, 2))).all()


# --- Metropolis


def metropolis(energy, gradient, x, step_size, steps, leapfrog_steps, generator, langevin):
    """MALA or HMC by NumPy, one chain after the other, from the same random numbers. Returns states and acceptances."""
    state, states, moved = x.numpy().copy(), [], []
    for _ in range(steps):
        noise = torch.randn(x.shape, dtype=F64, generator=generator).numpy()
        uniform = torch.rand(len(x), dtype=F64, generator=generator).numpy()
        accepted = np.zeros(len(x))
        for i in range(len(x)):
            now = state[i]
            if langevin:
                proposal = now - step_size / 2 * gradient(now) + math.sqrt(step_size) * noise[i]
                there, back = proposal - now, now - proposal
                log_there = -((there + step_size / 2 * gradient(now)) ** 2).sum() / (2 * step_size)
                log_back = -((back + step_size / 2 * gradient(proposal)) ** 2).sum() / (2 * step_size)
                ratio = math.exp(energy(now) - energy(proposal) + log_back - log_there)
            else:
                proposal, momentum = now.copy(), noise[i].copy()
                for _ in range(leapfrog_steps):
                    momentum -= step_size * gradient(proposal) / 2
                    proposal = proposal + step_size * momentum
                    momentum -= step_size * gradient(proposal) / 2
                before = energy(now) + (noise[i] ** 2).sum() / 2
                ratio = math.exp(before - energy(proposal) - (momentum**2).sum() / 2)
            if uniform[i] < ratio:
                state[i], accepted[i] = proposal, 1
        states.append(state.copy())
        moved.append(accepted)
    return np.stack(states), np.stack(moved)


def well_of_one(x):
    return (x**4 / 4 - x**2 / 2 + x / 3).sum()


@pytest.mark.parametrize("kind", ["mala", "hmc"])
def test_metropolis_is_that_of_numpy_decision_by_decision(kind):
    x, step_size = normal(1000, 2), 0.7 if kind == "mala" else 0.6
    states, moved = metropolis(
        well_of_one, double_well_gradient, x, step_size, 4, 3, seeded(1), langevin=kind == "mala"
    )
    got = SAMPLERS[kind](double_well, x, step_size, 4, generator=seeded(1))
    np.testing.assert_allclose(got.samples, states, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got.acceptance, moved.mean(0))
    assert 0.5 < moved.mean() < 0.95  # both happen


def test_mala_is_hmc_with_one_step():
    x, step_size = normal(2000, 3), 0.8
    a = mala(double_well, x, step_size, 5, generator=seeded(1))
    b = hmc(double_well, x, math.sqrt(step_size), 5, leapfrog_steps=1, generator=seeded(1))
    torch.testing.assert_close(a.samples, b.samples)
    assert torch.equal(a.acceptance, b.acceptance) and 0.1 < a.acceptance.mean() < 0.9


CORRELATED = MultivariateNormal(torch.tensor([1.0, -2.0], dtype=F64), torch.tensor([[1.0, 0.9], [0.9, 2.0]], dtype=F64))
BIMODAL = MixtureSameFamily(
    Categorical(torch.tensor([0.3, 0.7], dtype=F64)),
    MultivariateNormal(
        torch.tensor([[-1.0, 0.0], [1.2, 0.5]], dtype=F64),
        torch.tensor([[[0.5, 0.2], [0.2, 0.4]], [[0.3, 0.0], [0.0, 0.6]]], dtype=F64),
    ),
)


def moments(x):
    """(n, 5): the coordinates, their squares, and their product."""
    return torch.cat([x, x**2, x[:, :1] * x[:, 1:]], 1)


def exact_moments(target):
    grid = torch.linspace(-9, 9, 1201, dtype=F64)
    x = torch.cartesian_prod(grid, grid)
    p = target.log_prob(x).exp() * (grid[1] - grid[0]) ** 2
    assert abs(p.sum() - 1) < 1e-6
    return p @ moments(x)


@pytest.mark.parametrize("target", [CORRELATED, BIMODAL], ids=["correlated", "bimodal"])
@pytest.mark.parametrize(("kind", "step_size", "steps"), [("mala", 0.4, 80), ("hmc", 0.4, 30)])
def test_metropolis_reaches_the_moments(target, kind, step_size, steps):
    start = 2 * normal(10_000, 2)
    got = SAMPLERS[kind](lambda x: 5 - target.log_prob(x), start, step_size, steps, generator=seeded(1), keep=False)
    within(moments(got.last), exact_moments(target))
    assert 0.5 < got.acceptance.mean() < 0.99


@pytest.mark.parametrize(("kind", "step_size"), [("mala", 1.2), ("hmc", 0.7)])
def test_detailed_balance(kind, step_size):
    # From exact draws x, a step to y: then (x, y) and (y, x) have one law, and f(x) g(y) the expectation of f(y) g(x).
    torch.manual_seed(0)
    x = BIMODAL.sample((400_000,))
    chains = SAMPLERS[kind](lambda x: -BIMODAL.log_prob(x), x, step_size, 1, generator=seeded(1), keep=False)
    y, accepted = chains.last, chains.acceptance == 1
    assert 0.2 < accepted.double().mean() < 0.9
    assert torch.equal(y[~accepted], x[~accepted]) and (y[accepted] != x[accepted]).any(1).all()
    within(moments(y) - moments(x), torch.zeros(5))
    flows = [f(x) * g(y) - f(y) * g(x) for f, g in FLOWS]
    within(torch.stack(flows, 1), torch.zeros(len(FLOWS)))


FLOWS = [
    (lambda x: x[:, 0], lambda x: x[:, 0] ** 3),
    (lambda x: x[:, 0], lambda x: x[:, 1]),
    (lambda x: x[:, 0] ** 2, lambda x: x[:, 1] ** 3),
    (lambda x: (x[:, 0] > 0).double(), lambda x: x[:, 0].sin()),
    (lambda x: (x[:, 1] > 0.5).double(), lambda x: x[:, 0] ** 2),
]


# --- the integrator


def test_leapfrog_by_hand():
    # E = x²: ∇E = 2x. From (1, 0), step 0.5: p = -0.5, x = 0.75, p = -1.25·…
    x, p = leapfrog(lambda x: 2 * x, torch.tensor([[1.0]]), torch.tensor([[0.0]]), 0.5, 1)
    assert x.item() == 0.75 and p.item() == -0.5 - 0.25 * 1.5


def test_leapfrog_is_reversible():
    x, p = normal(4, 3), normal(4, 3, seed=1)
    y, q = leapfrog(double_well_gradient, x, p, 0.2, 25)
    assert (y - x).abs().min() > 1e-3
    back, turned = leapfrog(double_well_gradient, y, -q, 0.2, 25)
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(turned, -p, rtol=1e-10, atol=1e-10)
    slope = double_well_gradient(x)
    assert torch.equal(torch.cat(leapfrog(double_well_gradient, x, p, 0.2, 25, slope)), torch.cat([y, q]))


@pytest.mark.parametrize("steps", [1, 7])
def test_leapfrog_preserves_volume(steps):
    coupling = normal(3, 3)

    def gradient(x):  # of Σx⁴/4 + ‖Cx‖²/2, which couples the coordinates
        return x**3 + x @ (coupling.T @ coupling)

    def move(state):
        x, p = leapfrog(gradient, state[None, :3], state[None, 3:], 0.3, steps)
        return torch.cat([x[0], p[0]])

    moved = jacobian(move, normal(6, seed=2))
    assert not torch.allclose(moved, torch.eye(6, dtype=F64), atol=0.1)
    assert torch.linalg.det(moved).item() == pytest.approx(1, abs=1e-10)


def test_leapfrog_energy_error_is_of_second_order():
    x, p = normal(50, 2), normal(50, 2, seed=1)

    def error(step_size):
        y, q = leapfrog(double_well_gradient, x, p, step_size, round(1.6 / step_size))
        return double_well(y) + (q**2).sum(1) / 2 - double_well(x) - (p**2).sum(1) / 2

    coarse, fine = error(0.02), error(0.01)
    ratio = (coarse.norm() / fine.norm()).item()
    assert ratio == pytest.approx(4, rel=0.01)  # 2 of a first-order method, 16 of a fourth-order one

    # An independent integration: the leapfrog's end tends to it, with the square of the step.
    def flow(_, s):
        return np.concatenate([s[2:], -double_well_gradient(s[:2])])

    exact = solve_ivp(flow, (0, 1.6), np.concatenate([x[0], p[0]]), rtol=1e-11, atol=1e-12).y[:2, -1]
    ends = [leapfrog(double_well_gradient, x[:1], p[:1], h, round(1.6 / h))[0][0].numpy() for h in (0.02, 0.01)]
    first, second = (np.linalg.norm(end - exact) for end in ends)
    assert second < 1e-3 and first / second == pytest.approx(4, rel=0.02)


# --- Gibbs


def test_gibbs_draws_a_correlated_normal():
    rho, scale = 0.8, 0.6

    def conditional(other, generator):
        return rho * other + scale * torch.randn(other.shape, dtype=F64, generator=generator)

    start = torch.full((50_000, 1), 5.0, dtype=F64)
    got = gibbs(conditional, conditional, start, 30, generator=seeded())
    # Each step is x ← ρ²x + noise of variance ρ²s² + s², an autoregression with the stationary variance 1.
    mean, variance = 5.0, 0.0
    for sample in got.samples[:5]:
        mean, variance = rho**2 * mean, rho**4 * variance + rho**2 * scale**2 + scale**2
        within(sample, mean)
        within((sample - mean) ** 2, variance)
    within(got.last**2, 1.0)
    assert (got.acceptance == 1).all()


def test_gibbs_takes_z_first_and_then_x():
    got = gibbs(lambda x, _: 2 * x, lambda z, _: z + 1, torch.tensor([[1.0], [0.0]]), 3)
    assert got.samples[:, :, 0].tolist() == [[3, 1], [7, 3], [15, 7]]


def test_gibbs_names_what_is_wrong():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"draw_x must return the shape of x, \(3, 2\), got \(3, 1\)"):
        gibbs(lambda x, _: x, lambda z, _: z[:, :1], x, 2)
    grow = torch.tensor([[1.0], [1.0], [10.0]])
    with pytest.raises(FloatingPointError, match="chain 2 is lost at step 39: its state is not finite"):
        gibbs(lambda x, _: x, lambda z, _: grow * (z + 1), x, 100)


# --- what is kept


@pytest.mark.parametrize("kind", SAMPLERS)
def test_burn_in_and_thinning_choose_among_the_same_states(kind):
    x, sampler = normal(4, 1, 2, 2), SAMPLERS[kind]
    everything = sampler(double_well, x, 0.2, 11, generator=seeded(1))
    assert everything.samples.shape == (11, 4, 1, 2, 2) and everything.samples.dtype == F64
    some = sampler(double_well, x, 0.2, 11, generator=seeded(1), burn_in=3, thin=3)
    assert torch.equal(some.samples, everything.samples[[5, 8]])
    none = sampler(double_well, x, 0.2, 11, generator=seeded(1), keep=False)
    assert none.samples.shape == (0, 4, 1, 2, 2)
    assert torch.equal(some.last, everything.last) and torch.equal(none.last, everything.samples[-1])
    moves = torch.cat([x[None], everything.samples]).diff(dim=0).flatten(2).any(2).double()
    assert torch.equal(everything.acceptance, moves.mean(0)) and torch.equal(some.acceptance, moves[3:].mean(0))
    # It goes on from where it stopped.
    generator = seeded(1)
    first = sampler(double_well, x, 0.2, 6, generator=generator)
    torch.testing.assert_close(sampler(double_well, first.last, 0.2, 5, generator=generator).last, everything.last)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_scalar_events(kind):
    got = SAMPLERS[kind](lambda x: x**2 / 2, normal(5), 0.5, 3, generator=seeded(1))
    wide = SAMPLERS[kind](lambda x: (x**2 / 2)[:, 0], normal(5)[:, None], 0.5, 3, generator=seeded(1))
    assert got.samples.shape == (3, 5) and torch.equal(got.samples, wide.samples[:, :, 0])


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("grad", [True, False])
def test_parameters_get_no_gradient_and_states_no_graph(kind, grad):
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1).double()
    x = normal(3, 2).requires_grad_(grad)
    before = x.detach().clone()
    with torch.set_grad_enabled(grad):
        got = SAMPLERS[kind](lambda x: network(x)[:, 0].square() + x.square().sum(1), x, 0.1, 3)
    assert not got.last.requires_grad and not got.samples.requires_grad
    assert network.weight.grad is None and x.grad is None and torch.equal(x, before)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_draws_come_from_the_generator_alone(kind):
    torch.manual_seed(0)
    first = SAMPLERS[kind](double_well, normal(3, 2), 0.3, 5, generator=seeded(1)).last
    state = torch.get_rng_state()
    assert torch.equal(first, SAMPLERS[kind](double_well, normal(3, 2), 0.3, 5, generator=seeded(1)).last)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, SAMPLERS[kind](double_well, normal(3, 2), 0.3, 5, generator=seeded(2)).last)


def test_progress_bar(capfd):
    langevin(double_well, normal(3, 2), 0.3, 5)
    assert capfd.readouterr().err == ""
    langevin(double_well, normal(3, 2), 0.3, 5, progress=True)
    assert "5/5" in capfd.readouterr().err


# --- errors


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_lost_chain_is_named(kind):
    # cosh x is infinite from 711 on. Two chains are in its flat part, and one on a slope where a step is far too long.
    x = torch.tensor([[0.0], [0.0], [20.0]], dtype=F64)
    with pytest.raises(
        FloatingPointError, match=r"chain 2 is lost at step [12] with step size 0\.1: its energy is (inf|nan)"
    ):
        SAMPLERS[kind](lambda x: x.cosh().sum(1), x, 0.1, 100, generator=seeded(1))


def test_chain_and_step_are_the_right_ones():
    # Without noise: 1 → -4 → 251 → … of chain 1 alone, the others being at rest. By hand, until it overflows.
    x, step = 1.0, 0
    while abs(x) < 1e100:
        x, step = x - 5 * x**3, step + 1
    start = torch.tensor([[0.0], [1.0], [0.0]], dtype=F64)

    def energy(x):
        return torch.where(x.abs() < 1e100, x**4 / 4, math.inf).sum(1)

    with pytest.raises(
        FloatingPointError, match=f"chain 1 is lost at step {step + 1} with step size 10: its energy is inf"
    ):
        langevin(energy, start, 10.0, 100, temperature=0)
    # One step fewer, and nothing is amiss yet.
    assert langevin(energy, start, 10.0, step, temperature=0).last[1].abs() > 1e100


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_energy_that_is_not_finite_stops_though_its_gradient_is(kind, value):
    # The first step looks at where it is, the others look before the first.
    step = 1 if kind == "langevin" else 0
    message = rf"chain 1 is lost at step {step} with step size 0\.1: its energy is {value}"
    with pytest.raises(FloatingPointError, match=message):
        SAMPLERS[kind](lambda x: x.sum(1) + torch.tensor([0.0, value, 0.0]), torch.zeros(3, 2), 0.1, 5)


@pytest.mark.parametrize("sampler", [langevin, mala, partial(hmc, leapfrog_steps=1)])
def test_a_gradient_that_is_not_finite_stops_though_the_energy_is_finite(sampler):
    def energy(x):  # its gradient left of -1 is NaN, as autograd takes that of the branch not chosen, too
        return torch.where(x > -1, x.square() + (x + 1).sqrt(), x.square()).sum(1)

    assert energy(torch.tensor([[-2.0]])) == 4
    x = torch.tensor([[0.0], [0.0], [-0.9]], dtype=F64)
    message = r"chain \d is lost at step \d+ with step size 0\.1: its position or gradient is not finite"
    with pytest.raises(FloatingPointError, match=message):
        sampler(energy, x, 0.1, 1000, generator=seeded())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step_size": 0.0}, ValueError, "step_size must be a positive, finite number, got 0.0"),
        ({"step_size": -1}, ValueError, "step_size must be a positive, finite number, got -1"),
        ({"step_size": math.nan}, ValueError, "step_size .* got nan"),
        ({"step_size": math.inf}, ValueError, "step_size .* got inf"),
        ({"step_size": True}, ValueError, "step_size .* got True"),
        ({"steps": 0}, ValueError, "steps must be a positive integer, got 0"),
        ({"steps": 2.0}, ValueError, "steps must be a positive integer, got 2.0"),
        ({"burn_in": -1}, ValueError, "burn_in must be an integer from 0 to steps - 1 = 9, got -1"),
        ({"burn_in": 10}, ValueError, "burn_in must be an integer from 0 to steps - 1 = 9, got 10"),
        ({"burn_in": 1.0}, ValueError, "burn_in must be an integer .* got 1.0"),
        ({"thin": 0}, ValueError, "thin must be a positive integer, got 0"),
        ({"thin": 9, "burn_in": 2}, ValueError, "thin must be at most steps - burn_in = 8, got 9"),
        ({"x": [1.0]}, TypeError, "x must be a floating-point tensor, got list"),
        ({"x": torch.ones(2, 2, dtype=torch.int64)}, TypeError, "x must be .* got a tensor of torch.int64"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x must hold the start of at least one chain, .* got shape \(\)"),
        ({"x": torch.zeros(0, 2)}, ValueError, r"at least one chain, .* got shape \(0, 2\)"),
        ({"x": torch.tensor([[1.0, math.nan]])}, ValueError, "x must be finite, got 1 NaN or infinite values"),
        ({"energy": lambda x: x.square()}, ValueError, r"energy\(x\) must have shape \(3,\), .* got \(3, 2\)"),
        ({"energy": lambda x: x.square().sum()}, ValueError, r"energy\(x\) must have shape \(3,\), .* got \(\)"),
        ({"energy": lambda x: x.detach().sum(1)}, ValueError, r"energy\(x\) must depend on x .* no gradient"),
    ],
)
@pytest.mark.parametrize("sampler", [langevin, mala, hmc])
def test_wrong_arguments(sampler, change, error, message):
    arguments = {"energy": double_well, "x": torch.zeros(3, 2), "step_size": 0.1, "steps": 10} | change
    with pytest.raises(error, match=message):
        sampler(**arguments)


@pytest.mark.parametrize("temperature", [-0.1, math.inf, math.nan, "1", True])
def test_wrong_temperature(temperature):
    with pytest.raises(ValueError, match="temperature must be a finite number, not negative, got"):
        langevin(double_well, torch.zeros(3, 2), 0.1, 1, temperature=temperature)


def test_wrong_leapfrog_steps():
    with pytest.raises(ValueError, match="leapfrog_steps must be a positive integer, got 0"):
        hmc(double_well, torch.zeros(3, 2), 0.1, 1, leapfrog_steps=0)


# --- diagnostics


def autoregression(phi, kept, chains, dims, seed=0):
    """x_t = φ x_{t-1} + √(1 - φ²) ξ, from its stationary law: autocorrelation φ^t, time (1 + φ) / (1 - φ)."""
    noise = math.sqrt(1 - phi**2) * normal(kept, chains, dims, seed=seed)
    noise[0] /= math.sqrt(1 - phi**2)
    return torch.from_numpy(lfilter([1.0], [1.0, -phi], noise, axis=0))


def effective_sample_size_by_hand(samples):
    """The definition for one coordinate, (kept, chains), with loops."""
    kept = len(samples)
    half = kept // 2
    chains = np.stack([part for c in samples.T for part in (c[:half], c[kept - half :])])
    m, n = chains.shape
    means = chains.mean(1)
    within = ((chains - means[:, None]) ** 2).sum(1) / (n - 1)
    total = (n - 1) / n * within.mean() + ((means - means.mean()) ** 2).sum() / (m - 1)

    def correlation(t):
        products = [((c[: n - t] - mu) * (c[t:] - mu)).sum() / (n - 1) for c, mu in zip(chains, means, strict=True)]
        return 1 - (within.mean() - np.mean(products)) / total

    pairs = []
    for k in range(n // 2):
        pair = correlation(2 * k) + correlation(2 * k + 1)
        if pair <= 0:
            break
        pairs.append(min(pair, pairs[-1]) if pairs else pair)
    time = -1 + 2 * sum(pairs)
    return m * n / max(time, 1 / math.log10(m * n)), math.sqrt(total / within.mean())


@pytest.mark.parametrize("kept", [4, 5, 61, 200])
def test_diagnostics_are_their_definition(kept):
    x = autoregression(0.6, kept, 3, 6) * torch.arange(1, 7) + torch.arange(6)
    x[:, :, 1] += torch.tensor([0.0, 1.0, 5.0])  # chains apart
    x[kept // 2 :, :, 2] += 2  # a drift
    size, r_hat = effective_sample_size(x.unflatten(2, (2, 3))), split_r_hat(x.unflatten(2, (2, 3)))
    assert size.shape == r_hat.shape == (2, 3)
    for d in range(6):
        expected = effective_sample_size_by_hand(x[:, :, d].numpy())
        assert (size.flatten()[d].item(), r_hat.flatten()[d].item()) == pytest.approx(expected, rel=1e-9)
    assert split_r_hat(x[:, :, 0]).shape == ()


@pytest.mark.parametrize(("phi", "bias"), [(0.9, 0.01), (0.5, 0.01), (0.0, 0.01), (-0.5, 0.05)])
def test_effective_sample_size_of_an_autoregression(phi, bias):
    # 100 estimates, independent of each other. The sum over pairs ends where noise, of 1 / √40,000 in each
    # correlation, makes one negative: what is cut off is a few times that, and counts where the time is short.
    x, expected = autoregression(phi, 4000, 10, 100), (1 - phi) / (1 + phi)
    size = effective_sample_size(x) / 40_000
    assert (size.mean() - expected).abs() < 5 * size.std() / 10 + bias * expected and size.std() < 0.1 * expected
    # It says how precise a mean is: those of the 100 coordinates vary as much.
    assert 1 / x.mean((0, 1)).square().mean().item() == pytest.approx(40_000 * expected, rel=5 * math.sqrt(2 / 100))


def test_effective_sample_size_is_bounded_for_antithetic_chains():
    x = autoregression(-0.999, 200, 4, 1)[:, :, 0]
    assert effective_sample_size(x).item() == pytest.approx(800 * math.log10(800))


def test_r_hat_of_mixed_and_of_stuck_chains():
    target = MixtureSameFamily(Categorical(torch.tensor([0.5, 0.5])), Normal(torch.tensor([-6.0, 6.0]), torch.ones(2)))

    def energy(x):
        return -target.log_prob(x)

    start = torch.tensor([-6.0, -6.0, 6.0, 6.0])
    stuck = hmc(energy, start, 0.5, 120, leapfrog_steps=3, burn_in=20, generator=seeded())
    assert stuck.split_r_hat() > 1.1 and stuck.effective_sample_size() < 20
    mixed = hmc(lambda x: x.square() / 2, start, 0.5, 1000, leapfrog_steps=3, burn_in=50, generator=seeded())
    assert 0.999 < mixed.split_r_hat() < 1.01 and mixed.effective_sample_size() > 1000
    # Two chains that drift in step look alike, but not their halves.
    drift = torch.linspace(0, 5, 200)[:, None] + torch.randn(200, 2, generator=seeded())
    assert split_r_hat(drift) > 1.1


def test_coordinates_that_do_not_move():
    x = autoregression(0.5, 100, 2, 3)
    x[:, :, 0] = 1.0
    x[:, :, 1] = torch.tensor([0.0, 1.0])
    size, r_hat = effective_sample_size(x), split_r_hat(x)
    assert size.isnan().tolist() == [True, False, False] == r_hat.isnan().tolist()
    assert r_hat[1] == math.inf and size[1] < 5


def test_diagnostics_want_samples():
    for function in (effective_sample_size, split_r_hat):
        with pytest.raises(
            ValueError, match=r"samples must be \(kept, chains, \*event\) with at least four .*\(3, 2\)"
        ):
            function(torch.zeros(3, 2))
        with pytest.raises(ValueError, match="samples must be"):
            function(torch.zeros(10))
    with pytest.raises(ValueError, match=r"got \(0, 3, 2\)"):
        langevin(double_well, torch.zeros(3, 2), 0.1, 10, keep=False).effective_sample_size()
