"""The Inception Score against its definition in NumPy, its bounds, and peers."""

import importlib
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from companion.evaluation import Features, inception_score

F64 = torch.float64


def draws(n, classes, seed=0, dtype=F64):
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_definition(logits, splits):
    """The scores of the splits: exp of the mean KL of each image's classes to those of all of the split."""
    p, scores = scipy.special.softmax(logits.double().numpy(), axis=1), []
    for i in range(splits):
        part = p[i * len(p) // splits : (i + 1) * len(p) // splits]
        scores.append(np.exp(np.mean([scipy.stats.entropy(row, part.mean(0)) for row in part])))
    return scores


@pytest.mark.parametrize(("n", "classes", "splits"), [(100, 10, 10), (103, 7, 10), (9, 4, 2), (50, 3, 1), (5, 3, 5)])
def test_agrees_with_its_definition(n, classes, splits):
    logits = draws(n, classes)
    result, scores = inception_score(logits, splits), by_definition(logits, splits)
    assert result.value == pytest.approx(np.mean(scores), rel=1e-13)
    assert result.deviation == pytest.approx(np.std(scores), rel=1e-10, abs=1e-14)
    if splits == 1:
        assert math.isnan(result.sample_deviation)
    else:
        assert result.sample_deviation == pytest.approx(np.std(scores, ddof=1), rel=1e-10, abs=1e-14)
    assert (result.classes, result.splits) == (classes, splits)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_reaches_both_bounds(dtype):
    classes, n = 8, 80
    for same in (draws(1, classes, dtype=dtype), torch.zeros(1, classes, dtype=dtype)):
        value = inception_score(same.expand(n, classes)).value
        assert value == pytest.approx(1, abs=1e-6 if dtype == torch.float32 else 1e-14)
    # Sure of a class, each as often as the others: in every split, and not if the images are sorted.
    sure = 1e4 * torch.eye(classes, dtype=dtype).repeat(n // classes, 1)
    for splits in (1, 10):
        result = inception_score(sure, splits)
        assert (result.value, result.deviation) == (pytest.approx(classes, rel=1e-14), pytest.approx(0, abs=1e-12))
    assert inception_score(sure[sure.argmax(1).argsort()], 8).value == pytest.approx(1, abs=1e-14)
    # Sure of the class, with classes seen as often as (1/2, 1/4, 1/4): the entropy of these.
    some = 1e4 * torch.eye(3, dtype=dtype)[[0, 0, 1, 2]].repeat(5, 1)
    assert inception_score(some, 1).value == pytest.approx(2**1.5, rel=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_stays_within_its_bounds(seed):
    for scale in (1e-6, 1.0, 100.0):
        result = inception_score(scale * draws(60, 5, seed), 3)
        assert 1 - 1e-14 <= result.value <= 5 + 1e-14


def test_sorted_images_have_the_score_of_less():
    logits = 10 * draws(300, 6)
    order = logits.argmax(1).argsort()
    assert inception_score(logits[order]).value < 0.5 * inception_score(logits).value


def test_log_probabilities_and_shifted_logits_will_do():
    logits = draws(60, 5)
    value = inception_score(logits).value
    for other in (logits.log_softmax(1), logits + draws(60, 1, 1), logits.numpy()):
        assert inception_score(other).value == pytest.approx(value, rel=1e-12)
    for base in (2.0, math.e / 2):
        assert inception_score(logits * math.log(base)).value != pytest.approx(value, rel=1e-3)


def test_precision():
    logits = draws(4000, 300, dtype=torch.float32)
    assert inception_score(logits).value == pytest.approx(inception_score(logits.double()).value, rel=1e-6)
    half = logits.bfloat16()
    assert inception_score(half).value == inception_score(half.float()).value
    # A logit too low for its probability to be a number of any precision.
    assert inception_score(torch.tensor([[0.0, -1e30], [-1e30, 0.0]]), 1).value == pytest.approx(2, rel=1e-14)


def test_chunks_change_nothing(monkeypatch):
    logits = draws(103, 7)
    value = inception_score(logits, 2).value
    module = importlib.import_module("companion.evaluation.inception_score")
    for chunk in (1, 14, 7 * 51):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        assert inception_score(logits, 2).value == pytest.approx(value, rel=1e-13)


def test_agrees_with_torchmetrics(torchvision, monkeypatch):
    """Which shuffles, and reports the deviation with ddof 1."""
    peer = pytest.importorskip("torchmetrics.image.inception")
    logits = draws(500, 12)
    theirs = peer.InceptionScore(feature=torch.nn.Identity(), splits=10)
    theirs.update(logits)
    monkeypatch.setattr(torch, "randperm", lambda n: torch.arange(n))
    value, deviation = theirs.compute()
    ours = inception_score(logits, 10)
    assert ours.value == pytest.approx(value.item(), rel=1e-10)
    assert ours.sample_deviation == pytest.approx(deviation.item(), rel=1e-8)


@pytest.mark.parametrize("n", [500, 507])
def test_agrees_with_torch_fidelity(torchvision, n):
    """With the deviation of ddof 0, and splits of unequal size."""
    peer = pytest.importorskip("torch_fidelity.metric_isc")
    logits = draws(n, 12)
    theirs, ours = peer.isc_features_to_metric(logits, 10, shuffle=False), inception_score(logits, 10)
    assert ours.value == pytest.approx(theirs[peer.KEY_METRIC_ISC_MEAN], rel=1e-12)
    assert ours.deviation == pytest.approx(theirs[peer.KEY_METRIC_ISC_STD], rel=1e-9)


def test_prints_its_conditions():
    logits = Features(draws(20, 4), "a classifier", "samples, seed 3")
    found = inception_score(logits, 5)
    assert str(found) == (
        f"Inception Score {found.value:.4g} ± {found.deviation:.2g} of at most 4\n"
        "(5 splits, deviation with ddof 0; 20 of samples, seed 3; a classifier)"
    )
    found = inception_score(logits, 1)  # which has no deviation
    assert str(found) == (
        f"Inception Score {found.value:.4g} of at most 4\n(one split; 20 of samples, seed 3; a classifier)"
    )


@pytest.mark.parametrize(
    ("logits", "splits", "error", "words"),
    [
        (draws(9, 3), 10, ValueError, "at most the 9 images, got 10"),
        (draws(9, 3), 0, ValueError, "splits must be a positive integer"),
        (draws(9, 3)[0], 1, ValueError, "logits: values must have shape"),
        (draws(9, 3) * torch.nan, 1, ValueError, "logits: values must be finite"),
        (draws(9, 3).long(), 1, TypeError, "logits: values must have a floating"),
        ([[0.0, 1.0]], 1, TypeError, "logits: values must be a torch"),
    ],
)
def test_refuses(logits, splits, error, words):
    with pytest.raises(error, match=words):
        inception_score(logits, splits)
