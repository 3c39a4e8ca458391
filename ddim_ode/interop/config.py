"""What a diffusers scheduler's configuration says, and which of it is the model's.

It mixes three things. The *model's*: how data were noised in training and what the network predicts. The
*sampler's*: where it steps and how, which ``grid=``, ``final=`` and ``method=`` replace. And *limits on
x̂₀*, clipping and thresholding: here ε̂ follows the limited x̂₀, as in DDPM's posterior mean and with
``use_clipped_model_output=True``, since a clipped x̂₀ beside the old ε̂ breaks x = ᾱx̂₀ + β̄ε̂. The ᾱ are
computed in float64, not read from diffusers' float32 products, whose 1 − ᾱ² keeps three digits at t = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import schedules
from .._base.checks import count, flag, named, number, numbers, one_of, shown
from .._base.warn import Caution, warn
from ..denoising.guidance import Limit
from ..schedules.schedule import Array, Schedule
from . import families

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
OURS = "DDIMODEScheduler"
SHIFTED = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")  # by snr_shift_scale
DISCRETE = (
    *("DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"),
    *("DDPMScheduler", "DDPMParallelScheduler", "PNDMScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler"),
    *("DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "DEISMultistepScheduler"),
    *("UniPCMultistepScheduler", "SASolverScheduler", "LCMScheduler", "TCDScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
    *SHIFTED,
    OURS,
)
FLOW = (
    *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
    "DDIMODEFlowScheduler",
)
_COSINE = "CosineDPMSolverMultistepScheduler"
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", _COSINE)
KNOWN = (*DISCRETE, *FLOW, *EDM)
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
LEARNED = ("learned", "learned_range")
UNKNOWN = "this version does not know the key"
_VARIANCES = (*LEARNED, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")

_MODEL = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "rescale_betas_zero_snr", "variance_type", "use_flow_sigmas"),
    *("schedule", "time_offset", "snap", "sigma_data", "snr_shift_scale"),
)
_LEVELS = (
    *("timestep_spacing", "steps_offset", "set_alpha_to_one", "final_sigmas_type"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"),
    *("sigma_min", "sigma_max", "lambda_min_clipped", "interpolation_type", "timestep_type"),
    *("original_inference_steps", "shift", "flow_shift", "shift_terminal", "base_shift"),
    *("max_shift", "base_image_seq_len", "max_image_seq_len", "use_dynamic_shifting"),
    *("time_shift_type", "grid", "final", "sigma_schedule", "rho"),
)
_SOLVER = (
    *("solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final"),
    *("predict_x0", "disable_corrector", "solver_p", "predictor_order", "corrector_order"),
    *("tau_func", "noise_sampler_seed", "skip_prk_steps", "timestep_scaling", "method", "eta"),
    *("plans", "start", "stochastic_sampling", "replaces", "profile"),
)
# The classes that limit x̂₀, by the switch that makes them; the others carry it along, from one class to the
# next, and do nothing of the kind.
LIMITING = dict(
    thresholding=(
        *("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler"),
        *("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler"),
        *("DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"),
        *("SASolverScheduler", "LCMScheduler", "TCDScheduler", "DDIMODEScheduler"),
    ),
    clip_sample=(
        *("DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"),
        *("DDPMScheduler", "DDPMParallelScheduler", "HeunDiscreteScheduler"),
        *("LCMScheduler", "TCDScheduler", "DDIMODEScheduler"),
    ),
)
_OF_LIMITS = ("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value")
CONFIGURED = "configured"
Threshold = float | tuple[float, float]


class InteropWarning(Caution):
    """Something of a foreign configuration that is left out; the message names the key."""


class Note(NamedTuple):
    """What became of a key: ``"honoured"``, ``"replaced"`` (by grid=, method= ...) or ``"left out"``."""

    key: str
    value: Any
    outcome: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}={shown(self.value)}: {self.outcome}, {self.text}"


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """The noise schedule of a scheduler's configuration (with defaults filled in).

    ValueError for a class or a ``beta_schedule`` that is none of the known ones.

    >>> schedule_of(dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02))
    ddim_ode.schedules.ddpm(T=1000, beta_start=0.0001, beta_end=0.02)
    """
    if is_flow(config):
        return schedules.flow()
    if (edm := edm_of(config)) is not None:
        return schedules.ve(edm.sigma_max, edm.sigma_min)
    return _of_betas(config)


class Edm(NamedTuple):
    """What EDM-type networks are shown and told: x/√(σ²+σ_data²), a function of σ; x̂₀ = c_skip·x + c_out·F.

    Attributes:
        sigma_data: Spread of the data.
        sigma_max, sigma_min: The range of levels.
        negated: Whether F is of −v, which diffusers calls "epsilon" here.
        clock: ``"log"``, ¼ ln σ, or ``"atan"``, (2/π) arctan σ.
    """

    sigma_data: float
    sigma_max: float
    sigma_min: float
    negated: bool
    clock: str


def edm_of(config: Mapping[str, Any]) -> Edm | None:
    """How an EDM-type configuration has its network called; None for all others.

    Those are the EDM schedulers', and Euler's with ``timestep_type="continuous"`` and v-prediction, whose
    levels may lie beyond those of its betas; and ours in the place of one of them.
    """
    config = {key: value for key, value in config.items() if value is not None}
    name, prediction = source_of(config), config.get("prediction_type", "epsilon")
    if name in EDM:
        one_of("prediction_type", prediction, ("epsilon", "v_prediction"))
        low, high, data = (
            _positive(config, key, default)
            for key, default in (("sigma_min", 0.002), ("sigma_max", 80.0), ("sigma_data", 0.5))
        )
        clock = "atan" if name == _COSINE else "log"
        return Edm(data, high, low, prediction == "epsilon", clock)
    if not _is_continuous(config):
        return None
    betas = _of_betas(config)
    ends = [
        end if config.get(key) is None else _positive(config, key, end)
        for key, end in (("sigma_max", betas.sigma_max), ("sigma_min", betas.sigma_min))
    ]
    return Edm(1.0, max(ends[0], betas.sigma_max), min(ends[1], betas.sigma_min), False, "log")


def source_of(config: Mapping[str, Any]) -> str | None:
    """The class of a configuration, or the one in whose place ours is."""
    name: str | None = config.get("_class_name")
    return config.get("replaces", name) if name == OURS else name


def placing_of(config: Mapping[str, Any], mu: float | None = None) -> dict[str, float] | None:
    """How a flow scheduler's levels are shifted, for plans to remember; None where that is by a mu."""
    if config.get("use_dynamic_shifting"):
        return None if mu is None else {"mu": float(mu)}
    return {"shift": float(config.get("shift") or config.get("flow_shift") or 1.0)}


