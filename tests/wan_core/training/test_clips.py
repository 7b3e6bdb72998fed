"""Training clips from a folder or a function: what is used, what is skipped and why, and what is refused."""

import csv
import os
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.wan_core.training.tiny_run import SCENES
from wan_core.errors import TrainingError
from wan_core.training.clips import (
    COLUMNS,
    VIDEOS,
    ClipSize,
    FolderClips,
    InMemory,
    contents,
    fit,
    open_clips,
    read_frames,
)

VIDEO = ClipSize(width=32, height=32, frames=5)
PICTURE = ClipSize(width=32, height=32, frames=1)


def write_table(folder: Path, rows: list[tuple[str, ...]], columns=("file_name", "text")) -> None:
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def write_image(path: Path, width: int = 32, height: int = 32) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write_video(path: Path, frames: int = 5, width: int = 32, height: int = 32) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=Fraction(16), options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for n in range(frames):
            grey = np.full((height, width, 3), 40 * n, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())


def test_a_video_gives_its_first_frames_and_its_caption(tmp_path):
    write_video(tmp_path / "a.mp4", frames=7)
    write_table(tmp_path, [("a.mp4", "it grows lighter")])
    clips = open_clips(str(tmp_path), VIDEO)
    (clip,) = (clips[index] for index in range(len(clips)))
    assert clip.captions == ("it grows lighter",)
    assert clip.frames.shape == (5, 32, 32, 3) and clip.frames.dtype == np.uint8
    np.testing.assert_allclose(clip.frames.mean((1, 2, 3)), [0, 40, 80, 120, 160], atol=4)


@pytest.mark.parametrize("ending", VIDEOS)
def test_every_ending_of_a_video_is_read_as_what_it_says(tmp_path, ending):
    codec = {".webm": "libvpx-vp9", ".gif": "gif"}.get(ending, "mpeg4")
    with av.open(str(tmp_path / f"a{ending}"), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 32, 32, "rgb8" if ending == ".gif" else "yuv420p"
        for n in range(5):
            grey = np.full((32, 32, 3), 50 * n, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    assert read_frames(tmp_path / f"a{ending}", 5).shape == (5, 32, 32, 3)


def test_a_playlist_that_names_another_file_is_no_video(tmp_path):
    write_video(tmp_path / "good.mp4")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path / 'good.mp4'}\n")
    (tmp_path / "other.mp4").write_text("#EXTM3U\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n")
    for name in ("list.mp4", "other.mp4"):
        with pytest.raises(TrainingError, match="cannot be read"):
            read_frames(tmp_path / name, 5)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".bmp"])
def test_images_are_clips_of_one_frame(tmp_path, ending):
    write_image(tmp_path / f"a{ending}")
    write_table(tmp_path, [(f"a{ending}", "noise")])
    assert open_clips(str(tmp_path), PICTURE)[0].frames.shape == (1, 32, 32, 3)


def test_a_file_in_a_folder_of_the_folder_and_a_capital_ending_are_found(tmp_path):
    (tmp_path / "deep").mkdir()
    write_image(tmp_path / "deep" / "A.PNG")
    write_table(tmp_path, [("deep/A.PNG", "noise")])
    assert len(open_clips(str(tmp_path), PICTURE)) == 1


def bad_folder(folder: Path) -> dict[str, str]:
    """A data set in which everything is wrong but good.mp4; what is to be said of each file (an expression)."""
    write_video(folder / "good.mp4")
    write_video(folder / "short.mp4", frames=4)
    write_video(folder / "quiet.mp4")
    write_video(folder / "bare.mp4")
    write_image(folder / "picture.png")
    (folder / "noise.mp4").write_bytes(b"\x00" * 500)
    (folder / "cut.mp4").write_bytes((folder / "good.mp4").read_bytes()[:300])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.txt").write_text("hello")
    (folder / "folder.mp4").mkdir()
    outside = folder.parent / "outside.mp4"
    outside.write_bytes((folder / "good.mp4").read_bytes())
    wrong = {
        "short.mp4": "4 frames, 5 are needed",
        "quiet.mp4": "no caption",
        "picture.png": "one frame, 5 are needed",
        "noise.mp4": "cannot be read",
        "cut.mp4": "cannot be read",
        "empty.png": "cannot be read",
        "text.txt": r"neither an image nor a video \(.txt\)",
        "folder.mp4": "not there",
        "absent.mp4": "not there",
        "": "no file name",
        "../outside.mp4": "not inside the folder",
        str(outside): "not inside the folder",
        "nul\0.mp4": "not there",
        "x" * 300 + ".mp4": "not there",
    }
    rows = [(name, " " if name == "quiet.mp4" else "a clip") for name in wrong]
    more = [("bare.mp4",), ("good.mp4", "a clip"), ("./good.mp4", "the same"), ("commas.mp4", "a clip", " of a fox")]
    write_table(folder, [*rows, *more])
    return wrong | {
        "bare.mp4": "no caption",
        "./good.mp4": rf"listed twice \(line {len(rows) + 3} too\)",
        "commas.mp4": "3 fields in 2 columns; a caption with commas belongs in quotes",
    }


def test_everything_that_is_wrong_with_a_folder_is_said_at_once(tmp_path, caplog):
    wrong = bad_folder(tmp_path)
    with pytest.raises(TrainingError) as caught:
        FolderClips(tmp_path, VIDEO)
    first, *lines, last = str(caught.value).splitlines()
    assert f"wrong with {len(wrong)} of its clips" in first and "--skip-bad" in last
    assert len(lines) == len(wrong)
    for number, (line, (name, reason)) in enumerate(zip(lines, wrong.items())):
        assert line.startswith(f"- {name or 'no name'} (line "), number
        assert re.search(reason, line), line
        assert line.removeprefix("- ") in caplog.messages


