"""What metrics are taken in and against: features, references on disk, and rows of several metrics."""

import dataclasses
import json
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from refusals import expect
from safetensors.torch import save_file

import ddim_ode
from ddim_ode.evaluate import metrics
from ddim_ode.evaluate.features import classifier_features, content_sha256, inception_features
from ddim_ode.evaluate.metrics import IDENTITY, METRICS, Features, FeatureStatistics, measure
from ddim_ode.nets import weights
from ddim_ode.nets.pretrained import ASSETS, load_classifier


def normal(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


# -- features ---------------------------------------------------------------------------------

IMAGES = torch.rand(24, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
HALVED = Features("halved", content_sha256({}, "halved"), lambda x: x.flatten(1) / 2)
REAL = normal(500, 3) @ np.diag([1.0, 2.0, 3.0])
BARE = FeatureStatistics.of(REAL, IDENTITY, keep=0)


def test_classifier_features_are_the_penultimate_of_clipped_images():
    features = classifier_features()
    assert features.name == "fashion-mnist classifier"
    few = dataclasses.replace(features, batch=7)
    clipped = (10 * IMAGES).clamp(-1, 1)
    for images in (IMAGES, clipped):
        truth = load_classifier().features(images).numpy()
        np.testing.assert_allclose(features(images), truth, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(few(images.numpy()), truth, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(features(10 * IMAGES), features(clipped))


def test_the_hash_is_of_the_content():
    tensors = {"a": torch.arange(3.0), "b": torch.zeros(2, 2)}
    whole = content_sha256(tensors, "mean")
    assert whole == content_sha256(dict(reversed(tensors.items())), "mean")
    others = (
        {"a": tensors["a"], "c": tensors["b"]},
        {**tensors, "a": torch.tensor([0.0, 1.0, 2.000001])},
        {**tensors, "a": torch.arange(3.0).double()},
        {**tensors, "b": torch.zeros(4)},
    )
    changed = [content_sha256(other, "mean") for other in others]
    assert len({whole, content_sha256(tensors, "max"), *changed}) == 6
    path = ASSETS / "fashion-mnist-classifier.safetensors"
    assert classifier_features().sha256 == classifier_features(path).sha256


def test_default_features_are_only_for_the_shipped_model():
    assert (
        metrics.default_features(ddim_ode.load("fashion-mnist")).sha256
        == classifier_features().sha256
    )
    other = ddim_ode.load("fashion-mnist")
    other.sha256 = "0" * 64
    for model in (other, lambda x, sigma: (x, x)):
        with pytest.raises(ValueError, match=r"no default features .* classifier_features\(path\)"):
            metrics.default_features(model)


SICK = IMAGES.clone()
SICK[[3, 5], 0, 2, 2] = torch.nan


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: IDENTITY(SICK), r"2 of 24 samples have NaN .*first is 3\): leave them out"),
        (lambda: IDENTITY(torch.zeros(5)), r"shape \(5,\)"),
        (
            lambda: Features("mean", "0" * 64, lambda x: x.mean((1, 2, 3)))(IMAGES),
            r"'mean' gave \(24,\) for 24 images",
        ),
        (
            lambda: Features("log", "0" * 64, lambda x: x.flatten(1).log())(IMAGES),
            "'log' gave NaN or inf on finite",
        ),
        (lambda: Features("mine", "abc", lambda x: x), "64 digits of content_sha256"),
        (lambda: FeatureStatistics.of(REAL, IDENTITY, keep=-1), "keep=-1"),
        (lambda: measure(REAL, BARE, IDENTITY), r"keeps 0 rows.*keep=10_000"),
        (
            lambda: measure(REAL, BARE, IDENTITY, metrics=["energy"]),
            "unknown metric 'energy'; valid, nearest first: energy_d",
        ),
        *(
            (
                lambda names=names: measure(REAL, BARE, IDENTITY, metrics=names),
                "must be a list of at least one of frechet_distance",
            )
            for names in ("mmd", [])
        ),
    ],
)
def test_what_cannot_be_measured_is_said(call, said):
    expect(call, said)


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
    with pytest.raises(ImportError, match=r"pip install -e '\.\[fid\]'"):
        inception_features()
    fake = types.SimpleNamespace(NoTrainInceptionV3=FakeInception)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", fake)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"checkpoints.*6726825d\.saf.*Fetch https"):
        inception_features()

    witness, path = tmp_path / "ran", tmp_path / "trap.pth"

    class Trap:
        def __reduce__(self):
            return (open, (str(witness), "w"))

    for write in (
        lambda: torch.save({"w": Trap()}, path),
        lambda: path.write_bytes(pickle.dumps(Trap(), protocol=2)),
    ):
        write()
        expect(lambda: inception_features(path), r"trap\.pth: truncated, or not a safetensors file")
    assert not witness.exists()

    save_file({"w": torch.tensor([1.0, 2.0, 3.0])}, tmp_path / "w.safetensors")
    one = inception_features(tmp_path / "w.safetensors")
    np.testing.assert_allclose(one(torch.ones(2, 1, 4, 4)), [[255, 510, 765]] * 2)  # grey, bytes
    expect(lambda: one(torch.zeros(2, 2, 4, 4)), r"images \(B, 1 or 3, H, W\), got \(2, 2, 4, 4\)")


# -- references and rows ----------------------------------------------------------------------


def test_a_reference_comes_back_from_disk_as_it_was(tmp_path):
    path = tmp_path / "real.safetensors"

    def made(rows=REAL, features=IDENTITY, keep=200, seed=3):
        return FeatureStatistics.of(rows, features, keep=keep, seed=seed)

    reference = made()
    reference.save(path)
    back = FeatureStatistics.load(path, IDENTITY)
    for field in dataclasses.fields(FeatureStatistics):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(reference, field.name))
    np.testing.assert_allclose(back.mean, REAL.mean(0), rtol=1e-12)
    np.testing.assert_allclose(back.cov, np.cov(REAL.T), rtol=1e-12)
    kept = {tuple(row) for row in back.rows}
    assert len(kept) == 200
    assert kept < {tuple(row) for row in REAL}
    changes = (
        *(dict(rows=REAL[:-1]), dict(rows=REAL + 1e-12), dict(features=HALVED)),
        *(dict(keep=201), dict(seed=4)),
    )
    hashes = {back.sha256, reference.sha256, *(made(**change).sha256 for change in changes)}
    assert len(hashes) == 6


