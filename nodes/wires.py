"""What our nodes put on wires: CLIP, CLIP_VISION and VAE carry the objects below, which do what native nodes call on
them, and refuse the rest in a sentence. CONDITIONING and LATENT are ComfyUI's own (:mod:`.native_wires`)."""

import re
from dataclasses import dataclass

import torch
from comfy_api.latest import io
from torch import Tensor

from ..wan_core.errors import InputError, MismatchError
from ..wan_core.grid import Grid
from ..wan_core.runtime.ports import Ports
from ..wan_core.stages import image, text, vace, vae
from ..wan_core.stages.load import ClipVisionHandle, TextEncoderHandle, VaeHandle
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
