"""Our nodes as a page draws them. The tests compare this table with the nodes themselves."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sockets ``(name, type)`` and widgets ``name -> (type, default)``, in the page's order."""

    title: str
    sockets: tuple[tuple[str, str], ...] = ()
    widgets: dict[str, tuple[str, object]] = field(default_factory=dict)
    last_sockets: tuple[tuple[str, str], ...] = ()
    """Sockets among or behind the widgets: the page draws them at the top all the same."""
    outputs: tuple[tuple[str, str], ...] = ()
    seeded: bool = False
    """Its first widget is a seed, with the page's own widget behind it."""


MODEL = "WAN_CORE_MODEL"
PRECISION = {"precision": ("COMBO", "auto")}

OURS: dict[str, Shape] = {
    "WanCoreLoadModel": Shape(
        title="Wan Core Load Model",
        widgets={
            "model_name": ("COMBO", None),
            "low_noise_model": ("COMBO", "none"),
            "variant": ("COMBO", "auto"),
            **PRECISION,
            "module_name": ("COMBO", "none"),
            "low_noise_module": ("COMBO", "none"),
        },
        outputs=(("model", MODEL),),
    ),
    "WanCoreLoadTextEncoder": Shape(
        title="Wan Core Load Text Encoder",
        widgets={"text_encoder_name": ("COMBO", None), **PRECISION},
        outputs=(("text encoder", "CLIP"),),
    ),
    "WanCoreLoadVAE": Shape(
        title="Wan Core Load VAE",
        widgets={"vae_name": ("COMBO", None), **PRECISION},
        outputs=(("VAE", "VAE"),),
    ),
    "WanCoreLoadCLIPVision": Shape(
        title="Wan Core Load CLIP Vision",
        widgets={"clip_vision_name": ("COMBO", None), **PRECISION},
        outputs=(("CLIP vision", "CLIP_VISION"),),
    ),
    "WanCoreLoRA": Shape(
        title="Wan Core LoRA",
        sockets=(("model", MODEL),),
        widgets={
            "lora_name": ("COMBO", "none"),
            "strength": ("FLOAT", 1.0),
            "low_noise_lora": ("COMBO", "same"),
            "strength_low": ("FLOAT", 1.0),
            "over_steps": ("STRING", ""),
            "blocks": ("STRING", ""),
            "strict": ("BOOLEAN", False),
        },
        outputs=(("model", MODEL),),
    ),
    "WanCoreSampler": Shape(
        title="Wan Core Sampler",
        sockets=(
            ("model", MODEL),
            ("positive", "CONDITIONING"),
            ("negative", "CONDITIONING"),
            ("latent", "LATENT"),
        ),
        widgets={
            "seed": ("INT", 0),
            "steps": ("INT", 0),
            "guidance": ("FLOAT", 0.0),
            "guidance_low": ("FLOAT", 0.0),
            "shift": ("FLOAT", 0.0),
            "solver": ("COMBO", "unipc"),
            "schedule": ("COMBO", "auto"),
            "denoise": ("FLOAT", 1.0),
            "start_step": ("INT", 0),
            "end_step": ("INT", 10000),
            "boundary": ("FLOAT", 0.0),
            "switch_step": ("INT", 0),
            "add_noise": ("BOOLEAN", True),
        },
        last_sockets=(("sigmas", "SIGMAS"),),
        outputs=(("latent", "LATENT"),),
        seeded=True,
    ),
    "WanCoreTextEncode": Shape(
        title="Wan Core Text Encode",
        sockets=(("clip", "CLIP"),),
        widgets={"positive": ("STRING", ""), "negative": ("STRING", None)},
        outputs=(("positive", "CONDITIONING"), ("negative", "CONDITIONING")),
    ),
    "WanCoreEmptyLatent": Shape(
        title="Wan Core Empty Latent",
        sockets=(("model", MODEL),),
        widgets={
            "width": ("INT", 832),
            "height": ("INT", 480),
            "frames": ("INT", 81),
            "batch_size": ("INT", 1),
        },
        outputs=(("latent", "LATENT"),),
    ),
    "WanCoreImageToVideo": Shape(
        title="Wan Core Image to Video",
        sockets=(("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("vae", "VAE")),
        widgets={
            "width": ("INT", 832),
            "height": ("INT", 480),
            "frames": ("INT", 81),
            "batch_size": ("INT", 1),
        },
        last_sockets=(
            ("start_image", "IMAGE"),
            ("end_image", "IMAGE"),
            ("clip_vision_output", "CLIP_VISION_OUTPUT"),
            ("model", MODEL),
        ),
        outputs=(("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent", "LATENT")),
    ),
    "WanCoreCLIPVisionEncode": Shape(
        title="Wan Core CLIP Vision Encode",
        sockets=(("clip_vision", "CLIP_VISION"), ("start_image", "IMAGE")),
        last_sockets=(("end_image", "IMAGE"),),
        outputs=(("CLIP vision output", "CLIP_VISION_OUTPUT"),),
    ),
    "WanCoreVAEEncode": Shape(
        title="Wan Core VAE Encode",
        sockets=(("images", "IMAGE"), ("vae", "VAE")),
        outputs=(("latent", "LATENT"),),
    ),
    "WanCoreVAEDecode": Shape(
        title="Wan Core VAE Decode",
        sockets=(("samples", "LATENT"), ("vae", "VAE")),
        outputs=(("images", "IMAGE"), ("fps", "FLOAT")),
    ),
}


def defaults(kind: str) -> dict[str, object]:
    """The values of a new node's widgets; those without a default are left to whoever makes it."""
    return {name: default for name, (_, default) in OURS[kind].widgets.items() if default is not None}
