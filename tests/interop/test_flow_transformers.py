"""Flow-matching transformers through ``load``: each row of the table against its class's own pipeline."""

import functools
import importlib
import inspect
import pkgutil

import numpy as np
import pytest
import torch
from flow_recipes import HERE, THERE, cogview4, end_of, network_of, recipe, tiny
from peers import load as peer
from refusals import expect
from tiny_pipelines import dit, off, start, unet

import ddim_ode
from ddim_ode.interop import families
from ddim_ode.interop.diffusers import load

TESTED = [*THERE, *HERE]


@pytest.mark.parametrize("name", TESTED)
def test_euler_is_the_pipelines_own_run(name):
    pipe, call = tiny(name)
    visited, told, asked = recipe(pipe, call)
    model = load(pipe)
    mu = asked.get("mu") if pipe.scheduler.config.use_dynamic_shifting else None
    # Mochi's pipeline has levels of its own, the others those that the table says.
    sigmas = asked["sigmas"] if name == "Mochi" else None
    grid = model.grid(3, mu, sigmas)
    assert off(visited[0], visited.end) > 0.1
    assert off(end_of(model, visited, told, grid), visited.end) < 1e-5
    # Another reading is seen: the agreement is not of a network that hears nothing.
    changed = model.replace(time=lambda t, s: 0.7 * model.time(t, s) + 0.1)
    assert off(end_of(changed, visited, told, grid), visited.end) > 1e-5


def test_a_dit_is_told_the_schedulers_time():
    """Its pipeline runs with no flow scheduler; told its time as by others, and with a variance behind."""
    scheduler, net = peer("diffusers").FlowMatchEulerDiscreteScheduler(shift=3.0), dit()
    model, x, labels = load(net, scheduler), start(2, 2), torch.tensor([1, 2])
    ours = ddim_ode.sample(model, x, "ddim", grid=model.grid(3), cond=dict(y=labels)).x
    scheduler.set_timesteps(3)
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = net(x, t.expand(2), class_labels=labels).sample[:, :2]
            x = scheduler.step(out, t, x).prev_sample
    assert off(ours, x) < 1e-5


def test_every_row_is_tested_and_every_transformer_is_decided():
    d = peer("diffusers")
    own = {type(network_of(tiny(name)[0])).__name__ for name in TESTED}
    rows = {
        n for n, row in families.FAMILIES.items() if families.FLOW in (row.only or [families.FLOW])
    }
    assert rows == own | {"DiTTransformer2DModel"}
    package = importlib.import_module("diffusers.models.transformers")
    classes = {}
    for part in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{part.name}")
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, d.ModelMixin) and cls.__module__ == module.__name__:
                classes[name] = cls
    assert len(classes) > 70
    for name, cls in classes.items():
        if name not in rows:
            refused = functools.partial(families.family_of, cls.__mro__, families.FLOW)
            expect(refused, "from_pipeline")
    assert set(families.FAMILIES) <= set(classes)


def test_a_derived_class_is_read_as_its_base():
    cls = type("Mine", (type(network_of(tiny("FluxPipeline")[0])),), {})
    assert families.family_of(cls.__mro__, families.FLOW).clock == "τ/T"


@pytest.mark.parametrize(
    "config",
    [
        dict(shift=5.0),
        dict(use_dynamic_shifting=True),
        dict(use_dynamic_shifting=True, time_shift_type="linear"),
        dict(use_dynamic_shifting=True, shift_terminal=0.1),
        dict(use_karras_sigmas=True),
    ],
)
@pytest.mark.parametrize("steps", [1, 4])
def test_grid_gives_a_flow_schedulers_levels(config, steps):
    """Also those that are handed over, and shifted by the picture's size."""
    scheduler = peer("diffusers").FlowMatchEulerDiscreteScheduler(**config)
    mu = 0.9 if "use_dynamic_shifting" in config else None
    if steps == 1 and ("shift_terminal" in config or (mu is None and "shift" not in config)):
        return  # a division by no steps, theirs
    handed = np.linspace(1, 1 / steps, steps)
    for options in ({}, dict(sigmas=handed)):
        grid = load(unet(), scheduler).grid(steps, mu, **options)
        scheduler.set_timesteps(steps, **({} if mu is None else dict(mu=mu)), **options)
        t = scheduler.sigmas.double().numpy()
        np.testing.assert_allclose(grid / (1 + grid), t, rtol=1e-6) if t[0] < 1 else None
        np.testing.assert_allclose(grid[1:] / (1 + grid[1:]), t[1:], rtol=1e-6, atol=1e-12)


