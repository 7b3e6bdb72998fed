"""A change of a LoRA's strength reads nothing: neither the model's files nor the LoRA's, which may even be gone."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.lora_dialects import make
from benchmarks.lora_strength import measure, reads
from tests import tiny
from tests.wan_core.stages.lora_models import MODELS, put_on, run
from wan_core.runtime.ports import Compute
from wan_core.stages.load import load_model


def loaded(folder, kind: str, dtype: torch.dtype = torch.float32):
    """A model of one file or two, read as a user's is."""
    made, paths = tiny.model(MODELS[kind]), []
    heads = {"config": json.dumps({"transformer": {"num_heads": made.variant.dit.num_heads}})}
    for side in ("high", "low"):
        if (weights := getattr(made, side)) is not None:
            paths.append(folder / f"model_{side}_noise.safetensors" if made.low else folder / "model.safetensors")
            state = {name: tensor.to(dtype) for name, tensor in weights.module.state_dict().items()}
            save_file(state, paths[-1], heads)
    compute = Compute(device=torch.device("cpu"))
    variant = {"variant": MODELS[kind]}
    return load_model(*paths, **variant, compute=compute, dtype="fp32", notify=lambda text: None), paths


def spoil(path) -> None:
    """Other bytes under the same name, size and date: whoever reads it again fails."""
    facts = path.stat()
    path.with_suffix(".new").write_bytes(b"\xff" * facts.st_size)
    os.utime(path.with_suffix(".new"), ns=(facts.st_atime_ns, facts.st_mtime_ns))
    os.replace(path.with_suffix(".new"), path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", MODELS)
def test_a_change_of_strength_opens_no_file_and_reads_no_weight(kind, dtype, tmp_path):
    """Weights that are merged (stored as they compute) and weights that are changed at each use (stored narrower)."""
    lora = tmp_path / "lora.safetensors"
    save_file(make("PEFT (diffusion_model.)", tiny.variant(MODELS[kind]).dit), lora)
    (tmp_path / "fresh").mkdir()
    wanted = {strength: run(put_on(loaded(tmp_path / "fresh", kind, dtype)[0], lora, strength), kind)
              for strength in (0.5, 0.0)}  # fmt: skip
    model, paths = loaded(tmp_path, kind, dtype)
    with reads() as first:
        run(put_on(model, lora, 1.0), kind)
    assert first["tensors"] > 60
    for path in paths:
        path.unlink()
    spoil(lora)
    with reads() as again:
        half, none, whole = (run(put_on(model, lora, strength), kind) for strength in (0.5, 0.0, 1.0))
    assert dict(again) == {"files": 0, "tensors": 0}
    assert torch.equal(half, wanted[0.5]) and torch.equal(none, wanted[0.0])
    assert (whole - half).abs().max() > 1e-3


def test_the_command_counts_the_same(tmp_path):
    found = measure("tiny", tmp_path, 2)
    assert (found["files"], found["tensors"]) == (0, 0)
    assert 0 < found["change_best_s"] <= found["change_median_s"] and found["first_s"] > 0
