"""One way to open a model file: header first, tensors when asked for.

Safetensors are mapped, so a tensor that is used as it is stored costs no private memory. Every kind of file passes
its own strict check before a library sees it.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import ModelFileError, first_few
from .header import DOWNLOAD_AGAIN, Header, TensorInfo, parse_json_object, read_header, regular_file_size
from .pickle_file import CONVERT, read_pickle

log = logging.getLogger(__name__)

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
INDEX_SUFFIX = ".safetensors.index.json"
MAX_INDEX_BYTES = 8_000_000
MAX_SHARDS = 1000
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*\.safetensors")
_SHARD = re.compile(r".*-(\d{5})-of-(\d{5})\.safetensors")


class Checkpoint:
    """An open model file. ``header`` is checked and complete; ``get`` reads one tensor, on the CPU."""

    def __init__(
        self,
        path: Path,
        header: Mapping[str, TensorInfo],
        metadata: dict[str, str],
        get: Callable[[str], Tensor],
        close: Callable[[], None],
        files: tuple[Path, ...] | None = None,
    ):
        self.path = path
        self.files = files or (path,)
        self.header = header
        self.metadata = metadata
        self._get = get
        self._close = close

    def get(self, name: str) -> Tensor:
        """The tensor ``name`` of :attr:`header`, on the CPU, as stored."""
        if name not in self.header:
            raise KeyError(name)
        tensor = self._get(name)
        info = self.header[name]
        if tensor.dtype is not info.dtype or tuple(tensor.shape) != info.shape:
            raise ModelFileError(f"{self.path.name} changed after it was opened ({name!r} differs). Load it again.")
        return tensor

    def close(self) -> None:
        """Let go of the file; tensors already handed out stay valid."""
        self._close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def open_checkpoint(path: str | Path, mapped: bool = True) -> Checkpoint:
    """Open a ``.safetensors`` file, a sharded set or an official ``.pth``.

    Args:
        path: a file; the ``.safetensors.index.json`` or any part of a sharded set; or a folder that holds one
            index or exactly one ``.safetensors``.
        mapped: tensors are pages of the file, which cost no private memory; False: they are read into private memory.

    Raises:
        ModelFileError: the file is missing, damaged or of another kind; the message says which and what to do.
    """
    path = Path(path)
    if path.is_dir():
        path = _choose_in_folder(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _open_sharded(path, mapped)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return _open_pickle(path)
    if _SHARD.fullmatch(path.name):
        return _open_sharded(_index_of(path), mapped)
    return _open_single(path, mapped)


class _Mapped:
    """One safetensors file, mapped at the first read."""

    def __init__(self, path: Path):
        self.path = path
        self._size = path.stat().st_size
        self._file = None

    def read(self, name: str) -> Tensor:
        """One tensor; a file that changed size is not touched, for reading past its end would end the process."""
        try:
            if self.path.stat().st_size != self._size:
                raise ModelFileError(f"{self.path.name} changed its size after it was opened. Load it again.")
            if self._file is None:
                self._file = safe_open(self.path, framework="pt", device="cpu")
            return self._file.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ModelFileError(f"{self.path.name}: {name!r} cannot be read ({error}). {DOWNLOAD_AGAIN}") from error

    def close(self) -> None:
        self._file = None


class _Read:
    """One safetensors file that is read instead of mapped: for drives on which mapped pages come slowly or break."""

    def __init__(self, path: Path, header: Header):
        self.path, self._header = path, header

    def read(self, name: str) -> Tensor:
        """One tensor, in private memory."""
        info = self._header.tensors[name]
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self._header.begins[name])
                view, done = memoryview(raw.numpy()), 0
                while done < info.nbytes and (got := file.readinto(view[done:])):
                    done += got
        except OSError as error:
            raise ModelFileError(f"{self.path.name}: {name!r} cannot be read ({error}). {DOWNLOAD_AGAIN}") from error
        if done != info.nbytes:
            raise ModelFileError(f"{self.path.name} changed its size after it was opened. Load it again.")
        return raw.view(info.dtype).view(info.shape)

    def close(self) -> None:
        pass


def _file(path: Path, header: Header, mapped: bool) -> "_Mapped | _Read":
    return _Mapped(path) if mapped else _Read(path, header)


def _open_single(path: Path, mapped: bool) -> Checkpoint:
    header = read_header(path)
    file = _file(path, header, mapped)
    return Checkpoint(path, header.tensors, header.metadata, file.read, file.close)


def _open_pickle(path: Path) -> Checkpoint:
    log.warning("%s is a pickle file: it is read whole into memory. Convert it once: %s", path.name, CONVERT)
    tensors = read_pickle(path)
    header = {
        name: TensorInfo(dtype=t.dtype, shape=tuple(t.shape), nbytes=t.numel() * t.element_size())
        for name, t in tensors.items()
    }
    return Checkpoint(path, header, {}, tensors.__getitem__, tensors.clear)


def _choose_in_folder(folder: Path) -> Path:
    """The one model of a folder."""
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    indexes = [file for file in files if file.name.endswith(INDEX_SUFFIX)]
    singles = [file for file in files if file.suffix == ".safetensors"]
    for found in (indexes, singles):
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise ModelFileError(
                f"{folder.name} holds several models ({first_few(file.name for file in found)}). Choose one of them."
            )
    raise ModelFileError(
        f"{folder.name} holds no safetensors file. A folder of split .bin or .pth parts has to be converted first."
    )


def _index_of(part: Path) -> Path:
    """The index file that lists ``part`` of a sharded set."""
    regular_file_size(part)
    for index in sorted(part.parent.glob(f"*{INDEX_SUFFIX}")):
        if part.name in _weight_map(index).values():
            return index
    number, total = _SHARD.fullmatch(part.name).groups()
    raise ModelFileError(
        f"{part.name} is part {int(number)} of {int(total)} of a model, and the index file ({INDEX_SUFFIX[1:]}) that "
        "belongs to it is not beside it. Download the index and all parts into one folder."
    )


def _weight_map(index: Path) -> dict[str, str]:
    """tensor name -> part, checked: plain file names only."""
    if regular_file_size(index) > MAX_INDEX_BYTES:
        raise ModelFileError(f"{index.name} is too large for an index of parts. {DOWNLOAD_AGAIN}")
    found = parse_json_object(index.read_bytes(), index.name).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(part, str) for part in found.values()):
        raise ModelFileError(f"{index.name} lists no parts ('weight_map' is missing or empty). {DOWNLOAD_AGAIN}")
    odd = next((part for part in found.values() if len(part) > 255 or not _PLAIN_NAME.fullmatch(part)), None)
    if odd is not None:
        raise ModelFileError(
            f"{index.name} names the part {odd[:80]!r}; parts are plain .safetensors names in the same folder."
        )
    return found


def _open_sharded(index: Path, mapped: bool) -> Checkpoint:
    weight_map = _weight_map(index)
    parts = sorted(set(weight_map.values()))
    if len(parts) > MAX_SHARDS:
        raise ModelFileError(f"{index.name} lists {len(parts)} parts; at most {MAX_SHARDS} are accepted.")
    absent = [part for part in parts if not (index.parent / part).is_file()]
    if absent:
        raise ModelFileError(
            f"{index.name}: {len(absent)} of {len(parts)} parts are not beside it ({first_few(absent)}). Download them."
        )
    headers = {part: read_header(index.parent / part) for part in parts}
    tensors, metadata = _merge(index.name, weight_map, headers)
    files = {part: _file(index.parent / part, headers[part], mapped) for part in parts}

    def get(name: str) -> Tensor:
        return files[weight_map[name]].read(name)

    def close() -> None:
        for file in files.values():
            file.close()

    return Checkpoint(index, tensors, metadata, get, close, tuple(index.parent / part for part in parts))


def _merge(
    name: str, weight_map: dict[str, str], headers: dict[str, Header]
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """All tensors of all parts; index and parts must agree on every one of them."""
    absent = [key for key, part in weight_map.items() if key not in headers[part].tensors]
    if absent:
        raise ModelFileError(f"{name}: {len(absent)} tensors are not in their parts ({first_few(absent)}).")
    extra = [key for part, header in headers.items() for key in header.tensors if weight_map.get(key) != part]
    if extra:
        raise ModelFileError(f"{name}: its parts hold {len(extra)} tensors that it does not list ({first_few(extra)}).")
    tensors = {key: info for header in headers.values() for key, info in header.tensors.items()}
    metadata = {key: text for header in reversed(headers.values()) for key, text in header.metadata.items()}
    return tensors, metadata
