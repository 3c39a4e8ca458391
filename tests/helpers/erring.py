"""A network as training leaves it: near two points, and off by a hundredth at every level."""

import torch

import ddim_ode
from ddim_ode import Denoiser

MEANS = [[0.7, 0.0], [-0.7, 0.0]]
COVS = [[0.01, 0.01]] * 2


def erring(schedule, prediction="eps", **options):
    """A network whose ε̂ errs by 1 % at every level, as one does that was trained for a minute."""
    exact = ddim_ode.exact.gaussian_mixture([0.5, 0.5], MEANS, COVS, schedule)

    def net(x, sigma):
        eps = exact.net(x, sigma) + 0.014 * torch.sin(7 * x + 3 * torch.log(sigma)[:, None])
        if prediction == "eps":
            return eps
        alpha, beta = (torch.as_tensor(c)[:, None].to(x) for c in schedule.scales(sigma.numpy()))
        if prediction == "score":
            return -eps / beta
        x0 = (x - beta * eps) / alpha
        return x0 if prediction == "x0" else alpha * eps - beta * x0

    return Denoiser(net, schedule, prediction, time=lambda t, s: s, shape=(2,), **options)


def good(x):
    """The share of samples near one of the two modes."""
    return float((((x[:, 0].abs() - 0.7).abs() < 0.4) & (x[:, 1].abs() < 0.4)).float().mean())
