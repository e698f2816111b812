"""What a conformance function returns, and how numbers become a verdict."""

import functools
import math
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from companion.validate import require_positive_int

STANDARD_ERRORS_ALLOWED = 5.0
# Of a line that a page shows whole, in characters.
WIDTH = 84


class ConformanceError(AssertionError):
    """A model did not pass, or nothing could be said about it."""


class Fault(Exception):
    """Raised inside a check: the candidate's answer is wrong before any two numbers can be compared."""


class Undecided(Exception):
    """Raised inside a check: what was given cannot tell a right model from a wrong one."""


@dataclass(frozen=True)
class Outcome:
    """One check of one model.

    Attributes:
        name: what was checked.
        passed: None where nothing could be said, which is not a pass.
        error, allowed: the worst deviation and the largest that is accepted, both in `unit`.
        detail: why; on failure the first failing input, its numbers and, where they fit one, the usual fault.
        unit: "standard errors" for Monte Carlo, otherwise that of the numbers compared.
    """

    name: str
    passed: bool | None
    error: float
    allowed: float
    detail: str
    unit: str = ""

    @property
    def verdict(self) -> str:
        """In a word: passed, FAILED or undecided."""
        return {True: "passed", False: "FAILED", None: "undecided"}[self.passed]

    def __bool__(self) -> bool:
        return self.passed is True

    def raise_if_failed(self) -> "Outcome":
        """Returns itself. Raises ConformanceError unless the check passed; undecided is not passed."""
        if not self:
            raise ConformanceError(repr(self))
        return self

    def __repr__(self) -> str:
        # The error of a pass is noise, which differs between processors: say only that it fits.
        fits = f"within {self.allowed:.2g} {self.unit}".rstrip()
        missed = f"off by {self.error:.3g}, allowed {self.allowed:.2g} {self.unit}".rstrip()
        compared = math.isfinite(self.error) and self.allowed > 0 and self.passed is not None
        numbers = (fits if self.passed else missed) if compared else ""
        return f"{self.verdict}: {self.name}: " + "; ".join(part for part in (numbers, self.detail) if part)

    def __str__(self) -> str:
        return _wrapped(repr(self), 4)

    def _repr_pretty_(self, printer, cycle: bool) -> None:
        printer.text(str(self))


@dataclass(frozen=True)
class Report:
    """All that `check` ran on one model, and what it could not run, with the reason."""

    model: str
    outcomes: tuple[Outcome, ...]
    skipped: dict[str, str]

    @property
    def passed(self) -> bool:
        """Something was checked, and nothing failed."""
        return any(self.outcomes) and not self.failures

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes that failed. Undecided ones are not among them."""
        return tuple(outcome for outcome in self.outcomes if outcome.passed is False)

    def __bool__(self) -> bool:
        return self.passed

    def raise_if_failed(self) -> "Report":
        """Returns itself. Raises ConformanceError when something failed, or nothing passed."""
        if not self.passed:
            raise ConformanceError(repr(self))
        return self

    def __repr__(self) -> str:
        return self._text(lambda row, _: row)

    def __str__(self) -> str:
        return self._text(_wrapped)

    def _repr_pretty_(self, printer, cycle: bool) -> None:
        printer.text(str(self))

    def _text(self, line: Callable[[str, int], str]) -> str:
        rows = [tuple(repr(outcome).split(": ", 2)) for outcome in self.outcomes]
        rows += [("skipped", name, reason) for name, reason in self.skipped.items()]
        count = sum(outcome.passed is True for outcome in self.outcomes)
        title = f"{self.model}: {count} passed, {len(self.failures)} failed, {len(self.skipped)} skipped"
        width = max((len(name) for _, name, _ in rows), default=0)
        heads = [f"  {verdict:<9}  {name:<{width}}  " for verdict, name, _ in rows]
        return "\n".join([title, *(line(head + row[2], len(head)) for head, row in zip(heads, rows, strict=True))])


def _wrapped(line: str, indent: int) -> str:
    """One line as several that fit on a page, all but the first of them indented."""
    lines = textwrap.wrap(line, WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def conformance(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Names the outcome after the function, and turns Fault and Undecided into outcomes."""

    @functools.wraps(function)
    def checked(*args, **kwargs) -> Outcome:
        try:
            outcome = function(*args, **kwargs)
        except (Fault, Undecided) as error:
            outcome = Outcome("", False if isinstance(error, Fault) else None, math.inf, 0.0, str(error))
        return replace(outcome, name=function.__name__)

    return checked


