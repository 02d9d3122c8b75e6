"""The numbered notebooks: their form, and all of them run in the smallest profile."""

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import date

import nbformat
import psutil
import pytest
from support import ROOT

from mnv3nb.runs.notebooks import RUNS_MIME, find_notebooks, parameters_of, run_notebooks, source_digest

SOURCES = find_notebooks()
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
each = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)


def cells(path) -> list:
    return nbformat.read(path, as_version=4).cells


def tagged_as(cell, name: str) -> bool:
    return name in cell.metadata.get("tags", [])


# sources


def test_lessons_are_numbered_from_0_without_a_gap_and_your_own_network_is_20():
    assert [path.name[:2] for path in SOURCES] == [f"{i:02}" for i in (*range(len(SOURCES) - 1), 20)]


@each
def test_a_notebook_is_valid_and_has_one_parameters_cell(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    tagged = [cell for cell in notebook.cells if tagged_as(cell, "parameters")]
    assert len(tagged) == 1 and tagged[0].cell_type == "code"
    assert {"profile", "seed"} <= parameters_of(path)
    for line in tagged[0].source.splitlines():
        # a line with two = is skipped by papermill's inspector
        assert re.fullmatch(r"\w+: (str|int|float|bool|list|dict)( \| None)? = [^=]+  # .+", line), line
    assert notebook.metadata.kernelspec.name == "python3"


@each
def test_a_source_has_no_outputs_counts_or_results(path):
    for cell in cells(path):
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
        assert not cell.get("attachments") and "papermill" not in cell.metadata and "execution" not in cell.metadata


@each
def test_its_cells_are_short_and_tell_a_story(path):
    found = cells(path)
    assert found[0].cell_type == "markdown" and found[0].source.startswith(f"# {path.name[:2]} · ")
    text = "\n".join(cell.source for cell in found if cell.cell_type == "markdown")
    for part in ("You will learn", "You need", "time", "Predict", "take away", "Questions", "Further reading"):
        assert part.lower() in text.lower(), part
    for cell in found:
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 15, lines[0]
            assert "print(" not in cell.source, "numbers stand in tables and figures"
            assert not re.search(r"^\s*(from \S+ import \*|%%?\w|!)", cell.source, re.MULTILINE), lines[0]


@each
def test_the_lesson_has_at_most_80_lines_of_code(path):
    """What stands before the appendix."""
    lines = 0
    for cell in cells(path):
        if cell.cell_type == "markdown" and re.search(r"^## Appendix", cell.source, re.MULTILINE):
            break
        lines += len([line for line in cell.source.splitlines() if line.strip()]) * (cell.cell_type == "code")
    assert lines <= 80


@each
def test_it_names_no_place_on_this_machine(path):
    """Paths come from `mnv3nb`, so that it runs from any folder of any machine."""
    text = "\n".join(cell.source for cell in cells(path))
    assert not re.search(r"(?<![\w.:/])/(home|root|work|tmp|Users|mnt|opt|usr|data|var)/", text)
    code = "\n".join(cell.source for cell in cells(path) if cell.cell_type == "code")
    assert not re.search(r"[A-Z]:\\\\|sys\.path|os\.chdir|\.\./", code)


# run


@pytest.fixture(scope="session")
def executed(home, tmp_path_factory) -> dict:
    """All of them, run once: failures, the folder with what they made, and how long it took."""
    elsewhere, before = tmp_path_factory.mktemp("elsewhere"), os.getcwd()
    os.chdir(elsewhere)
    start = time.monotonic()
    try:
        failures = run_notebooks(None, 600, profile="smoke")
    finally:
        os.chdir(before)
    return {"failures": failures, "folder": home / "figures" / "smoke", "minutes": (time.monotonic() - start) / 60}


def test_all_notebooks_run_in_the_smoke_profile(executed):
    assert executed["failures"] == []
    assert sorted(path.name for path in executed["folder"].glob("*.ipynb")) == [path.name for path in SOURCES]


def captions(path) -> dict[str, list[str]]:
    """The files that an executed notebook says it made, and the runs behind each."""
    found = {}
    for cell in cells(path):
        for output in cell.get("outputs", []):
            if RUNS_MIME in output.get("data", {}):
                name = re.match(r"`figures/smoke/([^`]+)`", output.data["text/markdown"])[1]
                found[name] = output.data[RUNS_MIME]
    return found


@each
def test_a_copy_has_its_outputs_its_runs_and_no_place_or_time(executed, path):
    copy = nbformat.read(executed["folder"] / path.name, as_version=4)
    assert copy.metadata["mnv3nb"]["source"] == source_digest(nbformat.read(path, as_version=4))
    code = [cell for cell in copy.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code if cell.source.strip())
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    (injected,) = (cell for cell in code if tagged_as(cell, "injected-parameters"))
    assert '"smoke"' in injected.source
    behind = captions(executed["folder"] / path.name).values()
    assert copy.metadata["mnv3nb"]["runs"] == sorted({key for keys in behind for key in keys})
    text = json.dumps(copy)
    assert str(executed["folder"].parent.parent) not in text and str(ROOT) not in text
    assert "papermill" not in copy.metadata


@each
def test_every_figure_and_table_it_names_is_there(executed, path):
    made = captions(executed["folder"] / path.name)
    assert made, "it shows nothing"
    for name in made:
        file = executed["folder"] / name
        assert file.stat().st_size > 0, name
        if name.endswith(".svg"):
            assert "<svg" in file.read_text()[:1000] and file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        else:
            rows = list(csv.reader(file.read_text().splitlines()))
            assert len(rows) > 1 and {len(row) for row in rows} == {len(rows[0])}, name


def test_nothing_was_made_that_no_notebook_names(executed):
    texts = "".join((executed["folder"] / path.name).read_text() for path in SOURCES)
    for path in executed["folder"].iterdir():
        assert path.suffix == ".ipynb" or path.with_suffix(".svg").name in texts or path.name in texts, path.name


@pytest.mark.parametrize("number", ["02", "05"])
def test_a_second_run_trains_nothing_and_makes_the_same_bytes(executed, home, number):
    if not (found := [path for path in SOURCES if path.name.startswith(number)]):
        pytest.skip(f"no notebook {number}")
    names = sorted(captions(executed["folder"] / found[0].name))
    assert any(name.endswith(".csv") for name in names) and any(name.endswith(".svg") for name in names)

    def contents():
        files = {name: (executed["folder"] / name).read_bytes() for name in names}
        return files, sorted(path.stat().st_mtime_ns for path in home.glob("runs/*/result.json"))

    before = contents()
    for name in names:
        (executed["folder"] / name).unlink()
    assert run_notebooks(number, 600, profile="smoke") == []
    assert contents() == before


# failures


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three small notebooks: the first fails in its second cell, the second does not, the third never ends."""
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path / "home"))

    def write(name, *sources):
        notebook = nbformat.v4.new_notebook(metadata={"kernelspec": KERNEL})
        notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
        notebook.cells[0].metadata["tags"] = ["parameters"]
        nbformat.write(notebook, tmp_path / name)

    bad = "print('before')\nraise ValueError('the reason')"
    write("00_bad.ipynb", 'profile: str = "digits"\nseed: int = 0', bad, "print('after')")
    write("01_good.ipynb", 'profile: str = "digits"', "print(profile, 6 * 7)")
    write(
        "02_endless.ipynb",
        'profile: str = "digits"',
        "import os, pathlib, time\npart = pathlib.Path('part')\npart.write_text(str(os.getpid()))\npart.rename('kernel')\n"
        "print('started')\ntime.sleep(600)",
    )
    return tmp_path


def test_a_failing_notebook_does_not_stop_the_rest_and_its_partial_copy_is_kept(folder, capfd):
    (failure,) = run_notebooks("00,01", 120, folder, profile="smoke", seed=3)
    assert failure == "00_bad.ipynb: cell 3: ValueError: the reason"
    made = folder / "home" / "figures" / "smoke"
    bad, good = ((made / name).read_text() for name in ("00_bad.ipynb", "01_good.ipynb"))
    assert "before" in bad and "seed = 3" in bad and '"after\\n"' not in bad
    assert "smoke 42" in good and "seed" not in json.loads(good)["cells"][1]["source"]
    printed = capfd.readouterr().out
    assert "[1/2] 00_bad" in printed and f"failed: {failure}" in printed and "[2/2] 01_good" in printed


def ended(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def test_a_notebook_that_does_not_end_is_ended(folder):
    start = time.monotonic()
    (failure,) = run_notebooks("02", 8, folder, profile="smoke")
    assert failure.startswith("02_endless.ipynb: ") and time.monotonic() - start < 100
    assert ended(int((folder / "kernel").read_text()))
    assert "started" in (folder / "home" / "figures" / "smoke" / "02_endless.ipynb").read_text()


def test_an_interrupted_notebook_leaves_no_kernel_behind(folder):
    def interrupt():
        deadline = time.monotonic() + 60
        while not (folder / "kernel").is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_notebooks("02", 60, folder, profile="smoke")
    assert ended(int((folder / "kernel").read_text()))


def test_a_killed_call_leaves_neither_process_nor_half_a_copy(folder):
    imports = "from pathlib import Path; from mnv3nb.runs.notebooks import run_notebooks"
    call = f"{imports}; run_notebooks('02', 60, Path({str(folder)!r}), profile='smoke')"
    process = subprocess.Popen([sys.executable, "-c", call], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while not (folder / "kernel").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert started and not psutil.wait_procs(started, timeout=30)[1]  # its kernel
    assert not (folder / "home" / "figures" / "smoke").exists()


def test_of_a_run_that_left_no_copy_an_old_one_stays_and_the_failure_is_told(folder, monkeypatch):
    (folder / "01_good.ipynb").write_text("{}")
    copy = folder / "home" / "figures" / "smoke" / "01_good.ipynb"
    copy.parent.mkdir(parents=True)
    copy.write_text("old")
    monkeypatch.setattr("mnv3nb.runs.notebooks.parameters_of", lambda path: {"profile"})
    (failure,) = run_notebooks("01", 60, folder, profile="smoke")
    assert "left no copy" in failure and copy.read_text() == "old"


def test_unknown_parameters_profiles_and_numbers_are_refused_before_anything_runs(folder):
    for arguments, parameters, message in (
        ((None, 60, folder), {"sede": 1}, "no notebook has a parameter sede; there are profile, seed"),
        ((None, 60, folder), {"folder": "x"}, "no notebook has a parameter folder"),
        (("01", 60, folder), {"seed": 1}, "no notebook has a parameter seed; there are profile"),
        (("01", float("inf"), folder), {}, "timeout must be a number of seconds above 0, got inf"),
        (("00", 60, folder), {"seed": date(2020, 1, 1)}, "parameters must be plain numbers, words or lists"),
        (("07", 60, folder), {}, "no notebook numbered 07; there are 00, 01, 02"),
        ((None, 60, folder), {"profile": "smokey"}, "unknown profile 'smokey'; did you mean 'smoke'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            run_notebooks(*arguments, **parameters)
    with pytest.raises(FileNotFoundError, match="no numbered notebooks in"):
        run_notebooks(None, 60, folder / "home")
    assert not (folder / "home").exists()


@pytest.mark.parametrize("tags", [[[], []], [["parameters"], ["parameters"]]])
def test_a_notebook_needs_exactly_one_parameters_cell(tmp_path, tags):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell("profile: str = 'x'", metadata={"tags": t}) for t in tags]
    nbformat.write(notebook, tmp_path / "00_a.ipynb")
    with pytest.raises(ValueError, match=r"00_a\.ipynb must have one cell tagged 'parameters', it has (0|2)"):
        run_notebooks(None, 60, tmp_path)
