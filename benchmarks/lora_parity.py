"""Merged weights beside other code in one process: ours, native ComfyUI's and diffusers' own LoRA loading.

``python3 -m benchmarks.lora_parity [--comfyui DIR] [--json]`` merges a file of every dialect, and one of our own
trainer, into small text and image models with all three (diffusers needs ``peft``). It prints the largest difference of
any weight, relative to the largest change; where the other code refuses the file, or leaves tensors of it out, it
prints what that code said. Fails above 1e-5, where a tensor of a file is unaccounted for, or where another program does
not read what our trainer wrote.
"""

import argparse
import importlib
import json
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
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

from .lora_dialects import DIALECTS, LOW_ONLY, TRAINED, make

LIMIT = 1e-5
SMALLEST_CHANGE = 0.01
"""Of a weight, by every file: a comparison of nothing would be no comparison."""
BASE = DitConfig(dim=64, ffn_dim=96, num_heads=2, num_layers=2, in_dim=16, out_dim=16, text_dim=24, freq_dim=32)
MODELS = {"T2V": BASE, "I2V 2.1": replace(BASE, in_dim=36, img_dim=32), "I2V 2.2": replace(BASE, in_dim=36)}
CHECKOUT = Path(__file__).parents[1] / ".comfyui"
NO_KEY = "not one key of it is read"
Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Theirs:
    """Tensors that other code changes, by official name, and the names in the file that it says it did not use."""

    weights: Weights
    left_over: tuple[str, ...] = ()


Rival = Callable[[Weights, Weights, DitConfig], Theirs]


def random_weights(cfg: DitConfig) -> Weights:
    """Every tensor of a transformer."""
    draw = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=draw) / 16 for name, shape in dit_shapes(cfg).items()}


def fitted(file: Weights, cfg: DitConfig, side: str | None = None) -> Fit:
    """A file in memory on a model."""
    header = {name: TensorInfo(dtype=t.dtype, shape=tuple(t.shape), nbytes=t.nbytes) for name, t in file.items()}
    lora = read_lora(Checkpoint(Path("lora.safetensors"), header, {}, file.__getitem__, lambda: None))
    return fit(lora, dit_shapes(cfg), side, "model")


def ours(weights: Weights, found: Fit, strength: float = 1.0) -> Weights:
    """Changed tensors by official name."""
    return {name: merged(weights[name], changes) for name, changes in found.worn(strength).items()}


