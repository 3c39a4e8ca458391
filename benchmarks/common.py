"""What the benchmarks share: problems, command lines, records of where a figure comes from, and style.

A benchmark writes NAME.csv (what was measured), NAME.png (the picture of it) and NAME.json (the command,
its settings, the machine and all versions). ``--full`` writes them to benchmarks/results, ``--quick`` to
out/benchmarks, which git ignores: a quick run never replaces a figure that is quoted somewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.metadata
import importlib.util
import io
import itertools
import json
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from torch import Tensor
from tqdm import tqdm

import ddim_ode
from ddim_ode._base import files
from ddim_ode._base.files import write_csv
from ddim_ode.nets.pretrained import PretrainedModel
from ddim_ode.plots import comparisons as plots
from ddim_ode.plots.pictures import save_figure
from ddim_ode.solve.cache import Store
from ddim_ode.solve.near import PLAN, Near, of_plan

RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = Path("out/benchmarks")
SEED = 0

Row = Mapping[str, Any]


# -- problems ---------------------------------------------------------------------------------
class Problem(NamedTuple):
    """x: start noises (n, *). cond: one class after another. reference: where the ODE takes x."""

    name: str
    model: ddim_ode.Denoiser
    x: Tensor
    cond: dict[str, Tensor] | None
    reference: Tensor

    def error(self, method: str | ddim_ode.Method, **options: Any) -> float:
        """RMS error per pixel of ``sample(model, x, method, ...)``."""
        sol = ddim_ode.sample(self.model, self.x, method, cond=self.cond, **options)
        return rms(sol.x - self.reference)


def stub(eps: Tensor) -> Callable[[Tensor, Any], Tensor]:
    """A network that costs nothing. It gives two answers in turn: one tensor returned again is refused, as
    a buffer that is overwritten."""
    answers = itertools.cycle((eps, eps.clone()))
    return lambda y, t: next(answers)


def load_problem(name: str, n: int) -> Problem:
    """n noises for ``"digits"`` or a model of that name, guidance off."""
    if name == "digits":
        model: ddim_ode.Denoiser = digits()
        x = ddim_ode.noise((64,), model.schedule, seeds=range(n), dtype=torch.float64)
        cond, fine, coarse = None, 600, 300
    else:
        trained = model = ddim_ode.load(name)
        x = ddim_ode.noise(trained.shape, model.schedule, seeds=range(n))
        cond, fine, coarse = labels(trained, range(n)), 120, 60
    ends = [
        ddim_ode.sample(model, x, "rk4", steps=steps, grid="karras", cond=cond, progress=True).x
        for steps in (fine, coarse)
    ]
    gap = rms(ends[0] - ends[1])
    print(f"{name}: reference is rk4, {fine} karras steps; with {coarse} it moves by {gap:.1e}\n")
    return Problem(name, model, x, cond, ends[0])


def labels(model: PretrainedModel, seeds: Iterable[int]) -> dict[str, Tensor]:
    """The condition of each seed's sample: one class after another."""
    return {"y": torch.tensor([seed % model.num_classes for seed in seeds])}


def digits() -> ddim_ode.exact.ExactModel:
    """A mixture of 20 Gaussians fitted to 8 × 8 digits, with the usual discrete schedule."""
    from sklearn.datasets import load_digits
    from sklearn.mixture import GaussianMixture

    fit = GaussianMixture(20, covariance_type="full", reg_covar=2e-3, random_state=0)
    fit.fit(load_digits().data / 8 - 1)
    return ddim_ode.exact.gaussian_mixture(
        fit.weights_ / fit.weights_.sum(), fit.means_, fit.covariances_, ddim_ode.schedules.ddpm()
    )


def end_states(
    model: PretrainedModel,
    method: str | ddim_ode.Plan,
    seeds: Sequence[int],
    cache: Path,
    batch: int = 25,
    **options: Any,
) -> Tensor:
    """Samples (n, *shape) of those seeds, ``labels`` as conditions, by a plan or by a method with options.

    Finished batches are kept under ``cache`` by all that decides them (the model's weights and guidance,
    every number of the plan), so an interrupted run goes on where it was.
    """
    plan = method if isinstance(method, ddim_ode.Plan) else plan_of(model, method, **options)
    guidance = model.guidance.scale if model.guidance else 1.0
    exact, numbers = of_plan(plan)
    store, parts = Store(cache), []
    what = f"{plan.method}, {plan.nfe} calls"
    for first in tqdm(range(0, len(seeds), batch), desc=what, leave=False):
        part = seeds[first : first + batch]
        origin = ("ends", [model.sha256, guidance, exact, part], Near.of(numbers, PLAN, PLAN))
        kept = store.get(*origin)
        if kept is None:
            x = ddim_ode.noise(model.shape, model.schedule, part)
            x = ddim_ode.sample(model, x, plan=plan, cond=labels(model, part)).x
            store.put(*origin, *(kept := ({"x": x}, {})))
        parts.append(kept[0]["x"])
    return torch.cat(parts)


