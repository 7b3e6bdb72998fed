"""Layers of the Wan VAEs, written for streaming: every layer sees one run of frames and what it kept of the last run.

Source: Wan-Video/Wan2.1, ``wan/modules/vae.py`` and Wan-Video/Wan2.2, ``wan/modules/vae2_2.py``; parameter names are
the official ones. Shape letters: B batch, C channels, T frames, H height, W width.

Every layer is called as ``layer(x_BCTHW, cache)``.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..runtime.attention import attention

ConvCache = dict[nn.Module, Tensor]
"""Convolution over time -> the last input frames it has seen (at most 2). One per stream, empty at its start."""


class CausalConv3d(nn.Conv3d):
    """Convolution with 3 taps in time that sees only the past: 2 frames of left context, zeros at the start.

    Same size out as in: kernels are 3 or 1 wide in space and padded by zeros there.
    """

    def __init__(self, dim_in: int, dim_out: int, kernel_hw: int = 3):
        side = kernel_hw // 2
        super().__init__(dim_in, dim_out, (3, kernel_hw, kernel_hw), padding=(0, side, side))

    def forward(self, x_BCTHW: Tensor, cache: ConvCache) -> Tensor:
        past = cache.get(self)
        x = F.pad(x_BCTHW, (0, 0, 0, 0, 2, 0)) if past is None else torch.cat([past, x_BCTHW], dim=2)
        cache[self] = x[:, :, -2:].clone()  # a view would keep all of x alive
        return super().forward(x)


class RMSNorm(nn.Module):
    """Holds ``gamma`` of :func:`rms_norm`; ``ndim`` is that of the input without its batch."""

    def __init__(self, dim: int, ndim: int = 4):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * (ndim - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.gamma)


def rms_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """``x / max(|x|, 1e-12) * sqrt(C) * gamma`` with ``|x|`` over dim 1; the statistics are float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide).clamp_min(1e-12)
    # The clamp keeps an all-zero pixel at 0 in float16, where sqrt(C) / 1e-12 would be infinite and 0 * inf NaN.
    scale = (math.sqrt(x.shape[1]) / norm).clamp_max(torch.finfo(x.dtype).max).to(x.dtype)
    return (x * scale).mul_(gamma)


def norm_silu(x: Tensor, norm: RMSNorm) -> Tensor:
    """``silu(norm(x))``; the one place where the two meet."""
    return F.silu(norm(x), inplace=True)


