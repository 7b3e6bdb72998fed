"""The streamer: every block is there when it computes, nothing is loaded twice, and the clock shows no gap."""

from dataclasses import dataclass, field

import pytest

from benchmarks.offload_sim import CARDS, SIZES, lora_rows, rows, simulate
from wan_core.runtime.memory import spread
from wan_core.runtime.offload import Leg, Streamer

BLOCKS = 6


@dataclass
class Parcel:
    what: tuple
    nbytes: int = 10

    def unpack(self, buffer, at_use):
        return [buffer["holds"]], [()]


@dataclass
class Link:
    """Buffers that hold what was sent last; a buffer whose block may still compute must not be filled."""

    sent: list = field(default_factory=list)
    busy: dict = field(default_factory=dict)
    buffers: int = 0

    def buffer(self, nbytes):
        self.buffers += 1
        return {"holds": None}

    def mark(self):
        return len(self.sent)

    def send(self, parcel, buffer, after):
        assert id(buffer) not in self.busy, "a buffer is filled while its block computes"
        buffer["holds"] = parcel.what
        self.sent.append(parcel.what)
        return parcel.what

    def wait(self, ticket):
        assert ticket in self.sent


class Weights:
    """Blocks that know what is installed in them."""

    def __init__(self, name, link):
        self.name, self.link = name, link
        self.installed = {}

    def outfit(self, index, changes):
        return changes.get(index)

    def parcel(self, index, outfit):
        return Parcel((self.name, index, outfit))

    def install(self, index, tensors, worn):
        self.installed[index] = tensors[0]

    def uninstall(self, index):
        self.installed.pop(index)

    def is_changed_at_use(self, index):
        return [False]


def walk(streamer, number, weights, changes=None):
    streamer.begin(number)
    assert weights.installed[None] == (weights.name, None, (changes or {}).get(None))
    for index in streamer.walk(number, range(BLOCKS)):
        assert weights.installed[index] == (weights.name, index, (changes or {}).get(index))


@pytest.mark.parametrize("kept", range(BLOCKS + 1))
@pytest.mark.parametrize("ring", [1, 2, 3])
def test_every_block_of_both_experts_computes_with_its_own_weights(kept, ring):
    link = Link()
    high, low = Weights("high", link), Weights("low", link)
    order = [high, high, low, low, low, high]
    streamer = Streamer(
        link,
        [Leg(w) for w in order],
        blocks=BLOCKS,
        kept=spread(BLOCKS, kept) if kept < BLOCKS else frozenset(range(BLOCKS)),
        slots=kept + ring,
    )
    for number, weights in enumerate(order):
        walk(streamer, number, weights)
    streamer.close()
    assert not high.installed and not low.installed
    assert link.buffers == kept + ring + 2
    # What is kept is loaded once a time that its expert works; the rest of the blocks at every walk.
    streaks, walks = 3, len(order)
    assert len(link.sent) == 2 + streaks * kept + walks * (BLOCKS - kept)


def test_another_outfit_reloads_the_blocks_that_it_changes_and_no_others():
    link = Link()
    weights = Weights("one", link)
    outfits = [{1: "a", None: "x"}, {1: "a", None: "x"}, {1: "b"}, {1: "a", None: "x"}]
    streamer = Streamer(
        link, [Leg(weights, o) for o in outfits], blocks=BLOCKS, kept=frozenset(range(BLOCKS)), slots=BLOCKS + 1
    )
    for number, changes in enumerate(outfits):
        walk(streamer, number, weights, changes)
    blocks = [what for what in link.sent if what[1] is not None]
    assert [what[1:] for what in blocks[BLOCKS:]] == [(1, "b"), (1, "a")]


def test_a_walk_out_of_order_is_refused():
    link = Link()
    weights = Weights("one", link)
    streamer = Streamer(link, [Leg(weights)] * 2, blocks=BLOCKS, kept=frozenset(), slots=2)
    with pytest.raises(ValueError, match="leg 1 is walked out of order; 0 is next"):
        list(streamer.walk(1, range(BLOCKS)))


def test_a_walk_that_is_left_half_way_leaves_everything_at_home():
    link = Link()
    weights = Weights("one", link)
    streamer = Streamer(link, [Leg(weights)], blocks=BLOCKS, kept=frozenset({1}), slots=3)
    streamer.begin(0)
    blocks = iter(streamer.walk(0, range(BLOCKS)))
    for _ in range(3):
        next(blocks)
    streamer.close()
    assert not weights.installed


def test_on_the_clock_nothing_is_lost_where_streaming_can_hide_and_a_change_of_experts_waits_for_less_than_a_block():
    made = rows()
    assert len(made) == len(SIZES) * len(CARDS) * 4 * 2
    hidden = [row for row in made if row.hideable]
    assert len(hidden) > 150
    assert max(row.ratio for row in made) <= 1.01
    assert max(row.switch_wait_blocks for row in hidden) <= 1
    assert made == rows(), "not deterministic"


@pytest.mark.parametrize("kept", [1, 10, 20, 38, 39])
@pytest.mark.parametrize("link", ["PCIe 5 x16", "PCIe 3 x16", "NVMe"])
def test_kept_blocks_spare_their_transfer(kept, link):
    for together in (False, True):
        row = simulate("14B 480p x17", "H100", link, together, kept=kept)
        assert row.ratio <= 1.01, row


def test_a_streamed_lora_costs_less_than_a_hundredth_of_a_step():
    assert max(row["added"] for row in lora_rows()) <= 0.01
