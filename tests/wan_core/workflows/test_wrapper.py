"""Graphs of kijai/ComfyUI-WanVideoWrapper, and the graphs of our nodes that they become."""

import pytest

from tests.wan_core.workflows.native import HIGH_FILE, LOW_FILE, Native, kinds, moved, of
from wan_core.errors import WorkflowError

WIDGETS = {
    "steps": 20, "cfg": 6.0, "shift": 3.0, "seed": 9, "force_offload": True, "scheduler": "unipc",
    "riflex_freq_index": 0,
}  # fmt: skip


def loader(native: Native, name: str, lora: str = "") -> list:
    wires = {"block_swap_args": native.add("WanVideoBlockSwap", blocks_to_swap=20)}
    if lora:
        inner = native.add("WanVideoLoraSelect", lora=f"inner_{lora}", strength=0.3)
        wires["lora"] = native.add("WanVideoLoraSelect", lora=lora, strength=0.6, prev_lora=inner)
    return native.add("WanVideoModelLoader", model=name, base_precision="bf16", quantization="disabled", **wires)


def texts(native: Native) -> list:
    encoder = native.add("LoadWanVideoT5TextEncoder", model_name="umt5.safetensors", precision="bf16")
    return native.add("WanVideoTextEncode", t5=encoder, positive_prompt="a fox", negative_prompt="blurry")


def decoded(native: Native, latent: list) -> None:
    vae = native.add("WanVideoVAELoader", model_name="wan_2.1_vae.safetensors", precision="bf16")
    images = native.add("WanVideoDecode", samples=latent, vae=vae, enable_vae_tiling=False)
    native.add("SaveImage", images=images, filename_prefix="x")


def test_text_to_video_has_a_counterpart_for_every_node():
    native = Native()
    empty = native.add("WanVideoEmptyEmbeds", width=640, height=352, num_frames=33)
    model = loader(native, "wan_t2v.safetensors", "x.safetensors")
    latent = native.add("WanVideoSampler", model=model, text_embeds=texts(native), image_embeds=empty, **WIDGETS)
    decoded(native, latent)
    result = moved(native)
    made = result.document
    assert kinds(made) == [
        "SaveImage", "WanCoreEmptyLatent", "WanCoreLoRA", "WanCoreLoRA", "WanCoreLoadModel", "WanCoreLoadTextEncoder",
        "WanCoreLoadVAE", "WanCoreSampler", "WanCoreTextEncode", "WanCoreVAEDecode",
    ]  # fmt: skip
    sampler, size = of(made, "WanCoreSampler"), of(made, "WanCoreEmptyLatent")
    wanted = {"seed": 9, "steps": 20, "guidance": 6.0, "shift": 3.0, "solver": "unipc", "schedule": "auto"}
    assert wanted.items() <= sampler.items()
    assert (size["width"], size["height"], size["frames"]) == (640, 352, 33)
    outer = made[sampler["model"][0]]["inputs"]
    assert (outer["lora_name"], outer["strength"]) == ("x.safetensors", 0.6)
    assert made[outer["model"][0]]["inputs"]["lora_name"] == "inner_x.safetensors"
    text = of(made, "WanCoreTextEncode")
    assert (text["positive"], text["negative"]) == ("a fox", "blurry")
    assert [sampler["positive"][1], sampler["negative"][1]] == [0, 1]
    assert result.report.notes == []


def test_image_to_video_gets_its_conditions_from_our_node():
    native = Native()
    image = native.add("LoadImage", image="a.png")
    clip = native.add("CLIPVisionLoader", clip_name="clip_vision_h.safetensors")
    seen = native.add("WanVideoClipVisionEncode", clip_vision=clip, image_1=image, strength_1=1.0)
    vae = native.add("WanVideoVAELoader", model_name="wan_2.1_vae.safetensors", precision="bf16")
    embeds = native.add(
        "WanVideoImageToVideoEncode", vae=vae, clip_embeds=seen, start_image=image, width=832, height=480, num_frames=81
    )
    model = loader(native, "wan_i2v.safetensors")
    latent = native.add("WanVideoSampler", model=model, text_embeds=texts(native), image_embeds=embeds, **WIDGETS)
    native.add("SaveImage", images=native.add("WanVideoDecode", samples=latent, vae=vae), filename_prefix="x")
    made = moved(native).document
    assert not [kind for kind in kinds(made) if kind.startswith("WanVideo")]
    start, sampler = of(made, "WanCoreImageToVideo"), of(made, "WanCoreSampler")
    key = sampler["latent"][0]
    assert [sampler[name] for name in ("positive", "negative", "latent")] == [[key, 0], [key, 1], [key, 2]]
    assert start["start_image"] == image
    assert made[start["clip_vision_output"][0]]["class_type"] == "WanCoreCLIPVisionEncode"
    assert made[start["positive"][0]]["class_type"] == "WanCoreTextEncode"


def test_two_samplers_over_a_pair_become_one():
    native = Native()
    empty = native.add("WanVideoEmptyEmbeds", width=640, height=352, num_frames=33)
    common = {"text_embeds": texts(native), "image_embeds": empty, **WIDGETS}
    first = native.add("WanVideoSampler", model=loader(native, HIGH_FILE), start_step=0, end_step=8, **common)
    rest = {"start_step": 8, "end_step": -1, "add_noise_to_samples": False, "samples": first}
    decoded(native, native.add("WanVideoSampler", model=loader(native, LOW_FILE), **rest, **common))
    made = moved(native).document
    sampler = of(made, "WanCoreSampler")
    assert (sampler["switch_step"], sampler["end_step"]) == (8, 10000)
    assert of(made, "WanCoreLoadModel")["low_noise_model"] == LOW_FILE


@pytest.mark.parametrize(
    ("where", "name", "words"),
    [
        ("WanVideoSampler", "context_options", "has context_options"),
        ("WanVideoModelLoader", "vace_model", "has vace_model"),
        ("WanVideoSampler", "image_embeds", "its image_embeds come from WanVideoPhantomEmbeds"),
    ],
)
def test_what_the_pack_has_nothing_for_is_refused_by_name(where, name, words):
    native = Native()
    empty = native.add("WanVideoEmptyEmbeds", width=640, height=352, num_frames=33)
    model = loader(native, "wan_t2v.safetensors")
    decoded(
        native, native.add("WanVideoSampler", model=model, text_embeds=texts(native), image_embeds=empty, **WIDGETS)
    )
    foreign = native.add("WanVideoPhantomEmbeds")
    (node,) = [node for node in native.prompt.values() if node["class_type"] == where]
    node["inputs"][name] = foreign
    with pytest.raises(WorkflowError, match=words):
        moved(native)
