"""The best sampler of each package at the same calls: ours, diffusers', k-diffusion's, and of ODE packages.

    python benchmarks/peers.py --quick        # the digits mixture, 64 noises, 5 and 10 calls
    python benchmarks/peers.py --full         # 256 noises, and the shipped model, 5 to 20 calls

RMS error at σ = 0 to a converged solution of the same noises, calls counted; the figure and the table take
the best of each package, the CSV has them all. Diffusion packages run by their defaults on their own
levels; ours are every fixed-step method. torchdiffeq and torchode have no levels of their own: they get
steps equal in t, ln σ or atan σ, or choose them (dopri5, the tightest tolerance that fits), for the states
x and x/ᾱ, and end by the jump from σ_min to x̂₀. As that is a choice of levels that the others do not have,
a second line of ours has one too: nine methods on four grids.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from common import Problem, Row, Run, arguments, installed, load_problem, pick, quiet, rms
from diffusers_schedulers import KARRAS, SCHEDULERS, make, takes_at_most
from drawing import curve, label, legend_below, log_scales, panels
from k_diffusion_sampling import load_k_diffusion_sampling
from matplotlib.figure import Figure
from ode_peers import (
    STATES,
    PeerField,
    TooManyCalls,
    ladder,
    torchdiffeq_dopri5,
    torchdiffeq_fixed,
    torchode_dopri5,
)
from torch import Tensor

import ddim_ode
from ddim_ode.solvers.methods import DEFAULT_METHODS

Sampler = Callable[[int], Tensor | None]  # the end state within so many calls; None: no such number
ANY_GRID = "ddim_ode, any grid"
GRIDS = ("trailing", "quadratic", "log_snr", "karras")
TOLERANCES = tuple(10 ** (1 - k / 4) for k in range(17))
CLOCKS = ("t", "ln sigma", "atan sigma")
MOST = 40  # calls of a batch, after which a tolerance is too tight for these budgets


def ours(problem: Problem) -> Iterator[tuple[str, Sampler]]:
    """Every registered fixed-step method as ``sample`` runs it when told the calls alone."""
    for row in ddim_ode.methods():
        # neither stochastic nor, with a budget of calls, adaptive
        if row["order"] is not None and row["name"] not in ("rk45", "bosh3"):
            yield str(row["name"]), functools.partial(solved, problem, str(row["name"]))


def ours_on_grids(problem: Problem) -> Iterator[tuple[str, Sampler]]:
    """What a user who tries the named grids as well has, as the ODE packages' users try variables."""
    for method, grid in itertools.product(DEFAULT_METHODS, GRIDS):
        yield f"{method} on {grid}", functools.partial(solved, problem, method, grid=grid)


def solved(problem: Problem, method: str, nfe: int, grid: str | None = None) -> Tensor | None:
    with contextlib.suppress(ValueError):  # fewer calls than one step takes
        options = dict(nfe=nfe, grid=grid, cond=problem.cond)
        return ddim_ode.sample(problem.model, problem.x, method, **options).x
    return None


def diffusers_samplers(problem: Problem) -> Iterator[tuple[str, Sampler]]:
    betas = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    model, dtype = problem.model, problem.x.dtype

    def run(nfe: int, name: str, options: dict[str, Any]) -> Tensor | None:
        with contextlib.suppress(ValueError, IndexError):  # some cannot take so few steps
            for steps in range(nfe, 0, -1):
                scheduler = make(name, **betas, **options)
                if takes_at_most(nfe, scheduler, steps):
                    x = problem.x * scheduler.init_noise_sigma
                    for t in scheduler.timesteps:
                        state, level = scheduler.scale_model_input(x, t).to(dtype), float(t) + 1
                        out = model(state, float(model.schedule.sigma(level)), problem.cond)[1]
                        x = scheduler.step(out.to(x.dtype), t, x).prev_sample
                    return x.to(dtype)
        return None

    for name, options in SCHEDULERS:
        if options == KARRAS and name != "DPMSolverMultistep":
            continue
        label = " ".join([name, *(f"{k}={v}" for k, v in options.items())])
        yield label, functools.partial(run, name=name, options=options)


