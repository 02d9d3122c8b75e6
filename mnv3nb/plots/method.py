"""The method in pictures: Figures 4, 5 and 7, Tables 2 and 5."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
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
from .style import LOOKS, PAPER, ROLES

FLOOR = 1e-12  # smaller values are drawn here on logarithmic axes
STEPS = ("Train sparsely", "expand"), ("Rank", "se"), ("Zero and delete", "removed"), ("Fine-tune", "project")


def method_drawing(
    dense: nn.Module,
    pruned: nn.Module,
    rate: float,
    lam: float,
    training: pd.DataFrame,
    tuning: pd.DataFrame,
    folded: float,
) -> Figure:
    """Figure 4: the four steps with the numbers of one example.

    `dense`: sparse-trained at λ = `lam`; `pruned`: the same, cut at `rate`; `training`, `tuning`: histories of `train`;
    `folded`: accuracy, in [0, 1], before fine-tuning with the constants of removed channels folded in.
    """
    gamma, m = (torch.cat(score(dense, name)) for name in ("gamma", "gamma_sparsity"))
    t, (whole, left) = threshold([m], rate), ([b.width for b in blocks(model)] for model in (dense, pruned))
    large, small = (count_parameters(model) / 1e6 for model in (dense, pruned))
    accuracies = [f"{history.test_accuracy.iloc[i]:.1%}" for history, i in ((training, -1), (tuning, 0), (tuning, -1))]
    texts = (
        f"cross-entropy + λ·Σ|γ|\nλ = {lam:g}, epochs: {len(training) - 1}\naccuracy {accuracies[0]}",
        f"m = |γ|·S (Eq. 5)\n{len(m):,} filters of {len(whole)} blocks\nin one order",
        f"m ≤ t = {t:.2g} at {rate:.0%}\n{sum(left):,} filters stay\n{large:.2f} M → {small:.2f} M parameters",
        f"cross-entropy, epochs: {len(tuning) - 1}\n{accuracies[1]} (folded: {folded:.1%})\n→ accuracy {accuracies[2]}",
    )
    fig, ax = canvas(10, 4.5)
    for x, (title, role), text in zip(np.arange(1.3, 10, 2.47), STEPS, texts):
        box(ax, x, 3.55, text, role, (2.2, 0.95), 10.5)
        ax.text(x, 4.13, title, ha="center", va="bottom", fontsize=13, weight="bold")
        if x > 2:
            arrow(ax, (x - 1.37, 3.55), (x - 1.1, 3.55))
    panels = [fig.add_axes((0.075 + 0.247 * i, 0.13, 0.16, 0.48)) for i in range(4)]
    panels[0].hist(gamma.clamp_min(FLOOR), np.geomspace(FLOOR, max(1.0, float(gamma.max())), 40), color="0.45")
    panels[0].set(xscale="log", xlabel="|γ|", ylabel="filters")
    m, share = m.sort().values.clamp_min(FLOOR).numpy(), 100 * np.arange(len(m)) / len(m)
    panels[1].plot(share, m, color="0.25")
    panels[1].fill_between(share, m, FLOOR, where=m <= max(t, FLOOR), color=ROLES["removed"])
    panels[1].set(yscale="log", xlabel="filters, ranked (%)", ylabel="m (orange: removed)")
    panels[2].bar(range(len(whole)), whole, color=LOOKS["removed"]["color"])
    panels[2].bar(range(len(left)), left, color=LOOKS["kept"]["color"])
    panels[2].set(xlabel="block", ylabel="filters (orange: removed)")
    panels[3].plot(tuning.epoch, 100 * tuning.test_accuracy, **LOOKS["fine-tuned"])
    panels[3].plot(0, 100 * folded, **LOOKS["folded"] | {"linestyle": "none", "markersize": 9})
    panels[3].set(xlabel="epoch (plus: folded)", ylabel="test accuracy (%)", ylim=(0, 103))
    for panel in panels:
        panel.tick_params(labelsize=9)
        panel.grid(visible=False)
        panel.xaxis.label.set_size(10)
        panel.yaxis.label.set_size(10)
    return fig


def cut_drawing(before: nn.Module, after: nn.Module, mask: Tensor, block: int, window: tuple = (48, 25)) -> Figure:
    """Figure 5: what goes from one block (orange), and what is left: |weight|, one row per channel of its expansion.

    `after` is `before` pruned; `mask` (width,) says which channels of `block` stay. Drawn are the first `window` rows
    and columns of each layer's weights.
    """
    pair = [blocks(model)[block] for model in (before, after)]
    names = ["1×1 expansion", "depthwise", *["SE squeeze", "SE excite"] * bool(pair[0].hidden), "1×1 projection"]
    (whole, rest), rows = (_matrices(b) for b in pair), mask[: window[0]].cpu().numpy()
    ratios = [max(4, min(weight.shape[1], window[1])) for weight in whole]
    fig = Figure(figsize=(9, 5.6), layout="constrained")
    axes = fig.subplots(2, len(names), width_ratios=ratios, height_ratios=(len(rows), max(8, rows.sum())))
    for (top, bottom), name, old, new in zip(axes.T, names, whole, rest):
        part = old[: window[0], : window[1]]
        columns = (new[: rows.sum(), :, None] == part[rows][:, None]).all(0).any(0)  # SE loses hidden channels as well
        gone = np.where(rows[:, None] & columns, np.nan, 1.0)
        for ax, drawn, full in ((top, part, old), (bottom, part[rows][:, columns], new)):
            ax.imshow(drawn, cmap="Greys", vmin=0, vmax=np.quantile(part, 0.98), aspect="auto", interpolation="nearest")
            ax.set(xticks=[], yticks=[], xlabel="×".join(map(str, full.shape)), xlim=(-0.5, part.shape[1] - 0.5))
        top.imshow(gone, cmap=ListedColormap([ROLES["removed"]]), aspect="auto", interpolation="nearest")
        top.set_title(name, fontsize=11)
    for ax, when, b in zip(axes[:, 0], ("before", "after"), pair):
        ax.set_ylabel(f"{when}: {b.width} channels")
    return fig


def _matrices(b: Block) -> list[np.ndarray]:
    """|weights| of a block's layers, each (channels of the expansion, the rest)."""
    se = [b.squeeze.weight.movedim(0, 1), b.excite.weight] if b.hidden else []
    weights = [b.expand.weight, b.depthwise.weight, *se, b.project.weight.movedim(0, 1)]
    return [w.detach().cpu().flatten(1).abs().numpy() for w in weights]


