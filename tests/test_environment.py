"""What describes the project's environment and its address, file by file, says the same everywhere."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from threading import Thread

import constraints
import pytest
import release
import repository
import serve
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import companion
from companion import zoo

ROOT = repository.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = {
    canonicalize_name(name): version for name, version in constraints.pins(constraints.CONSTRAINTS.read_text()).items()
}
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
ALL = [*CORE, *(Requirement(line) for lines in EXTRAS.values() for line in lines)]


def read_yaml(path):
    return yaml.safe_load((ROOT / path).read_text())


# Versions.


@pytest.mark.parametrize("requirement", ALL, ids=str)
def test_every_dependency_is_pinned_to_a_version_that_it_allows(requirement):
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("requirement", CORE, ids=str)
def test_the_package_itself_asks_for_floors_only(requirement):
    # Anything stricter could replace what a reader's machine, Colab's above all, already has.
    assert [specifier.operator for specifier in requirement.specifier] == [">="]
    assert requirement.url is None


def test_constraints_pin_exact_versions_and_no_builds_of_them():
    lines = [line for line in constraints.CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    assert lines == sorted(lines, key=str.upper)
    assert {"torch", "hatchling"} <= PINS.keys()


def test_jupyter_book_is_of_the_first_generation():
    [specifier] = [requirement.specifier for requirement in ALL if requirement.name == "jupyter-book"]
    assert {str(part) for part in specifier} == {">=1.0.4", "<2"}


def test_rewritten_constraints_keep_header_and_build_backend_and_drop_what_is_gone(monkeypatch):
    monkeypatch.setattr(constraints, "installed", lambda: {"torch": "3.0", "Zebra": "1", "ant": "2"})
    old = "# one\n# two\nhatchling==1.33.0\ntorch==2.13.0\nunused==1.0\n"
    assert constraints.render(old) == "# one\n# two\nant==2\nhatchling==1.33.0\ntorch==3.0\nZebra==1\n"


def test_installed_versions_are_without_the_project_and_local_parts():
    found = constraints.installed()
    assert "torch" in found and PROJECT["name"] not in found
    assert not [version for version in found.values() if "+" in version]


def test_conda_installs_what_make_installs():
    environment = read_yaml("environment.yml")
    *conda, pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    assert f"python {PROJECT['requires-python']}" in conda and "pip" in conda
    assert pip == {"pip": [f"-c {constraints.CONSTRAINTS.name}", "-e .[book,test]"]}
    assert "--editable '.[book,test]'" in (ROOT / "Makefile").read_text()


def test_continuous_integration_calls_the_makefile_and_nothing_else():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    run = (ROOT / ".ci/run").read_text()
    steps = [step for job in read_yaml(".github/workflows/ci.yml")["jobs"].values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    pythons = {step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")}

    # The workflow runs the script rather than a copy of it, so the two cannot part ways.
    assert set(commands) == {"bash .ci/run", "make book"}
    assert re.findall(r"\bmake (\w+)", run) == ["mathjax", "test"] and {"mathjax", "test", "book"} <= targets
    assert pythons == {PROJECT["requires-python"].removeprefix(">=")}


def test_other_workflows_call_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        for job in read_yaml(path.relative_to(ROOT))["jobs"].values():
            names = job.get("strategy", {}).get("matrix", {}).get("target", [""])
            commands = [step["run"] for step in job["steps"] if "run" in step]
            called = {command.replace("${{ matrix.target }}", name) for command in commands for name in names}
            assert called - {"bash .ci/run"} <= {f"make {target}" for target in targets}, path.name


def test_a_release_needs_one_version_and_all_data(tmp_path):
    assert set(release.versions().values()) == {PROJECT["version"]}
    names = sorted(path.relative_to(ROOT).as_posix() for pattern in release.DATA for path in ROOT.glob(pattern))
    assert {f"companion/zoo/{name}.safetensors" for name in zoo.ZOO} <= set(names)
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        for name in names[1:]:
            wheel.writestr(name, "")
    assert release.missing(tmp_path / "x.whl") == {names[0]}


def test_versions_and_titles_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    config = read_yaml("_config.yml")
    assert citation["version"] == PROJECT["version"] == companion.__version__
    assert citation["title"] == citation["preferred-citation"]["title"] == config["title"]
    assert citation["authors"] == citation["preferred-citation"]["authors"] == PROJECT["authors"]
    assert citation["license"] == PROJECT["license"]


# The repository's address.


def test_one_address_everywhere():
    assert repository.stale() == []
    config, citation = read_yaml("_config.yml"), read_yaml("CITATION.cff")
    places = [
        config["repository"]["url"],
        config["sphinx"]["config"]["verified_repository"],
        citation["repository-code"],
        citation["preferred-citation"]["url"],
    ]
    assert places == [repository.address()] * len(places)


@pytest.fixture
def tree(tmp_path):
    """A copy of the project with a chapter that shows the address."""
    ignored = shutil.ignore_patterns(".git", ".venv", ".*cache", ".hypothesis", "_build", "__pycache__")
    copy = shutil.copytree(ROOT, tmp_path / "tree", ignore=ignored)
    write_chapter(copy / "book/99_test.ipynb", repository.bootstrap())
    return copy


def write_chapter(path, *sources):
    cells = [{"cell_type": "code", "metadata": {}, "outputs": [], "source": text.splitlines(True)} for text in sources]
    path.write_text(json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 5}, indent=1))


@pytest.mark.parametrize("new", ["https://example.org/someone/another-name", repository.address() + "-2"])
def test_a_new_address_replaces_the_old_one_everywhere(tree, new):
    old, before = repository.address(tree), repository.stale(tree)
    notebooks = {path: path.read_text() for path in tree.rglob("*.ipynb")}
    repository.carry(new, tree)

    assert repository.address(tree) == new
    assert repository.stale(tree) == before
    contents = [path.read_bytes().replace(new.encode(), b"") for path in tree.rglob("*") if path.is_file()]
    assert not any(old.encode() in content for content in contents)
    for path, text in notebooks.items():
        assert json.loads(path.read_text()) == json.loads(text.replace(old, new))
    assert first_code(tree / "book/99_test.ipynb") == repository.bootstrap(tree)

    # And back: nothing but the address was touched.
    repository.carry(old, tree)
    assert {path: path.read_text() for path in notebooks} == notebooks


def test_places_in_colab_and_on_the_web_move_along(tree):
    repository.carry("https://github.com/old/name", tree)
    page = tree / "book/page.md"
    kept = "https://github.com/old/name-data https://pypi.org/project/name"
    text = (
        "[c](https://colab.research.google.com/github/{0}/blob/main/x.ipynb) https://{1}.\nhttps://github.com/{0}.git"
    )
    page.write_text(f"{text.format('old/name', 'old.github.io/name')} {kept}")
    repository.carry("https://github.com/new/name", tree)
    assert page.read_text() == f"{text.format('new/name', 'new.github.io/name')} {kept}"
    assert not [line for line in repository.stale(tree) if line.startswith("book/page.md")]


@pytest.mark.parametrize("url", ["https://github.com/another/{name}", "https://another.github.io/{name}/index.html"])
def test_another_address_and_a_missing_one_are_noticed(tree, url):
    name = repository.address().rpartition("/")[2]
    (tree / "book/page.md").write_text(f"See {url.format(name=name)}.")
    write_chapter(tree / "book/98_test.ipynb", "print()")
    lines = repository.stale(tree)
    assert any(line.startswith("book/page.md: https://") for line in lines)
    assert "book/98_test.ipynb: lacks the address" in lines
    assert "book/99_test.ipynb: lacks the address" not in lines


MALFORMED = """
name
git@github.com:owner/name
http://github.com/owner/name
https://github.com/name
https://github.com/owner/name/
https://github.com/owner/name.git
https://github.com/owner/name/tree/main
"""


@pytest.mark.parametrize("url", ["", *MALFORMED.split()])
def test_a_malformed_address_is_refused_and_changes_nothing(tree, url):
    with pytest.raises(ValueError, match="has to be https://host/owner/name"):
        repository.carry(url, tree)
    assert repository.address(tree) == repository.address()


def test_no_tracked_text_file_is_overlooked():
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("needs a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {ROOT / name for name in listed.split("\0") if name}
    texts = {path for path in tracked if path.is_file() and repository.is_text(path)}
    assert texts <= set(repository.files())


# The first cell of every chapter.


def first_code(path):
    cells = json.loads(path.read_text())["cells"]
    return "".join(next(cell["source"] for cell in cells if cell["cell_type"] == "code"))


@pytest.mark.parametrize("path", repository.chapters(), ids=lambda path: path.stem)
def test_a_chapter_starts_with_the_cell_that_installs_the_package(path):
    assert first_code(path) == repository.bootstrap()


def python(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_first_cell_does_nothing_where_the_package_is():
    assert python(f"import subprocess\nsubprocess.run = None\n{repository.bootstrap()}") == ""


def test_the_first_cell_makes_way_for_ours_where_another_companion_was_imported():
    stand_ins = (
        "import subprocess, sys, types\n"
        "sys.modules['companion'] = types.ModuleType('companion')\n"
        "subprocess.run = lambda command, check: print(command[-1])\n"
    )
    requirement, version = python(
        f"{stand_ins}{repository.bootstrap()}\nimport companion.derivations\nprint(companion.__version__)"
    ).splitlines()
    assert requirement == f"git+{repository.address()}"
    assert version == companion.__version__


# Looking at the built book.


def test_the_book_is_served_on_a_free_port_to_this_machine_alone(tmp_path):
    with pytest.raises(FileNotFoundError, match="make book"):
        serve.server(tmp_path)
    (tmp_path / "index.html").write_text("the book")
    with serve.server(tmp_path, port=0) as first, serve.server(tmp_path, port=first.server_port) as second:
        assert first.server_port != second.server_port
        assert second.server_address[0] == "127.0.0.1"
        Thread(target=second.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{second.server_port}/"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert opener.open(address, timeout=10).read() == b"the book"
        second.shutdown()
