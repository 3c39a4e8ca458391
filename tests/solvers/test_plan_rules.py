"""Plans that somebody builds by hand: every field is checked, and named as a file has it."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from problems import COSINE, mixture_2d, points
from refusals import expect

import ddim_ode
from ddim_ode.calibration.family import Linear
from ddim_ode.solvers.plan import Node, Op, Plan

PLAN = ddim_ode.plan("dpmpp2m", COSINE, [50.0, 5.0, 0.5, 0.0])
BAD = [
    *(math.nan, math.inf, -math.inf, 1e300, 10**400, -1e39, "1", None, True, 1j, [1.0]),
    *(torch.ones(2), torch.ones(1, device="meta")[0], np.zeros(3), Fraction(10**400)),
]


def op(k, **change):
    ops = list(PLAN.ops)
    ops[k] = ops[k]._replace(**change)
    return dict(ops=tuple(ops))


def node(k, **change):
    return op(k, node=PLAN.ops[k].node._replace(**change))


def refused(message, **change):
    expect(lambda: dataclasses.replace(PLAN, **change), message)


@pytest.mark.parametrize("value", BAD, ids=lambda value: f"{type(value).__name__} {value!s:.9}")
def test_a_number_that_is_none_or_overflows_is_named(value):
    refused(r"ops\[1\]\.scale=.* must be a finite number", **op(1, scale=value))
    refused(r"ops\[2\]\.weights\[1\]=", **op(2, weights=(1.0, value)))
    refused(r"ops\[1\]\.noise=.* must be a number >= 0", **op(1, noise=value))
    refused(r"ops\[1\]\.node\.t=", **node(1, t=value))
    refused(r"error_weights\[2\]=", error_weights=(0.0, 1.0, value))
    if value is not math.inf:
        refused(r"ops\[1\]\.node\.sigma=.* must be 'inf', or a number", **node(1, sigma=value))
        refused(r"grid\[0\]=.* must be 'inf', or a number", grid=(value, 5.0, 0.5, 0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (op(0, scale=0.0), r"ops\[0\]\.scale=0\.0 must be another number than 0"),
        (op(1, noise=-0.1), r"ops\[1\]\.noise=-0\.1 must be a number >= 0"),
        (op(0, commit=True), r"ops\[0\]=Op.* must be the first call"),
        (op(0, node=None), r"ops\[0\]=Op.* must be the first call"),
        (op(0, weights=(1.0,)), r"ops\[0\]\.weights=\(1\.0,\) must be at most 0 long"),
        (op(1, weights=(1.0,) * 3), r"ops\[1\]\.weights=.* must be at most 1 long"),
        (op(1, weights=[1.0]), r"ops\[1\]\.weights=\[1\.0\] must be a tuple"),
        (op(1, commit=1), r"ops\[1\]\.commit=1 must be true or false"),
        (op(1, node=(1.0, 1.0, "x0")), r"ops\[1\]\.node=.* must be a Node"),
        (op(3, commit=False), r"ops\[3\]=.* must be the end"),
        (op(1, commit=False), r"grid=.* must be 3 levels, one more than ops that commit"),
        (node(1, sigma=0.0), r"ops\[1\]\.node\.sigma=0\.0 must be a number > 0"),
        (node(1, sigma=-1.0), r"ops\[1\]\.node\.sigma=-1\.0 must be 'inf', or a number >= 0"),
        (node(1, vector="x"), r"ops\[1\]\.node\.vector='x' must be one of eps, x0"),
        (node(1, vector=["x0"]), r"ops\[1\]\.node\.vector=\['x0'\] must be one of eps, x0"),
        (dict(ops=PLAN.ops[:-1]), r"ops\[2\]=.* must be the end"),
        (dict(ops=list(PLAN.ops)), r"ops=\[.* must be a tuple"),
        (dict(ops=()), r"ops=\(\) must be a tuple of at least 1"),
        (dict(ops=(tuple(PLAN.ops[0]), *PLAN.ops[1:])), r"ops\[0\]=\(1\.0.* must be an Op"),
        (dict(grid=PLAN.grid[:-1]), "grid=.* must be 4 levels"),
        (dict(grid=(50.0, 5.0, 5.0, 0.0)), r"grid\[2\]=5\.0 must be below grid\[1\]=5"),
        (dict(grid=(0.1, 5.0, 5.0, 7.0)), r"grid\[2\]=5\.0 must be above grid\[1\]=5"),
        (dict(grid=(math.inf, math.inf, 1.0, 0.0)), r"grid\[1\]=inf must be below"),
        (dict(grid=np.array(PLAN.grid)), "grid=.* must be a tuple"),
        (dict(error_weights=(1.0,)), r"error_weights=\(1\.0,\) must be empty, or 3 numbers"),
        (dict(vector="x"), "vector='x' must be one of eps"),
        (dict(start="fast"), "start='fast' must be None, 'rk' or 'ramp'"),
        (dict(start=np.array([1, 2])), "start=.* must be None"),
        (dict(method="a\x1b[2J"), "method=.* printable"),
        (dict(chart=None), "chart=None must be a string"),
        (dict(schedule=""), "schedule='' must be a string of 1 to 200"),
        (dict(fit=3), "fit=3 must be None or a mapping"),
        (dict(fit={"guidance": 10**400}), r"fit\.guidance=.* must be a number up to 1\.8e\+308"),
        (dict(fit={"guidance": [[-(10**400)]]}), r"fit\.guidance\[0\]\[0\]=.* must be a number up"),
        (dict(fit={3: 1}), "a key of fit=3 must be a string"),
    ],
)  # fmt: skip
def test_what_is_no_plan_is_named(change, message):
    refused(message, **change)


def test_what_is_at_the_edge_is_a_plan():
    """A scale of 0 later on is a state made of the calls alone; plans of ddim's largest noise have it."""
    assert dataclasses.replace(PLAN, **op(1, scale=0.0)).ops[1].scale == 0
    assert dataclasses.replace(PLAN, **op(1, scale=np.float64(0.5))).ops[1].scale == 0.5
    largest = COSINE.scales([5.0, 0.5, 0.0])[1]
    plan = ddim_ode.plan("ddim", COSINE, PLAN.grid, vector="x0", noise_std=largest)
    assert [op.scale for op in plan.ops] == [1.0, 0.0, 0.0, 0.0]
    tiny = dataclasses.replace(PLAN, **op(1, weights=(3.4e38,)))
    sol = ddim_ode.sample(mixture_2d(COSINE), points(1, 2).float(), plan=tiny)
    assert sol.status.tolist() == ["non_finite"]


