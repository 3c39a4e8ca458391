"""Quality against network calls on the trained model that ships: which solver, how many steps?

    python benchmarks/steps_vs_quality.py --quick
    python benchmarks/steps_vs_quality.py --full --data DIR      # DIR: Fashion-MNIST's IDX files
    python benchmarks/steps_vs_quality.py --full --data DIR --redraw

Left: does the solver solve the ODE? ``ddim_ode.compare`` on noises that no calibrated plan was fitted to.
Right: are the images good? Metrics in the shipped classifier's features against the real test images, or
without --data against converged samples of other noises, framed by as many real images and by a solve with
many calls. A finite n shifts the Fréchet distance alike in all rows, so only rows of one run compare; a
method's band is ±1.96 standard errors of its *difference* to the converged row. Guidance is off.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import SEED, Row, Run, arguments, end_states, labels, pick
from drawing import GREY, cap, curve, label, legend_below, log_scales, note, panels
from matplotlib.figure import Figure
from torch import Tensor
from unseen import UNSEEN

import ddim_ode
from ddim_ode.evaluate import metrics
from ddim_ode.nets.data import load_images, to_unit
from ddim_ode.nets.pretrained import PretrainedModel
from ddim_ode.solvers.methods import CALIBRATED

METHODS = ("ddim", "heun", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3", "ipndm", "deis3")
# ipndm at 60 calls is within 0.004 RMS of the converged solutions, a third of the best of METHODS at 20.
CONVERGED = ("ipndm", 60)
BATCH = 25
RESAMPLES = 100


class Size(NamedTuple):
    """nfe: budgets. solved: noises on the left. made: images on the right. goal: of compare's reference."""

    nfe: tuple[int, ...]
    solved: int
    made: int
    goal: float | None


FULL = Size((5, 8, 12, 20), 64, 400, None)
QUICK = Size((5, 10), 3, 8, 0.01)  # too few to believe: it shows that everything runs


def errors(
    model: PretrainedModel, fitted: Mapping[int, ddim_ode.Plan], size: Size, cache: Path
) -> tuple[list[Row], str]:
    """Left: a row per method and budget; and how the reference was made."""
    found = ddim_ode.compare(
        model,
        {**{name: name for name in METHODS}, CALIBRATED: fitted},
        nfe=size.nfe,
        n=size.solved,
        seed=UNSEEN,
        cond=lambda indices: labels(model, indices.tolist()),
        batch=min(BATCH, size.solved),
        reference=size.goal,
        cache=cache,
    )
    keys = ("method", "budget", "nfe", "grid", "error", "error_low", "error_high", "n", "note")
    rows = [dict(what="error", **{key: row[key] for key in keys}) for row in found.rows]
    print(found.table())
    assert found.reference is not None
    return rows, f"{found.reference.solver}, own error {found.reference_error:.1e}"


def qualities(
    model: PretrainedModel,
    fitted: Mapping[int, ddim_ode.Plan],
    size: Size,
    cache: Path,
    data: Path | None,
) -> list[Row]:
    """Right: a row per method and budget, and the rows that frame them."""
    features = metrics.classifier_features()
    seeds = range(UNSEEN, UNSEEN + size.made)

    def made(plan: ddim_ode.Plan, seeds: range = seeds) -> Tensor:
        return end_states(model, plan, seeds, cache, BATCH)

    method, nfe = CONVERGED
    whole = ddim_ode.plan_for(model, method, nfe=nfe)
    if data is not None:
        against = "Fashion-MNIST test images"
        target = to_unit(load_images(data, "test").pixels)
    else:
        against = "converged samples from other noises"
        target = made(whole, range(seeds.stop, seeds.stop + size.made))
    reference = metrics.FeatureStatistics.of(target, features, keep=2000, seed=SEED)

    converged = made(whole)
    base = resampled_frechet(features(converged), reference)

    def row(what: str, images: Tensor, **about: Any) -> Row:
        found = metrics.measure(images, reference, features, seed=SEED)
        spread = resampled_frechet(features(images), reference)
        if what == "quality":
            spread = spread - base
        error = 1.96 * float(np.std(spread, ddof=1))
        middle = float(found["frechet_distance"])
        band = dict(frechet_low=max(middle - error, 0.0), frechet_high=middle + error)
        print(
            f"{what:10} {' '.join(map(str, about.values())):14} Fréchet {middle:6.2f} ± {error:.2f}"
        )
        return dict(what=what, against=against, **about, **found, **band)

    rows = []
    if data is not None:
        real = to_unit(load_images(data, "train").pixels[: size.made])
        rows.append(row("real", real))
    rows.append(row("converged", converged, method=method, nfe=nfe))
    plans = [(name, b, ddim_ode.plan_for(model, name, nfe=b)) for name in METHODS for b in size.nfe]
    plans += [(CALIBRATED, budget, plan) for budget, plan in fitted.items()]
    for method, budget, plan in plans:
        rows.append(row("quality", made(plan), method=method, budget=budget, nfe=plan.nfe))
    return rows


