"""Files that are no model we can run: how they show in their names, what they are, and where they belong."""

import re
from collections.abc import Iterable

from ..errors import ModelFileError

# Wan models of a kind that is not built yet: pattern of a name without prefix -> what it is.
NOT_YET: tuple[tuple[str, str], ...] = (
    (r"casual_audio_encoder\.|audio_injector\.|trainable_cond_mask\.", "Wan 2.2 S2V (speech to video)"),
    (r"face_adapter\.|pose_patch_embedding\.|motion_encoder\.|face_encoder\.", "Wan 2.2 Animate"),
    (r"audio_proj\.|audio_proj_glob", "HuMo or another audio-driven Wan model"),
    (r"patch_embedding_mask\.", "SCAIL 2"),
    (r"patch_embedding_pose\.", "SCAIL"),
    (r"patch_embedding_global\.", "WanDancer"),
)

_LORA = (
    "a LoRA, which is applied on top of a model and is no model by itself. It belongs in models/loras; choose the "
    "base model here"
)
_SD = "Use a Wan 2.1 or 2.2 model; this one loads with ComfyUI's own Load Checkpoint node"
_OTHER = "Use a Wan 2.1 or 2.2 model; this one loads with ComfyUI's own Load Diffusion Model node"
_TEXT = "Wan uses the umT5-XXL text encoder (umt5_xxl_fp8_e4m3fn_scaled.safetensors)"
_CLIP = "Wan image models use CLIP ViT-H (clip_vision_h.safetensors)"

# Everything else: pattern searched in full names -> what it is, what to do. First hit counts.
FOREIGN: tuple[tuple[str, str, str], ...] = (
    (r"\.lora_[AB]\b|\.lora_(up|down)\b|_lora\.(up|down)\.|\.lora\.(up|down)\.|\.lora_linear_layer\.", _LORA, ""),
    (r"\.hada_w[12]_|\.lokr_w[12]|\.dora_scale$|\.diff_b$|\.diff_m$|\.diff$", _LORA, ""),
    (r"(^|\.)vace_(blocks|patch_embedding)\.", "a VACE module, which holds the VACE blocks alone",
     "Choose the T2V model of its size here, and this file as module_name; or choose a whole VACE model"),
    (r"conditioner\.embedders\.1\.", "an SDXL checkpoint", _SD),
    (r"input_blocks\.0\.0\.weight$", "a Stable Diffusion (SD 1, 2 or XL) model", _SD),
    (r"cond_stage_model\.", "a Stable Diffusion checkpoint", _SD),
    (r"double_blocks\.0\.|double_stream_modulation", "a Flux or Hunyuan Video model", _OTHER),
    (r"joint_blocks\.0\.", "a Stable Diffusion 3 model", _OTHER),
    (r"adaln_single\.|scale_shift_table$", "an LTX or PixArt model", _OTHER),
    (r"mel_(spec|emb|head)|speech_(emb|head|tok)|hifigan|text_embed\.text_blocks|\.vocoder\.|^vocoder\.",
     "a text-to-speech or music model", "It loads with the nodes made for it; use a Wan 2.1 or 2.2 model here"),
    (r"transformer_blocks\.0\.", "a model of another family (Qwen Image, CogVideo, Flux ...)", _OTHER),
    (r"wav2vec2\.|feature_extractor\.conv_layers\.", "a wav2vec2 audio encoder", "Audio is not supported yet"),
    (r"SelfAttention\.q\.|\benc\.blk\.", "a T5 text encoder that is not umT5", _TEXT),
    (r"text_model\.encoder\.layers\.|token_embedding\.weight$", "a CLIP text encoder", _TEXT),
    (r"self_attn\.q_proj\.|mlp\.gate_proj\.", "a language model used as text encoder", _TEXT),
    (r"vision_model\.|visual\.|image_encoder\.", "another image encoder", _CLIP),
    (r"encoder\.down\.0\.block\.|decoder\.up\.0\.block\.|decoder\.up_blocks\.0\.resnets", "the VAE of another model",
     "Use the Wan 2.1 VAE (wan_2.1_vae.safetensors) or the Wan 2.2 VAE (wan2.2_vae.safetensors)"),
    (r"^(encoder|decoder)\.\d+\.|taesd|taew", "a tiny preview VAE", "It belongs in models/vae_approx"),
    (r"^(blocks\.\d+\.(self_attn|cross_attn|ffn)\.|condition_embedder\.)", "a part of a Wan model (shard or extract)",
     "Download all parts, or the single-file version"),
)  # fmt: skip


def refuse_not_yet(names: Iterable[str], file_name: str) -> None:
    """Raise for a Wan model of a kind that is not built yet. ``names`` are without prefix."""
    names = list(names)
    for pattern, title in NOT_YET:
        compiled = re.compile(pattern)
        if any(compiled.match(name) for name in names):
            raise ModelFileError(
                f"{file_name} is {title}, which is not supported yet. Use a T2V, I2V, FLF2V, TI2V, VACE or Fun "
                "model of Wan 2.1 or 2.2."
            )


def foreign_error(names: Iterable[str], file_name: str) -> ModelFileError:
    """The error for a file in which no known model was found."""
    names = list(names)
    for pattern, what, advice in FOREIGN:
        compiled = re.compile(pattern)
        if any(compiled.search(name) for name in names):
            return ModelFileError(f"{file_name} seems to be {what}{'. ' if advice else ''}{advice}.")
    shown = ", ".join(sorted(names)[:3])
    return ModelFileError(
        f"{file_name} is no Wan model, VAE, umT5 text encoder or CLIP vision tower that is known here (its tensors "
        f"begin with {shown[:200]}). Choose another file."
    )
