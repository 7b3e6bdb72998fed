"""Does a run take the memory that the runtime plans for it? On the CPU, with models of real width.

``python3 -m benchmarks.plan_check [--cases NAME ...] [--json]``

Each case runs one step of the sampler in a fresh process, with random weights made in memory: real width, few blocks
(they are walked one after another, so more of them take nothing more to work in). Its peak resident memory, less what
was resident after the imports, is compared with what :func:`plan_residency`'s terms say: weights and work. Passes
where the two differ by at most 15 % of the prediction. Linux only: it reads ``/proc/self/status``.

A graphics card is measured by ``benchmarks/gpu.py``.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .vae_memory import status_bytes

ROOT = Path(__file__).parent.parent
TOLERANCE = 0.15
TEXT_ROWS = 512
THREADS = 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row of the variant table with ``layers`` blocks; ``stored`` and ``compute`` are dtypes of its weights."""

    model: str
    layers: int
    stored: str
    compute: str
    width: int
    height: int
    frames: int
    guidance: float = 5.0


_SMALL = {"width": 832, "height": 480}
_LARGE = {"width": 1280, "height": 704}
CASES: dict[str, Case] = {
    "1.3b bf16 480p x5": Case(model="t2v-1.3b", layers=3, stored="bfloat16", compute="bf16", frames=5, **_SMALL),
    "1.3b bf16 480p x17": Case(model="t2v-1.3b", layers=2, stored="bfloat16", compute="bf16", frames=17, **_SMALL),
    "1.3b fp32 480p x9": Case(model="t2v-1.3b", layers=2, stored="float32", compute="fp32", frames=9, **_SMALL),
    "1.3b fp32 480p x17, no guidance": Case(
        model="t2v-1.3b", layers=2, stored="float32", compute="fp32", frames=17, guidance=1.0, **_SMALL
    ),
    "5b fp8 704p x17": Case(model="ti2v-5b", layers=3, stored="float8_e4m3fn", compute="bf16", frames=17, **_LARGE),
    "5b fp32 704p x9": Case(model="ti2v-5b", layers=2, stored="float32", compute="fp32", frames=9, **_LARGE),
    "14b bf16 480p x17": Case(model="t2v-14b", layers=1, stored="bfloat16", compute="bf16", frames=17, **_SMALL),
    "vace 1.3b fp32 480p x9": Case(model="vace-1.3b", layers=2, stored="float32", compute="fp32", frames=9, **_SMALL),
    "vace 1.3b bf16 480p x17": Case(
        model="vace-1.3b", layers=2, stored="bfloat16", compute="bf16", frames=17, **_SMALL
    ),
    "14b i2v fp32 480p x5": Case(model="i2v-14b-480p", layers=1, stored="float32", compute="fp32", frames=5, **_SMALL),
}


def measure(case: Case) -> dict:
    """The child's work: one model, one step, what it was said to take and what it took."""
    import torch

    from wan_core.grid import grid_of
    from wan_core.stages import sample as stage
    from wan_core.variants import VARIANTS

    from . import gpu_models  # noqa: F401 - what it imports is there before the memory is looked at

    torch.set_num_threads(THREADS)
    row = next(row for row in VARIANTS if row.name == case.model)
    vace_layers = tuple(layer for layer in row.dit.vace_layers if layer < case.layers)
    row = replace(row, dit=replace(row.dit, num_layers=case.layers, vace_layers=vace_layers))
    grid = grid_of(row.latent, width=case.width, height=case.height, frames=case.frames)
    _warm_up(getattr(torch, case.stored), {"bf16": torch.bfloat16, "fp32": torch.float32}[case.compute])
    idle = status_bytes("VmRSS")
    model, memory = _model(row, case), _keeping_memory()
    side = stage.Condition(text=torch.randn(1, TEXT_ROWS, row.dit.text_dim))
    start = stage.StartLatent(samples=torch.zeros(1, row.latent.channels, *grid.latent_shape))
    settings = stage.Settings(steps=1, guidance_high=case.guidance, solver="euler")
    loaded = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    made = stage.sample(model, side, side, start, settings, stage.Ports(memory=memory))
    seconds, peak = time.perf_counter() - began, status_bytes("VmHWM")
    return {
        "predicted_bytes": memory.made.peak_bytes,
        "predicted_work_bytes": memory.made.work_bytes,
        "measured_bytes": peak - idle,
        "measured_work_bytes": peak - loaded,
        "tokens": grid.tokens,
        "seconds": round(seconds, 1),
        "finite": bool(made.isfinite().all()),
    }


def _warm_up(stored, compute) -> None:
    """What libraries load at their first use is no part of a run."""
    import torch

    x = torch.randn(64, 64).to(stored).to(compute)
    torch.nn.functional.layer_norm((x @ x).float(), (64,)).clamp_(-1, 1)
    torch.nn.functional.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None])


def _model(row, case: Case):
    """The row with random weights, drawn tensor by tensor."""
    import torch

    from wan_core.models.vace import build_dit
    from wan_core.runtime.residency import Resident
    from wan_core.stages.load import ModelHandle, weight_sizes
    from wan_core.weights.precision import policy

    from .gpu_models import random_module

    stored = getattr(torch, case.stored)
    rules = policy("dit", stored, "cpu", True, case.compute)
    module = random_module(lambda: build_dit(row.dit), rules, torch.device("cpu"), stored)
    kinds = {name: param.dtype for name, param in module.named_parameters()}
    with torch.device("meta"):
        sizes = weight_sizes(build_dit(row.dit), kinds, rules)
    weights = Resident(case.model, sizes.total, torch.device("cpu"), lambda: module, rules.compute, sizes)
    return ModelHandle(variant=row, high=weights)


def _keeping_memory():
    """A memory that keeps the plan it made; a class made late, as children alone import torch."""
    from wan_core.runtime.ports import PlainMemory

    class Keeping(PlainMemory):
        def plan(self, *args):
            self.made = super().plan(*args)
            return self.made

    return Keeping()


def in_child(name: str) -> dict:
    """One case, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.plan_check", "--child", name]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"'{name}' ended with exit code {done.returncode}; its error is above.")
    row = json.loads(done.stdout)
    off = row["measured_bytes"] / row["predicted_bytes"] - 1
    return {"case": name, **asdict(CASES[name]), **row, "off": off, "passed": abs(off) <= TOLERANCE and row["finite"]}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.plan_check", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.child:
        print(json.dumps(measure(CASES[args.child])))
        return 0
    rows = []
    for name in args.cases:
        rows.append(row := in_child(name))
        if not args.json:
            print(
                f"{name:32} predicted {row['predicted_bytes'] / 1e9:5.2f} GB, took {row['measured_bytes'] / 1e9:5.2f} "
                f"({row['off']:+.1%}); to work in {row['predicted_work_bytes'] / 1e9:4.2f} and "
                f"{row['measured_work_bytes'] / 1e9:4.2f}; {row['seconds']:.0f} s: {'ok' if row['passed'] else 'MISS'}",
                flush=True,
            )
    if args.json:
        print(json.dumps({"tolerance": TOLERANCE, "threads": THREADS, "rows": rows}, indent=2))
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
