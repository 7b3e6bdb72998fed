"""Train the nano family: one command a file, each of which goes on where it was stopped.

``python3 -m scripts.nano.train [vae t2v t2v_high t2v_low i2v i2v_high i2v_low]`` runs those (default: all, in this
order) in ``runs/nano``; ``--show`` prints the commands instead, ``--install`` puts what they made into ``models``.
Times on two cores: docs/nano.md.
"""

import argparse
import shlex
import shutil
import sys
from pathlib import Path

from scripts.nano import start
from wan_core.training.__main__ import main as train

RUNS = Path("runs/nano")
VAE = RUNS / "vae" / "vae.safetensors"
TEXT = RUNS / "t2v" / "text_encoder.safetensors"
CLIPS = ["--data", "scripts.nano.clips:trained", "--held", "scripts.nano.clips:held_out"]
EXPERT = ["--lr", "3e-4", "--warmup", "50"]
LONGER = ["--lr", "1e-3", "--warmup", "50"]
HIGH_T2V, LOW_T2V = ["--sigma", "0.875", "1"], ["--sigma", "0", "0.875"]
HIGH_I2V, LOW_I2V = ["--sigma", "0.9", "1"], ["--sigma", "0", "0.9"]


def dit(model: Path, *more: str, text: Path = TEXT) -> list[str]:
    files = ["--model", str(model), "--vae", str(VAE), "--text-encoder", str(text)]
    return ["dit", *files, *CLIPS, "--cache", str(RUNS / "clips.safetensors"), *more]


START_DIT, START_TEXT = RUNS / "start" / "start_dit.safetensors", RUNS / "start" / "start_text_encoder.safetensors"
T2V, START_I2V, I2V = (
    RUNS / "t2v" / "dit.safetensors",
    RUNS / "start" / "start_i2v.safetensors",
    RUNS / "i2v" / "dit.safetensors",
)
PHASES = ["--phases", "9x32x1500", "17x32x2000"]

RECIPE: dict[str, list[str]] = {
    "vae": [
        "vae", "--data", "scripts.nano.clips:for_vae", "--held", "scripts.nano.clips:held_out", "--compile",
        "--phases", "1x16x1500", "5x4x1200", "9x3x800", "--lr", "3e-3", "--weight-decay", "0", "--sample-every", "250",
    ],
    "t2v": dit(START_DIT, "--train-text-encoder", *PHASES, text=START_TEXT),
    "t2v_high": dit(T2V, *LONGER, "--phases", "17x32x700", *HIGH_T2V),
    "t2v_low": dit(T2V, *LONGER, "--phases", "17x32x1200", *LOW_T2V),
    "i2v": dit(START_I2V, "--phases", "17x32x1000", "--lr", "8e-4"),
    "i2v_high": dit(I2V, *EXPERT, "--phases", "17x32x400", *HIGH_I2V),
    "i2v_low": dit(I2V, *LONGER, "--phases", "17x32x700", *LOW_I2V),
}  # fmt: skip


PLACES = {
    "diffusion_models/wan_nano_t2v_high_noise": RUNS / "t2v_high" / "dit.safetensors",
    "diffusion_models/wan_nano_t2v_low_noise": RUNS / "t2v_low" / "dit.safetensors",
    "text_encoders/wan_nano_umt5": TEXT,
    "vae/wan_nano_vae": VAE,
}
"""Where a file of the family goes, and which run made it. The image models are not ready yet (docs/nano.md)."""


def install(models: Path) -> None:
    """Copy the family to where the pack's loaders find it."""
    missing = [str(source) for source in PLACES.values() if not source.is_file()]
    if missing:
        raise SystemExit(f"Not trained yet: {', '.join(missing)}. Nothing was copied.")
    for name, source in PLACES.items():
        target = models / f"{name}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        print(target, f"{target.stat().st_size / 1e6:.2f} MB")


def prepare(name: str) -> None:
    """Write the untrained file that a training begins with."""
    if name == "t2v":
        start.write_t2v(START_DIT.parent)
    if name == "i2v":
        if not T2V.is_file():
            raise SystemExit(f"{T2V} is not there: train t2v first.")
        start.write_i2v(T2V, START_I2V)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPE)} (default: all)")
    parser.add_argument("--show", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--install", action="store_true", help="copy the trained files into models/, run nothing")
    args = parser.parse_args()
    if args.install:
        install(Path("models"))
        return 0
    unknown = [name for name in args.names if name not in RECIPE]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; choose from {', '.join(RECIPE)}")
    for name in args.names or RECIPE:
        arguments = [*RECIPE[name], "--out", str(RUNS / name)]
        print(f"# {name}\npython3 -m wan_core.training {shlex.join(arguments)}", flush=True)
        if args.show:
            continue
        prepare(name)
        if code := train(arguments):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
