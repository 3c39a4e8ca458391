"""The discrete side: DDIM, DDPM and all between them, against the textbook's own formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import DDPM, gaussian_2d, points

import ddim_ode
from ddim_ode import grids, schedules
from ddim_ode.denoising.seeding import StepNoise

T = 1000
BETAS = np.linspace(1e-4, 0.02, T).astype(np.longdouble)
ALPHAS_CUMPROD = np.concatenate([[1], np.cumprod(1 - BETAS)])  # by t = 0..T, in long double
STRAIGHT = ["eps", "data", "flow"]

sub_sequences = st.sets(st.integers(1, T), min_size=1, max_size=12).map(sorted)
fractions = st.floats(0.0, 1.0)


def net(x, t):
    return torch.tanh(1.3 * x + torch.sin(t / 170)[:, None]) + 0.1 * x


MODEL = ddim_ode.Denoiser(net, DDPM)


def textbook_ddim(x, tau, noise_std=None, z=None):
    """Song et al. 2021, eq. 12, written out from alphas_cumprod."""
    for i, (t, before) in enumerate(zip(tau[::-1], [*tau[::-1][1:], 0])):
        a, a_before = ALPHAS_CUMPROD[t], ALPHAS_CUMPROD[before]
        std = 0.0 if noise_std is None else noise_std[i]
        eps = net(torch.as_tensor(x.astype(np.float64)), torch.full((len(x),), float(t)).double())
        eps = eps.numpy().astype(np.longdouble)
        x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        x = np.sqrt(a_before) * x0 + np.sqrt(np.maximum(1 - a_before - std**2, 0)) * eps
        if std:
            x = x + std * z[i].numpy()
    return x.astype(np.float64)


@pytest.mark.parametrize("chart", STRAIGHT)
@given(tau=sub_sequences)
def test_euler_in_a_straight_chart_is_textbook_ddim(chart, tau):
    x = points(3, 2)
    sol = ddim_ode.sample(MODEL, x, "ddim", timesteps=tau, chart=chart)
    expected = textbook_ddim(x.numpy(), tau)
    np.testing.assert_allclose(sol.x, expected, rtol=1e-12, atol=1e-12 * abs(expected).max())


@pytest.mark.parametrize("prediction", ["x0", "v", "flow", "score"])
def test_ddim_is_the_same_whatever_the_network_predicts(prediction):
    def predict(x, t):
        a, b = (torch.as_tensor(f(t.numpy()))[:, None] for f in (DDPM.alpha_bar, DDPM.beta_bar))
        eps = net(x, t)
        x0 = (x - b * eps) / a
        return dict(x0=x0, v=a * eps - b * x0, flow=eps - x0, score=-eps / b)[prediction]

    tau = [5, 90, 400, 777]
    sol = ddim_ode.sample(ddim_ode.Denoiser(predict, DDPM, prediction), points(3, 2), timesteps=tau)
    expected = textbook_ddim(points(3, 2).numpy(), tau)
    np.testing.assert_allclose(sol.x, expected, rtol=1e-11)


@given(tau=sub_sequences, fraction=fractions)
def test_free_step_noise_gives_kappa_and_c(tau, fraction):
    grid = grids.from_timesteps(DDPM, tau)
    squares = ALPHAS_CUMPROD[[*tau[::-1], 0]]
    alpha, beta = np.sqrt(squares), np.sqrt(1 - squares)
    noise = fraction * beta[1:].astype(float)
    plan = ddim_ode.plan("ddim", DDPM, grid, vector="x0", noise_std=noise)
    kappa = np.sqrt(beta[1:] ** 2 - noise**2) / beta[:-1]
    c = alpha[1:] - alpha[:-1] * kappa
    steps = plan.ops[1:]
    # Next to the bound, β̄² − ς² loses half of the digits that ς carries.
    atol = 1e-12 if fraction < 0.999 else 1e-7
    np.testing.assert_allclose(
        [op.scale for op in steps], kappa.astype(float), rtol=1e-12, atol=atol
    )
    np.testing.assert_allclose(
        [op.weights[0] for op in steps], c.astype(float), rtol=1e-12, atol=atol
    )
    np.testing.assert_allclose([op.noise for op in steps], noise, rtol=1e-12)


@given(tau=sub_sequences, eta=fractions)
def test_eta_scales_the_textbook_noise(tau, eta):
    grid = grids.from_timesteps(DDPM, tau)
    plan = ddim_ode.plan("ddim", DDPM, grid, eta=eta)
    a, before = ALPHAS_CUMPROD[tau[::-1]], ALPHAS_CUMPROD[[*tau[::-1][1:], 0]]
    expected = eta * np.sqrt((1 - before) / (1 - a)) * np.sqrt(1 - a / before)
    np.testing.assert_allclose(
        [op.noise for op in plan.ops[1:]], expected.astype(float), rtol=1e-12, atol=1e-300
    )


@pytest.mark.parametrize(("method", "eta"), [("ddpm", None), ("ddim", 1.0)])
def test_eta_one_on_all_steps_is_the_ddpm_posterior(method, eta):
    plan = ddim_ode.plan(
        method, DDPM, grids.from_timesteps(DDPM, range(1, T + 1)), vector="x0", eta=eta
    )
    t = np.arange(T, 0, -1)
    beta, a, before = BETAS[t - 1], ALPHAS_CUMPROD[t], ALPHAS_CUMPROD[t - 1]
    of_x0 = np.sqrt(before) * beta / (1 - a)
    of_x = np.sqrt(1 - beta) * (1 - before) / (1 - a)
    variance = beta * (1 - before) / (1 - a)
    steps = plan.ops[1:]
    np.testing.assert_allclose([op.weights[0] for op in steps], of_x0.astype(float), rtol=1e-12)
    np.testing.assert_allclose(
        [op.scale for op in steps], of_x.astype(float), rtol=1e-12, atol=1e-15
    )
    np.testing.assert_allclose(
        [op.noise**2 for op in steps], variance.astype(float), rtol=1e-12, atol=1e-18
    )


def test_sampling_with_noise_is_the_textbook_with_the_same_draws():
    tau, seeds, x = [3, 50, 333, 901], [4, 9, 16], points(3, 2)
    draw = StepNoise(seeds, x)
    z = [draw() for _ in range(3)]  # none for the landing, whose noise is zero
    noise = np.array([0.4, 0.15, 0.01, 0.0])
    sol = ddim_ode.sample(MODEL, x, timesteps=tau, noise_std=noise, seeds=seeds)
    np.testing.assert_allclose(sol.x, textbook_ddim(x.numpy(), tau, noise, z), rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"eta": 0.0}, {"noise_std": np.zeros(5)}])
def test_without_noise_no_generator_is_touched(options):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    sol = ddim_ode.sample(MODEL, points(2, 2), "ddim", steps=5, **options)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert sol.seeds is None


def test_drawn_seeds_are_reported_and_a_sample_is_its_seed_s_alone():
    x = points(5, 2)
    first = ddim_ode.sample(MODEL, x, "ddpm", steps=5)
    again = ddim_ode.sample(MODEL, x, "ddpm", steps=5, seeds=first.seeds)
    assert torch.equal(first.x, again.x)
    batch = ddim_ode.noise((2, 3), DDPM, seeds=[7, 8, 9])
    assert torch.equal(ddim_ode.noise((2, 3), DDPM, seeds=[9]), batch[2:])
    for rows in ([2], [4, 0], [1, 2, 3]):
        seeds = [first.seeds[r] for r in rows]
        alone = ddim_ode.sample(MODEL, x[rows], "ddpm", steps=5, seeds=seeds)
        assert torch.equal(alone.x, first.x[rows])


@pytest.mark.parametrize(
    ("schedule", "sigma", "scale"),
    [(DDPM, 2.0, 1.0), (schedules.ve(80.0), None, 80.0), (schedules.flow(), 3.0, 0.75)],
)
def test_start_noise_has_the_scale_of_its_level(schedule, sigma, scale):
    unit = ddim_ode.noise((8,), DDPM, seeds=[1])
    torch.testing.assert_close(ddim_ode.noise((8,), schedule, [1], sigma), scale * unit)


@pytest.mark.parametrize("schedule", [schedules.ddpm(T=50, beta_end=0.2), schedules.vp()])
def test_eps_loss_of_the_exact_model_is_its_irreducible_part(schedule):
    model = gaussian_2d(schedule)
    generator = torch.Generator().manual_seed(3)

    def exact(x, t, factor=1.0):
        return factor * model.net(x, torch.as_tensor(schedule.sigma(t.numpy())))

    def losses(net):
        return np.array(
            [
                float(ddim_ode.eps_loss(net, schedule, model.draw(2048, seed), generator=generator))
                for seed in range(16)
            ]
        )

    t = np.arange(1, 51) if schedule.discrete else (np.arange(20000) + 0.5) / 20000
    signal = schedule.alpha_bar(t)[:, None] ** 2 * model.eigenvalues
    least = (signal / (signal + schedule.beta_bar(t)[:, None] ** 2)).mean()
    measured = losses(exact)
    assert measured.mean() == pytest.approx(least, abs=4 * measured.std() / 4)
    assert losses(lambda x, t: exact(x, t, 1.4)).mean() > least + 8 * measured.std() / 4


def test_eps_loss_pairs_the_level_with_the_time_a_0_based_network_sees():
    schedule, seen = schedules.from_alphas_cumprod([0.9, 0.6, 0.3, 0.1]), {}

    def record(x, t):
        seen.update(zip(t.tolist(), x.mean(1).tolist()))
        return torch.zeros_like(x)

    x0 = torch.full((64, 16), 1e6, dtype=torch.float64)
    ddim_ode.eps_loss(record, schedule, x0, time_offset=-1.0)
    assert sorted(seen) == [0, 1, 2, 3]
    for t, mean in seen.items():
        assert mean / 1e6 == pytest.approx(schedule.alpha_bar(t + 1), rel=1e-5)


def test_eps_loss_passes_conditions_is_differentiable_and_does_not_broadcast():
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    own = lambda x, t, y: weight * x * y  # noqa: E731
    ddim_ode.eps_loss(own, DDPM, points(6, 2), y=torch.ones(6, 1).double()).backward()
    assert weight.grad != 0
    with pytest.raises(ValueError, match=r"returned shape \(4, 1\) for x of \(4, 2\)"):
        ddim_ode.eps_loss(lambda x, t: x[:, :1], DDPM, points(4, 2))
    with pytest.raises(ValueError, match="x0 must be a floating"):
        ddim_ode.eps_loss(net, DDPM, torch.ones(4, 2, dtype=torch.int64))
