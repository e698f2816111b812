"""What a checker is made of: a registry, a verdict, and three ways to hold an answer to a computation.

    @checks("gan-3")
    def best_logit(answer):
        \"\"\"A function of (x, mu): ...\"\"\"
        function(answer, right, instances, {"the sign is inverted": wrong}, otherwise="...")

A checker returns nothing for a right answer and raises `NotYet` with a hint otherwise. The first paragraph of its
docstring says what form the answer has; that is what a reader with another form is told.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

# Where both sides are float64 and only rounding is between them.
EXACT = 1e-6


class NotYet(Exception):
    """The answer is not right; the message is the hint."""


class Unreadable(NotYet):
    """The answer has another form than the one asked for; the message says what was found."""


@dataclass(frozen=True)
class Verdict:
    """Of one answer: true when it is right; prints itself."""

    label: str
    right: bool
    hint: str = ""

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{self.label}: right" if self.right else f"{self.label}: not yet: {self.hint}"


CHECKERS: dict[str, Callable[[Any], None]] = {}


def checks(label: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a function as the checker of the exercise `label`. Raises ValueError for a label that has one."""
    if label in CHECKERS:
        raise ValueError(f"label {label!r} is registered twice")

    def register(checker: Callable[[Any], None]) -> Callable[[Any], None]:
        CHECKERS[label] = checker
        return checker

    return register


def check(label: str, answer: Any) -> Verdict:
    """Is `answer` right? The verdict says so, or what to look at; an answer of another form is told which is meant.

    Every answer is held to a computation of its own: enumeration, quadrature, a closed form, autograd. None is stored.

    Raises ValueError for a label that cannot be checked, with those that can.
    """
    if label not in CHECKERS:
        raise ValueError(f"label is {label!r}, and no exercise of that name can be checked; these can: {known()}")
    checker = CHECKERS[label]
    try:
        checker(answer)
    except Unreadable as found:
        form = " ".join((inspect.getdoc(checker) or "").partition("\n\n")[0].split())
        return Verdict(label, False, f"{found}. The answer asked for: {form}")
    except NotYet as hint:
        return Verdict(label, False, str(hint))
    return Verdict(label, True)


def known() -> str:
    return ", ".join(CHECKERS)


def dictionary(answer: Any, names: Iterable[str]) -> Mapping[str, Any]:
    """The answer as a dictionary with these keys. Raises Unreadable."""
    if not isinstance(answer, Mapping):
        raise Unreadable(f"got {kind(answer)} where a dictionary was expected")
    if set(answer) != set(names):
        raise Unreadable(f"the keys are {', '.join(map(repr, answer)) or 'missing'}")
    return answer


def numbers(answer: Any, names: Sequence[str]) -> dict[str, float]:
    """The numbers of a dictionary with these keys, in the order of `names`. Raises Unreadable."""
    given = dictionary(answer, names)
    return {name: number(given[name], repr(name)) for name in names}


def number(answer: Any, name: str = "the answer") -> float:
    """The answer as one number. Raises Unreadable."""
    value = np.squeeze(array(answer, name))
    if value.ndim:
        raise Unreadable(f"{name} holds {value.size} numbers where one was expected")
    return float(value)


def array(value: Any, name: str) -> np.ndarray:
    """A number, list, array or tensor in float64. Raises Unreadable for what is none, or not finite."""
    try:
        found = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        found = np.asarray(None)
    if found.dtype.kind not in "iuf":
        raise Unreadable(f"{name} is {kind(value)} and holds no numbers")
    if not np.isfinite(found).all():
        raise Unreadable(f"{name} holds NaN or infinite values")
    return found.astype(np.float64)


def call(answer: Any, *instance: Any) -> Any:
    """What the reader's function returns. Raises Unreadable where it is none, or raises itself."""
    if not callable(answer):
        raise Unreadable(f"got {kind(answer)} where a function was expected")
    try:
        return answer(*copy.deepcopy(instance))
    except Exception as error:
        raise Unreadable(f"your function raised {type(error).__name__}: {error}") from error


Values = Mapping[str, ArrayLike]


def expect(
    got: Values,
    right: Values,
    slips: Mapping[str, Values],
    otherwise: str,
    relative: float = EXACT,
    absolute: float = 0.0,
) -> None:
    """Raise NotYet unless every named number is right: with the slip that it fits, or with `otherwise`.

    Args:
        slips: for each hint, the values that the mistake leads to, of all names or of some.
        relative, absolute: the largest error, as a share of the largest number of an array, and as a number.
    """
    tolerance = Tolerance(relative, absolute)
    wrong = [name for name in right if not tolerance.fits(got[name], right[name])]
    if wrong:
        hint = tolerance.slip(wrong[0], got, right, slips) or otherwise
        raise NotYet(f"{wrong[0]}: {hint}" if wrong[0] else hint)


