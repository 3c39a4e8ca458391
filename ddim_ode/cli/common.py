"""What the commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .._base.checks import device_of, one_of
from .._base.table import Table
from .parser import Parser

MOST_SEEDS = 100_000

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import torch

    from ..denoising.denoiser import Denoiser
    from ..evaluate.features import Features
    from .models import Trained


def find_device(name: str) -> torch.device:
    """The device of that name; ValueError if it is none, or torch cannot reach it."""
    import torch

    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this torch sees no CUDA device; use cpu")
    try:
        return device_of(name)
    except ValueError as error:
        raise ValueError(f"--device {name}: {error}") from None


def print_table(rows: list[dict[str, Any]]) -> None:
    """Aligned columns: text to the left, numbers to the right."""
    print(Table.of(rows).text())


def counted(status: Mapping[str, int]) -> str:
    """How many samples have which status, in words."""
    return ", ".join(f"{n} {name}" for name, n in status.items())


def load_real(
    path: Path, split: str, shape: tuple[int, ...] | None, n: int | None = None
) -> torch.Tensor:
    """The first n real images (n, C, H, W), in [-1, 1]; ValueError for another shape than the samples'."""
    from ..nets.data import load_images, to_unit

    pixels = load_images(path, split).pixels[:n]
    if shape is not None and tuple(pixels.shape[1:]) != shape:
        raise ValueError(
            f"--data {path}: images are {tuple(pixels.shape[1:])}, and the samples {shape}"
        )
    return to_unit(pixels)


def parse_classes(text: str, model: Denoiser, indices: Iterable[int]) -> list[int] | None:
    """A class for each index, in turn, or None for an unconditional model."""
    if not getattr(model, "num_classes", 0):
        if text != "all":
            raise ValueError(f"--classes {text!r}: this model has no classes; drop it")
        return None
    names: list[str] = model.classes  # type: ignore[attr-defined]
    if text == "all":
        chosen = list(range(len(names)))
    else:
        numbers = {name: i for i, name in enumerate(names)}
        numbers |= {str(i): i for i in range(len(names))}
        chosen = [numbers[one_of("class", name.strip(), numbers)] for name in text.split(",")]
    return [chosen[i % len(chosen)] for i in indices]


def condition(labels: list[int] | None, device: Any = None) -> dict[str, torch.Tensor] | None:
    """What a network with classes is given; None for one without."""
    import torch

    return None if labels is None else {"y": torch.tensor(labels, device=device)}


def parse_features(
    name: str | None, shape: tuple[int, ...], sha256: str | None, device: str, option: str
) -> Features:
    """The features of that name; without one the identity for vectors, else the shipped, of the shipped
    model: its weights have that SHA-256.

    ValueError, naming the option that needs them, where nothing is the default.
    """
    from ..evaluate import features

    if name == "identity" or (name is None and len(shape) == 1):
        return features.IDENTITY
    if name == "inception":
        return features.inception_features(device=device)
    if name is not None:
        return features.classifier_features(name, device)
    if shipped := features.shipped_features(sha256):
        return shipped
    raise ValueError(
        f"{option}: no default features for this model; give --features a classifier.safetensors, "
        "inception, or identity"
    )


# The options that say where a solver steps, and how much noise it adds.
PLACED = ("steps", "nfe", "grid", "final", "sigma_max", "sigma_min", "eta")


def add_noise(parser: Parser) -> None:
    """Add --eta and --noise."""
    add = parser.add_argument
    add(
        "--eta",
        type=float,
        help="step noise of ddim and of methods in chart data: 0 is the ODE, 1 is DDPM",
    )
    add("--noise", choices=("path", "step"), help="step noise: one path per seed, or fresh draws")


def add_guidance(parser: Parser, further: str = "") -> None:
    """The scale of guidance, none where nobody gives one, on every command."""
    said = f"classifier-free guidance; 1 (the default) is none, others cost twice{further}"
    parser.add_argument("--guidance", type=float, help=said)


def add_ode_arguments(parser: Parser) -> None:
    """What makes the ODE another than the network's own."""
    add_guidance(parser)
    add = parser.add_argument
    interval: dict[str, Any] = dict(type=float, nargs=2, metavar=("LOW", "HIGH"))
    add("--guidance-interval", **interval, help="guide only where LOW < σ <= HIGH")
    add(
        "--guidance-rescale",
        type=float,
        default=0.0,
        metavar="PHI",
        help="rescale the guided prediction to the conditional one's standard deviation: 0 (off) to 1",
    )
    add("--sigma-max", type=float, help="noise level to start from, or to encode up to")
    add_limit_arguments(parser)


def add_limit_arguments(parser: Parser) -> None:
    """What keeps x̂₀ in range, for commands that load a model."""
    add = parser.add_argument
    add(
        "--clip",
        help="keep x̂₀ in [-CLIP, CLIP]: another ODE; none: do not, though the model's scheduler does",
    )
    add(
        "--threshold",
        metavar="P[,MOST]",
        help="dynamic thresholding at this quantile of |x̂₀|, or MOST if that is less; none as for --clip",
    )


def limits(args: argparse.Namespace) -> dict[str, Any]:
    """Clip and threshold, as far as they are given, as ``load_model`` takes them."""
    texts = {name: getattr(args, name) for name in ("clip", "threshold")}
    return {name: _limit(f"--{name}", text) for name, text in texts.items() if text is not None}


def _limit(option: str, text: str) -> Any:
    if text == "none":
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text!r}: give a number, or none") from None
    return values[0] if len(values) == 1 else tuple(values)


def set_ode(model: Trained, args: argparse.Namespace) -> None:
    """Guide the model, and start it, as the command line says."""
    if args.guidance is None:
        args.guidance = 1.0
    interval = None if args.guidance_interval is None else tuple(args.guidance_interval)
    if args.guidance == 1 and (interval is not None or args.guidance_rescale):
        name = "--guidance-rescale" if interval is None else "--guidance-interval"
        raise ValueError(f"{name} does nothing without guidance; drop it, or give --guidance")
    model.guide(args.guidance, interval, args.guidance_rescale)
    if args.sigma_max is not None:
        model.sigma_max = model.start("--sigma-max", args.sigma_max)


def parse_seeds(text: str, name: str = "--seeds", most: int = MOST_SEEDS) -> list[int]:
    """The whole numbers of "0-9", "3,5,8" or a mix of both."""
    ranges: list[range] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            ranges.append(range(int(first), int(last or first) + 1))
    except ValueError:
        raise ValueError(f"{name} {text!r}: write 0-9, or 3,5,8, or a mix of both") from None
    counts = [max(0, r.stop - r.start) for r in ranges]  # len() overflows
    if not all(counts) or sum(counts) > most or max(r.stop for r in ranges) > 2**64:
        n, what = sum(counts) if all(counts) else 0, name.removeprefix("--")
        raise ValueError(f"{name} {text!r} names {n} {what}; give 1 to {most:,}, each below 2^64")
    return [seed for r in ranges for seed in r]
