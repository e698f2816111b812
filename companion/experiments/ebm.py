"""The experiments of the chapter on energy-based models."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from companion.data import density
from companion.experiments.vae import Row
from companion.models import IndependentPixels
from companion.models.ebm import (
    EBM,
    RBM,
    AdversarialEBM,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    NoiseContrastive,
    ScoreMatching,
    ScoreModel,
    SlicedScoreMatching,
    divergence,
    geometric_levels,
)
from companion.models.ebm.objectives import Objective
from companion.models.flows import RealNVP
from companion.nets.energy import EnergyConvNet, EnergyMLP
from companion.nets.unet import UNet
from companion.presets import fixed, splits, start, training_data
from companion.samplers import ais
from companion.training import Settings, fit, save_model


def _ebm(objective: Objective) -> EBM:
    return EBM(EnergyMLP(2), (2,), objective)


# Each method, given the training points, with its training.
_SETTINGS = Settings(steps=1500, batch_size=256, learning_rate=2e-3, ema_decay=0.99)
_CHAINS = replace(_SETTINGS, steps=1000, learning_rate=1e-3)
PLANE: dict[str, tuple[Callable[[Tensor], EBM | AdversarialEBM], Settings]] = {
    "CD-10": (lambda x: _ebm(ContrastiveDivergence(10, 0.02, regulariser=1e-3)), _CHAINS),
    "chains from noise": (lambda x: _ebm(ContrastiveDivergence(10, 0.02, "noise", regulariser=1e-3)), _CHAINS),
    "persistent chains": (lambda x: _ebm(ContrastiveDivergence(10, 0.02, "buffer", regulariser=1e-3)), _CHAINS),
    "sampler network": (
        lambda x: AdversarialEBM(EnergyMLP(2), RealNVP((2,), 6, (64,)), sampler_updates=3),
        replace(_CHAINS, steps=700, betas=(0.0, 0.99)),
    ),
    "noise contrast": (
        lambda x: _ebm(NoiseContrastive(MultivariateNormal(x.mean(0), x.T.cov()))),
        replace(_SETTINGS, steps=2500, learning_rate=5e-3),
    ),
    "score matching": (lambda x: _ebm(ScoreMatching()), _SETTINGS),
    "sliced": (lambda x: _ebm(SlicedScoreMatching()), _SETTINGS),
    "denoising": (lambda x: _ebm(DenoisingScoreMatching(0.15)), replace(_SETTINGS, steps=2000)),
}


def ebm_plane(
    densities: Sequence[str] = ("moons", "eight_gaussians", "checkerboard"),
    methods: Sequence[str] = tuple(PLANE),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int | None = None,
    device: str = "cpu",
) -> list[Row]:
    """The same energy, learned from 8,000 points by each method of PLANE, for about the same time.

    Args:
        steps: those of PLANE where None.

    Returns:
        For each: "kl", KL(p_data‖p) in nats, and "total_variation", both of the density normalised by quadrature after
        training; "steps"; "seconds" of training. Both are None where a chain was lost, or where the quadrature finds
        no density.
    """
    rows: list[Row] = []
    for name in densities:
        truth = density(name)
        for method in methods:
            make, settings = PLANE[method]
            for seed in seeds:
                torch.manual_seed(seed)
                x = truth.sample((8000,))
                settings = replace(settings, seed=seed, steps=steps or settings.steps)
                began = time.perf_counter()
                kl, variation = None, None
                try:
                    model = make(x)
                    fit(model, x, settings, device=device, progress=False)
                    kl, variation, _ = divergence(model.cpu().energy, truth)
                except (FloatingPointError, ValueError):
                    pass
                seconds = round(time.perf_counter() - began, 1)
                row = {"kl": kl, "total_variation": variation, "steps": settings.steps, "seconds": seconds}
                rows.append({"density": name, "method": method, "seed": seed, **row})
    return rows


# Each training of a restricted Boltzmann machine.
MACHINES: dict[str, dict] = {
    "CD-1": dict(k=1),
    "CD-10": dict(k=10),
    "persistent, 1 step": dict(k=1, chains=128),
    "persistent, 5 steps": dict(k=5, chains=128),
}


def rbm_digits(
    models: Sequence[str] = tuple(MACHINES),
    steps: int = 5000,
    hidden: int = 20,
    seed: int = 0,
    device: str = "cpu",
) -> list[Row]:
    """Restricted Boltzmann machines on 4,000 digits, binarised anew for every batch, with log Z enumerated.

    Returns:
        For independent pixels and each machine, on 1,000 test digits: "negative_log_prob" in nats, exact; "log_z",
        exact, and as annealed importance sampling has it with 1,000 steps and 200 chains, "ais", with its 95 % interval
        from "ais_low" to "ais_high".
    """
    train, _, test = splits("mnist6k")
    x = fixed(test, "dynamic").to(device)
    pixels = IndependentPixels((1, 28, 28)).fit(fixed(train, "dynamic")).to(device)
    nothing = {"log_z": 0.0, "ais": 0.0, "ais_low": 0.0, "ais_high": 0.0}
    floor = -pixels.log_prob(x).mean().item()
    rows: list[Row] = [{"model": "independent pixels", "negative_log_prob": floor, **nothing}]
    for name in models:
        torch.manual_seed(seed)
        rbm = start(RBM(hidden=hidden, **MACHINES[name]), train, "dynamic")
        settings = Settings(steps=steps, learning_rate=3e-3, ema_decay=0.998, seed=seed)
        fit(rbm, training_data(train, "dynamic"), settings, device=device, progress=False)
        log_z = rbm.log_partition()
        generator = torch.Generator(device).manual_seed(seed)
        betas = torch.linspace(0, 1, 1001)
        estimate = ais(rbm.path(pixels.logits), pixels.sample(200, generator), betas, generator=generator)
        low, high = estimate.interval
        with torch.no_grad():
            nats = (rbm.energy(x).mean() + log_z).item()
        found = {"log_z": log_z.item(), "ais": estimate.value, "ais_low": low, "ais_high": high}
        rows.append({"model": name, "negative_log_prob": nats, **found})
    return rows


def score_model() -> ScoreModel:
    """The noise-conditional network of `score_mnist`, at half the resolution: patches of 2 × 2 pixels."""
    # The levels of `number_of_levels(16.0, 0.05, 784)`; 16 is near the largest distance between two digits.
    return ScoreModel(UNet(1, 32, (1, 1), patch=2), (1, 28, 28), geometric_levels(16.0, 0.05, 75))


def score_mnist(steps: int = 8000, seed: int = 0, folder: str | None = None, device: str = "cpu") -> list[Row]:
    """A noise-conditional score network on all grey digits of MNIST.

    Args:
        folder: where to keep the checkpoints from which a run goes on, and the weights; None for nowhere.

    Returns:
        For every eighth level "sigma": "loss", the mean of ½ ‖ε̂ - ε‖² on 1,000 test digits, the same noise at each
        level, and "zero", that of the answer 0.
    """
    train, _, test = splits("mnist")
    torch.manual_seed(seed)
    settings = Settings(
        steps=steps, batch_size=32, learning_rate=2e-3, ema_decay=0.999, seed=seed, checkpoint_every=500
    )
    place = None if folder is None else Path(folder) / "score_model"
    model = score_model()
    fit(model, train.intensities(), settings, folder=place, device=device, progress=False)
    x = test.intensities()[:1000].to(device)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(device)
    rows: list[Row] = []
    for sigma in model.sigmas[::8].tolist():
        with torch.no_grad():
            parts = zip((x + sigma * noise).split(250), noise.split(250), strict=True)
            error = torch.cat([(sigma * model.score(y, sigma) + part).flatten(1) for y, part in parts])
        loss, zero = (v.square().sum(1).mean().item() / 2 for v in (error, noise.flatten(1)))
        rows.append({"sigma": sigma, "loss": loss, "zero": zero})
    if place is not None:
        known = {"model": "ScoreModel", "data": "mnist", "steps": steps, "batch_size": settings.batch_size}
        save_model(model, place / "model.safetensors", {key: str(value) for key, value in known.items()})
    return rows


def energy_model() -> EBM:
    """The convolutional energy of `ebm_digits`, with persistent chains."""
    chains = ContrastiveDivergence(20, 5e-3, "buffer", buffer_size=256)
    network = EnergyConvNet(channels=16, scale=100.0)
    return EBM(network, (1, 28, 28), chains, box=(0.0, 1.0), step_size=5e-3, adjusted=False)


def ebm_digits(steps: int = 3000, seed: int = 0, folder: str | None = None, device: str = "cpu") -> list[Row]:
    """A convolutional energy on 4,000 grey digits with noise of standard deviation 0.1, without which pixels that are
    always black would need an infinite slope; by contrastive divergence with persistent chains.

    Args:
        folder: where to keep the checkpoints from which a run goes on, and the weights; None for nowhere.

    Returns:
        For some steps of the training: "data" and "samples", the mean energies of both in that step's batch.
    """
    grey = splits("mnist6k")[0].intensities()

    def batch(n: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(grey), (n,), generator=generator)
        return grey[chosen] + 0.1 * torch.randn(n, 1, 28, 28, generator=generator)

    torch.manual_seed(seed)
    settings = Settings(
        steps=steps,
        batch_size=32,
        learning_rate=5e-4,
        betas=(0.0, 0.999),
        ema_decay=0.99,
        seed=seed,
        log_every=max(1, steps // 20),
        checkpoint_every=200,
    )
    place = None if folder is None else Path(folder) / "ebm"
    done = fit(energy_model(), batch, settings, folder=place, device=device, progress=False)
    if place is not None:
        known = {"model": "EBM", "data": "mnist6k", "steps": steps, "batch_size": settings.batch_size}
        save_model(done.model, place / "model.safetensors", {key: str(value) for key, value in known.items()})
    return [{"step": row["step"], "data": row["data"], "samples": -row["samples"]} for row in done.history]
