"""ddim_ode: sampling from a diffusion model is solving an ODE, and is checked like one.

    d(x/ᾱ) = ε_θ(x, t) d(β̄/ᾱ)

The names below load what they need on first use; ``import ddim_ode`` itself imports nothing heavy, and
``schedules``, ``grids``, ``plan`` and ``methods`` never import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_MODULES = ("schedules", "grids", "exact")
_PACKAGES = ("evaluate", "interop", "solvers")
_NAMES = {
    "Comparison": "results",
    "Denoiser": "denoiser",
    "Guidance": "guidance",
    "Known": "editing",
    "LogLikelihood": "likelihood",
    "Method": "solvers.methods",
    "Plan": "solvers.plan",
    "ProbabilityFlow": "probability_flow",
    "Progress": "integration",
    "Solution": "solution",
    "accelerate": "acceleration",
    "calibrate": "calibration",
    "compare": "comparison",
    "decode": "inversion",
    "dequantized": "likelihood",
    "diagnose": "diagnosis",
    "encode": "inversion",
    "eps_loss": "training",
    "generate": "generation",
    "load": "nets.pretrained",
    "log_likelihood": "likelihood",
    "methods": "solvers.methods",
    "noise": "seeding",
    "plan": "solvers.compilation",
    "renoise": "editing",
    "sample": "sampling",
    "slerp": "interpolation",
    "transfer": "editing",
}
__all__ = ["__version__", *_MODULES, *_NAMES]

if TYPE_CHECKING:
    from . import evaluate as evaluate
    from . import exact as exact
    from . import grids as grids
    from . import interop as interop
    from . import schedules as schedules
    from . import solvers as solvers
    from .acceleration import accelerate as accelerate
    from .calibration import calibrate as calibrate
    from .comparison import compare as compare
    from .denoiser import Denoiser as Denoiser
    from .diagnosis import diagnose as diagnose
    from .editing import Known as Known
    from .editing import renoise as renoise
    from .editing import transfer as transfer
    from .generation import generate as generate
    from .guidance import Guidance as Guidance
    from .integration import Progress as Progress
    from .interpolation import slerp as slerp
    from .inversion import decode as decode
    from .inversion import encode as encode
    from .likelihood import LogLikelihood as LogLikelihood
    from .likelihood import dequantized as dequantized
    from .likelihood import log_likelihood as log_likelihood
    from .nets.pretrained import load as load
    from .probability_flow import ProbabilityFlow as ProbabilityFlow
    from .results import Comparison as Comparison
    from .sampling import sample as sample
    from .seeding import noise as noise
    from .solution import Solution as Solution
    from .solvers.compilation import plan as plan
    from .solvers.methods import Method as Method
    from .solvers.methods import methods as methods
    from .solvers.plan import Plan as Plan
    from .training import eps_loss as eps_loss


def __getattr__(name: str) -> Any:
    if name in (*_MODULES, *_PACKAGES):
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module 'ddim_ode' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
