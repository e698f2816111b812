"""A chapter alone in an empty folder, on a machine that has what Colab has, older than ours, and not our package.

The notebook installs the package from the repository's address, which git is told to find on this machine. The
chapter has to run on what that installs, and the installation may add packages but change none.

    pytest tests/test_colab.py                      the three shortest chapters
    COMPANION_COLAB=all pytest tests/test_colab.py  all of them
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import constraints
import pytest
import repository

ROOT = repository.ROOT
# A virtual environment that stands for Colab's machine: kept between runs, because making it takes a minute or two.
MACHINE = ROOT / ".cache" / "colab"
PYTHON = MACHINE / "bin" / "python"
STAMP = MACHINE / "made.json"

# Of Colab's packages those that the book touches. The first four are older than our own pins, and any
# floor of ours that is too high for them shows as a changed version.
REQUIREMENTS = [
    "numpy==2.0.2",
    "pandas==2.2.2",
    "matplotlib==3.10.0",
    "scipy==1.14.1",
    f"torch=={constraints.pins(constraints.CONSTRAINTS.read_text())['torch']}",
    *("ipykernel", "nbclient", "requests", "seaborn", "tqdm"),
]

EVERY = repository.chapters()
SHORT = [ROOT / "book" / f"{stem}.ipynb" for stem in ("01_generative_problem", "02_elbo", "10_evaluation")]
CHAPTERS = EVERY if os.environ.get("COMPANION_COLAB") == "all" else SHORT

EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
notebook.cells.append(nbformat.v4.new_code_cell(sys.argv[2]))
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
print(notebook.cells[-1].outputs[0].text)
"""

# Runs as the last cell, in the kernel that ran the chapter.
PROBE = """
import json, os, sys
import companion.derivations
import google.colab
print(json.dumps({"companion": companion.__file__, "prefix": sys.prefix, "folder": os.getcwd()}))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("git"), reason="the notebook installs from a git repository: needs git"),
    pytest.mark.skipif(sys.version_info >= (3, 13), reason="Colab's numpy has no wheels for this Python"),
]


def reader(**extra: str) -> dict[str, str]:
    """A reader's variables: without those through which this process would lend the test its own environment."""
    ours = ("COMPANION_", "GIT_", "JUPYTER", "MPLBACKEND", "PIP_CONSTRAINT", "PYTHON", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"PYTHONNOUSERSITE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | extra


def run(*command: str | Path, **options) -> str:
    """Standard output of a command; its errors are the test's message where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, **({"env": reader()} | options))
    if done.returncode:
        pytest.fail(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}", False)
    return done.stdout


def pip(*arguments: str) -> str:
    return run(PYTHON, "-m", "pip", *arguments)


def packages() -> dict[str, str]:
    return {row["name"]: row["version"] for row in json.loads(pip("list", "--format=json"))}


def fresh_machine() -> dict[str, str]:
    """The packages of a machine as it was made: what an earlier run installed is removed, so that the next one does."""
    recipe = {"python": [sys.base_prefix, sys.version], "requirements": REQUIREMENTS}
    stamp = json.loads(STAMP.read_text()) if STAMP.exists() else {}
    if stamp.get("recipe") == recipe and stamp["packages"].items() <= (present := packages()).items():
        if added := present.keys() - stamp["packages"].keys():
            pip("uninstall", "--quiet", "--yes", *added)
        return stamp["packages"]
    run(sys.executable, "-m", "venv", "--clear", MACHINE)
    pip("install", "--quiet", *REQUIREMENTS)
    stamp = {"recipe": recipe, "packages": packages()}
    STAMP.write_text(json.dumps(stamp, indent=1))
    return stamp["packages"]


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """A repository whose one commit is the working tree, changes and new files included; ours is left alone."""
    bare = tmp_path_factory.mktemp("published") / "book.git"
    identity = ("-c", "user.name=reader", "-c", "user.email=reader@localhost", "-c", "commit.gpgsign=false")
    git = ("git", "--git-dir", bare, "--work-tree", ROOT, *identity)
    run("git", "init", "--quiet", "--bare", bare)
    run(*git, "add", "--all", cwd=ROOT)
    run(*git, "commit", "--quiet", "--no-verify", "--message", "what is on disk", cwd=ROOT)
    return bare


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs_alone_and_moves_nothing(chapter, published, tmp_path):
    before = fresh_machine()
    folder, stand_in = tmp_path / "content", tmp_path / "stand_in"
    (stand_in / "google" / "colab").mkdir(parents=True)
    (stand_in / "google" / "colab" / "__init__.py").touch()
    folder.mkdir()
    shutil.copy(chapter, folder)

    redirected = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{published.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": repository.address(),
    }
    variables = reader(PYTHONPATH=str(stand_in), **redirected)
    printed = run(PYTHON, "-c", EXECUTE, chapter.name, PROBE, cwd=folder, env=variables)
    found = json.loads(printed)

    assert Path(found["prefix"]) == MACHINE and Path(found["folder"]) == folder
    assert Path(found["companion"]).is_relative_to(MACHINE) and "site-packages" in found["companion"]

    after = packages()
    assert "generative-models-verified" in after.keys() - before.keys()
    assert {name: (version, after.get(name)) for name, version in before.items() if after.get(name) != version} == {}
