"""Scaled dot-product attention behind one function, with a table of backends."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def attention(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, mask: Tensor | None = None, backend: str = "sdpa"):
    """Softmax attention, scaled by ``1 / sqrt(D)``.

    Args:
        q_BLHD: queries, ``[batch, tokens, heads, head_dim]``.
        k_BSHD, v_BSHD: keys and values over ``S`` tokens. ``q`` and ``k`` are cast to ``v``'s dtype.
        mask: broadcastable to ``[B, H, L, S]``; boolean (True is attended), or float, added to the scores.
        backend: a key of :data:`BACKENDS`.

    Returns:
        ``[B, L, H, D]`` in ``v``'s dtype.
    """
    dtype = v_BSHD.dtype
    mask = mask.to(dtype) if mask is not None and mask.is_floating_point() else mask
    return BACKENDS[backend](q_BLHD.to(dtype), k_BSHD.to(dtype), v_BSHD, mask)


def _sdpa(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_BLHD, k_BSHD, v_BSHD))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {"sdpa": _sdpa}
