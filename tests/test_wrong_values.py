"""Whatever a caller passes: an answer, or a ValueError or OSError that names the argument."""

import contextlib
import json
import tempfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import COSINE, mixture_2d, points
from safetensors.torch import save

import ddim_ode
from ddim_ode import Denoiser, Guidance, grids, schedules
from ddim_ode.cli.models import load_model
from ddim_ode.generation.shards import Run, Shards
from ddim_ode.nets import weights

MODEL, X = mixture_2d(COSINE), points(3, 2)
START = ddim_ode.plan("ddim", COSINE, [5.0, 1.0, 0.0])
NET = Denoiser(lambda x, t, **told: x, COSINE)  # it takes whatever cond and shared tell it
ODD = [
    None, "x", "", b"x", True, -1, 0, 1.5, float("nan"), float("inf"), 10**30, 10**400, 1j,
    np.float32(2.5), np.int64(3), [], [1], [3.0, 2.0], ["a"], [None], [[1.0], [2.0, 3.0]], (), {},
    {"a": 1}, {1: torch.ones(3)}, {"y": torch.ones(2)}, set(), object(), np.array([]),
    np.array(["a"]), np.ones((2, 2)), np.array([None]), torch.tensor(1.0), torch.ones(3),
    torch.ones(2, 2, dtype=torch.long), torch.ones(3, 2, requires_grad=True),
    torch.ones(3, 2, dtype=torch.complex64), torch.empty(0, 2), torch.float32, "nowhere",
]  # fmt: skip
GIVEN = dict(
    sample=(
        lambda **o: ddim_ode.sample(o.pop("model", MODEL), o.pop("x", X), **{"steps": 2, **o}),
        "model x steps nfe grid timesteps plan method variant start chart final sigma_max sigma_min eta "
        "noise_std rtol atol max_nfe error_norm dense seeds callback record on_nan known",
    ),
    free=(lambda **o: ddim_ode.sample(MODEL, X, **o), "timesteps grid nfe plan"),
    encode=(
        lambda **o: ddim_ode.encode(o.pop("model", MODEL), o.pop("x", X), **{"steps": 2, **o}),
        "model x steps grid plan method final sigma_max sigma_min eta rtol max_nfe partner",
    ),
    plan=(
        lambda **o: ddim_ode.plan(
            **{"method": "ddim", "schedule": COSINE, "grid": [5.0, 1.0, 0.0], **o}
        ),
        "method schedule grid variant start chart vector eta noise_std",
    ),
    denoiser=(
        lambda **o: Denoiser(**{"net": lambda x, t: x, "schedule": COSINE, **o}),
        "net schedule prediction time_offset time guidance learned_variance dtype clip threshold shape",
    ),
    call=(lambda **o: MODEL(o.pop("x", X), **{"sigma": 1.0, **o}), "x sigma"),
    guidance=(
        lambda **o: Guidance(**{"scale": 2.0, "null": {"y": 1}, **o}),
        "scale null interval rescale",
    ),
    noise=(
        lambda **o: ddim_ode.noise(**{"shape": (2,), "schedule": COSINE, "seeds": [0], **o}),
        "shape schedule seeds sigma device dtype",
    ),
    renoise=(
        lambda **o: ddim_ode.renoise(**{"x0": X, "schedule": COSINE, "seeds": [1, 2, 3], **o}),
        "x0 schedule seeds sigma strength",
    ),
    slerp=(lambda **o: ddim_ode.slerp(**{"a": X, "b": X + 1, "weights": 0.5, **o}), "a b weights"),
    grid=(
        lambda **o: grids.make_grid(**{"name": "time", "schedule": COSINE, "steps": 3, **o}),
        "name schedule steps final sigma_max sigma_min",
    ),
    ddpm=(schedules.ddpm, "T beta_start beta_end"),
    exponential=(schedules.exponential, "rate T"),
    cosine=(schedules.cosine, "T s max_beta"),
    vp=(schedules.vp, "beta_min beta_max"),
    ve=(schedules.ve, "sigma_max"),
    cumprod=(schedules.from_alphas_cumprod, "array"),
    level=(lambda value: COSINE.time(value), "value"),
    time=(lambda value: COSINE.alpha_bar(value), "value"),
    dequantized=(
        lambda **o: ddim_ode.dequantized(**{"x": X, "seeds": [1, 2, 3], **o}),
        "x seeds cell",
    ),
    mixture=(
        lambda **o: ddim_ode.exact.gaussian_mixture(
            **{"weights": [1.0], "means": [[0.0]], "covs": [[1.0]], "schedule": COSINE, **o}
        ),
        "weights means covs schedule prediction",
    ),
    loss=(
        lambda **o: ddim_ode.eps_loss(**{"net": lambda x, t: x, "schedule": COSINE, "x0": X, **o}),
        "net schedule x0 generator",
    ),
    watched=(
        lambda **o: ddim_ode.sample(NET, X, **{"steps": 2, **o}),
        "cond shared progress differentiable",
    ),
    encoded=(
        lambda **o: ddim_ode.encode(NET, X, **{"steps": 2, **o}),
        "cond shared progress callback record on_nan differentiable certify dense",
    ),
    adaptive=(
        lambda **o: ddim_ode.encode(MODEL, X, **{"rtol": 0.1, **o}),
        "rtol atol max_nfe error_norm dense progress",
    ),
    decode=(
        lambda **o: ddim_ode.decode(**{"model": NET, "z": X, "steps": 2, **o}),
        "model z method steps nfe grid timesteps plan variant start chart final sigma_max sigma_min "
        "eta noise_std rtol atol max_nfe error_norm dense partner cond shared progress callback record "
        "on_nan differentiable",
    ),
    transfer=(
        lambda **o: ddim_ode.transfer(
            **{"model": NET, "x0": X, "source": {}, "target": {}, "steps": 2, **o}
        ),
        "model x0 source target method steps grid shared",
    ),
    known=(
        lambda **o: ddim_ode.Known(
            **{"x0": X, "mask": torch.ones(3, 2, dtype=torch.bool), "seeds": [1, 2, 3], **o}
        ),
        "x0 mask seeds",
    ),
    flow=(
        lambda **o: ddim_ode.ProbabilityFlow(**{"model": NET, "shape": (2,), **o})(
            0.5, np.ones(2)
        ),
        "model variable state shape dtype device cond shared",
    ),
    likelihood=(
        lambda **o: ddim_ode.log_likelihood(**{"model": NET, "x": X, "rtol": 0.1, **o}),
        "model x divergence probes seeds sigma_min sigma_max prior method rtol atol max_nfe steps "
        "grid cond shared dtype chunk progress",
    ),
    accelerate=(
        lambda **o: ddim_ode.accelerate(**{"model": NET, **o}),
        "model channels_last dtype batch compile",
    ),
    compare=(
        lambda **o: ddim_ode.compare(
            **{"model": NET, "methods": "ddim", "nfe": 2, "shape": (2,), "n": 2, "key": "k",
               "reference": torch.zeros(2, 2), "progress": False, **o}
        ),
        "model methods nfe shape n seed cond shared grid sigma_min batch reference cache key keep "
        "confidence progress device",
    ),
    calibrate=(
        lambda **o: ddim_ode.calibrate(
            **{"model": NET, "nfe": 2, "shape": (2,), "n": 4, "start": START, "progress": False, **o}
        ),
        "model nfe shape n seed budget start cond shared features sigma_max batch progress device",
    ),
    generate=(  # compile is accelerate's
        lambda **o: ddim_ode.generate(
            **{"model": NET, "n": 1, "out": tempfile.mkdtemp(dir="."), "shape": (2,), "steps": 2,
               "key": "k", **o}
        ),
        "model n out method plan shape seed cond shared batch shard key device channels_last dtype "
        "cuda_graph rank world_size progress about steps",
    ),
    diagnose=(
        lambda **o: ddim_ode.diagnose(**{"model": NET, "shape": (2,), "n": 2, "steps": 2, **o}),
        "model data cond shared shape steps n seed device",
    ),
    load_plan=(ddim_ode.Plan.load, "path"),
    load=(lambda **o: ddim_ode.load(**{"name_or_path": "no", **o}), "name_or_path"),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "argument"), [(n, a) for n, (_, names) in GIVEN.items() for a in names.split()]
)
def test_a_wrong_value_is_named_or_refused(name, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in ODD:
        with contextlib.suppress(ValueError, OSError):
            GIVEN[name][0](**{argument: value})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: COSINE.sigma("3"), "t='3' must be real numbers"),
        (lambda: COSINE.time([1.0, None]), "sigma=.* must be real numbers"),
        (lambda: COSINE.time(torch.ones(1, requires_grad=True)), "tensor.detach"),
        (lambda: ddim_ode.sample(MODEL, X, steps=2, sigma_max=[3.0]), "sigma_max=.* one number"),
        (lambda: ddim_ode.sample(MODEL, X, nfe=10**30), "nfe=.* whole number >= 1 and <= 1000000"),
        (lambda: ddim_ode.sample(MODEL, X, steps=2, known=X), "must be a ddim_ode.Known"),
        (lambda: ddim_ode.sample(MODEL, X, steps=2, callback=1), "callback=1 must be callable"),
        (lambda: ddim_ode.sample(MODEL, X, steps=2, shared=[1]), "shared=.*name: value"),
        (lambda: ddim_ode.plan("ddim", None, [1.0, 0.0]), "come from ddim_ode.schedules, got None"),
        (lambda: ddim_ode.noise(2, COSINE, [0]), r"shape=2 must be that of ONE sample"),
        (lambda: ddim_ode.noise((2,), COSINE, [0], device="gpu"), "device='gpu' cannot be used"),
        (lambda: ddim_ode.slerp([1.0], X, 0.5), r"latent a must be a tensor \(B, \*\), got list"),
        (lambda: Denoiser(max, COSINE, time_offset="1"), "time_offset='1' must be real numbers"),
        (lambda: schedules.ddpm(beta_start=None), "beta_start=None must be real numbers"),
        (lambda: ddim_ode.Plan.load(3), "path=3 must be a path"),
        (lambda: START.save(5), "path=5 must be a path"),
        (lambda: ddim_ode.sample(MODEL, X, "reversible", steps=2), "goes both ways: ddim_ode.enc"),
        (lambda: ddim_ode.dequantized(X, [1, 2, 3], cell=-1), "cell=-1 must be a width > 0"),
        (lambda: ddim_ode.dequantized(X, [1, 2, 3], cell=float("nan")), "cell=nan must be a width"),
        (lambda: ddim_ode.noise((2,), COSINE, [0], device="meta"), "it holds no numbers"),
        (
            lambda: ddim_ode.sample(
                Denoiser(lambda x, t: x, COSINE, learned_variance="split"), X[:, 0], steps=2
            ),
            r"halves the channels of an answer \(B, 2C, \*\), and x is \(3,\)",
        ),
        (
            lambda: ddim_ode.sample(MODEL, X, steps=2, progress=1),
            "progress=1 must be True or False",
        ),
        (
            lambda: ddim_ode.encode(MODEL, X, steps=2, differentiable="adjoint"),
            "differentiable=",
        ),
        (lambda: ddim_ode.decode(MODEL, X, steps=2, callback=1), "callback=1 must be callable"),
        (lambda: ddim_ode.transfer(None, X, {}, {}), "model must be a Denoiser, got NoneType"),
        (
            lambda: ddim_ode.log_likelihood(MODEL, X, rtol=10**400),
            "rtol=1000.* must be real numbers",
        ),
        (lambda: ddim_ode.log_likelihood(MODEL, X, max_nfe=10**30), "max_nfe=.* and <= 9223372"),
        (lambda: ddim_ode.compare(MODEL, cache=3), "cache=3 must be a path"),
        (lambda: ddim_ode.compare(MODEL, grid=3), "unknown grid 3; valid, nearest first"),
        (lambda: ddim_ode.calibrate(MODEL, features=3), "features=3 must be callable"),
        (lambda: ddim_ode.calibrate(MODEL, 1.5), "nfe=1.5 must be a whole number >= 1"),
        (lambda: ddim_ode.generate(MODEL, 3, 5), "out=5 must be a path"),
        (lambda: ddim_ode.generate(MODEL, 3, "x", steps=2, about={"a": X}), "must be plain data"),
        (lambda: ddim_ode.accelerate(NET, compile={"a": 1}), "compile=.* is not of torch.com"),
        (lambda: ddim_ode.ProbabilityFlow(MODEL, device="gpu"), "device='gpu' cannot be used here"),
        (lambda: ddim_ode.ProbabilityFlow(NET, shape=(3,))(0.5, np.ones(2)), r"shape=\(3,\)"),
        (lambda: ddim_ode.diagnose(MODEL, seed=None), "seed=None must be a whole number >= 0"),
        (lambda: ddim_ode.diagnose(MODEL, cond=3), "cond=3 must be .name: value"),
    ],
)
def test_the_message_names_the_argument_and_what_it_takes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


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


