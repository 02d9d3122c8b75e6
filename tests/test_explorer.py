"""The explorer without a browser: its numbers are the module's, and it shows work in progress and errors.

The numbers of the page that needs no kernel are the module's as well.
"""

import base64
import json
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from explorer_page import explorer_data, explorer_page
from support import ROOT

from mnv3nb import DENSE_WIDTHS, count_flops, count_parameters, keep_masks, prune, score, threshold
from mnv3nb.explorer.background import Background
from mnv3nb.explorer.measurements import Measurements
from mnv3nb.explorer.picture import Picture, score_bins
from mnv3nb.explorer.sliders import Explorer, last_block_with_pictures
from mnv3nb.explorer.tables import cost_tables, network_cost
from mnv3nb.plots.style import STAGES
from mnv3nb.runs.find_or_train import Runs
from mnv3nb.runs.profiles import SMOKE, get_profile


@pytest.fixture(scope="module")
def explorer(dense, tiny):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNV3NB_HEADLESS", "0")  # accuracies are measured in the background
        explorer = Explorer({1e-3: dense}, tiny, 8, images=4)
        yield explorer
        explorer.background.cancel()


def shown(explorer: Explorer) -> dict[str, str]:
    return dict(re.findall(r"<span>(.+?) <b>(.+?)</b>", explorer.numbers.value))


def is_dimmed(part) -> bool:
    return "mnv3nb-stale" in part._dom_classes


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


@pytest.mark.parametrize("squeeze", ["paper", "keep"])
def test_costs_from_the_table_are_those_of_the_pruned_network(dense, squeeze):
    tables = cost_tables(dense, squeeze)
    for rate, multiple_of in ((0, 1), (0.5, 1), (0.5, 16), (0.9, 4)):
        masks = keep_masks(score(dense), rate, multiple_of)
        small = prune(dense, masks, squeeze)
        assert network_cost(tables["parameters"], small.widths) == count_parameters(small)
        assert network_cost(tables["flops"], small.widths) == count_flops(small)


def test_at_50_percent_2_507_filters_stay(explorer):
    explorer.controls["rate"].value = 50
    assert shown(explorer)["filters"] == "2,507 of 5,016"


@pytest.mark.parametrize(
    ("rate", "multiple_of", "squeeze", "criterion"),
    [(30, 1, "paper", "gamma"), (60, 16, "keep", "gamma"), (0, 1, "paper", "l1")],
)
def test_the_numbers_follow_every_control(explorer, dense, rate, multiple_of, squeeze, criterion):
    explorer.controls["rate"].value = rate
    explorer.controls["multiple_of"].value = multiple_of
    explorer.controls["squeeze"].value = squeeze
    explorer.controls["criterion"].value = criterion
    wait_for(lambda: explorer.scene.criterion == criterion)
    scores = score(dense, criterion)
    small = prune(dense, keep_masks(scores, rate / 100, multiple_of), squeeze)
    wait_for(lambda: shown(explorer)["parameters"].startswith(f"{count_parameters(small):,} ("))
    assert shown(explorer)["flops"].startswith(f"{count_flops(small):,} (")
    wait_for(lambda: shown(explorer)["threshold"] == f"{threshold(scores, rate / 100):.3g}")


def test_accuracies_arrive_and_folding_hides_one(explorer):
    explorer.controls["rate"].value = 40
    assert shown(explorer)["raw accuracy"] == "–"
    wait_for(lambda: shown(explorer)["raw accuracy"].endswith("%"))
    assert shown(explorer)["folded accuracy"].endswith("%")
    assert shown(explorer)["fine-tuned accuracy"] == "–"
    explorer.controls["folding"].value = False
    assert shown(explorer)["folded accuracy"] == "–"
    assert shown(explorer)["raw accuracy"].endswith("%")
    explorer.controls["folding"].value = True


@pytest.mark.parametrize("error", [ValueError("no such thing"), KeyboardInterrupt()])
def test_an_error_in_a_callback_is_shown_and_the_next_move_recovers(explorer, monkeypatch, error):
    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(explorer.picture, "draw", fail)
        explorer.controls["rate"].value = 71
    assert type(error).__name__ in explorer.status.value
    assert all(is_dimmed(view) for view in explorer.views)
    explorer.controls["rate"].value = 70
    assert type(error).__name__ not in explorer.status.value
    assert not any(is_dimmed(view) for view in explorer.views)


