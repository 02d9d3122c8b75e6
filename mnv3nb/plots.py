"""One function a figure, one house style, and one way to save and caption what a notebook shows."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.figure import Figure

from .checkpoint import write_atomically
from .data import default_home
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
    import numpy as np
    import torch

    gammas = {run.config.train.lam: torch.cat(run.gamma).numpy() for run in runs}
    fig = plt.figure(figsize=(10, 6.2))
    top = fig.add_gridspec(2, len(gammas), height_ratios=(1, 1.25))
    colors = sns.color_palette("viridis", len(gammas))
    low, high = min(g.min() for g in gammas.values()), max(g.max() for g in gammas.values())
    panels = []
    for i, (lam, g) in enumerate(gammas.items()):
        ax = fig.add_subplot(top[0, i], sharey=panels[0] if panels else None)
        ax.hist(g, bins=np.linspace(low, high, 50), color=colors[i])
        ax.set(title=f"λ = {lam:g}" + (" (chosen)" if lam == highlight else ""), xlabel="γ", yscale="log")
        ax.tick_params(labelleft=i == 0)
        panels.append(ax)
    panels[0].set_ylabel("filters (log)")
    ax = fig.add_subplot(top[1, :])
    edges = np.logspace(-12, np.log10(max(high, 1)), 100)
    for (lam, g), color in zip(gammas.items(), colors):
        ax.hist(np.clip(np.abs(g), edges[0], None), bins=edges, histtype="step", linewidth=2, color=color, label=f"λ = {lam:g}")
    ax.set(xscale="log", xlabel="|γ| of the expansions (the leftmost bin holds all below it)", ylabel="filters")
    ax.legend(ncols=len(gammas), loc="upper center", bbox_to_anchor=(0.5, 1.18))
    return fig
