"""``noise="path"``: one Brownian path per seed, whatever the steps, the batch and the order of samples."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import COSINE
from scipy.stats import kstest

import ddim_ode
from ddim_ode.denoising.seeding import PATH, NodeGenerator, normals
from ddim_ode.solve import brownian
from ddim_ode.solve.brownian import PathNoise

MODEL = ddim_ode.exact.gaussian_mixture(
    [0.4, 0.6], [[-1.0, 0.5], [0.8, -0.3]], [np.eye(2) * 0.3, np.eye(2) * 0.5], COSINE
)


def spans(levels):
    return list(pairwise(levels))


def draws(levels, seeds=(0,), size=4):
    noise = PathNoise(seeds, spans(levels), torch.zeros(len(seeds), size))
    return torch.stack([noise() for _ in levels[1:]]).double()


def rms(a, b):
    return float((a - b).pow(2).mean().sqrt())


@pytest.mark.parametrize(
    "levels",
    [
        np.geomspace(80.0, 0.002, 13),
        (np.linspace(80.0 ** (1 / 7), 0.002 ** (1 / 7), 11)) ** 7,
        np.array([np.inf, 30.0, 1.0, 0.999, 0.5, 1e-3]),
        np.array([2.0, 2.0 - 1e-9, 1.0]),
    ],
)
def test_increments_are_independent_and_standard(levels):
    n = 40_000
    z = draws(levels, size=n)[:, 0]
    table = (z @ z.T / n).numpy()
    bound = 5 / np.sqrt(n)
    assert np.abs(table - np.eye(len(table))).max() < np.sqrt(2) * bound
    assert float(z.mean(dim=1).abs().max()) < bound
    assert float((z**4).mean(dim=1).sub(3).abs().max()) < 5 * np.sqrt(96 / n)


def test_two_steps_make_the_increment_of_the_whole():
    """B over a step is the sum of B over its parts, on any two grids that share levels."""
    fine, coarse = 2.0 ** np.arange(5, -6.0, -1), 2.0 ** np.array([5.0, 2, 1, -3, -5])
    parts, whole = draws(fine, size=500), draws(coarse, size=500)
    q, qs = fine**-2.0, coarse**-2.0
    sums = torch.as_tensor(np.sqrt(np.diff(q)))[:, None, None] * parts
    for k, (low, high) in enumerate(pairwise(qs)):
        inside = (q[:-1] >= low * (1 - 1e-9)) & (q[1:] <= high * (1 + 1e-9))
        summed = sums[torch.as_tensor(inside)].sum(0) / np.sqrt(high - low)
        assert np.corrcoef(summed.ravel(), whole[k].ravel())[0, 1] > 0.98
    exact = 2.0 ** np.array([2.0, 0.0, -2.0])  # e^λ by powers of two is no dyadic λ; these are near
    assert draws(exact, size=9).shape == (2, 1, 9)


def test_dyadic_levels_are_the_same_numbers_on_every_grid():
    fine, coarse = np.exp(-np.arange(-4, 5) / 2.0), np.exp(-np.arange(-2, 3) * 1.0)
    parts, whole = draws(fine, size=50), draws(coarse, size=50)
    root = torch.as_tensor(np.sqrt(np.diff(fine**-2.0)))[:, None, None]
    summed = (root * parts).unflatten(0, (4, 2)).sum(1)
    summed /= torch.as_tensor(np.sqrt(np.diff(coarse**-2.0)))[:, None, None]
    # the ends of a grid are looked at on their own, and rounded to another place where it needs no finer
    assert float((summed - whole).abs().max()) < 1e-4


def test_order_batch_and_dtype_change_nothing():
    levels = np.geomspace(80.0, 0.002, 9)
    seeds = [7, 3, 2**62]
    together = draws(levels, seeds)
    for i, seed in enumerate(seeds):
        assert torch.equal(draws(levels, [seed])[:, 0], together[:, i])
    assert torch.equal(draws(levels, seeds[::-1]).flip(1), together)
    wide = PathNoise(seeds, spans(levels), torch.zeros(3, 4, dtype=torch.float64))
    assert torch.equal(wide(), together[0])


def test_strong_convergence_exists_with_a_path_alone():
    """On the mixture, the distance to a fine solve falls at order 1; with fresh noise it does not fall."""
    seeds = range(120)
    x = ddim_ode.noise((2,), COSINE, seeds, sigma=10.0, dtype=torch.float64)

    def end(steps, noise, method="dpmpp2m"):
        grid = np.geomspace(10.0, 0.1, steps + 1)
        return ddim_ode.sample(MODEL, x, method, grid=grid, eta=1.0, seeds=seeds, noise=noise).x

    counts = [12, 24, 48]
    fine, other = end(288, "path"), end(288, "step")
    distances = [rms(end(n, "path"), fine) for n in counts]
    orders = -np.diff(np.log(distances)) / np.diff(np.log(counts))
    assert orders == pytest.approx([1.0, 1.0], abs=0.25)
    fresh = [rms(end(n, "step"), other) for n in counts[::2]]
    assert min(fresh) > 5 * distances[1]
    assert fresh[1] > 0.8 * fresh[0]
    assert rms(end(48, "path", "seeds2"), fine) < 2 * distances[2]  # another method, the same path


def test_another_grid_sees_the_same_path():
    seeds = range(80)
    x = ddim_ode.noise((2,), COSINE, seeds, sigma=10.0, dtype=torch.float64)

    def end(grid, noise):
        options = dict(grid=np.append(grid, 0.0), eta=1.0, seeds=seeds, noise=noise)
        return ddim_ode.sample(MODEL, x, "dpmpp2m", **options).x

    log = np.geomspace(10.0, 0.1, 60)
    karras = np.linspace(10.0 ** (1 / 7), 0.1 ** (1 / 7), 60) ** 7
    apart = {noise: rms(end(log, noise), end(karras, noise)) for noise in ("path", "step")}
    assert apart["path"] < apart["step"] / 4


def test_few_cells_are_drawn(monkeypatch):
    """At 50 steps at most 2.2 a step, in single precision; a fresh draw is one in double."""
    counts = []
    fill = NodeGenerator.fill
    monkeypatch.setattr(NodeGenerator, "fill", lambda *a: (counts.append(1), fill(*a))[1])
    for levels in (np.geomspace(80.0, 0.002, 51), np.linspace(80 ** (1 / 7), 0.3, 51) ** 7):
        counts.clear()
        draws(levels)
        assert 50 < len(counts) <= 110


def test_a_node_has_its_own_numbers():
    source, out = NodeGenerator(5, PATH), np.empty((4, 6), dtype=np.uint64)
    for row, node in zip(out, ((1, 0), (2, 0), (1, 0), (1, 1))):
        source.fill(*node, row)
    assert (out[0] == out[2]).all()
    assert len({row.tobytes() for row in out}) == 3


def test_normals_are_normal_and_row_by_row():
    bits = np.random.default_rng(0).integers(0, 2**64, (300, 1001), dtype=np.uint64)
    z = normals(bits)
    assert z.shape == (300, 2002)
    assert kstest(z.ravel()[::7], "norm").pvalue > 0.01
    assert abs(np.corrcoef(z[:, :1001].ravel(), z[:, 1001:].ravel())[0, 1]) < 5 / np.sqrt(z.size)
    ends = normals(np.array([[0], [2**64 - 1]], dtype=np.uint64))
    assert np.isfinite(ends).all()
    for rows in ([3], [7, 3, 5], list(range(120))):
        assert np.array_equal(normals(bits[rows]), z[rows])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(noise="path", eta=1.0), "noise='path' is one path per seed; give seeds="),
        (dict(noise="paths", eta=1.0, seeds=[0]), "noise 'paths'.*path, step"),
        (dict(noise=1, eta=1.0, seeds=[0]), "noise"),
        (dict(noise="path", method="rk45", rtol=1e-3, seeds=[0]), "noise.*drop noise='path'"),
        (dict(eta=1.0, method="unipc2", rtol=1e-3, seeds=[0]), "without noise.*drop eta=1.0"),
    ],
)
def test_refusals(options, message):
    method = options.pop("method", "dpmpp2m")
    placed = {} if "rtol" in options else dict(steps=4)
    with pytest.raises(ValueError, match=message):
        ddim_ode.sample(MODEL, torch.zeros(1, 2), method, **placed, **options)


def test_levels_that_a_path_cannot_follow():
    with pytest.raises(ValueError, match=r"levels that fall.*noise='step'"):
        PathNoise([0], [(1.0, 2.0)], torch.zeros(1, 2))
    with pytest.raises(ValueError, match="does not tell levels apart"):
        PathNoise([0], spans([1.0, 1.0 - 2e-16, 0.5]), torch.zeros(1, 2))
    assert brownian.places([0.0, 0.5])


def test_without_noise_there_is_nothing_to_draw():
    x = torch.ones(2, 2)
    plain = ddim_ode.sample(MODEL, x, "dpmpp2m", steps=4)
    asked = ddim_ode.sample(MODEL, x, "dpmpp2m", steps=4, eta=0.0, noise="path")
    assert torch.equal(plain.x, asked.x)
