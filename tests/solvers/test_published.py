"""Published samplers: each code's loop, written anew from its formula, and our plan of its numbers."""

import itertools
import json
import pickle

import numpy as np
import pytest
import torch
from problems import mixture_2d

import ddim_ode
from ddim_ode import Plan, schedules
from ddim_ode.grids import PUBLISHED, make_grid
from ddim_ode.solvers.published import HOW, load_grid, load_plan

EDM, VP, FLOW = schedules.ve(100.0), schedules.ddpm(), schedules.flow()
LEVELS = {"ve": [80.0, 20.0, 5.0, 1.0, 0.2], "vp": [140.0, 14.0, 3.0, 0.8, 0.03]}
FLOW_LEVELS = [0.97, 0.9, 0.6, 0.3, 0.01]


def denoised(model, y, t):
    """D of a network of noise, of a state in x/ᾱ, at the level that it is told."""
    return model(y * float(model.schedule.scales(t)[0]), t)[0]


def velocity(model, x, t):
    x0, eps = model(x, t / (1 - t))
    return eps - x0


def starts(model, top):
    return ddim_ode.noise((2,), model.schedule, seeds=range(6), sigma=top).double()


def written(tmp_path, values):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(values))
    return path


def triangle(n, seed=0):
    """Weights near those of Adams, rows of sums near 1."""
    rng = np.random.default_rng(seed)
    weights = np.tril(rng.normal(0, 0.3, (n, n)))
    np.fill_diagonal(weights, 1.1 - weights.sum(1) + np.diag(weights))
    return weights


def agree(model, plan, x, theirs):
    ours = ddim_ode.sample(model, x, plan=plan).x
    size = theirs.abs().max()
    assert float((ours - theirs).abs().max() / size) < 1e-6
    assert float((x - theirs).abs().max() / size) > 1e-2  # something was done


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("schedule", [EDM, VP], ids=["edm", "vp"])
def test_dyweight(tmp_path, schedule, afs):
    model, t = mixture_2d(schedule), LEVELS[schedule.family]
    weights, scale = triangle(4), [0.97, 1.04, 0.99, 0.9][afs:]
    values = dict(hybrid_weights=weights.tolist(), t_scale=scale, afs=afs, t_steps=t)
    plan = load_plan(written(tmp_path, values), schedule)
    assert (plan.method, plan.nfe) == ("dyweight", 4 - afs)
    x = starts(model, t[0])
    y = x / float(schedule.scales(t[0])[0])
    slopes, level = [], t[0]
    for i in range(4):
        if afs and i == 0:
            slopes.append(y / np.sqrt(1 + level**2))
        else:
            told = scale[i - afs] * level
            slopes.append((y - denoised(model, y, told)) / (level + 1e-8))
        direction = sum(weights[i, j] * slopes[j] for j in range(i + 1))
        y = y + (t[i + 1] - level) * direction
        level = level + weights[i].sum() * (t[i + 1] - level)
    agree(model, plan, x, y)


def test_dyweight_for_flux(tmp_path):
    model, t = mixture_2d(FLOW, "flow"), FLOW_LEVELS
    weights, scale = triangle(4), [0.98, 1.02, 0.9, 1.1]
    values = dict(dyweight_weights_raw=weights.tolist(), dyweight_t_scales=scale, t_steps=t)
    plan = load_plan(written(tmp_path, values), FLOW, name="mine")
    x = y = starts(model, t[0] / (1 - t[0]))
    answers, level = [], t[0]
    for i in range(4):
        answers.append(velocity(model, y, scale[i] * level))
        y = y + (t[i + 1] - level) * sum(weights[i, j] * answers[j] for j in range(i + 1))
        level = level + (t[i + 1] - level) * weights[i].sum()
    assert plan.method == "mine"
    agree(model, plan, x, y)


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("schedule", [EDM, VP, FLOW], ids=["edm", "vp", "flow"])
def test_epd(tmp_path, schedule, afs):
    flow = schedule is FLOW
    if flow and afs:
        pytest.skip("a first step without a call is of networks of noise")
    model, t = mixture_2d(schedule), FLOW_LEVELS if flow else LEVELS[schedule.family]
    rng = np.random.default_rng(1)
    r, w = np.sort(rng.uniform(0.1, 0.9, (4, 2))), rng.dirichlet([2, 2], 4)
    direction, time = rng.uniform(0.95, 1.05, (2, 4, 2))
    tables = dict(r=r, weight=w, scale_dir=direction, scale_time=time)
    values = dict({k: v.tolist() for k, v in tables.items()}, afs=afs, t_steps=t)
    plan = load_plan(written(tmp_path, values), schedule)
    assert plan.nfe == 12 - afs

    def slope(y, told, level):
        if flow:
            return velocity(model, y, told) * told / level
        return (y - denoised(model, y, told)) / level

    x = starts(model, t[0] / (1 - t[0]) if flow else t[0])
    y = x if flow else x / float(schedule.scales(t[0])[0])
    for i in range(4):
        first = y / np.sqrt(1 + t[0] ** 2) if afs and i == 0 else slope(y, t[i], t[i])
        after = y
        for j in range(2):
            middle = t[i + 1] ** r[i, j] * t[i] ** (1 - r[i, j])
            inside = slope(y + (middle - t[i]) * first, time[i, j] * middle, middle)
            after = after + w[i, j] * direction[i, j] * (t[i + 1] - t[i]) * inside
        y = after
    agree(model, plan, x, y)


