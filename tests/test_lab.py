"""The notebooks' one door: what it saves, where, with which caption, how numbers are displayed, how progress is shown."""

import io
import json
import re
import shutil
import sys
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient
from support import ROOT

from mnv3nb import lab as module
from mnv3nb.lab import Lab
from mnv3nb.report.claims import Claim
from mnv3nb.report.verdicts import judge, readable_table, reproduction
from mnv3nb.runs.notebooks import RUNS_MIME
from mnv3nb.runs.profiles import PlanStep
from mnv3nb.system import progress
from mnv3nb.system.progress import Progress, duration
from mnv3nb.system.tables import markdown, number


@pytest.fixture
def displayed(monkeypatch, tmp_path) -> list:
    """All that `display` was given; files go to a folder of this test's own."""
    found = []
    monkeypatch.setattr(module, "display", lambda what, **_: found.append(what))
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path))
    return found


@pytest.fixture(scope="module")
def run():
    """The sparse-trained network of profile smoke: some seconds."""
    return Lab("smoke").run("sparse")[0]


def figure() -> Figure:
    fig = Figure()
    fig.subplots().plot([1, 2], label="x")
    return fig


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# what is saved and displayed


def test_the_same_figure_and_table_are_saved_as_the_same_bytes(displayed, tmp_path):
    table = pd.DataFrame({"rate": [0.5], "accuracy_pct": [1 / 3]})
    seen = []
    for _ in range(2):
        lab = Lab("smoke")
        lab.show(figure(), "curve.1")
        lab.show(table, "table")
        seen.append(contents(tmp_path / "figures" / "smoke"))
    assert seen[0] == seen[1]
    assert set(seen[0]) == {"curve.1.png", "curve.1.svg", "table.csv"}
    assert seen[0]["table.csv"] == b"rate,accuracy_pct\n0.5,0.333333\n"


def test_figures_made_by_hand_are_saved_where_git_does_not_look(displayed, tmp_path, monkeypatch):
    monkeypatch.delenv("MNV3NB_HEADLESS")
    Lab("smoke").show(figure(), "curve")
    assert not (tmp_path / "figures").exists()
    assert set(contents(tmp_path / "runs" / "figures" / "smoke")) == {"curve.png", "curve.svg"}
    assert displayed[-1]["text/plain"] == "`runs/figures/smoke/curve.svg`"


def test_figures_made_by_hand_for_another_seed_do_not_replace_those_of_seed_0(displayed, tmp_path, monkeypatch):
    monkeypatch.delenv("MNV3NB_HEADLESS")
    folder = tmp_path / "runs" / "figures" / "smoke"
    Lab("smoke").show(pd.DataFrame({"x": [0]}), "table")
    Lab("smoke", seed=7, seeds=2).show(pd.DataFrame({"x": [7]}), "table")
    assert contents(folder) == {"table.csv": b"x\n0\n"}
    assert contents(folder / "seed7") == {"table.csv": b"x\n7\n"}
    assert displayed[-1]["text/plain"] == "`runs/figures/smoke/seed7/table.csv`"


def test_a_saved_table_is_read_from_its_own_folder_first_and_then_from_figures(displayed, tmp_path, monkeypatch):
    assert Lab("smoke").table("table") is None
    Lab("smoke").show(pd.DataFrame({"x": [1]}), "table")
    monkeypatch.delenv("MNV3NB_HEADLESS")
    assert Lab("smoke", seed=7).table("table").x.item() == 1
    Lab("smoke", seed=7).show(pd.DataFrame({"x": [7]}), "table")
    assert Lab("smoke", seed=7).table("table").x.item() == 7
    assert Lab("smoke").table("table").x.item() == 1


def test_a_caption_names_the_runs_once_and_where_they_were_made(displayed, run):
    Lab("smoke").show(figure(), "curve", [run, run])
    caption = displayed[-1]
    environment = run.result["environment"]
    assert caption[RUNS_MIME] == [run.key]
    assert caption["text/plain"] == (
        f"`figures/smoke/curve.svg` · 1 run(s): {run.key} · seed(s) 0 · {environment['hardware']}, {environment['date']}"
    )


