"""What a diffusers network takes and gives, by its class, its configuration and its forward."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from .._base.checks import count
from .families import FROM_PIPELINE, Family, family_of

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
# The condition that goes in beside the state, behind its channels.
BESIDE = "concat"


def num_classes_of(model: nn.Module) -> int:
    """Of a network that takes integer labels."""
    config = config_of(model)
    return int(
        (config["num_embeds_ada_norm"] if _is_dit(model) else config.get("num_class_embeds")) or 0
    )


def _is_dit(model: nn.Module) -> bool:
    return any(cls.__name__ == "DiTTransformer2DModel" for cls in _classes(model))


def _classes(model: nn.Module) -> tuple[type, ...]:
    """A network's class and those it is derived from, also where it is compiled."""
    return type(getattr(model, "_orig_mod", model)).__mro__


def config_of(model: nn.Module) -> dict[str, Any]:
    """A network's configuration as its forward reads it: adapters set attributes of it, not items."""
    config: Mapping[str, Any] = model.config  # type: ignore[assignment]
    return {**config, **getattr(config, "__dict__", {})}


def row_of(model: nn.Module, kind: str) -> Family:
    """How its pipeline calls it, see :mod:`.families`; kind: of the scheduler's noise.

    ValueError for a transformer that is not known with such noise, or one that is told of two times.
    """
    row, config = family_of(_classes(model), kind), config_of(model)
    if row.axes is None and {"sample_size", "sample_frames"} & set(config):
        row = row._replace(axes="CHW")
    if config.get("use_meanflow"):
        raise ValueError(
            f"{type(model).__name__} has use_meanflow: it is told of the time of the next level as well, "
            f"which a denoiser at one level does not know; {FROM_PIPELINE}"
        )
    return row


class Channels(NamedTuple):
    """Of the state, the answer, and what goes in behind the state; None where the network does not say.

    variance: whether half of the answer is a variance.
    """

    state: int | None
    out: int | None
    beside: int
    variance: bool


def channels_of(model: nn.Module, learns: bool, axes: str | None) -> Channels:
    """Channels of the state, and what else goes in and comes out.

    learns: whether its scheduler says that the answer has a variance. axes: of one sample.

    Where more goes in than comes out, the rest is a condition behind the state (a mask, a small picture),
    as all pipelines of diffusers stack them. ValueError where the configuration leaves it open.
    """
    config, name = config_of(model), type(model).__name__
    if "in_channels" not in config:
        return Channels(None, None, 0, learns)
    channels = count("in_channels (of the network's config.json)", config["in_channels"])
    out = config.get("out_channels")
    if out is None:
        out = 2 * channels if config.get("learn_sigma") else channels
    elif axes == "LC":  # which counts those of pixels, not of patches
        out *= count("patch_size (of the network's config.json)", config.get("patch_size", 1)) ** 2
    if out == 2 * channels:
        return Channels(channels, out, 0, True)
    by_hand = (
        "as ddim_ode.Denoiser(lambda x, t, c: model(torch.cat([x, c], 1), t, return_dict=False)[0], "
        "schedule, ...) with cond={'c': ...}"
    )
    if out > channels or (learns and out < channels and out % 2 == 0):
        raise ValueError(
            f"{name} turns {channels} channels into {out}, so others than the state's (a mask, a small "
            f"picture) are among them, or a variance; say which {by_hand}"
        )
    if out < channels:
        return Channels(out, out, channels - out, False)
    # a small picture beside the state, a variance beside the prediction
    if learns and channels % 2 == 0:
        return Channels(channels // 2, out, channels // 2, True)
    # Super-resolution networks are told the noise of the small picture as a class.
    if config.get("class_embed_type") == "timestep" and channels % 2 == 0:
        raise ValueError(
            f"{name} turns {channels} channels into {out}, and by its class_embed_type='timestep' half of "
            "them are a small picture beside the state; then the scheduler's variance_type is learned, or "
            "learned_range, and it does not say so. Give the scheduler it was trained with, or say what "
            f"they are {by_hand}"
        )
    return Channels(channels, out, 0, False)


def shape_of(model: nn.Module, axes: str | None, channels: int | None) -> tuple[int, ...] | None:
    """Of one sample; None unless the network's config.json says all of its axes."""
    config = config_of(model)
    if axes is None or "L" in axes.replace("CL", ""):
        return None

    def size_of(key: str) -> int | None:
        value = config.get(key)
        return None if value is None else count(f"{key} (of the network's config.json)", value)

    frames, patch = (
        size_of("sample_frames") or size_of("video_length") or size_of("num_frames"),
        size_of("patch_size_t") or 1,
    )
    if frames is not None and (ratio := size_of("temporal_compression_ratio")) is not None:
        frames = (frames - 1) // ratio + 1  # it counts those of the decoded video
        frames = -(-frames // patch) * patch  # the last patch is filled up
    sizes = dict(C=channels, F=frames, H=size_of("sample_height"), W=size_of("sample_width"))
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


def needs_of(model: nn.Module, row: Family) -> frozenset[str]:
    """Conditions without a default in the network's call, or with one that its configuration refuses."""
    config = config_of(model)
    of_call = list(inspect.signature(model.forward).parameters.values())[1:]
    needs = {p.name for p in of_call if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD}
    if num_classes_of(model) or config.get("class_embed_type"):
        needs.add("class_labels")
    if config.get("addition_embed_type") == "text_time":
        needs |= {"text_embeds", "time_ids"}
    return frozenset(needs - {row.argument})


def takes_of(model: nn.Module, row: Family) -> frozenset[str] | None:
    """The names that a network's call takes beside x and t, and does not ignore; None for any."""
    of_call = list(inspect.signature(model.forward).parameters.values())[1:]
    if any(p.kind == p.VAR_KEYWORD for p in of_call):
        return None
    config = config_of(model)
    takes = {p.name for p in of_call} - {row.argument, "return_dict"}
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
