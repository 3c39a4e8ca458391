"""``ddim-ode compare``: solvers side by side on a model; a table, pictures, and a report to keep."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._base.checks import count, several
from .._base.escaping import lines
from .common import (
    add_guidance,
    add_limit_arguments,
    condition,
    load_real,
    parse_classes,
    parse_features,
)
from .models import Loaded
from .parser import Parser
from .pipelines import add_model, name_of, open_model
from .profiling import HELP_GRID, grid_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..comparison.distances import Measured
    from ..comparison.result import Comparison
    from ..denoising.denoiser import Denoiser
    from ..evaluate.features import Features
    from ..evaluate.statistics import FeatureStatistics

_N = 64
_QUICK_N = 12  # the shipped model's reference, 2,000 calls a noise at most, then takes two minutes
_NFE = (5, 8, 10, 20)
_FEW = 4  # noises that a network is tried on before the long run
_LEAST = 4  # samples that a metric takes
_DRAWS = 10_000  # of an exact mixture, to measure against


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add_model(parser, "--model")
    add(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="names from ddim-ode methods; a selection of nine without",
    )
    add(
        "--plan",
        nargs="+",
        default=[],
        metavar="PATH",
        help="also plans that Plan.save wrote, such as those of ddim-ode calibrate",
    )
    add(
        "--calibrated",
        action="store_true",
        help="also the plans that ship with the model, fitted to it: one line, at the budgets they fit",
    )
    add("--nfe", nargs="+", type=int, default=list(_NFE), help="budgets of network calls")
    add("--grid", nargs="+", help=f"{HELP_GRID}; or best")
    add("--sigma-max", type=float, help="noise level to start from (the model's own)")
    add("--sigma-min", nargs="+", type=float, help="last positive noise level")
    add("--n", type=int, help=f"noises to solve from ({_N}, and {_QUICK_N} if --quick)")
    add("--quick", action="store_true", help="a first answer in minutes: fewer noises")
    add(
        "--seed",
        type=int,
        help="of the first noise (0, or beside fitted plans the first that none of them was fitted to)",
    )
    add("--classes", default="all", help="names or numbers, in turn over the noises: 'sneaker,bag'")
    add_guidance(parser, "; give what you sample with")
    add_limit_arguments(parser)
    add(
        "--target", nargs="+", type=float, default=[], help="errors to find the cheapest solver for"
    )
    add(
        "--metrics",
        nargs="*",
        metavar="METRIC",
        help="also distances between distributions: frechet_distance kernel_distance ...; against --data, "
        "a mixture's own draws, or else the converged solutions of the same noises",
    )
    add(
        "--metric",
        default="error",
        help="what solvers are ranked by: error, of each noise, or distribution, which also takes methods "
        "with step noise: the distance to the model's own samples, of other noises",
    )
    add("--data", type=Path, help="real images for --metrics, as for ddim-ode train")
    add(
        "--features",
        help="for --metrics, and --metric distribution: a classifier.safetensors, inception, or identity "
        "(the samples themselves)",
    )
    add("--reference", type=float, help="RMS to which the reference is converged")
    add("--confidence", type=float, default=0.95, help="of all intervals")
    add("--batch", type=int, default=32, help="samples solved together")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    add("--cache", type=Path, help="where solved batches are kept (OUT/cache)")
    add("--out", type=Path, default=Path("out/compare"), help="directory for the results")
    parser.set_defaults(run=_compare)


def _compare(args: argparse.Namespace) -> int:
    from .._base.interrupted import Interrupted
    from ..comparison.comparison import compare
    from ..comparison.samples import shown_of
    from ..solve.plan_checks import fitted_seeds, profiled_seeds
    from ..solvers.profile import Profile

    loaded = open_model(args)
    loaded = loaded.starting_at(args.sigma_max)
    n = count("--n", (_QUICK_N if args.quick else _N) if args.n is None else args.n)
    for target in args.target:
        if not 0 < target < float("inf"):
            raise ValueError(f"--target {target:g} must be a positive RMS error")
    solvers = _solvers(args, loaded.denoiser)
    names = args.grid or ()
    grids = _one_or_many([grid_of(s, loaded.denoiser, loaded.shape, args) for s in names] or None)
    if args.seed is None:
        fitted = [
            plan for plans in solvers.values() if isinstance(plans, dict) for plan in plans.values()
        ]
        seen = [fitted_seeds(plan) for plan in fitted]
        seen += [profiled_seeds(grid) for grid in several(grids) if isinstance(grid, Profile)]
        args.seed = max((seeds.stop for seeds in seen), default=0)
        if args.seed:
            print(f"seeds from {args.seed} on: those before chose the plans or grids\n")
    count("--seed", args.seed, least=0)
    measure = _Measuring(args, loaded, n)
    # in turn over the seeds, so that a seed has its class whatever n is
    labels = parse_classes(args.classes, loaded.denoiser, range(args.seed, args.seed + n))
    cond = condition(labels)
    _check_network(loaded, cond, n, args)
    args.out.mkdir(parents=True, exist_ok=True)
    stopped = ""
    try:
        result = compare(
            loaded.denoiser,
            solvers,
            args.nfe,
            shape=loaded.shape,
            n=n,
            seed=args.seed,
            cond=cond,
            grid=grids,
            sigma_min=_one_or_many(args.sigma_min),
            batch=args.batch,
            reference=args.reference,
            cache=args.cache or args.out / "cache",
            key=name_of(args),
            keep=n if measure.names else min(n, shown_of(loaded.shape)),
            confidence=args.confidence,
            progress=not args.quiet,
            device=args.device,
            metric=args.metric,
            features=measure.features if args.metric == "distribution" else None,
        )
    except Interrupted as error:
        result, stopped = error.partial, str(error).replace("the same call", "the same command")
    result.about["command"] = shlex.join(["ddim-ode", *args.command_line])
    if not any(row.error for row in result.rows):
        if stopped:
            print(stopped, file=sys.stderr)
            return 130
        notes = dict.fromkeys(row.note for row in result.rows)
        raise ValueError(f"no solver has an error: {'; '.join(notes)}")
    measured, failure = None, None
    try:
        measured = None if stopped else measure(result)
    except ValueError as error:  # said below the results, which are worth having without
        failure = error
    _write(args, loaded, result, measured, stopped)
    if failure:
        raise failure
    if stopped:
        print(stopped, file=sys.stderr)
    return 130 if stopped else 0


def _solvers(args: argparse.Namespace, model: Denoiser) -> dict[str, Any]:
    """The methods asked for, then plans: fitted ones are one line, others go by their method's name.

    A plan whose place is taken, by a method or by another plan of as many calls, goes by its file's name.
    """
    from ..solvers.methods import CALIBRATED, DEFAULT_METHODS
    from ..solvers.plan import Plan

    methods: dict[str, Any] = {name: name for name in args.methods or DEFAULT_METHODS}
    plans: dict[str, dict[Any, Plan]] = {}
    if args.calibrated:
        within = getattr(model, "calibrated_within", None)
        if within is None:
            raise ValueError("--calibrated: no plans ship with this model; give --plan its own")
        plans[CALIBRATED] = within(args.nfe)
    for path in args.plan:
        plan = Plan.load(path)
        label = CALIBRATED if plan.fit is not None else plan.method
        if label in methods or any(plan.nfe == p.nfe for p in plans.get(label, {}).values()):
            label = Path(path).stem
        plans.setdefault(label, {})[path] = plan
    return methods | plans


def _check_network(
    loaded: Loaded, cond: dict[str, Tensor] | None, n: int, args: argparse.Namespace
) -> None:
    """Two calls, before the long run: a network of the wrong shape, or of nothing but NaN, is said at once.

    One that gives NaN for some seeds is no reason to stop: their cells say so.
    """
    from ..denoising.seeding import noise
    from ..solve.sampling import sample

    model, few = loaded.denoiser, min(n, _FEW)
    seeds = range(args.seed, args.seed + few)
    x = noise(loaded.shape, model.schedule, seeds, model.sigma_max, args.device)
    some = cond and {name: rows[:few].to(args.device) for name, rows in cond.items()}
    if not (sample(model, x, "ddim", steps=2, cond=some).status == "success").any():
        asked = f"--model {args.model}" if args.pipeline is None else f"--pipeline {args.pipeline}"
        raise ValueError(
            f"{asked}: its network gives NaN or inf on noise (seeds from {args.seed}, two "
            "steps of ddim); look at its weights, and at the scale of its inputs"
        )


def _one_or_many(values: list[Any] | None) -> Any:
    return values[0] if values and len(values) == 1 else values


class _Measuring:
    """The metrics asked for, checked before the long run; called with the comparison after it."""

    def __init__(self, args: argparse.Namespace, loaded: Loaded, n: int) -> None:
        from ..comparison.distances import check_metrics
        from ..comparison.jobs import searched

        self.names: tuple[str, ...] = ()
        self.features: Features | None = None
        whole = args.metric == "distribution"
        if args.metrics is None:
            for option in ("data", *(() if whole else ("features",))):
                if getattr(args, option) is not None:
                    raise ValueError(f"--{option} belongs to --metrics; give both, or drop it")
            if args.features is not None:
                self.features = _features(args.features, loaded, args.device, "--metric")
            return
        if whole:
            raise ValueError(
                "--metrics goes with --metric error, and --metric distribution ranks by one distance; "
                "drop one of them"
            )
        reported = n - searched(args.grid or (), n)
        if reported < _LEAST:
            raise ValueError(
                f"--metrics needs at least {_LEAST} samples, and {reported} are reported; raise --n"
            )
        drawn = hasattr(loaded.denoiser, "draw")
        self.names = check_metrics(args.metrics, args.data is not None or drawn)
        self.features = _features(args.features, loaded, args.device, "--metrics")
        self.data, self.against = _real(args, loaded, self.features)

    def __call__(self, result: Comparison) -> Measured | None:
        from ..comparison.distances import measure_rows

        if self.features is None or not self.names:
            return None
        return measure_rows(result, self.features, self.data, self.against, self.names)


def _features(name: str | None, loaded: Loaded, device: str, option: str) -> Features:
    sha256 = getattr(loaded.denoiser, "sha256", None)
    return parse_features(name, loaded.shape, sha256, device, option)


def _real(
    args: argparse.Namespace, loaded: Loaded, features: Features
) -> tuple[FeatureStatistics | None, str]:
    """What samples are held against, and what it is called; None: the converged solutions."""
    from ..evaluate.statistics import FeatureStatistics

    if args.data is not None:
        images = load_real(args.data, "test", loaded.shape)
        return FeatureStatistics.of(images, features), f"{len(images):,} real images"
    draw = getattr(loaded.denoiser, "draw", None)
    if draw is None:
        return None, ""
    return FeatureStatistics.of(draw(_DRAWS), features), f"{_DRAWS:,} draws of the mixture itself"


def _write(
    args: argparse.Namespace,
    loaded: Loaded,
    result: Comparison,
    measured: Measured | None,
    stopped: str,
) -> None:
    """Everything under --out, and the short of it on the terminal."""
    from ..comparison import report
    from ..comparison.samples import draw_samples

    context = report.Context(
        title=loaded.title,
        setup={**loaded.facts, "device": args.device},
        command=result.about["command"],
        targets=args.target,
        stopped=stopped,
        samples=draw_samples(result),
        measured=measured,
    )
    files = report.write(args.out, result, context)
    result.to_csv(args.out / "compare.csv")
    result.to_json(args.out / "compare.json")
    print(lines(report.text(result, context)))
    print(
        "\n" + "   ".join(map(str, [*files, args.out / "compare.csv", args.out / "compare.json"]))
    )
