"""How Sphinx builds the documentation: `python -m sphinx -W --keep-going docs docs/_build`."""

from sphinx.application import Sphinx

import stridesurgery

project = "stridesurgery"
author = "The stridesurgery authors"
copyright = author
release = stridesurgery.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"stridesurgery {release}"

myst_heading_anchors = 3
autodoc_member_order = "bysource"
default_role = "code"  # `name` in a docstring is code
python_maximum_signature_line_length = 100


def setup(app: Sphinx) -> None:
    """Leave out the arguments of classes: their fields are listed one by one."""
    app.connect(
        "autodoc-process-signature", lambda app, what, *_: ("", None) if what == "class" else None
    )
