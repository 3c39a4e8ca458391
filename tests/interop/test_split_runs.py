"""Runs that begin later on: from a picture with noise, or from a state that another run hands over."""

import numpy as np
import pytest
import torch
from peers import load as peer
from peers import quiet
from refusals import expect
from tiny_pipelines import calibrated, ours, start, text_unet, with_plans

import ddim_ode
from ddim_ode import exact
from ddim_ode.solvers.methods import METHODS as REGISTRY

pytest.importorskip("diffusers")

from ddim_ode.interop.diffusers import DDIMODEScheduler, load

SCHEDULE = ddim_ode.schedules.ddpm()
MIXTURE = exact.gaussian_mixture(
    [0.6, 0.4], [[-1.5, 0.5], [1.2, -0.8]], [[0.16, 0.09], [0.0625, 0.25]], SCHEDULE
)
X = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


def eps(x, t):
    return MIXTURE(x, SCHEDULE.sigma(float(t) + 1))[1].to(x.dtype)


OF_THE_ODE = [name for name, method in REGISTRY.items() if method.order or name == "ddpm"]


def varied(low, middle, high):
    """Every method at one share, one of each number of calls a step, and a multistep one, at all three."""
    some = ("ddim", "heun", "dpm3", "rk4", "unipc3")
    return [
        *((method, middle) for method in OF_THE_ODE),
        *((method, share) for method in some for share in (low, high)),
    ]


def walk(scheduler, x, times, generator=None):
    for t in times:
        x = scheduler.step(eps(x, t), t, x, generator=generator).prev_sample
    return x


def cut(method, share, steps, **options):
    """What a base and a refiner do with the list of times: the one counts those above the cut, the other
    those below, and one more where a method of two calls has an even number of them."""
    base, refiner = (ours(method=method, **options) for _ in range(2))
    level = round(1000 - share * 1000)
    generator = torch.Generator().manual_seed(1)
    base.set_timesteps(steps)
    x = walk(base, X, base.timesteps[: int((base.timesteps >= level).sum())], generator)
    refiner.set_timesteps(steps)
    left = int((refiner.timesteps < level).sum())
    left += refiner.order == 2 and left % 2 == 0
    begin = len(refiner.timesteps) - left
    refiner.set_begin_index(begin)
    return walk(refiner, x, refiner.timesteps[begin:], generator)


@pytest.mark.parametrize(("method", "share"), varied(0.8, 0.5, 0.2))
def test_a_run_shared_by_two_is_the_run_in_one_or_refused(method, share):
    """A method of one call a step begins anew at the cut, which costs a multistep one what a start does."""
    whole = ours(method=method)
    whole.set_timesteps(20)
    expected = walk(whole, X, whole.timesteps, torch.Generator().manual_seed(1))
    if whole.order == 2:
        expect(lambda: cut(method, share, 20), "calls twice a step, and add_noise did not make")
        return
    calls = int((whole.timesteps >= round(1000 - share * 1000)).sum())
    if calls % whole.order:
        with pytest.raises(
            ValueError, match=f"begin_index={calls}: .* inside a step of '{method}'"
        ):
            cut(method, share, 20)
        return
    off = float((cut(method, share, 20) - expected).square().mean().sqrt())
    assert off < (1e-2 if REGISTRY[method].multistep else 1e-6)


@pytest.mark.parametrize("method", ["heun", "midpoint"])
def test_a_run_of_as_many_calls_as_twice_its_steps_is_refused_as_well(method):
    for share in (0.8, 0.5, 0.2):
        with pytest.raises(ValueError, match=r"inside a step of|add_noise did not make"):
            cut(method, share, 20, final="sigma_min")


@pytest.mark.parametrize(("method", "strength"), varied(0.3, 0.6, 1.0))
def test_a_picture_with_noise_is_solved_from_its_level(method, strength):
    """As image-to-image pipelines do it, for whatever a step costs."""
    scheduler, steps = ours(method=method, grid="time"), 10
    scheduler.set_timesteps(steps)
    skipped = steps - int(steps * strength)
    begin = skipped * scheduler.order
    times = scheduler.timesteps[begin:]
    scheduler.set_begin_index(3 * scheduler.order)
    scheduler.set_begin_index(begin)  # from the whole run again, not from there
    x0 = torch.tanh(X)
    noised = scheduler.add_noise(x0, X, times[:1])
    made = walk(scheduler, noised, times, torch.Generator().manual_seed(1))
    grid = np.array(scheduler._whole.grid)[skipped:]
    alpha, beta = (float(v) for v in SCHEDULE.scales(grid[0]))
    start_ = "ramp" if REGISTRY[method].rk_steps else None
    torch.testing.assert_close(noised, alpha * x0 + beta * X, rtol=1e-5, atol=1e-6)
    if method != "ddpm":  # whose noise is the generator's here, and a seed's there
        told = ddim_ode.Denoiser(lambda x, t: eps(x, t[0]), SCHEDULE, time_offset=-1.0)
        expected = ddim_ode.sample(told, noised, method, grid=grid, start=start_).x
        torch.testing.assert_close(made, expected, rtol=0, atol=2e-4)
    assert scheduler.begin_index == begin
    assert scheduler.step_index == len(scheduler.timesteps)
    scheduler.set_begin_index(0)
    assert scheduler.plan.grid == scheduler._whole.grid


