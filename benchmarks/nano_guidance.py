"""What extras of guidance do on the nano family: how many clips show what their prompt says, with and without each.

Two questions. *Follows*: prompts of scenes never trained on, an empty negative prompt. *Avoids*: no prompt at all, and
a scene's caption as the negative prompt: how often does the clip show that scene's colour and motion all the same?

``python3 -m benchmarks.nano_guidance [--json] [--scenes 48] [--only follows avoids]``
"""

import argparse
import json
import time
from collections.abc import Callable

from benchmarks.nano import prompts, scenes
from benchmarks.nano_run import Family, Files, Run, make, score
from wan_core.stages import guidance
from wan_core.stages.load import ModelHandle

Extra = Callable[[ModelHandle], ModelHandle]
STEPS = 10
"""Half of what the models are used with, so that there is something to gain."""
MIDDLE = "2"
"""A block in the middle of the nano models' six."""


def nothing(model: ModelHandle) -> ModelHandle:
    return model


def over(text: str) -> Extra:
    return lambda model: guidance.guidance_over_steps(model, text)


def star(rescale: bool, zero_steps: int) -> Extra:
    return lambda model: guidance.cfg_zero_star(model, rescale, zero_steps)


def skip(scale: float) -> Extra:
    return lambda model: guidance.skip_blocks(model, MIDDLE, 0.1, 1.0, scale)


def nag(scale: float = 11.0, tau: float = 2.5, alpha: float = 0.25) -> Extra:
    return lambda model: guidance.nag(model, scale, tau, alpha)


FOLLOWS: dict[str, tuple[float, Extra]] = {
    "guidance 3": (3.0, nothing),
    "3, then 1 from half-way": (3.0, over("0%: 3, 50%: 1")),
    "3, CFG-Zero* rescale": (3.0, star(True, 0)),
    "3, CFG-Zero* rescale, 1 zero step": (3.0, star(True, 1)),
    "3, block 2 skipped in the negative pass": (3.0, skip(0.0)),
    "3, block 2 skipped in a pass more, scale 1": (3.0, skip(1.0)),
    "3, NAG": (3.0, nag()),
    "guidance 1": (1.0, nothing),
    "1, block 2 skipped in a pass more, scale 1": (1.0, skip(1.0)),
    "1, NAG": (1.0, nag()),
}
"""Guidance of the run, and what is added."""
AVOIDS: dict[str, tuple[float, Extra]] = {
    "guidance 1": (1.0, nothing),
    "1, NAG": (1.0, nag()),
    "1, NAG, alpha 0.5": (1.0, nag(alpha=0.5)),
    "guidance 3": (3.0, nothing),
}


def passes(extra: Extra, scale: float, model: ModelHandle) -> int:
    """Predictions in a run."""
    options = extra(model).guidance
    return sum(options.at(step, STEPS, scale).passes for step in range(STEPS))


def measure(
    family: Family, count: int, table: dict[str, tuple[float, Extra]], against: bool, told: Callable[[str], None]
) -> dict[str, dict]:
    """A row for each entry, told when it is done: rates in percent, passes of a run, and seconds.

    Args:
        against: captions are negative prompts and there is no prompt; else they are the prompts.
    """
    chosen = scenes(count)
    words = prompts(chosen)
    sides = ([""] * count, words) if against else (words, None)
    report = {}
    for name, (scale, extra) in table.items():
        model = family.t2v
        began = time.monotonic()
        run = Run(guidance=scale, steps=STEPS)
        clips = make(extra(model), family.encoder, family.vae, sides[0], run, negatives=sides[1])
        rates = score(clips, chosen)
        report[name] = rates | {"passes": passes(extra, scale, model), "seconds": time.monotonic() - began}
        told(f"  {name:44}" + "  ".join(f"{key} {value:.1f}" for key, value in report[name].items()))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=48, help="1 to 240 of the held-out scenes")
    parser.add_argument("--only", nargs="+", choices=["follows", "avoids"], default=["follows", "avoids"])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not 1 <= args.scenes <= 240:
        parser.error(f"--scenes {args.scenes}: there are 240 held-out scenes.")
    family, reports = Family(files=Files()), {}

    def told(text: str) -> None:
        if not args.json:
            print(text, flush=True)

    for name in args.only:
        told(name)
        table = {"follows": FOLLOWS, "avoids": AVOIDS}[name]
        reports[name] = measure(family, args.scenes, table, against=name == "avoids", told=told)
    if args.json:
        print(json.dumps(reports, indent=1))


if __name__ == "__main__":
    main()
