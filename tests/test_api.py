"""The API reference has every public name with its arguments, and its links lead from code to equations and back."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from companion.derivations import CHECKS

EXTENSIONS = Path(__file__).parents[1] / "book" / "_ext"
sys.path.append(str(EXTENSIONS))
import api  # noqa: E402

ENTRIES = [entry for found in api.pages().values() for entry in found]
PACKAGES = ["autoregressive", "ddpm", "ebm", "faster_sampling", "flows"]
PACKAGES = [*(f"models.{name}" for name in PACKAGES), "conformance", "data", "derivations", "evaluation", "samplers"]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_has_an_entry(name):
    package = importlib.import_module(f"companion.{name}")
    objects = [getattr(package, name) for name in package.__all__]
    public = {(o.__module__, o.__name__) for o in objects if inspect.isfunction(o) or isinstance(o, type)}
    assert public and public <= {(entry.module, entry.node.name) for entry in ENTRIES}


def test_no_anchor_comes_twice():
    anchors = [entry.anchor for entry in ENTRIES]
    assert len(anchors) == len(set(anchors)) > 150


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.anchor)
def test_signatures_are_those_of_the_objects(entry):
    written = api.signature(entry.node, api.source_file(entry.module.removeprefix("companion.")).read_text())
    thing = getattr(importlib.import_module(entry.module), entry.node.name)
    if "(" not in written:
        return
    # The names before a colon, a default or the end, outside of any bracket of an annotation.
    inner = written[written.index("(") + 1 : written.rindex(")", 0, written.rfind("->") if "->" in written else None)]
    flat = re.sub(r'"[^"]*"', "", inner)
    while (shorter := re.sub(r"\[[^\[\]]*\]|\([^()]*\)|\{[^{}]*\}", "", flat)) != flat:
        flat = shorter
    names = [re.match(r"\**(\w*)", part.strip())[1] for part in flat.split(",") if part.strip()]
    assert [name for name in names if name] == [p for p in inspect.signature(thing).parameters if p != "self"]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.anchor)
def test_everything_public_says_what_it_is(entry):
    methods = entry.node.body if isinstance(entry.node, ast.ClassDef) else []
    public = [m for m in methods if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
    assert not [node.name for node in (entry.node, *public) if not ast.get_docstring(node)]


def test_shapes_are_readable():
    [vae] = [entry for entry in ENTRIES if entry.node.name == "mutual_information_gap"]
    text = api.signature(vae.node, api.source_file("evaluation.disentanglement").read_text())
    assert 'code: Float[Tensor, "n latent"],\n' in text and "bins: int = 20" in text and text.endswith(") -> float")


def reached(function):
    """What of the package a check's compiled code names, itself or by what else its module defines."""
    module, found, seen, open_ = function.__globals__, set(), set(), [function]
    while open_:
        thing = open_.pop()
        if thing in seen:
            continue
        seen.add(thing)
        codes = [m.__code__ for m in vars(thing).values() if inspect.isfunction(m)] if isinstance(thing, type) else []
        codes += [thing.__code__] if inspect.isfunction(thing) else []
        while codes:
            code = codes.pop()
            codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
            for value in (module[name] for name in code.co_names if name in module):
                if not (inspect.isfunction(value) or isinstance(value, type)):
                    continue
                if value.__module__ == function.__module__:
                    open_.append(value)
                elif value.__module__.startswith("companion.") and "registry" not in value.__module__:
                    found.add((value.__module__, value.__name__))
    return found


def test_equations_are_those_whose_checks_use_the_entry():
    read = {}
    for key, equations in api.equations().items():
        for _, label in equations:
            read.setdefault(label, set()).add(key)
    for label, check in CHECKS.items():
        assert reached(check.function) <= read.get(label, set()), label
    assert ("companion.models.vae", "VAE") not in read.get("jensen-concave", set())


CONF = """
extensions = ["myst_parser", "api"]
myst_enable_extensions = ["dollarmath"]
exclude_patterns = ["_build"]
root_doc = "book/index"
"""


def test_links_both_ways(tmp_path):
    """A book of two pages: the reference, and a chapter with one equation."""
    label = next(label for label, used in api.uses("autoregressive").items() if any("NADE" in name for _, name in used))
    for file, text in {
        "conf.py": f"import sys\nsys.path.insert(0, {str(EXTENSIONS)!r})\n{CONF}",
        "book/index.md": "# Book\n\n```{toctree}\n06_autoregressive\nappendix/api\n```\n",
        "book/06_autoregressive.md": f"# Chapter\n\n$$x=x$$ ({label})\n\n## Section\n\nText.\n",
        "book/appendix/api.md": "# API\n\n```{api}\n```\n",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).write_text(text)
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "--keep-going", "-b", "html", ".", "_build"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    chapter = (tmp_path / "_build/book/06_autoregressive.html").read_text()
    page = (tmp_path / "_build/book/appendix/api.html").read_text()
    for name in ("NADE", "PixelCNN"):
        anchor = f"api-companion.models.autoregressive.{name}"
        assert f'href="appendix/api.html#{anchor}"' in chapter and f'id="{anchor}"' in page
    entry = page.partition('id="api-companion.models.autoregressive.NADE"')[2].partition('class="api-entry')[0]
    assert f'href="../06_autoregressive.html#equation-{label}"' in entry and f'id="equation-{label}"' in chapter
    assert "../06_autoregressive.html" in page.partition('id="module-companion.models.autoregressive"')[2][:3000]
