import json

import pytest
import torch

from companion import experiments
from companion.experiments import EXPERIMENTS, run, vae_beta, vae_disentanglement
from companion.experiments.gan import gan_collapse, gan_modes
from companion.experiments.hvae import hvae_collapse, hvae_digits, latent_dimension, manifold

KEYS = {"name", "config", "versions", "hardware", "seconds", "rows"}


def test_small_run_of_the_rate_distortion_sweep(tmp_path):
    path = run("vae_beta", tmp_path, steps=2, betas=(4,), seeds=(0, 1))
    result = json.loads(path.read_text())
    assert path.name == "vae_beta.json" and set(result) == KEYS
    assert result["config"] == {"steps": 2, "betas": [4], "seeds": [0, 1], "device": "cpu"}
    assert result["versions"]["torch"] == torch.__version__ and result["seconds"] > 0
    assert [(row["beta"], row["seed"]) for row in result["rows"]] == [(4, 0), (4, 1)]
    for row in result["rows"]:
        assert row["negative_elbo"] == pytest.approx(row["rate"] + row["distortion"])
        assert 0 < row["rate"] < 100 < row["distortion"] < 784
    # A row alone is that row again.
    assert vae_beta(steps=2, betas=(4,), seeds=(1,)) == result["rows"][1:]


def test_small_run_of_the_disentanglement_sweep():
    first, second = vae_disentanglement(steps=2, betas=(1, 16), seeds=(3,))
    assert (first["beta"], second["beta"], first["seed"]) == (1, 16, 3)
    assert 0 <= first["gap"] <= 1 and first["active"] in range(7)
    assert vae_disentanglement(steps=2, betas=(16,), seeds=(3,)) == [second]


def test_unknown_experiment_lists_the_known():
    with pytest.raises(ValueError, match="there is no experiment 'vae'; there are vae_beta"):
        run("vae")


def test_missing_result_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="`companion run vae_beta` writes it"):
        experiments.result("vae_beta")


def test_results_in_the_package_have_the_schema():
    for path in experiments.RESULTS.glob("*.json"):
        result = experiments.result(path.stem)
        assert set(result) == KEYS and result["name"] == path.stem in EXPERIMENTS
        assert result["rows"] and all(set(row) == set(result["rows"][0]) for row in result["rows"])


def test_small_run_of_the_hierarchies_on_digits():
    rows = hvae_digits(steps=2, seeds=(1,), importance_samples=3)
    assert [row["model"] for row in rows] == ["VAE", "one level", "ladder", "bottom-up"]
    counts = [row["parameters"] for row in rows]
    assert max(counts) / min(counts) < 1.005
    assert rows[0]["gain"] == rows[0]["gain_error"] == 0
    for row in rows[1:]:
        assert row["gain"] == pytest.approx(rows[0]["negative_bound"] - row["negative_bound"], abs=1e-3)
        assert 0 < row["gain_error"] < 5


def test_small_run_of_the_collapse_of_upper_levels():
    rows = hvae_collapse(steps=2, cures=("none", "free bits"), inferences=("ladder",), seeds=(2,))
    assert [(row["inference"], row["cure"], row["seed"]) for row in rows] == [
        ("ladder", "none", 2),
        ("ladder", "free bits", 2),
    ]
    assert all(row["level_3"] >= 0 and row["negative_elbo"] > 100 for row in rows)
    assert hvae_collapse(steps=2, cures=("free bits",), inferences=("ladder",), seeds=(2,)) == rows[1:]


def test_small_run_of_the_number_of_latents():
    few, many = latent_dimension(steps=200, latent_dims=(1, 3), seeds=(0,))
    assert few["negative_elbo"] > many["negative_elbo"] and few["active"] == 1 and many["noise"] > 0.1


def test_manifold_has_three_dimensions_and_noise():
    x = manifold(4000, seed=1)
    assert torch.equal(x, manifold(4000, seed=1)) and not torch.equal(x, manifold(4000, seed=2))
    # Around a point the surface is flat: three directions, and noise of variance 0.01 in the seventeen others.
    near = x[(x - x[0]).square().sum(1).topk(25, largest=False).indices]
    variances = torch.linalg.svdvals(near - near.mean(0)).square() / 24
    assert (variances[:3] > 0.05).all() and variances[4:].mean() < 0.03


def test_small_run_of_the_modes_of_games():
    rows = gan_modes(steps=3, variants=("hinge", "+ feature matching"), seeds=(0, 5))
    assert [(row["variant"], row["seed"]) for row in rows] == [
        ("hinge", 0),
        ("hinge", 5),
        ("+ feature matching", 0),
        ("+ feature matching", 5),
    ]
    assert all(row["modes"] in range(26) and 0 <= row["high_quality"] <= 1 for row in rows)
    assert gan_modes(steps=3, variants=("hinge",), seeds=(5,)) == rows[1:2]
    rows = gan_collapse(steps=3, variants=("minimax",), seeds=(1,))
    assert len(rows) == 1 and rows[0]["modes"] in range(9)
