"""Work against precision: our adaptive solves beside torchdiffeq, torchode and scipy.

    python benchmarks/work_precision.py --quick        # the digits mixture, 16 samples, under a minute
    python benchmarks/work_precision.py --full         # 64 samples, and the shipped model

For every solver and tolerance: the RMS error of the end point x̂₀ against a converged solution of the
same noises, and the network evaluations per sample it took. Peers solve the same ODE, from the same
σ_max to the same σ_min, in ln σ, σ and atan σ, with state x and x/ᾱ, and pay one evaluation more for the
last jump; the table and the figure give each peer its best variable and state at every error. A torchode
sample is charged for its own steps only, though torchode evaluates the whole batch until the last is done.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from common import Problem, Row, Run, arguments, installed, load_problem, pick, rms
from drawing import curve, label, legend_below, log_scales, panels
from matplotlib.figure import Figure
from ode_peers import ADAPTIVE, CLOCKS, STATES, ladder
from torch import Tensor

import ddim_ode

OURS = ("rk45", "bosh3", "heun", "unipc2", "unipc3")
LEVELS = (1e-2, 1e-3, 1e-5)
MOST_CALLS = {"digits": 700, "model": 400}
MOST_ERROR = 0.5  # beyond that nothing was solved, and the curves say nothing
TITLES = {"digits": "a 64-D mixture with the exact ε"}


def measure(problem: Problem, tolerances: Sequence[float], most: int) -> Iterator[Row]:
    """One row per solver, variable, state and tolerance; estimate: the RMS of sol.error."""

    def row(solver: str, clock: str, state: str, tol: float, end: Tensor, nfe: float) -> dict:
        where = dict(solver=solver, clock=clock, state=state, tolerance=tol)
        return dict(where, error=rms(end - problem.reference), nfe=nfe, estimate=np.nan)

    for method in OURS:
        for tol in tolerances:
            options = dict(rtol=tol, atol=tol, max_nfe=most, dense=False, cond=problem.cond)
            sol = ddim_ode.sample(problem.model, problem.x, method, **options)
            if set(sol.status) != {"success"}:
                break  # a tighter tolerance will not be, either
            calls = float(sol.sample_nfe.mean())
            mine = row(f"ddim_ode {method}", "own", "own", tol, sol.x, calls)
            yield dict(mine, estimate=rms(sol.error))
    for name, solve in ADAPTIVE.items():
        if not installed(name.split()[0]):
            continue
        for clock, state in itertools.product(CLOCKS, STATES):
            for tol, nfe, end in ladder(problem, solve, clock, state, tolerances, most):
                yield row(name, clock, state, tol, end, nfe)


def calls_for(rows: Sequence[Row], level: float) -> float:
    """Evaluations per sample at which one curve reaches an error, log-log between its points."""
    before = None
    for nfe, error in sorted((row["nfe"], row["error"]) for row in rows):
        if error <= level:
            if before is None:
                return nfe
            share = np.log(before[1] / level) / np.log(before[1] / error)
            return float(before[0] * (nfe / before[0]) ** share)
        before = (nfe, error)
    return np.inf


def best(rows: Sequence[Row], solver: str, level: float) -> float:
    """The least over the solver's variables and states."""
    mine = pick(rows, solver=solver)
    curves = {(row["clock"], row["state"]) for row in mine}
    return min(calls_for(pick(mine, clock=clock, state=state), level) for clock, state in curves)


def report(name: str, rows: Sequence[Row]) -> None:
    def line(head: str, values: Sequence[float], form: str) -> None:
        print(f"{head:20}" + "".join(f"{value:{form}}" for value in values))

    needed = {
        solver: np.array([best(rows, solver, level) for level in LEVELS])
        for solver in dict.fromkeys(row["solver"] for row in rows)
    }
    print(f"\n{name}: evaluations per sample for an RMS error, best variable and tolerance")
    line("solver", LEVELS, "9.0e")
    for solver, calls in needed.items():
        line(solver, calls, "9.1f")
    for peer in ("torchdiffeq dopri5", "torchode dopri5"):
        for who, mine in (("rk45", OURS[:1]), ("ours", OURS)):
            calls = np.min([needed[f"ddim_ode {m}"] for m in mine], axis=0)
            with np.errstate(invalid="ignore"):
                if peer in needed:
                    line(f"{who} / {peer.split()[0]}", calls / needed[peer], "9.2f")


def draw(rows: Sequence[Row]) -> Figure:
    """A panel a problem: each solver at its best variable, ours in colour."""
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure, axes = panels(len(problems), width=5.6 * len(problems), height=4.9)
    for axis, problem in zip(axes, problems):
        here = pick(rows, problem=problem)
        for solver in dict.fromkeys(row["solver"] for row in here):
            errors = [row["error"] for row in pick(here, solver=solver)]
            levels = np.geomspace(min(errors), min(max(errors), MOST_ERROR), 24).tolist()
            nfe = [best(here, solver, level) for level in levels]
            curve(axis, solver, nfe, levels, markevery=4)  # interpolated, not measured there
        log_scales(axis, [20, 50, 100, 200, 500], fine=min(r["error"] for r in here) > 1e-4)
        title = TITLES.get(problem, f"the trained {problem} model")
        title += f", {here[0]['n']:.0f} noises" if "n" in here[0] else ""
        error = "RMS error to the converged end, per entry"
        label(axis, title, "network calls per sample", error)
    legend_below(figure, axes, 2 if len(axes) == 1 else 4)
    return figure


def main() -> None:
    sizes = ("digits only, 16 samples", "64 samples, and the shipped model")
    parser = arguments(__doc__, *sizes, redraw=True)
    parser.add_argument("--model", default="fashion-mnist")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    run = Run("work_precision", args, ["scipy", "torchdiffeq", "torchode", "scikit-learn"])
    if args.redraw:
        run.draw(draw(run.rows()))
        return
    if args.full:
        problems = {"digits": (64, np.arange(0.5, 7.6, 1 / 4), MOST_CALLS["digits"])}
        problems[args.model] = (8, np.arange(1.0, 4.6, 0.5), MOST_CALLS["model"])
    else:
        problems = {"digits": (16, np.arange(0.5, 5.6, 1 / 2), MOST_CALLS["digits"])}
    rows: list[Row] = []
    for name, (n, powers, most) in problems.items():
        found = list(measure(load_problem(name, n), (10**-powers).tolist(), most))
        report(name, found)
        rows += [dict(problem=name, n=n, **row) for row in found]
    run.save(rows, draw(rows), most_calls=MOST_CALLS)


if __name__ == "__main__":
    main()
