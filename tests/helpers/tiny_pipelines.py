"""Small diffusers models, made here, trained here, saved and loaded from disk."""

import functools
import pickle
from types import SimpleNamespace

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
        **dict(sample_size=SIDE, in_channels=1, out_channels=1, block_out_channels=(8,)),
        **dict(norm_num_groups=4, layers_per_block=1, add_attention=False),
        **dict(down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)),
    )
    return diffusers.UNet2DModel(**config | options)


def text_unet(**options):
    """A UNet2DConditionModel that reads three embeddings of eight entries."""
    diffusers = load("diffusers")
    torch.manual_seed(0)
    config = dict(
        **dict(sample_size=SIDE, in_channels=2, out_channels=2, block_out_channels=(8,)),
        **dict(norm_num_groups=4, layers_per_block=1, cross_attention_dim=8, attention_head_dim=4),
        **dict(down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",)),
    )
    return diffusers.UNet2DConditionModel(**config | options)


def dit(**options):
    """A DiT with a learned variance and the 1000 classes its pipeline counts on.

    Its last layer starts at random here, not at zero, where nothing could be told apart.
    """
    diffusers = load("diffusers")
    torch.manual_seed(0)
    config = dict(
        **dict(num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=4),
        **dict(num_layers=1, sample_size=SIDE, patch_size=2),
        **dict(num_embeds_ada_norm=1000, norm_num_groups=4),
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
    scheduler = ddim(betas, prediction)
    return train(unet(), scheduler), scheduler


def ddim(betas, prediction="epsilon"):
    """Their DDIM of these, which clips nothing."""
    return load("diffusers").DDIMScheduler(
        **dict(beta_schedule=betas, prediction_type=prediction, timestep_spacing="trailing"),
        **dict(BETAS[betas], clip_sample=False),
    )


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


def off(x, goal):
    """The largest difference, relative to the largest entry."""
    return float((x - goal).abs().max() / goal.abs().max())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


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


# -- whole pipelines ---------------------------------------------------------------------------
# Real classes, small enough for a run of some steps in a fraction of a second. Each entry makes
# (pipe, call): an unmodified pipeline without text encoders, and arguments of its call in their place; it
# ends at the latents where the class can. TINY_FLOW are those of flow matching, TINY_VP of variance
# preserving diffusion, TINY_EDM the rest.
TINY, TINY_FLOW, TINY_VP, TINY_EDM = {}, set(), set(), set()
DYNAMIC = dict(
    **dict(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
    **dict(base_image_seq_len=256, max_image_seq_len=4096),
)
SMALL_CAUSAL_VAE = dict(
    **dict(z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
    temperal_downsample=[False, True, True],
    **dict(latents_mean=[0.1, -0.1, 0.0, 0.2], latents_std=[1.0, 1.1, 0.9, 1.0]),
)


def _tiny(kind):
    def register(build):
        @functools.wraps(build)
        def made():
            with quiet():
                pipe, call = build(load("diffusers"))
            pipe.set_progress_bar_config(disable=True)
            return pipe, call

        TINY[build.__name__] = made
        kind.add(build.__name__)
        return made

    return register


def alive(model):
    """The model in evaluation mode, with random numbers where its weights start at zero: a network of zeros
    hides a wrong time, sign and condition."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model.eval().requires_grad_(False)


def _build(cls, **config):
    torch.manual_seed(0)
    return alive(cls(**config))


def embedding(*shape, seed=3):
    """What a text encoder would hand over."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(side=16):
    """An image (1, 3, side, side) in [0, 1]."""
    return torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(7))


def _prompts(scale=3.0, side=16, masked=False, pooled=False):
    call = dict(
        prompt_embeds=embedding(1, 5, 8),
        negative_prompt_embeds=embedding(1, 5, 8, seed=4),
        guidance_scale=scale,
        output_type="latent",
    )
    if side:
        call |= dict(height=side, width=side)
    if masked:
        mask = torch.tensor([[1, 1, 1, 1, 0]])
        call |= dict(prompt_attention_mask=mask, negative_prompt_attention_mask=mask)
    if pooled:
        call |= dict(
            pooled_prompt_embeds=embedding(1, 8),
            negative_pooled_prompt_embeds=embedding(1, 8, seed=6),
        )
    return call


def _vae(d, latent=4):
    return _build(
        d.AutoencoderKL,
        **dict(latent_channels=latent, block_out_channels=(4, 4), norm_num_groups=2),
        **dict(down_block_types=("DownEncoderBlock2D",) * 2, sample_size=16),
        **dict(up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5, shift_factor=0.1),
    )


def _text_unet(d, **options):
    config = dict(
        **dict(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **dict(cross_attention_dim=8, attention_head_dim=4),
    )
    return _build(d.UNet2DConditionModel, **config | options)


def _flow(d, shift=3.0, **config):
    return d.FlowMatchEulerDiscreteScheduler(shift=shift, **config)


@_tiny(TINY_VP)
def DDPMPipeline(d):
    scheduler = d.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    pipe = d.DDPMPipeline(alive(unet()), scheduler)
    return pipe, dict(batch_size=2, output_type="pt")


@_tiny(TINY_VP)
def DiTPipeline(d):
    pipe = d.DiTPipeline(alive(dit()), _vae(d, 2), ddim("scaled_linear"))
    return pipe, dict(class_labels=[1, 2], output_type="np")


def _stable_diffusion(d, name, unet, *more):
    cls = getattr(d, name)
    scheduler = ddim("scaled_linear")
    return cls(_vae(d), None, None, unet, *more, scheduler, None, None, None, False)


@_tiny(TINY_VP)
def StableDiffusionPipeline(d):
    return _stable_diffusion(d, "StableDiffusionPipeline", _text_unet(d)), _prompts()


@_tiny(TINY_VP)
def StableDiffusionXLPipeline(d):
    net = _text_unet(
        d,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
    )
    parts = _vae(d), None, None, None, None, net, ddim("scaled_linear")
    pipe = d.StableDiffusionXLPipeline(*parts, add_watermarker=False)
    return pipe, _prompts(pooled=True)


@_tiny(TINY_VP)
def StableDiffusionImg2ImgPipeline(d):
    pipe = _stable_diffusion(d, "StableDiffusionImg2ImgPipeline", _text_unet(d))
    return pipe, _prompts(side=None) | dict(image=picture(), strength=0.6)


@_tiny(TINY_VP)
def StableDiffusionInpaintPipeline(d):
    """Of a network that was trained for it, and sees mask and picture beside the state."""
    net = _text_unet(d, in_channels=9)
    pipe = _stable_diffusion(d, "StableDiffusionInpaintPipeline", net)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    return pipe, _prompts() | dict(image=picture(), mask_image=mask)


@_tiny(TINY_VP)
def StableDiffusionControlNetPipeline(d):
    net = _text_unet(d)
    control = d.ControlNetModel.from_unet(net, conditioning_embedding_out_channels=(4, 4))
    pipe = _stable_diffusion(d, "StableDiffusionControlNetPipeline", net, alive(control))
    return pipe, _prompts() | dict(image=picture())


def _sd3(d, name):
    net = _build(
        d.SD3Transformer2DModel,
        **dict(sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2),
        **dict(attention_head_dim=4, num_attention_heads=2, joint_attention_dim=8),
        **dict(caption_projection_dim=8, pooled_projection_dim=8, pos_embed_max_size=8),
    )
    return getattr(d, name)(net, _flow(d), _vae(d), *[None] * 6), _prompts(pooled=True)


@_tiny(TINY_FLOW)
def StableDiffusion3Pipeline(d):
    return _sd3(d, "StableDiffusion3Pipeline")


@_tiny(TINY_FLOW)
def StableDiffusion3Img2ImgPipeline(d):
    pipe, call = _sd3(d, "StableDiffusion3Img2ImgPipeline")
    return pipe, call | dict(image=picture(), strength=0.6)


def _flux(d, name):
    net = _build(
        d.FluxTransformer2DModel,
        **dict(patch_size=1, in_channels=16, num_layers=1, num_single_layers=1),
        **dict(attention_head_dim=8, num_attention_heads=2, axes_dims_rope=(2, 2, 4)),
        **dict(joint_attention_dim=8, pooled_projection_dim=8, guidance_embeds=True),
    )
    pipe = getattr(d, name)(_flow(d, **DYNAMIC), _vae(d), None, None, None, None, net)
    call = _prompts(3.5, pooled=True)
    return pipe, {key: value for key, value in call.items() if "negative" not in key}


@_tiny(TINY_FLOW)
def FluxPipeline(d):
    return _flux(d, "FluxPipeline")


@_tiny(TINY_FLOW)
def FluxImg2ImgPipeline(d):
    pipe, call = _flux(d, "FluxImg2ImgPipeline")
    return pipe, call | dict(image=picture(), strength=0.6)


@_tiny(TINY_FLOW)
def QwenImagePipeline(d):
    net = _build(
        d.QwenImageTransformer2DModel,
        **dict(patch_size=2, in_channels=16, out_channels=4, num_layers=1),
        **dict(attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8),
        axes_dims_rope=(2, 2, 4),
    )
    vae = _build(d.AutoencoderKLQwenImage, base_dim=4, **SMALL_CAUSAL_VAE)
    call = _prompts(side=32)
    del call["guidance_scale"]
    mask = torch.ones(1, 5).long()
    call |= dict(prompt_embeds_mask=mask, negative_prompt_embeds_mask=mask, true_cfg_scale=3.0)
    return d.QwenImagePipeline(_flow(d, 1.0, **DYNAMIC), vae, None, None, net), call


@_tiny(TINY_FLOW)
def WanPipeline(d):
    net = _build(
        d.WanTransformer3DModel,
        **dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12),
        **dict(in_channels=4, out_channels=4, text_dim=8, freq_dim=16, ffn_dim=16),
        **dict(num_layers=1, rope_max_seq_len=32),
    )
    vae = _build(d.AutoencoderKLWan, base_dim=4, **SMALL_CAUSAL_VAE)
    return d.WanPipeline(None, None, vae, _flow(d, 5.0), net), _prompts(side=32) | dict(
        num_frames=5
    )


@_tiny(TINY_FLOW)
def LTXPipeline(d):
    net = _build(
        d.LTXVideoTransformer3DModel,
        **dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8),
        **dict(cross_attention_dim=16, num_layers=1, caption_channels=8),
    )
    vae = _build(
        d.AutoencoderKLLTXVideo,
        **dict(latent_channels=4, block_out_channels=(4,) * 4, patch_size=1),
        **dict(decoder_block_out_channels=(4,) * 4, layers_per_block=(1,) * 5),
        **dict(decoder_layers_per_block=(1,) * 5),
    )
    scheduler = _flow(d, 1.0, shift_terminal=0.1, **DYNAMIC)
    pipe = d.LTXPipeline(scheduler, vae, None, None, net)
    return pipe, _prompts(side=64, masked=True) | dict(num_frames=9)


@_tiny(TINY_FLOW)
def SanaPipeline(d):
    net = _build(
        d.SanaTransformer2DModel,
        **dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=4),
        **dict(num_layers=1, num_cross_attention_heads=2, cross_attention_head_dim=4),
        **dict(cross_attention_dim=8, caption_channels=8, sample_size=8),
    )
    vae = _build(
        d.AutoencoderDC,
        **dict(in_channels=3, latent_channels=4, attention_head_dim=2),
        **dict(encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4)),
        **dict(encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1)),
        **dict(encoder_block_types="ResBlock", decoder_block_types="ResBlock"),
        **dict(downsample_block_type="conv", upsample_block_type="interpolate"),
    )
    pipe = d.SanaPipeline(None, None, vae, net, _flow(d))
    return pipe, _prompts(masked=True, side=32) | dict(
        use_resolution_binning=False, negative_prompt=None, complex_human_instruction=None
    )


