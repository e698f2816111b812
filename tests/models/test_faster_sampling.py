"""Distilled, consistency and latent models against DDIM, linear models in closed form, and the papers' recursions."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Independent, Normal

from companion.conformance import check
from companion.data import density
from companion.evaluation import energy_distance
from companion.models.ddpm import DDPM, VDM, cosine_schedule, linear_schedule
from companion.models.faster_sampling import (
    ConsistencyModel,
    LatentDiffusion,
    ProgressiveDistillation,
    karras_levels,
)
from companion.models.questions import Bound, Density, Learner, Sampler
from companion.models.vae import VAE, Autoencoder
from companion.nets.time_mlp import TimeMLP
from companion.nets.unet import UNet
from companion.samplers.diffusion import Grid, ddim, heun
from companion.training import Settings, fit

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def awake(network, seed=0):
    """With weights everywhere: the package's networks start at zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator(seed)))
    return network


class Listener(nn.Module):
    """Remembers what a network was asked, and answers with it."""

    def __init__(self, network):
        super().__init__()
        self.network, self.classes, self.heard = network, getattr(network, "classes", None), []

    def forward(self, x, t, *label):
        self.heard.append((x.detach(), t, *label))
        return self.network(x, t, *label)


class Gains(nn.Module):
    """A number for each whole time, by which x is multiplied."""

    def __init__(self, gains):
        super().__init__()
        self.gains = nn.Parameter(torch.as_tensor(gains, dtype=torch.get_default_dtype()))

    def forward(self, x, t):
        return self.gains[(t * ((len(self.gains) - 1) / 1000)).round().long(), None] * x


def gaussian_gains(betas, scale, predicts="v"):
    """What predicts the v, or the x_0, of N(0, scale²) best, at t = 0 … T."""
    bars = np.concatenate([[1.0], np.cumprod(1 - betas.numpy())])
    a, sigma = np.sqrt(bars), np.sqrt(1 - bars)
    variance = bars * scale**2 + 1 - bars
    return (a * sigma * (1 - scale**2) if predicts == "v" else a * scale**2) / variance


# Progressive distillation


@pytest.mark.parametrize("predicts", ["v", "x0"])
@pytest.mark.parametrize("levels", [None, 5])
@pytest.mark.parametrize(("times", "steps"), [(8, 2), (11, 3), (6, 3)])
def test_one_step_to_the_target_leads_where_two_steps_of_the_teacher_lead(predicts, levels, times, steps):
    network = awake(TimeMLP(3, 16)).double()
    teacher = DDPM(network, (3,), linear_schedule(times, 0.02, 0.5), predicts=predicts, levels=levels).double()
    model = ProgressiveDistillation(teacher, steps).double()
    grid = teacher.grid(2 * steps)
    z = 2 * torch.randn(20, 3, dtype=F64, generator=generator())
    clipped = 0
    for step in range(steps):
        part = slice(2 * step, 2 * step + 3)
        landed = ddim(teacher.predictor(), z, Grid(grid.times[part], grid.alpha_bars[part]))
        target = model.target(z, torch.full((20,), step))
        now, after = grid.alpha_bars[2 * step], grid.alpha_bars[2 * step + 2]
        eps = (z - math.sqrt(now) * target) / math.sqrt(1 - now)
        step_to = math.sqrt(after) * target + math.sqrt(1 - after) * eps
        torch.testing.assert_close(step_to, landed, rtol=1e-10, atol=1e-10)
        clipped += (target.abs() == 1).sum()
    # In the last step γ = 0, and the target is the teacher's second guess.
    assert (clipped > 0) == (levels is not None)
    each = torch.arange(20) % steps
    together = model.target(z, each)
    for step in range(steps):
        alone = model.target(z, torch.full((20,), step))
        torch.testing.assert_close(together[each == step], alone[each == step])


@pytest.mark.parametrize("predicts", ["v", "x0"])
def test_the_distillation_loss_is_the_weighted_distance_in_expectation(predicts):
    """Of N(0, 0.7²) and two linear networks. Three of the four SNRs are on either side of 1."""
    betas, n = linear_schedule(8, 0.05, 0.6), 100_000
    gains = gaussian_gains(betas, 0.7, predicts)
    teacher = DDPM(Gains(gains), (2,), betas, predicts=predicts).double()
    model = ProgressiveDistillation(teacher, 4).double()
    torch.manual_seed(0)
    with torch.no_grad():
        model.student.network.gains += 0.3 * torch.randn(9)
    student = model.student.network.gains.detach().numpy()
    bars = np.concatenate([[1.0], np.cumprod(1 - betas.numpy())])
    a, sigma = np.sqrt(bars), np.sqrt(1 - bars)

    def x0(gain, t):
        """x̂_0 over x_t."""
        return gain[t] if predicts == "x0" else a[t] - sigma[t] * gain[t]

    expected, weights = 0.0, []
    for t in (8, 6, 4, 2):
        middle = a[t - 1] * x0(gains, t) + sigma[t - 1] * (1 - a[t] * x0(gains, t)) / sigma[t]
        end = a[t - 2] * x0(gains, t - 1) * middle
        end += sigma[t - 2] * (1 - a[t - 1] * x0(gains, t - 1)) * middle / sigma[t - 1]
        # Their algorithm 2, with z_t = 1.
        target = (end - sigma[t - 2] / sigma[t]) / (a[t - 2] - sigma[t - 2] / sigma[t] * a[t])
        weights.append(max(bars[t] / (1 - bars[t]), 1))
        expected += weights[-1] * (target - x0(student, t)) ** 2 * 2 * (bars[t] * 0.49 + 1 - bars[t]) / 4
    assert weights[0] == 1 and weights[-1] > 2
    loss = model.loss(0.7 * torch.randn(n, 2, dtype=F64))
    assert loss.value.shape == (n,) and loss.unit == "squared distance, weighted by max(SNR, 1)"
    assert abs(loss.value.mean().item() - expected) < 5 * loss.value.std().item() / n**0.5
    assert loss.value.std() / n**0.5 < 0.01 * expected


