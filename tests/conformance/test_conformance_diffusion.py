"""Diffusions: right toys pass, broken twins fail, and the report names the fault."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from companion.conformance import denoiser_matches_score, sampler_without_final_noise, schedule_consistent

BETAS = torch.linspace(0.05, 0.4, 8, dtype=torch.float64)
BARS = torch.cat([torch.ones(1).double(), (1 - BETAS).cumprod(0)])


def fails(outcome, words):
    assert outcome.passed is False and words in repr(outcome), outcome


def test_schedules():
    assert schedule_consistent(BETAS, BARS) and schedule_consistent(BETAS, BARS[1:])
    assert schedule_consistent(BETAS.float(), BARS.float())
    for words, bars in {
        "the product of β in place of 1 - β": BETAS.cumprod(0),
        "√ᾱ in place of ᾱ": BARS.sqrt(),
        "1 - ᾱ in place of ᾱ": 1 - BARS[1:],
        "α in place of the product": 1 - BETAS,
        "1 minus the sum of β": 1 - BETAS.cumsum(0),
        "off by one": BARS[:-1],
        "ᾱ_3 is 0.7": torch.where(BARS == BARS[3], 0.7, BARS),
    }.items():
        fails(schedule_consistent(BETAS, bars), words)
    fails(schedule_consistent(BETAS, BARS[2:]), "T β need T or T + 1 ᾱ, got shapes (8,) and (7,)")
    fails(schedule_consistent(1 + BETAS, BARS), "β_1 is 1.05, not above 0 and below 1")
    fails(schedule_consistent(BETAS, BARS * math.nan), "ᾱ_0 is nan")


BAR = 0.3
COVARIANCE = BAR * torch.tensor([[0.9, 0.5], [0.5, 0.6]]).double() + (1 - BAR) * torch.eye(2).double()
DENSITY = MultivariateNormal(torch.tensor([0.4, -0.2]).double(), COVARIANCE)
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def eps(x):
    return math.sqrt(1 - BAR) * torch.linalg.solve(COVARIANCE, (x - DENSITY.mean).T).T


def test_denoisers():
    assert denoiser_matches_score(eps, DENSITY.log_prob, X, BAR)
    a, s = math.sqrt(BAR), math.sqrt(1 - BAR)
    x0 = lambda x: (x - s * eps(x)) / a  # noqa: E731
    for words, field in {
        "that is the score": lambda x: -eps(x) / s,
        "that is x̂_0": x0,
        "that is v": lambda x: a * eps(x) - s * x0(x),
        "the sign is inverted": lambda x: -eps(x),
        "√(1 - ᾱ) is missing": lambda x: eps(x) / s,
        "1 - ᾱ in place of its root": lambda x: s * eps(x),
        "√ᾱ in place of √(1 - ᾱ)": lambda x: a / s * eps(x),
        "at x[0] = [": lambda x: eps(x) + 0.1,
        "the denoiser has shape (6,)": lambda x: eps(x)[:, 0],
    }.items():
        fails(denoiser_matches_score(field, DENSITY.log_prob, X, BAR), words)
    flat = denoiser_matches_score(eps, lambda x: 0 * x.sum(1), X, BAR)
    assert flat.passed is None and "of any sign and scale would fit" in repr(flat)


def ancestral(final_noise=0.0, scale=1.0):
    """DDPM's own, by the posterior's mean and variance, with noise in the last step too if asked for."""

    def sample(eps, x):
        for t in range(8, 0, -1):
            high, low, beta = BARS[t], BARS[t - 1], BETAS[t - 1]
            x = (x - beta / (1 - high).sqrt() * eps(x, t)) / (1 - beta).sqrt()
            deviation = (beta * (1 - low) / (1 - high)).sqrt() if t > 1 else final_noise
            x = x + deviation * torch.randn_like(x)
        return scale * x

    return sample


def test_samplers():
    bar = lambda t: BARS[t].item()  # noqa: E731
    assert sampler_without_final_noise(ancestral(), bar, X)
    assert sampler_without_final_noise(ancestral(), bar, X.float())
    noisy = sampler_without_final_noise(ancestral(0.22), bar, torch.zeros(500, 2).double())
    fails(noisy, "noise of a standard deviation about 0.22 is left, as of a last step that adds some")
    fails(sampler_without_final_noise(ancestral(scale=0.9), bar, X), "all of them are off by -0.03")
    fails(sampler_without_final_noise(lambda eps, x: x[:2], bar, X), "the samples have shape (2, 2), x has (6, 2)")


def test_times_and_schedules_that_cannot_be():
    with pytest.raises(ValueError, match=r"alpha_bar must be from 0 to 1, got 1\.2"):
        denoiser_matches_score(eps, DENSITY.log_prob, X, 1.2)
    with pytest.raises(ValueError, match=r"alpha_bar\(3\) must be from 0 to 1, got -0\.5"):
        sampler_without_final_noise(lambda denoise, x: denoise(x, 3.0), lambda t: -0.5, X)
    fails(
        sampler_without_final_noise(lambda denoise, x: x - denoise(x, 0.0), lambda t: 1.0, X),
        "the denoiser is asked at t = 0, where ᾱ is 1",
    )
