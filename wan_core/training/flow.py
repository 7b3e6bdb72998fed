"""Flow matching as Wan does it: ``x = (1 - s) x0 + s noise``, the target is ``noise - x0``, and s is shifted.

Source: Lipman et al. 2023 (arXiv:2210.02747), Esser et al. 2024 (arXiv:2403.03206, section 5.3.2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..sampling.sigmas import TRAIN_STEPS, shift_sigma


@dataclass(frozen=True, kw_only=True)
class SigmaSettings:
    """Where noise levels are drawn: ``shift`` > 1 draws more of the high ones; ``low`` and ``high`` are the range that
    an expert works in (0 and 1: all)."""

    shift: float = 3.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 1:
            raise InputError(f"the range of sigma must lie in 0 to 1, rising; got {self.low} to {self.high}.")


def draw_sigmas(count: int, settings: SigmaSettings, generator: torch.Generator) -> Tensor:
    """``[count]`` noise levels: one in each of ``count`` equal parts of the unshifted range, in random order."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    u = u[torch.randperm(count, generator=generator)]
    begin, end = (unshift(value, settings.shift) for value in (settings.low, settings.high))
    return shift_sigma(begin + u * (end - begin), settings.shift)


def unshift(sigma: float, shift: float) -> float:
    """The inverse of ``shift_sigma``."""
    return sigma / (shift - (shift - 1) * sigma)


def noised(x0: Tensor, noise: Tensor, sigma_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the model sees, what it is told, and what it should answer.

    Args:
        x0, noise: normalised latents ``[B, C, T, h, w]``.
        sigma_B: ``[B]`` in 0..1.

    Returns:
        ``x`` and the target like ``x0``, and timesteps ``[B]`` in 0..1000.
    """
    sigma = sigma_B.view(-1, 1, 1, 1, 1)
    return (1 - sigma) * x0 + sigma * noise, sigma_B * TRAIN_STEPS, noise - x0
