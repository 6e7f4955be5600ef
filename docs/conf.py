"""The site that `make docs` builds of these pages and of the docstrings."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

project = "gankernels"
author = "the gankernels authors"
release = re.search(r'"(.+)"', (HERE.parent / "gankernels/_version.py").read_text())[1]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "llms",
    "mathml",
    "public_names",
]
exclude_patterns = ["_ext", "examples/*.py", "examples/*.ipynb"]

# Markdown
myst_enable_extensions = ["deflist", "dollarmath"]
myst_dmath_double_inline = False
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # parts of other files begin at the level they have there

# Examples: a page of each program. They train for minutes, so tests run them and not this.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "examples",
    "plot_gallery": False,
    "image_scrapers": (),
    "reset_modules": (),
    "notebook_extensions": set(),
    "download_all_examples": False,
    "write_computation_times": False,
    "show_signature": False,
    "remove_config_comments": True,
    "within_subsection_order": "FileNameSortKey",
}

# Docstrings
autosummary_generate = False
autodoc_typehints = "none"  # docstrings say them in words; in signatures they take a screen
autodoc_inherit_docstrings = False  # torch says of every forward what a forward is
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_param = False  # names that share a description share a line
add_module_names = False
python_maximum_signature_line_length = 70
toc_object_entries_show_parents = "hide"

# Pages. Nothing of them comes from a network: fonts are the reader's own, formulas are MathML.
html_theme = "furo"
html_title = f"gankernels {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
