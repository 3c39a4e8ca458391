"""Tiny pipelines of flow matching without guidance, what they hand to their network, and the same network
asked through ``load``."""

import functools
import inspect

import torch
from peers import load as peer
from peers import quiet
from tiny_pipelines import (
    DYNAMIC,
    TINY,
    _build,
    _flow,
    _vae,
    embedding,
    run_pipeline,
)

import ddim_ode

SIDE = dict(height=64, width=64)  # in pixels: without a VAE eight of them make one of a latent
MASK = torch.tensor([[True, True, True, True, False]])
PACKED = dict(num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2)
ROPE = dict(joint_attention_dim=8, axes_dims_rope=(2, 2, 4))
NULL = dict(negative_prompt_embeds=embedding(1, 5, 8, seed=4))


def _pipe(name, **parts):
    """A pipeline of those parts; it has no others."""
    cls = getattr(peer("diffusers"), name)
    wanted = [key for key in inspect.signature(cls.__init__).parameters if key != "self"]
    plain = ("force_zeros_for_empty_prompt", "is_distilled", "patch_size")
    kept = {key: parts.get(key) for key in wanted if key in parts or key not in plain}
    return cls(**kept)


def _text(*shape, **call):
    return dict(prompt_embeds=embedding(*(shape or (1, 5, 8))), output_type="latent", **SIDE) | call


def flux2(d):
    net = _build(
        d.Flux2Transformer2DModel,
        **dict(in_channels=16, timestep_guidance_channels=8, axes_dims_rope=(2, 2, 2, 2)),
        **PACKED | dict(joint_attention_dim=8),
    )
    return _pipe("Flux2Pipeline", transformer=net, scheduler=_flow(d, **DYNAMIC)), _text()


def chroma(d):
    net = _build(
        d.ChromaTransformer2DModel,
        **dict(in_channels=16, approximator_hidden_dim=8, approximator_num_channels=8),
        **PACKED | ROPE | dict(approximator_layers=1),
    )
    mask = torch.ones(1, 5).bool()
    call = _text(guidance_scale=1.0, prompt_attention_mask=mask)
    return _pipe("ChromaPipeline", transformer=net, scheduler=_flow(d, **DYNAMIC)), call


def longcat_image(d):
    net = _build(d.LongCatImageTransformer2DModel, in_channels=64, **PACKED | ROPE)
    call = _text(guidance_scale=1.0, enable_prompt_rewrite=False) | dict(prompt="a cat")
    pipe = _pipe("LongCatImagePipeline", transformer=net, scheduler=_flow(d, **DYNAMIC))
    words = call.pop("prompt_embeds")  # which it takes, and then asks how long prompt=None is
    pipe._encode_prompt = lambda prompt: words
    return pipe, call


def ovis_image(d):
    net = _build(d.OvisImageTransformer2DModel, in_channels=16, out_channels=16, **PACKED | ROPE)
    pipe = _pipe("OvisImagePipeline", transformer=net, scheduler=_flow(d, **DYNAMIC))
    return pipe, _text(guidance_scale=1.0)


def krea2(d):
    net = _build(
        d.Krea2Transformer2DModel,
        **dict(in_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=2),
        **dict(num_key_value_heads=1, intermediate_size=16, timestep_embed_dim=8),
        **dict(text_hidden_dim=8, num_text_layers=2, text_num_attention_heads=2),
        **dict(text_num_key_value_heads=2, text_intermediate_size=8, axes_dims_rope=(4, 2, 2)),
        **dict(num_layerwise_text_blocks=1, num_refiner_text_blocks=1),
    )
    call = _text(1, 5, 2, 8, guidance_scale=0.0, prompt_embeds_mask=MASK)
    return _pipe("Krea2Pipeline", transformer=net, scheduler=_flow(d, **DYNAMIC)), call


def lumina(d):
    net = _build(
        d.LuminaNextDiT2DModel,
        **dict(sample_size=8, hidden_size=32, num_layers=1, num_attention_heads=2),
        **dict(num_kv_heads=1, multiple_of=8, cross_attention_dim=8),
    )
    mask = torch.ones(1, 5).long()
    call = _text(guidance_scale=1.0, prompt_attention_mask=mask, proportional_attn=False)
    return _pipe("LuminaPipeline", transformer=net, scheduler=_flow(d, 4.0)), call