def kind_of(config: Mapping[str, Any]) -> str:
    """The kind of noise, a word of :mod:`.families`."""
    if is_flow(config):
        return families.FLOW
    return families.VP if edm_of(config) is None else families.EDM


def _is_continuous(config: Mapping[str, Any]) -> bool:
    kind = one_of(
        "timestep_type", config.get("timestep_type", "discrete"), ("discrete", "continuous")
    )
    # With other predictions it tells the network whole times all the same.
    return kind == "continuous" and config.get("prediction_type") == "v_prediction"


def _of_betas(config: Mapping[str, Any]) -> Schedule:
    written = config.get("schedule")
    if written is not None:
        if not isinstance(written, Mapping) or set(written) != {"name", "params"}:
            raise ValueError(f'schedule={written!r} must be {{"name": ..., "params": {{...}}}}')
        built = schedules.build(written["name"], dict(named("params", written["params"])))
        T = config.get("num_train_timesteps", built.T)
        if built.T > 1 and built.T != T:
            raise ValueError(
                f"num_train_timesteps={T!r}, and schedule={written!r} has T={built.T:g}: give "
                f"num_train_timesteps={built.T:g}"
            )
        return built
    T = count("num_train_timesteps", config["num_train_timesteps"])
    trained, zero_snr = config.get("trained_betas"), _is_on(config, "rescale_betas_zero_snr")
    name = one_of("beta_schedule", config.get("beta_schedule", "linear"), BETAS)
    snr = _snr_shift(config)
    if trained is None and not zero_snr and snr == 1.0:
        if name == "linear":
            return schedules.ddpm(T, config["beta_start"], config["beta_end"])
        if name == "squaredcos_cap_v2":
            return schedules.cosine(T)
    squares = np.cumprod(1 - _betas(name, T, config))
    squares = squares / (snr + (1 - snr) * squares)  # σ² times snr
    if zero_snr:  # Lin et al. 2024, algorithm 1
        root = np.sqrt(squares)
        squares = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return schedules.from_alphas_cumprod(squares)


