"""``ddim-ode calibrate``: plans of few calls, fitted to a model; what they gain, and how they look."""

from __future__ import annotations

import argparse
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._base.checks import count, one_of
from .common import (
    add_guidance,
    add_limit_arguments,
    condition,
    parse_classes,
    print_table,
)
from .models import Loaded
from .parser import Parser
from .pipelines import add_model, how_to_run, open_model

if TYPE_CHECKING:
    from torch import Tensor

    from ..denoising.denoiser import Denoiser
    from ..solvers.plan import Plan

_PICTURES = 4  # of the same seeds, in every cell of the strip
_DOTS = 200  # end points of a 2-D model
_STEPS = 100  # of unipc3, converged as far as the eye can tell


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add_model(parser, "--model")
    add("--nfe", nargs="+", type=int, default=[6], help="network calls, a plan for each")
    objective = (
        "solution: the model's own; features: the same, as features see it; data: real images"
    )
    add("--objective", default="solution", help=objective)
    add(
        "--data",
        type=Path,
        help="with --objective data: a folder with an IDX pair or pictures, or .npz",
    )
    add("--n", type=int, help="noises, a part of them held out to judge by (128; for data 768)")
    add("--seed", type=int, default=0, help="of the first noise")
    add("--budget", default="fast", help="fast, or thorough: several times the network calls")
    add("--classes", default="all", help="names or numbers, in turn over the noises: 'sneaker,bag'")
    add_guidance(parser, "; a plan is fitted to it, so give what you will sample with")
    add("--sigma-max", type=float, help="noise level to start from (the model's own)")
    add_limit_arguments(parser)
    add("--batch", type=int, default=48, help="samples solved together")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    add("--out", type=Path, default=Path("out/calibrate"), help="directory for the results")
    parser.set_defaults(run=_calibrate)


def _calibrate(args: argparse.Namespace) -> int:
    import ddim_ode

    from .._base.interrupted import Interrupted
    from .._base.warn import Caution
    from ..calibration.objectives import OBJECTIVES, noises_of

    budgets = sorted({count("--nfe", nfe) for nfe in args.nfe})
    one_of("--objective", args.objective, OBJECTIVES)
    n, seed = noises_of(args.objective, args.n, "--n"), count("--seed", args.seed, least=0)
    count("--batch", args.batch)
    if (args.data is None) == (args.objective == "data"):
        raise ValueError(
            "--objective data needs --data DIR, real images in the model's size, and no other takes it"
        )
    loaded = open_model(args)
    loaded = loaded.starting_at(args.sigma_max)
    shown = range(seed + n, seed + n + (_PICTURES if len(loaded.shape) == 3 else _DOTS))
    fitted_to, shown_with = (  # classes in turn over the seeds: a seed has its class whatever n is
        condition(parse_classes(args.classes, loaded.denoiser, seeds), args.device)
        for seeds in (range(seed, seed + n), shown)
    )
    args.out.mkdir(parents=True, exist_ok=True)
    stopped = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Caution)  # each is in its plan's fit, and printed below
        try:
            plans: dict[int, Plan] = ddim_ode.calibrate(
                loaded.denoiser,
                budgets,
                objective=args.objective,
                data=None if args.data is None else _real(args.data),
                shape=loaded.shape,
                n=n,
                seed=seed,
                budget=args.budget,
                cond=fitted_to,
                batch=args.batch,
                progress=not args.quiet,
                device=args.device,
            )
        except Interrupted as stop:
            stopped, plans = stop, stop.partial
    files = [args.out / f"nfe-{nfe}.json" for nfe in plans]
    for path, plan in zip(files, plans.values()):
        plan.save(path)
    if stopped is not None:
        kept = f"{' '.join(map(str, files))} kept" if files else "nothing is finished"
        rest = " ".join(str(nfe) for nfe in budgets if nfe not in plans)
        raise KeyboardInterrupt(f"stopped: {kept}; missing are --nfe {rest}")
    pictures = _draw(args, loaded, plans, shown, shown_with)
    print_table([_row(nfe, plan.fit or {}) for nfe, plan in plans.items()])
    for note in dict.fromkeys(
        note for p in plans.values() for note in (p.fit or {}).get("warnings", ())
    ):
        print(f"  {note}")
    print("\n" + "   ".join(map(str, [*files, *pictures])))
    print(
        "default: what sample(nfe=) does; incumbent: the best textbook sampler found; calibrated: the plan"
    )
    print(_how_to_sample(args, loaded.denoiser, files[0]))
    return 0


