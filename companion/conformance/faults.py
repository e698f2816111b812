"""Gives a disagreement its usual name: most wrong losses differ from the right one by a known factor or constant."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from companion.conformance.outcomes import STANDARD_ERRORS_ALLOWED, mean_and_error

LOG_2PI = math.log(2 * math.pi)


def name_fault(
    got: Tensor,
    expected: Tensor,
    rounding: Tensor,
    dims: int,
    parts: Mapping[str, Tensor] | None = None,
    parts_of_got: bool = False,
) -> str:
    """Why `got` is not `expected`, as far as the numbers tell; empty when no explanation fits all examples.

    Args:
        got, expected: log-densities, or other sums over `dims` dimensions, in nats: (batch,), or
            (repeats, batch), where draws with the same noise share a row.
        rounding: (batch,), how far two routes to the same number may differ.
        parts: what sums to `expected`, or to `got` with `parts_of_got`, by name; one of them may have the wrong
            weight. Shapes as `got`.
    """
    if not torch.isfinite(got).all():
        return "not finite: the logarithm of a logit, of a mean or of zero"
    got, expected = torch.atleast_2d(got.double()), torch.atleast_2d(expected.double())
    batch, difference = got.shape[1], got - expected
    factors = {
        -1.0: "the sign is inverted",
        1 / dims: f"a factor of {dims}: a mean over the dimensions instead of a sum",
        float(dims): f"a factor of {dims}: the sum over the dimensions taken twice",
        1 / batch: f"a factor of {batch}: divided by the batch size",
        1 / math.log(2): "in bits, not in nats",
        1 / (dims * math.log(2)): "in bits per dimension, not in nats",
        2.0: "a factor of 2",
        0.5: "a factor of 1/2",
    }
    offsets = {
        dims * math.log(256): f"log 256 for each of {dims} dimensions",
        dims * math.log(255): f"log 255 for each of {dims} dimensions",
        dims * math.log(256 / 255): f"log(256/255) for each of {dims} dimensions: 255 where there are 256 bins",
        math.log(256): "log 256 once",
        dims * math.log(2): f"log 2 for each of {dims} dimensions",
        math.log(2): "log 2 once",
        dims * LOG_2PI / 2: f"(log 2π)/2 for each of {dims} dimensions",
        (dims - 1) * LOG_2PI / 2: f"(log 2π)/2 for {dims - 1} of {dims} dimensions: it is counted once",
        dims * (dims - 1) * LOG_2PI / 2: f"the dimension {dims} inside the constant (log 2π)/2 of each element",
        math.log(batch): "the logarithm of the batch size",
    }
    weights = {
        -1.0: "has the wrong sign",
        0.0: "is missing",
        1 / dims: f"is a mean over {dims} dimensions instead of a sum",
    }
    usual = [(name, got - factor * expected) for factor, name in factors.items() if factor != 1]
    for offset, name in offsets.items():
        usual += [(f"too high by a constant: {name}", difference - offset)] if offset else []
        usual += [(f"too low by a constant: {name}", difference + offset)] if offset else []
    shift = float(difference.mean())
    slope = float((got.mean(0) @ expected.mean(0)) / expected.mean(0).square().sum())
    fitted = [
        (f"off by the same {shift:.6g} for every example: a constant", difference - shift),
        (f"off by the same factor {slope:.6g} for every example", got - slope * expected),
    ]
    for name, part in (parts or {}).items():
        # A part of the wrong sum already has its weight w: (w - 1)/w of it is too much.
        excess = (lambda w: 1 - 1 / w) if parts_of_got else (lambda w: w - 1)
        part = torch.atleast_2d(part)
        usual += [
            (f"the {name} {what}", difference - excess(w) * part)
            for w, what in weights.items()
            if w != 1 and not (parts_of_got and w == 0)
        ]
        mean = part.mean(0)
        if mean.any():
            share = float((difference.mean(0) @ mean) / mean.square().sum())
            weight = 1 + share if not parts_of_got else 1 / (1 - share) if share != 1 else math.inf
            fitted.append((f"the {name} is weighted by {weight:.3g}", difference - share * part))
    # What is fitted to the numbers fits one example always.
    return _best(usual, rounding) or (_best(fitted, rounding) if batch > 1 else "")


def _best(residuals: Iterable[tuple[str, Tensor]], rounding: Tensor) -> str:
    """The explanation with the smallest residual (repeats, batch), of those that leave nothing but noise."""
    best, name = math.inf, ""
    for candidate, residual in residuals:
        # Over the batch the noise is less, and tells more explanations apart.
        residual = torch.cat([residual, residual.mean(1, keepdim=True)], 1)
        mean, error = mean_and_error(residual) if len(residual) > 1 else (residual[0], 0.0)
        slack = torch.cat([rounding, rounding.mean()[None]])
        size = float(torch.maximum(mean.abs(), slack).max())
        if (mean.abs() <= STANDARD_ERRORS_ALLOWED * error + slack).all() and size < best:
            best, name = size, candidate
    return name
