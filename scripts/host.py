"""A ComfyUI server as a context manager: its own base folder, a free port, a log file, and no process left behind.

    with Host(env, base_dir, models=tree) as host:
        host.get("/system_stats")

Standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from .setup_host import HostEnv
from .setup_steps import ROOT, SetupError, say, tail

PACK_NAME = "ComfyUI-WanCore"
FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "models")
# What a copy of the pack leaves out of its root; hidden folders (.venv, .comfyui, .cache) are left out as well.
NOT_SHIPPED = {"tests", "benchmarks", "scripts", "docs", "output", "__pycache__"}
STOP_S = 10


class HostError(SetupError):
    """The server did not start, or ended early; the message ends with the last lines of its log."""


def prepare_base(base_dir: Path, models: Path | None = None, pack: Path | None = ROOT) -> Path:
    """Lays out a folder for `--base-directory`: the pack in custom_nodes, a models tree, and empty data folders.

    The pack and the models tree are links, so that edits are seen at the next start; where links are not
    allowed (Windows without developer mode) they are copies. `pack=None` gives a host without any pack.
    """
    base_dir = base_dir.resolve()
    for name in FOLDERS:
        if name != "models" or models is None:
            (base_dir / name).mkdir(parents=True, exist_ok=True)
    if models is not None:
        link_or_copy(models, base_dir / "models")
    if pack is not None:
        link_or_copy(pack, base_dir / "custom_nodes" / PACK_NAME)
    return base_dir


def link_or_copy(source: Path, target: Path) -> None:
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(source.resolve(), target_is_directory=True)
    except OSError:
        shutil.copytree(source, target, ignore=lambda folder, names: left_out(Path(folder) == source, names))


def left_out(is_root: bool, names: list[str]) -> list[str]:
    """Of the names in a folder, those that a copy leaves out: ``docs`` of the root, but not that of ``web``."""
    return [name for name in names if name[0] == "." or name == "__pycache__" or (is_root and name in NOT_SHIPPED)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_with_parent() -> None:
    """In the child, on Linux: end when the parent is killed without a chance to clean up (PR_SET_PDEATHSIG = 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Host:
    """One server. `start()` returns when it answers; `stop()` ends it. Both may be called again (a restart)."""

    def __init__(
        self,
        env: HostEnv,
        base_dir: Path,
        *,
        models: Path | None = None,
        pack: Path | None = ROOT,
        flags: tuple[str, ...] = (),
        cpu: bool = True,
        timeout_s: float = 180,
    ) -> None:
        self.env = env
        self.base_dir = prepare_base(Path(base_dir), models, pack)
        self.flags = (*(("--cpu",) if cpu else ()), *flags)
        self.timeout_s = timeout_s
        self.log_path = self.base_dir / "host.log"
        self.process: subprocess.Popen | None = None
        self.port = 0
        self.started_in_s = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output_dir(self) -> Path:
        return self.base_dir / "output"

    @property
    def input_dir(self) -> Path:
        return self.base_dir / "input"

    def __enter__(self) -> Host:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def command(self) -> list[str]:
        database = self.base_dir / "user" / "comfyui.db"  # its default is in the checkout, and is locked by one server
        fixed = ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch", "--disable-api-nodes"]
        folders = ["--base-directory", str(self.base_dir), "--database-url", f"sqlite:///{database}"]
        return [str(self.env.python), "main.py", *fixed, *folders, *self.flags]

    def start(self) -> Host:
        """Starts the server and waits until it answers. Raises HostError when it ends or stays silent."""
        self.port = free_port()
        # The host owns the module names `nodes` and `server`: nothing of ours may come before it on the path.
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environ["PYTHONUNBUFFERED"] = "1"
        began = time.monotonic()
        with self.log_path.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.env.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
        try:
            self._wait_until_it_answers(began)
        except BaseException:
            self.stop()
            raise
        self.started_in_s = time.monotonic() - began
        return self

    def _wait_until_it_answers(self, began: float) -> None:
        while time.monotonic() - began < self.timeout_s:
            if self.process.poll() is not None:
                raise HostError(
                    f"ComfyUI ended while starting (exit code {self.process.returncode}); {self.log_tail()}"
                )
            try:
                self.get("/system_stats", timeout_s=5)
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise HostError(f"ComfyUI did not answer within {self.timeout_s:.0f} s; {self.log_tail()}")

    def stop(self) -> None:
        """Ends the server: asks, waits, then kills. Does nothing when it is not running."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        """Everything that the server has said since its last start, without the colours."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    def log_tail(self) -> str:
        return f"the last lines of {self.log_path}:\n{tail(self.log(), 20)}"

    def get(self, path: str, *, timeout_s: float = 30) -> dict | list:
        """GET as JSON. Raises urllib.error.HTTPError with the server's status."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=timeout_s) as answer:
            return json.load(answer)

    def post(self, path: str, data: dict, *, timeout_s: float = 30) -> dict | None:
        """POST JSON; returns the answer's JSON, or None for an empty one. Raises urllib.error.HTTPError."""
        body = json.dumps(data).encode()
        request = urllib.request.Request(f"{self.url}{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            text = answer.read()
        return json.loads(text) if text else None


def stop_on_sigterm() -> None:
    """Turns SIGTERM into an ordinary exit, so that `with Host(...)` ends the server. For the commands' main()."""

    def leave(*_: object) -> None:
        say("stopped by SIGTERM")
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, leave)
