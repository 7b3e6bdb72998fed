"""What a LoRA costs: rank 64 merged into the ten linear layers of one Wan 14B block in bf16, ours beside others.

``python3 -m benchmarks.lora_cost [--repeats 7] [--json]`` times, in turns and in one process, ours, ComfyUI's
``comfy.lora.calculate_weight`` (of ``.comfyui`` or ``--comfyui DIR``; its packages have to be there) and PEFT's merge.
Best and median of the repeats, seconds of the whole block on the CPU, and our share of the faster of the others.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from wan_core.weights.checkpoint import Checkpoint
from wan_core.weights.header import TensorInfo
from wan_core.weights.lora import Change, read_lora
from wan_core.weights.lora_math import Worn, merged

DIM, FFN, RANK, STRENGTH = 5120, 13824, 64, 0.8
ATTENTION = [f"{kind}_attn.{layer}" for kind in ("self", "cross") for layer in "qkvo"]
LAYERS = {**dict.fromkeys(ATTENTION, (DIM, DIM)), "ffn.0": (FFN, DIM), "ffn.2": (DIM, FFN)}
Merge = Callable[[], list[Tensor]]


def lora_tensors() -> dict[str, Tensor]:
    """A LoRA file's content, for every layer of the block."""
    generator, lora = torch.Generator().manual_seed(0), {}
    for name, (out, into) in LAYERS.items():
        prefix = f"diffusion_model.blocks.0.{name}.lora_"
        lora[f"{prefix}A.weight"] = torch.randn(RANK, into, generator=generator).mul_(into**-0.5).bfloat16()
        lora[f"{prefix}B.weight"] = torch.randn(out, RANK, generator=generator).mul_(0.02).bfloat16()
    return lora


def block_tensors() -> dict[str, Tensor]:
    """The block's weights."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(out, into, generator=generator).mul_(into**-0.5).bfloat16()
        for name, (out, into) in LAYERS.items()
    }


def ours(weights: dict[str, Tensor], lora: dict[str, Tensor]) -> Merge:
    header = {name: TensorInfo(dtype=t.dtype, shape=tuple(t.shape), nbytes=t.nbytes) for name, t in lora.items()}
    file = read_lora(Checkpoint(Path("lora"), header, {}, lora.__getitem__, lambda: None))
    by_name: dict[str, Change] = {change.target: change for change in file.changes[None]}

    def merge() -> list[Tensor]:
        made = []
        for name, weight in weights.items():
            change = by_name[f"blocks.0.{name}.weight"]
            worn = Worn(kind=change.kind, source=file, change=change, strength=STRENGTH)
            made.append(merged(weight, [worn], torch.bfloat16))
        return made

    return merge


def comfy(weights: dict[str, Tensor], lora: dict[str, Tensor]) -> Merge:
    """As its model patcher does: computed in float32, rounded to the weight's type."""
    importlib.import_module("comfy.options").enable_args_parsing()  # reads the --cpu that main() left
    module = importlib.import_module("comfy.lora")
    rounding = importlib.import_module("comfy.float")
    keys = {f"diffusion_model.blocks.0.{name}": name for name in weights}
    patches = module.load_lora(dict(lora), keys)

    def merge() -> list[Tensor]:
        made = []
        for name, weight in weights.items():
            whole = weight.to(torch.float32, copy=True)
            patch = [(STRENGTH, patches[name], 1.0, None, None)]
            made.append(rounding.stochastic_rounding(module.calculate_weight(patch, whole, name), weight.dtype, seed=0))
        return made

    return merge


def peft(weights: dict[str, Tensor], lora: dict[str, Tensor]) -> Merge:
    layer_class = importlib.import_module("peft.tuners.lora").Linear
    config = importlib.import_module("peft").LoraConfig(r=RANK, lora_alpha=RANK * STRENGTH, init_lora_weights=False)
    layers = []
    for name, weight in weights.items():
        base = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.bfloat16, device="meta")
        base.weight = nn.Parameter(weight.clone(), requires_grad=False)
        layer = layer_class(base, "default", config=config, r=RANK, lora_alpha=RANK * STRENGTH)
        for half in "AB":
            part = getattr(layer, f"lora_{half}")["default"]
            part.weight = nn.Parameter(lora[f"diffusion_model.blocks.0.{name}.lora_{half}.weight"])
        layers.append(layer)

    def merge() -> list[Tensor]:
        for layer in layers:
            layer.merge()
        made = [layer.base_layer.weight.data for layer in layers]
        for layer in layers:
            layer.merged_adapters.clear()
        return made

    return merge


RIVALS = {"ours": ours, "ComfyUI": comfy, "PEFT": peft}
CHECKOUT = Path(__file__).parents[1] / ".comfyui"


def share(rows: dict[str, dict[str, float]]) -> float | None:
    """Our best time over that of the faster of the others; None where none of them was measured."""
    others = [row["best"] for name, row in rows.items() if name != "ours"]
    return rows["ours"]["best"] / min(others) if others else None


def timed(merges: dict[str, Merge], repeats: int) -> dict[str, dict[str, float]]:
    """Best and median seconds of each, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in merges}
    for _ in range(repeats):
        for name, merge in merges.items():
            began = time.perf_counter()
            merge()
            seconds[name].append(time.perf_counter() - began)
    return {name: {"best": min(values), "median": statistics.median(values)} for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--comfyui", type=Path, default=CHECKOUT, help="a ComfyUI checkout (default: .comfyui)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    sys.argv = sys.argv[:1]  # ComfyUI reads the command line too
    sys.path.append(str(args.comfyui))
    sys.argv.append("--cpu")
    weights, lora = block_tensors(), lora_tensors()
    merges, missing = {}, {}
    for name, make in RIVALS.items():
        try:
            merges[name] = make(weights, lora)
        except ImportError as error:
            missing[name] = str(error)
    first = ATTENTION[0]
    with torch.no_grad():
        exact = weights[first].double() + STRENGTH * product(lora, first)
        for name, merge in merges.items():
            error = (merge()[0].double() - exact).abs().max().item()
            print(f"{name}: largest error of one layer against float64 {error:.1e}", file=sys.stderr)
        rows = timed(merges, args.repeats)
    if args.json:
        print(json.dumps({"seconds": rows, "share": share(rows), "missing": missing}))
        return
    for name, row in rows.items():
        print(f"{name:8} best {row['best']:.3f} s  median {row['median']:.3f} s")
    if (part := share(rows)) is not None:
        print(f"ours takes {part:.2f} of the faster of the others")
    for name, reason in missing.items():
        print(f"{name:8} not measured: {reason}")


def product(lora: dict[str, Tensor], name: str) -> Tensor:
    up, down = (lora[f"diffusion_model.blocks.0.{name}.lora_{half}.weight"].double() for half in "BA")
    return up @ down


if __name__ == "__main__":
    main()
