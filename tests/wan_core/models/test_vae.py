"""The VAEs against their reference vectors, against the public implementation, and as streams."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from wan_core.configs import VaeConfig
from wan_core.models.vae import WanVAE, patchify, regroup, unpatchify
from wan_core.models.vae_layers import rms_norm
from wan_core.models.vae_parts import Box, ConvCache

GOLDENS = Path(__file__).parents[2] / "goldens"
VAE_21 = VaeConfig()
VAE_22 = VaeConfig(dim=160, dec_dim=256, z_dim=48, patch=2, shortcuts=True)
TINY_21 = VaeConfig(dim=6, dec_dim=10, z_dim=5)
TINY_22 = VaeConfig(dim=6, dec_dim=10, z_dim=5, patch=2, shortcuts=True)
TINY = pytest.mark.parametrize("config", [TINY_21, TINY_22], ids=["2.1", "2.2"])


@pytest.fixture(autouse=True)
def one_thread():
    """Layers this small take microseconds; on a busy machine threads wait for one another far longer than that."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(config: VaeConfig) -> WanVAE:
    """Random weights of which each one matters; decoded values stay within [-1, 1]."""
    torch.manual_seed(7)
    vae = WanVAE(config).eval()
    for name, p in vae.named_parameters():
        if name.endswith("gamma"):
            p.data = 1 + 0.1 * torch.randn_like(p)
        else:
            p.data = torch.randn_like(p) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.05)
    vae.decoder.head["2"].weight.data *= 0.1
    return vae


