"""A LoRA teaches the nano family a colour that it never saw: trained from a folder of small MP4s, judged from pixels.

``python3 -m benchmarks.nano_lora [--json] [--out DIR] [--steps HIGH LOW]`` writes the folder, trains a LoRA on each
expert with the trainer's own command line, and judges the new colour and the old ones, with and without the LoRAs.
"""

import argparse
import csv
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.nano import prompts, scenes
from benchmarks.nano_run import Family, Files, Run, make, score
from scripts.nano import world
from scripts.nano.captions import caption
from wan_core.sampling.loras import constant
from wan_core.stages.load import ModelHandle
from wan_core.stages.lora import add_lora
from wan_core.training.__main__ import main as train
from wan_core.training.show import write_video

COLOR = "pink"
WORDS = world.COLORS | world.NEW_COLORS
FPS = 16
EXPERTS = {"high": ["--sigma", "0.875", "1"], "low": ["--sigma", "0", "0.875"]}


@dataclass(frozen=True, kw_only=True)
class Loras:
    """The trained files and how long each took."""

    paths: dict[str, Path]
    seconds: dict[str, float]


def write_folder(folder: Path) -> Path:
    """MP4s and ``metadata.csv``, as users have them: 120 clips of the new colour, and as many of the old ones, so that
    what is known stays known."""
    new, _ = world.of_new_color(COLOR)
    known = world.trained()
    learned = [*new, *(known[n * len(known) // len(new)] for n in range(len(new)))]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text"])
        for n, scene in enumerate(learned):
            write_video(world.render(scene, np.random.default_rng((4, n))), folder / f"{n:03}.mp4", FPS)
            table.writerow([f"{n:03}.mp4", caption(scene, template=n, variant=n // 4)])
    return folder


def train_both(files: Files, data: Path, out: Path, steps: dict[str, int], more: list[str]) -> Loras:
    """A LoRA on each expert, by the command that users type."""
    paths, seconds = {}, {}
    for side, sigma in EXPERTS.items():
        began = time.monotonic()
        command = ["lora", "--model", str(getattr(files, f"t2v_{side}")), "--vae", str(files.vae)]
        command += ["--text-encoder", str(files.text_encoder), "--data", str(data), "--out", str(out / side), *sigma]
        command += ["--cache", str(out / "clips.safetensors"), "--phases", f"17x16x{steps[side]}", *more]
        if code := train(command):
            raise SystemExit(code)
        paths[side], seconds[side] = out / side / "lora.safetensors", time.monotonic() - began
    return Loras(paths=paths, seconds=seconds)


def judged(family: Family, model: ModelHandle, old: int) -> dict[str, dict[str, float]]:
    """Adherence to prompts of the new colour and of ``old`` held-out scenes of the others."""
    _, new = world.of_new_color(COLOR)
    sets = {"new colour": new, "old scenes": scenes(old)}
    return {
        name: score(make(model, family.encoder, family.vae, prompts(chosen), Run()), chosen, WORDS)
        for name, chosen in sets.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="keep the folder, the runs and the LoRAs here")
    parser.add_argument("--steps", type=int, nargs=2, default=(300, 600), metavar=("HIGH", "LOW"))
    parser.add_argument("--old", type=int, default=120, help="prompts of old scenes, 1 to 240")
    parser.add_argument("--json", action="store_true")
    args, more = parser.parse_known_args()
    more = ["--lr", "2e-3", "--warmup", "20", *more]  # of an option that comes twice the last counts
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        files = Files()
        loras = train_both(files, write_folder(out / "data"), out, dict(zip(EXPERTS, args.steps)), more)
        family = Family(files=files)
        full = constant(1.0)
        worn = add_lora(
            family.t2v, loras.paths["high"], loras.paths["low"], strength=full, strength_low=full, strict=True,
            notify=lambda text: None,
        )  # fmt: skip
        report = {"without": judged(family, family.t2v, args.old), "with": judged(family, worn, args.old)}
        report["seconds"] = loras.seconds
    if args.json:
        print(json.dumps(report, indent=1))
        return
    for name in ("without", "with"):
        for what, rates in report[name].items():
            print(f"{name:8} {what:11}", "  ".join(f"{key} {value:.1f}" for key, value in rates.items()))
    print("training:", ", ".join(f"{side} {seconds:.0f} s" for side, seconds in loras.seconds.items()))


if __name__ == "__main__":
    main()
