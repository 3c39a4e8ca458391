"""Now :mod:`ddim_ode.denoising.denoiser`."""

from __future__ import annotations

from ddim_ode.denoising.denoiser import Denoiser as Denoiser
