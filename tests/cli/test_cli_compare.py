"""``ddim-ode compare``: what it writes, that it resumes, and which models it takes."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import MIXTURE, run, shades, stop_at, table, tree

import ddim_ode
from ddim_ode.cli import comparison as cli_comparison
from ddim_ode.cli.models import load_model
from ddim_ode.comparison import comparison, jobs
from ddim_ode.evaluate.features import IDENTITY
from ddim_ode.evaluate.statistics import FeatureStatistics
from ddim_ode.solve import levels, reference
from ddim_ode.solve.plan_checks import fitted_seeds

SCHEDULE = ddim_ode.schedules.exponential(rate=4.0)
FAST = ["--methods", "ddim", "heun", "--nfe", "3", "6", "--n", "5"]


@pytest.fixture
def mixture(tmp_path):
    path = tmp_path / "two.json"
    path.write_text(json.dumps(MIXTURE))
    return ["--model", path, "--out", tmp_path / "out"]


@pytest.fixture
def _coarse(monkeypatch):
    """A reference of few steps, for networks that cost."""
    monkeypatch.setattr(reference, "STEPS", (6, 8))
    monkeypatch.setattr(comparison, "STEPS", (6, 8))


def errors(rows):
    return pytest.approx([row["error"] for row in rows], rel=1e-3)


def cells(folder):
    return [(row["method"], row["budget"], row["nfe"]) for row in table(folder / "compare.csv")]


def test_it_writes_what_compare_finds(mixture, tmp_path, capsys):
    assert run("compare", *mixture, *FAST, "--seed", "3") == 0
    model = ddim_ode.exact.gaussian_mixture(*list(MIXTURE.values())[:3], SCHEDULE)
    r = ddim_ode.compare(model, ["ddim", "heun"], [3, 6], n=5, seed=3, progress=False)
    assert [float(row["error"]) for row in table(tmp_path / "out/compare.csv")] == errors(r.rows)
    assert tree(tmp_path / "out/compare.json")["seeds"] == [3, 4, 5, 6, 7]
    out, best = capsys.readouterr().out, r.best(6)
    assert f"6 calls  {best['method']}, error {best['error']:#.3g}" in out
    assert f"off by {r.reference_error:.1e}" in out
    page = (tmp_path / "out/report.html").read_text()
    assert "ddim-ode compare --model " in page
    assert "2 components in 2 dimensions" in page
    assert min(shades(tmp_path / f"out/{name}.png") for name in ("compare", "samples")) > 20


def test_plans_take_their_place_beside_the_methods_and_none_is_lost(mixture, tmp_path):
    """Fitted ones are one line; of a method's name, or of as many calls, by the file's name."""
    files = []
    for name, method, steps, fit in (
        *(("mine", "ddim", 4, None), ("other", "ab2", 5, None)),
        *(("a", "ddim", 3, {}), ("b", "ddim", 6, {}), ("c", "ab2", 6, {"n": 1})),
    ):
        grid = ddim_ode.grids.make_grid("karras", SCHEDULE, steps)
        files.append(tmp_path / f"{name}.json")
        replace(ddim_ode.plan(method, SCHEDULE, grid), fit=fit).save(files[-1])
    assert run("compare", *mixture, *FAST, "--plan", *files) == 0
    assert cells(tmp_path / "out")[4:] == [
        ("mine", "6", "4"),
        ("ab2", "6", "5"),
        ("calibrated", "3", "3"),
        ("calibrated", "6", "6"),
        ("c", "6", "6"),
    ]


@pytest.mark.usefixtures("_coarse")
def test_calibrated_asks_for_the_plans_that_ship(tmp_path, capsys):
    call = ["compare", "--calibrated", "--methods", "ddim", "--n", "2", "--out", tmp_path]
    assert run(*call, "--nfe", "4", "7", "40") == 0
    fitted = [row for row in table(tmp_path / "compare.csv") if row["method"] == "calibrated"]
    assert [(row["budget"], row["nfe"]) for row in fitted] == [("4", "4"), ("7", "6"), ("40", "10")]
    assert len(re.findall(r"^calibrated +[0-9]", capsys.readouterr().out, re.MULTILINE)) == 1
    model = ddim_ode.load("fashion-mnist")
    # Unless told otherwise, on noises that none of the three was fitted to: those of another generator
    # than today's are none.
    seed = max(fitted_seeds(p).stop for p in map(model.calibrated, (4, 6, 10)))
    assert tree(tmp_path / "compare.json")["seeds"] == [seed, seed + 1]
    options = dict(n=2, seed=seed, cond={"y": torch.arange(seed, seed + 2) % 10}, progress=False)
    r = ddim_ode.compare(model, {"p": model.calibrated(4)}, [4], **options)
    assert [float(fitted[0]["error"])] == errors(r.rows)


def test_a_seed_that_is_nan_spoils_neither_the_others_nor_the_run(
    mixture, tmp_path, monkeypatch, capsys
):
    """The very first one, on which the network is tried before the run."""
    loaded = load_model(str(mixture[1]))
    exact = loaded.denoiser
    first = ddim_ode.noise(loaded.shape, exact.schedule, [0]).double()

    def net(x, t):
        bad = (x.double() - first).abs().amax(1, keepdim=True) < 1e-6
        return torch.where(bad, torch.nan, exact.net(x, t))

    broken = ddim_ode.Denoiser(net, SCHEDULE, prediction=exact.prediction, time=exact.time)
    monkeypatch.setattr(cli_comparison, "open_model", lambda *_: loaded._replace(denoiser=broken))
    assert run("compare", *mixture, *FAST) == 0
    said, noted = capsys.readouterr()
    assert "ddim-ode compare: note: nothing is kept in" in noted
    assert "1 of 5 failed: 1 non_finite" in said
    fine = ddim_ode.compare(exact, ["ddim", "heun"], [3, 6], n=4, seed=1, progress=False)
    rows = table(tmp_path / "out/compare.csv")
    assert [row["failed"] for row in rows] == ["1"] * 4
    assert [float(row["error"]) for row in rows] == errors(fine.rows)


def test_stopped_it_keeps_what_is_finished_and_goes_on(mixture, tmp_path, monkeypatch, capsys):
    page = tmp_path / "out/report.html"
    with monkeypatch.context() as patch:
        stop_at(patch, reference, "sample", 1)
        assert run("compare", *mixture, *FAST) == 130
    assert "0 of 4 rows" in capsys.readouterr().err
    assert not page.exists()
    with monkeypatch.context() as patch:
        stop_at(patch, comparison, "sample", 4)
        assert run("compare", *mixture, *FAST) == 130
    said = capsys.readouterr()
    assert "3 of 4 rows are finished and kept in" in said.err
    assert "the same command goes on from there" in said.err
    assert "heun" in said.out
    assert "Incomplete:" in page.read_text()
    monkeypatch.setattr(reference, "sample", None)  # the reference is kept too
    stop_at(monkeypatch, comparison, "sample", 2)  # one row is left to make
    assert run("compare", *mixture, *FAST) == 0
    assert "Incomplete:" not in page.read_text()


def test_metrics_of_a_mixture_are_against_its_own_draws(mixture, tmp_path, capsys):
    assert run("compare", *mixture, *FAST, "--metrics", "energy_distance") == 0
    assert "10,000 draws of the mixture itself" in capsys.readouterr().out
    draws = load_model(str(mixture[1])).denoiser.draw(10_000)
    about = dict(
        metrics_n="5",
        metrics_seed="0",
        metrics_reference_n="10000",
        metrics_reference=FeatureStatistics.of(draws, IDENTITY).sha256[:12],
        metrics_features=IDENTITY.sha256[:12],
    )
    for row in table(tmp_path / "out/compare.csv"):
        assert float(row["energy_distance"]) > 0
        assert about.items() <= row.items()
    assert (tmp_path / "out/energy_distance.png").is_file()
    assert (tmp_path / "out/report.html").read_text().count("converged solution</th>") == 1


@pytest.mark.usefixtures("_coarse")
def test_the_shipped_model_is_drawn_and_measured(tmp_path, capsys):
    small = ["--methods", "ddim", "--nfe", "2", "--n", "4", "--guidance", "1.5", "--metrics"]
    assert run("compare", *small, "--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert "in fashion-mnist classifier features to the converged solutions of their noises" in out
    page = (tmp_path / "report.html").read_text()
    assert "Seeds 0 to 3 in every cell" in page
    assert re.search(r">guidance</th><td[^>]*>1.5</td>", page)
    model = ddim_ode.load("fashion-mnist", guidance=1.5)
    cond = {"y": torch.arange(4)}
    r = ddim_ode.compare(model, ["ddim"], [2], n=4, cond=cond, progress=False)
    assert [row["error"] for row in tree(tmp_path / "compare.json")["rows"]] == errors(r.rows)
    data = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=data)
    real = ["--data", tmp_path / "set.npz", "--metrics", "frechet_distance"]
    assert run("compare", *small[:-1], *real, "--out", tmp_path) == 0
    assert "to 6 real images" in capsys.readouterr().out


def test_a_seed_has_its_class_whatever_n_is(monkeypatch, tmp_path):
    asked = []

    def compare(*args, **options):
        asked.append(options["cond"]["y"].tolist())
        raise ValueError("enough")

    monkeypatch.setattr(comparison, "compare", compare)
    for more in (["--n", "12"], ["--n", "2", "--seed", "9"], ["--quick"], []):
        assert run("compare", *more, "--out", tmp_path) == 2
    assert asked[:2] == [[*range(10), 0, 1], [9, 0]]
    assert [len(labels) for labels in asked[2:]] == [12, 64]


def test_quick_makes_no_more_evaluations_than_two_cores_do_in_three_minutes():
    """230 a second at batch 64 were measured on two cores; a quarter is kept free."""
    model = ddim_ode.load("fashion-mnist")
    budgets = levels.budgets(cli_comparison._NFE)
    rows = [jobs.jobs(entry, budgets, [None], [None], model) for entry in jobs.entries(None, model)]
    assert len(rows) >= 8
    assert len(budgets) >= 4
    methods = sum(job.cost for cells in rows for cell in cells for job in cell)
    converged = sum(plan.nfe for plan in reference.plans(model) if plan.steps <= 800)
    assert cli_comparison._QUICK_N * (methods + converged) <= 0.75 * 180 * 230


@pytest.mark.parametrize("schedule", ["cosine", None])
def test_mixtures_come_as_npz_too(tmp_path, schedule):
    arrays = {key: np.array(MIXTURE[key]) for key in ("weights", "means", "covs")}
    squares = np.linspace(0.99, 0.01, 20)
    more = {"schedule": schedule} if schedule else {"alphas_cumprod": squares}
    np.savez(tmp_path / "m.npz", **arrays, **more)
    loaded = load_model(str(tmp_path / "m.npz"))
    assert (loaded.shape, loaded.title) == ((2,), "m")
    kind = ddim_ode.schedules
    expected = kind.cosine() if schedule else kind.from_alphas_cumprod(squares)
    assert loaded.denoiser.schedule.fingerprint == expected.fingerprint


def test_a_mixture_written_on_windows_is_read(tmp_path):
    path = tmp_path / "m.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(MIXTURE, indent=1).replace("\n", "\r\n").encode())
    assert load_model(str(path)).denoiser.means.tolist() == MIXTURE["means"]


def test_distributions_are_compared_with_step_noise_and_without(mixture, tmp_path, capsys):
    call = [*mixture, "--methods", "ddim", "er_sde2", "--nfe", "3", "6", "--n", "32"]
    assert run("compare", *call, "--metric", "distribution") == 0
    assert "Squared energy distance to the model's own samples" in capsys.readouterr().out
    assert tree(tmp_path / "out/compare.json")["distribution"]["n"] == 64
    assert "against 64 samples of the model itself" in (tmp_path / "out/report.html").read_text()
    assert run("compare", *call, "--metric", "distribution", "--features", "identity") == 0
    assert "Squared kernel distance (KID) in identity" in capsys.readouterr().out
