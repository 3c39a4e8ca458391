"""Now :mod:`ddim_ode.solve.sampling`."""

from __future__ import annotations

from ddim_ode.solve.sampling import sample as sample
