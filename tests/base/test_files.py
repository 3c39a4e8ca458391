"""Result files: whole or not at all, with the permissions of a plain open, and errors that name them."""

import contextlib
import csv
import errno
import json
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from problems import COSINE, DDPM, mixture_2d
from small_runs import make, together

import ddim_ode
from ddim_ode import cli
from ddim_ode._base import files
from ddim_ode.comparison import report
from ddim_ode.evaluate.features import IDENTITY
from ddim_ode.evaluate.statistics import FeatureStatistics
from ddim_ode.nets import config, data, train, weights
from ddim_ode.plots import pictures, plan_plot

OLD = b"what was there before"


def compared(n=8):
    return ddim_ode.compare(mixture_2d(DDPM), ["ddim"], nfe=[3], n=n, progress=False)


# -- one file -------------------------------------------------------------------------------------
def test_writers_of_one_file_leave_one_of_theirs(tmp_path, monkeypatch):
    """Threads, and processes that have the same number."""
    texts = [str(i) * 200_000 for i in range(4)]
    monkeypatch.setattr(os, "getpid", lambda: 1)

    def work():
        for text in texts:
            files.write(tmp_path / "f", text)
            assert (tmp_path / "f").read_text() in texts

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work) for _ in range(4)]:
            done.result()
    assert together(work, work) == ["None", "None"]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize(
    "stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_what_fails_on_the_way_leaves_what_was_there(tmp_path, monkeypatch, step, stop):
    path = tmp_path / "f"
    path.write_bytes(OLD)

    def fail(*args):
        raise stop

    if step == "write":
        monkeypatch.setattr("builtins.open", _opens_files_that(fail))
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(stop)) as stopped:
        files.write(path, "new")
    monkeypatch.undo()
    if isinstance(stop, OSError):
        assert stopped.value.errno == errno.ENOSPC
        said = "not written, and what was there before is kept: No space left on device: "
        assert f"{said}'{path}'" in str(stopped.value)
    assert path.read_bytes() == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def _opens_files_that(fail):
    real = open

    @contextlib.contextmanager
    def opened(path, mode):
        with real(path, mode):
            yield type("File", (), {"write": fail})()

    return opened


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_a_plain_open(tmp_path, umask):
    before = os.umask(umask)
    try:
        for name, write in (("ours", files.write), ("plain", lambda p, t: p.write_text(t))):
            write(tmp_path / name, "new")
            (tmp_path / f"{name}, private").touch(0o600)
            write(tmp_path / f"{name}, private", "new")
    finally:
        os.umask(before)
    mode = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert mode["ours"] == mode["plain"] == 0o666 & ~umask
    assert mode["ours, private"] == mode["plain, private"] == 0o600 & ~umask


def test_a_link_is_followed(tmp_path):
    (tmp_path / "there").write_bytes(OLD)
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "to nowhere").symlink_to("new")
    for name in ("link", "to nowhere"):
        files.write(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink()
    assert [(tmp_path / name).read_text() for name in ("there", "new")] == ["new", "new"]


def test_a_pipe_is_written_into(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        files.write(tmp_path / "pipe", "new")
    assert read.result() == "new"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="permissions are other there")
def test_a_read_only_file_is_refused_as_by_a_plain_open(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(OLD)
    path.chmod(0o444)
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o777)

    def as_nobody():
        if os.geteuid() == 0:
            os.seteuid(65534)
        files.write(path, "new")

    (said,) = together(as_nobody)
    assert said.startswith(
        "PermissionError: [Errno 13] not written, and what was there before is kept"
    )
    assert path.read_bytes() == OLD


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("no/f", FileNotFoundError),
        (".", IsADirectoryError),
        ("file/f", NotADirectoryError),
        ("x" * 300, OSError),
    ],
)
def test_what_cannot_be_is_named(tmp_path, name, kind):
    (tmp_path / "file").touch()
    with pytest.raises(kind, match="not written") as refusal:
        files.write(tmp_path / name, "new")
    assert refusal.value.filename == str(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_odd_names_can_be_written(tmp_path):
    for name in ("x" * 255, "σ" * 127):
        files.write(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"
    files.write_json(tmp_path / "f.json", os.fsdecode(b"a\xff"))  # which is no text
    assert json.loads((tmp_path / "f.json").read_text(encoding="utf-8")) == os.fsdecode(b"a\xff")


def test_a_table_has_all_keys_and_no_formulas(tmp_path):
    rows = [{"method": "=1+1", "x": -1.5}, {"method": "a,b\n", "y": "@SUM", "x": None}, {"-": "–"}]
    files.write_csv(tmp_path / "t.csv", rows)
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["method", "x", "y", "'-"],
            ["'=1+1", "-1.5", "", ""],
            ["a,b\\n", "", "'@SUM", ""],
            ["", "", "", "–"],
        ]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_while_it_is_read_is_no_damage(tmp_path, monkeypatch, number):
    """Of a descriptor, whose errors have no name in them."""
    path = tmp_path / "f.safetensors"
    weights.write(path, {"x": torch.zeros(3)}, {})

    class Failing:
        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

        def read(self, most):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("builtins.open", lambda *a, **k: Failing())
    for read in (weights.read, ddim_ode.Plan.load, FeatureStatistics.load, ddim_ode.load):
        with pytest.raises(OSError, match=rf"cannot be read: .*: '{path}'") as stop:
            read(path)
        assert stop.value.errno == number


def test_a_cache_that_cannot_be_read_is_named_and_kept(tmp_path, monkeypatch):
    """Where it is taken for damaged, a good result of an hour is computed and written again."""

    def run():
        model = mixture_2d(DDPM)
        return ddim_ode.compare(model, ["ddim"], nfe=[3], n=4, cache=tmp_path, progress=False)

    run()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
    assert before
    real = open

    def refusing(path, *args, **options):
        if Path(str(path)) in before:
            raise OSError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr("builtins.open", refusing)
    with pytest.raises(PermissionError, match=r"cannot be read: Permission denied: .*safetensors'"):
        run()
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}


