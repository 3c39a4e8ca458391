"""The peers' samplers, diffusers' and k-diffusion's, as loops in network space: ``loop(net, x) -> x_end``.

A peer that is not installed skips its tests, or fails them where DDIM_ODE_REQUIRE_PEERS=1 is set.
"""

import contextlib
import functools
import importlib
import importlib.machinery
import io
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from problems import zero_snr

from ddim_ode import schedules
from ddim_ode.schedules.schedule import Schedule
from ddim_ode.solve.loop import integrate
from ddim_ode.solvers.chart import convert
from ddim_ode.solvers.plan import Plan

REQUIRED = os.environ.get("DDIM_ODE_REQUIRE_PEERS") == "1"
# Schedulers whose state is x/ᾱ, and which scale it for the network.
IN_SIGMA_SPACE = {"EulerDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete"}


class Sampler(NamedTuple):
    """A peer's sampler, and what it does where.

    schedule: its own. grid: σ of its levels, falling, float64. asked: σ of each call. told: what it passes
    as t. loop(net, x): net(x, t) gets that t; by_sigma(net, x): net(x, σ).
    """

    schedule: Schedule
    grid: np.ndarray
    asked: list[float]
    told: list[float]
    loop: Callable[..., torch.Tensor]
    by_sigma: Callable[..., torch.Tensor]


@contextlib.contextmanager
def quiet():
    """The peers warn, log and print."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def load(name: str) -> types.ModuleType:
    """The module of that name; skips or fails the test without it."""
    try:
        with quiet():
            return _sampling() if name == "k_diffusion.sampling" else importlib.import_module(name)
    except ImportError as error:
        message = f"needs {name.split('.')[0]} (pip install '.[peers]'): {error}"
        if REQUIRED:
            pytest.fail(message)
        pytest.skip(message)


@functools.cache
def _sampling() -> types.ModuleType:
    """k-diffusion's sampling module alone: its package imports a training stack.

    Imported under stand-ins for the package, its utils and torchsde (of which nothing deterministic is
    used), which leave sys.modules again.
    """
    spec = importlib.machinery.PathFinder.find_spec("k_diffusion")
    if spec is None:
        raise ImportError("k_diffusion is not installed")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
    package.utils = utils
    stand_ins = {
        "k_diffusion": package,
        "k_diffusion.utils": utils,
        "torchsde": types.ModuleType("torchsde"),
    }
    names = (*stand_ins, "k_diffusion.sampling")
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


# Variance-preserving plans depend on σ alone: this schedule, which has every σ, serves for all of them.
ANY_SIGMA = zero_snr()
_schedule = functools.cache(lambda *cumprod: schedules.from_alphas_cumprod(cumprod))


def diffusers(name: str, steps: int, double: bool = False, **config: Any) -> Sampler:
    """``{name}Scheduler(**config)`` at ``set_timesteps(steps)``, driven as a pipeline drives it.

    double: its σ, kept in float32, in float64 (the same numbers).
    """
    module = load("diffusers")

    def build() -> Any:
        with quiet():
            scheduler = getattr(module, f"{name}Scheduler")(**config)
            scheduler.set_timesteps(steps)
        if double:
            scheduler.sigmas = scheduler.sigmas.double()
        return scheduler

    first = build()
    schedule = ANY_SIGMA
    if name != "IPNDM":
        schedule = _schedule(*first.alphas_cumprod.double().tolist())
    if name in ("DDIM", "PNDM"):
        cumprod = first.alphas_cumprod.double()[first.timesteps].numpy()
        asked = np.sqrt((1 - cumprod) / cumprod)
        final = float(first.final_alpha_cumprod)
        stages = len(getattr(first, "prk_timesteps", ()))  # four to a step
        levels = [*asked[:stages:4], *asked[stages:], np.sqrt((1 - final) / final)]
        levels = np.array(levels)
    elif name == "IPNDM":
        with np.errstate(divide="ignore"):
            levels = (first.betas.double() / first.alphas.double()).numpy()
        asked = levels[:-1]
    else:
        levels = first.sigmas.double().numpy()
        asked = levels[:-1]
        if name == "KDPM2Discrete":
            inner = first.sigmas_interpol.double().numpy()[:-1]
            asked = np.where(np.arange(len(asked)) % 2, inner, asked)
        asked = asked[: len(first.timesteps)]
    levels = levels[np.append(True, levels[1:] < levels[:-1])]

    @torch.no_grad()
    def run(net, x, times):
        scheduler = build()
        scaled = name in IN_SIGMA_SPACE
        y = x * float(np.hypot(1, levels[0])) if scaled else x
        with quiet():
            for t, passed in zip(scheduler.timesteps, times):
                shown = scheduler.scale_model_input(y, t)
                y = scheduler.step(net(shown, passed), t, y, return_dict=False)[0]
        return y / float(np.hypot(1, levels[-1])) if scaled else y

    return Sampler(
        schedule,
        levels,
        asked.tolist(),
        first.timesteps.double().tolist(),
        lambda net, x: run(net, x, first.timesteps),
        lambda net, x: run(net, x, asked.tolist()),
    )


def k_diffusion(name: str, grid, n: int | None = None, **options: Any) -> Sampler:
    """``sample_{name}`` on a variance-preserving network at float64 levels, its noise off.

    grid: the levels, or (σ_max, σ_min) for a sampler that places its n calls itself.
    """
    module = load("k_diffusion.sampling")
    sigmas = torch.as_tensor(grid, dtype=torch.float64)
    places = (sigmas,) if n is None else (np.float64(sigmas[-1]), np.float64(sigmas[0]), n)
    if name.endswith(("ancestral", "sde", "fast")):
        options = dict(eta=0.0, noise_sampler=lambda *levels: 0.0, **options)
    asked: list[float] = []

    @torch.no_grad()
    def run(net, x):
        def denoise(y, sigma, **extra):
            s = sigma.flatten()[0]
            asked.append(float(s))
            return y - s * net(y / torch.hypot(torch.ones_like(s), s), s)

        y = x * np.hypot(1, float(sigmas[0]))
        y = getattr(module, f"sample_{name}")(denoise, y, *places, disable=True, **options)
        return y / np.hypot(1, float(sigmas[-1]))

    run(lambda x, s: torch.zeros_like(x), torch.ones(1, 1, 1, 1, dtype=torch.float64))
    calls = asked.copy()
    return Sampler(ANY_SIGMA, sigmas.numpy(), calls, calls, run, run)


# -- coefficient tables ------------------------------------------------------------------------
def _basis(n: int) -> torch.Tensor:
    """x_T and n answers as unit vectors (n+1, 1, 1, 1, n+1)."""
    return torch.eye(n + 1, dtype=torch.float64).reshape(n + 1, 1, 1, 1, n + 1)


def their_table(sampler: Sampler) -> np.ndarray:
    """Each network input and the end state (rows) over x_T and the network's answers (columns)."""
    vectors, shown = _basis(len(sampler.asked)), []

    def net(x, t):
        shown.append(x.double())
        return vectors[len(shown)]

    end = sampler.loop(net, vectors[0])
    return torch.stack([*shown, end.double()]).flatten(1).numpy()


