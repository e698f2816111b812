"""Bits per dimension: against distributions whose cost is known, and histograms counted by hand."""

import math

import numpy as np
import pytest
import torch

from companion import zoo
from companion.data import load
from companion.evaluation.likelihood import as_bits_per_dim, bits_per_dim, histogram_bits_per_dim
from companion.models import (
    DDPM,
    GAN,
    HVAE,
    MADE,
    RBM,
    VAE,
    Autoencoder,
    BernoulliMixture,
    CausalTransformer,
    IndependentPixels,
    LatentDiffusion,
    PixelCNN,
    RealNVP,
)
from companion.models.ddpm import linear_schedule
from companion.nets.time_mlp import TimeMLP


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


def test_a_model_gives_the_best_answer_that_it_has():
    x = load("mnist6k", "test").binarized(seed=0)[:250]
    pixels = IndependentPixels((1, 28, 28)).fit(x)
    found = bits_per_dim(pixels, x, of="digits")
    nats = -(x * pixels.logits.sigmoid().log() + (1 - x) * (-pixels.logits).sigmoid().log()).flatten(1).sum(1).double()
    assert found.nats == pytest.approx(nats.mean().item(), rel=1e-6)
    assert found.standard_error == pytest.approx(nats.std().item() / 250**0.5, rel=1e-5)
    assert found.bits_per_dim == pytest.approx(found.nats / 784 / math.log(2), rel=1e-6)
    assert (found.kind, found.estimator, found.levels, found.n) == ("exact", "log_prob", 2, 250)
    assert str(found).startswith(f"{found.nats:.2f} ± ") and "250 of digits, 2 levels, seed 0" in str(found)


def test_a_bound_is_said_to_be_one_and_is_nearer_with_importance_weights():
    torch.manual_seed(0)
    model, x = VAE((1, 2, 2), 2, hidden=8), torch.bernoulli(torch.full((30, 1, 2, 2), 0.5))
    elbo, weighted = bits_per_dim(model, x), bits_per_dim(model, x, importance_samples=300, seed=4)
    assert (elbo.kind, elbo.estimator) == ("bound", "ELBO") and str(elbo).startswith("at most ")
    assert (weighted.kind, weighted.estimator) == ("bound", "importance-weighted, K = 300")
    torch.manual_seed(4)
    assert weighted.nats == pytest.approx(-model.importance_bound(x, 300).mean().item(), rel=1e-6)
    # Both estimate a cost above the exact one, which is an integral over the two latents.
    axis = torch.linspace(-7, 7, 301)
    z = torch.cartesian_prod(axis, axis)
    log_weight = -z.square().sum(1).double() / 2 - math.log(2 * math.pi) + 2 * math.log(14 / 300)
    with torch.no_grad():
        log_p = torch.stack([model.decode(z).log_prob(each).double() for each in x])
        weights = model.log_weights(x, 300).double().softmax(0) * 300
    exact = -(log_p + log_weight).logsumexp(1).mean().item()
    error = (weights.var(0) / 300).mean().item() ** 0.5 / 30**0.5
    assert abs(weighted.nats - exact) < 5 * error < elbo.nats - exact


def test_the_global_generator_goes_on_as_if_nothing_had_been_drawn():
    model, x = VAE((1, 2, 2), 2, hidden=8), torch.ones(3, 1, 2, 2)
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    first = bits_per_dim(model, x, seed=1)
    assert torch.equal(torch.rand(2), expected) and bits_per_dim(model, x, seed=1) == first
    assert bits_per_dim(model, x, seed=2) != first


def test_labels_go_along_with_their_images():
    torch.manual_seed(0)
    model = MADE((1, 2, 2), hidden=(8,), classes=3)
    torch.nn.init.normal_(model.label_bias)
    x, label = torch.bernoulli(torch.full((7, 1, 2, 2), 0.5)), torch.arange(7) % 3
    found = bits_per_dim(model, x, label, batch_size=2)
    assert found.nats == pytest.approx(-model.log_prob(x, label).mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (
            lambda: GAN((1, 4, 4), hidden=4),
            r"GAN has no likelihood .* only loss, sample; samples alone .*KernelDensity",
        ),
        (lambda: RBM((1, 2, 2), 3), r"RBM has .* only loss, sample, energy; .*companion\.samplers\.ais"),
        (lambda: Autoencoder((1, 2, 2), 2, hidden=3), r"Autoencoder has .* only loss; there is no density"),
        (lambda: RealNVP((4,), 2, (8,)), r"RealNVP gives a density of continuous values.*Dequantised"),
        (lambda: VAE((1, 2, 2), 2, hidden=3, likelihood="gaussian"), r"VAE gives a density of continuous values"),
        (lambda: DDPM(TimeMLP(4), (4,), linear_schedule(10)), r"DDPM gives a density of continuous values"),
        (lambda: "a string", r"str has no likelihood .* only nothing that we know of"),
    ],
)
def test_what_has_no_bits_is_refused_with_the_reason(model, match):
    with pytest.raises(TypeError, match=match):
        bits_per_dim(model(), torch.zeros(2, 1, 2, 2))


def test_a_score_is_pointed_to_its_equation():
    model = zoo.pretrained("score_model")
    with pytest.raises(TypeError, match=r"ScoreModel has .*; a score is .*companion\.samplers\.flow_log_prob"):
        bits_per_dim(model, torch.zeros(2, 1, 28, 28))


def test_draws_are_asked_only_of_what_has_such_a_bound():
    x = torch.zeros(2, 1, 28, 28)
    with pytest.raises(ValueError, match=r"importance_samples must be None: IndependentPixels has no importance_bound"):
        bits_per_dim(IndependentPixels((1, 28, 28)), x, importance_samples=5)
    for bad in (0, 2.0, True):
        with pytest.raises(ValueError, match="importance_samples must be a positive integer"):
            bits_per_dim(VAE(), x, importance_samples=bad)


def test_levels_are_those_that_the_probabilities_add_up_over():
    """The probability of all images of a model adds up to one over so many levels for each pixel."""
    shape = (1, 1, 2)
    models = (
        IndependentPixels(shape),
        BernoulliMixture(2, shape),
        MADE(shape, hidden=(4,)),
        PixelCNN(shape, hidden=4, blocks=1),
        PixelCNN(shape, output="categorical", levels=5, hidden=4, blocks=1),
        CausalTransformer(shape, width=4, layers=1, heads=1, output="categorical", levels=3),
    )
    for model in models:
        axis = torch.arange(model.levels) / (model.levels - 1)
        with torch.no_grad():
            total = model.log_prob(torch.cartesian_prod(axis, axis).reshape(-1, *shape)).exp().sum()
        assert total.item() == pytest.approx(1, abs=1e-5), model
    latent = DDPM(TimeMLP(2), (2,), linear_schedule(10))
    assert VAE(shape, 2, hidden=3).levels == LatentDiffusion(VAE(shape, 2, hidden=3), latent).levels == 2
    assert (
        HVAE(shape, (2, 1), hidden=(4, 4)).levels == 2 and VAE(shape, 2, hidden=3, likelihood="gaussian").levels is None
    )
