"""How a run ends badly, and what is on disk then; the arithmetic of averages, rates and phases."""

import json
import logging
import math

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from wan_core.errors import InputError, TrainingError
from wan_core.training import state
from wan_core.training.curve import draw_curve
from wan_core.training.loop import LoopSettings, train
from wan_core.training.optim import Average, Optimizer, OptimSettings, is_hidden_matrix, lr_at
from wan_core.training.phases import Phase, phase_at
from wan_core.training.rng import generator_of
from wan_core.training.state import load_state, save_state, states, write_safetensors

OPTIM = OptimSettings(lr=0.01, warmup=0, ema=0.5)


class Line:
    """Fits one matrix; ``bad`` maps a step to what its loss is multiplied with."""

    def __init__(self, bad=None):
        self.weight = nn.Parameter(torch.eye(3))
        self.bad = bad or {}

    def parameters(self):
        return {"weight": self.weight}

    def loss(self, step, part):
        if self.bad.get(step) is KeyboardInterrupt:
            raise KeyboardInterrupt
        x = torch.randn(4, 3, generator=generator_of(step, part))
        return (x @ self.weight - 2 * x).square().mean() * self.bad.get(step, 1.0)

    def export(self, weights, folder):
        path = folder / "line.safetensors"
        write_safetensors(path, dict(weights), {})
        return [path]

    def sample(self, weights, path):
        return None


def run(folder, task=None, steps=6, settings=None, optim=OPTIM, **loop):
    return train(task or Line(), folder, LoopSettings(steps=steps, save_every=2, **loop), optim, settings or {"a": 1})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_and_names_the_step_and_the_last_good_state(tmp_path, factor):
    with pytest.raises(TrainingError, match=r"loss became (nan|inf) at step 6.*state-00000004\.safetensors"):
        run(tmp_path, Line({5: factor}))
    assert load_state(tmp_path, settings_of(tmp_path)).step == 4
    assert not (tmp_path / "line.safetensors").exists()
    run(tmp_path)  # the data are mended: it goes on
    run(tmp_path / "whole")
    assert (tmp_path / "line.safetensors").read_bytes() == (tmp_path / "whole" / "line.safetensors").read_bytes()


def settings_of(folder):
    with safe_open(states(folder)[-1], "pt") as file:
        return json.loads(file.metadata()["state"])["settings"]


def test_a_loss_that_is_no_number_at_once_leaves_no_state(tmp_path):
    with pytest.raises(TrainingError, match=r"at step 1\..*no state had been written yet"):
        run(tmp_path, Line({0: math.nan}))
    assert names(tmp_path) == []


def test_gradients_that_are_no_numbers_stop_before_they_reach_the_weights(tmp_path):
    task = Line()
    original = task.loss

    def loss(step, part):
        value = original(step, part)
        # sqrt has an infinite slope at 0: the loss is a number, its gradient is none.
        return value + ((task.weight - task.weight.detach()).abs().sum().sqrt() if step == 3 else 0)

    task.loss = loss
    with pytest.raises(TrainingError, match=r"gradient became nan at step 4.*state-00000002"):
        run(tmp_path, task)
    assert torch.isfinite(task.weight).all()


def test_ctrl_c_saves_where_the_run_is(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Line({3: KeyboardInterrupt}))
    assert load_state(tmp_path, settings_of(tmp_path)).step == 3
    assert run(tmp_path)[0].read_bytes() == run(tmp_path / "whole")[0].read_bytes()


def test_a_step_that_fails_half_way_through_the_weights_is_not_saved(tmp_path, monkeypatch):
    """As when memory runs out between two parameters."""
    update = Average.update

    def failing(self, parameters, step):
        if step == 4:
            raise RuntimeError("out of memory")
        update(self, parameters, step)

    with monkeypatch.context() as patch:
        patch.setattr(Average, "update", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(tmp_path, steps=6, log_every=0)
    assert load_state(tmp_path, settings_of(tmp_path)).step == 4
    assert run(tmp_path)[0].read_bytes() == run(tmp_path / "whole")[0].read_bytes()


def test_an_error_between_two_steps_saves_what_was_learned(tmp_path):
    def loss(step, part):
        if step == 3:
            raise RuntimeError("out of memory")
        return Line.loss(task, step, part)

    task = Line()
    task.loss = loss
    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path, task)
    assert load_state(tmp_path, settings_of(tmp_path)).step == 3