def our_table(
    plan: Plan, answers: str = "eps", draws: Callable[[list], list] = lambda unit: unit
) -> np.ndarray:
    """The same of a plan, whatever vector it stores, and over its draws (columns) if it has some.

    draws(unit vectors): What it is given instead of these.
    """
    vectors, shown = _basis(plan.nfe + len(plan.draws())), []
    source = iter(draws(list(vectors[1 + plan.nfe :])))

    def evaluate(y, k):
        shown.append(y)
        node = plan.nodes[k]
        a, b = convert(answers, node.vector, *ANY_SIGMA.scales(node.sigma))
        return float(a) * y + float(b) * vectors[k + 1]

    end = integrate(plan, evaluate, vectors[0], draw=lambda: next(source)).x
    return torch.stack([*shown, end]).flatten(1).numpy()


def deviation(theirs: np.ndarray, ours: np.ndarray) -> float:
    """The largest difference of an entry, relative to the largest entry of its row."""
    assert theirs.shape == ours.shape, "another number of network calls"
    return float((abs(theirs - ours).max(1) / abs(ours).max(1)).max())


# -- plans made of plans -----------------------------------------------------------------------
def joined(*plans: Plan) -> Plan:
    """One-step plans one after another."""
    grid = plans[0].grid + tuple(sigma for plan in plans[1:] for sigma in plan.grid[1:])
    ops = tuple(op for plan in plans for op in plan.ops)
    return replace(plans[0], ops=ops, grid=grid, error_weights=())


def started(first: Plan, rest: Plan) -> Plan:
    """A multistep plan with one call a level, its first steps taken by a one-step plan instead."""
    ops = [*first.ops[:-1], first.ops[-1]._replace(node=rest.ops[first.steps].node)]
    calls = first.level_calls()
    made = first.nfe
    for op in rest.ops[first.steps + 1 :]:
        calls.append(made)
        made += 1
        row = [0.0] * made
        for back, weight in enumerate(op.weights):
            row[made - 1 - calls[-1 - back]] = weight
        ops.append(op._replace(weights=tuple(row)))
    return replace(rest, ops=tuple(ops), error_weights=())
