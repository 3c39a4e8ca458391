"""Names that others chose are text wherever they are shown: pictures, tables, terminals, pages."""

import csv
import dataclasses
import html
import io
import warnings

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from problems import COSINE, DDPM, mixture_2d

import ddim_ode
from ddim_ode import cli
from ddim_ode._base.escaping import cell, label, lines, markup, plain
from ddim_ode.cli.common import print_table
from ddim_ode.comparison import report, tables
from ddim_ode.plots import comparisons as plots
from ddim_ode.plots import pictures, plans

NAMES = (
    "$x^2$",
    "$\\frac$",
    r"a\$b$",
    "=HYPERLINK(1)",
    "\x1b[2J\x1b[31mred",
    "two\nlines",
    "<script>",
    "‮back",
)


# Every name at two budgets.
RESULT = ddim_ode.compare(
    mixture_2d(DDPM), {name: "ddim" for name in NAMES}, nfe=[3, 5], n=4, progress=False
)


def shown_as(text):
    """What matplotlib would draw of a text, as a reader sees it; its own parser decides."""
    figure = Figure()
    FigureCanvasAgg(figure)
    drawn, is_math = figure.text(0, 0, text)._preprocess_math(text)
    assert not is_math
    return drawn


@pytest.mark.parametrize("name", NAMES)
def test_a_label_is_drawn_as_it_is_written(name):
    assert shown_as(label(name)) == plain(name)


def test_no_picture_reads_a_formula():
    cells = [torch.zeros(1, 1, 4, 4)]
    plan = ddim_ode.plan("ddim", COSINE, [9.0, 1.0, 0.0])
    odd = dataclasses.replace(plan, method="$\\frac$")
    ends = [(name, [torch.zeros(4, 2)]) for name in NAMES]
    figures = [
        RESULT.plot(),
        plots.metric_plot(RESULT.rows, "error", "$\\frac$"),
        plots.ends_plot(ends, ["$\\frac$"], torch.ones(4, 2)),
        pictures.sample_grid([(f"{name}\n$\\frac$", cells[0]) for name in NAMES[:5]], ["$\\frac$"]),
        pictures.solver_grid([(name, "#222222", cells) for name in NAMES], ["$\\frac$"]),
        plans.plan_plot(odd),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fonts that lack a sign
        for figure in figures:
            figure.savefig(io.BytesIO())  # mathtext would refuse \frac without arguments
            texts = [text.get_text() for text in figure.findobj(Text)]
            assert any(r"\$\frac\$" in text for text in texts)
            assert not any("\x1b" in text for text in texts)


def test_tables_have_one_line_a_row_and_no_escapes(capsys):
    for text in (tables.text(RESULT), tables.overview_text(RESULT)):
        assert all(line.isprintable() for line in text.split("\n"))
        lines_of_one = sum("[31mred" in line for line in text.split("\n"))
        assert lines_of_one in (1, 2)  # a line, or one a budget
        assert r"two\nlines" in text
    assert str(RESULT.best(3)).isprintable()
    print_table([dict(name=name, n=1) for name in NAMES])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(NAMES)
    assert all(line.isprintable() for line in printed)


def test_pages_show_names_and_run_nothing():
    page = report.page(RESULT, report.Context("<script>alert(1)</script>\x1b"))
    for text in (page, tables.html(RESULT), tables.overview_html(RESULT, caption="<script>")):
        assert "<script" not in text
        assert "\x1b" not in text
        assert html.escape("<script>") in text
    assert markup('"<a>\n') == "&quot;&lt;a&gt;\\n"


def test_spreadsheets_see_no_formula(tmp_path):
    RESULT.to_csv(tmp_path / "compare.csv")
    with open(tmp_path / "compare.csv", newline="", encoding="utf-8") as file:
        methods = [row["method"] for row in csv.DictReader(file)]
    assert methods[::2] == [cell(name) for name in NAMES] or set(methods) == set(map(cell, NAMES))
    assert cell(NAMES[3]) == "'=HYPERLINK(1)"
    for text in ("=1", "+1", "-1", "@x", " =1", "\t=1", "\r=1", "\n=1"):
        assert cell(text)[0] not in "=+-@ \t\r\n" or cell(text).startswith("'")
    assert [cell(value) for value in (-1, -1.5, None, True)] == [-1, -1.5, None, True]


def test_errors_and_notes_reach_the_terminal_as_text(capsys, tmp_path):
    name = str(tmp_path / "\x1b[2Jgone.safetensors")
    assert cli.main(["sample", "--model", name, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"\x1b[2Jgone" in said
    assert lines("a\nb\x1b") == "a\nb\\x1b"
