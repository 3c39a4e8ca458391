"""benchmarks/README.md: every figure and table of evidence, from the records in benchmarks/results.

python benchmarks/evidence.py              # after a benchmark has written new records
python benchmarks/evidence.py --check      # whether the page is that of the records

No number of the page is typed: tables are of NAME.csv, and below them stands what NAME.json says.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import RESULTS, pick, read_csv

from ddim_ode import __version__
from ddim_ode._base import files

PAGE = Path(__file__).parent / "README.md"
Grid = tuple[Sequence[str], Sequence[Sequence[object]]]


class Entry(NamedTuple):
    """A record of that name; the benchmark's docstring says what it shows.

    table: of its rows. pictures: beside NAME.png.
    """

    name: str
    title: str
    table: Callable[[list[Any]], Grid] | None = None
    pictures: Sequence[str] = ()


def whole(record: list[Any]) -> Grid:
    """The record as it is."""
    return list(record[0]), [list(row.values()) for row in record]


def pivot(rows: str, columns: str, value: str, **chosen: Any) -> Callable[[list[Any]], Grid]:
    """A table of one value by two keys, of the record's rows that have the chosen values."""

    def made(record: list[Any]) -> Grid:
        kept = [row for row in pick(record, **chosen) if {rows, columns, value} <= row.keys()]
        cells = {(row[rows], row[columns]): row[value] for row in kept}
        heads = sorted({column for _, column in cells})
        names = dict.fromkeys(row for row, _ in cells)
        body = [[name, *(cells.get((name, head), "") for head in heads)] for name in names]
        return [f"{rows}, {columns}", *heads], body

    return made


def of_columns(*names: str, **chosen: Any) -> Callable[[list[Any]], Grid]:
    """A table of these columns, a line for each row of the record that has the chosen values."""
    return lambda record: (
        [name.replace("_", " ") for name in names],
        [[row.get(name, "") for name in names] for row in pick(record, **chosen)],
    )


def peers(record: list[Any]) -> Grid:
    """The least error of each package, by problem and calls."""
    heads = list(dict.fromkeys((row["problem"], row["nfe"]) for row in record))
    best: dict[tuple[Any, Any], float] = {}
    for row in record:
        at = row["package"], (row["problem"], row["nfe"])
        best[at] = min(row["error"], best.get(at, np.inf))
    packages = dict.fromkeys(package for package, _ in best)
    body = [[package, *(best.get((package, head), "") for head in heads)] for package in packages]
    return ["package", *(f"{problem} {nfe}" for problem, nfe in heads)], body


def flow(record: list[Any]) -> Grid:
    """The error of each scheduler by calls, at the better shift; the best with most calls first."""
    rows = [row for row in record if "budget" in row]
    heads = sorted({row["budget"] for row in rows})
    best: dict[str, dict[int, float]] = {}
    for row in rows:
        name = " ".join(str(row[key]) for key in ("package", "scheduler", "settings") if key in row)
        errors = best.setdefault(name, {})
        errors[row["budget"]] = min(row["error"], errors.get(row["budget"], np.inf))
    body = [[name, *(errors[head] for head in heads)] for name, errors in best.items()]
    return ["scheduler, calls", *heads], sorted(body, key=lambda line: line[-1])


def clock(record: list[Any]) -> Grid:
    """The error on the profile's grid over that of the best searched one, and of the default, by model."""
    rows = pick(record, what="grid")
    body = []
    for model in (*dict.fromkeys(row["model"] for row in rows), "all"):
        own = rows if model == "all" else pick(rows, model=model)
        ratios = [[row["profile"] / row[other] for row in own] for other in ("searched", "default")]
        body.append([model, *(f(r) for r in ratios for f in (np.median, max))])
    return ["profile / other", "searched, median", "largest", "default, median", "largest"], body


def noise(record: list[Any]) -> Grid:
    """The least Fréchet distance of each package's samplers with noise, by calls, from exact moments."""
    rows = pick(record, what="moments")
    budgets = sorted({row["budget"] for row in rows})
    body = []
    for package in dict.fromkeys(row["package"] for row in rows):
        own = pick(rows, package=package)
        body.append([package, *(min(r["error"] for r in pick(own, budget=b)) for b in budgets)])
    return ["exact weak error, best of each", *(f"{budget} calls" for budget in budgets)], body


def quality(record: list[Any]) -> Grid:
    """Each maker's distances to real images, by guidance and calls; intervals are 95 %."""
    spans = dict(frechet_shipped="Fréchet, fitted", frechet_another="Fréchet, unseen")
    body = []
    for row in record:
        about = [f"{row['guidance']:g}", row["nfe"], row["maker"], row.get("error", "")]
        found = [[row[f"{name}{end}"] for end in ("", "_low", "_high")] for name in spans]
        distances = ["{:.1f} ({:.1f} to {:.1f})".format(*each) for each in found]
        body.append([*about, *distances, row["kid_another"], row["pixel_energy"]])
    heads = ["guidance", "calls", "maker", "error", *spans.values(), "KID, unseen", "pixel energy"]
    return heads, body


def doctor(record: list[Any]) -> Grid:
    """How many of the faults are named, by fault."""
    body = []
    for fault in dict.fromkeys(row["fault"] for row in record):
        rows = pick(record, fault=fault)
        body.append([fault, len(rows), sum(row["right"] == "True" for row in rows)])
    return ["fault", "models", "named rightly"], body


def overhead(record: list[Any]) -> Grid:
    """Each sampler once; the record has a row for each sampler that it is held against."""
    rows = {(row["sampler"], row.get("plan cache")): row for row in record if row["us/call"] < 1e4}
    return of_columns("sampler", "plan cache", "us/call", "quartiles")(list(rows.values()))


