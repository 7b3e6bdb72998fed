"""Weights as a unit that moves. The meta device stands in for a second device."""

import pytest
import torch
from torch import nn

from wan_core.runtime.links import PlainLink
from wan_core.runtime.residency import Resident

META = torch.device("meta")


class Walked(nn.Module):
    """Two blocks and a rest."""

    walked = "blocks"

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
        self.rest = nn.Linear(2, 2)


def made(kind=lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))) -> tuple[Resident, list[nn.Module]]:
    built: list[nn.Module] = []

    def build() -> nn.Module:
        module = kind()
        built.append(module)
        return module

    return Resident("tiny", 10, META, build), built


def pointers(module: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())]


def test_nothing_is_built_before_it_is_asked_for_and_then_only_once():
    weights, built = made()
    assert not built and weights.size_bytes() == 10
    assert weights.module is weights.module and len(built) == 1
    assert weights.size_bytes() == sum(t.nbytes for t in (*built[0].parameters(), *built[0].buffers()))
    assert not weights.module.training and not any(p.requires_grad for p in weights.module.parameters())


def test_moving_out_and_home_gives_the_very_same_memory_back():
    weights, _ = made()
    home = pointers(weights.module)
    weights.move_to(META)
    assert weights.where == META
    assert all(t.is_meta for t in (*weights.module.parameters(), *weights.module.buffers()))
    weights.move_to(torch.device("cpu"))
    assert pointers(weights.module) == home


def test_an_error_half_way_leaves_everything_at_home(monkeypatch):
    weights, _ = made(Walked)
    home, calls = pointers(weights.module), []

    def full(self, nbytes):
        calls.append(nbytes)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no room")
        return torch.empty(nbytes, dtype=torch.uint8, device=META)

    monkeypatch.setattr(PlainLink, "buffer", full)
    with pytest.raises(torch.OutOfMemoryError):
        weights.move_to(META)
    assert weights.where == torch.device("cpu")
    assert pointers(weights.module) == home
