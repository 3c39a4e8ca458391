"""Metrics of a run on disk: as of all samples at once, in bounded memory, whatever the shards."""

import warnings

import numpy as np
import pytest
import torch
from small_runs import reference, some_failing

from ddim_ode.cli.models import load_model
from ddim_ode.evaluate.features import IDENTITY, Features, content_sha256
from ddim_ode.evaluate.metrics import measure
from ddim_ode.evaluate.statistics import FeatureStatistics
from ddim_ode.evaluate.streaming import Kept, Moments, summarise
from ddim_ode.generation.generation import generate
from ddim_ode.generation.shards import Shards


def test_a_distance_that_is_mostly_bias_is_warned_of(tmp_path):
    powers = Features(
        "powers", content_sha256({}, "powers"), lambda x: torch.cat([x, x**2, x**3], 1)
    )
    real = FeatureStatistics.of(np.random.default_rng(1).standard_normal((50, 2)), powers)
    shards = some_failing(tmp_path, n=6)
    with pytest.warns(
        UserWarning, match="Fréchet distance of 6 samples in 6 features is mostly bias"
    ):
        summarise(shards, powers, real)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summarise(shards, powers, real, metrics=["energy_distance"])


@pytest.mark.parametrize("shard", [1, 7, 60])
def test_streamed_metrics_are_those_of_all_at_once(tmp_path, shard):
    failing = [0, 13, 14, 15, 16, 17, 18, 19, 20, 59]  # a whole shard of 7 among them
    shards = some_failing(tmp_path, shard=shard, failing=failing)
    good = torch.tensor([i not in failing for i in range(60)])
    x = torch.cat([s.x for s in shards])
    found = summarise(shards, IDENTITY, reference(), keep=60, seed=3)
    whole = measure(x[good], reference(), IDENTITY, seed=3)
    for name, value in whole.items():
        if name != "n":
            assert found.row[name] == (pytest.approx(value) if isinstance(value, float) else value)
    assert (found.row["n"], found.row["failed"], found.row["rows"]) == (60, 10, 50)
    assert found.status == dict(success=50, non_finite=10)
    assert found.row["mean"] == pytest.approx(float(x[good].double().mean()))
    assert found.row["std"] == pytest.approx(float(x[good].double().std()))


@pytest.mark.parametrize(
    ("options", "failed"),
    [
        (dict(method="rk45", nfe=15), 0),  # all are brought to the end, and judged
        (dict(method="rk45", max_nfe=15), 5),  # all stop on the way
        (dict(method="scipy:RK45", nfe=15, batch=1), 5),
    ],
)
def test_samples_that_arrive_are_judged(tmp_path, options, failed):
    model = load_model("mixture").denoiser
    shards = generate(model, 5, tmp_path, **options).shards
    found = summarise(shards)
    assert found.status == dict(max_nfe=5)
    assert found.row["failed"] == failed


def test_which_rows_are_kept_does_not_depend_on_the_shards(tmp_path):
    rows = [
        summarise(
            some_failing(tmp_path / str(s), 80, s), IDENTITY, reference(), keep=30, seed=3
        ).row
        for s in (5, 80)
    ]
    other = summarise(Shards.open(tmp_path / "5"), IDENTITY, reference(), keep=30, seed=4).row
    for name in ("kernel_distance", "energy_distance", "frechet_distance"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-4), name
    assert other["energy_distance"] != pytest.approx(rows[0]["energy_distance"], rel=1e-4)
    assert other["frechet_distance"] == pytest.approx(rows[0]["frechet_distance"])
    assert rows[0]["rows"] == 30


def test_memory_is_bounded_by_what_is_kept():
    kept, rng, most = Kept(10), np.random.default_rng(0), 0
    keys = rng.random((300, 50))
    for i, k in enumerate(keys):
        kept.add(np.full((50, 1), i), k)
        most = max(most, kept._held)
    assert most < 5000
    smallest = np.sort(np.argsort(keys.ravel())[:10])
    assert kept.rows.ravel().tolist() == (smallest // 50).tolist()


def test_moments_survive_a_large_mean():
    """The textbook E x² − (E x)² has no digit left here."""
    rows = 1e8 + np.random.default_rng(0).standard_normal((1000, 3))
    found = Moments()
    for part in np.array_split(rows, 13):
        found.add(part)
    np.testing.assert_allclose(found.cov, np.cov(rows, rowvar=False), atol=1e-6)
    with pytest.raises(ValueError, match="0 good samples have no covariance"):
        _ = Moments().cov


def test_features_unlike_the_reference_s_are_refused(tmp_path):
    other = Features("sum", content_sha256({}, "sum"), lambda x: x.sum(1, keepdim=True))
    shards = some_failing(tmp_path, n=4)
    with pytest.raises(ValueError, match="distances across the two mean nothing"):
        summarise(shards, other, reference())
    with pytest.raises(ValueError, match="features and reference belong together"):
        summarise(shards, other)
