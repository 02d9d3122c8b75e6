"""Sliders over a trained network: what a rate, a criterion and an alignment remove, and what is left of the accuracy."""

import base64
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape

import ipywidgets as widgets
from torch import Tensor, nn

from . import paper
from .blocks import blocks
from .data import Dataset, to_input
from .deployment.bias import fold_bias
from .deployment.widths import squeeze_rule
from .experiments.store import Run
from .importance import CRITERIA, score
from .model import DENSE_WIDTHS
from .plots import CRITERION_LABELS
from .plots.picture import STAGES, PruningPicture, png, quarters
from .pruning import SQUEEZES, keep_masks, layer_collapse_rates, prune, threshold
from .report.cuts import ALIGNMENTS, accuracies_by_rate, cost_model, next_to_empty
from .report.measures import expansion_maps
from .training import evaluate

STYLE = """<style>.mnv3nb-stale {opacity: 0.3} .mnv3nb-numbers {display: flex; flex-wrap: wrap; gap: 0 2em}
.mnv3nb-error {color: #d55e00}</style>"""
SETTLES = "lam", "criterion", "block", "image"
SETTING = "lam", "criterion", "multiple_of", "squeeze"
PAUSE = 0.3  # s after the last move before accuracies are measured


class Explorer(widgets.VBox):
    """Controls over a `PruningPicture` and its numbers; a thread adds the accuracies and never holds up a slider.

    `networks`: dense and sparse-trained, by λ, the first one shown first; they are not changed. `image_size`: pixels
    they were trained at; `rate` in %; `runs`: finished ones, for fine-tuned accuracies; `times`: for each block
    {width: measured ms}; `images`: test images for the other accuracies. Needs a running kernel to move.
    """

    def __init__(
        self,
        networks: Mapping[float, nn.Module],
        dataset: Dataset,
        image_size: int,
        rate: int = 50,
        runs: Iterable[Run] = (),
        times: Sequence[Mapping[int, float]] = (),
        images: int = 200,
    ):
        self.networks, self.data, self.image_size, self.times = networks, dataset, image_size, times
        self.test = dataset.test_images[:images], dataset.test_labels[:images]
        model = next(iter(networks.values()))
        self.dense, self.costs = [block.width for block in blocks(model)], cost_model(model)
        self.picture = PruningPicture(self.dense, paper.TABLE_5 if tuple(self.dense) == DENSE_WIDTHS else None)
        self.tuned, self.measured = accuracies_by_rate(runs), {}
        self.scores: dict[tuple, list[Tensor]] = {}
        self.working, self.drawing = threading.Lock(), threading.RLock()  # one thread works; one draws
        self.settled, self.job = None, 0
        self.controls = _controls(networks, len(self.dense), len(self.test[0]), rate, squeeze_rule(model))
        self.numbers, self.status = widgets.HTML(), widgets.HTML()
        wraps = {"flex": "1 1 24em", "min_width": "20em", "max_width": "44em"}
        self.views = [widgets.Image(layout=wraps) for _ in range(4)]
        rows = [
            widgets.Box(list(part), layout={"flex_flow": "row wrap"}) for part in (self.controls.values(), self.views)
        ]
        super().__init__([widgets.HTML(STYLE), rows[0], self.numbers, self.status, rows[1]])
        for control in self.controls.values():
            control.observe(self._move, "value")
        self._settle()
        if os.environ.get("MNV3NB_HEADLESS") == "1":
            self._work(self.job)
        else:
            self._move()

    def _repr_mimebundle_(self, **options) -> dict:
        """With a still picture; headless with nothing else, since no kernel will move the copy's sliders."""
        bundle = {} if os.environ.get("MNV3NB_HEADLESS") == "1" else super()._repr_mimebundle_(**options)
        return bundle | {"image/png": base64.b64encode(png(self.still)).decode(), "text/plain": "the explorer"}

    def values(self, *names: str) -> tuple:
        """What the controls of these names are set to."""
        return tuple(self.controls[name].value for name in names)

    def _move(self, _=None) -> None:
        with self._told():
            self.job += 1
            if self.settled == self.values(*SETTLES):
                self._draw()
            else:
                self._tell("computing …", stale=True)
            threading.Thread(target=self._work, args=(self.job,), daemon=True).start()

    def _work(self, job: int) -> None:
        """What takes longer than a slider may wait for; ends when a control is moved again."""
        with self.working, self._told():
            if self.settled != self.values(*SETTLES) and job == self.job:
                self._settle()
            deadline = time.monotonic() + PAUSE
            while job == self.job and time.monotonic() < deadline:
                time.sleep(0.02)
            (percent,), setting = self.values("rate"), self.values(*SETTING)
            for at in sorted({percent, *range(0, 91, 10)}, key=lambda at: abs(at - percent)):
                if job != self.job:
                    return
                known = self.measured.setdefault(setting, {"raw": {}, "folded": {}})
                if at not in known["folded"]:
                    self._tell("measuring accuracy …")
                    known["raw"][at], known["folded"][at] = self._measure(at, *setting)
                    self._draw()
            self._tell(f"raw and folded accuracy: of {len(self.test[0])} test images; fine-tuned: recorded, of all")

    def _settle(self) -> None:
        """Scores and feature maps of a network, for what stands still while the rate moves."""
        lam, criterion, block, image = wanted = self.values(*SETTLES)
        if (lam, criterion) not in self.scores:
            parts = zip(self.data.train_images[:512].split(64), self.data.train_labels[:512].split(64))
            batches = ((to_input(x, self.image_size), y) for x, y in parts)
            self.scores[lam, criterion] = score(self.networks[lam], criterion, batches)
        scores, picture = self.scores[lam, criterion], self.test[0][image]
        maps = expansion_maps(self.networks[lam], to_input(picture[None], self.image_size))[block][0]
        with self.drawing:
            self.picture.settle(scores, CRITERION_LABELS[criterion], block, maps, picture)
            self.settled, self.collapse = wanted, layer_collapse_rates(scores)
            self._draw()

    def _draw(self) -> None:
        with self.drawing:
            (percent, k), scores = self.values("rate", "multiple_of"), self.scores[self.settled[:2]]
            masks, t = keep_masks(scores, percent / 100, k), threshold(scores, percent / 100)
            accuracies = self._accuracies()
            self.picture.move(masks, t, percent, accuracies)
            self.still = self.picture.draw()
            for view, part in zip(self.views, quarters(self.still)):
                view.value = png(part)
            self.numbers.value = self._table([int(mask.sum()) for mask in masks], t, percent, accuracies)
            self._tell(self.status.value if self.status.value.startswith("measuring") else "")

    def _measure(self, percent: int, lam: float, criterion: str, k: int, squeeze: str) -> list[float]:
        """Accuracy in %, raw and folded."""
        model, masks = self.networks[lam], keep_masks(self.scores[lam, criterion], percent / 100, k)
        raw = prune(model, masks, squeeze)
        folded = fold_bias(model, raw, masks, self.image_size)
        return [100 * evaluate(network, *self.test, self.image_size) for network in (raw, folded)]

    def _accuracies(self) -> dict[str, dict[int, float]]:
        """{rate in %: accuracy in %} for each stage."""
        setting, hidden = self.values(*SETTING), () if self.controls["folding"].value else ("folded",)
        known = self.measured.get(setting, {}) | {"fine-tuned": self.tuned.get(setting, {}).get("fine-tuned", {})}
        return {stage: dict(points) for stage, points in known.items() if stage not in hidden}

    def _table(self, widths: list[int], t: float, percent: int, accuracies: Mapping[str, Mapping]) -> str:
        squeeze, dense = self.controls["squeeze"].value, self.costs(self.dense, "keep")
        cells = {"filters": f"{sum(widths):,} of {sum(self.dense):,}"}
        for cost, value in self.costs(widths, squeeze).items():
            cells[cost] = f"{value:,} ({100 * (value / dense[cost] - 1):+.1f} %)"
        ms = [times.get(width) for times, width in zip(self.times, widths)]
        cells["time of the blocks"] = f"{sum(ms):.2f} ms" if ms and None not in ms else "–"
        cells["threshold"] = f"{t:.3g}"
        later = next_to_empty(self.collapse, percent / 100)
        cells["empties next"] = f"block {later[0]} at {100 * later[1]:.1f} %" if later else "–"
        for stage in STAGES:
            value = accuracies.get(stage, {}).get(percent)
            cells[f"{stage} accuracy"] = "–" if value is None else f"{value:.1f} %"
        return f'<div class="mnv3nb-numbers">{"".join(f"<span>{k} <b>{v}</b></span>" for k, v in cells.items())}</div>'

    def _tell(self, text: str, stale: bool = False) -> None:
        self.status.value = text
        for view in self.views:
            (view.add_class if stale else view.remove_class)("mnv3nb-stale")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """An error or an interrupt is shown where the reader looks, above a picture that is dimmed."""
        try:
            yield
        except BaseException as error:
            text = escape(f"{type(error).__name__}: {error}. Move a control to try again.")
            self._tell(f'<b class="mnv3nb-error">{text}</b>', stale=True)


def _controls(networks: Mapping[float, nn.Module], blocks: int, images: int, rate: int, squeeze: str) -> dict:
    lams = [(f"{lam:g}", lam) for lam in sorted(networks)]
    reason = "" if len(lams) > 1 else " (one trained)"
    criteria = [(CRITERION_LABELS[name], name) for name in CRITERIA]
    controls = {
        "rate": widgets.IntSlider(rate, 0, 95, description="rate (%)"),
        "criterion": widgets.Dropdown(options=criteria, description="criterion"),
        "multiple_of": widgets.SelectionSlider(options=ALIGNMENTS, description="multiple of"),
        "lam": widgets.SelectionSlider(options=lams, value=next(iter(networks)), description=f"λ{reason}"),
        "squeeze": widgets.Dropdown(options=SQUEEZES, value=squeeze, description="squeeze"),
        "folding": widgets.Checkbox(True, description="folding", indent=True),
        "block": widgets.IntSlider(min(3, blocks - 1), 0, blocks - 1, description="block"),
        "image": widgets.IntSlider(0, 0, images - 1, description="image"),
    }
    controls["lam"].disabled = bool(reason)
    for control in controls.values():
        control.layout.width = control.layout.min_width = "20em"  # wraps instead of shrinking
    return controls
