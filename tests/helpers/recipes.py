"""What a pipeline hands to its network, and the same network asked through ``load``."""

import inspect

import numpy as np
import torch
from tiny_pipelines import run_pipeline

import ddim_ode
from ddim_ode.interop.diffusers import load


def network_of(pipe):
    return getattr(pipe, "transformer", None) or pipe.unet


def recipe(pipe, call, steps=3):
    """The pipeline's own run and the conditions of its network's first call: (visited, conditions)."""
    net, calls = network_of(pipe), []
    names = list(inspect.signature(net.forward).parameters)

    def listening(module, args, options):
        calls.append({**dict(zip(names, args)), **options})

    hook = net.register_forward_pre_hook(listening, with_kwargs=True)
    try:
        visited = run_pipeline(pipe, call, steps)
    finally:
        hook.remove()
    assert len(calls) == len(visited) == steps, "one call a step: no guidance in two calls"
    return visited, calls[0]


def conditions(model, told):
    """The arguments of a call beside x and the time, as ``shared=``."""
    drop = {next(iter(told)), model._row.argument, "return_dict"}
    return {name: value for name, value in told.items() if name not in drop and value is not None}


def end_of(model, visited, told, grid):
    """Where Euler takes the pipeline's start on those levels."""
    shared = conditions(model, told)
    return ddim_ode.sample(model, visited[0], "ddim", grid=grid, shared=shared).x


def off(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())
