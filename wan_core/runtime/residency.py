"""One model's weights as a unit that can be built late, put on a device and taken off again."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class Resident:
    """Weights that are read from disk on first use and whose home is host memory (usually pages of the file).

    Moving to a device copies; moving home drops the copies and goes back to the home tensors, so nothing is ever
    copied back and the bits at home never change.
    """

    def __init__(
        self,
        name: str,
        size_bytes: int,
        device: torch.device,
        build: Callable[[], nn.Module],
        compute_dtype: torch.dtype = torch.float32,
    ):
        """
        Args:
            name: what messages call it (file name).
            size_bytes: bytes of all weights as stored.
            device: where it computes.
            build: reads the weights; returns the module on the CPU.
            compute_dtype: what most of it computes in.
        """
        self.name = name
        self.device = device
        self.compute_dtype = compute_dtype
        self._size_bytes = size_bytes
        self._build = build
        self._module: nn.Module | None = None
        self._home: dict[_Slot, Tensor] = {}
        self._where = torch.device("cpu")
        self.registered: object | None = None
        """Whatever the host keeps about these weights; alive as long as they are."""

    @property
    def module(self) -> nn.Module:
        """The network, wherever its weights are now; read from disk at the first call."""
        if self._module is None:
            module = self._build().train(False).requires_grad_(False)
            self._home = {slot: slot.read() for slot in _slots(module)}
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
        slots = [(slot, self._home[slot]) for slot in _slots(self.module)]
        try:
            for slot, home in slots:
                slot.fill(home if device.type == "cpu" else home.to(device))
        except BaseException:
            # Half a model on each side is worse than none: go home before the error travels on.
            for slot, home in slots:
                slot.fill(home)
            self._where = torch.device("cpu")
            raise
        self._where = device


@dataclass(frozen=True)
class _Slot:
    """A place for a tensor in a module. Filled by assignment: setting ``.data`` works between some devices only."""

    owner: nn.Module
    name: str
    is_parameter: bool

    def read(self) -> Tensor:
        return getattr(self.owner, self.name).data

    def fill(self, tensor: Tensor) -> None:
        if self.is_parameter:
            self.owner._parameters[self.name] = nn.Parameter(tensor, requires_grad=False)
        else:
            self.owner._buffers[self.name] = tensor


def _slots(module: nn.Module) -> Iterator[_Slot]:
    for owner in module.modules():
        for name, param in owner._parameters.items():
            if param is not None:
                yield _Slot(owner, name, True)
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                yield _Slot(owner, name, False)