def test_students_of_a_linear_teacher_come_to_lead_where_it_leads():
    """In 8 steps, by way of 4 and 2 in 1. All is linear, so that the best student makes no error."""
    betas = linear_schedule(8, 0.05, 0.6)
    teacher = DDPM(Gains(gaussian_gains(betas, 0.5)), (2,), betas, predicts="v")
    x = 0.5 * torch.randn(500, 2, generator=generator())
    eight = teacher.sample(100, generator(1), sampler=ddim)
    before = teacher.sample(100, generator(1), sampler=ddim, steps=1)
    model = ProgressiveDistillation(teacher, 4)
    while True:
        fit(model, x, Settings(steps=250, learning_rate=0.01, batch_size=32), progress=False)
        torch.testing.assert_close(model.sample(100, generator(1)), eight, atol=5e-4, rtol=1e-3)
        if model.steps == 1:
            break
        student, model = model.student, model.halved()
        # Here the student is the teacher, frozen, and the next student begins as it.
        assert not any(p.requires_grad for p in model.teacher.parameters())
        assert torch.equal(model.teacher.network.gains, student.network.gains)
        assert torch.equal(model.student.network.gains, student.network.gains)
        assert all(p.requires_grad for p in model.student.parameters())
    assert (before - eight).abs().max() > 0.2
    np.testing.assert_allclose(teacher.network.gains.detach(), gaussian_gains(betas, 0.5), rtol=1e-6)
    with pytest.raises(ValueError, match="steps must be even to be halved, got 1"):
        model.halved()


@pytest.mark.parametrize("levels", [None, 256])
def test_sampling_is_the_recursion_with_one_call_of_the_student_in_each_step(levels):
    network = awake(TimeMLP(3, 16, classes=4)).double()
    teacher = DDPM(network, (3,), linear_schedule(10, 0.02, 0.5), predicts="v", levels=levels).double()
    model = ProgressiveDistillation(teacher, 3).double()
    awake(model.student.network, 1)
    label = torch.tensor([0, 3, 2, 1, 0])
    bars = [1.0, *np.cumprod(1 - linear_schedule(10, 0.02, 0.5).numpy())]
    x = torch.randn(5, 3, dtype=F64, generator=generator(2))
    for t, s in ((10, 7), (7, 3), (3, 0)):
        v = model.student.network(x, torch.full((5,), 100.0 * t), label)
        x0 = math.sqrt(bars[t]) * x - math.sqrt(1 - bars[t]) * v
        x0 = x0 if levels is None else x0.clamp(-1, 1)
        eps = (x - math.sqrt(bars[t]) * x0) / math.sqrt(1 - bars[t])
        x = math.sqrt(bars[s]) * x0 + math.sqrt(1 - bars[s]) * eps
    expected = x if levels is None else (x + 1) / 2
    model.student.network = Listener(model.student.network)
    torch.testing.assert_close(model.sample(5, generator(2), label), expected, rtol=1e-9, atol=1e-9)
    assert len(model.student.network.heard) == 3


def test_teacher_and_student_see_the_same_labels_of_which_some_are_hidden():
    network = Listener(awake(TimeMLP(2, 8, classes=3)))
    model = ProgressiveDistillation(DDPM(network, (2,), linear_schedule(10), predicts="x0", label_dropout=0.25), 2)
    label = torch.arange(2000) % 3
    model.loss(torch.zeros(2000, 2), label)
    [(_, _, shown)], asked = model.student.network.heard, model.teacher.network.heard
    assert len(asked) == 2 and all(torch.equal(labels, shown) for _, _, labels in asked)
    hidden = shown == 3
    assert abs(hidden.float().mean() - 0.25) < 5 * (0.25 * 0.75 / 2000) ** 0.5
    assert torch.equal(shown[~hidden], label[~hidden])
    # Times on the network's scale from 0 to 1,000, of the student at 10 and 5, of the teacher 2 or 3 later.
    assert set(model.student.network.heard[0][1].tolist()) == {1000.0, 500.0}
    assert set(asked[1][1].tolist()) == {800.0, 200.0}
    with pytest.raises(ValueError, match="label must be"):
        model.loss(torch.zeros(2, 2))


def test_a_target_at_almost_no_signal_is_not_divided_by_it():
    """√ᾱ_T = 5 · 10⁻⁵: by way of ε̂, float32 would lose four digits. Angles of times near 1,000 lose three, 6 · 10⁻⁵."""
    teacher = DDPM(awake(TimeMLP(2, 16)), (2,), cosine_schedule(1000), predicts="v")
    assert teacher.alpha_bars[-1].sqrt() < 1e-4
    z, step = torch.randn(50, 2, generator=generator()), torch.zeros(50, dtype=torch.long)
    single = ProgressiveDistillation(teacher, 4).target(z, step)
    double = ProgressiveDistillation(teacher.double(), 4).double().target(z.double(), step)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=6e-5)


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x, t):
        return self.value.expand_as(x)


def test_a_student_is_drawn_back_from_where_no_intensity_is():
    """The teacher's guess, 3, is put on the edge, 1, as in sampling; the student's is not, or it would not learn."""
    betas = linear_schedule(8, 0.05, 0.6)
    model = ProgressiveDistillation(DDPM(Constant(3.0), (2,), betas, predicts="x0", levels=256), 1)
    loss = model.loss(torch.zeros(5, 2))
    torch.testing.assert_close(loss.value, torch.full((5,), 8.0))  # at time T the weight is 1
    loss.value.mean().backward()
    assert model.student.network.value.grad.item() == pytest.approx(8)


class Noisy(nn.Module):
    """With dropout, which a frozen part must not have."""

    def __init__(self):
        super().__init__()
        self.dropout, self.weight = nn.Dropout(0.5), nn.Parameter(torch.tensor(0.3))

    def forward(self, x, t):
        return self.weight * self.dropout(x)


def test_only_the_student_learns_and_the_teacher_stays_as_it_is():
    teacher = DDPM(Noisy(), (2,), linear_schedule(10), predicts="v")
    model = ProgressiveDistillation(teacher, 2).train()
    z, step = torch.ones(50, 2), torch.arange(50) % 2
    assert torch.equal(model.target(z, step), model.target(z, step))
    assert model.student.network.dropout.training
    loss = model.loss(z).value.mean()
    loss.backward()
    assert model.student.network.weight.grad is not None
    assert not model.teacher.network.weight.requires_grad
    assert teacher.network.weight.requires_grad and teacher.training


