"""ComfyUI's own Wan templates, converted to our nodes and executed.

``python3 -m benchmarks.templates [--templates WHEEL_OR_FOLDER] [--only TEXT] [--host 0.33.0] [--json]``

Takes every template of the package ``comfyui-workflow-templates-json`` that encodes its prompts with Wan's text encoder
(the installed package; a newer one: ``pip download --no-deps comfyui-workflow-templates-json``, then its wheel), and

- converts it as ``python3 -m wan_core.workflows`` does, and checks that the page form is consistent;
- runs the API form in a real ComfyUI, on tiny random models under the file names that the template asks for, 96x64
  pixels, 9 frames and 2 steps, with a drawn picture and a drawn video where it loads one;
- decodes what was saved.

Only templates of models that the pack does not have may miss. What a node of an online service would have made is
replaced by the drawn picture or a prompt, and said. The templates themselves are not part of this project.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zipfile
from dataclasses import asdict, dataclass, field
from importlib import metadata, util
from pathlib import Path

from scripts import api_client, setup_host, tiny_jobs, tiny_models
from scripts.host import Host
from wan_core.errors import WanError
from wan_core.workflows.convert import convert
from wan_core.workflows.file import parse
from wan_core.workflows.inline import from_page
from wan_core.workflows.page import is_page
from wan_core.workflows.rules import LOADERS, MODEL_LOADERS
from wan_core.workflows.runs import SAMPLERS
from wan_core.workflows.validate import problems

PACKAGE = "comfyui-workflow-templates-json"
WIDTH, HEIGHT, FRAMES, STEPS = 96, 64, 9, 2

# fmt: off
MODELS: dict[str, str] = {
    start: role
    for start, role in tiny_jobs.ROLES.items()
    if tiny_models.FILES[role].path.startswith("diffusion_models/")
} | {"Wan2_1-I2V-ATI-": "i2v", "Wan21-WanMove_": "i2v"}
"""How the names of the pack's models begin in templates -> the tiny file in their place (a key of tiny_models.FILES).
A template with another diffusion model is outside."""

ADD_ONS = {"WanInfiniteTalkToVideo": "InfiniteTalk"}
"""Nodes of a second network beside a model of ours."""

FOLDERS = {
    ("WanCoreLoadModel", "model_name"): "diffusion_models",
    ("WanCoreLoadModel", "low_noise_model"): "diffusion_models",
    ("WanCoreLoadTextEncoder", "text_encoder_name"): "text_encoders",
    ("WanCoreLoadVAE", "vae_name"): "vae",
    ("WanCoreLoadCLIPVision", "clip_vision_name"): "clip_vision",
    ("WanCoreLoRA", "lora_name"): "loras",
    ("WanCoreLoRA", "low_noise_lora"): "loras",
}
SMALL = {
    "width": WIDTH, "height": HEIGHT, "length": FRAMES, "frames": FRAMES, "num_frames": FRAMES, "batch_size": 1,
    "amount": FRAMES, "resize_type.width": WIDTH, "resize_type.height": HEIGHT, "resize_type.longer_size": WIDTH,
    "resize_type.shorter_size": HEIGHT, "resize_type.megapixels": 0.01, "megapixels": 0.01,
}  # fmt: skip
# fmt: on
TEXT = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "a red fox in snow"}}
STAND_INS = {
    "GeminiImageNode": {"class_type": "LoadImage", "inputs": {"image": None}},
    "GeminiNode": TEXT,
    "GeminiNodeV3": TEXT,
    "SAM3_Detect": {"class_type": "ImageToMask", "inputs": {"channel": "red"}, "kept": ("image",)},
}
"""Nodes of online services and of models that have nothing to do with Wan (a segmenter) -> what stands in for them,
with the inputs of the node itself that are ``kept``; None: the drawn picture."""
CHECKPOINT = "CheckpointLoaderSimple"
DONE, WAITING, OUTSIDE = "converted and executed", "converted, not executed", "outside"


@dataclass(kw_only=True)
class Row:
    """One template: what became of it and why."""

    name: str
    models: list[str] = field(default_factory=list)
    outside: str = ""
    """The model that the pack does not have."""
    outcome: str = ""
    why: str = ""
    converted: int = 0
    seconds: float = 0.0
    saved: list[str] = field(default_factory=list)


def templates(source: Path | None) -> tuple[str, dict[str, bytes]]:
    """Version and files of the package: a wheel, a folder, or what is installed."""
    if source is not None and source.is_file():
        with zipfile.ZipFile(source) as wheel:
            names = [name for name in wheel.namelist() if "/templates/" in name and name.endswith(".json")]
            return source.name, {Path(name).stem: wheel.read(name) for name in names}
    if source is None:
        found = util.find_spec(PACKAGE.replace("-", "_"))
        if found is None:
            raise SystemExit(f"{PACKAGE} is not installed: pip install it, or name a wheel with --templates.")
        source, version = Path(found.origin).parent, metadata.version(PACKAGE)
    else:
        version = str(source)
    return f"{PACKAGE} {version}", {path.stem: path.read_bytes() for path in sorted(source.rglob("*.json"))}


def wan_pages(files: dict[str, bytes], schemas: dict) -> dict[str, dict]:
    """The templates that use Wan's text encoder."""
    found = {}
    for name, content in sorted(files.items()):
        if b"CLIPLoader" not in content:
            continue
        document = parse(content, name)
        if is_page(document):
            nodes = from_page(document, schemas).nodes.values()
            if any(node.kind == "CLIPLoader" and node.value("type") == "wan" for node in nodes):
                found[name] = document
    return found


