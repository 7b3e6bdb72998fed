"""The judge of nano clips: right on rendered truth, at chance on shuffled captions, silent where there is nothing."""

from dataclasses import fields

import numpy as np
import pytest

from benchmarks.nano_judge import NONE, judge, unit_area
from scripts.nano.world import CHOICES, FRAMES, SHAPES, SIZE, Scene, all_scenes, held_out, render

FIELDS = [field.name for field in fields(Scene)]


@pytest.fixture(scope="module")
def judged():
    """Every held-out scene, drawn with random place and tint, and what the judge says of it."""
    rng = np.random.default_rng(0)
    return [(scene, judge(render(scene, rng))) for scene in held_out()]


def share(pairs, field: str) -> float:
    return float(np.mean([getattr(scene, field) == getattr(seen, field) for scene, seen in pairs]))


@pytest.mark.parametrize("field", FIELDS)
def test_rendered_truth_is_recognised(judged, field):
    assert share(judged, field) >= 0.99


@pytest.mark.parametrize("field", FIELDS)
def test_shuffled_captions_are_right_by_chance_only(judged, field):
    order = np.random.default_rng(1).permutation(len(judged))
    shuffled = [(judged[other][0], seen) for other, (_, seen) in zip(order, judged)]
    chance = 1 / len(CHOICES[field])
    assert abs(share(shuffled, field) - chance) <= 3 * (chance * (1 - chance) / len(judged)) ** 0.5


def test_noise_and_blur_do_not_change_the_verdict():
    rng, right = np.random.default_rng(2), 0
    scenes = all_scenes()[::16]
    for scene in scenes:
        clip = render(scene, rng).astype(float)
        soft = (clip + np.roll(clip, 1, 1) + np.roll(clip, 1, 2) + np.roll(clip, -1, 1)) / 4
        seen = judge(np.clip(soft + rng.normal(0, 4, clip.shape), 0, 255).astype(np.uint8))
        right += all(getattr(scene, field) == getattr(seen, field) for field in FIELDS)
    assert right >= 0.95 * len(scenes)


@pytest.mark.parametrize("color", [(0, 0, 0), (125, 125, 125), (240, 240, 240)])
def test_a_blank_clip_shows_nothing(color):
    seen = judge(np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8) + np.array(color, np.uint8))
    assert (seen.color, seen.shape, seen.motion, seen.size) == (NONE,) * 4


def test_noise_shows_no_shape():
    seen = judge(np.random.default_rng(0).integers(0, 256, (FRAMES, SIZE, SIZE, 3), dtype=np.uint8))
    assert seen.shape == NONE


def test_an_object_that_vanishes_or_goes_astray_has_no_motion():
    scene = Scene(color="red", background="white", shape="square", motion="right", size="small")
    clip = render(scene)
    clip[-2:] = clip[0, 0, 0]
    assert judge(clip).motion == NONE
    diagonal = np.stack([np.roll(frame, n, axis=0) for n, frame in enumerate(render(scene))])
    assert judge(diagonal).motion == NONE


def test_a_clip_backwards_moves_the_other_way():
    scene = Scene(color="blue", background="black", shape="cross", motion="up", size="large")
    assert judge(render(scene)[::-1]).motion == "down"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_area_of_a_shape_is_that_of_geometry(shape):
    height = 0.6 + 1.2  # of the triangle: its base is 0.6 below the middle, its slanted sides are 0.6 away from it
    geometry = {
        "circle": np.pi, "square": 1.8**2, "triangle": height**2 * np.tan(np.pi / 6), "cross": 4 * 2 / 3 - (2 / 3) ** 2
    }  # fmt: skip
    assert unit_area(shape) == pytest.approx(geometry[shape], rel=0.02)
