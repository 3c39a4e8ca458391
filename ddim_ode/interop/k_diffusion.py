"""k-diffusion's calling convention, both ways: our solvers as its samplers, its models as denoisers.

k-diffusion's models answer with x̂₀ at x = x₀ + σ ε, and its samplers are functions ``f(model, x, sigmas,
extra_args=, callback=, disable=)``. ComfyUI (``KSAMPLER(f)``), Forge and sd-webui take such a function as a
sampler. The package itself is not needed for either way.

ComfyUI's flow-matching models (FLUX, SD3, Wan; its class ``CONST``) keep to the convention with another x,
x = (1 − s) x₀ + s ε at a "sigma" s in [0, 1]. Those are solved on ``schedules.flow()``. A model that
ComfyUI hands over is recognised by its ``model_sampling``; any other needs
``schedule=ddim_ode.schedules.flow()``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .._base.checks import described, exclusive, function, host_numbers, number, refuse, shown
from .._base.tensors import check_state
from .._base.warn import warn
from ..denoising.denoiser import Denoiser
from ..denoising.problem import Problem
from ..schedules import flow, ve
from ..schedules.schedule import Array, Schedule, check_schedule
from ..solve.loop import Run
from ..solvers.compilation import plan as compile_plan
from ..solvers.methods import Method, get_method
from ..solvers.plan import Plan
from ..solvers.profile import Profile

Sampler = Callable[..., Tensor]
_CLOSE = 1e-3  # of a level: other tables of the same levels differ by less


def sampler(
    solver: str | Method | Plan | Profile = "unipc2",
    *,
    method: str | Method | None = None,
    variant: str | None = None,
    start: str | None = None,
    chart: str | None = None,
    schedule: Schedule | None = None,
) -> Sampler:
    """A sampler with k-diffusion's calling convention.

    Args:
        solver: A method, which steps on the sigmas that it is given; a plan, which steps on its own levels
            and refuses sigmas that begin or end elsewhere; or a profile, which makes the grid for as many
            steps between the same ends.
        method: Of a profile (default ``"unipc2"``).
        variant, start, chart: Of a method, as in :func:`ddim_ode.plan`.
        schedule: What the sigmas are levels of (default: a profile's own, and for a method
            ``schedules.ve``, or ``schedules.flow()`` for ComfyUI's flow models). A plan needs the one that
            it was made for, unless that is one of these.

    Returns:
        ``f(model, x, sigmas, extra_args=None, callback=None, disable=None)``: the state at the last sigma,
        like x. ``model(x, sigma (B,), **extra_args)`` gives x̂₀; ``callback`` gets a dictionary with x, i,
        sigma, sigma_hat and denoised at the beginning of each step. The state is float32 or wider inside.

    Raises:
        ValueError: A method or plan with step noise; in a call, sigmas that do not fall, or that the plan
            does not fit.

    >>> import torch
    >>> from ddim_ode.interop.k_diffusion import sampler
    >>> sample = sampler("heun")
    >>> model = lambda x, sigma: x / (1 + sigma[:, None] ** 2)  # of normal data
    >>> x = sample(model, 10 * torch.ones(1, 2), torch.tensor([10.0, 1.0, 0.0]), disable=True)
    >>> x.shape
    torch.Size([1, 2])
    """
    if schedule is not None:
        check_schedule(schedule)
    if isinstance(solver, Profile):
        spec, own = get_method(method or "unipc2", variant), solver.schedule
        if schedule is not None and schedule.fingerprint != own.fingerprint:
            raise ValueError(f"schedule={schedule!r} is not the profile's, {own!r}; drop schedule=")
        schedule = own
    else:
        refuse("only a profile is given a method beside it", method=method)
        if isinstance(solver, Plan):
            refuse("a plan is compiled already", variant=variant, start=start, chart=chart)
        else:
            spec = get_method(solver, variant)
    stochastic = solver.is_stochastic if isinstance(solver, Plan) else spec.adds_noise
    if stochastic:
        raise ValueError(
            f"{solver if isinstance(solver, Plan) else spec.name!r} adds noise at every step, which has no "
            "seeds here; take a deterministic one, or a sampler of k-diffusion's own"
        )

    def levels_of(sigmas: Any, noise: Schedule) -> Plan:
        own = _levels(sigmas, noise)
        if isinstance(solver, Plan):
            return _fitting(solver, own, noise)
        if isinstance(solver, Profile):
            own = _profiled(solver, spec, own)
        return compile_plan(spec, noise, own, start=start, chart=chart)

    @torch.no_grad()
    def sample(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        function("model", model)
        noise = schedule or _schedule_of(model, solver, sigmas)
        plan = levels_of(sigmas, noise)
        return _run(plan, model, noise, x, dict(extra_args or {}), callback, disable)

    sample.__name__ = f"sample_{solver.method if isinstance(solver, Plan) else spec.name}"
    return sample


def denoiser(
    wrapped: Callable[..., Tensor],
    *,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    schedule: Schedule | None = None,
    **options: Any,
) -> Denoiser:
    """A model with k-diffusion's convention as a :class:`ddim_ode.Denoiser`.

    Args:
        wrapped: ``wrapped(x, sigma (B,), **cond)`` gives x̂₀ at x = x₀ + σ ε: one of k-diffusion's
            wrappers (``CompVisDenoiser``, ``VDenoiser``, ``layers.Denoiser``, ...), or a function.
        sigma_max, sigma_min: Its range (default: its own attributes of these names; without them, 80 and
            0.002).
        schedule: Another than ``schedules.ve`` of that range: ``schedules.flow()`` for a model of x =
            (1 − s) x₀ + s ε at s in [0, 1].
        **options: Of :class:`ddim_ode.Denoiser`, such as ``shape`` and ``guidance``.

    Returns:
        The denoiser, with prediction ``"x0"``. Its conditions are the model's ``extra_args``: tensors with
        a row for each sample as ``cond=``, others as ``shared=``.

    >>> from ddim_ode.interop.k_diffusion import denoiser
    >>> denoiser(lambda x, sigma: 0 * x, sigma_max=14.6)
    Denoiser(x0-network, ddim_ode.schedules.ve(sigma_max=14.6, sigma_min=0.002))
    """
    function("wrapped", wrapped)
    exclusive(schedule=schedule, sigma_max=sigma_max)
    exclusive(schedule=schedule, sigma_min=sigma_min)
    if schedule is None:
        ends = []
        for name, value, default in (
            ("sigma_max", sigma_max, 80.0),
            ("sigma_min", sigma_min, 0.002),
        ):
            own = getattr(wrapped, name, default) if value is None else value
            ends.append(number(name, own.item() if isinstance(own, Tensor) else own))
        schedule = ve(*ends)
    else:
        check_schedule(schedule)
        if schedule.family == "vp":
            raise ValueError(
                f"schedule={schedule!r} has another x than k-diffusion's models; give schedules.flow(), or "
                "sigma_max= and sigma_min="
            )
    return Denoiser(wrapped, schedule, "x0", **options)


def _schedule_of(model: Any, solver: Any, sigmas: Any) -> Schedule:
    """What the sigmas are levels of, where the caller does not say."""
    if _is_flow(model):
        return flow()
    if isinstance(solver, Plan):
        known = [flow(), ve(80.0)]
        if np.isfinite(solver.grid[0]):
            known.append(ve(solver.grid[0]))
        for schedule in known:
            if schedule.fingerprint == solver.schedule:
                return schedule
        raise ValueError(
            f"plan {solver.method!r} was made for a schedule that it does not hold; give schedule=, "
            "that of the model it was made for"
        )
    top = float(host_numbers("sigmas", sigmas).max(initial=0.0))
    if not 0 < top < np.inf:
        raise ValueError(f"sigmas={shown(sigmas)} must fall from a finite level > 0")
    return ve(top, min(0.002, top / 2))


def _is_flow(model: Any) -> bool:
    """Whether it is a flow-matching model that ComfyUI wraps, perhaps several times."""
    for _ in range(8):
        sampling = getattr(model, "model_sampling", None)
        if sampling is not None:
            return any(kind.__name__ == "CONST" for kind in type(sampling).__mro__)
        model = getattr(model, "inner_model", None)
    return False


def _levels(sigmas: Any, schedule: Schedule) -> Array:
    levels = host_numbers("sigmas", sigmas).astype(np.float64)
    if levels.ndim != 1 or levels.size < 2:
        raise ValueError(
            f"sigmas must be a 1-D tensor of two levels or more, got {described(sigmas)}"
        )
    return np.asarray(schedule.sigma(levels)) if schedule.family == "flow" else levels


def _profiled(profile: Profile, spec: Method, levels: Array) -> Array:
    lands = levels[-1] == 0
    top = float(levels[0])
    if profile.sigma_max < top <= profile.sigma_max * (1 + _CLOSE):
        top = profile.sigma_max
    return profile.grid(
        levels.size - 1,
        method=spec,
        final="zero" if lands else "sigma_min",
        sigma_max=top,
        sigma_min=None if lands else float(levels[-1]),
    )


def _fitting(plan: Plan, levels: Array, schedule: Schedule) -> Plan:
    """The plan; ValueError unless it is of the schedule, and begins and ends where the sigmas do."""
    plan.check(schedule)
    for place, own, wanted in (
        ("begin", plan.grid[0], levels[0]),
        ("end", plan.grid[-1], levels[-1]),
    ):
        if own != wanted and not abs(own - wanted) <= _CLOSE * own:
            raise ValueError(
                f"sigmas {place} at σ={wanted:g}, and plan {plan.method!r} at {own:g}, on its own "
                f"levels; give sigmas that {place} there, or a method"
            )
    if plan.steps != levels.size - 1:
        warn(f"plan {plan.method!r} takes its own {plan.steps} steps, not {levels.size - 1}")
    return plan


def _run(
    plan: Plan,
    model: Callable[..., Tensor],
    schedule: Schedule,
    x: Tensor,
    extra: dict[str, Any],
    callback: Callable[[dict[str, Any]], Any] | None,
    disable: bool | None,
) -> Tensor:
    """The plan on a model of that convention: x (B, *) from its first level to its last."""
    if callback is not None:
        function("callback", callback)
    flows = schedule.family == "flow"
    answer: list[Tensor] = []

    def size(sigma: float) -> float:
        """ᾱ, by which the model's x is larger than ours."""
        return 1.0 if flows else float(schedule.scales(sigma)[0])

    def net(y: Tensor, level: Tensor) -> Tensor:
        denoised = model(y if scale == 1.0 else y / scale, level, **extra)
        answer[:] = [denoised]
        return denoised

    state = check_state(x) * size(plan.grid[0])
    ours = Denoiser(
        net,
        schedule,
        "x0",
        time=None if flows else lambda t, sigma: sigma,
        dtype=None if state.dtype == x.dtype else x.dtype,
    )
    scale = 1.0
    evaluate = Problem(ours).bind(plan.nodes, state)
    run = Run(plan, state, estimate=False)
    begins = _beginnings(plan)
    levels = schedule.time(np.array(plan.grid)) if flows else np.array(plan.grid)
    shown_levels = torch.tensor(levels).to(x.device, state.dtype)
    with tqdm(total=plan.steps, disable=disable) as bar:
        y = run.advance()
        while y is not None:
            k = run.calls
            scale = size(plan.nodes[k].sigma)
            vector = evaluate(y, k)
            if (step := begins.get(k)) is not None:
                if callback is not None:
                    level = shown_levels[step]
                    told = dict(x=(y / scale).to(x.dtype), i=step, sigma=level, sigma_hat=level)
                    callback(dict(told, denoised=answer[0]))
                bar.update()
            y = run.advance(vector)
    return (run.x / size(plan.grid[-1])).to(x.dtype)


def _beginnings(plan: Plan) -> dict[int, int]:
    """The call that each step begins with: {call: step}. A step's state may be corrected once its call is
    made."""
    begins, calls, steps = {}, 0, 0
    for i, op in enumerate(plan.ops):
        steps += op.commit
        if op.node is None:
            continue
        following = plan.ops[i + 1]
        corrected = following.commit and following.node is None and i + 2 < len(plan.ops)
        if op.commit or calls == 0:
            begins[calls] = steps
        elif corrected:
            begins[calls] = steps + 1
        calls += 1
    return begins
