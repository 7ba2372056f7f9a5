"""The documentation site: `sphinx-build -W docs docs/_build` runs the lessons, in fast mode, and reads the docstrings.

`MINIPEFT_FAST= sphinx-build -W docs docs/_build` runs them in full: half an hour, and the figures are the real ones.
"""

import os
import shutil
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

import minipeft

HERE = Path(__file__).parent

project = "minipeft"
version = release = minipeft.__version__
copyright = "the authors of minipeft"
extensions = ["myst_nb", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "conf.py", "api/modules.rst"]
html_theme = "furo"
html_title = "minipeft"
html_math_renderer = "mathml"  # formulas without a script from the network

# The lessons: percent scripts, run as notebooks. Sphinx wants its sources below its own folder.
os.environ.setdefault("MINIPEFT_FAST", "1")
shutil.rmtree(HERE / "lessons", ignore_errors=True)
shutil.copytree(
    HERE.parent / "lessons", HERE / "lessons", ignore=lambda folder, names: {n for n in names if n[0] not in "01"}
)
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath"]

# The API: a page a module, from its docstrings.
apidoc_modules = [
    {
        "path": "../minipeft",
        "destination": "api",
        "separate_modules": True,
        "module_first": True,
        "exclude_patterns": ["../minipeft/__main__.py", "../minipeft/cli*.py"],
    }
]
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
autodoc_mock_imports = ["cupy", "cupy_backends", "numba", "gguf"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # two packages may each have a `Settings`: a link to either will do
default_role = "code"  # `name` in a docstring is code


def setup(app):
    """Formulas as MathML, which browsers draw by themselves."""

    def inline(page, node):
        page.body.append(convert(node.astext()))
        raise nodes.SkipNode

    def block(page, node):
        page.body.append(f"<div>{convert(node.astext(), display='block')}</div>")
        raise nodes.SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (block, None))