def test_a_table_is_displayed_with_words_and_readable_numbers(displayed):
    table = pd.DataFrame(
        {
            "criterion": ["l1", "l1 within layers"],
            "accuracy_pct": [98.76543, float("nan")],
            "parameters": [4_215_130, 7],
            "flops": [230_250_944.0, 0.00012345],
        }
    )
    Lab("smoke").show(table, "table")
    text = displayed[0]["text/plain"]
    for word in ("accuracy (%)", "L1 norm, per layer", "98.77", "–", "4,215,130", "230,250,944", "0.0001234"):
        assert word in text
    Lab("smoke").show(table, "table", digits=1)
    assert "98.8" in displayed[2]["text/plain"]


def test_a_long_table_is_saved_whole_and_its_first_rows_are_displayed(displayed, tmp_path):
    Lab("smoke").show(pd.DataFrame({"x": range(600)}).rename_axis("block"), "long")
    assert "the first 40 of 600 rows" in displayed[0]["text/html"]
    assert len(pd.read_csv(tmp_path / "figures" / "smoke" / "long.csv")) == 600


def test_compare_shows_the_claims_of_the_report(displayed, tmp_path):
    lab = Lab("smoke")
    table, _ = reproduction(lab.p, lab.runs, [0])
    for source, name in (("Table 1", "table_1"), ("§ 3.2.1", "section_3.2.1")):
        lab.compare(source)
        some = table[table.source == source]
        expected = readable_table(some).assign(why=some.remark).to_csv(index=False)
        assert (tmp_path / "figures" / "smoke" / f"compare_{name}.csv").read_text() == expected


def test_a_remark_leaves_out_what_other_columns_show():
    exact = Claim("Table 5", "filters kept", 2507, lambda: 2507, kind="exact", form=".0f", note="taken from it")
    other = replace(exact, paper=2508, note="")
    measured = Claim("Table 3", "FLOPs", 138, lambda: 138, lambda seed: [], margin=2)
    cannot = replace(measured, cannot="best rate: not known")
    rows = [
        (judge(exact, []), "equal as printed: 2,507; taken from it", "taken from it"),
        (judge(other, []), "not equal as printed: 2,507", "not equal as printed: 2,507"),
        (judge(measured, [138.0]), "fewer than 3 seeds", ""),
        (judge(measured, [138.0], "not CIFAR"), "fewer than 3 seeds; not CIFAR", "not CIFAR"),
        (judge(cannot, [138.0], "not CIFAR"), "best rate: not known", "best rate: not known"),
    ]
    for row, why, remark in rows:
        assert (row["why"], row["remark"]) == (why, remark)
    decided = judge(measured, [138.0, 138.1, 137.9], "not CIFAR")
    assert decided["why"] == decided["remark"] and decided["why"].endswith("; not CIFAR")


def test_sentences_in_a_table_are_complete_and_aligned_to_the_left(displayed):
    sentence = "profile smoke trains on digits, not on CIFAR: its λ < 1 is not the paper's"
    Lab("smoke").show(pd.DataFrame({"n": [2507], "why": [sentence]}), "table")
    html = displayed[0]["text/html"]
    assert "text-align: left" in html
    assert "its λ &lt; 1 is not the paper" in html
    assert "<td>2,507</td>" in html
    assert sentence in displayed[0]["text/plain"]


# numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4_215_130, "4,215,130"),
        (np.int64(2507), "2,507"),
        (2507.0, "2,507"),
        (2507.3, "2,507"),
        (230_250_944.0, "230,250,944"),
        (12_345.6, "12,346"),
        (-12_345.6, "-12,346"),
        (9_999.7, "10,000"),
        (98.76543, "98.77"),
        (5.0, "5"),
        (0.00012345, "0.0001234"),
        (np.float32(0.1), "0.1"),
        (-0.0, "0"),
        (3e15, "3e+15"),
        (float("inf"), "inf"),
        (float("nan"), "–"),
        (None, "–"),
        (pd.NA, "–"),
        (True, "True"),
        ("reproduced", "reproduced"),
    ],
)
def test_a_number_is_displayed_with_four_significant_digits_and_separators(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (98.76543, 1, "98.8"),
        (2.0, 2, "2.00"),
        (-0.001, 2, "0.00"),
        (12_345.678, 2, "12,345.68"),
        (7, 2, "7"),
        (float("nan"), 2, "–"),
    ],
)
def test_a_number_is_displayed_with_the_decimals_asked_for(value, digits, text):
    assert number(value, digits) == text