@given(CHANGES, st.sampled_from([1.0, 1.0, 0.9, 0.3]))
def test_changed_weights_are_read_or_named(tmp_path_factory, changes, end):
    path = tmp_path_factory.mktemp("w") / "some.safetensors"
    config = {"config": json.dumps(dict(kind="unet", net={}))}
    path.write_bytes(
        changed(save({"a": torch.ones(4), "b": torch.ones(2, 2)}, config), changes, end)
    )
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


@given(CHANGES, st.sampled_from([1.0, 1.0, 0.9, 0.3]))
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


@given(CHANGES, st.sampled_from([1.0, 1.0, 0.9, 0.3]), st.sampled_from([".json", ".npz"]))
def test_a_mixture_of_changed_bytes_is_read_or_named(tmp_path_factory, changes, end, suffix):
    path = (tmp_path_factory.mktemp("x") / "some").with_suffix(suffix)
    if suffix == ".npz":
        np.savez_compressed(path, **{k: np.array(v) for k, v in MIXTURE.items()})
    else:
        path.write_text(json.dumps(MIXTURE))
    path.write_bytes(changed(path.read_bytes(), changes, end))
    refused(path, lambda: load_model(str(path)))


@pytest.mark.parametrize("content", [b"[" * 200_000, b"7" * 5000, b"\xff\xfe"], ids=len)
def test_json_that_python_cannot_hold_is_named(tmp_path, content):
    for name, call in (
        ("m.json", lambda p: load_model(str(p))),
        ("manifest.json", lambda p: Shards.open(p.parent)),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            call(path)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


def test_a_pickle_in_an_npz_is_not_run(tmp_path):
    path = tmp_path / "some.npz"
    np.savez(path, **{**MIXTURE, "weights": np.array([Bomb()], dtype=object)})
    with pytest.raises(ValueError, match=r"some\.npz"):
        load_model(str(path))
