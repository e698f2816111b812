"""The experiments of the chapter on evaluation, but for the scoreboard."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.data import binarize, load
from companion.experiments.vae import Row
from companion.models.questions import Loss
from companion.nets.digit_classifier import DigitClassifier
from companion.presets import splits
from companion.training import Settings, fit, save_model


class _Classification(nn.Module):
    """The loss that `fit` asks for."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def loss(self, x: Tensor, label: Tensor) -> Loss:
        value = F.cross_entropy(self.network(x), label, reduction="none")
        return Loss(value, {"cross-entropy": value}, "nats")


def digit_classifier(steps: int = 6000, seed: int = 0, folder: str | None = None, device: str = "cpu") -> list[Row]:
    """The classifier whose features serve to compare images, trained on MNIST's digits, half of each batch grey and
    half binarised, without any that the book holds out, be it for validation or for testing.

    Args:
        folder: where to keep the checkpoints from which a run goes on, and the weights; None for nowhere.

    Returns:
        For grey and binarised test digits, of MNIST and of mnist6k: "accuracy" and the mean "cross_entropy", nats.
    """
    train, _, test = splits("mnist")
    held_out = {image.numpy().tobytes() for image in load("mnist6k", "validation").pixels}
    kept = torch.tensor([image.numpy().tobytes() not in held_out for image in train.pixels])
    grey, labels = train.intensities()[kept], train.labels[kept]

    def batch(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(grey), (n,), generator=generator)
        x = grey[chosen]
        return torch.cat([x[: n // 2], binarize(x[n // 2 :], generator)]), labels[chosen]

    torch.manual_seed(seed)
    place = None if folder is None else Path(folder) / "digit_classifier"
    settings = Settings(steps=steps, batch_size=128, ema_decay=0.998, seed=seed, log_every=200, checkpoint_every=1000)
    model = _Classification(DigitClassifier())
    fit(model, batch, settings, folder=place, device=device, progress=False)
    network = model.network
    rows: list[Row] = []
    for images in (test, load("mnist6k", "test")):
        for kind, x in (("grey", images.intensities()), ("binarised", images.binarized(seed=0))):
            with torch.no_grad():
                logits = torch.cat([network(part.to(device)).cpu() for part in x.split(500)])
            row: Row = {"data": images.name, "images": len(x), "kind": kind}
            row["accuracy"] = (logits.argmax(1) == images.labels).double().mean().item()
            rows.append(row | {"cross_entropy": F.cross_entropy(logits, images.labels).item()})
    if place is not None:
        known = {"model": "DigitClassifier", "data": "mnist", "images": len(grey), "steps": steps, "seed": seed}
        known |= {f"accuracy, {row['data']}, {row['kind']}": f"{row['accuracy']:.4f}" for row in rows}
        save_model(network, place / "model.safetensors", {key: str(value) for key, value in known.items()})
    return rows
