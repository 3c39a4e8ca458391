"""Limits on x̂₀: which numbers they are of, and what a limited model is to every solver."""

import json

import numpy as np
import pytest
import torch
from problems import COSINE, DDPM, points
from refusals import expect

import ddim_ode
from ddim_ode import Denoiser, Guidance
from ddim_ode.denoising.guidance import Level, Limit
from ddim_ode.solvers.methods import METHODS

ADAPTIVE = ("rk45", "bosh3", "torchdiffeq:dopri5", "scipy:RK45")
LIMITS = [dict(clip=0.9), dict(threshold=0.8), dict(threshold=(0.8, 1.3))]


def limited(x0, **options):
    return Limit(**options)(x0, torch.zeros_like(x0), Level())


def two_valued(schedule=DDPM, prediction="eps", **options):
    """Pixels of −1 and 1, almost, in closed form."""
    means = np.random.default_rng(0).choice([-1.0, 1.0], size=(6, 16))
    return ddim_ode.exact.gaussian_mixture(
        np.full(6, 1 / 6), means, np.full(means.shape, 1e-4), schedule, prediction, **options
    )


def wide(prediction="eps", **options):
    """Data that reach further than the limits do."""
    means = [[-1.0, 0.6, 0.2, -0.4], [0.9, -0.7, 0.5, 1.1]]
    return ddim_ode.exact.gaussian_mixture(
        [0.6, 0.4], means, np.full((2, 4), 0.25), COSINE, prediction, **options
    )


