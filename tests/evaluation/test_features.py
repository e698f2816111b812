"""Features: what computed them, of what, and refusals."""

import numpy as np
import pytest
import torch
from torch import nn

from companion import zoo
from companion.data import load
from companion.evaluation import Conditions, Features, extract, frechet_distance, precision_recall
from companion.evaluation.features import as_features, as_pair

IMAGES = load("mnist6k", "test").intensities()[:30]


def test_a_batch_at_a_time_is_all_at_once_in_evaluation_mode():
    network = zoo.pretrained("digit_classifier").train()  # it has dropout
    found = extract(network, IMAGES, net="classifier", of="digits", batch_size=7)
    assert network.training and (found.net, found.of, len(found)) == ("classifier", "digits", 30)
    with torch.no_grad():
        torch.testing.assert_close(found.values, network.eval()(IMAGES), atol=1e-5, rtol=1e-5)
    extract(network, IMAGES)
    assert not network.training and not found.values.requires_grad


def test_the_mode_comes_back_after_an_error():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    network = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        extract(network, IMAGES)
    assert network.training


def test_the_classifier_tells_digits_it_has_not_seen():
    test = load("mnist6k", "test")
    for x, least in ((test.intensities(), 0.98), (test.binarized(seed=0), 0.97)):
        right = extract(zoo.pretrained("digit_classifier"), x).values.argmax(1) == test.labels
        assert right.double().mean() > least


def test_a_function_an_array_and_a_tensor_will_do():
    values = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(extract(lambda x: x.flatten(1)[:, :5], IMAGES).values, IMAGES.flatten(1)[:, :5])
    assert torch.equal(as_features(values.numpy(), "x").values, values)
    assert frechet_distance(values.numpy(), values[:10]).value == frechet_distance(Features(values), values[:10]).value


def test_results_say_what_they_are_of():
    fake = Features(torch.randn(9, 2), net="my net", of="samples")
    real = Features(torch.randn(8, 2), net="my net", of="data, test")
    assert str(precision_recall(fake, real)).endswith("; 9 of samples against 8 of data, test; my net)")
    assert Conditions.taken(fake, real, seed=4) == Conditions(9, "samples", "my net", 8, "data, test", 4)
    assert str(Conditions.taken(fake, seed=4)) == "9 of samples; my net, seed 4"


def test_conditions_stand_below_the_number_in_lines_that_fit_on_a_page():
    x = Features(torch.eye(9), "a net with a long name, 9 features", "samples of a model, drawn with seed 0")
    number, *lines = str(precision_recall(x, x)).split("\n")
    assert number.startswith("precision ") and len(lines) == 2 and max(map(len, lines)) <= 84
    assert " ".join(line.strip() for line in lines) == f"(k = 3, 9 dimensions; {Conditions.taken(x, x)})"


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        (torch.zeros(3), ValueError, r"values must have shape \(n, dim\), got \(3,\)"),
        (torch.zeros(3, 1, 28, 28), ValueError, r"got \(3, 1, 28, 28\); flatten images first"),
        (torch.zeros(3, 0), ValueError, r"got \(3, 0\)"),
        (torch.zeros(1, 3), ValueError, "values must hold two rows or more, got 1"),
        (torch.zeros(3, 3, dtype=torch.int64), TypeError, "values must have a floating dtype"),
        (torch.tensor([[0.0], [torch.nan]]), ValueError, "values must be finite, got 1 NaN"),
        ([[0.0], [1.0]], TypeError, "values must be a torch.Tensor, got list"),
    ],
)
def test_what_is_no_set_of_features_is_refused(values, error, match):
    with pytest.raises(error, match=match):
        Features(values)
    with pytest.raises(error, match="reference: values must"):
        as_pair(torch.zeros(2, 2), values)


def test_two_nets_or_two_dimensions_cannot_be_compared():
    x, y = Features(torch.zeros(2, 2), net="one"), Features(torch.zeros(2, 2), net="another")
    with pytest.raises(ValueError, match="must be features of one net, got 'one' and 'another'"):
        as_pair(x, y)
    with pytest.raises(ValueError, match="must have the same dimension, got 2 and 3"):
        as_pair(torch.zeros(2, 2), torch.zeros(2, 3))


def test_images_that_are_none_are_refused():
    for images, error in (([0.0], TypeError), (IMAGES * torch.nan, ValueError), (IMAGES.long(), TypeError)):
        with pytest.raises(error, match="images must"):
            extract(zoo.pretrained("digit_classifier"), images)
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
        extract(zoo.pretrained("digit_classifier"), IMAGES, batch_size=0)


def test_double_precision_stays_what_it_is():
    values = np.random.default_rng(0).normal(size=(5, 2))
    assert as_features(values, "x").values.dtype == torch.float64
