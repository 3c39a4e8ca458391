"""What the numbers of a comparison are, in words: its metric's for tables, plots and reports."""

from __future__ import annotations

from typing import NamedTuple

from .rows import Ranking


class Words(NamedTuple):
    """axis: of plots; floor: what lies below it; summary: against what, for one line; table: above one;
    notes: below one; reading: for a report, what an error is, what is best, a tie and the floor."""

    axis: str
    floor: str
    summary: str
    table: str
    notes: list[str]
    reading: list[str]


def words(result: Ranking) -> Words:
    """Of this comparison."""
    n, level, made = len(result.seeds), f"{result.confidence:.0%}", result.reference
    off = float("nan") if made is None else made.error
    if (held := result.distribution) is not None:
        halves = f"{held.halves:.2g} ({held.low:.2g} to {held.high:.2g})"
        solved = "" if made is None else f" ({made.solver}, off by {off:.1e})"
        return Words(
            f"{held.name} to the model's own samples",
            "floor: what two halves of the model's own samples show",
            f"each from the same {n} noises, against {held.n:,} samples of the model itself{solved}; its "
            f"own two halves are {halves} apart.",
            f"{held.name[0].upper()}{held.name[1:]} to the model's own samples",
            [
                f"error: the {held.name} between {n} samples and {held.n:,} of the model itself, converged "
                f"solutions of other noises{solved}; unbiased, so it may come out below 0; with its "
                f"{level} interval from blocks left out.",
                "×: its ratio to the best; =: not to be told apart from it, on the same blocks.",
                f"floor: the two halves of the model's own samples are {halves} apart, and what is below "
                f"{held.floor:.2g} is not told from the model itself: those rows share rank 1.",
            ],
            [
                f"The error of a solver is the {held.name} between its {n} samples and {held.n:,} samples "
                "of the model itself, which are where the ODE takes other noises. It says what solver and "
                "step noise do to the distribution, and nothing of single pictures or of real data.",
                "Best: the smallest distance. The estimate is unbiased, so near 0 it may be negative.",
                "Tied: the difference of two distances, block by block, may be 0.",
                f"Distances below {held.floor:.2g}, what halves of the model's own samples show of each "
                "other, are at the floor: not told from the model itself; they share rank 1.",
            ],
        )
    floor = f"{result.floor:.1e}"
    notes = [
        f"error: RMS per entry to the converged solution, the mean over {n} noises, with its {level} "
        "bootstrap interval.",
        "typical: the geometric mean, by which rows are ranked; × best: its ratio, noise by noise.",
        "=: not to be told apart from the best of its block (paired bootstrap over the same noises).",
    ]
    if made is not None:
        notes.append(
            f"reference: {made.solver}, float64; refining moved it by {off:.1e}; {made.nfe:.0f} calls a "
            "sample."
            + (
                f" Typical errors below {floor}, 100 × that, are at the floor: not to be told apart, they "
                "share rank 1."
                if result.floor
                else ""
            )
        )
    if result.searched:
        notes.append(
            f"best grids were chosen on {result.searched} other noises than the {n} reported here."
        )
    return Words(
        "RMS error to the converged solution",
        "floor: 100 × the reference's own error",
        f"each from the same {n} noises, against a converged solution that is itself off by {off:.1e}.",
        "RMS error to the converged solution",
        notes,
        [
            "Each noise has one point where the ODE takes it. The error of a solver is how far from there "
            f"it ends: the root mean square over the entries, then the mean over {n} noises. No data set "
            "and no judge enters.",
            "Best: the smallest typical error, the geometric mean over the noises, in which each noise "
            "counts alike. The mean can be the work of the few noises that a solver loses altogether.",
            "Tied: the paired bootstrap over the same noises cannot tell the two errors apart. Overlapping "
            "intervals alone do not make a tie, nor the other way round.",
            f"Typical errors below {floor}, 100 × the reference's own error, are at the floor: better than "
            "those above it, not to be told apart, and so of one rank.",
        ],
    )
