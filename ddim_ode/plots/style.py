"""A blank figure that belongs to no window, keeps its parts where they are put, and shows in a notebook."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class Picture(Figure):
    """A figure that a notebook draws also where no pyplot has told it how."""

    def _repr_png_(self) -> bytes:
        self.savefig(file := io.BytesIO(), format="png", bbox_inches="tight")
        return file.getvalue()


def blank_figure(width: float, height: float, dpi: float) -> Figure:
    """A white figure, in inches, without a layout engine, whatever the reader's own style asks for."""
    # "none" is missing in matplotlib's stubs; None would be the style's engine
    layout: Any = "none"
    figure = Picture(figsize=(width, height), dpi=dpi, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure
