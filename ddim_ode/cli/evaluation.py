"""``ddim-ode evaluate``: a folder of ddim-ode generate, verified and held against real data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .._base import files
from .._base.checks import refuse
from .._base.table import Table
from .common import find_device, load_real, parse_features
from .parser import Parser

if TYPE_CHECKING:
    from ..evaluate.features import Features
    from ..evaluate.statistics import FeatureStatistics
    from ..generation.shards import Shards


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="what ddim-ode generate --out made")
    add(
        "--data",
        type=Path,
        help="real images, as for ddim-ode train (the test split of an IDX pair), or a .safetensors of "
        "FeatureStatistics.save; without, the samples are verified and counted",
    )
    add(
        "--features",
        help="a classifier.safetensors, inception, or identity (the samples themselves)",
    )
    add(
        "--metrics",
        nargs="+",
        metavar="METRIC",
        help="for --data (frechet_distance kernel_distance)",
    )
    add("--keep", type=int, default=10_000, help="rows for all metrics but frechet_distance")
    add("--seed", type=int, default=0, help="of which rows, and of the metrics' own draws")
    add("--device", default="cpu", help="for the features: cpu, cuda ...")
    add("--out", type=Path, help="folder for evaluation.csv and .json (DIR)")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from ..evaluate.metrics import USUAL, check_names
    from ..evaluate.streaming import summarise
    from ..generation.shards import Shards

    names = check_names(USUAL if args.metrics is None else args.metrics)
    shards = Shards.open(args.folder)
    features, reference = None, None
    if args.data is not None:
        find_device(args.device)
        sha256, shape = shards.run.about.get("sha256"), shards.run.shape
        features = parse_features(args.features, shape, sha256, args.device, "--data")
        reference = _reference(args.data, shards, features)
    else:
        unused = {"--features": args.features, "--metrics": args.metrics}
        refuse("without --data nothing is compared", **unused)
    try:
        summary = summarise(
            shards,
            features,
            reference,
            metrics=names,
            keep=args.keep,
            seed=args.seed,
            progress=not args.quiet,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped: nothing is measured before all shards are read") from None
    out = args.out or args.folder
    out.mkdir(parents=True, exist_ok=True)
    files.write_csv(out / "evaluation.csv", [summary.row])
    record = dict(
        row=summary.row,
        status=dict(summary.status),
        samples_sha256=summary.sha256,
        reference_sha256=None if reference is None else reference.sha256,
        run=dict(shards.run.decides),
        about=dict(shards.run.about),
    )
    files.write_json(out / "evaluation.json", record)
    facts = [
        (name, f"{value:.6g}" if isinstance(value, float) else value)
        for name, value in summary.row.items()
    ]
    print(Table((), facts, left=(0, 1)).text())
    for word, count in summary.status.items():
        print(f"{count:,} of {shards.run.n:,} samples: {word}")
    print(f"\n{out / 'evaluation.csv'}   {out / 'evaluation.json'}")
    return 0


def _reference(path: Path, shards: Shards, features: Features) -> FeatureStatistics:
    from ..evaluate.statistics import FeatureStatistics

    if path.suffix == ".safetensors":
        return FeatureStatistics.load(path, features)
    return FeatureStatistics.of(load_real(path, "test", shards.run.shape), features)
