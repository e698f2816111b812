"""The animation: its pictures are decoded again, and git does not keep it."""

import base64
import io
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import nbformat
import notebooks
import numpy as np
import pytest
import torch
from IPython.display import HTML
from PIL import Image

from companion import plotting

ALT = 'Grey "growing" lighter, 0 < 1 & no more.'


def fill(ax, grey):
    ax.set_axis_off()
    ax.axhspan(0, 1, color=str(grey))
    ax.set(xlim=(0, 1), ylim=(0, 1))


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page.data)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def __getitem__(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def test_pictures_are_the_frames_in_order():
    greys = [0.2, 0.4, 0.6, 0.9]
    images = Tags(plotting.animate(greys, fill, ALT, width=2, height=1))["img"]
    for grey, image in zip(greys, images, strict=True):
        kind, content = image["src"].split(",")
        assert kind == "data:image/webp;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(content))).convert("L")
        assert picture.size == (180, 90)
        # The middle of the axes; a little is lost in compression.
        assert np.asarray(picture)[30:60, 60:120] == pytest.approx(255 * grey, abs=3)


def test_last_frame_is_the_one_that_shows():
    tags = Tags(plotting.animate([0.1, 0.5, 0.9], fill, ALT))
    assert [image.get("style") for image in tags["img"]] == ["display:none", "display:none", None]
    (slider,) = tags["input"]
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "2")


def test_words_for_those_who_cannot_see_it():
    tags = Tags(plotting.animate([0.1, 0.5], fill, ALT))
    assert tags["div"][0]["aria-label"] == ALT
    assert [image["alt"] for image in tags["img"]] == [f"{ALT} (1 of 2)", f"{ALT} (2 of 2)"]
    assert tags["button"][0]["aria-label"] == "play or pause" and tags["input"][0]["aria-label"] == "frame"


def test_it_is_light_and_needs_nothing_from_elsewhere():
    generator = torch.Generator().manual_seed(0)
    frames = [torch.randn(1000, 2, generator=generator) for _ in range(30)]
    page = plotting.animate(frames, plotting.points, "Thirty clouds of a thousand points.")
    assert len(page.data) < 400_000
    assert "http" not in page.data and "<script" not in page.data and not re.search(r"\bid=", page.data)


def test_no_figure_stays_open():
    def fails(ax, frame):
        raise RuntimeError("no picture")

    before = plt.get_fignums()
    plotting.animate([0.1, 0.5], fill, ALT)
    with pytest.raises(RuntimeError, match="no picture"):
        plotting.animate([0.1, 0.5], fails, ALT)
    assert plt.get_fignums() == before


def test_each_frame_is_drawn_on_empty_axes():
    texts = []

    def draw(ax, frame):
        texts.append(len(ax.texts))
        ax.text(0, 0, frame)

    plotting.animate(["a", "b", "c"], draw, ALT)
    assert texts == [0, 0, 0]


def test_git_does_not_keep_it():
    page = plotting.animate([0.1, 0.5], fill, ALT)
    assert isinstance(page, HTML)
    shown = nbformat.v4.new_output("execute_result", {"text/html": page.data, "text/plain": repr(page)})
    printed = nbformat.v4.new_output("stream", name="stdout", text="done\n")
    cell = nbformat.v4.new_code_cell("plotting.animate(...)", outputs=[printed, shown])
    kept = notebooks.normalise(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs
    assert kept == [printed]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": [0.5]}, "frames must be from 2 to 30, got 1"),
        ({"frames": [0.5] * 31}, "frames must be from 2 to 30, got 31"),
        ({"alt": " "}, "alt must say what there is to see"),
    ],
)
def test_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        plotting.animate(**({"frames": [0.1, 0.5], "draw": fill, "alt": ALT} | arguments))


def test_too_heavy_is_refused(monkeypatch):
    monkeypatch.setattr(plotting, "ANIMATION_BYTES", 1500)
    with pytest.raises(ValueError, match=r"has \d,\d{3} bytes, more than 1,500; use fewer frames, or smaller ones"):
        plotting.animate([0.1, 0.5, 0.9], fill, ALT)


def test_names_beside_points_cover_no_other():
    (ax,) = plotting.panels(1, width=5)
    ax.set(xscale="log", yscale="log")
    points = {f"model {i}": (10.0, 100 + i) for i in range(6)} | {"alone": (1000.0, 1000.0)}
    plotting.named_points(ax, points)
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
    assert set(boxes) == set(points)
    assert not any(boxes[a].overlaps(boxes[b]) for a in boxes for b in boxes if a < b)
    assert [text.xy for text in ax.texts] == sorted(points.values(), key=lambda xy: xy[1])
    plt.close("all")
