"""Small diffusers models, made here, trained here, saved and loaded from disk."""

import functools
import pickle

import torch
from peers import load, quiet

import ddim_ode

SIDE, T = 8, 1000
EXPONENTIAL = dict(name="exponential", params=dict(rate=5.0, T=1000))
BETAS = dict(
    linear=dict(beta_start=1e-4, beta_end=0.02),
    scaled_linear=dict(beta_start=0.00085, beta_end=0.012),
    squaredcos_cap_v2={},
)


def unet(**options):
    """An unconditional UNet2DModel of one level."""
    diffusers = load("diffusers")
    torch.manual_seed(0)
    config = dict(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        add_attention=False,
    )
    return diffusers.UNet2DModel(**config | options)


def text_unet(**options):
    """A UNet2DConditionModel that reads three embeddings of eight entries."""
    diffusers = load("diffusers")
    torch.manual_seed(0)
    config = dict(
        sample_size=SIDE,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
    )
    return diffusers.UNet2DConditionModel(**config | options)


def dit(**options):
    """A DiT with a learned variance and the 1000 classes its pipeline counts on.

    Its last layer starts at random here, not at zero, where nothing could be told apart.
    """
    diffusers = load("diffusers")
    torch.manual_seed(0)
    config = dict(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=4,
        num_layers=1,
        sample_size=SIDE,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    return diffusers.DiTTransformer2DModel(**config | options).eval()


def images(n, generator):
    """A soft disc of random place and size on a dark ground, in [-1, 1]."""
    grid = torch.linspace(-1, 1, SIDE)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    u = torch.rand(n, 3, generator=generator)
    cx, cy, r = (u[:, i, None, None] for i in range(3))
    distance = torch.hypot(x - (cx - 0.5), y - (cy - 0.5))
    return 2 * torch.sigmoid((0.3 + 0.4 * r - distance) * 12)[:, None] - 1


def train(net, scheduler, steps=200, batch=8):
    """Adam on what the scheduler says the network predicts."""
    generator = torch.Generator().manual_seed(0)
    alpha = scheduler.alphas_cumprod.sqrt()[:, None, None, None]
    beta = (1 - scheduler.alphas_cumprod).sqrt()[:, None, None, None]
    optimizer = torch.optim.Adam(net.parameters(), 3e-3, fused=True)
    net.train()
    for _ in range(steps):
        x0 = images(batch, generator)
        eps = torch.randn(x0.shape, generator=generator)
        t = torch.randint(0, T, (batch,), generator=generator)
        target = dict(epsilon=eps, sample=x0, v_prediction=alpha[t] * eps - beta[t] * x0)[
            scheduler.config.prediction_type
        ]
        loss = (net(alpha[t] * x0 + beta[t] * eps, t).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


@functools.cache
def trained(betas, prediction):
    """A network of 200 steps and the scheduler it was trained with, made once for all tests that ask."""
    scheduler = load("diffusers").DDIMScheduler(
        beta_schedule=betas,
        **BETAS[betas],
        prediction_type=prediction,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    return train(unet(), scheduler), scheduler


def save(folder, net, scheduler, pipeline="DDPMPipeline"):
    """A pipeline's directory."""
    with quiet():
        getattr(load("diffusers"), pipeline)(net, scheduler).save_pretrained(folder)
    return folder


def ends(pipe, **call):
    """What a pipeline's scheduler hands over last: the latent, not the clamped picture."""
    out = []
    step = pipe.scheduler.step

    def listening(*args, **kwargs):
        made = step(*args, **kwargs)
        out.append(made[0])
        return made

    pipe.scheduler.step = listening
    pipe.set_progress_bar_config(disable=True)
    try:
        with quiet():
            pipe(output_type="pt", **call)
    finally:
        del pipe.scheduler.step
    return out


def start(n=3, channels=1, seed=1):
    """The noise a pipeline draws from that seed."""
    return torch.randn((n, channels, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))


def pickled(thing):
    """What comes back of it from a pickle."""
    return pickle.loads(pickle.dumps(thing))


def ours(**options):
    """A DDIMODEScheduler."""
    load("diffusers")
    from ddim_ode.interop.diffusers import DDIMODEScheduler

    return DDIMODEScheduler(**options)


def calibrated():
    """A fitted plan of the shipped model, whose schedule is continuous."""
    return ddim_ode.load("fashion-mnist").calibrated(6)


def with_plans(plans):
    """A scheduler of compiled plans, on the shipped model's schedule."""
    return type(ours()).from_plans(plans, ours(schedule=EXPONENTIAL).config)
