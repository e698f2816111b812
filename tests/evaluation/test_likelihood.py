"""Bits per dimension: against distributions whose cost is known, and histograms counted by hand."""

import math

import numpy as np
import pytest
import torch

from companion.data import load
from companion.evaluation.likelihood import as_bits_per_dim, histogram_bits_per_dim
from companion.models.autoregressive import PixelCNN


def test_uniform_over_256_levels_costs_exactly_8_bits():
    assert as_bits_per_dim(784 * math.log(256), (1, 28, 28)) == 8
    assert as_bits_per_dim(math.log(2), (1,)) == 1
    nats = torch.tensor([3.0, 6.0], dtype=torch.float64) * math.log(2)
    torch.testing.assert_close(as_bits_per_dim(nats, (3, 2)), torch.tensor([0.5, 1.0], dtype=torch.float64))


def test_pixelcnn_by_hand():
    torch.manual_seed(0)
    model = PixelCNN((1, 3, 4), output="categorical", levels=256, hidden=4, blocks=1).double()
    level = torch.randint(256, (5, 1, 3, 4))
    x = level.double() / 255
    bits = np.zeros(5)
    with torch.no_grad():
        probabilities = model(x).softmax(1).numpy()
        got = as_bits_per_dim(-model.log_prob(x), model.event_shape)
    for n in range(5):
        for i in range(3):
            for j in range(4):
                bits[n] -= math.log2(probabilities[n, level[n, 0, i, j], i, j])
    np.testing.assert_allclose(got, bits / 12, rtol=1e-12)


def test_one_noisy_draw_may_be_above_zero_but_not_the_average():
    nats = torch.tensor([3.0, -1.0], requires_grad=True)
    assert as_bits_per_dim(nats, (2,)).tolist() == pytest.approx([3 / (2 * math.log(2)), -1 / (2 * math.log(2))])
    assert as_bits_per_dim(nats, (2,)).requires_grad
    assert as_bits_per_dim(0.0, (2,)) == 0 and as_bits_per_dim(math.inf, (2,)) == math.inf


@pytest.mark.parametrize(
    ("nats", "event_shape", "error", "message"),
    [
        (-543.2, (1, 28, 28), ValueError, "nats must be -log P of discrete pixels, not below zero, got -543.2"),
        (torch.tensor([1.0, -3.0]), (2,), ValueError, "got -1 on average"),
        (math.nan, (2,), ValueError, "got nan"),
        (torch.tensor([1.0, math.nan]), (2,), ValueError, "got nan"),
        (torch.tensor([1, 2]), (2,), TypeError, "floating-point tensor, got a tensor of torch.int64"),
        ("543", (2,), TypeError, "got str"),
        (1.0, (), ValueError, "event_shape must be the shape of one example"),
        (1.0, 784, ValueError, "event_shape must be the shape of one example"),
        (1.0, (28, 0), ValueError, "each size in event_shape must be a positive integer, got 0"),
        (1.0, (28.0,), ValueError, "each size in event_shape"),
    ],
)
def test_wrong_input(nats, event_shape, error, message):
    with pytest.raises(error, match=message):
        as_bits_per_dim(nats, event_shape)


def test_histograms_by_hand():
    train = torch.tensor([[[0, 2]], [[0, 1]], [[1, 1]]], dtype=torch.uint8)
    test = torch.tensor([[[0, 1]], [[2, 0]]], dtype=torch.uint8)
    got = histogram_bits_per_dim(train, test, levels=3, pseudo_count=0.25)
    expected = [(2.25 / 3.75, 2.25 / 3.75), (0.25 / 3.75, 0.25 / 3.75)]
    assert got.tolist() == pytest.approx([-(math.log2(a) + math.log2(b)) / 2 for a, b in expected], rel=1e-6)


def test_histograms_of_digits():
    train, test = load("mnist6k").pixels, load("mnist6k", "test").pixels
    bits = histogram_bits_per_dim(train, test)
    assert bits.shape == (1000,) and bits.dtype == torch.float32
    assert abs(bits.mean().item() - 1.7256) < 1e-4
    # One pixel, by NumPy.
    counts = np.bincount(train[:, 0, 14, 14], minlength=256) + 0.5
    alone = histogram_bits_per_dim(train[:, :, 14:15, 14:15], test[:, :, 14:15, 14:15])
    np.testing.assert_allclose(alone, -np.log2((counts / counts.sum())[test[:, 0, 14, 14].numpy()]), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": torch.rand(4, 1, 2, 2)}, TypeError, "train must be a tensor of torch.uint8, got a tensor of"),
        ({"test": [1]}, TypeError, "test must be a tensor of torch.uint8, got list"),
        ({"test": torch.zeros(4, 1, 2, 3, dtype=torch.uint8)}, ValueError, r"one shape, got \(4, 1, 2, 2\) and"),
        ({"train": torch.zeros(0, 1, 2, 2, dtype=torch.uint8)}, ValueError, "one shape"),
        (
            {"levels": 4, "test": torch.full((1, 1, 2, 2), 4).byte()},
            ValueError,
            "test must hold only the levels 0 to 3",
        ),
        ({"levels": 0}, ValueError, "levels must be a positive integer"),
        ({"pseudo_count": 0}, ValueError, "pseudo_count must be positive and finite, got 0"),
        ({"pseudo_count": math.inf}, ValueError, "pseudo_count"),
    ],
)
def test_wrong_images(change, error, message):
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(error, match=message):
        histogram_bits_per_dim(**({"train": images, "test": images} | change))
