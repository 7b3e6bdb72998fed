"""What of a latent is given and what is made: masks of frames, noise masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conditioning.checks import check_tensor
from ..errors import InputError, MismatchError
from ..grid import pixel_frames
from ..runtime.ports import Notify
from ..sampling.given import GivenParts, stretched
from ..variants import Feature, LatentSpec, WanVariant


def latent_mask(mask_FHW: Tensor, size: tuple[int, int, int], spec: LatentSpec, notify: Notify) -> Tensor:
    """The noise mask ``[1, 1, T, h, w]`` of a latent: of all pixels behind a latent pixel the highest, so that all that
    is to be made is made.

    Args:
        mask_FHW: 1 made anew, 0 kept; one is every frame's. Frames beyond the last are as the last.
        size: latent frames, height and width.
    """
    check_tensor(mask_FHW, "The mask", "frames, height, width")
    low, high = (value.item() for value in mask_FHW.aminmax())
    if low < 0 or high > 1:
        raise InputError(f"The mask has values from {low:g} to {high:g}; masks are 0 (kept) to 1 (made anew).")
    frames, height, width = size
    wanted, count = pixel_frames(frames, spec.stride_t), len(mask_FHW)
    if count > wanted:
        notify(f"Of {count} masks {wanted} are used: the clip has no more frames.")
    elif 1 < count < wanted:
        notify(f"There are {count} masks for {wanted} frames; the last one is used for the others.")
    side = spec.stride_hw
    if mask_FHW.shape[1] * width != mask_FHW.shape[2] * height:
        notify(
            f"The mask is {mask_FHW.shape[2]}x{mask_FHW.shape[1]} and the clip {width * side}x{height * side}, of "
            "another shape: it is stretched."
        )
    pooled = F.adaptive_max_pool2d(mask_FHW[:wanted, None].float(), (height, width))[:, 0]
    if count == 1:
        return pooled.expand(frames, -1, -1)[None, None]
    pooled = torch.cat((pooled, pooled[-1:].expand(wanted - len(pooled), -1, -1)))
    # The first latent frame stands for one frame, every other for as many as the stride.
    return torch.cat((pooled[:1], pooled[1:].unflatten(0, (frames - 1, spec.stride_t)).amax(1)))[None, None]


def check_noise_mask(mask: Tensor) -> None:
    """Refuse what is no noise mask of a LATENT."""
    if not isinstance(mask, Tensor) or mask.is_nested or not 3 <= mask.ndim <= 5 or 0 in mask.shape:
        raise InputError(
            f"The noise mask must be [frames, height, width]; got {list(getattr(mask, 'shape', []))}. Connect a mask "
            "of the clip."
        )
    if not (mask.isfinite().all() and mask.amin() >= 0 and mask.amax() <= 1):
        raise InputError("The noise mask must be from 0 (given) to 1 (to be made), and it is not. Clamp it.")


def given_parts(
    mask: Tensor | None,
    given: Tensor,
    variant: WanVariant,
    notify: Notify,
    *,
    begins: bool = True,
    ends: bool = True,
    is_empty: bool = False,
) -> GivenParts | None:
    """A noise mask, checked, and what it keeps of the latent ``given``, normalised ``[B, C, T, h, w]``.

    Args:
        mask: ``[frames, H, W]`` or ``[B or 1, 1, frames, H, W]`` of any size, in 0..1; None: nothing is given.
        begins, ends: whether the run is the first of its noise, and whether none is left at its end.
        is_empty: there is nothing in the latent.
    """
    if mask is None:
        return None
    check_noise_mask(mask)
    batch, _, frames, height, width = given.shape
    if mask.ndim == 5 and mask.shape[0] not in (1, batch):
        raise MismatchError(f"The noise mask has {mask.shape[0]} clips, the latent {batch}. Give it one, or as many.")
    count, expected = mask.shape[2] if mask.ndim == 5 else mask[..., 0, 0].numel(), pixel_frames(frames)
    if count not in (1, frames, expected):
        notify(
            f"The noise mask has {count} frames and the clip {expected} ({frames} latent frames): it is stretched over "
            "the clip, as natively. Wan Core Inpaint Mask takes frame for frame."
        )
    parts = GivenParts(latent=given, made=stretched(mask, frames, height, width).cpu())
    if Feature.FIRST_FRAME not in variant.features or ((parts.made > 0) & (parts.made < 1)).any():
        _check_halves(begins, ends)  # whole frames that are shown clean hold no noise between two samplers
    if is_empty and parts.made.amin() < 1:
        notify("The noise mask keeps a part of an empty latent, which is nothing. Encode a clip for it.")
    return parts


def _check_halves(begins: bool, ends: bool) -> None:
    if not begins:
        raise MismatchError(
            "The latent carries a noise mask and goes on from another sampler: what is given has that sampler's noise "
            "in it. Sample in one Wan Core Sampler (a pair changes its experts inside), or remove the mask."
        )
    if not ends:
        raise MismatchError(
            "The latent carries a noise mask and this sampler stops before the end (end_step, or sigmas of a part): "
            "what goes on could not tell what is given from noise. Sample in one Wan Core Sampler, or remove the mask."
        )


def is_start(parts: GivenParts) -> bool:
    """Whether first frames are given and nothing else, as image-to-video nodes mark a start image."""
    frames = parts.made.amin((0, 1, 3, 4)), parts.made.amax((0, 1, 3, 4))
    return bool(frames[1][0] == 0 and (frames[0] == frames[1]).all() and frames[0][-1] == 1)
