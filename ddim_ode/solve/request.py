"""What a solve was asked for: its options, checked once, and the kind of solve that they make it.

The kind is decided in :func:`kind_of`, and which options a kind takes is the table :data:`TAKES`. Nobody
else decides either: not the directions (``sample``, ``encode``, ``decode``), nor the command line.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import numpy.typing as npt
from torch import Tensor

from .._base.checks import exclusive, flag, function, number, one_of, refuse
from .._base.tensors import check_state
from ..denoising.denoiser import Denoiser
from ..denoising.inputs import check_model, check_rank
from ..denoising.problem import Problem
from ..denoising.seeding import check_seeds
from ..grids import FINALS, check_grid, upward
from ..solvers.embedded import adaptive_by_itself, adaptive_names, can_adapt
from ..solvers.methods import Method, get_method
from ..solvers.plan import Plan
from ..solvers.profile import Profile
from ..solvers.stochastic import Eta
from . import gradients
from .inpainting import Known
from .levels import Levels
from .loop import Progress
from .plan_checks import check_plan

if TYPE_CHECKING:
    from typing_extensions import Self

F = TypeVar("F", bound=Callable[..., Any])


class SolveOptions(TypedDict, total=False):
    """The options of a solve, by name; :func:`ddim_ode.sample` says what each does."""

    # where it steps
    steps: int | None
    nfe: int | None
    grid: str | npt.ArrayLike | Profile | None
    timesteps: npt.ArrayLike | None
    plan: Plan | None
    sigma_max: float | None
    sigma_min: float | None
    final: str | None
    variant: str | None
    start: str | None
    chart: str | None
    # noise
    eta: Eta | None
    noise_std: npt.ArrayLike | None
    noise: str | None
    seeds: Sequence[int] | None
    # tolerance
    rtol: float | None
    atol: float | None
    max_nfe: int | None
    error_norm: str | None
    dense: bool | None
    # conditions
    cond: Mapping[str, Tensor] | None
    shared: Mapping[str, Any] | None
    known: Known | None
    # watching
    progress: bool
    callback: Callable[[Progress], None] | None
    record: str
    on_nan: str
    differentiable: bool | str


# The defaults that are not None.
DEFAULTS: dict[str, Any] = dict(
    progress=False, record="none", on_nan="report", differentiable=False
)

PLACING = ("steps", "nfe", "grid", "timesteps", "sigma_max", "sigma_min", "final")
COMPILING = ("variant", "start", "chart")
_NOISE = ("eta", "noise_std")
WATCHING = ("progress", "callback", "record", "on_nan", "differentiable")
_TOLERANCE = ("rtol", "atol", "max_nfe", "error_norm", "dense")
_ALWAYS = ("plan", "seeds", "cond", "shared", "progress", "differentiable")

# What each kind of solve takes. A plan is given as it is, a fixed one is compiled for the request.
TAKES: dict[str, frozenset[str]] = {
    kind: frozenset((*_ALWAYS, *options))
    for kind, options in {
        "plan": ("noise", "callback", "record", "on_nan", "known"),
        "fixed": (*PLACING, *COMPILING, *_NOISE, "noise", "callback", "record", "on_nan", "known"),
        "adaptive": (*PLACING, "variant", *_TOLERANCE, "record", "on_nan"),
        "external": (*PLACING, "rtol", "atol", "max_nfe"),
        "reversible": (*PLACING, "chart"),
    }.items()
}
REVERSIBLE = "reversible"
OF_SCIPY = ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")
_ONE_WAY = ("seeds", "known")  # options that only sample has
_RISING = ("encode", "log_likelihood")  # from data to latents
_ONLY = {  # callers that have a few of the options
    "plan_for": (*PLACING, *COMPILING, *_NOISE),
    "log_likelihood": (
        *("steps", "grid", "sigma_max", "sigma_min", "rtol", "atol", "max_nfe"),
        *("seeds", "cond", "shared", "progress"),
    ),
}

NOT_ADAPTIVE = (
    "a fixed plan has no tolerance or budget of calls (adaptive are "
    f"{', '.join(adaptive_names())}, torchdiffeq:dopri5 and scipy:RK45)"
)
_REASONS = {
    "plan": "plan= already fixes how and where to step",
    "adaptive": "{} solves adaptively, in its own chart and without noise (steps= makes it a fixed plan)",
    "external": "{} solves the ODE by its own steps",
    "reversible": "{} has one way to step, and keeps no trajectory",
}


def kind_of(
    method: Method | str | None,
    plan: Plan | None = None,
    *,
    placed: bool = False,
    tolerant: bool = False,
    variant: str | None = None,
) -> str:
    """Which kind of solve a request is, a key of :data:`TAKES`.

    Args:
        method: As :func:`ddim_ode.sample` takes it; None is ``"ddim"``.
        plan: A compiled one, if it is given.
        placed: Whether the caller says where to step, and not only how far.
        tolerant: Whether the caller gives a tolerance or a budget of calls a sample.
        variant: Of the method.

    Raises:
        ValueError: An unknown method, or both a tolerance and levels to step on.
    """
    if plan is not None:
        return "plan"
    if isinstance(method, str) and method.split(":")[0] == REVERSIBLE:
        return "reversible"
    if is_external(method):
        return "external"
    spec = get_method("ddim" if method is None else method, variant)
    able = can_adapt(spec)
    if tolerant and placed and able:
        raise ValueError(
            f"{spec.name} with rtol=, atol= or max_nfe= chooses its own steps: drop steps, grid and "
            "timesteps, or drop rtol, atol and max_nfe for a fixed plan"
        )
    by_itself = tolerant or (adaptive_by_itself(spec) and not placed)
    return "adaptive" if able and by_itself else "fixed"


def is_external(method: object) -> bool:
    """Whether the method is another package's."""
    return isinstance(method, str) and method.startswith(("torchdiffeq:", "scipy:"))


