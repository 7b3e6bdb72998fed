"""Plans: what fits is used, what does not is refused with both numbers, and every rung of the ladder needs less."""

from itertools import pairwise

import pytest

from wan_core.errors import CapacityError
from wan_core.runtime.memory import (
    CHUNKS,
    HELD_BYTES,
    HELD_UNTIL,
    Rates,
    WeightSizes,
    Work,
    adjusted,
    dit_work,
    lower,
    plan_residency,
    smallest_bytes,
    spread,
    streamed_plan,
    whole_plan,
)
from wan_core.variants import VARIANTS

BLOCK, REST, COUNT = 700, 500, 40
SIZES = WeightSizes(blocks=(BLOCK,) * COUNT, rest=REST)
FAST = Rates(matmul=1.0, attention=1.0, link=1e30)
SLOW_BUS = Rates(matmul=1e30, attention=1e30, link=1.0)
WORK = Work(
    bytes_at=lambda chunk, together: chunk // 16 + 1000 * (2 if together else 1),
    tokens=9000,
    passes=2,
    block_flops=(1.0, 1.0),
)


@pytest.mark.parametrize("experts", [1, 2])
@pytest.mark.parametrize("budget", range(4000, 70_000, 333))
def test_a_plan_never_takes_more_than_its_budget_and_a_larger_one_keeps_no_fewer_blocks(experts, budget):
    plan = plan_residency(SIZES, experts, WORK, budget, FAST)
    assert plan.peak_bytes <= budget
    more = plan_residency(SIZES, experts, WORK, budget + 5000, FAST)
    assert more.whole or (not plan.whole and len(more.kept) >= len(plan.kept))


def test_everything_stays_where_everything_fits():
    need = 2 * SIZES.total + WORK.bytes_at(CHUNKS[0], False)
    assert plan_residency(SIZES, 2, WORK, need, FAST).whole
    assert not plan_residency(SIZES, 2, WORK, need - 1, FAST).whole


def test_what_cannot_fit_is_refused_with_what_it_needs_and_what_there_is():
    least = smallest_bytes(SIZES, 2, WORK)
    assert plan_residency(SIZES, 2, WORK, least, FAST).chunk == CHUNKS[-1]
    with pytest.raises(CapacityError, match=r"a\.safetensors needs at least .* are available"):
        plan_residency(SIZES, 2, WORK, least - 1, FAST, "a.safetensors")


def test_weights_are_loaded_once_for_both_sides_only_where_the_bus_is_the_limit():
    assert plan_residency(SIZES, 1, WORK, 9000, SLOW_BUS).together
    assert not plan_residency(SIZES, 1, WORK, 9000, FAST).together
    alone = Work(bytes_at=WORK.bytes_at, tokens=9000, passes=1, block_flops=(1.0, 1.0))
    assert not plan_residency(SIZES, 1, alone, 9000, SLOW_BUS).together


def test_what_is_walked_once_is_streamed_even_where_it_would_fit():
    once = Work(bytes_at=WORK.bytes_at, tokens=9, once=True)
    plan = plan_residency(SIZES, 1, once, 10**9, FAST)
    assert not plan.whole and not plan.kept and plan.streamed == COUNT


@pytest.mark.parametrize("kept", range(COUNT))
def test_streamed_blocks_lie_as_far_apart_as_they_can(kept):
    streamed = sorted(set(range(COUNT)) - spread(COUNT, kept))
    assert len(streamed) == COUNT - kept
    gaps = [b - a for a, b in zip(streamed, [*streamed[1:], streamed[0] + COUNT])]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("first", [whole_plan(SIZES, 2, WORK), streamed_plan(SIZES, 2, WORK, 40, together=True)])
def test_the_ladder_goes_down_and_ends(first):
    plan, peaks = first, [first.peak_bytes]
    while (plan := lower(plan, SIZES, 2, WORK)) is not None:
        peaks.append(plan.peak_bytes)
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)
    assert peaks[-1] == smallest_bytes(SIZES, 2, WORK)


def test_between_steps_blocks_go_when_memory_is_lost_and_return_when_much_is_free():
    plan = streamed_plan(SIZES, 1, WORK, 20)
    assert adjusted(plan, SIZES, 1, WORK, plan.work_bytes) is None
    fewer = adjusted(plan, SIZES, 1, WORK, plan.work_bytes - 2 * BLOCK)
    assert len(fewer.kept) == 18
    more = adjusted(plan, SIZES, 1, WORK, plan.work_bytes + 9 * BLOCK)
    assert 20 < len(more.kept) <= 29
    assert adjusted(plan, SIZES, 1, WORK, plan.work_bytes + 2 * BLOCK) is None


