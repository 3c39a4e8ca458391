"""compare: the numbers are right, their uncertainty is right, and nothing is computed twice."""

import copy
import dataclasses
import enum
import functools
import threading
import types
import warnings

import numpy as np
import pytest
import torch
from problems import COSINE, DDPM, Counting, mixture_1d, mixture_2d

import ddim_ode
from ddim_ode.comparison.result import Interrupted
from ddim_ode.denoising.seeding import GENERATOR
from ddim_ode.solve.model_key import model_key
from ddim_ode.solve.solution import norm_per_sample


def compare(model, *args, **options):
    return ddim_ode.compare(model, *args, **{"reference": 1e-3, "progress": False, **options})


def opaque(exact):
    """The mixture behind a plain callable that counts."""
    net = Counting(exact.net)
    options = dict(prediction=exact.prediction, time=exact.time, dtype=torch.float64)
    return net, ddim_ode.Denoiser(net, exact.schedule, **options)


def numbers(result):
    """The rows without what differs from run to run."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result.rows]


# -- what a comparison measures -----------------------------------------------------------------


def test_rows_are_means_over_samples_of_the_errors_of_sample():
    model = mixture_2d(DDPM)
    r = compare(model, ["heun", "dpmpp3m:half"], [6], n=24, batch=7, keep=9)
    x = ddim_ode.noise((2,), DDPM, seeds=range(24))
    for row, method in zip(r.to_dicts(), ("heun", "dpmpp3m:half")):
        sol = ddim_ode.sample(model, x, method, nfe=6)
        e = norm_per_sample(sol.x.double() - r.reference.x).numpy()
        assert r.errors[row["row"]] == pytest.approx(e, rel=1e-5)
        assert (row["method"], row["nfe"], row["budget"]) == (method, sol.nfe, 6)
        assert row["error"] == pytest.approx(e.mean(), rel=1e-5)
        assert row["error_median"] == pytest.approx(np.median(e), rel=1e-5)
        assert row["error_typical"] == pytest.approx(np.exp(np.log(e).mean()), rel=1e-5)
        assert row["error_low"] < row["error"] < row["error_high"]
        assert (row["grid"], row["sigma_min"]) == ("trailing", sol.sigmas[-2])
        assert r.samples[row["row"]].numpy() == pytest.approx(sol.x[:9].numpy(), abs=1e-6)


def test_a_sample_does_not_depend_on_how_many_there_are():
    model = mixture_2d(COSINE)
    few = compare(model, ["ddim"], [5], n=6)
    more = compare(model, ["ddim"], [5], n=16, batch=5)
    late = compare(model, ["ddim"], [5], n=4, seed=2)
    assert few.errors[0] == pytest.approx(more.errors[0][:6], rel=1e-5)
    assert late.errors[0] == pytest.approx(more.errors[0][2:6], rel=1e-5)
    assert late.seeds == [2, 3, 4, 5]


def test_conditions_reach_their_samples():
    exact = mixture_1d(COSINE)
    options = dict(time=exact.time, dtype=torch.float64)
    model = ddim_ode.Denoiser(lambda x, t, k, c: exact.net(x, t) * k * c, COSINE, **options)
    k = torch.linspace(0.5, 1.0, 9, dtype=torch.float64)[:, None]
    by_tensor, by_function = (
        compare(model, ["ddim"], [5], shape=(1,), n=9, batch=4, cond=cond, shared={"c": 1.0})
        for cond in ({"k": k}, lambda i: {"k": k[i]})
    )
    assert numbers(by_tensor) == numbers(by_function)
    alone = compare(
        model, ["ddim"], [5], shape=(1,), n=1, seed=8, cond={"k": k[8:]}, shared={"c": 1}
    )
    assert by_tensor.errors[0][8] == pytest.approx(alone.errors[0][0], rel=1e-5)


def test_grids_and_cuts_are_axes():
    r = compare(
        mixture_2d(DDPM), ["ddim"], [5], n=4, grid=["time", "trailing"], sigma_min=[0.1, 0.5]
    )
    last = {(row["grid"], round(row["sigma_min"], 3)) for row in r.rows}
    trailing = round(float(DDPM.sigma(200)), 3)
    assert last == {("time", 0.1), ("time", 0.5), ("trailing", trailing)}


def test_best_grid_is_chosen_on_other_noises_than_it_is_reported_on():
    model = mixture_2d(DDPM)
    r = compare(model, ["unipc2", "ddim"], [6], n=24, grid="best")
    assert (r.searched, r.seeds) == (12, list(range(12, 24)))
    for row in r.rows:
        tried = [s for s in r.search if s["method"] == row["method"]]
        assert len(tried) == row["grids_tried"] == 25
        chosen = min(tried, key=lambda s: s["error_typical"])
        assert (row["grid"], row["sigma_min"]) == (chosen["grid"], chosen["sigma_min"])
        cut = None if row["grid"] == "trailing" else row["sigma_min"]
        again = [
            compare(model, [row["method"]], [6], n=12, seed=seed, grid=row["grid"], sigma_min=cut)
            for seed in (0, 12)
        ]
        assert chosen["error"] == pytest.approx(again[0].rows[0]["error"], rel=1e-4)
        assert row["error"] == pytest.approx(again[1].rows[0]["error"], rel=1e-4)
    assert "chosen on 12 other noises" in r.table()


def test_methods_come_in_many_shapes():
    model = mixture_2d(COSINE)
    plan = ddim_ode.plan("heun", COSINE, ddim_ode.grids.make_grid("log_snr", COSINE, 4))
    mine = ddim_ode.Method("mine", order=2, chart="flow", past=2)
    r = compare(model, {"planned": {7: plan}, "ab": mine, "tde": "torchdiffeq:rk4"}, [8, 10], n=4)
    found = [(row["method"], row["budget"], row["nfe"]) for row in r.rows]
    assert found == [("planned", 8, 7), ("ab", 8, 8), ("ab", 10, 10), ("tde", 8, 5), ("tde", 10, 9)]
    assert r.rows[0]["grid"] == "plan"
    assert len({row["method"] for row in compare(model, nfe=[5], n=2).rows}) >= 8


# -- what it costs ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"grid": "best"}])
def test_every_network_evaluation_is_reported(options):
    net, model = opaque(mixture_2d(COSINE))
    methods = ["ddim", "heun", "torchdiffeq:midpoint"]
    r = compare(model, methods, [5, 8], shape=(2,), n=10, **options)
    assert net.rows == r.net_evals + r.reference_net_evals
    assert all(row["net_evals"] == row["nfe"] * row["n"] for row in r.rows)


def test_evaluations_under_guidance_are_counted_twice():
    exact = mixture_1d(COSINE)
    net = Counting(lambda x, t, y: exact.net(x, t))
    guidance = ddim_ode.Guidance(2.0, {"y": 1})
    model = ddim_ode.Denoiser(net, COSINE, time=exact.time, guidance=guidance)
    r = compare(model, ["ddim"], [5], shape=(1,), n=3, cond={"y": torch.zeros(3).long()})
    assert net.rows == r.net_evals + r.reference_net_evals
    assert r.net_evals == 2 * 5 * 3


# -- the cache ----------------------------------------------------------------------------------


def test_it_resumes_without_repeating_a_call(tmp_path):
    exact = mixture_2d(COSINE)
    calls = (["ddim", "unipc2"], [5, 8])
    options = dict(shape=(2,), n=6, batch=4, key="mixture")
    whole_net, whole_model = opaque(exact)
    whole = compare(whole_model, *calls, **options)
    net, model = opaque(exact)
    stop_at = 2 * 604 + 2 * 5 + 8  # after the reference, ddim at 5, half of ddim at 8

    def stopping(x, t):
        if net.calls == stop_at:
            raise KeyboardInterrupt
        return net(x, t)

    model.net = stopping
    with pytest.raises(Interrupted, match="1 of 4 rows are finished and kept in") as stop:
        compare(model, *calls, **options, cache=tmp_path)
    assert [row["budget"] for row in stop.value.partial.rows] == [5]
    assert "ddim" in stop.value.partial.table()
    model.net = net
    resumed, again = (compare(model, *calls, **options, cache=tmp_path) for _ in range(2))
    assert net.rows == whole_net.rows
    assert resumed.errors[3] == pytest.approx(whole.errors[3], rel=1e-12)
    assert again.rows == resumed.rows


def test_what_changes_the_result_changes_the_key(tmp_path):
    net, model = opaque(mixture_2d(COSINE))

    def made(**changes):
        before = net.calls
        options = dict(shape=(2,), n=2, cache=tmp_path, key="a", nfe=[5]) | changes
        compare(model, ["ddim"], **options)
        return net.calls - before

    assert made() == 609
    assert made() == 0
    assert made(nfe=[5, 6]) == 6
    assert made(grid="karras") == 5
    assert made(keep=1) == 5
    assert made(key="b") == made(seed=1) == 609
    model.prediction = "x0"
    assert made() > 600


def key_of(net, **options):
    return model_key(ddim_ode.Denoiser(net, COSINE, **options))


def test_a_network_is_known_by_its_parameters():
    layer = torch.nn.Linear(2, 2)
    before = key_of(layer)
    assert before == key_of(layer) != key_of(layer, time_offset=-1.0)
    with torch.no_grad():
        layer.weight[0, 0] += 1e-6
    assert before != key_of(layer)
    assert model_key(mixture_1d(COSINE)) != model_key(mixture_1d(DDPM))
    assert model_key(opaque(mixture_1d(COSINE))[1]) is None


def double(x):
    return 2 * x


class Kind(enum.Enum):
    ONE = 1
    TWO = 2


# Of each pair one module has the first, another the second, and the rest alike.
HELD = {
    "numbers": (1.0, 2.0),
    "configurations": ({"centred": False}, {"centred": True}),
    "functions": (torch.relu, torch.tanh),
    "functions of ours": (double, torch.nn.functional.silu),
    "lambdas": (lambda x: x + 1, lambda x: x + 2),
    "closures": tuple(functools.partial(double, x=s) for s in (1.0, 2.0)),
    "what is in a namespace": tuple(types.SimpleNamespace(a={"b": [print, s]}) for s in (1, 2)),
    "sets": ({"deep": [{1, 2}]}, {"deep": [{1, 3}]}),
    "complex numbers": ([1j], [2j]),
    "enumerations": (Kind.ONE, Kind.TWO),
    "modules in a list": tuple([torch.nn.Linear(1, 1)] for _ in range(2)),
    "words": tuple(np.array([word, "dog"], dtype=object) for word in ("cat", "cow")),
}


@pytest.mark.parametrize("what", HELD)
def test_whatever_a_module_holds_is_of_its_key(what):
    def key(value):
        net = torch.nn.Identity()
        net.held = value
        return key_of(net)

    first, second = HELD[what]
    assert key(first) == key(copy.deepcopy(first)) != key(second)
    assert key(first) is not None


def test_buffers_and_modes_are_of_the_key():
    def key(table=0.0, training=True):
        net = torch.nn.Sequential(torch.nn.Identity())
        net[0].register_buffer("table", torch.tensor(table), persistent=False)
        net[0].train(training)
        return key_of(net)

    assert len({key(), key(), key(table=1.0), key(training=False)}) == 3


def test_a_key_is_the_same_whatever_changes_no_answer():
    net = torch.nn.Identity()
    net.config = {"_name_or_path": "/some/place"}
    plain = key_of(net)
    net.gradient_checkpointing, net._seen, net.config["_name_or_path"] = True, 7, "/another"
    assert key_of(net) == plain
    net.me, net.lock = [net], threading.Lock()  # a cycle, and what has no content
    assert key_of(net) == key_of(net) is not None
    keys = []
    for net.device in map(torch.device, ("cpu", "cuda:1")):
        keys.append(key_of(net))
    assert keys[0] == keys[1]
    hook = net.register_forward_hook(lambda module, inputs, out: 2 * out)
    assert key_of(net) != keys[1]
    hook.remove()
    del net.me, net.lock, net.device
    assert key_of(net) == plain


def test_a_damaged_file_is_named_and_made_again(tmp_path):
    model = mixture_2d(COSINE)
    first = compare(model, ["ddim"], [5], n=4, cache=tmp_path)
    (cell,) = tmp_path.glob("cell-*")
    cell.write_bytes(cell.read_bytes()[:50])
    with pytest.warns(UserWarning, match=cell.name):
        second = compare(model, ["ddim"], [5], n=4, cache=tmp_path)
    assert numbers(first) == numbers(second)
    assert not list(tmp_path.glob("*.partial"))


def test_a_network_without_a_key_is_not_kept(tmp_path):
    _, model = opaque(mixture_2d(COSINE))
    with pytest.warns(UserWarning, match="give key="):
        compare(model, ["ddim"], [5], shape=(2,), n=2, cache=tmp_path / "new")
    assert not (tmp_path / "new").exists()


# -- edges --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(methods=["ddim", "unipc9"]), "unknown method 'unipc9'; valid, nearest first: unipc"),
        (dict(methods=["torchdiffeq:nope"]), "unknown torchdiffeq solver"),
        (dict(methods=["ddpm"]), "adds noise"),
        (dict(methods=[]), "methods is empty"),
        (dict(methods={"a": "ddim", "b": {}}), "'b'. has no plans"),
        (dict(methods=["ddim", ddim_ode.Method("ddim", order=2, past=2)]), "are called 'ddim'"),
        (dict(nfe=[]), "nfe is empty"),
        (dict(nfe=[5, 0]), "whole number >= 1"),
        (dict(nfe=5.0), "nfe=5.0 must be a whole number"),
        (dict(grid="spiral"), "unknown grid 'spiral'"),
        (dict(grid=[]), "grid is empty"),
        (dict(grid=np.array([80.0, 0.0])), "grid=array.* must be names .*belong in a plan"),
        (dict(grid=torch.tensor([80.0, 0.0])), "belong in a plan"),
        (dict(grid=lambda steps: [80.0, 0.0]), "belong in a plan"),
        (dict(grid="trailing", sigma_min=0.1), "drop sigma_min"),
        (dict(grid="best", sigma_min=0.1), "drop sigma_min"),
        (dict(grid="best", n=1), "n=1 is too few"),
        (dict(sigma_min=1e9), r"must lie in \(0"),
        (dict(n=0), "n=0 must be"),
        (dict(confidence=95), "strictly between"),
        (dict(cond={"y": torch.zeros(3)}), r"one row per noise \(4\)"),
        (dict(reference=-1.0), "reference=-1.0"),
        (dict(reference=torch.zeros(3, 2)), "reference has shape"),
        (dict(shape=None), "give shape="),
    ],
)
def test_mistakes_are_named_before_any_network_call(call, message):
    net, model = opaque(mixture_2d(COSINE))
    options = dict(methods=["ddim"], nfe=[5], n=4, shape=(2,)) | call
    with pytest.raises(ValueError, match=message):
        compare(model, **options)
    assert net.calls == 0


def test_a_budget_that_a_method_cannot_keep_leaves_the_others_intact():
    model = mixture_2d(COSINE)
    r = compare(model, ["rk4", "ddim", "torchdiffeq:rk4", "scipy:RK45"], [3], n=4)
    assert [row["error"] is None for row in r.rows] == [True, False, True, True]
    assert "cost 5 calls" in r.rows[0]["note"]
    assert "cost 5 calls" in r.rows[2]["note"]
    assert (r.rows[3]["failed"], r.rows[3]["status"]) == (4, {"max_nfe": 4})
    assert r.best(3)["method"] == "ddim"
    assert r.rows[1]["error"] == compare(model, ["ddim"], [3], n=4).rows[0]["error"]


def test_a_sample_that_fails_in_one_cell_fails_there_only():
    exact = mixture_1d(DDPM)

    def net(x, t, bad, broken):
        out = exact.net(x, t.double())
        hit = bad if broken == "everywhere" else bad & torch.isclose(t, level, rtol=1e-9)
        return torch.where(hit[:, None], torch.nan, out)

    level = torch.tensor(float(DDPM.sigma(800)), dtype=torch.float64)
    model = ddim_ode.Denoiser(net, DDPM, time=exact.time, dtype=torch.float64)
    bad = torch.arange(6) == 2
    fine, once, always = (
        compare(
            *(model, ["ddim", "unipc2"], [5, 8]),
            **dict(shape=(1,), n=6, cond={"bad": flags}, shared={"broken": broken}),
        )
        for flags, broken in (
            (torch.zeros(6).bool(), ""),
            (bad, "at one level"),
            (bad, "everywhere"),
        )
    )
    assert [row["failed"] for row in once.rows] == [1, 0, 1, 0]
    assert [row["failed"] for row in always.rows] == [1, 1, 1, 1]
    assert once.rows[0]["status"] == {"non_finite": 1, "success": 5}
    assert "1 of 6 failed" in once.rows[0]["note"]
    for i in range(4):
        rest = np.delete(fine.errors[i], 2)
        assert np.delete(once.errors[i], 2) == pytest.approx(rest, rel=1e-9)
        assert always.rows[i]["error"] == pytest.approx(rest.mean(), rel=1e-9)
    assert once.errors[1] == pytest.approx(fine.errors[1], rel=1e-9)
    assert always.best(5)  # all methods failed there: the comparison is still fair
    assert "1 of 6 failed: 1 non_finite" in str(always.best(5))
    assert not always.recommend(1e3)
    assert "1 of 6 failed: 1 non_finite; ask ddim_ode.diagnose" in str(always.recommend(1e3))
    assert once.rows[once.recommend(1e3)["row"]].failed == 0


def test_one_sample_has_no_interval():
    r = compare(mixture_1d(COSINE), ["ddim", "heun"], [5], n=1)
    assert (r.rows[0]["error_low"], r.rows[0]["error_high"]) == (None, None)
    assert r.best(5)
    assert "take n >= 2" in str(r.recommend(1.0))
    assert r.table()


def test_a_plan_on_its_own_examples_is_warned_of():
    model = mixture_2d(COSINE)
    plan = dataclasses.replace(
        ddim_ode.plan("ddim", COSINE, [5.0, 1.0, 0.0]),
        fit=dict(seed=4, n=10, generator=GENERATOR, model_key=None),
    )
    options = dict(methods={"mine": plan, "ddim": "ddim"}, nfe=[2], n=4, progress=False)
    said = "was fitted to noises of seeds 4 to 13, and 2 of those it is measured on .* give seed=14"
    with pytest.warns(UserWarning, match=said):
        ddim_ode.compare(model, seed=2, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in (0, 14):
            ddim_ode.compare(model, seed=seed, **options)
        older = dataclasses.replace(plan, fit=dict(seed=4, n=10, model_key=None))  # other noise
        ddim_ode.compare(model, seed=2, **dict(options, methods={"mine": older}))
    guided = dataclasses.replace(plan, fit=dict(plan.fit, model_key="another's", guidance=2.0))
    with pytest.warns(UserWarning, match="for guidance 2, and runs with guidance 1") as said:
        ddim_ode.compare(model, seed=2, **dict(options, methods={"mine": guided}))
    assert not any("another model" in str(w.message) for w in said)  # once is enough


def test_a_plan_of_another_network_is_told_by_what_it_predicts():
    fit = dict(prediction="x0", guidance=None)
    plan = dataclasses.replace(ddim_ode.plan("ddim", COSINE, [5.0, 1.0, 0.0]), fit=fit)
    with pytest.warns(UserWarning, match="for a network that predicts x0, and runs with one that"):
        ddim_ode.sample(mixture_2d(COSINE), torch.zeros(2, 2), plan=plan)


def test_a_denoiser_that_knows_its_shape_needs_none():
    net = ddim_ode.Denoiser(lambda x, t: torch.tanh(x), COSINE, shape=(2,))
    assert len(compare(net, ["ddim"], [2], n=3).rows) == 1
    with pytest.raises(ValueError, match=r"shape=2 must be that of ONE sample"):
        ddim_ode.Denoiser(lambda x, t: x, COSINE, shape=2)