def _snr_shift(config: Mapping[str, Any]) -> float:
    """What divides the signal-to-noise ratio of the betas; ValueError for a class that ignores it."""
    snr = _positive(config, "snr_shift_scale", 1.0)
    if snr != 1.0 and (name := config.get("_class_name", OURS)) not in (*SHIFTED, OURS):
        raise ValueError(
            f"snr_shift_scale={snr:g} shifts the betas of CogVideoX's schedulers, and {name} carries it "
            "along and does not shift: give the configuration of the scheduler that the network was "
            "trained with, or snr_shift_scale=1"
        )
    return snr


def _betas(name: str, T: int, config: Mapping[str, Any]) -> Array:
    trained = config.get("trained_betas")
    if trained is not None:
        trained = numbers("trained_betas", trained)
        if trained.shape != (T,):
            raise ValueError(
                f"trained_betas has {trained.size} entries and num_train_timesteps={T}; they must agree"
            )
        return trained
    start, end = (number(key, config[key]) for key in ("beta_start", "beta_end"))
    if name == "linear":
        return np.linspace(start, end, T)
    if name == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, T) ** 2
    if name == "sigmoid":
        return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, T)))
    alphas = schedules.cosine(T).alpha_bar(np.arange(T + 1.0)) ** 2
    return 1 - alphas[1:] / alphas[:-1]


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether it interpolates x = (1 − t)x₀ + tε; ValueError for a scheduler class we do not know."""
    name = config.get("_class_name", "DDIMScheduler")
    one_of("scheduler", name, KNOWN)
    return name in FLOW or _is_on(config, "use_flow_sigmas")


def check_betas(config: Mapping[str, Any]) -> None:
    """ValueError unless the configuration of an unnamed scheduler is one of variance-preserving diffusion.

    Those that diffusers has in memory do not name their class.
    """
    if all(config.get(key) is None for key in ("beta_schedule", "trained_betas", "schedule")):
        raise ValueError(
            "the configuration has no beta_schedule, as those of flow matching or consistency models: "
            "take one of a scheduler of variance-preserving diffusion"
        )
    _snr_shift(config)


def prediction_of(config: Mapping[str, Any]) -> str:
    """Our name of the configuration's ``prediction_type``."""
    flow = is_flow(config)
    if config.get("_class_name") in FLOW:
        return "flow"
    if edm_of(config) is not None:
        return "x0"
    written = config.get("prediction_type", "epsilon")
    prediction = PREDICTIONS[one_of("prediction_type", written, PREDICTIONS)]
    if prediction == ("v" if flow else "flow"):
        fitting = "epsilon, sample and " + ("flow_prediction" if flow else "v_prediction")
        raise ValueError(
            f"prediction_type={written!r} does not go with use_flow_sigmas={flow}, where {fitting} do; "
            "give the configuration that the network was trained with"
        )
    return prediction


