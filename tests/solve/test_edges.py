"""What a caller gets at the edges: a message that says what to change, or a status per sample."""

import numpy as np
import pytest
import torch
from problems import (
    COSINE,
    DDPM,
    EXPONENTIAL,
    Counting,
    gaussian_2d,
    mixture_2d,
    points,
    zero_snr,
)
from refusals import expect, sample

import ddim_ode
from ddim_ode import Denoiser, Guidance, grids, schedules
from ddim_ode.solvers.methods import METHODS

X = points(3, 2)
MODEL = Denoiser(Counting(), COSINE)
GRID = [5.0, 1.0, 0.2, 0.0]
PLAN = ddim_ode.plan("ddim", COSINE, GRID)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (sample(MODEL, X, steps=5, nfe=5), "both steps and nfe are given; drop nfe"),
        (sample(MODEL, X, "ddim", plan=PLAN), "both plan and method are given; drop method"),
        (sample(MODEL, X, plan=PLAN, steps=3), "plan= already fixes .*drop steps=3"),
        (sample(MODEL, X, plan=PLAN, grid=GRID), "plan= already fixes .*drop grid="),
        (sample(MODEL, X, plan=PLAN, final="zero"), "plan= already fixes .*drop final='zero'"),
        (sample(MODEL, X, timesteps=[5, 9], steps=3), "both steps and timesteps"),
        (sample(MODEL, X, timesteps=[5, 9], grid="time"), "both timesteps and grid"),
        (sample(MODEL, X, timesteps=[5, 9], sigma_max=4.0), "timesteps= already .* drop sigma_max=4.0"),
        (sample(MODEL, X, grid=GRID, steps=3), "grid= already fixes the levels; drop steps=3"),
        (sample(MODEL, X, grid=GRID, nfe=3), "grid= already fixes the levels; drop nfe=3"),
        (sample(MODEL, X), "method 'ddim' needs to know where to step: give steps= or nfe="),
        (sample(MODEL, X, steps=0), "steps=0 must be a whole number >= 1"),
        (sample(MODEL, X, nfe=0), "nfe=0 must be a whole number >= 1"),
        (sample(MODEL, X, steps=3, rtol=1e-3), "no tolerance .*torchdiffeq:dopri5.*drop rtol=0.001"),
        (sample(MODEL, X, steps=3, max_nfe=9), "a fixed plan has no .*budget.*drop max_nfe=9"),
        (sample(MODEL, X, "scipy:RK45", steps=3), "scipy:RK45 chooses its own steps: drop steps"),
        (sample(MODEL, X, "torchdiffeq:rk4", nfe=9), r"steps on a grid \(steps=\).*drop nfe=9"),
        (sample(MODEL, X, "torchdiffeq:rk4"), "torchdiffeq:rk4 needs to know where to step"),
        (sample(MODEL, X, "scipy:RK45", record="x"), "scipy:RK45 .*drop record='x'"),
        (sample(MODEL, X, steps=3, record="all"), "unknown record 'all'.*valid, nearest first: .*none"),
        (sample(MODEL, X, steps=3, on_nan="keep"), "unknown on_nan 'keep'; .*report"),
        (sample(MODEL, X, steps=3, final="one"), "unknown final 'one'.*zero"),
        (sample(mixture_2d(DDPM), X, plan=PLAN), "the plan was made for schedule .* compile it again"),
    ],
)  # fmt: skip
def test_arguments_that_exclude_each_other_say_which_to_drop(call, message):
    expect(call, message)


