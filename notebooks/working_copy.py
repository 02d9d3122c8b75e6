"""Open JupyterLab on a copy of the notebooks that is yours to edit: python notebooks/working_copy.py [options]

The copy is runs/notebooks, which git ignores. Options are those of `jupyter lab`.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import nbformat

from mnv3nb.runs.notebooks import SOURCES
from mnv3nb.system.files import default_home, write_file

COPIED_SUFFIXES = (".ipynb", ".md", ".py")
START = "README.md"  # the page that JupyterLab opens


def main() -> None:
    from jupyterlab.labapp import main as start_jupyterlab  # late: the tests import this file

    folder = update_working_copy(SOURCES)
    use_settings(SOURCES / ".jupyter")
    start_jupyterlab([str(folder), f"--LabApp.default_url=/lab/tree/{START}", *sys.argv[1:]])


def update_working_copy(sources: Path) -> Path:
    """Brings runs/notebooks up to date with `sources`, keeps what the user has changed there, and returns its path.

    Whether a file was changed is decided by its `digest`, so running a notebook does not count. A file that the user has
    deleted is copied again.
    """
    folder = default_home() / "runs" / "notebooks"
    record = folder / ".copied.json"  # the digest of each file when it was copied
    copied = json.loads(record.read_text()) if record.is_file() else {}
    for source in files_to_copy(sources):
        name = source.relative_to(sources).as_posix()
        copy = folder / name
        if copy.is_file():
            edited = digest(copy) != copied.get(name)
            current = digest(source) == copied.get(name)
            needs_copying = not edited and not current
        else:
            needs_copying = True
        if needs_copying:
            write_file(copy, source.read_bytes())
            copied[name] = digest(source)
    write_file(record, json.dumps(copied, indent=1))
    return folder


def files_to_copy(sources: Path) -> list[Path]:
    """Notebooks, pages and scripts below `sources`; nothing hidden, such as JupyterLab's checkpoints."""
    found = []
    for path in sorted(sources.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(sources).parts)
        if path.suffix in COPIED_SUFFIXES and not is_hidden:
            found.append(path)
    return found


def digest(path: Path) -> str:
    """A hash of what people write in a file: the cells of a notebook without their outputs, or the whole file."""
    content = path.read_bytes()
    if path.suffix == ".ipynb":
        try:
            notebook = nbformat.read(path, as_version=4)
        except (ValueError, nbformat.ValidationError):
            pass  # the user has broken it: a notebook no more, it is hashed like any other file
        else:
            content = json.dumps([(cell.cell_type, cell.source) for cell in notebook.cells]).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def use_settings(folder: Path) -> None:
    """Adds `folder` to the places in which JupyterLab looks for settings: ours show Markdown files as rendered text."""
    places = [str(folder)]
    if os.environ.get("JUPYTER_CONFIG_PATH"):
        places.append(os.environ["JUPYTER_CONFIG_PATH"])
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(places)


if __name__ == "__main__":
    main()
