"""The experiments of the chapter on autoregressive models."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from companion.experiments.vae import Row
from companion.models import IndependentPixels
from companion.models.autoregressive import FVSBN, MADE, NADE, PixelCNN
from companion.presets import fixed, splits, training_data
from companion.training import Settings, fit, save_model

# Each model with its training on all of MNIST. The averaged weights stand in for the papers' falling step sizes.
_LONG = Settings(steps=15_000, batch_size=100, ema_decay=0.9995, validate_every=1000, patience=5, checkpoint_every=500)
MNIST: dict[str, tuple[Callable[[], nn.Module], Settings]] = {
    "FVSBN": (FVSBN, replace(_LONG, learning_rate=3e-3)),
    "MADE": (lambda: MADE(hidden=(2000,)), _LONG),
    "NADE": (NADE, replace(_LONG, learning_rate=2e-3)),
    "PixelCNN": (
        lambda: PixelCNN(hidden=16),
        replace(_LONG, learning_rate=2e-3, batch_size=64, mixed_precision="bf16"),
    ),
}


def _rows(
    models: dict[str, tuple[Callable[[], nn.Module], Settings]],
    names: Sequence[str],
    data: str,
    binarised: str,
    steps: int | None,
    seed: int,
    folder: str | None,
    device: str,
) -> list[Row]:
    train, validation, test = splits(data)
    x, held_out, example = fixed(test, binarised).to(device), fixed(validation, binarised), fixed(train, binarised)
    floor = IndependentPixels((1, 28, 28)).fit(example).to(device).log_prob(x)
    rows: list[Row] = [{"model": "independent pixels", "parameters": 784, **_nats(floor, floor)}]
    for name in names:
        make, settings = models[name]
        settings = replace(settings, seed=seed, steps=steps or settings.steps)
        place = None if folder is None else Path(folder) / name
        torch.manual_seed(seed)
        model = make()
        if hasattr(model, "initialise"):
            model.initialise(example)
        done = fit(
            model,
            training_data(train, binarised),
            settings,
            validation=held_out,
            folder=place,
            device=device,
            progress=False,
        )
        if place is not None:
            save_model(model, place / "model.safetensors", {"model": name, "data": data})
        with torch.no_grad():
            log_prob = torch.cat([model.log_prob(part) for part in x.split(100)])
        row: Row = {"model": name, "parameters": sum(p.numel() for p in model.parameters()), **_nats(log_prob, floor)}
        last = done.history[-1]["step"]
        rows.append(row | {"batch_size": settings.batch_size, "steps": last, "best_step": done.best_step})
    return rows


def _nats(log_prob: Tensor, floor: Tensor) -> Row:
    """The mean of -log p in nats, by how much it is below the floor, and this mean difference's standard error."""
    gain = log_prob - floor
    row = {"negative_log_prob": -log_prob.mean(), "gain": gain.mean(), "gain_error": gain.std() / len(gain) ** 0.5}
    return {name: value.item() for name, value in row.items()}


def autoregressive_mnist(
    models: Sequence[str] = tuple(MNIST),
    steps: int | None = None,
    seed: int = 0,
    folder: str | None = None,
    device: str = "cpu",
) -> list[Row]:
    """Models as in MNIST on all of MNIST, binarised once, with early stopping on 10,000 of its training digits.

    Args:
        steps: those of MNIST where None.
        folder: where to keep the checkpoints from which a run goes on, and the weights; None for nowhere.

    Returns:
        For independent pixels and each model, on the 10,000 test digits: "negative_log_prob" in nats, "gain", by how
        much it is below that of independent pixels, with the standard error "gain_error" of this mean difference;
        "parameters", "batch_size", "steps" and "best_step", whose weights are the ones measured.
    """
    return _rows(MNIST, models, "mnist", "static", steps, seed, folder, device)
