"""Plans fitted to real images, beside those fitted to the model's own solution and the textbook's best.

    python benchmarks/quality.py --quick --data DIR      # DIR: Fashion-MNIST's IDX files
    python benchmarks/quality.py --full --data DIR
    python benchmarks/quality.py --full --data DIR --nfe 6 --guidance 1 --images 1000
    python benchmarks/quality.py --full --data DIR --nfe 3 --add      # beside the record's other cells
    python benchmarks/quality.py --full --data DIR --redraw

Images of the same noises by six makers: the textbook sampler with the least Fréchet distance, the one with
the least error, the plan of the solution, the plan of the data (fitted to training images), the model's own
solution (converged), and as many training images as the floor. They are held against the test images in the
features that the data plan was fitted in, the shipped classifier's, in those of a classifier trained from
another seed, which no fit has seen, and pixel by pixel. The textbook is searched: the deterministic methods
of one call a step on three grids with two last levels, on few images, and the best of those on all.

Intervals are 95 %: of a Fréchet distance, and of the ratio to the better of the textbook's and the model's
own, over images drawn anew, the same for all makers; of the others over three disjoint sets of images, by
Student's t. A finished cell is kept under --cache, so an interrupted run goes on where it was. The other
classifier is not the same on every machine: its distances compare within a cell.
"""

from __future__ import annotations

import argparse
import itertools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import SEED, Row, Run, arguments, end_states, labels, pick, rms, tell
from drawing import GREY, INK, curve, label, legend_below, log_scales, panels
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm
from unseen import UNSEEN

import ddim_ode
from ddim_ode._base import files
from ddim_ode.calibration.objectives import over_sets, squared_energy
from ddim_ode.evaluate import metrics
from ddim_ode.nets.classifier import train_classifier
from ddim_ode.nets.data import Images, load_images, to_unit
from ddim_ode.nets.pretrained import PretrainedModel
from ddim_ode.plots.pictures import save_figure, solver_grid

