"""Merged weights beside other code in one process: ours, native ComfyUI's and diffusers' own LoRA loading.

``python3 -m benchmarks.lora_parity --comfyui DIR`` merges a file of every dialect into a small text and a small image
model with all three (diffusers needs ``peft``) and prints the largest difference of any weight, relative to the largest
change; ``does not read it`` where the other code refuses the file or leaves tensors of it out. Fails above 1e-5.
"""

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from wan_core.configs import DitConfig
from wan_core.stages.load import dit_shapes
from wan_core.weights.checkpoint import Checkpoint
from wan_core.weights.header import TensorInfo
from wan_core.weights.keymaps import to_naming
from wan_core.weights.lora import Fit, fit, read_lora
from wan_core.weights.lora_math import merged

from .lora_dialects import MODELS, dialects

LIMIT = 1e-5
Weights = dict[str, Tensor]


class NotRead(Exception):
    """The other code does not take this file, or not all of it."""


def random_weights(cfg: DitConfig) -> Weights:
    """Every tensor of a transformer."""
    draw = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=draw) / 16 for name, shape in dit_shapes(cfg).items()}


def fitted(file: Weights, cfg: DitConfig) -> Fit:
    """A file in memory on a model."""
    header = {name: TensorInfo(dtype=t.dtype, shape=tuple(t.shape), nbytes=t.nbytes) for name, t in file.items()}
    lora = read_lora(Checkpoint(Path("lora.safetensors"), header, {}, file.__getitem__, lambda: None))
    return fit(lora, dit_shapes(cfg), None, "model")


def ours(weights: Weights, file: Weights, cfg: DitConfig) -> Weights:
    """Changed tensors by official name."""
    found = fitted(file, cfg)
    return {name: merged(weights[name], changes) for name, changes in found.worn(1.0).items()}


class Comfy:
    """``comfy.lora``: the key map and the merge of native ComfyUI."""

    def __init__(self, folder: Path):
        sys.path.append(str(folder))
        sys.argv = [sys.argv[0], "--cpu"]
        importlib.import_module("comfy.options").enable_args_parsing()
        self.lora = importlib.import_module("comfy.lora")
        self.convert = importlib.import_module("comfy.lora_convert").convert_lora

    def __call__(self, weights: Weights, file: Weights, cfg: DitConfig) -> Weights:
        named = {f"diffusion_model.{name}": tensor for name, tensor in weights.items()}
        kind = importlib.import_module("comfy.model_base").WAN21
        model = kind.__new__(kind)
        nn.Module.__init__(model)
        model.model_config, model.state_dict = SimpleNamespace(unet_config={}), lambda: named
        keys = self.lora.model_lora_keys_unet(model, {})
        patches = self.lora.load_lora(self.convert(dict(file)), keys)
        made = {}
        for key, patch in patches.items():
            place, offset, _ = key if isinstance(key, tuple) else (key, None, None)
            made[place] = self.lora.calculate_weight(
                [(1.0, patch, 1.0, offset, None)], named[place].clone(), place, intermediate_dtype=torch.float32
            )
        if not made:
            raise NotRead("no key of it")
        return {name.removeprefix("diffusion_model."): tensor for name, tensor in made.items()}


def in_diffusers(weights: Weights, file: Weights, cfg: DitConfig) -> Weights:
    """``WanLoraLoaderMixin.lora_state_dict``, ``load_lora_adapter`` and ``fuse_lora``."""
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin

    model = WanTransformer3DModel(
        num_attention_heads=cfg.num_heads, attention_head_dim=cfg.head_dim, in_channels=cfg.in_dim,
        out_channels=cfg.out_dim, text_dim=cfg.text_dim, freq_dim=cfg.freq_dim, ffn_dim=cfg.ffn_dim,
        num_layers=cfg.num_layers, image_dim=cfg.img_dim, added_kv_proj_dim=cfg.dim if cfg.img_dim else None,
    )  # fmt: skip
    model.load_state_dict(to_naming(weights, "dit", "diffusers"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = WanLoraLoaderMixin.lora_state_dict(dict(file))
        model.load_lora_adapter(state, prefix="transformer", adapter_name="one")
        if "one" not in getattr(model, "peft_config", {}):
            raise NotRead("no key of it")
        model.fuse_lora(adapter_names=["one"])
        model.unload_lora()
    theirs = model.state_dict()
    names = dict(zip(to_naming(weights, "dit", "diffusers"), weights))
    return {names[name]: theirs[name] for name in before if not torch.equal(theirs[name], before[name])}


def difference(weights: Weights, mine: Weights, theirs: Weights) -> float:
    """Largest difference of any tensor that either changes, relative to the largest change of ours."""
    change = max((mine[name] - weights[name]).abs().max().item() for name in mine)
    left_out = set(mine) - set(theirs)
    if left_out:
        raise NotRead(f"{len(left_out)} of {len(mine)} tensors left as they are")
    return max((mine.get(name, weights[name]) - theirs[name].float()).abs().max().item() for name in theirs) / change


def compare(rivals: dict[str, Callable]) -> list[dict]:
    """Every dialect on every model against every rival."""
    rows = []
    for model, cfg in MODELS.items():
        weights = random_weights(cfg)
        for dialect, file in dialects(model).items():
            found, mine = fitted(file, cfg), ours(weights, file, cfg)
            ignored = sum(len(names) for names in found.ignored.values())
            row = {"model": model, "dialect": dialect, "applied": found.applied, "ignored": ignored, "total": len(file)}
            for name, merge in rivals.items():
                try:
                    row[name] = difference(weights, mine, merge(weights, file, cfg))
                except Exception as error:  # noqa: BLE001 - what other code does with a file it does not know
                    row[name] = f"does not read it ({str(error).splitlines()[0][:70]})"
            rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI checkout")
    args = parser.parse_args()
    rivals: dict[str, Callable] = {"diffusers": in_diffusers}
    if args.comfyui:
        rivals["ComfyUI"] = Comfy(args.comfyui)
    with torch.no_grad():
        rows = compare(rivals)
    worst = 0.0
    for row in rows:
        counts = f"{row['applied']} applied + {row['ignored']} ignored = {row['total']}"
        print(f"{row['model']:4} {row['dialect']:10} {counts:32}", end="")
        for name in rivals:
            got = row[name]
            worst = max(worst, got) if isinstance(got, float) else worst
            print(f"  {name} {got:.1e}" if isinstance(got, float) else f"  {name}: {got}", end="")
        print()
    whole = all(row["applied"] + row["ignored"] == row["total"] for row in rows)
    print(f"largest difference where the other code reads the file: {worst:.1e} (limit {LIMIT:.0e})")
    return 0 if worst <= LIMIT and whole else 1


if __name__ == "__main__":
    sys.exit(main())
