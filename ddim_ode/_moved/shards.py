"""Now :mod:`ddim_ode.generation.shards`."""

from __future__ import annotations

from ddim_ode.generation.shards import MANIFEST as MANIFEST
from ddim_ode.generation.shards import Lost as Lost
from ddim_ode.generation.shards import Run as Run
from ddim_ode.generation.shards import Shards as Shards
