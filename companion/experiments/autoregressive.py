"""The experiments of the chapter on autoregressive models."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.data import mu_law_encode, quantise, waves
from companion.experiments.vae import Row
from companion.models import IndependentPixels
from companion.models.autoregressive import FVSBN, MADE, NADE, CausalTransformer, PixelCNN, PixelRNN, WaveNet
from companion.models.autoregressive.binary import BinaryAutoregressive
from companion.models.autoregressive.images import ImageAutoregressive
from companion.presets import Binarised, fixed, splits, start, training_data
from companion.training import Settings, fit, save_model

Model = BinaryAutoregressive | ImageAutoregressive

# Each model with its training on all of MNIST. The averaged weights stand in for the papers' falling step sizes.
_LONG = Settings(steps=15_000, batch_size=100, ema_decay=0.9995, validate_every=1000, patience=5, checkpoint_every=500)
MNIST: dict[str, tuple[Callable[[], Model], Settings]] = {
    "FVSBN": (FVSBN, replace(_LONG, learning_rate=3e-3)),
    "MADE": (lambda: MADE(hidden=(2000,)), _LONG),
    "NADE": (NADE, replace(_LONG, learning_rate=2e-3, steps=8000)),
    "PixelCNN": (
        lambda: PixelCNN(hidden=16),
        replace(_LONG, steps=9000, learning_rate=5e-3, batch_size=64, mixed_precision="bf16"),
    ),
}


# Each model with its training on the 4,000 digits of mnist6k.
_SHORT = Settings(steps=3000, batch_size=32, ema_decay=0.99, validate_every=100, patience=5, checkpoint_every=250)
_RECURRENT = replace(_SHORT, batch_size=16, learning_rate=1e-2, clip_norm=100.0, ema_decay=0.995)
DIGITS: dict[str, tuple[Callable[[], Model], Settings]] = {
    "FVSBN": (FVSBN, replace(_SHORT, batch_size=100, learning_rate=1e-2)),
    "NADE": (lambda: NADE(hidden=200), replace(_SHORT, batch_size=100, learning_rate=5e-3)),
    "MADE": (lambda: MADE(hidden=(500,), direct=True), replace(_SHORT, batch_size=100, learning_rate=3e-3)),
    "Row LSTM": (lambda: PixelRNN(kind="row", hidden=16, layers=2), _RECURRENT),
    "Diagonal BiLSTM": (lambda: PixelRNN(kind="diagonal", hidden=16, layers=2), _RECURRENT),
    "PixelCNN": (lambda: PixelCNN(hidden=16), replace(_SHORT, learning_rate=5e-3, mixed_precision="bf16")),
    "gated PixelCNN": (
        lambda: PixelCNN(kind="gated", hidden=16),
        replace(_SHORT, learning_rate=3e-3, mixed_precision="bf16"),
    ),
    "transformer": (
        lambda: CausalTransformer(width=64, layers=2, heads=2),
        replace(_SHORT, steps=2000, batch_size=8, learning_rate=3e-3, betas=(0.9, 0.95)),
    ),
}

# Two stacks of eight layers: a prediction sees 512 samples back, six periods of the lowest pitch.
WAVENET = dict(length=1024, channels=32, skip=64, layers=8, blocks=2, classes=4)


def _rows(
    models: dict[str, tuple[Callable[[], Model], Settings]],
    names: Sequence[str],
    data: str,
    binarised: Binarised,
    steps: int | None,
    seed: int,
    folder: str | None,
    device: str,
) -> list[Row]:
    train, validation, test = splits(data)
    x, held_out = fixed(test, binarised).to(device), fixed(validation, binarised)
    floor = IndependentPixels((1, 28, 28)).fit(fixed(train, binarised)).to(device).log_prob(x)
    rows: list[Row] = [{"model": "independent pixels", "parameters": 784, **_nats(floor, floor), **_training(0, 0, 0)}]
    for name in names:
        make, settings = models[name]
        settings = replace(settings, seed=seed, steps=steps or settings.steps)
        place = None if folder is None else Path(folder) / name
        torch.manual_seed(seed)
        model = start(make(), train, binarised)
        done = fit(
            model,
            training_data(train, binarised),
            settings,
            validation=held_out,
            folder=place,
            device=device,
            progress=False,
        )
        with torch.no_grad():
            log_prob = torch.cat([model.log_prob(part) for part in x.split(100)])
        row: Row = {"model": name, "parameters": sum(p.numel() for p in model.parameters()), **_nats(log_prob, floor)}
        row |= _training(settings.batch_size, done.history[-1]["step"], done.best_step)
        if place is not None:
            save_model(model, place / "model.safetensors", _card({**row, "data": data, "binarised": binarised}))
        rows.append(row)
    return rows


def _nats(log_prob: Tensor, floor: Tensor) -> Row:
    """The mean of -log p in nats, by how much it is below the floor, and this mean difference's standard error."""
    gain = log_prob - floor
    row = {"negative_log_prob": -log_prob.mean(), "gain": gain.mean(), "gain_error": gain.std() / len(gain) ** 0.5}
    return {name: value.item() for name, value in row.items()}


