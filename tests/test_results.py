"""The recorded runs in results/: whole, named by their config, ended where the config says, and true."""

import os
import statistics
from functools import partial
from pathlib import Path

import pytest
import readme

from mnv3nb import evaluate, load_dataset
from mnv3nb.profiles import EXPERIMENTS, PROFILES
from mnv3nb.report import accuracies
from mnv3nb.runs import Runs
from mnv3nb.store import read_run

RESULTS = Path(__file__).parent.parent / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/result.json"))
RECORDED = ("cpu",)  # profiles whose runs are shipped


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_recorded_run_is_whole_and_ends_where_its_config_says(folder):
    run = read_run(folder)
    history = run.history
    assert [row["epoch"] for row in history] == list(range(run.config.train.epochs + 1))
    assert history[-1]["test_accuracy"] == run.accuracy
    assert history[0]["test_accuracy"] == run.result["accuracy_before"]
    assert [len(g) for g in run.gamma] == [len(s) for s in run.sparsity] == run.result["widths"]
    assert {"hardware", "threads", "torch", "torchvision", "python", "date", "commit"} <= set(run.result["environment"])
    assert not run.result["environment"]["commit"].endswith("-dirty")


def test_every_recorded_run_belongs_to_a_profile_and_is_found_by_it():
    runs = Runs(RESULTS / "none", RESULTS)
    found = set()
    for name in RECORDED:
        for experiment in EXPERIMENTS:
            for seed in range(3):
                found |= {run.key for config in PROFILES[name].experiment(experiment, seed) if (run := runs.find(config))}
    assert found == {folder.name for folder in FOLDERS} and found


def test_results_stay_small():
    assert sum(path.stat().st_size for path in RESULTS.rglob("*") if path.is_file()) <= 60e6
    assert all(path.stat().st_size <= 9e6 for path in RESULTS.glob("*/model.safetensors"))


@pytest.mark.parametrize("folder", [f for f in FOLDERS if (f / "model.safetensors").exists()], ids=lambda path: path.name)
def test_a_stored_model_has_its_recorded_accuracy(folder):
    run = read_run(folder)
    data_dir = Path(os.environ.get("MNV3NB_DATA", RESULTS.parent / "data"))
    if not (data_dir / f"{run.config.dataset}.npz").exists():
        pytest.skip(f"{run.config.dataset} is not in {data_dir}")
    data = load_dataset(run.config.dataset, data_dir)
    accuracy = evaluate(run.model(), data.test_images[:1000], data.test_labels[:1000], run.config.train.image_size)
    assert abs(round(accuracy * 1000) - run.result["stored_correct_1000"]) <= 2


def test_the_readme_says_what_the_measured_files_say():
    text = (RESULTS.parent / "README.md").read_text()
    assert readme.filled(text) == text, "make readme"


@pytest.mark.parametrize("name", RECORDED)
def test_the_accuracies_are_those_of_the_runs(name):
    """By hand, for the rows that people quote."""
    p, runs = PROFILES[name], Runs(RESULTS / "none", RESULTS)
    table = accuracies(p, runs, range(3))[0].set_index(["source", "network"])
    for row, config in (
        (("Figure 6", "λ = 0"), partial(p.sparse_run, 0.0)),
        (("Table 3", "not pruned, fine-tuned as long"), partial(p.pruned_run, 0.0)),
        (("Table 3", "50% pruned"), partial(p.pruned_run, 0.5)),
    ):
        values = [100 * run.accuracy for seed in range(3) if (run := runs.find(config(seed=seed)))]
        assert len(values) == table.seeds[row] and table.ours[row] == pytest.approx(sum(values) / len(values))
        if len(values) == 3:  # Student's t of 2 degrees of freedom
            assert table.ours_half[row] == pytest.approx(4.302653 * statistics.stdev(values) / 3**0.5, rel=1e-5)
    pairs = [[100 * runs.find(p.pruned_run(rate, seed)).accuracy for rate in (0.5, 0.0)] for seed in range(3)]
    assert table.gain["Table 3", "50% pruned"] == pytest.approx(statistics.mean(a - b for a, b in pairs))
    assert table.gain_half["Table 3", "50% pruned"] == pytest.approx(
        4.302653 * statistics.stdev(a - b for a, b in pairs) / 3**0.5, rel=1e-5
    )
    assert table.paper["Figure 6", "λ = 0"] == 88.28 and table.paper["Table 3", "50% pruned"] == 88.55