def is_fixed_step(method: str) -> bool:
    """Whether another package's method steps on a grid; ValueError for an unknown one."""
    package, name = method.split(":", 1)
    if package == "scipy":
        one_of("scipy solver", name, OF_SCIPY)
        return False
    from torchdiffeq._impl.odeint import SOLVERS
    from torchdiffeq._impl.solvers import FixedGridODESolver

    return issubclass(SOLVERS[one_of("torchdiffeq solver", name, SOLVERS)], FixedGridODESolver)


def chooses_steps(method: str, placed: bool, tolerant: bool = False) -> bool:
    """Whether the method of that name chooses its own steps; ValueError for a name that is none."""
    kind = kind_of(method, placed=placed, tolerant=tolerant and not placed)
    return kind == "adaptive" or (kind == "external" and not is_fixed_step(method))


@dataclass(frozen=True)
class Request:
    """One solve: a model under conditions, a state, and what to do with it, checked.

    Attributes:
        problem: The model and its conditions.
        x: The state (B, *) at the first level.
        kind: A key of :data:`TAKES`.
        method: As the caller gave it.
        spec: The method, of kinds "fixed" and "adaptive".
        levels: Where it steps.
        options: All of :class:`SolveOptions`, None (or the default) where they were not given.
        two_way: Between levels > 0, as ``encode`` and ``decode`` go.
        partner: The second state of the method ``"reversible"``.
    """

    problem: Problem
    x: Tensor
    kind: str
    method: Method | str | None
    spec: Method | None
    levels: Levels
    options: Mapping[str, Any]
    two_way: bool
    partner: Tensor | None = None

    @classmethod
    def of(
        cls,
        model: Denoiser,
        x: Tensor,
        method: Method | str | None,
        options: Mapping[str, Any],
        *,
        caller: str = "sample",
        partner: Tensor | None = None,
    ) -> Self:
        """The request that a caller's arguments make.

        Args:
            model: What is solved.
            x: (B, *) in network space, at the first level.
            method: None is ``"ddim"``.
            options: Of :class:`SolveOptions`.
            caller: ``"sample"`` lands on data; ``"encode"`` and ``"log_likelihood"`` go up, and
                ``"decode"`` down, between levels > 0.
            partner: The second state of the method ``"reversible"``.

        Raises:
            TypeError: An option that is none.
            ValueError: One that is out of range, or that this kind of solve has no use for.
        """
        check_names(caller, options)
        check_model(model, limited=caller not in _RISING)
        x, two_way = check_state(x), caller != "sample"
        check_rank(model, x)
        values = {**dict.fromkeys(SolveOptions.__annotations__), **DEFAULTS, **options}
        _check_watching(values)
        plan, known = values["plan"], values["known"]
        if values["seeds"] is not None:
            values["seeds"] = check_seeds(values["seeds"], x.shape[0])
        if known is not None and not isinstance(known, Known):
            raise ValueError(f"known must be a ddim_ode.Known, got {type(known).__name__}")
        exclusive(plan=plan, method=method)
        if plan is not None:
            check_plan(plan, model)
        exclusive(nfe=values["nfe"], noise_std=values["noise_std"])
        placing = {name: values[name] for name in PLACING if plan is None}
        if two_way:
            _check_two_way(values)
            placing["final"] = _end_of(values["grid"], model)
        levels = Levels(model, **placing, rising=caller in _RISING)
        kind = kind_of(
            method,
            plan,
            placed=levels.placed,
            tolerant=any(values[name] is not None for name in ("rtol", "atol", "max_nfe")),
            variant=values["variant"],
        )
        spec = None
        if kind in ("fixed", "adaptive") or (kind == "reversible" and not two_way):
            spec = get_method("ddim" if method is None else method, values["variant"])
        problem = Problem(model, values["cond"], values["shared"])
        request = cls(problem, x, kind, method, spec, levels, values, two_way, partner)
        request._check(caller)
        return request

    def _check(self, caller: str) -> None:
        """ValueError for the first option that this kind does not take."""
        options = self.options
        gradients.check_mode(options["differentiable"], caller, *gradients.WHERE)
        if self.kind != "reversible":
            refuse("only method='reversible' has a second state", partner=self.partner)
        for name, value in options.items():
            unset = value is None or (name in DEFAULTS and value == DEFAULTS[name])
            if not unset and name not in TAKES[self.kind]:
                fixed = self.kind == "fixed" or (self.kind == "plan" and name in _TOLERANCE)
                reason = self._why_fixed() if fixed else _REASONS[self.kind].format(self)
                refuse(reason, **{name: value})
        if self.kind in ("adaptive", "external"):
            exclusive(nfe=self.levels.nfe, max_nfe=options["max_nfe"])
        self._check_gradient(options["differentiable"])

    def _why_fixed(self) -> str:
        """Why it takes no tolerance."""
        spec = self.spec
        if spec is None or not can_adapt(replace(spec, rules=())):
            return NOT_ADAPTIVE
        return (
            f"{spec.name} departs from exact integration by rules={spec.rules}, and so cannot adapt"
        )

    def _check_gradient(self, differentiable: Any) -> None:
        package = str(self.method).split(":")[0] if self.kind == "external" else None
        if package == "scipy" and differentiable:
            raise ValueError(
                f"{self.method} has no gradient; use a method of ours, or torchdiffeq:dopri5"
            )
        able = ["checkpoint"] * (self.kind in ("plan", "fixed"))
        able += ["adjoint"] * (package == "torchdiffeq")
        who = f"an adaptive {self}" if self.kind == "adaptive" else str(self)
        gradients.check_mode(differentiable, who, *able)

    def __str__(self) -> str:
        """Who solves it, in words."""
        if self.kind == "plan":
            return f"the fixed plan of {self.options['plan'].method}"
        if self.spec is None:
            return str(self.method)
        return self.spec.name if self.kind == "adaptive" else f"the fixed plan of {self.spec.name}"

    @property
    def model(self) -> Denoiser:
        """What is solved, without its conditions."""
        return self.problem.model

    def grid_name(self, steps: int) -> str | None:
        """What the grid of so many steps is called; None for given levels or a given plan."""
        return None if self.spec is None else self.levels.label(steps, self.spec.nfe_per_step)

    @property
    def rising(self) -> bool:
        """Whether it goes up, from data to latents."""
        return self.levels.rising


