"""What the chapters call: training where it is fastest, numbers within their range, and sources."""

import inspect
import math
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from companion import training
from companion.training import Batches, Examples, Fit, Settings

# An example of fewer numbers goes through a network faster than a GPU is told what to do.
FEW = 100


def machine() -> str:
    """What a chapter trains on, in words."""
    threads = torch.get_num_threads()
    cpu = f"the CPU, in {threads} thread{'s' if threads > 1 else ''}"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} trains on {cpu}"
    return f"PyTorch {torch.__version__} trains on {torch.cuda.get_device_name()}; models of a few numbers on {cpu}"


def fit(model: nn.Module, data: Examples | Batches, settings: Settings, **options: Any) -> Fit:
    """`companion.training.fit` as the chapters call it: without a bar, and where it is fastest.

    Models of images and sounds train on the GPU if there is one, and come back to the CPU, on which the rest of a
    chapter computes. Those in the plane train on the CPU.

    Args:
        options: as for `companion.training.fit`.

    >>> import torch
    >>> from companion.chapter import fit
    >>> from companion.models import IndependentPixels
    >>> from companion.training import Settings
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> fit(IndependentPixels((2,)), x, Settings(steps=5)).model.logits.device
    device(type='cpu')
    """
    large = math.prod(getattr(model, "event_shape", ())) >= FEW
    device = "cuda" if large and torch.cuda.is_available() else "cpu"
    found = training.fit(model, data, settings, device=device, progress=False, **options)
    found.model.to("cpu")
    return found


def report(name: str, value: float, low: float, high: float) -> None:
    """Print a number and the range it has to be in.

    Training gives slightly different numbers on different processors, so that they cannot be compared digit
    by digit. Raises AssertionError when the value is outside [low, high] or not a number.

    >>> from companion.chapter import report
    >>> report("accuracy", 0.913, 0.9, 0.95)
    accuracy: 0.913   (between 0.9 and 0.95)
    """
    # In one piece: a notebook may send off a line without its end, and a page then shows an empty line.
    print(f"{name}: {value:.4g}   (between {low:g} and {high:g})\n", end="")
    if not low <= value <= high:
        raise AssertionError(f"{name} is {value:.6g}, outside [{low:g}, {high:g}]")


def show_source(*objects: Callable) -> None:
    """Print the source of functions, methods or classes, so that a chapter shows what runs."""
    print("\n".join(textwrap.dedent(inspect.getsource(thing)) for thing in objects).rstrip())
