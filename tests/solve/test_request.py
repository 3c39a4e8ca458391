"""Which options a kind of solve takes: one table, tested as one."""

import inspect

import pytest
import torch
from problems import COSINE, mixture_2d
from refusals import expect

import ddim_ode
from ddim_ode.solve.request import DEFAULTS, TAKES, Request, SolveOptions, chooses_steps, kind_of

MODEL = mixture_2d(COSINE)
X = torch.zeros(2, 2)
PLAN = ddim_ode.plan("ddim", COSINE, [9.0, 1.0, 0.1])
PLACES, TOLERANCES = ("steps", "grid", "timesteps"), ("rtol", "atol", "max_nfe")
# Of each kind a request with as little as makes it that kind.
LEAST = {
    "plan": (None, dict(plan=PLAN)),
    "fixed": ("ddim", {}),
    "adaptive": ("rk45", {}),
    "external": ("scipy:RK45", {}),
    "reversible": ("reversible", {}),
}
VALUES = dict(
    steps=2, nfe=6, grid="karras", timesteps=[500, 100], plan=PLAN, sigma_max=9.0, sigma_min=0.1,
    final="sigma_min", variant=None, start="ramp", chart="flow", eta=0.0, noise_std=[0.0], noise="path",
    seeds=[1, 2],
    rtol=1e-2, atol=1e-2, max_nfe=60, error_norm="batch", dense=False, cond={}, shared={},
    known=ddim_ode.Known(X, torch.tensor([True, False]), [0, 1]), progress=True, callback=print,
    record="x", on_nan="hold", differentiable=True,
)  # fmt: skip


def of(kind, name):
    method, least = LEAST[kind]
    caller = "decode" if kind == "reversible" else "sample"
    return Request.of(MODEL, X, method, {**least, name: VALUES[name]}, caller=caller)


def test_every_option_is_tried():
    assert VALUES.keys() == SolveOptions.__annotations__.keys()
    assert DEFAULTS.keys() < VALUES.keys()


@pytest.mark.parametrize("name", [name for name in VALUES if VALUES[name] is not None])
@pytest.mark.parametrize("kind", TAKES)
def test_a_kind_takes_what_the_table_says_and_refuses_the_rest_by_name(kind, name):
    if kind == "external" and name == "differentiable":
        pytest.skip("scipy has no gradient; torchdiffeq's solvers have")
    if kind == "reversible" and name in ("seeds", "known"):
        with pytest.raises(
            TypeError, match=f"decode.. got an unexpected keyword argument '{name}'"
        ):
            of(kind, name)
        return
    makes_it_fixed = kind == "adaptive" and name in PLACES
    gives_it_up = name == "plan" and kind != "plan"
    if gives_it_up:
        expect(lambda: of(kind, name), "both plan and method are given; drop method")
    elif name in TAKES[kind]:
        assert of(kind, name).kind == ("fixed" if makes_it_fixed else kind)
    else:
        expect(lambda: of(kind, name), rf"drop {name}|undone.*drop {name}")


@pytest.mark.parametrize(
    ("method", "how", "kind", "own"),
    [
        (None, dict(steps=2), "fixed", False),
        ("heun", dict(nfe=9), "fixed", False),
        ("heun", dict(rtol=1e-2), "adaptive", True),
        ("heun", dict(max_nfe=50), "adaptive", True),
        ("rk45", {}, "adaptive", True),
        ("rk45", dict(steps=4), "fixed", False),
        ("rk45", dict(timesteps=[1, 300, 900]), "fixed", False),
        ("rk45", dict(grid=[20.0, 1.0, 0.0]), "fixed", False),
        ("bosh3", dict(nfe=20), "adaptive", True),
        ("bosh3", dict(rtol=1e-2), "adaptive", True),
        ("torchdiffeq:dopri5", {}, "external", True),
        ("torchdiffeq:rk4", dict(steps=2), "external", False),
        ("scipy:RK45", {}, "external", True),
    ],
)
def test_the_kind_is_decided_in_one_place(method, how, kind, own):
    placed, tolerant = not how.keys().isdisjoint(PLACES), not how.keys().isdisjoint(TOLERANCES)
    assert kind_of(method, placed=placed, tolerant=tolerant) == kind
    assert kind_of("dpmpp2m", tolerant=True) == "fixed"
    assert kind_of("reversible:trig") == "reversible"
    if method is not None:
        assert chooses_steps(method, placed, tolerant) == own
    sol = ddim_ode.sample(MODEL, X, method, **how)
    assert (sol.plan is None) == (kind != "fixed")
    assert isinstance(sol.sigmas, list) == (kind == "adaptive")


@pytest.mark.parametrize("function", [ddim_ode.sample, ddim_ode.encode, ddim_ode.decode])
def test_the_options_are_listed_where_help_and_completion_look(function):
    listed = inspect.signature(function).parameters
    ways = {"seeds", "known"} if function is not ddim_ode.sample else set()
    assert listed.keys() >= SolveOptions.__annotations__.keys() - ways
    assert not any(p.kind is p.VAR_KEYWORD for p in listed.values())
    assert listed["record"].default == "none"
    with pytest.raises(
        TypeError, match="unexpected keyword argument 'stepz'; did you mean 'steps'"
    ):
        function(MODEL, X, stepz=3)


def test_a_plan_for_a_model_is_what_sample_runs():
    for method, how in (
        ("unipc2", dict(nfe=8)),
        ("heun", dict(steps=4, grid="karras", sigma_max=20.0)),
        ("ddim", dict(timesteps=[900, 500, 100], eta=0.5)),
        (None, dict(grid=[9.0, 1.0, 0.0])),
        ("ab4", dict(steps=20, start="rk", final="sigma_min")),
    ):
        plan = ddim_ode.plan_for(MODEL, method, **how)
        assert plan == ddim_ode.sample(MODEL, X, method, **how, seeds=[0, 1]).plan
    assert ddim_ode.plan_for(MODEL, "rk45", steps=2).nfe == 7
    expect(lambda: ddim_ode.plan_for(MODEL, "scipy:RK45", steps=2), "has no plan; take one of")
    with pytest.raises(TypeError, match="unexpected keyword argument 'rtol'"):
        ddim_ode.plan_for(MODEL, "rk45", rtol=1e-2)
    assert "nfe" in inspect.signature(ddim_ode.plan_for).parameters
