"""What metrics are taken in and against: features, references on disk, and rows of several metrics."""

import dataclasses
import json
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import ddim_ode
from ddim_ode.evaluate.metrics import (
    IDENTITY,
    METRICS,
    Features,
    FeatureStatistics,
    classifier_features,
    content_sha256,
    default_features,
    energy_distance,
    frechet_distance,
    inception_features,
    kernel_distance,
    measure,
    median_bandwidth,
    mmd,
    sliced_wasserstein,
)
from ddim_ode.nets.pretrained import ASSETS, load_classifier


def normal(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


# -- features ---------------------------------------------------------------------------------

IMAGES = torch.rand(24, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_classifier_features_are_the_penultimate_of_clipped_images():
    features = classifier_features()
    assert features.name == "fashion-mnist classifier"
    truth = load_classifier().features(IMAGES).numpy()
    np.testing.assert_allclose(features(IMAGES), truth, rtol=1e-4, atol=1e-5)
    clipped = (10 * IMAGES).clamp(-1, 1)
    np.testing.assert_array_equal(features(10 * IMAGES), features(clipped))
    few = dataclasses.replace(features, batch=7)
    np.testing.assert_allclose(few(IMAGES.numpy()), truth, rtol=1e-4, atol=1e-5)


def test_the_hash_is_of_the_content():
    tensors = {"a": torch.arange(3.0), "b": torch.zeros(2, 2)}
    whole = content_sha256(tensors, "mean")
    assert whole == content_sha256(dict(reversed(tensors.items())), "mean")
    assert (
        classifier_features().sha256
        == classifier_features(ASSETS / "fashion-mnist-classifier.safetensors").sha256
    )
    changed = [
        content_sha256(tensors, "max"),
        content_sha256({"a": tensors["a"], "c": tensors["b"]}, "mean"),
        content_sha256({**tensors, "a": torch.tensor([0.0, 1.0, 2.000001])}, "mean"),
        content_sha256({**tensors, "a": torch.arange(3.0).double()}, "mean"),
        content_sha256({**tensors, "b": torch.zeros(4)}, "mean"),
    ]
    assert len({whole, *changed}) == 6


def test_default_features_are_only_for_the_shipped_model():
    assert default_features(ddim_ode.load("fashion-mnist")).sha256 == classifier_features().sha256
    other = ddim_ode.load("fashion-mnist")
    other.sha256 = "0" * 64
    for model in (other, lambda x, sigma: (x, x)):
        with pytest.raises(ValueError, match=r"no default features .* classifier_features\(path\)"):
            default_features(model)


def test_features_say_what_is_wrong():
    sick = IMAGES.clone()
    sick[[3, 5], 0, 2, 2] = torch.nan
    with pytest.raises(
        ValueError, match=r"2 of 24 samples have NaN .*first is 3\): leave them out"
    ):
        IDENTITY(sick)
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        IDENTITY(torch.zeros(5))
    with pytest.raises(ValueError, match=r"'mean' gave \(24,\) for 24 images"):
        Features("mean", "0" * 64, lambda x: x.mean((1, 2, 3)))(IMAGES)
    with pytest.raises(ValueError, match="'log' gave NaN or inf on finite"):
        Features("log", "0" * 64, lambda x: x.flatten(1).log())(IMAGES)
    with pytest.raises(ValueError, match=r"64 digits of content_sha256"):
        Features("mine", "abc", lambda x: x)


class FakeInception:
    """Takes the weights as torchmetrics' does, and gives each channel's mean."""

    def __init__(self, name, layers, file, antialias):
        assert layers == ["2048"]
        assert not antialias
        self.weights = torch.load(file, weights_only=True)

    def to(self, device):
        return self

    def __call__(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return x.float().mean((2, 3)) * self.weights["w"]


def test_inception_is_never_downloaded_and_its_weights_never_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ImportError, match=r'pip install "ddim-ode\[fid\]"'):
        inception_features()
    fake = types.SimpleNamespace(NoTrainInceptionV3=FakeInception)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", fake)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"checkpoints.*6726825d\.safetensors: no Inc.*Fetch https"
    ):
        inception_features()

    witness, trap = tmp_path / "ran", tmp_path / "trap.pth"

    class Trap:
        def __reduce__(self):
            return (open, (str(witness), "w"))

    torch.save({"w": Trap()}, trap)
    with pytest.raises(ValueError, match=r"trap\.pth: truncated, or not a safetensors file"):
        inception_features(trap)
    trap.write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(ValueError, match=r"trap\.pth: truncated, or not a safetensors file"):
        inception_features(trap)
    assert not witness.exists()

    state = {"w": torch.tensor([1.0, 2.0, 3.0])}
    save_file(state, tmp_path / "w.safetensors")
    one = inception_features(tmp_path / "w.safetensors")
    np.testing.assert_allclose(one(torch.ones(2, 1, 4, 4)), [[255, 510, 765]] * 2)  # grey, bytes
    with pytest.raises(ValueError, match=r"images \(B, 1 or 3, H, W\), got \(2, 2, 4, 4\)"):
        one(torch.zeros(2, 2, 4, 4))


# -- references and rows ----------------------------------------------------------------------

HALVED = Features("halved", content_sha256({}, "halved"), lambda x: x.flatten(1) / 2)
REAL = normal(500, 3) @ np.diag([1.0, 2.0, 3.0])


def test_a_reference_comes_back_from_disk_as_it_was(tmp_path):
    path = tmp_path / "real.safetensors"
    reference = FeatureStatistics.of(REAL, IDENTITY, keep=200, seed=3)
    reference.save(path)
    back = FeatureStatistics.load(path, IDENTITY)
    for field in dataclasses.fields(FeatureStatistics):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(reference, field.name))
    assert back.sha256 == reference.sha256
    np.testing.assert_allclose(back.mean, REAL.mean(0), rtol=1e-12)
    np.testing.assert_allclose(back.cov, np.cov(REAL.T), rtol=1e-12)
    kept = {tuple(row) for row in back.rows}
    assert len(kept) == 200 and kept < {tuple(row) for row in REAL}  # noqa: PT018
    others = [
        FeatureStatistics.of(REAL[:-1], IDENTITY, keep=200, seed=3),
        FeatureStatistics.of(REAL + 1e-12, IDENTITY, keep=200, seed=3),
        FeatureStatistics.of(REAL, HALVED, keep=200, seed=3),
        FeatureStatistics.of(REAL, IDENTITY, keep=201, seed=3),
        FeatureStatistics.of(REAL, IDENTITY, keep=200, seed=4),
    ]
    assert len({reference.sha256, *(other.sha256 for other in others)}) == 6


