"""How Sphinx builds this documentation. No network is used: nothing is fetched while building."""

from importlib.metadata import version as installed_version

project = "Flask-AutoSession"
author = "Flask-AutoSession contributors"
copyright = "2026, Flask-AutoSession contributors"
release = version = installed_version("Flask-AutoSession")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

# A name of ours that leads nowhere is an error. Other projects' names cannot be looked up without
# their inventories, which live on the network, so those are let through.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!flask_autosession\b).*")]
