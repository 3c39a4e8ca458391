"""A comparison as one HTML file that opens from disk: the answer first, then what it rests on.

Pictures are inlined; there is no script, and nothing is fetched.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy

from .._base import files
from .._base.escaping import markup, plain
from .._base.table import Cell, Table
from ..plots import comparisons as plots
from ..plots.pictures import drawn as as_file
from . import tables
from .result import Comparison
from .rows import Row, budgets_of, by_mean
from .samples import Samples
from .tables import number
from .words import words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .distances import Measured

_TEMPLATE = Path(__file__).parent.parent / "assets" / "report.html"
_DPI = 200  # sharp on screens with two dots a pixel, and in print
_SERIES = (5.0, 2.0, 1.0)  # the round numbers of a decade
_MOST_TARGETS = 4
_PER_INCH = 110  # CSS pixels
_STOPPED = (
    '<p class="stopped" role="note"><b>Incomplete:</b> what is best here is so among the rows that are '
    "finished. {}</p>"
)
_VERSIONS = ("ddim_ode", "python", "torch", "numpy")
_MIN_WIDTH = 560  # below it a picture scrolls in its frame rather than shrink


@dataclass(frozen=True)
class Context:
    """What a report says and the comparison itself does not know.

    setup: lines of the table of what was run. command: that makes it again. targets: errors to name the
    cheapest solver for; without any, round ones. stopped: why rows are missing, of an interrupted run.
    """

    title: str
    setup: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    targets: Sequence[float] = ()
    stopped: str = ""
    samples: Samples | None = None
    measured: Measured | None = None


@dataclass(frozen=True)
class Picture:
    """A PNG, drawn once for the page and the folder; width in CSS pixels, alt and caption as text."""

    png: bytes
    width: int
    alt: str
    caption: str


def write(folder: str | Path, result: Comparison, context: Context) -> list[Path]:
    """Write report.html and its pictures, and say where; ValueError if no row has an error."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = pictures(result, context)
    files.write(folder / "report.html", page(result, context, drawn))
    for name, picture in drawn.items():
        files.write(folder / f"{name}.png", picture.png)
    return [folder / "report.html", *(folder / f"{name}.png" for name in drawn)]


def pictures(result: Comparison, context: Context) -> dict[str, Picture]:
    """Those of the report: ``compare``, each metric by its name, and ``samples``."""
    caption = (
        f"{words(result).axis} against network calls, on log axes; bands are {result.confidence:.0%} "
        "intervals. "
        "A line that leaves at the top is far off."
    )
    best = "; ".join(f"{term}: {said}" for term, said in best_lines(result))
    alt = f"Line plot of error against network calls, one line per solver. Best at {best}."
    out = {"compare": _drawn(result.plot(), alt, caption)}
    measured, samples = context.measured, context.samples
    for name in measured.names if measured else ():
        if measured and any(row.get(name) is not None for row in result.rows):
            label = measured.label(name)
            axis = label.partition(" of ")[0]
            figure = plots.metric_plot(result.rows, name, axis, measured.converged.get(name))
            out[name] = _drawn(figure, f"Line plot of the {label} against network calls.", label)
    if samples and samples.figure is not None:
        out["samples"] = _drawn(samples.figure, samples.alt, samples.caption)
    return out


def page(result: Comparison, context: Context, drawn: Mapping[str, Picture] | None = None) -> str:
    """The whole report as text. drawn: its pictures, where they are there already."""
    drawn = pictures(result, context) if drawn is None else drawn
    facts = {**context.setup, **_facts(result)}
    caption = f"{words(result).table} at each budget, with its {result.confidence:.0%} interval"
    if not result.distribution:
        caption += "; best and tied by the typical error, noise by noise"
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=markup(context.title),
        summary=markup(summary(result)),
        stopped=_if(context.stopped, _STOPPED),
        best=_definitions(best_lines(result)),
        targets=_definitions(target_lines(result, context.targets)),
        plot=_figure(drawn["compare"]),
        overview=tables.overview_html(result, caption=caption),
        metrics=_metrics(result, context.measured, drawn),
        samples=_samples(context.samples, drawn.get("samples")),
        rows=tables.html(result),
        reading="".join(f"<li>{markup(line)}</li>" for line in _reading(result)),
        setup=Table((), [(Cell(k, bold=True), v) for k, v in facts.items()], left=(0, 1)).html(),
        command=_if(context.command, "<p>Made by</p><pre><code>{}</code></pre>"),
    )


