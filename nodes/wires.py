"""Wire types, and conversions between ComfyUI's wires and wan_core's arguments.

CLIP, CLIP_VISION and VAE carry the objects below: they do what native nodes call on them, and refuse the rest in a
sentence. CONDITIONING and LATENT are ComfyUI's own, read here.
"""

import re
from dataclasses import dataclass

import torch
from comfy_api.latest import io
from torch import Tensor

from ..wan_core.conditioning.vace import VaceContext, with_empty_references
from ..wan_core.errors import InputError, MismatchError
from ..wan_core.grid import Grid
from ..wan_core.runtime.ports import Notify, Ports
from ..wan_core.stages import image, text, vace, vae
from ..wan_core.stages.load import ClipVisionHandle, TextEncoderHandle, VaeHandle
from ..wan_core.stages.sample import StartLatent
from ..wan_core.stages.sides import Condition
from ..wan_core.text.tokenizer import Tokens
from ..wan_core.variants import LATENTS, LatentSpec
from .host import host_ports

Model = io.Custom("WAN_CORE_MODEL")


WEIGHTED = re.compile(r"(?<!\\)\([^()]*\)")
BRACKETS = (
    "Brackets and weights such as (word:1.2) are read as plain text: Wan's text encoder was trained without them."
)
NO_TILES = (
    "The tile settings are not used: this VAE works on the whole picture, or on exact parts of it if memory is short."
)


class _Wire:
    """An object on a native wire. What native nodes may ask of it beyond its methods is refused in a sentence."""

    refusals: dict[str, str] = {}

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        advice = self.refusals.get(name, "Use the native loader for this node, or the Wan Core node for this task.")
        raise AttributeError(f"Wan Core's {type(self).label} does not do '{name}'. {advice}")


class ClipWire(_Wire):
    """umT5 on a CLIP wire."""

    label = "text encoder"
    refusals = {
        "add_patches": "LoRAs do not apply to umT5.",
        "patcher": "LoRA and hook nodes for CLIP do not apply to umT5; connect the text encoder directly.",
        "clip_layer": "umT5 has no layers to skip; remove the CLIP Set Last Layer node.",
        "generate": "umT5 only encodes text.",
    }

    def __init__(self, handle: TextEncoderHandle):
        self.handle = handle

    def clone(self, *args, **kwargs) -> "ClipWire":
        return ClipWire(self.handle)

    def tokenize(self, text_: str, return_word_ids: bool = False, **kwargs) -> dict[str, Tokens]:
        """The text as it is, without the official cleaning. Weights in brackets, which native text encoders apply, are
        plain text here, and the node says so."""
        if WEIGHTED.search(text_):
            host_ports().notify(BRACKETS)
        return {"umt5xxl": text.tokenize(self.handle, text_, host_ports(), clean=False)}

    def encode_from_tokens(self, tokens, return_pooled=False, return_dict=False, **kwargs):
        cond = text.encode_tokens(self.handle, tokens["umt5xxl"], host_ports())
        if return_dict:
            return {"cond": cond, "pooled_output": None}
        return (cond, None) if return_pooled else cond

    def encode_from_tokens_scheduled(self, tokens, unprojected=False, add_dict=None, show_pbar=True):
        return [[self.encode_from_tokens(tokens), {"pooled_output": None, **(add_dict or {})}]]


