"""Installing the pack's requirements into the environment of a ComfyUI changes nothing at all."""

import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from scripts import setup_host
from scripts.setup_steps import CACHE, ROOT, venv_python
from tests import hosts

OWN = """
import json, re, sys
from importlib.metadata import distributions
from pip._vendor.packaging.requirements import Requirement

def plain(name):
    return re.sub("[-_.]+", "-", name).lower()

have = {plain(found.metadata["Name"]): found for found in distributions()}
wanted, own = [Requirement(line) for line in sys.argv[1:]], {"pip", "setuptools"} & have.keys()
seen = set()
while wanted:
    one = wanted.pop()
    if plain(one.name) in have and str(one) not in seen:
        seen.add(str(one))
        own.add(plain(one.name))
        for needed in map(Requirement, have[plain(one.name)].requires or ()):
            if any(not needed.marker or needed.marker.evaluate({"extra": extra}) for extra in ("", *one.extras)):
                wanted.append(needed)
print(json.dumps({"own": sorted(own), "others": sorted(have.keys() - own)}))
"""
"""What an environment holds because the named requirements bring it, at any depth, and what else is in it."""

log = logging.getLogger(__name__)
pytestmark = pytest.mark.host


def pip(python: Path, *args: str) -> str:
    done = subprocess.run([python, "-m", "pip", *args], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def freeze(python: Path) -> dict[str, str]:
    lines = pip(python, "freeze", "--all", "--disable-pip-version-check").splitlines()
    return {re.split(r"==| @ ", line)[0]: line for line in lines}


def packages_of(host: setup_host.HostEnv, python: Path) -> dict[str, list[str]]:
    """The packages that ComfyUI's own requirements bring (``own``) and those that something else brought."""
    lines = (host.folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [line.split("#")[0].strip() for line in lines]
    found = subprocess.run([python, "-c", OWN, *filter(None, names)], capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


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


@pytest.mark.parametrize("version", hosts.versions())
def test_comfyui_itself_brings_everything_that_the_pack_needs(version):
    host = hosts.find(version)
    ours = setup_host.host_requirements((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    assert ours
    assert set(ours) <= set(packages_of(host, host.python)["own"])


@pytest.mark.slow
@pytest.mark.parametrize("version", hosts.versions())
def test_installing_into_an_environment_of_comfyuis_own_packages_changes_nothing(version, copy_of):
    if version == "own":
        pytest.skip("an environment of the user's is not copied")
    host = hosts.find(version)
    python = venv_python(copy_of(host.python.parents[1]))
    others = packages_of(host, python)["others"]
    if others:
        pip(python, "uninstall", "--yes", *others)
    before = freeze(python)
    pip(python, "install", "--disable-pip-version-check", "-r", str(ROOT / "requirements.txt"))
    after = freeze(python)
    log.info("ComfyUI %s: %d packages before and %d after", version, len(before), len(after))
    assert len(before) > 50, "this is no ComfyUI's environment"
    assert not {"ftfy", "diffusers", "pytest"} & before.keys()
    assert after == before
