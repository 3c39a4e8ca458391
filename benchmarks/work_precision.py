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

import argparse
import importlib.metadata
import importlib.util
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from common import Problem, load_problem, rms, write_csv
from torch import Tensor

import ddim_ode

RESULTS = Path(__file__).parent / "results"
OURS = ("rk45", "bosh3", "heun")
LEVELS = (1e-2, 1e-3, 1e-5)
MOST_CALLS = {"digits": 700, "model": 400}
# Okabe & Ito's colours, told apart by colour-blind readers; the markers differ as well.
LOOKS = {
    "ddim_ode rk45": ("#0072B2", "o"),
    "ddim_ode bosh3": ("#56B4E9", "s"),
    "ddim_ode heun": ("#009E73", "^"),
    "torchdiffeq dopri5": ("#D55E00", "v"),
    "torchode dopri5": ("#CC79A7", "D"),
    "scipy DOP853": ("#000000", "x"),
}
CLOCKS: dict[str, tuple[Callable, Callable, Callable]] = {  # τ(σ), σ(τ), dσ/dτ by σ
    "ln sigma": (np.log, np.exp, lambda s: s),
    "sigma": (lambda s: s, lambda u: u, lambda s: np.ones_like(s)),
    "atan sigma": (np.arctan, np.tan, lambda s: 1 + s * s),
}


class TooManyCalls(Exception):
    pass


class PeerField:
    """dstate/dτ of the whole batch, at one τ or one per sample, counting its calls."""

    def __init__(self, problem: Problem, clock: str, state: str, most: int) -> None:
        self.problem, self.state, self.most, self.calls = problem, state, most, 0
        self.tau, self.inverse, self.rate = CLOCKS[clock]
        schedule = problem.model.schedule
        self.ends = schedule.sigma_max, schedule.sigma_min

    def column(self, values: np.ndarray) -> Tensor:
        x = self.problem.x
        return torch.as_tensor(np.array(values)).to(x).reshape(-1, *[1] * (x.ndim - 1))

    def __call__(self, tau: Tensor | float, state: Tensor) -> Tensor:
        if self.calls >= self.most:
            raise TooManyCalls
        self.calls += 1
        model, x = self.problem.model, self.problem.x
        tau = np.atleast_1d(np.asarray(tau, dtype=np.float64))
        sigma = np.clip(self.inverse(tau), self.ends[1], self.ends[0])
        y = state.reshape(x.shape).to(x)
        alpha = self.column(model.schedule.scales(sigma)[0])
        x0, eps = model(y if self.state == "x" else y * alpha, sigma, self.problem.cond)
        d_sigma = self.rate(sigma)
        if self.state == "x":
            d_alpha, d_beta = (self.column(r * d_sigma) for r in model.schedule.scale_rates(sigma))
            return (x0 * d_alpha + eps * d_beta).reshape(state.shape)
        return (eps * self.column(d_sigma)).reshape(state.shape)

    def start(self) -> Tensor:
        alpha = float(self.problem.model.schedule.scales(self.ends[0])[0])
        return self.problem.x if self.state == "x" else self.problem.x / alpha

    def landed(self, state: Tensor) -> Tensor:
        model = self.problem.model
        alpha = float(model.schedule.scales(self.ends[1])[0])
        x = state.reshape(self.problem.x.shape).to(self.problem.x)
        return model(x if self.state == "x" else x * alpha, self.ends[1], self.problem.cond)[0]

    def span(self) -> tuple[float, float]:
        return float(self.tau(self.ends[0])), float(self.tau(self.ends[1]))


def torchdiffeq_dopri5(field: PeerField, tol: float) -> tuple[Tensor, float]:
    from torchdiffeq import odeint

    taus = torch.tensor(field.span(), dtype=torch.float64)
    options = dict(step_t=taus[1:])  # end on σ_min, not past it
    path = odeint(field, field.start(), taus, rtol=tol, atol=tol, method="dopri5", options=options)
    return field.landed(path[-1]), field.calls + 1


