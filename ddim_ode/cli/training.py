"""``ddim-ode train``: an ε-network on your images."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from .._base.checks import count, one_of
from .common import find_device
from .parser import Parser


def add_arguments(parser: Parser) -> None:
    from ..nets.config import TrainConfig

    defaults = TrainConfig()
    add = parser.add_argument
    add("--data", type=Path, required=True, help="IDX directory, .npz, or a folder of pictures")
    add("--out", type=Path, required=True, help="directory of the run; resumed if it holds one")
    training = parser.add_argument_group("training").add_argument
    training("--init", help="model to start from (default: random weights)")
    training("--schedule", default="exponential", help="exponential, ddpm or cosine")
    training("--steps", type=int, default=defaults.steps, help="optimiser steps")
    training("--batch-size", type=int, default=defaults.batch, help="images a step")
    training("--lr", type=float, default=defaults.lr, help="peak learning rate")
    training("--channels", default=",".join(map(str, defaults.channels)), help="features per level")
    training("--blocks", type=int, default=defaults.blocks, help="residual blocks a level")
    training(
        "--label-dropout", type=float, default=defaults.label_dropout, help="share without label"
    )
    training("--seed", type=int, default=defaults.seed, help="of weights, batches and noise")
    training("--bf16", action="store_true", help="bfloat16 autocast")
    add("--classes", help="class names, comma-separated, for the model file")
    training("--checkpoint-every", type=int, default=200, help="steps")
    add("--device", default="cpu", help="cpu, cuda ...")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    from .. import schedules
    from ..nets.config import TrainConfig
    from ..nets.data import load_images
    from ..nets.train import train
    from ..plots.pictures import loss_curve, save_figure

    one_of("schedule", args.schedule, ("exponential", "ddpm", "cosine"))
    count("--checkpoint-every", args.checkpoint_every)
    data = load_images(args.data)
    if args.classes:
        data = data._replace(classes=args.classes.split(","))
    config = TrainConfig(
        steps=args.steps,
        batch=args.batch_size,
        lr=args.lr,
        label_dropout=args.label_dropout,
        channels=_parse_channels(args.channels),
        blocks=args.blocks,
        seed=args.seed,
        bf16=args.bf16,
    )
    path = train(
        data,
        getattr(schedules, args.schedule)(),
        args.out,
        config,
        init=args.init,
        device=str(find_device(args.device)),
        checkpoint_every=args.checkpoint_every,
        progress=not args.quiet,
    )
    with open(args.out / "loss.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    curve = loss_curve([int(r["step"]) for r in rows], [float(r["loss"]) for r in rows])
    save_figure(args.out / "loss.png", curve)
    print(f"wrote {path}; sample it with: ddim-ode sample --model {path}")
    return 0


def _parse_channels(text: str) -> tuple[int, ...]:
    try:
        return tuple(count("--channels", int(part)) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--channels {text!r}: write whole numbers, such as 32,64,128") from None
