"""Interpolation, partial starts and inpainting against closed forms."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import COSINE, DDPM, SCHEDULES, Counting, gaussian_2d, mixture_2d, points
from refusals import expect
from scipy.integrate import solve_ivp

import ddim_ode
from ddim_ode import Denoiser, Known
from ddim_ode.denoising.seeding import unit_noise
from ddim_ode.solvers.methods import METHODS

A, B = points(4, 30, seed=1).reshape(4, 2, 15), 1.7 * points(4, 30, seed=2).reshape(4, 2, 15)


# -- great circles ----------------------------------------------------------------------------
def norms(z):
    return torch.linalg.vector_norm(z.flatten(-2), dim=-1)


def angle(a, b):
    return torch.arccos((a * b).flatten(-2).sum(-1) / norms(a) / norms(b))


def test_a_great_circle_turns_at_constant_speed_in_one_plane():
    path = ddim_ode.slerp(A, B, np.linspace(0, 1, 9))
    assert path.shape == (9, *A.shape)
    turns = torch.stack([angle(z, after) for z, after in pairwise(path)])
    torch.testing.assert_close(turns, (angle(A, B) / 8).expand(8, 4), rtol=1e-9, atol=1e-12)
    for i in range(4):
        values = torch.linalg.svdvals(path[:, i].flatten(1))
        assert values[2] < 1e-12 * values[0]  # all nine lie in the plane of the two


def test_its_norm_goes_linearly_sample_by_sample_and_its_ends_are_exact():
    weights = torch.linspace(0, 1, 7).double()[:, None]
    path = ddim_ode.slerp(A, B, weights.flatten())
    torch.testing.assert_close(norms(path), (1 - weights) * norms(A) + weights * norms(B))
    torch.testing.assert_close(path[0], A, rtol=1e-15, atol=0)
    torch.testing.assert_close(path[-1], B, rtol=1e-15, atol=0)
    assert torch.equal(ddim_ode.slerp(A, B, 0.5), path[3])
    single = ddim_ode.slerp(A.float(), B.float(), [0.2, 0.7])  # computed in double
    wide = ddim_ode.slerp(A.float().double(), B.float().double(), [0.2, 0.7])
    assert (single.dtype, torch.equal(single, wide.float())) == (torch.float32, True)
    assert ddim_ode.slerp(A[:0], B[:0], [0.0, 0.5]).shape == (2, 0, *A.shape[1:])


def test_at_equal_norms_it_is_the_formula_of_the_paper():
    b = B / norms(B)[:, None, None] * norms(A)[:, None, None]
    theta, w = angle(A, b)[:, None, None], 0.3
    expected = (torch.sin((1 - w) * theta) * A + torch.sin(w * theta) * b) / torch.sin(theta)
    torch.testing.assert_close(ddim_ode.slerp(A, b, w), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-8, 1e-4])
def test_nearly_the_same_direction_is_nearly_a_straight_line(gap):
    b = 3.0 * (A + gap * B)
    path = ddim_ode.slerp(A, b, [0.25, 0.5])
    for z, w in zip(path, (0.25, 0.5)):
        torch.testing.assert_close(z, torch.lerp(A, b, w), rtol=0, atol=max(1e-14, 4 * gap))
    torch.testing.assert_close(norms(path[1]), (norms(A) + norms(b)) / 2, rtol=1e-14, atol=0)


def test_nearly_opposite_directions_still_turn_evenly():
    b = -A + 1e-4 * B
    path = ddim_ode.slerp(A, b, [0.0, 0.5, 1.0])
    torch.testing.assert_close(norms(path[1]), (norms(A) + norms(b)) / 2, rtol=1e-9, atol=0)
    half = angle(path[0], path[1])
    torch.testing.assert_close(half, angle(path[1], path[2]), rtol=1e-6, atol=0)


# -- partial starts -----------------------------------------------------------------------------
X0 = points(3, 2, seed=4)
SEEDS = [5, 6, 7]


@pytest.mark.parametrize("name", SCHEDULES)
def test_renoise_is_the_forward_process_with_the_start_noise_of_the_seeds(name):
    schedule = SCHEDULES[name]
    top = ddim_ode.noise((2,), schedule, SEEDS, dtype=torch.float64)
    prior = 1.0 if schedule.family == "vp" else float(schedule.scales(schedule.sigma_max)[1])
    for strength in (0.1, 0.37, 1.0):
        x, sigma = ddim_ode.renoise(X0, schedule, SEEDS, strength=strength)
        share = strength / (1 - strength) if strength < 1 else np.inf
        assert sigma == pytest.approx(min(share, schedule.sigma_max))
        alpha, beta = schedule.scales(sigma)
        torch.testing.assert_close(x, float(alpha) * X0 + float(beta) * top / prior)
        if sigma < np.inf:
            again = ddim_ode.renoise(X0, schedule, SEEDS, sigma=sigma)
            assert torch.equal(again.x, x)


def test_a_strength_keeps_as_much_of_the_picture_on_every_schedule():
    pictures = torch.randn(1500, 1, generator=torch.Generator().manual_seed(0))
    kept = {}
    for schedule in [*SCHEDULES.values(), ddim_ode.schedules.ve(1348.0)]:
        for strength in (0.2, 0.5, 0.8):
            x, _ = ddim_ode.renoise(pictures, schedule, range(1500), strength=strength)
            share = float(torch.corrcoef(torch.stack([x[:, 0], pictures[:, 0]]))[0, 1])
            # ᾱ/√(ᾱ² + β̄²) for pictures of unit variance, at β̄/(ᾱ + β̄) = strength
            assert share == pytest.approx(
                (1 - strength) / np.hypot(1 - strength, strength), abs=0.05
            )
            kept.setdefault(strength, []).append(share)
    assert all(max(shares) - min(shares) < 1e-3 for shares in kept.values())


def test_a_partial_start_spends_all_its_steps_below_its_level():
    net = Counting()
    model = Denoiser(net, DDPM)
    start = ddim_ode.renoise(X0, DDPM, SEEDS, strength=0.3)
    sol = ddim_ode.sample(model, start.x, steps=7, sigma_max=start.sigma)
    assert sol.sigmas[0] == start.sigma
    assert len(sol.sigmas) == 8
    times = [float(t[0]) for t in net.times]
    assert times[0] == pytest.approx(float(DDPM.time(3 / 7)))
    assert len(times) == 7


def test_strength_goes_from_the_picture_itself_to_pure_noise():
    model = gaussian_2d(COSINE)

    def moved(strength):
        start = ddim_ode.renoise(X0, COSINE, SEEDS, strength=strength)
        # The exact end: from σ down to 0 the flow of a Gaussian is known.
        return model.flow(start.x, start.sigma, 0.0) - X0

    # Near 0 the edit is of the order of σ; at 1, nothing is left of the picture.
    for strength in (1e-3, 1e-2):
        sigma = strength / (1 - strength)
        assert 0.1 * sigma < float(moved(strength).abs().max()) < 5 * sigma
    noise = ddim_ode.noise((2,), COSINE, SEEDS, dtype=torch.float64)
    pure = model.flow(noise, COSINE.sigma_max, 0.0)
    assert float((moved(1.0) + X0 - pure).abs().max()) < 1e-2  # ᾱ(T) is not quite 0
    sizes = [float(moved(s).square().mean()) for s in (0.05, 0.2, 0.5, 1.0)]
    assert sizes == sorted(sizes)


# -- inpainting -----------------------------------------------------------------------------------
MASK = torch.tensor([True, False])


def test_the_known_part_is_the_noised_picture_at_every_level_and_the_picture_at_the_end():
    z = unit_noise(SEEDS, X0)
    x_T = ddim_ode.noise((2,), COSINE, SEEDS, dtype=torch.float64)
    for name in METHODS:
        sol = ddim_ode.sample(
            mixture_2d(COSINE), x_T, name, steps=6, sigma_max=20.0, record="x", seeds=SEEDS,
            known=Known(X0, MASK, SEEDS),
        )  # fmt: skip
        for state, sigma in zip(sol.trajectory, sol.sigmas):
            alpha, beta = map(float, COSINE.scales(sigma))
            torch.testing.assert_close(state[:, 0], alpha * X0[:, 0] + beta * z[:, 0])
        assert torch.equal(sol.x[:, 0], X0[:, 0])
        assert not torch.equal(sol.x[:, 1], X0[:, 1])
        assert sol.alterations == {"known": True}
        assert sol.error is None


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp2m", "unipc2"])
def test_nothing_known_is_sampling_and_everything_known_is_the_picture(name):
    x_T = ddim_ode.noise((2,), COSINE, SEEDS, dtype=torch.float64)
    options = dict(method=name, steps=5)
    plain = ddim_ode.sample(mixture_2d(COSINE), x_T, **options).x
    nothing = Known(X0, torch.tensor(False), SEEDS)
    assert torch.equal(ddim_ode.sample(mixture_2d(COSINE), x_T, known=nothing, **options).x, plain)
    everything = Known(X0, torch.ones(3, 2, dtype=torch.bool), SEEDS)
    assert torch.equal(ddim_ode.sample(mixture_2d(COSINE), x_T, known=everything, **options).x, X0)


CORRELATED = ddim_ode.exact.gaussian([0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]], COSINE)
TOP, CUT = 40.0, 0.02


def inpainted(x0, seeds, steps, final="sigma_min"):
    x_T = ddim_ode.noise((2,), COSINE, seeds, dtype=torch.float64)
    grid = ddim_ode.grids.make_grid(
        "log_snr", COSINE, steps, final=final, sigma_max=TOP, sigma_min=CUT
    )
    known = Known(x0.expand(len(seeds), 2), MASK, seeds)
    return ddim_ode.sample(CORRELATED, x_T, grid=grid, known=known).x[:, 1]


def limit(c, z1, z2):
    """Where infinitely many steps take x₂: x₂' = x̂₀₂ ᾱ' + ε̂₂ β̄' beside x₁ = ᾱ c + β̄ z₁, a linear ODE."""

    def rate(log_sigma, x2):
        sigma = np.exp(log_sigma)
        a, b = COSINE.scales(sigma)
        covariance = a**2 * np.array([[1.0, 0.8], [0.8, 1.0]]) + b**2 * np.eye(2)
        eps = b * np.linalg.solve(covariance, [a * c + b * z1, x2[0]])[1]
        d_alpha, d_beta = COSINE.scale_rates(sigma)
        return [sigma * ((x2[0] - b * eps) / a * d_alpha + eps * d_beta)]

    ends = np.log(TOP), np.log(CUT)
    return solve_ivp(rate, ends, [z2], rtol=1e-10, atol=1e-12).y[0, -1]