@pytest.mark.parametrize(
    ("teacher", "steps", "error", "match"),
    [
        (DDPM(TimeMLP(2), (2,), linear_schedule(10)), 2, ValueError, "must predict 'v' or 'x0', got 'eps': at time T"),
        (DDPM(TimeMLP(2), (2,), linear_schedule(10), "score"), 2, ValueError, "got 'score'"),
        (DDPM(TimeMLP(2), (2,), linear_schedule(10), "v"), 6, ValueError, "steps must be at most 5, .* got 6"),
        (DDPM(TimeMLP(2), (2,), linear_schedule(10), "v"), 0, ValueError, "steps must be a positive integer"),
        (DDPM(TimeMLP(2), (2,), linear_schedule(10), "v"), 2.0, ValueError, "steps must be a positive integer"),
        (TimeMLP(2), 2, TypeError, "teacher must be a DDPM, got TimeMLP"),
    ],
)
def test_teachers_that_cannot_teach_are_refused(teacher, steps, error, match):
    with pytest.raises(error, match=match):
        ProgressiveDistillation(teacher, steps)


# Consistency models


class Function(nn.Module):
    """The network whose f is a given one: F = (f - c_skip x̄)/c_out, from what the network sees of x̄ and σ̄."""

    def __init__(self, f, low, high, d):
        super().__init__()
        self.f, self.low, self.high, self.d, self.unused = f, low, high, d, nn.Parameter(torch.zeros(()))

    def forward(self, x, time):
        sigma = (self.low * (self.high / self.low) ** (time / 1000))[:, None]
        x = x * (sigma**2 + self.d**2).sqrt()
        skip = self.d**2 / ((sigma - self.low) ** 2 + self.d**2)
        out = self.d * (sigma - self.low) / (sigma**2 + self.d**2).sqrt()
        answer = (self.f(x, sigma) - skip * x) / out
        # At σ̄_min any F will do.
        return torch.where(out > 1e-9, answer, 7.0) + self.unused


class Direction(nn.Module):
    """ε̂ of a given function of x̄ and σ̄, (batch, 1)."""

    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, x, sigma):
        return self.of(x, sigma[:, None])


SCALE, LOW, HIGH = 0.8, 0.1, 5.0


def gaussian_model(**arguments):
    """The consistency function of N(0, 0.8²), and if wanted its ε̂ for a teacher."""
    network = Function(lambda x, s: ((SCALE**2 + LOW**2) / (SCALE**2 + s**2)) ** 0.5 * x, LOW, HIGH, 0.6)
    arguments = {"sigma_min": LOW, "sigma_max": HIGH, "sigma_data": 0.6, **arguments}
    if arguments.pop("taught", False):
        arguments["teacher"] = Direction(lambda x, s: s * x / (SCALE**2 + s**2))
    return ConsistencyModel(network, (2,), **arguments).double()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_where_a_path_ends_the_consistency_function_is_the_identity(dtype):
    model = ConsistencyModel(awake(TimeMLP(3, 16)), (3,)).to(dtype)
    x = 100 * torch.randn(50, 3, dtype=dtype, generator=generator())
    assert torch.equal(model(x, 0.002), x)
    assert torch.equal(model(x, model.sigmas[0]), x)
    assert not torch.allclose(model(x, 0.01), x)


def test_the_consistency_function_is_the_papers_mixture_of_its_input_and_the_network():
    model = ConsistencyModel(TimeMLP(2, 8), (2,), sigma_min=LOW, sigma_max=HIGH, sigma_data=0.6).double()
    x, sigma = torch.randn(40, 2, dtype=F64, generator=generator()), torch.linspace(LOW, HIGH, 40, dtype=F64)
    gap = (sigma - LOW)[:, None]
    skip = model(x, sigma)  # the network starts at 0
    torch.testing.assert_close(skip, 0.36 / (gap**2 + 0.36) * x)
    nn.init.constant_(model.network.last.bias, 2.0)
    out = 0.6 * gap / (0.36 + sigma[:, None] ** 2).sqrt()
    torch.testing.assert_close(model(x, sigma) - skip, 2 * out.expand_as(x))
    model.network = Listener(model.network)
    model(x, sigma)
    [(seen, time)] = model.network.heard
    torch.testing.assert_close(seen, x / (sigma[:, None] ** 2 + 0.36).sqrt())
    assert time[0] == 0 and time[-1] == pytest.approx(1000)
    model(x, math.sqrt(LOW * HIGH))
    torch.testing.assert_close(model.network.heard[1][1], torch.full((40,), 500.0, dtype=F64))


def test_levels_are_those_of_karras():
    """Their eq. 5, from the highest to the lowest."""
    n, high, low = 18, 80.0, 0.002
    expected = [(high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n)]
    levels = karras_levels(n, low, high)
    assert levels.dtype == F64 and levels[0] == low and levels[-1] == high
    np.testing.assert_allclose(levels, expected[::-1], rtol=1e-12)
    np.testing.assert_allclose(karras_levels(5, 1.0, 3.0, rho=1.0), [1, 1.5, 2, 2.5, 3])


def test_the_consistency_function_of_a_gaussian_is_constant_on_paths_and_samples_it():
    model = gaussian_model()
    x = torch.randn(30, 2, dtype=F64, generator=generator())
    for sigma in (0.11, 0.5, 2.0, HIGH):
        on_path = x * math.sqrt((SCALE**2 + sigma**2) / (SCALE**2 + LOW**2))
        torch.testing.assert_close(model(on_path, sigma), x)
    n = 50_000
    for steps in (1, 2, 5):
        drawn = model.sample(n, generator(), steps=steps)
        # From N(0, σ̄_max²): the data's variance is forgotten in the first step.
        variance = HIGH**2 * (SCALE**2 + LOW**2) / (SCALE**2 + HIGH**2)
        for k in range(1, steps):
            sigma = model.sigmas[round(17 * (1 - k / steps))].item()
            variance = (variance + sigma**2 - LOW**2) * (SCALE**2 + LOW**2) / (SCALE**2 + sigma**2)
        assert (drawn.mean(0).abs() < 5 * (variance / n) ** 0.5).all()
        assert ((drawn.var(0) - variance).abs() < 5 * variance * (2 / n) ** 0.5).all()


