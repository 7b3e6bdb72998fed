"""Flow matching: noise levels, what the model sees, what it is told and what it should answer."""

import pytest
import torch

from wan_core.errors import InputError
from wan_core.sampling.sigmas import from_sigmas, shift_sigma
from wan_core.sampling.solvers import SOLVERS
from wan_core.training.flow import SigmaSettings, draw_sigmas, noised, unshift


def drawn(count: int = 512, **settings) -> torch.Tensor:
    return draw_sigmas(count, SigmaSettings(**settings), torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.875, 1.0), (0.0, 0.875), (0.9, 1.0), (0.3, 0.4)])
def test_an_expert_is_trained_on_its_own_noise_levels_only(low, high):
    sigma = drawn(low=low, high=high)
    assert low - 1e-6 <= sigma.min() and sigma.max() <= high + 1e-6
    assert sigma.min() < low + 0.02 and sigma.max() > high - 0.02


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_a_batch_has_one_noise_level_in_each_equal_part_of_the_unshifted_range(shift):
    u = torch.tensor([unshift(float(value), shift) for value in drawn(64, shift=shift)])
    assert torch.equal((u * 64).floor().clamp(0, 63).sort().values, torch.arange(64.0))
    assert not torch.equal(u.sort().values, u)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_the_middle_noise_level_follows_the_shift(shift):
    assert drawn(4096, shift=shift).median().item() == pytest.approx(shift_sigma(0.5, shift), abs=1e-3)


def test_unshift_is_the_inverse_of_shift():
    sigma = torch.linspace(0, 1, 101, dtype=torch.float64)
    for shift in (0.5, 1.0, 3.0, 12.0):
        torch.testing.assert_close(unshift(shift_sigma(sigma, shift), shift), sigma)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.9, 0.1), (-0.1, 1), (0, 1.5), (float("nan"), 1)])
def test_a_range_that_is_none_is_refused(low, high):
    with pytest.raises(InputError, match="range of sigma"):
        SigmaSettings(low=low, high=high)


def test_without_noise_the_model_sees_the_clip_and_with_all_of_it_the_noise():
    x0, noise = torch.randn(2, 3, 16, 2, 4, 4)
    x, t, _ = noised(x0, noise, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(x[0], x0[0])
    torch.testing.assert_close(x[1], (x0[1] + noise[1]) / 2)
    assert torch.equal(x[2], noise[2])
    assert t.tolist() == [0, 500, 1000]


@pytest.mark.parametrize("sigma", [1.0, 0.875, 0.2])
def test_the_target_is_what_the_sampler_needs_to_get_to_the_clip_in_one_step(sigma):
    x0, noise = torch.randn(2, 1, 16, 2, 4, 4)
    x, t, target = noised(x0, noise, torch.tensor([sigma]))
    schedule = from_sigmas(torch.tensor([sigma, 0.0]))

    def exact(_, step):
        assert step.timestep == t.item()
        return target

    torch.testing.assert_close(SOLVERS["euler"](exact, x, schedule), x0)
