"""Noise as native ComfyUI samplers make it, and hand it on."""

import pytest
import torch

from wan_core.errors import InputError
from wan_core.sampling.noise import initial_noise, leave_off, noisy_start, step_noise, take_up

SHAPE = (3, 16, 2, 5, 7)


@pytest.fixture(autouse=True)
def global_generator_put_back():
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize("seed", [0, 1, 42, 2**63 + 5, 2**64 - 1])
def test_equal_seeds_give_the_noise_of_the_native_sampler(seed):
    native = torch.randn(SHAPE, dtype=torch.float32, generator=torch.manual_seed(seed))
    assert torch.equal(initial_noise(SHAPE, seed), native)


def test_drawing_noise_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    initial_noise(SHAPE, 1, [0, 2, 2])
    step_noise(1, "cpu")(torch.zeros(SHAPE))
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_index_picks_from_the_seeds_series_of_single_noises():
    generator = torch.manual_seed(9)
    series = [torch.randn(1, *SHAPE[1:], generator=generator) for _ in range(6)]
    assert torch.equal(initial_noise(SHAPE, 9, [5, 1, 1]), torch.cat([series[5], series[1], series[1]]))


@pytest.mark.parametrize("batch_index", [[0, 1], [0, 1, -1], [0, 1, 2, 3]])
def test_a_batch_index_that_does_not_fit_is_refused(batch_index):
    with pytest.raises(InputError, match="each of the 3 latents"):
        initial_noise(SHAPE, 0, batch_index)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(InputError, match=str(seed)):
        initial_noise(SHAPE, seed)


def test_noise_on_the_way_is_another_series_than_the_initial_noise():
    fresh, x = step_noise(7, "cpu"), torch.zeros(SHAPE)
    generator = torch.manual_seed(8)
    assert torch.equal(fresh(x), torch.randn(SHAPE, generator=generator))
    assert torch.equal(fresh(x), torch.randn(SHAPE, generator=generator))
    assert not torch.equal(step_noise(7, "cpu")(x), initial_noise(SHAPE, 7))
    assert step_noise(2**64 - 1, "cpu")(x).isfinite().all()


def test_the_start_goes_from_the_latent_alone_to_the_noise_alone():
    latent, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    assert torch.equal(noisy_start(latent, noise, 0.0), latent)
    assert torch.equal(noisy_start(latent, noise, 1.0), noise)
    torch.testing.assert_close(noisy_start(latent, noise, 0.25), 0.25 * noise + 0.75 * latent)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, 0.9, 0.9998])
def test_a_latent_left_off_is_taken_up_again(sigma):
    x = torch.randn(SHAPE)
    torch.testing.assert_close(leave_off(x, sigma), x / (1 - sigma))
    torch.testing.assert_close(take_up(leave_off(x, sigma), sigma), x, atol=1e-6, rtol=1e-6)


def test_nothing_of_a_latent_is_left_at_sigma_1():
    x = torch.randn(SHAPE)
    assert not take_up(x, 1.0).any()
    with pytest.raises(InputError, match="sigma 1"):
        leave_off(x, 1.0)
