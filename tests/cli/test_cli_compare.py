"""``ddim-ode compare``: what it writes, that it resumes, and how it says no."""

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import ddim_ode
from ddim_ode.cli import comparison as cli_comparison
from ddim_ode.cli import main
from ddim_ode.cli.models import load_model
from ddim_ode.comparison import comparison
from ddim_ode.comparison import jobs as candidates
from ddim_ode.evaluate.features import IDENTITY
from ddim_ode.evaluate.statistics import FeatureStatistics
from ddim_ode.nets import weights
from ddim_ode.nets.pretrained import ASSETS
from ddim_ode.solve import levels, reference
from ddim_ode.solve.plan_checks import fitted_seeds

MIXTURE = dict(
    weights=[0.6, 0.4],
    means=[[-1.5, 0.5], [1.2, -0.8]],
    covs=[[0.4, 0.3], [0.25, 0.5]],
    schedule={"name": "exponential", "params": {"rate": 4.0}},
)
FAST = ["--methods", "ddim", "heun", "--nfe", "3", "6", "--n", "5"]


@pytest.fixture
def mixture(tmp_path):
    path = tmp_path / "two.json"
    path.write_text(json.dumps(MIXTURE))
    return ["--model", str(path), "--out", str(tmp_path / "out")]


@pytest.fixture
def _coarse(monkeypatch):
    """A reference of few steps, for networks that cost."""
    monkeypatch.setattr(reference, "STEPS", (6, 8))
    monkeypatch.setattr(comparison, "STEPS", (6, 8))


