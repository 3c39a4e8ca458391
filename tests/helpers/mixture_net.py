"""A perfect network with a diffusers face: the closed-form answer of a mixture of small pictures."""

import numpy as np
import torch

from ddim_ode import exact

SIDE = 4


class MixtureNet(torch.nn.Module):
    """What a network trained forever on six noisy 4×4 pictures returns at times 0..T−1.

    scale: of the input it wants. variance: a second channel beside the prediction. gain: of an inner
    activation, undone at once.
    """

    def __init__(self, schedule, prediction, scale=1.0, variance=False, gain=1.0):
        super().__init__()
        rng = np.random.default_rng(0)
        means = rng.choice([-0.8, 0.8], size=(6, SIDE * SIDE))
        covs = np.full(means.shape, 0.02)
        self.exact = exact.gaussian_mixture(np.full(6, 1 / 6), means, covs, schedule)
        self.prediction, self.scale, self.variance = prediction, scale, variance
        self.up = torch.nn.Parameter(torch.tensor(gain), requires_grad=False)
        self.identity = torch.nn.Identity()
        channels = 2 if variance else 1
        self.config = dict(in_channels=1, out_channels=channels, sample_size=SIDE)

    def forward(self, x, timestep, return_dict=False):
        x0, eps = self.pair(x.float() / self.scale, timestep.double().cpu().numpy() + 1)
        alpha, beta = (
            torch.as_tensor(v).float().reshape(-1, 1, 1, 1)
            for v in self.exact.schedule.scales(self.levels)
        )
        out = dict(eps=eps, x0=x0, v=alpha * eps - beta * x0)[self.prediction].to(x.dtype)
        out = self.identity(out * self.up.to(x.dtype)) / self.up.to(x.dtype)
        return (torch.cat([out, out.abs()], 1) if self.variance else out,)

    def pair(self, x, t):
        """(x̂₀, ε̂), also where ᾱ = 0."""
        schedule = self.exact.schedule
        self.levels = np.minimum(schedule.sigma(np.clip(t, 0, schedule.T)), 1e6)
        x0, eps = self.exact(x.flatten(1).double(), self.levels)
        return x0.reshape(x.shape).float(), eps.reshape(x.shape).float()

    def draw(self, n):
        return self.exact.draw(n).reshape(n, 1, SIDE, SIDE).float()
