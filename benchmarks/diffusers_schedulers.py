"""diffusers' schedulers as the benchmarks run them, with the settings beside the default ones."""

from __future__ import annotations

from typing import Any

KARRAS = dict(use_karras_sigmas=True)
Choice = tuple[str, dict[str, Any]]
SCHEDULERS: tuple[Choice, ...] = (
    ("DDIM", dict(clip_sample=False)),
    ("EulerDiscrete", {}),
    ("EulerDiscrete", KARRAS),
    ("HeunDiscrete", {}),
    ("KDPM2Discrete", {}),
    ("LMSDiscrete", {}),
    ("LMSDiscrete", KARRAS),
    ("PNDM", {}),
    ("PNDM", dict(skip_prk_steps=True)),
    ("DEISMultistep", {}),
    ("DPMSolverSinglestep", {}),
    ("DPMSolverMultistep", {}),
    ("DPMSolverMultistep", dict(solver_order=3)),
    ("DPMSolverMultistep", KARRAS),
    ("UniPCMultistep", {}),
    ("UniPCMultistep", dict(solver_order=3)),
    ("UniPCMultistep", KARRAS),
)


def make(name: str, **settings: Any) -> Any:
    import diffusers

    return getattr(diffusers, f"{name}Scheduler")(**settings)


def takes_at_most(nfe: int, scheduler: Any, steps: int) -> bool:
    """Set that many steps; whether they are at most nfe calls. Some call more than once a step."""
    scheduler.set_timesteps(steps)
    return len(scheduler.timesteps) <= nfe
