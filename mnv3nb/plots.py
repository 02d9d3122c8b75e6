"""One function a figure, one house style, and one way to save and caption what a notebook shows."""

import itertools
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import display
from matplotlib.figure import Figure
from scipy import stats

from . import paper
from .checkpoint import write_atomically
from .complexity import count_flops, count_parameters
from .data import default_home
from .drawings import COLORS
from .model import DENSE_WIDTHS, MobileNetV3Large
from .runs import Run

RUNS_MIME = "application/vnd.mnv3nb.runs+json"  # the keys of the runs behind an output, read back by the freshness test
PAPER_STYLE = {"color": "black", "marker": "D", "markersize": 6, "linestyle": "none", "markerfacecolor": "white", "zorder": 5}
GRID = "0.88"


def use_style() -> None:
    """The house style: colour-blind-safe, readable at half a page, the same bytes for the same data."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    plt.rcParams |= {
        "figure.dpi": 110, "savefig.dpi": 160, "figure.constrained_layout.use": True, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "axes.titlesize": 12, "axes.labelsize": 12,
        "legend.frameon": False, "svg.hashsalt": "mnv3nb", "figure.figsize": (8, 4.2),
    }  # fmt: skip


def save(fig: Figure, name: str, profile: str, runs: Iterable[Run] = ()) -> None:
    """Show `fig` with the runs it is drawn from under it; write figures/<profile>/<name>.png and .svg."""
    folder = default_home() / "figures" / profile
    for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        with write_atomically(folder / f"{name}.{ending}") as file:
            fig.savefig(file, format=ending, metadata=metadata)
    display(fig)
    plt.close(fig)
    _caption(folder / f"{name}.svg", runs)


def save_table(table: pd.DataFrame, name: str, profile: str, runs: Iterable[Run] = (), digits: int = 4) -> None:
    """Show `table` with the runs it is made from under it; write figures/<profile>/<name>.csv, the same bytes each time."""
    path = default_home() / "figures" / profile / f"{name}.csv"
    with write_atomically(path) as file:
        table.to_csv(file, index=table.index.name is not None, float_format="%.6g", lineterminator="\n")
    display(table.style.format(precision=digits, na_rep="–").hide(axis="index") if table.index.name is None else table)
    _caption(path, runs)


def _caption(path: Path, runs: Iterable[Run]) -> None:
    runs = list({run.key: run for run in runs}.values())
    text = f"`figures/{path.parent.name}/{path.name}`"
    if runs:
        seeds = sorted({run.config.train.seed for run in runs})
        places = sorted({f"{r.result['environment']['hardware']}, {r.result['environment']['date']}" for r in runs})
        keys = ", ".join(r.key for r in runs[:6]) + (f" and {len(runs) - 6} more" if len(runs) > 6 else "")
        text += f" · {len(runs)} run(s): {keys} · seed(s) {', '.join(map(str, seeds))} · {'; '.join(places)}"
    display({"text/markdown": text, "text/plain": text, RUNS_MIME: [r.key for r in runs]}, raw=True)


def gamma_by_lambda(runs: Sequence[Run], highlight: float | None = None) -> Figure:
    """Figure 6: histogram of the expansions' γ, one panel a λ on shared axes, above an overlay of |γ| on a log scale."""
    gammas = {run.config.train.lam: torch.cat(run.gamma).numpy() for run in runs}
    fig = plt.figure(figsize=(10, 6.4))
    grid = fig.add_gridspec(2, len(gammas), height_ratios=(1, 1.25))
    colors = sns.color_palette("viridis", len(gammas) + 1)
    high = max(g.max() for g in gammas.values())
    edges = np.linspace(min(0, *(g.min() for g in gammas.values())), high, 41)
    first, below = None, fig.add_subplot(grid[1, :])
    for i, (lam, g) in enumerate(gammas.items()):
        first = ax = fig.add_subplot(grid[0, i], sharex=first, sharey=first)
        ax.hist(g, bins=edges, color=colors[i], histtype="stepfilled")
        ax.set(title=f"λ = {lam:g}" + ("\n(chosen)" if lam == highlight else "\n"), xlabel="γ", yscale="log")
        ax.tick_params(labelleft=i == 0)
        ax.xaxis.set_major_locator(plt.MaxNLocator(3))
        if i == 0:
            ax.set_ylabel("filters (log scale)")
        bins = np.logspace(-12, np.log10(max(high, 1)), 97)
        style = {"label": f"λ = {lam:g}", "linewidth": 3 if lam == highlight else 1.8}
        below.hist(np.clip(np.abs(g), bins[0], None), bins=bins, histtype="step", color=colors[i], **style)
    below.set(xscale="log", yscale="log", ylabel="filters (log scale)")
    below.set_xlabel("|γ| of the expansions (log scale; the leftmost bin holds all that is smaller)")
    below.legend(ncols=len(gammas), loc="lower center", bbox_to_anchor=(0.5, 1))
    return fig


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean of independent `values` and half the width of its `level` confidence interval (Student's t); nan for one value."""
    n = len(values)
    half = stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return float(np.mean(values)), float(half)


def cost_table(runs: Iterable[Run], num_classes: int = 10) -> pd.DataFrame:
    """The columns of Tables 3, 4 and 6, one row a pruned run: accuracies in %, FLOPs at the paper's 224 pixels."""
    rows, dense = [], _costs(num_classes)
    for run in runs:
        prune, costs = run.config.prune, _costs(num_classes, tuple(run.result["widths"]), tuple(run.result["squeeze"]))
        rows.append({
            "rate": prune.rate, "criterion": prune.criterion, "seed": run.config.parent.train.seed,
            "tuning_seed": run.config.train.seed, "accuracy_before_pct": 100 * run.result["accuracy_before"],
            "accuracy_pct": 100 * run.accuracy, "parameters_m": costs[0] / 1e6, "flops_m": costs[1] / 1e6,
            "fewer_parameters_pct": 100 * (1 - costs[0] / dense[0]), "fewer_flops_pct": 100 * (1 - costs[1] / dense[1]),
        })  # fmt: skip
    return pd.DataFrame(rows)


@lru_cache
def _costs(num_classes: int, *shape: tuple[int, ...]) -> tuple[int, int]:
    with torch.device("meta"):
        model = MobileNetV3Large(num_classes, *shape)
    return count_parameters(model), count_flops(model)


def widths_chart(widths: Sequence[int], published: pd.DataFrame = paper.TABLE_5) -> Figure:
    """Table 5: share of each unit's expansion filters that is left, in %, with the widths; the paper's shares as marks."""
    fig, ax = plt.subplots(figsize=(9, 4.2))
    units = np.arange(len(DENSE_WIDTHS))
    share = 100 * np.array(widths) / DENSE_WIDTHS
    ax.bar(units, share, color=sns.color_palette()[0], label="ours", zorder=2)
    ax.plot(units, 100 * published["after"] / published["before"], **PAPER_STYLE, label="paper (Table 5)")
    ax.set(xlabel="unit, its dense width, and its width after pruning (ours)", ylabel="filters left (%)", ylim=(0, 105))
    ax.set_xticks(units, [f"{i}\n{dense}\n→ {width}" for i, (dense, width) in enumerate(zip(DENSE_WIDTHS, widths))])
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return fig


def rate_curve(
    table: pd.DataFrame, published: pd.DataFrame, lines: dict[str, float], collapse: float | None = None, judges: bool = False
) -> Figure:
    """Tables 3 and 6: accuracy after and before fine-tuning and what is left of the costs, against the pruning rate.

    `table`: `cost_table`'s columns; several seeds become means with 95 % intervals. `lines`: accuracies in % to compare
    with, by name. `collapse`: the rate at which a unit has lost all its filters. `published`: Table 3 or 6; its
    accuracies are drawn only if `judges`.
    """
    fig, axes = plt.subplot_mosaic([["after", "after"], ["both", "cost"]], figsize=(9, 6.8), height_ratios=(1.15, 1))
    groups, colors = table.groupby("rate"), sns.color_palette()
    rates = 100 * np.array(list(groups.groups))
    for column, label, color, style in (
        ("accuracy_pct", "fine-tuned", colors[0], "o-"), ("accuracy_before_pct", "before fine-tuning", colors[1], "s--"),
    ):  # fmt: skip
        mean, half = np.array([mean_interval(values) for _, values in groups[column]]).T
        for name in ("after", "both") if column == "accuracy_pct" else ("both",):
            axes[name].errorbar(rates, mean, np.nan_to_num(half), fmt=style, color=color, capsize=3, label=label, zorder=3)
    for (name, value), color, style in zip(lines.items(), colors[2:], (":", "--", "-.")):
        axes["after"].axhline(value, color=color, linestyle=style, label=name)
    if judges:
        axes["after"].plot(100 * published["rate"], published["accuracy_pct"], **PAPER_STYLE, label="paper")
    for column, label, color, marker in (
        ("fewer_parameters_pct", "parameters", colors[4], "o"), ("fewer_flops_pct", "FLOPs", colors[5], "s"),
    ):  # fmt: skip
        axes["cost"].plot(rates, 100 - groups[column].mean(), f"{marker}-", color=color, label=label)
        paper_style = PAPER_STYLE | {"color": color, "label": f"paper, {label}"}
        axes["cost"].plot(100 * published["rate"], 100 - published[column], **paper_style)
    for name, ax in axes.items():
        ax.set(xlabel="pruning rate (% of all expansion filters)", xlim=(-2, rates.max() + 2))
        if collapse is not None and 100 * collapse < rates.max():
            label = "a unit has lost all its filters" if name == "after" else None
            ax.axvspan(100 * collapse, rates.max() + 2, color="0.9", zorder=0, label=label)
    axes["after"].set(ylabel="test accuracy (%)", title="after fine-tuning")
    axes["both"].set(ylabel="test accuracy (%)", ylim=(0, 103), title="before and after")
    axes["cost"].set(ylabel="left of dense (%)", ylim=(0, 103), title="costs")
    fig.legend(*axes["after"].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=10)
    for name in ("both", "cost"):
        axes[name].legend(fontsize=10, loc="lower left")
    return fig


def criteria_chart(table: pd.DataFrame, block: str, lines: dict[str, float]) -> Figure:
    """Table 4: accuracy after and before fine-tuning of each criterion: every run a dot, means with 95 % intervals.

    `table`: `cost_table`'s columns. `block`: the column whose values are the independent repetitions. `lines`: accuracies
    in % to compare with, by name. The axes are linear in the log-odds, on which noise is about equal everywhere.
    """
    fig, axes = plt.subplots(1, 2, figsize=(9, 4.6), sharey=True, width_ratios=(1.6, 1))
    odds = lambda x: np.log(np.clip(x, 0.05, 99.95) / (100 - np.clip(x, 0.05, 99.95))), lambda y: 100 / (1 + np.exp(-y))
    order = table.groupby("criterion")["accuracy_pct"].mean().sort_values().index
    for ax, column, title in zip(axes, ("accuracy_pct", "accuracy_before_pct"), ("after fine-tuning", "before")):
        for y, name in enumerate(order):
            rows = table[table["criterion"] == name]
            mean, half = mean_interval(rows.groupby(block)[column].mean())
            color = sns.color_palette()[1 if name == "gamma_sparsity" else 0]
            ax.plot(rows[column], [y] * len(rows), "o", color=color, alpha=0.35, markersize=5)
            ax.errorbar(mean, y, xerr=np.nan_to_num(half), fmt="D", color=color, capsize=4, markersize=7, zorder=3)
        ax.set_xscale("function", functions=odds)
        low, high = table[column].min(), table[column].max()
        if high - low > 15:
            ticks = [x for x in (1, 3, 10, 30, 50, 70, 90, 95, 98, 99, 99.7) if 0.7 * low < x < high + 1]
            ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
        ax.set(title=title, xlabel="test accuracy (%)")
    axes[0].set_xlabel("test accuracy (%, log-odds scale)")
    for (name, value), style, color in zip(lines.items(), ("--", ":"), sns.color_palette()[2:]):
        axes[0].axvline(value, linestyle=style, color=color, label=name)
    axes[0].set_yticks(range(len(order)), order)
    fig.legend(loc="outside lower center", ncols=3, fontsize=10)
    return fig


def agreement_maps(ranks: pd.DataFrame, overlap: pd.DataFrame) -> Figure:
    """Two heat maps over the criteria: rank correlation of all scores, and Jaccard overlap of the kept filters."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 5.4), sharey=True)
    titles = "Spearman rank correlation of the scores", "Jaccard overlap of the kept filters"
    for ax, frame, title, low, palette in zip(axes, (ranks, overlap), titles, (-1, 0), ("RdBu_r", "viridis")):
        sns.heatmap(frame, ax=ax, vmin=low, vmax=1, cmap=palette, square=True, annot=True, fmt=".2f", annot_kws={"size": 9},
                    cbar_kws={"shrink": 0.7})  # fmt: skip
        ax.set(title=title, xlabel="", ylabel="")
        ax.tick_params(length=0)
    return fig


def feature_maps(maps: dict[str, Sequence], masks: Sequence, scores: Sequence, units: Sequence[int], image, shown: int = 16):
    """Figure 8: the same channels of some `units` in networks side by side, best score first; the removed ones are marked.

    `maps[network][k]`: (channels, H, W) of `units[k]`, of all channels or of those in `masks`; `image`: (H, W, 3). At most
    half of the `shown` channels of a unit are removed ones, if it has enough others; one brightness scale a unit.
    """
    side = int(shown**0.5)
    fig, axes = plt.subplots(len(units), 1 + len(maps), figsize=(3 * len(maps) + 1.4, 3.1 * len(units)),
                             width_ratios=[0.45] + [1] * len(maps))  # fmt: skip
    fig.get_layout_engine().set(wspace=0.04, hspace=0.03)
    for row, k, unit in zip(axes, range(len(units)), units):
        mask, order = np.asarray(masks[unit]), np.asarray(scores[unit]).argsort(kind="stable")[::-1]
        gone = min((~mask).sum(), max(shown // 2, shown - mask.sum()))
        picks = [part[np.linspace(0, len(part) - 1, n).round().astype(int)]
                 for part, n in ((order[mask[order]], min(mask.sum(), shown - gone)), (order[~mask[order]], gone))]  # fmt: skip
        whole = {name: _on_dense(np.asarray(m[k]), mask)[np.concatenate(picks)] for name, m in maps.items()}
        low, high = np.nanpercentile(np.stack(list(whole.values())), (1, 99))
        size = next(iter(whole.values())).shape[-1]
        step = size + max(1, size // 14)
        for ax, (name, tiles) in zip(row[1:], whole.items()):
            canvas = np.full((side * step, side * step), np.nan)
            for n, tile in enumerate(tiles):
                y, x = n // side * step, n % side * step
                canvas[y : y + size, x : x + size] = tile
                if n >= len(picks[0]):
                    ax.add_patch(plt.Rectangle((x - 0.5, y - 0.5), size, size, edgecolor="C1", linewidth=1.6, fill=False))
                    ax.plot([x - 0.5, x + size - 0.5], [y - 0.5, y + size - 0.5], color="C1", linewidth=1.2)
            ax.imshow(canvas, cmap="gray", vmin=low, vmax=high)
            ax.set_title(name if k == 0 else "")
        row[0].text(0.5, 0.5 if k else 0.42, f"unit {unit}\n\n{mask.sum()} of {len(mask)}\nchannels stay\n\nmaps {size} × {size}",
                    ha="center", va="center")  # fmt: skip
        for ax in row:
            ax.axis("off")
    inset = axes[0, 0].inset_axes((0, 0.78, 1, 0.4))
    inset.imshow(image)
    inset.axis("off")
    return fig


def kept_maps(table: pd.DataFrame, measures: dict[str, str]) -> Figure:
    """A panel for each of `measures` (column -> label) over the units: each network in `table` relative to the one before."""
    fig, axes = plt.subplots(1, len(measures), figsize=(12, 4.2))
    for ax, (column, label) in zip(axes, measures.items()):
        sns.lineplot(table, x="unit", y=column, hue="network", style="network", markers=True, dashes=False, ax=ax)
        ax.axhline(1, color="0.3", linewidth=1, zorder=1)
        ax.set(title=label, xlabel="unit", ylabel="× before" if ax is axes[0] else "", xticks=range(0, 15, 2))
        ax.get_legend().remove()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def _on_dense(maps, mask):
    """Maps of the kept channels at their places among all channels, NaN where a channel went."""
    out = np.full((len(mask), *maps.shape[1:]), np.nan)
    out[mask if len(maps) == mask.sum() else slice(None)] = maps
    return out


def widths_before_after(before: Sequence[int], after: Sequence[int], paper_after: Sequence[int] | None = None) -> Figure:
    """Expansion widths of the 15 units before and after pruning, with the share kept; `paper_after` marks Table 5's."""
    fig, ax = plt.subplots(figsize=(9, 4.2))
    units, blue = range(len(before)), sns.color_palette("colorblind")[0]
    ax.bar(units, before, color="0.85", edgecolor="0.6", label="before")
    ax.bar(units, after, color=blue, label="after")
    for i, (b, a) in enumerate(zip(before, after)):
        ax.annotate(f"{a / b:.0%}", (i, b), (0, 5), textcoords="offset points", ha="center", fontsize=10)
    if paper_after is not None:
        ax.plot(units, paper_after, label="paper, after", **PAPER_STYLE)
    ax.set(xticks=units, xlabel="unit (the percentages are the shares kept)", ylabel="channels of the expansion")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper left")
    return fig


def unit_costs(costs: pd.DataFrame) -> Figure:
    """Parameters and the paper's FLOPs of stem, units and head, stacked by layer; `costs`: the rows of `layer_costs`."""
    part, number, layer = (costs["name"].str.split(".").str[i] for i in range(3))
    place = number.where(part == "units", part.replace("classifier", "fc"))
    layer = layer.where(part == "units", "data")
    roles = {"expand": "1×1 expansion", "depthwise": "depthwise", "se": "SE", "project": "1×1 projection", "data": "not a unit"}
    fig, axes = plt.subplots(2, 1, figsize=(9, 5.6))
    for ax, column, scale, label in zip(axes, ("parameters", "flops"), (1e3, 1e6), ("parameters (10³)", "FLOPs (10⁶)")):
        table = (costs[column] / scale).groupby([place, layer]).sum().unstack().loc[place.unique(), list(roles)]
        table.plot.bar(stacked=True, ax=ax, color=[COLORS[r] for r in roles], edgecolor="0.3", width=0.8, rot=0, legend=False)
        ax.set(ylabel=label, xlabel="" if ax is axes[0] else "unit", ylim=(0, 1.05 * table.sum(axis=1).max()))
        ax.grid(axis="x", visible=False)
    axes[0].legend(roles.values(), loc="upper left")
    return fig


def gamma_study(table: pd.DataFrame, band: tuple[float, float], floor: float = 1e-14) -> Figure:
    """|γ| after training, smallest to largest: a row for each `place`, a column for each `penalty`, a line for each `schedule`.

    `table`: one row a training with place, penalty, schedule, last_lr (a short bar at the right) and gamma (a tensor). `band`:
    the paper's dead |γ|, shaded in the first row. What lies below `floor` is drawn on it.
    """
    places, penalties, schedules = (list(table[name].unique()) for name in ("place", "penalty", "schedule"))
    fig, axes = plt.subplots(len(places), len(penalties), figsize=(10, 6), sharex=True, sharey=True, squeeze=False)
    styles = dict(zip(schedules, zip(sns.color_palette("colorblind"), ("-", "--", ":"))))
    for (row, place), (column, penalty) in itertools.product(enumerate(places), enumerate(penalties)):
        ax = axes[row, column]
        for _, run in table[(table.place == place) & (table.penalty == penalty)].iterrows():
            gamma = run.gamma.abs().sort().values.clamp_min(floor).numpy()
            color, line = styles[run.schedule]
            ax.plot(100 * np.linspace(0, 1, len(gamma)), gamma, line, color=color, label=run.schedule, linewidth=2.2)
            if penalty == "subgradient":  # only there does γ end at the size of the last steps
                ax.axhline(run.last_lr, xmin=0.94, color=color, linewidth=3)
        ax.set_visible(bool(ax.lines))
        if row == 0:
            ax.set_title(penalty)
            ax.axhspan(*band, color="0.8", label="paper's dead γ (Table 2)")
        ax.set(yscale="log", ylim=(floor / 2, 3), xlabel="share of the γ (%)" if row == len(places) - 1 else "")
        if column == 0:
            ax.set_ylabel(f"{place}: |γ|")
    axes[0, 0].plot([], [], color="0.3", linewidth=3, label="last learning rate")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig


def sparsity_by_lambda(runs: Sequence[Run], distances: pd.DataFrame, noise: float) -> Figure:
    """S of all filters for each λ, and how far γ's and S's distributions move from those at λ = 0.

    `distances`: lam, gamma, sparsity (Kolmogorov-Smirnov distances to λ = 0); `noise`: what equal distributions reach by chance.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for run, color in zip(runs, sns.color_palette("viridis", len(runs) + 1)):
        sns.ecdfplot(torch.cat(run.sparsity).numpy(), ax=left, color=color, linewidth=2, label=f"λ = {run.config.train.lam:g}")
    left.set(xlabel="S of the filters", ylabel="share of filters with at most this S")
    left.legend(loc="upper left")
    distances = distances.rename(columns={"gamma": "|γ|", "sparsity": "S"}).assign(lam=distances.lam.map("{:g}".format))
    distances.plot.bar(x="lam", y=["|γ|", "S"], ax=right, color=sns.color_palette("colorblind")[:2], rot=0, width=0.7)
    right.axhline(noise, color="black", linestyle="--", linewidth=1.2, label="chance (5 % level)")
    right.set(xlabel="λ", ylabel="KS distance to λ = 0 (0 to 1)", ylim=(0, 1.05))
    right.grid(axis="x", visible=False)
    right.legend(loc="upper left")
    return fig


def learning_curves(runs: Sequence[Run]) -> Figure:
    """Cross-entropy on the training images and accuracy on the test images, epoch by epoch, a line for each λ."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for run, marker in zip(runs, "osv^"):
        history = pd.DataFrame(run.history)
        for ax, column, scale in zip(axes, ("train_loss", "test_accuracy"), (1, 100)):
            ax.plot(history.epoch, scale * history[column], marker=marker, markevery=0.1, label=f"λ = {run.config.train.lam:g}")
    axes[0].set(xlabel="epoch", ylabel="training cross-entropy (nats)")
    axes[1].set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(0, 103))
    axes[0].legend()
    return fig


