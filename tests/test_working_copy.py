"""`make lab` works on a copy: what a user does to it is kept, and never reaches the sources."""

import json
import subprocess
from pathlib import Path

import nbformat
import pytest
from support import ROOT
from working_copy import START, working_copy

from mnv3nb.runs.notebooks import SOURCES


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path / "home"))
    folder = tmp_path / "notebooks"
    write(folder / "00_a.ipynb", "x = 1")
    write(folder / "exercises" / "b.ipynb", "y = 1")
    (folder / ".ipynb_checkpoints").mkdir()
    write(folder / ".ipynb_checkpoints" / "00_a.ipynb", "x = 0")
    (folder / START).write_text("start")
    return folder


def write(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id="one")]), path)


def source(path: Path) -> str:
    return nbformat.read(path, as_version=4).cells[0].source


def run_by_hand(path: Path) -> None:
    """What JupyterLab leaves in a file: outputs, counts and metadata."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].execution_count, notebook.metadata["language_info"] = 1, {"name": "python", "version": "3"}
    nbformat.write(notebook, path)


def test_it_has_the_notebooks_and_the_page_to_start_from(sources):
    copy = working_copy(sources)
    names = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert names == {"00_a.ipynb", "exercises/b.ipynb", START, ".copied.json"}


def test_an_edited_file_is_kept_and_any_other_brought_up_to_date(sources):
    copy = working_copy(sources)
    write(copy / "00_a.ipynb", "x = 'mine'")
    run_by_hand(copy / "exercises" / "b.ipynb")
    write(sources / "00_a.ipynb", "x = 2")
    write(sources / "exercises" / "b.ipynb", "y = 2")
    for _ in range(2):
        working_copy(sources)
        assert source(copy / "00_a.ipynb") == "x = 'mine'"
        assert source(copy / "exercises" / "b.ipynb") == "y = 2"
    (copy / "00_a.ipynb").unlink()
    working_copy(sources)
    assert source(copy / "00_a.ipynb") == "x = 2"


def test_outputs_stay_while_the_source_is_the_same(sources):
    run_by_hand(working_copy(sources) / "00_a.ipynb")
    assert nbformat.read(working_copy(sources) / "00_a.ipynb", as_version=4).cells[0].execution_count == 1


def test_a_file_that_is_no_notebook_any_more_is_kept(sources):
    broken = working_copy(sources) / "00_a.ipynb"
    broken.write_text("{")
    write(sources / "00_a.ipynb", "x = 2")
    assert (working_copy(sources) / "00_a.ipynb").read_text() == "{"


def test_git_does_not_look_where_it_is():
    asked = subprocess.run(["git", "check-ignore", "-q", "runs/notebooks/00_quickstart.ipynb"], cwd=ROOT)
    if asked.returncode == 128:
        pytest.skip("not a git checkout")
    assert asked.returncode == 0


def test_lab_starts_on_a_page_that_is_there_shown_as_text():
    assert (SOURCES / START).is_file()
    settings = json.loads((SOURCES / ".jupyter" / "labconfig" / "default_setting_overrides.json").read_text())
    assert settings["@jupyterlab/docmanager-extension:plugin"]["defaultViewers"] == {"markdown": "Markdown Preview"}