def test_what_cannot_be_used_can_be_left_out(tmp_path):
    wrong = bad_folder(tmp_path)
    clips = FolderClips(tmp_path, VIDEO, skip_bad=True)
    assert [path.name for path, _ in clips.entries] == ["good.mp4"]
    assert len(clips.skipped) == len(wrong)


def test_a_refusal_lists_a_hundred_and_the_log_all(tmp_path, caplog):
    write_table(tmp_path, [(f"{n}.png", "noise") for n in range(120)])
    with pytest.raises(TrainingError, match=r"wrong with 120 of its clips") as caught:
        FolderClips(tmp_path, PICTURE)
    assert "- and 20 more, which the log lists" in str(caught.value)
    assert sum("not there" in line for line in caplog.messages) == 120


@pytest.mark.parametrize("columns", [*COLUMNS, ("text", "file_name"), (" file_name", " text ")])
def test_the_names_that_diffsynth_has_had_for_the_columns_are_read(tmp_path, columns):
    write_image(tmp_path / "a.png")
    row = ("noise", "a.png") if columns[0] == "text" else ("a.png", "noise")
    write_table(tmp_path, [row], columns)
    assert open_clips(str(tmp_path), PICTURE)[0].captions == ("noise",)


def test_a_replaced_file_or_caption_makes_another_data_set_and_a_new_date_does_not(tmp_path):
    write_image(tmp_path / "a.png")
    write_table(tmp_path, [("a.png", "noise"), ("b.png", "absent")])
    first = contents(tmp_path)
    os.utime(tmp_path / "a.png", (1, 1))
    assert contents(tmp_path) == first
    write_image(tmp_path / "a.png", 48, 48)
    second = contents(tmp_path)
    write_table(tmp_path, [("a.png", "other"), ("b.png", "absent")])
    assert first != second != contents(tmp_path) != first


def test_pictures_too_small_to_mean_anything_are_skipped(tmp_path):
    write_image(tmp_path / "a.png", 15, 40)
    write_table(tmp_path, [("a.png", "noise")])
    with pytest.raises(TrainingError, match=r"15x40 pixels, at least 16x16 are needed"):
        open_clips(str(tmp_path), PICTURE)


def test_a_folder_of_which_nothing_can_be_used_is_refused_with_the_reasons(tmp_path):
    write_table(tmp_path, [(f"{n}.png", "noise") for n in range(8)])
    with pytest.raises(TrainingError, match=r"no clip that can be used \(0\.png \(line 2\): not there.* and 3 more"):
        open_clips(str(tmp_path), PICTURE, skip_bad=True)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"metadata\.csv cannot be read"),
        (b"", r"lists no file"),
        (b"file_name,text\n", r"lists no file"),
        (b"file,caption\na.png,noise\n", r"has the columns file, caption; it needs file_name and text"),
        ("file_name,text\na.png,schön\n".encode("latin-1"), r"UTF-8 table with file_name,text"),
        (b"\xff\xfef\x00i\x00", r"UTF-8 table with file_name,text"),
        (b"file_name,text\na.png," + b"x" * 200_000 + b"\n", r"cannot be read \(field larger"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(TrainingError, match=complaint):
        open_clips(str(tmp_path), PICTURE)


def test_a_table_may_have_a_byte_order_mark_more_columns_and_any_script(tmp_path):
    write_image(tmp_path / "a.png")
    table = '\ufefffile_name,seconds,text\r\na.png,2,"红色, 圆形"\r\n'
    (tmp_path / "metadata.csv").write_bytes(table.encode("utf-8"))
    assert open_clips(str(tmp_path), PICTURE)[0].captions == ("红色, 圆形",)


@pytest.mark.parametrize(("width", "height"), [(64, 32), (32, 64), (100, 50), (48, 48), (20, 90)])
def test_a_clip_is_scaled_to_cover_the_size_and_its_centre_cut(width, height):
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([columns * 255 / (width - 1), rows * 255 / (height - 1), 0 * rows], -1).astype(np.uint8)
    got = fit(np.stack([ramp, ramp]), VIDEO).astype(float)
    assert got.shape == (2, 32, 32, 3)
    np.testing.assert_allclose(got[0].mean((0, 1))[:2], 127.5, atol=2)
    side = min(width, height)
    for axis, length in ((1, width), (0, height)):
        seen = got[0, ..., 1 - axis].mean(1 - axis)
        want = 255 * (length - side) / 2 / (length - 1)
        assert abs(seen[0] - want) < 6 and abs(seen[-1] - (255 - want)) < 6


def test_a_rendered_source_is_a_function_of_the_size():
    clips = open_clips(SCENES, VIDEO)
    assert len(clips) == 6 and clips[0].frames.shape == (5, 32, 32, 3)
    kept = InMemory(clips)
    assert len(kept) == 6 and kept[3] is clips[3]


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("no/such/folder", "is no folder. Give a folder with metadata.csv, or module:function"),
        ("no_such_module:clips", "cannot be rendered: No module named"),
        (":clips", "cannot be rendered"),
        ("tests.wan_core.training.tiny_run:no_such", "cannot be rendered: module .* has no attribute"),
        ("tests.wan_core.training.tiny_run:nothing", "gives no clips"),
        ("tests.wan_core.training.tiny_run:crooked", r"clips of \[5, 8, 8, 3\], not \[5, 32, 32, 3\]"),
    ],
)
def test_a_source_that_is_none_is_refused_in_one_sentence(where, complaint):
    with pytest.raises(TrainingError, match=complaint):
        open_clips(where, VIDEO)
