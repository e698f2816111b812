"""The API reference, read off the package's source, with links between it, the chapters and the equations.

Nothing is imported. Annotations stand as they are written, `Float[Tensor, "batch dim"]`, and what of the package an
equation's check uses is seen from the names in its source.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

API_PAGE = "book/appendix/api"
LEDGER_PAGE = "book/appendix/ledger"
PACKAGE = Path(__file__).parents[2] / "companion"
# In the book's order, then what all chapters share.
CHAPTERS = (
    "generative_problem",
    "elbo",
    "vae",
    "hvae",
    "gan",
    "autoregressive",
    "flows",
    "ebm",
    "ddpm",
    "faster_sampling",
)
SHARED = (
    "models.questions",
    "samplers",
    "evaluation",
    "conformance",
    "data",
    "training",
    "zoo",
    "derivations",
    "exercises",
    "nets",
    "chapter",
)
# What every check is made of says nothing about one of them.
REGISTRY = "derivations.registry"
HEADERS = ("Args:", "Attributes:", "Raises:", "Returns:")
Definition = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True)
class Entry:
    """One public function or class: where it is imported from, and its definition."""

    public: str
    module: str
    node: Definition

    @property
    def anchor(self) -> str:
        return f"api-{self.public}.{self.node.name}"


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(source_file(module).read_text())


def source_file(module: str) -> Path:
    """Of a module named without the package's own name: `models.vae`."""
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported(module: str) -> dict[str, tuple[str, str]]:
    """The names that a module takes from the package: the module each comes from, and its name there."""
    found = {}
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("companion."):
            for name in node.names:
                found[name.asname or name.name] = node.module.removeprefix("companion."), name.name
    return found


def defined(module: str) -> dict[str, Definition]:
    # Of several with one name, overloads, the last is the function itself.
    return {node.name: node for node in tree(module).body if isinstance(node, Definition)}


def public_names(module: str) -> list[str]:
    """`__all__`, or whatever has no underscore in front."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [ast.literal_eval(e) for e in node.value.elts if isinstance(e, ast.Constant)]
    return [name for name in defined(module) if not name.startswith("_")]


def entries(module: str) -> list[Entry]:
    """The public functions and classes of a module, wherever in the package they are defined."""
    found = []
    for name in public_names(module):
        home, original = module, name
        while original not in defined(home) and original in imported(home):
            home, original = imported(home)[original]
        if original in defined(home):
            found.append(Entry(f"companion.{module}", f"companion.{home}", defined(home)[original]))
    return found


def pages() -> dict[str, list[Entry]]:
    """Module to its entries: the whole reference. What two modules export stands with the first."""
    seen, found = set(), {}
    for module in (*(f"models.{chapter}" for chapter in CHAPTERS), *SHARED):
        fresh = [e for e in entries(module) if (e.module, e.node.name) not in seen]
        seen |= {(e.module, e.node.name) for e in fresh}
        found[module] = fresh
    return found


def uses(chapter: str) -> dict[str, set[tuple[str, str]]]:
    """Equation to what its check uses of the package, (module, name), itself or by functions of its own module."""
    module = f"derivations.{chapter}"
    taken, own = imported(module), {}
    for node in tree(module).body:
        for name in [node.name] if isinstance(node, Definition) else [ast.unparse(t) for t in targets(node)]:
            own[name] = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}

    def reached(name: str) -> set[str]:
        found, open_ = set(), {name}
        while open_:
            found |= open_
            open_ = set().union(*(own.get(n, set()) for n in open_)) - found
        return found

    return {
        label: {
            (f"companion.{taken[n][0]}", taken[n][1]) for n in reached(name) if n in taken and taken[n][0] != REGISTRY
        }
        for name, node in defined(module).items()
        for label in labels(node)
    }


def targets(node: ast.stmt) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else []


def labels(node: Definition) -> Iterator[str]:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "verifies":
            yield ast.literal_eval(decorator.args[0])


def equations() -> dict[tuple[str, str], list[tuple[str, str]]]:
    """What the package defines, (module, name), to the equations whose checks use it, each (chapter, label)."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for path in sorted((PACKAGE / "derivations").glob("*.py")):
        for label, used in uses(path.stem).items() if path.stem != "__init__" else ():
            for module, name in used:
                home, original = module.removeprefix("companion."), name
                while original not in defined(home) and original in imported(home):
                    home, original = imported(home)[original]
                found.setdefault((f"companion.{home}", original), []).append((path.stem, label))
    return found


# Signatures and docstrings


