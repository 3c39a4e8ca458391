"""Now :mod:`ddim_ode.denoising.guidance`."""

from __future__ import annotations

from ddim_ode.denoising.guidance import Guidance as Guidance
from ddim_ode.denoising.guidance import Limit as Limit
