"""How parcels travel to a device: copied at once on the CPU, through pinned staging and a stream of its own on CUDA."""

import ctypes
import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .parcel import Parcel

log = logging.getLogger(__name__)

PIECE_BYTES = 16 * 2**20
"""A transfer of this size has the full speed of the bus."""
PIECES = 32
"""Pinned pieces: a link pins PIECES * PIECE_BYTES of host memory, whatever the model's size."""
IN_FLIGHT = 8
"""Pieces that are left to travel while the others are filled."""
COPIERS = max(1, min(14, (os.cpu_count() or 2) - 2))
"""Threads that fill the pieces: one alone copies 6 GB/s, 6 do 22 and 14 do 33 (measured beside an H200)."""


class Link(Protocol):
    """What carries parcels. Computing and carrying each keep their order; the link alone knows their clocks."""

    def buffer(self, nbytes: int) -> Any:
        """Memory on the device for a parcel."""
        ...

    def mark(self) -> Any:
        """This point of the computing that has been asked for so far."""
        ...

    def send(self, parcel: Parcel, buffer: Any, after: Any) -> Any:
        """Begin to fill ``buffer`` once the computing has passed the mark ``after`` (None: now); returns a ticket."""
        ...

    def wait(self, ticket: Any) -> None:
        """What is computed from now on comes after the arrival."""
        ...

    def close(self) -> None:
        """Let everything that was sent arrive, and let go of threads and memory."""
        ...


class PlainLink:
    """Copies where it stands: between two places in host memory, or to a device without streams."""

    def __init__(self, device: torch.device):
        self.device = device

    def buffer(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def mark(self) -> None:
        return None

    def send(self, parcel: Parcel, buffer: Tensor, after: None) -> None:
        for span in parcel.spans:
            span.view(buffer).copy_(span.tensor)

    def wait(self, ticket: None) -> None:
        pass

    def close(self) -> None:
        pass


class _Ticket:
    """A parcel on its way: ``issued`` when its arrival can be waited for on the device."""

    def __init__(self):
        self.issued = threading.Event()
        self.arrived = torch.cuda.Event()
        self.error: BaseException | None = None


@dataclass(frozen=True)
class _Order:
    """A parcel to carry into a buffer, once the computing has passed a mark."""

    parcel: Parcel
    buffer: Tensor
    after: torch.cuda.Event
    ticket: _Ticket


@dataclass(frozen=True)
class _Filling:
    """A piece that is being filled, and what it is a piece of."""

    future: Future
    piece: "_Piece"
    start: int
    order: _Order
    is_first: bool
    is_last: bool


class CudaLink:
    """A copy stream of its own, fed by a thread: pages of the file -> a few pinned pieces -> the buffer.

    The computing thread only queues; it waits on the host for a ticket to be issued, and on the device for its event.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._pieces = deque(_Piece() for _ in range(PIECES))
        self._filling: deque[_Filling] = deque()
        self._copiers = ThreadPoolExecutor(COPIERS, thread_name_prefix="wan-core-copy")
        self._orders: queue.Queue[_Order | None] = queue.Queue()
        self._thread = threading.Thread(target=self._serve, name="wan-core-link", daemon=True)
        self._thread.start()

    def buffer(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def send(self, parcel: Parcel, buffer: Tensor, after: torch.cuda.Event | None) -> _Ticket:
        ticket = _Ticket()
        # The allocator may have had other plans with this memory until now: whatever it was, the copy comes after.
        self._orders.put(_Order(parcel, buffer, after or self.mark(), ticket))
        return ticket

    def wait(self, ticket: _Ticket) -> None:
        ticket.issued.wait()
        if ticket.error is not None:
            raise ticket.error
        torch.cuda.current_stream(self.device).wait_event(ticket.arrived)

    def close(self) -> None:
        self._orders.put(None)
        self._thread.join()
        self._copiers.shutdown()
        self.stream.synchronize()
        self._pieces.clear()

    def _serve(self) -> None:
        """Fill the pieces of one order after another, and send each when it is full; until told to stop."""
        with torch.cuda.device(self.device):
            while True:
                try:
                    order = self._orders.get(block=not self._filling)
                except queue.Empty:
                    self._send_oldest()
                    continue
                if order is None:
                    break
                self._begin(order)
            while self._filling:
                self._send_oldest()

    def _begin(self, order: _Order) -> None:
        cuts = list(_cut(order.parcel))
        for number, (start, runs) in enumerate(cuts):
            while len(self._filling) >= PIECES - IN_FLIGHT:
                self._send_oldest()
            piece = self._pieces.popleft()
            future = self._copiers.submit(piece.fill, runs)
            is_last = number == len(cuts) - 1
            self._filling.append(_Filling(future, piece, start, order, number == 0, is_last))
        if not cuts:
            order.ticket.arrived.record(self.stream)
            order.ticket.issued.set()

    def _send_oldest(self) -> None:
        one = self._filling.popleft()
        order = one.order
        try:
            if one.is_first:
                self.stream.wait_event(order.after)
            length = one.future.result()
            with torch.cuda.stream(self.stream):
                order.buffer[one.start : one.start + length].copy_(one.piece.pinned[:length], non_blocking=True)
                one.piece.sent = torch.cuda.Event()
                one.piece.sent.record(self.stream)
            if one.is_last:
                order.ticket.arrived.record(self.stream)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for it
            order.ticket.error = error
        self._pieces.append(one.piece)
        if one.is_last:
            order.ticket.issued.set()


class _Piece:
    """A pinned piece of host memory, made when it is first needed."""

    def __init__(self):
        self.pinned: Tensor | None = None
        self.sent: torch.cuda.Event | None = None
        """Until then what is in it is still wanted."""

    def fill(self, runs: list[tuple[int, int, int]]) -> int:
        """Copy ``(address, length, offset)`` runs here; returns where the last one ends."""
        if self.pinned is None:
            self.pinned = torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True)
        if self.sent is not None:
            self.sent.synchronize()
        here = self.pinned.data_ptr()
        for address, length, offset in runs:
            ctypes.memmove(here + offset, address, length)  # lets other threads go on, and asks for no tensor
        return max(offset + length for _, length, offset in runs)


def _cut(parcel: Parcel) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """A parcel in pieces: where each begins in the buffer, and its runs (address, length, offset in the piece)."""
    start, runs = 0, []
    for span in parcel.spans:
        address, offset, left = span.tensor.data_ptr(), span.offset, span.tensor.nbytes
        while left:
            if offset - start >= PIECE_BYTES:
                yield start, runs
                start, runs = offset, []
            length = min(left, start + PIECE_BYTES - offset)
            runs.append((address, length, offset - start))
            address, offset, left = address + length, offset + length, left - length
    if runs:
        yield start, runs


def link_for(device: torch.device) -> Link:
    """The link of a device."""
    return CudaLink(device) if device.type == "cuda" else PlainLink(device)