def signature(node: Definition, text: str, name: str | None = None) -> str:
    """`name(argument: annotation = default, ...) -> answer`, on one line if it fits, as it is written.

    A property has no arguments: `name -> answer`.
    """
    function = constructor(node) if isinstance(node, ast.ClassDef) else node
    if function is None:
        return f"class {node.name}"
    args = function.args
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    parts = [argument(a, d, text) for a, d in zip(positional, defaults, strict=True) if a.arg not in ("self", "cls")]
    if args.vararg:
        parts.append("*" + argument(args.vararg, None, text))
    elif args.kwonlyargs:
        parts.append("*")
    parts += [argument(a, d, text) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg:
        parts.append("**" + argument(args.kwarg, None, text))
    head = f"class {node.name}" if isinstance(node, ast.ClassDef) else name or node.name
    tail = f" -> {written(function.returns, text)}" if function.returns and not isinstance(node, ast.ClassDef) else ""
    if any(ast.unparse(decorator).endswith("property") for decorator in node.decorator_list):
        return head + tail
    line = f"{head}({', '.join(parts)}){tail}"
    return line if len(line) <= 84 else f"{head}(\n" + "".join(f"    {part},\n" for part in parts) + f"){tail}"


def constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    """What is called to make one: `__init__`, or for a dataclass or named tuple a function of its fields."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return item
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    if not fields or any(ast.unparse(base).endswith("Module") for base in node.bases):
        return None
    given = [ast.arg(field.target.id, field.annotation) for field in fields]
    return ast.FunctionDef(
        "__init__", ast.arguments([], given, None, [], [], None, [f.value for f in fields if f.value]), [], []
    )


def argument(argument: ast.arg, default: ast.expr | None, text: str) -> str:
    annotation = f": {written(argument.annotation, text)}" if argument.annotation else ""
    equals = " = " if annotation else "="
    return argument.arg + annotation + (equals + written(default, text) if default is not None else "")


def written(node: ast.expr, text: str) -> str:
    return re.sub(r"\s+", " ", ast.get_source_segment(text, node) or ast.unparse(node)).replace(
        '[Tensor, " ', '[Tensor, "'
    )


def blocks(docstring: str) -> Iterator[tuple[str, str]]:
    """A docstring in parts: ("text" | "code" | "example" | "Args:" …, lines)."""
    lines = inspect.cleandoc(docstring).split("\n")
    i = 0
    while i < len(lines):
        if not lines[i].strip():
            i += 1
            continue
        start, kind = i, "text"
        if lines[i] in HEADERS:
            kind, i = lines[i], i + 1
            start = i
            while i < len(lines) and (lines[i].startswith(" ") or not lines[i].strip()):
                i += 1
        elif lines[i].startswith(">>>"):
            kind = "example"
            while i < len(lines) and lines[i].strip():
                i += 1
        elif lines[i].startswith("    "):
            kind = "code"
            while i < len(lines) and (lines[i].startswith("    ") or not lines[i].strip()):
                i += 1
        else:
            while i < len(lines) and lines[i].strip() and lines[i] not in HEADERS and not lines[i].startswith("    "):
                i += 1
        yield kind, inspect.cleandoc("\n" + "\n".join(lines[start:i])).rstrip()


# The page


class API(SphinxDirective):
    """All public functions and classes, chapter by chapter."""

    def run(self) -> list[nodes.Node]:
        self.reference, self.used = pages(), equations()
        self.anchors = {e.node.name: e.anchor for found in self.reference.values() for e in found}
        sections = []
        for module, found in self.reference.items():
            self.env.note_dependency(str(source_file(module)))
            section = nodes.section(ids=[f"module-companion.{module}"])
            section += nodes.title("", "", nodes.literal(text=f"companion.{module}"))
            chapter = page_of(self.env, module.removeprefix("models.")) if module.startswith("models.") else None
            for part in blocks(ast.get_docstring(tree(module)) or ""):
                section += self.block(*part)
            if chapter is not None:
                section += nodes.paragraph("", "", nodes.Text("Its chapter: "), to_page(chapter), nodes.Text("."))
            for entry in found:
                section += self.entry(entry)
            sections.append(section)
        return sections

    def entry(self, entry: Entry) -> nodes.Node:
        file = source_file(entry.module.removeprefix("companion."))
        self.env.note_dependency(str(file))
        text = file.read_text()
        box = nodes.container(classes=["api-entry"], ids=[entry.anchor])
        box += nodes.literal_block("", signature(entry.node, text), language="python")
        for part in blocks(ast.get_docstring(entry.node) or ""):
            box += self.block(*part)
        if isinstance(entry.node, ast.ClassDef):
            bases = [ast.unparse(base) for base in entry.node.bases]
            known = [base for base in bases if base in self.anchors and self.anchors[base] != entry.anchor]
            if known:
                links = [child for base in known for child in (nodes.Text(" "), self.link(base))]
                box += nodes.paragraph("", "", nodes.Text("Has the methods of"), *links, nodes.Text(" as well."))
            for method in entry.node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    inner = nodes.container(classes=["api-method"])
                    inner += nodes.literal_block("", signature(method, text), language="python")
                    for part in blocks(ast.get_docstring(method) or ""):
                        inner += self.block(*part)
                    box += inner
        checks = self.used.get((entry.module, entry.node.name), [])
        if checks:
            box += nodes.raw("", self.checks(checks), format="html")
        return box

    def checks(self, found: list[tuple[str, str]]) -> str:
        """Links to the equations whose checks use an entry: a few in view, and the others behind a click."""
        builder, links = self.env.app.builder, []
        for chapter, label in found:
            page = page_of(self.env, chapter)
            if page is not None:
                url = f"{builder.get_relative_uri(self.env.docname, page)}#equation-{label}"
                links.append(f'<a href="{escape(url)}">{label}</a>')
        if not links:
            return ""
        shown = f"<summary>In the checks of {len(links)} equation{'s' if len(links) > 1 else ''}</summary>"
        return f'<details class="api-checks">{shown}{", ".join(links)}</details>'

    def block(self, kind: str, text: str) -> nodes.Node:
        if kind == "text":
            return nodes.paragraph("", "", *self.inline(text))
        if kind in ("code", "example"):
            return nodes.literal_block("", text, language="pycon" if kind == "example" else "none")
        box = nodes.container(classes=["api-fields"])
        box += nodes.paragraph("", "", nodes.strong(text=kind.removesuffix(":")))
        items = nodes.definition_list()
        for item in re.split(r"\n(?=\S)", text):
            name, _, rest = item.partition(": ")
            definition = nodes.definition("", nodes.paragraph("", "", *self.inline(" ".join(rest.split()))))
            items += nodes.definition_list_item("", nodes.term("", "", nodes.literal(text=name)), definition)
        box += items
        return box

    def inline(self, text: str) -> list[nodes.Node]:
        """Text in which `names` are code, and a link where they have an entry."""
        parts = re.split(r"`([^`]+)`", text.replace("\n", " "))
        found = (self.link(part) if i % 2 else nodes.Text(part) for i, part in enumerate(parts) if part)
        return list(found)

    def link(self, name: str) -> nodes.Node:
        anchor = self.anchors.get(name.removeprefix("companion.").rpartition(".")[2])
        code = nodes.literal(text=name)
        return nodes.reference("", "", code, internal=True, refid=anchor) if anchor else code


def page_of(env, chapter: str) -> str | None:
    return next((name for name in sorted(env.found_docs) if name.endswith(f"_{chapter}")), None)


def to_page(docname: str) -> nodes.Node:
    reference = {"reftype": "doc", "refdomain": "std", "reftarget": f"/{docname}", "refexplicit": False}
    return addnodes.pending_xref("", nodes.inline(), refwarn=True, **reference)


# The way there


def link_back(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """At the foot of a chapter its part of the package; in a ledger's entry what its check uses."""
    if API_PAGE not in app.env.found_docs:
        return
    url = app.builder.get_relative_uri(docname, API_PAGE)

    def links(found: list[Entry]) -> str:
        return ", ".join(f'<a href="{escape(url)}#{e.anchor}"><code>{e.node.name}</code></a>' for e in found)

    reference = pages()
    chapter = next((c for c in (*CHAPTERS, "evaluation") if docname.endswith(f"_{c}")), None)
    if chapter is not None:
        module = chapter if chapter == "evaluation" else f"models.{chapter}"
        used = set().union(*uses(chapter).values()) if source_file(f"derivations.{chapter}").exists() else set()
        others = [e for m, found in reference.items() if m != module for e in found if (e.module, e.node.name) in used]
        rows = [f'<a href="{escape(url)}#module-companion.{module}"><code>companion.{module}</code></a>: ']
        rows[0] += links(reference[module])
        rows += [f"Its checks use {links(others)}"] if others else []
        box = '<aside class="in-the-package"><p class="title">In the package</p>'
        box += "".join(f"<p>{row}.</p>" for row in rows) + "</aside>"
        (next(doctree.findall(nodes.section), doctree)).append(nodes.raw("", box, format="html"))
    elif docname == LEDGER_PAGE:
        by_home = {(e.module, e.node.name): e for found in reference.values() for e in found}
        of_label: dict[str, list[Entry]] = {}
        for key, found in equations().items():
            for _, label in found if key in by_home else ():
                of_label.setdefault(label, []).append(by_home[key])
        for box in doctree.findall(nodes.container):
            label = next((i.removeprefix("check-") for i in box["ids"] if i.startswith("check-")), None)
            if label in of_label:
                found = sorted(of_label[label], key=lambda e: e.node.name)
                box.append(nodes.raw("", f'<p class="in-the-package">Uses {links(found)}.</p>', format="html"))


def setup(app: Sphinx) -> dict:
    app.add_directive("api", API)
    app.connect("doctree-resolved", link_back)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
