import json

import pytest
import torch

from companion import experiments
from companion.experiments import EXPERIMENTS, run, vae_beta, vae_disentanglement

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
