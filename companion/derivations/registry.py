"""The registry: one check for each labelled equation of the book.

A check computes both sides of its equation, and every step between them, by independent routes. It
also carries mutants: the same equation with one plausible slip. The judge that accepts the equation
has to reject each mutant by a wide margin, or the check is worth nothing.

    @verifies("jensen-concave", r"\\log\\mathbb E[W] \\ge \\mathbb E[\\log W]", kind="inequality", ...)
    def jensen_concave(rng):
        ...
        return Lines({"log E[W]": a, "≥ E[log W]": b}, [Mutant("convex instead of concave", c)])

A line's name starts with its relation to the line before it: `=`, `≥` or `≤`.
"""

import difflib
import inspect
import itertools
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike

KINDS = ("identity", "inequality", "estimate", "definition")
ROUTES = ("enumeration", "closed form", "quadrature", "autograd", "Monte Carlo")

# How far an equation may be off, and how far a mutant has to be, in units of the tolerance or of the
# standard error. The gap between the two is what "rejected by a wide margin" means.
STANDARD_ERRORS_ALLOWED, STANDARD_ERRORS_TO_REJECT, TOLERANCES_TO_REJECT = 5.0, 10.0, 100.0


class CheckFailed(AssertionError):
    """An equation did not close within its tolerance, or one of its mutants was not rejected."""


class Tolerance(TypedDict):
    """How far the lines of a check may differ, and why that far: what several checks of a chapter have in common."""

    tolerance: float
    reason: str


@dataclass(frozen=True)
class Mutant:
    """A wrong variant: `value` takes the place of the last line, or of the lines that a mapping names."""

    name: str
    value: ArrayLike | Mapping[str, ArrayLike]
    erratum: str | None = None


@dataclass(frozen=True)
class Lines:
    """The value of every line of a derivation on one instance, and the mutants' values on the same.

    `standard_errors` names the lines that are Monte Carlo estimates.
    """

    values: Mapping[str, ArrayLike]
    mutants: Sequence[Mutant]
    standard_errors: Mapping[str, ArrayLike] = field(default_factory=dict)


@dataclass(frozen=True)
class MutantResult:
    name: str
    erratum: str | None
    error: float
    rejected: bool


@dataclass(frozen=True)
class Result:
    """What one check found. `error` and `tolerance` belong to its worst instance."""

    label: str
    chapter: str
    statement: str
    kind: str
    route: str
    lines: list[dict[str, Any]]
    error: float
    tolerance: float
    reason: str
    passed: bool
    seconds: float
    source: str
    mutants: list[MutantResult]

    @property
    def ok(self) -> bool:
        """The equation closed, and every mutant was rejected."""
        return self.passed and all(m.rejected for m in self.mutants)

    def to_dict(self) -> dict[str, Any]:
        """All fields, those of the mutants included, as `companion verify` writes them to `ledger.json`."""
        return asdict(self)

    def _summary(self) -> str:
        verdict = "checked" if self.ok else "FAILED"
        # The error itself is rounding noise, which differs between processors: say only that it fits.
        relation = "within" if self.passed else f"off by {self.error:.2g}, allowed"
        return f"{self.label}: {self.kind}, {verdict} by {self.route}, {relation} {self.tolerance:.2g}"

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(line["line"], _format(line["value"])) for line in self.lines]
        for m in self.mutants:
            rows.append((f"{'rejected' if m.rejected else 'NOT REJECTED'}: {m.name}", f"off by {m.error:.2g}"))
        return rows

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self._rows())
        body = "\n".join(f"  {name:<{width}}  {value}" for name, value in self._rows())
        return f"{self._summary()}\n{body}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr class="{"mutant" if i >= len(self.lines) else "line"}">'
            f"<td>{escape(name)}</td><td>{escape(value)}</td></tr>"
            for i, (name, value) in enumerate(self._rows())
        )
        mark = "✓" if self.ok else "✗"
        return f'<table class="check"><caption>{mark} {escape(self._summary())}</caption><tbody>{rows}</tbody></table>'


