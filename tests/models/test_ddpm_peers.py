"""Diffusions beside those of diffusers: its schedules, its variances, and steps of its samplers."""

import math

import numpy as np
import pytest
import torch
from test_ddpm import generator, same

from companion.models.ddpm import alpha_bars, cosine_schedule, from_eps, linear_schedule
from companion.samplers.diffusion import Grid, ancestral, ddim, dpm_solver

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: the extra `bench` brings it")

STEPS = 20
KINDS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
BETAS = np.linspace(0.01, 0.4, STEPS)
BARS = alpha_bars(torch.from_numpy(BETAS))


def in_float64(scheduler, betas=BETAS):
    """Its tables, which are of float32, in float64."""
    scheduler.betas = torch.from_numpy(betas)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    return scheduler


def scheduler_of(name, **arguments):
    made = getattr(diffusers, name)(num_train_timesteps=STEPS, trained_betas=BETAS, **arguments)
    return in_float64(made)


def field(x, t):
    """An ε̂, at our t = 1 … T."""
    return torch.tanh(1.3 * x + 0.1 * t) + 0.1 * x.flip(1)


def noise(seed=0):
    # A whole number of 16 values, so that a draw of the tensor and one into it agree in every build of torch.
    return torch.randn(8, 4, generator=generator(seed), dtype=torch.float64)


def answer(x, t, kind):
    """What a network that predicts `kind` says where ours says `field`."""
    bar = BARS[t].item()
    return from_eps(field(x, t), KINDS[kind], x, math.sqrt(bar), math.sqrt(1 - bar))


def theirs(scheduler, kind, x, **arguments):
    """Their loop; their times are 0 … T - 1."""
    for time in scheduler.timesteps:
        x = scheduler.step(answer(x, int(time) + 1, kind), time, x, **arguments).prev_sample
    return x


def grid_of(scheduler):
    times = [int(t) + 1 for t in scheduler.timesteps] + [0]
    return Grid(times, BARS[times].tolist())


# Schedules


