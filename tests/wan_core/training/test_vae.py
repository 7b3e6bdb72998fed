"""The VAE in training: equal to the stream, trainable everywhere, and its latents in Wan's own scale."""

import numpy as np
import pytest
import torch

from tests.tiny import randomised
from tests.wan_core.training.tiny_run import VAE, scenes, vae
from wan_core.configs import VaeConfig
from wan_core.models.vae import WanVAE
from wan_core.training.clips import Clip, ClipSize
from wan_core.training.phases import Phase
from wan_core.training.vae_clip import decode_clip, encode_clip
from wan_core.training.vae_task import VaeSettings, VaeTask, psnr, to_video, to_wan_statistics
from wan_core.variants import LATENT_21


def of_random_values() -> WanVAE:
    return randomised(WanVAE(VAE), 3)


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
@torch.no_grad()
def test_a_clip_as_a_whole_is_encoded_as_the_stream_encodes_it(frames):
    made, video = of_random_values(), torch.rand(2, 3, frames, 16, 24) * 2 - 1
    mean, log_variance = encode_clip(made, video)
    torch.testing.assert_close(mean, made.encode(video), atol=1e-5, rtol=1e-5)
    assert log_variance.shape == mean.shape


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@torch.no_grad()
def test_a_latent_as_a_whole_is_decoded_as_the_stream_decodes_it(frames):
    made, latent = of_random_values(), torch.randn(2, VAE.z_dim, frames, 2, 3)
    made.decoder.head["2"].weight.data *= 0.1
    want = made.decode(latent)
    torch.testing.assert_close(decode_clip(made, latent), want, atol=1e-5, rtol=1e-5)


def task(made: WanVAE, frames: int = 5, **settings) -> VaeTask:
    clips = scenes(ClipSize(width=16, height=16, frames=9))
    phases = (Phase(frames=frames, batch=2, steps=4),)
    return VaeTask(made, clips, clips, VaeSettings(phases=phases, bf16=False, **settings))


def test_gradients_reach_every_parameter_and_the_log_variance():
    made = vae()
    task(made).loss(0, 0).backward()
    unmoved = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unmoved
    assert all(row.any() for row in made.conv1.weight.grad[VAE.z_dim :].flatten(1))


def test_a_step_draws_the_same_batch_and_noise_whenever_it_is_run():
    made = vae()
    first = task(made).loss(3, 1)
    torch.randn(7)
    assert torch.equal(task(made).loss(3, 1), first)
    assert not torch.equal(task(made).loss(3, 0), first)
    assert not torch.equal(task(made).loss(2, 1), first)
    assert not torch.equal(task(made, seed=1).loss(3, 1), first)


def test_runs_of_frames_come_from_anywhere_in_a_clip_forwards_and_backwards():
    frames = np.zeros((9, 16, 16, 3), np.uint8) + np.arange(9, dtype=np.uint8)[:, None, None, None]
    made = task(vae())
    made.clips = [Clip(frames=frames, captions=("",))]
    rng = np.random.default_rng(0)
    runs = {tuple(int(frame.max()) for frame in made._run_of(rng, 5)) for _ in range(200)}
    forwards = {tuple(range(start, start + 5)) for start in range(5)}
    assert runs == forwards | {run[::-1] for run in forwards}


@torch.no_grad()
def test_the_latents_are_brought_to_wans_own_statistics_and_the_pictures_stay_the_same():
    made, clips = vae(), scenes(ClipSize(width=32, height=32, frames=5))
    video = to_video(np.stack([clip.frames for clip in clips]))
    (mean, log_variance), before = encode_clip(made, video), made.decode(made.encode(video))
    to_wan_statistics(made, clips)
    z = made.encode(video)
    flat = z.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.tensor(LATENT_21.mean), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(flat.std(1), torch.tensor(LATENT_21.std), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.decode(z), before, atol=1e-4, rtol=0)
    scale = torch.tensor(LATENT_21.std) / mean.transpose(0, 1).flatten(1).std(1)
    want = (0.5 * log_variance).exp() * scale.view(1, -1, 1, 1, 1)
    noise = (0.5 * encode_clip(made, video)[1]).exp()
    torch.testing.assert_close(noise, want, atol=1e-4, rtol=1e-3)  # it grows with the latent


def test_a_vae_of_another_structure_is_refused():
    made = WanVAE(VaeConfig(dim=4, dec_dim=4, z_dim=48, patch=2, shortcuts=True))
    with pytest.raises(NotImplementedError, match=r"Wan 2\.1 structure"):
        encode_clip(made, torch.zeros(1, 3, 1, 32, 32))


def test_psnr_of_a_known_error():
    x = torch.zeros(2, 3, 1, 4, 4)
    assert psnr(x, x + 0.2) == pytest.approx(20, abs=1e-3)


def test_a_sample_leaves_the_weights_in_training_as_they_are(tmp_path):
    made = vae()
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    said = task(made).sample({name: p + 0.01 for name, p in before.items()}, tmp_path / "sample-1")
    assert "dB" in said and (tmp_path / "sample-1.png").is_file()
    assert all(torch.equal(p, before[name]) for name, p in made.named_parameters())
