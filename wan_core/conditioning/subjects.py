"""Pictures of subjects as latent frames behind the clip, for text models that were trained to look there.

Source: Phantom-video/Phantom ``phantom_wan/modules/model.py`` and native ComfyUI (``time_dim_concat``): the frames go
through the transformer without noise, at the places after the clip's, and what comes out there is cut off.
"""

import torch
from torch import Tensor

from ..errors import MismatchError
from ..variants import LatentSpec, WanVariant
from .checks import check_tensor
from .known_frames import LATENT_LAYOUT
from .text import spread

MAX_SUBJECTS = 16
"""Pictures; the models know up to four."""


def subject_frames(latent: Tensor | None, variant: WanVariant, like: Tensor) -> Tensor | None:
    """Latent frames of the pictures, normalised: ``[B, C, n, h, w]``, or None.

    Args:
        latent: ``[1 or B, C, n, h, w]``, not normalised.
        like: the noisy latent, for batch and size.
    """
    if latent is None:
        return None
    if variant.features:
        raise MismatchError(
            f"The conditioning carries pictures of subjects (time_dim_concat), but {variant.title} takes none. Load a "
            "Phantom model (a file of the form of Wan 2.1 T2V), or remove the node that adds them."
        )
    check_tensor(latent, "The latent of the subjects", LATENT_LAYOUT)
    _, channels, count, *size = latent.shape
    if [channels, *size] != [like.shape[1], *like.shape[3:]] or count > MAX_SUBJECTS:
        raise MismatchError(
            f"The pictures of subjects were encoded to {[channels, count, *size]} (channels, pictures, height, width), "
            f"the latent to sample needs {[like.shape[1], *like.shape[3:]]} (channels, height, width) and at most "
            f"{MAX_SUBJECTS} pictures. Give both nodes the same width, height and VAE."
        )
    return spread(variant.latent.normalise(latent.to(like)), like.shape[0], "pictures of subjects")


def nothing_of(latent: Tensor, spec: LatentSpec) -> Tensor:
    """The latent of as many pictures that show nothing: zeros to the model."""
    return spec.denormalise(torch.zeros_like(latent))
