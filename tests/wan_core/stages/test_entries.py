"""Several entries of a side, parts of the run, pictures of subjects, and what is given of a latent."""

from dataclasses import replace

import pytest
import torch

from tests import tiny
from tests.wan_core.runtime.memories import Planned
from wan_core.conditioning.subjects import nothing_of
from wan_core.errors import InputError
from wan_core.models.dit import Inputs
from wan_core.models.nag import Nag
from wan_core.runtime.ports import PlainMemory, Ports
from wan_core.sampling.guidance_options import GuidanceOptions
from wan_core.sampling.sigmas import make_schedule
from wan_core.stages import sample as stage
from wan_core.stages.inpaint import latent_mask
from wan_core.stages.sample import Settings, StartLatent, sample
from wan_core.stages.sides import Condition
from wan_core.variants import LATENT_21

SHAPE = (1, 16, 3, 6, 8)
FLAT = {"seed": 3, "steps": 4, "solver": "euler", "shift": 1.0, "schedule": "simple"}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def condition(seed: int = 5, **extra) -> Condition:
    return Condition(text=drawn(1, 7, 24, seed=seed), **extra)


def run(model, positive=None, negative=None, latent=None, ports=None, **settings):
    given = Settings(**{**FLAT, "guidance_high": 3.0, **settings})
    latent = latent or StartLatent(samples=torch.zeros(SHAPE))
    return sample(model, positive or condition(), negative or condition(6), latent, given, ports or Ports())


def test_one_entry_is_the_plain_run_whatever_its_strength():
    model = tiny.model("t2v-1.3b")
    plain = run(model)
    assert torch.equal(plain, run(model, [condition()], [condition(6, strength=0.3)]))


def test_entries_are_averaged_by_their_strength():
    """At guidance 1 one Euler step is linear in the velocity."""
    model, once = tiny.model("t2v-1.3b"), {"steps": 1, "guidance_high": 1.0}
    one, two = (run(model, condition(seed), **once) for seed in (5, 7))
    both = run(model, [condition(5, strength=3.0), condition(7, strength=1.0)], **once)
    torch.testing.assert_close(both, 0.75 * one + 0.25 * two, atol=1e-5, rtol=0)
    assert torch.equal(run(model, [condition(5), condition(7, strength=0.0)], **once), one)


def test_an_entry_counts_between_its_start_and_end_and_costs_nothing_elsewhere():
    """Shift 1 and 4 steps: noise levels 1, 0.75, 0.5 and 0.25; both ends count, as natively."""
    model, calls = tiny.model("t2v-1.3b"), []
    model.high.module.register_forward_hook(lambda *_: calls.append(1))
    positive = [condition(5, end=0.3), condition(7, start=0.3)]
    changed = run(model, positive)
    assert len(calls) == 8
    first = run(model, condition(5), end_step=2)
    second = StartLatent(samples=first)
    torch.testing.assert_close(run(model, condition(7), latent=second, start_step=2), changed, atol=1e-4, rtol=0)
    calls.clear()
    run(model, [condition(5), condition(7, start=0.5, end=0.5)])
    assert len(calls) == 9


def test_parts_of_the_run_follow_its_shift():
    """The same share is a higher noise level at a higher shift."""
    assert make_schedule("simple", 4, 3.0).steps[2].sigma == pytest.approx(0.75)
    model = tiny.model("t2v-1.3b")
    plain, late = run(model, shift=3.0), run(model, [condition(5), condition(7, start=0.74)], shift=3.0)
    assert (plain - late).abs().max() > 1e-3  # counts at 0.5, the last step
    assert torch.equal(plain, run(model, [condition(5), condition(7, start=0.76)], shift=3.0))


def test_nag_takes_one_negative_entry():
    model = tiny.model("t2v-1.3b")
    guided = replace(model, guidance=GuidanceOptions(nag=Nag(scale=3.0, tau=2.5, alpha=0.3)))
    with pytest.raises(InputError, match="2 entries"):
        run(guided, negative=[condition(6), condition(7)])
    once = {"steps": 1, "guidance_high": 1.0}
    one, two = (run(guided, condition(seed), **once) for seed in (5, 8))
    both = run(guided, [condition(5), condition(8)], **once)
    torch.testing.assert_close(both, (one + two) / 2, atol=1e-5, rtol=0)
    assert (one - run(model, condition(5), **once)).abs().max() > 1e-3


def test_subjects_stand_behind_the_clip_and_are_cut_off():
    model = tiny.model("t2v-1.3b")
    subjects = drawn(1, 16, 2, 6, 8, seed=9)
    seen = []
    model.high.module.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    made = run(model, condition(subjects=subjects), condition(6, subjects=nothing_of(subjects, LATENT_21)))
    assert made.shape == SHAPE and set(seen) == {5 * 3 * 4}
    other = run(model, condition(subjects=subjects + 1), condition(6, subjects=nothing_of(subjects, LATENT_21)))
    assert (made - other).abs().max() > 1e-3


