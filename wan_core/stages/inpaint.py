"""A mask of the frames of a clip -> the noise mask of its latent."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conditioning.checks import check_tensor
from ..errors import InputError
from ..grid import pixel_frames
from ..runtime.ports import Notify
from ..variants import LatentSpec


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
