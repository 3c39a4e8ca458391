"""Our plans inside unmodified diffusers pipelines: the same samples as ours, to the last bits."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from peers import load as peer
from peers import quiet
from refusals import expect
from tiny_pipelines import (
    calibrated,
    dit,
    ends,
    off,
    ours,
    pickled,
    start,
    unet,
    with_plans,
)

import ddim_ode
from ddim_ode import Guidance
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


def their_ddim():
    return peer("diffusers").DDIMScheduler()


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
    ("name", "method", "steps", "options"),
    [
        *(("DDPMPipeline", *row, dict(prediction_type="v_prediction")) for row in METHODS),
        ("DDIMPipeline", "ddim", 5, {}),
        ("DDIMPipeline", "heun", 4, {}),
        ("DDPMPipeline", "heun", 4, dict(beta_schedule="squaredcos_cap_v2")),
        ("DDPMPipeline", "heun", 4, dict(prediction_type="sample")),
        ("DDPMPipeline", "unipc2", 7, dict(prediction_type="sample", snap=True)),
        ("DDPMPipeline", "dpmpp2m", 5, dict(final="sigma_min")),
    ],
)
def test_a_pipeline_makes_our_samples(name, method, steps, options):
    scheduler = ours(method=method, **options)
    pipe = pipeline(scheduler, name=name)
    made = run(pipe, steps)
    model = load(pipe.unet, scheduler)
    ramp = "ramp" if REGISTRY[method].rk_steps else None
    how = dict(final=options["final"]) if "final" in options else {}
    sol = ddim_ode.sample(model, start(), method, steps=steps, start=ramp, **how)
    assert len(made) == sol.nfe == len(scheduler.timesteps)
    assert off(made[-1], sol.x) < 1e-6
    assert scheduler.plan.grid == sol.plan.grid
    whole = scheduler.timesteps.tolist() == scheduler.timesteps.round().tolist()
    assert whole or not options.get("snap")


def test_class_conditional_and_guided_through_the_dit_pipeline(tmp_path):
    diffusers = peer("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=2, latent_channels=2, sample_size=8
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


# -- compiled plans ---------------------------------------------------------------------------
def test_whatever_the_numbers_of_a_plan():
    """Scales of 1, steps without weights and zeros among the weights are run as in our own loop."""
    ops = list(calibrated().ops)
    changes = (
        *(dict(scale=1.0), dict(weights=()), dict(scale=1.0, weights=())),
        dict(weights=(0.0, *ops[5].weights[1:])),
    )
    ops[2:6] = (op._replace(**change) for op, change in zip(ops[2:6], changes))
    odd = dataclasses.replace(calibrated(), ops=tuple(ops), fit=None)
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
    expect(lambda: again.scheduler.set_timesteps(5), "4, 6 network calls")


# -- the protocol -----------------------------------------------------------------------------
def walk(scheduler, x, calls=None):
    for t in scheduler.timesteps[:calls]:
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
    expect(lambda: scheduler.step(whole, scheduler.timesteps[-1], whole), "all 8 network calls")


def test_what_is_no_state_of_this_run_is_refused():
    x = start()
    expect(lambda: ours(method="dpmpp2m").step(x, 999, x), "set_timesteps")
    expect(lambda: ours(plans=[]), "plans is empty")
    scheduler = ours(method="dpmpp2m")
    scheduler.set_timesteps(5)
    first, second = scheduler.timesteps[:2]
    ours(method="ddim").add_noise(x, x, np.float32(999.0005))  # as float32 has it
    for output, t, options, message in (
        *((o, first, {}, "model_output must be a floating tensor") for o in ((x,), None, x.int())),
        (x, second, {}, "due at t=999"),
        (x, float("nan"), {}, "called with t=nan"),
        (x, None, {}, "timestep=None must be"),
        (x, first, dict(eta=0.5), r"eta=0\.5"),
        (x, first, dict(eta="a"), "eta='a' must be real numbers"),
    ):
        expect(lambda o=output, t=t, k=options: scheduler.step(o, t, x, **k), message)
    scheduler.step(start(1), scheduler.timesteps[:1], start(1))
    expect(lambda: scheduler.step(x, second, x), r"shape \(3, .*began with \(1, ")
    odd = calibrated()
    odd = dataclasses.replace(odd, ops=(odd.ops[0]._replace(scale=0.5), *odd.ops[1:]))
    expect(lambda: with_plans(odd).set_timesteps(6), "begin")


def test_begin_indices_inside_a_step_are_refused():
    heun, started = ours(method="heun"), ours(method="ab4", start="rk")
    heun.set_timesteps(4)
    for index, said in ((1, ": "), (3, ": "), (99, ": "), (-1, " must be a whole number")):
        expect(lambda index=index: heun.set_begin_index(index), f"begin_index={index}{said}")
    started.set_timesteps(20)
    assert len(started.timesteps) > 20
    message = r"begin_index=10: .*none begins within start='rk'"
    expect(lambda: started.set_begin_index(10), message)


def test_step_noise_is_the_generators_and_has_the_posterior_variance():
    scheduler = ours(method="ddpm")
    x, made = torch.zeros(4, 1, 64, 64), []
    for _ in range(2):
        scheduler.set_timesteps(50)
        generator = torch.Generator().manual_seed(0)
        made.append(scheduler.step(x, scheduler.timesteps[0], x, generator=generator).prev_sample)
    grid = scheduler.plan.grid
    beta = float(ddim_ode.schedules.ddpm().scales(grid[1])[1])
    expected = beta * np.sqrt(1 - (grid[1] / grid[0]) ** 2)
    assert float(made[0].std()) == pytest.approx(expected, rel=0.02)
    assert torch.equal(*made)


def test_half_precision_keeps_a_wide_state():
    """400 steps with nothing predicted: x shrinks by ᾱ ratios that bfloat16 cannot tell from 1."""
    scheduler = ours(method="ddim", grid="time")
    scheduler.set_timesteps(400)
    x = first = start().bfloat16()
    for t in scheduler.timesteps[:-1]:
        x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
    top, last = ddim_ode.schedules.ddpm().scales(np.array(scheduler.plan.grid)[[0, -2]])[0]
    torch.testing.assert_close(x.float(), first.float() * float(last / top), rtol=2**-8, atol=0)


def test_a_learned_variance_from_the_pipeline_is_split():
    x = start(channels=3)
    out, ends = torch.cat([x, 100 * x], 1), []
    for answer in (out, x):
        scheduler = ours(method="ddim", variance_type="learned_range")
        scheduler.set_timesteps(2)
        ends.append(scheduler.step(answer, scheduler.timesteps[0], x).prev_sample)
    assert torch.equal(*ends)
    plain = ours(method="ddim")
    plain.set_timesteps(2)
    expect(lambda: plain.step(out, plain.timesteps[0], x), "learned variance")


def test_add_noise_and_get_velocity_are_theirs():
    x0, noise = start(), start(seed=2)
    for t in (torch.tensor([0, 500, 999]), torch.tensor([5])):
        for name in ("add_noise", "get_velocity"):
            mine, theirs = (getattr(s, name)(x0, noise, t) for s in (ours(), their_ddim()))
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours().add_noise(x0, noise, 5), ours().add_noise(x0, noise, t.expand(3)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            dict(timesteps=torch.tensor([5, -1, 5])),
            "timesteps: -1 must be above -1 and at most 999",
        ),
        (dict(timesteps=torch.tensor([0, 5, 1000])), "at most 999"),
        (dict(timesteps=torch.tensor([0, 5])), r"shape \(2,\) for 3 samples"),
        (
            dict(noise=start()[:1]),
            r"noise must have the shape of samples, \(3, 1, 8, 8\), got \(1, ",
        ),
        (dict(original_samples=start().byte()), "samples must be a floating tensor"),
    ],
)
def test_add_noise_takes_what_a_training_loop_gives(change, match):
    given = dict(original_samples=start(), noise=start(seed=2), timesteps=torch.tensor([0, 5, 9]))
    expect(lambda: ours().add_noise(**given | change), match)


def test_custom_timesteps():
    scheduler = ours(method="ddim")
    scheduler.set_timesteps(timesteps=[999, 600, 200, 50])
    assert scheduler.timesteps.tolist() == [999, 600, 200, 50]
    for options, times, message in (
        ({}, [50, 200], r"\[50\.0, 200\.0\] must fall"),
        ({}, [50, 50], r"\[50\.0, 50\.0\] must fall"),
        ({}, "all", "timesteps='all' must be real numbers"),
        (dict(grid="karras"), [999, 600], "where to step; drop grid="),
        (dict(final="sigma_min"), [999, 600], "where to step; drop final="),
    ):
        made = ours(method="ddim", **options)
        expect(lambda made=made, times=times: made.set_timesteps(timesteps=times), message)


@pytest.mark.parametrize(
    ("copied", "calls"),  # a shallow copy within a run shares it
    [(copy.copy, 0), (copy.deepcopy, 0), (copy.deepcopy, 2), (pickled, 0), (pickled, 2)],
)
def test_a_copy_is_a_scheduler_of_its_own(copied, calls):
    """Before a run and within one, interleaved with the first."""

    def stepped(scheduler, slope, x, t):
        return scheduler.step(torch.tanh(slope * x), t, x).prev_sample

    def begun():
        scheduler, x = ours(method="dpmpp2m"), start()
        scheduler.set_timesteps(5)
        for t in scheduler.timesteps[:calls]:
            x = stepped(scheduler, 1.0, x, t)
        return scheduler, x, scheduler.timesteps[calls:]

    one, x, times = begun()
    other, a, b = copied(one), x, x
    for t in times:
        a, b = stepped(one, 1.0, a, t), stepped(other, 2.0, b, t)
    assert not torch.equal(a, b)
    for end, slope in ((a, 1.0), (b, 2.0)):
        again, y, times = begun()
        for t in times:
            y = stepped(again, slope, y, t)
        assert torch.equal(y, end)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_pipeline_changes_in_place_counts(dtype):
    """And, in half precision, costs no digits where nothing was changed."""

    def masked(x):
        x[:, :, :4] = 0.25
        return x

    runs = []
    for change in (lambda x: x, masked, lambda x: masked(x.clone())):
        scheduler = ours(method="ddim")
        scheduler.set_timesteps(3)
        first, second, _ = scheduler.timesteps
        x = change(scheduler.step(start().to(dtype) * 0, first, start().to(dtype)).prev_sample)
        runs.append((scheduler.step(x * 0, second, x).prev_sample, scheduler._run.x))
    (kept, whole), edited, again = runs
    assert all(map(torch.equal, edited, again))
    assert torch.equal(edited[1][:, :, 4:], whole[:, :, 4:])
    assert not torch.equal(edited[0][:, :, :4], kept[:, :, :4])
    assert edited[1][:, :, :4].unique().numel() == 1


def test_a_step_that_failed_can_be_taken_again():
    scheduler, ends = ours(method="ddpm"), []
    for fails in (False, True):
        scheduler.set_timesteps(4)
        x = start()
        for t in scheduler.timesteps[:2]:
            if fails:
                call = lambda x=x, t=t: scheduler.step(x * 0.1, t, x, generator="none")  # noqa: E731
                expect(call, r"generator must be a torch\.Generator")
            generator = torch.Generator().manual_seed(1)
            x = scheduler.step(x * 0.1, t, x, generator=generator).prev_sample
        ends.append(x)
    assert torch.equal(*ends)
