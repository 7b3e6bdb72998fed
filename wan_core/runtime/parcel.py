"""The tensors of one block, and of the LoRAs that it wears, as one piece of memory that travels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..weights.lora_math import Worn, merged

ALIGNMENT = 256
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Span:
    """Where a tensor lies in a buffer."""

    tensor: Tensor
    offset: int

    def view(self, buffer: Tensor) -> Tensor:
        """The tensor's place in a buffer of bytes."""
        there = buffer[self.offset : self.offset + self.tensor.nbytes]
        return there.view(self.tensor.dtype).view(self.tensor.shape)


class Parcel:
    """Tensors at home (on the CPU), each with the LoRA changes that it wears, laid out one behind the other."""

    def __init__(self, tensors: Sequence[Tensor], worn: Sequence[Sequence[Worn]], changes_only: bool = False):
        """
        Args:
            tensors: on the CPU; usually mapped pages of a file.
            worn: for each tensor the changes to add to it.
            changes_only: the tensors themselves stay; only the changes travel to where they already are.
        """
        self._end = 0
        self.spans: list[Span] = []
        self._tensors = [] if changes_only else [self._add(tensor) for tensor in tensors]
        self._worn = [[(change, self._add_parts(change)) for change in changes] for changes in worn]
        self.nbytes = self._end

    def _add(self, tensor: Tensor) -> Span:
        span = Span(tensor.contiguous(), self._end)
        self._end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        self.spans.append(span)
        return span

    def _add_parts(self, change: Worn) -> dict[str, Span | Tensor]:
        """The tensors of a change; alpha, a number, stays on the CPU, where it is read."""
        parts = change.source.stored(change.change, CPU)
        return {role: part if role == "alpha" else self._add(part) for role, part in parts.items()}

    def unpack(
        self, buffer: Tensor, at_use: Sequence[bool], there: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], list[tuple[Worn, ...]]]:
        """The tensors in a buffer that has arrived, merged with what they wear; computed where the buffer is.

        Args:
            at_use: for each tensor, whether its layer adds its changes at each use; it is left as it is then.
            there: the tensors, bare, where only changes have travelled; they are changed in place.

        Returns:
            The tensors, and for each the changes that are left to its layer, with their tensors in the buffer.
        """
        tensors = [span.view(buffer) for span in self._tensors] if there is None else list(there)
        left = []
        for tensor, changes, later in zip(tensors, self._worn, at_use, strict=True):
            here = tuple(
                change.on({role: _view(part, buffer) for role, part in parts.items()}) for change, parts in changes
            )
            if here and not later:
                tensor.copy_(merged(tensor, here, tensor.dtype))
                here = ()
            left.append(here)
        return tensors, left


def _view(part: Span | Tensor, buffer: Tensor) -> Tensor:
    return part.view(buffer) if isinstance(part, Span) else part
