"""Guidance by a function of the two predictions, in two calls, and at a scale of each sample's own."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from peers import load as peer
from problems import COSINE, Counting
from refusals import expect
from test_guidance import LABELS, MEANS, X, denoiser, gaussians, labelled

import ddim_ode
from ddim_ode import Denoiser, Guidance, schedules
from ddim_ode.denoising.guidance_rules import apg, cfg_plus_plus, cfg_zero_star
from ddim_ode.solve.model_key import model_key

NULL = {"y": 0}
COND = {"y": LABELS}


def plain(scale):
    def combine(cond, uncond, x, sigma):
        return uncond + scale * (cond - uncond)

    return combine


def guided(guidance, net=labelled, **options):
    return denoiser(net, guidance, **options)


def flow_net(x, t, y):
    return torch.tanh(x + 0.4 * y[:, None] + 0.1 * t[:, None])


def flow_model(guidance=None):
    return Denoiser(flow_net, schedules.flow(), "flow", guidance=guidance)


SOLVES = dict(
    fixed=lambda model: ddim_ode.sample(model, X, "heun", steps=6, cond=COND).x,
    adaptive=lambda model: ddim_ode.sample(model, X, "rk45", rtol=1e-4, cond=COND).x,
    multistep=lambda model: ddim_ode.sample(model, X, "unipc2", rtol=1e-3, cond=COND).x,
    torchdiffeq=lambda model: ddim_ode.sample(model, X, "torchdiffeq:rk4", steps=6, cond=COND).x,
    direct=lambda model: model(X, torch.tensor([0.5, 1.0, 2.0, 7.0]), COND)[0],
)


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("interval", [None, (0.3, 5.0)])
@pytest.mark.parametrize("solve", SOLVES)
def test_a_function_a_scale_each_and_two_calls_are_the_same_guidance(solve, interval, batch):
    same = [
        Guidance(2.5, NULL, interval),
        Guidance(combine=plain(2.5), null=NULL, interval=interval),
        Guidance(torch.full((4,), 2.5), NULL, interval),
        Guidance(2.5, NULL, interval, sequential=True),
        Guidance(2.5, {"y": torch.zeros(4, dtype=torch.long)}, interval, sequential=True),
        Guidance(combine=plain(2.5), vector="x0", null=NULL, interval=interval),
    ]
    models = [guided(guidance) for guidance in same]
    if batch is not None:
        models = [ddim_ode.accelerate(model, batch=batch) for model in models]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, *others = [SOLVES[solve](model) for model in models]
    for other in others:
        torch.testing.assert_close(other, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("interval", [None, (0.3, 5.0)])
@pytest.mark.parametrize("solve", SOLVES)
def test_each_sample_has_its_own_scale_wherever_its_row_goes(solve, interval):
    scales = torch.tensor([1.0, 2.5, 0.0, 4.0], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = SOLVES[solve](guided(Guidance(scales, NULL, interval)))
        for i, scale in enumerate(scales.tolist()):
            # Scale 1.0 would switch guidance off; the tensor keeps it on.
            alone = SOLVES[solve](guided(Guidance(torch.tensor(scale), NULL, interval)))
            torch.testing.assert_close(together[i], alone[i], rtol=1e-6, atol=1e-6)


def test_the_gaussian_of_each_scale_is_reached():
    scales = torch.tensor([1.5, 3.0, 0.5, 2.0], dtype=torch.float64)
    model = guided(Guidance(scales, NULL), gaussians)
    ends = dict(sigma_max=20.0, sigma_min=0.05, final="sigma_min")
    sol = ddim_ode.sample(model, X, "rk45", rtol=1e-7, atol=1e-8, cond=COND, **ends)
    for i, scale in enumerate(scales.tolist()):
        mean = MEANS[0] + scale * (MEANS[LABELS[i]] - MEANS[0])
        exact = ddim_ode.exact.gaussian(mean.numpy(), 0.36 * np.eye(3), COSINE)
        flowed = exact.flow(X[i : i + 1], 20.0, 0.05)
        torch.testing.assert_close(sol.x[i : i + 1], flowed, atol=1e-6, rtol=0)


def test_a_scale_of_each_sample_keeps_its_gradient():
    scales = torch.tensor([1.5, 3.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    model = guided(Guidance(scales, NULL))
    ddim_ode.sample(model, X, steps=3, cond=COND, differentiable=True).x[1].sum().backward()
    assert scales.grad[1] != 0
    assert scales.grad[[0, 2, 3]].abs().max() == 0


def test_two_calls_cost_the_same_rows_and_half_the_batch():
    for sequential, calls in ((False, 4), (True, 8)):
        net = Counting(labelled)
        model = guided(Guidance(2.0, NULL, sequential=sequential), net)
        sol = ddim_ode.sample(model, X, "ddim", steps=4, cond=COND)
        assert (net.calls, net.rows) == (calls, 32)
        assert (sol.nfe, sol.net_evals) == (4, 32)


# -- the functions that ship ---------------------------------------------------------------------
def predictions(n=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    draw = lambda: torch.randn(n, 3, 4, 4, dtype=dtype, generator=generator)  # noqa: E731
    return draw(), draw(), draw()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("most", [math.inf, 4.0])
def test_apg_is_the_published_projection(eta, most):
    cond, uncond, x = predictions()
    got = apg(7.5, eta, most)(cond, uncond, x, 1.0)
    for i in range(len(cond)):
        c, difference = cond[i].flatten(), (cond[i] - uncond[i]).flatten()
        difference = difference * min(1.0, most / float(difference.norm()))
        unit = c / c.norm()
        parallel = (difference @ unit) * unit
        expected = c + (7.5 - 1) * ((difference - parallel) + eta * parallel)
        torch.testing.assert_close(got[i].flatten(), expected, rtol=1e-12, atol=1e-12)
    if eta == 1 and most == math.inf:
        torch.testing.assert_close(got, uncond + 7.5 * (cond - uncond))


def test_apg_is_that_of_diffusers():
    peer("diffusers")
    from diffusers.guiders.adaptive_projected_guidance import normalized_guidance

    cond, uncond, x = predictions()
    # Theirs adds the scale times the update to the conditional prediction, the paper scale − 1 times.
    theirs = normalized_guidance(cond, uncond, 6.5, None, 0.3, 4.0, use_original_formulation=True)
    torch.testing.assert_close(apg(7.5, 0.3, 4.0)(cond, uncond, x, 1.0), theirs)


def test_cfg_zero_star_is_the_published_scale():
    cond, uncond, x = predictions()
    got = cfg_zero_star(4.0)(cond, uncond, x, 1.0)
    for i in range(len(cond)):
        c, u = cond[i].flatten(), uncond[i].flatten()
        s = (c @ u) / (u @ u)
        expected = (1 - 4.0) * s * u + 4.0 * c
        torch.testing.assert_close(got[i].flatten(), expected, rtol=1e-12, atol=1e-12)
        # s is what makes s·u nearest to c
        assert float((c - s * u) @ u) == pytest.approx(0, abs=1e-10)


def test_cfg_zero_star_is_that_of_diffusers():
    peer("diffusers")
    from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale

    cond, uncond, x = predictions()
    s = cfg_zero_star_scale(cond.flatten(1), uncond.flatten(1))[:, :, None, None]
    theirs = uncond * s + 4.0 * (cond - uncond * s)
    torch.testing.assert_close(
        cfg_zero_star(4.0)(cond, uncond, x, 1.0), theirs, rtol=1e-5, atol=1e-5
    )


def test_zero_init_leaves_out_the_first_steps():
    """As skipping them does: with a velocity of 0 the flow's state stays."""
    grid = [np.inf, 9.0, 3.0, 1.0, 0.3, 0.0]
    first = flow_model(Guidance(combine=cfg_zero_star(4.0, zero_above=5.0), null=NULL))
    moved = ddim_ode.sample(first, X, "ddim", grid=grid, cond=COND, record="x").trajectory
    torch.testing.assert_close(moved[2], X)
    plain_model = flow_model(Guidance(combine=cfg_zero_star(4.0), null=NULL))
    rest = ddim_ode.sample(plain_model, X, "ddim", grid=grid[2:], cond=COND).x
    torch.testing.assert_close(moved[-1], rest)