# -- thresholding -----------------------------------------------------------------------------
@pytest.mark.parametrize("p", [0.001, 0.3, 0.5, 0.995, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_quantile_is_torch_s(p, n, dtype):
    x0 = 30 * points(3, n, seed=n).to(dtype)
    s = torch.quantile(x0.abs().double(), p, dim=1, keepdim=True).clamp_min(1.0)
    expected = (torch.minimum(x0.abs().double(), s) / s * x0.sign()).to(dtype)
    near = dict(rtol=2**-6, atol=2**-6) if dtype.itemsize == 2 else {}
    torch.testing.assert_close(limited(x0, threshold=p), expected, **near)


def test_a_sample_of_more_than_2_to_the_24_entries():
    n = 2**24 + 5
    x0 = torch.linspace(0, 4, n)[None]  # in order: the quantile is known
    kept = limited(x0, threshold=0.75)
    rank = round(0.75 * (n - 1))
    assert kept.max() == 1
    assert int((kept < 1).sum()) == pytest.approx(rank, abs=4)  # float32 has steps of 2e-7
    torch.testing.assert_close(kept[0, rank // 3], torch.tensor(1 / 3), atol=1e-5, rtol=0)


def test_samples_of_one_entry_of_none_and_of_many_axes():
    one = torch.tensor([0.5, -3.0, 0.0])  # each its own quantile
    assert limited(one, threshold=0.7).tolist() == [0.5, -1.0, 0.0]
    assert limited(torch.zeros(2, 0), threshold=0.7).shape == (2, 0)
    assert limited(torch.zeros(0, 3), threshold=0.7).shape == (0, 3)
    x0 = 5 * points(2, 24)
    for shape in ((2, 24), (2, 2, 3, 4), (2, 1, 1, 2, 12)):
        shaped = limited(x0.reshape(shape), threshold=0.7).reshape(2, 24)
        torch.testing.assert_close(shaped, limited(x0, threshold=0.7), rtol=0, atol=0)
    for shape in ((4,), (2, 0), (0, 3)):
        x = torch.full(shape, 2.0)
        model = Denoiser(lambda x, t: 3 * x, COSINE, "x0", threshold=0.9)
        assert torch.equal(ddim_ode.sample(model, x, steps=2).x, torch.ones(shape))


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_stays_none_and_with_its_sample(limit, bad):
    """An infinite answer must not pass for one at the bound."""
    x0 = 3 * points(3, 8)
    spoilt = x0.clone()
    spoilt[1, 2] = bad
    kept = limited(spoilt, **limit)
    torch.testing.assert_close(kept[[0, 2]], limited(x0, **limit)[[0, 2]], rtol=0, atol=0)
    assert not torch.isfinite(kept[1, 2])


@pytest.mark.parametrize(("most", "s"), [(1.0, 1.0), (2.5, 2.5), (0.5, 0.5), (9.0, 4.0)])
def test_a_quantile_has_a_most(most, s):
    x0 = torch.tensor([[0.4, -2.0, 4.0]])
    expected = x0.clamp(-s, s) / s
    torch.testing.assert_close(limited(x0, threshold=(1.0, most)), expected)
    assert Limit(threshold=(0.9, torch.inf)).to_dict() == Limit(threshold=0.9).to_dict()


# -- the ODE that a limit makes ---------------------------------------------------------------
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", [*METHODS, *ADAPTIVE])
def test_every_method_ends_in_range(name, limit):
    x = ddim_ode.noise((16,), DDPM, range(8))
    steps = {} if name in ADAPTIVE else dict(nfe=12)
    sol = ddim_ode.sample(two_valued(**limit), x, name, seeds=range(8), **steps)
    assert set(sol.status) == {"success"}
    assert float(sol.x.abs().max()) <= limit.get("clip", 1.0) * (1 + 1e-6)
    named = json.loads(json.dumps(sol.to_dict()))["alterations"]
    assert Limit(**named).to_dict() == Limit(**limit).to_dict()


@pytest.mark.parametrize("limit", LIMITS)
def test_methods_agree_on_the_limited_ode(limit):
    """It has kinks, which they step over; all come to the same ends, which are not the plain ODE's."""
    x = 2 * points(6, 4)
    ends = dict(sigma_max=20.0, sigma_min=0.05)
    options = dict(rtol=1e-6, atol=1e-6, **ends)
    exact, free = (ddim_ode.sample(wide(**o), x, "rk45", **options).x for o in (limit, {}))
    assert float((exact - free).abs().max()) > 0.3
    predictions = dict(
        heun="eps", midpoint="v", rk4="score", dpmpp2m="eps", unipc2="flow", ab3="x0"
    )
    for name, prediction in predictions.items():
        end = ddim_ode.sample(
            wide(prediction, **limit), x, name, steps=80, grid="log_snr", **ends
        ).x
        torch.testing.assert_close(end, exact, atol=5e-3, rtol=0)


def test_a_limited_network_steps_from_sigma_inf():
    model = Denoiser(lambda x, t: 3 * torch.tanh(x), ddim_ode.schedules.flow(), "flow", clip=0.6)
    x = points(4, 3)
    sol = ddim_ode.sample(model, x, "ddim", steps=1)
    assert sol.sigmas[0] == np.inf
    torch.testing.assert_close(sol.x, (x - 3 * torch.tanh(x)).clamp(-0.6, 0.6))


def test_one_step_lands_on_the_bound_from_any_level():
    """ε̂ of 20,000 levels would leave x̂₀ without its last three digits."""
    x = ddim_ode.noise((16,), COSINE, range(4))
    sol = ddim_ode.sample(two_valued(COSINE, clip=0.25), x, "ddim", grid=[COSINE.sigma_max, 0.0])
    assert float(sol.x.abs().max()) <= 0.25


@pytest.mark.parametrize("limit", LIMITS)
def test_a_step_of_ddpm_has_the_mean_of_the_limited_x0(limit):
    """q(x_{t−1} | x_t, x̂₀), Ho et al. 2020, eq. 7."""
    model, x = two_valued(**limit), 1.5 * points(6, 16)
    sigma, lower = (float(DDPM.sigma(t)) for t in (700.0, 699.0))
    x0 = limited(two_valued()(x, sigma)[0], **limit)
    plan = ddim_ode.plan("ddpm", DDPM, [sigma, lower, 0.0])
    (alpha, beta), (alpha_next, beta_next) = (map(float, DDPM.scales(s)) for s in (sigma, lower))
    step = (alpha / alpha_next) ** 2  # α_t, their notation
    mean = alpha_next * (1 - step) / beta**2 * x0 + step**0.5 * beta_next**2 / beta**2 * x
    made = plan.ops[1]
    (vector,) = [model.bind(plan.nodes, x)(x, 0)]
    torch.testing.assert_close(
        made.scale * x + made.weights[0] * vector, mean, rtol=1e-9, atol=1e-10
    )
    std = beta_next / beta * (1 - step) ** 0.5
    assert made.noise == pytest.approx(std, rel=1e-9)


def test_a_learned_variance_is_no_part_of_x0():
    class Net(torch.nn.Module):
        def forward(self, x, t):
            return torch.cat([torch.tanh(3 * x), 1e3 * x], dim=1)

    x = points(3, 4).reshape(3, 1, 4)
    split = Denoiser(Net(), COSINE, learned_variance="split", threshold=0.7)
    alone = Denoiser(lambda x, t: torch.tanh(3 * x), COSINE, threshold=0.7)
    for one, other in zip(split(x, 2.0), alone(x, 2.0)):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("limit", LIMITS)
def test_gradients_pass_where_nothing_is_limited(limit):
    """And a clipped entry has none."""
    x = points(2, 6).requires_grad_()
    model = Denoiser(lambda x, t: 0.1 * x, COSINE, "x0", **limit)
    sol = ddim_ode.sample(model, x, "ddim", grid=[2.0, 0.0], differentiable=True)
    (gradient,) = torch.autograd.grad(sol.x.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 0.1))
    model = Denoiser(lambda x, t: 1e3 * x, COSINE, "x0", clip=1.0)
    sol = ddim_ode.sample(model, x, "ddim", grid=[2.0, 0.0], differentiable=True)
    assert not torch.autograd.grad(sol.x.sum(), x)[0].any()


# -- what is built on it ----------------------------------------------------------------------
def test_reference_and_rivals_are_of_the_same_ode():
    r = ddim_ode.compare(
        wide(clip=0.9),
        ["ddim", "unipc2"],
        nfe=[10, 80],
        n=4,
        keep=4,
        reference=1e-3,
        progress=False,
    )
    assert r.model == "ExactModel(eps-network, clip 0.9)"
    assert float(r.reference.x.abs().max()) <= 0.9 + 1e-9
    assert all(float(x.abs().max()) <= 0.9 + 1e-6 for x in r.samples)
    errors = {(row["method"], row["budget"]): row["error"] for row in r.rows}
    assert errors["unipc2", 80] < 0.1 * errors["ddim", 10] < 0.02  # to the plain one they keep 0.2


def test_a_plan_remembers_the_limit_and_warns_without():
    model = two_valued(COSINE, threshold=(0.9, 1.5))
    plan = ddim_ode.calibrate(model, nfe=2, n=4, progress=False)
    assert json.loads(json.dumps(plan.fit))["alterations"] == {"threshold": [0.9, 1.5]}
    assert "threshold [0.9, 1.5]" in plan.describe()
    x = ddim_ode.noise((16,), COSINE, range(3))
    with pytest.warns(UserWarning, match=r"for guidance 1, threshold \[0.9, 1.5\], and runs with"):
        ddim_ode.sample(two_valued(COSINE), x, plan=plan)
    ddim_ode.sample(model, x, plan=plan)  # any warning is an error here


def test_a_folder_of_samples_is_of_one_limit(tmp_path):
    options = dict(method="ddim", steps=3, progress=False)
    ddim_ode.generate(two_valued(clip=0.5), 4, tmp_path, **options)
    expect(lambda: ddim_ode.generate(two_valued(), 4, tmp_path, **options), r"clip|model")


@pytest.mark.parametrize("limit", LIMITS)
def test_what_has_no_latent_and_no_density_is_refused_for_that_reason(limit):
    model, bound = two_valued(COSINE, **limit), limit.get("clip", 1.0)
    ends = ddim_ode.sample(model, ddim_ode.noise((16,), COSINE, range(8)).double(), steps=20).x
    assert float((ends.abs() > bound - 1e-12).double().mean()) > 0.15  # from whatever latent
    for call in (ddim_ode.encode, ddim_ode.log_likelihood):
        with pytest.raises(
            ValueError, match=r"the same for many latents.*clip=None and threshold=N"
        ):
            call(model, ends)


def test_guidance_is_limited_and_not_its_parts():
    """Of two branches that are each in range, the guided x̂₀ is not."""
    net = lambda x, t, y: y[:, None].expand_as(x).to(x)  # noqa: E731
    x, cond = points(2, 3), {"y": torch.tensor([0.8, 0.8])}
    guidance = Guidance(3.0, {"y": 0.0})
    for limit, expected in ((dict(clip=0.9), 0.9), (dict(threshold=(1.0, 2.0)), 1.0)):
        model = Denoiser(net, COSINE, "x0", guidance=guidance, **limit)
        torch.testing.assert_close(model(x, 1.0, cond)[0], torch.full_like(x, expected))
