"""The example workflows: a table of jobs, and the graph of nodes that a job stands for.

A node of a graph: its class, its column and its place in the column, its inputs (``[node, slot]`` is a wire), the files
that the page offers to download. ``room`` is space at the bottom for what the page adds to a node: notices, a preview,
text boxes, a player. A graph leaves out the widgets that stay at their defaults.
"""

from dataclasses import dataclass, field

HUB = "https://huggingface.co"
COMFY = {"wan2.1": "Wan_2.1_ComfyUI_repackaged", "wan2.2": "Wan_2.2_ComfyUI_Repackaged"}
LIGHTX2V = f"{HUB}/lightx2v/Wan2.1-Distill-Models/resolve/main"
KIJAI = f"{HUB}/Kijai/WanVideo_comfy/resolve/main"
TEXT_ENCODER, CLIP_VISION = "umt5_xxl_fp8_e4m3fn_scaled", "clip_vision_h"
SAME = "same"
VAE_21, VAE_22 = "wan_2.1_vae", "wan2.2_vae"

FOX = "A red fox runs through fresh snow at sunrise, the camera follows close behind, soft golden light, film grain"
MOTION = "The picture comes to life with gentle, natural motion while the camera slowly moves closer, soft light"
BETWEEN = "One smooth, continuous camera move from the first picture to the last, natural motion, soft light"
PORTRAIT = "A red fox sits in fresh snow at sunrise and looks into the camera, soft golden light, blurred background"
FOLLOWS = "A bronze statue of a dancer comes to life in a sunlit museum hall and moves, polished metal, soft light"
PAINTED = "The same scene as a moving oil painting, thick visible brush strokes, warm colours"
INSIDE = "A striped hot-air balloon floats slowly through the scene, soft natural light"
SUBJECT = "The toy stands on a wooden table in warm morning light, the camera moves slowly around it"
AROUND = "The camera circles around what is in the middle of the picture, gentle natural motion, soft light"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One workflow. Files are named without ``.safetensors``."""

    model: str
    low_noise_model: str | None = None
    folder: str | None = None
    """Where the model is downloaded from, where that is not ComfyUI's own repository."""
    loras: tuple[str, str] | None = None
    """Of the high-noise and the low-noise expert; ``same`` behind that of a single model."""
    lora_folder: str | None = None
    """Where it is downloaded from, as ``folder``."""
    lora: dict = field(default_factory=dict)
    """Widgets of the LoRA node besides the files."""
    text_encoder: str = TEXT_ENCODER
    vae: str = VAE_21
    bundled: bool = False
    """The files come with the pack: nothing to download."""
    width: int = 832
    height: int = 480
    frames: int = 81
    """1 saves a picture."""
    given: tuple[str, ...] = ()
    """``start_image``, ``end_image`` or ``video``; ``drawn_image``: a square that the workflow draws itself;
    ``control_video``, with ``reference_image`` or without: for a VACE or Fun Control model; ``mask`` beside ``video``:
    a square of it is made anew; ``subject_image``: for a Phantom model; nothing: from text alone."""
    clip_vision: tuple[str, ...] = ()
    """Those of ``given`` that the CLIP encoder sees."""
    camera: dict | None = None
    """Widgets of the Camera Path node, for a Fun Camera model."""
    prompt: str = FOX
    negative: str | None = None
    """None: the text encode node's own."""
    sampler: dict = field(default_factory=dict)


HIGH_T2V, LOW_T2V = (f"wan2.2_t2v_{side}_noise_14B_fp8_scaled" for side in ("high", "low"))
HIGH_I2V, LOW_I2V = (f"wan2.2_i2v_{side}_noise_14B_fp8_scaled" for side in ("high", "low"))
START, BOTH = ("start_image",), ("start_image", "end_image")
LIKE, FROM_START = ("control_video", "reference_image"), ("control_video", "start_image")
INP_22, CONTROL_22, CAMERA_22 = (
    tuple(f"wan2.2_fun_{kind}_{side}_noise_14B_fp8_scaled" for side in ("high", "low"))
    for kind in ("inpaint", "control", "camera")
)
SIZE_5B = {"vae": VAE_22, "width": 1280, "height": 704, "frames": 121}
LORAS_T2V, LORAS_I2V = (
    tuple(f"wan2.2_{kind}_lightx2v_4steps_lora_{version}_{side}_noise" for side in ("high", "low"))
    for kind, version in (("t2v", "v1.1"), ("i2v", "v1"))
)
FOUR_STEPS_PAIR = {
    "steps": 4, "guidance": 1.0, "shift": 5.0, "solver": "euler", "schedule": "simple", "switch_step": 2,
}  # fmt: skip
# CausVid as its users set it: strength 0.5 for 4 to 9 steps, or 0.3 for about 12, which keeps more motion; no guidance,
# shift 7 to 8, unipc. So: weak while motion is made, then as strong as few steps need. (kijai/ComfyUI-WanVideoWrapper
# issues 576 and 577, deepbeepmeep/Wan2GP issue 260, civitai.com/models/1585622.)
CAUSVID = {"steps": 8, "guidance": 1.0, "shift": 8.0, "solver": "unipc", "schedule": "simple"}
CAUSVID_LORA = {"strength": 0.5, "over_steps": "0: 0.6, 2: 1"}
FOUR_STEPS = {"steps": 4, "guidance": 1.0, "shift": 5.0, "solver": "euler", "schedule": "distill"}

