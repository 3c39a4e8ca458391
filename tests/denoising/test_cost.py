"""What a long run costs is said before it starts, and is what it then makes."""

import re
import types

import pytest
import torch
from problems import COSINE, Counting, mixture_1d

import ddim_ode
from ddim_ode.comparison import comparison
from ddim_ode.denoising import cost
from ddim_ode.solve import reference


@pytest.fixture
def slow(monkeypatch):
    """A mixture whose calls take 10 ms by the clock of the measurement, whatever the batch."""
    now, exact = [0.0], mixture_1d(COSINE)

    def net(x, t):
        now[0] += 0.01
        return exact.net(x, t)

    monkeypatch.setattr(cost, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    counting = Counting(net)
    options = dict(time=exact.time, dtype=torch.float64, shape=(1,))
    return counting, ddim_ode.Denoiser(counting, COSINE, **options)


def test_the_cost_of_a_comparison_is_said_before_it_starts(slow, monkeypatch, capsys):
    monkeypatch.setattr(reference, "STEPS", (6, 8, 11))
    monkeypatch.setattr(comparison, "STEPS", (6, 8, 11))
    net, model = slow
    made = []
    monkeypatch.setattr(comparison, "_run", lambda *args: made.append(capsys.readouterr().err))
    ddim_ode.compare(model, ["ddim", "heun"], nfe=[4, 7], n=10, batch=5)
    (said,) = made
    # 6 and 8 steps at least, 11 more at most; 4 + 7 calls of ddim, 3 + 7 of heun; 10 ms for five
    assert said == (
        "compare: 10 noises × 14 to 25 calls for the reference, 210 for 4 rows, at 2 ms each: "
        "700 ms to 920 ms in the network (fewer noises or a coarser reference cost less)\n"
    )
    assert net.calls <= cost._TRIES
    ddim_ode.compare(model, ["ddim"], nfe=4, n=10, progress=False)
    assert capsys.readouterr().err == ""


def test_it_is_what_is_made(slow, monkeypatch, capsys):
    """Calls announced, and calls counted."""
    monkeypatch.setattr(reference, "STEPS", (6, 8, 11))
    monkeypatch.setattr(comparison, "STEPS", (6, 8, 11))
    _, model = slow
    r = ddim_ode.compare(model, ["ddim", "heun"], nfe=[4, 7], n=12, grid=["time", "best"])
    said = capsys.readouterr().err
    least, most, rows = (
        int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:to|calls|for 8)", said)
    )
    assert rows == r.net_evals
    assert 12 * least <= r.reference_net_evals <= 12 * most
    known = torch.zeros(4, 1, dtype=torch.float64)
    ddim_ode.compare(model, ["ddim"], nfe=[5], n=4, reference=known)
    assert "compare: 20 for 1 rows" in capsys.readouterr().err


def test_a_coarser_reference_costs_less():
    for goal, refined in ((1e-1, 2), (1e-30, 6)):
        r = ddim_ode.compare(
            mixture_1d(COSINE), ["ddim"], nfe=5, n=1, reference=goal, progress=False
        )
        plans = reference.plans(mixture_1d(COSINE))[:refined]
        assert r.reference_net_evals == sum(plan.nfe for plan in plans)


def test_the_cost_of_a_calibration_is_an_upper_bound(slow, capsys):
    net, model = slow
    plans = ddim_ode.calibrate(model, [3, 4], n=16, batch=8)
    said = capsys.readouterr().err
    assert "calibrate: 16 noises × at most 222 network calls, at 1.2 ms each: 4.4 s in" in said
    assert sum(plan.fit["net_evals"] for plan in plans.values()) <= 16 * 222
    assert net.rows <= 16 * 222 + 3 * 8


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0 ms"),
        (4.2e-5, "0.042 ms"),
        (0.7, "700 ms"),
        (9.96, "10 s"),
        (119, "119 s"),
        (125, "2.1 min"),
        (7_200, "2 h"),
        (1e6, "12 days"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert cost.duration(seconds) == said
