"""The files of a diffusers model: where they are, and objects of them. Nothing is unpickled.

A class is looked up by name in diffusers itself, never imported from where a file says.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._base.checks import one_of, shown
from .._base.warn import warn
from .config import DISCRETE, FLOW, InteropWarning

NETWORKS = ("unet", "transformer")
_SCHEDULER = "scheduler_config.json"
# What diffusers reads: one file, or an index of several; with a variant in the name, today's way or that of
# its first versions.
_WEIGHTS = re.compile(r"diffusion_pytorch_model(?:\.(\w+))?\.safetensors")
_INDEX = re.compile(r"diffusion_pytorch_model\.safetensors(?:\.(\w+))??\.index(?:\.(\w+))?\.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLED = (
    "{}: pickled weights are not read, since they can run code; save the model again with "
    "save_pretrained(safe_serialization=True)"
)


def is_model_folder(path: str | Path) -> bool:
    """Whether a directory is laid out as diffusers lays out a pipeline or a model."""
    path = Path(path)
    names = ["model_index.json", *(f"{name}/config.json" for name in NETWORKS)]
    if any((path / name).is_file() for name in names):
        return True
    return (path / "config.json").is_file() and "_class_name" in _read_json(path / "config.json")


def local(source: str | Path, revision: str | None) -> Path:
    """The directory, or a snapshot of the hub's: configurations and safetensors, nothing else."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() in _PICKLES:
            raise ValueError(_PICKLED.format(path))
        raise ValueError(
            f"{path}: a file holds weights alone; give the directory of the model, its config.json beside "
            "them. Of a checkpoint in one file diffusers makes the model: "
            "UNet2DConditionModel.from_single_file(FILE), and then load(model, scheduler)"
        )
    try:
        from huggingface_hub import snapshot_download

        parts = [f"{name}/*.{kind}" for name in NETWORKS for kind in ("json", "safetensors")]
        wanted = [
            "model_index.json",
            "config.json",
            "profile.json",
            "scheduler*.json",
            "scheduler/*.json",
            *parts,
        ]
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise FileNotFoundError(
            f"{source}: no such directory, and no model of that id could be fetched ({error})"
        ) from error


def network_folder(folder: Path) -> Path:
    inside = [folder / name for name in NETWORKS if (folder / name / "config.json").is_file()]
    if inside:
        return inside[0]
    if (folder / "config.json").is_file():
        return folder
    raise FileNotFoundError(
        f"{folder}: holds no unet/config.json, transformer/config.json or config.json of a model"
    )


def scheduler_file(folder: Path, network: Path) -> Path:
    places = [folder / "scheduler", folder, network.parent / "scheduler", network.parent]
    for place in places:
        if (place / _SCHEDULER).is_file():
            return place / _SCHEDULER
    raise FileNotFoundError(
        f"{folder}: holds no scheduler/{_SCHEDULER}, without which nobody knows how the network was "
        "trained: put it there, or give scheduler= in Python"
    )


def read_network(folder: Path, dtype: torch.dtype | None, variant: str | None = None) -> nn.Module:
    """The network of a model's directory.

    Args:
        folder: With config.json and weights in safetensors.
        dtype: Of the weights, float32 if None.
        variant: Which of several sets of weights, by what their file names have before ``.safetensors``,
            such as ``"fp16"``. If None the plain ones, or the only ones there are, with a warning.

    Raises:
        ValueError: A class that is not diffusers' own, a variant that is not there, weights that are
            pickled or do not fit the configuration.
        FileNotFoundError: Something is missing.
    """
    import diffusers

    name = _read_json(folder / "config.json").get("_class_name")
    cls = getattr(diffusers, str(name), None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)) or _is_several(cls):
        raise ValueError(
            f"{folder}: _class_name={name!r} is no model of diffusers {diffusers.__version__} that has its "
            "own weights; build it yourself and load(model, scheduler)"
        )
    variant = _variant(folder, variant)
    try:
        model, report = cls.from_pretrained(
            folder,
            output_loading_info=True,
            use_safetensors=True,
            variant=variant,
            torch_dtype=dtype,
            local_files_only=True,
            low_cpu_mem_usage=False,  # which wants another package
        )
    except Exception as error:  # of many kinds, by what is wrong with the file
        raise ValueError(f"{folder}: its weights cannot be read ({error})") from error
    strange = {kind: keys for kind, keys in report.items() if keys}
    if strange:  # diffusers goes on with random numbers in their place
        kind, keys = next(iter(strange.items()))
        raise ValueError(
            f"{folder}: its weights do not fit its config.json: {len(keys)} {kind.replace('_', ' ')}, "
            f"such as {sorted(map(str, keys))[0]}; save both again with save_pretrained"
        )
    return model


