"""Guidance and limits on x̂₀: closed forms, what they cost, and that a solution says they were used."""

import json

import numpy as np
import pytest
import torch
from problems import COSINE, Counting, points
from refusals import expect

import ddim_ode
from ddim_ode import Denoiser, Guidance
from ddim_ode.solve.model_key import model_key

X = points(4, 3)
LABELS = torch.tensor([1, 3, 2, 1])
MEANS = torch.tensor(
    [[0.2, -0.1, 0.4], [1.0, 0.5, -0.7], [-0.8, 0.3, 0.9], [0.1, 1.4, -0.2]], dtype=torch.float64
)
VARIANCE = 0.36


def scales(sigma):
    return (torch.as_tensor(s)[:, None] for s in COSINE.scales(sigma.numpy()))


def gaussians(x, sigma, y):
    """ε̂ of N(MEANS[y], VARIANCE); y = 0 is the null class."""
    alpha, beta = scales(sigma)
    return beta * (x - alpha * MEANS[y]) / (alpha**2 * VARIANCE + beta**2)


def labelled(x, sigma, y):
    return torch.tanh(x + 0.4 * y[:, None] + 0.1 * torch.log(sigma)[:, None])


def denoiser(net=labelled, guidance=None, prediction="eps", **options):
    """A denoiser whose network is told σ itself."""
    return Denoiser(
        net, COSINE, prediction, time=lambda t, sigma: sigma, guidance=guidance, **options
    )


@pytest.mark.parametrize("scale", [0.0, 1.7, 4.0])
def test_guided_gaussians_flow_as_the_gaussian_of_the_extrapolated_mean(scale):
    # Of equal variance: ε_∅ + s(ε_c − ε_∅) is ε of the mean μ_∅ + s(μ_c − μ_∅), at every level.
    model = denoiser(gaussians, Guidance(scale, {"y": 0}))
    ends = dict(sigma_max=20.0, sigma_min=0.05, final="sigma_min")
    sol = ddim_ode.sample(model, X, "rk45", rtol=1e-9, atol=1e-9, cond={"y": LABELS}, **ends)
    for i, label in enumerate(LABELS):
        mean = MEANS[0] + scale * (MEANS[label] - MEANS[0])
        exact = ddim_ode.exact.gaussian(mean.numpy(), VARIANCE * np.eye(3), COSINE)
        torch.testing.assert_close(
            sol.x[i : i + 1], exact.flow(X[i : i + 1], 20.0, 0.05), atol=1e-7, rtol=0
        )


INTERVAL = (0.5, 6.0)


def by_hand(x, sigma, y):
    """Guidance of scale 3 in that interval, row by row."""
    inside = ((sigma > INTERVAL[0]) & (sigma <= INTERVAL[1]))[:, None]
    conditional, null = labelled(x, sigma, y), labelled(x, sigma, torch.zeros_like(y))
    return torch.where(inside, null + 3.0 * (conditional - null), conditional)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm3", "ab3", "unipc2"])
def test_outside_its_interval_guidance_is_the_conditional_network_at_half_the_rows(name):
    net = Counting(labelled)
    model = denoiser(net, Guidance(3.0, {"y": 0}, interval=INTERVAL))
    options = dict(method=name, steps=9, sigma_max=20.0, cond={"y": LABELS})
    sol = ddim_ode.sample(model, X, **options)
    expected = ddim_ode.sample(denoiser(by_hand), X, **options)
    torch.testing.assert_close(sol.x, expected.x, rtol=1e-12, atol=1e-13)
    guided = [INTERVAL[0] < node.sigma <= INTERVAL[1] for node in sol.plan.nodes]
    assert 0 < sum(guided) < len(guided)
    assert [len(t) for t in net.times] == [8 if inside else 4 for inside in guided]
    assert sol.net_evals == net.rows == 4 * (len(guided) + sum(guided))