@pytest.mark.parametrize(
    "option",
    [dict(eta=1.0), dict(noise_std=[0.1, 0.1, 0.0]), dict(chart="log")],
    ids=lambda option: next(iter(option)),
)
@pytest.mark.parametrize(
    "given", [dict(plan=PLAN), dict(method="scipy:RK45")], ids=["plan", "external"]
)
def test_an_option_that_would_be_ignored_is_refused(given, option):
    expect(sample(MODEL, X, **given, **option), next(iter(option)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (sample(MODEL, X, "hune", steps=3), "unknown method 'hune'; valid, nearest first: heun,"),
        (sample(MODEL, X, "dddim", steps=3), "nearest first: ddim, .*ddpm"),
        (sample(MODEL, X, grid="karas", steps=3), "unknown grid 'karas'.*first: karras,"),
        (sample(MODEL, X, "scipy:RK54", steps=3), "unknown scipy solver 'RK54'.*first: RK45,"),
        (sample(MODEL, X, "torchdiffeq:dopri6"), "unknown torchdiffeq solver 'dopri6'.*: dopri"),
        (lambda: Denoiser(Counting(), COSINE, "epsilon"), "unknown prediction 'epsilon'.*: eps,"),
        (lambda: Denoiser(Counting(), COSINE, "scores"), "nearest first: score,"),
        (lambda: Denoiser(Counting(), COSINE, "v_prediction"), "nearest first: v,"),
        (sample(MODEL, X, "Euler", steps=3), "unknown method 'Euler'; valid, nearest first: ddim,"),
    ],
)
def test_unknown_names_list_the_valid_ones_nearest_first(call, message):
    expect(call, message)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "ddim"])
@pytest.mark.parametrize("option", [dict(eta=0.5), dict(noise_std=[0.1, 0.1, 0.0])])
def test_step_noise_belongs_to_ddim(name, option):
    message = f"method '{name}' takes no {next(iter(option))}: .* method='ddim'"
    expect(sample(MODEL, X, name, grid=GRID, **option), message)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (dict(eta=1.0, noise_std=[0.1, 0.1, 0.0]), "both eta and noise_std are given"),
        (dict(eta=-0.1), "eta=-0.1 must be finite and >= 0"),
        (dict(eta=np.nan), "eta=nan must be finite"),
        (dict(eta=1.7), r"eta=1.7 makes noise_std\[0\]=1.17.* at σ'=1; allowed is \[0, 0.707"),
        (dict(noise_std=[0.1, 0.1]), r"noise_std has shape \(2,\); give one .* per step, \(3,\)"),
        (dict(noise_std=0.1), r"noise_std has shape \(\)"),
        (dict(noise_std=[0.1, 0.3, 0.0]), r"noise_std\[1\]=0.3 at σ'=0.2; allowed is \[0, 0.196"),
        (dict(noise_std=[0.1, 0.1, 0.01]), r"noise_std\[2\]=0.01 at σ'=0; allowed is \[0, 0\]"),
        (dict(noise_std=[-0.1, 0.1, 0.0]), r"noise_std\[0\]=-0.1 "),
        (dict(noise_std=[np.nan, 0.1, 0.0]), r"noise_std\[0\]=nan "),
    ],
)
def test_step_noise_outside_its_bound_is_refused_by_entry(option, message):
    expect(sample(MODEL, X, "ddim", grid=GRID, **option), message)


def test_the_bound_of_step_noise_itself_is_allowed():
    bound = COSINE.scales(np.array(GRID[1:]))[1]
    plan = ddim_ode.plan("ddim", COSINE, GRID, noise_std=bound, vector="x0")
    assert [op.scale for op in plan.ops[1:]] == [0, 0, 0]  # nothing of x_t is kept


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([1, 2], "for a batch of 3; give one"),
        ([1, 2, -3], "seed.*-3 must be a whole number"),
        ([1, 2, 0.5], "seed.*0.5 must be a whole number"),
    ],
)
def test_seeds_are_one_whole_number_per_sample(seeds, message):
    expect(sample(MODEL, X, "ddpm", steps=3, seeds=seeds), message)


def test_snap_with_more_steps_than_levels_names_both_numbers():
    model = Denoiser(Counting(), schedules.ddpm(T=20), snap=True)
    message = r"snap=True: 30 levels .* only 20 distinct trained levels \(of 20\).*snap=False"
    expect(sample(model, X, steps=30), message)


def test_snap_needs_levels():
    expect(lambda: Denoiser(Counting(), schedules.vp(), snap=True), "no integer levels.*snap=False")


