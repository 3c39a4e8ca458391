"""The levels of every scheduler class of diffusers, in all the spacings it has, are read to rounding."""

import inspect
import logging

import numpy as np
import pytest
from peers import load as peer
from refusals import expect
from tiny_pipelines import calibrated, ours, start, unet, with_plans

import ddim_ode
from ddim_ode.interop.config import DISCRETE, FLOW
from ddim_ode.interop.diffusers import load

THEIRS = [name for name in (*DISCRETE, *FLOW) if not name.startswith("DDIMODE")]
RISING = ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler")
SPACINGS = [
    dict(timestep_spacing=spacing, steps_offset=offset)
    for spacing in ("linspace", "leading", "trailing")
    for offset in (0, 1)
]
SIGMAS = [{}, *({f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta"))]
FLOWS = dict(use_flow_sigmas=True, prediction_type="flow_prediction")
OPTIONS = [
    *SPACINGS,
    *SIGMAS,
    *(dict(beta_schedule="squaredcos_cap_v2", **kind) for kind in SIGMAS),
    *(dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=T) for T in (100, 400)),
    *(dict(FLOWS, flow_shift=3.0, **kind) for kind in SIGMAS),
    *(dict(FLOWS, final_sigmas_type=final, shift_terminal=0.1) for final in ("zero", "sigma_min")),
    *(dict(shift=3.0, **kind) for kind in SIGMAS),
    *(dict(final_sigmas_type=final) for final in ("zero", "sigma_min")),
    *(dict(set_alpha_to_one=one, steps_offset=1) for one in (True, False)),
    *(dict(use_lu_lambdas=True), dict(rescale_betas_zero_snr=True, prediction_type="v_prediction")),
    *(dict(lambda_min_clipped=-5.1), dict(skip_prk_steps=True), dict(shift_terminal=0.1)),
    *(dict(interpolation_type="log_linear"), dict(original_inference_steps=100)),
    dict(trained_betas=np.geomspace(1e-4, 0.1, 50).tolist(), num_train_timesteps=50),
]


def made(name, options):
    """A scheduler, or None where the class knows no such options."""
    cls = getattr(peer("diffusers"), name)
    if not options.keys() <= inspect.signature(cls.__init__).parameters.keys():
        return None
    try:
        return cls(**options)
    except ValueError:  # a combination that they refuse
        return None


def levels_of(scheduler, steps):
    """σ, or t of flow matching, by their own arrays: the levels of the state, repeated ones once."""
    scheduler.set_timesteps(steps)
    name = type(scheduler).__name__
    if hasattr(scheduler, "sigmas"):
        # With log_linear interpolation one more is listed, which no step goes to.
        passed = scheduler.sigmas.double().numpy()[: len(scheduler.timesteps) + 1]
    else:
        squares = scheduler.alphas_cumprod.double().numpy()
        last = 1.0 if name in ("LCMScheduler", "DDPMScheduler", "DDPMParallelScheduler") else None
        if last is None:
            last = squares[0] if name == "TCDScheduler" else float(scheduler.final_alpha_cumprod)
        times = scheduler._timesteps[::-1] if "PNDM" in name else scheduler.timesteps.numpy()
        passed = np.append(squares[times.astype(int)], last)
        with np.errstate(divide="ignore"):
            passed = np.sqrt((1 - passed) / passed)
    return passed[np.append(True, np.diff(passed) != 0)]


@pytest.fixture(scope="module")
def net():
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    return unet()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n in THEIRS if n not in RISING])
def test_grid_is_their_levels(name, net):
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    read = 0
    for options in OPTIONS[:: 6 if "KDPM2" in name else 1]:  # which take a second to be made
        scheduler = made(name, options)
        if scheduler is None:
            continue
        model = load(net, scheduler)
        for steps in (1, 5):
            try:
                expected = levels_of(scheduler, steps)
            except ValueError:  # PNDM begins with four Runge–Kutta steps
                with pytest.raises(ValueError, match=f"{name} cannot take {steps} steps"):
                    model.grid(steps)
                continue
            top = 1.0 if model.schedule.family == "flow" else model.schedule.sigma_max
            refused = None
            if not (expected <= top * (1 + 3e-5)).all():  # NaN, or σ where t belongs
                refused = "goes to levels that its schedule does not have"
            elif len(expected) <= steps:  # the last step stays where it is
                refused = "does not go down at each .* does not fall below"
            if refused is not None:
                with pytest.raises(ValueError, match=refused):
                    model.grid(steps)
                continue
            grid = model.grid(steps)
            if model.schedule.family == "flow":
                grid = model.schedule.time(grid)
            # Their σ(1) is of a float32 difference of 1 and ᾱ², which keeps four digits.
            np.testing.assert_allclose(grid, expected, rtol=3e-4, atol=1e-7, err_msg=str(options))
            read += 1
    assert read >= 4


@pytest.mark.parametrize("name", RISING)
def test_schedulers_that_go_up_have_no_grid(name, net):
    cls = getattr(peer("diffusers"), name)
    options = dict(clip_sample=False) if "DDIM" in name else {}
    expect(lambda: load(net, cls(**options)).grid(5), f"{name} goes up, from data to noise")


def test_the_shift_by_the_pictures_size_is_asked_for(net):
    diffusers = peer("diffusers")
    plain = diffusers.FlowMatchEulerDiscreteScheduler()
    dynamic = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    dynamic.set_timesteps(8, mu=0.8)
    model = load(net, dynamic)
    times = model.schedule.time(model.grid(8, mu=0.8))
    np.testing.assert_allclose(times, dynamic.sigmas.numpy(), rtol=1e-6)
    for call, match in (
        (lambda: model.grid(8), "cannot take 8 steps: `mu` must be passed"),
        (lambda: load(net, plain).grid(8, mu=0.8), "mu=0.8: .* has use_dynamic_shifting off"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    rising = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    expect(lambda: load(net, rising), "invert_sigmas=True: .* time that rises")


def test_our_own_scheduler_has_the_levels_of_its_plan(net):
    for scheduler, steps in ((ours(method="heun"), 7), (with_plans(calibrated()), 6)):
        model = load(net, scheduler)
        scheduler.set_timesteps(steps)
        assert model.grid(steps).tolist() == list(scheduler.plan.grid)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_their_own_array_is_a_grid(betas, net):
    """As people write it: ``sample(..., grid=scheduler.sigmas)``, whose end is off by float32 rounding."""
    taken = []
    for name in THEIRS:
        options = dict(beta_schedule=betas, use_karras_sigmas=True)
        if name in RISING or "KDPM2" in name or (scheduler := made(name, options)) is None:
            continue
        model = load(net, scheduler)
        scheduler.set_timesteps(5)
        theirs = scheduler.sigmas.unique().flip(0)
        sol = ddim_ode.sample(model, start(), "ddim", grid=theirs)
        np.testing.assert_allclose(sol.sigmas, theirs, rtol=3e-5)
        assert sol.sigmas[0] <= model.schedule.sigma_max
        taken.append(name)
    assert len(taken) >= 6
