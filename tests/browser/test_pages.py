"""Every page of the built book as a reader's browser shows it: on a desk and on a phone, both in light and in dark.

The browser sees this machine alone. MathJax, which the pages take from a CDN, comes from a copy beside the project
(`make mathjax`), and any other address outside of the book is an error. `make test` looks at a copy of the book that
was built without executing the chapters; `make browser` at the executed one.
"""

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
import serve

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
MATHJAX = ROOT / ".cache/node_modules/mathjax"
MATHJAX_ADDRESS = "https://cdn.jsdelivr.net/npm/mathjax@3/"
LEDGER = "book/appendix/ledger.html"
WINDOWS = {"desktop": (1280, 900), "phone": (390, 844)}
VIEWS = [(window, theme) for window in WINDOWS for theme in ("light", "dark")]
# What a page may weigh: its HTML and the pictures that are the book's own.
MEGABYTES = 3.0
# Contrast of small text with what lies behind it, as the Web Content Accessibility Guidelines 2.1 ask for (AA).
CONTRAST = 4.5

# Messages in the console that are known and harmless: the exact text, and why it is there.
ALLOWED_MESSAGES = {
    "Identifier 'THEBE_JS_URL' has already been declared": "Jupyter Book adds the settings of Thebe, which no page of "
    "ours starts, once more than the theme does",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install Debian's or Google's to look at the pages"),
    pytest.mark.skipif(not MATHJAX.exists(), reason=f"no {MATHJAX.relative_to(ROOT)}: run `make mathjax` (needs npm)"),
]

# What a page looks like from within. Every entry is a list of offenders or of facts, so that a failure shows them.
PROBE = r"""
async () => {
  if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
  // Once for every picture: those that are out of sight load when they are asked to.
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
  const words = [];
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode())
    if (!walker.currentNode.parentElement.closest("pre, code, script, style, noscript, mjx-container"))
      words.push(walker.currentNode.data);
  return {
    errors: [...document.querySelectorAll("mjx-merror, [data-mjx-error]")].map(e => e.textContent.slice(0, 200)),
    untypeset: [...document.querySelectorAll(".math")].filter(e => !e.querySelector("mjx-container"))
      .map(e => e.textContent.slice(0, 200)),
    text: words.join(" "),
    pictures: [...document.images].map(e => ({address: e.src, width: e.naturalWidth, alt: e.alt})),
    links: [...document.querySelectorAll("a[href]")].map(e => e.href),
    names: [...document.querySelectorAll("[id]")].map(e => e.id),
    badges: [...document.querySelectorAll(".verified a")].map(e => e.href),
    equations: [...document.querySelectorAll("div.math[id^='equation-']")].map(e => e.id),
    code: document.querySelectorAll("div.cell_input pre").length,
    copyable: document.querySelectorAll("div.cell_input button.copybtn").length,
    colab: [...document.querySelectorAll("a[href*='colab.research.google.com/github/']")].length,
  };
}
"""

# How far the page is wider than the window, and what sticks out of it.
OVERFLOW = r"""
() => {
  const width = document.documentElement.clientWidth;
  if (Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) <= width) return [];
  const scrolls = e => { for (; e !== document.body; e = e.parentElement)
    if (getComputedStyle(e).overflowX !== "visible" || getComputedStyle(e).position === "fixed") return true; };
  return [...document.body.querySelectorAll("*")]
    .filter(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e))
    .map(e => `<${e.tagName.toLowerCase()} class="${e.className}"> ${e.textContent.trim().slice(0, 60)}`);
}
"""

# Formulas that are wider than their lines, which `formulas.js` sets smaller until they fit, and tables that a reader
# would have to scroll.
CUT = r"""
() => [
  ...[...document.querySelectorAll("div.math mjx-container, .statement mjx-container")]
    .filter(e => e.querySelector("mjx-math").getBoundingClientRect().width > e.clientWidth + 1)
    .map(e => e.closest("[id]").id),
  ...[...document.querySelectorAll(".bd-article table")]
    .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth)
    .map(e => e.textContent.trim().slice(0, 60)),
]
"""

# Contrast of texts of ours with their background: the lowest for each kind of element.
CONTRASTS = r"""
(selectors) => {
  const parse = text => [...text.match(/[\d.]+/g).map(Number), 1].slice(0, 4);
  const over = (a, b) => [0, 1, 2].map(i => a[3] * a[i] + (1 - a[3]) * b[i]);
  const behind = e => {
    if (!e) return [255, 255, 255];
    const colour = parse(getComputedStyle(e).backgroundColor);
    return colour[3] === 1 ? colour.slice(0, 3) : over(colour, behind(e.parentElement));
  };
  const luminance = rgb => rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = {};
  for (const selector of selectors) for (const e of document.querySelectorAll(selector)) {
    const back = behind(e), front = over(parse(getComputedStyle(e).color), back);
    const [low, high] = [luminance(back), luminance(front)].sort((a, b) => a - b);
    found[selector] = Math.min(found[selector] ?? 99, (high + 0.05) / (low + 0.05));
  }
  return found;
}
"""
# The theme answers for its own colours; these are ours, and the running text and mathematics above them.
OURS = [".bd-article p", "mjx-container", ".verified a", "table.check td", ".check-head .kind", ".check-head code"]


