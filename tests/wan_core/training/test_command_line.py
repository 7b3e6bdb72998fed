"""The real command line, short and seeded: it learns, repeats itself, and a kill changes nothing."""

import os
import signal
import subprocess
import sys
import time

import av
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT
from tests.wan_core.training.tiny_run import dit_command, losses, same_files, vae_command
from wan_core.training import __main__ as program
from wan_core.training import loop
from wan_core.training.show import ShowSettings
from wan_core.training.state import states


@pytest.fixture(autouse=True)
def signals():
    """The program sets what ends it; the tests after it end as before. Ctrl-C counts, though whoever started the tests
    in the background has it ignored."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)


def newest(folder):
    return states(folder)[-1]


def interrupt_at(monkeypatch, task, step, how=KeyboardInterrupt):
    """The ``step``-th call of a task's loss ends the run."""
    original, calls = task.loss, []

    def loss(self, *args):
        calls.append(args)
        if len(calls) == step:
            raise how
        return original(self, *args)

    monkeypatch.setattr(task, "loss", loss)


@pytest.mark.parametrize(("optimizer", "precision"), [("muon", "bf16"), ("adamw", "fp32")])
def test_training_a_vae_makes_the_loss_fall_and_its_file_loads(tmp_path, optimizer, precision):
    more = ["--phases", "5x2x25", "--optimizer", optimizer, "--precision", precision, "--lr", "3e-3"]
    assert program.main(vae_command(tmp_path, *more)) == 0
    curve = losses(tmp_path)
    assert len(curve) == 25
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])
    assert (tmp_path / "vae.safetensors").is_file()
    assert Image.open(tmp_path / "loss.png").size == (800, 400)
    assert [path.name for path in states(tmp_path)] == ["state-00000024.safetensors", "state-00000025.safetensors"]


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_training_a_transformer_makes_the_loss_fall(tmp_path, files, image_files, kind):
    more = ["--phases", "5x6x40", "--lr", "1e-2", "--precision", "fp32"]
    assert program.main(dit_command(tmp_path, files if kind == "t2v" else image_files, *more)) == 0
    curve = losses(tmp_path)
    assert sum(curve[-8:]) < 0.85 * sum(curve[:8])


@pytest.mark.parametrize("more", [(), ("--train-text-encoder", "--accumulate", "2", "--optimizer", "adamw")])
def test_the_same_command_twice_gives_the_same_bits(tmp_path, files, more):
    for name in "ab":
        assert program.main(dit_command(tmp_path / name, files, *more)) == 0
    a, b = tmp_path / "a", tmp_path / "b"
    assert same_files(newest(a), newest(b))
    assert (a / "dit.safetensors").read_bytes() == (b / "dit.safetensors").read_bytes()
    assert (a / "text_encoder.safetensors").exists() == bool(more)


def test_another_seed_gives_other_weights(tmp_path):
    assert program.main(vae_command(tmp_path / "a")) == program.main(vae_command(tmp_path / "b", "--seed", "1")) == 0
    assert not same_files(newest(tmp_path / "a"), newest(tmp_path / "b"))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_transformer_interrupted_and_started_again_ends_as_if_unbroken(tmp_path, files, monkeypatch, optimizer):
    more = ["--train-text-encoder", "--accumulate", "2", "--optimizer", optimizer]
    assert program.main(dit_command(tmp_path / "whole", files, *more)) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, program.commands.DitTask, step=10)  # in the middle of the fifth step
        assert program.main(dit_command(tmp_path / "broken", files, *more)) == 130
    assert newest(tmp_path / "broken").name == "state-00000004.safetensors"
    assert program.main(dit_command(tmp_path / "broken", files, *more)) == 0
    assert same_files(newest(tmp_path / "whole"), newest(tmp_path / "broken"))
    for name in ("dit.safetensors", "text_encoder.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")


