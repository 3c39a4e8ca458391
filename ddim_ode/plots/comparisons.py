"""Pictures of comparisons: lines of solvers over network calls, and where they end in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from .._base.checks import exclusive, numbers, one_of, several
from .._base.escaping import label as as_label
from .style import DOTS, FLOOR, FRAME, GREY, INK, blank_figure, plain_numbers, rule
from .style import look as look

if TYPE_CHECKING:
    from torch import Tensor

Row = Mapping[str, Any]
_PER_ROW = 3
_LABEL_GAP = 11.0  # points between two names at the right
_LEAST, _MOST = 2, 100  # inches of a figure
_SHORT = 30  # points: a leader from the last budget


def errors_plot(
    rows: Sequence[Row],
    floor: float,
    methods: str | Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Any = None,
    label: str = "RMS error to the converged solution",
    floor_label: str = "floor: 100 × the reference's own error",
) -> Figure:
    """Error against measured network calls, a panel for each grid that was asked for.

    Both axes are logarithmic; bands are the rows' intervals; below the grey line errors are not resolved
    by the reference, and those near or below 0 are drawn at a tenth of it. methods, figsize, ax, and
    what is refused: see :meth:`ddim_ode.Comparison.plot`.
    """
    known = dict.fromkeys(row["method"] for row in rows)
    rows = [_at_least(floor / 10, row) for row in rows if row["error"] and row["nfe"]]
    if methods is not None:
        chosen = [one_of("method", name, known) for name in several(methods)]
        rows = [row for row in rows if row["method"] in chosen]
    if not rows:
        raise ValueError("nothing to draw: no row has an error; the notes of the rows say why")
    figure, panels = _panels(rows, "error", label, figsize, ax)
    for axis, shown in panels:
        _bands(axis, shown)
        if floor > 0:
            axis.axhline(floor, color=FLOOR, lw=0.8)
            axis.axhspan(0, floor, color=FLOOR, alpha=0.12, lw=0)
    for axis, _ in panels:  # a caller's axes need not share theirs
        _calls_axis(axis, rows)
        _error_axis(axis, rows, floor, floor_label if axis is panels[0][0] else "")
    for axis, shown in panels:
        _name_lines(figure, axis, shown, "error")
    return figure


def _at_least(least: float, row: Row) -> Row:
    """The row with what is no positive error raised to where a log axis shows it."""
    if row["error"] > 0 and (row["error_low"] is None or row["error_low"] > 0):
        return row
    keys = ("error", "error_low", "error_high")
    return {**row, **{key: None if row[key] is None else max(least, row[key]) for key in keys}}


def metric_plot(
    rows: Sequence[Row], metric: str, label: str = "", converged: float | None = None
) -> Figure:
    """A metric of the rows against measured network calls, as :func:`errors_plot` has the error.

    label: of the axis. converged: what the converged solution itself scores, a dashed line; a method may
    come out better than that by its errors. ValueError if no row has that metric.
    """
    rows = [row for row in rows if row.get(metric) is not None and row["nfe"]]
    if not rows:
        raise ValueError(f"nothing to draw: no row has {metric!r}")
    figure, panels = _panels(rows, metric, label or metric)
    values = np.array([row[metric] for row in rows] + ([] if converged is None else [converged]))
    for axis, _ in panels:
        if converged is not None:
            axis.axhline(converged, color=INK, lw=1, ls=(0, (4, 3)), zorder=1)
            axis.annotate(
                "converged solution",
                (0.01, converged),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                fontsize=7.5,
                color=INK,
                bbox=dict(facecolor="white", alpha=0.8, lw=0, pad=0.5),
            )
    first = panels[0][0]
    _calls_axis(first, rows)
    if (values > 0).all():  # unbiased estimates of small distances may be negative
        first.set_yscale("log")
        top = min(values.max(), 30 * float(np.median(values)))
        first.set_ylim(values.min() / 1.3, top * 1.3)
        _log_numbers(first, top / values.min())
    for axis, shown in panels:
        _name_lines(figure, axis, shown, metric)
    return figure


def ends_plot(
    lines: Sequence[tuple[str, Sequence[Tensor | None]]],
    columns: Sequence[str],
    reference: Tensor,
    joined: bool = True,
) -> Figure:
    """Where each solver takes 2-D noises: a row of panels (method, ends (n, 2) per column).

    Grey dots are the converged solutions (n, 2), and a thin line joins each end to its own (joined).
    """
    size, left, top = 1.45, 1.05, 0.35
    bottom = 0.3
    width, height = left + size * len(columns) + 0.1, top + size * len(lines) + bottom
    figure = blank_figure(width, height, dpi=130)
    axes = figure.subplots(len(lines), len(columns), squeeze=False)
    figure.subplots_adjust(
        left=left / width,
        right=1 - 0.1 / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=0.06,
        hspace=0.06,
    )
    goal = reference.double().numpy()
    low, high = np.nanmin(goal, axis=0), np.nanmax(goal, axis=0)
    middle, half = (low + high) / 2, 0.6 * float((high - low).max()) + 1e-9
    for i, (method, cells) in enumerate(lines):
        for j, ends in enumerate(cells):
            axis = axes[i, j]
            axis.set(xlim=middle[0] + np.array([-half, half]), xticks=[], yticks=[])
            axis.set(ylim=middle[1] + np.array([-half, half]))
            axis.spines[:].set_color(FRAME)
            axis.plot(*goal.T, ".", color=DOTS, ms=2.5)
            if ends is None:
                axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center", fontsize=7)
            else:
                made, colour = ends.double().numpy(), look(method)["color"]
                if joined:
                    axis.plot(*np.stack([goal, made]).transpose(2, 0, 1), color=colour, lw=0.4)
                axis.plot(*made.T, ".", color=colour, ms=2.5)
            if i == 0:
                axis.set_title(as_label(columns[j]), fontsize=8.5)
        name = as_label(method)
        axes[i, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8.5)
    figure.text(left / width, 0.08 / height, "grey: the converged ends", fontsize=7.5, color=GREY)
    return figure


def _panels(
    rows: Sequence[Row],
    key: str,
    label: str,
    figsize: tuple[float, float] | None = None,
    ax: Any = None,
) -> tuple[Figure, list[tuple[Any, list[Row]]]]:
    """A figure with a panel per grid asked for, lines drawn; the panels with their rows."""
    plans = [row for row in rows if row["group"] == "plan"]
    groups = list(dict.fromkeys(row["group"] for row in rows if row["group"] != "plan")) or ["plan"]
    titled = groups not in (["default"], ["plan"])
    axes = _blank_panels(len(groups), titled, figsize) if ax is None else _given_axes(ax, groups)
    exclusive(ax=ax, figsize=figsize)
    panels = []
    for axis, group in zip(axes, groups):
        # plans bring their own grids: in every panel
        shown = [row for row in rows if row["group"] == group]
        shown += plans if group != "plan" else []
        for method in dict.fromkeys(row["method"] for row in shown):
            mine = _of(shown, method)
            points = [row["nfe"] for row in mine], [row[key] for row in mine]
            axis.plot(*points, **look(method), ms=4.5, lw=1.5, label=as_label(method))
        axis.set_xlabel("network calls per sample")
        axis.set_ylabel(as_label(label))
        rule(axis)
        if group not in ("default", "plan"):
            axis.set_title("best grid of each" if group == "best" else as_label(group), fontsize=10)
        panels.append((axis, shown))
    return axes[0].get_figure(), panels


def _blank_panels(n: int, titled: bool, figsize: tuple[float, float] | None) -> list[Any]:
    """The axes of a new figure."""
    columns = min(n, _PER_ROW)
    lines = -(-n // columns)
    width, height = (6.2 * columns, 4.4 * lines) if figsize is None else _size(figsize)
    figure = blank_figure(width, height, dpi=130)
    axes = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    figure.subplots_adjust(
        left=0.85 / width,
        right=1 - 1.1 / width,
        top=1 - (0.44 if titled else 0.13) / height,
        bottom=0.62 / height,
        wspace=0.4,
    )
    for axis in axes[n:]:
        axis.set_axis_off()
    return axes[:n]


def _size(figsize: Any) -> tuple[float, float]:
    size = numbers("figsize", figsize)
    if size.shape != (2,) or not np.all((size >= _LEAST) & (size <= _MOST)):
        raise ValueError(
            f"figsize={figsize!r} must be (width, height) in inches, each {_LEAST} to {_MOST}"
        )
    return float(size[0]), float(size[1])


def _given_axes(ax: Any, groups: Sequence[str]) -> list[Any]:
    axes = list(np.asarray(ax, dtype=object).flat)
    if not all(isinstance(axis, Axes) for axis in axes):
        raise ValueError(f"ax={ax!r} must be matplotlib axes, as plt.subplots() gives them")
    if len(axes) != len(groups):
        raise ValueError(
            f"ax has {len(axes)} axes, and there are {len(groups)} panels, one for each grid that was "
            f"asked for ({', '.join(groups)}); give as many"
        )
    return axes


def _of(rows: Sequence[Row], method: str) -> list[Row]:
    return sorted((row for row in rows if row["method"] == method), key=lambda row: row["nfe"])


def _bands(axis: Any, rows: Sequence[Row]) -> None:
    methods = dict.fromkeys(row["method"] for row in rows)
    alpha = min(0.15, 0.6 / max(1, len(methods)))  # many lie on each other
    for method in methods:
        mine = _of(rows, method)
        if all(row["error_low"] is not None for row in mine):
            low, high = ([row[key] for row in mine] for key in ("error_low", "error_high"))
            nfe = [row["nfe"] for row in mine]
            axis.fill_between(nfe, low, high, color=look(method)["color"], alpha=alpha, lw=0)


def _calls_axis(axis: Any, rows: Sequence[Row]) -> None:
    nfe = sorted({row["nfe"] for row in rows})
    axis.set_xscale("log")
    axis.set_xlim(nfe[0] / 1.08, nfe[-1] * 1.08)
    axis.set_xticks(_apart(nfe))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())


def _error_axis(axis: Any, rows: Sequence[Row], floor: float, said: str) -> None:
    """A log axis that holds all rows, with numbers to read. said: the floor's name, if shown."""
    errors = np.array([row["error"] for row in rows])
    axis.set_yscale("log")
    # a method that is lost is off the picture rather than all others in a corner of it
    upper = max(row["error_high"] or row["error"] for row in rows)
    middle = float(np.median(errors))
    top = upper if upper < 100 * middle else 30 * middle
    bottom = min(row["error_low"] or row["error"] for row in rows)
    if floor > 0 and floor > bottom / 5:  # a floor far below is no part of the picture
        bottom = min(bottom, floor / 1.5)
        if said:
            axis.annotate(
                said,
                (0.01, floor),
                xycoords=("axes fraction", "data"),
                xytext=(0, -3),
                textcoords="offset points",
                va="top",
                fontsize=7.5,
                color=GREY,
            )
    axis.set_ylim(bottom / 1.6, top * 1.4)
    _log_numbers(axis, top / bottom)


