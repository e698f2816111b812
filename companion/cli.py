"""The command line: `companion train`, `sample`, `evaluate`, `run` and `verify`."""

import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tyro

if TYPE_CHECKING:
    from torch import nn

    from companion.presets import Preset

app = tyro.extras.SubcommandApp()

# How long a thread waits actively for work. With the default every step slows down many times as soon as another
# process wants the cores; without any active waiting small models take twice as long. torch, imported by the commands,
# reads this once.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
Device = Literal["cpu", "cuda", "auto"]

MODEL, CONFIG, HISTORY, EVALUATION = "model.safetensors", "config.json", "history.json", "evaluation.json"


def _command(function: Callable[..., int]) -> Callable[..., int]:
    """Register a command. What its user got wrong ends in one line and exit code 2, without a traceback."""

    @app.command
    @functools.wraps(function)
    def command(*args, **kwargs) -> int:
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError, FloatingPointError) as error:
            print(f"companion {function.__name__}: {error}", file=sys.stderr)
            return 2

    return command


@_command
def train(
    name: Name,
    preset: Literal["quick", "paper"] = "quick",
    data: Literal["mnist6k", "mnist", "fashion_mnist"] | None = None,
    device: Device = "auto",
    steps: int | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> int:
    """Train a model on images and keep it in a folder.

    Stopped at any time, the same command goes on from the last checkpoint in the folder.

    Args:
        name: the model, such as "vae"; an unknown one prints the list.
        preset: "quick" takes a minute on a CPU; "paper" trains as the paper did, for which a GPU is a good idea.
        data: the images; the preset's own if not given. mnist6k comes with the package, the others are downloaded.
        device: where to train; auto is the GPU if there is one.
        steps: updates of the weights; the preset's own if not given.
        seed: of the first weights, the order of the images and the noise.
        out: the folder; runs/NAME if not given.
    """
    from dataclasses import asdict

    from companion import __version__, presets
    from companion.models.questions import Learner
    from companion.training import save_model

    chosen = presets.find(name, preset)
    folder, images, device = out or Path("runs") / name, data or chosen.data, _device(device)
    settings = asdict(presets.settings(chosen, seed, steps))
    _keep_config(folder, {"name": name, "preset": preset, "data": images, "device": device, "settings": settings})
    print(f"{name}, {preset}: {chosen.about}")
    began = time.perf_counter()
    fitted = presets.train(chosen, images, seed, steps, folder=folder, device=device)
    seconds = time.perf_counter() - began
    model, last = fitted.model.cpu(), fitted.history[-1]
    save_model(model, folder / MODEL, {"name": name, "preset": preset, "data": images, "version": __version__})
    _write_json(folder / HISTORY, fitted.history)
    if chosen.settings.validate_every is None:
        losses = ", ".join(f"{term} {value:.2f}" for term, value in last.items() if term.endswith("loss"))
    else:
        assert isinstance(model, Learner)  # what was validated has a loss of the whole
        best = next(row for row in fitted.history if row["step"] == fitted.best_step)
        unit = model.loss(*(part[:1] for part in presets.examples(presets.splits(images)[1], chosen))).unit
        losses = (
            f"training loss {last['loss']:.2f}, lowest validation loss {best['validation']:.2f} at step "
            f"{fitted.best_step} ({unit})"
        )
    print(f"trained for {last['step']} steps, {seconds:.1f} s in this run: {losses}")
    if chosen.settings.patience is not None:
        print(f"the weights are those of step {fitted.best_step}")
    print(f"in {folder}: {MODEL}, {CONFIG}, {HISTORY}")
    print(f"next: companion sample {folder}" + f"\n      companion evaluate {folder}" * isinstance(model, Learner))
    return 0


@_command
def sample(
    folder: Folder, n: int = 64, out: Path = Path("samples.png"), seed: int = 0, label: int | None = None
) -> int:
    """Draw images from a trained model into a picture.

    Args:
        folder: where `companion train` has put the model.
        n: how many images.
        out: the picture, a PNG file.
        seed: of the draw.
        label: the class of all of them, for a model that is given one; the classes in turn if not given.
    """
    import torch
    from matplotlib.image import imsave

    from companion.models.questions import Sampler
    from companion.validate import require_positive_int

    require_positive_int(n, "n")
    model, config, preset = _trained(folder)
    if not isinstance(model, Sampler):
        raise ValueError(f"{config['name']} cannot draw images: it has no distribution over them")
    columns = math.ceil(math.sqrt(n))
    generator = torch.Generator().manual_seed(seed)
    labels = []
    if preset.labelled:
        labels = [torch.arange(n) % cast(int, model.classes) if label is None else torch.full((n,), label)]
    elif label is not None:
        raise ValueError(f"label must not be given: {config['name']} has no classes")
    images = model.sample(n, generator, *labels)[:, 0]
    rows = math.ceil(n / columns)
    height, width = images.shape[1:]
    blank = images.new_zeros(rows * columns - n, height, width)
    grid = torch.cat([images, blank]).reshape(rows, columns, height, width).transpose(1, 2).flatten(2).flatten(0, 1)
    # Three screen pixels each: 28 are too few to look at.
    grid = grid.repeat_interleave(3, 0).repeat_interleave(3, 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    imsave(out, grid.numpy(), cmap="gray_r", vmin=0, vmax=1, format="png")
    print(f"{n} samples in {out}")
    return 0


@_command
def evaluate(
    folder: Folder,
    importance_samples: int = 1000,
    data: Literal["mnist6k", "mnist", "fashion_mnist"] | None = None,
    device: Device = "auto",
    seed: int = 0,
) -> int:
    """Measure a trained model on test images, beside the floor of independent pixels, or of their histograms.

    Prints a table and writes it to evaluation.json in the folder. Each number is a mean over the test images, with
    its standard error. Models are compared by the last line, which is paired, image by image.

    Args:
        folder: where `companion train` has put the model.
        importance_samples: K of the importance-weighted bound, for models that have one; the time is proportional.
        data: the images; those of the training if not given.
        device: where to compute; auto is the GPU if there is one.
        seed: of the draws from the encoder.
    """
    import torch

    from companion.evaluation import as_bits_per_dim, histogram_bits_per_dim
    from companion.models import IndependentPixels
    from companion.models.questions import Bound, Density, Learner
    from companion.presets import examples, fixed, splits
    from companion.validate import require_positive_int

    require_positive_int(importance_samples, "importance_samples")
    model, config, preset = _trained(folder)
    if not isinstance(model, Density | Bound | Learner):
        raise ValueError(
            f"{config['name']} cannot be measured on test images: it has no likelihood, no bound on one, and no "
            "loss to compare"
        )
    data, device = data or config["data"], _device(device)
    train_images, _, test_images = splits(data)
    model, (x, *labels) = model.to(device), (part.to(device) for part in examples(test_images, preset))

    def measured(answer: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """One number for each image, a hundred images at a time."""
        torch.manual_seed(seed)
        with torch.no_grad():
            parts = zip(*(tensor.split(100) for tensor in inputs), strict=True)
            return torch.cat([answer(*part) for part in parts]).double().cpu()

    values = {}
    if isinstance(model, Density):
        values["-log p(x), exact"] = -measured(model.log_prob, x, *labels)
    elif isinstance(model, Bound):
        values["-ELBO"] = -measured(model.elbo, x, *labels)
    else:
        values["loss"] = measured(lambda *part: model.loss(*part).value, x, *labels)
    unit = "nats" if isinstance(model, Density | Bound) else model.loss(x[:1], *(part[:1] for part in labels)).unit
    if hasattr(model, "importance_bound"):
        bound_of = cast(Callable, model.importance_bound)
        bound = measured(lambda part, *label: bound_of(part, importance_samples, *label), x, *labels)
        values[f"-importance-weighted bound, K = {importance_samples}"] = -bound
    best = list(values)[-1]
    if unit == "nats" and preset.binarised != "no":
        floor = IndependentPixels(x.shape[1:]).fit(fixed(train_images, preset.binarised)).to(device)
        values["independent pixels"] = -measured(floor.log_prob, x)
        values[f"({best}) - (independent pixels), paired"] = values[best] - values["independent pixels"]
    elif unit == "nats":
        values, unit = {name: as_bits_per_dim(nats, x.shape[1:]) for name, nats in values.items()}, "bits/dim"
        values["independent histograms"] = histogram_bits_per_dim(train_images.pixels, test_images.pixels).double()
        values[f"({best}) - (independent histograms), paired"] = values[best] - values["independent histograms"]
    rows = [
        {"quantity": name, "mean": v.mean().item(), "standard_error": (v.std() / len(v) ** 0.5).item(), "unit": unit}
        for name, v in values.items()
    ]
    binarised = "grey" if preset.binarised == "no" else "binarised by seed 0"
    print(f"{config['name']}, {config['preset']}: {len(x)} test images of {data}, {binarised}\n")
    width = max(len(row["quantity"]) for row in rows)
    print(f"{'':<{width}}  {'mean':>8}  {'± se':>6}  unit")
    for row in rows:
        print(f"{row['quantity']:<{width}}  {row['mean']:8.3f}  {row['standard_error']:6.3f}  {row['unit']}")
    _write_json(
        folder / EVALUATION,
        {"data": data, "images": len(x), "binarised": preset.binarised, "seed": seed, "device": device, "rows": rows},
    )
    print(f"\nwritten to {folder / EVALUATION}")
    return 0


@_command
def run(
    name: Name,
    seeds: tuple[int, ...] | None = None,
    steps: int | None = None,
    device: Device = "cpu",
    folder: Path | None = None,
    out: Path | None = None,
    preset: Literal["quick", "paper"] | None = None,
    models: tuple[str, ...] | None = None,
) -> int:
    """Run an experiment whose results a chapter prints. It can take long.

    The scoreboard trains and measures every family, and writes a file for each of them; stopped at any time, the same
    command goes on with those that are missing.

    Args:
        name: the experiment, such as "vae_beta", or "scoreboard"; an unknown one prints the list.
        seeds: train once for each; the experiment's own if not given.
        steps: of each training; the experiment's own if not given.
        device: where to train; auto is the GPU if there is one.
        folder: of the longest ones, where to keep weights, and checkpoints from which the same command goes on.
        out: the folder for NAME.json; the package's own results if not given.
        preset: of the scoreboard: "quick" is on mnist6k, "paper" on all of MNIST; quick if not given.
        models: only these, for the scoreboard and for experiments that compare models; all of them if not given.
    """
    from companion import experiments

    given: dict[str, Any] = {"seeds": seeds, "steps": steps, "device": _device(device)}
    given |= {"folder": folder and str(folder), "preset": preset, "models": models}
    arguments = {key: value for key, value in given.items() if value is not None}
    if name == "scoreboard":
        from companion.experiments.scoreboard import FOLDER, scoreboard

        out = FOLDER if out is None else out / name
        print(f"{len(scoreboard(**arguments, out=out))} files are written to {out}")
        return 0
    print(f"{experiments.run(name, out or experiments.RESULTS, **arguments)} is written")
    return 0


@app.command
def verify(
    chapter: str | None = None,
    label: str | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> int:
    """Run the checks behind the book's equations and print a table of what they found.

    The exit code is 1 when an equation does not close or a mutant survives, and 2 for an unknown name.

    Args:
        chapter: only the checks of this chapter, such as "elbo".
        label: only the check of this equation, such as "elbo-gap-kl".
        json_file: also write the results to this file.
    """
    import torch

    from companion import derivations

    # Hundreds of small computations: threads would wait on each other for longer than they work.
    torch.set_num_threads(1)

    try:
        checks = derivations.select(chapter, label)
    except ValueError as error:
        print(f"companion verify: {error}", file=sys.stderr)
        return 2
    start = time.perf_counter()
    width = max(len(check.label) for check in checks)
    print(f"{'equation':<{width}}  {'kind':<10}  {'route':<11}  {'error':>8}  {'allowed':>8}  mutants rejected")
    results = []
    for check in checks:
        result = check.run()
        results.append(result)
        rejected = sum(m.rejected for m in result.mutants)
        print(
            f"{result.label:<{width}}  {result.kind:<10}  {result.route:<11}  {result.error:8.1e}  "
            f"{result.tolerance:8.1e}  {rejected} of {len(result.mutants)}{'' if result.ok else '  FAILED'}",
            flush=True,
        )
    failed = [result for result in results if not result.ok]
    for result in failed:
        print(f"\n{result!r}")
    mutants = [m for result in results for m in result.mutants]
    print(
        f"\n{len(results) - len(failed)} of {len(results)} equations checked, "
        f"{sum(m.rejected for m in mutants)} of {len(mutants)} mutants rejected, "
        f"{time.perf_counter() - start:.1f} s"
    )
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps([r.to_dict() for r in results], indent=1, ensure_ascii=False) + "\n")
    return 1 if failed else 0


def _device(device: Device) -> Literal["cpu", "cuda"]:
    import torch

    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _keep_config(folder: Path, config: dict) -> None:
    """Write the configuration into the folder. Raises ValueError if another one is there."""
    path, config = folder / CONFIG, json.loads(json.dumps(config))
    if path.is_file():
        there = json.loads(path.read_text())
        if there != config:
            differ = ", ".join(key for key in config if there.get(key) != config[key])
            raise ValueError(f"{folder} holds a model of another {differ}; give another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(path, config)


def _trained(folder: Path) -> "tuple[nn.Module, dict, Preset]":
    """The model in a folder, on the CPU, with its configuration and preset."""
    from companion.presets import find
    from companion.training import load_model

    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"there is no {CONFIG} in {folder}; `companion train NAME --out {folder}` writes it")
    config = json.loads((folder / CONFIG).read_text())
    preset = find(config["name"], config["preset"])
    model = preset.make()
    load_model(model, folder / MODEL)
    return model.eval(), config, preset


def main() -> None:
    sys.exit(app.cli(prog="companion", description="Generative Models, Verified: the book's command line."))


if __name__ == "__main__":
    main()
