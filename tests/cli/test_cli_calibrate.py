"""``ddim-ode calibrate`` and ``ddim-ode sample --plan``: files, tables, pictures, and what they say.

The fit is tested on its own; here it is a stub that returns a textbook plan with a fit's figures.
"""

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from commands import arrays, run, shades, tree

import ddim_ode
from ddim_ode import grids
from ddim_ode._base.warn import warn
from ddim_ode.cli import calibration
from ddim_ode.plots import pictures

SAMPLE = ["sample", "--seeds", "0-2", "--guidance", "1"]


def plan_of(schedule, nfe, **fit):
    grid = grids.make_grid("quadratic", schedule, nfe)
    incumbent = ddim_ode.plan("ipndm", schedule, grid)
    fit = (
        dict(
            guidance=None,
            incumbent="ipndm, quadratic",
            incumbent_plan=incumbent.to_dict(),
            calibrated=True,
            held_out=dict(before=0.25, after=0.1, log_ratio=math.log(0.4), low=-1.0, high=-0.8),
            net_evals=12345,
            seconds=1.5,
            warnings=[f"{nfe} calls are few"],
        )
        | fit
    )
    plan = ddim_ode.plan("dpmpp2m", schedule, grid)
    return dataclasses.replace(plan, method=f"calibrated-{nfe}", fit=fit)


@pytest.fixture
def calls(monkeypatch):
    """The calls of ``calibrate``, which is quick here."""
    seen = []

    def calibrate(model, nfe, **options):
        warn("as calibrate does, beside the fit")
        seen.append(dict(options, model=model, nfe=nfe))
        held = dict(before=0.75, after=0.5)
        data = {k: dict(data=dict(held_out=held, matched=k > 2)) for k in nfe}
        of_data = options.get("objective") == "data"
        return {k: plan_of(model.schedule, k, **(data[k] if of_data else {})) for k in nfe}

    monkeypatch.setattr(ddim_ode, "calibrate", calibrate, raising=False)
    monkeypatch.setattr(calibration, "_STEPS", 3)
    return seen


def test_real_images_are_read_in_the_model_s_scale(tmp_path, calls, capsys):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2) * 23
    np.savez(tmp_path / "real.npz", images=pixels)
    call = ["calibrate", "--model", "mixture", "--objective", "data", "--nfe", "2", "3"]
    assert run(*call, "--data", tmp_path / "real.npz", "--out", tmp_path) == 0
    (made,) = calls
    assert (made["objective"], made["n"]) == ("data", 768)
    assert made["data"].shape == (3, 1, 2, 2)
    assert made["data"][0, 0, 0, 0] == -1
    assert torch.allclose((made["data"][:, 0] + 1) * 127.5, torch.from_numpy(pixels).float())
    head, first, second, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["nfe", "distance", "before", "after"]
    assert first.split() == [
        "2",
        "0.75",
        "0.75",
        "ipndm,",
        "quadratic",
        "solution's",
        "12,345",
        "1.5",
    ]
    assert second.split() == [
        "3",
        "0.75",
        "0.5",
        "ipndm,",
        "quadratic",
        "calibrated",
        "12,345",
        "1.5",
    ]


def test_it_writes_a_plan_a_row_and_pictures_for_each_budget(tmp_path, calls, capsys, recwarn):
    call = ["calibrate", "--model", "mixture", "--nfe", "3", "2", "3", "--n", "20", "--seed", "7"]
    assert run(*call, "--budget", "thorough", "--batch", "9", "--out", tmp_path) == 0
    (made,) = calls
    told = dict(nfe=[2, 3], shape=(2,), cond=None, n=20, seed=7, budget="thorough", batch=9)
    assert told.items() <= made.items()
    for nfe in (2, 3):
        plan = ddim_ode.Plan.load(tmp_path / f"nfe-{nfe}.json")
        assert plan == plan_of(made["model"].schedule, nfe)
        assert plan.fit["net_evals"] == 12345
        assert shades(tmp_path / f"plan-{nfe}.png") > 50
    assert shades(tmp_path / "before_after.png") > 20
    lines = capsys.readouterr().out.splitlines()
    row = "2 0.25 0.1 0.4 (0.368 to 0.449) ipndm, quadratic calibrated 12,345 1.5"
    assert lines[1].split() == row.split()
    assert "  2 calls are few" in lines
    file = tmp_path / "nfe-2.json"
    assert f'ddim_ode.sample(model, x_T, plan=ddim_ode.Plan.load("{file}"))' in lines[-1]
    # said once, below the table
    assert not [w for w in recwarn if "beside the fit" in str(w.message)]


