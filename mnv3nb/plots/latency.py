"""What pruning saves: latency beside the FLOPs, and a summary of one pruned network."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .style import LOOKS, PAPER


def latency_against_flops(table: pd.DataFrame, networks: Sequence[str]) -> Figure:
    """Latency as a share of the dense network's, one row per engine, below the share that FLOPs promise.

    `table`: one row per network and engine, with columns network (one is "dense"), engine, threads, batch, flops, and
    ratio, ratio_low, ratio_high (median and quartiles over rounds; the quartiles are drawn as whiskers).
    `networks`: the networks to draw.
    """
    measured = table.sort_values(["engine", "threads", "batch"], kind="stable")
    measured["setup"] = [_setup_name(row.engine, row.batch, row.threads) for row in measured.itertuples()]
    ratios = pd.concat([_flops_ratios(measured), measured])
    setups = list(ratios["setup"].unique())
    row_of_setup = {setup: y for y, setup in enumerate(setups)}

    fig = Figure(figsize=(10, 1.6 + 0.42 * len(setups)), layout="constrained")
    ax = fig.subplots()
    centre = (len(networks) - 1) / 2
    for i, network in enumerate(networks):
        part = ratios[ratios.network == network]
        y = part["setup"].map(row_of_setup) + 0.14 * (i - centre)  # networks side by side within a row
        whiskers = 100 * np.array([part.ratio - part.ratio_low, part.ratio_high - part.ratio]).clip(0)
        ax.errorbar(100 * part.ratio, y, xerr=whiskers, elinewidth=1, **_network_look(network))
    ax.axvline(100, color=LOOKS["dense"]["color"], linestyle="--", label="dense")
    ax.axhspan(-0.5, 0.5, color="0.94", zorder=0)  # sets the FLOPs, which come first, apart from what was measured
    ax.set(xlabel="share of the dense network (%)", ylim=(len(setups) - 0.5, -0.5))
    ax.set_yticks(range(len(setups)), setups)
    fig.legend(loc="outside upper center", ncols=5)
    return fig


def slimmed(shares: Mapping[str, float], widths: pd.DataFrame) -> Figure:
    """A pruned network beside the dense one: each cost as a share of the dense network's, and the width of every block.

    `shares`: cost -> share, 1 for the dense network. `widths`: columns before and after, channels of each block's
    expansion.
    """
    fig = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=(1, 1.6))

    percent = [100 * share for share in shares.values()]
    bars = left.barh(list(shares), percent, color=LOOKS["fine-tuned"]["color"])
    left.bar_label(bars, fmt="%.0f %%", padding=3)
    left.axvline(100, color=LOOKS["dense"]["color"], linestyle="--")
    room_for_labels = 1.2 * max(percent)
    left.set(xlabel="left of the dense network (%)", xlim=(0, max(115, room_for_labels)))
    left.invert_yaxis()

    numbers = range(1, len(widths) + 1)
    right.bar(numbers, widths.before, color="0.85", label="dense")
    right.bar(numbers, widths.after, color=LOOKS["fine-tuned"]["color"], label="pruned")
    right.set(xlabel="block", ylabel="width (channels of the expansion)")
    right.legend()
    return fig


def _setup_name(engine: str, batch: int, threads: int) -> str:
    if "GPU" in engine:  # CPU threads do not matter there
        return engine
    unit = "thread" if threads == 1 else "threads"
    return f"{engine}, batch {batch}, {threads} {unit}"


def _flops_ratios(measured: pd.DataFrame) -> pd.DataFrame:
    """One row per network, which puts its share of the dense network's FLOPs in the place of a measured ratio."""
    networks = measured.drop_duplicates("network")
    dense_flops = networks.flops[networks.network == "dense"].item()
    ratio = networks.flops / dense_flops
    return networks.assign(setup="FLOPs, as counted by the paper", ratio=ratio, ratio_low=ratio, ratio_high=ratio)


def _network_look(network: str) -> dict:
    """Keyword arguments of errorbar for a network, by its name: Table 5's are diamonds, aligned ones are green."""
    entity = _entity(network)
    if not network.startswith("Table 5"):
        return LOOKS[entity] | {"linestyle": "none", "label": network}
    if entity == "aligned":
        return PAPER | {"markerfacecolor": LOOKS["aligned"]["color"], "label": network}
    return PAPER | {"label": network}


def _entity(network: str) -> str:
    for entity in ("dense", "unaligned", "aligned"):  # in this order: "unaligned" contains "aligned"
        if entity in network:
            return entity
    return "unaligned"
