"""Conditions of the wrong type, wherever conditions go: an error that names what to give."""

import numpy as np
import pytest
import torch
from problems import COSINE, mixture_2d, points
from refusals import expect, sample

import ddim_ode

SHIPPED = ddim_ode.load("fashion-mnist")
X = ddim_ode.noise(SHIPPED.shape, SHIPPED.schedule, seeds=[0, 1])
Y = torch.tensor([1, 2])
MIXTURE, POINTS = mixture_2d(COSINE), points(2, 2)
QUIET = dict(progress=False)
CALLS = {
    "call": lambda model, x, **c: model(x, 1.0, **c),
    "sample": lambda model, x, **c: ddim_ode.sample(model, x, nfe=1, **c),
    "rk45": lambda model, x, **c: ddim_ode.sample(model, x, "rk45", nfe=7, **c),
    "scipy": lambda model, x, **c: ddim_ode.sample(model, x, "scipy:RK45", nfe=7, **c),
    "adjoint": lambda model, x, **c: ddim_ode.sample(
        model, x, "torchdiffeq:dopri5", differentiable="adjoint", **c
    ),
    "encode": lambda model, x, **c: ddim_ode.encode(model, x, nfe=1, **c),
    "decode": lambda model, x, **c: ddim_ode.decode(model, x, nfe=1, **c),
    "reversible": lambda model, x, **c: ddim_ode.encode(model, x, "reversible", steps=1, **c),
    "likelihood": lambda model, x, **c: ddim_ode.log_likelihood(model, x, **c),
    "flow": lambda model, x, **c: ddim_ode.ProbabilityFlow(model, "t", **c)(0.5, x),
    "batch": lambda model, x, **c: ddim_ode.sample(
        ddim_ode.accelerate(model, batch=1), x, nfe=1, **c
    ),
    "compare": lambda model, x, **c: ddim_ode.compare(
        model, "ddim", nfe=1, n=2, shape=x.shape[1:], **c, **QUIET
    ),
    "calibrate": lambda model, x, **c: ddim_ode.calibrate(
        model, 1, n=2, shape=x.shape[1:], **c, **QUIET
    ),
    "diagnose": lambda model, x, **c: ddim_ode.diagnose(model, n=2, shape=x.shape[1:], **c),
}
WRONG = {
    "a tensor": (Y, "must be {name: value}"),
    "a list": ([1, 2], "must be {name: value}"),
    "a string": ("y", "must be {name: value}"),
    "a number": (3, "must be {name: value}"),
    "no names": ({0: Y}, "each name a string"),
    "its own argument": ({"t": Y}, "which the network is given anyway"),
    "a list of labels": ({"y": [1, 2]}, "give torch.as_tensor"),
    "an array": ({"y": np.array([1, 2])}, "give torch.as_tensor"),
    "none": ({"y": None}, "got NoneType; what all share goes into shared="),
    "text": ({"y": "bag"}, "got str; what all share goes into shared="),
    "a bool": ({"y": True}, "one row per"),
    "one for all": ({"y": torch.tensor(1)}, "goes into shared="),
    "one row": ({"y": Y[:1]}, "expand"),
    "too many": ({"y": torch.arange(3)}, "one row per"),
    "sparse": ({"y": Y.to_sparse()}, "to_dense"),
}
SHIPPED_ONLY = {
    "floats": ({"y": Y.float()}, "whole numbers"),
    "bools": ({"y": Y > 1}, "whole numbers"),
    "bytes": ({"y": Y.to(torch.uint8)}, "int64 or int32"),
    "two axes": ({"y": Y[:, None]}, "whole numbers"),
    "too high": ({"y": Y + 10}, "the network knows 0 to 10"),
    "below 0": ({"y": -Y}, "the network knows 0 to 10"),
    "another name": ({"class_labels": Y}, "condition 'class_labels'; valid, nearest first: y"),
}


def test_sizes_that_the_shipped_network_cannot_halve():
    for shape in ((2, 1, 30, 30), (2, 1, 28), (2, 1, 28, 28, 1)):
        with pytest.raises(ValueError, match=r"H and W multiples of 4|give \(B, 1, 28, 28\)"):
            ddim_ode.sample(SHIPPED, torch.zeros(shape), nfe=1)
    assert ddim_ode.sample(SHIPPED, torch.zeros(1, 1, 32, 20), nfe=1).x.shape == (1, 1, 32, 20)


@pytest.mark.parametrize("nfe", [[6], "6", None, 6.0, True, {}])
def test_the_shipped_plans_are_asked_for_by_whole_numbers(nfe):
    expect(lambda: SHIPPED.calibrated(nfe), r"nfe=.* must be a whole number")
    if not isinstance(nfe, (list, dict)):
        expect(lambda: SHIPPED.calibrated_within([nfe]), r"budgets=.* must be a whole number")


OF_MIXTURES = [*WRONG, "not known", "shared", "shared of no names"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", OF_MIXTURES)
def test_wherever_a_condition_goes_it_is_named(kind, call):
    if call == "diagnose" and kind == "too many":
        return  # it takes the first n
    cond, message = WRONG.get(kind, ({"y": Y}, "knows no condition 'y'; drop cond and shared"))
    given = dict(cond=cond)
    if kind == "shared":
        given = dict(shared={"y": 3})
    if kind == "shared of no names":
        given, message = dict(shared=3), r"shared=3 must be \{name: value}"
    expect(lambda: CALLS[call](MIXTURE, POINTS, **given), message)


@pytest.mark.parametrize(
    "call", ["call", "sample", "rk45", "adjoint", "likelihood", "flow", "batch"]
)
def test_what_the_shipped_network_knows_is_named(call):
    for cond, message in (*WRONG.values(), *SHIPPED_ONLY.values()):
        expect(lambda cond=cond: CALLS[call](SHIPPED, X, cond=cond), message)
    expect(lambda: CALLS[call](SHIPPED, X, shared=3), r"shared=3 must be \{name: value}")


def own(net, **options):
    return ddim_ode.Denoiser(net, COSINE, **options)


@pytest.mark.parametrize(
    ("model", "x", "given", "message"),
    [
        (own(lambda x, t: x), POINTS, dict(cond={"y": Y}), r"net\(x, t, y=y\).* drop the cond"),
        (own(lambda x, t: x), POINTS, dict(shared={"w": 1}), r"net\(x, t, w=w\)"),
        (own(lambda x, t, y: x), POINTS, {}, r"net\(x, t\).*'y'.* give those .* as cond="),
        (own(torch.nn.Identity()), POINTS, {}, r"called as net\(x, t\)"),
        (SHIPPED, X[0], {}, r"x is \(1, 28, 28\).* give x\[None\], a batch of one"),
        (own(lambda x, t: x, shape=(3,)), POINTS[0], {}, r"x is \(2,\).* give \(B, 3\)"),
        (
            own(lambda x, t, c: x * c),
            POINTS,
            dict(cond={"c": torch.ones(2, 1, device="meta")}),
            r"cond\['c'\] is on meta",
        ),
    ],
)
def test_what_a_network_does_not_take_is_named(model, x, given, message):
    expect(sample(model, x, steps=2, **given), message)


def test_a_networks_own_mistake_comes_through():
    with pytest.raises(TypeError, match="can only concatenate str"):
        ddim_ode.sample(own(lambda x, t: "a" + x), POINTS, steps=2)
