"""Other libraries' models and pipelines. Nothing in the core imports this package.

:mod:`ddim_ode.interop.diffusers` reads their models and runs our plans inside their pipelines.
"""

from __future__ import annotations

from .._base.lazy import loader

__getattr__ = loader(__name__, __path__)