@dataclass
class Visit:
    """What was seen on one page. The last three have an entry for each window and theme."""

    facts: dict
    messages: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    overflow: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    cut: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    contrast: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def book(request) -> Path:
    """The folder of the built book: the one that COMPANION_BOOK names, or a copy without the chapters' outputs."""
    named = os.environ.get("COMPANION_BOOK")
    return (ROOT / named) if named else request.getfixturevalue("site")


@pytest.fixture(scope="module")
def visits(book) -> dict[str, Visit]:
    """Every page, by its path in the book. The browser is gone when this returns."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: it is in the extra `test`")
    pages = sorted(path.relative_to(book).as_posix() for path in book.glob("book/**/*.html"))
    assert pages, f"there is no book in {book}"
    with serve.server(book, port=0) as server, sync_api.sync_playwright() as playwright:
        Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        address = f"http://127.0.0.1:{server.server_port}/"
        found = {page: look(browser, address, page) for page in [*pages, "search.html?q=Jensen"]}
        browser.close()
        server.shutdown()
    return found


def look(browser, address: str, page: str) -> Visit:
    """Open a page as on a desk in the light, use it, then look at it in every window and theme."""
    width, height = WINDOWS["desktop"]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="light")
    visit = Visit({})

    def answer(route):
        url = route.request.url
        if url.startswith(address):
            route.continue_()
        elif url.startswith(MATHJAX_ADDRESS):
            route.fulfill(path=MATHJAX / urlsplit(url.removeprefix(MATHJAX_ADDRESS)).path)
        else:
            visit.addresses.append(url)
            route.abort()

    tab = context.new_page()
    tab.route("**/*", answer)
    tab.on("console", lambda message: visit.messages.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: visit.messages.append(str(error)))
    tab.on("response", lambda r: visit.messages.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    # The ledger has hundreds of equations, and a busy machine may be slow to set them.
    tab.set_default_timeout(300_000)
    tab.goto(address + page, wait_until="load")
    if page.startswith("search"):
        tab.wait_for_selector("#search-results li a")
    visit.facts = tab.evaluate(PROBE)
    if page == LEDGER:
        visit.facts["rows"] = use_the_ledger(tab)
    # Addresses of the book's own pages start with `/` from here on, whatever the port was.
    for name in ("links", "badges"):
        visit.facts[name] = [url.replace(address, "/", 1) for url in visit.facts[name]]
    for window, theme in VIEWS:
        width, height = WINDOWS[window]
        tab.set_viewport_size({"width": width, "height": height})
        tab.emulate_media(color_scheme=theme)
        tab.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
        # Colours change over a moment, and formulas find their size.
        tab.wait_for_timeout(400)
        visit.overflow[window, theme], visit.cut[window, theme] = tab.evaluate(OVERFLOW), tab.evaluate(CUT)
        visit.contrast[window, theme] = tab.evaluate(CONTRASTS, OURS)
    context.close()
    return visit


def use_the_ledger(tab) -> dict[str, list]:
    """The rows that are shown at first, after a search, and after a click or two on the column of errors."""
    shown = "() => [...document.querySelectorAll('#overview tbody tr')].filter(r => !r.hidden).map(r => r.innerText)"
    values = "() => [...document.querySelectorAll('#overview td:nth-child(5)')].map(c => Number(c.dataset.value))"
    entries = "() => [...document.querySelectorAll('.check-entry')].filter(e => !e.hidden).map(e => e.id)"
    found = {"all": tab.evaluate(shown)}
    for name in ("ascending", "descending"):
        tab.click("#overview th:nth-child(5) button")
        found[name] = tab.evaluate(values)
    tab.fill(".ledger-search input", "KL round")
    found |= {"searched": tab.evaluate(shown), "entries": tab.evaluate(entries)}
    # A link to what the search has hidden shows it again.
    tab.evaluate("location.hash = '#check-jensen-concave'")
    tab.wait_for_function("document.querySelector('.ledger-search input').value === ''")
    found["again"] = tab.evaluate(shown)
    return found


def chapters(visits) -> dict[str, Visit]:
    return {page: visit for page, visit in visits.items() if re.match(r"book/\d", page)}


def test_the_chapters_the_front_page_and_the_ledger_are_there(visits):
    stems = {f"book/{path.stem}.html" for path in ROOT.glob("book/[0-9]*.ipynb")}
    assert chapters(visits).keys() == stems
    assert {"book/index.html", LEDGER, "book/appendix/notation.html"} <= visits.keys()


def test_the_console_has_no_errors(visits):
    messages = {page: set(visit.messages) - ALLOWED_MESSAGES.keys() for page, visit in visits.items()}
    assert not {page: found for page, found in messages.items() if found}
    # What no page says any more is taken off the list.
    assert ALLOWED_MESSAGES.keys() <= {message for visit in visits.values() for message in visit.messages}


def test_pages_ask_for_nothing_outside_of_the_book_but_mathjax(visits):
    assert not {page: visit.addresses for page, visit in visits.items() if visit.addresses}


def test_mathematics_is_set_without_errors(visits):
    assert not {page: visit.facts["errors"] for page, visit in visits.items() if visit.facts["errors"]}
    assert not {page: visit.facts["untypeset"] for page, visit in visits.items() if visit.facts["untypeset"]}


def test_no_latex_or_markup_is_left_in_the_text(visits):
    raw = re.compile(r".{0,40}(?:\$\$|\| ?:?---|\\[a-zA-Z]{2,}|\\\(|\\\[|:::|\]\(#|\{(?:ref|cite|eq)\w*\}).{0,40}")
    found = {page: raw.findall(visit.facts["text"]) for page, visit in visits.items()}
    assert not {page: texts for page, texts in found.items() if texts}


@pytest.mark.parametrize("view", VIEWS, ids="-".join)
def test_pages_are_not_wider_than_the_window(visits, view):
    assert not {page: visit.overflow[view] for page, visit in visits.items() if visit.overflow[view]}


@pytest.mark.parametrize("view", VIEWS, ids="-".join)
def test_formulas_and_tables_are_not_cut(visits, view):
    assert not {page: visit.cut[view] for page, visit in visits.items() if visit.cut[view]}


@pytest.mark.parametrize("view", VIEWS, ids="-".join)
def test_texts_stand_out_from_what_is_behind_them(visits, view):
    low = {
        (page, selector): round(value, 2)
        for page, visit in visits.items()
        for selector, value in visit.contrast[view].items()
        if value < CONTRAST
    }
    assert not low


def test_pictures_are_there_and_have_words_for_those_who_cannot_see_them(visits):
    pictures = [(page, picture) for page, visit in visits.items() for picture in visit.facts["pictures"]]
    assert pictures
    assert not [(page, picture["address"][:200]) for page, picture in pictures if not picture["width"]]
    assert not [(page, picture["address"][:200]) for page, picture in pictures if not picture["alt"].strip()]


def test_links_and_anchors_within_the_book_lead_somewhere(visits, book):
    broken = []
    for page, visit in visits.items():
        for link in set(visit.facts["links"]):
            address, name = urldefrag(link)
            path = unquote(urlsplit(address).path).lstrip("/")
            if link.startswith("/") and not (book / path).exists():
                broken.append((page, link))
            elif link.startswith("/") and name and path in visits and unquote(name) not in visits[path].facts["names"]:
                broken.append((page, link))
    assert not broken


def test_every_equation_has_a_badge_that_leads_to_its_row_in_the_ledger(visits):
    entries = set(visits[LEDGER].facts["names"])
    for page, visit in chapters(visits).items():
        labels = [name.removeprefix("equation-") for name in visit.facts["equations"]]
        assert labels, page
        assert visit.facts["badges"] == [f"/{LEDGER}#check-{label}" for label in labels], page
        assert {f"check-{label}" for label in labels} <= entries, page


def test_the_ledger_can_be_searched_and_sorted(visits):
    rows, equations = visits[LEDGER].facts["rows"], [e for v in visits.values() for e in v.facts["equations"]]
    assert len(rows["all"]) == len(equations) == len(rows["again"])
    assert 0 < len(rows["searched"]) < len(equations) and any("elbo-gap-kl" in row for row in rows["searched"])
    assert len(rows["entries"]) == len(rows["searched"]) and "check-elbo-gap-kl" in rows["entries"]
    assert rows["ascending"] == sorted(rows["ascending"]) == rows["descending"][::-1]
    assert rows["ascending"][0] < rows["ascending"][-1]


def test_code_can_be_copied_and_chapters_open_in_colab(visits):
    for page, visit in chapters(visits).items():
        assert visit.facts["code"] > 0 and visit.facts["copyable"] == visit.facts["code"], page
        assert visit.facts["colab"] == 1, page
    for page, visit in visits.items():
        assert page in chapters(visits) or visit.facts["colab"] == 0, page


def test_the_search_finds_a_name(visits):
    links = visits["search.html?q=Jensen"].facts["links"]
    assert [link for link in links if link.startswith("/book/02_elbo.html")]


def test_pages_are_light(visits, book):
    """Pictures inside the page, as those of animations, are part of its HTML."""
    for page, visit in visits.items():
        paths = {
            unquote(urlsplit(p["address"]).path) for p in visit.facts["pictures"] if p["address"].startswith("http")
        }
        files = [book / page.partition("?")[0], *(book / path.lstrip("/") for path in paths)]
        assert sum((book / file).stat().st_size for file in files) < MEGABYTES * 1e6, page