def test_the_curve_of_a_run_that_was_broken_off_is_that_of_an_unbroken_one(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Line({3: KeyboardInterrupt}), log_every=2)
    run(tmp_path, log_every=2)
    run(tmp_path / "whole", log_every=2)
    curves = [load_state(folder, settings_of(folder)).losses for folder in (tmp_path, tmp_path / "whole")]
    assert [step for step, _ in curves[0]] == [2, 4, 6]
    assert curves[0] == curves[1]


def test_a_full_disk_leaves_the_state_before_and_no_partial_file(tmp_path, monkeypatch):
    original = state.save_file

    def full(tensors, path, metadata):
        if "00000004" in path.name:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", full)
        with pytest.raises(TrainingError, match=r"No space left.*make room and start the same command again"):
            run(tmp_path)
    assert names(tmp_path) == ["state-00000002.safetensors"]
    assert run(tmp_path)[0].read_bytes() == run(tmp_path / "whole")[0].read_bytes()


def test_a_picture_that_cannot_be_written_leaves_no_partial_file(tmp_path, monkeypatch):
    def full(self, place, form):
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(TrainingError, match="No space left"):
        draw_curve([(1, 1.0), (2, 0.5)], tmp_path / "loss.png")
    assert names(tmp_path) == []


def test_two_states_are_kept_and_parts_of_earlier_ones_are_cleared_away(tmp_path):
    (tmp_path / "state-00000001.safetensors.7.part").write_bytes(b"half")
    run(tmp_path, steps=7)
    assert [path.name for path in states(tmp_path)] == ["state-00000006.safetensors", "state-00000007.safetensors"]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "another"])
