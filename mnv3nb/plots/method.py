"""The method in pictures: Figures 4, 5 and 7, Tables 2 and 5."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn

from .. import paper
from ..blocks import Block, blocks
from ..costs import count_parameters
from ..importance import score
from ..model import DENSE_WIDTHS
from ..pruning import threshold
from .architecture import arrow, box, canvas
from .style import LOOKS, PAPER, ROLES, SCORE_COLORS

FLOOR = 1e-12  # logarithmic axes show smaller values here
STEP_Y = 3.55  # height of the boxes of Figure 4, in inches


def method_drawing(
    dense: nn.Module,
    pruned: nn.Module,
    rate: float,
    lam: float,
    training: pd.DataFrame,
    tuning: pd.DataFrame,
    folded: float,
) -> Figure:
    """Figure 4: the four steps of the method with the numbers of one example.

    `dense`: trained sparsely with λ = `lam`. `pruned`: the same network pruned at `rate`. `training`, `tuning`: their
    histories from `train`. `folded`: accuracy in [0, 1] before fine-tuning, with the constants of removed channels
    folded in.
    """
    gamma = torch.cat(score(dense, "gamma"))
    importance = torch.cat(score(dense, "gamma_sparsity"))
    t = threshold([importance], rate)
    dense_widths = [block.width for block in blocks(dense)]
    pruned_widths = [block.width for block in blocks(pruned)]

    training_text = (
        "cross-entropy + λ·Σ|γ|\n"
        f"λ = {lam:g}, epochs: {len(training) - 1}\n"
        f"accuracy {training.test_accuracy.iloc[-1]:.1%}"
    )
    ranking_text = f"m = |γ|·S (Eq. 5)\n{len(importance):,} filters of {len(dense_widths)} blocks\nin one order"
    cutting_text = (
        f"m ≤ t = {t:.2g} at {rate:.0%}\n"
        f"{sum(pruned_widths):,} filters stay\n"
        f"{count_parameters(dense) / 1e6:.2f} M → {count_parameters(pruned) / 1e6:.2f} M parameters"
    )
    tuning_text = (
        f"cross-entropy, epochs: {len(tuning) - 1}\n"
        f"{tuning.test_accuracy.iloc[0]:.1%} (folded: {folded:.1%})\n"
        f"→ accuracy {tuning.test_accuracy.iloc[-1]:.1%}"
    )

    fig, ax = canvas(10, 4.5)
    step_x = np.arange(1.3, 10, 2.47)  # the middle of each step's box
    _draw_step(ax, step_x[0], "Train sparsely", training_text, "expand")
    _draw_step(ax, step_x[1], "Rank", ranking_text, "se")
    _draw_step(ax, step_x[2], "Zero and delete", cutting_text, "removed")
    _draw_step(ax, step_x[3], "Fine-tune", tuning_text, "project")
    for x in step_x[1:]:
        arrow(ax, (x - 1.37, STEP_Y), (x - 1.1, STEP_Y))

    panels = [fig.add_axes((0.075 + 0.247 * i, 0.13, 0.16, 0.48)) for i in range(4)]
    _plot_gamma(panels[0], gamma)
    _plot_ranking(panels[1], importance, t)
    _plot_widths(panels[2], dense_widths, pruned_widths)
    _plot_tuning(panels[3], tuning, folded)
    for panel in panels:
        panel.tick_params(labelsize=9)
        panel.grid(visible=False)
        panel.xaxis.label.set_size(10)
        panel.yaxis.label.set_size(10)
    return fig


def _draw_step(ax: Axes, x: float, title: str, text: str, role: str) -> None:
    box(ax, x, STEP_Y, text, role, size=(2.2, 0.95), fontsize=10.5)
    ax.text(x, STEP_Y + 0.58, title, ha="center", va="bottom", fontsize=13, weight="bold")


def _plot_gamma(ax: Axes, gamma: Tensor) -> None:
    highest = max(1.0, float(gamma.max()))
    ax.hist(gamma.clamp_min(FLOOR), bins=np.geomspace(FLOOR, highest, 40), color="0.45")
    ax.set(xscale="log", xlabel="|γ|", ylabel="filters")


def _plot_ranking(ax: Axes, importance: Tensor, t: float) -> None:
    ranked = importance.sort().values.clamp_min(FLOOR).numpy()
    share = 100 * np.arange(len(ranked)) / len(ranked)
    ax.plot(share, ranked, color="0.25")
    ax.fill_between(share, ranked, FLOOR, where=ranked <= max(t, FLOOR), color=ROLES["removed"])
    ax.set(yscale="log", xlabel="filters, ranked (%)", ylabel="m (orange: removed)")


def _plot_widths(ax: Axes, dense_widths: Sequence[int], pruned_widths: Sequence[int]) -> None:
    numbers = range(len(dense_widths))
    ax.bar(numbers, dense_widths, color=LOOKS["removed"]["color"])
    ax.bar(numbers, pruned_widths, color=LOOKS["kept"]["color"])
    ax.set(xlabel="block", ylabel="filters (orange: removed)")


def _plot_tuning(ax: Axes, tuning: pd.DataFrame, folded: float) -> None:
    ax.plot(tuning.epoch, 100 * tuning.test_accuracy, **LOOKS["fine-tuned"])
    ax.plot(0, 100 * folded, **LOOKS["folded"] | {"linestyle": "none", "markersize": 9})
    ax.set(xlabel="epoch (plus: folded)", ylabel="test accuracy (%)", ylim=(0, 103))


def cut_drawing(
    before: nn.Module, after: nn.Module, mask: Tensor, number: int, window: tuple[int, int] = (48, 25)
) -> Figure:
    """Figure 5: the weights of one block before and after pruning; what is removed is orange.

    `after` is `before` pruned; `mask` (width,) tells which channels of block `number` stay. Each layer is drawn as
    |weight| with one row per channel of the expansion, cut to the first rows and columns of `window`.
    """
    old_block = blocks(before)[number]
    new_block = blocks(after)[number]
    old_weights = _weight_matrices(old_block)
    new_weights = _weight_matrices(new_block)
    max_rows, max_columns = window
    kept_rows = mask[:max_rows].cpu().numpy()
    kept_count = int(kept_rows.sum())

    fig = Figure(figsize=(9, 5.6), layout="constrained")
    # A layer with few columns stays wide enough for its title, a block with few channels high enough to be seen.
    width_ratios = [max(4, min(weight.shape[1], max_columns)) for weight in old_weights.values()]
    height_ratios = (len(kept_rows), max(8, kept_count))
    axes = fig.subplots(2, len(old_weights), width_ratios=width_ratios, height_ratios=height_ratios)
    for (top, bottom), (layer, old) in zip(axes.T, old_weights.items()):
        new = new_weights[layer]
        drawn = old[:max_rows, :max_columns]
        kept_columns = _find_columns(drawn[kept_rows], new[:kept_count])
        darkest = np.quantile(drawn, 0.98)
        _show_weights(top, drawn, darkest)
        _show_weights(bottom, drawn[kept_rows][:, kept_columns], darkest)
        stays = kept_rows[:, None] & kept_columns
        tint = np.where(stays, np.nan, 1.0)  # nan is transparent
        top.imshow(tint, cmap=ListedColormap([ROLES["removed"]]), aspect="auto", interpolation="nearest")

        top.set_title(layer, fontsize=11)
        top.set_xlabel("×".join(map(str, old.shape)))
        bottom.set_xlabel("×".join(map(str, new.shape)))
        for ax in (top, bottom):
            ax.set(xticks=[], yticks=[], xlim=(-0.5, drawn.shape[1] - 0.5))
    axes[0, 0].set_ylabel(f"before: {old_block.width} channels")
    axes[1, 0].set_ylabel(f"after: {new_block.width} channels")
    return fig


def _weight_matrices(block: Block) -> dict[str, np.ndarray]:
    """|weights| of each layer of a block, as (channels of the expansion, everything else)."""
    weights = {"1×1 expansion": block.expand.weight, "depthwise": block.depthwise.weight}
    if block.hidden:
        weights["SE squeeze"] = block.squeeze.weight.movedim(0, 1)
        weights["SE excite"] = block.excite.weight
    weights["1×1 projection"] = block.project.weight.movedim(0, 1)
    return {layer: weight.detach().cpu().flatten(1).abs().numpy() for layer, weight in weights.items()}


def _find_columns(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Which columns of `old` are still among those of `new`: SE also loses hidden channels."""
    equal = new[:, :, None] == old[:, None]  # (rows, columns of new, columns of old)
    return equal.all(axis=0).any(axis=0)


