"""Calls of every public name with any values; ``FUZZ=10000 pytest tests/test_fuzz.py`` makes many more."""

import os
import random

import fuzzing
import pytest

CALLS = int(os.environ.get("FUZZ", "300"))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_a_call_keeps_its_promises_or_says_what_to_change(seed):
    kinds, failures = fuzzing.run(CALLS, seed)
    said = [f"{found}: {call}" for call, found in failures[:20]]
    assert not failures, f"{dict(kinds)}\n" + "\n".join(said)


@pytest.mark.parametrize("name", fuzzing.TABLE)
def test_any_argument_may_be_any_value(name):
    """One at a time, in a call that works."""
    assert fuzzing.outcome(fuzzing.Call(name, {})) is None
    source = random.Random(name)
    for argument in fuzzing.TABLE[name].valid:
        for _ in range(max(1, CALLS // 30)):
            call = fuzzing.Call(name, {argument: fuzzing.odd(argument, source)})
            assert fuzzing.outcome(call) is None, str(call)
