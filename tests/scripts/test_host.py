"""The server's life, tried on a stand-in checkout: a main.py that answers like a ComfyUI, or does not."""

import sys
from pathlib import Path

import pytest

from scripts.host import PACK_NAME, Host, HostError, prepare_base
from scripts.setup_host import ROOT, HostEnv

ANSWERING = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"system": {}}')
print(sys.argv, flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""
FAILING = "import sys; print('loading'); sys.exit('No module named torchsde')"
SILENT = "import time; print('still loading', flush=True); time.sleep(60)"


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()

    def write(main: str) -> HostEnv:
        (folder / "main.py").write_text(main)
        return HostEnv(folder=folder, python=Path(sys.executable))

    return write


def test_a_server_starts_answers_and_is_gone_afterwards(checkout, tmp_path):
    with Host(checkout(ANSWERING), tmp_path / "base", flags=("--cache-none",)) as host:
        assert host.get("/system_stats") == {"system": {}}
        process = host.process
        assert all(word in host.log() for word in ("--cpu", "--cache-none", "--base-directory", "--database-url"))
    assert process.poll() is not None
    assert not host.running()


def test_a_server_that_ends_while_starting_is_reported_with_its_last_lines(checkout, tmp_path):
    with pytest.raises(HostError, match=r"(?s)ended while starting \(exit code 1\).*No module named torchsde"):
        Host(checkout(FAILING), tmp_path / "base").start()


def test_a_silent_server_is_given_up_and_ended(checkout, tmp_path):
    host = Host(checkout(SILENT), tmp_path / "base", timeout_s=1)
    with pytest.raises(HostError, match=r"(?s)did not answer within 1 s.*still loading"):
        host.start()
    assert not host.running()


def test_the_pack_and_the_models_are_linked_into_the_base_folder(tmp_path):
    models = tmp_path / "tree"
    (models / "vae").mkdir(parents=True)
    base = prepare_base(tmp_path / "base", models)
    assert prepare_base(base, models) == base  # a second start finds its own links
    assert (base / "custom_nodes" / PACK_NAME / "pyproject.toml").samefile(ROOT / "pyproject.toml")
    assert (base / "models" / "vae").is_dir()
    assert all((base / name).is_dir() for name in ("input", "output", "user"))


def test_without_links_the_pack_is_copied_as_it_ships(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    pack = tmp_path / "pack"
    for name in ("nodes/loaders.py", "tests/test_a.py", ".venv/big", "docs/b.md", "web/docs/a.md"):
        (pack / name).parent.mkdir(parents=True, exist_ok=True)
        (pack / name).touch()
    base = prepare_base(tmp_path / "base", pack=pack)
    copied = base / "custom_nodes" / PACK_NAME
    assert sorted(path.name for path in copied.iterdir()) == ["nodes", "web"]
    assert (copied / "web" / "docs" / "a.md").is_file()
