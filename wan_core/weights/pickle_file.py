"""Official ``.pth`` files, read so that no code in them can run.

Only ``torch.load(weights_only=True)``, never a second try without it; the archive is checked before and every value
after, because the restricted unpickler still returns tensors that lie about their memory.
"""

import pickletools
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ModelFileError
from .header import DOWNLOAD_AGAIN, DTYPES, check_key, recognise, regular_file_size

MIN_TORCH = (2, 10)
MAX_PICKLE_BYTES = 4_000_000
MAX_OPCODES = 200_000
"""A tensor takes about 35."""
MAX_DIRECTORY_BYTES = 2_000_000
"""A tensor takes about 100."""
MAX_TENSORS = 20_000
MAX_DIMS = 5
WRAPPERS = ("state_dict", "module")
ZIP_ERRORS = (zipfile.BadZipFile, struct.error, OSError, ValueError, NotImplementedError, EOFError)
ALLOWED_DTYPES = frozenset(DTYPES.values())
# All that the table of contents of a file of weights may name (``torch.save`` of a state dict); dtypes come on top.
# PyTorch's own list is longer, and some of it takes memory at a word (``bytearray``) or makes tensors that lie.
ALLOWED_NAMES = frozenset({
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter", "torch._utils _rebuild_meta_tensor_no_storage",
    "torch.storage UntypedStorage", "torch.storage TypedStorage", "torch Size", "torch device",
    *(f"torch {name}Storage" for name in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte",
                                          "Bool", "ComplexFloat")),
    *(str(dtype).replace(".", " ") for dtype in (*ALLOWED_DTYPES, torch.complex64)),
})  # fmt: skip
OTHER_FILE = "Download it again from its official page, or use the safetensors file of the model."
CONVERT = "python -m wan_core.weights.convert IN.pth OUT.safetensors"


