"""Sphinx's settings for the site. `build_site.py` puts this file and all pages into one folder first."""

import re

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

import mnv3nb

project, author, version = "mnv3nb", "The mnv3nb authors", mnv3nb.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx.ext.githubpages"]

# notebooks as they were executed
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # a page has no kernel: the still picture is shown, and no script is fetched
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 4
suppress_warnings = ["mystnb.unknown_mime_type"]  # the keys of the runs behind an output, which are for tests

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
    """Formulas as MathML, which browsers draw without any script or network; docstrings in which |γ| is no reference."""

    def inline(self, node) -> None:
        self.body.append(convert(node.astext()))
        raise SkipNode

    def block(self, node) -> None:
        self.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
        raise SkipNode

    def bars(app, what, name, obj, options, lines) -> None:
        lines[:] = [re.sub(r"`[^`]*`|\|", lambda m: "\\|" if m[0] == "|" else m[0], line) for line in lines]

    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("autodoc-process-docstring", bars)