MODELS = dict(
    eps=lambda guidance=None: guided(guidance),
    flow=flow_model,
    v=lambda guidance=None: guided(guidance, prediction="v"),
)


@pytest.mark.parametrize("prediction", MODELS)
@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0, 1.5])
def test_cfg_plus_plus_is_ddim_renoised_with_the_null_noise(strength, prediction):
    grid = [7.0, 3.0, 1.0, 0.3, 0.05, 0.0]
    model = MODELS[prediction]()
    x = X
    for here, there in itertools.pairwise(grid):
        x0, _ = model(x, here, COND)
        x0_null, eps_null = model(x, here, {"y": torch.zeros_like(LABELS)})
        alpha, beta = model.schedule.scales(there)
        x = alpha * (x0_null + strength * (x0 - x0_null)) + beta * eps_null
    rule = cfg_plus_plus(strength, grid)
    ours = MODELS[prediction](Guidance(combine=rule, null=NULL))
    got = ddim_ode.sample(ours, X, "ddim", grid=grid, cond=COND).x
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)
    each = ours(X, torch.tensor([7.0, 3.0, 1.0, 0.05]), COND)[0]  # a tensor of levels
    torch.testing.assert_close(each[1], ours(X, 3.0, COND)[0][1])


def test_cfg_plus_plus_starts_at_infinity():
    grid = [np.inf, 3.0, 1.0, 0.0]
    ours = flow_model(Guidance(combine=cfg_plus_plus(0.6, grid), null=NULL))
    assert ddim_ode.sample(ours, X, "ddim", grid=grid, cond=COND).status.tolist() == ["success"] * 4