def plan_of(model: PretrainedModel, method: str, **options: Any) -> ddim_ode.Plan:
    """What ``sample`` would run of a fixed-step method with these options."""
    none = ddim_ode.noise(model.shape, model.schedule, seeds=[])
    plan = ddim_ode.sample(model, none, method, cond=labels(model, []), **options).plan
    assert plan is not None, f"{method} is not a fixed plan"
    return plan


def rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt())


# -- command lines ----------------------------------------------------------------------------
def arguments(doc: str | None, quick: str, full: str) -> argparse.ArgumentParser:
    """A parser with ``--quick`` (the default) or ``--full``, and ``--out``."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help=f"{quick} (the default)")
    size.add_argument("--full", action="store_true", help=full)
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the CSV, picture and record (default: benchmarks/results for --full, "
        f"{QUICK_RESULTS} for --quick)",
    )
    return parser


def installed(package: str) -> bool:
    """Whether a peer can be imported; if not, says so."""
    if importlib.util.find_spec(package.replace("-", "_")) is not None:
        return True
    how = f"pip install {'--no-deps ' if package == 'k-diffusion' else ''}{package}"
    print(f"{package} is not installed: left out ({how})")
    return False


class Run:
    """One run of a benchmark: seeds torch, prints where it runs, and writes what it found."""

    def __init__(self, name: str, args: argparse.Namespace, packages: Sequence[str] = ()) -> None:
        """packages: whose versions matter besides ddim_ode, torch and numpy."""
        self.name, self.packages = name, packages
        self.out: Path = args.out or (RESULTS if args.full else QUICK_RESULTS)
        self.started = time.perf_counter()
        self.machine = machine()  # now: the load before the benchmark's own
        torch.manual_seed(SEED)
        self.about = ", ".join(
            f"{key} {value}" for key, value in {**self.machine, **versions(packages)}.items()
        )
        print(f"{self.about}\n")

    def path(self, suffix: str) -> Path:
        return self.out / f"{self.name}{suffix}"

    def save(
        self,
        rows: Sequence[Row],
        figure: Figure | None = None,
        text: str | None = None,
        **settings: Any,
    ) -> None:
        """Write NAME.csv, NAME.json, and NAME.png and NAME.txt where there is something for them."""
        self.out.mkdir(parents=True, exist_ok=True)
        write_csv(self.path(".csv"), rows)
        if figure is not None:
            self.draw(figure)
        if text is not None:
            files.write(self.path(".txt"), text + "\n")
        record = dict(
            command=command(),
            seed=SEED,
            settings=settings,
            seconds=round(time.perf_counter() - self.started, 1),
            machine=self.machine,
            versions=versions(self.packages),
        )
        text = json.dumps(record, indent=1, ensure_ascii=False, default=str)
        files.write(self.path(".json"), text + "\n")
        print(f"\nwritten: {', '.join(sorted(str(p) for p in self.out.glob(f'{self.name}.*')))}")

    def draw(self, figure: Figure) -> None:
        """Write NAME.png."""
        save_figure(self.path(".png"), figure)


def command(argv: Sequence[str] | None = None) -> str:
    """The command line that was given, with DIR for folders and files: where they lie says nothing."""
    script, *rest = sys.argv if argv is None else argv
    shown = ["DIR" if os.sep in word or Path(word).exists() else word for word in rest]
    return " ".join(["python", f"benchmarks/{Path(script).name}", *shown])


# -- where a figure comes from ----------------------------------------------------------------
def machine() -> dict[str, Any]:
    """CPU model, cores, threads that torch uses, load average, and the GPU where there is one."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [s for s in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in s]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    about: dict[str, Any] = dict(cpu=cpu, cores=os.cpu_count(), threads=torch.get_num_threads())
    if hasattr(os, "getloadavg"):
        about["load"] = round(os.getloadavg()[0], 1)
    if torch.cuda.is_available():
        about["device"] = torch.cuda.get_device_name()
    return about


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Versions of Python, ddim_ode, torch, numpy and those packages; "not installed" for the others."""
    found = {"python": platform.python_version(), "ddim_ode": ddim_ode.__version__}
    for name in ("torch", "numpy", *packages):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


# -- tables -----------------------------------------------------------------------------------
def read_csv(path: Path) -> list[dict[str, Any]]:
    """What ``write_csv`` wrote: numbers as such, what was empty left out."""
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {k: _number(v) for k, v in row.items() if v not in ("", None)}
            for row in csv.DictReader(file)
        ]


def _number(text: str) -> float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# -- pictures ---------------------------------------------------------------------------------
INK, GREY = "#222222", "#6b6b6b"
# Other packages: greys and black, so that colour always means one of our methods.
PACKAGES: dict[str, dict[str, Any]] = {
    "ddim_ode": dict(color="#332288", marker="o", linestyle="-"),
    "ddim_ode, any grid": dict(color="#332288", marker="^", linestyle=(0, (1.5, 1.2))),
    "diffusers": dict(color="#000000", marker="s", linestyle=(0, (5, 1.5))),
    "k-diffusion": dict(color="#777777", marker="D", linestyle=(0, (5, 1.5))),
    "torchdiffeq": dict(color="#000000", marker="v", linestyle=(0, (1.5, 1.2))),
    "torchode": dict(color="#777777", marker="x", linestyle=(0, (1.5, 1.2))),
    "scipy": dict(color="#aaaaaa", marker="+", linestyle=(0, (3, 1, 1, 1))),
}


def look(name: str) -> dict[str, Any]:
    """Colour, marker and line of a package ("torchdiffeq dopri5" too), or of one of our methods."""
    package, _, method = name.partition(" ")
    if package == "ddim_ode" and method:
        return plots.look(method)
    return PACKAGES.get(name) or PACKAGES.get(package) or plots.look(name)


def panels(
    columns: int, width: float = 10.0, height: float = 4.6, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes side by side, sized to be read at the width of a README (850 pixels)."""
    figure = Figure(figsize=(width, height), dpi=170, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, columns, squeeze=False, **options)[0])
    for axis in axes:
        axis.grid(True, color="#e5e5e5", lw=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=10, colors=INK, which="both")
    return figure, axes


