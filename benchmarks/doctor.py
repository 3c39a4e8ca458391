"""Does the doctor leave healthy models alone, and does it name what is wrong with the others?

    python benchmarks/doctor.py --quick       # one seed, 6 mixtures
    python benchmarks/doctor.py --full        # three seeds, 20 mixtures; a quarter of an hour on one core

healthy: the shipped model, the six small networks and random mixtures, each seen by the samples it makes
itself and, where there are data, by those. Every finding is a false alarm.
faulty: each small network with one thing wrong with it: its time, its sign, its declared prediction or the
scale of its data. A fault is named right if a finding of its kind is there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from common import Row, Run, arguments, pick
from small_networks import CASES, digits, trained
from torch import Tensor

import ddim_ode

PREDICTIONS = ("eps", "x0", "v", "flow", "score")
SEEN = ("its own samples", "data")


@dataclass
class Patient:
    name: str
    model: ddim_ode.Denoiser
    data: Tensor | None


def mixtures(count: int) -> Iterator[Patient]:
    """Of 1 to 5 components in 1 to 16 dimensions, on every schedule and with every prediction."""
    rng, s = np.random.default_rng(0), ddim_ode.schedules
    known = [s.ddpm(), s.cosine(), s.vp(), s.ve(80.0), s.flow(), s.exponential(), s.ve(1348.0)]
    for i in range(count):
        schedule, prediction = known[i % len(known)], PREDICTIONS[i % len(PREDICTIONS)]
        if math.isinf(schedule.sigma_max) and prediction in ("eps", "score"):
            prediction = "flow"  # the others are blind at σ = inf, which is a fault
        k, size = rng.integers(1, 6), rng.choice([1, 2, 4, 8, 16])
        weights = rng.dirichlet(np.full(k, 2.0))
        means, variances = rng.normal(size=(k, size)), rng.uniform(0.02, 0.5, (k, size))
        model = ddim_ode.exact.gaussian_mixture(
            weights / weights.sum(), means, variances, schedule, prediction
        )
        name = f"mixture {i}: {schedule.family}, {prediction}, {k} × {size}"
        yield Patient(name, model, model.draw(64, seed=i).float())


def faults(patient: Patient) -> Iterator[tuple[str, str, Patient]]:
    """(what is wrong, the check that names it, the model read wrongly)."""
    model, data = patient.model, patient.data
    top, net, prediction = model.schedule.T, model.net, model.prediction
    assert data is not None
    declared = "x0" if prediction != "x0" else "eps"

    def at(time: Callable[[Tensor], Tensor], sign: int = 1) -> Callable[..., Tensor]:
        return lambda x, t: sign * net(x, time(t).clamp(0, top))

    for name, check, answer, read_as in (
        ("time reversed", "network-time", at(lambda t: top - t), prediction),
        ("time reversed, negated", "network-time", at(lambda t: top - t, -1), prediction),
        ("time 1000 times as large", "network-time", at(lambda t: t / 1000), prediction),
        ("time 1/1000 as large", "network-time", at(lambda t: 1000 * t), prediction),
        ("sign", "sign", lambda x, t: -net(x, t), prediction),
        (f"declared {declared}", "prediction", net, declared),
    ):
        wrong = ddim_ode.Denoiser(answer, model.schedule, read_as, shape=(64,))
        yield name, check, replace(patient, model=wrong)
    yield "data × 100", "input-scale", replace(patient, data=100 * data)


def examined(patient: Patient, fault: str, expected: str, seen: str, seed: int) -> Row:
    report = ddim_ode.diagnose(
        patient.model,
        data=patient.data if seen == "data" else None,
        shape=None if patient.data is None or seen == "data" else patient.data.shape[1:],
        seed=seed,
    )
    found = [finding.check for finding in report]
    row = dict(fault=fault, expected=expected, model=patient.name, seen=seen, seed=seed)
    right = expected in found if expected else not found
    return dict(row, found=" ".join(found), right=right)


def main() -> None:
    args = arguments(__doc__, "one seed, 6 mixtures", "three seeds, 20 mixtures").parse_args()
    run = Run("doctor", args)
    seeds, count = (range(3), 20) if args.full else (range(1), 6)
    networks = [Patient(c.name, trained(c), digits(c).float()) for c in CASES]
    shipped = Patient("fashion-mnist", ddim_ode.load("fashion-mnist", guidance=1.0), None)
    rows: list[Row] = []
    for patient in (shipped, *networks, *mixtures(count)):
        shown = SEEN if patient.data is not None else SEEN[:1]
        rows += [examined(patient, "none", "", *how) for how in itertools.product(shown, seeds)]
    for patient in networks:
        for fault, check, wrong in faults(patient):
            shown = SEEN[1:] if check == "input-scale" else SEEN
            rows += [examined(wrong, fault, check, *how) for how in itertools.product(shown, seeds)]
    for fault, seen in itertools.product(dict.fromkeys(row["fault"] for row in rows), SEEN):
        if here := pick(rows, fault=fault, seen=seen):
            right = sum(row["right"] for row in here)
            print(f"{fault:26} {seen:16} {right} of {len(here)} right")
    for row in pick(rows, right=False):
        where = f"{row['model']}, {row['fault']}, {row['seen']}"
        print(f"wrong: {where}: {row['found'] or 'nothing'}")
    run.save(rows, seeds=len(seeds), mixtures=count)


if __name__ == "__main__":
    main()
