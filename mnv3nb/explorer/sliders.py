"""Sliders over a trained network: what a rate, a criterion and an alignment remove, and what accuracy is left."""

import base64
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
from IPython.display import display
from torch import Tensor, nn

from ..blocks import blocks
from ..data.batches import Dataset
from ..importance import CRITERIA
from ..plots import CRITERION_LABELS
from ..pruning import SE_RULES, default_se_rule, keep_masks, layer_collapse_rates, threshold
from .background import Background
from .measurements import Measurements
from .picture import Accuracies, Picture, png
from .tables import ALIGNMENTS, Setting, cost_tables, network_cost

RATES_MEASURED = range(0, 91, 10)  # %, besides the one chosen
PAUSE = 0.3  # seconds after the last move before accuracies are measured
MAP_PIXELS = 8  # feature maps with fewer pixels a side are no pictures
# The numbers stand in columns and the pictures keep their shape, so that nothing jumps while a slider moves.
# The still picture is hidden while this sheet is in the page, and it is there only together with the widget.
STYLE = """<style>
.mnv3nb-stale {opacity: 0.3}
.mnv3nb-numbers {display: grid; grid-template-columns: repeat(auto-fill, minmax(20em, 1fr)); line-height: 1.5}
.mnv3nb-numbers span {white-space: nowrap}
.mnv3nb-view {aspect-ratio: 29 / 17}
.mnv3nb-still {display: none}
</style>"""


class Scene(NamedTuple):
    """All choices that change scores or feature maps, which can take seconds to compute."""

    lam: float  # λ of the network's sparse training
    criterion: str  # one of CRITERIA
    block: int  # number of the block whose maps are shown
    image: int  # number of the test image that they belong to


