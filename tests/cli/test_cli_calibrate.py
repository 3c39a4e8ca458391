"""``ddim-ode calibrate`` and ``ddim-ode sample --plan``: files, tables, pictures, and how they say no.

The fit is tested on its own; here it is a stub that returns a textbook plan with a fit's figures.
"""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from problems import DDPM

import ddim_ode
from ddim_ode import grids
from ddim_ode._base.warn import warn
from ddim_ode.cli import calibration, main

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
        return {k: plan_of(model.schedule, k) for k in nfe}

    monkeypatch.setattr(ddim_ode, "calibrate", calibrate, raising=False)
    monkeypatch.setattr(calibration, "_STEPS", 3)
    return seen


def shades(path):
    with Image.open(path) as picture:
        return len(set(picture.convert("L").tobytes()))


def test_it_writes_a_plan_a_row_and_pictures_for_each_budget(tmp_path, calls, capsys, recwarn):
    out = tmp_path / "out"
    call = ["calibrate", "--model", "mixture", "--nfe", "3", "2", "3", "--n", "20", "--seed", "7"]
    assert main([*call, "--budget", "thorough", "--batch", "9", "--out", str(out)]) == 0
    (made,) = calls
    assert {k: made[k] for k in ("nfe", "shape", "cond", "n", "seed", "budget", "batch")} == dict(
        nfe=[2, 3], shape=(2,), cond=None, n=20, seed=7, budget="thorough", batch=9
    )
    for nfe in (2, 3):
        plan = ddim_ode.Plan.load(out / f"nfe-{nfe}.json")
        assert plan == plan_of(made["model"].schedule, nfe)
        assert plan.fit["net_evals"] == 12345
        assert shades(out / f"plan-{nfe}.png") > 50
    assert shades(out / "before_after.png") > 20
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [
        *("2", "0.25", "0.1", "0.4", "(0.368", "to", "0.449)", "ipndm,", "quadratic", "calibrated"),
        *("12,345", "1.5"),
    ]
    assert "  2 calls are few" in lines
    assert (
        f'ddim_ode.sample(model, x_T, plan=ddim_ode.Plan.load("{out / "nfe-2.json"}"))' in lines[-1]
    )
    assert not [
        w for w in recwarn if "beside the fit" in str(w.message)
    ]  # said once, below the table


