"""The kernels of ``runtime/pointwise_triton.py`` against float64, and how near they come to copying memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from wan_core.runtime import pointwise

TOKENS = 32760
SHAPES = {"14B": (5120, 40), "1.3B": (1536, 12)}
TOLERANCE = 1e-2


@torch.no_grad()
def kernels(bench) -> None:
    """Error, microseconds and GB/s of each, for PyTorch and, on CUDA, for Triton."""
    tables = {"torch": pointwise.TORCH}
    if bench.device.type == "cuda":
        from wan_core.runtime.pointwise_triton import KERNELS

        tables["triton"] = KERNELS
    for label, (width, heads) in SHAPES.items():
        for case, name, arguments, moved in cases(bench, 64 if bench.toy else TOKENS, width, heads):
            wanted = exact(name, arguments)
            for backend, table in tables.items():
                given = [one.clone() if isinstance(one, Tensor) else one for one in arguments]
                got = table[name](*given)
                error = ((got.double() - wanted).norm() / wanted.norm()).item()
                taken = timed(bench, lambda table=table, name=name, given=given: table[name](*given))
                told = f"{label} {case}, {backend}: error {error:.1e}, {taken * 1e6:.0f} us"
                bench.report.add("kernels", told, moved / taken / 1e9, "GB/s", f"<= {TOLERANCE:g}", error <= TOLERANCE)


def timed(bench, call: Callable) -> float:
    """Seconds of one call among ten, without the time to start them one by one."""

    def ten():
        for _ in range(10):
            call()

    return bench.seconds(ten, 3, 1) / 10


def cases(bench, tokens: int, width: int, heads: int):
    """(what, function, arguments, bytes that have to move) as in a block, with bfloat16 beside the float32 residual."""
    generator = torch.Generator(bench.device).manual_seed(0)

    def draw(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=generator, device=bench.device).to(dtype)

    half, values = torch.bfloat16, tokens * width
    x, y = draw(1, tokens, width), draw(1, tokens, width, dtype=half)
    row, gate = draw(2, 1, width), draw(1, width)
    which = torch.zeros(1, 1, dtype=torch.long, device=bench.device)
    cos, sin = draw(2, tokens, width // heads // 2)
    yield "modulated norm", "norm_modulate", (x, row[0], row[1], which, 1e-6, half), 6 * values
    yield "norm", "norm_affine", (x, row[0, 0], row[1, 0], 1e-6, half), 6 * values
    yield "gated sum", "add_gated", (x, y, gate, which), 10 * values
    yield "norm and rotation", "rms_rotate", (y, row[0, 0], cos, sin, heads, 1e-6, half), 4 * values


def exact(name: str, arguments: tuple) -> Tensor:
    """The same in float64."""
    wide = [one.double() if isinstance(one, Tensor) and one.is_floating_point() else one for one in arguments]
    if name == "norm_modulate":
        x, shift, scale, which, eps, _ = wide
        return torch.addcmul(shift[which], torch.nn.functional.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale[which])
    if name == "norm_affine":
        x, weight, bias, eps, _ = wide
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)
    if name == "add_gated":
        x, y, gate, which = wide
        return x + gate[which] * y
    q, weight, cos, sin, heads, eps, _ = wide
    normed = torch.nn.functional.rms_norm(q, q.shape[-1:], weight, eps).unflatten(-1, (heads, -1))
    even, odd = normed.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
