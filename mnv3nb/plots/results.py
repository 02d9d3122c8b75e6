"""What training and pruning give: Figures 6 and 8, learning curves, Tables 3, 4 and 6."""

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from pandas import DataFrame
from torch import Tensor
from torchvision.utils import make_grid

from .style import CRITERION_LABELS, LOOKS, PAPER, RATE, ROLES

STAGES = {"accuracy_before_pct": "raw", "accuracy_folded_pct": "folded", "accuracy_pct": "fine-tuned"}
COSTS = {"fewer_parameters_pct": ("parameters", "#009e73", "o"), "fewer_flops_pct": ("FLOPs", "#cc79a7", "s")}
REMOVED = torch.tensor(to_rgb(ROLES["removed"])).view(3, 1, 1)
Tensors = Sequence[Tensor]


def gamma_by_lambda(gammas: Mapping[float, Tensors], highlight: float | None = None) -> Figure:
    """Figure 6: histograms of the expansions' γ, one panel per λ on shared axes, above |γ| of all on a log scale.

    `gammas`: λ -> γ of all filters, one tensor per block; `highlight`: the λ chosen for pruning.
    """
    values = {lam: torch.cat(list(g)).numpy() for lam, g in gammas.items()}
    low, high = min(g.min() for g in values.values()), max(g.max() for g in values.values())
    fig = Figure(figsize=(10, 6.4), layout="constrained")
    grid = fig.add_gridspec(2, len(values), height_ratios=(1, 1.25))
    below, first, bins = fig.add_subplot(grid[1, :]), None, np.geomspace(1e-12, max(high, 1), 97)
    for i, ((lam, gamma), color) in enumerate(zip(values.items(), sns.color_palette("viridis", len(values) + 1))):
        chosen = lam == highlight
        first = ax = fig.add_subplot(grid[0, i], sharex=first, sharey=first)
        ax.hist(gamma, bins=np.linspace(min(0, low), high, 41), color=color, histtype="stepfilled")
        ax.set(title=f"λ = {lam:g}\n{'(chosen)' * chosen}", xlabel="γ", ylabel="filters" * (i == 0), yscale="log")
        ax.tick_params(labelleft=i == 0)
        ax.locator_params(axis="x", nbins=3)
        style = {"color": color, "linewidth": 3.2 if chosen else 1.6, "histtype": "step", "label": f"λ = {lam:g}"}
        below.hist(np.clip(np.abs(gamma), bins[0], None), bins=bins, **style)
    below.set(xscale="log", yscale="log", ylabel="filters", xlabel="|γ| (the leftmost bin holds all that is smaller)")
    below.legend(ncols=len(values), loc="lower center", bbox_to_anchor=(0.5, 1))
    return fig


