"""Times candidates in turn, so that whatever else the machine does falls on all of them alike."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch


def peer(name: str) -> ModuleType | None:
    """A peer library's module, or None, with a message, where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name} is left out: {error}. `make bench` installs it.")
        return None


class _StandIn(ModuleType):
    """Has a class of every name, to derive from."""

    __version__ = "0.0"

    def __init__(self, name: str):
        super().__init__(name)
        self.__path__, self.__spec__ = [], ModuleSpec(name, None)

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {})


def stand_in_for_torchvision() -> None:
    """Where it is missing: some peers import it for files of images and for networks that no workload needs."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    sys.modules["torchvision"] = _StandIn("torchvision")
    for part in ("datasets", "models", "models.inception", "transforms", "transforms.functional", "utils"):
        parent, _, child = f"torchvision.{part}".rpartition(".")
        module = sys.modules[f"{parent}.{child}"] = _StandIn(f"{parent}.{child}")
        setattr(sys.modules[parent], child, module)


def compare(workload: str, candidates: dict[str, Callable[[], object]], repeats: int, parameters: int) -> dict:
    """Run each candidate once to warm up, then all of them `repeats` times in turn; print medians in milliseconds
    and their ratios to the first candidate."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    for _ in range(repeats):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    print(f"\n{workload} ({parameters:,} parameters, median of {repeats})")
    for name, median in medians.items():
        print(f"  {name:<44} {median:9.2f} ms   {median / first:5.2f}")
    rows = [{"candidate": name, "milliseconds": m, "ratio": m / first} for name, m in medians.items()]
    return {"workload": workload, "parameters": parameters, "repeats": repeats, "rows": rows}


def environment(peers: list[str]) -> dict:
    """What the numbers were measured with."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in peers:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    malloc = {name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    return {"versions": versions, "threads": torch.get_num_threads(), "machine": platform.machine(), "malloc": malloc}


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
