"""The arithmetic of a VAE, from its config alone: multiplications and additions of its convolutions."""

from itertools import pairwise

from ..configs import VaeConfig

TAPS = 27
"""Of a 3x3x3 convolution."""


def decode_flops(config: VaeConfig, frames: int, height: int, width: int) -> float:
    """FLOP to decode a latent of so many frames and its own height and width."""
    return _clip(_decode_frame, config, frames, height * width)


def encode_flops(config: VaeConfig, frames: int, height: int, width: int) -> float:
    """FLOP to encode a clip to a latent of that size."""
    return _clip(_encode_frame, config, frames, height * width)


def _clip(of_frame, config: VaeConfig, frames: int, area: int) -> float:
    """The first latent frame is one picture, each other one four."""
    return 2.0 * (of_frame(config, area, True) + (frames - 1) * of_frame(config, area, False))


def _decode_frame(config: VaeConfig, area: int, first: bool) -> int:
    widths = [config.dec_dim * m for m in reversed(config.dim_mult)]
    dim, frames = widths[0], 1
    macs = area * (config.z_dim**2 + TAPS * config.z_dim * dim) + _middle(dim, area)
    for level, out in enumerate(widths):
        grows = level < len(widths) - 1
        pixels = frames * area
        macs += pixels * (_block(dim, out) + config.num_res_blocks * _block(out, out))
        dim = out // 2 if grows and not config.shortcuts else out
        if grows and config.temporal_downsample[-1 - level] and not first:
            macs += pixels * 3 * out * 2 * out
            frames *= 2
        if grows:
            area *= 4
            macs += frames * area * 9 * out * dim
    return macs + frames * area * TAPS * dim * 3 * config.patch**2


def _encode_frame(config: VaeConfig, area: int, first: bool) -> int:
    widths = [config.dim * m for m in (1, *config.dim_mult)]
    levels = len(config.dim_mult)
    frames, area = 1 if first else config.stride_t, area * 4 ** (levels - 1)
    macs = frames * area * TAPS * 3 * config.patch**2 * widths[0]
    for level, (dim, out) in enumerate(pairwise(widths)):
        macs += frames * area * (_block(dim, out) + (config.num_res_blocks - 1) * _block(out, out))
        if level == levels - 1:
            break
        area //= 4
        macs += frames * area * 9 * out * out
        if config.temporal_downsample[level] and not first:
            frames //= 2
            macs += frames * area * 3 * out * out
    dim = widths[-1]
    return macs + _middle(dim, area) + area * (TAPS * dim * 2 * config.z_dim + (2 * config.z_dim) ** 2)


def _block(dim: int, out: int) -> int:
    """A residual block, for each pixel."""
    return TAPS * (dim * out + out * out) + (dim * out if dim != out else 0)


def _middle(dim: int, area: int) -> int:
    """Two residual blocks and the attention over the pixels of a frame."""
    return area * (2 * _block(dim, dim) + 4 * dim**2) + 2 * area**2 * dim