def gaussian_loss(levels, solver):
    """Its expectation for `gaussian_model`, in two dimensions."""
    total, least = 0.0, SCALE**2 + LOW**2
    for low, high in pairwise(levels):
        before, after = math.sqrt(least / (SCALE**2 + high**2)), math.sqrt(least / (SCALE**2 + low**2))
        if solver is None:  # x_0 and ε are independent
            square = SCALE**2 * (before - after) ** 2 + (before * high - after * low) ** 2
        else:
            first = high / (SCALE**2 + high**2)
            end = 1 + (low - high) * first
            if solver == "heun":
                end = 1 + (low - high) * (first + end * low / (SCALE**2 + low**2)) / 2
            square = (SCALE**2 + high**2) * (before - after * end) ** 2
        total += 2 * square / (high - low)
    return total / (len(levels) - 1)


@pytest.mark.parametrize("solver", [None, "euler", "heun"])
def test_the_loss_of_the_exact_function_is_the_error_of_the_solver(solver):
    n = 50_000
    arguments = {} if solver is None else {"taught": True, "solver": solver}
    torch.manual_seed(0)
    x, errors = SCALE * torch.randn(n, 2, dtype=F64), {}
    for noise_levels in (4, 20, 40, 80):
        model = gaussian_model(noise_levels=noise_levels, **arguments)
        loss = model.loss(x)
        errors[noise_levels] = expected = gaussian_loss(karras_levels(noise_levels, LOW, HIGH).tolist(), solver)
        assert abs(loss.value.mean().item() - expected) < 5 * loss.value.std().item() / n**0.5
        assert loss.value.shape == (n,) and "nats" not in loss.unit
    # Squares of errors of order 2 and 3 of a step, over its width; without a teacher the noise of one of order 1.
    order = {None: 1, "euler": 3, "heun": 5}[solver]
    assert math.log2(errors[40] / errors[80]) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("taught", [False, True])
def test_the_pseudo_huber_distance_is_that_of_the_squared_one(taught):
    """With one interval, whose width is known, and the same noise."""
    x = torch.randn(200, 2, dtype=F64, generator=generator())
    values = {}
    for metric in ("squared", "pseudo-huber"):
        torch.manual_seed(1)
        model = gaussian_model(noise_levels=2, metric=metric, taught=taught)
        values[metric] = model.loss(x).value * (HIGH - LOW)
        assert metric in model.loss(x).unit
    c = 0.00054 * math.sqrt(2)
    torch.testing.assert_close(values["pseudo-huber"], (values["squared"] + c**2).sqrt() - c)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "score"])
def test_a_ddpm_teaches_its_own_ode(predicts):
    """ε̂ is that of `predictor` at the real time with that noise, and a step is one of `heun`, or of `ddim`. They round
    the time to float32: angles of up to 1,000 to 6 · 10⁻⁵."""
    teacher = DDPM(awake(TimeMLP(2, 16)), (2,), linear_schedule(50, 2e-3, 0.3), predicts).double()
    sigmas = ((1 - teacher.alpha_bars[1:]) / teacher.alpha_bars[1:]).sqrt()
    low, high = sigmas[[0, -1]].tolist()
    x = 3 * torch.randn(6, 2, dtype=F64, generator=generator())
    for solver, sampler in (("heun", heun), ("euler", ddim)):
        model = ConsistencyModel(
            TimeMLP(2), (2,), teacher, noise_levels=7, sigma_min=low, sigma_max=high, solver=solver
        ).double()
        each = model.sigmas[[0, 1, 2, 3, 5, 6]]
        direction = model.teacher(x, each)
        for row, sigma in enumerate(each.tolist()):
            t, bar = teacher.time(-2 * math.log(sigma)), 1 / (1 + sigma**2)
            expected = teacher.predictor()(x[row : row + 1] * math.sqrt(bar), t)
            torch.testing.assert_close(direction[row : row + 1], expected, rtol=1e-4, atol=1e-4)
        to = model.sigmas[[0, 0, 1, 2, 4, 5]]
        landed = model._step(x, each, to, None)
        for row in range(1, 6):
            pair = [each[row].item(), to[row].item()]
            bars = [1 / (1 + sigma**2) for sigma in pair]
            grid = Grid([teacher.time(-2 * math.log(sigma)) for sigma in pair], bars)
            end = sampler(teacher.predictor(), x[row : row + 1] * math.sqrt(bars[0]), grid) / math.sqrt(bars[1])
            torch.testing.assert_close(landed[row : row + 1], end, rtol=1e-4, atol=1e-4)


def test_without_a_teacher_the_gradient_is_that_of_distillation_in_expectation():
    """For three points, of which ε̂ is known, and narrow intervals. Both draw the same noise: their difference is small
    beside them."""
    points = torch.tensor([[-1.0, 0.3], [0.8, 0.9], [0.2, -1.1]], dtype=F64)

    def direction(x, sigma):
        share = torch.softmax(-(x[:, None] - points).square().sum(2) / (2 * sigma**2), 1)
        return (x - share @ points) / sigma

    arguments = {"sigma_min": 0.4, "sigma_max": 1.6, "noise_levels": 150, "sigma_data": 0.8}
    gradients = {}
    for name, teacher in (("training", None), ("distillation", Direction(direction))):
        model = ConsistencyModel(awake(TimeMLP(2, 8, 1)), (2,), teacher, **arguments).double()
        torch.manual_seed(0)
        rows = []
        for _ in range(60):
            x = points[torch.randint(3, (1500,))]
            weights = [p for name, p in model.network.named_parameters() if name.startswith(("last", "first"))]
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(model.loss(x).value.mean(), weights)]))
        gradients[name] = torch.stack(rows)
    difference = gradients["training"] - gradients["distillation"]
    error = difference.std(0) / len(difference) ** 0.5
    size = gradients["distillation"].mean(0)
    # The intervals are not infinitely narrow: a share of their width remains.
    assert (difference.mean(0).abs() < 5 * error + 0.02 * size.norm()).all()
    assert size.abs().max() > 20 * error.max()


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_the_target_follows_after_each_step(decay):
    """In training alone; after the last step of an optimiser, at the next call."""
    model = ConsistencyModel(awake(TimeMLP(2, 8)), (2,), decay=decay)
    optimiser = torch.optim.SGD(model.network.parameters(), 0.1)
    x = torch.randn(10, 2, generator=generator())
    expected = [p.detach().clone() for p in model.network.parameters()]
    for _ in range(4):
        model.train().loss(x).value.mean().backward()
        for mine, theirs in zip(expected, model.target.parameters(), strict=True):
            torch.testing.assert_close(theirs, mine, rtol=1e-6, atol=1e-6)
        optimiser.step()
        model.eval().loss(x)
        for mine, theirs, now in zip(expected, model.target.parameters(), model.network.parameters(), strict=True):
            torch.testing.assert_close(theirs, mine, rtol=1e-6, atol=1e-6)
            mine.copy_(decay * mine + (1 - decay) * now.detach())
    assert not any(p.requires_grad for p in model.target.parameters())
    assert {f"target.{name}" for name in model.network.state_dict()} < set(model.state_dict())


