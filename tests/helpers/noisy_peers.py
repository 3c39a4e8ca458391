"""The stochastic peers as linear maps: what a sampler makes of its start, the network's answers and its own
draws, each a unit vector, so that every coefficient can be compared with ours."""

import contextlib
import importlib
import importlib.util
import sys
import types
from dataclasses import dataclass
from unittest import mock

import numpy as np
import peers
import torch

_FILES = dict(
    EulerAncestralDiscrete="euler_ancestral_discrete",
    KDPM2AncestralDiscrete="k_dpm_2_ancestral_discrete",
    DPMSolverMultistep="dpmsolver_multistep",
    DPMSolverSDE="dpmsolver_sde",
    SASolver="sasolver",
    EulerDiscrete="euler_discrete",
    EDMEuler="edm_euler",
    EDMDPMSolverMultistep="edm_dpmsolver_multistep",
)


@dataclass
class Table:
    """Each network input and the end (rows) over the start, the answers and the draws (columns), in the
    network's space; and the levels: of the grid, and of each call."""

    rows: np.ndarray
    grid: np.ndarray
    asked: list


@contextlib.contextmanager
def _without_torchsde():
    """A stand-in for a package of which nothing is used where the draws are ours."""
    name = "torchsde"
    if name in sys.modules or importlib.util.find_spec(name):
        yield
        return
    with mock.patch.dict(sys.modules, {name: types.ModuleType(name)}):
        yield


def _unit(k, size):
    return torch.eye(size, dtype=torch.float64)[k].reshape(1, 1, 1, 1, size)


class Source:
    """Draws that are unit vectors, after those of the calls."""

    def __init__(self, calls, size):
        self.next, self.size = 1 + calls, size

    def __call__(self, *args, **kwargs):
        self.next += 1
        return _unit(self.next - 1, self.size)


def diffusers(name, steps, calls, draws, in_sigma=False, step=None, **config):
    """``{name}Scheduler``, driven as a pipeline drives it, its draws taken from us. calls, draws: How many
    it makes. in_sigma: Whether its state is x/ᾱ. step: Further options of its ``step``. EDM's answer x̂₀.
    """
    peers.load("diffusers")
    with peers.quiet(), _without_torchsde():
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{_FILES[name]}")
        scheduler = getattr(module, f"{name}Scheduler")(**config)
        scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    if name.startswith("EDM"):
        scheduler.precondition_inputs = lambda x, sigma: x / float(np.hypot(1, sigma))
        scheduler.precondition_outputs = lambda x, answer, sigma: answer
    if hasattr(scheduler, "sigmas_interpol"):
        scheduler.sigmas_interpol = scheduler.sigmas_interpol.double()
    size = 1 + calls + draws
    source, shown = Source(calls, size), []
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = source
    grid = scheduler.sigmas.numpy().copy()
    grid = grid[np.append(True, grid[1:] < grid[:-1])]
    y = _unit(0, size) * (float(np.hypot(1, grid[0])) if in_sigma else 1.0)
    patched = contextlib.nullcontext()
    if hasattr(module, "randn_tensor"):
        patched = mock.patch.object(module, "randn_tensor", source)
    with torch.no_grad(), peers.quiet(), patched:
        for t in scheduler.timesteps:
            inside = scheduler.scale_model_input(y, t) if in_sigma else y
            shown.append(inside)
            answer = _unit(len(shown), size)
            y = scheduler.step(answer, t, y, return_dict=False, **(step or {}))[0].double()
    assert (len(shown), source.next) == (calls, size), (len(shown), source.next - 1 - calls)
    end = y / float(np.hypot(1, grid[-1])) if in_sigma else y
    rows = torch.stack([*shown, end]).reshape(calls + 1, size).numpy()
    drawn = np.append(np.full(1 + calls, True), (rows[:, 1 + calls :] != 0).any(0))
    rows = rows[:, drawn]  # some are drawn in the last step, for nothing
    return Table(rows, grid, scheduler.timesteps.double().tolist())