def test_replacement_converges_to_the_ode_beside_the_noised_picture():
    c = 1.3
    expected = [limit(c, *z) for z in unit_noise(SEEDS, X0).tolist()]
    x0 = torch.tensor([[c, 0.0]]).double()
    errors = [np.abs(inpainted(x0, SEEDS, n).numpy() - expected).max() for n in (100, 200, 400)]
    assert errors[2] < 0.02
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 1.0, atol=0.15)


def test_inpainting_leans_towards_the_conditional_mean():
    # Given x₁ = c the mean of x₂ is 0.8 c, and 0 where nothing is known. By linearity the mean over
    # the noises is where no noise goes: replacement gets about half of the way.
    seeds = list(range(400))
    for c in (-1.5, 1.5):
        ends = inpainted(torch.tensor([[c, 0.0]]).double(), seeds, 100)
        expected = limit(c, 0.0, 0.0)
        assert 0.4 < expected / (0.8 * c) < 0.6
        assert float(ends.mean()) == pytest.approx(expected, abs=4 * float(ends.std()) / 20)


def test_known_is_kept_in_the_states_that_are_held_on_nan():
    def net(x, t):
        return torch.where(t[:, None] < 300, torch.nan, torch.tanh(x))

    x_T = ddim_ode.noise((2,), DDPM, SEEDS, dtype=torch.float64)
    known = Known(X0, MASK, SEEDS)
    sol = ddim_ode.sample(Denoiser(net, DDPM), x_T, steps=8, known=known, on_nan="hold")
    assert sol.status.tolist() == ["non_finite"] * 3
    assert sol.x.isfinite().all()


