"""The one training loop: AdamW on mini-batches, and checkpoints from which a run goes on as if never stopped.

    fit(model, x, Settings(steps=2000, validate_every=100, patience=5), validation=x_validation)

A model has one loss, or several players with a loss each (`players()`: a generator and its critic, say); the
loop knows nothing else about it. Hugging Face Accelerate stands underneath: the same call trains on a CPU, on a
GPU, in bf16, and in several processes (`torchrun --nproc_per_node 2 script.py`).
"""

import json
import math
import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from companion.models.questions import Game, Learner, Player
from companion.validate import require_positive_int

# Examples x, or x and their labels.
Examples = Tensor | tuple[Tensor, Tensor]
Batches = Callable[[int, torch.Generator], Examples]

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Settings:
    """How to train. Raises ValueError for a value that means nothing.

    Args:
        steps: rounds of updates, in each of which every player has its own number of them, mostly one.
        batch_size: examples in a step, over all processes together.
        learning_rate: of AdamW.
        weight_decay: of AdamW; with 0 it is Adam.
        betas: of AdamW, the decay rates of its means of the gradient and of the squared gradient, each in [0, 1).
        clip_norm: the largest Euclidean norm of a player's gradient; a longer one is scaled down to it.
        ema_decay: average the weights over the steps, step s of t with a weight proportional to decay^(t-s);
            validation and the trained model then have the averaged weights.
        mixed_precision: "bf16" computes the training loss under bf16 autocast; weights and validation stay as they are.
        seed: of the order of the data and of the noise in the model.
        log_every: steps between two rows of the history; the last step always has one.
        validate_every: steps between two validations; the last step always has one.
        patience: stop after this many validations in a row without a new best, and give the best weights back.
        checkpoint_every: steps between two checkpoints; the last step always has one.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = None
    ema_decay: float | None = None
    mixed_precision: str = "no"
    seed: int = 0
    log_every: int = 50
    validate_every: int | None = None
    patience: int | None = None
    checkpoint_every: int | None = None

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every"):
            require_positive_int(getattr(self, name), name)
        for name in ("validate_every", "patience", "checkpoint_every"):
            if getattr(self, name) is not None:
                require_positive_int(getattr(self, name), name)
        for name, low, high, optional in (
            ("learning_rate", "above 0", math.inf, False),
            ("weight_decay", "at least 0", math.inf, False),
            ("clip_norm", "above 0", math.inf, True),
            ("ema_decay", "above 0", 1.0, True),
        ):
            value = getattr(self, name)
            if optional and value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and (value > 0 or (value == 0 and low == "at least 0")) and value < high):
                upper = "finite" if high == math.inf else f"below {high:g}"
                raise ValueError(f"{name} must be {low} and {upper}, got {value!r}")
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        if not (
            pair and all(isinstance(b, int | float) and not isinstance(b, bool) and 0 <= b < 1 for b in self.betas)
        ):
            raise ValueError(f"betas must be a tuple of two numbers, each at least 0 and below 1, got {self.betas!r}")
        if self.mixed_precision not in ("no", "bf16"):
            raise ValueError(f"mixed_precision must be 'no' or 'bf16', got {self.mixed_precision!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {self.seed!r}")
        if self.patience is not None and self.validate_every is None:
            raise ValueError(f"patience is {self.patience} validations, so validate_every must be given")


@dataclass(frozen=True)
class Fit:
    """What training gave.

    Attributes:
        model: the model that was given, trained in place, in evaluation mode, on the device of the training.
        history: one row for each logged step: "step", "loss", the parts of the loss, "gradient norm" and, where it
            was measured, "validation". The terms of a batch are means over its examples; those of several
            players have the player's name before them, and are of its last update in the step.
        best_step: the step with the lowest validation loss, None if none was measured.
    """

    model: nn.Module
    history: list[dict[str, float]]
    best_step: int | None


def fit(
    model: nn.Module,
    data: Examples | Batches,
    settings: Settings,
    *,
    validation: Examples | None = None,
    folder: Path | str | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Fit:
    """Train `model` in place.

    The result depends on the model, the data and the settings alone: every generator is seeded at the start,
    and torch's global ones are put back at the end.

    Args:
        model: has `loss(x) -> Loss`, or `players() -> {name: Player}`, each with an optimiser of its own. In a step
            one player after the other makes its `updates`, the first of them on the step's batch, which is the same
            for all players, and each further one on a fresh batch.
        data: (n, *event_shape), of which each batch is an independent uniform draw with replacement; or a pair of
            such examples and their labels (n, ...), for a model with `loss(x, label)`; or `batch(n, generator)`,
            which draws n examples, or such a pair, with that generator, a CPU one.
        validation: as data, but no function, whose mean loss is measured with the same noise each time. It is
            measured in full precision, with the averaged weights where there are any.
        folder: where to keep a checkpoint. If there is one, training goes on from it, bit for bit as if it had
            never stopped; it must come from the same settings, model and device, and the data must be the same.
        device: "cpu" or "cuda"; where the model is, if None.
        progress: show a bar with the current loss on stderr.

    Raises:
        FloatingPointError: a term of a loss, a gradient or a validation is not finite. The player's weights
            are those from before the step.
        TypeError, ValueError: an argument that does not fit, or a checkpoint that is damaged or of another run.

    >>> import torch
    >>> from companion.models import IndependentPixels
    >>> from companion.training import Settings, fit
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    >>> model = IndependentPixels((2,))
    >>> found = fit(model, x, Settings(steps=50, batch_size=4, learning_rate=0.1, seed=0), progress=False)
    >>> found.model is model, found.history[-1]["loss"] < 2 * 0.6931
    (True, True)
    """
    accelerator = _accelerator(model, settings, device)
    _require(model, data, settings, validation, accelerator.num_processes)
    with torch.random.fork_rng(_cuda(accelerator.device)):
        run = _Run(model.to(accelerator.device), data, settings, validation, accelerator)
        path = None if folder is None else Path(folder) / CHECKPOINT
        if path is not None and path.exists():
            run.restore(path)
        run.train(path, progress)
    return Fit(model, run.history, run.best_step)


def save_model(model: nn.Module, path: Path | str, metadata: dict[str, str], half: bool = False) -> None:
    """Write the weights as a safetensors file, whole or not at all, with `metadata` in its header; with `half` those of
    32 bits are rounded to bfloat16, for a file of half the size."""
    tensors = dict(model.state_dict())
    if half:
        tensors = {name: t.bfloat16() if t.dtype == torch.float32 else t for name, t in tensors.items()}
    _write(Path(path), tensors, metadata)


def load_model(model: nn.Module, path: Path | str) -> dict[str, str]:
    """Put the weights of a safetensors file into `model`, and return the file's metadata. Those that were written as
    bfloat16 become float32, which holds them exactly.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or its weights are not those of such a model.
    """
    tensors, metadata = _read(Path(path))
    wide = {name for name, t in model.state_dict().items() if t.dtype == torch.float32}
    tensors = {name: t.float() if t.dtype == torch.bfloat16 and name in wide else t for name, t in tensors.items()}
    _load_weights(model, tensors, Path(path))
    return metadata


class _Run:
    """The state of a training, and the steps that change it."""

    def __init__(self, model: nn.Module, data: Examples | Batches, settings: Settings, validation, accelerator):
        self.model, self.settings, self.accelerator = model, settings, accelerator
        self.device, self.share = accelerator.device, settings.batch_size // accelerator.num_processes
        self.data = data if callable(data) else _tensors(data, self.device)
        self.validation = None if validation is None else _tensors(validation, self.device)
        if accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            # Each process drew a start of its own.
            for tensor in model.state_dict().values():
                tensor.copy_(broadcast(tensor))
        self.players: dict[str, Player] = {}
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        for name, player in _players(model).items():
            trained = [parameter for parameter in player.parameters if parameter.requires_grad]
            if not trained:
                raise ValueError(f"the player {name!r} has no parameters to train")
            require_positive_int(player.updates, f"the player {name!r}: updates")
            self.players[name] = player._replace(parameters=trained)
            # torch takes no integers here, as in (0, 0.9).
            betas = float(settings.betas[0]), float(settings.betas[1])
            self.optimisers[name] = torch.optim.AdamW(
                trained, settings.learning_rate, betas, weight_decay=settings.weight_decay, fused=True
            )
        self.average: dict[str, Tensor] | None = None
        if settings.ema_decay is not None:
            self.average = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        # Streams of their own: one seed for all would give the data and the model's noise the same numbers.
        self.order = torch.Generator().manual_seed(_stream(settings.seed, 0))
        torch.manual_seed(_stream(settings.seed, 2 + accelerator.process_index))
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best = math.inf
        self.best_step: int | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.waited = 0

    @property
    def finished(self) -> bool:
        return self.step == self.settings.steps or self.waited == self.settings.patience

    def train(self, path: Path | None, progress: bool) -> None:
        from tqdm import tqdm

        settings, main = self.settings, self.accelerator.is_main_process
        self.model.train()
        with tqdm(total=settings.steps, initial=self.step, disable=not (progress and main)) as bar:
            while not self.finished:
                row = self._advance()
                bar.update()
                bar.set_postfix_str(", ".join(f"{k} {row[k]:.4g}" for k in row if k.endswith("loss")), refresh=False)
                due = settings.checkpoint_every is not None and self.step % settings.checkpoint_every == 0
                if path is not None and (due or self.finished):
                    self._save(path)
        if settings.patience is not None:
            self.model.load_state_dict(self.best_weights)
        elif self.average is not None:
            self._swap()
        self.model.eval()

    def _advance(self) -> dict[str, float]:
        """The updates of every player, and what is due after them. Returns the step's row, logged or not."""
        settings = self.settings
        batch = self._batch()
        row: dict[str, float] = {"step": self.step + 1}
        for name, player in self.players.items():
            for i in range(player.updates):
                last_update = self._update(name, batch if i == 0 else self._batch())
            row |= last_update
        self.step += 1
        if self.average is not None and settings.ema_decay is not None:
            # Weights decay^(t-s) / Σ_s decay^(t-s) over the steps: the untrained start has no part in it.
            weight = (1 - settings.ema_decay) / (1 - settings.ema_decay**self.step)
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    if name in self.average:
                        self.average[name].lerp_(parameter, weight)
        last = self.step == settings.steps
        validate = settings.validate_every is not None and (last or self.step % settings.validate_every == 0)
        if validate:
            row["validation"] = self._validate()
        if validate or last or self.step % settings.log_every == 0:
            self.history.append(row)
        return row

    def _batch(self) -> tuple[Tensor, ...]:
        """This process's share of the global batch, which all draw alike: x, and the labels if there are any."""
        n, start = self.settings.batch_size, self.accelerator.process_index * self.share
        mine = slice(start, start + self.share)
        if not callable(self.data):
            drawn = torch.randint(len(self.data[0]), (n,), generator=self.order)[mine].to(self.device)
            return tuple(tensor[drawn] for tensor in self.data)
        batch = self.data(n, self.order)
        found = [f"shape {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__ for t in _parts(batch)]
        if not all(isinstance(t, Tensor) and t.ndim and len(t) == n for t in _parts(batch)) or len(found) > 2:
            raise ValueError(
                f"data({n}, generator) must return a tensor of {n} examples, or a pair of such tensors, "
                f"got {', '.join(found)}"
            )
        return tuple(tensor[mine] for tensor in _tensors(batch, self.device))

    def _update(self, name: str, batch: tuple[Tensor, ...]) -> dict[str, float]:
        """One optimiser step of a player. Returns its terms for the history."""
        (parameters, loss, _), optimiser = self.players[name], self.optimisers[name]
        prefix = f"{name} " if len(self.players) > 1 else ""
        with self.accelerator.autocast():
            value, parts, _ = loss(*batch)
        terms = {"loss": value} | parts
        means = self._mean(torch.stack([term.detach().mean() for term in terms.values()]))
        optimiser.zero_grad()
        # `inputs`: what belongs to the other players needs no gradient here.
        self.accelerator.backward(value.mean(), inputs=parameters)
        gradients = {parameter: self._mean(parameter.grad) for parameter in parameters if parameter.grad is not None}
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        norm = get_total_norm(list(gradients.values()))
        # Read together: each reading makes a GPU wait.
        numbers = torch.cat([means, norm[None]]).tolist()
        row = {prefix + term: x for term, x in zip([*terms, "gradient norm"], numbers, strict=True)}
        self._require_finite(row, self.step + 1)
        if self.settings.clip_norm is not None:
            clip_grads_with_norm_(list(gradients), self.settings.clip_norm, norm)
        optimiser.step()
        return row

    @torch.no_grad()
    def _validate(self) -> float:
        """The mean loss on the validation data; counts what early stopping counts."""
        assert self.validation is not None and isinstance(self.model, Learner)
        with self._averaged(), torch.random.fork_rng(_cuda(self.device)):
            torch.manual_seed(_stream(self.settings.seed, 1))
            self.model.eval()
            batches = zip(*(tensor.split(self.settings.batch_size) for tensor in self.validation), strict=True)
            total = torch.stack([self.model.loss(*batch).value.sum() for batch in batches]).sum()
            self.model.train()
            value = self._mean(total / len(self.validation[0])).item()
            self._require_finite({"validation loss": value}, self.step)
            self.waited += 1
            if value < self.best:
                self.best, self.best_step, self.waited = value, self.step, 0
                if self.settings.patience is not None:
                    self.best_weights = {name: t.clone() for name, t in self.model.state_dict().items()}
        return value

    def _require_finite(self, terms: dict[str, float], step: int) -> None:
        wrong = [name for name, value in terms.items() if not math.isfinite(value)]
        if wrong:
            # Named is the cause: a part spoils the loss, and the loss its gradient.
            name = min(wrong, key=lambda name: 2 * name.endswith("gradient norm") + name.endswith("loss"))
            values = ", ".join(f"{name} = {value:.6g}" for name, value in terms.items())
            raise FloatingPointError(f"step {step}: {name} is {terms[name]} ({values})")

    def _mean(self, tensor: Tensor) -> Tensor:
        """The mean over the processes."""
        return tensor if self.accelerator.num_processes == 1 else self.accelerator.reduce(tensor, "mean")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model has the averaged weights, where there are any."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.model.named_parameters():
            if self.average is not None and name in self.average:
                parameter.data, self.average[name] = self.average[name], parameter.data

    def _identity(self) -> dict[str, object]:
        """What must be the same for a checkpoint to be this run's, as JSON gives it back: tuples are lists there."""
        identity = {
            **asdict(self.settings),
            "players": {name: player.updates for name, player in self.players.items()},
            "device": self.device.type,
            "processes": self.accelerator.num_processes,
            "validation": None if self.validation is None else self.validation[0].shape,
        }
        return json.loads(json.dumps(identity))

    def _save(self, path: Path) -> None:
        """Write a checkpoint: one file, so that what is in it always belongs together."""
        noise = [torch.get_rng_state()] + [torch.cuda.get_rng_state(device) for device in _cuda(self.device)]
        noise = [self.accelerator.gather(state[None].to(self.device)).cpu() for state in noise]
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in (self.average or {}).items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_weights.items()}
        tensors |= {f"noise.{i}": state for i, state in enumerate(noise)} | {"order": self.order.get_state()}
        for player, optimiser in self.optimisers.items():
            for index, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{player}.{index}.{key}": tensor for key, tensor in state.items()}
        progress = {key: getattr(self, key) for key in ("step", "history", "best_step", "waited")}
        progress["best"] = None if self.best_step is None else self.best
        if self.accelerator.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, tensors, {"run": json.dumps(self._identity()), "progress": json.dumps(progress)})
        # Nobody goes on, or comes back to read, before it is there.
        self.accelerator.wait_for_everyone()

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint."""
        tensors, metadata = _read(path)
        try:
            theirs, progress = json.loads(metadata["run"]), json.loads(metadata["progress"])
        except KeyError as error:
            raise ValueError(f"{path} is not a checkpoint: it has no {error} in its metadata") from error
        ours = self._identity()
        differences = [
            f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here"
            for key in dict.fromkeys([*theirs, *ours])
            if theirs.get(key) != ours.get(key)
        ]
        if differences:
            raise ValueError(f"{path} belongs to another run: {'; '.join(differences)}. Use another folder")

        def group(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t.to(self.device) for n, t in tensors.items() if n.startswith(prefix)}

        _load_weights(self.model, group("model."), path)
        for player, optimiser in self.optimisers.items():
            states: dict[int, dict[str, Tensor]] = {}
            for name, tensor in group(f"optimiser.{player}.").items():
                index, key = name.split(".")
                states.setdefault(int(index), {})[key] = tensor
            optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
        if self.average is not None:
            self.average = group("average.")
        self.best_weights = group("best.")
        self.step, self.history = progress["step"], progress["history"]
        self.best_step, self.waited = progress["best_step"], progress["waited"]
        self.best = math.inf if progress["best"] is None else progress["best"]
        self.order.set_state(tensors["order"])
        # Cloned: set_rng_state reads from the start of the storage, which a row of a matrix shares.
        rank = self.accelerator.process_index
        torch.set_rng_state(tensors["noise.0"][rank].clone())
        for device in _cuda(self.device):
            torch.cuda.set_rng_state(tensors["noise.1"][rank].clone(), device)


def _accelerator(model: nn.Module, settings: Settings, device: str | None):
    """Processes, devices and precision. Raises ValueError for a device that is not there."""
    with warnings.catch_warnings():
        # It looks for the progress bars of notebooks, which are not used here, and warns where there are none.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

    if device is None:
        device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch finds no CUDA device here; use 'cpu'")
    # Accelerate keeps a process's first device and precision for ever, but a notebook trains with several.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device == "cpu", mixed_precision=settings.mixed_precision)


def _require(model, data, settings: Settings, validation, processes: int) -> None:
    for name, examples in (("data", data), ("validation", validation)):
        if examples is None or (name == "data" and callable(examples)):
            continue
        parts = _parts(examples)
        if not 1 <= len(parts) <= 2 or not all(isinstance(part, Tensor) for part in parts):
            function = " or a function batch(n, generator)" if name == "data" else ""
            found = ", ".join(type(part).__name__ for part in parts)
            raise TypeError(f"{name} must be a tensor or a pair of tensors{function}, got {found}")
        x = parts[0]
        if not x.is_floating_point():
            raise TypeError(f"{name} must have a floating dtype, got {x.dtype}")
        if x.ndim == 0 or len(x) == 0:
            raise ValueError(f"{name} must hold at least one example, got shape {tuple(x.shape)}")
        if len(parts) == 2 and (parts[1].ndim == 0 or len(parts[1]) != len(x)):
            raise ValueError(f"{name} has {len(x)} examples, but labels of shape {tuple(parts[1].shape)}")
    if (validation is None) != (settings.validate_every is None):
        given = "no validation data" if validation is None else "validation data"
        raise ValueError(f"validate_every is {settings.validate_every}, but there is {given}; give both or neither")
    if not isinstance(model, Learner) and (validation is not None or not isinstance(model, Game)):
        raise TypeError(f"{type(model).__name__} has no method loss(x), which training and validation minimise")
    if settings.batch_size % processes:
        raise ValueError(f"batch_size must divide by the number of processes, {processes}, got {settings.batch_size}")


def _parts(examples: Examples) -> tuple[Tensor, ...]:
    return examples if isinstance(examples, tuple) else (examples,)


def _tensors(examples: Examples, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(part.to(device) for part in _parts(examples))


def _players(model: nn.Module) -> dict[str, Player]:
    if isinstance(model, Game):
        return model.players()
    assert isinstance(model, Learner)  # which `fit` has asked for
    return {"model": Player(model.parameters(), model.loss)}


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _stream(seed: int, stream: int) -> int:
    """A seed for one of several streams of random numbers that have nothing in common."""
    return int(np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)[0])


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, whole or not at all: whoever is killed here leaves the old one."""
    from safetensors.torch import save

    # Cloned: safetensors refuses tied weights, which share their memory.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    content = save(tensors, metadata | {"crc32": _checksum(tensors, metadata)})
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start anew") from error
    if metadata.pop("crc32", None) != _checksum(tensors, metadata):
        raise ValueError(f"{path} is damaged (its checksum is wrong); delete it to start anew")
    return tensors, metadata


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    value = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(name.encode(), value))
    return f"{value:08x}"


def _load_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    def kinds(named: dict[str, Tensor]) -> dict[str, str]:
        return {name: f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for name, t in named.items()}

    theirs, ours = kinds(tensors), kinds(model.state_dict())
    for name in dict.fromkeys([*ours, *theirs]):
        there, here = theirs.get(name, "missing"), ours.get(name, "missing")
        if there != here:
            raise ValueError(f"{path} is of another model: {name!r} is {there} there and {here} here")
    model.load_state_dict(tensors)
