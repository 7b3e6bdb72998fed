"""The strict header pass over a safetensors file, before any library maps it.

Everything a file declares is checked against the bytes that are there, with Python integers, so that a damaged,
cut or hostile file is refused in one sentence. Format: huggingface/safetensors, README.md.
"""

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelFileError, gigabytes

MAX_HEADER_BYTES = 8_000_000
"""Twice what :data:`MAX_TENSORS` with long names take."""
MAX_JSON_MARKS = 160_000
"""Of each bracket and of colons: a table of :data:`MAX_TENSORS` has 80,000, and each becomes an object."""
MAX_TENSORS = 20_000
MAX_DIMS = 8
MAX_KEY_CHARS = 512
MAX_EMPTY_ELEMENTS = 2**40

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}
UNSUPPORTED_DTYPES: dict[str, str] = {
    "F8_E8M0": "mxfp8 block scales",
    "F4": "packed 4-bit floats (nvfp4 or mxfp4)",
    "F6_E2M3": "6-bit floats",
    "F6_E3M2": "6-bit floats",
    "C64": "complex numbers",
    "F8_E4M3FNUZ": "fp8 of another kind of GPU (fnuz)",
    "F8_E5M2FNUZ": "fp8 of another kind of GPU (fnuz)",
}

DOWNLOAD_AGAIN = "Download it again and compare its size with the one the download page gives."
_PICKLE = "Give it the ending .pth, or convert it with: python -m wan_core.weights.convert IN.pth OUT.safetensors"
_PAGE = "a web page, not a model (often a login or licence page). Download the file itself."
# (first bytes, what such a file is and what to do)
MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the model itself. Run 'git lfs pull', or download the file."),
    (b"<!doctype", _PAGE),
    (b"<html", _PAGE),
    (b"<?xml", "an XML text (often a storage server's error), not a model. Download the file itself."),
    (b"gguf", "a GGUF file; GGUF is not supported yet. Use the fp8_scaled or fp16 safetensors file of the model."),
    (b"pk\x03\x04", f"a zip archive, probably a PyTorch .pth file under another name. {_PICKLE}"),
    (b"\x80", f"a Python pickle, probably a PyTorch .pth file under another name. {_PICKLE}"),
    (b"\x1f\x8b", "a gzip archive. Unpack it first."),
    (b"7z\xbc\xaf", "a 7-zip archive. Unpack it first."),
    (b"rar!", "a RAR archive. Unpack it first."),
    (b"\x89png", "a PNG image, not a model. Choose a model file."),
    (b"{", "a JSON text. Of a sharded model choose the .safetensors.index.json or one of its parts."),
)


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """What a header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """All tensors and the free text entries of one file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    begins: dict[str, int]
    """Byte of the file at which each tensor begins."""


def read_header(path: Path) -> Header:
    """Read and check the header of one safetensors file.

    Raises:
        ModelFileError: the file is no safetensors file, is cut or has bytes too many, or declares anything that
            does not hold. The message names the file, the reason and what to do.
    """
    size = regular_file_size(path)
    with path.open("rb") as file:
        head = file.read(512)
        length = int.from_bytes(head[:8], "little")
        _check_frame(path, size, head, length)
        file.seek(8)
        raw = file.read(length)
    if len(raw) != length:
        raise ModelFileError(f"{path.name} became shorter while it was read. {DOWNLOAD_AGAIN}")
    entries = parse_json_object(raw, path.name)
    metadata = _metadata(entries.pop("__metadata__", {}), path.name)
    if not entries:
        raise ModelFileError(f"{path.name} holds no tensors. {DOWNLOAD_AGAIN}")
    if len(entries) > MAX_TENSORS:
        raise ModelFileError(
            f"{path.name} declares {len(entries)} tensors; at most {MAX_TENSORS} are accepted. No Wan file has so many."
        )
    spans = {name: _entry(name, entry, path.name) for name, entry in entries.items()}
    _check_cover(path.name, {name: span for name, (span, _) in spans.items()}, size - 8 - length)
    begins = {name: 8 + length + begin for name, ((begin, _), _) in spans.items()}
    return Header(tensors={name: info for name, (_, info) in spans.items()}, metadata=metadata, begins=begins)


