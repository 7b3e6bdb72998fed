"""Kept text encodings: the same bits again, nothing wrong from a damaged file, and no more than fits."""

import json
import os
import resource
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wan_core.runtime.prompt_cache import PromptCache, file_identity, key_of

CPU = torch.device("cpu")
KEY = key_of("encoder", torch.float32, CPU, [1, 2, 3])


def test_what_was_put_is_there_again_and_in_another_process_too(tmp_path):
    rows = torch.randn(3, 8)
    cache = PromptCache(tmp_path / "made when needed")
    assert cache.get(KEY, 3, 8) is None
    cache.put(KEY, rows)
    assert torch.equal(cache.get(KEY, 3, 8), rows)
    assert torch.equal(PromptCache(tmp_path / "made when needed").get(KEY, 3, 8), rows)
    assert PromptCache(None).get(KEY, 3, 8) is None


def test_what_is_handed_out_can_be_changed_without_harm():
    cache, rows = PromptCache(), torch.randn(3, 8)
    kept = rows.clone()
    cache.put(KEY, rows)
    rows.zero_()
    cache.get(KEY, 3, 8).zero_()
    assert torch.equal(cache.get(KEY, 3, 8), kept)


def test_another_encoder_precision_device_or_token_is_another_key():
    keys = {
        KEY,
        key_of("another", torch.float32, CPU, [1, 2, 3]),
        key_of("encoder", torch.bfloat16, CPU, [1, 2, 3]),
        key_of("encoder", torch.float32, torch.device("meta"), [1, 2, 3]),
        key_of("encoder", torch.float32, CPU, [1, 2]),
    }
    assert len(keys) == 5


def test_a_file_is_known_by_its_content_size_and_time_and_not_by_its_name(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"x" * 100)
    two.write_bytes(b"x" * 100)
    os.utime(one, ns=(5, 5))
    os.utime(two, ns=(5, 5))
    assert file_identity([one]) == file_identity([two])
    two.write_bytes(b"x" * 99 + b"y")
    os.utime(two, ns=(5, 5))
    assert file_identity([one]) != file_identity([two])
    os.utime(two, ns=(6, 6))
    before = file_identity([two])
    os.utime(two, ns=(7, 7))
    assert file_identity([two]) != before


def wrong_files():
    yield "cut", lambda path: path.write_bytes(path.read_bytes()[:-5])
    yield "empty", lambda path: path.write_bytes(b"")
    yield "pickle", lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n")
    yield "another shape", lambda path: save_file({"rows": torch.randn(4, 8)}, path)
    yield "another type", lambda path: save_file({"rows": torch.zeros(3, 8, dtype=torch.int32)}, path)
    yield "another name", lambda path: save_file({"row": torch.randn(3, 8)}, path)
    yield "NaN", lambda path: save_file({"rows": torch.full((3, 8), float("nan"))}, path)
    yield "folder", lambda path: (path.unlink(), path.mkdir())


@pytest.mark.parametrize(("what", "spoil"), wrong_files(), ids=[name for name, _ in wrong_files()])
def test_a_file_that_is_not_what_it_should_be_counts_as_not_there(tmp_path, what, spoil):
    PromptCache(tmp_path).put(KEY, torch.randn(3, 8))
    (path,) = tmp_path.iterdir()
    spoil(path)
    assert PromptCache(tmp_path).get(KEY, 3, 8) is None


def test_a_file_that_claims_a_terabyte_costs_no_memory(tmp_path):
    PromptCache(tmp_path).put(KEY, torch.randn(3, 8))
    (path,) = tmp_path.iterdir()
    rows = 2**26
    entry = {"rows": {"dtype": "F32", "shape": [rows, 4096], "data_offsets": [0, rows * 4096 * 4]}}
    header = json.dumps(entry).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + rows * 4096 * 4)  # a hole: it takes no room on the disk either
    assert PromptCache(tmp_path).get(KEY, 3, 8) is None


