"""Any diffusers pipeline as a denoiser: its own run, from outside."""

import contextlib
import copy
import dataclasses
import gc
import os
import signal
import threading
import time
import warnings
import weakref

import numpy as np
import pytest
import torch
from flow_recipes import HERE, cogview4
from peers import load, quiet
from short_search import short_search
from tiny_pipelines import TINY, embedding, off, run_pipeline, seeded

import ddim_ode
from ddim_ode.interop import stand_in

pytest.importorskip("diffusers")

from ddim_ode.interop.diffusers import DDIMODEFlowScheduler, DDIMODEScheduler, from_pipeline

SD, FLUX = "StableDiffusionPipeline", "FluxPipeline"


@contextlib.contextmanager
def opened(name, pipe=None, **more):
    """(pipe, model) of a tiny pipeline."""
    own, call = TINY[name]()
    pipe = own if pipe is None else pipe
    call = call | dict(num_inference_steps=5, generator=seeded()) | more
    with quiet(), from_pipeline(pipe, **call) as model:
        yield pipe, model


def ours():
    return [t.name for t in threading.enumerate() if t.name.startswith("ddim_ode")]


def asked(model, sigma=1.0):
    """The pair at a state that is no noise of the pipeline's."""
    x = torch.linspace(-1, 1, model.latents.numel()).reshape(model.latents.shape)
    return torch.stack(model(x, sigma))


def is_its_own_run(pipe, call, most=1e-5):
    """Whether Euler's method ends where the pipeline does."""
    own = run_pipeline(pipe, call, 5).end
    with quiet(), from_pipeline(pipe, **call, num_inference_steps=5, generator=seeded()) as model:
        end = ddim_ode.sample(model, model.latents, "ddim", grid=model.grid()).x
    return off(end, own) < most


@pytest.mark.parametrize("name", sorted(TINY))
def test_euler_on_its_own_levels_is_the_pipelines_own_run(name):
    pipe, call = TINY[name]()
    own = run_pipeline(pipe, call, 5)
    before = dict(pipe.__dict__)
    with opened(name, pipe) as (_, model):
        sol = ddim_ode.sample(model, model.latents, "ddim", grid=model.grid())
        assert model.calls == 1 + len(own)
        assert model.deviation < 1e-6
        assert model.shape == tuple(model.latents.shape[1:])
        # Its network is nonlinear in the state and hears the time, or no equality here could fail.
        x = model.latents
        (at, eps), (_, of_twice) = (model(scale * x, 1.0) for scale in (1, 2))
        assert off(model(x, 3.0)[0], at) > 1e-3
        assert off(2 * eps, of_twice) > 1e-3
    assert off(sol.x, own.end[: model.batch]) < 1e-5
    now = pipe.__dict__
    assert now.keys() == before.keys()
    assert all(now[key] is before[key] for key in before)
    again = run_pipeline(pipe, call, 5)
    assert torch.equal(again.end, own.end)
    assert not ours()


SCHEDULERS = [
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", dict(use_karras_sigmas=True, prediction_type="v_prediction")),
    ("EulerDiscreteScheduler", dict(timestep_spacing="trailing", prediction_type="sample")),
    ("DDIMParallelScheduler", dict(timestep_spacing="trailing", clip_sample=False)),
    ("PNDMScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {}),
    ("DEISMultistepScheduler", {}),
    ("DDPMScheduler", dict(clip_sample=False)),
    ("LCMScheduler", {}),
]


@pytest.mark.parametrize(("scheduler", "config"), SCHEDULERS)
def test_the_network_is_the_same_behind_every_scheduler(scheduler, config):
    """Stochastic ones, and those that call twice a step or scale the state, included."""
    kind = config.get("prediction_type", "epsilon")
    pipe, call = TINY[SD]()
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, prediction_type=kind)
    with opened(SD, pipe) as (_, model):
        goal = asked(model)
    own = getattr(load("diffusers"), scheduler)
    betas = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    pipe.scheduler = own(**betas, **config)
    with opened(SD, pipe) as (_, model):
        assert off(asked(model), goal) < 1e-6
        assert (model.deviation is None) == (scheduler in ("LCMScheduler", "PNDMScheduler"))
    if scheduler == "EulerDiscreteScheduler":  # its states are of another scale until their end
        assert is_its_own_run(pipe, call)


