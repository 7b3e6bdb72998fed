"""A LoRA training as a host calls it: on a model that others use too, from inference mode, with cancel and progress."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.wan_core.training.tiny_run import SCENES, lora_command, losses, same_files, scenes
from wan_core.errors import InputError, TrainingError
from wan_core.runtime.ports import Compute, Ports
from wan_core.sampling.loras import constant
from wan_core.stages.load import load_model, load_text_encoder, load_vae
from wan_core.stages.lora import add_lora
from wan_core.training import __main__ as program
from wan_core.training.clips import ClipSize
from wan_core.training.data_set import DataSet, fingerprint
from wan_core.training.dit_task import DitSettings
from wan_core.training.flow import SigmaSettings
from wan_core.training.loop import LoopSettings
from wan_core.training.lora_job import LoraRecipe, check_fit, expert_of, train_lora
from wan_core.training.lora_task import LoraSettings, LoraTask
from wan_core.training.optim import OptimSettings
from wan_core.training.phases import Phase
from wan_core.training.show import COMPUTE, QUIET, ShowSettings
from wan_core.training.state import states
from wan_core.variants import VARIANTS

SIZE, STEPS = ClipSize(width=32, height=32, frames=5), 6


def model(files, low=None, variant="auto", dtype="fp32"):
    return load_model(
        files["model"], low, variant=variant, compute=Compute(device=torch.device("cpu"), bf16=True), dtype=dtype,
        notify=QUIET.notify,
    )  # fmt: skip


def data(files, path: Path) -> DataSet:
    return DataSet(
        name=SCENES,
        folder=None,
        clips=scenes(SIZE),
        size=SIZE,
        vae=load_vae(files["vae"], compute=COMPUTE, dtype="fp32"),
        encoder=load_text_encoder(files["text-encoder"], compute=COMPUTE, dtype="fp32"),
        path=path,
    )


def recipe(bf16=False, **loop) -> LoraRecipe:
    return LoraRecipe(
        lora=LoraSettings(rank=4, alpha=4.0),
        dit=DitSettings(phases=(Phase(frames=5, batch=2, steps=STEPS),), sigma=SigmaSettings(), bf16=bf16),
        loop=LoopSettings(steps=STEPS, **{"save_every": 100, "sample_every": 0, "log_every": 1} | loop),
        optim=OptimSettings(optimizer="adamw", lr=1e-3),
        show=ShowSettings(),
    )


def train(files, folder: Path, name="a", ports=QUIET, **more) -> Path:
    return train_lora(model(files), data(files, folder / "clips"), folder / name, recipe(), ports, **more)


def test_training_from_inference_mode_gives_the_same_file_and_leaves_the_model_alone(tmp_path, files):
    plain = train(files, tmp_path).read_bytes()
    with torch.inference_mode():
        shared = model(files)
        before = {name: value.clone() for name, value in shared.high.module.state_dict().items()}
        given = data(files, tmp_path / "others")
        path = train_lora(shared, given, tmp_path / "b", recipe(), QUIET)
        assert torch.is_inference_mode_enabled()
    assert path.read_bytes() == plain
    after = shared.high.module.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in after)
    assert shared.high.module.config.text_len == 512


class Cancelled(BaseException):
    """As newer hosts raise it."""


class OlderCancelled(Exception):
    """As older hosts raise it."""


@pytest.mark.parametrize("kind", [Cancelled, OlderCancelled])
@pytest.mark.parametrize("calls", [1, 9, 14])
def test_a_cancel_anywhere_keeps_what_was_learned_and_the_next_run_ends_as_if_unbroken(tmp_path, files, kind, calls):
    whole = train(files, tmp_path, "whole")
    count = []

    def check_cancel():
        count.append(1)
        if len(count) == calls:
            raise kind

    with pytest.raises(kind):
        train(files, tmp_path, "broken", ports=replace(QUIET, check_cancel=check_cancel))
    # Of each step one check comes before it, and one before each of the two blocks.
    kept = states(tmp_path / "broken")
    assert [path.name for path in kept] == [f"state-{(calls - 1) // 3:08d}.safetensors"]
    assert not (tmp_path / "broken" / "lora.safetensors").exists()
    done = []
    ports = Ports(notify=QUIET.notify, progress=lambda step, total, x0: done.append((step, total)))
    assert train(files, tmp_path, "broken", ports=ports).read_bytes() == whole.read_bytes()
    assert done == [(step, STEPS) for step in range((calls - 1) // 3 + 1, STEPS + 1)]
    assert same_files(states(tmp_path / "whole")[-1], states(tmp_path / "broken")[-1])


def test_the_curve_is_told_as_it_grows(tmp_path, files):
    seen = []
    train(files, tmp_path, watch=lambda points: seen.append(len(points)))
    assert seen == list(range(STEPS + 1))
    seen.clear()
    train(files, tmp_path, watch=lambda points: seen.append(len(points)))
    assert seen == [STEPS]


def test_the_finished_file_is_put_where_it_was_asked_for_and_not_before(tmp_path, files):
    target = tmp_path / "loras" / "mine.safetensors"
    seen = []
    ports = Ports(notify=QUIET.notify, progress=lambda *_: seen.append(target.exists()))
    assert train(files, tmp_path, ports=ports, target=target) == target
    assert seen == [False] * STEPS
    assert target.read_bytes() == (tmp_path / "a" / "lora.safetensors").read_bytes()
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    first = target.stat().st_mtime_ns
    assert train(files, tmp_path, target=target) == target and target.stat().st_mtime_ns >= first


@pytest.mark.parametrize("there", ["bytes", "lora", "another training"])
def test_a_file_that_is_not_of_this_training_is_not_overwritten(tmp_path, files, there):
    target = tmp_path / "mine.safetensors"
    if there == "bytes":
        target.write_bytes(b"mine")
    elif there == "lora":
        save_file({"x": torch.zeros(1)}, target, {"wan_core_training": "{}"})
    else:
        more = LoraSettings(rank=2, alpha=2.0)
        given = data(files, tmp_path / "clips")
        train_lora(model(files), given, tmp_path / "other", replace(recipe(), lora=more), QUIET, target)
    before = target.read_bytes()
    with pytest.raises(TrainingError, match=r"mine\.safetensors is there already and is not of this training"):
        train(files, tmp_path, target=target)
    assert target.read_bytes() == before and not (tmp_path / "a").exists()


def test_a_model_that_cannot_be_trained_is_refused_before_anything_is_done(tmp_path, files):
    path = train(files, tmp_path)
    full = constant(1.0)
    worn = add_lora(model(files), path, strength=full, strength_low=full, notify=QUIET.notify)
    given = data(files, tmp_path / "clips")
    with pytest.raises(InputError, match="has a LoRA on it"):
        train_lora(worn, given, tmp_path / "b", recipe(), QUIET)
    with pytest.raises(InputError, match="computes in fp16, in which gradients vanish"):
        train_lora(model(files, dtype="fp16"), given, tmp_path / "b", recipe(), QUIET)
    with pytest.raises(InputError, match=r"bf16 training takes a bf16 model"):
        train_lora(model(files), given, tmp_path / "b", recipe(bf16=True), QUIET)
    assert not (tmp_path / "b").exists()


def test_each_expert_is_trained_on_the_noise_levels_that_it_works_in(files):
    row = next(row for row in VARIANTS if row.name == "t2v-a14b")
    single = model(files)
    pair = replace(single, variant=row, low=model(files).high)
    alone = replace(single, variant=replace(row, boundary=None))
    assert expert_of(single, "all")[1] == (0.0, 1.0)
    for given in (pair, alone):
        high, low = expert_of(given, "high"), expert_of(given, "low")
        assert (high[1], low[1]) == ((row.boundary, 1.0), (0.0, row.boundary))
        assert high[0].high is given.high and low[0].high is (given.low or given.high)
        assert high[0].low is None and high[0].variant.experts == 1
        with pytest.raises(InputError, match="Choose high noise or low noise"):
            expert_of(given, "all")
    with pytest.raises(InputError, match="is a single model, which has no high-noise expert"):
        expert_of(single, "high")


def test_a_fingerprint_tells_values_and_names_apart(files):
    one, other = model(files).high.module, model(files).high.module
    assert fingerprint("a", one) == fingerprint("a", other) != fingerprint("b", one)
    with torch.no_grad():
        other.blocks[1].ffn[2].weight[-1, -1] += 1
    assert fingerprint("a", one) != fingerprint("a", other)


def test_a_loss_that_is_no_number_ends_the_command_in_a_sentence_and_nothing_good_is_lost(
    tmp_path, files, capsys, monkeypatch
):
    assert program.main(lora_command(tmp_path / "whole", files)) == 0
    original = LoraTask.loss
    with monkeypatch.context() as patch:
        patch.setattr(LoraTask, "loss", lambda self, step, part: original(self, step, part) * (1, torch.nan)[step == 4])
        assert program.main(lora_command(tmp_path / "broken", files)) == 1
    said = capsys.readouterr().err
    assert "the loss became nan at step 5. Nothing of this step was kept" in said
    assert "the last good state is" in said and "state-00000003.safetensors" in said and said.count("\n") == 1
    assert [path.name for path in states(tmp_path / "broken")] == ["state-00000003.safetensors"]
    assert all(torch.isfinite(value).all() for value in load_file(states(tmp_path / "broken")[-1]).values())
    assert not (tmp_path / "broken" / "lora.safetensors").exists()
    assert program.main(lora_command(tmp_path / "broken", files)) == 0  # what was wrong with the data is mended
    assert same_files(states(tmp_path / "whole")[-1], states(tmp_path / "broken")[-1])
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")


@pytest.mark.parametrize("name", ["fun-control-a14b", "fun-camera-a14b", "vace-1.3b"])
def test_a_model_that_takes_what_no_clip_brings_is_refused(name):
    with pytest.raises(InputError, match=r"(Fun|VACE) .* takes a control video, a camera path.*Train on a T2V"):
        check_fit(tiny.model(name), tiny.vae(), SimpleNamespace(config=SimpleNamespace(dim=24)))


def test_a_model_that_takes_its_picture_in_two_places_is_refused():
    with pytest.raises(InputError, match="a picture in two places"):
        check_fit(tiny.model("fun-inp-5b"), tiny.vae(48), SimpleNamespace(config=SimpleNamespace(dim=24)))