def resampled_frechet(rows: np.ndarray, reference: metrics.FeatureStatistics) -> np.ndarray:
    """(RESAMPLES,), the same images drawn whatever the rows. Resampling repeats images, which shifts the
    distance: the spread is what is taken from it, not the place."""
    draw = np.random.default_rng(SEED)
    found = []
    for _ in range(RESAMPLES):
        some = rows[draw.integers(len(rows), size=len(rows))].astype(np.float64)
        moments = metrics.moments(some)
        found.append(metrics.frechet_from_moments(*moments, reference.mean, reference.cov))
    return np.array(found)


def draw(rows: list[Row]) -> Figure:
    figure, (left, right) = panels(2, height=5.0)
    quality, solved = pick(rows, what="quality"), pick(rows, what="error")
    budgets = sorted({int(row["budget"]) for row in solved})
    for axis, some, y, low, high in (
        (left, solved, "error", "error_low", "error_high"),
        (right, quality, "frechet_distance", "frechet_low", "frechet_high"),
    ):
        log_scales(axis, budgets)
        shown = [row for row in some if row.get(y) is not None]
        for method in (*METHODS, CALIBRATED):
            if mine := pick(shown, method=method):
                band = tuple([row[key] for row in mine] for key in (low, high))
                curve(axis, method, [r["nfe"] for r in mine], [r[y] for r in mine], band)
        # a method that is lost at few calls is off the picture rather than all others in a corner of it
        first = [row[y] for row in pick(shown, budget=budgets[0])]
        top = min(1.3 * max(row[y] for row in shown), 3 * float(np.median(first)))
        axis.set_ylim(bottom=min(row[y] for row in shown) / 1.4)
        cap(axis, [(row["method"], row["nfe"], row[y]) for row in shown], top)
    calls, n = "network calls per image", int(solved[0]["n"])
    error = f"RMS error per pixel (range −1 to 1)\nto the converged end of {n} noises"
    n, against = int(quality[0]["n"]), quality[0]["against"]
    label(left, "Does it solve the ODE?", calls, error)
    distance = f"Fréchet distance of {n} images\nto {against}"
    label(right, "Are the images good?", calls, distance)
    frames = (("converged", "this model, converged", (4, 2)), ("real", "real images", (1, 1.5)))
    for what, text, dashes in frames:
        for row in pick(rows, what=what):
            y = row["frechet_distance"]
            right.axhline(y, color=GREY, lw=1.2, ls=(0, dashes))
            note(right, text, (0.0, y), (4, -3), xycoords=("axes fraction", "data"), va="top")
    legend_below(figure, (left, right), 5)
    return figure


def main() -> None:
    sizes = ("3 noises, 8 images", "64 noises, 400 images")
    cache = "out/steps_vs_quality"
    args = arguments(__doc__, *sizes, redraw=True, data=True, cache=cache).parse_args()
    run = Run("steps_vs_quality", args, ["scipy", "matplotlib"])
    if args.redraw:
        run.draw(draw(run.rows()))
        return
    size = FULL if args.full else QUICK
    model = ddim_ode.load("fashion-mnist")
    with torch.no_grad():
        fitted = model.calibrated_within(size.nfe)
        solved, reference = errors(model, fitted, size, args.cache)
        rows = [*solved, *qualities(model, fitted, size, args.cache, args.data)]
    settings = dict(size._asdict(), reference=reference, converged=CONVERGED)
    run.save(rows, draw(rows), **settings)


if __name__ == "__main__":
    main()
