"""The VAE on whole clips, with gradients: what training uses instead of the stream.

The same layers and parameters as :mod:`..models.vae`, all frames at once; equal to the stream (a test holds the two
together). A single frame takes two-dimensional convolutions: of a causal kernel only the last tap sees it.
Shape letters: B batch, C channels, T frames, H height, W width.
"""

from functools import singledispatch

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..models.vae import WanVAE
from ..models.vae_layers import AttentionBlock, CausalConv3d, Downsample, ResidualBlock, RMSNorm, Upsample


def encode_clip(vae: WanVAE, x_B3THW: Tensor) -> tuple[Tensor, Tensor]:
    """A clip of 4n+1 frames in [-1, 1] -> mean and log variance of its posterior, ``[B, z, n + 1, h, w]`` each."""
    _check(vae)
    encoder = vae.encoder
    x = causal(encoder.conv1, x_B3THW)
    for layer in (*encoder.downsamples, *encoder.middle):
        x = run(layer, x)
    moments = pointwise(vae.conv1, causal(encoder.head["2"], norm_silu(encoder.head["0"], x)))
    mean, log_variance = moments.float().chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def decode_clip(vae: WanVAE, z_BCThw: Tensor) -> Tensor:
    """A latent -> its clip ``[B, 3, 4 (T - 1) + 1, H, W]``, not clamped."""
    _check(vae)
    decoder = vae.decoder
    x = causal(decoder.conv1, pointwise(vae.conv2, z_BCThw))
    for layer in (*decoder.middle, *decoder.upsamples):
        x = run(layer, x)
    return causal(decoder.head["2"], norm_silu(decoder.head["0"], x)).float()


def _check(vae: WanVAE) -> None:
    if vae.config.patch != 1 or vae.config.shortcuts:
        raise NotImplementedError("only VAEs of the Wan 2.1 structure are trained (patch 1, no shortcuts)")


@singledispatch
def run(layer: nn.Module, x: Tensor) -> Tensor:
    """One layer on all frames."""
    raise NotImplementedError(type(layer).__name__)


@run.register
def _(block: ResidualBlock, x: Tensor) -> Tensor:
    norm1, conv1, norm2, conv2 = block.residual.values()
    h = causal(conv1, norm_silu(norm1, x))
    h = causal(conv2, norm_silu(norm2, h))
    return h + (x if isinstance(block.shortcut, nn.Identity) else pointwise(block.shortcut, x))


@run.register
def _(block: AttentionBlock, x: Tensor) -> Tensor:
    # A few pixels a frame: plain products are faster here than a fused kernel and its backward pass.
    frames = rearrange(x, "b c t h w -> (b t) c h w")
    q, k, v = rearrange(block.to_qkv(norm(block.norm, frames)), "n (three c) h w -> three n (h w) c", three=3)
    out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    out = block.proj(rearrange(out, "n (h w) c -> n c h w", h=x.shape[3]))
    return x + rearrange(out, "(b t) c h w -> b c t h w", b=x.shape[0])


@run.register
def _(layer: Downsample, x: Tensor) -> Tensor:
    x = _each_frame(layer.resample, x)
    if layer.time_conv is None or x.shape[2] == 1:
        return x
    return torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)


@run.register
def _(layer: Upsample, x: Tensor) -> Tensor:
    if layer.time_conv is not None and x.shape[2] > 1:
        # The later frames are doubled as if the first were not there: their past begins with zeros.
        later = rearrange(causal(layer.time_conv, x[:, :, 1:]), "b (s c) t h w -> b c (t s) h w", s=2)
        x = torch.cat([x[:, :, :1], later], dim=2)
    return _each_frame(layer.resample, x)


def causal(conv: CausalConv3d, x: Tensor) -> Tensor:
    """A causal convolution whose past is zeros."""
    if x.shape[2] == 1:
        flat = F.conv2d(x[:, :, 0], conv.weight[:, :, -1], conv.bias, padding=conv.padding[1:])
        return flat.unsqueeze(2)
    return F.conv3d(F.pad(x, (0, 0, 0, 0, 2, 0)), conv.weight, conv.bias, padding=conv.padding)


def pointwise(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """A 1x1x1 convolution."""
    if x.shape[2] == 1:
        return F.conv2d(x[:, :, 0], conv.weight[:, :, 0], conv.bias).unsqueeze(2)
    return conv(x)


def norm(layer: RMSNorm, x: Tensor) -> Tensor:
    """The VAE's norm over channels; keeps the memory layout."""
    return F.normalize(x, dim=1, eps=1e-12) * (x.shape[1] ** 0.5 * layer.gamma)


def norm_silu(layer: RMSNorm, x: Tensor) -> Tensor:
    return _norm_silu(x, layer.gamma)


def _norm_silu_plain(x: Tensor, gamma: Tensor) -> Tensor:
    return F.silu(F.normalize(x, dim=1, eps=1e-12) * (x.shape[1] ** 0.5 * gamma))


_norm_silu = _norm_silu_plain


def compile_kernels() -> None:
    """Fuse norm and activation into one kernel: half the time of a step at small widths, half a minute to compile for
    each shape of batch, and a C++ compiler is needed."""
    global _norm_silu
    torch._dynamo.config.recompile_limit = 256
    _norm_silu = torch.compile(_norm_silu_plain, dynamic=False)


def _each_frame(layer: nn.Module, x: Tensor) -> Tensor:
    frames = layer(rearrange(x, "b c t h w -> (b t) c h w"))
    return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])