METHODS = ("ddim", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3", "ipndm", "deis2", "deis3")
GRIDS = ("quadratic", "time", "log_snr")
CUTS = (1, 2)
CONVERGED = ("unipc2", 32, "log_snr")
BATCH = 100
RESAMPLES = 100
SPACES = ("shipped", "another")
TEXTBOOK, BY_ERROR, SOLUTION, DATA, OWN, REAL = (
    *("best by Fréchet", "best by error", "solution plan", "data plan"),
    *("own solution", "real images"),
)


LOOKS: dict[str, dict[str, Any]] = {
    TEXTBOOK: dict(color=INK, marker="s"),
    BY_ERROR: dict(color=GREY, marker="D", ls=(0, (2, 2))),
    SOLUTION: dict(color="#4477aa", marker="o"),
    DATA: dict(color="#cc3311", marker="^", lw=2.2),
    OWN: dict(color=GREY, marker="", ls=(0, (4, 2))),
    REAL: dict(color=GREY, marker="", ls=(0, (1, 1.5))),
}


class Size(NamedTuple):
    """nfe, guidance, images: of the cells. screen: images of the search, at most, and how many samplers go
    on. fit: noises and real images of the data plan. epochs, train: of the other classifier."""

    nfe: tuple[int, ...]
    guidance: tuple[float, ...]
    images: int
    screen: tuple[int, int]
    fit: tuple[int, int]
    epochs: int
    train: int


FULL = Size((3, 4, 5, 6, 8, 10), (1.0, 2.0), 5000, (200, 3), (768, 12_288), 8, 60_000)
QUICK = Size((4,), (1.0,), 12, (6, 1), (48, 400), 1, 512)  # it shows that everything runs


class Judge(NamedTuple):
    """Real test images, and their features by space."""

    test: Tensor
    spaces: Mapping[str, tuple[metrics.Features, metrics.FeatureStatistics]]

    def rows(self, space: str, images: Tensor) -> np.ndarray:
        return self.spaces[space][0](images).astype(np.float64)

    def frechet(self, space: str, rows: np.ndarray) -> float:
        real = self.spaces[space][1]
        return metrics.frechet_from_moments(*metrics.moments(rows), real.mean, real.cov)

    def drawn(self, space: str, rows: np.ndarray) -> np.ndarray:
        """ln of the distance (RESAMPLES,) of images drawn anew, the same whatever the rows."""
        draw = np.random.default_rng(SEED)
        some = (rows[draw.integers(len(rows), size=len(rows))] for _ in range(RESAMPLES))
        return np.log([self.frechet(space, part) for part in some])

    def row(self, images: Tensor) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """A maker's measures, and ln of its Fréchet distances on images drawn anew, by space."""
        out: dict[str, Any] = {}
        drawn = {}
        for space in SPACES:
            rows = self.rows(space, images)
            middle, drawn[space] = self.frechet(space, rows), self.drawn(space, rows)
            half = 1.96 * float(np.std(drawn[space], ddof=1))
            out[f"frechet_{space}"] = middle
            out[f"frechet_{space}_low"] = middle * np.exp(-half)
            out[f"frechet_{space}_high"] = middle * np.exp(half)
            real = self.spaces[space][1].rows
            out |= of_sets(f"kid_{space}", rows, real, unbiased_kid)
        pixels = (images.clamp(-1, 1).flatten(1).double().numpy(), self.test.flatten(1).numpy())
        return out | of_sets("pixel_energy", *pixels, squared_energy), drawn


def of_sets(
    name: str, x: np.ndarray, y: np.ndarray, distance: Callable[[np.ndarray, np.ndarray], float]
) -> dict[str, float]:
    """A distance over three disjoint sets of images and of real ones, of as many."""
    parts = [part[: len(x)] for part in np.array_split(y, 3)]
    sets = [distance(a, b.astype(np.float64)) for a, b in zip(np.array_split(x, 3), parts)]
    found = over_sets(sets)
    return {name: found["change"], f"{name}_low": found["low"], f"{name}_high": found["high"]}


def unbiased_kid(x: np.ndarray, y: np.ndarray) -> float:
    size = min(len(x), len(y), 1000)
    few = dict(subsets=20 if size < min(len(x), len(y)) else 1, subset_size=size)
    return metrics.kernel_distance(x, y, seed=SEED, **few).mean


def judge(args: argparse.Namespace, size: Size, train: Images) -> Judge:
    """The test images in the shipped classifier's features, and in those of one trained here."""
    path = args.cache / f"classifier-{size.epochs}-{size.train}.safetensors"
    if not path.exists():
        assert train.labels is not None
        some = Images(train.pixels[: size.train], train.labels[: size.train], train.classes)
        args.cache.mkdir(parents=True, exist_ok=True)
        train_classifier(some, path, epochs=size.epochs, seed=1)
    test = to_unit(load_images(args.data, "test").pixels)
    features = metrics.classifier_features(), metrics.classifier_features(path)
    stats = (metrics.FeatureStatistics.of(test, f, keep=len(test), seed=SEED) for f in features)
    return Judge(test, dict(zip(SPACES, zip(features, stats))))


# -- the makers ---------------------------------------------------------------------------------
def textbook(
    model: PretrainedModel, nfe: int, size: Size, by: Judge, solution: Tensor, cache: Path
) -> dict[str, tuple[str, ddim_ode.Plan]]:
    """The best sampler by Fréchet distance and the best by error to the model's own solution, by maker."""
    few, keep = min(size.screen[0], len(solution)), size.screen[1]
    seeds = range(UNSEEN, UNSEEN + len(solution))
    candidates = {}
    for method, grid, cut in itertools.product(METHODS, GRIDS, CUTS):
        low = cut * model.schedule.sigma_min
        try:
            plan = ddim_ode.plan_for(model, method, nfe=nfe, grid=grid, sigma_min=low)
        except ValueError:
            continue
        candidates[f"{method}, {grid}, {cut} σ(1)"] = plan

    def scores(names: Sequence[str], n: int) -> dict[str, tuple[float, float]]:
        out = {}
        for name in names:
            x = end_states(model, candidates[name], seeds[:n], cache, min(BATCH, n))
            if x.isfinite().all():
                distance = by.frechet("shipped", by.rows("shipped", x))
                out[name] = distance, rms(x - solution[:n])
        return out

    first = scores(list(candidates), few)
    ranked = [sorted(first, key=lambda name: first[name][k])[:keep] for k in (0, 1)]
    last = scores(list(dict.fromkeys(itertools.chain(*ranked))), len(seeds))
    best = [min(last, key=lambda name: last[name][k]) for k in (0, 1)]
    return {maker: (name, candidates[name]) for maker, name in zip((TEXTBOOK, BY_ERROR), best)}


def fitted(
    model: PretrainedModel, guidance: float, nfe: int, size: Size, real: Tensor, cache: Path
) -> dict[str, tuple[str, ddim_ode.Plan]]:
    """The plan of the solution and that of the data, the shipped ones where there are any, by maker."""
    n, count = size.fit
    given: dict[str, Any] = dict(
        shape=model.shape,
        seed=SEED,  # far below those of the images
        cond=lambda indices: labels(model, indices.tolist()),
    )

    def kept(name: str, make: Callable[[], ddim_ode.Plan]) -> ddim_ode.Plan:
        path = cache / f"{name}-{model.sha256[:12]}-{guidance:g}-{nfe}.json"
        if not path.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a warning says is in the plan's fit
                make().save(path)
        return ddim_ode.Plan.load(path)

    def of_solution() -> ddim_ode.Plan:
        try:
            return model.calibrated(nfe)
        except ValueError:
            few = min(128, n // 3)
            plan: ddim_ode.Plan = ddim_ode.calibrate(model, nfe, n=few, **given)
            return plan

    def of_data() -> ddim_ode.Plan:
        try:
            return model.calibrated(nfe, "data")
        except ValueError:
            plan: ddim_ode.Plan = ddim_ode.calibrate(
                model, nfe, objective="data", data=real[:count], start=solution, n=n, **given
            )
            return plan

    solution = kept(f"solution-{n}", of_solution)
    data = kept(f"data-{n}-{count}", of_data)
    matched = "kept" if data.fit and data.fit["data"]["matched"] else "the solution plan"
    return {SOLUTION: (solution.method, solution), DATA: (matched, data)}


class Cell(NamedTuple):
    """One number of calls at one guidance: its makers' images, and the names of their plans."""

    images: dict[str, Tensor]
    names: dict[str, str]


def made(guidance: float, nfe: int, size: Size, by: Judge, real: Tensor, cache: Path) -> Cell:
    """All images of a cell; those that are in the cache are not made again."""
    model = ddim_ode.load("fashion-mnist", guidance=guidance)
    seeds, few = range(UNSEEN, UNSEEN + size.images), min(BATCH, size.images)
    method, steps, grid = CONVERGED
    own = end_states(model, method, seeds, cache, few, steps=steps, grid=grid)
    makers = textbook(model, nfe, size, by, own, cache)
    makers |= fitted(model, guidance, nfe, size, real, cache)
    images = {maker: end_states(model, p, seeds, cache, few) for maker, (_, p) in makers.items()}
    images |= {OWN: own, REAL: real[-size.images :]}
    return Cell(images, {maker: name for maker, (name, _) in makers.items()})


def rows_of(guidance: float, nfe: int, cell: Cell, by: Judge) -> list[Row]:
    """A row for each maker."""
    rows, drawn = dict[str, dict[str, Any]](), {}
    for maker, x in cell.images.items():
        about = dict(guidance=guidance, nfe=nfe, maker=maker, plan=cell.names.get(maker, ""))
        if maker != REAL:
            about |= dict(error=rms(x - cell.images[OWN]))
        measures, drawn[maker] = by.row(x)
        rows[maker] = about | dict(n=len(x)) | measures
    for space, maker in itertools.product(SPACES, (DATA, SOLUTION)):
        name = f"frechet_{space}"
        better = min(TEXTBOOK, OWN, key=lambda one: float(rows[one][name]))
        ratio = rows[maker][name] / rows[better][name]
        half = 1.96 * float(np.std(drawn[maker][space] - drawn[better][space], ddof=1))
        ends = {"": 1.0, "_low": np.exp(-half), "_high": np.exp(half)}
        rows[maker] |= {f"ratio_{space}{end}": ratio * factor for end, factor in ends.items()}
    return list(rows.values())


# -- the picture --------------------------------------------------------------------------------
def draw(rows: Sequence[Row]) -> Figure:
    scales = sorted({row["guidance"] for row in rows})
    figure, axes = panels(2, width=10.4, height=0.6 + 4.2 * len(scales), rows=len(scales))
    for axis, (guidance, space) in zip(axes, itertools.product(scales, SPACES)):
        some = pick(rows, guidance=guidance)
        log_scales(axis, sorted({row["nfe"] for row in some}))
        for maker, style in LOOKS.items():
            mine = sorted(pick(some, maker=maker), key=lambda row: row["nfe"])
            key = f"frechet_{space}"
            band = tuple([row[f"{key}_{end}"] for row in mine] for end in ("low", "high"))
            curve(axis, maker, [r["nfe"] for r in mine], [r[key] for r in mine], band, **style)
        which = "the features of the fit" if space == "shipped" else "a classifier no fit has seen"
        title = f"guidance {guidance:g}: {which}"
        label(axis, title, "network calls per image", "Fréchet distance to the test images")
    legend_below(figure, axes, 3)
    return figure


def record(run: Run, size: Size) -> tuple[list[Row], dict[str, Any]]:
    """The rows of the record but those of the cells to come, and what it says of itself; ValueError for one
    of other images or fits."""
    about = json.loads(run.path(".json").read_text(encoding="utf-8"))
    own = json.loads(json.dumps(size._asdict()))
    del own["nfe"], own["guidance"]
    if differs := [name for name, value in own.items() if value != about["settings"][name]]:
        raise ValueError(f"the record's cells were made with other {', '.join(differs)}")
    new = [*itertools.product(size.guidance, size.nfe)]
    return [row for row in run.rows() if (row["guidance"], row["nfe"]) not in new], about


def main() -> None:
    cache = "out/quality"
    parser = arguments(__doc__, "12 images", "5,000 images", redraw=True, data=True, cache=cache)
    parser.add_argument("--nfe", type=int, nargs="+", help="only these numbers of calls")
    parser.add_argument("--guidance", type=float, nargs="+", help="only these scales")
    parser.add_argument("--add", action="store_true", help="keep the record's other cells")
    parser.add_argument("--images", type=int, help="other than 5,000")
    parser.add_argument("--fit", type=int, help="noises of the data plan, other than 768")
    args = parser.parse_args()
    run = Run("quality", args, ("scipy", "matplotlib"))
    if args.redraw:
        run.draw(draw(run.rows()))
        return
    if args.data is None:
        parser.error("distances to real images need --data")
    size = FULL if args.full else QUICK
    size = size._replace(nfe=tuple(args.nfe or size.nfe), images=args.images or size.images)
    size = size._replace(guidance=tuple(args.guidance or size.guidance))
    size = size._replace(fit=(args.fit or size.fit[0], size.fit[1]))
    kept, earlier = record(run, size) if args.add else ([], None)
    torch.set_grad_enabled(False)
    train = load_images(args.data, "train")
    with torch.enable_grad():
        by = judge(args, size, train)
    real, rows = to_unit(train.pixels), list[Row]()
    for guidance, nfe in tqdm(list(itertools.product(size.guidance, size.nfe)), unit="cell"):
        model = ddim_ode.load("fashion-mnist", guidance=guidance).sha256[:12]
        about = (
            model,
            guidance,
            nfe,
            size.images,
            *size.screen,
            *size.fit,
            size.epochs,
            size.train,
        )
        done = args.cache / f"cell-{'-'.join(map(str, about))}.json"
        if not done.exists():
            cell = made(guidance, nfe, size, by, real, args.cache)
            files.write(done, json.dumps(rows_of(guidance, nfe, cell, by)))
        rows += json.loads(done.read_text(encoding="utf-8"))
        for row in rows[-6:]:
            tell(row)
    rows = sorted([*kept, *rows], key=lambda row: (row["guidance"], row["nfe"]))
    run.save(rows, draw(rows), **size._asdict(), converged=CONVERGED, added_to=earlier)
    if args.add:  # the pictures stay those of the first run
        return
    shown = min(size.nfe, key=lambda nfe: abs(nfe - 6))
    images = made(size.guidance[0], shown, size, by, real, args.cache).images
    lines = [(maker, look["color"], [images[maker][:10]]) for maker, look in LOOKS.items()]
    figure = solver_grid(lines, [f"{shown} calls, guidance {size.guidance[0]:g}"])
    save_figure(run.out / "quality_pictures.png", figure)


if __name__ == "__main__":
    main()
