"""One house style, one way to save and caption what a notebook shows, and the paper's own figures, a function each."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import display
from matplotlib.figure import Figure

from . import paper
from .checkpoint import write_atomically
from .data import default_home
from .evidence import shape_costs
from .model import DENSE_WIDTHS
from .report import interval
from .store import Run

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


def save_table(table: pd.DataFrame, name: str, profile: str, runs: Iterable[Run] = (), digits: int | None = None) -> None:
    """Show `table` with the runs it is made from under it; write figures/<profile>/<name>.csv, the same bytes each time.

    `digits`: decimals shown; None: four significant digits.
    """
    path = default_home() / "figures" / profile / f"{name}.csv"
    with write_atomically(path) as file:
        table.to_csv(file, index=table.index.name is not None, float_format="%.6g", lineterminator="\n")
    style = {"precision": digits} if digits is not None else {"formatter": lambda x: f"{x:.4g}" if isinstance(x, float) else x}
    display(table.style.format(**style, na_rep="–").hide(axis="index") if table.index.name is None else table)
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


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of independent `values` and half the width of its 95 % interval (Student's t); nan for one value."""
    low, high = interval(values)
    return float(np.mean(values)), float(high - low) / 2


def cost_table(runs: Iterable[Run], num_classes: int = 10) -> pd.DataFrame:
    """The columns of Tables 3, 4 and 6, one row a pruned run: accuracies in %, FLOPs at the paper's 224 pixels."""
    rows, dense = [], shape_costs(num_classes)
    for run in runs:
        prune, costs = run.config.prune, shape_costs(num_classes, tuple(run.result["widths"]), tuple(run.result["squeeze"]))
        rows.append({
            "rate": prune.rate, "criterion": prune.criterion, "seed": run.config.parent.train.seed,
            "tuning_seed": run.config.train.seed, "accuracy_before_pct": 100 * run.result["accuracy_before"],
            "accuracy_pct": 100 * run.accuracy, "parameters_m": costs[0] / 1e6, "flops_m": costs[1] / 1e6,
            "fewer_parameters_pct": 100 * (1 - costs[0] / dense[0]), "fewer_flops_pct": 100 * (1 - costs[1] / dense[1]),
        })  # fmt: skip
    return pd.DataFrame(rows)


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


def rate_curve(
    table: pd.DataFrame, published: pd.DataFrame, lines: dict[str, float], images: int, collapse: float | None = None,
    judges: bool = False,
) -> Figure:  # fmt: skip
    """Tables 3 and 6: accuracy after and before fine-tuning and what is left of the costs, against the pruning rate.

    `table`: `cost_table`'s columns; several seeds become means with 95 % intervals, one seed has the standard error of an
    accuracy on so many test `images`. `lines`: accuracies in % to compare with, by name. `collapse`: the rate at which a
    unit has lost all its filters. `published`: Table 3 or 6; its accuracies of pruned networks are drawn only if `judges`.
    """
    fig, axes = plt.subplot_mosaic([["after", "after"], ["both", "cost"]], figsize=(9, 6.8), height_ratios=(1.15, 1))
    groups, colors = table.groupby("rate"), sns.color_palette()
    rates = 100 * np.array(list(groups.groups))
    for column, label, color, style in (
        ("accuracy_pct", "fine-tuned", colors[0], "o-"), ("accuracy_before_pct", "before fine-tuning", colors[1], "s--"),
    ):  # fmt: skip
        mean, half = np.array([mean_interval(values) for _, values in groups[column]]).T
        half = np.where(np.isnan(half), (mean * (100 - mean) / images) ** 0.5, half)
        for name in ("after", "both") if column == "accuracy_pct" else ("both",):
            axes[name].errorbar(rates, mean, half, fmt=style, color=color, capsize=3, label=label, zorder=3)
    for (name, value), color, style, width in zip(lines.items(), colors[2:], (":", "--", "-."), (4, 2.5, 1.5)):
        axes["after"].axhline(value, color=color, linestyle=style, linewidth=width, label=name)
    if judges:
        pruned = published[published["rate"] > 0]  # its unpruned network is another one in each table
        axes["after"].plot(100 * pruned["rate"], pruned["accuracy_pct"], **PAPER_STYLE, label="paper")
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
    bars = "95 % interval over the seeds" if groups.size().max() > 1 else "one standard error of the test set"
    axes["after"].set(ylabel="test accuracy (%)", title=f"after fine-tuning (bars: {bars})")
    axes["both"].set(ylabel="test accuracy (%)", ylim=(0, 103), title="before and after")
    axes["cost"].set(ylabel="left of dense (%)", ylim=(0, 103), title="costs")
    fig.legend(*axes["after"].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=10)
    for name in ("both", "cost"):
        axes[name].legend(fontsize=10, loc="best")
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
            ticks = [x for x in (1, 3, 10, 20, 40, 70, 90, 95, 98, 99, 99.7) if 0.7 * low < x < high + 1]
            ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
        ax.set(title=title)
    fig.supxlabel("test accuracy (%, log-odds scale)", fontsize=12)
    for (name, value), style, color in zip(lines.items(), ("--", ":"), sns.color_palette()[2:]):
        axes[0].axvline(value, linestyle=style, color=color, label=name)
    axes[0].set_yticks(range(len(order)), order)
    fig.legend(loc="outside upper center", ncols=3, fontsize=10)
    return fig


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
                    gone = {"facecolor": "#fbe0cc", "hatch": "///"} if np.isnan(tile).all() else {"fill": False}
                    ax.add_patch(plt.Rectangle((x - 0.5, y - 0.5), size, size, edgecolor="C1", linewidth=1.6, **gone))
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


def _on_dense(maps, mask):
    """Maps of the kept channels at their places among all channels, NaN where a channel went."""
    out = np.full((len(mask), *maps.shape[1:]), np.nan)
    out[mask if len(maps) == mask.sum() else slice(None)] = maps
    return out
