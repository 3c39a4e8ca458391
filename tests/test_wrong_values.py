"""Wrong values, and files that were changed: an answer, or an error that names the argument or file."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import COSINE, mixture_2d, points
from refusals import expect
from safetensors.torch import save

import ddim_ode
from ddim_ode import Denoiser
from ddim_ode.cli.models import load_model
from ddim_ode.generation.shards import Run, Shards
from ddim_ode.nets import weights

MODEL, X = mixture_2d(COSINE), points(3, 2)
START = ddim_ode.plan("ddim", COSINE, [5.0, 1.0, 0.0])
SPLIT = Denoiser(lambda x, t: x, COSINE, learned_variance="split")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: COSINE.time(torch.ones(1, requires_grad=True)), "tensor.detach"),
        (lambda: ddim_ode.sample(MODEL, X, steps=2, known=X), "must be a ddim_ode.Known"),
        (lambda: ddim_ode.sample(SPLIT, X[:, 0], steps=2), r"\(B, 2C, \*\), and x is \(3,\)"),
        (lambda: ddim_ode.plan("ddim", None, [1.0, 0.0]), "ddim_ode.schedules, got None"),
        (lambda: ddim_ode.noise((2,), COSINE, [0], device="meta"), "it holds no numbers"),
        (lambda: ddim_ode.slerp([1.0], X, 0.5), r"latent a must be a tensor \(B, \*\), got list"),
        (lambda: ddim_ode.log_likelihood(MODEL, X, max_nfe=10**30), "max_nfe=.* and <= 9223372"),
        (lambda: ddim_ode.generate(MODEL, 3, "x", steps=2, about={"a": X}), "must be plain data"),
        (lambda: ddim_ode.generate(MODEL, 3, "x", steps=2, sigma_max=-1), "sigma_max=-1 is out"),
    ],
)
def test_the_message_names_the_argument_and_what_it_takes(call, message):
    """That every argument is named, whatever it is given, is test_fuzz's."""
    expect(lambda: call(), message)


def test_an_empty_batch_may_be_asked_for_x0():
    assert [part.shape for part in MODEL(X[:0], 1.0)] == [(0, 2), (0, 2)]


# -- files ---------------------------------------------------------------------------------------
MIXTURE = dict(weights=[1.0], means=[[0.0, 1.0]], covs=[[1.0, 2.0]], schedule="cosine")
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    | st.sampled_from([10**400, "vp", "cosine"]),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(
        st.sampled_from(["name", "params", "T", "a"]), v, max_size=3),
    max_leaves=6,
)  # fmt: skip


def changed(content, changes, end):
    """Bytes replaced at these fractions of the file, and what is behind ``end`` cut off."""
    content = bytearray(content)
    for place, byte in changes:
        content[int(place * (len(content) - 1))] = byte
    return bytes(content[: int(end * len(content))])


def refused(path, call):
    """An answer, or an error that names the file."""
    try:
        return call()
    except (ValueError, OSError) as error:
        said = str(error)
    assert path.name in said
    return None


ENDS = st.sampled_from([1.0, 1.0, 0.9, 0.3])


@given(CHANGES, ENDS)
def test_changed_weights_are_read_or_named(tmp_path_factory, changes, end):
    path = tmp_path_factory.mktemp("w") / "some.safetensors"
    config = {"config": json.dumps(dict(kind="unet", net={}))}
    whole = save({"a": torch.ones(4), "b": torch.ones(2, 2)}, config)
    path.write_bytes(changed(whole, changes, end))
    refused(path, lambda: weights.read(path))
    refused(path, lambda: ddim_ode.load(path))


@given(VALUES, st.sampled_from([None, "kind", "net", "schedule", "prediction", "num_classes"]))
@settings(max_examples=60)
def test_weights_of_another_configuration_are_named(tmp_path_factory, value, field):
    path = tmp_path_factory.mktemp("w") / "some.safetensors"
    config = dict(kind="unet", net={}, schedule=dict(name="cosine", params={}), prediction="eps")
    config = value if field is None else {**config, field: value}
    text = json.dumps(config)
    path.write_bytes(save({"a": torch.ones(1)}, {"config": text}))
    refused(path, lambda: ddim_ode.load(path))


@given(CHANGES, ENDS)
def test_a_changed_shard_is_refused(tmp_path_factory, changes, end):
    shards = Shards(tmp_path_factory.mktemp("s"), Run(2, 0, 2, (3,), {}))
    shards.write(0, torch.ones(2, 3), ["success"] * 2, {})
    path = shards.path(0)
    before = path.read_bytes()
    path.write_bytes(changed(before, changes, end))
    shard = refused(path, lambda: shards.read(0))
    assert shard is None or torch.equal(shard.x, torch.ones(2, 3))
    shards.statuses()


@given(VALUES, st.sampled_from(["kind", "n", "seed", "shard", "shape", "decides", "about", "new"]))
@settings(max_examples=80)
def test_a_changed_manifest_is_read_or_named(tmp_path_factory, value, field):
    folder = tmp_path_factory.mktemp("m")
    Shards(folder, Run(2, 0, 2, (3,), {})).save_manifest()
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    shards = refused(path, lambda: Shards.open(folder))
    if shards is not None:
        assert (shards.run.n, shards.run.shard) == (2, 2) or field in ("n", "shard")
        assert len(shards) >= 0
        assert shards.run.sha256


@given(VALUES, st.sampled_from([None, *MIXTURE, "alphas_cumprod"]))
@settings(max_examples=100)
def test_a_changed_mixture_is_read_or_named(tmp_path_factory, value, field):
    path = tmp_path_factory.mktemp("x") / "some.json"
    path.write_text(json.dumps(value if field is None else {**MIXTURE, field: value}))
    refused(path, lambda: load_model(str(path)))


@given(CHANGES, ENDS, st.sampled_from([".json", ".npz"]))
def test_a_mixture_of_changed_bytes_is_read_or_named(tmp_path_factory, changes, end, suffix):
    path = (tmp_path_factory.mktemp("x") / "some").with_suffix(suffix)
    if suffix == ".npz":
        np.savez_compressed(path, **{k: np.array(v) for k, v in MIXTURE.items()})
    else:
        path.write_text(json.dumps(MIXTURE))
    path.write_bytes(changed(path.read_bytes(), changes, end))
    refused(path, lambda: load_model(str(path)))


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


def test_a_pickle_in_an_npz_is_not_run(tmp_path):
    path = tmp_path / "some.npz"
    np.savez(path, **{**MIXTURE, "weights": np.array([Bomb()], dtype=object)})
    expect(lambda: load_model(str(path)), r"some\.npz")


@pytest.mark.parametrize("content", [b"[" * 200_000, b"7" * 5000, b"\xff\xfe"], ids=len)
@pytest.mark.parametrize("name", ["m.json", "manifest.json"])
def test_json_that_python_cannot_hold_is_named(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=name):
        load_model(str(path)) if name == "m.json" else Shards.open(tmp_path)