def read_pickle(path: Path) -> dict[str, Tensor]:
    """All tensors of a ``.pth`` file, on the CPU, after every check.

    Raises:
        ModelFileError: PyTorch is too old to read such files safely, the archive is damaged or compressed, or it
            holds anything but a flat table of plain tensors.
    """
    _check_torch(path.name)
    size = regular_file_size(path)
    _check_archive(path, size)
    _check_contents(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except MemoryError as error:
        raise ModelFileError(f"{path.name}: there is not enough memory to read it. Convert it: {CONVERT}") from error
    except Exception as error:
        # The restricted unpickler fails in many ways on damaged or hostile files; all mean the same to a user.
        reason = " ".join(str(error).split())[:160]
        raise ModelFileError(
            f"{path.name} was refused: it holds more than plain tensors, or is damaged "
            f"({type(error).__name__}: {reason}). "
            "Download it again from its official page, or use the safetensors file of the model."
        ) from error
    return _checked_tensors(loaded, path.name, size)


def _check_torch(file_name: str) -> None:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < MIN_TORCH:
        raise ModelFileError(
            f"{file_name}: .pth files are read with PyTorch {MIN_TORCH[0]}.{MIN_TORCH[1]} or newer only (older ones "
            f"can be made to run code by such a file); this is {torch.__version__}. Convert the file on a machine "
            f"with a newer PyTorch ({CONVERT}), or use the safetensors file of the model."
        )


def _check_archive(path: Path, size: int) -> None:
    """A zip of stored entries that together are no larger than the file."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head.startswith(b"PK\x03\x04"):
        if head.startswith(b"\x80"):
            raise ModelFileError(
                f"{path.name} is in PyTorch's old format (before 1.6), which is not accepted. Save it again with a "
                "current PyTorch, or use the safetensors file of the model."
            )
        kind = "a safetensors file; give it the ending .safetensors." if head[8:9] == b"{" else recognise(head)
        raise ModelFileError(f"{path.name} is {kind or 'not a PyTorch file (no zip archive). Download it again.'}")
    if max(_directory_sizes(path, size), default=0) > MAX_DIRECTORY_BYTES:
        raise ModelFileError(f"{path.name} is damaged: its zip directory is longer than any model's.")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except ZIP_ERRORS as error:
        raise ModelFileError(f"{path.name} is cut or damaged (its zip directory cannot be read: {error}).") from error
    names = [entry.filename for entry in entries]
    if any(name.endswith("constants.pkl") for name in names):
        raise ModelFileError(f"{path.name} is a TorchScript program, not a table of weights. Use the original file.")
    packed = next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise ModelFileError(f"{path.name} is compressed ({packed.filename!r}); PyTorch never writes such files.")
    if len(set(names)) != len(names) or sum(entry.file_size for entry in entries) > size:
        raise ModelFileError(f"{path.name} is damaged: its zip directory declares more than the file holds.")
    contents = [entry.file_size for entry in entries if entry.filename.endswith("data.pkl")]
    if not contents:
        raise ModelFileError(f"{path.name} is a zip archive without weights (no data.pkl). Unpack it first.")
    if len(contents) > 1 or contents[0] > MAX_PICKLE_BYTES:
        raise ModelFileError(
            f"{path.name} is damaged: it has several tables of contents, or one larger than any model's."
        )


def _directory_sizes(path: Path, size: int) -> Iterator[int]:
    """What a zip says of the length of its directory, in both forms of its end record, before the directory is read."""
    with path.open("rb") as file:
        file.seek(max(0, size - 2**16 - 200))
        tail = file.read()
    for signature, offset, form in ((b"PK\x05\x06", 12, "<L"), (b"PK\x06\x06", 40, "<Q")):
        at = tail.find(signature)
        while at >= 0:
            field = tail[at + offset : at + offset + struct.calcsize(form)]
            if len(field) == struct.calcsize(form) and (value := struct.unpack(form, field)[0]) != 2**32 - 1:
                yield value
            at = tail.find(signature, at + 1)


def _check_contents(path: Path) -> None:
    """Walk the table of contents without running it: only names that plain tensors need, and not without end."""
    try:
        with zipfile.ZipFile(path) as archive:
            raw = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        for count, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
            if count >= MAX_OPCODES:
                raise ModelFileError(f"{path.name} is damaged: its table of contents is longer than any model's.")
            named = argument if opcode.name in ("GLOBAL", "INST") else opcode.name
            if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4") and named not in ALLOWED_NAMES:
                raise ModelFileError(
                    f"{path.name} was refused: it holds more than plain tensors (it names {str(named)[:60]!r}). "
                    "Download it again from its official page, or use the safetensors file of the model."
                )
    except ModelFileError:
        raise
    except (*ZIP_ERRORS, RuntimeError, IndexError, KeyError, OverflowError) as error:
        raise ModelFileError(f"{path.name} is damaged (its table of contents: {error}). {DOWNLOAD_AGAIN}") from error


def _checked_tensors(loaded: object, file_name: str, size: int) -> dict[str, Tensor]:
    """A flat ``dict[str, Tensor]`` of plain tensors, or an error; one wrapping level is taken off."""
    if isinstance(loaded, dict):
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), dict)), None)
        loaded = loaded if inner is None else inner
    if not isinstance(loaded, dict):
        raise ModelFileError(f"{file_name} holds a {type(loaded).__name__}, not a table of tensors. {OTHER_FILE}")
    if not 0 < len(loaded) <= MAX_TENSORS:
        raise ModelFileError(f"{file_name} holds {len(loaded)} entries; a model has 1 to {MAX_TENSORS}.")
    tensors: dict[str, Tensor] = {}
    for name, value in loaded.items():
        if type(name) is not str:
            raise ModelFileError(f"{file_name} holds an entry whose name is a {type(name).__name__}, not a text.")
        check_key(name, file_name)
        problem = _problem(value)
        if problem is not None:
            raise ModelFileError(
                f"{file_name} was refused: {name!r} is {problem}; only plain tensors are accepted. {OTHER_FILE}"
            )
        tensors[name] = value.data
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > 2 * size:
        raise ModelFileError(f"{file_name} was refused: its tensors claim more memory than the file has bytes.")
    return tensors


def _problem(value: object) -> str | None:
    """Why a value is not a plain dense tensor backed by its own memory, or None."""
    if type(value) not in (Tensor, nn.Parameter):
        return f"a {type(value).__name__}"
    tensor: Tensor = value.data
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        return "a sparse, quantised or nested tensor"
    if tensor.device.type != "cpu":
        return f"a tensor without data (on {tensor.device.type})"
    if tensor.dtype not in ALLOWED_DTYPES:
        return f"a tensor of type {tensor.dtype}"
    if tensor.dim() > MAX_DIMS:
        return f"a tensor of {tensor.dim()} dimensions (at most {MAX_DIMS})"
    if any(side > 1 and step <= 0 for side, step in zip(tensor.shape, tensor.stride())):
        return "an expanded tensor (one value shown many times)"
    available = tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.element_size()
    span = 1 + sum((side - 1) * step for side, step in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0
    if max(span, tensor.numel()) * tensor.element_size() > available:
        return "a tensor larger than its data"
    return None
