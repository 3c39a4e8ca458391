"""What an installed package needs besides its code: help that fits, pages, metadata, syntax."""

import ast
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ddim_ode

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
MAIN = [
    "sample",
    "compare",
    "calibrate",
    "profile",
    "Denoiser",
    "load",
    "noise",
    "encode",
    "plan_for",
    "generate",
]
SCREENS, LINES, COLUMNS = 2, 50, 100


def rows(text):
    """Rows of a terminal that the text takes."""
    return sum(max(1, -(-len(line) // COLUMNS)) for line in text.splitlines())


@pytest.mark.parametrize("name", MAIN)
def test_help_of_a_main_name_fits_two_screens(name):
    text = pydoc.plain(pydoc.render_doc(getattr(ddim_ode, name)))
    own = text.partition("Methods defined here")[0]  # of a class, whose methods follow below that
    assert 10 < rows(own) <= SCREENS * LINES


def test_pages_of_the_reference_are_made_and_their_links_hold(tmp_path):
    pytest.importorskip("pdoc")
    pytest.importorskip("diffusers")  # its classes are the bases of some
    build = [sys.executable, "-m", "ddim_ode.cli.docs", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True)
    pages = {p: p.read_text(encoding="utf-8") for p in tmp_path.rglob("*.html")}
    anchors = {p: set(re.findall(r'\bid="([^"]+)"', text)) for p, text in pages.items()}
    assert set(ddim_ode.__all__) & set(MAIN) <= anchors[tmp_path / "ddim_ode.html"]
    assert not re.search(r":(func|class|mod|meth|attr):`", pages[tmp_path / "ddim_ode.html"])
    links = [(p, link) for p, text in pages.items() for link in re.findall(r'href="([^"]+)"', text)]
    local = [(p, link) for p, link in links if "://" not in link and "${" not in link]
    assert len(local) > 200
    for page, link in local:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target in pages, (page, link)
        assert not anchor or anchor in anchors[target], (page, link)


def test_the_oldest_python_named_reads_the_code():
    minor = int(re.search(r'requires-python = ">=3\.(\d+)"', PROJECT).group(1))
    listed = [int(m) for m in re.findall(r"Python :: 3\.(\d+)", PROJECT)]
    assert listed == list(range(minor, max(listed) + 1))
    assert f'target-version = "py3{minor}"' in PROJECT
    for path in (ROOT / "ddim_ode").rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, minor))