def test_a_level_of_ones_own_begins_a_run_of_its_own():
    """The way out that the refusal names."""
    scheduler = ours(method="heun", grid="time")
    scheduler.set_timesteps(10)
    levels = [float(t) for t in scheduler.timesteps[[0, *range(2, 19, 2)]]]
    scheduler.set_begin_index(8)
    with pytest.raises(ValueError, match=r"begins set_timesteps\(timesteps=\[\.\.\.\]\)"):
        walk(scheduler, X, scheduler.timesteps[8:])
    expected = walk_noised(scheduler, 8)
    again = ours(method="heun")
    again.set_timesteps(timesteps=levels[4:])
    torch.testing.assert_close(walk(again, X, again.timesteps), expected, rtol=1e-4, atol=1e-4)


def walk_noised(scheduler, begin):
    """From X at that level, as add_noise makes it of a picture that it leaves nothing of."""
    times = scheduler.timesteps[begin:]
    scheduler.set_begin_index(begin)
    scheduler.add_noise(X, X, times[:1])
    return walk(scheduler, X, times)


# -- compiled plans ---------------------------------------------------------------------------
def test_a_compiled_plan_is_run_whole():
    scheduler = with_plans(calibrated())
    scheduler.set_timesteps(6)
    top = scheduler.plan.grid[0]
    match = rf"a compiled plan runs whole, from σ={top:.4g}.*sigma_max=\), and run it at strength=1"
    expect(lambda: scheduler.set_begin_index(3), match)
    scheduler.set_begin_index(0)


def test_a_plan_calibrated_for_a_picture_runs_at_full_strength():
    """The way out that the refusal names: begun at the level that a strength of 0.4 would have."""
    level = float(SCHEDULE.sigma(400.0))
    plan = ddim_ode.plan("unipc2", SCHEDULE, np.geomspace(level, 0.02, 6))
    scheduler = type(ours()).from_plans(plan, ours().config)
    scheduler.set_timesteps(plan.nfe)
    scheduler.set_begin_index(0)
    noised = scheduler.add_noise(torch.tanh(X), X, scheduler.timesteps[:1])
    alpha, beta = (float(v) for v in SCHEDULE.scales(level))
    torch.testing.assert_close(noised, alpha * torch.tanh(X) + beta * X, rtol=1e-5, atol=1e-6)
    expected = ddim_ode.sample(MIXTURE, noised, plan=plan).x
    torch.testing.assert_close(
        walk(scheduler, noised, scheduler.timesteps), expected, rtol=0, atol=1e-4
    )


# -- inside unmodified pipelines ---------------------------------------------------------------
@pytest.fixture(scope="module")
def parts():
    diffusers = peer("diffusers")
    unet = text_unet(
        in_channels=4, out_channels=4, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=56,
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=2, latent_channels=4, sample_size=8
    )
    empty = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return dict(unet=unet, vae=vae, **empty)


def run(name, parts, method, **call):
    """Latents of a pipeline with our scheduler in place of its own."""
    diffusers = peer("diffusers")
    config = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    ).config
    scheduler = DDIMODEScheduler.from_config(config, method=method)
    generator = torch.Generator().manual_seed(2)
    words = dict(
        prompt_embeds=torch.randn(1, 3, 8, generator=generator),
        pooled_prompt_embeds=torch.randn(1, 8, generator=generator),
    )
    with quiet():
        pipe = getattr(diffusers, name)(**parts, scheduler=scheduler, add_watermarker=False)
        pipe.set_progress_bar_config(disable=True)
        made = pipe(
            **words, num_inference_steps=20, guidance_scale=1.0, output_type="latent", **call
        )
    return made.images, scheduler


@pytest.mark.parametrize(("method", "most"), [("ddim", 0.0), ("dpmpp2m", 5e-3), ("heun", None)])
def test_base_and_refiner_pipelines(parts, method, most):
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    base = dict(height=8, width=8, latents=x)
    whole, scheduler = run("StableDiffusionXLPipeline", parts, method, **base)
    assert float(scheduler.timesteps[0]) == pytest.approx(951.0)  # as of the one it replaced
    half, _ = run("StableDiffusionXLPipeline", parts, method, denoising_end=0.5, **base)
    refined = dict(image=half, denoising_start=0.5)
    if most is None:
        with pytest.raises(ValueError, match="cut between the calls of a step"):
            run("StableDiffusionXLImg2ImgPipeline", parts, method, **refined)
        return
    end, _ = run("StableDiffusionXLImg2ImgPipeline", parts, method, **refined)
    assert float((end - whole).abs().max()) <= most * float(whole.std())


def test_image_to_image_with_two_calls_a_step(parts):
    x0 = start(1, 4)
    made, scheduler = run(
        "StableDiffusionXLImg2ImgPipeline",
        parts,
        "heun",
        image=x0,
        strength=0.6,
        generator=torch.Generator().manual_seed(3),
    )
    whole = np.array(scheduler._whole.grid)
    assert scheduler.plan.grid == tuple(whole[8:])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))
    noised = scheduler.add_noise(x0, noise, scheduler.timesteps[16:17])
    generator = torch.Generator().manual_seed(2)
    words = torch.randn(1, 3, 8, generator=generator)
    cond = dict(
        encoder_hidden_states=words,
        text_embeds=torch.randn(1, 8, generator=generator),
        time_ids=torch.tensor([[8.0, 8.0, 0.0, 0.0, 8.0, 8.0]]),
    )
    model = load(parts["unet"], scheduler)
    expected = ddim_ode.sample(model, noised, "heun", grid=whole[8:], cond=cond).x
    assert made.shape == expected.shape
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-3)
