"""The numbered notebooks: their form, all of them executed in the smallest profile, and how an execution can fail."""

import ast
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
from dataclasses import replace
from datetime import date

import nbformat
import psutil
import pytest
from support import ROOT

from mnv3nb.runs import notebooks as module
from mnv3nb.runs.notebooks import RUNS_MIME, copy_digest, find_notebooks, parameters_of, run_notebooks

SOURCES = find_notebooks()
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)


def cells(path) -> list:
    return nbformat.read(path, as_version=4).cells


def tagged_as(cell, name: str) -> bool:
    return name in cell.metadata.get("tags", [])


# sources


def test_lessons_are_numbered_from_0_without_a_gap_and_your_own_network_is_20():
    assert [path.name[:2] for path in SOURCES] == [f"{i:02}" for i in (*range(len(SOURCES) - 1), 20)]


@each_source
def test_a_notebook_is_valid_and_has_one_parameters_cell(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    tagged = [cell for cell in notebook.cells if tagged_as(cell, "parameters")]
    assert len(tagged) == 1 and tagged[0].cell_type == "code"
    lines = tagged[0].source.splitlines()
    for line in lines:
        assert re.fullmatch(r"\w+: (str|int|float|bool|list|dict) = [^=]+  # .+", line), line
    # papermill's inspector skips a line that it does not understand
    assert parameters_of(path) == {line.partition(":")[0] for line in lines}
    assert {"profile", "seed"} <= parameters_of(path)
    assert notebook.metadata.kernelspec.name == "python3"


@each_source
def test_a_source_has_no_outputs_and_no_execution_counts(path):
    for cell in cells(path):
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
        assert not cell.get("attachments") and "papermill" not in cell.metadata and "execution" not in cell.metadata


@each_source
def test_a_notebook_is_a_lesson_of_short_cells(path):
    found = cells(path)
    assert found[0].cell_type == "markdown" and found[0].source.startswith(f"# {path.name[:2]} · ")
    text = "\n".join(cell.source for cell in found if cell.cell_type == "markdown")
    for part in ("You will learn", "You need", "time", "Predict", "take away", "Questions", "Further reading"):
        assert part.lower() in text.lower(), part
    for cell in found:
        if cell.cell_type == "code":
            assert lines_to_read(cell.source) <= 15, cell.source
            assert "print(" not in cell.source, "numbers stand in tables and figures"
            assert not re.search(r"^\s*(from \S+ import \*|%%?\w|!)", cell.source, re.MULTILINE), cell.source


def lines_to_read(code: str) -> int:
    """The lines of a cell without its imports, of which a notebook needs as many as it needs."""
    statements = [node for node in ast.parse(code).body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return sum(node.end_lineno - node.lineno + 1 for node in statements)


@each_source
def test_a_notebook_names_no_path_of_this_machine(path):
    """It gets its paths from `mnv3nb`, so that it runs from any folder of any machine."""
    text = "\n".join(cell.source for cell in cells(path))
    assert not re.search(r"(?<![\w.:/])/(home|root|work|tmp|Users|mnt|opt|usr|data|var)/", text)
    code = "\n".join(cell.source for cell in cells(path) if cell.cell_type == "code")
    assert not re.search(r"[A-Z]:\\\\|sys\.path|os\.chdir|\.\./", code)


# run


@pytest.fixture(scope="session")
def executed(home, tmp_path_factory) -> dict:
    """All notebooks, executed once, from another folder: which failed, and the folder with what they made."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    try:
        failures = run_notebooks(None, 600, profile="smoke")
    finally:
        os.chdir(before)
    return {"failures": failures, "folder": home / "figures" / "smoke"}


def test_all_notebooks_succeed_in_the_smoke_profile(executed):
    assert executed["failures"] == []
    assert sorted(path.name for path in executed["folder"].glob("*.ipynb")) == [path.name for path in SOURCES]


def captions(path) -> dict[str, list[str]]:
    """The files that the captions of an executed notebook name, and the runs behind each."""
    found = {}
    for cell in cells(path):
        for output in cell.get("outputs", []):
            if RUNS_MIME in output.get("data", {}):
                name = re.match(r"`figures/smoke/([^`]+)`", output.data["text/markdown"])[1]
                found[name] = output.data[RUNS_MIME]
    return found


@each_source
def test_a_copy_has_outputs_its_runs_and_its_digest_and_no_paths_or_times(executed, path):
    copy = nbformat.read(executed["folder"] / path.name, as_version=4)
    code = [cell for cell in copy.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code if cell.source.strip())
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    (injected,) = (cell for cell in code if tagged_as(cell, "injected-parameters"))
    assert '"smoke"' in injected.source
    runs = set()
    for keys in captions(executed["folder"] / path.name).values():
        runs.update(keys)
    source = nbformat.read(path, as_version=4)
    assert copy.metadata["mnv3nb"] == {"digest": copy_digest(source, list(runs)), "runs": sorted(runs)}
    text = json.dumps(copy)
    assert str(executed["folder"].parent.parent) not in text and str(ROOT) not in text
    assert "papermill" not in copy.metadata


@each_source
def test_every_figure_and_table_that_a_copy_names_is_there(executed, path):
    made = captions(executed["folder"] / path.name)
    assert made, "the notebook shows nothing"
    for name in made:
        file = executed["folder"] / name
        assert file.stat().st_size > 0, name
        if name.endswith(".svg"):
            assert "<svg" in file.read_text()[:1000] and file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        else:
            rows = list(csv.reader(file.read_text().splitlines()))
            assert len(rows) > 1 and {len(row) for row in rows} == {len(rows[0])}, name


def test_every_file_made_is_named_in_a_copy(executed):
    texts = "".join((executed["folder"] / path.name).read_text() for path in SOURCES)
    for path in executed["folder"].iterdir():
        assert path.suffix == ".ipynb" or path.with_suffix(".svg").name in texts or path.name in texts, path.name


@pytest.mark.parametrize("number", ["02", "05"])
def test_a_second_execution_trains_nothing_and_makes_the_same_bytes(executed, home, number):
    (path,) = find_notebooks(number)
    names = sorted(captions(executed["folder"] / path.name))
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
    """Three small notebooks: the first fails in its second cell, the second succeeds, the third does not end."""
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
    assert "[1/2] 00_bad\n" in printed and f"failed: {failure}" in printed and "[2/2] 01_good; about" in printed


def test_the_time_left_is_told_after_the_first_notebook_and_scaled_by_those_that_have_ended(
    folder, monkeypatch, capsys
):
    expected = replace(module.get_profile("smoke"), minutes={0: 1, 1: 2, 2: 3})
    now = [0.0]

    def run(path, copy, given, timeout):
        now[0] += {"00_bad.ipynb": 10, "01_good.ipynb": 50, "02_endless.ipynb": 70}[path.name]

    monkeypatch.setattr(module, "get_profile", lambda name: expected)
    monkeypatch.setattr(module, "_run_notebook", run)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    run_notebooks(None, 60, folder)
    assert capsys.readouterr().out.splitlines() == [
        "[1/3] 00_bad",
        "[2/3] 01_good; about 50 s left in all",
        "[3/3] 02_endless; about 60 s left in all",
    ]


def ended(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def test_a_notebook_that_does_not_end_is_killed(folder):
    start = time.monotonic()
    (failure,) = run_notebooks("02", 8, folder, profile="smoke")
    assert failure.startswith("02_endless.ipynb: ")
    assert time.monotonic() - start < 100
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


def test_an_execution_that_leaves_no_copy_is_a_failure_and_keeps_the_old_copy(folder, monkeypatch):
    (folder / "01_good.ipynb").write_text("{}")
    copy = folder / "home" / "figures" / "smoke" / "01_good.ipynb"
    copy.parent.mkdir(parents=True)
    copy.write_text("old")
    monkeypatch.setattr("mnv3nb.runs.notebooks.parameters_of", lambda path: {"profile"})
    (failure,) = run_notebooks("01", 60, folder, profile="smoke")
    assert "no copy was written" in failure and copy.read_text() == "old"


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


def test_a_home_that_cannot_be_written_is_refused_before_anything_runs(folder, monkeypatch):
    monkeypatch.setenv("MNV3NB_HOME", str(folder / "00_bad.ipynb" / "home"))
    monkeypatch.setattr(module, "_run_notebook", None)
    with pytest.raises(OSError, match="set MNV3NB_HOME to a folder in which you may write"):
        run_notebooks(None, 60, folder, profile="smoke")


@pytest.mark.parametrize("tags", [[[], []], [["parameters"], ["parameters"]]])
def test_a_notebook_needs_exactly_one_parameters_cell(tmp_path, tags):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell("profile: str = 'x'", metadata={"tags": t}) for t in tags]
    nbformat.write(notebook, tmp_path / "00_a.ipynb")
    with pytest.raises(ValueError, match=r"00_a\.ipynb must have one cell tagged 'parameters', it has (0|2)"):
        run_notebooks(None, 60, tmp_path)
