"""One model's weights: built late, put on a device whole or block by block, and taken off again."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..weights.lora_math import Worn, merged
from .linear import StoredLinear
from .links import Link, link_for
from .memory import WeightSizes
from .parcel import Parcel

log = logging.getLogger(__name__)
CPU = torch.device("cpu")

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
        sizes: WeightSizes | None = None,
    ):
        """
        Args:
            name: what messages call it (file name).
            size_bytes: bytes of all weights as stored.
            device: where it computes.
            build: reads the weights; returns the module on the CPU.
            compute_dtype: what most of it computes in.
            sizes: bytes of its blocks, from the file's header; None: counted when it is built.
        """
        self.name = name
        self.device = device
        self.compute_dtype = compute_dtype
        self._size_bytes = size_bytes
        self._sizes = sizes
        self._build = build
        self._module: nn.Module | None = None
        self._home: dict[_Slot, Tensor] = {}
        self._where = CPU
        self._worn: Changes = {}
        self._prepared: Changes = {}
        self._parts: list[list[_Slot]] | None = None
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

    def sizes(self) -> WeightSizes:
        """Bytes of each block that the network walks, and of the rest."""
        if self._sizes is None:
            groups = self._groups()
            nbytes = [sum(self._home[slot].nbytes for slot in group) for group in groups]
            self._sizes = WeightSizes(blocks=tuple(nbytes[:-1]), rest=nbytes[-1])
        return self._sizes

    def _groups(self) -> list[list["_Slot"]]:
        """The places of each block, then those of the rest. What the network keeps at home is in none."""
        module = self.module
        places = walked_places(module)
        count = len(places)
        groups: dict[int, list[_Slot]] = defaultdict(list)
        for slot in self._home:
            index = places.get(block_path(slot.path), count)
            if not slot.path.startswith(getattr(module, "stays_home", ("\0",))):
                groups[index].append(slot)
        return [groups[index] for index in range(count + 1)]

    def outfit(self, index: int | None, changes: Changes) -> Changes:
        """The changes that concern block ``index`` (None: the rest)."""
        return {slot.path: tuple(changes[slot.path]) for slot in self._group(index) if slot.path in changes}

    def parcel(self, index: int | None, changes: Changes, changes_only: bool = False) -> Parcel:
        """What travels so that block ``index`` (None: the rest) can compute elsewhere wearing ``changes``."""
        slots = self._group(index)
        worn = [changes.get(slot.path, ()) for slot in slots]
        return Parcel([self._home[slot] for slot in slots], worn, changes_only)

    def install(self, index: int | None, tensors: Sequence[Tensor], worn: Sequence[Sequence[Worn]]) -> None:
        """Let block ``index`` (None: the rest) compute with these tensors, in :meth:`parcel`'s order."""
        for slot, tensor, changes in zip(self._group(index), tensors, worn, strict=True):
            slot.add_at_use(changes)
            slot.fill(tensor)

    def uninstall(self, index: int | None) -> None:
        """Back to the tensors at home."""
        for slot in self._group(index):
            slot.add_at_use(())
            slot.fill(self._home[slot])

    def is_changed_at_use(self, index: int | None) -> list[bool]:
        """Of each tensor of :meth:`parcel`: its layer adds LoRA changes at each use, as its storage is narrow."""
        return [slot.is_narrow() for slot in self._group(index)]

    def _group(self, index: int | None) -> list["_Slot"]:
        if self._parts is None:
            self._parts = self._groups()
        return self._parts[-1 if index is None else index]

    def move_to(self, device: torch.device) -> None:
        """Put the weights on ``device``; the CPU is home. They arrive wearing what :meth:`prepare` said."""
        if device == self._where:
            return
        self.go_home()
        if device == CPU:
            return
        try:
            self._where = device
            self._carry(self._indices(), self._prepared)
        except BaseException:
            self.go_home()
            raise

    def prepare(self, changes: Changes) -> None:
        """What to wear on arrival, so that a move and the first :meth:`wear` are one transfer."""
        self._prepared = changes

    def _indices(self) -> list[int | None]:
        return [*range(len(self.sizes().blocks)), None]

    def _carry(self, indices: Sequence[int | None], changes: Changes, bare: frozenset = frozenset()) -> None:
        """Let these parts wear ``changes`` where they compute: those that are ``bare`` there get the changes alone, the
        others come from home."""
        link = link_for(self._where)
        try:
            on_their_way = []
            for index in indices:
                outfit = self.outfit(index, changes)
                there = [slot.read() for slot in self._group(index)] if index in bare else None
                if there is None:
                    self.uninstall(index)  # what it had there makes room
                parcel = self.parcel(index, outfit, changes_only=there is not None)
                buffer = link.buffer(parcel.nbytes)
                on_their_way.append((index, parcel, buffer, link.send(parcel, buffer, None), there))
                if len(on_their_way) > 1:
                    self._receive(link, *on_their_way.pop(0))
            for one in on_their_way:
                self._receive(link, *one)
        finally:
            link.close()
        self._worn = dict(changes)

    def _receive(self, link: Link, index: int | None, parcel: Parcel, buffer: Tensor, ticket: object, there) -> None:
        link.wait(ticket)
        self.install(index, *parcel.unpack(buffer, self.is_changed_at_use(index), there))

    def go_home(self) -> None:
        """Everything as it was read; this takes no memory and cannot fail, so a half-done change can always be left."""
        module = self._module
        if module is None:
            return
        self._worn = {}
        for slot in _slots(module):
            slot.add_at_use(())
            slot.fill(self._home[slot])
        self._where = CPU

    def wear(self, changes: Changes) -> None:
        """Compute with these changes from now on, and with no others.

        A weight that is stored in fewer bits than it computes in keeps its storage and is changed at each use; every
        other tensor is merged, once, from its home values, where it computes.
        """
        if changes == self._worn:
            return
        try:
            if self._where != CPU:
                worn = {index: self.outfit(index, self._worn) for index in self._indices()}
                changed = [index for index in worn if self.outfit(index, changes) != worn[index]]
                self._carry(changed, changes, frozenset(index for index in changed if not worn[index]))
            else:
                self._wear_at_home(changes)
        except BaseException:
            self.go_home()
            raise
        self._worn = dict(changes)

    def _wear_at_home(self, changes: Changes) -> None:
        touched = {*changes, *self._worn}
        for slot in [slot for slot in _slots(self.module) if slot.path in touched]:
            self._put(slot, changes.get(slot.path, ()))

    def _put(self, slot: "_Slot", changes: Sequence[Worn]) -> None:
        """Fill a place at home, with these changes."""
        if slot.add_at_use([change.placed(CPU) for change in changes]):
            return
        home = self._home[slot]
        slot.fill(merged(home, changes, home.dtype) if changes else home)


def walked_places(module: nn.Module) -> dict[str, int]:
    """Path of each block that a network walks -> its place in the walk. Its ``walked`` is the name of one list of
    blocks, or the paths in order where several lists take turns; without it there are none."""
    walked = getattr(module, "walked", ())
    if isinstance(walked, str):
        walked = [f"{walked}.{index}" for index in range(len(getattr(module, walked)))]
    return {path: place for place, path in enumerate(walked)}


def block_path(name: str) -> str:
    """The block that a tensor would belong to: the first two parts of its name."""
    return ".".join(name.split(".", 2)[:2])


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

    def is_narrow(self) -> bool:
        """A weight that is stored in fewer bits than it computes in."""
        return isinstance(self.owner, StoredLinear) and self.name == "weight" and self.owner.is_narrow

    def add_at_use(self, changes: Sequence[Worn]) -> bool:
        """Let the layer itself add the changes, where its weight is stored narrower than it computes."""
        if not self.is_narrow():
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