class Explorer(widgets.VBox):
    """Controls, numbers and a picture of some networks. Accuracies are measured in the background. Needs a kernel.

    `networks`: dense and sparsely trained, by λ; the first is shown first. They are not changed. `image_size`: pixels
    they were trained at. `recorded`: from `recorded_accuracies`, for fine-tuned networks. `times`: for each block
    {width: measured ms}. `images`: number of test images for all other accuracies. `rate`: in %, at the start.
    """

    def __init__(
        self,
        networks: Mapping[float, nn.Module],
        dataset: Dataset,
        image_size: int,
        recorded: Mapping[tuple, Accuracies] | None = None,
        times: Sequence[Mapping[int, float]] = (),
        images: int = 200,
        rate: int = 50,
    ):
        self.headless = is_headless()  # accuracies are measured at once, and errors are raised
        self.recorded = recorded or {}
        self.times = times
        self.measurements = Measurements(networks, dataset, image_size, images)
        first_lam, model = next(iter(networks.items()))
        self.dense_widths = [block.width for block in blocks(model)]
        self.costs = {se_rule: cost_tables(model, se_rule) for se_rule in SE_RULES}
        self.picture = Picture(self.dense_widths)
        self.scene: Scene | None = None  # what the picture shows
        self.drawing = threading.RLock()  # held by whoever draws: a control's callback or the background
        self.background = Background()

        self.controls = make_controls(
            lams=list(networks),
            lam=first_lam,
            rate=rate,
            block_count=len(self.dense_widths),
            block=last_block_with_pictures(self.measurements.maps(first_lam, image=0)),
            image_count=len(self.measurements.test_images),
            se_rule=default_se_rule(model),
        )
        for control in self.controls.values():
            control.observe(self._on_change, "value")
        self.numbers = widgets.HTML(layout={"width": "100%"})
        self.status = widgets.HTML(layout={"min_height": "2.2em"})
        self.views = [make_view() for _ in range(4)]
        wrapping = {"flex_flow": "row wrap"}
        super().__init__(
            [
                widgets.HTML(STYLE),
                widgets.Box(list(self.controls.values()), layout=wrapping),
                self.numbers,
                self.status,
                widgets.Box(self.views, layout=wrapping),
            ]
        )
        self._update_scene()
        if self.headless:
            self._catch_up(threading.Event())
        else:
            self.background.start(self._catch_up)

    def _ipython_display_(self) -> None:
        """Display the widget, and below it a still picture for readers without a kernel.

        A headless run displays the picture alone, since nobody will move its sliders.
        """
        picture = base64.b64encode(png(self.pixels)).decode()
        if is_headless():
            display({"text/plain": "Explorer", "image/png": picture}, raw=True)
            return
        display(self._repr_mimebundle_(), raw=True)
        still = f'<div class="mnv3nb-still"><img alt="the explorer" src="data:image/png;base64,{picture}"></div>'
        display({"text/plain": "Explorer, still picture", "text/html": still}, raw=True)

    def _on_change(self, _change: dict) -> None:
        """Redraw at once what a control can change at once; leave the rest to the background."""
        with self._errors_shown():
            self.background.cancel()
            self._show_status("")
            self._redraw()
            self.background.start(self._catch_up)

    def _catch_up(self, cancelled: threading.Event) -> None:
        """Compute what the picture lacks: first scores and maps, then accuracies, the nearest rates first."""
        with self._errors_shown(cancelled):
            self._update_scene()
            if cancelled.wait(PAUSE):
                return
            setting = self._chosen_setting()
            percent = self.controls["rate"].value
            known = self.measurements.accuracies(setting)["folded"]
            missing = {percent, *RATES_MEASURED} - known.keys()
            for rate in sorted(missing, key=lambda rate: abs(rate - percent)):
                self._show_status("measuring accuracy …")
                self.measurements.measure_accuracies(setting, rate)
                if cancelled.is_set():
                    return
                self._redraw()
            count = len(self.measurements.test_images)
            self._show_status(f"raw and folded accuracy: of {count} test images; fine-tuned: recorded, of all")

    def _update_scene(self) -> None:
        """Bring the picture's scores and maps up to date with the controls."""
        scene = self._chosen_scene()
        if scene == self.scene:
            return
        scores = self.measurements.scores(scene.lam, scene.criterion)
        maps = self.measurements.maps(scene.lam, scene.image)[scene.block]
        with self.drawing:
            image = self.measurements.test_images[scene.image]
            self.picture.set_scene(scores, CRITERION_LABELS[scene.criterion], scene.block, maps, image)
            self.scene = scene
            self._show_status("")
            self._redraw()

    def _redraw(self) -> None:
        """Show picture and numbers at the chosen rate, or dim them while the background computes another scene."""
        with self.drawing:
            if self.scene != self._chosen_scene():
                self._show_status("computing …")
                self._set_dimmed(True)
                return
            setting = self._chosen_setting()
            percent = self.controls["rate"].value
            scores = self.measurements.scores(self.scene.lam, self.scene.criterion)
            masks = keep_masks(scores, percent / 100, setting.multiple_of)
            accuracies = self._known_accuracies(setting)
            self.pixels = self.picture.draw(masks, threshold(scores, percent / 100), percent, accuracies)
            for view, quarter in zip(self.views, cut_into_quarters(self.pixels)):
                view.value = png(quarter)
            widths = [int(mask.sum()) for mask in masks]
            numbers = {
                **self._cost_numbers(widths, setting.squeeze),
                **rate_numbers(scores, percent),
                **accuracy_numbers(accuracies, percent),
            }
            self.numbers.value = numbers_html(numbers)
            self._set_dimmed(False)

    def _chosen_scene(self) -> Scene:
        return Scene(*(self.controls[name].value for name in Scene._fields))

    def _chosen_setting(self) -> Setting:
        return Setting(*(self.controls[name].value for name in Setting._fields))

    def _known_accuracies(self, setting: Setting) -> Accuracies:
        known = self.measurements.accuracies(setting)
        known["fine-tuned"] = self.recorded.get(setting, {}).get("fine-tuned", {})
        if not self.controls["folding"].value:
            known["folded"] = {}
        return known

    def _cost_numbers(self, widths: Sequence[int], se_rule: str) -> dict[str, str]:
        """What the network pruned to `widths` costs."""
        numbers = {"filters": f"{sum(widths):,} of {sum(self.dense_widths):,}"}
        for name, table in self.costs[se_rule].items():
            cost = network_cost(table, widths)
            change = cost / network_cost(table, self.dense_widths) - 1
            numbers[name] = f"{cost:,} ({100 * change:+.1f} %)"
        milliseconds = [times.get(width) for times, width in zip(self.times, widths)]
        measured = bool(milliseconds) and None not in milliseconds
        numbers["time of the blocks"] = f"{sum(milliseconds):.2f} ms" if measured else "–"
        return numbers

    def _show_status(self, text: str) -> None:
        self.status.value = text

    def _set_dimmed(self, dimmed: bool) -> None:
        """Dim numbers and picture while they belong to other choices than the controls show."""
        for part in (self.numbers, *self.views):
            if dimmed:
                part.add_class("mnv3nb-stale")
            else:
                part.remove_class("mnv3nb-stale")

    @contextmanager
    def _errors_shown(self, cancelled: threading.Event | None = None) -> Iterator[None]:
        """Show an error or an interrupt above the picture, where the reader looks, and dim the picture.

        An error of work that was cancelled meanwhile is about choices that are gone, and is not shown.
        """
        try:
            yield
        except BaseException as error:  # interrupting the kernel raises KeyboardInterrupt in a callback
            if self.headless:
                raise  # nobody would see the message, and the notebook must fail
            if cancelled and cancelled.is_set():
                return
            message = escape(f"{type(error).__name__}: {error}")
            self._set_dimmed(True)
            self._show_status(f"<b>{message}. Move a control to try again.</b>")