@_tiny(TINY_FLOW)
def Lumina2Pipeline(d):
    net = _build(
        d.Lumina2Transformer2DModel,
        **dict(sample_size=8, in_channels=4, hidden_size=24, num_layers=1),
        **dict(num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=8),
        **dict(axes_dim_rope=(4, 4, 4), axes_lens=(32, 32, 32), cap_feat_dim=8),
    )
    call = _prompts(side=32, masked=True)
    return d.Lumina2Pipeline(net, _flow(d, 6.0), _vae(d), None, None), call


@_tiny(TINY_FLOW)
def AuraFlowPipeline(d):
    net = _build(
        d.AuraFlowTransformer2DModel,
        **dict(sample_size=8, in_channels=4, out_channels=4, num_mmdit_layers=1),
        **dict(num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2),
        **dict(joint_attention_dim=8, caption_projection_dim=16, pos_embed_max_size=64),
    )
    pipe = d.AuraFlowPipeline(None, None, _vae(d), net, _flow(d, 1.73))
    return pipe, _prompts(masked=True)


@_tiny(TINY_FLOW)
def ZImagePipeline(d):
    net = _build(
        d.ZImageTransformer2DModel,
        **dict(in_channels=4, dim=24, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2),
        **dict(cap_feat_dim=8, axes_dims=[4, 4, 4], axes_lens=[64, 32, 32]),
    )
    lists = {name: [embedding(5, 8)] for name in ("prompt_embeds", "negative_prompt_embeds")}
    pipe = d.ZImagePipeline(_flow(d), _vae(d), None, None, net)
    return pipe, _prompts() | lists


