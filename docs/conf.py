"""Configures the documentation's site, which ``make docs`` builds with Sphinx.

Sphinx reads the repository as it is: the source directory is the repository's root, so a relative
link between two files is right in the repository and on the site. ``docs/builder`` holds our
extensions of Sphinx, the style sheet and the templates.
"""

import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "docs" / "builder")]

import vqvae_fast  # noqa: E402  (it is the tree that the site describes)

project = "vqvae_fast"
version = release = vqvae_fast.__version__
project_copyright = "the authors of vqvae_fast"
html_title = f"{project} {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "command_line",
    "reference",
]
root_doc = "docs/index"
include_patterns = [
    *("CHANGELOG.md", "CONTRIBUTING.md"),
    *("docs/*.md", "docs/api/*.md", "docs/examples/*.md"),
    *("benchmarks/README.md", "benchmarks/results/**.md"),
    *("csrc/README.md", "tests/README.md"),
]
exclude_patterns = [".*", "build", "runs", "site", "**/__pycache__"]

# A reference that nothing answers is an error (make docs treats warnings as errors), except to
# names outside the package: the site is built without a network, so it cannot look them up.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|nn|np|numpy|collections|pathlib|typing|re|os)\..*"),
]

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline", "colon_fence"]
highlight_language = "text"
smartquotes_action = "D"  # dashes alone: a quoted word is often code

autodoc_default_options = {
    "members": True,
    # Steps that the package's own modules take for each other.
    "exclude-members": "pack_keepers, kept_forms, keep_packed, keep_no_pack, keep_composed, "
    "written, communicates, share_codebook, finish_shared_step, extra_repr",
}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 80

html_theme = "furo"
html_static_path = ["builder/static"]
templates_path = ["builder/templates"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "home.html"}
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
