"""Pictures of samples: one strip per solver, the same seeds in the same columns."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from .._base import files
from .._base.escaping import label as as_label
from ..nets.data import to_pixels
from .style import CURVE, INK, blank_figure, plain_numbers, rule

_PER_ROW = 10
_CELL = 0.8  # inches a picture
_LABEL = 1.25  # inches for the names on the left
_MARGIN = 1  # blank pixels around a picture


def sample_grid(strips: Sequence[tuple[str, Tensor]], columns: Sequence[str] = ()) -> Figure:
    """A figure of strips (label, images (N, C, H, W) in [-1, 1]), wrapped at ten columns.

    columns: headings, one per column. A label's first line is set in bold.
    """
    if not strips or any(images.shape[0] == 0 for _, images in strips):
        raise ValueError("nothing to draw: give at least one strip with at least one image")
    per_row = min(_PER_ROW, max(images.shape[0] for _, images in strips))
    rows = [-(-images.shape[0] // per_row) for _, images in strips]
    top = 0.35 if columns else 0.1
    gap = 0.12  # inches between strips
    height = top + sum(rows) * _CELL + gap * len(strips) + 0.05
    width = _LABEL + per_row * _CELL + 0.1
    figure = blank_figure(width, height, dpi=150)

    y = height - top
    for (label, images), n_rows in zip(strips, rows):
        panel = _mosaic(images, per_row, n_rows)
        y -= n_rows * _CELL
        box = (_LABEL / width, y / height, per_row * _CELL / width, n_rows * _CELL / height)
        axes = figure.add_axes(box)
        _show(axes, panel)
        name, _, detail = map(as_label, label.partition("\n"))
        middle = (y + n_rows * _CELL / 2) / height
        figure.text(0.1 / width, middle, name, va="bottom", size=9.5, weight="bold", color=INK)
        figure.text(0.1 / width, middle - 0.03 / height, detail, va="top", size=8, color=INK)
        y -= gap
    for i, heading in enumerate(columns[:per_row]):
        x = (_LABEL + (i + 0.5) * _CELL) / width
        where = 1 - (top - 0.06) / height
        figure.text(x, where, as_label(heading), ha="center", va="bottom", size=8, color=INK)
    return figure


def solver_grid(
    lines: Sequence[tuple[str, str, Sequence[Tensor | None]]], columns: Sequence[str]
) -> Figure:
    """The same seeds in every cell: a row for each solver, a column for each budget.

    lines: label, its colour, and the pictures (k, C, H, W) in [-1, 1] of each column, None where there are
    none. Failed pictures (NaN) are left blank.
    """
    k = max(len(cell) for _, _, cells in lines for cell in cells if cell is not None)
    longest = max(len(label) for label, _, _ in lines)
    cell, gap, left, top = 0.5, 0.14, max(1.2, 0.3 + 0.075 * longest), 0.32  # inches
    width = left + len(columns) * (k * cell + gap)
    height = top + len(lines) * (cell + 0.06) + 0.06
    figure = blank_figure(width, height, dpi=150)
    for i, (label, colour, cells) in enumerate(lines):
        y = height - top - (i + 1) * (cell + 0.06) + 0.06
        middle = (y + cell / 2) / height
        mark = Line2D([0.1 / width], [middle], marker="o", ms=4, color=colour)
        figure.add_artist(mark)
        name = as_label(label)
        figure.text(0.2 / width, middle, name, va="center", size=8.5, weight="bold", color=INK)
        for j, pictures in enumerate(cells):
            x = left + j * (k * cell + gap)
            if pictures is None:
                figure.text((x + k * cell / 2) / width, middle, "not run", ha="center", size=8)
                continue
            box = (x / width, y / height, len(pictures) * cell / width, cell / height)
            axes = figure.add_axes(box)
            blank = -1.0 if pictures.shape[1] == 1 else 1.0  # the paper's colour
            _show(axes, _mosaic(pictures.nan_to_num(nan=blank), len(pictures), 1))
    for j, heading in enumerate(columns):
        x = left + j * (k * cell + gap) + k * cell / 2
        where = 1 - (top - 0.08) / height
        name = as_label(heading)
        figure.text(x / width, where, name, ha="center", va="bottom", size=8.5, color=INK)
    return figure


def _show(axes: Any, pixels: np.ndarray) -> None:
    axes.imshow(pixels, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    axes.set_axis_off()


def drawn(figure: Figure, kind: str = "png", dpi: float | None = None) -> bytes:
    """The figure as it is laid out, as a file of that kind holds it; dpi: other than its own."""
    figure.savefig(buffer := io.BytesIO(), format=kind, facecolor="white", dpi=dpi or "figure")
    return buffer.getvalue()


def save_figure(path: str | Path, figure: Figure) -> None:
    """Write the figure, as the kind that the file's name ends in."""
    files.write(path, drawn(figure, Path(path).suffix[1:]))


def save_images(folder: Path, images: Tensor, names: Sequence[str]) -> None:
    """One PNG per image, at its own resolution."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for picture, name in zip(_channels_last(images), names):
        Image.fromarray(picture).save(buffer := io.BytesIO(), "png")
        files.write(folder / f"{name}.png", buffer.getvalue())


def _channels_last(images: Tensor) -> np.ndarray:
    pixels = to_pixels(images).cpu().numpy().transpose(0, 2, 3, 1)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _mosaic(images: Tensor, per_row: int, n_rows: int) -> np.ndarray:
    pixels = _channels_last(images)
    paper = 0 if pixels.ndim == 3 else 255  # grey pictures are drawn dark on light
    room = [(0, per_row * n_rows - len(pixels)), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)]
    pixels = np.pad(pixels, room[: pixels.ndim], constant_values=paper)
    height, width = pixels.shape[1:3]
    grid = pixels.reshape(n_rows, per_row, height, width, *pixels.shape[3:])
    return grid.swapaxes(1, 2).reshape(n_rows * height, per_row * width, *pixels.shape[3:])


def loss_curve(steps: Sequence[int], losses: Sequence[float]) -> Figure:
    """Training loss against step, on log axes; steps within a decade on an even one."""
    figure = blank_figure(5.2, 3.0, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.semilogy(steps, losses, color=CURVE, lw=1.5)
    plain_numbers(axes.yaxis, (1, 2, 5))
    if steps[-1] >= 10 * steps[0]:
        axes.set_xscale("log")
        plain_numbers(axes.xaxis, (1, 2, 5))
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("ε-loss per pixel, mean of 50 steps")
    rule(axes, "both")
    return figure
