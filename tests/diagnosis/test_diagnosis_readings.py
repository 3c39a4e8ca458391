"""The doctor on how a network is read: at which time, with which sign, as which prediction."""

import numpy as np
import pytest
import torch

import ddim_ode
from ddim_ode import schedules

MEANS = np.random.default_rng(0).choice([-0.8, 0.8], size=(6, 16))
VARIANCES = np.full((6, 16), 0.02)
FLOW, DDPM, COSINE = schedules.flow(), schedules.ddpm(), schedules.cosine()
VP, VE, EXPONENTIAL = schedules.vp(), schedules.ve(80.0), schedules.exponential()


def mixture(schedule, prediction):
    return ddim_ode.exact.gaussian_mixture(
        np.full(6, 1 / 6), MEANS, VARIANCES, schedule, prediction
    )


def wanting(schedule, prediction, clock, sign=1.0):
    """An exact network that is to be told ``clock(t, s)``, read as one that is told t."""
    exact = mixture(schedule, prediction)
    t = schedule.T * np.linspace(1e-3, 1 - 1e-6, 4001)
    s = schedule.sigma(t)
    order = np.argsort(clock(t, s))
    times, logs = clock(t, s)[order], np.log(s)[order]

    def net(x, told):
        sigma = np.exp(np.interp(told.double().numpy(), times, logs))
        return sign * exact.net(x.double(), torch.tensor(sigma)).to(x.dtype)

    return ddim_ode.Denoiser(net, schedule, prediction, shape=(16,)), exact.draw(16).float()


# Found in data and in the model's own samples, in turn.
FAULTS = [
    (FLOW, "flow", "1 - t", 1.0),
    (FLOW, "flow", "1 - t", -1.0),
    (FLOW, "flow", "1000 * t", 1.0),
    (FLOW, "flow", "1000 * (1 - t)", 1.0),
    (DDPM, "eps", "1000 - t", 1.0),
    (DDPM, "eps", "t / 1000", 1.0),
    (DDPM, "score", "np.log(s)", 1.0),
    *2 * [(COSINE, "eps", "np.log(s) / 4", -1.0)],
    *2 * [(VP, "eps", "1000 * t", 1.0)],
    (VE, "eps", "np.log(s) / 4", 1.0),
    (VE, "eps", "100 * t", 1.0),
    (EXPONENTIAL, "eps", "1000 * (t / 1000) ** 2", 1.0),
    (EXPONENTIAL, "eps", "s", 1.0),
]


@pytest.mark.parametrize(("i", "fault"), [*enumerate(FAULTS)])
def test_the_clock_and_the_sign_are_named_as_code(i, fault):
    schedule, prediction, code, sign = fault
    clock = eval(f"lambda t, s: {code}", {"np": np})
    model, data = wanting(schedule, prediction, clock, sign)
    time, *others = ddim_ode.diagnose(model, data=data if i % 2 else None)
    assert (time.check, time.fix) == ("network-time", f"time=lambda t, s: {code}")
    assert [finding.check for finding in others] == (["sign"] if sign < 0 else [])
    if sign < 0:
        assert others[0].fix == "net=lambda x, t, **cond: -net(x, t, **cond)"


# Of a flow, ε and score cannot start at σ(T) = inf, and are told so.
READ = [
    (schedule, prediction)
    for schedule in (DDPM, COSINE, EXPONENTIAL, VP, VE, FLOW)
    for prediction in ("eps", "x0", "v", "score", "flow")
    if schedule is not FLOW or prediction in ("x0", "v", "flow")
]


@pytest.mark.parametrize(("i", "case"), [*enumerate(READ)])
def test_an_exact_network_is_read_rightly(i, case):
    model = mixture(*case)
    assert list(ddim_ode.diagnose(model, data=model.draw(16).float() if i % 2 else None)) == []


def exact(means, variances, schedule, prediction, weights=None):
    means, variances = np.array(means, float), np.broadcast_to(variances, np.shape(means))
    weights = np.full(len(means), 1 / len(means)) if weights is None else weights
    return ddim_ode.exact.gaussian_mixture(weights, means, variances, schedule, prediction)


def little(std):
    """Of one Gaussian, which a network can do little for."""
    return np.full((1, 48), 0.1 * std), std**2 * np.linspace(0.2, 1.8, 48)


def signs(scale):
    """As large as pixels are."""
    means = scale * np.array([[1.0, -1.0] * 8, [-1.0, -1.0] * 8, [1.0] * 16])
    return means, 0.02 * scale**2


