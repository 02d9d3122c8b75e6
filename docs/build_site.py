"""make site: puts all pages beside each other as they lie in the repository, and lets Sphinx build build/site.

Needs no network. Notebooks are those executed in figures/<profile>. Where GITHUB_REPOSITORY is set (owner/name; GitHub's
workflows set it), every notebook has buttons for Colab and Binder, and the site a folder colab/ with copies that install
what they need.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
SOURCE, SITE = ROOT / "build" / "site-source", ROOT / "build" / "site"
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")
NO_PAGES = ("__pycache__", "*.txt", "build_site.py", "pages.py", "explorer_page.*")
FOLDERS = ("data", "networks", "runs", "deploy", "report", "plots", "explorer", "slim", "system")  # of mnv3nb
INSTALL = """\
# installs the package where it is not there yet, as on Colab
from importlib.util import find_spec

if find_spec("mnv3nb") is None:
    %pip install -q safetensors filelock onnx onnxruntime onnxscript papermill
    !git clone -q --depth 1 https://github.com/{repository} mnv3nb-checkout
    %cd mnv3nb-checkout
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="digits", help="whose executed notebooks and figures are shown")
    profile, repository = parser.parse_args().profile, os.environ.get("GITHUB_REPOSITORY")
    for folder in (SOURCE, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    stage(SOURCE, profile, repository)
    commands = [
        [DOCS / "explorer_page.py", "--out", SOURCE / "extra" / "explorer.html"],
        ["-m", "sphinx", "-b", "html", "-q", "-d", f"{SOURCE}-cache", SOURCE, SITE],
    ]
    for command in commands:
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    if repository:
        colab(SITE / "colab", repository)
    print(f"written: {SITE / 'index.html'}")


def stage(source: Path, profile: str, repository: str | None) -> None:
    """All pages, and the files of the repository that they link to, in one folder."""
    shutil.copytree(
        DOCS,
        source,
        ignore=shutil.ignore_patterns(*NO_PAGES),
    )
    (source / "extra").mkdir()
    for page in source.glob("*.md"):  # a page of docs/ lies beside README.md here
        page.write_text(page.read_text().replace("](../", "]("))
    for page in pages():
        copy = source / page.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        executed = ROOT / "figures" / profile / page.name
        shutil.copy(executed if page.parent.name == "notebooks" and executed.is_file() else page, copy)
        if page.suffix == ".ipynb":
            prepare(copy, page.relative_to(ROOT).as_posix(), repository)
        else:
            copy.write_text(copy.read_text().replace("](docs/", "]("))
    for page in pages():
        staged = source / page.relative_to(ROOT)
        for link in LINK.findall(staged.read_text()):
            target = (page.parent / link).resolve()
            copy = source / target.relative_to(ROOT) if target.is_relative_to(ROOT) else None
            if copy and target.is_file() and not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(target, copy)
            if copy and target.is_dir():  # a site has no listings of folders
                index = next(folder for folder in (target, *target.parents) if (folder / "README.md").is_file())
                address = os.path.relpath(index / "README.md", page.parent)
                staged.write_text(staged.read_text().replace(f"]({link})", f"]({address})"))
    (source / "api").mkdir()
    for name in ("method", *FOLDERS):
        (source / "api" / f"{name}.md").write_text(api_page(name))


def pages() -> list[Path]:
    """What the site shows, where it lies in the repository."""
    patterns = ("*.md", "notebooks/*.md", "results/*.md", "figures/*.md", "figures/bench/*.md", "mnv3nb/*/*.md")
    notebooks = ("notebooks/[0-9]*.ipynb", "notebooks/exercises/*.ipynb")
    return sorted(path for pattern in (*patterns, *notebooks) for path in ROOT.glob(pattern))


def prepare(copy: Path, name: str, repository: str | None) -> None:
    """Leaves out the cell that repeats the parameters, and puts links below the title by which it runs elsewhere."""
    notebook = json.loads(copy.read_text())
    for cell in notebook["cells"]:  # an executed copy lies elsewhere
        cell["source"] = "".join(cell["source"]).replace("](../../notebooks/", "](")
    shown = [c for c in notebook["cells"] if "injected-parameters" not in c["metadata"].get("tags", [])]
    if repository:
        title, _, rest = "".join(shown[0]["source"]).partition("\n")
        colab_url = f"https://colab.research.google.com/github/{repository}/blob/gh-pages/colab/{copy.name}"
        binder_url = f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath=lab/tree/{name}"
        source_url = f"https://github.com/{repository}/blob/HEAD/{name}"
        links = f"[Open in Colab]({colab_url}) [Run on Binder]({binder_url}) [Source]({source_url})"
        shown[0]["source"] = f"{title}\n\n{{.run}}\n{links}\n{rest}"
    copy.write_text(json.dumps(notebook | {"cells": shown}))


def colab(folder: Path, repository: str) -> None:
    """The notebooks with a first cell that installs; the published branch has them, where Colab can open them."""
    folder.mkdir()
    for page in pages():
        if page.suffix == ".ipynb":
            notebook = json.loads(page.read_text())
            cell = {"cell_type": "code", "execution_count": None, "id": "install", "metadata": {}, "outputs": []}
            notebook["cells"].insert(1, cell | {"source": INSTALL.format(repository=repository)})
            (folder / page.name).write_text(json.dumps(notebook, indent=1))


def api_page(name: str) -> str:
    """The page of the public modules of one folder of mnv3nb, or of the files on top ("method")."""
    package = ROOT / "mnv3nb"
    folder = package if name == "method" else package / name
    sections = []
    for path in sorted(folder.glob("[a-z]*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        sections.append(f"## {path.stem}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n")
    return f"# API: {name}\n\n" + "\n".join(sections)


if __name__ == "__main__":
    main()
