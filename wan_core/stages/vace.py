"""Clip, mask and reference pictures -> a VACE context."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditioning.checks import check_tensor
from ..conditioning.vace import mask_channels, on_white, split_clip, with_references
from ..errors import InputError
from ..grid import Grid
from ..runtime.ports import Notify, Ports
from ..variants import LatentSpec
from .image import check_pictures, fit
from .load import VaeHandle
from .vae import encode_stream

MAX_REFERENCES = 16
"""Each takes a latent frame of the run; the models were trained with a few."""

Encode = Callable[[Iterator[Tensor], int], Tensor]
"""Runs of frames ``[n, H, W, 3]`` in 0..1, and how many there are -> latent ``[1, C, T, h, w]``, not normalised."""


@dataclass(frozen=True, kw_only=True)
class MadeContext:
    """``latent`` and ``mask`` of a :class:`~..conditioning.vace.VaceContext`, and how many latent frames before the
    clip are reference pictures."""

    latent: Tensor
    mask: Tensor
    references: int


def with_vae(vae: VaeHandle, grid: Grid, ports: Ports) -> Encode:
    """Our VAE, frame by frame."""

    def encode(runs: Iterator[Tensor], frames: int) -> Tensor:
        pieces = (run.movedim(-1, 0)[None].float() * 2 - 1 for run in runs)
        return torch.cat(list(encode_stream(vae, pieces, (1, frames, grid.height, grid.width), ports)), dim=2)

    return encode


@torch.no_grad()
def make_context(
    encode: Encode,
    grid: Grid,
    spec: LatentSpec,
    *,
    video: Tensor | None,
    masks: Tensor | None,
    references: Tensor | None,
    notify: Notify,
) -> MadeContext:
    """Encode a context.

    Args:
        grid: size of the clip that is to be made.
        video: ``[F, H, W, 3]`` in 0..1 to keep, change or follow; None: mid grey. A short one goes on with frames to be
            made, of a long one the beginning is used.
        masks: ``[F, H, W]``, 1 made anew (or followed), 0 kept; None: 1 everywhere.
        references: pictures ``[n, H, W, 3]`` of any size, fitted on white.
    """
    frames, mask = _clip(video, grid, notify), _mask(masks, grid, notify)
    if video is not None and len(video) < grid.frames and masks is not None:
        mask[len(video) :] = 1.0
    halves = [encode(split_clip(frames, mask, part), grid.frames) for part in ("inactive", "reactive")]
    latent, channels = torch.cat(halves, dim=1), mask_channels(mask, spec)
    encoded = [] if references is None else encode_references(encode, references, grid, "reference_image")
    if encoded:
        latent, channels = with_references(latent, channels, encoded, spec)
    return MadeContext(latent=latent, mask=channels, references=len(encoded))


def _clip(video: Tensor | None, grid: Grid, notify: Notify) -> Tensor:
    """Frames of the clip's size and number."""
    if video is None:
        return torch.full((1, 1, 1, 1), 0.5).expand(grid.frames, grid.height, grid.width, 3)
    check_pictures(video, "control_video")
    if len(video) > grid.frames:
        notify(f"Of {len(video)} frames of the control_video {grid.frames} are used: the clip has no more.")
    frames = fit(video[: grid.frames], grid, "control_video", notify).float()
    missing = grid.frames - len(frames)
    if missing:
        notify(f"The control_video has {len(frames)} frames of {grid.frames}; the other {missing} are made anew.")
        frames = torch.cat((frames, torch.full((missing, grid.height, grid.width, 3), 0.5)))
    return frames


def _mask(masks: Tensor | None, grid: Grid, notify: Notify) -> Tensor:
    """A mask for every frame; frames without one are made anew."""
    if masks is None:
        return torch.ones(grid.frames, grid.height, grid.width)
    masks = masks[:, 0] if isinstance(masks, Tensor) and masks.ndim == 4 and masks.shape[1] == 1 else masks
    check_tensor(masks, "control_masks", "count, height, width")
    low, high = (value.item() for value in masks.aminmax())
    if low < 0 or high > 1:
        raise InputError(f"control_masks has values from {low:g} to {high:g}; masks are 0 (kept) to 1 (made anew).")
    colours = masks[: grid.frames, :, :, None].float().expand(-1, -1, -1, 3)
    fitted = fit(colours, grid, "control_masks", notify)[..., 0]
    missing = grid.frames - len(fitted)
    if missing > 0:
        notify(
            f"control_masks has {len(fitted)} masks for {grid.frames} frames; the other {missing} are made anew. "
            "Give a mask for each frame where that is not meant."
        )
    return torch.cat((fitted, torch.ones(max(0, missing), grid.height, grid.width)))


def encode_references(encode: Encode, pictures: Tensor, grid: Grid, what: str) -> list[Tensor]:
    """Pictures ``[n, H, W, 3]`` of any size in 0..1, fitted on white -> a latent frame ``[1, C, 1, h, w]`` of each."""
    check_pictures(pictures, what)
    if len(pictures) > MAX_REFERENCES:
        raise InputError(
            f"{what} holds {len(pictures)} pictures; at most {MAX_REFERENCES} are accepted, and 1 to 3 work best. "
            "Connect pictures, not a clip."
        )
    return [encode(iter([picture]), 1) for picture in on_white(pictures, grid)]
