"""How Sphinx builds the site from these pages: `make docs`."""

import sys
from importlib.util import find_spec
from pathlib import Path

from pliant import __version__

sys.path.insert(0, str(Path(__file__).parent / "_site"))

project = "Pliant"
author = "The Pliant developers"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "docstrings",
    "links",
    "tables",
]
exclude_patterns = ["_site"]
nitpicky = False  # names in docstrings that are no pages of their own stay code

myst_heading_anchors = 4
highlight_language = "none"
smartquotes = False  # of two dashes before an option it makes one

autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "DTypeLike": "DTypeLike"}
autodoc_mock_imports = [
    name for name in ("lightning", "transformers", "accelerate", "avalanche") if find_spec(name) is None
]
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"Pliant {version}"
html_static_path = ["_site/static"]
html_css_files = ["pliant.css"]
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
