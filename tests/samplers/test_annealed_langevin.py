"""Annealed Langevin dynamics against exact recursions: of Gaussians in closed form, of a mixture on a grid."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from companion.samplers import Chains, annealed_langevin

# Two modes at ∓4 with the weights 0.8 and 0.2.
MODE, WIDTH, SMALL = 4.0, 0.5, 0.2


def gaussian_score(mean, variance):
    return lambda x, sigma: -(x - mean) / (variance + sigma**2)


def mixture_score(x, sigma):
    """∇ log p_σ of the mixture, one-dimensional."""
    variance = WIDTH**2 + sigma**2
    of_small = torch.sigmoid(math.log(SMALL / (1 - SMALL)) + 2 * MODE * x / variance)
    return ((2 * of_small - 1) * MODE - x) / variance


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# The law of the chains


@pytest.mark.parametrize(("sigmas", "step_size"), [((3.0, 1.0, 0.3), 0.03), ([5.0, 0.5], 0.4), ([0.7], 0.2)])
def test_chains_of_a_gaussian_have_the_moments_of_the_recursion(sigmas, step_size):
    """Of N(2, 0.6²): a step is x ← m + (1 - α / 2v) (x - m) + √α ξ with v = 0.36 + σ²."""
    n, steps, start = 40_000, 4, 5 * torch.randn(40_000, 2, generator=generator(1), dtype=torch.float64) - 3
    chains = annealed_langevin(
        gaussian_score(2, 0.36), start, sigmas, step_size, steps, generator=generator(), keep=True
    )
    assert isinstance(chains, Chains) and chains.samples.shape == (len(sigmas) * steps, n, 2)
    assert torch.equal(chains.samples[-1], chains.last) and (chains.acceptance == 1).all()
    mean, variance, k = -3.0, 25.0, 0
    for sigma in sigmas:
        alpha = step_size * sigma**2 / sigmas[-1] ** 2
        for _ in range(steps):
            shrink = 1 - alpha / (2 * (0.36 + sigma**2))
            mean, variance = 2 + shrink * (mean - 2), shrink**2 * variance + alpha
            x = chains.samples[k]
            assert ((x.mean(0) - mean).abs() < 5 * math.sqrt(variance / n)).all()
            assert ((x.var(0) - variance).abs() < 5 * variance * math.sqrt(2 / n)).all()
            k += 1


HIGH, LOW = 6.0, 0.4
LEVELS = np.geomspace(HIGH, LOW, 10)
GRID = np.linspace(-36, 36, 641)
H = GRID[1] - GRID[0]


def law_on_a_grid(sigmas, step_size, steps):
    """The density of the chains of the mixture's exact score from N(0, HIGH²), by quadrature of the kernel.
    The narrowest is 2 points of the grid wide, which makes the trapezoidal rule exact to rounding."""
    density = stats.norm.pdf(GRID, 0, HIGH)
    for sigma in sigmas:
        alpha = step_size * (sigma / sigmas[-1]) ** 2
        moved = GRID + alpha / 2 * mixture_score(torch.from_numpy(GRID), sigma).numpy()
        kernel = np.exp(-((GRID[:, None] - moved) ** 2) / (2 * alpha)) * (H / math.sqrt(2 * math.pi * alpha))
        for _ in range(steps):
            density = kernel @ density
    return density


def test_chains_of_a_mixture_have_the_law_of_the_kernel():
    """And the mixture's own weights, which chains at the lowest level alone do not find."""
    step_size, steps, n = 0.05, 50, 8000
    start = HIGH * torch.randn(n, generator=generator(2), dtype=torch.float64)
    edges = np.array([-6, -5, -4.5, -4, -3.5, -3, -2, 0, 2, 3, 4, 5, 6])
    above = []
    for levels, total in ((LEVELS, steps), ([LOW], 10 * steps)):
        x = annealed_langevin(mixture_score, start, levels, step_size, total, generator=generator()).last.numpy()
        density = law_on_a_grid(levels, step_size, total)
        assert density.sum() * H == pytest.approx(1, abs=1e-5)  # the rest is beyond the grid
        cumulative = np.interp(edges, GRID + H / 2, np.cumsum(density) * H)
        found = (x[:, None] < edges).mean(0)
        # The rule of the sum interpolates to about 1e-3 where the density bends.
        assert (np.abs(found - cumulative) < 5 * np.sqrt(cumulative * (1 - cumulative) / n) + 1e-3).all()
        above.append((x > 0).mean())
    annealed, plain = above
    # The smaller mode's weight: 0.2, or that of where the chains started.
    assert abs(annealed - SMALL) < 0.03 and plain > 0.45