def golden(name: str) -> tuple[WanVAE, dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    path = GOLDENS / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        c = json.loads(file.metadata()["config"])
    tensors, is_22 = load_file(path), c["vae"] == "22"
    config = VaeConfig(
        dim=c["dim"],
        dec_dim=c.get("dec_dim", c["dim"]),
        z_dim=c["z_dim"],
        dim_mult=tuple(c["dim_mult"]),
        num_res_blocks=c["num_res_blocks"],
        temporal_downsample=tuple(c["temperal_downsample"]),
        patch=2 if is_22 else 1,
        shortcuts=is_22,
    )
    vae = WanVAE(config).eval()
    vae.load_state_dict({k.removeprefix("sd."): v for k, v in tensors.items() if k.startswith("sd.")})
    mean, std = (tensors[f"in.latents_{s}"].view(1, -1, 1, 1, 1) for s in ("mean", "std"))
    return vae, tensors, mean, std


@pytest.mark.parametrize("name", ["vae21", "vae21_17f_z16", "vae22"])
def test_encoding_equals_the_reference(name):
    vae, tensors, mean, std = golden(name)
    clips = [k for k in tensors if k.startswith("in.enc_video.")]
    assert clips
    for key in clips:
        want = tensors[key.replace("in.enc_video", "out.enc_latent")]
        torch.testing.assert_close((vae.encode(tensors[key]) - mean) / std, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["vae21", "vae21_17f_z16", "vae22"])
def test_decoding_equals_the_reference(name):
    vae, tensors, mean, std = golden(name)
    clips = [k for k in tensors if k.startswith("in.dec_latent.")]
    assert clips
    for key in clips:
        want = tensors[key.replace("in.dec_latent", "out.dec_video")]
        torch.testing.assert_close(vae.decode(tensors[key] * std + mean), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("version", "config"), [("2_1", VAE_21), ("2_2", VAE_22)])
def test_names_and_shapes_are_the_official_ones(version, config):
    with torch.device("meta"):
        vae = WanVAE(config)
    want = json.loads((GOLDENS / "keys" / f"vae_{version}.json").read_text())
    assert {name: list(t.shape) for name, t in vae.state_dict().items()} == want


@pytest.mark.parametrize(("height", "width"), [(16, 48), (48, 16), (32, 32)])
@pytest.mark.parametrize(("version", "config"), [("2_1", TINY_21), ("2_2", TINY_22)])
def test_it_agrees_with_the_diffusers_vae(version, config, height, width):
    from diffusers import AutoencoderKLWan

    extra = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
    theirs = AutoencoderKLWan(
        base_dim=config.dim,
        decoder_base_dim=config.dec_dim,
        z_dim=config.z_dim,
        scale_factor_spatial=config.stride_hw,
        **(extra if config.shortcuts else {}),
    ).eval()
    ours = seeded(config)
    names = json.loads((GOLDENS / "keys" / f"vae_{version}.official_to_diffusers.json").read_text())
    theirs.load_state_dict({names[name]: t for name, t in ours.state_dict().items()})
    video = torch.rand(2, 3, 13, height, width) * 2 - 1
    latent = torch.randn(2, config.z_dim, 4, height // config.stride_hw, width // config.stride_hw)
    with torch.no_grad():
        want_mu, want_video = theirs.encode(video).latent_dist.mean, theirs.decode(latent).sample
    assert want_video.abs().max() < 1  # nothing was clamped
    torch.testing.assert_close(ours.encode(video), want_mu, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.decode(latent), want_video, atol=1e-5, rtol=0)


@TINY
@pytest.mark.parametrize("cuts", [[1] * 11, [11], [4, 4, 3], [2, 9], [1, 4, 4, 2]])
def test_how_a_clip_is_cut_changes_no_bit_of_its_latent(config, cuts):
    vae, side = seeded(config), 2 * config.stride_hw
    video = torch.rand(1, 3, 11, side, side) * 2 - 1
    streamed = list(vae.encode_stream(iter(video.split(cuts, dim=2))))
    assert [run.shape for run in streamed] == [(1, config.z_dim, 1, 2, 2)] * 3
    assert torch.equal(torch.cat(streamed, dim=2), vae.encode(video[:, :, :9]))


@TINY
@pytest.mark.parametrize("cuts", [[1, 1, 1, 1], [4], [3, 1], [2, 2]])
def test_how_a_latent_is_cut_changes_no_bit_of_its_frames(config, cuts):
    vae = seeded(config)
    latent = torch.randn(1, config.z_dim, 4, 2, 3)
    streamed = list(vae.decode_stream(iter(latent.split(cuts, dim=2))))
    assert [run.shape[2] for run in streamed] == [1, 4, 4, 4]
    assert torch.equal(torch.cat(streamed, dim=2), vae.decode(latent))


@TINY
def test_frames_do_not_depend_on_the_future(config):
    vae = seeded(config)
    latent = torch.randn(1, config.z_dim, 4, 2, 2)
    changed = latent.clone()
    changed[:, :, 2:] += 1
    before, after = vae.decode(latent), vae.decode(changed)
    assert torch.equal(before[:, :, :5], after[:, :, :5])
    assert not torch.equal(before[:, :, 5:], after[:, :, 5:])


@TINY
def test_two_streams_at_once_do_not_disturb_each_other(config):
    vae = seeded(config)
    a, b = torch.randn(2, 1, config.z_dim, 3, 2, 2)
    together = list(zip(vae.decode_stream([a]), vae.decode_stream([b])))
    assert torch.equal(torch.cat([run for run, _ in together], dim=2), vae.decode(a))
    assert torch.equal(torch.cat([run for _, run in together], dim=2), vae.decode(b))


@TINY
def test_a_batch_of_two_equals_two_singles(config):
    vae, side = seeded(config), 2 * config.stride_hw
    video = torch.rand(2, 3, 9, side, side + config.stride_hw) * 2 - 1
    latent = torch.randn(2, config.z_dim, 3, 3, 1)
    for run, x in ((vae.encode, video), (vae.decode, latent)):
        torch.testing.assert_close(run(x), torch.cat([run(x[:1]), run(x[1:])]), atol=5e-6, rtol=0)


@TINY
@torch.no_grad()
def test_the_cache_holds_at_most_two_frames_a_convolution_and_does_not_grow(config):
    vae, stride, box = seeded(config), config.stride_hw, Box.whole(2, 1)

    def encode(run, cache):
        vae.encode_joined(vae.encode_part(run, cache, box), cache)

    def decode(run, cache):
        list(vae.decode_part(vae.decode_joined(run, cache), cache, box))

    runs = {
        encode: regroup([torch.rand(1, 3, 21, 2 * stride, stride)], 1, 4),
        decode: torch.randn(1, config.z_dim, 11, 2, 1).split([1, 4, 1, 2, 2, 1], dim=2),
    }
    for work, inputs in runs.items():
        cache: ConvCache = {}
        sizes = []
        for run in inputs:
            work(run, cache)
            assert all(past.shape[2] <= 2 for past in cache.values())
            sizes.append(sum(past.untyped_storage().nbytes() for past in cache.values()))
        assert len(sizes) == 6
        assert len(set(sizes)) == 1
        assert sizes[0] == sum(past.nbytes for past in cache.values())


@TINY
def test_a_stream_keeps_neither_what_it_took_nor_what_it_gave(config):
    vae = seeded(config)
    taken, given = [], []

    def latents():
        for _ in range(4):
            piece = torch.randn(1, config.z_dim, 1, 2, 2)
            taken.append(weakref.ref(piece))
            yield piece
            del piece
            assert not any(ref() is not None for ref in taken[:-1])

    for run in vae.decode_stream(latents()):
        given.append(weakref.ref(run))
        del run
        assert given[-1]() is None
    assert len(given) == len(taken) == 4


@TINY
def test_it_runs_in_the_dtype_of_its_weights(config):
    vae, side = seeded(config), 2 * config.stride_hw
    video, latent = torch.rand(1, 3, 5, side, side) * 2 - 1, torch.randn(1, config.z_dim, 2, 2, 2)
    exact = vae.encode(video), vae.decode(latent)
    vae.to(torch.bfloat16)
    for got, want in zip((vae.encode(video), vae.decode(latent)), exact):
        assert got.dtype == torch.bfloat16
        assert (got.float() - want).abs().mean() < 0.03 * want.abs().mean()
    vae.to(torch.float64)
    assert vae.decode(latent).dtype == torch.float64


@TINY
def test_no_gradients_are_kept(config):
    vae = seeded(config)
    assert all(p.requires_grad for p in vae.parameters())
    assert not any(run.requires_grad for run in vae.decode_stream([torch.randn(1, config.z_dim, 2, 2, 2)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_norm_leaves_an_empty_pixel_at_zero_and_survives_large_ones(dtype):
    x = torch.zeros(1, 16, 1, 1, 3, dtype=dtype)
    x[..., 1], x[..., 2] = 30000, 1e-3
    got = rms_norm(x, torch.ones(16, 1, 1, 1, dtype=dtype))
    want = torch.tensor([0.0, 1.0, 1.0], dtype=dtype).expand_as(got)
    torch.testing.assert_close(got, want, atol=1e-2, rtol=0)


def test_a_patch_counts_rows_before_columns():
    x = torch.arange(4.0).view(1, 1, 1, 2, 2)  # [[0, 1], [2, 3]]
    assert patchify(x, 2).flatten().tolist() == [0, 2, 1, 3]
    assert torch.equal(unpatchify(patchify(x, 2), 2), x)