@pytest.mark.parametrize("schedule", [zero_snr(), schedules.flow()], ids=["zero_snr", "flow"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("prediction", ["eps", "score"])
def test_an_eps_network_cannot_start_at_alpha_bar_zero(schedule, name, prediction):
    model = Denoiser(Counting(), schedule, prediction)
    message = (
        f"prediction='{prediction}' says nothing of x0 at σ=inf .*rescale_betas_zero_snr.*"
        "finite sigma_max.*prediction='v' or 'x0'"
    )
    expect(sample(model, X, name, steps=4), message)


def test_an_eps_network_cannot_give_x0_at_alpha_bar_zero():
    expect(lambda: Denoiser(Counting(), zero_snr())(X, np.inf), "rescale_betas_zero_snr")


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda x, t: x[:, :1], r"returned shape \(3, 1\) for x of \(3, 2\)"),
        (lambda x, t: x[:1], r"returned shape \(1, 2\) for x of \(3, 2\).* one eps per entry"),
        (lambda x, t: torch.cat([x, x], 1), r"\(3, 4\).*Twice the channels.*learned_variance='split'"),
    ],
)  # fmt: skip
def test_a_network_of_the_wrong_shape_is_refused(net, message):
    expect(sample(Denoiser(net, COSINE), X, steps=2), message)
    expect(lambda: Denoiser(net, COSINE)(X, 1.0), message)


def test_split_takes_the_first_half_of_the_channels():
    net = lambda x, t: torch.cat([torch.tanh(x), 1e9 * torch.ones_like(x)], 1)  # noqa: E731
    split = ddim_ode.sample(Denoiser(net, COSINE, learned_variance="split"), X, steps=4)
    assert torch.equal(split.x, ddim_ode.sample(MODEL, X, steps=4).x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Denoiser("net", COSINE), "net must be callable as net.*got str"),
        (lambda: Denoiser(Counting(), np.ones(3)), "from_alphas_cumprod"),
        (lambda: Denoiser(Counting(), COSINE, learned_variance="fixed"), "nearest first: split"),
        (lambda: Denoiser(Counting(), COSINE, time=max, time_offset=-1.0), "let time.. add the offset"),
        (lambda: Guidance(np.nan), "guidance scale nan must be"),
        (lambda: Guidance(3.0), "needs null="),
        (lambda: MODEL(X, -1.0), "sigma"),
        (lambda: MODEL(X, 1e9), r"sigma=1e\+09 is outside"),
        (sample(Counting(), X, steps=2), "model must be a Denoiser, got Counting: wrap the network"),
        (sample(MODEL, [[1.0]], steps=2), "x must be a floating tensor .* got list"),
        (sample(MODEL, X.long(), steps=2), r"x must be a floating tensor .* got torch.int64 \(3, 2\)"),
        (sample(MODEL, X[0, 0], steps=2), r"x must be a floating tensor .* got torch.float64 \(\)"),
        (sample(MODEL, X, steps=2, cond={"y": X[:2]}), r"cond\['y'\].* one row per sample \(3\), got 2"),
        (sample(MODEL, X, steps=2, cond={"y": 7}), r"cond\['y'\].*got int; .* goes into shared="),
        (
            sample(Denoiser(Counting(), COSINE, guidance=Guidance(2.0, {"y": 0})), X, steps=2),
            r"guidance drops 'y', so sampling needs cond\['y'\]",
        ),
    ],
)  # fmt: skip
def test_a_wrong_model_or_state_is_refused_at_the_border(call, message):
    expect(call, message)


@pytest.mark.parametrize("name", [*METHODS, "scipy:RK45", "torchdiffeq:dopri5", "torchdiffeq:rk4"])
def test_an_empty_batch_costs_nothing(name):
    net = Counting()
    where = {} if name in ("scipy:RK45", "torchdiffeq:dopri5") else dict(steps=4)
    sol = ddim_ode.sample(Denoiser(net, COSINE), torch.empty(0, 2), name, **where)
    assert sol.x.shape == (0, 2)
    assert (net.calls, sol.nfe, sol.net_evals, sol.status.tolist()) == (0, 0, 0, [])


