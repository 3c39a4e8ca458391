"""Plans on disk: what is saved comes back to the last bit, and nothing else comes in."""

import contextlib
import dataclasses
import json
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import COSINE, DDPM, EXPONENTIAL, mixture_2d, points
from refusals import expect

import ddim_ode
from ddim_ode import grids, schedules
from ddim_ode.solve.loop import integrate
from ddim_ode.solvers import plan_json as plan_file
from ddim_ode.solvers.chart import convert
from ddim_ode.solvers.methods import METHODS
from ddim_ode.solvers.nearest import _table, nearest
from ddim_ode.solvers.plan import Plan

DAMAGES = int(os.environ.get("FUZZ", "300"))

GRID = grids.make_grid("time", COSINE, 5, sigma_max=20.0)
FIT = dict(
    model="Denoiser(mixture)", prediction="eps", guidance=None, sigma_range=[0.01, "inf"],
    incumbent="ipndm, quadratic, σ_min 0.05", calibrated=True, budget="fast", n=128, seed=7,
    held_out=dict(n=32, seeds=[103, 134], before=0.25, after=0.1,
                  log_ratio=math.log(0.4), low=math.log(0.35), high=math.log(0.5)),
    reference_error=1e-4, net_evals=12345, seconds=12.3, version="9.8.7", warnings=["few noises"],
)  # fmt: skip


def fitted(fit=FIT):
    return dataclasses.replace(ddim_ode.plan("ipndm", COSINE, GRID), method="calibrated-5", fit=fit)


def tree(plan=None):
    return json.loads(plan_file.dumps(plan or fitted()))


def load(data):
    return Plan.from_json(json.dumps(data).encode(), "p.json")


@pytest.mark.parametrize("name", METHODS)
def test_a_plan_comes_back_as_it_was(name, tmp_path):
    plan = ddim_ode.plan(name, COSINE, GRID, vector="v" if name == "heun" else None)
    plan.save(tmp_path / "new" / "plan.json")
    back = Plan.load(str(tmp_path / "new" / "plan.json"))
    assert (back, hash(back), back.memory) == (plan, hash(plan), plan.memory)
    model, x = mixture_2d(COSINE), points(3, 2)
    one, two = (ddim_ode.sample(model, x, plan=p, seeds=range(3)) for p in (plan, back))
    assert torch.equal(one.x, two.x)


def test_every_float_comes_back_to_the_last_bit():
    rng = np.random.default_rng(0)
    plan = ddim_ode.plan("ab4", COSINE, GRID)
    for _ in range(20):
        ops = tuple(
            op._replace(weights=tuple(10.0 ** rng.uniform(-300, 38, len(op.weights))))
            for op in plan.ops
        )
        odd = dataclasses.replace(plan, ops=ops)
        assert Plan.from_json(plan_file.dumps(odd).encode(), "") == odd
    flow = schedules.flow()
    infinite = ddim_ode.plan("unipc2", flow, grids.make_grid("time", flow, 4))
    text = plan_file.dumps(infinite)
    assert "Infinity" not in text
    assert Plan.from_json(text.encode(), "") == infinite


def test_the_fit_travels_and_is_no_part_of_what_a_plan_is():
    assert (load(tree()), load(tree()).fit) == (fitted(None), FIT)
    assert hash(fitted()) == hash(fitted(None))


@pytest.mark.parametrize("fit", [{"a": math.nan}, {"a": {1, 2}}, {"a": torch.ones(1)}])
def test_a_fit_that_is_not_plain_data_is_not_saved(fit, tmp_path):
    expect(lambda: fitted(fit).save(tmp_path / "p.json"), "plan 'calibrated-5' cannot be saved")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [(dict(t=99999.0), "call 2 is told t=99999, but its σ="), (dict(sigma=1e9), "sigma=1e\\+09")],
)
def test_a_plan_whose_calls_are_told_another_level_than_theirs_is_refused(change, message):
    model = ddim_ode.Denoiser(lambda x, t: torch.tanh(x), DDPM)
    plan = ddim_ode.plan("dpmpp2m", DDPM, [100.0, 10.0, 1.0, 0.0])
    ops = list(plan.ops)
    k = ops.index([op for op in ops if op.node][1])
    ops[k] = ops[k]._replace(node=ops[k].node._replace(**change))
    altered = dataclasses.replace(plan, ops=tuple(ops))
    expect(lambda: ddim_ode.sample(model, torch.zeros(1, 3), plan=altered), message)


