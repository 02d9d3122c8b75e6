"""The recorded runs in results/: whole, named by their config, ended where the config says, and true."""

import os
from pathlib import Path

import pytest

from mnv3nb import evaluate, load_dataset, paper
from mnv3nb.profiles import EXPERIMENTS, PROFILES
from mnv3nb.runs import Runs
from mnv3nb.store import read_run

RESULTS = Path(__file__).parent.parent / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/result.json"))
RECORDED = ("cpu",)  # profiles whose runs are shipped
pytestmark = pytest.mark.skipif(not FOLDERS, reason="no recorded runs in results/")


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
    assert found == {folder.name for folder in FOLDERS}


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


def readme_rows() -> list[str]:
    """The README's table of the recorded CIFAR-10 runs, made from the runs and the paper's numbers."""
    p, runs = PROFILES["cpu"], Runs(RESULTS / "none", RESULTS)
    paper_of = paper.FIGURE_6.set_index("lam").accuracy_pct
    rows = [
        ("trained plainly, λ = 0", paper_of[0.0], p.sparse_run(0.0)),
        (f"trained sparsely, λ = {p.lam:g} (paper: {paper.CHOSEN_LAM:g})", paper_of[paper.CHOSEN_LAM], p.sparse_run()),
        ("the same, fine-tuned without pruning: the fair baseline", None, p.pruned_run(0.0)),
        ("pruned at 50 % and fine-tuned", paper.TABLE_4_OURS_PCT, p.pruned_run(0.5)),
    ]
    lines = []
    for text, theirs, config in rows:
        run = runs.find(config)
        before = f"{run.result['accuracy_before']:.2%}" if config.prune else ""
        lines.append(
            f"| {text} | {f'{theirs:.2f} %' if theirs else '–'} | {run.accuracy:.2%} | {before} | "
            f"{run.result['parameters']:,} | `{run.key}` |"
        )
    return [line.replace("%", " %").replace("  %", " %") for line in lines]


def test_the_readme_says_what_the_recorded_runs_say():
    text = (RESULTS.parent / "README.md").read_text()
    for row in readme_rows():
        assert row in text
