"""Shows what a cell printed as it was printed: MyST-NB breaks the line wherever the kernel cut the text in two."""

from myst_nb.core import render
from nbformat import NotebookNode
from sphinx.application import Sphinx


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs of a cell with the pieces of stdout, and those of stderr, put together where the first one stands."""
    found: list[NotebookNode] = []
    streams: dict[str, NotebookNode] = {}
    for output in outputs:
        name = output["name"] if output["output_type"] == "stream" else None
        if name in streams:
            streams[name]["text"] += output["text"]
            continue
        found.append(output)
        if name is not None:
            streams[name] = output
    return found


def setup(app: Sphinx) -> dict:
    render.coalesce_streams = joined
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
