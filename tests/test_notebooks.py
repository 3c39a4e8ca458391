"""The notebooks run, top to bottom on a fresh kernel, and are committed as they came out of it."""

import base64
import re
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from peers import load

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = (
    *("01_ddim_is_an_ode", "02_compare_solvers", "03_steps_vs_quality", "04_your_model"),
    "05_in_your_pipeline",
)
LARGEST = 1_500_000  # bytes
MACHINE = re.compile(
    r"/(work|root|home|tmp|opt|Users)/|site-packages|ipykernel_\d|[A-Z]:\\\\|\b0x[0-9a-f]{6,}"
)

# Run by the kernel before the first cell. A warning is ours if our code is what called warnings.warn,
# though stacklevel= names the reader's cell as its place, or if its place is in our code, whoever warned
# (numpy of a division there). It becomes an error, whose traceback says where; all others stay silent.
RECOGNISER = """
def install():
    import importlib.util, sys, warnings

    (home,) = importlib.util.find_spec("ddim_ode").submodule_search_locations

    def raise_ours(message, category, filename, lineno, file=None, line=None):
        caller = sys._getframe(1)
        while caller.f_globals.get("__name__") == "warnings":
            caller = caller.f_back
        issuer = caller.f_globals.get("__name__") or ""
        if issuer.partition(".")[0] == "ddim_ode" or filename.startswith(home):
            raise message

    warnings.showwarning = raise_ours
    warnings.simplefilter("always")

install()
del install
"""


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """What a fresh kernel of the tests is started with: its own IPython profile, and one thread."""
    startup = tmp_path / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "recogniser.py").write_text(RECOGNISER)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run(notebook, **options):
    """The notebook, executed in the folder of the notebooks."""
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=resources, **options
    ).execute()
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell puts out: its streams, and the formats of what it shows."""
    return {
        kind
        for output in cell.outputs
        for kind in (output.get("data") or [output.get("name", output.output_type)])
    }


def shown(notebook):
    """What each cell puts out; without diffusers, not the cell that uses it, which then only says so."""
    cells = code_cells(notebook)
    if find_spec("diffusers") is None:
        cells = [cell for cell in cells if "diffusers" not in cell.source]
    return [kinds(cell) for cell in cells]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_without_an_error_or_a_warning_of_ours_and_puts_out_what_is_committed(name):
    if name.startswith("05"):  # which says what it lacks, and ends
        [load(package) for package in ("diffusers", "transformers")]
    committed = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    fresh = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell.source) for cell in code_cells(committed)]
    )
    run(fresh)
    assert shown(fresh) == shown(committed)


def test_each_is_committed_as_it_came_out_of_one_run_and_names_no_place_on_a_machine():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)
    for path in FOLDER.glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        notebook = nbformat.reads(text, 4)
        nbformat.validate(notebook)
        cells = code_cells(notebook)
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        assert len(text.encode()) < LARGEST
        assert not {"stderr", "error"} & set().union(*map(kinds, cells))
        outputs = [output.get("data", {}) for cell in cells for output in cell.outputs]
        pictures = [data.pop("image/png") for data in outputs if "image/png" in data]
        assert len(pictures) >= 4
        assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
        place = MACHINE.search(nbformat.writes(notebook))  # without the letters of the pictures
        assert place is None, (path, place)


@pytest.mark.usefixtures("kernel")
def test_a_warning_is_told_to_be_ours_or_not():
    ours = [
        "ddim_ode.calibrate(model, nfe=3, n=4, progress=False)",
        # both attributed to this cell, whose arguments are what the reader has to change
        "ddim_ode.compare(plain, 'ddim', [2], shape=(1,), n=2, cache='.', progress=False)",
        # numpy's, of an arithmetic that is ours
        "from ddim_ode.solvers.chart import SCALES\nSCALES['inv_sigma'].of(np.zeros(1))",
    ]
    others = [
        "import warnings\nwarnings.warn('a reader may')",
        "np.ones(1) / np.zeros(1)",
        "from scipy.stats import skew\nskew(np.ones(3))",
    ]
    setup = (
        "import numpy as np, torch, ddim_ode\n"
        "schedule = ddim_ode.schedules.cosine()\n"
        "model = ddim_ode.exact.gaussian([0.0], [[0.25]], schedule)\n"
        "plain = ddim_ode.Denoiser(lambda x, t: torch.tanh(x), schedule)"
    )
    cells = [nbformat.v4.new_code_cell(source) for source in (setup, *others, *ours)]
    run(nbformat.v4.new_notebook(cells=cells), allow_errors=True)
    raised = [[o.ename for o in cell.outputs if o.output_type == "error"] for cell in cells]
    assert raised[: 1 + len(others)] == [[]] * (1 + len(others))
    assert raised[1 + len(others) :] == [["Caution"], ["Caution"], ["RuntimeWarning"]]