def test_an_error_in_the_background_is_shown(explorer, monkeypatch):
    def fail(*_):
        raise MemoryError("too <large>")

    with monkeypatch.context() as patch:
        patch.setattr("mnv3nb.explorer.measurements.evaluate", fail)
        explorer.controls["rate"].value = 73
        wait_for(lambda: "MemoryError: too &lt;large&gt;" in explorer.status.value)
    assert is_dimmed(explorer.numbers)
    explorer.controls["rate"].value = 70
    assert not is_dimmed(explorer.numbers)


def test_an_error_of_a_headless_explorer_is_raised(explorer, monkeypatch):
    """Nobody would see it in the status line, and the notebook would pass."""
    monkeypatch.setattr(explorer, "headless", True)
    with pytest.raises(MemoryError), explorer._errors_shown():
        raise MemoryError


def test_a_slow_score_is_announced_and_old_numbers_and_picture_are_dimmed(explorer, monkeypatch):
    may_finish = threading.Event()

    def slow(*arguments):
        may_finish.wait(60)
        return score(*arguments)

    monkeypatch.setattr("mnv3nb.explorer.measurements.score", slow)
    explorer.controls["criterion"].value = "l2"  # returns before the scores are there
    assert explorer.status.value == "computing …"
    assert all(is_dimmed(part) for part in (explorer.numbers, *explorer.views))
    explorer.controls["rate"].value = 20  # does not wait either
    assert explorer.scene.criterion != "l2"
    assert is_dimmed(explorer.numbers)
    may_finish.set()
    wait_for(lambda: explorer.scene.criterion == "l2" and not is_dimmed(explorer.numbers))
    assert not any(is_dimmed(view) for view in explorer.views)


def test_a_new_task_cancels_the_one_before_and_skips_those_that_wait():
    background = Background()
    begun = threading.Event()
    log = []

    def task(name):
        def run(cancelled):
            log.append(name)
            begun.set()
            assert cancelled.wait(30)

        return run

    background.start(task("first"))
    assert begun.wait(30)
    background.start(task("second"))
    wait_for(lambda: "second" in log)
    background.start(lambda cancelled: log.append("third"))
    wait_for(lambda: "third" in log)
    assert log == ["first", "second", "third"]

    background.start(lambda cancelled: log.append("unwanted") if cancelled.wait(0.1) else log.append("fourth"))
    wait_for(lambda: "fourth" in log)
    assert "unwanted" not in log


def test_one_network_leaves_lambda_disabled_with_the_reason(explorer):
    assert explorer.controls["lam"].disabled
    assert "one trained" in explorer.controls["lam"].description


@pytest.mark.parametrize(("image_size", "block", "pixels"), [(8, 0, 4), (32, 3, 8), (64, 6, 8), (224, 12, 14)])
def test_the_block_shown_first_is_the_last_one_whose_maps_are_pictures(dense, tiny, image_size, block, pixels):
    maps = Measurements({1e-3: dense}, tiny, image_size, images=1).maps(1e-3, image=0)
    assert last_block_with_pictures(maps) == block
    assert maps[block].shape[-1] == pixels


