"""Sizes and frame counts, and what is said about those that do not fit."""

import pytest

from wan_core.errors import InputError
from wan_core.grid import grid_of, latent_frames, pixel_frames
from wan_core.variants import LATENT_21, LATENT_22, VARIANTS


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_every_variants_default_size_fits_its_own_grid(variant):
    own = variant.defaults
    grid = grid_of(variant.latent, width=own.width, height=own.height, frames=own.frames)
    assert pixel_frames(grid.latent_frames) == own.frames
    assert grid.latent_width * variant.latent.stride_hw == own.width


def test_the_official_720p_clip_has_the_published_token_count():
    assert grid_of(LATENT_21, width=1280, height=720, frames=81).tokens == 75600


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ({"width": 850, "height": 480, "frames": 81}, ["width", "850", "848 or 864"]),
        ({"width": 832, "height": 0, "frames": 81}, ["height", "0", "16"]),
        ({"width": 832, "height": 480, "frames": 80}, ["frames", "80", "77 or 81"]),
        ({"width": 832, "height": 480, "frames": 0}, ["frames", "0", "1"]),
        ({"width": 832, "height": 480, "frames": 10**6}, ["frames", "1000000", "8193"]),
        ({"width": 16400, "height": 480, "frames": 81}, ["width", "16400", "8192"]),
    ],
)
def test_a_size_off_the_grid_is_answered_with_the_nearest_that_fit(size, words):
    with pytest.raises(InputError) as caught:
        grid_of(LATENT_21, **size)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_5b_model_needs_multiples_of_32():
    with pytest.raises(InputError, match="704 or 736"):
        grid_of(LATENT_22, width=1280, height=720, frames=121)


@pytest.mark.parametrize("frames", [1, 5, 81, 121])
def test_frames_survive_the_way_to_latents_and_back(frames):
    assert pixel_frames(latent_frames(frames)) == frames
