"""The explorer's picture: its artists are kept, so that a moved slider redraws only what moves."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from .style import LOOKS, PAPER, RATE

STAGES = "raw", "folded", "fine-tuned"
SHOWN = 32  # feature maps
FADED = 0.12  # of a removed channel's contrast that is left


def score_bins(scores: np.ndarray, count: int = 60) -> tuple[np.ndarray, bool]:
    """Edges of `count` bins, and whether they are logarithmic, as for scores (N,) over more than three decades."""
    top, positive = float(scores.max()), scores[scores > 0]
    if len(positive) and top > 1e3 * np.quantile(positive, 0.1):
        return np.geomspace(max(positive.min(), 1e-14 * top), top, count + 1), True
    return np.linspace(0, max(top, 1e-9), count + 1), False


class PruningPicture:
    """Scores and threshold, widths, accuracy over the rate and feature maps of one network of `dense` widths.

    First `settle`, which draws what stands still, then `move`, which draws only what follows the rate. `published`:
    widths of the paper, shown at its rate of 50 %.
    """

    def __init__(self, dense: Sequence[int], published: pd.DataFrame | None = None):
        self.figure = Figure(figsize=(11.6, 6.8), dpi=100, layout="constrained")
        FigureCanvasAgg(self.figure)
        scores, widths, accuracy, maps = self.axes = [part.subplots() for part in self.figure.subfigures(2, 2).flat]
        self.bins, numbers, zeros = np.arange(2.0), range(len(dense)), [0] * len(dense)
        colors = {name: LOOKS[name]["color"] for name in ("removed", "kept")}
        self.all = scores.stairs([0], self.bins, fill=True, color=colors["kept"], label="kept")
        removed = scores.stairs([0], self.bins, fill=True, color=colors["removed"], label="removed")
        line = scores.axvline(0, color="black", linestyle="--", label="threshold")
        scores.set_ylabel("filters")
        scores.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0.2)
        widths.bar(numbers, dense, color=colors["removed"])
        bars = widths.bar(numbers, zeros, color=colors["kept"], animated=True)
        style = {"ha": "center", "va": "bottom", "fontsize": 8.5, "animated": True}
        texts = [widths.text(i, width, "", **style) for i, width in enumerate(dense)]
        after = [] if published is None else published["after"]
        paper = widths.plot(range(len(after)), after, **PAPER | {"label": "paper, CIFAR-10 at 50 %", "markersize": 5})
        paper.append(widths.legend(handles=paper, loc="upper left"))
        widths.set(xlabel="block", ylabel="channels kept", xticks=numbers, ylim=(0, 1.1 * max(dense)))
        curves = [accuracy.plot([], [], markersize=5, **LOOKS[stage])[0] for stage in STAGES]
        marker = accuracy.axvline(0, color="black", linestyle="--")
        accuracy.set(xlabel=RATE, ylabel="accuracy (%)", xlim=(-2, 97), ylim=(0, 103))
        accuracy.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0.2)
        image = maps.imshow(np.zeros((2, 2, 3)), interpolation="nearest")
        self.photo = maps.inset_axes((-0.3, 0.72, 0.26, 0.28))
        for ax in (maps, self.photo):
            ax.axis("off")
        self.removed, self.line, self.bars, self.texts, self.paper = removed, line, bars, texts, paper
        self.curves, self.marker, self.image = curves, marker, image
        self.moving = [removed, line, *bars, *texts, *paper, *curves, marker, image]
        for artist in self.moving:
            artist.set_animated(True)

    def settle(self, scores: Sequence[Tensor], label: str, block: int, maps: Tensor, photo: Tensor) -> None:
        """What a rate leaves: `scores` (width,) per block, their `label`, `maps` (width, H, W) of a `block` and of the
        image `photo` (3, H, W)."""
        flat = torch.cat(list(scores)).numpy()
        self.bins, log = score_bins(flat)
        self.flat = np.clip(flat, self.bins[0], self.bins[-1])  # what is smaller is shown in the first bin
        counts = np.histogram(self.flat, self.bins)[0]
        self.all.set_data(counts, self.bins)
        limits = {"xlim": (self.bins[0], self.bins[-1]), "ylim": (0, 1.05 * counts.max())}
        self.axes[0].set(xscale="log" if log else "linear", xlabel=f"score: {label}", **limits)
        order = scores[block].argsort(descending=True)
        self.block, self.picks = block, order[torch.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().long()]
        maps = maps[self.picks]
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        self.maps = ((maps - low) / (high - low).clamp_min(1e-6 + 0.02 * float((high - low).max())))[:, None]
        self.axes[3].set_title(f"maps of block {block}, best score first; removed ones fade", fontsize=11)
        self.photo.imshow(photo.movedim(0, -1).numpy())
        self.background = None

    def move(self, masks: Sequence[Tensor], threshold: float, percent: int, accuracies: Mapping[str, Mapping]) -> None:
        """What the rate (in %) changes; `accuracies`: for some of STAGES {rate in %: accuracy in %}."""
        keep = torch.cat(list(masks)).numpy()
        self.removed.set_data(np.histogram(self.flat[~keep], self.bins)[0], self.bins)
        self.line.set_xdata([max(threshold, self.bins[0])] * 2)
        self.marker.set_xdata([percent] * 2)
        for bar, text, mask in zip(self.bars, self.texts, masks):
            bar.set_height(width := int(mask.sum()))
            text.set_text(str(width))
        for mark in self.paper:
            mark.set_visible(percent == 50)
        for stage, curve in zip(STAGES, self.curves):
            points = sorted(accuracies.get(stage, {}).items())
            curve.set_data([rate for rate, _ in points], [value for _, value in points])
        contrast = torch.where(masks[self.block][self.picks], 1.0, FADED)[:, None, None, None]
        tiles = make_grid(1 - contrast * (1 - self.maps), nrow=8, padding=1, pad_value=1)
        self.image.set(data=tiles.movedim(0, -1).numpy(), extent=(0, tiles.shape[2], tiles.shape[1], 0))

    def draw(self) -> np.ndarray:
        """Pixels (H, W, 3), uint8; since the last `settle` only what moves is drawn anew."""
        canvas = self.figure.canvas
        if self.background is None:
            canvas.draw()
            self.background = canvas.copy_from_bbox(self.figure.bbox)
        canvas.restore_region(self.background)
        for artist in self.moving:
            artist.axes.draw_artist(artist)
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def quarters(pixels: np.ndarray) -> list[np.ndarray]:
    """The four panels."""
    return [part for row in np.split(pixels, 2) for part in np.split(row, 2, axis=1)]


def png(pixels: np.ndarray) -> bytes:
    """`pixels` as a PNG file, packed quickly rather than well."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "png", compress_level=1)
    return file.getvalue()
