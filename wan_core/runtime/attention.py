"""Scaled dot-product attention behind one function, with a table of backends.

``auto`` is PyTorch's own attention; on CUDA cuDNN's kernel is asked for first, which PyTorch by itself does not always
do. Other backends are used where a run asks for them (:func:`using`), and trusted only after they have agreed with
PyTorch on the run's own activations.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

AUTO = "auto"
CHECK_QUERIES = 256
"""Queries on which a backend is compared with PyTorch, against all keys."""
TOLERANCE = 2e-2
"""Largest relative error at which a backend is trusted: that of 8-bit attention is near 1e-2."""
HALVES = (torch.float16, torch.bfloat16)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``q [B, L, H, D], k, v [B, S, H, D] -> [B, L, H, D]``."""


def attention(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention, scaled by ``1 / sqrt(D)``.

    Args:
        q_BLHD: queries, ``[batch, tokens, heads, head_dim]``.
        k_BSHD, v_BSHD: keys and values over ``S`` tokens. ``q`` and ``k`` are cast to ``v``'s dtype.
        mask: broadcastable to ``[B, H, L, S]``; boolean (True is attended), or float, added to the scores.

    Returns:
        ``[B, L, H, D]`` in ``v``'s dtype.
    """
    dtype = v_BSHD.dtype
    q_BLHD, k_BSHD = q_BLHD.to(dtype), k_BSHD.to(dtype)
    if mask is not None:
        if mask.is_floating_point() and mask.device.type != "cpu":  # the CPU's kernel adds it in float32
            mask = mask.to(dtype)
        return _sdpa(q_BLHD, k_BSHD, v_BSHD, mask)
    return (_chosen.get() or _auto)(q_BLHD, k_BSHD, v_BSHD)


def _auto(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    return (_cudnn_first if v_BSHD.is_cuda else _sdpa)(q_BLHD, k_BSHD, v_BSHD)


def _sdpa(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_BLHD, k_BSHD, v_BSHD))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _cudnn_first(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    """PyTorch's own choice, with cuDNN before the others where it can do it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
    try:
        context = sdpa_kernel([getattr(SDPBackend, name) for name in order], set_priority=True)
    except (AttributeError, TypeError):  # PyTorch before 2.6 knows no order
        return _sdpa(q_BLHD, k_BSHD, v_BSHD)
    with context:
        return _sdpa(q_BLHD, k_BSHD, v_BSHD)


def _flash(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    out = _flash_function()(q_BLHD, k_BSHD, v_BSHD)
    return out[0] if isinstance(out, tuple) else out


@lru_cache(maxsize=1)
def _flash_function() -> Callable:
    """FlashAttention 3 where it is built (``flash_attn_interface``), else 2."""
    if _is_installed("flash_attn_interface"):
        from flash_attn_interface import flash_attn_func
    else:
        from flash_attn import flash_attn_func
    return flash_attn_func


def _xformers(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(q_BLHD, k_BSHD, v_BSHD)


def _sage(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    """SageAttention: scores from 8-bit queries and keys, so not exact."""
    from sageattention import sageattn

    return sageattn(q_BLHD, k_BSHD, v_BSHD, tensor_layout="NHD")


def _is_installed(package: str) -> bool:
    """Whether a package could be imported; it is not."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # another pack has put a stand-in of that name in its place
        return False


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A way to compute attention, and the packages of which one has to be there; none: PyTorch's own, not checked."""

    attend: Attend
    packages: tuple[str, ...] = ()

    @property
    def is_here(self) -> bool:
        return not self.packages or any(_is_installed(name) for name in self.packages)


BACKENDS: dict[str, Backend] = {
    "sdpa": Backend(attend=_sdpa),
    "flash": Backend(attend=_flash, packages=("flash_attn_interface", "flash_attn")),
    "xformers": Backend(attend=_xformers, packages=("xformers",)),
    "sage": Backend(attend=_sage, packages=("sageattention",)),
}
"""What a run can ask for, besides ``auto``."""


def available_backends() -> list[str]:
    """Names that can be asked for here; nothing is imported to find out."""
    return [AUTO, *(name for name, backend in BACKENDS.items() if backend.is_here)]


class _Checked:
    """A backend in one run. For each dtype, head dim and device it has to agree with PyTorch before it is used."""

    def __init__(self, name: str, notify: Callable[[str], None]):
        self.name, self.notify, self._told = name, notify, False

    def __call__(self, q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
        known = (self.name, v_BSHD.dtype, v_BSHD.shape[-1], v_BSHD.device)
        if known not in _problems:
            self._judge(known, q_BLHD, k_BSHD, v_BSHD)
        if known in _problems and _problems[known] is None:
            out = self._try(known, q_BLHD, k_BSHD, v_BSHD)
            if out is not None:
                return out
        if known in _problems and not self._told:
            self._told = True
            self.notify(
                f"The attention backend '{self.name}' is not used: {_problems[known]}. PyTorch's own does it: the "
                "result is exact, and takes longer where the backend would have been faster."
            )
        return _auto(q_BLHD, k_BSHD, v_BSHD)

    def _judge(self, known: tuple, q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> None:
        """Compare it with PyTorch on some of the queries. Numbers that are not finite say nothing of a backend."""
        if v_BSHD.dtype not in HALVES:
            _problems[known] = f"it takes float16 and bfloat16, and this computes in {str(v_BSHD.dtype)[6:]}"
            return
        few = q_BLHD[:, :CHECK_QUERIES]
        wanted = _sdpa(few, k_BSHD, v_BSHD)
        got = self._try(known, few, k_BSHD, v_BSHD) if bool(wanted.isfinite().all()) else None
        if got is None:
            return
        if got.shape != wanted.shape or got.dtype != wanted.dtype or not bool(got.isfinite().all()):
            _problems[known] = "its result is not finite, or has another shape or type"
            return
        size = wanted.float().norm().clamp_min(torch.finfo(torch.float32).tiny)
        error = ((got.float() - wanted.float()).norm() / size).item()
        _problems[known] = None if error <= TOLERANCE else f"it is off by {error:.1%} on this model's own numbers"

    def _try(self, known: tuple, q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor | None:
        """What it gives, or None after it failed; memory that runs out is the run's business and passes through."""
        try:
            return BACKENDS[self.name].attend(q_BLHD, k_BSHD, v_BSHD)
        except Exception as error:
            from .stay import is_out_of_memory  # here, as models import this file and nothing of residency

            if is_out_of_memory(error):
                raise
            _problems[known] = f"it failed here ({type(error).__name__}: {str(error)[:120]})"
            return None


_problems: dict[tuple, str | None] = {}
"""Why a backend is not trusted with a dtype, head dim and device, for as long as the process lives; None: it is."""
_chosen: ContextVar[Attend | None] = ContextVar("wan_core_attention", default=None)


@contextmanager
def using(name: str, notify: Callable[[str], None] = log.info) -> Iterator[None]:
    """Within it, :func:`attention` uses the backend ``name``; ``notify`` is told when it cannot be.

    A backend that is not installed is told too, and ``auto`` is used.
    """
    attend: Attend | None = None
    if name != AUTO:
        if name in BACKENDS and BACKENDS[name].is_here:
            attend = _Checked(name, notify) if BACKENDS[name].packages else BACKENDS[name].attend
        else:
            notify(f"The attention backend '{name}' is not installed; there are {', '.join(available_backends())}.")
    token = _chosen.set(attend)
    try:
        yield
    finally:
        _chosen.reset(token)
