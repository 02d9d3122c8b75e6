"""make site: copies all pages into one folder, in the repository's layout, and lets Sphinx build build/site from it.

Needs no network. Notebooks are those executed in figures/<profile>. Where GITHUB_REPOSITORY is set (owner/name; GitHub's
workflows set it), every notebook has buttons for Colab and Binder, and the site has a folder colab/ with copies that
install what they need.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

from mnv3nb.runs.notebooks import with_current_prose

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
SOURCE = ROOT / "build" / "site-source"
SITE = ROOT / "build" / "site"
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")  # of a Markdown link to a file: its path
NOT_STAGED = (
    "__pycache__",
    "*.txt",
    "build_site.py",
    "pages.py",
    "explorer_page.*",
)  # files of docs/ for the build alone
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
    parser.add_argument("--profile", default="digits", help="profile of the executed notebooks and figures to show")
    profile = parser.parse_args().profile
    repository = os.environ.get("GITHUB_REPOSITORY")
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    stage(SOURCE, profile, repository)
    _run_python(DOCS / "explorer_page.py", "--out", SOURCE / "extra" / "explorer.html")
    _run_python("-m", "sphinx", "-b", "html", "-q", "-d", f"{SOURCE}-cache", SOURCE, SITE)
    if repository:
        write_colab_copies(SITE / "colab", repository)
    print(f"written: {SITE / 'index.html'}")


def _run_python(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def stage(source: Path, profile: str, repository: str | None) -> None:
    """Puts all pages, and the files of the repository that they link to, into the folder `source`."""
    _stage_docs(source)
    for page in pages():
        _stage_page(page, source, profile, repository)
    for page in pages():
        _stage_linked_files(page, source)
    (source / "api").mkdir()
    for name in ("method", *FOLDERS):
        (source / "api" / f"{name}.md").write_text(api_page(name))


def pages() -> list[Path]:
    """The pages that the site shows besides those of docs/, in the repository."""
    patterns = (
        "*.md",
        "notebooks/*.md",
        "results/*.md",
        "figures/*.md",
        "figures/bench/*.md",
        "mnv3nb/*/*.md",
        "notebooks/[0-9]*.ipynb",
        "notebooks/exercises/*.ipynb",
    )
    found: list[Path] = []
    for pattern in patterns:
        found += ROOT.glob(pattern)
    return sorted(found)


def _stage_docs(source: Path) -> None:
    """Copies the pages of docs/ beside README.md, and their links with them."""
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns(*NOT_STAGED))
    (source / "extra").mkdir()
    for page in source.glob("*.md"):
        page.write_text(page.read_text().replace("](../", "]("))


def _stage_page(page: Path, source: Path, profile: str, repository: str | None) -> None:
    """Copies a page; a notebook as it was executed for `profile`, where it was."""
    copy = source / page.relative_to(ROOT)
    copy.parent.mkdir(parents=True, exist_ok=True)
    if page.suffix == ".md":
        copy.write_text(page.read_text().replace("](docs/", "]("))  # docs/ is the site's top folder
        return
    notebook = nbformat.read(page, as_version=4)
    executed = ROOT / "figures" / profile / page.name
    is_lesson = page.parent.name == "notebooks"
    if is_lesson and executed.is_file():
        notebook = with_current_prose(nbformat.read(executed, as_version=4), notebook)
    prepare_notebook(notebook)
    if repository:
        add_buttons(notebook, page.relative_to(ROOT).as_posix(), repository)
    copy.write_text(json.dumps(notebook))


def _stage_linked_files(page: Path, source: Path) -> None:
    """Copies the files that a page links to, and turns its links to folders into links to the nearest README.md.

    A site has no listings of folders.
    """
    staged = source / page.relative_to(ROOT)
    for link in LINK.findall(staged.read_text()):
        target = (page.parent / link).resolve()
        if not target.is_relative_to(ROOT):
            continue
        copy = source / target.relative_to(ROOT)
        if target.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, copy)
        if target.is_dir():
            address = os.path.relpath(_nearest_readme(target), page.parent)
            staged.write_text(staged.read_text().replace(f"]({link})", f"]({address})"))


def _nearest_readme(folder: Path) -> Path:
    """README.md of `folder`, or of the nearest folder above that has one; the root has one."""
    while not (folder / "README.md").is_file():
        folder = folder.parent
    return folder / "README.md"


def prepare_notebook(notebook: dict) -> None:
    """Makes an executed notebook a page: without the cell that repeats the parameters, with links from notebooks/."""
    cells = []
    for cell in notebook["cells"]:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            continue
        cell["source"] = "".join(cell["source"]).replace("](../../notebooks/", "](")
        cells.append(cell)
    notebook["cells"] = cells


def add_buttons(notebook: dict, path: str, repository: str) -> None:
    """Puts links below the title that open the notebook at `path` of the `repository` in Colab, on Binder, on GitHub."""
    name = Path(path).name
    colab = f"https://colab.research.google.com/github/{repository}/blob/gh-pages/colab/{name}"
    binder = f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath=lab/tree/{path}"
    github = f"https://github.com/{repository}/blob/HEAD/{path}"
    links = f"[Open in Colab]({colab}) [Run on Binder]({binder}) [Source]({github})"
    first = notebook["cells"][0]
    title, _, rest = first["source"].partition("\n")
    first["source"] = f"{title}\n\n{{.run}}\n{links}\n{rest}"


def write_colab_copies(folder: Path, repository: str) -> None:
    """Writes the notebooks with a cell that installs the package. Colab opens them from the published branch."""
    folder.mkdir()
    install = {
        "cell_type": "code",
        "execution_count": None,
        "id": "install",
        "metadata": {},
        "outputs": [],
        "source": INSTALL.format(repository=repository),
    }
    for page in pages():
        if page.suffix == ".ipynb":
            notebook = json.loads(page.read_text())
            notebook["cells"].insert(1, install)  # below the title
            (folder / page.name).write_text(json.dumps(notebook, indent=1))


def api_page(name: str) -> str:
    """The page of the public modules in one folder of mnv3nb, or of the files on top ("method")."""
    package = ROOT / "mnv3nb"
    folder = package if name == "method" else package / name
    sections = []
    for path in sorted(folder.glob("[a-z]*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        sections.append(f"## {path.stem}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n")
    return f"# API: {name}\n\n" + "\n".join(sections)


if __name__ == "__main__":
    main()