def gamma_sparsity_importance(run: Run, floor: float = 1e-12) -> Figure:
    """Figure 7: |γ|, S and m = |γ|·S of all filters, above their spread in each of the 15 units.

    |γ| and m are on a log scale; what lies below `floor` (m is 0 where S is) is drawn on it.
    """
    fig, axes = plt.subplots(2, 3, figsize=(10, 6.4), sharex="col", height_ratios=(1, 2))
    values = {"|γ|": [g.abs() for g in run.gamma], "S": run.sparsity, "m = |γ|·S": run.importance}
    for (top, bottom), (name, units), color in zip(axes.T, values.items(), sns.color_palette("colorblind")):
        log = name != "S"
        units = [u.clamp_min(floor).numpy() if log else u.numpy() for u in units]
        pooled = np.concatenate(units)
        bins = np.logspace(np.log10(pooled.min() / 1.5), np.log10(pooled.max() * 1.5), 60) if log else np.linspace(0, 1, 60)
        top.hist(pooled, bins=bins, color=color, histtype="stepfilled")
        bottom.boxplot(units, orientation="horizontal", positions=range(len(units)), whis=(5, 95), widths=0.65, patch_artist=True,
                       boxprops={"facecolor": color, "alpha": 0.6}, medianprops={"color": "black"}, showfliers=False)  # fmt: skip
        bottom.set(xlabel=name, ylim=(len(units) - 0.4, -0.6), xscale="log" if log else "linear")
    axes[0, 0].set_ylabel("filters")
    axes[1, 0].set_ylabel("unit (box: quartiles, whiskers: 5-95 %)")
    return fig


