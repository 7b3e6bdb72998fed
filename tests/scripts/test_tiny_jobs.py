"""The tiny job made of a workflow, and the reading back of what it saved."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from scripts import tiny_jobs, tiny_models
from scripts.tiny_jobs import Clip, Given, WrongResult
from scripts.workflow_graphs import JOBS, graph

FILES = {role: Path(f"/m/tiny_{role}.safetensors") for role in tiny_models.FILES}
CLIP = Clip(width=64, height=48, frames=9, steps=2)


def prompt_of_a_pair() -> dict:
    high, low = (f"wan2.2_t2v_{side}_noise_14B_fp8_scaled.safetensors" for side in ("high", "low"))
    return {
        "1": {"class_type": "WanCoreLoadModel", "inputs": {"model_name": high, "low_noise_model": low}},
        "2": {"class_type": "WanCoreTextEncode", "inputs": {"positive": "a boat", "clip": ["9", 0]}},
        "3": {"class_type": "WanCoreEmptyLatent", "inputs": {"width": 832, "height": 480, "frames": 81}},
        "4": {"class_type": "CreateVideo", "inputs": {"fps": 16, "images": ["3", 0]}},
    }


def test_the_tiny_job_changes_files_and_sizes_and_nothing_else():
    prompt = prompt_of_a_pair()
    small = tiny_jobs.tiny(prompt, FILES, CLIP, Given(), "pair")
    names = {"model_name": "tiny_t2v_high.safetensors", "low_noise_model": "tiny_t2v_low.safetensors"}
    assert small["1"]["inputs"] == names
    assert small["3"]["inputs"] == {"width": 64, "height": 48, "frames": 9}
    assert (small["2"], small["4"]) == (prompt["2"], prompt["4"])
    assert prompt == prompt_of_a_pair()
    changed = tiny_jobs.tiny(prompt, FILES, CLIP, Given(words="a kite"), "pair")
    assert changed["2"]["inputs"]["positive"] == "a kite"


def test_a_picture_stays_one_frame():
    prompt = prompt_of_a_pair()
    prompt["3"]["inputs"]["frames"] = 1
    assert tiny_jobs.tiny(prompt, FILES, CLIP, Given(), "t2i")["3"]["inputs"]["frames"] == 1


@pytest.mark.parametrize("name", JOBS)
def test_every_file_of_every_workflow_has_a_tiny_one_in_its_place(name):
    inputs = [value for node in graph(JOBS[name]).values() for value in node["inputs"].values()]
    files = [value for value in inputs if tiny_jobs.is_file(value)]
    assert len(files) >= 3
    assert all(tiny_jobs.tiny_name(file, FILES).startswith(("tiny_", tiny_jobs.BUNDLED)) for file in files)


def test_a_file_without_a_tiny_one_is_named():
    with pytest.raises(WrongResult, match=r"sdxl\.safetensors"):
        tiny_jobs.tiny_name("sdxl.safetensors", FILES)


def test_the_page_form_takes_over_the_values_of_the_api_form():
    slots = [{"name": "model"}, *({"name": name, "widget": {"name": name}} for name in ("seed", "steps"))]
    page = {"nodes": [{"id": 7, "inputs": slots, "widgets_values": [1, "randomize", 40]}]}
    prompt = {"7": {"class_type": "WanCoreSampler", "inputs": {"seed": 5, "steps": 4, "model": ["1", 0]}}}
    assert tiny_jobs.tiny_page(page, prompt)["nodes"][0]["widgets_values"] == [5, "randomize", 4]
    assert page["nodes"][0]["widgets_values"] == [1, "randomize", 40]


def test_the_frame_rate_is_the_workflows_or_the_models_own_or_the_sources():
    prompt = prompt_of_a_pair()
    assert tiny_jobs.wanted_fps(prompt) == 16
    prompt["4"]["inputs"]["fps"] = 25
    assert tiny_jobs.wanted_fps(prompt) == 25
    prompt["5"] = {"class_type": "WanCoreVAEDecode", "inputs": {"vae": ["6", 0]}}
    prompt["6"] = {"class_type": "WanCoreLoadVAE", "inputs": {"vae_name": "tiny_vae_2.1.safetensors"}}
    prompt["4"]["inputs"]["fps"] = ["5", 1]
    assert tiny_jobs.wanted_fps(prompt) == 16
    prompt["6"]["inputs"]["vae_name"] = "tiny_vae_2.2.safetensors"
    assert tiny_jobs.wanted_fps(prompt) == 24
    prompt["7"] = {"class_type": "GetVideoComponents", "inputs": {}}
    prompt["4"]["inputs"]["fps"] = ["7", 2]
    assert tiny_jobs.wanted_fps(prompt) == tiny_jobs.VIDEO_FPS


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
    with pytest.raises(WrongResult, match=complaint):
        tiny_jobs.check_saved(path, CLIP, prompt, page)


def test_a_video_that_is_what_was_asked_for_gives_its_figures(tmp_path):
    prompt, page = prompt_of_a_pair(), {"nodes": []}
    path = write_video(tmp_path / "a.mp4", CLIP.frames, {"workflow": page, "prompt": prompt})
    row = tiny_jobs.check_saved(path, CLIP, prompt, page)
    assert (row["frames"], row["size"], row["fps"]) == (CLIP.frames, f"{CLIP.width}x{CLIP.height}", "16")


@pytest.mark.parametrize(("height", "fits"), [(CLIP.height, True), (CLIP.height + 8, False)])
def test_a_picture_is_read_back_with_the_graph_in_it(tmp_path, height, fits):
    prompt, page, info = prompt_of_a_pair(), {"nodes": []}, PngImagePlugin.PngInfo()
    for key, value in (("prompt", prompt), ("workflow", page)):
        info.add_text(key, json.dumps(value))
    noise = np.random.default_rng(0).integers(0, 255, (height, CLIP.width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png", pnginfo=info)
    if fits:
        assert tiny_jobs.check_saved(tmp_path / "a.png", CLIP, prompt, page)["frames"] == 1
    else:
        with pytest.raises(WrongResult, match=rf"64x{height}, asked for 64x{CLIP.height}"):
            tiny_jobs.check_saved(tmp_path / "a.png", CLIP, prompt, page)
