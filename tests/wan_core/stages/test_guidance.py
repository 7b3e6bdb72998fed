"""Extras of guidance in whole runs: off is plain to the bit, streamed is resident to the bit, bad values are told."""

from dataclasses import replace

import pytest
import torch

from tests import tiny
from tests.wan_core.runtime.memories import Planned
from tests.wan_core.stages.test_plan import machine
from tests.wan_core.stages.test_sample import SHAPE, CancelledError, condition, start
from tests.wan_core.stages.test_streaming import PLANS
from wan_core.errors import InputError
from wan_core.runtime.memory import Rates, fixed_work
from wan_core.runtime.ports import PlainMemory, Ports
from wan_core.runtime.stay import Stay, Stop
from wan_core.stages import guidance as stage
from wan_core.stages import plan
from wan_core.stages.sample import Settings, StartLatent, sample
from wan_core.variants import Feature

STEPS = Settings(seed=3, steps=4, guidance_high=4.0)


def run(model, settings=STEPS, negative=6, **ports):
    extra = {}
    if Feature.CONCAT in model.variant.features:
        known = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
        extra = {"known_latent": known, "known_mask": torch.ones(1, 4, *SHAPE[2:])}
    if Feature.CLIP in model.variant.features:
        extra["clip"] = torch.randn(1, 257, 32, generator=torch.Generator().manual_seed(8))
    if Feature.REFERENCE in model.variant.features:
        extra["reference"] = torch.randn(1, 16, 1, *SHAPE[3:], generator=torch.Generator().manual_seed(7))
    sides = condition(**extra), None if negative is None else condition(negative, **extra)
    return sample(model, *sides, start((1, model.variant.latent.channels, *SHAPE[2:])), settings, Ports(**ports))


EXTRAS = {
    "over steps": lambda model: stage.guidance_over_steps(model, "0: 6, 1: 1, 2: 3"),
    "zero-star": lambda model: stage.cfg_zero_star(model, True, 1),
    "skip, negative": lambda model: stage.skip_blocks(model, "1", 0.25, 1.0, 0.0),
    "skip, a pass more": lambda model: stage.skip_blocks(model, "0, 2", 0.0, 0.75, 2.0),
    "nag": lambda model: stage.nag(model, 11.0, 2.5, 0.25),
}
EXTRAS["all"] = lambda model: [model := add(model) for add in list(EXTRAS.values())[:5]][-1]
OFF = {
    "over steps": lambda model: stage.guidance_over_steps(model, "4"),
    "over steps, empty": lambda model: stage.guidance_over_steps(model, "  "),
    "zero-star": lambda model: stage.cfg_zero_star(model, False, 0),
    "skip, no blocks": lambda model: stage.skip_blocks(model, "", 0.0, 1.0, 3.0),
    "nag, scale 1": lambda model: stage.nag(model, 1.0, 2.5, 0.25),
    "nag, alpha 0": lambda model: stage.nag(model, 11.0, 2.5, 0.0),
}


@pytest.mark.parametrize("name", ["t2v-1.3b", "i2v-14b-480p"])
@pytest.mark.parametrize("off", OFF)
def test_an_extra_that_is_off_gives_the_bits_of_plain_guidance(name, off):
    model = tiny.model(name)
    assert torch.equal(run(OFF[off](model)), run(model))


@pytest.mark.parametrize(
    "name", ["t2v-1.3b", "t2v-a14b", "i2v-14b-480p", "ti2v-5b", "vace-1.3b", "fun-control-v1.1-1.3b"]
)
@pytest.mark.parametrize("extra", EXTRAS)
def test_streamed_is_resident_to_the_bit_with_every_extra(name, extra):
    model = EXTRAS[extra](tiny.model(name))
    whole = run(model, memory=PlainMemory())
    assert (whole - run(replace(model, guidance=tiny.model(name).guidance))).abs().max() > 1e-2
    for kept, together in PLANS:
        assert torch.equal(run(model, memory=Planned(kept, together=together)), whole), (kept, together)


@pytest.mark.parametrize("extra", EXTRAS)
def test_cancel_acts_at_the_next_block_and_the_next_run_is_the_same(extra):
    model = EXTRAS[extra](tiny.model("t2v-1.3b"))
    before, calls = run(model), []

    def cancel():
        calls.append(1)
        if len(calls) == 8:
            raise CancelledError

    for memory in (PlainMemory(), Planned(1, together=True)):
        calls.clear()
        with pytest.raises(CancelledError):
            run(model, memory=memory, check_cancel=cancel)
        assert len(calls) == 8
    assert torch.equal(run(model), before)