def test_the_gradient_stops_at_the_target():
    """At μ = 0, where its weights are those of the network: half of the squared distance's own gradient is left out."""
    model = ConsistencyModel(awake(TimeMLP(2, 8)), (2,), noise_levels=2, sigma_min=0.5, sigma_max=1.0).double()
    x = torch.randn(64, 2, dtype=F64, generator=generator())
    torch.manual_seed(0)
    model.loss(x).value.mean().backward()
    torch.manual_seed(0)
    torch.randint(1, (64,))
    noise = torch.randn_like(x)
    # f of the lower level, σ̄_min, is the identity: nothing of it depends on θ.
    distance = (model(x + noise, 1.0) - (x + 0.5 * noise)).square().sum(1) / 0.5
    own = torch.autograd.grad(distance.mean(), list(model.network.parameters()), allow_unused=True)
    for parameter, gradient in zip(model.network.parameters(), own, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_stopped_training_goes_on_with_its_target(tmp_path):
    x, calls = torch.randn(50, 2, generator=generator()), []

    def data(n, gen):
        if calls and calls.pop():
            raise KeyboardInterrupt
        return x[torch.randint(50, (n,), generator=gen)]

    settings = Settings(steps=6, batch_size=8, checkpoint_every=3)
    results = []
    for stop in ([], [True, False, False, False]):
        torch.manual_seed(0)
        model = ConsistencyModel(TimeMLP(2, 8), (2,), decay=0.9)
        calls[:] = stop
        if stop:
            with pytest.raises(KeyboardInterrupt):
                fit(model, data, settings, folder=tmp_path, progress=False)
            model = ConsistencyModel(TimeMLP(2, 8), (2,), decay=0.9)
        fit(model, data, settings, folder=tmp_path if stop else None, progress=False)
        results.append(model.state_dict())
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name])
    assert not torch.equal(results[0]["target.last.weight"], results[0]["network.last.weight"])


@pytest.mark.parametrize("levels", [None, 256])
def test_sampling_adds_noise_and_takes_the_function_again(levels):
    """Algorithm 1, at every sixth of the 18 levels."""
    network = awake(TimeMLP(3, 16, classes=4))
    model = ConsistencyModel(network, (3,), levels=levels).double()
    label, gen = torch.tensor([0, 3, 2, 1, 0]), generator(2)
    levels_used = karras_levels(18, 0.002, 80.0)[[17, 11, 6]].tolist()
    x = model(80 * torch.randn(5, 3, dtype=F64, generator=gen), 80.0, label)
    one = x
    for sigma in levels_used[1:]:
        x = x + math.sqrt(sigma**2 - 0.002**2) * torch.randn(5, 3, dtype=F64, generator=gen)
        x = model(x, sigma, label)
    for steps, expected in ((1, one), (3, x)):
        expected = expected if levels is None else ((expected + 1) / 2).clamp(0, 1)
        torch.testing.assert_close(model.sample(5, generator(2), label, steps), expected)
    torch.testing.assert_close(model.noise(5, generator(2)), 80 * torch.randn(5, 3, dtype=F64, generator=generator(2)))


def test_labels_reach_the_student_its_target_and_the_teacher():
    teacher = DDPM(Listener(awake(TimeMLP(2, 8, classes=3))), (2,), linear_schedule(100), label_dropout=0.0)
    model = ConsistencyModel(
        Listener(TimeMLP(2, 8, classes=3)), (2,), teacher, sigma_min=0.02, sigma_max=0.5, sigma_data=1.0
    )
    label = torch.arange(20) % 3
    model.loss(torch.zeros(20, 2), label)
    parts = (model.network, 1), (model.target, 1), (model.teacher.model.network, 2)
    for network, times in parts:
        assert len(network.heard) == times
        assert all(torch.equal(heard[2], label) for heard in network.heard)
    for call in (model.loss, lambda x: model(x, 0.1), lambda x: model.sample(20)):
        with pytest.raises(ValueError, match="label must be"):
            call(torch.zeros(20, 2))
    assert model.sample(20, label=label).shape == (20, 2)


def test_the_teacher_of_a_consistency_model_stays_as_it_is():
    class Teacher(Noisy):
        def forward(self, x, sigma):
            return super().forward(x, sigma)

    teacher = Teacher()
    model = ConsistencyModel(TimeMLP(2), (2,), teacher).train()
    assert torch.equal(model.teacher(torch.ones(9, 2), torch.ones(9)), torch.full((9, 2), 0.3))
    assert teacher.weight.requires_grad and not model.teacher.weight.requires_grad


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"event_shape": ()}, ValueError, "event_shape"),
        ({"noise_levels": 1}, ValueError, "noise levels must be an integer of at least 2, got 1"),
        ({"noise_levels": 2.0}, ValueError, "noise levels must be an integer"),
        ({"sigma_min": 0.0}, ValueError, "rise from above 0, got from 0.0 to 80.0"),
        ({"sigma_min": 90.0}, ValueError, "rise from above 0"),
        ({"sigma_max": math.inf}, ValueError, "finite"),
        ({"sigma_data": 0.0}, ValueError, "sigma_data must be above 0 and finite, got 0.0"),
        ({"decay": 1.0}, ValueError, "decay must be at least 0 and below 1, got 1.0"),
        ({"decay": -0.1}, ValueError, "decay must be at least 0"),
        ({"metric": "lpips"}, ValueError, "metric must be one of squared, pseudo-huber, got 'lpips'"),
        ({"solver": "rk4"}, ValueError, "solver must be one of heun, euler, got 'rk4'"),
        ({"levels": 1}, ValueError, "levels must be an integer of at least 2, or None, got 1"),
        ({"teacher": lambda x, sigma: x}, TypeError, "teacher must be a DDPM, a module or None, got function"),
        ({"teacher": DDPM(TimeMLP(2), (2,), linear_schedule())}, ValueError, "must be from 0.01000.* to 157.4.*0.002"),
        (
            {"teacher": DDPM(TimeMLP(2), (2,), linear_schedule()), "sigma_min": 0.1, "sigma_max": 158.0},
            ValueError,
            "the noise of the teacher from t = 1 to T, got 0.1 and 158",
        ),
        ({"teacher": DDPM(TimeMLP(3), (3,), linear_schedule())}, ValueError, r"same event_shape .* \(2,\), got \(3,\)"),
        ({"teacher": DDPM(TimeMLP(2, classes=3), (2,), linear_schedule())}, ValueError, "same classes .*None, got 3"),
        ({"teacher": DDPM(TimeMLP(2), (2,), linear_schedule(), levels=8)}, ValueError, "same levels .*None, got 8"),
    ],
)
def test_consistency_models_that_mean_nothing_are_refused(arguments, error, match):
    with pytest.raises(error, match=match):
        ConsistencyModel(**{"network": TimeMLP(2), "event_shape": (2,), **arguments})


