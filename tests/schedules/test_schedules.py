import pickle
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from problems import DDPM, SCHEDULES, zero_snr
from refusals import expect

from ddim_ode import grids, schedules

PI = Decimal("3.14159265358979323846264338327950288419716939937510")


def decimal_cos(x):
    term = total = Decimal(1)
    for k in range(1, 40):
        term *= -x * x / ((2 * k - 1) * (2 * k))
        total += term
    return total


def decimal_sigma(alpha_squared):
    return (1 / alpha_squared - 1).sqrt()


def ddpm_reference(t, T, start, end):
    """Π (1 − β_i), the last factor to the fractional power t − ⌊t⌋."""
    whole, product = int(t), Decimal(1)
    for i in range(1, T + 1):
        factor = 1 - (start + (end - start) * (i - 1) / (T - 1))
        if i <= whole:
            product *= factor
        elif i == whole + 1:
            product *= factor ** (t - whole)
    return decimal_sigma(product)


def cosine_reference(t, T):
    s, angle = Decimal("0.008"), lambda t: PI / 2 * (t / T + s) / (1 + s)
    last = Decimal(T - 1)
    root = decimal_cos(angle(min(t, last))) / decimal_cos(angle(Decimal(0)))
    squared = root * root
    if t > last:
        squared *= (1 - Decimal("0.999")) ** (t - last)
    return decimal_sigma(squared)


REFERENCES = {
    "ddpm": (schedules.ddpm(), lambda t: ddpm_reference(t, 1000, Decimal("1e-4"), Decimal("0.02"))),
    "exponential": (
        schedules.exponential(),
        lambda t: decimal_sigma((-10 * (t / 1000) ** 2).exp()),
    ),
    "cosine": (schedules.cosine(), lambda t: cosine_reference(t, 1000)),
    "cosine_4000": (schedules.cosine(T=4000), lambda t: cosine_reference(t, 4000)),
    "vp": (
        schedules.vp(),
        lambda t: decimal_sigma((-Decimal("9.95") * t * t - Decimal("0.1") * t).exp()),
    ),
    "flow": (schedules.flow(), lambda t: t / (1 - t)),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("fraction", [2**-40, 2**-14, 1e-3, 0.5, 0.998, 1 - 2**-12, 1.0])
def test_sigma_has_twelve_digits_at_both_ends(name, fraction):
    schedule, reference = REFERENCES[name]
    t = fraction * schedule.T
    if name == "flow" and t == 1:
        assert schedule.sigma(t) == np.inf
        return
    with localcontext() as context:
        context.prec = 45
        assert float(schedule.sigma(t)) == pytest.approx(float(reference(Decimal(t))), rel=1e-12)


@pytest.mark.parametrize("name", [*SCHEDULES, "zero_snr"])
@given(fraction=st.floats(1e-9, 1.0))
@example(1.0)
@example(0.995)
def test_time_inverts_sigma(name, fraction):
    schedule = zero_snr() if name == "zero_snr" else SCHEDULES[name]
    t = fraction * schedule.T
    assert schedule.time(schedule.sigma(t)) == pytest.approx(t, rel=1e-12)
    assert schedule.time(schedule.sigma_max) == pytest.approx(schedule.T, rel=1e-15)


@pytest.mark.parametrize("name", SCHEDULES)
def test_sigma_rises_from_0_and_is_beta_over_alpha(name):
    schedule = SCHEDULES[name]
    t = np.linspace(0, 0.999, 500) * schedule.T
    sigma, alpha, beta = schedule.sigma(t), schedule.alpha_bar(t), schedule.beta_bar(t)
    assert np.all(np.diff(sigma) > 0)
    np.testing.assert_allclose(sigma * alpha, beta, rtol=1e-14, atol=0)
    assert [sigma[0], beta[0], alpha[0], schedule.time(0.0)] == [0, 0, 1, 0]
    assert not np.signbit([sigma[0], beta[0]]).any()


@pytest.mark.parametrize("name", ["ddpm", "exponential", "cosine", "vp"])
def test_variance_is_preserved(name):
    schedule = SCHEDULES[name]
    t = np.linspace(0, schedule.T, 333)
    np.testing.assert_allclose(
        schedule.alpha_bar(t) ** 2 + schedule.beta_bar(t) ** 2, 1, rtol=1e-14
    )


def test_the_exponential_form_is_ddpm_with_beta_start_2e_5_to_one_percent():
    t = np.arange(1.0, 1001.0)
    alpha = schedules.ddpm(beta_start=2e-5).alpha_bar(np.arange(1001.0))
    np.testing.assert_allclose(alpha[1:] / alpha[:-1], np.sqrt(1 - 0.02 * t / 1000), rtol=1e-12)
    # −x(1 + x/2/(1−x)) <= ln(1−x) <= −x with x <= 0.02, summed
    triangular = -0.005 * t * (t + 1) / 1000
    ratio = np.log(alpha[1:]) / triangular
    assert np.all((ratio >= 1) & (ratio <= 1 + 0.01 / 0.98))
    continuous = np.log(schedules.exponential().alpha_bar(t))
    np.testing.assert_allclose(triangular, continuous * (1 + 1 / t), rtol=1e-10)


@pytest.mark.parametrize("beta_start", ["2e-5", "1e-4"])
def test_docstring_states_the_measured_distance_to_ddpm(beta_start):
    t = np.arange(1, 1001)
    discrete = schedules.ddpm(beta_start=float(beta_start)).alpha_bar(t)
    distance = np.abs(schedules.exponential().alpha_bar(t) - discrete).max()
    stated = schedules.exponential.__doc__
    assert f"{distance:.4f}" in stated
    assert stated.index(f"{distance:.4f}") < stated.index(f"beta_start={beta_start}")


@pytest.mark.parametrize(("T", "max_beta"), [(1000, 0.999), (4000, 0.999), (50, 0.999), (100, 0.2)])
def test_cosine_is_the_discrete_schedule_of_its_paper(T, max_beta):
    f = np.cos(0.5 * np.pi * (np.arange(T + 1.0) / T + 0.008) / 1.008) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], max_beta)
    squares = schedules.cosine(T, max_beta=max_beta).alpha_bar(np.arange(1, T + 1)) ** 2
    np.testing.assert_allclose(squares, np.cumprod(1 - betas), rtol=2e-11)