@_tiny(TINY_FLOW)
def HunyuanVideoPipeline(d):
    net = _build(
        d.HunyuanVideoTransformer3DModel,
        **dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8),
        **dict(num_layers=1, num_single_layers=1, num_refiner_layers=1, text_embed_dim=8),
        **dict(pooled_projection_dim=8, rope_axes_dim=(2, 2, 4)),
    )
    vae = _build(
        d.AutoencoderKLHunyuanVideo,
        **dict(latent_channels=4, block_out_channels=(4,) * 4, norm_num_groups=2),
        **dict(layers_per_block=1, spatial_compression_ratio=4, mid_block_add_attention=False),
    )
    pipe = d.HunyuanVideoPipeline(None, None, net, vae, _flow(d, 7.0), None, None)
    call = _prompts(6.0, masked=True, pooled=True) | dict(num_frames=5)
    return pipe, {key: value for key, value in call.items() if "negative" not in key}


@_tiny(TINY_VP)
def CogVideoXPipeline(d):
    net = _build(
        d.CogVideoXTransformer3DModel,
        **dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4),
        **dict(time_embed_dim=8, text_embed_dim=8, num_layers=1, sample_width=8),
        **dict(sample_height=8, sample_frames=5, max_text_seq_length=5),
    )
    vae = _build(
        d.AutoencoderKLCogVideoX,
        **dict(latent_channels=4, block_out_channels=(4,) * 4, layers_per_block=1),
        **dict(down_block_types=("CogVideoXDownBlock3D",) * 4, norm_num_groups=2),
        **dict(up_block_types=("CogVideoXUpBlock3D",) * 4),
    )
    scheduler = d.CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
    )
    pipe = d.CogVideoXPipeline(None, None, vae, net, scheduler)
    return pipe, _prompts(side=64) | dict(num_frames=5)


