"""Blocks that come and go: which block lies in which buffer, and what is fetched next.

The order of a run is known before it begins (every step walks all blocks of its expert), so nothing is guessed: a
buffer that a block has left is filled at once with the block that is needed next and is not there, in this pass, the
next one, or the other expert's. The scheduling asks a :class:`~.links.Link` to carry and to wait and knows no clock, so
the same code runs on CUDA streams, on the CPU and in a simulation.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import nn

from .links import Link
from .parcel import Parcel


class Travelling(Protocol):
    """Weights whose blocks can compute elsewhere: see :class:`~.residency.Resident`."""

    def outfit(self, index: int | None, changes: Any) -> Any: ...

    def parcel(self, index: int | None, changes: Any) -> Parcel: ...

    def install(self, index: int | None, tensors: Any, worn: Any) -> None: ...

    def uninstall(self, index: int | None) -> None: ...

    def is_changed_at_use(self, index: int | None) -> list[bool]: ...


@dataclass(frozen=True)
class Leg:
    """One walk through all blocks of ``weights``, which wear ``changes`` (LoRAs) on it."""

    weights: Travelling
    changes: Any = field(default_factory=dict)


class _Key(NamedTuple):
    """A block (None: the rest) of some weights, in one outfit."""

    weights: Travelling
    index: int | None
    outfit: int


@dataclass
class _Slot:
    """A buffer, what it holds or will hold, and the mark after which it may be filled anew."""

    buffer: Any
    free_after: Any = None
    parcel: Parcel | None = None
    ticket: Any = None
    unpacked: tuple | None = None


class Streamer:
    """Carries a run's blocks through ``slots`` buffers."""

    def __init__(self, link: Link, legs: Sequence[Leg], *, blocks: int, kept: frozenset[int], slots: int):
        """
        Args:
            legs: every walk of the run, in order.
            blocks: how many each walks.
            kept: blocks that stay as long as their expert works.
            slots: buffers, at least as many as are kept and one more where any is not.
        """
        self._link, self._kept = link, kept
        self._parcels: dict[_Key, Parcel] = {}
        self._walks = _lay_out(legs, blocks, self._parcels)
        size = max((parcel.nbytes for key, parcel in self._parcels.items() if key.index is not None), default=0)
        self._free = deque(_Slot(link.buffer(size)) for _ in range(slots))
        self._there: dict[_Key, _Slot] = {}
        self._loads, self._peeked = self._needed(), None
        self._rests: dict[_Key, _Slot] = {}
        self._installed: set[tuple[Travelling, int | None]] = set()
        self._at = 0
        self.loaded_bytes = 0

    def walk(self, number: int, blocks: Sequence[nn.Module]) -> Iterator[nn.Module]:
        """Yield the blocks of leg ``number``, each with its weights on the device. Legs are walked in order."""
        if number != self._at:
            raise ValueError(f"leg {number} is walked out of order; {self._at} is next")
        for key, block in zip(self._walks[number].blocks, blocks, strict=True):
            slot = self._arrived(key)
            self._install(key, slot)
            yield block
            self._uninstall(key)
            self._done(key, number)
        self._at += 1

    def begin(self, number: int) -> None:
        """Put what leg ``number`` needs besides its blocks in place."""
        key = self._walks[number].rest
        self._fill()
        if key not in self._rests:  # in another outfit than before, which is rare: not worth memory for two
            self._uninstall(key)
            self._rests = {one: slot for one, slot in self._rests.items() if one.weights is not key.weights}
            self._send(key, _Slot(self._link.buffer(self._parcels[key].nbytes)), self._rests)
        self._install(key, self._arrived(key))

    def close(self) -> None:
        """Everything at home again; buffers are given back when the last transfer is through."""
        for weights, index in self._installed:
            weights.uninstall(index)
        self._installed.clear()
        for slot in (*self._there.values(), *self._rests.values()):
            if slot.unpacked is None:
                self._link.wait(slot.ticket)  # memory that is still being filled is not given back before
        self._there.clear()
        self._rests.clear()
        self._free.clear()
        self._loads = iter(())

    def _needed(self) -> Iterator[_Key]:
        """What has to be loaded, in order: all that will not be there by then."""
        there: set[_Key] = set()
        rests: set[Travelling] = set()
        for walk in self._walks:
            if walk.rest.weights not in rests:
                rests.add(walk.rest.weights)
                yield walk.rest
            there &= walk.keys
            for key in walk.blocks:
                if key not in there:
                    yield key
                if key.index in self._kept:
                    there.add(key)

    def _fill(self) -> None:
        """Send for as much as there are buffers, in the order in which it is needed."""
        while (key := self._next()) is not None:
            if key.index is None:
                self._send(key, _Slot(self._link.buffer(self._parcels[key].nbytes)), self._rests)
            elif self._free and key not in self._there:  # what is there for an earlier walk is used first
                self._send(key, self._free.popleft(), self._there)
            else:
                return
            self._peeked = None

    def _send(self, key: _Key, slot: _Slot, places: dict[_Key, _Slot]) -> None:
        slot.parcel, places[key] = self._parcels[key], slot
        slot.ticket = self._link.send(slot.parcel, slot.buffer, slot.free_after)
        self.loaded_bytes += slot.parcel.nbytes

    def _next(self) -> _Key | None:
        """What has to be loaded next; it stays so until it has been sent for."""
        if self._peeked is None:
            self._peeked = next(self._loads, None)
        return self._peeked

    def _arrived(self, key: _Key) -> _Slot:
        """The buffer of a block, once what is computed next comes after its arrival."""
        self._fill()
        slot = self._rests[key] if key.index is None else self._there[key]
        if slot.unpacked is None:
            self._link.wait(slot.ticket)
            slot.unpacked = slot.parcel.unpack(slot.buffer, key.weights.is_changed_at_use(key.index))
        return slot

    def _install(self, key: _Key, slot: _Slot) -> None:
        key.weights.install(key.index, *slot.unpacked)
        self._installed.add((key.weights, key.index))

    def _uninstall(self, key: _Key) -> None:
        key.weights.uninstall(key.index)
        self._installed.discard((key.weights, key.index))

    def _done(self, key: _Key, number: int) -> None:
        """A block has computed: its buffer is kept for the next leg, or goes to the block that is needed next."""
        is_needed = number + 1 < len(self._walks) and key in self._walks[number + 1].keys
        if key.index not in self._kept or not is_needed:
            slot = self._there.pop(key)
            slot.free_after, slot.parcel, slot.ticket, slot.unpacked = self._link.mark(), None, None, None
            self._free.append(slot)
        self._fill()


@dataclass(frozen=True)
class _Walk:
    """The keys of one leg: the rest, the blocks in order, and all of them."""

    rest: _Key
    blocks: tuple[_Key, ...]
    keys: frozenset[_Key]


def _lay_out(legs: Sequence[Leg], count: int, parcels: dict[_Key, Parcel]) -> list[_Walk]:
    """The keys of every leg; ``parcels`` gets the parcel of each. Equal outfits are the same key."""
    walks: list[_Walk] = []
    known: list[tuple[Leg, _Walk]] = []
    outfits: dict[tuple[Travelling, int | None], list] = {}
    for leg in legs:
        walk = next((made for one, made in known if one.weights is leg.weights and one.changes == leg.changes), None)
        if walk is None:
            keys = []
            for index in (None, *range(count)):
                worn, seen = leg.weights.outfit(index, leg.changes), outfits.setdefault((leg.weights, index), [])
                if worn not in seen:
                    seen.append(worn)
                key = _Key(leg.weights, index, seen.index(worn))
                parcels.setdefault(key, leg.weights.parcel(index, worn))
                keys.append(key)
            walk = _Walk(keys[0], tuple(keys[1:]), frozenset(keys))
            known.append((leg, walk))
        walks.append(walk)
    return walks
