"""``ddim-ode encode``: pictures to latents and back, with the error of the round trip."""

from __future__ import annotations

import argparse

from .pictures import add_arguments as add_picture_arguments
from .pictures import condition, load_model, load_pictures, run_of, solver, write

LATENTS = "latents.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_picture_arguments(parser, method="heun", nfe=99, guided=False)
    parser.set_defaults(run=_encode)


def _encode(args: argparse.Namespace) -> int:
    import torch

    from ..inversion import decode, encode
    from ..nets import weights
    from ..pictures import sample_grid

    model = load_model(args)
    pictures, labels, indices = load_pictures(args, model)
    cond, how = condition(labels, args.device), solver(args)
    there = encode(model, pictures, cond=cond, progress=True, **how)
    back = decode(model, there.x, cond=cond, progress=True, **how)
    errors = (back.x - pictures).flatten(1).square().mean(dim=1).sqrt().cpu()

    runs = [run_of("encode", there), run_of("decode", back, rms=errors.tolist())]
    latents = there.x.cpu()
    tensors = dict(latents=latents, pictures=pictures.cpu(), indices=torch.tensor(indices))
    if labels is not None:
        tensors["labels"] = torch.tensor(labels)
    args.out.mkdir(parents=True, exist_ok=True)
    weights.write(args.out / LATENTS, tensors, dict(kind="latents", sha256=model.sha256, runs=runs))
    # Three standard deviations of noise are the paper's white and black.
    strips = [
        (f"pictures\n{len(pictures)} of {args.split}", pictures.cpu()),
        (f"latents\nRMS {float(latents.square().mean().sqrt()):.3f}", latents / 3),
        (f"round trip\nRMS error {float(errors.square().mean().sqrt()):.1e}", back.x.cpu()),
    ]
    names = [model.classes[label] for label in labels[:10]] if labels and len(labels) <= 10 else []
    write(args, model, sample_grid(strips, names), runs)
    print(f"{args.out / LATENTS}   worst round trip: RMS error {float(errors.max()):.1e} per pixel")
    return 0
