"""What a clip of the nano world shows, read from its pixels by fixed rules: nothing in here has learned anything."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from scripts.nano.world import BACKGROUNDS, COLORS, MOTIONS, RADII, SHAPES, SIZE, TRAVEL, distance

NONE = "none"
FAINT = 40.0
"""An object differs from its background by at least this much (RGB distance, of 441)."""
STILL = TRAVEL / 3
"""Pixels of movement below which an object rests."""
STRAIGHT = 2.0
"""A movement goes this many times further along its axis than across."""
LIKE = 0.7
"""Overlap (intersection over union) with the best of the shapes, at least."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One word for each question, ``none`` where there is no answer. ``size`` is in the words of the world too."""

    color: str
    background: str
    shape: str
    motion: str
    size: str


def judge(frames: np.ndarray, colors: dict[str, tuple[int, int, int]] = COLORS) -> Seen:
    """Look at a clip, uint8 ``[T, 64, 64, 3]``; ``colors`` are the words that its colour may have."""
    video = frames.astype(np.float32)
    border = np.concatenate([video[:, :2].reshape(-1, 3), video[:, -2:].reshape(-1, 3)])
    paper = np.median(border, axis=0)
    background = nearest(paper, BACKGROUNDS)
    apart = np.linalg.norm(video - paper, axis=-1)
    reach = np.quantile(apart, 0.995)
    if reach < FAINT:
        return Seen(color=NONE, background=background, shape=NONE, motion=NONE, size=NONE)
    ink = np.median(video[apart > 0.8 * reach], axis=0)
    way = ink - paper
    covered = np.clip((video - paper) @ way / (way @ way), 0, 1)
    covered[covered < 0.15] = 0
    shape, radius = best_shape(covered[: max(1, len(covered) // 2)])
    middle = (min(RADII.values()) + max(RADII.values())) / 2
    small, large = sorted(RADII, key=RADII.get)
    return Seen(
        color=nearest(ink, colors),
        background=background,
        shape=shape,
        motion=movement(covered),
        size=small if radius < middle else large,
    )


def nearest(color: np.ndarray, table: dict[str, tuple[int, int, int]]) -> str:
    """The word whose colour is nearest."""
    return min(table, key=lambda word: float(np.linalg.norm(color - np.array(table[word]))))


def centre(covered: np.ndarray) -> np.ndarray:
    """Centre of mass ``(x, y)`` of one frame's coverage ``[64, 64]``, NaN if there is none."""
    total = covered.sum()
    if total < 1:
        return np.full(2, np.nan)
    rows, columns = np.mgrid[: covered.shape[0], : covered.shape[1]] + 0.5
    return np.array([(columns * covered).sum(), (rows * covered).sum()]) / total


def movement(covered: np.ndarray) -> str:
    """From where it is in the first two frames to where it is in the last two."""
    path = [centre(frame) for frame in covered]
    moved = np.mean(path[-2:], axis=0) - np.mean(path[:2], axis=0)
    if not np.isfinite(moved).all():
        return NONE
    if np.abs(moved).max() < STILL:
        return "still"
    along, across = sorted(np.abs(moved), reverse=True)
    if along < STRAIGHT * across:
        return NONE
    axis = int(np.argmax(np.abs(moved)))
    direction = tuple(int(np.sign(moved[axis])) if n == axis else 0 for n in range(2))
    return next(word for word, way in MOTIONS.items() if way == direction)


def best_shape(covered: np.ndarray) -> tuple[str, float]:
    """The shape that overlaps most with the frames ``[T, 64, 64]``, each moved to the middle, and its radius."""
    centred = [shifted(frame, centre(frame)) for frame in covered[::2] if frame.sum() > 1]
    if not centred:
        return NONE, 0.0
    picture = np.mean(centred, axis=0)
    radii = {shape: float(np.sqrt(picture.sum() / unit_area(shape))) for shape in SHAPES}
    overlap = {}
    for shape, radius in radii.items():
        drawn = template(shape, round(radius, 1))
        overlap[shape] = np.minimum(picture, drawn).sum() / np.maximum(picture, drawn).sum()
    best = max(overlap, key=overlap.get)
    return (best, radii[best]) if overlap[best] >= LIKE else (NONE, radii[best])


def shifted(frame: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """One frame with ``middle`` brought to the centre, between pixels by linear interpolation."""
    offset = middle - SIZE / 2
    whole = np.floor(offset).astype(int)
    part = offset - whole
    wide = np.pad(frame, SIZE)
    rows, columns = SIZE + whole[1], SIZE + whole[0]

    def window(down: int, right: int) -> np.ndarray:
        return wide[rows + down : rows + down + SIZE, columns + right : columns + right + SIZE]

    top = (1 - part[0]) * window(0, 0) + part[0] * window(0, 1)
    bottom = (1 - part[0]) * window(1, 0) + part[0] * window(1, 1)
    return (1 - part[1]) * top + part[1] * bottom


@lru_cache
def unit_area(shape: str) -> float:
    """Area of a shape of radius 1."""
    return float(_drawn(shape, 20.0).sum()) / 400


@lru_cache(maxsize=4096)
def template(shape: str, radius: float) -> np.ndarray:
    """Coverage of a shape with its centre of mass in the middle."""
    drawn = _drawn(shape, radius)
    return shifted(drawn, centre(drawn))


def _drawn(shape: str, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    return np.clip(0.5 - distance(shape, columns, rows, radius), 0, 1)
