"""Where weights are and how a run is cut: the same bits, whatever the plan; less memory, where there is less."""

import gc
from dataclasses import replace

import pytest
import torch

from tests import tiny
from tests.wan_core.runtime.memories import Planned, SmallDevice
from tests.wan_core.stages.test_sample import SHAPE, condition, start
from wan_core.conditioning.vace import VaceContext
from wan_core.configs import DitConfig
from wan_core.errors import CapacityError
from wan_core.models.dit import WanDiT
from wan_core.runtime.ports import PlainMemory, Ports
from wan_core.runtime.stay import Stay
from wan_core.stages.load import ModelHandle
from wan_core.stages.sample import Settings, sample
from wan_core.variants import VARIANTS, Feature

BASE = [row.name for row in VARIANTS if not row.exact]
PLANS = [(0, False), (0, True), (1, False), (2, True), (3, False), (3, True)]


def vace_contexts() -> tuple[VaceContext, ...]:
    """Two contexts, of which one ends before the run does."""
    draw = torch.Generator().manual_seed(7)
    made = []
    for strength, end in ((1.0, 1.0), (0.6, 0.5)):
        latent, mask = (torch.randn(1, n, *SHAPE[2:], generator=draw) for n in (32, 64))
        made.append(VaceContext(latent=latent, mask=mask.sigmoid(), strength=strength, end=end))
    return tuple(made)


def run(name: str, memory, settings=None, model=None):
    row = tiny.variant(name)
    extra, generator = {}, torch.Generator().manual_seed(7)
    shape = (1, row.latent.channels, *SHAPE[2:])
    side = row.latent.stride_hw
    if {Feature.CONCAT, Feature.START} & row.features:
        extra["known_latent"] = torch.randn(shape, generator=torch.Generator().manual_seed(9))
        extra["known_mask"] = torch.ones(1, 4, *SHAPE[2:])
    if Feature.CONTROL in row.features:
        extra["control_latent"] = torch.randn(shape, generator=generator)
    if Feature.REFERENCE in row.features:
        extra["reference"] = torch.randn(shape, generator=generator)[:, :, :1]
    if Feature.CAMERA in row.features:
        extra["camera"] = torch.randn(1, 24, SHAPE[2], SHAPE[3] * side, SHAPE[4] * side, generator=generator)
    if Feature.CLIP in row.features:
        tokens = 514 if Feature.LAST_FRAME in row.features else 257
        extra["clip"] = torch.randn(1, tokens, 32, generator=torch.Generator().manual_seed(8))
    if Feature.VACE in row.features:
        extra["vace"] = vace_contexts()
    return sample(
        model or tiny.model(name),
        condition(**extra),
        condition(6, **extra),
        start(shape),
        settings or Settings(seed=3, steps=4),
        Ports(memory=memory),
    )


@pytest.mark.parametrize("name", BASE)
def test_every_plan_gives_the_bits_of_the_resident_model(name):
    whole = run(name, PlainMemory())
    assert whole.std() > 0.1
    for kept, together in PLANS:
        assert torch.equal(run(name, Planned(kept, together=together)), whole), (kept, together)


@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_cutting_the_tokens_changes_nothing_but_rounding(chunk, monkeypatch):
    whole = run("t2v-a14b", PlainMemory())
    cut = run("t2v-a14b", Planned(1, chunk=chunk))
    assert not torch.equal(cut, torch.zeros_like(cut))
    torch.testing.assert_close(cut, whole, atol=1e-5 * whole.abs().max().item(), rtol=0)


def big_enough() -> object:
    """A pair whose weights are much more than what it works with, as those of real models are."""
    row = tiny.variant("t2v-a14b")
    config = DitConfig(
        dim=192, ffn_dim=512, num_heads=2, num_layers=16, in_dim=16, out_dim=16, text_dim=24, freq_dim=32
    )
    row = replace(row, dit=config)
    pair = [tiny.resident(tiny.randomised(WanDiT(config), seed), f"side {seed}") for seed in (1, 2)]
    return ModelHandle(variant=row, high=pair[0], low=pair[1])


LATENT = (1, 16, 3, 20, 20)


def run_small(model, memory, told=lambda _: None):
    return sample(
        model, condition(), condition(6), start(LATENT), Settings(seed=3, steps=4), Ports(memory=memory, notify=told)
    )


class Kept(Planned):
    """Begins with everything on the device, in buffers."""

    def __init__(self, model):
        super().__init__(kept=len(model.high.module.blocks))


@pytest.fixture(scope="module")
def peak() -> tuple[float, torch.Tensor]:
    """What a run with all blocks of an expert on the device takes at its peak, and what it makes."""
    model = big_enough()
    with SmallDevice() as device:
        made = run_small(model, Kept(model))
    return device.peak, made


@pytest.mark.parametrize("percent", [100, 92, 84, 75, 67, 59, 50, 42, 34, 25])
def test_the_ladder_ends_with_the_same_video_or_says_what_is_needed(percent, peak):
    most, whole = peak
    model, told = big_enough(), []
    gc.collect()
    with SmallDevice(budget=most * percent / 100) as device:
        made = run_small(model, Kept(model), told.append)
        retries = sum("ran out" in sentence for sentence in told)
        del told
        torch.testing.assert_close(made, whole, atol=1e-5 * whole.abs().max().item(), rtol=0)
        del made
        gc.collect()
        left = device.live
    assert retries <= 4
    assert left == 0


def test_below_the_floor_the_error_says_what_is_needed_and_nothing_stays(peak):
    most, _ = peak
    model = big_enough()
    with SmallDevice(budget=most * 0.1) as device:
        with pytest.raises(CapacityError, match=r"ran out of memory .* needs about .* fewer frames"):
            run_small(model, Kept(model))
        gc.collect()
        assert device.live == 0
    assert all(not tensor.is_meta for tensor in model.high.module.parameters())


class Misjudged(PlainMemory):
    """A host that finds no room for what should have fitted whole."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def place(self, weights, activation_bytes, certain=True):
        self.asked += 1
        raise CapacityError("no room for it after all")


def test_a_host_that_cannot_place_a_model_after_all_gets_it_streamed():
    memory = Misjudged()
    assert torch.equal(run("t2v-1.3b", memory), run("t2v-1.3b", PlainMemory()))
    assert memory.asked == 1


class Breathing(Planned):
    """A device on which another program takes memory after the first step and gives it back after the second."""

    def __init__(self, sizes):
        super().__init__(kept=3)
        self.spare = iter([-2 * sizes.largest, 5 * sizes.largest, 0])

    def free_bytes(self, device):
        return self.work + next(self.spare)

    def plan(self, weights, sizes, work, budget_bytes):
        plan = super().plan(weights, sizes, work, budget_bytes)
        self.work = plan.work_bytes
        return plan


def test_memory_that_others_take_and_give_back_between_steps_moves_blocks_and_changes_no_bit(monkeypatch):
    model = tiny.model("t2v-1.3b")
    memory, kept = Breathing(model.high.sizes()), []
    start_streaming = Stay._start
    monkeypatch.setattr(
        Stay, "_start", lambda self, number: (kept.append(len(self.plan.kept)), start_streaming(self, number))
    )
    assert torch.equal(run("t2v-1.3b", memory, model=model), run("t2v-1.3b", PlainMemory()))
    assert kept == [3, 1, 3]