def test_a_loaded_plan_of_another_schedule_is_refused_with_both_fingerprints(tmp_path):
    fitted().save(tmp_path / "fit.json")
    fitted(None).save(tmp_path / "plain.json")
    for name, remedy in (("fit", r"calibrate again \(ddim_ode.calibrate\)"), ("plain", "compile")):
        plan = Plan.load(tmp_path / f"{name}.json")
        with pytest.raises(ValueError, match=f"{COSINE.fingerprint}.*{DDPM.fingerprint}.*{remedy}"):
            ddim_ode.sample(mixture_2d(DDPM), points(1, 2), plan=plan)


def put(*path, value):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def drop(*path):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("format", value="mine"), "format='mine' must be 'ddim_ode plan'"),
        (put("version", value=3), "version=3 must be 1 or 2"),
        (put("version", value=True), "version=True must be 1 or 2"),
        (put("version", value=1), "unknown field 'sha256'"),
        (drop("chart"), "has no 'chart'"),
        (put("extra", value=1), "unknown field 'extra'"),
        (drop("ops", 1, "noise"), r"ops\[1\] has no 'noise'"),
        (put("ops", 1, value=3), r"ops\[1\]=3 must be an object"),
        (put("ops", value={}), "ops={} must be a list"),
        (put("ops", 1, "scale", value="1"), r"ops\[1\].scale='1' must be a finite number"),
        (put("ops", 1, "scale", value=10**400), r"ops\[1\].scale=1000.* must be a finite number"),
        (put("ops", 1, "weights", 0, value=None), r"ops\[1\].weights\[0\]=None must be a finite"),
        (put("ops", 1, "node", "sigma", value="Inf"), "node.sigma='Inf' must be"),
        (put("ops", 1, "node", "t", value=-1), "node.t=-1.0 must be a number >= 0"),
        (drop("ops", -1), r"ops\[4\]=.* must be the end"),
        (put("grid", 1, value=25.0), r"grid\[1\]=25.0 must be below grid\[0\]=20"),
        (put("nfe", value=7), "nfe=7 must be 5, the number of ops with a node"),
        (put("nfe", value=5.0), "nfe=5.0 must be 5"),
        (put("memory", value=0), "memory=0 must be 4"),
        (put("fit", "model", value="\x07"), "fit.model=.* must be printable"),
        (put("fit", "a\nb", value=1), "a key of fit=.* must be a string"),
        (put("fit", "n", value=eval("[" * 30 + "]" * 30)), "must be nested at most 16 deep"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    """What a plan must be beside its file is test_plan_rules's."""
    data = tree()
    load(data)
    change(data)
    expect(lambda: load(data), rf"^p\.json: .*{message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (b"PK\x03\x04\xff", "truncated, or not a plan's JSON"),
        (b"[1, 2]", "not a plan: format="),
        (b"7" * 5000, "not a plan"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"format": "ddim_ode plan", "format": "ddim_ode plan"}', "'format' is there twice"),
        (b'{"scale": NaN}', "NaN is no finite number"),
        (b'{"scale": -Infinity}', "-Infinity is no finite number"),
        (b'{"scale": 1e999}', "1e999 is no finite number"),
        (b" " * (plan_file.SIZE_LIMIT + 1), "larger than 16 MiB"),
    ],
    ids=range(10),
)
def test_a_file_that_is_no_plan_is_named(content, message, tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError, match="no such plan file"):
        Plan.load(path)
    with pytest.raises(IsADirectoryError, match="is a folder; give the plan's file in it"):
        Plan.load(tmp_path)
    path.write_bytes(content)
    expect(lambda: Plan.load(path), "x.json: .*" + message)


