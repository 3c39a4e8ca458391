"""Folders of diffusers: variants and shards of weights are found, and no pickle is ever opened."""

import json
import pickle
import warnings

import pytest
import torch
from peers import load as peer
from peers import quiet
from refusals import expect
from safetensors.torch import load_file
from tiny_pipelines import start, unet

import ddim_ode
from ddim_ode.interop.config import InteropWarning
from ddim_ode.interop.diffusers import load

WEIGHTS = "diffusion_pytorch_model"


def scheduler():
    return peer("diffusers").DDIMScheduler(clip_sample=False)


def saved(folder, net=None, **options):
    """A pipeline's directory whose network was saved with these options."""
    with quiet():
        (net or unet()).save_pretrained(folder / "unet", **options)
        scheduler().save_pretrained(folder / "scheduler")
    return folder


def answer(model):
    return model(start(), 1.0)[0]


@pytest.fixture
def unopened(monkeypatch):
    """Makes it an error to open a pickle, by whatever way."""

    def refused(*args, **kwargs):
        raise AssertionError(f"unpickled: {args}")

    monkeypatch.setattr(torch, "load", refused)
    monkeypatch.setattr(pickle, "load", refused)
    monkeypatch.setattr(pickle, "Unpickler", refused)


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
@pytest.mark.parametrize("sharded", [False, True])
def test_the_only_weights_are_taken_by_name(tmp_path, variant, sharded):
    net = unet().to(dict(fp16=torch.float16, bf16=torch.bfloat16).get(variant))
    shards = dict(max_shard_size="2KB") if sharded else {}
    saved(tmp_path, net, variant=variant, **shards)
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1 or not sharded
    with pytest.warns(InteropWarning, match=f"variant='{variant}': the only weights in"):
        found = load(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InteropWarning)
        named = load(tmp_path, variant=variant)
    expected = load(net.float(), scheduler())
    for model in (found, named):
        assert torch.equal(answer(model), answer(expected))
    half = load(tmp_path, variant=variant, dtype=torch.bfloat16)
    assert {p.dtype for p in half.net.parameters()} == {torch.bfloat16}


def test_the_plain_weights_go_before_others(tmp_path):
    plain, other = unet(), unet()
    with torch.no_grad():
        other.conv_out.bias += 1.0
    saved(tmp_path, other, variant="non_ema")
    saved(tmp_path, plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InteropWarning)
        a, b = load(tmp_path), load(tmp_path, variant="non_ema")
    assert torch.equal(answer(a), answer(load(plain, scheduler())))
    assert torch.equal(answer(b), answer(load(other, scheduler())))
    expect(lambda: load(tmp_path, variant="fp16"), "no weights of variant='fp16'; .*'non_ema'")
    (tmp_path / f"unet/{WEIGHTS}.safetensors").unlink()
    saved(tmp_path, plain, variant="fp16")
    expect(lambda: load(tmp_path), "several variants; give variant= one of 'fp16', 'non_ema'")
    assert torch.equal(answer(load(tmp_path, variant="fp16")), answer(a))


def test_a_variant_is_of_files_and_a_file_is_told_how_to_be_read(tmp_path):
    file = saved(tmp_path) / f"unet/{WEIGHTS}.safetensors"
    expect(lambda: load(tmp_path, variant="fp16"), "variant='fp16'; drop variant=")
    expect(lambda: load(unet(), scheduler(), variant="fp16"), "in memory; drop variant='fp16'")
    expect(lambda: load(file, scheduler()), "give the directory.*from_single_file")
    with pytest.raises(FileNotFoundError, match="no such directory"):
        load(tmp_path / "gone.safetensors", scheduler())


def test_shards_are_read_as_one(tmp_path):
    saved(tmp_path, max_shard_size="2KB")
    assert (tmp_path / f"unet/{WEIGHTS}.safetensors.index.json").is_file()
    assert torch.equal(answer(load(tmp_path)), answer(load(unet(), scheduler())))
    next((tmp_path / "unet").glob("*-00001-of-*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"-00001-of-.*, which is not there"):
        load(tmp_path)


INDICES = [
    f"{WEIGHTS}.safetensors.index.json",
    f"{WEIGHTS}.safetensors.index.fp16.json",
    f"{WEIGHTS}.safetensors.fp16.index.json",
]


@pytest.mark.parametrize("index", INDICES)
def test_an_index_names_safetensors_beside_it_and_nothing_else(tmp_path, unopened, index):
    folder = saved(tmp_path) / "unet"
    weights = folder / f"{WEIGHTS}.safetensors"
    state = load_file(weights)
    for file in ("w.bin", "w", "w.gguf"):
        (folder / file).write_bytes(pickle.dumps(0))
    (tmp_path / "w.safetensors").write_bytes(weights.read_bytes())
    variant = "fp16" if "fp16" in index else None
    outside = ("../w.safetensors", "/etc/w.safetensors", "..")
    for name in ("w.bin", "w", "w.gguf", *outside, 5, None):
        shards = dict(metadata={}, weight_map=dict.fromkeys(state, name))
        (folder / index).write_text(json.dumps(shards))
        message = r"index.*names .*only \.safetensors files beside it"
        expect(lambda: load(tmp_path, variant=variant), message)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".PT"])
def test_folders_and_files_of_pickles_are_refused(tmp_path, unopened, suffix):
    folder = saved(tmp_path) / "unet"
    pickled = (folder / f"{WEIGHTS}.safetensors").rename(folder / f"{WEIGHTS}{suffix}")
    pickled.write_bytes(pickle.dumps(0))
    for source in (tmp_path, folder, pickled):
        with pytest.raises(ValueError, match=f"{WEIGHTS}{suffix}: pickled weights are not read"):
            load(source, scheduler())


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"weight_map": 5}'])
def test_an_index_gone_wrong_is_named(tmp_path, text):
    (saved(tmp_path) / "unet" / INDICES[0]).write_text(text)
    expect(lambda: load(tmp_path), r"safetensors\.index\.json: ")


def test_weights_that_are_none_or_are_not_there_are_named(tmp_path, unopened):
    file = saved(tmp_path) / f"unet/{WEIGHTS}.safetensors"
    whole = file.read_bytes()
    for content in (pickle.dumps(0), whole[:1000]):
        file.write_bytes(content)
        expect(lambda: load(tmp_path), "its weights cannot be read")
    file.rename(file.with_name("lora.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"no diffusion_pytorch_model\.safetensors \(lora"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["MultiAdapter", "MultiControlNetModel", "os", "DDPMScheduler"])
def test_classes_that_are_no_models_are_refused(tmp_path, name):
    config = saved(tmp_path) / "unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": name}))
    expect(lambda: load(tmp_path), f"'{name}' is no model of diffusers")


def test_a_profile_in_the_directory_places_the_steps_and_says_where_to_start(tmp_path):
    """Also one that starts lower than the schedule goes, as a pipeline's does."""
    model = load(saved(tmp_path))
    own = ddim_ode.profile(model, 3, n=1, shape=start().shape[1:], sigma_max=50.0, progress=False)
    own.save(tmp_path / "profile.json")
    found = load(tmp_path)
    assert found.sigma_max == 50 < model.sigma_max
    grid = ddim_ode.plan_for(found, "unipc2", nfe=3).grid
    assert grid == ddim_ode.plan_for(model, "unipc2", nfe=3, grid=own, sigma_max=50.0).grid
    assert grid[0] == 50
