"""What a cut buys in time: latency beside FLOPs and beside accuracy."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .style import LOOKS, PAPER


def latency_against_flops(table: pd.DataFrame, networks: Sequence[str]) -> Figure:
    """Time as a share of the dense network's, by engine, below what FLOPs promise.

    `table`: columns network ("dense" among them), engine, threads, batch, flops, ratio, ratio_low, ratio_high
    (quartiles over rounds, drawn as whiskers). `networks`: which of them are drawn.
    """
    table = table.sort_values(["engine", "threads", "batch"], kind="stable")
    threads = table.threads.map(lambda count: f"{count} thread{'s' * (count > 1)}")
    where = table.engine + ", batch " + table.batch.astype(str) + ", " + threads
    table = table.assign(where=where.where(~table.engine.str.contains("GPU"), table.engine))
    promise = table.drop_duplicates("network").assign(where="FLOPs, as counted by the paper")
    promise["ratio"] = promise.flops / promise.flops[promise.network == "dense"].item()
    table = pd.concat([promise.assign(ratio_low=promise.ratio, ratio_high=promise.ratio), table])
    rows = {name: y for y, name in enumerate(table["where"].unique())}
    fig = Figure(figsize=(10, 1.6 + 0.42 * len(rows)), layout="constrained")
    ax = fig.subplots()
    for i, network in enumerate(networks):
        part, shift = table[table.network == network], 0.14 * (i - (len(networks) - 1) / 2)
        spread = 100 * np.array([part.ratio - part.ratio_low, part.ratio_high - part.ratio]).clip(0)
        ax.errorbar(100 * part.ratio, part["where"].map(rows) + shift, xerr=spread, elinewidth=1, **_look(network))
    ax.axvline(100, color=LOOKS["dense"]["color"], linestyle="--", label="dense")
    ax.axhspan(-0.5, 0.5, color="0.94", zorder=0)
    ax.set(xlabel="share of the dense network (%)", ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticks(list(rows.values()), list(rows))
    fig.legend(loc="outside upper center", ncols=5)
    return fig


def slimmed(shares: Mapping[str, float], widths: pd.DataFrame) -> Figure:
    """What a pruned network has left: each cost as a share of the dense network's, and the width of every block.

    `widths`: columns before and after, channels of each block's expansion.
    """
    fig = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=(1, 1.6))
    bars = left.barh(list(shares), [100 * share for share in shares.values()], color=LOOKS["fine-tuned"]["color"])
    left.bar_label(bars, fmt="%.0f %%", padding=3)
    left.axvline(100, color=LOOKS["dense"]["color"], linestyle="--")
    left.set(xlabel="left of the dense network (%)", xlim=(0, max(115, *(120 * share for share in shares.values()))))
    left.invert_yaxis()
    numbers = range(1, len(widths) + 1)
    right.bar(numbers, widths.before, color="0.85", label="dense")
    right.bar(numbers, widths.after, color=LOOKS["fine-tuned"]["color"], label="pruned")
    right.set(xlabel="block", ylabel="width (channels of the expansion)")
    right.legend()
    return fig


def _look(network: str) -> dict:
    """Of a network by its name: the paper's widths are diamonds, aligned ones are green."""
    entity = next((name for name in ("dense", "unaligned", "aligned") if name in network), "unaligned")
    look = LOOKS[entity] | {"linestyle": "none"}
    if network.startswith("Table 5"):
        look = PAPER | ({"markerfacecolor": LOOKS["aligned"]["color"]} if entity == "aligned" else {})
    return look | {"label": network}
