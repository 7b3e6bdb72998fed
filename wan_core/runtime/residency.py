"""One model's weights as a unit that can be built late, put on a device and taken off again."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class Resident:
    """Weights that are read from disk on first use and whose home is host memory (usually pages of the file).

    Moving to a device copies; moving home drops the copies and goes back to the home tensors, so nothing is ever
    copied back and the bits at home never change.
    """

    def __init__(self, name: str, size_bytes: int, device: torch.device, build: Callable[[], nn.Module]):
        """
        Args:
            name: what messages call it (file name).
            size_bytes: bytes of all weights as stored.
            device: where it computes.
            build: reads the weights; returns the module on the CPU.
        """
        self.name = name
        self.device = device
        self._size_bytes = size_bytes
        self._build = build
        self._module: nn.Module | None = None
        self._home: dict[str, Tensor] = {}
        self._where = torch.device("cpu")
        self.registered: object | None = None
        """Whatever the host keeps about these weights; alive as long as they are."""

    @property
    def module(self) -> nn.Module:
        """The network, wherever its weights are now; read from disk at the first call."""
        if self._module is None:
            module = self._build().eval().requires_grad_(False)
            self._home = {name: tensor.data for name, tensor in _tensors(module)}
            self._size_bytes = sum(tensor.nbytes for tensor in self._home.values())
            self._module = module
            log.info("%s: %d tensors, %.2f GB", self.name, len(self._home), self._size_bytes / 1e9)
        return self._module

    @property
    def where(self) -> torch.device:
        """Device that holds the weights now."""
        return self._where

    def size_bytes(self) -> int:
        return self._size_bytes

    def move_to(self, device: torch.device) -> None:
        """Put the weights on ``device``; the CPU is home."""
        if device == self._where:
            return
        module = self.module
        try:
            for name, tensor in _tensors(module):
                home = self._home[name]
                tensor.data = home if device.type == "cpu" else home.to(device)
        except BaseException:
            # Half a model on each side is worse than none: go home before the error travels on.
            for name, tensor in _tensors(module):
                tensor.data = self._home[name]
            self._where = torch.device("cpu")
            raise
        self._where = device


def _tensors(module: nn.Module):
    yield from ((name, param) for name, param in module.named_parameters())
    yield from ((name, buffer) for name, buffer in module.named_buffers())
