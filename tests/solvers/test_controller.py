"""Step-size control against scripted error ratios: no network, no tensor."""

from itertools import pairwise

import numpy as np
import pytest

from ddim_ode.solvers import clock
from ddim_ode.solvers.controller import Controller, Gains, amplified

GAINS = Gains(first=1.0, longest=np.inf, share=1.0)


def controller(batch=1, span=10.0, *, order=5, cost=6, limit=1000, gains=GAINS, **options):
    return Controller(
        batch, span, error_order=order, cost=cost, limit=limit, gains=gains, **options
    )


def drive(control, ratios, finite=None):
    """Trial after trial, ratios(trial, steps (n,)) -> (n,); the steps tried, until all have left."""
    tried = []
    for trial in range(10_000):
        control.drop(control.propose())
        if not control.active.size:
            return tried
        step = control.step[control.active].copy()
        ratio = np.broadcast_to(np.asarray(ratios(trial, step), dtype=float), step.shape)
        good = np.isfinite(ratio) if finite is None else finite(trial, step)
        accepted = control.judge(ratio, good)
        tried.append((step, accepted))
    raise AssertionError("never finished")


@pytest.mark.parametrize("order", [2, 3, 5])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_a_smooth_problem_gets_the_step_whose_error_is_the_target(order, tolerance):
    """e = hᵏ: the ratio settles at its target."""
    settled = (GAINS.target * tolerance) ** (1 / order)
    control = controller(span=100 * settled, order=order, limit=10**7)
    tried = drive(control, lambda trial, h: h**order / tolerance)
    steps = np.array([step[0] for step, _ in tried])
    np.testing.assert_allclose(steps[30 : len(steps) - 5], settled, rtol=0.02)
    assert control.rejected[0] <= 12
    assert control.status[0] == "success"


def test_a_rejected_step_shrinks_and_the_next_does_not_grow():
    control = controller()
    tried = drive(control, lambda trial, h: 1.0001 if trial % 2 == 0 else 1e-8)
    for (first, good), (second, _) in pairwise(tried):
        if not good[0]:
            assert second[0] < first[0]
    accepted_after_rejection = [
        (tried[k][0][0], tried[k + 1][0][0]) for k in range(1, len(tried) - 1, 2) if tried[k][1][0]
    ]
    assert all(after <= before * (1 + 1e-12) for before, after in accepted_after_rejection)


@pytest.mark.parametrize(("ratio", "factor"), [(1.0001, None), (20.0, None), (1e12, 0.2)])
def test_a_rejected_step_is_repeated_with_what_its_error_asks_for(ratio, factor):
    """h → h (target/ratio)^{1/k}, and a fifth at the least."""
    (first, good), (second, _), *_ = drive(
        controller(), lambda trial, h: ratio if trial == 0 else 0.5
    )
    wanted = (GAINS.target / ratio) ** (1 / 5) if factor is None else factor
    assert not good[0]
    assert second[0] / first[0] == pytest.approx(wanted, rel=1e-12)


def test_the_counts_of_a_scripted_solve():
    """Rejected, accepted, accepted..., each costing the same calls."""
    control = controller(span=3.0, gains=Gains(first=0.1, longest=1.0, share=1.0, grow=1.0))
    control.charge(1)
    script = [5.0, *[0.1] * 1000]
    tried = drive(control, lambda trial, h: script[trial])
    assert control.rejected[0] == 1
    assert control.accepted[0] == len(tried) - 1
    assert control.calls[0] == 1 + 6 * len(tried)
    assert sum(step[0] for step, good in tried if good[0]) == pytest.approx(3.0, rel=1e-12)
    assert control.remaining[0] == 0


def test_samples_are_controlled_by_themselves():
    rough = np.array([1.0, 4.0, 30.0])
    together = controller(3, limit=10**6)
    counts = []
    drive(together, lambda trial, h: (rough[together.active] * h) ** 5)
    for scale in rough:
        alone = controller(1, limit=10**6)
        drive(alone, lambda trial, h, scale=scale: (scale * h) ** 5)
        counts.append((alone.accepted[0], alone.rejected[0], alone.calls[0]))
    assert counts == list(zip(together.accepted, together.rejected, together.calls))
    assert counts[0][0] < counts[1][0] < counts[2][0]


def test_joint_control_gives_all_samples_the_same_steps():
    control = controller(3, joint=True)
    rough = np.array([1.0, 2.0, 4.0])
    tried = drive(control, lambda trial, h: (rough * h) ** 5)
    assert all(len(set(step)) == 1 and len(set(good)) == 1 for step, good in tried)
    # the RMS of the ratios, not the largest, decides
    joint = controller(3, joint=True)
    joint.propose()
    assert joint.judge(np.array([0.0, 0.0, 1.7]), np.ones(3, bool)).all()
    assert not joint.judge(np.array([0.0, 0.0, 1.8]), np.ones(3, bool)).any()


