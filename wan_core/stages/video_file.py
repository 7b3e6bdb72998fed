"""Latent -> frames for a video file, and a video file -> latent: neither side ever holds the whole clip."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..grid import MAX_FRAMES, MAX_SIDE, Grid, grid_of, pixel_step
from ..media.read import VideoFile
from ..runtime.ports import Notify, Ports
from ..variants import LatentSpec
from .image import fit
from .load import VaeHandle
from .vae import decode_stream, encode_stream


def byte_frames(runs_BFHWC: Iterator[Tensor]) -> Iterator[Tensor]:
    """Runs of one clip ``[1, n, H, W, 3]`` in 0..1 -> its frames, uint8 ``[H, W, 3]``, rounded to the nearest."""
    for run in runs_BFHWC:
        frames = run[0].mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8)
        del run  # and the frames below: they are not kept while the next are made
        yield from frames
        del frames


def decoded_frames(vae: VaeHandle, latent_1CTHW: Tensor, ports: Ports) -> Iterator[Tensor]:
    """The frames of one clip, uint8 ``[H, W, 3]``, as the VAE makes them; see :func:`vae.decode_stream`."""
    return byte_frames(decode_stream(vae, latent_1CTHW, ports))


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Which part of a file, and at what size.

    ``frames`` 0: to its end, as far as 4n+1 goes. ``width`` and ``height`` 0: the file's own, to the nearest multiple
    that fits; one of them 0: by the file's shape.
    """

    start: int = 0
    frames: int = 0
    width: int = 0
    height: int = 0


@dataclass(frozen=True, kw_only=True)
class OpenClip:
    """A part of an open file: what it will be, and its pictures ``[1, H, W, 3]`` in 0..1, one at a time."""

    grid: Grid
    fps: float
    pictures: Iterator[Tensor]


@contextmanager
def open_clip(path: Path, cut: Cut, spec: LatentSpec, ports: Ports) -> Iterator[OpenClip]:
    """A part of a video file, scaled to cover its size and its centre cut, frame by frame.

    Raises:
        InputError: the file cannot be read, is shorter than ``cut.start``, or is too large for the VAE's grid.
    """
    if cut.start < 0 or cut.frames < 0:
        raise InputError(f"A clip begins at frame 0 or later and has 0 or more frames; got {cut.start}, {cut.frames}.")
    with VideoFile(path) as video:
        length = video.count()
        frames = _frames_of(cut, length, spec, path.name, ports.notify)
        pictures = _cancellable(video.frames(cut.start), ports)
        first = next(pictures, None)
        if first is None:
            raise InputError(f"{path.name} ends before frame {cut.start}. Choose an earlier start.")
        width, height = _size_of(cut, first.shape[1], first.shape[0], spec, path.name, ports.notify)
        grid = grid_of(spec, width=width, height=height, frames=frames)
        fitted = (
            fit(torch.from_numpy(picture)[None].float().div_(255), grid, path.name, ports.notify)
            for picture in islice(chain([first], pictures), frames)
        )
        yield OpenClip(grid=grid, fps=video.fps or float(spec.fps), pictures=fitted)


def encode_file(vae: VaeHandle, path: Path, cut: Cut, ports: Ports) -> tuple[Tensor, float]:
    """A part of a video file -> latent ``[1, C, T, h, w]``, not normalised, and the file's frames a second."""
    with open_clip(path, cut, vae.spec, ports) as clip:
        grid = clip.grid
        runs = (picture[..., :3].movedim(-1, 0)[None].mul(2).sub_(1) for picture in clip.pictures)
        latent = list(encode_stream(vae, runs, (1, grid.frames, grid.height, grid.width), ports))
        told_if_short(len(latent), grid, path.name, ports.notify)
        return torch.cat(latent, dim=2), clip.fps


def told_if_short(latent_frames: int, grid: Grid, name: str, notify: Notify) -> None:
    """A file that has fewer frames than its header says is told of."""
    if latent_frames < grid.latent_frames:
        notify(f"{name} ends earlier than its header says: {latent_frames} of {grid.latent_frames} latent frames.")


def _cancellable(frames: Iterator[np.ndarray], ports: Ports) -> Iterator[np.ndarray]:
    for frame in frames:
        ports.check_cancel()
        yield frame


def _frames_of(cut: Cut, length: int, spec: LatentSpec, name: str, notify: Notify) -> int:
    """How many frames are encoded, 4n+1; what is left out is told."""
    if length <= cut.start:
        raise InputError(
            f"{name} has {length} frames, and the clip is to start at frame {cut.start} (the first is 0). Choose an "
            "earlier start."
        )
    there = length - cut.start
    wish = min(cut.frames or there, there)
    if cut.frames > there:
        notify(f"{name} has {there} frames from frame {cut.start} on; {cut.frames} were asked for.")
    frames = (wish - 1) // spec.stride_t * spec.stride_t + 1
    if frames > MAX_FRAMES:
        raise InputError(
            f"{name} has {there} frames from frame {cut.start} on; a clip has at most {MAX_FRAMES}. Set frames, and "
            "encode it in parts."
        )
    if frames < wish:
        notify(f"The last {wish - frames} of {wish} frames are not encoded: a clip is 4n+1 frames long.")
    return frames


def _size_of(cut: Cut, width: int, height: int, spec: LatentSpec, name: str, notify: Notify) -> tuple[int, int]:
    """Width and height of the clip; what is not given comes from the file's, on the VAE's grid."""
    step = pixel_step(spec)

    def near(side: float) -> int:
        return min(MAX_SIDE, max(step, round(side / step) * step))

    wide = cut.width or near(cut.height * width / height if cut.height else width)
    high = cut.height or near(cut.width * height / width if cut.width else height)
    if (wide, high) != (width, height) and not (cut.width and cut.height):
        notify(f"{name} is {width}x{height} and is encoded at {wide}x{high}.")
    return wide, high
