"""What every set-up step is made of: a logged command, pip, and errors that are sentences. Standard library only."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
SETUP_LOG = CACHE / "setup.log"
WINDOWS = os.name == "nt"
TAIL_LINES = 12


class SetupError(RuntimeError):
    """A set-up step failed; the message is a sentence for the user, and the failing command's last lines."""


class HostUnavailable(SetupError):
    """No ComfyUI could be obtained, and none was named: for instance there is no network."""


class BrowserUnavailable(SetupError):
    """No Chromium is there and none may be installed."""


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def venv_python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if WINDOWS else "bin/python")


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """The last non-empty lines, indented, for the end of an error message."""
    kept = [line for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join(f"    {line}" for line in kept)


def run(command: list, what: str, *, cwd: Path = ROOT, error: type[SetupError] = SetupError) -> str:
    """Runs a command without stdin, logs and returns its output. Raises `error` with a sentence."""
    CACHE.mkdir(exist_ok=True)
    words = [str(word) for word in command]
    try:
        result = subprocess.run(
            words,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as reason:
        raise error(f"{what} failed: {words[0]} could not be started ({reason}).") from reason
    with SETUP_LOG.open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(words)}\n{result.stdout}\n")
    if result.returncode != 0:
        raise error(f"{what} failed (exit code {result.returncode}); the last lines were:\n{tail(result.stdout)}")
    return result.stdout


def pip(python: Path, *args: str, what: str) -> None:
    run([python, "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check", *args], what)


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
