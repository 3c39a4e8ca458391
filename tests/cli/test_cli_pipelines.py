"""``--pipeline``: the commands on a whole pipeline's directory, by its own encoders and guidance."""

import gc
import json
import re
import threading

import pytest
import torch
from commands import run, table
from peers import load as peer
from peers import quiet
from tiny_pipelines import TINY, alive

from ddim_ode import cli
from ddim_ode.cli.pipelines import open_model

pytest.importorskip("diffusers")

from ddim_ode.interop.diffusers import DDIMODEScheduler, from_pipeline

WORDS = ("a", "cat", "dog", "!")


def saved(name, folder):
    with quiet():
        TINY[name]()[0].save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return saved("DDPMPipeline", tmp_path_factory.mktemp("ddpm"))


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """An SD3 pipeline's transformer and levels in the place of a class-conditional pipeline's."""
    return saved("StableDiffusion3Pipeline", tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    """Stable Diffusion with a text encoder of four words."""
    transformers = peer("transformers")
    folder = tmp_path_factory.mktemp("sd")
    letters = sorted(set("".join(WORDS)))
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(c + "</w>" for c in letters)]
    files = folder / "words"
    files.mkdir()
    (files / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (files / "merges.txt").write_text("#version: 0.2\n")
    with quiet():
        tokenizer = transformers.CLIPTokenizer(
            str(files / "vocab.json"), str(files / "merges.txt"), model_max_length=5
        )
        config = transformers.CLIPTextConfig(
            **dict(vocab_size=len(vocabulary), hidden_size=8, intermediate_size=8),
            **dict(num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=5),
            **dict(bos_token_id=0, eos_token_id=1, pad_token_id=1),
        )
        torch.manual_seed(0)
        encoder = alive(transformers.CLIPTextModel(config))
        pipe, _ = TINY["StableDiffusionPipeline"]()
        pipe.register_modules(tokenizer=tokenizer, text_encoder=encoder)
        pipe.save_pretrained(folder / "pipe")
    prompts = folder / "prompts.txt"
    prompts.write_text("a cat\n\na dog!\n", encoding="utf-8")
    return pipe, folder / "pipe", prompts


def test_prompts_and_guidance_are_the_pipelines(prompted):
    pipe, folder, prompts = prompted
    call = ["guidance_scale=4", "height=16", "width=16"]
    words = ["compare", "--pipeline", folder, "--prompts", prompts, *_calls(call)]
    model = open_model(cli._parser().parse_args([str(word) for word in words])).denoiser
    with from_pipeline(
        pipe, prompt=["a cat", "a dog!"], guidance_scale=4.0, height=16, width=16
    ) as expected:
        assert model.batch == expected.batch == 2
        x = expected.latents
        torch.testing.assert_close(model(x, 2.0)[0], expected(x, 2.0)[0])
        assert not torch.allclose(expected(x[:1], 2.0)[0], expected(x, 2.0)[0][1:], rtol=1e-3)
    del model, expected
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("ddim_ode")]


def _calls(arguments):
    return [word for text in arguments for word in ("--call", text)]


def test_calibrate_profile_and_doctor(plain, tmp_path, capsys):
    call = ["--pipeline", plain, "--call", "batch_size=4", "--quiet"]
    assert run("profile", *call, "--nfe", "3", "--n", "2", "--out", tmp_path / "p.json") == 0
    told = capsys.readouterr().out
    assert "pipe.scheduler = DDIMODEScheduler.from_config(" in told
    assert run("calibrate", *call, "--nfe", "2", "--n", "4", "--out", tmp_path) == 0
    told = capsys.readouterr().out
    assert "pipe.scheduler = DDIMODEScheduler.from_plans(" in told
    made = {}
    code = "\n".join(told.splitlines()[-3:]).removeprefix("in the pipeline: ")
    pipe, _ = TINY["DDPMPipeline"]()
    exec(code, dict(pipe=pipe), made)
    assert made["DDIMODEScheduler"] is DDIMODEScheduler
    assert pipe.scheduler._plans[2].nfe == 2
    assert run("doctor", *call, "--n", "2", "--steps", "10") in (0, 1)
    assert "DDPMPipeline with DDIMScheduler" in capsys.readouterr().out


def test_a_pipeline_without_prompts(tmp_path, capsys):
    folder = saved("DiTPipeline", tmp_path / "dit")
    call = ["--call", "class_labels=[1, 2]", "--call", "guidance_scale=1.5"]
    words = ["--pipeline", folder, *call, "--nfe", "3", "--n", "4", "--quiet"]
    words += ["--methods", "ddim", "--reference", "0.05"]
    assert run("compare", *words, "--out", tmp_path / "out") == 0
    (row,) = table(tmp_path / "out/compare.csv")
    assert 0 < float(row["error"]) < 10
    assert "class_labels=[1, 2]" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "nothing is kept" not in capsys.readouterr().err

    def kept():
        return sorted((tmp_path / "out/cache").rglob("*.safetensors"))

    first = kept()
    assert first
    assert run("compare", *words, "--out", tmp_path / "out") == 0
    assert kept() == first
    words[words.index("guidance_scale=1.5")] = "guidance_scale=2"  # another network
    assert run("compare", *words, "--out", tmp_path / "out") == 0
    assert len(kept()) == 2 * len(first)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pipeline", "{tmp}"], "--pipeline .*: holds no model_index.json"),
        (["--call", "height=8"], "--call height=8: goes with a --pipeline"),
        (["--prompts", "x"], "--prompts x: goes with a --pipeline"),
        (["--pipeline", "{plain}", "--guidance", "2"], "--guidance 2.0: a --pipeline is in place"),
        (["--pipeline", "{plain}", "--clip", "1"], "--clip 1.0: a --pipeline is in place"),
        (["--pipeline", "{plain}", "--call", "height"], "--call height: write KEY=VALUE"),
        (["--pipeline", "{plain}", "--call", "=3"], "--call =3: write KEY=VALUE"),
        (["--pipeline", "{plain}", "--call", "x=3"], "unknown argument of DDPMPipeline 'x'"),
        (
            ["--pipeline", "{plain}", "--call", "batch_size=a"],
            r"(?s)DDPMPipeline fails .*--call give",
        ),
        (
            ["--pipeline", "{plain}", "--call", "batch_size=1", "--call", "batch_size=2"],
            "--call gives an argument twice",
        ),
        (["--pipeline", "{plain}", "--prompts", "{tmp}/none.txt"], "none.txt"),
        (["--pipeline", "{plain}", "--prompts", "{tmp}/empty.txt"], "holds no prompt"),
        (["--pipeline", "{plain}", "--prompts", "{tmp}/one.txt"], "of DDPMPipeline 'prompt'"),
        (["--pipeline", "{flow}"], "StableDiffusion3Pipeline"),
    ],
)
def test_what_is_wrong_is_said(words, message, plain, flow, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "one.txt").write_text("a cat\n")
    words = [word.format(tmp=tmp_path, plain=plain, flow=flow) for word in words]
    assert run("doctor", *words) == 2
    told = capsys.readouterr().err
    assert re.search(message, told), told
    assert told.startswith("ddim-ode doctor: ")
    assert "Traceback" not in told
