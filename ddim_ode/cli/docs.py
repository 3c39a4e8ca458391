"""The reference as web pages: ``python -m ddim_ode.cli.docs DIR``, by the package pdoc."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from pathlib import Path

_MODULES = "evaluate exact grids interop interop.diffusers plots schedules solvers solvers.methods"
_PAGES = ("ddim_ode", *(f"ddim_ode.{name}" for name in _MODULES.split()))


def build(folder: Path) -> None:
    """Write index.html and a page for each public module. ImportError without pdoc."""
    try:
        import pdoc
    except ImportError as error:
        raise ImportError(
            f"the pages are made by pdoc ({error}): pip install 'ddim-ode[docs]'"
        ) from None
    for name in _PAGES:
        module = importlib.import_module(name)
        # pdoc reads what a module holds, and names that are loaded when they are asked for are not there
        for member in getattr(module, "__all__", ()):
            vars(module).setdefault(member, getattr(module, member))
    others = f"!(?!({'|'.join(map(re.escape, _PAGES))})$).+"
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that names imported for type checkers alone are no links
        pdoc.pdoc(*_PAGES, others, output_directory=folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m ddim_ode.cli.docs DIR")
    build(Path(sys.argv[1]))
