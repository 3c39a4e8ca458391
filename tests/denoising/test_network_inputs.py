"""What of a network's input is the state: its channels, its axes, the shape of one sample."""

import inspect

import pytest
import torch
from peers import load as peer
from peers import quiet
from refusals import expect, sample
from tiny_pipelines import start, text_unet, unet

import ddim_ode
from ddim_ode.interop.diffusers import load


def scheduler(**options):
    return peer("diffusers").DDPMScheduler(clip_sample=False, **options)


# -- channels ---------------------------------------------------------------------------------
def upscaler(channels=6, out=6, told=True):
    """A super-resolution stage: the small picture in half of the channels, its noise as a class."""
    return text_unet(
        in_channels=channels, out_channels=out, class_embed_type="timestep" if told else None
    )


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
@pytest.mark.parametrize(("told", "kind"), [(True, text_unet), (False, text_unet), (False, unet)])
def test_half_of_the_inputs_are_a_condition_where_a_variance_is_learned(variance, told, kind):
    net = upscaler(told=told) if kind is text_unet else unet(in_channels=6, out_channels=6)
    model = load(net, scheduler(variance_type=variance))
    assert (model.channels, model.shape, model.learned_variance) == (3, (3, 8, 8), "split")
    assert "concat" in model.needs


def test_half_of_the_inputs_may_be_a_condition():
    why = "6 channels into 6, and by its class_embed_type='timestep'"
    expect(lambda: load(upscaler(), scheduler(variance_type="fixed_small")), why)


BESIDE = [(9, 4), (7, 4), (6, 3), (33, 16), (4, 3)]


@pytest.mark.parametrize(("channels", "out"), BESIDE)
def test_what_goes_in_beside_the_state_is_a_condition(channels, out):
    """Against the network asked by hand."""
    groups = 4
    net = text_unet(in_channels=channels, out_channels=out, norm_num_groups=groups).eval()
    model = load(net, scheduler())
    assert (model.channels, model.shape) == (out, (out, 8, 8))
    x, more = start(2, out), start(2, channels - out, seed=2)
    words = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    cond = dict(concat=more, encoder_hidden_states=words)
    eps = model(x, model.schedule.sigma(500.0), cond=cond)[1]
    expected = net(torch.cat([x, more], 1), torch.tensor([499.0] * 2), words).sample
    torch.testing.assert_close(eps, expected)
    expect(lambda: model(x, 1.0, cond=dict(encoder_hidden_states=words)), "needs concat")
    wrong = dict(cond, concat=more[:, :, :4])
    expect(lambda: model(x, 1.0, cond=wrong), rf"concat.* beside x of .* {channels - out} more")
    expect(lambda: model(torch.cat([x, more], 1), 1.0, cond=cond), f"the network takes {out}")


@pytest.mark.parametrize(
    ("channels", "out", "variance"),
    [(4, 5, "fixed_small"), (4, 5, "learned"), (9, 4, "learned"), (33, 16, "learned_range")],
)
def test_channels_that_come_out_otherwise_are_named(channels, out, variance):
    net = text_unet(in_channels=channels, out_channels=out)
    message = rf"{channels} channels into {out}, so others .*torch\.cat"
    expect(lambda: load(net, scheduler(variance_type=variance)), message)


@pytest.mark.filterwarnings("ignore:variance_type")  # of an odd number no half can be a condition
@pytest.mark.parametrize(
    ("channels", "out", "variance"),
    [
        (3, 3, "learned_range"),
        (3, 6, "learned_range"),
        (3, 6, "fixed_small"),
        (6, 6, "fixed_small"),
    ],
)
def test_channels_that_are_all_the_states_are_taken(channels, out, variance):
    model = load(unet(in_channels=channels, out_channels=out), scheduler(variance_type=variance))
    assert model.shape == (channels, 8, 8)
    assert model.learned_variance == ("split" if out > channels else None)


def test_the_way_out_is_the_upscalers_own_answer():
    """As the message has it, against the network asked by hand."""
    torch.manual_seed(0)
    net, schedule = upscaler().eval(), ddim_ode.schedules.cosine()
    shared = dict(encoder_hidden_states=torch.randn(2, 4, 8), class_labels=torch.zeros(2))

    def own(x, t, c, **others):
        return net(torch.cat([x, c], 1), t, return_dict=False, **others)[0]

    model = ddim_ode.Denoiser(own, schedule, time_offset=-1.0, learned_variance="split")
    x, c = start(2, 3), start(2, 3, seed=2)
    eps = model(x, schedule.sigma(500.0), cond=dict(c=c), shared=shared)[1]
    expected = net(torch.cat([x, c], 1), torch.tensor([499.0] * 2), **shared).sample[:, :3]
    torch.testing.assert_close(eps, expected)


# -- a variance on whichever axis the channels have -------------------------------------------
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((5, 3), -1), ((2, 3, 4, 4), 2), ((3, 4, 4), 1), ((3, 2, 4, 4), 1), ((7,), 1)],
)
def test_a_learned_variance_is_split_off_the_axis_of_the_channels(shape, axis):
    def own(x, t):
        return torch.tanh(x) * 0.5

    def both(x, t):
        return torch.cat([own(x, t), 100 * x], axis)

    def model(net, kind="split"):
        return ddim_ode.Denoiser(net, ddim_ode.schedules.cosine(), learned_variance=kind)

    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    pair = (model(own, None), model(both))
    assert torch.equal(*(ddim_ode.sample(m, x, "heun", steps=3).x for m in pair))
    message = "Twice the channels is a learned variance"
    expect(sample(model(both, None), x, steps=1), message)
    third = model(lambda x, t: torch.cat([x] * 3, axis))
    expect(sample(third, x, steps=1), "the network returned shape")


