"""The example workflows at a tiny size with the files of tiny_models.py, and what they made read back.

Whatever a workflow's graph is, its files are told by their names and its sizes by the classes of its nodes.
"""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path

ROLES = {
    "wan2.2_t2v_lightx2v_": "lora",
    "wan2.2_i2v_lightx2v_": "lora",
    "Wan21_CausVid_": "lora",
    "wan2.1_t2v_": "t2v",
    "wan2.1_i2v_": "i2v",
    "wan2.1_flf2v_": "flf2v",
    "wan2.1_vace_": "vace",
    "wan2.1_fun_inp_": "fun_inp",
    "wan2.1_fun_control_": "fun_control",
    "wan2.1_fun_camera_": "fun_camera",
    "wan2.2_fun_inpaint_high_": "i2v_high",  # the same shapes
    "wan2.2_fun_inpaint_low_": "i2v_low",
    "wan2.2_fun_control_high_": "fun_control_high",
    "wan2.2_fun_control_low_": "fun_control_low",
    "wan2.2_fun_camera_high_": "fun_camera_high",
    "wan2.2_fun_camera_low_": "fun_camera_low",
    "wan2.2_fun_inpaint_5B_": "fun_inp_5b",
    "wan2.2_fun_control_5B_": "fun_control_5b",
    "wan2.2_t2v_high_": "t2v_high",
    "wan2.2_t2v_low_": "t2v_low",
    "wan2.2_i2v_high_": "i2v_high",
    "wan2.2_i2v_low_": "i2v_low",
    "wan2.2_ti2v_5B_": "ti2v",
    "Phantom-Wan-": "t2v",  # the same form
    "umt5_": "text_encoder",
    "wan_2.1_vae": "vae",
    "wan2.2_vae": "vae_22",
    "clip_vision_h": "clip_vision",
}
"""How a real file's name begins -> the tiny file (a key of tiny_models.FILES) in its place."""

BUNDLED = "wan_nano_"
"""How the names of the pack's own models begin: small enough to be used as they are."""

VIDEO_FPS = 20  # of draw_video: neither Wan's 16 nor the 5B's 24
VIDEO_FRAMES = 40


class WrongResult(RuntimeError):
    """A job did not give what was asked for; the message is a sentence."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What is asked of a job: pixels, frames, sampling steps."""

    width: int
    height: int
    frames: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a user brings: names in the host's input folder, and a prompt. None leaves the workflow's own."""

    words: str | None = None
    image: str | None = None
    video: str | None = None


# --- the tiny job ----------------------------------------------------------------------------------------------------


def tiny(prompt: dict, files: dict[str, Path], clip: Clip, given: Given, name: str) -> dict:
    """A copy of an API-form workflow with the tiny files, a small size and few steps; a picture stays one frame."""
    size = {"width": clip.width, "height": clip.height}
    overrides = {
        "WanCoreTextEncode": {"positive": given.words},
        "WanCoreEmptyLatent": size,
        "WanCoreImageToVideo": size,
        "WanCoreVace": size,
        "WanCoreFunControl": size,
        "WanCoreSubjectPictures": size,
        "WanCoreCameraPath": size,
        "WanCoreSampler": {"steps": clip.steps},
        "ImageScale": size,
        "ImageFromBatch": {"length": clip.frames},
        "LoadImage": {"image": given.image},
        "LoadVideo": {"file": given.video},
        "SaveVideo": {"filename_prefix": f"wan_core/{name}"},
        "SaveImage": {"filename_prefix": f"wan_core/{name}"},
    }
    small = copy.deepcopy(prompt)
    for node in small.values():
        inputs = node["inputs"]
        inputs |= {key: value for key, value in overrides.get(node["class_type"], {}).items() if value is not None}
        inputs |= {key: tiny_name(value, files) for key, value in inputs.items() if is_file(value)}
        if isinstance(inputs.get("frames"), int) and inputs["frames"] > 1:
            inputs["frames"] = clip.frames
    return small


def is_file(value: object) -> bool:
    return isinstance(value, str) and value.endswith(".safetensors")


def tiny_name(name: str, files: dict[str, Path]) -> str:
    if name.startswith(BUNDLED):
        return name
    role = next((role for start, role in ROLES.items() if name.startswith(start)), None)
    if role is None:
        raise WrongResult(f"No tiny file stands for {name}: name one in ROLES of {Path(__file__).name}.")
    return files[role].name


def tiny_page(page: dict, prompt: dict) -> dict:
    """A copy of the page form with the values of the API form, so that what is saved brings its own graph back."""
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
    picture(0).save(path)
    return path


def draw_video(path: Path) -> Path:
    """The same with a boat that moves: two seconds to make another video from."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=VIDEO_FPS)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for number in range(VIDEO_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_image(picture(4 * number))))
        container.mux(stream.encode())
    return path


