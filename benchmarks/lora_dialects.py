"""LoRA files of every dialect for any size of transformer: what ``benchmarks/lora_parity.py`` and tests compare.

Each is made as its trainer makes it: every layer of every block, under the names and with the parts of the dialect.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wan_core.configs import DitConfig
from wan_core.runtime.ports import Compute
from wan_core.stages.load import dit_shapes, load_model
from wan_core.training.lora_task import LoraSettings, LoraTask, add_trained_layers
from wan_core.weights.keymaps import to_naming

Tensors = dict[str, Tensor]
RANK = 4
TRAINED = "our trainer"
Q = "blocks.0.self_attn.q"
_LAYERS = [f"{kind}_attn.{one}" for kind in ("self", "cross") for one in "qkvo"] + ["ffn.0", "ffn.2"]
_IMAGE_LAYERS = ["cross_attn.k_img", "cross_attn.v_img"]
_OUTSIDE = ["patch_embedding", "text_embedding.0", "time_embedding.2", "time_projection.1", "head.head"]


@dataclass(frozen=True, kw_only=True)
class Names:
    """How a dialect writes a low-rank change: prefix, endings of the halves, whether it stores alpha, and whether
    modules are called as diffusers calls them or have underscores for dots."""

    prefix: str
    up: str = "lora_B.weight"
    down: str = "lora_A.weight"
    alpha: float | None = None
    diffusers: bool = False
    flat: bool = False

    def of(self, module: str) -> str:
        name = _in_diffusers(module) if self.diffusers else module
        return self.prefix + (name.replace(".", "_") if self.flat else name)


KOHYA = {"up": "lora_up.weight", "down": "lora_down.weight", "flat": True}
NAMED = {"up": "lora_B.default.weight", "down": "lora_A.default.weight"}
WHOLE = Names(prefix="diffusion_model.")
WHOLE_UP = Names(prefix="diffusion_model.", up="lora_up.weight", down="lora_down.weight", alpha=4.0)
DIFFUSERS = Names(prefix="transformer.", diffusers=True)
LOW_RANK: dict[str, Names] = {
    "kohya (lora_unet_)": Names(prefix="lora_unet_", alpha=2.0, **KOHYA),
    "Fun (lora_unet__)": Names(prefix="lora_unet__", alpha=8.0, **KOHYA),
    "kohya (lora_transformer_)": Names(prefix="lora_transformer_", alpha=2.0, **KOHYA),
    "LyCORIS (lycoris_)": Names(prefix="lycoris_", alpha=2.0, **KOHYA),
    "PEFT (diffusion_model.)": WHOLE,
    "PEFT (model.diffusion_model.)": Names(prefix="model.diffusion_model."),
    "PEFT (base_model.model.)": Names(prefix="base_model.model.", **NAMED),
    "diffusers (transformer.)": DIFFUSERS,
    "diffusers (transformer_2.)": Names(prefix="transformer_2.", diffusers=True),
    "DiffSynth (pipe.dit.)": Names(prefix="pipe.dit.", **NAMED),
    "unet.": Names(prefix="unet."),
    "no prefix": Names(prefix=""),
}
"""One for each prefix that is read."""
LOW_ONLY = "diffusers (transformer_2.)"
"""The dialect that is for the low-noise expert by its names."""


def _in_diffusers(module: str) -> str:
    (name,) = to_naming({f"{module}.weight": torch.empty(0)}, "dit", "diffusers")
    return name.removesuffix(".weight")


def layers_of(cfg: DitConfig) -> list[str]:
    """Every layer of every block, as trainers take them."""
    layers = _LAYERS + (_IMAGE_LAYERS if cfg.img_dim else [])
    return [f"blocks.{n}.{layer}" for n in range(cfg.num_layers) for layer in layers]


class Maker:
    """Draws the files for one size of transformer, the same ones each time."""

    def __init__(self, cfg: DitConfig, seed: int = 3):
        self.cfg, self.seed, self.shapes = cfg, seed, dit_shapes(cfg)
        self.draw = torch.Generator().manual_seed(seed)

    def noise(self, *shape: int, scale: float = 8.0) -> Tensor:
        return torch.randn(shape, generator=self.draw) / scale

    def low_rank(self, names: Names, layers: list[str] | None = None) -> Tensors:
        tensors: Tensors = {}
        for module in layers or layers_of(self.cfg):
            out, into, *kernel = self.shapes[f"{module}.weight"]
            name = names.of(module)
            tensors[f"{name}.{names.up}"] = self.noise(out, RANK, *(1 for _ in kernel))
            tensors[f"{name}.{names.down}"] = self.noise(RANK, into, *kernel)
            if names.alpha is not None:
                tensors[f"{name}.alpha"] = torch.tensor(names.alpha)
        return tensors

    def every_layer(self, names: Names = WHOLE) -> Tensors:
        """The layers outside the blocks as well, the convolution at the entrance among them."""
        return self.low_rank(names, layers_of(self.cfg) + _OUTSIDE)

    def lightx2v(self) -> Tensors:
        names = ["blocks.0.norm3.diff", "blocks.0.norm3.diff_b", "blocks.1.self_attn.norm_k.diff", f"{Q}.diff_b"]
        names += ["head.head.diff", "head.head.diff_b"]
        return self.low_rank(WHOLE_UP) | self._differences(names)

    def _differences(self, names: list[str]) -> Tensors:
        ends = {"diff": "weight", "diff_b": "bias", "diff_m": "modulation", "set_weight": "weight"}
        shapes = {name: self.shapes[f"{name.rpartition('.')[0]}.{ends[name.rpartition('.')[2]]}"] for name in names}
        return {f"diffusion_model.{name}": self.noise(*shape) for name, shape in shapes.items()}

    def modulations(self) -> Tensors:
        return self._differences(["blocks.0.diff_m", "blocks.1.diff_m", "head.diff_m"])

    def replacements(self) -> Tensors:
        return self._differences([f"{Q}.set_weight", "head.head.set_weight"])

    def dora(self) -> Tensors:
        scale = torch.rand(self.cfg.dim, 1, generator=self.draw) + 0.5
        return self.low_rank(WHOLE_UP) | {f"diffusion_model.{Q}.dora_scale": scale}

    def magnitudes(self) -> Tensors:
        """DoRA as PEFT writes it."""
        lengths = {
            f"{DIFFUSERS.of(module)}.lora_magnitude_vector": torch.rand(
                self.shapes[f"{module}.weight"][0], generator=self.draw
            )
            + 0.5
            for module in layers_of(self.cfg)
        }
        return self.low_rank(DIFFUSERS) | lengths

    def biases(self) -> Tensors:
        """PEFT's ``lora_bias``."""
        return self.low_rank(DIFFUSERS) | {
            f"{DIFFUSERS.of(module)}.lora_B.bias": self.noise(self.shapes[f"{module}.bias"][0])
            for module in layers_of(self.cfg)
        }

    def loha(self) -> Tensors:
        name, width = LOW_RANK["kohya (lora_unet_)"].of(Q), self.cfg.dim
        shapes = {f"hada_w{n}_{side}": (width, RANK) if side == "a" else (RANK, width) for n in "12" for side in "ab"}
        return self._special(name, shapes)

    def lokr(self) -> Tensors:
        name, part = LOW_RANK["kohya (lora_unet_)"].of(Q), self.cfg.dim // 4
        return self._special(name, {"lokr_w1": (4, 4), "lokr_w2_a": (part, RANK), "lokr_w2_b": (RANK, part)})

    def _special(self, name: str, shapes: dict[str, tuple[int, ...]]) -> Tensors:
        parts = {f"{name}.{role}": self.noise(*shape, scale=4) for role, shape in shapes.items()}
        return parts | {f"{name}.alpha": torch.tensor(32.0)}

    def trained(self) -> Tensors:
        """The file that our own trainer writes, of values that a training could have found."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            heads = {"config": json.dumps({"transformer": {"num_heads": self.cfg.num_heads}})}
            save_file({name: torch.zeros(shape) for name, shape in self.shapes.items()}, path, heads)
            compute = Compute(device=torch.device("cpu"))
            dit = load_model(path, compute=compute, dtype="fp32", notify=lambda text: None).high.module
            task = LoraTask(add_trained_layers(dit, LoraSettings(rank=RANK, alpha=2.0), 0), None, None, facts={})
            weights = {name: self.noise(*param.shape) for name, param in task.parameters().items()}
            (written,) = task.export(weights, Path(folder))
            return {name: tensor.clone() for name, tensor in load_file(written).items()}


OTHERS: dict[str, Callable[[Maker], Tensors]] = {
    "every layer, PEFT": Maker.every_layer,
    "every layer, diffusers": lambda maker: maker.every_layer(DIFFUSERS),
    "LightX2V (diff, diff_b)": Maker.lightx2v,
    "modulations (diff_m)": Maker.modulations,
    "set_weight": Maker.replacements,
    "DoRA (dora_scale)": Maker.dora,
    "DoRA (PEFT magnitudes)": Maker.magnitudes,
    "PEFT lora_bias": Maker.biases,
    "LoHa": Maker.loha,
    "LoKr": Maker.lokr,
    TRAINED: Maker.trained,
}
"""Files that are more than low rank, or of layers outside the blocks."""
DIALECTS = (*LOW_RANK, *OTHERS)


def make(dialect: str, cfg: DitConfig, seed: int = 3) -> Tensors:
    """The tensors of a file of one of :data:`DIALECTS`."""
    maker = Maker(cfg, seed)
    return maker.low_rank(LOW_RANK[dialect]) if dialect in LOW_RANK else OTHERS[dialect](maker)
