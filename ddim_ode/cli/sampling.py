"""``ddim-ode sample``: the same seeds with each solver; a picture, a table, a manifest."""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._base import files
from .._base.checks import count, refuse
from .._base.version import __version__
from .._base.versions import versions
from .common import (
    PLACED,
    add_noise,
    add_ode_arguments,
    condition,
    counted,
    find_device,
    limits,
    parse_classes,
    parse_seeds,
    print_table,
    set_ode,
)
from .models import HELP_TRAINED, load_trained
from .parser import STEPS, Parser
from .plans import load_plans
from .profiling import HELP_GRID, grid_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..solve.solution import Solution
    from ..solvers.plan import Plan
    from .models import Trained

_TOLERANCE, _NFE = 1e-3, 20
_METHODS = ("ddim", "heun", "dpmpp3m", "rk45")
# Filled in after the parsing, which leaves None where an option is not given.
_DEFAULTS = dict(model="fashion-mnist", seeds="0-9", classes="all", batch=64, guidance_rescale=0.0)
_ODE = ("guidance_interval", "guidance_rescale", "clip", "threshold")
# What a manifest keeps of the command line, to run it again.
_OPTIONS = (
    *("model", "methods", *PLACED, "noise"),
    *("rtol", "atol", "seeds", "classes", "guidance", "batch", "plan"),
    *_ODE,
)


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--model", help=f"{HELP_TRAINED} ({_DEFAULTS['model']})")
    add(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help=f"names from ddim-ode methods ({' '.join(_METHODS)}; none beside --plan)",
    )
    add(
        "--plan",
        nargs="+",
        metavar="FILE",
        help="plans, of ddim-ode calibrate or Plan.save; what follows on steps and levels is for --methods",
    )
    where = parser.titled[STEPS].add_mutually_exclusive_group()
    where.add_argument(
        "--nfe",
        type=int,
        help=f"most network calls of a sample ({_NFE} of a fixed plan without --steps)",
    )
    where.add_argument("--steps", type=int, help="intervals of the grid, also of rk45 and bosh3")
    add(
        "--grid",
        help=f"{HELP_GRID} (default: by the number of steps); makes rk45 and bosh3 fixed plans",
    )
    add("--final", help="zero (land on x̂₀) or sigma_min")
    add("--sigma-min", type=float, help="last positive noise level")
    add_noise(parser)
    add(
        "--rtol",
        type=float,
        help="of the adaptive solvers: rk45, bosh3, other packages', and heun, without --steps and --nfe "
        f"({_TOLERANCE:g})",
    )
    add("--atol", type=float, help="of the same")
    add("--seeds", help=f"one picture each: 0-9 or 3,5,8 ({_DEFAULTS['seeds']})")
    add("--classes", help="names or numbers, repeated over the seeds: 'sneaker,bag' (all)")
    add("--batch", type=int, help=f"samples solved together ({_DEFAULTS['batch']})")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    add("--out", type=Path, default=Path("out"), help="directory for the results")
    add("--npz", action="store_true", help="also write the arrays, one .npz a method")
    add("--png", action="store_true", help="also write one PNG a sample")
    add("--manifest", type=Path, help="run again what this manifest.json says")
    add_ode_arguments(parser)
    parser.set_defaults(
        run=_sample, parser=parser, sha256=None, plan_sha256=None, guidance_rescale=None
    )


def _sample(args: argparse.Namespace) -> int:
    if args.manifest is not None:
        _apply_manifest(args)
    vars(args).update({k: v for k, v in _DEFAULTS.items() if getattr(args, k) is None})
    if args.methods is None:
        args.methods = [] if args.plan else list(_METHODS)
    args.methods = [name for given in args.methods for name in given.split(",") if name]
    plans = load_plans(args)
    if not args.methods:
        if not plans:
            raise ValueError("--methods is empty: give names from ddim-ode methods")
        given = {f"--{name.replace('_', '-')}": getattr(args, name) for name in PLACED}
        refuse("a plan has its own steps, and no --methods are given to apply it to", **given)
    for name in ("batch", "nfe", "steps"):
        if getattr(args, name) is not None:
            count(f"--{name}", getattr(args, name))
    _check_methods(args)
    model = _load_model(args)
    solvers: dict[str, str | Plan] = {**{name: name for name in args.methods}, **plans}
    grid = grid_of(args.grid, model, model.shape, args)
    args.profile = None if isinstance(grid, str) else grid
    _check_requests(model, solvers, args)
    seeds = parse_seeds(args.seeds)
    labels = parse_classes(args.classes, model, range(len(seeds)))
    args.out.mkdir(parents=True, exist_ok=True)

    runs: list[dict[str, Any]] = []
    strips: list[tuple[str, Tensor]] = []
    try:
        for label, solver in solvers.items():
            x, run = _run_solver(model, label, solver, seeds, labels, args)
            runs.append(run)
            strips.append((f"{label}\nnfe {run['nfe']} · {run['seconds']:.1f} s", x))
            _write_arrays(args, label, x, seeds, labels)
    finally:  # an error or Ctrl-C keeps what is finished
        if runs:
            _report(args, model, runs, strips, labels)
            if len(runs) < len(solvers):
                kept = f"{len(runs)} of {len(solvers)} methods are kept in {args.out}"
                print(kept, file=sys.stderr)
    if not args.quiet:
        print(_next(args.model))
    return 0