def test_a_plan_without_its_start_is_no_start_of_a_calibration():
    for k, call in ((1, 2), (2, 3)):
        lost = dataclasses.replace(PLAN, **op(k, scale=0.0))
        with pytest.raises(ValueError, match=rf"has lost its start x at call {call} \(scale 0\)"):
            Linear.of(lost)
    with pytest.raises(ValueError, match="has lost its start"):
        ddim_ode.calibrate(mixture_2d(COSINE), 3, start=lost, n=2, shape=(2,), progress=False)


def test_levels_above_the_schedule_are_no_plan_of_it():
    flow = ddim_ode.schedules.ve(10.0)
    high = dataclasses.replace(ddim_ode.plan("ddim", flow, [10.0, 1.0, 0.0]), grid=(20.0, 1.0, 0.0))
    with pytest.raises(ValueError, match=r"the first level of ddim=20 is outside .* \[0, 10\]"):
        ddim_ode.sample(mixture_2d(flow), points(1, 2), plan=high)


def test_a_plan_by_hand_runs_as_it_says():
    call = Node(50.0, float(COSINE.time(50.0)), "x0")
    plan = Plan(
        "mine", (Op(1.0, (), call, False, 0.0), Op(0.25, (0.5,), None, True, 0.0)),
        "x0", "data", (50.0, 0.0), COSINE.fingerprint,
    )  # fmt: skip
    model, x = mixture_2d(COSINE), points(3, 2)
    x0 = model(x, 50.0)[0]
    torch.testing.assert_close(ddim_ode.sample(model, x, plan=plan).x, 0.25 * x + 0.5 * x0)


def test_plans_that_go_up_are_saved_like_others(tmp_path):
    up = ddim_ode.plan("heun", COSINE, [20.0, 2.0, 0.1], rising=True)
    up.save(tmp_path / "up.json")
    assert Plan.load(tmp_path / "up.json") == up