def threshold_curve(scores: Sequence[torch.Tensor], published: pd.DataFrame = paper.TABLE_2, floor: float = 1e-13) -> Figure:
    """Table 2: the threshold of m at every rate, which is m of all filters from smallest to largest; the paper's as marks."""
    fig, ax = plt.subplots(figsize=(8, 4.2))
    m = torch.cat(list(scores)).sort().values
    ax.plot(100 * np.arange(len(m)) / len(m), m.clamp_min(floor), linewidth=2.5, label="ours")
    ax.plot(100 * published.rate, published.threshold, **PAPER_STYLE, label="paper (Table 2)")
    ax.set(yscale="log", xlabel="rate: share of all filters removed (%)", ylabel="threshold of m", xlim=(-1, 101))
    ax.legend()
    return fig


def threshold_contest(table: pd.DataFrame, labels: dict[str, str]) -> Figure:
    """Accuracy before fine-tuning by rate: `labels` names the columns of `table` that are drawn, accuracies in %."""
    fig, ax = plt.subplots(figsize=(8, 4.2))
    for (column, label), marker in zip(labels.items(), "os^v"):
        ax.plot(100 * table.rate, table[column], marker=marker, label=label, linestyle="-" if column.startswith("m") else "--")
    ax.set(xlabel="rate: share of all filters removed (%)", ylabel="test accuracy, not fine-tuned (%)", ylim=(0, 103))
    ax.legend()
    return fig


