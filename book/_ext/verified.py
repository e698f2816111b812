"""Draws a badge beside every labelled equation, and the ledger page behind the badges.

Both come from the file that `companion verify --json` writes. The build warns, and therefore fails, when
an equation has no label, a label has no check, or a check has no equation.
"""

import json
from html import escape
from pathlib import Path
from urllib.parse import urlencode

import pygments
from docutils import nodes
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Number, String, Text
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)

LEDGER_PAGE = "book/appendix/ledger"
# Equations in these stand outside the book's claims: tasks, their answers, marked mistakes, the ledger.
EXEMPT = {"exercise", "solution", "wrong", "ledger"}
# What has a colour in the sources of the checks. With all of them coloured the ledger would weigh twice as much.
COLOURED = (Comment, Keyword, Number, String)


def load_ledger(app: Sphinx) -> None:
    path = Path(app.confdir) / app.config.verified_ledger
    try:
        checks = json.loads(path.read_text())
    except FileNotFoundError:
        raise ExtensionError(f"{path} is missing: run `companion verify --json {path}` first") from None
    app.env.verified_ledger = {check["label"]: check for check in checks}
    app.env.verified_seen = getattr(app.env, "verified_seen", {})


def closeness(check: dict) -> str:
    """How closely the equation closed, in the unit that fits its kind."""
    if check["route"] == "Monte Carlo":
        return f"{5 * check['error'] / check['tolerance']:.1f} s.e."
    if check["error"] == 0:
        return "holds" if check["kind"] == "inequality" else "exact"
    return f"{check['error']:.0e}"


def mutants_rejected(check: dict) -> str:
    return f"{sum(m['rejected'] for m in check['mutants'])} of {len(check['mutants'])}"


def collect_equations(app: Sphinx, doctree: nodes.document) -> None:
    """Note which labels the page shows, and complain of equations that nothing checks."""
    docname = app.env.docname
    seen = set()
    for equation in doctree.findall(nodes.math_block):
        label, ancestor, exempt = equation.get("label"), equation.parent, False
        while ancestor is not None:
            exempt |= bool(EXEMPT & set(getattr(ancestor, "attributes", {}).get("classes", ())))
            ancestor = ancestor.parent
        if exempt:
            continue
        if not label:
            logger.warning("a displayed equation has no label: %s", equation.astext(), location=equation)
        elif label not in app.env.verified_ledger:
            logger.warning("equation %r has no check", label, location=equation)
        else:
            seen.add(label)
    app.env.verified_seen[docname] = seen


def complain_of_missing_equations(app: Sphinx, env: BuildEnvironment) -> None:
    missing = set(env.verified_ledger) - set().union(*env.verified_seen.values())
    if missing:
        logger.warning("checks without an equation in the book: %s", ", ".join(sorted(missing)))


def badge(check: dict, url: str) -> str:
    title = (
        f"{check['kind']}, checked by {check['route']}: error {check['error']:.1e}, allowed "
        f"{check['tolerance']:.1e}; {mutants_rejected(check)} wrong variants rejected"
    )
    return (
        f'<div class="verified"><a class="{"ok" if check["passed"] else "failed"}" href="{escape(url)}" '
        f'title="{escape(title)}"><span class="tick">{"✓" if check["passed"] else "✗"}</span> '
        f"{check['kind']} · {closeness(check)}</a></div>"
    )


