"""What the command line takes, what it refuses before anything is encoded, and whether its files are model files."""

import argparse
import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from scripts.nano.captions import sentencepiece_model
from tests.wan_core.training.tiny_run import DIT, TEXT, dit_command, vae_command, write_files
from wan_core.models.umt5 import Umt5Encoder
from wan_core.runtime.ports import Ports
from wan_core.stages.load import load_model, load_text_encoder, load_vae
from wan_core.stages.text import encode_text
from wan_core.training import __main__ as program
from wan_core.training import commands
from wan_core.training.dit_task import write_text_encoder
from wan_core.training.optim import OptimSettings
from wan_core.training.show import COMPUTE


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    """Folders of a VAE run, and of a text-to-video and an image-to-video run with the text encoder."""
    root = tmp_path_factory.mktemp("runs")
    wide = write_files(tmp_path_factory.mktemp("wide"), in_dim=36)
    assert program.main(vae_command(root / "vae", "--phases", "5x2x2")) == 0
    for name, given in (("t2v", files), ("i2v", wide)):
        more = ["--phases", "5x2x2", "--train-text-encoder"]
        assert program.main(dit_command(root / name, given, *more)) == 0
    return root


def says(capsys, command) -> str:
    """The one sentence of a command that is refused."""
    assert program.main(command) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    return said