def test_a_plan_that_was_fitted_through_it_runs_in_the_pipeline():
    pipe, call = TINY["DDPMPipeline"]()
    call |= dict(batch_size=4)
    with opened("DDPMPipeline", pipe, batch_size=4) as (_, model):
        start = ddim_ode.plan_for(model, "unipc2", nfe=3)
        plan = ddim_ode.calibrate(model, nfe=3, n=4, seed=0, start=start, progress=False)
        end = ddim_ode.sample(model, model.latents, plan=plan).x
    pipe.scheduler = DDIMODEScheduler.from_plans(plan, pipe.scheduler.config)
    assert off(run_pipeline(pipe, call, 3).end, end) < 1e-5


def test_a_scheduler_that_steps_otherwise_than_it_says_is_refused():
    base = load("diffusers").DDIMScheduler

    class Misnamed(base):
        def step(self, model_output, timestep, sample, **options):
            return super().step(-model_output, timestep, sample, **options)

    pipe, _ = TINY[SD]()
    pipe.scheduler = Misnamed.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="another kind"), opened(SD, pipe):
        pass
    assert type(pipe.scheduler) is Misnamed
    assert not ours()


def test_batches_are_cut_and_padded_and_samples_keep_their_prompts():
    prompts = torch.randn(3, 5, 8, generator=seeded())
    more = dict(prompt_embeds=prompts, negative_prompt_embeds=prompts.flip(0), guidance_scale=3.0)
    with opened(SD, **more) as (_, model):
        assert model.batch == 3
        x = torch.randn(8, *model.shape, generator=seeded())
        whole = model(x, 1.0)[0]
        for one in range(3):
            alone = {key: value[one : one + 1] for key, value in more.items() if "embeds" in key}
            with opened(SD, **more | alone) as (_, single):
                assert single.batch == 1
                assert off(whole[one::3], single(x[one::3], 1.0)[0]) < 1e-5
        levels = np.array([1.0, 3.0, 1.0, 0.5, 3.0, 2.0, 1.0, 9.0])
        each = [model.part(slice(i, i + 1), None)[0](x[i : i + 1], levels[i])[0] for i in range(8)]
        assert off(model(x, levels)[0], torch.cat(each)) < 1e-5
        some = model.part(torch.tensor([4, 2, 7]), None)[0]
        assert off(some(x[[4, 2, 7]], 1.0)[0], whole[[4, 2, 7]]) < 1e-5
        adaptive = ddim_ode.sample(model, x[:4], "bosh3", rtol=0.5, atol=0.5)
        for i in range(4):
            part = model.part(slice(i, i + 1), None)[0]
            lonely = ddim_ode.sample(part, x[i : i + 1], "bosh3", rtol=0.5, atol=0.5)
            assert off(adaptive.x[i : i + 1], lonely.x) < 1e-4
            assert adaptive.sample_nfe[i] == lonely.sample_nfe[0]


def test_images_per_prompt_are_rows():
    with opened(SD, num_images_per_prompt=2) as (_, model):
        assert model.batch == 2
        assert ddim_ode.sample(model, model.latents, "ddim", steps=2).x.shape[0] == 2


@pytest.mark.parametrize(
    ("name", "together"),
    [("DDPMPipeline", dict(batch_size=4)), ("SanaPipeline", dict(num_images_per_prompt=4))],
)
@short_search()
def test_every_tool_takes_it(name, together):
    with opened(name, **together) as (_, model):
        x = model.latents
        ends = ddim_ode.sample(model, x, "bosh3", rtol=0.1, atol=0.1, error_norm="batch")
        assert set(ends.status.tolist()) == {"success"}
        options = dict(nfe=[3], n=2, reference=ends.x[:2].double(), progress=False)
        rows = ddim_ode.compare(model, ["ddim", "unipc2"], **options).to_dicts()
        assert [row["method"] for row in rows][:2] == ["ddim", "unipc2"]
        assert ddim_ode.profile(model, n=2, nfe=[3], progress=False).grid(3)[-1] == 0
        found = ddim_ode.diagnose(model, data=x, n=2, steps=3)
        assert "half-precision" in found.not_checked