class VaeWire(_Wire):
    """A Wan VAE on a VAE wire; pictures in [0, 1], latents not normalised, as native nodes have them."""

    label = "VAE"
    refusals = {
        "first_stage_model": "Its network is not the native one.",
        "get_sd": "Save the file that it was loaded from.",
        "patcher": "Its weights are not patched by native nodes.",
    }

    def __init__(self, handle: VaeHandle):
        self.handle = handle
        self.latent_channels = handle.spec.channels
        self.output_device = torch.device("cpu")

    def throw_exception_if_invalid(self) -> None:
        """Native nodes ask before use; ours is refused when it is loaded."""

    def spacial_compression_encode(self) -> int:
        return self.handle.spec.stride_hw

    spacial_compression_decode = spacial_compression_encode

    def temporal_compression_decode(self) -> int:
        return self.handle.spec.stride_t

    def encode(self, pixels: Tensor) -> Tensor:
        """``[F, H, W, C]`` (one clip) or ``[B, F, H, W, C]``; cut to the grid and to three channels, as native."""
        clips = pixels[None] if pixels.ndim == 4 else pixels
        stride = self.handle.spec.stride_hw
        if clips.ndim != 5 or min(clips.shape[2:4]) < stride:
            raise InputError(
                f"The VAE takes pictures [count, height, width, channels] of {stride} pixels a side and more; got "
                f"{list(pixels.shape)}. Resize them."
            )
        height, width = (side // stride * stride for side in clips.shape[2:4])
        top, left = (clips.shape[2] - height) // 2, (clips.shape[3] - width) // 2
        clips = clips[:, :, top : top + height, left : left + width]
        return vae.encode(self.handle, clips, host_ports())

    def decode(self, samples: Tensor, vae_options=None) -> Tensor:
        """``[B, C, T, h, w]`` -> ``[B, F, H, W, 3]``."""
        return vae.decode(self.handle, samples, host_ports())

    def encode_tiled(self, pixels: Tensor, **tiling) -> Tensor:
        """The whole, streamed; tiles would change the result."""
        host_ports().notify(NO_TILES)
        return self.encode(pixels)

    def decode_tiled(self, samples: Tensor, **tiling) -> Tensor:
        """The whole, streamed; tiles would change the result."""
        host_ports().notify(NO_TILES)
        return self.decode(samples)


@dataclass
class ClipVisionOutput:
    """What native nodes read of a CLIP_VISION_OUTPUT; ours has the one tensor that Wan needs."""

    penultimate_hidden_states: Tensor

    def __getitem__(self, key: str):
        return getattr(self, key)


class ClipVisionWire(_Wire):
    """CLIP ViT-H on a CLIP_VISION wire."""

    label = "CLIP vision encoder"

    def __init__(self, handle: ClipVisionHandle):
        self.handle = handle

    def encode_image(self, images: Tensor, crop: bool = True) -> ClipVisionOutput:
        """As native CLIPVisionEncode prepares the picture."""
        return ClipVisionOutput(image.encode_image(self.handle, images, host_ports(), native_crop=crop))


def vae_spec(vae_wire) -> LatentSpec:
    """The latent space of a VAE, ours or native."""
    channels = vae_wire.latent_channels
    if channels not in LATENTS:
        raise MismatchError(
            f"The VAE has {channels} latent channels; Wan takes {' or '.join(str(n) for n in LATENTS)}. Load the Wan "
            "2.1 VAE, or for the 5B model the Wan 2.2 VAE."
        )
    return LATENTS[channels]


def clip_encoder(vae_wire, grid: Grid, ports: Ports) -> vace.Encode:
    """Ours encodes frame by frame, a native one the clip at once."""
    if isinstance(vae_wire, VaeWire):
        return vace.with_vae(vae_wire.handle, grid, ports)
    return lambda runs, _: vae_wire.encode(torch.cat(list(runs)))


_VACE = ("vace_frames", "vace_mask", "vace_strength")
VACE_OURS = "wan_core_vace"
"""Beside native ComfyUI's lists, one entry a context: (start, end, reference pictures)."""
_HONOURED = {
    "concat_latent_image", "concat_mask", "concat_mask_index", "clip_vision_output", "reference_latents",
    "camera_conditions", "time_dim_concat", "strength", "start_percent", "end_percent", "clip_start_percent",
    "clip_end_percent", *_VACE, VACE_OURS,
}  # fmt: skip
_INERT = {"pooled_output", "attention_mask"}
_NEUTRAL = {"set_area_to_bounds": False}
BEHIND = "behind Wan Core Model to MODEL"


def read_conditioning(conditioning: list, side: str) -> list[Condition]:
    """CONDITIONING -> the entries that the sampler takes; whatever it does not know is refused by name, never
    dropped."""
    if not conditioning:
        raise InputError(f"The {side} conditioning has no entry. Connect a Text Encode node.")
    return [_read_entry(cross_attn, extra, side) for cross_attn, extra in conditioning]


def _read_entry(cross_attn: Tensor, extra: dict, side: str) -> Condition:
    unknown = [
        key
        for key, value in extra.items()
        if value is not None and key not in _HONOURED | _INERT and not (key in _NEUTRAL and value == _NEUTRAL[key])
    ]
    if unknown:
        raise MismatchError(
            f"The {side} conditioning carries {', '.join(sorted(unknown))}, which the Wan Core sampler does not know. "
            f"Remove the node that adds it, or sample with native KSampler {BEHIND}."
        )
    mask = extra.get("concat_mask")
    output = extra.get("clip_vision_output")
    control, known = _halves(extra.get("concat_latent_image"))
    _check_mask_index(extra.get("concat_mask_index"), control, side)
    return Condition(
        text=cross_attn,
        known_latent=known,
        known_mask=None if mask is None else 1.0 - _four_channels(mask),
        clip=None if output is None else output.penultimate_hidden_states,
        control_latent=control,
        reference=_last_reference(extra.get("reference_latents"), side),
        camera=extra.get("camera_conditions"),
        vace=read_vace(extra, side),
        subjects=extra.get("time_dim_concat"),
        strength=float(extra.get("strength", 1.0)),
        start=max(extra.get("start_percent", 0.0), extra.get("clip_start_percent", 0.0)),
        end=min(extra.get("end_percent", 1.0), extra.get("clip_end_percent", 1.0)),
    )


def _halves(latent: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What native nodes put beside the noise -> the latent of a control video, and of known frames. Two latents side
    by side are both, one is known frames."""
    if isinstance(latent, Tensor) and latent.ndim == 5 and latent.shape[1] in [2 * channels for channels in LATENTS]:
        return latent.chunk(2, dim=1)
    return None, latent


def _last_reference(references: list | None, side: str) -> Tensor | None:
    """Native nodes append to a list, of which native Wan models take the last."""
    if references is None:
        return None
    if not isinstance(references, list) or not references:
        raise InputError(
            f"The {side} conditioning carries reference_latents that are no list of latents. Remove the node that adds "
            "them."
        )
    if len(references) > 1:
        host_ports().notify(f"Of {len(references)} reference pictures the last one is used: Wan takes one.")
    return references[-1]


def _check_mask_index(index: int | None, control: Tensor | None, side: str) -> None:
    """Native nodes say behind which channel the mask stands; the model's own order is what counts here."""
    if index and (control is None or index != control.shape[1]):
        raise MismatchError(
            f"The {side} conditioning puts its mask behind channel {index}; Wan models have it in front of the known "
            "frames and behind a control video. Use Wan Core Fun Control, or sample with the native KSampler."
        )


def read_vace(extra: dict, side: str) -> tuple[VaceContext, ...]:
    """The VACE contexts of one side, from native nodes or ours, in the order in which they were added."""
    frames, masks, strengths = (extra.get(name) for name in _VACE)
    if frames is None:
        if masks is not None or strengths is not None:
            raise MismatchError(
                f"The {side} conditioning carries vace_mask or vace_strength without vace_frames, which the Wan Core "
                "sampler does not know. Remove the node that adds it, or sample with the native KSampler."
            )
        return ()
    masks = [None] * len(frames) if masks is None else masks
    strengths = [1.0] * len(frames) if strengths is None else strengths
    if not len(frames) == len(masks) == len(strengths):
        raise MismatchError(
            f"The {side} conditioning carries {len(frames)} VACE contexts, {len(masks)} masks and {len(strengths)} "
            "strengths. Remove the node that changes one of them."
        )
    return tuple(
        VaceContext(latent=latent, mask=mask, strength=float(strength), start=start, end=end)
        for latent, mask, strength, (start, end, _) in zip(frames, masks, strengths, _vace_ours(extra), strict=True)
    )


def _vace_ours(extra: dict) -> list[tuple[float, float, int]]:
    """Our entry of each context; those of native nodes count throughout, with no reference picture known of."""
    count = len(extra.get("vace_frames") or ())
    ours = list(extra.get(VACE_OURS) or ())[:count]
    return ours + [(0.0, 1.0, 0)] * (count - len(ours))


def write_vace(conditioning: list, context: VaceContext, references: int, spec: LatentSpec) -> tuple[list, int]:
    """Add a context to CONDITIONING, after those that are there, and make room for the most reference pictures of any.

    Returns:
        The conditioning, and the number of latent frames before the clip.
    """
    made, before = [], references
    for cross_attn, extra in conditioning:
        entries = [*_vace_ours(extra), (context.start, context.end, references)]
        most = max(count for *_, count in entries)
        values = {name: [*(extra.get(name) or ())] for name in _VACE}
        for name, value in zip(_VACE, (context.latent, context.mask, context.strength)):
            values[name].append(value)
        pairs = [
            with_empty_references(latent, mask, most - count, spec)
            for latent, mask, (*_, count) in zip(*(values[name] for name in _VACE[:2]), entries, strict=True)
        ]
        values["vace_frames"], values["vace_mask"] = ([*each] for each in zip(*pairs))
        lengths = [latent.shape[2] for latent in values["vace_frames"]]
        if len(set(lengths)) > 1:
            raise MismatchError(
                f"The VACE contexts have {', '.join(map(str, lengths))} latent frames. Give every VACE node the same "
                "number of frames, and native ones the same number of reference pictures."
            )
        values[VACE_OURS] = [(start, end, most) for start, end, _ in entries]
        made.append([cross_attn, {**extra, **values}])
        before = max(before, most)
    return made, before


def _four_channels(mask: Tensor) -> Tensor:
    if mask.ndim != 5:
        raise MismatchError(
            f"The mask of the image conditioning is {list(mask.shape)}; a video's is [batch, 1 or 4, frames, height, "
            "width]. Use an image-to-video node instead of one for pictures."
        )
    return mask if mask.shape[1] == 4 else mask.mean(dim=1, keepdim=True).repeat(1, 4, 1, 1, 1)


def write_known_frames(conditioning: list, latent: Tensor, known_mask: Tensor) -> list:
    """Add known frames to CONDITIONING as native image-to-video nodes do (there 1 means: to be made)."""
    return _with_values(conditioning, {"concat_latent_image": latent, "concat_mask": 1.0 - known_mask})


def write_control(conditioning: list, control: Tensor, known: Tensor, known_mask: Tensor) -> list:
    """Add a control video and known frames to CONDITIONING as native Fun Control nodes do."""
    beside = torch.cat((control, known), dim=1)
    index = {"concat_mask_index": control.shape[1]}
    return _with_values(conditioning, {"concat_latent_image": beside, "concat_mask": 1.0 - known_mask, **index})


def write_reference(conditioning: list, latent: Tensor) -> list:
    """Add a reference picture ``[1, C, 1, h, w]`` to CONDITIONING, behind any that is there, as native nodes do."""
    return [[cross, {**more, "reference_latents": [*more.get("reference_latents", []), latent]}] for cross, more in
            conditioning]  # fmt: skip


def write_subjects(conditioning: list, latent: Tensor) -> list:
    """Add pictures of subjects ``[1, C, n, h, w]`` to CONDITIONING as the native Phantom node does."""
    return _with_values(conditioning, {"time_dim_concat": latent})


def write_camera(conditioning: list, embedding: Tensor) -> list:
    return _with_values(conditioning, {"camera_conditions": embedding})


def write_clip_vision(conditioning: list, tokens: Tensor) -> list:
    return _with_values(conditioning, {"clip_vision_output": ClipVisionOutput(tokens)})


def _with_values(conditioning: list, values: dict) -> list:
    return [[cross_attn, {**extra, **values}] for cross_attn, extra in conditioning]


REFERENCES = "wan_core_references"
"""In a LATENT: (latent frames of reference pictures before the clip, latent frames in all)."""
_LATENT_INERT = {"downscale_ratio_spacial", "downscale_ratio_temporal", "fps", "type", REFERENCES}


def read_latent(latent: dict) -> StartLatent:
    """LATENT -> what the sampler starts from."""
    unknown = sorted(set(latent) - _LATENT_INERT - {"samples", "noise_mask", "batch_index"})
    if unknown:
        raise MismatchError(
            f"The latent carries {', '.join(unknown)}, which the Wan Core sampler does not know. Remove the node that "
            "adds it, or sample with the native KSampler."
        )
    samples = latent.get("samples")
    if not isinstance(samples, Tensor) or samples.is_nested:
        kind = "several tensors" if isinstance(samples, Tensor) else f"a {type(samples).__name__}"
        raise MismatchError(
            f"The latent holds {kind}, not one tensor of a video. Connect a Wan Core Empty Latent, or encode a clip."
        )
    return StartLatent(
        samples=samples.unsqueeze(2) if samples.ndim == 4 else samples,
        noise_mask=latent.get("noise_mask"),
        batch_index=latent.get("batch_index"),
    )


def references_before(latent: dict) -> int:
    """Latent frames of reference pictures before the clip; 0 where another node (TrimVideoLatent) has cut frames."""
    count, total = latent.get(REFERENCES) or (0, 0)
    return count if latent["samples"].ndim == 5 and latent["samples"].shape[2] == total else 0


def without_references(latent: dict, notify: Notify) -> Tensor:
    """The samples of the clip alone: latent frames of reference pictures before it are cut off, and that is said."""
    samples, before = latent["samples"], references_before(latent)
    if before:
        notify(f"The {before} latent frames of reference pictures before the clip are cut off.")
        samples = samples[:, :, before:]
    return samples


def write_latent(source: dict, samples: Tensor, fps: int) -> dict:
    """The sampled LATENT; everything native that the source carried goes on, and the fps with it."""
    kept = {key: value for key, value in source.items() if not key.startswith("downscale_ratio")}
    return {**kept, "samples": samples, "fps": fps}
