"""What comes off a wire, checked before anything is computed with it."""

import torch
from torch import Tensor

from ..errors import InputError


def check_tensor(x: Tensor, what: str, layout: str) -> None:
    """Refuse what is not a plain tensor of finite fractions.

    Args:
        what: what the message calls it, e.g. ``The latent``.
        layout: its axes by name, e.g. ``batch, channels, frames, height, width``.

    Raises:
        InputError: it is no tensor, has other axes or none of something, holds whole numbers, NaN or infinity.
    """
    if not isinstance(x, Tensor) or x.is_nested:
        raise InputError(f"{what} must be a tensor [{layout}]; got a {type(x).__name__}. Connect another node here.")
    if x.ndim != len(layout.split(",")) or 0 in x.shape:
        raise InputError(f"{what} must be [{layout}], none of them 0; got {list(x.shape)}. Connect another node here.")
    if not x.is_floating_point():
        raise InputError(f"{what} must hold fractions (float); got {x.dtype}. Convert it (a picture: divide by 255).")
    if not is_finite(x):
        raise InputError(f"{what} holds NaN or infinity; the node before it in the graph is broken.")


def is_finite(x: Tensor) -> bool:
    """One sum while all is well; the whole is looked at only where the sum itself overflows."""
    return bool(x.sum(dtype=torch.float32).isfinite()) or bool(x.isfinite().all())
