"""What training and pruning give: Figures 6 and 8, learning curves, Tables 3, 4 and 6."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from pandas import DataFrame, Series
from torch import Tensor
from torchvision.utils import make_grid

from .style import COST_LOOKS, CRITERION_LABELS, LOOKS, PAPER, RATE, ROLES

# Columns of a table with one row per run: its accuracy at each of style.STAGES, and what pruning saved of each cost.
ACCURACY_COLUMNS = {
    "raw": "accuracy_before_pct",
    "folded": "accuracy_folded_pct",
    "fine-tuned": "accuracy_pct",
}
SAVING_COLUMNS = {
    "parameters": "fewer_parameters_pct",
    "FLOPs": "fewer_flops_pct",
}

SMALLEST_MAGNITUDE = 1e-12  # Figure 6 shows all smaller |γ| here
SMALLEST_ERROR = 0.02  # %; learning curves show smaller errors here, since their axis is logarithmic
TILE_PIXELS = 32  # size to which smaller feature maps are enlarged
REMOVED_TINT = torch.tensor(to_rgb(ROLES["removed"])).view(3, 1, 1)


def gamma_by_lambda(gammas: Mapping[float, Sequence[Tensor]], highlight: float | None = None) -> Figure:
    """Figure 6: histograms of the expansions' γ, one panel per λ on shared axes; below, |γ| of all on a log scale.

    `gammas`: λ -> γ of all filters, one tensor per block. `highlight`: the λ chosen for pruning.
    """
    gamma_of = {lam: torch.cat(list(layers)).numpy() for lam, layers in gammas.items()}
    lowest = min(gamma.min() for gamma in gamma_of.values())
    highest = max(gamma.max() for gamma in gamma_of.values())
    bins = np.linspace(min(0, lowest), highest, 41)
    magnitude_bins = np.geomspace(SMALLEST_MAGNITUDE, max(highest, 1), 97)
    colors = sns.color_palette("viridis", len(gamma_of) + 1)  # the last, a pale yellow, is not used

    fig = Figure(figsize=(10, 6.4), layout="constrained")
    grid = fig.add_gridspec(2, len(gamma_of), height_ratios=(1, 1.25))
    below = fig.add_subplot(grid[1, :])
    first = None
    for i, (lam, gamma) in enumerate(gamma_of.items()):
        chosen = lam == highlight
        remark = "(chosen)" if chosen else ""
        panel = fig.add_subplot(grid[0, i], sharex=first, sharey=first)
        panel.hist(gamma, bins=bins, color=colors[i], histtype="stepfilled")
        panel.set(title=f"λ = {lam:g}\n{remark}", xlabel="γ", yscale="log")
        panel.locator_params(axis="x", nbins=3)
        if first is None:
            first = panel
            panel.set_ylabel("filters")
        else:
            panel.tick_params(labelleft=False)

        magnitude = np.clip(np.abs(gamma), SMALLEST_MAGNITUDE, None)
        below.hist(
            magnitude,
            bins=magnitude_bins,
            color=colors[i],
            linewidth=3.2 if chosen else 1.6,
            histtype="step",
            label=f"λ = {lam:g}",
        )
    below.set(xscale="log", yscale="log", ylabel="filters", xlabel="|γ| (the leftmost bin holds all that is smaller)")
    below.legend(ncols=len(gamma_of), loc="lower center", bbox_to_anchor=(0.5, 1))
    return fig


def learning_curves(histories: Mapping[str, DataFrame | list[dict]]) -> Figure:
    """Training cross-entropy and test error by epoch, one line per label; log scales make small changes visible.

    `histories`: label -> history from `train`. Shift its column epoch to draw one training after another. A label that
    is an entity of LOOKS gets that entity's look.
    """
    fig = Figure(figsize=(10, 4.2), layout="constrained")
    loss, error = fig.subplots(1, 2)
    for (label, history), marker in zip(histories.items(), cycle("osv^DPX*")):
        epochs = DataFrame(history)
        look = LOOKS.get(label, {"marker": marker, "label": label})
        markevery = max(1, len(epochs) // 12)
        test_error = 100 - 100 * epochs.test_accuracy
        loss.plot(epochs.epoch, epochs.train_loss, markevery=markevery, **look)
        error.plot(epochs.epoch, test_error.clip(lower=SMALLEST_ERROR), markevery=markevery, **look)
    loss.set(xlabel="epoch", ylabel="training cross-entropy (nats)", yscale="log")
    error.set(xlabel="epoch", ylabel="test error (%)", yscale="log")
    for ax in (loss, error):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    fig.legend(*loss.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def rate_curve(
    table: DataFrame, differences: DataFrame, published: DataFrame, comparable: bool, collapse: float | None = None
) -> Figure:
    """Tables 3 and 6: fine-tuned accuracy against the fair baseline; below, the accuracy at each stage, and the costs.

    `table`: one row per run with rate, ACCURACY_COLUMNS and SAVING_COLUMNS. `differences`: per rate, the difference to
    rate 0 fine-tuned as long, paired by seed: difference, low, high, each (list by seed). `published`: Table 3 or 6. Its
    accuracies are drawn, as differences to its rate 0, only if `comparable`. `collapse`: rate in [0, 1] at which some
    block has lost all its filters.
    """
    means = table.groupby("rate").mean(numeric_only=True)
    fig = Figure(figsize=(10, 7.6), layout="constrained")
    axes = fig.subplot_mosaic([["difference", "difference"], ["stages", "costs"]], height_ratios=(1.2, 1))
    _plot_differences(axes["difference"], differences)
    if comparable:
        _plot_published_differences(axes["difference"], published)
    _plot_stages(axes["stages"], means)
    _plot_costs(axes["costs"], means, published)

    last_percent = 100 * max(means.index.max(), published["rate"].max()) + 2
    for ax in axes.values():
        ax.set(xlabel=RATE, xlim=(-2, last_percent))
        if collapse is not None and 100 * collapse < last_percent:
            ax.axvspan(100 * collapse, last_percent, color="0.92", zorder=0, label="a block has no filter left")
        ax.legend(fontsize="x-small")
    return fig


def _plot_differences(ax: Axes, differences: DataFrame) -> None:
    look = LOOKS["fine-tuned"]
    single_runs = differences.explode("each")
    ax.plot(100 * single_runs.rate, single_runs.each, "o", color=look["color"], alpha=0.3, markersize=5)
    bars = _interval_lengths(differences)
    ax.errorbar(100 * differences.rate, differences.difference, bars, capsize=3, **look)
    baseline = LOOKS["fair baseline"] | {"marker": "", "label": "fair baseline: rate 0, fine-tuned as long"}
    ax.axhline(0, linestyle="--", **baseline)
    title = f"after fine-tuning, paired by seed ({_seeds_remark(differences)})"
    ax.set(ylabel="accuracy − fair baseline (points)", title=title)


def _seeds_remark(differences: DataFrame) -> str:
    counts = sorted({len(values) for values in differences.each})
    if counts == [1]:
        return "one seed"
    return f"mean of {' or '.join(map(str, counts))} seeds; bars: 95 % interval"


def _plot_published_differences(ax: Axes, published: DataFrame) -> None:
    accuracy = published["accuracy_pct"]
    look = PAPER | {"label": "paper, against its unpruned network"}
    ax.plot(100 * published["rate"], accuracy - accuracy.iloc[0], **look)


def _plot_stages(ax: Axes, means: DataFrame) -> None:
    for stage, column in ACCURACY_COLUMNS.items():
        ax.plot(100 * means.index, means[column], **LOOKS[stage])
    ax.set(ylabel="test accuracy (%)", ylim=(0, 103))


def _plot_costs(ax: Axes, means: DataFrame, published: DataFrame) -> None:
    for cost, column in SAVING_COLUMNS.items():
        look = COST_LOOKS[cost]
        ax.plot(100 * means.index, 100 - means[column], label=cost, **look)
        ax.plot(100 * published["rate"], 100 - published[column], **PAPER | look | {"label": f"{cost}, paper"})
    ax.set(ylabel="left of the dense network (%)", ylim=(0, 103))


def _interval_lengths(differences: DataFrame) -> np.ndarray:
    """Lengths (2, N) of the error bars below and above each difference, 0 where one seed gives no interval."""
    below = differences.difference - differences.low
    above = differences.high - differences.difference
    return np.nan_to_num([below, above])


def criteria_chart(table: DataFrame, differences: DataFrame, baseline: str = "gamma_sparsity") -> Figure:
    """Table 4: each criterion's accuracy minus the `baseline`'s, paired by seed; beside it, the accuracy at each stage.

    `table`: one row per run with criterion, seed and ACCURACY_COLUMNS. `differences`: per criterion, the difference to
    `baseline`: difference, low, high. Dots are single runs minus the mean of the baseline's runs of the same seed. A
    criterion that fails would squeeze the others together, so outliers are written at the edge as numbers, and an
    interval that extends beyond the axis ends in an arrowhead.
    """
    rows = differences.sort_values("difference", ignore_index=True)  # the index is the height in the chart
    fig = Figure(figsize=(10, 1.6 + 0.42 * len(rows)), layout="constrained")
    left, right = fig.subplots(1, 2, sharey=True, width_ratios=(1.5, 1))
    _plot_criteria_differences(left, table, rows, baseline)
    for stage, column in ACCURACY_COLUMNS.items():
        means = table.groupby("criterion")[column].mean()
        right.plot(means[rows.criterion], rows.index, linestyle="none", **LOOKS[stage])
    right.set(xlabel="test accuracy (%)", xlim=(0, 103))
    left.set_yticks(rows.index, rows.criterion.replace(CRITERION_LABELS))
    fig.legend(*right.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return fig


def _plot_criteria_differences(ax: Axes, table: DataFrame, rows: DataFrame, baseline: str) -> None:
    baseline_accuracy = table[table.criterion == baseline].groupby("seed").accuracy_pct.mean()
    gaps = table.accuracy_pct - table.seed.map(baseline_accuracy)  # of single runs
    height_of = dict(zip(rows.criterion, rows.index))
    limit = _outlier_limit(gaps, table.criterion)
    low, high = _difference_range(gaps, rows, limit)
    within = rows.difference.abs() <= limit
    color = LOOKS["fine-tuned"]["color"]

    ax.plot(gaps, table.criterion.map(height_of), "o", color=color, alpha=0.3)
    bars = _interval_lengths(rows[within])
    ax.errorbar(rows.difference[within], rows.index[within], xerr=bars, fmt="D", color=color, capsize=4)
    for height, difference in rows.difference[~within].items():
        if difference < 0:
            ax.text(low, height, f" ◂ −{-difference:.1f}", ha="left", va="center", color=color)
        else:
            ax.text(high, height, f"+{difference:.1f} ▸ ", ha="right", va="center", color=color)
    ends_left = rows.index[within & (rows.low < low)]
    ends_right = rows.index[within & (rows.high > high)]
    ax.plot([low] * len(ends_left), ends_left, "<", color=color, clip_on=False)
    ax.plot([high] * len(ends_right), ends_right, ">", color=color, clip_on=False)
    ax.axvline(0, color="0.4", linewidth=1)
    name = CRITERION_LABELS.get(baseline, baseline)
    ax.set(xlabel=f"accuracy − accuracy of {name} (points)", xlim=(low, high))


def _outlier_limit(gaps: Series, criteria: Series) -> float:
    """The difference, in points, above which a criterion is an outlier.

    Its farthest run lies more than four times as far from the baseline as the median criterion's.
    """
    extents = gaps.abs().groupby(criteria).max()
    usual = extents[extents <= 4 * extents.median()]
    return 1.15 * max(usual.max(), 0.1)


def _difference_range(gaps: Series, rows: DataFrame, limit: float) -> tuple[float, float]:
    """Limits of the axis: all runs and intervals if they lie within `limit`, and some room on both sides of 0."""
    lowest = np.nanmin([gaps.min(), rows.low.min()])
    highest = np.nanmax([gaps.max(), rows.high.max()])
    low = np.clip(1.15 * lowest, -limit, -0.15 * limit)
    high = np.clip(1.15 * highest, 0.15 * limit, limit)
    return low, high


def feature_maps(
    maps: Mapping[str, Sequence[Tensor]],
    masks: Sequence[Tensor],
    scores: Sequence[Tensor],
    numbers: Sequence[int],
    image: Tensor,
) -> Figure:
    """Figure 8: 16 channels of some blocks, the same in all networks, the best score first; removed ones are tinted.

    `maps[network][k]`: (channels, H, W) of block `numbers[k]`, either all of its channels or those that its mask keeps.
    `masks`, `scores`: one tensor per block of the network. `image`: (3, H, W), uint8. At most half of the channels
    shown are removed ones, if there are enough others. A channel has one brightness scale in all networks.
    """
    fig = Figure(figsize=(3 * len(maps) + 1.6, 3.2 * len(numbers)), layout="constrained")
    width_ratios = [0.5] + [1] * len(maps)
    axes = fig.subplots(len(numbers), 1 + len(maps), width_ratios=width_ratios, squeeze=False)
    for k, number in enumerate(numbers):
        mask = masks[number]
        shown = _choose_channels(mask, scores[number])
        channels = torch.stack([_place_on_dense(layers[k], mask)[shown] for layers in maps.values()])
        text = f"block {number}\n\n{int(mask.sum())} of {len(mask)}\nchannels stay\n\nmaps of {channels.shape[-1]} px"
        axes[k, 0].text(0.5, 0.4, text, ha="center", va="center", transform=axes[k, 0].transAxes)
        for ax, tiles in zip(axes[k, 1:], _paint_tiles(channels, ~mask[shown])):
            ax.imshow(make_grid(tiles, nrow=4, padding=3, pad_value=1).movedim(0, -1).numpy())
    for ax, network in zip(axes[0, 1:], maps):
        ax.set_title(network)
    corner = axes[0, 0].inset_axes((0, 0.75, 1, 0.35))
    corner.imshow(image.movedim(0, -1).numpy())
    for ax in (*axes.flat, corner):
        ax.axis("off")
    return fig


def _choose_channels(mask: Tensor, scores: Tensor, count: int = 16) -> Tensor:
    """Indices of `count` channels spread over the ranking, kept ones first."""
    order = scores.argsort(descending=True)
    kept = order[mask[order]]
    removed = order[~mask[order]]
    removed_count = min(len(removed), max(count // 2, count - len(kept)))
    kept_count = min(len(kept), count - removed_count)
    return torch.cat([_spread(kept, kept_count), _spread(removed, removed_count)])


def _spread(ranked: Tensor, count: int) -> Tensor:
    """`count` entries of `ranked` at equal distances, the first and the last among them."""
    if count == 0:
        return ranked[:0]
    return ranked[torch.linspace(0, len(ranked) - 1, count).round().long()]


def _place_on_dense(maps: Tensor, mask: Tensor) -> Tensor:
    """Maps of the kept channels at their places among all channels, nan where a channel was removed."""
    if len(maps) == len(mask):
        return maps
    placed = maps.new_full((len(mask), *maps.shape[1:]), torch.nan)
    placed[mask] = maps
    return placed


def _paint_tiles(maps: Tensor, removed: Tensor) -> Tensor:
    """RGB tiles (networks, channels, 3, H, W) of `maps` (networks, channels, H, W), enlarged to some TILE_PIXELS.

    Channels that are `removed` (channels,) are tinted; a tile without a map has the plain tint. The range of a channel's
    brightness counts as at least 5 % of the block's, so that noise does not look like an image.
    """
    low = maps.nan_to_num(torch.inf).amin((0, 2, 3), keepdim=True)
    high = maps.nan_to_num(-torch.inf).amax((0, 2, 3), keepdim=True)
    least_range = 0.05 * (high.max() - low.min()) + 1e-12
    grey = 0.5 + (maps - (low + high) / 2) / (high - low).clamp_min(least_range)
    rgb = 0.88 * grey.clamp(0, 1).unsqueeze(2).expand(-1, -1, 3, -1, -1)  # never white, which is between the tiles
    rgb = torch.where(removed[:, None, None, None], 0.6 * rgb + 0.4 * REMOVED_TINT, rgb)
    rgb = torch.where(rgb.isnan(), REMOVED_TINT, rgb)
    factor = max(1, TILE_PIXELS // maps.shape[-1])
    return rgb.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
