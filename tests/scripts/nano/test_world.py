"""The rendered world: its scenes, what is kept away from training, and its pictures."""

from itertools import combinations

import numpy as np
import pytest

from scripts.nano import clips, world
from scripts.nano.world import CHOICES, SHAPES, Scene, all_scenes, held_out, render, render_free, trained
from wan_core.training.clips import ClipSize

SCENE = Scene(color="red", background="white", shape="circle", motion="right", size="small")
SMALL = ClipSize(width=32, height=32, frames=5)


def test_there_are_960_scenes_of_which_240_are_never_trained_on():
    assert (len(set(all_scenes())), len(set(held_out())), len(set(trained()))) == (960, 240, 720)
    assert set(held_out()) | set(trained()) == set(all_scenes())


def test_a_scene_that_is_held_out_is_held_out_in_both_sizes():
    def without_size(scenes):
        return {(scene.color, scene.background, scene.shape, scene.motion) for scene in scenes}

    assert not without_size(held_out()) & without_size(trained())


def test_every_pair_of_words_is_seen_in_training():
    def pairs(scenes):
        return {pair for scene in scenes for pair in combinations(vars(scene).items(), 2)}

    assert pairs(trained()) == pairs(all_scenes())


def test_every_word_is_judged_about_as_often():
    for field, words in CHOICES.items():
        shares = [sum(getattr(scene, field) == word for scene in held_out()) * len(words) / 240 for word in words]
        assert min(shares) > 0.8 and max(shares) < 1.2, (field, shares)


def test_the_same_numbers_draw_the_same_clip():
    first, again, other = (render(SCENE, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.shape == (17, 64, 64, 3) and first.dtype == np.uint8
    free = [render_free(np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(free[0], free[1]) and not np.array_equal(free[0], free[2])


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_an_object_begins_in_the_middle_and_moves_as_it_is_told(motion):
    clip = render(Scene(**vars(SCENE) | {"motion": motion})).astype(float)
    ink = np.abs(clip - clip[0, 0, 0]).sum(-1)
    rows, columns = np.mgrid[:64, :64] + 0.5
    path = [((ink * columns).sum() / ink.sum(), (ink * rows).sum() / ink.sum()) for ink in ink]
    assert path[0] == pytest.approx((32, 32), abs=0.01)
    want = 32 + 16 * np.array(world.MOTIONS[motion])
    assert path[-1] == pytest.approx(tuple(want), abs=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_has_its_colour_inside_the_backgrounds_outside_and_never_touches_the_border(shape):
    clip = render(Scene(**vars(SCENE) | {"shape": shape, "size": "large"}))
    assert tuple(clip[0, 32, 32]) == world.COLORS["red"]
    border = np.concatenate([clip[:, 0].reshape(-1, 3), clip[:, :, 0].reshape(-1, 3), clip[:, :, -1].reshape(-1, 3)])
    assert (border == world.BACKGROUNDS["white"]).all()


def test_half_the_size_shows_the_same_scene():
    whole, half = render(SCENE).astype(float), render(SCENE, size=32).astype(float)
    assert np.abs(whole.reshape(17, 32, 2, 32, 2, 3).mean((2, 4)) - half).mean() < 1


def test_fewer_frames_are_the_beginning_of_the_clip():
    assert np.array_equal(render(SCENE, frames=5), render(SCENE)[:5])


@pytest.mark.parametrize("made", [clips.trained, clips.with_pictures, clips.held_out, clips.for_vae])
def test_an_index_gives_the_same_clip_and_captions_every_time(made):
    source = made(SMALL)
    for index in (0, 1, len(source) - 1):
        first, again = source[index], source[index]
        assert first.frames.shape == (5, 32, 32, 3)
        assert np.array_equal(first.frames, again.frames) and first.captions == again.captions


def test_nothing_held_out_is_among_what_is_trained_on():
    assert len(clips.trained(SMALL)) == 2160 and len(clips.held_out(SMALL)) == 240
    assert set(clips.trained(SMALL).scenes) == set(clips.for_vae(SMALL).scenes.scenes) == set(trained())


def test_image_models_learn_from_the_same_clips_under_other_captions():
    plain, beside = clips.trained(SMALL), clips.with_pictures(SMALL)
    assert len(plain) == len(beside) and np.array_equal(plain[5].frames, beside[5].frames)
    assert plain[5].captions != beside[5].captions


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="no shape 'star'"):
        world.distance("star", np.zeros(1), np.zeros(1), 1.0)
