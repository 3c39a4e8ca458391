"""Models go to other processes."""

import copy
import multiprocessing
import pickle

import pytest
import torch
from problems import COSINE, mixture_2d

import ddim_ode
from ddim_ode.solve.model_key import model_key

MODELS = {
    "mixture": mixture_2d(COSINE),
    "snapped": ddim_ode.exact.gaussian([0.5], [[0.3]], COSINE, "v", snap=True),
    "loaded": ddim_ode.load("fashion-mnist", guidance=2.0),
}


def solved(model):
    shape = (1, 28, 28) if isinstance(model.net, torch.nn.Module) else (len(model.means[0]),)
    cond = {"y": torch.tensor([3])} if model.guidance else None
    x = ddim_ode.noise(shape, model.schedule, seeds=[7])
    return ddim_ode.sample(model, x, "unipc2", steps=2, cond=cond).x


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("copied", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_a_pickled_model_is_the_same_model(name, copied):
    model = MODELS[name]
    expected = solved(model)
    again = copied(model)  # after it has been used
    torch.testing.assert_close(solved(again), expected, rtol=0, atol=0)
    assert model_key(again) == model_key(model)
    assert again.net is not model.net
    assert getattr(again.net, "__self__", again) is again  # and holds no part of the other


def test_a_spawned_process_takes_a_model():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(solved, [MODELS["mixture"]])
    torch.testing.assert_close(found, solved(MODELS["mixture"]), rtol=0, atol=1e-6)
