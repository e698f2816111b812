"""Lets tests import the scripts in tools/ by name, lets hypothesis take its time on a busy machine, and holds what
several test files use."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
hypothesis.settings.register_profile("book", deadline=None)
hypothesis.settings.load_profile("book")


@pytest.fixture
def one_thread():
    """Small events are slower on several threads, much slower where others use the processor too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def refuses_bad_examples():
    """A function of `call(x)` and of examples that it accepts: bad ones are refused, with their reason."""

    def check(call, good):
        call(good)
        for bad, error, match in (
            (good[0], ValueError, "shape"),
            (good[:, :1], ValueError, "shape"),
            (good * torch.nan, ValueError, "finite"),
            (good.long(), TypeError, "floating"),
            ([0.0, 0.0], TypeError, "torch.Tensor"),
        ):
            with pytest.raises(error, match=match):
                call(bad)

    return check


@pytest.fixture(scope="session")
def build_book():
    """A function that builds a copy of the book, without executing it, in a folder; it returns the finished process."""

    def build(folder, ledger):
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        for part in ("book", "companion"):
            shutil.copytree(ROOT / part, folder / part, ignore=ignored)
        shutil.copy(ROOT / "_toc.yml", folder)
        config = yaml.safe_load((ROOT / "_config.yml").read_text())
        config["execute"]["execute_notebooks"] = "off"
        (folder / "_config.yml").write_text(yaml.safe_dump(config))
        (folder / "_build").mkdir()
        file = config["sphinx"]["config"].get("verified_ledger", "_build/ledger.json")
        (folder / file).write_text(json.dumps(ledger))
        command = [str(Path(sys.executable).with_name("jupyter-book")), "build", "-W", "-n", "--keep-going", "-q", "."]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True)

    return build


@pytest.fixture(scope="session")
def ledger():
    """What all checks found, as `companion verify` writes it."""
    from companion.derivations import CHECKS

    return [check.run().to_dict() for check in CHECKS.values()]


@pytest.fixture(scope="session")
def site(tmp_path_factory, build_book, ledger):
    """The folder of the built book."""
    folder = tmp_path_factory.mktemp("book")
    process = build_book(folder, ledger)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return folder / "_build/html"
