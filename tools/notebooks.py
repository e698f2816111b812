"""Execute notebooks and store them in the form that git keeps: text outputs and execution counts, no images.

    python tools/notebooks.py book/*.ipynb

The build draws the pictures anew, and nbval compares the text.
"""

import json
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

# How long each notebook took where it was last executed; the front page shows it.
SECONDS = Path(__file__).resolve().parent.parent / "book" / "seconds.json"
KEPT_MIME_TYPES = ("text/plain", "text/html", "text/markdown")
KEPT_CELL_METADATA = ("tags", "jupyter", "cellView", "mystnb")


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Drop what does not belong in git: images, sounds, volatile metadata, the words that stand for a figure."""
    version = {"name": "python"}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": version})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in KEPT_CELL_METADATA})
        if cell.cell_type == "code":
            cell.outputs = merge_streams([kept for output in cell.outputs if (kept := normalise_output(output))])
    return notebook


def merge_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """One output for consecutive prints, however the kernel happened to cut them."""
    merged: list[NotebookNode] = []
    for output in outputs:
        if merged and output.output_type == "stream" and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def normalise_output(output: NotebookNode) -> NotebookNode | None:
    if "data" not in output:
        return output
    page = output.data.get("text/html", "")
    if any(mime.startswith("image/") for mime in output.data) or "<img" in page or "<audio" in page:
        return None
    output.data = nbformat.from_dict({mime: text for mime, text in output.data.items() if mime in KEPT_MIME_TYPES})
    output.metadata = nbformat.from_dict({})
    return output


def write(notebook: NotebookNode) -> str:
    return nbformat.writes(notebook, indent=1) + "\n"


def execute(path: Path) -> float:
    """Run a notebook where it lies, store its normal form, and return the seconds it took.

    Raises RuntimeError when a cell wrote to stderr: warnings do not belong in a chapter.
    """
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    NotebookClient(notebook, timeout=90, kernel_name="python3", resources={"metadata": {"path": path.parent}}).execute()
    seconds = time.perf_counter() - start
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise RuntimeError(f"{path}: a cell wrote to stderr: {output.text}\n{cell.source}")
    path.write_text(write(normalise(notebook)))
    return seconds


if __name__ == "__main__":
    for name in sys.argv[1:]:
        seconds = execute(Path(name))
        print(f"{name}: {seconds:.1f} s")
        known = json.loads(SECONDS.read_text()) | {Path(name).stem: round(seconds)}
        SECONDS.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
