"""Names that come with workflows: nothing leads out of a folder, on any system."""

import os

import pytest

from wan_core.errors import InputError
from wan_core.media.names import check_below, check_new, is_inside

OUT = [
    "/etc/passwd", "//server/share/a", "\\\\server\\share\\a", "\\\\?\\C:\\a", "C:\\a", "c:/a", "C:a", "~/a", "~",
    "..", "../a", "a/../../b", "a\\..\\..\\b", "", " ", "\0", "a\0b", "a\nb", "a/..", "\ud800",
]  # fmt: skip
ODD = [
    "con", "CON", "a/nul.mp4", "lpt1.x", "abc:b", "a?", "a*", "a|b", "<a", 'a"b', "a.", "a ", "a./b", "a//b", "a/",
    "./a", " a", "é" * 101, "a" * 201,
]  # fmt: skip
GOOD = [
    "a",
    "video/wan",
    "a/b/c",
    "video\\wan",
    "größe",
    "日本",
    "a b",
    "v1.2",
    "%year%-%month%",
    ".hidden",
    "wan_#1 (2)",
]


@pytest.mark.parametrize("name", OUT)
def test_what_leads_out_is_refused_for_reading_and_for_writing(name):
    for check in (check_below, check_new):
        with pytest.raises(InputError, match=r"leads out of ComfyUI's own folder"):
            check(name, "The name")


@pytest.mark.parametrize("name", ODD)
def test_what_some_system_cannot_store_is_refused_for_writing_only(name):
    check_below(name, "The name")
    with pytest.raises(InputError, match="cannot be a file's name everywhere"):
        check_new(name, "The name")


@pytest.mark.parametrize("name", GOOD)
def test_usual_names_pass(name):
    check_below(name, "The name")
    check_new(name, "The name")


def test_links_are_looked_through(tmp_path):
    root, other = tmp_path / "out", tmp_path / "out-evil"
    root.mkdir()
    other.mkdir()
    os.symlink(other, root / "link")
    os.symlink(root, tmp_path / "way_in")
    assert is_inside(root, root / "new" / "deep") and is_inside(tmp_path / "way_in", root / "a")
    assert not is_inside(root, other / "a") and not is_inside(root, root / "link" / "a")
    assert not is_inside(root, root / "a\0b")
