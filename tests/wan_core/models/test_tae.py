"""The tiny decoder, frame by frame, against all frames at once in the order of the original (madebyollin/taehv)."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.tae_files import SMALL, TAE_21, TAE_22, tensors
from tests.wan_core.stages.live_bytes import LiveBytes
from wan_core.configs import TaeConfig
from wan_core.models.tae import WanTAE
from wan_core.models.vae_parts import Box
from wan_core.stages.vae_work import choices, decode_flops

CONFIGS = {"2.1 small": SMALL[16], "2.2 small": SMALL[48], "2.1": TAE_21, "2.2": TAE_22}


def network(config: TaeConfig) -> WanTAE:
    made = WanTAE(config)
    made.load_state_dict({name: t for name, t in tensors(config).items() if name.startswith("decoder.")})
    return made.requires_grad_(False)


def whole(config: TaeConfig, z_BCThw: Tensor) -> Tensor:
    """Every layer on all frames of a clip, in the order of the original; ``[B, 3, 4 * T - 3, H, W]`` in [0, 1]."""
    state = tensors(config)

    def conv(x: Tensor, name: str) -> Tensor:
        weight = state[f"decoder.{name}.weight"]
        return F.conv2d(x, weight, state.get(f"decoder.{name}.bias"), padding=weight.shape[-1] // 2)

    def clip(x: Tensor) -> Tensor:
        x = torch.tanh(x / 3) * 3
        x = conv(x, "1").relu()
        for level, frames in enumerate((1, 2, 2)):
            for i in range(3 + 6 * level, 6 + 6 * level):
                before = torch.cat((torch.zeros_like(x[:1]), x[:-1]))
                inside = torch.cat((x, before), dim=1)
                for part in (0, 2):
                    inside = conv(inside, f"{i}.conv.{part}").relu()
                x = (conv(inside, f"{i}.conv.4") + x).relu()
            x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
            x = conv(x, f"{7 + 6 * level}.conv")
            x = x.reshape(len(x) * frames, -1, *x.shape[2:])
            x = conv(x, str(8 + 6 * level))
        return F.pixel_shuffle(conv(x.relu(), "22"), config.patch)[3:].clamp(0, 1)

    return torch.stack([clip(one.movedim(0, 1)).movedim(0, 1) for one in z_BCThw])


def streamed(made: WanTAE, z_BCThw: Tensor) -> list[Tensor]:
    memory, box = {}, Box.whole(*z_BCThw.shape[-2:])
    runs = z_BCThw.split([1, z_BCThw.shape[2] - 1], dim=2)
    return [one for z in runs for one in made.decode_part(made.decode_joined(z, {}), memory, box)]


@pytest.mark.parametrize("name", CONFIGS)
def test_frame_by_frame_gives_the_frames_of_the_whole_clip(name):
    config = CONFIGS[name]
    z = torch.randn(2, config.z_dim, 3, 3, 4, generator=torch.Generator().manual_seed(2))
    pieces = streamed(network(config), z)
    assert [one.shape[2] for one in pieces] == [1, 4, 4]
    got, expected = (torch.cat(pieces, dim=2) + 1) / 2, whole(config, z)
    assert expected.shape == (2, 3, 9, 24 * config.patch, 32 * config.patch)
    assert expected.std() > 0.1, "a flat clip would agree with anything"
    assert (got.clamp(0, 1) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("channels", [16, 48])
def test_memory_does_not_grow_with_length_and_is_what_is_planned(channels):
    config = CONFIGS["2.1" if channels == 16 else "2.2"]
    made, peaks = network(config), []
    for frames in (2, 6):
        memory, z = {}, torch.randn(1, channels, 1, 6, 8)
        with LiveBytes() as live:
            for _ in range(frames):
                for _ in made.decode_part(made.decode_joined(z, {}), memory, Box.whole(6, 8)):
                    pass
        peaks.append(live.peak)
    planned = choices("decode", config, 1, 6, 8, 4)[0].bytes
    assert peaks[1] == peaks[0]
    assert 0.6 * planned < peaks[0] <= planned


def test_work_is_counted_as_it_is_done():
    config, z = TAE_21, torch.randn(1, 16, 1, 4, 5)
    with FlopCounterMode(display=False) as counter:
        streamed(network(config), z)
    assert counter.get_total_flops() == decode_flops(config, 1, 4, 5)