@dataclass(frozen=True)
class Check:
    label: str
    statement: str
    kind: str
    route: str
    tolerance: float
    reason: str
    instances: Callable[[], Iterable[Any]] | None
    function: Callable[[Any], Lines]

    @property
    def chapter(self) -> str:
        return self.function.__module__.rpartition(".")[2]

    @property
    def source(self) -> str:
        """Path and lines of the check's source, as a fragment of the repository's address."""
        function = inspect.unwrap(self.function)
        lines, first = inspect.getsourcelines(function)
        file = Path(inspect.getfile(function))
        root = Path(__file__).parents[2]
        return f"{file.relative_to(root).as_posix()}#L{first}-L{first + len(lines) - 1}"

    def run(self) -> Result:
        """Run the check on all its instances.

        Raises ValueError when the check itself is malformed: no relation in a line's name, fewer than two
        mutants, fewer than three instances of a deterministic check, or a mutant without a finite value.
        """
        start = time.perf_counter()
        if self.instances is None:
            seeds = [zlib.crc32(self.label.encode()), 0]
            instances: list[Any] = [np.random.default_rng([*seeds, i]) for i in range(3)]
        else:
            instances = list(self.instances())
        runs = [self.function(instance) for instance in instances]
        estimated = any(run.standard_errors for run in runs)
        if len(runs) < 3 and not estimated:
            raise ValueError(f"{self.label}: a deterministic check needs at least 3 instances, got {len(runs)}")
        if len(runs[0].mutants) < 2:
            raise ValueError(f"{self.label}: a check needs at least 2 mutants, got {len(runs[0].mutants)}")

        # The worst instance is the one that uses up most of what it is allowed.
        error, tolerance, _ = max((self._judge(run) for run in runs), key=lambda j: j[0] / j[1])
        mutants = []
        for i, mutant in enumerate(runs[0].mutants):
            judged = [self._judge(run, run.mutants[i]) for run in runs]
            worst, _, to_reject = max(judged, key=lambda j: j[0] / j[2])
            mutants.append(MutantResult(mutant.name, mutant.erratum, worst, bool(worst >= to_reject)))
        return Result(
            label=self.label,
            chapter=self.chapter,
            statement=self.statement,
            kind=self.kind,
            route=self.route,
            lines=[{"line": name, "value": _jsonable(value)} for name, value in runs[0].values.items()],
            error=error,
            tolerance=tolerance,
            reason=self.reason,
            passed=bool(error <= tolerance),
            seconds=round(time.perf_counter() - start, 4),
            source=self.source,
            mutants=mutants,
        )

    def _judge(self, run: Lines, mutant: Mutant | None = None) -> tuple[float, float, float]:
        """The worst violation between neighbouring lines, what is allowed there, and what rejects a mutant."""
        values = {name: np.asarray(value, dtype=np.float64) for name, value in run.values.items()}
        if mutant is not None:
            last = list(values)[-1]
            for line, value in (mutant.value if isinstance(mutant.value, Mapping) else {last: mutant.value}).items():
                if line not in values:
                    raise ValueError(f"{self.label}: mutant {mutant.name!r} replaces no line: {line!r}")
                values[line] = np.asarray(value, dtype=np.float64)
                if not np.isfinite(values[line]).all():
                    raise ValueError(f"{self.label}: mutant {mutant.name!r} has no finite value")
        if len(values) < 2:
            raise ValueError(f"{self.label}: a check needs at least 2 lines")
        names = list(values)
        worst = (0.0, self.tolerance or 1.0, 1.0)
        for before, after in itertools.pairwise(names):
            difference = values[after] - values[before]
            match after[0]:
                case "=":
                    violation = np.abs(difference)
                case "≥":
                    violation = np.maximum(difference, 0)
                case "≤":
                    violation = np.maximum(-difference, 0)
                case _:
                    raise ValueError(f"{self.label}: line {after!r} must start with =, ≥ or ≤")
            allowed: ArrayLike
            rejects: ArrayLike
            errors = [run.standard_errors[name] for name in (before, after) if name in run.standard_errors]
            if errors:
                se = np.sqrt(sum(np.square(np.asarray(e, dtype=np.float64)) for e in errors))
                allowed, rejects = STANDARD_ERRORS_ALLOWED * se, STANDARD_ERRORS_TO_REJECT * se
            elif self.tolerance > 0:
                allowed, rejects = self.tolerance, TOLERANCES_TO_REJECT * self.tolerance
            else:
                raise ValueError(f"{self.label}: lines {before!r} and {after!r} have no tolerance")
            violation, allowed, rejects = np.broadcast_arrays(violation, allowed, rejects)
            # A line that is not a number agrees with nothing.
            ratio = np.nan_to_num(violation / allowed, nan=np.inf)
            at = np.unravel_index(np.argmax(ratio), ratio.shape)
            if ratio[at] >= worst[0] / worst[1]:
                worst = (float(np.nan_to_num(violation[at], nan=np.inf)), float(allowed[at]), float(rejects[at]))
        return worst