def label(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=11.5, loc="left", color=INK)
    axis.set_xlabel(x, fontsize=10.5, color=INK)
    axis.set_ylabel(y, fontsize=10.5, color=INK)


def plain(value: float, _: int = 0) -> str:
    return f"{value:g}"


def log_scales(axis: Axes, x_ticks: Sequence[float], fine: bool = True) -> None:
    """Log axes; x is marked at what was measured, y at 1 2 5 in plain numbers if fine, else at powers."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(list(x_ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(plain))
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if fine else (1,), numticks=12))
    if fine:
        axis.yaxis.set_major_formatter(FuncFormatter(plain))
        axis.yaxis.set_minor_formatter(NullFormatter())


def cap(axis: Axes, points: Sequence[tuple[str, float, float]], top: float) -> None:
    """End the (already logarithmic) y axis at ``top``, and write down the highest that each name has
    beyond it; points: (name, x, y)."""
    axis.set_ylim(top=top)
    beyond = [point for point in points if point[2] > top]
    for name in dict.fromkeys(point[0] for point in beyond):
        _, x, y = max((point for point in beyond if point[0] == name), key=lambda point: point[2])
        axis.annotate(
            f"{name}: {y:.2g} ↑" if y < 100 else f"{name}: {y:.0f} ↑",
            (x, top),
            xytext=(3, -13),
            textcoords="offset points",
            fontsize=9.5,
            color=look(name)["color"],
            bbox=dict(facecolor="white", alpha=0.85, lw=0, pad=1),
        )


def curve(
    axis: Axes,
    name: str,
    x: Sequence[float],
    y: Sequence[float],
    band: tuple[Sequence[float], Sequence[float]] | None = None,
    mark_every: int = 1,
) -> None:
    """One solver's line in its own colour and marker; band: (low, high)."""
    style = look(name)
    axis.plot(x, y, **style, ms=5, lw=1.6, label=name, markevery=mark_every)
    if band is not None:
        axis.fill_between(x, *band, color=style["color"], alpha=0.13, lw=0)


def legend_below(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """One legend for all panels, under them."""
    found = {t: h for axis in axes for h, t in zip(*axis.get_legend_handles_labels())}
    figure.legend(
        found.values(),
        found.keys(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=10.5,
        handlelength=2.6,
        columnspacing=1.6,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Other packages warn, log and print."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