def test_prompts_are_encoded_once_and_a_run_that_is_over_goes_on_without_a_seam(monkeypatch):
    pipe, _ = TINY[SD]()
    encoded = []
    own = type(pipe).encode_prompt
    listening = lambda *a, **o: encoded.append(0) or own(*a, **o)  # noqa: E731
    monkeypatch.setattr(type(pipe), "encode_prompt", listening)
    with opened(SD, pipe) as (_, model):
        goal = ddim_ode.sample(model, model.latents, "ddim", steps=8).x
        assert len(encoded) == 1
    monkeypatch.setattr(stand_in, "CALLS", 3)
    with opened(SD, pipe) as (_, model):
        assert torch.equal(ddim_ode.sample(model, model.latents, "ddim", steps=8).x, goal)
        assert len(encoded) > 2
    encoded.clear()
    with opened("StableDiffusionImg2ImgPipeline") as (_, model):
        goal = asked(model)
        for _ in range(8):
            assert torch.equal(asked(model), goal)


def test_what_the_pipeline_raises_is_raised_and_the_next_call_begins_anew():
    with opened(SD) as (pipe, model):
        goal, calls, forward = asked(model), [], pipe.unet.forward

        def failing(*args, **options):
            calls.append(0)
            if len(calls) == 3:
                raise KeyError("the third")
            return forward(*args, **options)

        pipe.unet.forward = failing
        with pytest.raises(KeyError, match="the third") as raised:
            ddim_ode.sample(model, model.latents, "ddim", steps=6)
        assert any(entry.name == "failing" for entry in raised.traceback)
        assert torch.equal(asked(model), goal)
        pipe.unet.forward = lambda *a, **o: (forward(*a, **o)[0] * float("nan"),)
        sol = ddim_ode.sample(model, model.latents, "ddim", steps=2)
        assert sol.status.tolist() == ["non_finite"]
    assert not ours()


def test_ctrl_c_leaves_the_model_usable():
    with opened(SD) as (pipe, model):
        goal, forward = asked(model), pipe.unet.forward

        def slow(*args, **options):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            return forward(*args, **options)

        pipe.unet.forward = slow
        # which a shell that runs the tests in the background has set to be ignored
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            asked(model, 2.0)
        signal.signal(signal.SIGINT, before)
        pipe.unet.forward = forward
        assert torch.equal(asked(model), goal)
    assert not ours()


def test_misuse_is_named():
    pipe, call = TINY[FLUX]()
    with pytest.raises(ValueError, match=r"guidence.*guidance_scale"):
        from_pipeline(pipe, **call, guidence=3.0)
    for thing in (None, torch.nn.Linear(1, 1), type(pipe)):
        with pytest.raises(ValueError, match="diffusers pipeline"):
            from_pipeline(thing)
    with pytest.raises(ValueError, match="Provide either `prompt`"):
        from_pipeline(pipe)
    with opened(FLUX, pipe) as (_, model):
        with pytest.raises(ValueError, match="in use"):
            from_pipeline(pipe, **call)
        for conditions in (dict(cond={"y": torch.zeros(1)}), dict(shared={"y": 1})):
            with pytest.raises(ValueError, match=r"'y'.*arguments of its pipeline"):
                ddim_ode.sample(model, model.latents, "ddim", steps=2, **conditions)
        with pytest.raises(ValueError, match=r"states are \(B, 16, 16\)"):
            ddim_ode.sample(model, torch.zeros(1, 16, 9), "ddim", steps=2)
        with pytest.raises(ValueError, match="no gradients"):
            ddim_ode.log_likelihood(model, model.latents, sigma_max=10.0, rtol=0.5, atol=0.5)
        with pytest.raises(TypeError, match="pickle"):
            copy.deepcopy(model)
        with pytest.raises(RuntimeError, match="in use"):
            pipe(**call)
        with pytest.raises(RuntimeError, match="was called"):
            asked(model)
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        asked(model)
    assert run_pipeline(pipe, call, 2).end.isfinite().all()


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("StableDiffusionControlNetPipeline", "control_guidance_end", 0.5),
        ("StableDiffusionControlNetPipeline", "control_guidance_start", [0.1]),
        ("Lumina2Pipeline", "cfg_trunc_ratio", 0.5),
        ("StableDiffusion3Pipeline", "skip_guidance_layers", [0]),
        ("CogVideoXPipeline", "use_dynamic_cfg", True),
    ],
)
def test_what_acts_by_the_count_of_steps_is_refused(name, argument, value):
    refused = pytest.raises(ValueError, match=f"{argument}.*share of the pipeline's steps")
    with refused, opened(name, **{argument: value}):
        pass


