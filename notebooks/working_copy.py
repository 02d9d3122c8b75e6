"""JupyterLab on a copy of notebooks/ that is the user's to edit: python notebooks/working_copy.py [options]

Whatever happens to the copy, `git status` stays clean. Options are those of `jupyter lab`.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import nbformat

from mnv3nb.runs.notebooks import SOURCES, source_digest
from mnv3nb.system.files import default_home, write_file

ENDINGS = (".ipynb", ".md", ".py")
START = "README.md"


def main() -> None:
    """Opens JupyterLab in the copy, on the page to start from, with Markdown shown as text."""
    from jupyterlab.labapp import main as jupyter_lab

    paths = (str(SOURCES / ".jupyter"), os.environ.get("JUPYTER_CONFIG_PATH"))
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, paths))
    jupyter_lab([str(working_copy(SOURCES)), f"--LabApp.default_url=/lab/tree/{START}", *sys.argv[1:]])


def working_copy(sources: Path) -> Path:
    """`runs/notebooks`, where every file of `sources` is as it is there, or as the user has changed it.

    A file counts as changed if its content is not what was copied; of a notebook, its cells' sources, so that running
    it changes nothing. Deleting a file brings it back as it was.
    """
    folder = default_home() / "runs" / "notebooks"
    record = folder / ".copied.json"
    copied = json.loads(record.read_text()) if record.is_file() else {}
    for path in sorted(sources.rglob("*")):
        name = path.relative_to(sources).as_posix()
        if path.suffix not in ENDINGS or any(part.startswith(".") for part in path.relative_to(sources).parts):
            continue
        copy, digest = folder / name, _digest(path)
        if not copy.is_file() or (copied.get(name) != digest and copied.get(name) == _digest(copy)):
            write_file(copy, path.read_bytes())
            copied[name] = digest
    write_file(record, json.dumps(copied, indent=1))
    return folder


def _digest(path: Path) -> str:
    """Of a notebook, what its cells say; of any other file, or of a notebook that cannot be read, its bytes."""
    try:
        if path.suffix == ".ipynb":
            return source_digest(nbformat.read(path, as_version=4))
    except (ValueError, nbformat.ValidationError):
        pass
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


if __name__ == "__main__":
    main()
