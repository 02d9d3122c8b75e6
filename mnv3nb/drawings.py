"""Figures 1 to 5, drawn from live modules: shapes, widths and counts are the network's own, never typed in."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon
from torch import Tensor, nn

from .complexity import count_parameters, layer_costs
from .model import MobileNetV3Large
from .pruning import threshold
from .store import Run

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
NAMES = {nn.ReLU6: "ReLU6", nn.Hardswish: "h-swish"}


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing; its coordinates are inches from the lower left corner."""
    # not "none": after the first save matplotlib would put the style's constrained layout in its place
    fig = plt.figure(figsize=(width, height), layout=PlaceHolderLayoutEngine(True, True))
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


def unit_drawing(model: MobileNetV3Large, unit: int = 4, image_size: int = 224) -> Figure:
    """Figure 1: unit `unit` (0 to 14) of `model`; output shapes are C×H×W for images of `image_size` pixels."""
    u, shapes, q = model.blocks[unit], _shapes(model, image_size), model.squeeze[unit]
    act, conv, y = NAMES[type(u.depthwise[2])], u.depthwise[0], 1.6
    fig, ax = canvas(10, 4.2 if q else 2.9)
    ax.text(0.08, 3.9 if q else 2.6, f"Unit {unit}", fontsize=12, weight="bold")
    operators = {
        "expand": (2.5, f"1×1 expansion\nBatchNorm, {act}"),
        "depthwise": (4.7, f"{conv.kernel_size[0]}×{conv.kernel_size[1]} depthwise,\nstride {conv.stride[0]}\nBatchNorm, {act}"),
        "project": (7.35, "1×1 projection\nBatchNorm\nno activation"),
    }
    for part, (x, text) in operators.items():
        box(ax, x, y, f"{text}\n{_times(shapes[f'units.{unit}.{part}'])}", part, (1.75, 1.15), 11)
        ax.text(x, y - 0.64, f"{_spaced(count_parameters(getattr(u, part)))} parameters", ha="center", va="top", fontsize=10)
    box(ax, 0.68, y, f"input\n{_times(shapes[f'units.{unit}.in'])}", "data", (1.2, 0.75), 11)
    box(ax, 9.43, y, f"output\n{_times(shapes[f'units.{unit}.project'])}", "data", (1.06, 0.75), 10.5)
    for start, end in ((1.28, 1.625), (3.375, 3.825), (5.575, 5.87 if q else 6.475), (8.225, 8.42 if u.residual else 8.8)):
        arrow(ax, (start, y), (end, y))
    if q:
        box(ax, 6.02, y, "×", size=(0.3, 0.3), fontsize=14)
        arrow(ax, (6.17, y), (6.475, y))
        width = model.widths[unit]
        text = f"squeeze and excite: global pool,\n1×1 {width} → {q}, ReLU, 1×1 {q} → {width}, hard-sigmoid"
        box(ax, 5.3, 3.4, text, "se", (4.6, 0.8), 11)
        ax.text(5.3, 3.85, f"{_spaced(count_parameters(u.se))} parameters", ha="center", va="bottom", fontsize=10)
        arrow(ax, (4.7, y + 0.575), (4.7, 3.0))
        arrow(ax, (6.02, 3.0), (6.02, y + 0.15))
        ax.text(6.1, 2.55, "one factor a channel", fontsize=10, va="center")
    if u.residual:
        ax.plot((0.68, 0.68, 8.55, 8.55), (y - 0.375, 0.45, 0.45, y - 0.13), color="0.25", linewidth=1.3)
        box(ax, 8.55, y, "+", size=(0.26, 0.26), fontsize=14)
        arrow(ax, (8.68, y), (8.9, y))
    ax.text(4.7, 0.38, "shortcut: input and output have the same shape" if u.residual else "no shortcut: the shapes differ",
            ha="center", va="top", fontsize=10)  # fmt: skip
    return fig


