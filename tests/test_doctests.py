"""The examples in the package's docstrings give what they say."""

import ast
import doctest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef


def examples():
    """Every docstring with examples. Found in the source: a decorated function is hidden from pytest's own search."""
    for path in sorted((ROOT / "companion").rglob("*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if ">>>" in text else ():
            docstring = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
            if docstring and ">>>" in docstring:
                name = f"{path.relative_to(ROOT).as_posix()}:{getattr(node, 'name', 'module')}"
                yield pytest.param(docstring, name, id=name)


@pytest.mark.parametrize(("docstring", "name"), list(examples()))
def test_example(docstring, name, one_thread):
    # Nothing is imported for an example: it is what a reader would copy.
    example = doctest.DocTestParser().get_doctest(docstring, {}, name, None, 0)
    report = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert not report, "".join(report)


def test_there_are_examples():
    assert len(list(examples())) >= 40
