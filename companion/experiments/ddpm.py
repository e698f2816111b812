"""The experiments of the chapter on diffusion."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from companion.evaluation import as_bits_per_dim
from companion.experiments.vae import Row
from companion.models.ddpm import DDPM, VDM, cosine_schedule, linear_schedule
from companion.nets.fourier import Fourier
from companion.nets.unet import UNet
from companion.presets import splits
from companion.training import Settings, fit, load_model, save_model


def ddpm() -> DDPM:
    """The model of `ddpm_mnist`: the schedule, prediction, variance and objective of Ho et al. (2020), with labels, at
    half the resolution, patches of 2 × 2 pixels."""
    return DDPM(UNet(1, 48, (1, 2), classes=10, patch=2), (1, 28, 28), linear_schedule(), levels=256)


def ddpm_mnist(
    steps: int = 20_000, seed: int = 0, images: int = 200, folder: str | None = None, device: str = "cpu"
) -> list[Row]:
    """A diffusion of all grey digits of MNIST, given their labels, and its bound on test digits, term by term.

    Args:
        images: of the test set, for the bound.
        folder: where to keep the checkpoints from which a run goes on, and the weights; None for nowhere.

    Returns:
        For some "time" t from 1 on: "bits", the mean of that term of -ELBO in bits/dim, "error", its standard error.
        At time 0: the prior's term. At time -1: the whole bound, from 200 of the terms for each image, evenly drawn.
    """
    train, _, test = splits("mnist")
    torch.manual_seed(seed)
    settings = Settings(
        steps=steps,
        batch_size=32,
        ema_decay=0.999,
        mixed_precision="bf16",
        seed=seed,
        log_every=100,
        checkpoint_every=250,
    )
    place = None if folder is None else Path(folder) / "ddpm"
    model = ddpm()
    fit(model, (train.intensities(), train.labels), settings, folder=place, device=device, progress=False)
    if place is not None:
        path = place / "model.safetensors"
        known = {"model": "DDPM", "data": "mnist", "steps": steps, "batch_size": settings.batch_size, "seed": seed}
        save_model(model, path, {key: str(value) for key, value in known.items()}, half=True)
        load_model(model, path)  # What is measured are the rounded weights.
    x, label = test.intensities()[:images].to(device), test.labels[:images].to(device)
    generator = torch.Generator(device).manual_seed(seed)
    found = {-1: -model.elbo(x, label, 200, generator), 0: model.prior_kl(x)}
    for t in (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 400, 500, 600, 700, 800, 900, 1000):
        found[t] = model.term(x, t, label, generator)
    bits = {t: as_bits_per_dim(nats, x.shape[1:]) for t, nats in found.items()}
    return [{"time": t, "bits": b.mean().item(), "error": (b.std() / len(b) ** 0.5).item()} for t, b in bits.items()]


def _digits(schedule: Tensor, **arguments) -> DDPM:
    network = UNet(1, 32, (1, 2), patch=2, channels_out=2 if arguments["variance"] == "learned" else 1)
    return DDPM(network, (1, 28, 28), schedule, levels=256, **arguments)


_HYBRID = dict(variance="learned", objective="hybrid")
DIGITS: dict[str, Callable[[], DDPM | VDM]] = {
    "linear, simple": lambda: _digits(linear_schedule(), variance="posterior"),
    "linear, hybrid": lambda: _digits(linear_schedule(), **_HYBRID),
    "cosine, hybrid": lambda: _digits(cosine_schedule(), **_HYBRID),
    "linear, bound": lambda: _digits(linear_schedule(), variance="learned", objective="bound"),
    "VDM": lambda: VDM(Fourier(UNet(5, 32, (1, 2), patch=2, channels_out=1)), (1, 28, 28), levels=256),
}


def ddpm_digits(
    models: Sequence[str] = tuple(DIGITS),
    steps: int = 2500,
    seed: int = 0,
    images: int = 200,
    folder: str | None = None,
    device: str = "cpu",
) -> list[Row]:
    """Diffusions of 4,000 grey digits, without labels, with nearly the same U-Net and the same steps.

    Args:
        images: of the test set, for the bound.
        folder: where to keep the checkpoints from which a run goes on; None for nowhere.

    Returns:
        For each "training", and for the simple loss with both fixed variances, "variance": "bits", -ELBO in bits/dim
        from 200 of its terms for each image, and "error", its standard error.
    """
    train, _, test = splits("mnist6k")
    x = test.intensities()[:images].to(device)
    rows: list[Row] = []
    for name in models:
        torch.manual_seed(seed)
        settings = Settings(
            steps=steps,
            batch_size=32,
            ema_decay=0.998,
            clip_norm=None if name == "VDM" else 1.0,
            seed=seed,
            checkpoint_every=250,
        )
        place = None if folder is None else Path(folder) / name.replace(", ", "_")
        model = DIGITS[name]()
        fit(model, train.intensities(), settings, folder=place, device=device, progress=False)
        chains = {getattr(model, "variance", "posterior"): model}
        if name == "linear, simple":
            chains["forward"] = _digits(linear_schedule(), variance="forward").to(device)
            chains["forward"].network = model.network
        for variance, chain in chains.items():
            nats = -chain.elbo(x, terms=200, generator=torch.Generator(device).manual_seed(seed))
            bits = as_bits_per_dim(nats, x.shape[1:])
            found = {"bits": bits.mean().item(), "error": (bits.std() / images**0.5).item()}
            rows.append({"training": name, "variance": variance, **found})
    return rows
