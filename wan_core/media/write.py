"""Frames -> a video file, one frame at a time: memory is the encoder's own, whatever the length."""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, OutputError, gigabytes
from .codecs import Coding, VideoCodec, codec_of
from .colours import tag, to_stored
from .part import PartFile, Place

MAX_FPS = 1000
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
RATES = {
    "aac": {96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000},
    "libopus": {48000},
}  # fmt: skip
"""Sample rates that an encoder takes; what is not listed takes any."""


@dataclass(frozen=True, kw_only=True)
class Sound:
    """``waveform [C, S]`` in -1..1 and its samples a second."""

    waveform: Tensor
    sample_rate: int

    def __post_init__(self):
        wave, rate = self.waveform, self.sample_rate
        if not isinstance(wave, Tensor) or wave.ndim != 2 or not 1 <= rate <= 768_000:
            shape = list(wave.shape) if isinstance(wave, Tensor) else type(wave).__name__
            raise InputError(f"The audio is {shape} at {rate} Hz; a sound is [channels, samples], 1 to 768000 Hz.")
        if not wave.isfinite().all():
            raise InputError("The audio holds NaN or infinity. Check the node that made it, or save without audio.")


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """How a file is made: frames a second, names of :data:`codecs.VIDEO_CODECS` and :data:`codecs.QUALITIES`."""

    fps: float
    codec: str = "h264"
    quality: str = "high"
    sound: Sound | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    """Tags of the file, as they are."""

    def __post_init__(self):
        if not 0.01 <= self.fps <= MAX_FPS:
            raise InputError(f"{self.fps:g} frames a second cannot be written; use 0.01 to {MAX_FPS}.")

    @property
    def rate(self) -> Fraction:
        """Frames a second to a thousandth, as native nodes round them."""
        return Fraction(round(self.fps * 1000), 1000)


def write_video(frames: Iterable[Tensor | np.ndarray], place: Place, settings: VideoSettings) -> Path:
    """Encode ``frames`` into a new numbered file and return its path.

    Args:
        frames: uint8 ``[H, W, 3]`` each, of one size; at least one. What it raises (a cancel) goes through.
        place: folder, name and the first number that may be free.

    Raises:
        InputError: no frame; sizes, rates or a codec that cannot be written.
        OutputError: the disk is full, or the folder takes no file. No file is left, none is changed.
    """
    codec = codec_of(settings.codec)
    coding = codec.coding(settings.quality)
    with _saying(place):
        part = PartFile(place)
        part.__enter__()
    try:
        count = _encode(iter(frames), part.path, place, codec, coding, settings)
        with _saying(place):
            _check_whole(part.path, codec, count)
            return part.publish(codec.ending)
    finally:
        part.__exit__()


def _encode(frames: Iterator, path: Path, place: Place, codec: VideoCodec, coding: Coding, settings) -> int:
    """All frames into ``path``; how many they were."""
    first = next(frames, None)
    if first is None:
        raise InputError("There is no frame to write.")
    height, width = first.shape[:2]
    _check_size(codec, coding, settings.codec, width, height)
    with _saying(place):
        file = _File(path, codec, coding, settings, width, height)
    done = 0
    try:
        frame = first
        while frame is not None:
            picture = _picture(frame, width, height)
            with _saying(place):
                file.add(picture)
            done += 1
            frame = next(frames, None)
        with _saying(place):
            file.finish()
    except BaseException:
        file.abandon()
        raise
    return done


class _File:
    """An open container with its encoders."""

    def __init__(self, path: Path, codec: VideoCodec, coding: Coding, settings: VideoSettings, width: int, height: int):
        import av

        options = {"movflags": "use_metadata_tags+faststart"} if codec.container in ("mp4", "mov") else {}
        self._container = av.open(
            str(path), mode="w", format=codec.container, container_options=options, metadata_errors="replace"
        )
        self._container.metadata.update(settings.metadata)
        self._rate, self._done, self._rgb = settings.rate, 0, coding.pix_fmt == "bgr0"
        self._video = self._container.add_stream(codec.encoder, rate=settings.rate)
        self._video.width, self._video.height, self._video.pix_fmt = width, height, coding.pix_fmt
        self._video.options = dict(coding.options)
        if codec.tag:
            self._video.codec_context.codec_tag = codec.tag
        if not self._rgb:
            tag(self._video.codec_context)
        self._sound = None if settings.sound is None else _SoundTrack(self._container, settings.sound, codec.audio)

    def add(self, picture: np.ndarray) -> None:
        """One frame, and the sound that goes on meanwhile."""
        import av

        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        if self._rgb:
            frame = frame.reformat(format="bgr0")
        else:
            frame = to_stored(frame, self._video.pix_fmt)
            tag(frame)
        self._container.mux(self._video.encode(frame))
        self._done += 1
        if self._sound is not None:
            self._sound.go_to(self._done / self._rate)

    def finish(self) -> None:
        self._container.mux(self._video.encode(None))
        if self._sound is not None:
            self._sound.finish()
        self._container.close()

    def abandon(self) -> None:
        """Let go of the file; it is removed next, so what closing it says is of no interest."""
        with suppress(Exception):
            self._container.close()


