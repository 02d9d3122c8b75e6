"""The course and every other page for readers: links lead somewhere, and named sections and terms exist."""

import itertools
import json
import re
from pathlib import Path

import pytest
from support import ROOT

from mnv3nb.runs.notebooks import SOURCES, find_notebooks

COURSE = (SOURCES / "README.md").read_text()
PAGE_PATTERNS = (
    "*.md",
    "docs/guide*.md",
    "notebooks/*.md",
    "notebooks/exercises/*.md",
    "results/*.md",
    "figures/**/*.md",
)
PAGES = sorted(path for pattern in PAGE_PATTERNS for path in ROOT.glob(pattern))
EXECUTED_NOTEBOOKS = sorted((ROOT / "figures").glob("*/[0-9]*.ipynb"))
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")

TRANSLATIONS = {"README.md": "README.zh-CN.md", "docs/guide.md": "docs/guide.zh-CN.md"}
SAME_IN_A_TRANSLATION = {
    "generated tables": r"<!-- \w+ -->.*?<!-- end -->",
    "numbers": r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?",
    "commands and names": r"`[^`]+`",
    "addresses": r"https?://[^\s)\"]+",
}


def markdown_of(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub, Jupyter's Markdown and MyST name them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(path.read_text())}


@pytest.mark.parametrize(
    "path", [*PAGES, *find_notebooks(), *EXECUTED_NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT))
)
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
    first_cell = "".join(json.loads(path.read_text())["cells"][0]["source"])
    assert "(GLOSSARY.md)" in first_cell
    assert "(README.md)" in first_cell


def test_every_section_that_the_course_names_is_in_its_notebook():
    named = []
    for notebook, sections in re.findall(r"\]\((\d\d_\w+\.ipynb)\),((?:(?: and|,| to|)? ?\*[^*|]+\*)+)", COURSE):
        for section in re.findall(r"\*([^*]+)\*", sections):
            named.append((notebook, section))
    assert len(named) > 40
    missing = [(name, section) for name, section in named if section not in headings(markdown_of(SOURCES / name))]
    assert missing == []


def test_there_are_four_lessons_of_90_minutes():
    lessons = re.split(r"^### Lesson ", COURSE, flags=re.MULTILINE)[1:]
    assert len(lessons) == 4
    for lesson in lessons:
        times = [(int(start), int(end)) for start, end in re.findall(r"^\| (\d+)-(\d+) \|", lesson, re.MULTILINE)]
        assert times[0][0] == 0
        assert times[-1][1] == 90
        for before, after in itertools.pairwise(times):
            assert before[1] == after[0]
        for part in ("**Before**", "make figures ONLY=", "**Ask**", "| students think | what refutes it |"):
            assert part in lesson


def test_every_word_of_the_glossary_has_its_chinese():
    row = re.compile(r"^\| (.+?) \| (.+?) \| (.+?) \| \[\d\d\]\(\S+\) \|$", re.MULTILINE)
    rows = row.findall((SOURCES / "GLOSSARY.md").read_text())
    assert len(rows) > 35
    for _, chinese, _ in rows:
        assert re.search(r"[\u4e00-\u9fff]", chinese)


def prose(page: str) -> str:
    """The page on one line, without its code blocks."""
    return " ".join(re.sub(r"```.*?```", "", page, flags=re.DOTALL).split())


def code_lines(page: str) -> list[str]:
    """Every line of code without its comment, which is translated."""
    code = re.findall(r"```(.*?)```", page, re.DOTALL) + re.findall(r"^ {4}.+$", page, re.MULTILINE)
    return [line.rstrip() for line in re.findall(r"^[^#\n]+", "\n".join(code), re.MULTILINE)]


def untranslated_links(page: str) -> set[str]:
    """Every link, to a translated page as to the English one. The headings of the guide are translated: left out."""
    links = [link.replace(".zh-CN", "") for link in LINK.findall(page)]
    return {re.sub(r"^(docs/guide\.md)?#.*", r"\1", link) for link in links}


@pytest.mark.parametrize("english", TRANSLATIONS)
@pytest.mark.parametrize("kind", SAME_IN_A_TRANSLATION)
def test_a_chinese_page_has_the_same_numbers_tables_commands_and_addresses(english, kind):
    pattern = SAME_IN_A_TRANSLATION[kind]
    in_english = set(re.findall(pattern, prose((ROOT / english).read_text())))
    in_chinese = set(re.findall(pattern, prose((ROOT / TRANSLATIONS[english]).read_text())))
    assert in_english == in_chinese


@pytest.mark.parametrize("english", TRANSLATIONS)
def test_a_chinese_page_has_the_same_code_and_links(english):
    english_page = (ROOT / english).read_text()
    chinese_page = (ROOT / TRANSLATIONS[english]).read_text()
    assert code_lines(english_page) == code_lines(chinese_page)
    assert untranslated_links(english_page) == untranslated_links(chinese_page)
