"""Random calls of every public name; ``FUZZ=10000 pytest tests/test_fuzz.py`` makes many more."""

import os

import fuzzing
import pytest

CALLS = int(os.environ.get("FUZZ", "300"))


@pytest.mark.parametrize("seed", range(3))
def test_a_call_keeps_its_promises_or_says_what_to_change(seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kinds, failures = fuzzing.run(CALLS, seed)
    said = [f"{found}: {call}" for call, found in failures[:20]]
    assert not failures, f"{dict(kinds)}\n" + "\n".join(said)


@pytest.mark.parametrize("name", fuzzing.TABLE)
def test_the_calls_that_arguments_are_changed_of_work(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fuzzing.outcome(fuzzing.Call(name, {})) is None
