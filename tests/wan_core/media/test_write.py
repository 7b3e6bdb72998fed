"""Video files: what is in them is what went in, and nothing that goes wrong leaves a trace."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from wan_core.errors import InputError, OutputError
from wan_core.media import codecs, part
from wan_core.media.codecs import QUALITIES, VIDEO_CODECS
from wan_core.media.part import PartFile, Place
from wan_core.media.read import read_video
from wan_core.media.write import Sound, VideoSettings, write_video

HEIGHT, WIDTH = 96, 144


def clip(frames: int = 9, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    """A soft pattern that moves, with a round light in it."""
    y, x = np.mgrid[0:height, 0:width]
    made = []
    for t in range(frames):
        waves = np.stack([np.sin(x / 37 + t / 5 + c) * np.cos(y / (29 + 7 * c)) for c in range(3)], -1)
        light = np.exp(-((x - 20 - 3 * t) ** 2 + (y - 40) ** 2) / 300)[..., None]
        made.append((127 + 80 * waves + 40 * light).clip(0, 255).astype(np.uint8))
    return made


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else 99.0


def settings(**changes) -> VideoSettings:
    return VideoSettings(**{"fps": 16, **changes})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("codec", VIDEO_CODECS)
def test_every_codec_keeps_the_frames_their_number_speed_and_tags(tmp_path, codec):
    tags = {"prompt": '{"1": {"inputs": {}}}', "workflow": '{"nodes": ["\\u00fc"]}'}
    frames = clip()
    path = write_video(
        frames, Place(folder=tmp_path, name="a"), settings(codec=codec, quality="highest", metadata=tags)
    )
    assert names(tmp_path) == [path.name] == [f"a_00001_.{VIDEO_CODECS[codec].ending}"]
    read = read_video(path, 100)
    assert read.shape == (9, HEIGHT, WIDTH, 3)
    assert min(map(psnr, frames, read)) >= (99 if codec == "ffv1" else 45)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 16
        found = {key.lower(): value for key, value in container.metadata.items()}
    assert {key: found[key] for key in tags} == tags


@pytest.mark.parametrize("codec", [name for name in VIDEO_CODECS if name != "ffv1"])
def test_a_better_quality_is_closer_and_a_smaller_one_smaller(tmp_path, codec):
    noise = np.random.default_rng(0).normal(0, 12, (5, HEIGHT, WIDTH, 3))
    frames = [(frame + grain).clip(0, 255).astype(np.uint8) for frame, grain in zip(clip(5), noise)]
    place = Place(folder=tmp_path, name="a")
    paths = [write_video(frames, place, settings(codec=codec, quality=quality)) for quality in QUALITIES]
    sizes = [path.stat().st_size for path in paths]
    exact = [psnr(np.stack(frames), read_video(path, 9)) for path in paths]
    assert sizes == sorted(sizes) and sizes[0] < sizes[3]
    assert exact[0] < exact[3]


def test_tensors_are_frames_too_and_fractions_of_a_second_are_kept(tmp_path):
    frames = (torch.from_numpy(frame) for frame in clip(5))
    path = write_video(frames, Place(folder=tmp_path, name="a"), settings(fps=23.976))
    with av.open(str(path)) as container:
        assert float(container.streams.video[0].average_rate) == 23.976


@pytest.mark.parametrize(
    ("codec", "rate", "channels", "kept"),
    [("h264", 44100, 2, 44100), ("h264", 11000, 1, 48000), ("vp9", 44100, 2, 48000), ("ffv1", 22050, 2, 22050),
     ("prores", 48000, 6, 48000), ("h264", 48000, 4, 48000)],
)  # fmt: skip
@pytest.mark.parametrize("seconds", [0.3, 4.0])
def test_sound_is_as_long_as_the_video_at_most(tmp_path, codec, rate, channels, kept, seconds):
    wave = torch.sin(torch.arange(int(rate * seconds)) * 2 * torch.pi * 440 / rate).repeat(channels, 1) * 0.5
    sound = Sound(waveform=wave, sample_rate=rate)
    path = write_video(clip(17), Place(folder=tmp_path, name="a"), settings(codec=codec, sound=sound))
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        assert track.rate == kept and track.channels == (channels if channels != 4 else 2)
        heard = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(track)])
        loud = float(np.abs(heard.astype(float)).max()) / (1 if heard.dtype == np.float32 else 2**15)
    with av.open(str(path)) as container:
        ends = [float((p.pts + p.duration) * p.time_base) for p in container.demux(audio=0) if p.size]
    assert max(ends) == pytest.approx(min(17 / 16, seconds), abs=0.06)
    assert 0.3 < loud < 0.8


def test_a_number_that_is_taken_is_never_taken_twice(tmp_path):
    (tmp_path / "a_00003_.mp4").write_bytes(b"mine")
    os.symlink(tmp_path / "gone", tmp_path / "a_00004_.mp4")
    path = write_video(clip(2), Place(folder=tmp_path, name="a", counter=3), settings())
    assert path.name == "a_00005_.mp4" and (tmp_path / "a_00003_.mp4").read_bytes() == b"mine"
    assert not (tmp_path / "gone").exists()


def test_where_there_are_no_hard_links_nothing_is_overwritten_either(tmp_path, monkeypatch):
    def no_links(*args, **kwargs):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "a_00001_.mp4").write_bytes(b"mine")
    (tmp_path / ".a_00002_.mp4.wan-claim").write_bytes(b"")  # another writer is about to take it
    path = write_video(clip(2), Place(folder=tmp_path, name="a"), settings())
    assert path.name == "a_00003_.mp4" and len(read_video(path, 9)) == 2
    assert (tmp_path / "a_00001_.mp4").read_bytes() == b"mine"
    assert names(tmp_path) == [".a_00002_.mp4.wan-claim", "a_00001_.mp4", "a_00003_.mp4"]


def test_what_a_cancel_interrupts_is_gone_and_the_cancel_goes_through(tmp_path):
    class Cancelled(Exception):
        pass

    def frames():
        yield from clip(4)
        assert [name for name in names(tmp_path) if name.endswith(".part")]
        raise Cancelled

    with pytest.raises(Cancelled):
        write_video(frames(), Place(folder=tmp_path, name="a"), settings())
    assert names(tmp_path) == []


def test_an_error_of_the_frames_is_not_taken_for_one_of_the_disk(tmp_path):
    def frames():
        yield from clip(1)
        raise OSError(errno.ENOSPC, "of something else")

    with pytest.raises(OSError, match="of something else") as caught:
        write_video(frames(), Place(folder=tmp_path, name="a"), settings())
    assert not isinstance(caught.value, OutputError)


@pytest.mark.parametrize(
    ("frames", "changes", "said"),
    [
        ([], {}, "no frame"),
        (clip(1, height=64, width=63), {}, "no 63x64.*62x64.*ffv1"),
        ([*clip(1), *clip(1, height=64)], {}, r"uint8 \[64, 144, 3\].*uint8 \[96, 144, 3\]"),
        ([clip(1)[0] / 255], {}, "float64"),
        (clip(1), {"codec": "mpeg9"}, "no codec 'mpeg9'; choose h264"),
        (clip(1), {"quality": "best"}, "no quality 'best'; choose small"),
        (clip(1, height=2, width=40_000), {}, "another codec, or a usual size"),
    ],
)
def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path, frames, changes, said):
    with pytest.raises(InputError, match=said):
        write_video(frames, Place(folder=tmp_path, name="a"), settings(**changes))
    assert names(tmp_path) == []


def test_an_encoder_that_is_not_there_is_said_with_the_ones_that_are(tmp_path, monkeypatch):
    monkeypatch.setattr(codecs, "has_encoder", lambda name: name in ("libx264", "ffv1"))
    with pytest.raises(InputError, match=r"no encoder libsvtav1 for av1\. It can write h264, ffv1"):
        write_video(clip(1), Place(folder=tmp_path, name="a"), settings(codec="av1"))


@pytest.mark.parametrize("fps", [0, -1, 1e9, float("nan")])
def test_a_speed_that_is_none_is_refused(fps):
    with pytest.raises(InputError, match="frames a second"):
        settings(fps=fps)


def test_sound_that_is_none_is_refused():
    with pytest.raises(InputError, match="NaN"):
        Sound(waveform=torch.full((1, 9), torch.nan), sample_rate=8000)
    with pytest.raises(InputError, match=r"\[9\] at 8000 Hz"):
        Sound(waveform=torch.zeros(9), sample_rate=8000)


@pytest.mark.parametrize(
    ("folder", "said"),
    [("/sys", "may not be written to"), ("nowhere", "is no folder"), ("a file", "is no folder")],
)
def test_a_folder_that_takes_no_file_is_said(tmp_path, folder, said):
    (tmp_path / "a file").write_text("")
    with pytest.raises(OutputError, match=said):
        write_video(clip(1), Place(folder=tmp_path / folder, name="a"), settings())


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.ENOSPC, r"the disk is full \(\d+\.\d GB free\)"), (errno.EIO, "Check the disk"), (errno.EROFS, "may not")],
)
def test_a_disk_that_fails_at_the_very_end_is_said_and_leaves_nothing(tmp_path, monkeypatch, code, said):
    def fails(fd):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OutputError, match=said):
        write_video(clip(2), Place(folder=tmp_path, name="a"), settings())
    assert names(tmp_path) == []


FULL = """
import resource, signal, sys
from pathlib import Path
from tests.wan_core.media.test_write import Place, OutputError, clip, names, settings, write_video
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, codec = Path(sys.argv[1]), sys.argv[2]
place = Place(folder=folder, name="a")
whole = write_video(clip(), place, settings(codec=codec)).stat().st_size
for tenth in range(10):
    limit = whole * tenth // 11 if tenth < 9 or codec != "ffv1" else whole - 1  # x264's sizes vary by some bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_video(clip(), place, settings(codec=codec))
    except OutputError as error:
        assert "takes no larger file" in str(error), error
        print(limit, names(folder))
