"""The transformer in training: it must see exactly what it is given at inference."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import randomised
from tests.wan_core.training.tiny_run import DIT, TEXT, scenes, write_files
from wan_core.conditioning.known_frames import concat_channels, known_mask
from wan_core.errors import TrainingError
from wan_core.grid import grid_of
from wan_core.models.dit import WanDiT
from wan_core.models.umt5 import Umt5Encoder
from wan_core.runtime.ports import Ports
from wan_core.stages.image import known_latent
from wan_core.stages.load import load_text_encoder, load_vae
from wan_core.stages.text import encode_text
from wan_core.training.clips import ClipSize
from wan_core.training.dit_task import DitSettings, DitTask
from wan_core.training.flow import SigmaSettings
from wan_core.training.latents import EncodedClips, encode_clips
from wan_core.training.phases import Phase
from wan_core.training.show import COMPUTE, QUIET
from wan_core.training.text_rows import encode_batch, fold
from wan_core.variants import LATENT_21

SIZE = ClipSize(width=32, height=32, frames=9)


@pytest.fixture(scope="module")
def handles(tmp_path_factory):
    paths = write_files(tmp_path_factory.mktemp("files"))
    return (
        load_vae(paths["vae"], compute=COMPUTE, dtype="fp32"),
        load_text_encoder(paths["text-encoder"], compute=COMPUTE, dtype="fp32"),
    )


@pytest.fixture(scope="module")
def encoded(handles, tmp_path_factory) -> EncodedClips:
    path = tmp_path_factory.mktemp("clips") / "clips.safetensors"
    return encode_clips(scenes(SIZE), *handles, images=True, rows=True, key="a", text_key="t", path=path, ports=QUIET)


def task(encoded: EncodedClips, *, drop_text=0.1, images=True, frames=9, batch=3, checkpoint=False, encoder=None):
    dit = randomised(WanDiT(replace(DIT, in_dim=36 if images else 16, text_len=0)), 4).requires_grad_(True)
    settings = DitSettings(
        phases=(Phase(frames=frames, batch=batch, steps=9),),
        sigma=SigmaSettings(),
        drop_text=drop_text,
        bf16=False,
        checkpoint=checkpoint,
    )
    return DitTask(dit, encoded if images else replace(encoded, images=None), settings, encoder=encoder)


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_training_sees_the_known_frame_as_inference_gives_it(handles, encoded, frames):
    """Mask and image channels: the stages' own path from the clip's first frame, for every length of clip."""
    vae, _ = handles
    grid = grid_of(LATENT_21, width=32, height=32, frames=frames)
    x = torch.randn(6, 16, *grid.latent_shape)
    seen = task(encoded)._with_images(x, np.arange(6))
    assert torch.equal(seen[:, :16], x)
    for index, clip in enumerate(scenes(SIZE)):
        first = torch.from_numpy(clip.frames[:1]).float() / 255
        latent = known_latent(vae, grid, first, None, Ports())
        want = concat_channels(latent, known_mask(grid, 1, 0), LATENT_21, x[:1])
        torch.testing.assert_close(seen[index : index + 1, 16:], want, atol=2e-5, rtol=1e-5)


def test_the_latents_are_what_the_vae_makes_of_the_clips_and_normalised(handles, encoded):
    vae, _ = handles
    for index, clip in enumerate(scenes(SIZE)):
        video = torch.from_numpy(clip.frames.copy())[None].permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        want = LATENT_21.normalise(vae.weights.module.encode(video))
        torch.testing.assert_close(encoded.latents[index : index + 1], want, atol=2e-5, rtol=1e-5)


def test_every_caption_has_the_rows_that_inference_encodes(handles, encoded):
    _, encoder = handles
    for clip, choices in zip(scenes(SIZE), encoded.captions):
        for text, which in zip(clip.captions, choices):
            want = encode_text(encoder, text, Ports())[0]
            rows = encoded.rows[which]
            torch.testing.assert_close(rows, want[: len(rows)])
            assert not want[len(rows) :].any()
    torch.testing.assert_close(encoded.rows[-1], encode_text(encoder, "", Ports())[0, : len(encoded.rows[-1])])


def plain_and_folded(texts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    plain = randomised(WanDiT(DIT), 4)
    bare = WanDiT(replace(DIT, text_len=0)).eval()
    bare.load_state_dict(plain.state_dict())
    x, t = torch.randn(len(texts), 16, 2, 4, 4), torch.linspace(900, 100, len(texts))
    padded = torch.stack([torch.cat([one, one.new_zeros(512 - len(one), one.shape[1])]) for one in texts])
    text, bias = fold(texts)
    with torch.no_grad():
        return plain(x, t, padded), bare(x, t, text, text_bias=bias)


@pytest.mark.parametrize("lengths", [(1,), (3, 17, 40), (511,), (512, 2)])
def test_folded_rows_give_what_512_padded_rows_give(lengths):
    want, got = plain_and_folded([torch.randn(n, TEXT.dim) for n in lengths])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_texts_encoded_as_a_batch_are_as_each_by_itself():
    encoder = randomised(Umt5Encoder(TEXT), 5)
    ids = [[5, 6, 1], [7, 1], [8, 9, 10, 11, 12, 1]]
    for one, rows in zip(ids, encode_batch(encoder, ids)):
        alone = encoder(torch.tensor([one]), torch.ones(1, len(one)))[0]
        torch.testing.assert_close(rows, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_so_many_captions_are_left_out(encoded, share):
    made, rng, count = task(encoded, drop_text=share), np.random.default_rng(0), 4000
    empty = len(encoded.ids) - 1
    dropped = sum(made._caption(0, rng) == empty for _ in range(count))
    assert abs(dropped - share * count) <= 4 * (share * (1 - share) * count) ** 0.5


def test_every_caption_of_a_clip_is_used(encoded):
    made, rng = task(encoded, drop_text=0), np.random.default_rng(0)
    assert {made._caption(2, rng) for _ in range(100)} == set(encoded.captions[2])


@pytest.mark.parametrize("images", [False, True])
def test_gradients_reach_every_parameter_of_transformer_and_text_encoder(encoded, images):
    made = task(encoded, images=images, drop_text=0, encoder=randomised(Umt5Encoder(TEXT), 5).requires_grad_(True))
    made.loss(0, 0).backward()
    unmoved = [name for name, p in made.parameters().items() if p.grad is None or not p.grad.any()]
    assert not unmoved


def test_gradient_checkpointing_gives_the_same_gradients(encoded):
    grads = []
    for checkpoint in (False, True):
        made = task(encoded, checkpoint=checkpoint)
        made.loss(1, 0).backward()
        grads.append({name: p.grad for name, p in made.parameters().items()})
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_a_step_draws_the_same_batch_noise_and_captions_whenever_it_is_run(encoded):
    made = task(encoded)
    first = made.loss(3, 1)
    torch.randn(7)
    assert torch.equal(made.loss(3, 1), first)
    assert not torch.equal(made.loss(3, 0), first)
    assert not torch.equal(made.loss(4, 1), first)


class Counted:
    """Clips that know how often they were read."""

    def __init__(self):
        self.clips, self.reads = scenes(SIZE), 0

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        self.reads += 1
        return self.clips[index]


def test_the_first_pass_is_made_once_and_again_under_another_key(handles, tmp_path):
    clips, path = Counted(), tmp_path / "clips.safetensors"

    def encode(key: str) -> EncodedClips:
        return encode_clips(clips, *handles, images=True, rows=True, key=key, text_key="t", path=path, ports=QUIET)

    first, made = encode("a"), clips.reads
    assert made
    second = encode("a")
    assert clips.reads == made
    assert (second.ids, second.captions) == (first.ids, first.captions)
    assert torch.equal(second.latents, first.latents) and torch.equal(second.images, first.images)
    assert all(torch.equal(a, b) for a, b in zip(second.rows, first.rows))
    encode("b")
    assert clips.reads == 2 * made


@pytest.mark.parametrize("content", [b"not a file", None])
def test_a_file_that_is_no_first_pass_is_refused_and_left_alone(handles, tmp_path, content):
    path = tmp_path / "clips.safetensors"
    if content is None:
        path = write_files(tmp_path)["vae"]
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(TrainingError, match="no encoded clips that can be read"):
        encode_clips(scenes(SIZE), *handles, images=False, rows=False, key="a", text_key="t", path=path, ports=QUIET)
    assert path.read_bytes() == before


def test_a_text_encoder_that_is_trained_is_not_asked_for_rows(handles, tmp_path):
    path = tmp_path / "clips.safetensors"
    made = encode_clips(scenes(SIZE), *handles, images=False, rows=False, key="a", text_key="t", path=path, ports=QUIET)
    assert made.rows is None and made.images is None
    assert len(made) == 6


def test_a_later_run_adds_what_an_earlier_one_did_without(handles, tmp_path):
    clips, path = Counted(), tmp_path / "clips.safetensors"

    def encode(text_key: str, **wanted: bool) -> EncodedClips:
        return encode_clips(clips, *handles, key="a", text_key=text_key, path=path, ports=QUIET, **wanted)

    bare = encode("t", images=False, rows=False)
    full = encode("t", images=True, rows=True)
    assert torch.equal(full.latents, bare.latents) and full.images is not None and full.rows is not None
    frames_read = clips.reads
    assert encode("another", images=False, rows=True).images is None
    assert clips.reads - frames_read == len(bare), "other captions need the clips' captions, not their pictures"
