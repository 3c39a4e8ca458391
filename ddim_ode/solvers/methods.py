"""Methods: what a solver is, before a grid is known. A method is data.

A one-step method is a chart and its stages: a tableau, or nodes of the quadrature primitive. A multistep
method is a chart, a ruler and the number of past velocities it interpolates (quadrature.py), with or
without a corrector. The registry is the whole list; VARIANTS are the departures from it in published code.

Order counts global error: a method of order p errs by O(hᵖ) over a fixed interval. With rising order
("ramp") step j of a multistep method has a local error of O(h^{j+1}), one order more with a corrector:
order 2 (3) globally. A Runge–Kutta start ("rk") takes the first steps until that is enough for the label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from .._base.checks import exclusive, one_of, shown
from .method import Method as Method
from .plan import Plan
from .renoising import Churn, Restart
from .rows import Table
from .stochastic import er_tau
from .tableau import BOSH3, DOPRI5, HALF, HEUN, MIDPOINT, RK4, THIRDS

# Of each family the members that do well somewhere on the shipped model (benchmarks/which_solver.py).
DEFAULT_METHODS = (
    *("ddim", "heun", "midpoint", "ipndm", "deis3", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3"),
)
CALIBRATED = "calibrated"  # what the line of fitted plans is called, one plan per budget
STARTS = ("ramp", "rk")
RK_START_FROM = 15  # steps; with fewer, the calls of the start are better spent on steps


_RK_BY_ORDER = {2: "midpoint", 3: "bosh3", 4: "rk4", 5: "rk45"}

# Runge–Kutta methods without a published chart of their own run in "flow". On the shipped model, 11 to
# 41 calls on four grids (benchmarks/charts.py), it stayed within 1.4 × (midpoint) and 1.9 × (rk4) of
# the best chart everywhere, where "eps" was off by up to 3.4 × and 92 × and "log" by over 1,000 ×. It
# is also finite at σ = inf.
_ADAMS = "Adams–Bashforth with exact variable-step weights; Hairer, Nørsett, Wanner I, III.5"
_DEIS = "Zhang & Chen 2023, arXiv:2204.13902; in ln σ"
_DPM = "Lu et al. 2022, arXiv:2206.00927"
_DPMPP = "Lu et al. 2022, arXiv:2211.01095"
_UNIPC = "Zhao et al. 2023, arXiv:2302.04867; solved exactly, so that B(h) cancels"
_SEEDS = "Gonzalez et al. 2023, arXiv:2305.14267; in x̂₀"
_SA = "Xue et al. 2023, arXiv:2309.05019; η = τ"
_ER = "Cui et al. 2023, arXiv:2309.06169; its fifth noise scale, constant on a step"
_K_SDE = "Lu et al. 2022, arXiv:2211.01095; as in k-diffusion, 2023"
# Weak and strong orders of one velocity, and of more: what a velocity feels of its own step's noise is
# missing from weak order three on, whatever is interpolated (tests/solvers/test_stochastic_orders.py). A
# plan that has it is in tests/solvers/test_weak_order_three.py.
_ONE: dict[str, Any] = dict(weak=1, strong=1)
_TWO: dict[str, Any] = dict(weak=2, strong=1)
_NOISY: dict[str, Any] = dict(chart="data", ruler="log_sigma", eta=1.0, **_TWO)
_UNI: dict[str, Any] = dict(
    chart="data", ruler="log_sigma", corrector=True, reference=_UNIPC, **_TWO
)

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("ddim", 1, eta=0.0, reference="Song, Meng, Ermon 2021, arXiv:2010.02502", **_ONE),
        Method("ddpm", None, eta=1.0, reference="Ho, Jain, Abbeel 2020, arXiv:2006.11239", **_ONE),
        Method("heun", 2, stages=HEUN, reference="Karras et al. 2022, arXiv:2206.00364, alg. 1"),
        Method("midpoint", 2, "flow", MIDPOINT, reference="Runge 1895"),
        Method("bosh3", 3, "flow", BOSH3, reference="Bogacki & Shampine 1989"),
        Method("rk4", 4, "flow", RK4, reference="Kutta 1901"),
        Method("rk45", 5, "flow", DOPRI5, reference="Dormand & Prince 1980"),
        Method("dpm2", 2, stages=HALF, ruler="log_sigma", reference=_DPM),
        Method("dpm3", 3, stages=THIRDS, ruler="log_sigma", reference=_DPM),
        Method("dpmpp2s", 2, "data", HALF, ruler="log_sigma", reference=_DPMPP, **_TWO),
        Method("ab2", 2, past=2, ruler="sigma", reference=_ADAMS),
        Method("ab3", 3, past=3, ruler="sigma", reference=_ADAMS),
        Method("ab4", 4, past=4, ruler="sigma", reference=_ADAMS),
        Method(
            "ipndm", 2, past=4, rules=("adams",), reference="Zhang & Chen 2023; Liu et al. 2022"
        ),
        Method("deis2", 2, past=2, ruler="log_sigma", reference=_DEIS),
        Method("deis3", 3, past=3, ruler="log_sigma", reference=_DEIS),
        Method(
            "dpmpp2m",
            2,
            "data",
            past=2,
            ruler="log_sigma",
            rules=("midpoint",),
            reference=_DPMPP,
            **_TWO,
        ),
        Method("dpmpp3m", 3, "data", past=3, ruler="log_sigma", reference=_DPMPP, **_TWO),
        Method("unipc2", 3, past=2, **_UNI),
        Method("unipc3", 4, past=3, **_UNI),
        Method(
            "euler_ancestral",
            None,
            "data",
            eta=1.0,
            reference="Crowson 2022, k-diffusion; DDPM's step",
            **_ONE,
        ),
        Method("dpmpp_sde", None, stages=HALF, reference=_K_SDE, **_NOISY),
        Method("dpmpp2m_sde", None, past=2, rules=("midpoint",), reference=_K_SDE, **_NOISY),
        Method("dpmpp3m_sde", None, past=3, reference=_K_SDE, **_NOISY),
        Method("seeds2", None, stages=HALF, reference=_SEEDS, **_NOISY),
        Method("seeds3", None, stages=THIRDS, reference=_SEEDS, **_NOISY),
        Method("sa2", None, past=2, corrector=True, reference=_SA, **_NOISY),
        Method("sa3", None, past=3, corrector=True, reference=_SA, **_NOISY),
        Method("er_sde2", None, past=2, reference=_ER, **{**_NOISY, "eta": er_tau}),
        Method("er_sde3", None, past=3, reference=_ER, **{**_NOISY, "eta": er_tau}),
        Method(
            "edm_stochastic",
            None,
            stages=HEUN,
            rises=Churn(),
            weak=2,
            reference="Karras et al. 2022, arXiv:2206.00364, alg. 2",
        ),
        Method(
            "restart",
            None,
            stages=HEUN,
            rises=Restart(),
            weak=2,
            reference="Xu et al. 2023, arXiv:2306.14878",
        ),
    )
}


def rk_start(method: Method) -> Method:
    """The one-step method that ``start="rk"`` uses: of one order less, which suffices."""
    order = method.order or 1
    if order - 1 not in _RK_BY_ORDER:
        raise ValueError(
            f"method {method.name!r}: there is no Runge–Kutta start for order {order}, only up to "
            f"{max(_RK_BY_ORDER) + 1}; use start='ramp'"
        )
    return METHODS[_RK_BY_ORDER[order - 1]]


class Variant(NamedTuple):
    """A published departure from a method: the fields it changes, in which methods, and its cost."""

    changes: Mapping[str, Any]
    of: tuple[str, ...]
    note: str


_MULTISTEP = tuple(m.name for m in METHODS.values() if m.multistep and m.order)
_IN_SIGMA = ("ab2", "ab3", "ab4", "ipndm")

VARIANTS: dict[str, Variant] = {
    "exact": Variant(
        dict(rules=()), ("dpmpp2m",), "2M integrated exactly: the same order, other constants"
    ),
    "t": Variant(
        dict(ruler="t"),
        ("deis2", "deis3"),
        "interpolated in schedule time; order 2 at the kinks of a discrete schedule",
    ),
    "half": Variant(
        dict(rules=("half",), order=2),
        ("dpmpp3m",),
        "D'' without its factor 2, as in the official code and the large libraries: order 2, not 3",
    ),
    "midpoint": Variant(
        dict(rules=("midpoint",)),
        ("dpmpp3m",),
        "its second step is dpmpp2m's: no change of order",
    ),
    "bh1": Variant(
        dict(rules=("bh1",)),
        ("unipc2", "unipc3"),
        "B(h)=h in the predictor of order 2 and the corrector of order 1: no change of order",
    ),
    "bh2": Variant(
        dict(rules=("midpoint",)),
        ("unipc2", "unipc3"),
        "B(h)=e^h−1 in those places, the official default: no change of order",
    ),
    "pece": Variant(
        dict(corrector="evaluated"),
        ("sa2", "sa3"),
        "evaluates once more at the corrected state: twice the calls, the same weak order",
    ),
    "lower_order_final": Variant(
        dict(final="lower_order", order=2),
        _MULTISTEP,
        "the last steps fall to order 2 and 1: order 2 globally, steadier at a handful of steps",
    ),
    "full_order_final": Variant(
        dict(final="full_order"),
        _IN_SIGMA,
        "lands on σ=0 by its own formula, as LMS and iPNDM codes do, not on x̂₀: extrapolates",
    ),
}


def get_method(method: str | Method, variant: str | None = None) -> Method:
    """The method itself, or the registered one of that name.

    Args:
        method: A name, perhaps with a variant: ``"dpmpp3m:half"``.
        variant: A key of VARIANTS, or several joined by "+".

    Raises:
        ValueError: An unknown name, or a variant of another method; it lists the valid ones.
    """
    if isinstance(method, Plan):
        raise ValueError(f"method={shown(method)} is a compiled plan; give it as plan=")
    if isinstance(method, str) and method.split(":")[0] == "reversible":
        raise ValueError(
            f"method {shown(method)} goes both ways: ddim_ode.encode and decode take it"
        )
    if isinstance(method, str) and ":" in method:
        exclusive(**{f"{shown(method)}": method, "variant=": variant})
        method, variant = method.split(":", 1)
    if callable(method):
        raise ValueError(
            f"method={getattr(method, '__qualname__', method)!r} is code, and a method is a name or a "
            "Method; a sampler of your own becomes a plan: plan = ddim_ode.Plan.trace(loop, schedule) with "
            "loop(net, x), and then plan=plan; help(ddim_ode.Plan.trace) says how"
        )
    spec = method if isinstance(method, Method) else METHODS[one_of("method", method, METHODS)]
    if variant is None:
        return spec
    if spec.name not in METHODS or METHODS[spec.name] != spec:
        raise ValueError(
            f"variant={shown(variant)} is for registered methods; build yours with dataclasses.replace"
        )
    allowed = [name for name, v in VARIANTS.items() if spec.name in v.of]
    if not allowed:
        raise ValueError(f"method {spec.name!r} has no variants; drop variant={shown(variant)}")
    changes: dict[str, Any] = {}
    for name in str(variant).split("+"):
        new = dict(VARIANTS[one_of(f"variant of {spec.name!r}", name, allowed)].changes)
        if "rules" in new and "rules" in changes:
            new["rules"] = (*changes["rules"], *new["rules"])
        elif clash := {key for key in {*new} & {*changes} if new[key] != changes[key]}:
            raise ValueError(
                f"variant={shown(variant)}: two of its parts change {min(clash)!r}; drop one"
            )
        changes.update(new)
    return replace(spec, name=f"{spec.name}:{variant}", **changes)


def methods() -> Table:
    """The registry as a table.

    Returns:
        A list of rows, which prints as a table: name, order with exact starts, order as run on many steps
            and from a ramp, nfe per step, memory (vectors a step reads), chart, ruler, weak and strong
            order with step noise, reference.

    >>> import ddim_ode
    >>> [row["name"] for row in ddim_ode.methods() if row["order"] == 4]
    ['rk4', 'ab4', 'unipc3']
    """
    return Table(
        dict(
            name=m.name,
            order=m.order,
            order_as_run=m.order_as_run,
            order_from_ramp=m.order_from_ramp,
            nfe_per_step=m.nfe_per_step,
            memory=m.past + bool(m.corrector) if m.multistep else m.nfe_per_step,
            chart=m.chart,
            ruler=m.ruler,
            weak_order=m.weak,
            strong_order=m.strong,
            reference=m.reference,
        )
        for m in METHODS.values()
    )
