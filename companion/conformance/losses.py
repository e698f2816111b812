"""Is the loss what it says it is: per example, the sum of its parts, in its unit?"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from companion.conformance.faults import name_fault
from companion.conformance.outcomes import (
    Fault,
    Outcome,
    Undecided,
    agree,
    conformance,
    judge,
    mean_and_error,
    per_example,
    repeated,
    rounding_of,
    seeded,
    show,
)

Numbers = Callable[[Tensor], Tensor]


@conformance
def loss_in_unit(
    loss: Callable[[Tensor], Any],
    x: Float[Tensor, " batch *event"],
    log_prob: Numbers | None = None,
    bound: Numbers | None = None,
    repeats: int = 100,
    seed: int = 0,
) -> Outcome:
    """`loss(x)` has a value per example, parts that sum to it and a unit; in nats it is minus the bound or log_prob.

    A loss whose unit is "nats", "bits" or "bits/dim" must equal -bound(x) in expectation where a bound is given,
    otherwise -log_prob(x), and may not be below -log_prob(x) where that is given. Other units claim nothing
    that could be tested.

    Args:
        loss: returns something with `value` (batch,), `parts` (names to tensors, may be empty) and `unit`. Of a bare
            tensor nothing can be said.
        repeats: evaluations of whatever is random, two or more for a standard error.

    Fails where one of these is missing or of another kind, where the parts do not sum to the value, and in a unit of
    nats or bits where the loss of an example depends on the rest of its batch. Raises ValueError for a single repeat.
    """
    with seeded(seed), torch.no_grad():
        first = loss(x)
        if isinstance(first, Tensor):
            raise Undecided(
                f"loss(x) is a tensor of shape {tuple(first.shape)}: what has a value per example, parts and a unit can"
                " be checked, such as companion.models.Loss"
            )
        missing = [name for name in ("value", "parts", "unit") if not hasattr(first, name)]
        if missing:
            raise Fault(f"loss(x) has no {' and no '.join(missing)}, got {type(first).__name__}")
    value = per_example(lambda _: first.value, x, "loss(x).value")
    if not isinstance(first.unit, str) or not first.unit:
        raise Fault(f"loss(x).unit must be a word such as 'nats', got {first.unit!r}")
    _parts_sum(first.parts, value, x)
    dims = x[0].numel()
    nats = {"nats": 1.0, "bits": math.log(2), "bits/dim": dims * math.log(2)}.get(first.unit)
    reference = bound or log_prob
    if nats is None or reference is None:
        why = "no density or bound to compare with" if nats else f"the unit {first.unit!r} claims no likelihood"
        return Outcome("", True, 0.0, 0.0, f"value and parts only: {why}")

    if torch.isfinite(value).all():
        _alone(loss, first, x, seed)
    with torch.no_grad():
        got = -nats * repeated(lambda x: loss(x).value, x, repeats, seed, "loss(x).value")
        right = repeated(reference, x, repeats, seed, "the reference")
    mean, expected, rounding = got.mean(0), right.mean(0), rounding_of(right.mean(0), x.dtype)

    def fault(i: int) -> str:
        with torch.no_grad():
            parts = {
                name: -nats * repeated(partial(_part, loss, name), x, repeats, seed, name)
                for name in (first.parts if len(first.parts) > 1 else ())
            }
        named = name_fault(got, right, rounding, dims, parts, parts_of_got=True)
        what = "minus the bound" if bound else "-log p"
        text = f"the loss of {show(x, i)} is {-mean[i]:.6g} nats, {what} is {-expected[i]:.6g}"
        return f"{text}; {named}" if named else text

    outcome = agree(got, right, rounding, fault, f"{first.unit}, {len(x)} inputs")
    if outcome.passed and bound and log_prob:
        exact, (mean, error) = per_example(log_prob, x, "log_prob").double(), mean_and_error(got)
        below = judge(
            mean - exact,
            error,
            rounding,
            lambda i: f"the loss of {show(x, i)} is {-mean[i]:.6g} nats, below the exact {-exact[i]:.6g}",
        )
        outcome = outcome if below.passed else below
    return outcome


def _part(loss: Callable, name: str, x: Tensor) -> Tensor:
    return loss(x).parts[name]


def _always(answer: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: answer


def _parts_sum(parts: Any, value: Tensor, x: Tensor) -> None:
    if not isinstance(parts, Mapping):
        raise Fault(f"loss(x).parts must map names to tensors, got {type(parts).__name__}")
    if not parts:
        return
    rows = [per_example(_always(part), x, f"the part {name!r}").double() for name, part in parts.items()]
    terms = torch.stack(rows)
    total = terms.sum(0)
    wrong = ~((value.double() - total).abs() <= rounding_of(terms.abs().sum(0), value.dtype))
    if wrong.any():
        i = int(wrong.nonzero()[0])
        by_name = dict(zip(parts, rows, strict=True))
        named = name_fault(value.double(), total, rounding_of(value), x[0].numel(), by_name)
        hint = f"; in the value {named}" if named else ""
        raise Fault(f"the parts of {show(x, i)} sum to {total[i]:.6g}, the value is {value[i]:.6g}{hint}")


def _alone(loss: Callable, first: Any, x: Tensor, seed: int) -> None:
    """Under the same noise, the first example's loss does not depend on the others."""
    with seeded(seed), torch.no_grad():
        other = loss(x[:1].expand_as(x).clone()).value
    if not (other[0] - first.value[0]).abs() <= rounding_of(first.value)[0]:
        raise Fault(
            f"not per example: the loss of {show(x, 0)} goes from {first.value[0]:.6g} to {other[0]:.6g} when"
            " the rest of the batch changes: a mean over the batch, or batch statistics"
        )
