"""The ComfyUI versions of this run, for tests that need one."""

import os

import pytest

from scripts import setup_host


def versions() -> list[str]:
    """What WAN_CORE_HOSTS names, else every version that the project sets up; a checkout of the user's is alone.

    Those that are not set up are named as well, so that their tests fail in a sentence.
    """
    if os.environ.get("COMFYUI_DIR"):
        return ["own"]
    return os.environ.get("WAN_CORE_HOSTS", " ".join(setup_host.HOSTS)).split()


def find(version: str) -> setup_host.HostEnv:
    """The checkout and its Python. Only scripts/test.py may switch these tests off, after it has said so."""
    if os.environ.get("WAN_CORE_NO_HOST") == "1":
        pytest.skip("no ComfyUI host could be obtained (WAN_CORE_NO_HOST=1)")
    try:
        return setup_host.find_host(version)
    except setup_host.SetupError as reason:
        pytest.fail(str(reason), pytrace=False)
