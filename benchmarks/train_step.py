"""One training step of a LoRA at a real model's shapes: how long it takes and what memory it takes, on this machine.

``python3 -m benchmarks.train_step [--shapes t2v-1.3b] [--size 832 480] [--frames 17] [--steps 2] [--json]``

Writes random weights in the official shapes once into ``.cache/train_step`` (bf16; 2.8 GB for 1.3B; ``--clean`` removes
them) and takes the steps in a process of their own, by the trainer's own task and optimizer: rank 16 on all targets,
gradient checkpointing, one clip a step. Latents and text are random: time and memory do not depend on them.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.real_size import CACHE, ROWS, write
from wan_core.configs import DitConfig
from wan_core.grid import grid_of
from wan_core.models.dit import WanDiT
from wan_core.runtime.ports import Compute
from wan_core.stages.load import load_model
from wan_core.training.dit_task import DitSettings
from wan_core.training.flow import SigmaSettings
from wan_core.training.latents import EncodedClips
from wan_core.training.lora_job import fresh_network
from wan_core.training.lora_task import LoraSettings, LoraTask, add_trained_layers
from wan_core.training.optim import Optimizer, OptimSettings
from wan_core.training.phases import Phase
from wan_core.variants import VARIANTS

FOLDER = CACHE.with_name("train_step")
TOKENS = 40
"""Of a caption."""


def weights_file(name: str) -> Path:
    """Random weights of a row of the table, written once."""
    path = FOLDER / f"{name}_bf16.safetensors"
    if not path.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        write(part, {key: (tuple(shape), torch.bfloat16) for key, shape in _shapes(ROWS[name])}, 0, {})
        part.replace(path)
    return path


def _shapes(config: DitConfig) -> list[tuple[str, torch.Size]]:
    with torch.device("meta"):
        return [(key, tensor.shape) for key, tensor in WanDiT(config).state_dict().items()]


def take_steps(args: argparse.Namespace) -> dict:
    """The measurement itself, in the process whose memory counts."""
    device = torch.device(args.device)
    row = next(row for row in VARIANTS if row.name == args.shapes)
    grid = grid_of(row.latent, width=args.size[0], height=args.size[1], frames=args.frames)
    model = load_model(
        weights_file(args.shapes), variant=args.shapes, compute=Compute(device=device, bf16=True), dtype="bf16",
        notify=lambda text: None,
    )  # fmt: skip
    dit = add_trained_layers(fresh_network(model.high), LoraSettings(rank=args.rank, alpha=args.rank), 0).to(device)
    generator = torch.Generator().manual_seed(0)
    clips = EncodedClips(
        latents=torch.randn(1, row.latent.channels, *grid.latent_shape, generator=generator),
        images=None,
        ids=[[0] * TOKENS, [0]],
        rows=[torch.randn(count, row.dit.text_dim, generator=generator) for count in (TOKENS, 1)],
        captions=[[0]],
    )
    settings = DitSettings(
        phases=(Phase(frames=args.frames, batch=1, steps=args.steps),),
        sigma=SigmaSettings(),
        checkpoint=args.checkpoint,
    )
    task = LoraTask(dit, clips, settings, facts={})
    optimizer = Optimizer(task.parameters(), OptimSettings(optimizer="adamw", lr=1e-4))
    seconds, losses = [], []
    for step in range(args.steps):
        began = time.perf_counter()
        loss = task.loss(step, 0)
        loss.backward()
        optimizer.clip()
        optimizer.step(1e-4)
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - began)
    moved = sum(float(layer.up.detach().abs().sum()) > 0 for layer in task.layers.values())
    return {
        "shapes": args.shapes, "size": f"{args.size[0]}x{args.size[1]}x{args.frames}",
        "tokens": grid.tokens, "rank": args.rank, "checkpoint": args.checkpoint, "device": _device_name(device),
        "threads": torch.get_num_threads(), "first_s": seconds[0], "step_s": min(seconds[1:] or seconds),
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "peak_device_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
        "weights_gb": weights_file(args.shapes).stat().st_size / 1e9, "trained_layers": len(task.layers),
        "layers_moved": moved, "losses": losses,
    }  # fmt: skip


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def table(report: dict) -> str:
    """The figures in words."""
    lines = [
        f"LoRA step, {report['shapes']} at {report['size']} ({report['tokens']} tokens), rank {report['rank']}, bf16, "
        f"gradient checkpointing {'on' if report['checkpoint'] else 'off'}, {report['device']}, "
        f"{report['threads']} threads",
        f"first step           {report['first_s']:8.1f} s",
        f"later steps          {report['step_s']:8.1f} s",
        f"peak memory (RSS)    {report['peak_rss_gb']:8.2f} GB, {report['weights_gb']:.2f} GB of it file pages",
    ]
    if report["peak_device_gb"] is not None:
        lines.append(f"peak on the card     {report['peak_device_gb']:8.2f} GB")
    lines.append(f"trained layers       {report['trained_layers']:8d}, of which {report['layers_moved']} have changed")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="t2v-1.3b", choices=sorted(ROWS))
    parser.add_argument("--size", type=int, nargs=2, default=(832, 480), metavar=("W", "H"))
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--no-checkpoint", dest="checkpoint", action="store_false")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--clean", action="store_true", help="remove the weights afterwards")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(take_steps(args)))
        return 0
    weights_file(args.shapes)
    command = [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:], "--child"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        return done.returncode
    report = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(report, indent=1) if args.json else table(report))
    if args.clean:
        shutil.rmtree(FOLDER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