@pytest.mark.parametrize("solver", ["euler", "unipc", "dpm++", "lcm"])
def test_what_is_given_stays_and_the_rest_is_made(solver):
    model, clip = tiny.model("t2v-1.3b"), drawn(*SHAPE, seed=1)
    mask = torch.ones(1, 1, 3, 6, 8)
    mask[:, :, 0], mask[:, :, 1, :, :4] = 0, 0
    made = run(model, latent=StartLatent(samples=clip, noise_mask=mask), solver=solver, schedule="auto")
    kept = (mask == 0).expand_as(made)
    torch.testing.assert_close(made[kept], clip[kept], atol=2e-5, rtol=0)
    assert (made - clip)[~kept].abs().max() > 0.1
    without = run(model, latent=StartLatent(samples=torch.zeros(SHAPE)), solver=solver, schedule="auto")
    assert (made - without)[~kept].abs().max() > 1e-3, "what is given does not matter to the rest"


def test_a_mask_of_ones_changes_no_bit():
    model, clip = tiny.model("t2v-1.3b"), drawn(*SHAPE, seed=1)
    plain = run(model, latent=StartLatent(samples=clip), denoise=0.7)
    masked = StartLatent(samples=clip, noise_mask=torch.ones(1, 64, 48))
    assert torch.equal(run(model, latent=masked, denoise=0.7), plain)


def test_the_model_sees_what_is_given_at_the_noise_level_of_the_step_under_the_runs_noise(monkeypatch):
    model, clip, seen = tiny.model("t2v-1.3b"), drawn(*SHAPE, seed=1), []
    monkeypatch.setattr(stage, "Inputs", lambda **given: seen.append(given) or Inputs(**given))
    mask = torch.ones(3, 6, 8)
    mask[0] = 0
    run(model, latent=StartLatent(samples=clip, noise_mask=mask), guidance_high=1.0)
    noise, clean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)), LATENT_21.normalise(clip)
    for given, sigma in zip(seen, (1.0, 0.75, 0.5, 0.25), strict=True):
        wanted = sigma * noise + (1 - sigma) * clean
        torch.testing.assert_close(given["x"][:, :, 0], wanted[:, :, 0], atol=1e-6, rtol=0)
        assert given["t"].tolist() == [1000 * sigma]


@pytest.mark.parametrize(("kept", "together"), [(0, False), (0, True), (1, False), (2, True)])
def test_streamed_weights_give_the_bits_of_resident_ones(kept, together):
    """Steps of one, two and three predictions, with frames behind the clip and a mask."""
    mask, subjects = torch.ones(3, 6, 8), drawn(1, 16, 1, 6, 8, seed=9)
    mask[0] = 0
    positive = [condition(5, subjects=subjects, end=0.4), condition(7, subjects=subjects, start=0.3)]

    def made(memory):
        latent = StartLatent(samples=drawn(*SHAPE, seed=1), noise_mask=mask)
        return run(tiny.model("t2v-a14b"), positive, latent=latent, ports=Ports(memory=memory), guidance_low=1.0)

    assert torch.equal(made(Planned(kept=kept, together=together)), made(PlainMemory()))


def test_a_mask_of_another_length_is_stretched_and_that_is_said():
    model, clip, told = tiny.model("t2v-1.3b"), drawn(*SHAPE, seed=1), []
    run(model, latent=StartLatent(samples=clip, noise_mask=torch.ones(5, 6, 8)), ports=Ports(notify=told.append))
    assert any("5 frames and the clip 9" in one for one in told)
    told.clear()
    run(model, latent=StartLatent(samples=clip, noise_mask=torch.ones(9, 48, 64)), ports=Ports(notify=told.append))
    assert not any("stretched" in one for one in told)


def test_a_mask_of_frames_marks_every_latent_pixel_that_a_marked_pixel_is_behind():
    told: list[str] = []
    mask = torch.zeros(9, 48, 64)
    mask[0, 0, 0] = mask[4, 47, 63] = 1
    mask[5, 20, 30] = 0.5
    made = latent_mask(mask, (3, 6, 8), LATENT_21, told.append)
    assert made.shape == (1, 1, 3, 6, 8) and not told
    assert made.nonzero().tolist() == [[0, 0, 0, 0, 0], [0, 0, 1, 5, 7], [0, 0, 2, 2, 3]]
    assert made[0, 0, 2, 2, 3] == 0.5
    one = latent_mask(mask[:1], (3, 6, 8), LATENT_21, told.append)
    assert torch.equal(one, made[:, :, :1].expand(-1, -1, 3, -1, -1)) and not told
    short = latent_mask(mask[:5], (3, 6, 8), LATENT_21, told.append)
    assert torch.equal(short[:, :, :2], made[:, :, :2]) and short[0, 0, 2, 5, 7] == 1 and "5 masks" in told[0]
    latent_mask(torch.zeros(12, 48, 64), (3, 6, 8), LATENT_21, told.append)
    latent_mask(torch.zeros(1, 48, 48), (3, 6, 8), LATENT_21, told.append)
    assert "Of 12 masks 9" in told[1] and "stretched" in told[2]
    with pytest.raises(InputError, match="0 to 2"):
        latent_mask(mask * 2, (3, 6, 8), LATENT_21, told.append)
