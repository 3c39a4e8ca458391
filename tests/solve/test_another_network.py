"""A plan that was fitted to another network runs, and says so, wherever plans run."""

import copy
import dataclasses
import warnings

import pytest
import torch
from problems import COSINE, mixture_1d, mixture_2d

import ddim_ode
from ddim_ode.cli import main
from ddim_ode.solve import model_key as content
from ddim_ode.solve import plan_checks

SAID = "was calibrated on another model than this one"
PLAN = ddim_ode.plan("ddim", COSINE, [5.0, 1.0, 0.0])


def network(seed):
    torch.manual_seed(seed)

    class Net(torch.nn.Linear):
        def forward(self, x, t):
            return super().forward(x)

    net = Net(2, 2).requires_grad_(False).eval()
    return ddim_ode.Denoiser(net, COSINE, shape=(2,))


def fitted(model):
    return dataclasses.replace(PLAN, fit=dict(model_key=content.model_key(model)))


def asked(model, plan):
    x = ddim_ode.noise((2,), COSINE, seeds=[0], sigma=5.0)
    yield lambda: ddim_ode.sample(model, x, plan=plan)
    yield lambda: ddim_ode.compare(model, [plan], [2], n=2, progress=False, reference=x[[0, 0]])


def test_it_is_said_by_every_call_and_once():
    mine, others = network(0), network(1)
    for call in asked(others, fitted(mine)):
        with pytest.warns(UserWarning, match=SAID) as said:
            call()
        assert len(said) == 1
        plan_checks._SEEN.clear()
    for call in asked(mine, fitted(mine)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call()


def test_a_large_network_is_hashed_once_for_each_plan(monkeypatch):
    model, other = network(0), fitted(network(1))
    mine = fitted(model)
    hashed, key = [], content.model_key
    monkeypatch.setattr(content, "model_key", lambda m: hashed.append(m) or key(m))
    x = torch.zeros(1, 2)
    with pytest.warns(UserWarning, match=SAID):
        ddim_ode.sample(model, x, plan=other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ddim_ode.sample(model, x, plan=other)
    assert len(hashed) == 1
    ddim_ode.sample(model, x, plan=mine)
    ddim_ode.sample(model, x, plan=PLAN)  # of a method: nothing to be another of
    assert len(hashed) == 2
    with pytest.warns(UserWarning, match=SAID):  # the next model is another
        ddim_ode.sample(copy.copy(model), x, plan=other)


@pytest.mark.parametrize("fit", [dict(model_key=None), dict(model_key=[1]), dict(model_key=3), {}])
def test_what_a_file_does_not_say_is_no_reason_to_warn(fit):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = dataclasses.replace(PLAN, fit=fit)
        ddim_ode.sample(mixture_1d(COSINE), torch.zeros(1, 1), plan=plan)


def test_a_key_of_the_users_own_is_believed(tmp_path):
    model, other = mixture_2d(COSINE), fitted(network(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = dict(n=2, key="mine", progress=False)
        ddim_ode.compare(model, [other], [2], **options)
        ddim_ode.generate(copy.copy(model), 2, tmp_path, plan=other, key="mine")


def test_the_command_line_says_it(tmp_path, capsys):
    model = ddim_ode.load("fashion-mnist", guidance=1.0)
    plan = model.calibrated(5)
    dataclasses.replace(plan, fit={**plan.fit, "model_key": "0" * 24}).save(tmp_path / "p.json")
    call = ["sample", "--plan", str(tmp_path / "p.json"), "--guidance", "1", "--seeds", "0"]
    assert main([*call, "--quiet", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert said.count("ddim-ode sample: note: calibrated-5 was calibrated on another model") == 1
