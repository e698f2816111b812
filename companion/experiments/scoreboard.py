"""Every family on the same data, measured in the same way: `companion run scoreboard`.

Each model has a file of its own, `companion/results/scoreboard/NAME.json`, and its samples beside it, as NAME.png;
those of the paper preset are NAME-paper. A run that was stopped goes on with the models whose files are missing.
"""

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor, nn

from companion import zoo
from companion.data import Images, binarize
from companion.evaluation import (
    bits_per_dim,
    density_coverage,
    extract,
    frechet_distance,
    inception_score,
    precision_recall,
)
from companion.experiments.record import RESULTS, commit, record, write
from companion.experiments.vae import Row
from companion.models import IndependentPixels
from companion.models.questions import Bound, Density, Sampler
from companion.models.vae import Autoencoder
from companion.nets.digit_classifier import DigitClassifier
from companion.presets import PRESETS, Preset, examples, find, fixed, settings, splits, train
from companion.training import load_model, save_model

FOLDER = RESULTS / "scoreboard"
NET = "digit classifier, 64 features"

# Test examples whose likelihood is measured, and samples drawn: a thousand steps of diffusion for each take a while.
IMAGES, SAMPLES = 1000, 500
# Draws of the importance-weighted bound, for networks that are small enough for so many.
DRAWS = 500
# Samples at a time: what the largest network keeps of more would not fit a small machine.
BATCH = 125


@dataclass(frozen=True)
class Entry:
    """A model of the scoreboard.

    Attributes:
        title: its name in the table.
        calls: from the model, how often its network is called for one sample, or, where a sampler keeps what does not
            change, for how many pixels.
        draws: of the importance-weighted bound, where it is measured.
        zoo: whether the package has weights that stand for the paper preset: the same model, trained on all of MNIST
            for as long as a CPU allows.
    """

    title: str
    calls: Callable[[Any], int]
    draws: int | None = None
    zoo: bool = False


def _once(model: nn.Module) -> int:
    return 1


def _each_pixel(model: nn.Module) -> int:
    return 784


# The first two learn nothing: one is a floor, the other draws the training digits themselves.
ENTRIES: dict[str, Entry] = {
    "independent_pixels": Entry("independent pixels", _once),
    "look_up": Entry("training digits", _once),
    "autoencoder": Entry("autoencoder, Gaussian codes", _once),
    "vae": Entry("VAE", _once, draws=DRAWS),
    "hvae": Entry("hierarchical VAE", _once, draws=DRAWS),
    "gan": Entry("GAN", _once),
    "fvsbn": Entry("FVSBN", _each_pixel),
    "nade": Entry("NADE", _each_pixel),
    "made": Entry("MADE", _each_pixel),
    "pixelrnn": Entry("PixelRNN", _each_pixel),
    "pixelcnn": Entry("PixelCNN", _each_pixel),
    "causal_transformer": Entry("causal transformer", _each_pixel),
    "nice": Entry("NICE", _once),
    "realnvp": Entry("RealNVP", _once),
    "glow": Entry("Glow", _once, zoo=True),
    "ebm": Entry("EBM", lambda model: model.steps),
    "score_model": Entry("score model", lambda model: len(model.sigmas) * model.steps + model.denoise, zoo=True),
    "ddpm": Entry("DDPM", lambda model: model.steps, zoo=True),
    "vdm": Entry("VDM", lambda model: 1000),
    "latent_diffusion": Entry("latent diffusion", lambda model: model.diffusion.steps + 1),
    "consistency": Entry("consistency model", _once),
}


