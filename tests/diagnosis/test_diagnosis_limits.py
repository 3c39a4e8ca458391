"""The doctor on limits on x̂₀: which networks rely on one, which data one cuts, what one must not hide."""

import json

import pytest
import torch
from mixture_net import MixtureNet
from peers import load as peer
from peers import quiet
from test_diagnosis import FAULTS, SEEN, bare, data, diagnosis, found, small, with_scheduler
from tiny_pipelines import images, save, trained

import ddim_ode
from ddim_ode import schedules
from ddim_ode.cli import main
from ddim_ode.denoising.guidance import Limit
from ddim_ode.diagnosis import limits
from ddim_ode.diagnosis.probe import Probe
from ddim_ode.interop.diffusers import load

LIMITS = [dict(clip=1.2), dict(threshold=0.995), dict(threshold=(0.9, 1.5))]


def pictures(seen):
    if seen == "data":
        return dict(data=images(16, torch.Generator().manual_seed(1)), n=16)
    return dict(shape=(1, 8, 8))


def needy(betas="linear", **options):
    """A network of 200 steps whose ends, without a limit, are far outside of [−1, 1]."""
    net, scheduler = trained(betas, "epsilon")
    return load(net, scheduler, **options)


# -- a network that relies on a limit ---------------------------------------------------------
@SEEN
def test_a_network_that_relies_on_a_limit_and_has_none(seen):
    (finding,) = diagnosis(needy(), **pictures(seen))
    assert (finding.check, finding.severity) == ("clipping", "error")
    assert "relies on a limit on x̂₀, and there is none" in finding.message
    assert finding.fix.startswith("clip=1")
    if seen == "data":  # the share of what it makes that is out of range
        x, schedule = ddim_ode.noise((1, 8, 8), schedules.ddpm(), range(16)), needy().schedule
        top = float(schedule.sigma(990.0))
        made = ddim_ode.sample(needy(), x, steps=15, grid="quadratic", sigma_max=top).x
        share = (made.abs() > 1.5 * pictures(seen)["data"].abs().max()).float().mean()
        assert finding.evidence == pytest.approx(float(share), abs=0.01)
        assert share > 0.5


@pytest.mark.parametrize(
    ("limit", "seen"),
    [
        (dict(clip=1.0), "its own samples"),
        (dict(threshold=0.995), "its own samples"),
        (dict(threshold=(0.995, 1.0)), "data"),
    ],
)
def test_what_a_network_relies_on_is_not_advised_against(limit, seen):
    assert diagnosis(needy(**limit), **pictures(seen)) == []


def test_a_configured_limit_that_is_switched_off_is_missed():
    net, scheduler = trained("linear", "epsilon")
    clipping = type(scheduler).from_config(scheduler.config, clip_sample=True)
    assert diagnosis(load(net, clipping), **pictures("data")) == []
    assert "clipping" in found(load(net, clipping, clip=None), **pictures("data"))


def test_a_bound_within_the_data_of_a_network_that_relies_on_one():
    (finding,) = diagnosis(needy(clip=0.5), **pictures("data"))
    assert (finding.check, finding.fix) == ("clipping", "clip=1")  # another one, not none


# -- one that does not ------------------------------------------------------------------------
@pytest.mark.parametrize("prediction", [0, 1, 2])
@pytest.mark.parametrize("limit", [0, 1, 2])
def test_a_limit_that_does_no_harm_is_nothing(prediction, limit):
    model = bare(("eps", "x0", "v")[prediction])
    model.limit = Limit(**LIMITS[limit])
    report = diagnosis(model, **small("data" if (prediction + limit) % 2 else "its own samples"))
    assert (report, report.not_checked) == ([], {})


@SEEN
def test_a_bound_within_the_data_is_measured(seen):
    """The same setting, on bounds that harm differently, and one that does not touch them."""
    harsh, mild, none = (
        found(with_scheduler(clip_sample=True, clip_sample_range=bound), **small(seen)).get(
            "clipping"
        )
        for bound in (0.3, 0.7, 5.0)
    )
    assert none is None
    assert harsh.evidence > mild.evidence > 0.1
    assert "clip=None and threshold=None" in mild.fix
    x0 = data()[:8]
    expected = (x0 - x0.clamp(-0.7, 0.7)).square().mean().sqrt() / x0.square().mean().sqrt()
    assert mild.evidence == pytest.approx(
        float(expected), rel=0 if seen == "data" else 0.3, abs=1e-6
    )


@SEEN
def test_thresholding_of_data_beyond_1(seen):
    wide = MixtureNet(schedules.ddpm(), "eps", spread=1.5)
    options = dict(data=wide.draw(16)) if seen == "data" else {}
    for most in (1.0, 5.0):  # as a clip, and as another brightness
        model = with_scheduler(net=wide, thresholding=True, sample_max_value=most)
        (finding,) = diagnosis(model, **options)
        assert finding.check == "clipping"
        assert finding.message.startswith(f"threshold 0.995, at most {most:g} moves")


# -- the network behind one -------------------------------------------------------------------
HIDDEN = FAULTS | {"input-scale": (lambda: bare(scale=4.0), dict(data=data()))}
del HIDDEN["clipping"]


@pytest.mark.parametrize(("i", "fault"), [*enumerate(HIDDEN)])
def test_a_limit_does_not_hide_what_is_wrong_with_the_network(i, fault):
    make, options = HIDDEN[fault]
    model = make()
    model.limit = Limit(**LIMITS[i % 2])
    assert fault in found(model, **options)


@SEEN
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_is_found_through_a_limit(seen, bad):
    model = bare(change=lambda out: torch.where(out > 1, bad, out))
    model.limit = Limit(clip=1.0)
    report = diagnosis(model, **small(seen))
    assert [finding.check for finding in report] == ["non-finite"]
    assert report.not_checked["clipping"] == "set 'non-finite' right first: it hides this"


def test_a_first_level_where_a_limit_keeps_x0():
    """Without one, x̂₀ of an ε-network is off by σ(T) = 20,000 times its error; kept in range it is not.

    Nor is it where sampling starts by default.
    """
    net, scheduler = trained("squaredcos_cap_v2", "epsilon")
    given, free = pictures("data"), load(net, scheduler)
    from_top = free.starting_at(free.schedule.sigma_max)
    assert "where it starts" in found(from_top, **given)["terminal-snr"].message
    assert "terminal-snr" not in found(free, **given)
    for model in (free, from_top):
        model.limit = Limit(clip=1.0)
        assert diagnosis(model, **given) == []


def test_the_shipped_model_relies_on_none():
    model = ddim_ode.load("fashion-mnist")
    model.limit = Limit(clip=1.0)
    probe = Probe(model, None, None, None, None, steps=50, n=2, seed=0, device=None)
    assert not probe.relies
    assert limits.checks(probe, []) == []


def test_the_command_measures_the_configured_limit_and_another(tmp_path, capsys):
    net, scheduler = trained("linear", "epsilon")
    with quiet():
        clipping = peer("diffusers").DDIMScheduler.from_config(scheduler.config, clip_sample=True)
    save(tmp_path, net, clipping)
    assert main(["doctor", str(tmp_path)]) == 0
    assert "limit on x̂₀: clip 1" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path), "--clip", "none", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [row["check"] for row in said["findings"]] == ["clipping"]
