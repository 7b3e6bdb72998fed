"""Installing the pack's requirements into the environment of a ComfyUI: nothing that was there changes."""

import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from scripts.setup_steps import CACHE, ROOT, venv_python
from tests import hosts

OURS = {"ftfy", "wcwidth"}
"""What no ComfyUI has by itself: ftfy, and the one package that it needs."""

log = logging.getLogger(__name__)
pytestmark = pytest.mark.host


def pip(python: Path, *args: str) -> str:
    done = subprocess.run([python, "-m", "pip", *args], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def freeze(python: Path) -> dict[str, str]:
    lines = pip(python, "freeze", "--all", "--disable-pip-version-check").splitlines()
    return {re.split(r"==| @ ", line)[0]: line for line in lines}


def link_or_copy(source: str, target: str) -> None:
    """A link costs nothing, and what pip does to the copy it does to the link."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture
def copy_of(request):
    """Makes a copy of an environment that may be changed; beside the original, where links are possible."""
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="environment-") as folder:
        yield lambda venv: Path(shutil.copytree(venv, Path(folder) / "venv", symlinks=True, copy_function=link_or_copy))


@pytest.mark.parametrize("version", hosts.versions())
def test_a_host_that_is_set_up_lacks_nothing(version, tmp_path):
    report = tmp_path / "report.json"
    requirements = str(ROOT / "requirements.txt")
    pip(hosts.find(version).python, "install", "--dry-run", "--quiet", "--report", str(report), "-r", requirements)
    assert json.loads(report.read_text(encoding="utf-8"))["install"] == []


@pytest.mark.slow
@pytest.mark.parametrize("version", hosts.versions())
def test_installing_adds_ftfy_with_what_it_needs_and_changes_no_package(version, copy_of):
    if version == "own":
        pytest.skip("an environment of the user's is not copied")
    python = venv_python(copy_of(hosts.find(version).python.parents[1]))
    pip(python, "uninstall", "--yes", *OURS)
    before = freeze(python)
    pip(python, "install", "--disable-pip-version-check", "-r", str(ROOT / "requirements.txt"))
    after = freeze(python)
    added = after.keys() - before.keys()
    words = ", ".join(sorted(after[name] for name in added))
    log.info("ComfyUI %s: %d packages before, %d after; added %s", version, len(before), len(after), words)
    assert len(before) > 50, "this is no ComfyUI's environment"
    assert {name: after.get(name) for name in before} == before
    assert added == OURS