@pytest.mark.parametrize("kind", commands.COMMANDS)
def test_help_lists_every_option_with_its_default(kind, capsys):
    with pytest.raises(SystemExit) as ended:
        program.main([kind, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    dit = ["--model", "--sigma", "--shift", "--drop-text", "--checkpoint"]
    own = {"vae": ["--dim", "--kl"], "dit": dit, "lora": [*dit, "--rank", "--alpha", "--targets"]}
    for option in [*own[kind], "--data", "--ema", "--accumulate", "--precision", "--save-every", "--sample-every"]:
        assert option in text
    assert "(default: 0.998)" in re.sub(r"\s+", " ", text)


def test_help_of_the_program_names_what_it_trains(capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(kind in text for kind in commands.COMMANDS)


@pytest.mark.parametrize("command", [[], ["loha"], ["lora"], ["vae"], ["vae", "--out", "x"], ["vae", "--size", "64"]])
def test_a_command_that_lacks_something_shows_the_usage(command, capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(command)
    assert ended.value.code == 2
    assert "usage: python -m wan_core.training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--data", "no/such/folder"], "no/such/folder is no folder"),
        (["--held", "no/such/folder"], "no/such/folder is no folder"),
        (["--size", "20", "16"], "width must be a multiple of 16 .* got 20. Use 16 or 32"),
        (["--size", "16", "0"], "height must be a multiple of 16 .* got 0"),
        (["--size", "-16", "16"], "width must be a multiple of 16"),
        (["--frames", "6"], r"frames must be 4n\+1 .* got 6. Use 5 or 9"),
        (["--frames", "0"], r"frames must be 4n\+1"),
        (["--phases", "9x1x1"], "a phase has 9 frames, the clips 5"),
        (["--phases", "5x1"], "a phase is FRAMESxBATCHxSTEPS"),
        (["--accumulate", "0"], "--accumulate must be at least 1; got 0"),
        (["--save-every", "-1"], "--save-every must be at least 0; got -1"),
        (["--lr", "0"], "--lr must be above 0; got 0.0"),
        (["--lr", "nan"], "--lr must be above 0; got nan"),
        (["--ema", "1.5"], "--ema must be from 0 to 1; got 1.5"),
        (["--seed", "-1"], "--seed must be at least 0; got -1"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_anything_is_done(
    tmp_path, files, capsys, monkeypatch, more, complaint
):
    monkeypatch.setattr(commands.DataSet, "encoded", lambda *_, **__: pytest.fail("encoded"))
    for command in (vae_command(tmp_path / "a", *more), dit_command(tmp_path / "b", files, *more)):
        assert re.search(complaint, says(capsys, command))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--sigma", "0.9", "0.1"], "the range of sigma must lie in 0 to 1, rising; got 0.9 to 0.1"),
        (["--shift", "0"], "--shift must be above 0; got 0.0"),
        (["--drop-text", "2"], "--drop-text must be from 0 to 1; got 2.0"),
        (["--model", "absent.safetensors"], "--model absent.safetensors does not exist"),
        (["--vae", "VAE_AS_MODEL"], "is a Wan diffusion model file, not a VAE"),
        (["--text-encoder", "OTHER_TEXT"], "reads text of width 24, .* gives 16"),
    ],
)
def test_what_a_transformer_cannot_be_trained_with_is_refused(tmp_path, files, capsys, more, complaint):
    if more[1] == "VAE_AS_MODEL":
        more = ["--vae", str(files["model"])]
    if more[1] == "OTHER_TEXT":
        narrow = Umt5Encoder(replace(TEXT, dim=16))
        write_text_encoder(tmp_path / "other.safetensors", dict(narrow.state_dict()), sentencepiece_model())
        more = ["--text-encoder", str(tmp_path / "other.safetensors")]
    assert re.search(complaint, says(capsys, dit_command(tmp_path / "out", files, *more)))
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_made_is_refused_in_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "file" in says(capsys, vae_command(tmp_path / "file"))


def test_the_settings_of_the_optimizer_are_those_of_the_command_line(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(commands, "train", lambda task, out, loop, optim, chosen: seen.append((loop, optim)) or [])
    more = ["--lr", "0.5", "--lr-end", "0.25", "--weight-decay", "0.125", "--clip", "2", "--optimizer", "adamw"]
    assert program.main(vae_command(tmp_path, *more, "--accumulate", "3")) == 0
    (loop, optim), *_ = seen
    want = OptimSettings(optimizer="adamw", lr=0.5, lr_end=0.25, warmup=2, weight_decay=0.125, clip=2.0, ema=0.5)
    assert optim == want
    assert (loop.steps, loop.accumulate, loop.save_every) == (8, 3, 3)


def test_a_trained_vae_is_a_wan_vae_file(trained):
    path = trained / "vae" / "vae.safetensors"
    handle = load_vae(path, compute=COMPUTE, dtype="fp32")
    assert handle.config.dim == 4 and handle.spec.channels == 16
    latent = handle.weights.module.encode(torch.zeros(1, 3, 5, 16, 16))
    assert latent.shape == (1, 16, 2, 2, 2) and torch.isfinite(latent).all()
    with safe_open(path, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.parametrize(("kind", "in_dim"), [("t2v", 16), ("i2v", 36)])
def test_a_trained_transformer_is_a_wan_model_file_that_tells_its_heads(trained, kind, in_dim):
    path = trained / kind / "dit.safetensors"
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["config"])["transformer"]
    assert (told["num_heads"], told["in_dim"], told["num_layers"]) == (DIT.num_heads, in_dim, DIT.num_layers)
    handle = load_model(path, compute=COMPUTE, dtype="fp32", notify=lambda text: None)
    assert handle.variant.dit == replace(DIT, in_dim=in_dim)
    module = handle.high.module
    out = module(torch.zeros(1, in_dim, 2, 4, 4), torch.tensor([500.0]), torch.zeros(1, 3, TEXT.dim))
    assert out.shape == (1, 16, 2, 4, 4) and torch.isfinite(out).all()


def test_a_trained_text_encoder_carries_its_tokenizer(trained, files):
    handle = load_text_encoder(trained / "t2v" / "text_encoder.safetensors", compute=COMPUTE, dtype="fp32")
    assert handle.config == TEXT
    before = load_text_encoder(files["text-encoder"], compute=COMPUTE, dtype="fp32")
    text = "A small red circle moves left on a white background."
    assert handle.tokenizer().encode(text).ids == before.tokenizer().encode(text).ids
    assert not torch.equal(encode_text(handle, text, Ports()), encode_text(before, text, Ports()))


def test_a_trained_transformer_can_be_trained_further(trained, files, tmp_path):
    given = files | {
        "model": trained / "t2v" / "dit.safetensors",
        "text-encoder": trained / "t2v" / "text_encoder.safetensors",
    }
    assert program.main(dit_command(tmp_path, given, "--phases", "5x2x1", "--sigma", "0.875", "1")) == 0


def test_another_vae_of_the_same_name_is_another_run(files, tmp_path, capsys):
    assert program.main(dit_command(tmp_path / "out", files, "--phases", "5x2x1")) == 0
    (tmp_path / "other").mkdir()
    other = write_files(tmp_path / "other")
    data = bytearray(other["vae"].read_bytes())
    data[-1] ^= 1
    other["vae"].write_bytes(data)
    said = says(capsys, dit_command(tmp_path / "out", files | {"vae": other["vae"]}, "--phases", "5x2x1"))
    assert "other settings (vae" in said


@pytest.mark.parametrize(("native", "asked", "got"), [
    (True, "auto", "bf16"), (False, "auto", "fp32"), (False, "bf16", "bf16"), (True, "fp32", "fp32"),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["vae", "dit", "lora"])
def test_it_computes_in_bf16_by_itself_only_where_the_device_can(monkeypatch, kind, native, asked, got):
    monkeypatch.setattr(commands, "has_bf16", lambda device: native)
    given = argparse.Namespace(precision=asked, **({"device": "cpu"} if kind == "lora" else {}))
    commands.choose_precision(given)
    assert given.precision == got