def scoreboard(
    preset: Literal["quick", "paper"] = "quick",
    models: Sequence[str] = tuple(ENTRIES),
    seed: int = 0,
    steps: int | None = None,
    folder: str | None = None,
    device: str = "cpu",
    out: Path = FOLDER,
) -> list[Path]:
    """Train and measure every model whose file is not there yet, each in a process of its own.

    Args:
        preset: "quick" is on mnist6k; "paper" is on all of MNIST, from the weights of the package where it has them,
            else trained as the paper did, which takes days without a GPU.
        steps: of each training; the preset's own if None.
        folder: where to keep weights, and checkpoints from which a training that was stopped goes on.
        out: where the files are.

    Returns the files that were written. Raises ValueError for an unknown model.
    """
    for name in models:
        if name not in ENTRIES:
            raise ValueError(f"models must be among {', '.join(ENTRIES)}, got {name!r}")
    written = []
    for name in models:
        path = out / f"{_stem(name, preset)}.json"
        if path.is_file():
            continue
        place = None if folder is None else Path(folder) / preset / name
        # So that the peak of the memory is this model's. By spawning, as threads and CUDA do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            began = time.perf_counter()
            row, samples = pool.submit(measure, name, preset, seed, steps, place, device).result()
        config: dict[str, Any] = {"preset": preset, "seed": seed, "steps": steps, "device": device}
        config["settings"] = _settings(name, preset, seed, steps)
        result = record(name, config, time.perf_counter() - began, [row]) | {"commit": commit()}
        written.append(write(path, result))
        picture(samples).save(path.with_suffix(".png"))
        print(f"{path.name}: {row}", file=sys.stderr, flush=True)
    return written


def results(preset: str = "quick") -> dict[str, dict]:
    """The files of one preset, by name, in the order of `ENTRIES`. Raises FileNotFoundError where there is none."""
    paths = {name: FOLDER / f"{_stem(name, preset)}.json" for name in ENTRIES}
    found = {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}
    if not found:
        raise FileNotFoundError(f"no result is in {FOLDER}; `companion run scoreboard --preset {preset}` writes them")
    return found


def samples(name: str, preset: str = "quick") -> Tensor:
    """The 20 samples that a result was written with, (20, 1, 28, 28), intensities. FileNotFoundError without one."""
    with Image.open(FOLDER / f"{_stem(name, preset)}.png") as image:
        ink = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return 1 - ink.reshape(2, 28, 10, 28).transpose(1, 2).reshape(20, 1, 28, 28) / 255


QUALITY = ("model", "nats", "bits/dim", "FID", "grey", "IS", "precision", "recall")
COST = ("model", "calls", "samples/s", "training, s", "weights", "memory, MiB")


def table(preset: str = "quick") -> str:
    """The files of one preset as two Markdown tables, of quality and of cost: one would be wider than a page."""
    quality, cost = [], []
    for result in results(preset).values():
        row = result["rows"][0]
        bound = "≤\N{NO-BREAK SPACE}" if row["likelihood"] == "bound" else ""
        lost = f", {row['lost']} of {row['samples'] + row['lost']} samples lost" if row["lost"] else ""
        quality.append(
            [
                row["title"] + lost,
                f"{bound}{row['nats']:.1f}" if row["data"] == "binary" and row["nats"] else "",
                f"{bound}{row['bits_per_dim']:.3f}" if row["data"] == "grey" and row["nats"] else "",
                f"{row['fid']:.1f}",
                "" if row["fid_grey"] is None else f"{row['fid_grey']:.1f}",
                f"{row['inception_score']:.2f}",
                f"{row['precision']:.2f}",
                f"{row['recall']:.2f}",
            ]
        )
        cost.append(
            [
                row["title"],
                f"{row['evaluations']:,}",
                _speed(row),
                "" if row["training_seconds"] is None else f"{row['training_seconds']:.0f}",
                f"{row['parameters']:,}",
                f"{row['peak_memory']:,.0f}",
            ]
        )
    return f"{_markdown(QUALITY, quality)}\n\n{_markdown(COST, cost)}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"| --- |{' --: |' * (len(head) - 1)}", *lines[1:]])


# The families of the first chapter's map: a model for each, and what its training minimises.
FAMILIES = {
    "autoencoder": ("vae", "minus a bound on log p"),
    "hierarchy of latents": ("hvae", "minus a bound on log p"),
    "adversarial network": ("gan", "a game between two networks"),
    "autoregressive": ("pixelcnn", "-log p"),
    "flow": ("glow", "-log p"),
    "energy-based": ("ebm", "contrast with chains"),
    "score-based": ("score_model", "the score's squared error"),
    "diffusion": ("ddpm", "the noise's squared error"),
    "diffusion, its bound": ("vdm", "minus a bound on log p"),
    "diffusion of codes": ("latent_diffusion", "both, one after the other"),
    "consistency": ("consistency", "distance between two noise levels"),
}


