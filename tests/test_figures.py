"""Every figure and table of the paper has a notebook and a file, made from this repository's sources and runs."""

import copy
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from support import ROOT

from mnv3nb.runs.notebooks import RUNS_MIME, SOURCES, copy_digest, find_notebooks, runs_behind, with_current_prose
from mnv3nb.runs.profiles import EXPERIMENTS, get_profile

FIGURES = ROOT / "figures" / "digits"
COPIES = sorted(ROOT.glob("figures/*/*.ipynb"))
PAPER = {
    "Figure 1": ("01_architecture", "fig1_unit.svg"),
    "Figure 2": ("01_architecture", "fig2_depthwise_separable.svg"),
    "Figure 3": ("01_architecture", "fig3_inverted_residual.svg"),
    "Figure 4": ("04_pruning", "fig4_method.svg"),
    "Figure 5": ("04_pruning", "fig5_unit_before_after.svg"),
    "Figure 6": ("02_sparse_training", "fig6_gamma_by_lambda.svg"),
    "Figure 7": ("03_importance", "fig7_gamma_s_m.svg"),
    "Figure 8": ("07_feature_maps", "fig8_feature_maps.svg"),
    "Table 1": ("01_architecture", "table1_shares.csv"),
    "Table 2": ("03_importance", "table2_thresholds.csv"),
    "Table 3": ("05_rate_vs_accuracy", "table3_rate_accuracy.csv"),
    "Table 4": ("06_criteria", "table4_criteria.csv"),
    "Table 5": ("04_pruning", "table5_widths.csv"),
    "Table 6": ("08_cifar100", "table6_paper_only.csv"),
    "Every number": ("11_reproduction_report", "report.csv"),
}


@pytest.mark.parametrize("item", PAPER)
def test_the_notebook_makes_the_file(item):
    notebook, file = PAPER[item]
    if not (FIGURES / f"{notebook}.ipynb").exists():
        pytest.skip(f"not executed here yet: make figures ONLY={notebook[:2]}")
    text = (FIGURES / f"{notebook}.ipynb").read_text()
    assert (FIGURES / file).stat().st_size > 100
    assert f"figures/digits/{file}" in text, f"{item}: {notebook} does not say that it made {file}"
    if file.endswith(".svg"):
        assert (FIGURES / file).with_suffix(".png").exists()


def test_every_executed_copy_has_its_notebook():
    sources = {path.name for path in find_notebooks()}
    assert {path.name for path in COPIES} <= sources


def why_outdated(executed: NotebookNode, source: NotebookNode) -> str | None:
    """What is wrong with an executed copy of `source`; None if it is as its execution left it and up to date."""
    noted = executed.metadata.get("mnv3nb", {})
    if "digest" not in noted:
        return "the copy has no digest"
    if noted["runs"] != runs_behind(executed):
        return "the runs noted are not those behind the outputs: the copy was edited"
    if noted["digest"] != copy_digest(executed, noted["runs"]):
        return "the digest is not that of the copy's code and runs: the copy was edited"
    if noted["digest"] != copy_digest(source, noted["runs"]):
        return "the notebook's code has changed since"
    return None


@pytest.mark.parametrize("path", COPIES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_an_executed_copy_is_up_to_date_and_made_from_known_runs(path: Path):
    executed = nbformat.read(path, as_version=4)
    source = nbformat.read(SOURCES / path.name, as_version=4)
    again = f"make figures PROFILE={path.parent.name} ONLY={path.name[:2]}"
    reason = why_outdated(executed, source)
    assert reason is None, f"{reason}; {again}"
    profile = get_profile(path.parent.name)
    known = {folder.name for folder in (ROOT / "results").glob("*")}
    for name in EXPERIMENTS:
        known.update(config.key for config in profile.experiment(name))
    unknown = set(runs_behind(executed)) - known
    assert not unknown, f"the outputs are from other runs; {again}"
    for cell in executed.cells:
        assert not [output for output in cell.get("outputs", []) if output.output_type == "error"]


@pytest.fixture
def source() -> NotebookNode:
    cells = [
        nbformat.v4.new_markdown_cell("# 00 · Title", id="title"),
        nbformat.v4.new_code_cell("seed = 0", id="parameters", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("show(run)", id="show"),
        nbformat.v4.new_markdown_cell("The end.", id="end"),
    ]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.fixture
def executed(source) -> NotebookNode:
    """A copy of `source` as an execution leaves it."""
    executed = copy.deepcopy(source)
    injected = nbformat.v4.new_code_cell("seed = 1", metadata={"tags": ["injected-parameters"]})
    executed.cells.insert(2, injected)
    data = {"text/plain": "a figure", RUNS_MIME: ["b", "a"]}
    executed.cells[3].outputs = [nbformat.v4.new_output("display_data", data)]
    executed.metadata["mnv3nb"] = {"digest": copy_digest(executed, ["a", "b"]), "runs": ["a", "b"]}
    return executed


def test_an_executed_copy_stays_up_to_date_when_prose_changes(executed, source):
    assert why_outdated(executed, source) is None
    source.cells[3].source = "The very end."
    executed.cells[0].source = "# Another title"
    assert why_outdated(executed, source) is None


def test_a_copy_is_outdated_when_the_code_of_its_source_changes(executed, source):
    source.cells[2].source = "show(other_run)"
    assert why_outdated(executed, source) == "the notebook's code has changed since"


def test_a_copy_whose_code_was_edited_with_its_source_is_outdated(executed, source):
    source.cells[2].source = "show(other_run)"
    executed.cells[3].source = "show(other_run)"
    assert "the copy was edited" in why_outdated(executed, source)


def test_a_copy_whose_runs_were_edited_is_outdated(executed, source):
    in_metadata = copy.deepcopy(executed)
    in_metadata.metadata["mnv3nb"]["runs"] = ["a", "c"]
    assert "the copy was edited" in why_outdated(in_metadata, source)
    everywhere = copy.deepcopy(in_metadata)
    everywhere.cells[3].outputs[0].data[RUNS_MIME] = ["a", "c"]
    assert "the copy was edited" in why_outdated(everywhere, source)


def test_a_copy_is_shown_with_the_prose_of_its_source_and_its_own_outputs(executed, source):
    source.cells[0].source = "# 00 · A better title"
    source.cells.insert(2, nbformat.v4.new_markdown_cell("Look at the first block.", id="look"))
    shown = with_current_prose(executed, source)
    assert [cell.source for cell in shown.cells] == [
        "# 00 · A better title",
        "seed = 0",
        "Look at the first block.",
        "show(run)",
        "The end.",
    ]
    assert shown.cells[3].outputs == executed.cells[3].outputs
    assert shown.metadata == executed.metadata
    nbformat.validate(shown)


def test_a_copy_of_other_code_is_shown_with_its_own_prose(executed, source):
    source.cells[0].source = "# 00 · A better title"
    source.cells[2].source = "show(other_run)"
    assert with_current_prose(executed, source) == executed