def _next(model: str) -> str:
    """What to do with one's own model, of the user's name or else of any."""
    from ..nets.pretrained import MODELS

    own = "MODEL" if model in MODELS else shlex.quote(model)
    whose = " (a model.safetensors, or a folder of diffusers)" if model in MODELS else ""
    return (
        f"\nnext: ddim-ode doctor {own}            what will go wrong, and the fix{whose}\n"
        f"      ddim-ode profile {own}           where to step\n"
        f"      ddim-ode compare --model {own}   which solver, how many steps"
    )


def _apply_manifest(args: argparse.Namespace) -> None:
    """Take the options of a manifest; ValueError if others are given beside it."""
    beside = [name for name in _OPTIONS if getattr(args, name) is not None]
    if beside:
        raise ValueError(f"--manifest already says --{beside[0].replace('_', '-')}; drop it")
    if not args.manifest.is_file():
        raise FileNotFoundError(
            f"--manifest {args.manifest}: no such file; ddim-ode sample writes one"
        )
    try:
        manifest = json.loads(args.manifest.read_text(encoding="utf-8"))
        # The first manifests had no plans and no noise, and nothing that changed the ODE but guidance.
        later = {"plan": None, "noise": None, **{name: _DEFAULTS.get(name) for name in _ODE}}
        written = {**later, **manifest["options"]}
        for name in ("clip", "threshold"):  # numbers or nothing once, whatever was configured
            written[name] = "none" if written[name] is None else str(written[name])
        options = {name: _of_kind(args.parser, name, written[name]) for name in _OPTIONS}
        args.sha256 = manifest["model"]["sha256"]
        if options["plan"]:
            args.plan_sha256 = [row["sha256"] for row in manifest["plans"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{args.manifest}: not a manifest of ddim-ode sample ({error!r})"
        ) from error
    vars(args).update(options)


def _of_kind(parser: argparse.ArgumentParser, name: str, value: Any) -> Any:
    """The value, if the command line could have given it to that option; else a ValueError."""
    (action,) = (a for a in parser._actions if a.dest == name)
    kind: Any = int if action.type is int else (int, float) if action.type is float else str
    several = action.nargs is not None
    items = value if several and isinstance(value, list) else [value]
    good = isinstance(value, list) == several and all(
        isinstance(item, kind) and not isinstance(item, bool) for item in items
    )
    if not good and (value is not None or name in _DEFAULTS):
        raise ValueError(f"its option {name!r} is {value!r}")
    return value


def _check_methods(args: argparse.Namespace) -> None:
    """ValueError for an option that no method, or not each, has a use for, and so is not handed on."""
    from ..solve.request import chooses_steps

    adaptive = [method for method in args.methods if _is_adaptive(method, args)]
    placed = [name for name in ("steps", "grid") if getattr(args, name) is not None]
    if placed and adaptive:  # another package's: ours take the steps that they are given
        raise ValueError(f"{adaptive[0]} takes its own steps, and no --{placed[0]}; run it apart")
    for name in ("rtol", "atol"):
        if getattr(args, name) is None or adaptive or args.manifest is not None:
            continue
        placing = [n for n in ("steps", "grid", "nfe") if getattr(args, n) is not None]
        could = any(chooses_steps(method, placed=False, tolerant=True) for method in args.methods)
        raise ValueError(
            f"--{name} is for adaptive solves, and {', '.join(args.methods) or 'a plan'} takes steps "
            "as given; drop it, " + (f"or --{placing[0]}" if could and placing else "or add rk45")
        )


def _check_requests(
    model: Trained, solvers: Mapping[str, str | Plan], args: argparse.Namespace
) -> None:
    """What the library refuses, before anything is solved."""
    from ..denoising.seeding import noise
    from ..solve.planning import plan_for
    from ..solve.request import Request

    empty = noise(model.shape, model.schedule, [])
    for solver in solvers.values():
        options = _options(solver, args)
        method = options.pop("method", None)
        if Request.of(model, empty, method, options).kind == "fixed":
            options.pop("noise", None)
            plan_for(model, method, **options)


def _load_model(args: argparse.Namespace) -> Trained:
    model = load_trained(args.model, find_device(args.device), limits(args))
    if args.sha256 not in (None, model.sha256):
        raise ValueError(
            f"{args.manifest}: was made with weights {args.sha256[:12]}…, and {args.model} now has "
            f"{model.sha256[:12]}…"
        )
    set_ode(model, args)
    # of the configuration too, which may be another one some day
    for name in ("clip", "threshold"):
        setattr(args, name, str(model.limit.to_dict().get(name, "none")).strip("[]"))
    return model


def _run_solver(
    model: Trained,
    label: str,
    solver: str | Plan,
    seeds: list[int],
    labels: list[int] | None,
    args: argparse.Namespace,
) -> tuple[Tensor, dict[str, Any]]:
    import torch

    from ..denoising.seeding import noise
    from ..solve.sampling import sample

    options = _options(solver, args)
    top = model.sigma_max if isinstance(solver, str) else solver.grid[0]
    solutions: list[Solution] = []
    started = time.perf_counter()
    for i in range(0, len(seeds), args.batch):
        part = seeds[i : i + args.batch]
        x = noise(model.shape, model.schedule, part, sigma=top, device=args.device)
        cond = condition(labels and labels[i : i + args.batch], args.device)
        solutions.append(
            sample(model, x, seeds=part, cond=cond, progress=not args.quiet, **options)
        )
    end = torch.cat([solution.x for solution in solutions]).cpu()  # waits for the device
    seconds = time.perf_counter() - started
    first = solutions[0]
    status = Counter(s for solution in solutions for s in solution.status.tolist())
    return end, dict(
        method=label,
        steps=len(first.sigmas) - 1 if first.plan is not None else None,
        nfe=max(solution.nfe for solution in solutions),
        net_evals=sum(solution.net_evals for solution in solutions),
        seconds=round(seconds, 3),
        sigmas=first.to_dict()["sigmas"],
        status=dict(sorted(status.items())),
        alterations=first.to_dict()["alterations"],
        plan=None if first.plan is None else first.plan.to_dict(),
    )


def _options(solver: str | Plan, args: argparse.Namespace) -> dict[str, Any]:
    """What of the command line is this solver's."""
    from ..solve.request import is_external

    if not isinstance(solver, str):
        return dict(plan=solver, noise=args.noise)
    shared = ("final", "sigma_max", "sigma_min", "eta", "noise")
    options = dict(method=solver, **{name: getattr(args, name) for name in shared})
    if _is_adaptive(solver, args):
        if not is_external(solver):
            options["dense"] = False
        rtol, atol = (_TOLERANCE if t is None else t for t in (args.rtol, args.atol))
        return options | dict(rtol=rtol, atol=atol, nfe=args.nfe)
    nfe = _NFE if args.nfe is None and args.steps is None else args.nfe
    return options | dict(steps=args.steps, nfe=nfe, grid=args.profile or args.grid)


def _is_adaptive(method: str, args: argparse.Namespace) -> bool:
    from ..solve.request import chooses_steps

    placed = args.steps is not None or args.grid is not None
    return chooses_steps(
        method, placed, args.nfe is None and (args.rtol, args.atol) != (None, None)
    )


def _write_arrays(
    args: argparse.Namespace, label: str, x: Tensor, seeds: list[int], labels: list[int] | None
) -> None:
    import numpy as np

    from ..plots.pictures import save_images

    # A plan's name is whatever its file says: it becomes a file name, never a path.
    stem = re.sub(r"[^\w.+-]+", "-", label).strip("-.") or "plan"
    if args.npz:
        arrays: dict[str, Any] = dict(x=x.numpy(), seeds=np.array(seeds, dtype=np.uint64))
        if labels is not None:
            arrays["labels"] = labels
        np.savez_compressed(buffer := io.BytesIO(), **arrays)
        files.write(args.out / f"{stem}.npz", buffer.getvalue())
    if args.png:
        save_images(args.out / stem, x, [f"{seed:06d}" for seed in seeds])


def _report(
    args: argparse.Namespace,
    model: Trained,
    runs: list[dict[str, Any]],
    strips: list[tuple[str, Tensor]],
    labels: list[int] | None,
) -> None:
    from ..plots.pictures import sample_grid, save_figure

    headings: list[str] = []
    if labels is not None and all(a == b for a, b in zip(labels, labels[10:])):
        headings = [model.classes[label] for label in labels[:10]]
    figure = sample_grid(strips, headings)
    save_figure(args.out / "samples.png", figure)
    manifest = dict(
        ddim_ode=__version__,
        options={name: getattr(args, name) for name in _OPTIONS},
        model=dict(name=str(args.model), sha256=model.sha256, schedule=repr(model.schedule)),
        plans=[dict(file=f, sha256=h) for f, h in zip(args.plan or (), args.plan_sha256)],
        runs=runs,
        device=args.device,
        versions=versions(),
    )
    files.write_json(args.out / "manifest.json", manifest)
    columns = ("method", "steps", "nfe", "net_evals", "seconds", "status")
    rows = [{name: run[name] for name in columns} for run in runs]
    for row in rows:
        row["steps"] = "own" if row["steps"] is None else row["steps"]
        row["seconds"] = f"{row['seconds']:.2f}"
        row["status"] = counted(row["status"])
    print_table(rows)
    print(f"\n{args.out / 'samples.png'}   {args.out / 'manifest.json'}")
