"""Training a LoRA: low-rank changes of a frozen transformer, as it lies in its file."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..models.dit import WanDiT
from ..runtime.linear import StoredLinear
from . import TARGETS
from .dit_task import DitTask
from .rng import generator_of
from .state import write_safetensors

FILE = "lora.safetensors"
PREFIX = "diffusion_model."
"""How names begin in the files: what ComfyUI, diffusers and kijai's wrapper all read."""
FACTS = "wan_core_training"
"""The entry of the metadata that tells how a file was trained."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The change of a layer is ``alpha / rank * up @ down``."""

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoraLinear(nn.Module):
    """A layer that stays as it is, and a trained change beside it. ``up`` begins at zero: no change."""

    def __init__(self, layer: StoredLinear, settings: LoraSettings, generator: torch.Generator):
        super().__init__()
        bound = 1 / math.sqrt(layer.in_features)
        down = (2 * torch.rand(settings.rank, layer.in_features, generator=generator) - 1) * bound
        self.layer, self.scale = layer, settings.scale
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(layer.out_features, settings.rank))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` of any float dtype -> ``[..., out_features]``."""
        dtype = self.layer.compute_dtype
        change = F.linear(F.linear(x.to(dtype), self.down.to(dtype)), self.up.to(dtype))
        return self.layer(x) + self.scale * change


def add_trained_layers(dit: WanDiT, settings: LoraSettings, seed: int) -> WanDiT:
    """Freeze a loaded transformer and put a :class:`LoraLinear` around each target layer of its blocks, in place.

    Raises:
        InputError: no layer of the blocks is called like one of the targets.
    """
    dit.requires_grad_(False)
    dit.config = replace(dit.config, text_len=0)  # training folds the rows of text that are not there
    made = {}
    for path, layer in list(dit.blocks.named_modules(prefix="blocks")):
        if isinstance(layer, StoredLinear) and any(path.endswith(f".{target}") for target in settings.targets):
            owner, _, name = path.rpartition(".")
            made[path] = LoraLinear(layer, settings, generator_of(seed, len(made)))
            dit.get_submodule(owner)._modules[name] = made[path]
    unknown = [target for target in settings.targets if not any(path.endswith(f".{target}") for path in made)]
    if unknown:
        raise InputError(f"no layer of a block is called {', '.join(unknown)}. Use some of {', '.join(TARGETS)}.")
    return dit


def trained_layers(dit: WanDiT) -> dict[str, LoraLinear]:
    """The layers that are changed, by the names of those that they stand for."""
    return {path: layer for path, layer in dit.named_modules() if isinstance(layer, LoraLinear)}


class LoraTask(DitTask):
    """Trains the changes alone; ``facts`` go into the file's metadata."""

    def __init__(self, dit: WanDiT, *more, facts: dict, **named):
        super().__init__(dit, *more, **named)
        self.layers, self.facts = trained_layers(dit), facts

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {
            f"{path}.{half}": getattr(layer, half) for path, layer in self.layers.items() for half in ("down", "up")
        }

    def export(self, weights: Mapping[str, Tensor], folder: Path) -> list[Path]:
        """``lora.safetensors`` in PEFT's naming in bf16. alpha is multiplied in: readers take 1 where it is absent."""
        tensors = {}
        for path, layer in self.layers.items():
            tensors[f"{PREFIX}{path}.lora_A.weight"] = weights[f"{path}.down"].bfloat16()
            tensors[f"{PREFIX}{path}.lora_B.weight"] = (weights[f"{path}.up"] * layer.scale).bfloat16()
        path = folder / FILE
        write_safetensors(path, tensors, {FACTS: json.dumps(self.facts)})
        return [path]
