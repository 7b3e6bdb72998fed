"""Attention: PyTorch's own by itself, another backend only where it agrees on the run's own numbers."""

import subprocess
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import ROOT
from wan_core.runtime import attention as module
from wan_core.runtime.attention import AUTO, CHECK_QUERIES, Backend, attention, available_backends, using
from wan_core.runtime.stay import OUT_OF_MEMORY

HERE = ("json",)
"""A package that every Python has: fake backends count as installed, and not as PyTorch's own."""


def qkv(tokens: int = 300, keys: int = 40, dim: int = 16, dtype: torch.dtype = torch.bfloat16):
    return (torch.randn(1, length, 2, dim).to(dtype) for length in (tokens, keys, keys))


def formula(q, k, v):
    """Softmax attention written out, in float64."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    return ((q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2)


class Fake:
    """A backend that notes the queries of each call."""

    def __init__(self, change=lambda out: out, fails_from: int | None = None, error: Exception | None = None):
        self.change, self.fails_from, self.error, self.calls = change, fails_from, error, []

    def __call__(self, q, k, v):
        self.calls.append(q.shape[1])
        if self.fails_from is not None and len(self.calls) >= self.fails_from:
            raise self.error or RuntimeError("no kernel for this card")
        return self.change(formula(q, k, v).to(v.dtype))


@pytest.fixture
def offer(monkeypatch):
    """Puts a fake into the table, with nothing known of it yet."""
    monkeypatch.setattr(module, "_problems", {})

    def put(fake: Fake) -> Fake:
        monkeypatch.setitem(module.BACKENDS, "fake", Backend(attend=fake, packages=HERE))
        return fake

    return put


def sdpa(q, k, v, mask=None):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask).transpose(1, 2)


@pytest.mark.parametrize("name", [AUTO, "sdpa"])
def test_on_a_cpu_it_is_pytorchs_own_to_the_bit_and_the_formula(name):
    q, k, v = qkv(dtype=torch.float32)
    with using(name, pytest.fail):
        out = attention(q, k, v)
    assert torch.equal(out, sdpa(q, k, v)) and torch.equal(out, attention(q, k, v))
    torch.testing.assert_close(out.double(), formula(q, k, v), rtol=0, atol=1e-6)


def test_queries_and_keys_take_the_dtype_of_the_values():
    q, k, v = qkv(dtype=torch.float32)
    out = attention(q, k, v.bfloat16())
    assert torch.equal(out, sdpa(q.bfloat16(), k.bfloat16(), v.bfloat16()))


def test_cudnn_first_changes_nothing_where_there_is_none_and_an_older_pytorch_goes_without(monkeypatch):
    q, k, v = qkv()
    assert torch.equal(module._cudnn_first(q, k, v), sdpa(q, k, v))

    def without_order(backends):
        raise AssertionError("it is asked for an order")

    monkeypatch.setattr("torch.nn.attention.sdpa_kernel", without_order)
    assert torch.equal(module._cudnn_first(q, k, v), sdpa(q, k, v))


def test_a_backend_that_agrees_is_checked_once_on_some_queries_and_then_used(offer):
    fake, told = offer(Fake()), []
    q, k, v = qkv()
    with using("fake", told.append):
        for _ in range(3):
            torch.testing.assert_close(attention(q, k, v).double(), formula(q, k, v), rtol=0, atol=2e-2)
    with using("fake", told.append):
        attention(q, k, v)
    assert fake.calls == [CHECK_QUERIES, 300, 300, 300, 300] and not told


def test_each_dtype_and_head_dim_is_checked_by_itself(offer):
    fake = offer(Fake())
    with using("fake"):
        for dim, dtype in ((16, torch.bfloat16), (32, torch.bfloat16), (16, torch.float16), (16, torch.bfloat16)):
            attention(*qkv(dim=dim, dtype=dtype))
    assert fake.calls == [CHECK_QUERIES, 300] * 3 + [300]


WRONG = {
    "3% off": (lambda out: out * 1.03, "off by 3.0%"),
    "NaN": (lambda out: out.clone().index_fill_(1, torch.tensor([7]), float("nan")), "not finite"),
    "another layout": (lambda out: out.transpose(1, 2), "another shape"),
    "another type": (lambda out: out.float(), "type"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_a_backend_that_disagrees_is_never_used_and_every_run_is_told_once(offer, change, said):
    fake, (q, k, v) = offer(Fake(change)), qkv()
    for _ in range(2):
        told = []
        with using("fake", told.append):
            assert all(torch.equal(attention(q, k, v), sdpa(q, k, v)) for _ in range(3))
        assert len(told) == 1 and "'fake' is not used" in told[0] and said in told[0] and "takes longer" in told[0]
    assert fake.calls == [CHECK_QUERIES]


@pytest.mark.parametrize("fails_from", [1, 2, 3])
def test_a_backend_that_raises_is_left_for_good_whenever_it_does(offer, fails_from):
    fake, told, (q, k, v) = offer(Fake(fails_from=fails_from)), [], qkv()
    with using("fake", told.append):
        outs = [attention(q, k, v) for _ in range(5)]
    assert len(fake.calls) == fails_from and torch.equal(outs[-1], sdpa(q, k, v))
    assert len(told) == 1 and "RuntimeError: no kernel for this card" in told[0]


@pytest.mark.parametrize("fails_from", [1, 2])
def test_memory_that_runs_out_goes_to_the_run_and_is_not_held_against_the_backend(offer, fails_from):
    fake, (q, k, v) = offer(Fake(fails_from=fails_from, error=OUT_OF_MEMORY("CUDA out of memory"))), qkv()
    with using("fake", pytest.fail):
        with pytest.raises(OUT_OF_MEMORY):
            attention(q, k, v)
        fake.fails_from, before = None, len(fake.calls)
        attention(q, k, v)
    assert fake.calls[before:][-1] == 300


def test_numbers_that_are_not_finite_by_themselves_say_nothing_of_a_backend(offer):
    fake, (q, k, v) = offer(Fake()), qkv()
    with using("fake", pytest.fail):
        attention(q, k, torch.full_like(v, float("inf")))
        assert not fake.calls
        attention(q, k, torch.zeros_like(v))
    assert fake.calls == [CHECK_QUERIES, 300]


def test_float32_stays_with_pytorch_and_a_mask_too(offer):
    fake, told = offer(Fake()), []
    q, k, v = qkv(dtype=torch.float32)
    mask = torch.rand(1, 1, 300, 40) > 0.5
    with using("fake", told.append):
        assert torch.equal(attention(q, k, v), sdpa(q, k, v)) and torch.equal(attention(q, k, v), sdpa(q, k, v))
        half = [x.half() for x in (q, k, v)]
        assert torch.equal(attention(*half, mask), sdpa(*half, mask))
    assert not fake.calls and len(told) == 1 and "computes in float32" in told[0]


def test_a_choice_ends_with_its_block_and_the_inner_one_counts(offer):
    fake, (q, k, v) = offer(Fake()), qkv()
    with using("fake"):
        with using(AUTO):
            attention(q, k, v)
        assert not fake.calls
        with pytest.raises(KeyError), using("fake"):
            raise KeyError
        attention(q, k, v)
    used = len(fake.calls)
    attention(q, k, v)
    assert used == 2 and len(fake.calls) == 2


def test_what_is_not_installed_is_told_and_pytorch_does_it(monkeypatch):
    monkeypatch.setitem(module.BACKENDS, "absent", Backend(attend=pytest.fail, packages=("wan_core_no_such_package",)))
    q, k, v = qkv()
    for name in ("absent", "misspelt"):
        told = []
        with using(name, told.append):
            assert torch.equal(attention(q, k, v), sdpa(q, k, v))
        assert len(told) == 1 and f"'{name}' is not installed; there are auto, sdpa" in told[0]


def test_a_stand_in_that_another_pack_left_is_not_an_installed_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sageattention", types.ModuleType("sageattention"))
    assert "sage" not in available_backends()


def test_available_backends_names_what_is_there_and_imports_none_of_it(tmp_path):
    for name in ("flash_attn", "sageattention"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported')")
    script = "from wan_core.runtime.attention import available_backends; print(*available_backends())"
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; {script}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = ran.stdout.split()
    assert names[:3] == ["auto", "sdpa", "flash"] and "sage" in names


@pytest.mark.parametrize(
    ("name", "package", "function", "layout"),
    [
        ("flash", "flash_attn_interface", "flash_attn_func", {}),
        ("flash", "flash_attn", "flash_attn_func", {}),
        ("sage", "sageattention", "sageattn", {"tensor_layout": "NHD"}),
        ("xformers", "xformers.ops", "memory_efficient_attention", {}),
    ],
)
def test_each_package_is_called_as_it_documents(monkeypatch, tmp_path, name, package, function, layout):
    """Stand-ins with the packages' own argument names; the kernels themselves need a card."""
    seen = []

    def kernel(q, k, v, **more):
        seen.append(more)
        out = formula(q, k, v).to(v.dtype)
        return (out, None) if package == "flash_attn_interface" else out

    for part in (package.partition(".")[0], package):
        stand_in = types.ModuleType(part)
        stand_in.__spec__ = types.SimpleNamespace(name=part)
        stand_in.__path__ = []
        monkeypatch.setitem(sys.modules, part, stand_in)
    setattr(sys.modules[package], function, kernel)
    monkeypatch.setattr(module, "_problems", {})
    module._flash_function.cache_clear()
    q, k, v = qkv()
    with using(name, pytest.fail):
        torch.testing.assert_close(attention(q, k, v).double(), formula(q, k, v), rtol=0, atol=2e-2)
    module._flash_function.cache_clear()
    assert seen == [layout, layout]
