"""Where training clips come from: a folder with ``metadata.csv``, or a Python function that renders them."""

import csv
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import TrainingError, first_few

log = logging.getLogger(__name__)

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
UNREADABLE = (OSError, ValueError, SyntaxError, IndexError, ArithmeticError)
VIDEOS = {
    ".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi", ".gif": "gif",
}  # fmt: skip
"""Ending -> the one container that is looked for in such a file: others, such as playlists, can name further files."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """``frames`` uint8 ``[T, H, W, 3]`` and the captions that fit it, any of which may be used."""

    frames: np.ndarray
    captions: tuple[str, ...]


class Clips(Protocol):
    """A sequence of clips; the same index gives the same clip."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Clip: ...


@dataclass(frozen=True, kw_only=True)
class ClipSize:
    """What a clip is cut to: pixels, and frames (4n+1)."""

    width: int
    height: int
    frames: int


def open_clips(where: str, size: ClipSize) -> Clips:
    """A data set.

    Args:
        where: a folder with ``metadata.csv`` (``file_name,text``), or ``module:name`` of a callable that takes the
            size and gives :class:`Clips`.
        size: what every clip has to be.

    Raises:
        TrainingError: there is no such folder or function, or nothing in it can be used.
    """
    if Path(where).is_dir():
        return FolderClips(Path(where), size)
    module, _, name = where.partition(":")
    if not name:
        raise TrainingError(f"{where} is no folder. Give a folder with metadata.csv, or module:function.")
    try:
        clips = getattr(importlib.import_module(module), name)(size)
    except (ImportError, AttributeError, ValueError) as error:
        raise TrainingError(f"the clips {where} cannot be rendered: {error}.") from error
    if not len(clips):
        raise TrainingError(f"{where} gives no clips.")
    given, wanted = clips[0].frames.shape, (size.frames, size.height, size.width, 3)
    if given != wanted:
        raise TrainingError(f"{where} gives clips of {list(given)}, not {list(wanted)} (frames, height, width, 3).")
    return clips


class InMemory:
    """Clips read or rendered once; for sets that fit in memory (uint8: 12 KB a frame of 64x64)."""

    def __init__(self, clips: Clips):
        self._clips = [clips[index] for index in range(len(clips))]

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Clip:
        return self._clips[index]


class FolderClips:
    """Videos and images named in ``metadata.csv``. What cannot be used is listed once, with the reason, and skipped."""

    def __init__(self, folder: Path, size: ClipSize):
        self.size = size
        self.entries: list[tuple[Path, str]] = []
        self.skipped: list[tuple[str, str]] = []
        for name, text in _table(folder):
            reason = _outside(name) or self._reason(folder / name, text)
            if reason:
                self.skipped.append((name, reason))
            else:
                self.entries.append((folder / name, text))
        for name, reason in self.skipped:
            log.warning("skipped %s: %s", name, reason)
        if not self.entries:
            why = first_few(f"{name}: {reason}" for name, reason in self.skipped) or "metadata.csv lists no file"
            raise TrainingError(f"{folder} holds no clip that can be used ({why}).")

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Clip:
        path, text = self.entries[index]
        return Clip(frames=fit(read_frames(path, self.size.frames), self.size), captions=(text,))

    def _reason(self, path: Path, text: str) -> str | None:
        if not text.strip():
            return "no caption"
        if path.suffix.lower() not in (*IMAGES, *VIDEOS):
            return f"neither an image nor a video ({path.suffix or 'no ending'})"
        try:
            frames = read_frames(path, self.size.frames)
        except TrainingError as error:
            return str(error)
        if len(frames) < self.size.frames and path.suffix.lower() in VIDEOS:
            return f"{len(frames)} frames, {self.size.frames} are needed"
        if path.suffix.lower() in IMAGES and self.size.frames > 1:
            return f"one frame, {self.size.frames} are needed (train images with frames 1)"
        if min(frames.shape[1:3]) < 16:
            return f"{frames.shape[2]}x{frames.shape[1]} pixels, at least 16x16 are needed"
        return None


def _outside(name: str) -> str | None:
    path = Path(name)
    return "not inside the folder" if path.is_absolute() or ".." in path.parts else None


def _table(folder: Path) -> Sequence[tuple[str, str]]:
    path = folder / "metadata.csv"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrainingError(f"{path} cannot be read ({error}). It is a UTF-8 table with file_name,text.") from error
    if rows and not {"file_name", "text"} <= set(rows[0]):
        raise TrainingError(f"{path} has the columns {', '.join(map(str, rows[0]))}; it needs file_name and text.")
    return [(row["file_name"] or "", row["text"] or "") for row in rows]


def read_frames(path: Path, count: int) -> np.ndarray:
    """The first ``count`` frames of a video or an image, uint8 ``[T, H, W, 3]``; fewer if it has fewer."""
    import av
    from PIL import Image

    try:
        if path.suffix.lower() in IMAGES:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))[None]
        with av.open(str(path), format=VIDEOS.get(path.suffix.lower())) as container:
            frames = []
            for frame in container.decode(video=0):
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == count:
                    break
        if not frames:
            raise TrainingError("no frame in it")
        return np.stack(frames)
    except TrainingError:
        raise
    except (*UNREADABLE, av.error.FFmpegError, Image.DecompressionBombError) as error:
        raise TrainingError(f"cannot be read ({type(error).__name__}: {error})") from error


def fit(frames: np.ndarray, size: ClipSize) -> np.ndarray:
    """Scale to cover the size and cut the centre, antialiased."""
    from PIL import Image

    _, height, width, _ = frames.shape
    if (height, width) == (size.height, size.width):
        return frames
    scale = max(size.width / width, size.height / height)
    across, down = max(size.width, round(width * scale)), max(size.height, round(height * scale))
    left, top = (across - size.width) // 2, (down - size.height) // 2
    box = (left, top, left + size.width, top + size.height)
    resized = (Image.fromarray(f).resize((across, down), Image.Resampling.BICUBIC).crop(box) for f in frames)
    return np.stack([np.asarray(image) for image in resized])
