"""What Wan Fun models add to the transformer: a camera adapter, and a reference picture in front of the clip.

Source: aigc-apps/VideoX-Fun ``videox_fun/models/wan_camera_adapter.py`` and ``wan_transformer3d.py``; parameter names
are the official ones.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configs import DitConfig

CAMERA_CHANNELS = 24
"""Six Pluecker numbers for each of the four pixel frames behind a latent frame."""


class CameraResidual(nn.Module):
    """Two 3x3 convolutions around a ReLU, added to what goes in."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.conv2(F.relu(self.conv1(x_BCHW)))


class CameraAdapter(nn.Module):
    """A camera embedding at pixel resolution -> one vector a token."""

    def __init__(self, cfg: DitConfig):
        super().__init__()
        self.fold = math.isqrt(cfg.camera_dim // CAMERA_CHANNELS)
        self.conv = nn.Conv2d(cfg.camera_dim, cfg.dim, cfg.patch[1:], cfg.patch[1:])
        self.residual_blocks = nn.ModuleList([CameraResidual(cfg.dim)])

    def frame(self, camera_BCHW: Tensor) -> Tensor:
        """``[B, 24, H, W]`` (wherever it lies) -> ``[B, tokens of a frame, dim]``."""
        weight = self.conv.weight
        x = self.conv(F.pixel_unshuffle(camera_BCHW.to(weight.device, weight.dtype), self.fold))
        for block in self.residual_blocks:
            x = block(x)
        return x.flatten(2).transpose(1, 2)

    def add(self, tokens_BLd: Tensor, camera_BCTHW: Tensor) -> Tensor:
        """The tokens with the path added, a latent frame at a time: the embedding is many times the clip's size, and
        stays where it is."""
        made = [
            tokens + self.frame(camera_BCTHW[:, :, index])
            for index, tokens in enumerate(tokens_BLd.chunk(camera_BCTHW.shape[2], dim=1))
        ]
        return torch.cat(made, dim=1)


class ReferenceEmbedding(nn.Conv2d):
    """A reference latent ``[B, C, h, w]`` -> tokens ``[B, tokens of a frame, dim]``."""

    def __init__(self, cfg: DitConfig):
        super().__init__(cfg.ref_dim, cfg.dim, cfg.patch[1:], cfg.patch[1:])

    def forward(self, latent_BCHW: Tensor) -> Tensor:
        return super().forward(latent_BCHW.to(self.weight.dtype)).flatten(2).transpose(1, 2)
