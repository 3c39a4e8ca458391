"""The oracles themselves, checked against scipy, autograd, and what their flows must preserve."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import COSINE, EXPONENTIAL, SCHEDULES, gaussian_2d, mixture_1d, mixture_2d, points
from refusals import expect
from scipy.integrate import quad
from scipy.stats import multivariate_normal

from ddim_ode import exact

FAMILIES = {"vp": EXPONENTIAL, "ve": SCHEDULES["ve"], "flow": SCHEDULES["flow"]}
SIGMAS = [1e-3, 0.3, 2.0, 40.0]
PREDICTIONS = ["eps", "x0", "v", "score", "flow"]
WEIGHTS, MEANS = [0.6, 0.4], [[-1.5, 0.5], [1.2, -0.8]]
COVS = [[[0.5, 0.2], [0.2, 0.3]], [[0.25, -0.1], [-0.1, 0.6]]]


@pytest.mark.parametrize("sigma", [0.0, *SIGMAS])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_prob_is_that_of_the_noised_mixture(family, sigma):
    schedule, x = FAMILIES[family], points(6, 2)
    alpha, beta = schedule.scales(sigma)
    density = sum(
        w
        * multivariate_normal(
            alpha * np.array(m), alpha**2 * np.array(c) + beta**2 * np.eye(2)
        ).pdf(x)
        for w, m, c in zip(WEIGHTS, MEANS, COVS)
    )
    measured = exact.gaussian_mixture(WEIGHTS, MEANS, COVS, schedule).log_prob(x, sigma)
    np.testing.assert_allclose(measured, np.log(density), rtol=1e-10)


def test_log_prob_integrates_to_one_and_variances_are_diagonal_covariances():
    covs, x = ([[[0.5, 0], [0, 2.0]]], [[0.5, 2.0]]), points(4, 2)
    full, short = (exact.gaussian_mixture([1.0], [[0.1, 0.2]], c, COSINE) for c in covs)
    torch.testing.assert_close(full.log_prob(x, 0.7), short.log_prob(x, 0.7))
    model = mixture_1d(COSINE)
    density = lambda x: float(model.log_prob(torch.tensor([[x]], dtype=torch.float64), 0.8).exp())  # noqa: E731
    assert quad(density, -12, 12, epsabs=1e-10, limit=200)[0] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("family", FAMILIES)
def test_eps_is_minus_beta_bar_times_the_score(family, sigma):
    model = mixture_2d(FAMILIES[family])
    x = (points(6, 2) * 2).requires_grad_()
    (score,) = torch.autograd.grad(model.log_prob(x, sigma).sum(), x)
    _, eps = model(x, sigma)
    beta = float(FAMILIES[family].scales(sigma)[1])
    torch.testing.assert_close(eps, -beta * score, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sigma", [0.3, 2.0, 40.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_prediction_gives_the_same_pair(family, prediction, sigma):
    schedule, x = FAMILIES[family], points(6, 2)
    x0, eps = mixture_2d(schedule, prediction)(x, sigma)
    expected_x0, expected_eps = mixture_2d(schedule)(x, sigma)
    torch.testing.assert_close(eps, expected_eps, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(x0, expected_x0, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_pair_makes_up_x(family, sigma):
    schedule, x = FAMILIES[family], points(6, 2)
    alpha, beta = map(float, schedule.scales(sigma))
    x0 = mixture_2d(schedule, "x0").net(x, torch.full((6,), sigma, dtype=torch.float64))
    eps = mixture_2d(schedule, "eps").net(x, torch.full((6,), sigma, dtype=torch.float64))
    torch.testing.assert_close(alpha * x0 + beta * eps, x, rtol=1e-12, atol=1e-12 * beta)
    shaped = mixture_2d(schedule)(x.reshape(6, 1, 2, 1), sigma)[1]  # samples are flattened
    torch.testing.assert_close(shaped.reshape(6, 2), eps)


@pytest.mark.parametrize(
    ("prediction", "of_pair"),
    [
        ("v", lambda x0, eps, a, b: a * eps - b * x0),
        ("flow", lambda x0, eps, a, b: eps - x0),
        ("score", lambda x0, eps, a, b: -eps / b),
    ],
)
def test_a_prediction_is_its_definition(prediction, of_pair):
    x, sigma = points(6, 2), torch.full((6,), 1.25, dtype=torch.float64)
    x0, eps = mixture_2d(COSINE)(x, sigma)
    expected = of_pair(x0, eps, *map(float, COSINE.scales(1.25)))
    torch.testing.assert_close(mixture_2d(COSINE, prediction).net(x, sigma), expected)


def test_x0_and_eps_hold_their_float32_precision_at_both_ends():
    for sigma in (1e-4, 2e4):
        for prediction in ("eps", "x0"):
            model, x = mixture_2d(COSINE, prediction), points(6, 2)
            level = torch.full((6,), sigma, dtype=torch.float64)
            wide = model.net(x.float().double(), level.float().double())
            narrow = model.net(x.float(), level.float())
            torch.testing.assert_close(narrow.double(), wide, rtol=2e-6, atol=2e-6)


def test_levels_may_differ_between_samples():
    model, x = mixture_2d(COSINE), points(3, 2)
    x0, eps = model(x, torch.tensor([0.1, 1.0, 10.0]))
    for i, sigma in enumerate([np.float32(0.1), 1.0, 10.0]):
        alone_x0, alone_eps = model(x[i : i + 1], float(sigma))
        torch.testing.assert_close(x0[i : i + 1], alone_x0)
        torch.testing.assert_close(eps[i : i + 1], alone_eps)


@pytest.mark.parametrize("family", FAMILIES)
def test_gaussian_flow_keeps_standardised_coordinates(family):
    schedule = FAMILIES[family]
    model, x = gaussian_2d(schedule), points(6, 2)

    def mahalanobis(x, sigma):
        alpha, beta = schedule.scales(sigma)
        covariance = alpha**2 * np.array([[0.5, 0.2], [0.2, 0.3]]) + beta**2 * np.eye(2)
        centred = x.numpy() - alpha * np.array([0.7, -0.4])
        return np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred)

    moved = model.flow(x, 30.0, 0.02)
    np.testing.assert_allclose(mahalanobis(moved, 0.02), mahalanobis(x, 30.0), rtol=1e-10)


@pytest.mark.parametrize("model", [gaussian_2d(COSINE), mixture_1d(COSINE)], ids=["2d", "1d"])
@given(middle=st.floats(0.05, 20.0))
def test_flow_composes_and_returns(model, middle):
    x = points(5, model.means.shape[1])
    there = model.flow(model.flow(x, 20.0, middle), middle, 0.05)
    torch.testing.assert_close(there, model.flow(x, 20.0, 0.05), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(model.flow(there, 0.05, 20.0), x, rtol=1e-9, atol=1e-9)


def test_mixture_flow_keeps_the_cumulative_distribution():
    model, x = mixture_1d(COSINE), torch.tensor([[-1.9], [0.1], [1.4]], dtype=torch.float64)
    moved = model.flow(x, 5.0, 0.3)

    def probability(x, sigma):
        def density(y):
            return float(model.log_prob(torch.tensor([[y]], dtype=torch.float64), sigma).exp())

        return quad(density, -15, x, epsabs=1e-11, limit=200)[0]

    for before, after in zip(x.flatten().tolist(), moved.flatten().tolist()):
        assert probability(after, 0.3) == pytest.approx(probability(before, 5.0), abs=1e-9)


def test_mixture_flow_keeps_its_digits_in_both_tails():
    model = mixture_1d(COSINE)
    x = torch.tensor([[-9.0], [9.0]], dtype=torch.float64)
    there = model.flow(x, 3.0, 1.0)
    torch.testing.assert_close(model.flow(there, 1.0, 3.0), x, rtol=1e-12, atol=0)
    pair = exact.gaussian_mixture([0.5, 0.5], [[0.3], [0.3]], [[0.4], [0.4]], COSINE)
    ends = (m.flow(points(6), 9.0, 0.1) for m in (pair, exact.gaussian([0.3], [[0.4]], COSINE)))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-13)  # one component is a Gaussian


def test_draws_have_the_moments_of_the_mixture():
    model, n = mixture_2d(COSINE), 200_000
    x = model.draw(n, seed=1).numpy()
    w, m, c = map(np.array, (WEIGHTS, MEANS, COVS))
    mean = w @ m
    covariance = np.einsum("k,kij->ij", w, c) + np.einsum("k,ki,kj->ij", w, m - mean, m - mean)
    np.testing.assert_allclose(x.mean(0), mean, atol=5 * np.sqrt(covariance.max() / n))
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 0.4], [[0.0], [1.0]], [[1.0], [1.0]]), "positive and sum to 1"),
        (([1.0], [[0.0], [1.0]], [[1.0], [1.0]]), r"must be \(K,\) and \(K, D\)"),
        (([1.0], [[0.0, 1.0]], [[[1.0, 0.5], [0.2, 1.0]]]), r"give symmetric \(1, 2, 2\)"),
        (([1.0], [[0.0, 1.0]], [[[1.0, 2.0], [2.0, 1.0]]]), "negative eigenvalue -1"),
    ],
)
def test_an_impossible_mixture_is_refused(arguments, message):
    expect(lambda: exact.gaussian_mixture(*arguments, COSINE), message)
    no_flow = "mixture of 2 in 2 dimensions has no closed flow"
    expect(lambda: mixture_2d(COSINE).flow(points(2, 2), 2.0, 1.0), no_flow)