@pytest.mark.parametrize("limit", [1, 6, 7, 12, 13, 30, 61, 200])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 3.0, 1e30])
def test_no_limit_is_exceeded_and_a_stretched_one_suffices(limit, ratio):
    for stretch in (False, True):
        control = controller(2, limit=limit, stretch=stretch)
        control.charge(1)
        drive(control, lambda trial, h: ratio)
        assert control.calls.max() <= limit
        if stretch and limit >= 7:
            assert (control.remaining == 0).all()
            assert (
                control.status == ("success" if ratio <= 1 and not control.missed[0] else "max_nfe")
            ).all()
        elif ratio > 1 or limit < 7:
            assert set(control.status) == {"max_nfe"} or ratio == 1e30


def test_a_stretched_step_is_rejected_only_while_a_shorter_one_fits():
    control = controller(span=12.0, limit=1 + 6 * 12, stretch=True)
    control.charge(1)
    tried = drive(control, lambda trial, h: 2.0)
    for (first, good), (second, _) in pairwise(tried):
        assert good[0] or second[0] < first[0]
    assert control.missed[0]


def test_a_non_finite_trial_shrinks_hard_and_four_in_a_row_end_the_sample():
    control = controller(2)
    nan = lambda trial, h: np.where(control.active == 0, 0.1, np.nan)  # noqa: E731
    tried = drive(control, nan)
    assert control.status.tolist() == ["success", "non_finite"]
    assert control.rejected.tolist() == [0, control.gains.non_finite_run]
    ratios = [tried[k + 1][0][1] / tried[k][0][1] for k in range(3)]
    np.testing.assert_allclose(ratios, control.gains.non_finite_shrink)


def test_a_stretched_budget_is_over_when_its_last_trial_is_not_finite():
    for bad, status in (((0, 1), "non_finite"), ((0,), "success")):
        control = controller(limit=12, stretch=True)  # two steps
        tried = drive(control, lambda trial, h: np.nan if trial in bad else 0.5)  # noqa: B023
        assert (control.status[0], len(tried)) == (status, 2)


@pytest.mark.parametrize(
    ("span", "bad", "status", "rejected"),
    [
        (10.0, lambda trial: trial in (1, 4), "success", 2),
        (1e6, lambda trial: trial % 2, "non_finite", GAINS.non_finite_total),
    ],
)
def test_a_non_finite_trial_is_a_rejection_like_another_up_to_ten(span, bad, status, rejected):
    control = controller(span=span)
    drive(control, lambda trial, h: np.nan if bad(trial) else 1e-3 if span == 10 else 0.1)
    assert (control.status[0], control.rejected[0]) == (status, rejected)


@pytest.mark.parametrize(
    ("bad", "status"), [(range(10_000), "non_finite"), ([1], "success")], ids=["always", "once"]
)
def test_a_joint_solve_goes_on_without_its_failed_sample_and_stays_joint(bad, status):
    control = controller(3, joint=True)
    fails = lambda trial: (control.active == 1) & (trial in bad)  # noqa: E731
    tried = drive(control, lambda trial, h: np.where(fails(trial), np.nan, 0.1 * h**5))
    assert control.status.tolist() == ["success", status, "success"]
    assert all(len(set(steps)) == 1 for steps, _ in tried)


def test_a_step_that_cannot_move_the_clock_is_an_underflow():
    control = controller(limit=10**9, resolution=1e-12)
    drive(control, lambda trial, h: 1e9)
    assert control.status[0] == "step_underflow"
    assert control.calls[0] < 6 * 60


def test_no_step_is_longer_than_the_longest_and_two_equal_ones_come_before_a_rest():
    tried = drive(controller(span=1.5), lambda trial, h: 0.0)
    assert [step[0] for step, _ in tried] == [0.75, 0.75]
    tried = drive(controller(gains=Gains(longest=0.7)), lambda trial, h: 0.0)
    assert max(step[0] for step, _ in tried) <= 0.7


def test_the_clock_and_its_inverse():
    sigma = np.array([1e-3, 0.02, 0.3, 1.0, 7.0, 80.0, 2e4])
    u = clock.clock(sigma)
    np.testing.assert_allclose(clock.level(u), sigma, rtol=1e-9)
    np.testing.assert_allclose(clock.angle(u), np.arctan(sigma), rtol=1e-9)
    h = 1e-6
    rate = (clock.angle(u + h) - clock.angle(u - h)) / (2 * h)
    np.testing.assert_allclose(clock.angle_rate(u), rate, rtol=1e-5)


def test_the_clock_is_finite_at_infinite_sigma():
    u = clock.clock(np.array([np.inf]))
    assert np.isfinite(u).all()
    assert clock.level(u)[0] > 1e12
    assert clock.angle(u)[0] == pytest.approx(np.pi / 2, rel=1e-12)
    before = (clock.angle(u) - clock.angle(u - 1e-6)) / 1e-6
    np.testing.assert_allclose(clock.angle_rate(u), before, rtol=1e-4)


def test_an_error_grows_with_the_flow_over_a_step_and_no_further_than_it_can_tell():
    error, local, step = np.full(3, 2.0), np.full(3, 0.1), np.array([1.0, 1.0, 4.0])
    rates = np.array([0.2, -1.0, 3.0]), np.array([0.6, -3.0, 9.0])
    found = amplified(error, step, rates, local)
    np.testing.assert_allclose(found, 2 * np.exp([0.4, -2.0, 5.0]) + 0.1, rtol=1e-12)
