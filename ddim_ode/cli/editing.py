"""``ddim-ode edit``: pictures under another class, from half-way up, or with a part made anew."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .._base.checks import count
from .common import condition, parse_classes
from .parser import PICTURES, Parser
from .pictures import (
    Made,
    check_classes,
    class_names,
    load_model,
    load_pictures,
    run_of,
    solver,
    write,
)
from .pictures import add_arguments as add_picture_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from .models import Trained

    Targets = dict[str, list[int] | None]  # by name: the class that each picture is made under

HALVES = ("left", "right", "top", "bottom")


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--to",
        help="classes, names or numbers: 'coat,bag'. Alone: encode under a picture's own class, decode "
        "under these, one after another",
    )
    what = parser.titled[PICTURES].add_mutually_exclusive_group()
    what.add_argument(
        "--strength",
        type=float,
        nargs="+",
        help="add noise until it is these shares of the picture, in (0, 1], and solve from there",
    )
    what.add_argument(
        "--mask", help=f"make a part anew: {', '.join(HALVES)}, or a picture that is light where to"
    )
    add("--seed", type=int, default=0, help="of the first picture's noise, and one more for each")
    add("--variants", type=int, default=3, help="of --mask, each from noises of its own")
    add_picture_arguments(parser, method="heun", nfe=39)
    parser.set_defaults(run=_edit)


def _edit(args: argparse.Namespace) -> int:
    import torch

    count("--variants", args.variants)
    model = load_model(args)
    pictures, labels, indices = load_pictures(args, model)
    targets = _targets(args, model, labels, len(pictures))
    for target in targets.values():
        check_classes(model, target, "give --to, --data with labels (IDX files, an .npz)")
    strips = [(f"pictures\n{len(pictures)} of {args.split}", pictures)]
    if args.mask is not None:
        keep = ~_mask(args.mask, model.shape).to(pictures.device)
        strips.append(("what is known", torch.where(keep, pictures, torch.zeros_like(pictures))))
        made = _inpainted(args, model, pictures, keep, targets)
    elif args.strength is not None:
        made = _renoised(args, model, pictures, targets)
    else:
        made = _transferred(args, model, pictures, labels, targets)
    return write(args, model, strips, made, class_names(model, labels), indices=indices)


def _targets(args: argparse.Namespace, model: Trained, labels: list[int] | None, n: int) -> Targets:
    if args.to is not None:
        chosen = parse_classes(args.to, model, range(len(args.to.split(",")))) or []
        return {f"to {model.classes[label]}": [label] * n for label in chosen}
    if args.mask is None and args.strength is None:
        raise ValueError("--to, --strength or --mask is missing: what to do with the pictures")
    return {"": labels}


def _transferred(
    args: argparse.Namespace,
    model: Trained,
    pictures: Tensor,
    labels: list[int] | None,
    targets: Targets,
) -> Iterator[Made]:
    from ..latents.editing import transfer
    from ..latents.inversion import decode

    source = condition(labels, args.device)
    if source is None:
        raise ValueError(
            f"{args.data}: has no classes to encode under; put each class into a subfolder of its "
            "own, named as it or by its number, or give --strength, which does without"
        )
    latents = None
    for name, target in targets.items():
        cond = condition(target, args.device) or {}
        how = dict(progress=not args.quiet, **solver(args))
        if latents is None:  # the way up is the same for all of them
            done = transfer(model, pictures, source, cond, **how)
            latents, solution = done.encoded.x, done.decoded
            yield Made(run_of("encode", done.encoded))
        else:
            solution = decode(model, latents, cond=cond, **how)
        strip = (f"{name}\nguidance {args.guidance:g}", solution.x)
        yield Made(run_of(f"decode, {name}", solution), strip)


def _renoised(
    args: argparse.Namespace, model: Trained, pictures: Tensor, targets: Targets
) -> Iterator[Made]:
    from ..latents.editing import renoise
    from ..solve.sampling import sample

    seeds = range(args.seed, args.seed + len(pictures))
    for name, target in targets.items():
        cond = condition(target, args.device)
        for strength in args.strength:
            x, sigma = renoise(pictures, model.schedule, seeds, strength=strength)
            solution = sample(
                model, x, cond=cond, sigma_max=sigma, progress=not args.quiet, **solver(args)
            )
            strip = (f"strength {strength:g}\n{name or f'from σ = {sigma:.3g}'}", solution.x)
            what = f"strength {strength:g}{name and ', '}{name}"
            yield Made(run_of(what, solution, strength=strength), strip)


def _inpainted(
    args: argparse.Namespace, model: Trained, pictures: Tensor, keep: Tensor, targets: Targets
) -> Iterator[Made]:
    from ..denoising.seeding import noise
    from ..solve.inpainting import Known
    from ..solve.sampling import sample

    n = len(pictures)
    for name, target in targets.items():
        cond = condition(target, args.device)
        for first in range(args.seed, args.seed + n * args.variants, n):
            seeds = range(first, first + n)
            x = noise(model.shape, model.schedule, seeds, model.sigma_max, args.device)
            known = Known(pictures, keep, seeds)
            solution = sample(
                model, x, known=known, cond=cond, progress=not args.quiet, **solver(args)
            )
            which = f"seeds {first}–{seeds[-1]}" if n > 1 else f"seed {first}"
            what = f"{which}{name and ', '}{name}"
            yield Made(run_of(what, solution), (f"{which}\n{name}", solution.x))


def _mask(text: str, shape: tuple[int, ...]) -> Tensor:
    """(H, W), True where to make anew: a half, or where a picture of that size is light."""
    import torch

    height, width = shape[-2:]
    mask = torch.zeros(height, width, dtype=torch.bool)
    if text in HALVES:
        rows = {"top": slice(0, height // 2), "bottom": slice(height // 2, None)}
        columns = {"left": slice(0, width // 2), "right": slice(width // 2, None)}
        mask[rows.get(text, slice(None)), columns.get(text, slice(None))] = True
        return mask
    if not Path(text).is_file():
        raise FileNotFoundError(f"--mask {text}: no such file, and not one of {', '.join(HALVES)}")
    return _read_mask(Path(text), (height, width))


def _read_mask(path: Path, size: tuple[int, int]) -> Tensor:
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            light = np.asarray(picture.convert("L")) > 127
    except UnidentifiedImageError:
        raise ValueError(f"--mask {path}: not a picture that can be read") from None
    if light.shape != size:
        raise ValueError(f"--mask {path}: is {light.shape}, and the pictures are {size}")
    return torch.from_numpy(light)
