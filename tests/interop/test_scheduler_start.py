"""Where a scheduler that takes another's place starts, and what else pipelines ask of it."""

import copy
import inspect
import logging
import warnings

import numpy as np
import pytest
import torch
from erring import erring, good
from peers import load as peer
from refusals import expect
from tiny_pipelines import calibrated, ours, pickled, start, unet, with_plans

import ddim_ode
from ddim_ode.interop.config import DISCRETE
from ddim_ode.solvers.methods import METHODS as REGISTRY

pytest.importorskip("diffusers")

from ddim_ode.interop.diffusers import DDIMODEScheduler, load

SPACINGS = [
    dict(timestep_spacing=spacing, steps_offset=offset)
    for spacing in ("leading", "linspace", "trailing")
    for offset in (0, 1)
]
OPTIONS = [*SPACINGS, {}, dict(use_karras_sigmas=True), dict(lambda_min_clipped=-3.0)]
FALLING = [n for n in DISCRETE if n != "DDIMODEScheduler" and "Inverse" not in n]


def theirs(name, **options):
    """A scheduler that clips nothing, or None where the class knows no such options."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    cls = getattr(peer("diffusers"), name)
    known = inspect.signature(cls.__init__).parameters
    options = dict(clip_sample=False) | options if "clip_sample" in known else options
    return cls(**options) if options.keys() <= known.keys() else None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FALLING)
def test_it_starts_where_the_one_it_replaces_would(name):
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    for options in OPTIONS[:: 3 if "KDPM2" in name else 1]:  # which take a second to be made
        scheduler = theirs(name, **options)
        if scheduler is None:
            continue
        placed = DDIMODEScheduler.from_config(scheduler.config, method="dpmpp2m")
        assert placed.config.replaces.removesuffix("Scheduler") in (
            name.removesuffix("Scheduler"),
            # of the same settings, and the same start
            *("DDIM", "DDPM", "LCM", "KDPM2Discrete", "LMSDiscrete", "CogVideoXDDIM"),
        )
        scheduler.set_timesteps(12)
        placed.set_timesteps(12)
        first = float(scheduler.timesteps[0])
        assert float(placed.timesteps[0]) == pytest.approx(first, abs=1e-3)
        assert len(placed.timesteps) == 12


@pytest.mark.parametrize("options", SPACINGS)
@pytest.mark.parametrize(
    ("T", "prediction"), [(100, "epsilon"), (1000, "epsilon"), (1000, "v_prediction")]
)
def test_but_no_higher_than_the_network_can_tell(T, options, prediction):
    scheduler = theirs(
        "DDIMScheduler",
        beta_schedule="squaredcos_cap_v2",
        num_train_timesteps=T,
        prediction_type=prediction,
        **options,
    )
    placed = DDIMODEScheduler.from_config(scheduler.config, method="unipc2")
    for steps in (10, 12, 20):
        scheduler.set_timesteps(steps)
        placed.set_timesteps(steps)
        asked = float(ddim_ode.schedules.cosine(T).sigma(float(scheduler.timesteps[0]) + 1))
        most = 80.0 if prediction == "epsilon" else np.inf
        assert placed.plan.grid[0] == pytest.approx(min(asked, most), rel=1e-9)


def test_what_is_told_goes_before_it():
    config = theirs("DDIMScheduler", steps_offset=1).config  # leading, by default
    top = ddim_ode.schedules.ddpm().sigma_max
    for options, first in (
        (dict(sigma_max=20.0), 20.0),
        (dict(sigma_max=20.0, grid="karras"), 20.0),
        (dict(grid="karras"), top),
        (dict(replaces=None), top),
        ({}, float(ddim_ode.schedules.ddpm().sigma(952.0))),
    ):
        scheduler = DDIMODEScheduler.from_config(config, method="heun", **options)
        scheduler.set_timesteps(20)
        assert scheduler.plan.grid[0] == pytest.approx(first, rel=1e-9)
    scheduler.set_timesteps(timesteps=[700.0, 300.0])
    assert scheduler.timesteps[0] == 700.0
    expect(lambda: ours(sigma_max=500.0), r"sigma_max=500 is outside this schedule's range")
    with pytest.raises(ValueError, match="timesteps= says where to step; drop sigma_max=20"):
        ours(sigma_max=20.0).set_timesteps(timesteps=[700.0, 300.0])
    with pytest.raises(ValueError, match="both plans and sigma_max"):
        ours(plans=with_plans(calibrated()).config.plans, sigma_max=20.0)
    with pytest.warns(UserWarning, match=r"sigma_max=1000: x̂₀ of a network with prediction='eps'"):
        ours(beta_schedule="squaredcos_cap_v2", sigma_max=1000.0)


def test_where_the_start_is_unknown_the_denoisers_holds(tmp_path):
    """A scheduler made by hand, of no other; one of plans; one that would take no such steps."""
    cosine = dict(beta_schedule="squaredcos_cap_v2")
    by_hand = ours(method="dpmpp2m", **cosine)
    by_hand.set_timesteps(20)
    assert by_hand.plan.grid[0] == 80.0
    inverse = theirs("DDIMInverseScheduler", **cosine)
    for config in (inverse.config, theirs("DDIMScheduler", **cosine).config):
        scheduler = DDIMODEScheduler.from_config(config)
        scheduler.set_timesteps(1)  # of which "leading" makes a start at the end
        assert scheduler.plan.grid[0] == 80.0
    assert load(unet(), ours(sigma_max=20.0)).sigma_max == 20.0


def test_a_start_goes_along(tmp_path):
    """Through files, copies, and from one class to another and back."""
    dpm = theirs("DPMSolverMultistepScheduler", timestep_spacing="leading", steps_offset=1)
    ddim = peer("diffusers").DDIMScheduler.from_config(dpm.config, clip_sample=False)
    first = {}
    for name, scheduler in (("dpm", dpm), ("ddim", ddim)):
        scheduler.set_timesteps(20)
        first[name] = float(scheduler.timesteps[0])
        scheduler.save_pretrained(tmp_path / name)
    assert first == dict(dpm=941.0, ddim=951.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that the other class does not know
        for name, scheduler in (("dpm", dpm), ("ddim", ddim)):
            made = DDIMODEScheduler.from_config(scheduler.config, method="ab2")
            made.save_pretrained(tmp_path / "ours")
            again = DDIMODEScheduler.from_pretrained(tmp_path / "ours")
            other = DDIMODEScheduler.from_config(made.config, method="heun")
            filed = DDIMODEScheduler.from_pretrained(tmp_path / name)
            for placed in (made, again, other, filed, copy.deepcopy(made), pickled(made)):
                placed.set_timesteps(20)
                assert float(placed.timesteps[0]) == pytest.approx(first[name], abs=1e-3)


@pytest.mark.parametrize(
    ("T", "spacing"), [(1000, "leading"), (1000, "trailing"), (100, "linspace"), (1000, None)]
)
def test_a_cosine_schedule_in_a_pipeline(T, spacing):
    """Where x̂₀ has no digits at σ(T), every method makes good samples of few calls."""
    schedule = ddim_ode.schedules.cosine(T)
    model = erring(schedule)
    x_T = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    betas = dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=T)
    for method, spec in REGISTRY.items():
        if spec.rises is not None:  # which may begin with noise, and not with a call
            continue
        if spacing is None:
            scheduler = ours(method=method, **betas)
        else:
            config = theirs("DDIMScheduler", timestep_spacing=spacing, **betas).config
            scheduler = DDIMODEScheduler.from_config(config, method=method)
        scheduler.set_timesteps(12 // spec.nfe_per_step)
        x = x_T
        for t in scheduler.timesteps:
            generator = torch.Generator().manual_seed(int(t))
            answer = model(x, schedule.sigma(float(t) + 1))[1].to(x)
            x = scheduler.step(answer, t, x, generator=generator).prev_sample
        assert good(x) >= 0.9, (method, good(x))


# -- what pipelines read -----------------------------------------------------------------------
@pytest.mark.parametrize("method", ["ddim", "dpmpp2m", "heun", "unipc3"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_each_step_hands_out_the_clean_sample(method, prediction):
    """As DDIM's does: x̂₀ of the network's answer at the state that it was shown."""
    scheduler = ours(method=method, prediction_type=prediction)
    ddim = theirs("DDIMScheduler", prediction_type=prediction)
    scheduler.set_timesteps(timesteps=[900, 500, 100])
    ddim.set_timesteps(10)
    x = start()
    for t in scheduler.timesteps:
        answer = torch.tanh(x)
        out = scheduler.step(answer, t, x)
        if t == t.round():
            expected = ddim.step(answer, int(t), x).pred_original_sample
            torch.testing.assert_close(out.pred_original_sample, expected, rtol=1e-4, atol=1e-4)
        x = out.prev_sample
    torch.testing.assert_close(out.pred_original_sample, x, rtol=1e-5, atol=1e-4)  # it lands there
    scheduler.set_timesteps(3)
    first, t = start().bfloat16(), scheduler.timesteps[0]
    shown, x0 = scheduler.step(torch.tanh(first), t, first, return_dict=False)
    assert (shown.dtype, x0.dtype) == (torch.bfloat16, torch.bfloat16)


def test_any_of_its_times_is_an_index_of_alphas_cumprod():
    scheduler = ours(method="dpm3")
    scheduler.set_timesteps(4)
    schedule, table = ddim_ode.schedules.ddpm(), scheduler.alphas_cumprod
    assert any(t != t.round() for t in scheduler.timesteps)
    for t in scheduler.timesteps:
        expected = float(schedule.alpha_bar(float(t) + 1)) ** 2
        for index in (t, float(t), np.float32(t)):
            assert float(table[index]) == pytest.approx(expected, rel=1e-6)
    whole = torch.tensor([0, 500, 999])
    several = table[scheduler.timesteps]
    assert several.shape == scheduler.timesteps.shape
    torch.testing.assert_close(table[whole], theirs("DDIMScheduler").alphas_cumprod[whole])
    assert torch.equal(table[whole], table[whole.double()])
    assert torch.equal(table[-1], table[999])
    assert {type(v) for v in (table[whole], table[0.5], table**0.5, table.to("cpu") + 0)} == {
        torch.Tensor
    }
    for copied in (copy.deepcopy, pickled):
        assert float(copied(scheduler).alphas_cumprod[0.5]) == float(table[0.5])
    for late in (1000.5, torch.tensor(-2.0)):
        with pytest.raises(ValueError, match="must be above -1 and at most 999"):
            table[late]


def test_levels_and_places_are_told():
    scheduler = ours(method="heun")
    assert scheduler.step_index is None
    assert scheduler.begin_index is None
    with pytest.raises(ValueError, match="call set_timesteps"):
        scheduler.sigmas  # noqa: B018
    assert scheduler.previous_timestep(700) == 699
    scheduler.set_timesteps(4)
    told = ddim_ode.schedules.ddpm().sigma(scheduler.timesteps.double().numpy() + 1)
    np.testing.assert_allclose(scheduler.sigmas, [*told, 0.0], rtol=1e-5)
    times = scheduler.timesteps
    assert times.round().tolist() == [999, 749, 749, 499, 499, 249, 249]
    after = [float(scheduler.previous_timestep(t)) for t in times]
    np.testing.assert_allclose(after, [749, 499, 499, 249, 249, -1, -1], atol=1e-3)
    assert (scheduler.begin_index, scheduler.step_index) == (0, None)
    x = scheduler.step(start(), times[0], start()).prev_sample
    assert scheduler.step_index == 1
    assert (scheduler.init_noise_sigma, len(scheduler)) == (1.0, 1000)
    torch.testing.assert_close(scheduler.betas, theirs("DDIMScheduler").betas, rtol=1e-3, atol=1e-7)
    assert torch.equal(x, scheduler.scale_model_input(x, times[1]))


def test_levels_of_ones_own():
    """As ``retrieve_timesteps`` hands over a pipeline's ``sigmas``."""
    sigmas = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]
    scheduler = ours(method="dpmpp2m")
    scheduler.set_timesteps(sigmas=sigmas)
    np.testing.assert_allclose(scheduler.sigmas, sigmas, rtol=1e-6)
    x = start()
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x) * 0.5, t, x).prev_sample
    net = ddim_ode.Denoiser(
        lambda x, t: torch.tanh(x) * 0.5, ddim_ode.schedules.ddpm(), time_offset=-1.0
    )
    expected = ddim_ode.sample(net, start(), "dpmpp2m", grid=sigmas, start=None).x
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
    pipeline_stable_diffusion = peer(
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"
    )
    for call, match in (
        (dict(sigmas=sigmas, timesteps=[900, 100]), "both timesteps and sigmas"),
        (dict(sigmas=sigmas[::-1]), "does not fall below"),
        (dict(sigmas=[500.0, 0.0]), "outside this schedule's range"),
    ):
        with pytest.raises(ValueError, match=match):
            scheduler.set_timesteps(**call)
    retrieve = pipeline_stable_diffusion.retrieve_timesteps
    assert [len(t) for t in retrieve(ours(), sigmas=[10.0, 1.0, 0.0])[:1]] == [2]
    with pytest.raises(ValueError, match="sigmas= says where to step; drop grid='karras'"):
        ours(grid="karras").set_timesteps(sigmas=sigmas)
