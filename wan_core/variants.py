"""THE table of model variants. A variant is a row; what makes it different is a feature, never a name in an ``if``.

Numbers: Wan-Video/Wan2.1 and Wan-Video/Wan2.2, ``wan/configs``; Fun VACE: aigc-apps/VideoX-Fun,
``examples/wan2.2_vace_fun``.
"""

from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from .configs import DitConfig


class Feature(Enum):
    """What a model takes besides text."""

    CONCAT = "concat"
    """20 more input channels: a 4-channel mask and the latent of the known frames."""
    CLIP = "clip"
    """CLIP tokens of the start image (257 each)."""
    LAST_FRAME = "last_frame"
    """Learned positions for the CLIP tokens of a start and an end image."""
    FIRST_FRAME = "first_frame"
    """The first latent frame may be given clean; its tokens get timestep 0."""
    BLANK = "blank"
    """Without a picture it takes CLIP tokens of zeros, as it was trained."""
    START = "start"
    """C more input channels: the latent of the start frames, zero elsewhere, without a mask."""
    CONTROL = "control"
    """C more input channels, in front of the known frames: the latent of a control video."""
    REFERENCE = "reference"
    """A reference picture as one more frame of tokens in front of the clip."""
    CAMERA = "camera"
    """A camera path (Pluecker embedding), added to the tokens."""
    VACE = "vace"
    """A control clip, its mask and reference pictures, through blocks of their own (96 channels)."""


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """A latent space: channels, strides in frames and pixels, and the statistics that normalise it."""

    channels: int
    stride_t: int
    stride_hw: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    vae: str
    """What users call the VAE of this space."""
    fps: int
    """Frames a second of the models of this space."""
    clean_frames: bool = False
    """Its image models take known pictures as clean latent frames, not as extra channels."""

    def normalise(self, z_BCTHW: Tensor) -> Tensor:
        """VAE output (or a ComfyUI LATENT) -> what the transformer sees: ``(z - mean) / std``."""
        mean, std = self._stats(z_BCTHW)
        return (z_BCTHW - mean) / std

    def denormalise(self, z_BCTHW: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`."""
        mean, std = self._stats(z_BCTHW)
        return z_BCTHW * std + mean

    def _stats(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, self.channels, 1, 1, 1)
        return (
            torch.tensor(self.mean, dtype=like.dtype, device=like.device).view(shape),
            torch.tensor(self.std, dtype=like.dtype, device=like.device).view(shape),
        )


# fmt: off
LATENT_21 = LatentSpec(
    channels=16, stride_t=4, stride_hw=8, fps=16, vae="Wan 2.1 VAE (wan_2.1_vae.safetensors)",
    mean=(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
          0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    std=(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
         3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
LATENT_22 = LatentSpec(
    channels=48, stride_t=4, stride_hw=16, fps=24, clean_frames=True, vae="Wan 2.2 VAE (wan2.2_vae.safetensors)",
    mean=(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
          0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
          -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
          -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
    std=(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
         0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
         0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
         0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)
# fmt: on
LATENTS: dict[int, LatentSpec] = {spec.channels: spec for spec in (LATENT_21, LATENT_22)}


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What the official code uses when nothing is asked for."""

    steps: int
    shift: float
    guidance_high: float
    guidance_low: float
    frames: int = 81
    fps: int = 16
    width: int = 832
    height: int = 480


@dataclass(frozen=True, kw_only=True)
class WanVariant:
    """One row: a model that users know by name."""

    name: str
    title: str
    dit: DitConfig
    latent: LatentSpec
    features: frozenset[Feature]
    defaults: Defaults
    boundary: float | None = None
    """Two experts: sigma at and above which the high-noise expert works. None: one model."""
    exact: bool = False
    """Only files of exactly this size are it; a model of another size is a resized one of the other rows."""

    @property
    def experts(self) -> int:
        return 1 if self.boundary is None else 2


def _same(guidance: float, **rest) -> Defaults:
    return Defaults(guidance_high=guidance, guidance_low=guidance, **rest)


_DIT_1_3B = DitConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, in_dim=16, out_dim=16)
_DIT_14B = DitConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=16, out_dim=16)
_DIT_14B_CONCAT = DitConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=36, out_dim=16)
_DIT_I2V_21 = DitConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=36, out_dim=16, img_dim=1280)
_DIT_FLF2V = DitConfig(
    dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=36, out_dim=16, img_dim=1280, img_tokens=514
)
_DIT_5B = DitConfig(dim=3072, ffn_dim=14336, num_heads=24, num_layers=30, in_dim=48, out_dim=48)

# Wan Fun (aigc-apps/VideoX-Fun). 2.1: a control model takes latents of a control video and a start image, a camera
# model the latter alone. 2.2 has the mask beside the start image, and no CLIP.
_FUN_1_3B = replace(_DIT_1_3B, img_dim=1280)
_FUN_14B = replace(_DIT_14B, img_dim=1280)
_FOLD_8, _FOLD_16 = 24 * 8 * 8, 24 * 16 * 16
_VACE_1_3B = replace(_DIT_1_3B, vace_layers=tuple(range(0, 30, 2)), vace_in_dim=96)
_VACE_14B = replace(_DIT_14B, vace_layers=tuple(range(0, 40, 5)), vace_in_dim=96)

_DIT_NANO = DitConfig(dim=192, ffn_dim=320, num_heads=3, num_layers=6, in_dim=16, out_dim=16, text_dim=128)

_TEXT: frozenset[Feature] = frozenset()
_VACE = frozenset({Feature.VACE})
_NANO = _same(3.0, steps=20, shift=3.0, frames=17, width=64, height=64)
_I2V_21 = frozenset({Feature.CONCAT, Feature.CLIP})
_FUN_INP_21 = _I2V_21 | {Feature.BLANK}
_CONTROL_21 = frozenset({Feature.CONTROL, Feature.START, Feature.CLIP, Feature.BLANK})
_CAMERA_21 = frozenset({Feature.CAMERA, Feature.START, Feature.CLIP, Feature.BLANK})
_CAMERA_22 = frozenset({Feature.CAMERA, Feature.CONCAT})
_CONTROL_22 = frozenset({Feature.CONTROL, Feature.CONCAT, Feature.REFERENCE})
_FUN_21 = _same(6.0, steps=50, shift=3.0)
_FUN_A14B = _same(6.0, steps=50, shift=5.0)
_FUN_5B = _same(6.0, steps=50, shift=5.0, frames=121, fps=24, width=1280, height=704)

VARIANTS: tuple[WanVariant, ...] = (
    WanVariant(
        name="t2v-1.3b",
        title="Wan 2.1 T2V 1.3B",
        dit=_DIT_1_3B,
        latent=LATENT_21,
        features=_TEXT,
        defaults=_same(5.0, steps=50, shift=5.0),
    ),
    WanVariant(
        name="t2v-14b",
        title="Wan 2.1 T2V 14B",
        dit=_DIT_14B,
        latent=LATENT_21,
        features=_TEXT,
        defaults=_same(5.0, steps=50, shift=5.0),
    ),
    WanVariant(
        name="i2v-14b-480p",
        title="Wan 2.1 I2V 14B 480p",
        dit=_DIT_I2V_21,
        latent=LATENT_21,
        features=_I2V_21,
        defaults=_same(5.0, steps=40, shift=3.0),
    ),
    WanVariant(
        name="i2v-14b-720p",
        title="Wan 2.1 I2V 14B 720p",
        dit=_DIT_I2V_21,
        latent=LATENT_21,
        features=_I2V_21,
        defaults=_same(5.0, steps=40, shift=5.0, width=1280, height=720),
    ),
    WanVariant(
        name="flf2v-14b",
        title="Wan 2.1 FLF2V 14B",
        dit=_DIT_FLF2V,
        latent=LATENT_21,
        features=_I2V_21 | {Feature.LAST_FRAME},
        defaults=_same(5.0, steps=50, shift=16.0, width=1280, height=720),
    ),
    WanVariant(
        name="t2v-a14b",
        title="Wan 2.2 T2V A14B",
        dit=_DIT_14B,
        latent=LATENT_21,
        features=_TEXT,
        boundary=0.875,
        defaults=Defaults(steps=40, shift=12.0, guidance_high=4.0, guidance_low=3.0),
    ),
    WanVariant(
        name="i2v-a14b",
        title="Wan 2.2 I2V A14B",
        dit=_DIT_14B_CONCAT,
        latent=LATENT_21,
        features=frozenset({Feature.CONCAT}),
        boundary=0.900,
        defaults=_same(3.5, steps=40, shift=5.0),
    ),
    WanVariant(
        name="ti2v-5b",
        title="Wan 2.2 TI2V 5B",
        dit=_DIT_5B,
        latent=LATENT_22,
        features=frozenset({Feature.FIRST_FRAME}),
        defaults=_same(5.0, steps=50, shift=5.0, frames=121, fps=24, width=1280, height=704),
    ),
    WanVariant(
        name="nano-t2v",
        title="Wan Nano T2V",
        dit=_DIT_NANO,
        latent=LATENT_21,
        features=_TEXT,
        boundary=0.875,
        defaults=_NANO,
        exact=True,
    ),
    WanVariant(
        name="nano-i2v",
        title="Wan Nano I2V",
        dit=replace(_DIT_NANO, in_dim=36),
        latent=LATENT_21,
        features=frozenset({Feature.CONCAT}),
        boundary=0.900,
        defaults=_NANO,
        exact=True,
    ),
    WanVariant(
        name="fun-inp-1.3b",
        title="Wan 2.1 Fun InP 1.3B",
        dit=replace(_FUN_1_3B, in_dim=36),
        latent=LATENT_21,
        features=_FUN_INP_21,
        defaults=_FUN_21,
    ),
    WanVariant(
        name="fun-control-1.3b",
        title="Wan 2.1 Fun Control 1.3B",
        dit=replace(_FUN_1_3B, in_dim=48),
        latent=LATENT_21,
        features=_CONTROL_21,
        defaults=_FUN_21,
    ),
    WanVariant(
        name="fun-control-v1.1-1.3b",
        title="Wan 2.1 Fun Control 1.3B V1.1",
        dit=replace(_FUN_1_3B, in_dim=48, ref_dim=16),
        latent=LATENT_21,
        features=_CONTROL_21 | {Feature.REFERENCE},
        defaults=_FUN_21,
    ),
    WanVariant(
        name="fun-camera-1.3b",
        title="Wan 2.1 Fun Camera 1.3B",
        dit=replace(_FUN_1_3B, in_dim=32, camera_dim=_FOLD_8),
        latent=LATENT_21,
        features=_CAMERA_21,
        defaults=_FUN_21,
    ),
    WanVariant(
        name="fun-inp-14b",
        title="Wan 2.1 Fun InP 14B",
        dit=replace(_FUN_14B, in_dim=36),
        latent=LATENT_21,
        features=_FUN_INP_21,
        defaults=_FUN_21,
    ),
    WanVariant(
        name="fun-control-14b",
        title="Wan 2.1 Fun Control 14B",
        dit=replace(_FUN_14B, in_dim=48),
        latent=LATENT_21,
        features=_CONTROL_21,
        defaults=_FUN_21,
    ),
    WanVariant(
        name="fun-control-v1.1-14b",
        title="Wan 2.1 Fun Control 14B V1.1",
        dit=replace(_FUN_14B, in_dim=48, ref_dim=16),
        latent=LATENT_21,
        features=_CONTROL_21 | {Feature.REFERENCE},
        defaults=_FUN_21,
    ),
    WanVariant(
        name="fun-camera-14b",
        title="Wan 2.1 Fun Camera 14B",
        dit=replace(_FUN_14B, in_dim=32, camera_dim=_FOLD_8),
        latent=LATENT_21,
        features=_CAMERA_21,
        defaults=_FUN_21,
    ),
    WanVariant(
        name="fun-inp-a14b",
        title="Wan 2.2 Fun InP A14B",
        dit=_DIT_14B_CONCAT,
        latent=LATENT_21,
        features=frozenset({Feature.CONCAT}),
        boundary=0.900,
        defaults=_FUN_A14B,
    ),
    WanVariant(
        name="fun-control-a14b",
        title="Wan 2.2 Fun Control A14B",
        dit=replace(_DIT_14B, in_dim=52, ref_dim=16),
        latent=LATENT_21,
        features=_CONTROL_22,
        boundary=0.900,
        defaults=_FUN_A14B,
    ),
    WanVariant(
        name="fun-camera-a14b",
        title="Wan 2.2 Fun Camera A14B",
        dit=replace(_DIT_14B_CONCAT, camera_dim=_FOLD_8),
        latent=LATENT_21,
        features=_CAMERA_22,
        boundary=0.900,
        defaults=_FUN_A14B,
    ),
    WanVariant(
        name="fun-inp-5b",
        title="Wan 2.2 Fun InP 5B",
        dit=replace(_DIT_5B, in_dim=100),
        latent=LATENT_22,
        features=frozenset({Feature.CONCAT, Feature.FIRST_FRAME}),
        defaults=_FUN_5B,
    ),
    WanVariant(
        name="fun-control-5b",
        title="Wan 2.2 Fun Control 5B",
        dit=replace(_DIT_5B, in_dim=148, ref_dim=48),
        latent=LATENT_22,
        features=_CONTROL_22 | {Feature.FIRST_FRAME},
        defaults=_FUN_5B,
    ),
    WanVariant(
        name="fun-camera-5b",
        title="Wan 2.2 Fun Camera 5B",
        dit=replace(_DIT_5B, in_dim=100, camera_dim=_FOLD_16),
        latent=LATENT_22,
        features=_CAMERA_22 | {Feature.FIRST_FRAME},
        defaults=_FUN_5B,
    ),
    WanVariant(
        name="vace-1.3b",
        title="Wan 2.1 VACE 1.3B",
        dit=_VACE_1_3B,
        latent=LATENT_21,
        features=_VACE,
        defaults=_same(5.0, steps=50, shift=16.0),
    ),
    WanVariant(
        name="vace-14b",
        title="Wan 2.1 VACE 14B",
        dit=_VACE_14B,
        latent=LATENT_21,
        features=_VACE,
        defaults=_same(5.0, steps=50, shift=16.0),
    ),
    WanVariant(
        name="vace-a14b",
        title="Wan 2.2 Fun VACE A14B",
        dit=_VACE_14B,
        latent=LATENT_21,
        features=_VACE,
        boundary=0.875,
        defaults=_same(5.0, steps=50, shift=12.0),
    ),
)
