"""The precision policy is whole, says what it promises, and its islands name real parameters."""

import itertools

import pytest
import torch

from wan_core.configs import ClipVisionConfig, DitConfig, Umt5Config, VaeConfig
from wan_core.errors import InputError
from wan_core.models.clip_vision import ClipVision
from wan_core.models.umt5 import Umt5Encoder
from wan_core.models.vace import build_dit
from wan_core.models.vae import WanVAE
from wan_core.weights import precision
from wan_core.weights.precision import FILE_DTYPES, ISLANDS, POLICY, has_bf16, policy, policy_table

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
E4M3 = torch.float8_e4m3fn
DIT = DitConfig(
    dim=48, ffn_dim=64, num_heads=2, num_layers=1, in_dim=36, out_dim=16, text_dim=8, img_dim=16, img_tokens=514,
    vace_layers=(0,), vace_in_dim=96,
)  # fmt: skip
SMALL = {
    "dit": lambda: build_dit(DIT),
    "umt5": lambda: Umt5Encoder(Umt5Config(vocab=9, dim=8, dim_attn=8, dim_ffn=8, num_heads=2, num_layers=1)),
    "clip_vision": lambda: ClipVision(ClipVisionConfig(dim=32, mlp_dim=32, num_heads=2, num_layers=2)),
    "vae": lambda: WanVAE(VaeConfig(dim=4, dec_dim=4, z_dim=4)),
}


def test_exactly_one_line_answers_every_question():
    for kind, file, device, bf16 in itertools.product(ISLANDS, FILE_DTYPES, ("cpu", "gpu"), (True, False)):
        lines = [
            row
            for row in POLICY
            if row.kind == kind and file in row.file and row.device == device and row.bf16 in (None, bf16)
        ]
        assert len(lines) == 1, (kind, file, device, bf16)


@pytest.mark.parametrize(
    ("kind", "file", "device", "bf16", "compute"),
    [
        ("dit", FP32, "cpu", True, FP32),
        ("dit", FP16, "cpu", True, FP32),
        ("dit", BF16, "cpu", True, BF16),
        ("dit", BF16, "cpu", False, FP32),
        ("dit", E4M3, "cpu", True, BF16),
        ("dit", E4M3, "cpu", False, FP32),
        ("dit", FP32, "cuda", True, BF16),
        ("dit", BF16, "cuda", True, BF16),
        ("dit", FP16, "cuda", True, FP16),
        ("dit", E4M3, "cuda", True, BF16),
        ("dit", E4M3, "cuda", False, FP16),
        ("umt5", FP16, "cuda", True, BF16),
        ("umt5", FP16, "cuda", False, FP32),
        ("umt5", FP16, "cpu", False, FP32),
        ("clip_vision", FP16, "cpu", True, FP32),
        ("clip_vision", FP32, "cuda", True, FP16),
        ("vae", BF16, "cpu", True, FP32),
        ("vae", FP32, "cuda", True, BF16),
        ("vae", BF16, "cuda", False, FP32),
    ],
)
def test_the_policy_says_what_is_written(kind, file, device, bf16, compute):
    assert policy(kind, file, device, bf16).compute is compute


def test_umt5_never_computes_in_fp16_by_itself():
    assert all(row.compute is not FP16 for row in POLICY if row.kind == "umt5")


def test_a_request_overrides_the_compute_type_but_not_the_islands():
    chosen = policy("dit", BF16, "cuda", True, "fp16")
    assert chosen.dtype_of("blocks.0.ffn.0.weight") is FP16
    assert chosen.dtype_of("blocks.0.modulation") is FP32
    with pytest.raises(InputError, match="fp8"):
        policy("dit", BF16, "cuda", True, "fp8")


def test_the_islands_of_the_transformer_are_these_and_the_rest_computes_low():
    chosen = policy("dit", BF16, "cuda", True)
    islands = {name for name, _ in SMALL["dit"]().named_parameters() if chosen.dtype_of(name) is FP32}
    low = {name.removesuffix(".weight") for name, _ in SMALL["dit"]().named_parameters() if name.endswith("weight")}
    low -= {name.removesuffix(".weight") for name in islands}
    assert low == {
        "text_embedding.0", "text_embedding.2", "img_emb.proj.1", "img_emb.proj.3",
        "vace_blocks.0.before_proj", "vace_blocks.0.after_proj",
        *(f"{block}.ffn.{n}" for block in ("blocks.0", "vace_blocks.0") for n in (0, 2)),
        *(f"{block}.self_attn.{name}" for block in ("blocks.0", "vace_blocks.0") for name in "qkvo"),
        *(
            f"{block}.cross_attn.{name}"
            for block in ("blocks.0", "vace_blocks.0")
            for name in ("q", "k", "v", "o", "k_img", "v_img")
        ),
    }  # fmt: skip
    assert {
        "vace_patch_embedding.bias",
        "head.head.weight",
        "head.modulation",
        "patch_embedding.bias",
        "img_emb.emb_pos",
    } <= islands


@pytest.mark.parametrize("kind", ISLANDS)
def test_every_island_pattern_names_a_parameter_that_exists(kind):
    names = [name for name, _ in SMALL[kind]().named_parameters()]
    for pattern in ISLANDS[kind]:
        assert any(precision.fnmatchcase(name, pattern) for name in names), pattern


def test_the_printed_table_holds_every_line():
    table = policy_table()
    assert len(table) == len(POLICY) and len(set(table)) == len(table)
    assert ("dit", "fp16", "gpu", "any", "fp16") in table


def test_a_pytorch_that_cannot_tell_says_that_a_cpu_has_no_bf16(monkeypatch):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert has_bf16(torch.device("cpu")) is False
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert has_bf16(torch.device("cpu")) is True