def _card(known: Row) -> dict[str, str]:
    """What the header of a file of weights says of them."""
    return {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in known.items()}


def _training(batch_size: int, steps: float, best_step: int | None) -> Row:
    return {"batch_size": batch_size, "steps": steps, "best_step": best_step}


def autoregressive_digits(
    models: Sequence[str] = tuple(DIGITS),
    steps: int | None = None,
    seed: int = 0,
    folder: str | None = None,
    device: str = "cpu",
) -> list[Row]:
    """Models as in DIGITS on 4,000 digits, binarised anew for every batch, with early stopping.

    Arguments and rows are those of `autoregressive_mnist`; there are 1,000 test digits.
    """
    return _rows(DIGITS, models, "mnist6k", "dynamic", steps, seed, folder, device)


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


def autoregressive_speed(repeats: int = 5, device: str = "cpu") -> list[Row]:
    """The samplers of the package beside naive ones, which run the whole network for every value; and two ways to
    NADE's density. Networks with new weights, whose cost is that of trained ones.

    Returns:
        For each: "naive" and "fast", medians of seconds over interleaved repeats; "naive" is of a few passes times the
        number of values where there are many. "values" is the number of values drawn for each of "batch" samples.
    """
    rows: list[Row] = []

    def compare(what: str, batch: int, values: int, naive: Callable, times: int, fast: Callable) -> None:
        seconds: dict[str, list[float]] = {"naive": [], "fast": []}
        for _ in range(repeats):
            seconds["naive"].append(times * _seconds(naive, device))
            seconds["fast"].append(_seconds(fast, device))
        medians = {name: statistics.median(s) for name, s in seconds.items()}
        rows.append({"what": what, "batch": batch, "values": values, **medians})

    def images(what: str, model: Model, batch: int = 16) -> None:
        model = model.to(device).eval()
        x = torch.zeros(batch, *model.event_shape, device=device)
        one_pass = getattr(model, "logits", model)
        compare(what, batch, x[0].numel(), lambda: one_pass(x), x[0].numel(), lambda: model.sample(batch))

    def sounds(model: WaveNet, batch: int, length: int = 500) -> None:
        window = quantise(torch.zeros(batch, model.samples_seen, device=device))
        draw = partial(model.sample, batch, length=length)
        compare("WaveNet, 20 layers", batch, length, lambda: model(window), length, draw)

    with torch.no_grad():
        for side in (7, 10, 14, 20, 28):
            images(f"MADE, {side} × {side}", MADE((1, side, side)))
        images("FVSBN, 28 × 28", FVSBN())
        images("NADE, 28 × 28", NADE())
        for batch in (1, 16):
            images("PixelCNN, 15 blocks, 28 × 28", PixelCNN(hidden=32, blocks=15), batch)
            images("gated PixelCNN, 15 layers, 28 × 28", PixelCNN(kind="gated", hidden=32, blocks=15), batch)
            images("Diagonal BiLSTM, 7 layers, 28 × 28", PixelRNN(kind="diagonal", hidden=16), batch)
            images("transformer, 4 layers, 28 × 28", CausalTransformer(), batch)
        for batch in (1, 8):
            sounds(WaveNet(layers=10, blocks=2, channels=32).to(device), batch)
        nade, x = NADE().to(device), (torch.rand(64, 1, 28, 28, device=device) < 0.5).float()
        compare("NADE, density", 64, 784, lambda: _nade_by_cumulative_sum(nade, x), 1, lambda: nade.log_prob(x))
    return rows