"""


@pytest.mark.parametrize("codec", ["h264", "ffv1"])
def test_a_disk_that_fills_up_at_any_point_leaves_nothing_and_harms_nothing(tmp_path, codec):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path), codec], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) == 10 and all(line.endswith(str(names(tmp_path))) for line in lines)
    assert len(names(tmp_path)) == 1


KILLED = """
import itertools, sys
from pathlib import Path
from tests.wan_core.media.test_write import Place, clip, settings, write_video
frames = clip(3)
print("ready", flush=True)
for number in itertools.count():
    write_video(itertools.islice(itertools.cycle(frames), 12), Place(folder=Path(sys.argv[1]), name="a"), settings())
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_leaves_whole_files_only(tmp_path):
    """Ten kills at ten moments of a writer that makes one file after another."""
    kept = write_video(clip(2), Place(folder=tmp_path, name="a", counter=1), settings())
    before = kept.read_bytes()
    partial = 0
    for kill in range(10):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        child.stdout.readline()
        time.sleep(0.05 + 0.037 * kill)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        partial += any(name.endswith(".part") for name in names(tmp_path))
        for path in tmp_path.glob("a_*.mp4"):
            assert len(read_video(path, 99)) == (2 if path == kept else 12)
    assert partial, "no kill met a file that was being written: the test proves nothing"
    assert kept.read_bytes() == before


