"""Starting ``cpu_worker`` for one implementation and talking to it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORKER = Path(__file__).with_name("cpu_worker.py")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where rivals are. ``comfyui`` is a checkout and the Python that runs it, or None."""

    comfyui: tuple[Path, Path] | None = None
    threads: int = 2


def place(host: str, places: Places) -> tuple[str, list[str]]:
    """The Python and what comes first on its ``sys.path``: a ComfyUI before us, because both have a ``nodes``."""
    if host != "comfyui":
        return sys.executable, [str(ROOT)]
    if places.comfyui is None:
        raise Child.Missing("there is no ComfyUI here; name one with --comfyui DIR")
    folder, python = places.comfyui
    return str(python), [str(folder), str(ROOT)]


class Child:
    """A process with one implementation. Raises :class:`Missing` where it cannot be built."""

    class Missing(Exception):
        """An implementation that is not to be had here, with the reason."""

    def __init__(self, name: str, spec: dict, folder: Path, where: tuple[str, list[str]], threads: int):
        python, path = where
        self.name = name
        stem = name.replace(" ", "_").replace(",", "")
        self._log = folder / f"{stem}.log"
        spec_file = folder / f"{stem}.json"
        spec_file.write_text(json.dumps({**spec, "path": path, "threads": threads}), encoding="utf8")
        environment = os.environ | OFFLINE | {"OMP_NUM_THREADS": str(threads)}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-I", WORKER, spec_file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True, env=environment, cwd=folder,
            )  # fmt: skip
        try:
            self._read()
        except Exception as error:
            self.close()
            raise self.Missing(str(error)) from error

    def ask(self, *words: str):
        """Send one command and return its answer."""
        self._process.stdin.write("\t".join(words) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self):
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"it ended; its last words: {self._last_words()}"}
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace").strip()[-600:] or "none"

    def close(self) -> None:
        """End the process, by asking where it still listens."""
        if self._process.poll() is None:
            try:
                self._process.communicate("quit\n", timeout=20)
            except (subprocess.TimeoutExpired, BrokenPipeError):
                self._process.kill()
                self._process.communicate()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_) -> None:
        self.close()
