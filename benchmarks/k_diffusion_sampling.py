"""k-diffusion's sampling module, as the benchmarks load it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types


@functools.cache
def load_k_diffusion_sampling() -> types.ModuleType:
    """Its sampling module alone: the package's own __init__ imports a training stack.

    Imported under stand-ins for the package, its utils and torchsde, which leave sys.modules again.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        raise ImportError("k_diffusion")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = list(spec.submodule_search_locations or [])
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    package.utils = utils
    stand_ins = {m.__name__: m for m in (package, utils, types.ModuleType("torchsde"))}
    before = {name: sys.modules.get(name) for name in (*stand_ins, "k_diffusion.sampling")}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
