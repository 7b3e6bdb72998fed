"""Text context: what the transformer attends to."""

import math

import torch.nn.functional as F
from torch import Tensor

from ..configs import DitConfig
from ..errors import MismatchError
from .checks import check_tensor


def text_context(text_BSD: Tensor, cfg: DitConfig, batch: int) -> Tensor:
    """Check the encoder's width and spread one prompt over the batch: ``[batch, S, text_dim]``."""
    check_tensor(text_BSD, "The text conditioning", "batch, tokens, width")
    width = text_BSD.shape[-1]
    if width != cfg.text_dim:
        raise MismatchError(
            f"The text conditioning is {width} wide, the model takes {cfg.text_dim}: it comes from another text "
            "encoder. Use a umT5-XXL encoder (umt5_xxl_fp8_e4m3fn_scaled.safetensors or umt5_xxl_fp16.safetensors)."
        )
    return spread(text_BSD, batch, "text conditioning")


def folded(text_BSD: Tensor, cfg: DitConfig) -> tuple[Tensor, Tensor | None]:
    """The equal rows of zeros behind a prompt as one row that weighs as much as all of them.

    Returns:
        ``[B, n + 1, text_dim]`` and what is added to the scores of its rows, ``[B, n + 1]``: ``log`` of how many rows
        the last stands for. The text as it is, and None, where there is nothing to fold.
    """
    rows = text_BSD.abs().amax((0, 2)).nonzero()
    count = int(rows.max()) + 1 if len(rows) else 0
    zeros = max(text_BSD.shape[1], cfg.text_len) - count
    if zeros < 2:
        return text_BSD, None
    bias = text_BSD.new_zeros(text_BSD.shape[0], count + 1)
    bias[:, -1] = math.log(zeros)
    return F.pad(text_BSD[:, :count], (0, 0, 0, 1)), bias


def spread(x: Tensor, batch: int, what: str) -> Tensor:
    """Repeat one sample over the batch, or take as many samples as the batch has."""
    if x.shape[0] == batch:
        return x
    if x.shape[0] == 1:
        return x.expand(batch, *x.shape[1:])
    raise MismatchError(
        f"The {what} holds {x.shape[0]} samples, the latent {batch}. Use {'1' if batch == 1 else f'1 or {batch}'}."
    )
