"""The built pages: badges, the ledger behind them, and links that lead somewhere.

The notebooks are not executed here, so that the pictures are missing; everything else is as in `make book`.
"""

import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import repository
import yaml

from companion.derivations import CHECKS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def pages(site):
    return {path: path.read_text() for path in sorted(site.rglob("book/**/*.html"))}


def test_every_equation_has_a_badge_that_leads_to_its_entry(site):
    ledger_page = (site / "book/appendix/ledger.html").read_text()
    badges = {}
    # The front page shows one of the equations without its formula.
    for path, text in pages(site).items():
        if path.stem == "index":
            continue
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
        [issue] = re.findall(r'href="([^"]*/issues/new\?[^"]*)"', entry)
        assert issue.startswith(f"{repository.address()}/") and f"+{check['label']}%3A" in issue
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


def test_the_ledger_s_overview_has_a_row_for_each_check_and_says_the_totals(site, ledger):
    page = (site / "book/appendix/ledger.html").read_text()
    overview = page.partition('<table id="overview">')[2].partition("</table>")[0]
    assert re.findall(r'<tr><td><a href="#check-([^"]+)">', overview) == [check["label"] for check in ledger]
    worst = max(ledger, key=lambda check: check["error"] / check["tolerance"])
    mutants = sum(len(check["mutants"]) for check in ledger)
    totals = page.partition("equations checked")[0][-40:] + page.partition("equations checked")[2].partition("</p>")[0]
    assert f"{len(ledger)} of {len(ledger)}" in totals and f"{mutants} of {mutants} wrong variants" in totals
    assert f"#check-{worst['label']}" in totals and f"{sum(c['seconds'] for c in ledger):.1f} seconds" in totals


def test_the_front_page_maps_every_chapter(site):
    page = (site / "book/index.html").read_text()
    for path in repository.chapters():
        [title] = re.findall(r"^# (.+)$", "".join(json.loads(path.read_text())["cells"][0]["source"]), re.M)
        assert f"{path.stem}.html" in page and title in page, path.stem
        assert f"{path.stem}.svg" in page, path.stem
    assert len(re.findall(r"\d+ equations · \d+ min to read · \d+ s to run", page)) == len(repository.chapters())


def test_the_front_page_follows_an_equation_to_a_variant_that_fails(site, ledger):
    page = re.sub(r"<[^>]+>", "", (site / "book/index.html").read_text())
    [check] = [check for check in ledger if check["label"] == "elbo-gap-kl"]
    [mutant] = [mutant for mutant in check["mutants"] if mutant["name"] == "KL the other way round"]
    assert f"elbo-gap-kl: identity, FAILED by quadrature, off by {mutant['error']:.2g}, allowed 1e-10" in page
    assert "def elbo_gap_kl(toy: Latent)" in page


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


def test_the_build_fails_when_a_check_is_missing_or_too_many(tmp_path, ledger, build_book):
    stray = ledger[0] | {"label": "no-such-equation"}
    process = build_book(tmp_path, [*ledger[1:], stray])
    output = process.stdout + process.stderr
    assert process.returncode != 0
    assert f"equation '{ledger[0]['label']}' has no check" in output
    assert "checks without an equation in the book: no-such-equation" in output
