"""From a bare machine with Python and git to two videos: set-up, a ComfyUI host, a T2V and an I2V job.

    python3 scripts/demo.py
    python3 scripts/demo.py --prompt "a red kite over the sea" --image photo.jpg
    python3 scripts/demo.py --comfyui ~/ComfyUI          your checkout, with the Python it already uses

The jobs are the workflows of example_workflows/api with small sizes and the tiny checkpoints of scripts/tiny_models.py.
Those have the official file layouts and random weights, so the pictures are patterns; the path from the prompt to the
MP4 is the one that the real files take.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import setup_host
from scripts.host import Host, stop_on_sigterm
from scripts.setup_host import VENV
from scripts.setup_steps import CACHE, ROOT, SetupError, venv_python

WORKFLOWS = ROOT / "example_workflows"
OUTPUT = ROOT / "output"
INSIDE = "WAN_CORE_DEMO_SET_UP_S"  # set in the .venv's run: how long the set-up took


class DemoError(RuntimeError):
    """A job did not give what was asked for; the message is a sentence."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A workflow of example_workflows/api, and the tiny files in place of the real ones (keys of tiny_models)."""

    workflow: str
    model: str
    low_noise_model: str | None = None


JOBS = (
    Job(workflow="wan2.1_t2v", model="t2v"),
    Job(workflow="wan2.1_i2v", model="i2v"),
    Job(workflow="wan2.2_t2v_a14b", model="t2v_high", low_noise_model="t2v_low"),
    Job(workflow="wan2.2_i2v_a14b", model="i2v_high", low_noise_model="i2v_low"),
)
SHORT = ("wan2.1_t2v", "wan2.2_i2v_a14b")  # one of each kind; --all runs the others too


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What is asked of a job: pixels, frames, sampling steps."""

    width: int
    height: int
    frames: int
    steps: int


CLIP = Clip(width=160, height=96, frames=33, steps=4)
MODEL_FPS = 16.0  # of every model in JOBS


# --- the tiny job ----------------------------------------------------------------------------------------------------


def tiny(
    prompt: dict, job: Job, files: dict[str, Path], clip: Clip, words: str | None = None, image: str | None = None
) -> dict:
    """A copy of an API-form workflow with the tiny files, a small size and few steps, set by node class."""
    size = {"width": clip.width, "height": clip.height, "frames": clip.frames}
    names = {"model_name": files[job.model].name}
    if job.low_noise_model is not None:
        names["low_noise_model"] = files[job.low_noise_model].name
    overrides = {
        "WanCoreLoadModel": names,
        "WanCoreLoadTextEncoder": {"text_encoder_name": files["text_encoder"].name},
        "WanCoreLoadVAE": {"vae_name": files["vae"].name},
        "WanCoreLoadCLIPVision": {"clip_vision_name": files["clip_vision"].name},
        "WanCoreTextEncode": {} if words is None else {"positive": words},
        "WanCoreEmptyLatent": size,
        "WanCoreImageToVideo": size,
        "WanCoreSampler": {"steps": clip.steps},
        "LoadImage": {} if image is None else {"image": image},
        "SaveVideo": {"filename_prefix": f"wan_core/{job.workflow}"},
    }
    small = copy.deepcopy(prompt)
    for node in small.values():
        node["inputs"] |= overrides.get(node["class_type"], {})
    return small


def tiny_page(page: dict, prompt: dict) -> dict:
    """A copy of the page form with the values of the API form, so that the saved video brings its own graph back."""
    small = copy.deepcopy(page)
    for node in small["nodes"]:
        inputs = prompt.get(str(node["id"]), {}).get("inputs", {})
        names = [slot["name"] for slot in node.get("inputs", []) if "widget" in slot]
        values = node.get("widgets_values")
        if not isinstance(values, list):
            continue
        index = 0
        for name in names:
            if index < len(values) and name in inputs and not isinstance(inputs[name], list):
                values[index] = inputs[name]
            index += 2 if name == "seed" else 1  # the widget "control after generate" follows a seed, without a slot
    return small


def draw_image(path: Path) -> Path:
    """A sky, a sea and a sun: something with a gradient, an edge and a disc to start a video from."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (640, 480))
    draw = ImageDraw.Draw(picture)
    for y in range(480):
        draw.line(
            [(0, y), (640, y)], fill=(40 + y // 4, 90 + y // 5, 200) if y < 300 else (10, 60, 140 - (y - 300) // 3)
        )
    draw.ellipse([400, 80, 500, 180], fill=(255, 220, 90))
    draw.polygon([(180, 300), (300, 300), (270, 340), (210, 340)], fill=(190, 40, 40))
    picture.save(path)
    return path


# --- reading a video back --------------------------------------------------------------------------------------------


def wanted_fps(prompt: dict) -> float:
    """The rate that the workflow asks CreateVideo for: a number, or a wire, which carries the model's own."""
    (fps,) = [node["inputs"]["fps"] for node in prompt.values() if node["class_type"] == "CreateVideo"]
    return MODEL_FPS if isinstance(fps, list) else float(fps)


def bare_graph(prompt: dict) -> dict:
    """An API-form graph without what the host and the page note beside a node's class and inputs."""
    return {node_id: (node["class_type"], node["inputs"]) for node_id, node in prompt.items()}


def check_video(path: Path, clip: Clip, prompt: dict, workflow: dict) -> dict:
    """Decodes the whole file and compares it with what was asked for. Raises DemoError with both sides."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        fps, metadata = float(stream.average_rate), dict(container.metadata)
    height, width = pictures[0].shape[:2] if pictures else (0, 0)
    pairs = {
        "frames": (len(pictures), clip.frames),
        "size": (f"{width}x{height}", f"{clip.width}x{clip.height}"),
        "fps": (fps, wanted_fps(prompt)),
        "prompt in the metadata": (bare_graph(json.loads(metadata.get("prompt", "{}"))) == bare_graph(prompt), True),
        "workflow in the metadata": (json.loads(metadata.get("workflow", "null")) == workflow, True),
    }
    wrong = [f"{name}: {found}, asked for {asked}" for name, (found, asked) in pairs.items() if found != asked]
    if not wrong and all(picture.std() == 0 for picture in pictures):
        wrong.append("every frame is one flat colour")
    if wrong:
        raise DemoError(f"{path.name} is not what was asked for: {'; '.join(wrong)}.")
    return {
        "file": os.path.relpath(path),
        "frames": len(pictures),
        "size": f"{width}x{height}",
        "fps": f"{fps:g}",
    }


# --- the run ---------------------------------------------------------------------------------------------------------


def load(job: Job) -> tuple[dict, dict]:
    """The API form and the page form of a job's workflow."""
    api, page = WORKFLOWS / "api" / f"{job.workflow}.json", WORKFLOWS / f"{job.workflow}.json"
    return json.loads(api.read_text(encoding="utf-8")), json.loads(page.read_text(encoding="utf-8"))


def run_job(url: str, job: Job, files: dict[str, Path], args: argparse.Namespace, image: str) -> dict:
    from scripts import api_client

    prompt, page = load(job)
    prompt = tiny(prompt, job, files, CLIP, args.prompt, image)
    page = tiny_page(page, prompt)
    print(f"[demo] {job.workflow}: {CLIP.width}x{CLIP.height}, {CLIP.frames} frames, {CLIP.steps} steps", flush=True)
    began = time.monotonic()
    history = api_client.run(url, prompt, page, api_client.progress_bar(prompt))
    took = time.monotonic() - began
    saved = api_client.download(url, history, OUTPUT)
    if len(saved) != 1:
        raise DemoError(f"{job.workflow} saved {len(saved)} files instead of one video.")
    return {**check_video(saved[0], CLIP, prompt, page), "seconds": f"{took:.1f}"}


def run_demo(env: setup_host.HostEnv, args: argparse.Namespace) -> None:
    """The part inside .venv, which has torch and PyAV: tiny models, the host, the jobs, the table."""
    from scripts import api_client, tiny_models

    began = time.monotonic()
    models = CACHE / "tiny_models"
    print("[demo] making the tiny models (seeded random weights in the official file layouts)", flush=True)
    files = tiny_models.make(models)
    print("[demo] starting ComfyUI", flush=True)
    with Host(env, CACHE / "demo_host", models=models) as host:
        print(f"[demo] ComfyUI answers at {host.url} after {host.started_in_s:.1f} s; its log is {host.log_path}")
        image = api_client.upload(host.url, args.image or draw_image(CACHE / "wan_core_start.png"))
        rows = [run_job(host.url, job, files, args, image) for job in JOBS if args.all or job.workflow in SHORT]
        print_table(rows)
        took = time.monotonic() - began
        print(f"[demo] set-up {float(os.environ.get(INSIDE, 0)):.1f} s, run {took:.1f} s")
        print(
            "[demo] The weights are random, so the pictures are only patterns until trained weights take their place."
        )
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
        "--image", type=Path, metavar="FILE", help="the picture to start from (default: one drawn here)"
    )
    parser.add_argument("--all", action="store_true", help="run all four workflows instead of two")
    parser.add_argument("--keep-server", action="store_true", help="leave ComfyUI running until Ctrl+C")
    setup_host.add_arguments(parser)
    args = parser.parse_args()
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
    except (SetupError, DemoError, RuntimeError, OSError) as reason:
        print(f"[demo] {reason}", file=sys.stderr)
        return 1
    took = time.monotonic() - began
    setup_host.say(f"ready in {took:.1f} s")
    environ = {**os.environ, INSIDE: f"{took:.1f}"}
    return subprocess.call([venv_python(VENV), Path(__file__).resolve(), *sys.argv[1:]], env=environ)


if __name__ == "__main__":
    sys.exit(main())
