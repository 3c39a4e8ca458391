"""Problems with known answers, shared by the tests."""

import numpy as np
import torch

from ddim_ode import exact, schedules

SCHEDULES = {
    "ddpm": schedules.ddpm(),
    "ddpm_2e-5": schedules.ddpm(beta_start=2e-5),
    "exponential": schedules.exponential(),
    "cosine": schedules.cosine(),
    "cumprod": schedules.from_alphas_cumprod(
        schedules.ddpm(T=50, beta_end=0.3).alpha_bar(range(1, 51)) ** 2
    ),
    "vp": schedules.vp(),
    "ve": schedules.ve(80.0),
    "flow": schedules.flow(),
}
EXPONENTIAL, COSINE, DDPM = (SCHEDULES[name] for name in ("exponential", "cosine", "ddpm"))


def zero_snr():
    """A discrete schedule rescaled to zero terminal SNR, as Lin et al. 2024 do."""
    root = schedules.ddpm(T=100, beta_end=0.2).alpha_bar(range(1, 101))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return schedules.from_alphas_cumprod(root**2)


def mixture_1d(schedule, prediction="eps"):
    """Nonlinear in x and in σ, smooth (component std >= 0.5), with an exact flow."""
    return exact.gaussian_mixture(
        [0.45, 0.35, 0.2], [[-1.6], [0.7], [2.1]], [[0.36], [0.25], [0.49]], schedule, prediction
    )


def mixture_2d(schedule, prediction="eps"):
    covs = [[[0.5, 0.2], [0.2, 0.3]], [[0.25, -0.1], [-0.1, 0.6]]]
    return exact.gaussian_mixture(
        [0.6, 0.4], [[-1.5, 0.5], [1.2, -0.8]], covs, schedule, prediction
    )


def gaussian_2d(schedule, prediction="eps"):
    return exact.gaussian([0.7, -0.4], [[0.5, 0.2], [0.2, 0.3]], schedule, prediction)


def points(n=5, dim=1, seed=0, dtype=torch.float64):
    """n reproducible start states of unit scale."""
    draws = np.random.default_rng(seed).standard_normal((n, dim))
    return torch.as_tensor(draws, dtype=dtype)


def spread(n=6):
    """n points spread over the 1-D mixture."""
    return torch.linspace(-2.2, 2.4, n, dtype=torch.float64)[:, None]


class Timeless(torch.nn.Module):
    """A layer that is asked at any time."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, t):
        return self.layer(x)


class Counting:
    """A network that counts its calls and their rows, and remembers the times it was given."""

    def __init__(self, net=lambda x, t, **cond: torch.tanh(x)):
        self.net, self.calls, self.rows, self.times = net, 0, 0, []

    def __call__(self, x, t, **cond):
        self.calls += 1
        self.rows += x.shape[0]
        self.times.append(t)
        return self.net(x, t, **cond)