@pytest.fixture
def displayed(monkeypatch):
    bundles = []
    monkeypatch.setattr("mnv3nb.explorer.sliders.display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def test_a_still_picture_is_displayed_below_the_widget_and_hidden_by_it(explorer, displayed):
    explorer._ipython_display_()
    widget, still = displayed
    assert "application/vnd.jupyter.widget-view+json" in widget
    assert 'class="mnv3nb-still"' in still["text/html"]
    assert base64.b64decode(re.search(r'base64,(.*?)"', still["text/html"])[1]).startswith(b"\x89PNG")
    assert ".mnv3nb-still {display: none}" in explorer.children[0].value


def test_a_headless_run_displays_the_still_picture_alone(explorer, displayed, monkeypatch):
    monkeypatch.setenv("MNV3NB_HEADLESS", "1")
    explorer._ipython_display_()
    (bundle,) = displayed
    assert set(bundle) == {"text/plain", "image/png"}
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")


def scene(scale: float, pixels: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "scores": [scale * torch.rand(width, generator=generator) for width in DENSE_WIDTHS],
        "label": "m",
        "number": 4,
        "maps": torch.rand(DENSE_WIDTHS[4], pixels, pixels, generator=generator),
        "image": torch.zeros(3, 2 * pixels, 2 * pixels, dtype=torch.uint8),
    }


def draw(picture: Picture, scores: list[torch.Tensor], percent: int) -> np.ndarray:
    masks = keep_masks(scores, percent / 100)
    return picture.draw(masks, threshold(scores, percent / 100), percent, {stage: {} for stage in STAGES})


def test_a_moved_slider_draws_the_same_pixels_as_a_new_picture():
    shown_scene = scene(1.0, 8)
    moved = Picture(DENSE_WIDTHS)
    moved.set_scene(**shown_scene)
    for percent in (0, 80, 50):
        pixels = draw(moved, shown_scene["scores"], percent)
    new = Picture(DENSE_WIDTHS)
    new.set_scene(**shown_scene)
    assert np.array_equal(pixels, draw(new, shown_scene["scores"], 50))


def test_charts_stay_in_place_and_maps_stay_square_in_every_scene():
    picture = Picture(DENSE_WIDTHS)
    places = []
    for each in (scene(1.0, 8), scene(1e6, 3)):
        picture.set_scene(**each)
        draw(picture, each["scores"], 50)
        charts = (picture.score_panel.ax, picture.width_panel.bars[0].axes, picture.accuracy_panel.rate.axes)
        places.append([ax.get_window_extent().bounds for ax in charts])
        right, down = np.diff(picture.map_panel.maps_ax.transData.transform([(0, 0), (1, 1)]), axis=0)[0]
        assert right == pytest.approx(-down)
    assert places[0] == places[1]


def test_only_scores_over_many_decades_get_a_logarithmic_axis():
    rng = np.random.default_rng(0)
    assert not score_bins(rng.random(5016))[1]
    edges, logarithmic = score_bins(np.concatenate([np.zeros(10), 10.0 ** rng.uniform(-12, 0, 5000)]))
    assert logarithmic
    assert (np.diff(edges) > 0).all()
    assert len(score_bins(np.zeros(5))[0]) == 61


def test_the_pages_numbers_are_the_modules():
    runs = Runs(progress=False)
    profile = replace(SMOKE, criteria=("gamma_sparsity", "l1", "taylor"))
    half = runs.run(profile.pruned_config(0.5))
    page = explorer_page(runs, profile)
    assert len(page) < 5e6
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    dense = runs.run(profile.sparse_config(), model=True).model()
    assert data["dense"] == list(dense.widths)
    assert list(data["criteria"]) == ["gamma_sparsity", "l1"]  # Taylor needs images
    chosen = data["criteria"]["gamma_sparsity"]
    scores = score(dense)
    assert sum(chosen["counts"]) == 5016
    for rate, multiple_of in ((0, 1), (29, 1), (50, 1), (60, 8), (90, 16)):
        widths, parameters, flops = chosen["cuts"][str(multiple_of)][rate]
        small = prune(dense, keep_masks(scores, rate / 100, multiple_of))
        assert tuple(widths) == small.widths
        assert parameters == count_parameters(small)
        assert flops == count_flops(small)
        assert chosen["thresholds"][rate] == threshold(scores, rate / 100)
    recorded = chosen["accuracies"]["1"]
    assert recorded["fine-tuned"]["50"] == 100 * half.accuracy
    assert recorded["folded"]["50"] == 100 * half.result["accuracy_folded"]


def test_the_sites_page_shows_recorded_accuracies_and_needs_neither_data_nor_training(monkeypatch, tmp_path):
    monkeypatch.setattr("mnv3nb.runs.find_or_train.train", None)
    profile = replace(get_profile("cifar"), criteria=("gamma_sparsity",))
    data = explorer_data(Runs(tmp_path, ROOT / "results", progress=False), profile)
    recorded = data["criteria"]["gamma_sparsity"]["accuracies"][1]
    assert all({0, 50} <= set(recorded[stage]) for stage in STAGES)
