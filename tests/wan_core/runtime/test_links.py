"""The link of a CUDA device, with streams and events that are none: what is filled, sent and waited for."""

import contextlib
import threading

import pytest
import torch

from wan_core.runtime import links
from wan_core.runtime.parcel import Parcel


class Stream:
    def __init__(self, *_):
        self.waited = []

    def wait_event(self, event):
        self.waited.append(event)

    def synchronize(self):
        pass


class Event:
    def __init__(self):
        self.recorded = threading.Event()

    def record(self, stream=None):
        self.recorded.set()

    def synchronize(self):
        assert self.recorded.wait(10), "a piece is filled again before it was sent"


@pytest.fixture
def link(monkeypatch):
    computing = Stream()
    for name, thing in {
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda *_: computing,
        "device": lambda *_: contextlib.nullcontext(),
        "stream": lambda *_: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, thing)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k))
    monkeypatch.setattr(links, "PIECE_BYTES", 1024)
    monkeypatch.setattr(links, "PIECES", 5)
    monkeypatch.setattr(links, "IN_FLIGHT", 2)
    made = links.CudaLink(torch.device("cpu"))
    made.computing = computing
    yield made
    made.close()
    assert not made._thread.is_alive()


def parcel(seed: int, *sizes: int) -> Parcel:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(size, generator=generator) for size in sizes]
    return Parcel(tensors, [()] * len(tensors))


@pytest.mark.parametrize("sizes", [(1,), (256,), (255, 257, 1), (1000, 3, 777, 64), (5000,)])
def test_what_arrives_is_what_was_sent_whatever_the_sizes(link, sizes):
    parcels = [parcel(seed, *sizes) for seed in range(7)]
    buffers = [link.buffer(one.nbytes) for one in parcels]
    tickets = [link.send(one, buffer, None) for one, buffer in zip(parcels, buffers)]
    for one, buffer, ticket in zip(parcels, buffers, tickets):
        link.wait(ticket)
        assert link.computing.waited[-1] is ticket.arrived and ticket.arrived.recorded.is_set()
        for span in one.spans:
            assert torch.equal(span.view(buffer), span.tensor)


def test_a_copy_waits_for_the_mark_after_which_its_buffer_is_free(link):
    one = parcel(0, 2000)
    mark = link.mark()
    ticket = link.send(one, link.buffer(one.nbytes), mark)
    link.wait(ticket)
    assert link.stream.waited == [mark]


def test_a_parcel_of_nothing_arrives(link):
    link.wait(link.send(parcel(0), link.buffer(0), None))


def test_what_goes_wrong_is_raised_where_it_is_waited_for_and_the_next_parcel_arrives(link):
    one = parcel(0, 3000)
    bad = link.send(one, link.buffer(8), None)  # a buffer that is too small
    good_buffer = link.buffer(one.nbytes)
    good = link.send(one, good_buffer, None)
    with pytest.raises(RuntimeError):
        link.wait(bad)
    link.wait(good)
    assert torch.equal(one.spans[0].view(good_buffer), one.spans[0].tensor)
