"""Every figure of the book, in one style."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from torch import Tensor

if TYPE_CHECKING:
    from IPython.display import HTML

Frame = TypeVar("Frame")

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
DENSITY_MAP = "mako"

# An animation is a part of its page, which has to load quickly.
ANIMATION_FRAMES, ANIMATION_BYTES = 30, 500_000


def use_style() -> None:
    """Set the book's style; call it once, at the top of a chapter."""
    sns.set_theme(context="notebook", style="ticks", palette=COLOURS, font_scale=0.9)
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "legend.frameon": False,
            "lines.linewidth": 2,
        }
    )


def panels(count: int, width: float = 3.2, height: float = 3.0, **options) -> list[Axes]:
    """A row of axes."""
    _, axes = plt.subplots(1, count, figsize=(width * count, height), squeeze=False, **options)
    return list(axes[0])


def density(ax: Axes, log_prob: Callable[[Tensor], Tensor], reach: float = 4.5, title: str = "") -> None:
    """A density in the plane, as an image of [-reach, reach]²."""
    axis = torch.linspace(-reach, reach, 200)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    with torch.no_grad():
        values = log_prob(grid.reshape(-1, 2)).exp().reshape(200, 200)
    ax.imshow(values, origin="lower", extent=(-reach, reach, -reach, reach), cmap=DENSITY_MAP)
    _plane(ax, reach, title)


def points(ax: Axes, x: Tensor, reach: float = 4.5, title: str = "", colour: str = COLOURS[0]) -> None:
    """Points in the plane."""
    x = x.detach().cpu()
    ax.scatter(x[:, 0], x[:, 1], s=3, alpha=0.5, color=colour, linewidths=0, rasterized=True)
    _plane(ax, reach, title)


def _plane(ax: Axes, reach: float, title: str) -> None:
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[], title=title)
    sns.despine(ax=ax, left=True, bottom=True)


def images(rows: Mapping[str, Tensor], columns: int = 10) -> None:
    """Rows of grey images, each row with its name. The tensors: (n, 1, height, width), values from 0 to 1."""
    height = 0.85 * len(rows)
    _, axes = plt.subplots(len(rows), 1, figsize=(0.8 * columns + 1.2, height), squeeze=False)
    for ax, (name, x) in zip(axes[:, 0], rows.items(), strict=True):
        strip = torch.cat(list(x[:columns, 0].detach().cpu()), dim=1)
        ax.imshow(strip, cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        sns.despine(ax=ax, left=True, bottom=True)


def curves(ax: Axes, x: Sequence[float] | np.ndarray, lines: Mapping[str, np.ndarray], **labels) -> None:
    """Curves over a common axis; `labels` as for `Axes.set`."""
    for name, y in lines.items():
        ax.plot(x, y, label=name)
    ax.set(**labels)
    if len(lines) > 1:
        ax.legend()


def named_points(ax: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Points with their names beside them, each moved up until it covers no other. Set the scales and labels first."""
    ax.plot(*zip(*points.values(), strict=True), "o", color=COLOURS[0], markersize=4)
    ax.margins(0.08)
    ax.figure.canvas.draw()
    taken: list = []
    for name, xy in sorted(points.items(), key=lambda item: item[1][1]):
        text = ax.annotate(name, xy, xytext=(5, -3), textcoords="offset points", fontsize=7)
        while any(text.get_window_extent().overlaps(other) for other in taken):
            text.xyann = text.xyann[0], text.xyann[1] + 1
        taken.append(text.get_window_extent())


_ANIMATION = """<div role="group" aria-label="{alt}">
{images}
<div><button type="button" aria-label="play or pause" onclick="{play}">&#9654;</button>
<input type="range" aria-label="frame" min="0" max="{last}" value="{last}" oninput="{show}"></div>
</div>"""
_SHOW = "this.closest('[role]').querySelectorAll('img').forEach((f,i)=>f.style.display=i==this.value?'':'none')"
_PLAY = (
    "if(this.timer){clearInterval(this.timer);this.timer=0;return}"
    "const s=this.nextElementSibling;if(s.value==s.max)s.value=0;s.oninput();"
    "this.timer=setInterval(()=>{if(s.value==s.max){clearInterval(this.timer);this.timer=0}"
    "else{s.value=+s.value+1;s.oninput()}},200)"
)


def animate(
    frames: Sequence[Frame], draw: Callable[[Axes, Frame], None], alt: str, width: float = 3.2, height: float = 3.0
) -> "HTML":
    """Frames to step through with a slider, or to play, as HTML that needs nothing from elsewhere.

    It starts at the last frame, which is also what a reader without JavaScript sees. Make it the last expression
    of a cell.

    Args:
        frames: from 2 to 30.
        draw: draws one of them on empty axes.
        alt: what there is to see, for those who cannot see it.
        width, height: in inches.

    Raises ValueError for another number of frames, no words, or more than 500 kB.
    """
    from IPython.display import HTML

    if not 2 <= len(frames) <= ANIMATION_FRAMES:
        raise ValueError(f"frames must be from 2 to {ANIMATION_FRAMES}, got {len(frames)}")
    if not alt.strip():
        raise ValueError("alt must say what there is to see, got nothing")
    last = len(frames) - 1
    images = []
    fig, ax = plt.subplots(figsize=(width, height), dpi=90)
    try:
        for i, frame in enumerate(frames):
            ax.clear()
            draw(ax, frame)
            buffer = io.BytesIO()
            fig.savefig(buffer, format="webp", pil_kwargs={"quality": 70}, facecolor="white", dpi="figure")
            source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
            hidden = "" if i == last else ' style="display:none"'
            images.append(f'<img alt="{html.escape(alt)} ({i + 1} of {len(frames)})" src="{source}"{hidden}>')
    finally:
        # An open figure would be shown a second time, below.
        plt.close(fig)
    page = _ANIMATION.format(alt=html.escape(alt), images="\n".join(images), play=_PLAY, show=_SHOW, last=last)
    if len(page) > ANIMATION_BYTES:
        raise ValueError(
            f"the animation has {len(page):,} bytes, more than {ANIMATION_BYTES:,}; use fewer frames, or smaller ones"
        )
    return HTML(page)
