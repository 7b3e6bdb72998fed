"""Models of real size with random weights, made in memory: what ``benchmarks/gpu.py`` runs."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from wan_core.configs import DitConfig, Umt5Config, VaeConfig
from wan_core.models.umt5 import Umt5Encoder
from wan_core.models.vace import build_dit
from wan_core.models.vae import WanVAE
from wan_core.runtime.linear import StoredLinear, storage_linears
from wan_core.runtime.residency import Resident
from wan_core.stages.load import ModelHandle, TextEncoderHandle, VaeHandle, weight_sizes
from wan_core.variants import LATENTS, VARIANTS, WanVariant
from wan_core.weights.precision import Policy, policy

STD = 0.02
TOY_DIT = {"dim": 96, "ffn_dim": 256, "num_heads": 2, "num_layers": 6, "text_dim": 64, "freq_dim": 32}
TOY_UMT5 = Umt5Config(vocab=512, dim=64, dim_attn=64, dim_ffn=128, num_heads=4, num_layers=3)
TOY_VAE = {"dim": 8, "dec_dim": 8}


def random_module(
    make: Callable[[], nn.Module], rules: Policy, device: torch.device, dtype=torch.bfloat16
) -> nn.Module:
    """A network with normal random weights in host memory, drawn on ``device``: linear weights in ``dtype``, as a file
    has them, and everything else in what it computes in."""
    with torch.device("meta"):
        module = storage_linears(make(), rules.dtype_of)
    generator = torch.Generator(device).manual_seed(0)
    owners = dict(module.named_modules())
    for name, param in list(module.named_parameters()):
        place, _, last = name.rpartition(".")
        owner = owners[place]
        kind = dtype if isinstance(owner, StoredLinear) and last == "weight" else rules.dtype_of(name)
        drawn = torch.randn(param.shape, generator=generator, device=device, dtype=torch.float32).mul_(STD)
        if last == "weight" and param.ndim == 1:
            drawn += 1  # a norm
        owner._parameters[last] = nn.Parameter(drawn.to(kind).to("cpu"), requires_grad=False)
    return module


def random_model(name: str, device: torch.device, toy: bool) -> ModelHandle:
    """A row of the variant table."""
    variant = next(row for row in VARIANTS if row.name == name)
    if toy:
        vace = {"vace_layers": (0, 3)} if variant.dit.vace_layers else {}
        variant = replace(variant, dit=replace(variant.dit, **TOY_DIT, **vace))
    return model_of(variant, device)


def model_of(variant: WanVariant, device: torch.device) -> ModelHandle:
    """A variant with random weights. Both experts of a pair read the same memory."""
    name = variant.name
    rules = policy("dit", torch.bfloat16, device.type, True)
    module = random_module(lambda: build_dit(variant.dit), rules, device)
    sides = [_resident(f"{name} {side}", build_dit, variant.dit, rules, module, device) for side in ("high", "low")]
    return ModelHandle(variant=variant, high=sides[0], low=sides[1] if variant.experts == 2 else None)


def _resident(name: str, kind: type, config, rules: Policy, home: nn.Module, device: torch.device) -> Resident:
    """Weights of their own that share the memory of ``home``."""

    def build() -> nn.Module:
        with torch.device("meta"):
            module = storage_linears(kind(config), rules.dtype_of)
        owners = dict(module.named_modules())
        for path, param in home.named_parameters():
            place, _, last = path.rpartition(".")
            owners[place]._parameters[last] = nn.Parameter(param.data, requires_grad=False)
        return module

    stored = {path: param.dtype for path, param in home.named_parameters()}
    with torch.device("meta"):
        sizes = weight_sizes(kind(config), stored, rules)
    return Resident(name, sum(p.nbytes for p in home.parameters()), device, build, rules.compute, sizes)


def random_text_encoder(device: torch.device, toy: bool) -> TextEncoderHandle:
    """umT5-XXL; without a tokenizer, for it is given tokens."""
    config = TOY_UMT5 if toy else Umt5Config()
    rules = policy("umt5", torch.bfloat16, device.type, True)
    module = random_module(lambda: Umt5Encoder(config), rules, device)
    weights = _resident("umt5", Umt5Encoder, config, rules, module, device)
    return TextEncoderHandle(config=config, weights=weights, tokenizer=lambda: None)


def random_vae(channels: int, device: torch.device, toy: bool) -> VaeHandle:
    """VAE 2.1 (16 channels) or 2.2 (48)."""
    config = VaeConfig(**TOY_VAE) if toy else VaeConfig()
    if channels == 48:
        sizes = TOY_VAE if toy else {"dim": 160, "dec_dim": 256}
        config = VaeConfig(**sizes, z_dim=48, patch=2, shortcuts=True)
    rules = policy("vae", torch.bfloat16, device.type, True)
    module = random_module(lambda: WanVAE(config), rules, device)
    weights = _resident(f"vae {channels}", WanVAE, config, rules, module, device)
    return VaeHandle(config=config, spec=LATENTS[channels], weights=weights)


def size_of(cfg: DitConfig) -> str:
    return f"{cfg.num_layers} x {cfg.dim}"
