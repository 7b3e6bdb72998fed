"""Known pictures as extra input channels: ``[mask 4 | latent]`` beside the noise (Feature.CONCAT).

Source: Wan-Video/Wan2.1 ``wan/image2video.py`` and ``wan/first_last_frame2video.py``.
"""

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor

from ..errors import MismatchError
from ..grid import Grid
from ..variants import LatentSpec
from .checks import check_tensor
from .text import spread

LATENT_LAYOUT = "batch, channels, frames, height, width"
MASK_CHANNELS = 4
"""One for each of the pixel frames behind a latent frame."""


def known_mask(grid: Grid, first: int, last: int) -> Tensor:
    """Which frames are given: 1 known, 0 to be made.

    Args:
        grid: size of the clip.
        first, last: number of pixel frames known at the start and at the end.

    Returns:
        ``[1, 4, T, h, w]`` in 0..1. The first latent frame stands for one pixel frame, repeated four times.
    """
    frames = torch.zeros(grid.frames)
    frames[:first] = 1
    if last:
        frames[-last:] = 1
    frames = torch.cat((frames[:1].repeat(MASK_CHANNELS), frames[1:]))
    mask = rearrange(frames, "(t c) -> 1 c t 1 1", c=MASK_CHANNELS)
    return mask.expand(-1, -1, -1, grid.latent_height, grid.latent_width)


def known_video(grid: Grid, first_3FHW: Tensor | None, last_3FHW: Tensor | None) -> Iterator[Tensor]:
    """The clip that the VAE encodes: the known pictures, mid grey (0) where nothing is known.

    Args:
        first_3FHW, last_3FHW: pictures in [-1, 1] already of the clip's size.

    Yields:
        ``[1, 3, n, H, W]`` runs of frames, ``grid.frames`` in all, so that a long clip never exists as a whole.
    """
    first = 0 if first_3FHW is None else min(first_3FHW.shape[1], grid.frames)
    last = 0 if last_3FHW is None else min(last_3FHW.shape[1], grid.frames - first)
    like = first_3FHW if first_3FHW is not None else last_3FHW
    if first:
        yield first_3FHW[None, :, :first]
    for _ in range(grid.frames - first - last):
        yield torch.zeros(1, 3, 1, grid.height, grid.width, dtype=like.dtype, device=like.device)
    if last:
        yield last_3FHW[None, :, -last:]


def concat_channels(known_latent: Tensor | None, mask: Tensor | None, spec: LatentSpec, like: Tensor) -> Tensor:
    """What stands beside the noise: ``[B, 4 + C, T, h, w]``, mask first.

    Args:
        known_latent: VAE latent of :func:`known_video`, not normalised; None: nothing is known (zeros).
        mask: :func:`known_mask`; None: nothing is known.
        spec: the latent space.
        like: the noisy latent, for batch and size.
    """
    batch, channels, *size = like.shape
    if known_latent is None:
        return like.new_zeros(batch, MASK_CHANNELS + channels, *size)
    check_tensor(known_latent, "The image conditioning", LATENT_LAYOUT)
    if list(known_latent.shape[1:]) != [channels, *size]:
        raise MismatchError(
            f"The image conditioning was made for a latent of {list(known_latent.shape[1:])} (channels, frames, "
            f"height, width), the latent to sample is {[channels, *size]}. Give both nodes the same width, height, "
            "frames and VAE."
        )
    mask = like.new_zeros(1, MASK_CHANNELS, *size) if mask is None else mask
    check_tensor(mask, "The mask of the image conditioning", LATENT_LAYOUT)
    if list(mask.shape[1:]) != [MASK_CHANNELS, *size]:
        raise MismatchError(
            f"The mask of the image conditioning is {list(mask.shape[1:])} (channels, frames, height, width), the "
            f"latent to sample needs {[MASK_CHANNELS, *size]}. Give both nodes the same width, height and frames."
        )
    sides = mask.to(like), spec.normalise(known_latent.to(like))
    return torch.cat([spread(side, batch, "image conditioning") for side in sides], dim=1)
