"""Merged weights beside native ComfyUI's and diffusers' own LoRA code, and the file of our trainer in both."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.lora_dialects import DIALECTS, TRAINED, make
from benchmarks.lora_parity import LIMIT, MODELS, Theirs, compared, fitted, ours, random_weights
from scripts.setup_steps import ROOT

READ_BY = {
    "ComfyUI": {
        "kohya (lora_unet_)", "Fun (lora_unet__)", "PEFT (diffusion_model.)", "every layer, PEFT",
        "LightX2V (diff, diff_b)", "set_weight", "DoRA (dora_scale)", "LoHa", "LoKr", TRAINED,
    },
    "diffusers": {
        "kohya (lora_unet_)", "PEFT (diffusion_model.)", "diffusers (transformer.)", "every layer, diffusers",
        "DoRA (PEFT magnitudes)", "PEFT lora_bias", TRAINED,
    },
}  # fmt: skip
"""The dialects of which each reads every tensor."""


@pytest.fixture(scope="module")
def rows(host_env) -> list[dict]:
    """The table of the command, in a process where ComfyUI's modules and diffusers are."""
    command = [sys.executable, "-m", "benchmarks.lora_parity", "--json", "--comfyui", str(host_env.folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    return json.loads(done.stdout)["rows"]


@pytest.mark.slow
def test_merged_weights_are_those_of_comfyui_and_of_diffusers(rows):
    assert {(row["model"], row["dialect"]) for row in rows} == {(m, d) for m in MODELS for d in DIALECTS}
    for row in rows:
        where = (row["model"], row["dialect"])
        assert row["applied"] == row["total"] and row["ignored"] == 0 and row["change"] > 0.01, where
        for rival, read in READ_BY.items():
            if row["dialect"] in read:
                assert row[rival]["difference"] <= LIMIT and row[rival]["problem"] is None, (where, rival, row[rival])
            else:
                assert row[rival]["problem"], (where, rival, "is read now: add it to READ_BY")


@pytest.mark.slow
def test_the_file_of_our_trainer_is_read_key_by_key_in_both(rows):
    found = [row for row in rows if row["dialect"] == TRAINED]
    assert {row["model"] for row in found} == set(MODELS)
    for row in found:
        for rival in READ_BY:
            assert row[rival]["problem"] is None and row[rival]["difference"] <= LIMIT, (row["model"], rival)


def test_a_difference_and_what_is_left_out_would_be_seen():
    cfg = MODELS["T2V"]
    weights, found = random_weights(cfg), fitted(make("PEFT (diffusion_model.)", cfg), cfg)
    mine = ours(weights, found)
    assert compared(weights, mine, Theirs(weights=mine)) == {"difference": 0.0, "problem": None}
    assert compared(weights, mine, Theirs(weights=ours(weights, found, 0.999)))["difference"] > 50 * LIMIT
    (name, changed), *rest = mine.items()
    assert compared(weights, mine, Theirs(weights=dict(rest)))["problem"].startswith("1 of 20 tensors stay")
    more = {**mine, "head.head.weight": weights["head.head.weight"] + 0.01}
    assert compared(weights, mine, Theirs(weights=more))["difference"] > LIMIT
    left = Theirs(weights=mine, left_over=("x",))
    assert compared(weights, mine, left)["problem"].startswith("1 keys not loaded, x")
    assert not torch.equal(changed, weights[name])
