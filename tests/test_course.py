"""The course and every other page for readers: links lead somewhere, and what is said to be in a notebook is there."""

import itertools
import json
import re
from pathlib import Path

import pytest
from support import ROOT

from mnv3nb.runs.notebooks import SOURCES, find_notebooks

COURSE = (SOURCES / "README.md").read_text()
PAGES = sorted(
    path for pattern in ("*.md", "notebooks/*.md", "results/*.md", "figures/**/*.md") for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")


def markdown_of(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """As GitHub, Jupyter's Markdown and MyST name them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(path.read_text())}


COPIES = sorted((ROOT / "figures").glob("*/[0-9]*.ipynb"))


@pytest.mark.parametrize("path", [*PAGES, *find_notebooks(), *COPIES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(path):
    text = markdown_of(path) if path.suffix == ".ipynb" else path.read_text()
    for target in LINK.findall(text):
        place, _, anchor = target.partition("#")
        file = path.parent / place if place else path
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), target


@pytest.mark.parametrize("path", find_notebooks(), ids=lambda path: path.stem)
def test_a_notebook_and_the_course_link_to_each_other(path):
    assert f"]({path.name})" in COURSE
    first = "".join(json.loads(path.read_text())["cells"][0]["source"])
    assert "(GLOSSARY.md)" in first and "(README.md)" in first


def test_every_section_that_the_course_names_is_in_its_notebook():
    named = [
        (notebook, section)
        for notebook, sections in re.findall(r"\]\((\d\d_\w+\.ipynb)\),((?:(?: and|,| to|)? ?\*[^*|]+\*)+)", COURSE)
        for section in re.findall(r"\*([^*]+)\*", sections)
    ]
    assert len(named) > 40
    missing = [(name, part) for name, part in named if part not in headings(markdown_of(SOURCES / name))]
    assert missing == []


def test_there_are_four_lessons_of_90_minutes():
    lessons = re.split(r"^### Lesson ", COURSE, flags=re.MULTILINE)[1:]
    assert len(lessons) == 4
    for lesson in lessons:
        times = [(int(a), int(b)) for a, b in re.findall(r"^\| (\d+)-(\d+) \|", lesson, re.MULTILINE)]
        assert times[0][0] == 0 and times[-1][1] == 90
        assert all(one[1] == other[0] for one, other in itertools.pairwise(times))
        for part in ("**Before**", "make figures ONLY=", "**Ask**", "| students think | what refutes it |"):
            assert part in lesson


def test_every_word_of_the_glossary_has_its_chinese():
    row = re.compile(r"^\| (.+?) \| (.+?) \| (.+?) \| \[\d\d\]\(\S+\) \|$", re.MULTILINE)
    rows = row.findall((SOURCES / "GLOSSARY.md").read_text())
    assert len(rows) > 35
    assert all(re.search(r"[\u4e00-\u9fff]", chinese) for _, chinese, _ in rows)


def test_the_chinese_readme_holds_the_same_numbers_tables_commands_and_links():
    pages = [(ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md")]
    tables, numbers = r"<!-- \w+ -->.*?<!-- end -->", r"\d[\d ]*(?:\.\d+)?(?:e[+-]?\d+)?"
    for what in (tables, numbers, r"`[^`]+`", r"https?://[^\s)\"]+"):
        prose = [" ".join(re.sub(r"```.*?```", "", page, flags=re.DOTALL).split()) for page in pages]
        english, chinese = ({text.strip() for text in re.findall(what, page)} for page in prose)
        assert english == chinese, what
    code = [
        re.findall(r"^[^#\n]+", "\n".join(re.findall(r"```(.*?)```", page, re.DOTALL)), re.MULTILINE) for page in pages
    ]
    assert code[0] == code[1]
    links = [set(LINK.findall(page)) - {"README.md", "README.zh-CN.md", "notebooks/GLOSSARY.md"} for page in pages]
    assert links[0] == links[1]


def test_the_readme_is_at_most_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
