"""The sounds against Fourier sums and SciPy's distributions, the μ-law against its definition value by value."""

import math

import numpy as np
import pytest
import torch
from scipy import signal, stats
from scipy.optimize import least_squares

from companion.data import SAMPLE_RATE, WAVES, mu_law_decode, mu_law_encode, quantise, waves
from companion.data.waves import NOISE, REACH, mu_law_position

ALL_LEVELS = range(2, 257)


def sounds(n=64, length=1024, seed=0):
    return waves(n, length, torch.Generator().manual_seed(seed))


def compressed(x, levels):
    mu = levels - 1
    return math.copysign(math.log(1 + mu * abs(x)) / math.log(1 + mu), x)


# μ-law


@pytest.mark.parametrize("levels", [2, 3, 4, 16, 255, 256])
def test_codes_are_those_of_the_definition(levels):
    x = torch.cat([torch.rand(500, dtype=torch.float64) * 2 - 1, torch.tensor([-1.0, 1.0, 1e-4, -1e-4]).double()])
    grid = [-1 + 2 * k / (levels - 1) for k in range(levels)]
    expected = [min(range(levels), key=lambda k: abs(compressed(v, levels) - grid[k])) for v in x.tolist()]
    codes = mu_law_encode(x, levels)
    assert codes.dtype == torch.int64 and codes.tolist() == expected
    decoded = mu_law_decode(torch.arange(levels), levels, torch.float64).tolist()
    assert [compressed(v, levels) for v in decoded] == pytest.approx(grid, abs=1e-12)
    position = mu_law_position(x, levels)
    assert position.tolist() == pytest.approx([(compressed(v, levels) + 1) / 2 * (levels - 1) for v in x.tolist()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_level_keeps_its_code_and_its_value(dtype):
    for levels in ALL_LEVELS:
        codes = torch.arange(levels)
        x = mu_law_decode(codes, levels, dtype)
        assert x.dtype == dtype and torch.equal(mu_law_encode(x, levels), codes)
        assert torch.equal(quantise(x, levels), x)
        assert x[0] == -1 and x[-1] == 1 and (x.diff() > 0).all()
        torch.testing.assert_close(x, -x.flip(0), atol=1e-6 if dtype == torch.float32 else 1e-14, rtol=0)


def test_256_levels_are_those_of_the_paper():
    x = mu_law_decode(torch.tensor([127, 128, 129, 192, 255]), dtype=torch.float64)
    expected = [math.copysign((256 ** abs(y) - 1) / 255, y) for y in (-1 / 255, 1 / 255, 3 / 255, 129 / 255, 1)]
    assert x.tolist() == pytest.approx(expected, rel=1e-12)
    assert mu_law_encode(torch.tensor([-1.0, -0.0, 0.0, 1.0])).tolist() == [0, 128, 128, 255]


def test_a_rounded_amplitude_is_near():
    x = torch.rand(3, 1000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = quantise(x)
    assert y.shape == x.shape and y.dtype == x.dtype and torch.equal(quantise(y), y)
    # Half a step on the scale of f is at most so much where f is flattest, at ±1.
    step = math.log(256) * 256 / 255 / 255
    assert 0 < (y - x).abs().max() < step
    assert (y - x)[x.abs() < 0.01].abs().max() < step / 50


@pytest.mark.parametrize("function", [mu_law_encode, quantise, mu_law_position])
def test_bad_amplitudes_are_refused(function):
    for bad, error, match in (
        (torch.tensor([0.5, 1.0001]), ValueError, r"\[-1, 1\], got 1.0001"),
        (torch.tensor([-1.5]), ValueError, "got -1.5"),
        (torch.tensor([0.0, math.nan]), ValueError, "got nan"),
        (torch.tensor([1]), TypeError, "int64"),
        ([0.5], TypeError, "list"),
    ):
        with pytest.raises(error, match=match):
            function(bad)


def test_bad_codes_and_levels_are_refused():
    for bad, error, match in (
        (torch.tensor([0, 4]), ValueError, "0..3, got 4"),
        (torch.tensor([-1, 0]), ValueError, "got -1"),
        (torch.tensor([1.0]), TypeError, "float32"),
        (torch.tensor([True]), TypeError, "bool"),
        ([1], TypeError, "list"),
    ):
        with pytest.raises(error, match=match):
            mu_law_decode(bad, 4)
    for levels in (1, 0, 257, 16.0, True):
        for call in (
            lambda: mu_law_encode(torch.zeros(1), levels),  # noqa: B023
            lambda: mu_law_decode(torch.zeros(1).long(), levels),  # noqa: B023
            lambda: sounds(1).floor(levels),  # noqa: B023
        ):
            with pytest.raises(ValueError, match="levels"):
                call()


# Sounds


def test_shapes_types_and_bounds():
    a = sounds(200, 300)
    assert a.amplitudes.shape == a.clean.shape == (200, 300) and a.labels.shape == (200,)
    assert a.amplitudes.dtype == a.clean.dtype == torch.float32 and a.labels.dtype == torch.int64
    assert a.labels.unique().tolist() == list(range(len(WAVES)))
    # What the definition promises: the loudest sound and the longest noise together.
    assert 0.9 + REACH * NOISE < 1 and a.amplitudes.abs().max() < 0.9 + REACH * NOISE
    assert a.clean.abs().max() <= 0.9
    b, c = sounds(200, 300), sounds(200, 300, seed=1)
    assert torch.equal(a.amplitudes, b.amplitudes) and not torch.equal(a.amplitudes, c.amplitudes)
    assert waves(2).amplitudes.shape == (2, 1024)


def test_each_timbre_is_its_wave_smoothed():
    """From the signals alone: pitch and phase by a search, then SciPy's own waves, smoothed by Fejér's kernel."""
    a = sounds(24, 1024)
    shapes = {
        "sine": lambda p: np.sin(2 * np.pi * p),
        "triangle": lambda p: signal.sawtooth(2 * np.pi * (p + 0.25), 0.5),
        "sawtooth": lambda p: signal.sawtooth(2 * np.pi * (p + 0.5)),
        "square": lambda p: signal.square(2 * np.pi * p),
    }
    time = np.arange(1024) / SAMPLE_RATE
    cycle = np.arange(4096) / 4096

    def fitted(x, parameters, shape):
        pitch, phase, loudness = parameters
        count = math.ceil(SAMPLE_RATE / 2 / pitch) - 1
        spectrum = np.fft.rfft(shape(cycle + 1 / 8192))  # the jumps lie between two points
        h = np.arange(len(spectrum))
        smooth = np.fft.irfft(spectrum * np.clip(1 - h / (count + 1), 0, None))
        return loudness * np.interp((pitch * time + phase) % 1, cycle + 1 / 8192, smooth, period=1) - x

    pitches, loudnesses = [], []
    for x, label in zip(a.clean.double().numpy(), a.labels.tolist(), strict=True):
        padded = np.abs(np.fft.rfft(x * np.hanning(1024), 1 << 16))
        start = padded.argmax() * SAMPLE_RATE / (1 << 16)
        phase = (np.angle(np.sum(x * np.hanning(1024) * np.exp(-2j * np.pi * start * time))) + np.pi / 2) / (2 * np.pi)
        fit = least_squares(
            lambda p, x=x, label=label: fitted(x, p, shapes[WAVES[label]]),
            [start, phase, np.abs(x).max()],
            x_scale=[1, 0.01, 0.1],
        )
        assert np.abs(fit.fun).max() < 2e-3
        pitches.append(fit.x[0])
        loudnesses.append(fit.x[2])
    assert 100 <= min(pitches) < 130 and 300 < max(pitches) <= 400
    assert 0.3 <= min(loudnesses) < 0.4 and 0.8 < max(loudnesses) <= 0.9


def test_pitch_phase_and_loudness_have_their_laws():
    a = sounds(3000, 400, seed=2)
    sine = a.clean[a.labels == 0].double().numpy()
    # A sine obeys x[t+1] + x[t-1] = 2 cos(ω) x[t].
    omega = np.arccos(((sine[:, 2:] + sine[:, :-2]) * sine[:, 1:-1]).sum(1) / (2 * (sine[:, 1:-1] ** 2).sum(1)))
    pitch = omega * SAMPLE_RATE / (2 * np.pi)
    assert stats.kstest(np.log(pitch / 100) / np.log(4), "uniform").pvalue > 1e-4
    time = np.arange(400)
    size, phase = [], []
    for x, w in zip(sine, omega, strict=True):
        s, c = np.linalg.lstsq(np.stack([np.sin(w * time), np.cos(w * time)], 1), x, rcond=None)[0]
        size.append(math.hypot(s, c)), phase.append(math.atan2(c, s) % (2 * math.pi))
    harmonics = np.ceil(4000 / pitch) - 1
    loudness = np.array(size) * (harmonics + 1) / harmonics
    assert stats.kstest((loudness - 0.3) / 0.6, "uniform").pvalue > 1e-4
    assert stats.kstest(np.array(phase) / (2 * math.pi), "uniform").pvalue > 1e-4
    counts = np.bincount(a.labels.numpy())
    assert stats.chisquare(counts).pvalue > 1e-4


def test_the_noise_is_a_truncated_normal():
    a = sounds(100, 1000)
    noise = ((a.amplitudes.double() - a.clean) / NOISE).numpy()
    assert stats.kstest(noise.ravel(), stats.truncnorm(-REACH, REACH).cdf).pvalue > 1e-4
    assert np.abs(noise).max() <= REACH + 1e-4
    # Nor does one sample of it know of the next, or of the signal.
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 5 / math.sqrt(noise.size)
    assert abs(np.corrcoef(noise.ravel(), a.clean.numpy().ravel())[0, 1]) < 5 / math.sqrt(noise.size)


# The floor


def oracle(clean, levels):
    """P(code) for each code, by SciPy; the edges between the codes from the definition."""
    mu = levels - 1
    y = 2 * (np.arange(levels - 1) + 0.5) / mu - 1
    edges = np.sign(y) * ((1 + mu) ** np.abs(y) - 1) / mu
    cdf = stats.truncnorm(-REACH, REACH, loc=clean, scale=NOISE).cdf(edges)
    return np.diff(np.concatenate([[0], cdf, [1]]))


@pytest.mark.parametrize("levels", [2, 7, 256])
def test_the_floor_is_the_oracles_surprise(levels):
    a = sounds(6, 40)
    codes = mu_law_encode(a.amplitudes, levels)
    expected = [
        -np.mean([math.log(oracle(c, levels)[k]) for c, k in zip(clean, code, strict=True)])
        for clean, code in zip(a.clean.double().tolist(), codes.tolist(), strict=True)
    ]
    assert a.floor(levels).shape == (6,) and a.floor(levels).tolist() == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("levels", [16, 256])
def test_the_floor_is_on_average_the_entropy(levels):
    a = sounds(300, 64, seed=3)
    entropy = np.mean(
        [[stats.entropy(oracle(c, levels)) for c in row] for row in a.clean[:, ::16].double().tolist()], 1
    )
    thin = type(a)(a.amplitudes[:, ::16], a.clean[:, ::16], a.labels)
    difference = thin.floor(levels).numpy() - entropy
    assert abs(difference.mean()) < 5 * difference.std() / math.sqrt(len(difference))
    assert 0.1 < entropy.mean() < 2


def test_no_code_of_the_sounds_is_impossible_to_the_oracle():
    for levels in (2, 3, 64, 256):
        floor = sounds(500, 500, seed=4).floor(levels)
        assert floor.isfinite().all() and (floor >= 0).all()


@pytest.mark.parametrize("name", ["n", "length"])
def test_bad_numbers_are_refused(name):
    for bad in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=name):
            waves(**{"n": 2, name: bad})