def look(row: Row, document: dict, schemas: dict) -> None:
    """Which diffusion models a template asks for, and whether the pack has them."""
    nodes = from_page(document, schemas).nodes.values()
    files = [str(node.value(MODEL_LOADERS[node.kind])) for node in nodes if node.kind in MODEL_LOADERS]
    row.models = sorted(set(files))
    foreign = [name for name in row.models if role(name) is None]
    foreign += sorted({ADD_ONS[node.kind] for node in nodes if node.kind in ADD_ONS})
    row.outside = ", ".join(foreign)


def role(name: str) -> str | None:
    """The tiny file in place of a diffusion model."""
    return next((role for start, role in MODELS.items() if name.startswith(start)), None)


def converted(row: Row, document: dict, schemas: dict) -> dict | None:
    """The API form on our nodes; None and a reason in the row where it is not all there."""
    try:
        page = convert(document, schemas=schemas)
        wrong = problems(page.document)
        prompt = convert(document, api=True, schemas=schemas).document
    except WanError as reason:
        row.outcome, row.why = "not converted", str(reason)
        return None
    row.converted = len(page.report.converted)
    native = {*MODEL_LOADERS, *SAMPLERS, *LOADERS}
    wrong += [f"{node['class_type']} {key} is native" for key, node in prompt.items() if node["class_type"] in native]
    wrong += page.report.kept
    if wrong:
        row.outcome, row.why = "not all converted", "; ".join(wrong)
        return None
    return prompt


def small(prompt: dict, image: str, video: str) -> dict:
    """The same graph at a small size."""
    made = {}
    for key, node in prompt.items():
        kind, inputs = node["class_type"], dict(node["inputs"])
        if kind in STAND_INS:
            stand_in = STAND_INS[kind]
            kind = stand_in["class_type"]
            inputs = stand_in["inputs"] | {name: inputs[name] for name in stand_in.get("kept", ())}
        if not isinstance(inputs.get("bit_depth", 8), int):
            del inputs["bit_depth"]  # of a newer Create Video than this host has
        inputs |= {name: value for name, value in SMALL.items() if name in inputs}
        if kind == "WanCoreSampler":
            inputs |= {"steps": STEPS, "start_step": 0, "end_step": 10000}
            inputs["switch_step"] = 1 if inputs.get("switch_step") else 0
        inputs |= {"LoadImage": {"image": image}, "LoadVideo": {"file": video}}.get(kind, {})
        made[key] = {"class_type": kind, "inputs": inputs}
    return made


def missing_roles(prompt: dict) -> list[str]:
    """Tiny files that this version of the project cannot make."""
    asked = {role(name) for kind, _, name in asked_files(prompt) if kind == "diffusion_models"}
    return sorted(str(name) for name in asked if name not in tiny_models.FILES)


def asked_files(prompt: dict) -> list[tuple[str, str, str]]:
    """(folder, input, name) of every model file in a graph."""
    found = []
    for node in prompt.values():
        for name, value in node["inputs"].items():
            folder = FOLDERS.get((node["class_type"], name))
            if folder and isinstance(value, str) and value not in ("none", "same"):
                found.append((folder, name, value))
    return found


def place(prompt: dict, tree: Path, tiny: dict[str, Path]) -> None:
    """Tiny files under the names that a graph asks for."""
    stands = {"text_encoders": "text_encoder", "clip_vision": "clip_vision", "loras": "lora"}
    for folder, _, name in asked_files(prompt):
        if folder == "diffusion_models":
            which = role(name)
        elif folder == "vae":
            which = "vae_22" if "2.2" in name else "vae"
        else:
            which = stands[folder]
        path = tree / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.hardlink_to(tiny[which])


