"""Null values with a row for each sample: each is guided away from its own, wherever its row goes.

Guided Gaussians of one variance are again a Gaussian, of mean μ_∅ + s (μ_c − μ_∅), whose flow is known.
"""

import numpy as np
import pytest
import torch
from problems import COSINE, points
from refusals import expect
from test_guidance import LABELS, MEANS, VARIANCE, X, denoiser, gaussians

import ddim_ode
from ddim_ode import Guidance
from ddim_ode.solve import cuda_graph

SCALE, NULL = 2.5, torch.tensor([0, 2, 3, 2])
COND = {"y": LABELS}
ENDS = dict(sigma_max=20.0, sigma_min=0.05)


def guided(null=NULL, **options):
    return denoiser(gaussians, Guidance(SCALE, {"y": null}, **options))


def alone(i):
    """The model of one sample's null value."""
    return guided(int(NULL[i]))


def exact(i):
    mean = MEANS[NULL[i]] + SCALE * (MEANS[LABELS[i]] - MEANS[NULL[i]])
    return ddim_ode.exact.gaussian(mean.numpy(), VARIANCE * np.eye(3), COSINE)


def each(call):
    """What ``call(i, rows)`` gives of one sample at a time."""
    return torch.cat([call(i, slice(i, i + 1)) for i in range(4)])


@pytest.mark.parametrize(
    "null", [NULL, NULL.tolist(), NULL.numpy()], ids=["tensor", "list", "array"]
)
def test_an_adaptive_solve_takes_each_sample_to_its_own_gaussian(null):
    sol = ddim_ode.sample(
        guided(null), X, "rk45", rtol=1e-7, atol=1e-8, cond=COND, final="sigma_min", **ENDS
    )
    assert len(set(sol.sample_nfe.tolist())) > 1  # they leave the batch one by one
    flowed = each(lambda i, row: exact(i).flow(X[row], 20.0, 0.05))
    torch.testing.assert_close(sol.x, flowed, atol=1e-7, rtol=0)