def _seconds(action: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _nade_by_cumulative_sum(nade: NADE, x: Tensor) -> Tensor:
    """log p(x) with the inputs of all hidden units at once, (batch, pixels, hidden): what most public code does."""
    x = x.flatten(1)
    added = x[:, :, None] * nade.weight
    before = added.cumsum(1) - added
    logits = ((nade.hidden_bias + before).sigmoid() * nade.out).sum(2) + nade.bias
    return (x * logits - F.softplus(logits)).sum(1)


def wavenet_waves(steps: int = 3000, seed: int = 0, folder: str | None = None, device: str = "cpu") -> list[Row]:
    """WaveNet on generated sounds, drawn anew for each batch, with their timbres as labels.

    Args:
        folder: where to keep the checkpoints and the weights; None for nowhere.

    Returns:
        On 500 fresh sounds of 1,024 samples, the means in nats per sample: "negative_log_prob" of the frequencies of
        single levels, of a Markov chain of order one, and of WaveNet, with their "parameters"; and the floor, for one
        who knows the clean wave.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    fresh, many = waves(500, 1024, generator), waves(2000, 1024, generator)
    codes, known = mu_law_encode(fresh.amplitudes), mu_law_encode(many.amplitudes)
    single = F.normalize(known.flatten().bincount(minlength=256) + 1.0, p=1, dim=0)
    pairs = (256 * known[:, :-1] + known[:, 1:]).flatten().bincount(minlength=256**2).reshape(256, 256).float()
    # Most pairs never occur: a hundredth of what follows is left to the frequencies of single levels.
    chain = (0.99 * F.normalize(pairs, p=1, dim=1) + 0.01 * single)[codes[:, :-1], codes[:, 1:]]

    def batch(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = waves(n, 768, generator)
        return quantise(drawn.amplitudes), drawn.labels

    torch.manual_seed(seed)
    settings = Settings(
        steps=steps, batch_size=8, learning_rate=4e-3, clip_norm=200.0, ema_decay=0.998, seed=seed, checkpoint_every=500
    )
    place = None if folder is None else Path(folder) / "wavenet"
    model = WaveNet(**WAVENET)
    fit(model, batch, settings, folder=place, device=device, progress=False)
    with torch.no_grad():
        x, labels = quantise(fresh.amplitudes).to(device), fresh.labels.to(device)
        parts = zip(x.split(50), labels.split(50), strict=True)
        nats = -torch.cat([model.log_prob(*part) for part in parts]).mean().item() / x.shape[1]
    if place is not None:
        card = _card({"model": "WaveNet", "data": "waves", "steps": steps, "negative_log_prob": nats})
        save_model(model, place / "model.safetensors", card)
    answers = {
        "single levels": (255, -single[codes].log().mean().item()),
        "Markov chain": (256 * 255, -chain.log().mean().item()),
        "WaveNet": (sum(p.numel() for p in model.parameters()), nats),
        "floor": (0, fresh.floor().mean().item()),
    }
    return [{"model": name, "parameters": n, "negative_log_prob": value} for name, (n, value) in answers.items()]