def test_a_guidance_over_steps_is_the_samplers_in_each_step_and_saves_the_passes_at_1():
    model, calls = tiny.model("t2v-1.3b"), []
    model.high.module.register_forward_hook(lambda *_: calls.append(1))
    euler = replace(STEPS, solver="euler")
    run(stage.guidance_over_steps(model, "6, 1, 1, 3"), euler)
    assert len(calls) == 2 + 1 + 1 + 2
    first = run(model, replace(euler, guidance_high=6.0, end_step=2))
    joined = run_from(model, first, replace(euler, guidance_high=2.0, start_step=2))
    torch.testing.assert_close(run(stage.guidance_over_steps(model, "0%: 6, 50%: 2"), euler), joined, atol=1e-4, rtol=0)


def run_from(model, samples, settings):
    return sample(model, condition(), condition(6), StartLatent(samples=samples), settings, Ports())


def test_in_the_second_half_of_a_split_run_steps_are_those_of_the_whole():
    model = stage.cfg_zero_star(stage.guidance_over_steps(tiny.model("t2v-1.3b"), "0: 6, 3: 2"), True, 1)
    euler = replace(STEPS, solver="euler")
    half = run(model, replace(euler, end_step=2))
    joined = run_from(model, half, replace(euler, start_step=2))
    torch.testing.assert_close(joined, run(model, euler), atol=1e-4, rtol=0)


def test_a_pair_goes_through_the_steps_of_the_whole_run():
    model = tiny.model("t2v-a14b")
    used = {"high": 0, "low": 0}
    for side in used:
        getattr(model, side).module.register_forward_hook(lambda *_, side=side: used.update({side: used[side] + 1}))
    run(stage.guidance_over_steps(model, "0: 3, 3: 1, 6: 2"), Settings(seed=3, steps=8, switch_step=4))
    assert used == {"high": 3 * 2 + 1, "low": 2 * 1 + 2 * 2}


def test_steps_that_stand_still_leave_the_noise_and_read_no_block():
    model, calls = tiny.model("t2v-1.3b"), []
    model.high.module.register_forward_hook(lambda *_: calls.append(1))
    seen = []
    still = stage.cfg_zero_star(model, False, 2)
    run(still, replace(STEPS, solver="euler"), progress=lambda done, total, x0: seen.append((done, x0.clone())))
    assert len(calls) == 2 * 2
    assert [done for done, _ in seen] == [1, 2, 3, 4]
    assert torch.equal(seen[0][1], seen[1][1]) and not torch.equal(seen[1][1], seen[2][1])


@pytest.mark.parametrize("together", [False, True])
def test_a_step_without_a_prediction_between_others_keeps_the_walks_in_order(together):
    weights = tiny.model("t2v-1.3b").high
    stops = [Stop(weights=weights, passes=passes) for passes in (2, 0, 3, 1)]
    ports = Ports(memory=Planned(1, together=together))
    with Stay(stops, replace(fixed_work(0), passes=3), ports) as stay:
        assert stay.plan.together == together
        for number, stop in enumerate(stops):
            for again in range(min(1, stop.passes) if together else stop.passes):
                module, walk = stay.begin(number, again)
                assert len(list(walk(module.blocks))) == 3