def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path, caplog, damage):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Line({5: KeyboardInterrupt}))
    newest = states(tmp_path)[-1]
    data = newest.read_bytes()
    if damage == "another":
        write_safetensors(newest, {"x": torch.zeros(1)}, {})
    else:
        newest.write_bytes({"cut": data[: len(data) // 2], "noise": b"\xff" * 900, "empty": b""}[damage])
    caplog.set_level(logging.INFO)
    assert run(tmp_path)[0].read_bytes() == run(tmp_path / "whole")[0].read_bytes()
    assert any(f"{newest.name} cannot be read" in line for line in caplog.messages)
    assert any(line.startswith("going on from step 4") for line in caplog.messages)


def test_a_run_whose_states_are_all_damaged_is_not_begun_anew_in_silence(tmp_path):
    run(tmp_path, steps=4)
    for path in states(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(TrainingError, match=r"no state in .* can be read"):
        run(tmp_path, steps=4)


def test_a_run_of_other_settings_is_refused_by_name(tmp_path):
    run(tmp_path, settings={"data": "a", "size": [1, 2]})
    with pytest.raises(TrainingError, match=r"other settings \(data 'a' -> 'b'\)"):
        run(tmp_path, settings={"data": "b", "size": (1, 2)})
    with pytest.raises(TrainingError, match=r"accumulate 1 -> 2, lr 0\.01 -> 0\.02"):
        other = OptimSettings(lr=0.02, warmup=0, ema=0.5)
        run(tmp_path, settings={"data": "a", "size": [1, 2]}, optim=other, accumulate=2)


def test_a_finished_run_is_not_run_again(tmp_path):
    first = run(tmp_path)[0].read_bytes()
    assert run(tmp_path, Line(dict.fromkeys(range(9), math.nan)))[0].read_bytes() == first


def test_accumulated_batches_are_one_step_on_their_mean(tmp_path):
    class Both(Line):
        def loss(self, step, part):
            return (Line.loss(self, step, 0) + Line.loss(self, step, 1)) / 2

    whole, parts = Both(), Line()
    train(whole, tmp_path / "a", LoopSettings(steps=3), OPTIM, {})
    train(parts, tmp_path / "b", LoopSettings(steps=3, accumulate=2), OPTIM, {})
    torch.testing.assert_close(parts.weight, whole.weight)


def test_the_average_moves_towards_the_weights_by_its_decay():
    weight = nn.Parameter(torch.tensor([1.0]))
    average = Average({"w": weight}, 0.9)
    weight.data.fill_(2)
    average.update({"w": weight}, 0)  # young: decay 1/10
    assert average.values["w"].item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    average.values["w"].fill_(1)
    average.update({"w": weight}, 1000)
    assert average.values["w"].item() == pytest.approx(0.9 * 1 + 0.1 * 2)


def test_what_is_exported_is_the_average_of_the_weights_of_all_steps(tmp_path):
    task, values = Line(), []
    original = task.loss
    task.loss = lambda step, part: (values.append(task.weight.detach().clone()), original(step, part))[1]
    path = run(tmp_path, task)[0]
    want = values[0]
    for step, value in enumerate([*values[1:], task.weight.detach()]):
        decay = min(0.5, (step + 1) / (step + 10))
        want = decay * want + (1 - decay) * value
    torch.testing.assert_close(state.load_file(path)["weight"], want)


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    settings = OptimSettings(lr=2.0, lr_end=0.1, warmup=4)
    rates = [lr_at(step, 100, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.5)
    assert rates[3] == max(rates) and rates[3] == pytest.approx(2.0, rel=0.01)
    assert rates[50] == pytest.approx(2 * 0.55) and rates[100] == pytest.approx(0.2)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_an_optimizer_goes_on_from_its_state_bit_by_bit(optimizer):
    settings = OptimSettings(optimizer=optimizer, lr=0.1)

    def made():
        weights = {"a.weight": torch.ones(4, 3), "a.bias": torch.zeros(4), "c.weight": torch.ones(4, 2, 3, 1, 1)}
        return {name: nn.Parameter(value.clone()) for name, value in weights.items()}

    def steps(optimizer, numbers):
        for number in numbers:
            for index, parameter in enumerate(optimizer.parameters.values()):
                parameter.grad = torch.randn(parameter.shape, generator=generator_of(number, index))
            optimizer.clip()
            optimizer.step(0.1)

    whole, begun, resumed = (Optimizer(made(), settings) for _ in range(3))
    steps(whole, range(5))
    steps(begun, range(3))
    for name, parameter in resumed.parameters.items():
        parameter.data.copy_(begun.parameters[name])
    resumed.load(begun.state())
    steps(resumed, range(3, 5))
    assert all(torch.equal(whole.parameters[name], parameter) for name, parameter in resumed.parameters.items())


def test_muon_takes_hidden_matrices_and_nothing_else():
    taken = {"blocks.0.ffn.0.weight": (8, 4), "encoder.downsamples.0.residual.2.weight": (8, 4, 3, 3, 3)}
    left = {
        "blocks.0.ffn.0.bias": (8,), "blocks.0.modulation": (1, 6, 8), "head.head.weight": (4, 8),
        "patch_embedding.weight": (8, 4, 1, 2, 2), "token_embedding.weight": (9, 4), "decoder.head.2.weight": (3, 4, 3),
        "encoder.conv1.weight": (8, 3, 3, 3, 3), "norm.gamma": (8, 1, 1),
    }  # fmt: skip
    for shapes, expected in ((taken, True), (left, False)):
        assert {name: is_hidden_matrix(name, torch.empty(shape)) for name, shape in shapes.items()} == dict.fromkeys(
            shapes, expected
        )


def test_phases_come_one_after_another_and_the_last_goes_on():
    phases = (Phase.parse("1x16x2"), Phase.parse("17x4x1"))
    assert [phase_at(phases, step).frames for step in range(5)] == [1, 1, 17, 17, 17]


@pytest.mark.parametrize("text", ["", "1x2", "1x2x3x4", "ax2x3", "0x2x3", "-1x2x3", "4x2x3", "1x2x0", "1.5x2x3"])
def test_a_phase_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="a phase"):
        Phase.parse(text)


def test_a_state_is_read_back_as_it_was_written(tmp_path):
    written = state.RunState(
        step=3, settings={"a": 1}, tensors={"now:w": torch.arange(3)}, losses=[(1, 0.5)], recent=[0.25], seconds=2.5
    )
    save_state(tmp_path, written)
    read = load_state(tmp_path, {"a": 1})
    assert (read.step, read.losses, read.recent, read.seconds) == (3, [(1, 0.5)], [0.25], 2.5)
    assert torch.equal(read.tensors["now:w"], torch.arange(3))
    assert load_state(tmp_path / "empty", {}) is None
