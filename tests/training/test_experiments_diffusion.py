"""Small runs of the experiments on diffusion."""

import numpy as np
import pytest
import torch

from companion.experiments import ddpm, result, run
from companion.experiments.ddpm import ddpm_digits
from companion.experiments.faster_sampling import SAMPLERS, few_steps_plane, sampler_digits
from companion.models import VDM
from companion.nets.unet import UNet
from companion.presets import splits
from companion.training import load_model


@pytest.fixture
def small(monkeypatch):
    """U-Nets of 4 features, and MNIST by mnist6k's digits."""

    def network(channels_in, channels=4, multipliers=(1, 1), **options):
        return UNet(channels_in, 4, (1, 1), **options | {"patch": 2})

    monkeypatch.setattr(ddpm, "UNet", network)
    monkeypatch.setattr(ddpm, "splits", lambda data: splits("mnist6k"))


def test_small_run_on_mnist_keeps_the_rounded_weights_that_it_measures(small, tmp_path):
    rows = ddpm.ddpm_mnist(steps=3, images=4, folder=str(tmp_path))
    times = [row["time"] for row in rows]
    assert times[:4] == [-1, 0, 1, 2] and times[-1] == 1000
    bits = {row["time"]: row["bits"] for row in rows}
    assert bits[0] < 1e-3 < bits[1] and bits[-1] > bits[1]
    model = ddpm.ddpm()
    card = load_model(model, tmp_path / "ddpm" / "model.safetensors")
    assert card["data"] == "mnist" and card["steps"] == "3"
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(weights, weights.bfloat16().float())
    # Gone on with, it is the same again.
    assert ddpm.ddpm_mnist(steps=3, images=4, folder=str(tmp_path)) == rows


def test_small_run_of_the_choices_on_digits(small):
    rows = ddpm_digits(models=("linear, simple", "cosine, hybrid", "VDM"), steps=2, images=3)
    assert [(row["training"], row["variance"]) for row in rows] == [
        ("linear, simple", "posterior"),
        ("linear, simple", "forward"),
        ("cosine, hybrid", "learned"),
        ("VDM", "posterior"),
    ]
    assert all(1 < row["bits"] < 100 and row["error"] > 0 for row in rows)
    assert isinstance(ddpm.DIGITS["VDM"](), VDM)


def test_both_variances_are_those_of_one_network(small, monkeypatch):
    """The forward variance is the larger one: of a bad network it gives the better bound."""
    posterior, forward = ddpm_digits(models=("linear, simple",), steps=2, images=4)
    assert forward["bits"] < posterior["bits"]


def test_small_run_of_the_samplers_counts_the_calls(monkeypatch):
    calls = []

    class Zero(torch.nn.Module):
        classes = 10

        def forward(self, x, t, label):
            calls.append(len(x))
            return x

    from companion import zoo
    from companion.models.ddpm import DDPM, linear_schedule

    monkeypatch.setattr(zoo, "pretrained", lambda name: DDPM(Zero(), (1, 28, 28), linear_schedule(), levels=256))
    first, *rows = sampler_digits(budgets=(1, 5, 6), images=7)
    assert first["sampler"] == "training digits" and first["distance"] < 3
    assert sum(row["calls"] for row in rows) == len(calls) and set(calls) == {7}
    assert [row["calls"] for row in rows if row["sampler"] == "Heun"] == [1, 5, 5]
    assert all(row["distance"] > first["distance"] for row in rows) and len(rows) == 3 * len(SAMPLERS)


def test_small_run_of_few_steps():
    rows = few_steps_plane(densities=("moons",), seeds=(0, 1), steps=8, draws=300)
    mine = {seed: [row for row in rows if row["seed"] == seed] for seed in (0, 1)}
    assert len(mine[0]) == len(mine[1]) and mine[0][0]["method"] == "data" and abs(mine[0][0]["distance"]) < 0.03
    assert [row["calls"] for row in mine[0] if row["method"] == "progressive distillation"] == [16, 8, 4, 2, 1]
    assert [row["calls"] for row in mine[0] if row["method"] == "consistency training"] == [1, 2]
    # A single step is the same by all of them: to the guess of x_0, without noise.
    single = [row["distance"] for row in mine[0] if row["calls"] == 1][:4]
    assert single == pytest.approx([single[0]] * 4, rel=1e-4) and single[0] > 0.1
    assert few_steps_plane(densities=("moons",), seeds=(1,), steps=8, draws=300) == mine[1]


def test_the_results_say_what_the_chapters_claim(tmp_path):
    bits = {(row["training"], row["variance"]): row["bits"] for row in result("ddpm_digits")["rows"]}
    assert bits["linear, simple", "posterior"] > bits["linear, hybrid", "learned"]
    terms = {row["time"]: row["bits"] for row in result("ddpm_mnist")["rows"]}
    assert 1.7 < terms[-1] < 2.1 and 0.5 < terms[1] and terms[2] > 10 * terms[30] > 100 * terms[700]
    rows = result("few_steps_plane")["rows"]

    def median(method, calls):
        return np.median([row["distance"] for row in rows if (row["method"], row["calls"]) == (method, calls)])

    assert median("DDIM", 1) > 10 * median("progressive distillation", 1)
    with pytest.raises(ValueError, match="takes no folder"):
        run("few_steps_plane", tmp_path, folder="x")