def separable_drawing(model: MobileNetV3Large, unit: int = 4, image_size: int = 224) -> Figure:
    """Figure 2: the depthwise and 1×1 convolutions of one unit below the standard convolution they stand for."""
    u, shapes = model.blocks[unit], _shapes(model, image_size)
    before, after, out = (shapes[f"blocks.{unit}.{part}"] for part in ("expand", "depthwise", "project"))
    pair, kernel = (u.depthwise[0], u.project[0]), u.depthwise[0].kernel_size
    single = nn.Conv2d(before[0], out[0], kernel, bias=False, device="meta")
    weights = [single.weight.numel(), sum(conv.weight.numel() for conv in pair)]
    fig, ax = canvas(10, 4.7)
    for y, title, count in zip((4.5, 2.1), ("Standard convolution", "Depthwise separable convolution"), weights):
        macs = count * out[1] * out[2]
        text = f"{_spaced(count)} weights, {macs / 1e6:.2f} M multiply-accumulates ({count / weights[0]:.1%})"
        ax.text(0.25, y, title, fontsize=12, weight="bold", va="center")
        ax.text(9.85, y, text, fontsize=11, va="center", ha="right")
    k, top, bottom = f"{kernel[0]}×{kernel[1]}", 2.95, 0.45
    for y, slices, x in ((top, 1, 0.3), (bottom, 6, 0.3), (bottom, 6, 4.75)):
        _cuboid(ax, x, y, 1.1, 0.8, "data" if slices == 1 else "depthwise", _times(before if x < 1 else after), slices)
    for y in (top, bottom):
        _cuboid(ax, 8.75, y, 0.5, 0.8, "data", _times(out))
    for i in (2, 1, 0):
        _cuboid(ax, 4.55 + 0.14 * i, top + 0.1 + 0.17 * i, 1.1, 0.3, "se", "" if i else f"{out[0]} kernels {before[0]}×{k}")
        _cuboid(ax, 2.7 + 0.36 * i, bottom + 0.3, 0.18, 0.3, "depthwise")
        _cuboid(ax, 7.0 + 0.1 * i, bottom + 0.25 + 0.19 * i, 0.8, 0.1, "project")
    ax.text(3.22, bottom - 0.1, f"{before[0]} kernels 1×{k}", ha="center", va="top", fontsize=10)
    ax.text(7.52, bottom - 0.1, f"{out[0]} kernels {after[0]}×1×1", ha="center", va="top", fontsize=10)
    for y, start, end in (
        (top, 2.0, 4.3),
        (top, 6.4, 8.55),
        (bottom, 2.0, 2.55),
        (bottom, 4.0, 4.6),
        (bottom, 6.4, 6.85),
        (bottom, 8.2, 8.6),
    ):
        arrow(ax, (start, y + 0.45), (end, y + 0.45))
    for x, y, text in (
        (3.15, top, "every kernel sees\nall channels"),
        (3.22, bottom, "one kernel a channel"),
        (7.5, bottom, "mixes channels"),
    ):
        ax.text(x, y + (0.55 if y == top else 1.1), text, ha="center", va="bottom", fontsize=10, style="italic")
    return fig


def bottleneck_drawing(model: MobileNetV3Large, unit: int = 4) -> Figure:
    """Figure 3: one unit as an inverted residual with a linear bottleneck; below, all units of `model`. Heights = channels."""
    u, (fig, ax) = model.blocks[unit], canvas(10, 5.6)
    act, y, scale = NAMES[type(u.expand[2])], 4.0, 1.75 / u.expand[0].out_channels
    texts = f"1×1 expansion\n{act}", f"depthwise\n{act}", "1×1 projection\nno activation\n(linear)"
    for x, text, (a, b, kind) in zip((1.7, 4.0, 6.3), texts, _profile(u)):
        _trapezoid(ax, x, y, 2.0, a * scale, b * scale, kind)
        ax.text(x + 1, y, text, ha="center", va="center", fontsize=11)
        arrow(ax, (x - 0.3, y), (x, y), f"{a}", fontsize=11)
    arrow(ax, (8.3, y), (8.6, y), f"{u.project[0].out_channels}", fontsize=11)
    for x, name in ((0.85, "narrow input"), (9.2, "narrow output")):
        ax.text(x, y, name.replace(" ", "\n"), ha="center", va="center", fontsize=11)
    if u.residual:
        ax.plot((0.85, 0.85, 9.2), (y + 0.28, y + 1.05, y + 1.05), color="0.25", linewidth=1.3)
        arrow(ax, (9.2, y + 1.05), (9.2, y + 0.28))
        ax.text(5, y + 1.1, "shortcut between the narrow ends", ha="center", va="bottom", fontsize=11)
    for top, title in ((5.3, f"Unit {unit}"), (2.6, "All units")):
        ax.text(0.08, top, title, fontsize=12, weight="bold")
    scale, step = 1.5 / max(model.widths), 0.59
    for i, u in enumerate(model.blocks):
        for x, (a, b, kind) in zip((0, 0.18, 0.36), _profile(u)):
            _trapezoid(ax, 0.87 + step * i + x, 1.5, 0.18, a * scale, b * scale, kind)
        top = 1.5 + model.widths[i] * scale / 2
        ax.text(1.14 + step * i, top + 0.06, f"{model.widths[i]}", ha="center", va="bottom", fontsize=10)
        for y, mark in ((0.5, str(i)), (0.3, "●" * (model.squeeze[i] > 0)), (0.1, "●" * u.residual)):
            ax.text(1.14 + step * i, y, mark, ha="center", va="center", fontsize=10)
    for y, name in ((0.5, "unit"), (0.3, "SE"), (0.1, "shortcut")):
        ax.text(0.08, y, name, va="center", fontsize=10)
    return fig


