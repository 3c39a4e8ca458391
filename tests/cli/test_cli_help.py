"""What --help shows, that its examples are calls, and completion for shells."""

import argparse
import os
import re
import shlex
import subprocess
import sys

import pytest
from commands import run

from ddim_ode import cli

PARSER = cli._parser()
(COMMANDS,) = (a.choices for a in PARSER._actions if isinstance(a, argparse._SubParsersAction))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_each_option_in_a_group(name):
    (options,) = (g for g in COMMANDS[name]._action_groups if g.title in ("options", "optional"))
    ungrouped = {option for action in options._group_actions for option in action.option_strings}
    assert ungrouped <= {"-h", "--help", "--references"}
    text = COMMANDS[name].format_help()
    assert "output:" in text
    assert all(text.count(f"\n{group}:") <= 1 for group in ("noise", "output", "machine"))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_each_command_is_one_of_its_calls(name):
    (example,) = re.findall(r"^example:\n  (.*)$", COMMANDS[name].format_help(), re.MULTILINE)
    program, command, *words = shlex.split(example)
    assert (program, command) == ("ddim-ode", name)
    assert PARSER.parse_args([command, *words]).command == name


def complete(shell, tmp_path, *words):
    """What bash offers for the last of the words, by the printed script."""
    script = tmp_path / "complete"
    script.write_text(shell, encoding="utf-8")
    (function,) = re.findall(r"^complete .*-F (\S+) ddim-ode$", shell, re.MULTILINE)
    line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
    ask = f"source {script}; {line}; {function}; echo ${{COMPREPLY[@]}}"
    return subprocess.run(["bash", "-c", ask], capture_output=True, text=True).stdout.split()


def test_bash_completes_commands_options_and_files(capsys, tmp_path):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as stop:
        run("--print-completion", "bash")
    assert stop.value.code == 0
    shell = capsys.readouterr().out
    assert complete(shell, tmp_path, "ddim-ode", "comp") == ["compare"]
    assert set(complete(shell, tmp_path, "ddim-ode", "sample", "--guid")) == {
        *("--guidance", "--guidance-interval", "--guidance-rescale")
    }
    assert "_shtab_compgen_files" in re.search(r"sample___out_COMPGEN=(\S+)", shell).group(1)


def test_without_shtab_completion_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as stop:
        run("--print-completion", "zsh")
    assert stop.value.code == 2
    assert "pip install -e '.[completion]'" in capsys.readouterr().err


@pytest.mark.parametrize(("own", "policy"), [(None, "passive"), ("active", "active")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(own, policy):
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {} if own is None else {"OMP_WAIT_POLICY": own}
    code = (
        "import os, ddim_ode.cli as cli; cli.main(['methods', '--references']);"
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split()[-1] == policy


def test_sample_ends_with_what_to_do_next(capsys, tmp_path):
    words = ("sample", "--methods", "ddim", "--nfe", "1", "--seeds", "0", "--out", tmp_path)
    assert run(*words) == 0
    lines = capsys.readouterr().out.splitlines()[-3:]
    calls = [re.search(r"ddim-ode (\w+) (?:--model )?MODEL", line) for line in lines]
    assert [call.group(1) for call in calls] == ["doctor", "profile", "compare"]
    for call in calls:  # as they stand, they are calls
        assert PARSER.parse_args(call.group(0).split()[1:]).model == "MODEL"
    assert run(*words, "--quiet") == 0
    assert "next:" not in capsys.readouterr().out
