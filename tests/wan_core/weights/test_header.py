"""The strict header pass: every damaged or hostile file is refused quickly and by name; good ones pass unchanged."""

import json
import os
import random
import time

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from wan_core.errors import ModelFileError
from wan_core.weights.header import check_key, read_header

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def packed(header, data: bytes = b"\0" * 8) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def with_entry(**changes) -> bytes:
    return packed({"a": {**F32, **changes}})


def two(first: list[int], second: list[int], size: int) -> bytes:
    entries = {"a": {**F32, "data_offsets": first}, "b": {**F32, "data_offsets": second}}
    return packed(entries, b"\0" * size)


GOOD = save({"x.weight": torch.arange(6.0).view(2, 3), "y": torch.ones(4, dtype=torch.bfloat16)}, {"format": "pt"})

BAD = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"1234567", "too few"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "Git LFS pointer"),
    "html page": (b"<!DOCTYPE html><html><body>log in</body></html>", "web page"),
    "html page after blanks": (b"\n\n <html><head></head></html>            ", "web page"),
    "storage error": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "XML"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 64, "GGUF is not supported yet"),
    "zip": (b"PK\x03\x04" + b"\0" * 64, "wan_core.weights.convert"),
    "pickle": (b"\x80\x02ccollections\nOrderedDict\n" + b"\0" * 30, "pickle"),
    "gzip": (b"\x1f\x8b\x08" + b"\0" * 64, "gzip"),
    "png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "PNG"),
    "json text": (b'{"weight_map": {"a": "b"}}', "JSON text"),
    "noise": (bytes(range(1, 200)), "not a safetensors file"),
    "header of 2^63 bytes": (
        (2**63).to_bytes(8, "little") + b"{}" + b"\0" * 20,
        "declares a header of 9223372036854775808",
    ),
    "header over 8 MB": ((8_000_001).to_bytes(8, "little") + b"{}", "at most 8000000"),
    "a million lists": (packed(b'{"a":[' + b"[]," * 10**6 + b"[]]}"), "more entries than any model"),
    "600000 entries": (packed(b"{" + b",".join(b'"%x":0' % i for i in range(600_000)) + b"}"), "more entries than"),
    "header cut": (GOOD[:60], "is cut: its header"),
    "download cut": (GOOD[:-5], "is cut: its tensors need 32 bytes (0.0 GB), 27 are there"),
    "trailing bytes": (GOOD + b"xyz", "3 trailing bytes"),
    "not json": (packed(b"{nothing}" + b" " * 8), "not JSON"),
    "not utf-8": (packed(b'{"\xff\xfe": 1}' + b" " * 8), "not JSON"),
    "no object behind the brace": (packed(b"{" + b" " * 20), "not JSON"),
    "duplicate tensor": (
        packed(b'{"a":' + json.dumps(F32).encode() + b',"a":' + json.dumps(F32).encode() + b"}"),
        "duplicate key 'a'",
    ),
    "duplicate field": (
        packed(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
        "duplicate key 'dtype'",
    ),
    "nested 150000 deep": (packed(b'{"a":' + b"[" * 150_000 + b"]" * 150_000 + b"}"), "nested too deep"),
    "no tensors": (packed({"__metadata__": {"a": "b"}}, b""), "holds no tensors"),
    "metadata of numbers": (packed({"__metadata__": {"a": 1}, "a": F32}), "table of texts"),
    "metadata half a surrogate": (
        packed(b'{"__metadata__":{"a":"\\ud800"},"a":' + json.dumps(F32).encode() + b"}"),
        "not Unicode",
    ),
    "unknown type": (with_entry(dtype="F33"), "unknown type 'F33'"),
    "type is a number": (with_entry(dtype=4), "unknown type '4'"),
    "4-bit floats": (with_entry(dtype="F4"), "nvfp4"),
    "mx block scales": (with_entry(dtype="F8_E8M0"), "mxfp8"),
    "shape of floats": (with_entry(shape=[2.0]), "whole numbers"),
    "shape of booleans": (with_entry(shape=[True, 2]), "whole numbers"),
    "negative side": (with_entry(shape=[-2]), "out of range"),
    "shape that overflows": (with_entry(shape=[2**40, 2**40]), "too large to be true"),
    "shape that overflows behind a zero": (
        with_entry(shape=[2**40, 2**40, 0], data_offsets=[0, 0]),
        "too large to be true",
    ),
    "nine dimensions": (with_entry(shape=[1] * 8 + [2]), "9 dimensions"),
    "shape and range differ": (with_entry(shape=[3]), "needs 12 bytes but has the range 0 to 8"),
    "range backwards": (with_entry(data_offsets=[8, 0]), "range 8 to 0"),
    "range of three": (with_entry(data_offsets=[0, 8, 8]), "whole numbers"),
    "NaN offset": (packed(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[NaN,8]}}'), "no number"),
    "number of 5000 digits": (
        packed(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}'),
        "out of range",
    ),
    "entry is a list": (packed({"a": [1]}), "not a tensor description"),
    "entry lacks its shape": (packed({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), "not a tensor description"),
    "entry has a field more": (with_entry(code="os.system"), "not a tensor description"),
    "overlap": (two([0, 8], [4, 12], 12), "overlaps"),
    "same bytes twice": (two([0, 8], [0, 8], 8), "overlaps"),
    "hole": (two([0, 8], [12, 20], 20), "leaves a hole"),
    "hole at the front": (with_entry(data_offsets=[4, 12])[:-8] + b"\0" * 12, "leaves a hole"),
    "20001 tensors": (
        packed({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_001)}, b""),
        "20001 tensors",
    ),
    "key of 513 characters": (packed({"k" * 513: F32}), "name that is not accepted"),
    "key with a control character": (packed({"a\u0007b": F32}), "name that is not accepted"),
    "key that walks attributes": (packed({"time_embed.__class__.__base__": F32}), "name that is not accepted"),
    "empty key": (packed({"": F32}), "name that is not accepted"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name_within_half_a_second(name, tmp_path):
    content, words = BAD[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    seconds = []
    for _ in range(3):  # the fastest counts: a garbage collection of the whole test run may fall into one of them
        begin = time.process_time()
        with pytest.raises(ModelFileError) as caught:
            read_header(path)
        seconds.append(time.process_time() - begin)
    assert words in str(caught.value)
    assert "model.safetensors" in str(caught.value)
    assert min(seconds) < 0.5


def test_missing_files_folders_and_devices_are_refused(tmp_path):
    for path, words in ((tmp_path / "none.safetensors", "cannot be opened"), (tmp_path, "is not a file")):
        with pytest.raises(ModelFileError, match=words):
            read_header(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        with pytest.raises(ModelFileError, match="is not a file"):
            read_header(tmp_path / "pipe.safetensors")


def test_a_good_file_is_read_exactly(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(GOOD)
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    assert {name: (info.dtype, info.shape, info.nbytes) for name, info in header.tensors.items()} == {
        "x.weight": (torch.float32, (2, 3), 24),
        "y": (torch.bfloat16, (4,), 8),
    }


def test_the_marker_tensor_without_elements_is_accepted(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn), "x": torch.ones(2)}))
    assert read_header(path).tensors["scaled_fp8"].nbytes == 0


def test_a_lora_with_double_underscores_passes_so_that_it_can_be_called_a_lora():
    check_key("lora_unet__blocks_0_self_attn_q.lora_up.weight", "file")


def mutated(rng: random.Random) -> bytes:
    """A small file changed in one to three places, most of them in the header."""
    raw = bytearray(GOOD)
    header_end = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(6)
        at = rng.randrange(header_end) if kind else rng.randrange(8, len(raw))
        if kind == 1:
            raw[at] = rng.randrange(256)
        elif kind == 2:
            del raw[at : at + rng.randint(1, 4)]
        elif kind == 3:
            raw[at:at] = rng.choice([b"0", b"1", b"-", b"e1", b".0", b" ", b'"a":1,', b"[", b"}"])
        elif kind == 4:
            raw[:8] = (int.from_bytes(raw[:8], "little") + rng.randint(-9, 9)).to_bytes(8, "little", signed=True)
        elif kind == 5:
            digits = [i for i in range(8, min(header_end, len(raw))) if 48 <= raw[i] < 58]
            if digits:
                raw[rng.choice(digits)] = rng.randrange(48, 58)
        else:
            raw[at] ^= 1 << rng.randrange(8)
    return bytes(raw)


def rust_accepts(path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                file.get_tensor(name)
    except (SafetensorError, OSError):
        return False
    return True


def test_nothing_is_accepted_that_the_reference_reader_refuses(tmp_path):
    rng = random.Random(20)
    path = tmp_path / "model.safetensors"
    accepted = refused = 0
    for _ in range(600):
        path.write_bytes(mutated(rng))
        try:
            header = read_header(path)
        except ModelFileError:
            refused += 1
            continue
        accepted += 1
        assert rust_accepts(path), path.read_bytes()
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == set(header.tensors)
    assert accepted > 10 and refused > 300


def test_the_same_verdict_on_hand_made_files_where_the_reference_reader_refuses(tmp_path):
    path = tmp_path / "model.safetensors"
    for number in ("-0", "8e0", "8.0", "0x8", "+8", "08", "1_0", "8 "):
        path.write_bytes(packed(f'{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,{number}]}}}}'.encode()))
        try:
            read_header(path)
        except ModelFileError:
            continue
        assert rust_accepts(path), number
