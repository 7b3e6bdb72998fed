"""What a GPU makes of it: speed, streaming and memory at real sizes with random weights, self-contained.

``python3 -m benchmarks.gpu [CASE ...] [--toy] [--json FILE]`` runs the cases (default: all; less than 8 minutes on an
H200) and prints one line a figure, with its target where there is one. ``--toy`` runs the same code on tiny models, on
a CPU too. The machine's own ceilings are measured first; what is judged by them uses those of the same run.

Models are made in host memory with normal random weights (std 0.02); both experts of a pair read the same memory, as
files of two experts would be read from the page cache.
"""

import argparse
import json
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import gpu_cases


@dataclass
class Report:
    """Lines as they come, and all figures at the end. Tiny models are judged by no target."""

    judges: bool = True
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, case: str, name: str, value: float, unit: str, target: str = "", met: bool | None = None) -> None:
        met = met if self.judges else None
        self.rows.append({"case": case, "name": name, "value": value, "unit": unit, "target": target, "met": met})
        verdict = {True: "  met", False: "  NOT MET", None: ""}[met]
        print(f"{case:9} {name:58} {value:12.4f} {unit:8} {target and 'target ' + target}{verdict}", flush=True)


def machine(device: torch.device) -> dict[str, str]:
    """What the figures were taken on."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    return {
        "device": card,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(gpu_cases.DEFAULT), help=", ".join(gpu_cases.CASES))
    parser.add_argument("--toy", action="store_true", help="tiny models, on whatever device there is")
    parser.add_argument("--json", type=Path, help="write all figures here")
    args = parser.parse_args()
    unknown = [case for case in args.cases if case not in gpu_cases.CASES]
    if unknown:
        parser.error(f"unknown case {', '.join(unknown)}; there are {', '.join(gpu_cases.CASES)}")
    if not torch.cuda.is_available() and not args.toy:
        parser.error("there is no CUDA device; --toy runs the same code on a CPU")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    report, facts = Report(judges=not args.toy), machine(device)
    print("  ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    bench = gpu_cases.Bench(device=device, toy=args.toy, report=report)
    failed = []
    for case in args.cases:
        began = time.perf_counter()
        try:
            gpu_cases.CASES[case](bench)
        except Exception as error:  # noqa: BLE001 - the other cases are still worth their time
            failed.append(case)
            print(f"{case:9} FAILED: {type(error).__name__}: {error}", flush=True)
        bench.tidy()
        print(f"{case:9} took {time.perf_counter() - began:.1f} s", flush=True)
        if args.json:
            args.json.write_text(json.dumps({"machine": facts, "toy": args.toy, "rows": report.rows}, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