def test_schedulers_that_are_no_ode_of_ours_are_refused_with_the_reason():
    pipe, call = TINY[SD]()
    reasons = dict(SCMScheduler="TrigFlow", CMStochasticIterativeScheduler="jumps to data")
    for name, reason in reasons.items():
        pipe.scheduler = getattr(load("diffusers"), name)()
        with pytest.raises(ValueError, match=f"{name}.*{reason}"):
            from_pipeline(pipe, **call)


def test_pipelines_that_change_the_state_between_steps_are_refused():
    pipe, _ = TINY["StableDiffusionInpaintPipeline"]()
    pipe.register_modules(unet=TINY[SD]()[0].unet)  # four channels: it masks after each step
    turned = lambda p, i, t, kept: dict(latents=-kept["latents"])  # noqa: E731
    in_place = lambda p, i, t, kept: kept["latents"].mul_(-1).new_tensor(0) or {}  # noqa: E731
    for name, own, more in (
        ("StableDiffusionInpaintPipeline", pipe, {}),
        (SD, None, dict(callback_on_step_end=turned)),
        (SD, None, dict(callback_on_step_end=in_place)),
    ):
        changed = pytest.raises((ValueError, RuntimeError), match="changed the state")
        with opened(name, own, **more) as (_, model), changed:
            ddim_ode.sample(model, model.latents.clone(), "ddim", steps=3)
    assert not ours()


def test_callbacks_are_called_and_may_interrupt():
    seen = []

    def watching(pipe, i, t, kept):
        seen.append(float(t))
        return {}

    def interrupting(pipe, i, t, kept):
        pipe._interrupt = True
        return {}

    with opened(FLUX) as (_, model):
        goal = asked(model)
    with opened(FLUX, callback_on_step_end=watching) as (_, model):
        assert torch.equal(asked(model), goal)
        assert torch.equal(asked(model, 3.0), asked(model, 3.0))
        assert seen == [500, 750, 750]  # each step ends as the next question is asked
    ends = pytest.raises(RuntimeError, match="interrupt")
    with opened(FLUX, callback_on_step_end=interrupting) as (_, model), ends:
        asked(model)

    def asking(pipe, i, t, kept):
        asked(model)
        return {}

    itself = pytest.raises(RuntimeError, match="asks itself")
    with opened(FLUX, callback_on_step_end=asking) as (_, model), itself:
        asked(model)
    assert not ours()


def test_threads_take_turns_and_torch_states_reach_the_pipeline():
    with opened(FLUX) as (_, model):
        starts = [model.latents * scale for scale in (0.5, 1.0, 1.5)]
        goals = [ddim_ode.sample(model, x, "ddim", steps=5).x for x in starts]
        ends = [None] * 3

        def work(i):
            ends[i] = ddim_ode.sample(model, starts[i], "ddim", steps=5).x

        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(map(torch.equal, ends, goals))
        plain = asked(model)
    with torch.autocast("cpu", torch.bfloat16), opened(FLUX) as (_, model):
        assert 1e-5 < off(asked(model), plain) < 0.1
    with torch.inference_mode(), opened(FLUX) as (_, model):
        assert torch.equal(asked(model), plain)


