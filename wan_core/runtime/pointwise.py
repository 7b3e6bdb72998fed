"""The steps of the networks that are bound by memory, not by arithmetic: norms, rotations, gated sums.

One function each, in float32 inside, rounded once to what the next matrix product computes in. On CUDA each is a single
Triton kernel where Triton is there and agrees with PyTorch on the first rows that it is given; else, and everywhere
else, it is PyTorch. Without autograd the functions may change what they are given (each says what).
Shape letters: B batch, L tokens, H heads, D head dim, d width, U distinct timesteps.
"""

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

CHECK_ROWS = 64
"""Rows on which a kernel is compared with PyTorch before it is trusted."""
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest relative error at which a kernel is trusted: a few units of the last place of the type."""


def norm_modulate(
    x_BLd: Tensor, shift_Ud: Tensor, scale_Ud: Tensor, which: Tensor, eps: float, out_dtype: torch.dtype
) -> Tensor:
    """Layer norm without parameters, times ``1 + scale``, plus ``shift``.

    Args:
        which: int64 ``[B, 1 or L]``: the row of ``shift`` and ``scale`` that each token has.

    Returns:
        ``[B, L, d]`` in ``out_dtype``.
    """
    return _run("norm_modulate", x_BLd, (x_BLd, shift_Ud, scale_Ud, which, eps, out_dtype), out_dtype)


def norm_affine(x_BLd: Tensor, weight_d: Tensor, bias_d: Tensor, eps: float, out_dtype: torch.dtype) -> Tensor:
    """Layer norm with weight and bias: ``[B, L, d]`` in ``out_dtype``."""
    return _run("norm_affine", x_BLd, (x_BLd, weight_d, bias_d, eps, out_dtype), out_dtype)


def add_gated(x_BLd: Tensor, y_BLd: Tensor, gate_Ud: Tensor | None, which: Tensor | None) -> Tensor:
    """``x + gate[which] * y`` in ``x``'s dtype (``gate`` None: ``x + y``). Without autograd ``x`` itself, changed."""
    return _run("add_gated", x_BLd, (x_BLd, y_BLd, gate_Ud, which), x_BLd.dtype)


def rms_rotate(
    q_BLd: Tensor,
    weight_d: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    eps: float,
    out_dtype: torch.dtype,
) -> Tensor:
    """RMS norm over the width, then adjacent channel pairs of every head turned by the token's angles.

    Args:
        cos, sin: float32 ``[L, D/2]``, or ``[B, L, D/2]``; None: no turn.

    Returns:
        ``[B, L, H, D]`` in ``out_dtype``. Without autograd ``q`` may be overwritten.
    """
    arguments = (q_BLd, weight_d, cos, sin, heads, eps, out_dtype)
    return _run("rms_rotate", q_BLd, arguments, out_dtype)


