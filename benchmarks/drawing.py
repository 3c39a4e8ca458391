"""How the benchmarks' pictures look: a colour for each method and package, panels, axes, bars and notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from ddim_ode.plots import comparisons as plots
from ddim_ode.plots.style import blank_figure

INK, GREY = "#222222", "#6b6b6b"
DOTS = (0, (1.5, 1.2))
DASHES = (0, (5, 1.5))
# Other packages: greys and black, so that colour always means one of our methods.
PACKAGES: dict[str, dict[str, Any]] = {
    "ddim_ode": dict(color="#332288", marker="o", linestyle="-"),
    "ddim_ode, any grid": dict(color="#332288", marker="^", linestyle=DOTS),
    "diffusers": dict(color="#000000", marker="s", linestyle=DASHES),
    "k-diffusion": dict(color="#777777", marker="D", linestyle=DASHES),
    "torchdiffeq": dict(color="#000000", marker="v", linestyle=DOTS),
    "torchode": dict(color="#777777", marker="x", linestyle=DOTS),
    "scipy": dict(color="#aaaaaa", marker="+", linestyle=(0, (3, 1, 1, 1))),
}
Band = tuple[Sequence[float], Sequence[float]]


def look(name: str) -> dict[str, Any]:
    """Colour, marker and line of a package ("torchdiffeq dopri5" too), or of one of our methods."""
    package, _, method = name.partition(" ")
    if package == "ddim_ode" and method:
        return plots.look(method)
    return PACKAGES.get(name) or PACKAGES.get(package) or plots.look(name)


def panels(
    columns: int, width: float = 10.0, height: float = 4.6, rows: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row, sized to be read at the width of a README (850 pixels)."""
    figure = blank_figure(width, height, dpi=170)
    figure.set_layout_engine("constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axis in axes:
        axis.grid(True, color="#e5e5e5", lw=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=10, colors=INK, which="both")
    return figure, axes


def label(axis: Axes, title: str, x: str, y: str = "") -> None:
    axis.set_title(title, fontsize=11.5, loc="left", color=INK)
    axis.set_xlabel(x, fontsize=10.5, color=INK)
    axis.set_ylabel(y, fontsize=10.5, color=INK)


def plain(value: float, _: int = 0) -> str:
    return f"{value:g}"


def log_axis(
    axis: Axes, which: str, ticks: Sequence[float] | None = None, fine: bool = True
) -> None:
    """Make "x" or "y" logarithmic, marked at ``ticks``, else at 1 2 5 in plain numbers if fine, else at
    powers of ten."""
    axis.set(**{f"{which}scale": "log"})
    scale = getattr(axis, f"{which}axis")
    if ticks is None:
        scale.set_major_locator(LogLocator(subs=(1, 2, 5) if fine else (1,), numticks=12))
    else:
        scale.set_ticks(list(ticks))
        scale.set_minor_locator(NullLocator())
    if fine:
        scale.set_major_formatter(FuncFormatter(plain))
        scale.set_minor_formatter(NullFormatter())


def log_scales(axis: Axes, x_ticks: Sequence[float], fine: bool = True) -> None:
    """Log axes; x is marked at what was measured."""
    log_axis(axis, "x", x_ticks)
    log_axis(axis, "y", fine=fine)


def cap(axis: Axes, points: Sequence[tuple[str, float, float]], top: float) -> None:
    """End the (already logarithmic) y axis at ``top``, and write down the highest that each name has
    beyond it; points: (name, x, y)."""
    axis.set_ylim(top=top)
    beyond = [point for point in points if point[2] > top]
    for name in dict.fromkeys(point[0] for point in beyond):
        _, x, y = max((point for point in beyond if point[0] == name), key=lambda point: point[2])
        text = f"{name}: {y:.2g} ↑" if y < 100 else f"{name}: {y:.0f} ↑"
        note(axis, text, (x, top), (3, -13), color=look(name)["color"])


def note(
    axis: Axes,
    text: str,
    at: tuple[float, float],
    shift: tuple[float, float] = (4, -8),
    **style: Any,
) -> None:
    """A small text beside a point, ``shift`` away."""
    style = dict(color=GREY, fontsize=9.5, xytext=shift, textcoords="offset points") | style
    axis.annotate(text, at, bbox=dict(facecolor="white", alpha=0.85, lw=0, pad=0.5), **style)


def curve(
    axis: Axes,
    name: str,
    x: Sequence[float],
    y: Sequence[float],
    band: Band | None = None,
    **style: Any,
) -> None:
    """A line in the colour and marker of the solver, or of ``style``; band: (low, high)."""
    style = dict(ms=5, lw=1.6, label=name) | (style if "color" in style else look(name) | style)
    axis.plot(x, y, **style)
    if band is not None:
        axis.fill_between(x, *band, color=style["color"], alpha=0.13, lw=0)


def bars(
    axis: Axes,
    names: Sequence[str],
    values: Sequence[float],
    texts: Sequence[str],
    colors: Any,
    shift: float = 0.0,
    ends: Sequence[float] | None = None,
    **style: Any,
) -> None:
    """Horizontal bars, the first at the bottom, each with its text beside it, or beyond ``ends``."""
    places = [i + shift for i in range(len(names))]
    axis.barh(places, values, color=colors, **style)
    for place, end, text in zip(places, ends or values, texts):
        axis.text(end, place, f" {text}", va="center", fontsize=9.5, color=INK)
    axis.set_yticks(range(len(names)), names)
    axis.grid(False, axis="y")


def legend_below(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """One legend for all panels, under them."""
    found = {t: h for axis in axes for h, t in zip(*axis.get_legend_handles_labels())}
    figure.legend(
        *(found.values(), found.keys()),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=10.5,
        handlelength=2.6,
        columnspacing=1.6,
    )
