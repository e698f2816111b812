"""The weights in the package are those of models that have learned what their cards say."""

import pytest
import torch

from companion import zoo
from companion.data import load, quantise, waves
from companion.experiments import result


@pytest.mark.parametrize(("name", "row"), [("nade", "NADE"), ("pixelrnn", "Diagonal BiLSTM")])
def test_digits_are_as_probable_as_the_result_says(name, row):
    model, x = zoo.pretrained(name), load("mnist6k", "test").binarized(seed=0)[:250]
    [expected] = [r for r in result("autoregressive_digits")["rows"] if r["model"] == row]
    with torch.no_grad():
        log_prob = model.log_prob(x)
    assert not model.training
    # A quarter of the digits: five standard errors.
    assert abs(-log_prob.mean() - expected["negative_log_prob"]) < 5 * log_prob.std() / 250**0.5
    assert zoo.card(name)["data"] == "mnist6k"


def test_sounds_are_as_probable_as_the_result_says():
    fresh = waves(40, 1024, torch.Generator().manual_seed(5))
    with torch.no_grad():
        log_prob = zoo.pretrained("wavenet").log_prob(quantise(fresh.amplitudes), fresh.labels) / 1024
    expected = {row["model"]: row["negative_log_prob"] for row in result("wavenet_waves")["rows"]}
    assert abs(-log_prob.mean() - expected["WaveNet"]) < 5 * log_prob.std() / 40**0.5
    assert expected["floor"] < expected["WaveNet"] < expected["Markov chain"]


def test_unknown_names_list_what_there_is():
    for question in (zoo.pretrained, zoo.card):
        with pytest.raises(ValueError, match="there is no trained model 'nothing'; there are nade, pixelrnn, wavenet"):
            question("nothing")
