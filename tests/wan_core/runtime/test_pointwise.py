"""Norms, rotations and gated sums are the written-out expressions, and a kernel is used only if it agrees."""

import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from wan_core.models.rope import rotate
from wan_core.runtime import pointwise as module
from wan_core.runtime.pointwise import add_gated, gelu_tanh, norm_affine, norm_modulate, rms_rotate

ROOT = Path(__file__).parents[3]
EPS, BATCH, TOKENS, WIDTH, HEADS = 1e-6, 2, 9, 96, 2
DTYPES = [torch.float32, torch.bfloat16]
NORMS = ["norm_modulate", "norm_affine", "rms", "rms_rotate"]


class Case:
    """Random inputs, and what each function should make of them, written out."""

    def __init__(self, distinct: int = 1, dtype: torch.dtype = torch.float32, tokens: int = TOKENS):
        draw = torch.Generator().manual_seed(distinct)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=draw)

        self.dtype = dtype
        self.x, self.y = normal(BATCH, tokens, WIDTH), normal(BATCH, tokens, WIDTH).to(dtype)
        self.shift, self.scale, self.gate = normal(3, distinct, WIDTH)
        self.which = torch.randint(distinct, (BATCH, tokens if distinct > 1 else 1), generator=draw)
        self.weight, self.bias = normal(WIDTH), normal(WIDTH)
        angles = normal(tokens, WIDTH // HEADS // 2)
        self.cos, self.sin = angles.cos(), angles.sin()

    def wanted(self, name: str, precision: torch.dtype = torch.float32) -> torch.Tensor:
        """The expression, in ``precision``; ``[B, L, d]``, rounded to the case's type where that is float32."""
        x, shift, scale, weight = (one.to(precision) for one in (self.x, self.shift, self.scale, self.weight))
        if name == "norm_modulate":
            out = torch.addcmul(shift[self.which], F.layer_norm(x, (WIDTH,), eps=EPS), 1 + scale[self.which])
        elif name == "norm_affine":
            out = F.layer_norm(x, (WIDTH,), weight, self.bias.to(precision), EPS)
        else:
            out = F.rms_norm(self.y.to(precision), (WIDTH,), weight, EPS).unflatten(-1, (HEADS, -1))
            if name == "rms_rotate" and precision is torch.float32:
                out = rotate(out, self.cos, self.sin)
            elif name == "rms_rotate":
                turn = torch.complex(self.cos.double(), self.sin.double()).unsqueeze(-2)
                out = torch.view_as_real(torch.view_as_complex(out.unflatten(-1, (-1, 2))) * turn).flatten(-2)
        return out.to(self.dtype) if precision is torch.float32 else out

    def made(self, name: str, where: slice = slice(None)) -> torch.Tensor:
        """What the function makes of the tokens ``where``, given as a slice of the whole."""
        x, y, which = self.x[:, where], self.y.clone()[:, where], self.which
        which = which if which.shape[1] == 1 else which[:, where]
        if name == "norm_modulate":
            return norm_modulate(x, self.shift, self.scale, which, EPS, self.dtype)
        if name == "norm_affine":
            return norm_affine(x, self.weight, self.bias, EPS, self.dtype)
        cos, sin = (self.cos[where], self.sin[where]) if name == "rms_rotate" else (None, None)
        return rms_rotate(y, self.weight, cos, sin, HEADS, EPS, self.dtype)


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


@pytest.mark.parametrize("distinct", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NORMS)
def test_under_autograd_norms_are_the_expressions_to_the_bit(name, dtype, distinct):
    case = Case(distinct, dtype)
    out = case.made(name)
    assert out.dtype is dtype and torch.equal(out, case.wanted(name))


@pytest.mark.parametrize("distinct", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NORMS)
@torch.no_grad()
def test_without_autograd_norms_are_as_near_to_float64_as_the_expressions(name, dtype, distinct):
    case = Case(distinct, dtype)
    exact, out = case.wanted(name, torch.float64), case.made(name)
    assert out.dtype is dtype and out.shape == exact.shape
    assert error(out, exact) <= 1.25 * error(case.wanted(name), exact) + 2e-8


@pytest.mark.parametrize("distinct", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gated_sum_is_new_under_autograd_and_in_place_without(dtype, distinct):
    case = Case(max(distinct, 1), dtype)
    gate, which = (case.gate, case.which) if distinct else (None, None)
    wanted = case.x + (case.y if gate is None else gate[which] * case.y)
    before = case.x.clone()
    assert torch.equal(add_gated(case.x, case.y, gate, which), wanted) and torch.equal(case.x, before)
    with torch.no_grad():
        assert add_gated(case.x, case.y, gate, which) is case.x
    torch.testing.assert_close(case.x, wanted, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("distinct", [1, 2])
@torch.no_grad()
def test_a_gated_sum_of_some_tokens_changes_those_alone(distinct):
    case = Case(distinct)
    whole, before = add_gated(case.x.clone(), case.y, case.gate, case.which), case.x.clone()
    which = case.which if case.which.shape[1] == 1 else case.which[:, 3:7]
    add_gated(case.x[:, 3:7], case.y[:, 3:7], case.gate, which)
    assert torch.equal(case.x[:, 3:7], whole[:, 3:7])
    assert torch.equal(case.x[:, :3], before[:, :3]) and torch.equal(case.x[:, 7:], before[:, 7:])


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_some_tokens_of_a_batch_give_those_rows_of_the_whole(name, grad):
    case = Case(2)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(case.made(name, slice(3, 7)), case.made(name)[:, 3:7], rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("grad", [True, False])
def test_samples_may_have_angles_of_their_own(grad):
    case = Case()
    cos, sin = torch.stack((case.cos, case.sin)), torch.stack((case.sin, case.cos))
    with torch.set_grad_enabled(grad):
        both = rms_rotate(case.y.clone(), case.weight, cos, sin, HEADS, EPS, torch.float32)
        for at in range(BATCH):
            one = rms_rotate(case.y[at : at + 1].clone(), case.weight, cos[at], sin[at], HEADS, EPS, torch.float32)
            assert torch.equal(both[at : at + 1], one)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_is_new_under_autograd_and_in_place_without(dtype):
    x = Case(dtype=dtype).y
    wanted, before = F.gelu(x, approximate="tanh"), x.clone()
    assert torch.equal(gelu_tanh(x), wanted) and torch.equal(x, before)
    with torch.no_grad():
        assert gelu_tanh(x) is x
    assert torch.equal(x, wanted)


def test_gradients_are_those_of_the_numbers():
    case = Case(2, torch.float32, tokens=3)
    tensors = [case.x, case.y, case.shift, case.scale, case.gate, case.weight, case.bias]

    def block(x, y, shift, scale, gate, weight, bias):
        h = norm_modulate(x, shift, scale, case.which, EPS, torch.float32)
        h = h * rms_rotate(y, weight, case.cos, case.sin, HEADS, EPS, torch.float32).flatten(2)
        h = gelu_tanh(h) + norm_affine(x, weight, bias, EPS, torch.float32)
        return add_gated(x, h, gate, case.which).square().mean()

    at = [one.clone().requires_grad_() for one in tensors]
    grads = torch.autograd.grad(block(*at), at)
    for index, grad in enumerate(grads):
        step = 0.02 * torch.randn(tensors[index].shape, generator=torch.Generator().manual_seed(index))
        ends = [[one + side * step if i == index else one for i, one in enumerate(tensors)] for side in (1, -1)]
        slope = (block(*ends[0]) - block(*ends[1])).item() / 2
        assert slope == pytest.approx((grad * step).sum().item(), rel=0.02, abs=2e-5)


class Kernel:
    """A kernel that remembers what it was given. ``spoil`` is called on its result."""

    def __init__(self, name: str, spoil=lambda out: out):
        self.name, self.spoil, self.rows = name, spoil, []

    def takes(self, *arguments) -> bool:
        return True

    def __call__(self, *arguments):
        self.rows.append(arguments[0].shape[1])
        return self.spoil(module.TORCH[self.name](*arguments))


@pytest.fixture
def on_card(monkeypatch):
    """``run(kernel, *arguments)`` as for CUDA tensors, without a card; what was trusted is forgotten after."""
    monkeypatch.setattr(module, "_trusted", {})

    def run(kernel: Kernel, *arguments, out_dtype=torch.float32):
        monkeypatch.setattr(module, "_found", {kernel.name: kernel})
        first = arguments[0]
        pretended = SimpleNamespace(device=torch.device("cuda"), dtype=first.dtype, shape=first.shape)
        with torch.no_grad():
            return module._run(kernel.name, pretended, arguments, out_dtype)

    return run


def fail(out):
    raise RuntimeError("no compiler")


def test_a_kernel_is_checked_once_on_a_few_rows_and_then_used(on_card):
    case, kernel = Case(2, tokens=100), Kernel("add_gated")
    before = case.x.clone()
    on_card(kernel, case.x, case.y, case.gate, case.which)
    assert kernel.rows == [module.CHECK_ROWS, 100]
    torch.testing.assert_close(case.x, before + case.gate[case.which] * case.y)
    on_card(kernel, case.x, case.y, case.gate, case.which)
    assert kernel.rows == [module.CHECK_ROWS, 100, 100]


@pytest.mark.parametrize(("spoil", "said"), [(lambda out: out.mul_(1.01), "add_gated is off by 1.0e-02"),
                                             (fail, "no compiler")])  # fmt: skip
def test_a_kernel_that_is_wrong_or_fails_is_never_used_and_said_once(on_card, caplog, spoil, said):
    case, kernel = Case(2), Kernel("add_gated", spoil)
    for _ in range(2):
        wanted = case.x + case.gate[case.which] * case.y
        on_card(kernel, case.x, case.y, case.gate, case.which)
        torch.testing.assert_close(case.x, wanted)
    assert kernel.rows == [TOKENS]
    assert [said in line for line in caplog.messages] == [True]


def test_a_sum_without_gate_and_another_type_are_checked_for_themselves(on_card):
    case, kernel = Case(2), Kernel("add_gated")
    for y, gate in ((case.y, case.gate), (case.y, None), (case.y.bfloat16(), case.gate)):
        kernel.rows.clear()
        on_card(kernel, case.x, y, gate, None if gate is None else case.which)
        assert kernel.rows == [TOKENS, TOKENS]


def test_a_check_takes_all_timesteps_where_every_token_has_one(on_card):
    case, kernel = Case(100, tokens=100), Kernel("norm_modulate")
    case.which = torch.arange(100).flip(0)[None].repeat(BATCH, 1)
    out = on_card(kernel, case.x, case.shift, case.scale, case.which, EPS, torch.float32)
    assert kernel.rows == [module.CHECK_ROWS, 100]
    torch.testing.assert_close(out, case.wanted("norm_modulate"))


def test_a_check_that_runs_out_of_memory_says_so_and_blames_no_kernel(on_card):
    def full(out):
        raise torch.OutOfMemoryError("full")

    case = Case()
    with pytest.raises(torch.OutOfMemoryError):
        on_card(Kernel("add_gated", full), case.x, case.y, case.gate, case.which)
    kernel = Kernel("add_gated")
    on_card(kernel, case.x, case.y, case.gate, case.which)
    assert kernel.rows == [TOKENS, TOKENS]


def test_without_triton_there_is_one_line_and_no_kernel(monkeypatch, caplog):
    monkeypatch.setattr(module, "_found", None)
    monkeypatch.setitem(sys.modules, "wan_core.runtime.pointwise_triton", None)
    caplog.set_level(logging.INFO)
    assert [module._kernels(), module._kernels()] == [{}, {}]
    assert len(caplog.messages) == 1 and "no Triton" in caplog.messages[0]


def child(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_triton_is_not_imported_before_a_card_needs_it():
    code = (
        "import sys, torch; had = 'triton' in sys.modules; from wan_core.models import dit\n"
        "from wan_core.runtime.pointwise import gelu_tanh, norm_affine\n"
        "with torch.no_grad(): norm_affine(torch.ones(1, 2, 4), torch.ones(4), torch.ones(4), 1e-6, torch.float32)\n"
        "print(had, 'triton' in sys.modules, 'wan_core.runtime.pointwise_triton' in sys.modules)"
    )
    assert child(code).split() == ["False", "False", "False"]


INTERPRETED = """
import torch
from tests.wan_core.runtime.test_pointwise import compare_kernels
print(compare_kernels())
"""


def test_triton_kernels_agree_with_pytorch_in_tritons_interpreter():
    if find_spec("triton") is None:
        pytest.skip(
            "NO TRITON KERNEL IS TESTED: triton is not installed (641 MB, so not among the requirements). "
            "`pip install triton` here, or `python3 -m benchmarks.pointwise` on a machine with a CUDA card"
        )
    assert child(INTERPRETED, TRITON_INTERPRET="1").split() == ["56"]


@torch.no_grad()
def compare_kernels() -> int:
    """Every kernel beside PyTorch on the CPU (in Triton's interpreter); the number of comparisons."""
    from wan_core.runtime.pointwise_triton import KERNELS

    count = 0
    for distinct in (1, 2):
        for dtype in DTYPES:
            for where in (slice(0, 5), slice(3, 7)):
                for name, arguments in kernel_arguments(Case(distinct, dtype), where):
                    wanted = module.TORCH[name](*map(copied, arguments))
                    given = [copied(one) for one in arguments]
                    assert KERNELS[name].takes(*given), (name, distinct, dtype)
                    out = KERNELS[name](*given)
                    assert out.dtype is wanted.dtype and out.shape == wanted.shape, (name, out.shape, out.dtype)
                    assert error(out, wanted) <= module.TOLERANCES[wanted.dtype], (name, distinct, dtype)
                    count += 1
    return count


def copied(one):
    """A copy that lies in memory as the original does: a run of tokens stays one of a larger tensor."""
    return (
        torch.empty_strided(one.shape, one.stride(), dtype=one.dtype).copy_(one)
        if isinstance(one, torch.Tensor)
        else one
    )


def kernel_arguments(case: Case, where: slice):
    which = case.which if case.which.shape[1] == 1 else case.which[:, where]
    x, y, cos, sin = case.x[:, where], case.y[:, where], case.cos[where], case.sin[where]
    yield "norm_modulate", (x, case.shift, case.scale, which, EPS, case.dtype)
    yield "norm_affine", (x, case.weight, case.bias, EPS, case.dtype)
    yield "add_gated", (x, y, case.gate, which)
    yield "add_gated", (x, y, None, None)
    yield "rms_rotate", (y, case.weight, cos, sin, HEADS, EPS, case.dtype)
    yield "rms_rotate", (y, case.weight, None, None, HEADS, EPS, case.dtype)
    pictures = torch.stack((case.x, case.y), dim=1)[:, :, None].to(case.dtype)
    run = torch.zeros(len(pictures), 4, 1, where.stop - where.start, pictures.shape[-1], dtype=case.dtype)
    yield "rms_silu", (pictures[..., where, :], case.weight, run[:, 2:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rms_silu_fills_a_part_of_a_run_and_leaves_empty_pixels_empty(dtype):
    torch.manual_seed(4)
    x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64).to(dtype).movedim(-1, 1)  # channels last in memory
    x[:, :, 0, 0, 0] = 0
    gamma = torch.rand(6, dtype=torch.float64).to(dtype)
    run = torch.full((2, 5, 4, 5, 6), 7.0, dtype=dtype).movedim(-1, 1)
    module.rms_silu(x, gamma.view(6, 1, 1, 1), run[:, :, 2:])
    wide = x.double()
    normed = torch.nn.functional.normalize(wide, dim=1) * 6**0.5 * gamma.double().view(6, 1, 1, 1)
    limits = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
    assert error(run[:, :, 2:].double(), torch.nn.functional.silu(normed)) <= limits[dtype]
    assert (run[:, :, 2, 0, 0] == 0).all() and (run[:, :, :2] == 7).all()
