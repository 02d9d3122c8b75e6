"""Figures 1 to 3, drawn from live modules: shapes, widths and counts are the network's own."""

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon
from matplotlib.transforms import Bbox
from torch import nn

from ..blocks import Block, blocks
from ..costs import count_parameters, layer_costs
from .style import ROLES

ACTIVATIONS = {nn.ReLU: "ReLU", nn.ReLU6: "ReLU6", nn.Hardswish: "h-swish", nn.SiLU: "SiLU"}
LINE = {"color": "0.25", "linewidth": 1.3}
CENTRED = {"ha": "center", "va": "center", "fontsize": 11}
HEADING = {"fontsize": 13, "weight": "bold"}
FACE = {"edgecolor": "0.25", "linewidth": 1}
LABEL_DEPTH = 0.17  # of a text below a stack of channels

# Figure 2: where the maps of both rows stand, and how large those of the block's width and of its output are.
INPUT_X = 0.3
OUTPUT_X = 8.75
WIDE_MAPS = {"length": 1.1, "side": 0.8}
OUTPUT_MAPS = {"length": 0.5, "side": 0.8}
ARROW_HEIGHT = 0.45  # above the base of a row

Point = tuple[float, float]


def block_drawing(model: nn.Module, number: int = 4, image_size: int = 224) -> Figure:
    """Figure 1: the layers of block `number` of `model`, with their parameters.

    Shapes are C×H×W for images of `image_size` pixels.
    """
    block = blocks(model)[number]
    shapes = _layer_shapes(model, block, image_size)
    activation = _activation_name(block)
    kernel = block.depthwise.kernel_size[0]
    stride = block.depthwise.stride[0]
    shortcut = _has_shortcut(block)

    y = 1.6  # height of the line along which the layers stand
    fig, ax = canvas(10, 4.2 if block.hidden else 2.9)
    ax.text(0.08, fig.get_figheight() - 0.3, f"Block {number}", **HEADING)

    expand_text = f"1×1 expansion\nBatchNorm, {activation}\n{_times(shapes['expand'])}"
    depthwise_text = (
        f"{kernel}×{kernel} depthwise,\nstride {stride}\nBatchNorm, {activation}\n{_times(shapes['depthwise'])}"
    )
    project_text = f"1×1 projection\nBatchNorm\nno activation\n{_times(shapes['project'])}"
    layer_size = (1.75, 1.15)
    expand = box(ax, 2.5, y, expand_text, "expand", layer_size)
    depthwise = box(ax, 4.7, y, depthwise_text, "depthwise", layer_size)
    project = box(ax, 7.35, y, project_text, "project", layer_size)
    _write_parameters_below(ax, expand, block.expand, block.expand_bn)
    _write_parameters_below(ax, depthwise, block.depthwise, block.depthwise_bn)
    _write_parameters_below(ax, project, block.project, block.project_bn)
    block_input = box(ax, 0.68, y, f"input\n{_times(shapes['input'])}", "data", (1.2, 0.75))
    block_output = box(ax, 9.43, y, f"output\n{_times(shapes['project'])}", "data", (1.06, 0.75), fontsize=10.5)

    arrow(ax, (block_input.x1, y), (expand.x0, y))
    arrow(ax, (expand.x1, y), (depthwise.x0, y))
    if block.hidden:
        _draw_squeeze_and_excitation(ax, y, block, depthwise, project)
    else:
        arrow(ax, (depthwise.x1, y), (project.x0, y))
    if shortcut:
        _draw_shortcut(ax, y, block_input, project, block_output)
        remark = "shortcut: input and output have the same shape"
    else:
        arrow(ax, (project.x1, y), (block_output.x0, y))
        remark = "no shortcut: the shapes differ"
    ax.text(4.7, 0.3, remark, **CENTRED)
    return fig


def _draw_squeeze_and_excitation(ax: Axes, y: float, block: Block, depthwise: Bbox, project: Bbox) -> None:
    """Draw SE above the layers; its factors multiply the channels between `depthwise` and `project`."""
    times_x = 6.02
    times = _operator(ax, times_x, y, "×", 0.3)
    arrow(ax, (depthwise.x1, y), (times.x0, y))
    arrow(ax, (times.x1, y), (project.x0, y))

    text = (
        "squeeze and excite: global pool,\n"
        f"1×1 {block.width} → {block.hidden}, ReLU, 1×1 {block.hidden} → {block.width}, sigmoid"
    )
    se = box(ax, 5.3, 3.4, text, "se", (4.6, 0.8))
    parameters = count_parameters(block.squeeze) + count_parameters(block.excite)
    ax.text(5.3, 3.95, f"{parameters:,} parameters", **CENTRED)
    depthwise_x = (depthwise.x0 + depthwise.x1) / 2
    arrow(ax, (depthwise_x, depthwise.y1), (depthwise_x, se.y0))
    arrow(ax, (times_x, se.y0), (times_x, times.y1))
    ax.text(6.95, 2.55, "one factor per channel", **CENTRED)


