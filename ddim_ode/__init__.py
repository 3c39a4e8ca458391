"""ddim_ode: sampling from a diffusion model is solving an ODE, and is checked like one.

    d(x/ᾱ) = ε_θ(x, t) d(β̄/ᾱ)

The names below load what they need on first use; ``import ddim_ode`` itself imports nothing heavy, and
``schedules``, ``grids``, ``plan`` and ``methods`` never import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._base.version import __version__ as __version__

# where modules of 0.1 are found under their old names
__path__ = [*__path__, f"{__path__[0]}/_moved"]

_MODULES = ("schedules", "grids", "exact")
_PACKAGES = ("evaluate", "interop", "plots", "solvers")
_NAMES = {
    "Comparison": "comparison.result",
    "Denoiser": "denoising.denoiser",
    "Guidance": "denoising.guidance",
    "Interrupted": "_base.interrupted",
    "Known": "solve.inpainting",
    "LogLikelihood": "latents.likelihood",
    "Method": "solvers.methods",
    "Plan": "solvers.plan",
    "Profile": "solvers.profile",
    "ProbabilityFlow": "solve.probability_flow",
    "Progress": "solve.loop",
    "Solution": "solve.solution",
    "accelerate": "denoising.acceleration",
    "calibrate": "calibration.calibration",
    "compare": "comparison.comparison",
    "decode": "latents.inversion",
    "dequantized": "latents.likelihood",
    "diagnose": "diagnosis",
    "encode": "latents.inversion",
    "eps_loss": "denoising.training",
    "generate": "generation.generation",
    "load": "nets.pretrained",
    "log_likelihood": "latents.likelihood",
    "methods": "solvers.methods",
    "noise": "denoising.seeding",
    "plan": "solvers.compilation",
    "plan_for": "solve.planning",
    "profile": "profiling.profiling",
    "renoise": "latents.editing",
    "sample": "solve.sampling",
    "slerp": "latents.interpolation",
    "transfer": "latents.editing",
}
__all__ = ["__version__", *_MODULES, *_NAMES]

if TYPE_CHECKING:
    from . import evaluate as evaluate
    from . import exact as exact
    from . import grids as grids
    from . import interop as interop
    from . import plots as plots
    from . import schedules as schedules
    from . import solvers as solvers
    from ._base.interrupted import Interrupted as Interrupted
    from .calibration.calibration import calibrate as calibrate
    from .comparison.comparison import compare as compare
    from .comparison.result import Comparison as Comparison
    from .denoising.acceleration import accelerate as accelerate
    from .denoising.denoiser import Denoiser as Denoiser
    from .denoising.guidance import Guidance as Guidance
    from .denoising.seeding import noise as noise
    from .denoising.training import eps_loss as eps_loss
    from .diagnosis import diagnose as diagnose
    from .generation.generation import generate as generate
    from .latents.editing import renoise as renoise
    from .latents.editing import transfer as transfer
    from .latents.interpolation import slerp as slerp
    from .latents.inversion import decode as decode
    from .latents.inversion import encode as encode
    from .latents.likelihood import LogLikelihood as LogLikelihood
    from .latents.likelihood import dequantized as dequantized
    from .latents.likelihood import log_likelihood as log_likelihood
    from .nets.pretrained import load as load
    from .profiling.profiling import profile as profile
    from .solve.inpainting import Known as Known
    from .solve.loop import Progress as Progress
    from .solve.planning import plan_for as plan_for
    from .solve.probability_flow import ProbabilityFlow as ProbabilityFlow
    from .solve.sampling import sample as sample
    from .solve.solution import Solution as Solution
    from .solvers.compilation import plan as plan
    from .solvers.methods import Method as Method
    from .solvers.methods import methods as methods
    from .solvers.plan import Plan as Plan
    from .solvers.profile import Profile as Profile


def __getattr__(name: str) -> Any:
    if name in (*_MODULES, *_PACKAGES):
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module 'ddim_ode' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
