"""What a diffusers network takes and gives, by its class, its configuration and its forward."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from .._base.checks import count

# What a forward wants inside added_cond_kwargs, by the setting of its config that makes it look there.
_OF_SETTING = {
    ("addition_embed_type", "text_time"): ("text_embeds", "time_ids"),
    ("addition_embed_type", "text_image"): ("text_embeds", "image_embeds"),
    ("addition_embed_type", "image"): ("image_embeds",),
    ("addition_embed_type", "image_hint"): ("image_embeds", "hint"),
    ("encoder_hid_dim_type", "text_image_proj"): ("image_embeds",),
    ("encoder_hid_dim_type", "image_proj"): ("image_embeds",),
    ("encoder_hid_dim_type", "ip_image_proj"): ("image_embeds",),
    ("use_additional_conditions", True): ("resolution", "aspect_ratio"),
}
ADDED = frozenset(name for names in _OF_SETTING.values() for name in names)
# The axes of one sample by a part of the class's name, where they are not (C, H, W).
_OF_CLASS = {
    "2D": "CHW",
    **{"1D": "CL", "StableAudio": "CL"},
    **{"CogVideoX": "FCHW", "SpatioTemporal": "FCHW"},
    **{"3D": "CFHW", "UNetMotion": "CFHW", "I2VGenXL": "CFHW"},
}


def num_classes_of(model: nn.Module) -> int:
    """Of a network that takes integer labels."""
    config = _config(model)
    return int(
        (config["num_embeds_ada_norm"] if _is_dit(model) else config.get("num_class_embeds")) or 0
    )


def _is_dit(model: nn.Module) -> bool:
    return "DiTTransformer2DModel" in _class_names(model)


def _class_names(model: nn.Module) -> list[str]:
    """Of a network's class and those it is derived from, also where it is compiled."""
    return [cls.__name__ for cls in type(getattr(model, "_orig_mod", model)).__mro__]


def _config(model: nn.Module) -> dict[str, Any]:
    """A network's configuration as its forward reads it: adapters set attributes of it, not items."""
    config: Mapping[str, Any] = model.config  # type: ignore[assignment]
    return {**config, **getattr(config, "__dict__", {})}


def channels_of(model: nn.Module, learns: bool) -> tuple[int, int]:
    """Channels of the state and of the answer; ValueError for a network that is shown more than the state.

    learns: whether its scheduler says that the answer has a variance.
    """
    config, name = _config(model), type(model).__name__
    channels = count("in_channels (of the network's config.json)", config["in_channels"])
    out = config.get("out_channels")
    if out is None:
        out = 2 * channels if config.get("learn_sigma") else channels
    by_hand = (
        "as ddim_ode.Denoiser(lambda x, t, c: model(torch.cat([x, c], 1), t, return_dict=False)[0], "
        "schedule, ...) with cond={'c': ...}"
    )
    if out not in (channels, 2 * channels):
        raise ValueError(
            f"{name} turns {channels} channels into {out}, so others than the state's (a mask, a small "
            f"picture) are among them; say which {by_hand}"
        )
    # Super-resolution networks are told the noise of the small picture as a class.
    upscales = config.get("class_embed_type") == "timestep"
    if out == channels and channels % 2 == 0 and (learns or upscales):
        sign = "scheduler's variance_type" if learns else "class_embed_type='timestep'"
        raise ValueError(
            f"{name} turns {channels} channels into {out}, and by its {sign} half of them are a small "
            "picture beside the state, or a variance beside the prediction; its configuration does not say "
            f"which. Say so {by_hand}, and learned_variance='split' if there is one"
        )
    return channels, out


def axes_of(model: nn.Module) -> str | None:
    """The axes of one sample, C channels, F frames; None for networks whose configuration has no size, such
    as those of packed tokens (L, C)."""
    if not {"sample_size", "sample_frames"} & set(_config(model)):
        return None
    named = ((name, part) for name in _class_names(model) for part in _OF_CLASS)
    return next((_OF_CLASS[part] for name, part in named if part in name), "CHW")


def shape_of(model: nn.Module) -> tuple[int, ...] | None:
    """Of one sample; None unless the network's config.json says all of its axes."""
    config, axes = _config(model), axes_of(model)
    if axes is None:
        return None

    def size_of(key: str) -> int | None:
        value = config.get(key)
        return None if value is None else count(f"{key} (of the network's config.json)", value)

    frames, patch = (
        size_of("sample_frames") or size_of("video_length"),
        size_of("patch_size_t") or 1,
    )
    if frames is not None and (ratio := size_of("temporal_compression_ratio")) is not None:
        frames = (frames - 1) // ratio + 1  # it counts those of the decoded video
        frames = -(-frames // patch) * patch  # the last patch is filled up
    sizes = dict(
        C=size_of("in_channels"), F=frames, H=size_of("sample_height"), W=size_of("sample_width")
    )
    if (size := config.get("sample_size")) is not None:
        spatial = axes.replace("C", "").replace("F", "")
        lengths = list(size) if isinstance(size, (list, tuple)) else [size] * len(spatial)
        if len(lengths) != len(spatial):
            raise ValueError(
                f"sample_size={size!r} of the network's config.json: give {len(spatial)} sizes, or one"
            )
        name = "sample_size (of the network's config.json)"
        sizes |= {axis: count(name, one) for axis, one in zip(spatial, lengths)}
    known = tuple(size for axis in axes if (size := sizes.get(axis)) is not None)
    return known if len(known) == len(axes) else None


def needs_of(model: nn.Module) -> frozenset[str]:
    """Conditions without a default in the network's call, or with one that its configuration refuses."""
    config = _config(model)
    of_call = list(inspect.signature(model.forward).parameters.values())[1:]
    needs = {p.name for p in of_call if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD}
    if num_classes_of(model) or config.get("class_embed_type"):
        needs.add("class_labels")
    if config.get("addition_embed_type") == "text_time":
        needs |= {"text_embeds", "time_ids"}
    return frozenset(needs - {"timestep"})


def takes_of(model: nn.Module) -> frozenset[str] | None:
    """The names that a network's call takes beside x and t, and does not ignore; None for any."""
    of_call = list(inspect.signature(model.forward).parameters.values())[1:]
    if any(p.kind == p.VAR_KEYWORD for p in of_call):
        return None
    config = _config(model)
    takes = {p.name for p in of_call} - {"timestep", "return_dict"}
    if getattr(model, "class_embedding", True) is None:
        takes -= {"class_labels"}
    if config.get("time_cond_proj_dim") is None:
        takes -= {"timestep_cond"}
    if "added_cond_kwargs" not in takes:
        return frozenset(takes)
    settings = {**config, **vars(model)}  # PixArt decides its own by its size
    added = [names for (key, value), names in _OF_SETTING.items() if settings.get(key) == value]
    return frozenset(takes.union(*added) - {"added_cond_kwargs"})


def null_label_of(model: nn.Module) -> int | None:
    """The label of DiT's null branch, one beyond its classes."""
    return num_classes_of(model) if _is_dit(model) else None
