"""The choice between the high-noise and the low-noise expert."""

import pytest
import torch

from wan_core.sampling.experts import by_boundary, by_step, expert_names
from wan_core.sampling.sigmas import Step, make_schedule


def high(x, step):
    return x + 1


def low(x, step):
    return x - 1


def step_at(timestep: float, index: int = 0) -> Step:
    return Step(index=index, sigma=timestep / 1000, sigma_next=0.0, timestep=timestep)


@pytest.mark.parametrize(
    ("boundary", "timestep", "expected"),
    [(0.875, 875.0, 1), (0.875, 874.0, -1), (0.9, 900.0, 1), (0.9, 899.99, -1), (0.0, 1.0, 1), (1.0, 999.0, -1)],
)
def test_the_boundary_itself_belongs_to_the_high_noise_expert(boundary, timestep, expected):
    assert by_boundary(high=high, low=low, boundary=boundary)(torch.zeros(1), step_at(timestep)) == expected


def test_the_truncated_timestep_decides_and_not_the_sigma():
    between = Step(index=0, sigma=0.8755, sigma_next=0.0, timestep=875.0)
    assert by_boundary(high=high, low=low, boundary=0.8753)(torch.zeros(1), between) == -1


def test_the_switch_step_counts_from_the_start_of_the_whole_run():
    denoise = by_step(high=high, low=low, switch_step=2)
    later = make_schedule("simple", 4, 5.0).slice(1, 4)
    assert [denoise(torch.zeros(1), step).item() for step in later.steps] == [1.0, -1.0, -1.0]
    assert expert_names(later, switch_step=2) == ("high", "low", "low")


@pytest.mark.parametrize(("boundary", "shift"), [(0.875, 12.0), (0.9, 5.0)])
def test_the_names_say_what_the_denoiser_does(boundary, shift):
    schedule = make_schedule("unipc", 40, shift)
    denoise = by_boundary(high=high, low=low, boundary=boundary)
    done = tuple("high" if denoise(torch.zeros(1), step) > 0 else "low" for step in schedule.steps)
    assert expert_names(schedule, boundary=boundary) == done
    assert set(done) == {"high", "low"}
    assert done == tuple(sorted(done))  # all of the high ones first


def test_one_model_has_no_expert_names():
    assert expert_names(make_schedule("unipc", 4, 5.0)) == ()