def refused_or_whole(content):
    """ValueError that names the file, or the plan that was saved."""
    try:
        plan = Plan.from_json(content, "p.json")
    except ValueError as error:
        named = str(error).startswith("p.json: ")
    else:
        named = (plan, plan.fit) == (WHOLE, FIT)
    assert named


WHOLE = fitted()
CONTENT = plan_file.dumps(WHOLE).encode()


def test_damaged_files_are_named_and_none_is_believed():
    for end in range(0, len(CONTENT) - 2, 7):  # but for the newline at its end
        with pytest.raises(ValueError, match="p: "):
            Plan.from_json(CONTENT[:end], "p")
    rng = np.random.default_rng(0)
    digits = [k for k, byte in enumerate(CONTENT) if chr(byte).isdigit()]
    for trial in range(DAMAGES):
        content = bytearray(CONTENT)
        where = rng.choice(digits) if trial % 2 else rng.integers(len(content))
        if trial % 5:
            content[where] = rng.integers(48, 58) if trial % 2 else rng.integers(256)
        else:  # a part is missing, or comes twice
            part = content[where : where + rng.integers(1, 40)]
            content[where : where + len(part)] = part * int(rng.integers(0, 3))
        refused_or_whole(bytes(content))


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["inf", "eps", "rk", 0, -0.0, 1e308, 10**30])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=5,
)


def places(data, path=()):
    yield path
    if isinstance(data, (dict, list)):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from places(value, (*path, key))


PLACES = list(places(tree()))[1:]


@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
def test_changed_values_are_never_another_plan(changes):
    data = tree()
    for path, value in changes:
        try:
            put(*path, value=value)(data)
        except (KeyError, TypeError, IndexError):  # an earlier change took the place away
            continue
    refused_or_whole(json.dumps(data).encode())


def test_a_value_that_would_do_is_not_what_was_saved_but_in_the_first_version():
    data = tree()
    data["ops"][1]["weights"][0] *= 1.0000001
    expect(lambda: load(data), r"altered or damaged: .*sha256")
    data = tree()
    data["version"] = 1
    del data["sha256"]
    assert load(data) == fitted()
    expect(lambda: load({**data, "version": 2}), "has no 'sha256'")


def test_describe_says_what_the_fit_is_worth():
    text = fitted().describe()
    for said in (
        "σ 0.01 to inf", "Denoiser(mixture)", "budget fast", "128 noises from seed 7", "ddim_ode 9.8.7",
        "32 noises of seeds 103 to 134", "error 0.25 before, 0.1 after", "ratio 0.4 (0.35 to 0.5)",
        "ipndm, quadratic, σ_min 0.05", "12,345", "few noises",
    ):  # fmt: skip
        assert said in text
    assert "guidance" not in text
    assert "guidance 2.5" in fitted({**FIT, "guidance": 2.5}).describe()
    assert "did not beat it" in fitted({**FIT, "calibrated": False}).describe()


@given(
    st.dictionaries(
        st.sampled_from([*FIT, "new"]), VALUES | st.just({"before": 1, "seeds": [None, 2]})
    )
)
def test_describe_leaves_out_what_a_fit_of_another_hand_does_not_say(fit):
    plan = fitted()
    with contextlib.suppress(ValueError):  # of text that cannot be printed
        plan = fitted(fit)
    assert plan.describe().startswith("calibrated-5: 5 steps")


FAMILIES = [COSINE, DDPM, EXPONENTIAL, schedules.flow(), schedules.ve(80.0)]
TEXTBOOK = [name for name, m in METHODS.items() if m.order is not None]