def _show_weights(ax: Axes, weights: np.ndarray, darkest: float) -> None:
    ax.imshow(weights, cmap="Greys", vmin=0, vmax=darkest, aspect="auto", interpolation="nearest")


def gamma_sparsity_importance(gamma: Sequence[Tensor], sparsity: Sequence[Tensor]) -> Figure:
    """Figure 7: |γ|, S and m = |γ|·S of all filters, above their spread within each block.

    `gamma`, `sparsity`: one tensor per block. |γ| and m have logarithmic axes, which show values below FLOOR at FLOOR
    (m is 0 where S is).
    """
    magnitudes = [g.abs() for g in gamma]
    importances = [g * s for g, s in zip(magnitudes, sparsity)]
    fig = Figure(figsize=(10, 6.4), layout="constrained")
    axes = fig.subplots(2, 3, sharex="col", height_ratios=(1, 2))
    _plot_distribution(axes[:, 0], magnitudes, "|γ|", log=True)
    _plot_distribution(axes[:, 1], sparsity, "S", log=False)
    _plot_distribution(axes[:, 2], importances, "m = |γ|·S", log=True)
    axes[0, 0].set_ylabel("filters")
    axes[1, 0].set_ylabel("block (box: quartiles, whiskers: 5-95 %)")
    return fig


