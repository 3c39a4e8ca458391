"""Now :mod:`ddim_ode.solve.model_key`."""

from __future__ import annotations

from ddim_ode.solve.model_key import model_key as model_key
