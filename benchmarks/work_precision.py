"""Work against precision: our adaptive solves beside torchdiffeq, torchode and scipy.

    python benchmarks/work_precision.py --quick        # the digits mixture, 16 samples, under a minute
    python benchmarks/work_precision.py --full         # 64 samples, and the shipped model

For every solver and tolerance: the RMS error of the end point x̂₀ against a converged solution of the
same noises, and the network evaluations per sample it took. Peers solve the same ODE, from the same
σ_max to the same σ_min, in ln σ, σ and atan σ, with state x and x/ᾱ, and pay one evaluation more for the
last jump; the table and the diagram give each peer its best variable and state at every error. A torchode
sample is charged for its own steps only, though torchode evaluates the whole batch until the last is done.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from common import (
    Problem,
    Row,
    Run,
    arguments,
    curve,
    installed,
    label,
    legend_below,
    load_problem,
    log_scales,
    panels,
    read_csv,
    rms,
)
from matplotlib.figure import Figure
from ode_peers import ADAPTIVE, CLOCKS, STATES, ladder

import ddim_ode

OURS = ("rk45", "bosh3", "heun")
LEVELS = (1e-2, 1e-3, 1e-5)
MOST_CALLS = {"digits": 700, "model": 400}
MOST_ERROR = 0.5  # beyond that nothing was solved, and the curves say nothing
TITLES = {"digits": "a 64-D mixture with the exact ε"}


def row(
    solver: str,
    clock: str,
    state: str,
    tolerance: float,
    error: float,
    nfe: float,
    estimate: float = np.nan,
) -> dict:
    """A line of the CSV; estimate: the RMS of sol.error."""
    return dict(
        solver=solver,
        clock=clock,
        state=state,
        tolerance=tolerance,
        error=error,
        nfe=nfe,
        estimate=estimate,
    )


def measure(problem: Problem, tolerances: Sequence[float], most: int) -> Iterator[dict]:
    """One row per solver, variable, state and tolerance."""
    for method in OURS:
        for tol in tolerances:
            options = dict(rtol=tol, atol=tol, max_nfe=most, dense=False)
            sol = ddim_ode.sample(problem.model, problem.x, method, cond=problem.cond, **options)
            if set(sol.status) != {"success"}:
                break
            error = rms(sol.x - problem.reference)
            nfe = float(sol.sample_nfe.mean())
            yield row(f"ddim_ode {method}", "own", "own", tol, error, nfe, rms(sol.error))
    for name, solve in ADAPTIVE.items():
        if not installed(name.split()[0]):
            continue
        for clock in CLOCKS:
            for state in STATES:
                for tol, nfe, end in ladder(problem, solve, clock, state, tolerances, most):
                    yield row(name, clock, state, tol, rms(end - problem.reference), nfe)


def calls_for(rows: Sequence[Mapping], level: float) -> float:
    """Evaluations per sample at which one curve reaches an error, log-log between its points."""
    points = sorted((row["nfe"], row["error"]) for row in rows)
    least, before = np.inf, None
    for nfe, error in points:
        if error <= level:
            if before is None:
                return nfe
            share = np.log(before[1] / level) / np.log(before[1] / error)
            least = before[0] * (nfe / before[0]) ** share
            break
        before = (nfe, error)
    return float(least)


def best(rows: Sequence[Mapping], solver: str, level: float) -> float:
    """The least over the solver's variables and states."""
    curves: dict[tuple, list] = {}
    for row in rows:
        if row["solver"] == solver:
            curves.setdefault((row["clock"], row["state"]), []).append(row)
    return min((calls_for(curve, level) for curve in curves.values()), default=np.inf)


def report(name: str, rows: Sequence[Mapping]) -> None:
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    print(f"\n{name}: evaluations per sample for an RMS error, best variable and tolerance")
    print("solver              " + "".join(f"{level:>9.0e}" for level in LEVELS))
    for solver in solvers:
        print(f"{solver:20}" + "".join(f"{best(rows, solver, level):9.1f}" for level in LEVELS))
    ours = [f"ddim_ode {method}" for method in OURS]
    for peer in ("torchdiffeq dopri5", "torchode dopri5"):
        if peer not in solvers:
            continue
        for who, mine in (("rk45", ours[:1]), ("ours", ours)):
            calls = [min(best(rows, solver, level) for solver in mine) for level in LEVELS]
            with np.errstate(invalid="ignore"):
                ratios = [n / best(rows, peer, level) for n, level in zip(calls, LEVELS)]
            head = f"{who} / {peer.split()[0]}"
            print(f"{head:20}" + "".join(f"{ratio:9.2f}" for ratio in ratios))


def draw(rows: Sequence[Row]) -> Figure:
    """A panel a problem: each solver at its best variable, ours in colour."""
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure, axes = panels(len(problems), width=5.6 * len(problems), height=4.9)
    for axis, problem in zip(axes, problems):
        here = [row for row in rows if row["problem"] == problem]
        for solver in dict.fromkeys(row["solver"] for row in here):
            errors = [row["error"] for row in here if row["solver"] == solver]
            grid = np.geomspace(min(errors), min(max(errors), MOST_ERROR), 24)
            nfe = [best(here, solver, level) for level in grid]
            curve(axis, solver, nfe, list(grid), mark_every=4)  # interpolated, not measured there
        log_scales(axis, [20, 50, 100, 200, 500], fine=min(r["error"] for r in here) > 1e-4)
        title = TITLES.get(problem, f"the trained {problem} model")
        label(
            axis,
            f"{title}, {here[0]['n']:.0f} noises",
            "network calls per sample",
            "RMS error to the converged end, per entry",
        )
    legend_below(figure, axes, 3 * len(axes))
    return figure


def main() -> None:
    parser = arguments(__doc__, "digits only, 16 samples", "64 samples, and the shipped model")
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--redraw", action="store_true", help="only draw, from the CSV in --out")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    run = Run("work_precision", args, ["scipy", "torchdiffeq", "torchode", "scikit-learn"])
    if args.redraw:
        run.draw(draw(read_csv(run.path(".csv"))))
        return
    decade = 4 if args.full else 2
    tightest = 7.6 if args.full else 5.6
    problems = {
        "digits": (64 if args.full else 16, 10 ** -np.arange(0.5, tightest, 1 / decade), "digits")
    }
    if args.full:
        problems[args.model] = (8, 10 ** -np.arange(1.0, 4.6, 0.5), "model")
    rows: list[dict[str, Any]] = []
    for name, (n, tolerances, kind) in problems.items():
        problem = load_problem(name, n)
        found = list(measure(problem, tolerances.tolist(), MOST_CALLS[kind]))
        report(name, found)
        rows += [dict(problem=name, n=n, **row) for row in found]
    run.save(rows, draw(rows), most_calls=MOST_CALLS)


if __name__ == "__main__":
    main()
