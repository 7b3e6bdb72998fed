"""A control video and a start image as extra input channels (Feature.CONTROL, Feature.START).

Source: aigc-apps/VideoX-Fun ``videox_fun/pipeline/pipeline_wan_fun_control.py`` and ``pipeline_wan2_2_fun_control.py``.
Channels beside the noise, in this order: control latent, mask (models with Feature.CONCAT), latent of known frames.
"""

from torch import Tensor

from ..errors import MismatchError
from ..runtime.ports import Notify
from ..variants import Feature, LatentSpec, WanVariant
from .checks import check_tensor
from .known_frames import LATENT_LAYOUT
from .text import spread


def plain_channels(latent: Tensor | None, spec: LatentSpec, like: Tensor, what: str) -> Tensor:
    """One latent beside the noise, without a mask: ``[B, C, T, h, w]`` normalised, zeros where there is none.

    Args:
        latent: ``[1 or B, C, T, h, w]``, not normalised.
        like: the noisy latent, for batch and size.
        what: what messages call it, e.g. ``control video``.
    """
    if latent is None:
        return like.new_zeros(like.shape)
    check_tensor(latent, f"The {what}", LATENT_LAYOUT)
    if latent.shape[1:] != like.shape[1:]:
        raise MismatchError(
            f"The {what} was encoded to a latent of {list(latent.shape[1:])} (channels, frames, height, width), the "
            f"latent to sample is {list(like.shape[1:])}. Give both nodes the same width, height, frames and VAE."
        )
    return spread(spec.normalise(latent.to(like)), like.shape[0], what)


def check_control(control: Tensor | None, variant: WanVariant) -> None:
    """Refuse a control video that the model has no channels for."""
    if control is not None and Feature.CONTROL not in variant.features:
        remedy = "Load a Fun Control model, or remove the control node."
        if Feature.VACE in variant.features:
            remedy = "Give the video to Wan Core VACE (control_video) instead, or load a Fun Control model."
        raise MismatchError(f"The conditioning carries a control video, but {variant.title} takes none. {remedy}")


def check_start(known_mask: Tensor | None, variant: WanVariant, notify: Notify) -> None:
    """Say that a model without a mask (Feature.START) does not know of pictures at the end of the clip.

    Args:
        known_mask: ``[1 or B, 4, T, h, w]``, 1 known.
    """
    if known_mask is None:
        return
    check_tensor(known_mask, "The mask of the image conditioning", LATENT_LAYOUT)
    known = known_mask.amax((0, 1, 3, 4)) > 0
    if known[-1] and not known.all():
        notify(
            f"The image conditioning gives an end image, and {variant.title} was trained with start images alone. Use "
            "a Fun InP model for it, or leave the end image away."
        )
