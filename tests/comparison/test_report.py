"""The report: one file that opens from disk, says what the comparison says, and fetches nothing."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from problems import DDPM, mixture_2d

import ddim_ode
from ddim_ode.comparison import report, tables
from ddim_ode.comparison.distances import check_metrics, measure_rows
from ddim_ode.comparison.samples import draw_samples
from ddim_ode.evaluate.features import IDENTITY
from ddim_ode.plots.pictures import solver_grid
from ddim_ode.solve import reference

METHODS = ["ddim", "unipc3", "rk45"]
VOID = {"meta", "img", "br", "path", "circle"}
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def compare(*args, **options):
    return ddim_ode.compare(*args, **{"n": 16, "keep": 16, "progress": False, **options})


@pytest.fixture(scope="module")
def result():
    return compare(mixture_2d(DDPM), METHODS, [3, 5, 10])


@pytest.fixture(scope="module")
def page(result):
    measured = measure_rows(result, IDENTITY)
    samples = draw_samples(result)
    context = report.Context(
        "a <model> & more",
        {"device": "cpu"},
        "ddim-ode compare",
        samples=samples,
        measured=measured,
    )
    return report.page(result, context)


class Reader(HTMLParser):
    """Tags, text, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_page_is_whole_accessible_and_fetches_nothing(page):
    read = Reader(page)
    assert read.open == []
    assert read.all("html")[0]["lang"] == "en"
    assert not {"script", "link", "iframe"} & {name for name, _ in read.tags}
    for _, attrs in read.tags:
        for key in {"src", "href", "srcset", "data"} & attrs.keys():
            assert attrs[key].startswith("data:image/png;base64,")
    assert "url(" not in page
    assert "@import" not in page
    images = read.all("img")
    assert len(images) == 4  # error, two metrics, the ends
    assert all(len(image["alt"].split()) > 5 for image in images)
    assert all(head.get("scope") in ("col", "row", "rowgroup") for head in read.all("th"))
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)


def test_page_says_what_the_comparison_says(page, result):
    text = " ".join("".join(Reader(page).words).split())
    for term, said in report.best_lines(result) + report.target_lines(result):
        assert f"{term}{said}" in text
    assert f"{result.reference_error:.1e}" in text
    assert "a <model> & more" in text  # escaped in the source
    assert "<model>" not in page
    assert html.escape("one step of 'rk45'") in page
    for row in result.rows:
        assert tables.number(row["error"]) in text


def test_answers_name_the_best_and_what_is_cheapest(result):
    best = dict(report.best_lines(result))
    assert best["5 calls"].startswith(f"{result.best(5)['method']}, error ")
    for term, said in report.target_lines(result):
        row = result.recommend(float(term.split()[-1]))
        assert said.startswith(f"{row['method']}, {row['nfe']} calls")
    assert "none of these" in dict(report.target_lines(result, [1e-9]))["error ≤ 1e-09"]


def test_a_method_against_itself_is_a_tie_and_said_to_be():
    plan = ddim_ode.plan("ddim", DDPM, ddim_ode.grids.make_grid("trailing", DDPM, 5))
    r = compare(mixture_2d(DDPM), {"a": "ddim", "b": plan}, [5])
    assert r.decide(*r.rows) == (1.0, 1.0, 1.0, True)
    assert re.search(r"; tied with it: [ab]\b", dict(report.best_lines(r))["5 calls"])
    assert sorted(line.cells[0].mark for line in tables.overview(r)) == ["best", "tie"]


def test_nothing_is_best_where_rows_are_at_the_floor(monkeypatch):
    monkeypatch.setattr(reference, "STEPS", (60, 120))
    r = compare(mixture_2d(DDPM), ["ddim", "unipc3"], [10, 50, 100])
    row = next(row for row in r.rows if (row["method"], row["budget"]) == ("unipc3", 100))
    assert row["at_floor"]
    assert row["error_typical"] < r.floor == 100 * r.reference_error
    assert not r.best(100)
    assert r.best(10)["method"] == "unipc3"
    assert [entry["rank"] for entry in r.ranking(100)] == [1, 2]
    assert not r.recommend(r.floor / 2)
    assert r.recommend(r.floor * 1.01)["method"] == "unipc3"
    targets = [float(term.split()[-1]) for term, _ in report.target_lines(r)]
    assert min(targets) >= r.floor > row["error_high"]
    marks = {line.method: [cell.mark for cell in line.cells] for line in tables.overview(r)}
    assert (marks["unipc3"][0], marks["unipc3"][2], marks["ddim"][2]) == ("best", "floor", "")
    assert "at floor" in r.table()
    for text in (str(r.best(100)), dict(report.best_lines(r))["100 calls"]):
        assert "at the floor" in text
    assert f"below {r.floor:.1e}" in tables.overview_text(r)
    page = report.page(r, report.Context("m"))
    assert page.count('class="floor"') == page.count("at floor</small>") > 0


