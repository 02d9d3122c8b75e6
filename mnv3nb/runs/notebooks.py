"""Execute the numbered notebooks headless, one after another, and keep the executed copies in figures/<profile>/.

A copy is made by executing its source and is never edited. Its metadata notes the runs behind its outputs and a digest of
these and of the code, by which tests/test_figures.py finds copies that are out of date.
"""

import contextlib
import hashlib
import json
import math
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
from nbformat import NotebookNode

from ..system.files import CHECKOUT, check_writable, default_home, write_file
from ..system.progress import duration
from .profiles import get_profile

SOURCES = CHECKOUT / "notebooks"
RUNS_MIME = "application/vnd.mnv3nb.runs+json"  # in an output: the keys of the runs behind it
USUAL_MINUTES = 0.5  # expected for a notebook that the profile does not list


def run_notebooks(
    only: str | None = None, timeout: float = 3600, folder: Path | None = None, /, **parameters
) -> list[str]:
    """Execute notebooks with papermill. Returns one line for each that failed; its partial copy is kept.

    `parameters` (profile, seed, ...) go to every notebook that has them. `timeout`: seconds for each notebook.
    Raises ValueError for an unknown profile or notebook, or a parameter that none of the notebooks has, and OSError if
    nothing can be written.
    """
    paths = find_notebooks(only, folder)
    parameters.setdefault("profile", "digits")
    profile = get_profile(parameters["profile"])
    names = {path: parameters_of(path) for path in paths}
    _check_timeout(timeout)
    _check_parameters(parameters, allowed=set().union(*names.values()))
    copies = default_home() / "figures" / profile.name
    check_writable(copies)

    parameters = {"seeds": profile.seeds, **parameters}
    expected_minutes = {path: profile.minutes.get(int(path.name[:2]), USUAL_MINUTES) for path in paths}
    failures = []
    started = time.perf_counter()
    for position, path in enumerate(paths):
        line = f"[{position + 1}/{len(paths)}] {path.stem}"
        if position > 0:
            # the expected minutes say how notebooks compare; how fast this machine is, only the finished ones can tell
            finished = sum(expected_minutes[p] for p in paths[:position])
            unfinished = sum(expected_minutes[p] for p in paths[position:])
            seconds_left = (time.perf_counter() - started) * unfinished / finished
            line += f"; about {duration(seconds_left)} left in all"
        print(line, flush=True)
        given = {name: value for name, value in parameters.items() if name in names[path]}
        error = _run_notebook(path, copies / path.name, given, timeout)
        if error:
            failure = f"{path.name}: {error}"
            print(f"    failed: {failure}", flush=True)
            failures.append(failure)
    return failures


