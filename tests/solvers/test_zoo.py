"""Every method against its paper's own formula, and what its variants, starts and error estimates do."""

import numpy as np
import pytest
import torch
from problems import COSINE, EXPONENTIAL, SCHEDULES, mixture_1d, mixture_2d, points
from test_order import MODELS, TOLERANCE, error, slope, start

import ddim_ode
from ddim_ode import grids, schedules
from ddim_ode.solvers.chart import CHARTS
from ddim_ode.solvers.methods import METHODS, VARIANTS, Method, get_method

GRID = grids.make_grid("quadratic", COSINE, 6, sigma_max=20.0, sigma_min=0.05)
STARTED = [name for name, m in METHODS.items() if m.rk_steps]
LAMBDA = -np.log(GRID[:-1])
ALPHA, BETA = COSINE.scales(GRID)


def ops_of(method, grid=GRID, **options):
    """(commit, node, scale, weights) of each op after the first call."""
    return ddim_ode.plan(method, COSINE, grid, **options).ops[1:]


def in_y(op, i):
    """An op of step i as weights over (y, V...), y = x/ᾱ."""
    return np.array([op.scale * ALPHA[i] / ALPHA[i + 1], *(w / ALPHA[i + 1] for w in op.weights)])


def check(method, steps, formula, **options):
    """Each listed step against formula(i) -> weights over (y, V_newest, ...)."""
    ops = ops_of(method, **options)
    for i in steps:
        got = in_y(ops[i], i)
        want = formula(i)
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12 * abs(want).max())


def ratio(i):
    return GRID[i + 1] / GRID[i]


def test_dpmpp2m_is_the_paper_s_midpoint_form():
    def formula(i):
        h, r0 = LAMBDA[i + 1] - LAMBDA[i], (LAMBDA[i] - LAMBDA[i - 1]) / (LAMBDA[i + 1] - LAMBDA[i])
        assert h > 0
        return np.array([ratio(i), *((1 - ratio(i)) * np.array([1 + 0.5 / r0, -0.5 / r0]))])

    check("dpmpp2m", [1, 2, 3, 4], formula)


def third_order(i, second_derivative):
    """DPM-Solver++(3M): φ functions and divided differences as printed."""
    h, h0, h1 = (LAMBDA[i + 1 - k] - LAMBDA[i - k] for k in range(3))
    r0, r1 = h0 / h, h1 / h
    phi1 = np.expm1(-h)
    phi2 = phi1 / h + 1
    phi3 = phi2 / h - 0.5
    d = np.eye(3)
    d0, d1 = (d[0] - d[1]) / r0, (d[1] - d[2]) / r1
    first = d0 + r0 / (r0 + r1) * (d0 - d1)
    second = second_derivative * (d0 - d1) / (r0 + r1)
    return np.array([ratio(i), *(-phi1 * d[0] + phi2 * first - phi3 * second)])


def test_dpmpp3m_has_the_second_derivative_whole_and_its_variant_half():
    options = dict(start="ramp")
    check("dpmpp3m", [2, 3, 4], lambda i: third_order(i, 2.0), **options)
    check("dpmpp3m", [2, 3, 4], lambda i: third_order(i, 1.0), variant="half")


@pytest.mark.parametrize("method", ["dpm2", "dpmpp2s"])
def test_second_order_singlestep_is_the_paper_s(method):
    """The same formula twice: in y = x/ᾱ over σ, and in x/β̄ over 1/σ."""
    ops = ops_of(method)
    for i in range(5):
        middle = np.sqrt(GRID[i] * GRID[i + 1])
        stage, step = ops[2 * i], ops[2 * i + 1]
        assert stage.node.sigma == pytest.approx(middle, rel=1e-14)
        for op, end, unread in ((stage, middle, []), (step, GRID[i + 1], [0.0])):
            alpha, beta = map(float, COSINE.scales(end))
            if method == "dpm2":
                want = [alpha / ALPHA[i], alpha * (end - GRID[i])]
            else:
                want = [beta / BETA[i], alpha * (1 - end / GRID[i])]
            got = [op.scale, *op.weights]
            np.testing.assert_allclose(got, [*want, *unread], rtol=1e-12, atol=1e-13)