def test_consistency_functions_of_wrong_input_are_refused(refuses_bad_examples):
    model, good = ConsistencyModel(TimeMLP(2), (2,)), torch.zeros(3, 2)
    model(good, torch.tensor([0.002, 80.0, 1.0]))
    for call in (model.loss, lambda x: model(x, 1.0)):
        refuses_bad_examples(call, good)
    with pytest.raises(ValueError, match="this model has no classes"):
        model.loss(good, torch.zeros(3, dtype=torch.long))
    for sigma, match in (
        (0.001, "sigma must be from 0.002 to 80, got 0.001"),
        (81.0, "got 81"),
        (math.nan, "got nan"),
        (torch.ones(2), r"sigma must be a number or have shape \(3,\), got \(2,\)"),
    ):
        with pytest.raises(ValueError, match=match):
            model(good, sigma)
    for arguments, match in (
        ({"n": 0}, "n must be a positive integer"),
        ({"n": 2, "steps": 0}, "steps must be a positive integer"),
        ({"n": 2, "steps": 18}, "steps must be at most 17, the levels above sigma_min, got 18"),
    ):
        with pytest.raises(ValueError, match=match):
            model.sample(**arguments)
    assert model.sample(2, steps=17).shape == (2, 2)
    with pytest.raises(ValueError, match=r"network must answer with the shape \(3, 2\), got \(3, 1\)"):
        ConsistencyModel(TimeMLP(2, dims_out=1), (2,)).loss(good)
    with pytest.raises(ValueError, match="levels"):
        ConsistencyModel(TimeMLP(2), (2,), levels=4).loss(good + 0.5)


# Latent diffusion


class Linear(nn.Module):
    """z|x ~ N(E x + e, diag s²), x|z ~ N(W z + w, 0.5²): two numbers z, three numbers x."""

    def __init__(self):
        super().__init__()
        draws = np.random.default_rng(3)
        self.matrices = {"encode": draws.normal(size=(2, 3)), "decode": draws.normal(size=(3, 2))}
        self.shifts = {"encode": draws.normal(size=2), "decode": draws.normal(size=3)}
        self.scales = {"encode": np.array([0.3, 0.5]), "decode": np.full(3, 0.5)}
        self.event_shape = (3,)

    def encode(self, x):
        return self._normal("encode", x)

    def decode(self, z):
        return self._normal("decode", z)

    def _normal(self, way, x):
        matrix, shift, scale = (torch.tensor(v[way]).to(x) for v in (self.matrices, self.shifts, self.scales))
        return Independent(Normal(x @ matrix.T + shift, scale), 1)


class Matrices(nn.Module):
    """A matrix for each time, by which x is multiplied."""

    def __init__(self, matrices):
        super().__init__()
        self.matrices = nn.Parameter(torch.tensor(np.stack(matrices)))

    def forward(self, x, t):
        which = (t * (len(self.matrices) / 1000)).round().long() - 1
        return torch.einsum("bij,bj->bi", self.matrices[which], x)


def gaussian_kl(mean, covariance, of_mean, of_covariance):
    """KL(N(mean, covariance)‖N(of_mean, of_covariance))."""
    precision, away = np.linalg.inv(of_covariance), of_mean - mean
    log_ratio = np.linalg.slogdet(of_covariance)[1] - np.linalg.slogdet(covariance)[1]
    return (np.trace(precision @ covariance) - len(mean) + away @ precision @ away + log_ratio) / 2