def test_from_alphas_cumprod_goes_through_the_array_and_geometrically_between():
    squares = np.cumprod(1 - np.linspace(1e-3, 0.2, 40))
    schedule, whole = schedules.from_alphas_cumprod(squares), np.arange(1, 41)
    np.testing.assert_allclose(schedule.alpha_bar(whole) ** 2, squares, rtol=1e-14)
    assert schedule.alpha_bar(7.5) == pytest.approx((squares[6] * squares[7]) ** 0.25, rel=1e-14)
    assert np.array_equal(schedule.levels, schedule.sigma(whole))
    assert schedule.levels[-1] == schedule.sigma_max


def test_zero_terminal_snr_ends_at_infinite_sigma():
    schedule, h = zero_snr(), 1e-4
    assert (schedule.sigma_max, schedule.alpha_bar(100), schedule.beta_bar(100)) == (np.inf, 0, 1)
    difference = (schedule.alpha_bar(99.5 + h) - schedule.alpha_bar(99.5 - h)) / (2 * h)
    assert float(schedule.rates(99.5)[0]) == pytest.approx(float(difference), rel=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("fraction", [0.01, 0.31, 0.77, 0.97])
def test_rates_are_the_derivatives_of_alpha_bar_and_beta_bar(name, fraction):
    schedule = SCHEDULES[name]
    t, h = fraction * schedule.T, 1e-5 * schedule.T
    t = np.floor(t) + 0.37 if schedule.discrete else t  # between two knots
    for rate, of in zip(schedule.rates(t), (schedule.alpha_bar, schedule.beta_bar)):
        difference = float(of(t + h) - of(t - h)) / (2 * h)
        assert float(rate) == pytest.approx(difference, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", ["ddpm", "cumprod"])
def test_rates_at_a_kink_are_those_from_the_left(name):
    schedule, t, h = SCHEDULES[name], 17.0, 1e-3
    for rate, of in zip(schedule.rates(t), (schedule.alpha_bar, schedule.beta_bar)):
        left = float(3 * of(t) - 4 * of(t - h) + of(t - 2 * h)) / (2 * h)
        assert float(rate) == pytest.approx(left, rel=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_rate_and_scale_rates_are_derivatives_in_sigma(name):
    schedule = SCHEDULES[name]
    sigma = float(schedule.sigma(0.30037 * schedule.T))
    h = 1e-6 * sigma
    across = lambda of: float(of(sigma + h) - of(sigma - h)) / (2 * h)  # noqa: E731
    assert float(schedule.time_rate(sigma)) == pytest.approx(across(schedule.time), rel=1e-6)
    for i in (0, 1):
        expected = across(lambda s, i=i: schedule.scales(s)[i])
        assert float(schedule.scale_rates(sigma)[i]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_default_cut_is_t_1_or_a_thousandth_of_T_and_that_of_ve_its_own(name):
    schedule = SCHEDULES[name]
    told = 0.002 if name == "ve" else 1e-3 * schedule.T
    cut = schedule.time(schedule.sigma_min)
    assert cut == pytest.approx(1.0 if schedule.discrete else told, rel=1e-12)
    for top in (1.0, 1348.0):
        assert (schedules.ve(top).sigma_min, schedules.ve(top, 0.01).sigma_min) == (0.002, 0.01)


def test_fingerprint_follows_the_curve_at_each_level_and_not_the_constructor():
    squares = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    other = squares.copy()
    other[5] = (squares[4] + squares[6]) / 2
    same, another = (schedules.from_alphas_cumprod(a).fingerprint for a in (squares, other))
    assert same == schedules.ddpm().fingerprint != another
    assert schedules.ddpm(beta_start=2e-5).fingerprint != same
    # as saved plans have them
    assert same == "a5ac3c293a575adc"
    assert schedules.exponential().fingerprint == "28767b25152e2cb6"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DDPM.sigma(1000.5), r"t=1000.5 is outside .*\[0, 1000\]"),
        (lambda: DDPM.sigma([1.0, -2.0]), r"t=-2 is outside"),
        (lambda: DDPM.alpha_bar(np.nan), r"t=nan is outside"),
        (lambda: schedules.ve(80.0).time(81.0), r"sigma=81 is outside .*\[0, 80\]"),
        (lambda: schedules.ddpm(T=1), r"T=1 must be a whole number >= 2"),
        (lambda: schedules.ddpm(beta_start=0.03), "beta_start=0.03, beta_end=0.02: need"),
        (lambda: schedules.vp(beta_min=0.0), "beta_min=0.0, beta_max=20.0: need"),
        (lambda: schedules.ve(np.inf), "sigma_max=inf must be positive and finite"),
        (lambda: schedules.ve(80.0, 0.0), "sigma_min=0.0 must be positive and finite"),
        (lambda: schedules.ve(0.001), "sigma_min=0.002 must lie below sigma_max=0.001"),
        (lambda: schedules.exponential(rate=-1), "rate=-1 must be positive"),
        (lambda: schedules.cosine(max_beta=1.0), "max_beta=1.0: need 0 < max_beta < 1"),
        (lambda: schedules.flow().levels, "T=1 and so no integer levels.*snap=False"),
        (lambda: schedules.from_alphas_cumprod([0.9]), "1-D with at least 2 entries"),
        (lambda: schedules.from_alphas_cumprod([0.9, 0.95]), r"alphas_cumprod\[1\]=0.95 .*below"),
        (lambda: schedules.from_alphas_cumprod([0.9, 0.0, 0.0]), r"\[1\]=0 .*only the last"),
        (lambda: schedules.from_alphas_cumprod([1.0, 0.5]), r"alphas_cumprod\[0\]=1 must lie in"),
    ],
)
def test_errors_name_the_value_and_the_range(call, message):
    expect(call, message)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_pickled_schedule_is_the_same_schedule(name):
    schedule, t = SCHEDULES[name], np.linspace(0.1, 1.0, 7) * SCHEDULES[name].T
    again = pickle.loads(pickle.dumps(schedule))
    np.testing.assert_array_equal(again.sigma(t), schedule.sigma(t))
    np.testing.assert_array_equal(again.knots, schedule.knots)
    assert (again.fingerprint, repr(again)) == (schedule.fingerprint, repr(schedule))


@pytest.mark.parametrize("name", ["ddpm", "exponential", "cosine", "vp"])
def test_a_float32_copy_of_the_last_level_is_the_last_level(name):
    schedule = SCHEDULES[name]
    above = np.nextafter(np.float32(schedule.sigma_max), np.float32(np.inf))
    assert above > schedule.sigma_max
    assert schedule.time(above) == schedule.time(schedule.sigma_max)
    assert grids.check_grid([above, 1.0, 0.0], schedule)[0] == schedule.sigma_max
    expect(lambda: schedule.time(1.0001 * schedule.sigma_max), "outside")


@pytest.mark.parametrize("betas", [(1e-4, 0.02), (0.00085, 0.012), (2e-5, 0.02), (1e-3, 0.03)])
@pytest.mark.parametrize("T", [100, 1000, 4000])
def test_an_end_out_of_a_float32_product_is_the_end(betas, T):
    """Other libraries keep ᾱ² as a product in float32, and so σ(T) = √((1 − ᾱ²)/ᾱ²) to five digits."""
    schedule = schedules.ddpm(T, *betas)
    product = np.cumprod(1 - np.linspace(*betas, T, dtype=np.float32), dtype=np.float32)
    theirs = np.sqrt((1 - product) / product)[-1]
    assert theirs.dtype == np.float32
    grid = grids.check_grid([theirs, 0.1, 0.0], schedule)
    assert grid[0] == pytest.approx(schedule.sigma_max, rel=3e-5)
    assert grid[0] <= schedule.sigma_max


@pytest.mark.parametrize("name", SCHEDULES)
def test_of_one_number_comes_a_number_that_multiplies_tensors(name):
    schedule = SCHEDULES[name]
    t = 0.5 * schedule.T
    sigma = schedule.sigma(t)
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    for value in (
        *(sigma, schedule.alpha_bar(t), schedule.beta_bar(t), schedule.time(sigma)),
        *(*schedule.scales(sigma), *schedule.rates(t), schedule.time_rate(sigma)),
        *schedule.scale_rates(sigma),
    ):
        assert type(value) is np.float64
        for product in (x * value, value * x):
            assert product.dtype == torch.float32
            torch.testing.assert_close(product, x * float(value))
    for times in (torch.tensor(t, dtype=torch.float64), np.array(t), np.float32(t)):
        assert type(schedule.beta_bar(times)) is np.float64
    assert schedule.beta_bar([t]).shape == schedule.scales([sigma])[0].shape == (1,)
