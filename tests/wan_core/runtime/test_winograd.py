"""Convolutions with fewer multiplications, against PyTorch's own in float64."""

import pytest
import torch
import torch.nn.functional as F

from tests.wan_core.stages.live_bytes import LiveBytes
from wan_core.models.vae_layers import CausalConv3d, RMSNorm, pixels_last
from wan_core.runtime import winograd

WIDTH = 67


def picture(batch: int, channels: int, frames: int, height: int = 13, width: int = WIDTH) -> torch.Tensor:
    out = pixels_last(batch, channels, frames, height, width, like=torch.empty(0))
    return out.copy_(torch.randn(out.shape))


def doubled(out: torch.Tensor, x: torch.Tensor) -> None:
    torch.mul(x, 2, out=out)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("count", winograd.POINTS)
def test_the_sums_are_the_three_taps(count):
    """``out @ ((taps @ w) * (into @ d))`` is ``d`` convolved with ``w``."""
    into, taps, out = winograd.minimal(count)
    given, weight = torch.randn(count + 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    wanted = F.conv1d(given[None, None], weight[None, None])[0, 0]
    torch.testing.assert_close(out @ ((taps @ weight) * (into @ given)), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("frames", winograd.POINTS)
@pytest.mark.parametrize(("strips", "into", "out"), [(1, 40, 36), (2, 40, 36), (3, 36, 80), (9, 40, 36)])
def test_it_is_the_convolution(strips, into, out, frames, height, monkeypatch):
    monkeypatch.setattr(winograd, "VALUES", strips * WIDTH * max(into, out))
    past, x = picture(2, into, 2, height), picture(2, into, frames, height)
    weight, bias = torch.randn(out, into, 3, 3, 3) / 30, torch.randn(out)
    run = torch.cat([past, 2 * x], dim=2).double()
    wanted = F.conv3d(run, weight.double(), bias.double(), padding=(0, 1, 1))
    room = pixels_last(2, out, frames, height, WIDTH, like=x)
    made = winograd.conv3d(past, x, weight, bias, doubled, room)
    assert made is room
    assert ((made - wanted).norm() / wanted.norm()).item() < 2e-6
    assert (made - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert torch.equal(past, run[:, :, -2:].float())


@pytest.mark.parametrize("frames", winograd.POINTS)
@pytest.mark.parametrize(("into", "out"), [(48, 48), (32, 64), (64, 32)])
@pytest.mark.parametrize("strips", [1, 3, 9])
def test_it_takes_the_room_that_is_planned_for(strips, into, out, frames, monkeypatch):
    """In one go and in several."""
    monkeypatch.setattr(winograd, "VALUES", strips * WIDTH * max(into, out))
    past, x = picture(1, into, 2), picture(1, into, frames)
    weight, bias = torch.randn(out, into, 3, 3, 3), torch.randn(out)
    made = pixels_last(1, out, frames, 13, WIDTH, like=x)
    with LiveBytes() as memory:
        winograd.conv3d(past, x, weight, bias, doubled, made)
    planned = 4 * winograd.room(frames, 13, WIDTH, into, out)
    assert 0.9 * planned <= memory.peak <= 1.01 * planned


@pytest.mark.parametrize("strips", [1, 2, 9])
def test_it_may_be_written_over_what_goes_in(strips, monkeypatch):
    monkeypatch.setattr(winograd, "VALUES", strips * WIDTH * 32)
    x, weight, bias = picture(1, 32, 4), torch.randn(32, 32, 3, 3, 3) / 30, torch.randn(32)
    past = [picture(1, 32, 2)] * 2
    apart = winograd.conv3d(past[0].clone(), x, weight, bias, doubled, torch.empty_like(x))
    assert torch.equal(winograd.conv3d(past[1].clone(), x, weight, bias, doubled, x), apart)


@pytest.mark.parametrize("frames", winograd.POINTS)
def test_a_stream_is_the_same_with_it_and_without(frames, monkeypatch):
    conv, norm = CausalConv3d(48, 32), RMSNorm(48)
    norm.gamma.copy_(1 + 0.1 * torch.randn(norm.gamma.shape))
    runs = [picture(1, 48, 1), picture(1, 48, frames), picture(1, 48, frames)]
    counted, plain = [], winograd.conv3d
    monkeypatch.setattr(winograd, "conv3d", lambda *arguments: counted.append(1) or plain(*arguments))
    made, wanted = [], []
    for results, least in ((made, winograd.LEAST_WIDTH), (wanted, 1 << 30)):
        monkeypatch.setattr(winograd, "LEAST_WIDTH", least)
        cache = {}
        results.extend(conv(x, cache, norm) for x in runs)
        results.append(cache[conv])
    assert len(counted) == 2
    for one, other in zip(made, wanted, strict=True):
        assert ((one - other).norm() / other.norm()).item() < 3e-6


@pytest.mark.parametrize(
    ("height", "width", "channels", "strips"),
    [(128, 128, 96, 8), (60, 40, 384, 5), (36, 32, 384, 5), (104, 60, 192, 9), (480, 832, 96, 2), (5, 999, 384, 1)],
)
def test_few_rows_are_beyond_the_picture(height, width, channels, strips):
    assert winograd.strips_at_once(height, width, channels) == strips
    assert -(-height // (4 * strips)) * 4 * strips <= 1.12 * height + 4


def test_what_it_is_not_for():
    weight = torch.randn(32, 32, 3, 3, 3)
    assert winograd.pays(picture(1, 32, 4), weight)
    assert not winograd.pays(picture(1, 32, 4).bfloat16(), weight), "too inexact"
    assert not winograd.pays(picture(1, 32, 3), weight), "no sums"
    assert not winograd.pays(picture(1, 32, 4, width=24), weight), "slower"
    assert not winograd.pays(picture(1, 32, 4), weight[:3]), "slower"
    assert not winograd.pays(picture(1, 32, 4), weight[..., :1, :1]), "a kernel of one pixel"
    with torch.enable_grad():
        assert not winograd.pays(picture(1, 32, 4), weight), "no gradient"
