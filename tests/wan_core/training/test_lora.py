"""Training a LoRA: what is trained, what its file says, and that nothing else moves."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.wan_core.training.tiny_run import lora_command, losses, same_files
from wan_core.runtime.ports import Ports
from wan_core.sampling.loras import constant
from wan_core.stages.load import load_model
from wan_core.stages.lora import add_lora
from wan_core.stages.sample import Settings, StartLatent, sample
from wan_core.stages.sides import Condition
from wan_core.training import __main__ as program
from wan_core.training.lora_task import TARGETS, LoraSettings, LoraTask, add_trained_layers, trained_layers
from wan_core.training.show import COMPUTE, ShowSettings
from wan_core.training.state import states

QUIET = Ports(notify=lambda text: None)


def model(path, dtype="fp32"):
    return load_model(path, compute=COMPUTE, dtype=dtype, notify=lambda text: None)


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_the_loss_falls_and_the_file_holds_both_halves_of_every_target(tmp_path, files, image_files, kind):
    """Of a network of random values, whose last layer stays as it is, there is only so much to learn."""
    more = ["--phases", "5x6x40", "--optimizer", "muon", "--lr", "0.05", "--precision", "fp32"]
    more += ["--sigma", "0.4", "0.5", "--drop-text", "0"]
    given = files if kind == "t2v" else image_files
    before = given["model"].read_bytes()
    assert program.main(lora_command(tmp_path, given, *more)) == 0
    curve = losses(tmp_path)
    assert sum(curve[-8:]) < 0.96 * sum(curve[:8])
    assert given["model"].read_bytes() == before
    tensors = load_file(tmp_path / "lora.safetensors")
    layers = ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "ffn.0", "ffn.2"]
    layers += [f"cross_attn.{one}" for one in "qkvo"]
    names = {
        f"diffusion_model.blocks.{n}.{layer}.lora_{half}.weight" for n in (0, 1) for layer in layers for half in "AB"
    }
    assert set(tensors) == names
    assert all(tensor.dtype is torch.bfloat16 and tensor.any() for tensor in tensors.values())
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["wan_core_training"])
    assert (facts["rank"], facts["alpha"], facts["base"], facts["clips"]) == (4, 4, given["model"].name, 6)


def test_the_file_on_the_loader_is_the_network_that_was_trained(tmp_path, files):
    """What training computes with and what the sampler computes with the file, of a rank whose scale is not 1."""
    trained, settings = model(files["model"]), LoraSettings(rank=4, alpha=2.0)
    layers = trained_layers(add_trained_layers(trained.high.module, settings, seed=0))
    generator = torch.Generator().manual_seed(1)
    weights = {}
    with torch.no_grad():
        for path, layer in layers.items():
            for half in ("down", "up"):
                values = torch.randn(getattr(layer, half).shape, generator=generator).bfloat16().float() / 4
                getattr(layer, half).copy_(values)
                weights[f"{path}.{half}"] = values
    (path,) = LoraTask(trained.high.module, None, None, facts={}).export(weights, tmp_path)
    told = []
    full = constant(1.0)
    worn = add_lora(model(files["model"]), path, strength=full, strength_low=full, strict=True, notify=told.append)
    assert "applied 40 of 40 tensors" in told[0]
    text = torch.randn(1, 512, 24, generator=generator)
    start = StartLatent(samples=torch.zeros(1, 16, 2, 4, 4))
    settings = Settings(steps=2, guidance_high=1.0, solver="euler")
    results = [sample(one, Condition(text=text), None, start, settings, QUIET) for one in (trained, worn)]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    plain = sample(model(files["model"]), Condition(text=text), None, start, settings, QUIET)
    assert (plain - results[1]).abs().max() > 1e-2


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_run_interrupted_at_any_step_and_started_again_ends_as_if_unbroken(tmp_path, files, monkeypatch, step):
    assert program.main(lora_command(tmp_path / "whole", files)) == 0
    original, calls = LoraTask.loss, []

    def loss(self, *args):
        calls.append(args)
        if len(calls) == step:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LoraTask, "loss", loss)
        assert program.main(lora_command(tmp_path / "broken", files)) == 130
    assert program.main(lora_command(tmp_path / "broken", files)) == 0
    assert same_files(states(tmp_path / "whole")[-1], states(tmp_path / "broken")[-1])
    a, b = (tmp_path / name / "lora.safetensors" for name in ("whole", "broken"))
    assert a.read_bytes() == b.read_bytes()
    assert not list((tmp_path / "broken").glob("*.part"))


def test_a_state_holds_the_changes_and_not_the_model(tmp_path, files):
    assert program.main(lora_command(tmp_path, files)) == 0
    with safe_open(states(tmp_path)[-1], "pt") as file:
        names = {name.split(":")[1] for name in file.keys() if name.startswith("now:")}  # noqa: SIM118
    assert len(names) == 40 and all(name.endswith((".down", ".up")) for name in names)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--targets", "q", "nothing"], "no layer of a block is called nothing"),
        (["--rank", "0"], "--rank must be at least 1; got 0"),
        (["--alpha", "0"], "--alpha must be above 0; got 0.0"),
    ],
)
def test_settings_that_train_nothing_are_refused(tmp_path, files, capsys, more, complaint):
    assert program.main(lora_command(tmp_path, files, *more)) == 1
    assert complaint in capsys.readouterr().err


def test_targets_choose_the_layers(tmp_path, files):
    assert program.main(lora_command(tmp_path, files, "--targets", "q", "ffn.0")) == 0
    names = load_file(tmp_path / "lora.safetensors")
    assert {name.split(".", 3)[3].rsplit(".lora", 1)[0] for name in names} == {"self_attn.q", "cross_attn.q", "ffn.0"}
    assert set(TARGETS) >= {"q", "ffn.0"}


def test_a_sample_shows_the_lora_on_its_base(tmp_path, files, monkeypatch):
    monkeypatch.setattr(program.commands, "ShowSettings", lambda: ShowSettings(count=2, steps=2))
    assert program.main(lora_command(tmp_path, files, "--phases", "5x2x2", "--sample-every", "2")) == 0
    assert (tmp_path / "sample-00000002.mp4").is_file()


def test_checkpointing_changes_no_bit(tmp_path, files):
    for name, more in (("a", []), ("b", ["--checkpoint"])):
        assert program.main(lora_command(tmp_path / name, files, "--precision", "fp32", *more)) == 0
    a, b = (load_file(tmp_path / name / "lora.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
