"""Decode and encode as stages: streaming, cancel, refusals."""

import pytest
import torch

from tests import tiny
from wan_core.errors import InputError, MismatchError, NonFiniteError
from wan_core.runtime.ports import Ports
from wan_core.stages import vae


class CancelledError(Exception):
    """What a host raises."""


@pytest.mark.parametrize("channels", [16, 48])
def test_the_stream_joined_is_the_whole_to_the_bit(channels):
    handle = tiny.vae(channels)
    latent = torch.randn(2, channels, 3, 2, 3)
    whole = vae.decode(handle, latent, Ports())
    assert torch.equal(torch.cat(list(vae.decode_stream(handle, latent, Ports())), dim=1), whole)
    stride = handle.spec.stride_hw
    assert whole.shape == (2, 9, 2 * stride, 3 * stride, 3)
    assert whole.min() >= 0 and whole.max() <= 1


def test_cancel_acts_before_the_next_chunk_and_the_next_decode_is_the_same():
    handle, latent = tiny.vae(), torch.randn(1, 16, 6, 2, 2)
    clean = vae.decode(handle, latent, Ports())
    chunks, pressed = [], []

    def progress(done, total, x0):
        chunks.append(done)
        if done == 3:
            pressed.append(done)

    def check():
        if pressed:
            raise CancelledError

    with pytest.raises(CancelledError):
        vae.decode(handle, latent, Ports(check_cancel=check, progress=progress))
    assert chunks == [1, 2, 3]
    assert torch.equal(vae.decode(handle, latent, Ports()), clean)


def test_pictures_and_latents_meet_in_the_middle():
    """ComfyUI's convention: pictures in 0..1 at one end, latents that are not normalised at the other."""
    handle = tiny.vae()
    clip = torch.rand(1, 5, 16, 24, 3)
    expected = handle.weights.module.encode(clip.movedim(-1, 1) * 2 - 1)
    torch.testing.assert_close(vae.encode(handle, clip, Ports()), expected, atol=1e-5, rtol=0)


def test_a_latent_of_another_model_is_refused_before_anything_is_computed():
    with pytest.raises(MismatchError, match=r"48 channels.*takes 16.*5B"):
        vae.decode(tiny.vae(), torch.randn(1, 48, 1, 2, 2), Ports())


def test_sides_off_the_grid_are_refused_with_the_nearest_that_fit():
    with pytest.raises(InputError, match=r"multiples of 8; got 20x16.*16x16"):
        vae.encode(tiny.vae(), torch.rand(1, 1, 16, 20, 3), Ports())


def test_nan_made_by_a_decode_is_named_and_no_black_frame_comes_out():
    handle, latent = tiny.vae(), torch.randn(1, 16, 3, 2, 2)
    next(handle.weights.module.decoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="latent frame 1 of 3"):
        list(vae.decode_stream(handle, latent, Ports()))


def test_nan_in_a_latent_is_refused_before_it_is_decoded():
    latent = torch.randn(1, 16, 3, 2, 2)
    latent[:, :, 1] = float("nan")
    with pytest.raises(InputError, match="latent holds NaN"):
        vae.decode(tiny.vae(), latent, Ports(progress=lambda *_: pytest.fail("it was decoded")))


def test_a_latent_without_frames_is_one_picture():
    handle, latent = tiny.vae(), torch.randn(1, 16, 2, 2)
    assert torch.equal(vae.decode(handle, latent, Ports()), vae.decode(handle, latent.unsqueeze(2), Ports()))
