"""Large runs: who goes on with a folder has the model and the conditions that it was begun with."""

import json

import numpy as np
import pytest
import torch
from problems import COSINE
from small_runs import N, make, samples

import ddim_ode

SETTINGS = dict(gain=1.0)


class Labelled(torch.nn.Module):
    """Its gain is where no hash sees it."""

    def forward(self, x, t, y):
        return torch.tanh(SETTINGS["gain"] * x) + y.reshape(len(y), -1)[:, :1]


MODEL = ddim_ode.Denoiser(Labelled(), COSINE, "x0", shape=(2,))


def run(folder, cond, **options):
    return make(folder, model=MODEL, cond=cond, **options)


def test_another_model_of_the_same_key_does_not_go_on_with_a_run(tmp_path, monkeypatch):
    cond = dict(y=torch.zeros(N))
    run(tmp_path, cond).shards.path(3).unlink()
    monkeypatch.setitem(SETTINGS, "gain", 3.0)
    with pytest.raises(ValueError, match=r"model answers otherwise.*or key="):
        run(tmp_path, cond)
    monkeypatch.setitem(SETTINGS, "gain", 1.0 + 1e-7)  # another processor
    assert run(tmp_path, cond).made == 4


@pytest.mark.parametrize("dtype", [torch.long, torch.float32, torch.float16])
@pytest.mark.parametrize("width", [(), (3,)])
def test_conditions_from_a_function_are_known_by_all_their_rows(tmp_path, dtype, width):
    labels = torch.arange(N).reshape(N, *[1] * len(width)).expand(N, *width).to(dtype).clone()
    whole = run(tmp_path, lambda i: dict(y=labels[i])).shards
    assert run(tmp_path, lambda i: dict(y=labels[i])).made == 0
    labels[17] += 1
    before = samples(tmp_path)
    with pytest.raises(ValueError, match=r"shard-00004.*other conditions.*samples 16 to 19"):
        run(tmp_path, lambda i: dict(y=labels[i]))
    torch.testing.assert_close(samples(tmp_path), before, rtol=0, atol=0)
    assert len(whole.present()) == len(whole)


def test_conditions_that_are_computed_anew_may_differ_in_their_last_bits(tmp_path):
    y = torch.linspace(-1, 1, N)
    run(tmp_path, dict(y=y)).shards.path(3).unlink()
    assert run(tmp_path, dict(y=torch.nextafter(y, torch.tensor(2.0)))).made == 4


def test_what_is_shared_is_known_as_conditions_are(tmp_path):
    def made(y, **options):
        return make(tmp_path, model=MODEL, shared=dict(y=y), **options).made

    y = torch.full((1, 1), 0.5)
    assert (made(y), made(y * (1 + 1e-6))) == (N, 0)
    with pytest.raises(ValueError, match="model answers otherwise"):
        made(y + 0.001)
    with pytest.raises(ValueError, match="shared is"):
        made(torch.ones(1, 1, dtype=torch.long))


def test_given_whole_numbers_are_of_the_run_itself(tmp_path):
    run(tmp_path, dict(y=torch.arange(N)))
    with pytest.raises(ValueError, match="holds another run: conditions is"):
        run(tmp_path, dict(y=torch.arange(N).flip(0)))


@pytest.mark.parametrize("grid", [COSINE.sigma([900, 500, 20]).tolist(), np.geomspace(9, 0.1, 4)])
def test_a_grid_is_the_same_up_to_rounding(tmp_path, grid):
    def made(scale):
        return make(
            tmp_path, grid=[*(np.array(grid) * scale), 0.0], steps=None, sigma_max=None
        ).made

    assert (made(1.0), made(1 + 1e-9)) == (N, 0)
    with pytest.raises(ValueError, match="grid is"):
        made(1 + 1e-4)


def test_the_manifest_of_an_endless_start_is_json(tmp_path):
    model = ddim_ode.exact.gaussian([0.0, 1.0], [[1, 0], [0, 1]], ddim_ode.schedules.flow(), "v")
    run = make(tmp_path, model=model, sigma_max=None)
    json.loads((tmp_path / "manifest.json").read_text(), parse_constant=pytest.fail)
    assert (run.made, make(tmp_path, model=model, sigma_max=None).made) == (N, 0)
