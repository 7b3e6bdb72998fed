"""Kept text encodings: the same bits again, nothing wrong from a damaged file, and no more than fits."""

import os
import stat
import time

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


def test_the_least_used_go_when_there_is_no_room_in_memory_and_on_disk(tmp_path):
    size = torch.zeros(3, 8).nbytes
    PromptCache(tmp_path / "measure").put(KEY, torch.zeros(3, 8))
    (file,) = (tmp_path / "measure").iterdir()
    cache = PromptCache(tmp_path / "kept", memory_bytes=2 * size, disk_bytes=2 * file.stat().st_size)
    keys = [key_of("encoder", torch.float32, CPU, [number]) for number in range(3)]
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
        cache.put(key_of("encoder", torch.float32, CPU, [number]), torch.randn(3, 8))
    assert caplog.text.count("not kept on disk") == 1
    assert cache.get(key_of("encoder", torch.float32, CPU, [0]), 3, 8) is not None


def test_no_half_written_file_stays(tmp_path, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("wan_core.runtime.prompt_cache.save_file", full)
    PromptCache(tmp_path).put(KEY, torch.randn(3, 8))
    assert not list(tmp_path.iterdir())


def test_a_prompt_of_the_real_width_come_back_in_ten_milliseconds(tmp_path):
    PromptCache(tmp_path).put(KEY, torch.randn(120, 4096))
    cache, times = PromptCache(tmp_path), []
    for fresh in (True, False, False):
        began = time.perf_counter()
        assert cache.get(KEY, 120, 4096) is not None
        times.append((fresh, time.perf_counter() - began))
    assert min(seconds for fresh, seconds in times if not fresh) <= 0.010, times
    assert stat.S_ISREG(next(tmp_path.iterdir()).stat().st_mode)
