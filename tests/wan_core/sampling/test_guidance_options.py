"""Extras of guidance: formulas against plain float64 arithmetic, what each step does, and texts over the steps."""

import numpy as np
import pytest
import torch

from wan_core.errors import InputError
from wan_core.sampling.guidance import guided
from wan_core.sampling.guidance_options import (
    PLAIN,
    GuidanceOptions,
    SkipBlocks,
    ZeroStar,
    guided_by,
    nearest,
    parse_guidance,
)
from wan_core.sampling.sigmas import Step

SKIPPED = frozenset({1, 2})


def drawn(seed: int, shape=(2, 4, 3, 5, 6)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Model:
    """Gives a fixed velocity for each condition (a name, and the blocks that are skipped), and counts."""

    def __init__(self):
        self.asked = []
        self.velocity = {("cond", frozenset()): 1, ("uncond", frozenset()): 2, ("cond", SKIPPED): 3}
        self.velocity |= {("uncond", SKIPPED): 4}

    def __call__(self, x, step, conditions):
        self.asked.append(list(conditions))
        return [drawn(self.velocity[one]) for one in conditions]


def step(index: int) -> Step:
    return Step(index=index, sigma=0.8, sigma_next=0.5, timestep=800.0)


def denoised(options: GuidanceOptions, scale: float, index: int = 5, steps: int = 10):
    model = Model()
    rescale = options.zero_star is not None and options.zero_star.rescale
    denoise = guided_by(
        model, ("cond", frozenset()), ("uncond", frozenset()),
        at=lambda number: options.at(number, steps, scale),
        skipping=lambda side, blocks: (side[0], blocks),
        rescale=rescale,
    )  # fmt: skip
    out = denoise(drawn(9), step(index))
    return out, model.asked


def exact(seed: int) -> np.ndarray:
    return drawn(seed).numpy().astype(np.float64)


def close(out: torch.Tensor, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(out.numpy(), wanted, atol=2e-5 * np.abs(wanted).max(), rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        GuidanceOptions(over_steps=parse_guidance("4.5")),
        GuidanceOptions(zero_star=ZeroStar(rescale=False, zero_steps=0)),
        GuidanceOptions(zero_star=ZeroStar(rescale=False, zero_steps=5)),
        GuidanceOptions(skip=SkipBlocks(blocks=frozenset())),
        GuidanceOptions(skip=SkipBlocks(blocks=SKIPPED, start=0.6)),
        GuidanceOptions(skip=SkipBlocks(blocks=SKIPPED, end=0.5, scale=2.0)),
    ],
    ids=["nothing", "over steps, one value", "zero-star off", "after its steps", "no blocks", "before", "after"],
)
def test_an_extra_that_is_off_or_not_in_its_steps_gives_the_bits_of_plain_guidance(options):
    plain = guided(Model(), ("cond", frozenset()), ("uncond", frozenset()), 4.5)(drawn(9), step(5))
    out, asked = denoised(options, 4.5)
    assert torch.equal(out, plain)
    assert asked == [[("cond", frozenset()), ("uncond", frozenset())]]


def test_cfg_zero_star_guides_from_the_nearest_multiple_of_the_negative_of_each_sample():
    out, _ = denoised(GuidanceOptions(zero_star=ZeroStar()), 5.0)
    wanted = np.empty_like(exact(1))
    for sample, (cond, uncond) in enumerate(zip(exact(1), exact(2))):
        star = np.vdot(cond, uncond) / np.vdot(uncond, uncond)
        wanted[sample] = star * uncond + 5.0 * (cond - star * uncond)
    close(out, wanted)
    # What it is for: no other multiple is nearer.
    scaled = nearest(drawn(2), to=drawn(1))
    for factor in (0.9, 1.1):
        assert ((scaled * factor - drawn(1)).flatten(1).norm(dim=1) > (scaled - drawn(1)).flatten(1).norm(dim=1)).all()


def test_a_negative_of_zeros_does_not_become_nan():
    assert torch.equal(nearest(torch.zeros(2, 3, 1, 2, 2), to=drawn(1, (2, 3, 1, 2, 2))), torch.zeros(2, 3, 1, 2, 2))


@pytest.mark.parametrize(("index", "still"), [(0, True), (1, True), (2, False)])
def test_the_first_steps_stand_still_and_ask_for_nothing(index, still):
    out, asked = denoised(GuidanceOptions(zero_star=ZeroStar(rescale=False, zero_steps=2)), 5.0, index)
    assert bool((out == 0).all()) == still
    assert (asked == []) == still


def test_without_a_scale_the_negative_pass_skips_the_blocks():
    out, asked = denoised(GuidanceOptions(skip=SkipBlocks(blocks=SKIPPED)), 5.0)
    close(out, exact(4) + 5.0 * (exact(1) - exact(4)))
    assert asked == [[("cond", frozenset()), ("uncond", SKIPPED)]]


def test_with_a_scale_a_pass_more_is_guided_away_from():
    options = GuidanceOptions(skip=SkipBlocks(blocks=SKIPPED, scale=2.5))
    out, asked = denoised(options, 5.0)
    close(out, exact(2) + 5.0 * (exact(1) - exact(2)) + 2.5 * (exact(1) - exact(3)))
    assert asked == [[("cond", frozenset()), ("uncond", frozenset()), ("cond", SKIPPED)]]
    out, asked = denoised(options, 1.0)
    close(out, exact(1) + 2.5 * (exact(1) - exact(3)))
    assert asked == [[("cond", frozenset()), ("cond", SKIPPED)]]


def test_all_extras_together_are_their_formulas_one_after_another():
    options = GuidanceOptions(
        over_steps=parse_guidance("0: 9, 5: 3"), zero_star=ZeroStar(), skip=SkipBlocks(blocks=SKIPPED, scale=0.5)
    )
    out, _ = denoised(options, 7.0)
    wanted = np.empty_like(exact(1))
    for n, (cond, uncond, skipped) in enumerate(zip(exact(1), exact(2), exact(3))):
        base = np.vdot(cond, uncond) / np.vdot(uncond, uncond) * uncond
        wanted[n] = base + 3 * (cond - base) + 0.5 * (cond - skipped)
    close(out, wanted)


def test_each_step_knows_how_many_passes_it_makes():
    options = GuidanceOptions(
        over_steps=parse_guidance("0: 5, 6: 1"),
        zero_star=ZeroStar(zero_steps=1),
        skip=SkipBlocks(blocks=SKIPPED, start=0.2, end=0.8, scale=1.0),
    )
    passes = [options.at(index, 10, 4.0).passes for index in range(10)]
    assert passes == [0, 2, 3, 3, 3, 3, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("4", [4, 4, 4, 4, 4, 4]),
        ("0: 6, 4: 3.5", [6, 6, 6, 6, 3.5, 3.5]),
        ("0%: 5, 50%: 1", [5, 5, 5, 1, 1, 1]),
        ("6, 5, 4", [6, 5, 4, 4, 4, 4]),
        (" 6,5 ", [6, 5, 5, 5, 5, 5]),
        ("0", [0, 0, 0, 0, 0, 0]),
    ],
)
def test_a_guidance_over_steps_reads_as_documented(text, wanted):
    options = GuidanceOptions(over_steps=parse_guidance(text))
    assert [options.at(step, 6, 99.0).scale for step in range(6)] == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("six", "'six' is no guidance over steps. Write a number, a list"),
        ("", "is no guidance over steps"),
        ("6, x", "'1: x' is no piece of a guidance over steps"),
        ("0: 6, 4 3", "'4 3' is no piece of a guidance over steps"),
        ("0: 6, 50%: 3", "counts all its steps the same way"),
        ("4: 6, 0: 3", "the steps of a guidance over steps must rise"),
        ("4: 6", "must say what the first step has; this one begins at step 4"),
        ("10%: 6", "must say what the first step has; this one begins at 10%"),
        ("-1", "guidance must be from 0 to 100; got -1"),
        ("0: 5, 3: 101", "guidance must be from 0 to 100; got 101"),
        ("nan", "guidance must be from 0 to 100; got nan"),
        (", ".join(["1"] * 101), "at most 100 pieces; got 101"),
    ],
)
def test_a_guidance_over_steps_that_cannot_be_read_is_refused_in_a_sentence(text, words):
    with pytest.raises(InputError) as caught:
        parse_guidance(text)
    assert words in str(caught.value)


def test_what_is_on_is_said():
    options = GuidanceOptions(
        over_steps=parse_guidance("0%: 5, 50%: 1"), zero_star=ZeroStar(), skip=SkipBlocks(blocks=SKIPPED, start=0.1)
    )
    told = " ".join(options.describe())
    assert "0%: 5, 50%: 1" in told and "first 1 step of the run" in told and "blocks 1, 2 in the negative pass" in told
    assert PLAIN.describe() == []
