"""What a command prints reaches any terminal, and ends as a shell expects; bars are for those who watch."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from problems import COSINE, mixture_1d

import ddim_ode
from ddim_ode._base import bars
from ddim_ode.cli import main
from ddim_ode.cli.terminal import spelt
from ddim_ode.comparison import comparison
from ddim_ode.solve import reference

MIXED, OF_DATA = "--model mixture --out OUT", "--data DATA --indices 0 --out OUT"
# What each command is told, its status, and words that it then says in ASCII.
COMMANDS = {
    "help": ("sample --help", 0, "zero (land on x_hat0) or sigma_min"),
    "methods": ("methods", 0, "ddpm             -      -             -"),
    "doctor": ("doctor mixture", 0, "closed-form epsilon (built in)"),
    "doctor, as JSON": ("doctor mixture --json", 0, '"findings": []'),
    "compare": (f"compare {MIXED} --methods ddim --nfe 3 --n 2", 0, "error <= "),
    "calibrate": (f"calibrate {MIXED} --nfe 3 --n 16", 0, ", sigma_min 0.0"),
    "generate": (f"generate {MIXED} -n 2 --nfe 2", 0, "2 success"),
    "evaluate": ("evaluate RUN", 0, "2 of 2 samples: success"),
    "sample": ("sample --methods ddim --steps 1 --seeds 0 --out OUT", 0, "ddim"),
    "interpolate": ("interpolate --seeds 0-1 --points 2 --nfe 1 --out OUT", 0, "great circle"),
    "encode": (f"encode --nfe 2 {OF_DATA}", 0, "worst round trip"),
    "edit": (f"edit --strength .2 --nfe 1 {OF_DATA}", 0, "strength 0.2"),
    "train": ("train --data DATA --steps 1 --channels 8 --out OUT", 0, "sample it with: ddim-ode"),
    "a mistake": ("sample --final one --out OUT", 2, ""),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A run of generate, and a data set of labelled pictures."""
    folder = tmp_path_factory.mktemp("given")
    small = ["--model", "mixture", "-n", "2", "--nfe", "2"]
    assert main(["generate", *small, "--out", str(folder / "run")]) == 0
    images = np.random.default_rng(0).integers(0, 256, (8, 28, 28), dtype=np.uint8)
    np.savez(folder / "set.npz", images=images, labels=np.arange(8) % 2)
    return {"RUN": str(folder / "run"), "DATA": str(folder / "set.npz")}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(reference, "STEPS", (6, 8))
    monkeypatch.setattr(comparison, "STEPS", (6, 8))


def run(name, given, out, *more):
    paths = {**given, "OUT": str(out)}
    try:
        return main([*(paths.get(word, word) for word in COMMANDS[name][0].split()), *more])
    except SystemExit as stop:  # of --help
        return stop.code


class Terminal(io.TextIOWrapper):
    """One that shows only what its encoding has."""

    def __init__(self, encoding="utf-8"):
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self):
        return True

    def said(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        *((name, "ascii") for name in COMMANDS),
        *((name, "cp1252") for name in ("help", "methods", "doctor", "compare")),
    ],
)
def test_every_command_speaks_to_any_terminal(name, encoding, given, tmp_path, monkeypatch):
    out, err = Terminal(encoding), Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    status = run(name, given, tmp_path, *(["--quiet"] if name != "help" else []))
    monkeypatch.undo()
    _, expected, words = COMMANDS[name]
    assert (status, words in out.said().replace("\u2013", "-")) == (expected, True)
    noise = [line for line in err.said().splitlines() if "note: " not in line]
    assert len(noise) == (name == "a mistake")  # --quiet: neither bars nor costs


def test_what_an_encoding_lacks_is_spelt():
    text = "σ ≤ 2: x̂₀, ε̂ × ᾱ² – Fréchet … λ Σ 猫 \udcff"
    expected = (
        r"sigma <= 2: x_hat0, epsilon_hat x alpha_bar^2 - Frechet ... lambda Sigma \u732b \udcff"
    )
    assert "".join(map(spelt, text)) == expected
    assert [spelt(c) for c in map(chr, range(128))] == [*map(chr, range(128))]
    assert all(spelt(c).isascii() for c in map(chr, range(0x3000)))


# -- a reader that goes away --------------------------------------------------------------------


def pipe():
    """A stream into a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return open(write, "w", encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "a mistake"])
def test_a_broken_pipe_ends_a_command_in_silence(name, given, tmp_path, monkeypatch, capsys):
    with pipe() as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run(name, given, tmp_path) == 141
        monkeypatch.undo()
    assert "roken pipe" not in capsys.readouterr().err
    if name == "calibrate":  # what is made is written before it is printed
        names = ["before_after.png", "nfe-3.json", "plan-3.png"]
        assert sorted(file.name for file in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    ("redirection", "status"), [("| head -1", 0), ("| true", 0), (">&-", 0), (">&- 2>&-", 0)]
)
def test_shells_see_nothing_of_it(redirection, status):
    call = f'"{sys.executable}" -m ddim_ode methods {redirection}'
    done = subprocess.run(["sh", "-c", call], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (status, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")
def test_output_that_cannot_be_written_is_said(monkeypatch, capsys):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["methods"]) == 2
        monkeypatch.undo()
    assert "No space left on device" in capsys.readouterr().err


# -- bars ---------------------------------------------------------------------------------------


def test_bars_are_for_those_who_watch(monkeypatch):
    model = mixture_1d(COSINE)
    x_T = ddim_ode.noise((1,), COSINE, seeds=[0])

    def written(to, **options):
        monkeypatch.setattr(sys, "stderr", to)
        ddim_ode.sample(model, x_T, progress=True, **options)
        to.flush()
        return to.buffer.getvalue()

    for options in (dict(nfe=4), dict(method="rk45"), dict(method="scipy:RK23")):
        assert b"nfe" in written(Terminal(), **options)
        assert written(io.TextIOWrapper(io.BytesIO()), **options) == b""
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert not bars.progress_bar(True).disable
    assert bars.progress_bar(False).disable
    monkeypatch.setattr(sys, "stderr", None)  # of a Windows program without a console
    assert bars.progress_bar(True).disable


def test_the_environment_switches_bars_off():
    code = (
        "import sys; sys.stderr.isatty = lambda: True\n"
        "from ddim_ode._base.bars import progress_bar; print(progress_bar(True).disable)"
    )
    for value, off in (("1", "True"), ("", "False")):
        environment = {**os.environ, "TQDM_DISABLE": value}
        call = [sys.executable, "-c", code]
        done = subprocess.run(call, env=environment, capture_output=True, check=True, text=True)
        assert done.stdout.strip() == off
