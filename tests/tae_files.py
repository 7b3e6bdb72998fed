"""Files of tiny autoencoders, laid out as madebyollin/taehv publishes them, with seeded random weights."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from scripts.tiny_models import random_values
from wan_core.configs import TaeConfig

TAE_21 = TaeConfig()
TAE_22 = TaeConfig(z_dim=48, patch=2)
SMALL = {16: replace(TAE_21, widths=(12, 8, 6, 4)), 48: replace(TAE_22, widths=(12, 8, 6, 4))}


def tensors(config: TaeConfig, dtype: torch.dtype = torch.float32, seed: int = 1) -> dict[str, Tensor]:
    """Encoder and decoder: numbered layers, of which those without weights leave gaps."""
    shapes = _encoder(config.z_dim, 3 * config.patch**2, config.widths[-1])
    shapes |= _conv("decoder.1", config.z_dim, config.widths[0])
    for level, ((dim, dim_out), frames) in enumerate(zip(pairwise(config.widths), (1, 2, 2))):
        first = 3 + 6 * level
        for i in range(3):
            shapes |= _block(f"decoder.{first + i}", dim)
        shapes[f"decoder.{first + 4}.conv.weight"] = (dim * frames, dim, 1, 1)
        shapes[f"decoder.{first + 5}.weight"] = (dim_out, dim, 3, 3)
    shapes |= _conv("decoder.22", config.widths[-1], 3 * config.patch**2)
    generator = torch.Generator().manual_seed(seed)
    made = {name: random_values(name, torch.Size(shape), generator) for name, shape in shapes.items()}
    made["decoder.22.weight"] *= 2
    made["decoder.22.bias"] += 0.5  # pictures in the middle of 0 to 1
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def write(path: Path, config: TaeConfig, dtype: torch.dtype = torch.float32, **more: Tensor | None) -> Path:
    """``more``: tensors beside or instead of those of the file, by name; None takes one away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t for name, t in (tensors(config, dtype) | more).items() if t is not None}, path)
    return path


def _encoder(z_dim: int, channels: int, dim: int) -> dict[str, tuple[int, ...]]:
    shapes = _conv("encoder.0", channels, dim) | _conv("encoder.17", dim, z_dim)
    for first, frames in ((2, 2), (7, 2), (12, 1)):
        shapes |= {f"encoder.{first}.conv.weight": (dim, dim * frames, 1, 1)}
        shapes |= {f"encoder.{first + 1}.weight": (dim, dim, 3, 3)}
        for i in range(3):
            shapes |= _block(f"encoder.{first + 2 + i}", dim)
    return shapes


def _block(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return _conv(f"{name}.conv.0", 2 * dim, dim) | _conv(f"{name}.conv.2", dim, dim) | _conv(f"{name}.conv.4", dim, dim)


def _conv(name: str, dim_in: int, dim_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim_out, dim_in, 3, 3), f"{name}.bias": (dim_out,)}
