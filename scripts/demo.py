"""From a bare machine with Python and git to two videos: set-up, a ComfyUI host, a T2V and an I2V job.

    python3 scripts/demo.py
    python3 scripts/demo.py --prompt "A small blue triangle moves up on a gray background."
    python3 scripts/demo.py --comfyui ~/ComfyUI          your checkout, with the Python it already uses
    python3 scripts/demo.py --all                        every other example workflow too

The two jobs are the workflows of the nano models that come with the pack (docs/nano.md says what those have learned).
With --all the workflows of the real models run too, at small sizes and with the tiny checkpoints of
scripts/tiny_models.py, which have the official file layouts and random weights: their pictures are patterns, the path
from the prompt to the MP4 is the real one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import setup_host
from scripts.host import Host, stop_on_sigterm
from scripts.setup_host import VENV
from scripts.setup_steps import CACHE, ROOT, SetupError, venv_python
from scripts.tiny_jobs import Clip, Given, WrongResult, check_saved, draw_image, draw_video, tiny, tiny_page
from scripts.workflow_graphs import JOBS

WORKFLOWS = ROOT / "example_workflows"
OUTPUT = ROOT / "output"
INSIDE = "WAN_CORE_DEMO_SET_UP_S"  # set in the .venv's run: how long the set-up took
NANO = ("nano_t2v", "nano_i2v")  # trained; --all runs the others too, with random weights
NANO_CLIP = Clip(width=64, height=64, frames=17, steps=20)
CLIP = Clip(width=160, height=96, frames=33, steps=4)

# --- the run ---------------------------------------------------------------------------------------------------------


def load(name: str) -> tuple[dict, dict]:
    """The API form and the page form of a workflow."""
    api, page = WORKFLOWS / "api" / f"{name}.json", WORKFLOWS / f"{name}.json"
    return json.loads(api.read_text(encoding="utf-8")), json.loads(page.read_text(encoding="utf-8"))


def run_job(url: str, name: str, files: dict[str, Path], given: Given) -> dict:
    from scripts import api_client

    prompt, page = load(name)
    clip = NANO_CLIP if name in NANO else CLIP
    prompt = tiny(prompt, files, clip, given, name)
    page = tiny_page(page, prompt)
    words = next(n["inputs"]["positive"] for n in prompt.values() if n["class_type"] == "WanCoreTextEncode")
    print(f"[demo] {name}: {words}", flush=True)
    began = time.monotonic()
    history = api_client.run(url, prompt, page, api_client.progress_bar(prompt))
    took = time.monotonic() - began
    saved = api_client.download(url, history, OUTPUT)
    if len(saved) != 1:
        raise WrongResult(f"{name} saved {len(saved)} files instead of one.")
    return {**check_saved(saved[0], clip, prompt, page), "seconds": f"{took:.1f}"}


def run_demo(env: setup_host.HostEnv, args: argparse.Namespace) -> None:
    """The part inside .venv, which has torch and PyAV: the host, the jobs, the table."""
    from scripts import api_client, tiny_models

    began = time.monotonic()
    models, files = CACHE / "tiny_models", {}
    models.mkdir(parents=True, exist_ok=True)
    if args.all:
        print("[demo] making the tiny models (seeded random weights in the official file layouts)", flush=True)
        files = tiny_models.make(models)
    print("[demo] starting ComfyUI", flush=True)
    with Host(env, CACHE / "demo_host", models=models) as host:
        print(f"[demo] ComfyUI answers at {host.url} after {host.started_in_s:.1f} s; its log is {host.log_path}")
        given = Given(words=args.prompt)
        if args.all:
            image = api_client.upload(host.url, args.image or draw_image(CACHE / "wan_core_start.png"))
            video = api_client.upload(host.url, draw_video(CACHE / "wan_core_source.mp4"))
            given = Given(words=args.prompt, image=image, video=video)
        rows = [run_job(host.url, name, files, given) for name in JOBS if args.all or name in NANO]
        print_table(rows)
        took = time.monotonic() - began
        print(f"[demo] set-up {float(os.environ.get(INSIDE, 0)):.1f} s, run {took:.1f} s")
        if args.all:
            print("[demo] All but the nano models have random weights: their pictures are only patterns.")
        if args.keep_server:
            wait_for_interrupt(host)


def print_table(rows: list[dict]) -> None:
    columns = list(rows[0])
    widths = [max(len(str(row[name])) for row in (*rows, dict(zip(columns, columns)))) for name in columns]
    for row in (dict(zip(columns, columns)), *rows):
        print("  " + "  ".join(f"{row[name]!s:<{width}}" for name, width in zip(columns, widths)).rstrip())


def wait_for_interrupt(host: Host) -> None:
    print(f"[demo] the page is at {host.url}; Ctrl+C ends the server", flush=True)
    try:
        while host.running():
            time.sleep(0.5)
    except KeyboardInterrupt:
        print()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--prompt", metavar="TEXT", help="the positive prompt of both jobs (default: the workflows' own)"
    )
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="the picture that --all starts from (default: one drawn here)"
    )
    parser.add_argument(
        "--all", action="store_true", help="run every example workflow instead of the two with trained models"
    )
    parser.add_argument("--keep-server", action="store_true", help="leave ComfyUI running until Ctrl+C")
    setup_host.add_arguments(parser)
    args = parser.parse_args()
    if args.image is not None and not args.all:
        parser.error("--image goes with --all: the nano models know only pictures of their own world.")
    if args.image is not None and not args.image.is_file():
        parser.error(f"--image {args.image}: there is no such file.")
    return args


def main() -> int:
    args = parse()
    stop_on_sigterm()
    began = time.monotonic()
    try:
        env = setup_host.ensure_host(args.comfyui, args.python, args.install)
        if INSIDE in os.environ:
            run_demo(env, args)
            return 0
    except (SetupError, RuntimeError, OSError) as reason:
        print(f"[demo] {reason}", file=sys.stderr)
        return 1
    took = time.monotonic() - began
    setup_host.say(f"ready in {took:.1f} s")
    environ = {**os.environ, INSIDE: f"{took:.1f}"}
    return subprocess.call([venv_python(VENV), Path(__file__).resolve(), *sys.argv[1:]], env=environ)


if __name__ == "__main__":
    sys.exit(main())
