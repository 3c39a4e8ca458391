"""The benchmark scripts start, leave out what is not installed, and record where a figure comes from.

What they measure is not tested here, and no timing anywhere.
"""

import datetime
import functools
import importlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import load as peer

import ddim_ode

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
HELPERS = (
    "common",
    "diffusers_schedulers",
    "drawing",
    "k_diffusion_sampling",
    "ode_peers",
    "small_networks",
    "stochastic_peers",
    "unseen",
)
SCRIPTS = sorted(p.stem for p in BENCHMARKS.glob("*.py") if p.stem not in HELPERS)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@functools.cache
def load(name):
    """A benchmark's module, from its own file: ``peers`` is also the name of a module of the tests."""
    if name in HELPERS:
        return importlib.import_module(name)
    if name in ("interop", "flow_pipeline"):  # whose classes are diffusers'
        peer("diffusers")
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def common():
    return load("common")


@pytest.fixture
def args(common, tmp_path):
    return common.arguments("What.", "few", "many").parse_args(["--out", str(tmp_path / "new")])


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_it_measures_and_the_docstring_s_commands_parse(name, monkeypatch, capsys):
    script = load(name)
    first, *lines = script.__doc__.splitlines()

    def stopped(*words):
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *words])
        with pytest.raises(SystemExit) as stop:
            script.main()
        return stop.value.code

    assert stopped("--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join(first.split()) in shown
    assert name == "evidence" or ("--quick" in shown and "--full" in shown and "--out" in shown)

    def complain(parser, message):
        raise SystemExit(message)

    monkeypatch.setattr("argparse.ArgumentParser.error", complain)
    commands = [line.split("#")[0].split() for line in lines if "python bench" in line]
    assert commands
    for _, path, *words in commands:
        assert path == f"benchmarks/{name}.py"
        assert stopped(*words, "--no-such-option") == "unrecognized arguments: --no-such-option"


def test_the_networks_of_nothing_are_networks():
    """Whose calls cost nothing, so that what is left is the loop."""
    peer("diffusers")
    rows = load("overhead").stub_rows(rounds=1)
    assert {"ddim", "heun", "rk4"} <= {row["sampler"] for row in rows}
    name, options = load("tracing").TRACED[0]
    assert load("tracing").measure(name, options, rounds=1)["scheduler"].startswith(name)


def test_gpu_without_a_gpu_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    gpu = load("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--full", "--out", str(tmp_path / "new")])
    assert gpu.main() is None  # which is exit status 0
    assert capsys.readouterr().out == (
        "There is no CUDA device here: nothing was measured, and nothing is written.\n"
    )
    assert not (tmp_path / "new").exists()


def test_no_synchronisation_puts_the_network_back(monkeypatch):
    gpu = load("gpu")
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def net(x, t):
        raise RuntimeError("waited")

    model = ddim_ode.Denoiser(net, ddim_ode.schedules.cosine())
    with pytest.raises(RuntimeError, match="waited"), gpu.no_synchronisation(model):
        ddim_ode.sample(model, torch.zeros(1, 2), steps=2)
    assert modes == ["error", "default"]
    assert model.net is net


def test_where_results_go(common, tmp_path):
    def out(*words):
        return common.Run("x", common.arguments("What.", "few", "many").parse_args(words)).out

    assert out() == out("--quick") == common.QUICK_RESULTS
    assert out("--full") == common.RESULTS
    assert out("--full", "--out", str(tmp_path)) == tmp_path
    assert common.QUICK_RESULTS.parts[0] + "/" in (BENCHMARKS.parent / ".gitignore").read_text()