def execute(row: Row, prompt: dict, url: str, folder: Path) -> None:
    """Run a graph and read what it saved."""
    began = time.monotonic()
    try:
        paths = api_client.download(url, api_client.run(url, prompt), folder)
        row.saved = [_read(path) for path in paths]
        wanted = sum(node["class_type"].startswith("Save") for node in prompt.values())
        row.outcome = DONE if row.saved and len(row.saved) == wanted else f"saved {len(row.saved)} of {wanted}"
    except (api_client.JobError, OSError, ValueError) as reason:
        row.outcome, row.why = "failed", str(reason)
    row.seconds = round(time.monotonic() - began, 1)


def _read(path: Path) -> str:
    """Name, frames and size of a saved picture or video; raises ValueError where it is one flat colour."""
    import numpy as np
    from PIL import Image, ImageSequence

    if path.suffix in (".webp", ".png", ".jpg"):
        with Image.open(path) as image:
            frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    else:
        frames = tiny_jobs.frames_of(path)
    if not frames or all(frame.std() == 0 for frame in frames):
        raise ValueError(f"{path.name} has no picture in it.")
    return f"{path.suffix[1:]} {frames[0].shape[1]}x{frames[0].shape[0]}x{len(frames)}"


def measure(files: dict[str, bytes], env: setup_host.HostEnv, only: str) -> list[Row]:
    """Every Wan template whose name holds ``only``, through the converter and through a ComfyUI."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "models"
        tiny = tiny_models.make(tree)
        with Host(env, Path(folder) / "host", models=tree) as host:
            schemas = {kind: {"input": {}} for kind in STAND_INS} | host.get("/object_info")
            image = api_client.upload(host.url, tiny_jobs.draw_image(Path(folder) / "picture.png"))
            video = api_client.upload(host.url, tiny_jobs.draw_video(Path(folder) / "video.mp4"))
            for name, document in wan_pages(files, schemas).items():
                if only not in name:
                    continue
                row = Row(name=name)
                rows.append(row)
                look(row, document, schemas)
                prompt = converted(row, document, schemas)
                if prompt is None:
                    continue
                lacking = missing_roles(prompt)
                if lacking:
                    row.outcome, row.why = WAITING, f"no tiny model: {', '.join(lacking)}"
                    continue
                strange = sorted({node["class_type"] for node in prompt.values()} - set(schemas))
                if strange:
                    row.outcome, row.why = WAITING, f"needs another pack: {', '.join(strange)}"
                    continue
                others = [node["inputs"]["ckpt_name"] for node in prompt.values() if node["class_type"] == CHECKPOINT]
                stood_for = sorted({node["class_type"] for node in prompt.values() if node["class_type"] in STAND_INS})
                if others and not stood_for:
                    row.outcome, row.why = WAITING, f"needs another model: {', '.join(sorted(map(str, others)))}"
                    continue
                place(prompt, tree, tiny)
                row.why = f"stand-ins for {', '.join(stood_for)}" if stood_for else ""
                execute(row, small(prompt, image, video), host.url, Path(folder) / "saved")
                sys.stderr.write(f"[templates] {name}: {row.outcome} {row.seconds} s {row.why}\n")
    return rows


def summary(package: str, env: setup_host.HostEnv, rows: list[Row]) -> dict:
    inside = [row for row in rows if not row.outside]
    done = [row for row in inside if row.outcome == DONE]
    waiting = [row for row in inside if row.outcome == WAITING]
    return {
        "package": package,
        "comfyui": env.version,
        "templates": len(rows),
        "outside": len(rows) - len(inside),
        "inside": len(inside),
        "converted and executed": len(done),
        "converted, not executed": len(waiting),
        "missed": len(inside) - len(done) - len(waiting),
        "pass": bool(rows) and len(inside) == len(done) + len(waiting),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path, help="a wheel of the package, or a folder with templates")
    parser.add_argument("--only", default="", metavar="TEXT", help="templates whose name holds this")
    parser.add_argument("--host", default="0.33.0", help="the version of ComfyUI (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    args = parser.parse_args()
    package, files = templates(args.templates)
    env = setup_host.find_host(args.host)
    rows = measure(files, env, args.only)
    found = summary(package, env, rows)
    if args.json:
        print(json.dumps({"summary": found, "rows": [asdict(row) for row in rows]}, indent=1))
        return 0 if found["pass"] else 1
    for row in rows:
        state = f"{OUTSIDE} ({row.outside})" if row.outside else row.outcome
        print(f"{row.name}: {state}" + (f"; {', '.join(row.saved)}; {row.seconds} s" if row.saved else ""))
        if row.why:
            print(f"    {row.why}")
    print(json.dumps(found))
    return 0 if found["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
