"""What the text encoder made of a prompt, kept in memory and on disk: the same prompt again loads no encoder.

A key is a hash of the encoder's file, of what it computes in and where, and of the prompt's tokens. Neither names nor
texts are stored, only hashes and tensors. A file that is damaged, or not what its name says, counts as not there.
"""

import contextlib
import hashlib
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import WanError
from ..weights.checkpoint import open_checkpoint

log = logging.getLogger(__name__)

MEMORY_BYTES = 64 * 2**20
DISK_BYTES = 256 * 2**20
EDGE_BYTES = 2**20
"""Of the beginning and of the end of a file, read to tell it from others."""
SCHEME = "1"
"""Raised when the same tokens no longer give the same numbers."""
ENDING = ".safetensors"
OURS = re.compile(r"[0-9a-f]{64}(\.safetensors|\.\d+\.part)")
"""Names of the files that are counted and removed: kept ones, and those that a killed process was writing."""


def file_identity(files: Iterable[Path]) -> str:
    """A hash that changes when one of the files does: sizes, times, and some of the content; not their names."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(EDGE_BYTES))
            opened.seek(max(0, status.st_size - EDGE_BYTES))
            digest.update(opened.read(EDGE_BYTES))
    return digest.hexdigest()


def key_of(encoder: str, dtype: torch.dtype, device: torch.device, ids: list[int]) -> str:
    """The key of a prompt's tokens for one encoder (see :func:`file_identity`), dtype and kind of device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    text = f"{SCHEME} {torch.__version__} {encoder} {dtype} {name} {ids}"
    return hashlib.sha256(text.encode()).hexdigest()


class PromptCache:
    """Rows of text context by key; the least recently used go first."""

    def __init__(self, folder: Path | None = None, memory_bytes: int = MEMORY_BYTES, disk_bytes: int = DISK_BYTES):
        """``folder``: where files are kept, made when it is needed; None: in memory only."""
        self._folder, self._memory_bytes, self._disk_bytes = folder, memory_bytes, disk_bytes
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        self._told = False

    def get(self, key: str, rows: int, width: int) -> Tensor | None:
        """``[rows, width]`` float32 on the CPU, or None where it is not there."""
        found = self._held.get(key)
        if found is None or tuple(found.shape) != (rows, width):
            found = self._read(key, (rows, width))
        if found is None:
            return None
        self._hold(key, found)
        return found.clone()

    def put(self, key: str, rows_Nd: Tensor) -> None:
        """Keep rows; a disk that does not take them is said once and does not matter."""
        rows_Nd = rows_Nd.detach().to("cpu", torch.float32, copy=True).contiguous()
        self._hold(key, rows_Nd)
        if self._folder is None:
            return
        path = self._folder / f"{key}{ENDING}"
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(save({"rows": rows_Nd}))  # the library's own writer hides that a disk is full
            os.replace(part, path)
            self._trim()
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            self._tell(error)

    def _hold(self, key: str, rows: Tensor) -> None:
        self._held[key] = rows
        self._held.move_to_end(key)
        while sum(one.nbytes for one in self._held.values()) > self._memory_bytes and len(self._held) > 1:
            self._held.popitem(last=False)

    def _read(self, key: str, shape: tuple[int, int]) -> Tensor | None:
        """The rows of a file, where it is what it should be; its values are read only when its header says so."""
        path = None if self._folder is None else self._folder / f"{key}{ENDING}"
        try:
            if path is None or not path.is_file():
                return None
            with open_checkpoint(path, mapped=False) as checkpoint:
                info = checkpoint.header.get("rows")
                if info is None or info.dtype is not torch.float32 or info.shape != shape:
                    return None
                rows = checkpoint.get("rows")
        except (WanError, OSError) as error:
            log.info("a kept text encoding cannot be read and is made again (%s)", error)
            return None
        if not rows.sum().isfinite():  # one pass; one number that is not finite makes the sum so
            return None
        with contextlib.suppress(OSError):  # a folder that may only be read still serves
            os.utime(path)
        return rows

    def _trim(self) -> None:
        """Take the files that were not used for longest, until the rest fits. Another process may do the same now."""
        files = []
        for file in self._folder.iterdir():
            with contextlib.suppress(OSError):
                if OURS.fullmatch(file.name) and file.is_file():
                    files.append((file.stat().st_mtime_ns, file.stat().st_size, file))
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files)[:-1]:
            if total <= self._disk_bytes:
                break
            file.unlink(missing_ok=True)
            total -= size

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            log.warning("text encodings are not kept on disk (%s); prompts are encoded again after a restart", error)
