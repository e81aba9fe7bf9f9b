"""The documentation as a site: `make docs` builds it into build/docs. No network is asked."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_site"), str(HERE.parent / "src")]

import contents  # noqa: E402
import docstrings  # noqa: E402
import files  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

import spiritlevel  # noqa: E402

project = "spiritlevel"
author = "the spiritlevel contributors"
version = release = spiritlevel.__version__
root_doc = "index"
source_suffix = {".md": "markdown"}
smartquotes = False
exclude_patterns = ["_site"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]

myst_heading_anchors = 4
"""As on GitHub, where the pages are read, too."""

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_use_legacy_class_based = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 78
add_module_names = False
nitpick_ignore_regex = [
    ("py:.*", r"(?!spiritlevel\.).*"),
    ("py:class", r"spiritlevel\.(study\.(records|run)|report|nn\.as_timm)\..*"),
]
"""What is not ours is described elsewhere, which a build without a network cannot look up; nor has
what only a type names, and nobody makes or is given by itself, a description."""

html_theme = "furo"
html_title = "spiritlevel"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def setup(app: Sphinx) -> None:
    for part in (contents, docstrings, files):
        part.setup(app)
