"""File names that come with a workflow, which may be anybody's: below one folder, or refused in a sentence."""

import os
from pathlib import Path

from ..errors import InputError

RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
"""What no file can be called on Windows."""
MAX_PART = 200
"""Bytes of one part of a path: a number, an ending and a hidden name's additions have to find room in 255."""


def check_below(name: str, what: str) -> None:
    """Refuse what is no path below a folder, on whatever system: absolute, ``..``, a drive or a share, a device.

    Args:
        what: begins the sentence.
    """
    parts = name.replace("\\", "/").split("/")
    if not _printable(name) or parts[0] in ("", "~") or parts[0][1:2] == ":" or ".." in parts:
        raise InputError(
            f"{what} {_shown(name)} leads out of ComfyUI's own folder, or is no name. Use one below it, such as "
            "video/wan: without a drive, '..' or a leading '/'."
        )


def check_new(name: str, what: str) -> None:
    """Refuse, besides, what some system cannot make a file of."""
    check_below(name, what)
    for part in name.replace("\\", "/").split("/"):
        bad = not part or part[-1] in ". " or part[0] == " " or any(sign in '<>:"|?*' for sign in part)
        if bad or part.split(".")[0].lower() in RESERVED or len(part.encode()) > MAX_PART:
            raise InputError(
                f"{what} {_shown(name)} cannot be a file's name everywhere: {_shown(part)}. Use letters, digits, '-', "
                f"'_' and '/', at most {MAX_PART} bytes between two '/'."
            )


def is_inside(root: Path, path: Path) -> bool:
    """Whether ``path`` is in ``root``, wherever links lead; both are looked through."""
    try:
        base = os.path.realpath(root)
        return os.path.commonpath((base, os.path.realpath(path))) == base
    except (ValueError, OSError):
        return False


def _printable(name: str) -> bool:
    return bool(name.strip()) and not any(ord(sign) < 32 or 0xD800 <= ord(sign) < 0xE000 for sign in name)


def _shown(name: str) -> str:
    return ascii(name[:80]) if not _printable(name) else repr(name[:80])