def hidream(d):
    net = _build(
        d.HiDreamImageTransformer2DModel,
        **dict(patch_size=2, in_channels=4, out_channels=4, caption_channels=[8, 8]),
        **dict(text_emb_dim=8, num_routed_experts=2, num_activated_experts=1),
        **dict(axes_dims_rope=(2, 2, 4), max_resolution=(8, 8), llama_layers=[0, 1]),
        **PACKED,
    )
    call = _text(guidance_scale=0.0, prompt_embeds_t5=embedding(1, 5, 8), **SIDE)
    del call["prompt_embeds"]
    call |= dict(prompt_embeds_llama3=embedding(2, 1, 5, 8), pooled_prompt_embeds=embedding(1, 8))
    return _pipe("HiDreamImagePipeline", transformer=net, scheduler=_flow(d)), call


def nucleus(d):
    net = _build(
        d.NucleusMoEImageTransformer2DModel,
        **dict(in_channels=16, out_channels=4, num_layers=2, attention_head_dim=8),
        **dict(num_attention_heads=2, moe_enabled=False, capacity_factors=[2.0, 2.0]),
        **ROPE,
    )
    call = _text(guidance_scale=1.0, prompt_embeds_mask=MASK.long())
    return _pipe("NucleusMoEImagePipeline", transformer=net, scheduler=_flow(d, **DYNAMIC)), call


def mochi(d):
    net = _build(
        d.MochiTransformer3DModel,
        **dict(in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2),
        **dict(pooled_projection_dim=8, text_embed_dim=8, time_embed_dim=8),
    )
    call = _text(guidance_scale=1.0, num_frames=7, prompt_attention_mask=MASK)
    scheduler = _flow(d, 1.0, invert_sigmas=True)
    return _pipe("MochiPipeline", transformer=net, scheduler=scheduler), call


def sana_video(d):
    net = _build(
        d.SanaVideoTransformer3DModel,
        **dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12),
        **dict(num_layers=1, num_cross_attention_heads=2, cross_attention_head_dim=12),
        **dict(cross_attention_dim=24, caption_channels=8, rope_max_seq_len=32),
    )
    call = _text(guidance_scale=1.0, frames=5, prompt_attention_mask=MASK.long())
    call |= dict(use_resolution_binning=False, negative_prompt=None)
    return _pipe("SanaVideoPipeline", transformer=net, scheduler=_flow(d, 8.0)), call


def skyreels(d):
    net = _build(
        d.SkyReelsV2Transformer3DModel,
        **dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12),
        **dict(in_channels=4, out_channels=4, text_dim=8, freq_dim=16, ffn_dim=16),
        **dict(num_layers=1, rope_max_seq_len=32),
    )
    call = _text(guidance_scale=1.0, num_frames=5)
    return _pipe("SkyReelsV2Pipeline", transformer=net, scheduler=_flow(d, 8.0)), call


def cogview4(d):
    """A network that is told the time before the shift, which its pipeline alone does."""
    return _build(
        d.CogView4Transformer2DModel,
        **dict(in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8),
        **dict(num_attention_heads=2, text_embed_dim=8, time_embed_dim=8, condition_dim=4),
        **dict(pos_embed_max_size=8, sample_size=8, rope_axes_dim=(8, 8)),
    )


def bria(d):
    net = _build(
        d.BriaTransformer2DModel,
        **PACKED | dict(in_channels=16, joint_attention_dim=8, axes_dims_rope=[2, 2, 4]),
    )
    pipe = _pipe("BriaPipeline", transformer=net, scheduler=_flow(d, **DYNAMIC), vae=_vae(d))
    return pipe, _text(guidance_scale=1.0)


def prx(d):
    net = _build(
        d.PRXTransformer2DModel,
        **dict(in_channels=4, context_in_dim=8, hidden_size=16, num_heads=2, depth=1),
        **dict(axes_dim=[4, 4], mlp_ratio=1.0),
    )
    pipe = _pipe("PRXPipeline", transformer=net, scheduler=_flow(d), default_sample_size=64)
    call = _text(guidance_scale=1.0, prompt_attention_mask=MASK, use_resolution_binning=False)
    return pipe, call


def ernie(d):
    net = _build(
        d.ErnieImageTransformer2DModel,
        **dict(hidden_size=16, num_attention_heads=2, num_layers=1, ffn_hidden_size=16),
        **dict(in_channels=16, out_channels=16, text_in_dim=8, rope_axes_dim=(2, 2, 4)),
    )
    pipe = _pipe("ErnieImagePipeline", transformer=net, scheduler=_flow(d, 4.0))
    call = _text(guidance_scale=1.0, use_pe=False) | dict(prompt_embeds=[embedding(5, 8)])
    return pipe, call


