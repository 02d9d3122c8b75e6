"""Each version is written in one place, and the places agree."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from support import ROOT

import mnv3nb

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def ranges() -> list[Requirement]:
    """The ranges in pyproject.toml, without timm's: nothing needs timm, and its tests are skipped without it."""
    texts = list(PROJECT["dependencies"])
    for extra, of_extra in PROJECT["optional-dependencies"].items():
        if extra != "timm":
            texts += of_extra
    return [Requirement(text) for text in texts]


def pins() -> dict[str, Requirement]:
    """The pins of the package and those of the site, by canonical name."""
    found = {}
    for path in (ROOT / "requirements.txt", ROOT / "docs" / "requirements.txt"):
        for line in path.read_text().splitlines():
            text = line.split("#")[0].strip()
            if not text or text.startswith("-"):
                continue
            requirement = Requirement(text)
            name = canonical(requirement.name)
            assert name not in found, f"{name} is pinned twice"
            found[name] = requirement
    return found


def test_every_requirement_is_pinned_to_one_exact_version():
    for name, requirement in pins().items():
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], name
        assert "*" not in str(requirement.specifier), name


@pytest.mark.parametrize("required", ranges(), ids=str)
def test_the_pin_lies_within_pyprojects_range(required):
    (pin,) = pins()[canonical(required.name)].specifier
    assert required.specifier.contains(pin.version)
    operators = {specifier.operator for specifier in required.specifier}
    assert operators & {">=", "=="}, "no lower bound"


def test_the_citation_names_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    version = re.search(r"^version: [\"']?([^\"'\n]+)", citation, re.MULTILINE)[1]
    assert version == mnv3nb.__version__
    assert "10.16183/j.cnki.jsjtu.2022.077" in citation


def test_conda_binder_and_the_workflows_use_an_allowed_python():
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert str(min(allowed, key=str)) == ">=3.11"

    environment = (ROOT / "environment.yml").read_text()
    assert "-r requirements.txt" in environment
    assert allowed.contains(re.search(r"python=([\d.]+)", environment)[1])

    binder = (ROOT / ".binder" / "runtime.txt").read_text().strip()
    assert allowed.contains(binder.removeprefix("python-"))

    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        versions = re.findall(r'"(3\.\d+)"', path.read_text())
        assert versions, path.name
        for version in versions:
            assert allowed.contains(version), path.name


def test_the_test_workflow_runs_the_oldest_allowed_python():
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert min(map(Version, re.findall(r'"(3\.\d+)"', workflow))) == Version("3.11")


def test_the_core_needs_neither_jupyter_nor_pandas_nor_plotting():
    core = {canonical(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert core == {"torch", "torchvision", "numpy", "safetensors", "tqdm", "filelock"}
