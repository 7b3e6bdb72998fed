"""One run at a time in a folder: a lock that the operating system lets go of when its process dies, however it dies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import TrainingError

NAME = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` (made if need be) for one run, and clear away the partial files that a killed one left in it.

    Raises:
        TrainingError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("a+b") as file:
        try:
            _lock(file)
        except OSError:
            raise TrainingError(
                f"{folder} is in use: another training writes into it{_holder(folder / NAME)}. Wait until it has "
                "ended, or use another folder (in ComfyUI: another name)."
            ) from None
        _write_holder(file)
        for part in folder.glob("*.part"):
            part.unlink(missing_ok=True)
        yield  # closing the file unlocks it


def _write_holder(file) -> None:
    file.truncate(0)
    file.write(str(os.getpid()).encode())
    file.flush()


def _holder(path: Path) -> str:
    """Which process, where that can be read (Windows locks the contents too)."""
    with suppress(OSError, UnicodeDecodeError):
        number = path.read_text("ascii")[:20]
        return f" (process {number})" if number.isdecimal() else ""
    return ""


if os.name == "nt":
    import msvcrt

    def _lock(file) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
