"""Pixels and frames <-> latent grid <-> tokens. Every 4n+1, /8, /16 and /32 rule stands here, once."""

from dataclasses import dataclass

from .errors import InputError
from .variants import LatentSpec

PATCH_HW = 2
"""Side of the transformer's patch, in latent pixels (the time side is 1)."""

MAX_SIDE = 8192
MAX_FRAMES = 8193
MAX_TOKENS = 4_000_000
"""53 times a clip of 1280x720 and 81 frames; beyond it a slip of the hand is likelier than a wish."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A clip's size in every unit. ``frames`` is 4n+1, the sides are multiples of ``pixel_step``."""

    frames: int
    height: int
    width: int
    latent_frames: int
    latent_height: int
    latent_width: int

    @property
    def tokens(self) -> int:
        return self.latent_frames * (self.latent_height // PATCH_HW) * (self.latent_width // PATCH_HW)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.latent_frames, self.latent_height, self.latent_width


def pixel_step(spec: LatentSpec) -> int:
    """Sides must be multiples of this (16 for VAE 2.1, 32 for VAE 2.2): VAE stride times patch."""
    return spec.stride_hw * PATCH_HW


def latent_frames(frames: int, stride_t: int = 4) -> int:
    """Latent frames of ``frames`` pixel frames: ``(frames - 1) // 4 + 1``; frames beyond 4n+1 are not seen."""
    return (frames - 1) // stride_t + 1


def pixel_frames(frames_latent: int, stride_t: int = 4) -> int:
    """Pixel frames that ``frames_latent`` latent frames decode to."""
    return (frames_latent - 1) * stride_t + 1


def grid_of(spec: LatentSpec, *, width: int, height: int, frames: int) -> Grid:
    """The grid of a clip, or an :class:`InputError` that names the nearest sizes that fit."""
    step = pixel_step(spec)
    for name, value in (("width", width), ("height", height)):
        if value < step or value > MAX_SIDE or value % step:
            raise InputError(
                f"{name} must be a multiple of {step} from {step} to {MAX_SIDE} for the {spec.vae}; got {value}. "
                f"Use {_nearest(value, step, step, MAX_SIDE)}."
            )
    if frames < 1 or frames > MAX_FRAMES or (frames - 1) % spec.stride_t:
        near = _nearest(frames - 1, spec.stride_t, 0, MAX_FRAMES - 1, offset=1)
        raise InputError(
            f"frames must be {spec.stride_t}n+1 (1, 5, 9 ... 81) and at most {MAX_FRAMES}; got {frames}. Use {near}."
        )
    check_amount(spec, latent_frames(frames, spec.stride_t), height // spec.stride_hw, width // spec.stride_hw)
    return Grid(
        frames=frames,
        height=height,
        width=width,
        latent_frames=latent_frames(frames, spec.stride_t),
        latent_height=height // spec.stride_hw,
        latent_width=width // spec.stride_hw,
    )


def check_amount(spec: LatentSpec, frames: int, height: int, width: int) -> None:
    """Refuse a latent (its own frames and sides) that no machine can hold, before anything is made of its size."""
    tokens = frames * -(-height // PATCH_HW) * -(-width // PATCH_HW)
    if tokens > MAX_TOKENS:
        raise InputError(
            f"{width * spec.stride_hw}x{height * spec.stride_hw} and {pixel_frames(frames, spec.stride_t)} frames are "
            f"{tokens} tokens; at most {MAX_TOKENS} are accepted (1280x720 and 81 frames are 75600). Use fewer frames "
            "or a smaller size."
        )


def _nearest(value: int, step: int, low: int, high: int, offset: int = 0) -> str:
    below = min(max(value // step * step, low), high) + offset
    above = min(max(-(-value // step) * step, low), high) + offset
    return str(below) if below == above else f"{below} or {above}"
