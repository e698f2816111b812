"""The weights in the package are those of models that have learned what their cards say."""

import pytest
import torch

from companion import zoo
from companion.data import load, quantise, waves
from companion.evaluation import as_bits_per_dim
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


def test_grey_digits_take_as_many_bits_as_the_result_says():
    model, x = zoo.pretrained("glow"), load("mnist6k", "test").intensities()[:250]
    with torch.no_grad():
        bits = as_bits_per_dim(-model.elbo(x), x.shape[1:])
    [expected] = [row for row in result("flows_mnist")["rows"] if row["model"] == "Glow"]
    # Other digits, though of the same kind: both are draws from MNIST's test set.
    assert abs(bits.mean() - expected["bits_per_dim"]) < 5 * bits.std() / 250**0.5
    assert zoo.card("glow")["data"] == "mnist" and float(zoo.card("glow")["alpha"]) == 1e-6


def test_the_score_of_digits_is_as_good_as_the_result_says():
    model, x = zoo.pretrained("score_model"), load("mnist6k", "test").intensities()[:250]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    for row in result("score_mnist")["rows"][::3]:
        sigma = row["sigma"]
        with torch.no_grad():
            error = (sigma * model.score(x + sigma * noise, sigma) + noise).square().flatten(1).sum(1) / 2
        assert abs(error.mean() - row["loss"]) < 6 * error.std() / 250**0.5 + 0.02 * row["loss"]
        assert row["loss"] < row["zero"]


def test_the_energy_of_digits_tells_them_from_what_is_none():
    model, x = zoo.pretrained("ebm"), load("mnist6k", "test").intensities()[:250]
    x = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    shuffled = x.flatten(1)[:, torch.randperm(784, generator=torch.Generator().manual_seed(0))].reshape(x.shape)
    with torch.no_grad():
        digits, others = model.energy(x), model.energy(shuffled)
    assert (digits < others).float().mean() > 0.99


def test_unknown_names_list_what_there_is():
    for question in (zoo.pretrained, zoo.card):
        with pytest.raises(ValueError, match=f"there is no trained model 'nothing'; there are {', '.join(zoo.ZOO)}$"):
            question("nothing")


def test_the_diffusion_of_digits_is_as_good_as_the_result_says():
    model = zoo.pretrained("ddpm")
    test = load("mnist6k", "test")
    x, label = test.intensities()[200:400], test.labels[200:400]
    assert (zoo.FOLDER / "ddpm.safetensors").stat().st_size < 5e6
    for row in result("ddpm_mnist")["rows"]:
        if row["time"] in (1, 10, 100, 500):
            bits = as_bits_per_dim(model.term(x, row["time"], label, torch.Generator().manual_seed(3)), x.shape[1:])
            assert abs(bits.mean() - row["bits"]) < 6 * (bits.std() / 200**0.5 + row["error"])
    card = zoo.card("ddpm")
    assert set(card) >= {"data", "steps", "batch_size", "seed", "hardware", "seconds", "bits_per_dim"}


def test_the_diffusion_draws_the_digits_it_is_asked_for():
    """Nearest test digits, in the energy of a blurred difference, are mostly of the same class."""
    model, test = zoo.pretrained("ddpm"), load("mnist6k", "test")
    label = torch.arange(10).repeat(4)
    samples = model.sample(40, torch.Generator().manual_seed(0), label=label, guidance=1.0, steps=15)
    blur = torch.nn.AvgPool2d(3, 1, 1)
    distance = torch.cdist(blur(samples).flatten(1), blur(test.intensities()).flatten(1))
    nearest = test.labels[distance.topk(5, largest=False).indices].mode(1).values
    assert (nearest == label).float().mean() > 0.8
