"""Log-likelihoods against densities in closed form."""

import re

import numpy as np
import pytest
import torch
from problems import (
    COSINE,
    DDPM,
    EXPONENTIAL,
    SCHEDULES,
    Counting,
    gaussian_2d,
    mixture_1d,
    mixture_2d,
    points,
    zero_snr,
)
from refusals import expect

import ddim_ode
from ddim_ode import Denoiser, Guidance, exact, log_likelihood, schedules


def mixture_64d():
    rng = np.random.default_rng(0)
    roots = rng.standard_normal((2, 64, 64)) / 16
    covs = roots @ roots.swapaxes(1, 2) + 0.02 * np.eye(64)
    return exact.gaussian_mixture([0.6, 0.4], 0.6 * rng.standard_normal((2, 64)), covs, DDPM)


WIDE = mixture_64d()


def at_sigma_min(model, n, seed=0):
    """n points of p at σ_min, and their log densities."""
    sigma = model.schedule.sigma_min
    alpha, beta = map(float, model.schedule.scales(sigma))
    x = model.draw(n, seed)
    x = alpha * x + beta * points(n, x.shape[1], seed + 1)
    return x, model.log_prob(x, sigma)


def test_the_exact_divergence_in_64_dimensions():
    x, known = at_sigma_min(WIDE, 3)
    tight = dict(rtol=1e-6, atol=1e-6, chunk=64)
    found = log_likelihood(WIDE, x, prior=WIDE.log_prob, **tight)
    assert (found.log_likelihood - known).abs().max() <= 1e-4
    assert (found.status == "success").all()
    assert (found.std_error == 0).all()
    assert ((found.log_likelihood - known).abs() < 10 * found.error + 1e-6).all()
    # The usual prior is not the density at σ(T), where ᾱ is .0064 and not 0.
    at_top = WIDE.log_prob(found.latent, found.sigmas[1])
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(found.latent).sum(dim=1)
    gap = (normal - at_top).abs()
    assert 1e-3 < gap.max() < 0.1


def test_64_probes_find_the_closed_form_within_3_standard_errors():
    x, known = at_sigma_min(WIDE, 100, seed=5)
    probes = dict(divergence="hutchinson", probes=64, chunk=64)
    steps = dict(method="rk4", grid="log_snr", steps=10)
    found = log_likelihood(WIDE, x, prior=WIDE.log_prob, **probes, **steps)
    off = (found.log_likelihood - known) / found.std_error
    assert (off.abs() <= 3).sum() >= 95
    assert 0.7 < off.square().mean().sqrt() < 1.3  # and the standard errors are no larger than that
    assert found.products == 64


@pytest.mark.parametrize(
    ("name", "prediction"),
    [("ddpm", "eps"), ("cosine", "x0"), ("vp", "v"), ("ve", "eps"), ("flow", "flow")],
)
def test_every_schedule_and_prediction(name, prediction):
    """On "ve" and "flow" the gauge √(ᾱ²+β̄²) changes, which the log-determinant must account for."""
    model = mixture_2d(SCHEDULES[name], prediction)
    x, known = at_sigma_min(model, 3)
    found = log_likelihood(model, x, prior=model.log_prob, rtol=1e-6, atol=1e-6)
    assert (found.log_likelihood - known).abs().max() < 2e-5
    if name == "ve":  # N(0, β̄²): σ_max = 80 for unit data
        normal = log_likelihood(model, x, rtol=1e-6, atol=1e-6)
        assert (normal.log_likelihood - known).abs().max() < 1e-2


def test_a_range_that_ends_lower_and_infinity():
    model = mixture_1d(EXPONENTIAL)
    x = torch.linspace(-2, 2, 4, dtype=torch.float64)[:, None]
    options = dict(sigma_min=0.3, sigma_max=4.0, prior=model.log_prob, rtol=1e-7, atol=1e-7)
    found = log_likelihood(model, x, **options)
    torch.testing.assert_close(found.log_likelihood, model.log_prob(x, 0.3), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.latent, model.flow(x, 0.3, 4.0), rtol=0, atol=1e-5)
    model = gaussian_2d(zero_snr(), "v")
    x, known = at_sigma_min(model, 3)
    found = log_likelihood(model, x, rtol=1e-6, atol=1e-6)  # at ᾱ = 0 the prior is exact
    assert found.sigmas[1] == np.inf
    assert (found.log_likelihood - known).abs().max() < 1e-4


@pytest.mark.parametrize(("method", "order", "steps"), [("heun", 2, 30), ("rk4", 4, 16)])
def test_fixed_steps_have_their_order(method, order, steps):
    model = mixture_1d(EXPONENTIAL)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    known, errors = model.log_prob(x, 0.3), []
    for n in (steps, 2 * steps):
        options = dict(method=method, steps=n, sigma_min=0.3, sigma_max=4.0, prior=model.log_prob)
        found = log_likelihood(model, x, **options)
        assert found.nfe == n * {"heun": 2, "rk4": 4}[method]
        errors.append(float((found.log_likelihood - known).square().mean().sqrt()))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


