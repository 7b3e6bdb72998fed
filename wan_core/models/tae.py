"""The decoder of the tiny autoencoders of Wan (TAE): close to what the VAE makes, for a small part of its work.

Source: madebyollin/taehv, ``taehv.py`` (MIT); parameter names are those of its files. Shape letters: B batch, C
channels, H height, W width; lower case in the latent.

It is causal in time, and its only memory is the frame that each block has seen before. So frames go through one by one,
depth first: no two of them are at full size at once, and memory does not grow with the length of a clip.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configs import TaeConfig
from .vae_parts import Box

GROWS = (1, 2, 2)
"""Frames that each level makes of one, while it doubles the sides."""
STRIDE_T = 4
Memory = dict[nn.Module, Tensor]
"""Block -> the frame that it has seen last. One for each stream, empty at its start."""


class WanTAE(nn.Module):
    """A latent frame -> its frames. Computes in its weights' dtype; no gradients are kept.

    The two methods are those of :class:`.vae.WanVAE`, so that a stage drives both alike.
    """

    def __init__(self, config: TaeConfig):
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [SoftClamp(), _conv(config.z_dim, config.widths[0]), nn.ReLU(inplace=True)]
        for (dim, dim_out), frames in zip(pairwise(config.widths), GROWS):
            layers += [MemBlock(dim) for _ in range(3)]
            layers += [nn.Identity(), Grow(dim, frames), _conv(dim, dim_out, bias=False)]
        layers += [nn.ReLU(inplace=True), _conv(config.widths[-1], 3 * config.patch**2)]
        self.decoder = nn.Sequential(*layers)

    def decode_joined(self, z_BCthw: Tensor, memory: Memory) -> Tensor:
        """All layers are local: there is nothing to do for a picture as a whole."""
        return z_BCthw.to(self.decoder[1].weight.dtype)

    def decode_part(self, z_BCthw: Tensor, memory: Memory, box: Box) -> Iterator[Tensor]:
        """Yields ``[B, 3, n, H, W]`` in about [-1, 1], one latent frame after another; ``n`` is 4, of a clip's first
        frame 1. ``box`` is the whole."""
        for z_BChw in z_BCthw.unbind(2):
            yield self._decode_one(z_BChw, memory)

    @torch.no_grad()
    def _decode_one(self, z_BChw: Tensor, memory: Memory) -> Tensor:
        skipped = 0 if memory else STRIDE_T - 1  # a clip's first latent frame is one picture: the last that it makes
        frames = [frame for i, frame in enumerate(self._frames(z_BChw, 0, memory)) if i >= skipped]
        return torch.stack(frames, dim=2).mul_(2).sub_(1)

    def _frames(self, x: Tensor, start: int, memory: Memory) -> Iterator[Tensor]:
        """What the layers from ``start`` on make of one frame: pictures in about [0, 1]."""
        for index in range(start, len(self.decoder)):
            layer = self.decoder[index]
            if isinstance(layer, Grow):
                for frame in layer(x):
                    yield from self._frames(F.interpolate(frame, scale_factor=2), index + 1, memory)
                return
            x = layer(x, memory) if isinstance(layer, MemBlock) else layer(x)
        yield F.pixel_shuffle(x, self.config.patch)


class SoftClamp(nn.Module):
    """Latents outside of -3 to 3 are drawn in."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemBlock(nn.Module):
    """A residual block that also sees the frame before; at a clip's start that is zeros."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * dim, dim), nn.ReLU(inplace=True), _conv(dim, dim), nn.ReLU(inplace=True), _conv(dim, dim)
        )

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        past = memory[self] if self in memory else torch.zeros_like(x)
        memory[self] = x
        return self.conv(torch.cat((x, past), dim=1)).add_(x).relu_()


class Grow(nn.Module):
    """One frame -> ``frames``, each of as many channels. The original repeats pixels before, here they are repeated
    after: the same numbers for a quarter of the work."""

    def __init__(self, dim: int, frames: int):
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(dim, dim * frames, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x).chunk(self.frames, dim=1)


def _conv(dim_in: int, dim_out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(dim_in, dim_out, 3, padding=1, bias=bias)
