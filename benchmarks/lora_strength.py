"""A change of a LoRA's strength, without a reload: what is read again, and the seconds it takes.

``python3 -m benchmarks.lora_strength [--only tiny] [--repeats 5]`` puts a LoRA on every layer of a small transformer
and (rank 64, bf16) of one block of the real width of 14B, changes its strength back and forth, and counts files that
are opened, tensors that are read and bytes that come from the disk (where the system tells). It fails if anything is
read.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from wan_core.configs import DitConfig
from wan_core.runtime.ports import Compute
from wan_core.sampling.loras import changes_at, constant
from wan_core.stages.load import ModelHandle, dit_shapes, load_model
from wan_core.stages.lora import add_lora
from wan_core.variants import VARIANTS
from wan_core.weights import checkpoint
from wan_core.weights.checkpoint import Checkpoint

from . import lora_cost
from .lora_dialects import make
from .lora_parity import BASE

STRENGTHS = (0.5, 0.8)
REAL = replace(next(row.dit for row in VARIANTS if row.name == "t2v-14b"), num_layers=1)


@contextmanager
def reads() -> Iterator[Counter]:
    """Counts the ``files`` that are opened and the ``tensors`` that are read inside, of models and of LoRAs."""
    counts: Counter = Counter(files=0, tensors=0)
    opened, get = checkpoint.read_header, Checkpoint.get

    def counted_header(*args, **named):
        counts["files"] += 1
        return opened(*args, **named)

    def counted_get(self, name):
        counts["tensors"] += 1
        return get(self, name)

    checkpoint.read_header, Checkpoint.get = counted_header, counted_get
    try:
        yield counts
    finally:
        checkpoint.read_header, Checkpoint.get = opened, get


def disk_bytes() -> int | None:
    """What this process has had read from the disk so far, pages of mapped files included."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def write_model(path: Path, cfg: DitConfig, dtype: torch.dtype) -> None:
    """A file of random weights."""
    draw = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.empty(shape, dtype=dtype).normal_(std=0.02, generator=draw)
        for name, shape in dit_shapes(cfg).items()
    }
    save_file(tensors, path, {"config": json.dumps({"transformer": {"num_heads": cfg.num_heads}})})


def wear(model: ModelHandle, path: Path, strength: float) -> None:
    """What a run does before its first step: the LoRA is put on the model, and its weights are changed."""
    given = constant(strength)
    worn = add_lora(model, path, strength=given, strength_low=given, notify=lambda text: None)
    worn.high.wear(changes_at(worn.loras, "high", 0, 1))


def measure(kind: str, folder: Path, repeats: int) -> dict:
    """Seconds of the first time (model and LoRA are read) and of each change after it, and what those read."""
    cfg, dtype = (BASE, "fp32") if kind == "tiny" else (REAL, "bf16")
    model_file, lora = folder / f"{kind}.safetensors", folder / f"{kind}_lora.safetensors"
    write_model(model_file, cfg, torch.float32 if kind == "tiny" else torch.bfloat16)
    save_file(make("PEFT (diffusion_model.)", cfg) if kind == "tiny" else lora_cost.lora_tensors(), lora)
    seconds = []
    with torch.no_grad():
        began = time.perf_counter()
        compute = Compute(device=torch.device("cpu"))
        model = load_model(model_file, compute=compute, dtype=dtype, notify=lambda text: None)
        wear(model, lora, 1.0)
        first, before = time.perf_counter() - began, disk_bytes()
        with reads() as counts:
            for number in range(repeats):
                began = time.perf_counter()
                wear(model, lora, STRENGTHS[number % 2])
                seconds.append(time.perf_counter() - began)
    after = disk_bytes()
    return {
        "first_s": first, "change_best_s": min(seconds), "change_median_s": statistics.median(seconds), **counts,
        "disk_bytes": None if before is None else after - before,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["tiny", "14b block"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kinds = [args.only] if args.only else ["tiny", "14b block"]
        found = {kind: measure(kind, Path(folder), args.repeats) for kind in kinds}
    if args.json:
        print(json.dumps(found, indent=1))
    for kind, row in {} if args.json else found.items():
        print(
            f"{kind:10} first {row['first_s']:.3f} s (model and LoRA are read); a change of strength "
            f"best {row['change_best_s']:.4f} s, median {row['change_median_s']:.4f} s; in {args.repeats} changes "
            f"{row['files']} files opened, {row['tensors']} tensors read, {row['disk_bytes']} bytes from the disk"
        )
    return 1 if any(row["files"] or row["tensors"] for row in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