def make_controls(
    lams: Sequence[float], lam: float, rate: int, block_count: int, block: int, image_count: int, se_rule: str
) -> dict[str, widgets.Widget]:
    """The explorer's controls by name, at the values with which it starts."""
    one_network = len(lams) == 1
    controls = {
        "rate": widgets.IntSlider(rate, 0, 95, description="rate (%)"),
        "criterion": widgets.Dropdown(
            options=[(CRITERION_LABELS[name], name) for name in CRITERIA],
            description="criterion",
        ),
        "multiple_of": widgets.SelectionSlider(options=ALIGNMENTS, description="multiple of"),
        "lam": widgets.SelectionSlider(
            options=[(f"{choice:g}", choice) for choice in sorted(lams)],
            value=lam,
            description="λ (one trained)" if one_network else "λ",
            disabled=one_network,
        ),
        "squeeze": widgets.Dropdown(options=SE_RULES, value=se_rule, description="squeeze"),
        "folding": widgets.Checkbox(True, description="folding"),
        "block": widgets.IntSlider(block, 0, block_count - 1, description="block"),
        "image": widgets.IntSlider(0, 0, image_count - 1, description="image"),
    }
    for control in controls.values():
        control.layout.width = "21.5em"
        control.layout.min_width = "21.5em"  # controls wrap into a new line instead of shrinking
        control.style.description_width = "8em"
    controls["rate"].layout.width = "43.5em"
    return controls


def last_block_with_pictures(maps: Sequence[Tensor]) -> int:
    """The last block whose `maps` (width, H, W) have at least MAP_PIXELS a side; the first block if none has."""
    large = [number for number, of_block in enumerate(maps) if of_block.shape[-1] >= MAP_PIXELS]
    return max(large, default=0)


def make_view() -> widgets.Image:
    """One panel of the picture; four of them stand two by two, or below each other where the page is narrow."""
    view = widgets.Image(layout={"flex": "1 1 34em", "min_width": "20em", "max_width": "46em"})
    view.add_class("mnv3nb-view")
    return view


def cut_into_quarters(pixels: np.ndarray) -> list[np.ndarray]:
    """The upper left, upper right, lower left and lower right quarter of `pixels` (H, W, 3)."""
    upper, lower = np.split(pixels, 2)
    return [*np.split(upper, 2, axis=1), *np.split(lower, 2, axis=1)]


def rate_numbers(scores: Sequence[Tensor], percent: int) -> dict[str, str]:
    """The block that is emptied next as the rate grows beyond `percent`, and the threshold."""
    rate = percent / 100
    ahead = {block: collapse for block, collapse in enumerate(layer_collapse_rates(scores)) if collapse > rate}
    empties_next = "–"
    if ahead:
        block = min(ahead, key=ahead.get)
        empties_next = f"block {block} at {100 * ahead[block]:.1f} %"
    return {"empties next": empties_next, "threshold": f"{threshold(scores, rate):.3g}"}


def accuracy_numbers(accuracies: Accuracies, percent: int) -> dict[str, str]:
    """The accuracy at each stage, a dash where it is not known."""
    numbers = {}
    for stage, points in accuracies.items():
        numbers[f"{stage} accuracy"] = f"{points[percent]:.1f} %" if percent in points else "–"
    return numbers


def numbers_html(numbers: Mapping[str, str]) -> str:
    cells = [f"<span>{name} <b>{value}</b></span>" for name, value in numbers.items()]
    return f'<div class="mnv3nb-numbers">{"".join(cells)}</div>'


def is_headless() -> bool:
    """Whether the notebook runs without a reader, who alone could move a slider."""
    return os.environ.get("MNV3NB_HEADLESS") == "1"
