"""Layers of the Wan VAEs, written for streaming: every layer sees one run of frames and what it kept of the last run.

Source: Wan-Video/Wan2.1, ``wan/modules/vae.py`` and Wan-Video/Wan2.2, ``wan/modules/vae2_2.py``; parameter names are
the official ones. Shape letters: B batch, C channels, T frames, H height, W width.

Every layer is called as ``layer(x_BCTHW, cache)``. Activations lie in memory with the channels last, pixel by pixel:
convolutions are fastest on them, and frames can be written where they are needed without a copy.

All but the attention are local, and say how far they see (:mod:`.vae_parts`).
"""

import math
from collections.abc import Iterable
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..runtime import winograd
from ..runtime.attention import attention
from ..runtime.pointwise import rms_silu
from .vae_parts import ConvCache, Span


def pixels_last(batch: int, channels: int, frames: int, height: int, width: int, like: Tensor) -> Tensor:
    """Room for ``[B, C, T, H, W]``, with the channels last in memory."""
    return like.new_empty((batch, frames, height, width, channels)).permute(0, 4, 1, 2, 3)


class CausalConv3d(nn.Conv3d):
    """Convolution with 3 taps in time that sees only the past: 2 frames of left context, zeros at the start.

    Same size out as in: kernels are 3 or 1 wide in space and padded by zeros there.
    """

    def __init__(self, dim_in: int, dim_out: int, kernel_hw: int = 3):
        self.reach = kernel_hw // 2
        super().__init__(dim_in, dim_out, (3, kernel_hw, kernel_hw), padding=(0, self.reach, self.reach))

    def before(self, span: Span) -> Span:
        return span.grown(self.reach)

    def after(self, span: Span) -> Span:
        return span

    def forward(self, x_BCTHW: Tensor, cache: ConvCache, norm: "RMSNorm | None" = None, over: bool = False) -> Tensor:
        """``norm``: what is convolved is ``silu(norm(x))``. ``over``: the result may be written over ``x``."""
        if x_BCTHW.shape[2] == 1 and self not in cache:
            return self._first_frame(x_BCTHW, cache, norm)
        if winograd.pays(x_BCTHW, self.weight):
            past, fill, out = self.past(x_BCTHW, cache), partial(_fill, norm=norm), x_BCTHW
            if not over or self.out_channels != self.in_channels:
                batch, _, *size = x_BCTHW.shape
                out = pixels_last(batch, self.out_channels, *size, like=x_BCTHW)
            return winograd.conv3d(past, x_BCTHW, self.weight, self.bias, fill, out)
        return over_time(self.remember(x_BCTHW, cache, norm), self.weight, self.bias, self.padding)

    def past(self, x: Tensor, cache: ConvCache) -> Tensor:
        """The two frames before a run; zeros at a clip's start."""
        if self not in cache:
            batch, channels, _, height, width = x.shape
            cache[self] = pixels_last(batch, channels, 2, height, width, like=x).zero_()
        return cache[self]

    def remember(self, x: Tensor, cache: ConvCache, norm: "RMSNorm | None" = None) -> Tensor:
        """The run behind the two frames before it; its own last two are kept."""
        batch, channels, frames, height, width = x.shape
        run = pixels_last(batch, channels, frames + 2, height, width, like=x)
        past = self.past(x, cache)
        run[:, :, :2] = past
        _fill(run[:, :, 2:], x, norm)
        past.copy_(run[:, :, -2:])
        return run

    def _first_frame(self, x: Tensor, cache: ConvCache, norm: "RMSNorm | None") -> Tensor:
        """A clip's first frame: only zeros before it, so only the last tap sees anything."""
        batch, channels, _, height, width = x.shape
        past = cache[self] = pixels_last(batch, channels, 2, height, width, like=x)
        past[:, :, 0].zero_()
        _fill(past[:, :, 1:], x, norm)
        flat = F.conv2d(past[:, :, 1], self.weight[:, :, -1], self.bias, padding=self.padding[1:])
        return flat.unsqueeze(2)