def test_a_run_records_command_settings_machine_and_versions(
    common, args, tmp_path, monkeypatch, capsys
):
    data = tmp_path / "some" / "data"
    monkeypatch.setattr(sys, "argv", ["/x/benchmarks/some.py", "--quick", "--data", str(data)])
    run = common.Run("some", args, ["scipy", "no-such-package"])
    figure, _ = load("drawing").panels(1)
    run.save([dict(a=1.5, b="x"), dict(a=2.0, c=3)], figure, "as text", n=7)
    assert sorted(p.name for p in run.out.iterdir()) == [
        f"some.{suffix}" for suffix in ("csv", "json", "png", "txt")
    ]
    text = run.path(".json").read_text()
    record = json.loads(text)
    assert record["command"] == "python benchmarks/some.py --quick --data DIR"
    assert str(tmp_path) not in text
    assert record["date"] == f"{datetime.date.today()}"
    assert record["commit"] == common.commit()
    assert record["settings"] == {"n": 7}
    assert record["seed"] == common.SEED
    assert record["machine"]["cpu"]
    assert record["machine"]["threads"] == torch.get_num_threads()
    found = record["versions"]
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert found["ddim_ode"] == ddim_ode.__version__
    assert found["no-such-package"] == "not installed"
    assert "scipy" in found


def test_the_page_of_evidence_is_that_of_the_records(monkeypatch):
    evidence = load("evidence")
    assert evidence.PAGE.read_text(encoding="utf-8") == evidence.page()
    monkeypatch.setattr(evidence, "__version__", "0.3.0")
    assert "the noise of every seed has changed" in evidence.origin(
        {"versions": {"ddim_ode": "0.2.0"}}
    )


def test_csv_keeps_all_keys_and_numbers(common, tmp_path):
    rows = [dict(a=0.1 + 0.2, b="x, y"), dict(a=2.0, c=float("inf"), d=None)]
    common.write_csv(tmp_path / "t.csv", rows)
    assert common.read_csv(tmp_path / "t.csv") == [
        dict(a=0.1 + 0.2, b="x, y"),
        dict(a=2.0, c=float("inf")),
    ]


def test_a_peer_that_is_missing_is_left_out_with_a_word(common, monkeypatch, capsys):
    assert common.installed("numpy")
    assert not common.installed("no-such-package")
    assert capsys.readouterr().out == (
        "no-such-package is not installed: left out (pip install no-such-package)\n"
    )
    peers = load("peers")
    monkeypatch.setattr(peers, "installed", lambda package: package == "ddim_ode")
    rows = list(peers.measure(_problem(common), [4]))
    assert {row["package"] for row in rows} == {"ddim_ode", "ddim_ode, any grid"}
    best = peers.winners(rows)
    assert list(best) == list(peers.PEERS)
    assert best["diffusers"] == {}
    mine = [row["error"] for row in rows if row["package"] == "ddim_ode"]
    assert best["ddim_ode"][4]["error"] == min(mine)


def test_k_diffusion_is_still_found_once_its_sampling_module_is_loaded(common):
    if importlib.util.find_spec("k_diffusion") is None:
        pytest.skip("k-diffusion is not installed")
    peers = load("peers")
    for _ in range(2):
        assert common.installed("k-diffusion")
        names = [name for name, _ in peers.k_diffusion_samplers(_problem(common))]
        assert "dpmpp_2m karras" in names
        assert "torchsde" not in sys.modules or sys.modules["torchsde"].__spec__ is not None


def _problem(common):
    """A mixture of two, its exact end as the reference."""
    schedule = ddim_ode.schedules.exponential()
    model = ddim_ode.exact.gaussian_mixture([0.5, 0.5], [-1.0, 1.0], [0.2, 0.3], schedule)
    x = ddim_ode.noise((1,), schedule, seeds=range(6), dtype=torch.float64)
    end = ddim_ode.sample(model, x, "rk4", steps=300, grid="karras").x
    return common.Problem("two", model, x, None, end)


@pytest.mark.parametrize("state", ["x", "x/alpha"])
@pytest.mark.parametrize("clock", ["t", "ln sigma", "atan sigma"])
def test_the_field_given_to_peers_has_the_same_solution(common, clock, state):
    """In every variable and state, with one τ for all or one each; counted, and within its budget."""
    ode_peers = load("ode_peers")
    problem = _problem(common)
    field = ode_peers.PeerField(problem, clock, state, 10_000)
    end, calls = ode_peers.torchdiffeq_dopri5(field, 1e-7)
    assert calls == field.calls + 1
    torch.testing.assert_close(end, problem.reference, rtol=0, atol=2e-4)
    tau = sum(field.span()) / 2
    one = field(tau, field.start())
    each = field(torch.full((6,), tau, dtype=torch.float64), field.start())
    torch.testing.assert_close(one, each, rtol=1e-12, atol=1e-12)
    short = ode_peers.PeerField(problem, clock, state, 3)
    with pytest.raises(ode_peers.TooManyCalls):
        ode_peers.torchdiffeq_dopri5(short, 1e-7)


