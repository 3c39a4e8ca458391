"""Pipelines of 22 classes: (a) our scheduler in them, (b) from_pipeline, (c) a fitted plan, in both.

They are unmodified diffusers pipelines, small and random.

    python benchmarks/pipelines.py --quick        # 200 timed calls
    python benchmarks/pipelines.py --full         # 1000 timed calls

Each number is the largest difference of two end states over the largest entry, in float32 and 5 steps,
from the pipeline's own run with its own Euler or DDIM scheduler: (a) of our scheduler with ``ddim`` in the
pipeline's own loop; (b) of ``from_pipeline`` and ``sample`` with ``ddim`` on ``model.grid()``; (c) of a
plan of 3 calls, fitted through ``from_pipeline``, in the unmodified pipeline by our scheduler from that
plan in ``sample``. Below, what a call through ``from_pipeline`` costs beside a step of its own loop.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import Row, Run, arguments, installed, quiet

import ddim_ode

STEPS, CALLS = 5, 3


def classes() -> Any:
    """The tests' module of tiny pipelines. It imports another module of the name ``peers`` than is here."""
    helpers = str(Path(__file__).parent.parent / "tests" / "helpers")
    sys.path.insert(0, helpers)
    try:
        import tiny_pipelines
    finally:
        sys.path.remove(helpers)
    return tiny_pipelines


def off(x: torch.Tensor, goal: torch.Tensor) -> float:
    return float((x - goal).abs().max() / goal.abs().max())


def ours_of(pipe: Any) -> Any:
    """Our scheduler class for a pipeline."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from ddim_ode.interop.diffusers import DDIMODEFlowScheduler, DDIMODEScheduler

    flow = isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    return DDIMODEFlowScheduler if flow else DDIMODEScheduler


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def fit(tiny: Any, name: str) -> float:
    """How far apart a fitted plan's ends are, in the pipeline's own loop and outside of it."""
    from ddim_ode.interop.diffusers import from_pipeline

    pipe, call = tiny.TINY[name]()
    if "strength" in call:
        call |= dict(strength=1.0)  # a plan begins where it was fitted
    with from_pipeline(pipe, **call, num_inference_steps=STEPS, generator=seeded()) as model:
        start = ddim_ode.plan_for(model, "unipc2", nfe=CALLS)
        plan = ddim_ode.calibrate(model, nfe=CALLS, n=4, start=start, progress=False)
        end = ddim_ode.sample(model, model.latents, plan=plan).x
    pipe.scheduler = ours_of(pipe).from_plans(plan, pipe.scheduler.config)
    return off(tiny.run_pipeline(pipe, call, CALLS).end[: len(end)], end)


def row_of(tiny: Any, name: str) -> Row:
    """A line of the table."""
    from ddim_ode.interop.diffusers import from_pipeline

    def cell(measure: Any) -> str:
        try:
            return f"{measure():.1e}"
        except (ValueError, TypeError) as error:
            return str(error).split("; ")[0]

    pipe, call = tiny.TINY[name]()
    own = tiny.run_pipeline(pipe, call, STEPS).end
    theirs = pipe.scheduler

    def looped() -> float:
        pipe.scheduler = ours_of(pipe).from_config(theirs.config, method="ddim")
        try:
            return off(tiny.run_pipeline(pipe, call, STEPS).end, own)
        finally:
            pipe.scheduler = theirs

    def asked() -> float:
        more = dict(num_inference_steps=STEPS, generator=seeded())
        with from_pipeline(pipe, **call, **more) as model:
            end = ddim_ode.sample(model, model.latents, "ddim", grid=model.grid()).x
        return off(end, own[: len(end)])

    return {
        "class": name,
        "a": cell(looped),
        "b": cell(asked),
        "c": cell(lambda: fit(tiny, name)),
    }


def overhead(tiny: Any, calls: int) -> Row:
    """Milliseconds (median) of a step in a pipeline's own loop, and of a call, with a network of zeros."""
    from ddim_ode.interop.diffusers import from_pipeline

    pipe, call = tiny.TINY["DDPMPipeline"]()
    pipe.unet.forward = lambda x, t, **_: SimpleNamespace(sample=torch.zeros_like(x))
    ends, step, asked = [], pipe.scheduler.step, []

    def timed(*args: Any, **options: Any) -> Any:
        out = step(*args, **options)
        ends.append(time.perf_counter())
        return out

    pipe.scheduler.step = timed
    pipe(**call, num_inference_steps=calls)
    del pipe.scheduler.step
    with from_pipeline(pipe, **call) as model:
        x = model.latents
        t, row = torch.tensor([500.0]).expand(len(x)), torch.arange(len(x))
        for _ in range(calls):
            start = time.perf_counter()
            model.net(x, t, row)
            asked.append(time.perf_counter() - start)
    own = statistics.median(b - a for a, b in itertools.pairwise(ends))
    return {"own step ms": f"{1e3 * own:.3f}", "call ms": f"{1e3 * statistics.median(asked):.3f}"}


def main() -> None:
    args = arguments(__doc__, "200 timed calls", "1000 timed calls").parse_args()
    torch.set_num_threads(1)
    run = Run("pipelines", args, ["diffusers"])
    if not installed("diffusers"):
        return
    calls = 1000 if args.full else 200
    with quiet():
        tiny = classes()
        rows = [row_of(tiny, name) for name in tiny.TINY]
        costs = [overhead(tiny, calls)]
    table = str(ddim_ode.solvers.methods.Table(rows))
    cost = str(ddim_ode.solvers.methods.Table(costs))
    print(f"{table}\n\n{cost}")
    run.save(rows, text=f"{table}\n\n{cost}", steps=STEPS, plan=CALLS, calls=calls)


if __name__ == "__main__":
    main()
