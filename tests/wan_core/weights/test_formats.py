"""Stored weights become the numbers of the recorded vectors; formats are checked before they are believed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wan_core.errors import ModelFileError
from wan_core.weights.formats import (
    COMFY_FP8,
    StoredWeight,
    check_scale,
    decode,
    layer_format_json,
    read_layer_format,
)
from wan_core.weights.header import TensorInfo

GOLDEN = load_file(Path(__file__).parents[2] / "goldens" / "quant_formats.safetensors")
ROWS = {
    "e4m3fn.plain": None,
    "e4m3fn.per_tensor": "scale_weight",
    "e4m3fn.per_row": "weight_scale",
    "e5m2.per_tensor": "scale_weight",
}


def stored(row: str) -> StoredWeight:
    scale = ROWS[row]
    return StoredWeight(GOLDEN[f"fp8.{row}.weight"], None if scale is None else GOLDEN[f"fp8.{row}.{scale}"])


def test_every_fp8_row_of_the_golden_file_is_covered():
    assert {key.removeprefix("out.fp8.") for key in GOLDEN if key.startswith("out.fp8.")} == set(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_fp8_decodes_to_the_recorded_numbers_to_the_bit(row):
    assert torch.equal(decode(stored(row), torch.float32), GOLDEN[f"out.fp8.{row}"])


@pytest.mark.parametrize("row", ROWS)
def test_decoding_to_bf16_rounds_the_exact_product_once(row):
    assert torch.equal(decode(stored(row), torch.bfloat16), GOLDEN[f"out.fp8.{row}"].bfloat16())


def test_the_scale_may_be_a_scalar_one_value_or_one_per_row_in_any_layout():
    weight, rows = GOLDEN["fp8.e4m3fn.per_row.weight"], GOLDEN["fp8.e4m3fn.per_row.weight_scale"]
    by_column = decode(StoredWeight(weight, rows), torch.float32)
    assert torch.equal(decode(StoredWeight(weight, rows.flatten()), torch.float32), by_column)
    one = decode(StoredWeight(weight, torch.tensor(0.25)), torch.float32)
    assert torch.equal(decode(StoredWeight(weight, torch.tensor([0.25])), torch.float32), one)
    assert torch.equal(one, weight.float() * 0.25)


def test_a_weight_that_is_already_right_is_not_copied():
    weight = torch.randn(3, 4)
    assert decode(StoredWeight(weight), torch.float32) is weight


def scale_info(shape, dtype=torch.float32):
    return TensorInfo(dtype=dtype, shape=shape, nbytes=int(torch.Size(shape).numel()) * dtype.itemsize)


@pytest.mark.parametrize("shape", [(), (1,), (16,), (16, 1), (1, 1)])
def test_known_scale_shapes_pass(shape):
    check_scale("w.weight_scale", scale_info(shape), (16, 256))


@pytest.mark.parametrize(
    "info",
    [
        scale_info((16, 8)),
        scale_info((256,)),
        scale_info((1, 256)),
        scale_info((), torch.uint8),
        scale_info((2,)),
        scale_info((0,)),
    ],
)
def test_block_scales_and_other_shapes_are_refused(info):
    with pytest.raises(ModelFileError, match="not supported yet"):
        check_scale("w.weight_scale", info, (16, 256))


@pytest.mark.parametrize("form", COMFY_FP8)
def test_the_layer_entry_that_is_written_is_accepted(form):
    read_layer_format("w.comfy_quant", layer_format_json(form), COMFY_FP8[form])


@pytest.mark.parametrize(
    ("raw", "dtype", "words"),
    [
        (b'{"format": "nvfp4"}', torch.uint8, "'nvfp4'"),
        (b'{"format": "int8_tensorwise", "convrot": true}', torch.int8, "int8_tensorwise with convrot"),
        (b'{"format": "float8_e4m3fn"}', torch.bfloat16, "stored as torch.bfloat16"),
        (b"{}", torch.float8_e4m3fn, "'None'"),
        (b"not json", torch.float8_e4m3fn, "JSON"),
        (b"[" * 60_000, torch.float8_e4m3fn, "nested too deep"),
        (b" " * 70_000, torch.float8_e4m3fn, "too large"),
    ],
)
def test_a_layer_entry_of_another_format_is_refused_by_name(raw, dtype, words):
    with pytest.raises(ModelFileError, match=words):
        read_layer_format("w.comfy_quant", raw, dtype)
