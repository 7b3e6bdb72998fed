"""Small models in memory, wrapped as the stages take them."""

import torch
from torch import nn

from wan_core.configs import DitConfig, VaeConfig
from wan_core.models.vace import build_dit
from wan_core.models.vae import WanVAE
from wan_core.runtime.residency import Resident
from wan_core.stages.load import ModelHandle, VaeHandle
from wan_core.variants import LATENTS, VARIANTS, WanVariant

CPU = torch.device("cpu")


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """Weights of which every one matters, from a seed."""
    generator = torch.Generator().manual_seed(seed)
    for param in module.parameters():
        std = 0.2 if param.ndim < 2 else param[0].numel() ** -0.5
        param.data = torch.randn(param.shape, generator=generator) * std
    return module.eval().requires_grad_(False)


def resident(module: nn.Module, name: str) -> Resident:
    size = sum(param.nbytes for param in module.parameters())
    return Resident(name, size, CPU, lambda: module)


def variant(name: str) -> WanVariant:
    """A row of the table with a small transformer of the same inputs."""
    from dataclasses import replace

    row = next(row for row in VARIANTS if row.name == name)
    small = DitConfig(
        dim=48, ffn_dim=64, num_heads=2, num_layers=3, in_dim=row.dit.in_dim, out_dim=row.dit.out_dim, text_dim=24,
        freq_dim=32, img_dim=None if row.dit.img_dim is None else 32, img_tokens=row.dit.img_tokens,
        ref_dim=row.dit.ref_dim, camera_dim=row.dit.camera_dim,
        vace_layers=(0, 2) if row.dit.vace_layers else (), vace_in_dim=row.dit.vace_in_dim,
    )  # fmt: skip
    return replace(row, dit=small)


def model(name: str) -> ModelHandle:
    """A model handle of a row of the table: one expert, or two with different weights."""
    row = variant(name)
    high = resident(randomised(build_dit(row.dit), 1), f"{name} high")
    low = resident(randomised(build_dit(row.dit), 2), f"{name} low") if row.experts == 2 else None
    return ModelHandle(variant=row, high=high, low=low)


def vae(channels: int = 16) -> VaeHandle:
    config = VaeConfig(dim=4, dec_dim=4, z_dim=channels, patch=2 if channels == 48 else 1, shortcuts=channels == 48)
    weights = resident(randomised(WanVAE(config), 3), f"vae {channels}")
    return VaeHandle(config=config, spec=LATENTS[channels], weights=weights)
