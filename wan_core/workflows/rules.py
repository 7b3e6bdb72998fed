"""The tables of the conversion: which native node, widget or value stands for what of ours."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LoaderRule:
    """A loader that becomes one of ours. ``ignored``: widget -> values that say nothing new."""

    becomes: str
    file: str
    our_file: str
    only: tuple[str, object] | None = None
    """A widget and the value that it must have."""
    ignored: dict[str, tuple] | None = None


LOADERS: dict[str, LoaderRule] = {
    "CLIPLoader": LoaderRule(
        becomes="WanCoreLoadTextEncoder",
        file="clip_name",
        our_file="text_encoder_name",
        only=("type", "wan"),
        ignored={"device": ("default",)},
    ),
    "VAELoader": LoaderRule(becomes="WanCoreLoadVAE", file="vae_name", our_file="vae_name"),
    "CLIPVisionLoader": LoaderRule(becomes="WanCoreLoadCLIPVision", file="clip_name", our_file="clip_vision_name"),
    # kijai/ComfyUI-WanVideoWrapper
    "LoadWanVideoT5TextEncoder": LoaderRule(
        becomes="WanCoreLoadTextEncoder", file="model_name", our_file="text_encoder_name"
    ),
    "WanVideoVAELoader": LoaderRule(becomes="WanCoreLoadVAE", file="model_name", our_file="vae_name"),
    "LoadWanVideoClipTextEncoder": LoaderRule(
        becomes="WanCoreLoadCLIPVision", file="model_name", our_file="clip_vision_name"
    ),
}


@dataclass(frozen=True, kw_only=True)
class NodeRule:
    """A node that becomes one of ours with the same outputs. ``inputs``: our input -> its name there."""

    becomes: str
    inputs: dict[str, str]


RENAMED: dict[str, NodeRule] = {
    "WanVideoTextEncode": NodeRule(
        becomes="WanCoreTextEncode",
        inputs={"clip": "t5", "positive": "positive_prompt", "negative": "negative_prompt"},
    ),
    "WanVideoClipVisionEncode": NodeRule(
        becomes="WanCoreCLIPVisionEncode",
        inputs={"clip_vision": "clip_vision", "start_image": "image_1", "end_image": "image_2"},
    ),
    "WanVideoDecode": NodeRule(becomes="WanCoreVAEDecode", inputs={"samples": "samples", "vae": "vae"}),
}
"""Nodes of kijai/ComfyUI-WanVideoWrapper that have a counterpart here."""

MODEL_LOADERS = {"UNETLoader": "unet_name", "DiffusionModelLoaderKJ": "model_name", "WanVideoModelLoader": "model"}
"""Native loader of a diffusion model -> its widget with the file."""
LORA_LOADERS = {
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "LoraLoader": ("lora_name", "strength_model"),
    "WanVideoLoraSelect": ("lora", "strength"),
}
"""Node with a LoRA -> its widgets with file and strength."""
SHIFTS = {"ModelSamplingSD3"}
SWITCHES = {"ComfySwitchNode"}

NATIVE_SHIFT = 8.0
"""What native ComfyUI samples a Wan model with where nothing sets a shift."""

SPEED = "our runtime decides memory, compilation and attention itself (the Memory node chooses a backend)"
BY_HAND = "put {} between model and sampler instead: its settings are counted differently"
QUALITY = "the pack has no counterpart; the picture will differ a little"
LEFT_OUT: dict[str, str] = {
    "TorchCompileModel": SPEED,
    "TorchCompileModelWanVideo": SPEED,
    "TorchCompileModelWanVideoV2": SPEED,
    "TorchCompileModelAdvanced": SPEED,
    "PathchSageAttentionKJ": SPEED,
    "PatchModelPatcherOrder": SPEED,
    "ModelPatchTorchSettings": SPEED,
    "wanBlockSwap": SPEED,
    "OverrideMODELDevice": SPEED,
    "ModelPassThrough": SPEED,
    "EasyCache": f"steps are not skipped, so it takes longer: {QUALITY}",
    "LazyCache": f"steps are not skipped, so it takes longer: {QUALITY}",
    "TeaCache": f"steps are not skipped, so it takes longer: {QUALITY}",
    "WanVideoTeaCacheKJ": f"steps are not skipped, so it takes longer: {QUALITY}",
    "CFGZeroStar": BY_HAND.format("Wan Core CFG-Zero*"),
    "CFGNorm": QUALITY,
    "RescaleCFG": QUALITY,
    "UNetTemporalAttentionMultiply": QUALITY,
    "SkipLayerGuidanceDiT": BY_HAND.format("Wan Core Skip-Layer Guidance"),
    "SkipLayerGuidanceDiTSimple": BY_HAND.format("Wan Core Skip-Layer Guidance"),
    "SkipLayerGuidanceWanVideo": BY_HAND.format("Wan Core Skip-Layer Guidance"),
    "WanVideoEnhanceAVideoKJ": QUALITY,
    "WanVideoNAG": BY_HAND.format("Wan Core NAG"),
    "NAGuidance": BY_HAND.format("Wan Core NAG"),
}
"""Nodes between loader and sampler that the picture does without -> why."""

OTHER_MODELS: dict[str, str] = {
    "WanAnimateToVideo": "Wan Animate",
    "WanAnimate2ToVideo": "Wan Animate 2",
    "WanAnimate2Cache": "Wan Animate 2",
    "WanSoundImageToVideo": "Wan S2V",
    "WanSoundImageToVideoExtend": "Wan S2V",
    "WanHuMoImageToVideo": "HuMo",
    "BerniniConditioning": "Bernini-R",
    "WanSCAILToVideo": "SCAIL",
    "WanDancerVideo": "Wan Dancer",
    "WanInfiniteTalkToVideo": "InfiniteTalk",
    "ARVideoI2V": "Causal Forcing",
    "SamplerARVideo": "Causal Forcing",
    "ScaleROPE": "ChronoEdit",
}
"""Nodes that only a model outside the pack's table needs -> that model."""

SOLVERS = {
    "euler": "euler",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
    "dpmpp_2m": "dpm++",
    "lcm": "lcm",
    "unipc": "unipc",
    "dpm++": "dpm++",
}
"""Native sampler name -> ours."""
OFFICIAL = "official"
SCHEDULES = {"simple": "simple", "normal": "diffusers", OFFICIAL: "auto"}
"""Native scheduler name -> ours with the same noise levels; ``official``: that of the wrapper's samplers."""
NEAREST_SOLVER, NEAREST_SCHEDULE = "unipc", "simple"
