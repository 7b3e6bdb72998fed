"""What storing and computing in fewer bits costs, stage by stage, against fp32.

``python3 -m benchmarks.precision [--shapes tiny 1.3b] [--stages NAME ...] [--device cpu|cuda] [--json]``

Writes seeded random files in every storage type into ``.cache/precision`` (14 GB at a time for the 1.3B shapes,
removed as it goes), loads each along the pack's ordinary path, once as the precision policy chooses and once for every
other compute type that a loader's ``precision`` allows, runs the stage, and compares with the fp32 file computed in
fp32 on the CPU. The published table is in ``docs/precision.md``.
"""

import argparse
import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from scripts.tiny_models import PROMPTS
from wan_core.errors import InputError
from wan_core.runtime.ports import Compute, Ports
from wan_core.runtime.residency import Resident
from wan_core.stages import image, load, sample, text, vae
from wan_core.weights.precision import NAMES, REQUESTS, has_bf16, policy_table

from .precision_files import SHAPES, STORED, write

CACHE = Path(__file__).parent.parent / ".cache" / "precision"
CPU = torch.device("cpu")
LATENT = (1, 16, 2, 16, 16)
FRAMES = (1, 5, 64, 64, 3)
STEPS = 8
TEXT_TOKENS = 24
MIDDLE = 500.0
"""Timestep of the single forward, of 1000."""
DECODE = "VAE decode"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One stage from one file in one compute type. Errors are relative to the root mean square of the reference."""

    shape: str
    stage: str
    stored: str
    computed: str
    by_policy: bool
    """The precision policy chooses this compute type for this file on this device."""
    rms_error: float | None
    """None: the loader refuses this compute type."""
    largest_error: float | None = None
    psnr_db: float | None = None
    """Of decoded frames; they range over 2."""
    reference_rms: float | None = None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.precision", description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="NAME")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), metavar="NAME")
    parser.add_argument("--device", default="cpu", help="where to compute what is compared: cpu or cuda")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    rows = []
    CACHE.mkdir(parents=True, exist_ok=True)
    for shape in args.shapes:
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            for row in measure(shape, args.stages, device, Path(folder)):
                rows.append(row)
                print(_line(row), file=sys.stderr, flush=True)
    missing = not_measured(device)
    if args.json:
        print(json.dumps({"device": machine(device), "rows": [asdict(row) for row in rows], "not_measured": missing}))
    else:
        print("\n".join([machine(device), "", *table(rows), "", *references(rows), "", *missing]))
    return 0


def measure(
    shape: str, stages: Iterable[str], device: torch.device, folder: Path, computes: Iterable[str] = tuple(REQUESTS)
) -> Iterator[Row]:
    """Stages of one shape from every stored type, in every one of ``computes`` that the loader allows."""
    stages = [name for name in stages if shape in STAGES[name].shapes]
    for kind in dict.fromkeys(STAGES[name].kind for name in stages):
        paths = write(shape, kind, folder)
        for name in stages:
            if STAGES[name].kind == kind:
                yield from _measure_stage(shape, name, paths, device, computes)
        for path in paths.values():
            path.unlink()


def _measure_stage(
    shape: str, name: str, paths: dict[str, Path], device: torch.device, computes: Iterable[str]
) -> Iterator[Row]:
    stage, compute = STAGES[name], Compute(device=device, bf16=has_bf16(device))
    reference = stage.run(_load(stage.kind, paths["fp32"], Compute(device=CPU), "fp32"))
    for stored in STORED:
        chosen = NAMES[weights(_load(stage.kind, paths[stored], compute, "auto")).compute_dtype]
        for computed in computes:
            row = {"shape": shape, "stage": name, "stored": stored, "computed": computed}
            try:
                handle = _load(stage.kind, paths[stored], compute, "auto" if computed == chosen else computed)
            except InputError:
                yield Row(**row, by_policy=False, rms_error=None)
                continue
            yield Row(**row, by_policy=computed == chosen, **compare(stage.run(handle), reference, name == DECODE))


def compare(value: Tensor, reference: Tensor, frames: bool) -> dict[str, float | None]:
    """The figures of a :class:`Row`; a signal-to-noise ratio for frames only."""
    value, reference = value.double(), reference.double()
    size, error = rms(reference), rms(value - reference)
    psnr = 20 * math.log10(2 / error) if frames and error else None
    largest = (value - reference).abs().max().item() / size
    return {"rms_error": error / size, "largest_error": largest, "psnr_db": psnr, "reference_rms": size}


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def _load(kind: str, path: Path, compute: Compute, request: str):
    """A handle, as the loader nodes make it."""
    if kind == "dit":
        return load.load_model(path, compute=compute, dtype=request, notify=logging.info)
    loaders = {"umt5": load.load_text_encoder, "clip_vision": load.load_clip_vision, "vae": load.load_vae}
    return loaders[kind](path, compute=compute, dtype=request)


def weights(handle) -> Resident:
    return handle.high if isinstance(handle, load.ModelHandle) else handle.weights


def _random(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def _text(handle: load.TextEncoderHandle) -> Tensor:
    """Context ``[tokens, dim]`` of a prompt; the zero rows after it are left out."""
    tokens = text.tokenize(handle, PROMPTS.splitlines()[1], Ports())
    return text.encode_tokens(handle, tokens, Ports())[0, : len(tokens.ids)]


def _clip(handle: load.ClipVisionHandle) -> Tensor:
    return image.encode_image(handle, _random(1, 64, 64, 3).sigmoid(), Ports())


@torch.no_grad()
def _velocity(handle: load.ModelHandle) -> Tensor:
    """One forward at the middle of the schedule."""
    module = Ports().memory.place(handle.high, 0)
    device, dim = handle.high.where, handle.variant.dit.text_dim
    inputs = (_random(*LATENT), torch.tensor([MIDDLE]), _random(1, TEXT_TOKENS, dim, seed=2))
    return module(*(x.to(device) for x in inputs)).cpu()


def _sampled(handle: load.ModelHandle) -> Tensor:
    """A short run with guidance, normalised as the model sees it."""
    sides = [sample.Condition(text=_random(1, TEXT_TOKENS, handle.variant.dit.text_dim, seed=seed)) for seed in (2, 3)]
    start, settings = sample.StartLatent(samples=torch.zeros(LATENT)), sample.Settings(seed=1, steps=STEPS)
    return handle.variant.latent.normalise(sample.sample(handle, *sides, start, settings, Ports()))


def _encoded(handle: load.VaeHandle) -> Tensor:
    return handle.spec.normalise(vae.encode(handle, _random(*FRAMES).sigmoid(), Ports()))


def _decoded(handle: load.VaeHandle) -> Tensor:
    """Frames in -1..1."""
    return vae.decode(handle, handle.spec.denormalise(_random(*LATENT[:3], 8, 8)), Ports()) * 2 - 1


@dataclass(frozen=True, kw_only=True)
class Stage:
    """``run`` takes a handle of the model ``kind``."""

    kind: str
    run: Callable[..., Tensor]
    shapes: tuple[str, ...] = tuple(SHAPES)


STAGES: dict[str, Stage] = {
    "text encode": Stage(kind="umt5", run=_text),
    "CLIP vision encode": Stage(kind="clip_vision", run=_clip),
    "velocity": Stage(kind="dit", run=_velocity),
    "sampling": Stage(kind="dit", run=_sampled, shapes=("tiny",)),
    "VAE encode": Stage(kind="vae", run=_encoded),
    DECODE: Stage(kind="vae", run=_decoded),
}


def machine(device: torch.device) -> str:
    """The device in words."""
    name = f"CPU with {os.cpu_count()} cores" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return f"{name}, {'with' if has_bf16(device) else 'without'} native bf16, PyTorch {torch.__version__}"


def not_measured(device: torch.device) -> list[str]:
    """Lines of the policy that belong to another device."""
    here, other = ("cpu", "--device cuda") if device.type == "cpu" else ("gpu", "--device cpu")
    rows = [row for row in policy_table() if row[2] != here]
    return [f"not measured (needs {other}): {kind}, {file} on a {on}, native bf16 {native}, computes in {computed}"
            for kind, file, on, native, computed in rows]  # fmt: skip


def table(rows: list[Row]) -> list[str]:
    """Markdown: a line for each stage and file, a column for each shape and compute type. Bold: the policy's choice."""
    shapes = list(dict.fromkeys(row.shape for row in rows))
    cells = {(row.stage, row.stored, row.shape, row.computed): row for row in rows}
    heads = [f"{shape} {name}" for shape in shapes for name in (*REQUESTS, "largest")]
    lines = [f"| stage | file | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for stage, stored in dict.fromkeys((row.stage, row.stored) for row in rows):
        found = []
        for shape in shapes:
            row = [cells.get((stage, stored, shape, computed)) for computed in REQUESTS]
            chosen = next((one for one in row if one and one.by_policy), None)
            found += [_cell(one) for one in row] + [f"{chosen.largest_error:.1e}" if chosen else "-"]
        lines.append(f"| {stage} | {stored} | {' | '.join(found)} |")
    return lines


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    figure = "refused" if row.rms_error is None else f"{row.rms_error:.1e}"
    figure += f" ({row.psnr_db:.0f} dB)" if row.psnr_db is not None else ""
    return f"**{figure}**" if row.by_policy else figure


def references(rows: list[Row]) -> list[str]:
    """The size of what errors are relative to: neither vanishing nor exploding."""
    sizes = {(row.shape, row.stage): row.reference_rms for row in rows if row.reference_rms is not None}
    return [f"rms of the reference, {shape} {stage}: {size:.2f}" for (shape, stage), size in sizes.items()]


def _line(row: Row) -> str:
    return f"{row.shape} {row.stage}, {row.stored} file: {row.computed} {_cell(row)}"


if __name__ == "__main__":
    sys.exit(main())