def test_dpm3_is_the_paper_s():
    ops = ops_of("dpm3")
    for i in range(5):
        h, s, end = LAMBDA[i + 1] - LAMBDA[i], GRID[i], GRID[i + 1]
        s1, s2 = s * np.exp(-h / 3), s * np.exp(-2 * h / 3)
        bend2 = -2 * s2 * (np.expm1(2 * h / 3) / (2 * h / 3) - 1)
        bend = -1.5 * end * (np.expm1(h) / h - 1)
        rows = ([s1 - s], [bend2, s2 - s - bend2], [bend, 0.0, end - s - bend])
        for op, level, row in zip(ops[3 * i : 3 * i + 3], (s1, s2, end), rows):
            alpha = float(COSINE.scales(level)[0])
            np.testing.assert_allclose(op.scale, alpha / ALPHA[i], rtol=1e-12)
            np.testing.assert_allclose(op.weights, alpha * np.array(row), rtol=1e-10, atol=1e-13)


def unipc_update(i, order, b_function, corrector):
    """UniP-p or UniC-p on step i as printed: the system R ρ = b, solved."""
    h = LAMBDA[i + 1] - LAMBDA[i]
    hh = -h
    r = [(LAMBDA[i - m] - LAMBDA[i]) / h for m in range(1, order)]
    known = len(r)
    if corrector:
        r.append(1.0)
    p = len(r)
    b_h = hh if b_function == "bh1" else np.expm1(hh)
    psi, factorial, b = np.expm1(hh) / hh - 1, 1, []
    for j in range(1, p + 1):
        factorial *= j
        b.append(psi * factorial / b_h)
        psi = psi / hh - 1 / (factorial * (j + 1))
    if p == 0:
        rho = []
    elif p == 1 and b_function != "solved":
        rho = np.array([0.5])
    else:
        rho = np.linalg.solve(np.array([[x**j for x in r] for j in range(p)]), b)
    identity = np.eye(order + int(corrector))
    newest = identity[-1] if corrector else None
    base = -np.expm1(hh) * identity[0]
    for m, (x, weight) in enumerate(zip(r, rho)):
        other = newest if m == known else identity[m + 1]
        base = base - b_h * weight * (other - identity[0]) / x
    row = base if not corrector else np.array([base[-1], *base[:-1]])
    return np.array([ratio(i), *row])


@pytest.mark.parametrize("b_function", ["solved", "bh1", "bh2"])
@pytest.mark.parametrize("method", ["unipc2", "unipc3"])
def test_unipc_is_the_paper_s(method, b_function):
    options = dict(variant=None if b_function == "solved" else b_function)
    if METHODS[method].rk_steps:
        options["start"] = "ramp"
    ops, past = ops_of(method, **options), METHODS[method].past
    for i in range(5):
        order = min(i + 1, past)
        for op, corrector in zip(ops[2 * i : 2 * i + 2], (False, True)):
            if i == 4 and corrector:
                assert op.node is None  # the landing: no corrector in the last step
                continue
            want = unipc_update(i, order, b_function, corrector)
            np.testing.assert_allclose(in_y(op, i), want, rtol=1e-9, atol=1e-10)
            assert op.commit == corrector or i == 4


def test_ipndm_has_adams_constants():
    constants = [[1], [1.5, -0.5], np.array([23, -16, 5]) / 12, np.array([55, -59, 37, -9]) / 24]
    for i, op in enumerate(ops_of("ipndm")[:5]):
        want = ALPHA[i + 1] * (GRID[i + 1] - GRID[i]) * np.array(constants[min(i, 3)])
        np.testing.assert_allclose(op.weights, want, rtol=1e-13)


def test_ipndm_is_of_fourth_order_where_sigma_is_uniform():
    model, errors = mixture_1d(COSINE), []
    x = start(model, 2.0)
    for steps in (80, 160):
        plan = ddim_ode.plan("ipndm", COSINE, np.linspace(2.0, 0.6, steps + 1))
        errors.append(error(model, x, plan, past=4))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(4, abs=TOLERANCE)


# -- variants ---------------------------------------------------------------------------------
# Those of stochastic methods: test_stochastic_orders.py.
NAMED = [f"{name}:{variant}" for variant, v in VARIANTS.items() for name in v.of]
NAMED = [name for name in NAMED if get_method(name).order is not None]


@pytest.mark.parametrize("name", [n for n in NAMED if not n.endswith("_final")])
def test_variant_has_the_order_on_its_label(name):
    method = get_method(name)
    measured = slope(MODELS["cosine"], method, 180, past=method.past)
    assert measured == pytest.approx(method.order, abs=TOLERANCE)
    assert method.name == name


