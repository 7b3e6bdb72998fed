"""The picture of the camera paths: for some motions the way of the camera, and what it sees at the end.

Both are drawn from the path and the rays that the Camera Path node makes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from wan_core.conditioning.camera import FOLD, RAYS, camera_embedding, camera_path

MOTIONS: dict[str, tuple[str, ...]] = {
    "Static (all begin so)": ("Static",),
    "Zoom In": ("Zoom In",),
    "Pan Right": ("Pan Right",),
    "Pan Up": ("Pan Up",),
    "Turn Left": ("Turn Left",),
    "Tilt Up": ("Tilt Up",),
    "ClockWise (CW)": ("ClockWise (CW)",),
    "Turn Left + Pan Right": ("Turn Left", "Pan Right"),
}
FRAMES, SHOWN = 81, (0, 20, 40, 60, 80)
PAPER, INK = "#1f242c", "#f0f2f5"
WIDTH, MARGIN, GAP, LINE = 560, 6, 10, 32
VIEW, WAY = (147, 84), (118, 84)
SMOOTH = 3
"""Drawn so many times larger, and scaled down."""
SKY, GROUND, SQUARES = (120, 160, 210), (92, 120, 84), (108, 138, 98)
BOXES = (
    # middle (x right, y down, z ahead), half sides, colour: one thing in front, posts around, two clouds
    ((0.0, 0.45, 4.0), (0.45, 0.55, 0.45), (214, 64, 56)),
    ((-3.0, 0.0, 6.0), (0.25, 1.0, 0.25), (240, 196, 70)),
    ((3.0, 0.0, 6.0), (0.25, 1.0, 0.25), (90, 110, 220)),
    ((-5.0, 0.0, 2.5), (0.25, 1.0, 0.25), (240, 240, 240)),
    ((5.0, 0.0, 2.5), (0.25, 1.0, 0.25), (170, 90, 190)),
    ((-1.0, -6.0, 4.0), (1.6, 0.3, 0.8), (235, 240, 245)),
    ((4.0, -6.0, 2.5), (1.2, 0.3, 0.8), (235, 240, 245)),
)
FLOOR = 1.0


def camera_paths() -> Image.Image:
    columns, tile = 2, WAY[0] + VIEW[0] + 2
    rows = -(-len(MOTIONS) // columns)
    text, small = ImageFont.load_default(24), ImageFont.load_default(22)
    head = 68
    image = Image.new("RGB", (WIDTH, head + rows * (WAY[1] + LINE + GAP)), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 5), "Left: the camera, from purple to yellow.", fill=INK, font=small)
    draw.text((MARGIN, 33), "Right: what it sees in the last frame. Speed 1.", fill=INK, font=small)
    for index, (words, motions) in enumerate(MOTIONS.items()):
        x = MARGIN + index % columns * (tile + GAP + 4)
        y = head + index // columns * (WAY[1] + LINE + GAP)
        assert draw.textlength(words, text) <= tile, words
        draw.text((x, y), words, fill=INK, font=text)
        path = camera_path(motions, 1.0, FRAMES)
        image.paste(way(path[list(SHOWN)]), (x, y + LINE - 2))
        image.paste(view(path), (x + WAY[0] + 2, y + LINE - 2))
    return image


# --- the way, seen from the left, behind and above ------------------------------------------------------------------


def way(poses_N34: Tensor) -> Image.Image:
    """Cameras as pyramids, the first purple, the last yellow, over a grid on the floor."""
    size = WAY[0] * SMOOTH, WAY[1] * SMOOTH
    image = Image.new("RGB", size, "#2a303a")
    draw = ImageDraw.Draw(image)
    for at in np.arange(-2, 2.01, 0.5):
        draw.line([*seen((at, FLOOR, -1), size), *seen((at, FLOOR, 4), size)], fill="#3d4653", width=SMOOTH)
    for at in np.arange(-1, 4.01, 0.5):
        draw.line([*seen((-2, FLOOR, at), size), *seen((2, FLOOR, at), size)], fill="#3d4653", width=SMOOTH)
    for index, pose in enumerate(poses_N34.double().numpy()):
        share = index / (len(poses_N34) - 1)
        colour = tuple(round(a + (b - a) * share) for a, b in zip((140, 108, 255), (255, 214, 90)))
        pyramid(draw, pose, size, colour)
    return image.resize(WAY, Image.Resampling.LANCZOS)


def pyramid(draw: ImageDraw.ImageDraw, pose_34: np.ndarray, size: tuple[int, int], colour: tuple[int, ...]) -> None:
    corners = [(x, y, 0.6) for x, y in ((-0.6, -0.34), (0.6, -0.34), (0.6, 0.34), (-0.6, 0.34))]
    placed = [seen(pose_34[:, :3] @ np.array(point) + pose_34[:, 3], size) for point in ((0, 0, 0), *corners)]
    eye, *edge = placed
    for index, corner in enumerate(edge):
        draw.line([*eye, *corner], fill=colour, width=SMOOTH)
        draw.line([*corner, *edge[(index + 1) % 4]], fill=colour, width=SMOOTH)
    draw.line([*edge[0], *edge[1]], fill=colour, width=2 * SMOOTH + 1)  # the upper side


def seen(point: Sequence[float], size: tuple[int, int]) -> tuple[float, float]:
    """From behind, the left and above, without perspective."""
    x, y, z = point
    scale = size[0] / 5.1
    across, up = 0.9 * x + 0.43 * z, 0.58 * z - 0.28 * x - 0.77 * y
    return size[0] * 0.3 + scale * across, size[1] * 0.8 - scale * up


# --- the view, from the rays themselves ------------------------------------------------------------------------------


def view(path_F34: Tensor) -> Image.Image:
    """What the camera sees in the last frame: the rays of the embedding, cast into a small world."""
    width, height = VIEW[0] * SMOOTH, VIEW[1] * SMOOTH
    rays = camera_embedding(path_F34, width=width, height=height).view(RAYS, FOLD, -1, height, width)
    direction = torch.moveaxis(rays[RAYS // 2 :, -1, -1], 0, -1).double().numpy()
    pixels = cast(path_F34[-1, :, 3].double().numpy(), direction)
    return Image.fromarray(pixels).resize(VIEW, Image.Resampling.LANCZOS)


def cast(eye: np.ndarray, direction_HW3: np.ndarray) -> np.ndarray:
    """The colour of the nearest thing along each ray, ``[H, W, 3]``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        down = (FLOOR - eye[1]) / direction_HW3[..., 1]
        x, z = (eye[axis] + down * direction_HW3[..., axis] for axis in (0, 2))
        nearest = np.where(down > 0, down, np.inf)
        even = (np.floor(x) + np.floor(z)) % 2 == 0
        colour = np.where(even[..., None], GROUND, SQUARES)
        colour = np.where(np.isfinite(nearest)[..., None], colour, SKY).astype(float)
        for middle, half, paint in BOXES:
            sides = (np.array(middle) + np.outer((-1, 1), half) - eye)[:, None, None] / direction_HW3
            into, out = sides.min(axis=0), sides.max(axis=0)
            enters = into.max(axis=-1)
            hit = (enters > 0) & (enters < out.min(axis=-1)) & (enters < nearest)
            shade = np.array((0.75, 1.15, 1.0))[into.argmax(axis=-1)]  # by which of its faces is hit
            colour[hit] = np.minimum(255, np.array(paint) * shade[hit][:, None])
            nearest[hit] = enters[hit]
    return colour.astype(np.uint8)
