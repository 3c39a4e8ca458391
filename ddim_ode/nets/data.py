"""Images from disk: an IDX pair (MNIST's format), an .npz file, or a folder of pictures."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_SPLITS = {"train": ("train",), "test": ("t10k", "test")}
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


class Images(NamedTuple):
    """Pixels (N, C, H, W) uint8, labels (N,) int64 or None, and class names when known."""

    pixels: Tensor
    labels: Tensor | None
    classes: list[str] | None


def load_images(path: str | Path, split: str = "train") -> Images:
    """Read a data set.

    Args:
        path: A directory with an IDX pair (``…train-images-idx3-ubyte[.gz]`` and its labels), or the images
            file of a pair; an ``.npz`` with ``images`` (N, H, W[, C]) uint8 and optionally ``labels``; or a
            folder of equally sized pictures, one sub-folder a class if there are any.
        split: ``"train"`` or ``"test"``, of a directory with IDX pairs (``t10k`` or ``test`` in their
            names).
    """
    path = Path(path)
    if split not in _SPLITS:
        raise ValueError(f"split={split!r}: use 'train' or 'test'")
    if path.suffix == ".npz":
        return _from_npz(path)
    if path.is_file():
        return _from_idx(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such directory or file")
    idx = sorted(path.glob("*images*idx3*"))
    named = [file for file in idx if any(word in file.name for word in _SPLITS[split])]
    if idx and not named:
        raise FileNotFoundError(f"{path}: has IDX images ({idx[0].name}), but none for {split!r}")
    return _from_idx(named[0]) if named else _from_folder(path)


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 pixels to float32 in [-1, 1], the scale the networks work in."""
    return pixels.float() / 127.5 - 1.0


def to_pixels(x: Tensor) -> Tensor:
    """[-1, 1] to uint8, clipping what lies outside: for showing pictures, not for solving."""
    return ((x.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _from_idx(path: Path) -> Images:
    labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    y = None
    if labels != path and labels.exists():
        y = torch.from_numpy(_read_idx(labels).astype(np.int64))
    return Images(torch.from_numpy(_read_idx(path))[:, None], y, None)


def _read_idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: not an IDX file of unsigned bytes")
    shape = tuple(np.frombuffer(raw, ">i4", count=raw[3], offset=4))
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if data.size != np.prod(shape):
        raise ValueError(f"{path}: {data.size} bytes of data, but the header says {shape}")
    return data.reshape(shape).copy()


def _from_npz(path: Path) -> Images:
    try:
        file = np.load(path, allow_pickle=False)
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ValueError(f"{path}: truncated or not an .npz file ({error})") from error
    with file as data:
        if "images" not in data:
            raise ValueError(f"{path}: has no array 'images' (it has {sorted(data)})")
        images = data["images"]
        labels = data["labels"].astype(np.int64) if "labels" in data else None
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(
            f"{path}: images must be uint8 (N, H, W) or (N, H, W, C), "
            f"got {images.dtype} {images.shape}"
        )
    images = images[..., None] if images.ndim == 3 else images
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return Images(pixels, None if labels is None else torch.from_numpy(labels), None)


def _from_folder(path: Path) -> Images:
    from PIL import Image

    files = sorted(
        f for f in path.rglob("*") if f.suffix.lower() in _IMAGE_SUFFIXES and f.is_file()
    )
    if not files:
        raise FileNotFoundError(f"{path}: holds neither an IDX pair nor pictures")
    classes = sorted({f.relative_to(path).parts[0] for f in files if f.parent != path})
    arrays = []
    for file in files:
        with Image.open(file) as picture:
            grey = picture.mode in ("1", "L", "I;16")
            arrays.append(np.asarray(picture.convert("L" if grey else "RGB")))
        if arrays[-1].shape != arrays[0].shape:
            raise ValueError(
                f"{file} is {arrays[-1].shape}, but {files[0]} is {arrays[0].shape}: "
                "resize them to one size first"
            )
    stack = np.stack(arrays)
    stack = stack[..., None] if stack.ndim == 3 else stack
    labels = None
    if classes and all(f.parent != path for f in files):
        labels = torch.tensor([classes.index(f.relative_to(path).parts[0]) for f in files])
    pixels = torch.from_numpy(np.ascontiguousarray(stack.transpose(0, 3, 1, 2)))
    return Images(pixels, labels, classes if labels is not None else None)
