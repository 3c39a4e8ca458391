"""Our plans inside unmodified diffusers pipelines: the same samples as ours, to the last bits."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from peers import load as peer
from peers import quiet
from tiny_pipelines import (
    calibrated,
    dit,
    ends,
    ours,
    pickled,
    start,
    text_unet,
    unet,
    with_plans,
)

import ddim_ode
from ddim_ode import Guidance, Plan
from ddim_ode.interop.diffusers import load
from ddim_ode.solvers.methods import METHODS as REGISTRY


def pipeline(scheduler, net=None, name="DDPMPipeline"):
    diffusers = peer("diffusers")
    plain = diffusers.DDIMScheduler(clip_sample=False)
    with quiet():
        pipe = getattr(diffusers, name)(net or unet(), plain)
    pipe.scheduler = scheduler
    return pipe


def run(pipe, steps, **call):
    generator = torch.Generator().manual_seed(1)
    return ends(pipe, batch_size=3, generator=generator, num_inference_steps=steps, **call)


def off(a, b):
    return float((a - b).abs().max() / b.abs().max())


# Every kind of plan: stages, multistep, correctors that commit without a call, Runge–Kutta starts.
METHODS = [
    ("ddim", 5),
    ("heun", 4),
    ("rk4", 3),
    ("dpm3", 3),
    ("dpmpp2m", 6),
    ("unipc3", 6),
    ("ab4", 16),
]


@pytest.mark.parametrize(
    ("name", "method", "steps"),
    [
        *(("DDPMPipeline", *row) for row in METHODS),
        ("DDIMPipeline", "ddim", 5),
        ("DDIMPipeline", "heun", 4),
    ],
)
def test_a_pipeline_makes_our_samples(name, method, steps):
    scheduler = ours(method=method, prediction_type="v_prediction")
    pipe = pipeline(scheduler, name=name)
    made = run(pipe, steps)
    model = load(pipe.unet, scheduler)
    ramp = "ramp" if REGISTRY[method].rk_steps else None
    sol = ddim_ode.sample(model, start(), method, steps=steps, start=ramp)
    assert len(made) == sol.nfe == len(scheduler.timesteps)
    assert off(made[-1], sol.x) < 1e-6


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_whatever_the_network_predicts(prediction):
    scheduler = ours(method="heun", prediction_type=prediction, beta_schedule="squaredcos_cap_v2")
    pipe = pipeline(scheduler)
    made = run(pipe, 4)
    sol = ddim_ode.sample(load(pipe.unet, scheduler), start(), "heun", steps=4)
    assert off(made[-1], sol.x) < 1e-6


def test_snap_asks_at_whole_times():
    scheduler = ours(method="unipc2", snap=True, prediction_type="sample")
    pipe = pipeline(scheduler)
    made = run(pipe, 7)
    assert scheduler.timesteps.tolist() == scheduler.timesteps.round().tolist()
    model = load(pipe.unet, scheduler, snap=True)
    assert off(made[-1], ddim_ode.sample(model, start(), "unipc2", steps=7).x) < 1e-6


def test_class_conditional_and_guided_through_the_dit_pipeline(tmp_path):
    diffusers = peer("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(4,),
        norm_num_groups=2,
        latent_channels=2,
        sample_size=8,
    )
    scheduler = ours(method="midpoint", prediction_type="v_prediction")
    with quiet():
        diffusers.DiTPipeline(dit(), vae, scheduler).save_pretrained(tmp_path)
        pipe = diffusers.DiTPipeline.from_pretrained(tmp_path)
    assert type(pipe.scheduler) is type(scheduler)
    labels = [7, 8, 9]
    generator = torch.Generator().manual_seed(1)
    made = ends(pipe, class_labels=labels, generator=generator, num_inference_steps=3)
    model = load(tmp_path, guidance=4.0)
    assert model.guidance == Guidance(4.0, {"class_labels": 1000})
    cond = {"class_labels": torch.tensor(labels)}
    sol = ddim_ode.sample(model, start(channels=2), "midpoint", steps=3, cond=cond)
    assert len(made) == sol.nfe == 5
    assert off(made[-1][:3], sol.x) < 1e-4


def test_a_latent_text_to_image_loop():
    """The protocol of the Stable Diffusion pipelines: eta, generator and scale_model_input by signature."""
    scheduler = ours(
        method="dpmpp2s", beta_schedule="scaled_linear", beta_start=8.5e-4, beta_end=0.012
    )
    net, words = text_unet().eval(), torch.randn(2, 3, 8)
    empty = torch.zeros(3, 8)
    scheduler.set_timesteps(4, device="cpu")
    x = start(2, 2) * scheduler.init_noise_sigma
    both = torch.cat([empty.expand(2, -1, -1), words])
    with torch.no_grad():
        for t in scheduler.timesteps:
            shown = scheduler.scale_model_input(torch.cat([x] * 2), t)
            null, told = net(shown, t, encoder_hidden_states=both, return_dict=False)[0].chunk(2)
            noise = null + 5.0 * (told - null)
            x = scheduler.step(noise, t, x, eta=0.0, generator=None, return_dict=False)[0]
    model = load(net, scheduler, guidance=Guidance(5.0, {"encoder_hidden_states": empty}))
    cond = {"encoder_hidden_states": words}
    assert off(x, ddim_ode.sample(model, start(2, 2), "dpmpp2s", steps=4, cond=cond).x) < 1e-4


# -- compiled plans ---------------------------------------------------------------------------


def test_final_is_the_methods():
    scheduler = ours(method="dpmpp2m", final="sigma_min")
    scheduler.set_timesteps(5)
    options = dict(steps=5, final="sigma_min")
    assert scheduler.plan.grid == ddim_ode.sample(NET, start(), "dpmpp2m", **options).plan.grid
    assert scheduler.plan.grid[-1] > 0


def test_whatever_the_numbers_of_a_plan():
    """Scales of 1, steps without weights and zeros among the weights are run as in our own loop."""
    plan = calibrated()
    ops = list(plan.ops)
    ops[2] = ops[2]._replace(scale=1.0)
    ops[3] = ops[3]._replace(weights=())
    ops[4] = ops[4]._replace(scale=1.0, weights=())
    ops[5] = ops[5]._replace(weights=(0.0, *ops[5].weights[1:]))
    odd = dataclasses.replace(plan, ops=tuple(ops), fit=None)
    pipe = pipeline(with_plans(odd))
    model = load(unet(), pipe.scheduler)
    assert off(run(pipe, 6)[-1], ddim_ode.sample(model, start(), plan=odd).x) < 1e-6


def test_a_calibrated_plan_travels_inside_the_pipeline(tmp_path):
    plan = calibrated()
    pipe = pipeline(with_plans([plan, ddim_ode.load("fashion-mnist").calibrated(4)]))
    made = run(pipe, 6)
    with quiet():
        pipe.save_pretrained(tmp_path)
        again = peer("diffusers").DDPMPipeline.from_pretrained(tmp_path)
    assert torch.equal(run(again, 6)[-1], made[-1])
    assert again.scheduler.plan == plan
    assert again.scheduler.plan.fit == plan.fit
    assert again.scheduler.order == 1
    model = load(tmp_path)
    assert off(made[-1], ddim_ode.sample(model, start(), plan=plan).x) < 1e-6
    with pytest.raises(ValueError, match="4, 6 network calls"):
        again.scheduler.set_timesteps(5)


# -- the protocol -----------------------------------------------------------------------------
def walk(scheduler, x, calls=None, begin=0):
    for t in scheduler.timesteps[begin:calls]:
        x = scheduler.step(torch.tanh(x) * 0.5, t, x).prev_sample
    return x


def test_a_run_broken_off_leaves_nothing_behind():
    scheduler = ours(method="unipc3")
    scheduler.set_timesteps(8)
    whole = walk(scheduler, start())
    scheduler.set_timesteps(8)
    walk(scheduler, start(5, seed=3), 5)  # another batch size, stopped on the way
    scheduler.set_timesteps(8)
    assert torch.equal(walk(scheduler, start()), whole)
    with pytest.raises(ValueError, match="all 8 network calls"):
        scheduler.step(whole, scheduler.timesteps[-1], whole)


def test_steps_out_of_order_are_refused():
    scheduler = ours(method="dpmpp2m")
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(start(), 999, start())
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="due at t=999"):
        scheduler.step(start(), scheduler.timesteps[1], start())


def test_what_is_no_state_of_this_run_is_refused():
    scheduler = ours(method="dpmpp2m")
    scheduler.set_timesteps(5)
    first, second = scheduler.timesteps[:2]
    for output in ((start(),), None, start().int()):
        with pytest.raises(ValueError, match="model_output must be a floating tensor"):
            scheduler.step(output, first, start())
    with pytest.raises(ValueError, match="called with t=nan"):
        scheduler.step(start(), float("nan"), start())
    with pytest.raises(ValueError, match="timestep=None must be"):
        scheduler.step(start(), None, start())
    ours(method="ddim").add_noise(start(), start(), np.float32(999.0005))  # as float32 has it
    scheduler.step(start(1), scheduler.timesteps[:1], start(1))
    with pytest.raises(ValueError, match=r"shape \(3, .*began with \(1, "):
        scheduler.step(start(), second, start())
    with pytest.raises(ValueError, match="plans is empty"):
        ours(plans=[])


NET = ddim_ode.Denoiser(lambda x, t: torch.tanh(x) * 0.5, ddim_ode.schedules.ddpm(), time_offset=-1)


@pytest.mark.parametrize(
    ("method", "calls"), [("dpmpp2m", 1), ("heun", 2), ("rk4", 4), ("dpm3", 3), ("ab4", 1)]
)
def test_begin_index_is_the_method_begun_there(method, calls):
    """As image-to-image pipelines do: skipped steps × order entries of ``timesteps``."""
    scheduler = ours(method=method, grid="trailing")
    scheduler.set_timesteps(20)
    assert scheduler.order == calls
    times, sigmas = scheduler.timesteps, scheduler.plan.grid
    for begin in (3, 4):  # the second from the whole run again, not from the first
        scheduler.set_begin_index(begin * scheduler.order)
        assert torch.equal(scheduler.timesteps, times)
        assert scheduler.plan.grid == sigmas[begin:]
    ramp = "ramp" if REGISTRY[method].rk_steps else None
    x = scheduler.add_noise(start(), start(seed=2), times[4 * calls].reshape(1))
    expected = ddim_ode.sample(NET, x, method, grid=np.array(sigmas[4:]), start=ramp).x
    assert torch.equal(walk(scheduler, x, begin=4 * calls), expected)
    scheduler.set_begin_index(0)
    assert scheduler.plan.grid == sigmas
    whole = ddim_ode.sample(NET, start(), method, steps=20, grid="trailing", start=ramp).x
    assert torch.equal(walk(scheduler, start()), whole)


def test_begin_indices_inside_a_step_are_refused():
    heun = ours(method="heun")
    heun.set_timesteps(4)
    for index in (1, 3, 99):
        with pytest.raises(ValueError, match=f"begin_index={index}: "):
            heun.set_begin_index(index)
    started = ours(method="ab4", start="rk")
    started.set_timesteps(20)
    assert len(started.timesteps) > 20
    with pytest.raises(ValueError, match=r"begin_index=10: .*none begins within start='rk'"):
        started.set_begin_index(10)
    with pytest.raises(ValueError, match="begin_index=-1 must be a whole number"):
        heun.set_begin_index(-1)


def test_what_a_pipeline_changes_between_steps_counts():
    """Inpainting overwrites part of the state; stages are shown and taken back."""
    scheduler = ours(method="ddim")
    scheduler.set_timesteps(3)
    a = scheduler.step(start() * 0, scheduler.timesteps[0], start()).prev_sample
    changed = a + 1.0
    b = scheduler.step(a * 0, scheduler.timesteps[1], changed).prev_sample
    plan = scheduler.plan
    alpha = np.array([ddim_ode.schedules.ddpm().scales(s)[0] for s in plan.grid])
    torch.testing.assert_close(b, changed * float(alpha[2] / alpha[1]))


def test_step_noise_is_the_generators_and_has_the_posterior_variance():
    scheduler = ours(method="ddpm")
    scheduler.set_timesteps(50)
    x = torch.zeros(4, 1, 64, 64)
    made = [
        scheduler.step(x, scheduler.timesteps[0], x, generator=torch.Generator().manual_seed(s))
        for s in (0,)
    ]
    schedule, grid = ddim_ode.schedules.ddpm(), scheduler.plan.grid
    ratio = grid[1] / grid[0]
    expected = float(schedule.scales(grid[1])[1]) * np.sqrt(1 - ratio**2)
    assert float(made[0].prev_sample.std()) == pytest.approx(expected, rel=0.02)
    scheduler.set_timesteps(50)
    again = scheduler.step(x, scheduler.timesteps[0], x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.prev_sample, made[0].prev_sample)


def test_eta_is_not_taken_on_the_way():
    scheduler = ours(method="ddim")
    scheduler.set_timesteps(3)
    t = scheduler.timesteps[0]
    with pytest.raises(ValueError, match=r"eta=0\.5"):
        scheduler.step(start(), t, start(), eta=0.5)


def test_half_precision_keeps_a_wide_state():
    """400 steps with nothing predicted: x shrinks by ᾱ ratios that bfloat16 cannot tell from 1."""
    scheduler = ours(method="ddim", grid="time")
    scheduler.set_timesteps(400)
    x = start().bfloat16()
    first = x.float()
    for t in scheduler.timesteps[:-1]:
        x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
    schedule = ddim_ode.schedules.ddpm()
    grid = scheduler.plan.grid
    factor = float(schedule.scales(grid[-2])[0] / schedule.scales(grid[0])[0])
    torch.testing.assert_close(x.float(), first * factor, rtol=2**-8, atol=0)


def test_a_learned_variance_from_the_pipeline_is_split():
    scheduler = ours(method="ddim", variance_type="learned_range")
    scheduler.set_timesteps(2)
    x = start(channels=3)
    out = torch.cat([x, 100 * x], 1)
    both = scheduler.step(out, scheduler.timesteps[0], x).prev_sample
    scheduler.set_timesteps(2)
    assert torch.equal(both, scheduler.step(x, scheduler.timesteps[0], x).prev_sample)
    plain = ours(method="ddim")
    plain.set_timesteps(2)
    with pytest.raises(ValueError, match="learned variance"):
        plain.step(out, plain.timesteps[0], x)


def test_add_noise_is_theirs():
    diffusers = peer("diffusers")
    t = torch.tensor([0, 500, 999])
    x0, noise = start(), start(seed=2)
    theirs = diffusers.DDIMScheduler().add_noise(x0, noise, t)
    torch.testing.assert_close(ours().add_noise(x0, noise, t), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            dict(timesteps=torch.tensor([5, -1, 5])),
            r"timesteps: -1 must be above -1 and at most 999",
        ),
        (dict(timesteps=torch.tensor([0, 5, 1000])), "at most 999"),
        (dict(timesteps=torch.tensor([0, 5])), r"shape \(2,\) for 3 samples"),
        (dict(timesteps="late"), "timesteps='late' must be real numbers"),
        (dict(noise=start()[:1]), r"noise must have the samples' shape \(3, 1, 8, 8\), got \(1, "),
        (dict(noise=None), "got NoneType"),
        (dict(original_samples=start().byte()), "samples must be a floating tensor"),
    ],
)
def test_add_noise_takes_what_a_training_loop_gives(change, match):
    given = dict(original_samples=start(), noise=start(seed=2), timesteps=torch.tensor([0, 5, 9]))
    with pytest.raises(ValueError, match=match):
        ours().add_noise(**given | change)
    one = ours().add_noise(start(), start(seed=2), 5)
    all_of_it = ours().add_noise(start(), start(seed=2), torch.tensor([5, 5, 5]))
    assert torch.equal(one, all_of_it)


def test_custom_timesteps():
    scheduler = ours(method="ddim")
    scheduler.set_timesteps(timesteps=[999, 600, 200, 50])
    assert scheduler.timesteps.tolist() == [999, 600, 200, 50]
    for later in (200, 50):
        with pytest.raises(ValueError, match=rf"\[50\.0, {later}\.0\] must fall"):
            scheduler.set_timesteps(timesteps=[50, later])
    for options in (dict(grid="karras"), dict(final="sigma_min")):
        with pytest.raises(ValueError, match=f"where to step; drop {next(iter(options))}="):
            ours(method="ddim", **options).set_timesteps(timesteps=[999, 600])


@pytest.mark.parametrize(
    ("copied", "calls"),  # a shallow copy within a run shares it
    [(copy.copy, 0), (copy.deepcopy, 0), (copy.deepcopy, 2), (pickled, 0), (pickled, 2)],
)
def test_a_copy_is_a_scheduler_of_its_own(copied, calls):
    """Before a run and within one, interleaved with the first."""

    def net(x, slope):
        return torch.tanh(slope * x)

    def walked(scheduler, slope, x, first=0):
        for t in scheduler.timesteps[first:]:
            x = scheduler.step(net(x, slope), t, x).prev_sample
        return x

    one = ours(method="dpmpp2m")
    one.set_timesteps(5)
    x = start()
    for t in one.timesteps[:calls]:
        x = one.step(net(x, 1.0), t, x).prev_sample
    other = copied(one)
    a = b = x
    for t in one.timesteps[calls:]:
        a, b = (
            s.step(net(y, slope), t, y).prev_sample
            for s, y, slope in ((one, a, 1.0), (other, b, 2.0))
        )
    assert not torch.equal(a, b)
    for end, slope in ((a, 1.0), (b, 2.0)):
        again = ours(method="dpmpp2m")
        again.set_timesteps(5)
        y = start()
        for t in again.timesteps[:calls]:
            y = again.step(net(y, 1.0), t, y).prev_sample
        assert torch.equal(walked(again, slope, y, calls), end)


def test_a_pipeline_may_answer_in_one_buffer():
    ends = []
    for buffer in (None, torch.empty(3, 1, 8, 8)):
        scheduler = ours(method="ab4", prediction_type="epsilon")
        scheduler.set_timesteps(8)
        x = start()
        for t in scheduler.timesteps:
            answer = torch.tanh(x) * 0.5
            x = scheduler.step(answer if buffer is None else buffer.copy_(answer), t, x).prev_sample
        ends.append(x)
    assert torch.equal(*ends)


def test_get_velocity_is_theirs():
    t, x0, noise = torch.tensor([0, 500, 999]), start(), start(seed=2)
    theirs = peer("diffusers").DDIMScheduler().get_velocity(x0, noise, t)
    torch.testing.assert_close(ours().get_velocity(x0, noise, t), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_pipeline_changes_in_place_counts(dtype):
    """And, in half precision, costs no digits where nothing was changed."""

    def run(change):
        scheduler = ours(method="ddim")
        scheduler.set_timesteps(3)
        first, second, _ = scheduler.timesteps
        x = scheduler.step(start().to(dtype) * 0, first, start().to(dtype)).prev_sample
        x = change(x)
        return scheduler.step(x * 0, second, x).prev_sample, scheduler._run.x

    def masked(x):
        x[:, :, :4] = 0.25
        return x

    (kept, whole), (edited, ours_), (again, theirs) = (
        run(change) for change in (lambda x: x, masked, lambda x: masked(x.clone()))
    )
    assert torch.equal(edited, again)
    assert torch.equal(ours_, theirs)
    assert torch.equal(ours_[:, :, 4:], whole[:, :, 4:])
    assert not torch.equal(edited[:, :, :4], kept[:, :, :4])
    assert ours_[:, :, :4].unique().numel() == 1


def test_a_step_that_failed_can_be_taken_again():
    scheduler = ours(method="ddpm")
    scheduler.set_timesteps(4)
    first, second = scheduler.timesteps[:2]
    expected = []
    for fails in (False, True):
        scheduler.set_timesteps(4)
        x = start()
        for t in (first, second):
            for seed in [None, 1] if fails else [1]:
                generator = "none" if seed is None else torch.Generator().manual_seed(seed)
                if seed is None:
                    with pytest.raises(ValueError, match=r"generator must be a torch\.Generator"):
                        scheduler.step(x * 0.1, t, x, generator=generator)
                else:
                    x = scheduler.step(x * 0.1, t, x, generator=generator).prev_sample
        expected.append(x)
    assert torch.equal(*expected)


def test_plans_must_begin_at_the_state():
    plan = calibrated()
    first = plan.ops[0]._replace(scale=0.5)
    from dataclasses import replace

    odd = replace(plan, ops=(first, *plan.ops[1:]))
    assert isinstance(odd, Plan)
    scheduler = with_plans(odd)
    with pytest.raises(ValueError, match="begin"):
        scheduler.set_timesteps(6)
