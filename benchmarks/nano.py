"""Has the nano family learned what Wan's parts are for? Judged from pixels, on combinations never trained on.

``python3 -m benchmarks.nano [--json] [--only judge vae t2v i2v parts same] [--prompts 240]``
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.nano_judge import judge
from benchmarks.nano_run import Family, Files, Run, make, psnr, score
from scripts.nano import world
from scripts.nano.captions import caption
from wan_core.training.vae_task import to_video

Report = dict[str, float | dict[str, float]]


def scenes(count: int) -> list[world.Scene]:
    """``count`` of the held-out scenes, evenly."""
    held = world.held_out()
    return [held[i * len(held) // count] for i in range(count)]


def prompts(chosen: list[world.Scene], language: str = "en") -> list[str]:
    """A caption of each scene: templates and synonyms in turn."""
    return [caption(scene, language, template=n, variant=n // 4) for n, scene in enumerate(chosen)]


def drawn(chosen: list[world.Scene]) -> np.ndarray:
    """The scenes as the renderer has them, a little different from each other."""
    return np.stack([world.render(scene, np.random.default_rng((9, n))) for n, scene in enumerate(chosen)])


def check_judge(family: Family, count: int) -> Report:
    """The judge on rendered truth, and on truth with the captions of other clips."""
    chosen = scenes(count)
    truth = drawn(chosen)
    other = [chosen[i] for i in np.random.default_rng(0).permutation(count)]
    return {"truth": score(truth, chosen), "shuffled": score(truth, other)}


@torch.no_grad()
def check_vae(family: Family, count: int) -> Report:
    """Unseen clips through the VAE."""
    chosen = scenes(min(count, 96))
    truth, network = drawn(chosen), family.vae.weights.module
    back = np.concatenate([_back(network, truth[i : i + 8]) for i in range(0, len(truth), 8)])
    return {"psnr": psnr(truth, back), "judged": score(back, chosen)}


def _back(network, clips: np.ndarray) -> np.ndarray:
    video = network.decode(network.encode(to_video(clips)))
    return ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()


def check_t2v(family: Family, count: int) -> Report:
    """Prompts of unseen combinations, English and Chinese."""
    chosen = scenes(count)
    model, encoder, vae = family.t2v, family.encoder, family.vae
    report: Report = {}
    for language in ("en", "zh"):
        began = time.monotonic()
        clips = make(model, encoder, vae, prompts(chosen, language), Run())
        report[language] = score(clips, chosen) | {"seconds": time.monotonic() - began}
    return report


def check_i2v(family: Family, count: int) -> Report:
    """First frames of unseen combinations and their captions; and the first frames of other scenes."""
    chosen = scenes(count)
    model, encoder, vae = family.i2v, family.encoder, family.vae
    truth = drawn(chosen)
    clips = make(model, encoder, vae, prompts(chosen), Run(), images=truth[:, 0])
    report: Report = {"own": score(clips, chosen) | {"first_frame_psnr": psnr(truth[:, :1], clips[:, :1])}}
    # The picture of another scene: the clip shows the picture, moving as the words say.
    some = min(count, 48)
    other = np.roll(truth[:, 0], 7, axis=0)[:some]
    shown = make(model, encoder, vae, prompts(chosen)[:some], Run(), images=other)
    seen = [judge(clip) for clip in shown]
    report["other_image"] = {
        "psnr_to_given": psnr(other[:, None], shown[:, :1]),
        "psnr_to_own": psnr(truth[:some, :1], shown[:, :1]),
        "color_of_given": share(a.color == judge(b[None]).color for a, b in zip(seen, other)),
        "motion_of_words": share(a.motion == b.motion for a, b in zip(seen, chosen)),
    }
    return report


def share(hits: Iterable[bool]) -> float:
    """Percent."""
    return 100 * float(np.mean(list(hits)))


def check_parts(family: Family, count: int) -> Report:
    """What guidance, the two experts and the prompt do."""
    chosen = scenes(min(count, 120))
    words = prompts(chosen)
    encoder, vae, files = family.encoder, family.vae, family.files
    report: Report = {
        f"guidance_{scale:g}": score(make(family.t2v, encoder, vae, words, Run(guidance=scale)), chosen)
        for scale in (1.0, 5.0)
    }
    report["empty_prompt"] = score(make(family.t2v, encoder, vae, [""] * len(words), Run()), chosen)
    if files.t2v_low is not None:
        swapped = family.model(files.t2v_low, files.t2v_high)
        report["experts_swapped"] = score(make(swapped, encoder, vae, words, Run()), chosen)
    return report


def check_same(family: Family, count: int) -> Report:
    """The same seed twice."""
    words = prompts(scenes(8))
    first, second = (make(family.t2v, family.encoder, family.vae, words, Run()) for _ in range(2))
    return {"equal": float(np.array_equal(first, second))}


CHECKS: dict[str, Callable[[Family, int], Report]] = {
    "judge": check_judge,
    "vae": check_vae,
    "t2v": check_t2v,
    "parts": check_parts,
    "i2v": check_i2v,
    "same": check_same,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    parser.add_argument("--prompts", type=int, default=240, help="1 to 240, one of each held-out scene")
    parser.add_argument("--json", action="store_true")
    for name in vars(Files()):
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, help="another file in its place")
    args = parser.parse_args()
    if not 1 <= args.prompts <= len(world.held_out()):
        parser.error(f"--prompts {args.prompts}: there are {len(world.held_out())} held-out scenes.")
    given = {name: getattr(args, name) for name in vars(Files()) if getattr(args, name) is not None}
    given |= {low: None for low in ("t2v_low", "i2v_low") if low.replace("low", "high") in given and low not in given}
    family = Family(files=replace(Files(), **given))
    reports = {}
    for name in args.only:
        reports[name] = CHECKS[name](family, args.prompts)
        if not args.json:
            print(f"{name}: {CHECKS[name].__doc__}")
            for row, values in reports[name].items():
                shown = values if isinstance(values, dict) else {"": values}
                print(f"  {row:16}" + "  ".join(f"{key} {value:.1f}" for key, value in shown.items()), flush=True)
    if args.json:
        print(json.dumps(reports, indent=1))


if __name__ == "__main__":
    main()
