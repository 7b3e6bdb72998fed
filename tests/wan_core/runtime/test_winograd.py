"""Convolutions over time with fewer multiplications, against PyTorch's own in float64."""

import pytest
import torch
import torch.nn.functional as F

from wan_core.models.vae_layers import CausalConv3d, RMSNorm, pixels_last
from wan_core.runtime import winograd

HEIGHT, WIDTH = 29, 19


def picture(batch: int, channels: int, frames: int, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    out = pixels_last(batch, channels, frames, height, width, like=torch.empty(0))
    return out.copy_(torch.randn(out.shape))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("rows_at_once", [1, 7, HEIGHT])
@pytest.mark.parametrize("frames", [2, 4])
def test_it_is_the_convolution(frames, rows_at_once, monkeypatch):
    into, out = 40, 36
    monkeypatch.setattr(winograd, "STRIP_BYTES", (frames + 2) * WIDTH * into * 4 * rows_at_once)
    past, x = picture(2, into, 2), picture(2, into, frames)
    weight, bias = torch.randn(out, into, 3, 3, 3) / 30, torch.randn(out)
    made, kept = winograd.conv3d(past, x, weight, bias, lambda out, x: torch.mul(x, 2, out=out))
    run = torch.cat([past, 2 * x], dim=2).double()
    wanted = F.conv3d(run, weight.double(), bias.double(), padding=(0, 1, 1))
    assert made.shape == wanted.shape
    assert ((made - wanted).norm() / wanted.norm()).item() < 3e-6
    assert (made - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert torch.equal(kept, run[:, :, -2:].float())
    assert made.movedim(1, -1).is_contiguous() and kept.movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("frames", [2, 4])
def test_a_stream_is_the_same_with_it_and_without(frames, monkeypatch):
    conv, norm = CausalConv3d(48, 32), RMSNorm(48)
    norm.gamma.copy_(1 + 0.1 * torch.randn(norm.gamma.shape))
    runs = [picture(1, 48, 1), picture(1, 48, frames), picture(1, 48, frames)]
    counted = []
    plain = winograd.conv3d
    monkeypatch.setattr(winograd, "conv3d", lambda *arguments: counted.append(1) or plain(*arguments))
    made, wanted = [], []
    for results, least in ((made, winograd.LEAST_AREA), (wanted, 1 << 30)):
        monkeypatch.setattr(winograd, "LEAST_AREA", least)
        cache = {}
        results.extend(conv(x, cache, norm) for x in runs)
        results.append(cache[conv])
    assert len(counted) == 2
    for one, other in zip(made, wanted, strict=True):
        assert ((one - other).norm() / other.norm()).item() < 5e-6


def test_what_it_is_not_for():
    weight = torch.randn(32, 32, 3, 3, 3)
    assert winograd.pays(picture(1, 32, 4), weight)
    assert not winograd.pays(picture(1, 32, 4).bfloat16(), weight), "too inexact"
    assert not winograd.pays(picture(1, 32, 3), weight), "no matrices"
    assert not winograd.pays(picture(1, 32, 4, 8, 8), weight), "slower"
    assert not winograd.pays(picture(1, 32, 4), weight[:3]), "slower"
    assert not winograd.pays(picture(1, 32, 4), weight[..., :1, :1]), "a kernel of one pixel"
    with torch.enable_grad():
        assert not winograd.pays(picture(1, 32, 4), weight), "no gradient"
