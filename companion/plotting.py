"""Every figure of the book, in one style."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from torch import Tensor

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
DENSITY_MAP = "mako"


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