def test_what_a_killed_writer_left_is_cleared_away_but_nothing_else(tmp_path):
    old, young, held, other = (tmp_path / f".a.{16 * sign}.part" for sign in "abcd")
    for path in (old, young, held):
        path.write_bytes(b"x")
    other.mkdir()
    user = tmp_path / ".notes.part"
    user.write_bytes(b"x")
    claim = tmp_path / ".a_00001_.mp4.wan-claim"
    claim.write_bytes(b"")
    past = time.time() - part.STALE_SECONDS - 60
    for path in (old, held, user, claim):
        os.utime(path, (past, past))
    with held.open("r+b") as file:
        part._hold(file.fileno())
        write_video(clip(1), Place(folder=tmp_path, name="b"), settings())
    assert names(tmp_path) == sorted([young.name, held.name, other.name, user.name, "b_00001_.mp4"])


def test_two_writers_of_one_name_get_a_number_each(tmp_path):
    place = Place(folder=tmp_path, name="a")
    with PartFile(place) as one, PartFile(place) as two:
        one.path.write_bytes(b"one")
        two.path.write_bytes(b"two")
        assert [two.publish("mp4").name, one.publish("mp4").name] == ["a_00001_.mp4", "a_00002_.mp4"]
    assert (tmp_path / "a_00001_.mp4").read_bytes() == b"two" and len(names(tmp_path)) == 2
