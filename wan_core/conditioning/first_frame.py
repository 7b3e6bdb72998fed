"""A clean first latent frame: its tokens get timestep 0 and it is re-imposed after each step (Feature.FIRST_FRAME).

Source: Wan-Video/Wan2.2 ``wan/textimage2video.py``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..grid import PATCH_HW


@dataclass(frozen=True, kw_only=True)
class CleanFrames:
    """Latent frames that are given and never noised.

    ``latent`` is normalised ``[B or 1, C, T, h, w]`` (only the clean frames are read); ``clean`` is a bool ``[T]``.
    """

    latent: Tensor
    clean: Tensor

    def impose(self, x_BCTHW: Tensor) -> Tensor:
        """``x`` with the clean frames put back."""
        where = self.clean.to(x_BCTHW.device).view(1, 1, -1, 1, 1)
        return torch.where(where, self.latent.to(x_BCTHW), x_BCTHW)

    def timesteps(self, timestep: float, x_BCTHW: Tensor) -> Tensor:
        """One timestep per token ``[B, L]``: 0 for tokens of clean frames."""
        batch, _, _, h, w = x_BCTHW.shape
        per_frame = torch.where(self.clean, 0.0, timestep).to(x_BCTHW.device)
        tokens = per_frame.repeat_interleave(-(-h // PATCH_HW) * -(-w // PATCH_HW))
        return tokens.expand(batch, -1)
