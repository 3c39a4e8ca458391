"""The reference as web pages: ``python -m ddim_ode.cli.docs DIR``, by the package pdoc."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from pathlib import Path

from .._base import files

_MODULES = "evaluate exact grids interop interop.diffusers plots schedules solvers solvers.methods"
_PAGES = ("ddim_ode", *(f"ddim_ode.{name}" for name in _MODULES.split()))


def build(folder: Path) -> None:
    """Write index.html and a page for each public module. ImportError without pdoc or diffusers."""
    try:
        import pdoc
    except ImportError as error:
        raise ImportError(
            f"the pages are made by pdoc ({error}): pip install -e '.[docs]'"
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
    for page in Path(folder).rglob("*.html"):
        files.write(page, _unlinked(page.read_text(encoding="utf-8")))


def _unlinked(page: str) -> str:
    """The page without links to what it does not show: members of a base class that has no page."""
    there = set(re.findall(r'id="([^"]+)"', page))
    link = re.compile(r'<a href="#([^"]+)">(.*?)</a>')
    return link.sub(lambda found: found[0] if found[1] in there else found[2], page)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m ddim_ode.cli.docs DIR")
    try:
        build(Path(sys.argv[1]))
    except ImportError as error:
        sys.exit(str(error))