class NotLoaded(logging.Handler):
    """Gathers the keys that ComfyUI's loader says it did not load."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        before, _, name = record.getMessage().partition("lora key not loaded: ")
        if not before and name:
            self.names.append(name)


class Comfy:
    """``comfy.lora``: the key map and the merge of native ComfyUI."""

    def __init__(self, folder: Path):
        sys.path.append(str(folder))
        sys.argv = [sys.argv[0], "--cpu"]
        importlib.import_module("comfy.options").enable_args_parsing()
        self.lora = importlib.import_module("comfy.lora")
        self.convert = importlib.import_module("comfy.lora_convert").convert_lora
        self.wan = importlib.import_module("comfy.model_base").WAN21
        self.not_loaded = NotLoaded()
        logging.getLogger().handlers[:] = [self.not_loaded]  # told in the table, and not one by one

    def __call__(self, weights: Weights, file: Weights, cfg: DitConfig) -> Theirs:
        named = {f"diffusion_model.{name}": tensor for name, tensor in weights.items()}
        model = self.wan.__new__(self.wan)
        nn.Module.__init__(model)
        model.model_config, model.state_dict = SimpleNamespace(unet_config={}), lambda: named
        keys = self.lora.model_lora_keys_unet(model, {})
        self.not_loaded.names.clear()
        patches, made = self.lora.load_lora(self.convert(dict(file)), keys), {}
        for key, patch in patches.items():
            place, offset, _ = key if isinstance(key, tuple) else (key, None, None)
            made[place.removeprefix("diffusion_model.")] = self.lora.calculate_weight(
                [(1.0, patch, 1.0, offset, None)], named[place].clone(), place, intermediate_dtype=torch.float32
            )
        return Theirs(weights=made, left_over=tuple(self.not_loaded.names))


def in_diffusers(weights: Weights, file: Weights, cfg: DitConfig) -> Theirs:
    """As a Wan pipeline does it: ``load_lora_weights``, then ``fuse_lora``."""
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin

    model = WanTransformer3DModel(
        num_attention_heads=cfg.num_heads, attention_head_dim=cfg.head_dim, in_channels=cfg.in_dim,
        out_channels=cfg.out_dim, text_dim=cfg.text_dim, freq_dim=cfg.freq_dim, ffn_dim=cfg.ffn_dim,
        num_layers=cfg.num_layers, image_dim=cfg.img_dim, added_kv_proj_dim=cfg.dim if cfg.img_dim else None,
    )  # fmt: skip
    renamed = to_naming(weights, "dit", "diffusers")
    model.load_state_dict(renamed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logging.getLogger("diffusers").setLevel(logging.CRITICAL)  # told in the table
    pipeline = type(
        "Pipeline", (WanLoraLoaderMixin,), {"components": {}, "hf_device_map": None, "transformer": model}
    )()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(dict(file), adapter_name="one")
        if getattr(model, "peft_config", {}):
            model.fuse_lora(adapter_names=["one"])
            model.unload_lora()
    after, names = model.state_dict(), dict(zip(renamed, weights))
    return Theirs(weights={names[n]: after[n] for n in before if not torch.equal(after[n], before[n])})


def largest(weights: Weights, mine: Weights) -> float:
    """The largest change of any weight."""
    return max((mine[name] - weights[name]).abs().max().item() for name in mine)


def compared(weights: Weights, mine: Weights, theirs: Theirs) -> dict:
    """``difference``: the largest of any tensor that they change, relative to the largest change of ours; ``problem``:
    why the file is not, or not wholly, read by them."""
    if not theirs.weights:
        return {"difference": None, "problem": NO_KEY}
    apart = (
        (mine.get(name, weights[name]) - tensor.float()).abs().max().item() for name, tensor in theirs.weights.items()
    )
    found = max(apart) / largest(weights, mine)
    same = [name for name in mine if name not in theirs.weights]
    problem = f"{len(same)} of {len(mine)} tensors stay as they were, {same[0]} among them" if same else None
    if problem is None and theirs.left_over:
        problem = f"{len(theirs.left_over)} keys not loaded, {theirs.left_over[0]} among them"
    return {"difference": found, "problem": problem}


def compare(rivals: dict[str, Rival]) -> list[dict]:
    """Every dialect on every model against every rival."""
    rows = []
    for model, cfg in MODELS.items():
        weights = random_weights(cfg)
        for dialect in DIALECTS:
            file = make(dialect, cfg)
            found = fitted(file, cfg, "low" if dialect == LOW_ONLY else None)
            mine, ignored = ours(weights, found), sum(len(names) for names in found.ignored.values())
            row = {
                "model": model, "dialect": dialect, "applied": found.applied, "ignored": ignored, "total": len(file),
                "change": largest(weights, mine),
            }  # fmt: skip
            for name, rival in rivals.items():
                try:
                    row[name] = compared(weights, mine, rival(weights, file, cfg))
                except Exception as error:  # noqa: BLE001 - what other code does with a file it does not know
                    said = f"{type(error).__name__}: {error}".splitlines()[0][:110]
                    row[name] = {"difference": None, "problem": said}
            rows.append(row)
    return rows


def problems(rows: list[dict], rivals: list[str]) -> list[str]:
    """What makes the command fail."""
    found = []
    for row in rows:
        where = f"{row['model']}, {row['dialect']}"
        if row["applied"] + row["ignored"] != row["total"] or row["ignored"]:
            found.append(f"{where}: {row['applied']} applied + {row['ignored']} ignored of {row['total']}")
        if row["change"] < SMALLEST_CHANGE:
            found.append(f"{where}: changes nothing worth comparing")
        for name in rivals:
            apart, problem = row[name]["difference"], row[name]["problem"]
            if apart is not None and not apart <= LIMIT:
                found.append(f"{where}: {apart:.1e} from {name}")
            if row["dialect"] == TRAINED and problem:
                found.append(f"{where}: {name} does not read it: {problem}")
    return found


def grouped(rows: list[dict], rivals: list[str]) -> dict[tuple[str, str, str], list[str]]:
    """(Rival, dialect, problem) -> the models on which it is so."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name in rivals:
        for row in rows:
            if problem := row[name]["problem"]:
                found.setdefault((name, row["dialect"], problem), []).append(row["model"])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, default=CHECKOUT, help="a ComfyUI checkout (default: .comfyui)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not (args.comfyui / "comfy" / "lora.py").is_file():
        parser.error(f"{args.comfyui} is no ComfyUI checkout. Give one with --comfyui, or run scripts/setup_host.py.")
    rivals: dict[str, Rival] = {"ComfyUI": Comfy(args.comfyui), "diffusers": in_diffusers}
    with torch.no_grad():
        rows = compare(rivals)
    wrong = problems(rows, list(rivals))
    if args.json:
        print(json.dumps({"rows": rows, "problems": wrong}, indent=1))
        return 1 if wrong else 0
    print(f"{'model':8} {'dialect':30} {'applied + ignored = total':26} " + " ".join(f"{n:>9}" for n in rivals))
    for row in rows:
        counts = f"{row['applied']:3} + {row['ignored']} = {row['total']}"
        cells = [row[name]["difference"] for name in rivals]
        shown = " ".join(f"{'-' if apart is None else format(apart, '.1e'):>9}" for apart in cells)
        print(f"{row['model']:8} {row['dialect']:30} {counts:26} {shown}")
    print("\nNot read, or not wholly:")
    for (name, dialect, problem), models in grouped(rows, list(rivals)).items():
        print(f"  {name}, {dialect} ({', '.join(models)}): {problem}")
    worst = max(row[name]["difference"] or 0.0 for row in rows for name in rivals)
    print(f"\nlargest difference where the other code reads the file: {worst:.1e} (limit {LIMIT:.0e})")
    print("".join(f"WRONG: {line}\n" for line in wrong), end="")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
