"""What the runtime needs from whoever hosts it, as small protocols. Without a host the defaults here serve."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from .memory import ResidencyPlan, WeightSizes, Work, plan_residency, whole_plan
from .prompt_cache import PromptCache
from .rates import rates_of
from .residency import Resident

log = logging.getLogger(__name__)
CPU = torch.device("cpu")

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
        """Bring ``weights`` whole to their device, leaving room for ``activation_bytes``; returns the module, ready.

        ``certain``: the estimate is good enough to refuse the work by it.
        """
        ...

    def plan(
        self, weights: Sequence[Resident], sizes: WeightSizes, work: Work, budget_bytes: int | None
    ) -> ResidencyPlan:
        """How much of ``weights`` (one, or experts of equal ``sizes`` that take turns) is on their device in a run.

        ``budget_bytes``: what the user allows, at most. Raises :class:`CapacityError` where it cannot fit.
        """
        ...

    def make_room(self, nbytes: int, device: torch.device, empty: bool = False) -> None:
        """Take other models off ``device`` until ``nbytes`` are free; ``empty``: give cached memory back too."""
        ...

    def free_bytes(self, device: torch.device) -> int | None:
        """What is free on ``device`` now; None where nobody counts."""
        ...

    def release(self, weights: Resident) -> None:
        """Take ``weights`` off their device, and off what they wear."""
        ...


class PlainMemory:
    """Puts weights on their device and leaves them there: the default without a host, and in tests."""

    def __init__(self, budget_bytes: int | None = None):
        """``budget_bytes``: what runs may take on the device; None: all that is free there."""
        self.budget_bytes = budget_bytes

    def place(self, weights: Resident, activation_bytes: int, certain: bool = True) -> nn.Module:
        weights.move_to(weights.device)
        return weights.module

    def plan(
        self, weights: Sequence[Resident], sizes: WeightSizes, work: Work, budget_bytes: int | None
    ) -> ResidencyPlan:
        device, first = weights[0].device, weights[0]
        given = [one for one in (budget_bytes, self.budget_bytes, self.free_bytes(device)) if one is not None]
        if not given:
            return whole_plan(sizes, len(weights), work)
        return plan_residency(sizes, len(weights), work, min(given), rates_of(device, first.compute_dtype), first.name)

    def make_room(self, nbytes: int, device: torch.device, empty: bool = False) -> None:
        if empty and device.type == "cuda":
            torch.cuda.empty_cache()

    def free_bytes(self, device: torch.device) -> int | None:
        if device.type != "cuda":
            return None
        taken = torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - taken
        return free if self.budget_bytes is None else min(free, self.budget_bytes - taken)

    def release(self, weights: Resident) -> None:
        weights.go_home()


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
    prompts: PromptCache | None = None
    """Text encodings that were made before."""

    def walk(self, parts: Iterable[nn.Module]) -> Iterable[nn.Module]:
        """A :data:`Walk` that checks for cancel before each part."""
        for part in parts:
            self.check_cancel()
            yield part


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where a model computes: the device, and whether it multiplies bfloat16 natively; whether its file is mapped."""

    device: torch.device
    bf16: bool = False
    mapped: bool = True
