"""Untrained files of the nano family, which its training begins with.

``python3 -m scripts.nano.start t2v OUT_DIR`` writes a text encoder and a transformer of random values;
``python3 -m scripts.nano.start i2v T2V_FILE OUT_FILE`` gives a trained transformer inputs for a known image.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from wan_core.configs import DitConfig, Umt5Config
from wan_core.models.dit import WanDiT
from wan_core.models.umt5 import Umt5Encoder
from wan_core.stages.load import load_model
from wan_core.training.dit_task import write_dit, write_text_encoder
from wan_core.training.show import COMPUTE
from wan_core.training.trainable import trainable

from .captions import pieces, sentencepiece_model

SPECIAL = 3
TEXT = Umt5Config(vocab=len(pieces()) + SPECIAL, dim=128, dim_attn=128, dim_ffn=256, num_heads=2, num_layers=2)
DIT = DitConfig(dim=192, ffn_dim=320, num_heads=3, num_layers=6, in_dim=16, out_dim=16, text_dim=TEXT.dim)
IMAGE_CHANNELS = 20


@torch.no_grad()
def init_dit(dit: WanDiT, generator: torch.Generator) -> None:
    """Xavier for what is linear, open gates, no shift or scale, and an output of zero."""
    for name, parameter in dit.named_parameters():
        if name.endswith(("norm_q.weight", "norm_k.weight", "norm3.weight")):
            parameter.fill_(1)
        elif name.endswith(("bias", "modulation")) or name.startswith("head."):
            parameter.zero_()
        else:
            fan_out, fan_in = parameter.shape[0], parameter[0].numel()
            std = 0.01 if name.startswith("time_projection") else math.sqrt(2 / (fan_in + fan_out))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    for block in dit.blocks:
        block.modulation[:, [2, 5]] = 0.4


@torch.no_grad()
def init_umt5(encoder: Umt5Encoder, generator: torch.Generator) -> None:
    """T5's own way: attention is not scaled, so queries start small."""
    cfg = encoder.config
    head_dim = cfg.dim_attn // cfg.num_heads
    for name, parameter in encoder.named_parameters():
        if "norm" in name:
            parameter.fill_(1)
            continue
        std = {
            "token_embedding.weight": 1.0,
            "q.weight": (cfg.dim * head_dim) ** -0.5,
            "o.weight": cfg.dim_attn**-0.5,
            "fc2.weight": cfg.dim_ffn**-0.5,
        }
        chosen = next((value for end, value in std.items() if name.endswith(end)), cfg.dim**-0.5)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * chosen)


def write_t2v(folder: Path, seed: int = 0) -> list[Path]:
    """``start_dit.safetensors`` and ``start_text_encoder.safetensors``."""
    generator = torch.Generator().manual_seed(seed)
    dit, encoder = WanDiT(DIT), Umt5Encoder(TEXT)
    init_dit(dit, generator)
    init_umt5(encoder, generator)
    paths = [folder / "start_dit.safetensors", folder / "start_text_encoder.safetensors"]
    write_dit(paths[0], dit, _state(dit))
    write_text_encoder(paths[1], _state(encoder), sentencepiece_model())
    return paths


def write_i2v(t2v: Path, out: Path) -> Path:
    """The same transformer with 20 more input channels (mask 4, latent 16) that have no say yet."""
    source = trainable(WanDiT(DIT), load_model(t2v, compute=COMPUTE, dtype="fp32", notify=print).high)
    state = _state(source)
    old = state["patch_embedding.weight"]
    state["patch_embedding.weight"] = torch.cat([old, old.new_zeros(old.shape[0], IMAGE_CHANNELS, *old.shape[2:])], 1)
    wide = WanDiT(replace(DIT, in_dim=DIT.in_dim + IMAGE_CHANNELS))
    write_dit(out, wide, state)
    return out


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("t2v").add_argument("folder", type=Path)
    i2v = kinds.add_parser("i2v")
    i2v.add_argument("t2v", type=Path)
    i2v.add_argument("out", type=Path)
    args = parser.parse_args()
    made = write_t2v(args.folder) if args.kind == "t2v" else [write_i2v(args.t2v, args.out)]
    for path in made:
        print(path, f"{path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
