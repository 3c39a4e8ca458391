"""What a terminal and a notebook show of a result: short, aligned, true, and no HTML of somebody else's."""

import dataclasses
import xml.etree.ElementTree as ET

import pytest
import torch
from problems import COSINE, DDPM, mixture_2d

import ddim_ode
from ddim_ode._base import notebook
from ddim_ode.diagnosis import Diagnosis, Finding
from ddim_ode.evaluate.features import IDENTITY
from ddim_ode.evaluate.statistics import FeatureStatistics

N = 300
NULL = {"emb": torch.zeros(77, 768), "y": 10}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """One of everything that a call returns or takes."""
    model = mixture_2d(DDPM)
    x = ddim_ode.noise((2,), DDPM, seeds=range(N))
    pictures = torch.zeros(N, 1, 8, 8)
    run = ddim_ode.generate(model, N, tmp_path_factory.mktemp("run"), steps=3)
    guidance = ddim_ode.Guidance(3.0, null=NULL, interval=(0.3, 5.0))
    return dict(
        guidance=guidance,
        denoiser=ddim_ode.Denoiser(torch.nn.Linear(2, 2), DDPM, guidance=guidance, clip=1.0),
        mixture=model,
        solution=ddim_ode.sample(model, x, "heun", nfe=7, record="x"),
        adaptive=ddim_ode.sample(model, x, "rk45"),
        likelihood=ddim_ode.log_likelihood(model, x, steps=2, method="rk4"),
        trip=ddim_ode.encode(model, x, "dpmpp2m", steps=4, certify=True).round_trip,
        run=run,
        shards=run.shards,
        shard=next(iter(run.shards)),
        plan=ddim_ode.plan("ddim", DDPM, ddim_ode.grids.make_grid("time", DDPM, 300)),
        fitted=ddim_ode.load("fashion-mnist").calibrated(6),
        diagnosis=ddim_ode.diagnose(model),
        methods=ddim_ode.methods(),
        start=ddim_ode.renoise(pictures, DDPM, range(N), strength=0.5),
        known=ddim_ode.Known(pictures, torch.ones(8, 8).bool(), range(N)),
        flow=ddim_ode.ProbabilityFlow(model),
        statistics=FeatureStatistics.of(x, IDENTITY),
        features=IDENTITY,
        comparison=ddim_ode.compare(model, ["ddim"], [3], n=4, progress=False),
    )


def cells(page):
    """The rows of all tables of a page, as text; it must be well formed."""
    tree = ET.fromstring(f"<div>{page.replace('<br>', '<br/>')}</div>")
    return [["".join(cell.itertext()) for cell in row] for row in tree.iter("tr")]


def test_nothing_fills_pages(shown):
    for name, value in shown.items():
        assert len(repr(value)) < 6000, name
        assert "tensor([" not in repr(value), name
        assert " at 0x" not in repr(value), name
        if name not in ("methods", "comparison", "diagnosis"):  # which are tables
            assert "\n" not in repr(value), name
            assert len(repr(value)) < 300, name
        if hasattr(value, "_repr_html_"):
            assert 2 <= len(cells(value._repr_html_())) < 60, name


def test_a_solution_is_shown_with_what_it_cost_and_what_failed(shown):
    assert dict(cells(shown["solution"]._repr_html_())) == {
        "x": "(300, 2)",
        "network calls": "7",
        "network evaluations": "2,100",
        "steps": "4",
        "σ": "157 to 0",
        "status": "300 success",
    }
    sol = shown["adaptive"]
    rows = dict(cells(sol._repr_html_()))
    assert rows["network calls"] == f"{sol.sample_nfe.min()}–{sol.sample_nfe.max()}"
    assert rows["error, estimated"] == f"{float(sol.error.mean()):.2g}"
    failing = ddim_ode.Denoiser(
        lambda x, t: torch.where(x < 0, torch.nan, 1.0), COSINE, "x0", clip=2
    )
    x = torch.tensor([[1.0], [-1.0], [2.0]])
    rows = dict(cells(ddim_ode.sample(failing, x, steps=3)._repr_html_()))
    assert rows["status"] == "2 success, 1 non_finite"
    assert rows["altered by"] == "clip 2"


