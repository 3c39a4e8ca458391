"""Checks that a plan, perhaps from a file, fits this model, and warnings where it was fitted to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from .._base.warn import warn
from ..denoising.denoiser import Denoiser
from ..denoising.guidance import plain
from ..denoising.seeding import GENERATOR
from ..solvers.fit import ode_text
from ..solvers.plan import Plan
from ..solvers.profile import Profile
from . import model_key as content
from .answers import Answers

# By model, the profiles, and the keys in calibrated plans, that it was held against.
_PROFILED: WeakKeyDictionary[Denoiser, set[int]] = WeakKeyDictionary()
_SEEN: WeakKeyDictionary[Denoiser, set[str]] = WeakKeyDictionary()
_ANOTHER = "{} was calibrated for {}, and runs with {}, for which its gain was not measured"


def check_plan(plan: Plan, model: Denoiser) -> None:
    """ValueError unless the plan's weights and network times are those of the model's schedule."""
    if not isinstance(plan, Plan):
        remedy = (
            "ddim_ode.Plan.trace makes one of it" if callable(plan) else "a name goes into method="
        )
        raise ValueError(f"plan must be a Plan, got {plan!r}; {remedy}")
    schedule = model.schedule
    if plan.schedule != schedule.fingerprint:
        again = "compile it again" if plan.fit is None else "calibrate again (ddim_ode.calibrate)"
        raise ValueError(
            f"the plan was made for schedule {plan.schedule} and the model has {schedule.fingerprint} "
            f"({schedule!r}); {again} for this one"
        )
    model.start(f"the first level of {plan.method}", max(plan.grid[0], plan.grid[-1]))
    calls = np.array([(node.sigma, node.t) for node in plan.nodes]).reshape(-1, 2)
    times = schedule.time(calls[:, 0])
    wrong = np.flatnonzero(~(np.abs(calls[:, 1] - times) <= 1e-6 * times))
    if wrong.size:
        k = wrong[0]
        raise ValueError(
            f"the plan's call {k + 1} is told t={calls[k, 1]:g}, but its σ={calls[k, 0]:g} is at t="
            f"{times[k]:g} in {schedule!r}: the plan was altered; compile or calibrate it again"
        )
    levels = np.array([sigma for sigma in plan.grid if 0 < sigma < np.inf])
    off = np.flatnonzero(np.abs(model.snapped(levels) - levels) > 1e-9 * levels)
    if off.size:
        raise ValueError(
            f"the model has snap=True, and the plan's level σ={levels[off[0]]:g} is not a trained one: "
            "compile the plan on trained levels (schedule.levels), or use snap=False"
        )


def fitted_seeds(plan: Plan) -> range:
    """The seeds of the noises that a calibrated plan was fitted to and judged by; empty for others.

    Empty also for seeds of another generator (``seeding.GENERATOR``), which stand for noises that it has
    not seen.
    """
    first, n, kind = (plan.fit.get(key) if plan.fit else None for key in ("seed", "n", "generator"))
    known = isinstance(first, int) and isinstance(n, int) and kind == GENERATOR
    return range(first, first + n) if known else range(0)  # type: ignore[operator, arg-type]


def warn_of_own_examples(plan: Plan, seeds: range, model_key: str | None) -> None:
    """Warn if a plan is measured on noises that it was fitted to, where it looks better than it is."""
    of_model = (plan.fit or {}).get("model_key")
    if of_model is None or model_key is None or of_model == model_key:
        _warn_of_shared(f"{plan.method} was fitted to", fitted_seeds(plan), "it is", seeds)


def _warn_of_shared(chosen: str, own: range, they: str, seeds: range) -> None:
    shared = min(own.stop, seeds.stop) - max(own.start, seeds.start)
    if shared > 0:
        warn(
            f"{chosen} noises of seeds {own.start} to {own.stop - 1}, and {shared} of those {they} "
            f"measured on are among them; give seed={own.stop}"
        )


def warn_of_another_network(
    plan: Plan, model: Denoiser, model_key: str | None, answers: Answers | None
) -> None:
    """Warn if a calibrated plan was fitted to another network, since its gain was measured on that one.

    Args:
        plan: The plan.
        model: What it runs on.
        model_key: Of :func:`ddim_ode.solve.model_key.model_key`, None where it is not known.
        answers: Of :func:`ddim_ode.solve.answers.ask`, None where they were not asked.
    """
    fit = plan.fit or {}
    trust(plan, model)
    another = None not in (_fitted_key(plan), model_key) and _fitted_key(plan) != model_key
    before = Answers.of_dict(fit.get("answers"))
    if before is not None and answers is not None and before.question == answers.question:
        another |= answers.differ(before)
    if another and not _ode_differs(plan, model):
        warn(
            f"{plan.method} was calibrated on another model than this one (other weights, settings or "
            "precision), for which its gain was not measured, or by a version of ddim_ode with other keys; "
            f"ddim_ode.calibrate(model, nfe={plan.nfe}) fits one"
        )


def trust(plan: Plan, model: Denoiser) -> None:
    """Warn no more of that plan on that network."""
    if (of_plan := _fitted_key(plan)) is not None:
        _SEEN.setdefault(model, set()).add(of_plan)


def check_network(plan: Plan, model: Denoiser) -> None:
    """:func:`warn_of_another_network` where no key is known yet; once for each model and plan, since a key
    is a hash of all weights.
    """
    if (of_plan := _fitted_key(plan)) is not None and of_plan not in _SEEN.get(model, ()):
        warn_of_another_network(plan, model, content.model_key(model), None)


def _fitted_key(plan: Plan) -> str | None:
    """Of the model that a calibrated plan is fitted to, where it says so."""
    key = (plan.fit or {}).get("model_key")
    return key if isinstance(key, str) else None


def profiled_seeds(profile: Profile) -> range:
    """The seeds of the noises that a profile's grids were chosen on; empty for another generator's."""
    about = profile.about
    n = about["n"] if about["generator"] == GENERATOR else 0
    return range(about["seed"], about["seed"] + n)


def warn_of_own_noises(profile: Profile, seeds: range) -> None:
    """A profile that is measured on the noises its grids were chosen on looks better than it is."""
    own = profiled_seeds(profile)
    _warn_of_shared("the profile's grids were chosen on", own, "they are", seeds)


def warn_of_another_profile(profile: Profile, model: Denoiser) -> None:
    """Warns, once for each model, of a profile of another network, or of one that was asked otherwise."""
    about = profile.about
    seen = _PROFILED.setdefault(model, set())
    if id(profile) in seen:
        return
    seen.add(id(profile))
    differs = about["prediction"] != model.prediction
    differs |= _ode(about["alterations"], False) != _ode(plain_alterations(model), False)
    if not differs and about["model_key"] is not None:
        differs = content.model_key(model) not in (None, about["model_key"])
    if differs:
        warn(
            "the profile is of another model than this one (other weights, settings or guidance), and its "
            "grids need not suit this one; ddim_ode.profile(model) makes its own"
        )


def plain_alterations(model: Denoiser) -> dict[str, Any]:
    """What makes its ODE another than the network's own, as plain data."""
    return {k: plain(v) for k, v in model.alterations.items()}


