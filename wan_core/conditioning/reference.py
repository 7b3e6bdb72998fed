"""A reference picture as one frame of tokens in front of the clip (Feature.REFERENCE).

Source: aigc-apps/VideoX-Fun ``videox_fun/models/wan_transformer3d.py`` (``ref_conv``); as native ComfyUI, and unlike
VideoX-Fun, which then gives a frame of zeros, nothing goes in front where no picture is given.
"""

from torch import Tensor

from ..errors import MismatchError
from ..runtime.ports import Notify
from ..variants import Feature, WanVariant
from .checks import check_tensor
from .known_frames import LATENT_LAYOUT
from .text import spread


def reference_latent(latent: Tensor | None, variant: WanVariant, like: Tensor, notify: Notify) -> Tensor | None:
    """The first frame of a reference latent, normalised: ``[B, C, h, w]``, or None.

    Args:
        latent: ``[1 or B, C, T, h, w]``, not normalised.
        like: the noisy latent, for batch and size.
        notify: told of frames that are not used.
    """
    if latent is None:
        return None
    if Feature.REFERENCE not in variant.features:
        remedy = "Load a Fun Control model of Wan 2.2 (or 2.1 V1.1), or disconnect the picture."
        if Feature.VACE in variant.features:
            remedy = "Give the picture to Wan Core VACE (reference_image) instead."
        raise MismatchError(f"The conditioning carries a reference picture, but {variant.title} takes none. {remedy}")
    check_tensor(latent, "The reference latent", LATENT_LAYOUT)
    want = [like.shape[1], *like.shape[3:]]
    if [latent.shape[1], *latent.shape[3:]] != want:
        raise MismatchError(
            f"The reference picture was encoded to {[latent.shape[1], *latent.shape[3:]]} (channels, height, width), "
            f"the latent to sample needs {want}. Give both nodes the same width, height and VAE."
        )
    if latent.shape[2] > 1:
        notify(
            f"The reference latent has {latent.shape[2]} frames, and {variant.title} takes one picture: the first "
            "frame is used. Encode a single picture."
        )
    return spread(variant.latent.normalise(latent[:, :, :1].to(like))[:, :, 0], like.shape[0], "reference picture")
