"""Where training clips come from: a folder with ``metadata.csv``, or a Python function that renders them."""

import csv
import importlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import InputError, TrainingError, first_few
from ..media.read import CONTAINERS, read_video
from . import TABLE

log = logging.getLogger(__name__)

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
UNREADABLE = (OSError, ValueError, SyntaxError, IndexError, ArithmeticError)
VIDEOS = CONTAINERS
COLUMNS = (("file_name", "text"), ("video", "prompt"), ("image", "prompt"))
"""What the columns of file names and captions are called; the pairs that DiffSynth-Studio has had."""
LISTED = 100
"""Problems that a refusal lists; the log has all of them."""


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


def open_clips(where: str, size: ClipSize, skip_bad: bool = False) -> Clips:
    """A data set.

    Args:
        where: a folder with ``metadata.csv`` (``file_name,text``), or ``module:name`` of a callable that takes the
            size and gives :class:`Clips`.
        size: what every clip has to be.
        skip_bad: go on without the clips of a folder that cannot be used.

    Raises:
        TrainingError: there is no such folder or function; something in it cannot be used (everything that is wrong is
            listed), or with ``skip_bad`` nothing can.
    """
    if Path(where).is_dir():
        return FolderClips(Path(where), size, skip_bad)
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


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: the line it ends on, a file and its caption, and what is wrong with the row itself."""

    line: int
    name: str
    text: str
    wrong: str | None = None


class FolderClips:
    """Videos and images named in ``metadata.csv``. Everything that cannot be used is listed with the reason."""

    def __init__(self, folder: Path, size: ClipSize, skip_bad: bool = False):
        """
        Raises:
            TrainingError: something cannot be used; with ``skip_bad``: nothing can.
        """
        self.size = size
        self.entries: list[tuple[Path, str]] = []
        self.skipped: list[tuple[str, str]] = []
        lines: dict[str, int] = {}
        for row in _rows(folder):
            first = lines.setdefault(os.path.normpath(row.name), row.line)
            twice = f"listed twice (line {first} too)" if first != row.line else None
            reason = row.wrong or _outside(row.name) or twice or self._reason(folder / row.name, row.text)
            if reason:
                self.skipped.append((f"{row.name or 'no name'} (line {row.line})", reason))
            else:
                self.entries.append((folder / row.name, row.text))
        for name, reason in self.skipped:
            log.warning("%s: %s", name, reason)
        if self.skipped and not skip_bad:
            raise TrainingError(_refusal(folder, self.skipped))
        if not self.entries:
            why = first_few(f"{name}: {reason}" for name, reason in self.skipped) or f"{TABLE} lists no file"
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
        if not os.path.isfile(path):
            return "not there"
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


def _refusal(folder: Path, wrong: list[tuple[str, str]]) -> str:
    lines = [f"- {name}: {reason}" for name, reason in wrong[:LISTED]]
    if len(wrong) > LISTED:
        lines.append(f"- and {len(wrong) - LISTED} more, which the log lists")
    return "\n".join(
        (
            f"{folder} cannot be trained on as it is; wrong with {len(wrong)} of its clips:",
            *lines,
            "Mend them, or go on without these clips: --skip-bad (in ComfyUI: skip_bad).",
        )
    )


def _outside(name: str) -> str | None:
    path = Path(name)
    return "not inside the folder" if path.is_absolute() or ".." in path.parts else None


def _rows(folder: Path) -> Sequence[Row]:
    """The table's rows.

    Raises:
        TrainingError: it cannot be read, or has no columns of file names and captions.
    """
    path = folder / TABLE
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file)
            columns = [name.strip() for name in next(table, [])]
            rows = [(table.line_num, fields) for fields in table if fields]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrainingError(f"{path} cannot be read ({error}). It is a UTF-8 table with file_name,text.") from error
    pair = next((pair for pair in COLUMNS if set(pair) <= set(columns)), None)
    if pair is None and columns:
        raise TrainingError(
            f"{path} has the columns {', '.join(columns)}; it needs file_name and text, with a comma between them."
        )
    return [_row(line, fields, columns, pair) for line, fields in rows]


def _row(line: int, fields: list[str], columns: list[str], pair: tuple[str, str]) -> Row:
    named = dict(zip(columns, fields))
    wrong = None
    if len(fields) > len(columns):
        wrong = f"{len(fields)} fields in {len(columns)} columns; a caption with commas belongs in quotes"
    name = named.get(pair[0], "").strip()
    return Row(line=line, name=name, text=named.get(pair[1], ""), wrong=wrong or (None if name else "no file name"))


def contents(folder: Path) -> list[tuple[str, str, int]]:
    """Names, captions and sizes of the files that the table lists, -1 for one that is not there: what tells that a data
    set has changed, without reading it."""
    listed = []
    for row in _rows(folder):
        path = os.path.join(folder, row.name)
        listed.append((row.name, row.text, os.path.getsize(path) if os.path.isfile(path) else -1))
    return listed


def read_frames(path: Path, count: int) -> np.ndarray:
    """The first ``count`` frames of a video or an image, uint8 ``[T, H, W, 3]``; fewer if it has fewer."""
    from PIL import Image

    if path.suffix.lower() not in IMAGES:
        try:
            return read_video(path, count)
        except InputError as error:
            raise TrainingError(str(error).removeprefix(f"{path.name} ")) from error
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))[None]
    except (*UNREADABLE, Image.DecompressionBombError) as error:
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