def wait_with_statements(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Let `ledger.js` typeset each of the ledger's equations when it comes near: hundreds at once take many seconds.

    They are exchanged as late as this because a page gets MathJax only where equations were read.
    """
    for equation in list(doctree.findall(nodes.math_block)) if docname == LEDGER_PAGE else ():
        text = f'<div class="statement"><code>{escape(equation.astext())}</code></div>'
        equation.replace_self(nodes.raw("", text, format="html"))


def draw_badges(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    ledger = app.env.verified_ledger
    for equation in list(doctree.findall(nodes.math_block)):
        check = ledger.get(equation.get("label"))
        if check is None:
            continue
        url = f"{app.builder.get_relative_uri(docname, LEDGER_PAGE)}#check-{check['label']}"
        equation.parent.insert(equation.parent.index(equation) + 1, nodes.raw("", badge(check, url), format="html"))


class Ledger(SphinxDirective):
    """The whole ledger: a table of totals, then an entry for each check."""

    def run(self) -> list[nodes.Node]:
        checks = list(self.env.verified_ledger.values())
        self.env.note_dependency(str(Path(self.env.app.confdir) / self.config.verified_ledger))
        output: list[nodes.Node] = [self.html(self.totals(checks) + self.overview(checks))]
        for chapter in dict.fromkeys(check["chapter"] for check in checks):
            page = next((d for d in sorted(self.env.found_docs) if d.endswith(f"_{chapter}")), None)
            section = nodes.section(ids=[f"chapter-{chapter}"])
            section += nodes.title(text=chapter_title(chapter))
            for check in (check for check in checks if check["chapter"] == chapter):
                section += self.entry(check, page)
            output.append(section)
        return output

    def html(self, text: str) -> nodes.raw:
        return nodes.raw("", text, format="html")

    def totals(self, checks: list[dict]) -> str:
        mutants = [m for check in checks for m in check["mutants"]]
        worst = max(checks, key=strain)
        return (
            f"<p>{sum(c['passed'] for c in checks)} of {len(checks)} equations checked, "
            f"{sum(m['rejected'] for m in mutants)} of {len(mutants)} wrong variants rejected, "
            f"in {sum(c['seconds'] for c in checks):.1f} seconds. The equation closest to its limit is "
            f'<a href="#check-{worst["label"]}"><code>{worst["label"]}</code></a>: its error is {strain(worst):.0%} of '
            "what is allowed.</p>"
        )

    def overview(self, checks: list[dict]) -> str:
        """One row for each equation; `ledger.js` makes it searchable and sortable."""
        columns = ("equation", "chapter", "kind", "route", "error", "of allowed", "mutants", "seconds")
        rows = "".join(
            f'<tr><td><a href="#check-{c["label"]}">{c["label"]}</a></td><td>{chapter_title(c["chapter"])}</td>'
            f"<td>{c['kind']}</td><td>{c['route']}</td>"
            f'<td data-value="{c["error"]!r}">{c["error"]:.1e}</td>'
            f'<td data-value="{strain(c)!r}">{strain(c):.1%}</td>'
            f'<td data-value="{len(c["mutants"])}">{mutants_rejected(c)}</td>'
            f"<td>{c['seconds']:.2f}</td></tr>"
            for c in checks
        )
        head = "".join(f'<th scope="col">{name}</th>' for name in columns)
        return (
            f'<div class="table-scroll overview"><table id="overview"><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )

    def entry(self, check: dict, page: str | None) -> nodes.container:
        box = nodes.container(classes=["ledger", "check-entry"], ids=[f"check-{check['label']}"])
        back = ""
        if page is not None:
            url = self.env.app.builder.get_relative_uri(self.env.docname, page)
            back = f' <a href="{escape(url)}#equation-{check["label"]}">in its chapter</a>'
        box += self.html(
            f'<p class="check-head"><code>{check["label"]}</code> '
            f'<span class="kind">{check["kind"]}, by {check["route"]}</span>{back}</p>'
        )
        box += nodes.math_block("", check["statement"], nowrap=False, label=None, number=None)
        address = f"{self.config.verified_repository}/blob/main/{check['source']}"
        box += self.html(
            f"{table(check)}<p>Error {check['error']:.1e}, allowed {check['tolerance']:.1e}: "
            f'{escape(check["reason"])}. {check["seconds"]:.2g} s. <a href="{escape(address)}">Source on the web</a>, '
            f'<a href="{escape(self.report(check))}">report this equation</a></p>'
        )
        box += self.html(
            "<details><summary>Source of the check</summary>"
            f"{highlighted(source(Path(self.env.app.confdir), check['source']))}</details>"
        )
        return box

    def report(self, check: dict) -> str:
        """The address of a new issue that names the equation and quotes what its check found."""
        found = f"error {check['error']:.1e}, allowed {check['tolerance']:.1e}"
        body = f"`{check['label']}` ({check['kind']}, checked by {check['route']}: {found}; {check['source']})\n\n"
        query = {"title": f"Equation {check['label']}: ", "body": f"{body}What is wrong with it:\n"}
        return f"{self.config.verified_repository}/issues/new?{urlencode(query)}"


def strain(check: dict) -> float:
    """The error for what it is allowed."""
    return check["error"] / check["tolerance"]


def chapter_title(chapter: str) -> str:
    # A short name is an acronym: VAE, GAN.
    return chapter.upper() if len(chapter) <= 4 else chapter.replace("_", " ").capitalize()


def highlighted(source: str) -> str:
    """Python as HTML, with colours for little."""
    tokens = PythonLexer().get_tokens(source)
    lean = ((kind if any(kind in c for c in COLOURED) else Text, text) for kind, text in tokens)
    code = pygments.format(lean, HtmlFormatter(nowrap=True))
    return f'<div class="highlight-python notranslate"><div class="highlight"><pre>{code}</pre></div></div>'


def source(root: Path, reference: str) -> str:
    """The lines of a file that a check names as its source."""
    file, _, lines = reference.partition("#")
    first, last = (int(n.lstrip("L")) for n in lines.split("-"))
    return "\n".join((root / file).read_text().splitlines()[first - 1 : last])


def table(check: dict) -> str:
    """The values of an equation's lines, and the errors of its wrong variants."""
    lines = "".join(
        f"<tr><td>{escape(line['line'])}</td><td>{number(line['value'])}</td></tr>" for line in check["lines"]
    )
    mutants = "".join(
        f'<tr class="mutant"><td>{escape(m["name"])}</td>'
        f"<td>off by {m['error']:.2g}, {'rejected' if m['rejected'] else 'NOT REJECTED'}</td></tr>"
        for m in check["mutants"]
    )
    return (
        '<div class="table-scroll"><table class="check"><thead><tr><th>line, on the first instance</th>'
        f"<th>value</th></tr></thead><tbody>{lines}</tbody><thead><tr><th>wrong variant</th>"
        f"<th>error</th></tr></thead><tbody>{mutants}</tbody></table></div>"
    )


def number(value: float | list[float]) -> str:
    return ", ".join(f"{v:.6g}" for v in (value if isinstance(value, list) else [value]))


def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    getattr(env, "verified_seen", {}).pop(docname, None)


def setup(app: Sphinx) -> dict:
    app.add_config_value("verified_ledger", "_build/ledger.json", "env")
    app.add_config_value("verified_repository", "", "html")
    app.add_directive("ledger", Ledger)
    app.connect("builder-inited", load_ledger)
    app.connect("env-purge-doc", forget)
    app.connect("doctree-read", collect_equations)
    app.connect("env-check-consistency", complain_of_missing_equations)
    app.connect("doctree-resolved", draw_badges)
    app.connect("doctree-resolved", wait_with_statements)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
