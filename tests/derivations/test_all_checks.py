"""Every check closes and rejects its mutants, and all of them together are quick."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from companion.derivations import CHECKS, CheckFailed, select, verify
from companion.derivations.registry import Lines, Mutant, verifies


@cache
def result_of(label):
    return CHECKS[label].run()


@pytest.mark.parametrize("label", list(CHECKS))
def test_check(label):
    result = result_of(label)
    assert result.passed, repr(result)
    assert all(m.rejected for m in result.mutants), repr(result)
    assert result.reason and result.statement


@pytest.mark.parametrize("label", list(CHECKS))
def test_source_points_at_the_check(label):
    file, _, lines = CHECKS[label].source.partition("#")
    first = int(lines.split("-")[0].lstrip("L"))
    text = (Path(__file__).parents[2] / file).read_text().splitlines()
    assert text[first - 1] == "@verifies(" and label in "".join(text[first - 1 : first + 2])


def test_lines_of_an_aligned_derivation_are_all_computed():
    for check in CHECKS.values():
        if "aligned" in check.statement:
            # A row that starts with \quad or a minus continues the formula above it.
            rows = len(re.findall(r"(?:aligned\}|\\\\)\n(?!&-|&\\quad)", check.statement))
            assert len(result_of(check.label).lines) >= rows + 1, check.label


def test_no_row_is_taken_for_an_option():
    """LaTeX reads a bracket after the start of `aligned`, or after a line break, as an option, and shows nothing."""
    for check in CHECKS.values():
        assert not re.search(r"(?:begin\{aligned\}|\\\\)\s*\[", check.statement), check.label


def test_all_together_take_less_than_a_minute():
    assert sum(result_of(label).seconds for label in CHECKS) < 60


def test_errata_are_cited_in_one_form():
    for label in CHECKS:
        for mutant in result_of(label).mutants:
            assert mutant.erratum is None or re.fullmatch(r"E00[0-4]-\d\d", mutant.erratum), mutant


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="elbo-gap-kl"):
        verify("elbo-gap")
    with pytest.raises(ValueError, match="unknown chapter 'elbow'; did you mean elbo"):
        select(chapter="elbow")
    with pytest.raises(ValueError, match="kind of 'x' is 'theorem'; it must be one of identity"):
        verifies("x", "", kind="theorem", route="quadrature", reason="")
    with pytest.raises(ValueError, match="registered twice"):
        verifies("elbo-gap-kl", "", kind="identity", route="quadrature", reason="")


def test_verify_raises_when_an_equation_is_broken(monkeypatch):
    check = CHECKS["jensen-concave"]
    broken = Lines({"a": 1.0, "= b": 2.0}, [Mutant("m", 9.0), Mutant("n", 9.0)])
    monkeypatch.setitem(CHECKS, check.label, type(check)(**{**vars(check), "function": lambda _: broken}))
    with pytest.raises(CheckFailed, match="FAILED"):
        verify("jensen-concave")


def companion(*arguments):
    command = [sys.executable, "-m", "companion.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_command_line_writes_the_ledger(tmp_path):
    file = tmp_path / "deep" / "ledger.json"
    run = companion("verify", "--chapter", "elbo", "--json", str(file))
    assert run.returncode == 0, run.stderr
    entries = json.loads(file.read_text())
    assert [e["label"] for e in entries] == [c.label for c in select(chapter="elbo")]
    keys = "label chapter statement kind route lines error tolerance reason passed seconds source mutants".split()
    assert list(entries[0]) == keys
    assert list(entries[0]["mutants"][0]) == ["name", "erratum", "error", "rejected"]
    assert f"{len(entries)} of {len(entries)} equations checked" in run.stdout


def test_command_line_refuses_an_unknown_label():
    run = companion("verify", "--label", "elbo-gap")
    assert run.returncode == 2 and "did you mean elbo-gap-kl" in run.stderr


def test_command_line_fails_when_a_check_fails():
    code = (
        "import sys; from functools import wraps\n"
        "from companion import cli, derivations as d; from companion.derivations import Lines, Mutant\n"
        "c = d.CHECKS['jensen-concave']\n"
        "broken = wraps(c.function)(lambda toy: Lines({'a': 1., '= b': 2.}, [Mutant('m', 9.), Mutant('n', 9.)]))\n"
        "d.CHECKS[c.label] = type(c)(**{**vars(c), 'function': broken})\n"
        "sys.argv = ['companion', 'verify', '--label', c.label]; cli.main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1 and "FAILED" in run.stdout, run.stderr
