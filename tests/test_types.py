"""What mypy and ruff say of the source, and that the public functions say what they take and give."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PUBLIC = sorted(p for p in (ROOT / "companion").rglob("__init__.py") if "__all__" in p.read_text())


@pytest.mark.parametrize("tool", [("mypy",), ("ruff", "check", "."), ("ruff", "format", "--check", ".")], ids=" ".join)
def test_clean(tool):
    process = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-5000:] + process.stderr


def functions(definition):
    """A function, or the public methods of a class and what makes an instance."""
    if isinstance(definition, ast.FunctionDef):
        return [definition]
    methods = (item for item in definition.body if isinstance(item, ast.FunctionDef))
    return [m for m in methods if not m.name.startswith("_") or m.name == "__init__"]


def unannotated(function):
    args = function.args
    given = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    missing = [a.arg for a in given if a.annotation is None and a.arg not in ("self", "cls")]
    return missing + ["return"] * (function.returns is None and function.name != "__init__")


def definition(package, name):
    """Where a name that a package exports is defined."""
    tree = ast.parse(package.read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            path = ROOT.joinpath(*node.module.split("."))
            found = definition(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"), name)
            if found is not None:
                return found
    return None


@pytest.mark.parametrize("package", PUBLIC, ids=lambda p: p.parent.name)
def test_the_public_interface_is_annotated(package):
    names = {node.value for node in ast.walk(ast.parse(package.read_text())) if isinstance(node, ast.Constant)}
    found = {name: definition(package, name) for name in names if isinstance(name, str) and name.isidentifier()}
    wrong = {
        f"{name}.{function.name}": missing
        for name, node in found.items()
        if node is not None
        for function in functions(node)
        if (missing := unannotated(function))
    }
    assert any(found.values()) and not wrong
