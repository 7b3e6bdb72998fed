"""The demo's own parts: the tiny job and the reading back of a video."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from scripts import demo
from scripts.demo import Clip, DemoError, Job

FILES = {name: Path(f"/m/{name}.safetensors") for name in ("high", "low", "text_encoder", "vae", "clip_vision")}
CLIP = Clip(width=64, height=48, frames=9, steps=2)
JOB = Job(workflow="pair", model="high", low_noise_model="low")


def prompt_of_a_pair() -> dict:
    return {
        "1": {"class_type": "WanCoreLoadModel", "inputs": {"model_name": "big_high", "low_noise_model": "big_low"}},
        "2": {"class_type": "WanCoreTextEncode", "inputs": {"positive": "a boat", "clip": ["9", 0]}},
        "3": {"class_type": "WanCoreEmptyLatent", "inputs": {"width": 832, "height": 480, "frames": 81}},
        "4": {"class_type": "CreateVideo", "inputs": {"fps": 16, "images": ["3", 0]}},
    }


def test_the_tiny_job_changes_files_and_sizes_and_nothing_else():
    prompt = prompt_of_a_pair()
    small = demo.tiny(prompt, JOB, FILES, CLIP)
    assert small["1"]["inputs"] == {"model_name": "high.safetensors", "low_noise_model": "low.safetensors"}
    assert small["3"]["inputs"] == {"width": 64, "height": 48, "frames": 9}
    assert (small["2"], small["4"]) == (prompt["2"], prompt["4"])
    assert prompt == prompt_of_a_pair()
    assert demo.tiny(prompt, JOB, FILES, CLIP, "a kite")["2"]["inputs"]["positive"] == "a kite"


def test_the_page_form_takes_over_the_values_of_the_api_form():
    slots = [{"name": "model"}, *({"name": name, "widget": {"name": name}} for name in ("seed", "steps"))]
    page = {"nodes": [{"id": 7, "inputs": slots, "widgets_values": [1, "randomize", 40]}]}
    prompt = {"7": {"class_type": "WanCoreSampler", "inputs": {"seed": 5, "steps": 4, "model": ["1", 0]}}}
    assert demo.tiny_page(page, prompt)["nodes"][0]["widgets_values"] == [5, "randomize", 4]
    assert page["nodes"][0]["widgets_values"] == [1, "randomize", 40]


def test_the_frame_rate_is_the_workflows_or_the_models_own():
    prompt = prompt_of_a_pair()
    assert demo.wanted_fps(prompt) == 16
    prompt["4"]["inputs"]["fps"] = 24
    assert demo.wanted_fps(prompt) == 24
    prompt["4"]["inputs"]["fps"] = ["3", 1]
    assert demo.wanted_fps(prompt) == demo.MODEL_FPS


def write_video(path: Path, frames: int, metadata: dict, contrast: int = 1) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (CLIP.height, CLIP.width, 3), dtype=np.uint8) * contrast
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        for key, value in metadata.items():
            container.metadata[key] = json.dumps(value)
        stream = container.add_stream("h264", rate=Fraction(16))
        stream.width, stream.height, stream.pix_fmt = CLIP.width, CLIP.height, "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("frames", "with_prompt", "contrast", "complaint"),
    [
        (CLIP.frames - 4, True, 1, rf"frames: {CLIP.frames - 4}, asked for {CLIP.frames}"),
        (CLIP.frames, False, 1, "prompt in the metadata: False"),
        (CLIP.frames, True, 0, "one flat colour"),
    ],
)
def test_a_video_that_is_not_what_was_asked_for_is_refused(tmp_path, frames, with_prompt, contrast, complaint):
    prompt, page = prompt_of_a_pair(), {"nodes": []}
    metadata = {"workflow": page} | ({"prompt": prompt} if with_prompt else {})
    path = write_video(tmp_path / "a.mp4", frames, metadata, contrast)
    with pytest.raises(DemoError, match=complaint):
        demo.check_video(path, CLIP, prompt, page)


def test_a_video_that_is_what_was_asked_for_gives_its_figures(tmp_path):
    prompt, page = prompt_of_a_pair(), {"nodes": []}
    path = write_video(tmp_path / "a.mp4", CLIP.frames, {"workflow": page, "prompt": prompt})
    row = demo.check_video(path, CLIP, prompt, page)
    assert (row["frames"], row["size"], row["fps"]) == (CLIP.frames, f"{CLIP.width}x{CLIP.height}", "16")
