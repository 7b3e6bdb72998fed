"""Triton kernels of :mod:`.pointwise`: one program a token, the whole row in registers, float32 inside.

Imported only when a CUDA tensor first needs one. Rows may be strided (a run of tokens of a larger tensor); the values
of a row lie together.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST = 16384
"""Values of a row."""


@triton.jit
def _norm(
    x_ptr, out_ptr, mul_ptr, add_ptr, which_ptr,
    L, d, eps, x_b, x_l, which_b, which_l, row_stride,
    MODULATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    b, t = row // L, row % L
    at = tl.arange(0, BLOCK)
    mask = at < d
    x = tl.load(x_ptr + b * x_b + t * x_l + at, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / d
    x = tl.where(mask, x - mean, 0.0)
    x = x * tl.rsqrt(tl.sum(x * x, axis=0) / d + eps)
    offset = 0
    if MODULATED:
        offset = tl.load(which_ptr + b * which_b + t * which_l) * row_stride
    mul = tl.load(mul_ptr + offset + at, mask=mask, other=0.0).to(tl.float32)
    add = tl.load(add_ptr + offset + at, mask=mask, other=0.0).to(tl.float32)
    if MODULATED:
        mul = mul + 1.0
    tl.store(out_ptr + row * d + at, x * mul + add, mask=mask)


@triton.jit
def _add(
    x_ptr, y_ptr, gate_ptr, which_ptr,
    L, d, x_b, x_l, y_b, y_l, which_b, which_l, row_stride,
    GATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    b, t = row // L, row % L
    at = tl.arange(0, BLOCK)
    mask = at < d
    place = x_ptr + b * x_b + t * x_l + at
    x = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + b * y_b + t * y_l + at, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        offset = tl.load(which_ptr + b * which_b + t * which_l) * row_stride
        y = y * tl.load(gate_ptr + offset + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, x + y, mask=mask)


@triton.jit
def _rms(
    q_ptr, out_ptr, weight_ptr, cos_ptr, sin_ptr,
    L, d, eps, q_b, q_l,
    HALF: tl.constexpr, TURNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    b, t = row // L, row % L
    at = tl.arange(0, BLOCK)
    mask = at < d
    q = tl.load(q_ptr + b * q_b + t * q_l + at, mask=mask, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(q * q, axis=0) / d + eps)
    q = q * inverse * tl.load(weight_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if TURNED:
        even, odd = tl.split(tl.reshape(q, (BLOCK // 2, 2)))
        pair = tl.arange(0, BLOCK // 2)
        inside = pair < d // 2
        angle = t * HALF + pair % HALF
        cos = tl.load(cos_ptr + angle, mask=inside, other=0.0)
        sin = tl.load(sin_ptr + angle, mask=inside, other=0.0)
        q = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK,))
    tl.store(out_ptr + row * d + at, q, mask=mask)


@triton.jit
def _rms_silu(
    x_ptr, out_ptr, gamma_ptr,
    count, T, H, W, C, root, x_b, x_t, x_h, x_w, out_b, out_t, out_h, out_w,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    w, h, t, b = row % W, row // W % H, row // (W * H) % T, row // (W * H * T)
    at = tl.arange(0, BLOCK)
    mask = (row < count)[:, None] & (at < C)[None, :]
    x_at = (b * x_b + t * x_t + h * x_h + w * x_w)[:, None] + at[None, :]
    x = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(tl.float32)
    scale = root / tl.maximum(tl.sqrt(tl.sum(x * x, axis=1)), 1e-12)
    y = x * scale[:, None] * tl.load(gamma_ptr + at, mask=at < C, other=0.0).to(tl.float32)[None, :]
    out_at = (b * out_b + t * out_t + h * out_h + w * out_w)[:, None] + at[None, :]
    tl.store(out_ptr + out_at, y / (1.0 + tl.exp(-y)), mask=mask)


def _sizes(d: int) -> dict[str, int]:
    block = triton.next_power_of_2(d)
    return {"BLOCK": block, "num_warps": 4 if block <= 2048 else 8 if block <= 8192 else 16}


def _is_row(x: Tensor) -> bool:
    return x.ndim == 3 and x.stride(-1) == 1 and x.shape[-1] <= LARGEST


class _Kernel:
    """``takes(*arguments)``: whether it can do this; calling it does it."""

    def takes(self, *arguments) -> bool:
        return all(_is_row(one) for one in arguments if isinstance(one, Tensor) and one.ndim == 3)

    def __call__(self, *arguments) -> Tensor:
        with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device, wherever its tensors are
            return self.launch(*arguments)


def _index(which: Tensor) -> tuple[int, int]:
    """Strides of which over batch and tokens; one value for all tokens, or all samples, has stride 0."""
    return which.stride(0) if which.shape[0] > 1 else 0, which.stride(1) if which.shape[1] > 1 else 0


class _NormModulate(_Kernel):
    def takes(self, x, shift, scale, which, eps, out_dtype) -> bool:
        return _is_row(x) and shift.stride() == scale.stride() and shift.stride(-1) == 1

    def launch(self, x, shift, scale, which, eps, out_dtype) -> Tensor:
        B, L, d = x.shape
        out = torch.empty((B, L, d), dtype=out_dtype, device=x.device)
        _norm[(B * L,)](
            x, out, scale, shift, which, L, d, eps, x.stride(0), x.stride(1), *_index(which), shift.stride(0),
            MODULATED=True, **_sizes(d),
        )  # fmt: skip
        return out


class _NormAffine(_Kernel):
    def launch(self, x, weight, bias, eps, out_dtype) -> Tensor:
        B, L, d = x.shape
        out = torch.empty((B, L, d), dtype=out_dtype, device=x.device)
        _norm[(B * L,)](
            x, out, weight, bias, weight, L, d, eps, x.stride(0), x.stride(1), 0, 0, 0, MODULATED=False, **_sizes(d)
        )
        return out


class _AddGated(_Kernel):
    def takes(self, x, y, gate, which) -> bool:
        return _is_row(x) and _is_row(y) and (gate is None or gate.stride(-1) == 1)

    def launch(self, x, y, gate, which) -> Tensor:
        B, L, d = x.shape
        index = (0, 0) if gate is None else _index(which)
        _add[(B * L,)](
            x, y, x if gate is None else gate, x if gate is None else which, L, d, x.stride(0), x.stride(1),
            y.stride(0), y.stride(1), *index, 0 if gate is None else gate.stride(0),
            GATED=gate is not None, **_sizes(d),
        )  # fmt: skip
        return x


class _RmsRotate(_Kernel):
    def takes(self, q, weight, cos, sin, heads, eps, out_dtype) -> bool:
        return _is_row(q) and (cos is None or (cos.ndim == 2 and cos.is_contiguous() and sin.is_contiguous()))

    def launch(self, q, weight, cos, sin, heads, eps, out_dtype) -> Tensor:
        B, L, d = q.shape
        out = (
            q if q.dtype == out_dtype and q.is_contiguous() else torch.empty(q.shape, dtype=out_dtype, device=q.device)
        )
        turned = cos is not None
        _rms[(B * L,)](
            q, out, weight, cos if turned else q, sin if turned else q, L, d, eps, q.stride(0), q.stride(1),
            HALF=d // heads // 2, TURNED=turned, **_sizes(d),
        )  # fmt: skip
        return out.unflatten(-1, (heads, -1))


class _RmsSilu(_Kernel):
    """Several pixels a program: a pixel has a hundred to a thousand channels."""

    VALUES = 4096

    def takes(self, x, gamma, out) -> bool:
        return x.stride(-1) == out.stride(-1) == 1 and x.shape[-1] <= self.VALUES

    def launch(self, x, gamma, out) -> Tensor:
        B, T, H, W, C = x.shape
        block = triton.next_power_of_2(C)
        rows, count = max(1, self.VALUES // block), B * T * H * W
        _rms_silu[(triton.cdiv(count, rows),)](
            x, out, gamma, count, T, H, W, C, C**0.5, *x.stride()[:4], *out.stride()[:4], ROWS=rows, BLOCK=block
        )
        return out


KERNELS = {
    "norm_modulate": _NormModulate(),
    "norm_affine": _NormAffine(),
    "add_gated": _AddGated(),
    "rms_rotate": _RmsRotate(),
    "rms_silu": _RmsSilu(),
}
