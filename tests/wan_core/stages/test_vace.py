"""VACE contexts: how they are made, what of them counts when, and what does not fit."""

import pytest
import torch

from tests import tiny
from tests.wan_core.stages.test_sample import SHAPE, condition, start
from wan_core.conditioning.vace import VaceContext, mask_channels, on_white, pack, split_clip, with_references
from wan_core.errors import InputError, MismatchError
from wan_core.grid import grid_of
from wan_core.runtime.ports import Ports
from wan_core.stages.sample import Settings, sample
from wan_core.stages.vace import make_context, with_vae
from wan_core.variants import LATENT_21

GRID = grid_of(LATENT_21, width=64, height=48, frames=9)


def context(seed: int = 7, size=SHAPE[2:], **changes) -> VaceContext:
    draw = torch.Generator().manual_seed(seed)
    latent, mask = (torch.randn(1, n, *size, generator=draw) for n in (32, 64))
    return VaceContext(latent=latent, mask=mask.sigmoid(), **changes)


def run(*contexts: VaceContext, negative=None, name="vace-1.3b", told=lambda _: None, latent=None, **settings):
    other = contexts if negative is None else negative
    return sample(
        tiny.model(name), condition(vace=contexts), condition(6, vace=other), latent or start(),
        Settings(**{"seed": 3, "steps": 4} | settings), Ports(notify=told),
    )  # fmt: skip


def make(video=None, masks=None, references=None, told=lambda _: None):
    vae = with_vae(tiny.vae(), GRID, Ports())
    return make_context(vae, GRID, LATENT_21, video=video, masks=masks, references=references, notify=told)


def clip(frames=9, height=48, width=64, seed=1) -> torch.Tensor:
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["vace-1.3b", "vace-a14b"])
def test_a_context_its_strength_and_its_mask_change_the_video(name):
    made = run(context(), name=name)
    assert torch.equal(made, run(context(), name=name))
    for other in (context(8), context(strength=0.5), VaceContext(latent=context().latent)):
        assert (made - run(other, name=name)).abs().max() > 1e-2


def test_a_context_counts_in_its_share_of_the_steps_alone():
    whole, never = run(context()), run(context(strength=0.0))
    first, last = run(context(end=0.5)), run(context(start=0.5))
    for a, b in [(whole, never), (whole, first), (whole, last), (first, last), (first, never), (last, never)]:
        assert (a - b).abs().max() > 1e-3
    half = context(start=0.25, end=0.75)
    assert [half.counts_at(step, 4) for step in range(4)] == [False, True, True, False]
    assert [context(start=0.3).counts_at(step, 10) for step in (2, 3)] == [False, True]
    assert [context(end=0.7).counts_at(step, 10) for step in (6, 7)] == [True, False]


def test_a_context_of_strength_0_is_as_if_it_were_not_there():
    assert torch.equal(run(context(), context(8, strength=0.0)), run(context()))


def test_a_vace_model_without_a_context_says_so_and_takes_the_native_one():
    told = []
    made = run(told=told.append)
    assert any("no VACE context" in sentence and "T2V model" in sentence for sentence in told)
    zeros = VaceContext(latent=torch.zeros(1, 32, *SHAPE[2:]), mask=torch.ones(1, 64, *SHAPE[2:]))
    assert torch.equal(made, run(zeros))


def test_contexts_on_one_side_only_are_told():
    told = []
    run(context(), negative=(), told=told.append)
    assert any(sentence.startswith("Only the positive conditioning carries VACE contexts") for sentence in told)


@pytest.mark.parametrize("name", ["t2v-1.3b", "i2v-a14b", "ti2v-5b"])
def test_a_context_for_another_model_is_refused(name):
    latent = start((1, tiny.variant(name).latent.channels, *SHAPE[2:]))
    with pytest.raises(MismatchError, match=r"carries a VACE context, but .* takes none.*VACE model"):
        run(context(), name=name, latent=latent)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"size": (2, 6, 8)}, MismatchError, r"VACE context is \[32, 2, 6, 8\].*needs \[32, 3, 6, 8\].*reference"),
        ({"strength": float("nan")}, InputError, "strength must be .*nan"),
        ({"strength": 1e9}, InputError, "strength must be"),
        ({"start": 0.5, "end": 0.5}, InputError, "start to a later end"),
        ({"start": -0.1}, InputError, "start to a later end"),
        ({"end": 1.5}, InputError, "start to a later end"),
    ],
)
def test_a_context_that_does_not_fit_is_refused(wrong, error, words):
    with pytest.raises(error, match=words):
        run(context(**wrong))


@pytest.mark.parametrize(
    ("latent", "mask", "words"),
    [
        (torch.full((1, 32, *SHAPE[2:]), float("nan")), None, "VACE context holds NaN"),
        (torch.zeros(1, 16, *SHAPE[2:]), None, r"\[16, 3, 6, 8\]"),
        (torch.zeros(3, 32, *SHAPE[2:]), None, "3 samples"),
        (torch.zeros(1, 32, *SHAPE[2:]), torch.zeros(1, 64, 2, 6, 8), r"VACE mask is \[64, 2, 6, 8\]"),
        (torch.zeros(1, 32, *SHAPE[2:]), torch.zeros(1, 4, *SHAPE[2:]), r"VACE mask is \[4, 3, 6, 8\]"),
    ],
)
def test_tensors_that_are_no_context_are_refused(latent, mask, words):
    with pytest.raises((InputError, MismatchError), match=words):
        run(VaceContext(latent=latent, mask=mask))


