"""One decode in a process of its own, for ``benchmarks.cpu_vae``: its peak of resident memory and its time.

``python -I cpu_vae_child.py SPEC.json``; prints one JSON line. The specification's ``path`` comes first on
``sys.path``: ComfyUI has a module ``nodes`` and so has this repository.
"""

import importlib
import json
import sys
import time
from pathlib import Path

import torch


def resident(field: str) -> int:
    """Bytes: ``VmRSS`` (now) or ``VmHWM`` (its peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def measure(spec: dict) -> dict[str, float]:
    from safetensors.torch import load_file

    torch.set_num_threads(spec["threads"])
    step, _ = getattr(importlib.import_module("benchmarks.cpu_models"), spec["builder"])(spec)
    x = load_file(spec["inputs"])["x"]
    with torch.inference_mode():
        step(x=x[:, :, :1, :8, :8])  # whatever is set up once
        loaded = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        began = time.perf_counter()
        made = step(x=x)
        seconds = time.perf_counter() - began
    peak = resident("VmHWM") - loaded
    if spec["save"]:
        torch.save(made, spec["save"])
    return {"peak": peak, "seconds": seconds}


def main() -> int:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf8"))
    sys.path[:0] = spec["path"]
    sys.argv = ["main.py", *spec["flags"]]  # ComfyUI reads the command line
    print(json.dumps(measure(spec)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