@pytest.mark.parametrize("steps", [10, 1000])
def test_the_same_schedules(steps):
    """Theirs in float32. Of the cosine they take f(t)/f(t - 1), from which f(0) is gone, as it is here."""
    linear = diffusers.DDPMScheduler(steps, 1e-4, 0.02, "linear")
    cosine = diffusers.DDPMScheduler(steps, beta_schedule="squaredcos_cap_v2")
    for scheduler, betas in ((linear, linear_schedule(steps)), (cosine, cosine_schedule(steps))):
        torch.testing.assert_close(betas.float(), scheduler.betas, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(alpha_bars(betas)[1:].float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)
        # From their betas, in float64.
        own = in_float64(scheduler, scheduler.betas.double().numpy()).alphas_cumprod
        same(alpha_bars(scheduler.betas)[1:], own, 1e-12)


@pytest.mark.parametrize("steps", [4, 5, 20])
def test_the_same_times(steps):
    from companion.models.ddpm import DDPM
    from companion.nets.time_mlp import TimeMLP

    scheduler = scheduler_of("DDPMScheduler", timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert DDPM(TimeMLP(2, 4), (2,), torch.from_numpy(BETAS)).grid(steps) == grid_of(scheduler)


# Variances


def test_the_same_variances(monkeypatch):
    """What ancestral sampling adds, from a start of zeros with an ε̂ of zeros: σ ξ with ξ = 1."""
    monkeypatch.setattr(torch.Tensor, "normal_", lambda self, **_: self.fill_(1))
    zero, fraction = torch.zeros(1, 4, dtype=torch.float64), torch.linspace(-1, 1, 4, dtype=torch.float64)[None]
    for t in range(2, STEPS + 1):
        # To time t - 1, and on to the data, which adds nothing.
        grid = Grid([t, t - 1, 0], BARS[[t, t - 1, 0]].tolist())
        back = math.sqrt(BARS[t - 1])
        for theirs, variance in (("fixed_small", "posterior"), ("fixed_large", "forward")):
            got = ancestral(lambda x, t: 0 * x, zero, grid, variance) * back
            same(got.square()[0, 0], scheduler_of("DDPMScheduler", variance_type=theirs)._get_variance(t - 1), 1e-10)
        learned = scheduler_of("DDPMScheduler", variance_type="learned_range")._get_variance(t - 1, fraction)
        got = ancestral(lambda x, t: (0 * x, (fraction + 1) / 2), zero, grid) * back
        same(got.square(), learned.exp(), 1e-10)


# Samplers


# Down to 0: from anywhere else theirs adds noise in the last step too.
TIMES = {"all": list(range(STEPS))[::-1], "some": [19, 15, 9, 4, 0]}


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("theirs_is", "variance"), [("fixed_small", "posterior"), ("fixed_large", "forward")])
def test_the_same_ancestral_samples(theirs_is, variance, kind, times):
    scheduler = scheduler_of("DDPMScheduler", variance_type=theirs_is, prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(timesteps=TIMES[times])
    expected = theirs(scheduler, kind, noise(), generator=generator(3))
    same(ancestral(field, noise(), grid_of(scheduler), variance, generator=generator(3)), expected)


@pytest.mark.parametrize("times", TIMES)
def test_the_same_samples_with_a_learned_variance(times):
    scheduler = scheduler_of("DDPMScheduler", variance_type="learned_range", clip_sample=False)
    scheduler.set_timesteps(timesteps=TIMES[times])
    x, source = noise(), generator(3)
    for time in scheduler.timesteps:
        both = torch.cat([field(x, int(time) + 1), torch.sin(x)], 1)
        x = scheduler.step(both, time, x, generator=source).prev_sample
    got = ancestral(
        lambda x, t: (field(x, t), (torch.sin(x) + 1) / 2), noise(), grid_of(scheduler), generator=generator(3)
    )
    same(got, x)


@pytest.mark.parametrize("steps", [5, STEPS])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_same_samples_of_ddim(eta, kind, steps):
    scheduler = scheduler_of("DDIMScheduler", prediction_type=kind, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    expected = theirs(scheduler, kind, noise(), eta=eta, generator=generator(3))
    same(ddim(field, noise(), grid_of(scheduler), eta, generator=generator(3)), expected)


def test_the_same_samples_within_levels():
    """Clipped x̂_0, with the ε̂ that belongs to it."""
    from companion.models.ddpm import DDPM

    class Network(torch.nn.Module):
        def forward(self, x, time):
            return field(x, (time * STEPS / 1000).round()[:, None])

    model = DDPM(Network(), (4,), torch.from_numpy(BETAS), levels=256).double()
    for name, sampler, arguments in (
        ("DDPMScheduler", ancestral, {}),
        ("DDIMScheduler", ddim, {"use_clipped_model_output": True}),
    ):
        scheduler = scheduler_of(name, clip_sample=True, timestep_spacing="trailing")
        scheduler.set_timesteps(STEPS)
        expected = theirs(scheduler, "epsilon", noise(), generator=generator(3), **arguments)
        got = sampler(model.predictor(), noise(), model.grid(), generator=generator(3))
        same(got, expected, 1e-8)
        assert not torch.allclose(got, sampler(field, noise(), model.grid(), generator=generator(3)))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [5, STEPS])
def test_the_same_samples_of_the_second_order_solver(steps, kind):
    """Theirs has two formulas for one extrapolation, of which this is "midpoint", and computes in float32."""
    scheduler = scheduler_of(
        "DPMSolverMultistepScheduler",
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type=kind,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    scheduler.set_timesteps(steps)
    grid = grid_of(scheduler)
    bars = np.array(grid.alpha_bars)
    scheduler.sigmas = torch.from_numpy(np.sqrt((1 - bars) / bars))
    same(dpm_solver(field, noise(), grid), theirs(scheduler, kind, noise()), 5e-6)
