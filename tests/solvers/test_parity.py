"""Parity with diffusers and k-diffusion, coefficient by coefficient.

A sampler that is linear in its start x_T and the network's answers ε_0, ε_1, ... is one table of numbers:
each state it shows the network, and its end state, over x_T, ε_0, ε_1, .... For every row of EQUAL and
DEPARTURES that table of theirs, run as it ships (float32 levels), is compared with that of our plan on
THEIR grid, each entry relative to the largest of its row.

A Row without a cause is an equality, to 1e-6. One with a cause is a departure of theirs from the formulas
on the label, of the measured size ``off``, and ``cure`` is what makes it disappear: options of theirs,
or a plan of ours that says what they do. Sizes are of one of three things:

    table   the coefficients (inf: not finite, or an exception)
    time    ln σ between the level of the state and the level of the t its network is told
    calls   network calls that change nothing
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from peers import (
    ANY_SIGMA,
    deviation,
    diffusers,
    joined,
    k_diffusion,
    load,
    our_table,
    started,
    their_table,
)

import ddim_ode
from ddim_ode import Plan, schedules
from ddim_ode.solvers.methods import METHODS, Method, get_method
from ddim_ode.solvers.tableau import Singlestep

ROUNDING = 1e-6


def ours(method: str | Method, grid) -> Plan:
    """Our plan there, started with rising order as they all do."""
    ramp = dict(start="ramp") if get_method(method).rk_steps else {}
    return ddim_ode.plan(method, ANY_SIGMA, grid, **ramp)


# -- plans that are no one method of ours ---------------------------------------------------------
def every(k: int, method: str | Method) -> Callable[[Any], Plan]:
    """A one-step method on every k-th level, and the last: singlestep schedulers make stages levels."""
    return lambda grid: ours(method, grid[::k] if len(grid) % k == 1 else [*grid[:-1:k], grid[-1]])


def pairs_then_euler(grid) -> Plan:
    """Singlestep 2 on an even number of levels: the last two steps are of first order."""
    return joined(ours("dpmpp2s", grid[:-2:2]), ours("ddim", grid[-3:]))


def heun_then_adams(grid) -> Plan:
    return started(ours("heun", grid[:2]), ours("ipndm:full_order_final", grid))


def rk4_then_adams(grid) -> Plan:
    rk4 = ddim_ode.plan("rk4", ANY_SIGMA, grid[:4], chart="eps")
    return started(rk4, ours("ipndm:full_order_final", grid))


def dpm_fast(n: int) -> Callable[[Any], Plan]:
    m = n // 3 + 1
    orders = [3] * (m - 2) + [2, 1] if n % 3 == 0 else [3] * (m - 1) + [n % 3]
    names = {1: "ddim", 2: "dpm2", 3: "dpm3"}

    def plan(grid) -> Plan:
        levels = np.geomspace(grid[0], grid[-1], m + 1)
        return joined(*(ours(names[o], levels[i : i + 2]) for i, o in enumerate(orders)))

    return plan


def thirds(name: str, *reads: tuple[int, ...]) -> Method:
    """Three stages evenly spaced in ln σ; reads: what stages 2, 3 and the step interpolate."""
    return Method(name, 3, "data", Singlestep((0, 1 / 3, 2 / 3), ((), *reads)), ruler="log_sigma")


PAPER_3S = thirds("dpmpp3s", (0,), (0, 1), (0, 2))  # DPM-Solver++(3S)
THEIR_3S = thirds("3S midpoint", (0,), (1,), (0, 2))
THEIR_3S_HEUN = thirds("3S heun", (0,), (0, 1), (0, 1, 2))
TWO_S_EXACT = Method(
    "2S heun", 2, "data", Singlestep((0, 1 / 2), ((), (0,), (0, 1))), ruler="log_sigma"
)
EPS_2M = replace(METHODS["deis2"], name="eps 2M", rules=("midpoint",))
EPS_3M = replace(METHODS["deis3"], name="eps 3M", order=2, rules=("half", "midpoint"))


# -- the table --------------------------------------------------------------------------------
class Row(NamedTuple):
    """options: of theirs; N: their set_timesteps. ours: a method (":variant"), or grid -> plan."""

    peer: str
    sampler: str
    options: dict[str, Any]
    ours: Any
    off: float = 0.0
    cause: str = ""
    of: str = "table"
    cure: dict[str, Any] | None = None  # options, and "ours"

    @property
    def name(self) -> str:
        options = (
            f"{key}={'...' if isinstance(v, list) else v}" for key, v in self.options.items()
        )
        return " ".join([self.sampler, *options])

    def theirs(self):
        options = dict(self.options)
        if self.peer == "diffusers":
            return diffusers(self.sampler, options.pop("N"), **options)
        places = options.pop("grid", None)
        if places is None:
            return k_diffusion(self.sampler, (100.0, 0.02), **options)
        sigmas = load("k_diffusion.sampling").get_sigmas_karras(9, 0.02, 100.0).double()
        return k_diffusion(self.sampler, sigmas if places == "to 0" else sigmas[:-1], **options)

    def plan(self, theirs) -> Plan:
        return self.ours(theirs.grid) if callable(self.ours) else ours(self.ours, theirs.grid)

    def cured(self) -> "Row":
        cure = dict(self.cure)
        plan = cure.pop("ours", self.ours)
        of = "time" if self.of == "time" else "table"
        return Row(self.peer, self.sampler, {**self.options, **cure}, plan, of=of)


def d(sampler: str, method: Any, *rest: Any, N: int = 10, **options: Any) -> Row:
    return Row("diffusers", sampler, dict(N=N, **options), method, *rest)


def k(sampler: str, method: Any, *rest: Any, **options: Any) -> Row:
    return Row("k-diffusion", sampler, options, method, *rest)


KARRAS = dict(use_karras_sigmas=True)
LAST = dict(final_sigmas_type="sigma_min")
EVEN = dict(use_exponential_sigmas=True)  # even in ln σ
STEPS = dict(lower_order_final=False)
DDIM = dict(clip_sample=False)
SOLVER, SINGLE = "DPMSolverMultistep", "DPMSolverSinglestep"
UNIPC, DEIS = "UniPCMultistep", "DEISMultistep"
HALF_MID = "dpmpp3m:half+midpoint"


def lowered(method: str, low: bool) -> str:
    return method + low * f"{'+' if ':' in method else ':'}lower_order_final"


def linear_sigma() -> list[float]:
    """β of a schedule whose σ is linear in t up to 20, so that half the time is half the σ."""
    cumprod = 1 / (1 + np.linspace(0.02, 20, 1000) ** 2)
    return (1 - cumprod / np.append(1, cumprod[:-1])).tolist()


def finite_start() -> list[float]:
    """β̄ at ten levels for iPNDM, whose "betas" they are."""
    return [*schedules.ddpm().beta_bar(np.linspace(1000, 1, 10)), 0.0]


EQUAL = [
    d("DDIM", "ddim", **DDIM),
    d("DDIM", "ddim", N=16, **DDIM),  # does not divide 1000
    d("DDIM", "ddim", timestep_spacing="trailing", **DDIM),
    *(
        d(name, method, **options)
        for options in ({}, KARRAS, dict(timestep_spacing="leading"))
        for name, method in (
            ("EulerDiscrete", "ddim"),
            ("HeunDiscrete", "heun"),
            ("KDPM2Discrete", "dpm2"),
            ("LMSDiscrete", "ab4:full_order_final"),
        )
    ),
    d("EulerDiscrete", "ddim", timestep_spacing="trailing", **LAST),
    *(
        d(SOLVER, lowered(method, N < 15 and low), N=N, lower_order_final=low, **order, **options)
        for N in (10, 20)
        for low in (True, False)
        for options in ({}, KARRAS, LAST)
        for method, order in (("dpmpp2m", {}), (HALF_MID, dict(solver_order=3)))
    ),
    d(SOLVER, "dpmpp2m", N=20, euler_at_final=True),
    d(SOLVER, "dpmpp2m:exact", N=20, solver_type="heun"),
    d(SOLVER, EPS_2M, N=20, algorithm_type="dpmsolver", **LAST),
    d(SOLVER, "deis2", N=20, algorithm_type="dpmsolver", solver_type="heun", **LAST),
    d(SOLVER, EPS_3M, N=20, algorithm_type="dpmsolver", solver_order=3, **LAST),
    d(SINGLE, every(2, "dpmpp2s"), N=11, **EVEN),
    d(SINGLE, pairs_then_euler, N=12, lower_order_final=True, **EVEN),
    d(SINGLE, every(2, TWO_S_EXACT), N=11, solver_type="heun", **EVEN),
    d(SINGLE, every(3, THEIR_3S), N=13, solver_order=3, **EVEN),
    d(SINGLE, every(3, THEIR_3S_HEUN), N=13, solver_order=3, solver_type="heun", **EVEN),
    *(
        d(UNIPC, f"unipc{p}:{bh}+lower_order_final", solver_order=p, solver_type=bh, **options)
        for p in (2, 3)
        for bh, options in (("bh1", LAST), ("bh2", LAST), ("bh2", {}), ("bh2", KARRAS))
    ),
    *(
        d(UNIPC, f"unipc{p}:{bh}", N=20, solver_order=p, solver_type=bh, **LAST, **STEPS)
        for p in (2, 3)
        for bh in ("bh1", "bh2")
    ),
    *(d(DEIS, f"deis{p}:lower_order_final", solver_order=p) for p in (2, 3)),
    *(d(DEIS, f"deis{p}", solver_order=p, **STEPS) for p in (2, 3)),
    d(DEIS, "deis2", N=20),
    d("PNDM", heun_then_adams, skip_prk_steps=True, set_alpha_to_one=True),
    d("IPNDM", "ipndm:full_order_final", trained_betas=finite_start()),
    *(
        k(name, method, grid=grid)
        for grid in ("to 0", "to σ_min")
        for name, method in (
            *(("euler", "ddim"), ("euler_ancestral", "ddim"), ("heun", "heun")),
            *(("dpm_2", "dpm2"), ("dpm_2_ancestral", "dpm2"), ("lms", "ab4:full_order_final")),
            *(("dpmpp_2s_ancestral", "dpmpp2s"), ("dpmpp_sde", "dpmpp2s")),
            *(("dpmpp_2m", "dpmpp2m"), ("dpmpp_2m_sde", "dpmpp2m")),
            ("dpmpp_3m_sde", "dpmpp3m:half"),
        )
    ),
    k("dpmpp_2m_sde", "dpmpp2m:exact", grid="to 0", solver_type="heun"),
    *(k("dpm_fast", dpm_fast(n), n=n) for n in (7, 8, 9)),
]

STRIDE = "each step goes T//N down from its t, whatever the next t in its own list is"
HALVED = "D'' without its factor 2, and a second step by the midpoint rule: order 2, not 3"
BH = "B(h) = e^h − 1 in the predictor of order 2 and the corrector of order 1; the last steps of low order"
INFINITE = "B(h) = h, or 1/r = h/Δλ, is infinite in the last step, to σ = 0"
STAGE = "the stage of a step is the level that comes next, not the middle of the step in ln σ"
INNER = (
    "the second stage by the midpoint rule, or the step through three stages: not the paper's 3S"
)
EULER = "euler_at_final with σ_min > 0: a last step of order 1"
ROUNDED = "t is rounded to an integer, σ is not"
BETWEEN = "a level between trained ones is interpolated in ln σ, not in ln ᾱ"
REPEATED = "the last level twice: a call for a step of length 0"
ZERO_OVER_ZERO = "the last level twice, and (e^h − 1)/h of a step of length 0"
PSEUDO = "its Runge–Kutta stages are half-way in t, with the weights of half-way in σ"
INFINITE_START = "starts at ᾱ = 0 and divides by max(ᾱ, 1e-8): x̂₀ of the first call is lost"
FLOAT32 = "float32 differences of ln σ, divided by each other"

ORDER_3, BH1 = dict(solver_order=3), dict(solver_type="bh1")
LINSPACE, LEADING = dict(timestep_spacing="linspace"), dict(timestep_spacing="leading")
NO_KARRAS, NO_EXPONENTIAL = dict(use_karras_sigmas=False), dict(use_exponential_sigmas=False)
THIRD = dict(ours=every(3, THEIR_3S))
ONE, NO_PRK = dict(set_alpha_to_one=True), dict(skip_prk_steps=True)
NO_EULER, SHORT, HALF = dict(euler_at_final=False), LAST | KARRAS, dict(ours="dpmpp3m:half")
FULL = "ipndm:full_order_final"

DEPARTURES = [
    d("DDIM", "ddim", 0.363, STRIDE, "table", LEADING, **DDIM, **LINSPACE),
    d("DDIM", "ddim", 0.0184, STRIDE, "table", LEADING, N=12, timestep_spacing="trailing", **DDIM),
    d("DDIM", "ddim", 1, REPEATED, "calls", ONE, set_alpha_to_one=False, **DDIM),
    d("EulerDiscrete", "ddim", 4.0e-4, BETWEEN, "time", NO_KARRAS, **KARRAS),
    d("HeunDiscrete", "heun", 6.93e-4, BETWEEN, "time", NO_KARRAS, **KARRAS),
    d(SOLVER, "dpmpp2m", 0.0464, ROUNDED, "time", NO_KARRAS, N=20, **KARRAS),
    d(SOLVER, "dpmpp2m", 0.115, ROUNDED, "time", NO_EXPONENTIAL, N=20, **EVEN),
    d(UNIPC, "unipc2:bh2", 0.0134, ROUNDED, "time", NO_KARRAS, **KARRAS),
    d(SINGLE, every(3, THEIR_3S), 0.165, ROUNDED, "time", NO_EXPONENTIAL, N=13, **ORDER_3, **EVEN),
    d(SOLVER, "dpmpp3m", 0.0184, HALVED, "table", dict(ours=HALF_MID), N=20, **ORDER_3),
    d(SOLVER, "dpmpp2m", 2.27e-3, EULER, "table", NO_EULER, N=20, euler_at_final=True, **LAST),
    d(SOLVER, "dpmpp2m", 1, REPEATED, "calls", NO_KARRAS, N=20, **LAST, **KARRAS),
    d(SOLVER, HALF_MID, np.inf, ZERO_OVER_ZERO, "table", NO_KARRAS, N=20, **ORDER_3, **SHORT),
    d(UNIPC, "unipc2", 0.0284, BH, "table", dict(ours="unipc2:bh2+lower_order_final")),
    d(UNIPC, "unipc3", 0.0285, BH, "table", dict(ours="unipc3:bh2+lower_order_final"), **ORDER_3),
    d(UNIPC, "unipc2:bh1+lower_order_final", np.inf, INFINITE, "table", LAST, **BH1),
    d(UNIPC, "unipc2:bh2", np.inf, INFINITE, "table", LAST, **STEPS),
    d(UNIPC, "unipc3:bh2", np.inf, INFINITE, "table", LAST, **ORDER_3, **STEPS),
    d(SINGLE, every(2, "dpmpp2s"), 0.0482, STAGE, "table", EVEN, N=11),
    d(SINGLE, every(3, THEIR_3S), 0.0784, STAGE, "table", EVEN, N=13, **ORDER_3),
    d(SINGLE, every(3, PAPER_3S), 0.0921, INNER, "table", THIRD, N=13, **ORDER_3, **EVEN),
    d(DEIS, "deis2", 1, REPEATED, "calls", NO_KARRAS, N=20, **KARRAS),
    d(DEIS, "deis3", 1.14e-6, FLOAT32, "rounding", dict(double=True), N=20, **ORDER_3),
    d("PNDM", rk4_then_adams, 0.108, PSEUDO, "table", dict(trained_betas=linear_sigma()), **ONE),
    d("PNDM", heun_then_adams, 1, REPEATED, "calls", ONE, set_alpha_to_one=False, **NO_PRK),
    d("IPNDM", FULL, 0.225, INFINITE_START, "table", dict(trained_betas=finite_start())),
    k("dpmpp_3m_sde", "dpmpp3m", 0.0936, HALVED, "table", HALF, grid="to σ_min"),
]


def size(row: Row) -> float:
    """How far theirs is from ours, in what the row measures."""
    theirs = row.theirs()
    if row.of == "time":
        level = theirs.schedule.sigma(np.array(theirs.told) + 1)
        return float(abs(np.log(level / theirs.asked)).max())
    try:
        table = their_table(theirs)
    except RuntimeError:  # a singular matrix
        return np.inf
    if not np.isfinite(table).all():
        return np.inf
    plan = row.plan(theirs)
    table_of_ours = our_table(plan, "v" if row.sampler == "IPNDM" else "eps")
    if row.of == "calls":
        wasted = len(theirs.asked) - plan.nfe
        kept = np.delete(table, np.s_[-1 - wasted : -1], axis=0)
        assert not kept[:, -wasted:].any()
        assert deviation(kept[:, :-wasted], table_of_ours) < ROUNDING
        return wasted
    return deviation(table, table_of_ours)


@pytest.mark.parametrize("row", EQUAL, ids=lambda row: row.name)
def test_their_coefficients_are_ours(row):
    assert size(row) < ROUNDING


@pytest.mark.parametrize("row", DEPARTURES, ids=lambda row: f"{row.of} {row.name}")
def test_a_departure_is_there_and_has_its_cause(row):
    assert size(row) == pytest.approx(row.off, rel=0.5 if row.of == "rounding" else 0.02)
    assert size(row.cured()) < ROUNDING


@pytest.mark.parametrize(
    ("spacing", "steps", "wrong"), [("linspace", 10, 9), ("trailing", 13, 11), ("leading", 13, 0)]
)
def test_ddim_lands_on_wrong_levels(spacing, steps, wrong):
    """The number of STRIDE's wrong transitions, counted by the ᾱ'/ᾱ of each."""
    theirs = diffusers("DDIM", steps, timestep_spacing=spacing, clip_sample=False)
    traced = Plan.trace(theirs.loop, theirs.schedule, time_offset=-1.0)
    right = ddim_ode.plan("ddim", theirs.schedule, theirs.grid)
    off = [abs(a.scale / b.scale - 1) > 1e-4 for a, b in zip(traced.ops[1:], right.ops[1:])]
    assert sum(off) == wrong