def _log_numbers(axis: Any, span: float) -> None:
    plain_numbers(axis.yaxis, (1, 2, 5) if span < 300 else (1,))


def _apart(values: Sequence[float]) -> list[float]:
    """Those of the rising values that leave room for the number before, the largest kept."""
    # a number takes a twentieth of the axis
    least = max(1.12, (values[-1] / values[0]) ** (1 / 18))
    kept: list[float] = []
    for value in reversed(values):
        if not kept or kept[-1] / value > least:
            kept.append(value)
    return kept[::-1]


def _name_lines(figure: Figure, axis: Any, rows: Sequence[Row], key: str) -> None:
    """Each method's name at the right end of its line, moved apart where they would overlap."""
    ends = {}
    for row in sorted(rows, key=lambda row: row["nfe"]):
        ends[row["method"]] = (row["nfe"], row[key])
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
        x, y = axis.transData.transform(end) * points
        axis.annotate(
            as_label(method),
            end,
            # points are the same at any resolution, and from the end in any crop (notebooks crop)
            xytext=(right + 8 - x, height - y),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK,  # the lighter colours do not read as text
            arrowprops=dict(
                arrowstyle="-",
                lw=1,
                ls="-" if right - x < _SHORT else ":",  # no part of a line that ends early
                color=look(method)["color"],
                relpos=(0, 0.5),
                shrinkA=1,
            ),
            annotation_clip=False,
        )