def test_a_markdown_table_has_no_index_and_escapes_its_separator():
    table = pd.DataFrame({"block": ["1|2"], "width": [16]}, index=[7])
    assert markdown(table) == "| block | width |\n| :-- | --: |\n| 1\\|2 | 16 |"


# progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_of_an_interrupted_training_disappears(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    with pytest.raises(KeyboardInterrupt), Progress("x", epochs=2, steps=5, done=0, shown=True) as shown:
        shown.step_done()
        raise KeyboardInterrupt
    assert "x:   0%" in terminal.getvalue()
    assert terminal.getvalue().split("\r")[-2].strip() == ""


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets: `clock[0]` is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_a_line_per_epoch_tells_the_time_left_from_the_epochs_trained_here(monkeypatch, capsys, clock):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    row = {"train_loss": 0.5, "test_accuracy": 0.25, "seconds": 30.0}
    with Progress("tiny", epochs=5, steps=3, done=2, shown=True) as shown:
        assert capsys.readouterr().out == ""
        for epoch, seconds in ((3, 30), (4, 70), (5, 110)):
            clock[0] = 100 + seconds
            shown.epoch_done({"epoch": epoch, **row})
    assert capsys.readouterr().out.splitlines() == [
        "tiny 3/5: loss 0.5000, test accuracy 25.00 %, 30.0 s, about 60 s left",
        "tiny 4/5: loss 0.5000, test accuracy 25.00 %, 30.0 s, about 35 s left",
        "tiny 5/5: loss 0.5000, test accuracy 25.00 %, 30.0 s",
    ]


def test_progress_that_is_not_shown_writes_nothing(capsys):
    with Progress("tiny", epochs=1, steps=1, done=0, shown=False) as shown:
        shown.step_done()
        shown.epoch_done({"epoch": 1, "train_loss": 0.5, "test_accuracy": 0.25, "seconds": 1.0})
    assert capsys.readouterr() == ("", "")


def test_a_duration_has_the_unit_that_people_would_use():
    assert [duration(seconds) for seconds in (0.4, 42, 420, 11_520)] == ["0 s", "42 s", "7 min", "3.2 h"]


TRAINING = """\
from mnv3nb import MobileNetV3Large, TrainConfig, load_dataset, train
data = load_dataset("digits").subset(32)
config = TrainConfig(epochs=2, batch_size=16, image_size=8)
train(MobileNetV3Large(10), data, config, label="tiny");
"""


def executed(monkeypatch, headless: str) -> tuple[list, list[str]]:
    """What a notebook that trains has stored, and the lines that it has shown one after another in the same place."""
    monkeypatch.setenv("MNV3NB_HEADLESS", headless)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(TRAINING)])
    lines = []

    class Client(NotebookClient):
        def process_message(self, message, cell, cell_index):
            if message["msg_type"] == "update_display_data":
                lines.append(message["content"]["data"]["text/plain"])
            return super().process_message(message, cell, cell_index)

    Client(notebook, timeout=300, kernel_name="python3").execute()
    return notebook.cells[0].outputs, lines


def test_a_bar_moves_in_a_notebook_and_leaves_nothing_to_see_there(monkeypatch):
    outputs, lines = executed(monkeypatch, headless="0")
    assert lines[0].startswith("tiny:   0%|")
    assert any("test accuracy" in line for line in lines)
    assert lines[-1] == ""
    assert [output.data for output in outputs] == [{"text/html": "", "text/plain": ""}]
    assert "widget" not in json.dumps(outputs)


def test_a_headless_notebook_keeps_a_line_per_epoch(monkeypatch):
    outputs, lines = executed(monkeypatch, headless="1")
    assert lines == []
    text = "".join(output.text for output in outputs)
    assert [line.partition(":")[0] for line in text.splitlines()] == ["tiny 1/2", "tiny 2/2"]


# runs


