"""Fits of small networks of every kind: their error over that of the best textbook sampler, unseen noises.

    python benchmarks/fits.py --quick
    python benchmarks/fits.py --full
    python benchmarks/fits.py --full --shipped    # the shipped model: a record of its own

The networks of small_networks.py are trained on the spot; no fit is made for any of them. The baseline is
the best, on these very noises, of all deterministic methods on five grids and eight last levels, by the
root mean square of the errors: all run on a few noises, and the best of them on all. (a) Single fits of the
fast budget, by the root mean square and by the mean, which a few hard noises decide less. (b) One run for
all of 3 to 12 calls: its cost in single fits, and whether more calls ever err more.
"""

from __future__ import annotations

import itertools
import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from common import Problem, Row, Run, arguments, labels, told
from small_networks import CASES, trained
from torch import Tensor
from tqdm import tqdm
from unseen import UNSEEN, calibrated, errors, solved

import ddim_ode
from ddim_ode.grids import CLASSIC
from ddim_ode.solvers.design import CUTS
from ddim_ode.solvers.methods import METHODS


class Size(NamedTuple):
    """networks, unseen noises, nfe: of (a). screen: noises that all baselines run on, and how many go on.
    budgets: of (b)."""

    networks: int
    unseen: int
    nfe: tuple[int, ...]
    screen: tuple[int, int]
    budgets: tuple[int, ...]


FULL = Size(6, 256, (5, 8, 10), (24, 12), tuple(range(3, 13)))
SHIPPED = FULL._replace(networks=1, unseen=64, screen=(8, 8), budgets=())
QUICK = Size(1, 16, (5,), (2, 2), (3, 4))


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def best_textbook(problem: Problem, nfe: int, screen: tuple[int, int]) -> tuple[str, float, float]:
    """Its name, the RMS of its errors, and the least mean error of those that went on."""
    few, keep = screen
    tried: dict[ddim_ode.Plan, tuple[float, str]] = {}
    names = [name for name, method in METHODS.items() if not method.adds_noise]
    sizes: dict[str, dict[str, Any]] = {}  # a grid does not change the steps that a method affords
    for name, grid, cut in itertools.product(names, CLASSIC, CUTS):
        low = None if grid == "trailing" else cut * problem.model.schedule.least_cut
        how = sizes.get(name, dict(nfe=nfe))
        try:
            plan = ddim_ode.plan_for(problem.model, name, grid=grid, sigma_min=low, **how)
        except ValueError:  # the method needs more calls, or cannot start at this level
            continue
        sizes[name] = dict(steps=plan.steps, start=plan.start)
        if plan not in tried:
            size = rms(errors(problem, plan, few))
            tried[plan] = size if np.isfinite(size) else np.inf, f"{name}, {grid}, {cut}"
    best = sorted(tried, key=lambda plan: tried[plan])[:keep]
    last = {tried[plan][1]: errors(problem, plan) for plan in best}
    name = min(last, key=lambda name: rms(last[name]))
    return name, rms(last[name]), min(float(each.mean()) for each in last.values())


class Counted:
    """A network, and the rows it was asked for."""

    def __init__(self, model: ddim_ode.Denoiser) -> None:
        self.net, self.rows = model.net, 0
        self.model = ddim_ode.Denoiser(self, model.schedule, model.prediction)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.rows += len(x)
        return self.net(x, t)


def single(problem: Problem, nfe: int, size: Size, **options: Any) -> Row:
    """A fit of the fast budget beside the best textbook sampler."""
    name, baseline, least_mean = best_textbook(problem, nfe, size.screen)
    plan = calibrated(problem.model, nfe, **options)
    assert plan.fit is not None
    each = errors(problem, plan)
    row = dict(what="single", model=problem.name, nfe=nfe, ratio=rms(each) / baseline)
    row |= dict(ratio_of_means=float(each.mean()) / least_mean, error=rms(each))
    return row | dict(error_baseline=baseline, baseline=name, net_evals=plan.fit["net_evals"])


def on(k: int, size: Size) -> list[Row]:
    """The rows of network k."""
    warnings.simplefilter("ignore")  # of the worst baselines, whose samples run away
    case = CASES[k]
    model = trained(case)
    torch.set_grad_enabled(False)
    problem = solved(case.name, model, (64,), size.unseen)
    rows = [single(problem, nfe, size, shape=(64,)) for nfe in size.nfe]
    net = Counted(model)
    plans = calibrated(net.model, size.budgets, shape=(64,))
    cost = net.rows / np.mean([row["net_evals"] for row in rows])
    before = np.inf
    for nfe, plan in plans.items():
        error = rms(errors(problem, plan))
        row = dict(what="range", model=case.name, nfe=nfe, error=error, single_fits=cost)
        rows.append(row | dict(of_one_call_fewer=error / before))
        before = error
    return rows


def on_shipped(size: Size) -> list[Row]:
    """The rows of the model that ships, unguided."""
    warnings.simplefilter("ignore")
    torch.set_grad_enabled(False)
    model = ddim_ode.load("fashion-mnist")
    cond = labels(model, range(UNSEEN, UNSEEN + size.unseen))
    problem = solved("fashion-mnist", model, model.shape, size.unseen, cond)
    given = dict(cond=lambda indices: labels(model, indices.tolist()))
    return told(single(problem, nfe, size, **given) for nfe in size.nfe)


def main() -> None:
    quick, full = "one network, few noises", "all six, about ten minutes on two cores"
    parser = arguments(__doc__, quick, full)
    parser.add_argument("--shipped", action="store_true", help="the shipped model, half an hour")
    args = parser.parse_args()
    size = FULL if args.full else QUICK
    if args.shipped:
        size = SHIPPED if args.full else QUICK
        run = Run("fits_shipped", args, ("scipy",))
        run.save(on_shipped(size), size=size._asdict())
        return
    run = Run("fits", args, ("scipy", "scikit-learn"))
    rows: list[Row] = []
    with ProcessPoolExecutor(min(2, size.networks)) as pool:
        jobs = pool.map(on, range(size.networks), itertools.repeat(size))
        for each in tqdm(jobs, total=size.networks, unit="network"):
            rows += told(each)
    run.save(rows, size=size._asdict())


if __name__ == "__main__":
    main()
