"""Now :mod:`ddim_ode.solve.solution`."""

from __future__ import annotations

from ddim_ode.solve.solution import Solution as Solution