def nan_below(t_bad, row=1):
    def net(x, t):
        out = torch.tanh(x)
        bad = (torch.arange(len(x)) == row) & (t < t_bad)
        return torch.where(bad[:, None], torch.nan, out)

    return Denoiser(net, EXPONENTIAL)


@pytest.mark.parametrize("name", METHODS)
def test_a_nan_stays_with_its_sample(name):
    options = dict(steps=8, seeds=[1, 2, 3])
    sol = ddim_ode.sample(nan_below(400.0), X, name, **options)
    clean = ddim_ode.sample(nan_below(0.0), X, name, **options)
    assert sol.status.tolist() == ["success", "non_finite", "success"]
    assert torch.equal(sol.x[[0, 2]], clean.x[[0, 2]])
    assert sol.nfe == clean.nfe


@pytest.mark.parametrize("name", METHODS)
def test_hold_keeps_the_last_finite_state(name):
    options = dict(steps=8, seeds=[1, 2, 3])
    sol = ddim_ode.sample(nan_below(400.0), X, name, on_nan="hold", **options)
    clean = ddim_ode.sample(nan_below(0.0), X, name, record="x", **options)
    level = EXPONENTIAL.time(clean.sigmas)
    used = [t for t in level if t >= 400.0]  # the step from the last of these may use later calls
    candidates = [len(used) - 1, len(used)]
    assert sol.status.tolist() == ["success", "non_finite", "success"]
    assert torch.equal(sol.x[[0, 2]], clean.x[[0, 2]])
    assert any(torch.equal(sol.x[1], clean.trajectory[i][1]) for i in candidates)


EXTERNAL = ["torchdiffeq:dopri5", "torchdiffeq:bosh3", "scipy:RK45", "scipy:LSODA", "scipy:BDF"]


@pytest.mark.parametrize("name", EXTERNAL)
@pytest.mark.parametrize("t_bad", [400.0, 2000.0], ids=["later", "from_the_first_call"])
def test_an_external_solve_on_nan_ends_with_a_status(name, t_bad):
    sol = ddim_ode.sample(nan_below(t_bad), X, name)
    assert set(sol.status) <= {"non_finite", "step_underflow"}
    assert sol.nfe < 500


def test_a_fixed_external_solve_keeps_a_nan_with_its_sample():
    sol = ddim_ode.sample(nan_below(400.0), X, "torchdiffeq:rk4", steps=8)
    assert sol.status.tolist() == ["success", "non_finite", "success"]


@pytest.mark.parametrize(("final", "calls"), [("zero", 24), ("sigma_min", 25)])  # one for landing
@pytest.mark.parametrize("name", EXTERNAL)
def test_max_nfe_ends_an_external_solve_on_the_way(name, final, calls):
    # ε = 0: x/ᾱ stays, so |x| grows steadily and a partial state lies between the ends.
    net = Counting(lambda x, t: torch.zeros_like(x))
    model = Denoiser(net, EXPONENTIAL)
    options = dict(rtol=1e-7, atol=1e-7, final=final)
    sol = ddim_ode.sample(model, X, name, max_nfe=25, **options)
    whole = ddim_ode.sample(model, X, name, max_nfe=10**5, **options)
    assert sol.status.tolist() == ["max_nfe"] * 3
    assert sol.nfe == calls
    assert net.calls == sol.nfe + whole.nfe
    assert torch.all(sol.x.abs() >= X.abs())
    assert torch.all(sol.x.abs() < whole.x.abs())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_start_is_integrated_in_single(dtype):
    model, x = gaussian_2d(COSINE), X.to(dtype)
    sol = ddim_ode.sample(model, x, "heun", steps=6)
    assert torch.equal(sol.x, ddim_ode.sample(model, x.float(), "heun", steps=6).x)
    assert sol.x.dtype == torch.float32


