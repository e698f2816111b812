"""The judge itself: what it accepts, and that it refuses what it should."""

import numpy as np
import pytest

from companion.derivations import Lines, Mutant
from companion.derivations.registry import Check


def check(function, tolerance=1e-9, route="closed form", instances=lambda: [0, 1, 2]):
    return Check("a-label", "a=b", "identity", route, tolerance, "because", instances, function)


def test_equal_lines_pass_and_a_distant_mutant_is_rejected():
    result = check(lambda _: Lines({"a": 1.0, "= b": 1.0 + 1e-10}, [Mutant("m", 2.0), Mutant("n", 0.0)])).run()
    assert result.passed and result.ok
    assert [m.rejected for m in result.mutants] == [True, True]
    assert result.error == pytest.approx(1e-10, rel=1e-3)


def test_a_broken_line_fails_also_when_only_one_instance_shows_it():
    broken = check(lambda i: Lines({"a": 1.0, "= b": 1.0 + (i == 2)}, [Mutant("m", 5.0), Mutant("n", 5.0)]))
    assert not broken.run().passed


def test_a_surviving_mutant_is_not_ok():
    result = check(lambda _: Lines({"a": 1.0, "= b": 1.0}, [Mutant("same", 1.0), Mutant("far", 2.0)])).run()
    assert result.passed and not result.ok
    # 99 tolerances are not yet a wide margin.
    near = check(lambda _: Lines({"a": 1.0, "= b": 1.0}, [Mutant("near", 1 + 99e-9), Mutant("far", 2.0)]))
    assert [m.rejected for m in near.run().mutants] == [False, True]


def test_inequalities_are_judged_in_their_direction():
    mutants = [Mutant("m", 5.0), Mutant("n", 6.0)]
    assert check(lambda _: Lines({"a": 2.0, "≥ b": 1.0}, mutants)).run().passed
    assert not check(lambda _: Lines({"a": 1.0, "≥ b": 2.0}, mutants)).run().passed
    assert check(lambda _: Lines({"a": 1.0, "≤ b": 2.0}, [Mutant("m", 0), Mutant("n", -1)])).run().ok
    assert not check(lambda _: Lines({"a": 2.0, "≤ b": 1.0}, mutants)).run().passed


def test_a_mutant_may_replace_several_lines():
    swapped = Mutant("the other way round", {"a": 1.0, "≥ b": 2.0})
    assert check(lambda _: Lines({"a": 2.0, "≥ b": 1.0}, [swapped, Mutant("n", 3.0)])).run().ok


def test_estimates_are_allowed_five_standard_errors_and_mutants_need_ten():
    def run(value, mutant):
        mutants = [Mutant("m", mutant), Mutant("n", 9.0)]
        lines = Lines({"a": 0.0, "= estimate": value}, mutants, {"= estimate": 0.1})
        return check(lambda _: lines, tolerance=0.0, route="Monte Carlo", instances=lambda: [0]).run()

    assert run(0.49, 1.01).ok
    assert not run(0.51, 1.01).passed
    assert not run(0.49, 0.99).ok


def test_a_line_that_is_not_a_number_fails():
    assert not check(lambda _: Lines({"a": 1.0, "= b": np.nan}, [Mutant("m", 2), Mutant("n", 2)])).run().passed


def test_arrays_are_judged_element_by_element():
    wrong = np.array([1.0, 2.0, 3.1])
    good = Lines({"a": np.arange(1.0, 4.0), "= b": [1, 2, 3]}, [Mutant("m", wrong), Mutant("n", -wrong)])
    assert check(lambda _: good).run().ok


@pytest.mark.parametrize(
    ("lines", "instances", "message"),
    [
        (Lines({"a": 1, "= b": 1}, [Mutant("m", 2)]), 3, "at least 2 mutants"),
        (Lines({"a": 1, "= b": 1}, [Mutant("m", 2), Mutant("n", 2)]), 2, "at least 3 instances"),
        (Lines({"a": 1, "b": 1}, [Mutant("m", 2), Mutant("n", 2)]), 3, "must start with"),
        (Lines({"a": 1, "= b": 1}, [Mutant("m", np.inf), Mutant("n", 2)]), 3, "no finite value"),
        (Lines({"a": 1, "= b": 1}, [Mutant("m", {"c": 2}), Mutant("n", 2)]), 3, "replaces no line"),
        (Lines({"a": 1}, [Mutant("m", 2), Mutant("n", 2)]), 3, "at least 2 lines"),
    ],
)
def test_malformed_checks_are_refused(lines, instances, message):
    with pytest.raises(ValueError, match=message):
        check(lambda _: lines, instances=lambda: range(instances)).run()