@pytest.mark.parametrize("name", [n for n in NAMED if n.endswith("lower_order_final")])
def test_a_lower_order_at_the_end_costs_the_order(name):
    method = get_method(name)
    ops = [op for op in ops_of(method) if op.node is None or op.commit]
    assert len(ops[-1].weights) == 1
    measured = slope(MODELS["cosine"], method, 180, ends=(1.0, 0.5))
    assert method.order_as_run == 2
    assert measured == pytest.approx(2, abs=0.35 if method.corrector else TOLERANCE)


@pytest.mark.parametrize("name", ["ab2", "ab3", "ab4", "ipndm"])
def test_full_order_final_extrapolates_onto_zero(name):
    options = dict(start="ramp") if METHODS[name].rk_steps else {}
    plain = ops_of(name, **options)[-1]
    full = ops_of(name, variant="full_order_final", **options)[-1]
    assert len(plain.weights) == 1
    assert len(full.weights) == METHODS[name].past
    assert sum(full.weights) == pytest.approx(plain.weights[0])  # both right for a constant ε


def test_a_variant_is_named_in_the_plan_and_in_either_way_the_same():
    plan = ddim_ode.plan("dpmpp3m", COSINE, GRID, variant="half+lower_order_final")
    assert plan is ddim_ode.plan("dpmpp3m:half+lower_order_final", COSINE, GRID)
    assert plan.method == "dpmpp3m:half+lower_order_final"
    model, x = mixture_2d(COSINE), points(2, 2)
    by_name = ddim_ode.sample(model, x, "deis3:t", grid=GRID)
    by_variant = ddim_ode.sample(model, x, "deis3", variant="t", grid=GRID)
    assert torch.equal(by_name.x, by_variant.x)
    assert by_name.method == by_variant.method == "deis3:t"


@pytest.mark.parametrize("name", NAMED)
def test_every_variant_differs_from_the_plain_method(name):
    final = "zero" if name.endswith("full_order_final") else "sigma_min"
    grid = grids.make_grid("time", COSINE, 8, final=final)
    changed, plain = (
        ddim_ode.plan(m, COSINE, grid, start="ramp" if get_method(m).rk_steps else None).ops
        for m in (name, name.split(":")[0])
    )
    assert changed != plain


# -- any combination --------------------------------------------------------------------------
KINDS = [(1, True), (2, False), (2, True), (3, False)]
RULERS = ["sigma", "log_sigma", "t", None]


@pytest.mark.parametrize(
    ("chart", "ruler", "past", "corrector"),
    [(c, r, *KINDS[(i + j) % 4]) for i, c in enumerate(CHARTS) for j, r in enumerate(RULERS)],
)
def test_any_chart_ruler_and_order_is_one_line(chart, ruler, past, corrector):
    order = past + corrector
    method = Method("mine", order, chart, past=past, ruler=ruler, corrector=corrector)
    measured = slope(
        MODELS["exponential"], method, 100, ends=(1.5, 0.4), past=past if past > 1 else 0
    )
    assert measured == pytest.approx(order, abs=0.25)


# -- starts -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", STARTED)
def test_the_default_start_is_a_ramp_below_fifteen_steps_and_rk_from_there(name):
    assert set(STARTED) == {"ab3", "ab4", "deis3", "dpmpp3m", "unipc3"}
    extra = {"ab4": 4, "unipc3": 2}.get(name, 1)
    for steps in (3, 14, 15, 30):
        grid = grids.make_grid("time", COSINE, steps)
        plans = {s: ddim_ode.plan(name, COSINE, grid, start=s) for s in ("ramp", "rk", None)}
        assert plans["ramp"].nfe == steps
        assert plans["rk"].nfe == steps + extra
        assert plans[None].ops == plans["ramp" if steps < 15 else "rk"].ops
        assert plans[None].start == ("ramp" if steps < 15 else "rk")
        assert f"start {plans[None].start}" in plans[None].describe()


@pytest.mark.parametrize("name", STARTED)
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_an_rk_start_longer_than_the_solve_is_cut(name, steps):
    for final in grids.FINALS:
        grid = grids.make_grid("time", COSINE, steps, final=final, sigma_max=20.0)
        plan = ddim_ode.plan(name, COSINE, grid, start="rk")
        assert plan.steps == sum(op.commit for op in plan.ops) == steps
        if name == "ab4":  # which wants two such steps of three calls; that to σ = 0 is DDIM's
            whole = steps - (final == "zero")
            assert plan.nfe == 2 * min(2, whole) + steps


