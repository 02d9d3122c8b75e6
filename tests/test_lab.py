"""The notebooks' one door: what it saves, where, with which caption, and that it says what the report says."""

import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from matplotlib.figure import Figure

from mnv3nb import lab as module
from mnv3nb.lab import Lab
from mnv3nb.report.claims import Claim
from mnv3nb.report.verdicts import judge, readable_table, reproduction
from mnv3nb.runs.notebooks import RUNS_MIME
from mnv3nb.system.progress import Progress


@pytest.fixture
def displayed(monkeypatch, tmp_path) -> list:
    """What `display` was given; files go to a folder of this test's own."""
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
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_figure_and_table_are_the_same_bytes_again(displayed, tmp_path):
    table, seen = pd.DataFrame({"rate": [0.5], "accuracy_pct": [1 / 3]}), []
    for _ in range(2):
        lab = Lab("smoke")
        lab.show(figure(), "curve.1")
        lab.show(table, "table")
        seen.append(contents(tmp_path / "figures" / "smoke"))
    assert seen[0] == seen[1]
    assert set(seen[0]) == {"curve.1.png", "curve.1.svg", "table.csv"}
    assert seen[0]["table.csv"] == b"rate,accuracy_pct\n0.5,0.333333\n"


def test_by_hand_nothing_is_written_where_git_looks(displayed, tmp_path, monkeypatch):
    monkeypatch.delenv("MNV3NB_HEADLESS")
    Lab("smoke").show(figure(), "curve")
    assert not (tmp_path / "figures").exists()
    assert set(contents(tmp_path / "runs" / "figures" / "smoke")) == {"curve.png", "curve.svg"}
    assert displayed[-1]["text/plain"] == "`runs/figures/smoke/curve.svg`"


def test_a_caption_names_the_runs_once_and_where_they_were_made(displayed, run):
    Lab("smoke").show(figure(), "curve", [run, run])
    caption, environment = displayed[-1], run.result["environment"]
    assert caption[RUNS_MIME] == [run.key]
    assert caption["text/plain"] == (
        f"`figures/smoke/curve.svg` · 1 run(s): {run.key} · seed(s) 0 · {environment['hardware']}, {environment['date']}"
    )


def test_a_table_is_displayed_in_words_and_readable_numbers(displayed):
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


def test_of_a_long_table_the_first_rows_are_displayed_and_all_are_saved(displayed, tmp_path):
    Lab("smoke").show(pd.DataFrame({"x": range(600)}).rename_axis("block"), "long")
    assert "the first 40 of 600 rows" in displayed[0]["text/html"]
    assert len(pd.read_csv(tmp_path / "figures" / "smoke" / "long.csv")) == 600


def test_compare_is_what_the_report_says(displayed, tmp_path):
    lab = Lab("smoke")
    table, _ = reproduction(lab.p, lab.runs, [0])
    for source, name in (("Table 1", "table_1"), ("§ 3.2.1", "section_3.2.1")):
        lab.compare(source)
        some = table[table.source == source]
        expected = readable_table(some).assign(why=some.remark).to_csv(index=False)
        assert (tmp_path / "figures" / "smoke" / f"compare_{name}.csv").read_text() == expected


def test_a_remark_is_what_the_other_columns_do_not_say():
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


def test_sentences_in_a_table_are_whole_and_begin_at_the_left(displayed):
    sentence = "profile smoke trains on digits, not on CIFAR: its λ < 1 is not the paper's"
    Lab("smoke").show(pd.DataFrame({"n": [2507], "why": [sentence]}), "table")
    html, plain = displayed[0]["text/html"], displayed[0]["text/plain"]
    assert "text-align: left" in html and "its λ &lt; 1 is not the paper" in html and "<td>2,507</td>" in html
    assert sentence in plain


def test_an_interrupt_is_one_line_that_tells_what_to_do(monkeypatch):
    def interrupt(runs, configs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_grid", interrupt)
    with pytest.raises(KeyboardInterrupt) as stopped:
        Lab("smoke").run("sparse")
    assert stopped.value._render_traceback_() == [
        "Interrupted: run this cell again, and it resumes after the last whole epoch."
    ]


def test_the_bar_of_an_interrupted_training_goes(monkeypatch):
    """A notebook keeps the bar, in red, if it is closed before its end."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with pytest.raises(KeyboardInterrupt), Progress("x", epochs=2, steps=5, done=0, shown=True) as progress:
        progress.step_done()
        raise KeyboardInterrupt
    assert progress.live and progress.bar.n == progress.bar.total == 1


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


def test_data_is_what_the_profile_trains_on(digits):
    lab = Lab("smoke")
    assert len(lab.data.train_images) == lab.p.train_images
    assert len(lab.data.test_images) == len(digits.test_images)


def test_an_unknown_profile_or_experiment_is_named_with_its_nearest():
    with pytest.raises(ValueError, match="did you mean 'smoke'"):
        Lab("smok")
    with pytest.raises(ValueError, match="did you mean 'table2'"):
        Lab("smoke").run("tabel2")


def test_of_a_recorded_profile_what_is_there_is_found_and_the_rest_named_not_trained(displayed, run, monkeypatch):
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


def test_a_network_that_a_recorded_profile_does_not_have_is_named_and_how_to_get_it(run, monkeypatch, tmp_path):
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


def test_of_an_experiment_of_a_recorded_profile_only_what_is_planned_is_missed(displayed, monkeypatch, tmp_path):
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path))
    lab = Lab("smoke", seed=3)
    lab.p = replace(lab.p, recorded=True, plan=(("lambdas", (0,)), ("plain_and_sparse", (1,))))
    assert lab.run("lambdas") == []  # of seed 3, like 1, the plan has two of five λ
    assert displayed[-1].data.count("seed 3") == 2 and "more" not in displayed[-1].data