def warn_of_another_ode(plan: Plan, model: Denoiser, piped: bool = False) -> None:
    """Warn if a calibrated plan was fitted for another guidance, interval, clip and so on.

    piped: Whether guidance is the business of a pipeline, and not known here.
    """
    if different := _ode_differs(plan, model, piped):
        warn(_ANOTHER.format(plan.method, *different))


def _ode_differs(plan: Plan, model: Denoiser, piped: bool = False) -> tuple[str, str] | None:
    """The two in words, None if they are one."""
    guidance = model.alterations.get("guidance")
    if plan.fit is None or isinstance(guidance, Tensor):  # the device would be waited for
        return None
    predicted = plan.fit.get("prediction", model.prediction)
    if predicted != model.prediction:
        return f"a network that predicts {predicted}", f"one that predicts {model.prediction}"
    others = plan.fit.get("alterations")
    fitted = {
        "guidance": plan.fit.get("guidance"),
        **(others if isinstance(others, Mapping) else {}),
    }
    of_plan, of_model = (_ode(altered, piped) for altered in (fitted, model.alterations))
    return None if of_plan == of_model else (of_plan, of_model)


def _ode(alterations: Mapping[str, Any], piped: bool) -> str:
    known = {k: v for k, v in alterations.items() if v is not None}
    if not piped:
        return ode_text({"guidance": 1.0, **known})
    limits = {k: v for k, v in known.items() if not k.startswith("guidance")}
    return ode_text(limits) or "no limit on x̂₀"
