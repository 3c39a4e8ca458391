"""``ddim-ode interpolate``: pictures between two, on the great circle and on the straight line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .._checks import count
from .common import parse_classes, parse_seeds
from .pictures import MOST, condition, load_model, load_pictures, run_of, solver, write
from .pictures import add_arguments as add_picture_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from ..nets.pretrained import PretrainedModel

_WAYS = ("great circle", "straight line")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seeds", default="0-3", help="of noises, taken in pairs: 0-3 or 3,5,8,9 (without --data)")
    add(
        "--classes",
        default=None,
        help="of the pairs, names or numbers: 'sneaker,bag' or all (default: none, the network alone)",
    )
    add("--points", type=int, default=9, help="pictures on each way, both ends included")
    add_picture_arguments(parser, method="heun", nfe=39, guided=False)
    parser.set_defaults(run=_interpolate, indices="0-3")


def _interpolate(args: argparse.Namespace) -> int:
    import numpy as np
    import torch

    from ..interpolation import slerp
    from ..inversion import decode
    from ..pictures import sample_grid
    from ..sampling import sample

    count("--points", args.points, least=2)
    model = load_model(args)
    latents, names, runs = _latents(args, model)
    a, b = latents[0::2], latents[1::2]
    pairs, how = len(a), solver(args)
    labels = None if args.classes is None else parse_classes(args.classes, model, pairs)
    if labels is not None:
        names = [f"{model.classes[label]}, {name}" for label, name in zip(labels, names)]
    weights = np.linspace(0, 1, args.points)
    shares = torch.tensor(weights).to(a).reshape(-1, *[1] * a.ndim)
    made: dict[str, Tensor] = {}
    for way, path in zip(_WAYS, (slerp(a, b, weights), torch.lerp(a, b, shares))):
        cond = condition(None if labels is None else labels * args.points, args.device)
        solve = sample if args.data is None else decode
        solution = solve(model, path.flatten(0, 1), cond=cond, progress=True, **how)
        made[way] = solution.x.reshape(path.shape).cpu()
        runs.append(run_of(way, solution))
    strips = [(f"{name}\n{way}", made[way][:, i]) for i, name in enumerate(names) for way in _WAYS]
    headings = [f"{weight:.3g}" for weight in weights] if args.points <= 10 else []
    write(args, model, sample_grid(strips, headings), runs)
    return 0


def _latents(
    args: argparse.Namespace, model: PretrainedModel
) -> tuple[Tensor, list[str], list[dict[str, object]]]:
    """Latents (2·pairs, C, H, W), a name for each pair, and what it cost to find them."""
    from ..inversion import encode
    from ..seeding import noise

    if args.data is None:
        numbers, name = parse_seeds(args.seeds, most=MOST), "--seeds"
    else:
        numbers, name = parse_seeds(args.indices, "--indices", MOST), "--indices"
    if len(numbers) % 2:
        raise ValueError(f"{name} names {len(numbers)}, and they are taken in pairs; give one more")
    pairs = [f"{first} to {second}" for first, second in zip(numbers[0::2], numbers[1::2])]
    if args.data is None:
        return noise(model.shape, model.schedule, numbers, device=args.device), pairs, []
    pictures, _, _ = load_pictures(args, model)
    cond = None
    if args.classes is not None:
        labels = parse_classes(args.classes, model, len(pairs)) or []
        cond = condition([label for label in labels for _ in range(2)], args.device)
    found = encode(model, pictures, cond=cond, progress=True, **solver(args))
    return found.x, pairs, [run_of("encode", found)]
