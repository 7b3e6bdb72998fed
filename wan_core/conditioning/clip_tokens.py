"""CLIP tokens of the start (and end) image (Feature.CLIP, Feature.LAST_FRAME, Feature.BLANK)."""

import torch
from torch import Tensor

from ..configs import DitConfig
from ..errors import MismatchError
from .checks import check_tensor
from .text import spread

PICTURE_TOKENS = 257
"""Of one picture, from CLIP ViT-H."""


def blank_context(cfg: DitConfig, batch: int) -> Tensor:
    """What stands for no picture at all (Feature.BLANK): tokens of zeros ``[batch, 257, img_dim]``.

    Source: aigc-apps/VideoX-Fun ``videox_fun/pipeline/pipeline_wan_fun_inpaint.py``.
    """
    return torch.zeros(batch, PICTURE_TOKENS, cfg.img_dim)


def clip_context(tokens_BSD: Tensor, cfg: DitConfig, batch: int) -> Tensor:
    """Check width and count of the tokens, and spread them over the batch.

    Args:
        tokens_BSD: penultimate CLIP tokens ``[1 or batch, S, img_dim]``. A model with learned image positions takes
            those of a start and an end image in one sequence, and also those of one image, as native ComfyUI does.
    """
    check_tensor(tokens_BSD, "The CLIP vision output", "batch, tokens, width")
    _, count, width = tokens_BSD.shape
    if width != cfg.img_dim:
        raise MismatchError(
            f"The CLIP vision features are {width} wide, the model takes {cfg.img_dim}. Use the ViT-H image encoder "
            "(clip_vision_h.safetensors)."
        )
    if cfg.img_tokens is not None and count not in (cfg.img_tokens, cfg.img_tokens // 2):
        raise MismatchError(
            f"The CLIP vision features hold {count} tokens, the model takes {cfg.img_tokens} (a start and an end image "
            f"of {cfg.img_tokens // 2} each)."
        )
    return spread(tokens_BSD, batch, "CLIP vision features")