def test_cfg_plus_plus_refuses_what_it_cannot_be():
    rule = cfg_plus_plus(0.6, [7.0, 3.0, 1.0, 0.0])
    model = guided(Guidance(combine=rule, null=NULL))
    expect(lambda: ddim_ode.sample(model, X, "ddim", grid=[7.0, 2.0, 0.0], cond=COND), "begins")
    expect(lambda: ddim_ode.sample(model, X, "rk45", sigma_max=7.0, cond=COND), "begins")


RULES = [apg(4.0), apg(4.0, most=2.0), cfg_zero_star(4.0), cfg_plus_plus(0.6, [2.0, 1.0, 0.0])]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_rule_keeps_dtype_and_shape_and_zeros_make_no_nan(rule, dtype):
    cond, uncond, x = (tensor.to(dtype) for tensor in predictions())
    for one, other in ((cond, uncond), (0 * cond, uncond), (cond, 0 * uncond), (0 * x, 0 * x)):
        out = rule(one, other, x, 2.0)
        assert (out.dtype, out.shape) == (dtype, x.shape)
        assert out.isfinite().all()
    out = rule(cond[:0], uncond[:0], x[:0], 2.0)
    assert out.shape == x[:0].shape


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_treats_each_sample_by_itself(rule):
    cond, uncond, x = predictions()
    together = rule(cond, uncond, x, 2.0)
    alone = torch.cat([rule(*(t[i : i + 1] for t in (cond, uncond, x)), 2.0) for i in range(5)])
    torch.testing.assert_close(together, alone)


# -- what a function is given, and what it may return --------------------------------------------
def test_a_function_is_given_both_predictions_the_state_and_the_level():
    seen = []

    def combine(cond, uncond, x, sigma):
        seen.append((cond, uncond, x, sigma))
        return cond

    model = guided(Guidance(combine=combine, null=NULL))
    model(X, 2.0, COND)
    levels = torch.tensor([0.5, 1.0, 2.0, 7.0])
    model(X, levels, COND)
    (cond, uncond, x, sigma), (_, _, _, each) = seen
    sigmas = torch.full((4,), 2.0, dtype=torch.float64)
    torch.testing.assert_close(cond, labelled(X, sigmas, LABELS))
    torch.testing.assert_close(uncond, labelled(X, sigmas, 0 * LABELS))
    assert torch.equal(x, X)
    assert torch.equal(torch.as_tensor(sigma).expand(4, 1), sigmas[:, None])
    assert each.flatten().tolist() == levels.tolist()
    assert each.shape == (4, 1)


def test_a_function_of_x0_is_given_x0():
    def combine(cond, uncond, x, sigma):
        assert torch.allclose(cond, expected[0])
        return cond + 0.1

    expected = guided(None)(X, 2.0, COND)
    model = guided(Guidance(combine=combine, vector="x0", null=NULL))
    torch.testing.assert_close(model(X, 2.0, COND)[0], expected[0] + 0.1)


@pytest.mark.parametrize(
    ("combine", "words"),
    [
        (lambda c, u, x, s: c[:1], "combine"),
        (lambda c, u, x, s: c.float(), "float64"),
        (lambda c, u, x, s: (c, u), "combine"),
        (lambda c, u, x, s: None, "combine"),
        (lambda c, u, x, s: 1.0, "combine"),
    ],
)
def test_a_function_that_returns_something_else_is_refused(combine, words):
    model = guided(Guidance(combine=combine, null=NULL))
    expect(lambda: ddim_ode.sample(model, X, steps=3, cond=COND), words)