NANO = {
    "text_encoder": "wan_nano_umt5", "vae": "wan_nano_vae", "bundled": True, "width": 64, "height": 64, "frames": 17,
    "negative": "",
}  # fmt: skip
HIGH_NANO_T2V, LOW_NANO_T2V = (f"wan_nano_t2v_{side}_noise" for side in ("high", "low"))
HIGH_NANO_I2V, LOW_NANO_I2V = (f"wan_nano_i2v_{side}_noise" for side in ("high", "low"))

JOBS: dict[str, Job] = {
    "nano_t2v": Job(
        model=HIGH_NANO_T2V,
        low_noise_model=LOW_NANO_T2V,
        prompt="A large yellow circle moves right on a black background.",
        **NANO,
    ),
    "nano_i2v": Job(
        model=HIGH_NANO_I2V,
        low_noise_model=LOW_NANO_I2V,
        prompt="A large red square moves down on a white background.",
        given=("drawn_image",),
        **NANO,
    ),
    "wan2.1_t2v": Job(model="wan2.1_t2v_1.3B_fp16"),
    "wan2.1_t2v_distilled": Job(
        model="wan2.1_t2v_14b_scaled_fp8_e4m3_lightx2v_4step_comfyui", folder=LIGHTX2V, sampler=FOUR_STEPS
    ),
    "wan2.1_t2v_causvid": Job(
        model="wan2.1_t2v_14B_fp8_scaled",
        loras=("Wan21_CausVid_14B_T2V_lora_rank32", SAME),
        lora_folder=KIJAI,
        lora=CAUSVID_LORA,
        sampler=CAUSVID,
    ),
    "wan2.1_t2i": Job(model="wan2.1_t2v_14B_fp8_scaled", width=1024, height=1024, frames=1, prompt=PORTRAIT),
    "wan2.1_i2v": Job(model="wan2.1_i2v_480p_14B_fp16", given=START, clip_vision=START, prompt=MOTION),
    "wan2.1_flf2v": Job(
        model="wan2.1_flf2v_720p_14B_fp16", width=1280, height=720, given=BOTH, clip_vision=BOTH, prompt=BETWEEN
    ),
    "wan2.1_v2v": Job(model="wan2.1_t2v_1.3B_fp16", given=("video",), prompt=PAINTED, sampler={"denoise": 0.6}),
    "wan2.2_t2v_a14b": Job(model=HIGH_T2V, low_noise_model=LOW_T2V),
    "wan2.2_i2v_a14b": Job(model=HIGH_I2V, low_noise_model=LOW_I2V, given=START, prompt=MOTION),
    "wan2.2_t2v_a14b_4steps": Job(model=HIGH_T2V, low_noise_model=LOW_T2V, loras=LORAS_T2V, sampler=FOUR_STEPS_PAIR),
    "wan2.2_i2v_a14b_4steps": Job(
        model=HIGH_I2V, low_noise_model=LOW_I2V, loras=LORAS_I2V, given=START, prompt=MOTION, sampler=FOUR_STEPS_PAIR
    ),
    "wan2.2_ti2v_5b_t2v": Job(model="wan2.2_ti2v_5B_fp16", **SIZE_5B),
    "wan2.2_ti2v_5b_i2v": Job(model="wan2.2_ti2v_5B_fp16", **SIZE_5B, given=START, prompt=MOTION),
    "wan2.1_vace": Job(model="wan2.1_vace_1.3B_fp16", given=LIKE, prompt=FOLLOWS),
    # Fun models of Wan 2.1 were trained with CLIP features of one picture: the start image, also where there is an end.
    "wan2.1_fun_control": Job(
        model="wan2.1_fun_control_1.3B_bf16", given=FROM_START, clip_vision=START, prompt=FOLLOWS
    ),
    "wan2.1_fun_inp": Job(model="wan2.1_fun_inp_1.3B_bf16", given=BOTH, clip_vision=START, prompt=BETWEEN),
    "wan2.1_fun_camera": Job(
        model="wan2.1_fun_camera_v1.1_1.3B_bf16",
        given=START,
        clip_vision=START,
        camera={"motion": "Zoom In"},
        prompt=MOTION,
    ),
    "wan2.2_fun_control_a14b": Job(model=CONTROL_22[0], low_noise_model=CONTROL_22[1], given=LIKE, prompt=FOLLOWS),
    "wan2.2_fun_inp_a14b": Job(model=INP_22[0], low_noise_model=INP_22[1], given=BOTH, prompt=BETWEEN),
    "wan2.2_fun_camera_a14b": Job(
        model=CAMERA_22[0],
        low_noise_model=CAMERA_22[1],
        given=START,
        camera={"motion": "Turn Left", "second_motion": "Pan Right"},
        prompt=AROUND,
    ),
    "wan2.2_fun_control_5b": Job(model="wan2.2_fun_control_5B_bf16", **SIZE_5B, given=LIKE, prompt=FOLLOWS),
    "wan2.2_fun_inp_5b": Job(model="wan2.2_fun_inpaint_5B_bf16", **SIZE_5B, given=BOTH, prompt=BETWEEN),
    "wan2.1_inpaint": Job(model="wan2.1_t2v_1.3B_fp16", given=("video", "mask"), prompt=INSIDE),
    "wan2.1_phantom": Job(model="Phantom-Wan-1_3B_fp16", folder=KIJAI, given=("subject_image",), prompt=SUBJECT),
}


