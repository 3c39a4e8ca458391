"""A model under conditions, and copies of a denoiser with other attributes."""

import numpy as np
import pytest
import torch
from problems import DDPM, points

import ddim_ode
from ddim_ode.denoising.problem import Problem


def net(x, t, y, scale=1.0):
    return scale * y[:, None] * x


COND = {"y": torch.tensor([1.0, 2.0, 3.0])}


def test_some_rows_of_a_problem_answer_as_they_do_in_the_whole():
    null = {"y": torch.tensor([5.0, 6.0, 7.0])}  # a row for each sample
    model = ddim_ode.Denoiser(net, DDPM, guidance=ddim_ode.Guidance(2.0, null))
    problem, x = Problem(model, COND, {"scale": 0.5}), points(3, 2).float()
    index = torch.tensor([2, 0])
    for whole, part in zip(problem(x, 1.0), problem.rows(index)(x[index], 1.0)):
        assert torch.equal(whole[index], part)
    known = model(x, 1.0, **problem.conditions)[1]
    assert torch.equal(problem(x, 1.0)[1], known)


def test_a_problem_without_conditions_has_none_in_part():
    problem = Problem(ddim_ode.Denoiser(lambda x, t: x, DDPM))
    assert problem.rows(slice(1)).conditions == {"cond": {}, "shared": None}


def test_a_copy_that_snaps_does_so():
    model = ddim_ode.Denoiser(lambda x, t: x, DDPM, time_offset=-1.0)
    level = np.array([DDPM.sigma(500.3)])
    assert model.snapped(level) == level
    snapping = model.replace(snap=True)
    assert snapping.snapped(level) == DDPM.sigma(500.0)
    assert snapping.network_time(level) == 499.0
    assert not model.snap


def test_a_copy_has_no_new_attributes():
    with pytest.raises(AttributeError, match="guidence"):
        ddim_ode.Denoiser(lambda x, t: x, DDPM).replace(guidence=None)
