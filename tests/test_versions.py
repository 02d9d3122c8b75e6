"""Versions stand in one place each, and the places agree."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from support import ROOT

import mnv3nb

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# timm is for whoever has it: nothing here needs it, and its tests are skipped without it
EXTRAS = [texts for name, texts in PROJECT["optional-dependencies"].items() if name != "timm"]
WANTED = [Requirement(text) for texts in (PROJECT["dependencies"], *EXTRAS) for text in texts]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, Requirement]:
    """Of the package's file and of the site's beside it."""
    texts = [(ROOT / folder / "requirements.txt").read_text() for folder in ("", "docs")]
    lines = [line.split("#")[0].strip() for text in texts for line in text.splitlines()]
    requirements = [Requirement(line) for line in lines if line and not line.startswith("-")]
    names = [canonical(r.name) for r in requirements]
    assert len(set(names)) == len(names), "a package is pinned twice"
    return dict(zip(names, requirements))


def test_every_requirement_is_pinned_to_one_exact_version():
    for name, requirement in pins().items():
        assert [s.operator for s in requirement.specifier] == ["=="], name
        assert "*" not in str(requirement.specifier), name


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_the_pin_lies_within_pyprojects_range(wanted):
    (pin,) = pins()[canonical(wanted.name)].specifier
    assert wanted.specifier.contains(pin.version)
    assert any(s.operator in (">=", "==") for s in wanted.specifier), "no lower bound"


def test_the_citation_names_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: [\"']?([^\"'\n]+)", citation, re.MULTILINE)[1] == mnv3nb.__version__
    assert "10.16183/j.cnki.jsjtu.2022.077" in citation


def test_python_is_the_same_everywhere():
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert str(min(allowed, key=str)) == ">=3.11"
    environment = (ROOT / "environment.yml").read_text()
    assert "-r requirements.txt" in environment
    assert allowed.contains(re.search(r"python=([\d.]+)", environment)[1])
    assert allowed.contains((ROOT / ".binder" / "runtime.txt").read_text().strip().removeprefix("python-"))
    workflows = {path.stem: path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")}
    versions = {name: re.findall(r'"(3\.\d+)"', text) for name, text in workflows.items()}
    assert all(found and all(map(allowed.contains, found)) for found in versions.values())
    assert min(map(Version, versions["test"])) == Version("3.11")


def test_the_core_needs_neither_jupyter_nor_pandas_nor_plotting():
    core = {canonical(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert core == {"torch", "torchvision", "numpy", "safetensors", "tqdm", "filelock"}