@pytest.mark.parametrize("variance", ["posterior", "forward"])
def test_the_latent_bound_is_off_by_the_kl_between_whole_paths(variance):
    """log p(x) - KL(q(z_0:T|x)‖p(z_0:T|x)), where the autoencoder and a diffusion of three steps are all linear."""
    betas, draws, auto = np.array([0.3, 0.4, 0.6]), np.random.default_rng(5), Linear()
    networks = [0.5 * np.eye(2) + 0.2 * draws.normal(size=(2, 2)) for _ in betas]
    diffusion = DDPM(Matrices(networks), (2,), torch.tensor(betas), variance=variance)
    model = LatentDiffusion(auto, diffusion).double()
    model.fit_scale(torch.randn(200, 3, dtype=F64, generator=generator()))
    centre, scale = model.mean.numpy(), model.scale.item()
    assert (np.abs(centre) > 0.1).any() and abs(scale - 1) > 0.3
    bars = np.cumprod([1.0, *(1 - betas)])
    posterior = betas[1:] * (1 - bars[1:-1]) / (1 - bars[2:])
    sigma2 = np.array([posterior[0], *(posterior if variance == "posterior" else betas[1:])])

    # The model: u_3, …, u_0 and x as one map of eight noises for u and three for x, u_t the standardised codes.
    last = np.eye(2, 11, 6)
    path = [last]
    for t in (3, 2, 1):
        kernel = (np.eye(2) - betas[t - 1] / math.sqrt(1 - bars[t]) * networks[t - 1]) / math.sqrt(1 - betas[t - 1])
        path.append(kernel @ path[-1] + math.sqrt(sigma2[t - 1]) * np.eye(2, 11, 2 * (t - 1)))
    path = path[::-1]
    codes = np.vstack(path)
    to_x = scale * auto.matrices["decode"] @ path[0] + 0.5 * np.eye(3, 11, 8)
    mean_x = auto.matrices["decode"] @ centre + auto.shifts["decode"]
    evidence = to_x @ to_x.T
    x = np.array([0.4, -1.1, 0.7])
    log_p = stats.multivariate_normal(mean_x, evidence).logpdf(x)
    gain = codes @ to_x.T @ np.linalg.inv(evidence)
    of_mean, of_covariance = gain @ (x - mean_x), codes @ codes.T - gain @ to_x @ codes.T

    # q, the same way.
    code = (auto.matrices["encode"] @ x + auto.shifts["encode"] - centre) / scale
    noised = [np.diag(auto.scales["encode"] / scale) @ np.eye(2, 8)]
    for t in (1, 2, 3):
        noised.append(math.sqrt(1 - betas[t - 1]) * noised[-1] + math.sqrt(betas[t - 1]) * np.eye(2, 8, 2 * t))
    noised = np.vstack(noised)
    means = np.concatenate([math.sqrt(bar) * code for bar in bars])
    gap = gaussian_kl(means, noised @ noised.T, of_mean, of_covariance)
    assert gap > 0.5

    n = 100_000
    got = model.elbo(torch.tensor(x).expand(n, 3), terms=None, generator=generator(1))
    assert abs(got.mean().item() - (log_p - gap)) < 5 * got.std().item() / n**0.5
    # Two of the three terms instead of all: the same mean.
    got = model.elbo(torch.tensor(x).expand(n, 3), terms=2, generator=generator(2))
    assert abs(got.mean().item() - (log_p - gap)) < 5 * got.std().item() / n**0.5


def test_the_scale_is_that_of_all_codes_together():
    """By the law of total variance, against draws."""
    auto = Linear()
    model = LatentDiffusion(auto, DDPM(TimeMLP(2, 8), (2,), linear_schedule(10))).double()
    x = 2 + torch.randn(500, 3, dtype=F64, generator=generator()) * torch.tensor([1.0, 3.0, 0.3], dtype=F64)
    model.fit_scale(x)
    torch.manual_seed(0)
    z = auto.encode(x).sample((2000,)).flatten(0, 1)
    torch.testing.assert_close(model.mean, z.mean(0), rtol=0, atol=5e-3)
    torch.testing.assert_close(model.scale, (z - z.mean(0)).square().mean().sqrt(), rtol=1e-3, atol=0)
    # One scale: what the diffusion sees is of unit variance over all, not in each coordinate.
    model.diffusion.network = Listener(model.diffusion.network)
    model.diffusion.signal.fill_(1.0)
    model.diffusion.noise_level.fill_(0.0)
    model.loss(x.repeat(100, 1))
    [(seen, _)] = model.diffusion.network.heard
    assert seen.mean(0).abs().max() < 0.02 and seen.square().mean() == pytest.approx(1, abs=0.02)
    assert abs(seen[:, 0].var() - seen[:, 1].var()) > 0.1
    # Kept with the weights.
    other = LatentDiffusion(auto, DDPM(TimeMLP(2, 8), (2,), linear_schedule(10))).double()
    model.diffusion.network = model.diffusion.network.network
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.mean, model.mean) and torch.equal(other.scale, model.scale)


def test_latent_samples_are_the_decoders_mean_at_scaled_codes():
    diffusion = DDPM(awake(TimeMLP(2, 8, classes=3)), (2,), linear_schedule(20, 0.01, 0.4))
    model = LatentDiffusion(Linear(), diffusion).double()
    model.fit_scale(1 + 2 * torch.randn(100, 3, dtype=F64, generator=generator()))
    label = torch.tensor([0, 1, 2, 2])
    z = diffusion.sample(4, generator(1), label=label, steps=5, sampler=ddim)
    auto = Linear()
    codes = (model.mean + model.scale * z).detach().numpy()
    expected = codes @ auto.matrices["decode"].T + auto.shifts["decode"]
    drawn = model.sample(4, generator(1), label=label, steps=5, sampler=ddim)
    np.testing.assert_allclose(drawn, expected, rtol=1e-10)
    loss = model.loss(torch.zeros(4, 3, dtype=F64), label)
    assert loss.unit == "mean squared error of eps, of codes" and loss.value.shape == (4,)
    with pytest.raises(ValueError, match="label must be"):
        model.loss(torch.zeros(4, 3, dtype=F64))
    diffusion.network = Listener(diffusion.network)
    assert model.elbo(torch.zeros(4, 3, dtype=F64), label, terms=3, generator=generator()).shape == (4,)
    assert len(diffusion.network.heard) == 3
    assert all(torch.equal(heard[2], label) for heard in diffusion.network.heard)


def test_the_autoencoder_stays_as_it_is():
    class Noisy(Linear):
        def __init__(self):
            super().__init__()
            self.dropout, self.weight = nn.Dropout(0.5), nn.Parameter(torch.ones(()))

        def encode(self, x):
            return super().encode(self.weight * self.dropout(x))

    auto = Noisy()
    model = LatentDiffusion(auto, DDPM(awake(TimeMLP(2, 8)), (2,), linear_schedule(10))).train()
    x = torch.ones(100, 3)
    assert (model.autoencoder.encode(x).mean == model.autoencoder.encode(x).mean[0]).all()
    model.fit_scale(torch.randn(100, 3))
    model.loss(x).value.mean().backward()
    assert model.autoencoder.weight.grad is None and not model.autoencoder.weight.requires_grad
    assert all(p.grad is not None for p in model.diffusion.parameters())
    assert auto.weight.requires_grad and auto.training


def test_a_bound_of_the_latents_alone_is_no_bound_of_the_data():
    diffusion = DDPM(TimeMLP(2, 8), (2,), linear_schedule(10), objective="bound")
    model = LatentDiffusion(Linear(), diffusion)
    model.fit_scale(torch.randn(100, 3))
    assert model.loss(torch.zeros(4, 3)).unit == "nats, of codes"


