"""Distribution metrics against closed forms and scipy, and the biases they state."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from scipy.spatial.distance import cdist

from ddim_ode.evaluate import kernel
from ddim_ode.evaluate import pairs as rows
from ddim_ode.evaluate.metrics import (
    energy_distance,
    frechet_distance,
    frechet_from_moments,
    kernel_distance,
    median_bandwidth,
    mmd,
    sliced_wasserstein,
)


def normal(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def kid(a, b, **kw):
    return kernel_distance(a, b, **{"subsets": 3, "subset_size": 50, **kw}).mean


ALL = [frechet_distance, kid, sliced_wasserstein, energy_distance, mmd]


def agrees(draws, truth, sigmas=4.0):
    """Whether the mean of the draws is within its own standard errors of the truth."""
    return abs(np.mean(draws) - truth) < sigmas * np.std(draws) / np.sqrt(len(draws))


# -- Fréchet ----------------------------------------------------------------------------------
def test_frechet_of_two_gaussians():
    """Whose covariances do not commute; of a 2 × 2 root the trace is known."""
    mean, cov = np.array([0.5, -1.0]), np.array([[2.0, 0.9], [0.9, 1.0]])
    other_mean, other_cov = np.array([0.0, 1.0]), np.array([[1.0, -0.6], [-0.6, 3.0]])
    product = cov @ other_cov
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    truth = np.sum((mean - other_mean) ** 2) + np.trace(cov + other_cov) - 2 * root
    exact = frechet_from_moments(mean, cov, other_mean, other_cov)
    assert exact == pytest.approx(truth, rel=1e-12)


def test_frechet_is_that_of_the_matrix_square_root():
    a, b = normal(60, 7) @ normal(7, 7, 1), normal(80, 7, 2) @ normal(7, 7, 3) + 1.0
    s, t = np.cov(a.T), np.cov(b.T)
    root = np.trace(scipy.linalg.sqrtm(s @ t)).real
    truth = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s) + np.trace(t) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(truth, rel=1e-10)


def test_frechet_of_fewer_rows_than_dimensions():
    x = normal(5, 12)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + 1.0) == pytest.approx(12, abs=1e-6)


@pytest.mark.parametrize("n", [100, 400])
def test_frechet_bias_is_the_one_stated(n):
    d, rng = 4, np.random.default_rng(0)
    draws = [frechet_distance(*rng.standard_normal((2, n, d))) for _ in range(300)]
    stated = 2 * d / n + d * (d + 1) / (2 * n)
    assert np.mean(draws) == pytest.approx(stated, rel=0.06)
    exact = [
        frechet_from_moments(x.mean(0), np.cov(x.T), np.zeros(d), np.eye(d))
        for x in rng.standard_normal((300, n, d))
    ]
    assert np.mean(exact) == pytest.approx(stated / 2, rel=0.08)


# -- kernels ----------------------------------------------------------------------------------


def direct_mmd(k, a, b):
    n, m = len(a), len(b)
    aa, bb = k(a, a), k(b, b)
    within = (aa.sum() - aa.trace()) / (n * (n - 1)) + (bb.sum() - bb.trace()) / (m * (m - 1))
    return within - 2 * k(a, b).mean()


def cubic(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def test_kid_of_the_whole_sample_is_the_direct_sum():
    a, b = normal(30, 5), normal(30, 5, 1) + 0.5
    found = kernel_distance(a, b, subsets=4, subset_size=30)
    assert found.mean == pytest.approx(direct_mmd(cubic, a, b), rel=1e-12)
    assert found.std < 1e-12


def test_kid_of_a_shifted_normal_is_its_closed_form_without_bias():
    # In one dimension k(x, y) = 1 + 3xy + 3x²y² + x³y³: the squared gaps of three moments.
    shift = 0.4
    truth = 3 * shift**2 + 3 * shift**4 + (shift**3 + 3 * shift) ** 2
    draws = [kid(normal(60, 1, i), normal(60, 1, 10_000 + i) + shift) for i in range(400)]
    assert agrees(draws, truth)
    assert np.std(draws) / 20 < 0.1 * truth  # so that it could have failed


def test_kid_draws_by_its_seed_and_reports_the_scatter():
    a, b = normal(300, 2), normal(400, 2, 1)
    first, again, other = (kernel_distance(a, b, subsets=20, seed=s) for s in (0, 0, 1))
    assert first == again != other
    assert (first.subsets, first.subset_size) == (20, 150)  # half of the smaller, below 2000 rows
    single = [kernel_distance(a, b, subsets=1, subset_size=150, seed=s).mean for s in range(60)]
    assert first.std == pytest.approx(np.std(single), rel=0.5)


@pytest.mark.parametrize("d", [2, 40])  # either side of where the distances change their formula
def test_blocks_change_nothing(d):
    a, b = normal(50, d), normal(37, d, 1) + 0.3

    def gaussian(x, y, bandwidth=1.0):
        return np.exp(-cdist(x, y, "sqeuclidean") / (2 * bandwidth**2))

    for block in (1, 7, 37, 1000):
        blocked = kernel._squared_mmd(
            lambda x, y: np.exp(-rows.squared_distances(x, y) / 2), a, b, block
        )
        assert blocked == pytest.approx(direct_mmd(gaussian, a, b), rel=1e-9)
    distances = rows.squared_distances(a, b)
    np.testing.assert_allclose(distances, cdist(a, b, "sqeuclidean"), rtol=1e-11)
    truth = direct_mmd(lambda x, y: gaussian(x, y, 1.3), a, b)
    assert mmd(a, b, bandwidth=1.3) == pytest.approx(truth, rel=1e-9)
    d2 = 2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean()
    assert energy_distance(a, b) == pytest.approx(np.sqrt(d2), rel=1e-9)


def test_median_bandwidth():
    assert median_bandwidth([[0.0], [1.0], [10.0]]) == 9.0  # of 1, 9, 10: no row with itself
    x, many = normal(300, 2), normal(5000, 2, 1)
    assert mmd(x, many[:400]) == mmd(x, many[:400], bandwidth=median_bandwidth(many[:400]))
    # ‖x − y‖²/2 is χ² with 2 degrees
    assert median_bandwidth(many) == pytest.approx(np.sqrt(2 * scipy.stats.chi2(2).median()), 0.03)
    with pytest.raises(ValueError, match="same point: give a bandwidth"):
        median_bandwidth([[1.0], [1.0], [1.0]])


# -- energy, sliced Wasserstein ---------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 40, 73])
def test_one_dimension_is_scipys(m):
    a, b = normal(40, 1), 1.4 * normal(m, 1, 1) - 0.3
    flat = a.ravel(), b.ravel()
    assert energy_distance(a, b) == pytest.approx(scipy.stats.energy_distance(*flat), rel=1e-10)
    found = sliced_wasserstein(a, b, p=1)
    assert found == pytest.approx(scipy.stats.wasserstein_distance(*flat), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(6, 4), (5, 5), (9, 1), (3, 7)])
@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_unequal_sizes_are_equal_ones_with_rows_repeated(n, m, p):
    a, b = normal(n, 3), normal(m, 3, 1)
    common = np.lcm(n, m)
    repeated = np.repeat(a, common // n, 0), np.repeat(b, common // m, 0)
    kw = dict(p=p, projections=10)
    assert sliced_wasserstein(a, b, **kw) == pytest.approx(sliced_wasserstein(*repeated, **kw))
    line, other = a[:, :1], b[:, :1]
    gaps = np.sort(np.repeat(line, common // n)) - np.sort(np.repeat(other, common // m))
    truth = np.mean(np.abs(gaps) ** p) ** (1 / p)
    assert sliced_wasserstein(line, other, p=p) == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize(("d", "projections"), [(2, 6), (16, 64), (128, 128), (300, 2000)])
def test_sliced_distance_of_a_shift(d, projections):
    x, shift = normal(50, d), normal(1, d, 5)
    truth = np.linalg.norm(shift) / np.sqrt(d)
    found = sliced_wasserstein(x, x + shift, projections=projections)
    # whole orthonormal bases give it exactly, parts of them on average
    assert found == pytest.approx(truth, rel=1e-12 if projections % d == 0 and d <= 128 else 0.05)


def test_biases_of_energy_and_sliced_distances_are_those_stated():
    rng, n, m = np.random.default_rng(0), 50, 200
    mean_distance = 2 / np.sqrt(np.pi)  # of two standard normals
    pairs = [(rng.standard_normal((n, 1)), rng.standard_normal((m, 1))) for _ in range(400)]
    squares = [energy_distance(a, b) ** 2 for a, b in pairs]
    assert np.mean(squares) == pytest.approx(mean_distance * (1 / n + 1 / m), rel=0.1)

    def sliced(size):
        draws = rng.standard_normal((30, 2, size, 4))
        return np.mean([sliced_wasserstein(a, b, projections=16) ** 2 for a, b in draws])

    assert sliced(100) / sliced(1600) == pytest.approx(16, rel=0.3)


def test_projections_and_seed():
    a, b = normal(100, 5), normal(100, 5, 1) * [1, 2, 3, 4, 5]
    found = [sliced_wasserstein(a, b, projections=10, seed=s) for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    many = sliced_wasserstein(a, b, projections=5000)
    assert abs(sliced_wasserstein(a, b, projections=5000, seed=1) / many - 1) < 0.01


# -- all of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ALL, ids=lambda f: f.__name__)
def test_order_of_rows_and_of_samples_does_not_matter(metric):
    a, b = normal(50, 3), normal(50, 3, 1) + [0.5, 0.0, -0.1]
    rng = np.random.default_rng(4)
    there = metric(a, b)
    assert there > 0.01
    assert metric(rng.permutation(a), rng.permutation(b)) == pytest.approx(there, rel=1e-9)
    if metric is not mmd:  # whose bandwidth is b's
        assert metric(b, a) == pytest.approx(there, rel=1e-9)


@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize(
    "metric", [m for m in ALL if m is not kid], ids=lambda f: f.__name__
)  # a polynomial kernel knows where zero is
def test_a_far_away_origin_does_not_matter(metric, d):
    a, b = normal(60, d), normal(60, d, 1) + 0.5
    assert metric(a + 1e7, b + 1e7) == pytest.approx(metric(a, b), rel=1e-6)


@pytest.mark.parametrize("metric", ALL, ids=lambda f: f.__name__)
def test_torch_tensors_of_any_precision_are_taken(metric):
    a, b = torch.from_numpy(normal(60, 3)), torch.from_numpy(normal(60, 3, 1))
    truth = metric(a.numpy(), b.numpy())
    assert metric(a.requires_grad_(), b) == truth
    half = a.bfloat16(), b.bfloat16()
    assert metric(*half) == metric(*(x.double() for x in half)) != truth


@pytest.mark.parametrize("metric", ALL, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("b", "message"),
    [
        (normal(60, 4), "3 dimensions and b has 4"),
        (normal(60, 1).ravel(), r"shape \(60,\).*one feature is x\[:, None\]"),
        (np.zeros((60, 1, 3, 3)), r"shape \(60, 1, 3, 3\).*go through Features first"),
        (np.zeros((0, 3)), "b has 0 rows.*draw more samples"),
        (np.where(np.arange(60) == 7, np.nan, normal(60, 3).T).T, "the first is row 7: look"),
    ],
)
def test_wrong_rows_are_refused(metric, b, message):
    with pytest.raises(ValueError, match=message):
        metric(normal(60, 3), b)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: frechet_distance(x[:1], x), "a has 1 rows, but needs at least 2"),
        (lambda x: kernel_distance(x, x[:20], subset_size=50), "subset_size=50.*the 20 rows"),
        (lambda x: kernel_distance(x, x, subset_size=1), "subset_size=1 must be .* >= 2"),
        (lambda x: kernel_distance(x, x, subsets=0), "subsets=0"),
        (lambda x: kernel_distance(x[:3], x), "needs at least 4"),
        (lambda x: mmd(x, x, bandwidth=0.0), "bandwidth=0.0 must be positive"),
        (lambda x: mmd(x, x, bandwidth=np.nan), "bandwidth=nan must be positive"),
        (lambda x: sliced_wasserstein(x, x, p=0.5), "p=0.5 must be at least 1"),
        (lambda x: sliced_wasserstein(x, x, projections=0), "projections=0"),
        (lambda x: sliced_wasserstein(x, x, seed=-1), "seed=-1"),
        (lambda x: frechet_from_moments([0.0], [[1.0]], [0.0, 0.0], np.eye(2)), "1 dimensions and"),
        (lambda x: frechet_from_moments([0.0], np.eye(2), [0.0], np.eye(2)), r"\(D,\) and \(D"),
        (lambda x: frechet_from_moments([0, 0], [[1, 2], [3, 4]], [0, 0], np.eye(2)), "symmetric"),
    ],
)
def test_wrong_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(normal(60, 2))


def test_numbers_need_no_torch():
    code = "import sys; from ddim_ode.evaluate import energy, frechet, kernel, sliced;"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_square_matrix_is_held():
    a, b = normal(4000, 2), normal(4000, 2, 1)
    tracemalloc.start()
    try:
        energy_distance(a, b)
        mmd(a, b, bandwidth=1.0)
        sliced_wasserstein(a, b, projections=512)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.4 * 4000 * 4000 * 8
