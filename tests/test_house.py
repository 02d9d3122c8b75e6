"""The house: the method on top of what it needs, folders around it, arrows that point down."""

import ast
from pathlib import Path

import pytest
from support import ROOT

PACKAGE = ROOT / "mnv3nb"
FILES = sorted(PACKAGE.rglob("*.py"))
METHOD = ("model", "blocks", "costs", "importance", "training", "pruning", "repair", "paper")
MAY_IMPORT = {
    "system": {"system"},
    "data": {"system", "data"},
    "method": {"system", "data", "method"},
    "networks": {"system", "data", "method", "networks"},
    "deploy": {"system", "data", "method", "networks", "deploy"},
    "runs": {"system", "data", "method", "networks", "deploy", "runs"},
    "plots": {"system", "data", "method", "plots"},
    "report": {"system", "data", "method", "networks", "deploy", "runs", "report"},
    "explorer": {"system", "data", "method", "networks", "deploy", "runs", "plots", "report", "explorer"},
    "slim": {"system", "data", "method", "networks", "deploy", "plots", "slim"},
}
MAY_IMPORT["top"] = set(MAY_IMPORT) | {"top"}


def name_of(path: Path) -> str:
    parts = ("mnv3nb", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in FILES}


def storey(name: str) -> str:
    part = name.partition(".")[2].split(".")[0]
    if part in MAY_IMPORT:
        return part
    return "method" if part in METHOD else "top"


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