def learning_curves(histories: Mapping[str, DataFrame | list[dict]]) -> Figure:
    """Training cross-entropy and test error by epoch, one line per label; both on log scales, which show small changes.

    Histories are those of `train`; their column epoch may be shifted to draw one training after another. A label of
    LOOKS is drawn as everywhere.
    """
    fig = Figure(figsize=(10, 4.2), layout="constrained")
    loss, error = fig.subplots(1, 2)
    for (label, history), marker in zip(histories.items(), "osv^DPX*"):
        history = DataFrame(history)
        style = {"marker": marker, "label": label} | LOOKS.get(label, {}) | {"markevery": max(1, len(history) // 12)}
        loss.plot(history.epoch, history.train_loss, **style)
        error.plot(history.epoch, (100 - 100 * history.test_accuracy).clip(lower=0.02), **style)
    loss.xaxis.set_major_locator(MaxNLocator(integer=True))
    error.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss.set(xlabel="epoch", ylabel="training cross-entropy (nats)", yscale="log")
    error.set(xlabel="epoch", ylabel="test error (%)", yscale="log")
    for ax in (loss, error):
        ax.yaxis.set(
            major_locator=LogLocator(subs=(1, 2, 3, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter()
        )
    fig.legend(*loss.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def rate_curve(
    table: DataFrame, differences: DataFrame, published: DataFrame, comparable: bool, collapse: float | None = None
) -> Figure:
    """Tables 3 and 6: fine-tuned accuracy against the fair baseline; below, accuracies at each stage, and costs.

    `table`: one row per run with rate, the columns STAGES and those of COSTS. `differences`: by rate, to rate 0
    fine-tuned as long, paired by seed: difference, low, high, each (list by seed). `published`: Table 3 or 6; its
    accuracies are drawn, as differences to its rate 0, only if `comparable`. `collapse`: the rate, in [0, 1], at which
    a block has lost all its filters.
    """
    fig, means = Figure(figsize=(10, 7.6), layout="constrained"), table.groupby("rate").mean(numeric_only=True)
    axes = fig.subplot_mosaic([["difference", "difference"], ["stages", "costs"]], height_ratios=(1.2, 1))
    _draw_differences(axes["difference"], differences, published if comparable else published[:0])
    for column, entity in STAGES.items():
        axes["stages"].plot(100 * means.index, means[column], **LOOKS[entity])
    axes["stages"].set(ylabel="test accuracy (%)", ylim=(0, 103))
    for column, (name, color, marker) in COSTS.items():
        axes["costs"].plot(100 * means.index, 100 - means[column], marker=marker, color=color, label=name)
        theirs = PAPER | {"color": color, "marker": marker, "label": f"{name}, paper"}
        axes["costs"].plot(100 * published["rate"], 100 - published[column], **theirs)
    axes["costs"].set(ylabel="left of the dense network (%)", ylim=(0, 103))
    last = 100 * max(means.index.max(), published["rate"].max()) + 2
    for ax in axes.values():
        ax.set(xlabel=RATE, xlim=(-2, last))
        if collapse is not None and 100 * collapse < last:
            ax.axvspan(100 * collapse, last, color="0.92", zorder=0, label="a block has no filter left")
        ax.legend(fontsize="x-small")
    return fig


def _draw_differences(ax: Axes, found: DataFrame, published: DataFrame) -> None:
    look, seeds = LOOKS["fine-tuned"], sorted({len(values) for values in found.each})
    each = found.explode("each")
    ax.plot(100 * each.rate, each.each, "o", color=look["color"], alpha=0.3, markersize=5)
    spread = np.nan_to_num([found.difference - found.low, found.high - found.difference])
    ax.errorbar(100 * found.rate, found.difference, spread, capsize=3, **look)
    line = LOOKS["fair baseline"] | {"marker": "", "label": "fair baseline: rate 0, fine-tuned as long"}
    ax.axhline(0, linestyle="--", **line)
    if len(published):
        theirs = published["accuracy_pct"] - published["accuracy_pct"].iloc[0]
        ax.plot(100 * published["rate"], theirs, **PAPER | {"label": "paper, against its unpruned network"})
    bars = "one seed" if seeds == [1] else f"mean of {' or '.join(map(str, seeds))} seeds; bars: 95 % interval"
    ax.set(ylabel="accuracy − fair baseline (points)", title=f"after fine-tuning, paired by seed ({bars})")


def criteria_chart(table: DataFrame, differences: DataFrame, baseline: str = "gamma_sparsity") -> Figure:
    """Table 4: accuracy of each criterion against the `baseline`'s, paired by seed; beside it, what fine-tuning adds.

    `table`: one row per run with criterion, seed and the columns STAGES. `differences`: by criterion, to `baseline`:
    difference, low, high. Dots are single runs against the mean of the baseline's runs of their seed. A criterion that
    fails would hide the others: what lies far from most of them is written at the edge, and an interval that goes on
    beyond the axis ends in an arrowhead.
    """
    order = differences.sort_values("difference", ignore_index=True)
    base = table[table.criterion == baseline].groupby("seed").accuracy_pct.mean()
    gap, y = table.accuracy_pct - table.seed.map(base), table.criterion.map(dict(zip(order.criterion, order.index)))
    extents = gap.abs().groupby(table.criterion).max()
    limit = 1.15 * max(extents[extents <= 4 * extents.median()].max(), 0.1)
    reach = np.nanmin([gap.min(), order.low.min()]), np.nanmax([gap.max(), order.high.max()])
    low, high = np.clip(1.15 * np.array(reach), (-limit, 0.15 * limit), (-0.15 * limit, limit))
    fig = Figure(figsize=(10, 1.6 + 0.42 * len(order)), layout="constrained")
    left, right = fig.subplots(1, 2, sharey=True, width_ratios=(1.5, 1))
    color, near = LOOKS["fine-tuned"]["color"], order.difference.abs() <= limit
    left.plot(gap, y, "o", color=color, alpha=0.3)
    spread = np.nan_to_num([order.difference - order.low, order.high - order.difference])
    left.errorbar(order.difference[near], order.index[near], xerr=spread[:, near], fmt="D", color=color, capsize=4)
    for row, value in order.difference[~near].items():
        edge, align, text = (low, "left", " ◂ −{:.1f}") if value < 0 else (high, "right", "+{:.1f} ▸ ")
        left.text(edge, row, text.format(abs(value)), ha=align, va="center", color=color)
    for edge, marker, beyond in ((low, "<", order.low < low), (high, ">", order.high > high)):
        rows = order.index[near & beyond]  # an interval that goes on beyond the axis
        left.plot([edge] * len(rows), rows, marker, color=color, clip_on=False)
    left.axvline(0, color="0.4", linewidth=1)
    for column, entity in STAGES.items():
        means = table.groupby("criterion")[column].mean()[order.criterion]
        right.plot(means, order.index, linestyle="none", **LOOKS[entity])
    name = CRITERION_LABELS.get(baseline, baseline)
    left.set(xlabel=f"accuracy − accuracy of {name} (points)", xlim=(low, high))
    left.set_yticks(order.index, order.criterion.replace(CRITERION_LABELS))
    right.set(xlabel="test accuracy (%)", xlim=(0, 103))
    fig.legend(*right.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return fig


def feature_maps(
    maps: Mapping[str, Tensors], masks: Tensors, scores: Tensors, numbers: Sequence[int], image: Tensor
) -> Figure:
    """Figure 8: 16 channels of some blocks, in networks side by side, the best score first; removed ones are tinted.

    `maps[network][k]`: (channels, H, W) of block `numbers[k]`, of all its channels or of those that its mask keeps;
    `masks`, `scores`: of every block; `image`: (3, H, W), uint8. At most half of the channels are removed ones, if
    there are enough others. A channel has one brightness scale in all networks.
    """
    fig = Figure(figsize=(3 * len(maps) + 1.6, 3.2 * len(numbers)), layout="constrained")
    axes = fig.subplots(len(numbers), 1 + len(maps), width_ratios=[0.5] + [1] * len(maps), squeeze=False)
    for k, (row, number) in enumerate(zip(axes, numbers)):
        mask, picks = masks[number], _pick(masks[number], scores[number])
        channels = torch.stack([_on_dense(m[k], mask)[picks] for m in maps.values()])
        for ax, name, tiles in zip(row[1:], maps, _tiles(channels, ~mask[picks])):
            ax.imshow(make_grid(tiles, nrow=4, padding=3, pad_value=1).movedim(0, -1).numpy())
            ax.set_title(name if k == 0 else "")
        text = f"block {number}\n\n{int(mask.sum())} of {len(mask)}\nchannels stay\n\nmaps of {channels.shape[-1]} px"
        row[0].text(0.5, 0.4, text, ha="center", va="center", transform=row[0].transAxes)
    corner = axes[0, 0].inset_axes((0, 0.75, 1, 0.35))
    corner.imshow(image.movedim(0, -1).numpy())
    for ax in (*axes.flat, corner):
        ax.axis("off")
    return fig


def _pick(mask: Tensor, scores: Tensor, shown: int = 16) -> Tensor:
    """Indices of channels spread over the ranking, kept ones first."""
    order = scores.argsort(descending=True)
    kept, removed = order[mask[order]], order[~mask[order]]
    gone = min(len(removed), max(shown // 2, shown - len(kept)))
    parts = (kept, min(len(kept), shown - gone)), (removed, gone)
    return torch.cat([part[torch.linspace(0, len(part) - 1, n).round().long()] for part, n in parts if n])


def _on_dense(maps: Tensor, mask: Tensor) -> Tensor:
    """Maps of the kept channels at their places among all channels, nan where a channel was removed."""
    if len(maps) == len(mask):
        return maps
    out = maps.new_full((len(mask), *maps.shape[1:]), torch.nan)
    out[mask] = maps
    return out


def _tiles(maps: Tensor, removed: Tensor) -> Tensor:
    """(networks, channels, H, W) to RGB tiles of some 32 pixels, tinted where `removed`, plain where there is no map.

    A channel's range of brightness counts as at least 5 % of the block's.
    """
    low = maps.nan_to_num(torch.inf).amin((0, 2, 3), keepdim=True)
    high = maps.nan_to_num(-torch.inf).amax((0, 2, 3), keepdim=True)
    least = 0.05 * (high.max() - low.min()) + 1e-12
    grey = 0.5 + (maps - (low + high) / 2) / (high - low).clamp_min(least)
    rgb = 0.88 * grey.clamp(0, 1).unsqueeze(2).expand(-1, -1, 3, -1, -1)  # white is between the tiles
    rgb = torch.where(removed[:, None, None, None], 0.6 * rgb + 0.4 * REMOVED, rgb)
    rgb = torch.where(rgb.isnan(), REMOVED, rgb)
    larger = max(1, 32 // maps.shape[-1])
    return rgb.repeat_interleave(larger, -1).repeat_interleave(larger, -2)
