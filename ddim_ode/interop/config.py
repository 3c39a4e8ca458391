"""What a diffusers scheduler's configuration says, and which of it is the model's.

Such a file mixes three things. The *model's*: how data were noised in training and what the network
predicts, which a :class:`ddim_ode.Denoiser` takes over. The *sampler's*: where it steps and how,
which ``grid=``, ``final=`` and ``method=`` replace (and :mod:`.placement` gives back on request). And
*departures from the ODE*: clipping and thresholding of x̂₀. A clipped x̂₀ beside the old ε̂ breaks
x = ᾱx̂₀ + β̄ε̂, so no ODE has these steps; they are named in a warning and left out.

The ᾱ are computed in float64 from the same formulas, not read from diffusers' float32 products, whose
1 − ᾱ² keeps three digits at t = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import schedules
from .._checks import count, flag, named, number, numbers, one_of
from .._warn import Caution, warn
from ..schedule import Array, Schedule

PREDICTIONS = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
DISCRETE = (
    *("DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"),
    *("DDPMScheduler", "DDPMParallelScheduler", "PNDMScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler"),
    *("DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "DEISMultistepScheduler"),
    *("UniPCMultistepScheduler", "SASolverScheduler", "LCMScheduler", "TCDScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler"),
    "DDIMODEScheduler",
)
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
LEARNED = ("learned", "learned_range")
UNKNOWN = "this version does not know the key"
_VARIANCES = (*LEARNED, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")

_MODEL = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "rescale_betas_zero_snr", "variance_type", "use_flow_sigmas"),
    *("schedule", "time_offset", "snap"),
)
_LEVELS = (
    *("timestep_spacing", "steps_offset", "set_alpha_to_one", "final_sigmas_type"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"),
    *("sigma_min", "sigma_max", "lambda_min_clipped", "interpolation_type", "timestep_type"),
    *("original_inference_steps", "shift", "flow_shift", "shift_terminal", "base_shift"),
    *("max_shift", "base_image_seq_len", "max_image_seq_len", "use_dynamic_shifting"),
    *("time_shift_type", "grid", "final"),
)
_SOLVER = (
    *("solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final"),
    *("predict_x0", "disable_corrector", "solver_p", "predictor_order", "corrector_order"),
    *("tau_func", "noise_sampler_seed", "skip_prk_steps", "timestep_scaling", "method", "eta"),
    *("plans", "start", "stochastic_sampling"),
)
# What no ODE has, with its reason, and the settings of it.
_DEPARTURES = dict(
    clip_sample="it is not the ODE (x̂₀ clipped beside the old ε̂)",
    thresholding="it is not the ODE (x̂₀ squeezed by a quantile of itself beside the old ε̂)",
    invert_sigmas="this package knows no levels that rise",
)
_OF_DEPARTURES = ("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value")


class InteropWarning(Caution):
    """Something of a foreign configuration that is left out; the message names the key."""


class Note(NamedTuple):
    """What became of a key: ``"honoured"``, ``"replaced"`` (by grid=, method= ...) or ``"left out"``."""

    key: str
    value: Any
    outcome: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}={self.value!r}: {self.outcome}, {self.text}"


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """The noise schedule of a scheduler's configuration (with defaults filled in).

    ValueError for a class or a ``beta_schedule`` that is none of the known ones.

    >>> schedule_of(dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02))
    ddim_ode.schedules.ddpm(T=1000, beta_start=0.0001, beta_end=0.02)
    """
    if is_flow(config):
        return schedules.flow()
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
    _check_times(config)
    T = count("num_train_timesteps", config["num_train_timesteps"])
    trained, zero_snr = config.get("trained_betas"), _is_on(config, "rescale_betas_zero_snr")
    name = one_of("beta_schedule", config.get("beta_schedule", "linear"), BETAS)
    if trained is None and not zero_snr:
        if name == "linear":
            return schedules.ddpm(T, config["beta_start"], config["beta_end"])
        if name == "squaredcos_cap_v2":
            return schedules.cosine(T)
    squares = np.cumprod(1 - _betas(name, T, config))
    if zero_snr:  # Lin et al. 2024, algorithm 1
        root = np.sqrt(squares)
        squares = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return schedules.from_alphas_cumprod(squares)


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
    one_of("scheduler", name, (*DISCRETE, *FLOW))
    return name in FLOW or _is_on(config, "use_flow_sigmas")


def _check_times(config: Mapping[str, Any]) -> None:
    if config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            f"timestep_type={config['timestep_type']!r} tells the network ¼ ln σ and not t; build it with "
            "ddim_ode.Denoiser(net, schedule, time=lambda t, sigma: 0.25 * numpy.log(sigma))"
        )


def check_betas(config: Mapping[str, Any]) -> None:
    """ValueError unless the configuration of an unnamed scheduler is one of variance-preserving diffusion.

    Those that diffusers has in memory do not name their class.
    """
    if all(config.get(key) is None for key in ("beta_schedule", "trained_betas", "schedule")):
        raise ValueError(
            "the configuration has no beta_schedule, as those of flow matching, EDM or consistency models: "
            "take one of a scheduler of variance-preserving diffusion"
        )
    _check_times(config)
    if config.get("snr_shift_scale", 1.0) != 1.0:
        raise ValueError(
            f"snr_shift_scale={config['snr_shift_scale']!r} shifts the schedule of its betas, which this "
            "version does not know; give trained_betas, those after the shift"
        )


def prediction_of(config: Mapping[str, Any]) -> str:
    """Our name of the configuration's ``prediction_type``."""
    flow = is_flow(config)
    if config.get("_class_name") in FLOW:
        return "flow"
    given = config.get("prediction_type", "epsilon")
    found = PREDICTIONS[one_of("prediction_type", given, PREDICTIONS)]
    if found == ("v" if flow else "flow"):
        fitting = "epsilon, sample and " + ("flow_prediction" if flow else "v_prediction")
        raise ValueError(
            f"prediction_type={given!r} does not go with use_flow_sigmas={flow}, where {fitting} do; give "
            "the configuration that the network was trained with"
        )
    return found


def learns_variance(config: Mapping[str, Any]) -> bool:
    """Whether the network returns a variance as well, by the configuration's ``variance_type``."""
    given = config.get("variance_type")
    return given is not None and one_of("variance_type", given, _VARIANCES) in LEARNED


def _is_on(config: Mapping[str, Any], key: str) -> bool:
    """A switch of the configuration, off where it is not there or null."""
    value = config.get(key)
    return value is not None and flag(key, value)


def notes_of(config: Mapping[str, Any]) -> list[Note]:
    """What becomes of each key, those first that are left out."""
    out = []
    for key, value in config.items():
        if key.startswith("_") or key in _OF_DEPARTURES:
            continue
        if key in _DEPARTURES:
            outcome, text = ("left out", _DEPARTURES[key]) if value else ("honoured", "off")
            out.append(Note(key, value, outcome, text))
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


def warn_of(notes: list[Note]) -> None:
    """An :class:`InteropWarning` for each thing left out."""
    for note in notes:
        if note.outcome == "left out":
            warn(str(note), InteropWarning)