@pytest.mark.parametrize("grid", [[1.0, 2.0], [2.0, np.nan], [3.0, 3.0], [1e9, 1.0]])
def test_sample_refuses_a_bad_grid(grid):
    expect(sample(MODEL, X, grid=grid), r"grid\[[01]\]=.*(range|decreasing)")


def test_a_fixed_grid_is_not_altered():
    grid = grids.make_grid("karras", COSINE, 5, sigma_max=9.0)
    before = grid.copy()
    sol = ddim_ode.sample(MODEL, X, grid=grid)
    np.testing.assert_array_equal(grid, before)
    np.testing.assert_array_equal(sol.sigmas, before)


def test_a_condition_given_twice_is_refused():
    given = dict(cond={"y": X}, shared={"y": 3.0})
    model = Denoiser(lambda x, t, y: x, COSINE)
    expect(sample(model, X, steps=2, **given), "'y' is in cond and in shared; drop one")


@pytest.mark.parametrize(
    ("null", "message"),
    [
        (0.5, r"null\['y'\]=0.5 is a fraction, but cond\['y'\] is torch.int64"),
        ("cat", r"null\['y'\]='cat' is no value of cond\['y'\]"),
        (torch.zeros(2, dtype=torch.long), r"whose samples have shape \(\)"),
    ],
)
def test_a_null_that_is_no_value_of_its_condition_is_refused(null, message):
    model = Denoiser(lambda x, t, y: x, COSINE, guidance=Guidance(2.0, {"y": null}))
    expect(sample(model, X, steps=2, cond={"y": torch.tensor([1, 4, 2])}), message)


@pytest.mark.parametrize(
    "name", ["torchdiffeq:dopri5", "torchdiffeq:bosh3", "scipy:RK45", "scipy:LSODA"]
)
def test_an_adaptive_solve_on_nan_returns_the_last_accepted_state(name):
    sol = ddim_ode.sample(nan_below(400.0), X, name)
    assert sol.x.isfinite().all()
    assert (sol.accepted > 0).all()
    assert not torch.equal(sol.x, X)


def test_a_solver_without_a_gradient_says_so():
    call = sample(mixture_2d(COSINE), X, "scipy:RK45", differentiable=True)
    expect(call, "no gradient.*torchdiffeq:dopri5")


def test_a_fixed_external_method_takes_no_tolerance():
    expect(sample(MODEL, X, "torchdiffeq:rk4", steps=3, rtol=1e-9), "drop rtol=1e-09")


def test_an_adaptive_method_takes_no_grid_name():
    expect(sample(MODEL, X, "scipy:RK45", grid="karras"), "chooses its own steps: drop .*grid")


def test_a_budget_does_not_look_for_a_grid_that_a_noise_array_fits():
    noise = [1e-4] * 6 + [0.0]
    expect(sample(MODEL, X, nfe=10, noise_std=noise), "both nfe and noise_std")


@pytest.mark.parametrize("name", ["torchdiffeq:euler", "torchdiffeq:rk4"])
def test_a_fixed_external_solve_of_many_steps_is_finished(name):
    sol = ddim_ode.sample(gaussian_2d(COSINE), X, name, steps=600)
    assert sol.status.tolist() == ["success"] * 3
    assert sol.accepted.tolist() == [600] * 3


def test_the_message_about_another_schedule_is_short():
    squares = DDPM.alpha_bar(range(1, 1001)) ** 2
    other = Denoiser(Counting(), schedules.from_alphas_cumprod(squares))
    with pytest.raises(ValueError, match="compile it again") as caught:
        ddim_ode.sample(other, X, plan=PLAN)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("method", ["heun", "ddpm", "ab2"])
def test_only_ddim_takes_free_step_noise(method):
    expect(sample(MODEL, X, method, steps=3, eta=0.5), f"method '{method}' takes no eta")


@pytest.mark.parametrize("told", [None, "a", float("nan"), [1.0] * 7])
def test_a_time_that_is_no_number_is_named(told):
    model = Denoiser(Counting(), COSINE, time=lambda t, sigma: told)
    with pytest.raises(ValueError, match="must return a number for each of"):
        ddim_ode.sample(model, X, steps=3)