def graph(job: Job) -> dict[str, dict]:
    """The nodes of a job by name. Their order gives their ids: a released graph keeps it."""
    nodes = _common(job) | _output(job)
    if "video" in job.given:
        more, wires = _from_video(job)
    elif "subject_image" in job.given:
        more, wires = _from_subject(job)
    elif "control_video" in job.given:
        more, wires = _from_control(job)
    elif job.given:
        more, wires = _from_images(job)
    else:
        more, wires = _from_text(job)
    nodes["sampler"]["inputs"] |= wires
    if job.loras:
        more["lora"] = _lora(job)
        nodes["sampler"]["inputs"]["model"] = ["lora", 0]
    return nodes | more


def _lora(job: Job) -> dict:
    high, low = job.loras
    names = {"lora_name": f"{high}.safetensors", "low_noise_lora": low if low == SAME else f"{low}.safetensors"}
    inputs = {"model": ["model", 0], **names, **job.lora}
    files = [_file("loras", name, job.lora_folder) for name in job.loras if name != SAME]
    return {"class": "WanCoreLoRA", "at": (0, 7), "room": 80, "inputs": inputs, "files": files}


def _file(folder: str, name: str, source: str | None = None) -> dict:
    """A download that the page offers when the file is missing."""
    repository = f"{HUB}/Comfy-Org/{COMFY.get(name[:6], COMFY['wan2.1'])}/resolve/main/split_files/{folder}"
    file = f"{name}.safetensors"
    return {"name": file, "directory": folder, "url": f"{source or repository}/{file}"}


def _loader(class_type: str, row: int, folder: str, widget: str, name: str, download: bool = True) -> dict:
    inputs = {widget: f"{name}.safetensors", "precision": "auto"}
    return {"class": class_type, "at": (0, row), "inputs": inputs, "files": [_file(folder, name)] if download else []}


def _common(job: Job) -> dict[str, dict]:
    """Loaders, prompts and sampler, which every workflow has."""
    names = [job.model] + ([job.low_noise_model] if job.low_noise_model else [])
    low = f"{job.low_noise_model}.safetensors" if job.low_noise_model else "none"
    return {
        "model": {
            "class": "WanCoreLoadModel", "at": (0, 0), "room": 80,
            "inputs": {"model_name": f"{job.model}.safetensors", "low_noise_model": low},
            "files": [_file("diffusion_models", name, job.folder) for name in names if not job.bundled],
        },
        "text_encoder": _loader(
            "WanCoreLoadTextEncoder", 1, "text_encoders", "text_encoder_name", job.text_encoder, not job.bundled
        ),
        "vae": _loader("WanCoreLoadVAE", 2, "vae", "vae_name", job.vae, not job.bundled),
        "text": {
            "class": "WanCoreTextEncode", "at": (1, 0), "room": 220,
            "inputs": {"clip": ["text_encoder", 0], "positive": job.prompt, "negative": job.negative},
        },
        "sampler": {
            "class": "WanCoreSampler", "at": (2, 0), "room": 330,
            "inputs": {"model": ["model", 0], "positive": ["text", 0], "negative": ["text", 1], "latent": None,
                       "seed": 42, **job.sampler},
        },
    }  # fmt: skip


