"""The Triton kernels of ``wan_core/runtime/pointwise.py`` beside PyTorch: errors against float64, and bandwidth.

``python3 -m benchmarks.pointwise`` needs a CUDA card and prints one line a step and width: for each backend its
relative error, microseconds (median), GB/s of what has to be read and written once, and the fraction of a measured
copy; at the end of the line what the runtime takes here. It fails where a kernel is missing, not trusted, or off.
``--toy`` runs the same code on a few tokens on the CPU: times mean nothing there, and Triton runs only under
``TRITON_INTERPRET=1`` (whose bfloat16 is cut off instead of rounded: twice the error).
"""

import argparse
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_core.runtime import pointwise

EPS, HEAD_DIM = 1e-6, 128
SIZES = {1536: 8960, 5120: 13824}
"""Widths of the 1.3B and 14B models, and of their feed-forward."""
TOKENS = 32760  # 81 frames of 832x480
TOY_SIZES, TOY_TOKENS = {256: 512}, 33
REFERENCE_ROWS = 2048
WARM_UP, REPEATS = 5, 25


@dataclass(frozen=True)
class Step:
    """One function with its inputs; ``exact`` is it in float64 for some tokens; ``traffic_bytes`` read and written."""

    name: str
    function: str
    arguments: tuple
    out_dtype: torch.dtype
    traffic_bytes: int
    exact: Callable[[slice], Tensor]


