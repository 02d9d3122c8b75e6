"""Figures 1 to 3, drawn from live modules: shapes, widths and counts are the network's own."""

from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon
from torch import nn

from ..blocks import Block, blocks
from ..costs import count_parameters, layer_costs
from .style import ROLES

ACTIVATIONS = {nn.ReLU: "ReLU", nn.ReLU6: "ReLU6", nn.Hardswish: "h-swish", nn.SiLU: "SiLU"}
CONVOLUTIONS = ("expand", "depthwise", "project")
LINE = {"color": "0.25", "linewidth": 1.3}
CENTRED = {"ha": "center", "va": "center", "fontsize": 11}


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing; its coordinates are inches from the lower left corner."""
    # not layout="none": after the first save matplotlib would put the style's constrained layout in its place
    fig = Figure(figsize=(width, height), layout=PlaceHolderLayoutEngine(True, True))
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def box(ax: Axes, x: float, y: float, text: str, role: str = "plain", size: tuple = (1.5, 0.9), fontsize: float = 11):
    """A rounded box of `size` centred at (x, y), in the colour of a `role` of ROLES."""
    corner, style = (x - size[0] / 2, y - size[1] / 2), "round,pad=0,rounding_size=0.07"
    ax.add_patch(FancyBboxPatch(corner, *size, boxstyle=style, facecolor=ROLES[role], edgecolor="0.25"))
    ax.text(x, y, text, linespacing=1.25, **CENTRED | {"fontsize": fontsize})


def arrow(ax: Axes, start: tuple, end: tuple, text: str = "") -> None:
    """An arrow from `start` to `end` with `text` above its middle."""
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, shrinkA=0, shrinkB=0, **LINE))
    ax.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.15, text, **CENTRED)


def block_drawing(model: nn.Module, block: int = 4, image_size: int = 224) -> Figure:
    """Figure 1: block number `block` of `model`; shapes are C×H×W for images of `image_size` pixels."""
    b, shapes, y = blocks(model)[block], _shapes(model, block, image_size), 1.6
    shortcut = _shortcut(b)
    fig, ax = canvas(10, 4.2 if b.hidden else 2.9)
    ax.text(0.08, fig.get_figheight() - 0.3, f"Block {block}", fontsize=13, weight="bold")
    kernel, stride = b.depthwise.kernel_size[0], b.depthwise.stride[0]
    act = next((ACTIVATIONS[type(m)] for m in b.module.modules() if type(m) in ACTIVATIONS), "activation")
    texts = f"1×1 expansion\nBatchNorm, {act}", f"{kernel}×{kernel} depthwise,\nstride {stride}\nBatchNorm, {act}"
    for x, role, text in zip((2.5, 4.7, 7.35), CONVOLUTIONS, (*texts, "1×1 projection\nBatchNorm\nno activation")):
        box(ax, x, y, f"{text}\n{_times(shapes[role])}", role, (1.75, 1.15))
        count = count_parameters(getattr(b, role)) + count_parameters(getattr(b, f"{role}_bn"))
        ax.text(x, y - 0.73, f"{count:,} parameters", **CENTRED)
    box(ax, 0.68, y, f"input\n{_times(shapes['in'])}", "data", (1.2, 0.75))
    box(ax, 9.43, y, f"output\n{_times(shapes['project'])}", "data", (1.06, 0.75), 10.5)
    ends = (1.28, 1.625), (3.375, 3.825), (5.575, 5.87 if b.hidden else 6.475), (8.225, 8.42 if shortcut else 8.9)
    for start, end in ends:
        arrow(ax, (start, y), (end, y))
    if b.hidden:
        _draw_squeeze(ax, y, b)
    if shortcut:
        ax.plot((0.68, 0.68, 8.55, 8.55), (y - 0.375, 0.45, 0.45, y - 0.13), **LINE)
        box(ax, 8.55, y, "+", size=(0.26, 0.26), fontsize=14)
        arrow(ax, (8.68, y), (8.9, y))
    why = "shortcut: input and output have the same shape" if shortcut else "no shortcut: the shapes differ"
    ax.text(4.7, 0.3, why, **CENTRED)
    return fig


def _draw_squeeze(ax: Axes, y: float, b: Block) -> None:
    """Squeeze-and-excitation above the line of layers at height `y`."""
    box(ax, 6.02, y, "×", size=(0.3, 0.3), fontsize=14)
    arrow(ax, (6.17, y), (6.475, y))
    text = f"squeeze and excite: global pool,\n1×1 {b.width} → {b.hidden}, ReLU, 1×1 {b.hidden} → {b.width}, sigmoid"
    box(ax, 5.3, 3.4, text, "se", (4.6, 0.8))
    ax.text(5.3, 3.95, f"{count_parameters(b.squeeze) + count_parameters(b.excite):,} parameters", **CENTRED)
    arrow(ax, (4.7, y + 0.575), (4.7, 3.0))
    arrow(ax, (6.02, 3.0), (6.02, y + 0.15))
    ax.text(6.95, 2.55, "one factor per channel", **CENTRED)


def separable_drawing(model: nn.Module, block: int = 4, image_size: int = 224) -> Figure:
    """Figure 2: the depthwise and 1×1 convolutions of one block below the standard convolution that they replace."""
    b, shapes = blocks(model)[block], _shapes(model, block, image_size)
    (c, *_), (n, *size) = shapes["depthwise"], shapes["project"]
    kernel, standard = _times(b.depthwise.kernel_size), c * n * b.depthwise.weight[0].numel()
    pair = b.depthwise.weight.numel() + b.project.weight.numel()
    (fig, ax), top, bottom = canvas(10, 4.7), 2.95, 0.45
    for y, title, weights in ((4.5, "Standard convolution", standard), (2.1, "Depthwise separable convolution", pair)):
        macs = f"{weights * size[0] * size[1] / 1e6:.2f} M multiply-accumulates ({weights / standard:.1%})"
        ax.text(0.25, y, title, fontsize=13, weight="bold", va="center")
        ax.text(9.85, y, f"{weights:,} weights, {macs}", fontsize=11, va="center", ha="right")
        _cuboid(ax, 8.75, y - 1.6, 0.5, 0.8, "data", _times(shapes["project"]))
    _cuboid(ax, 0.3, top, 1.1, 0.8, "data", _times(shapes["expand"]))
    _cuboid(ax, 0.3, bottom, 1.1, 0.8, "depthwise", _times(shapes["expand"]), slices=6)
    _cuboid(ax, 4.75, bottom, 1.1, 0.8, "depthwise", _times(shapes["depthwise"]), slices=6)
    for i in (2, 1, 0):
        _cuboid(ax, 4.55 + 0.14 * i, top + 0.1 + 0.17 * i, 1.1, 0.3, "plain")
        _cuboid(ax, 2.7 + 0.36 * i, bottom + 0.3, 0.18, 0.3, "depthwise")
        _cuboid(ax, 7.0 + 0.1 * i, bottom + 0.25 + 0.19 * i, 0.8, 0.1, "project")
    for x, y, text in (
        (5.3, top - 0.17, f"{n} kernels {c}×{kernel}"),
        (3.15, top + 0.75, "every kernel sees\nall channels"),
        (3.22, bottom - 0.17, f"{c} kernels 1×{kernel}"),
        (3.22, bottom + 1.1, "one kernel per channel"),
        (7.5, bottom - 0.17, f"{n} kernels {c}×1×1"),
        (7.5, bottom + 1.1, "mixes channels"),
    ):
        ax.text(x, y, text, **CENTRED)
    ends = (top, 2.0, 4.3), (top, 6.4, 8.55), (bottom, 2.0, 2.55), (bottom, 4.0, 4.6), (bottom, 6.4, 6.85)
    for y, start, end in (*ends, (bottom, 8.2, 8.6)):
        arrow(ax, (start, y + 0.45), (end, y + 0.45))
    return fig


def bottleneck_drawing(model: nn.Module, block: int = 4) -> Figure:
    """Figure 3: one block as an inverted residual with a linear bottleneck; below, all blocks. Heights are channels."""
    (fig, ax), every, y = canvas(10, 5.6), blocks(model), 4.0
    b = every[block]
    _draw_profile(ax, b, 1.7, y, 1.75 / b.width, length=2.0, step=2.3)
    for x, text in zip((2.7, 5.0, 7.3), ("1×1 expansion", "depthwise", "1×1 projection\n(linear)")):
        ax.text(x, y, text, **CENTRED)
    for x, channels in zip((1.4, 3.7, 6.0, 8.3), (b.expand.in_channels, b.width, b.width, b.project.out_channels)):
        arrow(ax, (x, y), (x + 0.3, y), f"{channels}")
    for x, name in ((0.85, "narrow\ninput"), (9.2, "narrow\noutput")):
        ax.text(x, y, name, **CENTRED)
    if _shortcut(b):
        ax.plot((0.85, 0.85, 9.2), (y + 0.28, y + 1.05, y + 1.05), **LINE)
        arrow(ax, (9.2, y + 1.05), (9.2, y + 0.28))
        ax.text(5, y + 1.2, "shortcut between the narrow ends", **CENTRED)
    ax.text(0.08, 5.3, f"Block {block}", fontsize=13, weight="bold")
    ax.text(0.08, 2.6, "All blocks", fontsize=13, weight="bold")
    for y, name in ((0.5, "block"), (0.3, "SE"), (0.1, "shortcut")):
        ax.text(0.08, y, name, fontsize=11, va="center")
    scale, step = 1.5 / max(b.width for b in every), 8.85 / len(every)
    for i, b in enumerate(every):
        x = 0.95 + step * i
        _draw_profile(ax, b, x, 1.5, scale, length=0.3 * step, step=0.3 * step)
        marks = (1.65 + b.width * scale / 2, b.width), (0.5, i), (0.3, "●" * (b.hidden > 0)), (0.1, "●" * _shortcut(b))
        for y, mark in marks:
            ax.text(x + 0.45 * step, y, str(mark), **CENTRED)
    return fig


def _shortcut(b: Block) -> bool:
    return b.expand.in_channels == b.project.out_channels and b.depthwise.stride == (1, 1)


def _shapes(model: nn.Module, block: int, image_size: int) -> dict[str, tuple[int, ...]]:
    """Output shapes (C, H, W) of one block's CONVOLUTIONS, and the shape of its input ("in")."""
    b, shapes = blocks(model)[block], {row["name"]: row["shape"] for row in layer_costs(model, image_size)}
    names = {module: name for name, module in model.named_modules()}
    found = {role: shapes[names[getattr(b, role)]] for role in CONVOLUTIONS}
    return found | {"in": (b.expand.in_channels, *found["expand"][1:])}