def _output(job: Job) -> dict[str, dict]:
    decode = {"class": "WanCoreVAEDecode", "at": (3, 0), "inputs": {"samples": ["sampler", 0], "vae": ["vae", 0]}}
    if job.frames == 1:
        save = {
            "class": "SaveImage", "at": (3, 1), "room": 330,
            "inputs": {"images": ["decode", 0], "filename_prefix": "image/wan_core"},
        }  # fmt: skip
        return {"decode": decode, "save": save}
    # A changed video keeps the speed of the one that it was made from.
    fps = ["components", 2] if {"video", "control_video"} & {*job.given} else ["decode", 1]
    return {
        "decode": decode,
        "video": {"class": "CreateVideo", "at": (3, 1), "inputs": {"images": ["decode", 0], "fps": fps}},
        "save": {
            "class": "SaveVideo", "at": (3, 2), "room": 330,
            "inputs": {"video": ["video", 0], "filename_prefix": "video/wan_core", "format": "mp4", "codec": "h264"},
        },
    }  # fmt: skip


def _size(job: Job) -> dict[str, int]:
    return {"width": job.width, "height": job.height, "frames": job.frames, "batch_size": 1}


def _from_text(job: Job) -> tuple[dict[str, dict], dict]:
    inputs = {"model": ["model", 0], **_size(job)}
    return {"size": {"class": "WanCoreEmptyLatent", "at": (1, 2), "inputs": inputs}}, {"latent": ["size", 0]}


def _from_images(job: Job) -> tuple[dict[str, dict], dict]:
    if "drawn_image" in job.given:
        images, nodes = {"start_image": ["drawn", 0]}, _drawn()
    else:
        images = {what: [what.removesuffix("_image"), 0] for what in job.given}
        nodes = {
            source: {"class": "LoadImage", "at": (0, 4 + row), "room": 240, "inputs": {"image": "example.png"}}
            for row, (source, _) in enumerate(images.values())
        }
    inputs = {"positive": ["text", 0], "negative": ["text", 1], "vae": ["vae", 0], **_size(job), **images}
    node = "WanCoreImageToVideo" if job.camera is None else "WanCoreCameraControl"
    nodes["size"] = {"class": node, "at": (1, 3), "inputs": inputs}
    if job.camera is not None:
        size = {name: inputs[name] for name in ("width", "height", "frames")}
        nodes["path"] = {"class": "WanCoreCameraPath", "at": (1, 2), "inputs": {**job.camera, **size}}
        inputs |= {name: ["path", slot] for slot, name in enumerate(("camera_embedding", *size))}
    if job.vae == VAE_22 and "end_image" in job.given:
        inputs["model"] = ["model", 0]  # this VAE alone does not tell that the model takes one
    return nodes | _clip_vision(job, inputs), {
        "positive": ["size", 0],
        "negative": ["size", 1],
        "latent": ["size", 2],
    }


def _clip_vision(job: Job, inputs: dict) -> dict[str, dict]:
    """The CLIP encoder of the pictures among a node's ``inputs``, connected to the node."""
    if not job.clip_vision:
        return {}
    inputs["clip_vision_output"] = ["clip_encode", 0]
    wires = {"clip_vision": ["clip_vision", 0], **{what: inputs[what] for what in job.clip_vision}}
    return {
        "clip_vision": _loader("WanCoreLoadCLIPVision", 3, "clip_vision", "clip_vision_name", CLIP_VISION),
        "clip_encode": {"class": "WanCoreCLIPVisionEncode", "at": (1, 1), "inputs": wires},
    }


def _drawn() -> dict[str, dict]:
    """A red square on white, 64x64, of the colours and the size that the nano models know."""
    square = {"x": 20, "y": 20, "resize_source": False}
    return {
        "paper": {
            "class": "EmptyImage", "at": (0, 4),
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0xF0F0F0},
        },
        "ink": {
            "class": "EmptyImage", "at": (0, 5),
            "inputs": {"width": 23, "height": 23, "batch_size": 1, "color": 0xDC2828},
        },
        "drawn": {
            "class": "ImageCompositeMasked", "at": (0, 6), "room": 40,
            "inputs": {"destination": ["paper", 0], "source": ["ink", 0], **square},
        },
    }  # fmt: skip


