"""Does the ranking decide, and do other noises agree? Twenty cells, each from two disjoint sets of noises.

    python benchmarks/ranking.py --quick
    python benchmarks/ranking.py --full
    python benchmarks/ranking.py --full --redraw

A cell is a model (four mixtures with the exact ε, on their best grids, and the shipped one, on the default
grid) at 5, 8, 10 or 20 calls; it is decided if the best method of ``ddim_ode.compare`` ties with no other.
Two sets agree on a cell that both decide if they name the same method, and on one that only one decides if
the other set ties that method with its best. The figure has how far the second is behind the best, full
where decided. --full makes 260,000 evaluations of the shipped model; --shipped takes fewer noises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import SEED, Row, Run, arguments, digits, end_states, labels, pick, tell
from drawing import GREY, INK, label, log_axis, look, note, panels
from matplotlib.figure import Figure

import ddim_ode
from ddim_ode import exact, schedules
from ddim_ode.comparison.jobs import SEARCH
from ddim_ode.comparison.result import Comparison

NFE = (5, 8, 10, 20)
SHIPPED = "fashion-mnist"
SHOWN = ("model", "nfe", "best", "second", "ratio", "ratio_low", "ratio_high", "decided", "tied")
SETS = (SEED, SEED + 10_000)  # the first noise of each
GAP = 0.2  # never to be called a tie
CONVERGED: Mapping[str, Any] = dict(method="unipc3", nfe=120, grid="karras")


class Size(NamedTuple):
    """nfe: budgets. mixtures: how many. n: noises per set, for the mixtures and the shipped model."""

    nfe: tuple[int, ...]
    mixtures: int
    n: int
    shipped: int


FULL = Size(NFE, 4, 256, 256)
QUICK = Size((5, 10), 2, 64, 0)


def mixtures() -> dict[str, exact.ExactModel]:
    """Digits, eight modes on a circle, ten in 16 dimensions, and few wide ones that overlap."""
    rng = np.random.default_rng(SEED)
    angles = np.arange(8) * np.pi / 4
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    factors = rng.standard_normal((10, 16, 16)) / 16
    wide, narrow = np.full((8, 2), 0.1**2), factors @ factors.swapaxes(1, 2) + 0.01 * np.eye(16)
    mixture = exact.gaussian_mixture
    many = rng.dirichlet(np.full(10, 5.0)), rng.standard_normal((10, 16)), narrow
    few = [0.5, 0.3, 0.2], rng.standard_normal((3, 4)), rng.uniform(0.1, 0.5, (3, 4))
    return {
        "digits, ddpm": digits(),
        "circle, cosine": mixture(np.full(8, 1 / 8), circle, wide, schedules.cosine()),
        "16-D, vp": mixture(*many, schedules.vp()),
        "overlapping, ve": mixture(*few, schedules.ve(80.0)),
    }


def compared(size: Size, cache: Path) -> Iterator[tuple[str, Comparison]]:
    """The comparisons, a model after another, each with its two sets of noises."""
    for name, mixture in list(mixtures().items())[: size.mixtures]:
        for seed in SETS:
            options = dict(n=size.n + SEARCH, seed=seed, batch=size.n + SEARCH, cache=cache)
            found = ddim_ode.compare(mixture, nfe=size.nfe, grid="best", progress=False, **options)
            yield name, found
    model = ddim_ode.load(SHIPPED)
    for seed in SETS if size.shipped else ():
        seeds = range(seed, seed + size.shipped)
        ends = end_states(model, seeds=seeds, cache=cache, batch=32, **CONVERGED)
        options = dict(n=len(seeds), seed=seed, batch=32, cache=cache, cond=labels(model, seeds))
        yield SHIPPED, ddim_ode.compare(model, nfe=size.nfe, reference=ends, **options)


def judged(name: str, result: Comparison) -> Iterator[Row]:
    """A row per budget: the best, the second, what lies between them, and what was called a tie."""
    for budget in result.budgets:
        found = result.ranking(budget)
        best, second, *_ = ranked = [row for row in found if row["rank"] and not row["at_floor"]]
        ties = [row for row in ranked[1:] if row["tie"]]
        yield dict(
            model=name,
            nfe=budget,
            first_seed=result.seeds[0],
            n=len(result.seeds),
            best=best["method"],
            grid=f"{best['grid']} to σ={best['sigma_min']:.3g}",
            error=best["error"],
            error_typical=best["error_typical"],
            second=second["method"],
            ratio=second["ratio"],
            ratio_low=second["ratio_low"],
            ratio_high=second["ratio_high"],
            decided=int(not ties and not any(row["at_floor"] for row in found)),
            tied=" ".join(row["method"] for row in ties),
            largest_gap_tied=max((row["ratio"] - 1 for row in ties), default=0.0),
            gaps=sum(row["ratio"] >= 1 + GAP for row in ranked[1:]),
            gaps_tied=sum(row["ratio"] >= 1 + GAP for row in ties),
            at_floor=sum(row["at_floor"] for row in found),
        )


def agree(a: Row, b: Row) -> bool:
    """Whether neither set contradicts what the other decided."""
    sides = ((a, b), (b, a))
    return a["best"] == b["best"] or all(
        other["best"] in str(one.get("tied", "")).split()
        for one, other in sides
        if other["decided"]
    )


def cells(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The two rows of each cell."""
    found = dict.fromkeys((row["model"], row["nfe"]) for row in rows)
    return [tuple(pick(rows, model=model, nfe=nfe)) for model, nfe in found]


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    pairs = cells(rows)
    decided = [(a, b) for a, b in pairs if a["decided"] or b["decided"]]
    return dict(
        cells=len(pairs),
        decided=[sum(int(pair[i]["decided"]) for pair in pairs) for i in range(len(SETS))],
        decided_by_any=len(decided),
        decided_by_any_and_agreed=sum(agree(a, b) for a, b in decided),
        gaps=sum(int(row["gaps"]) for row in rows),
        gaps_called_a_tie=sum(int(row["gaps_tied"]) for row in rows),
        largest_gap_called_a_tie=round(max(float(row["largest_gap_tied"]) for row in rows), 4),
    )