def verdicts(table: pd.DataFrame, kinds: Sequence[str]) -> Figure:
    """The report at a glance: how many of the paper's numbers got which verdict of `kinds`; every number against ours."""
    colors = dict(zip(kinds, ("C0", "C3", "0.62", "0.85")))
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 5), width_ratios=[1.25, 1])
    counts = pd.crosstab(table.source, table.verdict).reindex(index=table.source.unique(), columns=kinds, fill_value=0)
    start = np.zeros(len(counts))
    for kind in kinds:
        bars = left.barh(counts.index, counts[kind], left=start, color=colors[kind], label=f"{kind} ({counts[kind].sum()})")
        ink = "black" if kind in kinds[2:] else "white"
        left.bar_label(bars, [n or "" for n in counts[kind]], label_type="center", color=ink)
        start += counts[kind].to_numpy()
    left.invert_yaxis()
    left.set(xlabel="numbers of the paper")
    left.grid(axis="y", visible=False)
    points = table[(table.paper > 0) & (table.ours > 0) & ~table.kind.isin(["above", "below"])]
    for kind in reversed(kinds):
        part = points[points.verdict == kind]
        right.scatter(part.paper, part.ours, color=colors[kind], edgecolor="black", linewidth=0.4, s=34, zorder=3)
    right.axline((1, 1), slope=1, color="black", linewidth=1)
    right.set(xscale="log", yscale="log", xlabel="paper (each number in its own unit)", ylabel="ours")
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(kinds))
    return fig


