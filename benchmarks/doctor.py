"""Does the doctor leave healthy models alone, and does it name what is wrong with the others?

    python benchmarks/doctor.py --quick       # one seed, 6 mixtures
    python benchmarks/doctor.py --full        # three seeds, 20 mixtures; a quarter of an hour on one core

healthy: the shipped model, the six small networks and random mixtures, each seen by the samples it makes
itself and, where there are data, by those. Every finding is a false alarm.
faulty: each small network with one thing wrong with it: its time, its sign, its declared prediction or the
scale of its data. A fault is named right if a finding of its kind is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from common import Row, Run, arguments
from small_networks import CASES, trained
from torch import Tensor

import ddim_ode

PREDICTIONS = ("eps", "x0", "v", "flow", "score")


@dataclass
class Patient:
    name: str
    model: ddim_ode.Denoiser
    data: Tensor | None


def digits(scale: float, shift: float) -> Tensor:
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().data / 8 - 1).float() * scale + shift


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


def networks() -> Iterator[Patient]:
    for case in CASES:
        yield Patient(case.name, trained(case), digits(case.scale, case.shift))


def faults(patient: Patient) -> Iterator[tuple[str, str, Patient]]:
    """(what is wrong, the check that names it, the model read wrongly)."""
    model, data = patient.model, patient.data
    top, net = model.schedule.T, model.net
    assert data is not None

    def wanting(
        name: str, check: str, answer: object, **changes: object
    ) -> tuple[str, str, Patient]:
        options = dict(prediction=model.prediction, shape=(64,)) | changes
        wrong = ddim_ode.Denoiser(answer, model.schedule, **options)  # type: ignore[arg-type]
        return name, check, replace(patient, model=wrong)

    yield wanting("time reversed", "network-time", lambda x, t: net(x, (top - t).clamp(0, top)))
    yield wanting(
        "time reversed, negated", "network-time", lambda x, t: -net(x, (top - t).clamp(0, top))
    )
    yield wanting(
        "time 1000 times as large", "network-time", lambda x, t: net(x, (t / 1000).clamp(max=top))
    )
    yield wanting(
        "time 1/1000 as large", "network-time", lambda x, t: net(x, (1000 * t).clamp(max=top))
    )
    yield wanting("sign", "sign", lambda x, t: -net(x, t))
    declared = "x0" if model.prediction != "x0" else "eps"
    yield wanting(f"declared {declared}", "prediction", net, prediction=declared)
    yield "data × 100", "input-scale", replace(patient, data=100 * data)


def examined(patient: Patient, seen: str, seed: int) -> Row:
    report = ddim_ode.diagnose(
        patient.model,
        data=patient.data if seen == "data" else None,
        shape=None if patient.data is None or seen == "data" else patient.data.shape[1:],
        seed=seed,
    )
    found = " ".join(finding.check for finding in report)
    return dict(model=patient.name, seen=seen, seed=seed, found=found)


def main() -> None:
    args = arguments(__doc__, "one seed, 6 mixtures", "three seeds, 20 mixtures").parse_args()
    run = Run("doctor", args)
    seeds, count = (range(3), 20) if args.full else (range(1), 6)
    trained_here, rows = list(networks()), []
    shipped = Patient("fashion-mnist", ddim_ode.load("fashion-mnist", guidance=1.0), None)
    for patient in [shipped, *trained_here, *mixtures(count)]:
        for seen in ("its own samples", *(["data"] if patient.data is not None else [])):
            for seed in seeds:
                row = dict(fault="none", expected="") | examined(patient, seen, seed)
                rows.append(row | dict(right=row["found"] == ""))
    for patient in trained_here:
        for fault, check, wrong in faults(patient):
            for seen in ("data",) if check == "input-scale" else ("its own samples", "data"):
                for seed in seeds:
                    row = dict(fault=fault, expected=check) | examined(wrong, seen, seed)
                    rows.append(row | dict(right=check in row["found"].split()))
    for fault in dict.fromkeys(row["fault"] for row in rows):
        for seen in ("its own samples", "data"):
            of = [row for row in rows if (row["fault"], row["seen"]) == (fault, seen)]
            if of:
                print(f"{fault:26} {seen:16} {sum(row['right'] for row in of)} of {len(of)} right")
    for row in rows:
        if not row["right"]:
            print(
                f"wrong: {row['model']}, {row['fault']}, {row['seen']}: {row['found'] or 'nothing'}"
            )
    run.save(rows, seeds=len(seeds), mixtures=count)


if __name__ == "__main__":
    main()