def test_between_steps_no_more_is_taken_than_the_user_allows_whatever_is_free():
    plan = streamed_plan(SIZES, 1, WORK, 0)
    assert adjusted(plan, SIZES, 1, WORK, 10**9, plan.peak_bytes) is None
    more = adjusted(plan, SIZES, 1, WORK, 10**9, plan.peak_bytes + 7 * BLOCK)
    assert len(more.kept) > 0 and more.peak_bytes <= plan.peak_bytes + 7 * BLOCK


CARDS = [
    ("t2v-a14b", (21, 90, 160), 7.0),
    ("t2v-a14b", (21, 60, 104), 4.5),
    ("ti2v-5b", (31, 44, 80), 5.0),
    ("t2v-1.3b", (21, 60, 104), 2.5),
]


@pytest.mark.parametrize(("name", "latent", "gigabytes"), CARDS)
def test_the_real_models_fit_the_cards_that_users_have(name, latent, gigabytes):
    row = next(row for row in VARIANTS if row.name == name)
    cfg, (t, h, w) = row.dit, latent
    block = 2 * (8 * cfg.dim**2 + 2 * cfg.dim * cfg.ffn_dim)
    rest = 2 * (7 * cfg.dim**2 + cfg.dim * (cfg.text_dim + cfg.dim))
    sizes = WeightSizes(blocks=(block,) * cfg.num_layers, rest=rest)
    work = dit_work(cfg, 1, t * h * w // 4, passes=2, itemsize=2)
    assert plan_residency(sizes, row.experts, work, int(gigabytes * 1e9), FAST).peak_bytes <= gigabytes * 1e9


def test_products_in_a_type_that_the_device_lacks_are_counted_in_float32():
    cfg = next(row.dit for row in VARIANTS if row.name == "t2v-1.3b")
    native, emulated = (dit_work(cfg, 1, 7800, passes=2, itemsize=2, fused=False, emulated=e) for e in (False, True))
    assert emulated.bytes_at(8192, False) - native.bytes_at(8192, False) == 7800 * cfg.ffn_dim * 4
    assert emulated.bytes_at(1024, False) - native.bytes_at(1024, False) == 1024 * cfg.ffn_dim * 4
    assert emulated.block_flops == native.block_flops


def test_what_malloc_holds_is_counted_once_and_where_tensors_are_small():
    vace = next(row.dit for row in VARIANTS if row.name == "vace-1.3b")

    def more(rows: int, contexts: int, itemsize: int = 2) -> int:
        """Than on a device whose norms are single kernels; the pieces are then the feed-forward's."""
        unfused, fused = (
            dit_work(vace, 1, rows, passes=1, itemsize=itemsize, fused=one, contexts=contexts).bytes_at(rows, False)
            for one in (False, True)
        )
        return unfused - fused

    small, large = HELD_UNTIL // (2 * vace.dim) - 1, HELD_UNTIL // (2 * vace.dim) + 1
    assert more(small, 1) == more(small, 2) == small * vace.dim * HELD_BYTES
    assert more(large, 1) == more(small, 1, itemsize=4) == 0


def test_a_vace_model_needs_room_and_time_for_each_of_its_contexts():
    plain, vace = (next(row.dit for row in VARIANTS if row.name == name) for name in ("t2v-14b", "vace-14b"))
    none, one, two = (dit_work(vace, 1, 32760, passes=2, itemsize=2, contexts=n) for n in (0, 1, 2))
    stream = 32760 * 5120 * 4
    for together in (False, True):
        sides = 2 if together else 1
        sizes = [work.bytes_at(8192, together) for work in (none, one, two)]
        assert sizes[0] == dit_work(plain, 1, 32760, passes=2, itemsize=2).bytes_at(8192, together)
        assert all(b - a >= stream * sides for a, b in pairwise(sizes))
    assert one.block_flops == dit_work(plain, 1, 32760, passes=2, itemsize=2).block_flops
    assert two.block_flops[0] == pytest.approx(one.block_flops[0] * (40 + 2 * 8) / (40 + 8))
