"""Normalised attention guidance (Chen et al. 2025, arXiv:2505.21179): a negative prompt inside cross-attention.

One pass attends to both prompts with the same queries and goes on with what leads away from the negative one, so a
negative prompt works at guidance 1 too. Numbers follow the authors' code (ChenDarYen/Normalized-Attention-Guidance).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Nag:
    """``scale`` 1 and above (1: nothing), ``tau`` above 0: how many times longer the result may get, ``alpha`` 0..1:
    how much of the result is taken (0: nothing)."""

    scale: float = 11.0
    tau: float = 2.5
    alpha: float = 0.25

    @property
    def is_neutral(self) -> bool:
        return self.scale == 1 or self.alpha == 0


@dataclass(frozen=True, kw_only=True)
class NegativeText:
    """The negative prompt of a pass: ``text`` and ``text_bias`` as a pass has them, and how strongly it acts."""

    text: Tensor
    text_bias: Tensor | None = None
    nag: Nag


def normalised(positive_BLHD: Tensor, negative_BLHD: Tensor, nag: Nag) -> Tensor:
    """Equations 6 to 8 of the paper, computed in float32.

    ``g = scale p - (scale - 1) n``; each token's ``g`` is shortened until its L1 norm over all heads is at most ``tau``
    times that of ``p``; the result is ``alpha g + (1 - alpha) p``.

    Args:
        positive_BLHD, negative_BLHD: what the same queries got from the prompts, ``[B, L, H, D]``.

    Returns:
        ``[B, L, H, D]`` in the dtype of ``positive_BLHD``.
    """
    positive = positive_BLHD.float()
    guided = torch.lerp(negative_BLHD.float(), positive, nag.scale)
    longest = positive.abs().sum((-2, -1), keepdim=True) * nag.tau
    length = guided.abs().sum((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    guided *= (longest / length).clamp_max(1)
    return torch.lerp(positive, guided, nag.alpha).to(positive_BLHD.dtype)
