"""What the runtime needs from whoever hosts it, as small protocols. Without a host the defaults here serve."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from .residency import Resident

log = logging.getLogger(__name__)

CheckCancel = Callable[[], None]
"""Called before each block or chunk; raises (the host's own exception) when the user has pressed cancel."""

Notify = Callable[[str], None]
"""Shows one sentence to the user: on the node in ComfyUI, in the log elsewhere."""

Progress = Callable[[int, int, "Tensor | None"], None]
"""``(done, total, x0)``: how far the stage is; ``x0`` is the normalised latent ``[B, C, T, h, w]`` to preview."""

Walk = Callable[[Iterable[nn.Module]], Iterable[nn.Module]]
"""Yields the parts of a model one after another. A model walks its blocks with it and knows nothing of why: the
runtime checks for cancel (and can bring weights) between two of them."""


class Memory(Protocol):
    """Decides where weights are."""

    def place(self, weights: Resident, activation_bytes: int, certain: bool = True) -> nn.Module:
        """Bring ``weights`` to their device, leaving room for ``activation_bytes``; returns the module, ready.

        ``certain``: the estimate is good enough to refuse the work by it.
        """
        ...


class PlainMemory:
    """Puts weights on their device and leaves them there: the default without a host, and in tests."""

    def place(self, weights: Resident, activation_bytes: int, certain: bool = True) -> nn.Module:
        weights.move_to(weights.device)
        return weights.module


def never_cancelled() -> None:
    """The default :data:`CheckCancel`."""


def no_progress(done: int, total: int, x0: Tensor | None) -> None:
    """The default :data:`Progress`."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Everything a stage may ask of its host."""

    memory: Memory = field(default_factory=PlainMemory)
    check_cancel: CheckCancel = never_cancelled
    notify: Notify = log.info
    progress: Progress = no_progress

    def walk(self, parts: Iterable[nn.Module]) -> Iterable[nn.Module]:
        """A :data:`Walk` that checks for cancel before each part."""
        for part in parts:
            self.check_cancel()
            yield part


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where a model computes: the device, and whether it multiplies bfloat16 natively."""

    device: torch.device
    bf16: bool = False
