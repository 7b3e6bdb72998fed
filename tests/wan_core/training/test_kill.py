"""A LoRA training that is killed at random moments, and what it ends with."""

import json
import logging
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.wan_core.training.tiny_run import lora_command, losses, same_files
from wan_core.training.state import states

log = logging.getLogger(__name__)

KILLS = 10
STEPS = 20
# With a state and a curve at every step, a good part of the time is spent writing.
MORE = ("--phases", f"5x4x{STEPS}", "--save-every", "1")
# Runs the commands that it is given, each in a process of its own in which everything is imported already.
SERVER = """
import json, os, sys
import tests.wan_core.training.tiny_run
from wan_core.training import __main__ as program
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(program.main(json.loads(line)))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Runs:
    """Processes of the training command, one after another."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, "-u", "-c", SERVER], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip

    def run(self, command: list[str], kill_after_s: float = 120) -> int:
        """The exit code of a command; a negative signal where it was killed after so long."""
        self.server.stdin.write(json.dumps(command).encode() + b"\n")
        pid = int(self.server.stdout.readline())
        if not select.select([self.server.stdout], [], [], kill_after_s)[0]:
            os.kill(pid, signal.SIGKILL)
        return int(self.server.stdout.readline())


@pytest.fixture
def runs():
    made = Runs()
    yield made
    made.server.kill()
    made.server.communicate(timeout=30)


def check_final_names(out: Path) -> None:
    """Everything that does not end in ``.part`` can be read to its last byte."""
    for path in out.iterdir() if out.exists() else ():
        if path.suffix == ".safetensors":
            assert load_file(path)
        elif path.suffix == ".png":
            Image.open(path).load()
        else:
            assert path.suffix == ".part" or path.name == "run.lock", path.name


def newest_step(out: Path) -> int:
    kept = states(out)
    return int(kept[-1].stem.split("-")[1]) if kept else 0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ten_kills_at_random_moments_change_no_bit_and_leave_no_partial_file(tmp_path, files, runs):
    """A folder's runs are killed until one gets through, or has taken all steps; then the next folder begins."""
    whole = tmp_path / "whole"
    assert runs.run(lora_command(tmp_path / "first", files, *MORE)) == 0  # loads what is loaded only once
    began = time.monotonic()
    assert runs.run(lora_command(whole, files, *MORE)) == 0
    seconds = time.monotonic() - began
    rng, at, folders = random.Random(20), [], []
    while len(at) < KILLS:
        out = tmp_path / f"broken{len(folders)}"
        code = runs.run(lora_command(out, files, *MORE), kill_after_s=rng.uniform(0, seconds))
        assert code in (0, -signal.SIGKILL)
        check_final_names(out)
        step = newest_step(out)
        if code:
            at.append(step)
            assert step == STEPS or not (out / "lora.safetensors").exists()
        if step == STEPS or len(at) == KILLS:
            assert runs.run(lora_command(out, files, *MORE)) == 0
            folders.append(out)
    log.info("killed at steps %s of %d in %d folders; a run takes %.1f s", at, STEPS, len(folders), seconds)
    assert any(0 < step < STEPS for step in at), "no kill came between the first step and the last"
    for out in folders:
        assert same_files(states(whole)[-1], states(out)[-1])
        assert (whole / "lora.safetensors").read_bytes() == (out / "lora.safetensors").read_bytes()
        assert (whole / "loss.png").read_bytes() == (out / "loss.png").read_bytes()
        assert losses(whole) == losses(out) and len(losses(out)) == STEPS
        assert not list(out.glob("*.part"))
