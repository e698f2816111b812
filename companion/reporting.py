"""What a chapter prints: numbers that training produced, within their range, and sources."""

import inspect
import textwrap
from collections.abc import Callable


def report(name: str, value: float, low: float, high: float) -> None:
    """Print a number and the range it has to be in.

    Training gives slightly different numbers on different processors, so that they cannot be compared digit
    by digit. Raises AssertionError when the value is outside [low, high] or not a number.

    >>> from companion.reporting import report
    >>> report("accuracy", 0.913, 0.9, 0.95)
    accuracy: 0.913   (between 0.9 and 0.95)
    """
    print(f"{name}: {value:.4g}   (between {low:g} and {high:g})")
    if not low <= value <= high:
        raise AssertionError(f"{name} is {value:.6g}, outside [{low:g}, {high:g}]")


def show_source(*objects: Callable) -> None:
    """Print the source of functions, methods or classes, so that a chapter shows what runs."""
    print("\n".join(textwrap.dedent(inspect.getsource(thing)) for thing in objects).rstrip())
