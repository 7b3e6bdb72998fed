"""A run's stay on the device: weights in place for each step, and what happens when memory runs out.

The ladder: free other models -> keep fewer blocks -> cut the work smaller -> an error with what is needed and what
there is. The retry happens outside the ``except``, so that nothing of the failed attempt is still referred to.
"""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import CapacityError, gigabytes
from .links import Link, link_for
from .memory import ResidencyPlan, WeightSizes, Work, adjusted, lower, smallest_bytes
from .offload import Leg, Streamer
from .ports import Ports, Walk
from .residency import Changes, Resident

log = logging.getLogger(__name__)
T = TypeVar("T")
MAX_RETRIES = 4
OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
"""Its name since PyTorch 2.5, and before."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One step: which weights compute, and the LoRAs they wear."""

    weights: Resident
    changes: Changes = field(default_factory=dict)
    passes: int = 1
    """Predictions: 2 with guidance; 0 where the step makes none."""


class Stay:
    """Holds a device for one run. Use as a context; at its end nothing of it is left there."""

    def __init__(self, stops: Sequence[Stop], work: Work, ports: Ports, budget_bytes: int | None = None):
        """
        Args:
            stops: the steps of the run in order, each with the weights that it uses.
            work: what a step needs besides.
            ports: the host; decides on the plan, and is told of it.
            budget_bytes: what the user allows; None: what the host says.

        Raises:
            CapacityError: it cannot fit; nothing has been loaded then.
        """
        self.stops, self.work, self._ports = stops, work, ports
        self.weights = list(dict.fromkeys(stop.weights for stop in stops))
        self.sizes = _dressed(self.weights[0].sizes(), stops)
        self.plan = ports.memory.plan(self.weights, self.sizes, work, budget_bytes)
        self._budget = budget_bytes
        self._link: Link | None = None
        self._streamer: Streamer | None = None
        self._legs_before: dict[int, int] = {}
        self._placed: Resident | None = None
        self._number = -1
        self._retries = 0

    def __enter__(self) -> "Stay":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    @property
    def device(self) -> torch.device:
        return self.weights[0].device

    def begin(self, number: int, again: int = 0) -> tuple[nn.Module, Walk]:
        """Everything in place for step ``number``, for its prediction ``again`` (0, then 1 where they go apart).

        Returns:
            The network, and the walk that brings its blocks.
        """
        stop = self.stops[number]
        if number != self._number:
            self._number = number
            self._adjust(number)
        if self.plan.whole:
            self._place(stop)
            return stop.weights.module, self._ports.walk
        if self._streamer is None:
            self._start(number)
        leg = self._legs_before[number] + (0 if self.plan.together else again)
        self._streamer.begin(leg)
        return stop.weights.module, lambda blocks: self._ports.walk(self._streamer.walk(leg, blocks))

    def attempt(self, work: Callable[[], T]) -> T:
        """``work()``, again with less memory when it runs out.

        Raises:
            CapacityError: the last rung was not enough.
        """
        while True:
            try:
                return work()
            except Exception as error:
                if not (is_out_of_memory(error) or isinstance(error, CapacityError)):  # or a host that cannot place it
                    raise
                said = str(error).partition("\n")[0][:200]
            self._step_down(said)

    def walk_once(self, *inputs: Tensor) -> Tensor:
        """The network's output for these inputs, in a run of one step."""

        def forward() -> Tensor:
            module, walk = self.begin(0)
            return module(*inputs, walk=walk)

        return self.attempt(forward)

    def close(self) -> None:
        """Give everything back."""
        self._stop_streaming()
        if self._link is not None:
            self._link.close()
            self._link = None

    def _place(self, stop: Stop) -> None:
        """Whole weights, through the host; a host may tidy its memory at each placing, so only at a change."""
        if self._placed is not stop.weights:
            if self._placed is not None and self._placed.where.type == "cpu":
                self._placed.wear({})  # what it wears at home is a copy of its weights
            # On a card both experts of a pair are brought at once: their change then costs nothing.
            later = {one.weights for one in self.stops[self._number :]}  # an expert may have no step that computes
            others = [one for one in self.weights if one in later - {stop.weights} and self._placed is None]
            for weights in (*(others if self.device.type != "cpu" else ()), stop.weights):
                weights.prepare(next(one.changes for one in self.stops[self._number :] if one.weights is weights))
                self._ports.memory.place(weights, self.plan.work_bytes)
            self._placed = stop.weights
        stop.weights.wear(stop.changes)

    def _start(self, number: int) -> None:
        """Stream from step ``number`` on."""
        plan = self.plan
        for weights in self.weights:  # in case they are there whole, or at home in an outfit
            self._ports.memory.release(weights)
        self._ports.memory.make_room(plan.peak_bytes, self.device)
        self._link = self._link or link_for(self.device)
        walks = [min(1, stop.passes) if self.plan.together else stop.passes for stop in self.stops[number:]]
        legs = [Leg(stop.weights, stop.changes) for stop, n in zip(self.stops[number:], walks) for _ in range(n)]
        self._legs_before = dict(enumerate((0, *accumulate(walks)), start=number))
        slots = self.sizes.largest and (plan.weight_bytes - len(self.weights) * self.sizes.rest) // self.sizes.largest
        self._streamer = Streamer(
            self._link, legs, blocks=len(self.sizes.blocks), kept=plan.kept, slots=max(1, int(slots))
        )

    def _stop_streaming(self) -> None:
        if self._streamer is not None:
            self._streamer.close()
            self._streamer = None

    def _adjust(self, number: int) -> None:
        """Between two steps: what another program took or gave back changes how much is kept."""
        free = self._ports.memory.free_bytes(self.device) if number and self._streamer is not None else None
        plan = (
            None if free is None else adjusted(self.plan, self.sizes, len(self.weights), self.work, free, self._budget)
        )
        if plan is not None and self._retries and len(plan.kept) > len(self.plan.kept):
            return  # what looked free once was not
        if plan is not None:
            log.info("%s free before step %d: %s", gigabytes(free), number + 1, plan.describe())
            self._change(plan)

    def _change(self, plan: ResidencyPlan) -> None:
        self._stop_streaming()
        if self.plan.whole:
            for weights in self.weights:
                self._ports.memory.release(weights)
            self._placed = None
        self.plan = plan

    def _step_down(self, said: str) -> None:
        """One rung down, or the end of the ladder."""
        self._stop_streaming()
        gc.collect()
        self._ports.memory.make_room(self.plan.peak_bytes, self.device, empty=True)
        plan = lower(self.plan, self.sizes, len(self.weights), self.work)
        self._retries += 1
        if plan is None or self._retries > MAX_RETRIES:
            needed = smallest_bytes(self.sizes, len(self.weights), self.work)
            free = self._ports.memory.free_bytes(self.device)
            raise CapacityError(
                f"{self.weights[0].name} ran out of memory on {self.device} with the smallest plan, which needs about "
                f"{gigabytes(needed)}" + ("" if free is None else f"; {gigabytes(free)} are free now") + f" ({said}). "
                "Use fewer frames or a smaller size, an fp8 file, or close other programs that use the device."
            )
        self._ports.notify(f"Memory ran out; going on with less. {plan.describe()}")
        self._change(plan)


def _dressed(sizes: WeightSizes, stops: Sequence[Stop]) -> WeightSizes:
    """Sizes with the LoRAs that travel along."""
    worn = [stop for stop in stops if stop.changes]
    if not worn or not sizes.blocks:
        return sizes
    distinct = []
    for stop in worn:
        if not any(one.weights is stop.weights and one.changes == stop.changes for one in distinct):
            distinct.append(stop)
    blocks = [
        max(stop.weights.parcel(index, stop.weights.outfit(index, stop.changes)).nbytes for stop in distinct)
        for index in range(len(sizes.blocks))
    ]
    return replace(sizes, blocks=tuple(max(pair) for pair in zip(blocks, sizes.blocks)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; there are several, and one is a plain RuntimeError."""
    if isinstance(error, (OUT_OF_MEMORY, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "not enough memory" in text or "alloc_failed" in text
    )