def report(found: Mapping[str, Any]) -> None:
    one, other = found["decided"]
    print(
        f"\n{found['cells']} cells; decided: {one} by the first noises, {other} by the others; "
        f"of {found['decided_by_any']} decided by either, both agree on "
        f"{found['decided_by_any_and_agreed']}\n"
        f"gaps of {GAP:.0%} or more to the best: {found['gaps']}, called a tie: "
        f"{found['gaps_called_a_tie']}; the largest gap called a tie is "
        f"{found['largest_gap_called_a_tie']:.1%}"
    )


def draw(rows: Sequence[Row]) -> Figure:
    """A line per cell, both sets on it."""
    pairs = cells(rows)
    figure, (axis,) = panels(1, width=9.0, height=1.6 + 0.34 * len(pairs))
    names, top = [], 1.05 * max(float(row["ratio_high"]) for row in rows)
    axis.axvspan(1, 1 + GAP, color="#eeeeee", lw=0, zorder=0)
    for i, pair in enumerate(pairs):
        for row, marker, shift in zip(pair, ("o", "s"), (-0.16, 0.16)):
            colour = look(str(row["best"]))["color"]
            axis.plot([row["ratio_low"], row["ratio_high"]], [i + shift] * 2, color=colour, lw=1.6)
            face = colour if row["decided"] else "white"
            axis.plot(row["ratio"], i + shift, marker, color=colour, mfc=face, ms=6)
        text = " / ".join(dict.fromkeys(f"{row['best']} before {row['second']}" for row in pair))
        where = dict(xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK)
        note(axis, text, (1.01, i), (0, 0), **where)
        names.append(f"{pair[0]['model']}, {int(pair[0]['nfe'])} calls")
        if i and pair[0]["model"] != pairs[i - 1][0]["model"]:
            axis.axhline(i - 0.5, color=GREY, lw=0.6)
    axis.axvline(1, color=INK, lw=1)
    log_axis(axis, "x", [x for x in (1, 1.1, 1.2, 1.5, 2, 3, 5, 10) if x <= top])
    axis.set_xlim(min(0.95, min(float(row["ratio_low"]) for row in rows) / 1.02), top)
    axis.set_yticks(range(len(pairs)), names)
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    title = "Error of the second-best method over the best, two disjoint sets of noises (● and ■)"
    below = f"ratio, with its interval; full: decided, hollow: tied; grey: gaps up to {GAP:.0%}"
    label(axis, title, below)
    return figure


def main() -> None:
    sizes = ("two mixtures, 64 noises", "four mixtures and the shipped model")
    parser = arguments(__doc__, *sizes, redraw=True, cache="out/ranking")
    text = f"noises per set for the shipped model ({FULL.shipped})"
    parser.add_argument("--shipped", type=int, help=text)
    args = parser.parse_args()
    run = Run("ranking", args, ["scipy", "matplotlib", "scikit-learn"])
    if args.redraw:
        report(summary(rows := run.rows()))
        run.draw(draw(rows))
        return
    size = FULL if args.full else QUICK
    if args.shipped is not None:
        size = size._replace(shipped=args.shipped)
    found: list[Row] = []
    with torch.no_grad():
        for name, result in compared(size, args.cache):
            for row in judged(name, result):
                found.append(row)
                tell({key: row[key] for key in SHOWN})
    report(summary(found))
    run.save(found, draw(found), **size._asdict(), **summary(found))


if __name__ == "__main__":
    main()
