"""`make lab` opens a copy of the notebooks: what a user changes there is kept and never reaches the sources."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from support import ROOT
from working_copy import START, update_working_copy

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
    """Leaves in a file what JupyterLab does: counts and metadata."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].execution_count = 1
    notebook.metadata["language_info"] = {"name": "python", "version": "3"}
    nbformat.write(notebook, path)


def test_the_copy_has_the_notebooks_and_the_page_to_start_from(sources):
    copy = update_working_copy(sources)
    names = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert names == {"00_a.ipynb", "exercises/b.ipynb", START, ".copied.json"}


def test_an_edited_file_is_kept_and_all_others_are_brought_up_to_date(sources):
    copy = update_working_copy(sources)
    write(copy / "00_a.ipynb", "x = 'mine'")
    run_by_hand(copy / "exercises" / "b.ipynb")
    write(sources / "00_a.ipynb", "x = 2")
    write(sources / "exercises" / "b.ipynb", "y = 2")
    for _ in range(2):
        update_working_copy(sources)
        assert source(copy / "00_a.ipynb") == "x = 'mine'"
        assert source(copy / "exercises" / "b.ipynb") == "y = 2"
    (copy / "00_a.ipynb").unlink()
    update_working_copy(sources)
    assert source(copy / "00_a.ipynb") == "x = 2"


def test_notes_that_a_user_writes_between_cells_are_kept(sources):
    copy = update_working_copy(sources) / "00_a.ipynb"
    notebook = nbformat.read(copy, as_version=4)
    notebook.cells.append(nbformat.v4.new_markdown_cell("my note", id="note"))
    nbformat.write(notebook, copy)
    write(sources / "00_a.ipynb", "x = 2")
    update_working_copy(sources)
    assert nbformat.read(copy, as_version=4).cells[1].source == "my note"


def test_outputs_stay_while_the_source_is_the_same(sources):
    run_by_hand(update_working_copy(sources) / "00_a.ipynb")
    assert nbformat.read(update_working_copy(sources) / "00_a.ipynb", as_version=4).cells[0].execution_count == 1


def test_a_notebook_that_the_user_has_broken_is_kept(sources):
    broken = update_working_copy(sources) / "00_a.ipynb"
    broken.write_text("{")
    write(sources / "00_a.ipynb", "x = 2")
    assert (update_working_copy(sources) / "00_a.ipynb").read_text() == "{"


def test_git_ignores_the_copy():
    asked = subprocess.run(["git", "check-ignore", "-q", "runs/notebooks/00_quickstart.ipynb"], cwd=ROOT)
    if asked.returncode == 128:
        pytest.skip("not a git checkout")
    assert asked.returncode == 0


def test_jupyterlab_opens_the_start_page_as_rendered_text():
    assert (SOURCES / START).is_file()
    settings = json.loads((SOURCES / ".jupyter" / "labconfig" / "default_setting_overrides.json").read_text())
    assert settings["@jupyterlab/docmanager-extension:plugin"]["defaultViewers"] == {"markdown": "Markdown Preview"}


def test_make_lab_starts_jupyterlab_in_the_copy_with_its_settings(tmp_path):
    """`make lab` runs this file as a script; `--show-config` ends JupyterLab before it serves."""
    (tmp_path / "home").mkdir()
    command = [sys.executable, "notebooks/working_copy.py", "--allow-root", "--show-config"]
    folders = {"MNV3NB_HOME": str(tmp_path / "home"), "JUPYTER_RUNTIME_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(command, cwd=ROOT, env=os.environ | folders, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert f"default_url = '/lab/tree/{START}'" in shown.stdout
    assert (tmp_path / "home" / "runs" / "notebooks" / START).is_file()
