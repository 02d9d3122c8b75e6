"""Make the student's and the solved copy of every exercise sheet from its one source: `make exercises`.

A source in source/ is the sheet as nbgrader takes it: the cells' metadata say what is solution and what is graded, and
BEGIN SOLUTION and END SOLUTION enclose what students write.
"""

import copy
import re
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n(.*?)\n *### END SOLUTION$", re.DOTALL | re.MULTILINE)


def student_copy(source: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The sheet without solutions; as in what nbgrader hands out, no task can be deleted and no check edited."""
    notebook = copy.deepcopy(source)
    for cell in notebook.cells:
        cell.source = SOLUTION.sub(r"\1return None  # your code", cell.source).replace("](../../", "](../")
        if marks := cell.metadata.get("nbgrader"):
            cell.metadata |= {"deletable": False} | ({"editable": False} if marks["locked"] else {})
    return notebook


def solved_copy(source: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The sheet with solutions, without the marks and metadata of grading."""
    notebook = copy.deepcopy(source)
    for cell in notebook.cells:
        cell.source = SOLUTION.sub(r"\2", cell.source)
        cell.metadata.pop("nbgrader", None)
    return notebook


def copies(folder: Path = HERE) -> dict[Path, str]:
    """Each copy's file and content."""
    made = {}
    for path in sorted((folder / "source").glob("*.ipynb")):
        source = nbformat.read(path, as_version=4)
        made[folder / path.name] = nbformat.writes(student_copy(source)) + "\n"
        made[folder / "solutions" / path.name] = nbformat.writes(solved_copy(source)) + "\n"
    return made


if __name__ == "__main__":
    for path, text in copies().items():
        path.write_text(text, encoding="utf-8")