def _draw_shortcut(ax: Axes, y: float, block_input: Bbox, project: Bbox, block_output: Bbox) -> None:
    """Draw the line below the layers that adds the block's input to its output."""
    input_x = (block_input.x0 + block_input.x1) / 2
    plus_x = 8.55
    below = 0.45
    plus = _operator(ax, plus_x, y, "+", 0.26)
    ax.plot([input_x, input_x, plus_x, plus_x], [block_input.y0, below, below, plus.y0], **LINE)
    arrow(ax, (project.x1, y), (plus.x0, y))
    arrow(ax, (plus.x1, y), (block_output.x0, y))


def separable_drawing(model: nn.Module, number: int = 4, image_size: int = 224) -> Figure:
    """Figure 2: a standard convolution, and below it the depthwise and 1×1 convolutions that replace it.

    Both turn the expansion of block `number` of `model` into the block's output, for images of `image_size` pixels.
    """
    block = blocks(model)[number]
    shapes = _layer_shapes(model, block, image_size)
    inputs = shapes["depthwise"][0]
    outputs, height, width = shapes["project"]
    kernel_area = block.depthwise.weight[0].numel()
    standard_weights = inputs * outputs * kernel_area
    separable_weights = block.depthwise.weight.numel() + block.project.weight.numel()

    fig, ax = canvas(10, 4.7)
    for y, title, weights in (
        (4.5, "Standard convolution", standard_weights),
        (2.1, "Depthwise separable convolution", separable_weights),
    ):
        macs = weights * height * width / 1e6
        cost = f"{weights:,} weights, {macs:.2f} M multiply-accumulates ({weights / standard_weights:.1%})"
        ax.text(0.25, y, title, va="center", **HEADING)
        ax.text(9.85, y, cost, fontsize=11, va="center", ha="right")
    _draw_standard_convolution(ax, 2.95, block, shapes)
    _draw_separable_convolution(ax, 0.45, block, shapes)
    return fig


def _draw_standard_convolution(ax: Axes, base: float, block: Block, shapes: dict[str, tuple[int, ...]]) -> None:
    inputs = shapes["depthwise"][0]
    outputs = shapes["project"][0]
    kernel = _times(block.depthwise.kernel_size)

    cuboid(ax, OUTPUT_X, base - 0.05, **OUTPUT_MAPS, role="data", text=_times(shapes["project"]))
    cuboid(ax, INPUT_X, base, **WIDE_MAPS, role="data", text=_times(shapes["expand"]))
    for i in (2, 1, 0):  # the hindmost kernel first
        cuboid(ax, 4.55 + 0.14 * i, base + 0.1 + 0.17 * i, length=1.1, side=0.3, role="plain")
    ax.text(5.3, base - LABEL_DEPTH, f"{outputs} kernels {inputs}×{kernel}", **CENTRED)
    ax.text(3.15, base + 0.75, "every kernel sees\nall channels", **CENTRED)

    y = base + ARROW_HEIGHT
    arrow(ax, (2.0, y), (4.3, y))
    arrow(ax, (6.4, y), (8.55, y))


