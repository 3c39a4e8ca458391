"""Another scheduler's configuration, and compiled plans, as the configuration of our scheduler."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._base.checks import refuse, several, shown
from ..solvers.plan import Plan
from ..solvers.profile import Profile
from .config import FLOW as EULER
from .config import (
    LIMITING,
    OURS,
    check_betas,
    edm_of,
    is_flow,
    limit_of,
    notes_of,
    warn_of,
)
from .reading import class_of, own_keys, read_scheduler

OF_METHOD = ("method", "grid", "final", "eta", "start", "sigma_max")  # the last but with EDM's kind
OURS_OF_FLOW = "DDIMODEFlowScheduler"
FLOW = (
    "DDIMODEScheduler runs in variance-preserving pipelines, not with flow matching; "
    "DDIMODEFlowScheduler does that (ddim_ode.interop.diffusers)"
)
_NOT_FLOW = (
    "this configuration is {}, and DDIMODEFlowScheduler takes those of FlowMatchEulerDiscreteScheduler, "
    "or of solvers with use_flow_sigmas=True; DDIMODEScheduler takes those of variance-preserving diffusion"
)
# Settings that tell a scheduler whose steps are no plan along one path of levels, and why they are not.
_NO_PLAN = dict(
    stages="it samples in stages of several resolutions, with noise between them",
    stage_range="it samples in stages of several resolutions, with noise between them",
    scale_factors="it samples at several resolutions, one after the other",
    sigma_data="its levels are those of EDM or TrigFlow, and not flow matching's",
)
# Those with use_flow_sigmas.
SOLVERS = (
    *("UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("DEISMultistepScheduler", "SASolverScheduler"),
)
_FLOW_MAP = "FlowMapEulerDiscreteScheduler"
_SWITCHES = (
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_dynamic_shifting"),
    *("invert_sigmas", "stochastic_sampling"),
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
        ValueError: A scheduler that is neither of variance-preserving diffusion nor of EDM's kind, or no
            configuration.
    """
    check_config(config)
    named = {**config, **options}
    unnamed = config.get("beta_schedule") is None and class_of(config) in EULER
    if _is_ours_of_flow(config) or unnamed or is_flow(named):
        raise ValueError(FLOW)
    name = config.get("_class_name", OURS)
    ours = "plans" in config or config.get("_class_name") == OURS
    replaced = None if ours else class_of(config)
    if name != OURS:  # a file need not say what its class has by default
        config = {**read_scheduler(config).config, **config}
    kind = config if replaced is None else {**config, "_class_name": replaced}
    edm = edm_of({**kind, **options})
    if edm is None:
        check_betas({**kind, **options})
        kind = config
    if config.get("schedule") is not None and "schedule" not in options:
        reason = (
            "the configuration has schedule= in place of betas (schedule=None goes back to them)"
        )
        refuse(reason, **{key: options.get(key) for key in _OF_BETAS})
    notes = notes_of(kind, limit_of(kind))
    lost = [note for note in notes if note.outcome == "left out" and note.key not in options]
    warn_of(lost)
    # keys listed as defaults would go back to ours, whatever they say
    off = {"_use_default_values", *LIMITING.keys() & {note.key for note in lost}}
    config = {key: value for key, value in config.items() if key not in off}
    if replaced is None:
        return config
    # of EDM's kind it is the model's
    start = None if edm is None else config.get("sigma_max")
    return {**config, "replaces": replaced, "sigma_max": start}


def of_method(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a scheduler's configuration says of the method that it runs, and compiled plans say in its
    place."""
    named = {"_class_name": class_of(config) or OURS, **config}
    return OF_METHOD if edm_of(named) is None else OF_METHOD[:-1]


def adopted_flow(config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of flow matching, of any known scheduler, as DDIMODEFlowScheduler takes it.

    Args:
        config: A file's, or one in memory. That of a solver with ``use_flow_sigmas`` (UniPC, DPM-Solver) is
            kept whole as ``levels_of``, since its own arithmetic places the levels.
        options: Of our constructor, which go before what the configuration says.

    Raises:
        ValueError: A scheduler of another kind of diffusion, or whose steps no plan can be.
    """
    check_config(config)
    name = config.get("_class_name") or class_of(config)
    config = {key: value for key, value in config.items() if key != "_use_default_values"}
    reasons = {key: text for key, text in _NO_PLAN.items() if config.get(key)}
    if name == _FLOW_MAP:
        reasons["_class_name"] = "each of its calls is told the time to arrive at as well"
    for key, reason in reasons.items():
        raise ValueError(
            f"{key}={shown(config[key])}: no plan is such a sampler, since {reason}; leave the pipeline "
            "its own scheduler"
        )
    if _is_ours_of_flow(config):
        return config
    if name == "FlowMatchLCMScheduler" or "upscale_mode" in config:
        return {"stochastic_sampling": True, **config}
    if name in EULER:
        return config
    if config.get("use_flow_sigmas") is not True:
        raise ValueError(_NOT_FLOW.format(f"of {name}" if name else "of no flow scheduler"))
    if name not in SOLVERS:
        raise ValueError(f"{name}: not one of the solvers of flow matching, {', '.join(SOLVERS)}")
    theirs = read_scheduler({**config, "_class_name": name})
    whole = {key: theirs.config[key] for key in own_keys(str(name)) & theirs.config.keys()}
    return {
        **config,
        **{key: bool(whole.get(key)) for key in _SWITCHES},
        "shift": whole.get("flow_shift", 1.0),
        "levels_of": {"_class_name": name, **plain(whole)},
    }


def _is_ours_of_flow(config: Mapping[str, Any]) -> bool:
    return config.get("_class_name") == OURS_OF_FLOW or "levels_of" in config


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
    text = _json("plans", tree, "from_plans(...), which takes Plans")
    return Plan.from_json(text, "plans in the scheduler's configuration")


def profile_of(tree: Mapping[str, Any]) -> Profile:
    """A profile of a configuration, checked as a profile's file is."""
    text = _json(
        "profile", tree, "from_config(..., profile=Profile.load(FILE)), which takes a Profile"
    )
    return Profile.from_json(text, "the profile in the scheduler's configuration")


def _json(name: str, tree: Any, remedy: str) -> str:
    """The text of a part of a configuration; ValueError for what no configuration holds."""
    try:
        if isinstance(tree, Mapping):
            return json.dumps(tree)
    except (TypeError, ValueError, RecursionError):
        pass
    raise ValueError(
        f"{name} must be as a configuration keeps it, a mapping of what its file says, got {shown(tree)}; "
        f"make the scheduler by {remedy}"
    )


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
