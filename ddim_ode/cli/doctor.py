"""``ddim-ode doctor MODEL``: what will go wrong when a model is sampled, measured on it, with the fix."""

from __future__ import annotations

import argparse
import json
import textwrap
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .._base.checks import count
from .common import add_guidance, add_limit_arguments, find_device, load_real
from .models import Loaded
from .parser import Parser
from .pipelines import add_model, open_model

if TYPE_CHECKING:
    from ..diagnosis import Diagnosis


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add_model(parser, "model", nargs="?")
    add("--data", type=Path, help="clean images, as for ddim-ode train: finds more")
    add("--steps", type=int, default=50, help="the number of steps you mean to take")
    add("--n", type=int, default=8, help="samples to ask the model with")
    add("--seed", type=int, default=0, help="of the first noise")
    add_guidance(parser, "; give what you sample with")
    add_limit_arguments(parser)
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    add("--json", action="store_true", help="print the findings, and what was not checked, as JSON")
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from .._base.interrupted import Interrupted
    from ..diagnosis import diagnose

    count("--steps", args.steps, least=2)
    count("--n", args.n)
    device = find_device(args.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what the loader leaves out is measured below
        loaded = open_model(args)
    data = None
    if args.data is not None:
        data = load_real(args.data, "train", None, args.n)
    try:
        findings = diagnose(
            loaded.denoiser,
            data=data,
            shape=loaded.shape,
            steps=args.steps,
            n=args.n,
            seed=args.seed,
            device=device,
        )
    except Interrupted as stop:
        _print(args, loaded, stop.partial, whole=False)
        raise
    _print(args, loaded, findings, whole=True)
    return int(bool(findings))


def _print(args: argparse.Namespace, loaded: Loaded, findings: Diagnosis, whole: bool) -> None:
    if args.json:
        report = dict(
            findings=[asdict(finding) for finding in findings], not_checked=findings.not_checked
        )
        print(json.dumps(report, indent=1))
        return
    for key, value in loaded.facts.items():
        print(f"{key}: {value}")
    if not findings and whole:
        print(f"nothing found, on {args.n} samples and for {args.steps} steps")
    for finding in findings:
        print(f"\n{finding.severity}: {finding.check}")
        print(textwrap.fill(finding.message, 96, initial_indent="  ", subsequent_indent="  "))
        fix = f"fix: {finding.fix}"
        print(textwrap.fill(fix, 96, initial_indent="  ", subsequent_indent="       "))
    for reason in dict.fromkeys(findings.not_checked.values()):
        checks = [name for name, why in findings.not_checked.items() if why == reason]
        text = f"not checked: {', '.join(checks)}: {reason}"
        print("\n" + textwrap.fill(text, 96, subsequent_indent="  "))
