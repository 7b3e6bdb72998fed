"""Camera paths: an arithmetic of its own for single pixels, directions that a person would name, and folding."""

import math

import pytest
import torch

from wan_core.conditioning.camera import MOTIONS, camera_embedding, camera_path
from wan_core.errors import InputError

FRAMES = 9


def embedding(*motions: str, speed: float = 1.0, frames: int = FRAMES, width: int = 32, height: int = 16):
    return camera_embedding(camera_path(motions, speed, frames), width=width, height=height)[0]


def frame_of(made_CTHW: torch.Tensor, frame: int) -> torch.Tensor:
    """The six numbers of every pixel of one pixel frame ``[6, H, W]``."""
    latent, place = (0, 0) if frame == 0 else ((frame + 3) // 4, (frame + 3) % 4)
    return made_CTHW.unflatten(0, (6, 4))[:, place, latent]


def test_a_still_camera_sees_unit_rays_from_the_origin_through_each_pixels_centre():
    made = frame_of(embedding("Static"), 4)
    assert not made[:3].any()
    torch.testing.assert_close(made[3:].norm(dim=0), torch.ones(16, 32))
    # 32 x 16 is wider than 16:9, so the focal length is half its width on both axes, in pixels.
    x, y = (20 + 0.5 - 16) / 16, (3 + 0.5 - 8) / (32 / (16 / 9) / 2)
    ray = torch.tensor([x, y, 1.0])
    torch.testing.assert_close(made[3:, 3, 20], ray / ray.norm())


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("Turn Right", 0, 1), ("Turn Left", 0, -1), ("Tilt Down", 1, 1), ("Tilt Up", 1, -1)],
)
def test_turning_points_the_middle_of_the_picture_that_way(motion, axis, sign):
    """x to the right, y down."""
    middle = frame_of(embedding(motion), FRAMES - 1)[3:, 7:9, 15:17].mean((1, 2))
    assert middle[axis] * sign > 0.5
    angle = math.pi / 3 * (FRAMES - 1) / FRAMES
    assert middle[axis].item() * sign == pytest.approx(math.sin(angle), abs=0.01)


@pytest.mark.parametrize(
    ("motion", "axis", "way"), [("Pan Left", 0, -1.5), ("Pan Down", 1, 1.5), ("Zoom In", 2, 3.0), ("Zoom Out", 2, -3.0)]
)
def test_panning_and_zooming_move_the_camera_and_turn_nothing(motion, axis, way):
    path = camera_path([motion], 1.0, FRAMES)
    assert torch.equal(path[:, :, :3], torch.eye(3).expand(FRAMES, 3, 3))
    assert path[-1, axis, 3].item() == pytest.approx(way * (FRAMES - 1) / FRAMES)
    made = frame_of(embedding(motion), 5)
    moment = torch.linalg.cross(path[5, :, 3, None, None].expand(3, 16, 32), made[3:], dim=0)
    torch.testing.assert_close(made[:3], moment)


def test_two_motions_are_done_at_once_and_twice_the_speed_is_twice_the_way():
    both = camera_path(["Pan Left", "Zoom In"], 2.0, FRAMES)
    torch.testing.assert_close(
        both[:, :, 3], 2 * sum(camera_path([m], 1.0, FRAMES)[:, :, 3] for m in ("Pan Left", "Zoom In"))
    )


def test_the_first_frame_stands_for_four_and_a_clip_is_cut_in_fours():
    made = embedding("Zoom In")
    assert made.shape == (24, 3, 16, 32)
    first = made.unflatten(0, (6, 4))[:, :, 0]
    assert all(torch.equal(first[:, 0], first[:, place]) for place in range(4))
    second = made.unflatten(0, (6, 4))[:, :, 1]
    assert not any(torch.equal(second[:, 0], second[:, place]) for place in range(1, 4))
    assert embedding("Zoom In", frames=1).shape == (24, 1, 16, 32)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((["Fly"], 1.0, 9), ["Fly", "Zoom In"]), ((["Static"], float("nan"), 9), ["speed", "nan"]),
        ((["Static"], -1.0, 9), ["speed", "-1"]), ((["Static"], 1.0, 8), ["4n+1", "8"]),
        ((["Static"], 1.0, 0), ["4n+1", "0"]),
    ],
)  # fmt: skip
def test_a_path_that_cannot_be_is_refused(values, words):
    with pytest.raises(InputError) as error:
        camera_path(*values)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "changes", [{"width": 0}, {"height": 10**6}, {"focal": (0.0, 0.5)}, {"focal": (0.5, float("nan"))}]
)
def test_a_camera_that_cannot_be_is_refused(changes):
    with pytest.raises(InputError):
        camera_embedding(camera_path(["Static"], 1.0, 1), **({"width": 32, "height": 32} | changes))


def test_every_motion_has_a_name_of_its_own_and_an_opposite():
    vectors = list(MOTIONS.values())
    assert len(set(vectors)) == len(vectors)
    for turn, way in vectors[1:]:
        assert tuple(tuple(-one for one in part) for part in (turn, way)) in vectors
