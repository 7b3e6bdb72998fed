"""Clips, model files and command lines of trainings that take a second."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from scripts.nano import world
from scripts.nano.captions import captions, pieces, sentencepiece_model
from scripts.nano.start import init_dit, init_umt5
from wan_core.configs import DitConfig, Umt5Config, VaeConfig
from wan_core.models.dit import WanDiT
from wan_core.models.umt5 import Umt5Encoder
from wan_core.models.vae import WanVAE
from wan_core.training.clips import Clip, ClipSize
from wan_core.training.dit_task import write_dit, write_text_encoder
from wan_core.training.state import states, write_safetensors
from wan_core.training.vae_task import init_vae

SCENES = "tests.wan_core.training.tiny_run:scenes"
TEXT = Umt5Config(vocab=len(pieces()) + 3, dim=24, dim_attn=24, dim_ffn=32, num_heads=2, num_layers=1)
DIT = DitConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=2, in_dim=16, out_dim=16, text_dim=TEXT.dim)
VAE = VaeConfig(dim=4, dec_dim=4)


def scenes(size: ClipSize) -> list[Clip]:
    """Six rendered clips."""
    made = []
    for index, scene in enumerate(world.all_scenes()[::160]):
        rng = np.random.default_rng(index)
        frames = world.render(scene, rng, size.frames, size.width)
        made.append(Clip(frames=frames, captions=captions(scene, rng, 3)))
    return made


def nothing(size: ClipSize) -> list[Clip]:
    return []


def crooked(size: ClipSize) -> list[Clip]:
    """Clips of another size than asked for."""
    return [Clip(frames=np.zeros((size.frames, 8, 8, 3), np.uint8), captions=("a",))]


def vae() -> WanVAE:
    made = WanVAE(VAE)
    init_vae(made, 0)
    return made


def write_files(folder: Path, in_dim: int = 16) -> dict[str, Path]:
    """A transformer, a VAE and a text encoder of random values."""
    paths = {name: folder / f"{name}.safetensors" for name in ("model", "vae", "text-encoder")}
    generator = torch.Generator().manual_seed(5)
    dit, encoder = WanDiT(replace(DIT, in_dim=in_dim)), Umt5Encoder(TEXT)
    init_dit(dit, generator)
    init_umt5(encoder, generator)
    with torch.no_grad():
        dit.head.head.weight.normal_(0, 0.02, generator=generator)
    write_dit(paths["model"], dit, dict(dit.state_dict()))
    write_text_encoder(paths["text-encoder"], dict(encoder.state_dict()), sentencepiece_model())
    write_safetensors(paths["vae"], {name: value.detach() for name, value in vae().named_parameters()}, {})
    return paths


def vae_command(out: Path, *more: str) -> list[str]:
    return [
        "vae", "--out", str(out), "--data", SCENES, "--size", "16", "16", "--frames", "5", "--dim", "4",
        "--phases", "1x4x4", "5x2x4", "--warmup", "2", "--ema", "0.5", "--save-every", "3", "--sample-every", "0",
        "--log-every", "1", *more,
    ]  # fmt: skip


def dit_command(out: Path, files: dict[str, Path], *more: str) -> list[str]:
    named = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    return [
        "dit", "--out", str(out), "--data", SCENES, "--size", "32", "32", "--frames", "5", *named,
        "--phases", "1x4x3", "5x4x5", "--warmup", "2", "--ema", "0.5", "--save-every", "3", "--sample-every", "0",
        "--log-every", "1", *more,
    ]  # fmt: skip


def lora_command(out: Path, files: dict[str, Path], *more: str) -> list[str]:
    return ["lora", *dit_command(out, files, "--rank", "4", *more)[1:]]


def losses(out: Path) -> list[float]:
    """The loss of every step, as the newest state tells it."""
    with safe_open(states(out)[-1], "pt") as file:
        return [loss for _, loss in json.loads(file.metadata()["state"])["losses"]]


def same_files(one: Path, other: Path) -> bool:
    """Two files hold the same tensors, bit for bit."""
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
