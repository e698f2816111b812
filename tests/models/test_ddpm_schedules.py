"""What diffusions are made of, against the papers' formulas: schedules, predictions, and the decoder of levels."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from test_ddpm import KINDS, cells, generator, same

from companion.conformance import schedule_consistent
from companion.models.ddpm import (
    alpha_bars,
    cosine_schedule,
    discretised_gaussian,
    from_eps,
    linear_schedule,
    to_eps,
)

# Schedules


def test_the_linear_schedule_is_that_of_the_paper():
    betas, t = linear_schedule().numpy(), np.arange(1, 1001)
    assert betas.dtype == np.float64
    np.testing.assert_allclose(betas, 1e-4 + (t - 1) / 999 * (0.02 - 1e-4), rtol=1e-12)
    bars = alpha_bars(torch.from_numpy(betas)).numpy()
    for s in (1, 2, 500, 1000):
        assert bars[s] == pytest.approx(math.prod(1 - betas[:s]), rel=1e-12)
    assert bars[0] == 1 and bars[1000] == pytest.approx(4.036e-5, rel=1e-3)
    np.testing.assert_allclose(linear_schedule(3, 0.1, 0.4).numpy(), [0.1, 0.25, 0.4], rtol=1e-14)
    np.testing.assert_allclose(linear_schedule(2, 0.3, 0.3).numpy(), 0.3, rtol=1e-14)


@pytest.mark.parametrize(("steps", "offset"), [(1000, 0.008), (10, 0.008), (50, 0.1)])
def test_the_cosine_schedule_is_that_of_the_paper(steps, offset):
    betas = cosine_schedule(steps, offset).numpy()
    t = np.arange(steps + 1) / steps
    bars = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2 / np.cos(offset / (1 + offset) * np.pi / 2) ** 2
    got = alpha_bars(torch.from_numpy(betas)).numpy()
    np.testing.assert_allclose(got[:-1], bars[:-1], rtol=1e-9, atol=1e-12)  # all but the last, which is 0 there
    assert betas[-1] == 0.999 and got[-1] == pytest.approx(bars[-2] * 1e-3, rel=1e-9)
    assert betas[:-1].max() < 0.999 or steps == 1000
    if steps == 1000:
        # The middle, by hand: (0.5 + s)/(1 + s) of a right angle.
        angle = math.pi / 2 * 0.508 / 1.008
        assert got[500] == pytest.approx((math.cos(angle) / math.cos(math.pi / 2 * 0.008 / 1.008)) ** 2, rel=1e-10)
    assert cosine_schedule(steps, offset, largest=0.3).max() == 0.3


@pytest.mark.parametrize("betas", [linear_schedule(), cosine_schedule(), linear_schedule(7, 0.3, 0.9)])
def test_signal_falls_from_one(betas):
    bars = alpha_bars(betas)
    assert bars.dtype == torch.float64 and len(bars) == len(betas) + 1 and bars[0] == 1 and bars[-1] > 0
    assert (bars.diff() < 0).all()
    assert schedule_consistent(betas, bars)
    same(alpha_bars(betas.float()), bars, 1e-4)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: linear_schedule(0), ValueError, "steps must be a positive integer, got 0"),
        (lambda: linear_schedule(5, 0.0), ValueError, "first and last must be above 0 and below 1"),
        (lambda: linear_schedule(5, 0.2, 0.1), ValueError, "first ≤ last, got 0.2 and 0.1"),
        (lambda: linear_schedule(5, 0.2, 1.0), ValueError, "below 1"),
        (lambda: linear_schedule(5, math.nan, 0.5), ValueError, "first and last"),
        (lambda: cosine_schedule(1.5), ValueError, "steps must be a positive integer"),
        (lambda: cosine_schedule(5, -0.1), ValueError, "offset must be at least 0"),
        (lambda: cosine_schedule(5, math.inf), ValueError, "offset"),
        (lambda: cosine_schedule(5, largest=1.0), ValueError, r"largest within \(0, 1\)"),
        (lambda: cosine_schedule(5, largest=0.0), ValueError, "largest"),
        (lambda: alpha_bars([0.1]), TypeError, "betas must be a floating tensor, got list"),
        (lambda: alpha_bars(torch.ones(3).long()), TypeError, "got torch.int64"),
        (lambda: alpha_bars(torch.ones(3, 1) / 2), ValueError, r"shape \(steps,\), got \(3, 1\)"),
        (lambda: alpha_bars(torch.ones(0)), ValueError, r"got \(0,\)"),
        (lambda: alpha_bars(torch.tensor([0.1, 1.0])), ValueError, "above 0 and below 1, got 1"),
        (lambda: alpha_bars(torch.tensor([0.0, 0.5])), ValueError, "got 0"),
        (lambda: alpha_bars(torch.tensor([0.1, math.nan])), ValueError, "got nan"),
    ],
)
def test_schedules_that_mean_nothing_are_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()


# Predictions


@pytest.mark.parametrize("bar", [0.97, 0.5, 0.02])
def test_each_prediction_is_its_definition(bar):
    x0, eps = torch.randn(2, 5, 3, generator=generator(), dtype=torch.float64)
    a, s = math.sqrt(bar), math.sqrt(1 - bar)
    x = a * x0 + s * eps
    definitions = {"eps": eps, "x0": x0, "v": a * eps - s * x0, "score": -(x - a * x0) / (1 - bar)}
    for kind, value in definitions.items():
        same(from_eps(eps, kind, x, a, s), value, 1e-12)
        same(to_eps(value, kind, x, a, s), eps, 1e-12)
        each = torch.full((5, 1), a, dtype=torch.float64), torch.full((5, 1), s, dtype=torch.float64)
        same(to_eps(value, kind, x, *each), eps, 1e-12)


def test_predictions_come_back():
    value, x = torch.randn(2, 4, 1, 2, 2, generator=generator(), dtype=torch.float64)
    for kind in KINDS:
        same(from_eps(to_eps(value, kind, x, 0.6, 0.8), kind, x, 0.6, 0.8), value, 1e-12)
    for function in (to_eps, from_eps):
        with pytest.raises(ValueError, match="a prediction must be one of eps, x0, v, score, got 'noise'"):
            function(value, "noise", x, 0.6, 0.8)


# The decoder


@pytest.mark.parametrize(("levels", "mean", "std"), [(256, 0.13, 0.3), (256, -0.99, 0.01), (2, 0.4, 1.5), (17, 3.0, 2)])
def test_the_decoder_is_a_difference_of_normal_cdfs(levels, mean, std):
    centres, edges = cells(levels)
    # From whichever side keeps digits.
    mass = np.where(
        edges[:-1] < mean,
        np.diff(stats.norm.cdf(edges, mean, std)),
        -np.diff(stats.norm.sf(edges, mean, std)),
    )
    x = torch.from_numpy(centres)[:, None]
    log_p = discretised_gaussian(x, torch.full_like(x, mean), math.log(std), levels)
    far = mass < 1e-290
    np.testing.assert_allclose(log_p.exp().numpy()[~far], mass[~far], rtol=1e-10)
    assert log_p.isfinite().all() and (log_p[far] < -600).all()
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_deep_tails_keep_their_digits():
    """By 60 digits: means far beyond the cell, narrow and wide."""
    mpmath.mp.dps = 60
    for std, mean, k in itertools.product((0.005, 0.05, 1.0), (-1.0, 0.3, 1.0), (0, 1, 100, 254, 255)):
        _, edges = cells(256)
        low, high = ((mpmath.mpf(float(edge)) - mean) / std for edge in edges[k : k + 2])
        below = mpmath.mpf(0) if k == 0 else mpmath.erfc(-low / mpmath.sqrt(2)) / 2
        above = mpmath.mpf(1) if k == 255 else mpmath.erfc(-high / mpmath.sqrt(2)) / 2
        exact = float(mpmath.log(above - below)) if above - below > mpmath.mpf(10) ** -45 else None
        if exact is None:  # then by the upper tail
            tail = [mpmath.erfc(z / mpmath.sqrt(2)) / 2 if mpmath.isfinite(z) else mpmath.mpf(0) for z in (low, high)]
            exact = float(mpmath.log(max(tail[0] - tail[1], above - below)))
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-3)):
            x = torch.tensor([[2 * k / 255 - 1]], dtype=dtype)
            got = discretised_gaussian(x, torch.full_like(x, mean), math.log(std), 256).item()
            assert got == pytest.approx(exact, rel=tolerance, abs=tolerance), (std, mean, k, dtype)


def test_gradients_of_the_decoder():
    x = torch.tensor([[-1.0, 1.0, -1 + 2 / 255, 0.2 - 1 / 255]], dtype=torch.float64)
    for means in ([[-0.99, 1.02, -0.98, 0.2]], [[-1.5, 1.5, 1.0, -1.0]], [[1.0, -1.0, -1.1, 0.9]]):
        mean = torch.tensor(means, dtype=torch.float64).requires_grad_()
        log_std = torch.tensor([[-2.0, -3.0, -2.5, -1.0]], dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda m, s: discretised_gaussian(x, m, s, 256), (mean, log_std))
    single = mean.detach().float().requires_grad_()
    discretised_gaussian(x.float(), single, -5.0, 256).sum().backward()  # σ of a linear schedule's first step
    assert single.grad.isfinite().all() and single.grad.any()


def test_pixels_are_independent():
    x = torch.from_numpy(cells(4)[0])[torch.tensor([[[0, 3], [1, 2]], [[2, 2], [0, 1]]])]
    mean, std = 0.2 * torch.randn(2, 2, 2, generator=generator(), dtype=torch.float64), 0.4
    got = discretised_gaussian(x, mean, math.log(std), 4)
    each = discretised_gaussian(x.reshape(-1, 1), mean.reshape(-1, 1), math.log(std), 4)
    same(got, each.reshape(2, 4).sum(1), 1e-12)
