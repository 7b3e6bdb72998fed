"""A picture in parts: the same numbers as whole, and what each part has to see is what the layers say."""

import itertools

import pytest
import torch
from torch import nn

from wan_core.configs import VaeConfig
from wan_core.models.vae import LATENTS_AT_ONCE as AT_ONCE
from wan_core.models.vae import WanVAE, regroup
from wan_core.models.vae_layers import (
    CausalConv3d,
    Downsample,
    ResidualBlock,
    Upsample,
    phase_kernel,
    pixels_last,
)
from wan_core.models.vae_parts import Box, Span, needs, run_local
from wan_core.stages.vae_work import cut

from .test_vae import TINY, VAE_21, VAE_22, one_thread, seeded  # noqa: F401 - a fixture

LAYERS = {
    "convolution": lambda: CausalConv3d(4, 6),
    "residual block": lambda: ResidualBlock(4, 6),
    "downsample": lambda: Downsample(4, temporal=True),
    "upsample": lambda: Upsample(4, 2, temporal=True),
}


def random(layer: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for p in layer.parameters():
        p.data = torch.randn_like(p)
    return layer.double().requires_grad_(False)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("lo", "hi"), [(0, 3), (4, 9), (7, 12), (0, 12), (11, 12)])
def test_a_layer_depends_on_just_what_it_says(name, lo, hi):
    """Everything outside ``before`` may change without a change in the stretch; its outermost pixels may not."""
    layer = random(LAYERS[name]())
    size = layer.after(Span(0, 24, 24)).size
    want = Span(lo * size // 12, hi * size // 12, size)
    need = layer.before(want)
    x, whole = torch.randn(1, 4, 1, 1, need.size, dtype=torch.float64), Span(0, need.size, need.size)

    def result(x):
        cache = {}
        return [layer(x.transpose(-1, -2).expand(-1, -1, n, -1, 3), cache)[..., want.lo : want.hi, :] for n in (1, 4)]

    before = result(x)
    outside = x.clone()
    outside[..., : need.lo] += 1
    outside[..., need.hi :] -= 1
    assert all(torch.equal(a, b) for a, b in zip(before, result(outside)))
    for edge in (need.lo, need.hi - 1):
        moved = x.clone()
        moved[..., edge] += 1
        assert not torch.equal(before[1], result(moved)[1])
    assert need.within(whole) == slice(need.lo, need.hi)


@pytest.mark.parametrize("config", [VAE_21, VAE_22], ids=["2.1", "2.2"])
def test_the_halo_follows_from_the_layers(config):
    """Of the decoder at full width: 13 pixels of the latent grid for VAE 2.1, as counted by hand."""
    with torch.device("meta"):
        vae = WanVAE(config)
    scale = config.stride_hw // config.patch
    need = needs(vae.decoder.local, Box(Span(100, 120, 400), Span(0, 20, 400)).times(scale))[0]
    assert (need.rows.lo, need.rows.hi) == (100 - 13, 120 + 13)
    assert (need.cols.lo, need.cols.hi) == (0, 20 + 13)


def decode_in_parts(vae: WanVAE, latent: torch.Tensor, down: int, across: int) -> torch.Tensor:
    frames, height, width = latent.shape[2:]
    stride, cache = vae.config.stride_hw, {}
    features = [vae.decode_joined(run, cache) for run in regroup([latent], 1, AT_ONCE, keep_rest=True)]
    got = torch.full((1, 3, 4 * frames - 3, height * stride, width * stride), float("nan"))
    for rows in cut(height, down):
        for cols in cut(width, across):
            box, part = Box(rows, cols), {}
            videos = [video for x in features for video in vae.decode_part(x, part, box)]
            assert [video.shape[2] for video in videos] == [1] + [4] * (frames - 1)
            box.times(stride).of(got).copy_(torch.cat(videos, dim=2))
    return got


# Wider than twice what a part sees beyond its edges, so that parts are parts.
LONG = pytest.mark.parametrize(("down", "across"), [(1, 2), (2, 1), (1, 3), (1, 5), (4, 1)])


@TINY
@LONG
def test_parts_of_a_decode_are_the_whole(config, down, across):
    vae = seeded(config)
    latent = torch.randn(1, config.z_dim, 3, *((2, 33) if across > 1 else (33, 2)))
    whole = vae.decode(latent)
    assert (decode_in_parts(vae, latent, down, across) - whole).norm() <= 1e-6 * whole.norm()


@TINY
def test_parts_both_ways_of_one_picture(config):
    vae = seeded(config)
    latent = torch.randn(1, config.z_dim, 1, 9, 11)
    whole = vae.decode(latent)
    assert (decode_in_parts(vae, latent, 2, 3) - whole).norm() <= 1e-6 * whole.norm()


@TINY
@LONG
@pytest.mark.parametrize("frames", [1, 9])
def test_parts_of_an_encode_are_the_whole(config, down, across, frames):
    vae, stride = seeded(config), config.stride_hw
    height, width = (1, 21) if across > 1 else (21, 1)
    clip = torch.rand(1, 3, frames, height * stride, width * stride) * 2 - 1
    whole = vae.encode(clip)
    runs = list(regroup([clip], 1, 4))
    features = [clip.new_full((1, 4 * config.dim, 1, height, width), float("nan")) for _ in runs]
    for rows in cut(height, down):
        for cols in cut(width, across):
            box, part = Box(rows, cols), {}
            for run, feature in zip(runs, features):
                box.of(feature).copy_(vae.encode_part(vae.pixels_of(box).of(run), part, box))
    cache = {}
    got = torch.cat([vae.encode_joined(feature, cache) for feature in features], dim=2)
    assert (got - whole).norm() <= 1e-6 * whole.norm()


def test_a_part_costs_its_halo_once_a_level_and_no_more():
    """What a later level does not need is cut off before it."""
    seen = []

    class Seeing(ResidualBlock):
        def forward(self, x, cache):
            seen.append(x.shape[-1])
            return super().forward(x, cache)

    layers = [Seeing(2, 2), Upsample(2, 2, False), Seeing(2, 2)]
    want = Box(Span(0, 2, 2), Span(40, 60, 200))
    have = needs(layers, want)[0]
    x = torch.randn(1, 2, 1, len(have.rows), len(have.cols))
    assert [made.shape[-1] for made in run_local(layers, x, {}, needs(layers, want))] == [20]
    assert seen == [len(have.cols), 24]


@pytest.mark.parametrize(("row", "col"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_four_small_kernels_do_what_one_does_on_doubled_pixels(row, col):
    torch.manual_seed(1)
    weight, x = torch.randn(5, 3, 3, 3, dtype=torch.float64), torch.randn(1, 3, 4, 6, dtype=torch.float64)
    doubled = nn.functional.interpolate(x, scale_factor=2, mode="nearest-exact")
    want = nn.functional.conv2d(doubled, weight, padding=1)[..., row::2, col::2]
    got = nn.functional.conv2d(x, phase_kernel(weight, row, col), padding=1)[..., row : row + 4, col : col + 6]
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_an_axis_is_cut_without_a_gap():
    for size in (1, 2, 7, 60):
        for count in range(1, min(size, 5) + 1):
            spans = cut(size, count)
            assert spans[0].lo == 0 and spans[-1].hi == size
            assert all(a.hi == b.lo for a, b in itertools.pairwise(spans))
            assert all(len(span) >= 1 for span in spans)


def test_a_cut_out_is_rounded_as_a_copy_of_it_is():
    """In bfloat16, where a block changes its width: a product and its bias are rounded together."""
    torch.manual_seed(0)
    block = ResidualBlock(16, 32).bfloat16().eval()
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    whole = pixels_last(1, 16, 1, 6, 40, like=torch.empty(0, dtype=torch.bfloat16)).copy_(torch.randn(1, 16, 1, 6, 40))
    part = whole[..., 3:31]
    copy = pixels_last(*part.shape, like=part).copy_(part)
    with torch.no_grad():
        assert torch.equal(block(part, {}), block(copy, {}))


def test_bf16_in_parts_is_no_further_from_float32_than_whole():
    config = VaeConfig(dim=16, dec_dim=16, z_dim=8)
    exact = seeded(config)
    latent = torch.randn(1, 8, 2, 3, 33)
    reference = exact.decode(latent)
    narrow = seeded(config).bfloat16()
    made = narrow.decode(latent), decode_in_parts(narrow, latent, 1, 4)
    errors = [(x.float() - reference).norm() / reference.norm() for x in made]
    assert errors[1] <= 1.01 * errors[0]
