"""Parts of the latent that are given: inpainting in space and over time, and clean start frames.

Where the mask is 0 the latent is known, whatever the model makes of it. A model that was trained with clean frames
(Feature.FIRST_FRAME) is shown them clean, with timestep 0 (Wan-Video/Wan2.2 ``wan/textimage2video.py``); any other is
shown them at the step's noise level, under the run's own noise (Lugmayr et al. 2022, RePaint, arXiv:2201.09865, once;
``KSamplerX0Inpaint`` in ComfyUI ``comfy/samplers.py``).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..grid import PATCH_HW
from .noise import noisy_start
from .sigmas import Step
from .solvers import Denoise


@dataclass(frozen=True, kw_only=True)
class GivenParts:
    """``latent`` normalised ``[B or 1, C, T, h, w]``; ``made`` ``[B or 1, 1, T, h, w]``, 1 to be made, 0 given, shares
    between. ``noise`` like ``latent``, under which the model is shown what is given; None: it is shown clean."""

    latent: Tensor
    made: Tensor
    noise: Tensor | None = None

    def on(self, device: torch.device, noise: Tensor | None) -> "GivenParts":
        """The same on a device, to be shown under ``noise``."""
        return replace(
            self,
            latent=self.latent.to(device),
            made=self.made.to(device),
            noise=None if noise is None else noise.to(device),
        )

    def shown(self, x_BCTHW: Tensor, sigma: float) -> Tensor:
        """``x`` as the model sees it at a noise level."""
        known = self.latent if self.noise is None else noisy_start(self.latent, self.noise, sigma)
        return self.made * x_BCTHW + (1 - self.made) * known

    def impose(self, x_BCTHW: Tensor) -> Tensor:
        """``x`` with what is wholly given put back, without noise."""
        return torch.where(self.made == 0, self.latent, x_BCTHW)

    def timesteps(self, timestep: float, x_BCTHW: Tensor) -> Tensor:
        """What the model is told: one timestep ``[B]``, or, where it is shown clean parts, one per token ``[B, L]``, by
        the share of its frame that is made."""
        batch, _, _, h, w = x_BCTHW.shape
        if self.noise is not None:
            return x_BCTHW.new_full((batch,), timestep)
        per_frame = self.made.mean((1, 3, 4)) * timestep
        return per_frame.repeat_interleave(-(-h // PATCH_HW) * -(-w // PATCH_HW), dim=1).expand(batch, -1)

    def around(self, denoise: Denoise) -> Denoise:
        """A denoiser that believes in what is given: it is shown it, and its clean latent has it."""

        def given(x: Tensor, step: Step) -> Tensor:
            shown = self.shown(x, step.sigma)
            velocity = denoise(shown, step)
            known = x - self.made * shown - (1 - self.made) * self.latent  # 0 where all is made
            return self.made * velocity + known / step.sigma

        return given


def stretched(mask: Tensor, frames: int, height: int, width: int) -> Tensor:
    """A noise mask of any size -> ``[B, 1, T, h, w]``, stretched in time and space as native ComfyUI does
    (``reshape_mask`` in ``comfy/utils.py``)."""
    mask = mask.float() if mask.ndim == 5 else mask.float().reshape(1, 1, -1, *mask.shape[-2:])
    mask = mask.mean(1, keepdim=True) if mask.shape[1] > 1 else mask
    same = tuple(mask.shape[2:]) == (frames, height, width)
    return mask if same else F.interpolate(mask, size=(frames, height, width), mode="trilinear")
