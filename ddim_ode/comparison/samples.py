"""What the solvers of a comparison made of the same noises, as one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..plots.comparisons import ends_plot
from ..plots.pictures import solver_grid
from ..plots.style import INK, look
from .result import Comparison
from .rows import budgets_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from torch import Tensor

_PICTURES = 4  # of the same seeds, in every cell
_DOTS = 300  # end points in the plane


@dataclass(frozen=True)
class Samples:
    """What the solvers made: a picture of it, what it shows (alt), and how to read it; or only why not."""

    caption: str
    figure: Figure | None = None
    alt: str = ""


def shown_of(shape: Sequence[int]) -> int:
    """How many samples of that shape a picture shows."""
    return _PICTURES if len(shape) == 3 else _DOTS


def draw_samples(result: Comparison) -> Samples:
    """The same noises in every cell, solvers by budgets: pictures, or dots for 2-D; else why nothing."""
    exact = result.reference
    shape = () if exact is None else tuple(exact.x.shape[1:])
    pictures, most = len(shape) == 3 and shape[0] in (1, 3), shown_of(shape)
    if exact is None or not (pictures or shape == (2,)):
        return Samples(
            f"Samples have shape {shape}: only pictures and points of a plane are drawn here."
        )
    budgets = budgets_of(result.rows)
    group = result.rows[0].group
    lines: dict[str, list[Tensor | None]] = {}
    for row, x in zip(result.rows, result.samples):
        if row.group in (group, "plan"):
            cells = lines.setdefault(row.method, [None] * len(budgets))
            cells[budgets.index(row.budget)] = x if x is None else x[:most]
    columns = [f"{budget} calls" for budget in budgets]
    goal = exact.x[:most].float()
    other = result.distribution is not None  # the model's own samples are those of other noises
    on = "" if group == "default" else f" Grid: {group}."
    if pictures:
        top: list[Tensor | None] = [goal] * len(budgets)
        strips = [("other noises" if other else "converged", INK, top)]
        strips += [(name, look(name)["color"], cells) for name, cells in lines.items()]
        first, last = result.seeds[0], result.seeds[len(goal) - 1]
        seeds = f"{first} to {last}" if last > first else f"{first}"
        return Samples(
            f"Seeds {seeds} in every cell; the top row is where the ODE takes "
            + (
                "other noises."
                if other
                else "them, which is what a solver without error would draw."
            )
            + on,
            solver_grid(strips, columns),
            f"Samples of {len(lines)} solvers at {len(budgets)} budgets, below the converged solutions.",
        )
    return Samples(
        f"Ends of {len(goal)} noises; grey: where the ODE takes "
        + ("others." if other else "them, joined to where the solver did.")
        + on,
        ends_plot(list(lines.items()), columns, goal, joined=not other),
        f"End points of {len(lines)} solvers at {len(budgets)} budgets beside the converged solutions.",
    )