def _draw_separable_convolution(ax: Axes, base: float, block: Block, shapes: dict[str, tuple[int, ...]]) -> None:
    inputs = shapes["depthwise"][0]
    outputs = shapes["project"][0]
    kernel = _times(block.depthwise.kernel_size)

    cuboid(ax, OUTPUT_X, base + 0.05, **OUTPUT_MAPS, role="data", text=_times(shapes["project"]))
    cuboid(ax, INPUT_X, base, **WIDE_MAPS, role="depthwise", text=_times(shapes["expand"]), slices=6)
    cuboid(ax, 4.75, base, **WIDE_MAPS, role="depthwise", text=_times(shapes["depthwise"]), slices=6)
    for i in (2, 1, 0):  # the hindmost kernel first
        cuboid(ax, 2.7 + 0.36 * i, base + 0.3, length=0.18, side=0.3, role="depthwise")
        cuboid(ax, 7.0 + 0.1 * i, base + 0.25 + 0.19 * i, length=0.8, side=0.1, role="project")
    ax.text(3.22, base - LABEL_DEPTH, f"{inputs} kernels 1×{kernel}", **CENTRED)
    ax.text(3.22, base + 1.1, "one kernel per channel", **CENTRED)
    ax.text(7.5, base - LABEL_DEPTH, f"{outputs} kernels {inputs}×1×1", **CENTRED)
    ax.text(7.5, base + 1.1, "mixes channels", **CENTRED)

    y = base + ARROW_HEIGHT
    arrow(ax, (2.0, y), (2.55, y))
    arrow(ax, (4.0, y), (4.6, y))
    arrow(ax, (6.4, y), (6.85, y))
    arrow(ax, (8.2, y), (8.6, y))


def bottleneck_drawing(model: nn.Module, number: int = 4) -> Figure:
    """Figure 3: block `number` of `model` as an inverted residual with a linear bottleneck; below it, all blocks.

    Heights are numbers of channels.
    """
    found = blocks(model)
    fig, ax = canvas(10, 5.6)
    ax.text(0.08, 5.3, f"Block {number}", **HEADING)
    _draw_bottleneck(ax, 4.0, found[number])
    ax.text(0.08, 2.6, "All blocks", **HEADING)
    _draw_all_profiles(ax, 1.5, found)
    return fig


def _draw_bottleneck(ax: Axes, y: float, block: Block) -> None:
    """Draw one block large, around the height `y`."""
    _draw_profile(ax, 1.7, y, block, scale=1.75 / block.width, length=2.0, step=2.3)
    ax.text(2.7, y, "1×1 expansion", **CENTRED)
    ax.text(5.0, y, "depthwise", **CENTRED)
    ax.text(7.3, y, "1×1 projection\n(linear)", **CENTRED)
    arrow(ax, (1.4, y), (1.7, y), f"{block.expand.in_channels}")
    arrow(ax, (3.7, y), (4.0, y), f"{block.width}")
    arrow(ax, (6.0, y), (6.3, y), f"{block.width}")
    arrow(ax, (8.3, y), (8.6, y), f"{block.project.out_channels}")

    input_x = 0.85
    output_x = 9.2
    ax.text(input_x, y, "narrow\ninput", **CENTRED)
    ax.text(output_x, y, "narrow\noutput", **CENTRED)
    if _has_shortcut(block):
        end = y + 0.28  # just above the words
        above = y + 1.05
        ax.plot([input_x, input_x, output_x], [end, above, above], **LINE)
        arrow(ax, (output_x, above), (output_x, end))
        ax.text(5, y + 1.2, "shortcut between the narrow ends", **CENTRED)


def _draw_all_profiles(ax: Axes, y: float, found: Sequence[Block]) -> None:
    """Draw the profiles of all blocks side by side around the height `y`, and three lines of marks below them."""
    number_y = 0.5
    se_y = 0.3
    shortcut_y = 0.1
    ax.text(0.08, number_y, "block", fontsize=11, va="center")
    ax.text(0.08, se_y, "SE", fontsize=11, va="center")
    ax.text(0.08, shortcut_y, "shortcut", fontsize=11, va="center")

    scale = 1.5 / max(block.width for block in found)
    step = 8.85 / len(found)
    for i, block in enumerate(found):
        left = 0.95 + step * i
        middle = left + 0.45 * step
        _draw_profile(ax, left, y, block, scale, length=0.3 * step, step=0.3 * step)
        ax.text(middle, y + 0.15 + block.width * scale / 2, f"{block.width}", **CENTRED)
        ax.text(middle, number_y, f"{i}", **CENTRED)
        if block.hidden:
            ax.text(middle, se_y, "●", **CENTRED)
        if _has_shortcut(block):
            ax.text(middle, shortcut_y, "●", **CENTRED)


def _draw_profile(ax: Axes, x: float, y: float, block: Block, scale: float, length: float, step: float) -> None:
    """Draw the three convolutions of `block` as trapezoids of `length`, from `x` on, one every `step`.

    A trapezoid's two heights are its numbers of input and output channels × `scale`.
    """
    _draw_trapezoid(ax, x, y, length, block.expand, scale, "expand")
    _draw_trapezoid(ax, x + step, y, length, block.depthwise, scale, "depthwise")
    _draw_trapezoid(ax, x + 2 * step, y, length, block.project, scale, "project")


