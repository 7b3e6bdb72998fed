"""Ways to decide where weights are, for tests: a plan of one's own, and a device that is smaller than it is."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wan_core.runtime.memory import streamed_plan
from wan_core.runtime.ports import PlainMemory


class Planned(PlainMemory):
    """Streams with ``kept`` blocks on the device, whatever is free."""

    def __init__(self, kept: int, chunk: int = 8192, together: bool = False):
        super().__init__()
        self.asked = {"kept": kept, "chunk": chunk, "together": together}

    def plan(self, weights, sizes, work, budget_bytes):
        return streamed_plan(sizes, len(weights), work, **self.asked)


class SmallDevice(TorchDispatchMode):
    """Counts the bytes of all tensors made under it that are still alive, and refuses more than ``budget``, as a device
    would. What was there before (weights at home) does not count."""

    def __init__(self, budget: float = float("inf")):
        super().__init__()
        self.budget, self.live, self.peak = budget, 0, 0
        self._known: dict[int, weakref.ref] = {}

    def watch(self, tensors) -> None:
        """Tensors that are at home."""
        for tensor in tensors:
            self._remember(tensor.untyped_storage(), 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self._add(tensor, args, kwargs)
        return out

    def _add(self, tensor, args, kwargs) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        given = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        if storage._cdata in given:  # a view or a change in place of something that was there before
            return
        nbytes = storage.nbytes()
        if self.live + nbytes > self.budget:
            raise torch.OutOfMemoryError(f"{nbytes} bytes do not fit: {self.live} of {self.budget:.0f} are taken")
        self._remember(storage, nbytes)

    def _remember(self, storage, nbytes: int) -> None:
        key = storage._cdata
        self.live += nbytes
        self.peak = max(self.peak, self.live)

        def gone(_):
            self._known.pop(key, None)
            self.live -= nbytes

        self._known[key] = weakref.ref(storage, gone)
