"""Sphinx's settings for the site. `build_site.py` puts this file and all pages into one folder first."""

import re

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

import mnv3nb

project = "mnv3nb"
author = "The mnv3nb authors"
version = mnv3nb.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx.ext.githubpages"]

# notebooks are shown as they were executed
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # a page has no kernel: the still picture is shown, and no script is fetched
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 4
suppress_warnings = ["mystnb.unknown_mime_type"]  # some outputs carry the keys of their runs, which only tests read

# docstrings: single backticks are code, as in Markdown
default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 160  # counted with the full names of types
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "mnv3nb"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["extra"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "show_navbar_depth": 1,
    "navbar_persistent": [],
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_math_renderer = "mathml"


def setup(app) -> None:
    """Formulas become MathML, which browsers draw without a script or the network."""
    app.add_html_math_renderer("mathml", (_write_inline_formula, None), (_write_formula_block, None))
    app.connect("autodoc-process-docstring", _escape_bars)


def _write_inline_formula(translator, node) -> None:
    translator.body.append(convert(node.astext()))
    raise SkipNode


def _write_formula_block(translator, node) -> None:
    formula = convert(node.astext(), display="block")
    translator.body.append(f'<div class="formula">{formula}</div>')
    raise SkipNode


def _escape_bars(app, what, name, obj, options, lines: list[str]) -> None:
    """Escapes the bars of |γ| in a docstring, which would be a reference; those inside of backticks stay."""
    for i, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)  # every second one is code
        parts[::2] = [text.replace("|", "\\|") for text in parts[::2]]
        lines[i] = "".join(parts)
