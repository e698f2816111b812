import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from companion import experiments
from companion.data import density, load, mu_law_encode, waves
from companion.experiments import EXPERIMENTS, flows, run, vae_beta, vae_disentanglement
from companion.experiments.autoregressive import (
    DIGITS,
    MNIST,
    _nade_by_cumulative_sum,
    autoregressive_digits,
    autoregressive_speed,
    wavenet_waves,
)
from companion.experiments.ebm import PLANE, ebm_digits, ebm_plane, rbm_digits, score_model
from companion.experiments.flows import flows_digits, flows_plane
from companion.experiments.gan import gan_collapse, gan_modes
from companion.experiments.hvae import hvae_collapse, hvae_digits, latent_dimension, manifold
from companion.models import NADE, Dequantised, IndependentPixels
from companion.models.ebm import largest_distance, number_of_levels
from companion.presets import splits
from companion.training import fit, load_model

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
    with pytest.raises(ValueError, match="autoregressive_speed takes no steps; it takes repeats, device"):
        run("autoregressive_speed", steps=3)


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


def test_small_run_of_the_autoregressive_models_on_digits(tmp_path):
    floor, row = autoregressive_digits(models=("MADE",), steps=2, seed=1, folder=str(tmp_path))
    train, _, test = splits("mnist6k")
    x, pixels = test.binarized(seed=0), IndependentPixels((1, 28, 28)).fit(train.binarized(seed=0))
    model = DIGITS["MADE"][0]()
    load_model(model, tmp_path / "MADE" / "model.safetensors")
    with torch.no_grad():
        exact, independent = model.log_prob(x), pixels.log_prob(x)
    assert floor["negative_log_prob"] == pytest.approx(-independent.mean().item(), rel=1e-5)
    assert row["negative_log_prob"] == pytest.approx(-exact.mean().item(), rel=1e-5)
    gain = exact - independent
    assert row["gain"] == pytest.approx(gain.mean().item(), abs=1e-3)
    assert row["gain_error"] == pytest.approx(gain.std().item() / 1000**0.5, rel=1e-3)
    assert (row["steps"], row["best_step"], row["batch_size"]) == (2, 2, 100)
    # Again, from the checkpoint that is there: nothing is trained any more.
    assert autoregressive_digits(models=("MADE",), steps=2, seed=1, folder=str(tmp_path)) == [floor, row]


def test_models_of_the_autoregressive_experiments_are_of_digits():
    for make, settings in (*DIGITS.values(), *MNIST.values()):
        assert make().event_shape == (1, 28, 28) and settings.patience and settings.ema_decay


def test_small_run_of_wavenet():
    rows = {row["model"]: row for row in wavenet_waves(steps=1)}
    values = [rows[name]["negative_log_prob"] for name in ("single levels", "Markov chain", "floor")]
    assert values == sorted(values, reverse=True) and rows["WaveNet"]["negative_log_prob"] > values[-1]
    # A Markov chain by counting, with the same share left to single levels.
    generator = torch.Generator().manual_seed(1)
    fresh, many = waves(500, 1024, generator), waves(2000, 1024, generator)
    codes, known = mu_law_encode(fresh.amplitudes).numpy(), mu_law_encode(many.amplitudes).numpy()
    single = (np.bincount(known.ravel(), minlength=256) + 1) / (known.size + 256)
    pairs = np.zeros((256, 256))
    np.add.at(pairs, (known[:, :-1].ravel(), known[:, 1:].ravel()), 1)
    seen = pairs / np.maximum(pairs.sum(1, keepdims=True), 1)
    chain = -np.log((0.99 * seen + 0.01 * single)[codes[:, :-1], codes[:, 1:]]).mean()
    assert rows["Markov chain"]["negative_log_prob"] == pytest.approx(chain, rel=1e-4)
    assert rows["single levels"]["negative_log_prob"] == pytest.approx(-np.log(single[codes]).mean(), rel=1e-4)


def test_the_cumulative_sum_that_nade_is_measured_against_gives_its_density():
    torch.manual_seed(0)
    nade = NADE((4, 5), hidden=7).double()
    x = (torch.rand(9, 4, 5) < 0.5).double()
    torch.testing.assert_close(_nade_by_cumulative_sum(nade, x), nade.log_prob(x))


def test_the_package_has_the_speed_of_every_sampler():
    rows = experiments.result("autoregressive_speed")["rows"]
    assert all(row["naive"] > 0 and row["fast"] > 0 for row in rows) and callable(autoregressive_speed)
    ratio = {(row["what"].split(",")[0], row["batch"], row["values"]): row["naive"] / row["fast"] for row in rows}
    assert ratio["MADE", 16, 784] >= 25
    assert ratio["PixelCNN", 1, 784] >= 15 and ratio["PixelCNN", 16, 784] >= 25
    assert ratio["WaveNet", 1, 500] >= 25 and ratio["WaveNet", 8, 500] >= 100
    assert ratio["NADE", 64, 784] >= 3