def test_nag_makes_the_negative_prompt_matter_at_guidance_1_in_one_pass():
    model, calls = tiny.model("t2v-1.3b"), []
    once = replace(STEPS, guidance_high=1.0)
    model.high.module.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(run(model, once, negative=6), run(model, once, negative=7))
    calls.clear()
    guided = run(stage.nag(model, 11.0, 2.5, 0.25), once, negative=6)
    assert len(calls) == 4
    assert (guided - run(stage.nag(model, 11.0, 2.5, 0.25), once, negative=7)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (lambda m: stage.cfg_zero_star(m, True, -1), "zero_steps must be from 0 to 1000; got -1"),
        (lambda m: stage.skip_blocks(m, "3", 0, 1, 0), "cannot be read at '3'. Write numbers and ranges from 0 to 2"),
        (lambda m: stage.skip_blocks(m, "one", 0, 1, 0), "leave it empty for none"),
        (lambda m: stage.skip_blocks(m, "0-2", 0, 1, 0), "are all 3 blocks of t2v-1.3b high. Skip one to three"),
        (lambda m: stage.skip_blocks(m, "1", 0.5, 0.5, 0), "start 0.5 and end 0.5 leave no step"),
        (lambda m: stage.skip_blocks(m, "1", -0.1, 1, 0), "start must be from 0 to 1; got -0.1"),
        (lambda m: stage.skip_blocks(m, "1", 0, float("nan"), 0), "end must be from 0 to 1; got nan"),
        (lambda m: stage.skip_blocks(m, "1", 0, 1, -1), "scale must be from 0 to 100; got -1"),
        (lambda m: stage.nag(m, 0.5, 2.5, 0.25), "scale must be from 1 to 100; got 0.5"),
        (lambda m: stage.nag(m, 11, 0, 0.25), "tau must be from 0.01 to 100; got 0"),
        (lambda m: stage.nag(m, 11, 2.5, 1.5), "alpha must be from 0 to 1; got 1.5"),
        (lambda m: stage.guidance_over_steps(m, "4: 2"), "begins at step 4"),
        (lambda m: run(stage.cfg_zero_star(m, True, 4)), "the first 4 steps stand still, and this run has no other"),
        (
            lambda m: run(stage.guidance_over_steps(m, "0: 1, 3: 2"), negative=None),
            "guidance 2 needs a negative prompt",
        ),
        (
            lambda m: run(stage.nag(m, 11, 2.5, 0.25), replace(STEPS, guidance_high=1.0), negative=None),
            "NAG guides away from the negative prompt, and there is none",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(add, words):
    with pytest.raises(InputError) as caught:
        add(tiny.model("t2v-1.3b"))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (lambda m: stage.skip_blocks(m, "1", 0, 1, 0), "The skipped blocks have no effect"),
        (lambda m: stage.cfg_zero_star(m, True, 0), "The rescaling of CFG-Zero* has no effect at guidance 1"),
    ],
)
def test_an_extra_without_effect_is_said_and_one_with_it_is_not(add, words):
    model, told = add(tiny.model("t2v-1.3b")), []
    run(model, replace(STEPS, guidance_high=1.0), notify=told.append)
    assert any(words in sentence for sentence in told)
    told.clear()
    run(model, notify=told.append)
    assert not any("no effect" in sentence for sentence in told)


def test_the_sampler_says_what_is_on():
    told = []
    run(EXTRAS["all"](tiny.model("t2v-1.3b")), notify=told.append)
    assert "Guidance over the steps: 0: 6, 1: 1, 2: 3" in told[0] and "guidance 4" not in told[0]
    assert all(word in told[0] for word in ("CFG-Zero*", "Skipped blocks 0, 2 in a pass more", "NAG: scale 11"))


def planned(model, settings=STEPS):
    row = model.variant
    latent = StartLatent(samples=torch.zeros(1, row.latent.channels, 5, 16, 16))
    free = Rates(matmul=1e9, attention=1e9, link=float("inf"))  # weights come at no cost: passes are all that counts
    return plan.plan_run(
        plan.Parts(model=model), latent, settings, replace(machine(), rates_of=lambda device, dtype: free)
    )


def test_the_plan_of_a_run_counts_the_passes_that_it_makes():
    model = tiny.model("t2v-1.3b")
    seconds = {
        name: planned(made).stages[0].seconds
        for name, made in {
            "plain": model,
            "half": stage.guidance_over_steps(model, "0%: 4, 50%: 1"),
            "more": stage.skip_blocks(model, "1", 0.0, 1.0, 1.0),
            "still": stage.cfg_zero_star(model, True, 1),
        }.items()
    }
    parts = {name: value / seconds["plain"] for name, value in seconds.items()}
    assert parts == pytest.approx({"plain": 1, "half": 0.75, "more": 1.5, "still": 0.75}, rel=1e-6)
    assert planned(stage.nag(model, 11.0, 2.5, 0.25)).stages[0].work_bytes > planned(model).stages[0].work_bytes


def test_the_plan_says_what_the_run_would_refuse():
    made = planned(stage.cfg_zero_star(tiny.model("t2v-1.3b"), True, 4))
    assert any("stand still" in problem for problem in made.problems)
    made = planned(stage.skip_blocks(tiny.model("t2v-1.3b"), "1", 0, 1, 0), replace(STEPS, guidance_high=1.0))
    assert any("no effect" in note for note in made.notes)