# -- axes -------------------------------------------------------------------------------------


def nets():
    """{class: (its options, axes of one sample, shape as far as the options tell, a state)}."""
    small = dict(in_channels=4, num_layers=1, num_attention_heads=2)
    transformer = dict(small, attention_head_dim=8, out_channels=4, patch_size=2)
    cross = dict(
        in_channels=4, out_channels=4, sample_size=8, block_out_channels=(8, 8), norm_num_groups=4,
        layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip

    def blocks(kind):
        down = (f"CrossAttnDownBlock{kind}", f"DownBlock{kind}")
        up = (f"UpBlock{kind}", f"CrossAttnUpBlock{kind}")
        return dict(cross, down_block_types=down, up_block_types=up)

    cog = dict(
        transformer, time_embed_dim=2, text_embed_dim=8, sample_width=10, sample_height=8,
        sample_frames=9, temporal_compression_ratio=4, max_text_seq_length=8,
    )  # fmt: skip
    latte = dict(
        transformer, sample_size=8, norm_type="ada_norm_single", caption_channels=8,
        cross_attention_dim=16, video_length=3,
    )  # fmt: skip
    one = dict(
        sample_size=16, in_channels=2, out_channels=2, block_out_channels=(8,), layers_per_block=1,
        down_block_types=("DownBlock1D",), up_block_types=("UpBlock1D",),
        mid_block_type="UNetMidBlock1D", extra_in_channels=16,
    )  # fmt: skip
    flux = dict(
        small, num_single_layers=0, attention_head_dim=8, joint_attention_dim=8,
        pooled_projection_dim=8, axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    wan = dict(small, out_channels=4, attention_head_dim=12, text_dim=8, freq_dim=8, ffn_dim=8)
    return dict(
        UNet3DConditionModel=(blocks("3D"), "CFHW", None, (4, 3, 8, 8)),
        UNetMotionModel=(blocks("Motion"), "CFHW", None, (4, 3, 8, 8)),
        CogVideoXTransformer3DModel=(cog, "FCHW", (3, 4, 8, 10), (3, 4, 8, 10)),
        LatteTransformer3DModel=(latte, "CFHW", (4, 3, 8, 8), (4, 3, 8, 8)),
        UNet1DModel=(one, "CL", (2, 16), (2, 16)),
        FluxTransformer2DModel=(flux, "LC", None, (6, 4)),
        WanTransformer3DModel=(wan, "CFHW", None, (4, 1, 4, 4)),
    )


@pytest.mark.parametrize("name", list(nets()))
def test_the_axes_of_a_sample_are_the_networks(name):
    options, axes, shape, state = nets()[name]
    cls = getattr(peer("diffusers"), name)
    known = inspect.signature(cls.__init__).parameters
    with quiet():
        net = cls(**{key: value for key, value in options.items() if key in known})
    model = load(net, scheduler())
    assert (model.axes, model.shape) == (axes, shape)
    if model.shape is None:
        named = "give shape=, of ONE sample"
        if axes:
            named += rf".*axes are \({', '.join(axes)}\)"
        expect(lambda: ddim_ode.diagnose(model), named)
        expect(lambda: ddim_ode.compare(model, ["ddim"], nfe=[2], n=2), named)
    model.needs = frozenset()  # only what is x matters here
    x, channels = torch.zeros(2, *state), model.channels
    model.network(x)
    wrong = torch.zeros(2, *(size + 5 if size == channels else size for size in state))
    named = f"{channels + 5} channels" if axes else f"no axis of it has the {channels} channels"
    expect(lambda: model.network(wrong), named)
    if axes:
        named = rf"the network takes \(B, {', '.join(axes)}\)"
        expect(lambda: model.network(x[..., None]), named)


def test_a_video_networks_samples_are_its_own():
    """(B, F, C, H, W) through load and sample, against the network asked by hand."""
    options, _, _, state = nets()["CogVideoXTransformer3DModel"]
    torch.manual_seed(0)
    with quiet():
        net = peer("diffusers").CogVideoXTransformer3DModel(**options).eval()
        theirs = peer("diffusers").DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    words = torch.randn(2, 8, 8)
    x = torch.randn(2, *state)
    model = load(net, theirs)
    cond = dict(encoder_hidden_states=words)
    ours = ddim_ode.sample(model, x, "ddim", steps=4, grid="trailing", cond=cond).x
    theirs.set_timesteps(4)
    with torch.no_grad():
        for t in theirs.timesteps:
            out = net(x, timestep=t.expand(2), encoder_hidden_states=words).sample
            x = theirs.step(out, t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(sample_frames=0), "sample_frames .*=0 must be a whole number"),
        (dict(sample_frames="all"), "sample_frames .*='all'"),
        (dict(temporal_compression_ratio=2.5), "temporal_compression_ratio .*=2.5"),
        (dict(in_channels=None), "in_channels .*=None must be a whole number"),
    ],
)
def test_sizes_gone_wrong(change, match):
    class Net(torch.nn.Module):
        def forward(self, x, timestep):
            return (x,)

    net = Net()
    net.config = dict(in_channels=4, sample_frames=9, sample_height=8, sample_width=8)
    net.config |= dict(temporal_compression_ratio=4) | change
    expect(lambda: load(net, scheduler()), match)
