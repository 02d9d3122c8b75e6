"""Sliders over a trained network: what a rate, a criterion and an alignment remove, and what is left of the accuracy."""

import base64
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape

import ipywidgets as widgets
import numpy as np
from torch import Tensor, nn

from ..blocks import blocks
from ..data.batches import Dataset, to_input
from ..importance import CRITERIA, score
from ..plots import CRITERION_LABELS
from ..pruning import SE_RULES, default_se_rule, keep_masks, layer_collapse_rates, prune, threshold
from ..repair import fold_bias
from ..report.feature_maps import expansion_maps
from ..runs.find_or_train import first_batches
from ..training import evaluate
from .picture import STAGES, Accuracies, Picture, png
from .tables import ALIGNMENTS, cost_tables, network_cost

STYLE = """<style>.mnv3nb-stale {opacity: 0.3}
.mnv3nb-numbers {display: flex; flex-wrap: wrap; gap: 0 2em; line-height: 1.5}</style>"""
SETTLES = "lam", "criterion", "block", "image"  # controls that change what stands still while the rate moves
SETTING = "lam", "criterion", "multiple_of", "squeeze"  # those that, with the rate, decide about accuracies
PAUSE = 0.3  # s after the last move before accuracies are measured


class Explorer(widgets.VBox):
    """Controls, numbers and a picture; a thread adds the accuracies and never holds up a slider.

    `networks`: dense and sparse-trained, by λ, the first one shown first; they are not changed. `image_size`: pixels
    they were trained at. `recorded`: from `recorded_accuracies`, for fine-tuned networks. `times`: for each block
    {width: measured ms}. `images`: test images for the other accuracies. `rate` in %. Needs a running kernel to move.
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
        self.networks, self.data, self.image_size, self.times = networks, dataset, image_size, times
        self.test, self.recorded = (dataset.test_images[:images], dataset.test_labels[:images]), recorded or {}
        model = next(iter(networks.values()))
        self.dense, self.costs = [b.width for b in blocks(model)], {s: cost_tables(model, s) for s in SE_RULES}
        self.scores: dict[tuple, list[Tensor]] = {}
        self.measured: dict[tuple, dict[str, dict[int, float]]] = {}
        self.working, self.drawing = threading.Lock(), threading.RLock()  # one thread works, one draws
        self.settled, self.job, self.picture = None, 0, Picture(self.dense)
        self.controls = make_controls(networks, len(self.dense), len(self.test[0]), rate, default_se_rule(model))
        self.numbers, self.status = widgets.HTML(), widgets.HTML()
        wrapped = {"flex": "1 1 34em", "min_width": "20em", "max_width": "46em"}
        self.views = [widgets.Image(layout=wrapped) for _ in range(4)]
        rows = [widgets.Box([*row], layout={"flex_flow": "row wrap"}) for row in (self.controls.values(), self.views)]
        super().__init__([widgets.HTML(STYLE), rows[0], self.numbers, self.status, rows[1]])
        for control in self.controls.values():
            control.observe(self._move, "value")
        self._settle()
        if os.environ.get("MNV3NB_HEADLESS") == "1":
            self._work(self.job)
        else:
            self._move()

    def _repr_mimebundle_(self, **options) -> dict:
        """Beside the widget a still picture; headless nothing else, since no kernel will move the copy's sliders."""
        bundle = {} if os.environ.get("MNV3NB_HEADLESS") == "1" else super()._repr_mimebundle_(**options)
        return bundle | {"text/plain": "Explorer", "image/png": base64.b64encode(png(self.pixels)).decode()}

    def values(self, *names: str) -> tuple:
        """What the controls of these names are set to."""
        return tuple(self.controls[name].value for name in names)

    def _move(self, _=None) -> None:
        with self._told():
            self.job += 1
            self._draw()
            threading.Thread(target=self._work, args=(self.job,), daemon=True).start()

    def _work(self, job: int) -> None:
        """What takes longer than a slider may wait for; ends when a control is moved again."""
        with self.working, self._told():
            if job == self.job and self.settled != self.values(*SETTLES):
                self._settle()
            deadline = time.monotonic() + PAUSE
            while job == self.job and time.monotonic() < deadline:
                time.sleep(0.02)
            (percent,), setting = self.values("rate"), self.values(*SETTING)
            for rate in sorted({percent, *range(0, 91, 10)}, key=lambda rate: abs(rate - percent)):
                if job != self.job or setting[:2] != self.settled[:2]:
                    return
                known = self.measured.setdefault(setting, {"raw": {}, "folded": {}})
                if rate not in known["folded"]:
                    self._tell("measuring accuracy …")
                    known["raw"][rate], known["folded"][rate] = self._measure(rate, *setting)
                    self._draw()
            if job == self.job:
                self._tell(f"raw and folded accuracy: of {len(self.test[0])} test images; fine-tuned: recorded, of all")

    def _measure(self, percent: int, lam: float, criterion: str, multiple_of: int, squeeze: str) -> list[float]:
        model, masks = self.networks[lam], keep_masks(self.scores[lam, criterion], percent / 100, multiple_of)
        raw = prune(model, masks, squeeze)
        folded = fold_bias(model, raw, masks, self.image_size)
        return [100 * evaluate(network, *self.test, self.image_size) for network in (raw, folded)]

    def _settle(self) -> None:
        lam, criterion, block, image = wanted = self.values(*SETTLES)
        if (lam, criterion) not in self.scores:
            batches = first_batches(self.data, self.image_size)
            self.scores[lam, criterion] = score(self.networks[lam], criterion, batches)
        scores, x = self.scores[lam, criterion], to_input(self.test[0][image][None], self.image_size)
        maps = expansion_maps(self.networks[lam], x)[block][0]
        with self.drawing:
            self.picture.settle(scores, CRITERION_LABELS[criterion], block, maps)
            self.settled, self.collapse = wanted, layer_collapse_rates(scores)
            self._draw()

    def _draw(self) -> None:
        """The picture and the numbers; while they wait for `_settle`, those of other settings are dimmed."""
        with self.drawing:
            if self.settled != self.values(*SETTLES):
                self._tell("computing …", stale=True)
                return
            (percent, k, squeeze), scores = self.values("rate", "multiple_of", "squeeze"), self.scores[self.settled[:2]]
            masks, t = keep_masks(scores, percent / 100, k), threshold(scores, percent / 100)
            setting = self.values(*SETTING)
            known = {stage: dict(self.measured.get(setting, {}).get(stage, {})) for stage in STAGES}
            known["fine-tuned"] = self.recorded.get(setting, {}).get("fine-tuned", {})
            if not self.controls["folding"].value:
                known["folded"] = {}
            self.pixels = self.picture.draw(masks, t, percent, known)
            quarters = [part for row in np.split(self.pixels, 2) for part in np.split(row, 2, axis=1)]
            for view, part in zip(self.views, quarters):
                view.value = png(part)
            accuracies = {f"{stage} accuracy": points.get(percent) for stage, points in known.items()}
            self.numbers.value = self._table([int(mask.sum()) for mask in masks], t, percent, squeeze, accuracies)
            self._tell(self.status.value if self.status.value.startswith("measuring") else "")

    def _table(self, widths: list[int], t: float, percent: int, squeeze: str, accuracies: Mapping) -> str:
        cells = {"filters": f"{sum(widths):,} of {sum(self.dense):,}"}
        for name, table in self.costs[squeeze].items():
            cost, dense = network_cost(table, widths), network_cost(table, self.dense)
            cells[name] = f"{cost:,} ({100 * (cost / dense - 1):+.1f} %)"
        ms = [times.get(width) for times, width in zip(self.times, widths)]
        cells["time of the blocks"] = f"{sum(ms):.2f} ms" if ms and None not in ms else "–"
        later = min(((rate, block) for block, rate in enumerate(self.collapse) if rate > percent / 100), default=None)
        cells["empties next"] = f"block {later[1]} at {100 * later[0]:.1f} %" if later else "–"
        cells["threshold"] = f"{t:.3g}"
        cells |= {name: "–" if value is None else f"{value:.1f} %" for name, value in accuracies.items()}
        return f'<div class="mnv3nb-numbers">{"".join(f"<span>{k} <b>{v}</b></span>" for k, v in cells.items())}</div>'

    def _tell(self, text: str, stale: bool = False) -> None:
        self.status.value = text
        for view in self.views:
            (view.add_class if stale else view.remove_class)("mnv3nb-stale")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """An error or an interrupt is shown where the reader looks, and the picture is dimmed."""
        try:
            yield
        except BaseException as error:
            self._tell(f"<b>{escape(f'{type(error).__name__}: {error}')}. Move a control to try again.</b>", stale=True)


