"""Plans as tables: out of the package and back, whatever the network answers."""

import csv
import io
import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from problems import COSINE, mixture_2d

import ddim_ode
from ddim_ode import Plan, schedules
from ddim_ode.grids import make_grid

FLOW, VE = schedules.flow(), schedules.ve(80.0)
GRIDS = {
    "vp": (COSINE, make_grid("karras", COSINE, 6, sigma_max=60.0, sigma_min=0.03)),
    "ve": (VE, make_grid("log_snr", VE, 6)),
    "flow": (FLOW, make_grid("shifted:3", FLOW, 6, sigma_max=50.0)),
}


def run(table, net, x):
    """The ten lines that another runtime has."""
    v = []
    for k, row in enumerate(table["weights"]):
        y = row[0] * x
        for j in range(k):
            y = y + row[1 + j] * v[j]
        if k < len(table["t"]):
            v.append(net(y, table["sigma"][k]))
    return y


def answer(model, prediction, y, sigma):
    alpha, beta = (float(c) for c in model.schedule.scales(sigma))
    x0, eps = model(y, sigma)
    return dict(eps=eps, x0=x0, v=alpha * eps - beta * x0, flow=eps - x0, score=-eps / beta)[
        prediction
    ]


@pytest.mark.parametrize("family", GRIDS)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow", "score"])
@pytest.mark.parametrize("method", ["unipc3", "heun", "ipndm"])
def test_any_network_runs_the_table_and_it_comes_back_as_a_plan(family, prediction, method):
    schedule, grid = GRIDS[family]
    model, plan = mixture_2d(schedule), ddim_ode.plan(method, schedule, grid)
    x = ddim_ode.noise((2,), schedule, seeds=range(4), sigma=grid[0]).double()
    ours = ddim_ode.sample(model, x, plan=plan).x
    table = json.loads(plan.export("json", schedule, prediction))
    assert table["name"] == method
    assert set(table["vector"]) == {prediction}
    theirs = run(table, lambda y, sigma: answer(model, prediction, y, sigma), x)
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-9)
    back = Plan.from_table(
        table["sigma"], table["weights"], schedule, prediction=prediction, name=method
    )
    torch.testing.assert_close(ddim_ode.sample(model, x, plan=back).x, ours, rtol=1e-9, atol=1e-9)
    assert (back.nfe, back.grid) == (plan.nfe, pytest.approx(plan.grid))


def test_a_table_of_its_own_vectors_is_the_plan():
    schedule, grid = GRIDS["vp"]
    plan = ddim_ode.plan("dpmpp3m", schedule, grid)
    own = plan.table()
    back = Plan.from_table(own.sigma, own.weights, schedule, prediction="x0")
    np.testing.assert_allclose(back.table().weights, own.weights, rtol=1e-12, atol=1e-14)


def test_csv_and_c_hold_the_same_numbers(tmp_path):
    schedule, grid = GRIDS["flow"]
    plan = ddim_ode.plan("unipc2", schedule, grid)
    own = plan.table()
    head, *rows = csv.reader(io.StringIO(plan.export("csv")))
    assert head[:4] == ["sigma", "t", "vector", "x"]
    assert len(rows) == plan.nfe + 1
    np.testing.assert_array_equal([[*map(float, row[3:])] for row in rows], own.weights)
    assert [float(row[0]) for row in rows[:-1]] == list(own.sigma)
    text = plan.export("c")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    (tmp_path / "plan.h").write_text(text)
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "plan.h"\nint main(void) {\n'
        "for (int k = 0; k <= unipc2_calls; k++) for (int j = 0; j <= unipc2_calls; j++)\n"
        '  printf("%.17g\\n", unipc2_w[k][j]);\n'
        "return !(unipc2_sigma[0] > 0 && unipc2_t[0] > 0); }\n"
    )
    where = [str(tmp_path / name) for name in ("main.c", "main")]
    subprocess.run([compiler, "-std=c99", "-Wall", "-Werror", where[0], "-o", where[1]], check=True)
    out = subprocess.run([where[1]], capture_output=True, text=True, check=True).stdout
    numbers = np.array([*map(float, out.split())]).reshape(own.weights.shape)
    np.testing.assert_array_equal(numbers, own.weights)


def test_a_start_at_infinity():
    """Flow's first level is σ = inf: the word "inf" in JSON, and INFINITY in C."""
    plan = ddim_ode.plan("ddim", FLOW, make_grid("trailing", FLOW, 4))
    table = json.loads(plan.export())
    assert table["sigma"][0] == "inf"
    assert "{INFINITY" in plan.export("c")
    flow = plan.export("json", FLOW, "flow")
    again = Plan.from_table(
        [np.inf, *plan.table().sigma[1:]], json.loads(flow)["weights"], FLOW, prediction="flow"
    )
    assert again.grid == plan.grid
    with pytest.raises(ValueError, match="another prediction"):
        plan.export("json", FLOW, "eps")


def test_names_are_text_for_c():
    plan = Plan.from_table([9.0], [[1, 0], [1, -9]], VE, name='2m */ "x" é')
    assert "enum { plan_2m" in plan.export("c")
    assert plan.export("c").count("*/") == 1


LEVELS, ROWS = [9.0, 1.0], [[1, 0, 0], [1, -8, 0], [1, -8, -1]]


@pytest.mark.parametrize(
    ("levels", "weights", "options", "says"),
    [
        ([], [[1]], {}, "levels"),
        (9.0, ROWS, {}, "levels"),
        ("nine", ROWS, {}, "levels"),
        ([9.0, 0.0], ROWS, {}, "no network is called"),
        ([9.0, float("nan")], ROWS, {}, r"levels\[1\]"),
        ([90.0, 1.0], ROWS, {}, r"levels\[0\]"),
        (LEVELS, ROWS[:2], {}, r"need \(3, 3\)"),
        (LEVELS, [[1, 2, 0], *ROWS[1:]], {}, r"weights\[0\]\[1\].*not made yet"),
        (LEVELS, [*ROWS[:2], [1, float("inf"), 0]], {}, r"weights\[2\]\[1\]=inf must be finite"),
        (LEVELS, [[0, 0, 0], *ROWS[1:]], {}, "scale"),
        (LEVELS, [ROWS[0], [0, 1, 0], ROWS[2]], {}, "comes back to its start"),
        (LEVELS, ROWS, dict(prediction="noise"), "prediction"),
        (LEVELS, ROWS, dict(sigma_end=20.0), "sigma_end"),
        (LEVELS, ROWS, dict(sigma_end=float("nan")), "sigma_end"),
        (LEVELS, ROWS, dict(sigma_max=0.5), r"grid\[1\]"),
        (LEVELS, ROWS, dict(name=""), "name"),
    ],
)
def test_what_is_no_table_is_refused(levels, weights, options, says):
    with pytest.raises(ValueError, match=says):
        Plan.from_table(levels, weights, VE, **options)


def test_what_has_no_table_is_refused():
    plan = ddim_ode.plan("ddim", VE, GRIDS["ve"][1], eta=1.0)
    with pytest.raises(ValueError, match="step noise"):
        plan.export()
    plan = ddim_ode.plan("ddim", VE, GRIDS["ve"][1])
    with pytest.raises(ValueError, match="unknown form"):
        plan.export("yaml")
    with pytest.raises(ValueError, match="the plan was made for"):
        plan.export("json", COSINE, "eps")
    with pytest.raises(ValueError, match="prediction"):
        plan.table(VE)
    with pytest.raises(ValueError, match="schedule"):
        plan.table(prediction="eps")