def text(result: Comparison, context: Context) -> str:
    """The short of it, for a terminal."""

    def listed(pairs: Sequence[tuple[str, str]]) -> list[str]:
        return [f"  {line}" for line in Table((), pairs, left=(1,)).text().split("\n")]

    out = [f"{plain(context.title)}: {summary(result)}", ""]
    if context.stopped:
        out += ["Incomplete: what is best here is so among the rows that are finished.", ""]
    out += ["Best at each budget", *listed(best_lines(result))]
    if targets := target_lines(result, context.targets):
        out += ["", "Cheapest whose whole interval meets an error", *listed(targets)]
    out += ["", words(result).table, tables.overview_text(result)]
    if measured := context.measured:
        for name in measured.names:
            own = converged_cells(result, measured.converged.get(name))
            out += ["", measured.label(name), tables.overview_text(result, name, own)]
    noted = dict.fromkeys(
        f"  {plain(row.method)} at {row.budget}: {plain(row.note)}"
        for row in result.rows
        if row.note
    )
    return "\n".join([*out, *(["", *noted] if noted else [])])


def summary(result: Comparison) -> str:
    """What was run, in one line."""
    methods = {row.method for row in result.rows}
    budgets = budgets_of(result.rows)
    plural = "s" if len(methods) != 1 else ""
    return f"{len(methods)} solver{plural} at {_listed(budgets)} network calls, {words(result).summary}"


def best_lines(result: Comparison) -> list[tuple[str, str]]:
    """For each budget: the best solver and what ties with it, or why none can be named."""
    lines = []
    for budget in budgets_of(result.rows):
        rows, answer = result.ranking(budget), result.best(budget)
        floored = [row for row in rows if row.at_floor]
        if answer:
            tied = [_name(row) for row in rows if row.tie and row.row != answer["row"]]
            also = f"; tied with it: {', '.join(dict.fromkeys(tied))}" if tied else ""
            ranked = [row for row in rows if row.rank]
            best = ranked[0]
            said = f"{_name(best)}, error {_error(best)}{also}{by_mean(ranked)}"
            said += f"; {best.note}" if best.failed else ""
        elif floored:
            said = (
                f"at the floor, not to be told apart: {', '.join(map(_name, floored))} "
                f"(below {result.floor:.1e})"
            )
        else:
            said = "no solver has an error; the table's notes say why"
        lines.append((f"{budget} calls", said))
    return lines


def target_lines(result: Comparison, targets: Sequence[float] = ()) -> list[tuple[str, str]]:
    """For each error: the cheapest solver whose interval lies below it, and others at that cost."""
    lines = []
    for target in targets or _round_targets(result):
        if answer := result.recommend(target):
            also = [
                _name(row)
                for row in result.rows
                if row.nfe == answer["nfe"]
                and row.row != answer["row"]
                and not row.failed
                and (row.error_high or float("inf")) <= target
            ]
            text = f"{_name(result.rows[answer['row']])}, {answer['nfe']:g} calls"
            text += f"; also {', '.join(also)}" if also else ""
        else:
            text = str(answer)
        lines.append((f"error ≤ {target:g}", text))
    return lines


def _round_targets(result: Comparison) -> list[float]:
    """Round errors between what the smallest and the largest budget reach."""
    reached: dict[int, float] = {}
    for row in result.rows:
        if row.error_high is not None:
            bound = max(row.error_high, result.floor)
            reached[row.budget] = min(bound, reached.get(row.budget, bound))
    if not reached:
        return []
    low, high = min(reached.values()), reached[min(reached)]
    exponents = range(int(numpy.ceil(numpy.log10(high))) + 1, -9, -1)
    targets = (s * 10.0**k for k in exponents for s in _SERIES)
    return [float(f"{t:.0e}") for t in targets if low <= t <= 2 * high][:_MOST_TARGETS]