def make_controls(networks: Mapping[float, nn.Module], blocks: int, images: int, rate: int, squeeze: str) -> dict:
    """The explorer's controls by name."""
    lams, criteria = (
        [(f"{lam:g}", lam) for lam in sorted(networks)],
        [(CRITERION_LABELS[name], name) for name in CRITERIA],
    )
    few = " (one trained)" * (len(lams) == 1)
    controls = {
        "rate": widgets.IntSlider(rate, 0, 95, description="rate (%)"),
        "criterion": widgets.Dropdown(options=criteria, description="criterion"),
        "multiple_of": widgets.SelectionSlider(options=ALIGNMENTS, description="multiple of"),
        "lam": widgets.SelectionSlider(
            options=lams, value=next(iter(networks)), description=f"λ{few}", disabled=bool(few)
        ),
        "squeeze": widgets.Dropdown(options=SE_RULES, value=squeeze, description="squeeze"),
        "folding": widgets.Checkbox(True, description="folding"),
        "block": widgets.IntSlider(min(9, blocks - 1), 0, blocks - 1, description="block"),
        "image": widgets.IntSlider(0, 0, images - 1, description="image"),
    }
    for control in controls.values():
        control.layout.width = control.layout.min_width = "21.5em"  # wraps instead of shrinking
        control.style.description_width = "8em"
    controls["rate"].layout.width = "43.5em"
    return controls
