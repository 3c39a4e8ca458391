"""How pictures look: colours, markers, and figures that belong to no window.

A method has one colour, marker and line style in every picture. The colours are told apart by colour-blind
readers: Paul Tol's "muted" scheme for methods, "bright" for grids.
"""

from __future__ import annotations

import io
import zlib
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..grids import CLASSIC, FLOW
from ..solvers.methods import CALIBRATED, DEFAULT_METHODS, METHODS

INK, RULE, GREY, FRAME = "#222222", "#e5e5e5", "#777777", "#cccccc"
FLOOR, DOTS, EMPTY, CURVE = "#888888", "#999999", "#f2f2f2", "#08519c"
# In an order that keeps the methods that are usually shown together apart; a second and third round have
# other markers and dashes.
_COLOURS = (
    *("#332288", "#CC6677", "#DDAA33", "#117733", "#88CCEE"),
    *("#882255", "#44AA99", "#AA4499", "#999933"),
)
_ROUNDS: tuple[tuple[str, Any], ...] = (
    *(("o", "-"), ("s", (0, (5, 1.5))), ("^", (0, (1.5, 1.2)))),
    ("D", (0, (4, 1.2, 1, 1.2))),
)
_ORDER = (*DEFAULT_METHODS, *(name for name in METHODS if name not in DEFAULT_METHODS))
_LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (3, 3)))
GRIDS: dict[str, dict[str, Any]] = {
    name: dict(color=colour, linestyle=line, alpha=alpha)
    for names, alpha in ((CLASSIC, 1.0), (FLOW, 0.6))
    for name, colour, line in zip(
        names,
        ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#AA3377", "#66CCEE"),
        (*_LINES, _LINES[0]),
    )
}
# Of a calibration: what sample(nfe=) does, the best textbook sampler, the fitted plan, the solution.
STAGES = dict(default="#117733", incumbent="#332288", calibrated="#CC6677", converged=INK)


def look(method: str) -> dict[str, Any]:
    """Colour, marker and line style of a method, the same everywhere, also for names of your own."""
    if method == CALIBRATED:
        return dict(color=INK, marker="s", linestyle="-")
    known = method in _ORDER
    i = _ORDER.index(method) if known else zlib.crc32(method.encode()) % (3 * len(_COLOURS))
    marker, line = _ROUNDS[i // len(_COLOURS) % len(_ROUNDS)]
    return dict(color=_COLOURS[i % len(_COLOURS)], marker=marker, linestyle=line)


class Picture(Figure):
    """A figure that a notebook draws also where no pyplot has told it how."""

    def _repr_png_(self) -> bytes:
        self.savefig(file := io.BytesIO(), format="png", bbox_inches="tight")
        return file.getvalue()


def blank_figure(width: float, height: float, dpi: float, layout: Any = "none") -> Figure:
    """A white figure, in inches, whatever the reader's own style asks for; by default without a layout
    engine, so that its parts stay where they are put."""
    # "none" is missing in matplotlib's stubs; None would be the style's engine
    figure = Picture(figsize=(width, height), dpi=dpi, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def rule(axis: Any, which: Any = "major") -> None:
    """Faint lines on the axes, and no frame above and to the right."""
    axis.grid(True, which=which, color=RULE, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def plain_numbers(axis: Any, subs: Any = (1,)) -> None:
    """A log axis whose numbers are written out: powers of ten, and those times ``subs``."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
