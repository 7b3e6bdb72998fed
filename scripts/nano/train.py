"""Train the nano family: one command a file, each of which goes on where it was stopped.

``python3 -m scripts.nano.train [vae t2v t2v_high t2v_low i2v_high i2v_low]`` runs those (default: all, in this
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
T2V = RUNS / "t2v" / "dit.safetensors"
START_DIT, START_TEXT = RUNS / "start" / "start_dit.safetensors", RUNS / "start" / "start_text_encoder.safetensors"
START_I2V = {expert: RUNS / "start" / f"start_i2v_{expert}.safetensors" for expert in ("high", "low")}
HELD = ["--held", "scripts.nano.clips:held_out"]
PHASES = ["--phases", "9x32x1500", "17x32x2000"]
FURTHER = ["--lr", "1e-3", "--warmup", "50"]
HIGH_T2V, LOW_T2V = ["--sigma", "0.875", "1"], ["--sigma", "0", "0.875"]
HIGH_I2V, LOW_I2V = ["--sigma", "0.9", "1"], ["--sigma", "0", "0.9"]


def dit(model: Path, *more: str, clips: str = "trained", text: Path = TEXT) -> list[str]:
    files = ["--model", str(model), "--vae", str(VAE), "--text-encoder", str(text)]
    data = ["--data", f"scripts.nano.clips:{clips}", *HELD, "--cache", str(RUNS / f"{clips}.safetensors")]
    return ["dit", *files, *data, *more]


RECIPE: dict[str, list[str]] = {
    "vae": [
        "vae", "--data", "scripts.nano.clips:for_vae", *HELD, "--compile",
        "--phases", "1x16x1500", "5x4x1200", "9x3x800", "--lr", "3e-3", "--weight-decay", "0", "--sample-every", "250",
    ],
    "t2v": dit(START_DIT, "--train-text-encoder", *PHASES, text=START_TEXT),
    "t2v_high": dit(T2V, *FURTHER, "--phases", "17x32x700", *HIGH_T2V),
    "t2v_low": dit(T2V, *FURTHER, "--phases", "17x32x1200", *LOW_T2V),
    "i2v_high": dit(START_I2V["high"], *FURTHER, "--phases", "17x32x700", *HIGH_I2V, clips="with_pictures"),
    "i2v_low": dit(START_I2V["low"], *FURTHER, "--phases", "17x32x2400", *LOW_I2V, clips="with_pictures"),
}  # fmt: skip


PLACES = {
    "diffusion_models/wan_nano_t2v_high_noise": RUNS / "t2v_high" / "dit.safetensors",
    "diffusion_models/wan_nano_t2v_low_noise": RUNS / "t2v_low" / "dit.safetensors",
    "diffusion_models/wan_nano_i2v_high_noise": RUNS / "i2v_high" / "dit.safetensors",
    "diffusion_models/wan_nano_i2v_low_noise": RUNS / "i2v_low" / "dit.safetensors",
    "text_encoders/wan_nano_umt5": TEXT,
    "vae/wan_nano_vae": VAE,
}
"""Where a file of the family goes, and which run made it."""


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
    kind, _, expert = name.partition("_")
    if kind == "i2v":
        t2v = RUNS / f"t2v_{expert}" / "dit.safetensors"
        if not t2v.is_file():
            raise SystemExit(f"{t2v} is not there: train t2v_{expert} first.")
        start.write_i2v(t2v, START_I2V[expert])


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