def test_what_a_grid_refuses():
    d = peer("diffusers")
    model = load(unet(), d.FlowMatchEulerDiscreteScheduler())
    expect(lambda: model.grid(4, sigmas=[1.0, 0.5]), r"sigmas has shape \(2,\) for 4 steps")
    expect(lambda: model.grid(2, sigmas=[1.0, np.nan]), "does not go down|levels")
    expect(lambda: model.grid(2, sigmas=["a", "b"]), "sigmas=.* must be real numbers")
    dynamic = load(unet(), d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    for mu in (1e4, "a", np.nan):
        expect(functools.partial(dynamic.grid, 3, mu), "cannot take 3 steps|does not have")
    heun = load(unet(), d.FlowMatchHeunDiscreteScheduler())
    expect(lambda: heun.grid(2, sigmas=[1.0, 0.5]), "takes none here; drop sigmas")


def test_rows_of_a_batch_go_with_their_conditions():
    """By name, a row each, also where the network takes lists."""
    for name, words in (("FluxPipeline", "encoder_hidden_states"), ("ZImagePipeline", "cap_feats")):
        pipe, call = tiny(name)
        visited, told, _ = recipe(pipe, call)
        model, x = load(pipe), torch.cat([visited[0], visited[1]])
        one = told[words][0] if isinstance(told[words], list) else told[words]
        rows = torch.stack([one.reshape(-1, one.shape[-1]), one.reshape(-1, one.shape[-1]) * 0.5])
        others = {n: v for n, v in told.items() if n in ("img_ids", "txt_ids")}
        own = {
            n: v.expand(2, *v.shape[1:]) for n, v in told.items() if n in ("pooled_projections",)
        }
        own |= {n: v.expand(2) for n, v in told.items() if n == "guidance" and v is not None}
        both = model(x, 1.0, cond={words: rows, **own}, shared=others)[0]
        for i in range(2):
            part = {n: v[i : i + 1] for n, v in {words: rows, **own}.items()}
            alone = model(x[i : i + 1], 1.0, cond=part, shared=others)[0]
            torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(both[0], both[1])


# -- refused ------------------------------------------------------------------------------------
def test_what_one_network_is_not_all_of_is_refused():
    pipe, _ = tiny("WanPipeline")
    d = peer("diffusers")
    both = d.WanPipeline(
        None, None, pipe.vae, pipe.scheduler, pipe.transformer, pipe.transformer, 0.9
    )
    expect(lambda: load(both), "has transformer_2 beside its transformer, .*from_pipeline")
    assert load(both.transformer, both.scheduler).channels == 4


def test_networks_that_nobody_knows_are_refused(tmp_path):
    d = peer("diffusers")
    flow = d.FlowMatchEulerDiscreteScheduler()
    match = "CogView4Transformer2DModel .* flow .*from_pipeline.* FluxTransformer"
    expect(lambda: load(cogview4(d), flow), match)  # which is told the time before the shift
    flux, _ = tiny("FluxPipeline")
    assert load(flux.transformer, d.DDIMScheduler(clip_sample=False)).network_time(
        np.array([1.0])
    ) == pytest.approx(
        load(unet(), d.DDIMScheduler(clip_sample=False)).network_time(np.array([1.0])) / 1000
    )
    turned = d.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    expect(lambda: load(flux.transformer, turned), "invert_sigmas=True")

    class Own(d.ModelMixin, d.ConfigMixin):
        config_name = "config.json"

        @d.configuration_utils.register_to_config
        def __init__(self, in_channels=3):
            super().__init__()
            self.line = torch.nn.Linear(in_channels, in_channels)

        def forward(self, x, timestep, return_dict=False):
            return (self.line(x),)

    expect(lambda: load(Own(), flow), "Own with a scheduler of flow noise")
    own = load(Own(), d.DDIMScheduler(clip_sample=False))  # rows of a table, of three numbers
    assert own.axes is None
    assert ddim_ode.sample(own, torch.randn(5, 3), "ddim", steps=2).x.shape == (5, 3)


# -- files --------------------------------------------------------------------------------------
def test_a_variant_and_a_single_file(tmp_path):
    pipe, call = tiny("StableDiffusion3Pipeline")
    pipe.scheduler.save_pretrained(tmp_path / "scheduler")
    pipe.transformer.save_pretrained(tmp_path / "transformer", variant="fp16")
    visited, told, _ = recipe(pipe, call)
    model = load(tmp_path, variant="fp16")
    assert off(end_of(model, visited, told, model.grid(3)), visited.end) < 1e-5
    file = next((tmp_path / "transformer").glob("*.safetensors"))
    expect(lambda: load(file), "from_single_file")
