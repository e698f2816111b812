"""The experiments of the chapter on flows."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from companion.data import density
from companion.evaluation import as_bits_per_dim, histogram_bits_per_dim
from companion.experiments.vae import Row
from companion.models.flows import MAF, NICE, Dequantised, Flow, Glow, ImageRealNVP, RealNVP
from companion.presets import splits
from companion.training import Settings, fit, save_model

# Each flow in the plane.
PLANE: dict[str, Callable[[], Flow]] = {
    "NICE": lambda: NICE((2,), couplings=8, hidden=(64, 64), base="gaussian"),
    "RealNVP": lambda: RealNVP((2,), couplings=8, hidden=(64, 64)),
    "Glow": lambda: Glow((2,), squeezes=0, steps=8, hidden=64),
    "MAF": lambda: MAF((2,), layers=8, hidden=(64, 64)),
}

# With a larger alpha the black pixels, nearly all there are, would make a needle of the density.
ALPHA = 1e-6

# A flow, its dequantisation's noise, and its training.
Recipe = tuple[Callable[[], Flow], Literal["uniform", "variational"], Settings]

# Each flow on the 4,000 digits of mnist6k. Averaged weights would not fit the running means of RealNVP's batch
# normalisation.
_SHORT = Settings(
    steps=2000, batch_size=32, clip_norm=100.0, ema_decay=0.99, validate_every=100, patience=5, checkpoint_every=500
)
_MLP = replace(_SHORT, steps=5000, batch_size=100)
DIGITS: dict[str, Recipe] = {
    "NICE": (lambda: NICE(hidden=(500, 500, 500)), "uniform", _MLP),
    "MAF": (lambda: MAF((1, 28, 28), layers=5, hidden=(500,)), "uniform", replace(_MLP, steps=2500)),
    "RealNVP": (
        lambda: ImageRealNVP(hidden=16, blocks=1),
        "uniform",
        replace(_SHORT, learning_rate=2e-3, ema_decay=None),
    ),
    "Glow": (lambda: Glow(steps=4, hidden=32), "uniform", replace(_SHORT, learning_rate=5e-3)),
    "Glow, learned noise": (lambda: Glow(steps=4, hidden=32), "variational", replace(_SHORT, learning_rate=5e-3)),
}

# The same on all of MNIST.
_LONG = replace(_SHORT, steps=11_000, batch_size=64, ema_decay=0.999, validate_every=1000)
MNIST: dict[str, Recipe] = {
    "RealNVP": (
        lambda: ImageRealNVP(hidden=32, blocks=1),
        "uniform",
        replace(_LONG, steps=5000, batch_size=32, learning_rate=1e-3, ema_decay=None),
    ),
    "Glow": (lambda: Glow(steps=8, hidden=64), "uniform", replace(_LONG, learning_rate=3e-3)),
}


def _rows(
    models: dict[str, Recipe],
    names: Sequence[str],
    data: str,
    steps: int | None,
    seed: int,
    folder: str | None,
    device: str,
) -> list[Row]:
    train, validation, test = splits(data)
    x = test.intensities()
    floor = histogram_bits_per_dim(train.pixels, test.pixels)
    rows: list[Row] = [_row("independent histograms", 255 * 784, floor, floor, (0, 0, 0))]
    for name in names:
        make, noise, settings = models[name]
        settings = replace(settings, seed=seed, steps=steps or settings.steps)
        place = None if folder is None else Path(folder) / name
        torch.manual_seed(seed)
        model = Dequantised(make(), alpha=ALPHA, noise=noise)
        done = fit(
            model,
            train.intensities(),
            settings,
            validation=validation.intensities(),
            folder=place,
            device=device,
            progress=False,
        )
        torch.manual_seed(seed)
        with torch.no_grad():
            nats = -torch.cat([model.elbo(part.to(device)).cpu() for part in x.split(100)])
        parameters = sum(p.numel() for p in model.parameters())
        training = settings.batch_size, done.history[-1]["step"], done.best_step
        rows.append(_row(name, parameters, as_bits_per_dim(nats, x.shape[1:]), floor, training))
        if place is not None:
            known = {"data": data, "alpha": ALPHA, "noise": noise, **rows[-1]}
            save_model(model, place / "model.safetensors", {key: str(value) for key, value in known.items()})
    return rows


def _row(name: str, parameters: int, bits: Tensor, floor: Tensor, training: tuple[int, float, int | None]) -> Row:
    gain = floor - bits
    measured = {"bits_per_dim": bits.mean(), "gain": gain.mean(), "gain_error": gain.std() / len(gain) ** 0.5}
    row: Row = {"model": name, "parameters": parameters, **{key: value.item() for key, value in measured.items()}}
    return row | dict(zip(("batch_size", "steps", "best_step"), training, strict=True))


def flows_digits(
    models: Sequence[str] = tuple(DIGITS),
    steps: int | None = None,
    seed: int = 0,
    folder: str | None = None,
    device: str = "cpu",
) -> list[Row]:
    """Flows as in DIGITS on 4,000 grey digits, with early stopping.

    Arguments and rows are those of `flows_mnist`; there are 1,000 test digits.
    """
    return _rows(DIGITS, models, "mnist6k", steps, seed, folder, device)


def flows_mnist(
    models: Sequence[str] = tuple(MNIST),
    steps: int | None = None,
    seed: int = 0,
    folder: str | None = None,
    device: str = "cpu",
) -> list[Row]:
    """Flows as in MNIST on all grey digits of MNIST, with early stopping on 10,000 of its training digits.

    Args:
        steps: those of MNIST where None.
        folder: where to keep the checkpoints from which a run goes on, and the weights; None for nowhere.

    Returns:
        For a histogram of each pixel and each model, on the 10,000 test digits: "bits_per_dim", of a flow the bound of
        `Dequantised` with one draw of the noise; "gain", by how much it is below that of the histograms, with the
        standard error "gain_error" of this mean difference; "parameters", "batch_size", "steps" and "best_step", whose
        weights are the ones measured.
    """
    return _rows(MNIST, models, "mnist", steps, seed, folder, device)


def flows_plane(
    densities: Sequence[str] = ("moons", "eight_gaussians", "checkerboard"),
    steps: int = 3000,
    models: Sequence[str] = tuple(PLANE),
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
) -> list[Row]:
    """Flows as in PLANE on densities in the plane, of which the true log p(x) is known, trained on 8,000 points.

    Returns:
        For each, on 10,000 fresh points: "nats", the mean of -log p(x) under the flow; "entropy", the same under the
        truth; "gap", the mean difference, which estimates KL(p_data‖p_X), with its standard error "gap_error".
    """
    rows: list[Row] = []
    for name in densities:
        truth = density(name)
        for model in models:
            for seed in seeds:
                torch.manual_seed(seed)
                x, test = truth.sample((8000,)), truth.sample((10_000,))
                settings = Settings(steps=steps, batch_size=256, learning_rate=5e-3, ema_decay=0.995, seed=seed)
                flow = PLANE[model]()
                fit(flow, x, settings, device=device, progress=False)
                with torch.no_grad():
                    known, found = truth.log_prob(test), flow.cpu().log_prob(test)
                gap = known - found
                row = {"nats": -found.mean(), "entropy": -known.mean(), "gap": gap.mean()}
                row["gap_error"] = gap.std() / len(gap) ** 0.5
                rows.append({"density": name, "model": model, "seed": seed, **{k: v.item() for k, v in row.items()}})
    return rows