@pytest.mark.parametrize("name", ["rk45", "bosh3", "torchdiffeq:dopri5", "scipy:RK45"])
def test_an_adaptive_solve_guides_each_sample_by_its_own_level(name):
    net = Counting(labelled)
    model = denoiser(net, Guidance(3.0, {"y": 0}, interval=INTERVAL))
    options = dict(method=name, rtol=1e-3, atol=1e-3, sigma_max=20.0, cond={"y": LABELS})
    sol = ddim_ode.sample(model, X, **options)
    torch.testing.assert_close(
        sol.x, ddim_ode.sample(denoiser(by_hand), X, **options).x, rtol=1e-10, atol=1e-12
    )
    assert sol.net_evals == net.rows
    assert net.calls * 4 < net.rows < net.calls * 8
    sizes = {len(t) for t in net.times}
    # Ours asks for the null rows of those samples alone that are inside at the time.
    assert (sizes - {4, 8} != set()) == (":" not in name)


def test_the_interval_contains_its_upper_end_and_not_its_lower():
    net = Counting(labelled)
    model = denoiser(net, Guidance(3.0, {"y": 0}, interval=(0.5, 2.0)))
    ddim_ode.sample(model, X, grid=[4.0, 2.0, 1.0, 0.5, 0.0], cond={"y": LABELS})
    assert [len(t) for t in net.times] == [4, 8, 8, 4]
    net.times.clear()
    levels = torch.tensor([4.0, 2.0, 1.0, 0.5])
    cond = {"y": LABELS}
    _, eps = model(X, levels, cond)
    assert [len(t) for t in net.times] == [6]
    alone = denoiser()(X, levels, cond)[1]
    everywhere = denoiser(guidance=Guidance(3.0, {"y": 0}))(X, levels, cond)[1]
    inside = torch.tensor([False, True, True, False])[:, None]
    torch.testing.assert_close(eps, torch.where(inside, everywhere, alone))


def test_a_snapped_level_decides_by_itself_whether_it_is_guided():
    levels = ddim_ode.schedules.ddpm().levels
    between = float(0.4 * levels[499] + 0.6 * levels[500])  # moves up to levels[500]
    model = Denoiser(
        labelled, ddim_ode.schedules.ddpm(), snap=True, guidance=Guidance(2.0, {"y": 0}, (0, between))
    )  # fmt: skip
    assert [model.rows(level) for level in (levels[499], between, levels[500])] == [2, 1, 1]


def entries_std(x):
    return x.flatten(1).numpy().std(axis=1)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("phi", [0.3, 1.0])
def test_rescale_brings_each_samples_std_to_the_conditional_one(prediction, phi):
    x = points(4, 12).reshape(4, 3, 2, 2) * torch.tensor([1.0, 0.1, 5.0, 2.0]).double().reshape(
        4, 1, 1, 1
    )
    net = lambda x, s, y: torch.sin(2 * x) + x * (1 + y.reshape(-1, 1, 1, 1))  # noqa: E731
    cond = {"y": LABELS}

    def predicted(**options):
        model = denoiser(net, Guidance(4.0, {"y": 0}, **options), prediction)
        level = torch.full((4,), 1.3).double()
        return model.network(x, cond)(x, level, model.at(level.numpy(), x))

    plain, conditional = predicted(), net(x, None, LABELS)
    ratio = entries_std(conditional) / entries_std(plain)
    assert np.ptp(ratio) > 0.01  # or a standard deviation of the whole batch would do
    factor = torch.as_tensor(phi * ratio + 1 - phi).reshape(4, 1, 1, 1)
    rescaled = predicted(rescale=phi)
    torch.testing.assert_close(rescaled, factor * plain, rtol=1e-12, atol=0)
    if phi == 1:
        np.testing.assert_allclose(entries_std(rescaled), entries_std(conditional), rtol=1e-12)


def test_a_prediction_without_spread_is_left_as_it_is():
    net = lambda x, s, y: torch.where(y[:, None] == 1, torch.ones_like(x), x)  # noqa: E731
    guided = denoiser(net, Guidance(0.0, {"y": 1}, rescale=1.0))
    assert torch.equal(guided(X, 1.0, {"y": LABELS})[1], torch.ones_like(X))


PREDICTIONS = ["eps", "x0", "v", "score", "flow"]
LEVELS = torch.tensor([0.05, 0.8, 3.0, 12.0]).double()


