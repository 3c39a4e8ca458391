"""Nothing that identifies, caches or resumes hangs on the last bits of what a library computes."""

import json
import subprocess
import sys
from pathlib import Path

import nudged
import numpy as np
import torch

off = 0.0  # relatively, by how much this processor answers otherwise


class Net(torch.nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.layer.load_state_dict(dict(weight=torch.eye(2) / 3, bias=torch.ones(2) / 7))

    def forward(self, x, t):
        type(self).calls += 1
        return torch.tanh(self.layer(x)) * (1 + off * torch.sign(x))


def everything(folder):
    """What identifies, of all kinds, and what a call finds of an earlier one's in that folder."""
    from problems import COSINE, SCHEDULES, mixture_2d

    import ddim_ode
    from ddim_ode.solve.model_key import model_key

    net = Net()
    timed = ddim_ode.Denoiser(net, COSINE, time=lambda t, s: 0.25 * np.log(s), shape=(2,))
    snapped = ddim_ode.Denoiser(net, COSINE, "x0", snap=True, time_offset=-1.0, shape=(2,))
    shipped = [ddim_ode.load("fashion-mnist", guidance=scale) for scale in (1.0, 2.0)]
    plan = ddim_ode.plan("unipc3", COSINE, [*COSINE.sigma([950.5, 700, 400, 100, 3]), 0.0])
    runs = [
        (mixture_2d(COSINE), dict(method="dpmpp3m", steps=9, grid="karras")),
        (mixture_2d(ddim_ode.schedules.flow(), "v"), dict(method="unipc2", steps=4)),
        (timed, dict(plan=plan)),
        (timed, dict(method="rk45", rtol=1e-2, sigma_min=float(COSINE.sigma(2)))),
        (snapped, dict(method="ipndm", grid=[*np.geomspace(9, 0.1, 5), 0.0])),
    ]
    made = []
    for k, (model, options) in enumerate(runs):
        cond = None if k else lambda index: {}
        run = ddim_ode.generate(model, 6, Path(folder) / str(k), shard=2, cond=cond, **options)
        made.append(run.made)
    before = Net.calls
    methods = {"plan": plan, "deis3": "deis3", "heun": "heun", "euler": "torchdiffeq:euler"}
    for model in (timed, mixture_2d(COSINE)):
        ddim_ode.compare(
            model, methods, [5, 8], n=5, sigma_min=[None, *COSINE.sigma([1, 2])],
            cache=Path(folder) / "cache", reference=1.0, progress=False,
        )  # fmt: skip
    return dict(
        fingerprints={name: schedule.fingerprint for name, schedule in SCHEDULES.items()},
        keys=[model_key(model) for model in (*shipped, timed, snapped, *(m for m, _ in runs))],
        own=[model.calibrated(6).fit["model_key"] for model in shipped],
        samples_made=made,
        calls=Net.calls - before,
        files=len(list((Path(folder) / "cache").iterdir())),
    )


def elsewhere(folder):
    """The same in a process of its own, on another processor."""
    global off
    nudged.apply()
    off = 1e-6
    json.dump(everything(folder), sys.stdout)


def test_another_processor_finds_the_same_keys_and_goes_on_with_the_same_runs(tmp_path):
    here = everything(tmp_path)
    assert here["own"] == here["keys"][:2]
    assert here["samples_made"] == [6] * 5
    paths = [str(Path(__file__).parent), str(Path(nudged.__file__).parent)]
    code = f"import sys; sys.path[:0] = {paths}; import test_last_bits as t; t.elsewhere({str(tmp_path)!r})"
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    there = json.loads(ran.stdout)
    assert there["samples_made"] == [0] * 5
    assert there["calls"] == 6  # the question
    same = ("fingerprints", "keys", "own", "files")
    assert {name: there[name] for name in same} == {name: here[name] for name in same}