# -- every file -----------------------------------------------------------------------------------
def _trained(folder):
    images = data.Images(torch.zeros(8, 1, 4, 4, dtype=torch.uint8), None, None)
    small = config.TrainConfig(steps=1, batch=2, channels=(8,), blocks=1)
    train.train(images, COSINE, folder, small, progress=False)


def _statistics(folder):
    rows = FeatureStatistics.of(torch.randn(9, 2), IDENTITY)
    rows.save(folder / "reference.safetensors")


def _sampled(folder):
    cli.main(f"sample --methods ddim --nfe 1 --seeds 0 --npz --png --out {folder}".split())


def _evaluated(folder):
    make(folder / "run", n=8)
    cli.main(f"evaluate {folder}/run --out {folder}".split())


def _compared(folder):
    result = compared()
    result.to_csv(folder / "compare.csv")
    result.to_json(folder / "compare.json")
    report.write(folder, result, report.Context("a title"))


def _planned(folder):
    plan = ddim_ode.plan("ddim", COSINE, [9.0, 1.0, 0.0])
    plan.save(folder / "plan.json")
    pictures.save_figure(folder / "plan.png", plan_plot(plan))
    pictures.save_figure(folder / "plan.pdf", plan_plot(plan))


WRITERS = (_trained, _statistics, _sampled, _evaluated, _compared, _planned)


@pytest.mark.parametrize("work", WRITERS)
def test_every_result_goes_the_one_way(tmp_path, monkeypatch, work):
    written, replace = set(), files._replace

    def seen(path, data, mode):
        written.add(path)
        replace(path, data, mode)

    monkeypatch.setattr(files, "_replace", seen)
    work(tmp_path)
    there = {p for p in tmp_path.rglob("*") if p.is_file() and not p.name.startswith(".claims")}
    assert there == written != set()


def test_nothing_else_writes_files():
    """In the package and the benchmarks; buffers in memory, and what is not ours to write, aside."""
    writes = re.compile(
        r"write_text\(|write_bytes\(|savefig\(|open\(.*[\"'][wax]b?[\"']|np\.save|save_file\("
    )
    package = Path(ddim_ode.__file__).parent
    found = [
        f"{path.name}: {line.strip()}"
        for path in [*package.rglob("*.py"), *(package.parent / "benchmarks").glob("*.py")]
        for line in path.read_text(encoding="utf-8").splitlines()
        if writes.search(line)
        and "BytesIO" not in line
        and "os.devnull" not in line
        and path.name not in ("files.py", "locks.py")
    ]
    assert len(found) == 1, found
    assert "torch.load(PTH" in found[0]  # a command that features.py tells the reader


def test_pictures_are_those_of_a_plain_savefig(tmp_path):
    figure = plan_plot(ddim_ode.plan("ddim", COSINE, [9.0, 1.0, 0.0]))
    figure.savefig(tmp_path / "plain.png", facecolor="white")
    pictures.save_figure(tmp_path / "ours.png", figure)
    assert (tmp_path / "ours.png").read_bytes() == (tmp_path / "plain.png").read_bytes()
    x = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    pictures.save_images(tmp_path, x, ["one"])
    with Image.open(tmp_path / "one.png") as picture:
        assert np.array_equal(np.asarray(picture), data.to_pixels(x)[0, 0].numpy())
