"""What can be read off a comparison: answers, tables, files, pictures."""

import csv
import json
import sys

import numpy as np
import pytest
from problems import DDPM, mixture_2d

import ddim_ode
from ddim_ode.comparison.comparison import Cell
from ddim_ode.comparison.jobs import Entry, Job
from ddim_ode.comparison.result import Comparison
from ddim_ode.plots import comparisons as plots


def compare(*args, **options):
    return ddim_ode.compare(*args, progress=False, **options)


def test_best_ranking_and_recommendation():
    r = compare(mixture_2d(DDPM), ["ddim", "dpmpp2m", "unipc3"], [5, 8, 10], n=64)
    order = [row["method"] for row in r.ranking(5)]
    errors = [row["error"] for row in r.ranking(5)]
    assert errors == sorted(errors)
    assert r.best(5)["method"] == order[0] == "unipc3"
    assert not r.ranking(5)[-1]["tie"]
    assert r.decide(r.ranking(5)[-1], r.ranking(5)[0]).low > 1
    assert str(r.best(5)).startswith("unipc3 on trailing")

    cheap = r.best(8)
    target = cheap["error_high"] * 1.001
    found = r.recommend(target)
    assert found["error_high"] <= target
    assert not [row for row in r.rows if row["error_high"] <= target and row["nfe"] < found["nfe"]]
    nothing = r.recommend(1e-9)
    assert not nothing
    assert "none of these" in str(nothing)
    with pytest.raises(ValueError, match=r"give one of \[5, 8, 10\]"):
        r.best(7)
    with pytest.raises(ValueError, match="target_error"):
        r.recommend(-1.0)
    with pytest.raises(ValueError, match=r"confidence=0\.0 must"):
        r.decide(0, 3, confidence=0)


def add(made, name, errors):
    n = len(errors)
    cell = Cell(errors, ["success"] * n, 5.0, 5 * n, 0.0, 5, 0.1, None)
    made.add(Job(Entry(name, "m"), 5, "default", "time"), cell, None, 0)


def simulated(truths, rng, n=64):
    """A comparison of methods whose errors scatter about the truths, together and each on its own."""
    made = Comparison([5], 0.95, list(range(n)), 0, "", "", dict(model="", schedule=""))
    hard = rng.standard_normal(n)
    for i, truth in enumerate(truths):
        errors = truth * np.exp(0.5 * hard + 0.2 * rng.standard_normal(n))
        add(made, f"m{i}", errors)
    return made.ranking(5)


@pytest.mark.parametrize("truths", [[1.0] * 9, [1.0] * 2 + [2.0] * 7])
def test_a_best_method_is_neither_first_nor_tied_in_one_of_twenty_at_most(truths):
    rng = np.random.default_rng(0)
    rows = [{row["method"]: row for row in simulated(truths, rng)} for _ in range(150)]
    excluded = np.mean([not row["m0"]["tie"] for row in rows])
    assert excluded <= 0.05
    if (
        truths[-1] == 2.0
    ):  # the far ones do not widen what is left: 2.5 % each way, not a ninth of it
        assert not any(row["m5"]["tie"] for row in rows)
        decided = np.mean([not (row["m0"]["tie"] and row["m1"]["tie"]) for row in rows])
        assert 0.02 <= decided <= 0.09


def test_intervals_of_a_ranking_agree_with_its_ties():
    for row in simulated([1.0, 1.02, 1.05, 1.1, 1.5, 2.0], np.random.default_rng(1)):
        assert row["tie"] == (row["ratio_low"] <= 1 <= row["ratio_high"])


def test_the_best_says_whose_mean_is_smaller():
    made = Comparison([5], 0.95, list(range(16)), 0, "", "", dict(model="", schedule=""))
    for name, errors in (("steady", [1.0] * 16), ("mostly", [0.5] * 15 + [50.0])):
        add(made, name, np.array(errors))
    assert made.best(5)["method"] == "mostly"
    assert "the smallest mean, which the worst noises decide, has steady: 1" in str(made.best(5))


@pytest.fixture(scope="module")
def result():
    model = mixture_2d(DDPM)
    return compare(model, ["ddim", "unipc3", "rk45"], [5, 10, 100], n=16, grid=["trailing", "time"])


def test_tables_and_files_say_the_same(result, tmp_path):
    result.to_csv(tmp_path / "rows.csv")
    result.to_json(tmp_path / "rows.json")
    with open(tmp_path / "rows.csv", newline="") as file:
        read = list(csv.DictReader(file))
    whole = json.loads((tmp_path / "rows.json").read_text())
    assert len(read) == len(whole["rows"]) == len(result.rows) == 3 * 3 * 2
    for row, line, plain in zip(result.rows, read, whole["rows"]):
        assert plain["error"] == row["error"]
        assert line["error"] == ("" if row["error"] is None else str(row["error"]))
        assert json.loads(line["status"]) == row["status"]
    assert whole["errors"][0] == pytest.approx(result.errors[0])
    text, html = result.table(), result._repr_html_()
    assert str(result) == repr(result) == text
    for word in ("unipc3", "one step of 'rk45'", "reference: UniPC-4", "10 network calls"):
        assert word in text
    assert html.count("<tr") == 1 + 3 + len(result.rows)
    assert "one step of &#x27;rk45&#x27;" in html


def test_pandas_is_optional(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ValueError, match="pip install pandas"):
        result.to_pandas()


def test_plot_is_labelled_and_draws_every_row(result):
    figure = result.plot()
    first, second = figure.axes
    assert "network calls" in first.get_xlabel()
    assert "RMS error" in first.get_ylabel()
    assert (first.get_xscale(), first.get_yscale()) == ("log", "log")
    assert (first.get_title(), second.get_title()) == ("trailing", "time")
    named = {text.get_text() for text in first.texts}
    assert {"ddim", "unipc3", "rk45"} <= named
    for line in first.lines:
        if line.get_label() in ("ddim", "unipc3"):
            rows = [
                row
                for row in result.rows
                if (row["method"], row["grid"]) == (line.get_label(), "trailing")
            ]
            assert list(line.get_ydata()) == [row["error"] for row in rows]
            assert list(line.get_xdata()) == [row["nfe"] for row in rows]
    floors = [line for line in first.lines if list(line.get_ydata()) == [result.floor] * 2]
    assert len(floors) == 1
    figure.canvas.draw()


def test_a_method_looks_the_same_everywhere():
    assert plots.look("ddim") == plots.look("ddim")
    looks = [tuple(map(str, plots.look(m["name"]).values())) for m in ddim_ode.methods()]
    assert len(set(looks)) == len(looks)
    assert plots.look("mine") == plots.look("mine")