def judge(
    violation: Tensor,
    standard_error: Tensor | float,
    rounding: Tensor | float,
    fault: Callable[[int], str],
    passed: str = "",
    unit: str = "nats",
) -> Outcome:
    """Five standard errors and the rounding are allowed; `fault(i)` explains entry i, the first beyond them.

    Args:
        violation: (batch,); what is not a number counts as infinite.
        standard_error, rounding: (batch,) or numbers, in the same unit.
    """
    violation = violation.double().nan_to_num(nan=math.inf)
    both = (standard_error, rounding)
    standard_error, rounding = (torch.as_tensor(t).to(violation).expand_as(violation) for t in both)
    if (standard_error > rounding).any():
        violation = violation / (standard_error + rounding / STANDARD_ERRORS_ALLOWED)
        limit, unit = torch.full_like(violation, STANDARD_ERRORS_ALLOWED), "standard errors"
    else:
        limit = rounding
    failing = (violation > limit).nonzero()
    worst = int((violation / limit).argmax())
    detail = fault(int(failing[0])) if len(failing) else passed
    # A deviation in the harmless direction is no deviation.
    return Outcome("", not len(failing), max(float(violation[worst]), 0.0), float(limit[worst]), detail, unit)


def agree(got: Tensor, expected: Tensor, rounding: Tensor, fault: Callable[[int], str], passed: str = "") -> Outcome:
    """The means of two sets of draws, (repeats, batch), agree for each example and over the whole batch.

    Row by row both saw the same noise, where they draw alike; that makes their difference precise.
    """
    difference = got - expected
    mean, error = mean_and_error(torch.cat([difference, difference.mean(1, keepdim=True)], 1))
    last = len(rounding)
    worst = int((mean.abs() / (error + 1e-12))[:last].nan_to_num(nan=math.inf).argmax())
    return judge(
        mean.abs(),
        error,
        torch.cat([rounding, rounding.mean()[None]]),
        lambda i: fault(i) if i < last else f"over the whole batch {mean[i]:.4g} nats; {fault(worst)}",
        passed,
    )


def rounding_of(values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """How far two routes to `values` may differ by rounding, same shape."""
    relative = {torch.float64: 1e-9, torch.float32: 1e-5}.get(dtype or values.dtype, 1e-2)
    return relative * (1 + values.detach().abs().double().nan_to_num(posinf=0, neginf=0, nan=0))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generators start at `seed`, and are put back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def per_example(function: Callable[[Tensor], Tensor], x: Tensor, name: str) -> Tensor:
    """The answers of `function` to the batch, (batch,), detached, in its own dtype. Raises Fault for another shape."""
    answer = function(x)
    if not isinstance(answer, Tensor) or tuple(answer.shape) != (len(x),):
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise Fault(f"not per example: {name} must answer ({len(x)},) to a batch of {len(x)}, got {got}")
    return answer.detach()


def repeated(function: Callable[[Tensor], Tensor], x: Tensor, repeats: int, seed: int, name: str) -> Tensor:
    """(repeats, batch) in float64. Repeat r has seed + r, so that two functions may see the same noise."""
    require_positive_int(repeats, "repeats")
    rows = []
    for r in range(repeats):
        with seeded(seed + r):
            rows.append(per_example(function, x, name).double())
    return torch.stack(rows)


def mean_and_error(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the first dimension and its standard error."""
    if len(draws) < 2:
        raise ValueError(f"repeats must be at least 2 for a standard error, got {len(draws)}")
    return draws.mean(0), draws.std(0) / math.sqrt(len(draws))


def show(x: Tensor, i: int) -> str:
    """`x[i] = [0, 1, 1, 0]`, shortened to its first values."""
    values = x[i].detach().flatten()
    text = ", ".join(f"{value:.4g}" for value in values[:8].tolist())
    return f"x[{i}] = [{text}{', …' if len(values) > 8 else ''}]"