def test_an_interrupted_run_shows_one_line_that_tells_what_to_do(monkeypatch):
    def interrupt(runs, configs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_grid", interrupt)
    with pytest.raises(KeyboardInterrupt) as stopped:
        Lab("smoke").run("sparse")
    assert stopped.value._render_traceback_() == [
        "Interrupted: run this cell again, and it resumes after the last whole epoch."
    ]


def test_run_takes_experiments_configs_and_seeds_and_trains_only_what_is_missing(run, monkeypatch):
    lab = Lab("smoke", seeds=3)
    asked = []
    monkeypatch.setattr(module, "run_grid", lambda runs, configs: asked.append(list(configs)) or [run])
    assert lab.run("sparse", seed=2) == [run]
    lab.run("sparse")
    lab.run(run.config)
    lab.run([run.config, run.config])
    assert asked == [
        lab.p.experiment("sparse", 2),
        [config for seed in range(3) for config in lab.p.experiment("sparse", seed)],
        [run.config],
        [run.config, run.config],
    ]
    assert lab.run(run.config, model=True)[0].key == run.key


def test_data_has_the_images_of_the_profile(digits):
    lab = Lab("smoke")
    assert len(lab.data.train_images) == lab.p.train_images
    assert len(lab.data.test_images) == len(digits.test_images)


def test_an_unknown_profile_or_experiment_is_named_with_its_nearest():
    with pytest.raises(ValueError, match="did you mean 'smoke'"):
        Lab("smok")
    with pytest.raises(ValueError, match="did you mean 'rates'"):
        Lab("smoke").run("ratse")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": "abc"}, "seed must be an integer ≥ 0, got 'abc'"),
        ({"seed": -1}, "seed must be an integer ≥ 0, got -1"),
        ({"seed": 1.0}, "seed must be an integer ≥ 0, got 1.0"),
        ({"seeds": 0}, "seeds must be an integer ≥ 1, got 0"),
        ({"seeds": True}, "seeds must be an integer ≥ 1, got True"),
    ],
)
def test_a_wrong_seed_or_number_of_seeds_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Lab("smoke", **arguments)


def test_a_home_that_cannot_be_written_is_refused_at_once_with_what_to_do(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(OSError, match=r"cannot write to .*; set MNV3NB_HOME to a folder in which you may write"):
        Lab("smoke")


def test_recorded_runs_beside_the_package_are_found_from_another_home(monkeypatch, tmp_path):
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path))
    assert Lab("smoke").runs.recorded == ROOT / "results"
    (tmp_path / "results").mkdir()
    assert Lab("smoke").runs.recorded == tmp_path / "results"


def test_a_recorded_profile_trains_nothing_and_names_the_missing_runs(displayed, run, monkeypatch):
    monkeypatch.setenv("MNV3NB_HOME", str(run.folder.parent.parent))
    lab = Lab("smoke")
    lab.p = replace(lab.p, recorded=True)
    monkeypatch.setattr(module, "run_grid", None)
    absent = [lab.p.sparse_config(seed=seed) for seed in range(90, 96)]
    assert [found.key for found in lab.run([*absent, run.config])] == [run.key]
    text = displayed[-1].data
    assert text.startswith(f"*not recorded yet: {absent[0].label}; ") and "and 2 more" in text
    assert "`python -m mnv3nb grid --profile smoke`" in text
    assert lab.run(run.config)[0].key == run.key and displayed[-1].data == text


def test_a_missing_network_of_a_recorded_profile_is_named_with_how_to_get_it(run, monkeypatch, tmp_path):
    folder = tmp_path / "results" / run.key
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path))
    lab = Lab("smoke")
    lab.p = replace(lab.p, recorded=True)
    assert lab.run(run.config)[0].key == run.key
    with pytest.raises(FileNotFoundError, match=f"no network.* of .*{re.escape(run.config.label)}; `lab.runs.run"):
        lab.run([lab.p.sparse_config(seed=90), run.config], model=True)
    with pytest.raises(FileNotFoundError, match=r"no network.*seed 9"):
        lab.run("sparse", 9, model=True)  # not planned either


def test_runs_outside_the_plan_of_a_recorded_profile_are_not_called_missing(displayed, monkeypatch, tmp_path):
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path))
    lab = Lab("smoke", seed=3)
    plan = (PlanStep(("lambdas",), seeds=(0,)), PlanStep(("plain_and_sparse",), seeds=(1,)))
    lab.p = replace(lab.p, recorded=True, plan=plan)
    assert lab.run("lambdas") == []  # of seed 3, like 1, the plan has two of five λ
    assert displayed[-1].data.count("seed 3") == 2 and "more" not in displayed[-1].data
