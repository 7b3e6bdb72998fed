"""Two runs never write into one folder; a run that was killed leaves its folder free."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.wan_core.training.tiny_run import dit_command, lora_command, vae_command
from wan_core.errors import TrainingError
from wan_core.training import __main__ as program
from wan_core.training.lock import locked

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom wan_core.training.lock import locked\n"
    "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder ``out``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate(timeout=30)


@pytest.mark.parametrize("kind", ["vae", "dit", "lora"])
def test_a_second_run_into_a_folder_is_refused_and_says_who_holds_it(tmp_path, files, holder, capsys, kind):
    out = tmp_path / "out"
    command = {"vae": lambda: vae_command(out), "dit": lambda: dit_command(out, files)}
    assert program.main(command.get(kind, lambda: lora_command(out, files))()) == 1
    said = capsys.readouterr().err
    assert f"{out} is in use: another training writes into it (process {holder.pid})." in said
    assert [path.name for path in out.iterdir()] == ["run.lock"]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_run_leaves_its_folder_free(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait(30)
    with locked(tmp_path / "out"):
        pass


def test_a_folder_is_held_against_the_own_process_too_and_let_go_of_by_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        with pytest.raises(TrainingError, match=f"in use.*process {os.getpid()}"), locked(tmp_path):
            pass
        raise KeyboardInterrupt
    with locked(tmp_path):
        pass


def test_partial_files_of_a_killed_run_are_cleared_away_and_others_are_not(tmp_path):
    (tmp_path / "lora.safetensors.7.part").write_bytes(b"half")
    (tmp_path / "loss.png").write_bytes(b"whole")
    with locked(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "run.lock"]
