"""The built pages: badges, the ledger behind them, and links that lead somewhere.

The notebooks are not executed here, so that the pictures are missing; everything else is as in `make book`.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from companion.derivations import CHECKS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def build(folder, ledger):
    """Build a copy of the book in a folder; returns the finished process."""
    for part in ("book", "companion"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / "_toc.yml", folder)
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["execute"]["execute_notebooks"] = "off"
    (folder / "_config.yml").write_text(yaml.safe_dump(config))
    (folder / "_build").mkdir()
    (folder / config["sphinx"]["config"].get("verified_ledger", "_build/ledger.json")).write_text(json.dumps(ledger))
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", "-W", "-n", "--keep-going", "-q", "."]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def ledger():
    return [check.run().to_dict() for check in CHECKS.values()]


@pytest.fixture(scope="module")
def site(tmp_path_factory, ledger):
    folder = tmp_path_factory.mktemp("book")
    process = build(folder, ledger)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return folder / "_build/html"


def pages(site):
    return {path: path.read_text() for path in sorted(site.rglob("book/**/*.html"))}


def test_every_equation_has_a_badge_that_leads_to_its_entry(site):
    ledger_page = (site / "book/appendix/ledger.html").read_text()
    badges = {}
    for path, text in pages(site).items():
        for target in re.findall(r'<div class="verified"><a class="ok" href="([^"]+)"', text):
            file, _, anchor = target.partition("#")
            assert (path.parent / file).resolve() == (site / "book/appendix/ledger.html").resolve()
            assert f'id="{anchor}"' in ledger_page
            badges[anchor.removeprefix("check-")] = path.stem
        assert len(re.findall(r'class="math [^"]*" id="equation-', text)) == text.count('<div class="verified">')
    assert badges.keys() == CHECKS.keys()


def test_entries_show_mutants_source_and_the_way_back(site, ledger):
    page = (site / "book/appendix/ledger.html").read_text()
    for check in ledger:
        entry = page.partition(f'id="check-{check["label"]}"')[2].partition('class="ledger')[0]
        assert entry.count('<tr class="mutant">') == len(check["mutants"])
        assert f"blob/main/{check['source']}" in entry and "verifies" in entry
        [(file, anchor)] = re.findall(r'href="([^"#]+)#(equation-[^"]+)">in its chapter', entry)
        target = (site / "book/appendix" / file).resolve()
        assert f'id="{anchor}"' in target.read_text()


def test_links_within_the_book_lead_somewhere(site):
    texts = pages(site)
    for path, text in texts.items():
        for href in re.findall(r'<a [^>]*?href="([^"]+)"', text):
            link = urlsplit(href)
            if link.scheme or not (link.path or link.fragment):
                continue
            target = (path.parent / unquote(link.path)).resolve() if link.path else path
            assert target.exists(), (path.name, href)
            if link.fragment and target in texts:
                assert f'id="{unquote(link.fragment)}"' in texts[target], (path.name, href)


def test_colab_buttons_open_files_of_the_tree(site):
    address = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"].removeprefix(
        "https://github.com/"
    )
    for path in ROOT.glob("book/[0-9]*.ipynb"):
        text = (site / f"book/{path.stem}.html").read_text()
        [file] = set(re.findall(rf'https://colab\.research\.google\.com/github/{address}/blob/main/([^"]+)"', text))
        assert (ROOT / file) == path


def test_no_latex_is_left_over_outside_of_mathematics(site):
    for path, text in pages(site).items():
        body = re.sub(r"<(script|pre|code)\b.*?</\1>|\\\[.*?\\\]|\\\(.*?\\\)", "", text, flags=re.S)
        assert "$$" not in body and "\\frac" not in body and ":::" not in body, path.name


def test_the_build_fails_when_a_check_is_missing_or_too_many(tmp_path, ledger):
    stray = ledger[0] | {"label": "no-such-equation"}
    process = build(tmp_path, [*ledger[1:], stray])
    output = process.stdout + process.stderr
    assert process.returncode != 0
    assert f"equation '{ledger[0]['label']}' has no check" in output
    assert "checks without an equation in the book: no-such-equation" in output
