"""A VACE context: what stays of a control clip, what is made anew, where, and pictures to follow (Feature.VACE).

Source: Wan-Video/Wan2.1 ``wan/vace.py``. A clip is split by its mask into an inactive part (kept) and a reactive part
(made anew, or a control picture to follow); each is encoded by itself, mid grey where the other has the picture. The
64 mask channels are the 8 x 8 pixels behind a latent pixel, rows first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..errors import InputError, MismatchError
from ..grid import Grid, latent_frames
from ..variants import LatentSpec
from .checks import check_tensor
from .known_frames import LATENT_LAYOUT
from .text import spread

MADE_ANEW = 0.5
"""Above this a pixel of the mask belongs to the reactive part."""
ROUNDING = 1e-6
"""30% of 10 steps is step 3, though 0.3 * 10 may be a little more."""
MAX_STRENGTH = 1000.0


@dataclass(frozen=True, kw_only=True)
class VaceContext:
    """One context as it comes off the wires.

    ``latent`` ``[1 or B, 2C, T, h, w]``: inactive, then reactive, not normalised; ``mask`` ``[1 or B, 64, T, h, w]`` in
    0..1, 1 made anew (None: everything); ``start`` and ``end``: shares of the steps between which it counts.
    """

    latent: Tensor
    mask: Tensor | None = None
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def counts_at(self, step: int, steps: int) -> bool:
        """Whether it counts in step ``step`` (from 0) of ``steps``."""
        return bool(self.strength) and self.start * steps - ROUNDING <= step < self.end * steps - ROUNDING


def split_clip(frames_FHWC: Tensor, mask_FHW: Tensor, part: str) -> Iterator[Tensor]:
    """The ``inactive`` or the ``reactive`` part of a clip, frame by frame: ``[1, H, W, 3]`` in 0..1, mid grey where the
    picture belongs to the other."""
    for frame, mask in zip(frames_FHWC, mask_FHW, strict=True):
        is_anew = (mask > MADE_ANEW)[..., None]
        yield torch.where(is_anew if part == "reactive" else ~is_anew, frame[..., :3], 0.5)[None]


def mask_channels(mask_FHW: Tensor, spec: LatentSpec) -> Tensor:
    """A mask of pixels, as it is (not made black and white) -> ``[1, 64, T, h, w]``."""
    side = spec.stride_hw
    channels = rearrange(mask_FHW, "f (h i) (w j) -> (i j) f h w", i=side, j=side)[None]
    frames = latent_frames(mask_FHW.shape[0], spec.stride_t)
    return F.interpolate(channels, size=(frames, *channels.shape[3:]), mode="nearest-exact")


def with_references(
    latent: Tensor, mask: Tensor, references: Sequence[Tensor], spec: LatentSpec
) -> tuple[Tensor, Tensor]:
    """Put reference pictures before a context, one latent frame each, with nothing to be made in them.

    Args:
        latent, mask: of :class:`VaceContext`.
        references: latents ``[1, C, 1, h, w]``, not normalised. A picture stands in the inactive half; the reactive
            half is zero to the model.
    """
    nothing = spec.denormalise(latent.new_zeros(1, spec.channels, 1, *latent.shape[3:]))
    before = [torch.cat((reference.to(latent), nothing), dim=1) for reference in references]
    empty = mask.new_zeros(1, mask.shape[1], len(before), *mask.shape[3:])
    return torch.cat((*before, latent), dim=2), torch.cat((empty, mask), dim=2)


def with_empty_references(latent: Tensor, mask: Tensor, count: int, spec: LatentSpec) -> tuple[Tensor, Tensor]:
    """A context beside others that have ``count`` reference pictures more: frames of which it says nothing."""
    nothing = spec.denormalise(latent.new_zeros(1, spec.channels, 1, *latent.shape[3:]))
    return with_references(latent, mask, [nothing] * count, spec) if count else (latent, mask)


def on_white(images_BHWC: Tensor, grid: Grid) -> Iterator[Tensor]:
    """Reference pictures fitted into the clip's size without a cut, on white: ``[1, H, W, 3]`` each, in 0..1."""
    for image in images_BHWC[..., :3]:
        height, width = image.shape[:2]
        if (height, width) == (grid.height, grid.width):
            yield image[None]
            continue
        scale = min(grid.height / height, grid.width / width)
        size = max(1, int(height * scale)), max(1, int(width * scale))
        fitted = F.interpolate(image.movedim(-1, 0)[None].float(), size=size, mode="bilinear", align_corners=False)
        top, left = (grid.height - size[0]) // 2, (grid.width - size[1]) // 2
        canvas = torch.ones(1, grid.height, grid.width, 3)
        canvas[:, top : top + size[0], left : left + size[1]] = fitted.movedim(1, -1)
        yield canvas


def blank(spec: LatentSpec, like: Tensor) -> VaceContext:
    """The context of a model that is given none, as native ComfyUI has it: a latent of zeros, all of it to be made."""
    return VaceContext(latent=like.new_zeros(1, 2 * spec.channels, *like.shape[2:]))


def pack(context: VaceContext, spec: LatentSpec, like: Tensor) -> Tensor:
    """What the model takes: ``[1 or B, 2C + 64, T, h, w]``, normalised.

    Args:
        like: the noisy latent, for batch, size and device.
    """
    batch, channels, *size = like.shape
    _check(context)
    sides = (context.latent, "VACE context", 2 * channels), (context.mask, "VACE mask", spec.stride_hw**2)
    packed = []
    for tensor, what, wanted in sides:
        tensor = like.new_ones(1, wanted, *size) if tensor is None else tensor
        check_tensor(tensor, f"The {what}", LATENT_LAYOUT)
        if list(tensor.shape[1:]) != [wanted, *size]:
            raise MismatchError(
                f"The {what} is {list(tensor.shape[1:])} (channels, frames, height, width), the latent to sample needs "
                f"{[wanted, *size]}. Connect the latent of the same VACE node, and give every VACE node the same "
                "VAE, width, height, frames and number of reference pictures."
            )
        spread(tensor, batch, what)
        packed.append(tensor.to(like))
    halves = [spec.normalise(half) for half in packed[0].chunk(2, dim=1)]
    most = max(len(part) for part in packed)
    return torch.cat([spread(part, most, "VACE context") for part in (*halves, packed[1])], dim=1)


def _check(context: VaceContext) -> None:
    if not abs(context.strength) <= MAX_STRENGTH:  # true for NaN too
        raise InputError(
            f"A VACE context's strength must be from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}; got {context.strength}. "
            "1 is the usual strength."
        )
    if not 0 <= context.start < context.end <= 1:
        raise InputError(
            f"A VACE context counts from a start to a later end, both 0 to 1; got {context.start} and {context.end}. "
            "Use 0 and 1 for the whole run."
        )