def _name(row: Row) -> str:
    method = plain(row.method)
    if row.group in ("default", "plan"):
        return method
    return f"{method} ({f'best grid: {row.grid}' if row.group == 'best' else row.group})"


def _error(row: Row) -> str:
    if row.error_low is None:
        return number(row.error)
    return f"{number(row.error)} ({number(row.error_low)} to {number(row.error_high)})"


def _definitions(lines: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<dt>{markup(term)}</dt><dd>{markup(said)}</dd>" for term, said in lines)


def _drawn(figure: Figure, alt: str, caption: str) -> Picture:
    width = round(figure.get_figwidth() * _PER_INCH)
    return Picture(as_file(figure, dpi=_DPI), width, alt, caption)


def _figure(picture: Picture) -> str:
    caption = markup(picture.caption)
    data = base64.b64encode(picture.png).decode()
    least = min(picture.width, max(_MIN_WIDTH, picture.width // 2))
    return (
        f'<figure><div class="wide" tabindex="0" role="region" aria-label="{caption}">'
        f'<img src="data:image/png;base64,{data}" alt="{markup(picture.alt)}" '
        f'style="width:{picture.width}px;min-width:{least}px"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _metrics(result: Comparison, measured: Measured | None, drawn: Mapping[str, Picture]) -> str:
    if measured is None:
        return ""
    parts = [
        "<section><h2>What it does to the distribution</h2>"
        "<p>Lower is closer. These have no intervals here, and depend on the number of samples: compare "
        "within a table only.</p>"
    ]
    for name in measured.names:
        label, own = measured.label(name), measured.converged.get(name)
        parts += [_figure(drawn[name])] if name in drawn else []
        table = tables.overview_html(result, name, label, converged_cells(result, own))
        parts += [f'<div class="wide" tabindex="0" role="region" aria-label="table">{table}</div>']
    return "".join([*parts, "</section>"])


def converged_cells(result: Comparison, value: float | None) -> list[str]:
    """The last line of a metric's table: the converged solution, the same at every budget."""
    if value is None:
        return []
    budgets = budgets_of(result.rows)
    return ["converged solution", *[number(value)] * len(budgets)]


def _samples(samples: Samples | None, drawn: Picture | None) -> str:
    if samples is None:
        return ""
    body = f"<p>{markup(samples.caption)}</p>" if drawn is None else _figure(drawn)
    return f"<section><h2>The same noises, solver by solver</h2>{body}</section>"


def _reading(result: Comparison) -> list[str]:
    first, *others = words(result).reading
    lines = [
        first,
        "A call is one run of the network on a sample; with guidance it evaluates the network twice.",
        *others,
        "Order says how fast the error falls when steps are many. At few calls the grid and the first "
        "steps decide, so another model may rank them otherwise.",
    ]
    if result.searched:
        lines.append(
            f"The best grids were chosen on {result.searched} other noises than those reported."
        )
    if any(row.note for row in result.rows):
        lines.append("– : the solver could not run at that budget; the note in its row says why.")
    return lines


def _facts(result: Comparison) -> dict[str, str]:
    made, seeds, made_by = result.reference, result.seeds, result.about
    grids = dict.fromkeys(row.grid for row in result.rows if row.error is not None)
    facts = dict(schedule=result.schedule, seeds=f"{seeds[0]} to {seeds[-1]} (n = {len(seeds)})")
    facts["grids"] = ", ".join(grids)
    if made is not None:
        facts["reference"] = (
            f"{made.solver}, float64 state; refining moved it by {made.error:.1e}, its own error at most; "
            f"{made.nfe:.0f} calls a sample"
        )
    facts["network evaluations"] = (
        f"{result.net_evals:,} for the solvers, {result.reference_net_evals:,} for the reference"
    )
    versions = [f"{name} {made_by[name]}" for name in _VERSIONS if name in made_by]
    facts["versions"] = ", ".join(versions)
    return facts


def _if(text: str, form: str) -> str:
    return form.format(markup(text)) if text else ""


def _listed(values: Sequence[int]) -> str:
    words = [str(value) for value in values]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
