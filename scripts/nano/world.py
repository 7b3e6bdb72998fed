"""A world small enough to be learned in hours: one coloured shape on a plain background that moves or rests.

A :class:`Scene` is what a caption says; :func:`render` draws it. Scenes of :func:`held_out` are never trained on: they
are what the trained models are judged by.
"""

from dataclasses import dataclass, fields, replace
from itertools import product

import numpy as np

SIZE = 64
FRAMES = 17
TRAVEL = 16.0
"""Pixels between the centre, where every clip begins, and where it ends."""
JITTER = 1.5

COLORS = {
    "red": (220, 40, 40), "green": (40, 175, 60), "blue": (45, 85, 230),
    "yellow": (240, 210, 50), "purple": (150, 55, 190), "cyan": (70, 210, 225),
}  # fmt: skip
NEW_COLORS = {"pink": (250, 130, 190)}
"""Colours that no model of the family has seen or heard of: for LoRAs to learn."""
BACKGROUNDS = {"black": (15, 15, 15), "white": (240, 240, 240), "gray": (125, 125, 125), "brown": (110, 70, 40)}
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
RADII = {"small": 8.0, "large": 13.0}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip's content; every field is a word of the tables above."""

    color: str
    background: str
    shape: str
    motion: str
    size: str


CHOICES = {
    "color": tuple(COLORS), "background": tuple(BACKGROUNDS), "shape": SHAPES, "motion": tuple(MOTIONS),
    "size": tuple(RADII),
}  # fmt: skip


def all_scenes() -> list[Scene]:
    """Every combination: 960."""
    return [Scene(**dict(zip(CHOICES, words))) for words in product(*CHOICES.values())]


def held_out() -> list[Scene]:
    """A quarter of the combinations of colour, background, shape and motion, in both sizes: 240 scenes.

    Every pair of words is seen in training; these foursomes are not.
    """
    return [scene for scene in all_scenes() if _is_held_out(scene)]


def trained() -> list[Scene]:
    """All others: 720 scenes."""
    return [scene for scene in all_scenes() if not _is_held_out(scene)]


def of_new_color(color: str) -> tuple[list[Scene], list[Scene]]:
    """Scenes of a colour of :data:`NEW_COLORS`, to learn from (120) and to be judged by (40): as those of any other
    colour are shared out."""
    like = CHOICES["color"][0]
    shares = ([scene for scene in scenes if scene.color == like] for scenes in (trained(), held_out()))
    learned, judged = ([replace(scene, color=color) for scene in scenes] for scenes in shares)
    return learned, judged


def _is_held_out(scene: Scene) -> bool:
    """A Latin square: of each colour, shape and motion one background in four is kept away."""
    color, background, shape, motion = (
        CHOICES[field.name].index(getattr(scene, field.name)) for field in fields(scene)[:4]
    )
    return (color + background + 2 * shape + 3 * motion) % 4 == 0


def render(
    scene: Scene,
    rng: np.random.Generator | None = None,
    frames: int = FRAMES,
    size: int = SIZE,
) -> np.ndarray:
    """Draw a scene.

    Args:
        scene: what to draw.
        rng: moves the start by up to 1.5 pixels and both colours' brightness by up to 6 of 255; None: neither.
        frames: the first so many of a motion of 17 frames.
        size: side of the square picture in pixels; what is in it scales with it.

    Returns:
        uint8 ``[frames, size, size, 3]``.
    """
    jitter = np.zeros(2) if rng is None else rng.uniform(-JITTER, JITTER, 2)
    tint = np.zeros((2, 1)) if rng is None else rng.integers(-6, 7, (2, 1))
    ink, paper = np.array([(COLORS | NEW_COLORS)[scene.color], BACKGROUNDS[scene.background]], dtype=np.float32) + tint
    unit = size / SIZE
    steps = np.arange(frames)[:, None] / (FRAMES - 1) * TRAVEL * np.array(MOTIONS[scene.motion])
    centres = (SIZE / 2 + jitter + steps) * unit
    rows, columns = np.mgrid[:size, :size] + 0.5
    x = columns - centres[:, 0, None, None]
    y = rows - centres[:, 1, None, None]
    covered = np.clip(0.5 - distance(scene.shape, x, y, RADII[scene.size] * unit), 0, 1)[..., None]
    return np.clip(np.rint(paper + covered * (ink - paper)), 0, 255).astype(np.uint8)


def render_free(rng: np.random.Generator, frames: int = FRAMES, size: int = SIZE) -> np.ndarray:
    """One to three shapes of any colour, size and straight motion on any plain or shaded background."""
    corners = rng.integers(0, 256, (2, 2, 3)).astype(np.float32)
    if rng.random() < 0.7:
        corners[:] = corners[0, 0]
    down, across = np.mgrid[:size, :size] / (size - 1)
    weights = np.stack([(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across], axis=-1)
    picture = np.repeat((weights @ corners.reshape(4, 3))[None], frames, axis=0)
    rows, columns = np.mgrid[:size, :size] + 0.5
    for _ in range(rng.integers(1, 4)):
        ink, radius = rng.integers(0, 256, 3), rng.uniform(4, 16) * size / SIZE
        start, end = rng.uniform(0.1, 0.9, (2, 2)) * size
        centres = start + np.linspace(0, 1, frames)[:, None] * (end - start) * rng.random()
        x, y = columns - centres[:, 0, None, None], rows - centres[:, 1, None, None]
        covered = np.clip(0.5 - distance(str(rng.choice(SHAPES)), x, y, radius), 0, 1)[..., None]
        picture += covered * (ink - picture)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """How far outside (+) or inside (-) of a shape around the origin a point is, in pixels; y grows downwards."""
    match shape:
        case "circle":
            return np.hypot(x, y) - radius
        case "square":
            return np.maximum(abs(x), abs(y)) - 0.9 * radius
        case "triangle":
            slant = abs(x) * np.cos(np.pi / 6) - y * np.sin(np.pi / 6)
            return np.maximum(slant - 0.6 * radius, y - 0.6 * radius)
        case "cross":
            bar = radius / 3
            return np.minimum(
                np.maximum(abs(x) - radius, abs(y) - bar),
                np.maximum(abs(x) - bar, abs(y) - radius),
            )
    raise ValueError(f"no shape {shape!r}; there are {', '.join(SHAPES)}")
