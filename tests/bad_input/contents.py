"""What the files of the table hold: small headers, whole small networks, tokenizers."""

import json
from dataclasses import replace
from functools import lru_cache

import torch

from scripts.tiny_models import sentencepiece_model
from tests import tiny
from wan_core.configs import ClipVisionConfig, Umt5Config, VaeConfig
from wan_core.stages.load import CLASSES
from wan_core.weights.header import DTYPES
from wan_core.weights.keymaps import to_naming

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
UMT5 = Umt5Config(vocab=430, dim=16, dim_attn=16, dim_ffn=24, num_heads=2, num_layers=2)
CLIP = ClipVisionConfig(image_size=28, dim=32, mlp_dim=48, out_dim=8, num_heads=2, num_layers=2)
VAE = VaeConfig(dim=4, dec_dim=4)


def packed(header: dict | bytes, data: bytes = b"\0" * 8) -> bytes:
    """Length, header, data: a safetensors file, good or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def holding(entries: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str] | None = None) -> bytes:
    """A good safetensors file of zeros: name -> (type code, shape)."""
    header: dict = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, (code, shape) in entries.items():
        end = position + torch.Size(shape).numel() * DTYPES[code].itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    return packed(header, bytes(position))


def named(*names: str, code: str = "BF16") -> bytes:
    """A file of small tensors of which only the names count."""
    return holding(dict.fromkeys(names, (code, (2, 2))))


def network(kind: str, config, naming: str = "official", drop=(), metadata=None, code="BF16", **more) -> bytes:
    """A file with every tensor of a small network; ``drop`` some, add or change ``more``."""
    with torch.device("meta"):
        state = CLASSES[kind](config).state_dict()
    named_state = to_naming(state, kind, naming, prefix="")
    entries = {name: (code, tuple(x.shape)) for name, x in named_state.items() if name not in drop}
    heads = {"config": json.dumps({"num_heads": config.num_heads})} if hasattr(config, "num_heads") else {}
    return holding(entries | more, heads | (metadata or {}))


def wan(variant: str = "t2v-1.3b", layers: int = 3, **changes) -> bytes:
    """A small transformer of a variant's inputs."""
    return network("dit", replace(tiny.variant(variant).dit, num_layers=layers), **changes)


def vace_module(naming: str = "official", drop=(), **changes) -> bytes:
    """The VACE blocks alone of a small VACE model."""
    config = replace(tiny.variant("vace-1.3b").dit, **changes)
    with torch.device("meta"):
        state = CLASSES["dit"](config).state_dict()
    blocks = {name: tensor for name, tensor in state.items() if name.startswith("vace_") and name not in drop}
    return holding({name: ("BF16", tuple(x.shape)) for name, x in to_naming(blocks, "dit", naming, "").items()})


def lora(*layers: str, width: int = 48, fill: float | None = None, ending: str = "diffusion_model.{}", **more) -> bytes:
    """A LoRA of rank 2 in PEFT's naming on square layers of a small transformer; ``fill``: every value."""
    halves = {"lora_A": (2, width), "lora_B": (width, 2)}
    entries = {f"{ending.format(n)}.{h}.weight": ("F32", shape) for n in layers for h, shape in halves.items()}
    content = holding(entries | more)
    if fill is None:
        return content
    count = len(layers) * 4 * width
    return content[: len(content) - 4 * count] + torch.full((count,), fill).numpy().tobytes()


def umt5(tokenizer: bytes | None = None, **changes) -> bytes:
    """A small umT5, with a tokenizer in the file or without. (Only the tokenizer has values.)"""
    raw = tokenizer or b""
    more = {"spiece_model": ("U8", (len(raw),))} if raw else {}
    content = network("umt5", UMT5, "hf", **more, **changes)
    return content[: len(content) - len(raw)] + raw


@lru_cache
def tokenizer(pieces: int = 400) -> bytes:
    return sentencepiece_model(pieces)


def t5() -> bytes:
    """T5: a relative position table in the first layer only."""
    return umt5(drop=("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",))