def test_a_likelihood_shows_the_first_of_many(shown):
    found = shown["likelihood"]
    head, *rows = cells(found._repr_html_())
    assert head == ["sample", "nats", "standard error", "bits per dimension", "status"]
    assert len(rows) == notebook.ROWS
    assert rows[3][:2] == ["3", f"{float(found.log_likelihood[3]):.6g}"]
    assert rows[3][3] == f"{float(found.bits_per_dim[3]):.4g}"
    assert "300 samples, mean" in found._repr_html_()
    first = ", ".join(f"{value:.6g}" for value in found.log_likelihood[:4].tolist())
    assert repr(found) == f"LogLikelihood([{first}, … (300)] nats, nfe 8)"


def test_a_plan_is_shown_as_it_is_described(shown):
    plan = shown["fitted"]
    rows = cells(plan._repr_html_())
    assert rows[0][0] == "fitted to"
    assert rows[-8] == ["op", "call at σ", "t", "scale", "weights, newest first"]
    for row, line in zip(rows[-7:], plan.describe().splitlines()[-7:], strict=True):
        assert " ".join(row).split() == line.split()
    page = shown["plan"]._repr_html_()
    assert "40 of 301 ops" in page
    assert [row[0] for row in cells(page)[1:]] == [*map(str, range(20)), *map(str, range(281, 301))]


def test_guidance_and_denoiser_name_tensors_by_their_shapes(shown):
    null = "{'emb': tensor (77, 768), 'y': 10}"
    said = f"Guidance(3.0, null={null}, interval=(0.3, 5.0))"
    assert repr(shown["guidance"]) == said
    rows = dict(cells(shown["denoiser"]._repr_html_()))
    assert rows["guidance"] == said
    assert (rows["network"], rows["predicts"], rows["network time"]) == ("Linear", "eps", "t")
    assert repr(shown["denoiser"]).endswith("guidance 3, guidance_interval [0.3, 5.0], clip 1)")


def test_a_run_is_shown_with_where_it_is(shown):
    run = shown["run"]
    rows = dict(cells(run._repr_html_()))
    assert rows["samples"] == "300 of (2,)"
    assert rows["in"] == str(run.shards.folder)
    assert rows["status"] == "300 success"
    assert "missing" not in rows
    assert repr(run.shards).endswith("': 300 samples of (2,), 5 shards)")
    assert repr(shown["shard"]) == "Shard(samples=range(0, 64), x=tensor (64, 2))"


def test_a_diagnosis_and_the_table_of_methods_read_as_what_they_print(shown):
    assert repr(shown["diagnosis"]).startswith("nothing found\nnot checked: half-precision: ")
    finding = Finding("a", "error", 1.0, "x < y & <b>z</b>", "f" * 2000)
    page = Diagnosis([finding], {"b": "<i>why</i>"})._repr_html_()
    assert cells(page)[1][:3] == ["error", "a", "x < y & <b>z</b>"]
    assert len(cells(page)[1][3]) == 1000
    assert "<b>" not in page
    assert "&lt;i&gt;why" in page
    assert cells(Diagnosis([], {})._repr_html_())[1][1] == "nothing found"
    head, *rows = cells(shown["methods"]._repr_html_())
    assert head == list(shown["methods"][0])
    assert [row[0] for row in rows] == [row["name"] for row in shown["methods"]]


def test_names_are_text_and_never_markup():
    evil = "<script>alert(1)</script>&\n\x1b[31m"
    plan = ddim_ode.plan("ddim", COSINE, [5.0, 1.0, 0.0])
    line = evil.partition("\n")[0]  # a plan's names are printable, and checked
    fit = dict(model=line, incumbent=line, warnings=[line])
    x = ddim_ode.noise((2,), COSINE, seeds=[0])
    sol = dataclasses.replace(ddim_ode.sample(mixture_2d(COSINE), x, steps=2), method=evil)
    for value in (dataclasses.replace(plan, method=line, fit=fit), sol):
        assert "<script" not in value._repr_html_()
