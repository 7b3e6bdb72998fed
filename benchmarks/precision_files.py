"""The files that :mod:`benchmarks.precision` measures: one set of seeded random weights, stored in every type.

Widths and names are those of real files; the values keep a signal's size (see ``scripts/tiny_models.py``), because an
error says nothing where activations vanish or explode.
"""

import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from scripts import tiny_models
from wan_core.configs import ClipVisionConfig, Umt5Config, VaeConfig
from wan_core.stages.load import CLASSES
from wan_core.variants import VARIANTS
from wan_core.weights.keymaps import to_naming
from wan_core.weights.shapes import Config

STORED = ("fp32", "bf16", "fp16", "fp8_e4m3fn", "fp8_scaled")
PLAIN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
E4M3 = torch.float8_e4m3fn
LARGEST_E4M3 = torch.finfo(E4M3).max

SHAPES: dict[str, dict[str, Config]] = {
    "tiny": {
        "umt5": tiny_models.UMT5,
        "clip_vision": tiny_models.CLIP_VISION,
        "dit": tiny_models.DIT,
        "vae": tiny_models.VAE_21,
    },
    "1.3b": {
        "umt5": Umt5Config(vocab=tiny_models.VOCAB, num_layers=6),
        "clip_vision": ClipVisionConfig(),
        "dit": next(row.dit for row in VARIANTS if row.name == "t2v-1.3b"),
        "vae": VaeConfig(),
    },
}
"""Shape -> kind -> network. umT5-XXL is cut to 6 of its 24 layers and to the tiny tokenizer's vocabulary: all of it
in fp32 is more than most machines' memory."""

NAMING = {"umt5": "hf", "clip_vision": "official", "dit": "official", "vae": "official"}
QUANTISED = {
    "umt5": re.compile(r"\.(q|k|v|o|wi_0|wi_1|wo)\.weight$"),
    "clip_vision": re.compile(r"\btransformer\..*\.weight$"),
    "dit": re.compile(r"^blocks\..*\.weight$"),
    "vae": re.compile(r"\.weight$"),
}
"""What an fp8 file holds in fp8, where it has two dimensions or more; the rest of such a file is bf16."""


def write(shape: str, kind: str, folder: Path) -> dict[str, Path]:
    """One file for each entry of :data:`STORED`; returns where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, config = random_weights(shape, kind), SHAPES[shape][kind]
    metadata = {"config": json.dumps({"num_heads": config.num_heads})} if kind == "clip_vision" else None
    tokenizer = tiny_models.sentencepiece_model() if kind == "umt5" else None
    paths = {stored: folder / f"{shape}_{kind}_{stored}.safetensors" for stored in STORED}
    for stored, path in paths.items():
        tensors = store(weights, kind, stored)
        if tokenizer is not None:
            tensors["spiece_model"] = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
        save_file(tensors, path, metadata)
    return paths


def random_weights(shape: str, kind: str) -> dict[str, Tensor]:
    """float32 weights under the names of a published file; the same ones each time."""
    config = SHAPES[shape][kind]
    built = (
        replace(config, num_layers=config.num_layers + 1) if kind == "clip_vision" else config
    )  # files have one more
    generator = torch.Generator().manual_seed(zlib.crc32(f"{shape} {kind}".encode()))
    weights = tiny_models.randomised(CLASSES[kind], built, generator)
    if kind == "umt5":
        # T5 does not scale its scores; its queries begin smaller instead (huggingface/transformers, modeling_t5.py).
        for name in weights:
            if name.endswith(".q.weight"):
                weights[name] *= (config.dim_attn // config.num_heads) ** -0.5
    return {name: tensor.contiguous() for name, tensor in to_naming(weights, kind, NAMING[kind]).items()}


def store(weights: dict[str, Tensor], kind: str, stored: str) -> dict[str, Tensor]:
    """The weights in one storage type; scaled fp8 in the layout of ComfyUI's repackaged files."""
    if stored in PLAIN:
        return {name: tensor.to(PLAIN[stored]) for name, tensor in weights.items()}
    tensors = {"scaled_fp8": torch.zeros(2, dtype=E4M3)} if stored == "fp8_scaled" else {}
    for name, tensor in weights.items():
        if tensor.ndim < 2 or not QUANTISED[kind].search(name):
            tensors[name] = tensor.bfloat16()
        elif stored == "fp8_scaled":
            scale = tensor.abs().max() / LARGEST_E4M3
            tensors[name] = (tensor / scale).clamp(-LARGEST_E4M3, LARGEST_E4M3).to(E4M3)
            tensors[name.removesuffix("weight") + "scale_weight"] = scale
        else:
            tensors[name] = tensor.to(E4M3)
    return tensors
