"""``python -m wan_core.weights.convert IN.pth OUT.safetensors``: an official pickle file becomes safetensors.

Names and values stay as they are. The result appears under its name only when it is whole.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ModelFileError, WanError, gigabytes
from .checkpoint import open_checkpoint


def convert(source: Path, target: Path, force: bool = False) -> tuple[int, int]:
    """Write every tensor of ``source`` to the safetensors file ``target``.

    Returns:
        Number of tensors and their bytes.

    Raises:
        ModelFileError: the source is refused, or the target exists and ``force`` is not set.
    """
    if target.suffix != ".safetensors":
        raise ModelFileError(f"{target.name}: the result is a safetensors file; give it the ending .safetensors.")
    if target.exists() and not force:
        raise ModelFileError(f"{target} exists. Choose another name, or add --force to replace it.")
    with open_checkpoint(source) as checkpoint:
        tensors = _untied({name: checkpoint.get(name) for name in checkpoint.header})
        metadata = {"format": "pt", **checkpoint.metadata}
        write_atomically(tensors, target, metadata)
    return len(tensors), sum(tensor.nbytes for tensor in tensors.values())


def write_atomically(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
    """Write beside the target, flush to disk, then rename: the name never shows half a file."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata=metadata)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _untied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors with memory of their own; safetensors refuses tied ones."""
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage()
        tied = memory.data_ptr() in seen and tensor.numel() > 0
        seen.add(memory.data_ptr())
        own[name] = tensor.clone(memory_format=torch.contiguous_format) if tied else tensor.contiguous()
    return own


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m wan_core.weights.convert", description=__doc__)
    parser.add_argument("source", type=Path, help="the .pth, .pt, .bin or .ckpt file")
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    parser.add_argument("--force", action="store_true", help="replace the target if it exists")
    options = parser.parse_args(arguments)
    try:
        count, size = convert(options.source, options.target, options.force)
    except (WanError, OSError) as error:
        print(f"Not converted: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(f"{options.source.name} -> {options.target}: {count} tensors, {gigabytes(size)}.")  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