def learns_variance(config: Mapping[str, Any]) -> bool:
    """Whether the network returns a variance as well, by the configuration's ``variance_type``."""
    kind = config.get("variance_type")
    return kind is not None and one_of("variance_type", kind, _VARIANCES) in LEARNED


def limit_of(
    config: Mapping[str, Any],
    clip: float | str | None = CONFIGURED,
    threshold: Threshold | str | None = CONFIGURED,
) -> Limit:
    """What keeps x̂₀ in range: what the configuration's class does, thresholding first, or as told.

    A value for one takes the place of whatever is configured; None switches that one off.
    """
    for name, value in (("clip", clip), ("threshold", threshold)):
        if isinstance(value, str):
            one_of(name, value, (CONFIGURED,))
    values = [None if isinstance(value, str) else value for value in (clip, threshold)]
    if values != [None, None]:
        return Limit(*values)  # type: ignore[arg-type]
    if threshold is not None and _limits(config, "thresholding"):
        ratio = _positive(config, "dynamic_thresholding_ratio", 0.995, most=1.0)
        return Limit(threshold=(ratio, _positive(config, "sample_max_value", 1.0)))
    if clip is not None and _limits(config, "clip_sample"):
        return Limit(clip=_positive(config, "clip_sample_range", 1.0))
    return Limit()


def _limits(config: Mapping[str, Any], switch: str) -> bool:
    named = config.get("_class_name", OURS)
    return _is_on(config, switch) and named in LIMITING[switch]


def _positive(
    config: Mapping[str, Any], key: str, default: float, most: float = float("inf")
) -> float:
    value = number(key, config.get(key, default))
    if not 0 < value <= most:
        raise ValueError(f"{key}={value:g} must be above 0 and at most {most:g}")
    return value


def _is_on(config: Mapping[str, Any], key: str) -> bool:
    """A switch of the configuration, off where it is not there or null."""
    value = config.get(key)
    return value is not None and flag(key, value)


def notes_of(config: Mapping[str, Any], limit: Limit) -> list[Note]:
    """What becomes of each key, those first that are left out. limit: the one in force."""
    out = []
    for key, value in config.items():
        if key.startswith("_") or key in _OF_LIMITS:
            continue
        if key in (*LIMITING, "invert_sigmas") and not value:
            out.append(Note(key, value, "honoured", "off"))
        elif key in LIMITING:
            out.append(Note(key, value, *_of_limit(key, config, limit)))
        elif key == "invert_sigmas" and config.get("_class_name") in FLOW:
            out.append(Note(key, value, "honoured", "levels are read from noise to data, falling"))
        elif key == "invert_sigmas":
            out.append(Note(key, value, "left out", "this package knows no levels that rise"))
        elif key in _MODEL:
            out.append(Note(key, value, "honoured", "part of the schedule or the prediction"))
        elif key in _LEVELS:
            text = "grid=, final= say where to step; model.grid(steps) are that scheduler's levels"
            out.append(Note(key, value, "replaced", text))
        elif key in _SOLVER:
            out.append(Note(key, value, "replaced", "method= says how to step"))
        else:
            out.append(Note(key, value, "left out", UNKNOWN))
    return sorted(out, key=lambda note: note.outcome != "left out")


def _of_limit(switch: str, config: Mapping[str, Any], limit: Limit) -> tuple[str, str]:
    """What became of a switch that is on, and why."""
    if not _limits(config, switch):
        return "left out", (
            f"{config['_class_name']} has no such setting, and its pipelines do not limit x̂₀ either"
        )
    configured = limit_of(config).to_dict()
    if limit.to_dict() != configured:
        return "replaced", f"clip= and threshold= say: {limit}"
    if switch == "clip_sample" and "threshold" in configured:
        return "replaced", "thresholding goes before it"
    return "honoured", f"{limit}, and ε̂ follows x̂₀"


def warn_of(notes: list[Note]) -> None:
    """An :class:`InteropWarning` for each thing left out."""
    for note in notes:
        if note.outcome == "left out":
            warn(str(note), InteropWarning)