# -- error estimates ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.multistep and m.order])
def test_the_error_estimate_follows_the_true_error(name):
    model = mixture_1d(EXPONENTIAL)
    x = 1.2 * torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    for steps in (12, 24, 48):
        grid = grids.make_grid(
            "time", EXPONENTIAL, steps, final="sigma_min", sigma_max=5.0, sigma_min=0.2
        )
        sol = ddim_ode.sample(model, x, name, grid=grid)
        true = (sol.x - model.flow(x, grid[0], grid[-1])).abs()[:, 0]
        overall = float(sol.error.square().mean().sqrt() / true.square().mean().sqrt())
        # A corrected solution is better by an order than the difference from its prediction.
        assert 0.2 < overall < (300 if METHODS[name].corrector else 8)


ESTIMATED = [name for name, m in METHODS.items() if m.multistep and m.order]
FAMILIES = ["ddpm", "exponential", "vp", "ve", "cosine"]


@pytest.mark.parametrize(
    ("name", "schedule"),
    [(name, FAMILIES[(i + j) % 5]) for i, name in enumerate(ESTIMATED) for j in (0, 2)],
)
def test_the_error_estimate_is_of_the_size_of_the_error_from_sigma_max(name, schedule):
    model = mixture_1d(SCHEDULES[schedule])
    x = ddim_ode.noise((1,), model.schedule, seeds=range(60), dtype=torch.float64)
    grid = "karras" if schedule == "ve" else "quadratic"
    for steps in (20, 60):
        sol = ddim_ode.sample(model, x, name, steps=steps, grid=grid)
        # to the last positive level by the exact flow, and from there as every solve
        last = float(sol.sigmas[-2])
        end = model(model.flow(x, sol.sigmas[0], last), last)[0]
        true = float((sol.x - end).square().mean().sqrt())
        assert 0.2 < float(sol.error.square().mean().sqrt()) / true < 40


def test_the_error_estimate_is_per_sample_and_of_one_order_with_the_error():
    model, x, estimates = mixture_2d(COSINE), points(6, 2), []
    for steps in (40, 80):
        sol = ddim_ode.sample(model, x, "ab2", steps=steps, grid="log_snr", sigma_max=20.0)
        assert sol.error.shape == (6,)
        estimates.append(sol.error)
        options = dict(steps=steps, grid="log_snr", sigma_max=20.0)
        alone = ddim_ode.sample(model, x[2:3], "ab2", **options)
        torch.testing.assert_close(alone.error, sol.error[2:3])
    torch.testing.assert_close(
        estimates[0] / estimates[1], torch.full((6,), 4.0).double(), rtol=0.2, atol=0
    )


@pytest.mark.parametrize("name", ["ab3", "deis2", "dpmpp3m", "unipc2"])
def test_an_error_estimate_is_the_same_in_either_scaling(name):
    """x of variance exploding is x/ᾱ of variance preserving, and so is what it errs by."""
    grid, top = [20.0, 8.0, 3.0, 1.2, 0.5, 0.2, 0.05], 20.0
    exploding, preserving = mixture_2d(schedules.ve(50.0)), mixture_2d(COSINE)
    x = points(6, 2) * (1 + top**2) ** 0.5
    a = ddim_ode.sample(exploding, x, name, grid=grid)
    b = ddim_ode.sample(preserving, x / (1 + top**2) ** 0.5, name, grid=grid)
    torch.testing.assert_close(a.x, b.x * (1 + grid[-1] ** 2) ** 0.5, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a.error, b.error * (1 + grid[-1] ** 2) ** 0.5, rtol=1e-8, atol=1e-12)


def test_an_error_estimate_is_of_several_calls_and_keeps_no_graph():
    model, x = mixture_2d(COSINE), points(2, 2).requires_grad_()
    assert ddim_ode.sample(model, x, "heun", steps=4).error is None
    assert ddim_ode.sample(model, x, "ab2", steps=1).error is None
    sol = ddim_ode.sample(model, x, "ab3", steps=5, differentiable=True)
    assert (sol.x.requires_grad, sol.error.requires_grad) == (True, False)


def test_methods_print_as_a_table():
    table = ddim_ode.methods()
    lines = str(table).splitlines()
    assert repr(table) == str(table)
    assert len(lines) == len(table) + 1 == len(METHODS) + 1
    assert lines[0].split()[:3] == ["name", "order", "order_as_run"]