CHECKS: dict[str, Check] = {}


def verifies(
    label: str,
    statement: str,
    *,
    kind: str,
    route: str,
    reason: str,
    tolerance: float = 0.0,
    instances: Callable[[], Iterable[Any]] | None = None,
) -> Callable[[Callable[[Any], Lines]], Callable[[Any], Lines]]:
    """Register a function as the check of the equation `label`.

    Args:
        label: the equation's slug in the book.
        statement: its LaTeX, as the chapter displays it.
        kind: one of KINDS; what is claimed.
        route: one of ROUTES; how it is checked.
        reason: why the tolerance is what it is.
        tolerance: the largest absolute error between lines without a standard error. Estimated lines are
            allowed five standard errors.
        instances: returns what the function is called with, one call for each; by default three seeded
            `numpy.random.Generator`s.

    Raises ValueError for a kind or a route that is none of these, and for a label that has a check already.
    """
    for name, value, allowed in (("kind", kind, KINDS), ("route", route, ROUTES)):
        if value not in allowed:
            raise ValueError(f"{name} of {label!r} is {value!r}; it must be one of {', '.join(allowed)}")
    if label in CHECKS:
        raise ValueError(f"label {label!r} is registered twice")

    def register(function: Callable[[Any], Lines]) -> Callable[[Any], Lines]:
        CHECKS[label] = Check(label, statement, kind, route, tolerance, reason, instances, function)
        return function

    return register


def select(chapter: str | None = None, label: str | None = None) -> list[Check]:
    """The checks of one chapter, of one label, or all of them.

    Raises ValueError for an unknown name, with the nearest known ones.

    >>> from companion.derivations import select
    >>> [check.label for check in select(label="elbo-gap-kl")]
    ['elbo-gap-kl']
    >>> all(check.chapter == "elbo" for check in select(chapter="elbo"))
    True
    """
    chapters = sorted({check.chapter for check in CHECKS.values()})
    for argument, value, known in (("chapter", chapter, chapters), ("label", label, list(CHECKS))):
        if value is not None and value not in known:
            near = difflib.get_close_matches(value, known, n=3) or known[:5]
            raise ValueError(f"unknown {argument} {value!r}; did you mean {', '.join(near)}?")
    return [c for c in CHECKS.values() if chapter in (None, c.chapter) and label in (None, c.label)]


def verify(label: str) -> Result:
    """Run the check of one equation. Displays as a small table.

    Raises:
        CheckFailed: the equation did not close, or a mutant survived.
        ValueError: no equation has this label.

    >>> from companion.derivations import verify
    >>> result = verify("jensen-concave")
    >>> result.ok, result.kind, len(result.mutants) >= 2
    (True, 'inequality', True)
    """
    [check] = select(label=label)
    result = check.run()
    if not result.ok:
        raise CheckFailed(repr(result))
    return result


def _jsonable(value: ArrayLike) -> float | list[float]:
    array = np.asarray(value, dtype=np.float64)
    return float(array) if array.ndim == 0 else array.ravel()[:4].tolist()


def _format(value: float | list[float]) -> str:
    # Rounding noise around zero differs between processors, and the notebooks' outputs must not.
    values = [0.0 if abs(v) < 1e-9 else v for v in (value if isinstance(value, list) else [value])]
    return f"{values[0]:.5g}" if isinstance(value, float) else ", ".join(f"{v:.4g}" for v in values)
