"""Run the numbered notebooks headless, one after another, and keep their executed copies in figures/<profile>/."""

import ast
import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil

from ..system.files import CHECKOUT, default_home, write_file
from .profiles import get_profile

SOURCES = CHECKOUT / "notebooks"
RUNS_MIME = "application/vnd.mnv3nb.runs+json"  # in an output: the keys of the runs behind it


def find_notebooks(only: str | None = None, folder: Path | None = None) -> list[Path]:
    """The numbered notebooks, or those that `only` names ("02,05"); raises ValueError for a number without one."""
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
    nodes = ast.walk(ast.parse(cells[0].source))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def source_digest(notebook: nbformat.NotebookNode) -> str:
    """A hash of a notebook's content: its cells' sources, without the cell that papermill injects."""
    cells = [(c.cell_type, c.source) for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def run_notebooks(only: str | None = None, timeout: float = 3600, folder: Path | None = None, /, **parameters) -> list:
    """Run notebooks with papermill; returns one line for each that failed (its partial copy is kept).

    `parameters` (profile, seed, ...) go to every notebook that has them. `timeout`: seconds for each notebook.
    Raises ValueError for an unknown profile or notebook, or a parameter that none of the notebooks has.
    """
    paths = find_notebooks(only, folder)
    profile = get_profile(parameters.setdefault("profile", "digits"))
    known = {path: parameters_of(path) for path in paths}
    _check(timeout, parameters, set().union(*known.values()))
    failures, start, spent = [], time.perf_counter(), 0.0
    minutes = {path: profile.minutes.get(int(path.name[:2]), 0.5) for path in paths}
    for number, path in enumerate(paths, 1):
        pace = (time.perf_counter() - start) / 60 / spent if spent else 1.0
        left = pace * sum(minutes[p] for p in paths[number - 1 :])
        print(f"[{number}/{len(paths)}] {path.stem}; about {left:.1f} min left in all", flush=True)
        given = {"seeds": profile.seeds} | parameters
        given = {key: value for key, value in given.items() if key in known[path]}
        if error := _run_notebook(path, default_home() / "figures" / profile.name / path.name, given, timeout):
            failures.append(f"{path.name}: {error}")
            print(f"    failed: {failures[-1]}", flush=True)
        spent += minutes[path]
    return failures


def _check(timeout: float, parameters: dict, known: set[str]) -> None:
    if not 0 < timeout < 1e9:
        raise ValueError(f"timeout must be a number of seconds above 0, got {timeout!r}")
    try:
        json.dumps(parameters)
    except TypeError as error:
        raise ValueError(f"parameters must be plain numbers, words or lists ({error})") from error
    if unknown := sorted(set(parameters) - known):
        raise ValueError(f"no notebook has a parameter {', '.join(unknown)}; there are {', '.join(sorted(known))}")


def _run_notebook(path: Path, copy: Path, parameters: dict, timeout: float) -> str | None:
    """Runs one notebook; what it leaves, whole or not, replaces `copy` in the end, and not before."""
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, path.name)
        error = _execute(path, made, parameters, timeout)
        if not made.is_file():
            return f"{error or 'papermill'} left no copy"
        notebook = nbformat.read(made, as_version=4)
        _stamp(notebook, nbformat.read(path, as_version=4))
        _relink(notebook, path.parent, copy.parent)
        write_file(copy, nbformat.writes(notebook) + "\n")
        return error


def _execute(path: Path, made: Path, parameters: dict, timeout: float) -> str | None:
    """Papermill in a thread: whatever happens to it, this one can kill the kernel. Returns what went wrong."""
    from papermill import PapermillExecutionError, execute_notebook  # late: kernels import this module, too

    errors = []

    def work() -> None:
        options = {"kernel_name": "python3", "progress_bar": False, "stdout_file": sys.stdout, "cwd": path.parent}
        try:
            execute_notebook(path, made, parameters, **options, execution_timeout=int(timeout))
        except PapermillExecutionError as error:
            errors.append(f"cell {error.exec_count}: {error.ename}: {error.evalue}")
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}".splitlines()[0])

    thread = threading.Thread(target=work, daemon=True)
    try:
        with _kernel_environment():
            thread.start()
            thread.join(timeout + 30)
            late = thread.is_alive()
    finally:
        thread.join(30)  # without its kernel papermill ends, and this process has its working folder back
    return f"no end after {timeout:.0f} s" if late else next(iter(errors), None)


@contextlib.contextmanager
def _kernel_environment() -> Iterator[None]:
    """Kernels started in it import this package, show no live progress bars, and end with it."""
    me, before = psutil.Process(), dict(os.environ)
    others = me.children(recursive=True)
    os.environ |= {"MNV3NB_HEADLESS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(CHECKOUT), before.get("PYTHONPATH"))))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
        started = set(me.children(recursive=True)).difference(others)
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(started, timeout=30)


def _relink(notebook: nbformat.NotebookNode, source: Path, place: Path) -> None:
    """In figures/PROFILE/, links to what lies beside the source, but not beside the copy, lead to notebooks/."""

    def moved(link: re.Match) -> str:
        elsewhere = (source / link[1]).exists() and not (place / link[1]).exists()
        return f"](../../notebooks/{link[1]}" if elsewhere else link[0]

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\(([\w./]+)", moved, cell.source)


def _stamp(notebook: nbformat.NotebookNode, source: nbformat.NotebookNode) -> None:
    """Leaves out times and paths, and notes the source and the runs that the copy was made from."""
    keys = set()
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            keys.update(output.get("data", {}).get(RUNS_MIME, []))
    notebook.metadata.pop("papermill", None)
    notebook.metadata["mnv3nb"] = {"source": source_digest(source), "runs": sorted(keys)}