def repairs(table: pd.DataFrame, sparse_pct: float) -> Figure:
    """Accuracy right after pruning, without fine-tuning, by rate: one line a column of `table` (accuracies in %)."""
    fig, ax = plt.subplots(figsize=(8, 4.2))
    for column, marker, style in zip(table.columns[1:], "ovs^", ("-", ":", "-", ":")):
        fill = "none" if style == ":" else None
        ax.plot(100 * table.rate, table[column], marker=marker, linestyle=style, label=column, markersize=9, markerfacecolor=fill)
    ax.axhline(sparse_pct, color="black", linewidth=1, linestyle="--", label="before pruning")
    ax.set(xlabel="rate: share of all filters removed (%)", ylabel="test accuracy, not fine-tuned (%)", ylim=(0, 103))
    ax.legend(fontsize=10)
    return fig


def latency_against_flops(table: pd.DataFrame, image_size: int) -> Figure:
    """Time against the paper's FLOPs, both as shares of the dense network's: a panel for each engine, batch and thread count.

    `table`: columns network, engine, threads, batch, flops, ratio, ratio_low, ratio_high. Whiskers: quartiles.
    """
    panels = list(table.groupby(["engine", "threads", "batch"], sort=False))
    columns = min(4, len(panels))
    grid = {"sharex": True, "sharey": True, "squeeze": False, "figsize": (3 * columns, 2.7 * -(-len(panels) // columns) + 0.6)}
    fig, axes = plt.subplots(-(-len(panels) // columns), columns, **grid)
    styles = dict(zip(table.network.unique(), zip(sns.color_palette("colorblind", 10), "oXsDv^<>P*")))
    for ax, ((engine, threads, batch), part) in itertools.zip_longest(axes.flat, panels, fillvalue=((None,) * 3, None)):
        ax.set_visible(part is not None)
        if part is None:
            continue
        x = 100 * part.flops / part.flops[part.network == "dense"].iloc[0]
        for i, row in part.iterrows():
            color, marker = styles[row.network]
            spread = [[100 * max(0, row.ratio - row.ratio_low)], [100 * max(0, row.ratio_high - row.ratio)]]
            ax.errorbar(x[i], 100 * row.ratio, spread, fmt=marker, color=color, markersize=8, markeredgecolor="white")
        ax.axline((0, 0), slope=1, color="0.5", linewidth=1)
        ax.axhline(100, color="0.5", linewidth=1, linestyle=":")
        where = "" if "GPU" in engine else f", {threads} thread{'s' * (threads > 1)}"
        ax.set_title(f"{engine}\nbatch {batch}{where}", fontsize=10)
    least = 100 * table.flops.min() / table.flops.max()
    axes[0, 0].set(xlim=(0.9 * least, 104), ylim=(0, 108 * max(1, min(2, table.ratio.max()))))
    fig.supxlabel(f"FLOPs at 224 px (% of dense); measured at {image_size} px", fontsize=12)
    fig.supylabel("latency (% of dense)", fontsize=12)
    handles = [plt.Line2D([], [], color=c, marker=m, linestyle="none", markersize=8) for c, m in styles.values()]
    fig.legend(handles, styles, loc="outside upper center", ncols=5, fontsize=10)
    return fig


def unit_latencies(table: pd.DataFrame) -> Figure:
    """Time of each unit alone against its width, both as shares of the dense unit's; colours tell what divides the width.

    More than four times the dense unit's time is drawn as four times.
    """
    kinds = {"multiple of 16": 16, "of 8": 8, "of 4": 4, "of none of these": 1}
    table = table.assign(divisor=[next(k for k, n in kinds.items() if w % n == 0) for w in table.width])
    fig, axes = plt.subplots(3, 5, figsize=(11, 6.8), sharex=True, sharey=True)
    for (unit, part), ax in zip(table.groupby("unit"), axes.flat):
        x = 100 * part.width / part.width.max()
        for (kind, _), color, marker in zip(kinds.items(), ("C0", "C2", "C1", "C3"), "os^X"):
            mine = part.divisor == kind
            ax.plot(x[mine], 100 * part.ratio[mine].clip(upper=4), marker, color=color, markersize=5, label=kind, alpha=0.85)
        ax.axline((0, 0), slope=1, color="0.5", linewidth=1)
        ax.set_title(f"unit {unit}, dense {part.width.max()}", fontsize=10)
    axes[0, 0].set(xlim=(0, 104), ylim=(0, None), xticks=(0, 50, 100))
    fig.supxlabel("width (% of dense)", fontsize=12)
    fig.supylabel("latency of the unit (% of dense)", fontsize=12)
    fig.legend(*axes[-1, -1].get_legend_handles_labels(), loc="outside upper center", ncols=4, title="the width is a")
    return fig


def lost_score(table: pd.DataFrame) -> Figure:
    """What ways of choosing aligned widths lose of the score at a latency: columns chosen_by, ratio, kept_score."""
    fig, ax = plt.subplots(figsize=(8, 4.2))
    for (name, part), marker in zip(table.sort_values("ratio").groupby("chosen_by", sort=False), "os^"):
        ax.plot(100 * part.ratio, 100 * (1 - part.kept_score).clip(lower=1e-6), marker=marker, label=f"widths chosen by {name}")
    ax.set(xlabel="measured latency (% of dense)", ylabel="score lost (% of all)", yscale="log")
    ax.legend()
    return fig


def accuracy_against_latency(table: pd.DataFrame, images: int) -> Figure:
    """Fine-tuned networks: columns kind, rate, ratio, ratio_low, ratio_high, accuracy_pct, measured on `images` images.

    Whiskers: quartiles of the latency, standard error of an accuracy found on so many images.
    """
    fig, ax = plt.subplots(figsize=(8, 4.2))
    for (kind, part), marker, color in zip(table.groupby("kind", sort=False), "DXo", ("black", "C3", "C0")):
        spread = 100 * np.abs(part[["ratio_low", "ratio_high"]].sub(part.ratio, axis=0).to_numpy().T)
        error = np.sqrt(part.accuracy_pct * (100 - part.accuracy_pct) / images)
        whiskers = {"xerr": spread, "yerr": error, "elinewidth": 1, "ecolor": "0.6"}
        ax.errorbar(100 * part.ratio, part.accuracy_pct, **whiskers, fmt=marker, color=color, markersize=9, label=kind)
        for _, row in part[part.kind != "dense"].iterrows():
            place = {"textcoords": "offset points", "xytext": (7, 7), "fontsize": 11, "color": color}
            ax.annotate(f"{row.rate:.0%}", (100 * row.ratio, row.accuracy_pct), **place)
    ax.axvline(100, color="0.5", linewidth=1, linestyle=":")
    ax.margins(x=0.08, y=0.15)
    ax.set(xlabel="latency (% of dense)", ylabel="test accuracy, fine-tuned (%)")
    fig.legend(loc="outside upper center", ncols=3, title="numbers: share of filters removed")
    return fig
