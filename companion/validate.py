"""What every model asks of its input. Each function returns nothing and raises a clear error."""

import torch
from torch import Tensor


def require_events(x: Tensor, event_shape: tuple[int, ...], name: str = "x") -> None:
    """`x` is a batch of floating-point events of the given shape, without NaN or infinities.

    Raises:
        TypeError: not a tensor, or not a floating dtype.
        ValueError: the wrong shape, or values that are not finite.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must have a floating dtype, got {x.dtype}; convert it with {name}.float()")
    if x.ndim != 1 + len(event_shape) or tuple(x.shape[1:]) != tuple(event_shape):
        expected = ", ".join(["batch", *map(str, event_shape)])
        raise ValueError(f"{name} must have shape ({expected}), got {tuple(x.shape)}")
    # A sum is finite only if all of its terms are, and costs a fraction of looking at each of them.
    if not torch.isfinite(x.sum()) and not torch.isfinite(x).all():
        raise ValueError(f"{name} must be finite, got {int((~torch.isfinite(x)).sum())} NaN or infinite values")


def require_binary(x: Tensor, name: str = "x") -> None:
    """Every value of `x` is 0 or 1.

    Raises ValueError with the first other value: a model of binary pixels gives grey ones a number that is
    no probability, and says nothing.
    """
    if not torch.equal(x * x, x):
        other = (x != 0) & (x != 1)
        raise ValueError(f"{name} must hold only 0 and 1, got {x[other][0].item():.6g}; binarise it first")


# How far from its level a value may lie, in levels: k / 255 in float32 is off by a thirtieth of this at most.
OFF_LEVEL = 1e-3


def require_levels(x: Tensor, levels: int, name: str = "x") -> Tensor:
    """Every value of `x` is one of the intensities k / (levels - 1), k = 0 … levels - 1. Returns k, in the dtype of x.

    Raises ValueError with the first other value.
    """
    top = levels - 1
    k = (x * top).round()
    wrong = ((x * top - k).abs() > OFF_LEVEL) | (k < 0) | (k > top)
    if wrong.any():
        counts = bool(torch.equal(x, x.round()) and 0 <= x.min() and x.max() <= top)
        hint = f"; divide counts by {top}" if counts else ""
        raise ValueError(
            f"{name} must hold only the {levels} levels k / {top} from 0 to 1, got {x[wrong][0].item():.6g}{hint}"
        )
    return k


def require_positive_int(value: int, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def require_rows(rows: int, height: int) -> None:
    """`rows` is a number of rows of an image of this height, 0 included."""
    if isinstance(rows, bool) or not isinstance(rows, int) or not 0 <= rows <= height:
        raise ValueError(f"rows must be an integer from 0 to {height}, got {rows!r}")


def require_label(label: Tensor | None, classes: int | None, batch: int) -> None:
    """`label` holds one class for each example of a batch, or is None where a model has no classes.

    Raises:
        TypeError: not an integer tensor.
        ValueError: missing, not asked for, of the wrong shape, or out of range.
    """
    if classes is None:
        if label is not None:
            raise ValueError("label must be None: this model has no classes")
        return
    allowed = f"an integer tensor of shape ({batch},) from 0 to {classes - 1}"
    if label is None:
        raise ValueError(f"label must be {allowed}, got None")
    if not isinstance(label, Tensor) or label.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"label must be {allowed}, got {getattr(label, 'dtype', type(label).__name__)}")
    if tuple(label.shape) != (batch,):
        raise ValueError(f"label must be {allowed}, got shape {tuple(label.shape)}")
    wrong = (label < 0) | (label >= classes)
    if wrong.any():
        raise ValueError(f"label must be {allowed}, got {int(label[wrong][0])}")
