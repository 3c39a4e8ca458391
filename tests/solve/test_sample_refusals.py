"""Requests that cannot be met: the argument, its value or range, and what to change.

Which options a kind of solve takes at all is test_request's table.
"""

import numpy as np
import pytest
import torch
from problems import COSINE, DDPM, Counting, gaussian_2d, mixture_1d, mixture_2d, points, zero_snr
from refusals import expect, sample

import ddim_ode
from ddim_ode import Denoiser, Guidance, ProbabilityFlow, schedules
from ddim_ode.solvers.methods import METHODS

X = points(3, 2)
MODEL = Denoiser(Counting(), COSINE)
GRID = [5.0, 1.0, 0.2, 0.0]
PLAN = ddim_ode.plan("ddim", COSINE, GRID)
LABELLED = Denoiser(lambda x, t, y: x, COSINE)


def said(net):
    return Denoiser(net, COSINE)


def null_of(value):
    return Denoiser(lambda x, t, y: x, COSINE, guidance=Guidance(2.0, {"y": value}))


def flow(*args, **options):
    return ProbabilityFlow(MODEL, *args, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        # how and where to step
        (sample(MODEL, X), "'ddim' needs to know where to step: give steps= or nfe="),
        (sample(MODEL, X, "torchdiffeq:rk4"), "torchdiffeq:rk4 needs to know where to step"),
        (sample(MODEL, X, steps=5, nfe=5), "both steps and nfe .*drop nfe"),
        (sample(MODEL, X, timesteps=[5, 9], steps=3), "both steps and timesteps"),
        (sample(MODEL, X, timesteps=[5, 9], grid="time"), "both timesteps and grid"),
        (sample(MODEL, X, timesteps=[5, 9], sigma_max=4.0), "timesteps= .*drop sigma_max=4.0"),
        (sample(MODEL, X, grid=GRID, steps=3), "grid= .*drop steps=3"),
        (sample(MODEL, X, grid=GRID, nfe=3), "grid= .*drop nfe=3"),
        (sample(MODEL, X, nfe=10, noise_std=[1e-4] * 6 + [0.0]), "both nfe and noise_std"),
        (sample(MODEL, X, "rk45", nfe=10, max_nfe=10), "both nfe and max_nfe"),
        (sample(MODEL, X, "rk45", rtol=1e-3, steps=4), "drop steps, grid"),
        (sample(MODEL, X, "heun", max_nfe=9, grid="karras"), "drop steps, grid"),
        (sample(MODEL, X, "rk4", rtol=1e-3, steps=3), "adaptive are heun, bosh3, rk45.*drop rtol"),
        (sample(MODEL, X, "restart", rtol=1e-3), "adaptive are .*, unipc3, torchdiffeq.*drop rtol"),
        (sample(MODEL, X, "edm_stochastic", rtol=1e-3), "no tolerance .*drop rtol"),
        (sample(MODEL, X, "sa3", rtol=1e-3), "no tolerance .*drop rtol"),
        (sample(MODEL, X, "scipy:RK45", steps=3), "chooses its own steps: drop steps"),
        (sample(MODEL, X, "scipy:RK45", grid="karras"), "chooses its own steps: drop .*grid"),
        (sample(MODEL, X, "torchdiffeq:rk4", nfe=9), r"on a grid \(steps=\).*drop nfe=9"),
        (sample(MODEL, X, "torchdiffeq:rk4", steps=3, rtol=1e-9), "drop rtol=1e-09"),
        (sample(MODEL, X, "reversible", steps=2), "goes both ways: ddim_ode.encode"),
        (sample(MODEL, X, PLAN), r"method=Plan\(ddim.*give it as plan="),
        (sample(MODEL, X, nfe=10**30), "nfe=.* whole number >= 1 and <= 1000000"),
        (sample(MODEL, X, "rk4", nfe=3, final="sigma_min"), r"nfe=3 .*step of 'rk4' costs \(4\)"),
        # grids, whose own table is test_grids's
        (sample(MODEL, X, grid=[1.0, 2.0]), r"grid\[1\]=2.*within"),
        (sample(MODEL, X, grid=[2.0, np.nan]), r"grid\[1\]=nan.*range"),
        (sample(MODEL, X, steps=2, sigma_max=[3.0]), "sigma_max=.* one number"),
        (
            sample(Denoiser(Counting(), schedules.ddpm(T=20), snap=True), X, steps=30),
            "snap=True: 30 levels .* only 20 distinct trained levels .*snap=False",
        ),
        # names: the valid ones are listed, the nearest first
        (sample(MODEL, X, "hune", steps=3), "method 'hune'.*first: heun,"),
        (sample(MODEL, X, "Euler", steps=3), "method 'Euler'.*first: ddim,"),
        (sample(MODEL, X, "scipy:RK54", steps=3), "scipy solver 'RK54'.*first: RK45,"),
        (sample(MODEL, X, "torchdiffeq:dopri6"), "torchdiffeq solver 'dopri6'.*: dopri"),
        (lambda: Denoiser(Counting(), COSINE, "epsilon"), "prediction 'epsilon'.*: eps,"),
        (lambda: flow("sigm"), "variable 'sigm'.*: sigma,"),
        # step noise
        (sample(MODEL, X, grid=GRID, eta=1.0, noise_std=[0.1, 0.1, 0.0]), "both eta and noise_std"),
        (sample(MODEL, X, grid=GRID, eta=-0.1), "eta=-0.1 must be finite and >= 0"),
        (sample(MODEL, X, grid=GRID, eta=1.7), r"noise_std\[0\]=1.17.* σ'=1; .*\[0, 0.707"),
        (sample(MODEL, X, "dpmpp2m", nfe=20, eta=1.05), r"eta=1.05 makes noise_std\[\d+\]="),
        (sample(MODEL, X, "unipc3", nfe=20, eta=lambda sigma: 1.2), r"eta makes noise_std\[0\]="),
        (sample(MODEL, X, grid=GRID, noise_std=[0.1, 0.1]), r"noise_std .*\(2,\); .*step, \(3,\)"),
        (sample(MODEL, X, grid=GRID, noise_std=0.1), r"noise_std has shape \(\)"),
        (sample(MODEL, X, grid=GRID, noise_std=[0.1, 0.3, 0.0]), r"\[1\]=0.3 at .*\[0, 0.196"),
        (sample(MODEL, X, grid=GRID, noise_std=[0.1, 0.1, 0.01]), r"\[2\]=0.01 at .*\[0, 0\]"),
        (sample(MODEL, X, grid=GRID, noise_std=[-0.1, 0.1, 0.0]), r"noise_std\[0\]=-0.1 "),
        (sample(MODEL, X, grid=GRID, noise_std=[np.nan, 0.1, 0.0]), r"noise_std\[0\]=nan "),
        (sample(MODEL, X, "ddpm", steps=3, seeds=[1, 2]), "seeds.*batch of 3; give one"),
        # gradients
        (sample(MODEL, X, steps=3, differentiable="twice"), "differentiable 'twice'.*checkpoint"),
        (
            sample(MODEL, X, steps=3, differentiable="adjoint"),
            "'adjoint', .*torchdiffeq:dopri5.*use 'checkpoint' or True",
        ),
        (sample(MODEL, X, "rk45", differentiable="checkpoint"), "'checkpoint', .*use True"),
        (
            sample(MODEL, X, "torchdiffeq:dopri5", differentiable="checkpoint"),
            "'checkpoint'.*use 'adjoint' or True",
        ),
        (sample(MODEL, X, "scipy:RK45", differentiable="adjoint"), "scipy:RK45 has no gradient"),
        (sample(MODEL, X, "scipy:RK45", differentiable=True), "no gradient.*torchdiffeq:dopri5"),
        # the model
        (lambda: Denoiser(Counting(), np.ones(3)), "from_alphas_cumprod"),
        (lambda: Denoiser(Counting(), COSINE, learned_variance="fixed"), "first: split"),
        (lambda: Denoiser(max, COSINE, time=max, time_offset=-1.0), "time.. add the offset"),
        (lambda: Denoiser(max, schedules.vp(), snap=True), "no integer levels.*snap=False"),
        (lambda: Guidance(3.0), "needs null="),
        (sample(Counting(), X, steps=2), "model must be a Denoiser, got Counting: wrap"),
        (lambda: MODEL(X, 1e9), r"sigma=1e\+09 is outside"),
        (sample(mixture_2d(DDPM), X, plan=PLAN), "plan .*for schedule .* compile it again"),
        # the state and its conditions
        (sample(MODEL, [[1.0]], steps=2), "x must be a floating tensor .* got list"),
        (sample(MODEL, X.long(), steps=2), r"x must be .* got torch.int64 \(3, 2\)"),
        (sample(LABELLED, X, steps=2, cond={"y": X[:2]}), r"cond\['y'\].*per sample \(3\), got 2"),
        (sample(LABELLED, X, steps=2, cond={"y": 7}), r"cond\['y'\].*got int; .*shared="),
        (sample(LABELLED, X, steps=2, cond={"y": X}, shared={"y": 3.0}), "'y' .*; drop one"),
        (sample(null_of(0), X, steps=2), r"guidance drops 'y'.*needs cond\['y'\]"),
        *(
            (sample(null_of(null), X, steps=2, cond={"y": torch.tensor([1, 4, 2])}), message)
            for null, message in (
                (0.5, r"null\['y'\]=0.5 is a fraction, but cond\['y'\] is torch.int64"),
                ("cat", r"null\['y'\]='cat' is no value of cond\['y'\]"),
                (torch.zeros(2, dtype=torch.long), r"whose samples have shape \(\)"),
            )
        ),
        # what the network answers, and where it is blind
        *(
            (call, message)
            for net, message in (
                (lambda x, t: x[:, :1], r"returned shape \(3, 1\) for x of \(3, 2\)"),
                (lambda x, t: x[:1], r"shape \(1, 2\) for x of \(3, 2\).* one eps per entry"),
                (lambda x, t: torch.cat([x, x], 1), r"\(3, 4\).*learned_variance='split'"),
            )
            for call in (
                sample(said(net), X, steps=2),
                lambda net=net: said(net)(X, 1.0),
                lambda net=net: ddim_ode.encode(said(net), X, steps=2),
            )
        ),
        (lambda: Denoiser(Counting(), zero_snr())(X, np.inf), "rescale_betas_zero_snr"),
        (sample(Denoiser(Counting(), zero_snr(), clip=1.0), X, steps=3), "rescale_betas_zero_snr"),
        *(
            (
                sample(Denoiser(Counting(), COSINE, time=lambda t, s, v=v: v), X, steps=3),
                "number for each",
            )
            for v in (None, "a", float("nan"), [1.0] * 7)
        ),
        # the ODE by itself
        (lambda: flow()(0.5, np.ones(4)), "needs ProbabilityFlow.*shape="),
        (
            lambda: ProbabilityFlow(
                gaussian_2d(schedules.flow(), "v"), "t", "x/alpha_bar"
            ).to_state(X, np.inf),
            "infinite at σ=inf; use state='x'",
        ),
        *((lambda v=v: flow(v)(0.0, X), "before σ=0 .*sigma_min > 0") for v in ("s", "t", "sigma")),
        (lambda: flow("s").span(10.0, 0.0), "sigma=0.0 must be positive"),
    ],
)
def test_what_cannot_be_says_what_to_change(call, message):
    expect(call, message)


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if not m.takes_noise])
def test_step_noise_belongs_to_ddim_and_chart_data(name):
    for option in (dict(eta=0.5), dict(noise_std=[0.1, 0.1, 0.0])):
        message = f"method '{name}' takes no {next(iter(option))}: .*ddim.*chart 'data'"
        expect(sample(MODEL, X, name, grid=GRID, **option), message)


