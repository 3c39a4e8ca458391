"""``ddim-ode profile MODEL``: the model's own grids, and ``--grid model`` of the other commands."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._base.checks import count
from .._base.warn import warn
from .common import (
    add_guidance,
    add_limit_arguments,
    condition,
    find_device,
    parse_classes,
    print_table,
)
from .parser import Parser
from .pipelines import add_model, how_to_run, open_model

if TYPE_CHECKING:
    from ..denoising.denoiser import Denoiser
    from ..solvers.profile import Profile

NAME = "model"  # of the grid that is the model's own
HELP_GRID = (
    "time, quadratic, log_snr, karras, trailing, kl_optimal, sgm_uniform, shifted[:SHIFT], beta, "
    f"linear_quadratic; {NAME}, its own; or a profile's .json"
)


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add_model(parser, "model", nargs="?")
    add(
        "--nfe",
        nargs="+",
        type=int,
        default=[5, 8, 10, 15, 20],
        help="network calls to try plans of",
    )
    add("--n", type=int, default=8, help="noises to look at the model with")
    add("--seed", type=int, default=0, help="of the first noise")
    add("--classes", default="all", help="names or numbers, in turn over the noises: 'sneaker,bag'")
    add_guidance(parser, "; give what you will sample with")
    add("--sigma-max", type=float, help="noise level to start from (the model's own)")
    add_limit_arguments(parser)
    add("--batch", type=int, default=64, help="samples solved together")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    add("--out", type=Path, default=Path("out/profile.json"), help="file for the profile")
    parser.set_defaults(run=_profile)


def _profile(args: argparse.Namespace) -> int:
    from ..profiling.profiling import profile

    seeds = range(count("--seed", args.seed, least=0), args.seed + count("--n", args.n))
    device = find_device(args.device)
    if args.out.is_dir():
        raise IsADirectoryError(f"--out {args.out}: is a folder; give a file")
    loaded = open_model(args)
    prof = profile(
        loaded.denoiser,
        args.nfe,
        n=args.n,
        seed=args.seed,
        shape=loaded.shape,
        cond=condition(parse_classes(args.classes, loaded.denoiser, seeds), args.device),
        sigma_max=args.sigma_max,
        batch=count("--batch", args.batch),
        progress=not args.quiet,
        device=device,
    )
    prof.save(args.out)
    print_table(prof.rows())
    print(
        f"\n{args.out}\nerror: RMS to the converged ends of {args.n} noises, which may be off by "
        f"{prof.about['reference_error']:.2g}; network rows: {prof.net_evals:,}\n"
        + _how_to_sample(args, loaded.denoiser, prof.recommend(args.nfe[0]).method)
    )
    return 0


def _how_to_sample(args: argparse.Namespace, model: Denoiser, method: str) -> str:
    if args.pipeline is not None:
        made = f'from_config(pipe.scheduler.config, method="{method}", profile=Profile.load("{args.out}"))'
        return how_to_run(made, model)
    return (
        f"ddim-ode generate -n 100 --model {shlex.quote(args.model)} --method {method} --nfe {args.nfe[0]} "
        f"--grid {shlex.quote(str(args.out))} --out out/samples"
    )


def grid_of(
    name: str | None, model: Denoiser, shape: Sequence[int], args: argparse.Namespace
) -> str | Profile | None:
    """What ``--grid`` names: a named grid as it is, or a profile, of a file or made and kept."""
    from ..solvers.profile import Profile

    if name is not None and name.endswith(".json"):
        return Profile.load(name)
    if name != NAME:
        return name
    return model.profile or _kept(model, tuple(shape), args)


def _kept(model: Denoiser, shape: tuple[int, ...], args: argparse.Namespace) -> Profile:
    """The model's profile from the user's cache, or made now and kept there."""
    from .._base.digests import digest
    from ..profiling.profiling import profile
    from ..solve.model_key import model_key
    from ..solvers.profile import Profile

    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = digest(model_key(model), list(shape), model.sigma_max)
    path = Path(base) / "ddim_ode" / f"profile-{key}.json"
    cond = condition(parse_classes("all", model, range(8)), args.device)
    options: dict[str, Any] = dict(shape=shape, cond=cond, device=args.device)
    known = None
    try:
        known = Profile.load(path)
    except FileNotFoundError:
        pass
    except (ValueError, OSError) as error:
        warn(f"{error}; the profile is made anew")
    if known is None or known.about["model_key"] is None:
        known = profile(model, **options, progress=not args.quiet)
    else:  # a number of calls that it does not know is tried when it is asked for
        known.screener = lambda nfe: profile(model, nfe, **options, progress=False).screens[nfe]
    try:
        known.keep(path)
    except OSError as error:
        warn(f"{path}: the profile is not kept ({error})")
    return known