def test_the_pictures_are_of_seeds_that_were_not_fitted(tmp_path, calls, monkeypatch):
    """Rows: the default sampler, the incumbent, the plan; all from the same noises, of the same classes."""
    from ddim_ode.plots import pictures

    drawn = {}

    def grid(lines, columns):
        drawn.update({name: cells for name, _, cells in lines}, columns=columns)
        return solver_grid(lines, columns)

    solver_grid = pictures.solver_grid
    monkeypatch.setattr(pictures, "solver_grid", grid)
    call = ["calibrate", "--nfe", "2", "--n", "6", "--seed", "2", "--classes", "bag,3,sneaker"]
    assert main([*call, "--out", str(tmp_path)]) == 0
    (made,) = calls
    assert made["cond"]["y"].tolist() == [7, 8, 3, 7, 8, 3]  # a class by seed: 2 3 4 5 6 7
    model = made["model"]
    assert model.guidance is None  # nobody gave any
    x = ddim_ode.noise(model.shape, model.schedule, range(8, 12))
    cond = {"y": torch.tensor([7, 8, 3, 7])}
    plan = plan_of(model.schedule, 2)
    incumbent = ddim_ode.plan("ipndm", model.schedule, plan.grid)
    for name, options in (
        ("default", dict(nfe=2)),
        ("incumbent", dict(plan=incumbent)),
        ("calibrated", dict(plan=plan)),
        ("3 steps", dict(method="unipc3", steps=3)),
    ):
        expected = ddim_ode.sample(model, x, cond=cond, **options).x
        torch.testing.assert_close(drawn[name][0], expected)
    assert drawn["columns"] == ["2 calls"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nfe", "0"], "--nfe=0 must be a whole number >= 1"),
        (["--n", "1"], "--n=1 must be a whole number >= 2"),
        (["--seed", "-1"], "--seed=-1"),
        (["--batch", "0"], "--batch=0"),
        (["--device", "warp"], "--device warp"),
        (["--guidance", "3"], "an exact mixture has no classes"),
        (["--classes", "bag"], "--classes 'bag': this model has no classes"),
        (["--model", "none.safetensors"], "none.safetensors: no such file or directory"),
    ],
)
def test_mistakes_are_explained_before_the_work(tmp_path, calls, capsys, arguments, message):
    call = ["calibrate", "--model", "mixture", *arguments, "--out", str(tmp_path)]
    assert main(call) == 2
    assert message in capsys.readouterr().err
    assert not calls


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
    call = [*SAMPLE, "--methods", "ddim", "--nfe", "2", "--plan", str(plan_file), "--npz"]
    assert main([*call, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["ddim", "2", "2"],
        ["calibrated-2", "2", "2"],
    ]
    manifest = str(out / "manifest.json")
    assert main(["sample", "--manifest", manifest, "--npz", "--out", str(again)]) == 0
    with np.load(out / "calibrated-2.npz") as one, np.load(again / "calibrated-2.npz") as two:
        assert np.array_equal(one["x"], two["x"])
        model = ddim_ode.load("fashion-mnist")
        x = ddim_ode.noise(model.shape, model.schedule, range(3))
        cond = {"y": torch.arange(3)}
        expected = ddim_ode.sample(model, x, plan=ddim_ode.Plan.load(plan_file), cond=cond)
        np.testing.assert_array_equal(one["x"], expected.x.numpy())

    plan_file.write_text(plan_file.read_text() + "\n")  # the same plan, and not the same file
    assert main(["sample", "--manifest", manifest, "--out", str(again)]) == 2
    assert "was made with other content of --plan" in capsys.readouterr().err


def test_a_manifest_without_plans_is_still_one(tmp_path):
    out = tmp_path / "a"
    assert main([*SAMPLE, "--methods", "ddim", "--steps", "1", "--out", str(out)]) == 0
    path = out / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["options"]["plan"], manifest["plans"]
    path.write_text(json.dumps(manifest))
    assert main(["sample", "--manifest", str(path), "--out", str(tmp_path / "b")]) == 0


def test_a_plan_alone_runs_alone_and_names_are_kept_apart(tmp_path, plan_file, schedule):
    ddim_ode.plan("ddim", schedule, grids.make_grid("time", schedule, 1)).save(tmp_path / "d.json")
    shutil.copy(plan_file, tmp_path / "two.json")
    files = [str(plan_file), str(tmp_path / "two.json"), str(tmp_path / "d.json")]
    assert main([*SAMPLE, "--plan", *files, "--out", str(tmp_path)]) == 0
    runs = json.loads((tmp_path / "manifest.json").read_text())["runs"]
    assert [run["method"] for run in runs] == [
        "calibrated-2", f"calibrated-2 ({files[1]})", "ddim"
    ]  # fmt: skip
    assert [run["nfe"] for run in runs] == [2, 2, 1]


def test_the_name_in_a_file_is_never_a_path(tmp_path, schedule):
    plan = dataclasses.replace(plan_of(schedule, 1), method="../../outside/x")
    plan.save(tmp_path / "p.json")
    call = [*SAMPLE, "--plan", str(tmp_path / "p.json"), "--npz", "--png"]
    assert main([*call, "--out", str(tmp_path / "out/deep")]) == 0
    assert sorted(f.name for f in (tmp_path / "out/deep").iterdir()) == [
        "manifest.json", "outside-x", "outside-x.npz", "samples.png"
    ]  # fmt: skip
    assert sorted(f.name for f in tmp_path.iterdir()) == ["out", "p.json"]


def test_other_guidance_than_a_plan_was_calibrated_for_is_said(tmp_path, schedule, capsys):
    path, out = tmp_path / "p.json", ["--out", str(tmp_path)]
    for fitted, said in ((2.0, True), (1.0, False), (None, False)):
        plan_of(schedule, 1, guidance=fitted).save(path)
        assert main([*SAMPLE, "--plan", str(path), *out]) == 0
        error = capsys.readouterr().err
        assert ("was calibrated for guidance 2, and runs with guidance 1, for" in error) == said


def test_another_ode_than_a_plan_was_calibrated_for_is_said(tmp_path, schedule, capsys):
    path, out = tmp_path / "p.json", ["--out", str(tmp_path)]
    for fitted, given, said in (
        ({"clip": 1.0}, [], "for guidance 1, clip 1, and runs with guidance 1, for"),
        ({}, ["--clip", "1"], "for guidance 1, and runs with guidance 1, clip 1, for"),
        ({"clip": 1.0}, ["--clip", "1"], ""),
    ):
        plan_of(schedule, 1, guidance=None, alterations=fitted).save(path)
        assert main([*SAMPLE, "--plan", str(path), *given, *out]) == 0
        error = capsys.readouterr().err
        assert said in error
        assert ("was calibrated" in error) == bool(said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nfe", "5"], "a plan has its own steps, and no --methods are given"),
        (["--eta", "1"], "drop --eta=1"),
        (["--methods", "ddim", "--plan", "none.json"], "none.json: no such plan file"),
    ],
)
def test_mistakes_beside_a_plan_are_explained(tmp_path, plan_file, capsys, arguments, message):
    call = [*SAMPLE, "--plan", str(plan_file), *arguments, "--out", str(tmp_path)]
    assert main(call) == 2
    assert message in capsys.readouterr().err


def test_a_plan_twice_or_of_another_schedule_is_refused(tmp_path, plan_file, capsys):
    assert main([*SAMPLE, "--plan", *[str(plan_file)] * 3, "--out", str(tmp_path)]) == 2
    assert "given twice; drop one" in capsys.readouterr().err
    plan_of(DDPM, 2).save(plan_file)
    assert main([*SAMPLE, "--plan", str(plan_file), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert DDPM.fingerprint in error
    assert "calibrate again" in error
