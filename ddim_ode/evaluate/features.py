"""Features: what a metric sees of an image, and the name and hash that say which.

Two numbers compare only when they were taken in the same features, so every row and every reference
carries their hash: of the weights and of how images get in, not of a file's name.
"""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .._base.checks import count, function, shown, tensor_of
from ..nets.data import to_pixels
from ..nets.pretrained import ASSETS, PretrainedModel, load_classifier

Array = npt.NDArray[Any]

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.safetensors"
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)


@dataclass(frozen=True, repr=False)
class Features:
    """Rows (N, D) of images (N, C, H, W) in network space; any samples (N, *shape) for the identity.

    Attributes:
        name: What tables call it.
        sha256: Of the function's content, see :func:`content_sha256`.
        function: A tensor (B, *shape) to a tensor (B, D), row by row; called without gradients, and free to
            move images to its own device.
        batch: Images at a time.

    >>> import torch
    >>> sha256 = content_sha256({}, "mean over H and W")
    >>> mean_colour = Features("mean colour", sha256, lambda x: x.mean((2, 3)))
    >>> mean_colour(torch.zeros(5, 3, 8, 8)).shape
    (5, 3)
    """

    name: str
    sha256: str
    function: Callable[[Tensor], Tensor]
    batch: int = 500

    def __repr__(self) -> str:
        return f"Features({self.name!r}, sha256 {self.sha256[:12]}…)"

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and isinstance(self.sha256, str)
        if not (named and self.name and len(self.sha256) == 64):
            raise ValueError(
                f"name={shown(self.name)} and sha256={shown(self.sha256)}: features need a name, and the "
                "64 digits of content_sha256(tensors, recipe)"
            )
        function("function", self.function)
        object.__setattr__(self, "batch", count("batch", self.batch))

    @torch.no_grad()
    def __call__(self, images: Tensor | Array) -> Array:
        """Rows (N, D) in the function's own precision; ValueError for NaN or inf, before or after."""
        x = tensor_of("images", images)
        if x.ndim < 2 or not len(x):
            raise ValueError(
                f"images have shape {tuple(x.shape)}, but must be (N >= 1, *shape of one)"
            )
        bad = (~x.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"{len(bad)} of {len(x)} samples have NaN or inf (the first is {bad[0]}): leave them out, "
                "and report how many, as their solver failed on them"
            )
        rows = [self._rows(part) for part in x.split(self.batch)]
        return np.concatenate(rows)

    def _rows(self, part: Tensor) -> Array:
        out = self.function(part)
        if not isinstance(out, Tensor):
            raise ValueError(
                f"features {self.name!r} gave a {type(out).__name__}, not a tensor (B, D)"
            )
        if out.ndim != 2 or len(out) != len(part):
            raise ValueError(
                f"features {self.name!r} gave {tuple(out.shape)} for {len(part)} images; "
                f"they must give ({len(part)}, D)"
            )
        if not out.isfinite().all():
            raise ValueError(f"features {self.name!r} gave NaN or inf on finite images")
        wide = out if out.dtype == torch.float64 else out.float()
        result: Array = wide.cpu().numpy()
        return result


def check_features(features: object) -> Features:
    """``features`` if they are; else a ValueError."""
    if not isinstance(features, Features):
        raise ValueError(
            f"features must be Features(name, sha256, function), got {type(features).__name__}; "
            "ddim_ode.evaluate.features has some"
        )
    return features


def content_sha256(tensors: Mapping[str, Tensor], recipe: str) -> str:
    """SHA-256 of named tensors (names, types, shapes, values; any order) and of a word on their use."""
    digest = hashlib.sha256(recipe.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"|{name} {value.dtype} {tuple(value.shape)}|".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


IDENTITY = Features(
    "identity", content_sha256({}, "the samples, flattened"), lambda x: x.flatten(1)
)


def classifier_features(
    name_or_path: str | Path = "fashion-mnist", device: str | torch.device = "cpu"
) -> Features:
    """The (B, 128) penultimate features of the shipped classifier, or of another of ours.

    Images are clipped to [-1, 1], as they would be to be shown.
    """
    net = load_classifier(name_or_path, device)
    sha256 = content_sha256(net.state_dict(), "penultimate features of images clipped to [-1, 1]")
    name = f"{Path(name_or_path).name.removesuffix('.safetensors').removesuffix('-classifier')} classifier"
    return Features(name, sha256, lambda x: net.features(x.to(device).float().clamp(-1, 1)))


def default_features(model: object) -> Features:
    """The shipped classifier for the shipped model. Others have no default: a metric is a choice."""
    features = shipped_features(model.sha256) if isinstance(model, PretrainedModel) else None
    if features is not None:
        return features
    raise ValueError(
        f"no default features for this {type(model).__name__}; pass some: classifier_features(path), "
        "inception_features(weights), IDENTITY for samples of few dimensions, or your own "
        "Features(name, sha256, f)"
    )


def shipped_features(sha256: str | None) -> Features | None:
    """The features of the shipped model whose weights have this SHA-256; None for other weights."""
    shipped = (ASSETS / "fashion-mnist.safetensors").read_bytes()
    return classifier_features() if sha256 == hashlib.sha256(shipped).hexdigest() else None


def inception_features(
    weights: str | Path | None = None, device: str | torch.device = "cpu", batch: int = 50
) -> Features:
    """The (B, 2048) features of the FID: torchmetrics' Inception v3, resizing as the original.

    Images (B, 1 or 3, H, W) in [-1, 1] are rounded to bytes; grey ones are repeated. Nothing is
    downloaded or unpickled.

    Args:
        weights: A safetensors file, made once from the .pth that torch-fidelity publishes (default: in the
            folder of torch.hub).
        device: Where the network runs.
        batch: Images at a time.

    Raises:
        ImportError: torchmetrics is missing; it says what to install.
        FileNotFoundError: No such weights; it says how to make them.
    """
    path = (
        Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        if weights is None
        else Path(weights)
    )
    try:
        inception = importlib.import_module("torchmetrics.image.fid").NoTrainInceptionV3
    except (ImportError, RuntimeError) as error:  # the second: a torchvision of another torch
        raise ImportError(
            f"Inception features need torchmetrics ({error}): pip install -e '.[fid]'"
        ) from error
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no Inception weights there, and none are downloaded unasked. Fetch {INCEPTION_URL} "
            "and convert it once: safetensors.torch.save_file(torch.load(PTH, weights_only=True), FILE); "
            "then pass weights=FILE"
        )
    state = _read_state(path)
    # Its constructor unpickles whatever file it is given: so it gets one written here, from tensors alone.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        net = inception("inception-v3-compat", ["2048"], buffer, antialias=False).to(device)
    except RuntimeError as error:
        raise ValueError(f"{path}: not the weights of the FID's Inception v3") from error

    def function(x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(
                f"Inception takes images (B, 1 or 3, H, W), got {tuple(x.shape)}; "
                "for others use features of their own"
            )
        rows: Tensor = net(to_pixels(x).expand(-1, 3, -1, -1).to(device))
        return rows

    recipe = "Inception v3, pool 2048, bytes, bilinear as in TensorFlow 1"
    return Features("inception-2048", content_sha256(state, recipe), function, batch)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated, or not a safetensors file") from error