def test_a_context_of_a_batch_goes_with_a_batch():
    like = torch.zeros(2, 16, *SHAPE[2:])
    each = VaceContext(latent=torch.randn(2, 32, *SHAPE[2:]), mask=torch.rand(1, 64, *SHAPE[2:]))
    packed = pack(each, LATENT_21, like)
    assert packed.shape == (2, 96, *SHAPE[2:])
    assert torch.equal(packed[0, 32:], packed[1, 32:])
    assert pack(context(), LATENT_21, like).shape[0] == 1


def test_the_parts_of_a_clip_are_grey_where_the_other_has_the_picture():
    frames, mask = clip(2), torch.zeros(2, 48, 64)
    mask[:, :, :32], mask[:, :8] = 1.0, 0.5  # half is not made anew
    inactive, reactive = (torch.cat(list(split_clip(frames, mask, part))) for part in ("inactive", "reactive"))
    assert (inactive[:, 8:, :32] == 0.5).all()
    assert (reactive[:, :, 32:] == 0.5).all() and (reactive[:, :8] == 0.5).all()
    torch.testing.assert_close(inactive + reactive - 0.5, frames, atol=1e-6, rtol=0)


def test_mask_channels_are_the_pixels_behind_a_latent_pixel_rows_first():
    mask = torch.zeros(5, 16, 16)
    mask[:, 8 + 2, 3] = 1.0
    channels = mask_channels(mask, LATENT_21)
    assert channels.shape == (1, 64, 2, 2, 2)
    assert channels.nonzero().tolist() == [[0, 2 * 8 + 3, frame, 1, 0] for frame in (0, 1)]


def test_reference_pictures_stand_before_the_clip_and_nothing_is_made_in_them():
    made = make(clip(), references=clip(2, 96, 32))
    assert made.references == 2
    assert made.latent.shape == (1, 32, 2 + 3, 6, 8) and made.mask.shape == (1, 64, 2 + 3, 6, 8)
    assert not made.mask[:, :, :2].any() and made.mask[:, :, 2:].all()
    assert torch.equal(make(clip()).latent, made.latent[:, :, 2:])
    packed = pack(VaceContext(latent=made.latent, mask=made.mask), LATENT_21, torch.zeros(1, 16, 5, 6, 8))
    assert packed[:, 16:32, :2].abs().max() < 1e-6
    assert packed[:, :16, :2].abs().min() > 0


def test_reference_pictures_are_fitted_on_white_without_a_cut():
    (canvas,) = on_white(torch.zeros(1, 24, 24, 3), GRID)
    assert canvas.shape == (1, 48, 64, 3)
    assert not canvas[:, :, 8:56].any() and (canvas[:, :, :8] == 1).all() and (canvas[:, :, 56:] == 1).all()
    whole = clip(1)
    assert torch.equal(next(on_white(whole, GRID)), whole)


def test_several_references_keep_their_order():
    one, two = torch.full((1, 16, 1, 6, 8), 1.0), torch.full((1, 16, 1, 6, 8), 2.0)
    latent, mask = with_references(torch.zeros(1, 32, 3, 6, 8), torch.ones(1, 64, 3, 6, 8), [one, two], LATENT_21)
    assert latent[0, 0, :, 0, 0].tolist() == [1, 2, 0, 0, 0]
    assert mask[0, 0, :, 0, 0].tolist() == [0, 0, 1, 1, 1]


def test_without_a_clip_everything_is_made_anew():
    made = make()
    grey = make(torch.full((9, 48, 64, 3), 0.5))
    assert made.references == 0 and made.mask.all()
    assert torch.equal(made.latent, grey.latent)


def test_a_short_clip_goes_on_and_a_long_one_is_cut_and_both_are_told():
    told = []
    short = make(clip(5), masks=torch.zeros(9, 48, 64), told=told.append)
    assert not short.mask[:, :, :1].any() and short.mask[:, :, 2:].all()
    assert any("5 frames of 9" in sentence for sentence in told)
    told.clear()
    assert torch.equal(make(clip(13), told=told.append).latent, make(clip(13)[:9]).latent)
    assert any("Of 13 frames" in sentence for sentence in told)


def test_frames_without_a_mask_are_made_anew_and_told():
    told = []
    made = make(clip(), masks=torch.zeros(1, 48, 64), told=told.append)
    only_first = torch.ones(9, 48, 64)
    only_first[0] = 0
    written_out = make(clip(), masks=only_first)
    assert torch.equal(made.latent, written_out.latent) and torch.equal(made.mask, written_out.mask)
    assert not torch.equal(made.latent, make(clip()).latent)
    assert any("1 masks for 9 frames" in sentence for sentence in told)


def test_clip_and_mask_of_another_shape_are_fitted_alike():
    told = []
    mask = torch.zeros(9, 96, 64)
    mask[:, 48:] = 1.0
    made = make(clip(9, 96, 64), masks=mask, told=told.append)
    assert made.mask[0, :, 0, :3].max() < 0.5 < made.mask[0, :, 0, 3:].min()
    assert sum("centre cut" in sentence for sentence in told) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"video": torch.zeros(0, 48, 64, 3)}, "control_video must be"),
        ({"video": clip() * 255}, "control_video has values"),
        ({"masks": torch.full((9, 48, 64), 255.0)}, "control_masks has values"),
        ({"masks": torch.ones(9, 48)}, "control_masks must be"),
        ({"masks": torch.full((9, 48, 64), float("nan"))}, "control_masks holds NaN"),
        ({"references": clip(17, 8, 8)}, "17 pictures; at most 16"),
        ({"references": clip(1)[..., :2]}, "2 channels"),
    ],
)
def test_pictures_and_masks_that_cannot_be_encoded_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        make(**given)
