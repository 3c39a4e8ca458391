"""What the benchmarks share: problems, command lines, timing, and records of where a figure comes from.

A benchmark writes NAME.csv (what was measured), NAME.png (the picture of it) and NAME.json (the command,
its settings, the machine and all versions). ``--full`` writes them to benchmarks/results, ``--quick`` to
out/benchmarks, which git ignores: a quick run never replaces a figure that is quoted somewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import gc
import importlib.metadata
import importlib.util
import io
import itertools
import json
import logging
import os
import platform
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

import ddim_ode
from ddim_ode._base import files
from ddim_ode._base.files import write_csv
from ddim_ode.nets.pretrained import PretrainedModel
from ddim_ode.plots.pictures import save_figure
from ddim_ode.solve.cache import Store
from ddim_ode.solve.near import PLAN, Near, of_plan

RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = Path("out/benchmarks")
SEED = 0

Row = Mapping[str, Any]
Cond = Mapping[str, Tensor] | None


# -- problems ---------------------------------------------------------------------------------
class Problem(NamedTuple):
    """x: start noises (n, *). cond: one class after another. reference: where the ODE takes x."""

    name: str
    model: ddim_ode.Denoiser
    x: Tensor
    cond: dict[str, Tensor] | None
    reference: Tensor


def load_problem(name: str, n: int) -> Problem:
    """n noises for ``"digits"`` or a model of that name, guidance off."""
    if name == "digits":
        model: ddim_ode.Denoiser = digits()
        x = ddim_ode.noise((64,), model.schedule, seeds=range(n), dtype=torch.float64)
        cond, steps = None, 600
    else:
        model, steps = ddim_ode.load(name), 120
        x, cond = noises(model, range(n))
    return Problem(name, model, x, cond, converged(name, model, x, cond, steps))


def converged(name: str, model: ddim_ode.Denoiser, x: Tensor, cond: Cond, steps: int) -> Tensor:
    """The ends of rk4 with so many karras steps; says by how much half as many move them."""
    fine, coarse = (
        ddim_ode.sample(model, x, "rk4", steps=k, grid="karras", cond=cond, progress=True).x
        for k in (steps, steps // 2)
    )
    gap = rms(fine - coarse)
    print(f"{name}: reference is rk4, {steps} karras steps; half as many move it by {gap:.1e}\n")
    return fine


def compared(
    problem: Problem, methods: Any, nfe: Sequence[int], grids: Sequence[str]
) -> Iterator[Row]:
    """The rows of ``ddim_ode.compare`` against the problem's reference, and the ``rms`` over all noises."""
    n, *shape = problem.x.shape
    known = dict(n=n, shape=shape, batch=n, cond=problem.cond, reference=problem.reference)
    result = ddim_ode.compare(problem.model, methods, nfe, grid=grids, seed=0, **known)
    for row, errors in zip(result.rows, result.errors):
        yield dict(row, rms=float(np.sqrt(np.mean(errors**2))))


def noises(
    model: PretrainedModel, seeds: Iterable[int], device: str = "cpu"
) -> tuple[Tensor, dict[str, Tensor]]:
    """The start noises of these seeds and their labels, on the device."""
    x = ddim_ode.noise(model.shape, model.schedule, seeds, device=device)
    return x, {key: value.to(device) for key, value in labels(model, seeds).items()}


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


def in_batches(
    solve: Callable[[Tensor, Cond], Tensor], x: Tensor, cond: Cond = None, size: int = 64
) -> Tensor:
    """``solve(x, cond)`` of ``size`` rows at a time."""
    parts = []
    for rows in tqdm(torch.arange(len(x)).split(size), leave=False, delay=5):
        parts.append(solve(x[rows], cond and {key: value[rows] for key, value in cond.items()}))
    return torch.cat(parts)


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
    plan = ddim_ode.plan_for(model, method, **options) if isinstance(method, str) else method
    guidance = model.guidance.scale if model.guidance else 1.0
    exact, numbers = of_plan(plan)
    store, parts = Store(cache), []
    for first in tqdm(range(0, len(seeds), batch), desc=f"{plan.method}, {plan.nfe}", leave=False):
        part = seeds[first : first + batch]
        origin = ("ends", [model.sha256, guidance, exact, part], Near.of(numbers, PLAN, PLAN))
        if (kept := store.get(*origin)) is None:
            x, cond = noises(model, part)
            kept = ({"x": ddim_ode.sample(model, x, plan=plan, cond=cond).x}, {})
            store.put(*origin, *kept)
        parts.append(kept[0]["x"])
    return torch.cat(parts)


def rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt())


# -- timing -----------------------------------------------------------------------------------
def stub(eps: Tensor) -> Callable[[Tensor, Any], Tensor]:
    """A network that costs nothing. It gives two answers in turn: one tensor returned again is refused, as
    a buffer that is overwritten."""
    answers = itertools.cycle((eps, eps.clone()))
    return lambda y, t: next(answers)


def race(
    runs: Sequence[Callable[[], object]],
    rounds: int,
    before: Callable[[int], object] = lambda i: None,
    warm: bool = True,
) -> np.ndarray:
    """Seconds (runs, rounds). The runs take turns, in a new random order each round, so that a machine
    that slows down slows all of them.

    before(i) is not timed. warm: an untimed run before each timed one, so that nobody pays for the state
    of the caches after another.
    """
    seconds, draw = np.empty((len(runs), rounds)), random.Random(SEED)
    gc.disable()  # as timeit does; garbage is collected between the rounds
    try:
        for r in range(rounds):
            gc.collect()
            for i in draw.sample(range(len(runs)), len(runs)):
                for _ in range(2 if warm else 1):
                    before(i)
                    start = time.perf_counter()
                    runs[i]()
                    seconds[i, r] = time.perf_counter() - start
    finally:
        gc.enable()
    return seconds


# -- command lines ----------------------------------------------------------------------------
def arguments(
    doc: str | None,
    quick: str,
    full: str,
    *,
    redraw: bool = False,
    data: bool = False,
    cache: str = "",
) -> argparse.ArgumentParser:
    """A parser with ``--quick`` (the default) or ``--full``, and ``--out``.

    redraw, data: whether there are ``--redraw`` and ``--data``. cache: the default of ``--cache``.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    size, add = parser.add_mutually_exclusive_group(), parser.add_argument
    size.add_argument("--quick", action="store_true", help=f"{quick} (the default)")
    size.add_argument("--full", action="store_true", help=full)
    where = f"benchmarks/results for --full, {QUICK_RESULTS} for --quick"
    add("--out", type=Path, help=f"folder for the CSV, picture and record (default: {where})")
    if redraw:
        add("--redraw", action="store_true", help="only draw, from the CSV in --out")
    if data:
        add("--data", type=Path, help="folder with Fashion-MNIST's IDX files")
    if cache:
        add("--cache", type=Path, default=Path(cache), help=f"finished batches (default: {cache})")
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
        # Now: the load before the benchmark's own, and the files before it writes some of them.
        self.machine, self.commit = machine(), commit()
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
            date=f"{datetime.date.today()}",
            commit=self.commit,
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

    def rows(self) -> list[dict[str, Any]]:
        """What NAME.csv has, for ``--redraw``."""
        return read_csv(self.path(".csv"))


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


def commit() -> str:
    """The commit of the working tree, with a + where files differ from it; "" outside of one."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    with contextlib.suppress(OSError):
        return subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return ""


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


def pick(rows: Sequence[Row], **chosen: Any) -> list[Any]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in chosen.items())]


def tell(row: Row) -> None:
    """Print a row, its keys and what they are."""
    tqdm.write("  ".join(f"{key} {short(value)}" for key, value in row.items()))


def told(rows: Iterable[Row]) -> list[Any]:
    """The rows, each printed as it comes."""
    found = []
    for row in rows:
        found.append(row)
        tell(row)
    return found


def short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(text: str) -> float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


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
