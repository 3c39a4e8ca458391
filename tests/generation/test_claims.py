"""Claims: one owner each, among threads, processes and namespaces, for as long as he lives."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from small_runs import without_locks

from ddim_ode.generation.locks import Claims

HOLDER = """
import os, sys, time, pathlib
os.getpid = lambda: 7
from ddim_ode.generation.locks import Claims
with Claims(pathlib.Path(sys.argv[1])) as claims:
    print(claims.take(3), flush=True)
    time.sleep(60)
"""


def test_a_claim_is_one_process_s_until_it_dies(tmp_path):
    path = tmp_path / "claims"
    command = [sys.executable, "-c", HOLDER, str(path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "True\n"
        with Claims(path) as claims:
            assert claims.work
            assert not claims.idle()
            assert [claims.take(k) for k in (2, 3, 4)] == [True, False, True]
            holder.kill()
            holder.wait()
            assert claims.idle()
            assert claims.take(3)
        assert [p.name for p in tmp_path.iterdir()] == []
    finally:
        holder.kill()
        holder.communicate()


def test_a_claim_is_one_thread_s(tmp_path):
    with Claims(tmp_path / "claims") as one, Claims(tmp_path / "claims") as other:
        assert one.take(1)
        assert [other.take(k) for k in (1, 2)] == [False, True]
        assert not other.idle()
        one.drop(1)
        assert other.idle()
        assert other.take(1)
        assert not one.take(1)


def test_one_at_a_time_is_alone(tmp_path):
    inside, most = [], []

    def work(_):
        with Claims(tmp_path / "claims") as claims:
            for _ in range(20):
                with claims.alone():
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(1e-4)
                    inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert most == [1] * 160


def test_without_locks_every_claim_is_granted_and_nobody_known_to_be_away(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    with Claims(tmp_path / "claims") as one, Claims(tmp_path / "claims") as other:
        assert one.take(1)
        assert other.take(1)
        with one.alone(), other.alone():
            assert not one.work
        assert not one.idle()
    assert [p.name for p in tmp_path.iterdir()] == ["claims"]


def test_a_folder_that_is_gone_is_not_made_again(tmp_path):
    with (
        Claims(tmp_path / "gone/claims") as claims,
        pytest.raises(FileNotFoundError, match="gone/claims"),
        claims.alone(),
    ):
        pass
    assert not (tmp_path / "gone").exists()
