"""What the commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._checks import one_of

# Of a model with classes, where samples are made to be looked at.
GUIDANCE = 2.0

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from ..denoiser import Denoiser
    from ..evaluate.features import Features


def find_device(name: str) -> torch.device:
    """The device of that name; ValueError if it is none, or torch cannot reach it."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: {error}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this torch sees no CUDA device; use cpu")
    return device


def print_table(rows: list[dict[str, Any]]) -> None:
    """Aligned columns: text to the left, numbers to the right."""
    columns = list(rows[0])
    text = [[str(row[name]) for name in columns] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in text)) for i, name in enumerate(columns)]
    numeric = [all(isinstance(row[name], (int, float)) for row in rows) for name in columns]
    for line in [columns, *text]:
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric)]
        print("  ".join(cells).rstrip())


def parse_classes(text: str, model: Denoiser, n: int) -> list[int] | None:
    """A class for each of n samples, or None for an unconditional model."""
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
    return [chosen[i % len(chosen)] for i in range(n)]


def parse_features(
    name: str | None,
    shape: tuple[int, ...],
    default: Callable[[], Features],
    device: str,
    option: str,
) -> Features:
    """The features of that name; without one the identity for vectors, else ``default()`` if it has any.

    ValueError, naming the option that needs them, where nothing is the default.
    """
    from ..evaluate import features

    if name == "identity" or (name is None and len(shape) == 1):
        return features.IDENTITY
    if name == "inception":
        return features.inception_features(device=device)
    if name is not None:
        return features.classifier_features(name, device)
    try:
        return default()
    except ValueError:
        raise ValueError(
            f"{option}: no default features for this model; give --features a classifier.safetensors, "
            "inception, or identity"
        ) from None