# -- samples, probes, modes -------------------------------------------------------------------------


def test_every_sample_has_its_own_steps_and_probes():
    model = mixture_2d(COSINE)
    x, _ = at_sigma_min(model, 5)
    options = dict(divergence="hutchinson", probes=3, rtol=1e-5, atol=1e-5)
    together = log_likelihood(model, x, seeds=[7, 8, 9, 10, 11], **options)
    assert len(set(together.sample_nfe.tolist())) > 1
    assert together.net_evals == together.sample_nfe.sum()
    for i, seed in ((0, 7), (3, 10)):
        alone = log_likelihood(model, x[i : i + 1], seeds=[seed], **options)
        assert alone.sample_nfe[0] == together.sample_nfe[i]
        for name in ("log_likelihood", "std_error", "latent"):
            torch.testing.assert_close(
                getattr(alone, name)[0], getattr(together, name)[i], rtol=1e-9, atol=1e-9
            )
    other = log_likelihood(model, x, seeds=[17, 18, 19, 20, 21], **options)
    assert (other.log_likelihood != together.log_likelihood).any()


def test_the_standard_error_is_the_spread_over_seeds():
    model = mixture_2d(COSINE)
    x = at_sigma_min(model, 1)[0].expand(300, 2)
    fixed = dict(method="rk4", steps=12, divergence="hutchinson", chunk=64)
    found = log_likelihood(model, x, probes=8, **fixed)
    spread = float(found.log_likelihood.std())
    assert spread == pytest.approx(float(found.std_error.square().mean().sqrt()), rel=0.2)
    assert log_likelihood(model, x[:2], probes=1, **fixed).std_error.isnan().all()
    # unbiased: the mean over seeds is the exact divergence's
    known = log_likelihood(model, x[:1], method="rk4", steps=12).log_likelihood
    assert abs(float(found.log_likelihood.mean() - known)) < 4 * spread / 300**0.5


def test_calls_are_counted():
    net = Counting()
    model = Denoiser(net, COSINE)
    found = log_likelihood(model, points(3, 4), method="rk4", steps=5, chunk=4)
    assert net.calls == found.nfe == 20  # one pass for the network and all derivatives
    assert net.rows == found.net_evals == 60
    net.calls = 0
    found = log_likelihood(model, points(3, 4), sigma_max=20.0, chunk=1)
    assert net.calls == found.nfe
    net.times.clear()
    log_likelihood(Denoiser(net, schedules.ddpm(T=20), snap=True), X, method="rk4", steps=4)
    assert {float(t[0]) for t in net.times} <= set(range(1, 21))


def test_images_conditions_and_float64():
    def net(x, t, y):
        assert x.dtype == torch.float32
        return torch.tanh(x) * y.reshape(-1, 1, 1, 1).to(x)

    model, x = Denoiser(net, COSINE), points(3, 8).reshape(3, 2, 2, 2).float()
    y = torch.tensor([0.1, 0.5, 0.9])

    def found(rows=slice(None), **options):
        options |= dict(cond={"y": y[rows]}, sigma_max=20.0, rtol=1e-5)
        return log_likelihood(model, x[rows], **options)

    wide, single, alone = (found(dtype=torch.float64), found(), found([2], dtype=torch.float64))
    assert wide.log_likelihood.dtype == wide.latent.dtype == torch.float64
    assert (wide.latent.shape, single.log_likelihood.dtype) == (x.shape, torch.float32)
    near = single.log_likelihood.double()
    torch.testing.assert_close(near, wide.log_likelihood, rtol=0, atol=5e-3)
    torch.testing.assert_close(alone.log_likelihood[0], wide.log_likelihood[2], rtol=0, atol=1e-5)


# -- bits per dimension --------------------------------------------------------------------------------
def test_bits_per_dim_are_the_code_length_of_a_cell():
    """Of a density that is flat over a cell: −log₂ of the cell's probability, per dimension."""
    model, cell = gaussian_2d(EXPONENTIAL), 2 / 255
    x, known = at_sigma_min(model, 4)
    found = log_likelihood(model, x, prior=model.log_prob, rtol=1e-6, atol=1e-6)
    probability = known.exp() * cell**2
    torch.testing.assert_close(found.bits_per_dim, -probability.log2() / 2, rtol=0, atol=1e-5)


def test_the_mean_over_dequantisation_bounds_the_code_length():
    """Coarse cells, so that Jensen's gap shows: E −log₂(p·cell) ≥ −log₂ ∫ p over the cell."""
    model = exact.gaussian([0.0], [[0.25]], EXPONENTIAL)
    cell, sigma, n = 0.8, EXPONENTIAL.sigma_min, 400
    x = ddim_ode.dequantized(torch.zeros(n, 1, dtype=torch.float64), range(n), cell)
    assert x.min() > -cell / 2
    assert x.max() < cell / 2
    assert float(x.std()) == pytest.approx(cell / 12**0.5, rel=0.1)
    found = log_likelihood(model, x, prior=model.log_prob, rtol=1e-5, atol=1e-5)
    found.cell = cell
    found = found.bits_per_dim.mean()
    at = torch.linspace(-cell / 2, cell / 2, 2001, dtype=torch.float64)[:, None]
    density = model.log_prob(at, sigma)
    bound, mass = -float(density.mean()) / np.log(2) - np.log2(cell), density.exp().mean() * cell
    assert bound > -np.log2(float(mass)) + 0.006
    assert float(found) == pytest.approx(bound, abs=0.03)  # four standard errors of n points