def test_latent_diffusions_that_mean_nothing_are_refused():
    vae, betas = VAE((1, 4, 4), 3, hidden=8), linear_schedule(10)
    fitting = DDPM(TimeMLP(3, 8), (3,), betas)
    for auto, diffusion, error, match in (
        (Autoencoder((1, 4, 4), 3), fitting, TypeError, "encode.* and decode.* got Autoencoder"),
        (vae, VDM(TimeMLP(3, 8), (3,)), TypeError, "diffusion must be a DDPM, got VDM"),
        (vae, DDPM(TimeMLP(3, 8), (3,), betas, levels=4), ValueError, "diffusion must have levels=None.* got 4"),
    ):
        with pytest.raises(error, match=match):
            LatentDiffusion(auto, diffusion)
    x = torch.zeros(5, 1, 4, 4)
    with pytest.raises(ValueError, match=r"shape of a code, \(3,\), got \(2,\)"):
        LatentDiffusion(vae, DDPM(TimeMLP(2, 8), (2,), betas)).fit_scale(x)
    model = LatentDiffusion(vae, fitting)
    for call in (lambda: model.loss(x), lambda: model.elbo(x), lambda: model.sample(2)):
        with pytest.raises(RuntimeError, match="call fit_scale"):
            call()
    with pytest.raises(ValueError, match="shape"):
        model.fit_scale(x[0])
    with pytest.raises(ValueError, match="x must hold only 0 and 1"):
        model.fit_scale(x + 0.5)


# All three


def all_of_them():
    teacher = DDPM(TimeMLP(2, 8), (2,), linear_schedule(20, 0.01, 0.4), predicts="v")
    vae, diffusion = VAE((2,), 1, hidden=8, likelihood="gaussian"), DDPM(TimeMLP(1, 8), (1,), linear_schedule(5))
    latent = LatentDiffusion(vae, diffusion)
    latent.fit_scale(torch.randn(100, 2, generator=generator()))
    return {
        "distillation": ProgressiveDistillation(teacher, 2),
        "consistency": ConsistencyModel(TimeMLP(2, 8), (2,), metric="pseudo-huber"),
        "latent": latent,
    }


@pytest.mark.parametrize("name", ["distillation", "consistency", "latent"])
def test_they_learn_and_sample_and_have_no_density(name):
    model = all_of_them()[name]
    assert isinstance(model, Learner) and isinstance(model, Sampler) and not isinstance(model, Density)
    assert isinstance(model, Bound) == (name == "latent")
    report = check(model, event_shape=(2,), support="real", repeats=200)
    assert report.passed, report
    assert {o.name for o in report.outcomes} >= {"sample is repeatable", "loss is in its unit"}


@pytest.mark.parametrize("classes", [None, 10])
def test_two_steps_on_images(classes):
    torch.manual_seed(0)
    x, label = torch.randint(256, (16, 1, 28, 28)) / 255, torch.randint(10, (16,))
    labelled = {} if classes is None else {"label": label[:3]}

    def unet():
        return awake(UNet(1, 8, (1, 2), patch=2, classes=classes))

    teacher = DDPM(unet(), (1, 28, 28), linear_schedule(), predicts="v", levels=256)
    consistency = {"event_shape": (1, 28, 28), "levels": 256, "sigma_min": 0.02}
    vae = VAE((1, 28, 28), 4, hidden=16)
    latent = LatentDiffusion(vae, DDPM(TimeMLP(4, 16, classes=classes), (4,), linear_schedule()))
    latent.fit_scale(x.round())
    models = {
        "distillation": (ProgressiveDistillation(teacher, 2), x),
        "consistency training": (ConsistencyModel(unet(), **consistency), x),
        "consistency distillation": (ConsistencyModel(unet(), teacher=teacher, **consistency), x),
        "latent diffusion": (latent, x.round()),
    }
    for name, (model, images) in models.items():
        before = {key: value.clone() for key, value in model.state_dict().items()}
        fit(model, images if classes is None else (images, label), Settings(steps=2, batch_size=4), progress=False)
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        moving = {"distillation": "student.", "latent diffusion": "diffusion."}.get(name, ("network.", "target."))
        assert changed and all(key.startswith(moving) for key in changed)
        drawn = model.sample(3, generator(), **labelled)
        assert drawn.shape == (3, 1, 28, 28) and drawn.min() >= 0 and drawn.max() <= 1


def test_in_the_plane_one_step_is_better_than_the_teachers():
    """A student of 8 steps, then of 1, and a consistency model, in a small part of the time that good ones take."""
    torch.manual_seed(0)
    points, reference = density("moons").sample((10_000,)), density("moons").sample((2000,))
    teacher = DDPM(TimeMLP(2, 64), (2,), linear_schedule(50, 2e-3, 0.4), predicts="v")
    fit(teacher, points, Settings(steps=500, batch_size=256, learning_rate=4e-3, ema_decay=0.99), progress=False)
    distances = {
        steps: energy_distance(teacher.sample(2000, generator(), steps=steps, sampler=ddim), reference)
        for steps in (1, 8)
    }
    model = ProgressiveDistillation(teacher, 4)
    settings = Settings(steps=120, batch_size=256, learning_rate=2e-3, ema_decay=0.98)
    while True:
        fit(model, points, settings, progress=False)
        if model.steps == 1:
            break
        model = model.halved()
    student = energy_distance(model.sample(2000, generator()), reference)
    assert student == pytest.approx(distances[8], abs=0.02)
    assert student < distances[1] / 10
    sigmas = ((1 - teacher.alpha_bars) / teacher.alpha_bars).sqrt()
    model = ConsistencyModel(TimeMLP(2, 64), (2,), teacher, sigma_min=sigmas[1].item(), sigma_max=20.0, sigma_data=1.4)
    fit(model, points, Settings(steps=300, batch_size=256, learning_rate=2e-3, ema_decay=0.98), progress=False)
    assert energy_distance(model.sample(2000, generator()), reference) < distances[1] / 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none")
def test_cuda_agrees_with_the_cpu():
    for model in all_of_them().values():
        model = model.double()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        x = torch.randn(4, 2, dtype=F64)
        expected = model.student.score(x, 3.0) if hasattr(model, "student") else None
        model.cuda()
        assert model.loss(x.cuda()).value.is_cuda
        assert model.sample(2, torch.Generator("cuda").manual_seed(0)).is_cuda
        if expected is not None:
            torch.testing.assert_close(model.student.score(x.cuda(), 3.0).cpu(), expected)
