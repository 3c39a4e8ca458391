"""Pictures of comparisons. A method has one colour and marker, in every picture."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from .candidates import DEFAULT_METHODS
from .solvers.methods import METHODS

if TYPE_CHECKING:
    from .results import Comparison, Row

_INK, _RULE = "#222222", "#e5e5e5"
# Paul Tol's "muted" scheme, told apart by colour-blind readers, in an order that keeps the methods that
# are usually shown together apart; a second and third round have other markers and dashes.
_COLOURS = (
    *("#332288", "#CC6677", "#DDAA33", "#117733", "#88CCEE"),
    *("#882255", "#44AA99", "#AA4499", "#999933"),
)
_ROUNDS: tuple[tuple[str, Any], ...] = (("o", "-"), ("s", (0, (5, 1.5))), ("^", (0, (1.5, 1.2))))
_ORDER = (*DEFAULT_METHODS, *(name for name in METHODS if name not in DEFAULT_METHODS))
_PER_ROW = 3
_LABEL_GAP = 11.0  # points between two names at the right


def look(method: str) -> dict[str, Any]:
    """Colour, marker and line style of a method: the same everywhere, also for names of your own."""
    known = method in _ORDER
    i = _ORDER.index(method) if known else zlib.crc32(method.encode()) % (3 * len(_COLOURS))
    marker, line = _ROUNDS[i // len(_COLOURS) % len(_ROUNDS)]
    return dict(color=_COLOURS[i % len(_COLOURS)], marker=marker, linestyle=line)


def errors_plot(result: Comparison) -> Figure:
    """Error against measured network calls, a panel for each grid that was asked for.

    Both axes are logarithmic; bands are the rows' intervals; below the grey line errors are not resolved
    by the reference. ValueError if no row has an error.
    """
    rows = [row for row in result.rows if row["error"] and row["nfe"]]
    if not rows:
        raise ValueError("nothing to draw: no row has an error; the notes of the rows say why")
    plans = [row for row in rows if row["group"] == "plan"]
    groups = list(dict.fromkeys(row["group"] for row in rows if row["group"] != "plan")) or ["plan"]
    columns = min(len(groups), _PER_ROW)
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(6.2 * columns, 4.4 * lines), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=0.85 / (6.2 * columns),
        right=1 - 1.1 / (6.2 * columns),
        top=0.9,
        bottom=0.14,
        wspace=0.4,
    )
    for axis, group in zip(axes.flat, groups):
        # plans bring their own grids: in every panel
        shown = [row for row in rows if row["group"] == group]
        _panel(axis, shown + (plans if group != "plan" else []), result)
        if group not in ("default", "plan"):
            axis.set_title("best grid of each" if group == "best" else group, fontsize=10)
    for axis in list(axes.flat)[len(groups) :]:
        axis.set_axis_off()
    _scales(axes.flat[0], rows, result)
    for axis, group in zip(axes.flat, groups):
        _name_lines(figure, axis, [row for row in rows if row["group"] in (group, "plan")])
    return figure


def _panel(axis: Any, rows: Sequence[Row], result: Comparison) -> None:
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = sorted((row for row in rows if row["method"] == method), key=lambda row: row["nfe"])
        nfe = [row["nfe"] for row in mine]
        style = look(method)
        axis.plot(nfe, [row["error"] for row in mine], **style, ms=4.5, lw=1.5, label=method)
        if all(row["error_low"] is not None for row in mine):
            low, high = ([row[key] for row in mine] for key in ("error_low", "error_high"))
            axis.fill_between(nfe, low, high, color=style["color"], alpha=0.15, lw=0)
    if result.floor > 0:
        axis.axhline(result.floor, color="#888888", lw=0.8)
        axis.axhspan(0, result.floor, color="#888888", alpha=0.12, lw=0)
    axis.set_xlabel("network calls per sample")
    axis.set_ylabel("RMS error to the converged solution")
    axis.grid(True, color=_RULE, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _scales(axis: Any, rows: Sequence[Row], result: Comparison) -> None:
    """Log axes that hold all rows, with numbers to read; for all panels, which share them."""
    errors = np.array([row["error"] for row in rows])
    nfe = sorted({row["nfe"] for row in rows})
    axis.set_xscale("log")
    axis.set_yscale("log")
    # a method that is lost is off the picture rather than all others in a corner of it
    upper = max(row["error_high"] or row["error"] for row in rows)
    top = min(upper, 30 * float(np.median(errors)))
    bottom = min(row["error_low"] or row["error"] for row in rows)
    if result.floor > 0:
        bottom = min(bottom, max(result.floor, bottom / 30))
        if result.floor > bottom / 2:
            axis.annotate(
                "floor: 100 × the reference's own error",
                (0.01, result.floor),
                xycoords=("axes fraction", "data"),
                xytext=(0, -3),
                textcoords="offset points",
                va="top",
                fontsize=7.5,
                color="#666666",
            )
    axis.set_ylim(bottom / 1.6, top * 1.4)
    axis.set_xlim(nfe[0] / 1.08, nfe[-1] * 1.08)
    axis.set_xticks(_apart(nfe))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if top / bottom < 300 else (1,)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _apart(values: Sequence[float]) -> list[float]:
    """Those of the rising values that leave room for the number before, the largest kept."""
    kept: list[float] = []
    for value in reversed(values):
        if not kept or kept[-1] / value > 1.12:
            kept.append(value)
    return kept[::-1]


def _name_lines(figure: Figure, axis: Any, rows: Sequence[Row]) -> None:
    """Each method's name at the right end of its line, moved apart where they would overlap."""
    ends = {}
    for row in sorted(rows, key=lambda row: row["nfe"]):
        ends[row["method"]] = (row["nfe"], row["error"])
    points = 72 / figure.dpi
    bottom, top = axis.get_window_extent().y0 * points, axis.get_window_extent().y1 * points
    placed: list[tuple[str, tuple[float, float], float]] = []
    for method, end in sorted(ends.items(), key=lambda item: item[1][1]):
        height = float(axis.transData.transform(end)[1]) * points
        height = max(min(height, top), placed[-1][2] + _LABEL_GAP if placed else bottom)
        placed.append((method, end, height))
    shift = max(0.0, placed[-1][2] - top) if placed else 0.0
    for i in reversed(range(len(placed))):  # down again from the upper end
        limit = top if i == len(placed) - 1 else placed[i + 1][2] - _LABEL_GAP
        method, end, height = placed[i]
        placed[i] = (method, end, min(height, limit) if shift else height)
    right = axis.get_window_extent().x1 * points
    for method, end, height in placed:
        axis.annotate(
            method,
            end,
            xytext=((right + 8) / points, height / points),
            textcoords="figure pixels",
            va="center",
            fontsize=8.5,
            color=look(method)["color"],
            arrowprops=dict(arrowstyle="-", lw=0.5, color=look(method)["color"], alpha=0.5),
            annotation_clip=False,
        )