def find_notebooks(only: str | None = None, folder: Path | None = None) -> list[Path]:
    """The numbered notebooks, or those that `only` names ("02,05"); raises ValueError for a number without one."""
    folder = folder or SOURCES
    paths = {path.name[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not paths:
        raise FileNotFoundError(f"no numbered notebooks in {folder}; run from a checkout of the repository")
    if not only:
        return list(paths.values())
    numbers = [number.strip().zfill(2) for number in only.split(",")]
    unknown = [number for number in numbers if number not in paths]
    if unknown:
        raise ValueError(f"no notebook numbered {', '.join(unknown)}; there are {', '.join(paths)}")
    return [paths[number] for number in numbers]


def parameters_of(path: Path) -> set[str]:
    """Names of a notebook's parameters; raises ValueError unless exactly one cell is tagged `parameters`.

    Papermill itself would take the first such cell, or inject at the top, where the notebook's own values win.
    """
    from papermill import inspect_notebook  # late, as below: kernels import this module, too

    tagged = [cell for cell in nbformat.read(path, as_version=4).cells if _has_tag(cell, "parameters")]
    if len(tagged) != 1:
        raise ValueError(f"{path.name} must have one cell tagged 'parameters', it has {len(tagged)}")
    return set(inspect_notebook(path))


def copy_digest(notebook: NotebookNode, runs: list[str]) -> str:
    """The digest in a copy's metadata: of its code, without the cell that papermill injects, and of the keys of `runs`.

    It does not cover the prose, which `with_current_prose` takes from the source.
    """
    code = [cell.source for cell in _code_cells(notebook)]
    content = json.dumps({"code": code, "runs": sorted(runs)})
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def runs_behind(notebook: NotebookNode) -> list[str]:
    """The keys of the runs that a notebook's outputs name, sorted."""
    keys = set()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            keys.update(output.get("data", {}).get(RUNS_MIME, []))
    return sorted(keys)


def with_current_prose(copy: NotebookNode, source: NotebookNode) -> NotebookNode:
    """An executed copy as it is shown: the source's Markdown cells around the copy's code cells and outputs.

    The cell that papermill injected is left out. A copy of other code than the source's keeps its own prose, which
    belongs to that code.
    """
    executed = _code_cells(copy)
    if [cell.source for cell in executed] != [cell.source for cell in _code_cells(source)]:
        return copy
    remaining = iter(executed)
    cells = [next(remaining) if cell.cell_type == "code" else cell for cell in source.cells]
    return NotebookNode({**copy, "cells": cells})


def _code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if not _has_tag(cell, "injected-parameters")]


def _has_tag(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def _check_timeout(timeout: float) -> None:
    if not 0 < timeout < 1e9:
        raise ValueError(f"timeout must be a number of seconds above 0, got {timeout!r}")


def _check_parameters(parameters: dict, allowed: set[str]) -> None:
    """Papermill only warns of an unknown parameter, and fails late on a value that it cannot write as code."""
    try:
        json.dumps(parameters)
    except TypeError as error:
        raise ValueError(f"parameters must be plain numbers, words or lists ({error})") from error
    unknown = sorted(set(parameters) - allowed)
    if unknown:
        raise ValueError(f"no notebook has a parameter {', '.join(unknown)}; there are {', '.join(sorted(allowed))}")


def _run_notebook(path: Path, copy: Path, parameters: dict, timeout: float) -> str | None:
    """Executes one notebook; returns what went wrong, or None.

    `copy` is replaced once, at the end, by what papermill has left, complete or not.
    """
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, path.name)
        error = _execute(path, made, parameters, timeout)
        if not made.is_file():
            return f"{error}; no copy was written" if error else "papermill wrote no copy"
        notebook = nbformat.read(made, as_version=4)
    _clear_times_and_paths(notebook)
    _relink(notebook, path.parent, copy.parent)
    runs = runs_behind(notebook)
    notebook.metadata["mnv3nb"] = {"digest": copy_digest(notebook, runs), "runs": runs}
    write_file(copy, nbformat.writes(notebook) + "\n")
    return error


def _execute(path: Path, made: Path, parameters: dict, timeout: float) -> str | None:
    """Executes one notebook into `made` within `timeout`; returns what went wrong, or None.

    Papermill limits only the cells, and it can hang after the last one. So it works in a thread, and this thread keeps
    the time and kills the kernel. Without a kernel papermill ends.
    """
    errors = []
    thread = threading.Thread(target=_call_papermill, args=(path, made, parameters, timeout, errors), daemon=True)
    try:
        with _kernel_environment():
            thread.start()
            thread.join(timeout + 30)
            is_late = thread.is_alive()
    finally:
        thread.join(30)  # papermill has changed the working folder of this process and changes it back
    if is_late:
        return f"did not end within {timeout + 30:.0f} s"
    return errors[0] if errors else None


def _call_papermill(path: Path, made: Path, parameters: dict, timeout: float, errors: list[str]) -> None:
    """Appends to `errors` instead of raising: this runs in a thread of its own."""
    from papermill import PapermillExecutionError, execute_notebook

    try:
        execute_notebook(
            path,
            made,
            parameters,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            cwd=path.parent,
            execution_timeout=math.ceil(timeout),
        )
    except PapermillExecutionError as error:
        errors.append(f"cell {error.exec_count}: {error.ename}: {error.evalue}")
    except Exception as error:
        errors.append(f"{type(error).__name__}: {error}".splitlines()[0])


@contextlib.contextmanager
def _kernel_environment() -> Iterator[None]:
    """Kernels started inside import this package and show no live bars; whatever was started is killed at the end."""
    this_process = psutil.Process()
    earlier_children = set(this_process.children(recursive=True))
    earlier_environment = dict(os.environ)
    search_path = [str(CHECKOUT)]
    if os.environ.get("PYTHONPATH"):
        search_path.append(os.environ["PYTHONPATH"])
    os.environ["PYTHONPATH"] = os.pathsep.join(search_path)
    os.environ["MNV3NB_HEADLESS"] = "1"
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else every kernel warns of frozen modules
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(earlier_environment)
        started = set(this_process.children(recursive=True)) - earlier_children
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(started, timeout=30)


def _clear_times_and_paths(notebook: NotebookNode) -> None:
    """Removes what papermill notes beside a notebook and its cells, so that the same results give the same file."""
    # nbconvert's ClearMetadataPreprocessor leaves out Markdown cells, on which papermill writes, too
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)


def _relink(notebook: NotebookNode, source_folder: Path, copy_folder: Path) -> None:
    """Leads the links to files that lie beside the source, but not beside the copy, to notebooks/."""

    def relinked(link: re.Match) -> str:
        target = link[1]
        if (source_folder / target).exists() and not (copy_folder / target).exists():
            return f"](../../notebooks/{target}"
        return link[0]

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\(([\w./]+)", relinked, cell.source)
