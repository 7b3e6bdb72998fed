"""Fixtures for tests against a real ComfyUI: one server for each version, with the tiny models and the pack in it.

Every test that asks for ``host_env``, ``host`` or ``client`` runs once on each version. WAN_CORE_HOSTS="0.33.0" (names
with spaces between) takes fewer; COMFYUI_DIR takes that checkout alone.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts import api_client, setup_host
from scripts.host import Host, link_or_copy
from tests import hosts


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.host)


def _beside(work, *given):
    """In a thread of its own: a browser that a test drives keeps an event loop in this one."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(work, *given).result()


@dataclass(frozen=True, kw_only=True)
class Client:
    """A user's script beside a server: posts jobs, fetches files, asks questions."""

    host: Host

    def run(self, prompt: dict, workflow: dict | None = None, on_progress=None) -> dict:
        """Runs one job; returns its history entry, or raises api_client.JobError with the page's sentence."""
        return _beside(api_client.run, self.host.url, prompt, workflow, on_progress)

    def download(self, history: dict, folder: Path) -> list[Path]:
        return _beside(api_client.download, self.host.url, history, folder)

    def upload(self, image: Path) -> str:
        return _beside(api_client.upload, self.host.url, image)

    def get(self, path: str):
        return self.host.get(path)

    def post(self, path: str, data: dict):
        return self.host.post(path, data)


@pytest.fixture(scope="session", params=hosts.versions())
def host_env(request) -> setup_host.HostEnv:
    """The checkout and its Python."""
    return hosts.find(request.param)


@pytest.fixture(scope="session")
def tiny_tree(tmp_path_factory) -> Path:
    """The folder of a ComfyUI models tree, filled by `tiny_files`."""
    return tmp_path_factory.mktemp("tiny_models")


@pytest.fixture(scope="session")
def tiny_files(tiny_tree) -> dict[str, Path]:
    """The seeded tiny checkpoints, by role."""
    from scripts import tiny_models

    return tiny_models.make(tiny_tree)


@pytest.fixture(scope="session")
def host(host_env, tiny_files, tiny_tree, tmp_path_factory):
    """The version's server. A test that restarts it, or needs other models or flags, makes a `Host` of its own."""
    server = Host(host_env, tmp_path_factory.mktemp("host"), models=tiny_tree)
    link_or_copy(Path(__file__).parent / "dump_pack", server.base_dir / "custom_nodes" / "wan_test_dump")
    with server:
        yield server


@pytest.fixture(scope="session")
def client(host) -> Client:
    return Client(host=host)
