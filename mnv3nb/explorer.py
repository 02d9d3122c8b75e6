"""Sliders over a trained network: what a rate, a criterion and an alignment remove, and what is left of the accuracy."""

import io
from collections.abc import Sequence
from functools import lru_cache

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from .blocks import blocks
from .complexity import count_flops, count_parameters
from .data import Dataset, to_input
from .importance import CRITERIA, score
from .plots import CRITERION_LABELS, LOOKS
from .pruning import keep_masks, prune, threshold
from .training import evaluate

ALIGNMENTS = (1, 2, 4, 8, 16)


def explore(model: nn.Module, dataset: Dataset, image_size: int, rate: float = 0.5, images: int = 500) -> widgets.VBox:
    """Sliders for rate, criterion and alignment over `pruning_view`; a button measures the accuracy before fine-tuning.

    `model`: dense and sparse-trained, it is not changed; `image_size`: pixels it was trained at; `rate`: where the slider
    starts; `images`: how many of the test images the button uses. Needs a running kernel to move, none to be built.
    """

    @lru_cache
    def scores_of(criterion: str) -> list[Tensor]:
        parts = zip(dataset.train_images[:512].split(64), dataset.train_labels[:512].split(64))
        return score(model, criterion, [(to_input(x, image_size), y) for x, y in parts])

    def cut() -> tuple[list[Tensor], nn.Module]:
        masks = keep_masks(scores_of(criterion.value), round(rate.value, 2), multiple_of.value)
        return masks, prune(model, masks)

    def draw(_=None) -> None:
        answer.value = ""  # an accuracy never stands beside other settings than its own
        masks, small = cut()
        fig = pruning_view(model, small, scores_of(criterion.value), masks, round(rate.value, 2), criterion.value)
        png = io.BytesIO()
        fig.savefig(png, format="png")
        view.value = png.getvalue()  # an Image, not an Output: capturing outputs can hang a headless run

    def measure(_) -> None:
        answer.value = "measuring …"
        test = dataset.test_images[:images], dataset.test_labels[:images]
        before, after = (evaluate(network, *test, image_size) for network in (model, cut()[1]))
        answer.value = f"<b>{after:.1%}</b> before fine-tuning (dense: {before:.1%}), on {len(test[0])} test images"

    rate = widgets.FloatSlider(
        rate, min=0, max=0.95, step=0.01, readout_format=".0%", description="rate", continuous_update=False
    )
    criterion = widgets.Dropdown(options=[(CRITERION_LABELS[name], name) for name in CRITERIA], description="criterion")
    multiple_of = widgets.SelectionSlider(options=ALIGNMENTS, description="multiple of", continuous_update=False)
    button, answer = widgets.Button(description="measure accuracy", layout={"width": "11em"}), widgets.HTML()
    button.on_click(measure)
    view = widgets.Image(format="png", layout={"max_width": "100%"})
    for control in (rate, criterion, multiple_of):
        control.observe(draw, "value")
    draw()
    return widgets.VBox([widgets.HBox([rate, criterion, multiple_of]), widgets.HBox([button, answer]), view])


def pruning_view(
    dense: nn.Module, small: nn.Module, scores: Sequence[Tensor], masks: Sequence[Tensor], rate: float, criterion: str
) -> Figure:
    """Scores with the global threshold, widths before and after, and above them the parameters and the paper's FLOPs."""
    flat, keep, t = torch.cat(list(scores)).numpy(), torch.cat(list(masks)).numpy(), threshold(scores, rate)
    removed, kept = (LOOKS[entity]["color"] for entity in ("removed", "kept"))
    fig = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=[1, 1.4])
    top, positive = flat.max(), flat[flat > 0]
    log = len(positive) > 0 and top > 1e3 * np.quantile(positive, 0.1)
    floor = max(positive.min(), 1e-14 * top) if log else flat.min()  # what is smaller is shown in the first bin
    bins = np.geomspace(floor, top, 60) if log else np.linspace(floor, max(top, floor + 1e-9), 60)
    parts = [np.clip(flat[chosen], bins[0], top) for chosen in (~keep, keep)]
    labels = [f"{(~keep).sum():,} removed", f"{keep.sum():,} kept"]
    left.hist(parts, bins, stacked=True, color=[removed, kept], label=labels)
    left.axvline(max(t, bins[0]), color="black", linestyle="--", label=f"threshold {t:.3g}")
    left.set(xlabel=CRITERION_LABELS[criterion], ylabel="filters", xscale="log" if log else "linear")
    left.legend(loc="lower left", bbox_to_anchor=(-0.1, 1), ncols=3, columnspacing=1, handlelength=1.2)
    widths = [[b.width for b in blocks(model)] for model in (dense, small)]
    numbers = range(len(widths[0]))
    right.bar(numbers, widths[0], color=removed)
    right.bar(numbers, widths[1], color=kept)
    right.set_xticks(numbers, [f"{i}\n{width}" for i, width in zip(numbers, widths[1])])
    right.set(xlabel="block, and the channels that it keeps", ylabel="channels of the expansion")
    costs = (
        (name, count(dense), count(small)) for name, count in (("parameters", count_parameters), ("FLOPs", count_flops))
    )
    fig.suptitle(
        " · ".join(f"{a / 1e6:.2f} → {b / 1e6:.2f} M {name} ({100 * (b / a - 1):+.1f} %)" for name, a, b in costs)
    )
    return fig
