"""The probability-flow ODE on Gaussian data, where its map and its density are known."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from companion.models.ddpm import DDPM, alpha_bars, cosine_schedule, linear_schedule
from companion.nets.unet import UNet
from companion.samplers import flow_log_prob, probability_flow

MEAN = torch.tensor([0.3, -0.7], dtype=torch.float64)
COV = torch.tensor([[1.3, 0.5], [0.5, 0.6]], dtype=torch.float64)
SCHEDULES = {"linear": linear_schedule(1000), "cosine": cosine_schedule(200)}


def power(matrix, exponent):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.T


class Gaussian:
    """E[ε|x_t] and the schedule's ends, with log ᾱ/(1 - ᾱ) itself for the time."""

    def __init__(self, name):
        bars = alpha_bars(SCHEDULES[name])
        # A cosine's last ᾱ is next to nothing: start from one that is small enough.
        self.low, self.high = max(bars[-1].item(), 1e-5), bars[1].item()
        self.range = tuple(math.log(a / (1 - a)) for a in (self.low, self.high))

    def cov(self, bar):
        return bar * COV + (1 - bar) * torch.eye(2, dtype=torch.float64)

    def eps(self, x, t):
        bar = 1 / (1 + math.exp(-t))
        return math.sqrt(1 - bar) * torch.linalg.solve(self.cov(bar), (x - math.sqrt(bar) * MEAN).T).T

    def map(self):
        """x at the clean end = A (x at the noisy end) + b."""
        a = power(self.cov(self.high), 0.5) @ power(self.cov(self.low), -0.5)
        return a, math.sqrt(self.high) * MEAN - a @ MEAN * math.sqrt(self.low)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_ode_leads_where_the_closed_form_says_and_back(name):
    exact, generator = Gaussian(name), torch.Generator().manual_seed(0)
    x = torch.randn(7, 2, dtype=torch.float64, generator=generator)
    a, b = exact.map()
    end, calls = probability_flow(exact.eps, x, exact.range, lambda v: v, tolerance=1e-9)
    torch.testing.assert_close(end, x @ a.T + b, atol=1e-7, rtol=0)
    assert calls > 50
    back, _ = probability_flow(exact.eps, end, exact.range, lambda v: v, reverse=False, tolerance=1e-9)
    torch.testing.assert_close(back, x, atol=1e-7, rtol=0)
    _, fewer = probability_flow(exact.eps, x, exact.range, lambda v: v, tolerance=1e-3)
    assert fewer < calls / 3


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_log_density_is_that_of_the_mapped_noise(name):
    exact, generator = Gaussian(name), torch.Generator().manual_seed(1)
    a, b = exact.map()
    x = torch.randn(9, 2, dtype=torch.float64, generator=generator) @ a.T + b
    found, _ = flow_log_prob(exact.eps, x, exact.range, lambda v: v, tolerance=1e-9)
    expected = MultivariateNormal(b, a @ a.T).log_prob(x)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    # About that of the data with a little noise; the start is off by √ᾱ_T times the mean, 0.005 for the linear one.
    near = MultivariateNormal(math.sqrt(exact.high) * MEAN, exact.cov(exact.high)).log_prob(x)
    torch.testing.assert_close(found, near, atol=5e-2, rtol=0)


def test_random_signs_give_it_on_average():
    exact, generator = Gaussian("linear"), torch.Generator().manual_seed(2)
    a, b = exact.map()
    x = torch.randn(5, 2, dtype=torch.float64, generator=generator) @ a.T + b
    truth, _ = flow_log_prob(exact.eps, x, exact.range, lambda v: v, tolerance=1e-6)
    draws = torch.stack(
        [
            flow_log_prob(exact.eps, x, exact.range, lambda v: v, probes=2, generator=generator, tolerance=1e-6)[0]
            for _ in range(60)
        ]
    )
    error = draws.std(0) / 60**0.5
    assert ((draws.mean(0) - truth).abs() < 5 * error).all() and (error > 1e-3).all()


def test_a_models_own_density_integrates_to_one():
    """By quadrature, of a network with random weights: it is a density whatever the network says."""

    class Wavy(torch.nn.Module):
        def forward(self, x, t):
            return 0.4 * torch.sin(0.8 * x.flip(1)) + x * (0.9 + 0.1 * torch.cos(t / 300))[:, None]

    model = DDPM(Wavy(), (2,), linear_schedule(100, 1e-3, 0.2))
    axis = torch.linspace(-9, 9, 121, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    log_p, _ = flow_log_prob(model.double().predictor(), x, model.log_snr_range, model.time, tolerance=1e-5)
    assert log_p.exp().sum().item() * (axis[1] - axis[0]).item() ** 2 == pytest.approx(1, abs=1e-4)


def test_images_and_labels():
    torch.manual_seed(0)
    model = DDPM(UNet(1, 8, (1, 1), classes=3, patch=2), (1, 8, 8), linear_schedule(20, 1e-2, 0.5), levels=256)
    torch.nn.init.normal_(model.network.last.weight, 0, 0.02)
    eps = model.predictor(torch.tensor([0, 2]))
    x, calls = probability_flow(eps, model.noise(2), model.log_snr_range, model.time, tolerance=1e-2)
    assert x.shape == (2, 1, 8, 8) and x.dtype == torch.float32 and calls > 0
    log_p, _ = flow_log_prob(eps, x, model.log_snr_range, model.time, probes=1, tolerance=1e-2)
    assert log_p.shape == (2,) and torch.isfinite(log_p).all()


def test_bad_input():
    exact, x = Gaussian("linear"), torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="log_snr_range must be two finite numbers, the lower first"):
        probability_flow(exact.eps, x, exact.range[::-1], lambda v: v)
    with pytest.raises(ValueError, match="tolerance must be a number between 0 and 1"):
        probability_flow(exact.eps, x, exact.range, lambda v: v, tolerance=0)
    with pytest.raises(ValueError, match="probes must be a positive integer"):
        flow_log_prob(exact.eps, x, exact.range, lambda v: v, probes=0)
