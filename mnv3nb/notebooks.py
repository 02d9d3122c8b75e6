"""Run the numbered notebooks headless, one after another, and keep their executed copies in figures/<profile>/."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import psutil

from .checkpoint import write_atomically
from .data import default_home
from .plots import RUNS_MIME
from .profiles import get_profile

SOURCES = Path(__file__).resolve().parent.parent / "notebooks"


def find_notebooks(only: str | None = None, folder: Path | None = None) -> list[Path]:
    """The numbered notebooks, or those whose numbers `only` names ("02,05"); raises ValueError for a number without one."""
    paths = {path.name[:2]: path for path in sorted((folder or SOURCES).glob("[0-9][0-9]_*.ipynb"))}
    if not paths:
        raise FileNotFoundError(f"no numbered notebooks in {folder or SOURCES}; run from a checkout of the repository")
    numbers = [n.strip().zfill(2) for n in only.split(",")] if only else list(paths)
    if wrong := [n for n in numbers if n not in paths]:
        raise ValueError(f"no notebook numbered {', '.join(wrong)}; there are {', '.join(paths)}")
    return [paths[n] for n in numbers]


def parameters_of(path: Path) -> set[str]:
    """Names that the notebook's `parameters` cell sets; raises ValueError unless there is exactly one such cell."""
    cells = [c for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{path.name} must have one cell tagged 'parameters', it has {len(cells)}")
    return {line.split(":")[0].split("=")[0].strip() for line in cells[0].source.splitlines() if "=" in line.split("#")[0]}


def source_digest(notebook: nbformat.NotebookNode) -> str:
    """A hash of what a notebook says and does: its cells' sources, without the cell that papermill injects."""
    cells = [(c.cell_type, c.source) for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def run_notebooks(only: str | None = None, timeout: float = 3600, folder: Path | None = None, /, **parameters) -> list[str]:
    """Run notebooks with papermill; returns one line for each that failed (its partial copy is kept).

    `parameters` (profile, seed, ...) go to every notebook that has them. `timeout`: seconds for each notebook.
    Raises ValueError for an unknown profile or notebook, or a parameter that none of the notebooks has.
    """
    paths = find_notebooks(only, folder)
    profile = get_profile(parameters.setdefault("profile", "digits"))
    if not 0 < timeout < 1e9:
        raise ValueError(f"timeout must be a number of seconds above 0, got {timeout!r}")
    try:
        json.dumps(parameters)
    except TypeError as error:
        raise ValueError(f"parameters must be plain numbers, words or lists ({error})") from error
    names = {path: parameters_of(path) for path in paths}
    if unknown := set(parameters) - set().union(*names.values()):
        known = ", ".join(sorted(set().union(*names.values())))
        raise ValueError(f"no notebook has a parameter {', '.join(sorted(unknown))}; there are {known}")
    failures, start, spent = [], time.perf_counter(), 0.0
    minutes = {path: profile.minutes.get(path.name[:2], 0.5) for path in paths}
    for number, path in enumerate(paths, 1):
        pace = (time.perf_counter() - start) / 60 / spent if spent else 1.0
        left = pace * sum(minutes[p] for p in paths[number - 1 :])
        print(f"[{number}/{len(paths)}] {path.stem}; about {left:.1f} min left in all", flush=True)
        given = {key: value for key, value in parameters.items() if key in names[path]}
        if error := _run_notebook(path, default_home() / "figures" / profile.name / path.name, given, timeout):
            failures.append(f"{path.name}: {error}")
            print(f"    failed: {failures[-1]}", flush=True)
        spent += minutes[path]
    return failures


# papermill that ends when the process that started it is gone, even if that was killed; its kernel then ends by itself
PAPERMILL = """
import os, threading, time
def watch(parent=os.getppid()):
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
from papermill.cli import papermill
papermill()
"""


def _run_notebook(path: Path, copy: Path, parameters: dict, timeout: float) -> str | None:
    """Runs one notebook; what it leaves, whole or not, replaces `copy` in the end, and not before."""
    with tempfile.TemporaryDirectory() as scratch:
        return _execute(path, Path(scratch, path.name), copy, parameters, timeout)


def _execute(path: Path, made: Path, copy: Path, parameters: dict, timeout: float) -> str | None:
    command = [sys.executable, "-c", PAPERMILL, str(path), str(made), "--kernel", "python3", "--no-progress-bar"]
    command += ["--stdout-file", "-", "--execution-timeout", str(int(timeout))]
    for key, value in parameters.items():
        command += ["--parameters_yaml", json.dumps({key: value})]
    environ = os.environ | {
        "MNV3NB_HEADLESS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONWARNINGS": "ignore::UserWarning:papermill",
    }
    environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")))
    )
    process = subprocess.Popen(command, env=environ, cwd=path.parent, start_new_session=True)
    try:
        code = process.wait(timeout=timeout + 30)
    except subprocess.TimeoutExpired:
        code = f"no end after {timeout:.0f} s"
    finally:
        _kill(process)
    if not made.is_file():
        return f"papermill ended with {code} and left no copy"
    notebook = nbformat.read(made, as_version=4)
    _stamp(notebook, nbformat.read(path, as_version=4))
    with write_atomically(copy) as file:
        file.write((nbformat.writes(notebook) + "\n").encode())
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"cell {cell.execution_count}: {output.ename}: {output.evalue}"
    return f"papermill ended with {code}" if code else None


def _kill(process: subprocess.Popen) -> None:
    """Ends papermill, its kernel, which has a session of its own, and whatever the kernel started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def _stamp(notebook: nbformat.NotebookNode, source: nbformat.NotebookNode) -> None:
    """Leaves out times and paths, and notes the source and the runs that the copy was made from."""
    keys = []
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            keys += output.get("data", {}).get(RUNS_MIME, [])
    notebook.metadata.pop("papermill", None)
    notebook.metadata["mnv3nb"] = {"source": source_digest(source), "runs": sorted(set(keys))}
