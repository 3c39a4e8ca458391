"""The curve that a fingerprint is of, in decimal arithmetic, is the schedule's."""

import numpy as np
import pytest
from problems import SCHEDULES, zero_snr

from ddim_ode import schedules
from ddim_ode._base.fingerprints import sigmas

MORE = {
    "zero terminal SNR": zero_snr(),
    "cosine, clipped early": schedules.cosine(10, s=0.5, max_beta=0.3),
    "cosine, two steps": schedules.cosine(2),
    "a fractional end": schedules.exponential(rate=3.3, T=77.7),
}


@pytest.mark.parametrize("name", [*SCHEDULES, *MORE])
def test_the_curve_in_decimal_arithmetic_is_the_schedule_s(name):
    schedule = (SCHEDULES | MORE)[name]
    n = int(schedule.T) if schedule.discrete else 64
    found = sigmas(schedule.name, schedule.T, n, schedule.params)
    expected = schedule.sigma(schedule.T * np.arange(1, n + 1) / n)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_the_curve_is_correctly_rounded():
    assert sigmas("exponential", 1.0, 1, dict(rate=1.0)) == [2.5276582243117147]  # √(e² − 1)
    assert sigmas("ddpm", 2, 2, dict(beta_start=0.5, beta_end=0.5)) == [1.0, 3**0.5]