@pytest.mark.parametrize(
    ("data", "schedule", "predictions"),
    [
        *((little(std), DDPM, ("eps", "v")) for std in (0.1, 2.0)),
        *((little(std), COSINE, ("x0",)) for std in (0.1, 2.0)),
        (little(1.0), COSINE, ("eps", "v")),
        (little(1.0), DDPM, ("x0",)),
        *((signs(scale), schedules.ve(10 * scale), ("eps",)) for scale in (0.5, 100.0)),
        # all of one kind: the best network answers with the one sample that there is, almost
        ((np.linspace(-1, 1, 16)[None], 1e-10), COSINE, ("x0",)),
    ],
)
def test_a_network_is_not_blamed_for_its_data(data, schedule, predictions):
    for prediction in predictions:
        model = exact(*data, schedule, prediction)
        for options in (dict(shape=data[0].shape[1:]), dict(data=model.draw(64).float(), n=64)):
            checks = {finding.check for finding in ddim_ode.diagnose(model, **options)}
            assert "untrained" not in checks
            assert not checks or np.max(data[1]) < 1e-9


@pytest.mark.parametrize(
    ("n", "size", "schedule", "prediction"),
    [
        *((1, 1, DDPM, "eps"), (1, 8, VP, "v"), (2, 1, COSINE, "x0"), (2, 1, VP, "v")),
        *((2, 8, DDPM, "eps"), (3, 2, COSINE, "x0"), (5, 1, DDPM, "eps"), (5, 1, VP, "v")),
    ],
)
def test_a_handful_of_samples_blames_no_exact_network(n, size, schedule, prediction):
    """Two samples are fitted by a·x + c, whatever they are."""
    model = exact([[-1.0] * size, [1.0] * size], 0.1, schedule, prediction)
    assert list(ddim_ode.diagnose(model, n=n, steps=20)) == []
    if n > 1:
        report = ddim_ode.diagnose(model, data=model.draw(n).float(), n=n, steps=20)
        assert list(report) == []
        assert f"{n} samples are too few" in report.not_checked["untrained"]


def test_random_mixtures_are_healthy():
    """Data of few numbers among them, which are repeated to have enough."""
    rng = np.random.default_rng(5)
    cases = [
        (DDPM, "eps"),
        (COSINE, "x0"),
        (VP, "v"),
        (VE, "flow"),
        (FLOW, "v"),
        (EXPONENTIAL, "x0"),
    ]
    for i, (schedule, prediction) in enumerate(cases):
        k, size = rng.integers(1, 6), rng.choice([1, 2, 4, 8, 16])
        weights = rng.dirichlet(np.full(k, 2.0))
        means, variances = rng.normal(size=(k, size)), rng.uniform(0.02, 0.5, (k, size))
        model = exact(means, variances, schedule, prediction, weights / weights.sum())
        assert list(ddim_ode.diagnose(model)) == []
        assert list(ddim_ode.diagnose(model, data=model.draw(16, seed=i).float())) == []


PLANE = [[4.0, 5.0], [6.0, 5.0]]


@pytest.mark.parametrize(
    ("means", "variance", "schedule", "prediction"),
    [
        ([[-1.0], [1.0]], 0.05, VP, "v"),
        (PLANE, 0.2, COSINE, "x0"),
        (PLANE, 0.2, FLOW, "v"),
        ([[-10.0, 10.0], [10.0, 10.0]], 4.0, schedules.cosine(100), "score"),
        ([[0.2], [0.8]], 1e-4, schedules.ve(1348.0), "eps"),
        ([[0.2], [0.8]], 1e-4, schedules.ve(380.0), "eps"),
    ],
)
def test_samples_of_few_numbers_are_no_ground_for_blame(means, variance, schedule, prediction):
    model = exact(means, variance, schedule, prediction)
    report = ddim_ode.diagnose(model)
    assert list(report) == []
    assert "give data" in report.not_checked["network-time"]
    assert list(ddim_ode.diagnose(model, data=model.draw(64).float())) == []


@pytest.mark.parametrize("seen", ["data", "its own samples"])
@pytest.mark.parametrize(("schedule", "prediction", "t"), [(DDPM, "eps", 500), (FLOW, "flow", 0.5)])
def test_a_network_that_does_not_look_at_t(schedule, prediction, t, seen):
    exact = mixture(schedule, prediction)
    level = float(schedule.sigma(t))
    net = lambda x, told: exact.net(x, torch.full((len(x),), level))  # noqa: E731
    model = ddim_ode.Denoiser(net, schedule, prediction, shape=(16,))
    data = dict(data=exact.draw(16).float()) if seen == "data" else {}
    (finding,) = ddim_ode.diagnose(model, **data)
    assert finding.check == "network-time"
    assert "does not look at t" in finding.message
