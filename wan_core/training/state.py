"""The state of a run on disk: everything that the next step depends on, written as a whole or not at all."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import TrainingError

log = logging.getLogger(__name__)

KEPT = 2
"""States kept: the newest, and the one before it in case the newest is damaged."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run is: ``step`` steps are done. ``tensors`` are parameters, averages and optimizer values by name;
    ``losses`` the points of the curve, ``recent`` the losses since the last of them."""

    step: int
    settings: dict
    tensors: dict[str, Tensor]
    losses: list[tuple[int, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    seconds: float = 0.0


def save_state(folder: Path, state: RunState) -> Path:
    """Write ``state-<step>.safetensors`` and remove all but the newest :data:`KEPT`."""
    path = folder / f"state-{state.step:08d}.safetensors"
    entry = {name: value for name, value in vars(state).items() if name != "tensors"}
    write_safetensors(path, state.tensors, {"state": json.dumps(entry)})
    for old in (*states(folder)[:-KEPT], *folder.glob("state-*.part")):
        old.unlink(missing_ok=True)
    return path


def load_state(folder: Path, settings: dict) -> RunState | None:
    """The newest readable state of a run, None where there is none.

    Raises:
        TrainingError: the run was started with other settings, or no state of it can be read.
    """
    for path in reversed(states(folder)):
        try:
            tensors, metadata = read_safetensors(path)
            entry = json.loads(metadata["state"])
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s cannot be read (%s); looking for the one before it", path.name, error)
            continue
        _check_same(entry["settings"], settings, folder)
        losses = [(int(step), float(loss)) for step, loss in entry["losses"]]
        return RunState(**entry | {"settings": settings, "tensors": tensors, "losses": losses})
    if states(folder):
        raise TrainingError(f"no state in {folder} can be read. Remove the state files to begin anew.")
    return None


def states(folder: Path) -> list[Path]:
    """Complete states, oldest first."""
    return sorted(folder.glob("state-*.safetensors"))


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file and its metadata."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    return load_file(path), metadata


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file as a whole or not at all (see :func:`whole_file`)."""
    with whole_file(path) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, dict(metadata))


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to, renamed at the end, so that no partial file ever has the final name.

    Raises:
        TrainingError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())  # the library writes files that only their owner can read
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{path} could not be written ({error}). Nothing that was there is lost: make room and start the same "
            "command again."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check_same(then: dict, now: dict, folder: Path) -> None:
    now = json.loads(json.dumps(now))
    changed = [
        f"{key} {then.get(key)!r} -> {now.get(key)!r}" for key in sorted({*then, *now}) if then.get(key) != now.get(key)
    ]
    if changed:
        raise TrainingError(
            f"{folder} holds a run with other settings ({', '.join(changed)}). Use the same, or another folder."
        )
