"""The untrained files that the nano family begins with, and the recipes that begin with them."""

import shlex
from dataclasses import replace

import pytest
import torch

from scripts.nano import start, train
from wan_core.runtime.ports import Ports
from wan_core.stages.load import load_model, load_text_encoder
from wan_core.stages.text import encode_text
from wan_core.training import commands
from wan_core.training.show import COMPUTE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("start")
    start.write_t2v(made)
    start.write_i2v(made / "start_dit.safetensors", made / "start_i2v.safetensors")
    return made


def model(path):
    return load_model(path, compute=COMPUTE, dtype="fp32", notify=lambda text: None)


def test_the_start_files_load_as_a_wan_model_and_text_encoder(folder):
    assert model(folder / "start_dit.safetensors").variant.dit == start.DIT
    encoder = load_text_encoder(folder / "start_text_encoder.safetensors", compute=COMPUTE, dtype="fp32")
    assert encoder.config == start.TEXT
    rows = encode_text(encoder, "A small red circle.", Ports())
    assert rows.shape == (1, 512, start.TEXT.dim) and 0.1 < rows[0, :5].std() < 10


def test_the_same_seed_writes_the_same_files(folder, tmp_path):
    for path in start.write_t2v(tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert start.write_t2v(tmp_path, seed=1)[0].read_bytes() != (folder / "start_dit.safetensors").read_bytes()


def test_the_untrained_transformer_answers_zero(folder):
    module = model(folder / "start_dit.safetensors").high.module
    out = module(torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 4, start.TEXT.dim))
    assert not out.any()


def test_the_image_model_begins_as_the_text_model_whatever_the_picture(folder):
    wide = model(folder / "start_i2v.safetensors")
    assert wide.variant.dit == replace(start.DIT, in_dim=36)
    narrow = model(folder / "start_dit.safetensors")
    for handle in (wide, narrow):
        torch.nn.init.normal_(handle.high.module.head.head.weight, generator=torch.Generator().manual_seed(0))
    x, t, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 4, start.TEXT.dim)
    got = wide.high.module(torch.cat([x, torch.randn(1, 20, 2, 4, 4)], 1), t, text)
    torch.testing.assert_close(got, narrow.high.module(x, t, text), atol=1e-5, rtol=1e-5)


def test_every_recipe_is_a_command_that_the_trainer_takes(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train", "--show"])
    assert train.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[2:] for line in lines if line.startswith("# ")] == list(train.RECIPE)
    monkeypatch.setattr(train, "prepare", lambda name: pytest.fail("prepared"))
    seen = []

    def run(args):
        """Only look."""
        seen.append(args)
        return []

    fake = {name: replace(command, run=run) for name, command in commands.COMMANDS.items()}
    monkeypatch.setattr(commands, "COMMANDS", fake)
    for line in lines[1::2]:
        assert train.train(shlex.split(line)[3:]) == 0
    assert len(seen) == len(train.RECIPE)


def test_a_recipe_that_is_none_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train", "lora"])
    with pytest.raises(SystemExit):
        train.main()
    assert "there is no lora; choose from vae" in capsys.readouterr().err
