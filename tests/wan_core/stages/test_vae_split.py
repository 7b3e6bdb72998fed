"""The VAE in parts: as memory allows, down a ladder when it runs out, and never other pixels."""

import gc
import weakref

import pytest
import torch

from tests import tiny
from wan_core.configs import VaeConfig
from wan_core.errors import CapacityError
from wan_core.models.vae import WanVAE
from wan_core.runtime.ports import PlainMemory, Ports
from wan_core.stages import vae
from wan_core.stages.load import VaeHandle
from wan_core.stages.vae_work import Split, choices, choose, cut, in_parts, smaller
from wan_core.variants import LATENTS

from .live_bytes import LiveBytes

CONFIGS = {
    16: VaeConfig(dim=16, dec_dim=16, z_dim=16),
    48: VaeConfig(dim=12, dec_dim=16, z_dim=48, patch=2, shortcuts=True),
}


def handle(channels: int = 16) -> VaeHandle:
    weights = tiny.resident(tiny.randomised(WanVAE(CONFIGS[channels]), 3), f"vae {channels}")
    return VaeHandle(config=CONFIGS[channels], spec=LATENTS[channels], weights=weights)


def split_of(made: VaeHandle, direction: str, height: int, width: int, down: int, across: int) -> Split:
    return in_parts(direction, made.config, 1, cut(height, down), cut(width, across), 4)


class Believing(PlainMemory):
    """A card that says how much of it is free."""

    def __init__(self, free: int | None):
        super().__init__()
        self.free, self.asked = free, []

    def free_bytes(self, device):
        return self.free

    def make_room(self, nbytes, device, empty=False):
        self.asked.append(nbytes)


def test_plans_get_smaller_and_dearer():
    for direction in ("decode", "encode"):
        found = choices(direction, CONFIGS[16], 1, 30, 52, 2)
        assert found[0].grid == "whole" and len(found[0].boxes) == 1
        sizes, costs = [one.bytes for one in found], [one.macs for one in found]
        assert sizes == sorted(sizes, reverse=True) and costs == sorted(costs)
        assert len(found) > 4
        assert choose(found, 0, None) is choose(found, 0, found[0].bytes) is found[0]
        assert choose(found, 100, found[0].bytes) is found[1]
        assert choose(found, 0, 1) is found[-1]
        assert smaller(found, found[-1]) is None
        step, steps = found[0], 0
        while (step := smaller(found, step)) is not None:
            steps += 1
        assert steps <= 6


def test_at_full_width_four_parts_take_little_more_work_and_far_less_memory():
    found = in_parts("decode", VaeConfig(), 1, cut(90, 1), cut(160, 4), 2)
    whole = choices("decode", VaeConfig(), 1, 90, 160, 2)[0]
    assert found.macs <= 1.35 * whole.macs
    assert found.bytes <= 0.6 * whole.bytes


@pytest.mark.parametrize("channels", [16, 48])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_the_estimate_covers_what_is_alive(channels, direction):
    """Tensors alone, without a library's own room: the estimate adds a margin for that."""
    made = handle(channels)
    stride = made.spec.stride_hw
    for down, across in ((1, 1), (1, 3)):
        split = split_of(made, direction, 2, 24, down, across)
        latent, clip = torch.randn(1, channels, 3, 2, 24), torch.rand(1, 3, 9, 2 * stride, 24 * stride)
        with LiveBytes() as memory:
            if direction == "decode":
                runs = vae.decode_stream(made, latent, Ports(), split)
            else:
                runs = vae.encode_stream(made, [clip], (1, *clip.shape[2:]), Ports(), split)
            for run in runs:
                del run
        outside = clip.nbytes * 2 if direction == "encode" else 9 * 3 * 2 * 24 * stride**2 * 4  # of the host
        assert 0.5 * split.bytes <= memory.peak <= split.bytes + outside, (down, across)


@pytest.mark.parametrize("channels", [16, 48])
def test_it_takes_parts_where_the_whole_does_not_fit_and_says_so(channels):
    made, said = handle(channels), []
    latent = torch.randn(1, channels, 3, 3, 40)
    whole = vae.decode(made, latent, Ports())
    room = choices("decode", made.config, 1, 3, 40, 4)[0].bytes - 1
    got = vae.decode(made, latent, Ports(memory=Believing(room), notify=said.append))
    assert len(said) == 1 and "in 2 parts (2 across, 1 down)" in said[0]
    assert (got - whole).norm() <= 1e-6 * whole.norm()


def test_windows_join_without_a_trace(monkeypatch):
    """Between two windows every part's cache is put aside and comes back."""
    made = handle()
    latent, clip = torch.randn(1, 16, 11, 2, 9), torch.rand(1, 41, 16, 72, 3)
    want = vae.decode(made, latent, Ports()), vae.encode(made, clip, Ports())
    monkeypatch.setattr(vae, "WINDOW", 8)
    frames = list(vae.decode_stream(made, latent, Ports(), split_of(made, "decode", 2, 9, 1, 3)))
    assert [run.shape[1] for run in frames] == [1 + 24, 16]
    video = clip.movedim(-1, 1) * 2 - 1
    mu = list(vae.encode_stream(made, [video], (1, 41, 16, 72), Ports(), split_of(made, "encode", 2, 9, 1, 3)))
    assert len(mu) == 11
    for got, whole in zip((torch.cat(frames, dim=1), torch.cat(mu, dim=2)), want):
        assert (got - whole).norm() <= 1e-6 * whole.norm()