def taxonomy() -> str:
    """One model of each family with what was measured of it by the quick preset, as a Markdown table."""
    head = ("family", "its model here", "density", "-log p", "calls", "FID", "training minimises")
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    found = results("quick")
    for family, (name, objective) in FAMILIES.items():
        (row,) = found[name]["rows"]
        value = f"{row['nats']:.1f} nats" if row["data"] == "binary" else f"{row['bits_per_dim'] or 0:.2f} bits/dim"
        cells = [
            family,
            row["title"],
            row["likelihood"],
            "" if row["nats"] is None else value,
            f"{row['evaluations']:,}",
            f"{row['fid']:.1f}",
            objective,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Published:
    """A paper's number on digits, the result of ours that is nearest to it, and why they differ."""

    model: str
    value: float
    paper: str
    ours: tuple[str, str]
    differs: str


_STATIC = "theirs on one binarisation that others used too, ours on our own draw"
PUBLISHED = (
    Published("FVSBN", 97.45, "Larochelle and Murray (2011)", ("autoregressive_mnist", "FVSBN"), _STATIC),
    Published(
        "NADE", 88.33, "Germain et al. (2015)", ("autoregressive_mnist", "NADE"), f"{_STATIC}; ours 8,000 updates"
    ),
    Published(
        "MADE",
        86.64,
        "Germain et al. (2015)",
        ("autoregressive_mnist", "MADE"),
        f"{_STATIC}; theirs two layers of 8,000 and 32 masks, ours one layer of 2,000 and one mask",
    ),
    Published(
        "PixelCNN",
        81.30,
        "van den Oord et al. (2016)",
        ("autoregressive_mnist", "PixelCNN"),
        f"{_STATIC}; ours 9,000 updates of a network with 16 features",
    ),
    Published(
        "PixelRNN",
        79.20,
        "van den Oord et al. (2016)",
        ("autoregressive_digits", "Diagonal BiLSTM"),
        f"{_STATIC}; theirs seven layers and 60,000 digits, ours two layers and 4,000",
    ),
    Published(
        "VAE",
        86.76,
        "Burda et al. (2016)",
        ("scoreboard", "vae"),
        "theirs two hidden layers, 50 latents, 60,000 digits and 3,280 epochs, ours one, 20, 4,000 and early stopping",
    ),
    Published(
        "hierarchical VAE",
        81.74,
        "Sønderby et al. (2016)",
        ("scoreboard", "hvae"),
        "theirs five levels, 60,000 digits and 2,000 epochs, ours two, 4,000 and early stopping",
    ),
    Published(
        "RealNVP",
        1.06,
        "Grathwohl et al. (2019)",
        ("flows_mnist", "RealNVP"),
        "theirs a larger network; ours 5,000 updates",
    ),
    Published(
        "Glow", 1.05, "Grathwohl et al. (2019)", ("flows_mnist", "Glow"), "theirs a larger network; ours 11,000 updates"
    ),
)


def beside_papers() -> str:
    """What papers report on digits, and our nearest number, as a Markdown table. No paper has digits for the others."""
    lines = ["| model | paper | ours | unit | digits | why they differ |", "| --- | --: | --: | --- | --- | --- |"]
    for known in PUBLISHED:
        name, model = known.ours
        if name == "scoreboard":
            (row,) = results("quick")[model]["rows"]
            ours, unit, data = row["nats"], "nats, bound", row["train"]
        else:
            found = json.loads((RESULTS / f"{name}.json").read_text())
            row = next(row for row in found["rows"] if row["model"] == model)
            bits = "bits_per_dim" in row
            ours, unit = (row["bits_per_dim"], "bits/dim, bound") if bits else (row["negative_log_prob"], "nats, exact")
            data = "mnist6k" if name.endswith("_digits") else "mnist"
        digits = 2 if unit.startswith("nats") else 3
        paper = f"{known.value:.2f}, {known.paper}"
        lines.append(f"| {known.model} | {paper} | {ours:.{digits}f} | {unit} | {data} | {known.differs} |")
    return "\n".join(lines)


def _speed(row: dict) -> str:
    return f"{row['samples_per_second']:,.3g}" if row["samples_per_second"] < 100 else "> 100"


def _stem(name: str, preset: str) -> str:
    return name if preset == "quick" else f"{name}-{preset}"


def measure(
    name: str, preset: str, seed: int, steps: int | None, folder: Path | None, device: str
) -> tuple[Row, Tensor]:
    """One model's row, see `scoreboard`, and 20 of its samples.

    Returns:
        "parameters", "training_steps" and "training_seconds"; "likelihood", which is "exact", "bound" or "none",
        "estimator", "nats", their standard error "nats_error", and "bits_per_dim", on so many "likelihood_images";
        of "samples", those "lost" aside that were not finite, all metrics of features against all test digits: "fid",
        "inception_score", "precision", "recall", "density", "coverage", where grey samples are binarised as the data
        are, and "fid_grey", where they are not;
        "evaluations" of the network for a sample, "samples_per_second", and "peak_memory" in MiB, of the process with
        all that it has loaded, or of the GPU.
    """
    chosen = _preset(name, preset)
    images, _, test = splits(chosen.data)
    model, training = _model(name, chosen, preset, seed, steps, folder, device)
    row: Row = {"model": name, "title": ENTRIES[name].title, "train": images.name}
    row["data"] = "grey" if chosen.binarised == "no" else "binary"
    row |= {"parameters": sum(p.numel() for p in model.parameters())} | training
    row |= _likelihood(model, chosen, test, ENTRIES[name].draws, seed, device)
    assert isinstance(model, Sampler)  # as all that ENTRIES names
    began = time.perf_counter()
    x, lost = _draw(model, torch.Generator(device).manual_seed(seed))
    seconds = time.perf_counter() - began
    network = cast(DigitClassifier, zoo.pretrained("digit_classifier"))
    generator = torch.Generator().manual_seed(seed)
    black_and_white = binarize(x, generator)  # which leaves 0 and 1 as they are
    fake, real = (extract(network.features, y, net=NET) for y in (black_and_white, test.binarized(seed=0)))
    row["fid"], row["fid_grey"] = frechet_distance(fake, real).value, None
    if row["data"] == "grey":
        grey, grey_real = (extract(network.features, y, net=NET) for y in (x, test.intensities()))
        row["fid_grey"] = frechet_distance(grey, grey_real).value
    row["inception_score"] = inception_score(extract(network, black_and_white, net=NET), splits=1).value
    near, spread = precision_recall(fake, real), density_coverage(fake, real)
    row |= {"precision": near.precision, "recall": near.recall, "density": spread.density, "coverage": spread.coverage}
    row |= {"samples": len(x), "lost": lost, "reference": f"{test.name}, test, {len(test)} digits", "features": NET}
    row |= {"evaluations": ENTRIES[name].calls(model), "samples_per_second": round(len(x) / seconds, 3)}
    row["peak_memory"] = _peak_memory(device)
    return row, x[:20]


class GaussianCodes(nn.Module):
    """An autoencoder made to draw: its decoder, at codes from the Gaussian with the training codes' two moments."""

    mean: Tensor
    root: Tensor

    def __init__(self, autoencoder: Autoencoder, x: Tensor):
        super().__init__()
        self.autoencoder = autoencoder
        with torch.no_grad():
            codes = autoencoder.code(x)
        self.register_buffer("mean", codes.mean(0))
        self.register_buffer("root", torch.linalg.cholesky(codes.T.cov()))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(n, len(self.mean), generator=generator, device=self.mean.device)
        return self.autoencoder.reconstruct(self.mean + noise @ self.root.T)


class LookUp(nn.Module):
    """Draws training examples, and nothing else."""

    x: Tensor

    def __init__(self, x: Tensor):
        super().__init__()
        self.register_buffer("x", x)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.x[torch.randint(len(self.x), (n,), generator=generator, device=self.x.device)]


def _preset(name: str, preset: str) -> Preset:
    """The preset of this name; what learns nothing takes its data from the first of the models."""
    return find(name if name in PRESETS else "nade", preset)


def _settings(name: str, preset: str, seed: int, steps: int | None) -> dict | None:
    """How a model was trained: by its preset, or, where the weights are the package's, as their card says."""
    if name not in PRESETS:
        return None
    if preset == "paper" and ENTRIES[name].zoo:
        return zoo.card(name)
    return asdict(settings(find(name, preset), seed, steps))


def _model(
    name: str, chosen: Preset, preset: str, seed: int, steps: int | None, folder: Path | None, device: str
) -> tuple[nn.Module, Row]:
    """A trained model, from the folder where one is kept, with the steps and the seconds of its training; of one that
    went on from a checkpoint, those of the last part alone.

    Raises ValueError where the folder keeps the weights of another training.
    """
    images = splits(chosen.data)[0]
    x = fixed(images, chosen.binarised)
    if name == "look_up":
        return LookUp(x).to(device), {"training_steps": 0, "training_seconds": 0.0}
    if name == "independent_pixels":
        return IndependentPixels(x.shape[1:]).fit(x).to(device), {"training_steps": 0, "training_seconds": 0.0}
    if preset == "paper" and ENTRIES[name].zoo:
        card = zoo.card(name)
        seconds = float(card["seconds"]) if "seconds" in card else None
        return zoo.pretrained(name).to(device), {"training_steps": int(card["steps"]), "training_seconds": seconds}
    path = None if folder is None else folder / "model.safetensors"
    asked = {key: str(value) for key, value in asdict(settings(chosen, seed, steps)).items()}
    if path is not None and path.is_file():
        model = chosen.make()
        known = load_model(model, path)
        if differ := [key for key, value in asked.items() if known.get(key) != value]:
            raise ValueError(f"{path} holds a model of another {', '.join(differ)}; give another folder")
    else:
        began = time.perf_counter()
        done = train(chosen, seed=seed, steps=steps, folder=folder, device=device, progress=False)
        model, took = done.model, time.perf_counter() - began
        known = asked | {"training_steps": str(done.history[-1]["step"]), "training_seconds": f"{took:.1f}"}
        if path is not None:
            save_model(model, path, known)
    model = model.to(device).eval()
    if isinstance(model, Autoencoder):
        model = GaussianCodes(model, x.to(device))
    return model, {key: type_(known[key]) for key, type_ in (("training_steps", int), ("training_seconds", float))}


def _likelihood(model: nn.Module, chosen: Preset, test: Images, draws: int | None, seed: int, device: str) -> Row:
    if not isinstance(model, Density | Bound):
        empty = dict.fromkeys(("estimator", "nats", "nats_error", "bits_per_dim", "likelihood_images"))
        return {"likelihood": "none", **empty}
    some = Images(test.name, test.split, test.pixels[:IMAGES], test.labels[:IMAGES])
    x, *label = examples(some, replace(chosen, labelled=getattr(model, "classes", None) is not None))
    found = bits_per_dim(model, x.to(device), *(part.to(device) for part in label), importance_samples=draws, seed=seed)
    values = {"nats": found.nats, "nats_error": found.standard_error, "bits_per_dim": found.bits_per_dim}
    return {"likelihood": found.kind, "estimator": found.estimator, **values, "likelihood_images": found.n}


def _draw(model: Sampler, generator: torch.Generator) -> tuple[Tensor, int]:
    """Samples as images, and how many of those drawn were lost, not finite, and are replaced by others.

    What is outside [0, 1] is shown as black or white, as by a screen.
    """
    classes = getattr(model, "classes", None)
    labels = {} if classes is None else {"label": torch.arange(BATCH, device=generator.device) % classes}
    parts: list[Tensor] = []
    drawn = 0
    while (found := sum(map(len, parts))) < SAMPLES:
        if drawn >= 2 * SAMPLES:
            raise FloatingPointError(f"only {found} of {drawn} samples are finite")
        x = model.sample(BATCH, generator, **labels).cpu()
        parts.append(x[torch.isfinite(x).flatten(1).all(1)].clamp(0, 1))
        drawn += BATCH
    return torch.cat(parts)[:SAMPLES], drawn - found


def _peak_memory(device: str) -> float:
    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    # Linux counts in KiB, macOS in bytes.
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), 1)


def picture(x: Tensor) -> Image.Image:
    """Two rows of ten images, black on white."""
    ink = (255 * (1 - x)).round().to(torch.uint8)
    return Image.fromarray(ink.reshape(2, 10, 28, 28).transpose(1, 2).reshape(56, 280).numpy())
