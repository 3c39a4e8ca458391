"""What is wrong with a call is said in one line on stderr, by the name of the option, with status 2."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from commands import MIXTURE, run
from PIL import Image
from problems import DDPM

import ddim_ode
from ddim_ode.nets import weights
from ddim_ode.nets.pretrained import ASSETS

# What a call of each command starts with, if its line does not begin with "!".
BASE = dict(
    sample="--methods ddim --steps 2 --seeds 0-2 --guidance 1 --out OUT",
    train="--data PIXELS --steps 1 --batch-size 2 --out OUT",
    compare="--model MIXTURE --methods ddim heun --nfe 3 6 --n 5 --out OUT",
    calibrate="--model mixture --out OUT",
    generate="--model mixture --n 40 --shard 8 --nfe 6 --out RUN",
    evaluate="RUN --out OUT",
    encode="--method ddim --steps 2 --indices 0-2 --out OUT",
    edit="--method ddim --steps 2 --indices 0-2 --out OUT",
    interpolate="--method ddim --steps 2 --out OUT",
    doctor="",
)
REFUSALS = [
    # what commands share
    ("sample --device warp", "--device warp"),
    ("sample --seeds five", "--seeds 'five': write 0-9"),
    ("sample --seeds 0-3,9-5", "names 0 seeds"),
    (f"sample --seeds 0-{10**20 - 1}", f"names {10**20} seeds; give 1 to 100,000"),
    (f"sample --seeds {2**64}", r"names 1 seeds; .*each below 2\^64"),
    ("sample --classes hat", "unknown class 'hat'"),
    ("sample --clip wide", "--clip 'wide': give a number, or none"),
    ("sample --threshold 0.9,", "--threshold '0.9,': give a number, or none"),
    ("sample --clip 1 --threshold 0.9", "drop threshold"),
    ("sample --clip 0.9,1.5", r"clip=\(0.9, 1.5\) must be a number"),
    ("sample --guidance-interval 1 2", "--guidance-interval does nothing without guidance"),
    ("sample --guidance-rescale 0.5", "--guidance-rescale does nothing without guidance"),
    ("sample --out FILE", "FILE"),
    ("generate --out FILE", "is a file; give a folder"),
    # models
    ("sample --model none.safetensors", "none.safetensors: no such file or directory"),
    ("sample --model mixture", "--model mixture: .*ddim-ode generate, compare"),
    ("compare --model none.json", "--model none.json: no such file or directory; give a shipped"),
    ("compare --model mixtur", "unknown model 'mixtur'; valid, nearest first: mixture, fash"),
    ("compare --guidance 2", "--guidance 2: an exact mixture has no classes"),
    ("compare --classes bag", "--classes 'bag': this model has no classes"),
    ("compare --model CUT", "CUT: truncated, or not json"),
    ("compare --model LIST", "LIST: holds a list"),
    ("compare --model BARE", "BARE: .*it has no 'weights'"),
    ("compare --model CLOCK", "CLOCK: .*unknown schedule 'cosinus'"),
    ("compare --model HEAVY", "HEAVY: .*sum to 1"),
    # sample
    ("sample --methods dddim", "unknown method 'dddim'; valid, nearest first: ddim"),
    ("sample --methods ,", "--methods is empty"),
    ("sample --grid kerras", "unknown grid 'kerras'; valid, nearest first: karras"),
    ("sample --batch 0", "--batch=0 must be a whole number"),
    ("sample --methods ddim heun --eta 1", "takes no eta: .*ddim"),
    ("sample --rtol 1e-3", "--rtol is for adaptive solves, and ddim .*or add rk45"),
    ("sample --methods rk45 --rtol 1e-3 --steps 4", "--rtol .*drop it, or --steps"),
    ("sample --methods scipy:RK45", "takes its own steps, and no --steps; run it apart"),
    ("sample --methods reversible", "method 'reversible' goes both ways"),
    ("!sample --manifest none.json", "none.json: no such file; ddim-ode sample writes one"),
    # also an option that says the default
    ("!sample --manifest m.json --guidance-rescale 0", "already says --guidance-rescale; drop it"),
    ("!sample --plan PLAN --nfe 5", "a plan has its own steps, .*drop --nfe=5"),
    ("sample --plan none.json", "none.json: no such plan file"),
    ("!sample --plan PLAN PLAN PLAN", "--plan PLAN: given twice; drop one"),
    ("!sample --plan OTHER", f"{DDPM.fingerprint}.*calibrate again"),
    # train
    ("train --channels 8,8,8", "images are 30×30, and 3 levels of channels need multiples of 4"),
    ("train --channels 8,x", "--channels '8,x'"),
    ("train --label-dropout 7", "label_dropout=7"),
    ("train --checkpoint-every 0", "--checkpoint-every=0"),
    # compare
    ("compare --methods ddpm", "adds noise"),
    ("compare --metric kid", "unknown metric 'kid'; valid, nearest first:"),
    ("compare --metric distribution --metrics", "drop one of them"),
    ("compare --metric distribution --data x", "--data belongs to --metrics"),
    ("compare --metric distribution --n 5", "n=5 is too few"),
    ("compare --n 0", "--n=0 must be"),
    ("compare --target -1", "--target -1 must be a positive"),
    ("compare --data x", "--data belongs to --metrics"),
    ("compare --metrics --n 3", "--metrics needs at least 4 samples, and 3 .*raise --n"),
    ("compare --metrics fid", "unknown metric 'fid'; valid, nearest first:"),
    ("compare --calibrated", "--calibrated: no plans ship with this model"),
    ("compare --model fashion-mnist --calibrated --nfe 2", "no plan of nfe <= 2 at guidance 1"),
    ("compare --model fashion-mnist --calibrated --guidance 3", "there are for guidance 1, 2"),
    ("compare --methods heun --nfe 1", "no solver has an error: nfe=1: one step of 'heun'"),
    ("compare --model BROKEN", "--model BROKEN: its network gives NaN or inf on noise"),
    # only the same noises have no kernel distance
    ("!compare --n 5 --metrics kernel_distance --out OUT", "supposes independent samples"),
    # calibrate
    ("calibrate --nfe 0", "--nfe=0 must be a whole number >= 1"),
    ("calibrate --n 1", "--n=1 must be a whole number >= 2"),
    ("calibrate --seed -1", "--seed=-1"),
    ("calibrate --batch 0", "--batch=0"),
    ("calibrate --objective datum", "unknown --objective 'datum'; valid, nearest first: data"),
    ("calibrate --objective data", "--objective data needs --data DIR"),
    ("calibrate --data PIXELS", "no other takes it"),
    ("calibrate --objective data --data none.npz", "none.npz"),
    ("calibrate --objective data --data PIXELS --n 47", "--n=47 must be a whole number >= 48"),
    # generate and evaluate
    ("generate --dtype int8", "unknown dtype 'int8'"),
    ("generate --batch some", "batch='some'"),
    ("generate --nfe 7", "holds another run: nfe is 6 there, and 7 here"),
    ("generate --plan OTHER --steps 3", "plan= .*drop steps=3"),
    ("evaluate --features identity", "without --data nothing is compared; drop --features"),
    ("evaluate --data none --metrics fid", "unknown metric 'fid'"),
    ("evaluate --data none", "none: no such directory"),
    ("!evaluate EMPTY", "holds no manifest.json, so no run of ddim-ode generate"),
    # pictures
    ("encode", "--data is missing"),
    ("encode --data DATA --indices 4-9", "DATA has 6 pictures, 0 to 5"),
    ("encode --data DATA --indices x", "--indices 'x': write 0-9"),
    ("encode --data SMALL", r"are \(1, 14, 14\), and the model makes \(1, 28, 28\)"),
    ("encode --data NAMELESS --guidance 2", "guidance needs classes, .*give --data"),
    ("edit --data NAMELESS --mask left --guidance 2", "give --to, --data with labels"),
    ("edit --data DATA", "--to, --strength or --mask is missing"),
    ("edit --data DATA --strength 1.5", r"strength=1.5 must be a number in \(0, 1\]"),
    ("edit --data DATA --mask middle", "no such file, and not one of left, right"),
    ("edit --data DATA --mask DATA", "not a picture that can be read"),
    ("edit --data DATA --mask GREY", r"is \(8, 8\), and the pictures are"),
    ("edit --data DATA --mask left --variants 0", "--variants=0"),
    ("interpolate --guidance 2", "none are known: give --classes or --guidance 1"),
    ("interpolate --seeds 0-2", "--seeds names 3, and they are taken in pairs"),
    ("interpolate --points 1", "--points=1 must be a whole number >= 2"),
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """What the lines name in capitals: data sets, mixtures, plans, a run, a broken network."""
    folder = tmp_path_factory.mktemp("files")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    sets = dict(
        DATA=dict(images=pixels, labels=np.arange(6)),
        NAMELESS=dict(images=pixels),
        SMALL=dict(images=pixels[:, :14, :14]),
        PIXELS=dict(images=np.zeros((8, 30, 30), np.uint8)),
    )
    for name, arrays in sets.items():
        np.savez(folder / f"{name}.npz", **arrays)
    mixtures = dict(
        MIXTURE=MIXTURE,
        LIST=[1],
        BARE={},
        CLOCK=MIXTURE | {"schedule": "cosinus"},
        HEAVY=MIXTURE | {"weights": [1, 1]},
    )
    for name, content in mixtures.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "CUT.json").write_text("{")
    shipped = ddim_ode.load("fashion-mnist").schedule
    for name, schedule in dict(PLAN=shipped, OTHER=DDPM).items():
        plan = ddim_ode.plan("ddim", schedule, [9.0, 1.0, 0.0])
        dataclasses.replace(plan, fit=dict(guidance=None)).save(folder / f"{name}.json")
    tensors, config = weights.read(ASSETS / "fashion-mnist.safetensors")
    tensors[next(iter(tensors))].fill_(torch.nan)
    weights.write(folder / "BROKEN.safetensors", tensors, config)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "GREY.png")
    (folder / "FILE").touch()
    (folder / "EMPTY").mkdir()
    small = ["--model", "mixture", "--n", "40", "--shard", "8", "--nfe", "6"]
    assert run("generate", *small, "--out", folder / "RUN") == 0
    return {path.stem: str(path) for path in folder.iterdir()} | {"OUT": str(folder / "out")}


@pytest.mark.parametrize(("line", "said"), REFUSALS)
def test_a_mistake_is_explained_in_one_line(paths, monkeypatch, capsys, line, said):
    monkeypatch.setattr(ddim_ode, "calibrate", pytest.fail, raising=False)  # before the long work
    command, *more = line.removeprefix("!").split()
    words = more if line[0] == "!" else [*BASE[command].split(), *more]
    assert run(command, *(paths.get(word, word) for word in words)) == 2
    *_, error = capsys.readouterr().err.split("\r")[-1].splitlines()
    assert error.startswith(f"ddim-ode {command}: ")
    for name, path in paths.items():
        error = error.replace(path, name)
    assert re.search(said, error), error