class ResidualBlock(nn.Module):
    """``x + conv(silu(norm(conv(silu(norm(x))))))``, with a 1x1x1 convolution on ``x`` where the width changes."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        # The official block is a Sequential; its numbers are the parameter names (1, 4 and 5 hold no parameters).
        self.residual = nn.ModuleDict(
            {
                "0": RMSNorm(dim_in),
                "2": CausalConv3d(dim_in, dim_out),
                "3": RMSNorm(dim_out),
                "6": CausalConv3d(dim_out, dim_out),
            }
        )
        self.shortcut = nn.Conv3d(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        norm1, conv1, norm2, conv2 = self.residual.values()
        h = conv1(norm_silu(x, norm1), cache)
        h = conv2(norm_silu(h, norm2), cache)
        return h.add_(self.shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over the pixels of each frame, added to the input."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = RMSNorm(dim, ndim=3)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        batch, _, _, height, _ = x.shape
        qkv = self.to_qkv(self.norm(rearrange(x, "b c t h w -> (b t) c h w")))
        q, k, v = rearrange(qkv, "n (three c) h w -> three n (h w) 1 c", three=3)
        out = self.proj(rearrange(attention(q, k, v), "n (h w) 1 c -> n c h w", h=height))
        return x + rearrange(out, "(b t) c h w -> b c t h w", b=batch)


class Downsample(nn.Module):
    """Halves the sides and, where ``temporal``, the frames after the first: runs of 1, 4, 4 ... become 1, 2, 2 ..."""

    def __init__(self, dim: int, temporal: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        batch = x.shape[0]
        x = rearrange(self.resample(rearrange(x, "b c t h w -> (b t) c h w")), "(b t) c h w -> b c t h w", b=batch)
        if self.time_conv is None:
            return x
        past = cache.get(self.time_conv)
        cache[self.time_conv] = x[:, :, -1:].clone()
        return x if past is None else self.time_conv(torch.cat([past, x], dim=2))


class Upsample(nn.Module):
    """Doubles the sides and, where ``temporal``, the frames after the first: runs of 1, 1, 1 ... become 1, 2, 2 ..."""

    def __init__(self, dim_in: int, dim_out: int, temporal: bool):
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest-exact"), nn.Conv2d(dim_in, dim_out, 3, padding=1)
        )
        self.time_conv = CausalConv3d(dim_in, 2 * dim_in, kernel_hw=1) if temporal else None

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        batch, channels, _, height, width = x.shape
        if self.time_conv is not None and self.time_conv in cache:
            x = rearrange(self.time_conv(x, cache), "b (s c) t h w -> (b t s) c h w", s=2)
        else:
            if self.time_conv is not None:
                # The first frame of a clip is not doubled, and the second run does not see it: its past is zeros.
                cache[self.time_conv] = x.new_zeros(batch, channels, 2, height, width)
            x = rearrange(x, "b c t h w -> (b t) c h w")
        return rearrange(self.resample(x), "(b t) c h w -> b c t h w", b=batch)


class DownLevel(nn.Module):
    """VAE 2.2: the layers of one encoder level beside :func:`fold_mean` of its input."""

    def __init__(self, layers: list[nn.Module], dim_out: int, factor_t: int, factor_hw: int):
        super().__init__()
        self.downsamples = nn.ModuleList(layers)
        self.dim_out, self.factor_t, self.factor_hw = dim_out, factor_t, factor_hw

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        h = x
        for layer in self.downsamples:
            h = layer(h, cache)
        return h.add_(fold_mean(x, self.dim_out, self.factor_t, self.factor_hw))


class UpLevel(nn.Module):
    """VAE 2.2: the layers of one decoder level beside :func:`unfold_repeat` of its input (the last level has none)."""

    def __init__(self, layers: list[nn.Module], dim_out: int, factor_t: int, factor_hw: int):
        super().__init__()
        self.upsamples = nn.ModuleList(layers)
        self.dim_out, self.factor_t, self.factor_hw = dim_out, factor_t, factor_hw

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        h = x
        for layer in self.upsamples:
            h = layer(h, cache)
        if self.factor_hw == 1:
            return h
        shortcut = unfold_repeat(x, self.dim_out, self.factor_t, self.factor_hw)
        # In the first run the layers double no frame; of the shortcut's copies the later ones count.
        return h.add_(shortcut[:, :, -h.shape[2] :])


def fold_mean(x: Tensor, dim_out: int, factor_t: int, factor_hw: int) -> Tensor:
    """Fold ``factor_t x factor_hw x factor_hw`` cells into channels and average neighbours down to ``dim_out``.

    Zero frames are put in front where the frames are no multiple of ``factor_t``.
    """
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % factor_t, 0))
    x = rearrange(x, "b c (t i) (h j) (w k) -> b (c i j k) t h w", i=factor_t, j=factor_hw, k=factor_hw)
    return x.unflatten(1, (dim_out, -1)).mean(dim=2)


def unfold_repeat(x: Tensor, dim_out: int, factor_t: int, factor_hw: int) -> Tensor:
    """Repeat channels up to ``dim_out`` times the cell size and unfold them: the opposite of :func:`fold_mean`."""
    x = x.repeat_interleave(dim_out * factor_t * factor_hw**2 // x.shape[1], dim=1)
    return rearrange(x, "b (c i j k) t h w -> b c (t i) (h j) (w k)", i=factor_t, j=factor_hw, k=factor_hw)
