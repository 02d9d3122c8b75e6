"""The recorded runs in results/ are whole, named by their config, complete, and as accurate as they say."""

import os
from pathlib import Path

import pytest
from support import ROOT

from mnv3nb import evaluate, load_dataset
from mnv3nb.runs.find_or_train import Runs
from mnv3nb.runs.folder import RunFolder, other_formats
from mnv3nb.runs.profiles import EXPERIMENTS, PROFILES

RESULTS = ROOT / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/result.json"))
RECORDED = ("cifar", "gpu")  # profiles whose runs are shipped


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_recorded_run_is_whole_and_has_all_epochs_of_its_config(folder):
    run = RunFolder(folder).read(model=(folder / "model.safetensors").exists())
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
    for profile in RECORDED:
        for experiment in EXPERIMENTS:
            for seed in range(3):
                configs = PROFILES[profile].experiment(experiment, seed)
                found |= {config.key for config in configs if runs.find(config)}
    assert found == {folder.name for folder in FOLDERS}
    assert other_formats(RESULTS) == []


def test_results_stay_small():
    assert sum(path.stat().st_size for path in RESULTS.rglob("*") if path.is_file()) <= 80e6
    assert all(path.stat().st_size <= 9e6 for path in RESULTS.glob("*/model.safetensors"))


@pytest.mark.parametrize(
    "folder", [f for f in FOLDERS if (f / "model.safetensors").exists()], ids=lambda path: path.name
)
def test_a_stored_model_has_its_recorded_accuracy(folder):
    run = RunFolder(folder).read()
    data_dir = Path(os.environ.get("MNV3NB_DATA", ROOT / "data"))
    if not (data_dir / f"{run.config.dataset}.npz").exists():
        pytest.skip(f"{run.config.dataset} is not in {data_dir}")
    data = load_dataset(run.config.dataset, data_dir)
    accuracy = evaluate(run.model(), data.test_images[:1000], data.test_labels[:1000], run.config.train.image_size)
    assert abs(round(accuracy * 1000) - run.result["stored_correct_1000"]) <= 2