def _draw_trapezoid(ax: Axes, x: float, y: float, length: float, conv: nn.Conv2d, scale: float, role: str) -> None:
    left = conv.in_channels * scale / 2
    right = conv.out_channels * scale / 2
    corners = [(x, y - left), (x, y + left), (x + length, y + right), (x + length, y - right)]
    ax.add_patch(Polygon(corners, facecolor=ROLES[role], **FACE))


def _has_shortcut(block: Block) -> bool:
    return block.expand.in_channels == block.project.out_channels and block.depthwise.stride == (1, 1)


def _activation_name(block: Block) -> str:
    for module in block.module.modules():
        if type(module) in ACTIVATIONS:
            return ACTIVATIONS[type(module)]
    return "activation"


def _layer_shapes(model: nn.Module, block: Block, image_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes (C, H, W) of the block's input and of what its three convolutions put out."""
    shapes = {row["name"]: row["shape"] for row in layer_costs(model, image_size)}
    names = {module: name for name, module in model.named_modules()}
    expanded = shapes[names[block.expand]]
    return {
        "input": (block.expand.in_channels, *expanded[1:]),  # a 1×1 convolution of stride 1 keeps height and width
        "expand": expanded,
        "depthwise": shapes[names[block.depthwise]],
        "project": shapes[names[block.project]],
    }


def _write_parameters_below(ax: Axes, place: Bbox, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> None:
    parameters = count_parameters(conv)
    if norm is not None:
        parameters += count_parameters(norm)
    ax.text((place.x0 + place.x1) / 2, place.y0 - 0.155, f"{parameters:,} parameters", **CENTRED)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing; its coordinates are inches from the lower left corner."""
    # With layout="none", matplotlib would apply the style's constrained layout after the first save.
    fig = Figure(figsize=(width, height), layout=PlaceHolderLayoutEngine(True, True))
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def box(
    ax: Axes,
    x: float,
    y: float,
    text: str,
    role: str = "plain",
    size: tuple[float, float] = (1.5, 0.9),
    fontsize: float = 11,
) -> Bbox:
    """Draw a rounded box with `text`, centred at (x, y), in the colour of a `role` of ROLES.

    `size` is width and height. Returns where the edges are, for arrows to start and end at.
    """
    width, height = size
    place = Bbox.from_bounds(x - width / 2, y - height / 2, width, height)
    rounded = "round,pad=0,rounding_size=0.07"
    ax.add_patch(FancyBboxPatch(place.p0, width, height, boxstyle=rounded, facecolor=ROLES[role], edgecolor="0.25"))
    ax.text(x, y, text, ha="center", va="center", fontsize=fontsize, linespacing=1.25)
    return place


def _operator(ax: Axes, x: float, y: float, sign: str, side: float) -> Bbox:
    """Draw a small square box with the sign of an operation."""
    return box(ax, x, y, sign, size=(side, side), fontsize=14)


def arrow(ax: Axes, start: Point, end: Point, text: str = "") -> None:
    """Draw an arrow from `start` to `end` with `text` above its middle."""
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, shrinkA=0, shrinkB=0, **LINE))
    if text:
        ax.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.15, text, **CENTRED)


def cuboid(
    ax: Axes, x: float, y: float, length: float, side: float, role: str, text: str = "", slices: int = 1
) -> None:
    """Draw a stack of channels in oblique projection, its lower left corner at (x, y), with `text` below it.

    `length` runs along the channels, `side` is the height of a map; `slices` cuts the stack into so many parts.
    """
    shift = 0.45 * side  # by which the back lies to the right of the front, and above it
    top = y + side
    end = x + length
    cuts = [x + i * length / slices for i in range(slices + 1)]
    faces = []
    for left, right in pairwise(cuts):  # the front
        faces.append([(left, y), (right, y), (right, top), (left, top)])
    for left, right in pairwise(cuts):  # the upper side
        faces.append([(left, top), (right, top), (right + shift, top + shift), (left + shift, top + shift)])
    faces.append([(end, y), (end, top), (end + shift, top + shift), (end + shift, y + shift)])
    for corners in faces:
        ax.add_patch(Polygon(corners, facecolor=ROLES[role], **FACE))
    if text:
        ax.text(x + (length + shift) / 2, y - LABEL_DEPTH, text, **CENTRED)


def _times(shape: Sequence[int]) -> str:
    return "×".join(str(size) for size in shape)