def test_the_bound_of_step_noise_itself_is_allowed():
    bound = COSINE.scales(np.array(GRID[1:]))[1]
    plan = ddim_ode.plan("ddim", COSINE, GRID, noise_std=bound, vector="x0")
    assert [op.scale for op in plan.ops[1:]] == [0, 0, 0]  # nothing of x_t is kept
    bound[1] *= 1 + 1e-6
    expect(lambda: ddim_ode.plan("ddim", COSINE, GRID, noise_std=bound), r"noise_std\[1\]=.*\[0, ")


@pytest.mark.parametrize("schedule", [zero_snr(), schedules.flow()], ids=["zero_snr", "flow"])
@pytest.mark.parametrize("prediction", ["eps", "score"])
def test_an_eps_network_cannot_start_at_alpha_bar_zero(schedule, prediction):
    message = f"prediction='{prediction}' .*σ=inf .*rescale_betas_zero_snr.*sigma_max.*'v' or 'x0'"
    model = Denoiser(Counting(), schedule, prediction)
    for name in METHODS:
        expect(sample(model, X, name, steps=4), message)


def test_the_message_about_another_schedule_is_short():
    squares = DDPM.alpha_bar(range(1, 1001)) ** 2
    other = Denoiser(Counting(), schedules.from_alphas_cumprod(squares))
    with pytest.raises(ValueError, match="compile it again") as caught:
        ddim_ode.sample(other, X, plan=PLAN)
    assert len(str(caught.value)) < 400


