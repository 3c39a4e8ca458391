"""The parser of the commands: options in groups, an example below them, completion for shells."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL, STEPS, NOISE = "model and conditions", "solver, and where it steps", "noise"
TOLERANCE, PICTURES, OUTPUT, MACHINE = "tolerance", "pictures and real data", "output", "machine"
# The groups in the order in which --help shows them, and the options of each on any command.
_GROUPS = {
    MODEL: "model pipeline prompts call "
    "classes to guidance guidance-interval guidance-rescale clip threshold",
    STEPS: "methods method plan calibrated nfe steps grid final sigma-max sigma-min budget points",
    NOISE: "n seed seeds eta noise variants",
    TOLERANCE: "rtol atol reference confidence target quick",
    PICTURES: "data objective split indices metrics metric features keep",
    OUTPUT: "out npz png manifest cache shard json quiet",
    MACHINE: "device batch compile channels-last dtype cuda-graph",
}
_TITLES = {f"--{name}": title for title, names in _GROUPS.items() for name in names.split()}
_WIDTH = 80  # of descriptions


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults that say something, and an example as it is typed."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or action.default is False
        return action.help if plain else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Puts each option into the group that its name belongs to."""

    def __init__(self, *, description: str = "", example: str = "", **more: Any) -> None:
        super().__init__(
            description=textwrap.fill(description, _WIDTH),
            epilog=f"example:\n  {example}" if example else None,
            formatter_class=Help,
            **more,
        )
        self.titled = {title: self.add_argument_group(title) for title in _GROUPS}

    def add_argument(self, *names: str, **how: Any) -> argparse.Action:
        title = _TITLES.get(names[-1])
        if title is None or not hasattr(self, "titled"):
            return super().add_argument(*names, **how)
        return self.titled[title].add_argument(*names, **how)


class PrintCompletion(argparse.Action):
    """Prints the completion of a shell, which the package shtab makes of the parser."""

    SHELLS = ("bash", "zsh", "tcsh")

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        try:
            import shtab
        except ImportError:
            parser.error(f"{option_string} needs shtab: pip install -e '.[completion]'")
        for command in _commands(parser):
            for action in command._actions:
                if action.type is Path or "--plan" in action.option_strings:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, str(values)))
        parser.exit()


def _commands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    return [
        command
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for command in action.choices.values()
    ]
