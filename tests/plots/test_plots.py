"""Pictures come out as they were laid out, also cropped (in a notebook) and under a reader's own style."""

import dataclasses
import io
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image
from problems import COSINE, DDPM, mixture_2d

import ddim_ode
from ddim_ode import grids, schedules
from ddim_ode.plots import plan_plot
from ddim_ode.plots.comparisons import ends_plot
from ddim_ode.plots.pictures import sample_grid, solver_grid


def compared():
    return ddim_ode.compare(mixture_2d(DDPM), nfe=[5, 8], n=4, progress=False).plot()


def ends():
    x = ddim_ode.noise((2,), DDPM, seeds=range(8))
    return ends_plot([("ddim", [x, None])], ["5 calls", "8 calls"], x)


def planned():
    return plan_plot(ddim_ode.plan("heun", DDPM, grids.make_grid("trailing", DDPM, 4)), DDPM)


def pictures():
    return sample_grid([("ddim\n5 calls", ddim_ode.noise((1, 8, 8), DDPM, seeds=range(3)))])


def solvers():
    images = ddim_ode.noise((1, 8, 8), DDPM, seeds=range(3))
    return solver_grid([("ddim", "C0", [images, None])], ["5 calls", "8 calls"])


def drawn(figure, **options):
    """What is inked, as pixels without the margin."""
    figure.savefig(file := io.BytesIO(), **options)
    file.seek(0)
    pixels = imread(file)[..., :3]
    rows, columns = np.nonzero(pixels.min(axis=2) < 0.99)
    return pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def pixels(data):
    return imread(io.BytesIO(data))


@pytest.mark.parametrize("make", [compared, ends, planned, pictures, solvers])
def test_a_picture_is_as_it_was_laid_out_wherever_it_is_drawn(make):
    """A crop takes the margin and nothing else, a notebook draws without pyplot, and the reader's own style
    moves nothing and draws no grid."""
    figure = make()
    usual, cropped = (drawn(figure, bbox_inches=box) for box in (None, "tight"))
    assert np.abs(np.subtract(usual.shape, cropped.shape)).max() <= 2  # pixels are not halved alike
    figure.savefig(file := io.BytesIO(), bbox_inches="tight")
    np.testing.assert_array_equal(pixels(figure._repr_png_()), pixels(file.getvalue()))
    style = {"figure.constrained_layout.use": True, "axes.grid": True}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(drawn(make()), usual)


# -- the picture of a plan shows that plan -----------------------------------------------------
GRID = grids.make_grid("trailing", COSINE, 5, sigma_max=50.0)


def axes(plan, schedule=None):
    figure = plan_plot(plan, schedule)
    assert isinstance(figure, Figure)
    levels, weights, _ = figure.axes[:3]
    return figure, levels, weights


def test_the_levels_are_those_of_the_calls():
    plan = ddim_ode.plan("heun", COSINE, GRID)
    _, levels, _ = axes(plan)
    (line,) = levels.lines
    assert line.get_ydata().tolist() == [node.sigma for node in plan.nodes]
    assert (line.get_label(), levels.get_yscale()) == ("heun", "log")
    assert [text.get_text() for text in levels.texts] == [f"{n.sigma:.3g}" for n in plan.nodes]


def test_the_named_grids_of_as_many_calls_are_beside_them():
    plan = ddim_ode.plan("ipndm", COSINE, GRID)
    lines = {line.get_label(): line.get_ydata() for line in axes(plan, COSINE)[1].lines}
    named = {"time", "quadratic", "log_snr", "karras", "trailing"}
    assert set(lines) == {*named, "ipndm"}
    expected = grids.make_grid("karras", COSINE, 5, sigma_max=50.0)[:-1]
    np.testing.assert_array_equal(lines["karras"], expected)
    with pytest.raises(ValueError, match=r"made for schedule .* give model\.schedule"):
        plan_plot(plan, DDPM)


def test_weights_are_shares_of_their_row():
    plan = ddim_ode.plan("ab2", COSINE, GRID)
    _, _, weights = axes(plan)
    (image,) = weights.images
    table = np.ma.filled(image.get_array(), np.nan)
    assert table.shape == (5, 5)
    newest = np.diag(table)
    past = np.diag(table, -1)[:3]
    ours = np.array([op.weights for op in plan.ops[2:5]])
    np.testing.assert_allclose(newest[1:4], ours[:, 0] / ours.sum(axis=1))
    np.testing.assert_allclose(past, ours[:, 1] / ours.sum(axis=1))
    assert newest[0] == newest[4] == 1  # DDIM steps
    assert np.isfinite(table).sum() == 8
    assert image.norm.vmin == -image.norm.vmax  # 0 is the middle of the colours
    assert "divided by its sum" in weights.get_title(loc="left")
    assert {f"{v:.2f}" for v in table[np.isfinite(table)]} == {t.get_text() for t in weights.texts}


def test_a_row_whose_sum_vanishes_is_divided_by_its_size_and_said_so():
    plan = ddim_ode.plan("ab2", COSINE, GRID)
    ops = [*plan.ops]
    ops[2] = ops[2]._replace(weights=(3.0, -3.0))
    _, _, weights = axes(dataclasses.replace(plan, ops=tuple(ops)))
    table = np.ma.filled(weights.images[0].get_array(), np.nan)
    np.testing.assert_allclose(table[1, :2], [-0.5, 0.5])
    assert "divided by its Σ|w|" in weights.get_title(loc="left")


@pytest.mark.parametrize("name", ["rk4", "unipc3", "ddpm"])
@pytest.mark.parametrize("steps", [1, 5, 40])
def test_every_kind_of_plan_is_drawn(name, steps):
    schedule = schedules.flow()  # begins at σ = inf
    plan = ddim_ode.plan(name, schedule, grids.make_grid("time", schedule, steps))
    figure, levels, weights = axes(plan, schedule)
    rows = sum(bool(op.weights) for op in plan.ops)
    assert weights.images[0].get_array().shape == (rows, plan.nfe)
    assert all(np.isfinite(line.get_ydata()).all() for line in levels.lines)
    if plan.nfe <= 12:
        assert "∞" in [text.get_text() for text in levels.texts]
    if steps == 5:
        file = io.BytesIO()
        figure.savefig(file, dpi=40)
        with Image.open(file) as picture:
            assert len(set(picture.convert("L").tobytes())) > 50  # shades, not a blank page


def test_what_is_drawn_stays_on_the_page():
    for name, steps in (("ddim", 1), ("unipc3", 12), ("dpmpp3m", 50)):
        plan = ddim_ode.plan(name, DDPM, grids.make_grid("quadratic", DDPM, steps))
        figure = plan_plot(plan, DDPM)
        box = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height