def test_it_writes_what_compare_finds(mixture, tmp_path, capsys):
    assert main(["compare", *mixture, *FAST, "--seed", "3"]) == 0
    schedule = ddim_ode.schedules.exponential(rate=4.0)
    model = ddim_ode.exact.gaussian_mixture(*list(MIXTURE.values())[:3], schedule)
    r = ddim_ode.compare(model, ["ddim", "heun"], [3, 6], n=5, seed=3, progress=False)
    with open(tmp_path / "out/compare.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["error"]) for row in rows] == pytest.approx([x["error"] for x in r.rows])
    assert json.loads((tmp_path / "out/compare.json").read_text())["seeds"] == [3, 4, 5, 6, 7]
    out = capsys.readouterr().out
    best = r.best(6)
    assert f"6 calls  {best['method']}, error {best['error']:#.3g}" in out
    assert f"off by {r.reference_error:.1e}" in out
    page = (tmp_path / "out/report.html").read_text()
    assert "ddim-ode compare --model " in page
    assert "2 components in 2 dimensions" in page
    for name in ("compare.png", "samples.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert len(set(picture.convert("L").tobytes())) > 20  # shades, not a blank page


def test_plans_take_their_place_beside_the_methods(mixture, tmp_path):
    schedule = ddim_ode.schedules.exponential(rate=4.0)
    for name, method, steps in (("mine", "ddim", 4), ("other", "ab2", 5)):
        grid = ddim_ode.grids.make_grid("karras", schedule, steps)
        ddim_ode.plan(method, schedule, grid).save(tmp_path / f"{name}.json")
    plans = ["--plan", str(tmp_path / "mine.json"), str(tmp_path / "other.json")]
    assert main(["compare", *mixture, *FAST, *plans]) == 0
    with open(tmp_path / "out/compare.csv", newline="") as file:
        rows = [(row["method"], row["budget"], row["nfe"]) for row in csv.DictReader(file)]
    # ddim is a method of the table, so that plan goes by its file's name
    assert rows[-2:] == [("mine", "6", "4"), ("ab2", "6", "5")]


def test_fitted_plans_are_one_line_and_no_plan_is_lost(mixture, tmp_path):
    """Of the same number of calls, or of a method's name: by the file's name."""
    schedule = ddim_ode.schedules.exponential(rate=4.0)
    files = []
    for name, steps, fit in (("a", 3, {}), ("b", 6, {}), ("c", 6, {"n": 1}), ("d", 4, None)):
        grid = ddim_ode.grids.make_grid("karras", schedule, steps)
        plan = ddim_ode.plan("ddim" if name != "c" else "ab2", schedule, grid)
        replace(plan, fit=fit).save(tmp_path / f"{name}.json")
        files.append(str(tmp_path / f"{name}.json"))
    assert main(["compare", *mixture, *FAST, "--plan", *files]) == 0
    with open(tmp_path / "out/compare.csv", newline="") as file:
        rows = [(row["method"], row["budget"], row["nfe"]) for row in csv.DictReader(file)][4:]
    assert rows == [
        ("calibrated", "3", "3"),
        ("calibrated", "6", "6"),
        ("c", "6", "6"),
        ("d", "6", "4"),
    ]


@pytest.mark.usefixtures("_coarse")
def test_calibrated_asks_for_the_plans_that_ship(tmp_path, capsys):
    call = ["compare", "--calibrated", "--methods", "ddim", "--n", "2", "--out", str(tmp_path)]
    assert main([*call, "--nfe", "4", "7", "40"]) == 0
    with open(tmp_path / "compare.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    fitted = [row for row in rows if row["method"] == "calibrated"]
    assert [(row["budget"], row["nfe"]) for row in fitted] == [("4", "4"), ("7", "6"), ("40", "10")]
    out = capsys.readouterr().out
    assert len(re.findall(r"^calibrated +[0-9]", out, re.MULTILINE)) == 1

    model = ddim_ode.load("fashion-mnist")
    plan = model.calibrated(4)
    # Unless told otherwise, on noises that none of the three was fitted to: those of another generator
    # than today's are none.
    seed = max(fitted_seeds(p).stop for p in map(model.calibrated, (4, 6, 10)))
    assert json.loads((tmp_path / "compare.json").read_text())["seeds"] == [seed, seed + 1]
    labels = {"y": torch.arange(seed, seed + 2) % 10}
    r = ddim_ode.compare(model, {"p": plan}, [4], n=2, seed=seed, cond=labels, progress=False)
    assert float(fitted[0]["error"]) == pytest.approx(r.rows[0]["error"], rel=1e-4)

    assert main([*call, "--nfe", "3"]) == 2
    assert "no plan of nfe <= 3 at guidance 1 ships with this model" in capsys.readouterr().err
    assert main([*call, "--guidance", "3"]) == 2
    assert (
        "at guidance 3 ships with this model (there are for guidance 1, 2)"
        in capsys.readouterr().err
    )
    assert main([*call, "--model", "mixture"]) == 2
    assert "--calibrated: no plans ship with this model" in capsys.readouterr().err


def test_a_seed_that_is_nan_spoils_neither_the_others_nor_the_run(
    mixture, tmp_path, monkeypatch, capsys
):
    """The very first one, on which the network is tried before the run."""
    loaded = load_model(mixture[1])
    exact = loaded.denoiser
    first = ddim_ode.noise(loaded.shape, exact.schedule, [0]).double()

    def net(x, t):
        bad = (x.double() - first).abs().amax(1, keepdim=True) < 1e-6
        return torch.where(bad, torch.nan, exact.net(x, t))

    options = dict(prediction=exact.prediction, time=exact.time)
    broken = ddim_ode.Denoiser(net, exact.schedule, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_comparison, "load_model", lambda *_: loaded._replace(denoiser=broken))
        assert main(["compare", *mixture, *FAST]) == 0
    said, noted = capsys.readouterr()
    assert "ddim-ode compare: note: nothing is kept in" in noted
    assert "1 of 5 failed: 1 non_finite" in said
    with open(tmp_path / "out/compare.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    fine = ddim_ode.compare(exact, ["ddim", "heun"], [3, 6], n=4, seed=1, progress=False)
    assert [int(row["failed"]) for row in rows] == [1] * 4
    assert [float(row["error"]) for row in rows] == pytest.approx(
        [row["error"] for row in fine.rows], rel=1e-3
    )


def test_stopped_it_keeps_what_is_finished_and_goes_on(mixture, tmp_path, monkeypatch, capsys):
    made, solve = [], comparison.sample

    def sample(model, x, *args, **options):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(options["plan"].method)
        return solve(model, x, *args, **options)

    monkeypatch.setattr(comparison, "sample", sample)
    assert main(["compare", *mixture, *FAST]) == 130
    said = capsys.readouterr()
    assert "3 of 4 rows are finished and kept in" in said.err
    assert "the same command goes on from there" in said.err
    assert "heun" in said.out
    assert "Incomplete:" in (tmp_path / "out/report.html").read_text()
    monkeypatch.setattr(reference, "sample", None)  # the reference is kept too
    made[:] = [""]
    assert main(["compare", *mixture, *FAST]) == 0
    assert made == ["", "heun"]
    assert "Incomplete:" not in (tmp_path / "out/report.html").read_text()


def test_stopped_before_the_first_row_it_writes_no_report(mixture, tmp_path, monkeypatch, capsys):
    def sample(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(reference, "sample", sample)
    assert main(["compare", *mixture, *FAST]) == 130
    assert "0 of 4 rows" in capsys.readouterr().err
    assert not (tmp_path / "out/report.html").exists()


def test_metrics_of_a_mixture_are_against_its_own_draws(mixture, tmp_path, capsys):
    assert main(["compare", *mixture, *FAST, "--metrics", "energy_distance"]) == 0
    assert "10,000 draws of the mixture itself" in capsys.readouterr().out
    with open(tmp_path / "out/compare.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    draws = load_model(mixture[1]).denoiser.draw(10_000)
    expected = FeatureStatistics.of(draws, IDENTITY).sha256[:12]
    for row in rows:
        assert float(row["energy_distance"]) > 0
        assert (row["metrics_n"], row["metrics_seed"], row["metrics_reference_n"]) == (
            "5",
            "0",
            "10000",
        )
        assert row["metrics_reference"] == expected
        assert row["metrics_features"] == IDENTITY.sha256[:12]
    assert (tmp_path / "out/energy_distance.png").is_file()
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("converged solution</th>") == 1


@pytest.mark.usefixtures("_coarse")
def test_the_shipped_model_is_drawn_and_measured(tmp_path, capsys):
    small = ["--methods", "ddim", "--nfe", "2", "--n", "4", "--guidance", "1.5", "--metrics"]
    assert main(["compare", *small, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "in fashion-mnist classifier features to the converged solutions of their noises" in out
    page = (tmp_path / "report.html").read_text()
    assert "Seeds 0 to 3 in every cell" in page
    assert re.search(r">guidance</th><td[^>]*>1.5</td>", page)
    labels = {"y": torch.arange(4)}
    model = ddim_ode.load("fashion-mnist", guidance=1.5)
    r = ddim_ode.compare(model, ["ddim"], [2], n=4, cond=labels, progress=False)
    written = json.loads((tmp_path / "compare.json").read_text())
    assert written["rows"][0]["error"] == pytest.approx(r.rows[0]["error"], rel=1e-4)

    data = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=data)
    real = ["--data", str(tmp_path / "set.npz"), "--metrics", "frechet_distance"]
    assert main(["compare", *small[:-1], *real, "--out", str(tmp_path)]) == 0
    assert "to 6 real images" in capsys.readouterr().out


def test_a_seed_has_its_class_whatever_n_is(monkeypatch, tmp_path):
    asked = []

    def compare(*args, **options):
        asked.append(options["cond"]["y"].tolist())
        raise ValueError("enough")

    monkeypatch.setattr(comparison, "compare", compare)
    for more in (["--n", "12"], ["--n", "2", "--seed", "9"], ["--quick"], []):
        assert main(["compare", *more, "--out", str(tmp_path)]) == 2
    assert asked[0] == [*range(10), 0, 1]
    assert asked[1] == [9, 0]
    assert [len(labels) for labels in asked[2:]] == [12, 64]


def test_quick_makes_no_more_evaluations_than_two_cores_do_in_three_minutes():
    """230 a second at batch 64 were measured on two cores; a quarter is kept free."""
    model = ddim_ode.load("fashion-mnist")
    budgets = levels.budgets(cli_comparison._NFE)
    rows = [
        candidates.jobs(entry, budgets, [None], [None], model)
        for entry in candidates.entries(None, model)
    ]
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


def test_a_broken_network_is_said_before_the_long_run(tmp_path, capsys):
    tensors, config = weights.read(ASSETS / "fashion-mnist.safetensors")
    first = next(iter(tensors))
    tensors[first] = torch.full_like(tensors[first], torch.nan)
    path = tmp_path / "broken.safetensors"
    weights.write(path, tensors, config)
    assert main(["compare", "--model", str(path), "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ddim-ode compare: ")
    assert "its network gives NaN or inf on noise" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "mixtur"],
            "unknown model 'mixtur'; valid, nearest first: mixture, fashion-mnist",
        ),
        (["--methods", "unipc9"], "unknown method 'unipc9'; valid, nearest first: unipc"),
        (["--methods", "ddpm"], "adds noise"),
        (["--nfe", "0"], "nfe=0 must be a whole number >= 1"),
        (["--n", "0"], "--n=0 must be"),
        (["--grid", "kerras"], "unknown grid 'kerras'"),
        (["--guidance", "2"], "an exact mixture has no classes"),
        (["--classes", "bag"], "this model has no classes"),
        (["--data", "x"], "--data belongs to --metrics"),
        (["--metrics", "fid"], "unknown metric 'fid'; valid, nearest first:"),
        (["--device", "warp"], "--device warp"),
        (["--target", "-1"], "--target -1 must be a positive"),
        (["--metrics", "--n", "3"], "--metrics needs at least 4 samples, and 3 are reported"),
        (["--reference", "-1"], "reference=-1.0"),
        (["--model", "digits"], "unknown model 'digits'"),
        (["--model", "none.json"], "--model none.json: no such file or directory; give a shipped"),
        (["--methods", "heun", "--nfe", "1"], "no solver has an error: nfe=1: one step of 'heun'"),
    ],
)
def test_mistakes_are_one_line_on_stderr(mixture, capsys, arguments, message):
    assert main(["compare", *mixture, *FAST, *arguments]) == 2
    said = capsys.readouterr().err.split("\r")[-1].splitlines()[-1]
    assert said.startswith("ddim-ode compare: ")
    assert message in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "truncated, or not json"),
        ("[1]", "holds a list"),
        ("{}", "it has no 'weights'"),
        (json.dumps(MIXTURE | {"schedule": "cosinus"}), "unknown schedule 'cosinus'"),
        (json.dumps(MIXTURE | {"weights": [1, 1]}), "sum to 1"),
    ],
)
def test_a_file_that_is_no_mixture_is_named(tmp_path, capsys, text, message):
    path = tmp_path / "m.json"
    path.write_text(text)
    assert main(["compare", "--model", str(path), *FAST]) == 2
    said = capsys.readouterr().err
    assert str(path) in said
    assert message in said


def test_only_the_same_noises_have_no_kernel_distance(tmp_path, capsys):
    call = ["compare", *FAST, "--metrics", "kernel_distance", "--out", str(tmp_path)]
    assert main(call) == 2
    assert "supposes independent samples" in capsys.readouterr().err
