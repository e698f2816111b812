"""Draws the page of common mistakes: what is believed, what is right, and what refutes it.

The mistakes come from a YAML file, their numbers from the ledger and from `companion.derivations.mistakes`.
"""

import re
from pathlib import Path

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from verified import LEDGER_PAGE

from companion.derivations.mistakes import NUMBERS


class Mistakes(SphinxDirective):
    """The mistakes of the file that is named."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        _, file = self.env.relfn2path(self.arguments[0])
        for path in (file, str(Path(self.env.app.confdir) / self.config.verified_ledger)):
            self.env.note_dependency(path)
        output: list[nodes.Node] = []
        for group in yaml.safe_load(Path(file).read_text()):
            section = nodes.section(ids=[nodes.make_id(group["idea"])])
            section += nodes.title(text=group["idea"])
            for mistake in group["mistakes"]:
                section += self.entry(mistake, file)
            output.append(section)
        return output

    def entry(self, mistake: dict, file: str) -> nodes.container:
        box = nodes.container(classes=["mistake", "check-entry"])
        page = self.env.app.builder.get_relative_uri(self.env.docname, LEDGER_PAGE)
        lines = [
            f"**Mistake.** {mistake['mistake']}",
            f"**Right.** {mistake['right']}",
            f"**Refuted.** {refutation(mistake['refuted_by'], self.env.verified_ledger, page)}",
        ]
        self.state.nested_parse(StringList("\n\n".join(lines).splitlines(), source=file), self.content_offset, box)
        return box


def refutation(by: dict[str, str], ledger: dict[str, dict], page: str) -> str:
    """What refutes a mistake, in Markdown: a wrong variant that a check rejects, a number, or the basis.

    `ledger` maps labels to the ledger's entries, and `page` is its address.
    """
    match by:
        case {"label": label, "mutant": name}:
            check = ledger[label]
            [error] = [m["error"] for m in check["mutants"] if m["name"] == name]
            return (
                f'Equation [](#{label}) with <a href="{page}#check-{label}">“{plain(name)}”</a> '
                f"is off by {error:.3g}; {check['tolerance']:.2g} is allowed."
            )
        case {"number": name}:
            found = NUMBERS[name]
            return f"{found.what}: {readable(found.function())}. By the mistake it would be {readable(found.claimed)}."
        case {"basis": text}:
            return text
    raise ValueError(f"refuted_by is {by!r}; it must have label and mutant, number, or basis")


def readable(value: float) -> str:
    # Rounding noise differs between processors.
    return "infinite" if value == float("inf") else "less than 10⁻⁶" if 0 < abs(value) < 1e-6 else f"{value:.3g}"


def plain(text: str) -> str:
    """Markdown that reads as the text stands."""
    return re.sub(r"([\\`*_{}\[\]()<>#|~$^&])", r"\\\1", text)


def setup(app: Sphinx) -> dict:
    app.setup_extension("verified")  # which loads the ledger
    app.add_directive("mistakes", Mistakes)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
