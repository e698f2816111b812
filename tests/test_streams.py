"""Printed text stands in the book as it was printed, however the kernel cut it."""

import sys
from pathlib import Path

from myst_nb.core import render
from nbformat.v4 import new_output

sys.path.append(str(Path(__file__).parents[1] / "book" / "_ext"))
import streams


def test_pieces_are_put_together_as_they_are():
    pieces = ("a sentence", " that goes on\n", "\n", "and a line")
    printed = [new_output("stream", name="stdout", text=text) for text in pieces]
    picture = new_output("display_data", data={"text/plain": "a figure"})
    warning = new_output("stream", name="stderr", text="a warning\n")
    text, *others = streams.joined([printed[0], picture, *printed[1:3], warning, printed[3]])
    assert text.text == "a sentence that goes on\n\nand a line"
    assert others == [picture, warning]


def test_the_book_uses_it():
    # Of this name and in this module; where they change, the extension has to follow.
    assert "coalesce_streams(outputs)" in Path(render.__file__).read_text()
