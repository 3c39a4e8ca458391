"""Intervals cover as often as they say, and paired decisions decide."""

import numpy as np
import pytest

from ddim_ode.comparison.statistics import geometric_mean, mean_interval, paired_decision


def correlated(rng, n, spread=0.5):
    hard = rng.standard_normal(n)
    own = rng.standard_normal((2, n))
    return np.exp(spread * (0.9 * hard + np.sqrt(1 - 0.9**2) * own))


@pytest.mark.parametrize(("n", "least"), [(10, 0.90), (100, 0.92)])
def test_interval_covers_the_mean_as_often_as_it_says(n, least):
    rng = np.random.default_rng(0)
    inside = [
        low <= np.exp(0.5 * 0.4**2) <= high
        for low, high in (mean_interval(np.exp(0.4 * rng.standard_normal(n))) for _ in range(400))
    ]
    assert least <= np.mean(inside) <= 0.98


def test_interval_of_normal_data_is_as_long_as_students():
    from scipy.stats import t

    values = np.random.default_rng(0).standard_normal(12)
    low, high = mean_interval(values)
    expected = 2 * t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert (high - low) / expected == pytest.approx(1.0, abs=0.06)


def test_equal_methods_tie_at_the_nominal_rate_and_a_gap_of_20_percent_never():
    rng = np.random.default_rng(0)
    pairs = [correlated(rng, 256) for _ in range(200)]
    assert 0.91 <= np.mean([paired_decision(a, b).tie for a, b in pairs]) <= 0.98
    gaps = [paired_decision(1.2 * a, b) for a, b in pairs]
    assert not any(d.tie for d in gaps)
    assert all(d.low > 1 for d in gaps)


def test_pairs_are_decided_by_their_differences():
    a, b = correlated(np.random.default_rng(3), 64)
    paired, shuffled = paired_decision(a, b), paired_decision(a, np.roll(b, 1))
    assert np.log(shuffled.high / shuffled.low) > 2 * np.log(paired.high / paired.low)
    assert paired.ratio == pytest.approx(np.exp(np.mean(np.log(a / b))))
    assert paired.ratio == pytest.approx(geometric_mean(a) / geometric_mean(b))


def test_a_few_lost_noises_neither_hide_nor_make_a_gap():
    """As where a step ends in another mode: one noise in fifty errs a hundredfold, whatever the method."""
    rng = np.random.default_rng(0)
    found, means = [], []
    for _ in range(100):
        a, b = (e * (1 + 99 * (rng.random(256) < 0.02)) for e in correlated(rng, 256))
        found.append(paired_decision(1.4 * a, b))
        means.append(np.log(1.4 * a.mean() / b.mean()))
    gaps = [decision for decision in found if decision.ratio >= 1.2]
    assert len(gaps) > 90
    assert not any(decision.tie for decision in gaps)
    assert np.std([np.log(decision.ratio) for decision in found]) < np.std(means) / 4


def test_errors_of_zero_count_as_the_smallest_there_is():
    assert paired_decision([0.0, 2.0, 4.0, 6.0], [1.0, 1.0, 2.0, 3.0]).ratio == pytest.approx(
        8**0.25
    )
    assert paired_decision([0.0, 0.0], [1.0, 2.0]) == (0.0, 0.0, 0.0, False)
    assert geometric_mean([0.0, 1.0]) == 0.0
    assert np.isnan(geometric_mean([np.nan]))


def test_what_a_bootstrap_cannot_say():
    assert mean_interval([1.0]) == (None, None)
    assert mean_interval([1.0, np.nan, 2.0]) == mean_interval([1.0, 2.0])
    with pytest.raises(ValueError, match="n >= 2"):
        paired_decision([1.0, np.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="no pairs"):
        paired_decision([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        mean_interval([1.0, 2.0], confidence=95)
