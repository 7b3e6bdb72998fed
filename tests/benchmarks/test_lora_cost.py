"""What ``benchmarks/lora_cost.py`` times is the same work in every program."""

import pytest
import torch

from benchmarks import lora_cost


def test_ours_and_peft_make_the_same_weights(monkeypatch):
    monkeypatch.setattr(lora_cost, "LAYERS", {"self_attn.q": (96, 96), "ffn.0": (160, 96), "ffn.2": (96, 160)})
    weights, lora = lora_cost.block_tensors(), lora_cost.lora_tensors()
    with torch.no_grad():
        made = {name: lora_cost.RIVALS[name](weights, lora)() for name in ("ours", "PEFT")}
    for name, one, other in zip(weights, made["ours"], made["PEFT"], strict=True):
        exact = weights[name].double() + lora_cost.STRENGTH * lora_cost.product(lora, name)
        assert one.dtype is other.dtype is torch.bfloat16
        assert (exact - weights[name].double()).abs().max() > 0.02
        for found in (one, other):
            torch.testing.assert_close(found.double(), exact, atol=4e-3, rtol=0)


def test_our_share_is_of_the_faster_of_the_others():
    rows = {"ours": {"best": 1.0}, "ComfyUI": {"best": 4.0}, "PEFT": {"best": 2.0}}
    assert lora_cost.share(rows) == pytest.approx(0.5)
    assert lora_cost.share({"ours": {"best": 1.0}}) is None