@pytest.mark.parametrize(
    ("name", "schedule"),
    [(name, FAMILIES[(i + j) % 5]) for i, name in enumerate(TEXTBOOK) for j in (0, 2)],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_nearest_method_of_a_textbook_plan_is_itself(name, schedule):
    grid = grids.make_grid("karras" if schedule.name == "ve" else "time", schedule, 5)
    found = nearest(ddim_ode.plan(name, schedule, grid), schedule)
    assert (found.name, found.distance) == (name, pytest.approx(0, abs=1e-9))
    assert str(found).startswith(f"{name} on the same grid")


def test_the_distance_is_the_relative_difference_of_what_the_states_are_made_of():
    # Two DDIM steps by hand: x1 = β1/β0 x_T + (ᾱ1 − β1 ᾱ0/β0) x̂₀, and the end is the second x̂₀.
    (a0, b0), (a1, b1) = COSINE.scales(9.0), COSINE.scales(1.0)
    kept, weight = b1 / b0, a1 - b1 * a0 / b0
    plan = ddim_ode.plan("ddim", COSINE, [9.0, 1.0, 0.0], vector="x0")
    first = plan.ops[1]
    assert (first.scale, first.weights[0]) == pytest.approx((kept, weight))
    moved = first._replace(weights=(1.1 * weight,))
    plan = dataclasses.replace(plan, ops=(plan.ops[0], moved, plan.ops[2]))
    expected = 0.1 * weight / math.sqrt(kept**2 + weight**2 + 1)
    assert nearest(plan, COSINE).distance == pytest.approx(expected)


def test_a_first_call_told_a_lower_level_is_compared_from_there_on():
    """A plan that goes to its first call as if x̂₀ were 0 there, and then as dpmpp2m does, is dpmpp2m's."""
    whole = ddim_ode.plan("dpmpp2m", COSINE, GRID[1:])
    top = COSINE.scales(GRID[0])
    entry = COSINE.scales(GRID[1])[1] / top[1]
    first, second, *others = whole.ops
    ops = (first._replace(scale=entry), second._replace(scale=entry * second.scale), *others)
    plan = dataclasses.replace(whole, ops=ops, grid=(GRID[0], *GRID[2:]))
    found = nearest(plan, COSINE)
    assert (found.name, found.distance) == ("dpmpp2m", pytest.approx(0, abs=1e-12))
    assert plan.level_calls()[0] == 0


def test_there_is_no_nearest_where_no_method_makes_the_same_calls():
    assert nearest(ddim_ode.plan("ddpm", COSINE, GRID), COSINE) is None
    plan = ddim_ode.plan("heun", COSINE, GRID)
    stage = plan.ops[1]
    ops = (plan.ops[0], stage._replace(node=stage.node._replace(sigma=9.0)), *plan.ops[2:])
    odd = dataclasses.replace(plan, ops=ops)
    assert nearest(odd, COSINE) is None
    expect(lambda: nearest(plan, DDPM), r"made for schedule .* give model\.schedule")


@pytest.mark.parametrize("schedule", [COSINE, schedules.ve(80.0)], ids=lambda s: s.name)
@pytest.mark.parametrize("name", ["heun", "ab3", "unipc3", "rk4"])
def test_the_table_is_what_the_states_of_a_run_are_made_of(name, schedule):
    plan = ddim_ode.plan(name, schedule, [60.0, 9.0, 2.0, 0.5, 0.0])
    answers = points(plan.nfe, 3, seed=1)
    shown = []

    def evaluate(y, k):
        shown.append(y)
        scales = schedule.scales(np.array([plan.nodes[k].sigma]))
        a, b = convert("x0", plan.nodes[k].vector, *scales)
        return float(a[0]) * y + float(b[0]) * answers[k]

    x = points(1, 3)[0]
    end = integrate(plan, evaluate, x).x
    levels = [*(node.sigma for node in plan.nodes), 0.0]
    size = np.hypot(*schedule.scales(np.array(levels)))
    states = np.stack([*shown[1:], end]) / size[1:, None]
    made = _table(plan, schedule) @ np.stack([x / size[0], *answers])
    np.testing.assert_allclose(made, states, rtol=1e-9, atol=1e-9)
