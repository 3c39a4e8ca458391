"""``ddim-ode generate``: many samples into a folder; stopped at any moment, it goes on from there."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._base.checks import one_of
from .common import (
    PLACED,
    add_guidance,
    add_limit_arguments,
    add_noise,
    condition,
    counted,
    find_device,
    limits,
    parse_classes,
    print_table,
)
from .models import HELP, load_model
from .parser import Parser
from .profiling import HELP_GRID, grid_of

if TYPE_CHECKING:
    import torch

    from ..generation.generation import Generated

_DTYPES = ("float32", "bfloat16", "float16")
_NFE = 20
_SOLVER = (*PLACED, "noise", "rtol", "atol")


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--model", default="fashion-mnist", help=HELP)
    # -n for torchrun, which takes a --n among the program's options for one of its own.
    add("-n", "--n", type=int, required=True, help="samples, those of seeds SEED to SEED+n-1")
    add("--out", type=Path, required=True, help="folder of the run, new or to be finished")
    add("--method", help="a name from ddim-ode methods (ddim)")
    add("--plan", metavar="FILE", help="a plan of ddim-ode calibrate, instead")
    add("--nfe", type=int, help=f"most network calls ({_NFE} without --steps)")
    add("--steps", type=int, help="intervals of the grid")
    add("--grid", help=HELP_GRID)
    add("--final", help="zero (land on x̂₀) or sigma_min")
    add("--sigma-max", type=float, help="first noise level")
    add("--sigma-min", type=float, help="last positive noise level")
    add_noise(parser)
    add("--rtol", type=float, help="solve adaptively, with this tolerance")
    add("--atol", type=float, help="of the same")
    add("--seed", type=int, default=0, help="of sample 0")
    add("--classes", default="all", help="names or numbers, repeated over the seeds: 'sneaker,bag'")
    add_guidance(parser)
    add_limit_arguments(parser)
    add("--batch", default="auto", help="samples solved together, or auto: as memory allows")
    add("--shard", type=int, help="samples a file (64, or the batch if less)")
    add("--device", default="cpu", help="cpu, cuda (under torchrun: one each), cuda:1 ...")
    add("--compile", action="store_true", help="torch.compile the network")
    add("--channels-last", action="store_true", help="its convolutions' memory layout")
    add("--dtype", default="float32", help="of the network: float32, bfloat16 or float16")
    add("--cuda-graph", action="store_true", help="a fixed plan as one CUDA graph")
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> int:
    import torch

    from ..generation.generation import generate
    from ..solvers.plan import Plan

    one_of("dtype", args.dtype, _DTYPES)
    device = _device(args.device)
    loaded = load_model(args.model, args.guidance, device, limits(args))
    model: Any = loaded.denoiser
    labels = parse_classes(args.classes, model, range(args.seed, args.seed + args.n))
    try:
        solver = _solver(args)
        if args.grid is not None:
            solver["grid"] = grid_of(args.grid, model, loaded.shape, args)
        run = generate(
            model,
            args.n,
            args.out,
            args.method,
            plan=None if args.plan is None else Plan.load(args.plan),
            shape=loaded.shape,
            seed=args.seed,
            cond=condition(labels),
            batch=int(args.batch) if args.batch.isdecimal() else args.batch,
            shard=args.shard,
            device=device,
            compile=args.compile,
            channels_last=args.channels_last,
            dtype=None if args.dtype == "float32" else getattr(torch, args.dtype),
            cuda_graph=args.cuda_graph,
            progress=not args.quiet,
            about=dict(
                model=args.model,
                sha256=getattr(model, "sha256", None),
                guidance=None if model.guidance is None else model.guidance.scale,
                classes=getattr(model, "classes", None),
            ),
            **solver,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped: what is finished is kept in {args.out}, and the same command makes the rest"
        ) from None
    if os.environ.get("RANK", "0") == "0":
        _report(run)
    return 0


def _device(name: str) -> torch.device:
    """``cuda`` is a device for each process that torchrun starts on a machine."""
    local = os.environ.get("LOCAL_RANK")
    return find_device(f"cuda:{local}" if name == "cuda" and local is not None else name)


def _solver(args: argparse.Namespace) -> dict[str, Any]:
    """What was given, and a number of calls where the method needs one."""
    options = {name: getattr(args, name) for name in _SOLVER if getattr(args, name) is not None}
    if args.plan is not None or options.keys() & {"nfe", "steps", "rtol", "atol"}:
        return options
    from ..solve.request import chooses_steps

    own = chooses_steps(args.method or "ddim", placed=args.grid is not None)
    return options if own else dict(options, nfe=_NFE)


def _report(run: Generated) -> None:
    solver = run.shards.run.decides["solver"]
    row = dict(
        samples=run.shards.run.n,
        method=solver.get("method", "ddim"),
        nfe=solver.get("nfe", "own"),
        made_here=run.made,
        shards=len(run.shards),
        shards_remade=run.remade,
        seconds=f"{run.seconds:.1f}",
        status=counted(run.status),
    )
    if run.missing:
        row["missing"] = run.missing
    print_table([row])
    print(f"\n{run.shards.folder}   (ddim-ode evaluate {run.shards.folder})")