@pytest.mark.parametrize(("what", "spoil"), wrong_files(), ids=[name for name, _ in wrong_files()])
def test_what_is_made_again_takes_the_place_of_a_wrong_file(tmp_path, what, spoil):
    PromptCache(tmp_path).put(KEY, torch.randn(3, 8))
    (path,) = tmp_path.iterdir()
    spoil(path)
    rows, cache = torch.randn(3, 8), PromptCache(tmp_path)
    cache.put(KEY, rows)
    assert torch.equal(cache.get(KEY, 3, 8), rows)
    if what != "folder":
        assert torch.equal(PromptCache(tmp_path).get(KEY, 3, 8), rows)


def numbered(number: int) -> str:
    return key_of("encoder", torch.float32, CPU, [number])


def test_what_was_used_stays_and_what_a_killed_process_left_goes_but_nothing_of_others(tmp_path):
    PromptCache(tmp_path).put(numbered(0), torch.zeros(3, 8))
    size = next(tmp_path.iterdir()).stat().st_size
    PromptCache(tmp_path).put(numbered(1), torch.zeros(3, 8))
    half, others = tmp_path / f"{KEY}.1234.part", tmp_path / "notes.safetensors"
    half.write_bytes(b"half")
    others.write_bytes(b"not ours")
    for seconds, file in enumerate((others, half, *(tmp_path / f"{numbered(n)}.safetensors" for n in (0, 1)))):
        os.utime(file, (seconds, seconds))
    assert PromptCache(tmp_path).get(numbered(0), 3, 8) is not None  # used later than 1, which was made later
    PromptCache(tmp_path, disk_bytes=2 * size).put(numbered(2), torch.zeros(3, 8))
    kept = {f"{numbered(number)}.safetensors" for number in (0, 2)}
    assert {file.name for file in tmp_path.iterdir()} == {*kept, others.name}


def test_a_folder_that_may_only_be_read_still_serves(tmp_path, monkeypatch):
    PromptCache(tmp_path).put(KEY, torch.ones(3, 8))

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "utime", refuse)
    assert PromptCache(tmp_path).get(KEY, 3, 8) is not None


def test_the_least_used_go_when_there_is_no_room_in_memory_and_on_disk(tmp_path):
    size = torch.zeros(3, 8).nbytes
    PromptCache(tmp_path / "measure").put(KEY, torch.zeros(3, 8))
    (file,) = (tmp_path / "measure").iterdir()
    cache = PromptCache(tmp_path / "kept", memory_bytes=2 * size, disk_bytes=2 * file.stat().st_size)
    keys = [numbered(number) for number in range(3)]
    for number, key in enumerate(keys):
        cache.put(key, torch.full((3, 8), float(number)))
        time.sleep(0.01)
    assert len(cache._held) == 2 and len(list((tmp_path / "kept").iterdir())) == 2
    assert cache.get(keys[0], 3, 8) is None
    assert cache.get(keys[2], 3, 8)[0, 0] == 2


def test_a_disk_that_takes_nothing_is_said_once(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    cache = PromptCache(tmp_path / "file" / "folder")
    for number in range(3):
        cache.put(numbered(number), torch.randn(3, 8))
    assert caplog.text.count("not kept on disk") == 1
    assert cache.get(numbered(0), 3, 8) is not None


def test_a_disk_that_is_full_is_said_once_and_nothing_half_written_stays(tmp_path, caplog):
    cache, limits = PromptCache(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # of one file; the system's own refusal, not a fake
    try:
        for number in range(2):
            cache.put(numbered(number), torch.randn(64, 64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caplog.text.count("not kept on disk") == 1 and not list(tmp_path.iterdir())
    assert cache.get(numbered(0), 64, 64) is not None


def test_a_write_that_is_cut_off_leaves_what_was_there(tmp_path, monkeypatch):
    PromptCache(tmp_path).put(KEY, torch.ones(3, 8))

    def cut_off(path, data):
        with path.open("wb") as file:
            file.write(data[:50])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", cut_off)
    with pytest.raises(KeyboardInterrupt):
        PromptCache(tmp_path).put(KEY, torch.zeros(3, 8))
    assert torch.equal(PromptCache(tmp_path).get(KEY, 3, 8), torch.ones(3, 8))
