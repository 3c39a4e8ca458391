"""``ddim-ode interpolate``: pictures between two, on the great circle and on the straight line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._base.checks import count
from .common import condition, parse_classes, parse_seeds
from .parser import Parser
from .pictures import MOST, Made, check_classes, load_model, load_pictures, run_of, solver, write
from .pictures import add_arguments as add_picture_arguments

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .models import Trained


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--seeds", default="0-3", help="of noises, taken in pairs: 0-3 or 3,5,8,9 (without --data)")
    add(
        "--classes",
        help="of the pairs, names or numbers: 'sneaker,bag' or all (default: none, the network alone)",
    )
    add("--points", type=int, default=9, help="pictures on each way, both ends included")
    add_picture_arguments(parser, method="heun", nfe=39)
    parser.set_defaults(run=_interpolate, indices="0-3")


def _interpolate(args: argparse.Namespace) -> int:
    import numpy as np

    count("--points", args.points, least=2)
    model = load_model(args)
    weights = np.linspace(0, 1, args.points)
    headings = [f"{weight:.3g}" for weight in weights] if args.points <= 10 else []
    return write(args, model, (), _between(args, model, weights), headings)


def _between(
    args: argparse.Namespace, model: Trained, weights: npt.NDArray[np.float64]
) -> Iterator[Made]:
    import torch

    from ..denoising.seeding import noise
    from ..latents.interpolation import slerp
    from ..latents.inversion import decode, encode
    from ..solve.sampling import sample

    name = "--seeds" if args.data is None else "--indices"
    numbers = parse_seeds(args.seeds if args.data is None else args.indices, name, MOST)
    if len(numbers) % 2:
        raise ValueError(f"{name} names {len(numbers)}, and they are taken in pairs; give one more")
    pairs = [f"{first} to {second}" for first, second in zip(numbers[0::2], numbers[1::2])]
    labels = None if args.classes is None else parse_classes(args.classes, model, range(len(pairs)))
    check_classes(model, labels, "give --classes")
    how = dict(progress=not args.quiet, **solver(args))
    if args.data is None:
        latents = noise(model.shape, model.schedule, numbers, model.sigma_max, args.device)
    else:
        pictures, _, _ = load_pictures(args, model)
        both = None if labels is None else [label for label in labels for _ in range(2)]
        encoded = encode(model, pictures, cond=condition(both, args.device), **how)
        latents = encoded.x
        yield Made(run_of("encode", encoded))
    a, b = latents[0::2], latents[1::2]
    shares = torch.tensor(weights).to(a).reshape(-1, *[1] * a.ndim)
    ways = {"great circle": slerp(a, b, weights), "straight line": torch.lerp(a, b, shares)}
    solve = sample if args.data is None else decode
    for i, pair in enumerate(pairs):
        label = None if labels is None else labels[i]
        title = pair if label is None else f"{model.classes[label]}, {pair}"
        cond = condition(None if label is None else [label] * len(weights), args.device)
        for way, path in ways.items():
            solution = solve(model, path[:, i], cond=cond, **how)
            yield Made(run_of(f"{pair}, {way}", solution), (f"{title}\n{way}", solution.x))