def test_frames_that_were_handed_over_are_gone_while_the_next_are_made(monkeypatch):
    made, given, alive, plain = handle(), [], [], vae._decoded

    def watched(*arguments):
        for window, frames in plain(*arguments):
            given.append(weakref.ref(frames.untyped_storage()))
            yield window, frames
            del frames

    monkeypatch.setattr(vae, "_decoded", watched)

    def look(*_) -> None:
        alive.append(sum(ref() is not None for ref in given))

    vae.decode(made, torch.randn(1, 16, 7, 2, 3), Ports(check_cancel=look, progress=look))
    assert len(given) == 4 and len(alive) == 4 + 2 * 7
    assert not any(alive)


def test_progress_counts_every_part():
    made, seen = handle(), []
    latent = torch.randn(1, 16, 3, 2, 9)
    ports = Ports(progress=lambda done, total, x0: seen.append((done, total)))
    list(vae.decode_stream(made, latent, ports, split_of(made, "decode", 2, 9, 1, 3)))
    assert seen == [(done + 1, 9) for done in range(9)]


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_down_the_ladder_with_the_same_pixels_and_nothing_left(direction):
    """Ten levels of memory from all that the whole needs to a quarter of it; the plan is told nothing of them."""
    made = handle()
    latent, clip = torch.randn(1, 16, 3, 3, 40), torch.rand(1, 5, 24, 320, 3)

    def run(memory: LiveBytes, ports: Ports) -> torch.Tensor:
        with memory:
            return vae.decode(made, latent, ports) if direction == "decode" else vae.encode(made, clip, ports)

    unlimited = LiveBytes()
    whole = run(unlimited, Ports())
    floor = LiveBytes()
    smallest = choices(direction, made.config, 1, 3, 40, 4)[-1]
    with floor:
        if direction == "decode":
            list(vae.decode_stream(made, latent, Ports(), smallest))
        else:
            list(vae.encode_stream(made, [clip.movedim(-1, 1) * 2 - 1], (1, 5, 24, 320), Ports(), smallest))
    finished = 0
    for level in range(10):
        limit = int(unlimited.peak * (1 - 0.75 * level / 9))
        memory, said = LiveBytes(limit), []
        try:
            got = run(memory, Ports(memory=Believing(None), notify=said.append))
        except CapacityError as error:
            assert limit < 1.1 * floor.peak
            assert "smallest parts" in str(error) and "latent is not lost" in str(error)
        else:
            finished += 1
            assert (got - whole).norm() <= 1e-5 * whole.norm()
            assert len(said) <= 4
            del got
        gc.collect()
        assert memory.live == 0
    assert finished >= 6


def test_frames_that_were_given_are_not_given_again():
    """Memory runs out in the middle of the third run: the first two stand, the others come from smaller parts."""
    made, calls = handle(), []
    latent = torch.randn(1, 16, 7, 3, 40)
    want = vae.decode(made, latent, Ports())
    whole = made.weights.module.decode_part

    def failing(features, cache, box):
        calls.append(box)
        for number, piece in enumerate(whole(features, cache, box)):
            if len(calls) == 3 and number == 1:
                raise torch.OutOfMemoryError("pretended")
            yield piece

    made.weights.module.decode_part = failing
    runs = list(vae.decode_stream(made, latent, Ports()))
    assert [run.shape[1] for run in runs] == [1, 8, 16]
    assert (torch.cat(runs, dim=1) - want).norm() <= 1e-6 * want.norm()


def test_a_video_that_is_gone_cannot_be_encoded_again_and_one_that_is_held_can():
    made = handle()
    clip = torch.rand(1, 3, 17, 16, 160) * 2 - 1
    want = torch.cat(list(vae.encode_stream(made, [clip], (1, 17, 16, 160), Ports())), dim=2)
    network, whole = made.weights.module, made.weights.module.encode_part
    for fails_at, message in ((2, None), (5, "beginning is no longer there")):
        calls = []

        def failing(x, cache, box, fails_at=fails_at, calls=calls):
            calls.append(box)
            if len(calls) == fails_at:
                raise torch.OutOfMemoryError("pretended")
            return whole(x, cache, box)

        network.encode_part = failing
        stream = vae.encode_stream(made, iter(clip.split(1, dim=2)), (1, 17, 16, 160), Ports())
        if message is None:
            assert (torch.cat(list(stream), dim=2) - want).norm() <= 1e-6 * want.norm()
        else:
            with pytest.raises(CapacityError, match=message):
                list(stream)


def test_other_errors_are_not_memory():
    made = handle()

    def broken(*_):
        raise ValueError("not of this kind")

    made.weights.module.decode_part = broken
    with pytest.raises(ValueError, match="not of this kind"):
        vae.decode(made, torch.randn(1, 16, 1, 2, 2), Ports(notify=lambda _: pytest.fail("it tried again")))


def test_a_stream_in_which_memory_runs_out_is_no_shorter_video():
    made, clip = handle(), torch.rand(1, 3, 9, 24, 320) * 2 - 1

    def runs():
        for number, frame in enumerate(clip.split(1, dim=2)):
            if number == 6:
                raise torch.OutOfMemoryError("out of memory")
            yield frame

    with pytest.raises(CapacityError, match="no longer there"):
        list(vae.encode_stream(made, runs(), (1, 9, 24, 320), Ports()))
