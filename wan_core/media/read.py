"""A video file -> frames, one at a time. Files come from strangers: a few containers and codecs, bounded pictures."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np

from ..errors import InputError
from .colours import to_rgb

CONTAINERS = {
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi", ".gif": "gif",
}  # fmt: skip
"""Ending -> the one container that is looked for in such a file: others, such as playlists, can name further files."""
CODECS = frozenset({
    "h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "msmpeg4v2", "msmpeg4v3", "h263",
    "prores", "dnxhd", "ffv1", "huffyuv", "ffvhuff", "utvideo", "qtrle", "rawvideo", "mjpeg", "png", "gif",
})  # fmt: skip
MAX_SIDE = 8192
MAX_PIXELS = 8192 * 4320
"""Of one frame: the largest common video size. A decoder holds some 20 frames."""
THREADS = 4
"""Of a decoder; each holds a frame."""
UNREADABLE = (OSError, ValueError, IndexError, ArithmeticError, RuntimeError)


class VideoFile:
    """``with VideoFile(path) as video``: ``video.frames(start)`` yields uint8 ``[H, W, 3]``.

    Raises :class:`InputError` for whatever cannot be read, naming the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._container = None

    def __enter__(self) -> "VideoFile":
        import av

        container = CONTAINERS.get(self.path.suffix.lower())
        if container is None:
            raise InputError(
                f"{self.path.name} has the ending {self.path.suffix or '(none)'}; videos are read from "
                f"{', '.join(CONTAINERS)}. Convert it to mp4."
            )
        if not os.path.isfile(self.path):
            raise InputError(f"{self.path.name} is not there, or is no file. Choose another video.")
        with self._saying(None):
            self._container = av.open(
                os.path.abspath(self.path),
                format=container,
                options={"max_pixels": str(MAX_PIXELS)},
                container_options={"protocol_whitelist": "file"},
                metadata_errors="replace",
            )
        try:
            self._stream = self._checked_stream()
        except BaseException:
            self._container.close()
            raise
        return self

    def __exit__(self, *error) -> None:
        self._container.close()

    @property
    def fps(self) -> float | None:
        """Frames a second, on average."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        return float(rate) if rate else None

    def count(self) -> int:
        """Frames in the file: what its header says, else counted by reading it through, without decoding."""
        if self._stream.frames > 0:
            return self._stream.frames
        with VideoFile(self.path) as other, other._saying(None):
            return sum(1 for packet in other._container.demux(other._stream) if packet.size)

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Frames from number ``start`` on, upright, one at a time; the ones before are decoded and dropped."""
        number, decoded = 0, self._container.decode(self._stream)
        while True:
            with self._saying(number):
                frame = next(decoded, None)
                if frame is None:
                    return
                if (frame.width, frame.height) != self._size:
                    raise InputError(
                        f"{self.path.name} changes its size at frame {number}, from {self._size[0]}x{self._size[1]} "
                        f"to {frame.width}x{frame.height}. Convert it to one size."
                    )
                picture = _upright(frame) if number >= start else None
            number += 1
            if picture is not None:
                yield picture

    def _checked_stream(self):
        streams = self._container.streams.video
        if not streams or streams[0].codec_context is None:
            raise InputError(f"{self.path.name} holds no video that PyAV can decode. Convert it to mp4 with h264.")
        stream = streams[0]
        context = stream.codec_context
        if context.name not in CODECS and context.codec.canonical_name not in CODECS:
            raise InputError(
                f"{self.path.name} holds {context.codec.canonical_name}, which is not read here. Convert it to h264."
            )
        self._size = width, height = context.width, context.height
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
            raise InputError(
                f"{self.path.name} says that it is {width}x{height} pixels large; videos are read up to {MAX_SIDE} a "
                f"side and {MAX_PIXELS // 1_000_000} million pixels. Scale it down first."
            )
        context.options = {"max_pixels": str(MAX_PIXELS)}
        context.thread_type, context.thread_count = "AUTO", min(THREADS, os.cpu_count() or 1)
        return stream

    @contextmanager
    def _saying(self, number: int | None) -> Iterator[None]:
        """What a decoder raises, as a sentence that names the file and the frame."""
        import av

        try:
            yield
        except InputError:
            raise
        except (*UNREADABLE, av.error.FFmpegError) as error:
            where = "" if number is None else f" from frame {number} on"
            raise InputError(
                f"{self.path.name} cannot be read{where} ({type(error).__name__}: {error}). It is damaged, or not what "
                "its ending says: convert it again."
            ) from error


def _upright(frame) -> np.ndarray:
    """As players show it: phones store the picture lying and say how it is turned."""
    picture = to_rgb(frame)
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def read_video(path: Path, count: int) -> np.ndarray:
    """The first ``count`` frames at once, uint8 ``[T, H, W, 3]``; fewer if the file has fewer, at least one."""
    with VideoFile(path) as video:
        frames = list(islice(video.frames(), count))
    if not frames:
        raise InputError(f"{path.name} holds no frame.")
    return np.stack(frames)
