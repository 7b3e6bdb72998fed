"""What several models share."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Walk = Callable[[Iterable[nn.Module]], Iterable[nn.Module]]
"""Yields a model's blocks one after another; see ``runtime/ports.py``."""


class RMSNorm(nn.Module):
    """Scale by the root mean square over the last dimension: no mean, no bias, statistics in float32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)
