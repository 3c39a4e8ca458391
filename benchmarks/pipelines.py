"""Unmodified diffusers pipelines of 21 classes, small and random: what runs in them, and how exactly.

    python benchmarks/pipelines.py --quick        # 100 calls a round, 5 rounds
    python benchmarks/pipelines.py --full         # 1000 calls a round, 9 rounds

Each number is the largest difference of two end states over the largest entry, in float32 and 5 steps,
from the pipeline's own run with its own Euler or DDIM scheduler: (a) of our scheduler with ``ddim`` in the
pipeline's own loop; (b) of ``from_pipeline`` and ``sample`` with ``ddim`` on ``model.grid()``; (c) of a
plan of 3 calls, fitted through ``from_pipeline``, in the unmodified pipeline by our scheduler from that
plan in ``sample``. Below, what a call through ``from_pipeline`` costs beside a step of its own loop.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
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
    call |= dict(num_inference_steps=STEPS)
    if "strength" in call:
        call |= dict(strength=1.0)  # a plan begins where it was fitted
    with from_pipeline(pipe, **call, generator=seeded()) as model:
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

    return dict(
        pipeline=name,
        scheduler=type(theirs).__name__,
        a=cell(looped),
        b=cell(asked),
        c=cell(lambda: fit(tiny, name)),
    )


def overhead(tiny: Any, name: str, calls: int, rounds: int) -> Row:
    """Milliseconds of a step in the pipeline's own loop, and of a call through from_pipeline."""
    from ddim_ode.interop.diffusers import from_pipeline

    pipe, call = tiny.TINY[name]()
    own, through = [], []
    for _ in range(rounds):  # interleaved
        start = time.perf_counter()
        tiny.run_pipeline(pipe, call, calls)
        own.append(time.perf_counter() - start)
        with from_pipeline(pipe, **call) as model:
            x = model.latents
            t, row = torch.full((len(x),), 500.0)[:1].expand(len(x)), torch.arange(len(x))
            start = time.perf_counter()
            for _ in range(calls):
                model.net(x, t, row)
            through.append(time.perf_counter() - start)
    step, ask = (1e3 * statistics.median(values) / calls for values in (own, through))
    return dict(
        pipeline=name,
        **{"own step ms": f"{step:.3f}", "call ms": f"{ask:.3f}", "more ms": f"{ask - step:.3f}"},
    )


def main() -> None:
    args = arguments(__doc__, "5 rounds of 100 calls", "9 rounds of 1000 calls").parse_args()
    torch.set_num_threads(1)
    run = Run("pipelines", args, ["diffusers"])
    if not installed("diffusers"):
        return
    calls, rounds = (1000, 9) if args.full else (100, 5)
    with quiet():
        tiny = classes()
        rows = [row_of(tiny, name) for name in tiny.TINY]
        costs = [
            overhead(tiny, name, calls, rounds)
            for name in ("DDPMPipeline", "FluxPipeline", "StableDiffusionPipeline")
        ]
    table = str(ddim_ode.solvers.methods.Table(rows))
    cost = str(ddim_ode.solvers.methods.Table(costs))
    print(f"{table}\n\n{cost}")
    run.save(rows, text=f"{table}\n\n{cost}", steps=STEPS, calls=CALLS, rounds=rounds)


if __name__ == "__main__":
    main()