def start(command, hook):
    """The program in a process of its own, after ``hook``."""
    code = (
        f"from wan_core.training import loop, __main__\nimport time, sys\n{hook}\nsys.exit(__main__.main(sys.argv[1:]))"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(folder, process):
    deadline = time.monotonic() + 120
    while not (folder.is_dir() and states(folder)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


HELD = "one = loop._Run.one_step\nloop._Run.one_step = lambda run: (time.sleep(60 if run.step == 4 else 0), one(run))"


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_run_started_again_ends_as_if_unbroken(tmp_path):
    assert program.main(vae_command(tmp_path / "whole")) == 0
    process = start(vae_command(tmp_path / "broken"), HELD)
    wait_for(tmp_path / "broken", process)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "broken" / "vae.safetensors").exists()
    assert program.main(vae_command(tmp_path / "broken")) == 0
    assert same_files(newest(tmp_path / "whole"), newest(tmp_path / "broken"))
    assert (tmp_path / "whole/vae.safetensors").read_bytes() == (tmp_path / "broken/vae.safetensors").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_kill_while_a_state_is_written_leaves_the_one_before_and_no_partial_file(tmp_path):
    """The second state is half written when the process dies."""
    hook = (
        "from wan_core.training import state\nimport os, signal\nsave = state.save_file\n"
        "def half(tensors, path, metadata):\n"
        "    save(tensors, path, metadata)\n"
        "    if '00000006' in path.name:\n"
        "        os.truncate(path, 1000)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "state.save_file = half"
    )
    process = start(vae_command(tmp_path), hook)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in states(tmp_path)] == ["state-00000003.safetensors"]
    assert program.main(vae_command(tmp_path)) == 0
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_wish_to_end_in_the_middle_of_an_update_waits_until_the_step_is_whole(tmp_path, monkeypatch, number):
    assert program.main(vae_command(tmp_path / "whole")) == 0
    update = loop.Average.update

    def interrupted(self, parameters, step):
        if step == 4:
            signal.raise_signal(number)
        update(self, parameters, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Average, "update", interrupted)
        assert program.main(vae_command(tmp_path / "broken")) == 130
    assert newest(tmp_path / "broken").name == "state-00000005.safetensors"
    assert program.main(vae_command(tmp_path / "broken")) == 0
    assert same_files(newest(tmp_path / "whole"), newest(tmp_path / "broken"))


def test_ctrl_c_while_a_sample_is_made_keeps_the_weights_in_training(tmp_path, monkeypatch):
    """Samples show the averaged weights in the network that is trained."""
    every = ["--sample-every", "4"]
    assert program.main(vae_command(tmp_path / "whole", *every)) == 0
    assert (tmp_path / "whole" / "sample-00000004.png").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(program.commands.VaeTask, "_through", lambda *_: signal.raise_signal(signal.SIGINT))
        assert program.main(vae_command(tmp_path / "broken", *every)) == 130
    assert program.main(vae_command(tmp_path / "broken", *every)) == 0
    assert same_files(newest(tmp_path / "whole"), newest(tmp_path / "broken"))


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_a_transformer_shows_a_video_every_so_many_steps(tmp_path, files, image_files, kind, monkeypatch):
    monkeypatch.setattr(program.commands, "ShowSettings", lambda: ShowSettings(count=2, steps=2))
    more = ["--phases", "5x2x2", "--sample-every", "2"]
    assert program.main(dit_command(tmp_path, files if kind == "t2v" else image_files, *more)) == 0
    with av.open(str(tmp_path / "sample-00000002.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(32, 64, 3)] * 5


def test_each_line_of_the_log_tells_step_loss_pace_and_what_is_left(tmp_path, caplog):
    caplog.set_level("INFO")
    assert program.main(vae_command(tmp_path, "--log-every", "4")) == 0
    lines = [line for line in caplog.messages if line.startswith("step 4/8")]
    assert len(lines) == 1
    assert all(word in lines[0] for word in ("loss", "gradient", "ms/step", "0:00:0", "left"))


def test_gradient_checkpointing_changes_no_bit(tmp_path, files):
    assert program.main(dit_command(tmp_path / "a", files)) == 0
    assert program.main(dit_command(tmp_path / "b", files, "--checkpoint")) == 0
    assert same_files(tmp_path / "a" / "dit.safetensors", tmp_path / "b" / "dit.safetensors")
    assert torch.isfinite(torch.tensor(losses(tmp_path / "b"))).all()
