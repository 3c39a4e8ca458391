"""``ddim-ode encode``: pictures to latents and back, with the error of the round trip."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .common import condition
from .parser import Parser
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

LATENTS = "latents.safetensors"


def add_arguments(parser: Parser) -> None:
    add_picture_arguments(parser, method="heun", nfe=99)
    parser.set_defaults(run=_encode)


def _encode(args: argparse.Namespace) -> int:
    model = load_model(args)
    pictures, labels, indices = load_pictures(args, model)
    check_classes(model, labels, "give --data with labels (IDX files, an .npz)")
    strips = [(f"pictures\n{len(pictures)} of {args.split}", pictures)]
    made = _there_and_back(args, model, pictures, labels, indices)
    return write(args, model, strips, made, class_names(model, labels), indices=indices)


def _there_and_back(
    args: argparse.Namespace,
    model: Trained,
    pictures: Tensor,
    labels: list[int] | None,
    indices: list[int],
) -> Iterator[Made]:
    import torch

    from ..latents.inversion import decode, encode
    from ..nets import weights

    cond, how = condition(labels, args.device), dict(progress=not args.quiet, **solver(args))
    encoded = encode(model, pictures, cond=cond, **how)
    run = run_of("encode", encoded)
    latents = encoded.x.cpu()
    tensors = dict(latents=latents, pictures=pictures.cpu(), indices=torch.tensor(indices))
    if labels is not None:
        tensors["labels"] = torch.tensor(labels)
    weights.write(args.out / LATENTS, tensors, dict(kind="latents", sha256=model.sha256, run=run))
    # Three standard deviations of noise are the paper's white and black.
    yield Made(run, (f"latents\nRMS {float(latents.square().mean().sqrt()):.3f}", latents / 3))

    decoded = decode(model, encoded.x, partner=encoded.partner, cond=cond, **how)
    errors = (decoded.x - pictures).flatten(1).square().mean(dim=1).sqrt()
    whole = float(errors.square().mean().sqrt())
    rms = errors.tolist()
    yield Made(
        run_of("decode", decoded, rms=rms), (f"round trip\nRMS error {whole:.1e}", decoded.x)
    )
    print(f"{args.out / LATENTS}   worst round trip: RMS error {max(rms):.1e} per pixel")