def test_gits_is_ipndm_on_its_levels(tmp_path):
    """On EDM's σ, with iPNDM of order 4."""
    levels = list(PUBLISHED["gits:cifar10"].levels)
    model = mixture_2d(EDM)
    x = y = starts(model, 80.0)
    adams = [
        [1],
        [3 / 2, -1 / 2],
        [23 / 12, -16 / 12, 5 / 12],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
    slopes = []
    for here, there in itertools.pairwise(levels):
        slopes.insert(0, (y - denoised(model, y, here)) / here)
        y = y + (there - here) * sum(c * d for c, d in zip(adams[min(3, len(slopes) - 1)], slopes))
    for grid in (
        load_grid(written(tmp_path, levels), EDM),
        make_grid("gits:cifar10", EDM, 6, sigma_max=80.0, final="sigma_min"),
    ):
        agree(model, ddim_ode.plan("ipndm", EDM, grid), x, y)


def test_optimal_steps_are_euler_on_some_of_the_teachers_levels(tmp_path):
    """And so is the published list, to 0."""
    model = mixture_2d(FLOW, "flow")
    teacher, steps = np.linspace(0, 0.99, 21), [3, 8, 14, 20]
    grid = load_grid(written(tmp_path, dict(oss_steps=steps, fm_steps=teacher.tolist())), FLOW)
    listed = [*PUBLISHED["oss:flux"].levels[:-1], 0.0]
    named = make_grid("oss:flux", FLOW, 10, sigma_max=listed[0] / (1 - listed[0]))
    for levels, ours in (([*teacher[[20, 14, 8, 3]], 0.0], grid), (listed, named)):
        x = y = starts(model, levels[0] / (1 - levels[0]))
        for here, there in itertools.pairwise(levels):
            y = y + (there - here) * velocity(model, y, here)
        agree(model, ddim_ode.plan("ddim", FLOW, ours), x, y)


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_lists(name):
    own = PUBLISHED[name]
    schedule = FLOW if own.flow else schedules.ve(1000.0)
    levels = np.array(own.levels)
    with np.errstate(divide="ignore"):
        sigma = levels / (1 - levels) if own.flow else levels
    top, n = sigma[0], len(levels) - 1
    whole = make_grid(name, schedule, n, sigma_max=top, final="sigma_min")
    np.testing.assert_allclose(whole, sigma, rtol=1e-12)
    assert make_grid(name, schedule, n, sigma_max=top).tolist() == [*whole[:-1], 0.0]
    other = make_grid(name, schedule, 2 * n, sigma_max=top, final="sigma_min")
    np.testing.assert_allclose(other[::2], sigma, rtol=1e-12)  # log-linear between them
    assert len(make_grid(name, schedule, 3, sigma_max=top)) == 4
    assert "20" in own.source
    with pytest.raises(ValueError, match="drop sigma_min"):
        make_grid(name, schedule, 3, sigma_max=top, sigma_min=0.1)
    with pytest.raises(ValueError, match="give sigma_max"):
        make_grid(name, schedule, 3, sigma_max=7.0)
    with pytest.raises(ValueError, match="is for"):
        make_grid(name, VP if own.flow else FLOW, 3)


def test_a_named_list_is_a_grid_wherever_a_grid_has_a_name():
    """Stable Diffusion's schedule begins where the list does, to its rounding."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    schedule = schedules.from_alphas_cumprod(np.cumprod(1 - betas))
    model = mixture_2d(schedule)
    x = starts(model, model.sigma_max)
    sol = ddim_ode.sample(model, x, "dpmpp2m", steps=10, grid="ays:sd15")
    assert sol.sigmas[1:10] == pytest.approx(PUBLISHED["ays:sd15"].levels[1:10], rel=1e-12)
    table = ddim_ode.compare(
        model, ["ddim"], nfe=[5], grid=["ays:sd15", "time"], shape=(2,), n=4, progress=False
    )
    assert {row["grid"] for row in table.to_dicts()} == {"ays:sd15", "time"}
    with pytest.raises(ValueError, match="ays:sd15"):
        make_grid("ays:sd51", schedule, 5)


@pytest.mark.parametrize("load", [load_plan, load_grid])
def test_a_pickle_is_not_read(tmp_path, load):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("it was run",))

    path = tmp_path / "network-snapshot-000010.pkl"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"is a pickle.*hybrid_weights"):
        load(path, EDM)
    path = tmp_path / "dyweight.pt"
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="is a pickle"):
        load(path, EDM)
    with pytest.raises(FileNotFoundError, match="no such table file"):
        load(tmp_path / "none", EDM)
    for line in HOW.values():
        compile(line.replace("FILE", "'f'").replace("T_STEPS", "[]"), "HOW", "exec")


GOOD = dict(hybrid_weights=[[1.0, 0.0], [0.5, 0.5]], t_steps=[9.0, 3.0, 1.0])
EPD = dict(r=[[0.5], [0.5]], weight=[[1.0], [1.0]], t_steps=[9.0, 3.0, 1.0])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1.0], "goes to load_grid"),
        ({}, "fields of no table"),
        ({**GOOD, "code": "x"}, "'code' is unknown"),
        ({**GOOD, "t_steps": None}, "t_steps"),
        ({**GOOD, "t_steps": [9.0]}, "2 to 200 levels"),
        ({**GOOD, "t_steps": [9.0, 9.5, 1.0]}, "must fall"),
        ({**GOOD, "t_steps": [9.0, 3.0, -1.0]}, "must fall"),
        ({**GOOD, "t_steps": [900.0, 3.0, 1.0]}, r"levels\[0\]"),
        ({**GOOD, "t_scale": [1.0]}, "do not go with 3 t_steps"),
        ({**GOOD, "hybrid_weights": "many"}, "hybrid_weights"),
        ({**GOOD, "hybrid_weights": [1.0, 2.0]}, "list of lists"),
        ({**GOOD, "hybrid_weights": [[1.0, 0.0], [float("nan"), 1.0]]}, "no finite number"),
        ({**GOOD, "afs": 1}, "True or False"),
        ({**GOOD, "t_scale": [1.0, 0.0]}, "no network is called"),
        ({**EPD, "weight": [[1.0]]}, "weight has shape"),
        ({**EPD, "r": [[], []], "weight": [[], []]}, "r has no stages"),
        ({**EPD, "scale_time": [[1.0], [90.0]]}, "levels"),
    ],
)
def test_other_tables_are_refused(tmp_path, values, says):
    with pytest.raises(ValueError, match=says):
        load_plan(written(tmp_path, values), EDM)


@pytest.mark.parametrize(
    ("values", "schedule", "says"),
    [
        ("x", EDM, "levels"),
        ([3.0, 4.0], EDM, "does not fall"),
        ([3.0], EDM, "at least two"),
        ([1.5, 0.5], FLOW, "must lie in"),
        ([200.0, 3.0], EDM, "200"),
        (dict(oss_steps=[1, 2]), FLOW, "oss_steps and fm_steps"),
        (dict(oss_steps=[0, 2], fm_steps=[0.0, 0.5, 1.0]), FLOW, "places in fm_steps"),
        (dict(oss_steps=[1.5], fm_steps=[0.0, 0.5, 1.0]), FLOW, "places in fm_steps"),
        (dict(oss_steps=[3], fm_steps=[0.0, 0.5, 1.0]), FLOW, "places in fm_steps"),
    ],
)
def test_other_lists_are_refused(tmp_path, values, schedule, says):
    with pytest.raises(ValueError, match=says):
        load_grid(written(tmp_path, values), schedule)


def test_wan_starts_at_pure_noise(tmp_path):
    listed = list(PUBLISHED["oss:wan"].levels)
    assert load_grid(written(tmp_path, listed), FLOW)[0] == np.inf
    plan = ddim_ode.plan("ddim", FLOW, make_grid("oss:wan", FLOW, 20))
    assert isinstance(plan, Plan)
    assert plan.nfe == 20
