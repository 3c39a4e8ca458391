"""Now :mod:`ddim_ode.denoising.seeding`."""

from __future__ import annotations

from ddim_ode.denoising.seeding import noise as noise
