"""One model's weights as a unit that can be built late, put on a device and taken off again."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..weights.lora_math import Worn, merged
from .linear import StoredLinear

log = logging.getLogger(__name__)

Changes = Mapping[str, Sequence[Worn]]
"""Official name of a tensor -> what is added to it."""


class Resident:
    """Weights that are read from disk on first use and whose home is host memory (usually pages of the file).

    Moving to a device copies; moving home drops the copies and goes back to the home tensors, so nothing is ever
    copied back and the bits at home never change. LoRAs are worn: they change the tensors that compute, never those
    at home.
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
        self._worn: Changes = {}
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
        self._go_home()
        if device.type == "cpu":
            return
        try:
            for slot, home in self._home.items():
                slot.fill(home.to(device))
        except BaseException:
            self._go_home()
            raise
        self._where = device

    def _go_home(self) -> None:
        """Everything as it was read; this takes no memory and cannot fail, so a half-done change can always be left."""
        module = self.module
        self._worn = {}
        for slot in _slots(module):
            slot.add_at_use(())
            slot.fill(self._home[slot])
        self._where = torch.device("cpu")

    def wear(self, changes: Changes) -> None:
        """Compute with these changes from now on, and with no others.

        A weight that is stored in fewer bits than it computes in keeps its storage and is changed at each use; every
        other tensor is merged here, once, from its home values, where it computes.
        """
        if changes == self._worn:
            return
        touched = {*changes, *self._worn}
        slots = [slot for slot in _slots(self.module) if slot.path in touched]
        try:
            for slot in slots:
                self._put(slot, changes.get(slot.path, ()))
        except BaseException:
            self._go_home()
            raise
        self._worn = dict(changes)

    def _put(self, slot: "_Slot", changes: Sequence[Worn]) -> None:
        """Fill a place from home, with these changes."""
        if slot.add_at_use([change.placed(self._where) for change in changes]):
            return
        home = self._home[slot]
        here = home.to(self._where)
        slot.fill(merged(here, changes, home.dtype) if changes else here)


@dataclass(frozen=True)
class _Slot:
    """A place for a tensor in a module. Filled by assignment: setting ``.data`` works between some devices only."""

    owner: nn.Module
    name: str
    is_parameter: bool
    path: str

    def read(self) -> Tensor:
        return getattr(self.owner, self.name).data

    def fill(self, tensor: Tensor) -> None:
        if self.is_parameter:
            self.owner._parameters[self.name] = nn.Parameter(tensor, requires_grad=False)
        else:
            self.owner._buffers[self.name] = tensor

    def add_at_use(self, changes: Sequence[Worn]) -> bool:
        """Let the layer itself add the changes, where its weight is stored narrower than it computes."""
        if not (isinstance(self.owner, StoredLinear) and self.name == "weight" and self.owner.is_narrow):
            return False
        self.owner.worn = tuple(changes)
        return True


def _slots(module: nn.Module) -> Iterator[_Slot]:
    for place, owner in module.named_modules():
        prefix = f"{place}." if place else ""
        for name, param in owner._parameters.items():
            if param is not None:
                yield _Slot(owner, name, True, prefix + name)
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                yield _Slot(owner, name, False, prefix + name)