def test_small_run_of_the_flows_in_the_plane():
    rows = flows_plane(densities=("moons",), steps=30, models=("RealNVP", "MAF"), seeds=(0, 3))
    assert [(row["model"], row["seed"]) for row in rows] == [("RealNVP", 0), ("RealNVP", 3), ("MAF", 0), ("MAF", 3)]
    # The moons' entropy by quadrature.
    truth, axis = density("moons"), torch.linspace(-4, 4, 401)
    log_p = truth.log_prob(torch.cartesian_prod(axis, axis))
    entropy = -(log_p.exp() * log_p).sum().item() * 0.02**2
    for row in rows:
        assert row["gap"] == pytest.approx(row["nats"] - row["entropy"], abs=1e-4) and row["gap"] > 0
        assert row["entropy"] == pytest.approx(entropy, abs=0.05) and 0 < row["gap_error"] < 0.1
    assert flows_plane(densities=("moons",), steps=30, models=("MAF",), seeds=(3,)) == rows[3:]


def test_small_run_of_the_flows_on_digits(tmp_path):
    floor, row = flows_digits(models=("Glow",), steps=2, seed=1, folder=str(tmp_path))
    _, _, test = splits("mnist6k")
    make, noise, _ = flows.DIGITS["Glow"]
    model = Dequantised(make(), alpha=flows.ALPHA, noise=noise)
    card = load_model(model, tmp_path / "Glow" / "model.safetensors")
    x = test.intensities()
    with torch.no_grad():
        # With other noise.
        bits = -torch.cat([model.eval().elbo(part) for part in x.split(250)]) / (784 * np.log(2))
    assert floor["bits_per_dim"] == pytest.approx(1.7256, abs=1e-3) and floor["gain"] == 0
    assert row["bits_per_dim"] == pytest.approx(bits.mean().item(), rel=1e-2)
    assert row["gain"] == pytest.approx(floor["bits_per_dim"] - row["bits_per_dim"], abs=1e-4)
    assert (row["steps"], row["best_step"], row["batch_size"]) == (2, 2, 32)
    assert card["data"] == "mnist6k" and card["noise"] == "uniform" and float(card["alpha"]) == flows.ALPHA


def test_models_of_the_flows_experiments_are_of_digits():
    for make, noise, settings in (*flows.DIGITS.values(), *flows.MNIST.values()):
        assert make().event_shape == (1, 28, 28) and settings.patience and noise in ("uniform", "variational")
        # Averaged weights and running means of batch normalisation do not go together.
        has_running_means = any("BatchNorm" in type(module).__name__ for module in make().modules())
        assert has_running_means == (settings.ema_decay is None)


def test_small_run_of_the_energies_in_the_plane():
    rows = ebm_plane(densities=("moons",), methods=("noise contrast", "denoising"), seeds=(0, 2), steps=150)
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("noise contrast", 0),
        ("noise contrast", 2),
        ("denoising", 0),
        ("denoising", 2),
    ]
    for row in rows:
        assert row["steps"] == 150 and 0 < row["kl"] < 5 and 0 < row["total_variation"] < 1
        # Pinsker's inequality.
        assert row["total_variation"] <= (row["kl"] / 2) ** 0.5
    [again] = ebm_plane(densities=("moons",), methods=("denoising",), seeds=(2,), steps=150)
    assert (again["kl"], again["total_variation"]) == (rows[3]["kl"], rows[3]["total_variation"])


def test_every_method_in_the_plane_learns():
    """A few steps, whatever the loss is called."""
    x = density("moons").sample((200,))
    for make, settings in PLANE.values():
        model = fit(make(x), x, replace(settings, steps=2, batch_size=16), progress=False).model
        assert model.energy(x).shape == (200,)


def test_small_run_of_the_machines_on_digits():
    floor, row = rbm_digits(models=("CD-1",), steps=100, hidden=6)
    assert floor["negative_log_prob"] == pytest.approx(205.56, abs=0.05)
    # After so little training the machine is nearly one of independent pixels, for which AIS is exact.
    assert row["negative_log_prob"] < floor["negative_log_prob"]
    assert row["ais_low"] < row["ais"] < row["ais_high"]
    assert row["ais"] == pytest.approx(row["log_z"], abs=0.3)


def test_small_run_of_the_energy_on_digits(tmp_path):
    rows = ebm_digits(steps=2, folder=str(tmp_path))
    assert [row["step"] for row in rows] == [1, 2]
    # At the start chains are noise, and the quadratic bowl of the energy is lower there than at black pixels.
    assert rows[0]["data"] > rows[0]["samples"]
    assert (tmp_path / "ebm" / "model.safetensors").is_file()


def test_levels_of_the_score_model_are_those_of_the_rule():
    model = score_model()
    high, low = model.sigmas[0].item(), model.sigmas[-1].item()
    assert len(model.sigmas) == number_of_levels(16.0, 0.05, 784) and (high, low) == (16.0, pytest.approx(0.05))
    assert 15 < largest_distance(load("mnist6k").intensities()) < 16