def mixture(prediction, **options):
    means, variances = [[-1.5, 0.5, 1.0], [1.2, -0.8, 0.0]], [[0.5, 0.2, 0.3]] * 2
    return ddim_ode.exact.gaussian_mixture(
        [0.6, 0.4], means, variances, COSINE, prediction, **options
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("limit", [dict(clip=0.7), dict(threshold=0.8)])
def test_a_limit_is_of_each_samples_x0_and_eps_follows(prediction, limit):
    x = X * torch.tensor([4.0, 0.3, 2.0, 8.0]).double()[:, None]
    x0, eps = mixture(prediction, **limit)(x, LEVELS)
    free = mixture(prediction)(x, LEVELS)[0].numpy()
    s, most = 1.0, limit.get("clip")
    if most is None:
        s = most = np.maximum(np.quantile(abs(free), 0.8, axis=1), 1.0)[:, None]
        assert {s.min() == 1, s.max() > 1} == {True}
    assert abs(free).max() > 1
    expected = torch.as_tensor(np.clip(free, -most, most) / s)
    torch.testing.assert_close(x0, expected, rtol=1e-10, atol=1e-10)
    alpha, beta = scales(LEVELS)
    torch.testing.assert_close(alpha * x0 + beta * eps, x, rtol=1e-10, atol=1e-12)
    options = dict(method="rk45", rtol=1e-6, atol=1e-6, sigma_max=15.0)
    together = ddim_ode.sample(mixture(prediction, **limit), X, **options)  # each at its own level
    alone = ddim_ode.sample(mixture(prediction, **limit), X[2:3], **options)
    torch.testing.assert_close(together.x[2:3], alone.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_with_clipping_is_the_textbook_loop(prediction):
    model, x = mixture(prediction), X
    sol = ddim_ode.sample(mixture(prediction, clip=0.9), X, steps=6, sigma_max=15.0)
    for sigma, lower in zip(sol.sigmas, sol.sigmas[1:]):
        a, b, a_next, b_next = map(float, (*COSINE.scales(sigma), *COSINE.scales(lower)))
        x0 = model(x, sigma)[0].clamp(-0.9, 0.9)
        x = a_next * x0 + b_next * (x - a * x0) / b
    torch.testing.assert_close(sol.x, x, rtol=1e-9, atol=1e-10)
    assert float(sol.x.abs().max()) <= 0.9 + 1e-9


ALTERED = {
    "guidance": dict(guidance=Guidance(3.0, {"y": 0})),
    "guidance_interval": dict(guidance=Guidance(3.0, {"y": 0}, interval=(0.5, np.inf))),
    "guidance_rescale": dict(guidance=Guidance(3.0, {"y": 0}, rescale=0.7)),
    "clip": dict(clip=1.0),
    "threshold": dict(threshold=0.995),
}


@pytest.mark.parametrize("name", ["ddim", "rk45", "torchdiffeq:dopri5"])
@pytest.mark.parametrize("altered", ALTERED)
def test_a_solution_says_what_altered_its_ode(altered, name):
    where = dict(steps=3) if name == "ddim" else {}
    options = dict(method=name, cond={"y": LABELS}, sigma_max=15.0, **where)
    sol = ddim_ode.sample(denoiser(**ALTERED[altered]), X, **options)
    said = json.loads(json.dumps(sol.to_dict(), allow_nan=False))["alterations"]
    assert set(said) == {altered, *(["guidance"] if "guidance" in altered else [])}
    assert ddim_ode.sample(denoiser(), X, **options).alterations == {}


def test_a_result_is_not_found_again_under_another_ode():
    class Net(torch.nn.Module):
        forward = staticmethod(labelled)

    keys = [model_key(denoiser(Net(), **options)) for options in [{}, *ALTERED.values()]]
    assert len(set(keys)) == len(keys)
    assert None not in keys
    tensor = denoiser(Net(), Guidance(torch.tensor(3.0), {"y": 0}))
    assert model_key(tensor) == keys[1]


def test_a_scale_may_be_a_tensor_and_is_never_off():
    net, cond = Counting(labelled), {"y": LABELS}
    for scale in (1.0, 2.5):
        tensor = denoiser(net, Guidance(torch.tensor(scale), {"y": 0}))
        number = denoiser(labelled, Guidance(scale, {"y": 0}))
        torch.testing.assert_close(
            tensor(X, 2.0, cond)[1], number(X, 2.0, cond)[1], rtol=1e-12, atol=0
        )
    assert net.rows == 16


def null(scale=2.0, **options):
    return lambda: Guidance(scale, {"y": 0}, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (null(torch.ones(2, 2)), "floating tensor: 0-d"),
        (lambda: Guidance(torch.tensor(2.0)), "needs null="),
        (null(interval=(3.0, 1.0)), r"interval \(3.0, 1.0\).* 0 <= low < high"),
        (null(interval=(np.nan, 1.0)), "0 <= low < high"),
        (null(interval=(-1.0, 1.0)), "0 <= low < high"),
        (null(interval=1.0), "None guides everywhere"),
        (null(rescale=1.5), r"rescale=1.5 must be a number in \[0, 1\]"),
        (lambda: denoiser(clip=0.0), r"clip=0.0 must be a number in \(0, 3.40282e\+38\]"),
        (lambda: denoiser(clip=1.0, threshold=0.9), "both clip and threshold .*drop threshold"),
        *(
            (lambda bad=bad: denoiser(threshold=bad), "threshold=.* must be a number in")
            for bad in (1.2, (0.9, 0.0), (0.9, "1"), (0.9,), (0.9, 1.0, 2.0), "0.9")
        ),
        (
            lambda: denoiser(guidance=null(rescale=1.0)())(X[:, :1], 1.0, {"y": LABELS}),
            "two entries or more; drop rescale",
        ),
    ],
)
def test_a_value_out_of_range_is_refused(call, message):
    expect(call, message)


def test_a_solution_keeps_the_scale_it_was_solved_with():
    scale = torch.tensor(2.0)
    model = denoiser(guidance=Guidance(scale, {"y": 0}))
    sol = ddim_ode.sample(model, X, steps=2, cond={"y": LABELS})
    scale.fill_(5.0)
    assert sol.to_dict()["alterations"] == {"guidance": 2.0}
    assert model.alterations["guidance"] == 5.0


@pytest.mark.parametrize("name", ["ddim", "unipc2", "rk45"])
@pytest.mark.parametrize("altered", ALTERED)
def test_a_nan_stays_with_its_sample(altered, name):
    def net(x, sigma, y):
        bad = (y == 3) & (sigma < 1.0)
        return torch.where(bad[:, None], torch.nan, labelled(x, sigma, y))

    options = dict(method=name, cond={"y": LABELS}, sigma_max=15.0, sigma_min=0.05)
    options |= dict(steps=6) if name != "rk45" else {}
    sol = ddim_ode.sample(denoiser(net, **ALTERED[altered]), X, **options)
    clean = ddim_ode.sample(denoiser(**ALTERED[altered]), X, **options)
    others = [0, 2, 3]
    assert sol.status.tolist() == ["success", "non_finite", "success", "success"]
    torch.testing.assert_close(sol.x[others], clean.x[others], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["ddim", "rk45", "reversible"])
def test_the_way_up_is_guided_in_the_interval_alone_and_counts_its_rows(name):
    net = Counting(labelled)
    model = denoiser(net, Guidance(3.0, {"y": 0}, interval=INTERVAL))
    options = dict(cond={"y": LABELS}, sigma_max=20.0) | ({} if name == "rk45" else dict(steps=9))
    with pytest.warns(UserWarning, match="guidance 3"):
        sol = ddim_ode.encode(model, X, name, **options)
    expected = ddim_ode.encode(denoiser(by_hand), X, name, **options)
    torch.testing.assert_close(sol.x, expected.x, rtol=1e-10, atol=1e-12)
    assert sol.net_evals == net.rows < 8 * net.calls
    assert set(sol.alterations) == {"guidance", "guidance_interval"}


@pytest.mark.parametrize("where", [{}, dict(steps=6)])
def test_a_likelihood_is_guided_in_the_interval_alone_and_counts_its_rows(where):
    net = Counting(labelled)
    options = dict(cond={"y": LABELS}, sigma_max=20.0, **where)
    with pytest.warns(UserWarning, match="guidance 3"):
        found = ddim_ode.log_likelihood(
            denoiser(net, Guidance(3.0, {"y": 0}, INTERVAL)), X, **options
        )
    expected = ddim_ode.log_likelihood(denoiser(by_hand), X, **options)
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood, rtol=1e-9, atol=1e-9)
    assert 4 * found.nfe < found.net_evals < 8 * found.nfe