_OF_MODEL = ("fashion-mnist-guidance-1", "fashion-mnist-guidance-2", "fashion-mnist-loss")
ENTRIES = (
    Entry("clock", "A model's own grid, and adaptive solving", clock),
    Entry("which_solver", "Which solver, on which grid", whole),
    Entry(
        "steps_vs_quality",
        "Steps and quality: Fréchet distance",
        pivot("method", "budget", "frechet_distance", what="quality"),
    ),
    Entry("peers", "The best sampler of each package: error by problem and calls", peers),
    Entry(
        "calibration",
        "Fitted samplers: error over the best textbook sampler's",
        pivot("model", "nfe", "ratio", budget="fast"),
    ),
    Entry(
        "fits",
        "Fits of small networks: error over the best textbook sampler's",
        pivot("model", "nfe", "ratio", what="single"),
    ),
    Entry(
        "fits_shipped",
        "Fits of the shipped model: error over the best textbook sampler's",
        of_columns(
            "nfe", "ratio", "ratio_of_means", "error", "error_baseline", "baseline", "net_evals"
        ),
    ),
    Entry("interop", "In a diffusers pipeline"),
    Entry("pipelines", "Which pipelines run", whole),
    Entry("flow_pipeline", "In a flow-matching pipeline: the error by calls", flow),
    Entry("noise", "Step noise", noise),
    Entry(
        "quality",
        "Plans fitted to data",
        quality,
        ("quality_pictures",),
    ),
    Entry("work_precision", "Adaptive solvers beside those of other packages"),
    Entry(
        "honesty",
        "The share of ends within ten tolerances: rk45, modes of width 0.1",
        pivot("schedule", "tolerance", "within", method="rk45", std=0.1),
    ),
    Entry(
        "ranking",
        "Two sets of noises, and whom each calls best",
        of_columns(
            "model", "nfe", "first_seed", "best", "second", "ratio", "ratio_low", "ratio_high"
        ),
    ),
    Entry("start", "Where to start"),
    Entry("doctor", "Faults that the doctor names", doctor),
    Entry("charts", "Charts"),
    Entry(
        "round_trip",
        "There and back: RMS per pixel by calls each way, in float32",
        pivot("method", "budget", "round_trip", precision="float32"),
    ),
    Entry("latents", "Latents", of_columns("latents", "n", "norm_mean", "variance")),
    Entry(
        "interpolation", "Between two latents", None, ("interpolation_pictures", "edit", "inpaint")
    ),
    Entry("overhead", "What the loop costs, in microseconds a call", overhead),
    Entry(
        "tracing",
        "Our plans of diffusers' samplers",
        of_columns("scheduler", "theirs us/call", "ours us/call", "ratio of medians"),
    ),
    Entry("device", "Faster networks: speed by batch", pivot("option", "batch", "speed")),
    Entry("large_runs_kills", "Killed runs", of_columns("kills", "n", "distinct")),
    Entry(
        "large_runs_speed",
        "Two processes on two cores",
        of_columns("processes", "threads_each", "n", "samples_per_second"),
    ),
    Entry("faults", "Threads, hosts and cuts", of_columns("what", "trials", "samples", "complete")),
    Entry("model_quality", "The shipped model", None, _OF_MODEL),
)


def page() -> str:
    """The whole page."""
    lines = [
        "# Evidence",
        "",
        "Every figure and table of evidence, each with its command, machine and version.",
        "`python benchmarks/evidence.py` makes this page of the records in `results/`.",
    ]
    for entry in ENTRIES:
        if (RESULTS / f"{entry.name}.json").exists():
            lines += ["", *section(entry)]
    return "\n".join(lines) + "\n"


def section(entry: Entry) -> list[str]:
    """A record's part of the page."""
    record = json.loads((RESULTS / f"{entry.name}.json").read_text(encoding="utf-8"))
    command = record.get("command", f"python benchmarks/{entry.name}.py")
    script = (PAGE.parent / Path(command.split()[1]).name).read_text(encoding="utf-8")
    lines = [f"## {entry.title}", "", script.splitlines()[0].strip('"')]
    for picture in (entry.name, *entry.pictures):
        if (RESULTS / f"{picture}.png").exists():
            lines += ["", f"![{entry.title}](results/{picture}.png)"]
    if entry.table is not None:
        head, body = entry.table(read_csv(RESULTS / f"{entry.name}.csv"))
        lines += ["", *(line(row) for row in (head, ["---"] * len(head), *body))]
    lines += ["", f"`{command}`{origin(record)}"]
    while record := record.get("settings", {}).get("added_to"):
        lines += ["", f"Other rows: `{record['command']}`{origin(record)}"]
    return lines


def origin(record: dict[str, Any]) -> str:
    """Machine, date, commit and version of a record, and whether its noises are those of today."""
    machine = record.get("machine", {})
    cpu = "{cpu}, {threads} of {cores} cores".format(**machine) if machine else ""
    version = record.get("versions", {}).get("ddim_ode", "0.1.0")
    parts = [
        machine.get("device", cpu),
        record.get("date"),
        record.get("commit"),
        f"version {version}",
    ]
    old = "" if version == __version__ else ". Since then the noise of every seed has changed"
    return "".join(f", {part}" for part in parts if part) + f"{old}."


def line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(shown(cell) for cell in cells)} |"


def shown(cell: object) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell).replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="only compare; exit 1 where it differs"
    )
    args = parser.parse_args()
    text = page()
    if not args.check:
        files.write(PAGE, text)
    elif PAGE.read_text(encoding="utf-8") != text:
        raise SystemExit(
            "benchmarks/README.md is not that of the records: python benchmarks/evidence.py"
        )


if __name__ == "__main__":
    main()