def torchode_dopri5(field: PeerField, tol: float) -> tuple[Tensor, float]:
    import torchode

    n = field.problem.x.shape[0]
    y0 = field.start().reshape(n, -1)
    top, bottom = (torch.full((n,), tau, dtype=y0.dtype) for tau in field.span())
    term = torchode.ODETerm(field)
    method = torchode.Dopri5(term=term)
    control = torchode.PIDController(tol, tol, pcoeff=0.2, icoeff=0.5, dcoeff=0.0, term=term)
    solver = torchode.AutoDiffAdjoint(method, control)
    sol = solver.solve(torchode.InitialValueProblem(y0=y0, t_start=top, t_end=bottom))
    if int(sol.status.max()) != 0:
        raise FloatingPointError("torchode gave up")
    steps = sol.stats["n_steps"].double().mean()
    return field.landed(sol.ys[:, -1]), 2 + 6 * float(steps) + 1


def scipy_dop853(field: PeerField, tol: float) -> tuple[Tensor, float]:
    from scipy.integrate import solve_ivp

    def rate(tau: float, flat: np.ndarray) -> np.ndarray:
        return field(tau, torch.as_tensor(flat)).double().numpy()

    y0 = field.start().double().reshape(-1).numpy()
    sol = solve_ivp(rate, field.span(), y0, "DOP853", rtol=max(tol, 1e-13), atol=tol)
    if not sol.success:
        raise FloatingPointError(sol.message)
    return field.landed(torch.as_tensor(sol.y[:, -1])), field.calls + 1


PEERS = {
    "torchdiffeq dopri5": torchdiffeq_dopri5,
    "torchode dopri5": torchode_dopri5,
    "scipy DOP853": scipy_dop853,
}


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
    for name, solve in PEERS.items():
        if importlib.util.find_spec(name.split()[0]) is None:
            print(f"{name}: not installed, skipped")
            continue
        for clock in CLOCKS:
            for state in ("x", "x/alpha"):
                for tol in tolerances:
                    field = PeerField(problem, clock, state, most)
                    try:
                        with torch.no_grad():
                            end, nfe = solve(field, tol)
                    except TooManyCalls:
                        break  # a tighter tolerance will not take fewer
                    except (AssertionError, FloatingPointError):
                        continue  # a step underflow, in these packages
                    error = rms(end - problem.reference)
                    yield row(name, clock, state, tol, error, nfe)


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
        for label, mine in (("rk45", ours[:1]), ("ours", ours)):
            calls = [min(best(rows, solver, level) for solver in mine) for level in LEVELS]
            with np.errstate(invalid="ignore"):
                ratios = [n / best(rows, peer, level) for n, level in zip(calls, LEVELS)]
            head = f"{label} / {peer.split()[0]}"
            print(f"{head:20}" + "".join(f"{ratio:9.2f}" for ratio in ratios))


def draw(problems: Mapping[str, Sequence[Mapping]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, axes = plt.subplots(1, len(problems), figsize=(6 * len(problems), 4.6), squeeze=False)
    for axis, (name, rows) in zip(axes[0], problems.items()):
        for solver, (colour, marker) in LOOKS.items():
            mine = [row for row in rows if row["solver"] == solver]
            if not mine:
                continue
            grid = np.geomspace(min(r["error"] for r in mine), max(r["error"] for r in mine), 30)
            nfe = [best(rows, solver, level) for level in grid]
            axis.loglog(nfe, grid, color=colour, marker=marker, markersize=4, label=solver)
        axis.set(title=name, xlabel="network evaluations per sample", ylabel="RMS error of x")
        axis.set_xticks([20, 50, 100, 200, 500], ["20", "50", "100", "200", "500"])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(True, which="both", alpha=0.25)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="digits only, 16 samples (the default)")
    size.add_argument("--full", action="store_true", help="64 samples, and the shipped model")
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--out", type=Path, default=RESULTS / "work_precision")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.manual_seed(0)
    packages = ("torch", "numpy", "scipy", "torchdiffeq", "torchode")
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in packages
        if importlib.util.find_spec(name)
    )
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads; {versions}"
    )

    decade = 4 if args.full else 2
    problems = {
        "digits": (64 if args.full else 16, 10 ** -np.arange(0.5, 7.6, 1 / decade), "digits")
    }
    if args.full:
        problems[args.model] = (8, 10 ** -np.arange(1.0, 4.6, 0.5), "model")
    found: dict[str, list[dict]] = {}
    for name, (n, tolerances, kind) in problems.items():
        problem = load_problem(name, n)
        found[name] = list(measure(problem, tolerances.tolist(), MOST_CALLS[kind]))
        report(name, found[name])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(problem=name, **row) for name, rows in found.items() for row in rows]
    write_csv(args.out.with_suffix(".csv"), rows)
    draw(found, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