def test_a_function_that_returns_nan_fails_its_sample_alone():
    def combine(cond, uncond, x, sigma):
        out = cond.clone()
        out[2] = torch.nan
        return out

    sol = ddim_ode.sample(guided(Guidance(combine=combine, null=NULL)), X, steps=3, cond=COND)
    assert sol.status.tolist() == ["success", "success", "non_finite", "success"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Guidance(null=NULL), "scale="),
        (lambda: Guidance(2.0, NULL, combine=apg(2.0)), "scale"),
        (lambda: Guidance(combine=3, null=NULL), "combine"),
        (lambda: Guidance(combine=apg(2.0)), "null"),
        (lambda: Guidance(2.0, NULL, vector="x0"), "vector"),
        (lambda: Guidance(combine=apg(2.0), null=NULL, vector="v"), "vector"),
        (lambda: Guidance(2.0, NULL, sequential=1), "sequential"),
        (lambda: Guidance(torch.ones(2, 2), NULL), "0-d"),
        (lambda: Guidance(torch.ones(0), NULL), "floating tensor"),
        (lambda: Guidance(torch.ones(2, dtype=torch.long), NULL), "floating tensor"),
        (lambda: Guidance(torch.tensor([1.0, math.nan]), NULL), "finite"),
        (lambda: apg(math.nan), "scale"),
        (lambda: apg("3"), "scale"),
        (lambda: apg(3.0, most=0.0), "most"),
        (lambda: cfg_zero_star(math.inf), "scale"),
        (lambda: cfg_zero_star(2.0, zero_above=-1.0), "zero_above"),
        (lambda: cfg_plus_plus(-0.1, [1.0, 0.0]), "strength"),
        (lambda: cfg_plus_plus(0.5, [0.0, 1.0]), "grid"),
        (lambda: cfg_plus_plus(0.5, [1.0]), "grid"),
    ],
)
def test_what_is_wrong_is_refused(call, words):
    expect(call, words)


@pytest.mark.parametrize("batch", [None, 1])
@pytest.mark.parametrize("method", ["ddim", "rk45"])
def test_scales_of_another_number_of_samples_are_refused(method, batch):
    model = guided(Guidance(torch.full((3,), 2.0), NULL))
    if batch:
        model = ddim_ode.accelerate(model, batch=batch)
    options = dict(steps=3) if method == "ddim" else {}
    expect(lambda: ddim_ode.sample(model, X, method, cond=COND, **options), "3 entries for 4")


# -- what it is called -----------------------------------------------------------------------------
def test_manifests_and_keys_tell_functions_apart():
    net = torch.nn.Linear(3, 3)

    def key(guidance):
        return model_key(Denoiser(net, COSINE, guidance=guidance))

    each = [
        Guidance(2.0, NULL),
        Guidance(combine=plain(2.0), null=NULL),
        Guidance(combine=plain(3.0), null=NULL),
        Guidance(combine=plain(3.0), null=NULL, vector="x0"),
        Guidance(combine=apg(2.0), null=NULL),
        Guidance(combine=apg(3.0), null=NULL),
        Guidance(combine=cfg_zero_star(3.0), null=NULL),
        Guidance(torch.tensor([2.0, 3.0]), NULL),
        Guidance(torch.tensor([2.0, 4.0]), NULL),
    ]
    keys = [key(guidance) for guidance in each]
    assert None not in keys
    assert len({*keys}) == len(each)
    assert key(Guidance(combine=plain(2.0), null=NULL)) == keys[1]
    # Two calls or one are the same ODE.
    assert key(Guidance(2.0, NULL, sequential=True)) == keys[0]
    names = [str(guidance.to_dict()) for guidance in each]
    assert len({*names}) == len(each)
    assert each[4].to_dict() == {"guidance_combine": "apg(scale=2.0, eta=0.0, most=inf)"}
    assert "plain" in each[1].to_dict()["guidance_combine"]


def test_a_solution_s_manifest_is_plain_data():
    import json

    for guidance in (
        Guidance(combine=apg(2.0), vector="x0", null=NULL),
        Guidance(torch.full((4,), 2.0), NULL),
    ):
        sol = ddim_ode.sample(guided(guidance), X, steps=3, cond=COND)
        told = json.loads(json.dumps(sol.to_dict()))
        assert "guidance" in json.dumps(told)
        assert "guidance" in repr(guided(guidance))
        assert repr(guidance).startswith("Guidance(")


@pytest.mark.parametrize(
    "guidance",
    [Guidance(combine=apg(2.0), null=NULL), Guidance(torch.full((4,), 2.0), NULL)],
    ids=["function", "scales"],
)
def test_inversion_warns_of_them_too(guidance):
    with pytest.warns(UserWarning, match="guidance"):
        ddim_ode.encode(guided(guidance), 0.1 * X, "ddim", steps=4, cond=COND)
