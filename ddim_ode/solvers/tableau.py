"""Stages within one step: Butcher tableaux, and singlestep methods on the quadrature primitive.

A tableau is one step of y' = g(u, y) of length h:  Y_i = y + h Σ_j a_ij g(u + c_i h, Y_j),
y⁺ = y + h Σ_i b_i g_i. ``order_residuals`` evaluates the rooted-tree conditions (Hairer, Nørsett,
Wanner I, II.2). A :class:`Singlestep` places its stages in a ruler and has the exact integrals of
Lagrange polynomials for weights (quadrature.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..schedules.schedule import Array


@dataclass(frozen=True)
class Tableau:
    """An explicit Butcher tableau.

    Args:
        order: Of the step.
        c: The stages' places in the step.
        a: The rows below the diagonal.
        b: The weights of the step.
        b_error: b − b̂, for the error estimate.
        b_middle: Weights of the state at half the step, for dense output.

    Raises:
        ValueError: The rows do not sum to c, b not to 1 or b_error not to 0.
    """

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    b_error: tuple[float, ...] = ()
    b_middle: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if [len(row) for row in self.a] != list(range(len(self.c))) or len(self.b) != len(self.c):
            raise ValueError("tableau: row i of a needs i entries, and b one per stage")
        for i, row in enumerate(self.a):
            if abs(sum(row) - self.c[i]) > 1e-14:
                raise ValueError(f"tableau: row {i} of a sums to {sum(row)}, not c={self.c[i]}")
        if abs(sum(self.b) - 1) > 1e-14 or abs(sum(self.b_error)) > 1e-14:
            raise ValueError("tableau: b must sum to 1 and b_error to 0")
        for name, row in (("b_error", self.b_error), ("b_middle", self.b_middle)):
            if row and len(row) != len(self.c):
                raise ValueError(f"tableau: {name} has {len(row)} entries for {len(self.c)} stages")
        if self.b_middle and abs(sum(self.b_middle) - 1 / 2) > 1e-14:
            raise ValueError("tableau: b_middle must sum to 1/2")

    @property
    def stages(self) -> int:
        """Velocities that b uses (a trailing stage of the error estimate alone is not one)."""
        return max(i for i, weight in enumerate(self.b) if weight != 0) + 1

    def matrix(self) -> Array:
        """a as a square lower-triangular matrix."""
        full = np.zeros((len(self.c), len(self.c)))
        for i, row in enumerate(self.a):
            full[i, : len(row)] = row
        return full


def order_residuals(tableau: Tableau, order: int, weights: tuple[float, ...] = ()) -> Array:
    """Residuals of all rooted-tree conditions up to ``order`` (at most 5); zero if satisfied."""
    a, c = tableau.matrix(), np.array(tableau.c)
    b = np.array(weights or tableau.b)
    ac = a @ c
    conditions = [
        (1, b.sum() - 1),
        (2, b @ c - 1 / 2),
        (3, b @ c**2 - 1 / 3),
        (3, b @ ac - 1 / 6),
        (4, b @ c**3 - 1 / 4),
        (4, b @ (c * ac) - 1 / 8),
        (4, b @ (a @ c**2) - 1 / 12),
        (4, b @ (a @ ac) - 1 / 24),
        (5, b @ c**4 - 1 / 5),
        (5, b @ (c**2 * ac) - 1 / 10),
        (5, b @ (c * (a @ c**2)) - 1 / 15),
        (5, b @ (c * (a @ ac)) - 1 / 30),
        (5, b @ ac**2 - 1 / 20),
        (5, b @ (a @ c**3) - 1 / 20),
        (5, b @ (a @ (c * ac)) - 1 / 40),
        (5, b @ (a @ (a @ c**2)) - 1 / 60),
        (5, b @ (a @ (a @ ac)) - 1 / 120),
    ]
    return np.array([residual for p, residual in conditions if p <= order])


@dataclass(frozen=True)
class Singlestep:
    """Stages of one step on the quadrature primitive: exponential Runge–Kutta where clock and ruler differ.

    Args:
        at: The stages' places, fractions of the step in the ruler; the first is 0, its start.
        reads: For each stage, and last for the step itself, the earlier stages whose velocities it
            interpolates; the Lagrange polynomial is integrated exactly in the clock.
    """

    at: tuple[float, ...]
    reads: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if self.at[:1] != (0,) or len(self.reads) != len(self.at) + 1 or self.reads[0]:
            raise ValueError(
                f"singlestep: at={self.at} must start with 0, and reads={self.reads} needs an empty entry "
                "for it, one for every other stage, and one for the step"
            )
        for i, row in enumerate(self.reads[1:], start=1):
            if not row or not all(0 <= j < i for j in row) or len(set(row)) < len(row):
                raise ValueError(
                    f"singlestep: reads[{i}]={row} must name earlier stages, each once"
                )

    @property
    def stages(self) -> int:
        return len(self.at)


HALF = Singlestep((0, 1 / 2), ((), (0,), (1,)))
THIRDS = Singlestep((0, 1 / 3, 2 / 3), ((), (0,), (0, 1), (0, 2)))

HEUN = Tableau(2, (0, 1), ((), (1,)), (1 / 2, 1 / 2), (-1 / 2, 1 / 2))
MIDPOINT = Tableau(2, (0, 1 / 2), ((), (1 / 2,)), (0, 1))
RK4 = Tableau(
    4,
    (0, 1 / 2, 1 / 2, 1),
    ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
)
# Bogacki & Shampine 1989; the fourth stage serves the error estimate (and is the next step's first).
BOSH3 = Tableau(
    3,
    (0, 1 / 2, 3 / 4, 1),
    ((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (2 / 9, 1 / 3, 4 / 9, 0),
    (-5 / 72, 1 / 12, 1 / 9, -1 / 8),
)
# Dormand & Prince 1980; the seventh stage serves the error estimate (and is the next step's first).
DOPRI5 = Tableau(
    5,
    (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
    (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    # Shampine 1986, Math. Comp. 46: of fourth order at the mid-point, local error O(h⁵).
    (
        6025192743 / 60171106304,
        0,
        51252292925 / 130801643196,
        -2691868925 / 90256659456,
        187940372067 / 3189068634112,
        -1776094331 / 39487288512,
        11237099 / 470086768,
    ),
)