def test_more_steps_at_each_level_bring_the_weights_nearer():
    errors = [abs(law_on_a_grid(LEVELS, 0.05, steps)[GRID > 0].sum() * H - SMALL) for steps in (2, 10, 50)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 0.02


# A step


def test_every_step_is_that_of_the_algorithm():
    sigmas, step_size, steps = [2.0, 1.0, 0.25], 0.01, 3
    asked = []

    def score(x, sigma):
        asked.append(sigma)
        return torch.tanh(x) - x / sigma

    x = torch.randn(5, 3, 2, generator=generator(3), dtype=torch.float64)
    kept = annealed_langevin(score, x, torch.tensor(sigmas), step_size, steps, generator=generator(), keep=True).samples
    source, k = generator(), 0
    for sigma in sigmas:
        alpha = step_size * (sigma / 0.25) ** 2
        for _ in range(steps):
            noise = torch.randn(x.shape, generator=source, dtype=torch.float64)
            x = x + alpha / 2 * (torch.tanh(x) - x / sigma) + math.sqrt(alpha) * noise
            torch.testing.assert_close(kept[k], x, rtol=1e-12, atol=1e-12)
            k += 1
    assert asked == [sigma for sigma in sigmas for _ in range(steps)]


def test_units_of_length_do_not_matter():
    """Data, levels and √ε in other units: the same chains in these units."""
    x = torch.randn(50, 2, generator=generator(3), dtype=torch.float64)

    def run(c):
        return annealed_langevin(
            gaussian_score(2 * c, (0.6 * c) ** 2), c * x, [3 * c, c, c / 4], 0.02 * c**2, 5, generator=generator()
        ).last

    torch.testing.assert_close(run(7.0), 7 * run(1.0), rtol=1e-10, atol=1e-10)


def test_what_is_kept():
    x = torch.zeros(4, 2)
    call = lambda **arguments: annealed_langevin(  # noqa: E731
        gaussian_score(0, 1), x, [2.0, 1.0], 0.1, 5, generator=generator(), **arguments
    )
    everything, few, last = call(keep=True), call(keep=True, thin=3), call()
    assert torch.equal(few.samples, everything.samples[[2, 5, 8]]) and last.samples.shape == (0, 4, 2)
    assert torch.equal(few.last, everything.last) and torch.equal(last.last, everything.last)
    assert not torch.equal(everything.samples[0], everything.samples[1]) and not x.any()
    assert last.last.dtype == torch.float32 and torch.equal(call().last, last.last)
    other = annealed_langevin(gaussian_score(0, 1), x, [2.0, 1.0], 0.1, 5, generator=generator(1))
    assert not torch.equal(other.last, last.last)


def test_no_graph_is_kept_and_a_score_may_use_one():
    weight = torch.ones((), requires_grad=True)

    def score(x, sigma):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return weight * torch.autograd.grad(-leaf.square().sum() / 2, leaf)[0]

    last = annealed_langevin(score, torch.ones(3, 2), [1.0, 0.5], 0.1, 2, generator=generator()).last
    assert not last.requires_grad and last.isfinite().all()


def test_progress_is_shown_on_request(capsys):
    annealed_langevin(gaussian_score(0, 1), torch.zeros(2, 1), [2.0, 1.0], 0.1, 3)
    assert not capsys.readouterr().err
    annealed_langevin(gaussian_score(0, 1), torch.zeros(2, 1), [2.0, 1.0], 0.1, 3, progress=True)
    assert "6/6" in capsys.readouterr().err


# Errors


def test_a_lost_chain_is_named():
    calls = []

    def score(x, sigma):
        calls.append(sigma)
        slope = torch.zeros_like(x)
        if len(calls) == 5:
            slope[3, 1] = math.nan
        return slope

    with pytest.raises(FloatingPointError, match=r"chain 3 is lost at level 2 of 3 \(σ = 0.5\), step 2 of 3"):
        annealed_langevin(score, torch.zeros(6, 2), [1.0, 0.5, 0.25], 0.1, 3)


def test_too_long_a_step_loses_chains():
    def run(step_size):
        annealed_langevin(gaussian_score(0, 0), torch.ones(2, 1), [0.1], step_size, 400, generator=generator())

    # |1 - ε / 2σ²| is 1.5 for the one and 0.9 for the other.
    with pytest.raises(FloatingPointError, match=r"is lost at level 1 of 1.*a step_size below 0.05 may help"):
        run(0.05)
    run(0.038)


def test_large_states_are_not_lost():
    """Finite, though their sum is not."""
    x = torch.full((10, 2), 3e38)
    annealed_langevin(lambda x, sigma: 0 * x, x, [1.0], 0.1, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"sigmas": [1.0, 2.0]}, ValueError, r"sigmas must be positive, finite and strictly falling, got \[1, 2\]"),
        ({"sigmas": [1.0, 1.0]}, ValueError, "sigmas"),
        ({"sigmas": [1.0, 0.0]}, ValueError, "sigmas"),
        ({"sigmas": [math.inf, 1.0]}, ValueError, "sigmas"),
        ({"sigmas": [2.0, math.nan]}, ValueError, "sigmas"),
        ({"sigmas": []}, ValueError, r"sigmas.*got \[\]"),
        ({"sigmas": [1.0, 2.0, 3.0, 4.0, 5.0]}, ValueError, r"got \[1, 2, 3, 4, …\]"),
        ({"step_size": 0.0}, ValueError, "step_size must be a positive, finite number, got 0.0"),
        ({"step_size": math.inf}, ValueError, "step_size"),
        ({"step_size": True}, ValueError, "step_size"),
        ({"steps": 0}, ValueError, "steps must be a positive integer"),
        ({"thin": 5, "keep": True}, ValueError, "thin"),
        ({"x": torch.zeros(2, 1) * math.nan}, ValueError, "x must be finite"),
        ({"x": torch.zeros(2, 1).long()}, TypeError, "floating"),
        ({"x": torch.zeros(0, 1)}, ValueError, "at least one chain"),
        ({"score": lambda x, sigma: x[0]}, ValueError, r"shape of x, \(3, 2\), got \(2,\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, match):
    good = {
        "score": gaussian_score(0, 1),
        "x": torch.zeros(3, 2),
        "sigmas": [2.0, 1.0],
        "step_size": 0.1,
        "steps": 2,
    }
    annealed_langevin(**good)
    with pytest.raises(error, match=match):
        annealed_langevin(**good | arguments)
