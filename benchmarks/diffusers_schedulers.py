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


def most_steps(nfe: int, name: str, **settings: Any) -> tuple[Any, int]:
    """The scheduler, ready for the most steps that take at most nfe calls (some call more than once a
    step), and that number of steps. ValueError if there is none."""
    for steps in range(nfe, 0, -1):
        scheduler = make(name, **settings)
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) <= nfe:
            return scheduler, steps
    raise ValueError("it takes more calls at any number of steps")