def names_of(caller: str) -> list[str]:
    """The options of ``sample``, ``encode``, ``decode``, ``plan_for`` or ``log_likelihood``."""
    names = list(SolveOptions.__annotations__)
    if caller in _ONLY:
        return [name for name in names if name in _ONLY[caller]]
    return [name for name in names if caller == "sample" or name not in _ONE_WAY]


def check_names(caller: str, options: Mapping[str, Any]) -> None:
    """TypeError, as Python's own, for a keyword that is no option."""
    known = names_of(caller)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}{hint}")


def lists_options(function: F) -> F:
    """Put the options in a function's signature, in place of ``**options``, for help() and completion."""
    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    hints = {
        name: getattr(h, "__forward_arg__", h) for name, h in SolveOptions.__annotations__.items()
    }
    options = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS.get(name), annotation=hints[name]
        )
        for name in names_of(function.__name__)
    ]
    function.__signature__ = signature.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    return function


def _check_watching(options: Mapping[str, Any]) -> None:
    flag("progress", options["progress"])
    if options["callback"] is not None:
        function("callback", options["callback"])
    if options["noise"] is not None:
        one_of("noise", options["noise"], ("path", "step"))
    one_of("record", options["record"], ("none", "x", "x0"))
    one_of("on_nan", options["on_nan"], ("report", "hold"))


def _check_two_way(options: Mapping[str, Any]) -> None:
    """ValueError for what cannot be undone."""
    final, eta = options["final"], options["eta"]
    if final is not None and one_of("final", final, FINALS) != "sigma_min":
        raise ValueError(
            f"final={final!r}: the jump to σ=0 cannot be undone, so both directions end at a level > 0; "
            "drop final, or use sample"
        )
    eta = eta if eta is None or callable(eta) else number("eta", eta) or None
    refuse(
        "step noise cannot be undone",
        eta=eta,
        noise_std=options["noise_std"],
        noise=options["noise"],
    )


def _end_of(grid: Any, model: Denoiser) -> str | None:
    """``final`` of a way between levels > 0; ValueError for a grid that does not end at one."""
    if grid is None or isinstance(grid, (str, Profile)):
        return "sigma_min"
    upward(check_grid(grid, model.schedule))
    return None
