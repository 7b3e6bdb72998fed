"""The numbers that define one network each. Plain data; everything else reads them from here."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DitConfig:
    """Shape of one Wan diffusion transformer. ``img_dim`` is the CLIP width (None: no image branch)."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int
    out_dim: int
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    img_dim: int | None = None
    img_tokens: int | None = None
    """Number of learned image positions (514 for first-last-frame models), None where there are none."""
    ref_dim: int | None = None
    """Latent channels of a reference picture that goes in front of the clip (``ref_conv``), None without."""
    camera_dim: int | None = None
    """Channels of a folded camera embedding (24 x pixels of a latent pixel: 1536 or 6144), None without."""
    vace_layers: tuple[int, ...] = ()
    """Main blocks that get a hint from a VACE block each, the first of them 0; empty: no VACE."""
    vace_in_dim: int | None = None
    """Channels of a VACE context (96: two latents of 16 and a mask of 64)."""

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclass(frozen=True, kw_only=True)
class Umt5Config:
    """Shape of a umT5 encoder; the defaults are umT5-XXL."""

    vocab: int = 256384
    dim: int = 4096
    dim_attn: int = 4096
    dim_ffn: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig:
    """Shape of the CLIP visual tower; the defaults are ViT-H/14."""

    image_size: int = 224
    patch_size: int = 14
    dim: int = 1280
    mlp_dim: int = 5120
    out_dim: int = 1024
    num_heads: int = 16
    num_layers: int = 32
    eps: float = 1e-5

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Shape of a Wan VAE; the defaults are VAE 2.1. ``patch`` 2 and ``shortcuts`` make it VAE 2.2."""

    dim: int = 96
    dec_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    patch: int = 1
    """Side of the pixel patch folded into channels before the encoder (1: none)."""
    shortcuts: bool = False
    """Parameter-free averaging / repeating shortcuts around each level (VAE 2.2)."""

    @property
    def stride_t(self) -> int:
        return 2 ** sum(self.temporal_downsample)

    @property
    def stride_hw(self) -> int:
        return self.patch * 2 ** (len(self.dim_mult) - 1)


@dataclass(frozen=True, kw_only=True)
class TaeConfig:
    """Shape of the decoder of a tiny Wan autoencoder; the defaults are those for latents of the Wan 2.1 VAE."""

    z_dim: int = 16
    widths: tuple[int, ...] = (256, 128, 64, 64)
    """Of the three levels, each twice as wide in pixels as the one before, and of the last convolution's input."""
    patch: int = 1
    """Side of the pixel patch that the last convolution makes as channels (1: none)."""
