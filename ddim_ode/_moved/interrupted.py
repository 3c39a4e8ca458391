"""Now :mod:`ddim_ode._base.interrupted`."""

from __future__ import annotations

from ddim_ode._base.interrupted import Interrupted as Interrupted
