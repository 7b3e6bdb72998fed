"""A camera path as Pluecker embedding (Feature.CAMERA).

Source: hehao13/CameraCtrl ``inference.py`` (rays of a pinhole camera) and aigc-apps/VideoX-Fun
``comfyui/camera_utils.py`` (motions, frames folded by four); directions as native ComfyUI's camera node has them.
Camera axes: x to the right, y down, z into the picture.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError, MismatchError, first_few
from ..grid import MAX_FRAMES, MAX_SIDE
from ..variants import Feature, WanVariant
from .checks import check_tensor
from .text import spread

Vector = tuple[float, float, float]
TURN, WAY = math.pi / 3, 1.5
"""Angle and distance of a whole clip at speed 1."""
ASPECT = 1280 / 720
"""Of the pictures that the focal lengths are given for."""
FOLD = 4
"""Pixel frames behind a latent frame; the first one stands for four."""
RAYS = 6
MAX_SPEED = 10.0
CAMERA_LAYOUT = "batch, channels, frames, height, width"

MOTIONS: dict[str, tuple[Vector, Vector]] = {
    "Static": ((0, 0, 0), (0, 0, 0)),
    "Pan Up": ((0, 0, 0), (0, -1, 0)),
    "Pan Down": ((0, 0, 0), (0, 1, 0)),
    "Pan Left": ((0, 0, 0), (-1, 0, 0)),
    "Pan Right": ((0, 0, 0), (1, 0, 0)),
    "Zoom In": ((0, 0, 0), (0, 0, 2)),
    "Zoom Out": ((0, 0, 0), (0, 0, -2)),
    "Anti Clockwise (ACW)": ((0, 0, -1), (0, 0, 0)),
    "ClockWise (CW)": ((0, 0, 1), (0, 0, 0)),
    "Tilt Up": ((1, 0, 0), (0, 0, 0)),
    "Tilt Down": ((-1, 0, 0), (0, 0, 0)),
    "Turn Left": ((0, -1, 0), (0, 0, 0)),
    "Turn Right": ((0, 1, 0), (0, 0, 0)),
}
"""Name -> turns about (x, y, z) and way along them. Pans move the camera, tilts and turns only look elsewhere; the
first nine are native ComfyUI's."""


def camera_path(motions: Sequence[str], speed: float, frames: int) -> Tensor:
    """Where the camera is in each frame: camera-to-world matrices ``[frames, 3, 4]`` float32, the first the origin.

    Args:
        motions: names of :data:`MOTIONS`, all done at once, evenly over the clip.
        speed: 0..10; 1 is 60 degrees, or 1.5 units, a clip.
    """
    unknown = [name for name in motions if name not in MOTIONS]
    if unknown:
        raise InputError(f"unknown camera motion {first_few(map(repr, unknown))}. Use {', '.join(MOTIONS)}.")
    if not 0 <= speed <= MAX_SPEED:  # true for NaN too
        raise InputError(f"camera speed must be from 0 to {MAX_SPEED:g}; got {speed}.")
    if not 1 <= frames <= MAX_FRAMES or (frames - 1) % FOLD:
        raise InputError(f"frames must be 4n+1 (1, 5, 9 ... 81) and at most {MAX_FRAMES}; got {frames}.")
    turn, way = (
        torch.tensor([MOTIONS[name][part] for name in motions], dtype=torch.float64).reshape(-1, 3).sum(0)
        for part in (0, 1)
    )
    share = torch.arange(frames, dtype=torch.float64)[:, None] / frames * speed
    return torch.cat((_rotations(share * TURN * turn), (share * WAY * way)[:, :, None]), dim=2).float()


def _rotations(angles_F3: Tensor) -> Tensor:
    """Turns about x, then y, then z: ``[F, 3, 3]``."""
    made = []
    for axis, angle in enumerate(angles_F3.unbind(1)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        one = torch.eye(3, dtype=angle.dtype).repeat(len(angle), 1, 1)
        one[:, a, a] = one[:, b, b] = angle.cos()
        one[:, a, b], one[:, b, a] = -angle.sin(), angle.sin()
        made.append(one)
    x, y, z = made
    return z @ y @ x


def camera_embedding(
    path_F34: Tensor,
    *,
    width: int,
    height: int,
    focal: tuple[float, float] = (0.5, 0.5),
    centre: tuple[float, float] = (0.5, 0.5),
) -> Tensor:
    """The rays of every pixel as (moment, direction): ``[1, 24, latent frames, height, width]`` float32.

    Args:
        path_F34: camera-to-world matrices of 4n+1 frames.
        width, height: pixels.
        focal: focal lengths in picture widths and heights of a 16:9 picture, which is scaled to cover this one.
        centre: where the optical axis meets the picture, in its widths and heights.
    """
    for name, value in (("width", width), ("height", height)):
        if not 1 <= value <= MAX_SIDE:
            raise InputError(f"{name} must be from 1 to {MAX_SIDE}; got {value}.")
    if not all(0 < value <= 100 for value in focal):
        raise InputError(f"focal lengths must be above 0 (0.5 is what the models know); got {focal[0]} and {focal[1]}.")
    fx, fy = focal
    fx, fy = (fx * height * ASPECT, fy * height) if width / height < ASPECT else (fx * width, fy * width / ASPECT)
    x = (torch.arange(width) + 0.5 - centre[0] * width) / fx
    y = (torch.arange(height) + 0.5 - centre[1] * height) / fy
    rays = torch.stack((x.expand(height, width), y[:, None].expand(height, width), torch.ones(height, width)))
    rays = rays / rays.norm(dim=0)
    frames = len(path_F34)
    made = torch.empty(1, RAYS * FOLD, (frames - 1) // FOLD + 1, height, width)
    by_frame = made.view(RAYS, FOLD, -1, height, width)
    for index, pose in enumerate(path_F34):
        direction = torch.einsum("ij,jhw->ihw", pose[:, :3], rays)
        moment = torch.linalg.cross(pose[:, 3, None, None].expand_as(direction), direction, dim=0)
        place, latent = (index + FOLD - 1) % FOLD, (index + FOLD - 1) // FOLD
        where = slice(None) if index == 0 else slice(place, place + 1)
        by_frame[:, where, latent] = torch.cat((moment, direction))[:, None]
    return made


def camera_context(camera: Tensor | None, variant: WanVariant, like: Tensor) -> Tensor | None:
    """Check a camera embedding against the latent, and spread it over the batch. It stays where it is: a frame at a
    time goes to the device.

    Args:
        camera: ``[1 or B, 24, T, H, W]`` in pixels.
        like: the noisy latent.
    """
    if camera is None:
        return None
    if Feature.CAMERA not in variant.features:
        raise MismatchError(
            f"The conditioning carries a camera path, but {variant.title} takes none. Load a Fun Camera model, or "
            "disconnect the camera."
        )
    check_tensor(camera, "The camera path", CAMERA_LAYOUT)
    batch, _, frames, height, width = like.shape
    side = variant.latent.stride_hw
    want = [RAYS * FOLD, frames, height * side, width * side]
    if list(camera.shape[1:]) != want:
        raise MismatchError(
            f"The camera path is {list(camera.shape[1:])} (channels, latent frames, height, width), the latent to "
            f"sample needs {want}. Give the camera node the same width, height and frames."
        )
    return spread(camera, batch, "camera path")