def _plot_distribution(column: Sequence[Axes], values: Sequence[Tensor], name: str, log: bool) -> None:
    """Draw a histogram of all `values` in the first axes of `column`, and one box per block in the second."""
    top, bottom = column
    color = SCORE_COLORS[name]
    lowest = FLOOR if log else 0
    layers = [layer.clamp_min(lowest).numpy() for layer in values]
    pooled = np.concatenate(layers)
    bins = np.geomspace(pooled.min() / 1.5, pooled.max() * 1.5, 60) if log else np.linspace(0, 1, 60)
    top.hist(pooled, bins=bins, color=color, histtype="stepfilled")
    bottom.boxplot(
        layers,
        positions=range(len(layers)),
        orientation="horizontal",
        widths=0.65,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": color, "alpha": 0.6},
        medianprops={"color": "black"},
    )
    bottom.set(xlabel=name, ylim=(len(layers) - 0.4, -0.6), xscale="log" if log else "linear")


def widths_chart(
    widths: Sequence[int], dense: Sequence[int] = DENSE_WIDTHS, published: pd.DataFrame | None = paper.TABLE_5
) -> Figure:
    """Table 5: the share of each block's filters that is left, and the widths; the paper's shares as marks.

    `widths`, `dense`: one number per block, after and before pruning. `published`: columns before and after, or None.
    """
    numbers = range(len(dense))
    ticks = [f"{number}\n{old}\n→ {new}" for number, old, new in zip(numbers, dense, widths)]
    fig = Figure(figsize=(10, 4.4), layout="constrained")
    ax = fig.subplots()
    ax.bar(numbers, 100 * np.divide(widths, dense), color=LOOKS["kept"]["color"], label="ours", zorder=2)
    if published is not None:
        ax.plot(numbers, 100 * published["after"] / published["before"], **PAPER | {"label": "paper, CIFAR-10"})
        ax.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    ax.set(xlabel="block, its dense width → the width that is left", ylabel="filters left (%)", ylim=(0, 105))
    ax.set_xticks(numbers, ticks, fontsize=11)
    ax.grid(axis="x", visible=False)
    return fig