@dataclass(frozen=True)
class Tolerance:
    relative: float
    absolute: float

    def fits(self, found: ArrayLike, wanted: ArrayLike) -> bool:
        found, wanted = np.squeeze(found), np.squeeze(wanted)
        # Beside zero there is rounding, too.
        allowed = self.absolute + self.relative * np.abs(wanted).max(initial=0.0) + 1e-12
        return found.shape == wanted.shape and bool(np.all(np.abs(found - wanted) <= allowed))

    def slip(self, name: str, got: Values, right: Values, slips: Mapping[str, Values]) -> str | None:
        """The hint of the mistake that explains `name`, and of those that do the one that explains most other names."""
        fitting = {
            hint: sum(self.fits(got[other], slip.get(other, right[other])) for other in right)
            for hint, slip in slips.items()
            if name in slip and self.fits(got[name], slip[name])
        }
        return max(fitting, key=fitting.__getitem__, default=None)


def function(
    answer: Any,
    right: Callable[..., Any],
    instances: Sequence[tuple],
    slips: Mapping[str, Callable[..., Any]],
    otherwise: str,
    outputs: Sequence[str] = ("",),
    relative: float = EXACT,
    absolute: float = 0.0,
) -> None:
    """Raise NotYet unless `answer` does on every instance what `right` does.

    Args:
        slips: for each hint, the function that the mistake leads to; of several outputs it may leave some out, as None.
        otherwise: the hint where no slip fits; the first instance that is wrong is added.
        outputs: the names of what is returned, a tuple where there are several.
        relative, absolute: as in `expect`.
    """

    def run(f: Callable[..., Any]) -> list[dict[str, np.ndarray]]:
        """What `f` returns on each instance, by name."""
        answers = []
        for instance in instances:
            found = call(f, *instance)
            if len(outputs) == 1:
                found = (found,)
            elif not isinstance(found, tuple | list) or len(found) != len(outputs):
                raise Unreadable(f"your function returns {kind(found)}, not a tuple of {' and '.join(outputs)}")
            said = zip(outputs, found, strict=True)
            parts = {name: value for name, value in said if value is not None or f is answer}
            answers.append({name: array(value, name or "what it returns") for name, value in parts.items()})
        return answers

    def flat(answers: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([part[name].ravel() for part in answers]) for name in answers[0]}

    tolerance, got, expected = Tolerance(relative, absolute), run(answer), run(right)
    for instance, found, wanted in zip(instances, got, expected, strict=True):
        wrong = [name for name in outputs if not tolerance.fits(found[name], wanted[name])]
        if not wrong:
            continue
        name, where = wrong[0], show(right, instance)
        prefix = f"{name}: " if name else ""
        hint = tolerance.slip(name, flat(got), flat(expected), {text: flat(run(slip)) for text, slip in slips.items()})
        if hint:
            raise NotYet(prefix + hint)
        yours, theirs = found[name], wanted[name]
        if yours.size != theirs.size:
            raise Unreadable(f"{prefix}what it returns has shape {yours.shape}, not {theirs.shape}, for {where}")
        raise NotYet(f"{prefix}{otherwise}; for {where} it should be {text_of(theirs)}, and is {text_of(yours)}")


def show(f: Callable[..., Any], instance: tuple) -> str:
    """`x = 0.3, mu = 2`: an instance by the names of the arguments."""
    names = inspect.signature(f).parameters
    return ", ".join(f"{name} = {text_of(value)}" for name, value in zip(names, instance, strict=False))


def text_of(value: Any) -> str:
    """A number or an array on one line; of a large array the first numbers."""
    if isinstance(value, np.ndarray | torch.Tensor):
        shape = f" of shape {tuple(value.shape)}" if value.ndim > 1 else ""
        flat = np.asarray(value, dtype=np.float64).ravel()
        inner = ", ".join(f"{v:.4g}" for v in flat[:4]) + (", …" if flat.size > 4 else "")
        return f"[{inner}]{shape}" if value.ndim else f"{flat[0]:.4g}"
    if isinstance(value, float | int):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    return "a function" if callable(value) else "a stream" if hasattr(value, "__next__") else repr(value)


def kind(value: Any) -> str:
    name = type(value).__name__
    article = "an" if name[0] in "aeiou" else "a"
    return {str: "a text", bool: "a truth value", type(None): "None"}.get(type(value), f"{article} {name}")