class Inputs:
    """Random numbers as a block has them at one width: ``x`` the residual stream, ``y`` what a layer gives."""

    def __init__(self, width: int, tokens: int, device: torch.device, dtype: torch.dtype):
        self.width, self.tokens, self.device, self.dtype = width, tokens, device, dtype
        self.draw = torch.Generator(device).manual_seed(width)
        self.x, self.y = self.normal(1, tokens, width), self.normal(1, tokens, width).to(dtype)
        self.weight, self.bias = self.normal(width), self.normal(width)
        self.cos, self.sin = (one(self.normal(tokens, HEAD_DIM // 2)) for one in (torch.cos, torch.sin))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.draw, device=self.device)

    def step(self, name: str, arguments: tuple, traffic: int, exact: Callable, out_dtype: torch.dtype | None) -> Step:
        function = name.split(" ")[0]
        return Step(name, function, arguments, out_dtype or self.dtype, traffic, exact)

    def norms(self, distinct: int) -> Step:
        """The modulated norm with so many timesteps; 0: norm3."""
        traffic = self.x.nbytes + self.y.nbytes
        if not distinct:
            mul, add = self.weight.double(), self.bias.double()
            arguments = (self.x, self.weight, self.bias, EPS, self.dtype)
            return self.step("norm_affine", arguments, traffic, lambda rows: self.normed(rows) * mul + add, None)
        shift, scale = self.normal(2, distinct, self.width)
        shape = (1, 1 if distinct == 1 else self.tokens)
        which = torch.randint(distinct, shape, generator=self.draw, device=self.device)

        def exact(rows: slice) -> Tensor:
            own = which.expand(1, self.tokens)[:, rows]
            return self.normed(rows) * (1 + scale.double()[own]) + shift.double()[own]

        arguments = (self.x, shift, scale, which, EPS, self.dtype)
        return self.step(f"norm_modulate U={distinct}", arguments, traffic, exact, None)

    def normed(self, rows: slice) -> Tensor:
        return F.layer_norm(self.x[:, rows].double(), (self.width,), eps=EPS)

    def sums(self, gated: bool) -> Step:
        gate = self.normal(1, self.width) if gated else None
        which = torch.zeros(1, 1, dtype=torch.int64, device=self.device) if gated else None

        def exact(rows: slice) -> Tensor:
            return self.x[:, rows].double() + self.y[:, rows].double() * (gate.double() if gated else 1)

        name, traffic = "add_gated" if gated else "add_gated none", 2 * self.x.nbytes + self.y.nbytes
        return self.step(name, (self.x, self.y, gate, which), traffic, exact, torch.float32)

    def turns(self, rotated: bool) -> Step:
        turn = (self.cos, self.sin) if rotated else (None, None)
        traffic = 2 * self.y.nbytes + (self.cos.nbytes + self.sin.nbytes if rotated else 0)

        def exact(rows: slice) -> Tensor:
            return turned(self.y[:, rows].double(), self.weight.double(), *turn, rows)

        arguments = (self.y, self.weight, *turn, self.width // HEAD_DIM, EPS, self.dtype)
        return self.step("rms_rotate" if rotated else "rms_rotate none", arguments, traffic, exact, None)

    def gelu(self, ffn: int) -> Step:
        z = self.normal(1, self.tokens, ffn).to(self.dtype)
        return self.step(
            "gelu_tanh", (z,), 2 * z.nbytes, lambda rows: F.gelu(z[:, rows].double(), approximate="tanh"), None
        )


def steps(width: int, ffn: int, tokens: int, device: torch.device, dtype: torch.dtype) -> Iterator[Step]:
    """Every step of a block at this width, one after another."""
    inputs = Inputs(width, tokens, device, dtype)
    yield from (inputs.norms(distinct) for distinct in (1, 2, 0))
    yield from (inputs.sums(gated) for gated in (True, False))
    yield from (inputs.turns(rotated) for rotated in (True, False))
    yield inputs.gelu(ffn)


def turned(q: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, rows: slice) -> Tensor:
    """RMS norm and rotation of float64 ``[1, n, d]``, by complex numbers; ``[1, n, H, D]``."""
    q = q / (q.square().mean(-1, keepdim=True) + EPS).sqrt() * weight
    pairs = torch.view_as_complex(q.unflatten(-1, (-1, HEAD_DIM // 2, 2)))
    if cos is not None:
        pairs = pairs * torch.complex(cos[rows].double(), sin[rows].double()).unsqueeze(-2)
    return torch.view_as_real(pairs).flatten(-2)


def error(out: Tensor, exact: Callable[[slice], Tensor]) -> float:
    """Relative to float64 over all tokens, some thousand after another."""
    wrong = whole = 0.0
    for start in range(0, out.shape[1], REFERENCE_ROWS):
        rows = slice(start, start + REFERENCE_ROWS)
        wanted = exact(rows).flatten(2)
        wrong += (out[:, rows].flatten(2).double() - wanted).square().sum().item()
        whole += wanted.square().sum().item()
    return (wrong / whole) ** 0.5


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median time of a call, by the card's own clock where there is one."""
    for _ in range(WARM_UP):
        work()
    if device.type != "cuda":
        return statistics.median(_timed(work) for _ in range(REPEATS))
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
    for begin, end in marks:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize(device)
    return statistics.median(begin.elapsed_time(end) for begin, end in marks) / 1e3


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def copy_rate(device: torch.device, size_bytes: int) -> float:
    """Bytes a second that a copy on the device reads and writes."""
    source = torch.ones(size_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size_bytes / seconds(lambda: target.copy_(source), device)


def measure(step: Step, backend: Callable, device: torch.device, copy: float) -> tuple[str, float]:
    """Columns of one backend, and its error. Copies are worked on first, so that the inputs stay for the reference."""
    given = [one.clone() if isinstance(one, Tensor) else one for one in step.arguments]
    out = backend(*given)
    off = error(out, step.exact)
    took = seconds(lambda: backend(*given), device)
    rate = step.traffic_bytes / took
    return f"error {off:.1e} {took * 1e6:9.1f} us {rate / 1e9:6.0f} GB/s {rate / copy:5.2f} of a copy", off


def taken(step: Step) -> str:
    """What the runtime uses for these inputs."""
    pointwise._trusted.clear()
    given = [one.clone() if isinstance(one, Tensor) else one for one in step.arguments]
    getattr(pointwise, step.function)(*given)
    return "triton" if any(pointwise._trusted.values()) else "torch"


def report(step: Step, width: int, device: torch.device, copy: float, with_triton: bool) -> bool:
    """Print a step's line; whether all is well with it."""
    kernel = pointwise._kernels().get(step.function) if with_triton else None
    backends = {"triton": kernel, "torch": pointwise.TORCH.get(step.function, getattr(pointwise, step.function))}
    columns, well = [], True
    for name, backend in backends.items():
        column, off = ("none", 0.0) if backend is None else measure(step, backend, device, copy)
        well = well and off <= pointwise.TOLERANCES[step.out_dtype]
        columns.append(f"{name} {column:58}")
    used = taken(step)
    well = well and (device.type != "cuda" or step.function == "gelu_tanh" or used == "triton")
    print(f"{step.name:18} d={width:<5} {' | '.join(columns)} | takes {used}{'' if well else '  WRONG'}", flush=True)
    return well


@torch.no_grad()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="a few tokens on the CPU")
    args = parser.parse_args(arguments)
    if not args.toy and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --toy runs the same code on a few tokens on the CPU")
    logging.basicConfig(level=logging.INFO)
    device = torch.device("cpu") if args.toy else torch.device("cuda", torch.cuda.current_device())
    sizes, tokens = (TOY_SIZES, TOY_TOKENS) if args.toy else (SIZES, TOKENS)
    copy = copy_rate(device, 2**16 if args.toy else 2**30)
    card = "CPU" if args.toy else torch.cuda.get_device_name(device)
    print(
        f"{card}, torch {torch.__version__}, {tokens} tokens, copy {copy / 1e9:.0f} GB/s (read and written)", flush=True
    )
    with_triton = not args.toy or os.environ.get("TRITON_INTERPRET") == "1"
    well = [
        report(step, width, device, copy, with_triton)
        for width, ffn in sizes.items()
        for step in steps(width, ffn, tokens, device, torch.bfloat16)
    ]
    return 0 if all(well) else 1


if __name__ == "__main__":
    raise SystemExit(main())
