"""What the front page shows and no one types: the map of the chapters with the time that each takes, and one equation
followed from the page to its check and to a wrong variant that fails."""

import json
import re
from dataclasses import replace
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from verified import LEDGER_PAGE, badge, highlighted, source, table

from companion.derivations import CHECKS
from companion.derivations.registry import Check, Lines

WORDS_PER_MINUTE = 200
SECONDS = "seconds.json"

CARD = """\
:::{{grid-item-card}} {number}. {title}
:link: /book/{stem}
:link-type: doc
:img-top: _static/chapters/{stem}.svg
:img-alt: {alt}
:class-card: chapter-card

{text}

*{equations} equations · {minutes} min to read · {seconds}*
:::
"""


class ChapterMap(SphinxDirective):
    """A card for each chapter. The content has two lines for each: `stem: what it is about` and `  what its picture
    shows`."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        folder = Path(self.env.app.confdir) / "book"
        self.env.note_dependency(str(folder / SECONDS))
        seconds = json.loads((folder / SECONDS).read_text())
        entries = re.findall(r"^(\S+): (.+)\n +(.+)$", "\n".join(self.content), re.M)
        cards = []
        for number, (stem, text, alt) in enumerate(entries, 1):
            self.env.note_dependency(str(folder / f"{stem}.ipynb"))
            cells = json.loads((folder / f"{stem}.ipynb").read_text())["cells"]
            prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
            card = {
                "title": re.search(r"^# (.+)$", prose, re.M)[1],
                "equations": len(re.findall(r"^\$\$ \([\w-]+\)", prose, re.M)),
                "minutes": round(reading_words(prose) / WORDS_PER_MINUTE),
                "seconds": f"{seconds[stem]} s to run" if stem in seconds else "time to run not measured",
            }
            cards.append(CARD.format(number=number, stem=stem, text=text, alt=alt, **card))
        return self.parse_text_to_nodes("::::{grid} 1 2 2 3\n:gutter: 3\n\n" + "\n".join(cards) + "\n::::\n")


def reading_words(prose: str) -> int:
    """The words of a chapter's text. A formula counts as one: what it costs to understand is not counted in words."""
    text = re.sub(r"\$\$.*?\$\$|\$[^$]+\$", " formula ", prose, flags=re.S)
    return len(re.findall(r"\w[\w'’-]*", text))


class FollowedEquation(SphinxDirective):
    """One equation with its badge, the source of its check, what the check finds, and a wrong variant in its place.

    The arguments are a label and the name of one of its wrong variants.
    """

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        label, mutant = self.arguments[0].strip(), "\n".join(self.content).strip()
        entry = self.env.verified_ledger[label]
        self.env.note_dependency(str(Path(self.env.app.confdir) / self.config.verified_ledger))
        url = f"{self.env.app.builder.get_relative_uri(self.env.docname, LEDGER_PAGE)}#check-{label}"
        # The class says that this is a copy: the equation itself stands in its chapter.
        box = nodes.container(classes=["ledger", "followed"])
        box += nodes.math_block("", entry["statement"], nowrap=False, label=None, number=None)
        failed = repr(with_mutant(CHECKS[label], mutant).run()).partition("\n")[0]
        parts = [
            badge(entry, url),
            "<p>The badge leads to the check, which computes every line on its own:</p>",
            highlighted(source(Path(self.env.app.confdir), entry["source"])),
            "<p>On the first of its instances it finds these values, and these errors of the wrong variants:</p>",
            table(entry),
            f"<p>With the variant “{mutant}” in place of the equation, the same check says:</p>",
            f'<div class="highlight"><pre>{failed}</pre></div>',
        ]
        box += nodes.raw("", "".join(parts), format="html")
        return [box]


def with_mutant(check: Check, name: str) -> Check:
    """The check of an equation with the lines of a wrong variant. Raises ValueError where there is none of the name."""

    def function(instance) -> Lines:
        lines = check.function(instance)
        found = [mutant.value for mutant in lines.mutants if mutant.name == name]
        if not found:
            raise ValueError(f"{check.label} has no wrong variant {name!r}")
        changed = found[0] if isinstance(found[0], dict) else {list(lines.values)[-1]: found[0]}
        return replace(lines, values={**lines.values, **changed})

    function.__wrapped__ = check.function
    return replace(check, function=function)


def setup(app: Sphinx) -> dict:
    app.add_directive("chapter-map", ChapterMap)
    app.add_directive("followed-equation", FollowedEquation)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
