"""Weak and strong orders with step noise, exactly: on Gaussian data a plan is linear in its noise
(helpers/moments.py), so nothing is sampled. The labels of the registry are what is measured here."""

from dataclasses import replace

import moments
import numpy as np
import pytest
from problems import COSINE

import ddim_ode
from ddim_ode.solvers.methods import METHODS, get_method

MEAN, VARIANCE = 0.4, 0.3
HIGH, LOW = 10.0, 0.1
# Names of one plan where eta is 1.
TWINS = dict(
    ddpm="ddim", dpmpp_sde="dpmpp2s", seeds2="dpmpp2s", dpmpp2m_sde="dpmpp2m",
    dpmpp3m_sde="dpmpp3m", sa2="unipc2", sa3="unipc3",
)  # fmt: skip
NOISY = [n for n, method in METHODS.items() if method.weak is not None and n not in TWINS]
PECE = ["sa2:pece", "sa3:pece"]
TOLERANCE = 0.15


def grid(steps):
    return np.geomspace(HIGH, LOW, steps + 1)


def compiled(name, levels):
    method = get_method(name)
    own = method.eta or method.rises
    return ddim_ode.plan(method, COSINE, levels, eta=None if own else 1.0)


def weak_errors(name, counts, make=compiled):
    exact = moments.exact(LOW, COSINE, MEAN, VARIANCE)
    ends = [moments.end(make(name, grid(n)), COSINE, MEAN, VARIANCE) for n in counts]
    return np.array(ends) - exact


FINE = grid(1920)


def on_path(plan):
    return moments.on_path(plan, FINE, COSINE, MEAN, VARIANCE)


@pytest.fixture(scope="module")
def converged():
    """The end of a plan of 1,920 steps, over the increments of its path."""
    return on_path(ddim_ode.plan("dpmpp2m", COSINE, FINE, eta=1.0))


@pytest.mark.parametrize(("name", "other"), TWINS.items())
def test_two_names_of_one_plan_have_its_labels(name, other):
    plans = [compiled(n, grid(20)) for n in (name, other)]
    assert plans[0].ops == plans[1].ops
    assert METHODS[name].weak == METHODS[other].weak
    assert METHODS[name].strong == METHODS[other].strong


@pytest.mark.parametrize("name", [*NOISY, *PECE])
def test_weak_order_is_that_on_the_label(name):
    # A little noise hides its own order until the steps are fine (ER-SDE-3: 2.7 at 160, 2.1 at 1,280).
    counts = [640, 1280] if name == "er_sde3" else [320, 640]
    errors = weak_errors(name, counts)
    assert np.abs(errors[:, 0]).max() < 1e-12  # the mean is carried exactly
    assert moments.slope(counts, errors[:, 1]) == pytest.approx(
        get_method(name).weak, abs=TOLERANCE
    )


@pytest.mark.parametrize(
    "name", [n for n in NOISY if METHODS[n].strong and not n.startswith("er_sde")]
)
def test_strong_order_is_that_on_the_label(name, converged):
    counts = [80, 160]
    errors = [np.linalg.norm(on_path(compiled(name, grid(n))) - converged) for n in counts]
    assert moments.slope(counts, errors) == pytest.approx(METHODS[name].strong, abs=TOLERANCE)


@pytest.mark.parametrize("name", ["dpmpp2m_sde", "dpmpp_sde", "sa2"])
@pytest.mark.parametrize("what", ["weights", "noise"])
def test_a_wrong_coefficient_is_noticed(name, what):
    def mutated(name, levels):
        plan = compiled(name, levels)
        ops = list(plan.ops)
        for i, op in enumerate(ops):
            if what == "weights" and len(op.weights) > 1 and op.commit:
                moved = 0.02 * op.weights[0]
                weights = (op.weights[0] - moved, op.weights[1] + moved, *op.weights[2:])
                ops[i] = op._replace(weights=weights)
            if what == "noise" and op.noise and op.commit:
                whole = op.noise if isinstance(op.noise, tuple) else (op.noise,)
                noise = tuple(1.01 * w for w in whole)
                ops[i] = op._replace(noise=noise if isinstance(op.noise, tuple) else noise[0])
        return replace(plan, ops=tuple(ops))

    counts = [320, 640]
    slope = moments.slope(counts, weak_errors(name, counts, mutated)[:, 1])
    assert abs(slope - METHODS[name].weak) > 2 * TOLERANCE


def test_stages_share_the_noise_of_their_step():
    """With draws of their own, the stages know nothing of the step's noise: weak order 1."""

    def apart(name, levels):
        plan = compiled(name, levels)
        whole = [np.linalg.norm(op.noise) if op.noise else 0.0 for op in plan.ops]
        ops = [op._replace(noise=float(noise)) for op, noise in zip(plan.ops, whole)]
        return replace(plan, ops=tuple(ops))

    counts = [320, 640]
    errors = weak_errors("seeds2", counts, apart)[:, 1]
    assert moments.slope(counts, errors) == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.parametrize("eta", [0.3, 1.0, lambda sigma: 1.0 if 0.5 < sigma < 5 else 0.0])
@pytest.mark.parametrize("name", ["ddim", "dpmpp2m", "unipc2", "dpmpp2s"])
def test_every_level_keeps_its_marginal_for_any_noise(name, eta):
    """In the limit: the variance at every level is that of the data noised to there."""
    levels = grid(300)
    for stop in (60, 150, 300):
        plan = ddim_ode.plan(name, COSINE, levels[: stop + 1], eta=eta)
        mean, variance = moments.end(plan, COSINE, MEAN, VARIANCE)
        exact = moments.exact(levels[stop], COSINE, MEAN, VARIANCE)
        size = 6e-3 if name == "ddim" else 6e-5
        assert mean == pytest.approx(exact[0], abs=1e-12)
        assert variance == pytest.approx(exact[1], abs=size)
