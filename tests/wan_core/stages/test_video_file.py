"""Files and latents: the same numbers as with the whole clip in memory."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny
from tests.wan_core.media.test_write import clip, settings
from wan_core.errors import InputError
from wan_core.media.part import Place
from wan_core.media.read import read_video
from wan_core.media.write import write_video
from wan_core.runtime.ports import Ports
from wan_core.stages import vae, video_file
from wan_core.stages.video_file import Cut, encode_file


def video(folder: Path, frames: int = 13, height: int = 64, width: int = 96, **changes) -> Path:
    pictures = clip(frames, height, width)
    return write_video(pictures, Place(folder=folder, name="a"), settings(**{"codec": "ffv1"} | changes))


def test_a_decode_into_a_file_is_the_decode_in_memory(tmp_path):
    handle, latent = tiny.vae(), torch.randn(1, 16, 3, 4, 6)
    frames = video_file.decoded_frames(handle, latent, Ports())
    path = write_video(frames, Place(folder=tmp_path, name="a"), settings(codec="ffv1"))
    whole = (vae.decode(handle, latent, Ports())[0] * 255).add(0.5).to(torch.uint8).numpy()
    assert whole.std() > 5 and np.array_equal(read_video(path, 99), whole)


def test_frames_are_decoded_as_they_are_written(tmp_path):
    """The encoder takes each frame before the next run of latent frames is decoded."""
    seen = []
    ports = Ports(progress=lambda done, total, x0: seen.append(done))
    frames = video_file.decoded_frames(tiny.vae(), torch.randn(1, 16, 5, 2, 2), ports)
    next(frames)
    assert seen == [1]
    for _ in range(8):
        next(frames)
        assert seen == [1, 2, 3]
    next(frames)
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("cut", "first", "last"),
    [
        (Cut(), 0, 13),
        (Cut(start=2), 2, 11),
        (Cut(start=1, frames=5), 1, 6),
        (Cut(frames=8), 0, 5),
        (Cut(start=12), 12, 13),
    ],
)
def test_an_encode_from_a_file_is_the_encode_of_its_frames(tmp_path, cut, first, last):
    handle, told = tiny.vae(), []
    latent, fps = encode_file(handle, video(tmp_path), cut, Ports(notify=told.append))
    pictures = torch.from_numpy(np.stack(clip(13, 64, 96)[first:last]))[None].float() / 255
    assert torch.equal(latent, vae.encode(handle, pictures, Ports())) and fps == 16
    asked = min(cut.frames or 99, 13 - cut.start)
    assert told == (
        []
        if asked == last - first
        else [f"The last {asked - last + first} of {asked} frames are not encoded: a clip is 4n+1 frames long."]
    )


@pytest.mark.parametrize(
    ("cut", "size", "said"),
    [
        (Cut(), (64, 96), []),
        (Cut(width=32, height=32), (32, 32), ["was scaled to 48x32 and its centre cut to 32x32"]),
        (Cut(width=48), (32, 48), ["is 96x64 and is encoded at 48x32"]),
        (Cut(height=32), (32, 48), ["is 96x64 and is encoded at 48x32"]),
    ],
)
def test_a_clip_is_scaled_to_cover_its_size_and_told_of_once(tmp_path, cut, size, said):
    told = []
    latent, _ = encode_file(tiny.vae(), video(tmp_path), cut, Ports(notify=lambda t: t in told or told.append(t)))
    assert latent.shape == (1, 16, 4, size[0] // 8, size[1] // 8)
    assert len(told) == len(said) and all(part in line for part, line in zip(said, told))


def test_a_size_off_the_grid_is_rounded_to_it(tmp_path):
    told = []
    path = video(tmp_path, frames=5, height=70, width=100)
    latent, _ = encode_file(tiny.vae(), path, Cut(), Ports(notify=told.append))
    assert latent.shape[-2:] == (8, 12) and "is 100x70 and is encoded at 96x64" in told[0]


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (Cut(start=13), "has 13 frames, and the clip is to start at frame 13"),
        (Cut(start=-1), "got -1, 0"),
        (Cut(width=40, height=64), "width must be a multiple of 16"),
        (Cut(width=16, height=4096), "shaped too unlike"),
    ],
)
def test_what_a_file_cannot_give_is_said(tmp_path, cut, said):
    with pytest.raises(InputError, match=said):
        encode_file(tiny.vae(), video(tmp_path), cut, Ports())


def test_more_frames_than_there_are_is_told(tmp_path):
    told = []
    latent, _ = encode_file(tiny.vae(), video(tmp_path), Cut(frames=81), Ports(notify=told.append))
    assert latent.shape[2] == 4 and told == ["a_00001_.mkv has 13 frames from frame 0 on; 81 were asked for."]


def test_a_header_that_promises_more_frames_is_told(tmp_path, monkeypatch):
    from wan_core.media.read import VideoFile

    told = []
    monkeypatch.setattr(VideoFile, "count", lambda self: 33)
    latent, _ = encode_file(tiny.vae(), video(tmp_path), Cut(), Ports(notify=told.append))
    assert latent.shape[2] == 4 and "ends earlier than its header says: 4 of 9 latent frames" in told[0]


def test_a_cancel_stops_a_read_before_its_first_frame(tmp_path):
    class Cancelled(Exception):
        pass

    calls = []

    def check():
        calls.append(1)
        if len(calls) > 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        encode_file(tiny.vae(), video(tmp_path), Cut(), Ports(check_cancel=check))
