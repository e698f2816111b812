"""The glossary: in order, short, and with equations that exist."""

import re
from pathlib import Path

import pytest

from companion.derivations import CHECKS

PAGE = (Path(__file__).parents[1] / "book/appendix/glossary.md").read_text()
[BLOCK] = re.findall(r"^```\{glossary\}\n(.*?)^```$", PAGE, re.S | re.M)
ENTRIES = dict(entry.split("\n", 1) for entry in BLOCK.strip("\n").split("\n\n"))


def test_terms_are_sorted_and_differ():
    terms = [term.lower().replace("–", "-") for term in re.findall(r"^\S.*$", BLOCK, re.M)]
    assert terms == sorted(set(terms))
    assert 60 <= len(terms) <= 100


def test_no_term_takes_the_name_of_an_equation():
    # `[](#name)` would not know which of the two is meant.
    assert not set(ENTRIES) & set(CHECKS)


@pytest.mark.parametrize("term", ENTRIES)
def test_entries_are_short_and_name_equations_that_exist(term):
    text = ENTRIES[term].strip()
    labels = re.findall(r"\[\]\(#([^)]+)\)", text)
    assert set(labels) <= set(CHECKS)
    for other in re.findall(r"\{term\}`([^`]+)`", text):
        assert other in ENTRIES
    prose = re.sub(r"\[\]\(#[^)]+\)(, )?", "", text).strip()
    assert prose.endswith(".") and len(prose.split()) <= 40 and "$$" not in text
    assert prose.count(". ") <= 1