def test_the_pictures_are_of_seeds_that_were_not_fitted(tmp_path, calls, monkeypatch):
    """Rows: the default sampler, the incumbent, the plan; all from the same noises, of the same classes."""
    drawn, solver_grid = {}, pictures.solver_grid

    def grid(lines, columns):
        drawn.update({name: cells for name, _, cells in lines}, columns=columns)
        return solver_grid(lines, columns)

    monkeypatch.setattr(pictures, "solver_grid", grid)
    call = ["calibrate", "--nfe", "2", "--n", "6", "--seed", "2", "--classes", "bag,3,sneaker"]
    assert run(*call, "--out", tmp_path) == 0
    (made,) = calls
    assert made["cond"]["y"].tolist() == [7, 8, 3, 7, 8, 3]  # a class by seed: 2 3 4 5 6 7
    model = made["model"]
    assert model.guidance is None  # nobody gave any
    x = ddim_ode.noise(model.shape, model.schedule, range(8, 12))
    cond = {"y": torch.tensor([7, 8, 3, 7])}
    plan = plan_of(model.schedule, 2)
    for name, options in {
        "default": dict(nfe=2),
        "incumbent": dict(plan=ddim_ode.plan("ipndm", model.schedule, plan.grid)),
        "calibrated": dict(plan=plan),
        "3 steps": dict(method="unipc3", steps=3),
    }.items():
        expected = ddim_ode.sample(model, x, cond=cond, **options).x
        torch.testing.assert_close(drawn[name][0], expected)
    assert drawn["columns"] == ["2 calls"]


# -- ddim-ode sample --plan -----------------------------------------------------------------------
@pytest.fixture(scope="module")
def schedule():
    return ddim_ode.load("fashion-mnist").schedule


@pytest.fixture
def plan_file(tmp_path, schedule):
    path = tmp_path / "my plan.json"
    plan_of(schedule, 2).save(path)
    return path


def test_sample_with_a_plan_beside_methods_and_again_from_the_manifest(tmp_path, plan_file, capsys):
    out, again = tmp_path / "a", tmp_path / "b"
    call = [*SAMPLE, "--methods", "ddim", "--nfe", "2", "--plan", plan_file, "--npz"]
    assert run(*call, "--out", out) == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:3]]
    assert rows == [["ddim", "2", "2"], ["calibrated-2", "2", "2"]]
    manifest = out / "manifest.json"
    assert run("sample", "--manifest", manifest, "--npz", "--out", again) == 0
    one, two = (arrays(folder / "calibrated-2.npz")["x"] for folder in (out, again))
    model = ddim_ode.load("fashion-mnist")
    x = ddim_ode.noise(model.shape, model.schedule, range(3))
    plan, cond = ddim_ode.Plan.load(plan_file), {"y": torch.arange(3)}
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, ddim_ode.sample(model, x, plan=plan, cond=cond).x.numpy())
    plan_file.write_text(plan_file.read_text() + "\n")  # the same plan, and not the same file
    assert run("sample", "--manifest", manifest, "--out", again) == 2
    assert "was made with other content of --plan" in capsys.readouterr().err


def test_a_plan_alone_runs_alone_and_names_are_kept_apart(tmp_path, plan_file, schedule):
    ddim_ode.plan("ddim", schedule, grids.make_grid("time", schedule, 1)).save(tmp_path / "d.json")
    shutil.copy(plan_file, tmp_path / "two.json")
    files = [plan_file, tmp_path / "two.json", tmp_path / "d.json"]
    assert run(*SAMPLE, "--plan", *files, "--out", tmp_path) == 0
    runs = tree(tmp_path / "manifest.json")["runs"]
    names = ["calibrated-2", f"calibrated-2 ({files[1]})", "ddim"]
    assert [(row["method"], row["nfe"]) for row in runs] == list(zip(names, (2, 2, 1)))


def test_the_name_in_a_file_is_never_a_path(tmp_path, schedule):
    plan = dataclasses.replace(plan_of(schedule, 1), method="../../outside/x")
    plan.save(tmp_path / "p.json")
    call = [*SAMPLE, "--plan", tmp_path / "p.json", "--npz", "--png"]
    assert run(*call, "--out", tmp_path / "out/deep") == 0
    names = ["manifest.json", "outside-x", "outside-x.npz", "samples.png"]
    assert sorted(f.name for f in (tmp_path / "out/deep").iterdir()) == names
    assert sorted(f.name for f in tmp_path.iterdir()) == ["out", "p.json"]


@pytest.mark.parametrize(
    ("fit", "words", "said"),
    [
        (dict(guidance=2.0), [], "for guidance 2, and runs with guidance 1, for"),
        (dict(guidance=1.0), [], None),
        (dict(guidance=None), [], None),
        (dict(alterations={"clip": 1.0}), [], "guidance 1, clip 1, and runs with guidance 1, for"),
        (
            dict(alterations={}),
            ["--clip", "1"],
            "guidance 1, and runs with guidance 1, clip 1, for",
        ),
        (dict(alterations={"clip": 1.0}), ["--clip", "1"], None),
    ],
)
def test_another_ode_than_a_plan_was_calibrated_for_is_said(
    tmp_path, schedule, capsys, fit, words, said
):
    plan_of(schedule, 1, **fit).save(tmp_path / "p.json")
    assert run(*SAMPLE, "--plan", tmp_path / "p.json", *words, "--out", tmp_path) == 0
    error = capsys.readouterr().err
    assert "was calibrated" not in error if said is None else said in error