# -- attributes -------------------------------------------------------------------------------------
CLASS_MEANS = torch.tensor([[0.2, -0.1], [1.0, 0.5], [-0.8, 0.3]]).double()
VARIANCE = 0.36


def of_class(x, sigma, y):
    alpha, beta = (torch.as_tensor(s)[:, None] for s in COSINE.scales(sigma.numpy()))
    return beta * (x - alpha * CLASS_MEANS[y]) / (alpha**2 * VARIANCE + beta**2)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_transfer_goes_up_under_one_class_and_down_under_another(scale):
    # Each way is the exact flow of a Gaussian; down, of the guided mean.
    guidance = ddim_ode.Guidance(scale, {"y": 0})
    model = Denoiser(of_class, COSINE, time=lambda t, sigma: sigma, guidance=guidance, clip=50.0)
    source, target = torch.tensor([1, 2, 1]), torch.tensor([2, 2, 1])
    ends = dict(sigma_max=30.0, sigma_min=0.05)
    done = ddim_ode.transfer(model, X0, {"y": source}, {"y": target}, "rk4", steps=150, **ends)
    for i, (a, b) in enumerate(zip(source, target)):
        mean = CLASS_MEANS[0] + scale * (CLASS_MEANS[b] - CLASS_MEANS[0])
        up, down = (
            ddim_ode.exact.gaussian(m.numpy(), VARIANCE * np.eye(2), COSINE)
            for m in (CLASS_MEANS[a], mean)
        )
        latent = up.flow(X0[i : i + 1], 0.05, 30.0)
        torch.testing.assert_close(done.encoded.x[i : i + 1], latent, rtol=0, atol=1e-5)
        end = down.flow(latent, 30.0, 0.05)
        torch.testing.assert_close(done.x[i : i + 1], end, rtol=0, atol=1e-5)
    assert done.encoded.alterations == {}
    assert set(done.decoded.alterations) == {"clip", *(["guidance"] if scale != 1 else [])}
    assert (model.guidance is None) == (scale == 1)  # the caller's model is left as it was


