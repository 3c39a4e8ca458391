"""Embedded Runge–Kutta pairs as adaptive solves step with them.

The last stage is the velocity at the step's end, so that the next step starts with it; a tableau
without such a stage (heun) is given one, which costs what evaluating it at the next start would.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from .methods import METHODS, Method
from .tableau import Tableau


class Scheme(NamedTuple):
    """A tableau whose last stage is the velocity at the end, and where it sees the growth rate.

    twins: two stages at the same time; None: compare stage 1 with the step's interpolant.
    """

    tableau: Tableau
    twins: tuple[int, int] | None

    @property
    def cost(self) -> int:
        return len(self.tableau.c) - 1

    @property
    def error_order(self) -> int:
        return self.tableau.order  # of the embedded error: h^{p̂+1}, with p̂ = p − 1


def scheme_of(tableau: Tableau) -> Scheme:
    """The tableau with a stage at its end, if it has none yet."""
    if tableau.c[-1] != 1 or (*tableau.a[-1], 0) != tableau.b:
        tableau = replace(
            tableau,
            c=(*tableau.c, 1),
            a=(*tableau.a, tableau.b),
            b=(*tableau.b, 0),
            b_error=(*tableau.b_error, 0),
            b_middle=tableau.b_middle and (*tableau.b_middle, 0),
        )
    last = len(tableau.c) - 1
    return Scheme(tableau, (last, last - 1) if tableau.c[last - 1] == 1 else None)


def adaptive_names() -> list[str]:
    """The registered methods that can choose their own steps: those with an error estimate."""
    return [name for name, method in METHODS.items() if can_adapt(method)]


def can_adapt(method: Method) -> bool:
    """Whether it can choose its own steps: an embedded pair, or a multistep method that corrects x̂₀'s, and
    no step noise."""
    corrects = method.multistep and method.corrector and method.chart == "data" and not method.rules
    return not method.adds_noise and (corrects or embedded_pair(method) is not None)


def embedded_pair(method: Method) -> Tableau | None:
    """The method's tableau if it estimates its own error, which is what an adaptive solve needs."""
    table = method.stages
    return table if isinstance(table, Tableau) and table.b_error else None


def adaptive_by_itself(method: Method) -> bool:
    """Whether its tableau has a stage for the error estimate alone (rk45, bosh3; not heun)."""
    pair = embedded_pair(method)
    return pair is not None and pair.stages < len(pair.c)
