"""Every figure and table of the paper has a notebook and a file, made from this repository's sources and runs."""

from pathlib import Path

import nbformat
import pytest

from mnv3nb.runs.notebooks import SOURCES, find_notebooks, source_digest
from mnv3nb.runs.profiles import EXPERIMENTS, get_profile

FIGURES = Path(__file__).parent.parent / "figures" / "digits"
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
    assert {path.name for path in FIGURES.glob("*.ipynb")} <= sources


@pytest.mark.parametrize(
    "path", sorted(FIGURES.parent.glob("*/*.ipynb")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_an_executed_copy_is_of_its_source_and_of_its_profiles_runs(path):
    copy = nbformat.read(path, as_version=4)
    made_from = source_digest(nbformat.read(SOURCES / path.name, as_version=4))
    again = f"make figures PROFILE={path.parent.name} ONLY={path.name[:2]}"
    assert copy.metadata["mnv3nb"]["source"] == made_from, f"{again}: the notebook has changed since"
    profile = get_profile(path.parent.name)
    known = {config.key for name in EXPERIMENTS for config in profile.experiment(name)}
    recorded = {folder.name for folder in (FIGURES.parent.parent / "results").glob("*")}
    assert set(copy.metadata["mnv3nb"]["runs"]) <= known | recorded, f"{again}: other runs"
    assert not [o for c in copy.cells for o in c.get("outputs", []) if o.output_type == "error"]
