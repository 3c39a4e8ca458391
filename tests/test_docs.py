"""What the documentation says, runs: README's Python, and the examples in the docstrings."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from peers import load

import ddim_ode

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MODULES = [m.name for m in pkgutil.walk_packages(ddim_ode.__path__, "ddim_ode.")]


NUMBER = re.compile(r"-?\d+\.?\d*(?:e[-+]?\d+)?")


@pytest.mark.parametrize(
    ("code", "printed"),
    re.findall(r"```python\n(.*?)```(?:\n\n```\n(.*?)```)?", README, re.DOTALL),
)
def test_readme_code_runs_and_prints_what_stands_below_it(
    code, printed, capsys, tmp_path, monkeypatch
):
    if "from diffusers" in code:
        load("diffusers")
    monkeypatch.chdir(tmp_path)  # some of it saves files
    exec(compile(code, "README.md", "exec"), {})
    lines = {NUMBER.sub("#", line): line for line in capsys.readouterr().out.splitlines()}
    for line in printed.splitlines():
        assert NUMBER.sub("#", line) in lines
        ours = map(float, NUMBER.findall(lines[NUMBER.sub("#", line)]))
        assert list(ours) == pytest.approx(list(map(float, NUMBER.findall(line))), rel=0.05)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    if name.startswith("ddim_ode.interop."):
        load("diffusers")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_gate_runs_the_command_the_readme_gives():
    commands = re.findall(r"```bash\n(.*?)\n```", README)
    assert len(commands) == 2
    pattern = re.search(r"grep -m1 -E '(.*?)' README", (ROOT / ".ci/run").read_text()).group(1)
    assert [line for line in README.splitlines() if re.search(pattern, line)] == [commands[1]]


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_readme_links_exist(link):
    assert (ROOT / link).exists()


MODULES_OF_NAMES = ("schedules", "grids", "exact")
PUBLIC = [
    *(
        getattr(ddim_ode, n)
        for n in ddim_ode.__all__
        if n not in ("__version__", *MODULES_OF_NAMES)
    ),
    *(
        getattr(ddim_ode.schedules, n)
        for n in ["ddpm", "exponential", "cosine", "from_alphas_cumprod", "vp", "ve", "flow"]
    ),
    *(getattr(ddim_ode.grids, n) for n in ["make_grid", "from_timesteps", "default_name"]),
    *(getattr(ddim_ode.exact, n) for n in ["gaussian", "gaussian_mixture"]),
]


@pytest.mark.parametrize("what", PUBLIC, ids=lambda what: what.__name__)
def test_every_public_name_has_an_example(what):
    assert ">>>" in (what.__doc__ or "")
