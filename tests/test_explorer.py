"""The explorer without a browser: its numbers are the module's, its thread and its errors show; the page's data too."""

import base64
import json
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from explorer_page import explorer_data, explorer_page
from support import ROOT

from mnv3nb import count_flops, count_parameters, keep_masks, prune, score, threshold
from mnv3nb.explorer.picture import STAGES, score_bins
from mnv3nb.explorer.sliders import Explorer
from mnv3nb.explorer.tables import cost_tables, network_cost
from mnv3nb.runs.find_or_train import Runs
from mnv3nb.runs.profiles import SMOKE, get_profile


@pytest.fixture(scope="module")
def explorer(dense, tiny):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNV3NB_HEADLESS", "0")  # accuracies come from a thread
        explorer = Explorer({1e-3: dense}, tiny, 8, images=4)
        yield explorer
        explorer.job += 1  # the thread ends


def shown(explorer: Explorer) -> dict[str, str]:
    return dict(re.findall(r"<span>(.+?) <b>(.+?)</b>", explorer.numbers.value))


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


def test_the_numbers_follow_every_control(explorer, dense):
    for rate, multiple_of, squeeze, criterion in (
        (30, 1, "paper", "gamma"),
        (60, 16, "keep", "gamma"),
        (0, 1, "paper", "l1"),
    ):
        for name, value in {
            "rate": rate,
            "multiple_of": multiple_of,
            "squeeze": squeeze,
            "criterion": criterion,
        }.items():
            explorer.controls[name].value = value
        wait_for(lambda criterion=criterion: explorer.settled[1] == criterion)
        scores = score(dense, criterion)
        small = prune(dense, keep_masks(scores, rate / 100, multiple_of), squeeze)
        wait_for(lambda small=small: shown(explorer)["parameters"].startswith(f"{count_parameters(small):,} ("))
        assert shown(explorer)["flops"].startswith(f"{count_flops(small):,} (")
        text = f"{threshold(scores, rate / 100):.3g}"
        wait_for(lambda text=text: shown(explorer)["threshold"] == text)


def test_accuracies_arrive_and_folding_hides_one(explorer):
    explorer.controls["rate"].value = 40
    assert shown(explorer)["raw accuracy"] == "–"
    wait_for(lambda: shown(explorer)["raw accuracy"].endswith("%"))
    assert shown(explorer)["folded accuracy"].endswith("%") and shown(explorer)["fine-tuned accuracy"] == "–"
    explorer.controls["folding"].value = False
    assert shown(explorer)["folded accuracy"] == "–" and shown(explorer)["raw accuracy"].endswith("%")
    explorer.controls["folding"].value = True


@pytest.mark.parametrize("error", [ValueError("no such thing"), KeyboardInterrupt()])
def test_what_goes_wrong_in_a_callback_is_shown_and_the_next_move_recovers(explorer, monkeypatch, error):
    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(explorer.picture, "draw", fail)
        explorer.controls["rate"].value = 71
    assert type(error).__name__ in explorer.status.value
    assert all("mnv3nb-stale" in view._dom_classes for view in explorer.views)
    explorer.controls["rate"].value = 70
    assert type(error).__name__ not in explorer.status.value
    assert not any("mnv3nb-stale" in view._dom_classes for view in explorer.views)


def test_a_slow_score_is_announced_and_the_old_picture_dimmed(explorer, monkeypatch):
    shown_busy = threading.Event()

    def slow(*arguments):
        shown_busy.wait(60)
        return score(*arguments)

    monkeypatch.setattr("mnv3nb.explorer.sliders.score", slow)
    explorer.controls["criterion"].value = "l2"  # returns before the scores are there
    assert explorer.status.value == "computing …" and "mnv3nb-stale" in explorer.views[0]._dom_classes
    explorer.controls["rate"].value = 20  # is not held up either
    assert explorer.settled[1] != "l2"
    shown_busy.set()
    wait_for(lambda: explorer.settled[1] == "l2" and "mnv3nb-stale" not in explorer.views[0]._dom_classes)


def test_one_network_leaves_lambda_disabled_with_the_reason(explorer):
    assert explorer.controls["lam"].disabled and "one trained" in explorer.controls["lam"].description


def test_a_still_picture_lies_beside_the_widget_and_alone_in_a_headless_run(explorer, monkeypatch):
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    monkeypatch.setenv("MNV3NB_HEADLESS", "1")
    assert set(explorer._repr_mimebundle_()) == {"text/plain", "image/png"}


def test_only_scores_over_many_decades_get_a_logarithmic_axis():
    rng = np.random.default_rng(0)
    assert not score_bins(rng.random(5016))[1]
    edges, log = score_bins(np.concatenate([np.zeros(10), 10.0 ** rng.uniform(-12, 0, 5000)]))
    assert log and (np.diff(edges) > 0).all()
    assert len(score_bins(np.zeros(5))[0]) == 61


def test_the_pages_numbers_are_the_modules():
    runs, profile = Runs(progress=False), replace(SMOKE, criteria=("gamma_sparsity", "l1", "taylor"))
    half = runs.run(profile.pruned_config(0.5))
    page = explorer_page(runs, profile)
    assert len(page) < 5e6
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    dense = runs.run(profile.sparse_config(), model=True).model()
    assert data["dense"] == list(dense.widths) and list(data["criteria"]) == [
        "gamma_sparsity",
        "l1",
    ]  # Taylor needs images
    chosen, scores = data["criteria"]["gamma_sparsity"], score(dense)
    assert sum(chosen["counts"]) == 5016
    for rate, multiple_of in ((0, 1), (29, 1), (50, 1), (60, 8), (90, 16)):
        widths, parameters, flops = chosen["cuts"][str(multiple_of)][rate]
        small = prune(dense, keep_masks(scores, rate / 100, multiple_of))
        assert (tuple(widths), parameters, flops) == (small.widths, count_parameters(small), count_flops(small))
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
