"""What the commands share that turn pictures or seeds into pictures: what goes in, and what they write."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .._base.versions import versions
from .common import (
    add_ode_arguments,
    counted,
    find_device,
    limits,
    parse_seeds,
    print_table,
    set_ode,
)
from .models import HELP_TRAINED, load_trained
from .parser import STEPS, Parser

if TYPE_CHECKING:
    from torch import Tensor

    from ..solve.solution import Solution
    from .models import Trained

MOST = 1000  # pictures at once


class Made(NamedTuple):
    """One solve: what a manifest says of it, and its strip of pictures (label, images), if it has one."""

    run: dict[str, Any]
    strip: tuple[str, Tensor] | None = None


def add_arguments(parser: Parser, method: str, nfe: int) -> None:
    """What every one of these commands takes: model, pictures, solver, folder; with its defaults."""
    add = parser.add_argument
    add("--model", default="fashion-mnist", help=HELP_TRAINED)
    add(
        "--data",
        type=Path,
        help="pictures: a folder with IDX files, an .npz, or a folder of pictures",
    )
    add("--split", default="test", help="train or test, of IDX files")
    add("--indices", default="0-9", help="which pictures of --data: 0-9 or 3,5,8")
    add("--method", default=method, help="a name from ddim-ode methods")
    where = parser.titled[STEPS].add_mutually_exclusive_group()
    where.add_argument(
        "--nfe", type=int, help=f"most network calls each way ({nfe} without --steps)"
    )
    where.add_argument("--steps", type=int, help="intervals of the grid")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    add("--out", type=Path, default=Path("out"), help="directory for the results")
    add_ode_arguments(parser)
    parser.set_defaults(default_nfe=nfe)


def load_model(args: argparse.Namespace) -> Trained:
    """The model, guided and limited as the command line says."""
    if args.nfe is None and args.steps is None:
        args.nfe = args.default_nfe
    model = load_trained(args.model, find_device(args.device), limits(args))
    set_ode(model, args)
    return model


def solver(args: argparse.Namespace) -> dict[str, Any]:
    """How to solve, as ``sample``, ``encode`` and ``decode`` take it."""
    return dict(method=args.method, steps=args.steps, nfe=args.nfe)


def load_pictures(
    args: argparse.Namespace, model: Trained
) -> tuple[Tensor, list[int] | None, list[int]]:
    """Pictures (n, C, H, W) in [-1, 1] on the device, their classes, and their indices."""
    from ..nets.data import load_images, to_unit

    if args.data is None:
        raise ValueError("--data is missing: where the pictures are")
    pixels, labels, _ = load_images(args.data, args.split)
    indices = parse_seeds(args.indices, "--indices", MOST)
    if max(indices) >= len(pixels):
        raise ValueError(
            f"--indices {args.indices}: {args.data} has {len(pixels)} pictures, 0 to {len(pixels) - 1}"
        )
    chosen = pixels[indices]
    if chosen.shape[1:] != model.shape:
        raise ValueError(
            f"{args.data}: its pictures are {tuple(chosen.shape[1:])}, and the model makes {model.shape} "
            "(channels, height, width); give pictures of that size, grey for one channel and RGB for three"
        )
    known = None
    if labels is not None and model.num_classes:
        known = labels[indices].tolist()
        if max(known) >= model.num_classes:
            raise ValueError(
                f"{args.data}: has class {max(known)}, and the model has {model.num_classes}"
            )
    return to_unit(chosen).to(args.device), known, indices


def check_classes(model: Trained, labels: list[int] | None, remedy: str) -> None:
    """ValueError, with the command's remedy, where the model cannot do without classes."""
    needed = "class_labels" in getattr(model, "needs", ())
    if labels is None and (needed or model.guidance is not None):
        what = "the model" if needed else "guidance"
        off = "" if needed else " or --guidance 1"
        raise ValueError(f"{what} needs classes, and none are known: {remedy}{off}")


def run_of(label: str, solution: Solution, **more: Any) -> dict[str, Any]:
    """What a manifest says of one solve."""
    facts = solution.to_dict()
    kept = ("method", "nfe", "net_evals", "status", "alterations", "sigmas")
    run = dict(what=label, **{name: facts[name] for name in kept}, **more)
    return dict(run, status=dict(sorted(Counter(facts["status"]).items())))


def write(
    args: argparse.Namespace,
    model: Trained,
    shown: Sequence[tuple[str, Tensor]],
    made: Iterable[Made],
    headings: Sequence[str],
    **more: Any,
) -> int:
    """Draw the strips, those given and those made, and write COMMAND.png, COMMAND.json and a table.

    made: solved one after another as they are taken; an error or Ctrl-C keeps what is finished.
    """
    strips, runs, finished = list(shown), [], False
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        for run, strip in made:
            runs.append(run)
            strips += [strip] if strip is not None else []
        finished = True
    finally:
        if strips and runs:
            _report(args, model, strips, runs, headings, more)
            if not finished:
                print(f"{len(runs)} solves are kept in {args.out}", file=sys.stderr)
    return 0


def _report(
    args: argparse.Namespace,
    model: Trained,
    strips: Sequence[tuple[str, Tensor]],
    runs: Sequence[dict[str, Any]],
    headings: Sequence[str],
    more: dict[str, Any],
) -> None:
    from .._base import files
    from .._base.version import __version__
    from ..plots.pictures import sample_grid, save_figure

    picture, manifest = (args.out / f"{args.command}{suffix}" for suffix in (".png", ".json"))
    shown = [(label, images.cpu()) for label, images in strips]
    save_figure(picture, sample_grid(shown, headings))
    record = dict(
        ddim_ode=__version__,
        command=["ddim-ode", *args.command_line],
        model=dict(name=str(args.model), sha256=model.sha256, schedule=repr(model.schedule)),
        runs=runs,
        device=args.device,
        versions=versions(),
        **more,
    )
    files.write_json(manifest, record)
    columns = ("what", "method", "nfe", "net_evals")
    rows = [{name: run[name] for name in columns} for run in runs]
    print_table([{**row, "status": counted(run["status"])} for row, run in zip(rows, runs)])
    print(f"\n{picture}   {manifest}")


def class_names(model: Trained, labels: list[int] | None) -> list[str]:
    """Headings of a strip that is one row, where the classes are known."""
    return [model.classes[label] for label in labels] if labels and len(labels) <= 10 else []
