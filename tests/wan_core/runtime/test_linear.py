"""A stored linear computes what nn.Linear computes on the decoded weight, and copies nothing that needs no copy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from tests.conftest import ROOT
from wan_core.runtime import linear as module
from wan_core.runtime.linear import StoredLinear, storage_linears

GOLDEN = load_file(Path(__file__).parents[2] / "goldens" / "quant_formats.safetensors")


def stored(weight, scale=None, compute=torch.float32, bias=None) -> StoredLinear:
    layer = StoredLinear(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta"), compute)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.weight_scale = scale
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def test_scaled_fp8_gives_the_recorded_product():
    layer = stored(GOLDEN["fp8.e4m3fn.per_tensor.weight"], GOLDEN["fp8.e4m3fn.per_tensor.scale_weight"])
    torch.testing.assert_close(layer(GOLDEN["in.x"]), GOLDEN["out.linear_fp8_e4m3fn_per_tensor"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_it_is_linear_on_the_weight_in_the_compute_type_to_the_bit(storage, compute):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(6, 8).to(storage), torch.randn(6), torch.randn(3, 5, 8)
    out = stored(weight, None, compute, bias)(x)
    assert out.dtype is compute
    assert torch.equal(out, F.linear(x.to(compute), weight.to(compute), bias.to(compute)))


@pytest.mark.parametrize("shape", [(64,), (1, 64), (1, 1, 64)])
def test_one_row_is_the_same_to_the_bit_wherever_the_weight_lies(shape):
    """Files are mapped at addresses that are multiples of 8 bytes; copies at multiples of 64."""
    torch.manual_seed(0)
    weight, bias, x = torch.randn(96, 64), torch.randn(96), torch.randn(shape)
    room, made = torch.empty(weight.numel() + 32), []
    for offset in range(0, 32, 2):
        placed = room[offset : offset + weight.numel()].view_as(weight).copy_(weight)
        made.append(stored(placed, bias=bias)(x))
    assert made[0].shape == (*shape[:-1], 96)
    torch.testing.assert_close(made[0], F.linear(x, weight, bias))
    assert all(torch.equal(one, made[0]) for one in made)


def test_no_copy_is_made_where_the_storage_type_is_the_compute_type(monkeypatch):
    used = []
    monkeypatch.setattr(module.F, "linear", lambda x, w, b: used.append(w) or x)
    layer = stored(torch.randn(4, 4))
    layer(torch.randn(2, 4))
    assert used[0].data_ptr() == layer.weight.data_ptr()


PRODUCTS = """
import torch
from torch import nn
from wan_core.runtime.linear import StoredLinear

torch.manual_seed(0)
layer = StoredLinear(nn.Linear(64, 48).to(torch.bfloat16), torch.bfloat16)
plain = nn.Linear(64, 48).to(torch.bfloat16)
plain.load_state_dict(layer.state_dict())
x = torch.randn(300, 64, dtype=torch.bfloat16)
with torch.inference_mode():
    torch.testing.assert_close(layer(x), plain(x), atol=1e-2, rtol=1e-2)
    gelu = nn.GELU(approximate="tanh")
    torch.testing.assert_close(layer.with_gelu(x), gelu(plain(x)), atol=1e-2, rtol=1e-2)
"""


@pytest.mark.parametrize("instructions", ["AVX2", "ALL"])
def test_bfloat16_is_computed_on_processors_without_it_too(instructions):
    """oneDNN's own layers refuse it there."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    done = subprocess.run([sys.executable, "-c", PRODUCTS], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_linear_is_replaced_and_names_stay():
    class Odd(nn.Linear):
        """A subclass is somebody else's business."""

    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2, bias=False), nn.GELU()), Odd(2, 2))
    names = list(net.state_dict())
    asked = []
    storage_linears(net, lambda name: asked.append(name) or torch.bfloat16)
    assert asked == ["0.weight", "1.0.weight"]
    assert list(net.state_dict()) == names
    assert [type(net[0]), type(net[1][0]), type(net[2])] == [StoredLinear, StoredLinear, Odd]
    assert net[0].compute_dtype is torch.bfloat16 and net[1][0].bias is None


def test_the_scale_moves_with_the_module_but_is_not_in_its_state():
    layer = stored(torch.randn(4, 4).to(torch.float8_e4m3fn), torch.tensor(0.5))
    assert list(layer.state_dict()) == ["weight"]
    assert layer.to("meta").weight_scale.is_meta
