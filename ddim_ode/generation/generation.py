"""More samples than one call, one process or one evening can make.

Sample i has seed ``seed + i`` and the conditions of index i, and nothing else decides it: not the
process, the batch, or how often the run was stopped. So samples are independent pieces of work, and a run
is a folder of shards (shards.py) that any number of processes fill. Shard k belongs to process k mod W; a
process that has finished its own shards takes unclaimed ones (locks.py). Processes exchange nothing else,
so under ``torchrun`` there is no process group: only its environment is read.

The same call verifies what is on disk and makes what is missing, whatever the reason. Only a process that
has claimed a shard removes it, and only if its checksum fails: one that cannot be read may be good.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .._base.checks import count, flag, named, one_of, path_of, seed_of, shown
from .._base.digests import digest
from .._base.notebook import card
from .._base.version import __version__
from ..denoising.acceleration import accelerate, rows_of
from ..denoising.denoiser import Denoiser
from ..denoising.inputs import Cond, check_model, device_of, sample_shape
from ..solve.answers import ask
from ..solve.model_key import model_key
from ..solve.near import of_shared
from ..solve.plan_checks import trust, warn_of_another_network
from ..solvers.methods import Method
from ..solvers.plan import Plan
from .filling import Filler, check_same, explained
from .indexed import Conditions, IndexedSolver
from .locks import Claims
from .processes import share_of
from .shards import MANIFEST, Run, Shards

_BATCH, _GPU_BATCH = 64, 256
_SHARD = 64
_SOLVER = (
    *("steps", "nfe", "grid", "timesteps", "variant", "start", "chart", "final", "sigma_max"),
    *("sigma_min", "eta", "noise_std", "noise", "rtol", "atol", "max_nfe", "error_norm", "on_nan"),
)


@dataclass(frozen=True, repr=False)
class Generated:
    """A finished run, and this process's part in it.

    shards: iterate over it for the samples, shard by shard, verified. made: samples made by this call.
    remade: damaged shards found and made again. status: how many of the samples have which. seconds: of
    this call. missing: samples that others are still making; 0 on a file system that has locks, as every
    process then stays until the run is complete.
    """

    shards: Shards
    made: int
    remade: int
    status: dict[str, int]
    seconds: float
    missing: int

    def __repr__(self) -> str:
        return f"Generated({', '.join(f'{name} {said}' for name, said in self._facts() if said)})"

    def _repr_html_(self) -> str:
        return card("Generated", self._facts())

    def _facts(self) -> list[tuple[str, Any]]:
        return [
            ("samples", f"{self.shards.run.n:,} of {self.shards.run.shape}"),
            ("in", self.shards.folder),
            ("status", ", ".join(f"{count:,} {word}" for word, count in self.status.items())),
            ("made here", f"{self.made:,} in {self.seconds:.1f} s"),
            ("shards made again", self.remade),
            ("missing", self.missing),
        ]


def generate(
    model: Denoiser,
    n: int,
    out: str | Path,
    method: str | Method | None = None,
    *,
    plan: Plan | None = None,
    shape: Sequence[int] | None = None,
    seed: int = 0,
    cond: Cond | None = None,
    shared: Mapping[str, Any] | None = None,
    batch: int | str = "auto",
    shard: int | None = None,
    key: str | None = None,
    device: str | torch.device | None = None,
    compile: bool | Mapping[str, Any] = False,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
    cuda_graph: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
    progress: bool = False,
    about: Mapping[str, Any] | None = None,
    **solver: Any,
) -> Generated:
    """Make samples 0..n−1 into the folder ``out``, or those of them that are not there yet.

    Any number of processes may run the same call on the same folder; each returns when all n samples are
    there. However they are divided, the samples are the same to rounding (of an adaptive solve: to its
    tolerance). A model is known by what it holds and by its answers to four calls of one sample, up to the
    rounding of other processors; conditions are known row by row, for which a function is called again.

    Args:
        model: What is sampled.
        n: Samples. Sample i has seed ``seed + i``.
        out: The folder of the run.
        method: As in :func:`ddim_ode.sample`.
        plan: A compiled plan instead.
        shape: Of ONE sample (default: the model's own).
        seed: Of sample 0.
        cond: {name: tensor (n, ...)}, or a function of indices (b,) that returns their rows, always the
            same.
        shared: As in ``sample``.
        batch: Samples solved together. ``"auto"`` is 64 on a CPU and 256 elsewhere, in network calls of as
            many rows as fit into memory.
        shard: Samples a file (default: 64, or the batch if that is less), which is all that a kill can lose
            beside the batch in flight.
        key: A name for the model, changed whenever it changes, where the network is neither an exact
            mixture nor a ``torch.nn.Module``, or counts or caches in public attributes.
        device: Default: the network's own.
        compile, channels_last, dtype: See :func:`ddim_ode.accelerate`.
        cuda_graph: Record the whole of a deterministic plan for batches of the first one's shape.
        rank, world_size: Default: torchrun's.
        progress: Show a bar over all n samples, in the first process.
        about: Plain data to keep in the manifest.
        **solver: Of ``sample`` (steps, nfe, grid, eta, rtol, ...).

    Returns:
        The finished run, and this process's part in it.

    Raises:
        ValueError: A folder of another run; it names what differs.
        OSError: The folder cannot be written or is gone, a shard cannot be read, or the disk is full.
            What is finished is kept, then and on Ctrl-C.

    >>> import tempfile, ddim_ode
    >>> model = ddim_ode.exact.gaussian([1.0], [[0.25]], ddim_ode.schedules.cosine())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = ddim_ode.generate(model, 100, folder, "dpmpp2m", steps=10)
    ...     again = ddim_ode.generate(model, 100, folder, "dpmpp2m", steps=10)
    ...     mean = sum(float(shard.x.sum()) for shard in run.shards) / 100
    >>> run.made, again.made, run.status, 0.8 < mean < 1.2
    (100, 0, {'success': 100}, True)
    """
    check_model(model)
    started = time.perf_counter()
    n = count("n", n)
    seed = seed_of(seed, n)
    where = device_of(model, device)
    rows = rows_of(batch) or (_BATCH if where.type == "cpu" else _GPU_BATCH)
    share, shown = share_of(rank, world_size), flag("progress", progress)
    folder = path_of("out", out)
    for name in solver:
        one_of("option", name, _SOLVER)
    fast = accelerate(
        model,
        compile=compile,
        channels_last=channels_last,
        dtype=dtype,
        batch=batch if batch == "auto" else None,
    )
    if key is not None and isinstance(plan, Plan):
        trust(plan, fast)
    graph = flag("cuda_graph", cuda_graph)
    options = dict(solver, method=method, plan=plan)
    one, rows_of_cond = sample_shape(model, shape), Conditions(cond, n, where)
    work = IndexedSolver(fast, one, seed, rows_of_cond, shared, where, rows, graph, options)
    known = _model_key(model, key, shared)
    answers = None
    if key is None:
        answers = ask(work.part([0]), one, where)
        if plan is not None:
            warn_of_another_network(plan, model, known, answers)
    run = Run(
        n=n,
        seed=seed,
        shard=count("shard", min(_SHARD, rows, n) if shard is None else shard),
        shape=one,
        decides=dict(
            model=known,
            schedule=model.schedule.fingerprint,
            network_dtype=None if work.model.dtype is None else str(work.model.dtype),
            conditions=work.cond.described(),
            shared=None if key is not None else digest(of_shared(shared)[0]),
            solver=work.described(),
        ),
        about={"ddim_ode": __version__, "torch": torch.__version__, **_plain(about)},
        answers=None if answers is None else answers.to_dict(),
    )
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is a file; give a folder, new or of this run")
    folder.mkdir(parents=True, exist_ok=True)
    with Claims(folder / ".claims") as claims:
        shards = _settle(folder, run, claims, any_shard=shard is None)
        filler = Filler(shards, claims, share, work)
        with explained(shards):
            filler.fill(shown and share[0] == 0)
            status = dict(shards.statuses())
    seconds = time.perf_counter() - started
    return Generated(shards, filler.made, filler.remade, status, seconds, n - sum(status.values()))


def _settle(folder: Path, run: Run, claims: Claims, any_shard: bool) -> Shards:
    """The folder's run, if it is this one; this one, where nobody has made or is making a sample."""
    ours = Shards(folder, run)
    with claims.alone():
        try:
            kept = Shards.open(folder)
        except FileNotFoundError:
            others = _others(folder)
            if others and not ours.whole():
                raise ValueError(
                    f"{folder}: is not empty ({others[0]}) and holds no {MANIFEST}; give a new folder, or, "
                    "for shards, the very call that made them, with its shard="
                ) from None
            ours.save_manifest()
            return ours
        if any_shard:
            run = replace(run, shard=kept.run.shard)
        # In this order: a process with a claim may write its shard, and drop the claim, between the two.
        if kept.run.difference(run) and claims.idle() and not _others(folder):
            ours.save_manifest()
            return ours
    check_same(kept, run)
    return kept


def _others(folder: Path) -> list[str]:
    """What a folder holds beside a manifest and hidden files."""
    return sorted(n for n in os.listdir(folder) if not n.startswith(".") and n != MANIFEST)


def _model_key(model: Denoiser, key: str | None, shared: Any) -> str:
    known = model_key(model, key)
    if known is None and key is not None:
        raise ValueError("what guidance.null holds cannot be told from another; give plain tensors")
    if known is None:
        raise ValueError(
            "the network is neither an exact mixture nor a torch.nn.Module, so a later call could not tell "
            "whether it is the same: give key=, a name that you change whenever it changes"
        )
    if key is None:
        try:
            digest(shared)
        except TypeError as error:
            raise ValueError(f"shared= cannot be told from another ({error}); give key=") from None
    return known


def _plain(about: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What a manifest can hold of ``about``: all of it, or a ValueError."""
    plain = {} if about is None else dict(named("about", about))
    try:
        json.dumps(plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"about={shown(about)} must be plain data, as JSON has them: {error}"
        ) from None
    return plain