def method_drawing(sparse: Run, tuned: Run) -> Figure:
    """Figure 4: the method's steps, with the numbers of a `sparse` run and of `tuned`, its network pruned and fine-tuned."""
    rate, (dense, left) = tuned.config.prune.rate, (sum(run.result["widths"]) for run in (sparse, tuned))
    t, (large, small) = threshold(sparse.importance, rate), (run.result["parameters"] / 1e6 for run in (sparse, tuned))
    before, after, train, tune = tuned.result["accuracy_before"], tuned.accuracy, sparse.config.train, tuned.config.train
    texts = (
        f"cross-entropy + λ·Σ|γ|\nλ = {train.lam:g}, epochs: {train.epochs}\n{sparse.accuracy:.1%} right",
        f"m = |γ|·S (Eq. 5)\n{_spaced(dense)} filters of 15 units\nin one order",
        f"m ≤ t = {t:.2g} at {rate:.0%}\n{_spaced(left)} filters stay\n{large:.2f} M → {small:.2f} M parameters",
        f"cross-entropy alone\nepochs: {tune.epochs}\n{before:.1%} → {after:.1%} right",
    )
    titles, kinds = ("Train sparsely", "Rank", "Zero and delete", "Fine-tune"), ("expand", "se", "cut", "project")
    fig, ax = canvas(10, 4.3)
    for i, (title, kind, text) in enumerate(zip(titles, kinds, texts)):
        box(ax, 1.3 + 2.47 * i, 3.4, text, kind, (2.14, 0.95))
        ax.text(1.3 + 2.47 * i, 3.98, f"{i + 1}  {title}", ha="center", va="bottom", fontsize=12, weight="bold")
        if i:
            arrow(ax, (2.47 * i - 0.1, 3.4), (2.47 * i + 0.23, 3.4))
    low, axes = 1e-12, [fig.add_axes((0.07 + 0.247 * i, 0.13, 0.163, 0.46)) for i in range(4)]
    gamma, m = (torch.cat(scores).abs().clamp(min=low) for scores in (sparse.gamma, sparse.importance))
    axes[0].hist(gamma, np.geomspace(low, max(1.0, float(gamma.max())), 40), color="0.45")
    axes[0].set(xscale="log", xlabel="|γ|", ylabel="filters")
    share, m = 100 * np.arange(dense) / dense, m.sort().values
    axes[1].plot(share, m, color="0.25")
    axes[1].fill_between(share, m, low, where=m <= max(t, low), color=COLORS["cut"])
    axes[1].set(yscale="log", ylim=(low, max(1.0, float(m[-1]))), xlabel="filters, ranked (%)", ylabel="m (red: goes)")
    for run, color in ((sparse, COLORS["cut"]), (tuned, "0.45")):
        axes[2].bar(range(15), run.result["widths"], color=color)
    axes[2].set(xlabel="unit", ylabel="filters (red: gone)")
    axes[3].plot(range(tune.epochs + 1), [100 * row["test_accuracy"] for row in tuned.history], ".-", color="0.25")
    axes[3].set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(0, 103))
    for panel in axes:
        panel.tick_params(labelsize=8)
        panel.grid(visible=False)
        for axis in (panel.xaxis, panel.yaxis):
            axis.label.set_size(9)
    return fig