def k_diffusion_samplers(problem: Problem) -> Iterator[tuple[str, Sampler]]:
    sampling = load_k_diffusion_sampling()
    schedule, calls = problem.model.schedule, [0]
    first, last = schedule.sigma_max, schedule.sigma_min

    def denoise(y: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        calls[0] += 1
        level = float(sigma.flatten()[0])
        alpha, _ = schedule.scales(min(level, first))
        return problem.model(y * float(alpha), level, problem.cond)[0]

    def levels(kind: str, n: int) -> Tensor:
        if kind == "karras":
            return sampling.get_sigmas_karras(n, last, first)
        t = torch.linspace(schedule.T, 1, n).double()  # DiscreteSchedule.get_sigmas
        return torch.tensor([*schedule.sigma(t.numpy()), 0.0])

    def run(nfe: int, name: str, kind: str) -> Tensor | None:
        noiseless = dict(eta=0.0) if name.endswith(("ancestral", "sde")) else {}
        if name.endswith("sde"):
            noiseless["noise_sampler"] = lambda *args: 0.0
        for steps in range(nfe, 1, -1):
            sigmas = levels(kind, steps).to(problem.x.dtype)
            sigmas[0] = min(float(sigmas[0]), first)
            calls[0] = 0
            sampler = getattr(sampling, f"sample_{name}")
            x = sampler(denoise, problem.x * sigmas.max(), sigmas, disable=True, **noiseless)
            if calls[0] <= nfe:
                return x
        return None

    names = ("euler", "heun", "dpm_2", "lms", "dpmpp_2s_ancestral", "dpmpp_2m", "dpmpp_3m_sde")
    for name, kind in itertools.product(names, ("karras", "linear")):
        yield f"{name} {kind}", functools.partial(run, name=name, kind=kind)


def torchdiffeq_samplers(problem: Problem) -> Iterator[tuple[str, Sampler]]:
    def run(nfe: int, method: str, per_step: int, clock: str, state: str) -> Tensor | None:
        for steps in range((nfe - 1) // per_step, 0, -1):
            field = PeerField(problem, clock, state, nfe - 1)
            with contextlib.suppress(TooManyCalls):  # Adams starts by Runge–Kutta
                return torchdiffeq_fixed(field, method, steps)[0]
        return None

    methods = dict(euler=1, midpoint=2, rk4=4, explicit_adams=1)
    for method, clock, state in itertools.product(methods, CLOCKS, STATES):
        how = dict(method=method, per_step=methods[method], clock=clock, state=state)
        yield f"{method} in {clock}, {state}", functools.partial(run, **how)
    yield from adaptive(problem, torchdiffeq_dopri5)


def torchode_samplers(problem: Problem) -> Iterator[tuple[str, Sampler]]:
    yield from adaptive(problem, torchode_dopri5)


def adaptive(problem: Problem, solve: Any) -> Iterator[tuple[str, Sampler]]:
    """dopri5 at the tightest of TOLERANCES whose mean calls are within the budget."""

    @functools.cache
    def rungs(clock: str, state: str) -> list[tuple[float, float, Tensor]]:
        return ladder(problem, solve, clock, state, TOLERANCES, MOST)

    def run(nfe: int, clock: str, state: str) -> Tensor | None:
        within = [end for _, calls, end in rungs(clock, state) if calls <= nfe]
        return within[-1] if within else None

    for clock, state in itertools.product(CLOCKS, STATES):
        yield f"dopri5 in {clock}, {state}", functools.partial(run, clock=clock, state=state)


PEERS: dict[str, Callable[[Problem], Iterator[tuple[str, Sampler]]]] = {
    "ddim_ode": ours,
    ANY_GRID: ours_on_grids,
    "diffusers": diffusers_samplers,
    "k-diffusion": k_diffusion_samplers,
    "torchdiffeq": torchdiffeq_samplers,
    "torchode": torchode_samplers,
}


def measure(problem: Problem, budgets: Sequence[int]) -> Iterator[Row]:
    """A row per sampler and budget it can be run at; packages that are not installed are left out."""
    for package, samplers in PEERS.items():
        if not installed(package.partition(",")[0]):
            continue
        with quiet():
            found = list(samplers(problem))
        for name, run in found:
            for nfe in budgets:
                with quiet(), torch.no_grad():
                    end = run(nfe)
                if end is not None and torch.isfinite(end).all():
                    error = rms(end - problem.reference)
                    yield dict(package=package, sampler=name, nfe=nfe, error=error)


def winners(rows: Sequence[Row]) -> dict[str, dict[int, Row]]:
    """{package: {budget: its best row}}; empty where it is not installed, or wants more calls."""
    best: dict[str, dict[int, Row]] = {}
    for row in sorted(rows, key=lambda row: row["error"]):
        best.setdefault(row["package"], {}).setdefault(row["nfe"], row)
    return {package: best.get(package, {}) for package in PEERS}


def report(problem: str, rows: Sequence[Row], budgets: Sequence[int]) -> None:
    """A Markdown table, two lines a package: the error, and by which sampler."""
    print(f"\n| RMS error, {problem} | " + " | ".join(f"{nfe} calls" for nfe in budgets) + " |")
    print("|---|" + "---:|" * len(budgets))
    for package, best in winners(rows).items():
        cells = [f"{best[nfe]['error']:.3g}" if nfe in best else "–" for nfe in budgets]
        names = [best[nfe]["sampler"] if nfe in best else "" for nfe in budgets]
        print(f"| {package} | {' | '.join(cells)} |\n| which is | {' | '.join(names)} |")


def draw(rows: Sequence[Row], budgets: Sequence[int]) -> Figure:
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure, axes = panels(len(problems), width=5.2 * len(problems))
    for axis, problem in zip(axes, problems):
        for package, best in winners(pick(rows, problem=problem)).items():
            nfe = sorted(best)
            curve(axis, package, nfe, [best[n]["error"] for n in nfe])
        log_scales(axis, budgets)
        title = f"{problem}: the best sampler of each package"
        error = "RMS error to the converged end, per entry"
        label(axis, title, "network calls per sample", error)
    legend_below(figure, axes, 3)
    return figure


def main() -> None:
    parser = arguments(__doc__, "digits, 64 noises", "digits, 256 noises; shipped model, 20")
    parser.add_argument("--nfe", type=int, nargs="+", help="budgets of network calls")
    args = parser.parse_args()
    run = Run("peers", args, [*list(PEERS)[2:], "scikit-learn"])
    budgets = args.nfe or ([5, 8, 10, 15, 20] if args.full else [5, 10])
    sizes = {"digits": 256, "fashion-mnist": 20} if args.full else {"digits": 64}
    rows: list[Row] = []
    for name, n in sizes.items():
        found = list(measure(load_problem(name, n), budgets))
        rows += [dict(problem=name, n=n, **row) for row in found]
        report(name, found, budgets)
    run.save(rows, draw(rows, budgets), nfe=budgets, tolerances=TOLERANCES)


if __name__ == "__main__":
    main()
