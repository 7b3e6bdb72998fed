"""A file that is there whole or not at all: written under a hidden name, then put under the next free number.

The name is taken with a hard link, which the file system makes only if nothing has that name: nothing is ever
overwritten, and two writers cannot harm each other. A writer that is killed leaves a hidden ``.part`` file, which the
next one clears away.
"""

import os
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STALE_SECONDS = 900
"""A part file that nobody has written to for so long, and that nobody holds, was left by a writer that was killed."""
_LEFT = re.compile(r"\..+\.(?:[0-9a-f]{16}\.part|wan-claim)")
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where numbered files go: ``folder/name_00001_.mp4``, from number ``counter`` on."""

    folder: Path
    name: str
    counter: int = 1

    def path(self, number: int, ending: str) -> Path:
        return self.folder / f"{self.name}_{number:05}_.{ending}"


class PartFile:
    """``with PartFile(place) as part``: write to ``part.path``, then ``part.publish("mp4")``.

    Whatever ends the block without it, the file is gone. Raises OSError as the file system does.
    """

    def __init__(self, place: Place):
        clear_left(place.folder)
        self._place = place
        self.path = place.folder / f".{place.name}.{secrets.token_hex(8)}.part"
        self._fd: int | None = None

    def __enter__(self) -> "PartFile":
        self._fd = os.open(self.path, _NEW, 0o666)
        with suppress(OSError):  # a file system without locks: its age protects it
            _hold(self._fd)
        return self

    def publish(self, ending: str) -> Path:
        """Put the file, all of it on the disk, under the first free number from the place's counter on."""
        os.fsync(self._fd)
        self._close()  # Windows renames no open file
        number = self._place.counter
        while not _land(self.path, self._place.path(number, ending)):
            number += 1
        self.path.unlink(missing_ok=True)
        _sync_folder(self._place.folder)
        return self._place.path(number, ending)

    def __exit__(self, *error) -> None:
        self._close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def clear_left(folder: Path) -> None:
    """Remove what killed writers have left in ``folder``; what is young, or held by a writer, stays."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            with suppress(OSError):
                if _LEFT.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    _remove_if_left(Path(entry.path))


def _remove_if_left(path: Path) -> None:
    if time.time() - path.stat().st_mtime < STALE_SECONDS:
        return
    fd = os.open(path, os.O_RDWR)
    try:
        _hold(fd)  # raises OSError where a writer holds it
        if os.name != "nt":
            path.unlink()
    finally:
        os.close(fd)
    if os.name == "nt":
        path.unlink()


def _land(part: Path, final: Path) -> bool:
    """Whether ``final`` was free, and the file now has that name."""
    try:
        os.link(part, final)
    except FileExistsError:
        return False
    except OSError:  # no hard links here (FAT, some network drives)
        return _rename_if_free(part, final)
    return True


def _rename_if_free(part: Path, final: Path) -> bool:
    """The same without hard links: a second file, which only one writer can make, says who may take the name."""
    claim = final.parent / f".{final.name}.wan-claim"
    try:
        os.close(os.open(claim, _NEW, 0o666))
    except FileExistsError:
        return False
    try:
        if os.path.lexists(final):
            return False
        os.rename(part, final)
    except FileExistsError:
        return False
    finally:
        claim.unlink(missing_ok=True)
    return True


def _sync_folder(folder: Path) -> None:
    """The name too is on the disk; where folders cannot be synchronised (Windows), the file system sees to it."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


if os.name == "nt":

    def _hold(fd: int) -> None:
        """Windows removes no file that is open: the encoder's own handle is the lock."""
else:
    import fcntl

    def _hold(fd: int) -> None:
        """Until it is closed, however its process ends. Raises OSError where another holds it."""
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