@_tiny(TINY_EDM)
def StableAudioPipeline(d):
    """Its solver is of order 1 here, so that each step is Euler's."""
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    net = _build(
        d.StableAudioDiTModel,
        **dict(sample_size=8, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=4),
        **dict(num_attention_heads=2, num_key_value_attention_heads=1, cross_attention_dim=8),
        **dict(time_proj_dim=8, global_states_input_dim=16, cross_attention_input_dim=8),
    )
    vae = _build(
        d.AutoencoderOobleck,
        **dict(encoder_hidden_size=4, downsampling_ratios=[1, 2], channel_multiples=[1, 2]),
        **dict(decoder_channels=4, decoder_input_channels=4, sampling_rate=4),
    )
    seconds = dict(text_encoder_dim=8, conditioning_dim=8, min_value=0, max_value=32)
    scheduler = d.EDMDPMSolverMultistepScheduler(
        **dict(sigma_min=0.3, sigma_max=500.0, sigma_data=1.0, sigma_schedule="exponential"),
        **dict(prediction_type="v_prediction", solver_order=1),
    )
    projection = _build(StableAudioProjectionModel, **seconds)
    pipe = d.StableAudioPipeline(vae, None, projection, None, net, scheduler)
    mask = torch.ones(1, 5).long()
    return pipe, _prompts(side=None) | dict(
        attention_mask=mask, negative_attention_mask=mask, audio_end_in_s=2.0
    )


