"""Schedules against the official tables, ComfyUI's formula and their own rules."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wan_core.errors import InputError
from wan_core.sampling.sigmas import SCHEDULES, from_sigmas, make_schedule, shift_sigma

GOLDENS = Path(__file__).parents[2] / "goldens"
COMBOS = [(steps, shift) for steps in (4, 8, 30, 50) for shift in (3.0, 5.0, 8.0, 12.0)]


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / "schedulers.safetensors")


@pytest.mark.parametrize(("steps", "shift"), COMBOS)
@pytest.mark.parametrize(("name", "tag"), [("unipc", "unipc"), ("dpm++", "dpmpp")])
def test_the_official_tables_are_met_to_the_last_timestep(golden, name, tag, steps, shift):
    schedule = make_schedule(name, steps, shift)
    key = f"out.{tag}.s{steps}_shift{shift:g}"
    torch.testing.assert_close(schedule.sigmas, golden[f"{key}.sigmas"], atol=1e-6, rtol=0)
    assert schedule.timesteps.long().tolist() == golden[f"{key}.timesteps"].tolist()


@pytest.mark.parametrize(("steps", "shift"), COMBOS)
def test_simple_is_bit_equal_to_the_reference(golden, steps, shift):
    reference = golden[f"out.comfy_simple.s{steps}_shift{shift:g}.sigmas"]
    assert torch.equal(make_schedule("simple", steps, shift).sigmas, reference)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.7, 5.0, 8.0, 16.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 100, 333, 1000])
def test_simple_is_bit_equal_to_the_hosts_formula(steps, shift):
    t = (torch.arange(1, 1001, 1) / 1000) * 1000 / 1000
    table = t if shift == 1.0 else shift * t / (1 + (shift - 1) * t)
    picked = [float(table[-(1 + int(i * (len(table) / steps)))]) for i in range(steps)]
    sigmas = torch.FloatTensor([*picked, 0.0])
    schedule = make_schedule("simple", steps, shift)
    assert torch.equal(schedule.sigmas, sigmas)
    assert torch.equal(schedule.timesteps, sigmas[:-1] * 1000)


@pytest.mark.parametrize("shift", [5.0, 16.0])
def test_distill_picks_every_250th_of_the_1000_shifted_steps(shift):
    grid = torch.linspace(1.0, 0.0, 1001)[:-1]
    grid = shift * grid / (1 + (shift - 1) * grid)
    sigmas = grid[[1000 - t for t in (1000, 750, 500, 250)]]
    schedule = make_schedule("distill", 4, shift)
    torch.testing.assert_close(schedule.sigmas[:-1], sigmas, atol=1e-6, rtol=0)
    torch.testing.assert_close(schedule.timesteps, sigmas * 1000, atol=1e-3, rtol=0)
    assert schedule.sigmas[-1] == 0


@pytest.mark.parametrize(("steps", "shift"), COMBOS)
def test_the_table_that_diffusers_uses_for_euler_is_met(golden, steps, shift):
    schedule, key = make_schedule("diffusers", steps, shift), f"out.diffusers_euler.s{steps}_shift{shift:g}"
    torch.testing.assert_close(schedule.sigmas, golden[f"{key}.sigmas"], atol=1e-6, rtol=0)
    torch.testing.assert_close(schedule.timesteps, golden[f"{key}.timesteps"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("shift", [0.1, 1.0, 5.0, 12.0, 100.0])
def test_every_table_descends_from_at_most_1_to_0_at_any_step_count(name, shift):
    for steps in [*range(1, 101, 3), 1000]:
        schedule = make_schedule(name, steps, shift)
        assert len(schedule) == len(schedule.steps) == steps
        assert schedule.sigmas[0] <= 1
        assert schedule.sigmas[-1] == 0
        assert (schedule.sigmas.diff() < 0).all()


@pytest.mark.parametrize(("shift", "first"), [(5.0, 251), (8.0, 144), (12.0, 92), (16.0, 68), (17.0, 64)])
def test_truncated_timesteps_repeat_from_the_known_step_count_on(shift, first):
    before, at = (make_schedule("unipc", steps, shift) for steps in (first - 1, first))
    assert before.timesteps[0] != before.timesteps[1]
    assert at.timesteps[0] == at.timesteps[1]
    assert [step.index for step in at.steps] == list(range(first))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("steps", "denoise", "whole"), [(20, 0.6, 33), (8, 0.5, 16), (10, 0.99, 10), (3, 0.01, 300)])
def test_partial_denoise_takes_the_end_of_a_longer_table(name, steps, denoise, whole):
    part, longer = make_schedule(name, steps, 8.0, denoise), make_schedule(name, whole, 8.0)
    assert torch.equal(part.sigmas, longer.sigmas[-(steps + 1) :])
    assert torch.equal(part.timesteps, longer.timesteps[-steps:])
    assert part.steps[0].index == 0


def test_denoise_within_a_ten_thousandth_of_1_is_the_whole_table():
    assert torch.equal(make_schedule("simple", 20, 8.0, 0.99995).sigmas, make_schedule("simple", 20, 8.0).sigmas)


def test_slices_keep_their_indices_and_join_to_the_whole():
    whole = make_schedule("unipc", 10, 5.0)
    first, rest = whole.slice(0, 4), whole.slice(4, 10)
    assert first.steps + rest.steps == whole.steps
    assert rest.slice(1, 3).steps == whole.steps[5:7]


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (3, 3), (4, 2), (0, 11), (10, 11)])
def test_a_slice_outside_the_schedule_is_refused_with_its_numbers(start, end):
    with pytest.raises(InputError, match=f"{start} to {end} .* 10 steps"):
        make_schedule("unipc", 10, 5.0).slice(start, end)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("unipc", 0, 5.0), "steps .* 1 to 1000; got 0"),
        (("unipc", 1001, 5.0), "got 1001"),
        (("unipc", 20, 0.0), "shift .* got 0.0"),
        (("unipc", 20, float("nan")), "shift .* got nan"),
        (("unipc", 20, float("inf")), "shift .* got inf"),
        (("simple", 20, 1e8), "not below the one before"),
        (("simple", 20, 5.0, 0.0), "denoise .* got 0.0"),
        (("simple", 20, 5.0, 1.5), "denoise .* got 1.5"),
        (("simple", 200, 5.0, 0.1), "table of 2000 steps.* at most 100 steps"),
        (("karras", 20, 5.0), "'karras'.*unipc, dpm"),
    ],
)
def test_settings_out_of_range_are_refused_with_their_value(arguments, words):
    with pytest.raises(InputError, match=words):
        make_schedule(*arguments)


def test_a_sigmas_wire_becomes_a_schedule_with_untruncated_timesteps():
    schedule = from_sigmas(torch.tensor([0.9, 0.5, 0.25], dtype=torch.float64))
    assert schedule.sigmas.dtype == torch.float32
    assert [step.timestep for step in schedule.steps] == [900.0, 500.0]
    assert schedule.steps[-1].sigma_next == 0.25


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "at least 2"),
        ([1.0], "at least 2"),
        ([[1.0, 0.0]], r"\[1, 2\]"),
        ([14.6, 1.0, 0.0], "value 0 is 14.6"),
        ([1.0, float("nan"), 0.0], "value 1 is nan"),
        ([1.0, 0.5, -0.1], "value 2 is -0.1"),
        ([1.0, 0.5, 0.5, 0.0], "value 2 .* not below"),
        ([0.0, 0.5], "value 1 .* not below"),
    ],
)
def test_a_wire_that_is_no_flow_schedule_is_refused(values, words):
    with pytest.raises(InputError, match=words):
        from_sigmas(torch.tensor(values))


def test_the_shift_is_the_identity_at_1_and_can_be_undone():
    sigma = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.equal(shift_sigma(sigma, 1.0), sigma)
    torch.testing.assert_close(shift_sigma(shift_sigma(sigma, 8.0), 1 / 8.0), sigma)
