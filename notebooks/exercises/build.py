"""Make the students' copy and the solved copy of every exercise sheet: `make exercises`.

Each sheet has one source in source/, in nbgrader's format. The metadata of its cells say which are solutions and which
are graded. BEGIN SOLUTION and END SOLUTION enclose what students write.
"""

import copy
import re
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n(.*?)\n *### END SOLUTION$", re.DOTALL | re.MULTILINE)


def main() -> None:
    for path, text in copies().items():
        path.write_text(text, encoding="utf-8")


def copies(folder: Path = HERE) -> dict[Path, str]:
    """The content of every copy, by the path where it belongs."""
    contents = {}
    for path in sorted((folder / "source").glob("*.ipynb")):
        source = nbformat.read(path, as_version=4)
        contents[folder / path.name] = nbformat.writes(student_copy(source)) + "\n"
        contents[folder / "solutions" / path.name] = nbformat.writes(solved_copy(source)) + "\n"
    return contents


def student_copy(source: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The sheet without solutions. As in nbgrader's own copies, no task can be deleted and no check edited."""
    notebook = copy.deepcopy(source)
    for cell in notebook.cells:
        without_solution = SOLUTION.sub(r"\1return None  # your code", cell.source)
        cell.source = without_solution.replace("](../../", "](../")  # a student's sheet lies one folder higher
        grading = cell.metadata.get("nbgrader")
        if grading:
            cell.metadata["deletable"] = False
            if grading["locked"]:
                cell.metadata["editable"] = False
    return notebook


def solved_copy(source: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The sheet with solutions and without grading marks and metadata."""
    notebook = copy.deepcopy(source)
    for cell in notebook.cells:
        cell.source = SOLUTION.sub(r"\2", cell.source)
        cell.metadata.pop("nbgrader", None)
    return notebook


if __name__ == "__main__":
    main()
