"""Figures beyond the paper's, one function each, in the style of `plots`."""

import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure

from .drawings import COLORS
from .store import Run


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
    distances = distances.rename(columns={"gamma": "|γ|", "sparsity": "S"}).assign(lam=distances.lam.map("{:g}".format))
    distances.plot.bar(x="lam", y=["|γ|", "S"], ax=right, color=sns.color_palette("colorblind")[:2], rot=0, width=0.7)
    right.axhline(noise, color="black", linestyle="--", linewidth=1.2, label="chance (5 % level)")
    right.set(xlabel="λ", ylabel="KS distance to λ = 0 (0 to 1)", ylim=(0, 1.05))
    right.grid(axis="x", visible=False)
    right.get_legend().remove()
    for ax, columns in ((left, 2), (right, 1)):
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns, fontsize=10)
    return fig


def threshold_contest(table: pd.DataFrame, labels: dict[str, str]) -> Figure:
    """Accuracy before fine-tuning by rate: `labels` names the columns of `table` that are drawn, accuracies in %."""
    fig, ax = plt.subplots(figsize=(8, 4.2))
    for (column, label), marker in zip(labels.items(), "os^v"):
        ax.plot(100 * table.rate, table[column], marker=marker, label=label, linestyle="-" if column.startswith("m") else "--")
    ax.set(xlabel="rate: share of all filters removed (%)", ylabel="test accuracy, not fine-tuned (%)", ylim=(0, 103))
    ax.legend()
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


def kept_maps(table: pd.DataFrame, measures: dict[str, str]) -> Figure:
    """A panel for each of `measures` (column -> label) over the units: each network in `table` relative to the one before."""
    fig, axes = plt.subplots(1, len(measures), figsize=(12, 4.2))
    for ax, (column, label) in zip(axes, measures.items()):
        sns.lineplot(table, x="unit", y=column, hue="network", style="network", markers=True, dashes=False, ax=ax)
        ax.axhline(1, color="0.3", linewidth=1, zorder=1)
        ax.set(title=label, xlabel="unit", ylabel="× before" if ax is axes[0] else "", xticks=range(0, 15, 2))
        if table[column].max() > 20:
            ax.set_yscale("log")
        ax.get_legend().remove()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
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
    axes[0, 0].set(xlim=(0.9 * least, 104), ylim=(0, 105 * max(1, min(2, table.ratio_high.max()))))
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


def latency_targets(table: pd.DataFrame) -> Figure:
    """What ways of choosing widths lose of the score, and of the accuracy, at a latency; dense and raw are single points.

    `table`: columns chosen_by, ratio, kept_score, accuracy_pct (without fine-tuning).
    """
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharex=True)
    for (name, part), marker in zip(table.sort_values("ratio").groupby("chosen_by"), "osD^X"):
        lost = 100 * (1 - part.kept_score)
        axes[0].plot(100 * part.ratio, lost.clip(lower=1e-4).where(part.chosen_by != "dense"), marker=marker, label=name)
        axes[1].plot(100 * part.ratio, part.accuracy_pct, marker=marker, label=name)
    axes[0].set(ylabel="score lost (% of all)", yscale="log")
    axes[1].set(ylabel="test accuracy, not fine-tuned (%)")
    fig.supxlabel("measured latency (% of dense)", fontsize=12)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, title="widths chosen by")
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