def _draw_profile(ax: Axes, b: Block, x: float, y: float, scale: float, length: float, step: float) -> None:
    """The three convolutions of a block as trapezoids: heights in channels × `scale`, one every `step`."""
    for start, role in zip((x, x + step, x + 2 * step), CONVOLUTIONS):
        conv = getattr(b, role)
        left, right = conv.in_channels * scale / 2, conv.out_channels * scale / 2
        corners = [(start, y - left), (start, y + left), (start + length, y + right), (start + length, y - right)]
        ax.add_patch(Polygon(corners, facecolor=ROLES[role], edgecolor="0.25", linewidth=1))


def _cuboid(ax: Axes, x: float, y: float, length: float, side: float, role: str, text: str = "", slices: int = 1):
    """A stack of channels from (x, y): `length` along the channels, `side` high, drawn obliquely; `slices` cuts it."""
    shift, top, end = 0.45 * side, y + side, x + length
    edges = [x + i * length / slices for i in range(slices + 1)]
    faces = [[(a, y), (b, y), (b, top), (a, top)] for a, b in pairwise(edges)]
    faces += [[(a, top), (b, top), (b + shift, top + shift), (a + shift, top + shift)] for a, b in pairwise(edges)]
    faces.append([(end, y), (end, top), (end + shift, top + shift), (end + shift, y + shift)])
    for corners in faces:
        ax.add_patch(Polygon(corners, facecolor=ROLES[role], edgecolor="0.25", linewidth=1))
    ax.text(x + (length + shift) / 2, y - 0.17, text, **CENTRED)


def _times(shape: tuple) -> str:
    return "×".join(map(str, shape))