def regular_file_size(path: Path) -> int:
    """Size in bytes of a file that exists, is a plain file and is not empty."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise ModelFileError(f"{path.name} cannot be opened: {error.strerror}. Check the path {path}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{path.name} is not a file (a folder or a device). Choose a model file.")
    if status.st_size == 0:
        raise ModelFileError(f"{path.name} is empty (0 bytes). {DOWNLOAD_AGAIN}")
    return status.st_size


def recognise(head: bytes) -> str | None:
    """What the first bytes of a file that is no safetensors file say it is."""
    start = head.lstrip().lower()
    return next((text for magic, text in MAGIC if head.lower().startswith(magic) or start.startswith(magic)), None)


def check_key(name: str, file_name: str) -> None:
    """Names from files are only ever looked up, and odd ones are not even that."""
    inner = name.removeprefix("lora_unet__")  # the LoRA naming of Wan Fun
    if not name or len(name) > MAX_KEY_CHARS or not name.isprintable() or "__" in inner:
        raise ModelFileError(
            f"{file_name} holds a tensor with a name that is not accepted ({name[:60]!r}; names have 1 to "
            f"{MAX_KEY_CHARS} printable characters and no '__'). {DOWNLOAD_AGAIN}"
        )


def parse_json_object(raw: bytes, file_name: str) -> dict[str, Any]:
    """JSON text -> dict; refuses duplicate keys, negative or non-finite numbers, and nesting too deep."""
    if max(raw.count(mark) for mark in (b"[", b"{", b":")) > MAX_JSON_MARKS:
        raise ModelFileError(f"{file_name}: its JSON header has more entries than any model's. {DOWNLOAD_AGAIN}")
    try:
        found = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_int=_natural, parse_constant=_no_constant
        )
    except RecursionError:
        raise ModelFileError(f"{file_name}: its JSON header is nested too deep. {DOWNLOAD_AGAIN}") from None
    except ValueError as error:  # includes JSONDecodeError and UnicodeDecodeError
        reason = str(error)[:120]
        raise ModelFileError(
            f"{file_name}: its JSON header is damaged or not JSON ({reason}). {DOWNLOAD_AGAIN}"
        ) from error
    if not isinstance(found, dict):
        raise ModelFileError(f"{file_name}: its JSON header is not an object. {DOWNLOAD_AGAIN}")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"duplicate key {twice[:60]!r}")
    return found


def _natural(text: str) -> int:
    if text.startswith("-") or len(text) > 20:
        raise ValueError(f"number {text[:24]} out of range")
    return int(text)


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number here")


def _check_frame(path: Path, size: int, head: bytes, length: int) -> None:
    """Length field and first character; says what the file is where it is something else."""
    if head[8:9] != b"{" or length > MAX_HEADER_BYTES:
        kind = recognise(head)
        if kind is not None:
            raise ModelFileError(f"{path.name} is {kind}")
    if size < 10:
        raise ModelFileError(f"{path.name} has only {size} bytes, too few for a model. {DOWNLOAD_AGAIN}")
    if head[8:9] != b"{":
        raise ModelFileError(
            f"{path.name} is not a safetensors file (it does not begin with a safetensors header). {DOWNLOAD_AGAIN}"
        )
    if length > MAX_HEADER_BYTES:
        raise ModelFileError(
            f"{path.name} is not a safetensors file, or a damaged one: it declares a header of {length} bytes "
            f"(at most {MAX_HEADER_BYTES} are accepted). {DOWNLOAD_AGAIN}"
        )
    if 8 + length > size:
        raise ModelFileError(
            f"{path.name} is cut: its header should have {length} bytes, {size - 8} are there. {DOWNLOAD_AGAIN}"
        )


def _metadata(found: Any, file_name: str) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ModelFileError(f"{file_name}: its metadata is not a table of texts. {DOWNLOAD_AGAIN}")
    try:
        for text in (*found, *found.values()):
            text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ModelFileError(f"{file_name}: its metadata holds text that is not Unicode. {DOWNLOAD_AGAIN}") from error
    return found


def _entry(name: str, entry: Any, file_name: str) -> tuple[tuple[int, int], TensorInfo]:
    """One header entry -> its byte range and :class:`TensorInfo`."""
    check_key(name, file_name)
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(f"{file_name}: the entry of {name!r} is not a tensor description. {DOWNLOAD_AGAIN}")
    dtype = _dtype(entry["dtype"], name, file_name)
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _integers(shape) or not _integers(offsets) or len(offsets) != 2:
        raise ModelFileError(f"{file_name}: shape or range of {name!r} is not a list of whole numbers.")
    if len(shape) > MAX_DIMS:
        raise ModelFileError(f"{file_name}: {name!r} has {len(shape)} dimensions; at most {MAX_DIMS} are accepted.")
    if math.prod(max(side, 1) for side in shape) > (MAX_EMPTY_ELEMENTS if 0 in shape else 2**62):
        raise ModelFileError(f"{file_name}: the shape {shape} of {name!r} is too large to be true. {DOWNLOAD_AGAIN}")
    nbytes = math.prod(shape) * dtype.itemsize
    begin, end = offsets
    if end - begin != nbytes:
        raise ModelFileError(
            f"{file_name}: {name!r} of shape {shape} and type {entry['dtype']} needs {nbytes} bytes but has the range "
            f"{begin} to {end}. {DOWNLOAD_AGAIN}"
        )
    return (begin, end), TensorInfo(dtype=dtype, shape=tuple(shape), nbytes=nbytes)


def _integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _dtype(code: Any, name: str, file_name: str) -> torch.dtype:
    if isinstance(code, str) and code in DTYPES:
        return DTYPES[code]
    if isinstance(code, str) and code in UNSUPPORTED_DTYPES:
        raise ModelFileError(
            f"{file_name} stores {UNSUPPORTED_DTYPES[code]} ({code}, in {name!r}); this quantisation is not supported "
            "yet. Use the fp8_scaled or fp16 file of the model."
        )
    raise ModelFileError(f"{file_name}: {name!r} has the unknown type {str(code)[:40]!r}. {DOWNLOAD_AGAIN}")


def _check_cover(file_name: str, spans: Mapping[str, tuple[int, int]], present: int) -> None:
    """The ranges, sorted, must follow one another without hole or overlap and cover the data exactly."""
    declared = max(end for _, end in spans.values())
    if declared > present:
        raise ModelFileError(
            f"{file_name} is cut: its tensors need {declared} bytes ({gigabytes(declared)}), {present} are there "
            f"({gigabytes(present)}). {DOWNLOAD_AGAIN}"
        )
    position = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != position:
            what = "overlaps the tensor" if begin < position else "leaves a hole"
            raise ModelFileError(
                f"{file_name}: {name!r} at byte {begin} {what} before it (expected {position}). {DOWNLOAD_AGAIN}"
            )
        position = end
    if position != present:
        raise ModelFileError(
            f"{file_name} has {present - position} trailing bytes after its last tensor. {DOWNLOAD_AGAIN}"
        )
