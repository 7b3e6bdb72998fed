"""Memory as a card would count it: what tensors occupy, with a limit."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make while it is active; beyond ``limit`` an operation runs out of memory."""

    def __init__(self, limit: int | None = None):
        super().__init__()
        self.limit, self.live, self.peak = limit, 0, 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = {id(one.untyped_storage()) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor) and not one.is_meta and id(one.untyped_storage()) not in inputs:
                self._count(one.untyped_storage())
        if self.limit is not None and self.live > self.limit:
            del out, one
            raise torch.OutOfMemoryError(f"pretended: {self.live} bytes of {self.limit}")
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = id(storage), storage.nbytes()
        if key in self._known:
            return

        def gone(_):
            self.live -= nbytes
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.live += nbytes
        self.peak = max(self.peak, self.live)
