"""The plans that a command is given as files."""

from __future__ import annotations

import argparse
import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..solvers.plan import Plan


def load_plans(args: argparse.Namespace) -> dict[str, Plan]:
    """The plans by the names of their rows; ValueError if one is not what the manifest was made with."""
    from ..solvers.plan import Plan
    from ..solvers.plan_json import content

    plans: dict[str, Plan] = {}
    hashes = []
    for path in args.plan or ():
        data = content(path)
        plan = Plan.from_json(data, path)
        hashes.append(hashlib.sha256(data).hexdigest())
        label = plan.method
        if label in plans or label in args.methods:
            label = f"{label} ({path})"
        if label in plans:
            raise ValueError(f"--plan {path}: given twice; drop one")
        plans[label] = plan
    if args.plan_sha256 not in (None, hashes):
        raise ValueError(
            f"{args.manifest}: was made with other content of --plan {' '.join(args.plan)}"
        )
    args.plan_sha256 = hashes
    return plans
