"""Video files of strangers: frames, or one sentence; never a crash, never much memory."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.wan_core.media.test_write import clip, settings
from wan_core.errors import InputError
from wan_core.media import read
from wan_core.media.part import Place
from wan_core.media.read import VideoFile, read_video
from wan_core.media.write import write_video


def video(folder: Path, frames: int = 9, **changes) -> Path:
    return write_video(clip(frames), Place(folder=folder, name="a"), settings(**{"codec": "ffv1"} | changes))


def test_frames_come_one_by_one_from_where_they_are_asked_for(tmp_path):
    with VideoFile(video(tmp_path)) as file:
        assert file.count() == 9 and file.fps == 16
        assert np.array_equal(np.stack(list(file.frames(6))), np.stack(clip()[6:]))


@pytest.mark.parametrize("codec", ["h264", "vp9", "ffv1"])
def test_frames_are_counted_where_the_header_does_not_say_them(tmp_path, codec):
    with VideoFile(video(tmp_path, frames=13, codec=codec)) as file:
        assert file.count() == 13


def test_a_phones_video_is_read_upright(tmp_path):
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        picture = np.zeros((64, 96, 3), np.uint8)
        picture[:, :48] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    turn(path)
    (frame,) = read_video(path, 1)
    assert frame.shape == (96, 64, 3)
    assert frame[:40].mean() > 240 and frame[56:].mean() < 15


def turn(path: Path) -> None:
    """Write a quarter turn clockwise into the track header's matrix, as phones do."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    numbers = (0, 0x10000, 0, -0x10000, 0, 0, 64 << 16, 0, 0x40000000)
    data[at : at + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in numbers)
    path.write_bytes(bytes(data))


def gif(width: int, height: int) -> bytes:
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    picture = b"\x2c\0\0\0\0" + size + b"\0\x02\x02\x44\x01\0"
    return b"GIF89a" + size + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + picture + b"\x3b"


def playlist(kind: str) -> bytes:
    return {
        "m3u8": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile good.mkv\n",
        "sdp": b"v=0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "dash": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    }[kind]


@pytest.mark.parametrize("kind", ["m3u8", "concat", "sdp", "dash"])
@pytest.mark.parametrize("ending", read.CONTAINERS)
def test_playlists_are_no_videos_whatever_their_ending(tmp_path, kind, ending):
    video(tmp_path).rename(tmp_path / "good.mkv")
    path = tmp_path / f"list{ending}"
    path.write_bytes(playlist(kind))
    with pytest.raises(InputError, match=rf"list\{ending} (cannot be read|holds no)"):
        read_video(path, 5)


@pytest.mark.parametrize("name", ["a.m3u8", "a.txt", "a", "a.svg", "a.mp4.concat"])
def test_other_endings_are_not_opened_at_all(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"videos are read from \.mp4"):
        read_video(tmp_path / name, 5)


@pytest.mark.parametrize("name", ["absent.mp4", "folder.mp4"])
def test_what_is_no_file_is_said(tmp_path, name):
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match=f"{name} is not there"):
        read_video(tmp_path / name, 5)


HUGE = """
import resource, sys
from pathlib import Path
import av, numpy
from wan_core.errors import InputError
from wan_core.media.read import read_video
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
try:
    read_video(Path(sys.argv[1]), 1)
except InputError as error:
    print(error)
print((peak() - before) // 1024)
"""


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (65_535, 65_535), (65_535, 1000), (8192, 8192)])
def test_a_picture_too_large_is_refused_before_it_is_decoded(tmp_path, width, height):
    path = tmp_path / "huge.gif"
    path.write_bytes(gif(width, height))
    done = subprocess.run([sys.executable, "-c", HUGE, str(path)], cwd=ROOT, capture_output=True, text=True)
    said, megabytes = done.stdout.rsplit("\n", 2)[:2]
    assert done.returncode == 0 and "huge.gif" in said, done.stderr
    assert int(megabytes) < 200, said


def test_a_codec_that_is_not_on_the_list_is_not_decoded(tmp_path, monkeypatch):
    path = video(tmp_path)
    monkeypatch.setattr(read, "CODECS", frozenset({"h264"}))
    with pytest.raises(InputError, match="holds ffv1, which is not read here"):
        read_video(path, 5)


def test_a_file_with_sound_alone_holds_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match=r"sound\.mp4 holds no video"):
        read_video(path, 5)


def test_a_size_that_changes_on_the_way_is_said(tmp_path):
    parts = []
    for side in (64, 96):
        made = tmp_path / f"{side}.mkv"
        with av.open(str(made), "w") as container:
            stream = container.add_stream("mjpeg", rate=16)
            stream.width = stream.height = side
            stream.pix_fmt = "yuvj420p"
            picture = np.zeros((side, side, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        parts.append(made)
    path = tmp_path / "both.mkv"
    with av.open(str(path), "w") as out, av.open(str(parts[0])) as one, av.open(str(parts[1])) as two:
        stream = out.add_stream_from_template(one.streams.video[0])
        for number, source in enumerate((one, two)):
            packet = next(packet for packet in source.demux(video=0) if packet.size)
            packet.stream, packet.pts, packet.dts = stream, 100 * number, 100 * number
            out.mux(packet)
    with pytest.raises(InputError, match=r"both\.mkv changes its size at frame 1, from 64x64 to 96x96"):
        read_video(path, 5)


def test_damaged_files_give_frames_or_one_sentence(tmp_path):
    """400 files with wrong, missing and doubled bytes in four containers: no other exception, no crash."""
    rng = np.random.default_rng(5)
    outcomes = {"frames": 0, "sentence": 0}
    for codec in ("h264", "vp9", "ffv1", "prores"):
        good = video(tmp_path, frames=5, codec=codec)
        data = good.read_bytes()
        for number in range(100):
            hurt = bytearray(data)
            if number % 3 == 0:
                hurt = hurt[: rng.integers(0, len(hurt))]
            elif number % 3 == 1:
                for at in rng.integers(0, len(hurt), 20):
                    hurt[at] = rng.integers(0, 256)
            else:
                at = rng.integers(0, min(2000, len(hurt)))
                hurt[at : at + 8] = b"\xff" * 8
            path = tmp_path / f"hurt{good.suffix}"
            path.write_bytes(bytes(hurt))
            try:
                outcomes["frames"] += len(read_video(path, 50)) > 0
            except InputError as error:
                assert str(error).startswith(path.name)
                outcomes["sentence"] += 1
    assert min(outcomes.values()) > 40, outcomes


def test_reading_holds_few_frames_however_long_the_file_is(tmp_path):
    """Peak memory of reading 33 and 257 frames of 640x480 differs by less than five of them."""
    script = HUGE.replace("read_video(Path(sys.argv[1]), 1)", "[None for _ in frames(Path(sys.argv[1]))]")
    script = script.replace("def peak", (
        "from wan_core.media.read import VideoFile\n"
        "def frames(path):\n    with VideoFile(path) as file:\n        yield from file.frames()\ndef peak"
    ))  # fmt: skip
    peaks = []
    for frames in (33, 257):
        picture = clip(1, height=480, width=640)[0]
        path = write_video([picture] * frames, Place(folder=tmp_path, name="long"), settings(codec="h264"))
        done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] <= 5, peaks
