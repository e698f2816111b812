"""What takes longer than a chapter may: `companion run NAME` writes its results, the chapters print them.

An experiment is a function that returns rows and takes seeds; with small arguments it is quick enough to run one of
its rows again, live.
"""

import inspect
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from companion.data import factors
from companion.evaluation import mutual_information_gap
from companion.models.questions import Code
from companion.presets import find, fixed, splits, training_data
from companion.training import Settings, fit

RESULTS = Path(__file__).with_name("results")

Row = dict[str, float | int | str]


def vae_beta(
    steps: int = 1500,
    betas: Sequence[float] = (0.1, 0.25, 0.5, 1, 2, 4, 10),
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
) -> list[Row]:
    """Rate against distortion of the VAE on digits, for each weight of the KL term and each seed.

    Trained as its quick preset, with early stopping on its own loss.

    Returns:
        For each: "rate", E KL(q(z|x)‖p(z)), "distortion", -E log p(x|z), and their sum "negative_elbo", on the test
        digits in nats; "best_step" of the training.
    """
    from companion.models.vae import VAE

    preset = find("vae", "quick")
    train, validation, test = splits(preset.data)
    x = fixed(test, preset.binarised).to(device)
    rows: list[Row] = []
    for beta in betas:
        for seed in seeds:
            torch.manual_seed(seed)
            fitted = fit(
                VAE(beta=beta),
                training_data(train, preset.binarised),
                replace(preset.settings, steps=steps, seed=seed, checkpoint_every=None),
                validation=fixed(validation, preset.binarised),
                device=device,
                progress=False,
            )
            rate, distortion = _rate_and_distortion(fitted.model, x)
            row = {"rate": rate, "distortion": distortion, "negative_elbo": rate + distortion}
            rows.append({"beta": beta, "seed": seed, **row, "best_step": fitted.best_step})
    return rows


def vae_disentanglement(
    steps: int = 3000,
    betas: Sequence[float] = (1, 4, 16),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    device: str = "cpu",
) -> list[Row]:
    """How far the code of a β-VAE keeps known factors apart, for each weight of the KL term and each seed.

    Six latents, four factors, 512 pictures, all of them seen in training.

    Returns:
        For each: "gap", the mutual information gap of the encoder's means; "rate", E KL(q(z|x)‖p(z)), and "distortion",
        -E log p(x|z), in nats; "active", the number of latents that say more than 0.01 nats.
    """
    from companion.models.vae import VAE

    data = factors()
    x = data.binary().to(device)
    rows: list[Row] = []
    for beta in betas:
        for seed in seeds:
            torch.manual_seed(seed)
            model = VAE(latent_dim=6, hidden=256, beta=beta)
            settings = Settings(steps=steps, learning_rate=2e-3, seed=seed)
            model = fit(model, x, settings, device=device, progress=False).model
            rate, distortion = _rate_and_distortion(model, x)
            with torch.no_grad():
                q = model.encode(x)
            kl = kl_divergence(q.base_dist, Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))).mean(0)
            row = {"gap": mutual_information_gap(q.mean.cpu(), data.values), "rate": rate, "distortion": distortion}
            rows.append({"beta": beta, "seed": seed, **row, "active": int((kl > 0.01).sum())})
    return rows


@torch.no_grad()
def _rate_and_distortion(model: Code, x: Tensor) -> tuple[float, float]:
    q = model.encode(x)
    prior = Independent(Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean)), 1)
    rate, distortion = kl_divergence(q, prior), -model.decode(q.sample()).log_prob(x)
    return rate.mean().item(), distortion.mean().item()


EXPERIMENTS: dict[str, Callable[..., list[Row]]] = {"vae_beta": vae_beta, "vae_disentanglement": vae_disentanglement}


def run(name: str, folder: Path = RESULTS, **arguments) -> Path:
    """Run an experiment and write FOLDER/NAME.json: its arguments, its rows and what they were computed with.

    Raises ValueError for an unknown name.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    experiment = EXPERIMENTS[name]
    bound = inspect.signature(experiment).bind(**arguments)
    bound.apply_defaults()
    start = time.perf_counter()
    rows = experiment(**bound.arguments)
    result = {
        "name": name,
        "config": bound.arguments,
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("generative-models-verified", "torch", "numpy")},
        "hardware": {
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if bound.arguments.get("device") == "cuda" else None,
        },
        "seconds": round(time.perf_counter() - start, 1),
        "rows": rows,
    }
    path = Path(folder) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def result(name: str) -> dict:
    """What `run` wrote and the package carries. Raises FileNotFoundError with the command that writes it."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; `companion run {name}` writes it")
    return json.loads(path.read_text())
