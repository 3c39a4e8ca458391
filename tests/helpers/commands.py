"""Calls of the command line in this process, and what they leave behind."""

import csv
import json

import numpy as np
from PIL import Image

from ddim_ode.cli import main

# A mixture as its file has it.
MIXTURE = dict(
    weights=[0.6, 0.4],
    means=[[-1.5, 0.5], [1.2, -0.8]],
    covs=[[0.4, 0.3], [0.25, 0.5]],
    schedule={"name": "exponential", "params": {"rate": 4.0}},
)


def run(*words):
    """The status of ``ddim-ode`` of these words."""
    return main([str(word) for word in words])


def tree(path):
    return json.loads(path.read_text(encoding="utf-8"))


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def shades(path):
    """How many greys a picture has; a blank page has one."""
    with Image.open(path) as picture:
        return len(set(picture.convert("L").tobytes()))


def stop_at(monkeypatch, owner, name, call):
    """Ctrl-C at the ``call``-th call of that function of a module or class."""
    calls, function = [], getattr(owner, name)

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