def over_time(run: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    """``F.conv3d`` with three taps in time. One frame out of three, for which PyTorch is slow on CPUs, is a picture of
    three times the channels: the weights lie in memory for it as they are."""
    if run.shape[2] > 3 or run.device.type != "cpu":
        return F.conv3d(run, weight, bias, padding=padding)
    picture = run.contiguous().flatten(1, 2)
    made = F.conv2d(picture, weight.flatten(1, 2), bias, padding=padding[1:])
    return made.contiguous(memory_format=torch.channels_last).unsqueeze(2)


def _fill(out: Tensor, x: Tensor, norm: "RMSNorm | None" = None) -> None:
    if norm is None:
        out.copy_(x)
    else:
        rms_silu(x, norm.gamma, out)


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

    def before(self, span: Span) -> Span:
        return span.grown(2)

    def after(self, span: Span) -> Span:
        return span

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        norm1, conv1, norm2, conv2 = self.residual.values()
        h = conv2(conv1(x, cache, norm1), cache, norm2, over=True)
        return h.add_(x if isinstance(self.shortcut, nn.Identity) else _pixelwise(x, self.shortcut))


def _pixelwise(x: Tensor, conv: nn.Module) -> Tensor:
    """A convolution of one pixel, as a matrix product over all pixels. They are one axis: of a cut-out with more axes
    PyTorch would round the product before it adds the bias."""
    pixels = x.movedim(1, -1)
    made = F.linear(pixels.flatten(0, -2), conv.weight.flatten(1), conv.bias)
    return made.unflatten(0, pixels.shape[:-1]).movedim(-1, 1)


class AttentionBlock(nn.Module):
    """Single-head self-attention over the pixels of each frame, added to the input."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = RMSNorm(dim, ndim=3)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        batch, _, _, height, _ = x.shape
        frames = self.norm(rearrange(x, "b c t h w -> (b t) c h w"))
        q, k, v = rearrange(_pixelwise(frames, self.to_qkv), "n (three c) h w -> three n (h w) 1 c", three=3)
        out = _pixelwise(rearrange(attention(q, k, v), "n (h w) 1 c -> n c h w", h=height), self.proj)
        return x + rearrange(out, "(b t) c h w -> b c t h w", b=batch)


class Downsample(nn.Module):
    """Halves the sides and, where ``temporal``, the frames after the first: runs of 1, 4, 4 ... become 1, 2, 2 ..."""

    def __init__(self, dim: int, temporal: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def before(self, span: Span) -> Span:
        return Span(2 * span.lo, min(2 * span.size, 2 * span.hi + 1), 2 * span.size)

    def after(self, span: Span) -> Span:
        return Span(span.lo // 2, span.lo // 2 + len(span) // 2, span.size // 2)

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        batch = x.shape[0]
        x = rearrange(self.resample(rearrange(x, "b c t h w -> (b t) c h w")), "(b t) c h w -> b c t h w", b=batch)
        if self.time_conv is None:
            return x
        past = cache.get(self.time_conv)
        cache[self.time_conv] = x[:, :, -1:].clone()  # a view would keep all of x alive
        return x if past is None else self.time_conv(torch.cat([past, x], dim=2))


class Upsample(nn.Module):
    """Doubles the sides and, where ``temporal``, the frames after the first: runs of 1, 1, 1 ... become 1, 2, 2 ..."""

    def __init__(self, dim_in: int, dim_out: int, temporal: bool):
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest-exact"), nn.Conv2d(dim_in, dim_out, 3, padding=1)
        )
        self.time_conv = CausalConv3d(dim_in, 2 * dim_in, kernel_hw=1) if temporal else None
        self.growth_t = 1 + temporal

    def before(self, span: Span) -> Span:
        return Span(max(0, (span.lo - 1) // 2), min(span.size // 2, span.hi // 2 + 1), span.size // 2)

    def after(self, span: Span) -> Span:
        return span.times(2)

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        if self.time_conv is None:
            return self._double([x])
        if self.time_conv in cache:
            run = self.time_conv.remember(x, cache)
            # Half of the channels are the earlier of the two frames that one becomes, half the later.
            halves = zip(self.time_conv.weight.chunk(2), self.time_conv.bias.chunk(2))
            return self._double(over_time(run, weight, bias) for weight, bias in halves)
        # The first frame of a clip is not doubled, and the second run does not see it: its past is zeros.
        self.time_conv.past(x, cache)
        return self._double([x])

    def _double(self, halves: Iterable[Tensor]) -> Tensor:
        """Each pixel becomes four and all are convolved, without the four ever being made.

        Of the three taps of an axis two meet the same source pixel, and which ones depends on whether the result is an
        even or an odd pixel: four convolutions of two by two taps, the sums of the official ones, with 4/9 of the work.
        The frames of the several ``halves`` take turns.
        """
        conv, halves, out = self.resample[1], list(halves), None
        kernels = {(i, j): phase_kernel(conv.weight, i, j) for i, j in product(range(2), repeat=2)}
        for number, x in enumerate(halves):
            batch, _, frames, height, width = x.shape
            if out is None:
                out = pixels_last(batch, conv.out_channels, frames * len(halves), 2 * height, 2 * width, like=x)
            pictures = rearrange(x, "b c t h w -> (b t) c h w")
            for (i, j), kernel in kernels.items():
                made = F.conv2d(pictures, kernel, conv.bias, padding=1)[..., i : i + height, j : j + width]
                place = out[:, :, number :: len(halves), i::2, j::2]
                place.copy_(rearrange(made, "(b t) c h w -> b c t h w", b=batch))
            del pictures
        return out


def phase_kernel(weight_OI33: Tensor, row: int, col: int) -> Tensor:
    """The kernel ``[O, I, 2, 2]`` on source pixels that a 3x3 kernel is for even (0) or odd (1) rows and columns of a
    picture whose pixels were doubled; sums in float32."""
    first, middle, last = weight_OI33.to(torch.promote_types(weight_OI33.dtype, torch.float32)).unbind(2)
    rows = (first, middle + last) if row == 0 else (first + middle, last)
    first, middle, last = torch.stack(rows, dim=2).unbind(3)
    cols = (first, middle + last) if col == 0 else (first + middle, last)
    return torch.stack(cols, dim=3).to(weight_OI33.dtype)


class _Level(nn.Module):
    """VAE 2.2: several local layers beside a shortcut from their input to their output."""

    def __init__(self, dim_out: int, factor_t: int, factor_hw: int):
        super().__init__()
        self.dim_out, self.factor_t, self.factor_hw = dim_out, factor_t, factor_hw

    @property
    def layers(self) -> nn.ModuleList:
        raise NotImplementedError

    def before(self, span: Span) -> Span:
        for layer in reversed(self.layers):
            span = layer.before(span)
        return span

    def after(self, span: Span) -> Span:
        for layer in self.layers:
            span = layer.after(span)
        return span

    def run(self, x: Tensor, cache: ConvCache) -> Tensor:
        for layer in self.layers:
            x = layer(x, cache)
        return x


class DownLevel(_Level):
    """One encoder level beside :func:`fold_mean` of its input."""

    def __init__(self, layers: list[nn.Module], dim_out: int, factor_t: int, factor_hw: int):
        super().__init__(dim_out, factor_t, factor_hw)
        self.downsamples = nn.ModuleList(layers)

    @property
    def layers(self) -> nn.ModuleList:
        return self.downsamples

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        h = self.run(x, cache)
        height, width = (side * self.factor_hw for side in h.shape[-2:])  # a part of a picture may have a pixel more
        return h.add_(fold_mean(x[..., :height, :width], self.dim_out, self.factor_t, self.factor_hw))


class UpLevel(_Level):
    """One decoder level beside :func:`add_unfolded` of its input (the last level has none)."""

    def __init__(self, layers: list[nn.Module], dim_out: int, factor_t: int, factor_hw: int):
        super().__init__(dim_out, factor_t, factor_hw)
        self.upsamples = nn.ModuleList(layers)
        self.growth_t = factor_t

    @property
    def layers(self) -> nn.ModuleList:
        return self.upsamples

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        h = self.run(x, cache)
        return h if self.factor_hw == 1 else add_unfolded(h, x, self.factor_t, self.factor_hw)


def fold_mean(x: Tensor, dim_out: int, factor_t: int, factor_hw: int) -> Tensor:
    """Fold ``factor_t x factor_hw x factor_hw`` cells into channels and average neighbours down to ``dim_out``.

    Zero frames are put in front where the frames are no multiple of ``factor_t``.
    """
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % factor_t, 0))
    x = rearrange(x, "b c (t i) (h j) (w k) -> b (c i j k) t h w", i=factor_t, j=factor_hw, k=factor_hw)
    return x.unflatten(1, (dim_out, -1)).mean(dim=2)


def add_unfolded(h: Tensor, x: Tensor, factor_t: int, factor_hw: int) -> Tensor:
    """Add to ``h`` the channels of ``x``, repeated up to a whole cell each and unfolded: the opposite of a fold.

    In a clip's first run the layers double no frame; of the shortcut's copies the later ones count.
    """
    cell = factor_t * factor_hw**2
    step = x.shape[1] // h.shape[1]  # channels of the input for one of the output
    repeats = cell // step
    doubled = h.shape[2] == x.shape[2] * factor_t
    places = product(range(factor_t), range(factor_hw), range(factor_hw))
    for number, (i, j, k) in enumerate(places):
        frames = slice(i, None, factor_t) if doubled else slice(None)
        if doubled or i == factor_t - 1:
            h[:, :, frames, j::factor_hw, k::factor_hw].add_(x[:, number // repeats :: step])
    return h