class _Eyes(torch.nn.Module):
    """In the place of CLIP's image encoder."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        self.row = torch.nn.Parameter(embedding(8), requires_grad=False)

    def forward(self, image):
        return SimpleNamespace(image_embeds=image.mean((1, 2, 3))[:, None] * self.row)


# Of Stable Video Diffusion's EulerDiscreteScheduler.
SVD = dict(
    **dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    **dict(timestep_type="continuous", prediction_type="v_prediction", steps_offset=1),
    **dict(timestep_spacing="leading", use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0),
)


@_tiny(TINY_EDM)
def StableVideoDiffusionPipeline(d):
    net = _build(
        d.UNetSpatioTemporalConditionModel,
        **dict(sample_size=8, in_channels=8, out_channels=4, num_frames=2),
        **dict(block_out_channels=(32, 32), num_attention_heads=(2, 2), cross_attention_dim=8),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        **dict(layers_per_block=1, addition_time_embed_dim=4),
        projection_class_embeddings_input_dim=12,
    )
    eyes = lambda images, **_: SimpleNamespace(pixel_values=images)  # noqa: E731
    scheduler = d.EulerDiscreteScheduler(**SVD)
    pipe = d.StableVideoDiffusionPipeline(_vae(d), _Eyes(), net, scheduler, eyes)
    return pipe, dict(
        **dict(image=picture(), height=16, width=16, num_frames=2, output_type="latent")
    )


class _Guard:
    """In the place of the pipeline's guard, which it does not run without."""

    def to(self, device):
        return self

    def check_text_safety(self, text):
        return True


def cosmos(sigma_data=1.0):
    """Cosmos' first pipeline, which guides x̂₀ and takes each step twice."""
    with quiet():
        d = load("diffusers")
        net = _build(
            d.CosmosTransformer3DModel,
            **dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16),
            **dict(num_layers=1, mlp_ratio=2, text_embed_dim=8, adaln_lora_dim=4),
            **dict(max_size=(4, 32, 32), patch_size=(1, 2, 2), extra_pos_embed_type="learnable"),
            concat_padding_mask=False,
        )
        vae = _build(
            d.AutoencoderKLCosmos,
            **dict(latent_channels=4, encoder_block_out_channels=(8, 8, 8, 8), num_layers=1),
            **dict(decode_block_out_channels=(8, 8, 8, 8), attention_resolutions=(8,)),
            **dict(resolution=64, patch_size=4, latents_mean=None, latents_std=None),
        )
        scheduler = d.EDMEulerScheduler(
            sigma_min=0.002, sigma_max=80.0, sigma_data=sigma_data, final_sigmas_type="sigma_min"
        )
        pipe = d.CosmosTextToWorldPipeline(None, None, net, vae, scheduler, _Guard())
    pipe.set_progress_bar_config(disable=True)
    call = _prompts(side=32) | dict(num_frames=9)
    return pipe, call


class Visited(list):
    """The states at which a pipeline's own run called ``scheduler.step``, ``times`` (network times as the
    scheduler counts them), and ``end``, the last state."""

    times: list
    end: torch.Tensor


def run_pipeline(pipe, call, steps=None, seed=0):
    """The pipeline's own run, see :class:`Visited`; its noise is that of the seed."""
    step, out = pipe.scheduler.step, Visited()
    out.times = []

    def listening(answer, t, x, *args, **options):
        made = step(answer, t, x, *args, **options)
        out.append(x)
        out.times.append(float(t))
        out.end = made[0]
        return made

    pipe.scheduler.step = listening
    generator = torch.Generator().manual_seed(seed)
    steps = {} if steps is None else dict(num_inference_steps=steps)
    try:
        with quiet():
            pipe(**call, **steps, generator=generator)
    finally:
        del pipe.scheduler.step
    return out