def rms_silu(x_BCTHW: Tensor, gamma: Tensor, out_BCTHW: Tensor) -> None:
    """``silu(x / |x| * sqrt(C) * gamma)`` into ``out``, with ``|x|`` over the channels; an empty pixel stays 0.

    Both have their channels last in memory; ``gamma`` holds one value a channel.
    """
    x, out = x_BCTHW.movedim(1, -1), out_BCTHW.movedim(1, -1)
    _run("rms_silu", x, (x, gamma.flatten(), out), out.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh form. Without autograd ``x`` itself, changed."""
    if torch.is_grad_enabled():
        return F.gelu(x, approximate="tanh")
    return torch.ops.aten.gelu_(x, approximate="tanh")


def _norm_modulate(x, shift, scale, which, eps, out_dtype):
    width = x.shape[-1:]
    if len(scale) == 1:
        return F.layer_norm(x.float(), width, 1 + scale[0].float(), shift[0].float(), eps).to(out_dtype)
    normed = F.layer_norm(x.float(), width, eps=eps)
    return torch.addcmul(shift[which], normed, 1 + scale[which]).to(out_dtype)


def _norm_affine(x, weight, bias, eps, out_dtype):
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps).to(out_dtype)


def _add_gated(x, y, gate, which):
    if torch.is_grad_enabled():
        return x + y if gate is None else x + gate[which] * y
    if gate is None:
        return x.add_(y)
    if len(gate) == 1 and x.dtype == gate.dtype:
        return x.addcmul_(y.to(x.dtype), gate[0])
    return x.add_(gate[which] * y)


def _rms_rotate(q, weight, cos, sin, heads, eps, out_dtype):
    if torch.is_grad_enabled():
        normed = F.rms_norm(q.float(), weight.shape, weight.float(), eps).unflatten(-1, (heads, -1))
        return (normed if cos is None else _turned(normed, cos, sin)).to(out_dtype)
    whole = q.float().contiguous()
    inverse = torch.linalg.vector_norm(whole, dim=-1).square_().div_(whole.shape[-1]).add_(eps).rsqrt_()
    whole.mul_(weight.float())
    if cos is None:
        return whole.mul_(inverse[..., None]).to(out_dtype).unflatten(-1, (heads, -1))
    pairs = torch.view_as_complex(whole.unflatten(-1, (heads, -1, 2)))
    pairs.mul_(torch.complex(cos, sin).unsqueeze(-2) * inverse[..., None, None])
    return torch.view_as_real(pairs).flatten(-2).to(out_dtype)


def _rms_silu(x, gamma, out):
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).clamp_min_(1e-12)
    # The clamp keeps an all-zero pixel at 0 in float16, where sqrt(C) / 1e-12 would be infinite and 0 * inf NaN.
    scale = (x.shape[-1] ** 0.5 / norm).clamp_max_(torch.finfo(x.dtype).max).to(x.dtype)
    torch.mul(x, scale, out=out)
    return F.silu(out.mul_(gamma), inplace=True)


def _turned(x_BLHD, cos, sin):
    even, odd = x_BLHD.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


TORCH: dict[str, Callable] = {
    "norm_modulate": _norm_modulate,
    "norm_affine": _norm_affine,
    "add_gated": _add_gated,
    "rms_rotate": _rms_rotate,
    "rms_silu": _rms_silu,
}
"""What every device can do."""

_trusted: dict[tuple, bool] = {}
"""(function, device, width, output dtype, what each argument is) -> whether its kernel agreed with PyTorch."""


def _run(name: str, first: Tensor, arguments: tuple, out_dtype: torch.dtype) -> Tensor:
    if first.device.type != "cuda" or torch.is_grad_enabled() or out_dtype not in TOLERANCES:
        return TORCH[name](*arguments)
    kernel = _kernels().get(name)
    if kernel is None or not kernel.takes(*arguments):
        return TORCH[name](*arguments)
    kinds = (one.dtype if isinstance(one, Tensor) else one is None for one in arguments)
    known = (name, first.device, first.shape[-1], out_dtype, *kinds)
    trusted = _trusted.get(known)
    if trusted:
        return kernel(*arguments)
    if trusted is None:
        trusted = _trusted[known] = _agrees(name, kernel, arguments, out_dtype)
    return kernel(*arguments) if trusted else TORCH[name](*arguments)


def _agrees(name: str, kernel: Callable, arguments: tuple, out_dtype: torch.dtype) -> bool:
    """Compare a kernel with PyTorch on the first rows of what it is to work on; both get copies."""
    few, again = ([_first_rows(name, one) for one in arguments] for _ in range(2))
    try:
        wanted, got = TORCH[name](*few).float(), kernel(*again).float()
        error = ((got - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()
    except torch.OutOfMemoryError:  # says nothing of the kernel; whoever makes room comes again
        raise
    except Exception as problem:  # noqa: BLE001 - a compiler that does not work here is no reason to stop
        log.warning("the kernel of %s does not run here (%s); PyTorch does it, a little slower", name, problem)
        return False
    if not error <= TOLERANCES[out_dtype]:
        log.warning("the kernel of %s is off by %.1e; PyTorch does it, a little slower", name, error)
        return False
    return True


def _first_rows(name: str, one):
    """A copy of what an argument has for the first tokens; what is not per token (of timesteps, of channels) whole."""
    if not isinstance(one, Tensor):
        return one
    if one.dtype == torch.int64:
        return one[:, :CHECK_ROWS].clone()
    if one.ndim == 5:
        return one[:1, :1, :1, :CHECK_ROWS].clone()
    is_per_token = one.ndim == 3 or (name == "rms_rotate" and one.ndim == 2)
    return (one[..., :CHECK_ROWS, :] if is_per_token else one).clone()


_found: dict[str, Callable] | None = None


def _kernels() -> dict[str, Callable]:
    """The Triton kernels, imported when a CUDA tensor first needs one; none where Triton is not there."""
    global _found
    if _found is None:
        try:
            from .pointwise_triton import KERNELS

            _found = KERNELS
        except Exception as problem:  # noqa: BLE001 - whatever keeps it from being imported
            log.info("no Triton (%s): norms and rotations are done by PyTorch", problem)
            _found = {}
    return _found