def test_half_precision():
    pipe, call = TINY[FLUX]()
    with opened(FLUX, pipe) as (_, model):
        plain = asked(model)
    pipe.to(torch.bfloat16)
    call = {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    with quiet(), from_pipeline(pipe, **call, generator=seeded()) as model:
        assert model.dtype == torch.bfloat16
        found = asked(model)
        assert found.dtype == torch.float32
        assert off(found, plain) < 0.05


def test_nothing_grows_and_nothing_lives_on(monkeypatch):
    monkeypatch.setattr(stand_in, "CALLS", 100)  # a tensor of as many views is made at each start
    pipe, call = TINY["DDPMPipeline"]()
    pipe.maybe_free_model_hooks, freed = lambda: freed.append(0), []
    call |= dict(num_inference_steps=2)
    for count in range(70):
        with from_pipeline(pipe, **call) as model:
            asked(model)
        del model
        if count == 9:
            gc.collect()
            objects = len(gc.get_objects())
    gc.collect()
    assert len(gc.get_objects()) < objects + 30  # after 60 more calls
    assert len(freed) == 70
    assert not ours()
    model = from_pipeline(pipe, **call)
    gone = weakref.ref(model)
    assert ours()
    del model
    gc.collect()
    assert gone() is None
    assert not ours()
    assert type(pipe.scheduler).__module__.startswith("diffusers.")


def test_subclasses_and_unknown_schedulers_of_the_kind_are_read():
    """A class that config does not name is read by its alphas."""
    d = load("diffusers")
    pipe, call = TINY[FLUX]()
    own = type("Own", (d.FlowMatchEulerDiscreteScheduler,), {})
    pipe.scheduler = own.from_config(pipe.scheduler.config)
    assert is_its_own_run(pipe, call)
    body = {n: v for n, v in vars(d.DDIMScheduler).items() if n not in ("__dict__", "__weakref__")}
    strange = type("StrangeScheduler", d.DDIMScheduler.__bases__, body)
    pipe, call = TINY["DDPMPipeline"]()
    pipe.__dict__["scheduler"] = strange(clip_sample=False, timestep_spacing="trailing")
    assert is_its_own_run(pipe, call)


@pytest.mark.parametrize("name", [FLUX, "StableDiffusion3Pipeline", SD])
def test_a_fitted_plan_remembers_how_the_levels_were_shifted(name):
    pipe, call = TINY[name]()
    flow = name != SD
    config = pipe.scheduler.config
    if name == FLUX:  # mu is a line in the number of tokens, here 16
        slope = (config.max_shift - config.base_shift) / (4096 - 256)
        placing = {"mu": pytest.approx(config.base_shift + slope * (16 - 256))}
    elif flow:
        pipe.scheduler.set_shift(4.0)  # which leaves its configuration at 3
        placing = {"shift": 4.0}
    else:
        placing = None
    with opened(name, pipe) as (_, model):
        assert model.placing == placing
        if flow:
            plan = ddim_ode.plan_for(model, "ddim", nfe=3)
            if name == FLUX:  # the slower one is not fitted
                plan = dataclasses.replace(plan, fit=dict(placing=model.placing))
            else:
                with quiet():
                    plan = ddim_ode.calibrate(model, 3, n=4, start=plan, progress=False)
                assert plan.fit["placing"] == placing
    if not flow:
        return
    config = {**config, "shift": 4.0}
    for of, told in ((config, 0), ({**config, "shift": 5.0, "max_shift": 3.0}, 1)):
        pipe.scheduler = DDIMODEFlowScheduler.from_plans(plan, of)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipe(**call, num_inference_steps=3)
        assert told == sum("was calibrated at placing" in str(w.message) for w in caught)


def test_continuous_times_go_with_v_prediction_alone():
    """With other predictions the scheduler tells whole times, whatever its timestep_type."""
    d = load("diffusers")
    pipe, call = TINY[SD]()
    pipe.scheduler = d.EulerDiscreteScheduler(timestep_type="continuous")
    assert is_its_own_run(pipe, call, 1e-4)


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("WanPipeline", None),
        ("StableAudioPipeline", None),
        (SD, "EulerDiscreteScheduler"),
        (SD, "UniPCMultistepScheduler"),
    ],
)
def test_a_pipeline_that_reads_sigmas_of_its_step_finds_the_level_in_question(name, scheduler):
    pipe, _ = TINY[name]()
    if scheduler is not None:
        pipe.scheduler = getattr(load("diffusers"), scheduler).from_config(pipe.scheduler.config)
    read = []
    net = pipe.unet if name == SD else pipe.transformer
    net.register_forward_pre_hook(
        lambda *_: read.append(float(pipe.scheduler.sigmas[len(read)])) or None
    )
    own = copy.deepcopy(pipe.scheduler)
    own.set_timesteps(5)
    with opened(name, pipe, guidance_scale=1.0) as (_, model):
        assert read == [float(own.sigmas[0])]
        for k in (3, 1, 2, 4, 3, 1, 2, 4):  # more than the pipeline has steps
            asked(model, float(model.levels[k]))
            assert read[-1] == pytest.approx(float(own.sigmas[k]), rel=1e-4)