def test_files_that_are_no_reference_are_named(tmp_path):
    path = tmp_path / "real.safetensors"

    def refused(said, features=None):
        expect(lambda: FeatureStatistics.load(path, features), said)

    with pytest.raises(FileNotFoundError, match=r"real\.safetensors"):
        FeatureStatistics.load(path)
    FeatureStatistics.of(REAL, IDENTITY).save(path)
    other = r"computed in 'identity' \(.*these are 'halved'.*FeatureStatistics\.of\(images, feat"
    refused(other, HALVED)
    expect(lambda: measure(REAL, FeatureStatistics.load(path), HALVED), other)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    refused(r"real\.safetensors: truncated")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(r"real\.safetensors: .*a damaged one")
    path.write_bytes(whole)
    tensors, config = weights.read(path)
    weights.write(path, dict(tensors, mean=tensors["mean"] + 1), config)
    refused("its numbers are not those saved")
    del config["features_sha256"]
    weights.write(path, tensors, config)
    refused("without 'features_sha256'; compute it again")
    path.write_bytes((ASSETS / "fashion-mnist-classifier.safetensors").read_bytes())
    refused("holds a 'classifier', not a 'reference'")


def test_a_row_holds_every_metric_and_what_it_was_taken_on():
    made, seed = normal(300, 3, 8) * [1.0, 2.0, 2.5], 5
    reference = FeatureStatistics.of(REAL, HALVED, keep=400)
    calls = []
    counted = dataclasses.replace(HALVED, function=lambda x: calls.append(len(x)) or x / 2)
    row = measure(made, reference, counted, seed=seed, projections=30, subsets=10)
    assert calls == [300]  # once for all the metrics
    a, b = made / 2, reference.rows
    kid = metrics.kernel_distance(a, b, subsets=10, seed=seed)
    numbers = dict(
        frechet_distance=metrics.frechet_distance(
            a, REAL / 2
        ),  # all of the reference, not what it kept
        kernel_distance=kid.mean,
        kernel_distance_std=kid.std,
        sliced_wasserstein=metrics.sliced_wasserstein(a, b, projections=30, seed=seed),
        energy_distance=metrics.energy_distance(a, b),
        mmd=metrics.mmd(a, b),
        bandwidth=metrics.median_bandwidth(b),
        **dict(subsets=10, subset_size=150, projections=30, n=300, seed=seed),
        **dict(reference_n=500, reference_rows=400),
    )
    words = dict(
        features="halved",
        features_sha256=HALVED.sha256[:12],
        reference=reference.sha256[:12],
    )
    assert {key: row[key] for key in numbers} == pytest.approx(numbers, rel=1e-9)
    assert {key: value for key, value in row.items() if key not in numbers} == words
    assert json.loads(json.dumps(row)) == row
    assert set(measure(made, reference, HALVED, metrics=["mmd"])) & set(METRICS) == {"mmd"}


def test_moments_alone_are_enough_for_frechet():
    row = measure(REAL, BARE, IDENTITY, metrics=["frechet_distance"])
    assert row["frechet_distance"] == pytest.approx(0, abs=1e-9)
