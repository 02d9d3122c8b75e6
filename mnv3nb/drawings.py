"""Figures 1 to 5, drawn from live modules: shapes, widths and counts are the network's own, never typed in."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# fill colours by role; pale enough for black text, and apart from each other in grey
COLORS = {
    "data": "#f2f2f2",
    "expand": "#9ecae8",
    "depthwise": "#f6c98f",
    "se": "#d9b8dd",
    "project": "#a8d8b9",
    "cut": "#e8998d",
    "plain": "#ffffff",
}


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing; its coordinates are inches from the lower left corner."""
    fig = plt.figure(figsize=(width, height), layout="none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def box(ax: Axes, x: float, y: float, text: str, kind: str = "plain", size: tuple = (1.5, 0.9), fontsize: float = 10, **style):
    """A rounded box of `size` centred at (x, y); `kind` is a key of COLORS, `style` goes to the patch."""
    width, height = size
    corner = (x - width / 2, y - height / 2)
    style = {"facecolor": COLORS[kind], "edgecolor": "0.25", "linewidth": 1.1} | style
    ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=0.07", **style))
    ax.text(x, y, text, ha="center", va="center", fontsize=fontsize, linespacing=1.25)


def arrow(ax: Axes, start: tuple, end: tuple, text: str = "", connection: str = "arc3", fontsize: float = 9, **style):
    """An arrow from `start` to `end` with `text` above its middle; `connection` is matplotlib's connectionstyle."""
    style = {"color": "0.25", "linewidth": 1.3} | style
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=13, shrinkA=0, shrinkB=0, connectionstyle=connection, **style
        )
    )
    if text:
        ax.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.07, text, ha="center", va="bottom", fontsize=fontsize)