def test_overview_is_aligned_and_explains_the_signs_it_uses(result):
    lines = tables.overview_text(result).splitlines()
    ends = [m.end() for m in re.finditer(r"calls", lines[0])]
    for line in lines[1:4]:
        values = [m.end() for m in re.finditer(r"[0-9.]+[0-9]|–", line) if m.start() > 6]
        assert values == ends
    assert "* best of its column" in lines[-1]
    assert "floor" not in lines[-1]


def test_metrics_against_the_same_noises_vanish_with_the_error():
    r = compare(mixture_2d(DDPM), ["ddim", "unipc3"], [5, 60])
    measured = measure_rows(r, IDENTITY)
    assert measured.names == ("frechet_distance", "sliced_wasserstein")
    assert measured.converged == {}
    coarse, fine = r.rows[0], r.rows[3]
    for name in measured.names:
        assert fine[name] < 1e-3 * coarse[name]
    assert "the converged solutions of their noises" in measured.label("frechet_distance")
    # along a random line a sample moves by its error, in the mean over lines
    assert coarse["sliced_wasserstein"] < 2 * coarse["error"]
    with pytest.raises(ValueError, match="kernel_distance supposes independent samples"):
        check_metrics(["kernel_distance"], independent=False)


def test_metrics_leave_out_rows_with_failed_samples(result):
    r = compare(mixture_2d(DDPM), ["ddim"], [5])
    r.rows[0].failed = 1
    measure_rows(r, IDENTITY, metrics=["energy_distance"])
    assert r.rows[0]["energy_distance"] is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.1, "0.100"), (12.345, "12.3"), (999.7, "1000"), (1008.4, "1008"), (2e7, "2.00e+07")],
)
def test_numbers_have_three_digits(value, shown):
    assert tables.number(value) == shown


def test_pictures_stand_in_their_cells():
    dark, light = torch.full((2, 1, 4, 4), 1.0), torch.full((2, 1, 4, 4), -1.0)
    light[1] = torch.nan
    figure = solver_grid(
        [("a", "#000000", [dark, None]), ("b", "#000000", [light, dark])], ["5", "9"]
    )
    figure.canvas.draw()
    first, second, third = figure.axes
    assert first.images[0].get_array()[3, 3] == 255
    assert second.images[0].get_array().max() == 0  # also the failed one
    assert third.get_position().x0 > second.get_position().x1
    assert second.get_position().y1 <= first.get_position().y0
    assert {"a", "b", "5", "9", "not run"} == {text.get_text() for text in figure.texts}


@pytest.mark.skipif(BROWSER is None, reason="no chromium here to open the report in")
def test_a_browser_opens_it_from_disk(page, tmp_path):
    """In frames of two widths, as a browser's window has a least width of its own."""
    probe = """<script>addEventListener("load", () => {
      const found = [...document.querySelectorAll("iframe")].map(frame => {
        const inside = frame.contentDocument;
        return {
          width: frame.clientWidth,
          used: inside.documentElement.scrollWidth,
          images: [...inside.images].map(i => i.complete && i.naturalWidth),
          fetched: frame.contentWindow.performance.getEntriesByType("resource").map(r => r.name),
          title: inside.title,
        };
      });
      document.getElementById("found").textContent = JSON.stringify(found);
    })</script>"""
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    frames = "".join(
        f'<iframe src="report.html" style="border:0" width="{width}" height="900"></iframe>'
        for width in (1280, 420)
    )
    opener = tmp_path / "open.html"
    opener.write_text(f'<meta charset="utf-8">{frames}<pre id="found"></pre>{probe}')
    call = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
    ]
    call += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    dom = subprocess.run([*call, opener.as_uri()], capture_output=True, text=True, timeout=60)
    found = json.loads(
        html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom.stdout).group(1))
    )
    assert [frame["width"] for frame in found] == [1280, 420]
    for frame in found:
        assert len(frame["images"]) == 4
        assert min(frame["images"]) > 500
        assert frame["used"] <= frame["width"]  # what is wide scrolls in its frame, not the page
        assert all(name.startswith("data:") for name in frame["fetched"])
        assert frame["title"].startswith("a <model> & more")
