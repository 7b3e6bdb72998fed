"""C5 and C6 of ``benchmarks.cpu``: what a decode of VAE 2.1 occupies, ours beside rivals, and in parts.

Every figure is of a process of its own: the peak of its resident memory during one decode, less what was resident once
the weights were loaded. The allocator runs with the fixed settings of ``vae_memory``, so that freed memory is gone.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from wan_core.configs import VaeConfig

from .cpu_child import OFFLINE, Child, Places, place
from .cpu_load import Bound
from .cpu_rows import ROWS, Case, Maker, Row, write_inputs, write_weights
from .vae_memory import MALLOC

CHILD = Path(__file__).with_name("cpu_vae_child.py")
FRAMES = (9, 33, 81)
SIDE = 128
PART_CASE = (2, 60, 104)
"""Frames, height and width of the latent that is decoded in parts: 832x480x5. Of a small picture the parts are mostly
what they see beyond their edges: 4 strips of 256x256 are 41 % more arithmetic, here 13 %."""
GRIDS = {"4 strips": (1, 4), "2 by 2 parts": (2, 2)}
SLOPE = 1.02
LESS_MEMORY, MORE_TIME, ERROR = 0.6, 1.35, 1e-5


def memory(places: Places, folder: Path) -> Iterator[Bound]:
    """C5: the peak of a decode against its length, ours and rivals."""
    row, weights = _row(folder)
    peaks: dict[str, dict[int, float]] = {}
    for name, maker in row.makers.items():
        for frames in FRAMES if "last" not in maker.settings and name != "floor" else ():
            case = Case(name=f"{frames}", latent=((frames - 1) // 4 + 1, SIDE // 8, SIDE // 8))
            inputs = write_inputs(row, case, folder)
            try:
                peaks.setdefault(name, {})[frames] = _child(maker, weights, inputs["rivals"], places, folder)["peak"]
            except Child.Missing as reason:
                yield Bound(title=f"C5 {name}", figures={}, failure=f"NOT MEASURED: {reason}")
                break
    out = {frames: frames * 3 * SIDE**2 * 4 for frames in FRAMES}
    first, last = FRAMES[0], FRAMES[-1]
    slope = (peaks["ours"][last] - peaks["ours"][first]) / (out[last] - out[first])
    figures = {
        name: ", ".join(f"{peak / 1e6:.0f} MB at {frames} frames" for frames, peak in found.items())
        for name, found in peaks.items()
    }
    figures["ours: growth by growth of the frames that come out"] = f"{slope:.3f} (allowed {SLOPE})"
    rivals = [found[last] for name, found in peaks.items() if name != "ours"]
    failure = "" if slope <= SLOPE else f"MISS: it grows by {slope:.2f} of its output, allowed are {SLOPE}"
    if not failure and rivals and peaks["ours"][last] >= min(rivals):
        failure = "MISS: a rival takes less"
    title = f"C5 memory of a VAE 2.1 decode, {SIDE}x{SIDE}, fp32"
    yield Bound(title=title, figures=figures, failure=failure, values=peaks)


def parts(places: Places, folder: Path) -> Iterator[Bound]:
    """C6: whole against parts."""
    row, weights = _row(folder)
    case = Case(name="parts", latent=PART_CASE)
    inputs = write_inputs(row, case, folder)["ours"]
    results = {}
    for name, grid in {"whole": (1, 1), **GRIDS}.items():
        maker = Maker(builder="ours_vae_parts", settings={"grid": grid})
        results[name] = _child(maker, weights, inputs, places, folder, save=folder / f"{name}.pt")
    whole = torch.load(folder / "whole.pt", weights_only=True)
    for name in GRIDS:
        made = torch.load(folder / f"{name}.pt", weights_only=True)
        values = {
            "error": ((made - whole).norm() / whole.norm()).item(),
            "memory by whole": results[name]["peak"] / results["whole"]["peak"],
            "time by whole": results[name]["seconds"] / results["whole"]["seconds"],
        }
        limits = {"error": ERROR, "memory by whole": LESS_MEMORY, "time by whole": MORE_TIME}
        missed = [f"{key} {values[key]:.3g}, allowed {most}" for key, most in limits.items() if values[key] > most]
        figures = {key: f"{values[key]:.3g} (allowed {most})" for key, most in limits.items()}
        both = results["whole"], results[name]
        figures["whole, in parts"] = ", ".join(f"{one['peak'] / 1e6:.0f} MB {one['seconds']:.2f} s" for one in both)
        title = f"C6 VAE 2.1 decode, 832x480x5 fp32, in {name}"
        yield Bound(title=title, figures=figures, failure="MISS: " + "; ".join(missed) if missed else "",
                    values=results)  # fmt: skip


def _row(folder: Path) -> tuple[Row, Path]:
    """The decode row of C4 in float32, and a file of its weights."""
    row = next(row for row in ROWS["C4"] if row.title == "VAE 2.1 decode, fp32")
    return row, write_weights(row, folder / "vae.safetensors")


def _child(
    maker: Maker, weights: Path, inputs: Path, places: Places, folder: Path, save: Path | None = None
) -> dict[str, float]:
    python, path = place(maker.host, places)
    spec = {
        "config": asdict(VaeConfig()), "dtype": "fp32", "weights": str(weights), "inputs": str(inputs), "path": path,
        "threads": places.threads, "builder": maker.builder, "flags": list(maker.flags),
        "save": None if save is None else str(save), **maker.settings,
    }  # fmt: skip
    file = folder / "memory.json"
    file.write_text(json.dumps(spec), encoding="utf8")
    environment = os.environ | OFFLINE | MALLOC | {"OMP_NUM_THREADS": str(places.threads)}
    done = subprocess.run([python, "-I", CHILD, file], env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise Child.Missing(done.stderr.strip()[-400:])
    return json.loads(done.stdout.splitlines()[-1])
