"""Frames <-> latents, streamed: neither side ever needs the whole clip inside the network."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..conditioning.checks import check_tensor
from ..conditioning.known_frames import LATENT_LAYOUT
from ..errors import InputError, MismatchError
from ..grid import check_amount, latent_frames, pixel_frames
from ..runtime.finite import check_finite
from ..runtime.ports import Ports
from ..variants import LatentSpec
from .load import VaeHandle

BYTES_PER_PIXEL = 6000
"""Activations and feature caches of a decode per output pixel and byte of the dtype, at the width of VAE 2.1."""


NOT_FINITE = "Check the pictures or the latent that went in, or load the VAE with precision fp32."


def check_channels(spec: LatentSpec, channels: int) -> None:
    """A latent of another model is refused before anything is computed."""
    if channels != spec.channels:
        raise MismatchError(
            f"The latent has {channels} channels, the {spec.vae} takes {spec.channels}. The Wan 2.2 VAE belongs to the "
            "5B model, the Wan 2.1 VAE to all others."
        )


def _clips(vae: VaeHandle, latent: Tensor) -> Tensor:
    """The latent, checked; one without frames (of a picture) gets one."""
    latent = latent.unsqueeze(2) if isinstance(latent, Tensor) and latent.ndim == 4 else latent
    check_tensor(latent, "The latent", LATENT_LAYOUT)
    check_channels(vae.spec, latent.shape[1])
    check_amount(vae.spec, *latent.shape[2:])
    return latent


@torch.no_grad()
def decode_stream(vae: VaeHandle, latent_BCTHW: Tensor, ports: Ports) -> Iterator[Tensor]:
    """Latent -> frames, run by run.

    Args:
        latent_BCTHW: ``[B, C, T, h, w]``, not normalised (ComfyUI's LATENT); without T it is one frame.

    Yields:
        ``[B, n, H, W, 3]`` float32 on the CPU in 0..1; 1 frame, then 4 for each further latent frame.
    """
    latent_BCTHW = _clips(vae, latent_BCTHW)
    batch, _, frames, height, width = latent_BCTHW.shape
    module = ports.memory.place(vae.weights, working_bytes(vae, batch, height, width), certain=False)
    device = vae.weights.where
    pieces = (latent_BCTHW[:, :, i : i + 1].to(device) for i in range(frames))
    for index, video in enumerate(module.decode_stream(_checked(pieces, ports))):
        check_finite(video, f"VAE decode, latent frame {index + 1} of {frames}", vae.weights.name, NOT_FINITE)
        ports.progress(index + 1, frames, None)
        yield video.float().cpu().clamp_(-1, 1).add_(1).div_(2).movedim(1, -1)


def decode(vae: VaeHandle, latent_BCTHW: Tensor, ports: Ports) -> Tensor:
    """All frames at once: ``[B, F, H, W, 3]`` in 0..1."""
    latent_BCTHW = _clips(vae, latent_BCTHW)
    batch, _, frames, height, width = latent_BCTHW.shape
    scale = vae.spec.stride_hw
    out = torch.empty(batch, pixel_frames(frames, vae.spec.stride_t), height * scale, width * scale, 3)
    done = 0
    for run in decode_stream(vae, latent_BCTHW, ports):
        out[:, done : done + run.shape[1]] = run
        done += run.shape[1]
    return out


@torch.no_grad()
def encode_stream(vae: VaeHandle, runs_B3FHW: Iterable[Tensor], size: tuple[int, int, int, int], ports: Ports):
    """Frames -> latent frames, run by run.

    Args:
        runs_B3FHW: runs of frames ``[B, 3, n, H, W]`` in [-1, 1], of any length each.
        size: (batch, frames in all, height, width); sides must be multiples of the VAE's stride.

    Yields:
        ``[B, C, 1, h, w]`` float32 on the CPU, not normalised.
    """
    batch, frames, height, width = size
    stride = vae.spec.stride_hw
    if height % stride or width % stride or min(height, width) < stride:
        raise InputError(
            f"The VAE takes sides that are multiples of {stride}; got {width}x{height}. Resize or crop to "
            f"{max(stride, width // stride * stride)}x{max(stride, height // stride * stride)}."
        )
    module = ports.memory.place(
        vae.weights, working_bytes(vae, batch, height // stride, width // stride), certain=False
    )
    device = vae.weights.where
    total = latent_frames(frames, vae.spec.stride_t)
    pieces = (run.to(device) for run in runs_B3FHW)
    for index, mu in enumerate(module.encode_stream(_checked(pieces, ports))):
        check_finite(mu, f"VAE encode, latent frame {index + 1} of {total}", vae.weights.name, NOT_FINITE)
        ports.progress(index + 1, total, None)
        yield mu.float().cpu()


def encode(vae: VaeHandle, frames_BFHWC: Tensor, ports: Ports) -> Tensor:
    """Pictures ``[B, F, H, W, 3]`` in 0..1 -> latent ``[B, C, T, h, w]``, not normalised. Frames beyond 4n+1 are not
    seen by the VAE."""
    check_tensor(frames_BFHWC, "The clip to encode", "batch, frames, height, width, channels")
    batch, frames, height, width, channels = frames_BFHWC.shape
    if channels < 3:
        raise InputError(f"The pictures have {channels} channels; the VAE takes 3 (RGB).")
    video = frames_BFHWC[..., :3].movedim(-1, 1)
    runs = (video[:, :, i : i + 1].float() * 2 - 1 for i in range(frames))
    return torch.cat(list(encode_stream(vae, runs, (batch, frames, height, width), ports)), dim=2)


def working_bytes(vae: VaeHandle, batch: int, latent_height: int, latent_width: int) -> int:
    """Estimated activations and caches of one decode."""
    pixels = latent_height * latent_width * (vae.spec.stride_hw // vae.config.patch) ** 2
    width = max(vae.config.dim, vae.config.dec_dim) / 96
    return int(batch * pixels * width * BYTES_PER_PIXEL * vae.weights.compute_dtype.itemsize)


def _checked(pieces: Iterable[Tensor], ports: Ports) -> Iterator[Tensor]:
    for piece in pieces:
        ports.check_cancel()
        yield piece
