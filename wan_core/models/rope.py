"""Three-axis rotary positions and the timestep sinusoid of the Wan transformer.

Source: Wan-Video/Wan2.1 ``wan/modules/model.py`` (``rope_params``, ``rope_apply``, ``sinusoidal_embedding_1d``).
Tables are computed in float64 on the CPU and handed on as float32: no float64 reaches the device.
"""

from functools import lru_cache

import torch
from torch import Tensor

THETA = 10000.0


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head given to (time, height, width): 128 -> (44, 42, 42)."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rope_angles(positions_L3: Tensor, head_dim: int) -> Tensor:
    """Angles for tokens at (time, height, width) positions: float64 ``[L, head_dim // 2]``, columns in that order.

    Each axis has its own frequencies ``theta^(-2k / axis_dim)``.
    """
    columns = []
    for axis, dim in enumerate(axis_dims(head_dim)):
        freqs = THETA ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        columns.append(torch.outer(positions_L3[:, axis].double(), freqs))
    return torch.cat(columns, dim=-1)


@lru_cache(maxsize=8)
def rope_table(grid: tuple[int, int, int], head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin for every token of a ``(frames, height, width)`` patch grid, tokens in that order.

    Returns:
        Two float32 CPU tensors ``[tokens, head_dim // 2]``.
    """
    with torch.inference_mode(False):  # a host's inference mode would make tables that training cannot use
        positions = torch.cartesian_prod(*(torch.arange(side) for side in grid)).view(-1, 3)
        angles = rope_angles(positions, head_dim)
        return angles.cos().float(), angles.sin().float()


@lru_cache(maxsize=1)
def rope_on(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """:func:`rope_table` on a device, sent there once for all steps; ``rope_on.cache_clear()`` gives it back."""
    with torch.inference_mode(False):
        return tuple(table.to(device) for table in rope_table(grid, head_dim))


def rotate(x_BLHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn adjacent channel pairs ``(2k, 2k+1)`` by the table's angles, in float32.

    ``cos`` and ``sin`` are ``[L, D/2]``, or ``[B, L, D/2]`` where samples have grids of their own.
    """
    even, odd = x_BLHD.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def sinusoid(t: Tensor, dim: int) -> Tensor:
    """``[cos(t w) | sin(t w)]`` with ``w_i = 10000^(-i / (dim / 2))``; float64 on the CPU, float32 out.

    Args:
        t: timesteps in 0..1000, any shape.

    Returns:
        ``t.shape + [dim]`` on ``t``'s device.
    """
    half = dim // 2
    freqs = THETA ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = t.detach().cpu().double().unsqueeze(-1) * freqs
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float().to(t.device)