def test_other_features_are_refused(tmp_path):
    path = tmp_path / "real.safetensors"
    FeatureStatistics.of(REAL, IDENTITY).save(path)
    message = (
        r"computed in 'identity' \(.*these are 'halved'.*FeatureStatistics\.of\(images, features\)"
    )
    with pytest.raises(ValueError, match=message):
        FeatureStatistics.load(path, HALVED)
    with pytest.raises(ValueError, match=message):
        measure(REAL, FeatureStatistics.load(path), HALVED)


def test_files_that_are_no_reference_are_named(tmp_path):
    path = tmp_path / "real.safetensors"
    with pytest.raises(FileNotFoundError, match=r"real\.safetensors"):
        FeatureStatistics.load(path)
    with pytest.raises(ValueError, match="holds a 'classifier', not a 'reference'"):
        FeatureStatistics.load(ASSETS / "fashion-mnist-classifier.safetensors")
    FeatureStatistics.of(REAL, IDENTITY).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"real\.safetensors: truncated"):
        FeatureStatistics.load(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"real\.safetensors: .*a damaged one"):
        FeatureStatistics.load(path)
    path.write_bytes(whole)
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in ("mean", "cov", "rows")}
    del config["features_sha256"]
    save_file(tensors, path, {"config": json.dumps(config)})
    with pytest.raises(ValueError, match="without 'features_sha256'; compute it again"):
        FeatureStatistics.load(path)


def test_a_row_holds_every_metric_and_what_it_was_taken_on():
    made, seed = normal(300, 3, 8) * [1.0, 2.0, 2.5], 5
    reference = FeatureStatistics.of(REAL, HALVED, keep=400)
    calls = []
    counted = dataclasses.replace(HALVED, function=lambda x: calls.append(len(x)) or x / 2)
    row = measure(made, reference, counted, seed=seed, projections=30, subsets=10)
    assert calls == [300]  # once for all the metrics
    a, b = made / 2, reference.rows
    kid = kernel_distance(a, b, subsets=10, seed=seed)
    expected = dict(
        frechet_distance=frechet_distance(a, REAL / 2),  # all of the reference, not what it kept
        kernel_distance=kid.mean,
        kernel_distance_std=kid.std,
        sliced_wasserstein=sliced_wasserstein(a, b, projections=30, seed=seed),
        energy_distance=energy_distance(a, b),
        mmd=mmd(a, b),
        bandwidth=median_bandwidth(b),
        subsets=10,
        subset_size=150,
        projections=30,
        n=300,
        seed=seed,
        features="halved",
        features_sha256=HALVED.sha256[:12],
        reference=reference.sha256[:12],
        reference_n=500,
        reference_rows=400,
    )
    numbers = {key: value for key, value in expected.items() if not isinstance(value, str)}
    assert {key: row[key] for key in numbers} == pytest.approx(numbers, rel=1e-9)
    assert row.keys() == expected.keys()
    assert [row[k] for k in expected if k not in numbers] == [
        v for k, v in expected.items() if k not in numbers
    ]
    assert json.loads(json.dumps(row)) == row
    assert set(measure(made, reference, HALVED, metrics=["mmd"])) & set(METRICS) == {"mmd"}


def test_measure_refuses_what_it_cannot_do():
    bare = FeatureStatistics.of(REAL, IDENTITY, keep=0)
    assert bare.rows.shape == (0, 3)
    row = measure(REAL, bare, IDENTITY, metrics=["frechet_distance"])
    assert row["frechet_distance"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match=r"keeps 0 rows.*keep=10_000"):
        measure(REAL, bare, IDENTITY)
    with pytest.raises(
        ValueError, match=r"unknown metric 'energy'; valid, nearest first: energy_d"
    ):
        measure(REAL, bare, IDENTITY, metrics=["energy"])
    for metrics in ("mmd", []):
        with pytest.raises(ValueError, match="must be a list of at least one of frechet_distance"):
            measure(REAL, bare, IDENTITY, metrics=metrics)
    with pytest.raises(ValueError, match="keep=-1"):
        FeatureStatistics.of(REAL, IDENTITY, keep=-1)


def test_metrics_see_a_worse_sampler_in_the_shipped_features():
    reference = FeatureStatistics.of(IMAGES.repeat(3, 1, 1, 1), classifier_features())
    near = (IMAGES + 0.05 * IMAGES.flip(0)).repeat(3, 1, 1, 1)
    far = (IMAGES + 1.0 * IMAGES.flip(0)).repeat(3, 1, 1, 1)
    rows = [measure(x, reference, classifier_features(), subsets=10) for x in (near, far)]
    for name in METRICS:
        assert rows[0][name] < 0.5 * rows[1][name]
