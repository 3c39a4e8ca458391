"""Which sampler errs less: on the typical noise, on the hard ones, and by more than chance."""

import numpy as np
import pytest

from ddim_ode.calibration.verdict import Verdict

BEFORE = np.exp(np.random.default_rng(0).standard_normal(32))
NOISE = np.random.default_rng(1).standard_normal(32)
NOISE = (NOISE - NOISE.mean()) / NOISE.std(ddof=1)


@pytest.mark.parametrize(
    ("standard_errors", "said"),
    [
        (0.5, (False, False, False)),
        (-0.5, (True, False, False)),
        (-1.5, (True, True, False)),
        (-3.0, (True, True, True)),
    ],
)
def test_a_gain_counts_from_so_many_standard_errors_on(standard_errors, said):
    after = BEFORE * np.exp(0.01 * (NOISE + standard_errors / 32**0.5))
    verdict = Verdict.of(BEFORE, after, 0.0)
    assert verdict.log_ratio == pytest.approx(0.01 * standard_errors / 32**0.5, rel=1e-9)
    if standard_errors < 0:  # nor may the hard noises lose by it
        assert verdict._replace(rms=1.01).is_less is False
        verdict = verdict._replace(mean=0.99, rms=0.99)
    assert (verdict.is_less, verdict.is_likely_less, verdict.is_clearly_less) == said