def _from_video(job: Job) -> tuple[dict[str, dict], dict]:
    scale = {"upscale_method": "bicubic", "width": job.width, "height": job.height, "crop": "center"}
    nodes = {
        "source": {
            "class": "LoadVideo", "at": (0, 4), "room": 340 if "mask" in job.given else 240,
            "inputs": {"file": "input.mp4"},
        },
        "components": {"class": "GetVideoComponents", "at": (1, 1), "inputs": {"video": ["source", 0]}},
        "cut": {
            "class": "ImageFromBatch", "at": (1, 2),
            "inputs": {"image": ["components", 0], "batch_index": 0, "length": job.frames},
        },
        "scale": {"class": "ImageScale", "at": (1, 3), "inputs": {"image": ["cut", 0], **scale}},
        "encode": {
            "class": "WanCoreVAEEncode", "at": (1, 4), "room": 40,
            "inputs": {"images": ["scale", 0], "vae": ["vae", 0]},
        },
    }  # fmt: skip
    if "mask" not in job.given:
        return nodes, {"latent": ["encode", 0]}
    side = job.height // 2
    nodes |= {
        "kept": {
            "class": "SolidMask", "at": (0, 5), "inputs": {"value": 0.0, "width": job.width, "height": job.height},
        },
        "anew": {"class": "SolidMask", "at": (0, 6), "inputs": {"value": 1.0, "width": side, "height": side}},
        "drawn": {
            "class": "MaskComposite", "at": (1, 5),
            "inputs": {"destination": ["kept", 0], "source": ["anew", 0], "operation": "add",
                       "x": (job.width - side) // 2, "y": (job.height - side) // 2},
        },
        "mask": {
            "class": "WanCoreInpaintMask", "at": (1, 6), "inputs": {"latent": ["encode", 0], "mask": ["drawn", 0]},
        },
    }  # fmt: skip
    return nodes, {"latent": ["mask", 0]}


def _from_subject(job: Job) -> tuple[dict[str, dict], dict]:
    inputs = {"positive": ["text", 0], "negative": ["text", 1], "vae": ["vae", 0], **_size(job)}
    nodes = {
        "subject": {"class": "LoadImage", "at": (0, 4), "room": 240, "inputs": {"image": "example.png"}},
        "size": {"class": "WanCoreSubjectPictures", "at": (1, 2), "inputs": inputs | {"images": ["subject", 0]}},
    }
    return nodes, {"positive": ["size", 0], "negative": ["size", 1], "latent": ["size", 2]}


def _from_control(job: Job) -> tuple[dict[str, dict], dict]:
    """Edges of a video as control, by a node that every ComfyUI has; depth or pose go in the same way."""
    is_vace = "_vace_" in job.model
    inputs = {"positive": ["text", 0], "negative": ["text", 1], "vae": ["vae", 0], **_size(job)}
    edges = {"low_threshold": 0.1, "high_threshold": 0.3}
    nodes = {
        "source": {"class": "LoadVideo", "at": (0, 4), "room": 340, "inputs": {"file": "input.mp4"}},
        "components": {"class": "GetVideoComponents", "at": (1, 2), "inputs": {"video": ["source", 0]}},
        "cut": {
            "class": "ImageFromBatch", "at": (1, 3),
            "inputs": {"image": ["components", 0], "batch_index": 0, "length": job.frames},
        },
        "edges": {"class": "Canny", "at": (1, 4), "inputs": {"image": ["cut", 0], **edges}},
        "control": {
            "class": "WanCoreVace" if is_vace else "WanCoreFunControl", "at": (1, 5), "room": 120,
            "inputs": inputs | {"control_video": ["edges", 0]},
        },
    }  # fmt: skip
    inputs = nodes["control"]["inputs"]
    for what in job.given:
        if what != "control_video":
            name = "ref_image" if what == "reference_image" and not is_vace else what
            nodes[what] = {"class": "LoadImage", "at": (0, 5), "room": 240, "inputs": {"image": "example.png"}}
            inputs[name] = [what, 0]
    wires = {"positive": ["control", 0], "negative": ["control", 1], "latent": ["control", 2]}
    return nodes | _clip_vision(job, inputs), wires