@short_search()
def test_a_profile_outlives_its_pipeline():
    """Of other numbers of calls than those that were tried, its surrogate says what to expect."""
    with opened("DDPMPipeline") as (pipe, model):
        profile = ddim_ode.profile(model, nfe=[3, 4], n=2, progress=False)
        assert not model.closed
    assert model.closed
    tried, other = profile.recommend(3), profile.recommend(5)
    assert (tried.measured, other.measured) == (True, False)
    scheduler = DDIMODEScheduler.from_config(pipe.scheduler.config, method="unipc2", grid=profile)
    scheduler.set_timesteps(5)
    assert len(scheduler.timesteps) == 5
    figure = profile.plot()
    low, high = figure.axes[1].get_ylim()
    assert any(low <= tick <= high for tick in figure.axes[1].get_yticks())


def test_hooks_and_rescaled_guidance_are_the_pipelines_own():
    """Hooks as of enable_model_cpu_offload: they bring a network for its call and take it away again."""
    pipe, call = TINY[SD]()
    seen, kept = [], {n: v.clone() for n, v in pipe.unet.state_dict().items()}

    def fetch(module, arguments):
        seen.append(threading.current_thread().name)
        module.load_state_dict(kept)

    def leave(module, arguments, out):
        for weight in module.parameters():
            weight.zero_()

    pipe.unet.register_forward_pre_hook(fetch)
    pipe.unet.register_forward_hook(leave)
    call |= dict(guidance_scale=5.0)
    plain, own = (run_pipeline(pipe, call | dict(guidance_rescale=r), 5).end for r in (0.0, 0.7))
    assert off(plain, own) > 1e-3
    assert is_its_own_run(pipe, call | dict(guidance_rescale=0.7))
    assert seen[-1].startswith("ddim_ode")


def test_a_time_of_its_own_beside_the_level_is_heard():
    """CogView4's network is told the time before the shift, Mochi's one that rises to the data."""
    d = load("diffusers")
    net = cogview4(d)
    for kind in ("linear", "exponential"):
        scheduler = d.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, time_shift_type=kind, base_shift=0.9
        )
        with quiet():
            pipe = d.CogView4Pipeline(None, None, None, net, scheduler)
            pipe.set_progress_bar_config(disable=True)
        words = dict(prompt_embeds=embedding(1, 5, 8), guidance_scale=1.0, output_type="latent")
        call = words | dict(height=64, width=64)
        assert is_its_own_run(pipe, call)
        strange = dict(timesteps=[900, 500, 100], sigmas=[1.0, 0.6, 0.3], num_inference_steps=3)
        with pytest.raises(ValueError, match="leave timesteps= out"):
            from_pipeline(pipe, **call, **strange)
    pipe, call = HERE["Mochi"](d)
    pipe.set_progress_bar_config(disable=True)
    assert is_its_own_run(pipe, call)