def hunyuan15(d):
    net = _build(
        d.HunyuanVideo15Transformer3DModel,
        **dict(in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8),
        **dict(num_layers=1, num_refiner_layers=1, text_embed_dim=8, text_embed_2_dim=8),
        **dict(image_embed_dim=8, rope_axes_dim=(2, 2, 4), target_size=64, task_type="t2v"),
    )
    guider = d.ClassifierFreeGuidance(guidance_scale=1.0)
    vae = _build(
        d.AutoencoderKLHunyuanVideo15,
        **dict(latent_channels=4, block_out_channels=(4,) * 5, layers_per_block=1),
    )
    parts = dict(transformer=net, scheduler=_flow(d), guider=guider, vae=vae)
    pipe = _pipe("HunyuanVideo15Pipeline", **parts)
    mask = torch.ones(1, 5).long()
    call = _text(num_frames=5, prompt_embeds_mask=mask, prompt_embeds_mask_2=mask)
    return pipe, call | dict(prompt_embeds_2=embedding(1, 5, 8, seed=5))


HERE = dict(
    **dict(Flux2=flux2, Chroma=chroma, LongCatImage=longcat_image, OvisImage=ovis_image),
    **dict(Krea2=krea2, Lumina=lumina, HiDreamImage=hidream, NucleusMoEImage=nucleus),
    **dict(Mochi=mochi, SanaVideo=sana_video, SkyReelsV2=skyreels),
    **dict(Bria=bria, PRX=prx, ErnieImage=ernie, HunyuanVideo15=hunyuan15),
)
THERE = (
    *("StableDiffusion3Pipeline", "FluxPipeline", "QwenImagePipeline", "WanPipeline"),
    *("LTXPipeline", "SanaPipeline", "Lumina2Pipeline", "AuraFlowPipeline"),
    *("ZImagePipeline", "HunyuanVideoPipeline"),
)


@functools.cache
def tiny(name):
    """(pipe, call) without guidance by two branches: its network is called once a step."""
    if name in HERE:
        with quiet():
            pipe, call = HERE[name](peer("diffusers"))
        pipe.set_progress_bar_config(disable=True)
        return pipe, call
    pipe, call = TINY[name]()
    if "true_cfg_scale" in call:
        call["true_cfg_scale"] = 1.0
    elif name not in ("FluxPipeline", "HunyuanVideoPipeline"):  # it is an input of theirs
        call["guidance_scale"] = 0.0 if name == "ZImagePipeline" else 1.0
    return pipe, call


def network_of(pipe):
    return getattr(pipe, "transformer", None) or pipe.unet


def recipe(pipe, call, steps=3):
    """The pipeline's own run, the arguments of its network's first call, and those of ``set_timesteps``."""
    net, calls, asked = network_of(pipe), [], []
    names = list(inspect.signature(net.forward).parameters)
    hook = net.register_forward_pre_hook(
        lambda module, args, options: calls.append({**dict(zip(names, args)), **options}),
        with_kwargs=True,
    )
    of_steps = pipe.scheduler.set_timesteps
    takes = inspect.signature(of_steps)

    @functools.wraps(of_steps)
    def set_timesteps(*args, **options):
        asked.append(takes.bind(*args, **options).arguments)
        return of_steps(*args, **options)

    pipe.scheduler.set_timesteps = set_timesteps
    try:
        visited = run_pipeline(pipe, call, steps)
    finally:
        hook.remove()
        del pipe.scheduler.set_timesteps
    assert len(calls) == len(visited) == steps, (len(calls), len(visited))
    return visited, calls[0], asked[-1]


def end_of(model, visited, told, grid):
    """Where Euler takes the pipeline's start on those levels, under its network's conditions."""
    first = next(iter(inspect.signature(model.net.model.forward).parameters))
    drop = {first, "timestep", "timesteps", "t", "return_dict"}
    shared = {name: value for name, value in told.items() if name not in drop and value is not None}
    state, channels = told[first], visited[0].shape[1]
    if not isinstance(state, list) and state.ndim > 3 and state.shape[1] > channels:
        shared["concat"] = state[:, channels:]  # what stands beside it
    return ddim_ode.sample(model, visited[0], "ddim", grid=grid, shared=shared).x