def _is_several(cls: Any) -> bool:
    """Whether a class reads other directories than its own, as MultiAdapter does."""
    return cls.from_pretrained.__func__.__module__ != "diffusers.models.modeling_utils"


def _variant(folder: Path, wanted: str | None) -> str | None:
    """The variant to read, once every file that diffusers might read for it is known to be safetensors."""
    variants: set[str | None] = set()
    for file in sorted(folder.iterdir()):
        if match := _WEIGHTS.fullmatch(file.name):
            variants.add(match[1])
        elif match := _INDEX.fullmatch(file.name):
            _check_index(file)
            variants.add(match[1] or match[2])
    named = ", ".join(sorted(map(repr, variants - {None})))
    if wanted in variants:
        return wanted
    if wanted is not None:
        raise ValueError(
            f"{folder}: has no weights of variant={wanted!r}; "
            + (
                f"there are variant={named}"
                if named
                else "drop variant="
                if variants
                else "nor any others"
            )
        )
    if len(variants) == 1:
        only = variants.pop()
        warn(f"variant={only!r}: the only weights in {folder}, and so taken", InteropWarning)
        return only
    if variants:
        raise ValueError(f"{folder}: has weights of several variants; give variant= one of {named}")
    pickled = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in _PICKLES]
    if pickled:
        raise ValueError(_PICKLED.format(pickled[0]))
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    raise FileNotFoundError(
        f"{folder}: holds no diffusion_pytorch_model.safetensors"
        + (f" ({', '.join(others)} is not what diffusers calls its weights)" if others else "")
    )


def _check_index(file: Path) -> None:
    """ValueError unless the index names safetensors files beside it, and nothing else."""
    names = _read_json(file).get("weight_map")
    if not isinstance(names, dict):
        raise ValueError(f"{file}: has no weight_map; save the model again with save_pretrained")
    for name in names.values():
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or not name.endswith(".safetensors")
        ):
            raise ValueError(
                f"{file}: names {name!r}, and only .safetensors files beside it are read (others may be "
                "pickles, which can run code); save the model again with save_pretrained"
            )
        if not (file.parent / name).is_file():
            raise FileNotFoundError(f"{file}: names {name}, which is not there")


def check_installed() -> None:
    """ImportError with the remedy, where diffusers is not there."""
    if importlib.util.find_spec("diffusers") is None:
        raise ImportError(
            "models and schedulers of diffusers need that package, which is not installed: pip install "
            "diffusers (this package's extra 'diffusers' brings it: pip install -e '.[diffusers]')"
        )


def own_keys(name: str) -> set[str]:
    """The settings of a scheduler class that we know, in diffusers or here."""
    import diffusers

    cls = getattr(diffusers, name)
    return set(inspect.signature(cls.__init__).parameters) - {"self"}


def class_of(config: Mapping[str, Any]) -> str | None:
    """The scheduler class of a configuration, which those in memory do not name; None for none we know.

    It has all settings of its class, defaults included, and names some of those as such
    (``_use_default_values``). It may carry the settings of classes before it along, so the class of most
    settings that fits is it.
    """
    theirs = [name for name in (*DISCRETE, *FLOW) if not name.startswith("DDIMODE")]
    by_default = set(config.get("_use_default_values") or ())
    fitting = [name for name in theirs if by_default <= own_keys(name) <= set(config)]
    return max(fitting, key=lambda name: len(own_keys(name)), default=config.get("_class_name"))


def read_scheduler(source: Any, ours: Callable[[Any], Any] | None = None) -> Any:
    """The scheduler's object, its class looked up in diffusers, its defaults filled in.

    ours: makes one of ours of its configuration.
    """
    import diffusers

    if isinstance(source, (str, Path)):
        path = Path(source)
        path = path / _SCHEDULER if path.is_dir() else path
        source = _read_json(path)
    if isinstance(source, Mapping):
        # Keys listed there would go back to their defaults, whatever they say.
        source = {key: value for key, value in source.items() if key != "_use_default_values"}
        if "_class_name" not in source:
            raise ValueError(
                "this configuration does not name its scheduler (_class_name), as those in memory do not; "
                "give the scheduler itself"
            )
        name = one_of("scheduler", source["_class_name"], (*DISCRETE, *FLOW))
        if name.startswith("DDIMODE") and ours is not None:
            return ours(source)
        try:
            return getattr(diffusers, name).from_config(source)
        except Exception as error:  # of many kinds, by which entry is wrong
            raise ValueError(f"{name} cannot be made of its configuration: {error}") from error
    if not hasattr(source, "config"):
        raise ValueError(
            f"scheduler={shown(source)}: give its object, directory or configuration file"
        )
    return source


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: truncated, or not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds a {type(data).__name__}, not a configuration")
    return data
