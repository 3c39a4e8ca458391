"""compare(metric="distribution"): unbiased, with intervals that hold, with step noise and without."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import COSINE, DDPM, mixture_2d
from scipy.special import erf

import ddim_ode
from ddim_ode.comparison import report
from ddim_ode.comparison.distribution import Distances
from ddim_ode.comparison.samples import draw_samples
from ddim_ode.comparison.statistics import difference_decision
from ddim_ode.evaluate.energy import energy_distance, euclidean
from ddim_ode.evaluate.features import IDENTITY
from ddim_ode.evaluate.jackknife import BLOCKS, Blocks
from ddim_ode.evaluate.kernel import cubic, mmd
from ddim_ode.solve.reference import given
from ddim_ode.solvers.methods import METHODS

EULER = replace(METHODS["ddim"], eta=1.0, name="noisy")


def compare(model, methods, nfe=(8,), **options):
    options = dict(metric="distribution", progress=False, reference=1e-3) | options
    return ddim_ode.compare(model, methods, nfe, **options)


def minus_euclidean(x, y):
    return -euclidean(x, y)


def parts(x):
    return np.array_split(x, BLOCKS)


def energy_of_shift(shift):
    """D² of N(0, 1) and N(shift, 1): E|√2 z + shift| has a closed form."""
    mean = 2 / np.sqrt(np.pi) * np.exp(-(shift**2) / 4) + shift * erf(shift / 2)
    return 2 * mean - 4 / np.sqrt(np.pi)


# -- the estimate -------------------------------------------------------------------------------


def test_it_is_that_of_all_pairs_without_bias():
    x, y = np.random.default_rng(0).standard_normal((2, 96, 3))
    y[:, 0] += 0.5
    values = Blocks(minus_euclidean, parts(x)).distances(Blocks(minus_euclidean, parts(y)))
    within = sum(euclidean(a, a).sum() / 96**2 for a in (x, y)) / 95  # what the V-statistic lacks
    assert values.mean() == pytest.approx(energy_distance(x, y) ** 2 - within, rel=1e-9)
    shifted = Blocks(cubic, parts(x)).distances(Blocks(cubic, parts(y)))
    assert shifted.mean() > 0


@pytest.mark.parametrize(("shift", "least"), [(0.0, 0.96), (0.3, 0.9), (1.0, 0.9)])
def test_intervals_hold_at_zero_and_away_from_it(shift, least):
    rng, held, estimates = np.random.default_rng(1), [], []
    for _ in range(150):
        x, y = torch.tensor(rng.standard_normal((3, 64, 1))).split([1, 2])
        distances = Distances(given(y.reshape(128, 1) + shift, 128, (1,)), None, 0.95)
        low, high = distances.interval(values := distances(x[0], [True] * 64))
        held.append(low <= energy_of_shift(shift) <= high)
        estimates.append(values.mean())
    assert np.mean(held) >= least
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(energy_of_shift(shift), abs=3 * error)


def test_blocks_of_other_sizes_and_none():
    x = np.random.default_rng(2).standard_normal((BLOCKS + 3, 2))
    assert np.isfinite(
        Blocks(cubic, parts(x)).distances(Blocks(cubic, parts(np.tile(x, (3, 1)))))
    ).all()
    assert mmd(x, x) < 0  # the package's own, unbiased too
    assert np.isnan(Blocks(cubic, parts(x[:1])).distances(Blocks(cubic, parts(x)))).any()


def test_differences_are_decided_value_by_value():
    common = np.random.default_rng(3).standard_normal(16)
    near = difference_decision(2 + common, 2.001 + common)
    far = difference_decision(2.5 + common, 2.0 + common)
    assert near.ratio < 1
    assert far.low > 1.0
    assert not far.tie
    with pytest.raises(ValueError, match="n >= 2"):
        difference_decision([1.0, np.nan], [1.0, 2.0])


# -- the comparison -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result():
    methods = ["ddim", "dpmpp2m_sde", EULER, "unipc2"]
    return compare(mixture_2d(DDPM), methods, [3, 8, 60], n=192, keep=3)


def test_noise_and_none_are_held_against_the_same_samples(result):
    rows = {(row.method, row.budget): row for row in result.rows}
    assert result.distribution.n == 2 * 192 == len(result.reference.x)
    assert result.distribution.low <= 0 <= result.distribution.high
    assert 2 * result.floor == result.distribution.high - result.distribution.low
    assert rows["noisy", 3].error_low > result.floor  # far off, and known to be
    assert rows["noisy", 3].error > 3 * rows["noisy", 60].error
    assert result.ranking(3)[-1].method == "noisy"
    assert rows["unipc2", 60].at_floor
    assert all(row.error_low <= row.error <= row.error_high for row in result.rows)
    assert all(row.error_median is None and row.failed == 0 for row in result.rows)
    assert {len(errors) for errors in result.errors} == {BLOCKS}
    assert {len(samples) for samples in result.samples} == {3}


def test_rows_are_distances_of_the_samples_that_sample_makes(result):
    whole = compare(mixture_2d(DDPM), ["dpmpp2m_sde"], [8], n=192, keep=192, batch=50)
    seeds = range(192)
    x = ddim_ode.noise((2,), DDPM, seeds)
    sol = ddim_ode.sample(mixture_2d(DDPM), x, "dpmpp2m_sde", nfe=8, seeds=seeds)
    torch.testing.assert_close(whole.samples[0], sol.x)
    same = next(row for row in result.rows if (row.method, row.budget) == ("dpmpp2m_sde", 8))
    assert whole.rows[0].error == pytest.approx(same.error, rel=1e-4)
    other = ddim_ode.noise((2,), DDPM, range(192, 576))
    exact = ddim_ode.sample(mixture_2d(DDPM), other, "unipc3", nfe=200)
    torch.testing.assert_close(whole.reference.x.float(), exact.x, atol=2e-2, rtol=0)


def test_everything_says_what_is_measured_and_where_the_floor_is(result, tmp_path):
    held = result.distribution
    for text in (result.table(), report.text(result, report.Context("m"))):
        assert "quared energy distance" in text
    assert "the two halves of the model's own samples are" in result.table()
    assert f"{result.floor:.2g}" in result.table()
    assert "model's own samples" in str(result.best(60))
    axis = result.plot().axes[0]
    assert "energy distance to the model's own samples" in axis.get_ylabel()
    assert any("two halves" in text.get_text() for text in axis.texts)
    context = report.Context("m", samples=draw_samples(result))
    page = report.write(tmp_path, result, context)[0].read_text()
    assert "RMS" not in re.sub('base64,[^"]*', "", page)
    assert f"{held.low:.2g} to {held.high:.2g}" in page
    result.to_json(tmp_path / "r.json")
    assert ddim_ode.Comparison.load(tmp_path / "r.json") == result


def test_the_models_own_samples_may_be_given():
    model = mixture_2d(COSINE)
    own = model.draw(500)
    r = compare(model, ["dpmpp2m_sde"], n=64, reference=own)
    assert (r.distribution.n, r.reference.net_evals) == (500, 0)
    kid = compare(model, ["dpmpp2m_sde"], n=64, reference=own, features=IDENTITY)
    assert kid.distribution.name == "squared kernel distance (KID) in identity"
    assert kid.rows[0].error != r.rows[0].error


def test_the_cache_keeps_both_metrics_apart(tmp_path):
    model, options = mixture_2d(COSINE), dict(n=32, cache=tmp_path, keep=32)
    first = compare(model, ["ddim"], **options)
    errors = compare(model, ["ddim"], metric="error", **options)
    again = compare(model, ["ddim"], **options)
    assert errors.rows[0].error > 0
    assert [row.error for row in again.rows] == [row.error for row in first.rows]
    assert again.rows[0].seconds == first.rows[0].seconds


def test_conditions_of_the_reference_are_those_of_the_rows():
    exact = mixture_2d(COSINE)
    options = dict(time=exact.time, dtype=torch.float64)
    model = ddim_ode.Denoiser(lambda x, t, k: exact.net(x, t) * k, COSINE, **options)
    k = torch.linspace(0.7, 1.0, 40, dtype=torch.float64)[:, None]
    r = compare(model, ["ddim"], shape=(2,), n=40, cond={"k": k})
    x = ddim_ode.noise((2,), COSINE, range(80, 84))
    sol = ddim_ode.sample(model, x, "unipc3", nfe=200, cond={"k": k[:4]})
    torch.testing.assert_close(r.reference.x[40:44].float(), sol.x, atol=2e-2, rtol=0)


def test_failed_samples_are_left_out_and_counted():
    exact = mixture_2d(COSINE)
    bad = ddim_ode.noise((2,), COSINE, [3]).double()

    def net(x, t):
        out = exact.net(x, t)
        return torch.where(torch.isclose(x.double(), bad).all(1, keepdim=True), torch.nan, out)

    model = ddim_ode.Denoiser(net, COSINE, time=exact.time)
    r = compare(model, ["ddim"], shape=(2,), n=64)
    assert (r.rows[0].failed, r.rows[0].n) == (1, 64)
    assert np.isfinite(r.errors[0]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(metric="error"), r"adds noise.*measure the noise.*metric='distribution'"),
        (dict(metric="kid"), "unknown metric 'kid'.*error, distribution|distribution, error"),
        (dict(n=20), "n=20 is too few.*n >= 32"),
        (dict(grid="best"), "grid='best' decides noise by noise"),
        (dict(features="inception"), "features must be Features"),
        (dict(metric="error", methods=["ddim"], features=IDENTITY), "metric='distribution' alone"),
        (dict(reference=torch.zeros(200, 3)), "reference has shape"),
        (dict(reference=torch.zeros(10, 2)), "10 samples of the model; give at least 64"),
        (dict(reference=torch.tensor(1.0)), "must be samples"),
    ],
)
def test_refusals(options, message):
    options = dict(methods=["ddpm"], n=64) | options
    with pytest.raises(ValueError, match=message):
        compare(mixture_2d(COSINE), **options)