# -- both directions ------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [ddim_ode.encode, ddim_ode.decode])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(grid=[0.2, 1.0, 5.0]), r"grid\[1\]=1 does not fall below grid\[0\]=0.2"),
        (dict(grid=[5.0, np.nan, 1.0]), r"grid\[1\]=nan is outside"),
        (dict(grid=[5.0, 1.0, 0.0]), r"grid\[2\]=0: the ODE ends before σ=0.*drop that entry"),
        (dict(steps=5, sigma_min=0.0), "sigma_min=0: need 0 < sigma_min < sigma_max"),
        (dict(steps=5, sigma_max=1e9), "sigma_max=1e.09 is outside"),
        (dict(steps=5, final="zero"), "final='zero': the jump to σ=0 cannot be undone"),
        (dict(steps=5, method="ddpm"), "cannot be undone; drop method='ddpm'"),
        (dict(steps=5, method="hune"), "method 'hune'.*first: heun,"),
        (dict(plan="ddim"), "plan must be a Plan"),
        (dict(), "needs to know where to step"),
        (dict(steps=5, partner=X), "only method='reversible' .*drop partner="),
        (dict(method="reversible"), "'reversible' needs to know where to step"),
        (dict(method="reversible", nfe=1), "nfe=1 is less than one step of 'reversible'"),
        (dict(method="reversible:eps", steps=2, chart="log"), "both method=.*and chart="),
        (dict(method="reversible:esp", steps=2), "chart 'esp'.*first: exp, eps"),
        (dict(method="reversible", steps=2, partner=X[:1]), r"partner has shape \(1, 2\)"),
        (dict(method="scipy:RK45", steps=5), "scipy:RK45 chooses its own steps"),
        (dict(steps=3, cond={"y": torch.zeros(2)}), r"cond\['y'\] .* one row per sample"),
        (dict(plan=ddim_ode.plan("ddim", DDPM, GRID)), "plan was made for schedule"),
    ],
)
def test_each_edge_says_what_to_change_in_both_directions(run, options, message):
    expect(lambda: run(MODEL, X, **options), message)


@pytest.mark.parametrize("run", [ddim_ode.encode, ddim_ode.decode])
def test_the_two_directions_name_what_is_no_model_and_no_state(run):
    expect(lambda: run(Counting(), X, steps=3), "model must be a Denoiser, got Counting")
    expect(lambda: run(MODEL, X.long(), steps=3), "must be a floating tensor")


def test_the_solution_of_an_encode_says_all_but_the_conditions():
    model = mixture_1d(COSINE)
    up, own = (ddim_ode.encode(model, X[:, :1], name, steps=3) for name in ("ddim", "reversible"))
    expect(lambda: ddim_ode.decode(model, up, steps=3), "already says how .*drop steps=3")
    expect(lambda: ddim_ode.decode(mixture_1d(DDPM), own), "made with schedule .* that encoded")
    adaptive = ddim_ode.encode(model, X[:, :1], "rk45")
    expect(
        lambda: ddim_ode.decode(model, adaptive),
        r"give its \.x, .*decode\(model, latent\.x, 'rk45'",
    )
    again = lambda: ddim_ode.decode(model, adaptive, "rk45")  # noqa: E731
    expect(again, "rk45 has no plan to undo")
