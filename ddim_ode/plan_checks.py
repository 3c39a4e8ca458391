"""Whether a plan, perhaps from a file of another day, is one for this model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ._warn import warn
from .denoiser import Denoiser
from .seeding import GENERATOR
from .solvers.fit_text import ode_text
from .solvers.plan import Plan

_ANOTHER = "{} was calibrated for {}, and runs with {}, for which its gain was not measured"


def check_plan(plan: Plan, model: Denoiser) -> None:
    """ValueError unless its weights and network times are of the model's schedule."""
    if not isinstance(plan, Plan):
        raise ValueError(f"plan must be a Plan, got {plan!r}; a name goes into method=")
    schedule = model.schedule
    if plan.schedule != schedule.fingerprint:
        again = "compile it again" if plan.fit is None else "calibrate again (ddim_ode.calibrate)"
        raise ValueError(
            f"the plan was made for schedule {plan.schedule} and the model has {schedule.fingerprint} "
            f"({schedule!r}); {again} for this one"
        )
    told = np.array([(node.sigma, node.t) for node in plan.nodes]).reshape(-1, 2)
    times = schedule.time(told[:, 0])
    wrong = np.flatnonzero(~(np.abs(told[:, 1] - times) <= 1e-6 * schedule.T))
    if wrong.size:
        k = wrong[0]
        raise ValueError(
            f"the plan's call {k + 1} is told t={told[k, 1]:g}, but its σ={told[k, 0]:g} is at t="
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

    Empty also where its seeds are of another generator (``seeding.GENERATOR``): they now stand for noises
    that it has not seen.
    """
    first, n, kind = (plan.fit.get(key) if plan.fit else None for key in ("seed", "n", "generator"))
    known = isinstance(first, int) and isinstance(n, int) and kind == GENERATOR
    return range(first, first + n) if known else range(0)  # type: ignore[operator, arg-type]


def warn_of_own_examples(plan: Plan, seeds: range, model_key: str | None) -> None:
    """A plan that is measured on the noises it was fitted to looks better than it is."""
    fitted = fitted_seeds(plan)
    shared = min(fitted.stop, seeds.stop) - max(fitted.start, seeds.start)
    of_model = (plan.fit or {}).get("model_key")
    if shared > 0 and (of_model is None or model_key is None or of_model == model_key):
        warn(
            f"{plan.method} was fitted to noises of seeds {fitted.start} to {fitted.stop - 1}, and "
            f"{shared} of those it is measured on are among them; give seed={fitted.stop}"
        )


def warn_of_another_network(plan: Plan, model: Denoiser, model_key: str | None) -> None:
    """A calibrated plan is fitted to one network, and its gain is that network's.

    model_key: of :func:`ddim_ode.content.model_key`, None where it is not known.
    """
    of_plan = (plan.fit or {}).get("model_key")
    if None not in (of_plan, model_key) and of_plan != model_key and not _ode_differs(plan, model):
        warn(
            f"{plan.method} was calibrated on another model than this one (other weights, settings or "
            f"precision), for which its gain was not measured; ddim_ode.calibrate(model, nfe={plan.nfe}) "
            "fits one"
        )


def warn_of_another_prediction(plan: Plan, model: Denoiser) -> None:
    """As :func:`warn_of_another_ode`, where guidance and all else are the business of a pipeline."""
    if different := _prediction_differs(plan, model):
        warn(_ANOTHER.format(plan.method, *different))


def warn_of_another_ode(plan: Plan, model: Denoiser) -> None:
    """A calibrated plan is fitted, and its gain measured, for one guidance, interval, clip and so on."""
    if different := _ode_differs(plan, model):
        warn(_ANOTHER.format(plan.method, *different))


def _ode_differs(plan: Plan, model: Denoiser) -> tuple[str, str] | None:
    """The two in words, None if they are one."""
    guidance = model.alterations.get("guidance")
    if plan.fit is None or isinstance(guidance, Tensor):  # the device would be waited for
        return None
    if predictions := _prediction_differs(plan, model):
        return predictions
    others = plan.fit.get("alterations")
    fitted = {
        **(others if isinstance(others, Mapping) else {}),
        "guidance": plan.fit.get("guidance"),
    }
    of_plan, of_model = ode_text(fitted), ode_text(model.alterations)
    return None if of_plan == of_model else (of_plan, of_model)


def _prediction_differs(plan: Plan, model: Denoiser) -> tuple[str, str] | None:
    predicted = (plan.fit or {}).get("prediction", model.prediction)
    if predicted == model.prediction:
        return None
    return f"a network that predicts {predicted}", f"one that predicts {model.prediction}"