SOLVES = dict(
    fixed=lambda model, x, cond: ddim_ode.sample(model, x, "heun", steps=6, cond=cond).x,
    adaptive=lambda model, x, cond: ddim_ode.sample(model, x, "rk45", cond=cond).x,
    multistep=lambda model, x, cond: ddim_ode.sample(
        model, x, "unipc3", rtol=1e-2, atol=1e-2, cond=cond
    ).x,
    bosh3=lambda model, x, cond: ddim_ode.encode(model, 0.1 * x, "bosh3", rtol=1e-5, cond=cond).x,
    torchdiffeq=lambda model, x, cond: ddim_ode.sample(
        model, x, "torchdiffeq:rk4", steps=6, cond=cond
    ).x,
    flow=lambda model, x, cond: ddim_ode.ProbabilityFlow(model, "t", cond=cond)(500.0, x),
    likelihood=lambda model, x, cond: ddim_ode.log_likelihood(
        model, x, rtol=0.1, cond=cond
    ).log_likelihood,
    steps=lambda model, x, cond: ddim_ode.log_likelihood(
        model, x, divergence="hutchinson", seeds=[5] * len(x), steps=9, method="heun", cond=cond
    ).log_likelihood,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:guidance")
@pytest.mark.parametrize(
    ("batch", "interval"), [(None, None), (1, None), (None, (0.3, 5.0)), (3, (0.3, 5.0))]
)
@pytest.mark.parametrize("name", SOLVES)
def test_each_sample_comes_out_as_if_made_alone(name, batch, interval):
    model = guided(interval=interval)
    if batch is not None:
        model = ddim_ode.accelerate(model, batch=batch)
    want = each(
        lambda i, row: SOLVES[name](
            guided(int(NULL[i]), interval=interval), X[row], {"y": LABELS[row]}
        )
    )
    torch.testing.assert_close(SOLVES[name](model, X, COND), want, atol=1e-10, rtol=1e-10)


def test_compare_splits_the_rows_of_null_values_with_its_batches():
    noises = ddim_ode.noise((3,), COSINE, seeds=range(4))
    ends = each(
        lambda i, row: (
            ddim_ode.sample(alone(i), noises[row], "heun", nfe=7, cond={"y": LABELS[row]}).x
        )
    )
    for batch in (3, 64):
        found = ddim_ode.compare(
            guided(), "heun", nfe=[7], shape=(3,), n=4, batch=batch, cond=COND, reference=ends,
            progress=False,
        )  # fmt: skip
        assert found.to_dicts()[0]["error"] < 1e-6


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_calibrate_measures_with_the_rows_of_its_noises():
    def by_hand(x, sigma, y, null):
        return torch.lerp(gaussians(x, sigma, null), gaussians(x, sigma, y), SCALE)

    options = dict(shape=(3,), n=4, sigma_max=20.0, progress=False)
    told = ddim_ode.calibrate(denoiser(by_hand), 3, cond={**COND, "null": NULL}, **options)
    plan = ddim_ode.calibrate(guided(), 3, cond=COND, batch=3, **options)
    known = told.fit["held_out"]["before"]
    assert plan.fit["held_out"]["before"] == pytest.approx(known, rel=1e-3)


@pytest.mark.parametrize("method", [dict(method="heun", steps=4), dict(method="rk45")])
@pytest.mark.parametrize(
    "cond", [COND, lambda index: {"y": LABELS[index]}], ids=["rows", "function"]
)
def test_generate_gives_every_index_its_own_null_value(tmp_path, cond, method):
    options = dict(shape=(3,), batch=3, shard=3, cond=cond, key="k", progress=False)
    run = ddim_ode.generate(guided(), 4, tmp_path, **options, **method)
    assert run.status == {"success": 4}
    made = torch.cat([run.shards.read(k).x for k in range(2)])
    noises = ddim_ode.noise((3,), COSINE, seeds=range(4))
    want = each(
        lambda i, row: ddim_ode.sample(alone(i), noises[row], cond={"y": LABELS[row]}, **method).x
    )
    torch.testing.assert_close(made, want, atol=1e-6, rtol=0)


def test_a_graph_is_given_the_null_values_of_its_batch(graphs_without_cuda):
    plan = ddim_ode.plan("dpmpp2m", COSINE, [9.0, 2.0, 0.5, 0.0])
    kept = NULL.clone()
    graph = cuda_graph.GraphedPlan(guided(kept), plan, X, COND)
    for null, x in ((NULL, X), (NULL.flip(0), points(4, 3, seed=2))):
        end, _ = graph(x, COND, guided(null))
        want = ddim_ode.sample(guided(null), x, plan=plan, cond=COND).x
        torch.testing.assert_close(end, want, atol=1e-12, rtol=0)
    assert torch.equal(kept, NULL)  # the user's own tensor is left alone


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("method", [dict(method="heun", steps=3), dict(method="rk45")])
def test_another_number_of_rows_is_refused(method, batch):
    model = guided(NULL[:3])
    if batch is not None:
        model = ddim_ode.accelerate(model, batch=batch)
    expect(lambda: ddim_ode.sample(model, X, cond=COND, **method), r"null\['y'\].* a row for each")
    for call in (
        lambda: ddim_ode.compare(model, "ddim", nfe=2, shape=(3,), n=4, cond=COND, progress=False),
        lambda: ddim_ode.calibrate(model, 2, shape=(3,), n=4, cond=COND, progress=False),
    ):
        with pytest.raises(ValueError, match=r"null\['y'\] has 3 rows for 4 samples"):
            call()


def test_a_null_value_keeps_all_its_digits():
    """A plain number is as wide as the condition that it stands for."""
    net = lambda x, t, c: torch.zeros_like(x) + c[:, None]  # noqa: E731
    cond = {"c": torch.full((4,), 0.7, dtype=torch.float64)}
    found = denoiser(net, Guidance(3.0, {"c": 0.1}))(X, 1.0, cond)[1]
    torch.testing.assert_close(found, torch.full_like(X, 0.1 + 3 * 0.6), atol=1e-14, rtol=0)
