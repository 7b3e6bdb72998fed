"""The Wan VAEs: 2.1 (stride 4x8x8) and 2.2 (stride 4x16x16), one class, streamed in both directions.

Source: Wan-Video/Wan2.1, ``wan/modules/vae.py`` and Wan-Video/Wan2.2, ``wan/modules/vae2_2.py``; parameter names are
the official ones. Shape letters: B batch, C channels, T frames, H height, W width; lower case in the latent.

The network is causal in time: the first frame stands alone, each later latent frame covers 4 frames. A run of frames
needs of its past only the last 1 or 2 input frames of each convolution over time, so a clip of any length passes
through run by run and memory does not grow with it.

It is local too, but for the attention in the middle: of a wide picture the layers before it (encoder) or after it
(decoder) can be computed part by part, each with what it sees beyond its edges, and the numbers are the same. So a
picture of any size needs no more memory than one part of it, and no seam has to be blended away.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn

from ..configs import VaeConfig
from .vae_layers import (
    AttentionBlock,
    CausalConv3d,
    DownLevel,
    Downsample,
    ResidualBlock,
    RMSNorm,
    UpLevel,
    Upsample,
)
from .vae_parts import Box, ConvCache, Span, needs, run_local

LATENTS_AT_ONCE = 2
"""Frames of a latent, after a clip's first, that are decoded together: a CPU convolves the small pictures of the first
layers faster so. The layers after them take no more at once than for one, but the rest of the run waits."""


class WanVAE(nn.Module):
    """Video <-> latent. Computes in its weights' dtype; inputs are cast to it and outputs come in it.

    Latents are the plain mean of the posterior: normalising them is up to the latent space, not to the network.
    Sides must be multiples of ``config.stride_hw``. No gradients are kept.
    """

    def __init__(self, config: VaeConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = nn.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = nn.Conv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)

    def encode_stream(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Frames -> latent frames.

        Args:
            frames: pieces ``[B, 3, t, H, W]`` in [-1, 1], of any number of frames each. How a clip is cut into pieces
                changes nothing; frames beyond 4n+1 are dropped.

        Yields:
            mu ``[B, z, 1, h, w]``, not normalised.
        """
        cache: ConvCache = {}
        for run in regroup(frames, 1, self.config.stride_t):
            box = Box.whole(*(side // self.config.stride_hw for side in run.shape[-2:]))
            yield self.encode_joined(self.encode_part(run, cache, box), cache)

    def decode_stream(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        """Latent frames -> frames.

        Args:
            latents: pieces ``[B, z, t, h, w]``, not normalised, of any number of latent frames each.

        Yields:
            ``[B, 3, n, H, W]`` in about [-1, 1], not clamped; ``n`` is 1 for the first latent frame, 4 for the others.
        """
        cache: ConvCache = {}
        for run in regroup(latents, 1, LATENTS_AT_ONCE, keep_rest=True):
            yield from self.decode_part(self.decode_joined(run, cache), cache, Box.whole(*run.shape[-2:]))

    def encode(self, x_B3THW: Tensor) -> Tensor:
        """A whole clip in [-1, 1] -> mu ``[B, z, (T - 1) // 4 + 1, h, w]``; see :meth:`encode_stream`."""
        return torch.cat(list(self.encode_stream([x_B3THW])), dim=2)

    def decode(self, z_BCThw: Tensor) -> Tensor:
        """A whole latent -> ``[B, 3, 4 * (T - 1) + 1, H, W]``, not clamped; see :meth:`decode_stream`."""
        return torch.cat(list(self.decode_stream([z_BCThw])), dim=2)

    # In parts. Boxes are rectangles of the latent grid; each part has a cache of its own, and the joined side one. What
    # computes is decorated and not the generators: torch's wrapper of a generator would keep hold of every output until
    # the next one is there.

    def pixels_of(self, box: Box) -> Box:
        """The pixels that :meth:`encode_part` has to see for ``box``."""
        return needs(self.encoder.local, box)[0].times(self.config.patch)

    @torch.no_grad()
    def encode_part(self, x_B3tHW: Tensor, cache: ConvCache, box: Box) -> Tensor:
        """A run of frames, cut to :meth:`pixels_of` ``box`` -> its features there, ``[B, C, 1, rows, cols]``."""
        x = patchify(x_B3tHW.to(self.conv1.weight.dtype), self.config.patch)
        (features,) = run_local(self.encoder.local, x, cache, needs(self.encoder.local, box))
        return features

    @torch.no_grad()
    def encode_joined(self, features_BCthw: Tensor, cache: ConvCache) -> Tensor:
        """Features of a whole picture -> mu ``[B, z, 1, h, w]``."""
        moments = self.conv1(self.encoder.joined(features_BCthw, cache))
        return moments[:, : self.config.z_dim].clone()  # a view would keep the unused variance alive

    @torch.no_grad()
    def decode_joined(self, z_BCthw: Tensor, cache: ConvCache) -> Tensor:
        """Latent frames, a clip's first one alone -> the features of whole pictures, which :meth:`decode_part` takes in
        parts."""
        return self.decoder.joined(self.conv2(z_BCthw.to(self.conv2.weight.dtype)), cache)

    def decode_part(self, features_BCthw: Tensor, cache: ConvCache, box: Box) -> Iterator[Tensor]:
        """Features -> the pixels of ``box``, one latent frame after another.

        Yields:
            ``[B, 3, n, rows * stride, cols * stride]`` in about [-1, 1]; ``n`` is 4, of a clip's first frame 1.
        """
        layers = self.decoder.local
        boxes = needs(layers, box.times(self.config.stride_hw // self.config.patch))
        for made in run_local(layers, boxes[0].of(features_BCthw), cache, boxes):
            yield unpatchify(made, self.config.patch)


class Encoder(nn.Module):
    """One run of (patched) pixels -> ``2 * z_dim`` channels at the latent grid."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        widths = [config.dim * m for m in (1, *config.dim_mult)]
        self.conv1 = CausalConv3d(3 * config.patch**2, widths[0])
        self.downsamples = nn.ModuleList()
        for level, (dim_in, dim_out) in enumerate(pairwise(widths)):
            layers: list[nn.Module] = [ResidualBlock(dim_in, dim_out)]
            layers += [ResidualBlock(dim_out, dim_out) for _ in range(config.num_res_blocks - 1)]
            shrinks = level < len(config.dim_mult) - 1
            temporal = shrinks and config.temporal_downsample[level]
            if shrinks:
                layers.append(Downsample(dim_out, temporal))
            if config.shortcuts:
                layers = [DownLevel(layers, dim_out, 1 + temporal, 1 + shrinks)]
            self.downsamples.extend(layers)
        self.middle = _middle(widths[-1])
        self.head = Head(widths[-1], 2 * config.z_dim)

    @property
    def local(self) -> list[nn.Module]:
        """What sees only its surroundings."""
        return [self.conv1, *self.downsamples]

    def joined(self, x: Tensor, cache: ConvCache) -> Tensor:
        """Everything from the attention on, which sees the whole picture."""
        for layer in (*self.middle, self.head):
            x = layer(x, cache)
        return x


class Decoder(nn.Module):
    """Latent frames -> (patched) pixels of their frames."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        widths = [config.dec_dim * m for m in reversed(config.dim_mult)]
        dim = widths[0]
        self.conv1 = CausalConv3d(config.z_dim, dim)
        self.middle = _middle(dim)
        self.upsamples = nn.ModuleList()
        for level, dim_out in enumerate(widths):
            layers: list[nn.Module] = [ResidualBlock(dim, dim_out)]
            layers += [ResidualBlock(dim_out, dim_out) for _ in range(config.num_res_blocks)]
            grows = level < len(widths) - 1
            temporal = grows and config.temporal_downsample[-1 - level]
            dim = dim_out // 2 if grows and not config.shortcuts else dim_out
            if grows:
                layers.append(Upsample(dim_out, dim, temporal))
            if config.shortcuts:
                layers = [UpLevel(layers, dim_out, 1 + temporal, 1 + grows)]
            self.upsamples.extend(layers)
        self.head = Head(dim, 3 * config.patch**2)

    @property
    def local(self) -> list[nn.Module]:
        """What sees only its surroundings."""
        return [*self.upsamples, self.head]

    def joined(self, z: Tensor, cache: ConvCache) -> Tensor:
        """Everything up to the attention, which sees the whole picture, and one block after it."""
        for layer in (self.conv1, *self.middle):
            z = layer(z, cache)
        return z


class Head(nn.ModuleDict):
    """The last norm and convolution."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__({"0": RMSNorm(dim_in), "2": CausalConv3d(dim_in, dim_out)})

    def before(self, span: Span) -> Span:
        return self["2"].before(span)

    def after(self, span: Span) -> Span:
        return span

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        return self["2"](x, cache, self["0"])


def _middle(dim: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim)])


def patchify(x: Tensor, patch: int) -> Tensor:
    """Fold ``patch x patch`` pixels into channels; a channel's index counts rows fastest, then columns."""
    return rearrange(x, "b c t (h i) (w j) -> b (c j i) t h w", i=patch, j=patch)


def unpatchify(x: Tensor, patch: int) -> Tensor:
    """The inverse of :func:`patchify`."""
    return rearrange(x, "b (c j i) t h w -> b c t (h i) (w j)", i=patch, j=patch)


def regroup(pieces: Iterable[Tensor], first: int, rest: int, keep_rest: bool = False) -> Iterator[Tensor]:
    """Cut pieces of any length (dim 2) into runs of ``first``, ``rest``, ``rest`` ... frames.

    What is left over is dropped, or with ``keep_rest`` a shorter last run. A run shares no memory with the pieces, so
    that a stream keeps no piece alive.
    """
    held: list[Tensor] = []
    need = first
    for piece in pieces:
        start = 0
        while piece.shape[2] - start >= need:
            stop = start + need
            run = torch.cat([*held, piece[:, :, start:stop]], dim=2)
            held.clear()
            yield run
            del run
            start, need = stop, rest
        if start < piece.shape[2]:
            held.append(piece[:, :, start:].clone())
            need -= piece.shape[2] - start
    if held and keep_rest:
        yield torch.cat(held, dim=2)
