"""The command line: ``ddim-ode sample``, ``compare`` and so on; ``ddim-ode --help`` lists them."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from .._base.escaping import lines
from .._base.version import __version__
from .._base.warn import Caution
from . import (
    calibration,
    comparison,
    doctor,
    editing,
    evaluation,
    generation,
    interpolation,
    inversion,
    profiling,
    sampling,
    terminal,
    training,
)
from .common import print_table
from .parser import Parser, PrintCompletion

# name: (module, help, description, example)
_COMMANDS: dict[str, tuple[Any, str, str, str]] = {
    "sample": (
        sampling,
        "make pictures with one or more solvers",
        "Sample the same seeds with each solver: a picture, a table, a manifest. Stopped on the way, it "
        "keeps the methods that are finished.",
        "ddim-ode sample --guidance 2 --methods ddim unipc2 --nfe 10 --seeds 0-9",
    ),
    "profile": (
        profiling,
        "a model's own grids: where to start, step and end",
        "Look at a model with a few hundred network rows, and try what should do best at each number of "
        "calls: the method and grid for each, and a file for --grid.",
        "ddim-ode profile model.safetensors --nfe 8 12 --out profile.json",
    ),
    "compare": (
        comparison,
        "which solver, how many steps, for a model",
        "Solve the same noises with each solver and to convergence: the error at each number of network "
        "calls, as a table, pictures and a report. Stopped on the way, it keeps what is finished, and the "
        "same command goes on from there.",
        "ddim-ode compare --model model.safetensors --methods ddim heun unipc2 --nfe 8 15",
    ),
    "calibrate": (
        calibration,
        "fit plans of few network calls to a model",
        "Fit a plan for each number of network calls to where the ODE takes the model's own noises, from "
        "the best textbook sampler on: files for ddim-ode sample --plan, what each gains on noises held "
        "out, and pictures.",
        "ddim-ode calibrate --model model.safetensors --nfe 6 --guidance 2",
    ),
    "generate": (
        generation,
        "many samples into a folder, by any number of processes",
        "Make samples into shards of a folder. Start it once per processor, by hand or under torchrun (-m "
        "ddim_ode generate -n ...): the processes share the work. Stopped at any moment, by whatever "
        "means, the same command makes what is missing or damaged.",
        "ddim-ode generate -n 5000 --out run --method unipc2 --nfe 10",
    ),
    "evaluate": (
        evaluation,
        "verify what generate made, and hold it against real data",
        "Read a folder of ddim-ode generate shard by shard: checksums, failures, distances to real data.",
        "ddim-ode evaluate run --data images",
    ),
    "encode": (
        inversion,
        "pictures to latents and back",
        "Solve the ODE from pictures up to their latents and down again: the latents in a file, a picture, "
        "and the error of the round trip.",
        "ddim-ode encode --data images --indices 0-9 --nfe 59",
    ),
    "interpolate": (
        interpolation,
        "pictures between two noises or two pictures",
        "Go from one latent to another on a great circle, and beside it on the straight line: the latents "
        "of seeds, or of pictures, which are encoded first.",
        "ddim-ode interpolate --seeds 0-3 --points 9 --classes sneaker",
    ),
    "edit": (
        editing,
        "pictures under another class, from half-way up, or with a part made anew",
        "Change pictures: --to another class by way of their latents, by adding noise of some --strength, "
        "or inside a --mask.",
        "ddim-ode edit --data images --to coat,bag --guidance 2",
    ),
    "doctor": (
        doctor,
        "what will go wrong with a model, and the fix",
        "Ask a model on a few noised samples what its sampling will suffer from: what it predicts, at "
        "which scale and time, where its scheduler steps, clipping, half precision. Exit status 1 if "
        "anything is found.",
        "ddim-ode doctor model.safetensors --steps 20",
    ),
    "train": (
        training,
        "train a U-Net on your images",
        "Train an ε-network; the same command resumes a stopped run.",
        "ddim-ode train --data images --out run --steps 20000",
    ),
}
_LISTING = "List the solvers: their order, what a step costs, and where they step."
_LEGEND = """
order            of the global error: with exact starting values, as run by default on many steps, and
                 from starting steps of rising order (as run on few)
nfe_per_step     network calls of a full step; memory: vectors that a step reads
chart, ruler     the variable that is stepped in, and the scale that velocities are interpolated in

Adaptive without --steps and --grid: rk45, bosh3; heun if --rtol is given as well, and no --nfe.
Adaptive, by their own packages: torchdiffeq:NAME (dopri5, bosh3, ...), scipy:NAME (RK45, ...).
Of encode and decode alone: reversible, which comes back to rounding (order 2, steps + 1 calls).
Variants, such as dpmpp3m:lower_order_final, are in ddim_ode.solvers.methods.VARIANTS; where all of these
come from: ddim-ode methods --references."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status.

    2: a mistake in the call; 130: interrupted; 141: nobody reads the output any more.
    """
    terminal.prepare()
    if "torch" not in sys.modules:  # read as it is loaded
        # On a busy machine threads that spin as they wait hold the core that the last one needs.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        return terminal.finish(_status(argv))
    except BrokenPipeError:
        return terminal.finish(terminal.BROKEN_PIPE)
    except SystemExit as stop:  # argparse's, of --help or of a mistake
        raise SystemExit(terminal.finish(int(stop.code or 0))) from None


def _status(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    # a path whose bytes are no text goes into records that are
    args.command_line = [word.encode("utf-8", "backslashreplace").decode() for word in words]
    try:
        with _warnings_as_text(args.command):
            return int(args.run(args))
    except BrokenPipeError:
        raise
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(lines(f"ddim-ode {args.command}: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(lines(f"ddim-ode {args.command}: {str(stop) or 'stopped'}"), file=sys.stderr)
        return 130


@contextlib.contextmanager
def _warnings_as_text(command: str) -> Iterator[None]:
    """Ours are for people who read a terminal: without the line of code."""
    theirs = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, Caution):
            print(lines(f"ddim-ode {command}: note: {message}"), file=sys.stderr)
        else:
            theirs(message, category, *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = theirs


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="ddim-ode",
        description="Diffusion sampling as an ODE solve.",
        example="ddim-ode doctor model.safetensors",
    )
    parser.add_argument("--version", action="version", version=f"ddim-ode {__version__}")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=PrintCompletion.SHELLS,
        help="print what makes that shell complete these commands, for its start-up file",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, brief, description, example) in _COMMANDS.items():
        module.add_arguments(
            commands.add_parser(name, help=brief, description=description, example=example)
        )
    listing = commands.add_parser(
        "methods", help="list the solvers", description=_LISTING, example="ddim-ode methods"
    )
    listing.add_argument("--references", action="store_true", help="where each comes from, instead")
    listing.set_defaults(run=_print_methods)
    for command in commands.choices.values():
        command.add_argument(
            "--quiet", action="store_true", help="no bars, and no word on what it will cost"
        )
    return parser


def _print_methods(args: argparse.Namespace) -> int:
    from ..solvers.methods import METHODS, methods

    if args.references:
        print_table([dict(name=m.name, reference=m.reference) for m in METHODS.values()])
        return 0
    rows = [{k: v for k, v in row.items() if k != "reference"} for row in methods()]
    print_table([{k: "–" if v is None else v for k, v in row.items()} for row in rows])
    print(_LEGEND)
    return 0