class _SoundTrack:
    """Encodes a sound beside the frames, so that no side has to wait for the other in memory."""

    def __init__(self, container, sound: Sound, encoder: str):
        import av

        channels = sound.waveform.shape[0] if sound.waveform.shape[0] in LAYOUTS else 2
        self._wave, self._from_rate = sound.waveform[:channels].float().cpu(), int(sound.sample_rate)
        allowed = RATES.get(encoder)
        rate = self._from_rate if allowed is None or self._from_rate in allowed else 48000
        self._layout = LAYOUTS[channels]
        self._container, self._at = container, 0
        self._stream = container.add_stream(encoder, rate=rate, layout=self._layout)
        self._resampler = av.AudioResampler(format=self._stream.format, layout=self._layout, rate=rate)

    def go_to(self, seconds: Fraction) -> None:
        import av

        end = min(self._wave.shape[1], round(seconds * self._from_rate))
        if end <= self._at:
            return
        piece = np.ascontiguousarray(self._wave[:, self._at : end].numpy())
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = self._from_rate, self._at, Fraction(1, self._from_rate)
        self._at = end
        self._put(self._resampler.resample(frame))

    def finish(self) -> None:
        if self._at:
            self._put(self._resampler.resample(None))
        self._container.mux(self._stream.encode(None))

    def _put(self, frames: list) -> None:
        for frame in frames:
            self._container.mux(self._stream.encode(frame))


def _check_size(codec: VideoCodec, coding: Coding, name: str, width: int, height: int) -> None:
    across = 2 if "420" in coding.pix_fmt or "422" in coding.pix_fmt else 1
    down = 2 if "420" in coding.pix_fmt else 1
    if width % across or height % down:
        raise InputError(
            f"{name} stores colours for pairs of pixels and takes no {width}x{height}. Scale or crop to "
            f"{width // across * across}x{height // down * down}, or choose ffv1."
        )


def _picture(frame: Tensor | np.ndarray, width: int, height: int) -> np.ndarray:
    picture = frame.cpu().numpy() if isinstance(frame, torch.Tensor) else frame
    if picture.dtype != np.uint8 or picture.shape != (height, width, 3):
        raise InputError(
            f"A frame is {picture.dtype} {list(picture.shape)}; the file takes uint8 [{height}, {width}, 3] only."
        )
    return np.ascontiguousarray(picture)


def _check_whole(path: Path, codec: VideoCodec, count: int) -> None:
    """The file, read back from its first to its last packet, has every frame: a disk that lost some says so here."""
    import av

    with av.open(str(path), format=codec.container) as container:
        found = sum(1 for packet in container.demux(video=0) if packet.size)
    if found != count:
        raise OutputError(f"{found} of {count} frames were found in the file after it was written. Check the disk.")


@contextmanager
def _saying(place: Place) -> Iterator[None]:
    """What the file system and the encoders raise, as a sentence."""
    import av

    try:
        yield
    except OSError as error:
        raise OutputError(_disk_sentence(place, error)) from error
    except av.error.FFmpegError as error:
        raise InputError(
            f"The encoder does not take this video ({error}). Choose another codec, or a usual size and frame rate."
        ) from error


def _disk_sentence(place: Place, error: OSError) -> str:
    what = f"The video could not be written into {place.folder}: "
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return f"{what}the disk is full ({_free(place.folder)}). Free some space, or choose a smaller quality."
    if error.errno == errno.EFBIG:
        return f"{what}its file system or a limit takes no larger file. Choose a smaller quality, or another disk."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{what}it may not be written to. Change its permissions, or the prefix of the file name."
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"{what}it is no folder, or is gone. Make it, or change the prefix of the file name."
    if error.errno == errno.ENAMETOOLONG:
        return f"{what}the name is too long. Shorten the prefix of the file name."
    return f"{what}{error.strerror or error}. Check the disk."


def _free(folder: Path) -> str:
    import shutil

    try:
        return f"{gigabytes(shutil.disk_usage(folder).free)} free"
    except OSError:
        return "what is free is not known"