def test_samples_are_kept_by_what_decides_them(common, tmp_path, monkeypatch):
    """An interrupted run goes on; another plan or model does not find the first one's samples."""
    model = ddim_ode.load("fashion-mnist")
    first = common.end_states(model, "ddim", range(3), tmp_path, batch=2, nfe=1)
    assert sorted(p.stat().st_size for p in tmp_path.iterdir())[0] > 0
    kept = {p.name for p in tmp_path.iterdir()}
    assert len(kept) == 2
    monkeypatch.setattr(model, "net", None)  # nothing is solved again
    again = common.end_states(model, "ddim", range(3), tmp_path, batch=2, nfe=1)
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    with pytest.raises(ValueError, match="cannot be called"):
        common.end_states(model, "ddim", range(3), tmp_path, batch=2, nfe=2)
    model.guide(2.0)
    with pytest.raises(ValueError, match="cannot be called"):
        common.end_states(model, "ddim", range(3), tmp_path, batch=2, nfe=1)


@pytest.mark.parametrize(
    ("one", "other", "agreed"),
    [
        (("a", 1, ""), ("a", 1, ""), True),
        (("a", 1, ""), ("b", 1, ""), False),  # both decide, and not alike
        (("a", 1, ""), ("b", 0, "c a"), True),  # decided there, among the tied here
        (("a", 1, ""), ("b", 0, "c"), False),  # here it is not even tied
        (("a", 0, "c"), ("b", 0, "c"), True),  # nothing is decided that could be contradicted
    ],
)
def test_two_sets_agree_where_neither_contradicts_what_the_other_decides(
    common, tmp_path, one, other, agreed
):
    ranking = load("ranking")
    same = dict(model="m", nfe=5, gaps=3, gaps_tied=1, largest_gap_tied=0.25)
    rows = [same | dict(zip(("best", "decided", "tied"), row)) for row in (one, other)]
    for pair in (rows, rows[::-1]):
        assert ranking.agree(*pair) is agreed
    common.write_csv(tmp_path / "t.csv", rows)  # as --redraw reads them
    expected = dict(
        decided=[one[1], other[1]],
        decided_by_any=int(one[1] or other[1]),
        decided_by_any_and_agreed=int(bool(one[1] or other[1]) and agreed),
        gaps=6,
        gaps_called_a_tie=2,
        largest_gap_called_a_tie=0.25,
    )
    for read in (rows, common.read_csv(tmp_path / "t.csv")):
        assert expected.items() <= ranking.summary(read).items()


def test_a_cell_is_decided_when_its_best_ties_with_no_other(common):
    """By a comparison of two on a mixture, whose ranking says the same."""
    ranking = load("ranking")
    model = _problem(common).model
    options = dict(nfe=[5, 8], n=40, progress=False)
    plan = ddim_ode.plan_for(model, "ddim", nfe=5)
    result = ddim_ode.compare(model, {"x": "ddim", "y": "unipc3", "z": plan}, **options)
    for row in ranking.judged("m", result):
        first, *others = result.ranking(row["nfe"])
        tied = [other["method"] for other in others if other["tie"]]
        assert row["best"] == first["method"]
        assert row["tied"].split() == tied
        assert row["decided"] == int(not tied)
        assert row["gaps"] == sum(other["ratio"] >= 1.2 for other in others)
        assert row["ratio"] == others[0]["ratio"] >= 1


def test_our_methods_look_the_same_everywhere_and_peers_are_grey():
    from ddim_ode.plots import comparisons as plots

    look = load("drawing").look
    assert look("heun") == look("ddim_ode heun") == plots.look("heun")
    for name in ("torchdiffeq dopri5", "torchode dopri5", "diffusers", "k-diffusion"):
        colour = look(name)["color"]
        assert colour[1:3] == colour[3:5] == colour[5:7]