def cut_drawing(before: MobileNetV3Large, after: MobileNetV3Large, mask: Tensor, unit: int, window: tuple = (48, 25)) -> Figure:
    """Figure 5: what goes from one unit (red), and what is left: |weight|, a row a channel of its expansion.

    `after` is `before` pruned; `mask` (width,) says which channels of `unit` stay. Drawn are the first `window` rows and
    columns of each layer's weights.
    """
    names = ["1×1 expansion", "depthwise", *["SE squeeze", "SE excite"] * bool(before.squeeze[unit]), "1×1 projection"]
    rows, kept = mask[: window[0]].numpy(), int(mask[: window[0]].sum())
    sides = [_matrices(net.blocks[unit]) for net in (before, after)]
    fig, axes = plt.subplots(2, len(names), figsize=(9, 5.6), width_ratios=[min(m.shape[1], window[1]) for m in sides[0]],
                             height_ratios=(len(rows), max(1, kept)))  # fmt: skip
    for (top, bottom), name, whole, rest in zip(axes.T, names, *sides):
        part = whole[: window[0], : window[1]]
        columns = (rest[:kept, :, None] == part[rows][:, None]).all(0).any(0)  # SE loses inner units as well
        red = np.where(rows[:, None] & columns, np.nan, 1.0)
        for ax, drawn, sized in ((top, part, whole), (bottom, part[rows][:, columns], rest)):
            ax.imshow(drawn, cmap="Greys", vmin=0, vmax=np.quantile(part, 0.98), aspect="auto", interpolation="nearest")
            ax.set(xticks=[], yticks=[], xlabel=f"{sized.shape[0]} × {sized.shape[1]}", xlim=(-0.5, part.shape[1] - 0.5))
            ax.grid(visible=False)
        top.imshow(red, cmap=ListedColormap([COLORS["cut"]]), aspect="auto", interpolation="nearest")
        top.set_title(name, fontsize=11)
    for ax, text, net in zip(axes[:, 0], ("before", "after"), (before, after)):
        ax.set_ylabel(f"{text}: {net.widths[unit]}", fontsize=11)
    return fig


def _matrices(unit: nn.Module) -> list[np.ndarray]:
    """|weights| of a unit's layers, each (channels of the expansion, the rest)."""
    se = [unit.se.fc1.weight.movedim(0, 1), unit.se.fc2.weight] if hasattr(unit.se, "fc1") else []
    weights = [unit.expand[0].weight, unit.depthwise[0].weight, *se, unit.project[0].weight.movedim(0, 1)]
    return [w.detach().flatten(1).abs().numpy() for w in weights]


def _profile(unit: nn.Module) -> list[tuple[int, int, str]]:
    """Channels before and after, and role, of the three convolutions of a unit."""
    return [
        (c.in_channels, c.out_channels, part) for part in ("expand", "depthwise", "project") for c in [getattr(unit, part)[0]]
    ]


def _trapezoid(ax: Axes, x: float, y: float, length: float, left: float, right: float, kind: str):
    corners = [(x, y - left / 2), (x, y + left / 2), (x + length, y + right / 2), (x + length, y - right / 2)]
    ax.add_patch(Polygon(corners, facecolor=COLORS[kind], edgecolor="0.25", linewidth=1))


def _cuboid(ax: Axes, x: float, y: float, length: float, side: float, kind: str, text: str = "", slices: int = 1):
    """A stack of channels from (x, y): `length` along the channels, `side` high, drawn obliquely; `slices` cuts it."""
    shift = 0.45 * side
    style = {"facecolor": COLORS[kind], "edgecolor": "0.25", "linewidth": 1}
    step = length / slices
    for i in range(slices):
        a, b = x + i * step, x + (i + 1) * step
        ax.add_patch(Polygon([(a, y), (b, y), (b, y + side), (a, y + side)], **style))
        ax.add_patch(
            Polygon([(a, y + side), (b, y + side), (b + shift, y + side + shift), (a + shift, y + side + shift)], **style)
        )
    end = x + length
    ax.add_patch(Polygon([(end, y), (end, y + side), (end + shift, y + side + shift), (end + shift, y + shift)], **style))
    ax.text(x + (length + shift) / 2, y - 0.1, text, ha="center", va="top", fontsize=10)


def _shapes(model: MobileNetV3Large, image_size: int) -> dict[str, tuple[int, int, int]]:
    """Output shape (C, H, W) of every unit's expand, depthwise and project, and of its input ("blocks.0.in")."""
    shapes = {row["name"]: row["shape"] for row in layer_costs(model, image_size)}
    found = {f"blocks.{i}.{p}": shapes[f"blocks.{i}.{p}.1"] for i in range(15) for p in ("expand", "depthwise", "project")}
    before = [shapes["stem.1"], *(found[f"blocks.{i}.project"] for i in range(14))]
    return found | {f"blocks.{i}.in": shape for i, shape in enumerate(before)}


def _times(shape: tuple) -> str:
    return "×".join(map(str, shape))


def _spaced(count: int) -> str:
    return f"{count:,}".replace(",", " ")