def gamma_sparsity_importance(gamma: Sequence[Tensor], sparsity: Sequence[Tensor]) -> Figure:
    """Figure 7: |γ|, S and m = |γ|·S of all filters, above their spread within each block.

    |γ| and m are on a logarithmic scale; what lies below FLOOR (m is 0 where S is) is drawn on it.
    """
    fig = Figure(figsize=(10, 6.4), layout="constrained")
    axes = fig.subplots(2, 3, sharex="col", height_ratios=(1, 2))
    columns = (
        ("|γ|", [g.abs() for g in gamma]),
        ("S", sparsity),
        ("m = |γ|·S", [g.abs() * s for g, s in zip(gamma, sparsity)]),
    )
    for (top, bottom), (name, layers), color in zip(axes.T, columns, ("#0072b2", "#e69f00", "#009e73")):
        log = name != "S"
        layers = [layer.clamp_min(FLOOR if log else 0).numpy() for layer in layers]
        pooled = np.concatenate(layers)
        bins = np.geomspace(pooled.min() / 1.5, pooled.max() * 1.5, 60) if log else np.linspace(0, 1, 60)
        top.hist(pooled, bins=bins, color=color, histtype="stepfilled")
        style = {"boxprops": {"facecolor": color, "alpha": 0.6}, "medianprops": {"color": "black"}, "widths": 0.65}
        style |= {"whis": (5, 95), "patch_artist": True, "showfliers": False, "orientation": "horizontal"}
        bottom.boxplot(layers, positions=range(len(layers)), **style)
        bottom.set(xlabel=name, ylim=(len(layers) - 0.4, -0.6), xscale="log" if log else "linear")
    axes[0, 0].set_ylabel("filters")
    axes[1, 0].set_ylabel("block (box: quartiles, whiskers: 5-95 %)")
    return fig


def widths_chart(
    widths: Sequence[int], dense: Sequence[int] = DENSE_WIDTHS, published: pd.DataFrame | None = paper.TABLE_5
) -> Figure:
    """Table 5: share of each block's filters that is left, with the widths; the paper's shares as marks."""
    fig = Figure(figsize=(10, 4.4), layout="constrained")
    ax, numbers = fig.subplots(), range(len(dense))
    ax.bar(numbers, 100 * np.divide(widths, dense), color=LOOKS["kept"]["color"], label="ours", zorder=2)
    if published is not None:
        ax.plot(numbers, 100 * published["after"] / published["before"], **PAPER | {"label": "paper, CIFAR-10"})
        ax.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    ax.set(xlabel="block, its dense width → the width that is left", ylabel="filters left (%)", ylim=(0, 105))
    ax.set_xticks(numbers, [f"{i}\n{old}\n→ {new}" for i, old, new in zip(numbers, dense, widths)], fontsize=11)
    ax.grid(axis="x", visible=False)
    return fig
