"""The numbers layer: charts, quadrature, tableaux, methods and the plans they compile to."""

from __future__ import annotations

from .._base.lazy import loader

__getattr__ = loader(__name__, __path__)
