"""A LoRA in memory on every layer of a model, for ``benchmarks/gpu.py``."""

from collections.abc import Callable
from pathlib import Path

import torch

from wan_core.sampling.loras import AddedLora, constant
from wan_core.stages.load import ModelHandle, dit_shapes
from wan_core.weights.checkpoint import Checkpoint
from wan_core.weights.header import TensorInfo
from wan_core.weights.lora import fit, read_lora

LAYERS = (*(f"{kind}_attn.{one}" for kind in ("self", "cross") for one in "qkvo"), "ffn.0", "ffn.2")
SPREAD = 0.02


def random_lora(model: ModelHandle, rank: int) -> Callable[[float], AddedLora]:
    """Strength -> that LoRA on the model, on both experts of a pair."""
    shapes = dit_shapes(model.variant.dit)
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for index in range(model.variant.dit.num_layers):
        for layer in LAYERS:
            out, into = shapes[f"blocks.{index}.{layer}.weight"]
            name = f"diffusion_model.blocks.{index}.{layer}.lora_"
            tensors[f"{name}A.weight"] = torch.randn(rank, into, generator=generator).mul_(into**-0.5).bfloat16()
            tensors[f"{name}B.weight"] = torch.randn(out, rank, generator=generator).mul_(SPREAD).bfloat16()
    header = {name: TensorInfo(dtype=t.dtype, shape=tuple(t.shape), nbytes=t.nbytes) for name, t in tensors.items()}
    file = read_lora(Checkpoint(Path("random_lora"), header, {}, tensors.__getitem__, lambda: None))
    found = fit(file, shapes, "high" if model.low is not None else None, model.name)

    def added(strength: float) -> AddedLora:
        low = found if model.low is not None else None
        return AddedLora(high=found, low=low, strength_high=constant(strength), strength_low=constant(strength))

    return added