def picture(boat: int):
    """640x480, the boat that many pixels further to the right."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (640, 480))
    draw = ImageDraw.Draw(image)
    for y in range(480):
        draw.line(
            [(0, y), (640, y)], fill=(40 + y // 4, 90 + y // 5, 200) if y < 300 else (10, 60, 140 - (y - 300) // 3)
        )
    draw.ellipse([400, 80, 500, 180], fill=(255, 220, 90))
    draw.polygon([(x + boat, y) for x, y in ((180, 300), (300, 300), (270, 340), (210, 340))], fill=(190, 40, 40))
    return image


# --- reading back ----------------------------------------------------------------------------------------------------


def wanted_fps(prompt: dict) -> float:
    """The rate that the workflow asks CreateVideo for: a number, the source video's, or the model's own."""
    (fps,) = [node["inputs"]["fps"] for node in prompt.values() if node["class_type"] == "CreateVideo"]
    if not isinstance(fps, list):
        return float(fps)
    if prompt[fps[0]]["class_type"] == "GetVideoComponents":
        return float(VIDEO_FPS)
    return 24.0 if any("2.2" in node["inputs"].get("vae_name", "") for node in prompt.values()) else 16.0


def bare_graph(prompt: dict) -> dict:
    """An API-form graph without what the host and the page note beside a node's class and inputs."""
    return {node_id: (node["class_type"], node["inputs"]) for node_id, node in prompt.items()}


def check_saved(path: Path, clip: Clip, prompt: dict, workflow: dict) -> dict:
    """Decodes a whole video or picture and compares it with what was asked for; returns its figures.

    Raises WrongResult with both sides.
    """
    picture_asked = path.suffix == ".png"
    frames, fps, metadata = (_read_picture if picture_asked else _read_video)(path)
    asked = {
        "frames": 1 if picture_asked else clip.frames,
        "size": f"{clip.width}x{clip.height}",
        "fps": None if picture_asked else wanted_fps(prompt),
        "prompt in the metadata": True,
        "workflow in the metadata": True,
    }
    height, width = frames[0].shape[:2] if frames else (0, 0)
    found = {
        "frames": len(frames),
        "size": f"{width}x{height}",
        "fps": fps,
        "prompt in the metadata": bare_graph(json.loads(metadata.get("prompt", "{}"))) == bare_graph(prompt),
        "workflow in the metadata": json.loads(metadata.get("workflow", "null")) == workflow,
    }
    wrong = [f"{name}: {found[name]}, asked for {asked[name]}" for name in asked if found[name] != asked[name]]
    if not wrong and all(frame.std() == 0 for frame in frames):
        wrong.append("every frame is one flat colour")
    if wrong:
        raise WrongResult(f"{path.name} is not what was asked for: {'; '.join(wrong)}.")
    return {
        "file": os.path.relpath(path),
        "frames": len(frames),
        "size": found["size"],
        "fps": "" if fps is None else f"{fps:g}",
    }


def frames_of(path: Path) -> list:
    """All frames of a video, uint8 ``[H, W, 3]`` each."""
    return _read_video(path)[0]


def _read_video(path: Path) -> tuple[list, float, dict]:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return frames, float(stream.average_rate), dict(container.metadata)


def _read_picture(path: Path) -> tuple[list, None, dict]:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return [np.asarray(image.convert("RGB"))], None, dict(image.info)