def _real(path: Path) -> Tensor:
    """Real images, in the models' scale."""
    from ..nets.data import load_images, to_unit

    return to_unit(load_images(path).pixels)


def _row(nfe: int, fit: Mapping[str, Any]) -> dict[str, Any]:
    from ..solvers.fit import number, ratio_text

    held, of = fit.get("held_out", {}), "error"
    kept = "calibrated" if fit.get("calibrated", True) else "incumbent"
    if (data := fit.get("data")) is not None:
        held, of = dict(data["held_out"]), "distance"
        if not data["matched"]:
            held["after"], kept = held["before"], "solution's"
    return {
        "nfe": nfe,
        f"{of} before": number(held.get("before")),
        "after": number(held.get("after")),
        "ratio (95 %)": ratio_text(fit) if data is None else "",
        "incumbent": fit.get("incumbent", ""),
        "kept": kept,
        "net_evals": number(fit.get("net_evals")),
        "seconds": number(fit.get("seconds")),
    }


def _draw(
    args: argparse.Namespace,
    loaded: Loaded,
    plans: Mapping[int, Plan],
    seeds: Sequence[int],
    cond: dict[str, Tensor] | None,
) -> list[Path]:
    """Each plan, and what it makes of seeds that it was not fitted to, beside what others make of them."""
    from ..plots.pictures import save_figure
    from ..plots.plans import plan_plot

    schedule, files = loaded.denoiser.schedule, []
    for nfe, plan in plans.items():
        files.append(args.out / f"plan-{nfe}.png")
        save_figure(files[-1], plan_plot(plan, schedule))
    pictures = len(loaded.shape) == 3 and loaded.shape[0] in (1, 3)
    if not (pictures or loaded.shape == (2,)):
        return files
    lines, converged = _before_after(args, loaded, plans, seeds, cond)
    columns = [f"{nfe} call{'s' if nfe > 1 else ''}" for nfe in plans]
    if pictures:
        from ..plots.pictures import solver_grid
        from ..plots.style import STAGES

        strips = [(name, STAGES[name], cells) for name, cells in lines.items()]
        last = (f"{_STEPS} steps", STAGES["converged"], [converged] * len(plans))
        figure = solver_grid([*strips, last], columns)
    else:
        from ..plots.comparisons import ends_plot

        figure = ends_plot(list(lines.items()), columns, converged)
    files.append(args.out / "before_after.png")
    save_figure(files[-1], figure)
    return files


def _before_after(
    args: argparse.Namespace,
    loaded: Loaded,
    plans: Mapping[int, Plan],
    seeds: Sequence[int],
    cond: dict[str, Tensor] | None,
) -> tuple[dict[str, list[Tensor | None]], Tensor]:
    """End states by sampler and budget, and where the ODE takes the same seeds."""
    from ..calibration.search import incumbent_of
    from ..denoising.seeding import noise
    from ..solve.sampling import sample

    model = loaded.denoiser
    x = noise(loaded.shape, model.schedule, seeds, model.sigma_max, args.device)
    lines: dict[str, list[Tensor | None]] = {"default": [], "incumbent": [], "calibrated": []}
    for nfe, plan in plans.items():
        incumbent = incumbent_of(plan, model.schedule)
        lines["default"].append(sample(model, x, nfe=nfe, cond=cond).x.cpu())
        for name, one in (("incumbent", incumbent), ("calibrated", plan)):
            made = None if one is None else sample(model, x, plan=one, cond=cond).x.cpu()
            lines[name].append(made)
    return lines, sample(model, x, "unipc3", steps=_STEPS, cond=cond).x.cpu()


def _how_to_sample(args: argparse.Namespace, model: Denoiser, path: Path) -> str:
    from ..nets.pretrained import PretrainedModel

    if args.pipeline is not None:
        return how_to_run(f'from_plans(Plan.load("{path}"), pipe.scheduler.config)', model)
    if not isinstance(model, PretrainedModel):
        return f'sample with: ddim_ode.sample(model, x_T, plan=ddim_ode.Plan.load("{path}"))'
    name = "" if args.model == "fashion-mnist" else f" --model {shlex.quote(args.model)}"
    ode = "".join(
        f" --{option} {value}"
        for option in ("guidance", "clip", "threshold")
        if (value := getattr(args, option)) is not None
    )
    return f"sample with: ddim-ode sample{name} --plan {shlex.quote(str(path))}{ode}"
