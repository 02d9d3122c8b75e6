"""The house: a thin core, storeys above it, arrows that point down."""

import ast
from pathlib import Path

import pytest
from support import ROOT

PACKAGE = ROOT / "mnv3nb"
FILES = sorted(PACKAGE.rglob("*.py"))
CORE = ("model", "blocks", "complexity", "data", "training", "importance", "pruning", "checkpoint")
STOREYS = ("core", "deployment", "experiments", "plots", "report", "slimming", "top")
MAY_IMPORT = {
    "core": {"core"},
    "deployment": {"core", "deployment"},
    "plots": {"core", "plots"},
    "experiments": {"core", "deployment", "experiments"},
    "report": {"core", "deployment", "experiments", "plots", "report"},
    "slimming": {"core", "deployment", "plots", "slimming"},
    "top": set(STOREYS),
}


def name_of(path: Path) -> str:
    parts = ("mnv3nb", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in FILES}


def storey(name: str) -> str:
    part = name.partition(".")[2].split(".")[0]
    if part in STOREYS:
        return part
    return "top" if part in ("", "lab", "explorer", "__main__") else "core"


def imports(path: Path) -> set[str]:
    """The package's modules that a file imports, anywhere in it: late imports count."""
    own, found = name_of(path), set()
    package = own if path.name == "__init__.py" else own.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names = [f"{module}.{alias.name}" for alias in node.names]
            found |= {name if name in NAMES else module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in NAMES} - {own}


GRAPH = {name: imports(path) for name, path in NAMES.items()}


def test_there_is_no_circle_of_imports():
    """The public names in mnv3nb/__init__.py are for users: nothing inside imports from there but `__version__`."""
    inside = {name: used - {"mnv3nb"} for name, used in GRAPH.items() if name != "mnv3nb"}
    floors: dict[str, int] = {}
    while len(floors) < len(inside):
        ready = [name for name, used in inside.items() if name not in floors and used <= floors.keys()]
        assert ready, f"a circle among {sorted(set(inside) - set(floors))}"
        floors |= {name: 1 + max((floors[used] for used in inside[name]), default=0) for name in ready}


@pytest.mark.parametrize("name", GRAPH)
def test_arrows_point_down(name):
    for used in GRAPH[name] - {"mnv3nb"}:
        assert storey(used) in MAY_IMPORT[storey(name)], f"{name} imports {used}"


def test_the_core_is_at_most_900_lines():
    assert sum(len(NAMES[f"mnv3nb.{name}"].read_text().splitlines()) for name in CORE) <= 900


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_has_over_250_lines_and_no_function_over_50(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 250
    assert "fmt: skip" not in text and "fmt: off" not in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{node.name} has {node.end_lineno - node.lineno + 1} lines"


def test_a_public_docstring_fits_a_tooltip():
    """JupyterLab's is 250 px high: some 14 lines, signature included."""
    import inspect

    import mnv3nb
    from mnv3nb.lab import Lab

    public = [getattr(mnv3nb, name) for name in dir(mnv3nb) if not name.startswith("_")]
    for thing in [*filter(callable, public), Lab, Lab.run, Lab.show, Lab.compare]:
        assert 1 <= len(inspect.getdoc(thing).splitlines()) <= 8, thing


def test_importing_mnv3nb_needs_no_notebook_package():
    import subprocess
    import sys

    code = "import sys, mnv3nb; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"pandas", "matplotlib", "seaborn", "IPython", "ipywidgets", "papermill", "onnx", "sklearn"} & set(
        loaded
    )