def test_transfer_from_half_way_keeps_more_of_the_picture():
    model = Denoiser(of_class, COSINE, time=lambda t, sigma: sigma)
    source, target = {"y": torch.tensor([1, 2, 1])}, {"y": torch.tensor([2, 1, 0])}
    kept = []
    for top in (0.3, 1.0, 4.0, 30.0):
        x = ddim_ode.transfer(model, X0, source, target, "heun", steps=20, sigma_max=top).x
        kept.append(float((x - X0).abs().mean()))
    assert kept == sorted(kept)
    assert kept[0] < 0.3 * kept[-1]


# -- refusals -----------------------------------------------------------------------------------------
def with_sample_2(value):
    b = B.clone()
    b[2] = value
    return lambda: ddim_ode.slerp(A, b, 0.5)


def slerp(a=A, b=B, weights=0.5):
    return lambda: ddim_ode.slerp(a, b, weights)


def renoise(seeds=SEEDS, **options):
    return lambda: ddim_ode.renoise(X0, COSINE, seeds, **options)


def known(x0=X0, mask=MASK, seeds=SEEDS):
    return lambda: Known(x0, mask, seeds)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (with_sample_2(-2 * A[2]), "sample 2 point in opposite directions.*a third one"),
        (slerp(A.float(), -2 * A.float()), "opposite directions"),
        (with_sample_2(0), "latent b of sample 2 has norm 0"),
        (with_sample_2(torch.nan), "norm nan"),
        *(
            (slerp(weights=w), r"must be numbers in \[0, 1\]")
            for w in (-0.1, 1.1, [0.5, np.nan], [[0.5]])
        ),
        *(
            (slerp(a, b), r"two floating tensors \(B, \*\) alike")
            for a, b in (
                *((A, B[:2]), (A, B.float())),
                *((A[0, 0, 0], B[0, 0, 0]), (A.long(), B.long())),
            )
        ),
        (renoise(strength=0.0), r"strength=0.0 must be a number in \(0, 1\]"),
        (renoise(sigma=0.0), "adds no noise"),
        (renoise(sigma=1e9), "outside this schedule's range"),
        (renoise(sigma=1.0, strength=0.5), "both strength and sigma .*drop sigma"),
        (renoise([1], strength=0.5), "one seed per sample"),
        (known(mask=MASK.double()), "mask must be a bool tensor.*torch.float64"),
        (known(mask=MASK[[0, 1, 1]]), r"mask of shape \(3,\) must broadcast"),
        (known(seeds=[1]), "one seed per sample"),
        (known(X0.long()), "floating tensor"),
        (
            lambda: ddim_ode.sample(mixture_2d(COSINE), X0[:2], steps=3, known=known()()),
            r"known.x0 has shape \(3, 2\), and x has \(2, 2\)",
        ),
    ],
)
def test_what_cannot_be_edited_says_why(call, message):
    expect(call, message)