# -- the edges ---------------------------------------------------------------------------------------
X = points(3, 2)
MODEL = mixture_2d(COSINE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(probes=3), "draws no probes .*; drop probes=3"),
        (dict(seeds=[1, 2, 3]), "draws no probes .*; drop seeds"),
        (dict(divergence="hutchinson", seeds=[1]), "batch of 3; give one seed per sample"),
        (dict(divergence="hutchinson", probes=0), "probes=0 must be a whole number >= 1"),
        (dict(grid=[1.0, 5.0], method="rk4"), r"grid\[1\]=5 does not fall below"),
        (dict(prior="gaussian"), "prior='gaussian' must be 'normal' or callable"),
        (dict(prior=lambda x, sigma: x), r"prior\(x, sigma\) returned \(3, 2\); it must .* \(3,\)"),
        (dict(sigma_min=0.0), "need 0 < sigma_min < sigma_max"),
        (dict(grid=[5.0, 1.0, 0.0], method="rk4"), r"grid\[2\]=0: the ODE ends before σ=0"),
        (dict(method="rk4"), "'rk4' needs to know where to step"),
        (
            dict(method="restart", steps=5),
            "'restart': a likelihood is solved by Runge–Kutta, .*, rk45$",
        ),
        (dict(method="rk4", steps=5, rtol=1e-3), "no tolerance .*drop rtol=0.001"),
        (dict(method="rk45", steps=5, rtol=1e-3), "rk45 with rtol=.*chooses its own steps"),
        (dict(method="ab2", steps=5), "method='ab2': .*Runge–Kutta, heun,"),
        (dict(method="scipy:RK45"), "method='scipy:RK45': .*Runge–Kutta"),
        (dict(dtype=torch.bfloat16), "dtype=torch.bfloat16 must be torch.float32 or torch.float64"),
        (dict(chunk=0), "chunk=0 must be a whole number >= 1"),
        (dict(model=MODEL.net), "model must be a Denoiser"),
        (dict(x=X.long()), "x must be a floating tensor"),
        (dict(model=mixture_2d(SCHEDULES["flow"])), "says nothing of x0 at σ=inf"),
    ],
)
def test_each_edge_says_what_to_change(options, message):
    expect(lambda: log_likelihood(**{"model": MODEL, "x": X, **options}), message)


def test_what_is_unsure_is_warned_of_and_shown():
    y = lambda x, t, y: torch.tanh(x)  # noqa: E731
    guided = Denoiser(y, COSINE, guidance=Guidance(2.0, null={"y": 0.0}))
    with pytest.warns(UserWarning, match="guidance 2: .*log-likelihood of nothing"):
        log_likelihood(guided, X, cond={"y": torch.ones(3)}, method="rk4", steps=2)

    def shown(**options):
        return repr(log_likelihood(MODEL, X[:2].float(), steps=4, method="heun", **options))

    assert "±" not in shown()
    with pytest.warns(UserWarning, match="a single probe has no standard error"):
        assert shown(divergence="hutchinson").count(" ± nan") == 2
    assert re.search(r"± \d", shown(divergence="hutchinson", probes=4))


@pytest.mark.parametrize("options", [dict(rtol=1e-3), dict(method="rk4", steps=20)])
def test_a_nan_stays_in_its_sample(options):
    def net(x, t):
        return torch.where((x[:, :1] > 50).expand_as(x), torch.nan, torch.tanh(x))

    x = points(4, 2)
    x[1, 0] = 1e3
    found = log_likelihood(Denoiser(net, COSINE), x, sigma_max=20.0, **options)
    assert found.status.tolist() == ["success", "non_finite", "success", "success"]
    assert found.log_likelihood.isnan().tolist() == [False, True, False, False]
    clean = log_likelihood(Denoiser(net, COSINE), x[[0, 2, 3]], sigma_max=20.0, **options)
    torch.testing.assert_close(
        found.log_likelihood[[0, 2, 3]], clean.log_likelihood, rtol=1e-9, atol=1e-9
    )


def test_a_budget_that_is_too_small_and_an_empty_batch():
    found = log_likelihood(MODEL, X, max_nfe=10)
    assert (found.status == "max_nfe").all()
    assert found.log_likelihood.isnan().all()
    assert (found.sample_nfe <= 10).all()
    empty = log_likelihood(MODEL, X[:0])
    assert (empty.log_likelihood.shape, empty.nfe, empty.latent.shape) == ((0,), 0, (0, 2))
