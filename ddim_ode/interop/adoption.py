"""Another scheduler's configuration, and compiled plans, as the configuration of our scheduler."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._base.checks import refuse, several, shown
from ..solvers.plan import Plan
from ..solvers.profile import Profile
from .config import LIMITING, check_betas, is_flow, limit_of, notes_of, warn_of
from .reading import class_of, read_scheduler

OURS = "DDIMODEScheduler"
OF_METHOD = ("method", "grid", "final", "eta", "start", "sigma_max")
FLOW = (
    "DDIMODEScheduler runs in variance-preserving pipelines, not with flow matching; "
    "ddim_ode.interop.diffusers.load takes such models"
)
_OF_BETAS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    "rescale_betas_zero_snr",
)


def adopted(config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, of any known scheduler, as ours takes it; what is left out gets a warning.

    Args:
        config: A file's, or one in memory. What it says by its class's defaults counts as well.
        options: Of our constructor, which go before what the configuration says.

    Raises:
        ValueError: A scheduler that is not of variance-preserving diffusion, or no configuration.
    """
    check_config(config)
    if is_flow({**config, **options}):
        raise ValueError(FLOW)
    name = config.get("_class_name", OURS)
    ours = "plans" in config or config.get("_class_name") == OURS
    replaced = None if ours else class_of(config)
    if name != OURS:  # a file need not say what its class has by default
        config = {**read_scheduler(config).config, **config}
    check_betas({**config, **options})
    if config.get("schedule") is not None and "schedule" not in options:
        reason = (
            "the configuration has schedule= in place of betas (schedule=None goes back to them)"
        )
        refuse(reason, **{key: options.get(key) for key in _OF_BETAS})
    notes = notes_of(config, limit_of(config))
    lost = [note for note in notes if note.outcome == "left out" and note.key not in options]
    warn_of(lost)
    # keys listed as defaults would go back to ours, whatever they say
    off = {"_use_default_values", *LIMITING.keys() & {note.key for note in lost}}
    config = {key: value for key, value in config.items() if key not in off}
    return config if replaced is None else {**config, "replaces": replaced, "sigma_max": None}


def check_config(config: Any) -> None:
    """ValueError for what is no configuration, such as the scheduler itself."""
    if not isinstance(config, Mapping):
        whose = "its .config" if hasattr(config, "config") else "a scheduler's .config"
        raise ValueError(
            f"config must be a configuration, got {type(config).__name__}; give {whose}"
        )


def trees_of(plans: Plan | Sequence[Plan]) -> list[dict[str, Any]]:
    """The plans as a configuration keeps them; ValueError for two of as many calls."""
    plans = several(plans)
    for plan in plans:
        if not isinstance(plan, Plan):
            raise ValueError(
                f"plans must be Plans, got {shown(plan)}; ddim_ode.Plan.load reads a file"
            )
    calls = sorted(plan.nfe for plan in plans)
    if len(set(calls)) < len(calls):
        raise ValueError(f"plans of {calls} calls: give one plan for each number of calls")
    return [json.loads(plan.to_json()) for plan in plans]


def plan_of(tree: Mapping[str, Any]) -> Plan:
    """A plan of a configuration, checked as a plan's file is."""
    text = _json("plans", tree, "from_plans takes Plans")
    return Plan.from_json(text, "plans in the scheduler's configuration")


def profile_of(tree: Mapping[str, Any]) -> Profile:
    """A profile of a configuration, checked as a profile's file is."""
    text = _json("profile", tree, "from_config takes a Profile")
    return Profile.from_json(text, "the profile in the scheduler's configuration")


def _json(name: str, tree: Any, remedy: str) -> str:
    """The text of a part of a configuration; ValueError for what no configuration holds."""
    try:
        return json.dumps(tree)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(
            f"{name} must be those of a configuration, got {shown(tree)}; DDIMODEScheduler.{remedy}"
        ) from None


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as the configuration's file, which is JSON, keeps them; ValueError for one it cannot."""
    kept = {}
    for name, value in config.items():
        kept[name] = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        try:
            json.dumps(kept[name])
        except (TypeError, ValueError, RecursionError):
            raise ValueError(
                f"{name}={shown(value)} cannot be kept in the scheduler's configuration; give plain "
                "numbers (float(...)), texts, or lists of them"
            ) from None
    return kept
