"""The site: its contents name every page, every link works, and it builds without network where Sphinx is installed."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import build_site
import pytest
from support import ROOT

DOCS = ROOT / "docs"
NEEDS = ("sphinx", "myst_nb", "sphinx_book_theme", "latex2mathml")


@pytest.fixture(scope="module")
def staged(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "source"
    build_site.stage(folder, "digits", "owner/name")
    return folder


def test_the_contents_name_every_page_and_only_pages_that_exist(staged):
    blocks = re.findall(r"```{toctree}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    entries = [line for block in blocks for line in block.splitlines() if line and not line.startswith(":")]
    named = [re.sub(r".*<(.+)>", r"\1", entry) for entry in entries]
    found = {entry: [path for path in staged.glob(f"{entry}.*") if path.suffix in (".md", ".ipynb")] for entry in named}
    assert [entry for entry, pages in found.items() if not pages] == []
    pages = {path for paths in found.values() for path in paths} | {staged / "index.md"}
    assert set(staged.rglob("*.md")) | set(staged.rglob("*.ipynb")) == pages


def test_every_link_leads_to_a_file_of_the_site(staged):
    texts = {page: page.read_text() for page in staged.rglob("*.md")}
    for page in staged.rglob("*.ipynb"):
        cells = json.loads(page.read_text())["cells"]
        texts[page] = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    for page, text in texts.items():
        for link in build_site.LINK.findall(text):
            assert (page.parent / link).is_file(), f"{page.relative_to(staged)}: {link}"


def test_the_first_picture_of_either_readme_leads_to_the_explorer(staged):
    for name in ("README.md", "README.zh-CN.md"):
        for folder, page in ((ROOT, "docs/interactive.md"), (staged, "interactive.md")):
            assert re.search(r"\[!\[.*?\]\(.*?\)\]\((.*?)\)", (folder / name).read_text())[1] == page
    assert 'href="explorer.html"' in (staged / "interactive.md").read_text()


def test_a_notebook_is_the_executed_copy_with_buttons_below_its_title(staged):
    notebook = json.loads((staged / "notebooks" / "03_importance.ipynb").read_text())
    assert any(cell.get("outputs") for cell in notebook["cells"])
    title, _, mark, links, *_ = notebook["cells"][0]["source"].splitlines()
    assert title.startswith("# 03") and mark == "{.run}"
    for url in ("colab.research.google.com/github/owner/name/blob/gh-pages/colab/", "mybinder.org/v2/gh/owner/name/"):
        assert url in links


def test_a_copy_for_colab_installs_first_and_keeps_its_one_parameters_cell(tmp_path):
    build_site.write_colab_copies(tmp_path / "colab", "owner/name")
    for path in (tmp_path / "colab").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        assert cells[0]["cell_type"] == "markdown" and "github.com/owner/name" in cells[1]["source"]
        assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1
        assert len({cell["id"] for cell in cells}) == len(cells)


def test_the_api_pages_have_every_public_module():
    pages = "".join(build_site.api_page(name) for name in ("method", *build_site.FOLDERS))
    modules = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in ROOT.glob("mnv3nb/**/*.py")
    }
    public = {name for name in modules if not re.search(r"\._", name)}
    assert set(re.findall(r"automodule:: (\S+)", pages)) == public


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, NEEDS)), reason="Sphinx is not installed: `make site` brings it"
)
def test_the_site_builds_without_network_and_without_a_warning(tmp_path):
    """Two pages and one notebook with formulas stand for all: a whole build takes half a minute."""
    build_site.stage(tmp_path / "source", "digits", None)
    for path in (tmp_path / "source").rglob("*"):
        if path.suffix in (".md", ".ipynb") and path.stem not in ("index", "GLOSSARY", "03_importance", "method"):
            path.unlink()
    (tmp_path / "source" / "index.md").write_text(
        "# Site\n\n```{toctree}\nnotebooks/GLOSSARY\nnotebooks/03_importance\napi/method\n```\n"
    )
    quiet = ["-D", "suppress_warnings=myst.xref_missing,mystnb.unknown_mime_type"]  # the pages left out
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", *quiet, tmp_path / "source", tmp_path / "site"]
    nowhere = os.environ | {name: "http://127.0.0.1:1" for name in ("http_proxy", "https_proxy")}
    made = subprocess.run(command, capture_output=True, text=True, env=nowhere | {"PYTHONPATH": str(ROOT)})
    assert made.returncode == 0, made.stderr
    html = (tmp_path / "site" / "notebooks" / "03_importance.html").read_text()
    assert "<math" in html and "<img" in html
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"https?:[^>]*>", html)
