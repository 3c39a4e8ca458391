"""A comparison on disk: it comes back equal, and nothing that was damaged is believed."""

import json
import os
import random

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from problems import DDPM, mixture_2d

import ddim_ode
from ddim_ode.cli import main
from ddim_ode.comparison import files as comparison_file
from ddim_ode.comparison.distances import measure_rows
from ddim_ode.comparison.result import Comparison
from ddim_ode.evaluate.features import IDENTITY

DAMAGES = int(os.environ.get("FUZZ", "300"))


@pytest.fixture(scope="module")
def result():
    model = mixture_2d(DDPM)
    grids = ["trailing", "best"]
    found = ddim_ode.compare(
        model, ["ddim", "rk45", "unipc3"], [5, 20], n=10, grid=grids, keep=5, progress=False
    )
    measure_rows(found, IDENTITY, metrics=["energy_distance"])
    return found


@pytest.fixture(scope="module")
def path(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("compare") / "compare.json"
    result.to_json(path)
    return path


def drawn(figure):
    return [
        (line.get_label(), list(line.get_xdata()), list(line.get_ydata()))
        for axis in figure.axes
        for line in axis.lines
    ]


def test_it_comes_back_equal_to_the_last_bit(result, path):
    loaded = Comparison.load(path)
    assert loaded == result
    assert loaded.to_dicts() == result.to_dicts()
    for first, second in zip(result.errors, loaded.errors, strict=True):
        assert np.array_equal(first, second, equal_nan=True)
    for nfe in (5, 20):
        assert loaded.ranking(nfe) == result.ranking(nfe)
        assert str(loaded.best(nfe)) == str(result.best(nfe))
    assert loaded.recommend(0.1) == result.recommend(0.1)
    assert (loaded.floor, loaded.searched, loaded.seeds) == (result.floor, 5, [5, 6, 7, 8, 9])
    assert loaded.table() == result.table()
    assert loaded._repr_html_() == result._repr_html_()
    assert drawn(loaded.plot()) == drawn(result.plot())
    assert loaded.samples == [None] * len(result.rows)
    assert loaded.search == result.search


def test_it_says_what_it_was_made_with(path, tmp_path):
    about = Comparison.load(path).about
    assert (about["torch"], about["ddim_ode"]) == (torch.__version__, ddim_ode.__version__)
    assert about["device"] == "cpu"
    asked = dict(methods=["ddim", "rk45", "unipc3"], nfe=[5, 20], n=10, seed=0, batch=64)
    assert dict(asked, grid=["trailing", "best"]).items() <= about["arguments"].items()
    call = "compare --model mixture --methods ddim --nfe 3 --n 3 --quiet --out"
    assert main([*call.split(), str(tmp_path)]) == 0
    about = Comparison.load(tmp_path / "compare.json").about
    assert about["command"] == f"ddim-ode {call} {tmp_path}"
    assert about["arguments"]["n"] == 3


def test_equal_is_equal_in_all_that_a_file_has(result, path):
    other = Comparison.load(path)
    other.errors[0] = other.errors[0] + 1e-12
    assert other != result
    assert result != "a comparison"


def test_layout_and_line_ends_are_no_content(result, path, tmp_path):
    folded = tmp_path / "folded.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    folded.write_bytes(json.dumps(dict(reversed(tree.items())), indent=4).encode())
    assert Comparison.load(folded) == result
    folded.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Comparison.load(folded) == result


def test_no_damage_is_believed(path, tmp_path):
    data, rng, damaged = path.read_bytes(), random.Random(0), tmp_path / "damaged.json"

    def flipped():
        k = rng.randrange(len(data) - 1)
        return data[:k] + bytes([data[k] ^ 1 << rng.randrange(8)]) + data[k + 1 :]

    def changed():
        """One number, somewhere."""
        node = whole = json.loads(data)
        while isinstance(node, (dict, list)) and node:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            parent, at = node, rng.choice(keys)
            node = parent[at]
        parent[at] = 0.123
        return json.dumps(whole).encode()

    makers = [flipped, changed, lambda: data[: rng.randrange(len(data) - 2)]]
    for i in range(DAMAGES // 2):
        damaged.write_bytes(makers[i % 3]())
        try:
            loaded = Comparison.load(damaged)
        except ValueError as error:
            said = str(error)
        else:
            assert loaded == Comparison.load(path)  # spaces, and the like
            continue
        assert said.startswith(f"{damaged}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated, or not a comparison's JSON"),
        (b'{"format": "ddim_ode plan", "version": 1}', "not a comparison of this version"),
        (b'{"format": "ddim_ode comparison", "version": 2}', "not a comparison of this version"),
        (b'{"format": "ddim_ode comparison", "version": 1}', "damaged, or changed after it was"),
        (b"[" * 100_000, "nested too deep"),
        (b"\xff\xfe", "truncated, or not"),
        (b'{"a": 1, "a": 1}', "the key 'a' is there twice"),
        (b'{"a": NaN}', "NaN is no finite number"),
        (b'{"a": 1e999}', "1e999 is no finite number"),
    ],
)
def test_foreign_files_are_refused(tmp_path, content, message):
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Comparison.load(path)
    assert str(error.value).startswith(f"{path}: ")


def test_reading_is_bounded(path, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such comparison file"):
        Comparison.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="path=3 must be a path"):
        Comparison.load(3)
    monkeypatch.setattr(comparison_file, "SIZE_LIMIT", 1000)
    with pytest.raises(ValueError, match="larger than"):
        Comparison.load(path)


# -- what is drawn ------------------------------------------------------------------------------


def test_methods_are_chosen_by_name(result):
    for chosen in ("ddim", ["ddim"]):
        names = {label for label, *_ in drawn(result.plot(methods=chosen)) if label[0] != "_"}
        assert names == {"ddim"}
    with pytest.raises(ValueError, match="unknown method 'dim'; valid, nearest first: ddim"):
        result.plot(methods=["ddim", "dim"])


def test_it_is_drawn_as_large_as_asked_for(result):
    assert tuple(result.plot(figsize=(7, 3)).get_size_inches()) == (7, 3)
    assert tuple(result.plot().get_size_inches()) == (12.4, 4.4)
    for wrong in (3, (3,), (0, 3), ("a", 3), (float("nan"), 3), (1e9, 3)):
        with pytest.raises(ValueError, match="figsize="):
            result.plot(figsize=wrong)


def test_it_is_drawn_into_axes_that_are_there(result):
    figure, axes = plt.subplots(1, 3)
    assert result.plot(ax=axes[1:]) is figure
    assert not axes[0].lines
    assert [axis.get_title() for axis in axes[1:]] == ["trailing", "best grid of each"]
    assert [axis.get_yscale() for axis in axes] == ["linear", "log", "log"]
    assert drawn(figure) == drawn(result.plot())
    with pytest.raises(ValueError, match=r"ax has 1 axes, and there are 2 panels.*trailing, best"):
        result.plot(ax=axes[0])
    with pytest.raises(ValueError, match="must be matplotlib axes"):
        result.plot(ax="here")
    with pytest.raises(ValueError, match="drop figsize"):
        result.plot(ax=axes[1:], figsize=(3, 3))
    plt.close(figure)
