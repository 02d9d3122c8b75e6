"""The explorer's picture. Its artists are kept, so that a moved slider redraws only what moves."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from .. import paper
from ..model import DENSE_WIDTHS
from ..plots.style import LOOKS, PAPER, RATE, STAGES

FADED = 0.12  # share of its contrast that a removed channel's map retains
MAPS_SHOWN = 32
LEGEND_ABOVE = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3}

# Left, bottom, width and height in shares of the figure. They are fixed, so that nothing jumps when a label changes.
# Each panel lies within its quarter of the figure, since the explorer shows the quarters as images of their own.
PLACES = {
    "scores": (0.064, 0.592, 0.425, 0.352),
    "widths": (0.574, 0.592, 0.418, 0.352),
    "accuracy": (0.064, 0.092, 0.425, 0.352),
    "image": (0.510, 0.140, 0.090, 0.200),
    "maps": (0.612, 0.015, 0.384, 0.430),
}

Accuracies = Mapping[str, Mapping[int, float]]  # {stage: {rate in %: accuracy in %}}


class Picture:
    """Panels about one network with blocks of `dense_widths`: scores, widths, accuracy over the rate, feature maps.

    Call `set_scene` first, and again when anything but the rate has changed what is shown; then `draw`.
    """

    def __init__(self, dense_widths: Sequence[int]):
        # The place holder keeps the style's constrained layout away, which would move the panels.
        self.figure = Figure(figsize=(11.6, 6.8), dpi=100, layout=PlaceHolderLayoutEngine(True, True))
        self.canvas = FigureCanvasAgg(self.figure)
        self.score_panel = ScorePanel(self.figure.add_axes(PLACES["scores"]))
        self.width_panel = WidthPanel(self.figure.add_axes(PLACES["widths"]), dense_widths)
        self.accuracy_panel = AccuracyPanel(self.figure.add_axes(PLACES["accuracy"]))
        self.map_panel = MapPanel(self.figure.add_axes(PLACES["image"]), self.figure.add_axes(PLACES["maps"]))
        panels = (self.score_panel, self.width_panel, self.accuracy_panel, self.map_panel)
        self.moving = [artist for panel in panels for artist in panel.moving]
        for artist in self.moving:
            artist.set_animated(True)  # the canvas leaves it out of the backdrop
        self.backdrop = None

    def set_scene(self, scores: Sequence[Tensor], label: str, number: int, maps: Tensor, image: Tensor) -> None:
        """Set what stays the same while the rate moves.

        `scores`: one tensor (width,) per block. `label`: what they are. `maps`: (width, H, W) of block `number`, for
        `image` (3, H, W), uint8.
        """
        self.score_panel.set_scores(torch.cat(list(scores)).numpy(), label)
        self.map_panel.set_maps(maps, scores[number], number, image)
        self.backdrop = None

    def draw(self, masks: Sequence[Tensor], threshold: float, percent: int, accuracies: Accuracies) -> np.ndarray:
        """Pixels (H, W, 3) of the picture at a rate of `percent`; only what moves is redrawn."""
        if self.backdrop is None:
            self.canvas.draw()
            self.backdrop = self.canvas.copy_from_bbox(self.figure.bbox)
        self.score_panel.show_cut(torch.cat(list(masks)).numpy(), threshold)
        self.width_panel.show_cut(masks, percent)
        self.accuracy_panel.show(accuracies, percent)
        self.map_panel.show_cut(masks[self.map_panel.number])
        self.canvas.restore_region(self.backdrop)
        for artist in self.moving:
            artist.axes.draw_artist(artist)
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


class ScorePanel:
    """Histogram of all scores, the removed ones in another colour, with the threshold."""

    def __init__(self, ax: Axes):
        self.ax = ax
        self.all = ax.stairs([0], [0, 1], fill=True, color=LOOKS["kept"]["color"], label="kept")
        self.removed = ax.stairs([0], [0, 1], fill=True, color=LOOKS["removed"]["color"], label="removed")
        self.threshold = ax.axvline(0, color="black", linestyle="--", label="threshold")
        self.moving = [self.removed, self.threshold]
        ax.set_ylabel("filters")
        ax.legend(**LEGEND_ABOVE)

    def set_scores(self, scores: np.ndarray, label: str) -> None:
        self.edges, logarithmic = score_bins(scores)
        self.values = scores.clip(self.edges[0], self.edges[-1])  # smaller ones are shown in the first bin
        counts = np.histogram(self.values, self.edges)[0]
        self.all.set_data(counts, self.edges)
        self.ax.set_xscale("log" if logarithmic else "linear")
        self.ax.set(xlim=(self.edges[0], self.edges[-1]), ylim=(0, 1.05 * counts.max()), xlabel=f"score: {label}")

    def show_cut(self, keep: np.ndarray, threshold: float) -> None:
        removed_counts = np.histogram(self.values[~keep], self.edges)[0]
        self.removed.set_data(removed_counts, self.edges)
        x = max(threshold, self.edges[0])
        self.threshold.set_xdata([x, x])


class WidthPanel:
    """The width of each block before and after pruning; at 50 %, the paper's widths as well."""

    def __init__(self, ax: Axes, dense_widths: Sequence[int]):
        numbers = range(len(dense_widths))
        ax.bar(numbers, dense_widths, color=LOOKS["removed"]["color"])
        self.bars = ax.bar(numbers, dense_widths, color=LOOKS["kept"]["color"])
        self.texts = [
            ax.text(number, width, "", ha="center", va="bottom", fontsize=8.5)
            for number, width in zip(numbers, dense_widths)
        ]
        self.paper = []
        if tuple(dense_widths) == DENSE_WIDTHS:
            look = PAPER | {"label": "paper, CIFAR-10 at 50 %", "markersize": 5}
            self.paper += ax.plot(numbers, paper.TABLE_5["after"], **look)
            self.paper.append(ax.legend(loc="upper left"))
        self.moving = [*self.bars, *self.texts, *self.paper]
        ax.set(xlabel="block", ylabel="channels (number: kept)", xticks=numbers, ylim=(0, 1.1 * max(dense_widths)))

    def show_cut(self, masks: Sequence[Tensor], percent: int) -> None:
        for bar, text, mask in zip(self.bars, self.texts, masks):
            width = int(mask.sum())
            bar.set_height(width)
            text.set_text(f"{width}")
        for artist in self.paper:
            artist.set_visible(percent == 50)


