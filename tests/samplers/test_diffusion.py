"""Samplers of diffusions on Gaussian data, where all of them are affine maps: against closed forms and recursions."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from companion.conformance import sampler_without_final_noise
from companion.samplers.diffusion import (
    Grid,
    ancestral,
    ddim,
    dpm_solver,
    euler,
    heun,
    predictor_corrector,
    require_grid,
)

MEAN, COVARIANCE = np.array([0.7, -0.4]), np.array([[0.9, 0.5], [0.5, 0.6]])
D = len(MEAN)
STEPPED = Grid([7.0, 5.5, 4.0, 2.0, 1.0, 0.0], [0.02, 0.1, 0.35, 0.6, 0.9, 1.0])
OPEN = Grid(STEPPED.times[:-1], STEPPED.alpha_bars[:-1])  # ends before ᾱ = 1
SAMPLERS = {
    "ancestral": ancestral,
    "ancestral, forward": partial(ancestral, variance="forward"),
    "ddim": ddim,
    "ddim, half": partial(ddim, eta=0.5),
    "ddim, one": partial(ddim, eta=1.0),
    "euler": euler,
    "heun": heun,
    "dpm_solver": dpm_solver,
    "predictor_corrector": partial(predictor_corrector, corrections=2),
}
RANDOM = [name for name in SAMPLERS if name not in ("ddim", "euler", "heun", "dpm_solver")]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(n=5, dims=D, seed=0):
    return torch.randn(n, dims, generator=generator(seed), dtype=torch.float64)


def same(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), rtol=tolerance, atol=tolerance)


def spread(bar, covariance=COVARIANCE):
    return bar * covariance + (1 - bar) * np.eye(len(covariance))


def exact_eps(grid, mean=MEAN, covariance=COVARIANCE):
    """E[ε|x_t] of N(m, C) at the times of the grid."""
    bars = dict(zip(*grid, strict=True))

    def eps(x, t):
        bar = bars[t]
        matrix = math.sqrt(1 - bar) * np.linalg.inv(spread(bar, covariance))
        return (x - math.sqrt(bar) * torch.from_numpy(mean)) @ torch.from_numpy(matrix)

    return eps


def curved_eps(x, t):
    """Some other field, neither linear nor the same at two times."""
    return torch.tanh(1.3 * x + 0.2 * t) + 0.1 * x.flip(1) - 0.05 * t


def law(run, draws, monkeypatch):
    """Mean and covariance of what an affine `run(x)` does to its noise: the start, and `draws` more. In row 1 + k the
    k-th number is 1, all others are 0."""
    n, called = 1 + (draws + 1) * D, []

    def basis(self, *_, **__):
        self.zero_()
        for j in range(D):
            self[1 + len(called) * D + j, j] = 1
        called.append(None)
        return self

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "normal_", basis)
        out = run(torch.empty(n, D, dtype=torch.float64).normal_())
    assert len(called) == draws + 1
    slopes = out[1:] - out[0]
    return out[0].numpy(), (slopes.T @ slopes).numpy()


# The law of the samples


def reverse_step(high, low):
    """E[x_s|x_t] as (matrix, offset), and q(x_s|x_t, x_0)'s variance and q(x_t|x_s)'s, by conditioning Gaussians."""
    alpha = high / low
    matrix = math.sqrt(alpha) * spread(low) @ np.linalg.inv(spread(high))
    offset = math.sqrt(low) * MEAN - matrix @ (math.sqrt(high) * MEAN)
    posterior = 0.0 if low == 1 else 1 / (alpha / (1 - alpha) + 1 / (1 - low))
    return matrix, offset, posterior, 1 - alpha


@pytest.mark.parametrize("grid", [STEPPED, OPEN], ids=["to the data", "open"])
@pytest.mark.parametrize("variance", ["posterior", "forward", "learned"])
def test_ancestral_samples_have_the_law_of_the_chain(variance, grid, monkeypatch):
    """Of the reverse kernels' own means, with each variance, and none in the last step."""
    fraction = np.array([0.2, 0.7])
    eps = exact_eps(grid)
    if variance == "learned":
        run = partial(ancestral, lambda x, t: (eps(x, t), torch.from_numpy(fraction).expand_as(x)), grid=grid)
    else:
        run = partial(ancestral, eps, grid=grid, variance=variance)
    mean, covariance = law(lambda x: run(x=x), len(grid.times) - 2, monkeypatch)
    m, c = np.zeros(D), np.eye(D)
    bars = list(pairwise(grid.alpha_bars))
    for high, low in bars:
        matrix, offset, small, large = reverse_step(high, low)
        share = {"posterior": 0.0, "forward": 1.0, "learned": fraction}[variance]
        added = np.zeros(D) if (high, low) == bars[-1] else large**share * small ** (1 - share) * np.ones(D)
        m, c = matrix @ m + offset, matrix @ c @ matrix.T + np.diag(added)
    np.testing.assert_allclose(mean, m, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(covariance, c, rtol=1e-10, atol=1e-10)


def test_ancestral_samples_come_to_the_data_as_steps_are_added(monkeypatch):
    """Mean and covariance to those of the data, the error as 1/T."""
    for variance in ("posterior", "forward"):
        errors = []
        for steps in (50, 100, 200):
            bars = np.exp(-9 * np.linspace(1, 0, steps + 1) ** 2)
            grid = Grid(list(range(steps, -1, -1)), bars.tolist())
            run = partial(ancestral, exact_eps(grid), grid=grid, variance=variance)
            mean, covariance = law(lambda x, run=run: run(x=x), steps - 1, monkeypatch)
            errors.append(np.abs(covariance - COVARIANCE).max())
            assert np.abs(mean - MEAN).max() < 0.03
        assert errors[2] < 0.05 and all(1.7 < a / b < 2.4 for a, b in pairwise(errors)), (variance, errors)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("grid", [STEPPED, OPEN], ids=["to the data", "open"])
def test_ddim_samples_have_the_law_of_the_paper(eta, grid, monkeypatch):
    """x_s = √ᾱ_s E[x_0|x_t] + √(1 - ᾱ_s - σ²) E[ε|x_t] + σ ξ, with both means by Gaussian conditioning."""
    stochastic = sum(eta > 0 and low < 1 for low in grid.alpha_bars[1:])
    mean, covariance = law(lambda x: ddim(exact_eps(grid), x, grid, eta), stochastic, monkeypatch)
    m, c = np.zeros(D), np.eye(D)
    for high, low in pairwise(grid.alpha_bars):
        sigma = eta * math.sqrt((1 - low) / (1 - high)) * math.sqrt(1 - high / low)
        inverse = np.linalg.inv(spread(high))
        of_x0, of_eps = math.sqrt(high) * COVARIANCE @ inverse, math.sqrt(1 - high) * inverse
        matrix = math.sqrt(low) * of_x0 + math.sqrt(1 - low - sigma**2) * of_eps
        m = math.sqrt(low) * MEAN + matrix @ (m - math.sqrt(high) * MEAN)
        c = matrix @ c @ matrix.T + sigma**2 * np.eye(D)
    np.testing.assert_allclose(mean, m, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(covariance, c, rtol=1e-10, atol=1e-10)


def test_the_most_random_ddim_is_ancestral_with_the_posterior_variance():
    for grid in (STEPPED, Grid([3, 0], [0.1, 1.0])):
        got = ddim(curved_eps, noise(), grid, eta=1.0, generator=generator(4))
        same(got, ancestral(curved_eps, noise(), grid, generator=generator(4)))


def exact_map(x, high, low, mean=MEAN, covariance=COVARIANCE):
    """The probability-flow ODE's, in closed form."""
    root = sqrtm(spread(low, covariance)) @ np.linalg.inv(sqrtm(spread(high, covariance)))
    return math.sqrt(low) * mean + (x.numpy() - math.sqrt(high) * mean) @ root.T


@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpm_solver", 2)], ids=["ddim", "euler", "heun", "2M"]
)
@pytest.mark.parametrize("end", [0.98, 1.0])
def test_half_the_step_divides_the_error_by_two_to_the_order(name, order, end):
    x, errors = noise(20), []
    for steps in (80, 160, 320):
        # Even in between σ̄ and λ, so that it comes to ᾱ = 1.
        levels = np.linspace(math.sqrt(math.sqrt(1 / 0.01 - 1)), math.sqrt(math.sqrt(1 / end - 1)), steps + 1) ** 2
        bars = 1 / (1 + levels**2)
        grid = Grid(list(range(steps, -1, -1)), bars.tolist())
        got = SAMPLERS[name](exact_eps(grid), x, grid)
        errors.append(np.abs(got.numpy() - exact_map(x, bars[0], bars[-1])).max())
    ratios = [a / b for a, b in pairwise(errors)]
    assert errors[-1] < (0.02 if order == 1 else 1e-3)
    if end == 1 and name in ("euler", "dpm_solver"):
        return  # the first is of log ᾱ alone, the second's last step is one of first order
    assert all(2**order * 0.85 < ratio < 2**order * 1.2 for ratio in ratios), ratios


def one_dimensional(sampler, bars, s2):
    """What a sampler does to a number in x̄ = x/√ᾱ, for data N(0, s²), beside the ODE's own map."""
    grid = Grid(list(range(len(bars) - 1, -1, -1)), list(bars))
    start = torch.ones(1, 1, dtype=torch.float64)
    out = sampler(exact_eps(grid, np.zeros(1), np.array([[s2]])), start, grid).item()
    return out / float(np.sqrt(spread(bars[-1], np.array([[s2]])) / spread(bars[0], np.array([[s2]])))[0, 0])


def test_errors_have_the_constants_of_the_expansion():
    """To leading order in 1/n, for n equal steps in σ̄ from S to 0 (DDIM, Heun), or in λ (2M)."""
    s, top, n = 0.8, 3.0, 400
    bars = 1 / (1 + np.linspace(top, 0, n + 1) ** 2)
    first = top / (4 * n) * (top / (s**2 + top**2) + math.atan(top / s) / s)
    assert 1 - one_dimensional(ddim, bars, s**2) == pytest.approx(first, rel=0.01)
    second = top**2 / (8 * s**2 * n**2) * (3 + s**4 / (s**2 + top**2) ** 2)
    assert 1 - one_dimensional(heun, bars, s**2) == pytest.approx(second, rel=0.02)
    sigmas = np.exp(np.linspace(math.log(top), math.log(0.1), n + 1))
    length, q = math.log(top / 0.1), s**2 / (s**2 + sigmas[[0, -1]] ** 2)
    third = (q[1] - q[0]) / 4 - 5 / 16 * (q[1] ** 2 - q[0] ** 2) + q[0] * (1 - q[0]) / 2
    got = 1 - one_dimensional(dpm_solver, 1 / (1 + sigmas**2), s**2)
    assert got == pytest.approx(length**2 / n**2 * third, rel=0.02)
    # Euler's method, factor by factor.
    factor = 1.0
    for high, low in pairwise(bars := np.linspace(0.05, 0.9, 7)):
        factor *= 1 + math.log(low / high) / 2 * (1 - 1 / spread(high, np.array([[s**2]]))[0, 0])
    true = math.sqrt(spread(0.9, np.array([[s**2]]))[0, 0] / spread(0.05, np.array([[s**2]]))[0, 0])
    assert one_dimensional(euler, bars, s**2) == pytest.approx(factor / true, rel=1e-10)


# Each step, of a field that is not linear, as the papers write it


def by_hand(step, grid, x, eps=curved_eps, seed=9):
    """Steps of `step(x, ε̂ at x, (t, ᾱ), (s, ᾱ'), fresh noise, memory)`."""
    source, memory = generator(seed), {}

    def fresh():
        return torch.randn(x.shape, generator=source, dtype=torch.float64)

    for (t, high), (s, low) in pairwise(zip(*grid, strict=True)):
        x = step(x, eps(x, t), (t, high), (s, low), fresh, memory)
    return x


def clean(x, e, bar):
    return (x - math.sqrt(1 - bar) * e) / math.sqrt(bar)


def posterior_step(variance, last):
    """From N(μ̃(x_t, x̂_0), σ²), with μ̃ as Ho et al. write it."""

    def step(x, e, at, to, fresh, memory):
        (_, high), (s, low) = at, to
        alpha, beta = high / low, 1 - high / low
        mean = math.sqrt(low) * beta / (1 - high) * clean(x, e, high) + math.sqrt(alpha) * (1 - low) / (1 - high) * x
        if s == last:
            return mean
        return mean + math.sqrt(beta if variance == "forward" else beta * (1 - low) / (1 - high)) * fresh()

    return step


def ddim_step(eta):
    def step(x, e, at, to, fresh, memory):
        (_, high), (_, low) = at, to
        sigma = eta * math.sqrt((1 - low) / (1 - high)) * math.sqrt(1 - high / low)
        mean = math.sqrt(low) * clean(x, e, high) + math.sqrt(1 - low - sigma**2) * e
        return mean + sigma * fresh() if sigma else mean

    return step


def euler_step(x, e, at, to, fresh, memory):
    h = math.log(to[1]) - math.log(at[1])
    return x + h / 2 * (x - e / math.sqrt(1 - at[1]))


def heun_step(x, e, at, to, fresh, memory):
    """In EDM's variables."""
    (_, high), (s, low) = at, to
    before, after = math.sqrt(1 / high - 1), math.sqrt(1 / low - 1)
    y = x / math.sqrt(high)
    slope = (y - clean(x, e, high)) / before
    moved = y + (after - before) * slope
    if after:
        there = math.sqrt(low) * moved
        slope = (slope + (moved - clean(there, curved_eps(there, s), low)) / after) / 2
        moved = y + (after - before) * slope
    return math.sqrt(low) * moved


def multistep(x, e, at, to, fresh, memory):
    (_, high), (_, low) = at, to
    data, last = clean(x, e, high), memory.get("data")
    if low == 1:
        return data
    lam = [math.log(math.sqrt(bar) / math.sqrt(1 - bar)) for bar in (high, low)]
    h = lam[1] - lam[0]
    mixed = data
    if last is not None:
        r = memory["h"] / h
        mixed = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * last
    memory.update(data=data, h=h)
    return math.sqrt(1 - low) / math.sqrt(1 - high) * x - math.sqrt(low) * (math.exp(-h) - 1) * mixed


def corrected_step(snr, corrections, last, eps=curved_eps):
    predict = posterior_step("posterior", last)

    def step(x, e, at, to, fresh, memory):
        (_, high), (s, low) = at, to
        x = predict(x, e, at, to, fresh, memory)
        for _ in range(0 if s == last else corrections):
            score, z = -eps(x, s) / math.sqrt(1 - low), fresh()
            ratio = z.norm(dim=1).mean() / score.norm(dim=1).mean()
            delta = 2 * high / low * (snr * ratio) ** 2
            x = x + delta * score + torch.sqrt(2 * delta) * z
        return x

    return step


@pytest.mark.parametrize("grid", [STEPPED, OPEN, Grid([2, 0], [0.3, 1.0])], ids=["to the data", "open", "one step"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_is_that_of_its_paper(name, grid):
    last = grid.times[-1]
    step = {
        "ancestral": posterior_step("posterior", last),
        "ancestral, forward": posterior_step("forward", last),
        "ddim": ddim_step(0.0),
        "ddim, half": ddim_step(0.5),
        "ddim, one": ddim_step(1.0),
        "euler": euler_step,
        "heun": heun_step,
        "dpm_solver": multistep,
        "predictor_corrector": corrected_step(0.16, 2, last),
    }[name]
    x = noise()
    arguments = {"generator": generator(9)} if name in RANDOM else {}
    same(SAMPLERS[name](curved_eps, x, grid, **arguments), by_hand(step, grid, x), 1e-11)
    assert torch.equal(x, noise())  # left as it was


def test_a_learned_variance_is_the_power_of_both():
    def both(x, t):
        return curved_eps(x, t), torch.sigmoid(2 * x)

    def step(x, e, at, to, fresh, memory):
        (_, high), (s, low) = at, to
        e, fraction = e
        mean = posterior_step("posterior", s)(x, e, at, to, fresh, memory)
        if s == 0:
            return mean
        beta = 1 - high / low
        return mean + (beta**fraction * (beta * (1 - low) / (1 - high)) ** (1 - fraction)).sqrt() * fresh()

    got = ancestral(both, noise(), STEPPED, generator=generator(9))
    same(got, by_hand(step, STEPPED, noise(), both), 1e-11)


@pytest.mark.parametrize(("corrections", "snr"), [(1, 0.16), (3, 0.4)])
def test_the_corrector_keeps_to_the_density_of_its_time(corrections, snr):
    """At the density of time s, a step of δ leaves N(√ᾱ_s m, C_s + δ² C_s⁻¹): started there, by a step of the predictor
    that does nothing, as ε̂ is that of the exact conditional."""
    n, low = 200_000, 0.35
    x = torch.from_numpy(math.sqrt(low) * MEAN) + noise(n) @ torch.from_numpy(np.linalg.cholesky(spread(low))).T
    # A step that is as good as none, and a last one that is as good as none.
    grid = Grid([3.0, 2.0, 1.0], [low * (1 - 1e-9), low, low * (1 + 1e-9)])
    got = predictor_corrector(exact_eps(grid), x, grid, snr, corrections, generator=generator(5)).numpy()
    inverse, c, deltas = np.linalg.inv(spread(low)), spread(low), []
    for _ in range(corrections):
        # E‖ξ‖/E‖s‖ for s ~ N(0, C_s⁻¹ C C_s⁻¹), by draws of it.
        z = noise(n, seed=6).numpy()
        norms = (
            np.linalg.norm(z, axis=1).mean(),
            np.linalg.norm(z @ np.linalg.cholesky(inverse @ c @ inverse).T, axis=1),
        )
        deltas.append(2 * (snr * norms[0] / norms[1].mean()) ** 2)
        shrink = np.eye(D) - deltas[-1] * inverse
        c = shrink @ c @ shrink.T + 2 * deltas[-1] * np.eye(D)
    assert deltas[0] > 0.01 and np.abs(c - spread(low)).max() < 0.6 * snr
    error = np.sqrt((np.outer(c.diagonal(), c.diagonal()) + c**2) / n)
    assert (np.abs(np.cov(got.T) - c) < 5 * error + 1e-3 * deltas[0]).all()
    assert (np.abs(got.mean(0) - math.sqrt(low) * MEAN) < 5 * np.sqrt(c.diagonal() / n)).all()
    moved = got - x.numpy()
    assert np.abs(moved).mean() > 0.05


# What all of them share


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "euler"])
def test_the_last_step_adds_no_noise(name):
    x = noise(50)
    bar = dict(zip(*STEPPED, strict=True)).get
    assert sampler_without_final_noise(lambda eps, x: SAMPLERS[name](eps, x, STEPPED), bar, x)


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_are_those_of_the_generator(name):
    run = partial(SAMPLERS[name], curved_eps, noise(), STEPPED)
    if name not in RANDOM:
        torch.manual_seed(0)
        first = run()
        assert torch.equal(first, run()) and torch.equal(torch.rand(()), torch.rand((), generator=generator()))
        return
    first = run(generator=generator(1))
    assert torch.equal(first, run(generator=generator(1))) and not torch.equal(first, run(generator=generator(2)))
    torch.manual_seed(1)
    assert torch.equal(first, run())  # without one, the global generator


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_is_asked_as_often_as_said_and_keeps_no_graph(name):
    weight, asked = torch.ones((), requires_grad=True, dtype=torch.float64), []

    def eps(x, t):
        asked.append(t)
        return weight * curved_eps(x, t)

    out = SAMPLERS[name](eps, noise(), STEPPED)
    assert not out.requires_grad and out.isfinite().all() and out.dtype == torch.float64
    starts = STEPPED.times[:-1]
    if name == "heun":
        assert asked == [7.0, *[t for t in starts[1:] for _ in range(2)]]  # 2n - 1
    elif name == "predictor_corrector":
        assert asked == [7.0, *[t for t in starts[1:] for _ in range(3)]]
    else:
        assert asked == starts


@pytest.mark.parametrize("name", SAMPLERS)
def test_images_and_types_pass_through(name):
    x = torch.randn(3, 1, 4, 4, generator=generator())
    out = SAMPLERS[name](lambda x, t: 0.9 * x, x, STEPPED)
    assert out.shape == x.shape and out.dtype == torch.float32
    flat = SAMPLERS[name](lambda x, t: 0.9 * x, x.flatten(1).double(), STEPPED)
    if name not in RANDOM:
        torch.testing.assert_close(out.flatten(1), flat.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_progress_is_shown_on_request(name, capsys):
    SAMPLERS[name](curved_eps, noise(), STEPPED)
    assert not capsys.readouterr().err
    SAMPLERS[name](curved_eps, noise(), STEPPED, progress=True)
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize("name", SAMPLERS)
def test_lost_samples_are_counted(name):
    def eps(x, t):
        bad = curved_eps(x, t)
        bad[1] = math.nan
        bad[3, 0] = math.inf
        return bad

    with pytest.raises(FloatingPointError, match="2 of 5 samples are not finite: the network's answers are too large"):
        SAMPLERS[name](eps, noise(), STEPPED)


def test_large_samples_are_not_lost():
    """Finite, though their sum is not."""
    x = torch.full((10, 2), 3e38)
    assert ddim(lambda x, t: 0 * x, x, Grid([1, 0], [0.99999, 1.0])).isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    ("grid", "match"),
    [
        (Grid([1.0], [0.5]), r"got 1 times and ᾱ = \[0.5\]"),
        (Grid([], []), "at least two times"),
        (Grid([2.0, 1.0], [0.5, 0.5]), "strictly rising"),
        (Grid([2.0, 1.0], [0.5, 0.4]), r"ᾱ = \[0.5, 0.4\]"),
        (Grid([2.0, 1.0], [0.0, 0.4]), "above 0"),
        (Grid([2.0, 1.0], [0.4, 1.1]), "at most 1"),
        (Grid([2.0, 1.0], [0.4, math.nan]), "strictly rising"),
        (Grid([2.0, 1.0, 0.0], [0.4, 1.0]), "got 3 times"),
        (Grid([5, 4, 3, 2, 1, 0], [0.1, 0.2, 0.3, 0.4, 0.3, 1.0]), r"\[0.1, 0.2, 0.3, 0.4, …\]"),
    ],
)
def test_grids_that_mean_nothing_are_refused(name, grid, match):
    for call in (lambda: SAMPLERS[name](curved_eps, noise(), grid), lambda: require_grid(grid)):
        with pytest.raises(ValueError, match=f"grid must hold.*{match}"):
            call()


@pytest.mark.parametrize(
    ("sampler", "arguments", "match"),
    [
        (ancestral, {"variance": "learned"}, "variance must be 'posterior' or 'forward', got 'learned'"),
        (ddim, {"eta": -0.1}, "eta must be a number from 0 to 1, got -0.1"),
        (ddim, {"eta": 1.1}, "eta"),
        (ddim, {"eta": math.nan}, "eta"),
        (ddim, {"eta": "0"}, "eta"),
        (predictor_corrector, {"snr": 0.0}, "snr must be a positive, finite number, got 0.0"),
        (predictor_corrector, {"snr": math.inf}, "snr"),
        (predictor_corrector, {"snr": math.nan}, "snr"),
        (predictor_corrector, {"corrections": 0}, "corrections must be a positive integer, got 0"),
        (predictor_corrector, {"corrections": 1.5}, "corrections"),
    ],
)
def test_bad_arguments_are_refused(sampler, arguments, match):
    sampler(curved_eps, noise(), STEPPED)
    with pytest.raises(ValueError, match=match):
        sampler(curved_eps, noise(), STEPPED, **arguments)
