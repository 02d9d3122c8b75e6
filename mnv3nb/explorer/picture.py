"""The explorer's picture: its artists are kept, so that a moved slider redraws only what moves."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from .. import paper
from ..model import DENSE_WIDTHS
from ..plots.style import LOOKS, PAPER, RATE

STAGES = "raw", "folded", "fine-tuned"
Accuracies = Mapping[str, Mapping[int, float]]  # for each of STAGES {rate in %: accuracy in %}
FADED = 0.12  # of a removed channel's contrast that is left


class Picture:
    """Scores, widths, accuracy over the rate, and feature maps of one network of `dense` widths; `settle`, then `draw`."""

    def __init__(self, dense: Sequence[int]):
        self.figure, numbers = Figure(figsize=(11.6, 6.8), dpi=100, layout="constrained"), range(len(dense))
        self.canvas, above = FigureCanvasAgg(self.figure), {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3}
        scores, widths, accuracy, maps = self.axes = [part.subplots() for part in self.figure.subfigures(2, 2).flat]
        removed, kept = (LOOKS[name]["color"] for name in ("removed", "kept"))
        self.all = scores.stairs([0], [0, 1], fill=True, color=kept, label="kept")
        self.removed = scores.stairs([0], [0, 1], fill=True, color=removed, label="removed")
        self.line = scores.axvline(0, color="black", linestyle="--", label="threshold")
        scores.set_ylabel("filters")
        scores.legend(**above)
        widths.bar(numbers, dense, color=removed)
        self.bars = widths.bar(numbers, dense, color=kept)
        self.texts = [widths.text(i, w, "", ha="center", va="bottom", fontsize=8.5) for i, w in enumerate(dense)]
        after = paper.TABLE_5["after"] if tuple(dense) == DENSE_WIDTHS else []
        self.paper = widths.plot(
            range(len(after)), after, **PAPER | {"label": "paper, CIFAR-10 at 50 %", "markersize": 5}
        )
        self.paper.append(widths.legend(loc="upper left"))
        widths.set(xlabel="block", ylabel="channels (number: kept)", xticks=numbers, ylim=(0, 1.1 * max(dense)))
        self.curves = [accuracy.plot([], [], markersize=5, **LOOKS[stage])[0] for stage in STAGES]
        self.marker = accuracy.axvline(0, color="black", linestyle="--")
        accuracy.set(xlabel=RATE, ylabel="accuracy (%)", xlim=(-2, 97), ylim=(0, 103))
        accuracy.legend(**above)
        self.image = maps.imshow(np.zeros((2, 2, 3)))
        maps.axis("off")
        self.moving = [
            self.removed,
            self.line,
            *self.bars,
            *self.texts,
            *self.paper,
            *self.curves,
            self.marker,
            self.image,
        ]
        for artist in self.moving:
            artist.set_animated(True)

    def settle(self, scores: Sequence[Tensor], label: str, block: int, maps: Tensor) -> None:
        """What a rate does not change: `scores` (width,) per block, and `maps` (width, H, W) of one `block`."""
        self.flat = torch.cat(list(scores)).numpy()
        self.bins, log = score_bins(self.flat)
        self.flat = self.flat.clip(self.bins[0], self.bins[-1])  # what is smaller is shown in the first bin
        counts = np.histogram(self.flat, self.bins)[0]
        self.all.set_data(counts, self.bins)
        self.axes[0].set_xscale("log" if log else "linear")
        self.axes[0].set(xlim=self.bins[[0, -1]], ylim=(0, 1.05 * counts.max()), xlabel=f"score: {label}")
        order = scores[block].argsort(descending=True)
        self.block, self.picks = block, order[torch.linspace(0, len(order) - 1, min(32, len(order))).round().long()]
        maps = maps[self.picks, None]
        low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
        self.maps = (maps - low) / (high - low).clamp_min(1e-6 + 0.02 * float((high - low).max()))
        self.axes[3].set_title(f"maps of block {block}, best score first; removed ones fade", fontsize=11)
        self.background = None

    def draw(self, masks: Sequence[Tensor], threshold: float, percent: int, accuracies: Accuracies) -> np.ndarray:
        """Pixels (H, W, 3) at a rate of `percent`; since the last `settle` only what moves is drawn anew."""
        if self.background is None:
            self.canvas.draw()
            self.background = self.canvas.copy_from_bbox(self.figure.bbox)
        keep = torch.cat(list(masks)).numpy()
        self.removed.set_data(np.histogram(self.flat[~keep], self.bins)[0], self.bins)
        self.line.set_xdata([max(threshold, self.bins[0])] * 2)
        self.marker.set_xdata([percent] * 2)
        for bar, text, mask in zip(self.bars, self.texts, masks):
            bar.set_height(int(mask.sum()))
            text.set_text(f"{mask.sum()}")
        for mark in self.paper:
            mark.set_visible(percent == 50)
        for stage, curve in zip(STAGES, self.curves):
            points = sorted(accuracies[stage].items())
            curve.set_data([rate for rate, _ in points], [value for _, value in points])
        contrast = torch.where(masks[self.block][self.picks], 1.0, FADED)[:, None, None, None]
        tiles = make_grid(1 - contrast * (1 - self.maps), nrow=8, padding=1, pad_value=1).movedim(0, -1).numpy()
        self.image.set(data=tiles, extent=(0, tiles.shape[1], tiles.shape[0], 0))
        self.canvas.restore_region(self.background)
        for artist in self.moving:
            artist.axes.draw_artist(artist)
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


def score_bins(scores: np.ndarray, count: int = 60) -> tuple[np.ndarray, bool]:
    """Edges of `count` bins, and whether they are logarithmic, as for scores (N,) over more than three decades."""
    top, positive = float(scores.max()), scores[scores > 0]
    if len(positive) and top > 1e3 * np.quantile(positive, 0.1):
        return np.geomspace(max(positive.min(), 1e-14 * top), top, count + 1), True
    return np.linspace(0, max(top, 1e-9), count + 1), False


def png(pixels: np.ndarray) -> bytes:
    """`pixels` (H, W, 3) as a PNG file, packed quickly rather than well."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "png", compress_level=1)
    return file.getvalue()