class AccuracyPanel:
    """Accuracy over the rate at each of STAGES, as far as it is known."""

    def __init__(self, ax: Axes):
        self.curves = {stage: ax.plot([], [], markersize=5, **LOOKS[stage])[0] for stage in STAGES}
        self.rate = ax.axvline(0, color="black", linestyle="--")
        self.moving = [*self.curves.values(), self.rate]
        ax.set(xlabel=RATE, ylabel="accuracy (%)", xlim=(-2, 97), ylim=(0, 103))
        ax.legend(**LEGEND_ABOVE)

    def show(self, accuracies: Accuracies, percent: int) -> None:
        for stage, curve in self.curves.items():
            points = accuracies[stage]
            rates = sorted(points)
            curve.set_data(rates, [points[rate] for rate in rates])
        self.rate.set_xdata([percent, percent])


class MapPanel:
    """An input image, and beside it one block's feature maps from the best score to the worst.

    The maps of removed channels fade.
    """

    def __init__(self, image_ax: Axes, maps_ax: Axes):
        self.maps_ax = maps_ax
        self.image = image_ax.imshow(np.zeros((2, 2, 3)))
        self.tiles = maps_ax.imshow(np.zeros((2, 2, 3)))
        self.moving = [self.tiles]
        image_ax.axis("off")
        image_ax.set_title("input image", fontsize=11)
        maps_ax.axis("off")

    def set_maps(self, maps: Tensor, scores: Tensor, number: int, image: Tensor) -> None:
        order = scores.argsort(descending=True)
        places = torch.linspace(0, len(order) - 1, min(MAPS_SHOWN, len(order))).round().long()
        self.channels = order[places]
        self.number = number
        shown = maps[self.channels, None]  # (channels, 1, H, W)
        low = shown.amin((2, 3), keepdim=True)
        high = shown.amax((2, 3), keepdim=True)
        # A nearly constant map stays nearly constant: its range counts as at least 2 % of the largest.
        least_range = 1e-6 + 0.02 * float((high - low).max())
        self.brightness = (shown - low) / (high - low).clamp_min(least_range)
        self.maps_ax.set_title(f"maps of block {number}, best score first; removed ones fade", fontsize=11)
        _set_pixels(self.image, image)
        self.show_cut(torch.ones(len(scores), dtype=torch.bool))  # the backdrop needs the size of the tiles

    def show_cut(self, mask: Tensor) -> None:
        """Fade the maps of channels that `mask` (width,) of the block removes."""
        contrast = torch.where(mask[self.channels], 1.0, FADED)[:, None, None, None]
        faded = 1 - contrast * (1 - self.brightness)  # towards white
        _set_pixels(self.tiles, make_grid(faded, nrow=8, padding=1, pad_value=1))


def _set_pixels(artist: AxesImage, pixels: Tensor) -> None:
    """Show `pixels` (3, H, W) in an image that may have had another size."""
    _, height, width = pixels.shape
    artist.set(data=pixels.movedim(0, -1).numpy(), extent=(0, width, height, 0))


def score_bins(scores: np.ndarray, count: int = 60) -> tuple[np.ndarray, bool]:
    """Edges of `count` bins for scores (N,), and whether they are logarithmic: for scores over more than three decades."""
    highest = float(scores.max())
    positive = scores[scores > 0]
    if len(positive) and highest > 1e3 * np.quantile(positive, 0.1):
        lowest = max(positive.min(), 1e-14 * highest)
        return np.geomspace(lowest, highest, count + 1), True
    return np.linspace(0, max(highest, 1e-9), count + 1), False


def png(pixels: np.ndarray) -> bytes:
    """`pixels` (H, W, 3) as a PNG file, compressed for speed rather than size."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "png", compress_level=1)
    return file.getvalue()
